/* pin.c - pin, try_pin, unpin.
 *
 * A pin first counts itself on every page, which keeps those already resident where they are, and
 * looks which are not. If none is missing that is all. Otherwise it issues loads for the missing
 * ones in order, as far as frames can be had, and waits; whenever something is over it goes on
 * issuing. It gives up when it needs a frame and nothing in flight can free one: then every page
 * that could go is pinned, by this call or others, or cannot be written. Pages that arrived stay
 * resident, unpinned.
 *
 * Between calls: a pinned page is resident. */
#include <assert.h>
#include "pager/pager_internal.h"

enum { ADVANCE_EVERY = 8 }; /* pages pinned between two looks at the transfers */

static void record_access(pllm_pager *pager, uint32_t page)
{
    uint32_t slot = (uint32_t)(pager->record_count++ % pager->record_max);
    pager->record[slot] = pager->record[slot + pager->record_max] = page;
}

/* The page is used now: policy, scan position, record and what prefetching made of it. */
static inline void page_used(pllm_pager *pager, uint32_t page)
{
    uint32_t *flags = &pager->flags[page];
    pllm_policy_access(&pager->policy, page);
    *flags &= ~(uint32_t)PAGE_LEAVING;
    if (*flags & (PAGE_PREFETCHED | PAGE_AHEAD | PAGE_HINTED)) {
        pager->stats.prefetch_used += (*flags & PAGE_PREFETCHED) != 0;
        page_not_awaited(pager, page);
    }
    uint32_t distance = page_distance(pager, page);
    if (distance == 0) { /* what a scan does */
        pager->last_position = pager->cursor;
        pager->cursor = pager->cursor + 1 == pager->order_count ? 0 : pager->cursor + 1;
        pager->window -= pager->window > 0;
        pager->behind_run = 0;
    } else if (distance != PLLM_NONE) {
        pllm_pager_scan_seen(pager, page, distance);
    }
    if (pager->record_max) record_access(pager, page);
}

static inline void count_pin(pllm_pager *pager, uint32_t page)
{
    pager->pinned += !pager->pins[page]++;
}

static inline void count_unpin(pllm_pager *pager, uint32_t page)
{
    if (--pager->pins[page]) return;
    pager->pinned--;
    /* Read ahead and still unused, after a pin that failed: it stays protected. */
    if (!(pager->flags[page] & (PAGE_AHEAD | PAGE_HINTED))) pllm_policy_offer(&pager->policy, page);
}

/* ---- is it allowed? ---- */

static int fail_pin(const pllm_pager *pager, uint32_t page, pllm_pin_mode mode)
{
    if (page >= pager->page_max || !(pager->flags[page] & PAGE_LIVE))
        return pllm_fail(PLLM_EINVAL, 0, "page %u is not there to be pinned", page);
    if (mode != PLLM_PIN_READ && (pager->flags[page] & PAGE_SEALED))
        return pllm_fail(PLLM_EINVAL, 0, "page %u is sealed and cannot be written", page);
    if (mode != PLLM_PIN_NEW && (pager->flags[page] & PAGE_LOST))
        return pllm_pager_fail_lost(pager, page);
    return pllm_fail(PLLM_EINVAL, 0, "page %u has no content yet to be read", page);
}

/* Counts a pin on each page and marks the missing ones. Returns how many are missing or cannot
 * be used yet, or a failure with nothing pinned. */
static int pin_look(pllm_pager *pager, const pllm_page *pages, uint32_t page_count,
                    pllm_pin_mode mode)
{
    uint32_t unready = 0, i;
    uint32_t wanted = mode == PLLM_PIN_NEW ? PAGE_LIVE : PAGE_LIVE | PAGE_CONTENT;
    uint32_t looked_at =
        wanted | (mode == PLLM_PIN_NEW ? 0 : PAGE_LOST) | (mode == PLLM_PIN_READ ? 0 : PAGE_SEALED);
    uint32_t hindered = mode == PLLM_PIN_READ ? PAGE_LOADING : PAGE_FLIGHT;
    for (i = 0; i < page_count; i++) {
        uint32_t page = pages[i];
        if (page >= pager->page_max || (pager->flags[page] & looked_at) != wanted) break;
        count_pin(pager, page);
        if (pager->frame[page] == PLLM_NONE || (pager->flags[page] & hindered)) {
            unready++;
            if (!page_is_resident(pager, page)) pager->flags[page] |= PAGE_MISSED;
        }
    }
    if (i == page_count) return (int)unready;
    int status = fail_pin(pager, pages[i], mode);
    while (i-- > 0) {
        pager->flags[pages[i]] &= ~(uint32_t)PAGE_MISSED;
        count_unpin(pager, pages[i]);
    }
    return status;
}

