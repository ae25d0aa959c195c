/* perplexity.c - pagedllm perplexity: scores a text file by windows. */
#include <jansson.h>
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
    if (!settings->json) {
        printf("perplexity %.4f over %u tokens in %u windows of %llu\n", exp(mean),
               result->scored_count, result->window_count, (unsigned long long)settings->window);
        return PLLM_OK;
    }
    json_t *root =
        json_pack("{s:f,s:f,s:i,s:i,s:i,s:O}", "perplexity", exp(mean), "nll_mean", mean, "tokens",
                  (int)result->scored_count, "windows", (int)result->window_count, "window",
                  (int)settings->window, "nll_per_window", windows);
    char *text = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
    json_decref(root);
    if (!text) return pllm_fail_memory("the report", 4096);
    puts(text);
    free(text);
    return PLLM_OK;
}

int command_perplexity(const pllm_settings *settings)
{
    char *text;
    uint64_t bytes;
    int status = cli_read_file(settings->positionals[1], &text, &bytes);
    if (status < 0) return status;
    uint32_t *ids = NULL, count = 0;
    uint32_t most =
        pllm_settings_given(settings, "max_tokens") ? (uint32_t)settings->max_tokens : 0;
    pllm_engine *engine;
    json_t *windows = json_array();
    status = cli_engine_open(settings, 1, 0, &engine);
    if (status == PLLM_OK) status = pllm_engine_encode(engine, text, bytes, 0, &ids, &count);
    pllm_perplexity_result result;
    if (status == PLLM_OK)
        status = pllm_perplexity(engine, ids, count, (uint32_t)settings->window, most, show_window,
                                 windows, &result);
    if (cli_interrupted()) status = cli_canceled();
    if (status == PLLM_OK) status = print(settings, &result, windows);
    if (status == PLLM_OK) status = cli_stats(settings, engine, NULL);
    json_decref(windows);
    if (engine) pllm_engine_free(engine, ids);
    pllm_engine_close(engine);
    free(text);
    return status;
}
