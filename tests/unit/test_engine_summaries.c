/* Key summaries on the host device: kept where the option asks for them, equal to those made anew
 * from the blocks through eviction, fork, truncation and another sequence in their place. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "engine_support.h"
#include "summary_check.h"

#define MODEL PLLM_SOURCE_DIR "/tests/reference/models/llama"

enum { SEQUENCES = 3 };

static void take(pllm_engine *engine, pllm_sequence *sequence, uint32_t count, uint32_t generated)
{
    uint32_t ids[512];
    for (uint32_t i = 0; i < count; i++)
        ids[i] = (pllm_sequence_length(sequence) + i) * 2654435761u >> 7 & 255;
    pllm_step_item item = {
        .sequence = sequence, .ids = ids, .token_count = count, .generated = generated};
    if (pllm_engine_step(engine, &item, 1, NULL, NULL) < 0) fail_msg("%s", pllm_last_error()->text);
}

static void live(const char *format, uint32_t frames)
{
    pllm_engine_options options = {.struct_bytes = sizeof options,
                                   .threads = 2,
                                   .kv_format = format,
                                   .host_memory_bytes = PLLM_UNLIMITED,
                                   .sequence_max = SEQUENCES,
                                   .context_max = 512,
                                   .key_summaries = 1};
    pllm_engine *engine = test_engine_open(MODEL, &options);
    pllm_engine_info info = {.struct_bytes = sizeof info};
    assert_int_equal(pllm_engine_info_get(engine, &info), PLLM_OK);
    if (frames) {
        pllm_engine_close(engine);
        options.vram_limit_bytes = info.least_vram_bytes + frames * info.kv_bytes_per_block;
        engine = test_engine_open(MODEL, &options);
    }
    pllm_sequence *sequences[SEQUENCES];
    assert_int_equal(pllm_sequence_open(engine, &sequences[0]), PLLM_OK);
    take(engine, sequences[0], 333, 0);
    for (uint32_t i = 0; i < 40; i++) take(engine, sequences[0], 1, 1);
    uint32_t compared = summary_check(engine, 1);
    assert_int_equal(pllm_sequence_fork(sequences[0], &sequences[1]), PLLM_OK);
    assert_int_equal(pllm_sequence_truncate(sequences[1], 200), PLLM_OK);
    take(engine, sequences[1], 150, 0);
    compared += summary_check(engine, 1);
    pllm_sequence_close(sequences[0]); /* its groups are used again, but for the shared ones */
    assert_int_equal(pllm_sequence_open(engine, &sequences[2]), PLLM_OK);
    take(engine, sequences[2], 500, 0);
    compared += summary_check(engine, 1);
    printf("    %s: %u blocks compared\n", format, compared);
    assert_true(compared > 100);
    pllm_engine_stats stats = {.struct_bytes = sizeof stats};
    assert_int_equal(pllm_engine_stats_get(engine, &stats), PLLM_OK);
    assert_true(stats.device_bytes_peak <= stats.device_limit_bytes);
    char summary[65536];
    assert_int_equal(pllm_engine_read_summary(engine, sequences[2], 0, 15, summary), PLLM_EINVAL);
    assert_int_equal(pllm_engine_read_summary(engine, sequences[2], info.layer_count, 0, summary),
                     PLLM_EINVAL);
    pllm_sequence_close(sequences[1]);
    pllm_sequence_close(sequences[2]);
    pllm_engine_close(engine);
}

static void of_every_block_wherever_it_is(void **state)
{
    (void)state;
    live("f16", 0);
    live("f32", 20);
    live("bf16", 2);
}

/* The option costs a sixteenth of all blocks in f16, and nothing without it. */
static void at_their_price(void **state)
{
    (void)state;
    uint64_t least[2], blocks = 0;
    for (uint32_t on = 0; on < 2; on++) {
        pllm_engine_options options = {.struct_bytes = sizeof options,
                                       .kv_format = "f16",
                                       .context_max = 512,
                                       .sequence_max = SEQUENCES,
                                       .key_summaries = on};
        pllm_engine *engine = test_engine_open(MODEL, &options);
        pllm_engine_info info = {.struct_bytes = sizeof info};
        assert_int_equal(pllm_engine_info_get(engine, &info), PLLM_OK);
        least[on] = info.least_vram_bytes;
        blocks = (uint64_t)engine->cache.group_max * info.layer_count *
                 pllm_kv_block_bytes(&engine->cache.shape, PLLM_F16);
        pllm_sequence *sequence;
        char summary[65536];
        assert_int_equal(pllm_sequence_open(engine, &sequence), PLLM_OK);
        take(engine, sequence, 40, 0);
        assert_int_equal(pllm_engine_read_summary(engine, sequence, 0, 0, summary),
                         on ? PLLM_OK : PLLM_EUNSUPPORTED);
        pllm_engine_close(engine);
    }
    assert_true(least[1] - least[0] >= blocks / 16);
    assert_true(least[1] - least[0] < blocks / 16 + 65536);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(of_every_block_wherever_it_is),
        cmocka_unit_test(at_their_price),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
