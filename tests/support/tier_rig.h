/* tier_rig.h - tiers and a transfer engine on a device and disks of the test's choice, and pages
 * whose bytes say which page they are. */
#ifndef PLLM_TESTS_TIER_RIG_H
#define PLLM_TESTS_TIER_RIG_H

#include "tier/disk_sim.h"
#include "tier/transfer.h"

typedef struct tier_rig {
    const pllm_context *context;
    pllm_device *device; /* a host device of its own unless given */
    int borrowed_device;
    pllm_budget *budget;
    pllm_tiers *tiers;
    pllm_transfers *transfers;
    uint64_t page_bytes;
} tier_rig;

typedef struct tier_rig_options {
    pllm_device *device; /* NULL: a host device; otherwise borrowed */
    uint64_t page_bytes; /* 0: 4096 */
    uint32_t frames, host_slots, disk_slots;
    pllm_disk *disk; /* taken over, also when opening fails; NULL: a real one if disk_slots */
    pllm_disk_kind disk_kind;
    const char *folder; /* NULL: the build folder */
    uint32_t staging_count, ticket_max;
    uint64_t fingerprint;
} tier_rig_options;

/* On failure nothing is left open. */
int tier_rig_open(const pllm_context *context, const tier_rig_options *options, tier_rig *rig);
void tier_rig_close(tier_rig *rig);

/* Containers often forbid io_uring. Then opening it must say EUNSUPPORTED and why, which this
 * checks, and the cases that need it are left out, which it prints. */
int tier_rig_has_uring(void);

/* A disk in memory inside a faulty one. NULL: there was no memory for it. */
pllm_disk *tier_rig_disk(const pllm_context *context, pllm_device *device, uint64_t bytes,
                         uint64_t seed, const pllm_faulty_disk_options *faults);

void tier_rig_fill(void *page, uint64_t bytes, uint64_t content);
int tier_rig_matches(const void *page, uint64_t bytes, uint64_t content);
/* The frame's own bytes. */
void *tier_rig_view(const tier_rig *rig, uint32_t frame);

/* Submits; the status. */
int tier_rig_move(tier_rig *rig, uint32_t from, uint32_t to, uint32_t frame, uint32_t slot,
                  uint32_t priority, uint64_t tag, pllm_ticket *ticket);
/* Submits, waits for ever and releases; the status. */
int tier_rig_move_now(tier_rig *rig, uint32_t from, uint32_t to, uint32_t frame, uint32_t slot,
                      uint64_t tag);

#endif
