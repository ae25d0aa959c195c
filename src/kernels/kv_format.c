/* kv_format.c - sizes of KV blocks, and the element-by-element reading of their rows. */
#include <string.h>
#include "base/context.h"
#include "kernels/kv_format.h"

int pllm_kv_shape_init(pllm_kv_shape *shape, pllm_dtype format, uint32_t kv_heads,
                       uint32_t head_dim)
{
    if (format != PLLM_F32 && format != PLLM_F16 && format != PLLM_BF16 && format != PLLM_INT8 &&
        format != PLLM_INT4)
        return pllm_fail(PLLM_EINVAL, 0,
                         "%s is no KV cache format; use f32, f16, bf16, int8 or int4",
                         pllm_dtype_name(format));
    if (kv_heads == 0 || kv_heads > 65536)
        return pllm_fail(PLLM_EINVAL, 0, "%u KV heads is outside 1..65536", kv_heads);
    if (head_dim < 8 || head_dim > PLLM_HEAD_DIM_MAX || head_dim % 8 != 0)
        return pllm_fail(PLLM_EINVAL, 0,
                         "a head dimension of %u is not supported: it must be a multiple of 8 "
                         "from 8 to %d",
                         head_dim, PLLM_HEAD_DIM_MAX);
    shape->sealed = format;
    shape->open = format == PLLM_F32 || format == PLLM_BF16 ? format : PLLM_F16;
    shape->kv_heads = kv_heads;
    shape->head_dim = head_dim;
    return PLLM_OK;
}

uint64_t pllm_kv_slice_bytes(const pllm_kv_shape *shape, pllm_dtype which)
{
    if (which == PLLM_INT8 || which == PLLM_INT4)
        return pllm_kv_quantised_layout(shape->head_dim, which == PLLM_INT8 ? 8 : 4).value_min +
               2 * PLLM_BLOCK_TOKENS;
    return (uint64_t)2 * PLLM_BLOCK_TOKENS * shape->head_dim * pllm_dtype_block_bytes(which);
}

uint64_t pllm_kv_block_bytes(const pllm_kv_shape *shape, pllm_dtype which)
{
    return (pllm_kv_slice_bytes(shape, which) * shape->kv_heads + 4095) / 4096 * 4096;
}

static float half_at(const uint8_t *bytes, uint64_t index)
{
    uint16_t half;
    memcpy(&half, bytes + 2 * index, 2);
    return pllm_f16_to_f32(half);
}

static void read_plain(pllm_dtype which, const uint8_t *row, uint32_t head_dim, float *out)
{
    for (uint32_t c = 0; c < head_dim; c++) {
        uint16_t half;
        if (which == PLLM_F32) {
            memcpy(&out[c], row + 4 * c, 4);
        } else {
            memcpy(&half, row + 2 * c, 2);
            out[c] = which == PLLM_F16 ? pllm_f16_to_f32(half) : pllm_bf16_to_f32(half);
        }
    }
}

void pllm_kv_read_row(const pllm_kv_shape *shape, pllm_dtype which, const void *block,
                      uint32_t kv_head, int value, uint32_t row, float *out)
{
    uint32_t d = shape->head_dim;
    const uint8_t *slice = (const uint8_t *)block + kv_head * pllm_kv_slice_bytes(shape, which);
    if (which != PLLM_INT8 && which != PLLM_INT4) {
        uint64_t row_index = (value ? PLLM_BLOCK_TOKENS : 0) + row;
        read_plain(which, slice + row_index * d * pllm_dtype_block_bytes(which), d, out);
        return;
    }
    uint32_t bits = which == PLLM_INT8 ? 8 : 4;
    pllm_kv_quantised at = pllm_kv_quantised_layout(d, bits);
    for (uint32_t c = 0; c < d; c++) {
        /* Eight bits: element of a row of `length`. Four: its byte, and which half of it. */
        const uint8_t *data = value ? slice + at.values + (uint64_t)row * d * bits / 8
                                    : slice + (uint64_t)c * PLLM_BLOCK_TOKENS * bits / 8;
        uint32_t element = value ? c : row, half = (value ? d : PLLM_BLOCK_TOKENS) / 2;
        uint32_t q = bits == 8        ? data[element]
                     : element < half ? data[element] & 15
                                      : data[element - half] >> 4;
        float scale = half_at(slice + (value ? at.value_scale : at.key_scale), value ? row : c);
        float minimum = half_at(slice + (value ? at.value_min : at.key_min), value ? row : c);
        out[c] = scale * (float)q + minimum;
    }
}
