/* SmolLM2-135M-Instruct, real weights, against the reference values of tests/reference/README.md:
 * greedy ids in f32 and in the default arithmetic, and perplexity by KV format. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "engine/perplexity.h"
#include "engine_support.h"

/* tests/cuda/test_cuda_smollm2.c is this file on a GPU, where activations are rounded to bf16. */
#ifndef TEST_DEVICE
#define TEST_DEVICE "host"
#define TEST_AUTO_GAP 0.05f
#endif
#define REFERENCE PLLM_SOURCE_DIR "/tests/reference/smollm2/"

/* Ids must agree until the reference itself was undecided: the two best logits within least_gap. */
static uint32_t check_greedy(pllm_engine *engine, const pllm_safetensors *file, const char *prompt,
                             float least_gap)
{
    char name[64];
    uint32_t count, expected_count, gap_count;
    snprintf(name, sizeof name, "%s.ids", prompt);
    uint32_t *ids = test_read_ids(file, name, &count);
    snprintf(name, sizeof name, "%s.greedy", prompt);
    uint32_t *expected = test_read_ids(file, name, &expected_count);
    snprintf(name, sizeof name, "%s.greedy_gap", prompt);
    const float *gap = test_read_floats(file, name, &gap_count);
    assert_int_equal(expected_count, gap_count);
    test_collector c = {.count = 0};
    pllm_sequence *sequence;
    assert_int_equal(pllm_sequence_open(engine, &sequence), PLLM_OK);
    pllm_generate_options options = {.struct_bytes = sizeof options,
                                     .max_tokens = expected_count,
                                     .ignore_end = 1,
                                     .token = test_collect,
                                     .user = &c};
    assert_int_equal(pllm_generate(engine, sequence, ids, count, &options, NULL), PLLM_OK);
    pllm_sequence_close(sequence);
    assert_int_equal(c.count, expected_count);
    uint32_t agreed = 0;
    while (agreed < expected_count && gap[agreed] >= least_gap) {
        if (c.ids[agreed] != expected[agreed])
            fail_msg("%s: token %u is %u, not %u; the reference's gap there is %.3f", prompt,
                     agreed, c.ids[agreed], expected[agreed], (double)gap[agreed]);
        agreed++;
    }
    free(expected);
    free(ids);
    return agreed;
}

static void check_prompts(const char *compute, float least_gap)
{
    pllm_engine_options options = {
        .struct_bytes = sizeof options, .device = TEST_DEVICE, .compute = compute};
    pllm_engine *engine = test_engine_open(test_model_path(PLLM_SOURCE_DIR), &options);
    pllm_safetensors *file;
    assert_int_equal(pllm_safetensors_open(NULL, REFERENCE "smollm2_reference.safetensors", &file),
                     PLLM_OK);
    const char *const prompts[] = {"plain", "chat", "list"};
    uint32_t agreed = 0;
    for (int i = 0; i < 3; i++) agreed += check_greedy(engine, file, prompts[i], least_gap);
    printf("    compute %s: %u greedy ids agree\n", compute, agreed);
    assert_true(agreed >= (least_gap > 0.05f ? 5 : 20)); /* the gaps leave as many to compare */
    pllm_safetensors_close(file);
    pllm_engine_close(engine);
}

static void greedy_in_f32(void **state)
{
    (void)state;
    check_prompts("f32", 0.05f);
}

static void greedy_by_default(void **state)
{
    (void)state;
    check_prompts("auto", TEST_AUTO_GAP);
}

static double perplexity(const char *kv_format)
{
    pllm_engine_options options = {.struct_bytes = sizeof options,
                                   .device = TEST_DEVICE,
                                   .kv_format = kv_format,
                                   .context_max = 1024};
    pllm_engine *engine = test_engine_open(test_model_path(PLLM_SOURCE_DIR), &options);
    uint64_t bytes;
    char *text = test_read_file(REFERENCE "perplexity-text.txt", &bytes);
    uint32_t *ids, count;
    assert_int_equal(pllm_engine_encode(engine, text, bytes, 0, &ids, &count), PLLM_OK);
    pllm_perplexity_result result;
    assert_int_equal(pllm_perplexity(engine, ids, count, 512, 2048, NULL, NULL, &result), PLLM_OK);
    assert_int_equal(result.scored_count, 2048);
    assert_int_equal(result.window_count, 4);
    double value = exp(result.nll_sum / result.scored_count);
    pllm_engine_free(engine, ids);
    free(text);
    pllm_engine_close(engine);
    return value;
}

static void perplexity_by_kv_format(void **state)
{
    (void)state;
    const double reference = 22.703580700304165; /* smollm2_perplexity.json, windows of 512 */
    double f16 = perplexity("f16"), int8 = perplexity("int8"), int4 = perplexity("int4");
    printf(
        "    perplexity: f16 %.4f (%+.3f%% of the reference), int8 %+.3f%%, int4 %+.3f%% of f16\n",
        f16, 100 * (f16 / reference - 1), 100 * (int8 / f16 - 1), 100 * (int4 / f16 - 1));
    assert_true(fabs(f16 / reference - 1) < 0.005);
    assert_true(fabs(int8 / f16 - 1) < 0.005);
    assert_true(fabs(int4 / f16 - 1) < 0.05);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_in_f32),
        cmocka_unit_test(greedy_by_default),
        cmocka_unit_test(perplexity_by_kv_format),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
