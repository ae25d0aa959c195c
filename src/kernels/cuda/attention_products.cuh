/* attention_products.cuh - one warp, one block, 8 query heads: copies into shared memory, scores,
 * and the sum of weighted values, on tensor cores. attention_decode.cu has the idea and the
 * picture. */
#ifndef PLLM_KERNELS_CUDA_ATTENTION_PRODUCTS_CUH
#define PLLM_KERNELS_CUDA_ATTENTION_PRODUCTS_CUH

#include "kernels/cuda/attention_device.cuh"

enum { WARPS = 4, THREADS = 32 * WARPS, HEADS = 8 };

template <int FORMAT, int HD, bool WIDE = false> struct layout {
    static constexpr int bits = FORMAT == INT4 ? 4 : FORMAT == INT8 ? 8 : 16;
    static constexpr bool quantised = bits < 16;
    static constexpr int half_slice = BLOCK * HD * bits / 8;            /* keys, or values */
    static constexpr int key_scales = 4 * HD, value_scales = 4 * BLOCK; /* scales and minima */
    /* A quantised slot: keys, their scales, values, their scales. */
    static constexpr int values = half_slice + key_scales;
    static constexpr int slot = quantised ? values + half_slice + value_scales : half_slice;
    static constexpr int plain_half = BLOCK * HD * 2;
    /* Where the open block's keys, then values go: its own slot if they fit. */
    static constexpr bool open_extra = quantised && slot < plain_half;
    static constexpr int warp = (WIDE ? 3 : 2) * slot;
    static constexpr int blocks = WARPS * warp + (open_extra ? plain_half : 0);
    static constexpr int row_pieces = HD * bits / 8 / 16; /* 16-byte pieces of a value row */
    static constexpr int value_shift = row_pieces >= 16 ? 4 : row_pieces == 8 ? 4 - !quantised : 3;
    static constexpr int out_stride = HD + 4; /* floats; a head's result of one warp */
    static_assert(quantised ? HEADS / 2 * out_stride * 4 <= half_slice + value_scales
                            : HEADS * out_stride * 4 <= slot,
                  "results lie where values, or all of a slot, lay");
    /* p is multiplied by this power of two, q lies below this one: products fit a half. */
    static constexpr int p_exponent = FORMAT == F16    ? 12
                                      : FORMAT == INT8 ? 6
                                      : FORMAT == INT4 ? 2
                                                       : 0;
    static constexpr int q_exponent = FORMAT == INT8 ? 6 : FORMAT == INT4 ? 2 : 8;
};

/* ---- copies: a warp moves pieces of 16 bytes, one a lane and step ---- */

/* Where a piece goes, so that the reads named here meet no bank twice. */
template <int HD> struct plain_keys { /* a lane reads piece lane % 4 of row lane / 4 */
    static __device__ __forceinline__ uint32_t place(uint32_t piece)
    {
        return piece ^ (piece / (HD / 8) & 1) << 2;
    }
};
template <int HD> struct plain_values { /* ldmatrix: one piece of 8 rows in turn */
    static __device__ __forceinline__ uint32_t place(uint32_t piece)
    {
        return piece ^ (piece / (HD / 8) & 7);
    }
};
template <int FORMAT> struct quantised_keys { /* ldmatrix: channels 8i and 8i + 1, i = 0..3 */
    static __device__ __forceinline__ uint32_t place(uint32_t piece)
    {
        return FORMAT == INT8 ? piece ^ (piece >> 4 & 1) ^ (piece >> 5 & 1) << 2
                              : piece ^ (piece >> 3 & 3) << 1;
    }
};
template <int SHIFT> struct quantised_values { /* ldmatrix: one piece of every other row */
    static __device__ __forceinline__ uint32_t place(uint32_t piece)
    {
        return piece ^ (piece >> SHIFT & 7);
    }
};
struct as_it_lies {
    static __device__ __forceinline__ uint32_t place(uint32_t piece) { return piece; }
};

