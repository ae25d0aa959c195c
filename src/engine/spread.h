/* spread.h - which parts of a pass stay on the device, where all do not fit: evenly over the order
 * in which they are read, so that every streamed part has as much of the others' compute to hide
 * behind.
 *
 *   room for 3 of 8:   . . S . . S . S      (S stays: when what is due so far holds it)
 *
 * Pure: asked for one part after the other, in that order. */
#ifndef PLLM_ENGINE_SPREAD_H
#define PLLM_ENGINE_SPREAD_H

#include <stdint.h>

typedef struct pllm_spread {
    uint64_t total, room;   /* of all parts; for those that stay */
    uint64_t passed, stays; /* so far: of all; of those that stay */
} pllm_spread;

/* Does the next part, of so many bytes, stay? Never more than room does. */
static inline int pllm_spread_next(pllm_spread *spread, uint64_t bytes)
{
    spread->passed += bytes;
    uint64_t stays = spread->stays + bytes;
    if (stays > spread->room ||
        (unsigned __int128)stays * spread->total > (unsigned __int128)spread->room * spread->passed)
        return 0;
    spread->stays = stays;
    return 1;
}

#endif
