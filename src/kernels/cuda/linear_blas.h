/* linear_blas.h - cuBLASLt, loaded at run time, made to keep rule 1: one algorithm per shape and
 * types, chosen once for a fixed number of rows, without splitting k, used for every number of
 * rows.
 *
 * Threads: one caller at a time. Nothing here outlives pllm_cuda_blas_close. */
#ifndef PLLM_KERNELS_CUDA_LINEAR_BLAS_H
#define PLLM_KERNELS_CUDA_LINEAR_BLAS_H

#include <stddef.h>
#include "device/device.h"
#include "kernels/dtype.h"

typedef struct pllm_cuda_blas pllm_cuda_blas;

enum { PLLM_CUDA_BLAS_WORKSPACE = 32 << 20 };

/* out [m, n] (+)= x [m, k] . w [n, k]; x and w both BF16 or both F16; strides in elements */
typedef struct pllm_cuda_blas_product {
    pllm_va x, w, out;
    uint64_t x_stride, w_stride, out_stride;
    uint32_t m, n, k;
    pllm_dtype dtype, out_dtype;
    uint32_t add; /* out_dtype F32 */
    /* For benches; part of what is pinned. */
    uint32_t candidate; /* the how manieth of the library's proposals, from 0 */
    uint32_t asked;     /* the rows it is asked for; 0: as always */
} pllm_cuda_blas_product;

/* EUNSUPPORTED where there is no such library (or an unfit one); ENOMEM, EDEVICE. library: a file
 * name, NULL: libcublasLt.so.13 or .12. */
int pllm_cuda_blas_open(const pllm_context *context, pllm_device *device, const char *library,
                        pllm_cuda_blas **blas_out);
void pllm_cuda_blas_close(pllm_cuda_blas *blas);             /* NULL is fine */
const char *pllm_cuda_blas_name(const pllm_cuda_blas *blas); /* "cuBLASLt 13.1.0" */

/* Enqueues; workspace: PLLM_CUDA_BLAS_WORKSPACE bytes. EUNSUPPORTED, bare: no algorithm for it, or
 * not for this number of rows; nothing was enqueued. EDEVICE. */
int pllm_cuda_blas_multiply(pllm_cuda_blas *blas, pllm_stream *stream, pllm_va workspace,
                            const pllm_cuda_blas_product *product);

/* What we declare of the library's header ourselves; tests hold it against the real one. */
typedef struct blas_algorithm {
    uint64_t data[8];
} blas_algorithm;
typedef struct blas_result {
    blas_algorithm algorithm;
    size_t workspace_bytes;
    int state;
    float waves;
    int reserved[4];
} blas_result;
enum {
    BLAS_R_32F = 0,
    BLAS_R_16F = 2,
    BLAS_R_16BF = 14,
    BLAS_COMPUTE_32F = 68,
    BLAS_OP_T = 1,
    BLAS_DESC_TRANSA = 3,
    BLAS_PREFERENCE_WORKSPACE = 1,
    BLAS_PREFERENCE_REDUCTION = 3,
    BLAS_PREFERENCE_ALIGNMENT_A = 5, /* B, C, D: the next three */
    BLAS_ALGORITHM_SPLIT_K = 2,
    BLAS_ALGORITHM_REDUCTION = 3,
};

#endif
