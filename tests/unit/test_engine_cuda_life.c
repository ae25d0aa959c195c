/* The CUDA executor's blocks through the lives of many sequences, on a CUDA driver in host memory
 * (tests/fake): steps of any of them with prompts and generated rows mixed, forks, cuts, closes,
 * limits that change, evictions, cancels and driver calls that fail, in an order that a seed gives.
 * A step that meets no fault must go through however tight the limit is, and between steps what is
 * pinned is what is held, and the ring. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "../fake/fake_cuda.h"
#include "device/cuda.h"
#include "engine/cuda/cuda_state.h"
#include "engine/parts.h"

#define LIBRARY PLLM_BINARY_DIR "/tests/libfake_cuda.so"

enum { SEQUENCES = 4, CONTEXT = 2000 };

static fake_cuda *fake;

typedef struct life {
    pllm_engine *engine;
    pllm_engine_info info;
    pllm_sequence *sequences[SEQUENCES];
    uint32_t count, moves, steps, faults;
    uint64_t seed, random;
    int fixed_limit;
} life;

static uint32_t draw(life *l, uint32_t below)
{
    l->random ^= l->random << 13;
    l->random ^= l->random >> 7;
    l->random ^= l->random << 17;
    return (uint32_t)((l->random >> 20) % below);
}

static int go_on(void *user, uint32_t item, uint32_t position, const float *logits)
{
    (void)item, (void)position, (void)logits;
    return *(int *)user;
}

/* Every page that a sequence holds, or the ring, is pinned; nothing else is. */
static void check_pins(life *l)
{
    pllm_engine *engine = l->engine;
    const cuda_blocks *blocks = &engine->cuda->blocks;
    uint32_t layers = engine->shape.layer_count, pinned = 0, groups = engine->cache.group_max;
    uint8_t *held = calloc((size_t)groups * layers, 1);
    assert_non_null(held);
    for (const pllm_sequence *s = engine->sequences; s; s = s->next)
        for (uint32_t layer = 0; layer < layers; layer++) {
            uint32_t count = blocks->held[s->slot * layers + layer];
            if (count > s->group_count) fail_msg("%u of %u blocks held", count, s->group_count);
            for (uint32_t i = 0; i < count; i++) held[s->groups[i] * layers + layer] = 1;
        }
    for (uint32_t i = 0; i < groups * layers; i++) pinned += held[i];
    free(held);
    if (blocks->has_ring) pinned += blocks->group_count * blocks->wave_blocks;
    pllm_pager_stats stats;
    pllm_pager_stats_get(engine->pager, &stats);
    if (stats.pinned != pinned)
        fail_msg("seed %llu, move %u: %u pages are pinned, %u held", (unsigned long long)l->seed,
                 l->moves, stats.pinned, pinned);
    assert_int_equal(blocks->borrowed_count, 0);
}

/* Some of the sequences take tokens; most: 0 any, 1 generated rows only. */
static int step(life *l, int generated, int cancel)
{
    static uint32_t ids[CONTEXT];
    pllm_step_item items[SEQUENCES];
    uint32_t count = 0;
    for (uint32_t i = 0; i < l->count; i++) {
        uint32_t length = pllm_sequence_length(l->sequences[i]);
        int one = generated || draw(l, 3) == 0;
        uint32_t n = one ? 1 : 1 + draw(l, draw(l, 3) ? 90 : 700);
        if (length + n > CONTEXT || (!generated && draw(l, 4) == 0)) continue;
        items[count++] = (pllm_step_item){.sequence = l->sequences[i],
                                          .ids = ids,
                                          .token_count = n,
                                          .generated = one,
                                          .logits = 1};
    }
    if (count == 0) return PLLM_OK;
    l->steps++;
    return pllm_engine_step(l->engine, items, count, go_on, &cancel);
}

static void must(life *l, int status, const char *what)
{
    if (status < 0)
        fail_msg("seed %llu, move %u: %s: %d, %s", (unsigned long long)l->seed, l->moves, what,
                 status, pllm_last_error()->text);
}

static void set_limit(life *l)
{
    uint64_t limit = draw(l, 4) == 0 ? PLLM_UNLIMITED
                                     : l->info.least_kv_bytes +
                                           (draw(l, 2) ? draw(l, 40 << 20) : draw(l, 2 << 20));
    must(l, pllm_engine_set_kv_limit(l->engine, limit), "a new limit");
}

static void step_with_a_fault(life *l)
{
    static const char *const calls[] = {"cuMemcpyBatchAsync", "cuMemCreate",
                                        "cuLaunchKernelEx",   "cuEventRecord",
                                        "cuStreamWaitEvent",  "cuMemcpyHtoDAsync"};
    fake->fail_call = calls[draw(l, 6)];
    fake->fail_code = fake->fail_call == calls[1] ? 2 : 1;
    fake->fail_at = draw(l, 4) ? draw(l, 300) : draw(l, 5);
    fake->fail_count = 1;
    fake->calls = 0;
    l->faults += step(l, draw(l, 2) == 0, 0) < 0;
    fake->fail_code = 0;
}

