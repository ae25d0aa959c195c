/* prefill_generic.cu - causal attention of prompt rows over paged blocks, for any size and format.
 *
 * Idea: a CTA does the 32 query rows of one block of positions for one head, so that the tile's own
 * block (open form, from the stage) is the only one with a mask, and every block before it is full
 * (sealed form, through the table). Blocks are walked upwards, one at a time, through shared memory
 * as f32; all arithmetic is f32 with fused multiply-adds on the ordinary cores.
 *
 *   shared:  Q f32 [32][pitch] | K, then V, f32 [32][pitch] | scores f32 [32][33]
 *
 * 256 threads: thread (y, x) of 16 x 16 has rows y and y + 16; tokens x and x + 16 of the scores,
 * and channels 4 x + 64 j of the output. A row's softmax state is kept by the 16 threads that share
 * it, all with the same bits. Every sum is one chain in a fixed order: ascending channels for a
 * score, ascending tokens for an output.
 *
 * Rows outside the item are computed on zeros and not stored. */
#include "prefill_device.cuh"

namespace
{
constexpr uint32_t ROWS = 32, THREADS = 256;

template <typename T>
__device__ __forceinline__ void rows_load(float *to, uint32_t pitch, const T *from, uint32_t width)
{
    for (uint32_t i = threadIdx.x; i < ROWS * (width / 4); i += THREADS) {
        const uint32_t row = i / (width / 4), at = i % (width / 4) * 4;
        const T *source = from + (uint64_t)row * width + at;
        float *target = to + row * pitch + at;
        for (uint32_t j = 0; j < 4; j++) target[j] = prefill_to_float<T>(source[j]);
    }
}

/* Q, K and V rows are whole multiples of 8 elements; loads of 4 are aligned to their size. */
template <>
__device__ __forceinline__ void rows_load<float>(float *to, uint32_t pitch, const float *from,
                                                 uint32_t width)
{
    for (uint32_t i = threadIdx.x; i < ROWS * (width / 4); i += THREADS) {
        const uint32_t row = i / (width / 4), at = i % (width / 4) * 4;
        *(float4 *)(to + row * pitch + at) = *(const float4 *)(from + (uint64_t)row * width + at);
    }
}

__device__ __forceinline__ float max16(float x)
{
    for (uint32_t lane = 1; lane < 16; lane *= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, lane));
    return x;
}

__device__ __forceinline__ float sum16(float x)
{
    for (uint32_t lane = 1; lane < 16; lane *= 2) x += __shfl_xor_sync(~0u, x, lane);
    return x;
}

/* Two rows by two tokens: s[row][token]. */
__device__ __forceinline__ void scores(float s[2][2], const float *q, const float *k,
                                       uint32_t pitch, uint32_t width, uint32_t y, uint32_t x)
{
    for (uint32_t i = 0; i < 4; i++) s[i / 2][i % 2] = 0;
    for (uint32_t at = 0; at < width; at += 4) {
        float4 a[2], b[2];
        for (uint32_t i = 0; i < 2; i++) {
            a[i] = *(const float4 *)(q + (y + 16 * i) * pitch + at);
            b[i] = *(const float4 *)(k + (x + 16 * i) * pitch + at);
        }
        for (uint32_t i = 0; i < 2; i++) {
            for (uint32_t j = 0; j < 2; j++) {
                float sum = s[i][j];
                sum = fmaf(a[i].x, b[j].x, sum), sum = fmaf(a[i].y, b[j].y, sum);
                sum = fmaf(a[i].z, b[j].z, sum), sum = fmaf(a[i].w, b[j].w, sum);
                s[i][j] = sum;
            }
        }
    }
}

