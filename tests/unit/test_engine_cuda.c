/* What the CUDA executor does around its kernels, on a CUDA driver in host memory (tests/fake) that
 * runs no kernels: which blocks are held, borrowed, streamed and let go, under budgets, with
 * strangers, and with every driver call failing in turn. Bits are tests/cuda/test_cuda_engine.c's
 * business; here a step must go through, what moves must be what is missing, and nothing may stay
 * pinned or open. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "../fake/fake_cuda.h"
#include <pagedllm/ledger.h>
#include "device/cuda.h"
#include "device/cuda_driver.h"
#include "engine/parts.h"
#include "engine_support.h"
#include "gguf_builder.h"

#define LIBRARY PLLM_BINARY_DIR "/tests/libfake_cuda.so"

enum { TOKEN_COUNT = 1445, SEQUENCES = 3 };

static fake_cuda *fake;

static const struct {
    uint32_t count, generated;
} script[] = {{1000, 0}, {40, 1}, {400, 0}, {5, 1}};

typedef struct setting {
    const char *format;
    uint32_t piece, strangers, share; /* share: percent of the KV, 0: no limit */
    int streams_weights;
    uint64_t disk_bytes; /* and then little host memory */
} setting;

static pllm_device *open_fake(void)
{
    pllm_cuda_device_options options = {
        .struct_bytes = sizeof options, .library = LIBRARY, .nvml = LIBRARY};
    pllm_device *device;
    if (pllm_device_open_cuda(NULL, &options, &device) < 0) fail_msg("%s", pllm_last_error()->text);
    return device;
}

static pllm_engine_options options_of(const setting *s)
{
    return (pllm_engine_options){.struct_bytes = sizeof(pllm_engine_options),
                                 .device = "cuda",
                                 .shape = "smollm2-135m",
                                 .weights = "q4_0",
                                 .kv_format = s->format,
                                 .host_memory_bytes = s->disk_bytes ? 4 << 20 : 256 << 20,
                                 .nvme_path = PLLM_BINARY_DIR,
                                 .nvme_size_bytes = s->disk_bytes,
                                 .sequence_max = SEQUENCES,
                                 .context_max = 2048};
}

static pllm_engine *open_engine(pllm_device *device, const pllm_engine_options *options)
{
    pllm_engine *engine;
    if (pllm_engine_open_on(NULL, NULL, options, device, NULL, &engine) < 0)
        fail_msg("%s", pllm_last_error()->text);
    return engine;
}

static int ignore(void *user, uint32_t item, uint32_t position, const float *logits)
{
    (void)item, (void)position, (void)logits;
    ++*(uint32_t *)user;
    return 0;
}

/* One step of everybody; returns its status. */
static int step(pllm_engine *engine, pllm_sequence **sequences, const setting *s, uint32_t count,
                uint32_t generated, uint32_t *rows)
{
    static uint32_t ids[TOKEN_COUNT];
    uint32_t items = 1 + s->strangers;
    pllm_step_item item[SEQUENCES];
    for (uint32_t i = 0; i < items; i++) {
        uint32_t length = pllm_sequence_length(sequences[i]), n = count, sampled = generated;
        if (i > 0) {
            sampled = length >= 600 + 150 * i;
            n = sampled ? 1 : 137;
            if (length + n > TOKEN_COUNT) {
                items = i;
                break;
            }
        }
        item[i] = (pllm_step_item){.sequence = sequences[i],
                                   .ids = ids,
                                   .token_count = n,
                                   .generated = sampled,
                                   .logits = 1};
    }
    return pllm_engine_step(engine, item, items, ignore, rows);
}

static void run_script(pllm_engine *engine, const setting *s)
{
    pllm_sequence *sequences[SEQUENCES] = {0};
    uint32_t rows = 0, wanted = 0;
    for (uint32_t i = 0; i <= s->strangers; i++)
        assert_int_equal(pllm_sequence_open(engine, &sequences[i]), PLLM_OK);
    for (uint32_t i = 0; i < sizeof script / sizeof script[0]; i++) {
        uint32_t most = script[i].generated ? 1 : s->piece ? s->piece : script[i].count;
        for (uint32_t done = 0; done < script[i].count;) {
            uint32_t n = script[i].count - done < most ? script[i].count - done : most;
            if (step(engine, sequences, s, n, script[i].generated, &rows) < 0)
                fail_msg("at token %u: %s (kv %s, %u %%, pieces of %u, %u strangers)",
                         pllm_sequence_length(sequences[0]), pllm_last_error()->text, s->format,
                         s->share, s->piece, s->strangers);
            pllm_engine_check(engine);
            done += n;
            wanted++;
        }
    }
    assert_true(rows >= wanted);
    for (uint32_t i = 0; i <= s->strangers; i++) pllm_sequence_close(sequences[i]);
}

