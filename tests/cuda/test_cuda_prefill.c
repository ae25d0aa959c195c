/* Prompt attention on a CUDA device against double precision, and its rule: bits of a row depend on
 * nothing but the row.
 *
 * A sequence is K and V for every token in two forms (the same bits unless the forms differ) and Q.
 * A call takes spans of rows of sequences; the pool, the stage and the tables are built for it the
 * way the engine would: pool blocks shuffled among blocks of NaN, stage blocks of each span between
 * blocks of NaN, table entries nobody may read pointing at NaN. Rows of the stage past a span's
 * end are zero. Output is poisoned with NaN.
 *
 * Brief form, at most 40 launches, reaches: pllm_prefill_*. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <pagedllm/context.h>
#include "brief.h"
#include "device/cuda.h"
#include "kernels/attention.h"
#include "kernels/cuda/prefill.h"

enum { BLOCK = PLLM_BLOCK_TOKENS, ITEM_MAX = 8, TABLE_STRIDE = 512 };

typedef struct buffer { /* device memory and its pinned image */
    pllm_va va;
    void *host;
    uint64_t bytes;
    pllm_chunk *chunk;
} buffer;

static pllm_device *device;
static pllm_stream *stream;
static pllm_cuda_prefill_kernels *prefill;
static buffer pool, stage, table, items, q_rows, out_rows;

static void check_status(int status)
{
    if (status < 0) fail_msg("%d: %s", status, pllm_last_error()->text);
}

static void buffer_open(buffer *b, uint64_t bytes)
{
    pllm_device_info info;
    check_status(device->ops->info(device, &info));
    b->bytes =
        (bytes + info.granularity_bytes - 1) / info.granularity_bytes * info.granularity_bytes;
    check_status(device->ops->reserve(device, b->bytes, &b->va));
    check_status(device->ops->chunk_create(device, b->bytes, &b->chunk));
    check_status(device->ops->map(device, b->va, &b->chunk, 1));
    check_status(device->ops->host_alloc(device, b->bytes, &b->host));
}

static void buffer_close(buffer *b)
{
    device->ops->host_free(device, b->host, b->bytes);
    device->ops->unmap(device, b->va, b->chunk);
    device->ops->chunk_destroy(device, b->chunk);
    device->ops->release(device, b->va, b->bytes);
}

static void buffer_in(const buffer *b, uint64_t bytes)
{
    assert_true(bytes <= b->bytes);
    pllm_copy copy = {.to = b->va, .from = (uint64_t)(uintptr_t)b->host, .bytes = bytes};
    if (bytes) check_status(device->ops->copy(device, stream, PLLM_COPY_IN, &copy));
}

static void buffer_out(const buffer *b, uint64_t bytes)
{
    pllm_copy copy = {.to = (uint64_t)(uintptr_t)b->host, .from = b->va, .bytes = bytes};
    check_status(device->ops->copy(device, stream, PLLM_COPY_OUT, &copy));
}

static uint64_t random_state = 1;
static uint32_t random_next(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33);
}

static uint32_t element_bytes(pllm_dtype dtype)
{
    return pllm_dtype_block_bytes(dtype);
}

static void element_put(void *to, pllm_dtype dtype, uint64_t i, float x)
{
    if (dtype == PLLM_F32)
        ((float *)to)[i] = x;
    else
        ((uint16_t *)to)[i] = dtype == PLLM_F16 ? pllm_f32_to_f16(x) : pllm_f32_to_bf16(x);
}

static float element_get(const void *from, pllm_dtype dtype, uint64_t i)
{
    if (dtype == PLLM_F32) return ((const float *)from)[i];
    const uint16_t bits = ((const uint16_t *)from)[i];
    return dtype == PLLM_F16 ? pllm_f16_to_f32(bits) : pllm_bf16_to_f32(bits);
}

typedef struct model {
    uint32_t heads, kv_heads, head_dim, distinct;
    pllm_dtype dtype, out_dtype;
    pllm_cuda_prefill_kernel kernel;
} model;

