/* sample.c - see sample.h. Only tokens that can be reached are sorted: a histogram of weights over
 * 2,048 bins of the exponent says first how far down that is. */
#include "kernels/sample.h"
#include <stdlib.h>
#include "kernels/sample_weight.h"

typedef struct row {
    const float *logits;
    float best, temperature;
    uint32_t count;
} row;

static uint64_t weight_of(const row *r, float logit)
{
    return sample_weight(sample_exponent(logit, r->best, r->temperature));
}

uint32_t pllm_argmax(const float *logits, uint32_t count)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < count; i++)
        if (logits[i] > logits[best] || (logits[best] != logits[best] && logits[i] == logits[i]))
            best = i;
    return best;
}

static uint64_t high_product(uint64_t a, uint64_t b)
{
    return (uint64_t)((unsigned __int128)a * b >> 64);
}

typedef struct histogram {
    uint32_t counts[SAMPLE_BINS], count;
    uint64_t weights[SAMPLE_BINS], weight;
} histogram;

static void take_histogram(const row *r, histogram *h)
{
    *h = (histogram){0};
    for (uint32_t i = 0; i < r->count; i++) {
        float x = sample_exponent(r->logits[i], r->best, r->temperature);
        uint64_t weight = sample_weight(x);
        if (weight == 0) continue;
        h->counts[sample_bin(x)]++;
        h->weights[sample_bin(x)] += weight;
        h->count++;
        h->weight += weight;
    }
}

/* Bins before the one returned hold every token that can matter. */
static uint32_t bins_needed(const histogram *h, const pllm_sampling *sampling)
{
    uint64_t weight = 0, enough = sample_part(h->weight, sampling->top_p);
    uint32_t count = 0, bin = 0;
    int few = sampling->top_k && h->count > sampling->top_k;
    if (!few && enough == h->weight) enough = high_product(sampling->random, h->weight) + 1;
    while (few ? count < sampling->top_k : weight < enough) {
        count += h->counts[bin];
        weight += h->weights[bin++];
    }
    return bin;
}

static int by_logit(const void *left, const void *right)
{
    const pllm_candidate *a = left, *b = right;
    if (a->logit != b->logit) return a->logit < b->logit ? 1 : -1;
    return a->id < b->id ? -1 : a->id > b->id;
}

static uint32_t gather(const row *r, uint32_t bins, pllm_candidate *candidates)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < r->count; i++) {
        float x = sample_exponent(r->logits[i], r->best, r->temperature);
        if (!(x > SAMPLE_LEAST) || sample_bin(x) >= bins || sample_weight(x) == 0) continue;
        candidates[count++] = (pllm_candidate){r->logits[i], i};
    }
    qsort(candidates, count, sizeof *candidates, by_logit);
    return count;
}

uint32_t pllm_sample(const float *logits, uint32_t count, const pllm_sampling *sampling,
                     pllm_candidate *scratch)
{
    uint32_t best = pllm_argmax(logits, count);
    if (!(sampling->temperature > 0) || logits[best] != logits[best]) return best;
    const row r = {logits, logits[best], sampling->temperature, count};
    histogram h;
    take_histogram(&r, &h);
    uint32_t gathered = gather(&r, bins_needed(&h, sampling), scratch);
    uint64_t total = h.weight, kept = 0, passed = 0;
    if (sampling->top_k && h.count > sampling->top_k) {
        total = 0;
        for (uint32_t i = 0; i < sampling->top_k; i++) total += weight_of(&r, scratch[i].logit);
    }
    uint64_t part = sample_part(total, sampling->top_p);
    if (part == total)
        kept = total;
    else
        for (uint32_t i = 0; kept < part; i++) kept += weight_of(&r, scratch[i].logit);
    uint64_t goal = high_product(sampling->random, kept);
    uint32_t i = 0;
    while (i + 1 < gathered && (passed += weight_of(&r, scratch[i].logit)) <= goal) i++;
    return scratch[i].id;
}
