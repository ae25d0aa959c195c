/* The engine on a GPU.
 *
 * Rule 1: the bits of every row of logits of one sequence against those of a plain run, over
 * budgets of KV and of weights, KV formats, cuts of the prompt and strangers in the batch. A
 * starved run must really have moved bytes. The model has SmolLM2's shape with random weights and
 * fewer layers would do, but 30 make its blocks many; tokens are fixed, so a wrong logit shows
 * once.
 *
 * And against the host's engine: the tiny checkpoints' reference logits; a tiny one starved, too.
 *
 *     cuda_engine [PATTERN]     tests whose name matches, as in "*tiny*"
 *
 * The brief form has fewer tokens and one run of each kind: two limits of KV, one of weights, disk.
 * Its tests of tiny models are what racecheck can end: that looks inside kernels, and their own
 * tests reach every one of them.
 *
 * Brief form, at most 33000 launches; of *tiny* at most 800. */
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
#include "engine_support.h"
#include "kernels/sample.h"
#include "summary_check.h"

enum { TOKEN_COUNT = 1445, SEQUENCES = 3, ROWS_KEPT = 400 };

static const struct {
    uint32_t count, generated;
} long_script[] = {{1000, 0}, {40, 1}, {400, 0}, {5, 1}},
  brief_script[] = {{200, 0}, {3, 1}, {60, 0}, {2, 1}};

typedef struct setting {
    const char *format, *weights;
    uint32_t piece, strangers, share; /* share: percent of the KV, 0: no limit */
    uint64_t vram_limit;              /* 0: none */
    uint64_t disk_bytes;              /* and then little host memory */
} setting;

typedef struct rows {
    uint32_t vocab, count;
    float *logits; /* [ROWS_KEPT][vocab] */
    uint32_t positions[ROWS_KEPT];
} rows;

static const char *device_name(void)
{
    const char *name = getenv("PLLM_TEST_DEVICE");
    return name ? name : "cuda";
}

static uint32_t id_at(uint32_t sequence, uint32_t position)
{
    return (position * 2654435761u + sequence * 40503u + 17u) >> 7 & 16383;
}

/* Rows are compared where something happens: the ends of pieces, and all generated ones. */
static int is_kept(uint32_t position)
{
    return position % 23 == 0 || position >= (brief() ? 195 : 995);
}

static int keep(void *user, uint32_t item, uint32_t position, const float *logits)
{
    rows *r = user;
    if (item != 0 || !is_kept(position) || r->count == ROWS_KEPT) return 0;
    /* Of a large vocabulary every row keeps its first part. */
    memcpy(r->logits + (uint64_t)r->count * r->vocab, logits, r->vocab * sizeof(float));
    r->positions[r->count++] = position;
    return 0;
}

static int keep_all(void *user, uint32_t item, uint32_t position, const float *logits)
{
    rows *r = user;
    (void)item, (void)position;
    memcpy(r->logits + (uint64_t)r->count++ * r->vocab, logits, r->vocab * sizeof(float));
    return 0;
}

static pllm_engine *open_setting(const setting *s)
{
    pllm_engine_options options = {.struct_bytes = sizeof options,
                                   .device = device_name(),
                                   .shape = "smollm2-135m",
                                   .weights = s->weights,
                                   .kv_format = s->format,
                                   .host_memory_bytes = s->disk_bytes ? 4 << 20 : 512 << 20,
                                   .nvme_path = "/tmp",
                                   .nvme_size_bytes = s->disk_bytes,
                                   .vram_limit_bytes = s->vram_limit,
                                   .sequence_max = SEQUENCES,
                                   .context_max = brief() ? 512 : 2048};
    if (s->share) {
        pllm_engine *probe = test_engine_open(NULL, &options);
        pllm_engine_info info = {.struct_bytes = sizeof info};
        assert_int_equal(pllm_engine_info_get(probe, &info), PLLM_OK);
        uint64_t all = (uint64_t)TOKEN_COUNT * info.kv_bytes_per_token * (1 + s->strangers);
        options.kv_limit_bytes = all * s->share / 100;
        if (options.kv_limit_bytes < info.least_kv_bytes)
            options.kv_limit_bytes = info.least_kv_bytes;
        pllm_engine_close(probe);
    }
    return test_engine_open(NULL, &options);
}

