/* transfer_run.c - runs: what is in flight on the two streams and on the disk.
 *
 *   IN, OUT:  gather -> copy -> finish
 *   READ:     gather neighbours, take staging -> disk read -> verify -> copy in -> finish
 *   WRITE:    gather neighbours, take staging -> copy out -> seal -> disk write -> finish
 *
 * A run holds one priority only, and so few bytes that urgent work submitted later waits for a
 * bounded time. Less urgent runs leave part of the staging pages free for demand.
 *
 * The disk has few reads at a time, as many as keep it busy while the next are prepared. What waits
 * here can still become longer, what the disk has cannot; and a disk may say only when it has done
 * with all it was given (a virtual machine's does), so that much at a time comes late, all at once.
 *
 * A failed disk run of several pages is taken apart and each page tried alone, so that only the bad
 * ones fail. After a failed copy nothing on its stream is trusted: what is in flight is waited for,
 * asked one by one, and the stream is opened anew. A failure of the disk backend itself (its poll)
 * ends the disk for good, since nobody knows what it still writes. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "base/hash.h"
#include "tier/transfer_internal.h"

enum {
    PAGE_MAGIC = 0x4d4c4c50, /* "PLLM", little-endian */
    PAGE_VERSION = 1,
    BATCH_BYTES = 3 << 19, /* 1.5 MiB: 150 us at 10 GB/s */
    IN_FLIGHT_BYTES =
        4 << 20, /* a stream's, for all but demand, which may have twice that: 400 us */
    GPU_FLIGHT_BYTES = 16 << 20, /* the same over a GPU's link, at 55 GB/s: 300 us */
    IN_FLIGHT_PAGES = 3,         /* but at least so many pages: the next waits behind the first */
    HOST_RUNS = 16,
    DISK_RUNS = 48,
    READING_BYTES = 2 << 20, /* no more reads while the disk has this much: see above */
    COMPLETIONS = 32,
};

/* ---- sealing ---- */

/* Hashed, never stored: a page that was meant for another slot, another model, another use of this
 * slot or another tag does not match. */
typedef struct page_header {
    uint32_t magic, version, format, slot;
    uint64_t fingerprint, tag, bytes;
    uint32_t generation, zero;
} page_header;

static uint64_t page_checksum(const pllm_transfers *transfers, const transfer_request *r,
                              uint32_t generation, const void *page)
{
    page_header header = {.magic = PAGE_MAGIC,
                          .version = PAGE_VERSION,
                          .format = transfers->format,
                          .slot = r->slot,
                          .fingerprint = transfers->fingerprint,
                          .tag = r->tag,
                          .bytes = transfers->page_bytes,
                          .generation = generation};
    uint64_t seed = pllm_hash64(&header, sizeof header, 0);
    return pllm_hash64(page, transfers->page_bytes, seed);
}

static void page_seal(pllm_transfers *transfers, const transfer_request *r, const void *page)
{
    slot_record *record = pllm_transfer_record(transfers, r->slot);
    record->generation++;
    record->checksum = page_checksum(transfers, r, record->generation, page);
    record->valid = 1;
}

static int page_matches(const pllm_transfers *transfers, const transfer_request *r,
                        const void *page)
{
    const slot_record *record = pllm_transfer_record(transfers, r->slot);
    return record && record->valid &&
           page_checksum(transfers, r, record->generation, page) == record->checksum;
}

/* ---- staging ---- */

/* Free pages but for those kept for more urgent work. */
static uint32_t staging_room(const pllm_transfers *transfers, uint32_t priority)
{
    uint32_t keep = priority * (transfers->staging_pages / 6);
    uint32_t room = transfers->staging_pages - transfers->staging_used;
    return room > keep ? room - keep : 0;
}

/* The first run of `wanted` free pages, or the longest there is; PLLM_NONE and 0 if the pages kept
 * for more urgent work are all that is left. */
