/* bpe.c - short words scan for the best pair; long ones keep candidates in a heap.
 *
 * The long way: symbols form a doubly linked list by position; merging keeps the left position and
 * removes the right one. Every adjacent pair that the table knows has an entry (rank, position,
 * pair) in a binary heap ordered by rank, then position. An entry is stale when the pair at its
 * position is another one by the time it is popped; stale entries are dropped. Each merge adds at
 * most two entries, so that 3n suffice. */
#include <string.h>
#include "model/bpe.h"

#define SHORT_MAX 32u
#define NONE UINT32_MAX

int pllm_bpe_init(const pllm_context *context, pllm_bpe *bpe, uint64_t merge_max)
{
    uint64_t slot_count = 8;
    while (slot_count < merge_max * 2) slot_count *= 2; /* merge_max is below 2^32 */
    bpe->slots = pllm_alloc_array(context, slot_count, sizeof *bpe->slots);
    if (!bpe->slots) return pllm_fail_memory("a merge table", slot_count * sizeof *bpe->slots);
    memset(bpe->slots, 0xff, slot_count * sizeof *bpe->slots);
    bpe->slot_mask = slot_count - 1;
    return PLLM_OK;
}

void pllm_bpe_deinit(const pllm_context *context, pllm_bpe *bpe)
{
    pllm_free(context, bpe->slots);
    *bpe = (pllm_bpe){0};
}

/* The slot that holds the pair, or the empty one where it belongs. The multiplier is 2^64 / golden
 * ratio (Knuth, volume 3); the high half is folded in since the mask takes low bits. */
static pllm_bpe_merge *slot_of(const pllm_bpe *bpe, uint64_t pair)
{
    uint64_t hash = pair * 0x9e3779b97f4a7c15u;
    uint64_t slot = (hash ^ hash >> 32) & bpe->slot_mask;
    while (bpe->slots[slot].pair != pair && bpe->slots[slot].pair != UINT64_MAX)
        slot = (slot + 1) & bpe->slot_mask;
    return &bpe->slots[slot];
}

static uint64_t pair_of(uint32_t left, uint32_t right)
{
    return (uint64_t)left << 32 | right;
}

void pllm_bpe_add(pllm_bpe *bpe, uint32_t left, uint32_t right, uint32_t rank, uint32_t merged)
{
    pllm_bpe_merge *slot = slot_of(bpe, pair_of(left, right));
    if (slot->pair != UINT64_MAX) return;
    *slot = (pllm_bpe_merge){pair_of(left, right), rank, merged};
}

/* rank is NONE when the pair is not known. */
static uint32_t look_up(const pllm_bpe *bpe, uint32_t left, uint32_t right, uint32_t *merged)
{
    const pllm_bpe_merge *slot = slot_of(bpe, pair_of(left, right));
    *merged = slot->merged;
    return slot->pair == UINT64_MAX ? NONE : slot->rank;
}

void pllm_bpe_word_short(const pllm_bpe *bpe, uint32_t *ids, uint32_t *count)
{
    uint32_t ranks[SHORT_MAX], merged[SHORT_MAX], n = *count; /* of the pair (i, i + 1) */
    for (uint32_t i = 0; i + 1 < n; i++) ranks[i] = look_up(bpe, ids[i], ids[i + 1], &merged[i]);
    while (n > 1) {
        uint32_t best = 0;
        for (uint32_t i = 1; i + 1 < n; i++)
            if (ranks[i] < ranks[best]) best = i;
        if (ranks[best] == NONE) break;
        ids[best] = merged[best];
        uint32_t tail = n - best - 2;
        memmove(ids + best + 1, ids + best + 2, tail * sizeof *ids);
        memmove(ranks + best + 1, ranks + best + 2, (tail ? tail - 1 : 0) * sizeof *ranks);
        memmove(merged + best + 1, merged + best + 2, (tail ? tail - 1 : 0) * sizeof *merged);
        n--;
        if (best > 0) ranks[best - 1] = look_up(bpe, ids[best - 1], ids[best], &merged[best - 1]);
        if (best + 1 < n) ranks[best] = look_up(bpe, ids[best], ids[best + 1], &merged[best]);
    }
    *count = n;
}

