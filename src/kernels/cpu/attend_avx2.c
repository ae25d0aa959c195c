/* attend_avx2.c - attend_simd.h with 8 lanes: 12 accumulators of 6 x 2 in prefill, two query heads
 * at a time in decode. Every head dimension is a multiple of 8, so only nibbles have short rows. */
#include <immintrin.h>
#include <string.h>
#include "kernels/cpu/exp.h"
#include "kernels/kv_format.h"

#define W 8
#define NR 2
#define HEADS 2
#define V static inline __attribute__((always_inline))

typedef __m256 vec;

V vec v_zero(void)
{
    return _mm256_setzero_ps();
}
V vec v_set1(float x)
{
    return _mm256_set1_ps(x);
}
V vec v_load(const float *p)
{
    return _mm256_loadu_ps(p);
}
V void v_store(float *p, vec x)
{
    _mm256_storeu_ps(p, x);
}
V __m256i lane_numbers(void)
{
    return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
}
V __m256i lanes(uint32_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), lane_numbers());
}
typedef __m256i v_mask;
V vec v_load_mask(const float *p, v_mask mask)
{
    return _mm256_maskload_ps(p, mask);
}
V void v_store_mask(float *p, vec x, v_mask mask)
{
    _mm256_maskstore_ps(p, mask, x);
}
V vec v_load_n(const float *p, uint32_t n)
{
    return n == W ? v_load(p) : _mm256_maskload_ps(p, lanes(n));
}
V void v_store_n(float *p, vec x, uint32_t n)
{
    if (n == W)
        v_store(p, x);
    else
        _mm256_maskstore_ps(p, lanes(n), x);
}
V vec v_add(vec a, vec b)
{
    return _mm256_add_ps(a, b);
}
V vec v_sub(vec a, vec b)
{
    return _mm256_sub_ps(a, b);
}
V vec v_mul(vec a, vec b)
{
    return _mm256_mul_ps(a, b);
}
V vec v_max(vec a, vec b)
{
    return _mm256_max_ps(a, b);
}
V vec v_fma(vec a, vec b, vec c)
{
    return _mm256_fmadd_ps(a, b, c);
}
V vec v_exp(vec x)
{
    return pllm_exp_avx2(x);
}
V float v_sum(vec x)
{
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
V float v_largest(vec x)
{
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

/* Eight elements of a plain format as f32. */
V vec v_plain(pllm_dtype dtype, const uint8_t *p, uint32_t n)
{
    (void)n;
    if (dtype == PLLM_F32) return v_load((const float *)(const void *)p);
    __m128i halves = _mm_loadu_si128((const __m128i *)(const void *)p);
    if (dtype == PLLM_F16) return _mm256_cvtph_ps(halves);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

V __m256i bytes_to_ints(const uint8_t *p, uint32_t n)
{
    uint64_t bytes = 0;
    if (n == W)
        memcpy(&bytes, p, W);
    else
        memcpy(&bytes, p, W / 2); /* the only short length: head_dim / 2 is a multiple of 4 */
    return _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)bytes));
}
V vec v_u8(const uint8_t *p, uint32_t n)
{
    return _mm256_cvtepi32_ps(bytes_to_ints(p, n));
}
V vec v_low_nibbles(const uint8_t *p, uint32_t n)
{
    return _mm256_cvtepi32_ps(_mm256_and_si256(bytes_to_ints(p, n), _mm256_set1_epi32(15)));
}
V vec v_high_nibbles(const uint8_t *p, uint32_t n)
{
    return _mm256_cvtepi32_ps(_mm256_srli_epi32(bytes_to_ints(p, n), 4));
}

/* Lanes whose token at + lane is in first..end-1 keep x, the others take `other`. */
V vec v_keep_range(vec x, vec other, uint32_t at, uint32_t first, uint32_t end)
{
    __m256i token = _mm256_add_epi32(_mm256_set1_epi32((int)at), lane_numbers());
    __m256i keep = _mm256_and_si256(_mm256_cmpgt_epi32(token, _mm256_set1_epi32((int)first - 1)),
                                    _mm256_cmpgt_epi32(_mm256_set1_epi32((int)end), token));
    return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(keep));
}

/* Four vectors to one: lane 4g + i holds the sum of lanes 4g..4g+3 of vector i. */
V vec v_reduce_quad(vec a, vec b, vec c, vec d)
{
    __m256d ab = _mm256_castps_pd(v_add(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)));
    __m256d cd = _mm256_castps_pd(v_add(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d)));
    return v_add(_mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd)),
                 _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd)));
}
/* Two of those to one: lane 4q + i is the whole sum of vector i of quad q. */
V vec v_reduce_quads(const vec *x)
{
    return v_add(_mm256_permute2f128_ps(x[0], x[1], 0x20),
                 _mm256_permute2f128_ps(x[0], x[1], 0x31));
}

/* 8 x 8 in place: pairs within 128-bit lanes, then the lanes. */
V void v_transpose(vec *x)
{
    vec y[8];
    for (int i = 0; i < 8; i += 4) {
        __m256d a = _mm256_castps_pd(_mm256_unpacklo_ps(x[i], x[i + 1]));
        __m256d b = _mm256_castps_pd(_mm256_unpackhi_ps(x[i], x[i + 1]));
        __m256d c = _mm256_castps_pd(_mm256_unpacklo_ps(x[i + 2], x[i + 3]));
        __m256d d = _mm256_castps_pd(_mm256_unpackhi_ps(x[i + 2], x[i + 3]));
        y[i] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, c));
        y[i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, c));
        y[i + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(b, d));
        y[i + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(b, d));
    }
    for (int i = 0; i < 4; i++) {
        x[i] = _mm256_permute2f128_ps(y[i], y[4 + i], 0x20);
        x[4 + i] = _mm256_permute2f128_ps(y[i], y[4 + i], 0x31);
    }
}

#include "kernels/cpu/attend_simd.h"

static void row_to_f32(float *dst, const void *src, pllm_dtype dtype, uint64_t n)
{
    const uint8_t *bytes = src;
    for (uint64_t i = 0; i < n; i += W)
        v_store(dst + i, dtype == PLLM_F32   ? v_plain(PLLM_F32, bytes + 4 * i, W)
                         : dtype == PLLM_F16 ? v_plain(PLLM_F16, bytes + 2 * i, W)
                                             : v_plain(PLLM_BF16, bytes + 2 * i, W));
}

static void row_from_f32(void *dst, const float *src, pllm_dtype dtype, uint64_t n)
{
    uint16_t *halves = dst;
    if (dtype == PLLM_F32) {
        memcpy(dst, src, n * sizeof *src);
    } else if (dtype == PLLM_F16) {
        for (uint64_t i = 0; i < n; i += W)
            _mm_storeu_si128((__m128i *)(void *)(halves + i),
                             _mm256_cvtps_ph(v_load(src + i), _MM_FROUND_TO_NEAREST_INT));
    } else {
        for (uint64_t i = 0; i < n; i++) halves[i] = pllm_f32_to_bf16(src[i]);
    }
}

#define ROW_TO_F32 row_to_f32
#define ROW_FROM_F32 row_from_f32
#include "kernels/cpu/kv_write.h"

const pllm_attention_kernels pllm_attention_avx2 = {
    .append = kv_append,
    .seal = kv_seal,
    .attend_decode = attend_decode,
    .attend_prefill = attend_prefill,
    .merge = merge,
    .finish = finish,
};
