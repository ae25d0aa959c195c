/* Attention over paged KV blocks on a CUDA device, against the CPU's reference kernels: partials
 * and merge, seal (every byte), expand; and rule 1: a row's bits are the same alone and beside
 * others, in one launch and in waves, whatever lies in rows that are not written yet or in other
 * frames. Frames are shuffled, unused ones and all results are filled with NaN before.
 *
 * Brief form, at most 300 launches, reaches: pllm_attend_* pllm_kv_*. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "brief.h"
#include "device/cuda.h"
#include "kernels/attention.h"
#include "kernels/cuda/attention.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

static uint64_t seed = 1;
static uint32_t random_u32(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33);
}
static float uniform(void) /* -1..1 */
{
    return (float)((int32_t)random_u32() - (1 << 30)) * 0x1p-30f;
}

/* ---- the device ---- */

static pllm_device *device;
static pllm_cuda_attention *attention;
static pllm_stream *stream;
static uint8_t *staging; /* pinned */
enum { STAGING_BYTES = 32 << 20 };

static int open_device(void **state)
{
    (void)state;
    if (pllm_device_open_cuda(NULL, NULL, &device) < 0 ||
        pllm_cuda_attention_open(NULL, device, &attention) < 0 ||
        device->ops->stream_open(device, &stream) < 0 ||
        device->ops->host_alloc(device, STAGING_BYTES, (void **)&staging) < 0) {
        printf("no device: %s\n", pllm_last_error()->text);
        return -1;
    }
    return 0;
}

static int close_device(void **state)
{
    (void)state;
    if (staging) device->ops->host_free(device, staging, STAGING_BYTES);
    if (stream) device->ops->stream_close(device, stream);
    pllm_cuda_attention_close(attention);
    pllm_device_close(device);
    return 0;
}

static void ok(int status)
{
    if (status < 0) fail_msg("status %d: %s", status, pllm_last_error()->text);
}

typedef struct memory {
    pllm_va va;
    uint64_t bytes, reserved;
    pllm_chunk *chunk;
} memory;

/* Filled with 0xff: NaN in every float format. */
static memory memory_open(uint64_t bytes)
{
    pllm_device_info info;
    ok(device->ops->info(device, &info));
    memory m = {.bytes = bytes};
    m.reserved = (bytes + info.granularity_bytes) / info.granularity_bytes * info.granularity_bytes;
    ok(device->ops->reserve(device, m.reserved, &m.va));
    ok(device->ops->chunk_create(device, m.reserved, &m.chunk));
    ok(device->ops->map(device, m.va, &m.chunk, 1));
    ok(device->ops->fill(device, stream, m.va, m.reserved, 0xff));
    ok(device->ops->stream_sync(device, stream));
    return m;
}

static void memory_close(memory *m)
{
    if (!m->chunk) return;
    ok(device->ops->stream_sync(device, stream));
    device->ops->unmap(device, m->va, m->chunk);
    device->ops->chunk_destroy(device, m->chunk);
    device->ops->release(device, m->va, m->reserved);
    m->chunk = NULL;
}

static void memory_put(pllm_va to, const void *from, uint64_t bytes)
{
    for (uint64_t done = 0; done < bytes; done += STAGING_BYTES) {
        uint64_t part = bytes - done < STAGING_BYTES ? bytes - done : STAGING_BYTES;
        memcpy(staging, (const uint8_t *)from + done, part);
        pllm_copy copy = {to + done, (pllm_va)(uintptr_t)staging, part};
        ok(device->ops->copy(device, stream, PLLM_COPY_IN, &copy));
        ok(device->ops->stream_sync(device, stream));
    }
}

static void memory_get(void *to, pllm_va from, uint64_t bytes)
{
    for (uint64_t done = 0; done < bytes; done += STAGING_BYTES) {
        uint64_t part = bytes - done < STAGING_BYTES ? bytes - done : STAGING_BYTES;
        pllm_copy copy = {(pllm_va)(uintptr_t)staging, from + done, part};
        ok(device->ops->copy(device, stream, PLLM_COPY_OUT, &copy));
        ok(device->ops->stream_sync(device, stream));
        memcpy((uint8_t *)to + done, staging, part);
    }
}

static memory memory_of(const void *from, uint64_t bytes)
{
    memory m = memory_open(bytes);
    memory_put(m.va, from, bytes);
    return m;
}

