/* pager.c - pages' lives, hints, eviction on request, limits, counts and the check.
 *
 * A page is an index; everything known of it lies in flat arrays (pager_internal.h). The policy
 * (policy.h) says who goes, the transfer engine moves bytes, tiers hands out frames and slots.
 *
 * Invariants, held between calls and checked by pllm_pager_check:
 *  1. a page has a frame if and only if it is resident or loading; no frame has two pages;
 *     frames_used is their number and the number tiers has given;
 *  2. a home belongs to one page; the homes are as many as the slots tiers has given;
 *  3. a page in flight has a frame, a home and a ticket, and is in `flight`; nothing else is;
 *  4. content is somewhere: a page with content is resident, or clean with a home, or lost;
 *  5. a pinned page is resident, and not freed;
 *  6. the policy knows exactly the resident pages; a parked page is pinned, in flight, dirty, read
 *     ahead, hinted or in the window (so no page is forgotten that could go);
 *  7. read-ahead and hinted pages are counted, and parked or loading (prefetch.c);
 *  8. the queue of unwritten pages holds exactly the sealed dirty ones that are not in flight and
 *     whose last write did not fail.
 * Threads: one caller at a time. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "pager/pager_internal.h"

/* ---- open and close ---- */

static int arrays_open(pllm_pager *pager)
{
    uint64_t count = pager->page_max;
    uint32_t **const words[] = {
        &pager->flags,     &pager->pins,     &pager->frame,        &pager->home,
        &pager->follows,   &pager->version,  &pager->failed_epoch, &pager->link_prev,
        &pager->link_next, &pager->position, &pager->marks,
    };
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (!(*words[i] = pllm_alloc_array(pager->context, count, sizeof(uint32_t))))
            return pllm_fail_memory("the page table", count * sizeof(uint32_t));
    pager->lost_native = pllm_alloc_array(pager->context, count, sizeof *pager->lost_native);
    pager->ticket = pllm_alloc_array(pager->context, count, sizeof *pager->ticket);
    pager->policy_memory = pllm_alloc(pager->context, pllm_policy_bytes(pager->page_max));
    if (!pager->lost_native || !pager->ticket || !pager->policy_memory)
        return pllm_fail_memory("the page table", count * sizeof *pager->ticket);
    if (pager->record_max) {
        uint64_t slots = 2 * (uint64_t)pager->record_max;
        pager->record = pllm_alloc_array(pager->context, slots, sizeof *pager->record);
        if (!pager->record) return pllm_fail_memory("the record of accesses", slots * 4);
    }
    return PLLM_OK;
}

static void arrays_close(pllm_pager *pager)
{
    void *const arrays[] = {
        pager->flags,     pager->pins,          pager->frame,        pager->home,
        pager->follows,   pager->version,       pager->failed_epoch, pager->link_prev,
        pager->link_next, pager->position,      pager->marks,        pager->lost_native,
        pager->ticket,    pager->policy_memory, pager->record,       pager->order,
    };
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        pllm_free(pager->context, arrays[i]);
}

static int options_check(const pllm_tiers *tiers, const pllm_pager_options *options)
{
    if (!tiers || !options || options->struct_bytes < sizeof *options)
        return pllm_fail(PLLM_EINVAL, 0, "a pager needs tiers and options of %zu bytes",
                         sizeof *options);
    if (options->page_max == 0 || options->page_max > UINT32_MAX / 2)
        return pllm_fail(PLLM_EINVAL, 0, "a pager of %u pages: there must be 1 to %u",
                         options->page_max, UINT32_MAX / 2);
    if ((uint32_t)options->policy >= PLLM_POLICY_COUNT ||
        (uint32_t)options->prefetch > PLLM_PREFETCH_SEQUENTIAL)
        return pllm_fail(PLLM_EINVAL, 0, "there is no policy %d or no prefetcher %d",
                         (int)options->policy, (int)options->prefetch);
    return PLLM_OK;
}

int pllm_prefetch_from_name(const char *name, pllm_prefetch_kind *kind_out)
{
    if (name && !strcmp(name, "none"))
        *kind_out = PLLM_PREFETCH_NONE;
    else if (name && !strcmp(name, "sequential"))
        *kind_out = PLLM_PREFETCH_SEQUENTIAL;
    else
        return pllm_fail(PLLM_EINVAL, 0,
                         "prefetch strategy '%s' is unknown: use one of sequential, none",
                         name ? name : "");
    return PLLM_OK;
}

