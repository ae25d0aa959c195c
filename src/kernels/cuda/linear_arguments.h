/* linear_arguments.h - what the launches of linear hand to their kernels, for C and for CUDA. */
#ifndef PLLM_KERNELS_CUDA_LINEAR_ARGUMENTS_H
#define PLLM_KERNELS_CUDA_LINEAR_ARGUMENTS_H

#include <stdint.h>

enum {
    DECODE_SLICES = 8, /* k is cut into so many parts, whatever else; sums are in their order */
    DECODE_ROWS = 16,  /* rows of x at most; also rows of W a tile */
    DECODE_GROUP_UNITS = 4, /* a slice is whole groups of units (linear_format.h), F32: of 2 */
    DECODE_DEPTH = 8,       /* 16-byte loads a lane has in flight from each of its two rows */
    DECODE_CTAS_PLAIN = 2,  /* of 256 threads, on one SM; registers are allotted for so many */
    DECODE_CTAS_BLOCKS = 2,
    STREAM_HEAD_BYTES = 64 + 2 * DECODE_SLICES * DECODE_ROWS * 4, /* barriers and squares */
};

/* linear_decode.cu. A CTA of 256 T threads has 8 T warps. A cluster of C = 1 << cluster_shift CTAs
 * takes sets of C T tiles of 16 rows of W in turn; each CTA walks DECODE_SLICES / C slices of k of
 * all of them and adds up T tiles at the end. */
typedef struct decode_arguments {
    uint64_t matrix[2]; /* the second: SWIGLU */
    uint64_t row_bytes;
    uint64_t x, x_stride, norm_weight; /* f32; strides in elements */
    uint64_t out, out_stride;
    uint32_t n, k, rows;
    uint32_t units, scale_bytes; /* of a row of W */
    uint32_t matrices, epilogue;
    uint32_t cluster_shift;
    uint32_t x_row_bytes; /* of a converted row of x in shared memory, see decode_x_row_bytes */
    uint32_t x_blocks;    /* quantised: blocks of 32 of the CTA's share of k, at most */
    float epsilon;
    /* linear_stream.cu: groups of units that a warp has on their way; before x is read */
    uint32_t ring, early;
} decode_arguments;

/* linear_plain.cu */
typedef struct plain_arguments {
    uint64_t matrix[2];
    uint64_t row_bytes;
    uint64_t x, x_stride, norm_weight;
    uint64_t out, out_stride;
    uint32_t n, k, rows, scale_bytes;
    int32_t dtype, x_dtype, out_dtype;
    uint32_t epilogue;
    float epsilon;
} plain_arguments;

typedef struct pack_arguments {
    uint64_t to, to_row_bytes, from, from_row_bytes;
    uint32_t k, scale_bytes, units, row_first;
    int32_t dtype;
} pack_arguments;

typedef struct expand_arguments { /* packed rows to dense bf16 rows of k */
    uint64_t from, row_bytes, to;
    uint32_t k, scale_bytes, rows;
    uint32_t pieces; /* of a row: 16 bytes of quants each, or 8 elements of f32 */
    int32_t dtype;
} expand_arguments;

typedef struct convert_arguments { /* rows of x to dense rows of bf16, or f16 (saturated) */
    uint64_t from, from_stride, to;
    uint32_t k;
    int32_t from_dtype, to_dtype;
} convert_arguments;

/* linear_tile.cu: out [m, n] = x [m, k] . w [n, k], both bf16 or both f16 */
typedef struct tile_arguments {
    uint64_t x, x_stride, w, w_stride, out, out_stride; /* strides in elements */
    uint32_t m, n, k;
    int32_t out_dtype;
    uint32_t add;
} tile_arguments;

#endif
