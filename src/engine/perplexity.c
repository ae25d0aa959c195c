/* perplexity.c - scoring a text by windows, each in a sequence of its own. */
#include <math.h>
#include "base/context.h"
#include "engine/perplexity.h"

typedef struct scorer {
    const uint32_t *ids; /* of the window; logits at position p predict ids[p + 1] */
    uint32_t vocab_size;
    double nll_sum;
} scorer;

static int score(void *user, uint32_t item, uint32_t position, const float *logits)
{
    scorer *s = user;
    (void)item;
    float largest = logits[0];
    for (uint32_t i = 1; i < s->vocab_size; i++)
        if (logits[i] > largest) largest = logits[i];
    double sum = 0;
    for (uint32_t i = 0; i < s->vocab_size; i++) sum += (double)expf(logits[i] - largest);
    s->nll_sum += log(sum) + (double)largest - (double)logits[s->ids[position + 1]];
    return 0;
}

static int score_window(pllm_engine *engine, scorer *s, uint32_t count)
{
    pllm_sequence *sequence;
    int status = pllm_sequence_open(engine, &sequence);
    if (status < 0) return status;
    pllm_step_item item = {.sequence = sequence, .ids = s->ids, .token_count = count, .logits = 2};
    status = pllm_engine_step(engine, &item, 1, score, s);
    pllm_sequence_close(sequence);
    return status;
}

int pllm_perplexity(pllm_engine *engine, const uint32_t *ids, uint32_t id_count, uint32_t window,
                    uint32_t scored_max,
                    int (*on_window)(void *user, uint32_t window, uint32_t scored, double nll_sum),
                    void *user, pllm_perplexity_result *result_out)
{
    *result_out = (pllm_perplexity_result){0};
    if (id_count < 2 || window == 0)
        return pllm_fail(
            PLLM_EINVAL, 0,
            "perplexity needs at least two tokens and a window of one: the text has %u, "
            "the window is %u",
            id_count, window);
    pllm_engine_info info = {.struct_bytes = sizeof info};
    int status = pllm_engine_info_get(engine, &info);
    if (status < 0) return status;
    uint32_t left = id_count - 1;
    if (scored_max && scored_max < left) left = scored_max;
    for (uint32_t first = 0; left > 0;) {
        uint32_t count = left < window ? left : window;
        scorer s = {.ids = ids + first, .vocab_size = info.vocab_size};
        status = score_window(engine, &s, count);
        if (status < 0) return status;
        result_out->nll_sum += s.nll_sum;
        result_out->scored_count += count;
        if (on_window && on_window(user, result_out->window_count, count, s.nll_sum))
            return pllm_fail(PLLM_ECANCELED, 0, "canceled while a text was scored");
        result_out->window_count++;
        first += count;
        left -= count;
    }
    return PLLM_OK;
}
