/* Goal: the models we ship tests with, and the real one, open with the right hyperparameters and
 * tensors, whatever their layout.
 * Catches: transposed shapes, wrong offsets, a tied output bound twice, defaults read as values. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "model/model.h"
#include "model/safetensors.h"

#define TINY PLLM_SOURCE_DIR "/tests/reference/models/llama"
#define TINY_ROPE3 PLLM_SOURCE_DIR "/tests/reference/models/llama-rope3"

static const char *real_model(void)
{
    const char *path = getenv("PLLM_TEST_MODEL");
    if (!path) path = PLLM_SOURCE_DIR "/models/SmolLM2-135M-Instruct.Q4_1.gguf";
    if (access(path, R_OK) != 0) fail_msg("%s is not there: run `make model`", path);
    return path;
}

static pllm_model *open_model(const char *path)
{
    pllm_model *model = NULL;
    if (pllm_model_open(NULL, path, NULL, &model) != PLLM_OK)
        fail_msg("%s", pllm_last_error()->text);
    return model;
}

static void check_matrix(const pllm_tensor_view *view, uint64_t rows, uint64_t columns)
{
    uint64_t row_bytes;
    assert_int_equal(view->rank, 2);
    assert_int_equal(view->shape[0], rows);
    assert_int_equal(view->shape[1], columns);
    assert_int_equal(pllm_dtype_row_bytes(view->dtype, columns, &row_bytes), PLLM_OK);
    assert_int_equal(view->bytes, rows * row_bytes);
}

static void check_tensors(const pllm_model *model)
{
    const pllm_model_shape *shape = pllm_model_shape_of(model);
    uint64_t q = shape->head_count * shape->head_dim, kv = shape->kv_head_count * shape->head_dim;
    check_matrix(pllm_model_embedding(model), shape->vocab_size, shape->width);
    check_matrix(pllm_model_output(model), shape->vocab_size, shape->width);
    assert_int_equal(pllm_model_output_norm(model)->shape[0], shape->width);
    for (uint32_t i = 0; i < shape->layer_count; i++) {
        const pllm_layer_tensors *layer = pllm_model_layer(model, i);
        check_matrix(&layer->q, q, shape->width);
        check_matrix(&layer->k, kv, shape->width);
        check_matrix(&layer->v, kv, shape->width);
        check_matrix(&layer->o, shape->width, q);
        check_matrix(&layer->gate, shape->ffn_width, shape->width);
        check_matrix(&layer->up, shape->ffn_width, shape->width);
        check_matrix(&layer->down, shape->width, shape->ffn_width);
        assert_int_equal(layer->attention_norm.rank, 1);
        assert_int_equal(layer->attention_norm.shape[0], shape->width);
        assert_int_equal(layer->ffn_norm.shape[0], shape->width);
    }
    assert_null(pllm_model_layer(model, shape->layer_count));
}

static void test_tiny_llama(void **state)
{
    (void)state;
    pllm_model *model = open_model(TINY "/"); /* a trailing slash is no other model */
    const pllm_model_shape *shape = pllm_model_shape_of(model);
    assert_string_equal(shape->family->name, "llama");
    assert_int_equal(shape->layer_count, 3);
    assert_int_equal(shape->width, 64);
    assert_int_equal(shape->head_count, 4);
    assert_int_equal(shape->kv_head_count, 2);
    assert_int_equal(shape->head_dim, 16);
    assert_int_equal(shape->ffn_width, 160);
    assert_int_equal(shape->vocab_size, 320);
    assert_int_equal(shape->context_max, 512);
    assert_true(shape->norm_epsilon == 1e-6f);
    assert_int_equal(shape->rope.kind, PLLM_ROPE_DEFAULT);
    assert_true(shape->rope.base == 10000.0f);
    assert_int_equal(shape->rope.dims, 16);
    assert_false(shape->rope.interleaved);
    assert_false(shape->tied_output);
    assert_int_equal(shape->bos_id, 1);
    assert_int_equal(shape->eos_count, 1);
    assert_int_equal(shape->eos_ids[0], 2);
    check_tensors(model);
    const pllm_layer_tensors *last = pllm_model_layer(model, 2);
    assert_string_equal(last->v.name, "model.layers.2.self_attn.v_proj.weight");
    assert_int_equal(last->v.file_offset, 8 + 3096 + 336640);
    assert_int_equal(last->v.dtype, PLLM_BF16);
    assert_int_equal(pllm_model_bytes(model), 340864);
    assert_ptr_not_equal(pllm_model_output(model)->data, pllm_model_embedding(model)->data);
    pllm_model_close(model);
}