static uint32_t staging_take(pllm_transfers *transfers, uint32_t wanted, uint32_t priority,
                             uint32_t *count_out)
{
    uint32_t best = PLLM_NONE, best_count = 0, length = 0;
    uint32_t room = staging_room(transfers, priority);
    if (wanted > room) wanted = room;
    for (uint32_t page = 0; page < transfers->staging_pages && best_count < wanted; page++) {
        length = transfers->staging_taken[page] ? 0 : length + 1;
        if (length <= best_count) continue;
        best = page + 1 - length;
        best_count = length;
    }
    if (best_count > wanted) best_count = wanted;
    *count_out = best_count;
    if (best_count == 0) return PLLM_NONE;
    memset(transfers->staging_taken + best, 1, best_count);
    transfers->staging_used += best_count;
    return best;
}

static void staging_give(pllm_transfers *transfers, transfer_run *run)
{
    if (run->staging == PLLM_NONE) return;
    memset(transfers->staging_taken + run->staging, 0, run->staging_count);
    transfers->staging_used -= run->staging_count;
    run->staging = PLLM_NONE;
}

static char *staging_page(const pllm_transfers *transfers, const transfer_run *run, uint32_t slot)
{
    return transfers->staging + (run->staging + (slot - run->slot)) * transfers->page_bytes;
}

/* ---- lists of runs ---- */

static void list_push(pllm_transfers *transfers, run_list *list, uint32_t index)
{
    transfers->runs[index].next = PLLM_NONE;
    if (list->first == PLLM_NONE)
        list->first = index;
    else
        transfers->runs[list->last].next = index;
    list->last = index;
}

static uint32_t list_pop(pllm_transfers *transfers, run_list *list)
{
    uint32_t index = list->first;
    if (index != PLLM_NONE) list->first = transfers->runs[index].next;
    return index;
}

static uint32_t run_take(pllm_transfers *transfers, uint32_t lane, uint32_t priority)
{
    uint32_t index = transfers->run_free;
    transfer_run *run = &transfers->runs[index];
    transfers->run_free = run->next;
    run->lane = (uint8_t)lane;
    run->priority = (uint8_t)priority;
    run->first = run->last = run->staging = run->slot = PLLM_NONE;
    run->count = run->staging_count = 0;
    transfers->disk_runs += (uint32_t)lane_is_disk(lane);
    return index;
}

/* All its requests are over or queued again. */
static void run_give(pllm_transfers *transfers, uint32_t index)
{
    transfer_run *run = &transfers->runs[index];
    staging_give(transfers, run);
    transfers->disk_runs -= (uint32_t)lane_is_disk(run->lane);
    run->phase = RUN_FREE;
    run->next = transfers->run_free;
    transfers->run_free = index;
}

static void run_add(pllm_transfers *transfers, transfer_run *run, uint32_t request_index)
{
    pllm_transfer_dequeue(transfers, request_index);
    transfers->requests[request_index].state = REQUEST_RUNNING;
    transfers->requests[request_index].next = PLLM_NONE;
    if (run->first == PLLM_NONE)
        run->first = request_index;
    else
        transfers->requests[run->last].next = request_index;
    run->last = request_index;
    run->count++;
}

/* A write that failed, at whatever point, leaves nothing valid in its slots: not even the page of
 * before, which is no longer what its owner wants back. */
static void run_spoil(pllm_transfers *transfers, const transfer_run *run)
{
    for (uint32_t i = run->first; i != PLLM_NONE; i = transfers->requests[i].next)
        pllm_transfer_record(transfers, transfers->requests[i].slot)->valid = 0;
}

static void run_finish(pllm_transfers *transfers, uint32_t index, int status, int native)
{
    transfer_run *run = &transfers->runs[index];
    uint32_t request_index = run->first;
    if (status < 0 && run->lane == LANE_WRITE) run_spoil(transfers, run);
    while (request_index != PLLM_NONE) {
        uint32_t next = transfers->requests[request_index].next;
        pllm_transfer_finish(transfers, request_index, status, native);
        request_index = next;
    }
    run_give(transfers, index);
}

/* ---- copies ---- */

static uint32_t copy_stream_index(uint32_t lane)
{
    return lane == LANE_IN || lane == LANE_READ ? LANE_IN : LANE_OUT;
}

/* What are neighbours on both sides becomes one copy. Of a page that is moved in part, the rest of
 * the slot (on disk: of what the staging page had before, sealed with it) is nobody's. */
