/* linear.h - y = W x for weights repacked into panels, and the prepared rows they multiply.
 *
 * Idea. Weights are repacked once, at load, into panels of 16 output rows, so that one vector
 * register holds the 16 rows side by side: no sums across lanes, contiguous loads, and one layout
 * for every instruction set. The arithmetic of one output is one chain over ascending k, so its
 * bits depend on nothing but its own weights and its own row of x: not on how many rows are
 * multiplied together, nor on how n is split.
 *
 *   panels:  | rows 0..15 | rows 16..31 | ...  ceil(n / 16) of them, missing rows are zero
 *
 *   a panel of a block format, in groups of 32 k (the file's blocks), G = k / 32 of them:
 *   | scales: G x [d: 16 x f16] or, Q4_1, G x [d: 16 x f16][m: 16 x f16], to a multiple of 64 B |
 *   | bytes:  G x V x 64, V = 4 for Q4_*, 8 for Q8_0                                          |
 *   where byte 4*r + j of the v-th 64 bytes is for row r
 *     Q4_*: the file's byte 4*v + j: k = 4*v + j in its low nibble, k = 16 + 4*v + j in its high
 *     Q8_0: the file's byte 4*v + j with its top bit turned over, that is q + 128, for k = 4*v + j
 *   a panel of F32, F16, BF16:          [k][16]     in the file's format
 *   a panel for compute BF16 (from F32, F16 or BF16): [k / 2][16][2] bf16, odd k padded by zero
 *
 * What multiplies what:
 *   weights           compute          products
 *   F32, F16, BF16    AUTO = F32       f32 FMA chain over k
 *   F32, F16, BF16    BF16             both sides bf16, f32 sums. With AVX-512 by its dot product
 *                                      instruction, elsewhere by an FMA chain: another result
 *                                      per instruction set
 *   Q8_0, Q4_0, Q4_1  AUTO = INTEGER   x quantised in groups of 32 to 15 bits, exact integer sums
 *                                      a group, then one f32 FMA chain over groups: the same bits
 *                                      from every version
 *   Q8_0, Q4_0, Q4_1  F32              weights dequantised in registers, f32 FMA chain over k
 *
 * Threads: everything here may be called from many threads on different output ranges. */
#ifndef PLLM_KERNELS_LINEAR_H
#define PLLM_KERNELS_LINEAR_H

#include <stdint.h>
#include "kernels/dtype.h"

typedef enum pllm_compute {
    PLLM_COMPUTE_AUTO = 0,
    PLLM_COMPUTE_F32 = 1,
    PLLM_COMPUTE_BF16 = 2,
    PLLM_COMPUTE_INTEGER = 3, /* what AUTO means for block formats */
} pllm_compute;

enum {
    PLLM_PANEL_ROWS = 16,
    PLLM_GROUP = 32,             /* elements of k that share a scale */
    PLLM_ACTIVATION_MAX = 16319, /* 127 * 128 + 63: quantised x lies in [-max, max] */
    PLLM_LINEAR_K_MAX = 1 << 24,
};

/* Packed weights of y = W x, W [n, k]. A plain value: copy it freely; it owns nothing. */
typedef struct pllm_linear {
    pllm_dtype dtype;     /* of the file */
    pllm_compute compute; /* resolved: never AUTO */
    uint32_t n, k;
    const void *panels;   /* 64-byte aligned */
    uint64_t panel_bytes; /* one panel of 16 rows; a multiple of 64 */
} pllm_linear;

/* Forms of an activation row. prepare() makes the forms asked for; a product reads the one that
 * pllm_linear_form names, so ask for the union over all matrices that read the row. */
enum {
    PLLM_FORM_F32 = 1,
    PLLM_FORM_INTEGER = 2,
    PLLM_FORM_BF16 = 4,
};

/* m_max rows of k, prepared for products. The memory is the caller's.
 * Integer form of a group of 32: x ~ scale * a, a integer in +-PLLM_ACTIVATION_MAX,
 * scale = largest |x| / PLLM_ACTIVATION_MAX; NaN if an element is NaN or infinite, so that bad
 * input is seen in the output; 0 if the largest |x| is below 2^-100. How a is laid out is private
 * to a version: rows must be prepared and multiplied by the same table. */
typedef struct pllm_activations {
    uint32_t m_max, k;
    uint32_t k_padded, group_count; /* k up to a multiple of 32; k_padded / 32 */
    float *f32;                     /* [m_max][k_padded], zeros past k */
    uint16_t *bf16;                 /* [m_max][k_padded], zeros past k */
    int8_t *quantised;              /* [m_max][group_count][64] */
    float *scale;                   /* [m_max][group_count] */
    float *scaled_sum;              /* [m_max][group_count]: scale * sum of a */
    int32_t *sum;                   /* [m_max][group_count]: sum of a */
} pllm_activations;

/* AUTO becomes what it means for dtype; anything else stays. */
pllm_compute pllm_compute_resolve(pllm_dtype dtype, pllm_compute compute);
const char *pllm_compute_name(pllm_compute compute);

/* PLLM_OK if such a product exists. EUNSUPPORTED (format, or compute for this format) or EINVAL
 * (n or k zero, too large, or k not whole blocks), with a sentence. */
int pllm_linear_check(pllm_dtype dtype, uint32_t n, uint32_t k, pllm_compute compute);
/* Bytes of all panels. The arguments must have passed pllm_linear_check. */
uint64_t pllm_linear_packed_bytes(pllm_dtype dtype, uint32_t n, uint32_t k, pllm_compute compute);
/* Fills a descriptor of panels that are, or will be, packed at the given place. */
void pllm_linear_place(pllm_linear *linear, pllm_dtype dtype, uint32_t n, uint32_t k,
                       pllm_compute compute, const void *panels);
/* The PLLM_FORM_* that a product with these weights reads. */
uint32_t pllm_linear_form(const pllm_linear *linear);

/* Memory for m_max rows of k in every form; the caller provides it, 64-byte aligned. */
uint64_t pllm_activations_bytes(uint32_t m_max, uint32_t k);
void pllm_activations_place(pllm_activations *activations, void *memory, uint32_t m_max,
                            uint32_t k);

/* Where things lie in a panel; used by packing and by every version of the product. */
uint64_t pllm_panel_scale_bytes(pllm_dtype dtype, uint32_t k); /* before the quants; 0 if plain */

#endif
