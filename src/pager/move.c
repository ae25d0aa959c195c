/* move.c - frames and homes, loads and writes, and what happens when one is over.
 *
 * A page has at most one transfer in flight, and while it has one it keeps its frame and its home.
 * The list `flight` holds exactly those pages, in order of submission; since transfers of one lane
 * finish nearly in that order, reaping looks at few more pages than have finished.
 *
 * Taking a frame for a page: a free one; else the policy's victim, if it is clean; on demand,
 * a dirty victim's write is started and the search goes on; then, on demand only, parked pages
 * that nobody holds (read ahead, or in the window), the one needed last first; then a queued
 * prefetch is canceled. If nothing helps the caller waits for what is in flight and asks again. */
#include <assert.h>
#include <errno.h>
#include <string.h>
#include "pager/pager_internal.h"

enum { WRITES_MIN = 4, WRITES_MAX = 64, WRITE_BYTES = 16 << 20, STREAM_BACK = 64 };

/* ---- lists ---- */

void pllm_pager_list_add(pllm_pager *pager, page_list *list, uint32_t page)
{
    pager->link_prev[page] = list->tail;
    pager->link_next[page] = PLLM_NONE;
    if (list->tail == PLLM_NONE)
        list->head = page;
    else
        pager->link_next[list->tail] = page;
    list->tail = page;
    list->count++;
}

void pllm_pager_list_remove(pllm_pager *pager, page_list *list, uint32_t page)
{
    uint32_t prev = pager->link_prev[page], next = pager->link_next[page];
    if (prev == PLLM_NONE)
        list->head = next;
    else
        pager->link_next[prev] = next;
    if (next == PLLM_NONE)
        list->tail = prev;
    else
        pager->link_prev[next] = prev;
    list->count--;
}

static void queue_remove(pllm_pager *pager, uint32_t page)
{
    if (!(pager->flags[page] & PAGE_QUEUED)) return;
    pager->flags[page] &= ~(uint32_t)PAGE_QUEUED;
    pllm_pager_list_remove(pager, &pager->unwritten, page);
}

/* ---- failures ---- */

/* Keeps the first failure of a call, with its sentence, until the call returns it. What fails here
 * has just written its record: pllm_transfer_state describes at each asking, a submit fills it. */
static void note_failure(pllm_error *failure, int status)
{
    if (failure->status) return;
    const pllm_error *last = pllm_last_error();
    *failure = last->status == status ? *last : (pllm_error){.status = status};
}

/* The failure kept, once more in this thread's record. */
int pllm_pager_fail_again(const pllm_error *failure)
{
    if (!failure->text[0]) return failure->status;
    return pllm_fail(failure->status, failure->native, "%s", failure->text);
}

/* A call that may wait begins: failures are its own, and writes that failed may be tried again. */
void pllm_pager_begin(pllm_pager *pager)
{
    pager->epoch++;
    pager->load_failure = pager->write_failure = (pllm_error){0};
    pager->frame_limit = pllm_tiers_frame_limit(pager->tiers);
    pllm_policy_set_capacity(&pager->policy, pager->frame_limit);
}

static int fail_no_home(const pllm_pager *pager)
{
    pllm_tiers_stats tiers;
    pllm_tiers_stats_get(pager->tiers, &tiers);
    return pllm_fail(PLLM_ELIMIT, 0,
                     "a page must leave the device but there is no room for it: all %u pages of "
                     "host memory and %u pages of disk, of %llu bytes each, are taken; raise "
                     "--host-memory or --nvme-size",
                     tiers.host_count, tiers.disk_count, (unsigned long long)tiers.page_bytes);
}