static uint32_t copies_build(pllm_transfers *transfers, const transfer_run *run)
{
    int inward = copy_stream_index(run->lane) == LANE_IN;
    uint32_t count = 0;
    for (uint32_t i = run->first; i != PLLM_NONE; i = transfers->requests[i].next) {
        const transfer_request *r = &transfers->requests[i];
        const void *host = lane_is_disk(run->lane)
                               ? staging_page(transfers, run, r->slot)
                               : pllm_tiers_host_slot(transfers->tiers, r->slot);
        pllm_va there = (pllm_va)(uintptr_t)host;
        pllm_copy copy = {inward ? r->va : there, inward ? there : r->va, r->bytes};
        pllm_copy *last = count ? &transfers->copies[count - 1] : NULL;
        if (last && last->to + last->bytes == copy.to && last->from + last->bytes == copy.from)
            last->bytes += r->bytes;
        else
            transfers->copies[count++] = copy;
    }
    return count;
}

/* Of the call that has just returned status. Every failing call of a device or disk fills the
 * record, but for ENODEVMEM, EBUSY and ETIMEDOUT, which have no native code. The record is not
 * cleared before such calls: they are made while callers clean up, and then it holds the sentence
 * that their own caller is to read. */
static int native_of(int status)
{
    if (status == PLLM_ENODEVMEM || status == PLLM_EBUSY || status == PLLM_ETIMEDOUT) return 0;
    const pllm_error *error = pllm_last_error();
    return error->status == status ? error->native : 0;
}

static void run_copied(pllm_transfers *transfers, uint32_t index, int status, int native);

/* Submits the copies of a run and the event after them. Without an event the copies are waited for
 * at once. A failure here leaves nothing in flight; the caller ends the run. */
static int copies_submit(pllm_transfers *transfers, uint32_t index)
{
    transfer_run *run = &transfers->runs[index];
    pllm_device *device = transfers->device;
    copy_stream *stream = &transfers->streams[copy_stream_index(run->lane)];
    uint32_t count = copies_build(transfers, run);
    int status = PLLM_OK;
    if (!stream->stream) status = device->ops->stream_open(device, &stream->stream);
    if (status == PLLM_OK)
        status =
            device->ops->copy_batch(device, stream->stream, stream->kind, transfers->copies, count);
    if (status < 0) return status;
    run->phase = RUN_COPYING;
    run->copy_bytes = run->count * transfers->page_bytes;
    transfers->stats.merged_runs += run->count > 1 && !lane_is_disk(run->lane);
    if (device->ops->event_record(device, run->event, stream->stream) < 0) {
        status = device->ops->stream_sync(device, stream->stream);
        if (status < 0) { /* closing waits; earlier runs keep their events */
            device->ops->stream_close(device, stream->stream);
            stream->stream = NULL;
            return status;
        }
        run_copied(transfers, index, PLLM_OK, 0);
        return PLLM_OK;
    }
    stream->bytes += run->copy_bytes;
    list_push(transfers, &stream->runs, index);
    return PLLM_OK;
}

static void disk_submit(pllm_transfers *transfers, uint32_t index)
{
    transfer_run *run = &transfers->runs[index];
    run->phase = RUN_TO_DISK;
    if (run->lane == LANE_READ) transfers->reading_bytes += run->count * transfers->page_bytes;
    list_push(transfers, &transfers->to_disk, index);
}

/* The disk has done with a run, or will not have it. */
static void disk_leave(pllm_transfers *transfers, const transfer_run *run)
{
    if (run->lane == LANE_READ) transfers->reading_bytes -= run->count * transfers->page_bytes;
}

/* A run's copies are over. */
static void run_copied(pllm_transfers *transfers, uint32_t index, int status, int native)
{
    transfer_run *run = &transfers->runs[index];
    if (status < 0 || run->lane != LANE_WRITE) {
        run_finish(transfers, index, status, native);
        return;
    }
    for (uint32_t i = run->first; i != PLLM_NONE; i = transfers->requests[i].next) {
        const transfer_request *r = &transfers->requests[i];
        page_seal(transfers, r, staging_page(transfers, run, r->slot));
    }
    disk_submit(transfers, index);
}

