/* sample_weight.h - what a logit weighs when a token is drawn: one text for C and CUDA, one set of
 * bits.
 *
 *   weight = floor(exp((logit - best) / temperature) * 2^44); the best has 2^44, a NaN 0
 *
 * Weights are whole numbers, so their sums do not depend on an order: threads may add them as they
 * come, and still every device finds the same token. 2^18 tokens sum up to 2^62 at most. What is
 * less than 2^-44 times as likely as the best is never drawn.
 *
 * exp: x = n ln 2 + r, ln 2 in two parts (Cody and Waite), exp(r) by its Taylor polynomial of
 * degree 6, each operation rounded to f32 on its own (no FMA, which not every CPU has); the error
 * is 3e-7. x is never above 0, so nothing overflows. */
#ifndef PLLM_KERNELS_SAMPLE_WEIGHT_H
#define PLLM_KERNELS_SAMPLE_WEIGHT_H

#include <stdint.h>

#ifdef __CUDACC__
#define SAMPLE_FUNCTION static __device__ __forceinline__
#define SAMPLE_ADD(a, b) __fadd_rn(a, b)
#define SAMPLE_MULTIPLY(a, b) __fmul_rn(a, b)
#define SAMPLE_DIVIDE(a, b) __fdiv_rn(a, b)
#define SAMPLE_FROM_BITS(bits) __uint_as_float(bits)
#else /* compiled without contraction */
#include <string.h>
#define SAMPLE_FUNCTION static inline
#define SAMPLE_ADD(a, b) ((a) + (b))
#define SAMPLE_MULTIPLY(a, b) ((a) * (b))
#define SAMPLE_DIVIDE(a, b) ((a) / (b))
#define SAMPLE_FROM_BITS(bits) sample_from_bits(bits)
static inline float sample_from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
#endif

#define SAMPLE_UNIT_BITS 44
#define SAMPLE_LEAST (-31.0f) /* what lies below weighs nothing */
#define SAMPLE_BINS 2048      /* of 1/64 of x */

/* The logarithm of its share of the best's probability: <= 0, or NaN. */
SAMPLE_FUNCTION float sample_exponent(float logit, float best, float temperature)
{
    if (logit == best) return 0.0f; /* infinities too */
    return SAMPLE_DIVIDE(SAMPLE_ADD(logit, -best), temperature);
}

SAMPLE_FUNCTION uint64_t sample_weight(float x)
{
    if (!(x > SAMPLE_LEAST)) return 0;
    int n = (int)SAMPLE_ADD(SAMPLE_MULTIPLY(x, 0x1.715476p+0f), -0.5f); /* -45 to 0 */
    float whole = (float)n;
    float r = SAMPLE_ADD(x, -SAMPLE_MULTIPLY(whole, 0x1.62e4p-1f)); /* exact: 15 bits times 6 */
    r = SAMPLE_ADD(r, -SAMPLE_MULTIPLY(whole, 0x1.7f7d1cp-20f));
    float p = SAMPLE_ADD(SAMPLE_MULTIPLY(r, 0x1.6c16c2p-10f), 0x1.111112p-7f);
    p = SAMPLE_ADD(SAMPLE_MULTIPLY(r, p), 0x1.555556p-5f);
    p = SAMPLE_ADD(SAMPLE_MULTIPLY(r, p), 0x1.555556p-3f);
    p = SAMPLE_ADD(SAMPLE_MULTIPLY(r, p), 0.5f);
    p = SAMPLE_ADD(SAMPLE_MULTIPLY(r, p), 1.0f);
    p = SAMPLE_ADD(SAMPLE_MULTIPLY(r, p), 1.0f);
    float scale = SAMPLE_FROM_BITS((uint32_t)(127 + SAMPLE_UNIT_BITS + n) << 23);
    return (uint64_t)SAMPLE_MULTIPLY(p, scale); /* the product is exact */
}

/* Of a token that weighs something: rises as the logit falls. */
SAMPLE_FUNCTION uint32_t sample_bin(float x)
{
    return (uint32_t)SAMPLE_MULTIPLY(x, -64.0f);
}

/* The weight that top_p keeps of a total: at least 1, at most the total. */
SAMPLE_FUNCTION uint64_t sample_part(uint64_t total, float top_p)
{
    if (!(top_p > 0.0f && top_p < 1.0f)) return total;
    uint64_t fraction = (uint64_t)SAMPLE_MULTIPLY(top_p, 0x1p32f);
    uint64_t part = (total >> 32) * fraction + ((total & 0xffffffffu) * fraction >> 32);
    return part ? part : 1;
}

#endif
