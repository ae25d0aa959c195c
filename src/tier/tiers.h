/* tiers.h - where pages can be: frames on the device, slots in host memory, slots on disk.
 *
 * All pages of one pllm_tiers have the same size. A frame is an index into one region of the
 * device, backed on demand from the budget; a slot is an index into pinned host memory or the
 * spill file. This file only hands out places; transfer.h moves bytes between them, pager.h knows
 * which page is where.
 *
 * Slots of pages that will be read together should be neighbours, so that reads merge into long
 * runs: slot_alloc takes the slot that the new one should follow, and a new stream of pages
 * begins in an extent (at least 1 MiB) of its own while there is one free.
 * Threads: one caller at a time. */
#ifndef PLLM_TIER_TIERS_H
#define PLLM_TIER_TIERS_H

#include "device/device.h"
#include "tier/disk.h"
#include "tier/slots.h" /* PLLM_NONE */
#include "vmm/budget.h"

typedef enum pllm_place { PLLM_AT_DEVICE = 0, PLLM_AT_HOST = 1, PLLM_AT_DISK = 2 } pllm_place;

typedef struct pllm_tiers pllm_tiers;
typedef struct pllm_tiers_options {
    uint32_t struct_bytes;
    uint32_t frame_max;          /* frames reserved (address space), whatever the budget gives; 0:
                                    none, for a caller who moves pages of memory of its own */
    uint64_t page_bytes;         /* multiple of 4 KiB */
    uint64_t device_limit_bytes; /* of frames, within the budget; UINT64_MAX: the budget alone */
    uint64_t host_bytes;         /* of host slots; 0: none; UINT64_MAX: as they are needed */
    uint64_t host_slab_bytes;    /* of one allocation of host memory; 0: 16 MiB */
    uint32_t host_at_once;       /* all of host_bytes when opening, if it is a limit: where pinning
                                    memory takes long, before anybody waits for it */
    uint64_t disk_bytes;         /* of disk slots; 0: none */
    const char *disk_folder;
    pllm_disk_kind disk_kind;
    pllm_disk *disk; /* a backend to use instead (tests); taken over on success; NULL: open one */
    const char *member_name; /* of the budget; NULL: "frames" */
    uint32_t staging_count;  /* extents between disk and device; 0: 6 MiB in all, which stays under
                                the usual memlock limit; none without a disk */
} pllm_tiers_options;

/* Borrows device and budget (may be NULL where there are no frames). Errors: EINVAL, ENOMEM,
 * ENODEVMEM, EDEVICE, EIO, ELIMIT. */
int pllm_tiers_open(const pllm_context *context, pllm_device *device, pllm_budget *budget,
                    const pllm_tiers_options *options, pllm_tiers **tiers_out);
void pllm_tiers_close(pllm_tiers *tiers); /* no transfer in flight; NULL is fine */

uint64_t pllm_tiers_page_bytes(const pllm_tiers *tiers);
pllm_device *pllm_tiers_device(const pllm_tiers *tiers);

/* The lowest free frame that is backed, else the lowest free one, which is backed first (whole
 * chunks are mapped; frames may straddle chunks). ENODEVMEM (bare) when the limit or the budget is
 * reached: evict and retry. */
int pllm_tiers_frame_alloc(pllm_tiers *tiers, uint32_t *frame_out);
/* Under PLLM_CHECKS the frame is filled with NaN first. */
void pllm_tiers_frame_free(pllm_tiers *tiers, uint32_t frame);
pllm_va pllm_tiers_frame_va(const pllm_tiers *tiers, uint32_t frame);
void *pllm_tiers_frame_view(const pllm_tiers *tiers, uint32_t frame); /* NULL: CPU can't read it */
/* Frames that could be in use at once under the limits of this moment. */
uint32_t pllm_tiers_frame_limit(const pllm_tiers *tiers);
/* A new limit for frames. Frames in use above it stay until freed; pllm_tiers_frame_excess says how
 * many should go, and trim then gives chunks that hold no frame in use back to the budget. */
int pllm_tiers_set_device_limit(pllm_tiers *tiers, uint64_t bytes);
uint32_t pllm_tiers_frame_excess(const pllm_tiers *tiers);
/* 1: the budget wants bytes back, which takes whole chunks and not just frames. */
int pllm_tiers_is_over(const pllm_tiers *tiers);
/* 1: the frame lies above the limit of this moment; evicting such frames first is what empties
 * chunks, so that trim has something to give back. */
int pllm_tiers_frame_is_high(const pllm_tiers *tiers, uint32_t frame);
uint64_t pllm_tiers_trim(pllm_tiers *tiers); /* bytes given back */

/* place: AT_HOST or AT_DISK. after: the slot to follow, or PLLM_NONE to begin a stream.
 * ELIMIT (bare) when the place is full. */
int pllm_tiers_slot_alloc(pllm_tiers *tiers, pllm_place place, uint32_t after, uint32_t *slot_out);
void pllm_tiers_slot_free(pllm_tiers *tiers, pllm_place place, uint32_t slot);
void *pllm_tiers_host_slot(const pllm_tiers *tiers, uint32_t slot);
uint32_t pllm_tiers_extent_pages(const pllm_tiers *tiers); /* pages of one extent */

/* For transfer.c. NULL and 0 where there is no disk. */
pllm_disk *pllm_tiers_disk(const pllm_tiers *tiers);
void *pllm_tiers_staging(const pllm_tiers *tiers, uint32_t *page_count_out);
uint32_t pllm_tiers_slot_count(const pllm_tiers *tiers, pllm_place place); /* that exist now */
void pllm_tiers_check(const pllm_tiers *tiers); /* invariants, for tests; aborts when broken */

typedef struct pllm_tiers_stats {
    uint64_t page_bytes;
    uint32_t frames_used, frames_peak, frame_limit;
    uint32_t host_used, host_peak, host_count, disk_used, disk_peak, disk_count;
    const char *disk_name, *disk_note; /* "" where there is no disk */
} pllm_tiers_stats;
void pllm_tiers_stats_get(const pllm_tiers *tiers, pllm_tiers_stats *stats_out);

#endif
