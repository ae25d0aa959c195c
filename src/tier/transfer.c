/* transfer.c - tickets, queues and waiting; transfer_internal.h has the picture. */
#include <stdlib.h>
#include <string.h>
#include "tier/transfer_internal.h"

enum {
    TICKET_MAX = 4096,
    SPIN_POLLS = 16,      /* a few microseconds before the first sleep */
    SLICE_NS = 250 * 1000 /* of sleep on one lane while others are busy too */
};

/* ---- tickets ---- */

static pllm_ticket ticket_of(const pllm_transfers *transfers, uint32_t index)
{
    return (uint64_t)transfers->requests[index].generation << 32 | (index + 1);
}

/* The index of a ticket that is known and not released, or PLLM_NONE. */
static uint32_t ticket_index(const pllm_transfers *transfers, pllm_ticket ticket)
{
    uint32_t index = (uint32_t)ticket - 1;
    if (index >= transfers->request_max) return PLLM_NONE;
    const transfer_request *r = &transfers->requests[index];
    int known = r->state != REQUEST_FREE && !r->released && r->generation == ticket >> 32;
    return known ? index : PLLM_NONE;
}

static void request_forget(pllm_transfers *transfers, uint32_t index)
{
    transfer_request *r = &transfers->requests[index];
    r->state = REQUEST_FREE;
    r->generation++;
    r->next = transfers->free_first;
    transfers->free_first = index;
}

/* ---- queues ---- */

void pllm_transfer_enqueue(pllm_transfers *transfers, uint32_t index, int at_front)
{
    transfer_request *r = &transfers->requests[index];
    request_list *queue = &transfers->queues[r->lane][r->priority];
    r->state = REQUEST_QUEUED;
    r->prev = at_front ? PLLM_NONE : queue->last;
    r->next = at_front ? queue->first : PLLM_NONE;
    if (r->prev == PLLM_NONE)
        queue->first = index;
    else
        transfers->requests[r->prev].next = index;
    if (r->next == PLLM_NONE)
        queue->last = index;
    else
        transfers->requests[r->next].prev = index;
}

void pllm_transfer_dequeue(pllm_transfers *transfers, uint32_t index)
{
    transfer_request *r = &transfers->requests[index];
    request_list *queue = &transfers->queues[r->lane][r->priority];
    if (r->prev == PLLM_NONE)
        queue->first = r->next;
    else
        transfers->requests[r->prev].next = r->next;
    if (r->next == PLLM_NONE)
        queue->last = r->prev;
    else
        transfers->requests[r->next].prev = r->prev;
    r->next = r->prev = PLLM_NONE;
}

/* ---- requests by slot ---- */

static uint32_t *bucket_of(const pllm_transfers *transfers, uint32_t lane, uint32_t slot)
{
    uint32_t key = (slot << 1 | (uint32_t)lane_is_disk(lane)) * UINT32_C(2654435769);
    return &transfers->buckets[(key >> 7) & transfers->bucket_mask];
}

static int same_slot(const transfer_request *r, uint32_t lane, uint32_t slot)
{
    return r->slot == slot && lane_is_disk(r->lane) == lane_is_disk(lane);
}

/* The newest unfinished request that touches a slot. */
static uint32_t newest_of(const pllm_transfers *transfers, uint32_t lane, uint32_t slot)
{
    uint32_t index = *bucket_of(transfers, lane, slot);
    while (index != PLLM_NONE && !same_slot(&transfers->requests[index], lane, slot))
        index = transfers->requests[index].chain;
    return index;
}

uint32_t pllm_transfer_find(const pllm_transfers *transfers, uint32_t lane, uint32_t priority,
                            uint32_t slot)
{
    uint32_t index = *bucket_of(transfers, lane, slot);
    for (; index != PLLM_NONE; index = transfers->requests[index].chain) {
        const transfer_request *r = &transfers->requests[index];
        if (r->slot == slot && r->lane == lane && r->state == REQUEST_QUEUED &&
            r->priority == priority && !r->solo)
            return index;
    }
    return PLLM_NONE;
}

