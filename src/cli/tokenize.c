/* tokenize.c - pagedllm tokenize and detokenize: text to ids and back, without an engine. */
#include <stdlib.h>
#include <string.h>
#include "base/context.h"
#include "base/text.h"
#include "cli/cli.h"
#include "model/tokenizer.h"

typedef struct opened {
    pllm_model *model;
    pllm_tokenizer *tokenizer;
} opened;

static int open_tokenizer(const cli_program *cli, opened *o)
{
    *o = (opened){0};
    const char *path = cli->settings->positionals[0];
    int status = pllm_model_open(cli->context, path, NULL, &o->model);
    if (status == PLLM_OK) status = pllm_tokenizer_open(cli->context, o->model, &o->tokenizer);
    return status;
}

static void close_tokenizer(opened *o)
{
    pllm_tokenizer_close(o->tokenizer);
    pllm_model_close(o->model);
}

/* A piece on one line of a terminal: what is no whole, visible character is shown as bytes. */
static void print_piece(const char *piece, uint32_t bytes)
{
    for (uint32_t i = 0; i < bytes;) {
        char character[8] = {0};
        memcpy(character, piece + i, bytes - i < 4 ? bytes - i : 4);
        size_t length = pllm_text_character(character);
        if (length == 0)
            printf("\\x%02x", (unsigned char)piece[i]);
        else
            fwrite(piece + i, 1, length, stdout);
        i += length ? (uint32_t)length : 1;
    }
}

static void print_ids(const opened *o, const uint32_t *ids, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t bytes;
        const char *piece = pllm_tokenizer_piece(o->tokenizer, ids[i], &bytes);
        printf("%8u  ", ids[i]);
        print_piece(piece, bytes);
        putchar('\n');
    }
}

static void print_json(const uint32_t *ids, uint32_t count)
{
    putchar('[');
    for (uint32_t i = 0; i < count; i++) printf("%s%u", i ? ", " : "", ids[i]);
    puts("]");
}

static int tokenize(cli_program *cli, const char *text, uint64_t bytes)
{
    const pllm_settings *settings = cli->settings;
    opened o;
    int status = open_tokenizer(cli, &o);
    uint32_t *ids = NULL, count = 0, *all = NULL, first = 0;
    if (status == PLLM_OK)
        status = pllm_tokenizer_encode(o.tokenizer, text, bytes, 1, &ids, &count);
    if (status == PLLM_OK) {
        all = malloc(((size_t)count + 1) * sizeof *all);
        if (!all) status = pllm_fail_memory("token ids", count * sizeof *all);
    }
    if (status == PLLM_OK) {
        if (settings->special && pllm_tokenizer_add_bos(o.tokenizer) &&
            pllm_tokenizer_bos(o.tokenizer) != PLLM_NO_TOKEN)
            all[first++] = pllm_tokenizer_bos(o.tokenizer);
        if (count) memcpy(all + first, ids, count * sizeof *all);
        if (settings->json)
            print_json(all, first + count);
        else
            print_ids(&o, all, first + count);
    }
    free(all);
    if (o.tokenizer) pllm_tokenizer_free(o.tokenizer, ids);
    close_tokenizer(&o);
    return status;
}

int command_tokenize(cli_program *cli)
{
    const char *given = cli->settings->text;
    if (given) return tokenize(cli, given, strlen(given));
    char *text;
    uint64_t bytes;
    int status = cli_read_file("-", &text, &bytes);
    if (status < 0) return status;
    status = tokenize(cli, text, bytes);
    free(text);
    return status;
}

int command_detokenize(cli_program *cli)
{
    const pllm_settings *settings = cli->settings;
    uint32_t *ids, count, kept = 0;
    int status = cli_read_ids(settings->ids, &ids, &count);
    if (status < 0) return status;
    opened o;
    status = open_tokenizer(cli, &o);
    for (uint32_t i = 0; status == PLLM_OK && i < count; i++)
        if (settings->special || !pllm_tokenizer_is_special(o.tokenizer, ids[i]))
            ids[kept++] = ids[i];
    char *text = NULL;
    uint64_t bytes = 0;
    if (status == PLLM_OK) status = pllm_tokenizer_decode(o.tokenizer, ids, kept, &text, &bytes);
    if (status == PLLM_OK) {
        if (bytes) fwrite(text, 1, bytes, stdout);
        putchar('\n');
    }
    if (o.tokenizer) pllm_tokenizer_free(o.tokenizer, text);
    close_tokenizer(&o);
    free(ids);
    return status;
}
