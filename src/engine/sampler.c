/* sampler.c - what sampling may be asked for, and where its random bits come from. The choice
 * itself is kernels/sample.h.
 *
 * The generator is SplitMix64 (Steele, Lea, Flood 2014), one draw a token, so that seed and
 * position decide everything. */
#include "engine/engine_internal.h"

int pllm_sampling_check(const pllm_sampling *sampling)
{
    if (!(sampling->temperature >= 0) || sampling->temperature > 100)
        return pllm_fail(PLLM_EINVAL, 0, "temperature is %g; it must be 0 (greedy) to 100",
                         (double)sampling->temperature);
    if (!(sampling->top_p >= 0) || sampling->top_p > 1)
        return pllm_fail(PLLM_EINVAL, 0, "top-p is %g; it must be 0 to 1", (double)sampling->top_p);
    return PLLM_OK;
}

uint64_t pllm_sampling_draw(uint64_t *seed_state)
{
    uint64_t z = *seed_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}
