/* run.c - pagedllm run: completes a prompt and prints only the generated text. */
#include <stdlib.h>
#include <string.h>
#include "base/context.h"
#include "cli/cli.h"

static int print_text(void *user, const char *text, uint64_t bytes)
{
    (void)user;
    if (fwrite(text, 1, bytes, stdout) != bytes || fflush(stdout) != 0) return 1;
    return cli_interrupted();
}

static int read_prompt(const pllm_settings *settings, char **text_out, uint64_t *bytes_out)
{
    if (!settings->prompt == !settings->prompt_file)
        return pllm_fail(PLLM_EINVAL, 0,
                         "give the prompt with either --prompt TEXT or --prompt-file FILE");
    if (settings->prompt_file) return cli_read_file(settings->prompt_file, text_out, bytes_out);
    *text_out = strdup(settings->prompt);
    if (!*text_out) return pllm_fail_memory("the prompt", strlen(settings->prompt));
    *bytes_out = strlen(settings->prompt);
    return PLLM_OK;
}

static int complete(const pllm_settings *settings, pllm_engine *engine, const uint32_t *ids,
                    uint32_t count)
{
    pllm_sequence *sequence;
    int status = pllm_sequence_open(engine, &sequence);
    if (status < 0) return status;
    pllm_generate_options options = {.struct_bytes = sizeof options,
                                     .max_tokens = (uint32_t)settings->max_tokens,
                                     .temperature = (float)settings->temperature,
                                     .top_k = (uint32_t)settings->top_k,
                                     .top_p = (float)settings->top_p,
                                     .seed = settings->seed,
                                     .stop = settings->stop.items,
                                     .stop_count = settings->stop.count,
                                     .text = print_text};
    pllm_generate_result result;
    status = pllm_generate(engine, sequence, ids, count, &options, &result);
    pllm_sequence_close(sequence);
    if (cli_interrupted()) return cli_canceled();
    if (status == PLLM_OK && result.stop == PLLM_STOP_CANCELED)
        status = pllm_fail(PLLM_EIO, 0, "standard output could not be written");
    if (status == PLLM_OK && result.stop == PLLM_STOP_CONTEXT)
        pllm_log(NULL, PLLM_LOG_WARN, "generation ended because the context is full");
    return status < 0 ? status : cli_stats(settings, engine, &result);
}

int command_run(const pllm_settings *settings)
{
    char *text;
    uint64_t bytes;
    int status = read_prompt(settings, &text, &bytes);
    if (status < 0) return status;
    pllm_engine *engine;
    status = cli_engine_open(settings, 1, 0, &engine);
    uint32_t *ids = NULL, count = 0;
    if (status == PLLM_OK) status = pllm_engine_encode(engine, text, bytes, 0, &ids, &count);
    if (status == PLLM_OK && count == 0)
        status = pllm_fail(PLLM_EINVAL, 0, "the prompt is empty: give at least one token of text");
    if (status == PLLM_OK) status = complete(settings, engine, ids, count);
    if (engine) pllm_engine_free(engine, ids);
    pllm_engine_close(engine);
    free(text);
    return status;
}
