/* attention_products.cuh - one warp, one block, 8 query heads: copies into shared memory, scores,
 * and the sum of weighted values, on tensor cores. attention_decode.cu has the idea and the
 * picture. */
#ifndef PLLM_KERNELS_CUDA_ATTENTION_PRODUCTS_CUH
#define PLLM_KERNELS_CUDA_ATTENTION_PRODUCTS_CUH

#include "kernels/cuda/attention_device.cuh"

enum { WARPS = 4, THREADS = 32 * WARPS, TILE = 4 /* heads of one multiply */, HEADS = 8 };

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

/* ---- q: a lane is group g = lane / 4 of 8 and thread t = lane % 4 of its four ---- */

/* Column g of a multiply's 8 is head g / 2 of a tile of four: its high half (g even) or its low
 * one. Fragments by 32 channels, tile and lane: channels 8t, 8t + 1 | 8t + 2, .. | 8t + 4, .. | 8t
 * + 6, .. of the 32: the first two words are one step of 16 channels, the others the next. A lane's
 * 8 channels lie side by side in memory. factor: from sums of products to scores in the log2
 * domain. */
template <int HD, int TILES> struct query {
    uint4 fragment[HD / 32][TILES][32];
    float top[WARPS][HEADS], factor[HEADS];
};

/* Ends with a barrier. Warp i does channels 32i..32i+31; a lane 8 of them of head g. */
template <int FORMAT, int HD, int EXPONENT, int TILES>
__device__ __forceinline__ void prepare_q(const pllm_attend_arguments &a, uint32_t row,
                                          uint32_t head_first, uint32_t group, query<HD, TILES> *to)
{
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, head = lane / 4, t = lane % 4;
    float4 x = make_float4(0, 0, 0, 0), y = x;
    if (warp < HD / 32 && head < group) {
        const float4 *from = at<float4>(
            a.q + 4 * (row * a.q_stride + (uint64_t)(head_first + head) * HD + 32 * warp + 8 * t));
        x = from[0];
        y = from[1];
    }
    float top = fmaxf(fmaxf(fmaxf(fabsf(x.x), fabsf(x.y)), fmaxf(fabsf(x.z), fabsf(x.w))),
                      fmaxf(fmaxf(fabsf(y.x), fabsf(y.y)), fmaxf(fabsf(y.z), fabsf(y.w))));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
    if (t == 0) to->top[warp][head] = top;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < WARPS; i++) top = fmaxf(top, to->top[i][head]);
    /* A power of two takes the largest into [2^(EXPONENT - 1), 2^EXPONENT). */
    int raise = EXPONENT + 126 - (int)(__float_as_uint(top) >> 23);
    raise = top > 0 ? min(max(raise, -126), 126) : 0;
    float up = __uint_as_float((uint32_t)(raise + 127) << 23);
    if (warp == 0 && t == 0)
        to->factor[head] = a.scale * __uint_as_float((uint32_t)(127 - raise) << 23);
    if (warp < HD / 32 && head < TILE * TILES) {
        uint4 high, low;
        split<FORMAT>(x.x * up, x.y * up, high.x, low.x);
        split<FORMAT>(x.z * up, x.w * up, high.y, low.y);
        split<FORMAT>(y.x * up, y.y * up, high.z, low.z);
        split<FORMAT>(y.z * up, y.w * up, high.w, low.w);
        uint4 *at_tile = to->fragment[warp][head / TILE];
        at_tile[head % TILE * 8 + t] = high;
        at_tile[head % TILE * 8 + 4 + t] = low;
    }
    __syncthreads();
}

__device__ __forceinline__ uint4 shared_quad(uint32_t address)
{
    uint4 x;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "r"(address)
                 : "memory");
    return x;
}

__device__ __forceinline__ uint32_t shared_word(uint32_t address)
{
    uint32_t x;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(address) : "memory");
    return x;
}

/* p of tokens g as a fragment of the second product: high and low halves of head t are columns 2t
 * and 2t + 1 of row g; the transpose has tokens 2t, 2t + 1 of column g in a lane. */
