/* rows.h - the CUDA kernels for rows of activations: what stands between two matrix products.
 *
 * Rows are row-major; a stride is in elements; an address is a device address. Each call enqueues
 * one kernel, allocates nothing and waits for nothing, so all may be captured in a graph; what
 * changes from step to step (ids, positions, blocks) is read from device memory. A row's bits
 * depend on that row alone: not on how many there are, nor on the grid.
 * Speed: sizes, strides and addresses in whole 16 bytes take wide kernels; any others work too.
 * dependent: 1 launches with programmatic dependence on the kernel before (only where that kernel
 * is ours): its end and this one's start overlap. Weights and tables must then have been complete
 * before that kernel started.
 *
 * Errors of all: EINVAL (an argument, with a sentence), EDEVICE (the launch). */
#ifndef PLLM_KERNELS_CUDA_ROWS_H
#define PLLM_KERNELS_CUDA_ROWS_H

#include "device/cuda.h"
#include "kernels/cuda/linear.h"

typedef struct pllm_cuda_rows pllm_cuda_rows; /* the loaded kernels; read-only once open */

/* Borrows device. EUNSUPPORTED: this build has no CUDA kernels. EDEVICE, ENOMEM. */
int pllm_cuda_rows_open(const pllm_context *context, pllm_device *device,
                        pllm_cuda_rows **rows_out);
void pllm_cuda_rows_close(pllm_cuda_rows *o); /* NULL is fine */

/* out [rows][k] F32 = rows ids[i] of the table. An id past the table gives NaN. */
int pllm_cuda_embed(pllm_cuda_rows *o, pllm_stream *stream, const pllm_cuda_matrix *table,
                    pllm_va ids /* u32[rows] */, uint32_t rows, pllm_va out, uint64_t out_stride,
                    uint32_t dependent);

/* out row i = x row r / sqrt(mean(x^2) + epsilon) * weight, r = row_index[i], or i. */
int pllm_cuda_rms_norm(pllm_cuda_rows *o, pllm_stream *stream, pllm_va x /* F32 */,
                       uint64_t x_stride, pllm_va weight /* F32 [n] */, float epsilon,
                       pllm_va row_index /* u32[rows] or 0 */, uint32_t rows, uint32_t n,
                       pllm_va out, pllm_dtype out_dtype, uint64_t out_stride, uint32_t dependent);

/* out [rows][n] = silu(gate) * up; a row of gate_up is [gate n][up n]. With an F32 result the CPU
 * kernels' bits. out may be gate_up, with the same format and stride. */
int pllm_cuda_swiglu(pllm_cuda_rows *o, pllm_stream *stream, pllm_va gate_up, pllm_dtype dtype,
                     uint64_t stride, uint32_t rows, uint32_t n, pllm_va out, pllm_dtype out_dtype,
                     uint64_t out_stride, uint32_t dependent);

enum { PLLM_CUDA_NO_BLOCK = 0xffffffff };

typedef struct pllm_cuda_rotary {
    pllm_va qkv; /* row: [heads][head_dim], [kv_heads][head_dim], [kv_heads][head_dim] */
    pllm_dtype qkv_dtype;
    uint64_t qkv_stride;
    pllm_va positions;         /* u32[rows] */
    pllm_va inverse_frequency; /* f32[rotary_dims / 2] */
    uint32_t rows, heads, kv_heads, head_dim, rotary_dims, interleaved;
    pllm_va q_out; /* rotated, not scaled; may be qkv, with the same format and stride */
    pllm_dtype q_dtype;
    uint64_t q_stride;
    pllm_va blocks; /* in the open format of kv_format.h */
    uint64_t block_bytes;
    pllm_dtype block_dtype;
    /* u32[rows]: k and v of row i go to row positions[i] % 32 of block row_block[i] *
     * block_multiple + block_add; PLLM_CUDA_NO_BLOCK: nowhere */
    pllm_va row_block;
    uint32_t block_multiple, block_add, dependent;
} pllm_cuda_rotary;

/* Angles are exact to 1e-7 at any position. head_dim <= 256; rotary_dims even. */
int pllm_cuda_rotary_append(pllm_cuda_rows *o, pllm_stream *stream, const pllm_cuda_rotary *r);

/* ids_out u32[rows]: the index of the largest of n logits; the lowest of equals; NaN loses. */
int pllm_cuda_argmax(pllm_cuda_rows *o, pllm_stream *stream, pllm_va logits /* F32 */,
                     uint64_t stride, uint32_t rows, uint32_t n, pllm_va ids_out,
                     uint32_t dependent);

/* ids_out u32[rows]: the tokens that pllm_sample (kernels/sample.h) draws, n <= PLLM_SAMPLE_MAX.
 * samplings: a pllm_sampling a row, at 8 bytes. */
int pllm_cuda_sample(pllm_cuda_rows *o, pllm_stream *stream, pllm_va logits /* F32 */,
                     uint64_t stride, uint32_t rows, uint32_t n, pllm_va samplings, pllm_va ids_out,
                     uint32_t dependent);

/* Fills to's rows with random weights of the given standard deviation. They are rows row_first.. of
 * a whole: an element's number depends on the seed and on its place in the whole, so that a matrix
 * may be made in pieces. Plain formats: normal; quantised ones: see random.cu. */
int pllm_cuda_random(pllm_cuda_rows *o, pllm_stream *stream, const pllm_cuda_matrix *to,
                     uint64_t row_first, float deviation, uint64_t seed);

/* One long F32 tensor, in pieces that lie anywhere: for `pagedllm bench tensor`. */
enum { PLLM_CUDA_TILE = 16384 };
typedef struct pllm_cuda_piece {
    pllm_va data;             /* at 16 bytes */
    uint64_t first, elements; /* first: of the tensor, whole tiles; elements > 0, whole tiles
                                 but for the tensor's end */
} pllm_cuda_piece;
/* pieces: host memory, read before the call returns. */
int pllm_cuda_tensor_fill(pllm_cuda_rows *o, pllm_stream *stream, const pllm_cuda_piece *pieces,
                          uint32_t count, float deviation, uint64_t seed);
/* sums: double[tiles of the tensor] on the device; those of the pieces are written. */
int pllm_cuda_tensor_sum(pllm_cuda_rows *o, pllm_stream *stream, const pllm_cuda_piece *pieces,
                         uint32_t count, pllm_va sums);
/* total_out: one double, device or mapped host memory. */
int pllm_cuda_tensor_total(pllm_cuda_rows *o, pllm_stream *stream, pllm_va sums, uint64_t tiles,
                           pllm_va total_out);

#endif
