/* vmm.h - device memory shared by models: each has a large range of addresses, all draw on one
 * physical limit.
 *
 * A vmm is one device with one limit. Models register in it with a name and a virtual capacity; a
 * registered model is a pool: one reserved range, cut into pages, backed with physical memory page
 * by page as it is allocated. Addresses never change. Two ways to allocate, which may be mixed:
 *
 *     by place:  pllm_vmm_allocate(pool, offset, bytes, &address)      the caller says where
 *     by block:  pllm_vmm_block_allocate(pool, &options, &address)     the pool finds room
 *                pllm_vmm_block_grow(pool, address, bytes)             grows where it is
 *
 *     pllm_device_open(NULL, "host", &device);
 *     pllm_vmm_options options = {.struct_bytes = sizeof options, .limit_bytes = 1 << 30};
 *     pllm_vmm_open(NULL, device, &options, &vmm);
 *     pllm_vmm_pool_options model = {.struct_bytes = sizeof model, .capacity_bytes = 64ull << 30};
 *     pllm_vmm_register(vmm, "llama", &model, &pool);
 *     pllm_vmm_allocate(pool, 0, 100 << 20, &address);
 *
 * Exactness: an allocation is exact to the byte; a page is backed while any byte of it is
 * allocated, so neighbours that share a page don't disturb each other. Physical use is counted in
 * pages.
 *
 * Bytes that are new read as zero where the pool zeroes on reuse, or where the page was never used
 * before; otherwise they are whatever the memory held.
 *
 * Who gets what. An allocation that does not fit takes, in this order: what models keep or have
 * mapped ahead; what lower processes of the ledger give back; what models of lower priority give
 * back by their reclaim, the lowest first, of equals who has most above its minimum. One inside the
 * model's own minimum asks models of any priority. Nobody is asked for what is below its minimum.
 * Where all of them together have too little it is refused at once; otherwise it waits, wait_ms at
 * most, and what comes free meanwhile is not given to models of lower priority. A model's own
 * reclaim is not called for its own allocations: who is refused frees, and tries again.
 *
 * Addresses that are not allocated: on the host device touching them faults; on a GPU a kernel that
 * touches them ruins its context for the whole process. A pool opened with zero_behind has a page
 * of zeros there instead: a stray read gets zeros, a stray write still faults. Bytes next to an
 * allocation in a page that it shares are backed, whatever they hold; builds with checks fill them
 * with 0xdb when they are freed.
 *
 * Units: *_bytes and offsets are bytes. Limits count pages that are mapped or kept.
 * Threads: safe from many threads, but for unregister and close, which must be a handle's last
 * call. A growth into memory that has been mapped ahead waits for no driver call. Errors: every
 * refusal has a sentence (pllm_last_error). A call that fails has changed nothing. */
#ifndef PAGEDLLM_VMM_H
#define PAGEDLLM_VMM_H

#include "device.h"

