/* kv_summary.h - what a block's keys are like, for choosing blocks without reading them.
 *
 * Of every 16 tokens of a block, each KV head and channel: the mean of the keys and their standard
 * deviation (of the 16, not of a sample). A query's score on such a run is at most about
 * q . mean + 2 |q| . deviation: blocks can be ranked by that without reading them. (Quest,
 * arXiv:2406.10774, ranks by each channel's bounds, which outliers widen.)
 *
 *   summary:  head 0: run 0: mean f16 [head_dim] | deviation f16 [head_dim] | run 1: ... | head 1
 * ...
 *
 * Made from the open form, when the block is sealed. Sums are in ascending order of tokens, each
 * operation rounded to f32, so that every device makes the same bits. A NaN or an infinite key
 * shows in its channel alone. */
#ifndef PLLM_KERNELS_KV_SUMMARY_H
#define PLLM_KERNELS_KV_SUMMARY_H

#include "kernels/kv_format.h"

enum { PLLM_SUMMARY_TOKENS = 16, PLLM_SUMMARY_RUNS = PLLM_BLOCK_TOKENS / PLLM_SUMMARY_TOKENS };

static inline uint64_t pllm_kv_summary_bytes(const pllm_kv_shape *shape) /* of one block */
{
    return (uint64_t)shape->kv_heads * PLLM_SUMMARY_RUNS * 2 * shape->head_dim * 2;
}

/* open: 32 full rows. summary: pllm_kv_summary_bytes. */
void pllm_kv_summarise(const pllm_kv_shape *shape, const void *open, void *summary);

#endif