static void bucket_remove(pllm_transfers *transfers, uint32_t index)
{
    transfer_request *r = &transfers->requests[index];
    uint32_t *link = bucket_of(transfers, r->lane, r->slot);
    while (*link != index) link = &transfers->requests[*link].chain;
    *link = r->chain;
    r->chain = PLLM_NONE;
}

/* The one request that waits for this one, or PLLM_NONE: each waits for the newest before it. */
static uint32_t waiter_of(const pllm_transfers *transfers, uint32_t index)
{
    const transfer_request *r = &transfers->requests[index];
    uint32_t other = *bucket_of(transfers, r->lane, r->slot);
    while (other != PLLM_NONE && transfers->requests[other].waits_on != index)
        other = transfers->requests[other].chain;
    return other;
}

static void raise_priority(pllm_transfers *transfers, uint32_t index, uint32_t priority)
{
    for (; index != PLLM_NONE; index = transfers->requests[index].waits_on) {
        transfer_request *r = &transfers->requests[index];
        if (r->priority <= priority) continue;
        if (r->state == REQUEST_QUEUED) {
            pllm_transfer_dequeue(transfers, index);
            r->priority = (uint8_t)priority;
            pllm_transfer_enqueue(transfers, index, 0);
        } else if (r->state == REQUEST_BLOCKED) {
            r->priority = (uint8_t)priority;
        }
    }
}

/* ---- the end of a request ---- */

static void count_finished(pllm_transfers *transfers, const transfer_request *r)
{
    static const uint8_t from[] = {PLLM_AT_HOST, PLLM_AT_DEVICE, PLLM_AT_DISK, PLLM_AT_DEVICE};
    static const uint8_t to[] = {PLLM_AT_DEVICE, PLLM_AT_HOST, PLLM_AT_DEVICE, PLLM_AT_DISK};
    pllm_transfers_stats *stats = &transfers->stats;
    if (r->status == PLLM_OK) {
        stats->pages[from[r->lane]][to[r->lane]]++;
        stats->bytes[from[r->lane]][to[r->lane]] += r->bytes;
    } else if (r->status != PLLM_ECANCELED) {
        stats->failed++;
        stats->corrupt += r->status == PLLM_ECORRUPT && !r->inherited;
    }
}

void pllm_transfer_finish(pllm_transfers *transfers, uint32_t index, int status, int native)
{
    for (;;) {
        transfer_request *r = &transfers->requests[index];
        r->state = REQUEST_OVER;
        r->status = status;
        r->native = native;
        count_finished(transfers, r);
        uint32_t waiter = waiter_of(transfers, index);
        bucket_remove(transfers, index);
        transfers->pending--;
        transfers->finished++;
        /* What the slot holds now is not what the waiting read was promised. */
        int is_write = r->lane == LANE_OUT || r->lane == LANE_WRITE;
        int spoiled = status < 0 && status != PLLM_ECANCELED && (is_write || r->inherited);
        if (r->released) request_forget(transfers, index);
        if (waiter == PLLM_NONE) return;
        transfer_request *w = &transfers->requests[waiter];
        w->waits_on = PLLM_NONE;
        if (!spoiled || w->lane == LANE_OUT || w->lane == LANE_WRITE) {
            pllm_transfer_enqueue(transfers, waiter, 0);
            return;
        }
        w->inherited = 1;
        index = waiter;
    }
}

/* ---- the interface ---- */

static int lane_of(const pllm_transfer *transfer)
{
    if (transfer->to == PLLM_AT_DEVICE && transfer->from == PLLM_AT_HOST) return LANE_IN;
    if (transfer->to == PLLM_AT_DEVICE && transfer->from == PLLM_AT_DISK) return LANE_READ;
    if (transfer->from == PLLM_AT_DEVICE && transfer->to == PLLM_AT_HOST) return LANE_OUT;
    if (transfer->from == PLLM_AT_DEVICE && transfer->to == PLLM_AT_DISK) return LANE_WRITE;
    return -1;
}

slot_record *pllm_transfer_record(const pllm_transfers *transfers, uint32_t slot)
{
    slot_record *block = transfers->records[slot / RECORD_BLOCK];
    return block ? &block[slot % RECORD_BLOCK] : NULL;
}

