/* rows.c - launches of the row kernels: checks, the choice between wide and any, and the grid.
 *
 * The choice may depend on sizes and addresses, never on the number of rows, where versions could
 * differ in a sum (norm.cu: they do not). Threads: a pllm_cuda_rows is constant once open. */
#include "kernels/cuda/rows.h"
#include <string.h>
#include "base/context.h"
#include "kernels/cuda/fatbin.h"
#include "kernels/cuda/linear_format.h"
#include "kernels/cuda/rotary_arguments.h"
#include "kernels/cuda/tensor_arguments.h"
#include "kernels/sample.h"

typedef enum row_kernel {
    EMBED,
    NORM_2,
    NORM_4,
    NORM_8,
    NORM_ANY,
    SWIGLU_WIDE,
    SWIGLU_ANY,
    ROTARY_WIDE,
    ROTARY_ANY,
    ARGMAX,
    SAMPLE,
    RANDOM_WIDE,
    RANDOM_ANY,
    RANDOM_QUANTISED,
    TENSOR_FILL,
    TENSOR_SUM,
    TENSOR_TOTAL,
    ROW_KERNELS,
} row_kernel;

static const struct {
    const char *file, *name; /* of one file: neighbours */
} row_kernels[ROW_KERNELS] = {
    [EMBED] = {"embed", "pllm_embed"},
    [NORM_2] = {"norm", "pllm_norm_2"},
    [NORM_4] = {"norm", "pllm_norm_4"},
    [NORM_8] = {"norm", "pllm_norm_8"},
    [NORM_ANY] = {"norm", "pllm_norm_any"},
    [SWIGLU_WIDE] = {"swiglu", "pllm_swiglu_wide"},
    [SWIGLU_ANY] = {"swiglu", "pllm_swiglu_any"},
    [ROTARY_WIDE] = {"rotary", "pllm_rotary_wide"},
    [ROTARY_ANY] = {"rotary", "pllm_rotary_any"},
    [ARGMAX] = {"argmax", "pllm_argmax"},
    [SAMPLE] = {"sample", "pllm_sample"},
    [RANDOM_WIDE] = {"random", "pllm_random_wide"},
    [RANDOM_ANY] = {"random", "pllm_random_any"},
    [RANDOM_QUANTISED] = {"random", "pllm_random_quantised"},
    [TENSOR_FILL] = {"tensor", "pllm_tensor_fill"},
    [TENSOR_SUM] = {"tensor", "pllm_tensor_sum"},
    [TENSOR_TOTAL] = {"tensor", "pllm_tensor_total"},
};

enum { BLOCK = 256, ROTARY_BLOCK = 128, SWIGLU_FEW = 1 << 17, ROW_FILES = 8, GRID_Y_MAX = 65535 };

struct pllm_cuda_rows {
    const pllm_context *context;
    pllm_device *device;
    pllm_cuda_attributes attributes;
    pllm_cuda_module *modules[ROW_FILES];
    pllm_cuda_function *functions[ROW_KERNELS];
};

static int load(pllm_cuda_rows *o)
{
    const char *file = "";
    uint32_t modules = 0;
    o->attributes.struct_bytes = sizeof o->attributes;
    int status = pllm_cuda_attributes_get(o->device, &o->attributes);
    for (int i = 0; status == PLLM_OK && i < ROW_KERNELS; i++) {
        if (i == 0 || strcmp(file, row_kernels[i].file) != 0) {
            file = row_kernels[i].file;
            status = pllm_fatbin_load(o->device, file, &o->modules[modules]);
            if (status < 0) break;
            modules++;
        }
        status = pllm_cuda_function_get(o->modules[modules - 1], row_kernels[i].name, 0,
                                        &o->functions[i]);
    }
    return status;
}

int pllm_cuda_rows_open(const pllm_context *context, pllm_device *device, pllm_cuda_rows **rows_out)
{
    *rows_out = NULL;
    pllm_cuda_rows *o = pllm_alloc_array(context, 1, sizeof *o);
    if (!o) return pllm_fail_memory("row kernels", sizeof *o);
    *o = (pllm_cuda_rows){.context = context, .device = device};
    int status = load(o);
    if (status < 0) {
        pllm_cuda_rows_close(o);
        return status;
    }
    *rows_out = o;
    return PLLM_OK;
}

