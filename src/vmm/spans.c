/* spans.c - a treap of spans by offset. Each node knows the longest free span at or below it, so
 * that the lowest place for a block is found in one way down. Priorities come from a generator with
 * a fixed seed: the same calls give the same tree.
 * Source of the structure: R. Seidel and C. Aragon, "Randomized Search Trees" (1996).
 *
 * Invariants (pllm_spans_check): 1. Spans tile [0, capacity): each begins where the one before it
 * ends, none is empty. 2. No two FREE ones are neighbours. 3. count and bytes match the spans. 4. A
 * node's priority is at most its parent's, and free_max is right. */
#include <assert.h>
#include "vmm/spans.h"

enum { SPARES_KEPT = 64 };

static uint64_t most(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static uint64_t end_of(const pllm_span *span)
{
    return span->offset + span->bytes;
}

static void pull(pllm_span *span)
{
    uint64_t own = span->kind == PLLM_SPAN_FREE ? span->bytes : 0;
    if (span->left) own = most(own, span->left->free_max);
    if (span->right) own = most(own, span->right->free_max);
    span->free_max = own;
}

/* ---- the tree ---- */

static pllm_span *merged(pllm_span *low, pllm_span *high)
{
    if (!low) return high;
    if (!high) return low;
    if (low->priority >= high->priority) {
        low->right = merged(low->right, high);
        pull(low);
        return low;
    }
    high->left = merged(low, high->left);
    pull(high);
    return high;
}

/* *low: what begins below offset; *high: the rest. */
static void cut(pllm_span *tree, uint64_t offset, pllm_span **low, pllm_span **high)
{
    if (!tree) {
        *low = *high = NULL;
    } else if (tree->offset < offset) {
        *low = tree;
        cut(tree->right, offset, &tree->right, high);
        pull(tree);
    } else {
        *high = tree;
        cut(tree->left, offset, low, &tree->left);
        pull(tree);
    }
}

static void add(pllm_spans *spans, uint64_t offset, uint64_t bytes, uint32_t kind)
{
    pllm_span *span = spans->spare, *low, *high;
    assert(span && bytes > 0);
    spans->spare = span->right;
    spans->spare_count--;
    spans->random ^= spans->random << 13; /* xorshift32 */
    spans->random ^= spans->random >> 17;
    spans->random ^= spans->random << 5;
    *span = (pllm_span){.priority = spans->random, .kind = kind, .offset = offset, .bytes = bytes};
    pull(span);
    cut(spans->root, offset, &low, &high);
    spans->root = merged(merged(low, span), high);
    spans->count[kind]++;
    spans->bytes[kind] += bytes;
}

static void take(pllm_spans *spans, const pllm_span *which)
{
    pllm_span *low, *span, *high;
    cut(spans->root, which->offset, &low, &high);
    cut(high, which->offset + 1, &span, &high);
    assert(span == which && !span->left && !span->right);
    spans->root = merged(low, high);
    spans->count[span->kind]--;
    spans->bytes[span->kind] -= span->bytes;
    if (spans->spare_count >= SPARES_KEPT) {
        pllm_free(spans->context, span);
        return;
    }
    span->right = spans->spare;
    spans->spare = span;
    spans->spare_count++;
}

static int need_spares(pllm_spans *spans, uint32_t count)
{
    while (spans->spare_count < count) {
        pllm_span *span = pllm_alloc(spans->context, sizeof *span);
        if (!span) return pllm_fail_memory("a pool's list of spans", sizeof *span);
        span->right = spans->spare;
        spans->spare = span;
        spans->spare_count++;
    }
    return PLLM_OK;
}

static void free_tree(const pllm_context *context, pllm_span *tree)
{
    if (!tree) return;
    free_tree(context, tree->left);
    free_tree(context, tree->right);
    pllm_free(context, tree);
}

/* ---- life ---- */

int pllm_spans_init(pllm_spans *spans, const pllm_context *context, uint64_t capacity)
{
    *spans = (pllm_spans){.context = context, .random = 0x9e3779b9u, .capacity = capacity};
    int status = need_spares(spans, 3);
    if (status < 0) {
        pllm_spans_deinit(spans);
        return status;
    }
    add(spans, 0, capacity, PLLM_SPAN_FREE);
    return PLLM_OK;
}

void pllm_spans_deinit(pllm_spans *spans)
{
    free_tree(spans->context, spans->root);
    for (pllm_span *span = spans->spare, *next; span; span = next) {
        next = span->right;
        pllm_free(spans->context, span);
    }
    *spans = (pllm_spans){0};
}

/* ---- asking ---- */

const pllm_span *pllm_spans_at(const pllm_spans *spans, uint64_t offset)
{
    assert(offset < spans->capacity);
    const pllm_span *span = spans->root;
    while (offset < span->offset || offset - span->offset >= span->bytes)
        span = offset < span->offset ? span->left : span->right;
    return span;
}

int pllm_spans_are(const pllm_spans *spans, uint64_t offset, uint64_t bytes, uint32_t kinds,
                   const pllm_span **other_out)
{
    for (uint64_t at = offset, end = offset + bytes; at < end;) {
        const pllm_span *span = pllm_spans_at(spans, at);
        if (!(kinds >> span->kind & 1)) {
            if (other_out) *other_out = span;
            return 0;
        }
        at = end_of(span);
    }
    return 1;
}

static int fit_in(const pllm_span *span, uint64_t base, uint64_t bytes, uint64_t alignment,
                  uint64_t *offset_out)
{
    if (!span || span->free_max < bytes) return 0;
    if (fit_in(span->left, base, bytes, alignment, offset_out)) return 1;
    if (span->kind == PLLM_SPAN_FREE && span->bytes >= bytes) {
        uint64_t skip = (alignment - (base + span->offset) % alignment) % alignment;
        if (skip <= span->bytes - bytes) {
            *offset_out = span->offset + skip;
            return 1;
        }
    }
    return fit_in(span->right, base, bytes, alignment, offset_out);
}

int pllm_spans_fit(const pllm_spans *spans, uint64_t base, uint64_t bytes, uint64_t alignment,
                   uint64_t *offset_out)
{
    return fit_in(spans->root, base, bytes, alignment, offset_out);
}

uint64_t pllm_spans_longest_free(const pllm_spans *spans)
{
    return spans->root->free_max;
}

/* ---- changing ---- */

int pllm_spans_prepare(pllm_spans *spans, uint64_t offset, uint64_t bytes)
{
    const pllm_span *first = pllm_spans_at(spans, offset);
    const pllm_span *last = pllm_spans_at(spans, offset + bytes - 1);
    /* Those that go are at least one, and two if they are not the same. */
    uint32_t spans_new = 1 + (first->offset < offset) + (offset + bytes < end_of(last));
    uint32_t spans_old = first == last ? 1 : 2;
    return need_spares(spans, spans_new > spans_old ? spans_new - spans_old : 0);
}

typedef struct piece {
    uint64_t offset, end;
    uint32_t kind;
} piece;

static uint64_t length(const piece *p)
{
    return p->end - p->offset;
}

/* A FREE range grows over what is free beside it. */
static void widen(const pllm_spans *spans, piece *left, piece *range, piece *right)
{
    const pllm_span *span;
    if (length(left) > 0) {
        if (left->kind == PLLM_SPAN_FREE) range->offset = left->end = left->offset;
    } else if (range->offset > 0) {
        span = pllm_spans_at(spans, range->offset - 1);
        if (span->kind == PLLM_SPAN_FREE) range->offset = span->offset;
    }
    if (length(right) > 0) {
        if (right->kind == PLLM_SPAN_FREE) range->end = right->offset = right->end;
    } else if (range->end < spans->capacity) {
        span = pllm_spans_at(spans, range->end);
        if (span->kind == PLLM_SPAN_FREE) range->end = end_of(span);
    }
}

int pllm_spans_turn(pllm_spans *spans, uint64_t offset, uint64_t bytes, pllm_span_kind kind)
{
    assert(bytes > 0 && bytes <= spans->capacity && offset <= spans->capacity - bytes);
    int status = pllm_spans_prepare(spans, offset, bytes);
    if (status < 0) return status;
    const pllm_span *first = pllm_spans_at(spans, offset);
    const pllm_span *last = pllm_spans_at(spans, offset + bytes - 1);
    piece left = {first->offset, offset, first->kind};
    piece range = {offset, offset + bytes, kind};
    piece right = {offset + bytes, end_of(last), last->kind};
    if (kind == PLLM_SPAN_FREE) widen(spans, &left, &range, &right);
    uint64_t at = length(&left) > 0 ? left.offset : range.offset;
    uint64_t end = length(&right) > 0 ? right.end : range.end;
    while (at < end) {
        const pllm_span *span = pllm_spans_at(spans, at);
        at = end_of(span);
        take(spans, span);
    }
    if (length(&left) > 0) add(spans, left.offset, length(&left), left.kind);
    add(spans, range.offset, length(&range), range.kind);
    if (length(&right) > 0) add(spans, right.offset, length(&right), right.kind);
    return PLLM_OK;
}

/* ---- invariants ---- */

typedef struct census {
    uint64_t at, count[PLLM_SPAN_KINDS], bytes[PLLM_SPAN_KINDS];
    uint32_t kind_before;
} census;

static uint64_t walk(const pllm_span *span, census *seen)
{
    if (!span) return 0;
    uint64_t longest = walk(span->left, seen);
    assert(span->offset == seen->at && span->bytes > 0);                         /* 1 */
    assert(span->kind != PLLM_SPAN_FREE || seen->kind_before != PLLM_SPAN_FREE); /* 2 */
    assert(!span->left || span->left->priority <= span->priority);               /* 4 */
    assert(!span->right || span->right->priority <= span->priority);
    seen->at = end_of(span);
    seen->kind_before = span->kind;
    seen->count[span->kind]++;
    seen->bytes[span->kind] += span->bytes;
    if (span->kind == PLLM_SPAN_FREE) longest = most(longest, span->bytes);
    longest = most(longest, walk(span->right, seen));
    assert(span->free_max == longest); /* 4 */
    return longest;
}

void pllm_spans_check(const pllm_spans *spans)
{
    census seen = {.kind_before = PLLM_SPAN_KINDS};
    walk(spans->root, &seen);
    assert(seen.at == spans->capacity); /* 1 */
    for (uint32_t kind = 0; kind < PLLM_SPAN_KINDS; kind++)
        assert(seen.count[kind] == spans->count[kind] && seen.bytes[kind] == spans->bytes[kind]);
}