/* ---- a cache of several sequences, on both sides ---- */

enum { LAYERS = 2, LAYER = 1, ROWS_MAX = 8 };

typedef struct world {
    pllm_cuda_kv kv;
    uint32_t rows, blocks_max, frame_count;
    uint32_t length[ROWS_MAX], slot[ROWS_MAX]; /* by row */
    uint32_t *table;                           /* [slot][blocks_max] */
    uint8_t *frames, *open;                    /* as on the device */
    float *q;                                  /* [rows][heads * d], unscaled */
    memory frames_there, open_there, q_there, slot_there, length_there, table_there, partials_there,
        out_there, waves_there;
} world;

static uint64_t q_count(const world *w)
{
    return (uint64_t)w->kv.heads * w->kv.shape.head_dim;
}

/* Writes one slot's tokens: sealed blocks to shuffled frames, the last block left open. */
static void world_fill(world *w, uint32_t slot, uint32_t length, const uint32_t *shuffled,
                       uint32_t *used)
{
    const pllm_kv_shape *shape = &w->kv.shape;
    uint32_t n = shape->kv_heads * shape->head_dim;
    float *k = malloc(n * sizeof *k), *v = malloc(n * sizeof *v);
    uint8_t *open = w->open + (uint64_t)(slot * LAYERS + LAYER) * w->kv.open_bytes;
    for (uint32_t t = 0; t < length; t++) {
        uint32_t row = t % PLLM_BLOCK_TOKENS, block = t / PLLM_BLOCK_TOKENS;
        for (uint32_t i = 0; i < n; i++) {
            k[i] = uniform() * (i % 7 == 3 ? 4 : 1) + (i % 5 == 1 ? 2.0f : 0.0f);
            v[i] = uniform();
        }
        pllm_attention_reference.append(shape, open, row, k, v);
        if (row == PLLM_BLOCK_TOKENS - 1 && t + 1 < length) {
            uint32_t frame = shuffled[(*used)++];
            w->table[slot * w->blocks_max + block] = frame;
            pllm_attention_reference.seal(shape, w->frames + frame * w->kv.frame_bytes, open);
            memset(open, 0xff, w->kv.open_bytes);
        }
    }
    free(k);
    free(v);
}

static world world_open(pllm_dtype format, uint32_t kv_heads, uint32_t group, uint32_t d,
                        const uint32_t *lengths, uint32_t rows)
{
    world w = {.rows = rows};
    ok(pllm_kv_shape_init(&w.kv.shape, format, kv_heads, d));
    w.kv.heads = kv_heads * group;
    w.kv.scale = 1 / sqrtf((float)d);
    w.kv.layer_count = LAYERS;
    /* More than the blocks need: strides count, not sizes. */
    w.kv.frame_bytes = pllm_kv_block_bytes(&w.kv.shape, w.kv.shape.sealed) + 4096;
    w.kv.open_bytes = pllm_kv_block_bytes(&w.kv.shape, w.kv.shape.open) + 4096;
    for (uint32_t i = 0; i < rows; i++) {
        w.length[i] = lengths[i];
        w.slot[i] = (i * 3 + 1) % rows; /* rows are few and not a multiple of 3, or one */
        uint32_t blocks = (lengths[i] + PLLM_BLOCK_TOKENS - 1) / PLLM_BLOCK_TOKENS;
        if (blocks > w.blocks_max) w.blocks_max = blocks;
        w.frame_count += blocks;
    }
    w.frame_count += 3;
    w.kv.chunk_max = (w.blocks_max + PLLM_CHUNK_BLOCKS - 1) / PLLM_CHUNK_BLOCKS + 1;
    w.frames = malloc(w.frame_count * w.kv.frame_bytes);
    w.open = malloc((uint64_t)rows * LAYERS * w.kv.open_bytes);
    w.table = malloc((uint64_t)rows * w.blocks_max * sizeof *w.table);
    memset(w.frames, 0xff, w.frame_count * w.kv.frame_bytes);
    memset(w.open, 0xff, (uint64_t)rows * LAYERS * w.kv.open_bytes);
    uint32_t *shuffled = malloc(w.frame_count * sizeof *shuffled), used = 0;
    for (uint32_t i = 0; i < w.frame_count; i++) {
        uint32_t j = random_u32() % (i + 1);
        shuffled[i] = shuffled[j];
        shuffled[j] = i;
    }
    for (uint32_t i = 0; i < rows * w.blocks_max; i++) w.table[i] = shuffled[w.frame_count - 1];
    for (uint32_t i = 0; i < rows; i++) world_fill(&w, w.slot[i], w.length[i], shuffled, &used);
    free(shuffled);
    w.q = malloc(rows * q_count(&w) * sizeof *w.q);
    for (uint64_t i = 0; i < rows * q_count(&w); i++)
        w.q[i] = uniform() * (i % 3 == 0 ? 2.0f : 0.5f);

    w.frames_there = memory_of(w.frames, w.frame_count * w.kv.frame_bytes);
    w.open_there = memory_of(w.open, (uint64_t)rows * LAYERS * w.kv.open_bytes);
    w.q_there = memory_of(w.q, rows * q_count(&w) * sizeof *w.q);
    w.slot_there = memory_of(w.slot, rows * sizeof *w.slot);
    w.length_there = memory_of(w.length, rows * sizeof *w.length);
    w.table_there = memory_of(w.table, (uint64_t)rows * w.blocks_max * sizeof *w.table);
    w.partials_there = memory_open(pllm_cuda_attention_partial_bytes(&w.kv, rows));
    w.out_there = memory_open(rows * q_count(&w) * sizeof(float));
    w.waves_there = memory_open(2 * rows * sizeof(uint32_t));
    w.kv.frames = w.frames_there.va;
    w.kv.open = w.open_there.va;
    return w;
}

