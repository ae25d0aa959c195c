/* lanes16.h - sixteen f32 lanes: one AVX-512 register or two AVX2 ones.
 *
 * The width of a panel and of every reduction, so that code written once over v16 gives the same
 * bits under both instruction sets. Only files named *_avx2.c and *_avx512.c include this. */
#ifndef PLLM_KERNELS_CPU_LANES16_H
#define PLLM_KERNELS_CPU_LANES16_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#include "kernels/cpu/exp.h"

#define INLINE static inline __attribute__((always_inline))
/* A TILE is inlined with constants for its shape and format, and its loops unrolled, so that its
 * arrays become registers: dozens of copies. Under sanitizers, whose checks would make compilers
 * take minutes over them, it is one function with loops. */
#if defined(PLLM_SANITIZED)
#define TILE static __attribute__((noinline))
#else
#define TILE INLINE
#endif
#if defined(PLLM_SANITIZED) && defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(disable)")
#elif defined(PLLM_SANITIZED)
#define UNROLL _Pragma("GCC unroll 1")
#elif defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

#if defined(__AVX512F__)

typedef __m512 v16;

INLINE v16 v16_set1(float x)
{
    return _mm512_set1_ps(x);
}
INLINE v16 v16_load(const void *p)
{
    return _mm512_loadu_ps(p);
}
INLINE void v16_store(float *p, v16 x)
{
    _mm512_storeu_ps(p, x);
}
INLINE v16 v16_add(v16 x, v16 y)
{
    return _mm512_add_ps(x, y);
}
INLINE v16 v16_sub(v16 x, v16 y)
{
    return _mm512_sub_ps(x, y);
}
INLINE v16 v16_mul(v16 x, v16 y)
{
    return _mm512_mul_ps(x, y);
}
INLINE v16 v16_div(v16 x, v16 y)
{
    return _mm512_div_ps(x, y);
}
INLINE v16 v16_max(v16 x, v16 y)
{
    return _mm512_max_ps(x, y);
} /* y if either is NaN */
INLINE v16 v16_fma(v16 x, v16 y, v16 z)
{
    return _mm512_fmadd_ps(x, y, z);
}
INLINE v16 v16_negate(v16 x)
{
    return _mm512_castsi512_ps(
        _mm512_xor_si512(_mm512_castps_si512(x), _mm512_set1_epi32((int)0x80000000)));
}
INLINE v16 v16_exp(v16 x)
{
    return pllm_exp_avx512(x);
}
INLINE v16 v16_load_f16(const void *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256(p));
}
INLINE v16 v16_load_bf16(const void *p)
{
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
/* Of 16 pairs of bf16: the first (odd = 0) or the second of each. */
INLINE v16 v16_load_bf16_pair(const void *p, int odd)
{
    __m512i pairs = _mm512_loadu_si512(p);
    if (odd) return _mm512_castsi512_ps(_mm512_andnot_si512(_mm512_set1_epi32(0xffff), pairs));
    return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
}
/* Of 16 little-endian u32: (u32 >> shift) & mask, minus offset, as f32. */
INLINE v16 v16_load_bits(const void *p, int shift, int mask, int offset)
{
    __m512i bits = _mm512_srli_epi32(_mm512_loadu_si512(p), (unsigned)shift);
    bits = _mm512_and_si512(bits, _mm512_set1_epi32(mask));
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(bits, _mm512_set1_epi32(offset)));
}
INLINE v16 v16_load_first(const float *p, uint32_t count, float rest)
{
    return _mm512_mask_loadu_ps(_mm512_set1_ps(rest), (__mmask16)((1u << count) - 1), p);
}
INLINE void v16_store_first(float *p, uint32_t count, v16 x)
{
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << count) - 1), x);
}
INLINE __m256 v16_low(v16 x)
{
    return _mm512_castps512_ps256(x);
}
INLINE __m256 v16_high(v16 x)
{
    return _mm512_extractf32x8_ps(x, 1);
}

#else

typedef struct v16 {
    __m256 low, high;
} v16;

INLINE v16 v16_of(__m256 low, __m256 high)
{
    v16 x = {low, high};
    return x;
}
INLINE v16 v16_of_bits(__m256i low, __m256i high)
{
    return v16_of(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high));
}
INLINE __m256i load_bits(const void *p)
{
    return _mm256_loadu_si256(p);
}
INLINE __m128i load_half_bits(const void *p)
{
    return _mm_loadu_si128(p);
}

