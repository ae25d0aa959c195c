/* embed.cu - rows of a packed matrix, looked up by token id, as f32. An id past the last row gives
 * NaN, so that it is seen. Bound: a row read and a row written; for one token, one latency. */
#include "kernels/cuda/linear_format.h"
#include "kernels/cuda/rows.cuh"

static __device__ __forceinline__ float scale_at(const char *row, uint32_t index)
{
    return __half2float(((const __half *)row)[index]);
}

/* Elements at .. at + 7, which share a scale and lie together in the packed row. */
static __device__ __forceinline__ void unpack8(float (&out)[8], const char *row, int dtype,
                                               uint32_t scale_bytes, uint32_t at)
{
    uint32_t high, byte = scale_bytes + pllm_packed_quant(dtype, at, &high);
    if (dtype == ROWS_Q8_0) {
        float d = scale_at(row, at / 32);
        uint2 q = *(const uint2 *)(row + byte);
#pragma unroll
        for (int i = 0; i < 8; i++)
            out[i] = d * (float)(int8_t)((i < 4 ? q.x : q.y) >> (i % 4 * 8));
        return;
    }
    uint32_t q = *(const uint32_t *)(row + byte);
    int signs = dtype == ROWS_Q4_0;
    float d = scale_at(row, signs ? at / 32 : at / 32 * 2);
    float m = signs ? 0 : scale_at(row, at / 32 * 2 + 1);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int nibble = (int)(q >> (i % 4 * 8 + i / 4 * 4)) & 15;
        if (signs)
            out[i] = d * (float)((nibble ^ 8) - 8);
        else
            out[i] = d * (float)nibble + m; /* the product is exact */
    }
}

extern "C" __global__ void __launch_bounds__(256)
    pllm_embed(const char *table, int dtype, uint64_t row_bytes, uint32_t n, uint32_t k,
               const uint32_t *ids, uint32_t blocks_per_row, float *out, uint64_t out_stride)
{
    rows_begin();
    uint64_t row = blockIdx.x / blocks_per_row;
    uint32_t at = ((blockIdx.x % blocks_per_row) * 256 + threadIdx.x) * 8, id = ids[row];
    if (at >= k) return;
    float values[8];
    const char *from = table + id * row_bytes;
    int whole = at + 8 <= k;
    if (id >= n) {
#pragma unroll
        for (int i = 0; i < 8; i++) values[i] = __uint_as_float(0x7fc00000);
    } else if (dtype > ROWS_BF16) { /* k is whole blocks of 32 */
        unpack8(values, from, dtype, pllm_packed_scale_bytes(dtype, k), at);
    } else if (whole) { /* packed rows lie at 16 bytes */
        rows_load8(values, from, at, dtype);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) values[i] = at + i < k ? rows_load(from, at + i, dtype) : 0;
    }
    float *to = out + row * out_stride + at;
    if (whole && (uintptr_t)to % 16 == 0) {
        rows_store8(to, 0, ROWS_F32, values);
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (at + i < k) to[i] = values[i];
}
