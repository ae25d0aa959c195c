/* rotary_arguments.h - what rows.c hands to the kernels of rotary.cu: one struct for both. */
#ifndef PLLM_KERNELS_CUDA_ROTARY_ARGUMENTS_H
#define PLLM_KERNELS_CUDA_ROTARY_ARGUMENTS_H

#include <stdint.h>

typedef struct rotary_arguments {
    uint64_t qkv, q_out, blocks; /* device addresses */
    uint64_t positions, inverse_frequency, row_block;
    uint64_t qkv_stride, q_stride; /* elements */
    uint64_t block_bytes;
    int32_t qkv_dtype, q_dtype, block_dtype;
    uint32_t heads, kv_heads, head_dim, rotary_dims, interleaved;
    uint32_t block_multiple, block_add;
    uint32_t jobs; /* pieces of work of a row */
    uint32_t
        jobs_rotated; /* the first of them: those of one head of q or k times heads + kv_heads */
} rotary_arguments;

#endif
