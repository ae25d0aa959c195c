/* kernels.c - which version of the kernels this CPU runs.
 *
 * Asked of the CPU each time (a few loads): nothing is kept, so there is no mutable global. */
#include <stddef.h>
#include <string.h>
#include "kernels/cpu/cpu.h"
#include "kernels/elementwise.h"

static const pllm_kernels reference = {
    .name = "reference",
    .pack = pllm_pack,
    .unpack_row = pllm_unpack_row,
    .prepare = pllm_prepare_reference,
    .product = pllm_product_reference,
    .rms_norm = pllm_rms_norm_reference,
    .rotary = pllm_rotary_reference,
    .swiglu = pllm_swiglu_reference,
    .add = pllm_add_reference,
    .softmax = pllm_softmax_reference,
    .dot = pllm_dot_reference,
};

/* In order of speed. */
static const pllm_kernels *version_at(int index)
{
    switch (index) {
    case 0:
        return &reference;
    default:
        return NULL;
    }
}

const pllm_kernels *pllm_kernels_best(void)
{
    for (int i = 0;; i++)
        if (version_at(i)) return version_at(i);
}

const pllm_kernels *pllm_kernels_by_name(const char *name)
{
    for (int i = 0; i < 3; i++) {
        const pllm_kernels *kernels = version_at(i);
        if (kernels && strcmp(kernels->name, name) == 0) return kernels;
    }
    return NULL;
}
