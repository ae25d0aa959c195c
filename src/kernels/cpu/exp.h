/* exp.h - exp(x) in f32, the same bits from the scalar, AVX2 and AVX-512 forms.
 *
 * Idea: x = n ln2 + r with |r| <= ln2 / 2 (ln2 in two parts, after Cody and Waite), exp(r) by its
 * Taylor polynomial of degree 7 in Horner form with FMAs, then times 2^n. The cut-off term is
 * (ln2/2)^8 / 8! = 5e-9, so the error is rounding: under 1 ulp. Below -104 the result is 0,
 * above 88.73 it is infinity, denormal results are rounded once, NaN stays NaN. */
#ifndef PLLM_KERNELS_CPU_EXP_H
#define PLLM_KERNELS_CPU_EXP_H

#include <math.h>

#define PLLM_EXP_LOG2E 0x1.715476p+0f
#define PLLM_EXP_LN2_HIGH 0x1.62e4p-1f /* 15 bits: n * high is exact */
#define PLLM_EXP_LN2_LOW 0x1.7f7d1cp-20f
#define PLLM_EXP_MIN (-104.0f)
#define PLLM_EXP_MAX 89.0f
#define PLLM_EXP_C7 0x1.a01a02p-13f /* 1 / 7! */
#define PLLM_EXP_C6 0x1.6c16c2p-10f
#define PLLM_EXP_C5 0x1.111112p-7f
#define PLLM_EXP_C4 0x1.555556p-5f
#define PLLM_EXP_C3 0x1.555556p-3f

static inline float pllm_exp_scalar(float x)
{
    if (isnan(x)) return x;
    x = fmaxf(fminf(x, PLLM_EXP_MAX), PLLM_EXP_MIN);
    float n = nearbyintf(x * PLLM_EXP_LOG2E);
    float r = fmaf(-n, PLLM_EXP_LN2_LOW, fmaf(-n, PLLM_EXP_LN2_HIGH, x));
    float p = fmaf(r, PLLM_EXP_C7, PLLM_EXP_C6);
    p = fmaf(r, p, PLLM_EXP_C5);
    p = fmaf(r, p, PLLM_EXP_C4);
    p = fmaf(r, p, PLLM_EXP_C3);
    p = fmaf(r, p, 0.5f);
    p = fmaf(r, p, 1.0f);
    p = fmaf(r, p, 1.0f);
    return ldexpf(p, (int)n);
}

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

static inline __m256 pllm_exp_avx2(__m256 x)
{
    /* min and max return their second operand if either is NaN: x is second. */
    x = _mm256_max_ps(_mm256_set1_ps(PLLM_EXP_MIN), _mm256_min_ps(_mm256_set1_ps(PLLM_EXP_MAX), x));
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(PLLM_EXP_LOG2E)),
                               _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(PLLM_EXP_LN2_HIGH), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(PLLM_EXP_LN2_LOW), r);
    __m256 p = _mm256_fmadd_ps(r, _mm256_set1_ps(PLLM_EXP_C7), _mm256_set1_ps(PLLM_EXP_C6));
    p = _mm256_fmadd_ps(r, p, _mm256_set1_ps(PLLM_EXP_C5));
    p = _mm256_fmadd_ps(r, p, _mm256_set1_ps(PLLM_EXP_C4));
    p = _mm256_fmadd_ps(r, p, _mm256_set1_ps(PLLM_EXP_C3));
    p = _mm256_fmadd_ps(r, p, _mm256_set1_ps(0.5f));
    p = _mm256_fmadd_ps(r, p, _mm256_set1_ps(1.0f));
    p = _mm256_fmadd_ps(r, p, _mm256_set1_ps(1.0f));
    /* 2^n in two factors, as n reaches -150 and 128; the first product is exact. */
    __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
    __m256i rest = _mm256_sub_epi32(whole, half), bias = _mm256_set1_epi32(127);
    __m256 first = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
    __m256 second = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
    __m256 result = _mm256_mul_ps(_mm256_mul_ps(p, first), second);
    return _mm256_blendv_ps(result, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}
#endif

#if defined(__AVX512F__)
static inline __m512 pllm_exp_avx512(__m512 x)
{
    x = _mm512_max_ps(_mm512_set1_ps(PLLM_EXP_MIN), _mm512_min_ps(_mm512_set1_ps(PLLM_EXP_MAX), x));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(PLLM_EXP_LOG2E)),
                                    _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(PLLM_EXP_LN2_HIGH), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(PLLM_EXP_LN2_LOW), r);
    __m512 p = _mm512_fmadd_ps(r, _mm512_set1_ps(PLLM_EXP_C7), _mm512_set1_ps(PLLM_EXP_C6));
    p = _mm512_fmadd_ps(r, p, _mm512_set1_ps(PLLM_EXP_C5));
    p = _mm512_fmadd_ps(r, p, _mm512_set1_ps(PLLM_EXP_C4));
    p = _mm512_fmadd_ps(r, p, _mm512_set1_ps(PLLM_EXP_C3));
    p = _mm512_fmadd_ps(r, p, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(r, p, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(r, p, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n); /* NaN in, NaN out */
}
#endif

#endif