static void world_close(world *w)
{
    memory *all[] = {&w->frames_there, &w->open_there,     &w->q_there,
                     &w->slot_there,   &w->length_there,   &w->table_there,
                     &w->out_there,    &w->partials_there, &w->waves_there};
    for (uint32_t i = 0; i < COUNT(all); i++) memory_close(all[i]);
    free(w->frames);
    free(w->open);
    free(w->table);
    free(w->q);
}

/* Rows first..first+rows-1 of the world as a launch. */
static pllm_cuda_decode world_decode(const world *w, uint32_t first, uint32_t rows)
{
    pllm_cuda_decode d = {.kv = &w->kv, .layer = LAYER, .rows = rows};
    d.q = w->q_there.va + first * q_count(w) * sizeof(float);
    d.q_stride = q_count(w);
    d.row_slot = w->slot_there.va + first * sizeof(uint32_t);
    d.row_length = w->length_there.va + first * sizeof(uint32_t);
    d.table = w->table_there.va;
    d.table_stride = w->blocks_max;
    d.chunk_bound = w->kv.chunk_max;
    d.partials = w->partials_there.va;
    return d;
}

static void poison(const world *w)
{
    ok(device->ops->fill(device, stream, w->partials_there.va, w->partials_there.bytes, 0xff));
    ok(device->ops->fill(device, stream, w->out_there.va, w->out_there.bytes, 0xff));
}

/* All chunks of rows in one launch; out: [rows][heads * d]. */
static void run(const world *w, uint32_t first, uint32_t rows, float *out)
{
    pllm_cuda_decode d = world_decode(w, first, rows);
    if (rows > 1) d.chunk_bound = 100; /* large grids have kernels of their own */
    poison(w);
    ok(pllm_cuda_attend_decode(attention, stream, &d));
    ok(pllm_cuda_attend_merge(attention, stream, &d, w->out_there.va, q_count(w)));
    memory_get(out, w->out_there.va, rows * q_count(w) * sizeof *out);
}