static void run_setting(const setting *s)
{
    pllm_device *device = open_fake();
    pllm_engine_options options = options_of(s);
    pllm_engine *engine = open_engine(device, &options);
    pllm_engine_info info = {.struct_bytes = sizeof info};
    assert_int_equal(pllm_engine_info_get(engine, &info), PLLM_OK);
    if (s->share || s->streams_weights) {
        pllm_engine_close(engine);
        uint64_t all = (uint64_t)TOKEN_COUNT * info.kv_bytes_per_token * (1 + s->strangers);
        if (s->share) options.kv_limit_bytes = all * s->share / 100;
        if (s->share && options.kv_limit_bytes < info.least_kv_bytes)
            options.kv_limit_bytes = info.least_kv_bytes;
        if (s->streams_weights)
            options.vram_limit_bytes = info.least_vram_bytes + info.weight_bytes / 4;
        engine = open_engine(device, &options);
    }
    run_script(engine, s);
    pllm_engine_stats stats = {.struct_bytes = sizeof stats};
    assert_int_equal(pllm_engine_stats_get(engine, &stats), PLLM_OK);
    assert_true(stats.device_bytes_peak <= stats.device_limit_bytes);
    if (s->share) assert_true(stats.evictions > 0);
    if (s->share && !s->disk_bytes) assert_true(stats.kv_stream_bytes > 0);
    if (s->disk_bytes) assert_true(stats.disk_to_device_bytes > 0);
    if (s->streams_weights) assert_true(stats.weight_stream_bytes > 0);
    assert_int_equal(pllm_engine_evict_all(engine), PLLM_OK);
    pllm_engine_close(engine);
    pllm_device_close(device);
    assert_int_equal(fake->live, 0);
}

static void budgets(void **state)
{
    (void)state;
    static const char *const formats[] = {"f16", "int4"};
    static const uint32_t shares[] = {0, 50, 10, 1}, pieces[] = {0, 100};
    for (uint32_t f = 0; f < 2; f++)
        for (uint32_t share = 0; share < 4; share++)
            for (uint32_t piece = 0; piece < 2; piece++)
                for (uint32_t strangers = 0; strangers <= 2; strangers += 2) {
                    if (f > 0 && (shares[share] != 10 || strangers == 0)) continue;
                    if (shares[share] == 0 && piece + strangers > 0) continue;
                    setting s = {.format = formats[f],
                                 .share = shares[share],
                                 .piece = pieces[piece],
                                 .strangers = strangers};
                    run_setting(&s);
                }
}

static void weights(void **state)
{
    (void)state;
    for (uint32_t strangers = 0; strangers <= 2; strangers += 2) {
        setting s = {.format = "f16", .strangers = strangers, .streams_weights = 1};
        run_setting(&s);
    }
}

static void disk(void **state)
{
    (void)state;
    for (uint32_t strangers = 0; strangers <= 2; strangers += 2) {
        setting s = {.format = "f16", .strangers = strangers, .share = 20, .disk_bytes = 256 << 20};
        run_setting(&s);
    }
}

/* A machine that pins 40 MiB and no more: slower, and otherwise the same. */
static void little_may_be_pinned(void **state)
{
    (void)state;
    setting s = {.format = "f16", .strangers = 2, .share = 20};
    fake->pin_max = 40 << 20;
    run_setting(&s);
    s = (setting){.format = "f16", .streams_weights = 1};
    run_setting(&s);
    fake->pin_max = 0;
}

