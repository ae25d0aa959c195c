/* dtype.h - element formats of weights, activations and KV blocks, and their sizes.
 *
 * Block formats (GGUF's layouts, 32 elements a block, little-endian):
 *   Q8_0: f16 d; int8 q[32]             w = d * q               34 bytes
 *   Q4_0: f16 d; u8 q[16]               w = d * (nibble - 8)    18 bytes
 *   Q4_1: f16 d; f16 m; u8 q[16]        w = d * nibble + m      20 bytes
 * In Q4_*, byte i holds element i in its low nibble and element i + 16 in its high one.
 * INT8 and INT4 are KV formats only: see attention.h. */
#ifndef PLLM_KERNELS_DTYPE_H
#define PLLM_KERNELS_DTYPE_H

#include <stdint.h>

typedef enum pllm_dtype { /* append-only: numbers appear in spilled block headers */
                          PLLM_F32 = 0,
                          PLLM_F16 = 1,
                          PLLM_BF16 = 2,
                          PLLM_Q8_0 = 3,
                          PLLM_Q4_0 = 4,
                          PLLM_Q4_1 = 5,
                          PLLM_INT8 = 6, /* KV: keys per channel, values per token */
                          PLLM_INT4 = 7,
                          PLLM_FP8_E4M3 = 8, /* named so that files can be refused by name */
                          PLLM_FP8_E5M2 = 9,
                          PLLM_DTYPE_COUNT
} pllm_dtype;

/* "f32", "q4_1" and the like, static storage; "unknown" past the end. */
const char *pllm_dtype_name(pllm_dtype dtype);
/* Elements a block, 1 for plain formats; bytes a block. */
uint32_t pllm_dtype_block_elements(pllm_dtype dtype);
uint32_t pllm_dtype_block_bytes(pllm_dtype dtype);
/* Bytes of a row of k elements. EINVAL if k is not whole blocks or dtype has no rows;
 * ELIMIT on overflow. */
int pllm_dtype_row_bytes(pllm_dtype dtype, uint64_t k, uint64_t *bytes_out);

/* IEEE half and bfloat16, round to nearest even; NaN stays NaN. Readable reference versions. */
float pllm_f16_to_f32(uint16_t value);
uint16_t pllm_f32_to_f16(float value);
float pllm_bf16_to_f32(uint16_t value);
uint16_t pllm_f32_to_bf16(float value);

#endif
