/* replay.h - recorded accesses: their text form, and what each policy would have made of them.
 *
 * A trace is a sequence of page numbers. Replaying it through a policy with a number of frames
 * counts hits; Belady's optimum (L. A. Belady, "A study of replacement algorithms for a
 * virtual-storage computer", IBM Systems Journal 1966: evict what is needed last) is the yardstick
 * that none can beat without reading ahead. Prefetching and pins play no part.
 *
 * Text form, a line each:  "pagedllm trace 1", "pages N" (numbers are below N), then any number of
 * "rank PAGE RANK" (others have their own number as rank), then accesses: page numbers and
 * ascending runs FIRST-LAST, several on a line. '#' begins a comment.
 * Threads: calls on one trace from one thread at a time. */
#ifndef PLLM_PAGER_REPLAY_H
#define PLLM_PAGER_REPLAY_H

#include "pager/policy.h"

typedef struct pllm_trace {
    const pllm_context *context;
    uint32_t page_count;   /* page numbers are below it; at most PLLM_TRACE_PAGES */
    uint64_t access_count; /* at most PLLM_TRACE_ACCESSES */
    uint32_t *accesses;
    uint32_t *ranks; /* by page, for static; NULL: the page number */
} pllm_trace;
enum { PLLM_TRACE_PAGES = 1 << 24, PLLM_TRACE_ACCESSES = 1 << 30 };

/* A copy of accesses and ranks (may be NULL). Errors: EINVAL (a page not below page_count), ENOMEM,
 * ELIMIT. */
int pllm_trace_open(const pllm_context *context, uint32_t page_count, const uint32_t *ranks,
                    const uint32_t *accesses, uint64_t access_count, pllm_trace **trace_out);
/* From text that need not end in a zero byte. Errors: EINVAL (names the line), ENOMEM, ELIMIT. */
int pllm_trace_parse(const pllm_context *context, const char *text, uint64_t bytes,
                     pllm_trace **trace_out);
/* Errors: EIO (file missing, unreadable), and as parse. */
int pllm_trace_read(const pllm_context *context, const char *path, pllm_trace **trace_out);
int pllm_trace_write(const pllm_trace *trace, const char *path); /* EIO */
void pllm_trace_close(pllm_trace *trace);                        /* NULL is fine */

/* Hits of a policy that starts empty with frame_count frames. Errors: EINVAL, ENOMEM. */
int pllm_replay_policy(const pllm_trace *trace, pllm_policy_kind kind, uint32_t frame_count,
                       uint64_t *hits_out);
/* The most hits any policy can have. O(n log frames). Errors: EINVAL, ENOMEM. */
int pllm_replay_optimum(const pllm_trace *trace, uint32_t frame_count, uint64_t *hits_out);

#endif
