/* Goal: a named shape has the published number of parameters, views that fit together, and random
 * weights that are the same whatever the pieces; the engine runs on it.
 * Catches: a wrong row of the table, overlapping tensors, a generator that depends on order, codes
 * that break symmetry (-128, nibble 0), a tied output counted twice. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <pagedllm/engine.h>
#include "failing_context.h"
#include "model/model.h"

static int open_shape(const pllm_context *context, const char *name, pllm_dtype dtype,
                      pllm_model **out)
{
    pllm_shape_options options = {.struct_bytes = sizeof options, .name = name, .dtype = dtype};
    return pllm_model_open_shape(context, &options, out);
}

static pllm_model *must_open(const char *name, pllm_dtype dtype)
{
    pllm_model *model = NULL;
    if (open_shape(NULL, name, dtype, &model) != PLLM_OK) fail_msg("%s", pllm_last_error()->text);
    return model;
}

static void refused(const char *name, pllm_dtype dtype, int status, const char *words)
{
    pllm_model *model = (pllm_model *)&status;
    assert_int_equal(open_shape(NULL, name, dtype, &model), status);
    assert_null(model);
    if (!strstr(pllm_last_error()->text, words))
        fail_msg("\"%s\" lacks \"%s\"", pllm_last_error()->text, words);
}

static uint64_t elements(const pllm_tensor_view *view)
{
    return view->shape[0] * view->shape[1] * view->shape[2] * view->shape[3];
}

/* Every view of the model, in the order of its imaginary file. */
static uint32_t all_views(const pllm_model *model, const pllm_tensor_view **views)
{
    const pllm_model_shape *shape = pllm_model_shape_of(model);
    uint32_t count = 0;
    views[count++] = pllm_model_embedding(model);
    for (uint32_t i = 0; i < shape->layer_count; i++)
        for (uint32_t j = 0; j < 9; j++)
            views[count++] = &pllm_model_layer(model, i)->attention_norm + j;
    views[count++] = pllm_model_output_norm(model);
    if (!shape->tied_output) views[count++] = pllm_model_output(model);
    return count;
}

static void check_counts(const char *name, uint64_t parameters)
{
    static const pllm_tensor_view *views[1024];
    pllm_model *model = must_open(name, PLLM_BF16);
    uint32_t count = all_views(model, views);
    uint64_t sum = 0, bytes = 0;
    for (uint32_t i = 0; i < count; i++) {
        assert_null(views[i]->data);
        assert_true(views[i]->file_offset == bytes); /* one after another: no overlap, no gap */
        sum += elements(views[i]);
        bytes += views[i]->bytes;
        for (uint32_t j = i > 9 ? i - 9 : 0; j < i; j++)
            assert_string_not_equal(views[i]->name, views[j]->name);
    }
    if (sum != parameters)
        fail_msg("%s has %llu parameters, not %llu", name, (unsigned long long)sum,
                 (unsigned long long)parameters);
    assert_true(pllm_model_bytes(model) == bytes);
    assert_int_equal(pllm_model_synthetic(model), 1);
    pllm_model_close(model);
}

/* As the models' cards say. */
static void test_parameter_counts(void **state)
{
    (void)state;
    check_counts("llama-2-7b", 6738415616u);
    check_counts("llama-3.1-8b", 8030261248u);
    check_counts("llama-2-70b", 68976648192u);
    check_counts("tinyllama-1.1b", 1100048384u);
    check_counts("smollm2-135m", 134515008u);
    for (uint32_t i = 0; pllm_shape_name(i); i++) {
        pllm_model *model = must_open(pllm_shape_name(i), PLLM_Q4_0);
        pllm_model_close(model);
    }
    assert_null(pllm_shape_name(1000));
}

