/* Weights under a vram_limit: what stays, what passes through the ring, and that a pass reads every
 * part after it has come, whatever passes were before it. On the sim device bytes move only when
 * something waits for them, so a wait that is missing shows every time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "base/clock.h"
#include "device/device.h"
#include "engine/parts.h"
#include "engine_support.h"

/* The output matrix of the second is its embedding too. */
static const char *const models[] = {PLLM_SOURCE_DIR "/tests/reference/models/llama",
                                     PLLM_SOURCE_DIR "/tests/reference/models/llama-rope3"};

enum { VOCAB = 320, GRANULE = 65536, MOST = 400, UNTIL_END = -1 };

/* Prompts and generated tokens, some steps with no logits, some with more rows of them than the
 * output matrix takes at once: the ring's order differs from pass to pass. */
static const struct {
    uint32_t count, generated, logits;
} script[] = {{40, 0, 2}, {1, 1, 1}, {20, 0, 0}, {1, 1, 0}, {1, 1, 1}, {70, 0, 2},
              {3, 0, 0},  {1, 1, 1}, {60, 0, 1}, {1, 1, 1}, {1, 1, 1}, {90, 0, 2}};
enum { STEPS = sizeof script / sizeof script[0] };

typedef struct rows {
    float logits[MOST][VOCAB];
    uint8_t seen[MOST];
    int64_t cancel_at, calls;
} rows;

static int keep(void *user, uint32_t item, uint32_t position, const float *logits)
{
    rows *r = user;
    (void)item;
    if (r->calls++ == r->cancel_at) return 1;
    memcpy(r->logits[position], logits, sizeof r->logits[position]);
    r->seen[position] = 1;
    return 0;
}

static rows *rows_new(void)
{
    rows *r = calloc(1, sizeof *r);
    assert_non_null(r);
    r->cancel_at = UNTIL_END;
    return r;
}

static pllm_engine_options plain(uint32_t threads)
{
    return (pllm_engine_options){.struct_bytes = sizeof(pllm_engine_options),
                                 .threads = threads,
                                 .host_memory_bytes = 64 << 20,
                                 .granularity_bytes = GRANULE};
}

static pllm_engine_info info_of(const pllm_engine *engine)
{
    pllm_engine_info info = {.struct_bytes = sizeof info};
    assert_int_equal(pllm_engine_info_get(engine, &info), PLLM_OK);
    return info;
}

static pllm_engine_stats stats_of(const pllm_engine *engine)
{
    pllm_engine_stats stats = {.struct_bytes = sizeof stats};
    assert_int_equal(pllm_engine_stats_get(engine, &stats), PLLM_OK);
    return stats;
}

static uint64_t least_of(const char *model, const pllm_engine_options *options)
{
    pllm_engine *engine = test_engine_open(model, options);
    uint64_t least = info_of(engine).least_vram_bytes;
    pllm_engine_close(engine);
    return least;
}

static int step(pllm_engine *engine, pllm_sequence *sequence, uint32_t index, rows *r)
{
    uint32_t ids[MOST], length = pllm_sequence_length(sequence);
    for (uint32_t i = 0; i < script[index].count; i++)
        ids[i] = ((length + i) * 2654435761u) >> 9 & 255;
    pllm_step_item item = {.sequence = sequence,
                           .ids = ids,
                           .token_count = script[index].count,
                           .generated = script[index].generated,
                           .logits = script[index].logits};
    return pllm_engine_step(engine, &item, 1, keep, r);
}

static void run(pllm_engine *engine, rows *r)
{
    pllm_sequence *sequence;
    assert_int_equal(pllm_sequence_open(engine, &sequence), PLLM_OK);
    for (uint32_t i = 0; i < STEPS; i++)
        if (step(engine, sequence, i, r) < 0) fail_msg("step %u: %s", i, pllm_last_error()->text);
    pllm_sequence_close(sequence);
}

