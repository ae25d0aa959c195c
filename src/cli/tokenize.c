/* tokenize.c - pagedllm tokenize and detokenize: text to ids and back, without an engine. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include "base/context.h"
#include "cli/cli.h"
#include "model/tokenizer.h"

typedef struct opened {
    pllm_model *model;
    pllm_tokenizer *tokenizer;
} opened;

static int open_tokenizer(const char *path, opened *o)
{
    *o = (opened){0};
    int status = pllm_model_open(NULL, path, NULL, &o->model);
    if (status == PLLM_OK) status = pllm_tokenizer_open(NULL, o->model, &o->tokenizer);
    return status;
}

static void close_tokenizer(opened *o)
{
    pllm_tokenizer_close(o->tokenizer);
    pllm_model_close(o->model);
}

static void print_ids(const opened *o, const uint32_t *ids, uint32_t count, int json)
{
    if (json) putchar('[');
    for (uint32_t i = 0; i < count; i++) {
        if (json) {
            printf("%s%u", i ? ", " : "", ids[i]);
        } else {
            uint32_t bytes;
            const char *piece = pllm_tokenizer_piece(o->tokenizer, ids[i], &bytes);
            printf("%8u  ", ids[i]);
            for (uint32_t j = 0; j < bytes; j++)
                if ((unsigned char)piece[j] < 0x20)
                    printf("\\x%02x", (unsigned char)piece[j]);
                else
                    putchar(piece[j]);
            putchar('\n');
        }
    }
    if (json) puts("]");
}

int command_tokenize(const pllm_settings *settings)
{
    char *text = settings->text ? strdup(settings->text) : NULL;
    uint64_t bytes = text ? strlen(text) : 0;
    int status = PLLM_OK;
    if (!settings->text) status = cli_read_file("-", &text, &bytes);
    if (status == PLLM_OK && !text) status = pllm_fail_memory("the text", 0);
    if (status < 0) return status;
    opened o;
    status = open_tokenizer(settings->positionals[0], &o);
    uint32_t *ids = NULL, count = 0;
    if (status == PLLM_OK)
        status = pllm_tokenizer_encode(o.tokenizer, text, bytes, settings->special, &ids, &count);
    if (status == PLLM_OK) print_ids(&o, ids, count, settings->json);
    if (o.tokenizer) pllm_tokenizer_free(o.tokenizer, ids);
    close_tokenizer(&o);
    free(text);
    return status;
}

int command_detokenize(const pllm_settings *settings)
{
    if (!settings->ids)
        return pllm_fail(PLLM_EINVAL, 0, "detokenize needs --ids FILE, a JSON array or .npy");
    uint32_t *ids, count, kept = 0;
    int status = cli_read_ids(settings->ids, &ids, &count);
    if (status < 0) return status;
    opened o;
    status = open_tokenizer(settings->positionals[0], &o);
    for (uint32_t i = 0; status == PLLM_OK && i < count; i++)
        if (settings->special || !pllm_tokenizer_is_special(o.tokenizer, ids[i]))
            ids[kept++] = ids[i];
    char *text = NULL;
    uint64_t bytes = 0;
    if (status == PLLM_OK) status = pllm_tokenizer_decode(o.tokenizer, ids, kept, &text, &bytes);
    if (status == PLLM_OK) {
        fwrite(text, 1, bytes, stdout);
        putchar('\n');
    }
    if (o.tokenizer) pllm_tokenizer_free(o.tokenizer, text);
    close_tokenizer(&o);
    free(ids);
    return status;
}