/* One limit for all: prompts take space from the blocks, and generated rows take it back. */
static void prompts_and_blocks_share(void **state)
{
    (void)state;
    pllm_device *device = open_fake();
    setting s = {.format = "f16", .piece = 333, .strangers = 2};
    pllm_engine_options options = options_of(&s);
    pllm_engine *engine = open_engine(device, &options);
    pllm_engine_info info = {.struct_bytes = sizeof info};
    assert_int_equal(pllm_engine_info_get(engine, &info), PLLM_OK);
    pllm_engine_close(engine);
    options.vram_limit_bytes = info.least_vram_bytes + info.weight_bytes - (30 << 20);
    engine = open_engine(device, &options);
    run_script(engine, &s);
    run_script(engine, &s);
    pllm_engine_stats stats = {.struct_bytes = sizeof stats};
    assert_int_equal(pllm_engine_stats_get(engine, &stats), PLLM_OK);
    printf("    %llu MiB streamed, %llu evictions, peak %llu of %llu MiB\n",
           (unsigned long long)(stats.kv_stream_bytes >> 20), (unsigned long long)stats.evictions,
           (unsigned long long)(stats.device_bytes_peak >> 20),
           (unsigned long long)(stats.device_limit_bytes >> 20));
    assert_true(stats.evictions > 0 && stats.kv_stream_bytes > 0);
    assert_true(stats.device_bytes_peak <= stats.device_limit_bytes);
    pllm_engine_close(engine);
    pllm_device_close(device);
    assert_int_equal(fake->live, 0);
}

static void take(pllm_engine *engine, pllm_sequence *const *sequences, uint32_t items,
                 uint32_t count, uint32_t generated)
{
    static uint32_t ids[2048];
    uint32_t rows = 0;
    pllm_step_item item[SEQUENCES];
    for (uint32_t i = 0; i < items; i++)
        item[i] = (pllm_step_item){.sequence = sequences[i],
                                   .ids = ids,
                                   .token_count = count,
                                   .generated = generated,
                                   .logits = 1};
    if (pllm_engine_step(engine, item, items, ignore, &rows) < 0)
        fail_msg("%u tokens at %u: %s", count, pllm_sequence_length(sequences[0]),
                 pllm_last_error()->text);
    assert_int_equal(rows, items);
}

/* Every block of an idle sequence is announced before it is waited for, so that the link does not
 * rest between layers; and no more than that is brought. */
static void an_idle_sequence_comes_back_ahead_of_use(void **state)
{
    (void)state;
    pllm_device *device = open_fake();
    setting s = {.format = "f16"};
    pllm_engine_options options = options_of(&s);
    pllm_engine *engine = open_engine(device, &options);
    pllm_sequence *sequences[2];
    for (uint32_t i = 0; i < 2; i++)
        assert_int_equal(pllm_sequence_open(engine, &sequences[i]), PLLM_OK);
    take(engine, sequences, 2, 1450, 0);
    assert_int_equal(pllm_engine_evict_all(engine), PLLM_OK);
    pllm_engine_stats before = {.struct_bytes = sizeof before}, after = before;
    assert_int_equal(pllm_engine_stats_get(engine, &before), PLLM_OK);
    assert_int_equal(before.frames_used, 0);
    take(engine, sequences, 2, 1, 1);
    assert_int_equal(pllm_engine_stats_get(engine, &after), PLLM_OK);
    uint64_t blocks = 2ull * (1450 / 32) * 30; /* of two sequences, in 30 layers */
    assert_int_equal(after.frames_used, blocks);
    assert_int_equal(after.prefetched - before.prefetched, blocks);
    assert_int_equal(after.prefetch_used - before.prefetch_used, blocks);
    assert_int_equal(after.host_to_device_bytes - before.host_to_device_bytes,
                     blocks * after.frame_bytes);
    pllm_engine_check(engine);
    pllm_engine_close(engine);
    pllm_device_close(device);
    assert_int_equal(fake->live, 0);
}

/* Under the least limit a layer of one long sequence fits, and not of three: their prompts take
 * turns. And evicting leaves nothing on the device, no ring either. */
