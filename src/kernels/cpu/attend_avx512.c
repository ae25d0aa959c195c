/* attend_avx512.c - attend_simd.h with 16 lanes: 24 accumulators of 6 x 4 in prefill, four query
 * heads at a time in decode. */
#include <immintrin.h>
#include "kernels/cpu/exp.h"
#include "kernels/kv_format.h"

#define W 16
#define NR 4
#define HEADS 4
#define V static inline __attribute__((always_inline))

typedef __m512 vec;

V __mmask16 lanes(uint32_t n)
{
    return (__mmask16)((1u << n) - 1);
}

V vec v_zero(void)
{
    return _mm512_setzero_ps();
}
V vec v_set1(float x)
{
    return _mm512_set1_ps(x);
}
V vec v_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
V void v_store(float *p, vec x)
{
    _mm512_storeu_ps(p, x);
}
typedef __mmask16 v_mask;
V vec v_load_mask(const float *p, v_mask mask)
{
    return _mm512_maskz_loadu_ps(mask, p);
}
V void v_store_mask(float *p, vec x, v_mask mask)
{
    _mm512_mask_storeu_ps(p, mask, x);
}
V vec v_load_n(const float *p, uint32_t n)
{
    return n == W ? v_load(p) : _mm512_maskz_loadu_ps(lanes(n), p);
}
V void v_store_n(float *p, vec x, uint32_t n)
{
    if (n == W)
        v_store(p, x);
    else
        _mm512_mask_storeu_ps(p, lanes(n), x);
}
V vec v_add(vec a, vec b)
{
    return _mm512_add_ps(a, b);
}
V vec v_sub(vec a, vec b)
{
    return _mm512_sub_ps(a, b);
}
V vec v_mul(vec a, vec b)
{
    return _mm512_mul_ps(a, b);
}
V vec v_max(vec a, vec b)
{
    return _mm512_max_ps(a, b);
}
V vec v_fma(vec a, vec b, vec c)
{
    return _mm512_fmadd_ps(a, b, c);
}
V vec v_exp(vec x)
{
    return pllm_exp_avx512(x);
}
V float v_sum(vec x)
{
    return _mm512_reduce_add_ps(x);
}
V float v_largest(vec x)
{
    return _mm512_reduce_max_ps(x);
}

