/* Rule 1: placement never changes a result. The bits of every row of logits of one sequence are
 * compared with those of a plain run (no limit, one thread, alone, the prompt in one piece), over
 * budgets, policies, prefetchers, threads, tiers, cuts of the prompt and strangers in the batch.
 * A starved run must really have moved pages, or streamed weights, so that it cannot pass by not
 * being starved. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "engine_support.h"

#define MODEL PLLM_SOURCE_DIR "/tests/reference/models/llama"

enum { VOCAB = 320, GRANULE = 65536, TOKEN_COUNT = 375, SEQUENCES = 3 };

/* The sequence under test: prompt and generated tokens in turn. The ids are fixed, so that a wrong
 * logit shows once and not as another text. */
static const struct {
    uint32_t count, generated;
} script[] = {{300, 0}, {40, 1}, {30, 0}, {5, 1}};

typedef struct setting {
    uint32_t frames; /* 0: no limit */
    const char *policy, *prefetch, *format;
    uint32_t threads, piece, strangers; /* piece: prompt tokens a step; 0: all at once */
    uint64_t host_bytes, disk_bytes;
    uint64_t vram_over; /* 0: no limit; n: vram_limit is the least and n - 1 granules */
} setting;

static uint32_t id_at(uint32_t sequence, uint32_t position)
{
    return (position * 2654435761u + sequence * 40503u + 17u) >> 7 & 255;
}

typedef struct rows {
    float *logits; /* [TOKEN_COUNT][VOCAB] */
    uint8_t seen[TOKEN_COUNT];
} rows;

static int keep(void *user, uint32_t item, uint32_t position, const float *logits)
{
    rows *r = user;
    if (item != 0 || position >= TOKEN_COUNT) return 0;
    memcpy(r->logits + (uint64_t)position * VOCAB, logits, VOCAB * sizeof(float));
    r->seen[position]++;
    return 0;
}

static pllm_engine *open_setting(const setting *s)
{
    pllm_engine_options options = {.struct_bytes = sizeof options,
                                   .threads = s->threads,
                                   .policy = s->policy,
                                   .prefetch_strategy = s->prefetch,
                                   .kv_format = s->format,
                                   .host_memory_bytes = s->host_bytes,
                                   .nvme_path = PLLM_BINARY_DIR,
                                   .nvme_size_bytes = s->disk_bytes,
                                   .sequence_max = SEQUENCES,
                                   .granularity_bytes = GRANULE};
    if (s->frames) {
        /* Open blocks are 3 sequences x 3 layers; the rest is for frames. */
        pllm_engine *probe = test_engine_open(MODEL, &options);
        pllm_engine_info info = {.struct_bytes = sizeof info};
        assert_int_equal(pllm_engine_info_get(probe, &info), PLLM_OK);
        uint64_t least_frames = (8 * info.kv_bytes_per_block + GRANULE - 1) / GRANULE * GRANULE;
        options.kv_limit_bytes =
            info.least_kv_bytes - least_frames + s->frames * info.kv_bytes_per_block;
        if (options.kv_limit_bytes < info.least_kv_bytes)
            options.kv_limit_bytes = info.least_kv_bytes;
        pllm_engine_close(probe);
    }
    if (s->vram_over) {
        pllm_engine *probe = test_engine_open(MODEL, &options);
        pllm_engine_info info = {.struct_bytes = sizeof info};
        assert_int_equal(pllm_engine_info_get(probe, &info), PLLM_OK);
        options.vram_limit_bytes = info.least_vram_bytes + (s->vram_over - 1) * GRANULE;
        pllm_engine_close(probe);
    }
    return test_engine_open(MODEL, &options);
}

/* One step: count tokens of the sequence under test, and something of every stranger. */
static void step(pllm_engine *engine, pllm_sequence **sequences, const setting *s, uint32_t count,
                 uint32_t generated, rows *r)
{
    uint32_t ids[SEQUENCES][512], items = 1 + s->strangers;
    pllm_step_item item[SEQUENCES];
    for (uint32_t i = 0; i < items; i++) {
        uint32_t length = pllm_sequence_length(sequences[i]), n = count, sampled = generated;
        if (i > 0) {
            sampled = length >= 150 + 40 * i;
            n = sampled ? 1 : 37;
            if (length + n > 500) {
                items = i; /* full: it leaves the batch */
                break;
            }
        }
        for (uint32_t j = 0; j < n; j++) ids[i][j] = id_at(i, length + j);
        item[i] = (pllm_step_item){.sequence = sequences[i],
                                   .ids = ids[i],
                                   .token_count = n,
                                   .generated = sampled,
                                   .logits = i == 0 ? 2 : 1};
    }
    if (pllm_engine_step(engine, item, items, keep, r) < 0) fail_msg("%s", pllm_last_error()->text);
}

