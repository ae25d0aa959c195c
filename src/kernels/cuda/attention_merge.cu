/* attention_merge.cu - adds up the partials of a row's chunks.
 *
 * A CTA does 32 channels of one head of one row. Its 16 lanes of channel pairs times 16 parts of
 * chunks: part i adds chunks first + i, first + i + 16, ... ascending, then the parts are added in
 * their order. That order depends on the row's chunks only, not on the waves that made the
 * partials. */
#include "kernels/cuda/attention_device.cuh"

enum { THREADS = 256, LANES = 16, PARTS = THREADS / LANES, WARPS = THREADS / 32 };

__device__ __forceinline__ void store_pair(const pllm_attend_arguments &a, uint64_t index, float x,
                                           float y)
{
    if (a.out_dtype == F32) {
        *reinterpret_cast<float2 *>(a.out + 4 * index) = make_float2(x, y);
    } else if (a.out_dtype == BF16) {
        *reinterpret_cast<__nv_bfloat162 *>(a.out + 2 * index) = __floats2bfloat162_rn(x, y);
    } else {
        *reinterpret_cast<__half2 *>(a.out + 2 * index) = __floats2half2_rn(x, y);
    }
}

/* Grid: x: head and 32 channels, y: rows. */
extern "C" __global__ void __launch_bounds__(THREADS)
    pllm_attend_merge(const __grid_constant__ pllm_attend_arguments a)
{
    __shared__ float tops[WARPS];
    __shared__ float2 sums[PARTS][LANES];
    __shared__ float masses[PARTS];
    uint32_t tiles = (a.head_dim + 31) / 32, head = blockIdx.x / tiles, row = blockIdx.y;
    uint32_t lane = threadIdx.x % LANES, part = threadIdx.x / LANES;
    uint32_t channel = blockIdx.x % tiles * 32 + 2 * lane;
    wait_for_kernel_before();
    uint32_t length = at<uint32_t>(a.row_length)[row];
    uint32_t first = a.window && length > a.window ? (length - a.window) / CHUNK : 0;
    uint32_t end = min((length + CHUNK - 1) / CHUNK, a.chunk_max);
    partial_place p = partials_of(a, row, head);
    float top = MINUS_INFINITY;
    for (uint32_t i = first + threadIdx.x; i < end; i += THREADS) top = fmaxf(top, p.max[i]);
    for (int step = 16; step; step /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, step));
    if (threadIdx.x % 32 == 0) tops[threadIdx.x / 32] = top;
    __syncthreads();
    for (int i = 0; i < WARPS; i++) top = fmaxf(top, tops[i]);
    float2 sum = make_float2(0, 0);
    float mass = 0;
    bool inside = channel < a.head_dim;
    const float *out = p.out + (inside ? channel : 0);
#pragma unroll 8
    for (uint32_t i = first + part; i < end; i += PARTS) {
        float2 x = *reinterpret_cast<const float2 *>(out + (uint64_t)i * a.head_dim);
        float weight = weight_of(p.max[i], top);
        sum.x += weight * x.x;
        sum.y += weight * x.y;
        mass += weight * p.sum[i];
    }
    sums[part][lane] = sum;
    if (lane == 0) masses[part] = mass;
    __syncthreads();
    if (part != 0 || !inside) return;
    for (int i = 1; i < PARTS; i++) {
        sum.x += sums[i][lane].x;
        sum.y += sums[i][lane].y;
        mass += masses[i];
    }
    if (mass == 0) sum = make_float2(0, 0), mass = 1;
    store_pair(a, row * a.out_stride + (uint64_t)head * a.head_dim + channel, sum.x / mass,
               sum.y / mass);
}
