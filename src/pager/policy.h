/* policy.h - which resident page goes first: static, lru and 2q as pure functions over arrays.
 *
 * A policy sees accesses, arrivals and departures of pages and names a victim among those that
 * may go; it does no I/O and knows no frames, so that a recorded trace replays through it and can
 * be set beside Belady's optimum (replay.h).
 *
 * The state is a few flat arrays of page_max entries that hold indices, in memory that the caller
 * gives. A resident page is in exactly one place: the queue that its policy puts it in, the doomed
 * or the kept list (hints), or parked. Parked pages are no candidates: a victim search that meets
 * a page that may not go parks it, once, instead of meeting it again in every later search, and
 * whoever learns that it may go again offers it back. So a pinned page costs nothing while it is
 * pinned, and a search looks at each page once.
 *
 *   static  a heap by rank: the highest rank goes first. Under a cyclic scan this keeps a fixed
 *           share, the lowest ranks, for ever, which is what Belady's optimum does there; an
 *           access costs nothing.
 *   lru     one list, moved to the front by access.
 *   2q      Johnson and Shasha, "2Q: a low overhead high performance buffer management replacement
 *           algorithm", VLDB 1994, the full version: new pages pass a FIFO (A1in, a quarter of the
 *           capacity); those that fall out are remembered by number (A1out, half the capacity) and
 *           enter the LRU list Am if they come back.
 *
 * Cost: O(1) per call, O(log n) for static's arrive, offer and leave. Threads: one at a time. */
#ifndef PLLM_PAGER_POLICY_H
#define PLLM_PAGER_POLICY_H

#include "base/context.h"

typedef enum pllm_policy_kind {
    PLLM_POLICY_STATIC,
    PLLM_POLICY_LRU,
    PLLM_POLICY_2Q
} pllm_policy_kind;
enum { PLLM_POLICY_COUNT = 3 };

/* "static", "lru", "2q"; EINVAL with a sentence for any other name. */
int pllm_policy_from_name(const char *name, pllm_policy_kind *kind_out);
const char *pllm_policy_name(pllm_policy_kind kind);

enum { /* where a page is: the lists have sentinels in prev and next, behind the pages */
       PLLM_POLICY_MAIN,   /* lru's list; 2q's Am */
       PLLM_POLICY_IN,     /* 2q's A1in */
       PLLM_POLICY_OUT,    /* 2q's A1out: pages that are not resident, remembered */
       PLLM_POLICY_DOOMED, /* first victims, oldest first: hinted, or chosen before */
       PLLM_POLICY_KEPT,   /* last victims, least recently used first */
       PLLM_POLICY_PARKED, /* resident, no candidate until offered */
       PLLM_POLICY_LISTS,
       PLLM_POLICY_HEAP = PLLM_POLICY_LISTS, /* static's */
       PLLM_POLICY_ABSENT,                   /* not resident, not remembered */
};

typedef enum pllm_policy_class {
    PLLM_CLASS_NORMAL,
    PLLM_CLASS_DOOMED, /* until the page leaves */
    PLLM_CLASS_KEPT,
} pllm_policy_class;

typedef struct pllm_policy {
    pllm_policy_kind kind;
    uint32_t page_max, capacity;       /* capacity: frames; 2q sizes its queues by it */
    uint32_t count[PLLM_POLICY_LISTS]; /* pages in each list */
    uint32_t heap_count;
    uint32_t in_count;     /* resident pages whose queue is A1in, parked ones too */
    uint32_t *rank;        /* by page: the order of static's heap; ties by page number */
    uint32_t *prev, *next; /* by page and then by list: circular lists, newest after the sentinel */
    uint32_t *heap;        /* heap_count pages; a page's index in it is in prev */
    uint8_t *place;        /* by page: one of the places above */
    uint8_t *queue;        /* by page: MAIN, IN or HEAP, where offer puts it */
    uint8_t *class;        /* by page: a pllm_policy_class */
} pllm_policy;

/* Bytes of memory that init wants for page_max pages; aligned to 8. */
uint64_t pllm_policy_bytes(uint32_t page_max);
void pllm_policy_init(pllm_policy *policy, pllm_policy_kind kind, uint32_t page_max,
                      uint32_t capacity, void *memory);
static inline void pllm_policy_set_capacity(pllm_policy *policy, uint32_t capacity)
{
    policy->capacity = capacity;
}

/* The page, absent until now, is resident. parked: it is no candidate yet. */
void pllm_policy_arrive(pllm_policy *policy, uint32_t page, int parked);
/* A resident page goes. evicted: by choice, so that 2q remembers it; otherwise it is forgotten. */
void pllm_policy_leave(pllm_policy *policy, uint32_t page, int evicted);
/* The page number will mean something else: nothing about it is remembered. Not resident. */
void pllm_policy_forget(pllm_policy *policy, uint32_t page, uint32_t rank);

void pllm_policy_touch(pllm_policy *policy, uint32_t page); /* access, for pages of a list */
/* A resident page is used. */
static inline void pllm_policy_access(pllm_policy *policy, uint32_t page)
{
    uint8_t place = policy->place[page];
    if (place == PLLM_POLICY_MAIN || place == PLLM_POLICY_KEPT || place == PLLM_POLICY_DOOMED)
        pllm_policy_touch(policy, page);
}

void pllm_policy_park(pllm_policy *policy, uint32_t page);
void pllm_policy_unpark(pllm_policy *policy, uint32_t page);
/* A parked page is a candidate again, as if just used; others are left as they are. */
static inline void pllm_policy_offer(pllm_policy *policy, uint32_t page)
{
    if (policy->place[page] == PLLM_POLICY_PARKED) pllm_policy_unpark(policy, page);
}
/* A parked page is a candidate again, and the first: it was a victim and only had to wait. Use
 * puts it back where it belongs. */
void pllm_policy_offer_first(pllm_policy *policy, uint32_t page);
void pllm_policy_set_class(pllm_policy *policy, uint32_t page, pllm_policy_class chosen);

/* Whether the page may go now; a page refused is parked. May start what will let it go later. */
typedef int pllm_policy_may_go(void *user, uint32_t page);
/* The next victim, left where it is (call leave), or UINT32_MAX. may_go NULL: any may. */
uint32_t pllm_policy_victim(pllm_policy *policy, pllm_policy_may_go *may_go, void *user);

/* Parked pages from the newest to the oldest; UINT32_MAX ends. */
static inline uint32_t pllm_policy_parked_next(const pllm_policy *policy, uint32_t page)
{
    uint32_t sentinel = policy->page_max + PLLM_POLICY_PARKED;
    uint32_t next = policy->next[page == UINT32_MAX ? sentinel : page];
    return next == sentinel ? UINT32_MAX : next;
}
static inline int pllm_policy_is_resident(const pllm_policy *policy, uint32_t page)
{
    return policy->place[page] != PLLM_POLICY_ABSENT && policy->place[page] != PLLM_POLICY_OUT;
}

void pllm_policy_check(const pllm_policy *policy); /* aborts if the arrays disagree; for tests */

#endif
