/* Rule 1 on real weights, with the arithmetic and KV formats that users get: SmolLM2, 2,000 tokens
 * of prose and some generated ones, starved to a tenth of their KV in several ways, or with most of
 * the weights streamed, against a run without limits. The logits of every row are compared through
 * their hash. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "base/hash.h"
#include "engine_support.h"

enum { PROMPT = 2000, GENERATED = 12, VOCAB = 49152, STRANGER = 300 };

typedef struct setting {
    const char *kv_format, *policy, *prefetch;
    uint32_t threads, piece, stranger; /* piece: prompt tokens a step, 0: all */
    uint64_t kv_limit, host, disk, vram_limit;
} setting;

typedef struct hashes {
    uint64_t row[PROMPT + GENERATED];
    uint32_t all; /* 1: every row; 0: the last of each step */
} hashes;

static int keep(void *user, uint32_t item, uint32_t position, const float *logits)
{
    hashes *h = user;
    if (item == 0) h->row[position] = pllm_hash64(logits, VOCAB * sizeof *logits, position);
    return 0;
}

static uint32_t *prose(pllm_engine *engine)
{
    uint64_t bytes;
    char *text =
        test_read_file(PLLM_SOURCE_DIR "/tests/reference/smollm2/perplexity-text.txt", &bytes);
    uint32_t *ids, count;
    assert_int_equal(pllm_engine_encode(engine, text, bytes, 0, &ids, &count), PLLM_OK);
    assert_true(count >= PROMPT + GENERATED + STRANGER);
    free(text);
    return ids;
}

static void run(const setting *s, hashes *h)
{
    pllm_engine_options options = {.struct_bytes = sizeof options,
                                   .threads = s->threads,
                                   .policy = s->policy,
                                   .prefetch_strategy = s->prefetch,
                                   .kv_format = s->kv_format,
                                   .kv_limit_bytes = s->kv_limit,
                                   .vram_limit_bytes = s->vram_limit,
                                   .host_memory_bytes = s->host,
                                   .nvme_size_bytes = s->disk,
                                   .nvme_path = PLLM_BINARY_DIR,
                                   .sequence_max = 2,
                                   .context_max = 4096};
    pllm_engine *engine = test_engine_open(test_model_path(PLLM_SOURCE_DIR), &options);
    uint32_t *ids = prose(engine);
    pllm_sequence *one, *two;
    assert_int_equal(pllm_sequence_open(engine, &one), PLLM_OK);
    assert_int_equal(pllm_sequence_open(engine, &two), PLLM_OK);
    uint32_t stranger = 0;
    for (uint32_t at = 0; at < PROMPT + GENERATED;) {
        uint32_t n = at >= PROMPT ? 1 : s->piece && s->piece < PROMPT - at ? s->piece : PROMPT - at;
        pllm_step_item items[2] = {{.sequence = one,
                                    .ids = ids + at,
                                    .token_count = n,
                                    .generated = at >= PROMPT,
                                    .logits = h->all ? 2 : 1}};
        uint32_t count = 1;
        if (s->stranger && stranger + 40 < STRANGER) {
            items[count++] = (pllm_step_item){
                .sequence = two, .ids = ids + PROMPT + stranger, .token_count = 33};
            stranger += 33;
        }
        if (pllm_engine_step(engine, items, count, keep, h) < 0)
            fail_msg("%s", pllm_last_error()->text);
        at += n;
    }
    pllm_engine_stats stats = {.struct_bytes = sizeof stats};
    assert_int_equal(pllm_engine_stats_get(engine, &stats), PLLM_OK);
    if (s->kv_limit) {
        printf("    %s %s kv %s: %llu evictions, %llu MB from host, %llu MB from disk\n", s->policy,
               s->prefetch, s->kv_format, (unsigned long long)stats.evictions,
               (unsigned long long)stats.host_to_device_bytes / 1000000,
               (unsigned long long)stats.disk_to_device_bytes / 1000000);
        assert_true(stats.evictions > 0);
        if (s->host) assert_true(stats.host_to_device_bytes > 0);
        if (s->disk) assert_true(stats.disk_to_device_bytes > 0);
    }
    if (s->vram_limit) {
        printf("    %llu MB of device memory: %llu MB of weights streamed, %llu MB resident\n",
               (unsigned long long)s->vram_limit / 1000000,
               (unsigned long long)stats.weight_stream_bytes / 1000000,
               (unsigned long long)stats.weight_resident_bytes / 1000000);
        assert_true(stats.weight_stream_bytes > 0);
        assert_true(stats.device_bytes_peak <= s->vram_limit);
    }
    pllm_engine_free(engine, ids);
    pllm_engine_close(engine);
}

static void compare(const setting *s, const hashes *expected)
{
    hashes h = {.all = expected->all};
    run(s, &h);
    uint32_t compared = 0;
    for (uint32_t i = 0; i < PROMPT + GENERATED; i++) {
        if (!h.row[i]) continue;
        compared++;
        if (h.row[i] != expected->row[i])
            fail_msg("row %u differs (%s, %s, kv %s)", i, s->policy, s->prefetch, s->kv_format);
    }
    assert_true(compared >= GENERATED + 1);
}

/* 63 blocks of 24,576 bytes in 30 layers are 46 MB; a tenth of it, and the open blocks of two. */
#define TENTH_F16 (4600000 + 2 * 30 * 24576)

static void f16(void **state)
{
    (void)state;
    static hashes expected = {.all = 1};
    const setting plain = {
        .kv_format = "f16", .policy = "static", .prefetch = "none", .threads = 1};
    run(&plain, &expected);
    const setting starved[] = {
        {"f16", "static", "sequential", 2, 0, 0, TENTH_F16, 20 << 20, 100 << 20},
        {"f16", "lru", "none", 1, 700, 1, TENTH_F16, 200 << 20, 0},
        {"f16", "2q", "sequential", 4, 333, 1, TENTH_F16, 0, 160 << 20},
        {"f16", "static", "sequential", 2, 0, 0, 0, 200 << 20, 0, 50000000},
        {"f16", "static", "sequential", 1, 700, 1, TENTH_F16, 200 << 20, 0, 90000000},
        {"f16", "static", "sequential", 4, 333, 1, TENTH_F16, 200 << 20, 0, 30000000},
    };
    for (int i = 0; i < 6; i++) compare(&starved[i], &expected);
}

static void int8(void **state)
{
    (void)state;
    static hashes expected = {.all = 0};
    const setting plain = {
        .kv_format = "int8", .policy = "static", .prefetch = "none", .threads = 2};
    run(&plain, &expected);
    const setting starved = {"int8",  "static", "sequential", 2, 0, 1, TENTH_F16 / 2 + 900000,
                             8 << 20, 160 << 20};
    compare(&starved, &expected);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(f16),
        cmocka_unit_test(int8),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