/* Everything on the stream is waited for, then asked one by one; the stream is opened anew. */
static void stream_failed(pllm_transfers *transfers, copy_stream *stream, int status, int native)
{
    pllm_device *device = transfers->device;
    if (stream->stream) (void)device->ops->stream_sync(device, stream->stream);
    device->ops->stream_close(device,
                              stream->stream); /* lets its work finish, whatever sync said */
    stream->stream = NULL;
    stream->bytes = 0;
    uint32_t index = list_pop(transfers, &stream->runs);
    run_copied(transfers, index, status, native);
    while ((index = list_pop(transfers, &stream->runs)) != PLLM_NONE) {
        int code = device->ops->event_query(device, transfers->runs[index].event);
        if (code > 0)
            run_copied(transfers, index, PLLM_OK, 0);
        else if (code < 0)
            run_copied(transfers, index, code, native_of(code));
        else /* lost with the stream */
            run_copied(transfers, index, PLLM_EDEVICE, native);
    }
}

static void stream_reap(pllm_transfers *transfers, copy_stream *stream)
{
    pllm_device *device = transfers->device;
    while (stream->runs.first != PLLM_NONE) {
        transfer_run *run = &transfers->runs[stream->runs.first];
        int code = device->ops->event_query(device, run->event);
        if (code == 0) return;
        if (code < 0) {
            stream_failed(transfers, stream, code, native_of(code));
            return;
        }
        stream->bytes -= run->copy_bytes;
        run_copied(transfers, list_pop(transfers, &stream->runs), PLLM_OK, 0);
    }
}

/* ---- the disk ---- */

/* A run that failed on disk: alone it is over, in company each page is tried alone. */
static void run_disk_failed(pllm_transfers *transfers, uint32_t index, int status, int native)
{
    transfer_run *run = &transfers->runs[index];
    if (run->lane == LANE_WRITE) run_spoil(transfers, run);
    if (run->count == 1 || transfers->disk_dead) {
        run_finish(transfers, index, status, native);
        return;
    }
    uint32_t request_index = run->first;
    while (request_index != PLLM_NONE) {
        uint32_t next = transfers->requests[request_index].next;
        transfers->requests[request_index].solo = 1;
        pllm_transfer_enqueue(transfers, request_index, 1);
        request_index = next;
    }
    run_give(transfers, index);
}

/* Bytes have come from disk: the pages that match go on to their frames. */
static void run_read(pllm_transfers *transfers, uint32_t index)
{
    transfer_run *run = &transfers->runs[index];
    uint32_t *link = &run->first;
    run->last = PLLM_NONE;
    while (*link != PLLM_NONE) {
        transfer_request *r = &transfers->requests[*link];
        if (page_matches(transfers, r, staging_page(transfers, run, r->slot))) {
            run->last = *link;
            link = &r->next;
        } else {
            uint32_t bad = *link;
            *link = r->next;
            run->count--;
            pllm_transfer_finish(transfers, bad, PLLM_ECORRUPT, 0);
        }
    }
    if (run->count == 0) {
        run_give(transfers, index);
        return;
    }
    int status = copies_submit(transfers, index);
    if (status < 0) run_finish(transfers, index, status, native_of(status));
}

static void run_on_disk_over(pllm_transfers *transfers, const pllm_disk_completion *completion)
{
    uint32_t index = completion->cookie;
    assert(index < transfers->run_max && transfers->runs[index].phase == RUN_ON_DISK);
    transfer_run *run = &transfers->runs[index];
    uint64_t bytes = run->count * transfers->page_bytes;
    if (completion->status < 0) {
        run_disk_failed(transfers, index, completion->status, completion->native);
        return;
    }
    transfers->stats.merged_runs += run->count > 1;
    if (run->lane == LANE_READ) {
        transfers->stats.disk_read_bytes += bytes;
        run_read(transfers, index);
    } else {
        transfers->stats.disk_write_bytes += bytes;
        run_finish(transfers, index, PLLM_OK, 0);
    }
}

