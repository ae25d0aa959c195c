/* linear_prefill.c - products of many rows: bf16 or f16 on both sides, by cuBLASLt or by our own
 * tiles; what is not bf16 or f16 is made so in the workspace, a part at a time.
 *
 *   for rows of x that fit the workspace (all of them when x needs no conversion)
 *     convert them
 *     for tiles of rows of W (the whole of it when it needs no expansion)
 *       expand the tile, multiply
 *
 * The tiles of W depend on n, k and the format alone: they are part of the order of sums only in so
 * far as the library picks its algorithm by their shape. */
#include "base/context.h"
#include "kernels/cuda/linear_format.h"
#include "kernels/cuda/linear_internal.h"

enum { ROWS_OF_GRID_Y = 32768 };

static int prefill_f32(pllm_cuda_linear *l, pllm_stream *stream, const pllm_cuda_product *p)
{
    plain_arguments arguments;
    linear_plain_arguments(&arguments, p);
    void *parameters[] = {&arguments};
    pllm_cuda_grid grid = {
        .x = (p->matrix->n + 63) / 64, .y = (p->rows + 63) / 64, .z = 1, .threads = 256};
    return pllm_cuda_launch(l->device, stream, l->prefill_f32, &grid, parameters);
}

static int multiply(pllm_cuda_linear *l, pllm_stream *stream, const pllm_cuda_blas_product *b)
{
    if (l->blas && !l->tuning.own) {
        int status = pllm_cuda_blas_multiply(l->blas, stream, l->workspace, b);
        if (status != PLLM_EUNSUPPORTED) return status;
    }
    tile_arguments arguments = {
        .x = b->x,
        .x_stride = b->x_stride,
        .w = b->w,
        .w_stride = b->w_stride,
        .out = b->out,
        .out_stride = b->out_stride,
        .m = b->m,
        .n = b->n,
        .k = b->k,
        .out_dtype = b->out_dtype,
        .add = b->add,
    };
    void *parameters[] = {&arguments};
    pllm_cuda_grid grid = {
        .x = (b->m + 127) / 128, .y = (b->n + 127) / 128, .z = 1, .threads = 256};
    return pllm_cuda_launch(l->device, stream, b->dtype == PLLM_F16 ? l->tile_f16 : l->tile_bf16,
                            &grid, parameters);
}

static int expand(pllm_cuda_linear *l, pllm_stream *stream, const pllm_cuda_matrix *m,
                  uint32_t row_first, uint32_t row_count, pllm_va to)
{
    expand_arguments arguments = {
        .from = m->data + row_first * m->row_bytes,
        .row_bytes = m->row_bytes,
        .to = to,
        .k = m->k,
        .scale_bytes = pllm_packed_scale_bytes(m->dtype, m->k),
        .pieces = m->dtype == PLLM_F32 ? (m->k + 7) / 8 : pllm_packed_units(m->dtype, m->k) * 4,
        .rows = row_count,
        .dtype = m->dtype,
    };
    void *parameters[] = {&arguments};
    uint64_t threads = (uint64_t)row_count * arguments.pieces;
    pllm_cuda_grid grid = {.x = (uint32_t)((threads + 255) / 256), .y = 1, .z = 1, .threads = 256};
    return pllm_cuda_launch(l->device, stream, l->expand, &grid, parameters);
}

static int convert(pllm_cuda_linear *l, pllm_stream *stream, const pllm_cuda_product *p,
                   uint32_t row_first, uint32_t row_count, pllm_va to, pllm_dtype dtype)
{
    convert_arguments arguments = {
        .from = p->x + row_first * p->x_stride * (p->x_dtype == PLLM_F32 ? 4 : 2),
        .from_stride = p->x_stride,
        .to = to,
        .k = p->matrix->k,
        .from_dtype = p->x_dtype,
        .to_dtype = dtype,
    };
    void *parameters[] = {&arguments};
    pllm_cuda_grid grid = {.x = (p->matrix->k + 511) / 512, .y = row_count, .z = 1, .threads = 256};
    return pllm_cuda_launch(l->device, stream, l->convert, &grid, parameters);
}

/* Rows of k 16-bit elements that fit, as many as divide well. */
static uint32_t rows_that_fit(uint64_t bytes, uint32_t k)
{
    uint64_t rows = bytes / (2ull * k);
    if (rows > ROWS_OF_GRID_Y) rows = ROWS_OF_GRID_Y;
    return (uint32_t)(rows >= 128 ? rows / 128 * 128 : rows);
}

int pllm_cuda_linear_prefill(pllm_cuda_linear *l, pllm_stream *stream, const pllm_cuda_product *p)
{
    int status = linear_check(p, 1);
    if (status < 0) return status;
    const pllm_cuda_matrix *m = p->matrix;
    if (p->compute_f32 || m->k % 8) return prefill_f32(l, stream, p);

    pllm_dtype dtype = m->dtype == PLLM_F16 ? PLLM_F16 : PLLM_BF16;
    int expanded = m->dtype != dtype;
    int converted = p->x_dtype != dtype || p->x % 16 || p->x_stride % 8;
    pllm_va tile_at = l->workspace + PLLM_CUDA_BLAS_WORKSPACE;
    pllm_va x_at = tile_at + LINEAR_EXPAND_BYTES;
    uint32_t rows_most = converted ? rows_that_fit(LINEAR_CONVERT_BYTES, m->k) : p->rows;
    uint32_t tile_most = expanded ? rows_that_fit(LINEAR_EXPAND_BYTES, m->k) : m->n;
    uint64_t out_bytes = p->out_dtype == PLLM_F32 ? 4 : 2;

    for (uint32_t row = 0, rows; row < p->rows; row += rows) {
        rows = p->rows - row < rows_most ? p->rows - row : rows_most;
        if (converted) {
            status = convert(l, stream, p, row, rows, x_at, dtype);
            if (status < 0) return status;
        }
        for (uint32_t n = 0, count; n < m->n; n += count) {
            count = m->n - n < tile_most ? m->n - n : tile_most;
            if (expanded) {
                status = expand(l, stream, m, n, count, tile_at);
                if (status < 0) return status;
            }
            pllm_cuda_blas_product product = {
                .x = converted ? x_at : p->x + row * p->x_stride * 2,
                .x_stride = converted || p->x_stride < m->k ? m->k : p->x_stride,
                .w = expanded ? tile_at : m->data + n * m->row_bytes,
                .w_stride = expanded ? m->k : m->row_bytes / 2,
                .out = p->out + (row * p->out_stride + n) * out_bytes,
                .out_stride = p->out_stride < m->n ? m->n : p->out_stride,
                .m = rows,
                .n = count,
                .k = m->k,
                .dtype = dtype,
                .out_dtype = p->out_dtype,
                .add = p->epilogue == PLLM_CUDA_ADD,
                .candidate = l->tuning.candidate,
                .asked = l->tuning.asked,
            };
            status = multiply(l, stream, &product);
            if (status < 0) return status;
        }
    }
    return status;
}