/* Only the disk loses pages: copies from host memory fail with the device, which loses none. */
int pllm_pager_fail_lost(const pllm_pager *pager, uint32_t page)
{
    const pllm_disk *disk = pllm_tiers_disk(pager->tiers);
    const char *folder = disk ? disk->folder : "";
    if (pager->flags[page] & PAGE_LOST_CORRUPT)
        return pllm_fail(
            PLLM_ECORRUPT, 0,
            "page %u (a block of the KV cache, or of a tensor) is lost: what the spill "
            "file in %s gave back does not match its checksum; feed its sequence "
            "again, check that disk, or choose another folder with --nvme-path",
            page, folder);
    int native = pager->lost_native[page];
    return pllm_fail(PLLM_EIO, native,
                     "page %u (a block of the KV cache, or of a tensor) is lost: it could not be "
                     "read back from the spill file in %s (%s); feed its sequence again, check "
                     "that disk, or choose another folder with --nvme-path",
                     page, folder, strerror(native > 0 ? native : EIO));
}

/* ---- frames ---- */

static void frame_give(pllm_pager *pager, uint32_t page, uint32_t frame)
{
    pager->frame[page] = frame;
    pager->frames_used++;
    if (pager->frames_used > pager->resident_peak) pager->resident_peak = pager->frames_used;
}

void pllm_pager_frame_drop(pllm_pager *pager, uint32_t page)
{
    uint32_t frame = pager->frame[page];
    pager->frame[page] = PLLM_NONE;
    pager->frames_used--;
    pllm_tiers_frame_free(pager->tiers, frame);
}

/* A resident page that nothing holds goes; its home has its content. */
void pllm_pager_evict_clean(pllm_pager *pager, uint32_t page)
{
    assert(!pager->pins[page] && !(pager->flags[page] & (PAGE_FLIGHT | PAGE_DIRTY)));
    pllm_policy_leave(&pager->policy, page, 1);
    if (pager->flags[page] & PAGE_PREFETCHED) pager->stats.prefetch_wasted++;
    page_not_awaited(pager, page);
    pllm_pager_frame_drop(pager, page);
    pager->stats.evictions++;
}

/* Frames whose pages are leaving are of no use to those that would stay: no more than it takes to
 * keep the link busy. */
static uint32_t writes_max(const pllm_pager *pager)
{
    uint64_t enough = WRITE_BYTES / pllm_tiers_page_bytes(pager->tiers);
    uint32_t wanted = pager->frame_limit / 8;
    if (wanted > enough) wanted = (uint32_t)enough;
    return wanted < WRITES_MIN ? WRITES_MIN : wanted > WRITES_MAX ? WRITES_MAX : wanted;
}

/* Starts writing a page that should go, unless enough is being written or it failed just now.
 * 1: it is being written, 0: not now, but when others are, negative: not in this call. */
int pllm_pager_evict_write(pllm_pager *pager, uint32_t page)
{
    if (pager->failed_epoch[page] == pager->epoch) return PLLM_EIO;
    if (pager->writing >= writes_max(pager)) return 0;
    int status = pllm_pager_write_start(pager, page, PLLM_DEMAND);
    if (status == PLLM_OK) {
        pager->flags[page] |= PAGE_LEAVING;
        pager->stats.evictions_dirty++;
    } else if (status != PLLM_EBUSY && !pager->write_failure.status) {
        note_failure(&pager->write_failure, status == PLLM_ELIMIT ? fail_no_home(pager) : status);
    }
    return status == PLLM_OK ? 1 : status == PLLM_EBUSY ? 0 : status;
}

static int may_go_for_prefetch(void *user, uint32_t page)
{
    pllm_pager *pager = user;
    return !pager->pins[page] && !(pager->flags[page] & (PAGE_FLIGHT | PAGE_DIRTY)) &&
           !page_in_window(pager, page);
}

static int may_go_for_demand(void *user, uint32_t page)
{
    pllm_pager *pager = user;
    if (may_go_for_prefetch(user, page)) return 1;
    if (!pager->pins[page] && (pager->flags[page] & (PAGE_FLIGHT | PAGE_DIRTY)) == PAGE_DIRTY)
        (void)pllm_pager_evict_write(pager, page);
    return 0;
}

