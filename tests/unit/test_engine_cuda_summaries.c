/* Key summaries on a GPU: each lies where its block's is looked for, whatever becomes of the block.
 * On a CUDA driver in host memory (tests/fake) that runs two kernels: sealing, which here first
 * fills the block with keys of its own, and summarising. */
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
#include "kernels/cuda/attention_arguments.h"
#include "summary_check.h"

#define LIBRARY PLLM_BINARY_DIR "/tests/libfake_cuda.so"

enum { SEQUENCES = 3, CONTEXT = 1200 };

static fake_cuda *fake;
static pllm_kv_shape shape;
static uint32_t sealed_count, summary_count;

static uint32_t next(uint32_t *random)
{
    *random ^= *random << 13;
    *random ^= *random >> 17;
    *random ^= *random << 5;
    return *random;
}

/* A block like no other, into the open one and its frame. */
static void seal(const pllm_seal_arguments *a, uint32_t count)
{
    const uint32_t *pairs = (const uint32_t *)(uintptr_t)a->pairs;
    uint64_t bytes = pllm_kv_block_bytes(&shape, shape.open);
    for (uint32_t i = 0; i < count; i++) {
        uint16_t *from = (uint16_t *)(uintptr_t)(a->from + pairs[2 * i] * a->from_bytes);
        uint32_t random = ++sealed_count * 2654435761u | 1;
        for (uint64_t j = 0; j < bytes / 2; j++)
            from[j] = (uint16_t)(0x3c00 + (next(&random) >> 22)); /* f16 from 1 to 2 */
        memcpy((void *)(uintptr_t)(a->to + pairs[2 * i + 1] * a->to_bytes), from, bytes);
    }
}

static void summarise(void **arguments, uint32_t count)
{
    uint64_t blocks, block_bytes, pairs_va, summaries, summary_bytes;
    uint64_t *const to[] = {&blocks, &block_bytes, &pairs_va, &summaries, &summary_bytes};
    for (uint32_t i = 0; i < 5; i++) memcpy(to[i], arguments[i], sizeof(uint64_t));
    const uint32_t *pairs = (const uint32_t *)(uintptr_t)pairs_va;
    for (uint32_t i = 0; i < count; i++)
        pllm_kv_summarise(&shape, (const void *)(uintptr_t)(blocks + pairs[2 * i] * block_bytes),
                          (void *)(uintptr_t)(summaries + pairs[2 * i + 1] * summary_bytes));
    summary_count += count;
}

static void kernel(const char *name, uint32_t grid_x, uint32_t grid_y, void **arguments)
{
    if (strcmp(name, "pllm_kv_seal") == 0) seal(arguments[0], grid_y);
    if (strcmp(name, "pllm_summarise") == 0) summarise(arguments, grid_x);
}

typedef struct life {
    pllm_engine *engine;
    pllm_sequence *sequences[SEQUENCES];
    uint32_t count, random;
} life;

static void step(life *l, uint32_t most, int generated)
{
    static uint32_t ids[CONTEXT];
    pllm_step_item items[SEQUENCES];
    uint32_t count = 0;
    for (uint32_t i = 0; i < l->count; i++) {
        uint32_t n = generated ? 1 : 1 + next(&l->random) % most;
        if (pllm_sequence_length(l->sequences[i]) + n > CONTEXT) continue;
        items[count++] = (pllm_step_item){.sequence = l->sequences[i],
                                          .ids = ids,
                                          .token_count = n,
                                          .generated = (uint32_t)generated};
    }
    if (count && pllm_engine_step(l->engine, items, count, NULL, NULL) < 0)
        fail_msg("%s", pllm_last_error()->text);
}

static void move(life *l)
{
    uint32_t kind = next(&l->random) % 8, which = l->count ? next(&l->random) % l->count : 0;
    if (l->count == 0 || (kind == 0 && l->count < SEQUENCES)) {
        assert_int_equal(pllm_sequence_open(l->engine, &l->sequences[l->count++]), PLLM_OK);
    } else if (kind == 1 && l->count < SEQUENCES) {
        assert_int_equal(pllm_sequence_fork(l->sequences[which], &l->sequences[l->count++]),
                         PLLM_OK);
    } else if (kind == 2) {
        uint32_t length = pllm_sequence_length(l->sequences[which]);
        if (length)
            assert_int_equal(pllm_sequence_truncate(l->sequences[which], next(&l->random) % length),
                             PLLM_OK);
    } else if (kind == 3) {
        pllm_sequence_close(l->sequences[which]);
        l->sequences[which] = l->sequences[--l->count];
    } else if (kind < 6) {
        for (uint32_t i = 0; i < 40; i++) step(l, 0, 1);
    } else {
        step(l, 500, 0);
    }
}

static void live(uint64_t kv_limit, uint64_t vram_limit)
{
    pllm_cuda_device_options device_options = {
        .struct_bytes = sizeof device_options, .library = LIBRARY, .nvml = LIBRARY};
    pllm_engine_options options = {.struct_bytes = sizeof options,
                                   .device = "cuda",
                                   .shape = "smollm2-135m",
                                   .weights = "q4_0",
                                   .kv_format = "f16",
                                   .host_memory_bytes = 256 << 20,
                                   .kv_limit_bytes = kv_limit,
                                   .vram_limit_bytes = vram_limit,
                                   .sequence_max = SEQUENCES,
                                   .context_max = CONTEXT,
                                   .key_summaries = 1};
    life l = {.random = 2463534242u + (uint32_t)(kv_limit >> 16)};
    pllm_device *device;
    uint32_t compared = 0;
    if (pllm_device_open_cuda(NULL, &device_options, &device) < 0)
        fail_msg("%s", pllm_last_error()->text);
    if (vram_limit) { /* too little is refused with the least */
        assert_int_equal(pllm_engine_open_on(NULL, NULL, &options, device, NULL, &l.engine),
                         PLLM_ENODEVMEM);
        options.vram_limit_bytes = strtoull(strchr(pllm_last_error()->text, '(') + 1, NULL, 10);
    }
    if (pllm_engine_open_on(NULL, NULL, &options, device, NULL, &l.engine) < 0)
        fail_msg("%s", pllm_last_error()->text);
    shape = l.engine->cache.shape;
    sealed_count = summary_count = 0;
    for (uint32_t i = 0; i < 30; i++) {
        move(&l);
        compared += summary_check(l.engine, 5);
        pllm_engine_check(l.engine);
    }
    printf("    %u blocks sealed, %u compared\n", sealed_count, compared);
    assert_true(compared > 1000);
    assert_int_equal(summary_count, sealed_count);
    pllm_engine_stats stats = {.struct_bytes = sizeof stats};
    assert_int_equal(pllm_engine_stats_get(l.engine, &stats), PLLM_OK);
    assert_true(stats.device_bytes_peak <= stats.device_limit_bytes);
    pllm_engine_close(l.engine);
    pllm_device_close(device);
    assert_int_equal(fake->live, 0);
}

static void with_room_for_all(void **state)
{
    (void)state;
    live(0, 0);
}

static void with_little_room_for_blocks(void **state)
{
    (void)state;
    live(24 << 20, 0);
}

static void under_the_least_limit(void **state)
{
    (void)state;
    live(0, 1 << 20);
}

int main(void)
{
    fake = fake_cuda_load(LIBRARY);
    if (!fake) return 1;
    fake_cuda_keep_blas();
    fake->kernel = kernel;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(with_room_for_all),
        cmocka_unit_test(with_little_room_for_blocks),
        cmocka_unit_test(under_the_least_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
