/* slots.c - a bitmap of slots with a count an extent, and hints that make the searches short. */
#include <assert.h>
#include <stdlib.h>
#include "base/bitmap.h"
#include "tier/slots.h"

void pllm_slots_init(pllm_slots *slots, const pllm_context *context, uint32_t per_extent)
{
    *slots = (pllm_slots){.context = context, .per_extent = per_extent};
}

void pllm_slots_deinit(pllm_slots *slots)
{
    pllm_free(slots->context, slots->taken);
    pllm_free(slots->context, slots->extent_used);
    slots->taken = NULL;
    slots->extent_used = NULL;
}

static uint32_t extent_count(const pllm_slots *slots)
{
    return (uint32_t)(((uint64_t)slots->count + slots->per_extent - 1) / slots->per_extent);
}

/* Rooms double, so that adding slab after slab copies each entry a few times in all. */
static int slots_reserve(pllm_slots *slots, uint64_t slot_count)
{
    uint64_t words_old = slots->slot_room / 64, words = pllm_bitmap_words(slot_count);
    if (words > words_old) {
        if (words < 2 * words_old) words = 2 * words_old;
        void *grown = pllm_grow(slots->context, slots->taken, words_old * 8, words * 8);
        if (!grown) return pllm_fail_memory("a map of page slots", words * 8);
        slots->taken = grown;
        slots->slot_room = (uint32_t)(words * 64 > PLLM_NONE ? PLLM_NONE & ~63u : words * 64);
    }
    uint64_t extents_old = slots->extent_room,
             extents = (slot_count + slots->per_extent - 1) / slots->per_extent;
    if (extents > extents_old) {
        if (extents < 2 * extents_old) extents = 2 * extents_old;
        void *grown = pllm_grow(slots->context, slots->extent_used, extents_old * 4, extents * 4);
        if (!grown) return pllm_fail_memory("a map of page extents", extents * 4);
        slots->extent_used = grown;
        slots->extent_room = (uint32_t)extents;
    }
    return PLLM_OK;
}

int pllm_slots_grow(pllm_slots *slots, uint32_t added)
{
    assert(slots->count % slots->per_extent == 0);
    uint64_t slot_count = (uint64_t)slots->count + added;
    if (slot_count >= PLLM_NONE - 64)
        return pllm_fail(PLLM_ELIMIT, 0, "a place holds at most %u pages", PLLM_NONE - 64);
    int status = slots_reserve(slots, slot_count);
    if (status < 0) return status;
    slots->count = (uint32_t)slot_count;
    return PLLM_OK;
}

int pllm_slots_is_taken(const pllm_slots *slots, uint32_t slot)
{
    return slot < slots->count && pllm_bitmap_get(slots->taken, slot);
}

static uint32_t slots_take(pllm_slots *slots, uint32_t slot)
{
    pllm_bitmap_set(slots->taken, slot);
    slots->extent_used[slot / slots->per_extent]++;
    slots->used++;
    if (slots->used > slots->peak) slots->peak = slots->used;
    return slot;
}

uint32_t pllm_slots_follow(pllm_slots *slots, uint32_t after)
{
    uint32_t next = after + 1;
    if (after >= slots->count || next >= slots->count || pllm_slots_is_taken(slots, next))
        return PLLM_NONE;
    if (next % slots->per_extent == 0 && slots->extent_used[next / slots->per_extent])
        return PLLM_NONE;
    return slots_take(slots, next);
}

uint32_t pllm_slots_begin(pllm_slots *slots)
{
    uint32_t count = extent_count(slots);
    while (slots->extent_hint < count && slots->extent_used[slots->extent_hint])
        slots->extent_hint++;
    if (slots->extent_hint == count) return PLLM_NONE;
    return slots_take(slots, slots->extent_hint * slots->per_extent);
}

uint32_t pllm_slots_any(pllm_slots *slots)
{
    uint64_t slot = pllm_bitmap_find_clear(slots->taken, slots->count, slots->slot_hint);
    slots->slot_hint = slot == PLLM_BITMAP_NONE ? slots->count : (uint32_t)slot;
    return slot == PLLM_BITMAP_NONE ? PLLM_NONE : slots_take(slots, (uint32_t)slot);
}

void pllm_slots_give(pllm_slots *slots, uint32_t slot)
{
    assert(pllm_slots_is_taken(slots, slot));
    uint32_t extent = slot / slots->per_extent;
    pllm_bitmap_clear(slots->taken, slot);
    slots->used--;
    if (--slots->extent_used[extent] == 0 && extent < slots->extent_hint)
        slots->extent_hint = extent;
    if (slot < slots->slot_hint) slots->slot_hint = slot;
}

void pllm_slots_check(const pllm_slots *slots)
{
    uint32_t used = 0;
    for (uint32_t extent = 0; extent < extent_count(slots); extent++) {
        uint32_t in_extent = 0;
        for (uint32_t i = 0; i < slots->per_extent; i++) {
            uint64_t slot = (uint64_t)extent * slots->per_extent + i;
            if (slot >= slots->count) break;
            uint32_t taken = (uint32_t)pllm_slots_is_taken(slots, (uint32_t)slot);
            if (!taken && slot < slots->slot_hint) abort(); /* 3 */
            in_extent += taken;
        }
        if (in_extent != slots->extent_used[extent]) abort();   /* 1 */
        if (!in_extent && extent < slots->extent_hint) abort(); /* 3 */
        used += in_extent;
    }
    if (used != slots->used) abort(); /* 2 */
}
