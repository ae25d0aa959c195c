/* attention_arguments.h - what the attention kernels are started with, as C and CUDA see it.
 *
 * Only what stays the same from step to step lies in here by value; lengths, slots, tables and
 * waves are addresses, so that a launch can live in a graph. */
#ifndef PLLM_KERNELS_CUDA_ATTENTION_ARGUMENTS_H
#define PLLM_KERNELS_CUDA_ATTENTION_ARGUMENTS_H

#include <stdint.h>

/* Sizes in bytes unless named otherwise; addresses are device addresses; formats are pllm_dtype. */
typedef struct pllm_attend_arguments {
    uint64_t frames, frame_bytes, open, open_bytes;
    uint64_t q, q_stride; /* elements */
    uint64_t row_slot, row_length, table, table_stride, chunk_first, chunk_end;
    uint64_t partials;
    uint64_t out, out_stride; /* merge only, elements */
    uint32_t sealed_slice, open_slice;
    uint32_t layer, layer_count, chunk_max;
    uint32_t heads, kv_heads, group, head_tiles, head_dim, window;
    uint32_t sealed, open_dtype, out_dtype;
    float scale; /* of scores, in the log2 domain: scale * log2(e) */
} pllm_attend_arguments;

typedef struct pllm_seal_arguments {
    uint64_t from, from_bytes, to, to_bytes, pairs, table;
    uint32_t sealed, open_dtype, sealed_slice, open_slice, kv_heads, head_dim;
} pllm_seal_arguments;

#endif
