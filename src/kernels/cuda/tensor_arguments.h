/* tensor_arguments.h - pieces of one tensor, as rows.c hands them to the kernels of tensor.cu. */
#ifndef PLLM_KERNELS_CUDA_TENSOR_ARGUMENTS_H
#define PLLM_KERNELS_CUDA_TENSOR_ARGUMENTS_H

#include <stdint.h>

enum {
    TENSOR_PIECES = 128, /* a launch; they travel as its argument, under 4 KiB */
    TENSOR_TILE = 16384, /* elements that a block sums at a time */
    TENSOR_THREADS = 512,
};

typedef struct tensor_pieces {
    uint32_t count, tiles; /* tiles: of all pieces */
    struct {
        uint64_t data, first, elements; /* f32; first: its index in the tensor, whole tiles */
    } piece[TENSOR_PIECES];
} tensor_pieces;

#endif
