/* elementwise.h - the small operations of each version of the table; contracts in kernels.h.
 *
 * Sums over a row run in 16 lanes, lane l taking elements l, l + 16, ... by FMA, and then halve:
 * lane l + lane l + 8, then 4, 2, 1. Every version keeps this order, so every version gives the
 * same bits.  */
#ifndef PLLM_KERNELS_ELEMENTWISE_H
#define PLLM_KERNELS_ELEMENTWISE_H

#include <stdint.h>

#define PLLM_ELEMENTWISE(version)                                                                 \
    void pllm_rms_norm_##version(float *out, const float *x, const float *weight, uint32_t n,     \
                                 float epsilon);                                                  \
    void pllm_rotary_##version(float *x, uint32_t heads, uint32_t head_dim, uint32_t rotary_dims, \
                               const float *cosine, const float *sine, int interleaved);          \
    void pllm_swiglu_##version(float *out, const float *gate, const float *up, uint32_t n);       \
    void pllm_add_##version(float *x, const float *y, uint32_t n);                                \
    void pllm_softmax_##version(float *x, uint32_t n);                                            \
    float pllm_dot_##version(const float *x, const float *y, uint32_t n);

PLLM_ELEMENTWISE(reference)
PLLM_ELEMENTWISE(avx2)
PLLM_ELEMENTWISE(avx512)
#undef PLLM_ELEMENTWISE

#endif
