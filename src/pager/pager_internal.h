/* pager_internal.h - the pager's arrays, shared by its files.
 *
 *   pager.c     open, close, pages' lives, hints, eviction on request, limits, counts, check
 *   move.c      frames and homes, loads, writes, and what happens when one is over
 *   pin.c       pin, try_pin, unpin
 *   prefetch.c  the scan order and the walk ahead of it
 *
 * A page is an index; what is known of it is spread over arrays of page_max entries. */
#ifndef PLLM_PAGER_INTERNAL_H
#define PLLM_PAGER_INTERNAL_H

#include "pager/pager.h"

enum {                           /* bits of flags[page] */
       PAGE_LIVE = 1 << 0,       /* between page_new and page_free */
       PAGE_CONTENT = 1 << 1,    /* has been written: there is something to read */
       PAGE_DIRTY = 1 << 2,      /* the frame holds what no home holds */
       PAGE_SEALED = 1 << 3,     /* never written again */
       PAGE_LOADING = 1 << 4,    /* a read into the frame is in flight */
       PAGE_WRITING = 1 << 5,    /* a write of the frame to the home is in flight */
       PAGE_PREFETCHED = 1 << 6, /* loaded ahead, not used since */
       PAGE_AHEAD = 1 << 7,      /* counted in ahead_count: takes part of prefetch_max */
       PAGE_HINTED = 1 << 8,     /* loaded for a hint or try_pin, not used since */
       PAGE_MISSED = 1 << 9,     /* was not resident when the pin under way looked */
       PAGE_FRESH = 1 << 10,     /* has a frame from the pin under way (NEW), no content yet */
       PAGE_FREEING = 1 << 11,   /* freed by the caller while in flight */
       PAGE_HOST = 1 << 12,      /* home is a host slot; otherwise a disk slot */
       PAGE_QUEUED = 1 << 13,    /* waits in the write-behind queue */
       PAGE_LOST_IO = 1 << 14,   /* its only copy could not be read */
       PAGE_LOST_CORRUPT = 1 << 15,
       PAGE_DEMANDED = 1 << 16, /* its transfer runs with the priority of demand */
       PAGE_LATE = 1 << 17,     /* was not resident when a try_pin looked; not pinned since */
       PAGE_LEAVING = 1 << 18,  /* was a victim; goes when it is written, unless used before */
       PAGE_LOST = PAGE_LOST_IO | PAGE_LOST_CORRUPT,
       PAGE_FLIGHT = PAGE_LOADING | PAGE_WRITING,
};

typedef struct page_list { /* through link_prev and link_next; oldest first */
    uint32_t head, tail, count;
} page_list;

struct pllm_pager {
    const pllm_context *context;
    pllm_tiers *tiers; /* owned */
    pllm_transfers *transfers;
    pllm_device *device;
    pllm_prefetch_kind prefetch;
    uint32_t page_max, record_max;
    uint32_t prefetch_wish; /* prefetch_max as asked for; 0: a third of the frames */

    pllm_policy policy;
    void *policy_memory;

    /* by page */
    uint32_t *flags, *pins;
    uint32_t *frame;                 /* PLLM_NONE: none */
    uint32_t *home;                  /* slot, PLLM_NONE: none */
    uint32_t *follows;               /* the page whose home this one's follows */
    uint32_t *version;               /* bumped by every write to a home; never reset */
    uint32_t *failed_epoch;          /* the last epoch in which its write failed */
    int32_t *lost_native;            /* errno of a lost page */
    pllm_ticket *ticket;             /* of what is in flight */
    uint32_t *link_prev, *link_next; /* in unwritten or flight, or free: one of them at most */
    uint32_t *position;              /* in the scan; PLLM_NONE: not in it */
    uint32_t *marks;                 /* by page: scratch of the check */

    uint32_t free_page;  /* a stack through link_next */
    page_list unwritten; /* sealed, dirty, resident, not in flight: write-behind's queue */
    page_list flight;    /* loading or writing, in order of submission */
    uint32_t pages, frames_used, resident_peak, pinned, writing;
    uint32_t homes_early; /* disk slots given ahead of need, since some were last taken back */
    uint32_t frame_limit; /* as tiers said at the last poll */
    uint32_t shrinking;   /* a lowered limit is not yet reached */
    uint32_t untrimmed;   /* frames went for a lowered limit, and are mapped still */
    uint32_t freeing;     /* pages freed in flight: they keep their numbers until that is over */
    uint32_t unreaped;    /* transfers that are over and not yet looked at */
    uint32_t submitted;   /* transfers were submitted since they were last polled */
    uint32_t touched;     /* pages pinned since transfers were last advanced */
    uint32_t epoch;       /* counts calls that may retry failed writes */

