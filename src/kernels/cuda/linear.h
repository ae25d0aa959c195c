/* linear.h - products with weights in device memory: decode (1 to 16 rows, straight from the
 * weights' own format, bound by memory) and prefill (many rows, bound by arithmetic).
 *
 * Rule 1: the bits of a row of the result depend on that row and the weights, never on how many
 * rows are multiplied together nor on how the grid is cut. Decode and prefill give different bits.
 *
 *   weights          decode                                  prefill
 *   F32, BF16        bf16 x bf16, f32 sums                   bf16 x bf16, f32 sums
 *   F16              f16 x f16 (x saturated), f32 sums       f16 x f16, f32 sums
 *   Q8_0, Q4_0, Q4_1 x in 15 bits a group of 32, exact       expanded to bf16 by tiles of rows
 *                    integer sums a group, f32 over groups
 *   any, compute_f32 f32 FMA chains                          f32 FMA chains
 *
 * Every k that a format can have works; the fast forms want k % 32 == 0 (decode) or % 8 (prefill),
 * others run as compute_f32 does.
 *
 * Launches only enqueue: no allocation, no waiting. Threads: one caller at a time per object; the
 * workspace is used by prefill launches, so these must be ordered with one another.
 * Errors: EINVAL with a sentence; EUNSUPPORTED from open without kernels; EDEVICE from a launch. */
#ifndef PLLM_KERNELS_CUDA_LINEAR_H
#define PLLM_KERNELS_CUDA_LINEAR_H

#include <stdint.h>
#include "device/device.h"
#include "kernels/dtype.h"

typedef struct pllm_cuda_linear pllm_cuda_linear;

/* n rows of row_bytes (at least pllm_cuda_matrix_row_bytes, a multiple of 16; data too), laid out
 * as linear_format.h says. A plain value. */
typedef struct pllm_cuda_matrix {
    pllm_dtype dtype;
    uint32_t n, k;
    pllm_va data;
    uint64_t row_bytes;
} pllm_cuda_matrix;

typedef enum pllm_cuda_epilogue {
    PLLM_CUDA_STORE = 0,
    PLLM_CUDA_ADD = 1,    /* out += */
    PLLM_CUDA_SWIGLU = 2, /* out = silu(matrix . x) * (second . x) */
} pllm_cuda_epilogue;

typedef struct pllm_cuda_product {
    const pllm_cuda_matrix *matrix, *second; /* second: SWIGLU only, same n, k, dtype, row_bytes */
    pllm_va x;
    pllm_dtype x_dtype;
    uint64_t x_stride;   /* elements */
    pllm_va norm_weight; /* decode only: RMSNorm of x first, weight f32 [k]; 0: none */
    float epsilon;
    pllm_va out;
    pllm_dtype out_dtype;
    uint64_t out_stride; /* elements */
    uint32_t rows;
    pllm_cuda_epilogue epilogue;
    uint32_t compute_f32; /* 1: f32 arithmetic throughout, no tensor cores */
    uint32_t dependent;   /* decode: may launch with programmatic dependence on the kernel before,
                             which must not write the matrices or norm_weight: they are read ahead */
} pllm_cuda_product;

/* Bytes of a packed row; 0: no such rows (a KV format, or k not whole blocks). */
uint64_t pllm_cuda_matrix_row_bytes(pllm_dtype dtype, uint32_t k);

/* workspace: device memory of workspace_bytes (at least pllm_cuda_linear_workspace_bytes(),
 * 256-byte aligned), borrowed. EINVAL, ENOMEM, EDEVICE, EUNSUPPORTED (built without kernels). */
uint64_t pllm_cuda_linear_workspace_bytes(void);
int pllm_cuda_linear_open(const pllm_context *context, pllm_device *device, pllm_va workspace,
                          uint64_t workspace_bytes, pllm_cuda_linear **linear_out);
void pllm_cuda_linear_close(pllm_cuda_linear *linear); /* its work has finished; NULL is fine */

/* Packs rows row_first .. of `to` from file_rows: a device copy of the file's rows, the first of
 * which is row_first, file_row_bytes apart (any alignment). */
int pllm_cuda_linear_pack(pllm_cuda_linear *linear, pllm_stream *stream, const pllm_cuda_matrix *to,
                          pllm_va file_rows, uint64_t file_row_bytes, uint32_t row_first,
                          uint32_t row_count);

/* x F32, out F32, rows >= 1 (more than 16: several launches). */
int pllm_cuda_linear_decode(pllm_cuda_linear *linear, pllm_stream *stream,
                            const pllm_cuda_product *product);

/* x and out F32, BF16 or F16; STORE, or ADD with out F32. Any rows >= 1. */
int pllm_cuda_linear_prefill(pllm_cuda_linear *linear, pllm_stream *stream,
                             const pllm_cuda_product *product);

/* For benches and tests: 0 leaves the choice to the launch. Only the last three change bits. */
typedef struct pllm_cuda_linear_tuning {
    uint32_t cluster;          /* CTAs that share one k: 1, 2, 4 or 8 */
    uint32_t tiles;            /* of 16 rows that each CTA finishes: 1 or 2 (256 threads each) */
    uint32_t ctas_per_sm;      /* how many run at once, before those of the next launch */
    uint32_t own;              /* 1: prefill without cuBLASLt */
    uint32_t candidate, asked; /* another choice of cuBLASLt's: see linear_blas.h */
    uint32_t kernel;           /* decode by 1: linear_decode.cu, 2: linear_stream.cu */
    uint32_t ring, early;      /* of the latter: groups on their way; those before x is read */
} pllm_cuda_linear_tuning;
void pllm_cuda_linear_tune(pllm_cuda_linear *linear, const pllm_cuda_linear_tuning *tuning);
/* What multiplies in prefill: "cuBLASLt 13.1.0" or "own". The object's storage. */
const char *pllm_cuda_linear_library(const pllm_cuda_linear *linear);

#endif