static void step(pllm_engine *engine, pllm_sequence **sequences, const setting *s, uint32_t count,
                 uint32_t generated, rows *r)
{
    static uint32_t ids[SEQUENCES][TOKEN_COUNT];
    uint32_t items = 1 + s->strangers;
    pllm_step_item item[SEQUENCES];
    for (uint32_t i = 0; i < items; i++) {
        uint32_t length = pllm_sequence_length(sequences[i]), n = count, sampled = generated;
        if (i > 0) {
            sampled = length >= (brief() ? 90 + 45 * i : 600 + 150 * i);
            n = sampled ? 1 : brief() ? 45 : 137;
            if (length + n > TOKEN_COUNT) {
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

static rows rows_new(uint32_t vocab)
{
    rows r = {.vocab = vocab, .logits = calloc((size_t)ROWS_KEPT * vocab, sizeof(float))};
    assert_non_null(r.logits);
    return r;
}

static void run_script(pllm_engine *engine, const setting *s, rows *r)
{
    pllm_sequence *sequences[SEQUENCES] = {0};
    for (uint32_t i = 0; i <= s->strangers; i++)
        assert_int_equal(pllm_sequence_open(engine, &sequences[i]), PLLM_OK);
    for (uint32_t i = 0; i < sizeof long_script / sizeof long_script[0]; i++) {
        uint32_t count = brief() ? brief_script[i].count : long_script[i].count;
        uint32_t generated = long_script[i].generated, most = generated ? 1 : s->piece;
        if (most == 0) most = count;
        for (uint32_t done = 0; done < count;) {
            uint32_t n = count - done < most ? count - done : most;
            step(engine, sequences, s, n, generated, r);
            done += n;
        }
    }
    for (uint32_t i = 0; i <= s->strangers; i++) pllm_sequence_close(sequences[i]);
}

enum { VOCAB = 49152 };

static rows plain_run(const char *format, const char *weights)
{
    const setting plain = {.format = format, .weights = weights};
    rows r = rows_new(VOCAB);
    pllm_engine *engine = open_setting(&plain);
    run_script(engine, &plain, &r);
    pllm_engine_close(engine);
    assert_true(r.count > (brief() ? 60 : 300));
    for (uint32_t i = 0; i < VOCAB && !launches_only(); i++) assert_true(isfinite(r.logits[i]));
    return r;
}

static void check(const setting *s, const rows *expected)
{
    rows r = rows_new(VOCAB);
    pllm_engine *engine = open_setting(s);
    run_script(engine, s, &r);
    pllm_engine_stats stats = {.struct_bytes = sizeof stats};
    assert_int_equal(pllm_engine_stats_get(engine, &stats), PLLM_OK);
    assert_int_equal(r.count, expected->count);
    for (uint32_t i = 0; i < r.count; i++) {
        assert_int_equal(r.positions[i], expected->positions[i]);
        if (!launches_only() &&
            memcmp(r.logits + (uint64_t)i * VOCAB, expected->logits + (uint64_t)i * VOCAB,
                   VOCAB * sizeof(float)) != 0)
            fail_msg("row %u differs: kv %s, weights %s, %u %%, pieces of %u, %u strangers, %llu",
                     r.positions[i], s->format, s->weights, s->share, s->piece, s->strangers,
                     (unsigned long long)s->vram_limit);
    }
    uint64_t moved =
        stats.kv_stream_bytes + stats.host_to_device_bytes + stats.disk_to_device_bytes;
    if (s->disk_bytes) assert_true(stats.disk_to_device_bytes > 0);
    if (s->share && (stats.evictions == 0 || moved == 0))
        fail_msg("a starved run moved nothing: %llu evictions, %llu bytes streamed",
                 (unsigned long long)stats.evictions, (unsigned long long)stats.kv_stream_bytes);
    if (s->vram_limit) assert_true(stats.weight_stream_bytes > 0);
    assert_true(stats.device_bytes_peak <= stats.device_limit_bytes);
    printf("    kv %s, weights %s, %u %%, pieces of %u, %u strangers: %llu MiB of KV, %llu MiB of "
           "weights streamed, %llu evictions\n",
           s->format, s->weights, s->share, s->piece, s->strangers,
           (unsigned long long)(stats.kv_stream_bytes >> 20),
           (unsigned long long)(stats.weight_stream_bytes >> 20),
           (unsigned long long)stats.evictions);
    fflush(stdout);
    pllm_engine_close(engine);
    free(r.logits);
}

static void cuts_and_strangers(void **state)
{
    (void)state;
    static const char *const weights[] = {"bf16", "f16", "q8_0", "q4_1"};
    for (uint32_t w = 0; w < (brief() ? 1 : 4); w++) {
        rows expected = plain_run("f16", weights[w]);
        for (uint32_t piece = 0; piece < 3; piece++)
            for (uint32_t strangers = 0; strangers <= 2; strangers += 2) {
                if (piece == 0 && strangers == 0) continue;
                if ((w > 0 || brief()) && piece != 2) continue;
                if (brief() && strangers == 0) continue;
                setting s = {.format = "f16",
                             .weights = weights[w],
                             .piece = (uint32_t[]){0, 333, 100}[piece],
                             .strangers = strangers};
                check(&s, &expected);
            }
        free(expected.logits);
    }
}

static void starved_of_blocks(void **state)
{
    (void)state;
    static const char *const formats[] = {"f16", "int8", "int4", "bf16", "f32"};
    for (uint32_t f = 0; f < (brief() ? 2 : 5); f++) {
        rows expected = plain_run(formats[f], "bf16");
        for (uint32_t share = 0; share < 3; share++)
            for (uint32_t strangers = 0; strangers <= 2; strangers += 2) {
                if (f > 0 && (share == 1 || strangers == 0)) continue;
                if (brief() && (share != 2 || strangers == 0)) continue;
                setting s = {.format = formats[f],
                             .weights = "bf16",
                             .share = (uint32_t[]){50, 10, 1}[share],
                             .strangers = strangers,
                             .piece = share == 2 ? 100 : 0};
                check(&s, &expected);
            }
        free(expected.logits);
    }
}

/* The limit that leaves some layers to be streamed: found from what an unlimited engine says. */
static void starved_of_weights(void **state)
{
    (void)state;
    rows expected = plain_run("f16", "bf16");
    setting s = {.format = "f16", .weights = "bf16"};
    pllm_engine *probe = open_setting(&s);
    pllm_engine_info info = {.struct_bytes = sizeof info};
    assert_int_equal(pllm_engine_info_get(probe, &info), PLLM_OK);
    pllm_engine_close(probe);
    for (uint32_t strangers = brief() ? 2 : 0; strangers <= 2; strangers += 2) {
        s.strangers = strangers;
        s.vram_limit = info.least_vram_bytes + info.weight_bytes / 2;
        check(&s, &expected);
    }
    free(expected.logits);
}

static void blocks_on_disk(void **state)
{
    (void)state;
    rows expected = plain_run("f16", "bf16");
    for (uint32_t strangers = brief() ? 2 : 0; strangers <= 2; strangers += 2) {
        setting s = {.format = "f16",
                     .weights = "bf16",
                     .share = brief() ? 1 : 20,
                     .strangers = strangers,
                     .disk_bytes = 512 << 20};
        check(&s, &expected);
    }
    free(expected.logits);
}

/* What cached graphs take, as the card's free memory tells: within what is set aside. */
static void graphs_are_counted(void **state)
{
    (void)state;
    static const uint32_t lengths[] = {96, 384, 896};
    const setting s = {.format = "f16", .weights = "bf16"};
    pllm_engine *engine = open_setting(&s);
    pllm_sequence *sequences[SEQUENCES];
    static uint32_t ids[1000];
    for (uint32_t i = 0; i < SEQUENCES; i++)
        assert_int_equal(pllm_sequence_open(engine, &sequences[i]), PLLM_OK);
    for (uint32_t i = 0; i < (brief() ? 2 : 3); i++)
        for (uint32_t count = 1; count <= SEQUENCES; count += brief() ? 2 : 1) {
            pllm_step_item items[SEQUENCES];
            for (uint32_t j = 0; j < count; j++) {
                uint32_t length = pllm_sequence_length(sequences[j]);
                items[j] = (pllm_step_item){
                    .sequence = sequences[j], .ids = ids, .token_count = lengths[i] - length};
                if (length < lengths[i])
                    assert_int_equal(pllm_engine_step(engine, &items[j], 1, NULL, NULL), PLLM_OK);
                items[j].token_count = items[j].generated = 1;
                items[j].logits = 3;
            }
            assert_int_equal(pllm_engine_step(engine, items, count, NULL, NULL), PLLM_OK);
        }
    pllm_engine_stats stats = {.struct_bytes = sizeof stats};
    assert_int_equal(pllm_engine_stats_get(engine, &stats), PLLM_OK);
    printf("    %llu graphs, %llu KiB\n", (unsigned long long)stats.graph_count,
           (unsigned long long)(stats.graph_bytes >> 10));
    if (strncmp(device_name(), "cuda", 4) == 0) assert_true(stats.graph_count > 0);
    assert_true(stats.graph_bytes <= 32 << 20);
    for (uint32_t i = 0; i < SEQUENCES; i++) pllm_sequence_close(sequences[i]);
    pllm_engine_close(engine);
}

/* Summaries made by the GPU are those that the CPU makes of the blocks, wherever these were. */
static void summaries(void **state)
{
    (void)state;
    pllm_engine_options options = {.struct_bytes = sizeof options,
                                   .device = device_name(),
                                   .shape = "smollm2-135m",
                                   .weights = "bf16",
                                   .kv_format = "f16",
                                   .host_memory_bytes = 512 << 20,
                                   .kv_limit_bytes = 24 << 20,
                                   .sequence_max = SEQUENCES,
                                   .context_max = 2048,
                                   .key_summaries = 1};
    pllm_engine *engine = test_engine_open(NULL, &options);
    const setting s = {.strangers = 1};
    pllm_sequence *sequences[SEQUENCES];
    rows r = rows_new(VOCAB);
    for (uint32_t i = 0; i < 2; i++)
        assert_int_equal(pllm_sequence_open(engine, &sequences[i]), PLLM_OK);
    step(engine, sequences, &s, brief() ? 620 : 1000, 0, &r);
    uint32_t compared = summary_check(engine, 3);
    for (uint32_t i = 0; i < (brief() ? 21 : 40); i++) step(engine, sequences, &s, 1, 1, &r);
    compared += summary_check(engine, 3);
    assert_int_equal(pllm_sequence_fork(sequences[0], &sequences[2]), PLLM_OK);
    assert_int_equal(pllm_sequence_truncate(sequences[0], 500), PLLM_OK);
    step(engine, sequences, &s, brief() ? 100 : 300, 0, &r);
    compared += summary_check(engine, 3);
    printf("    %u blocks compared\n", compared);
    assert_true(compared > (brief() ? 500 : 1000));
    for (uint32_t i = 0; i < 3; i++) pllm_sequence_close(sequences[i]);
    pllm_engine_close(engine);
    free(r.logits);
}

/* The id chosen on the device is that of the largest logit of a row that was copied out; or the one
 * that the CPU draws from it. */
static void next_ids(void **state)
{
    (void)state;
    setting s = {.format = "f16", .weights = "bf16"};
    pllm_engine *engine = open_setting(&s);
    pllm_sequence *sequences[2];
    rows r = rows_new(VOCAB);
    for (uint32_t i = 0; i < 2; i++)
        assert_int_equal(pllm_sequence_open(engine, &sequences[i]), PLLM_OK);
    const uint32_t prompt = brief() ? 196 : 996; /* whose last row is kept */
    uint32_t ids[1000];
    for (uint32_t i = 0; i < 1000; i++) ids[i] = id_at(0, i);
    pllm_candidate *scratch = malloc(VOCAB * sizeof *scratch);
    for (uint32_t round = 0; round < 4; round++) {
        pllm_sampling sampling = {.temperature = 1.5f,
                                  .top_k = round == 2 ? 50 : 0,
                                  .top_p = 0.9f,
                                  .random = 0x9e3779b97f4a7c15u * (round + 1)};
        pllm_step_item item = {.ids = ids + (round ? prompt + round - 1 : 0),
                               .token_count = round ? 1 : prompt,
                               .generated = round > 0,
                               .logits = 1};
        item.sequence = sequences[0];
        assert_int_equal(pllm_engine_step(engine, &item, 1, keep, &r), PLLM_OK);
        item.sequence = sequences[1];
        item.logits = 3;
        item.sampling = round % 2 ? NULL : &sampling;
        assert_int_equal(pllm_engine_step(engine, &item, 1, NULL, NULL), PLLM_OK);
        const float *row = r.logits + (uint64_t)(r.count - 1) * VOCAB;
        uint32_t best = 0;
        for (uint32_t i = 1; i < VOCAB; i++)
            if (row[i] > row[best]) best = i;
        if (item.sampling) best = pllm_sample(row, VOCAB, &sampling, scratch);
        if (!launches_only()) assert_int_equal(item.next_id, best);
    }
    free(scratch);
    assert_int_equal(r.count, 4);
    for (uint32_t i = 0; i < 2; i++) pllm_sequence_close(sequences[i]);
    pllm_engine_close(engine);
    free(r.logits);
}

typedef struct comparison {
    const float *expected;
    uint32_t vocab;
    double error, norm;
} comparison;

static int compare(void *user, uint32_t item, uint32_t position, const float *logits)
{
    comparison *c = user;
    (void)item;
    for (uint32_t i = 0; i < c->vocab; i++) {
        double e = (double)c->expected[(uint64_t)position * c->vocab + i];
        c->error += ((double)logits[i] - e) * ((double)logits[i] - e);
        c->norm += e * e;
    }
    return 0;
}

static void check_reference(const char *name, const char *compute, double limit)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/tests/reference/models/%s", PLLM_SOURCE_DIR, name);
    pllm_engine_options options = {.struct_bytes = sizeof options,
                                   .device = device_name(),
                                   .compute = compute,
                                   .kv_format = compute};
    pllm_engine *engine = test_engine_open(path, &options);
    snprintf(path, sizeof path, "%s/tests/reference/models/%s/reference.safetensors",
             PLLM_SOURCE_DIR, name);
    pllm_safetensors *file;
    assert_int_equal(pllm_safetensors_open(NULL, path, &file), PLLM_OK);
    uint32_t count;
    uint32_t *ids = test_read_ids(file, "ids_long", &count);
    pllm_safetensors_view view;
    assert_int_equal(pllm_safetensors_find(file, "logits_long", &view), PLLM_OK);
    comparison c = {.expected = view.tensor.data, .vocab = (uint32_t)view.tensor.shape[1]};
    pllm_sequence *sequence;
    assert_int_equal(pllm_sequence_open(engine, &sequence), PLLM_OK);
    pllm_step_item item = {.sequence = sequence, .ids = ids, .token_count = count, .logits = 2};
    if (pllm_engine_step(engine, &item, 1, compare, &c) < 0)
        fail_msg("%s", pllm_last_error()->text);
    double relative = sqrt(c.error / c.norm);
    printf("    %s, %s: relative error %.2e\n", name, compute, relative);
    assert_true(c.norm > 0 && (relative < limit || launches_only()));
    pllm_sequence_close(sequence);
    free(ids);
    pllm_safetensors_close(file);
    pllm_engine_close(engine);
}

static void tiny_references(void **state)
{
    (void)state;
    check_reference("llama", "f32", 1e-4);
    check_reference("llama-rope3", "bf16", 2e-2);
    if (brief()) return;
    check_reference("llama-rope3", "f32", 1e-4);
    check_reference("llama", "bf16", 2e-2);
}

enum { TINY_VOCAB = 320, TINY_ROWS = SEQUENCES * 4 };

/* Three sequences of a tiny checkpoint, read in two pieces each and then generated together. Logits
 * of what is generated; bytes_out: streamed. */
static void tiny_run(const char *format, int starved, float *logits, uint64_t *bytes_out)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/tests/reference/models/llama", PLLM_SOURCE_DIR);
    pllm_engine_options options = {.struct_bytes = sizeof options,
                                   .device = device_name(),
                                   .kv_format = format,
                                   .host_memory_bytes = 16 << 20,
                                   .sequence_max = SEQUENCES,
                                   .context_max = 512};
    pllm_engine *engine = test_engine_open(path, &options);
    if (starved) {
        pllm_engine_info info = {.struct_bytes = sizeof info};
        assert_int_equal(pllm_engine_info_get(engine, &info), PLLM_OK);
        pllm_engine_close(engine);
        options.kv_limit_bytes = info.least_kv_bytes;
        engine = test_engine_open(path, &options);
    }
    pllm_sequence *sequences[SEQUENCES];
    pllm_step_item items[SEQUENCES];
    uint32_t ids[512];
    for (uint32_t i = 0; i < 512; i++) ids[i] = id_at(0, i) % TINY_VOCAB;
    for (uint32_t i = 0; i < SEQUENCES; i++)
        assert_int_equal(pllm_sequence_open(engine, &sequences[i]), PLLM_OK);
    rows r = {.vocab = TINY_VOCAB, .logits = logits};
    for (uint32_t step = 0; step < 2 + TINY_ROWS / SEQUENCES; step++) {
        for (uint32_t i = 0; i < SEQUENCES; i++)
            items[i] = (pllm_step_item){.sequence = sequences[i],
                                        .ids = ids + 7 * i + 40 * step,
                                        .token_count = step < 2 ? 190 + i : 1,
                                        .generated = step >= 2,
                                        .logits = step < 2 ? 0 : 1};
        if (pllm_engine_step(engine, items, SEQUENCES, keep_all, &r) < 0)
            fail_msg("%s", pllm_last_error()->text);
    }
    assert_int_equal(r.count, TINY_ROWS);
    pllm_engine_stats stats = {.struct_bytes = sizeof stats};
    assert_int_equal(pllm_engine_stats_get(engine, &stats), PLLM_OK);
    *bytes_out = stats.kv_stream_bytes;
    for (uint32_t i = 0; i < SEQUENCES; i++) pllm_sequence_close(sequences[i]);
    pllm_engine_close(engine);
}

/* Rule 1 with heads of 16, which the generic kernels take. */
static void tiny_starved(void **state)
{
    (void)state;
    static const char *const formats[] = {"int8", "f32"};
    static float plain[TINY_ROWS * TINY_VOCAB], starved[TINY_ROWS * TINY_VOCAB];
    for (uint32_t f = 0; f < (brief() ? 1 : 2); f++) {
        uint64_t none, streamed;
        tiny_run(formats[f], 0, plain, &none);
        tiny_run(formats[f], 1, starved, &streamed);
        assert_true(none == 0 && streamed > 0);
        if (!launches_only()) assert_memory_equal(plain, starved, sizeof plain);
    }
}

int main(int argc, char **argv)
{
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tiny_references),    cmocka_unit_test(tiny_starved),
        cmocka_unit_test(cuts_and_strangers), cmocka_unit_test(starved_of_blocks),
        cmocka_unit_test(starved_of_weights), cmocka_unit_test(blocks_on_disk),
        cmocka_unit_test(next_ids),           cmocka_unit_test(summaries),
        cmocka_unit_test(graphs_are_counted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
