/* perplexity.c - pagedllm perplexity: scores a text file by windows. */
#include <math.h>
#include <stdlib.h>
#include <unistd.h>
#include "base/context.h"
#include "cli/cli.h"
#include "engine/perplexity.h"

static int show_window(void *user, uint32_t window, uint32_t scored, double nll_sum)
{
    json_t *list = user;
    json_array_append_new(list, json_real(nll_sum / scored));
    if (isatty(STDERR_FILENO))
        fprintf(stderr, "\rwindow %u: %.4f ", window + 1, exp(nll_sum / scored));
    return cli_interrupted();
}

static int print(const pllm_settings *settings, const pllm_perplexity_result *result,
                 json_t *windows)
{
    double mean = result->nll_sum / result->scored_count;
    if (isatty(STDERR_FILENO)) fprintf(stderr, "\r\033[K");
    if (!isfinite(exp(mean)))
        return pllm_fail(PLLM_EINVAL, 0,
                         "the perplexity is no finite number: the model's weights are unusable");
    if (settings->json)
        return cli_print_json(json_pack(
            "{s:f,s:f,s:I,s:I,s:I,s:O}", "perplexity", exp(mean), "nll_mean", mean, "tokens",
            (json_int_t)result->scored_count, "windows", (json_int_t)result->window_count, "window",
            (json_int_t)settings->window, "nll_per_window", windows));
    printf("perplexity %.4f over %u tokens in %u windows of %llu\n", exp(mean),
           result->scored_count, result->window_count, (unsigned long long)settings->window);
    return PLLM_OK;
}

static int score(cli_program *cli, pllm_engine *engine, const char *text, uint64_t bytes)
{
    const pllm_settings *settings = cli->settings;
    uint32_t *ids = NULL, count = 0;
    uint32_t most =
        pllm_settings_given(settings, "max_tokens") ? (uint32_t)settings->max_tokens : 0;
    pllm_engine_info info = {.struct_bytes = sizeof info};
    int status = pllm_engine_info_get(engine, &info);
    if (status == PLLM_OK && settings->window > info.context_max)
        status = pllm_fail(PLLM_ELIMIT, 0, "--window %llu is more than the model's context of %u",
                           (unsigned long long)settings->window, info.context_max);
    if (status == PLLM_OK) status = pllm_engine_encode(engine, text, bytes, 0, &ids, &count);
    pllm_perplexity_result result;
    json_t *windows = json_array();
    if (status == PLLM_OK)
        status = pllm_perplexity(engine, ids, count, (uint32_t)settings->window, most, show_window,
                                 windows, &result);
    if (status < 0 && cli_interrupted()) status = cli_canceled();
    if (status == PLLM_OK) status = print(settings, &result, windows);
    if (status == PLLM_OK) status = cli_stats(cli, engine, NULL);
    json_decref(windows);
    pllm_engine_free(engine, ids);
    return status;
}

int command_perplexity(cli_program *cli)
{
    const pllm_settings *settings = cli->settings;
    if (pllm_settings_given(settings, "max_tokens") && settings->max_tokens == 0)
        return pllm_fail(PLLM_EINVAL, 0, "--max-tokens 0 leaves nothing to score: leave it out");
    char *text;
    uint64_t bytes;
    int status = cli_read_file(settings->positionals[1], &text, &bytes);
    if (status < 0) return status;
    pllm_engine *engine;
    status = cli_engine_open(cli, NULL, &engine);
    if (status == PLLM_OK) status = score(cli, engine, text, bytes);
    pllm_engine_close(engine);
    free(text);
    return status;
}
