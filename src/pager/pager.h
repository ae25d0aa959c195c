/* pager.h - which pages are on the device now, and which come next.
 *
 * A page is an index into flat arrays: where it is (frame, home slot), pins, dirty, generation.
 * A page may be touched only while pinned. Pinning makes pages resident, evicting others by
 * policy; eviction of a clean page drops its frame, of a dirty one writes it to its home first.
 * A sealed page never changes again: once its copy is written behind, evicting it costs nothing.
 * Homes are given when first needed: a host slot while there is one, else a disk slot, beside
 * the home of the page it follows. Without any room for a home a dirty page can't be evicted.
 *
 * Life of a page: new -> (pin NEW) resident, dirty -> (seal) immutable -> (write-behind) clean
 *   -> (evict) home only -> (pin or prefetch) resident, clean -> ... -> free.
 *
 * Threads: one caller at a time per pager. Nothing happens behind the caller's back except what
 * streams and disk do: prefetch and write-behind advance in poll, pin and unpin. */
#ifndef PLLM_PAGER_PAGER_H
#define PLLM_PAGER_PAGER_H

#include "pager/policy.h"
#include "tier/transfer.h"

typedef struct pllm_pager pllm_pager;
typedef uint32_t pllm_page;

typedef enum pllm_prefetch_kind { PLLM_PREFETCH_NONE, PLLM_PREFETCH_SEQUENTIAL } pllm_prefetch_kind;

/* "sequential", "none"; EINVAL with a sentence for any other name. */
int pllm_prefetch_from_name(const char *name, pllm_prefetch_kind *kind_out);

typedef struct pllm_pager_options {
    uint32_t struct_bytes;
    uint32_t page_max;
    pllm_policy_kind policy;
    pllm_prefetch_kind prefetch;
    uint32_t prefetch_max; /* pages prefetched and not yet used at once; 0: a third of frames */
    uint32_t record_max;   /* accesses to keep for replay; 0: none */
    uint64_t fingerprint;
    uint32_t format; /* a pllm_dtype */
} pllm_pager_options;

/* On success takes over tiers; on failure they stay the caller's. Errors: EINVAL, ENOMEM, EDEVICE.
 */
int pllm_pager_open(const pllm_context *context, pllm_tiers *tiers,
                    const pllm_pager_options *options, pllm_pager **pager_out);
void pllm_pager_close(pllm_pager *pager); /* closes its tiers; NULL is fine */

/* A page with no content and no memory. stream_after: a page whose home this one's should follow
 * (the block before it in the same layer), or PLLM_NONE. rank orders pages for the static policy:
 * lower ranks are kept resident (the engine gives block index * layers + layer, so that a fixed
 * share of every layer stays). Waits for pages that were freed in flight where no other number is
 * left. ELIMIT: page_max pages exist. */
int pllm_pager_page_new(pllm_pager *pager, pllm_page stream_after, uint32_t rank,
                        pllm_page *page_out);
void pllm_pager_page_free(pllm_pager *pager, pllm_page page); /* not pinned; may be in flight */

typedef enum pllm_pin_mode {
    PLLM_PIN_READ,  /* resident with its content */
    PLLM_PIN_WRITE, /* the same, and dirty from now on; not for sealed pages */
    PLLM_PIN_NEW,   /* a frame, content undefined, dirty; not for sealed pages */
} pllm_pin_mode;

/* Pins all the pages or none, waiting until every one is resident. views[i]: where page i is, as
 * the CPU sees it (NULL entries where it can't); views may be NULL. Nested pins count.
 * Errors: EBUSY (bare): the pages cannot all fit, too much is pinned; ENODEVMEM: no frame can be
 * had at all; ELIMIT (a dirty page must go and there is no room for its home: says which limit to
 * raise); EIO, ECORRUPT: this page could not be read back (the page stays lost, others are
 * unharmed); EINVAL: page without content read. After an error nothing new is pinned. */
int pllm_pager_pin(pllm_pager *pager, const pllm_page *pages, uint32_t page_count,
                   pllm_pin_mode mode, void **views);
/* Pins if all are resident now: 1. Otherwise 0 with nothing pinned; then their loads are started,
 * or made urgent where they were under way, as far as that goes without waiting, and what is here
 * or comes is kept until it is pinned (within half of the frames). Negative: as pin. */
