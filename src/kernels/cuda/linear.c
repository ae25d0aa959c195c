/* linear.c - opening, packing, and what both kinds of products check. */
#include <string.h>
#include "base/context.h"
#include "kernels/cuda/fatbin.h"
#include "kernels/cuda/linear_format.h"
#include "kernels/cuda/linear_internal.h"

enum { K_MAX = 1 << 24 };

uint64_t pllm_cuda_matrix_row_bytes(pllm_dtype dtype, uint32_t k)
{
    if ((uint32_t)dtype >= LINEAR_DTYPES || !k || k > K_MAX) return 0;
    if (k % pllm_dtype_block_elements(dtype)) return 0;
    return pllm_packed_row_bytes((int)dtype, k);
}

uint64_t pllm_cuda_linear_workspace_bytes(void)
{
    return (uint64_t)PLLM_CUDA_BLAS_WORKSPACE + LINEAR_EXPAND_BYTES + LINEAR_CONVERT_BYTES;
}

static int load_kernels(pllm_cuda_linear *l)
{
    int status = linear_decode_load(l);
    if (status >= 0) status = pllm_fatbin_load(l->device, "linear_plain", &l->plain_module);
    if (status >= 0) status = pllm_fatbin_load(l->device, "linear_tile", &l->tile_module);
    const struct {
        pllm_cuda_module *module;
        const char *name;
        pllm_cuda_function **function;
    } others[] = {
        {l->plain_module, "pllm_linear_decode_f32", &l->decode_f32},
        {l->plain_module, "pllm_linear_prefill_f32", &l->prefill_f32},
        {l->plain_module, "pllm_linear_pack", &l->pack},
        {l->plain_module, "pllm_linear_expand", &l->expand},
        {l->plain_module, "pllm_linear_convert", &l->convert},
        {l->tile_module, "pllm_linear_tile_bf16", &l->tile_bf16},
        {l->tile_module, "pllm_linear_tile_f16", &l->tile_f16},
    };
    for (size_t i = 0; status >= 0 && i < sizeof others / sizeof others[0]; i++)
        status = pllm_cuda_function_get(others[i].module, others[i].name, 0, others[i].function);
    return status;
}

int pllm_cuda_linear_open(const pllm_context *context, pllm_device *device, pllm_va workspace,
                          uint64_t workspace_bytes, pllm_cuda_linear **linear_out)
{
    *linear_out = NULL;
    if (workspace % 256 || workspace_bytes < pllm_cuda_linear_workspace_bytes())
        return pllm_fail(
            PLLM_EINVAL, 0,
            "linear needs a workspace of %llu bytes at a multiple of 256; give it that",
            (unsigned long long)pllm_cuda_linear_workspace_bytes());
    pllm_cuda_linear *l = pllm_alloc(context, sizeof *l);
    if (!l) return pllm_fail_memory("the state of linear", sizeof *l);
    l->context = context;
    l->device = device;
    l->workspace = workspace;
    l->attributes.struct_bytes = sizeof l->attributes;
    int status = pllm_cuda_attributes_get(device, &l->attributes);
    if (status >= 0) status = load_kernels(l);
    if (status >= 0) {
        status = pllm_cuda_blas_open(context, device, NULL, &l->blas);
        if (status == PLLM_EUNSUPPORTED) {
            pllm_log(context, PLLM_LOG_INFO, "prefill uses its own products: %s",
                     pllm_last_error()->text);
            pllm_error_clear();
            status = PLLM_OK;
        }
    }
    if (status < 0) {
        pllm_cuda_linear_close(l);
        return status;
    }
    *linear_out = l;
    return PLLM_OK;
}

void pllm_cuda_linear_close(pllm_cuda_linear *l)
{
    if (!l) return;
    pllm_cuda_blas_close(l->blas);
    pllm_cuda_module_close(l->tile_module);
    pllm_cuda_module_close(l->plain_module);
    pllm_cuda_module_close(l->stream_module);
    pllm_cuda_module_close(l->decode_module);
    pllm_free(l->context, l);
}

void pllm_cuda_linear_tune(pllm_cuda_linear *l, const pllm_cuda_linear_tuning *tuning)
{
    l->tuning = *tuning;
}

const char *pllm_cuda_linear_library(const pllm_cuda_linear *l)
{
    return l->blas && !l->tuning.own ? pllm_cuda_blas_name(l->blas) : "own";
}