static void pages_init(pllm_pager *pager, pllm_policy_kind policy)
{
    pager->frame_limit = pllm_tiers_frame_limit(pager->tiers);
    pllm_policy_init(&pager->policy, policy, pager->page_max, pager->frame_limit,
                     pager->policy_memory);
    pager->unwritten = pager->flight = (page_list){PLLM_NONE, PLLM_NONE, 0};
    pager->free_page = 0;
    for (uint32_t page = 0; page < pager->page_max; page++) {
        pager->frame[page] = pager->home[page] = pager->position[page] = PLLM_NONE;
        pager->link_next[page] = page + 1 < pager->page_max ? page + 1 : PLLM_NONE;
    }
    pager->epoch = 1;
}

int pllm_pager_open(const pllm_context *context, pllm_tiers *tiers,
                    const pllm_pager_options *options, pllm_pager **pager_out)
{
    *pager_out = NULL;
    int status = options_check(tiers, options);
    if (status < 0) return status;
    pllm_pager *pager = pllm_alloc(context, sizeof *pager);
    if (!pager) return pllm_fail_memory("a pager", sizeof *pager);
    pager->context = context;
    pager->tiers = tiers;
    pager->device = pllm_tiers_device(tiers);
    pager->page_max = options->page_max;
    pager->record_max = options->record_max;
    pager->prefetch = options->prefetch;
    pager->prefetch_wish = options->prefetch_max;
    status = arrays_open(pager);
    if (status < 0) goto fail;
    pllm_transfers_options transfers = {
        .struct_bytes = sizeof transfers,
        .fingerprint = options->fingerprint,
        .format = options->format,
    };
    status = pllm_transfers_open(context, tiers, &transfers, &pager->transfers);
    if (status < 0) goto fail;
    pages_init(pager, options->policy);
    *pager_out = pager;
    return PLLM_OK;
fail:
    arrays_close(pager);
    pllm_free(context, pager);
    return status;
}

void pllm_pager_close(pllm_pager *pager)
{
    if (!pager) return;
    pllm_transfers_close(pager->transfers);
    for (uint32_t page = 0; page < pager->page_max; page++) {
        if (pager->frame[page] != PLLM_NONE)
            pllm_tiers_frame_free(pager->tiers, pager->frame[page]);
        pllm_pager_home_drop(pager, page);
    }
    pllm_tiers_close(pager->tiers);
    arrays_close(pager);
    pllm_free(pager->context, pager);
}

/* ---- pages ---- */

/* A page that was freed in flight keeps its number until its transfer is over. When no other is
 * left, that is waited for: the number is as good as free. */
static int await_number(pllm_pager *pager)
{
    int status = PLLM_OK;
    if (pager->free_page != PLLM_NONE || !pager->freeing) return status;
    pllm_pager_begin(pager);
    status = pllm_pager_advance(pager);
    while (status == PLLM_OK && pager->free_page == PLLM_NONE && pager->freeing)
        status = pllm_pager_wait(pager);
    return status;
}

int pllm_pager_page_new(pllm_pager *pager, pllm_page stream_after, uint32_t rank,
                        pllm_page *page_out)
{
    *page_out = PLLM_NONE;
    int status = await_number(pager);
    if (status < 0) return status;
    uint32_t page = pager->free_page;
    if (page == PLLM_NONE)
        return pllm_fail(PLLM_ELIMIT, 0, "all %u pages of a pager are in use; free some",
                         pager->page_max);
    pager->free_page = pager->link_next[page];
    pager->flags[page] = PAGE_LIVE;
    pager->follows[page] = stream_after < pager->page_max ? stream_after : PLLM_NONE;
    pager->failed_epoch[page] = 0;
    pllm_policy_forget(&pager->policy, page, rank);
    pager->pages++;
    *page_out = page;
    return PLLM_OK;
}

