/* sampler.c - the next token from a row of logits: greedy, or drawn with temperature, top-k, top-p.
 *
 * Drawing: the candidates are sorted by logit (ties by id, so that a result never depends on a
 * sort's whims); top-k keeps the first k, then softmax(logit / temperature), then top-p keeps the
 * shortest prefix whose probability reaches p. The generator is SplitMix64 (Steele, Lea, Flood
 * 2014), one draw a token, so that seed and position decide everything. */
#include <math.h>
#include <stdlib.h>
#include "engine/engine_internal.h"

typedef struct candidate {
    float logit;
    uint32_t id;
} candidate;

struct pllm_sampler {
    const pllm_context *context;
    uint32_t vocab_size, top_k;
    float temperature, top_p;
    uint64_t state;
    candidate *candidates; /* [vocab_size]; NULL when greedy */
};

int pllm_sampler_open(const pllm_context *context, uint32_t vocab_size,
                      const pllm_generate_options *options, pllm_sampler **sampler_out)
{
    *sampler_out = NULL;
    if (!(options->temperature >= 0) || options->temperature > 100)
        return pllm_fail(PLLM_EINVAL, 0, "temperature is %g; it must be 0 (greedy) to 100",
                         (double)options->temperature);
    if (!(options->top_p >= 0) || options->top_p > 1)
        return pllm_fail(PLLM_EINVAL, 0, "top-p is %g; it must be 0 to 1", (double)options->top_p);
    pllm_sampler *sampler = pllm_alloc(context, sizeof *sampler);
    if (!sampler) return pllm_fail_memory("a sampler", sizeof *sampler);
    *sampler = (pllm_sampler){
        .context = context,
        .vocab_size = vocab_size,
        .top_k = options->top_k && options->top_k < vocab_size ? options->top_k : vocab_size,
        .temperature = options->temperature,
        .top_p = options->top_p > 0 ? options->top_p : 1,
        .state = options->seed};
    if (sampler->temperature > 0) {
        sampler->candidates = pllm_alloc_array(context, vocab_size, sizeof(candidate));
        if (!sampler->candidates) {
            pllm_free(context, sampler);
            return pllm_fail_memory("sampling candidates", vocab_size * sizeof(candidate));
        }
    }
    *sampler_out = sampler;
    return PLLM_OK;
}

void pllm_sampler_close(pllm_sampler *sampler)
{
    if (!sampler) return;
    pllm_free(sampler->context, sampler->candidates);
    pllm_free(sampler->context, sampler);
}

uint32_t pllm_argmax(const float *logits, uint32_t count)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < count; i++)
        if (logits[i] > logits[best] || logits[best] != logits[best]) best = i;
    return best;
}

static int by_logit(const void *left, const void *right)
{
    const candidate *a = left, *b = right;
    if (a->logit != b->logit) return a->logit < b->logit ? 1 : -1;
    return a->id < b->id ? -1 : a->id > b->id;
}

static double draw(pllm_sampler *sampler)
{
    uint64_t z = sampler->state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return (double)(z >> 11) * 0x1p-53;
}

uint32_t pllm_sampler_next(pllm_sampler *sampler, const float *logits)
{
    uint32_t best = pllm_argmax(logits, sampler->vocab_size), count = 0;
    if (!sampler->candidates) return best;
    /* What is e^-40 times as likely as the best is never drawn: leaving it out makes the sort
     * short. */
    float least = logits[best] - 40 * sampler->temperature;
    for (uint32_t i = 0; i < sampler->vocab_size; i++)
        if (logits[i] >= least) sampler->candidates[count++] = (candidate){logits[i], i};
    if (count == 0) return best; /* every logit is NaN */
    qsort(sampler->candidates, count, sizeof(candidate), by_logit);
    if (count > sampler->top_k) count = sampler->top_k;
    double total = 0, kept = 0;
    for (uint32_t i = 0; i < count; i++)
        total += exp((double)(sampler->candidates[i].logit - logits[best]) /
                     (double)sampler->temperature);
    uint32_t end = 0;
    while (end < count && kept < total * (double)sampler->top_p)
        kept += exp((double)(sampler->candidates[end++].logit - logits[best]) /
                    (double)sampler->temperature);
    double goal = draw(sampler) * kept, passed = 0;
    for (uint32_t i = 0; i < end; i++) {
        passed += exp((double)(sampler->candidates[i].logit - logits[best]) /
                      (double)sampler->temperature);
        if (passed > goal) return sampler->candidates[i].id;
    }
    return sampler->candidates[end ? end - 1 : 0].id;
}
