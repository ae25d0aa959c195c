/* Goal: whichever device call, allocation or disk request fails, once, while an engine opens, reads
 * prompts, generates, forks, cuts and pages blocks out and in, every call ends in a status; a step
 * that failed left its sequences as they were and succeeds when tried again; every row of logits
 * that comes out has the bits of an undisturbed run; and nothing leaks.
 * Method: one scenario runs with call 0, 1, 2, ... failing until a run meets no fault. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "device/device.h"
#include "engine/parts.h"
#include "engine_support.h"
#include "failing_context.h"
#include "tier/disk_sim.h"

#define MODEL PLLM_SOURCE_DIR "/tests/reference/models/llama"

enum {
    VOCAB = 320,
    TOKENS = 170,
    DISK_BYTES = 16 << 20,
    /* The least numbers of calls that must be reached: a scenario that shrinks tests less. */
    FLOOR_DEVICE = 300,
    FLOOR_MEMORY = 100,
    FLOOR_DISK = 30,
    FLOOR_STREAMED = 600,
#if defined(PLLM_SANITIZED)
    STRIDE = 4, /* each run takes ten times as long */
#else
    STRIDE = 1,
#endif
};

typedef struct scenario {
    const pllm_context *context;
    pllm_device *device;
    pllm_disk *disk;
    pllm_engine *engine;
    float *logits;  /* [TOKENS][VOCAB]: the first sequence's */
    uint8_t *known; /* [TOKENS] */
    const float *expected;
    uint64_t vram_limit; /* 0: none; else weights are streamed */
    uint64_t *least_out; /* of vram_limit; may be NULL */
    uint32_t failed, lost;
    pllm_faulty_disk_stats disk_calls;
} scenario;

static uint32_t id_at(uint32_t sequence, uint32_t position)
{
    return (position * 2654435761u + sequence * 977u) >> 9 & 255;
}

static int keep(void *user, uint32_t item, uint32_t position, const float *logits)
{
    scenario *s = user;
    if (item == 0 && position < TOKENS) {
        memcpy(s->logits + (uint64_t)position * VOCAB, logits, VOCAB * sizeof(float));
        s->known[position] = 1;
    }
    return 0;
}

/* Statuses that a fault may show as. */
static void acceptable(int status)
{
    if (status != PLLM_ENOMEM && status != PLLM_EDEVICE && status != PLLM_EIO &&
        status != PLLM_ENODEVMEM && status != PLLM_EBUSY && status != PLLM_ECORRUPT &&
        status != PLLM_ELIMIT)
        fail_msg("a fault came out as %s: %s", pllm_status_name(status), pllm_last_error()->text);
}

/* Feeds tokens; a failed step is tried once more, and then only a lost page may stop it. */
static int feed(scenario *s, pllm_sequence *sequence, uint32_t stream, uint32_t count,
                uint32_t generated, int first)
{
    uint32_t ids[TOKENS], before = pllm_sequence_length(sequence);
    for (uint32_t i = 0; i < count; i++) ids[i] = id_at(stream, before + i);
    for (int attempt = 0;; attempt++) {
        pllm_step_item item = {.sequence = sequence,
                               .ids = ids,
                               .token_count = count,
                               .generated = generated,
                               .logits = first ? 2 : 0};
        int status = pllm_engine_step(s->engine, &item, 1, keep, s);
        pllm_engine_check(s->engine);
        if (status == PLLM_OK) return 1;
        acceptable(status);
        s->failed++;
        assert_int_equal(pllm_sequence_length(sequence), before);
        if (attempt == 1) {
            /* The fault is over: only a page that was lost for good can still be in the way. */
            if (status != PLLM_EIO && status != PLLM_ECORRUPT && status != PLLM_EDEVICE)
                fail_msg("a step fails for ever: %s", pllm_last_error()->text);
            s->lost++;
            return 0;
        }
    }
}

/* A lost page takes its own sequence with it: what it held is fed again from the beginning. */
static int feed_or_start_over(scenario *s, pllm_sequence **sequence, uint32_t stream,
                              uint32_t prompt, uint32_t generated, int first)
{
    if (prompt && feed(s, *sequence, stream, prompt, 0, first)) return 1;
    if (!prompt && feed(s, *sequence, stream, 1, generated, first)) return 1;
    pllm_sequence_close(*sequence);
    *sequence = NULL;
    pllm_engine_check(s->engine);
    return 0;
}