static void test_formats_and_refusals(void **state)
{
    (void)state;
    pllm_model *four = must_open("llama-2-70b", PLLM_Q4_0),
               *half = must_open("llama-2-7b", PLLM_F16);
    assert_int_equal(pllm_model_layer(four, 79)->down.dtype, PLLM_Q4_0);
    assert_int_equal(pllm_model_layer(four, 79)->ffn_norm.dtype, PLLM_F32);
    assert_true(pllm_model_bytes(four) > 38e9 && pllm_model_bytes(four) < 39e9);
    assert_true(pllm_model_fingerprint(four) != pllm_model_fingerprint(half));
    pllm_model_close(half);
    half = must_open("llama-2-7b", PLLM_BF16);
    pllm_model *same = must_open("llama-2-7b", PLLM_BF16);
    assert_true(pllm_model_fingerprint(same) == pllm_model_fingerprint(half));
    assert_int_equal(pllm_model_shape_of(same)->context_max, 4096);
    pllm_model_drop(same, NULL);
    pllm_model_close(same);
    pllm_model_close(half);
    pllm_model_close(four);
    pllm_shape_options options = {
        .struct_bytes = sizeof options, .name = "llama-2-7b", .context_max = 131072};
    assert_int_equal(pllm_model_open_shape(NULL, &options, &same), PLLM_OK);
    assert_int_equal(pllm_model_shape_of(same)->context_max, 131072);
    pllm_model_close(same);
    options.context_max = UINT32_MAX;
    assert_int_equal(pllm_model_open_shape(NULL, &options, &same), PLLM_ELIMIT);
    refused("mixtral-8x7b", PLLM_BF16, PLLM_EUNSUPPORTED, "mixture");
    refused("llama-9", PLLM_BF16, PLLM_ENOTFOUND, "tinyllama-1.1b");
    refused("llama-2-7b", PLLM_INT8, PLLM_EINVAL, "int8");
}

static float value_at(const pllm_tensor_view *view, const uint8_t *row, uint64_t i)
{
    uint32_t per_block = pllm_dtype_block_elements(view->dtype);
    const uint8_t *block = row + i / per_block * pllm_dtype_block_bytes(view->dtype);
    uint16_t half, minimum = 0;
    float single;
    memcpy(&half, block, 2);
    if (per_block > 1) memcpy(&minimum, block + 2, 2);
    uint32_t at = (uint32_t)(i % per_block), nibble = at < 16 ? 0 : 4;
    float d = pllm_f16_to_f32(half);
    switch (view->dtype) {
    case PLLM_F32:
        memcpy(&single, block, 4);
        return single;
    case PLLM_F16:
        return pllm_f16_to_f32(half);
    case PLLM_BF16:
        return pllm_bf16_to_f32(half);
    case PLLM_Q8_0:
        return d * (float)(int8_t)block[2 + at];
    case PLLM_Q4_0:
        return d * (float)((block[2 + at % 16] >> nibble & 15) - 8);
    default:
        return d * (float)(block[4 + at % 16] >> nibble & 15) + pllm_f16_to_f32(minimum);
    }
}

/* Rows one by one and all together are the same bytes; mean 0 and deviation 0.02 in every format,
 * and no two rows alike. */
static void test_values(void **state)
{
    (void)state;
    enum { ROWS = 96 };
    for (pllm_dtype dtype = PLLM_F32; dtype <= PLLM_Q4_1; dtype++) {
        pllm_model *model = must_open("smollm2-135m", dtype);
        const pllm_tensor_view *view = &pllm_model_layer(model, 3)->up;
        uint64_t row_bytes = view->bytes / view->shape[0], k = view->shape[1];
        uint8_t *all = malloc(ROWS * row_bytes), *one = malloc(row_bytes);
        pllm_tensor_random(view, 7, ROWS, all);
        double sum = 0, squares = 0;
        for (uint32_t r = 0; r < ROWS; r++) {
            memset(one, 0xaa, row_bytes);
            pllm_tensor_random(view, 7 + r, 1, one);
            assert_memory_equal(one, all + r * row_bytes, row_bytes);
            if (r > 0) assert_memory_not_equal(one, all + (r - 1) * row_bytes, row_bytes);
            for (uint64_t i = 0; i < k; i++) {
                double value = (double)value_at(view, one, i);
                sum += value;
                squares += value * value;
            }
        }
        double n = (double)ROWS * (double)k, deviation = sqrt(squares / n);
        if (fabs(sum / n) > 5 * 0.02 / sqrt(n) || fabs(deviation - 0.02) > 0.0004)
            fail_msg("%s: mean %g, deviation %g", pllm_dtype_name(dtype), sum / n, deviation);
        float norm[3] = {0};
        pllm_tensor_random(pllm_model_output_norm(model), 5, 3, norm);
        assert_true(norm[0] == 1 && norm[2] == 1);
        free(all);
        free(one);
        pllm_model_close(model);
    }
}