    /* the scan: order[cursor] comes next; the window pages from there on are resident, on their
     * way, or passed over */
    uint32_t *order;
    uint32_t order_count, order_room, cursor, window;
    uint32_t behind_run, last_position;
    uint32_t ahead_count, hinted_count;

    uint32_t *record; /* 2 * record_max: every access is written twice, so that the last
                         record_max are contiguous */
    uint64_t record_count;

    pllm_pager_stats stats;
    uint32_t starved;         /* somebody waits for a frame: prefetch takes none meanwhile */
    pllm_error load_failure;  /* of the call under way: why a page it wants did not come */
    pllm_error write_failure; /* ... and why a page could not be written that should have gone */
};

/* How a frame may be had. */
typedef enum frame_wish {
    FRAME_PREFETCH, /* free, or a clean page that is needed later than any in the window */
    FRAME_DEMAND,   /* anything that can go without waiting; writes are started */
} frame_wish;

/* move.c */
void pllm_pager_list_add(pllm_pager *pager, page_list *list, uint32_t page);
void pllm_pager_list_remove(pllm_pager *pager, page_list *list, uint32_t page);
int pllm_pager_frame_take(pllm_pager *pager, uint32_t page, frame_wish wish);
uint32_t pllm_pager_victim(pllm_pager *pager, frame_wish wish);
int pllm_pager_evict_write(pllm_pager *pager, uint32_t page);
void pllm_pager_begin(pllm_pager *pager);
void pllm_pager_frame_drop(pllm_pager *pager, uint32_t page);
void pllm_pager_home_drop(pllm_pager *pager, uint32_t page);
void pllm_pager_evict_clean(pllm_pager *pager, uint32_t page);
int pllm_pager_load_start(pllm_pager *pager, uint32_t page, pllm_priority priority);
int pllm_pager_write_start(pllm_pager *pager, uint32_t page, pllm_priority priority);
int pllm_pager_flight_cancel(pllm_pager *pager, uint32_t page);
void pllm_pager_flight_promote(pllm_pager *pager, uint32_t page);
int pllm_pager_can_move(const pllm_pager *pager); /* something in flight will free a frame */
int pllm_pager_advance(pllm_pager *pager);
int pllm_pager_wait(pllm_pager *pager);
int pllm_pager_fail_again(const pllm_error *failure);
void pllm_pager_page_release(pllm_pager *pager, uint32_t page);
int pllm_pager_fail_lost(const pllm_pager *pager, uint32_t page);

/* prefetch.c */
void pllm_pager_scan_seen(pllm_pager *pager, uint32_t page, uint32_t distance);
void pllm_pager_prefetch_pump(pllm_pager *pager);
void pllm_pager_load_hinted(pllm_pager *pager, uint32_t page);
void pllm_pager_hinted_trim(pllm_pager *pager);

/* How many pages of the scan are read before this one; PLLM_NONE if it is not in the scan. */
static inline uint32_t page_distance(const pllm_pager *pager, uint32_t page)
{
    uint32_t position = pager->position[page];
    if (position == PLLM_NONE) return PLLM_NONE;
    return position >= pager->cursor ? position - pager->cursor
                                     : position + pager->order_count - pager->cursor;
}

static inline int page_in_window(const pllm_pager *pager, uint32_t page)
{
    return pager->window && page_distance(pager, page) < pager->window;
}

static inline int page_is_resident(const pllm_pager *pager, uint32_t page)
{
    return pager->frame[page] != PLLM_NONE && !(pager->flags[page] & PAGE_LOADING);
}

static inline void page_not_ahead(pllm_pager *pager, uint32_t page)
{
    if (pager->flags[page] & PAGE_AHEAD) {
        pager->flags[page] &= ~(uint32_t)PAGE_AHEAD;
        pager->ahead_count--;
    }
}

static inline void page_not_hinted(pllm_pager *pager, uint32_t page)
{
    if (pager->flags[page] & PAGE_HINTED) {
        pager->flags[page] &= ~(uint32_t)PAGE_HINTED;
        pager->hinted_count--;
    }
}

/* The page goes, or is used: it is not waited for any more. */
static inline void page_not_awaited(pllm_pager *pager, uint32_t page)
{
    page_not_ahead(pager, page);
    page_not_hinted(pager, page);
    pager->flags[page] &= ~(uint32_t)PAGE_PREFETCHED;
}

#endif