/* Nothing is in flight any more: the page's places and number are free. */
void pllm_pager_page_release(pllm_pager *pager, uint32_t page)
{
    if (pager->flags[page] & PAGE_QUEUED) pllm_pager_list_remove(pager, &pager->unwritten, page);
    if (pager->flags[page] & PAGE_PREFETCHED) pager->stats.prefetch_wasted++;
    page_not_awaited(pager, page);
    if (pager->frame[page] != PLLM_NONE) {
        pllm_policy_leave(&pager->policy, page, 0);
        pllm_pager_frame_drop(pager, page);
    }
    pllm_pager_home_drop(pager, page);
    if (pager->position[page] != PLLM_NONE) {
        pager->order[pager->position[page]] = PLLM_NONE;
        pager->position[page] = PLLM_NONE;
    }
    pager->freeing -= (pager->flags[page] & PAGE_FREEING) != 0;
    pager->flags[page] = 0;
    pager->link_next[page] = pager->free_page;
    pager->free_page = page;
    pager->pages--;
}

void pllm_pager_page_free(pllm_pager *pager, pllm_page page)
{
    assert(page < pager->page_max && (pager->flags[page] & PAGE_LIVE) && !pager->pins[page]);
    pager->flags[page] = (pager->flags[page] & ~(uint32_t)PAGE_LIVE) | PAGE_FREEING;
    pager->freeing++;
    if ((pager->flags[page] & PAGE_FLIGHT) && pllm_pager_flight_cancel(pager, page) < 0) return;
    pllm_pager_page_release(pager, page);
}

void pllm_pager_seal(pllm_pager *pager, pllm_page page)
{
    uint32_t *flags = &pager->flags[page];
    assert(page < pager->page_max && (*flags & PAGE_LIVE));
    if ((*flags & PAGE_SEALED) || !(*flags & PAGE_CONTENT)) return;
    *flags |= PAGE_SEALED;
    if ((*flags & (PAGE_DIRTY | PAGE_WRITING)) != PAGE_DIRTY) return;
    *flags |= PAGE_QUEUED;
    pllm_pager_list_add(pager, &pager->unwritten, page);
}

pllm_va pllm_pager_frame_base(const pllm_pager *pager)
{
    return pllm_tiers_frame_va(pager->tiers, 0);
}

uint32_t pllm_pager_page_frame(const pllm_pager *pager, pllm_page page)
{
    return page < pager->page_max ? pager->frame[page] : PLLM_NONE;
}

const void *pllm_pager_host_copy(const pllm_pager *pager, pllm_page page)
{
    if (page >= pager->page_max || pager->home[page] == PLLM_NONE) return NULL;
    uint32_t kind = PAGE_HOST | PAGE_CONTENT | PAGE_SEALED | PAGE_DIRTY | PAGE_WRITING | PAGE_LOST;
    if ((pager->flags[page] & kind) != (PAGE_HOST | PAGE_CONTENT | PAGE_SEALED)) return NULL;
    return pllm_tiers_host_slot(pager->tiers, pager->home[page]);
}

int pllm_pager_is_resident(const pllm_pager *pager, pllm_page page)
{
    return page < pager->page_max && page_is_resident(pager, page);
}

void pllm_pager_hint(pllm_pager *pager, const pllm_page *pages, uint32_t page_count, pllm_hint hint)
{
    static const pllm_policy_class classes[] = {
        [PLLM_WILL_NEED] = PLLM_CLASS_NORMAL,
        [PLLM_DONT_NEED] = PLLM_CLASS_DOOMED,
        [PLLM_KEEP] = PLLM_CLASS_KEPT,
        [PLLM_NORMAL] = PLLM_CLASS_NORMAL,
    };
    if ((uint32_t)hint > PLLM_NORMAL) return;
    for (uint32_t i = 0; i < page_count; i++) {
        uint32_t page = pages[i];
        if (page >= pager->page_max || !(pager->flags[page] & PAGE_LIVE)) continue;
        if (hint == PLLM_WILL_NEED) {
            pllm_pager_load_hinted(pager, page);
            continue;
        }
        pllm_policy_set_class(&pager->policy, page, classes[hint]);
        if (hint != PLLM_DONT_NEED) continue;
        page_not_ahead(pager, page);
        page_not_hinted(pager, page);
        if (!pager->pins[page] && !(pager->flags[page] & PAGE_FLIGHT))
            pllm_policy_offer(&pager->policy, page);
    }
    if (hint == PLLM_WILL_NEED) pllm_pager_hinted_trim(pager);
}

/* ---- eviction on request ---- */

/* After a lowered limit: unmaps what eviction has emptied. Never inside a step, since unmapping may
 * wait for the device: only calls that are made between steps come here. */
