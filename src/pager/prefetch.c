/* prefetch.c - the scan order and the walk ahead of it.
 *
 * The order is a circle. `cursor` is the page after the last one pinned; the `window` pages from
 * there on have been walked over: each is resident, on its way, or not loadable. The walk goes on
 * while less than ahead_max pages are read ahead and not yet used, and while a frame can be had
 * that is free or whose page is needed later than all of the window. So pages that are resident
 * anyway cost no part of ahead_max, and the walk reaches as far as it takes to keep that many
 * loads under way or waiting to be used: the link is never idle while there is something to read.
 *
 * Pages of the window are not evicted for others that are needed later. A victim search that
 * meets one parks it; using it offers it again. When the scan turns away (another order, a jump)
 * all parked pages that nothing holds are offered, and the walk begins anew at the cursor; pages
 * read ahead that it meets again are claimed back.
 *
 * Invariants: 1. window <= order_count; 2. ahead_count is the number of pages flagged AHEAD, each
 * loading or resident and parked, and not used yet. */
#include <string.h>
#include "pager/pager_internal.h"

enum {
    SKIP_MAX = 64,   /* a jump over at most so many pages ahead is a skip */
    BEHIND_RUN = 32, /* so many pages in order, far behind the cursor: the scan has gone back */
    NEAR_PART = 8,   /* far is more than an eighth of the order */
    TOP_UP_PART = 8,
    HINTED_PART = 2, /* at most half of the frames wait for hinted uses */
};

/* Nothing protects these pages any more: let the policy have those that nobody holds. */
static void window_forget(pllm_pager *pager)
{
    pager->window = 0;
    for (uint32_t page = pager->flight.head; page != PLLM_NONE; page = pager->link_next[page])
        page_not_ahead(pager, page);
    uint32_t page = pllm_policy_parked_next(&pager->policy, PLLM_NONE), next;
    for (; page != PLLM_NONE; page = next) {
        next = pllm_policy_parked_next(&pager->policy, page);
        page_not_ahead(pager, page);
        if (!pager->pins[page] && !(pager->flags[page] & (PAGE_FLIGHT | PAGE_HINTED)))
            pllm_policy_offer(&pager->policy, page);
    }
}

static void cursor_jump(pllm_pager *pager, uint32_t position)
{
    pager->cursor = position + 1 == pager->order_count ? 0 : position + 1;
    pager->behind_run = 0;
    window_forget(pager);
}

/* The cursor passes count pages that were not used: they are no longer needed soon. */
static void cursor_skip(pllm_pager *pager, uint32_t count)
{
    while (count-- > 0) {
        uint32_t page = pager->order[pager->cursor];
        pager->cursor = pager->cursor + 1 == pager->order_count ? 0 : pager->cursor + 1;
        pager->window -= pager->window > 0;
        if (page == PLLM_NONE) continue;
        page_not_ahead(pager, page);
        if (!pager->pins[page] && !(pager->flags[page] & (PAGE_FLIGHT | PAGE_HINTED)))
            pllm_policy_offer(&pager->policy, page);
    }
}

/* A page of the scan is used that is not the one at the cursor. Use of pages behind the cursor says
 * little: a reader takes what is there first and comes back for the rest. A run of them far behind
 * says that it went back for good. */
void pllm_pager_scan_seen(pllm_pager *pager, uint32_t page, uint32_t distance)
{
    uint32_t position = pager->position[page], count = pager->order_count;
    int in_order = position == (pager->last_position + 1 == count ? 0 : pager->last_position + 1);
    pager->last_position = position;
    if (distance < pager->window || distance <= SKIP_MAX) {
        pager->behind_run = 0;
        cursor_skip(pager, distance + 1);
    } else if (distance <= count / 2) {
        cursor_jump(pager, position);
    } else {
        int far = count - distance > count / NEAR_PART;
        pager->behind_run = in_order && far ? pager->behind_run + 1 : 0;
        if (pager->behind_run >= BEHIND_RUN) cursor_jump(pager, position);
    }
}

