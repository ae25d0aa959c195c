/* elastic.h - the inside of vmm.h: a vmm, its pools, and what its parts ask of each other.
 *
 *   vmm    budget (one limit)      pools: list of          background: one thread
 *   pool   spans   whose is each byte                      spans.h
 *          used    [page] how many bytes of it are anybody's
 *          region  which pages are backed, kept chunks     region.h
 *
 * A page is backed while used is not 0, and may be when it is: such a page is idle, mapped ahead of
 * somebody who grows. Bytes given back behind a stream stay used until its work is done.
 *
 * Mapping and unmapping take long, so they are done without the pool's lock: by one thread a pool
 * at a time, the mapper. Who finds its pages backed need not wait for it.
 *
 * Locks, in this order: vmm->lock (the list of pools, pins), pool->lock (all else of a pool),
 * vmm->wake_lock and the budget's (leaves). vmm->ask_lock, under either of the first two. Who holds
 * a pool's lock never takes vmm->lock. A pool that the background is in is pinned, and unregister
 * waits for that. */
#ifndef PLLM_VMM_ELASTIC_H
#define PLLM_VMM_ELASTIC_H

#include <pthread.h>
#include <pagedllm/vmm.h>
#include "vmm/ledger.h"
#include "vmm/region.h"
#include "vmm/spans.h"

enum { PLLM_VMM_POINTS = 16 };

/* Bytes given back behind a stream: span_bytes are PENDING, of which the first `bytes` are used. */
typedef struct pllm_vmm_fence {
    struct pllm_vmm_fence *next;
    pllm_event *event;
    uint64_t offset, bytes, span_bytes;
} pllm_vmm_fence;

/* A model that can be asked to give back what it has allocated; elastic_ask.c. The first two are
 * fixed, the rest is under vmm->ask_lock. */
typedef struct pllm_vmm_asked {
    uint64_t (*reclaim)(void *user, pllm_vmm_pool *pool, uint64_t bytes, uint64_t deadline_ns);
    void *user;
    pthread_t thread;
    pthread_cond_t wake;
    uint32_t has_thread, stopping, running; /* running: reclaim is */
    uint32_t request, seen;                 /* numbers of the last that was made, and taken up */
    uint64_t bytes, deadline_ns;          /* asked for and not answered, or promised; 0: nothing */
    uint64_t owed_from, called_ns;        /* what was charged, and when, at its answer */
    uint64_t floor_bytes, floor_until_ns; /* it said, or showed, that it goes no lower for now */
    uint64_t planned_bytes;
    uint64_t count, given_back_bytes, late_count;
} pllm_vmm_asked;

struct pllm_vmm_pool {
    pllm_vmm *vmm;
    pllm_vmm_pool *next; /* these two under vmm->lock */
    uint32_t pins;
    char name[PLLM_VMM_NAME_BYTES]; /* down to here fixed when opened, but for the limits */
    pllm_device *device;
    const pllm_context *context;
    int32_t priority;
    pllm_vmm_asked asked;
    uint64_t base, capacity, page_bytes, zeros_bytes, minimum_bytes, limit_bytes;
    uint32_t page_max, ahead_pages, zero_on_reuse;
    pthread_mutex_t lock;
    pthread_cond_t changed; /* the mapper is done */
    pllm_budget_member *member;
    pllm_region *region;
    pllm_spans spans;
    uint32_t *used;      /* [page_max] allocated and pending bytes */
    uint8_t *dirty;      /* [page_max] 1: bytes of it were freed while it stayed backed */
    uint32_t mapping;    /* somebody is the mapper */
    uint32_t idle_count; /* pages that are backed and not used */
    uint32_t fence_count;
    pllm_vmm_fence *fences, *spare_fences; /* spare: their events are done */
    uint64_t points[PLLM_VMM_POINTS];      /* ends of what grew, to map ahead of; the newest last */
    uint32_t point_count;
    pllm_stream *clearing; /* fills under the lock; NULL where nobody asks for it */
};

