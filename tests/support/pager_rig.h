/* pager_rig.h - a pager with its tiers, budget and device, for tests; and pages whose bytes say
 * which page and version they are. */
#ifndef PLLM_TESTS_PAGER_RIG_H
#define PLLM_TESTS_PAGER_RIG_H

#include "pager/pager.h"

typedef struct pager_rig {
    const pllm_context *context;
    pllm_device *device; /* opened on the host device unless given */
    int borrowed_device;
    pllm_budget *budget;
    pllm_pager *pager;
    uint64_t page_bytes;
} pager_rig;

typedef struct pager_rig_options {
    pllm_device *device;        /* NULL: a host device of its own */
    uint64_t page_bytes;        /* 0: 4096 */
    uint32_t frames, frame_max; /* frames allowed; reserved (0: frames) */
    uint32_t host_slots, disk_slots;
    pllm_disk *disk;
    pllm_disk_kind disk_kind;
    pllm_pager_options pager; /* struct_bytes is filled */
} pager_rig_options;

/* On failure nothing is left open. */
int pager_rig_open(const pllm_context *context, const pager_rig_options *options, pager_rig *rig);
void pager_rig_close(pager_rig *rig);

/* The content of version v of page p, and whether a page has it. */
void pager_rig_fill(void *view, uint64_t bytes, uint32_t page, uint32_t version);
int pager_rig_matches(const void *view, uint64_t bytes, uint32_t page, uint32_t version);

/* New page with version 0 written and sealed, unpinned: a status. */
int pager_rig_page(pager_rig *rig, pllm_page after, uint32_t rank, pllm_page *page_out);

#endif