int pllm_pager_scan(pllm_pager *pager, const pllm_page *pages, uint32_t page_count)
{
    if (page_count == pager->order_count &&
        (!page_count || !memcmp(pages, pager->order, page_count * sizeof *pages)))
        return PLLM_OK;
    for (uint32_t i = 0; i < page_count; i++)
        if (pages[i] >= pager->page_max || !(pager->flags[pages[i]] & PAGE_LIVE))
            return pllm_fail(PLLM_EINVAL, 0, "page %u in a scan order is not there", pages[i]);
    if (page_count > pager->order_room) {
        uint64_t room = (uint64_t)page_count + page_count / 4;
        uint32_t *order = pllm_alloc_array(pager->context, room, sizeof *order);
        if (!order) return pllm_fail_memory("a scan order", room * sizeof *order);
        if (pager->order_count) memcpy(order, pager->order, pager->order_count * sizeof *order);
        pllm_free(pager->context, pager->order);
        pager->order = order;
        pager->order_room = (uint32_t)(room < UINT32_MAX ? room : UINT32_MAX);
    }
    uint32_t last = PLLM_NONE; /* the page before the cursor keeps the place */
    if (pager->order_count)
        last = pager->order[(pager->cursor ? pager->cursor : pager->order_count) - 1];
    for (uint32_t i = 0; i < pager->order_count; i++)
        if (pager->order[i] != PLLM_NONE) pager->position[pager->order[i]] = PLLM_NONE;
    for (uint32_t i = page_count; i-- > 0;)
        pager->position[pages[i]] = i; /* the first use counts */
    if (page_count) memcpy(pager->order, pages, page_count * sizeof *pages);
    pager->order_count = page_count;
    uint32_t position = last == PLLM_NONE ? PLLM_NONE : pager->position[last];
    pager->cursor = position == PLLM_NONE || position + 1 == page_count ? 0 : position + 1;
    pager->last_position = position == PLLM_NONE ? 0 : position;
    pager->behind_run = 0;
    window_forget(pager);
    pllm_pager_prefetch_pump(pager);
    return PLLM_OK;
}

/* Can the page be loaded, now or ever? */
static int is_loadable(const pllm_pager *pager, uint32_t page)
{
    return (pager->flags[page] & (PAGE_LIVE | PAGE_CONTENT | PAGE_LOST | PAGE_DIRTY)) ==
           (PAGE_LIVE | PAGE_CONTENT);
}

/* Loads a page ahead of its use. Negative: not now. */
static int load_ahead(pllm_pager *pager, uint32_t page, uint32_t flag)
{
    int status = pllm_pager_frame_take(pager, page, FRAME_PREFETCH);
    if (status < 0) return status;
    status = pllm_pager_load_start(pager, page, PLLM_PREFETCH);
    if (status < 0) {
        pllm_pager_frame_drop(pager, page);
        return status;
    }
    pager->flags[page] |= PAGE_PREFETCHED | flag;
    pager->ahead_count += flag == PAGE_AHEAD;
    pager->hinted_count += flag == PAGE_HINTED;
    pager->stats.prefetched++;
    return PLLM_OK;
}

static uint32_t ahead_max(const pllm_pager *pager)
{
    if (pager->prefetch_wish) return pager->prefetch_wish;
    return pager->frame_limit / 3;
}

/* The walk meets a page that is here already. If it was read ahead for an older walk or a hint,
 * and not used since, it counts as read ahead by this one. */
static void claim(pllm_pager *pager, uint32_t page)
{
    uint32_t *flags = &pager->flags[page];
    if (!(*flags & (PAGE_PREFETCHED | PAGE_HINTED)) || (*flags & PAGE_AHEAD)) return;
    page_not_hinted(pager, page);
    *flags |= PAGE_AHEAD;
    pager->ahead_count++;
    if (!(*flags & PAGE_LOADING)) pllm_policy_park(&pager->policy, page);
}

void pllm_pager_prefetch_pump(pllm_pager *pager)
{
    if (pager->prefetch == PLLM_PREFETCH_NONE) return;
    uint32_t limit = ahead_max(pager), count = pager->order_count;
    /* Submitting costs by the batch: top up by an eighth at a time. The rest is under way. */
    if (pager->ahead_count > limit - limit / TOP_UP_PART) return;
    while (pager->window < count && pager->ahead_count < limit) {
        uint32_t walk = pager->cursor + pager->window;
        uint32_t page = pager->order[walk >= count ? walk - count : walk];
        if (page == PLLM_NONE) {
            /* freed since the order was given */
        } else if (pager->frame[page] != PLLM_NONE) {
            claim(pager, page);
        } else if (is_loadable(pager, page) && load_ahead(pager, page, PAGE_AHEAD) < 0) {
            break;
        }
        pager->window++;
    }
}

/* will_need: as far as frames can be had without taking what is needed sooner. */
void pllm_pager_load_hinted(pllm_pager *pager, uint32_t page)
{
    if (pager->frame[page] != PLLM_NONE || !is_loadable(pager, page)) return;
    (void)load_ahead(pager, page, PAGE_HINTED);
}

/* Hints may be wrong: when too many pages wait for a use that was hinted, the oldest are
 * candidates again. */
void pllm_pager_hinted_trim(pllm_pager *pager)
{
    uint32_t limit = pager->frame_limit / HINTED_PART + 1, kept = 0, next;
    if (pager->hinted_count <= limit) return;
    uint32_t page = pllm_policy_parked_next(&pager->policy, PLLM_NONE);
    for (; page != PLLM_NONE; page = next) { /* newest first */
        next = pllm_policy_parked_next(&pager->policy, page);
        if (!(pager->flags[page] & PAGE_HINTED) || pager->pins[page] || ++kept <= limit) continue;
        page_not_hinted(pager, page);
        if (!(pager->flags[page] & (PAGE_FLIGHT | PAGE_AHEAD)))
            pllm_policy_offer(&pager->policy, page);
    }
}
