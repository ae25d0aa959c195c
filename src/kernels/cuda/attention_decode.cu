/* attention_decode.cu - decode attention over the block table on tensor cores: head_dim 64 and 128.
 *
 * Idea: one CTA does one chunk of 256 tokens for one KV head of one row, for up to 8 query heads at
 * once, so that keys and values are read from memory once. Its 4 warps take blocks w and w + 4 of
 * the chunk's 8; no barrier until their results are added up. A decode step is bound by memory, and
 * the tensor cores are used because they leave the rest of the SM idle, not for their speed.
 *
 * Exactness: m16n8k16 with the 8 query heads twice in the 16 rows, rows 0-7 the high halves of f32
 * values, rows 8-15 what rounding to a half left (22 bits in f16, 16 in bf16). Keys and values
 * enter as they are stored. So one multiply gives f32-like products for free, and a thread holds
 * both halves' sums of the same elements. The same for the weights p in the second product.
 *
 *   scores [heads x tokens] = q [heads x channels] . K^T     p = 2^(score - max)
 *   out  [heads x channels] = p [heads x tokens] . V         (the fragment of scores is that of p)
 *
 * Quantised keys: the channel's scale multiplies q (in half2, with the exact rounding error kept);
 * q . minimum is one more column. Values: the token's scale multiplies p, p . minimum is added to
 * all channels. Bytes and nibbles become halves by setting the exponent of 1024 and subtracting
 * 1024. In their layout a transposing ldmatrix gives pairs of tokens (keys) or channels (values) in
 * one 16-bit element; tokens and channels are therefore permuted: element n of tile 2j + i is
 * number 16j + 2n + i. q is made to fit half's range by a power of two of its own row.
 *
 * Shared memory, per warp: plain formats: two halves of slices, first the two blocks' keys, then
 * their values in the same place; quantised: two whole slices. 16-byte pieces lie XOR-swizzled so
 * that ldmatrix meets no bank twice. The open block of a quantised cache is plain: its warp does
 * it beside its sealed block, and its result is a fifth one in the sum over warps.
 *
 * Rule 1: everything depends on the row's own q, keys and values, in an order fixed by positions.
 */
#include "kernels/cuda/attention_device.cuh"

enum { WARPS = 4, THREADS = 32 * WARPS, HEADS = 8 };

template <int FORMAT, int HD> struct layout {
    static constexpr int bits = FORMAT == INT4 ? 4 : FORMAT == INT8 ? 8 : 16;
    static constexpr bool quantised = bits < 16;
    static constexpr int half_slice = BLOCK * HD * bits / 8; /* keys, or values */
    static constexpr int scales = quantised ? 4 * HD + 4 * BLOCK : 0;
    static constexpr int slot = quantised ? 2 * half_slice + scales : half_slice;
    static constexpr int plain_half = BLOCK * HD * 2;
    /* Where the open block's keys, then values go: its own slot if they fit. */
    static constexpr bool open_extra = quantised && slot < plain_half;
    static constexpr int warp = 2 * slot;
    static constexpr int total = WARPS * warp + (open_extra ? plain_half : 0);
    static constexpr int row_pieces = HD * bits / 8 / 16; /* 16-byte pieces of a value row */
    static constexpr int value_shift = row_pieces >= 16 ? 4 : row_pieces == 8 ? 4 - !quantised : 3;
    static constexpr int out_stride = HD + 8; /* floats; a result of one warp */
    static_assert(HEADS * out_stride * 4 <= slot, "a warp's result lies in one of its slots");
    /* p is multiplied by this power of two, q lies below this one: products fit a half. */
    static constexpr int p_exponent = FORMAT == F16    ? 12
                                      : FORMAT == INT8 ? 6
                                      : FORMAT == INT4 ? 2
                                                       : 0;
    static constexpr int q_exponent = FORMAT == INT8 ? 6 : FORMAT == INT4 ? 2 : 8;
};