/* Of the parked pages that nothing holds, the one that is needed last. */
static uint32_t parked_victim(pllm_pager *pager)
{
    uint32_t best = PLLM_NONE, best_distance = 0;
    for (uint32_t page = PLLM_NONE;
         (page = pllm_policy_parked_next(&pager->policy, page)) != PLLM_NONE;) {
        if (pager->pins[page] || (pager->flags[page] & PAGE_FLIGHT)) continue;
        if (pager->flags[page] & PAGE_DIRTY) {
            (void)pllm_pager_evict_write(pager, page);
            continue;
        }
        uint32_t distance = pager->flags[page] & PAGE_HINTED ? 0 : page_distance(pager, page);
        if (best == PLLM_NONE || distance > best_distance) best = page, best_distance = distance;
    }
    return best;
}

/* Takes the youngest load that nobody waits for out of its queue. */
static int cancel_a_load(pllm_pager *pager)
{
    for (uint32_t page = pager->flight.tail; page != PLLM_NONE; page = pager->link_prev[page])
        if ((pager->flags[page] & PAGE_LOADING) && !pager->pins[page] &&
            pllm_pager_flight_cancel(pager, page) == PLLM_OK)
            return 1;
    return 0;
}

/* A page that can go at once, or PLLM_NONE. */
uint32_t pllm_pager_victim(pllm_pager *pager, frame_wish wish)
{
    if (wish == FRAME_PREFETCH)
        return pllm_policy_victim(&pager->policy, may_go_for_prefetch, pager);
    uint32_t victim = pllm_policy_victim(&pager->policy, may_go_for_demand, pager);
    return victim != PLLM_NONE ? victim : parked_victim(pager);
}

/* Makes a frame free without waiting: 1, or 0. */
static int frame_make(pllm_pager *pager, frame_wish wish)
{
    uint32_t victim = pllm_pager_victim(pager, wish);
    if (victim != PLLM_NONE) {
        pllm_pager_evict_clean(pager, victim);
        return 1;
    }
    return wish == FRAME_DEMAND && cancel_a_load(pager);
}

/* Gives the page a frame. ENODEVMEM (bare): none to be had without waiting. Others: as tiers. */
int pllm_pager_frame_take(pllm_pager *pager, uint32_t page, frame_wish wish)
{
    uint32_t frame;
    int status;
    while ((status = pllm_tiers_frame_alloc(pager->tiers, &frame)) == PLLM_ENODEVMEM)
        if (!frame_make(pager, wish)) return PLLM_ENODEVMEM;
    if (status == PLLM_OK) frame_give(pager, page, frame);
    return status;
}

/* ---- homes ---- */

void pllm_pager_home_drop(pllm_pager *pager, uint32_t page)
{
    if (pager->home[page] == PLLM_NONE) return;
    pllm_tiers_slot_free(pager->tiers, pager->flags[page] & PAGE_HOST ? PLLM_AT_HOST : PLLM_AT_DISK,
                         pager->home[page]);
    pager->home[page] = PLLM_NONE;
    pager->flags[page] &= ~(uint32_t)PAGE_HOST;
}

/* The slot that a slot of this place given to page should follow. */
static uint32_t slot_before(const pllm_pager *pager, uint32_t page, uint32_t place_flag)
{
    uint32_t before = pager->follows[page];
    if (before == PLLM_NONE || pager->home[before] == PLLM_NONE) return PLLM_NONE;
    return (pager->flags[before] & PAGE_HOST) == place_flag ? pager->home[before] : PLLM_NONE;
}

static int home_take_on_disk(pllm_pager *pager, uint32_t page)
{
    uint32_t slot;
    int status =
        pllm_tiers_slot_alloc(pager->tiers, PLLM_AT_DISK, slot_before(pager, page, 0), &slot);
    if (status == PLLM_OK) pager->home[page] = slot;
    return status;
}

/* Is there room on disk for every page on the device, whatever is given early now? */
static int disk_is_roomy(const pllm_pager *pager)
{
    pllm_tiers_stats tiers;
    pllm_tiers_stats_get(pager->tiers, &tiers);
    return tiers.disk_count - tiers.disk_used > (uint64_t)pager->frame_limit + STREAM_BACK;
}

