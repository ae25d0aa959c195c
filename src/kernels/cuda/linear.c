/* linear.c - opening, packing and the launches of decode products. linear_decode.cu has the idea;
 * here are the sizes: how many CTAs share a slice of k, and what lies in shared memory. */
#include <string.h>
#include "base/context.h"
#include "kernels/cuda/fatbin.h"
#include "kernels/cuda/linear_format.h"
#include "kernels/cuda/linear_internal.h"

enum { SHARED_ALIGN = 64, K_MAX = 1 << 24 };

/* For 2, 8 and 16 columns; plain formats do without the first. */
static const char *const decode_names[LINEAR_DTYPES][3] = {
    [PLLM_F32] = {"pllm_decode_f32_8", "pllm_decode_f32_8", "pllm_decode_f32_16"},
    [PLLM_F16] = {"pllm_decode_f16_8", "pllm_decode_f16_8", "pllm_decode_f16_16"},
    [PLLM_BF16] = {"pllm_decode_bf16_8", "pllm_decode_bf16_8", "pllm_decode_bf16_16"},
    [PLLM_Q8_0] = {"pllm_decode_q8_0_2", "pllm_decode_q8_0_8", "pllm_decode_q8_0_16"},
    [PLLM_Q4_0] = {"pllm_decode_q4_0_2", "pllm_decode_q4_0_8", "pllm_decode_q4_0_16"},
    [PLLM_Q4_1] = {"pllm_decode_q4_1_2", "pllm_decode_q4_1_8", "pllm_decode_q4_1_16"},
};

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
    int status = pllm_fatbin_load(l->device, "linear_decode", &l->decode_module);
    if (status >= 0) status = pllm_fatbin_load(l->device, "linear_plain", &l->plain_module);
    if (status >= 0) status = pllm_fatbin_load(l->device, "linear_tile", &l->tile_module);
    for (int i = 0; status >= 0 && i < LINEAR_DTYPES * 3; i++)
        status =
            pllm_cuda_function_get(l->decode_module, decode_names[i / 3][i % 3],
                                   l->attributes.shared_per_block_max, &l->decode[i / 3][i % 3]);
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

static int is_plain(pllm_dtype dtype)
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
    if (!is_plain(p->x_dtype) || !is_plain(p->out_dtype)) wrong = "x and out must be plain";
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

static int decode_f32(pllm_cuda_linear *l, pllm_stream *stream, const pllm_cuda_product *p)
{
    plain_arguments arguments;
    linear_plain_arguments(&arguments, p);
    void *parameters[] = {&arguments};
    pllm_cuda_grid grid = {.x = (p->matrix->n + 7) / 8,
                           .y = (p->rows + 3) / 4,
                           .z = 1,
                           .threads = 256,
                           .dependent = p->dependent};
    return pllm_cuda_launch(l->device, stream, l->decode_f32, &grid, parameters);
}

static uint32_t columns_of(pllm_dtype dtype, uint32_t rows)
{
    return rows > 8 ? 16 : rows > 2 || is_plain(dtype) ? 8 : 2;
}

/* Sizes of a launch that depend on the number of CTAs that share k. */
typedef struct decode_shape {
    uint32_t cluster_shift, tiles, x_row_bytes, x_blocks, shared_bytes;
} decode_shape;

