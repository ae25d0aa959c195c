/* kernels.h - the table of tuned operations, one a version: "reference", "avx2", "avx512".
 *
 * Every slot is filled in every version. Operations are single-threaded functions over a range;
 * the engine splits ranges over threads. No operation allocates, fails or keeps state. A row's
 * result depends only on that row. Unless a slot says otherwise the versions give the same bits. */
#ifndef PLLM_KERNELS_KERNELS_H
#define PLLM_KERNELS_KERNELS_H

#include "kernels/attention.h"
#include "kernels/linear.h"

typedef struct pllm_kernels {
    const char *name;

    /* Packs panel_count panels from panel_first of W [n, k]. rows: the file's rows from row 0,
     * row_bytes apart, any alignment. panels: panel 0 of the whole matrix. */
    void (*pack)(void *panels, pllm_dtype dtype, uint32_t n, uint32_t k, pllm_compute compute,
                 const void *rows, uint64_t row_bytes, uint32_t panel_first, uint32_t panel_count);
    /* out [k]: one row of W, dequantised exactly (as packed: compute BF16 has rounded F32 and
     * F16). This is the embedding lookup in a tied matrix. */
    void (*unpack_row)(float *out, const pllm_linear *linear, uint32_t row);
    /* Makes the forms (PLLM_FORM_*) of row `row` from x [k]. */
    void (*prepare)(pllm_activations *activations, uint32_t row, const float *x, uint32_t forms);
    /* out[m * out_stride + n] = row m_first + m of the activations . row n of W, for m < m_count
     * and n_first <= n < n_first + n_count. n_first is a multiple of 16; n_count is too, or ends
     * at or before W's last row. Compute BF16 gives other bits in "avx512". */
    void (*product)(float *out, uint64_t out_stride, const pllm_activations *activations,
                    uint32_t m_first, uint32_t m_count, const pllm_linear *linear, uint32_t n_first,
                    uint32_t n_count);

    /* out = x / sqrt(mean(x^2) + epsilon) * weight. out may be x. */
    void (*rms_norm)(float *out, const float *x, const float *weight, uint32_t n, float epsilon);
    /* Rotates x [heads][head_dim] in place by cosine, sine [rotary_dims / 2]. Pairs are
     * (i, i + rotary_dims / 2), or (2i, 2i + 1) if interleaved; the rest is left alone. */
    void (*rotary)(float *x, uint32_t heads, uint32_t head_dim, uint32_t rotary_dims,
                   const float *cosine, const float *sine, int interleaved);
    /* out = silu(gate) * up. out may be gate or up. */
    void (*swiglu)(float *out, const float *gate, const float *up, uint32_t n);
    void (*add)(float *x, const float *y, uint32_t n); /* x += y */
    /* x = exp(x - max x) / sum. All -inf gives NaN, as does a NaN. */
    void (*softmax)(float *x, uint32_t n);
    float (*dot)(const float *x, const float *y, uint32_t n);

    const pllm_attention_kernels *attention; /* the same version's */
} pllm_kernels;

/* The fastest version this CPU runs; never NULL. */
const pllm_kernels *pllm_kernels_best(void);
/* By name; NULL if there is no such version or this CPU cannot run it. */
const pllm_kernels *pllm_kernels_by_name(const char *name);

#endif