static int check_matrix(const pllm_cuda_matrix *m)
{
    uint64_t bytes = pllm_cuda_matrix_row_bytes(m->dtype, m->k);
    if (!bytes || !m->n || m->row_bytes < bytes || m->row_bytes % 16 || m->data % 16 || !m->data)
        return pllm_fail(PLLM_EINVAL, 0,
                         "a %s matrix of %u x %u with rows of %llu bytes cannot be multiplied: "
                         "rows must be whole blocks, packed, at multiples of 16 bytes",
                         pllm_dtype_name(m->dtype), m->n, m->k, (unsigned long long)m->row_bytes);
    return PLLM_OK;
}

int linear_is_plain(pllm_dtype dtype)
{
    return dtype == PLLM_F32 || dtype == PLLM_F16 || dtype == PLLM_BF16;
}

int linear_check(const pllm_cuda_product *p, int prefill)
{
    int status = check_matrix(p->matrix);
    if (status < 0) return status;
    const pllm_cuda_matrix *m = p->matrix, *s = p->second;
    if (p->epilogue == PLLM_CUDA_SWIGLU && !prefill) {
        if (!s || s->n != m->n || s->k != m->k || s->dtype != m->dtype ||
            s->row_bytes != m->row_bytes)
            return pllm_fail(PLLM_EINVAL, 0, "SWIGLU needs two matrices of one kind and size");
        status = check_matrix(s);
        if (status < 0) return status;
    }
    const char *wrong = NULL;
    if (!p->rows || !p->x || !p->out) wrong = "rows, x and out must be given";
    if (!linear_is_plain(p->x_dtype) || !linear_is_plain(p->out_dtype))
        wrong = "x and out must be plain";
    if (p->rows > 1 && (p->x_stride < m->k || p->out_stride < m->n)) wrong = "rows overlap";
    if (prefill) {
        if (p->norm_weight) wrong = "prefill has no norm inside";
        if (p->epilogue != PLLM_CUDA_STORE && p->epilogue != PLLM_CUDA_ADD)
            wrong = "prefill stores or adds";
        if (p->epilogue == PLLM_CUDA_ADD && p->out_dtype != PLLM_F32)
            wrong = "only f32 can be added to";
    } else if (p->x_dtype != PLLM_F32 || p->out_dtype != PLLM_F32) {
        wrong = "decode takes and gives f32";
    }
    if (wrong) return pllm_fail(PLLM_EINVAL, 0, "this product is not possible: %s", wrong);
    return PLLM_OK;
}

int pllm_cuda_linear_pack(pllm_cuda_linear *l, pllm_stream *stream, const pllm_cuda_matrix *to,
                          pllm_va file_rows, uint64_t file_row_bytes, uint32_t row_first,
                          uint32_t row_count)
{
    int status = check_matrix(to);
    if (status < 0) return status;
    if (row_first > to->n || row_count > to->n - row_first)
        return pllm_fail(PLLM_EINVAL, 0, "rows %u to %llu are not in a matrix of %u", row_first,
                         (unsigned long long)row_first + row_count, to->n);
    if (!row_count) return PLLM_OK;
    pack_arguments arguments = {
        .to = to->data,
        .to_row_bytes = to->row_bytes,
        .from = file_rows,
        .from_row_bytes = file_row_bytes,
        .k = to->k,
        .scale_bytes = pllm_packed_scale_bytes(to->dtype, to->k),
        .units = pllm_packed_units(to->dtype, to->k),
        .row_first = row_first,
        .dtype = to->dtype,
    };
    void *parameters[] = {&arguments};
    pllm_cuda_grid grid = {.x = row_count, .y = 1, .z = 1, .threads = 256};
    return pllm_cuda_launch(l->device, stream, l->pack, &grid, parameters);
}

void linear_plain_arguments(plain_arguments *arguments, const pllm_cuda_product *p)
{
    const pllm_cuda_matrix *m = p->matrix;
    *arguments = (plain_arguments){
        .matrix = {m->data, p->epilogue == PLLM_CUDA_SWIGLU ? p->second->data : m->data},
        .row_bytes = m->row_bytes,
        .x = p->x,
        .x_stride = p->x_stride,
        .norm_weight = p->norm_weight,
        .out = p->out,
        .out_stride = p->out_stride,
        .n = m->n,
        .k = m->k,
        .rows = p->rows,
        .scale_bytes = pllm_packed_scale_bytes(m->dtype, m->k),
        .dtype = m->dtype,
        .x_dtype = p->x_dtype,
        .out_dtype = p->out_dtype,
        .epilogue = p->epilogue,
        .epsilon = p->epsilon,
    };
}
