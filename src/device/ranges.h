/* ranges.h - which addresses are reserved and which of them are mapped, as every device with
 * checked copies keeps it. Private to src/device.
 *
 * A bit per granule says what is mapped: copies are checked against it when they are submitted,
 * since a bad address would otherwise surface inside a worker thread or kill the whole context.
 *
 * Invariants: 1. A granule's bit is set exactly while a chunk is mapped there (or is just being
 * mapped). 2. Ranges are sorted by address and don't overlap.
 * Threads: under its owner's lock. */
#ifndef PLLM_DEVICE_RANGES_H
#define PLLM_DEVICE_RANGES_H

#include "device/device.h"

typedef struct pllm_range { /* one reservation */
    pllm_va va;
    uint64_t bytes;
    uint64_t *mapped;    /* a bit a granule */
    uint64_t *read_only; /* likewise: mapped for reading; NULL until something is */
} pllm_range;

typedef struct pllm_ranges {
    const pllm_context *context;
    uint64_t granularity_bytes;
    pllm_range *items;
    uint32_t count, max;
} pllm_ranges;

void pllm_ranges_deinit(pllm_ranges *ranges); /* the items' bitmaps too */

/* EINVAL unless bytes is a positive multiple of the granularity. what: "a chunk". */
int pllm_ranges_check_bytes(const pllm_ranges *ranges, uint64_t bytes, const char *what);
/* A bitmap for a reservation of that size, all clear; NULL with the error record filled. */
uint64_t *pllm_ranges_bitmap(const pllm_ranges *ranges, uint64_t bytes);
/* Takes the bitmap over. Errors: ENOMEM; then the bitmap is still the caller's. */
int pllm_ranges_add(pllm_ranges *ranges, pllm_va va, uint64_t bytes, uint64_t *mapped);
/* Must be there as it was added, nothing mapped in it. The bitmap is the caller's to free. */
uint64_t *pllm_ranges_remove(pllm_ranges *ranges, pllm_va va, uint64_t bytes);

/* The reservation that holds all of [va, va + bytes), or NULL. */
pllm_range *pllm_ranges_find(const pllm_ranges *ranges, pllm_va va, uint64_t bytes);
/* Are all granules that [va, va + bytes) touches mapped (wanted 1), or none (0)? */
int pllm_ranges_are(const pllm_ranges *ranges, const pllm_range *range, pllm_va va, uint64_t bytes,
                    uint32_t wanted);
/* Clearing clears read_only too. */
void pllm_ranges_set(const pllm_ranges *ranges, pllm_range *range, pllm_va va, uint64_t bytes,
                     uint32_t mapped);
/* Marks what is mapped there as for reading. Errors: ENOMEM. */
int pllm_ranges_set_read_only(const pllm_ranges *ranges, pllm_range *range, pllm_va va,
                              uint64_t bytes);
/* A range of any size that is mapped whole, and stays so until it is removed. Errors: ENOMEM. */
int pllm_ranges_add_mapped(pllm_ranges *ranges, pllm_va va, uint64_t bytes);
void pllm_ranges_remove_mapped(pllm_ranges *ranges, pllm_va va, uint64_t bytes);
/* May chunks of that size together be mapped at va? EINVAL with a sentence if not. */
int pllm_ranges_check_map(const pllm_ranges *ranges, pllm_va va, uint64_t bytes,
                          pllm_range **range_out);

/* EINVAL unless every device side of every copy is mapped, EPERM if one is written to that is
 * mapped for reading. */
int pllm_ranges_check_copies(const pllm_ranges *ranges, pllm_copy_kind kind,
                             const pllm_copy *copies, uint32_t copy_count);
int pllm_ranges_check_fill(const pllm_ranges *ranges, pllm_va va, uint64_t bytes);

#endif