/* The backend cannot say what it is doing any more: its staging pages stay taken. */
static void disk_died(pllm_transfers *transfers, int status)
{
    int native = native_of(status);
    transfers->disk_dead = status;
    transfers->disk_dead_native = native;
    transfers->orphans = transfers->on_disk;
    for (uint32_t index = 0; index < transfers->run_max; index++) {
        transfer_run *run = &transfers->runs[index];
        if (run->phase != RUN_ON_DISK) continue;
        run->staging = PLLM_NONE;
        disk_leave(transfers, run);
        run_disk_failed(transfers, index, status, native);
    }
    transfers->on_disk = 0;
}

static void disk_start(pllm_transfers *transfers);

/* The disk gets its next requests before what it has brought is looked at: verifying, copying and
 * using a megabyte takes nearly as long as reading one. */
static void disk_reap(pllm_transfers *transfers, uint64_t timeout_ns)
{
    pllm_disk_completion completions[COMPLETIONS];
    while (transfers->on_disk && !transfers->disk_dead) {
        int count =
            transfers->disk->ops->poll(transfers->disk, completions, COMPLETIONS, timeout_ns);
        if (count < 0) {
            disk_died(transfers, count);
            return;
        }
        for (int i = 0; i < count; i++) {
            disk_leave(transfers, &transfers->runs[completions[i].cookie]);
            transfers->on_disk--;
        }
        if (count) disk_start(transfers);
        for (int i = 0; i < count; i++) run_on_disk_over(transfers, &completions[i]);
        if (count < COMPLETIONS) return;
        timeout_ns = 0;
    }
}

static void disk_push(pllm_transfers *transfers)
{
    while (transfers->to_disk.first != PLLM_NONE) {
        uint32_t index = transfers->to_disk.first;
        transfer_run *run = &transfers->runs[index];
        pllm_disk_request request = {.buffer = staging_page(transfers, run, run->slot),
                                     .offset = run->slot * transfers->page_bytes,
                                     .bytes = run->count * transfers->page_bytes,
                                     .write = run->lane == LANE_WRITE,
                                     .cookie = index};
        int status = transfers->disk_dead, native = transfers->disk_dead_native;
        if (!status) {
            status = transfers->disk->ops->submit(transfers->disk, &request);
            native = status < 0 ? native_of(status) : 0;
        }
        if (status == PLLM_EBUSY && transfers->on_disk) return; /* full: after the next poll */
        list_pop(transfers, &transfers->to_disk);
        if (status == PLLM_OK) {
            run->phase = RUN_ON_DISK;
            transfers->on_disk++;
        } else {
            disk_leave(transfers, run);
            run_disk_failed(transfers, index, status, native);
        }
    }
}

/* ---- starting ---- */

static uint32_t queue_priority(const pllm_transfers *transfers, uint32_t lane)
{
    uint32_t priority = 0;
    while (priority < PRIORITY_COUNT && transfers->queues[lane][priority].first == PLLM_NONE)
        priority++;
    return priority;
}

static uint64_t flight_bytes(const pllm_transfers *transfers)
{
    uint64_t bytes =
        strcmp(transfers->device->ops->name, "cuda") ? IN_FLIGHT_BYTES : GPU_FLIGHT_BYTES;
    uint64_t pages = IN_FLIGHT_PAGES * transfers->page_bytes;
    return bytes > pages ? bytes : pages;
}

/* One batched copy of a host lane, if there is something to copy and room for it. */
static int host_run_start(pllm_transfers *transfers, uint32_t lane)
{
    uint32_t priority = queue_priority(transfers, lane);
    if (priority == PRIORITY_COUNT || transfers->run_free == PLLM_NONE) return 0;
    const copy_stream *stream = &transfers->streams[lane];
    uint64_t limit = flight_bytes(transfers) << (priority == PLLM_DEMAND);
    if (stream->bytes && stream->bytes + transfers->page_bytes > limit) return 0;
    uint32_t index = run_take(transfers, lane, priority);
    transfer_run *run = &transfers->runs[index];
    const request_list *queue = &transfers->queues[lane][priority];
    do run_add(transfers, run, queue->first);
    while (queue->first != PLLM_NONE && run->count < COPY_PAGES_MAX &&
           (run->count + 1) * transfers->page_bytes <= BATCH_BYTES);
    int status = copies_submit(transfers, index);
    if (status < 0) run_finish(transfers, index, status, native_of(status));
    return 1;
}