static int record_reserve(pllm_transfers *transfers, uint32_t slot)
{
    slot_record **block = &transfers->records[slot / RECORD_BLOCK];
    if (*block) return PLLM_OK;
    *block = pllm_alloc_array(transfers->context, RECORD_BLOCK, sizeof **block);
    return *block ? PLLM_OK
                  : pllm_fail_memory("headers of spilled pages", RECORD_BLOCK * sizeof **block);
}

static int check_transfer(pllm_transfers *transfers, const pllm_transfer *transfer, int lane)
{
    if (lane < 0 || (uint32_t)transfer->priority >= PRIORITY_COUNT)
        return pllm_fail(PLLM_EINVAL, 0,
                         "no transfer goes from place %d to place %d at priority %d",
                         (int)transfer->from, (int)transfer->to, (int)transfer->priority);
    pllm_place place = lane_is_disk((uint32_t)lane) ? PLLM_AT_DISK : PLLM_AT_HOST;
    if ((!transfer->va &&
         transfer->frame >= pllm_tiers_slot_count(transfers->tiers, PLLM_AT_DEVICE)) ||
        transfer->slot >= pllm_tiers_slot_count(transfers->tiers, place))
        return pllm_fail(PLLM_EINVAL, 0, "frame %u or slot %u is out of range", transfer->frame,
                         transfer->slot);
    if (transfer->bytes > transfers->page_bytes)
        return pllm_fail(PLLM_EINVAL, 0, "%u bytes are more than a page", transfer->bytes);
    return lane == LANE_WRITE ? record_reserve(transfers, transfer->slot) : PLLM_OK;
}

int pllm_transfer_submit(pllm_transfers *transfers, const pllm_transfer *transfer,
                         pllm_ticket *ticket_out)
{
    *ticket_out = 0;
    int lane = lane_of(transfer);
    int status = check_transfer(transfers, transfer, lane);
    if (status < 0) return status;
    uint32_t index = transfers->free_first;
    if (index == PLLM_NONE) return PLLM_EBUSY;
    transfer_request *r = &transfers->requests[index];
    transfers->free_first = r->next;
    *r = (transfer_request){
        .generation = r->generation,
        .lane = (uint8_t)lane,
        .priority = (uint8_t)transfer->priority,
        .slot = transfer->slot,
        .bytes = transfer->bytes ? transfer->bytes : (uint32_t)transfers->page_bytes,
        .va = transfer->va ? transfer->va : pllm_tiers_frame_va(transfers->tiers, transfer->frame),
        .tag = transfer->tag,
        .next = PLLM_NONE,
        .prev = PLLM_NONE};
    uint32_t *bucket = bucket_of(transfers, r->lane, r->slot);
    r->waits_on = newest_of(transfers, r->lane, r->slot);
    r->chain = *bucket;
    *bucket = index;
    transfers->pending++;
    if (r->waits_on == PLLM_NONE) {
        pllm_transfer_enqueue(transfers, index, 0);
    } else {
        r->state = REQUEST_BLOCKED;
        raise_priority(transfers, r->waits_on, r->priority);
    }
    *ticket_out = ticket_of(transfers, index);
    return PLLM_OK;
}

/* Composed only when somebody asks: failures are carried as two numbers. */
static int describe_failure(const pllm_transfers *transfers, const transfer_request *r)
{
    const char *folder = transfers->disk ? transfers->disk->folder : "";
    const char *why = strerror(r->native > 0 ? r->native : 5);
    switch (r->status) {
    case PLLM_ECORRUPT:
        return pllm_fail(r->status, r->native,
                         "a page read back from the spill file in %s does not match its checksum: "
                         "the disk returned other bytes than were written",
                         folder);
    case PLLM_ECANCELED:
        return pllm_fail(r->status, 0, "the transfer was canceled");
    case PLLM_EIO:
        if (r->lane == LANE_READ && !r->inherited)
            return pllm_fail(r->status, r->native,
                             "a page could not be read back from the spill file in %s: %s; choose "
                             "another folder with --nvme-path",
                             folder, why);
        return pllm_fail(r->status, r->native,
                         "a page could not be written to the spill file in %s: %s; choose another "
                         "folder with --nvme-path or less with --nvme-size",
                         folder, why);
    case PLLM_ENOMEM:
        return pllm_fail(r->status, r->native, "no host memory to start copying a page");
    default:
        return pllm_fail(r->status, r->native,
                         "a page could not be copied %s the device (device code %d)",
                         r->lane == LANE_IN || r->lane == LANE_READ ? "to" : "from", r->native);
    }
}