static void talk(scenario *s)
{
    pllm_sequence *one = NULL, *two = NULL, *fork = NULL;
    int status = pllm_sequence_open(s->engine, &one);
    if (status < 0) acceptable(status), status = pllm_sequence_open(s->engine, &one);
    assert_int_equal(status, PLLM_OK);
    int alive = feed_or_start_over(s, &one, 1, 140, 0, 1);
    for (int i = 0; alive && i < 10; i++) alive = feed_or_start_over(s, &one, 1, 0, 1, 1);
    status = pllm_sequence_open(s->engine, &two);
    if (status < 0) acceptable(status), status = pllm_sequence_open(s->engine, &two);
    assert_int_equal(status, PLLM_OK);
    feed_or_start_over(s, &two, 2, 100, 0, 0);
    if (alive) {
        status = pllm_sequence_fork(one, &fork);
        if (status < 0) acceptable(status), s->failed++;
    }
    if (fork) {
        assert_int_equal(pllm_sequence_truncate(fork, 70), PLLM_OK);
        feed_or_start_over(s, &fork, 3, 20, 0, 0);
    }
    status = pllm_engine_evict_all(s->engine);
    if (status < 0) acceptable(status), s->failed++;
    for (int i = 0; alive && i < 20; i++) alive = feed_or_start_over(s, &one, 1, 0, 1, 1);
    pllm_engine_check(s->engine);
    pllm_sequence_close(fork);
    pllm_sequence_close(one);
    pllm_sequence_close(two);
}

static void run(scenario *s)
{
    pllm_engine_options options = {.struct_bytes = sizeof options,
                                   .threads = 1,
                                   .host_memory_bytes = 64
                                                        << 10, /* 8 blocks; the rest is on disk */
                                   .nvme_size_bytes = DISK_BYTES,
                                   .sequence_max = 3};
    options.kv_limit_bytes = 3 * 3 * 8192; /* open blocks, rounded up below */
    options.kv_limit_bytes = (options.kv_limit_bytes + 65535) / 65536 * 65536 + 65536;
    options.vram_limit_bytes = s->vram_limit;
    int status = pllm_engine_open_on(s->context, MODEL, &options, s->device, s->disk, &s->engine);
    if (status < 0) {
        acceptable(status);
        assert_null(s->engine);
        s->failed++;
        return;
    }
    talk(s);
    pllm_engine_stats stats = {.struct_bytes = sizeof stats};
    assert_int_equal(pllm_engine_stats_get(s->engine, &stats), PLLM_OK);
    if (s->failed == 0) assert_true(stats.evictions > 0 && stats.disk_to_device_bytes > 0);
    if (s->failed == 0 && s->vram_limit) assert_true(stats.weight_stream_bytes > 0);
    if (s->least_out) {
        pllm_engine_info info = {.struct_bytes = sizeof info};
        assert_int_equal(pllm_engine_info_get(s->engine, &info), PLLM_OK);
        *s->least_out = info.least_vram_bytes;
    }
    pllm_faulty_disk_stats_get(s->disk, &s->disk_calls);
    pllm_engine_close(s->engine);
}

/* Counts of what a run without faults calls, to be reached one by one. */
typedef enum kind { DEVICE, DEVICE_LATER, MEMORY, DISK, SUBMIT, CORRUPT } kind;
static const char *const kind_names[] = {"device calls",  "device work",  "allocations",
                                         "disk requests", "disk submits", "corrupt reads"};