typedef struct sequence {
    uint32_t tokens, q_first;
    uint8_t *kv[2]; /* [open, sealed]: [tokens][kv_heads][K, V][head_dim] */
    uint8_t *q;     /* [tokens from q_first on][heads][head_dim] */
} sequence;

typedef struct span { /* rows of one sequence, in one call */
    const sequence *of;
    uint32_t position, rows;
} span;

static void *random_elements(pllm_dtype dtype, uint64_t count, float scale)
{
    uint8_t *to = malloc(count * element_bytes(dtype));
    assert_non_null(to);
    for (uint64_t i = 0; i < count; i++)
        element_put(to, dtype, i, scale * ((float)random_next() * 0x1p-30f - 1));
    return to;
}

static sequence sequence_open(const model *m, uint32_t tokens, uint32_t q_first)
{
    sequence s = {.tokens = tokens, .q_first = q_first};
    const uint64_t kv = (uint64_t)tokens * m->kv_heads * 2 * m->head_dim;
    s.kv[0] = random_elements(m->dtype, kv, 1.7f);
    s.kv[1] = m->distinct ? random_elements(m->dtype, kv, 1.7f) : s.kv[0];
    s.q = random_elements(m->dtype, (uint64_t)(tokens - q_first) * m->heads * m->head_dim, 3);
    return s;
}

static void sequence_close(sequence *s)
{
    if (s->kv[1] != s->kv[0]) free(s->kv[1]);
    free(s->kv[0]);
    free(s->q);
}

static uint64_t block_bytes(const model *m)
{
    pllm_kv_shape shape;
    check_status(pllm_kv_shape_init(&shape, m->dtype, m->kv_heads, m->head_dim));
    return pllm_kv_block_bytes(&shape, m->dtype);
}

/* Rows of a block of the sequence into block memory; rows at or past end are zero. */
static void block_fill(const model *m, const sequence *s, int sealed, uint32_t block, uint32_t end,
                       uint8_t *to)
{
    const uint64_t row = (uint64_t)m->head_dim * element_bytes(m->dtype);
    for (uint32_t h = 0; h < m->kv_heads; h++) {
        for (uint32_t v = 0; v < 2; v++) {
            for (uint32_t i = 0; i < BLOCK; i++, to += row) {
                const uint64_t token = (uint64_t)block * BLOCK + i;
                if (token < end)
                    memcpy(to, s->kv[sealed] + ((token * m->kv_heads + h) * 2 + v) * row, row);
                else
                    memset(to, 0, row);
            }
        }
    }
}