static decode_shape shape_of(const pllm_cuda_product *p, uint32_t units, uint32_t cluster_shift,
                             uint32_t tiles, uint32_t rows)
{
    pllm_dtype dtype = p->matrix->dtype;
    uint32_t blocks = pllm_packed_unit_blocks(dtype), columns = columns_of(dtype, rows);
    uint32_t group = dtype == PLLM_F32 ? 2 : DECODE_GROUP_UNITS;
    uint32_t groups = (units + group - 1) / group, ctas = 1u << cluster_shift, most = 0;
    for (uint32_t rank = 0; rank < ctas; rank++) {
        uint32_t slices = DECODE_SLICES / ctas;
        uint32_t first = rank * slices * groups / DECODE_SLICES;
        uint32_t end = (rank + 1) * slices * groups / DECODE_SLICES;
        if (end - first > most) most = end - first;
    }
    decode_shape shape = {.cluster_shift = cluster_shift, .tiles = tiles};
    shape.x_blocks = blocks ? most * group * blocks : 0;
    shape.x_row_bytes = most * group * (blocks ? blocks : 1) * 64;
    if (shape.x_row_bytes % 128 == 0) shape.x_row_bytes += 64; /* two rows, one bank otherwise */
    uint32_t matrices = p->epilogue == PLLM_CUDA_SWIGLU ? 2 : 1;
    uint64_t bytes = (uint64_t)rows * shape.x_row_bytes +
                     (uint64_t)shape.x_blocks * columns * (dtype == PLLM_Q4_1 ? 8 : 4) +
                     matrices * 2 * tiles * 8 * 16 * columns * 4 + DECODE_SLICES * DECODE_ROWS * 4 +
                     tiles * 8 * 16;
    shape.shared_bytes = bytes > UINT32_MAX ? UINT32_MAX : (uint32_t)bytes;
    return shape;
}

/* Units of a row, plain formats' too. */
static uint32_t units_of(const pllm_cuda_matrix *m)
{
    return is_plain(m->dtype) ? m->k / 32 : pllm_packed_units(m->dtype, m->k);
}

/* Is there room in shared memory for one row of x, cut among as many CTAs as can be? */
static int one_row_fits(const pllm_cuda_linear *l, const pllm_cuda_product *p)
{
    uint32_t shift = l->attributes.major < 9 ? 0 : 3;
    return shape_of(p, units_of(p->matrix), shift, 1, 1).shared_bytes <=
           l->attributes.shared_per_block_max;
}

/* How the grid is cut, as measured on an H200 (linear.md). One row: what starts soonest. More: CTAs
 * of 16 warps convert x once for two tiles, and two of them share it. Where that x is too long to
 * lie in shared memory beside the rest, or much W follows it, eight small CTAs share it. */
static decode_shape choose_shape(const pllm_cuda_linear *l, const pllm_cuda_product *p,
                                 uint32_t units, uint32_t *rows)
{
    enum { X_BYTES_MOST = 128 << 10 };
    const pllm_cuda_linear_tuning *tuning = &l->tuning;
    uint32_t limit = l->attributes.shared_per_block_max;
    uint32_t shift = *rows >= 4, shift_max = 3, tiles = *rows > 1 ? 2 : 1;
    decode_shape shape = shape_of(p, units, shift, tiles, *rows);
    if ((uint64_t)shape.x_row_bytes * *rows > X_BYTES_MOST ||
        (*rows > 8 && p->epilogue == PLLM_CUDA_SWIGLU))
        shift = 3, tiles = 1;
    if (tuning->cluster)
        for (shift = 0; 2u << shift <= tuning->cluster && shift < 3;) shift++;
    if (tuning->tiles) tiles = tuning->tiles;
    if (l->attributes.major < 9) shift = shift_max = 0; /* no clusters */
    shape = shape_of(p, units, shift, tiles, *rows);
    while (shape.shared_bytes > limit && shift < shift_max)
        shape = shape_of(p, units, ++shift, tiles, *rows);
    if (shape.shared_bytes > limit) tiles = 1;
    while (shape.shared_bytes > limit && *rows > 1)
        shape = shape_of(p, units, shift, tiles, --*rows);
    return shape;
}

/* Clusters that run at the same time, each taking sets of tiles in turn. The CTAs of one lie within
 * a part of the GPU of some 16 SMs, where some places stay empty: of 32 clusters of 8 not all found
 * one on an H200, and a cluster that waits for another's end takes as long again. */