static void long_prompts_take_turns(void **state)
{
    (void)state;
    pllm_device *device = open_fake();
    setting s = {.format = "f16"};
    pllm_engine_options options = options_of(&s);
    options.host_memory_bytes = 512 << 20;
    options.context_max = 6000;
    pllm_engine *engine = open_engine(device, &options);
    pllm_engine_info info = {.struct_bytes = sizeof info};
    for (uint32_t i = 0; i < 4; i++) { /* a smaller limit has a smaller ring, and so on */
        assert_int_equal(pllm_engine_info_get(engine, &info), PLLM_OK);
        pllm_engine_close(engine);
        options.kv_limit_bytes = info.least_kv_bytes;
        engine = open_engine(device, &options);
    }
    pllm_sequence *sequences[SEQUENCES];
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        assert_int_equal(pllm_sequence_open(engine, &sequences[i]), PLLM_OK);
        for (uint32_t piece = 0; piece < 4; piece++) take(engine, &sequences[i], 1, 1450, 0);
    }
    take(engine, sequences, SEQUENCES, 1, 1); /* a ring is there from now on */
    take(engine, sequences, SEQUENCES, 50, 0);
    assert_int_equal(pllm_engine_evict_all(engine), PLLM_OK);
    pllm_engine_stats stats = {.struct_bytes = sizeof stats};
    assert_int_equal(pllm_engine_stats_get(engine, &stats), PLLM_OK);
    assert_true(stats.kv_stream_bytes > 0);
    assert_int_equal(stats.frames_used, 0);
    take(engine, sequences, SEQUENCES, 1, 1);
    pllm_engine_check(engine);
    pllm_engine_close(engine);
    pllm_device_close(device);
    assert_int_equal(fake->live, 0);
}

/* Blocks on disk pass through frames that nothing else may have taken: neither what is held, which
 * is cut in whole chunks a layer, so that each limit leaves another rest, nor what is sealed. */
static void disk_under_any_limit(void **state)
{
    (void)state;
    pllm_device *device = open_fake();
    setting s = {.format = "f16", .disk_bytes = 256 << 20};
    pllm_engine_options options = options_of(&s);
    options.sequence_max = 1;
    pllm_engine *engine = open_engine(device, &options);
    pllm_engine_info info = {.struct_bytes = sizeof info};
    assert_int_equal(pllm_engine_info_get(engine, &info), PLLM_OK);
    pllm_engine_close(engine);
    options.kv_limit_bytes = info.least_kv_bytes;
    engine = open_engine(device, &options);
    pllm_sequence *sequence;
    assert_int_equal(pllm_sequence_open(engine, &sequence), PLLM_OK);
    take(engine, &sequence, 1, 990, 0);
    for (uint32_t frames = 0; frames < 280; frames += 4) {
        uint64_t limit = info.least_kv_bytes + frames * info.kv_bytes_per_block;
        assert_int_equal(pllm_engine_set_kv_limit(engine, limit), PLLM_OK);
        assert_int_equal(pllm_sequence_truncate(sequence, 990), PLLM_OK);
        for (uint32_t i = 0; i < 3; i++) take(engine, &sequence, 1, 1, 1);
        pllm_engine_check(engine);
    }
    pllm_engine_stats stats = {.struct_bytes = sizeof stats};
    assert_int_equal(pllm_engine_stats_get(engine, &stats), PLLM_OK);
    assert_true(stats.disk_to_device_bytes > 0);
    pllm_engine_close(engine);
    pllm_device_close(device);
    assert_int_equal(fake->live, 0);
}

/* One step of the first `rows` sequences after each of their contexts has grown to length. */
static void rows_at(pllm_engine *engine, pllm_sequence **sequences, uint32_t rows, uint32_t length)
{
    for (uint32_t i = 0; i < rows; i++) {
        uint32_t have = pllm_sequence_length(sequences[i]);
        if (have > length) assert_int_equal(pllm_sequence_truncate(sequences[i], length), PLLM_OK);
        if (have < length) take(engine, &sequences[i], 1, length - have, 0);
    }
    take(engine, sequences, rows, 1, 1);
}

/* Whatever mix of batches comes, cached graphs take no more of the card than is set aside for them;
 * those in use stay; and where one alone takes more, passes go without. */