/* One call. out: f32 [rows of the spans, one after the other][heads * head_dim]. */
static void run(const model *m, const span *spans, uint32_t count, float *out)
{
    const uint64_t bytes = block_bytes(m), element = element_bytes(m->dtype);
    const uint32_t width = m->heads * m->head_dim;
    uint32_t full = 0, staged = 1, rows = 0, row_max = 0;
    for (uint32_t i = 0; i < count; i++) full += (spans[i].position + spans[i].rows) / BLOCK;
    const uint32_t pool_count = 2 * full + 3;
    assert_true(pool_count * bytes <= pool.bytes);
    memset(pool.host, 0xff, pool_count * bytes);
    memset(table.host, 0xff, (uint64_t)ITEM_MAX * TABLE_STRIDE * 4);
    uint32_t *order = malloc(pool_count * sizeof(*order));
    assert_non_null(order);
    for (uint32_t i = 0; i < pool_count; i++) {
        const uint32_t j = random_next() % (i + 1);
        order[i] = order[j];
        order[j] = i;
    }
    uint32_t *entries = table.host, used = 0;
    for (uint32_t i = 0; i < ITEM_MAX * TABLE_STRIDE; i++) entries[i] = order[pool_count - 1];

    /* q and out have rows before, between and behind the spans: nobody's */
    const uint64_t q_stride = width + 16, out_stride = width + 8;
    pllm_cuda_prefill_item *item = items.host;
    memset(item, 0, ITEM_MAX * sizeof(*item));
    rows = 2;
    uint32_t total = rows;
    for (uint32_t i = 0; i < count; i++) total += spans[i].rows + 3;
    memset(q_rows.host, 0xff, total * q_stride * element);
    assert_true(total * q_stride * element <= q_rows.bytes);
    assert_true(total * out_stride * 4 <= out_rows.bytes);
    memset(stage.host, 0xff, bytes);
    for (uint32_t i = 0; i < count; i++) {
        const span *s = &spans[i];
        const uint32_t end = s->position + s->rows, table_row = (i * 3 + 1) % ITEM_MAX;
        item[i] = (pllm_cuda_prefill_item){.row_first = rows,
                                           .rows = s->rows,
                                           .position = s->position,
                                           .stage_first = staged,
                                           .table_row = table_row};
        for (uint32_t b = 0; b < end / BLOCK; b++, used++) {
            entries[table_row * TABLE_STRIDE + b] = order[used];
            block_fill(m, s->of, 1, b, end, (uint8_t *)pool.host + order[used] * bytes);
        }
        for (uint32_t b = s->position / BLOCK; b * BLOCK < end; b++, staged++) {
            assert_true((staged + 2) * bytes <= stage.bytes);
            block_fill(m, s->of, 0, b, end, (uint8_t *)stage.host + staged * bytes);
        }
        memset((uint8_t *)stage.host + staged++ * bytes, 0xff, bytes);
        for (uint32_t r = 0; r < s->rows; r++)
            memcpy((uint8_t *)q_rows.host + (rows + r) * q_stride * element,
                   s->of->q + (uint64_t)(s->position + r - s->of->q_first) * width * element,
                   width * element);
        rows += s->rows + 3;
        if (s->rows > row_max) row_max = s->rows;
    }
    free(order);
    buffer_in(&pool, pool_count * bytes);
    buffer_in(&stage, staged * bytes);
    buffer_in(&table, (uint64_t)ITEM_MAX * TABLE_STRIDE * 4);
    buffer_in(&items, ITEM_MAX * sizeof(*item));
    buffer_in(&q_rows, total * q_stride * element);
    const uint64_t out_bytes = total * out_stride * element_bytes(m->out_dtype);
    check_status(device->ops->fill(device, stream, out_rows.va, out_bytes, 0xff));

    const pllm_cuda_prefill f = {
        .heads = m->heads,
        .kv_heads = m->kv_heads,
        .head_dim = m->head_dim,
        .dtype = m->dtype,
        .scale = (float)(1 / sqrt(m->head_dim)),
        .sealed = pool.va,
        .sealed_bytes = bytes,
        .sealed_count = full ? pool_count : 0, /* as before an engine's first block is sealed */
        .table = table.va,
        .table_stride = TABLE_STRIDE,
        .stage = stage.va,
        .stage_bytes = bytes,
        .stage_count = staged,
        .distinct = m->distinct,
        .items = items.va,
        .item_count = count,
        .row_max = row_max,
        .q = q_rows.va,
        .q_stride = q_stride,
        .out = out_rows.va,
        .out_dtype = m->out_dtype,
        .out_stride = out_stride,
        .kernel = m->kernel,
    };
    check_status(pllm_cuda_attend_prefill(prefill, stream, &f));
    buffer_out(&out_rows, out_bytes);
    check_status(device->ops->stream_sync(device, stream));

    /* every row written, nothing else */
    for (uint64_t r = 0, next = 0, at = 0; r < total; r++) {
        while (next < count && r >= item[next].row_first + item[next].rows) next++;
        const int inside = next < count && r >= item[next].row_first;
        for (uint64_t c = 0; c < out_stride; c++) {
            const float x = element_get(out_rows.host, m->out_dtype, r * out_stride + c);
            const int ours = inside && c < width;
            if (isnan(x) == ours && !launches_only())
                fail_msg("row %u of %u, column %u of %u: %f", (unsigned)r, total, (unsigned)c,
                         width, (double)x);
            if (ours) out[at++] = x;
        }
    }
}

