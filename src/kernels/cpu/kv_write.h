/* kv_write.h - appending to open blocks and sealing them; one body, compiled once per instruction
 * set and vectorised by the compiler.
 *
 * The includer defines ROW_TO_F32(dst, src, dtype, n) and ROW_FROM_F32(dst, src, dtype, n), n a
 * multiple of 8, and gets kv_append and kv_seal. Everything else is plain IEEE arithmetic per
 * element, so every instruction set gives the same bits. */
#include <string.h>
#include "kernels/kv_format.h"

static void kv_append(const pllm_kv_shape *shape, void *open_block, uint32_t row, const float *k,
                      const float *v)
{
    uint64_t d = shape->head_dim, row_bytes = d * pllm_dtype_block_bytes(shape->open);
    uint8_t *at = (uint8_t *)open_block + row * row_bytes;
    for (uint32_t head = 0; head < shape->kv_heads; head++) {
        ROW_FROM_F32(at, k + head * d, shape->open, d);
        ROW_FROM_F32(at + PLLM_BLOCK_TOKENS * row_bytes, v + head * d, shape->open, d);
        at += 2 * PLLM_BLOCK_TOKENS * row_bytes;
    }
}

/* The smallest half not below value, and the largest not above it: no element is clipped. */
static uint16_t half_above(float value)
{
    uint16_t half = pllm_f32_to_f16(value);
    if (pllm_f16_to_f32(half) < value) half = (half & 0x8000) ? half - 1 : half + 1;
    return half;
}

static uint16_t half_below(float value)
{
    return half_above(-value) ^ 0x8000;
}

/* Scale and minimum for elements between low and high in `levels` steps; *inverse: 1 / scale. */
static void range_to_scale(float low, float high, float levels, uint16_t *scale, uint16_t *minimum,
                           float *base, float *inverse)
{
    *minimum = half_below(low);
    *base = pllm_f16_to_f32(*minimum);
    *scale = half_above((high - *base) / levels);
    float step = pllm_f16_to_f32(*scale);
    *inverse = step > 0 ? 1.0f / step : 0.0f;
}

/* Written so that NaN becomes 0 and the conversion to an integer is always defined. */
static inline uint32_t quantise(float x, float base, float inverse, float levels)
{
    float q = (x - base) * inverse + 0.5f;
    q = q > 0.0f ? q : 0.0f;
    q = q < levels ? q : levels;
    return (uint32_t)(int32_t)q;
}

/* keys: f32 [32][d]. Lanes are channels while scales are sought and tokens while packing. */
static void seal_keys(uint8_t *sealed, const float *keys, uint32_t d, uint32_t bits)
{
    float low[PLLM_HEAD_DIM_MAX], high[PLLM_HEAD_DIM_MAX];
    pllm_kv_quantised at = pllm_kv_quantised_layout(d, bits);
    memcpy(low, keys, d * sizeof *keys);
    memcpy(high, keys, d * sizeof *keys);
    for (uint32_t row = 1; row < PLLM_BLOCK_TOKENS; row++) {
        const float *key = keys + (uint64_t)row * d;
        for (uint32_t c = 0; c < d; c++) {
            low[c] = key[c] < low[c] ? key[c] : low[c];
            high[c] = key[c] > high[c] ? key[c] : high[c];
        }
    }
    float levels = bits == 8 ? 255.0f : 15.0f;
    for (uint32_t c = 0; c < d; c++) {
        uint16_t scale, minimum;
        float base, inverse;
        uint8_t q[PLLM_BLOCK_TOKENS];
        range_to_scale(low[c], high[c], levels, &scale, &minimum, &base, &inverse);
        memcpy(sealed + at.key_scale + 2 * c, &scale, 2);
        memcpy(sealed + at.key_min + 2 * c, &minimum, 2);
        for (uint32_t row = 0; row < PLLM_BLOCK_TOKENS; row++)
            q[row] = (uint8_t)quantise(keys[(uint64_t)row * d + c], base, inverse, levels);
        uint8_t *out = sealed + (uint64_t)c * PLLM_BLOCK_TOKENS * bits / 8;
        if (bits == 8) {
            memcpy(out, q, sizeof q);
        } else {
            for (uint32_t i = 0; i < PLLM_BLOCK_TOKENS / 2; i++)
                out[i] = (uint8_t)(q[i] | q[i + PLLM_BLOCK_TOKENS / 2] << 4);
        }
    }
}

static void seal_values(uint8_t *sealed, const float *values, uint32_t d, uint32_t bits)
{
    pllm_kv_quantised at = pllm_kv_quantised_layout(d, bits);
    float levels = bits == 8 ? 255.0f : 15.0f;
    for (uint32_t row = 0; row < PLLM_BLOCK_TOKENS; row++) {
        const float *value = values + (uint64_t)row * d;
        float low = value[0], high = value[0], base, inverse;
        uint16_t scale, minimum;
        uint8_t q[PLLM_HEAD_DIM_MAX];
        for (uint32_t c = 1; c < d; c++) {
            low = value[c] < low ? value[c] : low;
            high = value[c] > high ? value[c] : high;
        }
        range_to_scale(low, high, levels, &scale, &minimum, &base, &inverse);
        memcpy(sealed + at.value_scale + 2 * row, &scale, 2);
        memcpy(sealed + at.value_min + 2 * row, &minimum, 2);
        for (uint32_t c = 0; c < d; c++) q[c] = (uint8_t)quantise(value[c], base, inverse, levels);
        uint8_t *out = sealed + at.values + (uint64_t)row * d * bits / 8;
        if (bits == 8) {
            memcpy(out, q, d);
        } else {
            for (uint32_t i = 0; i < d / 2; i++) out[i] = (uint8_t)(q[i] | q[i + d / 2] << 4);
        }
    }
}

static void kv_seal(const pllm_kv_shape *shape, void *sealed, const void *open)
{
    if (shape->sealed == shape->open) {
        if (sealed != open)
            memcpy(sealed, open, pllm_kv_slice_bytes(shape, shape->open) * shape->kv_heads);
        return;
    }
    uint32_t d = shape->head_dim, bits = shape->sealed == PLLM_INT8 ? 8 : 4;
    uint64_t row_bytes = (uint64_t)d * pllm_dtype_block_bytes(shape->open);
    float rows[PLLM_BLOCK_TOKENS * PLLM_HEAD_DIM_MAX];
    for (uint32_t head = 0; head < shape->kv_heads; head++) {
        const uint8_t *in = (const uint8_t *)open + head * pllm_kv_slice_bytes(shape, shape->open);
        uint8_t *out = (uint8_t *)sealed + head * pllm_kv_slice_bytes(shape, shape->sealed);
        ROW_TO_F32(rows, in, shape->open, PLLM_BLOCK_TOKENS * d);
        seal_keys(out, rows, d, bits);
        ROW_TO_F32(rows, in + PLLM_BLOCK_TOKENS * row_bytes, shape->open, PLLM_BLOCK_TOKENS * d);
        seal_values(out, rows, d, bits);
    }
}