INLINE v16 v16_set1(float x)
{
    return v16_of(_mm256_set1_ps(x), _mm256_set1_ps(x));
}
INLINE v16 v16_load(const void *p)
{
    return v16_of(_mm256_loadu_ps(p), _mm256_loadu_ps((const float *)p + 8));
}
INLINE void v16_store(float *p, v16 x)
{
    _mm256_storeu_ps(p, x.low);
    _mm256_storeu_ps(p + 8, x.high);
}
#define PAIRWISE(name, operation)                                          \
    INLINE v16 name(v16 x, v16 y)                                          \
    {                                                                      \
        return v16_of(operation(x.low, y.low), operation(x.high, y.high)); \
    }
PAIRWISE(v16_add, _mm256_add_ps)
PAIRWISE(v16_sub, _mm256_sub_ps)
PAIRWISE(v16_mul, _mm256_mul_ps)
PAIRWISE(v16_div, _mm256_div_ps)
PAIRWISE(v16_max, _mm256_max_ps) /* y if either is NaN */
#undef PAIRWISE
INLINE v16 v16_fma(v16 x, v16 y, v16 z)
{
    return v16_of(_mm256_fmadd_ps(x.low, y.low, z.low), _mm256_fmadd_ps(x.high, y.high, z.high));
}
INLINE v16 v16_negate(v16 x)
{
    __m256 sign = _mm256_set1_ps(-0.0f);
    return v16_of(_mm256_xor_ps(x.low, sign), _mm256_xor_ps(x.high, sign));
}
INLINE v16 v16_exp(v16 x)
{
    return v16_of(pllm_exp_avx2(x.low), pllm_exp_avx2(x.high));
}
INLINE v16 v16_load_f16(const void *p)
{
    return v16_of(_mm256_cvtph_ps(load_half_bits(p)),
                  _mm256_cvtph_ps(load_half_bits((const uint16_t *)p + 8)));
}
INLINE v16 v16_load_bf16(const void *p)
{
    __m256i low = _mm256_cvtepu16_epi32(load_half_bits(p));
    __m256i high = _mm256_cvtepu16_epi32(load_half_bits((const uint16_t *)p + 8));
    return v16_of_bits(_mm256_slli_epi32(low, 16), _mm256_slli_epi32(high, 16));
}
/* Of 16 pairs of bf16: the first (odd = 0) or the second of each. */
INLINE v16 v16_load_bf16_pair(const void *p, int odd)
{
    __m256i low = load_bits(p), high = load_bits((const uint32_t *)p + 8);
    if (!odd) return v16_of_bits(_mm256_slli_epi32(low, 16), _mm256_slli_epi32(high, 16));
    __m256i mask = _mm256_set1_epi32((int)0xffff0000);
    return v16_of_bits(_mm256_and_si256(low, mask), _mm256_and_si256(high, mask));
}
/* Of 16 little-endian u32: (u32 >> shift) & mask, minus offset, as f32. */
INLINE __m256 bits_to_f32(__m256i bits, int shift, int mask, int offset)
{
    bits = _mm256_and_si256(_mm256_srli_epi32(bits, shift), _mm256_set1_epi32(mask));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(bits, _mm256_set1_epi32(offset)));
}
INLINE v16 v16_load_bits(const void *p, int shift, int mask, int offset)
{
    return v16_of(bits_to_f32(load_bits(p), shift, mask, offset),
                  bits_to_f32(load_bits((const uint32_t *)p + 8), shift, mask, offset));
}
INLINE v16 v16_load_first(const float *p, uint32_t count, float rest)
{
    if (count == 16) return v16_load(p);
    float lanes[16];
    for (int l = 0; l < 16; l++) lanes[l] = rest;
    memcpy(lanes, p, count * sizeof *p);
    return v16_load(lanes);
}
INLINE void v16_store_first(float *p, uint32_t count, v16 x)
{
    if (count == 16) {
        v16_store(p, x);
        return;
    }
    float lanes[16];
    v16_store(lanes, x);
    memcpy(p, lanes, count * sizeof *p);
}
INLINE __m256 v16_low(v16 x)
{
    return x.low;
}
INLINE __m256 v16_high(v16 x)
{
    return x.high;
}

#endif

/* Lane l + lane l + 8, then 4, 2, 1: the order elementwise.h fixes. */
INLINE float v16_sum(v16 x)
{
    __m256 eight = _mm256_add_ps(v16_low(x), v16_high(x));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

INLINE float v16_largest(v16 x)
{
    __m256 eight = _mm256_max_ps(v16_low(x), v16_high(x));
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

#endif