static void graphs_stay_within_the_limit(void **state)
{
    (void)state;
    enum { ALL = 32 << 20 };
    static const uint64_t costs[] = {0, 5 << 20, 40 << 20};
    static const uint32_t lengths[] = {96, 384, 896, 1888}; /* 4 buckets, by 3 numbers of rows */
    for (uint32_t c = 0; c < 3; c++) {
        fake->graph_cost = costs[c];
        fake->graphs_made = 0;
        pllm_device *device = open_fake();
        setting s = {.format = "f16"};
        pllm_engine_options options = options_of(&s);
        options.vram_limit_bytes = (uint64_t)2 << 30;
        pllm_engine *engine = open_engine(device, &options);
        pllm_sequence *sequences[SEQUENCES];
        for (uint32_t i = 0; i < SEQUENCES; i++)
            assert_int_equal(pllm_sequence_open(engine, &sequences[i]), PLLM_OK);
        for (uint32_t round = 0; round < 2; round++)
            for (uint32_t rows = 1; rows <= SEQUENCES; rows++)
                for (uint32_t i = 0; i < 4; i++) {
                    rows_at(engine, sequences, rows, lengths[i]);
                    if (costs[c] < ALL) assert_true(fake->graphs * costs[c] <= ALL);
                    assert_true(fake->graphs <= (costs[c] > ALL ? 1 : 12));
                }
        pllm_engine_stats stats = {.struct_bytes = sizeof stats};
        assert_int_equal(pllm_engine_stats_get(engine, &stats), PLLM_OK);
        assert_int_equal(stats.graph_count, fake->graphs);
        assert_true(stats.graph_bytes >= fake->graphs * costs[c] && stats.graph_bytes <= ALL);
        static const uint64_t made[] = {12, 24, 3}; /* each once; each anew; three tries */
        assert_int_equal(fake->graphs_made, made[c]);
        uint64_t launches = fake->launches;
        for (uint32_t i = 0; i < 5; i++) rows_at(engine, sequences, 2, 1888);
        assert_true(fake->graphs_made <= made[c] + 1); /* the one in use stays */
        assert_true(fake->launches > launches);
        pllm_engine_close(engine);
        pllm_device_close(device);
        assert_int_equal(fake->live, 0);
        assert_int_equal(fake->graphs, 0);
    }
    fake->graph_cost = 0;
}

/* Others have taken the card's last memory when a graph is made: the pass goes without, kernel by
 * kernel, and the next one that has none tries again; after three passes nobody asks any more. What
 * there is of graphs stays. */
static void a_graph_that_finds_no_room_is_done_without(void **state)
{
    (void)state;
    static const char *const calls[] = {"cuGraphInstantiateWithFlags", "cuGraphUpload"};
    for (uint32_t c = 0; c < 2; c++) {
        pllm_device *device = open_fake();
        setting s = {.format = "f16"};
        pllm_engine_options options = options_of(&s);
        pllm_engine *engine = open_engine(device, &options);
        pllm_sequence *sequences[SEQUENCES];
        for (uint32_t i = 0; i < SEQUENCES; i++)
            assert_int_equal(pllm_sequence_open(engine, &sequences[i]), PLLM_OK);
        rows_at(engine, sequences, 1, 96);
        assert_int_equal(fake->graphs, 1);
        fake->fail_call = calls[c];
        fake->fail_code = CUDA_OUT_OF_MEMORY;
        fake->fail_at = fake->calls = 0;
        fake->fail_count = 1;
        uint64_t launches = fake->launches;
        rows_at(engine, sequences, 2, 96);
        assert_int_equal(fake->graphs, 1);
        assert_true(fake->launches > launches);
        rows_at(engine, sequences, 2, 96);
        assert_int_equal(fake->graphs, 2);
        fake->fail_count = 100;
        fake->calls = 0;
        for (uint32_t i = 0; i < 5; i++) rows_at(engine, sequences, 3, 96);
        assert_int_equal(fake->calls, 3);
        rows_at(engine, sequences, 2, 96); /* its graph is there */
        pllm_engine_check(engine);
        fake->fail_call = NULL;
        fake->fail_code = 0;
        pllm_engine_close(engine);
        pllm_device_close(device);
        assert_int_equal(fake->live, 0);
    }
}

/* A llama of LAYERS layers whose feed-forward matrices are in f32 in the first layer and in q8_0 in
 * the others, as quantised files have a few finer layers. */