/* The CPU's answer for one row. */
static void reference(const world *w, uint32_t row, float *out)
{
    const pllm_kv_shape *shape = &w->kv.shape;
    uint32_t d = shape->head_dim, group = w->kv.heads / shape->kv_heads, length = w->length[row];
    uint32_t chunks = (length + PLLM_CHUNK_TOKENS - 1) / PLLM_CHUNK_TOKENS;
    uint32_t first = w->kv.window && length > w->kv.window ? length - w->kv.window : 0;
    uint64_t stride = (uint64_t)group * (d + 2);
    float *partial = malloc(chunks * stride * sizeof *partial), q[16 * 256];
    for (uint32_t kv_head = 0; kv_head < shape->kv_heads; kv_head++) {
        for (uint32_t i = 0; i < group * d; i++)
            q[i] = w->q[row * q_count(w) + kv_head * group * d + i] * w->kv.scale;
        for (uint32_t chunk = 0; chunk < chunks; chunk++) {
            uint32_t begin = chunk * PLLM_CHUNK_TOKENS;
            pllm_kv_view view = {.token_count = length - begin};
            if (view.token_count > PLLM_CHUNK_TOKENS) view.token_count = PLLM_CHUNK_TOKENS;
            view.skip = first > begin ? first - begin : 0;
            view.block_count = (view.token_count + PLLM_BLOCK_TOKENS - 1) / PLLM_BLOCK_TOKENS;
            view.last_open = chunk == chunks - 1;
            for (uint32_t b = 0; b < view.block_count; b++) {
                uint32_t block = chunk * PLLM_CHUNK_BLOCKS + b;
                view.blocks[b] =
                    view.last_open && b == view.block_count - 1
                        ? w->open + (uint64_t)(w->slot[row] * LAYERS + LAYER) * w->kv.open_bytes
                        : w->frames +
                              w->table[w->slot[row] * w->blocks_max + block] * w->kv.frame_bytes;
            }
            float *at = partial + chunk * stride;
            pllm_attention_reference.attend_decode(shape, &view, kv_head, q, group, at, at + group,
                                                   at + 2 * group, NULL);
        }
        for (uint32_t h = 0; h < group; h++)
            pllm_attention_reference.merge(out + (kv_head * group + h) * d, partial + h,
                                           partial + group + h, partial + 2 * group + h * d, stride,
                                           chunks, d);
    }
    free(partial);
}

/* ---- decode ---- */

static const pllm_dtype formats[] = {PLLM_F32, PLLM_F16, PLLM_BF16, PLLM_INT8, PLLM_INT4};
static const uint32_t dims[] = {128, 64, 8, 80, 256};
static float worst[PLLM_DTYPE_COUNT];

static void check_close(const world *w, uint32_t row, const float *got, const float *want)
{
    /* Values lie in -1..1. bf16: q and p carry 16 bits where keys are bf16. */
    float tolerance = w->kv.shape.sealed == PLLM_BF16 ? 1e-4f : 1e-5f;
    for (uint64_t i = 0; i < q_count(w) && !launches_only(); i++) {
        float error = fabsf(got[i] - want[i]);
        if (!(error <= tolerance))
            fail_msg("%s, head_dim %u, %u heads over %u, %u tokens: channel %u of head %u is %g, "
                     "not %g",
                     pllm_dtype_name(w->kv.shape.sealed), w->kv.shape.head_dim, w->kv.heads,
                     w->kv.shape.kv_heads, w->length[row], (uint32_t)i % w->kv.shape.head_dim,
                     (uint32_t)i / w->kv.shape.head_dim, (double)got[i], (double)want[i]);
        if (error > worst[w->kv.shape.sealed]) worst[w->kv.shape.sealed] = error;
    }
}

static void check_rows(const world *w)
{
    float *got = malloc(w->rows * q_count(w) * sizeof *got);
    float *want = malloc(q_count(w) * sizeof *want);
    run(w, 0, w->rows, got);
    for (uint32_t row = 0; row < w->rows; row++) {
        reference(w, row, want);
        check_close(w, row, got + row * q_count(w), want);
    }
    free(got);
    free(want);
}

static void decode_matches_the_reference(void **state)
{
    (void)state;
    static const uint32_t lengths[] = {1, 257, 31, 1000, 32, 256, 33, 255};
    static const uint32_t groups[] = {1, 3, 4, 8, 12, 16};
    for (uint32_t f = 0; f < COUNT(formats); f++)
        for (uint32_t i = 0; i < COUNT(dims); i++)
            for (uint32_t g = 0; g < COUNT(groups); g++) {
                if (dims[i] != 128 && dims[i] != 64 && (g + f + i) % 3) continue;
                if (brief() && (dims[i] != 80 || groups[g] != 3)) continue; /* the generic one */
                world w = world_open(formats[f], 2, groups[g], dims[i], lengths,
                                     brief() ? 2 : COUNT(lengths));
                check_rows(&w);
                world_close(&w);
            }
}

