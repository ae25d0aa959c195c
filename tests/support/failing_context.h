/* failing_context.h - a pllm_context for tests: its allocator fails the Nth call and knows what is
 * still alive. The usual loop:
 *
 *     for (uint64_t n = 0;; n++) {
 *         failing_context failing;
 *         failing_context_init(&failing, n);
 *         int status = pllm_thing_open(&failing.context, &thing);
 *         assert_int_equal(status, failing_context_hit(&failing) ? PLLM_ENOMEM : PLLM_OK);
 *         pllm_thing_close(thing);
 *         failing_context_check(&failing);         nothing alive: no leak, no double release
 *         if (!failing_context_hit(&failing)) break;
 *     }
 *
 * Only one call fails; those after it succeed again, which is what finds a half-done cleanup.
 * Released memory is overwritten before it goes. Threads: any. Log messages are counted
 * and go nowhere else. */
#ifndef PLLM_TESTS_FAILING_CONTEXT_H
#define PLLM_TESTS_FAILING_CONTEXT_H

#include <stdatomic.h>
#include <stdint.h>
#include "base/context.h"

#define FAILING_NEVER UINT64_MAX

typedef struct failing_context {
    pllm_context context; /* give &failing.context to the code under test */
    uint64_t fail_at;     /* the call with this number, from 0, returns NULL */
    atomic_uint_least64_t call_count;
    atomic_uint_least64_t live_count, live_bytes;
    atomic_uint_least64_t peak_bytes;
    atomic_uint_least64_t message_count;
} failing_context;

/* In place; the struct must not move afterwards. No deinit is needed. */
void failing_context_init(failing_context *failing, uint64_t fail_at);
/* Did the failing call happen? */
int failing_context_hit(const failing_context *failing);
/* Fails the running cmocka test if anything is still allocated. */
void failing_context_check(const failing_context *failing);

#endif
