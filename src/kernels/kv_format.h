/* kv_format.h - how 32 tokens of one layer's keys and values lie in memory.
 *
 * A block holds PLLM_BLOCK_TOKENS tokens of one layer, all KV heads; a slice is one head's part.
 *
 *   block:  slice of head 0 | slice of head 1 | ... | padding to 4 KiB
 *   slice, plain formats (f32, f16, bf16):   K [32 tokens][head_dim] | V [32 tokens][head_dim]
 *   slice, int8:   K u8 [head_dim][32 tokens]   | V u8 [32 tokens][head_dim]    | scales
 *   slice, int4:   K u4 [head_dim][32 tokens]   | V u4 [32 tokens][head_dim]    | scales
 *   scales, f16:   K scale [head_dim] | K minimum [head_dim] | V scale [32] | V minimum [32]
 *
 * Quantised: x = scale * q + minimum. Keys share a scale per channel of the block, because a few
 * channels of a key are large for every token; values share one per token (KIVI, arXiv:2402.02750).
 * Quantised keys lie channel by channel, so that a score is a sum of scaled rows with tokens in the
 * lanes: no horizontal sums, and the channel's scale multiplies q, not the keys.
 * Nibbles: in a key row of 16 bytes, byte i holds token i (low) and i + 16 (high); in a value row
 * of head_dim / 2 bytes, byte i holds channel i (low) and i + head_dim / 2 (high).
 *
 * The newest block of a sequence is open: written row by row in a plain format. Sealing turns 32
 * full rows into the KV format. Invariants: slices are multiples of 16 bytes; rows not yet written
 * may hold anything, NaN included, and no kernel's result depends on them. */
#ifndef PLLM_KERNELS_KV_FORMAT_H
#define PLLM_KERNELS_KV_FORMAT_H

#include <stdint.h>
#include "kernels/dtype.h"

enum {
    PLLM_BLOCK_TOKENS = 32,
    PLLM_CHUNK_TOKENS = 256,
    PLLM_CHUNK_BLOCKS = 8,
    PLLM_GROUP_MAX = 16,
    PLLM_HEAD_DIM_MAX = 256,
};

typedef struct pllm_kv_shape {
    pllm_dtype sealed, open; /* open: f32 if sealed is f32, bf16 if bf16, else f16 */
    uint32_t kv_heads, head_dim;
} pllm_kv_shape;

/* Errors: EINVAL (format no KV format, no heads, head_dim not a multiple of 8 in 8..256); then
 * *shape is untouched. */
int pllm_kv_shape_init(pllm_kv_shape *shape, pllm_dtype format, uint32_t kv_heads,
                       uint32_t head_dim);

/* which: shape->sealed or shape->open. Bytes of one head's slice; of a block, whole 4 KiB. */
uint64_t pllm_kv_slice_bytes(const pllm_kv_shape *shape, pllm_dtype which);
uint64_t pllm_kv_block_bytes(const pllm_kv_shape *shape, pllm_dtype which);

static inline const void *pllm_kv_slice(const pllm_kv_shape *shape, pllm_dtype which,
                                        const void *block, uint32_t kv_head)
{
    return (const uint8_t *)block + kv_head * pllm_kv_slice_bytes(shape, which);
}

/* One row as f32 [head_dim], read element by element: for the reference kernels and for tests. */
void pllm_kv_read_row(const pllm_kv_shape *shape, pllm_dtype which, const void *block,
                      uint32_t kv_head, int value, uint32_t row, float *out);

/* Where the parts of one quantised slice lie. bits: 8 or 4. */
typedef struct pllm_kv_quantised {
    uint64_t values, key_scale, key_min, value_scale, value_min; /* byte offsets; keys at 0 */
} pllm_kv_quantised;

static inline pllm_kv_quantised pllm_kv_quantised_layout(uint32_t head_dim, uint32_t bits)
{
    pllm_kv_quantised at;
    at.values = (uint64_t)PLLM_BLOCK_TOKENS * head_dim * bits / 8;
    at.key_scale = 2 * at.values;
    at.key_min = at.key_scale + 2 * (uint64_t)head_dim;
    at.value_scale = at.key_min + 2 * (uint64_t)head_dim;
    at.value_min = at.value_scale + 2 * PLLM_BLOCK_TOKENS;
    return at;
}

#endif