enum { LAYERS = 12, WIDTH = 512, FFN = 1024 };
static void write_uneven(const char *path)
{
    gguf_builder b = {0};
    char name[64];
    gguf_builder_string(&b, "general.architecture", "llama");
    gguf_builder_u32(&b, "llama.block_count", LAYERS);
    gguf_builder_u32(&b, "llama.context_length", 256);
    gguf_builder_u32(&b, "llama.embedding_length", WIDTH);
    gguf_builder_u32(&b, "llama.feed_forward_length", FFN);
    gguf_builder_u32(&b, "llama.attention.head_count", 8);
    gguf_builder_u32(&b, "llama.attention.head_count_kv", 4);
    gguf_builder_f32(&b, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    gguf_builder_f32(&b, "llama.rope.freq_base", 10000.0f);
    gguf_builder_tensor(&b, "token_embd.weight", 2, WIDTH, 256, 8);
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        const struct {
            const char *part;
            uint32_t rank, columns, rows, type;
        } tensors[] = {{"attn_norm", 1, WIDTH, 1, 0},
                       {"attn_q", 2, WIDTH, WIDTH, 8},
                       {"attn_k", 2, WIDTH, WIDTH / 2, 8},
                       {"attn_v", 2, WIDTH, WIDTH / 2, 8},
                       {"attn_output", 2, WIDTH, WIDTH, 8},
                       {"ffn_norm", 1, WIDTH, 1, 0},
                       {"ffn_gate", 2, WIDTH, FFN, layer ? 8 : 0},
                       {"ffn_up", 2, WIDTH, FFN, layer ? 8 : 0},
                       {"ffn_down", 2, FFN, WIDTH, layer ? 8 : 0}};
        for (uint32_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++) {
            snprintf(name, sizeof name, "blk.%u.%s.weight", layer, tensors[i].part);
            gguf_builder_tensor(&b, name, tensors[i].rank, tensors[i].columns, tensors[i].rows,
                                tensors[i].type);
        }
    }
    gguf_builder_tensor(&b, "output_norm.weight", 1, WIDTH, 1, 0);
    uint64_t bytes;
    uint8_t *data = gguf_builder_finish(&b, &bytes);
    FILE *file = fopen(path, "wb");
    assert_true(file && fwrite(data, 1, bytes, file) == bytes);
    assert_int_equal(fclose(file), 0);
    free(data);
}

/* One layer that is larger than the others does not make each as large: without a limit all of them
 * stay, and under one as many as it has room for. */
static void layers_of_unequal_size(void **state)
{
    (void)state;
    const char *path = PLLM_BINARY_DIR "/tests/uneven.gguf";
    write_uneven(path);
    pllm_engine_options options = {.struct_bytes = sizeof options,
                                   .device = "cuda",
                                   .kv_format = "f16",
                                   .host_memory_bytes = 64 << 20,
                                   .sequence_max = 1,
                                   .context_max = 256};
    uint64_t resident = 0;
    for (uint32_t limited = 0; limited < 2; limited++) {
        pllm_device *device = open_fake();
        pllm_engine *engine;
        if (pllm_engine_open_on(NULL, path, &options, device, NULL, &engine) < 0)
            fail_msg("%s", pllm_last_error()->text);
        pllm_sequence *sequence;
        assert_int_equal(pllm_sequence_open(engine, &sequence), PLLM_OK);
        take(engine, &sequence, 1, 40, 0);
        for (uint32_t i = 0; i < 3; i++) take(engine, &sequence, 1, 1, 1);
        pllm_engine_stats stats = {.struct_bytes = sizeof stats};
        pllm_engine_info info = {.struct_bytes = sizeof info};
        assert_int_equal(pllm_engine_stats_get(engine, &stats), PLLM_OK);
        assert_int_equal(pllm_engine_info_get(engine, &info), PLLM_OK);
        assert_true(stats.device_bytes_peak <= stats.device_limit_bytes);
        if (!limited) {
            assert_int_equal(stats.weight_stream_bytes, 0);
            assert_int_equal(stats.weight_resident_bytes, info.weight_bytes);
            resident = info.weight_bytes;
            options.vram_limit_bytes = info.least_vram_bytes;
        } else {
            assert_true(stats.weight_stream_bytes > 0);
            assert_true(stats.weight_resident_bytes < resident);
        }
        pllm_engine_close(engine);
        pllm_device_close(device);
        assert_int_equal(fake->live, 0);
    }
    unlink(path);
}

