/* linear_reference.c - the product as plain C: what the tuned versions must equal.
 *
 * One output at a time. Here the quantised activations are plain int16 in order of k, 64 bytes a
 * group. fmaf makes every multiply-add round once, as the vector instructions do. */
#include <math.h>
#include <string.h>
#include "kernels/cpu/cpu.h"

enum { ROWS = PLLM_PANEL_ROWS };

static void prepare_group(pllm_activations *activations, uint64_t index, const float *x)
{
    int16_t *a = (int16_t *)(activations->quantised + index * 64);
    uint32_t largest_bits = 0;
    for (uint32_t i = 0; i < PLLM_GROUP; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bits &= 0x7fffffff;
        if (bits > largest_bits) largest_bits = bits;
    }
    pllm_group_scale scale = pllm_group_scale_of(largest_bits);
    int32_t sum = 0;
    for (uint32_t i = 0; i < PLLM_GROUP; i++) {
        a[i] = scale.inverse == 0.0f ? 0 : (int16_t)lrintf(x[i] * scale.inverse);
        sum += a[i];
    }
    activations->scale[index] = scale.scale;
    activations->sum[index] = sum;
    activations->scaled_sum[index] = scale.scale * (float)sum;
}

/* pllm_f32_to_bf16 without a branch, so that the loop below becomes vectors. */
static inline uint16_t round_to_bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, quiet = bits >> 16 | 0x40;
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
}

void pllm_prepare_plain(pllm_activations *activations, uint32_t row, const float *x, uint32_t forms)
{
    uint32_t k = activations->k, padded = activations->k_padded;
    if (forms & PLLM_FORM_F32) {
        float *out = activations->f32 + (uint64_t)row * padded;
        memcpy(out, x, k * sizeof *x);
        memset(out + k, 0, (padded - k) * sizeof *x);
    }
    if (forms & PLLM_FORM_BF16) {
        uint16_t *out = activations->bf16 + (uint64_t)row * padded;
        for (uint32_t i = 0; i < k; i++) out[i] = round_to_bf16(x[i]);
        memset(out + k, 0, (padded - k) * sizeof *out);
    }
}

void pllm_prepare_reference(pllm_activations *activations, uint32_t row, const float *x,
                            uint32_t forms)
{
    pllm_prepare_plain(activations, row, x, forms);
    if (!(forms & PLLM_FORM_INTEGER)) return;
    uint64_t first = (uint64_t)row * activations->group_count;
    for (uint32_t g = 0; g < activations->k / PLLM_GROUP; g++)
        prepare_group(activations, first + g, x + (uint64_t)g * PLLM_GROUP);
}

static float load_f16(const uint8_t *panel, uint64_t index)
{
    uint16_t half;
    memcpy(&half, panel + index * 2, sizeof half);
    return pllm_f16_to_f32(half);
}

/* The integer dot product of a group: sum of a * (q - offset), q as the file has it. */
static int32_t group_dot(const int16_t *a, const uint8_t *quants, uint32_t r, pllm_dtype dtype)
{
    int32_t sum = 0;
    for (int i = 0; i < PLLM_GROUP; i++) {
        int w;
        if (dtype == PLLM_Q8_0) {
            w = quants[64 * (i / 4) + 4 * r + i % 4] - 128;
        } else {
            int byte = quants[64 * (i % 16 / 4) + 4 * r + i % 4];
            w = (i < 16 ? byte & 15 : byte >> 4) - (dtype == PLLM_Q4_0 ? 8 : 0);
        }
        sum += a[i] * w;
    }
    return sum;
}

