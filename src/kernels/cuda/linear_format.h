/* linear_format.h - how a row of a packed matrix lies in device memory; for C and for kernels.
 *
 * Idea. A row stands on its own (two matrices of one type and width, one after the other, are one
 * matrix) and is a multiple of 16 bytes. Plain formats are stored as the file has them. Block
 * formats are split into scales and quants, so that both are read with aligned vector loads:
 *
 *   | scales of all blocks of 32, zeros up to 64 B | quants in units of 64 B, the last padded |
 *
 *   scales  Q8_0, Q4_0: f16 d a block; Q4_1: f16 d, f16 m a block
 *   unit    what four neighbouring lanes read at once, 16 bytes each; lane t's 16 bytes are
 *     Q8_0  2 blocks: 8 bytes of each, the quants of k = 8t .. 8t + 7 in their order
 *     Q4_*  4 blocks: 4 bytes of each; byte j holds k = 8t + j in its low nibble, k = 8t + 4 + j in
 *           its high one. Q4_0: the nibble is q - 8 in two's complement; Q4_1: q as in the file
 *
 * Padding blocks have zero scales and zero quants. Everything here is arithmetic on sizes. */
#ifndef PLLM_KERNELS_CUDA_LINEAR_FORMAT_H
#define PLLM_KERNELS_CUDA_LINEAR_FORMAT_H

#include <stdint.h>
#include "kernels/dtype.h"

#ifdef __CUDACC__
#define PLLM_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define PLLM_HOST_DEVICE static inline
#endif

/* Blocks of one unit of 64 bytes: 2 or 4; 0 for plain formats. */
PLLM_HOST_DEVICE uint32_t pllm_packed_unit_blocks(int dtype)
{
    return dtype == PLLM_Q8_0 ? 2 : dtype == PLLM_Q4_0 || dtype == PLLM_Q4_1 ? 4 : 0;
}

PLLM_HOST_DEVICE uint32_t pllm_packed_units(int dtype, uint32_t k)
{
    uint32_t blocks = pllm_packed_unit_blocks(dtype);
    return blocks ? (k / 32 + blocks - 1) / blocks : 0;
}

/* Bytes of the scales at the start of a row: where its quants begin. */
PLLM_HOST_DEVICE uint32_t pllm_packed_scale_bytes(int dtype, uint32_t k)
{
    if (!pllm_packed_unit_blocks(dtype)) return 0;
    return (k / 32 * (dtype == PLLM_Q4_1 ? 4u : 2u) + 63) / 64 * 64;
}

/* Bytes of a row; 0 for a format that has no rows here. */
PLLM_HOST_DEVICE uint64_t pllm_packed_row_bytes(int dtype, uint32_t k)
{
    if (dtype == PLLM_F32) return ((uint64_t)k * 4 + 15) / 16 * 16;
    if (dtype == PLLM_F16 || dtype == PLLM_BF16) return ((uint64_t)k * 2 + 15) / 16 * 16;
    return pllm_packed_scale_bytes(dtype, k) + (uint64_t)pllm_packed_units(dtype, k) * 64;
}

/* Where in a row's quants the quant of element i is: the byte, and for Q4_* the nibble (1: high).
 */
PLLM_HOST_DEVICE uint32_t pllm_packed_quant(int dtype, uint32_t i, uint32_t *high_out)
{
    uint32_t block = i / 32, t = i % 32 / 8, r = i % 8;
    if (dtype == PLLM_Q8_0) {
        *high_out = 0;
        return block / 2 * 64 + t * 16 + block % 2 * 8 + r;
    }
    *high_out = r / 4;
    return block / 4 * 64 + t * 16 + block % 4 * 4 + r % 4;
}

#undef PLLM_HOST_DEVICE

#endif
