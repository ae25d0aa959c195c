/* Goal: a failed allocation, whichever it is, makes open, encode and format return ENOMEM and
 * leaks nothing. Method: fail the Nth allocation of the context, for N = 0, 1, ...
 * until a run meets no failure. The numbers reached have a floor, so that a path
 * that stops allocating through the context is noticed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "failing_context.h"
#include "gguf_builder.h"
#include "model/chat_template.h"
#include "model/model_internal.h"
#include "model/safetensors.h"
#include "model/tokenizer.h"

#define TINY PLLM_SOURCE_DIR "/tests/reference/models/llama"

static int open_folder(const pllm_context *context)
{
    pllm_model *model = NULL;
    int status = pllm_model_open(context, TINY, NULL, &model);
    if (status < 0) assert_null(model);
    pllm_model_close(model);
    return status;
}

static int use_tokenizer(const pllm_context *context, const pllm_model *model)
{
    static const char text[] = "the <think>the thethethethethethethethethethethethethe a<|im_end|>";
    pllm_tokenizer *tokenizer = NULL;
    pllm_chat_template *chat = NULL;
    uint32_t *ids = NULL, count = 0;
    char *back = NULL;
    uint64_t bytes;
    int status = pllm_tokenizer_open(context, model, &tokenizer);
    if (status < 0) goto done;
    status = pllm_tokenizer_encode(tokenizer, text, sizeof text - 1, 1, &ids, &count);
    if (status < 0) goto done;
    status = pllm_tokenizer_decode(tokenizer, ids, count, &back, &bytes);
    if (status < 0) goto done;
    assert_string_equal(back, text);
    pllm_tokenizer_free(tokenizer, ids);
    ids = NULL;
    status = pllm_chat_template_open(context, model, &chat);
    if (status < 0) goto done;
    pllm_chat_message message = {"user", "the"};
    pllm_chat_request request = {.messages = &message, .count = 1, .add_generation = 1};
    status = pllm_chat_encode(chat, tokenizer, &request, &ids, &count);
done:
    if (back) pllm_tokenizer_free(tokenizer, back);
    if (ids) pllm_tokenizer_free(tokenizer, ids);
    pllm_chat_template_close(chat);
    pllm_tokenizer_close(tokenizer);
    return status;
}

static const uint8_t *tiny_file;
static uint64_t tiny_bytes;

static int open_gguf(const pllm_context *context)
{
    pllm_model *model = NULL;
    int status = pllm_model_open_gguf_memory(context, "t", tiny_file, tiny_bytes, &model);
    if (status < 0) return status;
    status = use_tokenizer(context, model);
    pllm_model_close(model);
    return status;
}

/* borne: failures that a run may survive and still be right. */
static uint64_t fail_each(int (*run)(const pllm_context *context), uint32_t borne)
{
    uint32_t survived = 0;
    for (uint64_t n = 0;; n++) {
        failing_context failing;
        failing_context_init(&failing, n);
        int status = run(&failing.context);
        int hit = failing_context_hit(&failing);
        if (hit && status == PLLM_OK && survived++ < borne) {
            failing_context_check(&failing);
            continue;
        }
        if (status != (hit ? PLLM_ENOMEM : PLLM_OK))
            fail_msg("allocation %llu: status %d: %s", (unsigned long long)n, status,
                     pllm_last_error()->text);
        if (hit) assert_int_equal(pllm_last_error()->status, PLLM_ENOMEM);
        failing_context_check(&failing);
        if (!hit) {
            print_message("%u survived\n", survived);
            return n;
        }
    }
}

static void test_folder(void **state)
{
    (void)state;
    uint64_t reached = fail_each(open_folder, 0);
    print_message("%llu allocations\n", (unsigned long long)reached);
    assert_true(reached >= 10);
}

static void test_gguf(void **state)
{
    (void)state;
    gguf_builder builder = {0};
    gguf_builder_tiny(&builder);
    tiny_file = gguf_builder_finish(&builder, &tiny_bytes);
    uint64_t reached = fail_each(open_gguf, 12); /* machine code for the expression */
    ;
    print_message("%llu allocations\n", (unsigned long long)reached);
    assert_true(reached >= 30);
    free((void *)(uintptr_t)tiny_file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_folder),
        cmocka_unit_test(test_gguf),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