static int stale(pllm_ticket ticket)
{
    return pllm_fail(PLLM_ESTALE, 0, "transfer %llx is over and forgotten, or never was",
                     (unsigned long long)ticket);
}

int pllm_transfer_state(pllm_transfers *transfers, pllm_ticket ticket)
{
    uint32_t index = ticket_index(transfers, ticket);
    if (index == PLLM_NONE) return stale(ticket);
    const transfer_request *r = &transfers->requests[index];
    if (r->state != REQUEST_OVER) return 0;
    return r->status == PLLM_OK ? 1 : describe_failure(transfers, r);
}

void pllm_transfer_promote(pllm_transfers *transfers, pllm_ticket ticket, pllm_priority priority)
{
    uint32_t index = ticket_index(transfers, ticket);
    if (index != PLLM_NONE && transfers->requests[index].state != REQUEST_OVER)
        raise_priority(transfers, index, priority);
}

int pllm_transfer_cancel(pllm_transfers *transfers, pllm_ticket ticket)
{
    uint32_t index = ticket_index(transfers, ticket);
    if (index == PLLM_NONE) return stale(ticket);
    transfer_request *r = &transfers->requests[index];
    if (r->state == REQUEST_BLOCKED) {
        /* As if it had never been: whoever waits for it waits for what it waited for. */
        uint32_t waiter = waiter_of(transfers, index);
        if (waiter != PLLM_NONE) transfers->requests[waiter].waits_on = r->waits_on;
        r->waits_on = PLLM_NONE;
    } else if (r->state == REQUEST_QUEUED) {
        pllm_transfer_dequeue(transfers, index);
    } else {
        return PLLM_EBUSY;
    }
    pllm_transfer_finish(transfers, index, PLLM_ECANCELED, 0);
    return PLLM_OK;
}

void pllm_transfer_release(pllm_transfers *transfers, pllm_ticket ticket)
{
    uint32_t index = ticket_index(transfers, ticket);
    if (index == PLLM_NONE) return;
    if (transfers->requests[index].state == REQUEST_OVER)
        request_forget(transfers, index);
    else
        transfers->requests[index].released = 1;
}

int pllm_transfers_poll(pllm_transfers *transfers)
{
    if (transfers->pending == 0) return 0;
    transfers->finished = 0;
    pllm_runs_reap(transfers);
    pllm_runs_start(transfers);
    return (int)transfers->finished;
}

typedef struct stopwatch {
    pllm_device *device;
    uint64_t start_ns, slept_ns, timeout_ns;
} stopwatch;

/* What is left. Sleeps that ran their full time count even where the clock stood still, as a
 * virtual one does while only the disk is waited for. */
static uint64_t time_left(const stopwatch *watch)
{
    if (watch->timeout_ns == UINT64_MAX) return UINT64_MAX;
    uint64_t passed = watch->device->ops->now_ns(watch->device) - watch->start_ns;
    if (passed < watch->slept_ns) passed = watch->slept_ns;
    return passed < watch->timeout_ns ? watch->timeout_ns - passed : 0;
}

/* A few polls, then sleeps; until something finished, nothing is pending or the time is up. */
static int wait_some(pllm_transfers *transfers, stopwatch *watch)
{
    int finished = 0;
    for (uint32_t i = 0; i < SPIN_POLLS; i++) {
        finished = pllm_transfers_poll(transfers);
        if (finished || !transfers->pending || !watch->timeout_ns) return finished;
    }
    while (!finished && transfers->pending) {
        uint64_t left = time_left(watch);
        if (left == 0) break;
        uint64_t slice = left < SLICE_NS ? left : SLICE_NS;
        transfers->finished = 0;
        if (pllm_runs_wait(transfers, slice)) watch->slept_ns += slice;
        finished = (int)transfers->finished;
        finished += pllm_transfers_poll(transfers);
    }
    return finished;
}