/* Row at position of the sequence, in double precision. */
static void row_reference(const model *m, const sequence *s, uint32_t position, uint32_t head,
                          double *out)
{
    const uint32_t d = m->head_dim, kv_head = head / (m->heads / m->kv_heads);
    double *p = malloc((position + 1) * sizeof(*p)), max = -INFINITY, sum = 0;
    double q[PLLM_HEAD_DIM_MAX];
    assert_non_null(p);
    for (uint32_t c = 0; c < d; c++)
        q[c] = (double)element_get(s->q, m->dtype,
                                   ((uint64_t)(position - s->q_first) * m->heads + head) * d + c);
    for (uint32_t t = 0; t <= position; t++) {
        const uint8_t *kv = s->kv[t / BLOCK != position / BLOCK];
        const uint64_t at = (((uint64_t)t * m->kv_heads + kv_head) * 2) * d;
        double dot = 0;
        for (uint32_t c = 0; c < d; c++) dot += q[c] * (double)element_get(kv, m->dtype, at + c);
        p[t] = dot / sqrt(d);
        if (p[t] > max) max = p[t];
    }
    memset(out, 0, d * sizeof(*out));
    for (uint32_t t = 0; t <= position; t++) {
        const uint8_t *kv = s->kv[t / BLOCK != position / BLOCK];
        const uint64_t at = (((uint64_t)t * m->kv_heads + kv_head) * 2 + 1) * d;
        const double e = exp(p[t] - max);
        sum += e;
        for (uint32_t c = 0; c < d; c++) out[c] += e * (double)element_get(kv, m->dtype, at + c);
    }
    for (uint32_t c = 0; c < d; c++) out[c] /= sum;
    free(p);
}

static double tolerance(const model *m)
{
    if (m->dtype == PLLM_BF16 || m->out_dtype == PLLM_BF16) return 4e-3;
    if (m->dtype == PLLM_F16 || m->out_dtype == PLLM_F16) return 6e-4;
    return 4e-6;
}

/* Some rows of each span, the ones at edges among them, one head a row in turn. */
static double error_worst(const model *m, const span *spans, uint32_t count, const float *out)
{
    const uint32_t d = m->head_dim;
    double worst = 0;
    for (uint32_t i = 0, row = 0, n = 0; i < count; row += spans[i++].rows) {
        for (uint32_t r = 0; r < spans[i].rows; r++) {
            const uint32_t position = spans[i].position + r, end = spans[i].rows - 1;
            const uint32_t edge = position % 64;
            if (r != 0 && r != end && ((edge > 0 && edge < 63) || position % 3) && r % 101 != 50)
                continue;
            double expected[PLLM_HEAD_DIM_MAX], wrong = 0, norm = 0;
            const uint32_t head = n++ * 5 % m->heads;
            row_reference(m, spans[i].of, position, head, expected);
            for (uint32_t c = 0; c < d; c++) {
                const double x = (double)out[((uint64_t)(row + r) * m->heads + head) * d + c];
                wrong += (x - expected[c]) * (x - expected[c]);
                norm += expected[c] * expected[c];
            }
            const double error = sqrt(wrong / norm);
            if (error > worst || isnan(error)) worst = isnan(error) ? INFINITY : error;
            if (!(error <= tolerance(m)) && getenv("PLLM_TEST_VERBOSE"))
                fprintf(stderr, "span %u row %u (position %u) head %u: %.3g; first %g for %g\n", i,
                        r, position, head, error,
                        (double)out[((uint64_t)(row + r) * m->heads + head) * d], expected[0]);
        }
    }
    return worst;
}

