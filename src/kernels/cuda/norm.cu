/* norm.cu - out = x / sqrt(mean(x^2) + epsilon) * weight, one row a block.
 *
 * Thread t of T takes the quadruples t, t + T, ... of the row, squares and adds them in that order;
 * then the order of rows_block_sum. T depends on n alone (norm_threads in rows.c), and the version
 * for odd sizes and alignments walks the same way: a row has the same bits from each.
 * A row is read once: its elements stay in registers, `quads` quadruples a thread. Bound: the bytes
 * of x and out; for one row, the time of one read, two barriers and one write. */
#include "kernels/cuda/rows.cuh"

template <int quads>
static __device__ __forceinline__ void norm_row(const float *x, uint64_t x_stride,
                                                const float *weight, float epsilon,
                                                const uint32_t *row_index, uint32_t n, void *out,
                                                int out_dtype, uint64_t out_stride)
{
    __shared__ float scratch[32];
    float4 scales[quads], values[quads];
    uint32_t count = n / 4;
#pragma unroll
    for (int i = 0; i < quads; i++) { /* weights are nobody's output: no need to wait for them */
        uint32_t at = threadIdx.x + i * blockDim.x;
        scales[i] = at < count ? ((const float4 *)weight)[at] : make_float4(0, 0, 0, 0);
    }
    rows_begin();
    uint64_t row = row_index ? row_index[blockIdx.x] : blockIdx.x;
    x += row * x_stride;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < quads; i++) {
        uint32_t at = threadIdx.x + i * blockDim.x;
        values[i] = at < count ? ((const float4 *)x)[at] : make_float4(0, 0, 0, 0);
    }
#pragma unroll
    for (int i = 0; i < quads; i++) {
        sum = fmaf(values[i].x, values[i].x, sum);
        sum = fmaf(values[i].y, values[i].y, sum);
        sum = fmaf(values[i].z, values[i].z, sum);
        sum = fmaf(values[i].w, values[i].w, sum);
    }
    sum = rows_block_sum(sum, scratch);
    float scale = 1.0f / sqrtf(sum / (float)n + epsilon);
#pragma unroll
    for (int i = 0; i < quads; i++) {
        uint32_t at = threadIdx.x + i * blockDim.x;
        if (at >= count) continue;
        float4 v = values[i], w = scales[i];
        rows_store4(out, blockIdx.x * out_stride + 4 * (uint64_t)at, out_dtype,
                    make_float4(v.x * scale * w.x, v.y * scale * w.y, v.z * scale * w.z,
                                v.w * scale * w.w));
    }
}

#define NORM(quads)                                                                               \
    extern "C" __global__ void __launch_bounds__(512) pllm_norm_##quads(                          \
        const float *x, uint64_t x_stride, const float *weight, float epsilon,                    \
        const uint32_t *row_index, uint32_t n, void *out, int out_dtype, uint64_t out_stride)     \
    {                                                                                             \
        norm_row<quads>(x, x_stride, weight, epsilon, row_index, n, out, out_dtype, out_stride);  \
    }

NORM(2)
NORM(4)
NORM(8)

/* Any n, any alignment. */
extern "C" __global__ void __launch_bounds__(512)
    pllm_norm_any(const float *x, uint64_t x_stride, const float *weight, float epsilon,
                  const uint32_t *row_index, uint32_t n, void *out, int out_dtype,
                  uint64_t out_stride)
{
    __shared__ float scratch[32];
    rows_begin();
    uint64_t row = row_index ? row_index[blockIdx.x] : blockIdx.x;
    x += row * x_stride;
    float sum = 0;
    for (uint64_t at = 4 * threadIdx.x; at < n; at += 4 * blockDim.x)
        for (uint64_t i = at; i < at + 4 && i < n; i++) sum = fmaf(x[i], x[i], sum);
    sum = rows_block_sum(sum, scratch);
    float scale = 1.0f / sqrtf(sum / (float)n + epsilon);
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x)
        rows_store(out, blockIdx.x * out_stride + i, out_dtype, x[i] * scale * weight[i]);
}