__device__ __forceinline__ uint32_t swizzle(uint32_t piece, int shift)
{
    return piece ^ (piece >> shift & 7);
}

/* ---- copies ---- */

/* Keys or values of a plain block; rows from rows_valid on become zeros. */
template <int HD>
__device__ __forceinline__ void copy_plain(uint32_t to, uint64_t from, uint32_t rows_valid)
{
    constexpr int pieces = HD / 8, shift = HD == 128 ? 4 : 3;
    uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < BLOCK * pieces / 32; i++) {
        uint32_t piece = i * 32 + lane;
        copy_async(to + 16 * swizzle(piece, shift), at<uint8_t>(from + 16 * piece),
                   piece / pieces < rows_valid ? 16 : 0);
    }
}

template <int PIECES>
__device__ __forceinline__ void copy_swizzled(uint32_t to, uint64_t from, int shift)
{
    uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < (PIECES + 31) / 32; i++) {
        uint32_t piece = i * 32 + lane;
        if (PIECES % 32 == 0 || piece < PIECES)
            copy_async(to + 16 * (shift ? swizzle(piece, shift) : piece),
                       at<uint8_t>(from + 16 * piece), 16);
    }
}

/* ---- q ---- */

/* A lane's part of the query heads as matrix fragments: of head lane / 4, high and low halves.
 * Returns the factor from sums of products to scores in the log2 domain. */
template <int FORMAT, int HD, int EXPONENT>
__device__ __forceinline__ float load_q(const pllm_attend_arguments &a, uint32_t row, uint32_t head,
                                        bool valid, uint32_t (&q)[HD / 16][4])
{
    uint32_t t = threadIdx.x % 4;
    float2 x[HD / 8];
    const float *from = at<float>(a.q) + row * a.q_stride + (uint64_t)head * HD;
    float top = 0;
#pragma unroll
    for (int i = 0; i < HD / 8; i++) {
        x[i] = make_float2(0, 0);
        if (valid) x[i] = make_float2(from[8 * i + 2 * t], from[8 * i + 2 * t + 1]);
        top = fmaxf(top, fmaxf(fabsf(x[i].x), fabsf(x[i].y)));
    }
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
    /* up * top lies in [2^(EXPONENT - 1), 2^EXPONENT) */
    int raise = EXPONENT + 126 - (int)(__float_as_uint(top) >> 23);
    raise = top > 0 ? min(max(raise, -126), 126) : 0;
    float up = __uint_as_float((uint32_t)(raise + 127) << 23);
    float down = __uint_as_float((uint32_t)(127 - raise) << 23);
#pragma unroll
    for (int i = 0; i < HD / 8; i++)
        split<FORMAT>(x[i].x * up, x[i].y * up, q[i / 2][i % 2 * 2], q[i / 2][i % 2 * 2 + 1]);
    return a.scale * down;
}

/* ---- products of plain blocks: token 8n + 2t + e is s[n][e], channel 8j + 2t + e is o[j][e] ----
 */

template <int FORMAT, int HD>
__device__ __forceinline__ void scores_plain(uint32_t keys, const uint32_t (&q)[HD / 16][4],
                                             float factor, float (&s)[4][2])
{
    constexpr int pieces = HD / 8, shift = HD == 128 ? 4 : 3;
    uint32_t lane = threadIdx.x % 32;
    float c[4][4] = {};
#pragma unroll
    for (int k = 0; k < HD / 32; k++)
#pragma unroll
        for (int n = 0; n < 4; n++) {
            uint32_t r[4], piece = (n * 8 + lane % 8) * pieces + k * 4 + lane / 8;
            load_matrices(r, keys + 16 * swizzle(piece, shift));
            multiply<FORMAT>(c[n], q[2 * k], r[0], r[1]);
            multiply<FORMAT>(c[n], q[2 * k + 1], r[2], r[3]);
        }
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
    constexpr int pieces = HD / 8, shift = HD == 128 ? 4 : 3;
    uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < 2; k++) {
        uint32_t w[4];
        split<FORMAT>(p[2 * k][0], p[2 * k][1], w[0], w[1]);
        split<FORMAT>(p[2 * k + 1][0], p[2 * k + 1][1], w[2], w[3]);
#pragma unroll
        for (int j = 0; j < HD / 8; j += 2) {
            uint32_t r[4], piece = (k * 16 + lane % 16) * pieces + j + lane / 16;
            load_matrices_transposed(r, values + 16 * swizzle(piece, shift));
            multiply<FORMAT>(o[j], w, r[0], r[1]);
            multiply<FORMAT>(o[j + 1], w, r[2], r[3]);
        }
    }
}

