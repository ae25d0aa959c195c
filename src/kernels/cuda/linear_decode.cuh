/* linear_decode.cuh - what the kernels of decode products share: operands of the tensor cores from
 * every format, and x converted into shared memory. linear_decode.cu has the idea. */
#ifndef PLLM_KERNELS_CUDA_LINEAR_DECODE_CUH
#define PLLM_KERNELS_CUDA_LINEAR_DECODE_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include "kernels/cuda/linear_arguments.h"
#include "kernels/dtype.h"

namespace
{

__device__ __forceinline__ uint4 load_stream(const void *at)
{
    uint4 v;
    asm("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
        : "l"(at));
    return v;
}

__device__ __forceinline__ void wait_for_kernel_before()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void let_next_kernel_start()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ void cluster_arrive()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

/* When nothing that was written is to be seen by others. */
__device__ __forceinline__ void cluster_arrive_relaxed()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void cluster_wait()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

/* A float in the shared memory of CTA rank of this cluster, at the place that `at` has in ours. */
__device__ __forceinline__ float load_remote(const float *at, uint32_t rank)
{
    float value = 0.0f;
#if __CUDA_ARCH__ >= 900
    uint32_t here = (uint32_t)__cvta_generic_to_shared(at), there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(here), "r"(rank));
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(there) : "memory");
#endif
    return value;
}