/* Returns 1 while the failing call was reached. *vram_limit: UINT64_MAX asks for the least. */
static int run_with(kind what, uint64_t n, uint64_t *vram_limit, const float *expected,
                    float *logits_out, uint32_t *noticed)
{
    failing_context memory;
    failing_context_init(&memory, what == MEMORY ? n : FAILING_NEVER);
    pllm_host_device_options host = {.struct_bytes = sizeof host};
    pllm_device *inner, *device;
    assert_int_equal(pllm_device_open_host(NULL, &host, &inner), PLLM_OK);
    pllm_faulty_device_options faulty = {
        .struct_bytes = sizeof faulty,
        .fail_at = what == DEVICE || what == DEVICE_LATER ? n : UINT64_MAX,
        .fail_async = what == DEVICE_LATER};
    assert_int_equal(pllm_device_open_faulty(NULL, inner, &faulty, &device), PLLM_OK);
    pllm_sim_disk_options sim = {
        .struct_bytes = sizeof sim, .seed = 1, .bytes = DISK_BYTES, .latency_ns_max = 1000};
    pllm_disk *plain, *disk;
    assert_int_equal(pllm_disk_open_sim(NULL, &sim, &plain), PLLM_OK);
    pllm_faulty_disk_options spoil = pllm_faulty_disk_none();
    if (what == DISK) spoil.fail_at = n;
    if (what == SUBMIT) spoil.fail_submit_at = n;
    if (what == CORRUPT) spoil.corrupt_read_at = n;
    assert_int_equal(pllm_disk_open_faulty(NULL, plain, &spoil, &disk), PLLM_OK);

    scenario s = {.context = &memory.context,
                  .device = device,
                  .disk = disk,
                  .expected = expected,
                  .vram_limit = *vram_limit == UINT64_MAX ? 0 : *vram_limit,
                  .least_out = *vram_limit == UINT64_MAX ? vram_limit : NULL,
                  .logits = calloc((size_t)TOKENS * VOCAB, sizeof(float)),
                  .known = calloc(TOKENS, 1)};
    assert_non_null(s.logits);
    assert_non_null(s.known);
    run(&s);
    int hit = 0;
    switch (what) {
    case MEMORY:
        hit = failing_context_hit(&memory);
        break;
    case DEVICE:
    case DEVICE_LATER:
        hit = pllm_faulty_device_calls(device) > n;
        break;
    case DISK:
        hit = s.disk_calls.requests > n;
        break;
    case SUBMIT:
        hit = s.disk_calls.submits > n;
        break;
    case CORRUPT:
        hit = s.disk_calls.reads > n;
        break;
    }
    *noticed += s.failed > 0;
    for (uint32_t i = 0; expected && i < TOKENS; i++)
        if (s.known[i] &&
            memcmp(s.logits + i * VOCAB, expected + i * VOCAB, VOCAB * sizeof(float)) != 0)
            fail_msg("row %u came out wrong after %s %llu failed", i, kind_names[what],
                     (unsigned long long)n);
    if (logits_out) {
        for (uint32_t i = 0; i < TOKENS; i++) assert_true(s.known[i]);
        memcpy(logits_out, s.logits, (size_t)TOKENS * VOCAB * sizeof(float));
    }
    failing_context_check(&memory);
    assert_int_equal(pllm_faulty_device_live(device), 0);
    pllm_device_close(device);
    pllm_device_close(inner);
    free(s.known);
    free(s.logits);
    return hit;
}

/* Rows of a run without faults or limit, and the least vram_limit. */
static float *expected_rows(uint64_t *least)
{
    float *rows = calloc((size_t)TOKENS * VOCAB, sizeof *rows);
    assert_non_null(rows);
    uint32_t noticed = 0;
    *least = UINT64_MAX;
    assert_int_equal(run_with(DEVICE, UINT64_MAX - 1, least, NULL, rows, &noticed), 0);
    assert_int_equal(noticed, 0);
    return rows;
}

static void fail_each_of(kind what, uint64_t floor, int streams)
{
    uint64_t least, n = 0, vram_limit = 0;
    float *expected = expected_rows(&least);
    if (streams) vram_limit = least;
    uint32_t noticed = 0;
    /* Streaming calls the same few again and again: once all have failed, some are enough. */
    while (run_with(what, n, &vram_limit, expected, NULL, &noticed))
        n += streams && n >= FLOOR_STREAMED ? 7 * STRIDE : STRIDE;
    printf("    %llu %s failed, one a run, every %d; %u runs noticed\n", (unsigned long long)n,
           kind_names[what], STRIDE, noticed);
    assert_true(noticed > 0);
    assert_true(n >= floor);
    free(expected);
}

static void fail_each(kind what, uint64_t floor)
{
    fail_each_of(what, floor, 0);
}

/* With weights that pass through their ring: opening, copying, recording and waiting fail, and what
 * is sent ahead for a step that comes later. */
static void each_call_of_streamed_weights(void **state)
{
    (void)state;
    fail_each_of(DEVICE, FLOOR_STREAMED, 1);
    fail_each_of(DEVICE_LATER, FLOOR_STREAMED, 1);
    fail_each_of(MEMORY, FLOOR_MEMORY, 1);
}

static void each_device_call(void **state)
{
    (void)state;
    fail_each(DEVICE, FLOOR_DEVICE);
}

static void each_device_work(void **state)
{
    (void)state;
    fail_each(DEVICE_LATER, FLOOR_DEVICE);
}

static void each_allocation(void **state)
{
    (void)state;
    fail_each(MEMORY, FLOOR_MEMORY);
}

/* A failed disk request may go unnoticed: a write behind is tried again, a run of pages read page
 * by page. How requests merge, and so how many there are, depends on time. */
static void each_disk_request(void **state)
{
    (void)state;
    fail_each(DISK, FLOOR_DISK);
}

static void each_disk_submit(void **state)
{
    (void)state;
    fail_each(SUBMIT, FLOOR_DISK);
}

static void each_corrupt_read(void **state)
{
    (void)state;
    fail_each(CORRUPT, FLOOR_DISK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_device_call),
        cmocka_unit_test(each_device_work),
        cmocka_unit_test(each_allocation),
        cmocka_unit_test(each_disk_request),
        cmocka_unit_test(each_disk_submit),
        cmocka_unit_test(each_corrupt_read),
        cmocka_unit_test(each_call_of_streamed_weights),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