static float *out_open(const model *m, const span *spans, uint32_t count)
{
    uint64_t rows = 0;
    for (uint32_t i = 0; i < count; i++) rows += spans[i].rows;
    float *out = malloc(rows * m->heads * m->head_dim * sizeof(*out));
    assert_non_null(out);
    return out;
}

static void check_against_double(const model *m, const span *spans, uint32_t count)
{
    float *out = out_open(m, spans, count);
    run(m, spans, count, out);
    const double worst = error_worst(m, spans, count, out);
    if (!(worst <= tolerance(m)) && !launches_only())
        fail_msg("%s, %u/%u heads of %u%s, kernel %d, first span %u+%u: relative error %.3g",
                 pllm_dtype_name(m->dtype), m->heads, m->kv_heads, m->head_dim,
                 m->distinct ? ", distinct" : "", m->kernel, spans[0].position, spans[0].rows,
                 worst);
    free(out);
}

static const uint32_t positions[] = {0, 1, 31, 100, 128, 1000, 4096};
static const uint32_t row_counts[] = {1, 5, 32, 127, 128, 129, 512, 700};
static const uint32_t groups[] = {1, 3, 4, 8};
enum { POSITIONS = 7, ROW_COUNTS = 8 };

/* Each of the eight kernels that use tensor cores: a first tile, one that begins inside another,
 * and rows of the second part of a ring of tiles. */
static void sizes_brief(pllm_cuda_prefill_kernel kernel)
{
    for (uint32_t i = 0; i < 8; i++) {
        const model m = {.dtype = i % 2 ? PLLM_BF16 : PLLM_F16,
                         .out_dtype = PLLM_F32,
                         .head_dim = i / 2 % 2 ? 128 : 64,
                         .kv_heads = 1,
                         .heads = i < 4 ? 3 : 1,
                         .distinct = i / 4,
                         .kernel = kernel};
        sequence first = sequence_open(&m, 129, 0), second = sequence_open(&m, 600, 131);
        const span spans[] = {{&first, 0, 129}, {&second, 131, 40}, {&second, 580, 20}};
        check_against_double(&m, spans, 3);
        if (i < 2) check_against_double(&m, &(span){&first, 0, 5}, 1); /* nothing is sealed */
        sequence_close(&first);
        sequence_close(&second);
    }
}

/* Every each-th of the cases. */
static void sizes_of(pllm_cuda_prefill_kernel kernel, uint32_t each)
{
    if (brief()) {
        sizes_brief(kernel);
        return;
    }
    for (uint32_t i = 0; i < POSITIONS * ROW_COUNTS * 2; i += each) {
        const uint32_t position = positions[i / 2 % POSITIONS],
                       rows = row_counts[i / 2 / POSITIONS];
        model m = {.dtype = i % 2 ? PLLM_BF16 : PLLM_F16,
                   .out_dtype = PLLM_F32,
                   .head_dim = (i / 2 + i / 14) % 3 ? 128 : 64,
                   .kv_heads = 1 + i % 3 % 2,
                   .distinct = (i / 2 + i / 14) % 2,
                   .kernel = kernel};
        m.heads = m.kv_heads * groups[(i / 2 + i / 8) % 4];
        sequence s = sequence_open(&m, position + rows, position);
        check_against_double(&m, &(span){&s, position, rows}, 1);
        sequence_close(&s);
    }
}

static void test_sizes(void **state)
{
    (void)state;
    sizes_of(PLLM_CUDA_PREFILL_AUTO, 1);
}

/* On Hopper this is not what AUTO runs. */
static void test_sizes_mma(void **state)
{
    (void)state;
    sizes_of(PLLM_CUDA_PREFILL_MMA, 3);
}