static void move(life *l)
{
    uint32_t kind = draw(l, 16), which = l->count ? draw(l, l->count) : 0;
    pllm_sequence *sequence = l->sequences[which];
    if (l->count == 0 || (kind == 0 && l->count < SEQUENCES)) {
        must(l, pllm_sequence_open(l->engine, &l->sequences[l->count]), "open");
        l->count++;
    } else if (kind == 1) {
        pllm_sequence_close(sequence);
        l->sequences[which] = l->sequences[--l->count];
    } else if (kind == 2 && l->count < SEQUENCES) {
        must(l, pllm_sequence_fork(sequence, &l->sequences[l->count]), "fork");
        l->count++;
    } else if (kind == 3) {
        uint32_t length = pllm_sequence_length(sequence);
        must(l, pllm_sequence_truncate(sequence, length ? draw(l, length) : 0), "truncate");
    } else if (kind == 4 && !l->fixed_limit) {
        set_limit(l);
    } else if (kind == 5) {
        must(l, pllm_engine_evict_all(l->engine), "evict");
    } else if (kind == 6) {
        (void)step(l, 0, 1);
    } else if (kind == 7) {
        step_with_a_fault(l);
    } else if (kind < 11) { /* blocks fill up and are sealed by generated rows */
        for (uint32_t i = 0; i < 35; i++) must(l, step(l, 1, 0), "a generated row");
    } else {
        must(l, step(l, 0, 0), "a step");
    }
}

static pllm_device *open_fake(void)
{
    pllm_cuda_device_options options = {
        .struct_bytes = sizeof options, .library = LIBRARY, .nvml = LIBRARY};
    pllm_device *device;
    if (pllm_device_open_cuda(NULL, &options, &device) < 0) fail_msg("%s", pllm_last_error()->text);
    return device;
}

typedef struct setting {
    const char *format;
    int disk, weights;
} setting;

static void open_life(life *l, pllm_device *device, const setting *s)
{
    pllm_engine_options options = {.struct_bytes = sizeof options,
                                   .device = "cuda",
                                   .shape = "smollm2-135m",
                                   .weights = "q4_0",
                                   .kv_format = s->format,
                                   .host_memory_bytes = s->disk ? 16 << 20 : 1 << 30,
                                   .nvme_path = PLLM_BINARY_DIR,
                                   .nvme_size_bytes = s->disk ? 512 << 20 : 0,
                                   .sequence_max = SEQUENCES,
                                   .context_max = CONTEXT};
    l->info.struct_bytes = sizeof l->info;
    for (int least = 0; least < 5; least++) { /* a smaller limit has a smaller ring, and so on */
        if (pllm_engine_open_on(NULL, NULL, &options, device, NULL, &l->engine) < 0)
            fail_msg("%s", pllm_last_error()->text);
        assert_int_equal(pllm_engine_info_get(l->engine, &l->info), PLLM_OK);
        if (least == 4) return;
        pllm_engine_close(l->engine);
        options.kv_limit_bytes = l->info.least_kv_bytes;
        if (s->weights && least == 3) options.vram_limit_bytes = l->info.least_vram_bytes;
    }
}

static void live(const setting *s, uint64_t seed, uint32_t moves)
{
    life l = {.seed = seed, .random = seed * 0x9e3779b97f4a7c15u + 1};
    pllm_device *device = open_fake();
    open_life(&l, device, s);
    for (l.moves = 0; l.moves < moves; l.moves++) {
        move(&l);
        pllm_engine_check(l.engine);
        check_pins(&l);
    }
    pllm_engine_stats stats = {.struct_bytes = sizeof stats};
    assert_int_equal(pllm_engine_stats_get(l.engine, &stats), PLLM_OK);
    assert_true(stats.device_bytes_peak <= stats.device_limit_bytes);
    printf("    kv %s%s%s, seed %llu: %u steps, %u faults, %llu MiB streamed, %llu evictions\n",
           s->format, s->disk ? ", disk" : "", s->weights ? ", weights" : "",
           (unsigned long long)seed, l.steps, l.faults,
           (unsigned long long)(stats.kv_stream_bytes >> 20), (unsigned long long)stats.evictions);
    pllm_engine_close(l.engine);
    pllm_device_close(device);
    assert_int_equal(fake->live, 0);
}

static void lives(void **state)
{
    (void)state;
    static const setting settings[] = {
        {.format = "f16"}, {.format = "f16", .disk = 1}, {.format = "int4", .weights = 1}};
    const char *seed = getenv("PLLM_SEED"), *moves = getenv("PLLM_MOVES");
    uint64_t first = seed ? strtoull(seed, NULL, 10) : 1;
    for (uint32_t i = 0; i < sizeof settings / sizeof settings[0]; i++)
        live(&settings[i], first + i, moves ? (uint32_t)strtoul(moves, NULL, 10) : 40);
}

int main(void)
{
    fake = fake_cuda_load(LIBRARY);
    if (!fake) return 1;
    fake_cuda_keep_blas();
    fake->deferred = 1;
    const struct CMUnitTest tests[] = {cmocka_unit_test(lives)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