static uint32_t clusters_at_once(const pllm_cuda_linear *l, const decode_shape *shape,
                                 uint32_t ctas_per_sm)
{
    enum { RESERVED = 1024 }; /* bytes of shared memory that each CTA costs besides */
    uint32_t fit =
        (l->attributes.shared_per_block_max + RESERVED) / (shape->shared_bytes + RESERVED);
    ctas_per_sm /= shape->tiles;
    if (l->tuning.ctas_per_sm) ctas_per_sm = l->tuning.ctas_per_sm;
    if (fit < ctas_per_sm) ctas_per_sm = fit;
    if (!ctas_per_sm) ctas_per_sm = 1;
    uint32_t ctas = l->attributes.sm_count * ctas_per_sm;
    if (shape->cluster_shift > 1) ctas = ctas / 16 * 15;
    uint32_t clusters = ctas >> shape->cluster_shift;
    return clusters ? clusters : 1;
}

/* Rows row_first .. of a product, at most 16; as many as shared memory has room for. */
static int decode_some(pllm_cuda_linear *l, pllm_stream *stream, const pllm_cuda_product *p,
                       uint32_t row_first, uint32_t *rows)
{
    const pllm_cuda_matrix *m = p->matrix;
    uint32_t units = units_of(m);
    decode_shape shape = choose_shape(l, p, units, rows);
    decode_arguments arguments = {
        .matrix = {m->data, p->epilogue == PLLM_CUDA_SWIGLU ? p->second->data : m->data},
        .row_bytes = m->row_bytes,
        .x = p->x + row_first * p->x_stride * 4,
        .x_stride = p->x_stride,
        .norm_weight = p->norm_weight,
        .out = p->out + row_first * p->out_stride * 4,
        .out_stride = p->out_stride,
        .n = m->n,
        .k = m->k,
        .rows = *rows,
        .units = units,
        .scale_bytes = pllm_packed_scale_bytes(m->dtype, m->k),
        .matrices = p->epilogue == PLLM_CUDA_SWIGLU ? 2 : 1,
        .epilogue = p->epilogue,
        .cluster_shift = shape.cluster_shift,
        .x_row_bytes = shape.x_row_bytes,
        .x_blocks = shape.x_blocks,
        .epsilon = p->epsilon,
    };
    void *parameters[] = {&arguments};
    uint32_t ctas = 1u << shape.cluster_shift, set_rows = 16 * shape.tiles * ctas;
    uint32_t sets = (m->n + set_rows - 1) / set_rows;
    uint32_t clusters =
        clusters_at_once(l, &shape, is_plain(m->dtype) ? DECODE_CTAS_PLAIN : DECODE_CTAS_BLOCKS);
    uint32_t turns = (sets + clusters - 1) / clusters;
    pllm_cuda_grid grid = {.x = (sets + turns - 1) / turns * ctas,
                           .y = 1,
                           .z = 1,

                           .threads = 256 * shape.tiles,
                           .shared_bytes = shape.shared_bytes,
                           .dependent = p->dependent && row_first == 0,
                           .cluster = ctas};
    return pllm_cuda_launch(l->device, stream, l->decode[m->dtype][columns_of(m->dtype, *rows) / 8],
                            &grid, parameters);
}

int pllm_cuda_linear_decode(pllm_cuda_linear *l, pllm_stream *stream, const pllm_cuda_product *p)
{
    int status = linear_check(p, 0);
    if (status < 0) return status;
    /* By the shape alone, so that all rows of a product go one way. */
    if (p->compute_f32 || p->matrix->k % 32 || p->x % 16 || p->x_stride % 4 ||
        p->norm_weight % 16 || !one_row_fits(l, p))
        return decode_f32(l, stream, p);
    for (uint32_t row = 0, rows; row < p->rows && status >= 0; row += rows) {
        rows = p->rows - row < DECODE_ROWS ? p->rows - row : DECODE_ROWS;
        status = decode_some(l, stream, p, row, &rows);
    }
    return status;
}