static void test_tiny_rope3(void **state)
{
    (void)state;
    pllm_model *model = open_model(TINY_ROPE3), *other = open_model(TINY);
    const pllm_model_shape *shape = pllm_model_shape_of(model);
    assert_int_equal(shape->rope.kind, PLLM_ROPE_LLAMA3);
    assert_true(shape->rope.base == 500000.0f);
    assert_true(shape->rope.factor == 8.0f);
    assert_true(shape->rope.low_freq_factor == 1.0f);
    assert_true(shape->rope.high_freq_factor == 4.0f);
    assert_int_equal(shape->rope.original_context, 64);
    assert_true(shape->tied_output);
    check_tensors(model);
    assert_ptr_equal(pllm_model_output(model)->data, pllm_model_embedding(model)->data);
    assert_int_equal(pllm_model_bytes(model), 299904);
    assert_int_not_equal(pllm_model_fingerprint(model), pllm_model_fingerprint(other));
    uint64_t before = pllm_model_fingerprint(model);
    pllm_model_close(model);
    model = open_model(TINY_ROPE3);
    assert_int_equal(pllm_model_fingerprint(model), before);
    pllm_model_close(model);
    pllm_model_close(other);
}

static void test_smollm2(void **state)
{
    (void)state;
    pllm_model *model = open_model(real_model());
    const pllm_model_shape *shape = pllm_model_shape_of(model);
    assert_int_equal(shape->layer_count, 30);
    assert_int_equal(shape->width, 576);
    assert_int_equal(shape->head_count, 9);
    assert_int_equal(shape->kv_head_count, 3);
    assert_int_equal(shape->head_dim, 64);
    assert_int_equal(shape->ffn_width, 1536);
    assert_int_equal(shape->vocab_size, 49152);
    assert_int_equal(shape->context_max, 8192);
    assert_true(shape->rope.base == 100000.0f);
    assert_int_equal(shape->rope.dims, 64);
    assert_true(shape->rope.interleaved);
    assert_true(shape->tied_output);
    assert_int_equal(shape->bos_id, 1);
    assert_int_equal(shape->eos_ids[0], 2);
    check_tensors(model);
    assert_int_equal(pllm_model_embedding(model)->dtype, PLLM_Q8_0);
    assert_int_equal(pllm_model_layer(model, 0)->q.dtype, PLLM_Q4_1);
    assert_int_equal(pllm_model_layer(model, 0)->attention_norm.dtype, PLLM_F32);
    assert_int_equal(pllm_model_layer(model, 0)->down.file_offset, 1785664 + 30083328);
    pllm_model_close(model);
}

/* After a drop the same bytes are there: they come back from the file. */
static void test_drop_keeps_bytes(void **state)
{
    (void)state;
    pllm_model *model = open_model(TINY);
    const pllm_tensor_view *view = pllm_model_embedding(model);
    uint8_t *copy = malloc(view->bytes);
    memcpy(copy, view->data, view->bytes);
    pllm_model_drop(model, view->data);
    assert_memory_equal(copy, view->data, view->bytes);
    free(copy);
    pllm_model_close(model);
}

static void test_reference_tensors(void **state)
{
    (void)state;
    pllm_safetensors *file = NULL;
    pllm_safetensors_view view;
    assert_int_equal(pllm_safetensors_open(NULL, TINY "/reference.safetensors", &file), PLLM_OK);
    assert_int_equal(pllm_safetensors_count(file), 5);
    assert_int_equal(pllm_safetensors_find(file, "ids_short", &view), PLLM_OK);
    assert_string_equal(view.dtype_name, "I64");
    assert_int_equal(view.tensor.bytes, 40);
    for (uint32_t i = 0; i < 5; i++)
        assert_in_range(((const int64_t *)view.tensor.data)[i], 0, 319);
    assert_int_equal(pllm_safetensors_find(file, "logits_long", &view), PLLM_OK);
    assert_int_equal(view.tensor.dtype, PLLM_F32);
    assert_int_equal(view.tensor.shape[0], 150);
    assert_int_equal(view.tensor.shape[1], 320);
    assert_int_equal(pllm_safetensors_find(file, "nothing", &view), PLLM_ENOTFOUND);
    assert_non_null(strstr(pllm_last_error()->text, "nothing"));
    pllm_safetensors_close(file);
}

static void test_split_is_refused(void **state)
{
    (void)state;
    pllm_model *model = NULL;
    pllm_model_options options = {.struct_bytes = sizeof options, .rank = 1, .world = 2};
    assert_int_equal(pllm_model_open(NULL, TINY, &options, &model), PLLM_EUNSUPPORTED);
    assert_null(model);
    assert_non_null(strstr(pllm_last_error()->text, "rank 1 of 2"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tiny_llama),        cmocka_unit_test(test_tiny_rope3),
        cmocka_unit_test(test_smollm2),           cmocka_unit_test(test_drop_keeps_bytes),
        cmocka_unit_test(test_reference_tensors), cmocka_unit_test(test_split_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