static void trim(pllm_pager *pager)
{
    if (!pager->untrimmed) return;
    pager->untrimmed = 0;
    (void)pllm_tiers_trim(pager->tiers);
}

/* What a call that evicts returns: how many went; a failure only if none did. */
static int evicted(const pllm_pager *pager, uint32_t gone)
{
    if (gone || !pager->write_failure.status) return (int)gone;
    return pllm_pager_fail_again(&pager->write_failure);
}

int pllm_pager_evict(pllm_pager *pager, uint32_t frame_count)
{
    uint32_t gone = 0;
    int status = PLLM_OK;
    pllm_pager_begin(pager);
    pager->starved = 1;
    while (gone < frame_count && status == PLLM_OK) {
        uint32_t victim = pllm_pager_victim(pager, FRAME_DEMAND);
        if (victim != PLLM_NONE) {
            pllm_pager_evict_clean(pager, victim);
            gone++;
        } else if (pllm_pager_can_move(pager)) {
            status = pllm_pager_wait(pager);
        } else {
            break;
        }
    }
    pager->starved = 0;
    trim(pager);
    return status < 0 && !gone ? status : evicted(pager, gone);
}

enum { STAYS, WAITS, WENT };

/* One step towards having the page evicted. */
static int evict_step(pllm_pager *pager, uint32_t page)
{
    uint32_t flags = pager->flags[page];
    if (pager->frame[page] == PLLM_NONE || pager->pins[page]) return STAYS;
    if (flags & PAGE_LOADING) return pllm_pager_flight_cancel(pager, page) < 0 ? WAITS : WENT;
    if (flags & PAGE_WRITING) {
        pllm_pager_flight_promote(pager, page);
        return WAITS;
    }
    if (flags & PAGE_DIRTY) {
        int started = pllm_pager_evict_write(pager, page);
        return started > 0 || (started == 0 && pager->flight.count) ? WAITS : STAYS;
    }
    pllm_pager_evict_clean(pager, page);
    return WENT;
}

int pllm_pager_evict_pages(pllm_pager *pager, const pllm_page *pages, uint32_t page_count)
{
    uint32_t gone = 0, first = 0;
    int status = PLLM_OK;
    pllm_pager_begin(pager);
    pager->starved = 1;
    while (status == PLLM_OK) {
        uint32_t first_waiting = page_count;
        for (uint32_t i = first; i < page_count; i++) {
            if (pages[i] >= pager->page_max || !(pager->flags[pages[i]] & PAGE_LIVE)) continue;
            int step = evict_step(pager, pages[i]);
            gone += step == WENT;
            if (step == WAITS && first_waiting == page_count) first_waiting = i;
        }
        if ((first = first_waiting) == page_count) break;
        status = pllm_pager_wait(pager);
    }
    pager->starved = 0;
    trim(pager);
    return status < 0 && !gone ? status : evicted(pager, gone);
}

/* Frames at the end of the region first, so that whole chunks become free; then by policy. Where
 * the budget wants bytes back (all 1), a chunk with a frame in it does not help, so every frame up
 * there goes, also when frames below are free. Returns how many of them wait for their copy. */
static uint32_t shrink_start(pllm_pager *pager, int all)
{
    uint32_t waiting = 0;
    for (uint32_t page = 0; page < pager->page_max; page++) {
        if (!all && !pllm_tiers_frame_excess(pager->tiers)) break;
        if (pager->frame[page] != PLLM_NONE && pager->frame[page] >= pager->frame_limit)
            waiting += evict_step(pager, page) == WAITS;
    }
    return waiting;
}

/* Evicts down to the limit. wait 0: as far as it goes at once. Nothing is unmapped: see trim. */
static int shrink(pllm_pager *pager, int wait)
{
    int status = PLLM_OK, all = pllm_tiers_is_over(pager->tiers);
    pllm_pager_begin(pager);
    pager->starved = 1;
    uint32_t waiting = shrink_start(pager, all);
    while (status == PLLM_OK && (waiting || pllm_tiers_frame_excess(pager->tiers))) {
        uint32_t victim = waiting ? PLLM_NONE : pllm_pager_victim(pager, FRAME_DEMAND);
        if (victim != PLLM_NONE) {
            pllm_pager_evict_clean(pager, victim);
        } else if (wait && pllm_pager_can_move(pager)) {
            status = pllm_pager_wait(pager);
            waiting = shrink_start(pager, all);
        } else {
            break;
        }
    }
    pager->starved = 0;
    pager->untrimmed = 1;
    pager->shrinking = waiting || pllm_tiers_frame_excess(pager->tiers) > 0;
    if (status < 0 || !pager->shrinking) return status;
    return pager->write_failure.status ? pllm_pager_fail_again(&pager->write_failure) : PLLM_EBUSY;
}

