/* GGUF: a model that opens has views inside the file; its tokenizer and chat template open too, or
 * refuse clearly. Taken means that all three opened. */
#include "fuzz.h"
#include "model/chat_template.h"
#include "model/model_internal.h"
#include "model/tokenizer.h"

static const uint8_t *file;
static size_t file_bytes;

static void check_view(const pllm_tensor_view *view)
{
    uint64_t row_bytes, rows = 1;
    FUZZ_CHECK(view->rank >= 1 && view->rank <= 2);
    for (uint32_t i = 0; i + 1 < view->rank; i++) rows *= view->shape[i];
    FUZZ_CHECK(pllm_dtype_row_bytes(view->dtype, view->shape[view->rank - 1], &row_bytes) == 0);
    FUZZ_CHECK(rows * row_bytes == view->bytes);
    FUZZ_CHECK((const uint8_t *)view->data == file + view->file_offset);
    FUZZ_CHECK(view->file_offset <= file_bytes && view->bytes <= file_bytes - view->file_offset);
    FUZZ_CHECK(view->file_offset % 8 == 0);
}

static void check_model(const pllm_model *model)
{
    const pllm_model_shape *shape = pllm_model_shape_of(model);
    check_view(pllm_model_embedding(model));
    check_view(pllm_model_output_norm(model));
    check_view(pllm_model_output(model));
    for (uint32_t i = 0; i < shape->layer_count; i++) {
        const pllm_layer_tensors *layer = pllm_model_layer(model, i);
        for (uint32_t j = 0; j < sizeof *layer / sizeof layer->q; j++)
            check_view(&layer->attention_norm + j);
    }
    FUZZ_CHECK(shape->head_count % shape->kv_head_count == 0);
    FUZZ_CHECK(shape->rope.dims >= 2 && shape->rope.dims <= shape->head_dim);
    FUZZ_CHECK(shape->rope.base > 0 && shape->rope.factor > 0 && shape->norm_epsilon > 0);
}

static int use_tokenizer(const pllm_context *quiet, const pllm_model *model)
{
    pllm_tokenizer *tokenizer;
    pllm_chat_template *chat;
    if (!fuzz_refusal_is_clear(pllm_tokenizer_open(quiet, model, &tokenizer))) return 0;
    static const char text[] = "the <|im_end|> \xff 12";
    uint32_t *ids, count, bytes;
    FUZZ_CHECK(pllm_tokenizer_encode(tokenizer, text, sizeof text - 1, 1, &ids, &count) == 0);
    for (uint32_t i = 0; i < count; i++) {
        FUZZ_CHECK(ids[i] < pllm_tokenizer_vocab_size(tokenizer));
        pllm_tokenizer_piece(tokenizer, ids[i], &bytes);
        FUZZ_CHECK(bytes > 0);
    }
    pllm_tokenizer_free(tokenizer, ids);
    int taken = fuzz_refusal_is_clear(pllm_chat_template_open(quiet, model, &chat));
    if (taken) pllm_chat_template_close(chat);
    pllm_tokenizer_close(tokenizer);
    return taken;
}

int fuzz_parses(const uint8_t *data, size_t size)
{
    pllm_context_options options = {.struct_bytes = sizeof options, .log_level = PLLM_LOG_ERROR};
    pllm_context *quiet;
    pllm_model *model;
    if (size == 0) data = (const uint8_t *)"";
    file = data;
    file_bytes = size;
    FUZZ_CHECK(pllm_context_open(&options, &quiet) == 0);
    int status = pllm_model_open_gguf_memory(quiet, "fuzz.gguf", data, size, &model);
    int taken = fuzz_refusal_is_clear(status);
    if (taken) {
        check_model(model);
        taken = use_tokenizer(quiet, model);
        pllm_model_close(model);
    }
    pllm_context_close(quiet);
    return taken;
}