__device__ __forceinline__ void mma_bf16(float *c, uint32_t a0, uint32_t a1, uint32_t a2,
                                         uint32_t a3, uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma_f16(float *c, uint32_t a0, uint32_t a1, uint32_t a2,
                                        uint32_t a3, uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma_int8(int32_t *c, uint32_t a0, uint32_t a1, uint32_t a2,
                                         uint32_t a3, uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ uint32_t pack_bf16(float low, float high)
{
    __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *(uint32_t *)&both;
}

/* Saturated: a large value stays a large value. NaN stays NaN. */
__device__ __forceinline__ uint32_t pack_f16(float low, float high)
{
    low = low > 65504.0f ? 65504.0f : low < -65504.0f ? -65504.0f : low;
    high = high > 65504.0f ? 65504.0f : high < -65504.0f ? -65504.0f : high;
    __half2 both = __floats2half2_rn(low, high);
    return *(uint32_t *)&both;
}

__device__ __forceinline__ float2 unpack_f16(uint32_t both)
{
    return __half22float2(*(__half2 *)&both);
}

/* What differs between formats. A unit is what four lanes read of a row at once, LOADS times 16
 * bytes each; UNITS of them are one group, in flight together. */
template <int DTYPE> struct format {
    static constexpr bool blocks = DTYPE == PLLM_Q8_0 || DTYPE == PLLM_Q4_0 || DTYPE == PLLM_Q4_1;
    static constexpr int loads = DTYPE == PLLM_F32 ? 2 : 1;
    static constexpr int group = DECODE_GROUP_UNITS / loads; /* units: slices are whole groups */
    static constexpr int depth = blocks ? 4 : DECODE_DEPTH / loads; /* units in flight */
    static constexpr int unit_k = DTYPE == PLLM_Q8_0 ? 64 : blocks ? 128 : 32;
    static constexpr int unit_bytes = 64 * loads;
    /* A lane's registers of scales of one row and one group: those of the blocks of unit t. */
    static constexpr int scale_words = DTYPE == PLLM_Q8_0   ? 1
                                       : DTYPE == PLLM_Q4_0 ? 2
                                       : DTYPE == PLLM_Q4_1 ? 4
                                                            : 0;
};

template <int DTYPE>
__device__ __forceinline__ void load_scales(uint32_t *scales, const uint8_t *row, uint32_t unit,
                                            uint32_t t)
{
    constexpr int words = format<DTYPE>::scale_words;
    const uint8_t *at = row + (unit + t) * (words * 4);
    if constexpr (words == 1) {
        scales[0] = __ldg((const uint32_t *)at);
    } else if constexpr (words == 2) {
        uint2 v = __ldg((const uint2 *)at);
        scales[0] = v.x, scales[1] = v.y;
    } else if constexpr (words == 4) {
        uint4 v = __ldg((const uint4 *)at);
        scales[0] = v.x, scales[1] = v.y, scales[2] = v.z, scales[3] = v.w;
    }
}

/* Adds up the eight slices in their one order. A CTA has 8 >> cluster_shift of them, stride apart,
 * at the same place in each CTA. */
__device__ __forceinline__ float add_slices(const float *at, uint32_t stride,
                                            uint32_t cluster_shift)
{
    float p[DECODE_SLICES];
    if (cluster_shift == 0) {
#pragma unroll
        for (int s = 0; s < DECODE_SLICES; s++) p[s] = at[s * stride];
    } else {
        uint32_t shift = 3 - cluster_shift;
#pragma unroll
        for (int s = 0; s < DECODE_SLICES; s++)
            p[s] = load_remote(at + (s & ((1 << shift) - 1)) * stride, s >> shift);
    }
    return ((p[0] + p[1]) + (p[2] + p[3])) + ((p[4] + p[5]) + (p[6] + p[7]));
}

/* Where the scale of x of a block is: pairs of blocks side by side where few rows are multiplied.
 */
template <int COLUMNS>
__device__ __forceinline__ uint32_t scale_place(uint32_t block, uint32_t column)
{
    if (COLUMNS == 2) return block / 2 * 4 + column * 2 + block % 2;
    return block * COLUMNS + column;
}

/* Four neighbouring elements of a block of 32, the i'th four of it (i = lane % 8), to 15 bits. All
 * lanes of the warp come here. x_sum is Q4_1's. */
template <int DTYPE, int COLUMNS>
__device__ __forceinline__ void quantise(uint8_t *x_row, float *x_scale, float *x_sum, float4 v,
                                         uint32_t block, uint32_t i, uint32_t column, int store)
{
    uint32_t most = max(max(__float_as_uint(fabsf(v.x)), __float_as_uint(fabsf(v.y))),
                        max(__float_as_uint(fabsf(v.z)), __float_as_uint(fabsf(v.w))));
#pragma unroll
    for (int bit = 1; bit < 8; bit *= 2) most = max(most, __shfl_xor_sync(~0u, most, bit));
    float largest = __uint_as_float(most), scale = largest * (1.0f / 16319.0f);
    float inverse = __fdividef(16319.0f, largest);
    if (!(largest >= 0x1p-100f)) scale = inverse = 0.0f;
    if (most >= 0x7f800000u) scale = __uint_as_float(0x7fc00000u); /* what comes of it is NaN */
    /* Adding 1.5 * 2^23 leaves the rounded integer in the low bits; a = 128 * high + low. */
    const int32_t magic = 0x4b400000;
    float values[4] = {v.x, v.y, v.z, v.w};
    int32_t high[4], low[4], sum = 0;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        int32_t a = __float_as_int(fmaf(values[j], inverse, 12582912.0f)) - magic;
        high[j] = (a + 64) >> 7;
        low[j] = a - high[j] * 128;
        sum += a;
    }
    uint32_t highs = __byte_perm(__byte_perm(high[0], high[1], 0x0040),
                                 __byte_perm(high[2], high[3], 0x0040), 0x5410);
    uint32_t lows = __byte_perm(__byte_perm(low[0], low[1], 0x0040),
                                __byte_perm(low[2], low[3], 0x0040), 0x5410);
    if (DTYPE == PLLM_Q4_1) {
#pragma unroll
        for (int bit = 1; bit < 8; bit *= 2) sum += __shfl_xor_sync(~0u, sum, bit);
    }
    if (!store) return;
    uint8_t *at = x_row + block * 64 + i / 2 * 16 + i % 2 * 4;
    *(uint32_t *)at = highs;
    *(uint32_t *)(at + 8) = lows;
    if (i != 0) return;
    uint32_t place = scale_place<COLUMNS>(block, column);
    x_scale[place] = DTYPE == PLLM_Q4_0 ? scale * 0.0625f : scale; /* W comes as 16 * (q - 8) */
    if (DTYPE == PLLM_Q4_1) x_sum[place] = scale * (float)sum;
}

template <int DTYPE>
__device__ __forceinline__ void store_plain(uint8_t *x_row, float4 v, uint32_t at)
{
    uint32_t byte = at * 2;
    if (DTYPE == PLLM_F32) /* a lane's two loads are 16 k apart */
        byte = at / 32 * 64 + at % 16 / 4 * 16 + at % 32 / 16 * 8;
    uint2 packed = DTYPE == PLLM_F16 ? make_uint2(pack_f16(v.x, v.y), pack_f16(v.z, v.w))
                                     : make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
    *(uint2 *)(x_row + byte) = packed;
}

/* x of the CTA's slices to shared memory, a warp for each (slice, ROWS rows), in the same order of
 * sums whichever CTA and warp does it. ROWS * BATCH loads are in flight; `meanwhile` is called once
 * behind the first of them. */
template <int DTYPE, int COLUMNS, int ROWS, int BATCH, typename MEANWHILE>
__device__ void convert_x(const decode_arguments &a, uint8_t *x_shared, float *x_scale,
                          float *x_sum, float *squares, uint32_t slice_first, uint32_t slice_count,
                          uint32_t groups, MEANWHILE meanwhile)
{
    typedef format<DTYPE> F;
    constexpr uint32_t group_k = F::group * F::unit_k;
    int called = 0;
    uint32_t lane = threadIdx.x % 32, warps = blockDim.x / 32;
    uint32_t k_first = slice_first * groups / DECODE_SLICES * group_k; /* of the CTA */
    uint32_t k_padded = a.units * F::unit_k;
    uint32_t task_count = slice_count * ((a.rows + ROWS - 1) / ROWS);
    const float *norm = (const float *)a.norm_weight;
    for (uint32_t task = threadIdx.x / 32; task < task_count; task += warps) {
        uint32_t slice = slice_first + task % slice_count, row = task / slice_count * ROWS;
        uint32_t k_begin = slice * groups / DECODE_SLICES * group_k;
        uint32_t k_end = min((slice + 1) * groups / DECODE_SLICES * group_k, k_padded);
        const float *x = (const float *)a.x + row * a.x_stride;
        float sum[ROWS] = {};
        for (uint32_t base = k_begin; base < k_end; base += BATCH * 128) {
            float4 v[ROWS][BATCH];
#pragma unroll
            for (int r = 0; r < ROWS; r++)
#pragma unroll
                for (int j = 0; j < BATCH; j++) {
                    uint32_t i = base + j * 128 + lane * 4;
                    v[r][j] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                    if (i < k_end && i < a.k && (r == 0 || row + r < a.rows))
                        v[r][j] = __ldcg((const float4 *)(x + r * a.x_stride + i));
                }
            if (!called) meanwhile(), called = 1;
#pragma unroll
            for (int j = 0; j < BATCH; j++) {
                uint32_t i = base + j * 128 + lane * 4;
                if (base + j * 128 >= k_end) break;
                float4 w = make_float4(1.0f, 1.0f, 1.0f, 1.0f);
                if (norm && i < k_end && i < a.k) w = __ldg((const float4 *)(norm + i));
#pragma unroll
                for (int r = 0; r < ROWS; r++) {
                    float4 u = v[r][j];
                    uint8_t *x_row = x_shared + (row + r) * a.x_row_bytes;
                    int store = i < k_end && (r == 0 || row + r < a.rows);
                    if (norm) {
                        sum[r] = fmaf(u.x, u.x, sum[r]);
                        sum[r] = fmaf(u.y, u.y, sum[r]);
                        sum[r] = fmaf(u.z, u.z, sum[r]);
                        sum[r] = fmaf(u.w, u.w, sum[r]);
                        u.x *= w.x, u.y *= w.y, u.z *= w.z, u.w *= w.w;
                    }
                    if constexpr (F::blocks)
                        quantise<DTYPE, COLUMNS>(x_row, x_scale, x_sum, u, (i - k_first) / 32,
                                                 lane % 8, row + r, store);
                    else if (store)
                        store_plain<DTYPE>(x_row, u, i - k_first);
                }
            }
        }
        if (!norm) continue;
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
#pragma unroll
            for (int bit = 16; bit; bit /= 2) sum[r] += __shfl_xor_sync(~0u, sum[r], bit);
            if (lane == 0 && (r == 0 || row + r < a.rows))
                squares[task % slice_count * DECODE_ROWS + row + r] = sum[r];
        }
    }
    if (!called) meanwhile();
}

/* The norm's weights for the CTA's slices, a line of 128 bytes a thread. */
template <int DTYPE>
__device__ __forceinline__ void prefetch_norm(const decode_arguments &a, uint32_t slice_first,
                                              uint32_t slice_count, uint32_t groups)
{
    constexpr uint32_t group_k = format<DTYPE>::group * format<DTYPE>::unit_k;
    uint32_t k_begin = slice_first * groups / DECODE_SLICES * group_k;
    uint32_t k_end = min((slice_first + slice_count) * groups / DECODE_SLICES * group_k, a.k);
    for (uint32_t i = k_begin + threadIdx.x * 32; i < k_end; i += blockDim.x * 32)
        asm volatile("prefetch.global.L1 [%0];" ::"l"((const float *)a.norm_weight + i));
}

/* One unit of the two rows of a lane, against all columns. */
template <int DTYPE, int TILES>
__device__ __forceinline__ void multiply_plain(float (&sum)[TILES][1][4],
                                               const uint4 (&w)[2][format<DTYPE>::loads],
                                               const uint8_t *const (&x)[TILES], uint32_t unit)
{
#pragma unroll
    for (int n = 0; n < TILES; n++) {
        uint4 b = *(const uint4 *)(x[n] + unit * 64);
        if constexpr (DTYPE == PLLM_F32) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float4 p = *(const float4 *)&w[0][h], q = *(const float4 *)&w[1][h];
                mma_bf16(sum[n][0], pack_bf16(p.x, p.y), pack_bf16(q.x, q.y), pack_bf16(p.z, p.w),
                         pack_bf16(q.z, q.w), h ? b.z : b.x, h ? b.w : b.y);
            }
        } else if constexpr (DTYPE == PLLM_F16) {
            mma_f16(sum[n][0], w[0][0].x, w[1][0].x, w[0][0].y, w[1][0].y, b.x, b.y);
            mma_f16(sum[n][0], w[0][0].z, w[1][0].z, w[0][0].w, w[1][0].w, b.z, b.w);
        } else {
            mma_bf16(sum[n][0], w[0][0].x, w[1][0].x, w[0][0].y, w[1][0].y, b.x, b.y);
            mma_bf16(sum[n][0], w[0][0].z, w[1][0].z, w[0][0].w, w[1][0].w, b.z, b.w);
        }
    }
}