/* rows_valid: rows from there on become zeros; BLOCK: none. */
template <int PIECES, int ROW_PIECES, typename PLACE>
__device__ __forceinline__ void copy_pieces(uint32_t to, uint64_t from, uint32_t rows_valid)
{
    uint32_t lane = threadIdx.x % 32, base[4];
    const uint8_t *source = at<uint8_t>(from + 16 * lane);
    /* Places repeat every 128 pieces. */
#pragma unroll
    for (int i = 0; i < 4; i++) base[i] = to + 16 * PLACE::place(32 * i + lane);
    if (rows_valid == BLOCK) {
#pragma unroll
        for (int i = 0; i < (PIECES + 31) / 32; i++)
            if (PIECES % 32 == 0 || 32 * i + lane < PIECES)
                copy_async(base[i % 4] + 2048 * (i / 4), source + 512 * i, 16);
    } else {
#pragma unroll 4
        for (int i = 0; i < (PIECES + 31) / 32; i++)
            copy_async(to + 16 * PLACE::place(32 * i + lane), source + 512 * i,
                       (32 * i + lane) / ROW_PIECES < rows_valid ? 16 : 0);
    }
}

template <int HD>
__device__ __forceinline__ void copy_plain_keys(uint32_t to, uint64_t slice, uint32_t rows_valid)
{
    copy_pieces<BLOCK * HD / 8, HD / 8, plain_keys<HD>>(to, slice, rows_valid);
}

template <int HD>
__device__ __forceinline__ void copy_plain_values(uint32_t to, uint64_t slice, uint32_t rows_valid)
{
    copy_pieces<BLOCK * HD / 8, HD / 8, plain_values<HD>>(to, slice + BLOCK * HD * 2, rows_valid);
}

/* ---- q ---- */

/* Fragments of the query heads, by step of 16 channels and lane: high and low halves of channels
 * c, c + 1, then of c + 2, c + 3, where c = 32 (step / 2) + 8 (lane % 4) + 4 (step % 2): a lane's 8
 * channels of two steps lie side by side in memory. factor: from sums of products to scores. */
template <int HD> struct query {
    uint4 fragment[HD / 16][32];
    float top[WARPS][HEADS], factor[HEADS];
};

/* Ends with a barrier. Warp i does channels 32i..32i+31. */
template <int FORMAT, int HD, int EXPONENT>
__device__ __forceinline__ void prepare_q(const pllm_attend_arguments &a, uint32_t row,
                                          uint32_t head_first, uint32_t group, query<HD> *to)
{
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, head = lane / 4;
    float4 x = make_float4(0, 0, 0, 0), y = x;
    if (warp < HD / 32 && head < group) {
        const float4 *from =
            at<float4>(a.q + 4 * (row * a.q_stride + (uint64_t)(head_first + head) * HD +
                                  32 * warp + 8 * (lane % 4)));
        x = from[0];
        y = from[1];
    }
    float top = fmaxf(fmaxf(fmaxf(fabsf(x.x), fabsf(x.y)), fmaxf(fabsf(x.z), fabsf(x.w))),
                      fmaxf(fmaxf(fabsf(y.x), fabsf(y.y)), fmaxf(fabsf(y.z), fabsf(y.w))));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
    if (lane % 4 == 0) to->top[warp][head] = top;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < WARPS; i++) top = fmaxf(top, to->top[i][head]);
    /* A power of two takes the largest into [2^(EXPONENT - 1), 2^EXPONENT). */
    int raise = EXPONENT + 126 - (int)(__float_as_uint(top) >> 23);
    raise = top > 0 ? min(max(raise, -126), 126) : 0;
    float up = __uint_as_float((uint32_t)(raise + 127) << 23);
    if (warp == 0 && lane % 4 == 0)
        to->factor[head] = a.scale * __uint_as_float((uint32_t)(127 - raise) << 23);
    if (warp < HD / 32) {
        uint4 q;
        split<FORMAT>(x.x * up, x.y * up, q.x, q.y);
        split<FORMAT>(x.z * up, x.w * up, q.z, q.w);
        to->fragment[2 * warp][lane] = q;
        split<FORMAT>(y.x * up, y.y * up, q.x, q.y);
        split<FORMAT>(y.z * up, y.w * up, q.z, q.w);
        to->fragment[2 * warp + 1][lane] = q;
    }
    __syncthreads();
}