static void long_rows_match_the_reference(void **state)
{
    (void)state;
    static const uint32_t lengths[] = {5000, 4096};
    if (brief()) return;
    for (uint32_t f = 0; f < COUNT(formats); f++) {
        world w = world_open(formats[f], 1, 1 + f, f % 2 ? 64 : 128, lengths, COUNT(lengths));
        check_rows(&w);
        world_close(&w);
    }
    for (uint32_t f = 0; f < COUNT(formats); f++)
        printf("largest error, %s: %g\n", pllm_dtype_name(formats[f]), (double)worst[formats[f]]);
}

static void a_window_hides_what_is_before_it(void **state)
{
    (void)state;
    static const uint32_t lengths[] = {20, 700, 1500, 301, 832};
    static const uint32_t windows[] = {300, 1, 512};
    for (uint32_t f = 0; f < COUNT(formats); f++)
        for (uint32_t i = 0; i < (brief() ? 1 : COUNT(windows)); i++) {
            world w = world_open(formats[f], 2, 4, f % 2 ? 64 : 128, lengths,
                                 brief() ? 2 : COUNT(lengths));
            w.kv.window = windows[i];
            check_rows(&w);
            world_close(&w);
        }
}

/* ---- bits ---- */

static void check_bits(const world *w, const float *got, const float *want, uint32_t rows,
                       const char *what)
{
    if (!launches_only() && memcmp(got, want, rows * q_count(w) * sizeof *got) != 0)
        fail_msg("%s, head_dim %u: other bits %s", pllm_dtype_name(w->kv.shape.sealed),
                 w->kv.shape.head_dim, what);
}

static void set_waves(const world *w, uint32_t first, uint32_t end)
{
    uint32_t waves[2 * ROWS_MAX];
    for (uint32_t i = 0; i < w->rows; i++) {
        waves[i] = first;
        waves[w->rows + i] = end;
    }
    memory_put(w->waves_there.va, waves, 2 * w->rows * sizeof *waves);
}

/* Chunks first..end-1 of every row, in one launch. */
static void run_wave(const world *w, uint32_t first, uint32_t end, uint32_t bound)
{
    pllm_cuda_decode d = world_decode(w, 0, w->rows);
    set_waves(w, first, end);
    d.row_chunk_first = w->waves_there.va;
    d.row_chunk_end = w->waves_there.va + w->rows * sizeof(uint32_t);
    d.chunk_bound = bound;
    ok(pllm_cuda_attend_decode(attention, stream, &d));
}

static void check_own_bits(const world *w)
{
    uint64_t count = w->rows * q_count(w);
    float *together = malloc(count * sizeof *together);
    float *other = malloc(count * sizeof *other);
    run(w, 0, w->rows, together);
    for (uint32_t row = 0; row < w->rows; row++) {
        run(w, row, 1, other);
        check_bits(w, other, together + row * q_count(w), 1, "alone");
    }
    pllm_cuda_decode d = world_decode(w, 0, w->rows);
    for (uint32_t cut = 1; cut < w->kv.chunk_max; cut++) {
        poison(w);
        run_wave(w, cut, ~0u, w->kv.chunk_max); /* the later wave first */
        run_wave(w, 0, cut, cut);
        ok(pllm_cuda_attend_merge(attention, stream, &d, w->out_there.va, q_count(w)));
        memory_get(other, w->out_there.va, count * sizeof *other);
        check_bits(w, other, together, w->rows, "in two waves");
        if (brief()) break;
    }
    poison(w);
    run_wave(w, 0, ~0u, 1); /* a grid of one chunk: CTAs go on to the others */
    ok(pllm_cuda_attend_merge(attention, stream, &d, w->out_there.va, q_count(w)));
    memory_get(other, w->out_there.va, count * sizeof *other);
    check_bits(w, other, together, w->rows, "with a smaller grid");
    free(together);
    free(other);
}

static void bits_are_the_rows_own(void **state)
{
    (void)state;
    static const uint32_t lengths[] = {1000, 1, 257, 640, 31}, few[] = {290, 33};
    for (uint32_t f = 0; f < COUNT(formats); f++)
        for (uint32_t i = 0; i < (brief() ? 4 : 3); i++) {
            /* brief: both widths of the fast kernels with one tile of heads, and with two */
            uint32_t group = brief() ? (i < 2 ? 3 : 9) : i == 1 ? 9 : 3;
            world w = brief() ? world_open(formats[f], 2, group, dims[i % 2], few, COUNT(few))
                              : world_open(formats[f], 2, group, dims[i], lengths, COUNT(lengths));
            check_own_bits(&w);
            world_close(&w);
        }
}