/* ---- products of quantised blocks: token 16j + 4t + 2e + i is s[2j + i][e], likewise channels
 * ---- */

/* Bytes 0, 2 (even) or 1, 3 of x as two halves. */
__device__ __forceinline__ uint32_t bytes_to_halves(uint32_t x, int odd)
{
    uint32_t biased = __byte_perm(x, 0x64646464, odd ? 0x4341 : 0x4240);
    return as_bits(__hsub2(as_half2(biased), as_half2(0x64006400)));
}

/* Low or high nibbles of bytes 0 and 2 of x. */
__device__ __forceinline__ uint32_t nibbles_to_halves(uint32_t x, int high)
{
    uint32_t biased;
    if (!high) {
        asm("lop3.b32 %0, %1, 0x000f000f, 0x64006400, 0xea;" : "=r"(biased) : "r"(x));
        return as_bits(__hsub2(as_half2(biased), as_half2(0x64006400)));
    }
    asm("lop3.b32 %0, %1, 0x00f000f0, 0x64006400, 0xea;" : "=r"(biased) : "r"(x));
    return as_bits(
        __hfma2(as_half2(biased), as_half2(0x2c002c00), as_half2(0xd400d400))); /* /16 - 64 */
}

__device__ __forceinline__ uint32_t shared_word(uint32_t address)
{
    uint32_t x;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(address) : "memory");
    return x;
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

template <int FORMAT, int HD>
__device__ __forceinline__ void scores_quantised(uint32_t slice, const uint32_t (&q)[HD / 16][4],
                                                 float factor, float (&s)[4][2])
{
    using L = layout<FORMAT, HD>;
    uint32_t lane = threadIdx.x % 32, t = lane % 4;
    uint32_t scale = slice + 2 * L::half_slice, minimum = scale + 2 * HD;
    float c[4][4] = {}, m[4] = {};
    uint32_t x[4];
#pragma unroll
    for (int k = 0; k < HD / 16; k++) {
        uint32_t d0 = shared_word(scale + 32 * k + 4 * t);
        uint32_t d1 = shared_word(scale + 32 * k + 16 + 4 * t);
        uint32_t scaled[4];
        __half2 h0 = __hmul2_rn(as_half2(q[k][0]), as_half2(d0));
        __half2 h1 = __hmul2_rn(as_half2(q[k][2]), as_half2(d1));
        __half2 e0 = __hfma2(as_half2(q[k][0]), as_half2(d0), __hneg2(h0));
        __half2 e1 = __hfma2(as_half2(q[k][2]), as_half2(d1), __hneg2(h1));
        scaled[0] = as_bits(h0);
        scaled[1] = as_bits(__hfma2(as_half2(q[k][1]), as_half2(d0), e0));
        scaled[2] = as_bits(h1);
        scaled[3] = as_bits(__hfma2(as_half2(q[k][3]), as_half2(d1), e1));
        if (FORMAT == INT8) {
            uint32_t channel = 16 * k + lane % 16, piece = 2 * channel + lane / 16;
            load_matrices_transposed(x, slice + 16 * swizzle(piece, 3));
#pragma unroll
            for (int j = 0; j < 2; j++)
#pragma unroll
                for (int i = 0; i < 2; i++)
                    multiply<F16>(c[2 * j + i], scaled, bytes_to_halves(x[2 * j], i),
                                  bytes_to_halves(x[2 * j + 1], i));
        } else {
            /* A row of keys is one piece of 16 bytes: one load serves two k. */
            if (k % 2 == 0) load_matrices_transposed(x, slice + 16 * (16 * k + lane));
            uint32_t x0 = k % 2 ? x[2] : x[0], x1 = k % 2 ? x[3] : x[1];
#pragma unroll
            for (int j = 0; j < 2; j++)
#pragma unroll
                for (int i = 0; i < 2; i++)
                    multiply<F16>(c[2 * j + i], scaled, nibbles_to_halves(x0 >> 8 * i, j),
                                  nibbles_to_halves(x1 >> 8 * i, j));
        }
        multiply<F16>(m, q[k], shared_word(minimum + 32 * k + 4 * t),
                      shared_word(minimum + 32 * k + 16 + 4 * t));
    }
    float base = m[0] + m[2]; /* every column is the same */
#pragma unroll
    for (int n = 0; n < 4; n++) {
        s[n][0] = (c[n][0] + c[n][2] + base) * factor;
        s[n][1] = (c[n][1] + c[n][3] + base) * factor;
    }
}

