/* attention.h - attention over paged KV blocks, chunk by chunk, and the writing of those blocks.
 *
 * Attention goes by chunks of 256 tokens at absolute positions. For one chunk and one KV head a
 * kernel makes a partial result per query head: the largest score (max), the sum of exp(score -
 * max), and the output not yet divided by that sum. Partials are merged in ascending order of
 * chunks. One call serves all query heads of the KV head (the group), so that keys and values are
 * read and converted once for all of them.
 *
 * Rule: the bits of a query row's result depend only on its own q and on the keys and values it
 * sees; not on the other rows or heads of the call, on rows of a block beyond what it sees (which
 * may hold NaN), on threads, or on how a prompt was cut into calls. How: every score and every
 * output channel is one chain of operations in a fixed order, whatever is computed beside it.
 *
 * Threads: kernels are pure; give each thread its own scratch. All pointers to floats may be
 * unaligned except scratch (64 bytes). Blocks are 16-byte aligned. */
#ifndef PLLM_KERNELS_ATTENTION_H
#define PLLM_KERNELS_ATTENTION_H

#include "kernels/kv_format.h"

/* The keys one call attends: the first token_count (1..256) tokens of a chunk. Blocks are sealed,
 * the last one open if last_open. Tokens below skip are masked (a sliding window's edge); a block
 * of masked tokens only may be NULL. */
typedef struct pllm_kv_view {
    const void *blocks[PLLM_CHUNK_BLOCKS];
    uint32_t block_count; /* at least token_count / 32, rounded up */
    uint32_t last_open;   /* blocks[block_count - 1] is in the open format */
    uint32_t token_count, skip;
    uint32_t window; /* attend_prefill only: a row that sees tokens below n sees none below
                      * n - window; 0: no window */
    /* attend_decode only: the view this thread attends next with the same kv_head, so that its
     * first blocks can be prefetched; NULL: unknown. It does not change the result. */
    const struct pllm_kv_view *next;
} pllm_kv_view;

typedef struct pllm_attention_kernels {
    /* Writes row (0..31) of an open block. k, v: [kv_heads * head_dim]. */
    void (*append)(const pllm_kv_shape *shape, void *open_block, uint32_t row, const float *k,
                   const float *v);

    /* Turns an open block of 32 full rows into the sealed format. Every version gives the same
     * bits. The two do not overlap; for plain formats they may be the same block. */
    void (*seal)(const pllm_kv_shape *shape, void *sealed, const void *open);

    /* One query token. q: [group][head_dim], scaled by 1/sqrt(head_dim) already. Writes max and
     * sum [group], out [group][head_dim]. With every token masked: -inf, 0, zeros. */
    void (*attend_decode)(const pllm_kv_shape *shape, const pllm_kv_view *view, uint32_t kv_head,
                          const float *q, uint32_t group, float *max, float *sum, float *out,
                          void *scratch);

    /* 1..32 query rows whose positions lie in one block of 32. Row i has its group's q at
     * q + i * q_row_stride, [group][head_dim], scaled; it sees the first tokens_first_row + i
     * tokens of the view, at most token_count (tokens_first_row counts from the chunk's start, at
     * least 1, and may lie beyond the chunk). Merges the chunk into the running state max, sum
     * [rows][group] and out [rows][group][head_dim], which starts as -inf, 0, zeros; chunks
     * ascending. */
    void (*attend_prefill)(const pllm_kv_shape *shape, const pllm_kv_view *view, uint32_t kv_head,
                           const float *q, uint64_t q_row_stride, uint32_t group, uint32_t rows,
                           uint32_t tokens_first_row, float *max, float *sum, float *out,
                           void *scratch);

    /* Merges one head's partials of chunks 0..chunk_count-1, ascending, and normalises into out
     * [head_dim] (zeros if everything was masked). max, sum and partial_out are those of chunk 0;
     * chunk c's lie c * stride_between_chunks floats further, each. */
    void (*merge)(float *out, const float *max, const float *sum, const float *partial_out,
                  uint64_t stride_between_chunks, uint32_t chunk_count, uint32_t head_dim);

    /* out = state_out / sum (zeros if sum is 0); out may be state_out. */
    void (*finish)(float *out, const float *state_out, float sum, uint32_t head_dim);
} pllm_attention_kernels;

/* Scratch of one thread for any call above, 64-byte aligned. */
uint64_t pllm_attention_scratch_bytes(uint32_t head_dim);

extern const pllm_attention_kernels pllm_attention_reference;
extern const pllm_attention_kernels pllm_attention_avx2;
extern const pllm_attention_kernels pllm_attention_avx512;

#endif