static void run_script(pllm_engine *engine, const setting *s, rows *r)
{
    pllm_sequence *sequences[SEQUENCES] = {0};
    for (uint32_t i = 0; i <= s->strangers; i++)
        assert_int_equal(pllm_sequence_open(engine, &sequences[i]), PLLM_OK);
    for (uint32_t i = 0; i < sizeof script / sizeof script[0]; i++) {
        uint32_t most = script[i].generated ? 1 : s->piece ? s->piece : script[i].count;
        for (uint32_t done = 0; done < script[i].count;) {
            uint32_t n = script[i].count - done < most ? script[i].count - done : most;
            step(engine, sequences, s, n, script[i].generated, r);
            done += n;
        }
    }
    for (uint32_t i = 0; i <= s->strangers; i++) pllm_sequence_close(sequences[i]);
}

static rows rows_new(void)
{
    rows r = {.logits = calloc((size_t)TOKEN_COUNT * VOCAB, sizeof(float))};
    assert_non_null(r.logits);
    return r;
}

static rows plain_run(const char *format)
{
    const setting plain = {.policy = "static", .prefetch = "none", .format = format, .threads = 1};
    rows r = rows_new();
    pllm_engine *engine = open_setting(&plain);
    run_script(engine, &plain, &r);
    pllm_engine_close(engine);
    for (uint32_t i = 0; i < TOKEN_COUNT; i++) assert_int_equal(r.seen[i], 1);
    return r;
}

/* Runs a setting and compares. Returns bytes that came back to the device. */
static uint64_t check(const setting *s, const rows *expected)
{
    rows r = rows_new();
    pllm_engine *engine = open_setting(s);
    run_script(engine, s, &r);
    pllm_engine_stats stats = {.struct_bytes = sizeof stats};
    assert_int_equal(pllm_engine_stats_get(engine, &stats), PLLM_OK);
    uint64_t moved = stats.host_to_device_bytes + stats.disk_to_device_bytes;
    for (uint32_t i = 0; i < TOKEN_COUNT; i++) {
        assert_int_equal(r.seen[i], 1);
        if (memcmp(r.logits + (uint64_t)i * VOCAB, expected->logits + (uint64_t)i * VOCAB,
                   VOCAB * sizeof(float)) != 0)
            fail_msg(
                "row %u differs: frames %u, %s, %s, kv %s, %u threads, pieces of %u, %u strangers, "
                "host %llu, disk %llu, vram %llu",
                i, s->frames, s->policy, s->prefetch, s->format, s->threads, s->piece, s->strangers,
                (unsigned long long)s->host_bytes, (unsigned long long)s->disk_bytes,
                (unsigned long long)s->vram_over);
    }
    if (s->frames) {
        if (stats.evictions == 0 || moved == 0)
            fail_msg(
                "a starved run moved nothing: %llu evictions, %llu bytes in (%u frames, %s, %s)",
                (unsigned long long)stats.evictions, (unsigned long long)moved, s->frames,
                s->policy, s->prefetch);
        if (s->host_bytes == 0) assert_true(stats.disk_to_device_bytes > 0);
    }
    if (s->vram_over) {
        assert_true(stats.weight_stream_bytes > 0);
        moved += stats.weight_stream_bytes;
    }
    assert_true(stats.device_bytes_peak <= stats.device_limit_bytes);
    pllm_engine_close(engine);
    free(r.logits);
    return moved;
}

static void full_product(void **state)
{
    (void)state;
    /* 12 groups x 3 layers: half of 36 pages, a tenth of the 108 that three sequences fill,
     * and the least that works; 0 is no limit. */
    static const uint32_t frames[] = {0, 18, 11, 8};
    static const char *const policies[] = {"static", "lru", "2q"};
    static const char *const prefetchers[] = {"sequential", "none"};
#if defined(PLLM_SANITIZED)
    enum {
        THREADS_FIRST = 1,
        THREADS_END = 2
    }; /* sanitizers look for races, and take their time */
#else
    enum { THREADS_FIRST = 0, THREADS_END = 3 };
#endif
    static const uint32_t threads[] = {1, 2, 4}, pieces[] = {0, 100, 23}, strangers[] = {0, 2};
    static const struct {
        uint64_t host, disk;
    } tiers[] = {{64 << 20, 0}, {128 << 10, 12 << 20}, {0, 12 << 20}};
    rows expected = plain_run("auto");
    uint32_t runs = 0;
    uint64_t moved = 0;
    for (uint32_t f = 0; f < 4; f++)
        for (uint32_t p = 0; p < 3; p++)
            for (uint32_t x = 0; x < 2; x++)
                for (uint32_t t = THREADS_FIRST; t < THREADS_END; t++)
                    for (uint32_t c = 0; c < 3; c++)
                        for (uint32_t a = 0; a < 2; a++)
                            for (uint32_t d = 0; d < 3; d++) {
                                if (frames[f] == 0 && (p || x || d)) continue; /* the same run */
                                setting s = {.frames = frames[f],
                                             .policy = policies[p],
                                             .prefetch = prefetchers[x],
                                             .format = "auto",
                                             .threads = threads[t],
                                             .piece = pieces[c],
                                             .strangers = strangers[a],
                                             .host_bytes = tiers[d].host,
                                             .disk_bytes = tiers[d].disk};
                                moved += check(&s, &expected);
                                runs++;
                            }
    printf("    %u runs of %u rows equal; %llu MiB came back to the device\n", runs, TOKEN_COUNT,
           (unsigned long long)(moved >> 20));
    free(expected.logits);
}

