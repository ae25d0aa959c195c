/* linear.c - sizes, checks and places of packed weights and prepared rows. Layout: linear.h. */
#include <assert.h>
#include "base/context.h"
#include "kernels/linear.h"

static uint64_t round_up(uint64_t value, uint64_t multiple)
{
    return (value + multiple - 1) / multiple * multiple;
}

static int is_block_format(pllm_dtype dtype)
{
    return dtype == PLLM_Q8_0 || dtype == PLLM_Q4_0 || dtype == PLLM_Q4_1;
}

static int is_plain_format(pllm_dtype dtype)
{
    return dtype == PLLM_F32 || dtype == PLLM_F16 || dtype == PLLM_BF16;
}

const char *pllm_compute_name(pllm_compute compute)
{
    switch (compute) {
    case PLLM_COMPUTE_AUTO:
        return "auto";
    case PLLM_COMPUTE_F32:
        return "f32";
    case PLLM_COMPUTE_BF16:
        return "bf16";
    case PLLM_COMPUTE_INTEGER:
        return "integer";
    }
    return "unknown";
}

pllm_compute pllm_compute_resolve(pllm_dtype dtype, pllm_compute compute)
{
    if (compute != PLLM_COMPUTE_AUTO) return compute;
    return is_block_format(dtype) ? PLLM_COMPUTE_INTEGER : PLLM_COMPUTE_F32;
}

int pllm_linear_check(pllm_dtype dtype, uint32_t n, uint32_t k, pllm_compute compute)
{
    if (!is_block_format(dtype) && !is_plain_format(dtype))
        return pllm_fail(PLLM_EUNSUPPORTED, 0,
                         "matrix products take weights in f32, f16, bf16, q8_0, q4_0 or q4_1, "
                         "not %s: convert the model to one of these",
                         pllm_dtype_name(dtype));
    switch (pllm_compute_resolve(dtype, compute)) {
    case PLLM_COMPUTE_F32:
        break;
    case PLLM_COMPUTE_BF16:
        if (is_plain_format(dtype)) break;
        return pllm_fail(PLLM_EUNSUPPORTED, 0,
                         "%s weights are computed in auto or f32, not in bf16: choose one of these",
                         pllm_dtype_name(dtype));
    case PLLM_COMPUTE_INTEGER:
        if (is_block_format(dtype)) break;
        return pllm_fail(PLLM_EUNSUPPORTED, 0,
                         "%s weights are computed in f32 or bf16, not in integers: choose one of "
                         "these",
                         pllm_dtype_name(dtype));
    default:
        return pllm_fail(PLLM_EINVAL, 0, "compute %d does not exist", (int)compute);
    }
    if (n == 0 || k == 0) return pllm_fail(PLLM_EINVAL, 0, "a matrix of %u x %u is empty", n, k);
    if (n > INT32_MAX || k > PLLM_LINEAR_K_MAX)
        return pllm_fail(PLLM_EINVAL, 0, "a matrix of %u x %u is over the limit of %d x %d", n, k,
                         INT32_MAX, PLLM_LINEAR_K_MAX);
    if (k % pllm_dtype_block_elements(dtype) != 0)
        return pllm_fail(PLLM_EINVAL, 0, "rows of %u elements are not whole blocks of %u in %s", k,
                         pllm_dtype_block_elements(dtype), pllm_dtype_name(dtype));
    return PLLM_OK;
}

uint64_t pllm_panel_scale_bytes(pllm_dtype dtype, uint32_t k)
{
    if (!is_block_format(dtype)) return 0;
    uint64_t group_bytes = (dtype == PLLM_Q4_1 ? 2 : 1) * PLLM_PANEL_ROWS * sizeof(uint16_t);
    return round_up(k / PLLM_GROUP * group_bytes, 64);
}

static uint64_t panel_bytes(pllm_dtype dtype, uint32_t k, pllm_compute compute)
{
    if (is_block_format(dtype))
        return pllm_panel_scale_bytes(dtype, k) +
               (uint64_t)k * PLLM_PANEL_ROWS / (dtype == PLLM_Q8_0 ? 1 : 2);
    uint64_t elements = (uint64_t)k * PLLM_PANEL_ROWS;
    if (compute == PLLM_COMPUTE_BF16) return round_up(k, 2) * PLLM_PANEL_ROWS * sizeof(uint16_t);
    return round_up(elements * pllm_dtype_block_bytes(dtype), 64);
}

uint64_t pllm_linear_packed_bytes(pllm_dtype dtype, uint32_t n, uint32_t k, pllm_compute compute)
{
    return round_up(n, PLLM_PANEL_ROWS) / PLLM_PANEL_ROWS * panel_bytes(dtype, k, compute);
}

void pllm_linear_place(pllm_linear *linear, pllm_dtype dtype, uint32_t n, uint32_t k,
                       pllm_compute compute, const void *panels)
{
    assert((uintptr_t)panels % 64 == 0);
    *linear = (pllm_linear){.dtype = dtype,
                            .compute = pllm_compute_resolve(dtype, compute),
                            .n = n,
                            .k = k,
                            .panels = panels,
                            .panel_bytes = panel_bytes(dtype, k, compute)};
}

uint32_t pllm_linear_form(const pllm_linear *linear)
{
    switch (linear->compute) {
    case PLLM_COMPUTE_BF16:
        return PLLM_FORM_BF16;
    case PLLM_COMPUTE_INTEGER:
        return PLLM_FORM_INTEGER;
    default:
        return PLLM_FORM_F32;
    }
}

/* Each array starts on 64 bytes; rows of the first three are multiples of 64 bytes too. */
uint64_t pllm_activations_bytes(uint32_t m_max, uint32_t k)
{
    pllm_activations activations;
    pllm_activations_place(&activations, NULL, m_max, k);
    uint64_t groups = (uint64_t)m_max * activations.group_count;
    return (uint64_t)(uintptr_t)activations.sum + round_up(groups * sizeof(int32_t), 64);
}

void pllm_activations_place(pllm_activations *activations, void *memory, uint32_t m_max, uint32_t k)
{
    assert((uintptr_t)memory % 64 == 0);
    uintptr_t at = (uintptr_t)memory;
    activations->m_max = m_max;
    activations->k = k;
    activations->group_count = (k + PLLM_GROUP - 1) / PLLM_GROUP;
    activations->k_padded = activations->group_count * PLLM_GROUP;
    uint64_t groups = (uint64_t)m_max * activations->group_count, elements = groups * PLLM_GROUP;
    activations->f32 = (float *)at;
    at += elements * sizeof(float);
    activations->bf16 = (uint16_t *)at;
    at += elements * sizeof(uint16_t);
    activations->quantised = (int8_t *)at;
    at += elements * 2;
    activations->scale = (float *)at;
    at += round_up(groups * sizeof(float), 64);
    activations->scaled_sum = (float *)at;
    at += round_up(groups * sizeof(float), 64);
    activations->sum = (int32_t *)at;
}
