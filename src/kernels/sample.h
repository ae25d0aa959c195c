/* sample.h - a token drawn from a row of logits (pagedllm/sampling.h), on the CPU.
 *
 * With the weights of sample_weight.h, all in whole numbers:
 *
 *   order   by logit, the largest first; of equals the lowest id; 0 and -0 are equal
 *   top_k   the first k of those that weigh anything
 *   top_p   the shortest run from the first whose weight reaches floor(top_p * theirs), one at
 * least token   the first at which the weights up to it sum to more than random * the run's / 2^64
 *
 * kernels/cuda/sample.cu finds the same token by counting instead of sorting. */
#ifndef PLLM_KERNELS_SAMPLE_H
#define PLLM_KERNELS_SAMPLE_H

#include <pagedllm/sampling.h>

enum { PLLM_SAMPLE_MAX = 1 << 18 }; /* logits in a row, else weights could overflow */

typedef struct pllm_candidate {
    float logit;
    uint32_t id;
} pllm_candidate;

/* The index of the largest logit; the lowest of equals; a NaN loses; 0 if all are NaN. */
uint32_t pllm_argmax(const float *logits, uint32_t count);
/* scratch: room for count candidates; unused at temperature 0. */
uint32_t pllm_sample(const float *logits, uint32_t count, const pllm_sampling *sampling,
                     pllm_candidate *scratch);

#endif