/* A limit that is too small is refused with the least that works; and that works. */
static void the_least_is_enough(void **state)
{
    (void)state;
    static const char *const formats[] = {"f16", "int4"};
    pllm_device *device = open_fake();
    for (uint32_t i = 0; i < 4; i++) {
        setting s = {.format = formats[i % 2]};
        pllm_engine_options options = options_of(&s);
        pllm_engine *engine;
        options.context_max = i < 2 ? 8000 : 700;
        options.vram_limit_bytes = i < 2 ? 1 << 20 : 200 << 20;
        if (pllm_engine_open_on(NULL, NULL, &options, device, NULL, &engine) == PLLM_OK)
            pllm_engine_close(engine);
        else
            options.vram_limit_bytes = strtoull(strchr(pllm_last_error()->text, '(') + 1, NULL, 10);
        engine = open_engine(device, &options);
        pllm_sequence *sequence;
        assert_int_equal(pllm_sequence_open(engine, &sequence), PLLM_OK);
        take(engine, &sequence, 1, 650, 0);
        take(engine, &sequence, 1, 1, 1);
        pllm_engine_close(engine);
    }
    pllm_device_close(device);
}

/* Another process asks: what sequences hold goes, down to the engine's minimum, at once while
 * nobody calls, and the engine goes on within that. */
static void a_ledger_takes_blocks_back(void **state)
{
    (void)state;
    char name[32];
    snprintf(name, sizeof name, "cuda-%d", (int)getpid());
    pllm_device *device = open_fake();
    setting s = {.format = "f16"};
    pllm_engine_options options = options_of(&s);
    options.ledger = name;
    options.ledger_name = "engine";
    options.ledger_limit_bytes = 2ull << 30;
    pllm_engine *engine = open_engine(device, &options);
    pllm_ledger *ledger;
    pllm_ledger_member *high;
    pllm_ledger_member_options other = {
        .struct_bytes = sizeof other, .name = "high", .priority = 1, .wait_ms = 20000};
    assert_int_equal(pllm_ledger_open(NULL, name, 0, &ledger), PLLM_OK);
    assert_int_equal(pllm_ledger_join(ledger, &other, &high), PLLM_OK);
    pllm_sequence *sequences[2];
    for (uint32_t i = 0; i < 2; i++)
        assert_int_equal(pllm_sequence_open(engine, &sequences[i]), PLLM_OK);
    take(engine, sequences, 2, 1450, 0);
    take(engine, sequences, 2, 1, 1);
    pllm_ledger_member_info rows[2];
    pllm_engine_stats stats = {.struct_bytes = sizeof stats};
    assert_int_equal(pllm_engine_stats_get(engine, &stats), PLLM_OK);
    assert_int_equal(pllm_ledger_list(ledger, rows, 2, NULL), 2);
    assert_string_equal(rows[0].name, "engine");
    uint64_t blocks = stats.frames_used * stats.frame_bytes, before = rows[0].charged_bytes;
    assert_true(blocks > 32 << 20);
    uint64_t wanted = options.ledger_limit_bytes - before + blocks / 2; /* half of them must go */
    assert_int_equal(pllm_ledger_charge(high, wanted), PLLM_OK);
    for (uint32_t i = 0; i < 5; i++) take(engine, sequences, 2, 1, 1);
    assert_int_equal(pllm_ledger_list(ledger, rows, 2, NULL), 2);
    assert_true(rows[0].charged_bytes <= before - blocks / 2);
    assert_true(rows[0].charged_bytes >= rows[0].minimum_bytes);
    pllm_engine_check(engine);
    pllm_ledger_leave(high);
    take(engine, sequences, 2, 1, 1);
    pllm_engine_close(engine);
    pllm_device_close(device);
    pllm_ledger_close(ledger);
    assert_int_equal(pllm_ledger_remove(NULL, name), PLLM_OK);
    assert_int_equal(fake->live, 0);
}

int main(void)
{
    fake = fake_cuda_load(LIBRARY);
    if (!fake) return 1;
    fake_cuda_keep_blas();
    fake->deferred = 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(budgets),
        cmocka_unit_test(weights),
        cmocka_unit_test(layers_of_unequal_size),
        cmocka_unit_test(disk),
        cmocka_unit_test(little_may_be_pinned),
        cmocka_unit_test(prompts_and_blocks_share),
        cmocka_unit_test(an_idle_sequence_comes_back_ahead_of_use),
        cmocka_unit_test(long_prompts_take_turns),
        cmocka_unit_test(disk_under_any_limit),
        cmocka_unit_test(a_ledger_takes_blocks_back),
        cmocka_unit_test(graphs_stay_within_the_limit),
        cmocka_unit_test(a_graph_that_finds_no_room_is_done_without),
        cmocka_unit_test(the_least_is_enough),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
