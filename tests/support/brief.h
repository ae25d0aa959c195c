/* brief.h - two ways to run a test of kernels, each asked for by the environment.
 *
 * brief, PLLM_TEST_SMALL: under compute-sanitizer kernels are ten to a hundred times slower. A test
 * then keeps to the fewest shapes that reach every kernel and every way of launching one; that they
 * still do is checked by tests/check/gpu_brief.py.
 *
 * launches_only, PLLM_TEST_LAUNCHES: the driver is tests/fake's, which runs no kernel, but counts
 * their launches. What a kernel should have written is then not looked at; all else is. */
#ifndef PLLM_TESTS_BRIEF_H
#define PLLM_TESTS_BRIEF_H

#include <stdlib.h>

static inline int asked_by(const char *name)
{
    const char *value = getenv(name);
    return value && *value && *value != '0';
}

static inline int brief(void)
{
    return asked_by("PLLM_TEST_SMALL");
}

static inline int launches_only(void)
{
    return asked_by("PLLM_TEST_LAUNCHES");
}

#endif