/* f32 and sizes that only the generic kernel takes. */
static void test_generic(void **state)
{
    (void)state;
    static const uint32_t dims[] = {8, 40, 64, 72, 96, 128, 136, 256};
    for (uint32_t i = 0; i < 24; i++) {
        const uint32_t d = dims[i / 3];
        if (brief() && d != 40 && d != 96 && d != 136) continue; /* one of each size of kernel */
        model m = {.dtype = (pllm_dtype)(i % 3),
                   .out_dtype = PLLM_F32,
                   .head_dim = d,
                   .kv_heads = 1 + i % 2,
                   .distinct = i / 2 % 2,
                   .kernel = PLLM_CUDA_PREFILL_GENERIC};
        m.heads = m.kv_heads * groups[i % 4];
        sequence s = sequence_open(&m, 500, 0);
        const span spans[] = {{&s, 37, 95}, {&s, 0, 1}, {&s, 128, 300}, {&s, 0, 64}};
        check_against_double(&m, spans, brief() ? 2 : 4);
        sequence_close(&s);
    }
}

static void test_output_formats(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 18; i += brief() ? 5 : 1) {
        const model m = {.dtype = (pllm_dtype)(i % 3),
                         .out_dtype = (pllm_dtype)(i / 3 % 3),
                         .head_dim = i < 9 ? 64 : 128,
                         .kv_heads = 2,
                         .heads = 6};
        sequence s = sequence_open(&m, 300, 0);
        check_against_double(&m, &(span){&s, 45, 211}, 1);
        sequence_close(&s);
    }
}

/* Several sequences in one call: the result of each is that of it alone, bit for bit. */
static void test_neighbours(void **state)
{
    (void)state;
    const uint32_t long_one = 1200;
    if (brief()) return; /* the same launches again, as for the two tests behind this one */
    for (uint32_t i = 0; i < 18; i++) {
        const model m = {.dtype = (pllm_dtype)(i < 12 ? i % 3 : 1 + i % 2),
                         .out_dtype = PLLM_F32,
                         .head_dim = i / 3 % 2 ? 64 : 128,
                         .kv_heads = 2,
                         .heads = 8,
                         .distinct = i / 6 % 2,
                         .kernel = i < 12 ? PLLM_CUDA_PREFILL_AUTO : PLLM_CUDA_PREFILL_MMA};
        sequence s[4] = {sequence_open(&m, 129, 0), sequence_open(&m, 700, 0),
                         sequence_open(&m, 33, 0), sequence_open(&m, long_one, 0)};
        const span spans[] = {{&s[0], 0, 129},
                              {&s[1], 131, 450},
                              {&s[2], 32, 1},
                              {&s[3], long_one - 200, 200},
                              {&s[1], 0, 131}};
        float *all = out_open(&m, spans, 5), *one = out_open(&m, spans, 5);
        check_against_double(&m, spans, 5);
        run(&m, spans, 5, all);
        uint64_t at = 0;
        for (uint32_t j = 0; j < 5; j++) {
            run(&m, &spans[j], 1, one);
            const uint64_t size = (uint64_t)spans[j].rows * m.heads * m.head_dim;
            if (!launches_only()) assert_memory_equal(all + at, one, size * sizeof(*one));
            at += size;
        }
        free(all);
        free(one);
        for (uint32_t j = 0; j < 4; j++) sequence_close(&s[j]);
    }
}