static void test_open_survives_every_failure(void **state)
{
    (void)state;
    uint64_t n;
    for (n = 0;; n++) {
        failing_context failing;
        failing_context_init(&failing, n);
        pllm_model *model = NULL;
        int status = open_shape(&failing.context, "llama-2-70b", PLLM_Q8_0, &model);
        assert_int_equal(status, failing_context_hit(&failing) ? PLLM_ENOMEM : PLLM_OK);
        pllm_model_close(model);
        failing_context_check(&failing);
        if (!failing_context_hit(&failing)) break;
    }
    assert_true(n >= 4);
}

static int look(void *user, uint32_t item, uint32_t position, const float *logits)
{
    (void)item;
    (void)position;
    double squares = 0;
    for (uint32_t i = 0; i < 49152; i++) {
        if (!isfinite(logits[i])) return 1;
        squares += (double)logits[i] * (double)logits[i];
    }
    *(double *)user = sqrt(squares / 49152);
    return 0;
}

/* The panels of the smallest shape, packed from rows that no file holds: logits are finite and of
 * a common size, and the same with another number of threads. */
static void test_engine_runs_on_it(void **state)
{
    (void)state;
    double sizes[2];
    for (uint32_t run = 0; run < 2; run++) {
        pllm_engine_options options = {.struct_bytes = sizeof options,
                                       .threads = 1 + run,
                                       .context_max = 64,
                                       .shape = "smollm2-135m",
                                       .weights = "q4_0"};
        pllm_engine *engine;
        if (pllm_engine_open(NULL, NULL, &options, &engine) < 0)
            fail_msg("%s", pllm_last_error()->text);
        pllm_engine_info info = {.struct_bytes = sizeof info};
        assert_int_equal(pllm_engine_info_get(engine, &info), PLLM_OK);
        assert_int_equal(info.has_tokenizer, 0);
        assert_int_equal(info.context_max, 64);
        pllm_sequence *sequence;
        assert_int_equal(pllm_sequence_open(engine, &sequence), PLLM_OK);
        uint32_t ids[] = {1, 20000, 49151};
        pllm_step_item item = {.sequence = sequence, .ids = ids, .token_count = 3, .logits = 1};
        assert_int_equal(pllm_engine_step(engine, &item, 1, look, &sizes[run]), PLLM_OK);
        assert_true(sizes[run] > 0.05 && sizes[run] < 5);
        pllm_engine_close(engine);
    }
    assert_true(sizes[0] == sizes[1]);
    pllm_engine_options options = {.struct_bytes = sizeof options, .shape = "smollm2-135m"};
    pllm_engine *engine;
    assert_int_equal(pllm_engine_open(NULL, "a.gguf", &options, &engine), PLLM_EINVAL);
    options.weights = "q5_k";
    assert_int_equal(pllm_engine_open(NULL, NULL, &options, &engine), PLLM_EINVAL);
    options.shape = NULL;
    assert_int_equal(pllm_engine_open(NULL, NULL, &options, &engine), PLLM_EINVAL);
}

/* The last allocations of an open are the panels and rows of the last matrices. */
static void test_engine_gives_back_what_it_packed(void **state)
{
    (void)state;
    pllm_engine_options options = {.struct_bytes = sizeof options,
                                   .context_max = 64,
                                   .shape = "smollm2-135m",
                                   .weights = "q4_0"};
    failing_context failing;
    failing_context_init(&failing, FAILING_NEVER);
    pllm_engine *engine;
    assert_int_equal(pllm_engine_open(&failing.context, NULL, &options, &engine), PLLM_OK);
    uint64_t calls = failing.call_count;
    pllm_engine_close(engine);
    failing_context_check(&failing);
    for (uint64_t back = 1; back <= 3; back++) {
        failing_context_init(&failing, calls - back);
        assert_int_equal(pllm_engine_open(&failing.context, NULL, &options, &engine), PLLM_ENOMEM);
        assert_null(engine);
        failing_context_check(&failing);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parameter_counts),
        cmocka_unit_test(test_formats_and_refusals),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_open_survives_every_failure),
        cmocka_unit_test(test_engine_runs_on_it),
        cmocka_unit_test(test_engine_gives_back_what_it_packed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