/* Weights that pass through a ring: none of them resident, and some. */
static void streamed_weights(void **state)
{
    (void)state;
    static const uint32_t threads[] = {1, 2, 4}, pieces[] = {0, 100, 23}, strangers[] = {0, 2};
    rows expected = plain_run("auto");
    uint64_t moved = 0;
    for (uint32_t t = 0; t < 3; t++)
        for (uint32_t c = 0; c < 3; c++)
            for (uint32_t a = 0; a < 2; a++)
                for (uint32_t over = 1; over < 4; over++) {
                    setting s = {.policy = "static",
                                 .prefetch = "sequential",
                                 .format = "auto",
                                 .threads = threads[t],
                                 .piece = pieces[c],
                                 .strangers = strangers[a],
                                 .host_bytes = 64 << 20,
                                 .vram_over = over};
                    moved += check(&s, &expected);
                }
    printf("    %llu MiB moved\n", (unsigned long long)(moved >> 20));
    free(expected.logits);
}

static void every_format(void **state)
{
    (void)state;
    static const char *const formats[] = {"f32", "f16", "bf16", "int8", "int4"};
    for (uint32_t i = 0; i < 5; i++) {
        rows expected = plain_run(formats[i]);
        for (uint32_t piece = 0; piece < 3; piece++) {
            setting s = {.frames = 8,
                         .policy = "static",
                         .prefetch = "sequential",
                         .format = formats[i],
                         .threads = 2,
                         .piece = (uint32_t[]){0, 23, 1}[piece],
                         .strangers = 2,
                         .host_bytes = 64 << 10,
                         .disk_bytes = 64 << 20};
            check(&s, &expected);
        }
        free(expected.logits);
    }
}

/* A fork shares sealed blocks; a cut throws rows away that come back the way they were made. */
static void forks_and_cuts(void **state)
{
    (void)state;
    static const char *const formats[] = {"auto", "f16", "int8", "int4"};
    for (uint32_t i = 0; i < 4; i++) {
        rows expected = plain_run(formats[i]);
        setting s = {.frames = 8,
                     .policy = "lru",
                     .prefetch = "sequential",
                     .format = formats[i],
                     .threads = 2,
                     .host_bytes = 64 << 20};
        pllm_engine *engine = open_setting(&s);
        pllm_sequence *one, *two;
        assert_int_equal(pllm_sequence_open(engine, &one), PLLM_OK);
        rows r = rows_new();
        pllm_sequence *both[SEQUENCES] = {one};
        step(engine, both, &s, 300, 0, &r);
        for (uint32_t j = 0; j < 25; j++) step(engine, both, &s, 1, 1, &r);
        assert_int_equal(pllm_sequence_fork(one, &two), PLLM_OK);
        /* The fork goes its own way, then back to a token inside a sealed block among generated
         * ones. */
        uint32_t other[70];
        for (uint32_t j = 0; j < 70; j++) other[j] = 300 - j;
        pllm_step_item item = {.sequence = two, .ids = other, .token_count = 70, .logits = 1};
        rows ignored = rows_new();
        assert_int_equal(pllm_engine_step(engine, &item, 1, keep, &ignored), PLLM_OK);
        assert_int_equal(pllm_sequence_truncate(two, 310), PLLM_OK);
        assert_int_equal(pllm_sequence_length(two), 310);
        for (uint32_t j = 0; j < 15; j++) step(engine, both, &s, 1, 1, &r);
        pllm_sequence *fork[SEQUENCES] = {two};
        rows q = rows_new();
        for (uint32_t j = 310; j < 340; j++) step(engine, fork, &s, 1, 1, &q);
        for (uint32_t j = 0; j < 340; j++)
            if (memcmp(r.logits + j * VOCAB, expected.logits + j * VOCAB, VOCAB * sizeof(float)) !=
                0)
                fail_msg("kv %s: row %u of the forked sequence differs", formats[i], j);
        for (uint32_t j = 310; j < 340; j++)
            if (memcmp(q.logits + j * VOCAB, expected.logits + j * VOCAB, VOCAB * sizeof(float)) !=
                0)
                fail_msg("kv %s: row %u of the cut fork differs", formats[i], j);
        pllm_sequence_close(two);
        pllm_sequence_close(one);
        pllm_engine_close(engine);
        free(ignored.logits);
        free(q.logits);
        free(r.logits);
        free(expected.logits);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(full_product),
        cmocka_unit_test(streamed_weights),
        cmocka_unit_test(every_format),
        cmocka_unit_test(forks_and_cuts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