/* So many CTAs that the kernels for few of them are not taken, each going through all chunks. */
static void ctas_go_on_to_other_chunks(void **state)
{
    (void)state;
    static const uint32_t lengths[] = {1000, 1, 300, 40, 64, 95, 33, 520}, few[] = {270, 1, 40, 33};
    for (uint32_t f = 1; f < COUNT(formats); f++)
        for (uint32_t i = 0; i < 2; i++) {
            if (brief() && (i == 0 || f > 1)) continue;
            world w = brief() ? world_open(formats[f], 34, 1 + f, dims[i], few, COUNT(few))
                              : world_open(formats[f], 40, 1 + f, dims[i], lengths, COUNT(lengths));
            uint64_t count = w.rows * q_count(&w);
            float *one = malloc(count * sizeof *one), *many = malloc(count * sizeof *many);
            pllm_cuda_decode d = world_decode(&w, 0, w.rows);
            run(&w, 0, w.rows, many);
            poison(&w);
            run_wave(&w, 0, ~0u, 1);
            ok(pllm_cuda_attend_merge(attention, stream, &d, w.out_there.va, q_count(&w)));
            memory_get(one, w.out_there.va, count * sizeof *one);
            check_bits(&w, one, many, w.rows, "chunk after chunk");
            for (uint32_t row = 0; row < w.rows; row += 3) {
                run(&w, row, 1, one);
                check_bits(&w, one, many + row * q_count(&w), 1, "in a small grid");
            }
            free(one);
            free(many);
            world_close(&w);
        }
}

/* Rows past the end, here zeros instead of NaN. */
static void unwritten_rows_do_not_matter(void **state)
{
    (void)state;
    static const uint32_t lengths[] = {65, 300};
    if (brief()) return; /* the same launches again */
    for (uint32_t f = 0; f < COUNT(formats); f++)
        for (uint32_t i = 0; i < 3; i++) {
            world w = world_open(formats[f], 2, 2, dims[i], lengths, COUNT(lengths));
            uint64_t count = w.rows * q_count(&w);
            float *nan = malloc(count * sizeof *nan), *zero = malloc(count * sizeof *zero);
            run(&w, 0, w.rows, nan);
            uint64_t row_bytes = (uint64_t)dims[i] * pllm_dtype_block_bytes(w.kv.shape.open);
            for (uint32_t row = 0; row < w.rows; row++)
                for (uint32_t part = 0; part < 4; part++) /* keys and values of two heads */
                    memset(w.open + (w.slot[row] * LAYERS + LAYER) * w.kv.open_bytes +
                               (part * PLLM_BLOCK_TOKENS + (w.length[row] - 1) % 32 + 1) *
                                   row_bytes,
                           0, (31 - (w.length[row] - 1) % 32) * row_bytes);
            memory_put(w.open_there.va, w.open, w.open_there.bytes);
            run(&w, 0, w.rows, zero);
            check_bits(&w, zero, nan, w.rows, "with other unwritten rows");
            free(nan);
            free(zero);
            world_close(&w);
        }
}

/* A captured step reads lengths from device memory; an idle row gives zeros. */
static void a_graph_follows_the_lengths(void **state)
{
    (void)state;
    static const uint32_t lengths[] = {700, 40};
    for (uint32_t f = 0; f < (brief() ? 1 : COUNT(formats)); f++) {
        world w = world_open(formats[f], 2, 4, 128, lengths, COUNT(lengths));
        uint64_t count = w.rows * q_count(&w);
        float *want = malloc(count * sizeof *want), *got = malloc(count * sizeof *got);
        pllm_cuda_graph *graph;
        pllm_cuda_decode d = world_decode(&w, 0, w.rows);
        d.dependent = 1;
        ok(pllm_cuda_capture_begin(device, stream));
        ok(pllm_cuda_attend_decode(attention, stream, &d));
        ok(pllm_cuda_attend_merge(attention, stream, &d, w.out_there.va, q_count(&w)));
        ok(pllm_cuda_capture_end(device, stream, &graph));
        for (uint32_t step = 0; step < 3; step++) {
            /* 700 and 40, then one token less each, then the second row idle. */
            w.length[0] = lengths[0] - (step > 0);
            w.length[1] = step == 2 ? 0 : lengths[1] - step;
            memory_put(w.length_there.va, w.length, w.rows * sizeof *w.length);
            run(&w, 0, w.rows, want);
            poison(&w);
            ok(pllm_cuda_graph_launch(device, graph, stream));
            memory_get(got, w.out_there.va, count * sizeof *got);
            check_bits(&w, got, want, w.rows, "from a graph");
            if (step == 2 && !launches_only())
                for (uint64_t i = 0; i < q_count(&w); i++) assert_true(got[q_count(&w) + i] == 0);
        }
        pllm_cuda_graph_close(graph);
        free(want);
        free(got);
        world_close(&w);
    }
}