/* base: the lane's part of the sum of p * minimum. */
template <int FORMAT, int HD>
__device__ __forceinline__ void values_quantised(uint32_t slice, const float (&p)[4][2],
                                                 float (&o)[HD / 8][4], float &base)
{
    using L = layout<FORMAT, HD>;
    uint32_t lane = threadIdx.x % 32, t = lane % 4;
    uint32_t values = slice + L::half_slice, scale = slice + 2 * L::half_slice + 4 * HD;
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
#pragma unroll
        for (int u = 0; u < L::row_pieces; u += 2) {
            uint32_t x[4], piece = token * L::row_pieces + u + lane / 16;
            load_matrices_transposed(x, values + 16 * swizzle(piece, L::value_shift));
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
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            uint32_t token = PERMUTED ? n / 2 * 16 + 4 * t + 2 * e + n % 2 : 8 * n + 2 * t + e;
            if (token < first || token >= end) s[n][e] = MINUS_INFINITY;
            top = fmaxf(top, s[n][e]);
        }
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

/* ---- results of the warps ---- */

struct results {
    float max[WARPS + 1][HEADS], sum[WARPS + 1][HEADS];
};

template <int HD, bool PERMUTED>
__device__ __forceinline__ void put_result(float *to, results *all, uint32_t entry, uint32_t group,
                                           const float (&o)[HD / 8][4], float base, float max,
                                           float sum)
{
    uint32_t lane = threadIdx.x % 32, head = lane / 4, t = lane % 4;
    if (head >= group) return;
    to += head * (HD + 8);
#pragma unroll
    for (int j = 0; j < HD / 8; j++) {
        float x = o[j][0] + o[j][2] + base, y = o[j][1] + o[j][3] + base;
        if (PERMUTED) {
            to[j / 2 * 16 + 4 * t + j % 2] = x;
            to[j / 2 * 16 + 4 * t + 2 + j % 2] = y;
        } else {
            *reinterpret_cast<float2 *>(to + 8 * j + 2 * t) = make_float2(x, y);
        }
    }
    if (t == 0) {
        all->max[entry][head] = max;
        all->sum[entry][head] = sum;
    }
}

__device__ __forceinline__ void put_nothing(results *all, uint32_t entry)
{
    uint32_t lane = threadIdx.x % 32;
    if (lane < HEADS) {
        all->max[entry][lane] = MINUS_INFINITY;
        all->sum[entry][lane] = 0;
    }
}

/* Adds up the warps' results in their order and writes the chunk's partials. */
template <int HD>
__device__ __forceinline__ void add_results(const pllm_attend_arguments &a, uint32_t row,
                                            uint32_t head_first, uint32_t group, uint32_t chunk,
                                            const float *const (&from)[WARPS + 1],
                                            const results *all)
{
    for (uint32_t i = threadIdx.x; i < group * HD; i += THREADS) {
        uint32_t head = i / HD, channel = i % HD;
        float top = MINUS_INFINITY, out = 0, sum = 0;
#pragma unroll
        for (int e = 0; e < WARPS + 1; e++) top = fmaxf(top, all->max[e][head]);
#pragma unroll
        for (int e = 0; e < WARPS + 1; e++) {
            float weight = weight_of(all->max[e][head], top);
            if (weight == 0) continue; /* nothing was written there */
            out += weight * from[e][head * (HD + 8) + channel];
            sum += weight * all->sum[e][head];
        }
        partial_place p = partials_of(a, row, head_first + head);
        p.out[(uint64_t)chunk * HD + channel] = out;
        if (channel == 0) {
            p.max[chunk] = top;
            p.sum[chunk] = sum;
        }
    }
}

/* ---- the kernels ---- */

struct warp_blocks {
    uint64_t slice[2];         /* address of the KV head's slice; 0: no such block */
    uint32_t first[2], end[2]; /* tokens of the block that are seen */
    bool open[2];
};

__device__ __forceinline__ warp_blocks blocks_of_warp(const pllm_attend_arguments &a,
                                                      const row_work &w, uint32_t chunk,
                                                      uint32_t kv_head)
{
    warp_blocks b;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        uint32_t block = chunk * CHUNK_BLOCKS + threadIdx.x / 32 + i * WARPS, token = block * BLOCK;
        b.slice[i] = 0;
        b.first[i] = w.first_token > token ? w.first_token - token : 0;
        b.end[i] = w.length > token ? min(w.length - token, (uint32_t)BLOCK) : 0;
        b.open[i] = block == (w.length - 1) / BLOCK;
        if (b.first[i] < b.end[i])
            b.slice[i] = block_address(a, w, block) +
                         (uint64_t)kv_head * (b.open[i] ? a.open_slice : a.sealed_slice);
    }
    return b;
}