int pllm_pager_try_pin(pllm_pager *pager, const pllm_page *pages, uint32_t page_count,
                       void **views);
void pllm_pager_unpin(pllm_pager *pager, const pllm_page *pages, uint32_t page_count);
pllm_va pllm_pager_page_va(const pllm_pager *pager, pllm_page page); /* while pinned */
/* For callers whose kernels find pages by frame: frame f is at frame_base + f * page bytes. The
 * frame of a page holds while it is pinned; PLLM_NONE if it has none. */
pllm_va pllm_pager_frame_base(const pllm_pager *pager);
uint32_t pllm_pager_page_frame(const pllm_pager *pager, pllm_page page);
/* For callers that bring pages to places of their own: the page's content in host memory, which
 * stays there and unchanged until the page is freed. NULL: it has no such copy now (resident only,
 * still being written, on disk, or lost). */
const void *pllm_pager_host_copy(const pllm_pager *pager, pllm_page page);

/* No more writes: the page may be written behind and shared. */
void pllm_pager_seal(pllm_pager *pager, pllm_page page);

/* The order in which pages will be read from now on, cyclically: what `sequential` prefetches.
 * Copied. A new order replaces the old one; count 0 forgets it. */
int pllm_pager_scan(pllm_pager *pager, const pllm_page *pages, uint32_t page_count);

typedef enum pllm_hint { PLLM_WILL_NEED, PLLM_DONT_NEED, PLLM_KEEP, PLLM_NORMAL } pllm_hint;
/* will_need starts loading; dont_need makes first victims; keep makes last victims. Wrong hints
 * cost time only. */
void pllm_pager_hint(pllm_pager *pager, const pllm_page *pages, uint32_t page_count,
                     pllm_hint hint);
/* Evicts up to frame_count unpinned pages by policy (waits for dirty ones to be written).
 * Returns how many went, or negative. */
int pllm_pager_evict(pllm_pager *pager, uint32_t frame_count);
/* Evicts these pages if unpinned. As above. */
int pllm_pager_evict_pages(pllm_pager *pager, const pllm_page *pages, uint32_t page_count);
int pllm_pager_is_resident(const pllm_pager *pager, pllm_page page);
/* A new limit for frames; evicts down to it and gives memory back. EBUSY: pins prevent it for now
 * (the limit stands; poll goes on evicting, tidy gives memory back). Like evict and settle it may
 * unmap, so not inside a step. */
int pllm_pager_set_device_limit(pllm_pager *pager, uint64_t bytes);
/* Advances transfers, write-behind and prefetch, and evicts down to a lowered limit as far as that
 * goes without waiting. Cheap; called between phases of a step. Unmaps nothing. */
int pllm_pager_poll(pllm_pager *pager);
/* Between steps: goes on with a lowered limit and gives back the memory that is free for it. Cheap
 * where there is none. */
void pllm_pager_tidy(pllm_pager *pager);
/* Waits until nothing is in flight and every sealed page that should be is written. */
int pllm_pager_settle(pllm_pager *pager);

typedef struct pllm_pager_stats {
    uint64_t pins, hits, misses; /* pages pinned for reading or writing: resident or not, when first
                                    asked for, by pin or by a try_pin that had to be repeated */
    uint64_t evictions, evictions_dirty;
    uint64_t prefetched, prefetch_used, prefetch_wasted;
    uint64_t written_behind, wait_ns;
    uint32_t pages, resident, resident_peak, pinned;
    pllm_transfers_stats transfers;
    pllm_tiers_stats tiers;
} pllm_pager_stats;
void pllm_pager_stats_get(const pllm_pager *pager, pllm_pager_stats *stats_out);

/* The numbered invariants at the head of pager.c, checked; for tests. Aborts when one is broken. */
void pllm_pager_check(const pllm_pager *pager);

/* The last record_max accesses (page numbers, in order); count in *count_out. Borrowed. */
const uint32_t *pllm_pager_record(const pllm_pager *pager, uint64_t *count_out);
/* The rank of every page number, page_max of them; of a freed page, the last it had. Borrowed. */
const uint32_t *pllm_pager_ranks(const pllm_pager *pager);

#endif