void pllm_cuda_rows_close(pllm_cuda_rows *o)
{
    if (!o) return;
    for (int i = ROW_FILES - 1; i >= 0; i--)
        if (o->modules[i]) pllm_cuda_module_close(o->modules[i]);
    pllm_free(o->context, o);
}

/* ---- checks ---- */

static int is_plain(pllm_dtype dtype)
{
    return dtype == PLLM_F32 || dtype == PLLM_F16 || dtype == PLLM_BF16;
}

static int fail_dtype(const char *what, pllm_dtype dtype)
{
    return pllm_fail(PLLM_EINVAL, 0, "%s of format %s: use f32, f16 or bf16", what,
                     pllm_dtype_name(dtype));
}

static int fail_stride(const char *what, uint64_t stride, uint64_t least)
{
    return pllm_fail(PLLM_EINVAL, 0, "%s of stride %llu, but a row has %llu elements", what,
                     (unsigned long long)stride, (unsigned long long)least);
}

/* Rows that can be read and written in sixteen bytes. */
static int is_wide(pllm_va address, pllm_dtype dtype, uint64_t stride)
{
    return address % 16 == 0 && stride * pllm_dtype_block_bytes(dtype) % 16 == 0;
}

static int check_matrix(const pllm_cuda_matrix *matrix)
{
    uint64_t least = pllm_packed_row_bytes((int)matrix->dtype, matrix->k);
    uint32_t elements = pllm_dtype_block_elements(matrix->dtype);
    if (least == 0 || elements == 0 || matrix->k % elements != 0)
        return pllm_fail(PLLM_EINVAL, 0, "rows of %u elements in format %s are no packed matrix",
                         matrix->k, pllm_dtype_name(matrix->dtype));
    if (matrix->row_bytes < least || matrix->row_bytes % 16 != 0 || matrix->data % 16 != 0)
        return pllm_fail(PLLM_EINVAL, 0,
                         "a packed row of %llu bytes at %llx: it takes %llu, and lies at 16 bytes",
                         (unsigned long long)matrix->row_bytes, (unsigned long long)matrix->data,
                         (unsigned long long)least);
    return PLLM_OK;
}

static uint32_t blocks_for(uint64_t work, uint32_t each)
{
    return (uint32_t)((work + each - 1) / each);
}

static int launch(pllm_cuda_rows *o, pllm_stream *stream, row_kernel kernel, pllm_cuda_grid grid,
                  void **arguments)
{
    if (grid.y == 0) grid.y = 1;
    grid.z = 1;
    return pllm_cuda_launch(o->device, stream, o->functions[kernel], &grid, arguments);
}

/* Blocks of rows * blocks_per_row: the grid's x reaches 2^31 - 1. */
static int check_grid(uint32_t rows, uint32_t blocks_per_row)
{
    if ((uint64_t)rows * blocks_per_row <= INT32_MAX) return PLLM_OK;
    return pllm_fail(PLLM_EINVAL, 0, "%u rows are more than one launch can take", rows);
}

/* ---- launches ---- */

int pllm_cuda_embed(pllm_cuda_rows *o, pllm_stream *stream, const pllm_cuda_matrix *table,
                    pllm_va ids, uint32_t rows, pllm_va out, uint64_t out_stride,
                    uint32_t dependent)
{
    if (rows == 0) return PLLM_OK;
    int status = check_matrix(table);
    if (status < 0) return status;
    if (out_stride < table->k) return fail_stride("embeddings", out_stride, table->k);
    pllm_va data = table->data;
    int dtype = (int)table->dtype;
    uint64_t row_bytes = table->row_bytes;
    uint32_t n = table->n, k = table->k, blocks = blocks_for(k, BLOCK * 8);
    status = check_grid(rows, blocks);
    if (status < 0) return status;
    void *arguments[] = {&data, &dtype, &row_bytes, &n, &k, &ids, &blocks, &out, &out_stride};
    return launch(o, stream, EMBED,
                  (pllm_cuda_grid){.x = rows * blocks, .threads = BLOCK, .dependent = dependent},
                  arguments);
}

/* Of n alone: it decides the order of the sum. Two quadruples a thread, more where 512 threads
 * would not do. */
static uint32_t norm_threads(uint32_t n)
{
    uint32_t threads = blocks_for(blocks_for(n, 4), 2 * 32) * 32;
    return threads < 512 ? threads : 512;
}