/* ---- the missing pages ---- */

static int page_is_ready(const pllm_pager *pager, uint32_t page, pllm_pin_mode mode)
{
    return pager->frame[page] != PLLM_NONE &&
           !(pager->flags[page] & (mode == PLLM_PIN_READ ? PAGE_LOADING : PAGE_FLIGHT));
}

/* Starts what brings the page. ENODEVMEM: there is no frame for it now; EBUSY: no ticket. */
static int page_issue(pllm_pager *pager, uint32_t page, pllm_pin_mode mode)
{
    if (page_is_ready(pager, page, mode)) return PLLM_OK;
    if (pager->flags[page] & PAGE_FLIGHT) {
        pllm_pager_flight_promote(pager, page);
        return PLLM_OK;
    }
    if (mode != PLLM_PIN_NEW && (pager->flags[page] & PAGE_LOST))
        return pllm_pager_fail_lost(pager, page);
    int status = pllm_pager_frame_take(pager, page, FRAME_DEMAND);
    if (status < 0) return status;
    if (mode == PLLM_PIN_NEW) {
        pager->flags[page] |= PAGE_FRESH;
        return PLLM_OK;
    }
    status = pllm_pager_load_start(pager, page, PLLM_DEMAND);
    if (status < 0) pllm_pager_frame_drop(pager, page);
    return status;
}

/* Nothing in flight can help the pin that needs a frame: why? */
static int fail_starved(const pllm_pager *pager)
{
    if (pager->write_failure.status) return pllm_pager_fail_again(&pager->write_failure);
    return pager->frames_used ? PLLM_EBUSY : PLLM_ENODEVMEM;
}

static int pin_fetch(pllm_pager *pager, const pllm_page *pages, uint32_t page_count,
                     pllm_pin_mode mode)
{
    uint32_t first = 0, issued = 0; /* pages before them are ready, or under way */
    pllm_pager_begin(pager);
    for (;;) {
        while (first < page_count && page_is_ready(pager, pages[first], mode)) first++;
        if (first == page_count) return PLLM_OK;
        if (pager->load_failure.status) return pllm_pager_fail_again(&pager->load_failure);
        /* A load that issued before and is neither ready nor under way has failed: again. */
        if (first < issued && !(pager->flags[pages[first]] & PAGE_FLIGHT)) issued = first;
        if (issued < first) issued = first;
        int status = PLLM_OK;
        while (issued < page_count && (status = page_issue(pager, pages[issued], mode)) == PLLM_OK)
            issued++;
        if (status < 0 && status != PLLM_ENODEVMEM && status != PLLM_EBUSY) return status;
        if (issued == page_count && page_is_ready(pager, pages[first], mode)) continue;
        pager->starved = status == PLLM_ENODEVMEM;
        if (pager->starved && !pllm_pager_can_move(pager)) return fail_starved(pager);
        if (!pager->flight.count) return PLLM_EBUSY; /* no ticket, and none to wait for */
        status = pllm_pager_wait(pager);
        if (status < 0) return status;
    }
}

static void pin_undo(pllm_pager *pager, const pllm_page *pages, uint32_t page_count)
{
    for (uint32_t i = 0; i < page_count; i++) {
        uint32_t page = pages[i];
        if (pager->flags[page] & PAGE_FRESH) pllm_pager_frame_drop(pager, page);
        pager->flags[page] &= ~(uint32_t)(PAGE_FRESH | PAGE_MISSED);
        count_unpin(pager, page);
    }
}

static void page_written(pllm_pager *pager, uint32_t page, pllm_pin_mode mode)
{
    uint32_t *flags = &pager->flags[page];
    if (*flags & PAGE_FRESH) pllm_policy_arrive(&pager->policy, page, 0);
    *flags &= ~(uint32_t)PAGE_FRESH;
    if (mode == PLLM_PIN_NEW) *flags = (*flags & ~(uint32_t)PAGE_LOST) | PAGE_CONTENT;
    *flags |= PAGE_DIRTY;
}