/* n elements of a plain format as f32; the other lanes are 0 and not read. */
V vec v_plain(pllm_dtype dtype, const uint8_t *p, uint32_t n)
{
    if (dtype == PLLM_F32) return v_load_n((const float *)(const void *)p, n);
    __m256i halves = n == W ? _mm256_loadu_si256((const __m256i *)(const void *)p)
                            : _mm256_maskz_loadu_epi16(lanes(n), p);
    if (dtype == PLLM_F16) return _mm512_cvtph_ps(halves);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

V __m512i bytes_to_ints(const uint8_t *p, uint32_t n)
{
    return _mm512_cvtepu8_epi32(n == W ? _mm_loadu_si128((const __m128i *)(const void *)p)
                                       : _mm_maskz_loadu_epi8(lanes(n), p));
}
V vec v_u8(const uint8_t *p, uint32_t n)
{
    return _mm512_cvtepi32_ps(bytes_to_ints(p, n));
}
/* A nibble becomes a float by a look-up among 16 lanes; the look-up ignores higher bits. */
V vec nibbles_to_floats(__m512i index)
{
    const vec table = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_permutexvar_ps(index, table);
}
V vec v_low_nibbles(const uint8_t *p, uint32_t n)
{
    return nibbles_to_floats(bytes_to_ints(p, n));
}
V vec v_high_nibbles(const uint8_t *p, uint32_t n)
{
    return nibbles_to_floats(_mm512_srli_epi32(bytes_to_ints(p, n), 4));
}

/* Lanes whose token at + lane is in first..end-1 keep x, the others take `other`. */
V vec v_keep_range(vec x, vec other, uint32_t at, uint32_t first, uint32_t end)
{
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i token = _mm512_add_epi32(_mm512_set1_epi32((int)at), lane);
    __mmask16 keep = _mm512_cmpge_epi32_mask(token, _mm512_set1_epi32((int)first)) &
                     _mm512_cmplt_epi32_mask(token, _mm512_set1_epi32((int)end));
    return _mm512_mask_blend_ps(keep, other, x);
}

/* Four vectors to one: lane 4g + i holds the sum of lanes 4g..4g+3 of vector i. */
V vec v_reduce_quad(vec a, vec b, vec c, vec d)
{
    __m512d ab = _mm512_castps_pd(v_add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
    __m512d cd = _mm512_castps_pd(v_add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)));
    return v_add(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)),
                 _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
}
V vec add_halves(vec a, vec b)
{
    return v_add(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}
/* Four of those to one: lane 4q + i is the whole sum of vector i of quad q. */
V vec v_reduce_quads(const vec *x)
{
    return add_halves(add_halves(x[0], x[1]), add_halves(x[2], x[3]));
}

/* 16 x 16 in place: pairs within 128-bit lanes, then the lanes. */
V void v_transpose(vec *x)
{
    vec y[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 4) {
        __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(x[i], x[i + 1]));
        __m512d b = _mm512_castps_pd(_mm512_unpackhi_ps(x[i], x[i + 1]));
        __m512d c = _mm512_castps_pd(_mm512_unpacklo_ps(x[i + 2], x[i + 3]));
        __m512d d = _mm512_castps_pd(_mm512_unpackhi_ps(x[i + 2], x[i + 3]));
        y[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
        y[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
        y[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
        y[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
    /* y[4r + i], 128-bit lane g: column 4g + i of rows 4r..4r+3. */
#pragma GCC unroll 8
    for (int i = 0; i < 4; i++) {
        vec a = _mm512_shuffle_f32x4(y[i], y[4 + i], 0x88);
        vec b = _mm512_shuffle_f32x4(y[8 + i], y[12 + i], 0x88);
        vec c = _mm512_shuffle_f32x4(y[i], y[4 + i], 0xdd);
        vec d = _mm512_shuffle_f32x4(y[8 + i], y[12 + i], 0xdd);
        x[i] = _mm512_shuffle_f32x4(a, b, 0x88);
        x[8 + i] = _mm512_shuffle_f32x4(a, b, 0xdd);
        x[4 + i] = _mm512_shuffle_f32x4(c, d, 0x88);
        x[12 + i] = _mm512_shuffle_f32x4(c, d, 0xdd);
    }
}

#include "kernels/cpu/attend_simd.h"

static void row_to_f32(float *dst, const void *src, pllm_dtype dtype, uint64_t n)
{
    const uint8_t *bytes = src;
    for (uint64_t i = 0; i < n; i += W) {
        uint32_t count = n - i < W ? (uint32_t)(n - i) : W;
        v_store_n(dst + i,
                  dtype == PLLM_F32   ? v_plain(PLLM_F32, bytes + 4 * i, count)
                  : dtype == PLLM_F16 ? v_plain(PLLM_F16, bytes + 2 * i, count)
                                      : v_plain(PLLM_BF16, bytes + 2 * i, count),
                  count);
    }
}

static void row_from_f32(void *dst, const float *src, pllm_dtype dtype, uint64_t n)
{
    uint16_t *halves = dst;
    if (dtype == PLLM_F32) {
        memcpy(dst, src, n * sizeof *src);
    } else if (dtype == PLLM_F16) {
        for (uint64_t i = 0; i < n; i += 8) /* n is a multiple of 8 */
            _mm_storeu_si128((__m128i *)(void *)(halves + i),
                             _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT));
    } else {
        for (uint64_t i = 0; i < n; i++) halves[i] = pllm_f32_to_bf16(src[i]);
    }
}

#define ROW_TO_F32 row_to_f32
#define ROW_FROM_F32 row_from_f32
#include "kernels/cpu/kv_write.h"

const pllm_attention_kernels pllm_attention_avx512 = {
    .append = kv_append,
    .seal = kv_seal,
    .attend_decode = attend_decode,
    .attend_prefill = attend_prefill,
    .merge = merge,
    .finish = finish,
};