template <int FORMAT> __device__ __forceinline__ uint32_t p_fragment(float p)
{
    uint32_t pair, transposed;
    if (FORMAT == BF16) {
        __nv_bfloat16 high = __float2bfloat16_rn(p);
        __nv_bfloat162 both = __floats2bfloat162_rn(p, p - __bfloat162float(high));
        pair = *reinterpret_cast<uint32_t *>(&both);
    } else {
        __half high = __float2half_rn(p);
        pair = as_bits(__floats2half2_rn(p, p - __half2float(high)));
    }
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(pair));
    return transposed;
}

/* ---- products of plain blocks ----
 * Scores of head 4i + t: token 16m + 8h + g is s[i][m][h]. Sums: channels 16j + g and 16j + 8 + g
 * are o[i][j][0] + o[i][j][1] and o[i][j][2] + o[i][j][3]. */

template <int FORMAT, int HD, int TILES>
__device__ __forceinline__ void scores_plain(uint32_t keys, const query<HD, TILES> *query,
                                             float (&s)[TILES][2][2])
{
    uint32_t lane = threadIdx.x % 32;
    uint32_t at_even = keys + 16 * plain_keys<HD>::place(lane / 4 * (HD / 8) + lane % 4);
    uint32_t at_odd = keys + 16 * plain_keys<HD>::place(lane / 4 * (HD / 8) + lane % 4 + 4);
    float c[TILES][2][2][4] = {}; /* two chains, of every other step */
#pragma unroll
    for (int k = 0; k < HD / 32; k++)
#pragma unroll
        for (int m = 0; m < 2; m++) {
            uint32_t from = (k % 2 ? at_odd : at_even) + k / 2 * 128 + m * 32 * HD;
            uint4 x = shared_quad(from), y = shared_quad(from + 16 * HD);
            const uint32_t a0[4] = {x.x, y.x, x.y, y.y}, a1[4] = {x.z, y.z, x.w, y.w};
#pragma unroll
            for (int i = 0; i < TILES; i++) {
                uint4 q = query->fragment[k][i][lane];
                multiply<FORMAT>(c[i][m][0], a0, q.x, q.y);
                multiply<FORMAT>(c[i][m][1], a1, q.z, q.w);
            }
        }
#pragma unroll
    for (int i = 0; i < TILES; i++) {
        float factor = query->factor[TILE * i + lane % 4];
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                s[i][m][h] = ((c[i][m][0][2 * h] + c[i][m][1][2 * h]) +
                              (c[i][m][0][2 * h + 1] + c[i][m][1][2 * h + 1])) *
                             factor;
    }
}

template <int FORMAT, int HD, int TILES>
__device__ __forceinline__ void values_plain(uint32_t values, const float (&p)[TILES][2][2],
                                             float (&o)[TILES][HD / 16][4])
{
    constexpr int pieces = HD / 8;
    uint32_t lane = threadIdx.x % 32;
    uint32_t first = values + 16 * plain_values<HD>::place(lane % 16 * pieces + lane / 16);
#pragma unroll
    for (int k = 0; k < 2; k++) {
        uint32_t w[TILES][2];
#pragma unroll
        for (int i = 0; i < TILES; i++)
#pragma unroll
            for (int h = 0; h < 2; h++) w[i][h] = p_fragment<FORMAT>(p[i][k][h]);
#pragma unroll
        for (int j = 0; j < HD / 16; j++) {
            uint32_t r[4];
            load_matrices_transposed(r,
                                     (first ^ 32 * (j % 4)) + 128 * (j / 4) + k * 16 * pieces * 16);
            const uint32_t v[4] = {r[0], r[2], r[1], r[3]};
#pragma unroll
            for (int i = 0; i < TILES; i++) multiply<FORMAT>(o[i][j], v, w[i][0], w[i][1]);
        }
    }
}

/* ---- products of quantised blocks ----
 * Token 16m + 2g + h is s[i][m][h]; channels 16j + 2g and 16j + 2g + 1 are o[i][j]'s two sums. */

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

