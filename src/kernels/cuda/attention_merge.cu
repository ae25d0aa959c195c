/* attention_merge.cu - adds up the partials of a row's chunks.
 *
 * A CTA does 32 or 64 channels of one head of one row, two a lane. Chunks fall into 16 parts: part
 * i has chunks first + i, first + i + 16, ..., which are added in that order, eight at a time
 * relative to the largest max so far; then the parts are added in their order. So the order depends
 * on the row's chunks only, not on the waves that made the partials, nor on which of the two
 * kernels runs: the narrow one spreads few heads over more CTAs, the broad one has fewer CTAs to
 * start. */
#include "kernels/cuda/attention_device.cuh"

enum { THREADS = 256, PARTS = 16, BATCH = 8 };

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

struct part_state {
    float top, mass;
    float2 sum;
};

/* out: partials of the lane's channels. */
__device__ __forceinline__ part_state add_part(const partial_place &p, const float *out,
                                               uint32_t head_dim, uint32_t chunk, uint32_t end)
{
    part_state s = {MINUS_INFINITY, 0.0f, make_float2(0, 0)};
    for (; chunk < end; chunk += BATCH * PARTS) {
        float max[BATCH], sum[BATCH], top = s.top;
        float2 x[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            uint32_t at_chunk = chunk + i * PARTS;
            max[i] = MINUS_INFINITY;
            sum[i] = 0;
            x[i] = make_float2(0, 0);
            if (at_chunk < end) {
                max[i] = p.max[at_chunk];
                sum[i] = p.sum[at_chunk];
                x[i] = *reinterpret_cast<const float2 *>(out + (uint64_t)at_chunk * head_dim);
            }
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++) top = fmaxf(top, max[i]);
        float kept = weight_of(s.top, top);
        s.top = top;
        s.mass *= kept;
        s.sum.x *= kept;
        s.sum.y *= kept;
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            float weight = weight_of(max[i], top);
            s.mass += weight * sum[i];
            s.sum.x += weight * x[i].x;
            s.sum.y += weight * x[i].y;
        }
    }
    return s;
}

template <int LANES> __device__ __forceinline__ void merge(const pllm_attend_arguments &a)
{
    constexpr int rows_of_threads = THREADS / LANES;
    __shared__ float2 sums[PARTS][LANES];
    __shared__ float tops[PARTS], masses[PARTS];
    uint32_t tiles = (a.head_dim + 2 * LANES - 1) / (2 * LANES);
    uint32_t head = blockIdx.x / tiles, row = blockIdx.y;
    uint32_t lane = threadIdx.x % LANES, channel = blockIdx.x % tiles * 2 * LANES + 2 * lane;
    uint32_t length = at<uint32_t>(a.row_length)[row];
    uint32_t first = a.window && length > a.window ? (length - a.window) / CHUNK : 0;
    uint32_t end = min((length + CHUNK - 1) / CHUNK, a.chunk_max);
    partial_place p = partials_of(a, row, head);
    bool inside = channel < a.head_dim;
    wait_for_kernel_before();
#pragma unroll
    for (int i = 0; i < PARTS / rows_of_threads; i++) {
        uint32_t part = threadIdx.x / LANES + i * rows_of_threads;
        part_state s = add_part(p, p.out + (inside ? channel : 0), a.head_dim, first + part, end);
        sums[part][lane] = s.sum;
        if (lane == 0) {
            tops[part] = s.top;
            masses[part] = s.mass;
        }
    }
    __syncthreads();
    if (threadIdx.x >= LANES || !inside) return;
    float top = MINUS_INFINITY, mass = 0;
    float2 sum = make_float2(0, 0);
#pragma unroll
    for (int i = 0; i < PARTS; i++) top = fmaxf(top, tops[i]);
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
        float weight = weight_of(tops[i], top);
        mass += weight * masses[i];
        sum.x += weight * sums[i][lane].x;
        sum.y += weight * sums[i][lane].y;
    }
    if (mass == 0) sum = make_float2(0, 0), mass = 1;
    store_pair(a, row * a.out_stride + (uint64_t)head * a.head_dim + channel, sum.x / mass,
               sum.y / mass);
}

/* Grid: x: head and 32 or 64 channels, y: rows. */
extern "C" __global__ void __launch_bounds__(THREADS)
    pllm_attend_merge_32(const __grid_constant__ pllm_attend_arguments a)
{
    merge<16>(a);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    pllm_attend_merge_64(const __grid_constant__ pllm_attend_arguments a)
{
    merge<32>(a);
}
