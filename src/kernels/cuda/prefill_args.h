/* prefill_args.h - what every prefill kernel gets, by value: one struct for the launcher (C) and
 * the kernels (CUDA C). */
#ifndef PLLM_KERNELS_CUDA_PREFILL_ARGS_H
#define PLLM_KERNELS_CUDA_PREFILL_ARGS_H

#include <stdint.h>

#ifdef __CUDACC__
#define PREFILL_ALIGN64 alignas(64)
#else
#define PREFILL_ALIGN64 _Alignas(64)
#endif

typedef struct prefill_args {
    uint64_t sealed, stage, table, items, q, out; /* device addresses */
    uint64_t sealed_bytes, stage_bytes;           /* of a block */
    uint64_t table_stride, q_stride, out_stride;  /* elements */
    uint32_t heads, kv_heads, group, head_dim;
    uint32_t item_count;
    uint32_t tiles; /* query tiles an item can touch, for the grid */
    uint32_t band;  /* heads whose tiles run together; divides heads */
    uint32_t distinct, out_dtype;
    uint32_t sealed_block_rows, stage_block_rows; /* rows of head_dim elements a block */
    uint32_t work_count, counter; /* where CTAs do several tiles: how many there are, and which of
                                   * the kernel's counters is this launch's */
    uint32_t reserved;
    float scale, scale_log2; /* scale_log2 = scale * log2(e) */
} prefill_args;

typedef struct prefill_tensor_map { /* a CUtensorMap, opaque */
    PREFILL_ALIGN64 uint8_t bytes[128];
} prefill_tensor_map;

#endif