/* Slots on disk are given in the order of the stream: before a page gets its own, the pages before
 * it that are still without one get theirs. Most of them will leave too, and under `static` they do
 * so last first: their slots would be in no order, and reading the stream would be many short
 * reads. */
static void homes_before(pllm_pager *pager, uint32_t page)
{
    uint32_t before[STREAM_BACK], count = 0;
    for (uint32_t p = pager->follows[page]; count < STREAM_BACK && p != PLLM_NONE;
         p = pager->follows[p]) {
        if (pager->home[p] != PLLM_NONE || !(pager->flags[p] & PAGE_DIRTY)) break;
        before[count++] = p;
    }
    if (count == 0 || !disk_is_roomy(pager)) return;
    while (count-- > 0) { /* page numbers that are used anew may lead in a circle */
        uint32_t p = before[count];
        if (p == page || pager->home[p] != PLLM_NONE) continue;
        if (home_take_on_disk(pager, p) < 0) return;
        pager->homes_early++;
    }
}

/* The disk is full: slots given early to pages that have not left yet are given back, so that they
 * never keep another page from leaving. 1: there were some. */
static int homes_reclaim(pllm_pager *pager)
{
    uint32_t found = 0;
    for (uint32_t page = 0; pager->homes_early && page < pager->page_max; page++) {
        if (pager->home[page] == PLLM_NONE) continue;
        if ((pager->flags[page] & (PAGE_DIRTY | PAGE_FLIGHT | PAGE_HOST)) != PAGE_DIRTY) continue;
        pllm_pager_home_drop(pager, page);
        found = 1;
    }
    pager->homes_early = 0;
    return (int)found;
}

/* ELIMIT (bare): neither place has room. */
static int home_take(pllm_pager *pager, uint32_t page)
{
    uint32_t slot;
    int status = pllm_tiers_slot_alloc(pager->tiers, PLLM_AT_HOST,
                                       slot_before(pager, page, PAGE_HOST), &slot);
    if (status == PLLM_OK) {
        pager->flags[page] |= PAGE_HOST;
        pager->home[page] = slot;
        return PLLM_OK;
    }
    homes_before(pager, page);
    status = home_take_on_disk(pager, page);
    if (status == PLLM_ELIMIT && homes_reclaim(pager)) status = home_take_on_disk(pager, page);
    return status;
}

/* ---- transfers ---- */

static int flight_start(pllm_pager *pager, uint32_t page, int write, pllm_priority priority)
{
    pllm_place home = pager->flags[page] & PAGE_HOST ? PLLM_AT_HOST : PLLM_AT_DISK;
    pllm_transfer transfer = {
        .from = write ? PLLM_AT_DEVICE : home,
        .to = write ? home : PLLM_AT_DEVICE,
        .frame = pager->frame[page],
        .slot = pager->home[page],
        .priority = priority,
        .tag = (uint64_t)pager->version[page] << 32 | page,
    };
    int status = pllm_transfer_submit(pager->transfers, &transfer, &pager->ticket[page]);
    if (status < 0) return status;
    pager->flags[page] |= write ? PAGE_WRITING : PAGE_LOADING;
    if (priority == PLLM_DEMAND) pager->flags[page] |= PAGE_DEMANDED;
    pager->writing += (uint32_t)write;
    pager->submitted = 1;
    pllm_pager_list_add(pager, &pager->flight, page);
    return PLLM_OK;
}

/* The page has a frame and a home with its content. On failure it has its frame still. */
int pllm_pager_load_start(pllm_pager *pager, uint32_t page, pllm_priority priority)
{
    assert(pager->home[page] != PLLM_NONE && !(pager->flags[page] & (PAGE_DIRTY | PAGE_FLIGHT)));
    return flight_start(pager, page, 0, priority);
}

/* The page is resident and dirty. Gives it a home if it has none. ELIMIT (bare): there is no
 * room for one. */
