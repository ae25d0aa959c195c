/* linear_internal.h - the object behind linear.h, shared by its launches. */
#ifndef PLLM_KERNELS_CUDA_LINEAR_INTERNAL_H
#define PLLM_KERNELS_CUDA_LINEAR_INTERNAL_H

#include "device/cuda.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_arguments.h"
#include "kernels/cuda/linear_blas.h"

enum {
    LINEAR_EXPAND_BYTES = 32 << 20,  /* of a tile of weights, as bf16 */
    LINEAR_CONVERT_BYTES = 32 << 20, /* of rows of x, as bf16 or f16 */
    LINEAR_DTYPES = PLLM_Q4_1 + 1,
};

struct pllm_cuda_linear {
    const pllm_context *context;
    pllm_device *device;
    pllm_va workspace; /* | cuBLASLt's | tile of weights | rows of x | */
    pllm_cuda_attributes attributes;
    pllm_cuda_module *decode_module, *stream_module, *plain_module, *tile_module;
    pllm_cuda_function *decode[LINEAR_DTYPES][3]; /* for 2, 8 and 16 columns */
    pllm_cuda_function *stream[LINEAR_DTYPES];    /* more than 8 rows; where there are clusters */
    uint32_t clusters[4]; /* of 2, 4 and 8 CTAs, a CTA an SM: so many find a place at once */
    pllm_cuda_function *decode_f32, *prefill_f32, *pack, *expand, *convert;
    pllm_cuda_function *tile_bf16, *tile_f16;
    pllm_cuda_blas *blas; /* NULL: own kernels */
    pllm_cuda_linear_tuning tuning;
};

/* The kernels of decode products. */
int linear_decode_load(pllm_cuda_linear *linear);
/* EINVAL unless the product makes sense, for decode or for prefill. */
int linear_check(const pllm_cuda_product *product, int prefill);
int linear_is_plain(pllm_dtype dtype); /* F32, F16, BF16 */
/* Fills what the f32 kernels take. */
void linear_plain_arguments(plain_arguments *arguments, const pllm_cuda_product *product);

#endif