/* The queued neighbours of a request: slots [*first_out, *first_out + count). */
static uint32_t neighbours(const pllm_transfers *transfers, uint32_t lane, uint32_t priority,
                           const transfer_request *r, uint32_t *first_out)
{
    uint32_t first = r->slot, count = 1;
    *first_out = first;
    if (r->solo) return 1;
    while (count < transfers->extent_pages &&
           pllm_transfer_find(transfers, lane, priority, first + count) != PLLM_NONE)
        count++;
    while (count < transfers->extent_pages && first > 0 &&
           pllm_transfer_find(transfers, lane, priority, first - 1) != PLLM_NONE)
        first--, count++;
    *first_out = first;
    return count;
}

/* One run of a disk lane, if there is one and room for it. */
static int disk_run_start(pllm_transfers *transfers, uint32_t lane, uint32_t priority)
{
    uint32_t head = transfers->queues[lane][priority].first;
    if (head == PLLM_NONE || transfers->run_free == PLLM_NONE ||
        transfers->disk_runs >= transfers->disk_run_max)
        return 0;
    if (transfers->disk_dead) {
        uint32_t index = run_take(transfers, lane, priority);
        run_add(transfers, &transfers->runs[index], head);
        run_finish(transfers, index, transfers->disk_dead, transfers->disk_dead_native);
        return 1;
    }
    if (staging_room(transfers, priority) == 0) return 0;
    if (lane == LANE_READ && transfers->reading_bytes >= READING_BYTES) return 0;
    uint32_t slot = transfers->requests[head].slot, first, got;
    uint32_t count = neighbours(transfers, lane, priority, &transfers->requests[head], &first);
    uint32_t staging = staging_take(transfers, count, priority, &got);
    if (staging == PLLM_NONE) return 0;
    while (count > got) { /* the head stays in */
        if (first < slot) first++;
        count--;
    }
    uint32_t index = run_take(transfers, lane, priority);
    transfer_run *run = &transfers->runs[index];
    run->staging = staging;
    run->staging_count = got;
    run->slot = first;
    for (uint32_t i = 0; i < count; i++)
        run_add(transfers, run,
                first + i == slot ? head
                                  : pllm_transfer_find(transfers, lane, priority, first + i));
    if (lane == LANE_READ) {
        disk_submit(transfers, index);
        return 1;
    }
    int status = copies_submit(transfers, index);
    if (status < 0) run_finish(transfers, index, status, native_of(status));
    return 1;
}

static void disk_start(pllm_transfers *transfers)
{
    for (uint32_t priority = 0; priority < PRIORITY_COUNT; priority++) {
        int started;
        do { /* reads and writes take turns, so that neither starves the other */
            uint32_t lane = transfers->write_first ? LANE_WRITE : LANE_READ;
            started = disk_run_start(transfers, lane, priority);
            if (!started)
                started = disk_run_start(transfers, LANE_READ + LANE_WRITE - lane, priority);
            else
                transfers->write_first ^= 1;
        } while (started);
    }
    disk_push(transfers);
}

void pllm_runs_start(pllm_transfers *transfers)
{
    while (host_run_start(transfers, LANE_IN)) continue;
    while (host_run_start(transfers, LANE_OUT)) continue;
    if (transfers->disk) disk_start(transfers);
}

/* ---- waiting ---- */

void pllm_runs_reap(pllm_transfers *transfers)
{
    stream_reap(transfers, &transfers->streams[LANE_IN]);
    stream_reap(transfers, &transfers->streams[LANE_OUT]);
    disk_reap(transfers, 0);
}

int pllm_runs_active(const pllm_transfers *transfers)
{
    return transfers->streams[LANE_IN].runs.first != PLLM_NONE ||
           transfers->streams[LANE_OUT].runs.first != PLLM_NONE ||
           transfers->to_disk.first != PLLM_NONE || transfers->on_disk;
}