/* COLUMNS: groups of 64 channels, head_dim rounded up. */
template <typename T, uint32_t COLUMNS>
__device__ __forceinline__ void prefill(const prefill_args &a)
{
    extern __shared__ __align__(16) float shared[];
    prefill_work w;
    if (!prefill_find<ROWS>(a, blockIdx.x, &w)) return;
    const uint32_t width = a.head_dim, pitch = width + 4;
    float *q = shared, *kv = q + ROWS * pitch, *p = kv + ROWS * pitch;
    const uint32_t x = threadIdx.x % 16, y = threadIdx.x / 16;
    const uint32_t kv_head = w.head / a.group;
    const int64_t row_base = (int64_t)w.row_first + (int64_t)w.tile * ROWS - w.position;
    const uint32_t row_low = w.tile * ROWS < w.position ? w.position - w.tile * ROWS : 0;
    const uint32_t row_end = min(ROWS, w.position + w.rows - w.tile * ROWS);

    for (uint32_t i = threadIdx.x; i < ROWS * width; i += THREADS) {
        const uint32_t row = i / width, at = i % width;
        float value = 0;
        if (row >= row_low && row < row_end)
            value = prefill_to_float<T>(
                ((const T *)a.q)[(row_base + row) * a.q_stride + (uint64_t)w.head * width + at]);
        q[row * pitch + at] = value * a.scale;
    }

    float max[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
    float4 out[2][COLUMNS];
    for (uint32_t i = 0; i < 2 * COLUMNS; i++)
        out[i / COLUMNS][i % COLUMNS] = make_float4(0, 0, 0, 0);

    for (uint32_t block = 0; block <= w.tile; block++) {
        const bool own = block == w.tile;
        const uint64_t base =
            own ? a.stage + (uint64_t)(w.stage_first + block - w.position / ROWS) * a.stage_bytes
                : a.sealed + (uint64_t)w.table[block] * a.sealed_bytes;
        const T *k = (const T *)base + (uint64_t)kv_head * 2 * ROWS * width;
        __syncthreads();
        rows_load<T>(kv, pitch, k, width);
        __syncthreads();
        float s[2][2];
        scores(s, q, kv, pitch, width, y, x);
        for (uint32_t i = 0; i < 2; i++) {
            const uint32_t row = y + 16 * i;
            if (own && x > row) s[i][0] = -INFINITY; /* token 0 is always seen: max is finite */
            if (own && x + 16 > row) s[i][1] = -INFINITY;
            const float top = fmaxf(max[i], max16(fmaxf(s[i][0], s[i][1])));
            const float keep = expf(max[i] - top);
            const float e0 = expf(s[i][0] - top), e1 = expf(s[i][1] - top);
            sum[i] = sum[i] * keep + sum16(e0 + e1);
            max[i] = top;
            p[row * 33 + x] = e0, p[row * 33 + x + 16] = e1;
            for (uint32_t j = 0; j < COLUMNS; j++) {
                out[i][j].x *= keep, out[i][j].y *= keep;
                out[i][j].z *= keep, out[i][j].w *= keep;
            }
        }
        __syncthreads();
        rows_load<T>(kv, pitch, k + ROWS * width, width);
        __syncthreads();
        const uint32_t tokens = own ? row_end : ROWS; /* past it: not written yet, any bits */
        for (uint32_t token = 0; token < tokens; token++) {
            const float p0 = p[y * 33 + token], p1 = p[(y + 16) * 33 + token];
            for (uint32_t j = 0; j < COLUMNS; j++) {
                const uint32_t at = 4 * x + 64 * j;
                if (at >= width) break;
                const float4 v = *(const float4 *)(kv + token * pitch + at);
                out[0][j].x = fmaf(p0, v.x, out[0][j].x), out[0][j].y = fmaf(p0, v.y, out[0][j].y);
                out[0][j].z = fmaf(p0, v.z, out[0][j].z), out[0][j].w = fmaf(p0, v.w, out[0][j].w);
                out[1][j].x = fmaf(p1, v.x, out[1][j].x), out[1][j].y = fmaf(p1, v.y, out[1][j].y);
                out[1][j].z = fmaf(p1, v.z, out[1][j].z), out[1][j].w = fmaf(p1, v.w, out[1][j].w);
            }
        }
    }

    for (uint32_t i = 0; i < 2; i++) {
        const uint32_t row = y + 16 * i;
        if (row < row_low || row >= row_end) continue;
        const float scale = 1 / sum[i];
        for (uint32_t j = 0; j < COLUMNS; j++) {
            const uint32_t at = 4 * x + 64 * j;
            if (at >= width) break;
            const uint64_t to = (row_base + row) * a.out_stride + (uint64_t)w.head * width + at;
            prefill_store2(a.out, a.out_dtype, to, out[i][j].x * scale, out[i][j].y * scale);
            prefill_store2(a.out, a.out_dtype, to + 2, out[i][j].z * scale, out[i][j].w * scale);
        }
    }
}
} // namespace

#define PREFILL_GENERIC(name, type, columns)                 \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) \
        name(const __grid_constant__ prefill_args a)         \
    {                                                        \
        prefill<type, columns>(a);                           \
    }

PREFILL_GENERIC(pllm_prefill_generic_f32_64, float, 1)
PREFILL_GENERIC(pllm_prefill_generic_f32_128, float, 2)
PREFILL_GENERIC(pllm_prefill_generic_f32_256, float, 4)
PREFILL_GENERIC(pllm_prefill_generic_f16_64, __half, 1)
PREFILL_GENERIC(pllm_prefill_generic_f16_128, __half, 2)
PREFILL_GENERIC(pllm_prefill_generic_f16_256, __half, 4)
PREFILL_GENERIC(pllm_prefill_generic_bf16_64, __nv_bfloat16, 1)
PREFILL_GENERIC(pllm_prefill_generic_bf16_128, __nv_bfloat16, 2)
PREFILL_GENERIC(pllm_prefill_generic_bf16_256, __nv_bfloat16, 4)