/* Every page is ready: views and counts. */
static void pin_commit(pllm_pager *pager, const pllm_page *pages, uint32_t page_count,
                       pllm_pin_mode mode, void **views)
{
    uint32_t missed = 0;
    for (uint32_t i = 0; i < page_count; i++) {
        uint32_t page = pages[i];
        if (mode != PLLM_PIN_READ) page_written(pager, page, mode);
        page_used(pager, page);
        if (pager->flags[page] & (PAGE_MISSED | PAGE_LATE)) {
            pager->flags[page] &= ~(uint32_t)(PAGE_MISSED | PAGE_LATE);
            missed++;
        }
        if (views) views[i] = pllm_tiers_frame_view(pager->tiers, pager->frame[page]);
    }
    if (mode != PLLM_PIN_NEW) {
        pager->stats.pins += page_count;
        pager->stats.misses += missed;
        pager->stats.hits += page_count - missed;
    }
    pager->touched += page_count;
}

/* ---- the calls ---- */

/* Asking transfers costs more than pinning a page: not at every one. A failure here is the
 * engine's, not this call's: poll and the next wait report it. */
static void advance_some(pllm_pager *pager)
{
    if (pager->touched >= ADVANCE_EVERY || !pager->flight.count) (void)pllm_pager_advance(pager);
}

int pllm_pager_pin(pllm_pager *pager, const pllm_page *pages, uint32_t page_count,
                   pllm_pin_mode mode, void **views)
{
    int missing = pin_look(pager, pages, page_count, mode);
    if (missing < 0) return missing;
    if (missing > 0) {
        int status = pin_fetch(pager, pages, page_count, mode);
        pager->starved = 0;
        if (status < 0) {
            pin_undo(pager, pages, page_count);
            return status;
        }
    }
    pin_commit(pager, pages, page_count, mode, views);
    advance_some(pager);
    return PLLM_OK;
}

/* Starts or speeds up the loads of pages that try_pin missed, as far as it goes at once. The whole
 * group is kept from now on until it is used: its caller comes back for all of it, maybe after
 * later pages of a scan. */
static int try_fetch(pllm_pager *pager, const pllm_page *pages, uint32_t page_count)
{
    int status = PLLM_OK;
    pllm_pager_begin(pager);
    for (uint32_t i = 0; i < page_count; i++) {
        uint32_t page = pages[i], *flags = &pager->flags[page];
        if (!page_is_resident(pager, page)) *flags |= PAGE_LATE;
        if (status == PLLM_OK) status = page_issue(pager, page, PLLM_PIN_READ);
        if (pager->frame[page] == PLLM_NONE || (*flags & PAGE_HINTED)) continue;
        *flags |= PAGE_HINTED;
        pager->hinted_count++;
        if (!(*flags & PAGE_LOADING)) pllm_policy_park(&pager->policy, page);
    }
    return status == PLLM_ENODEVMEM || status == PLLM_EBUSY ? PLLM_OK : status;
}

int pllm_pager_try_pin(pllm_pager *pager, const pllm_page *pages, uint32_t page_count, void **views)
{
    int missing = pin_look(pager, pages, page_count, PLLM_PIN_READ);
    if (missing < 0) return missing;
    int status = missing > 0 ? pllm_pager_advance(pager) : PLLM_OK;
    uint32_t ready = 0;
    while (missing > 0 && ready < page_count && page_is_ready(pager, pages[ready], PLLM_PIN_READ))
        ready++;
    if (missing > 0 && ready < page_count) {
        if (status == PLLM_OK) status = try_fetch(pager, pages, page_count);
        pin_undo(pager, pages, page_count);
        pllm_pager_hinted_trim(pager);
        return status < 0 ? status : 0;
    }
    pin_commit(pager, pages, page_count, PLLM_PIN_READ, views);
    advance_some(pager);
    return 1;
}

void pllm_pager_unpin(pllm_pager *pager, const pllm_page *pages, uint32_t page_count)
{
    for (uint32_t i = 0; i < page_count; i++) {
        assert(pages[i] < pager->page_max && pager->pins[pages[i]] > 0);
        count_unpin(pager, pages[i]);
    }
    pager->touched += page_count;
    advance_some(pager);
}

pllm_va pllm_pager_page_va(const pllm_pager *pager, pllm_page page)
{
    return pllm_tiers_frame_va(pager->tiers, pager->frame[page]);
}