static void merge_rounds_to_the_type_asked_for(void **state)
{
    (void)state;
    static const uint32_t lengths[] = {300, 7};
    world w = world_open(PLLM_F16, 2, 2, 80, lengths, COUNT(lengths));
    uint64_t count = w.rows * q_count(&w);
    float *full = malloc(count * sizeof *full);
    uint16_t *half = malloc(count * sizeof *half);
    run(&w, 0, w.rows, full);
    for (int bf16 = 0; bf16 < 2; bf16++) {
        pllm_cuda_decode d = world_decode(&w, 0, w.rows);
        d.out_dtype = bf16 ? PLLM_BF16 : PLLM_F16;
        ok(pllm_cuda_attend_merge(attention, stream, &d, w.out_there.va, q_count(&w)));
        memory_get(half, w.out_there.va, count * sizeof *half);
        for (uint64_t i = 0; i < count && !launches_only(); i++)
            assert_int_equal(half[i], bf16 ? pllm_f32_to_bf16(full[i]) : pllm_f32_to_f16(full[i]));
    }
    pllm_cuda_decode d = world_decode(&w, 0, w.rows);
    d.out_dtype = PLLM_INT8;
    assert_int_equal(pllm_cuda_attend_merge(attention, stream, &d, w.out_there.va, q_count(&w)),
                     PLLM_EINVAL);
    w.kv.heads = 5;
    assert_int_equal(pllm_cuda_attend_decode(attention, stream, &d), PLLM_EINVAL);
    free(full);
    free(half);
    world_close(&w);
}

/* ---- seal and expand ---- */

/* Ordinary rows, and what makes rounding hard: equal values, both zeros, tiny and large ones. */
static float hard_value(uint32_t kind, uint32_t i)
{
    switch (kind) {
    case 0:
        return uniform() * (i % 7 == 3 ? 6 : 1);
    case 1:
        return i % 3 ? -0.0f : 0.0f;
    case 2:
        return uniform() * 0x1p-14f;
    case 3:
        return uniform() * 60000;
    case 4:
        return 0.1f;
    default:
        return i % 5 ? 0.0f : -uniform() * uniform();
    }
}