template <int FORMAT, int HD>
__device__ __forceinline__ void chunk_plain(const pllm_attend_arguments &a, const row_work &work,
                                            uint32_t row, uint32_t kv_head, uint32_t head_first,
                                            uint32_t group, uint32_t chunk, uint8_t *shared,
                                            results *all)
{
    using L = layout<FORMAT, HD>;
    uint32_t warp = threadIdx.x / 32, head = threadIdx.x % 32 / 4;
    uint8_t *mine = shared + warp * L::warp;
    uint32_t slot[2] = {shared_address(mine), shared_address(mine) + L::slot};
    warp_blocks b = blocks_of_warp(a, work, chunk, kv_head);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (b.slice[i]) copy_plain<HD>(slot[i], b.slice[i], b.end[i]);
        copy_commit();
    }
    float s[2][4][2], top = MINUS_INFINITY;
    {
        uint32_t q[HD / 16][4];
        float factor =
            load_q<FORMAT, HD, L::q_exponent>(a, row, head_first + head, head < group, q);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            copy_wait<1>();
            if (b.slice[i]) {
                scores_plain<FORMAT, HD>(slot[i], q, factor, s[i]);
                __syncwarp();
                copy_plain<HD>(slot[i], b.slice[i] + L::half_slice, b.end[i]);
            }
            copy_commit();
            top = fmaxf(top, mask_and_top<false>(s[i], b.first[i], b.slice[i] ? b.end[i] : 0));
        }
    }
    float max = top - L::p_exponent;
    float sum = quad_sum(to_weights(s[0], max) + to_weights(s[1], max));
    float o[HD / 8][4] = {};
    copy_wait<1>();
    if (b.slice[0]) values_plain<FORMAT, HD>(slot[0], s[0], o);
    copy_wait<0>();
    if (b.slice[1]) values_plain<FORMAT, HD>(slot[1], s[1], o);
    __syncwarp();
    if (b.slice[0] || b.slice[1])
        put_result<HD, false>(reinterpret_cast<float *>(mine), all, warp, group, o, 0.0f, max, sum);
    else
        put_nothing(all, warp);
    if (warp == 0) put_nothing(all, WARPS);
    __syncthreads();
    const float *from[WARPS + 1];
