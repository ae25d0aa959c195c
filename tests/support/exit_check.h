/* exit_check.h - for tests that run as several processes, where cmocka sees only one: a call that
 * fails, or a fact that is not so, ends the process with the line it stands on. */
#ifndef PLLM_TESTS_EXIT_CHECK_H
#define PLLM_TESTS_EXIT_CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include "base/context.h"

#define OK(call)                                                                                 \
    do {                                                                                         \
        int status_ = (call);                                                                    \
        if (status_ < 0) {                                                                       \
            fprintf(stderr, "line %d: %s: %s: %s\n", __LINE__, #call, pllm_status_name(status_), \
                    pllm_last_error()->text);                                                    \
            exit(1);                                                                             \
        }                                                                                        \
    } while (0)
#define CHECK(fact)                                                    \
    do {                                                               \
        if (!(fact)) {                                                 \
            fprintf(stderr, "line %d: not so: %s\n", __LINE__, #fact); \
            exit(1);                                                   \
        }                                                              \
    } while (0)

#endif