/* The fragment of block b of a unit (b < 2 or 4): rows g and g + 8 of W as int8. */
template <int DTYPE>
__device__ __forceinline__ void weights_of(uint32_t (&a)[4], const uint4 (&w)[2][1], int b)
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const uint32_t q[4] = {w[h][0].x, w[h][0].y, w[h][0].z, w[h][0].w};
        if constexpr (DTYPE == PLLM_Q8_0) {
            a[h] = q[b % 2 * 2], a[h + 2] = q[b % 2 * 2 + 1];
        } else if constexpr (DTYPE == PLLM_Q4_0) {
            a[h] = q[b] << 4 & 0xf0f0f0f0u, a[h + 2] = q[b] & 0xf0f0f0f0u;
        } else {
            a[h] = q[b] & 0x0f0f0f0fu, a[h + 2] = q[b] >> 4 & 0x0f0f0f0fu;
        }
    }
}

/* Up to 16 rows: a product a block, each of whose columns is a row of x. sum[n][block % 4]: four
 * chains, so that multiply_few can have the same. scales: of this lane's group; lane j of four
 * holds unit j's. */
template <int DTYPE, int TILES>
__device__ __forceinline__ void multiply_blocks(float (&sum)[TILES][4][4], const uint4 (&w)[2][1],
                                                const uint8_t *const (&x)[TILES],
                                                const float *x_scale, const float *x_sum,
                                                const uint32_t (&scales)[2][4], uint32_t unit,
                                                int j)
{
    typedef format<DTYPE> F;
    constexpr int columns = TILES * 8, unit_blocks = F::unit_k / 32;
    uint32_t lane = threadIdx.x % 32, t = lane % 4;
    uint32_t unit_scales[2][4];
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int i = 0; i < F::scale_words; i++)
            unit_scales[h][i] = __shfl_sync(~0u, scales[h][i], (lane & ~3u) | (uint32_t)j);