int pllm_transfers_wait_any(pllm_transfers *transfers, uint64_t timeout_ns)
{
    if (transfers->pending == 0) return 0;
    stopwatch watch = {transfers->device, transfers->device->ops->now_ns(transfers->device), 0,
                       timeout_ns};
    return wait_some(transfers, &watch);
}

int pllm_transfer_wait(pllm_transfers *transfers, pllm_ticket ticket, uint64_t timeout_ns)
{
    stopwatch watch = {transfers->device, transfers->device->ops->now_ns(transfers->device), 0,
                       timeout_ns};
    for (;;) {
        int state = pllm_transfer_state(transfers, ticket);
        if (state) return state == 1 ? PLLM_OK : state;
        int finished = wait_some(transfers, &watch);
        if (!finished && time_left(&watch) == 0 && pllm_transfer_state(transfers, ticket) == 0)
            return pllm_fail(PLLM_ETIMEDOUT, 0, "a page had not arrived after %llu ns",
                             (unsigned long long)timeout_ns);
    }
}

uint32_t pllm_transfers_pending(const pllm_transfers *transfers)
{
    return transfers->pending;
}

void pllm_transfers_stats_get(const pllm_transfers *transfers, pllm_transfers_stats *stats_out)
{
    *stats_out = transfers->stats;
}

/* ---- opening ---- */

static int tables_open(pllm_transfers *transfers)
{
    const pllm_context *context = transfers->context;
    uint32_t bucket_count = 64;
    while (bucket_count < transfers->request_max) bucket_count *= 2;
    transfers->bucket_mask = bucket_count - 1;
    transfers->requests =
        pllm_alloc_array(context, transfers->request_max, sizeof *transfers->requests);
    transfers->buckets = pllm_alloc_array(context, bucket_count, sizeof *transfers->buckets);
    if (transfers->disk) {
        uint32_t slots = pllm_tiers_slot_count(transfers->tiers, PLLM_AT_DISK);
        transfers->record_blocks = (slots + RECORD_BLOCK - 1) / RECORD_BLOCK;
        transfers->records =
            pllm_alloc_array(context, transfers->record_blocks, sizeof *transfers->records);
    }
    if (!transfers->requests || !transfers->buckets || (transfers->disk && !transfers->records))
        return pllm_fail_memory("the table of transfers",
                                transfers->request_max * sizeof *transfers->requests);
    memset(transfers->buckets, 0xff, bucket_count * sizeof *transfers->buckets);
    memset(transfers->queues, 0xff, sizeof transfers->queues);
    transfers->free_first = PLLM_NONE;
    for (uint32_t i = transfers->request_max; i-- > 0;) request_forget(transfers, i);
    return PLLM_OK;
}

int pllm_transfers_open(const pllm_context *context, pllm_tiers *tiers,
                        const pllm_transfers_options *options, pllm_transfers **transfers_out)
{
    if (!transfers_out || !tiers || !options || options->struct_bytes != sizeof *options)
        return pllm_fail(PLLM_EINVAL, 0, "transfers need tiers, options of %zu bytes and a result",
                         sizeof *options);
    *transfers_out = NULL;
    if (options->ticket_max > UINT32_C(1) << 24)
        return pllm_fail(PLLM_EINVAL, 0, "%u tickets are more than 2^24", options->ticket_max);
    pllm_transfers *transfers = pllm_alloc(context, sizeof *transfers);
    if (!transfers) return pllm_fail_memory("the transfer engine", sizeof *transfers);
    transfers->context = context;
    transfers->tiers = tiers;
    transfers->device = pllm_tiers_device(tiers);
    transfers->disk = pllm_tiers_disk(tiers);
    transfers->page_bytes = pllm_tiers_page_bytes(tiers);
    transfers->fingerprint = options->fingerprint;
    transfers->format = options->format;
    transfers->request_max = options->ticket_max ? options->ticket_max : TICKET_MAX;
    transfers->extent_pages = pllm_tiers_extent_pages(tiers);
    transfers->staging = pllm_tiers_staging(tiers, &transfers->staging_pages);
    uint64_t wanted = (uint64_t)options->staging_count * transfers->extent_pages;
    if (wanted && wanted < transfers->staging_pages) transfers->staging_pages = (uint32_t)wanted;
    int status = tables_open(transfers);
    if (status == PLLM_OK) status = pllm_runs_open(transfers);
    if (status < 0) {
        pllm_transfers_close(transfers);
        return status;
    }
    *transfers_out = transfers;
    return PLLM_OK;
}

