/* failing_context.c - every allocation carries a 64-byte-or-larger header with its size and a mark,
 * so that a release can be checked and the bytes alive can be counted. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "failing_context.h"

enum { MARK_LIVE = 0x600d600d, MARK_RELEASED = 0x0bad0bad };

typedef struct header {
    uint64_t bytes;
    void *start; /* what free() takes */
    uint32_t mark;
} header;

static void *failing_allocate(void *user, uint64_t bytes, uint64_t alignment)
{
    failing_context *failing = user;
    if (atomic_fetch_add(&failing->call_count, 1) == failing->fail_at) return NULL;
    uint64_t room = alignment > sizeof(header) ? alignment : 64;
    char *start;
    if (bytes > UINT64_MAX / 2 || posix_memalign((void **)&start, room, room + bytes)) return NULL;
    header *head = (header *)(start + room) - 1;
    *head = (header){.bytes = bytes, .start = start, .mark = MARK_LIVE};
    atomic_fetch_add(&failing->live_count, 1);
    uint64_t live = atomic_fetch_add(&failing->live_bytes, bytes) + bytes;
    uint64_t peak = atomic_load(&failing->peak_bytes);
    while (live > peak && !atomic_compare_exchange_weak(&failing->peak_bytes, &peak, live)) {
    }
    return start + room;
}

static void failing_release(void *user, void *pointer)
{
    failing_context *failing = user;
    header *head = (header *)pointer - 1;
    if (head->mark != MARK_LIVE) { /* maybe on a thread that cmocka does not know: no assert */
        fprintf(stderr, "failing_context: %p was not allocated here, or was released twice\n",
                pointer);
        abort();
    }
    head->mark = MARK_RELEASED;
    atomic_fetch_sub(&failing->live_count, 1);
    atomic_fetch_sub(&failing->live_bytes, head->bytes);
    void *start = head->start;
    memset(pointer, 0xdd, head->bytes);
    free(start);
}

static void failing_log(void *user, int level, const char *message)
{
    (void)level, (void)message;
    failing_context *failing = user;
    atomic_fetch_add(&failing->message_count, 1);
}

void failing_context_init(failing_context *failing, uint64_t fail_at)
{
    memset(failing, 0, sizeof *failing);
    failing->fail_at = fail_at;
    failing->context.options =
        (pllm_context_options){.struct_bytes = sizeof(pllm_context_options),
                               .log_level = PLLM_LOG_DEBUG, /* so that formatting is exercised */
                               .user = failing,
                               .allocate = failing_allocate,
                               .release = failing_release,
                               .log = failing_log};
}

int failing_context_hit(const failing_context *failing)
{
    return failing->call_count > failing->fail_at;
}

void failing_context_check(const failing_context *failing)
{
    if (failing->live_count || failing->live_bytes)
        fail_msg("%llu allocations with %llu bytes are still alive after call %llu failed",
                 (unsigned long long)failing->live_count, (unsigned long long)failing->live_bytes,
                 (unsigned long long)failing->fail_at);
}
