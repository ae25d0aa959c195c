/* perplexity.h - how well a model predicts a text: exp of the mean negative log likelihood. */
#ifndef PLLM_ENGINE_PERPLEXITY_H
#define PLLM_ENGINE_PERPLEXITY_H

#include <pagedllm/engine.h>

typedef struct pllm_perplexity_result {
    uint32_t scored_count, window_count;
    double nll_sum; /* nats over all scored tokens: perplexity = exp(nll_sum / scored_count) */
} pllm_perplexity_result;

/* Consecutive windows of `window` scored tokens: a window is ids [i, i + window + 1), and each
 * token after its first is scored against what precedes it in the window. A last, shorter window
 * counts. At most scored_max tokens are scored (0: all). on_window may be NULL; a non-zero return
 * stops (ECANCELED). Errors: EINVAL (fewer than two ids, window 0), those of pllm_engine_step. */
int pllm_perplexity(pllm_engine *engine, const uint32_t *ids, uint32_t id_count, uint32_t window,
                    uint32_t scored_max,
                    int (*on_window)(void *user, uint32_t window, uint32_t scored, double nll_sum),
                    void *user, pllm_perplexity_result *result_out);

#endif