#pragma unroll
    for (int e = 0; e <= WARPS; e++)
        from[e] = reinterpret_cast<const float *>(shared + e % WARPS * L::warp);
    add_results<HD>(a, row, head_first, group, chunk, from, all);
}

template <int FORMAT, int HD>
__device__ __forceinline__ void chunk_quantised(const pllm_attend_arguments &a,
                                                const row_work &work, uint32_t row,
                                                uint32_t kv_head, uint32_t head_first,
                                                uint32_t group, uint32_t chunk, uint8_t *shared,
                                                results *all)
{
    using L = layout<FORMAT, HD>;
    uint32_t warp = threadIdx.x / 32, head = threadIdx.x % 32 / 4;
    uint8_t *mine = shared + warp * L::warp;
    uint32_t slot[2] = {shared_address(mine), shared_address(mine) + L::slot};
    warp_blocks b = blocks_of_warp(a, work, chunk, kv_head);
    /* The open block, if this warp has it; then the other slot's block is the sealed one. */
    uint64_t open_slice = 0;
    uint32_t open_first = 0, open_end = 0;
#pragma unroll
    for (int i = 0; i < 2; i++)
        if (b.slice[i] && b.open[i]) {
            open_slice = b.slice[i];
            open_first = b.first[i];
            open_end = b.end[i];
            b.slice[i] = 0;
        }
    uint32_t open_block = (work.length - 1) / BLOCK;
    bool open_here = open_block / CHUNK_BLOCKS == chunk;
    uint32_t open_warp = open_block % WARPS, open_slot = open_block / WARPS % 2;
    uint8_t *open_place = L::open_extra ? shared + WARPS * L::warp
                                        : shared + open_warp * L::warp + open_slot * L::slot;
    uint32_t open_keys = shared_address(open_place);

    if (open_slice) copy_plain<HD>(open_keys, open_slice, open_end);
    copy_commit();
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (b.slice[i]) {
            copy_swizzled<L::half_slice / 16>(slot[i], b.slice[i], 3 * (FORMAT == INT8));
            copy_swizzled<L::scales / 16>(slot[i] + 2 * L::half_slice,
                                          b.slice[i] + 2 * L::half_slice, 0);
        }
        copy_commit();
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (b.slice[i])
            copy_swizzled<L::half_slice / 16>(slot[i] + L::half_slice, b.slice[i] + L::half_slice,
                                              L::value_shift);
        copy_commit();
    }
    float s[2][4][2], sealed_top = MINUS_INFINITY, p_open[4][2], open_max = MINUS_INFINITY;
    float open_sum = 0;
    {
        uint32_t q[HD / 16][4];
        float factor = load_q<F16, HD, L::q_exponent>(a, row, head_first + head, head < group, q);
        copy_wait<4>();
        if (open_slice) {
            scores_plain<F16, HD>(open_keys, q, factor, p_open);
            __syncwarp();
            copy_plain<HD>(open_keys, open_slice + L::plain_half, open_end);
            open_max = mask_and_top<false>(p_open, open_first, open_end) - L::p_exponent;
            open_sum = quad_sum(to_weights(p_open, open_max));
        }
        copy_commit();
        copy_wait<4>();
        if (b.slice[0]) scores_quantised<FORMAT, HD>(slot[0], q, factor, s[0]);
        sealed_top = mask_and_top<true>(s[0], b.first[0], b.slice[0] ? b.end[0] : 0);
        copy_wait<3>();
        if (b.slice[1]) scores_quantised<FORMAT, HD>(slot[1], q, factor, s[1]);
        sealed_top =
            fmaxf(sealed_top, mask_and_top<true>(s[1], b.first[1], b.slice[1] ? b.end[1] : 0));
    }
    float max = sealed_top - L::p_exponent, base = 0;
    float sum = quad_sum(to_weights(s[0], max) + to_weights(s[1], max));
    uint32_t put_slot = open_here && warp == open_warp && !L::open_extra ? 1 - open_slot : 0;
    {
        float o[HD / 8][4] = {};
        copy_wait<2>();
        if (b.slice[0]) values_quantised<FORMAT, HD>(slot[0], s[0], o, base);
        copy_wait<1>();
        if (b.slice[1]) values_quantised<FORMAT, HD>(slot[1], s[1], o, base);
        base = quad_sum(base);
        __syncwarp();
        if (b.slice[0] || b.slice[1])
            put_result<HD, true>(reinterpret_cast<float *>(mine + put_slot * L::slot), all, warp,
                                 group, o, base, max, sum);
        else
            put_nothing(all, warp);
    }
    if (open_slice) {
        float o[HD / 8][4] = {};
        copy_wait<0>();
        values_plain<F16, HD>(open_keys, p_open, o);
        __syncwarp();
        put_result<HD, false>(reinterpret_cast<float *>(open_place), all, WARPS, group, o, 0.0f,
                              open_max, open_sum);
    } else if (!open_here && warp == 0) {
        put_nothing(all, WARPS);
    }
    __syncthreads();
    const float *from[WARPS + 1];