static rows *expected_rows(const char *model)
{
    pllm_engine_options options = plain(1);
    pllm_engine *engine = test_engine_open(model, &options);
    rows *r = rows_new();
    run(engine, r);
    /* No limit: nothing of it on the device, nothing streamed. */
    pllm_engine_stats stats = stats_of(engine);
    assert_int_equal(stats.weight_stream_bytes, 0);
    assert_int_equal(stats.weight_resident_bytes, info_of(engine).weight_bytes);
    pllm_engine_close(engine);
    return r;
}

static void compare(const rows *got, const rows *expected, const char *what)
{
    for (uint32_t i = 0; i < MOST; i++) {
        if (got->seen[i] != expected->seen[i]) fail_msg("%s: row %u is missing", what, i);
        if (memcmp(got->logits[i], expected->logits[i], sizeof got->logits[i]) != 0)
            fail_msg("%s: row %u differs", what, i);
    }
}

static void simulated(void **state)
{
    const char *model = *state;
    rows *expected = expected_rows(model);
    for (uint64_t seed = 1; seed <= 3; seed++)
        for (uint32_t over = 0; over < 3; over++) {
            pllm_engine_options options = plain(seed == 2 ? 3 : 1);
            options.vram_limit_bytes = least_of(model, &options) + over * GRANULE;
            pllm_sim_device_options sim = {.struct_bytes = sizeof sim,
                                           .seed = seed,
                                           .granularity_bytes = GRANULE,
                                           .chunk_bytes = GRANULE,
                                           .capacity_bytes = 64 << 20,
                                           .latency_ns_max = 100000};
            pllm_device *device;
            pllm_engine *engine;
            assert_int_equal(pllm_device_open_sim(NULL, &sim, &device), PLLM_OK);
            if (pllm_engine_open_on(NULL, model, &options, device, NULL, &engine) < 0)
                fail_msg("%s", pllm_last_error()->text);
            rows *r = rows_new();
            run(engine, r);
            compare(r, expected, "on the sim device");
            assert_true(stats_of(engine).weight_stream_bytes > 0);
            free(r);
            pllm_engine_close(engine);
            pllm_device_close(device);
        }
    free(expected);
}

/* A step that is canceled at any of its rows leaves the ring where it may be; the next is right. */
static void canceled(void **state)
{
    const char *model = *state;
    rows *expected = expected_rows(model);
    for (uint32_t threads = 1; threads <= 2; threads++) {
        pllm_engine_options options = plain(threads);
        options.vram_limit_bytes = least_of(model, &options) + GRANULE;
        pllm_engine *engine = test_engine_open(model, &options);
        for (uint32_t skip = 0; skip < 50; skip += 7) {
            pllm_sequence *sequence;
            assert_int_equal(pllm_sequence_open(engine, &sequence), PLLM_OK);
            rows *r = rows_new();
            for (uint32_t i = 0; i < STEPS; i++) {
                if (script[i].logits && (script[i].logits == 2 || skip == 0)) {
                    r->cancel_at = r->calls + skip % script[i].count;
                    assert_int_equal(step(engine, sequence, i, r), PLLM_ECANCELED);
                    r->cancel_at = UNTIL_END;
                }
                if (step(engine, sequence, i, r) < 0)
                    fail_msg("step %u: %s", i, pllm_last_error()->text);
            }
            compare(r, expected, "after a cancel");
            free(r);
            pllm_sequence_close(sequence);
        }
        pllm_engine_close(engine);
    }
    free(expected);
}

/* The least is enough for a long context, and a byte less is refused with the figure. */
static void least(void **state)
{
    const char *model = *state;
    rows *expected = expected_rows(model);
    pllm_engine_options options = plain(2), less = plain(2);
    uint64_t bytes = least_of(model, &options);
    options.vram_limit_bytes = bytes;
    pllm_engine *engine = test_engine_open(model, &options);
    assert_int_equal(info_of(engine).least_vram_bytes, bytes);
    rows *r = rows_new();
    run(engine, r);
    compare(r, expected, "with the least");
    pllm_engine_stats stats = stats_of(engine);
    assert_true(stats.weight_stream_bytes > 0 && stats.evictions > 0);
    assert_true(stats.device_bytes_peak <= bytes);
    free(r);
    pllm_engine_close(engine);
    less.vram_limit_bytes = bytes - 1;
    assert_int_equal(pllm_engine_open(NULL, model, &less, &engine), PLLM_ENODEVMEM);
    char figure[32];
    snprintf(figure, sizeof figure, "(%llu bytes)", (unsigned long long)bytes);
    assert_non_null(strstr(pllm_last_error()->text, figure));
    free(expected);
}