int pllm_pager_set_device_limit(pllm_pager *pager, uint64_t bytes)
{
    int status = pllm_tiers_set_device_limit(pager->tiers, bytes);
    if (status < 0) return status;
    status = shrink(pager, 1);
    trim(pager);
    return status;
}

/* ---- time passes ---- */

int pllm_pager_poll(pllm_pager *pager)
{
    pager->frame_limit = pllm_tiers_frame_limit(pager->tiers);
    pllm_policy_set_capacity(&pager->policy, pager->frame_limit);
    if (pager->shrinking) (void)shrink(pager, 0);
    return pllm_pager_advance(pager);
}

void pllm_pager_tidy(pllm_pager *pager)
{
    if (pager->shrinking) (void)shrink(pager, 0);
    trim(pager);
}

int pllm_pager_settle(pllm_pager *pager)
{
    pllm_pager_begin(pager);
    int status = pllm_pager_advance(pager);
    while (status == PLLM_OK && pager->flight.count) status = pllm_pager_wait(pager);
    if (status == PLLM_OK && pager->write_failure.status)
        status = pllm_pager_fail_again(&pager->write_failure);
    trim(pager);
    return status;
}

void pllm_pager_stats_get(const pllm_pager *pager, pllm_pager_stats *stats_out)
{
    *stats_out = pager->stats;
    stats_out->pages = pager->pages;
    stats_out->resident = pager->frames_used - (pager->flight.count - pager->writing);
    stats_out->resident_peak = pager->resident_peak;
    stats_out->pinned = pager->pinned;
    pllm_transfers_stats_get(pager->transfers, &stats_out->transfers);
    pllm_tiers_stats_get(pager->tiers, &stats_out->tiers);
}

const uint32_t *pllm_pager_record(const pllm_pager *pager, uint64_t *count_out)
{
    uint64_t count = pager->record_count;
    *count_out = count < pager->record_max ? count : pager->record_max;
    if (!pager->record_max) return NULL;
    return pager->record + (count < pager->record_max ? 0 : count % pager->record_max);
}

const uint32_t *pllm_pager_ranks(const pllm_pager *pager)
{
    return pager->policy.rank;
}

/* ---- the check ---- */

static void broken(const pllm_pager *pager, int invariant, uint32_t page)
{
    fprintf(stderr, "pager invariant %d is broken at page %u (flags %#x)\n", invariant, page,
            page < pager->page_max ? pager->flags[page] : 0);
    abort();
}

static void check_page(const pllm_pager *pager, uint32_t page)
{
    uint32_t flags = pager->flags[page];
    int framed = pager->frame[page] != PLLM_NONE, homed = pager->home[page] != PLLM_NONE;
    int resident = page_is_resident(pager, page), pinned = pager->pins[page] > 0;
    int flying = (flags & PAGE_FLIGHT) != 0;
    if (!(flags & (PAGE_LIVE | PAGE_FREEING)) && (flags || framed || homed || pinned))
        broken(pager, 1, page);
    if (flying && (!framed || !homed || !pager->ticket[page])) broken(pager, 3, page);
    if (!flying && pager->ticket[page]) broken(pager, 3, page);
    if ((flags & PAGE_FREEING) && !flying) broken(pager, 3, page);
    if ((flags & PAGE_CONTENT) && !resident && !(flags & PAGE_LOST) &&
        (!homed || (flags & PAGE_DIRTY)))
        broken(pager, 4, page);
    if ((flags & PAGE_CONTENT) && !(flags & (PAGE_DIRTY | PAGE_LOST)) && !homed)
        broken(pager, 4, page);
    if (pinned && (!resident || !(flags & PAGE_LIVE))) broken(pager, 5, page);
    if (resident != pllm_policy_is_resident(&pager->policy, page)) broken(pager, 6, page);
    if (resident && pager->policy.place[page] == PLLM_POLICY_PARKED && !pinned &&
        !(flags & (PAGE_FLIGHT | PAGE_DIRTY | PAGE_AHEAD | PAGE_HINTED)) &&
        !page_in_window(pager, page))
        broken(pager, 6, page);
    if ((flags & (PAGE_AHEAD | PAGE_HINTED)) && !(flags & PAGE_LOADING) &&
        pager->policy.place[page] != PLLM_POLICY_PARKED)
        broken(pager, 7, page);
    if (flags & (PAGE_FRESH | PAGE_MISSED)) broken(pager, 5, page);
    if ((flags & PAGE_QUEUED) &&
        (flags & (PAGE_SEALED | PAGE_DIRTY | PAGE_FLIGHT)) != (PAGE_SEALED | PAGE_DIRTY))
        broken(pager, 8, page);
}