/* 16 rows (tokens 2g, then 2g + 1; or channels) by 16 steps (x, then y) as a fragment. */
template <int FORMAT>
__device__ __forceinline__ void unpack(uint32_t x, uint32_t y, int high, uint32_t (&a)[4])
{
    a[0] = FORMAT == INT8 ? bytes_to_halves(x, 0) : nibbles_to_halves(x, high);
    a[1] = FORMAT == INT8 ? bytes_to_halves(x, 1) : nibbles_to_halves(x >> 8, high);
    a[2] = FORMAT == INT8 ? bytes_to_halves(y, 0) : nibbles_to_halves(y, high);
    a[3] = FORMAT == INT8 ? bytes_to_halves(y, 1) : nibbles_to_halves(y >> 8, high);
}

/* Two channels of q times their scales d. A column of high halves is q * d rounded; a column of low
 * ones, low * d and what that rounding lost. own: the column's q; high: its head's high halves. */
__device__ __forceinline__ uint32_t scale_q(uint32_t own, uint32_t high, uint32_t d,
                                            uint32_t low_mask)
{
    __half2 rounded = __hmul2_rn(as_half2(high), as_half2(d));
    __half2 lost = __hfma2(as_half2(high), as_half2(d), __hneg2(rounded));
    return as_bits(__hfma2(as_half2(own), as_half2(d), as_half2(as_bits(lost) & low_mask)));
}

template <int FORMAT, int HD, int TILES>
__device__ __forceinline__ void scores_quantised(uint32_t slot, const query<HD, TILES> *query,
                                                 float (&s)[TILES][2][2])
{
    using L = layout<FORMAT, HD>;
    uint32_t lane = threadIdx.x % 32, r = lane % 8, m = lane / 8;
    uint32_t scale = slot + L::half_slice + 16 * (lane % 4), minimum = scale + 2 * HD;
    uint32_t low_mask = lane & 4 ? ~0u : 0;
    /* Row r of matrix m: channel 8 (r / 2) + 2m + r % 2 of 32 (int4), of the next 32 two (int8,
     * where matrices 2 and 3 hold tokens 16 and on). */
    uint32_t channel = r / 2 * 8 + r % 2 + 2 * (FORMAT == INT8 ? m % 2 : m);
    uint32_t piece = FORMAT == INT8 ? 2 * channel + m / 2 : channel;
    uint32_t first = slot + 16 * quantised_keys<FORMAT>::place(piece);
    float c[TILES][2][2][4] = {}, least[TILES][4] = {};
#pragma unroll
    for (int k = 0; k < HD / 32; k++) {
        uint4 dd = shared_quad(scale + 64 * k), mm = shared_quad(minimum + 64 * k);
        const uint32_t d[4] = {dd.x, dd.y, dd.z, dd.w}, low[4] = {mm.x, mm.y, mm.z, mm.w};
        uint32_t x[2][4]; /* by step of 16 channels */
        if (FORMAT == INT8) {
            load_matrices_transposed(x[0], first + 1024 * k);
            load_matrices_transposed(x[1], first + 1024 * k + 128);
        } else {
            load_matrices_transposed(x[0], first + 512 * k);
            x[1][0] = x[0][2];
            x[1][1] = x[0][3];
        }
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            uint4 own4 = query->fragment[k][i][lane], high4 = query->fragment[k][i][lane & ~4];
            const uint32_t own[4] = {own4.x, own4.y, own4.z, own4.w};
            const uint32_t high[4] = {high4.x, high4.y, high4.z, high4.w};
#pragma unroll
            for (int kk = 0; kk < 2; kk++) {
                uint32_t q0 = scale_q(own[2 * kk], high[2 * kk], d[2 * kk], low_mask);
                uint32_t q1 = scale_q(own[2 * kk + 1], high[2 * kk + 1], d[2 * kk + 1], low_mask);
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    uint32_t a[4];
                    if (FORMAT == INT8)
                        unpack<FORMAT>(x[kk][2 * j], x[kk][2 * j + 1], 0, a);
                    else
                        unpack<FORMAT>(x[kk][0], x[kk][1], j, a);
                    multiply<F16>(c[i][j][kk], a, q0, q1);
                }
                const uint32_t lows[4] = {low[2 * kk], low[2 * kk], low[2 * kk + 1],
                                          low[2 * kk + 1]};
                multiply<F16>(least[i], lows, own[2 * kk], own[2 * kk + 1]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < TILES; i++) {
        float factor = query->factor[TILE * i + lane % 4];
        float base = (least[i][0] + least[i][1]) * factor; /* every row is the same */
#pragma unroll
        for (int j = 0; j < 2; j++) {
            float unit = factor * (FORMAT == INT4 && j ? 0x1p20f : 0x1p24f);
#pragma unroll
            for (int h = 0; h < 2; h++)
                s[i][j][h] = fmaf((c[i][j][0][2 * h] + c[i][j][1][2 * h]) +
                                      (c[i][j][0][2 * h + 1] + c[i][j][1][2 * h + 1]),
                                  unit, base);
        }
    }
}

/* base: the lane's part of the sum of p * minimum. */
template <int FORMAT, int HD, int TILES>
__device__ __forceinline__ void values_quantised(uint32_t slot, const float (&p)[TILES][2][2],
                                                 float (&o)[TILES][HD / 16][4],
                                                 float (&base)[TILES])
{
    using L = layout<FORMAT, HD>;
    uint32_t lane = threadIdx.x % 32;
    uint32_t values = slot + L::values, scale = values + L::half_slice + lane / 4 * 4;
#pragma unroll
    for (int k = 0; k < 2; k++) {
        float2 d = __half22float2(as_half2(shared_word(scale + 32 * k)));
        float2 m = __half22float2(as_half2(shared_word(scale + 64 + 32 * k)));
        uint32_t w[TILES][2];
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            base[i] += p[i][k][0] * m.x;
            base[i] += p[i][k][1] * m.y;
            w[i][0] = p_fragment<F16>(p[i][k][0] * d.x);
            w[i][1] = p_fragment<F16>(p[i][k][1] * d.y);
        }
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
                for (int high = 0; high < (FORMAT == INT4 ? 2 : 1); high++) {
                    uint32_t a[4];
                    unpack<FORMAT>(x[2 * v], x[2 * v + 1], high, a);
#pragma unroll
                    for (int i = 0; i < TILES; i++)
                        multiply<F16>(o[i][u + v + high * L::row_pieces], a, w[i][0], w[i][1]);
                }
        }
    }
}