typedef struct candidate {
    uint64_t order; /* rank << 32 | position */
    uint64_t pair;
    uint32_t merged, spare;
} candidate;

typedef struct long_word {
    const pllm_bpe *bpe;
    candidate *heap;
    uint32_t *ids, *before, *after; /* by position; NONE at the ends */
    uint64_t heap_count;
} long_word;

static void push(long_word *word, uint32_t position)
{
    uint32_t next = word->after[position], merged;
    if (next == NONE) return;
    uint32_t rank = look_up(word->bpe, word->ids[position], word->ids[next], &merged);
    if (rank == NONE) return;
    candidate added = {(uint64_t)rank << 32 | position,
                       pair_of(word->ids[position], word->ids[next]), merged, 0};
    uint64_t at = word->heap_count++;
    while (at > 0 && word->heap[(at - 1) / 2].order > added.order) {
        word->heap[at] = word->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    word->heap[at] = added;
}

static candidate pop(long_word *word)
{
    candidate top = word->heap[0], last = word->heap[--word->heap_count];
    uint64_t at = 0;
    for (;;) {
        uint64_t child = 2 * at + 1;
        if (child >= word->heap_count) break;
        if (child + 1 < word->heap_count && word->heap[child + 1].order < word->heap[child].order)
            child++;
        if (word->heap[child].order >= last.order) break;
        word->heap[at] = word->heap[child];
        at = child;
    }
    word->heap[at] = last; /* its own place when the heap is empty now */
    return top;
}

static void merge_at(long_word *word, uint32_t position, uint32_t merged)
{
    uint32_t gone = word->after[position], next = word->after[gone];
    word->ids[position] = merged;
    word->ids[gone] = NONE; /* no pair has it: entries of that position are stale */
    word->after[position] = next;
    if (next != NONE) word->before[next] = position;
    if (word->before[position] != NONE) push(word, word->before[position]);
    push(word, position);
}

static int reserve(const pllm_context *context, pllm_bpe_scratch *scratch, uint64_t bytes)
{
    if (scratch->bytes >= bytes) return PLLM_OK;
    pllm_bpe_scratch_deinit(context, scratch);
    scratch->memory = pllm_alloc(context, bytes);
    if (!scratch->memory) return pllm_fail_memory("merging a long word", bytes);
    scratch->bytes = bytes;
    return PLLM_OK;
}

int pllm_bpe_word_long(const pllm_context *context, const pllm_bpe *bpe, pllm_bpe_scratch *scratch,
                       uint32_t *ids, uint32_t *count)
{
    uint64_t n = *count;
    int status = reserve(context, scratch, n * (3 * sizeof(candidate) + 2 * sizeof(uint32_t)));
    if (status < 0 || n == 0) return status;
    long_word word = {.bpe = bpe, .heap = scratch->memory, .ids = ids};
    word.before = (uint32_t *)(word.heap + 3 * n);
    word.after = word.before + n;
    for (uint32_t i = 0; i < n; i++) {
        word.before[i] = i == 0 ? NONE : i - 1;
        word.after[i] = i + 1 == n ? NONE : i + 1;
    }
    for (uint32_t i = 0; i < n; i++) push(&word, i);
    while (word.heap_count > 0) {
        candidate best = pop(&word);
        uint32_t position = (uint32_t)best.order, next = word.after[position];
        if (ids[position] == NONE || next == NONE) continue;
        if (pair_of(ids[position], ids[next]) == best.pair) merge_at(&word, position, best.merged);
    }
    uint32_t kept = 0;
    for (uint32_t i = 0; i != NONE; i = word.after[i]) ids[kept++] = ids[i]; /* kept <= i */
    *count = kept;
    return PLLM_OK;
}

int pllm_bpe_word(const pllm_context *context, const pllm_bpe *bpe, pllm_bpe_scratch *scratch,
                  uint32_t *ids, uint32_t *count)
{
    if (*count > SHORT_MAX) return pllm_bpe_word_long(context, bpe, scratch, ids, count);
    pllm_bpe_word_short(bpe, ids, count);
    return PLLM_OK;
}

void pllm_bpe_scratch_deinit(const pllm_context *context, pllm_bpe_scratch *scratch)
{
    pllm_free(context, scratch->memory);
    *scratch = (pllm_bpe_scratch){0};
}