static void check_list(const pllm_pager *pager, const page_list *list, uint32_t flags,
                       uint32_t count, int invariant)
{
    uint32_t walked = 0, before = PLLM_NONE;
    for (uint32_t page = list->head; page != PLLM_NONE; page = pager->link_next[page]) {
        if (!(pager->flags[page] & flags) || pager->link_prev[page] != before)
            broken(pager, invariant, page);
        before = page;
        walked++;
    }
    if (walked != list->count || walked != count || list->tail != before)
        broken(pager, invariant, PLLM_NONE);
}

/* No two pages that pass the filter have the same value below page_max. */
static void check_unique(const pllm_pager *pager, const uint32_t *values, uint32_t flag,
                         uint32_t wanted, int invariant)
{
    memset(pager->marks, 0, pager->page_max * sizeof *pager->marks);
    for (uint32_t page = 0; page < pager->page_max; page++)
        if (values[page] < pager->page_max && (pager->flags[page] & flag) == wanted &&
            pager->marks[values[page]]++)
            broken(pager, invariant, page);
}

void pllm_pager_check(const pllm_pager *pager)
{
    uint32_t framed = 0, on_host = 0, on_disk = 0, flying = 0, writing = 0, queued = 0;
    uint32_t ahead = 0, hinted = 0, pinned = 0, pages = 0, freeing = 0;
    for (uint32_t page = 0; page < pager->page_max; page++) {
        uint32_t flags = pager->flags[page];
        check_page(pager, page);
        framed += pager->frame[page] != PLLM_NONE;
        on_host += pager->home[page] != PLLM_NONE && (flags & PAGE_HOST);
        on_disk += pager->home[page] != PLLM_NONE && !(flags & PAGE_HOST);
        flying += (flags & PAGE_FLIGHT) != 0;
        writing += (flags & PAGE_WRITING) != 0;
        queued += (flags & PAGE_QUEUED) != 0;
        ahead += (flags & PAGE_AHEAD) != 0;
        hinted += (flags & PAGE_HINTED) != 0;
        pinned += pager->pins[page] > 0;
        pages += (flags & (PAGE_LIVE | PAGE_FREEING)) != 0;
        freeing += (flags & PAGE_FREEING) != 0;
    }
    pllm_tiers_stats tiers;
    pllm_tiers_stats_get(pager->tiers, &tiers);
    if (framed != pager->frames_used || framed != tiers.frames_used) broken(pager, 1, PLLM_NONE);
    check_unique(pager, pager->frame, 0, 0, 1);
    if (on_host != tiers.host_used || on_disk != tiers.disk_used) broken(pager, 2, PLLM_NONE);
    check_unique(pager, pager->home, PAGE_HOST, PAGE_HOST, 2);
    check_unique(pager, pager->home, PAGE_HOST, 0, 2);
    check_list(pager, &pager->flight, PAGE_FLIGHT, flying, 3);
    if (writing != pager->writing) broken(pager, 3, PLLM_NONE);
    if (pinned != pager->pinned || pages != pager->pages || freeing != pager->freeing)
        broken(pager, 5, PLLM_NONE);
    if (ahead != pager->ahead_count || hinted != pager->hinted_count ||
        pager->window > pager->order_count)
        broken(pager, 7, PLLM_NONE);
    check_list(pager, &pager->unwritten, PAGE_QUEUED, queued, 8);
    pllm_policy_check(&pager->policy);
    pllm_tiers_check(pager->tiers);
    pllm_transfers_check(pager->transfers);
}