__device__ __forceinline__ void get_fragment(const uint4 &from, uint32_t (&q)[4])
{
    uint4 x = from;
    q[0] = x.x, q[1] = x.y, q[2] = x.z, q[3] = x.w;
}

/* ---- products of plain blocks: token 8n + 2t + e is s[n][e], channel 8j + 2t + e is o[j][e] ----
 */

__device__ __forceinline__ uint4 shared_quad(uint32_t address)
{
    uint4 x;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "r"(address)
                 : "memory");
    return x;
}

template <int FORMAT, int HD>
__device__ __forceinline__ void scores_plain(uint32_t keys, const query<HD> *query,
                                             float (&s)[4][2])
{
    uint32_t lane = threadIdx.x % 32;
    uint32_t at_even = keys + 16 * plain_keys<HD>::place(lane / 4 * (HD / 8) + lane % 4);
    uint32_t at_odd = keys + 16 * plain_keys<HD>::place(lane / 4 * (HD / 8) + lane % 4 + 4);
    float c[4][4] = {};
#pragma unroll
    for (int k = 0; k < HD / 32; k++) {
        uint32_t q0[4], q1[4];
        get_fragment(query->fragment[2 * k][lane], q0);
        get_fragment(query->fragment[2 * k + 1][lane], q1);
#pragma unroll
        for (int n = 0; n < 4; n++) {
            uint4 x = shared_quad((k % 2 ? at_odd : at_even) + k / 2 * 128 + n * 16 * HD);
            multiply<FORMAT>(c[n], q0, x.x, x.y);
            multiply<FORMAT>(c[n], q1, x.z, x.w);
        }
    }
    float factor = query->factor[lane / 4];
#pragma unroll
    for (int n = 0; n < 4; n++) {
        s[n][0] = (c[n][0] + c[n][2]) * factor;
        s[n][1] = (c[n][1] + c[n][3]) * factor;
    }
}

template <int FORMAT, int HD>
__device__ __forceinline__ void values_plain(uint32_t values, const float (&p)[4][2],
                                             float (&o)[HD / 8][4])
{
    constexpr int pieces = HD / 8;
    uint32_t lane = threadIdx.x % 32;
    uint32_t first = values + 16 * plain_values<HD>::place(lane % 16 * pieces + lane / 16);
#pragma unroll
    for (int k = 0; k < 2; k++) {
        uint32_t w[4];
        split<FORMAT>(p[2 * k][0], p[2 * k][1], w[0], w[1]);
        split<FORMAT>(p[2 * k + 1][0], p[2 * k + 1][1], w[2], w[3]);
#pragma unroll
        for (int j = 0; j < HD / 8; j += 2) {
            uint32_t r[4];
            load_matrices_transposed(r, (first ^ 16 * (j % 8)) + 16 * (j / 8 * 8) +
                                            k * 16 * pieces * 16);
            multiply<FORMAT>(o[j], w, r[0], r[1]);
            multiply<FORMAT>(o[j + 1], w, r[2], r[3]);
        }
    }
}

/* ---- products of quantised blocks: token 16j + 4t + 2e + i is s[2j + i][e], likewise channels
 * ---- */

/* Bytes 0, 2 (even) or 1, 3 of x as two halves: times 2^-24, as the bits of subnormals. */
__device__ __forceinline__ uint32_t bytes_to_halves(uint32_t x, int odd)
{
    return odd ? __byte_perm(x, 0, 0x4341) : x & 0x00ff00ff;
}

