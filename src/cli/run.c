/* run.c - pagedllm run: completes a prompt and prints only the generated text. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/context.h"
#include "cli/cli.h"
#include "engine/parts.h"

/* user: the last byte so far. */
static int print_text(void *user, const char *text, uint64_t bytes)
{
    if (bytes > 0) *(char *)user = text[bytes - 1];
    if (fwrite(text, 1, bytes, stdout) != bytes || fflush(stdout) != 0) return 1;
    return cli_interrupted();
}

static int read_prompt(const pllm_settings *settings, char **text_out, uint64_t *bytes_out)
{
    if (settings->prompt_file) {
        int status = cli_read_file(settings->prompt_file, text_out, bytes_out);
        if (status < 0) return status;
    } else {
        *text_out = strdup(settings->prompt);
        if (!*text_out) return pllm_fail_memory("the prompt", strlen(settings->prompt));
        *bytes_out = strlen(settings->prompt);
    }
    if (*bytes_out > 0) return PLLM_OK;
    free(*text_out);
    *text_out = NULL;
    return pllm_fail(PLLM_EINVAL, 0, "the prompt is empty: give at least one token of text");
}

/* The ids of the text, behind the model's first token if it asks for one; free(). Text that spells
 * a special token is that token, so that a prompt can carry a chat's markers. */
static int encode(pllm_engine *engine, const char *text, uint64_t bytes, uint32_t **ids_out,
                  uint32_t *count_out)
{
    uint32_t *ids, count, first = 0;
    int status = pllm_engine_encode(engine, text, bytes, 1, &ids, &count);
    if (status < 0) return status;
    const pllm_tokenizer *tokenizer = pllm_engine_tokenizer(engine);
    if (count == 0) /* only bytes that the vocabulary lacks */
        status = pllm_fail(PLLM_EINVAL, 0, "the prompt is empty: no byte of it has a token");
    uint32_t *all = malloc(((size_t)count + 1) * sizeof *all);
    if (status == PLLM_OK && !all) status = pllm_fail_memory("token ids", count * sizeof *all);
    if (status == PLLM_OK) {
        if (pllm_tokenizer_add_bos(tokenizer) && pllm_tokenizer_bos(tokenizer) != PLLM_NO_TOKEN)
            all[first++] = pllm_tokenizer_bos(tokenizer);
        memcpy(all + first, ids, count * sizeof *all);
        *count_out = first + count;
        *ids_out = all;
    } else {
        free(all);
    }
    pllm_engine_free(engine, ids);
    return status;
}

static int complete(cli_program *cli, pllm_engine *engine, const uint32_t *ids, uint32_t count)
{
    const pllm_settings *settings = cli->settings;
    pllm_sequence *sequence;
    int status = pllm_sequence_open(engine, &sequence);
    if (status < 0) return status;
    char last = '\n';
    pllm_generate_options options = {.struct_bytes = sizeof options,
                                     .max_tokens = (uint32_t)settings->max_tokens,
                                     .temperature = (float)settings->temperature,
                                     .top_k = (uint32_t)settings->top_k,
                                     .top_p = (float)settings->top_p,
                                     .seed = settings->seed,
                                     .stop = settings->stop.items,
                                     .stop_count = settings->stop.count,
                                     .text = print_text,
                                     .user = &last};
    pllm_generate_result result;
    status = pllm_generate(engine, sequence, ids, count, &options, &result);
    pllm_sequence_close(sequence);
    /* What is piped is the text and no more; on a terminal the shell's next line is its own. */
    if (last != '\n' && isatty(STDOUT_FILENO)) {
        putchar('\n');
        fflush(stdout);
    }
    if (cli_interrupted()) return cli_canceled();
    if (status == PLLM_OK && ferror(stdout))
        status = pllm_fail(PLLM_EIO, 0, "standard output could not be written to the end");
    if (status == PLLM_OK && result.stop == PLLM_STOP_END && result.generated_tokens == 0)
        pllm_log(cli->context, PLLM_LOG_WARN,
                 "the model ended at once: nothing was generated (a chat model wants its markers "
                 "around a prompt; see pagedllm chat)");
    if (status == PLLM_OK && result.stop == PLLM_STOP_CONTEXT)
        pllm_log(cli->context, PLLM_LOG_WARN, "generation ended because the context is full");
    return status < 0 ? status : cli_stats(cli, engine, &result);
}

int command_run(cli_program *cli)
{
    char *text;
    uint64_t bytes;
    int status = read_prompt(cli->settings, &text, &bytes);
    if (status < 0) return status;
    pllm_engine *engine;
    status = cli_engine_open(cli, NULL, &engine);
    uint32_t *ids = NULL, count = 0;
    if (status == PLLM_OK) status = encode(engine, text, bytes, &ids, &count);
    if (status == PLLM_OK) status = complete(cli, engine, ids, count);
    free(ids);
    pllm_engine_close(engine);
    free(text);
    return status;
}