static void seal_gives_the_cpus_bytes(void **state)
{
    (void)state;
    enum { BLOCKS = 12, FRAMES = 15, HEADS = 3 };
    for (uint32_t f = 0; f < COUNT(formats); f++)
        for (uint32_t i = 0; i < COUNT(dims); i++) {
            if (brief() && dims[i] != 64 && dims[i] != 80) continue;
            pllm_cuda_kv kv = {.heads = HEADS, .layer_count = 1, .chunk_max = 1};
            ok(pllm_kv_shape_init(&kv.shape, formats[f], HEADS, dims[i]));
            uint64_t open_bytes = pllm_kv_block_bytes(&kv.shape, kv.shape.open);
            uint64_t slices = pllm_kv_slice_bytes(&kv.shape, formats[f]) * HEADS;
            kv.frame_bytes = pllm_kv_block_bytes(&kv.shape, formats[f]);
            kv.open_bytes = open_bytes;
            uint8_t *open = malloc(BLOCKS * open_bytes), *want = malloc(kv.frame_bytes);
            uint8_t *got = malloc(FRAMES * kv.frame_bytes);
            float k[HEADS * 256], v[HEADS * 256];
            memset(open, 0xff, BLOCKS * open_bytes);
            for (uint32_t block = 0; block < BLOCKS; block++)
                for (uint32_t row = 0; row < PLLM_BLOCK_TOKENS; row++) {
                    for (uint32_t c = 0; c < HEADS * dims[i]; c++) {
                        k[c] = hard_value(block % 6, row + c);
                        v[c] = hard_value((block + block / 6) % 6, row + c);
                    }
                    pllm_attention_reference.append(&kv.shape, open + block * open_bytes, row, k,
                                                    v);
                }
            uint32_t pairs[BLOCKS][2];
            for (uint32_t block = 0; block < BLOCKS; block++) {
                pairs[block][0] = (block * 5 + 2) % BLOCKS;
                pairs[block][1] = (block * 7 + 4) % FRAMES;
            }
            memory from = memory_of(open, BLOCKS * open_bytes);
            memory frames = memory_open(FRAMES * kv.frame_bytes);
            memory list = memory_of(pairs, sizeof pairs);
            kv.frames = frames.va;
            ok(pllm_cuda_seal(attention, stream, &kv, from.va, open_bytes, list.va, BLOCKS));
            memory_get(got, frames.va, FRAMES * kv.frame_bytes);
            for (uint32_t block = 0; block < BLOCKS; block++) {
                memset(want, 0xff, kv.frame_bytes);
                pllm_attention_reference.seal(&kv.shape, want, open + pairs[block][0] * open_bytes);
                const uint8_t *frame = got + pairs[block][1] * kv.frame_bytes;
                for (uint64_t byte = 0; byte < slices && !launches_only(); byte++)
                    if (frame[byte] != want[byte])
                        fail_msg("%s, head_dim %u, kind %u: byte %u is %u, not %u",
                                 pllm_dtype_name(formats[f]), dims[i], pairs[block][0] % 6,
                                 (uint32_t)byte, frame[byte], want[byte]);
            }
            memory_close(&from);
            memory_close(&frames);
            memory_close(&list);
            free(open);
            free(want);
            free(got);
        }
}

static void expand_gives_the_rows_rounded(void **state)
{
    (void)state;
    static const uint32_t lengths[] = {193, 65};
    for (uint32_t f = 3; f < 5; f++)
        for (uint32_t i = 0; i < COUNT(dims); i++) {
            if (brief() && dims[i] != 64 && dims[i] != 80) continue;
            world w = world_open(formats[f], 3, 1, dims[i], lengths, COUNT(lengths));
            uint32_t list[] = {w.table[w.slot[0] * w.blocks_max + 5],
                               w.table[w.slot[1] * w.blocks_max],
                               w.table[w.slot[0] * w.blocks_max]};
            uint64_t to_bytes = w.kv.open_bytes;
            memory table = memory_of(list, sizeof list), to = memory_open(COUNT(list) * to_bytes);
            ok(pllm_cuda_expand(attention, stream, &w.kv, table.va, COUNT(list), to.va, to_bytes));
            uint8_t *got = malloc(COUNT(list) * to_bytes);
            memory_get(got, to.va, COUNT(list) * to_bytes);
            for (uint32_t b = 0; b < COUNT(list) && !launches_only(); b++)
                for (uint32_t head = 0; head < 3; head++)
                    for (uint32_t row = 0; row < 64; row++) {
                        float x[256];
                        pllm_kv_read_row(&w.kv.shape, formats[f],
                                         w.frames + list[b] * w.kv.frame_bytes, head, row / 32,
                                         row % 32, x);
                        const uint16_t *at = (const void *)(got + b * to_bytes);
                        at += (head * 64 + row) * dims[i];
                        for (uint32_t c = 0; c < dims[i]; c++)
                            assert_int_equal(at[c], pllm_f32_to_f16(x[c]));
                    }
            free(got);
            memory_close(&table);
            memory_close(&to);
            world_close(&w);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(seal_gives_the_cpus_bytes),
        cmocka_unit_test(expand_gives_the_rows_rounded),
        cmocka_unit_test(decode_matches_the_reference),
        cmocka_unit_test(long_rows_match_the_reference),
        cmocka_unit_test(a_window_hides_what_is_before_it),
        cmocka_unit_test(bits_are_the_rows_own),
        cmocka_unit_test(ctas_go_on_to_other_chunks),
        cmocka_unit_test(unwritten_rows_do_not_matter),
        cmocka_unit_test(a_graph_follows_the_lengths),
        cmocka_unit_test(merge_rounds_to_the_type_asked_for),
    };
    return cmocka_run_group_tests(tests, open_device, close_device);
}