struct pllm_vmm {
    const pllm_context *context;
    pllm_device *device;
    pllm_budget *budget;
    pllm_ledger *ledger; /* with its member: NULL if no other process shares the limit */
    pllm_ledger_member *ledger_member;
    pthread_mutex_t lock;
    pthread_cond_t unpinned;
    pllm_vmm_pool *pools; /* in order of registration */
    pthread_t thread;
    uint32_t has_thread;
    pthread_mutex_t wake_lock;
    pthread_cond_t wake;
    uint32_t wanted, stopping; /* under wake_lock */
    uint64_t wait_ns;
    pthread_mutex_t ask_lock; /* these three: elastic_ask.c */
    pthread_cond_t answered;
    uint64_t given_back_bytes; /* by all models that were asked */
};

/* elastic.c. Gets the background going; any lock may be held. */
void pllm_vmm_wake(pllm_vmm *vmm);
/* Takes at least `bytes` of unused memory from pools, if there are as many; returns how many. full:
 * the device is, and not the budget, so that minimums don't matter. asking may be NULL. No lock may
 * be held. */
uint64_t pllm_vmm_reclaim(pllm_vmm *vmm, const pllm_vmm_pool *asking, uint64_t bytes, int full);
/* What this process could charge in the ledger without anybody else's giving back. */
uint64_t pllm_vmm_ledger_free(pllm_vmm *vmm);
int pllm_vmm_cond_init(pthread_cond_t *cond); /* whose times are CLOCK_MONOTONIC's; or an errno */
/* For a thread, with all signals blocked: they are for the program's own. 0, or an errno. */
int pllm_vmm_thread_start(pthread_t *thread, void *(*run)(void *), void *argument);

/* elastic_ask.c; no lock may be held. ask: makes models of lower priority than the pool's (minimum:
 * of any) give back bytes, and waits a moment. 1: there may be room now, or later: look again; 0:
 * there will be none, or it is too late. */
int pllm_vmm_ask(pllm_vmm_pool *pool, uint64_t bytes, int minimum, uint64_t deadline_ns);
/* Makes any models give back up to bytes; waits until they have answered. How much they gave, or
 * promised. */
uint64_t pllm_vmm_ask_all(pllm_vmm *vmm, uint64_t bytes, uint64_t deadline_ns);
void pllm_vmm_ask_excess(pllm_vmm *vmm);        /* what is beyond limits; waits for nothing */
int pllm_vmm_asked_open(pllm_vmm_pool *pool);   /* its thread, if it has a reclaim. ENOMEM */
void pllm_vmm_asked_close(pllm_vmm_pool *pool); /* waits for reclaim to return */

/* elastic_pool.c; the lock of the pool is held, and let go of by whatever maps or unmaps: all but
 * is_ready, touch, grown and check. */
int pllm_vmm_pool_place(pllm_vmm_pool *pool, uint64_t offset, uint64_t bytes, pllm_span_kind kind);
int pllm_vmm_pool_is_ready(const pllm_vmm_pool *pool, uint64_t offset, uint64_t bytes);
int pllm_vmm_pool_back(pllm_vmm_pool *pool, uint64_t offset, uint64_t bytes);
void pllm_vmm_pool_touch(pllm_vmm_pool *pool, uint64_t offset, uint64_t bytes, int more);
void pllm_vmm_pool_untouch(pllm_vmm_pool *pool, uint64_t offset, uint64_t bytes);
void pllm_vmm_pool_grown(pllm_vmm_pool *pool, uint64_t end);
int pllm_vmm_pool_give(pllm_vmm_pool *pool, uint64_t offset, uint64_t bytes, uint64_t span_bytes,
                       pllm_stream *stream);
void pllm_vmm_pool_drop(pllm_vmm_pool *pool, uint64_t offset,
                        uint64_t bytes); /* not used any more */
void pllm_vmm_pool_settle(pllm_vmm_pool *pool);
void pllm_vmm_pool_ahead(pllm_vmm_pool *pool);
uint64_t pllm_vmm_pool_yield(pllm_vmm_pool *pool, uint64_t bytes); /* unused memory, bytes freed */
uint64_t pllm_vmm_pool_shed(pllm_vmm_pool *pool);    /* the same, while a limit is passed */
void pllm_vmm_pool_check(const pllm_vmm_pool *pool); /* asserts elastic_pool.c's list */

#endif
