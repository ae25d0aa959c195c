/* sampling.h - how the next token is chosen from a row of logits.
 *
 * The choice is one function of the logits and of what stands below, with the same result on every
 * device: the tokens are put in order of their logits (of equals the lower id first), top_k keeps
 * the first k of them, top_p the fewest that have that part of the probability, and `random` picks
 * one, each with its probability at this temperature. A NaN is never chosen. */
#ifndef PAGEDLLM_SAMPLING_H
#define PAGEDLLM_SAMPLING_H

#include <stdint.h>

typedef struct pllm_sampling {
    float temperature; /* 0: the first in order, whatever else is said; up to 100 */
    float top_p;       /* 0 or 1: all */
    uint32_t top_k;    /* 0: all */
    uint32_t reserved; /* zero */
    uint64_t random;   /* 64 random bits, for this token alone */
} pllm_sampling;

#endif
