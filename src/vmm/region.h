/* region.h - reserved address space, backed chunk by chunk.
 *
 * A region reserves page_max pages of chunk_bytes at once and backs any of them on demand with
 * chunks charged to a budget member. Mapping a range is all or nothing. Unmapped chunks are kept
 * (up to kept_max) and mapped again, since creating and first touching are what cost; kept chunks
 * stay charged until trimmed. Unmapping may be fenced by an event: the chunk leaves the address
 * range only after the event is done (pllm_region_settle, called when idle), and until then its
 * pages can't be mapped again.
 * Threads: one caller at a time per region; but see pllm_region_map_run. */
#ifndef PLLM_VMM_REGION_H
#define PLLM_VMM_REGION_H

#include "vmm/budget.h"

typedef struct pllm_region pllm_region;
typedef struct pllm_region_options {
    uint32_t struct_bytes;
    uint32_t page_max;      /* pages of chunk_bytes reserved */
    uint64_t chunk_bytes;   /* multiple of the device's granularity; 0: the device's preference */
    uint32_t kept_max;      /* chunks kept for re-mapping */
    uint32_t zero_on_reuse; /* kept chunks are filled with zero before they are mapped again */
    uint32_t zero_behind;   /* zeros can be read where no page is backed; a write there faults */
} pllm_region_options;

/* Borrows device and member (both outlive the region); the member is used by this region alone.
 * Errors: EINVAL, ENOMEM, EDEVICE; then *region_out is NULL. */
int pllm_region_open(const pllm_context *context, pllm_device *device, pllm_budget_member *member,
                     const pllm_region_options *options, pllm_region **region_out);
void pllm_region_close(pllm_region *region); /* waits for fences, unmaps all; NULL is fine */
/* Backs pages [page_first, page_first + page_count): all or none; pages already backed are kept as
 * they are. Errors: EINVAL (outside the region), ENODEVMEM (bare), EBUSY (a fenced page is not yet
 * free), ENOMEM, EDEVICE. */
int pllm_region_map(pllm_region *region, uint32_t page_first, uint32_t page_count);

/* The same in three steps, for who has a lock: begin and end under it, run without it, so that what
 * takes long, the device's calls, holds nobody up. Between begin and end other calls of the region
 * may be made, but not another begin; the pages of the work are neither backed nor free then.
 * Errors: begin as map (then there is nothing to run or end). What run returned goes to end, which
 * returns it; after a failure all is as it was before begin. */
typedef struct pllm_region_work {
    uint32_t page_first, page_end, moving_count, created_count;
} pllm_region_work;
int pllm_region_map_begin(pllm_region *region, uint32_t page_first, uint32_t page_count,
                          pllm_region_work *work_out);
int pllm_region_map_run(pllm_region *region, const pllm_region_work *work);
int pllm_region_map_end(pllm_region *region, const pllm_region_work *work, int status);

/* A charge may have to wait for other processes: then without the lock, too. pay_begin says how
 * many chunks a map of the range would charge now; the caller charges as many to the region's
 * member; map_paid is begin, but takes those first and credits what it does not need (all, if it
 * fails). pay_cancel: nothing was charged. */
uint32_t pllm_region_pay_begin(pllm_region *region, uint32_t page_first, uint32_t page_count);
void pllm_region_pay_cancel(pllm_region *region);
int pllm_region_map_paid(pllm_region *region, uint32_t page_first, uint32_t page_count,
                         uint32_t paid_count, pllm_region_work *work_out);

/* Unmapping so: pages that are mapped go, others are skipped. begin may be called several times for
 * one work, which is zero at first. One such work at a time; none together with a mapping one whose
 * range it meets. Errors: EINVAL (outside the region). */
int pllm_region_unmap_begin(pllm_region *region, uint32_t page_first, uint32_t page_count,
                            pllm_region_work *work);
void pllm_region_unmap_run(pllm_region *region, const pllm_region_work *work);
void pllm_region_unmap_end(pllm_region *region, const pllm_region_work *work);

/* Takes the backing away, now (fence NULL) or once the fence is done. The event is borrowed until
 * a settle, map or close has seen it done: until then it may neither be closed nor recorded anew.
 * Pages without backing are skipped. */
int pllm_region_unmap(pllm_region *region, uint32_t page_first, uint32_t page_count,
                      pllm_event *fence);
uint32_t pllm_region_settle(
    pllm_region *region); /* finishes due unmappings; returns those pending */
uint64_t pllm_region_trim(pllm_region *region,
                          uint32_t kept_max); /* destroys kept chunks; bytes freed */
/* A descriptor of the chunk behind a mapped page, for another process. Its bytes are that one's too
 * from here on: once unmapped the chunk is destroyed, never kept. Errors: EINVAL (not mapped),
 * EUNSUPPORTED, EDEVICE. */
int pllm_region_export(pllm_region *region, uint32_t page, uint32_t read_only, int *fd_out);
int pllm_region_is_exported(const pllm_region *region, uint32_t page);
int pllm_region_is_mapped(const pllm_region *region, uint32_t page);
pllm_va pllm_region_base(const pllm_region *region);
uint64_t pllm_region_chunk_bytes(const pllm_region *region);
typedef struct pllm_region_stats {
    uint32_t mapped_count, kept_count, fenced_count, mapped_peak;
    uint64_t map_calls, reused_chunks, created_chunks;
} pllm_region_stats;
void pllm_region_stats_get(const pllm_region *region, pllm_region_stats *stats_out);

/* Asserts the invariants that region.c lists; called after every change in checked builds. */
void pllm_region_check(const pllm_region *region);

/* A workspace: one mapped block of at least bytes, charged to its own member of the budget. */
typedef struct pllm_workspace pllm_workspace;
int pllm_workspace_open(const pllm_context *context, pllm_device *device, pllm_budget *budget,
                        const char *name, uint64_t bytes, pllm_workspace **workspace_out);
void pllm_workspace_close(pllm_workspace *workspace); /* NULL is fine */
pllm_va pllm_workspace_va(const pllm_workspace *workspace);
uint64_t pllm_workspace_bytes(const pllm_workspace *workspace);

#endif
