/* spans.h - which bytes of a range are whose: an ordered set of spans that tile it.
 *
 *   0 [ PLACED ][ FREE        ][ BLOCK ][ ROOM ][ PENDING ][ FREE                 ] capacity
 *
 * Each span has a kind. Free ones never touch: they are merged as they arise. Every change checks
 * first and takes the memory it may need, so that a call that fails has changed nothing.
 * Threads: one caller at a time. */
#ifndef PLLM_VMM_SPANS_H
#define PLLM_VMM_SPANS_H

#include "base/context.h"

typedef enum pllm_span_kind {
    PLLM_SPAN_FREE = 0,
    PLLM_SPAN_PLACING, /* taken; its pages are being mapped */
    PLLM_SPAN_PLACED,  /* allocated by place */
    PLLM_SPAN_BLOCK,   /* allocated as a block */
    PLLM_SPAN_ROOM,    /* behind a block, for it to grow into */
    PLLM_SPAN_PENDING, /* given back, but work may still touch it */
    PLLM_SPAN_KINDS,
} pllm_span_kind;

typedef struct pllm_span {
    struct pllm_span *left, *right; /* private, as the next two */
    uint64_t free_max;              /* the longest free span at or below this node */
    uint32_t priority;
    uint32_t kind; /* a pllm_span_kind */
    uint64_t offset, bytes;
} pllm_span;

typedef struct pllm_spans {
    const pllm_context *context;
    pllm_span *root, *spare;
    uint32_t random, spare_count;
    uint64_t capacity;
    uint64_t count[PLLM_SPAN_KINDS], bytes[PLLM_SPAN_KINDS];
} pllm_spans;

int pllm_spans_init(pllm_spans *spans, const pllm_context *context, uint64_t capacity);
void pllm_spans_deinit(pllm_spans *spans);

/* The span that holds the byte at offset, which is below the capacity. Valid until a change. */
const pllm_span *pllm_spans_at(const pllm_spans *spans, uint64_t offset);
/* Is [offset, offset + bytes), inside the capacity, made of spans of these kinds (a mask) alone?
 * If not, *other_out (may be NULL) is the first that is of another. */
int pllm_spans_are(const pllm_spans *spans, uint64_t offset, uint64_t bytes, uint32_t kinds,
                   const pllm_span **other_out);
/* The lowest offset, aligned counting from base, with that many free bytes. 0: there is none. */
int pllm_spans_fit(const pllm_spans *spans, uint64_t base, uint64_t bytes, uint64_t alignment,
                   uint64_t *offset_out);
uint64_t pllm_spans_longest_free(const pllm_spans *spans);

/* Makes all of [offset, offset + bytes), whatever spans it is cut into, one span of that kind
 * (merged with its neighbours if FREE). The caller has asked what is there. Cannot fail where the
 * range begins and ends where spans do. Errors: ENOMEM; then nothing has changed. */
int pllm_spans_turn(pllm_spans *spans, uint64_t offset, uint64_t bytes, pllm_span_kind kind);

/* Takes the memory for such a turn, which then cannot fail. ENOMEM. */
int pllm_spans_prepare(pllm_spans *spans, uint64_t offset, uint64_t bytes);

void pllm_spans_check(const pllm_spans *spans); /* asserts what is said above */

#endif