/* A prompt cut anywhere gives every row the same bits. */
static void test_cuts(void **state)
{
    (void)state;
    if (brief()) return;
    for (uint32_t i = 0; i < 18; i++) {
        const model m = {.dtype = (pllm_dtype)(i < 12 ? i % 3 : 1 + i % 2),
                         .out_dtype = PLLM_F32,
                         .head_dim = i / 3 % 2 ? 64 : 128,
                         .kv_heads = 1,
                         .heads = 4,
                         .distinct = i / 6 % 2,
                         .kernel = i < 12 ? PLLM_CUDA_PREFILL_AUTO : PLLM_CUDA_PREFILL_MMA};
        sequence s = sequence_open(&m, 640, 0);
        const span whole = {&s, 0, 640};
        float *all = out_open(&m, &whole, 1), *part = out_open(&m, &whole, 1);
        run(&m, &whole, 1, all);
        static const uint32_t cuts[][8] = {{0, 300, 640},
                                           {0, 100, 300, 640},
                                           {0, 1, 2, 33, 97, 128, 257, 640},
                                           {0, 384, 385, 640}};
        for (uint32_t c = 0; c < 4; c++) {
            for (uint32_t j = 0; cuts[c][j] < 640; j++) {
                const span cut = {&s, cuts[c][j], cuts[c][j + 1] - cuts[c][j]};
                run(&m, &cut, 1, part);
                const uint64_t width = m.heads * m.head_dim;
                if (!launches_only() &&
                    memcmp(all + cut.position * width, part, cut.rows * width * sizeof(*part)))
                    fail_msg("rows %u to %u alone differ (%s, %u%s)", cut.position,
                             cut.position + cut.rows, pllm_dtype_name(m.dtype), m.head_dim,
                             m.distinct ? ", distinct" : "");
            }
        }
        free(all);
        free(part);
        sequence_close(&s);
    }
}

/* The CPU's reference kernel walks the same blocks: another reading of the same rules. */
static void test_cpu_reference(void **state)
{
    (void)state;
    enum { TOKENS = 300, DIM = 64, GROUP = 3 };
    if (brief()) return;
    for (uint32_t i = 0; i < 3; i++) {
        const model m = {.dtype = (pllm_dtype)i,
                         .out_dtype = PLLM_F32,
                         .head_dim = DIM,
                         .kv_heads = 2,
                         .heads = 2 * GROUP};
        sequence s = sequence_open(&m, TOKENS, 0);
        const span whole = {&s, 0, TOKENS};
        float *out = out_open(&m, &whole, 1);
        run(&m, &whole, 1, out);
        pllm_kv_shape shape;
        check_status(pllm_kv_shape_init(&shape, m.dtype, m.kv_heads, DIM));
        const uint64_t bytes = pllm_kv_block_bytes(&shape, shape.open);
        uint8_t *blocks = aligned_alloc(64, (TOKENS / BLOCK + 1) * bytes);
        void *scratch = aligned_alloc(64, (pllm_attention_scratch_bytes(DIM) + 63) / 64 * 64);
        assert_true(blocks && scratch);
        for (uint32_t b = 0; b * BLOCK < TOKENS; b++)
            block_fill(&m, &s, 0, b, TOKENS, blocks + b * bytes);
        for (uint32_t position = 0; position < TOKENS && !launches_only(); position += 7) {
            for (uint32_t h = 0; h < m.kv_heads; h++) {
                float q[GROUP * DIM], max[GROUP], sum[GROUP], got[GROUP * DIM] = {0}, row[DIM];
                for (uint32_t c = 0; c < GROUP * DIM; c++)
                    q[c] = element_get(s.q, m.dtype,
                                       ((uint64_t)position * m.heads + h * GROUP) * DIM + c) /
                           8;
                for (uint32_t g = 0; g < GROUP; g++) max[g] = -INFINITY, sum[g] = 0;
                for (uint32_t chunk = 0; chunk * PLLM_CHUNK_TOKENS <= position; chunk++) {
                    const uint32_t first = chunk * PLLM_CHUNK_TOKENS;
                    pllm_kv_view view = {.token_count = position + 1 - first};
                    if (view.token_count > PLLM_CHUNK_TOKENS) view.token_count = PLLM_CHUNK_TOKENS;
                    view.block_count = (view.token_count + BLOCK - 1) / BLOCK;
                    for (uint32_t b = 0; b < view.block_count; b++)
                        view.blocks[b] = blocks + (first / BLOCK + b) * bytes;
                    pllm_attention_reference.attend_prefill(&shape, &view, h, q, GROUP * DIM, GROUP,
                                                            1, position + 1 - first, max, sum, got,
                                                            scratch);
                }
                for (uint32_t g = 0; g < GROUP; g++) {
                    pllm_attention_reference.finish(row, got + g * DIM, sum[g], DIM);
                    for (uint32_t c = 0; c < DIM; c++) {
                        const float x =
                            out[((uint64_t)position * m.heads + h * GROUP + g) * DIM + c];
                        assert_true(fabsf(x - row[c]) <= 10 * (float)tolerance(&m));
                    }
                }
            }
        }
        free(scratch);
        free(blocks);
        free(out);
        sequence_close(&s);
    }
}