int pllm_cuda_rms_norm(pllm_cuda_rows *o, pllm_stream *stream, pllm_va x, uint64_t x_stride,
                       pllm_va weight, float epsilon, pllm_va row_index, uint32_t rows, uint32_t n,
                       pllm_va out, pllm_dtype out_dtype, uint64_t out_stride, uint32_t dependent)
{
    if (rows == 0) return PLLM_OK;
    if (n == 0) return pllm_fail(PLLM_EINVAL, 0, "a norm over no elements");
    if (!is_plain(out_dtype)) return fail_dtype("a norm's result", out_dtype);
    if (x_stride < n) return fail_stride("a norm's rows", x_stride, n);
    if (out_stride < n) return fail_stride("a norm's result", out_stride, n);
    int status = check_grid(rows, 1);
    if (status < 0) return status;
    uint32_t threads = norm_threads(n), quads = blocks_for(blocks_for(n, 4), threads);
    row_kernel kernel = NORM_ANY;
    if (n % 4 == 0 && quads <= 8 && is_wide(x, PLLM_F32, x_stride) && weight % 16 == 0 &&
        is_wide(out, out_dtype, out_stride))
        kernel = quads <= 2 ? NORM_2 : quads <= 4 ? NORM_4 : NORM_8;
    int dtype = (int)out_dtype;
    void *arguments[] = {&x, &x_stride, &weight, &epsilon,   &row_index,
                         &n, &out,      &dtype,  &out_stride};
    return launch(o, stream, kernel,
                  (pllm_cuda_grid){.x = rows, .threads = threads, .dependent = dependent},
                  arguments);
}

int pllm_cuda_swiglu(pllm_cuda_rows *o, pllm_stream *stream, pllm_va gate_up, pllm_dtype dtype,
                     uint64_t stride, uint32_t rows, uint32_t n, pllm_va out, pllm_dtype out_dtype,
                     uint64_t out_stride, uint32_t dependent)
{
    if (rows == 0 || n == 0) return PLLM_OK;
    if (!is_plain(dtype)) return fail_dtype("gate and up", dtype);
    if (!is_plain(out_dtype)) return fail_dtype("the gated row", out_dtype);
    if (stride < 2 * (uint64_t)n) return fail_stride("gate and up", stride, 2 * (uint64_t)n);
    if (out_stride < n) return fail_stride("the gated row", out_stride, n);
    /* A row or a few are over sooner if each thread has one element. */
    int wide = n % 8 == 0 && is_wide(gate_up, dtype, stride) && is_wide(out, out_dtype, out_stride);
    if ((uint64_t)rows * n < SWIGLU_FEW) wide = 0;
    uint32_t blocks = blocks_for(n, wide ? BLOCK * 8 : BLOCK);
    int status = check_grid(rows, blocks);
    if (status < 0) return status;
    int in = (int)dtype, to = (int)out_dtype;
    void *arguments[] = {&gate_up, &in, &stride, &n, &blocks, &out, &to, &out_stride};
    return launch(o, stream, wide ? SWIGLU_WIDE : SWIGLU_ANY,
                  (pllm_cuda_grid){.x = rows * blocks, .threads = BLOCK, .dependent = dependent},
                  arguments);
}

static int check_rotary(const pllm_cuda_rotary *r)
{
    uint64_t row = ((uint64_t)r->heads + 2 * (uint64_t)r->kv_heads) * r->head_dim;
    if (r->head_dim == 0 || r->head_dim > 256)
        return pllm_fail(PLLM_EINVAL, 0, "a head dimension of %u is outside 1..256", r->head_dim);
    if (r->rotary_dims % 2 != 0 || r->rotary_dims > r->head_dim)
        return pllm_fail(PLLM_EINVAL, 0, "%u rotary dimensions of %u", r->rotary_dims, r->head_dim);
    if (row > INT32_MAX) return pllm_fail(PLLM_EINVAL, 0, "%u heads are too many", r->heads);
    if (!is_plain(r->qkv_dtype)) return fail_dtype("q, k and v", r->qkv_dtype);
    if (!is_plain(r->q_dtype)) return fail_dtype("the rotated q", r->q_dtype);
    if (!is_plain(r->block_dtype)) return fail_dtype("an open block", r->block_dtype);
    if (r->qkv_stride < row) return fail_stride("q, k and v", r->qkv_stride, row);
    if (r->q_stride < (uint64_t)r->heads * r->head_dim)
        return fail_stride("the rotated q", r->q_stride, (uint64_t)r->heads * r->head_dim);
    if (r->block_bytes <
        (uint64_t)64 * r->kv_heads * r->head_dim * pllm_dtype_block_bytes(r->block_dtype))
        return pllm_fail(PLLM_EINVAL, 0, "a block of %llu bytes cannot hold %u heads of %u",
                         (unsigned long long)r->block_bytes, r->kv_heads, r->head_dim);
    return check_grid(r->rows, 1);
}