#pragma unroll
    for (uint32_t e = 0; e < WARPS; e++) {
        uint32_t put = open_here && e == open_warp && !L::open_extra ? 1 - open_slot : 0;
        from[e] = reinterpret_cast<const float *>(shared + e * L::warp + put * L::slot);
    }
    from[WARPS] = reinterpret_cast<const float *>(open_place);
    add_results<HD>(a, row, head_first, group, chunk, from, all);
}

/* Grid: x: KV head and tile of 8 query heads, y: chunks, in strides of the grid, z: rows. */
template <int FORMAT, int HD> __device__ __forceinline__ void attend(const pllm_attend_arguments &a)
{
    extern __shared__ __align__(128) uint8_t shared[];
    __shared__ results all;
    uint32_t kv_head = blockIdx.x / a.head_tiles, tile = blockIdx.x % a.head_tiles,
             row = blockIdx.z;
    uint32_t head_first = kv_head * a.group + tile * HEADS;
    uint32_t group = min(a.group - tile * HEADS, (uint32_t)HEADS);
    wait_for_kernel_before();
    row_work work = row_work_of(a, row);
    for (uint32_t chunk = work.chunk_first + blockIdx.y; chunk < work.chunk_end;
         chunk += gridDim.y) {
        if (FORMAT == INT8 || FORMAT == INT4)
            chunk_quantised<FORMAT, HD>(a, work, row, kv_head, head_first, group, chunk, shared,
                                        &all);
        else
            chunk_plain<FORMAT, HD>(a, work, row, kv_head, head_first, group, chunk, shared, &all);
        __syncthreads(); /* the results have been read; copies of the next chunk may come */
    }
}

#define KERNEL(NAME, FORMAT, HD, CTAS)                                      \
    extern "C" __global__ void __launch_bounds__(THREADS, CTAS)             \
        pllm_attend_##NAME(const __grid_constant__ pllm_attend_arguments a) \
    {                                                                       \
        attend<FORMAT, HD>(a);                                              \
    }

KERNEL(f16_64, F16, 64, 4)
KERNEL(f16_128, F16, 128, 3)
KERNEL(bf16_64, BF16, 64, 4)
KERNEL(bf16_128, BF16, 128, 3)
KERNEL(int8_64, INT8, 64, 4)
KERNEL(int8_128, INT8, 128, 3)
KERNEL(int4_64, INT4, 64, 4)
KERNEL(int4_128, INT4, 128, 4)