static void test_refusals(void **state)
{
    (void)state;
    const pllm_cuda_prefill good = {.heads = 4,
                                    .kv_heads = 2,
                                    .head_dim = 64,
                                    .dtype = PLLM_F16,
                                    .scale = 0.125f,
                                    .sealed = pool.va,
                                    .sealed_bytes = 16384,
                                    .table = table.va,
                                    .stage = stage.va,
                                    .stage_bytes = 16384,
                                    .items = items.va,
                                    .q = q_rows.va,
                                    .q_stride = 256,
                                    .out = out_rows.va,
                                    .out_stride = 256};
    assert_int_equal(pllm_cuda_attend_prefill(prefill, stream, &good), PLLM_OK); /* no items */
    pllm_cuda_prefill bad[10];
    for (uint32_t i = 0; i < 10; i++) bad[i] = good;
    bad[0].heads = 3;
    bad[1].head_dim = 60;
    bad[2].head_dim = 264;
    bad[3].dtype = PLLM_INT8;
    bad[4].out_dtype = PLLM_Q8_0;
    bad[5].sealed_bytes = 8192;
    bad[6].q_stride = 252;
    bad[7].q += 8;
    bad[8].scale = 0;
    bad[9].band = 3;
    for (uint32_t i = 0; i < 10; i++)
        assert_int_equal(pllm_cuda_attend_prefill(prefill, stream, &bad[i]), PLLM_EINVAL);
    pllm_cuda_prefill unsupported = good;
    unsupported.dtype = PLLM_F32;
    unsupported.sealed_bytes = unsupported.stage_bytes = 32768;
    unsupported.item_count = unsupported.row_max = 1;
    unsupported.kernel = PLLM_CUDA_PREFILL_SM90;
    assert_int_equal(pllm_cuda_attend_prefill(prefill, stream, &unsupported), PLLM_EUNSUPPORTED);
}

static int setup(void **state)
{
    (void)state;
    const pllm_cuda_device_options options = {.struct_bytes = sizeof(options)};
    if (pllm_device_open_cuda(NULL, &options, &device) < 0 ||
        device->ops->stream_open(device, &stream) < 0 ||
        pllm_cuda_prefill_open(NULL, device, &prefill) < 0) {
        fprintf(stderr, "%s\n", pllm_last_error()->text);
        return -1;
    }
    buffer_open(&pool, 96 << 20);
    buffer_open(&stage, 96 << 20);
    buffer_open(&table, ITEM_MAX * TABLE_STRIDE * 4);
    buffer_open(&items, ITEM_MAX * sizeof(pllm_cuda_prefill_item));
    buffer_open(&q_rows, 32 << 20);
    buffer_open(&out_rows, 32 << 20);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    buffer *all[] = {&pool, &stage, &table, &items, &q_rows, &out_rows};
    for (uint32_t i = 0; i < 6; i++) buffer_close(all[i]);
    pllm_cuda_prefill_close(prefill);
    device->ops->stream_close(device, stream);
    pllm_device_close(device);
    return 0;
}

/* An argument, as in "test_cuts*", picks tests. */
int main(int argc, char **argv)
{
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refusals),       cmocka_unit_test(test_generic),
        cmocka_unit_test(test_output_formats), cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_sizes_mma),      cmocka_unit_test(test_neighbours),
        cmocka_unit_test(test_cuts),           cmocka_unit_test(test_cpu_reference),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