static int rotary_is_wide(const pllm_cuda_rotary *r)
{
    return r->head_dim % 8 == 0 && r->rotary_dims % (r->interleaved ? 8 : 16) == 0 &&
           is_wide(r->qkv, r->qkv_dtype, r->qkv_stride) &&
           is_wide(r->q_out, r->q_dtype, r->q_stride) && r->blocks % 16 == 0 &&
           r->block_bytes % 16 == 0;
}

int pllm_cuda_rotary_append(pllm_cuda_rows *o, pllm_stream *stream, const pllm_cuda_rotary *r)
{
    if (r->rows == 0) return PLLM_OK;
    int status = check_rotary(r);
    if (status < 0) return status;
    int wide = rotary_is_wide(r);
    uint32_t half = r->rotary_dims / 2, rest = r->head_dim - r->rotary_dims;
    uint32_t rotated = wide ? (r->interleaved ? half / 4 : half / 8) + rest / 8 : half + rest;
    rotary_arguments a = {
        .qkv = r->qkv,
        .q_out = r->q_out,
        .blocks = r->blocks,
        .positions = r->positions,
        .inverse_frequency = r->inverse_frequency,
        .row_block = r->row_block,
        .qkv_stride = r->qkv_stride,
        .q_stride = r->q_stride,
        .block_bytes = r->block_bytes,
        .qkv_dtype = (int32_t)r->qkv_dtype,
        .q_dtype = (int32_t)r->q_dtype,
        .block_dtype = (int32_t)r->block_dtype,
        .heads = r->heads,
        .kv_heads = r->kv_heads,
        .head_dim = r->head_dim,
        .rotary_dims = r->rotary_dims,
        .interleaved = r->interleaved,
        .block_multiple = r->block_multiple,
        .block_add = r->block_add,
        .jobs_rotated = (r->heads + r->kv_heads) * rotated,
    };
    a.jobs = a.jobs_rotated + r->kv_heads * (wide ? r->head_dim / 8 : r->head_dim);
    /* Few rows are spread over more blocks, each making the angles again. */
    uint32_t each = r->rows < 8 * o->attributes.sm_count ? 1 : 4;
    uint32_t parts = blocks_for(a.jobs, ROTARY_BLOCK * each);
    if (parts > GRID_Y_MAX) parts = GRID_Y_MAX;
    uint32_t threads = blocks_for(blocks_for(a.jobs, parts * each), 32) * 32;
    if (threads > ROTARY_BLOCK) threads = ROTARY_BLOCK;
    void *arguments[] = {&a};
    pllm_cuda_grid grid = {.x = r->rows, .y = parts, .threads = threads, .dependent = r->dependent};
    return launch(o, stream, wide ? ROTARY_WIDE : ROTARY_ANY, grid, arguments);
}

int pllm_cuda_argmax(pllm_cuda_rows *o, pllm_stream *stream, pllm_va logits, uint64_t stride,
                     uint32_t rows, uint32_t n, pllm_va ids_out, uint32_t dependent)
{
    if (rows == 0) return PLLM_OK;
    if (n == 0 || n > INT32_MAX)
        return pllm_fail(PLLM_EINVAL, 0, "the largest of %u logits: give 1 to 2^31 - 1", n);
    if (stride < n) return fail_stride("logits", stride, n);
    if (rows > GRID_Y_MAX)
        return pllm_fail(PLLM_EINVAL, 0, "%u rows of logits: at most %d at once", rows, GRID_Y_MAX);
    void *arguments[] = {&logits, &stride, &n, &ids_out};
    return launch(o, stream, ARGMAX,
                  (pllm_cuda_grid){.x = o->attributes.major >= 9 ? 8 : 1,
                                   .y = rows,
                                   .threads = 512,
                                   .dependent = dependent},
                  arguments);
}