#pragma unroll
    for (int b = 0; b < unit_blocks; b++) {
        uint32_t a[4], block = unit * unit_blocks + b;
        weights_of<DTYPE>(a, w, b);
        float d[2], m[2] = {0.0f, 0.0f};
#pragma unroll
        for (int h = 0; h < 2; h++) {
            if constexpr (DTYPE == PLLM_Q4_1) {
                float2 both = unpack_f16(unit_scales[h][b]);
                d[h] = both.x, m[h] = both.y;
            } else {
                float2 both = unpack_f16(unit_scales[h][b / 2]);
                d[h] = b % 2 ? both.y : both.x;
            }
        }
#pragma unroll
        for (int n = 0; n < TILES; n++) {
            uint4 xb = *(const uint4 *)(x[n] + block * 64);
            int32_t high[4] = {}, low[4] = {};
            mma_int8(high, a[0], a[1], a[2], a[3], xb.x, xb.y);
            mma_int8(low, a[0], a[1], a[2], a[3], xb.z, xb.w);
            uint32_t place = scale_place<columns>(block, n * 8 + t * 2);
            float2 dx = *(const float2 *)(x_scale + place);
            float(&s)[4] = sum[n][(j * unit_blocks + b) % 4];
#pragma unroll
            for (int c = 0; c < 4; c++) {
                float whole = (float)(high[c] * 128 + low[c]);
                s[c] = fmaf(d[c / 2] * (c % 2 ? dx.y : dx.x), whole, s[c]);
            }
            if constexpr (DTYPE == PLLM_Q4_1) {
                float2 sx = *(const float2 *)(x_sum + place);
#pragma unroll
                for (int c = 0; c < 4; c++) s[c] = fmaf(m[c / 2], c % 2 ? sx.y : sx.x, s[c]);
            }
        }
    }
}