int pllm_pager_write_start(pllm_pager *pager, uint32_t page, pllm_priority priority)
{
    assert((pager->flags[page] & (PAGE_DIRTY | PAGE_FLIGHT)) == PAGE_DIRTY);
    int status = pager->home[page] == PLLM_NONE ? home_take(pager, page) : PLLM_OK;
    if (status < 0) return status;
    pager->version[page]++;
    uint32_t queued = pager->flags[page] & PAGE_QUEUED;
    queue_remove(pager, page);
    status = flight_start(pager, page, 1, priority);
    if (status < 0) {
        if (queued) {
            pager->flags[page] |= PAGE_QUEUED;
            pllm_pager_list_add(pager, &pager->unwritten, page);
        }
        if (status != PLLM_EBUSY) pager->failed_epoch[page] = pager->epoch;
    }
    return status;
}

void pllm_pager_flight_promote(pllm_pager *pager, uint32_t page)
{
    if (pager->flags[page] & PAGE_DEMANDED) return;
    pager->flags[page] |= PAGE_DEMANDED;
    pllm_transfer_promote(pager->transfers, pager->ticket[page], PLLM_DEMAND);
}

/* Takes the page's transfer off the list of what is in flight; its ticket is forgotten. */
static void flight_end(pllm_pager *pager, uint32_t page)
{
    pllm_transfer_release(pager->transfers, pager->ticket[page]);
    pager->ticket[page] = 0;
    pllm_pager_list_remove(pager, &pager->flight, page);
    pager->writing -= (pager->flags[page] & PAGE_WRITING) != 0;
    pager->flags[page] &= ~(uint32_t)(PAGE_FLIGHT | PAGE_DEMANDED | PAGE_LEAVING);
}

/* OK: the transfer has not started and never will; a load's frame is free again, a written page
 * is dirty as before. EBUSY: it has started. */
int pllm_pager_flight_cancel(pllm_pager *pager, uint32_t page)
{
    int status = pllm_transfer_cancel(pager->transfers, pager->ticket[page]);
    if (status < 0) return status;
    int loading = (pager->flags[page] & PAGE_LOADING) != 0;
    flight_end(pager, page);
    if (loading) {
        if (pager->flags[page] & PAGE_PREFETCHED) pager->stats.prefetch_wasted++;
        page_not_awaited(pager, page);
        pllm_pager_frame_drop(pager, page);
    } else if ((pager->flags[page] & (PAGE_SEALED | PAGE_FREEING)) == PAGE_SEALED) {
        pager->flags[page] |= PAGE_QUEUED;
        pllm_pager_list_add(pager, &pager->unwritten, page);
    }
    return PLLM_OK;
}

static void load_over(pllm_pager *pager, uint32_t page, int state)
{
    uint32_t *flags = &pager->flags[page];
    if (state > 0) {
        /* Read ahead and not yet used: no candidate until it is used or the scan turns away. */
        pllm_policy_arrive(&pager->policy, page, (*flags & (PAGE_AHEAD | PAGE_HINTED)) != 0);
        return;
    }
    if (state == PLLM_EIO || state == PLLM_ECORRUPT) {
        pager->lost_native[page] = pllm_last_error()->native;
        *flags |= state == PLLM_EIO ? PAGE_LOST_IO : PAGE_LOST_CORRUPT;
    } else if (pager->pins[page]) {
        note_failure(&pager->load_failure, state);
    }
    if (*flags & PAGE_PREFETCHED) pager->stats.prefetch_wasted++;
    page_not_awaited(pager, page);
    pllm_pager_frame_drop(pager, page);
}

