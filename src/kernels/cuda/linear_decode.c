/* linear_decode.c - the launches of decode products: which kernel, how many CTAs share a slice of
 * k, what lies in shared memory. linear_decode.cu has the idea, linear_stream.cu the form of it
 * that GPUs with clusters run. */
#include "base/context.h"
#include "kernels/cuda/fatbin.h"
#include "kernels/cuda/linear_format.h"
#include "kernels/cuda/linear_internal.h"

/* For 2, 8 and 16 columns; plain formats do without the first. */
static const char *const decode_names[LINEAR_DTYPES][3] = {
    [PLLM_F32] = {"pllm_decode_f32_8", "pllm_decode_f32_8", "pllm_decode_f32_16"},
    [PLLM_F16] = {"pllm_decode_f16_8", "pllm_decode_f16_8", "pllm_decode_f16_16"},
    [PLLM_BF16] = {"pllm_decode_bf16_8", "pllm_decode_bf16_8", "pllm_decode_bf16_16"},
    [PLLM_Q8_0] = {"pllm_decode_q8_0_2", "pllm_decode_q8_0_8", "pllm_decode_q8_0_16"},
    [PLLM_Q4_0] = {"pllm_decode_q4_0_2", "pllm_decode_q4_0_8", "pllm_decode_q4_0_16"},
    [PLLM_Q4_1] = {"pllm_decode_q4_1_2", "pllm_decode_q4_1_8", "pllm_decode_q4_1_16"},
};

/* More than 8 rows, where there are clusters. */
static const char *const stream_names[LINEAR_DTYPES] = {
    [PLLM_F32] = "pllm_stream_f32",   [PLLM_F16] = "pllm_stream_f16",
    [PLLM_BF16] = "pllm_stream_bf16", [PLLM_Q8_0] = "pllm_stream_q8_0",
    [PLLM_Q4_0] = "pllm_stream_q4_0", [PLLM_Q4_1] = "pllm_stream_q4_1",
};

static int has_clusters(const pllm_cuda_linear *l)
{
    return l->attributes.major >= 9;
}

int linear_decode_load(pllm_cuda_linear *l)
{
    uint32_t most = l->attributes.shared_per_block_max;
    int status = pllm_fatbin_load(l->device, "linear_decode", &l->decode_module);
    for (int i = 0; status >= 0 && i < LINEAR_DTYPES * 3; i++)
        status = pllm_cuda_function_get(l->decode_module, decode_names[i / 3][i % 3], most,
                                        &l->decode[i / 3][i % 3]);
    if (status < 0 || !has_clusters(l)) return status;
    status = pllm_fatbin_load(l->device, "linear_stream", &l->stream_module);
    for (int i = 0; status >= 0 && i < LINEAR_DTYPES; i++)
        status = pllm_cuda_function_get(l->stream_module, stream_names[i], most, &l->stream[i]);
    /* How many clusters find a place at once depends on which SMs a GPU has in which part. */
    for (uint32_t shift = 1; status >= 0 && shift <= 3; shift++) {
        pllm_cuda_grid grid = {.x = 1u << shift,
                               .y = 1,
                               .z = 1,
                               .threads = 512,
                               .shared_bytes = most,
                               .cluster = 1u << shift};
        status =
            pllm_cuda_clusters_at_once(l->device, l->stream[PLLM_BF16], &grid, &l->clusters[shift]);
    }
    return status;
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
    return rows > 8 ? 16 : rows > 2 || linear_is_plain(dtype) ? 8 : 2;
}