int pllm_cuda_sample(pllm_cuda_rows *o, pllm_stream *stream, pllm_va logits, uint64_t stride,
                     uint32_t rows, uint32_t n, pllm_va samplings, pllm_va ids_out,
                     uint32_t dependent)
{
    if (rows == 0) return PLLM_OK;
    if (n == 0 || n > PLLM_SAMPLE_MAX)
        return pllm_fail(PLLM_EINVAL, 0, "a token of %u: give 1 to %d logits", n, PLLM_SAMPLE_MAX);
    if (stride < n) return fail_stride("logits", stride, n);
    if (samplings % 8 || rows > INT32_MAX)
        return pllm_fail(PLLM_EINVAL, 0, "%u samplings at %llx: they lie at 8 bytes", rows,
                         (unsigned long long)samplings);
    void *arguments[] = {&logits, &stride, &n, &samplings, &ids_out};
    return launch(o, stream, SAMPLE,
                  (pllm_cuda_grid){.x = rows, .threads = 1024, .dependent = dependent}, arguments);
}

int pllm_cuda_random(pllm_cuda_rows *o, pllm_stream *stream, const pllm_cuda_matrix *to,
                     uint64_t row_first, float deviation, uint64_t seed)
{
    if (to->n == 0 || to->k == 0) return PLLM_OK;
    int status = check_matrix(to);
    if (status < 0) return status;
    pllm_va data = to->data;
    int dtype = (int)to->dtype;
    uint64_t row_bytes = to->row_bytes;
    uint32_t n = to->n, k = to->k;
    row_kernel kernel = !is_plain(to->dtype) ? RANDOM_QUANTISED
                        : k % 4 == 0         ? RANDOM_WIDE
                                             : RANDOM_ANY;
    uint32_t blocks = blocks_for(kernel == RANDOM_ANY ? k : k / 4, BLOCK);
    if (blocks > 4096) blocks = 4096;
    void *arguments[] = {&data, &dtype, &row_bytes, &row_first, &n, &k, &deviation, &seed};
    return launch(
        o, stream, kernel,
        (pllm_cuda_grid){.x = blocks, .y = n < GRID_Y_MAX ? n : GRID_Y_MAX, .threads = BLOCK},
        arguments);
}

/* ---- a tensor in pieces ---- */

static int tensor_launch(pllm_cuda_rows *o, pllm_stream *stream, row_kernel kernel,
                         const pllm_cuda_piece *pieces, uint32_t count, void *first, void *second)
{
    while (count > 0) {
        tensor_pieces p = {0};
        for (; count > 0 && p.count < TENSOR_PIECES; count--, pieces++) {
            if (pieces->data % 16 != 0 || pieces->first % TENSOR_TILE != 0 || !pieces->elements)
                return pllm_fail(PLLM_EINVAL, 0,
                                 "a piece of a tensor starts at a whole tile of %d elements and at "
                                 "16 bytes",
                                 TENSOR_TILE);
            p.piece[p.count].data = pieces->data;
            p.piece[p.count].first = pieces->first;
            p.piece[p.count].elements = pieces->elements;
            p.count++;
            p.tiles += blocks_for(pieces->elements, TENSOR_TILE);
        }
        void *arguments[] = {&p, first, second};
        uint32_t most = o->attributes.sm_count * 4;
        int status = launch(
            o, stream, kernel,
            (pllm_cuda_grid){.x = p.tiles < most ? p.tiles : most, .threads = TENSOR_THREADS},
            arguments);
        if (status < 0) return status;
    }
    return PLLM_OK;
}

int pllm_cuda_tensor_fill(pllm_cuda_rows *o, pllm_stream *stream, const pllm_cuda_piece *pieces,
                          uint32_t count, float deviation, uint64_t seed)
{
    return tensor_launch(o, stream, TENSOR_FILL, pieces, count, &deviation, &seed);
}

int pllm_cuda_tensor_sum(pllm_cuda_rows *o, pllm_stream *stream, const pllm_cuda_piece *pieces,
                         uint32_t count, pllm_va sums)
{
    return tensor_launch(o, stream, TENSOR_SUM, pieces, count, &sums, NULL);
}

int pllm_cuda_tensor_total(pllm_cuda_rows *o, pllm_stream *stream, pllm_va sums, uint64_t tiles,
                           pllm_va total_out)
{
    void *arguments[] = {&sums, &tiles, &total_out};
    return launch(o, stream, TENSOR_TOTAL, (pllm_cuda_grid){.x = 1, .threads = 1024}, arguments);
}