static void write_over(pllm_pager *pager, uint32_t page, int state, uint32_t flags)
{
    if (state > 0) {
        pager->flags[page] &= ~(uint32_t)PAGE_DIRTY;
        if (!(flags & PAGE_DEMANDED)) pager->stats.written_behind++;
        if (pager->pins[page] || (pager->flags[page] & (PAGE_AHEAD | PAGE_HINTED))) return;
        if (flags & PAGE_LEAVING)
            pllm_policy_offer_first(&pager->policy, page);
        else
            pllm_policy_offer(&pager->policy, page);
        return;
    }
    /* Still dirty. Not queued again: a dead disk would be asked for ever. A search for victims
     * tries once more each time somebody waits for a frame. */
    pager->failed_epoch[page] = pager->epoch;
    note_failure(&pager->write_failure, state);
}

static void flight_over(pllm_pager *pager, uint32_t page, int state)
{
    uint32_t flags = pager->flags[page];
    int loading = (flags & PAGE_LOADING) != 0;
    flight_end(pager, page);
    if (pager->flags[page] & PAGE_FREEING) {
        if (loading) pllm_pager_frame_drop(pager, page); /* the policy never knew it */
        pllm_pager_page_release(pager, page);
    } else if (loading) {
        load_over(pager, page, state);
    } else {
        write_over(pager, page, state, flags);
    }
}

/* Looks at what is in flight, oldest first, until as many are over as transfers said. */
static void reap(pllm_pager *pager)
{
    uint32_t page = pager->flight.head;
    while (page != PLLM_NONE) {
        uint32_t next = pager->link_next[page];
        int state = pllm_transfer_state(pager->transfers, pager->ticket[page]);
        if (state != 0) {
            flight_over(pager, page, state);
            if (pager->unreaped) pager->unreaped--;
        }
        if (!pager->unreaped) return;
        page = next;
    }
    pager->unreaped = 0;
}

/* Under pressure sealed pages are written in the order they were sealed, so that a stream's homes
 * become neighbours; a few at a time. */
static void write_behind_pump(pllm_pager *pager)
{
    if (!pager->unwritten.count || pager->frame_limit >= pager->page_max) return;
    if ((uint64_t)pager->frames_used * 4 <= (uint64_t)pager->frame_limit * 3) return;
    uint32_t limit = writes_max(pager);
    while (pager->unwritten.count && pager->writing < limit)
        if (pllm_pager_write_start(pager, pager->unwritten.head, PLLM_WRITE_BEHIND) < 0) break;
}

/* Asks transfers to go on, and looks at what is over. */
static int poll_transfers(pllm_pager *pager)
{
    if (!pager->flight.count) return PLLM_OK;
    pager->submitted = 0;
    int status = pllm_transfers_poll(pager->transfers);
    if (status > 0) pager->unreaped += (uint32_t)status;
    if (!pllm_transfers_pending(pager->transfers)) pager->unreaped = pager->flight.count;
    if (pager->unreaped) reap(pager);
    return status < 0 ? status : PLLM_OK;
}

/* Everything that can go on without waiting. Returns a failure of the transfer engine itself. */
int pllm_pager_advance(pllm_pager *pager)
{
    pager->touched = 0;
    int status = poll_transfers(pager);
    write_behind_pump(pager);
    if (!pager->starved) pllm_pager_prefetch_pump(pager);
    if (!pager->submitted || status < 0) return status;
    return poll_transfers(pager); /* a submitted transfer starts when polled */
}

/* Waits for something in flight to be over. */
int pllm_pager_wait(pllm_pager *pager)
{
    uint64_t start = pager->device->ops->now_ns(pager->device);
    int status = pllm_transfers_wait_any(pager->transfers, UINT64_MAX);
    pager->stats.wait_ns += pager->device->ops->now_ns(pager->device) - start;
    if (status > 0) pager->unreaped += (uint32_t)status;
    int advanced = pllm_pager_advance(pager);
    return status < 0 ? status : advanced;
}

/* Is there something in flight that nobody waits for? When it is over a frame can be had. */
int pllm_pager_can_move(const pllm_pager *pager)
{
    for (uint32_t page = pager->flight.head; page != PLLM_NONE; page = pager->link_next[page])
        if ((pager->flags[page] & PAGE_WRITING) || !pager->pins[page]) return 1;
    return 0;
}