int pllm_runs_wait(pllm_transfers *transfers, uint64_t timeout_ns)
{
    pllm_device *device = transfers->device;
    for (uint32_t lane = LANE_IN; lane <= LANE_OUT; lane++) {
        copy_stream *stream = &transfers->streams[lane];
        if (stream->runs.first == PLLM_NONE) continue;
        pllm_event *event = transfers->runs[stream->runs.first].event;
        int status = device->ops->event_wait(device, event, timeout_ns);
        if (status < 0 && status != PLLM_ETIMEDOUT)
            stream_failed(transfers, stream, status, native_of(status));
        return status == PLLM_ETIMEDOUT;
    }
    uint32_t before = transfers->on_disk;
    disk_reap(transfers, timeout_ns);
    return before == transfers->on_disk;
}

/* ---- opening ---- */

int pllm_runs_open(pllm_transfers *transfers)
{
    pllm_device *device = transfers->device;
    const pllm_context *context = transfers->context;
    transfers->streams[LANE_IN] = (copy_stream){PLLM_COPY_IN, NULL, {PLLM_NONE, PLLM_NONE}, 0};
    transfers->streams[LANE_OUT] = (copy_stream){PLLM_COPY_OUT, NULL, {PLLM_NONE, PLLM_NONE}, 0};
    transfers->to_disk = (run_list){PLLM_NONE, PLLM_NONE};
    transfers->run_free = PLLM_NONE;
    uint32_t run_max = HOST_RUNS;
    if (transfers->disk) {
        uint32_t depth = transfers->disk->ops->depth(transfers->disk);
        transfers->disk_run_max = depth < DISK_RUNS ? depth : DISK_RUNS;
        run_max += transfers->disk_run_max;
        transfers->staging_taken = pllm_alloc(context, transfers->staging_pages);
        if (!transfers->staging_taken)
            return pllm_fail_memory("a map of staging pages", transfers->staging_pages);
    }
    transfers->copy_max = COPY_PAGES_MAX;
    if (transfers->extent_pages > transfers->copy_max)
        transfers->copy_max = transfers->extent_pages;
    transfers->copies = pllm_alloc_array(context, transfers->copy_max, sizeof *transfers->copies);
    transfers->runs = pllm_alloc_array(context, run_max, sizeof *transfers->runs);
    if (!transfers->copies || !transfers->runs)
        return pllm_fail_memory("the table of runs", run_max * sizeof *transfers->runs);
    transfers->run_max = run_max;
    int status = PLLM_OK;
    for (uint32_t i = 0; i < run_max && status == PLLM_OK; i++) {
        status = device->ops->event_open(device, &transfers->runs[i].event);
        transfers->runs[i].next = transfers->run_free;
        transfers->run_free = i;
    }
    for (uint32_t lane = LANE_IN; lane <= LANE_OUT && status == PLLM_OK; lane++)
        status = device->ops->stream_open(device, &transfers->streams[lane].stream);
    return status;
}

void pllm_runs_close(pllm_transfers *transfers)
{
    pllm_device *device = transfers->device;
    pllm_disk_completion completions[COMPLETIONS];
    /* What is queued never starts. Streams let their work finish as they close. */
    for (uint32_t lane = LANE_IN; lane <= LANE_OUT; lane++)
        device->ops->stream_close(device, transfers->streams[lane].stream);
    /* The disk uses staging pages even where it was given up: after one failed poll the next may
     * work. If none does, the backend's own close waits, which comes before the pages go. */
    uint32_t in_flight = transfers->on_disk + transfers->orphans;
    while (in_flight) {
        int count = transfers->disk->ops->poll(transfers->disk, completions, COMPLETIONS,
                                               1000 * 1000 * 1000);
        if (count < 0) break;
        in_flight -= (uint32_t)count;
    }
    for (uint32_t i = 0; transfers->runs && i < transfers->run_max; i++)
        device->ops->event_close(device, transfers->runs[i].event);
    pllm_free(transfers->context, transfers->runs);
    pllm_free(transfers->context, transfers->copies);
    pllm_free(transfers->context, transfers->staging_taken);
}