/* As the limit grows more parts stay, until all do; each step streams what does not. */
static void shares(void **state)
{
    const char *model = *state;
    rows *expected = expected_rows(model);
    pllm_engine_options options = plain(3);
    uint64_t first = least_of(model, &options), before[2] = {0, 0};
    int whole = 0;
    for (uint32_t over = 0; over < 24; over++) {
        options.vram_limit_bytes = first + over * GRANULE;
        options.threads = over % 2 ? 3 : 1; /* the team copies, a stream does */
        pllm_engine *engine = test_engine_open(model, &options);
        pllm_sequence *sequence;
        assert_int_equal(pllm_sequence_open(engine, &sequence), PLLM_OK);
        rows *r = rows_new();
        for (uint32_t i = 0; i < 2; i++) assert_int_equal(step(engine, sequence, i, r), PLLM_OK);
        pllm_engine_stats a = stats_of(engine);
        for (uint32_t i = 0; i < 4; i++) assert_int_equal(step(engine, sequence, 1, r), PLLM_OK);
        pllm_engine_stats b = stats_of(engine);
        uint64_t weights = info_of(engine).weight_bytes;
        uint64_t missing = weights - b.weight_resident_bytes;
        uint64_t moved = (b.weight_stream_bytes - a.weight_stream_bytes) / 4;
        /* Norms go with their layers, and are no matrices. */
        assert_true(moved >= missing && moved <= missing + 3 * 1024);
        assert_true(b.weight_resident_bytes >= before[over % 2]);
        assert_true(b.device_bytes_peak <= options.vram_limit_bytes);
        before[over % 2] = b.weight_resident_bytes;
        whole |= moved == 0;
        free(r);
        pllm_sequence_close(sequence);
        r = rows_new();
        run(engine, r);
        compare(r, expected, "with a larger limit");
        free(r);
        pllm_engine_close(engine);
    }
    assert_true(whole);
    free(expected);
}

/* A simulated link carries the parts whatever the number of threads: the time tells. */
static void linked(void **state)
{
    const char *model = *state;
    rows *expected = expected_rows(model);
    pllm_engine_options options = plain(2);
    options.vram_limit_bytes = least_of(model, &options);
    options.link_bytes_per_second = 400e6;
    pllm_engine *engine = test_engine_open(model, &options);
    rows *r = rows_new();
    uint64_t started = pllm_clock_ns();
    run(engine, r);
    double seconds = (double)(pllm_clock_ns() - started) * 1e-9;
    compare(r, expected, "over a link");
    /* What is on its way for a pass that never comes is counted too. */
    double carried = (double)stats_of(engine).weight_stream_bytes - 3 * GRANULE;
    assert_true(carried > 0 && seconds >= carried / options.link_bytes_per_second);
    free(r);
    pllm_engine_close(engine);
    free(expected);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(simulated, (void *)(uintptr_t)models[0]),
        cmocka_unit_test_prestate(simulated, (void *)(uintptr_t)models[1]),
        cmocka_unit_test_prestate(canceled, (void *)(uintptr_t)models[0]),
        cmocka_unit_test_prestate(canceled, (void *)(uintptr_t)models[1]),
        cmocka_unit_test_prestate(least, (void *)(uintptr_t)models[0]),
        cmocka_unit_test_prestate(least, (void *)(uintptr_t)models[1]),
        cmocka_unit_test_prestate(linked, (void *)(uintptr_t)models[0]),
        cmocka_unit_test_prestate(shares, (void *)(uintptr_t)models[0]),
        cmocka_unit_test_prestate(shares, (void *)(uintptr_t)models[1]),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