void pllm_transfers_close(pllm_transfers *transfers)
{
    if (!transfers) return;
    pllm_runs_close(transfers);
    for (uint32_t i = 0; transfers->records && i < transfers->record_blocks; i++)
        pllm_free(transfers->context, transfers->records[i]);
    pllm_free(transfers->context, transfers->records);
    pllm_free(transfers->context, transfers->requests);
    pllm_free(transfers->context, transfers->buckets);
    pllm_free(transfers->context, transfers);
}

/* ---- for tests ---- */

static void check(int fact)
{
    if (!fact) abort();
}

static uint32_t count_queued(const pllm_transfers *transfers)
{
    uint32_t count = 0;
    for (uint32_t lane = 0; lane < LANE_COUNT; lane++)
        for (uint32_t priority = 0; priority < PRIORITY_COUNT; priority++) {
            uint32_t index = transfers->queues[lane][priority].first;
            for (; index != PLLM_NONE; index = transfers->requests[index].next) {
                const transfer_request *r = &transfers->requests[index];
                check(r->state == REQUEST_QUEUED && r->lane == lane && r->priority == priority);
                count++;
            }
        }
    return count;
}

static uint32_t count_running(const pllm_transfers *transfers, uint32_t *staging_out,
                              uint64_t *reading_out)
{
    uint32_t count = 0;
    *staging_out = 0;
    *reading_out = 0;
    for (uint32_t i = 0; i < transfers->run_max; i++) {
        const transfer_run *run = &transfers->runs[i];
        if (run->phase == RUN_FREE) continue;
        *staging_out += run->staging == PLLM_NONE ? 0 : run->staging_count;
        if (run->lane == LANE_READ && run->phase != RUN_COPYING)
            *reading_out += run->count * transfers->page_bytes;
        uint32_t in_run = 0;
        for (uint32_t r = run->first; r != PLLM_NONE; r = transfers->requests[r].next, in_run++)
            check(transfers->requests[r].state == REQUEST_RUNNING);
        check(in_run == run->count);
        count += in_run;
    }
    return count;
}

void pllm_transfers_check(const pllm_transfers *transfers)
{
    uint32_t counts[REQUEST_OVER + 1] = {0}, staging;
    uint64_t reading;
    for (uint32_t index = 0; index < transfers->request_max; index++) {
        const transfer_request *r = &transfers->requests[index];
        counts[r->state]++;
        if (r->state == REQUEST_FREE || r->state == REQUEST_OVER) continue;
        uint32_t found = *bucket_of(transfers, r->lane, r->slot), older = r->chain;
        while (found != PLLM_NONE && found != index) found = transfers->requests[found].chain;
        check(found == index); /* 1 */
        while (older != PLLM_NONE && !same_slot(&transfers->requests[older], r->lane, r->slot))
            older = transfers->requests[older].chain;
        check(older == r->waits_on);                                        /* 2 */
        check((r->state == REQUEST_BLOCKED) == (r->waits_on != PLLM_NONE)); /* 2 */
    }
    check(count_queued(transfers) == counts[REQUEST_QUEUED]);                       /* 2 */
    check(count_running(transfers, &staging, &reading) == counts[REQUEST_RUNNING]); /* 2 */
    check(transfers->pending ==
          counts[REQUEST_QUEUED] + counts[REQUEST_BLOCKED] + counts[REQUEST_RUNNING]); /* 3 */
    if (!transfers->disk_dead) check(staging == transfers->staging_used);              /* 4 */
    check(reading == transfers->reading_bytes);                                        /* 4 */
}