/* ---- softmax of a warp's blocks ---- */

/* Over the lanes of a head, which are those of one t. */
__device__ __forceinline__ float head_top(float x)
{
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 4));
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 8));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 16));
}

__device__ __forceinline__ float head_sum(float x)
{
    x += __shfl_xor_sync(~0u, x, 4);
    x += __shfl_xor_sync(~0u, x, 8);
    return x + __shfl_xor_sync(~0u, x, 16);
}

/* Masks what lies outside [first, end) of a block and returns the lane's largest score. */
template <bool QUANTISED>
__device__ __forceinline__ float mask_and_top(float (&s)[2][2], uint32_t first, uint32_t end)
{
    uint32_t g = threadIdx.x % 32 / 4;
    if (first > 0 || end < BLOCK)
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                uint32_t token = 16 * m + (QUANTISED ? 2 * g + h : 8 * h + g);
                if (token < first || token >= end) s[m][h] = MINUS_INFINITY;
            }
    return fmaxf(fmaxf(s[0][0], s[0][1]), fmaxf(s[1][0], s[1][1]));
}

/* Scores become weights; returns the lane's part of their sum. */
__device__ __forceinline__ float to_weights(float (&s)[2][2], float max)
{
    float base = max == MINUS_INFINITY ? 0.0f : max, sum = 0;
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            s[m][h] = exp2_fast(s[m][h] - base);
            sum += s[m][h];
        }
    return sum;
}

/* Both blocks of a warp. */
template <int EXPONENT, bool QUANTISED, int TILES>
__device__ __forceinline__ void softmax(float (&s)[2][TILES][2][2], const uint32_t (&first)[2],
                                        const uint32_t (&end)[2], float (&max)[TILES],
                                        float (&sum)[TILES])
{
#pragma unroll
    for (int i = 0; i < TILES; i++) {
        float top = fmaxf(mask_and_top<QUANTISED>(s[0][i], first[0], end[0]),
                          mask_and_top<QUANTISED>(s[1][i], first[1], end[1]));
        max[i] = head_top(top) - EXPONENT;
        sum[i] = to_weights(s[0][i], max[i]);
        sum[i] = head_sum(sum[i] + to_weights(s[1][i], max[i]));
    }
}

#endif