/* Low nibbles of bytes 0 and 2 of x times 2^-24, or high ones times 2^-20. */
__device__ __forceinline__ uint32_t nibbles_to_halves(uint32_t x, int high)
{
    return high ? x & 0x00f000f0 : x & 0x000f000f;
}

__device__ __forceinline__ uint2 shared_pair(uint32_t address)
{
    uint2 x;
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
                 : "=r"(x.x), "=r"(x.y)
                 : "r"(address)
                 : "memory");
    return x;
}

/* q times the channels' scales d0, d1; what rounding took from the high half goes to the low one.
 */
__device__ __forceinline__ void scale_q(const uint32_t (&q)[4], uint32_t d0, uint32_t d1,
                                        uint32_t (&scaled)[4])
{
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        __half2 d = as_half2(i ? d1 : d0), high = __hmul2_rn(as_half2(q[i]), d);
        __half2 lost = __hfma2(as_half2(q[i]), d, __hneg2(high));
        scaled[i] = as_bits(high);
        scaled[i + 1] = as_bits(__hfma2(as_half2(q[i + 1]), d, lost));
    }
}

template <int FORMAT, int HD>
__device__ __forceinline__ void scores_quantised(uint32_t slot, const query<HD> *query,
                                                 float (&s)[4][2])
{
    using L = layout<FORMAT, HD>;
    uint32_t lane = threadIdx.x % 32, r = lane % 8, m = lane / 8;
    uint32_t scale = slot + L::half_slice + 16 * (lane % 4), minimum = scale + 2 * HD;
    /* Row r of matrix m: channel 8 (r / 2) + 2m + r % 2 of 32 (int4), of the next 32 two (int8,
     * where matrices 2 and 3 hold tokens 16 and on). */
    uint32_t channel = r / 2 * 8 + r % 2 + 2 * (FORMAT == INT8 ? m % 2 : m);
    uint32_t piece = FORMAT == INT8 ? 2 * channel + m / 2 : channel;
    uint32_t first = slot + 16 * quantised_keys<FORMAT>::place(piece);
    float c[4][4] = {}, least[4] = {};
#pragma unroll
    for (int k = 0; k < HD / 32; k++) {
        uint4 dd = shared_quad(scale + 64 * k), mm = shared_quad(minimum + 64 * k);
        const uint32_t d[4] = {dd.x, dd.y, dd.z, dd.w}, low[4] = {mm.x, mm.y, mm.z, mm.w};
        uint32_t x[4];
        if (FORMAT == INT4) load_matrices_transposed(x, first + 512 * k);
#pragma unroll
        for (int kk = 0; kk < 2; kk++) {
            uint32_t q[4], scaled[4];
            get_fragment(query->fragment[2 * k + kk][lane], q);
            scale_q(q, d[2 * kk], d[2 * kk + 1], scaled);
            if (FORMAT == INT8) load_matrices_transposed(x, first + 1024 * k + 128 * kk);
#pragma unroll
            for (int j = 0; j < 2; j++)
#pragma unroll
                for (int i = 0; i < 2; i++)
                    if (FORMAT == INT8)
                        multiply<F16>(c[2 * j + i], scaled, bytes_to_halves(x[2 * j], i),
                                      bytes_to_halves(x[2 * j + 1], i));
                    else
                        multiply<F16>(c[2 * j + i], scaled,
                                      nibbles_to_halves(x[2 * kk] >> 8 * i, j),
                                      nibbles_to_halves(x[2 * kk + 1] >> 8 * i, j));
            multiply<F16>(least, q, low[2 * kk], low[2 * kk + 1]);
        }
    }
    float factor = query->factor[lane / 4];
    float base = (least[0] + least[2]) * factor; /* every column is the same */
#pragma unroll
    for (int n = 0; n < 4; n++) {
        float unit = factor * (FORMAT == INT4 && n / 2 ? 0x1p20f : 0x1p24f);
        s[n][0] = fmaf(c[n][0] + c[n][2], unit, base);
        s[n][1] = fmaf(c[n][1] + c[n][3], unit, base);
    }
}