static float dot_integer(const pllm_activations *activations, uint32_t m, const pllm_linear *linear,
                         const uint8_t *panel, uint32_t r)
{
    uint32_t groups = linear->k / PLLM_GROUP;
    uint32_t scales = linear->dtype == PLLM_Q4_1 ? 2 : 1;
    uint64_t group_bytes = linear->dtype == PLLM_Q8_0 ? 512 : 256;
    const uint8_t *quants = panel + pllm_panel_scale_bytes(linear->dtype, linear->k);
    float total = 0.0f;
    for (uint32_t g = 0; g < groups; g++) {
        uint64_t index = (uint64_t)m * activations->group_count + g;
        const int16_t *a = (const int16_t *)(activations->quantised + index * 64);
        int32_t sum = group_dot(a, quants + g * group_bytes, r, linear->dtype);
        float d = load_f16(panel, (uint64_t)g * scales * ROWS + r);
        total = fmaf(d * activations->scale[index], (float)sum, total);
        if (linear->dtype == PLLM_Q4_1) {
            float minimum = load_f16(panel, ((uint64_t)g * scales + 1) * ROWS + r);
            total = fmaf(minimum, activations->scaled_sum[index], total);
        }
    }
    return total;
}

/* Element i of row r of a panel in the f32 and bf16 computations. */
static float weight_at(const pllm_linear *linear, const uint8_t *panel, uint32_t r, uint32_t i)
{
    uint64_t plain = (uint64_t)i * ROWS + r;
    uint16_t half;
    float value;
    if (linear->compute == PLLM_COMPUTE_BF16) {
        memcpy(&half, panel + ((uint64_t)(i / 2) * ROWS + r) * 4 + i % 2 * 2, sizeof half);
        return pllm_bf16_to_f32(half);
    }
    switch (linear->dtype) {
    case PLLM_F32:
        memcpy(&value, panel + plain * 4, sizeof value);
        return value;
    case PLLM_F16:
        return load_f16(panel, plain);
    case PLLM_BF16:
        memcpy(&half, panel + plain * 2, sizeof half);
        return pllm_bf16_to_f32(half);
    default:
        break;
    }
    uint32_t g = i / PLLM_GROUP, scales = linear->dtype == PLLM_Q4_1 ? 2 : 1;
    const uint8_t *quants = panel + pllm_panel_scale_bytes(linear->dtype, linear->k) +
                            (uint64_t)g * (linear->dtype == PLLM_Q8_0 ? 512 : 256);
    float d = load_f16(panel, (uint64_t)g * scales * ROWS + r);
    i %= PLLM_GROUP;
    if (linear->dtype == PLLM_Q8_0) return d * (float)(quants[64 * (i / 4) + 4 * r + i % 4] - 128);
    int byte = quants[64 * (i % 16 / 4) + 4 * r + i % 4], nibble = i < 16 ? byte & 15 : byte >> 4;
    if (linear->dtype == PLLM_Q4_0) return d * (float)(nibble - 8);
    return d * (float)nibble + load_f16(panel, ((uint64_t)g * 2 + 1) * ROWS + r);
}

/* An FMA chain over k; x in f32, or rounded to bf16. */
static float dot_f32(const pllm_activations *activations, uint32_t m, const pllm_linear *linear,
                     const uint8_t *panel, uint32_t r)
{
    float total = 0.0f;
    uint64_t first = (uint64_t)m * activations->k_padded;
    for (uint32_t i = 0; i < linear->k; i++) {
        float x = linear->compute == PLLM_COMPUTE_BF16
                      ? pllm_bf16_to_f32(activations->bf16[first + i])
                      : activations->f32[first + i];
        total = fmaf(weight_at(linear, panel, r, i), x, total);
    }
    return total;
}

void pllm_product_reference(float *out, uint64_t out_stride, const pllm_activations *activations,
                            uint32_t m_first, uint32_t m_count, const pllm_linear *linear,
                            uint32_t n_first, uint32_t n_count)
{
    for (uint32_t n = n_first; n < n_first + n_count; n++) {
        const uint8_t *panel = panel_at(linear, n / ROWS);
        for (uint32_t m = 0; m < m_count; m++) {
            float *y = out + m * out_stride + n;
            *y = linear->compute == PLLM_COMPUTE_INTEGER
                     ? dot_integer(activations, m_first + m, linear, panel, n % ROWS)
                     : dot_f32(activations, m_first + m, linear, panel, n % ROWS);
        }
    }
}
