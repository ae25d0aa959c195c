/* The tiny checkpoints of every family we have, against the logits that transformers gives for them
 * in f32 (tests/reference/README.md): relative error under 1e-4, greedy ids equal. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <pagedllm/engine.h>
#include "engine_support.h"

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

static void check_logits(pllm_engine *engine, const pllm_safetensors *file, const char *ids_name,
                         const char *logits_name)
{
    uint32_t count;
    uint32_t *ids = test_read_ids(file, ids_name, &count);
    pllm_safetensors_view view;
    assert_int_equal(pllm_safetensors_find(file, logits_name, &view), PLLM_OK);
    comparison c = {.expected = view.tensor.data, .vocab = (uint32_t)view.tensor.shape[1]};
    pllm_sequence *sequence;
    assert_int_equal(pllm_sequence_open(engine, &sequence), PLLM_OK);
    pllm_step_item item = {.sequence = sequence, .ids = ids, .token_count = count, .logits = 2};
    assert_int_equal(pllm_engine_step(engine, &item, 1, compare, &c), PLLM_OK);
    double relative = sqrt(c.error / c.norm);
    printf("    %s: relative error %.2e\n", logits_name, relative);
    assert_true(c.norm > 0 && relative < 1e-4);
    pllm_sequence_close(sequence);
    free(ids);
}

static void check_greedy(pllm_engine *engine, const pllm_safetensors *file)
{
    uint32_t count, expected_count;
    uint32_t *ids = test_read_ids(file, "ids_short", &count);
    uint32_t *expected = test_read_ids(file, "greedy", &expected_count);
    test_collector c = {.count = 0};
    pllm_sequence *sequence;
    assert_int_equal(pllm_sequence_open(engine, &sequence), PLLM_OK);
    pllm_generate_options options = {.struct_bytes = sizeof options,
                                     .max_tokens = expected_count,
                                     .ignore_end = 1,
                                     .token = test_collect,
                                     .user = &c};
    pllm_generate_result result;
    assert_int_equal(pllm_generate(engine, sequence, ids, count, &options, &result), PLLM_OK);
    assert_int_equal(c.count, expected_count);
    for (uint32_t i = 0; i < expected_count; i++) assert_int_equal(c.ids[i], expected[i]);
    pllm_sequence_close(sequence);
    free(expected);
    free(ids);
}

static void check_family(const char *name)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/tests/reference/models/%s", PLLM_SOURCE_DIR, name);
    pllm_engine *engine = test_engine_open(path, NULL);
    snprintf(path, sizeof path, "%s/tests/reference/models/%s/reference.safetensors",
             PLLM_SOURCE_DIR, name);
    pllm_safetensors *file;
    assert_int_equal(pllm_safetensors_open(NULL, path, &file), PLLM_OK);
    check_logits(engine, file, "ids_short", "logits_short");
    check_logits(engine, file, "ids_long", "logits_long");
    check_greedy(engine, file);
    pllm_safetensors_close(file);
    pllm_engine_close(engine);
}

static void llama(void **state)
{
    (void)state;
    check_family("llama");
}

static void llama_rope3(void **state)
{
    (void)state;
    check_family("llama-rope3");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(llama),
        cmocka_unit_test(llama_rope3),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