/* Sizes of a launch that depend on the number of CTAs that share k. */
typedef struct decode_shape {
    uint32_t cluster_shift, tiles, x_row_bytes, x_blocks, shared_bytes;
    uint32_t ring, early; /* linear_stream.cu; 0: linear_decode.cu */
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
    return linear_is_plain(m->dtype) ? m->k / 32 : pllm_packed_units(m->dtype, m->k);
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
static decode_shape registers_shape(const pllm_cuda_linear *l, const pllm_cuda_product *p,
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

/* ---- linear_stream.cu ---- */

static uint32_t stream_group_bytes(pllm_dtype dtype)
{
    uint32_t scale_words = dtype == PLLM_Q8_0   ? 1
                           : dtype == PLLM_Q4_0 ? 2
                           : dtype == PLLM_Q4_1 ? 4
                                                : 0;
    return DECODE_GROUP_UNITS * 1024 + scale_words * 4 * 64;
}

/* With `ring` groups under way, or as many as there is room for. 0 groups: no room. */
static decode_shape stream_shape_of(const pllm_cuda_linear *l, const pllm_cuda_product *p,
                                    uint32_t units, uint32_t cluster_shift, uint32_t tiles,
                                    uint32_t ring, uint32_t rows)
{
    pllm_dtype dtype = p->matrix->dtype;
    uint32_t group = tiles * 8 * stream_group_bytes(dtype);
    decode_shape shape = shape_of(p, units, cluster_shift, tiles, rows);
    uint64_t bytes = STREAM_HEAD_BYTES + 2ull * tiles * 8 * 16 * DECODE_ROWS * 4 +
                     (uint64_t)rows * shape.x_row_bytes +
                     (uint64_t)shape.x_blocks * DECODE_ROWS * (dtype == PLLM_Q4_1 ? 8 : 4);
    while (ring && bytes + (uint64_t)ring * group > l->attributes.shared_per_block_max) ring--;
    shape.ring = ring;
    shape.shared_bytes = (uint32_t)bytes + ring * group;
    return shape;
}

/* How many of the warps have work, for tiles that are dealt out to clusters. */
static double stream_share(const pllm_cuda_linear *l, const pllm_cuda_product *p,
                           const decode_shape *shape)
{
    uint32_t tiles = (p->matrix->n + 15) / 16, clusters = l->clusters[shape->cluster_shift];
    uint32_t job = shape->tiles << shape->cluster_shift;
    uint32_t jobs = ((tiles + clusters - 1) / clusters + job - 1) / job;
    return (double)tiles / ((double)clusters * jobs * job);
}

/* Which cut of the grid, for 9 to 16 rows; ring 0: none, others do it. The one whose warps have
 * most to do; small clusters first, since they find a place sooner. As measured: with two tiles a
 * CTA two groups of W under way are enough, with one three (block formats one and two); and x comes
 * sooner before most of W, but where the norm's weight is read with it, it may come behind
 * (linear.md). */
static decode_shape stream_shape(const pllm_cuda_linear *l, const pllm_cuda_product *p,
                                 uint32_t units, uint32_t rows)
{
    static const struct {
        uint32_t shift, tiles;
    } cuts[] = {{1, 2}, {3, 2}, {3, 1}};
    const pllm_cuda_linear_tuning *tuning = &l->tuning;
    uint32_t blocks = pllm_packed_unit_blocks(p->matrix->dtype);
    decode_shape best = {.ring = 0};
    if (tuning->cluster > 1) {
        uint32_t shift = tuning->cluster >= 8 ? 3 : tuning->cluster / 2;
        if (l->clusters[shift])
            best = stream_shape_of(l, p, units, shift, tuning->tiles ? tuning->tiles : 1,
                                   tuning->ring ? tuning->ring : 2, rows);
    }
    double share = 0.0;
    for (size_t i = 0; tuning->cluster <= 1 && i < sizeof cuts / sizeof cuts[0]; i++) {
        if (!l->clusters[cuts[i].shift]) continue;
        uint32_t least = cuts[i].tiles == 2 && blocks ? 1 : 2;
        decode_shape shape = stream_shape_of(l, p, units, cuts[i].shift, cuts[i].tiles,
                                             least + (cuts[i].tiles == 1 && !blocks), rows);
        if (shape.ring < least || stream_share(l, p, &shape) < share * 1.001) continue;
        best = shape;
        share = stream_share(l, p, &shape);
    }
    best.early = tuning->early && tuning->early < best.ring ? tuning->early
                 : tuning->early || p->norm_weight          ? best.ring
                                                            : best.ring > 0;
    return best;
}

/* Which formats it is measured for. */
static int streams(const pllm_cuda_linear *l, const pllm_cuda_product *p, uint32_t rows)
{
    pllm_dtype dtype = p->matrix->dtype;
    if (!has_clusters(l) || rows <= 8 || l->tuning.kernel == 1) return 0;
    return l->tuning.kernel == 2 || dtype == PLLM_BF16 || dtype == PLLM_Q4_0;
}

/* Rows row_first .. of a product, at most 16; as many as shared memory has room for. */
static int decode_some(pllm_cuda_linear *l, pllm_stream *stream, const pllm_cuda_product *p,
                       uint32_t row_first, uint32_t *rows)
{
    enum { FEW_ROWS = 8 };
    const pllm_cuda_matrix *m = p->matrix;
    uint32_t units = units_of(m);
    decode_shape shape = {.ring = 0};
    if (streams(l, p, *rows)) shape = stream_shape(l, p, units, *rows);
    if (!shape.ring) shape = registers_shape(l, p, units, rows);
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
        .ring = shape.ring,
        .early = shape.early,
    };
    void *parameters[] = {&arguments};
    uint32_t ctas = 1u << shape.cluster_shift, clusters;
    if (shape.ring) { /* each has its part of the tiles */
        uint32_t tiles = (m->n + 15) / 16, most = l->clusters[shape.cluster_shift];
        uint32_t each = (tiles + most - 1) / most;
        clusters = (tiles + each - 1) / each;
    } else { /* each takes sets of tiles in turn */
        uint32_t set_rows = 16 * shape.tiles * ctas, sets = (m->n + set_rows - 1) / set_rows;
        clusters = clusters_at_once(
            l, &shape, linear_is_plain(m->dtype) ? DECODE_CTAS_PLAIN : DECODE_CTAS_BLOCKS);
        uint32_t turns = (sets + clusters - 1) / clusters;
        clusters = (sets + turns - 1) / turns;
    }
    /* Of the kernel of registers with many rows, blocks that come early take the place of those
     * that still work: a decode step of 16 rows was 2% slower for it. */
    uint32_t early = p->dependent && row_first == 0 && (shape.ring || *rows < FEW_ROWS);
    pllm_cuda_grid grid = {.x = clusters * ctas,
                           .y = 1,
                           .z = 1,
                           .threads = 256 * shape.tiles,
                           .shared_bytes = shape.shared_bytes,
                           .dependent = early,
                           .cluster = ctas};
    return pllm_cuda_launch(l->device, stream,
                            shape.ring ? l->stream[m->dtype]
                                       : l->decode[m->dtype][columns_of(m->dtype, *rows) / 8],
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