#ifdef __cplusplus
extern "C" {
#endif

#ifndef PLLM_UNLIMITED
#define PLLM_UNLIMITED UINT64_MAX
#endif

typedef struct pllm_vmm pllm_vmm;           /* a device and its limit */
typedef struct pllm_vmm_pool pllm_vmm_pool; /* a registered model */

#define PLLM_VMM_NAME_BYTES 64 /* of a model's name, with its end */

typedef struct pllm_vmm_options {
    uint32_t struct_bytes;  /* sizeof(pllm_vmm_options) */
    uint32_t no_background; /* 1: no thread for mapping ahead and fenced deallocations: they go on
                               in pllm_vmm_poll and in calls of their pool */
    uint64_t limit_bytes;   /* physical bytes of all models together; 0: what the device has */
    /* A limit shared with other processes: see ledger.h. ledger NULL: none. All that the models
     * take is charged there too. Who may ask this process for memory gets what is kept or mapped
     * ahead, then what the models' reclaim gives back; other allocations stay. */
    const char *ledger;          /* its name; made with the next if there is none */
    uint64_t ledger_limit_bytes; /* of the ledger, by who makes it; 0: it must exist */
    uint64_t
        ledger_minimum_bytes; /* that this process is sure of; models' minimums hold within it */
    int32_t ledger_priority;  /* higher makes lower give back */
    uint32_t wait_ms; /* how long an allocation waits for what other processes, and again for what
                         other models, were asked to give back; 0: 500 */
    const char *ledger_name; /* of this process among the members; NULL: by its pid */
} pllm_vmm_options;

/* Ownership: borrows context (may be NULL) and device; caller owns *vmm_out.
 * Errors: EINVAL, ENOMEM, EDEVICE; the ledger's (ledger.h: its open and join); then *vmm_out is
 * NULL.
 */
PLLM_API int pllm_vmm_open(const pllm_context *context, pllm_device *device,
                           const pllm_vmm_options *options, pllm_vmm **vmm_out);
PLLM_API void pllm_vmm_close(pllm_vmm *vmm); /* unregisters what is left; NULL is fine */

/* A new limit, at once. Where more is held, kept and unused pages go first, and models that have a
 * reclaim are asked, not waited for; other allocations stay, and nothing more is mapped until they
 * are below. Errors: EINVAL (0), ENODEVMEM (minimums would not
 * fit any more). */
PLLM_API int pllm_vmm_set_limit(pllm_vmm *vmm, uint64_t limit_bytes);

/* ---- models ---- */

typedef struct pllm_vmm_pool_options {
    uint32_t struct_bytes;   /* sizeof(pllm_vmm_pool_options) */
    uint32_t zero_on_reuse;  /* 1: allocated bytes always read as zero at first */
    uint32_t zero_behind;    /* 1: zeros to read where nothing is allocated; costs a page of memory,
                                and as many more driver calls as pages change */
    int32_t priority;        /* among the models of this vmm: higher makes lower give back */
    uint64_t capacity_bytes; /* addresses; rounded up to whole pages */
    uint64_t page_bytes;     /* a power of two, at least 64 KiB; on CUDA a multiple of the driver's
                                granularity; at most 1 GiB. 0: the device's preference */
    uint64_t minimum_bytes;  /* physical bytes that no other model can take */
    uint64_t limit_bytes;    /* physical bytes of this model; 0: as many as its capacity */
    uint64_t kept_bytes;     /* physical memory of freed pages that is kept for the next ones, until
                                somebody needs it; 0: none; PLLM_UNLIMITED */
    uint64_t ahead_bytes;    /* what is mapped behind whatever grew last, from memory that nobody
                                else needs, and again when half of it is used; 0: none */
    /* Give back about `bytes` of what this model has allocated (by deallocate, block_free, a block
     * made shorter, at once or behind a stream) before deadline_ns of CLOCK_MONOTONIC, because a
     * model of higher priority, a model's minimum, a lowered limit, or another process of the
     * ledger needs it. NULL: only what is kept or mapped ahead is taken.
     * Returns how much of that it has given back by now or will have by then; 0: nothing can go,
     * and until then it is not asked again. Called again while it owes what it promised. Physical
     * memory goes in whole pages: what shares a page with something that stays gives nothing.
     * Called on a thread that this model has for that, one call at a time, without locks. It may
     * call everything of pool and its vmm, and allocate too (but then no model is asked for it):
     * only not unregister this model nor close the vmm, which wait for it to return. So must not
     * who holds a lock that it takes; and who allocates holding one makes it late.
     * Late is who has not returned, or given what it promised, at the deadline: then who waited is
     * refused, and the model is not asked for a second, nor before it returns. What it frees later
     * is free all the same. */
    uint64_t (*reclaim)(void *user, pllm_vmm_pool *pool, uint64_t bytes, uint64_t deadline_ns);
    void *user;
} pllm_vmm_pool_options;

/* Reserves the addresses and backs none. name: 1 to 63 characters, none of them a control
 * character. Errors: EINVAL, EEXIST (the name), ENODEVMEM (the minimum does not fit), ELIMIT (too
 * many pages), ENOMEM, EDEVICE; then *pool_out is NULL. */
PLLM_API int pllm_vmm_register(pllm_vmm *vmm, const char *name,
                               const pllm_vmm_pool_options *options, pllm_vmm_pool **pool_out);
/* Frees everything the model has, waiting for its fenced deallocations. No work that touches it may
 * be in flight. NULL is fine. */
PLLM_API void pllm_vmm_unregister(pllm_vmm_pool *pool);
/* Errors: ENOTFOUND; then *pool_out is NULL. */
PLLM_API int pllm_vmm_find(pllm_vmm *vmm, const char *name, pllm_vmm_pool **pool_out);
/* New minimum and limit, while running; limit 0: the capacity. Errors: EINVAL, ENODEVMEM. */
PLLM_API int pllm_vmm_pool_set(pllm_vmm_pool *pool, uint64_t minimum_bytes, uint64_t limit_bytes);

PLLM_API uint64_t pllm_vmm_base(const pllm_vmm_pool *pool);     /* the first address */
PLLM_API uint64_t pllm_vmm_capacity(const pllm_vmm_pool *pool); /* bytes, whole pages */
PLLM_API uint64_t
pllm_vmm_page_bytes(const pllm_vmm_pool *pool); /* what physical use is counted in */

/* ---- allocating by place ---- */

/* Allocates [offset, offset + bytes) and backs it: all of it or nothing. *address_out (may be NULL)
 * is base + offset.
 * Errors: EINVAL (no bytes; beyond the capacity), EEXIST (a byte of it is allocated), EBUSY (a byte
 * of it waits for a stream), ENODEVMEM (says which limit), ENOMEM, EDEVICE. */
PLLM_API int pllm_vmm_allocate(pllm_vmm_pool *pool, uint64_t offset, uint64_t bytes,
                               uint64_t *address_out);
/* Gives [offset, offset + bytes) back: any part of what was allocated by place, or several such
 * allocations. No work that touches it may be in flight. Errors: EINVAL (no bytes; beyond the
 * capacity; a byte of it is not allocated by place), ENOMEM (freeing the middle of an allocation).
 */
PLLM_API int pllm_vmm_deallocate(pllm_vmm_pool *pool, uint64_t offset, uint64_t bytes);
/* The same once all work now in the stream is done; returns at once. Until then the range can't be
 * allocated again, and its pages are counted. The stream may be closed meanwhile.
 * Errors: as deallocate; EDEVICE. */
PLLM_API int pllm_vmm_deallocate_after(pllm_vmm_pool *pool, uint64_t offset, uint64_t bytes,
                                       pllm_stream *stream);
/* 1: every byte of the range is allocated, and so backed; 0: not. Errors: EINVAL (no bytes; beyond
 * the capacity). */
PLLM_API int pllm_vmm_is_mapped(pllm_vmm_pool *pool, uint64_t offset, uint64_t bytes);

/* ---- blocks: the pool finds the place ---- */

typedef struct pllm_vmm_block_options {
    uint32_t struct_bytes;    /* sizeof(pllm_vmm_block_options) */
    uint32_t alignment_bytes; /* a power of two; 0: 256 */
    uint64_t bytes;           /* backed at once; more than 0 */
    uint64_t room_bytes;      /* addresses to be kept free behind it, into which it can grow */
} pllm_vmm_block_options;

/* The lowest place that fits. Errors: EINVAL, ELIMIT (no run of free addresses is long enough),
 * ENODEVMEM, ENOMEM, EDEVICE; then *address_out is 0. */
PLLM_API int pllm_vmm_block_allocate(pllm_vmm_pool *pool, const pllm_vmm_block_options *options,
                                     uint64_t *address_out);
/* The block at address is now `bytes` long; its bytes so far stay. Longer: into its room, then into
 * free addresses behind it. Shorter: the end goes (no work that touches it may be in flight), and
 * becomes room.
 * Errors: EINVAL (no block there; no bytes), ELIMIT (what is behind it is taken: allocate anew and
 * copy), EBUSY (what is behind it waits for a stream), ENODEVMEM, ENOMEM, EDEVICE. */
PLLM_API int pllm_vmm_block_grow(pllm_vmm_pool *pool, uint64_t address, uint64_t bytes);
/* Block and room. Errors: EINVAL (no block begins there). _after: as deallocate_after. */
PLLM_API int pllm_vmm_block_free(pllm_vmm_pool *pool, uint64_t address);
PLLM_API int pllm_vmm_block_free_after(pllm_vmm_pool *pool, uint64_t address, pllm_stream *stream);

/* ---- upkeep ---- */

/* Finishes what is due: fenced deallocations whose work is done, mapping ahead. The background does
 * this by itself. Returns how many deallocations still wait. */
PLLM_API int pllm_vmm_poll(pllm_vmm *vmm);
/* Gives back to the device what is mapped but not allocated, and what is kept; *freed_bytes_out
 * (may be NULL) is how much. Nothing is mapped ahead again before the next allocation. */
PLLM_API void pllm_vmm_compact(pllm_vmm *vmm, uint64_t *freed_bytes_out);
PLLM_API void pllm_vmm_pool_compact(pllm_vmm_pool *pool, uint64_t *freed_bytes_out);

typedef struct pllm_vmm_pool_stats {
    uint32_t struct_bytes; /* in: sizeof(pllm_vmm_pool_stats) */
    uint32_t pending;      /* deallocations that wait for a stream */
    char name[PLLM_VMM_NAME_BYTES];
    uint64_t capacity_bytes, page_bytes, minimum_bytes, limit_bytes;
    uint64_t allocations;       /* by place and blocks, now */
    uint64_t allocated_bytes;   /* exact */
    uint64_t physical_bytes;    /* charged to the limit: mapped_bytes + kept_bytes, and the zeros of
                                   zero_behind */
    uint64_t mapped_bytes;      /* pages that are backed */
    uint64_t mapped_peak_bytes; /* the most so far */
    uint64_t ahead_bytes;       /* of mapped_bytes: nothing allocated in them */
    uint64_t pending_bytes;     /* waiting for a stream */
    uint64_t kept_bytes;
    uint64_t free_bytes, free_run_bytes; /* addresses: all, and the longest run */
    double fragmentation;                /* 1 - free_run_bytes / free_bytes; 0 with none free */
    uint64_t created_pages, reused_pages;
    uint64_t asked_count, given_back_bytes, late_count; /* of its reclaim */
} pllm_vmm_pool_stats;
PLLM_API int pllm_vmm_pool_stats_get(pllm_vmm_pool *pool, pllm_vmm_pool_stats *stats);

typedef struct pllm_vmm_stats {
    uint32_t struct_bytes; /* in: sizeof(pllm_vmm_stats) */
    uint32_t models;
    uint64_t limit_bytes, physical_bytes, physical_peak_bytes;
    uint64_t excess_bytes;  /* above a limit that was lowered */
    uint64_t refused_count; /* times that a limit said no */
} pllm_vmm_stats;
PLLM_API int pllm_vmm_stats_get(pllm_vmm *vmm, pllm_vmm_stats *stats);
/* Fills up to stats_max, in order of registration; *count_out is how many models there are. */
PLLM_API int pllm_vmm_list(pllm_vmm *vmm, pllm_vmm_pool_stats *stats, uint32_t stats_max,
                           uint32_t *count_out);

/* ---- sharing with other processes ---- */

/* What another process needs beside the descriptors, one a page, in order. */
typedef struct pllm_vmm_share {
    uint32_t struct_bytes, page_count; /* sizeof(pllm_vmm_share) */
    uint64_t page_bytes;
    uint64_t offset, bytes; /* the range, from the beginning of the first page */
} pllm_vmm_share;

/* Descriptors for the pages behind an allocated range; the caller passes them on and closes them.
 * Whole pages are shown, with what else is in them. read_only: on the host device they can't be
 * mapped writable; on CUDA it is the importer who obeys. An exported page is never used again once
 * it is freed: its memory is gone when the last importer closes. It is charged, to the limit and in
 * the ledger, until it is freed here, not until then: a descriptor does not tell who else has it.
 * So free it once its importers have closed; a program whose importers may outlive it tells the
 * ledger who they are as a member of its own (pllm_ledger_hold).
 * Errors: EINVAL (not allocated; descriptor_max is less than share_out->page_count, which is filled
 * in), EUNSUPPORTED, EDEVICE; then no descriptor is open. */
PLLM_API int pllm_vmm_export(pllm_vmm_pool *pool, uint64_t offset, uint64_t bytes,
                             uint32_t read_only, pllm_vmm_share *share_out, int *descriptors,
                             uint32_t descriptor_max);

typedef struct pllm_vmm_import pllm_vmm_import;
/* Maps an exported range, in one piece; it counts against its exporter's limit, until that frees
 * it. Descriptors stay the caller's. Errors: EINVAL, ENOMEM, EDEVICE; then *import_out is NULL. */
PLLM_API int pllm_vmm_import_open(const pllm_context *context, pllm_device *device,
                                  const pllm_vmm_share *share, const int *descriptors,
                                  uint32_t read_only, pllm_vmm_import **import_out);
PLLM_API uint64_t pllm_vmm_import_address(const pllm_vmm_import *import); /* of the range */
PLLM_API void pllm_vmm_import_close(pllm_vmm_import *import); /* no work in flight; NULL is fine */

#ifdef __cplusplus
}
#endif
#endif