/* base: the lane's part of the sum of p * minimum. */
template <int FORMAT, int HD>
__device__ __forceinline__ void values_quantised(uint32_t slot, const float (&p)[4][2],
                                                 float (&o)[HD / 8][4], float &base)
{
    using L = layout<FORMAT, HD>;
    uint32_t lane = threadIdx.x % 32, t = lane % 4;
    uint32_t values = slot + L::values, scale = values + L::half_slice;
#pragma unroll
    for (int k = 0; k < 2; k++) {
        uint2 d = shared_pair(scale + 32 * k + 8 * t), m = shared_pair(scale + 64 + 32 * k + 8 * t);
        float2 d0 = __half22float2(as_half2(d.x)), d1 = __half22float2(as_half2(d.y));
        float2 m0 = __half22float2(as_half2(m.x)), m1 = __half22float2(as_half2(m.y));
        base += p[2 * k][0] * m0.x;
        base += p[2 * k + 1][0] * m0.y;
        base += p[2 * k][1] * m1.x;
        base += p[2 * k + 1][1] * m1.y;
        uint32_t w[4];
        split<F16>(p[2 * k][0] * d0.x, p[2 * k][1] * d1.x, w[0], w[1]);
        split<F16>(p[2 * k + 1][0] * d0.y, p[2 * k + 1][1] * d1.y, w[2], w[3]);
        uint32_t token = 16 * k + 2 * (lane % 8) + lane / 8 % 2;
        uint32_t first = values + 16 * quantised_values<L::value_shift>::place(
                                           token * L::row_pieces + lane / 16);
#pragma unroll
        for (int u = 0; u < L::row_pieces; u += 2) {
            uint32_t x[4];
            load_matrices_transposed(x, first ^ 16 * u);
#pragma unroll
            for (int v = 0; v < 2; v++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    uint32_t x0 = x[2 * v], x1 = x[2 * v + 1];
                    if (FORMAT == INT8) {
                        multiply<F16>(o[2 * (u + v) + i], w, bytes_to_halves(x0, i),
                                      bytes_to_halves(x1, i));
                    } else {
#pragma unroll
                        for (int high = 0; high < 2; high++)
                            multiply<F16>(o[2 * (u + v + high * L::row_pieces) + i], w,
                                          nibbles_to_halves(x0 >> 8 * i, high),
                                          nibbles_to_halves(x1 >> 8 * i, high));
                    }
                }
        }
    }
}

/* ---- softmax of a warp's blocks ---- */

/* Masks what lies outside [first, end) of a block and returns the quad's largest score. */
template <bool PERMUTED>
__device__ __forceinline__ float mask_and_top(float (&s)[4][2], uint32_t first, uint32_t end)
{
    uint32_t t = threadIdx.x % 4;
    float top = MINUS_INFINITY;
    if (first > 0 || end < BLOCK)
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                uint32_t token = PERMUTED ? n / 2 * 16 + 4 * t + 2 * e + n % 2 : 8 * n + 2 * t + e;
                if (token < first || token >= end) s[n][e] = MINUS_INFINITY;
            }
#pragma unroll
    for (int n = 0; n < 4; n++) top = fmaxf(top, fmaxf(s[n][0], s[n][1]));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    return fmaxf(top, __shfl_xor_sync(~0u, top, 2));
}

__device__ __forceinline__ float to_weights(float (&s)[4][2], float max)
{
    float base = max == MINUS_INFINITY ? 0.0f : max, sum = 0;
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            s[n][e] = exp2_fast(s[n][e] - base);
            sum += s[n][e];
        }
    return sum;
}

__device__ __forceinline__ float quad_sum(float x)
{
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

#endif
