/* Text: what goes in comes back from its ids, and a stream of pieces is UTF-8 at every step. The
 * vocabulary has all bytes, so that nothing is left out. The first byte chooses: bit 0 special
 * tokens, bit 1 the way text is split. */
#include <stdlib.h>
#include <string.h>
#include "fuzz.h"
#include "gguf_builder.h"
#include "model/model_internal.h"
#include "model/tokenizer.h"

static pllm_tokenizer *open_tiny(int llama3)
{
    gguf_builder builder = {.skip = llama3 ? "tokenizer.ggml.pre" : NULL};
    uint64_t bytes;
    gguf_builder_tiny(&builder);
    builder.skip = NULL;
    if (llama3) gguf_builder_string(&builder, "tokenizer.ggml.pre", "llama-bpe");
    uint8_t *file = gguf_builder_finish(&builder, &bytes);
    pllm_model *model;
    pllm_tokenizer *tokenizer;
    FUZZ_CHECK(pllm_model_open_gguf_memory(NULL, "tiny.gguf", file, bytes, &model) == 0);
    FUZZ_CHECK(pllm_tokenizer_open(NULL, model, &tokenizer) == 0);
    pllm_model_close(model); /* the tokenizer has its own copies */
    free(file);
    return tokenizer;
}

static void check_stream(const pllm_tokenizer *tokenizer, const uint32_t *ids, uint32_t count)
{
    pllm_utf8_stream stream = {0};
    char out[PLLM_UTF8_ROOM(64)];
    for (uint32_t i = 0; i < count; i++) {
        uint32_t bytes;
        const char *piece = pllm_tokenizer_piece(tokenizer, ids[i], &bytes);
        FUZZ_CHECK(bytes > 0 && bytes <= 64);
        uint64_t written = pllm_utf8_stream_push(&stream, piece, bytes, out);
        FUZZ_CHECK(pllm_utf8_valid_prefix(out, written) == written);
    }
    FUZZ_CHECK(pllm_utf8_stream_finish(&stream, out) <= 3);
}

int fuzz_parses(const uint8_t *data, size_t size)
{
    if (size == 0) return 0;
    const char *text = (const char *)data + 1;
    pllm_tokenizer *tokenizer = open_tiny(data[0] & 2);
    uint32_t *ids, count;
    int status = pllm_tokenizer_encode(tokenizer, text, size - 1, data[0] & 1, &ids, &count);
    int taken = fuzz_refusal_is_clear(status);
    if (taken) {
        char *back;
        uint64_t bytes;
        FUZZ_CHECK(pllm_tokenizer_decode(tokenizer, ids, count, &back, &bytes) == 0);
        FUZZ_CHECK(bytes == size - 1 && memcmp(back, text, bytes) == 0);
        check_stream(tokenizer, ids, count);
        pllm_tokenizer_free(tokenizer, back);
        pllm_tokenizer_free(tokenizer, ids);
    }
    pllm_tokenizer_close(tokenizer);
    return taken;
}
