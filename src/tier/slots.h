/* slots.h - which slots of one place are taken, with neighbours kept together.
 *
 * Slots come in extents of per_extent. A stream of pages begins in an extent of its own and its
 * followers take the next slot, so that reading the stream is one long run:
 *
 *     extent 0            extent 1            extent 2
 *     [a0 a1 a2 a3 a4 .]  [b0 b1 .  .  .  .]  [a5 a6 .  .  .  .]
 *
 * Only when no extent is wholly free is any free slot taken.
 * Invariants: 1. extent_used[e] is the number of bits set in extent e. 2. used is their sum.
 * 3. No slot below slot_hint is free; no extent below extent_hint is wholly free.
 * Threads: one caller at a time. */
#ifndef PLLM_TIER_SLOTS_H
#define PLLM_TIER_SLOTS_H

#include "base/context.h"

#define PLLM_NONE UINT32_MAX /* no frame, slot, page */

typedef struct pllm_slots {
    const pllm_context *context;
    uint32_t per_extent;
    uint32_t count, used, peak;
    uint64_t *taken;       /* a bit a slot */
    uint32_t *extent_used; /* a count an extent; the last extent may be short */
    uint32_t slot_room, extent_room;
    uint32_t slot_hint, extent_hint;
} pllm_slots;

void pllm_slots_init(pllm_slots *slots, const pllm_context *context, uint32_t per_extent);
void pllm_slots_deinit(pllm_slots *slots);
/* Adds slots at the end; the slots before must fill whole extents. Errors: ENOMEM (unchanged). */
int pllm_slots_grow(pllm_slots *slots, uint32_t added);
/* The slot after `after` if it is free and in the same extent; or the first of the next extent if
 * that is wholly free. PLLM_NONE otherwise. The slot is taken, here and below. */
uint32_t pllm_slots_follow(pllm_slots *slots, uint32_t after);
uint32_t pllm_slots_begin(pllm_slots *slots); /* the first of a wholly free extent */
uint32_t pllm_slots_any(pllm_slots *slots);   /* the lowest free one */
void pllm_slots_give(pllm_slots *slots, uint32_t slot);
int pllm_slots_is_taken(const pllm_slots *slots, uint32_t slot);
void pllm_slots_check(const pllm_slots *slots); /* the invariants; aborts when one is broken */

#endif
