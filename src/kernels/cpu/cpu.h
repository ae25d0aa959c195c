/* cpu.h - what the versions of the CPU kernels share: their tables and the parts that are the
 * same in each. Contracts stand at the slots in kernels.h. */
#ifndef PLLM_KERNELS_CPU_CPU_H
#define PLLM_KERNELS_CPU_CPU_H

#include <math.h>
#include <string.h>
#include "kernels/kernels.h"

/* pack.c: moving bytes is the same everywhere. */
void pllm_pack(void *panels, pllm_dtype dtype, uint32_t n, uint32_t k, pllm_compute compute,
               const void *rows, uint64_t row_bytes, uint32_t panel_first, uint32_t panel_count);
void pllm_unpack_row(float *out, const pllm_linear *linear, uint32_t row);

/* linear_<version>.c; pllm_prepare_plain makes the F32 and BF16 forms, the same in each. */
void pllm_prepare_plain(pllm_activations *activations, uint32_t row, const float *x,
                        uint32_t forms);
#define PLLM_LINEAR(version)                                                                    \
    void pllm_prepare_##version(pllm_activations *activations, uint32_t row, const float *x,    \
                                uint32_t forms);                                                \
    void pllm_product_##version(                                                                \
        float *out, uint64_t out_stride, const pllm_activations *activations, uint32_t m_first, \
        uint32_t m_count, const pllm_linear *linear, uint32_t n_first, uint32_t n_count);
PLLM_LINEAR(reference)
PLLM_LINEAR(avx2)
PLLM_LINEAR(avx512)
#undef PLLM_LINEAR

/* The scale of a group and what x is multiplied by, from the bits of the largest |x|: as integers
 * NaN > infinity > any number. inverse is 0 where every a is 0. */
typedef struct pllm_group_scale {
    float scale, inverse;
} pllm_group_scale;

static inline pllm_group_scale pllm_group_scale_of(uint32_t largest_bits)
{
    pllm_group_scale none = {0.0f, 0.0f}, bad = {NAN, 0.0f};
    float largest;
    memcpy(&largest, &largest_bits, sizeof largest);
    if (largest_bits >= 0x7f800000) return bad;
    if (largest < 0x1p-100f) return none; /* the inverse would overflow */
    pllm_group_scale scale = {largest / (float)PLLM_ACTIVATION_MAX,
                              (float)PLLM_ACTIVATION_MAX / largest};
    return scale;
}

static inline const uint8_t *panel_at(const pllm_linear *linear, uint32_t panel)
{
    return (const uint8_t *)linear->panels + panel * linear->panel_bytes;
}

#endif
