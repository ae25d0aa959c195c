/* sample_support.h - rows of logits and rules for drawing from them that are hard to get right. */
#ifndef PLLM_TESTS_SAMPLE_SUPPORT_H
#define PLLM_TESTS_SAMPLE_SUPPORT_H

#include <math.h>
#include <pagedllm/sampling.h>

enum { SAMPLE_KINDS = 10 };

static inline uint64_t sample_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* kind: which of SAMPLE_KINDS shapes a row has. */
static inline void sample_logits(uint32_t kind, uint64_t seed, float *logits, uint32_t count)
{
    uint64_t state = seed * 77 + kind;
    float spread = 0.1f + (float)(sample_random(&state) >> 40) * 0x1p-21f; /* up to 8 */
    for (uint32_t i = 0; i < count; i++) {
        uint64_t bits = sample_random(&state);
        float a = ((float)(bits >> 40) + 1) * 0x1p-24f, b = (float)(bits & 0xffffff) * 0x1p-24f;
        float x = spread * sqrtf(-2 * logf(a)) * cosf(6.2831853f * b);
        uint32_t dice = (uint32_t)(bits >> 24) & 0xffff;
        switch (kind) {
        case 1: /* many equals */
            x = roundf(x);
            break;
        case 2: /* all equal */
            x = -7.25f;
            break;
        case 3:
            if (dice % 3 == 0) x = NAN;
            break;
        case 4:
            if (dice % 2 == 0) x = -INFINITY;
            break;
        case 5: /* few infinities; with them nothing else has a chance */
            if (dice % 300 == 0) x = INFINITY;
            break;
        case 6:
            x = i % 3 == 1 ? 0.0f : -0.0f;
            break;
        case 7: /* differences overflow */
            x = dice % 3 == 0 ? 3e38f : dice % 3 == 1 ? -3e38f : x;
            break;
        case 8: /* nothing to choose from */
            x = seed % 2 ? NAN : -INFINITY;
            break;
        case 9: /* denormal differences */
            x *= 1e-39f;
            break;
        default:
            break;
        }
        logits[i] = x;
    }
}

static inline pllm_sampling sample_rule(uint64_t seed, uint32_t count)
{
    static const float temperatures[] = {1, 0.8f, 0.05f, 100, 1e-40f, 3, 0};
    static const float parts[] = {1, 0, 0.95f, 0.5f, 0.01f, 0.999999f, 1e-30f};
    const uint32_t tops[] = {0, 1, 2, 40, 1000, count, count + 5, count / 2 + 1};
    uint64_t state = seed;
    pllm_sampling s = {.temperature = temperatures[sample_random(&state) % 7],
                       .top_p = parts[sample_random(&state) % 7],
                       .top_k = tops[sample_random(&state) % 8]};
    uint64_t random = sample_random(&state);
    s.random = seed % 11 == 0 ? 0 : seed % 11 == 1 ? UINT64_MAX : random;
    return s;
}

#endif
