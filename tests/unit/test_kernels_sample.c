/* Tokens drawn on the CPU: weights are what exp says, the choice is that of a plain full sort, and
 * tokens come as often as they should. (tests/cuda/test_cuda_sample.c holds the GPU to the same.)
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "kernels/sample.h"
#include "kernels/sample_weight.h"
#include "sample_support.h"

enum { MOST = 9000 };

static void weights_are_exponentials(void **state)
{
    (void)state;
    assert_true(sample_weight(0) == 1ull << 44);
    assert_true(sample_weight(NAN) == 0 && sample_weight(-INFINITY) == 0);
    double worst = 0;
    for (float x = -1e-7f; x > -33; x = x * 1.0001f - 1e-5f) {
        double want = exp((double)x) * 0x1p44;
        double off = fabs((double)sample_weight(x) - want) - 1; /* the floor */
        if (off / want > worst) worst = off / want;
        if (want > 1.1) assert_true(sample_weight(x) > 0 && sample_bin(x) < SAMPLE_BINS);
    }
    printf("    off by at most %.1e\n", worst);
    assert_true(worst < 4e-7);
    /* No difference of finite or infinite logits is anything but a share of the best. */
    assert_true(sample_exponent(-INFINITY, 3, 1) == -INFINITY);
    assert_true(sample_exponent(INFINITY, INFINITY, 1) == 0);
    assert_true(sample_exponent(-INFINITY, -INFINITY, 1) == 0);
    assert_true(sample_exponent(-3e38f, 3e38f, 1) == -INFINITY);
    assert_true(isnan(sample_exponent(NAN, 1, 1)));
}

/* As the words of sample.h have it: everything sorted, nothing left out early. */
static uint32_t plainly(const float *logits, uint32_t count, const pllm_sampling *s,
                        pllm_candidate *order)
{
    uint32_t some = 0, best = PLLM_SAMPLE_MAX;
    for (uint32_t i = 0; i < count; i++)
        if (!isnan(logits[i]) && (best == PLLM_SAMPLE_MAX || logits[i] > logits[best])) best = i;
    if (best == PLLM_SAMPLE_MAX) return 0;
    if (s->temperature == 0) return best;
    for (uint32_t i = 0; i < count; i++) { /* insertion into a sorted list */
        if (isnan(logits[i])) continue;
        uint32_t at = some++;
        for (; at > 0 && order[at - 1].logit < logits[i]; at--) order[at] = order[at - 1];
        order[at] = (pllm_candidate){logits[i], i};
    }
    if (s->top_k && some > s->top_k) some = s->top_k;
    unsigned __int128 total = 0, kept = 0, passed = 0;
    for (uint32_t i = 0; i < some; i++)
        total += sample_weight(sample_exponent(order[i].logit, logits[best], s->temperature));
    uint64_t part = (uint64_t)total;
    if (s->top_p > 0 && s->top_p < 1)
        part = (uint64_t)(total * (uint64_t)(s->top_p * 0x1p32f) >> 32);
    uint32_t end = 0;
    do kept += sample_weight(sample_exponent(order[end++].logit, logits[best], s->temperature));
    while (kept < part);
    uint64_t goal = (uint64_t)(kept * s->random >> 64);
    for (uint32_t i = 0; i < end; i++) {
        passed += sample_weight(sample_exponent(order[i].logit, logits[best], s->temperature));
        if (passed > goal) return order[i].id;
    }
    return PLLM_SAMPLE_MAX;
}

static void as_a_full_sort_has_it(void **state)
{
    (void)state;
    float *logits = malloc(MOST * sizeof *logits);
    pllm_candidate *order = malloc(MOST * sizeof *order), *scratch = malloc(MOST * sizeof *scratch);
    uint32_t firsts = 0, cases = 0;
    for (uint64_t seed = 0; seed < 3 * SAMPLE_KINDS * 20; seed++) {
        uint32_t count = seed % 7 == 0 ? 1 + (uint32_t)seed % 40 : seed % 11 == 0 ? MOST : 500;
        sample_logits((uint32_t)seed % SAMPLE_KINDS, seed, logits, count);
        for (uint32_t i = 0; i < (count == MOST ? 2 : 20); i++, cases++) {
            pllm_sampling s = sample_rule(seed * 64 + i, count);
            uint32_t want = plainly(logits, count, &s, order);
            uint32_t got = pllm_sample(logits, count, &s, scratch);
            if (got != want)
                fail_msg("seed %llu, rule %u, %u logits: %u, not %u (temperature %g, top-k %u, "
                         "top-p %g)",
                         (unsigned long long)seed, i, count, got, want, (double)s.temperature,
                         s.top_k, (double)s.top_p);
            firsts += got == pllm_argmax(logits, count);
        }
    }
    printf("    %u tokens, %u the likeliest\n", cases, firsts);
    assert_true(firsts < cases * 3 / 4); /* they were not all trivial */
    free(logits);
    free(order);
    free(scratch);
}

/* Shares of 100,000 draws against the softmax, top-p and top-k: chi-square. */
static void tokens_come_as_often_as_they_should(void **state)
{
    (void)state;
    enum { TOKENS = 12, DRAWS = 100000 };
    float logits[TOKENS];
    pllm_candidate scratch[TOKENS];
    for (uint32_t i = 0; i < TOKENS; i++) logits[i] = 3 - 0.4f * (float)((i * 5) % TOKENS);
    static const struct {
        float temperature, top_p;
        uint32_t top_k, kept; /* how many are left, of the order */
    } rules[] = {{1, 1, 0, 12}, {0.7f, 0, 0, 12}, {2, 1, 5, 5}, {1, 0.6f, 0, 3}, {1, 0.6f, 4, 2}};
    for (uint32_t r = 0; r < sizeof rules / sizeof rules[0]; r++) {
        uint32_t seen[TOKENS] = {0};
        uint64_t random = 12345 + r;
        for (uint32_t i = 0; i < DRAWS; i++) {
            pllm_sampling s = {.temperature = rules[r].temperature,
                               .top_p = rules[r].top_p,
                               .top_k = rules[r].top_k,
                               .random = sample_random(&random)};
            seen[pllm_sample(logits, TOKENS, &s, scratch)]++;
        }
        double total = 0, chi = 0;
        for (uint32_t rank = 0; rank < rules[r].kept; rank++)
            total += exp(-0.4 * rank / (double)rules[r].temperature);
        for (uint32_t i = 0; i < TOKENS; i++) {
            uint32_t rank = (i * 5) % TOKENS;
            if (rank >= rules[r].kept) {
                assert_int_equal(seen[i], 0);
                continue;
            }
            double want = DRAWS * exp(-0.4 * rank / (double)rules[r].temperature) / total;
            chi += (seen[i] - want) * (seen[i] - want) / want;
        }
        if (chi > 35) fail_msg("rule %u: chi-square %.1f with 11 degrees", r, chi);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_are_exponentials),
        cmocka_unit_test(as_a_full_sort_has_it),
        cmocka_unit_test(tokens_come_as_often_as_they_should),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