/* One or two rows: four blocks go into one product, column 4 r + b being row r times block b, zero
 * in the others' place, so that what is done with the sums is done once for four blocks. w: a unit
 * of four blocks or two units of two, of which the second may be missing. x: this lane's row of x
 * at the lane's own block. */
template <int DTYPE>
__device__ __forceinline__ void multiply_few(float (&sum)[4], const uint4 (&w)[2][1],
                                             const uint4 (&second)[2][1], int whole_pair,
                                             const uint8_t *x, const uint8_t *zero,
                                             const float *x_scale, const float *x_sum,
                                             const uint32_t (&scales)[2][4], uint32_t unit, int j)
{
    typedef format<DTYPE> F;
    constexpr int unit_blocks = F::unit_k / 32;
    uint32_t lane = threadIdx.x % 32, t = lane % 4, own = lane / 4 % 4, r = t / 2;
    uint32_t block = unit * unit_blocks; /* the first of four */
    int32_t high[4] = {}, low[4] = {};
#pragma unroll
    for (int b = 0; b < 4; b++) {
        if (unit_blocks == 2 && b == 2 && !whole_pair) break;
        uint32_t a[4];
        weights_of<DTYPE>(a, b < unit_blocks ? w : second, b);
        uint4 xb = *(const uint4 *)(own == b ? x + block * 64 : zero);
        mma_int8(high, a[0], a[1], a[2], a[3], xb.x, xb.y);
        mma_int8(low, a[0], a[1], a[2], a[3], xb.z, xb.w);
    }
    /* This lane has blocks 2 (t % 2) and the next, of row r; their scales are one word or two. */
    uint32_t own_scales[2][2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        uint32_t word[4], from = (lane & ~3u) + (uint32_t)j + (unit_blocks == 2 ? t % 2 : 0);
#pragma unroll
        for (int i = 0; i < F::scale_words; i++) word[i] = __shfl_sync(~0u, scales[h][i], from);
        if constexpr (DTYPE == PLLM_Q8_0)
            own_scales[h][0] = word[0];
        else if constexpr (DTYPE == PLLM_Q4_0)
            own_scales[h][0] = t % 2 ? word[1] : word[0];
        else
            own_scales[h][0] = t % 2 ? word[2] : word[0],
            own_scales[h][1] = t % 2 ? word[3] : word[1];
    }
    if (unit_blocks == 2 && !whole_pair && t % 2) return;
    uint32_t place = scale_place<2>(block + t % 2 * 2, r);
    float2 dx = *(const float2 *)(x_scale + place);
    float2 sx = DTYPE == PLLM_Q4_1 ? *(const float2 *)(x_sum + place) : make_float2(0.0f, 0.0f);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float d[2], m[2] = {0.0f, 0.0f};
        if constexpr (DTYPE == PLLM_Q4_1) {
            float2 first = unpack_f16(own_scales[h][0]), next = unpack_f16(own_scales[h][1]);
            d[0] = first.x, d[1] = next.x, m[0] = first.y, m[1] = next.y;
        } else {
            float2 both = unpack_f16(own_scales[h][0]);
            d[0] = both.x, d[1] = both.y;
        }
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int c = h * 2 + e;
            float whole = (float)(high[c] * 128 + low[c]);
            sum[c] = fmaf(d[e] * (e ? dx.y : dx.x), whole, sum[c]);
            if (DTYPE == PLLM_Q4_1) sum[c] = fmaf(m[e], e ? sx.y : sx.x, sum[c]);
        }
    }
}

} // namespace

#endif
