/* tiers.c - frames on the device, slots in host memory, slots on disk: who has which.
 *
 *   device   region    | chunk 0     | chunk 1     | (no chunk)  | ...
 *            frames    [ 0 ][ 1 ][ 2 ][ 3 ][ 4 ][ 5 ][ 6 ] ...
 *   host     slabs     | slab 0: extents | slab 1: extents | ...
 *   disk     one file  | extent | extent | extent | ...
 *            staging   | extent | x staging_count
 *
 * chunk_used[c] counts the frames in use in chunk c; frames may straddle chunks. Slabs are
 * allocated as they are needed, staging only with a disk.
 *
 * A frame is in use, or free and backed (ready), or free and without full backing (bare). Frames
 * are given lowest first, ready before bare, so that the highest chunks empty out and trim can
 * return them. The device limit counts frames; the budget is charged whole chunks. Chunks are
 * chosen small where the limit is small, so that rounding up costs little.
 *
 * Invariants (pllm_tiers_check): 1. ready and bare share no bit; used = neither. 2. chunk_used[c]
 * counts the used frames that touch chunk c. 3. A used or ready frame has all its chunks mapped;
 * a bare one lacks one. 4. Those of slots.h.
 * Threads: one caller at a time. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/bitmap.h"
#include "tier/tiers.h"
#include "vmm/region.h"

enum {
    PAGE_UNIT = 4096,
    EXTENT_BYTES = 1 << 20,
    HOST_ONCE_BYTES = 64 << 20, /* a host limit up to this is allocated at once */
    HOST_SLAB_BYTES = 16 << 20,
    STAGING_BYTES = 6 << 20, /* see staging_choose */
    STAGING_PAGES_MIN = 4,
    CHUNKS_WANTED = 16, /* a limit should be at least this many chunks */
    FEW_PAGES = 32,
};

struct pllm_tiers {
    const pllm_context *context;
    pllm_device *device;
    pllm_budget *budget;
    pllm_budget_member *member;
    pllm_region *region;
    uint64_t page_bytes, chunk_bytes, total_bytes, device_limit_bytes;
    uint32_t frame_max, frames_used, frames_peak, chunk_max;
    uint64_t *ready, *bare;         /* a bit a frame */
    uint32_t ready_hint, bare_hint; /* no bit below */
    uint32_t *chunk_used;

    uint32_t extent_pages;
    pllm_slots host, on_disk;
    uint32_t host_max, slab_pages; /* slots at most; of one slab */
    char **slabs;
    uint32_t slab_count, slab_room;

    pllm_disk *disk;
    char *staging;
    uint32_t staging_pages;
};

/* ---- frames ---- */

/* The lowest bit set at or above *hint, which moves up to it; PLLM_NONE if there is none. */
static uint32_t bit_lowest(const uint64_t *bits, uint32_t count, uint32_t *hint)
{
    uint64_t bit = pllm_bitmap_find_set(bits, count, *hint);
    *hint = bit == PLLM_BITMAP_NONE ? count : (uint32_t)bit;
    return bit == PLLM_BITMAP_NONE ? PLLM_NONE : (uint32_t)bit;
}

typedef struct chunk_span {
    uint32_t first, count;
} chunk_span;

static chunk_span frame_chunks(const pllm_tiers *tiers, uint32_t frame)
{
    uint64_t start = frame * tiers->page_bytes, end = start + tiers->page_bytes;
    uint32_t first = (uint32_t)(start / tiers->chunk_bytes);
    return (chunk_span){first, (uint32_t)((end - 1) / tiers->chunk_bytes) - first + 1};
}

static int frame_is_backed(const pllm_tiers *tiers, uint32_t frame)
{
    chunk_span span = frame_chunks(tiers, frame);
    for (uint32_t i = 0; i < span.count; i++)
        if (!pllm_region_is_mapped(tiers->region, span.first + i)) return 0;
    return 1;
}

/* Sorts the free frames that touch a span of chunks anew into ready and bare. */
static void frames_sort(pllm_tiers *tiers, chunk_span span)
{
    uint64_t first = span.first * tiers->chunk_bytes / tiers->page_bytes;
    uint64_t end = ((uint64_t)span.first + span.count) * tiers->chunk_bytes;
    for (uint64_t f = first; f < tiers->frame_max && f * tiers->page_bytes < end; f++) {
        uint32_t frame = (uint32_t)f;
        if (!pllm_bitmap_get(tiers->ready, frame) && !pllm_bitmap_get(tiers->bare, frame)) continue;
        if (frame_is_backed(tiers, frame)) {
            pllm_bitmap_set(tiers->ready, frame);
            pllm_bitmap_clear(tiers->bare, frame);
            if (frame < tiers->ready_hint) tiers->ready_hint = frame;
        } else {
            pllm_bitmap_clear(tiers->ready, frame);
            pllm_bitmap_set(tiers->bare, frame);
            if (frame < tiers->bare_hint) tiers->bare_hint = frame;
        }
    }
}

static uint32_t least(uint64_t a, uint64_t b)
{
    uint64_t value = a < b ? a : b;
    return value < PLLM_NONE ? (uint32_t)value : PLLM_NONE - 1;
}

static uint32_t frames_by_limit(const pllm_tiers *tiers)
{
    return least(tiers->device_limit_bytes / tiers->page_bytes, tiers->frame_max);
}

uint32_t pllm_tiers_frame_limit(const pllm_tiers *tiers)
{
    pllm_budget_stats budget;
    if (!tiers->frame_max) return 0;
    pllm_budget_stats_get(tiers->budget, &budget);
    uint64_t charged = pllm_budget_charged(tiers->member);
    uint64_t excess = pllm_budget_excess(tiers->member);
    uint64_t room = 0;
    if (!excess && budget.limit_bytes > budget.charged_bytes)
        room = budget.limit_bytes - budget.charged_bytes;
    uint64_t bytes = charged - (excess < charged ? excess : charged);
    bytes = room > UINT64_MAX - bytes ? UINT64_MAX : bytes + room;
    if (bytes > tiers->total_bytes) bytes = tiers->total_bytes;
    uint64_t chunks = bytes / tiers->chunk_bytes;
    return least(chunks * tiers->chunk_bytes / tiers->page_bytes, frames_by_limit(tiers));
}

static int frame_back(pllm_tiers *tiers, uint32_t frame)
{
    chunk_span span = frame_chunks(tiers, frame);
    int status = pllm_region_map(tiers->region, span.first, span.count);
    if (status == PLLM_OK) frames_sort(tiers, span);
    return status;
}

int pllm_tiers_frame_alloc(pllm_tiers *tiers, uint32_t *frame_out)
{
    *frame_out = PLLM_NONE;
    if (tiers->frames_used >= frames_by_limit(tiers)) return PLLM_ENODEVMEM;
    uint32_t frame = bit_lowest(tiers->ready, tiers->frame_max, &tiers->ready_hint);
    if (frame == PLLM_NONE) {
        frame = bit_lowest(tiers->bare, tiers->frame_max, &tiers->bare_hint);
        if (frame == PLLM_NONE) return PLLM_ENODEVMEM;
        int status = frame_back(tiers, frame);
        if (status < 0) return status;
    }
    pllm_bitmap_clear(tiers->ready, frame);
    chunk_span span = frame_chunks(tiers, frame);
    for (uint32_t i = 0; i < span.count; i++) tiers->chunk_used[span.first + i]++;
    if (++tiers->frames_used > tiers->frames_peak) tiers->frames_peak = tiers->frames_used;
    *frame_out = frame;
    return PLLM_OK;
}

pllm_va pllm_tiers_frame_va(const pllm_tiers *tiers, uint32_t frame)
{
    return pllm_region_base(tiers->region) + frame * tiers->page_bytes;
}

void *pllm_tiers_frame_view(const pllm_tiers *tiers, uint32_t frame)
{
    return tiers->device->ops->host_view(tiers->device, pllm_tiers_frame_va(tiers, frame));
}

void pllm_tiers_frame_free(pllm_tiers *tiers, uint32_t frame)
{
#ifdef PLLM_CHECKS
    if (frame >= tiers->frame_max || pllm_bitmap_get(tiers->ready, frame) ||
        pllm_bitmap_get(tiers->bare, frame))
        abort(); /* freed twice, or never given */
    void *view = pllm_tiers_frame_view(tiers, frame);
    if (view) memset(view, 0xff, tiers->page_bytes); /* NaN in every float format */
#endif
    chunk_span span = frame_chunks(tiers, frame);
    for (uint32_t i = 0; i < span.count; i++) tiers->chunk_used[span.first + i]--;
    pllm_bitmap_set(tiers->ready, frame);
    if (frame < tiers->ready_hint) tiers->ready_hint = frame;
    tiers->frames_used--;
}

int pllm_tiers_set_device_limit(pllm_tiers *tiers, uint64_t bytes)
{
    tiers->device_limit_bytes = bytes;
    return PLLM_OK;
}

uint32_t pllm_tiers_frame_excess(const pllm_tiers *tiers)
{
    uint32_t limit = pllm_tiers_frame_limit(tiers);
    return tiers->frames_used > limit ? tiers->frames_used - limit : 0;
}

int pllm_tiers_is_over(const pllm_tiers *tiers)
{
    return tiers->member && pllm_budget_excess(tiers->member) > 0;
}

int pllm_tiers_frame_is_high(const pllm_tiers *tiers, uint32_t frame)
{
    return frame >= pllm_tiers_frame_limit(tiers);
}

uint64_t pllm_tiers_trim(pllm_tiers *tiers)
{
    if (!tiers->frame_max) return 0;
    uint64_t before = pllm_budget_charged(tiers->member);
    for (uint32_t chunk = 0; chunk < tiers->chunk_max; chunk++) {
        if (tiers->chunk_used[chunk] || !pllm_region_is_mapped(tiers->region, chunk)) continue;
        if (pllm_region_unmap(tiers->region, chunk, 1, NULL) == PLLM_OK)
            frames_sort(tiers, (chunk_span){chunk, 1});
    }
    pllm_region_trim(tiers->region, 0);
    return before - pllm_budget_charged(tiers->member);
}

/* ---- slots ---- */

/* One more slab of host memory. ELIMIT (bare): the limit is reached, or the machine gives no more.
 */
static int host_grow(pllm_tiers *tiers)
{
    uint32_t added = tiers->host_max - tiers->host.count;
    if (added == 0) return PLLM_ELIMIT;
    if (added > tiers->slab_pages) added = tiers->slab_pages;
    if (tiers->slab_count == tiers->slab_room) {
        uint32_t room = tiers->slab_room ? tiers->slab_room * 2 : 4;
        void *grown = pllm_grow(tiers->context, tiers->slabs, tiers->slab_room * sizeof(char *),
                                room * sizeof(char *));
        if (!grown) return pllm_fail_memory("a list of host slabs", room * sizeof(char *));
        tiers->slabs = grown;
        tiers->slab_room = room;
    }
    uint64_t bytes = added * tiers->page_bytes;
    void *slab;
    int status = tiers->device->ops->host_alloc(tiers->device, bytes, &slab);
    if (status < 0) return status;
    status = pllm_slots_grow(&tiers->host, added);
    if (status < 0) {
        tiers->device->ops->host_free(tiers->device, slab, bytes);
        return status;
    }
    tiers->slabs[tiers->slab_count++] = slab;
    return PLLM_OK;
}

static uint64_t slab_bytes(const pllm_tiers *tiers, uint32_t slab)
{
    uint32_t first = slab * tiers->slab_pages;
    return least(tiers->host.count - first, tiers->slab_pages) * tiers->page_bytes;
}

int pllm_tiers_slot_alloc(pllm_tiers *tiers, pllm_place place, uint32_t after, uint32_t *slot_out)
{
    pllm_slots *slots = place == PLLM_AT_HOST ? &tiers->host : &tiers->on_disk;
    *slot_out = PLLM_NONE;
    if (place != PLLM_AT_HOST && place != PLLM_AT_DISK)
        return pllm_fail(PLLM_EINVAL, 0, "slots are in host memory or on disk, not at place %d",
                         (int)place);
    uint32_t slot = after == PLLM_NONE ? PLLM_NONE : pllm_slots_follow(slots, after);
    if (slot == PLLM_NONE) slot = pllm_slots_begin(slots);
    /* Failing to grow is being full: there may be room on disk. */
    if (slot == PLLM_NONE && place == PLLM_AT_HOST && host_grow(tiers) == PLLM_OK)
        slot = pllm_slots_begin(slots);
    if (slot == PLLM_NONE) slot = pllm_slots_any(slots);
    *slot_out = slot;
    return slot == PLLM_NONE ? PLLM_ELIMIT : PLLM_OK;
}

void pllm_tiers_slot_free(pllm_tiers *tiers, pllm_place place, uint32_t slot)
{
    pllm_slots_give(place == PLLM_AT_HOST ? &tiers->host : &tiers->on_disk, slot);
}

void *pllm_tiers_host_slot(const pllm_tiers *tiers, uint32_t slot)
{
    if (slot >= tiers->host.count) return NULL;
    return tiers->slabs[slot / tiers->slab_pages] + slot % tiers->slab_pages * tiers->page_bytes;
}

/* ---- opening ---- */

static int check_options(const pllm_tiers_options *options)
{
    if (!options || options->struct_bytes != sizeof *options)
        return pllm_fail(PLLM_EINVAL, 0, "no pllm_tiers_options, or of another size than %zu",
                         sizeof *options);
    if (options->page_bytes == 0 || options->page_bytes % PAGE_UNIT ||
        options->page_bytes > (uint64_t)1 << 30)
        return pllm_fail(PLLM_EINVAL, 0,
                         "pages of %llu bytes: they must be a multiple of %d, up to 1 GiB",
                         (unsigned long long)options->page_bytes, PAGE_UNIT);
    if (options->frame_max >= PLLM_NONE - 64)
        return pllm_fail(PLLM_EINVAL, 0, "%u frames cannot be reserved", options->frame_max);
    return PLLM_OK;
}

/* The device's preferred chunk, halved while the limit is only a few of them, or few pages of which
 * rounding down would take one. */
static uint64_t chunk_choose(const pllm_device_info *info, uint64_t limit_bytes,
                             uint64_t page_bytes)
{
    uint64_t bytes = info->chunk_bytes, pages = limit_bytes / page_bytes;
    while (bytes / 2 >= info->granularity_bytes && bytes / 2 % info->granularity_bytes == 0 &&
           (limit_bytes / CHUNKS_WANTED < bytes ||
            (pages < FEW_PAGES && limit_bytes / bytes * bytes / page_bytes < pages)))
        bytes /= 2;
    return bytes;
}

static uint64_t frames_bytes_max(const pllm_tiers *tiers, const pllm_tiers_options *options)
{
    pllm_budget_stats stats;
    pllm_budget_stats_get(tiers->budget, &stats);
    uint64_t bytes = tiers->frame_max * tiers->page_bytes;
    if (bytes > options->device_limit_bytes) bytes = options->device_limit_bytes;
    return bytes < stats.limit_bytes ? bytes : stats.limit_bytes;
}

static int frames_open(pllm_tiers *tiers, const pllm_tiers_options *options)
{
    pllm_device_info info;
    int status = tiers->device->ops->info(tiers->device, &info);
    if (status < 0) return status;
    tiers->total_bytes = info.total_bytes;
    tiers->frame_max = options->frame_max;
    tiers->device_limit_bytes = options->device_limit_bytes;
    tiers->chunk_bytes = chunk_choose(&info, frames_bytes_max(tiers, options), tiers->page_bytes);
    uint64_t bytes = tiers->frame_max * tiers->page_bytes;
    uint64_t chunks = (bytes + tiers->chunk_bytes - 1) / tiers->chunk_bytes;
    if (chunks >= PLLM_NONE)
        return pllm_fail(PLLM_EINVAL, 0, "%u frames of %llu bytes are more than a region holds",
                         tiers->frame_max, (unsigned long long)tiers->page_bytes);
    tiers->chunk_max = (uint32_t)chunks;
    uint64_t words = pllm_bitmap_words(tiers->frame_max);
    tiers->ready = pllm_alloc_array(tiers->context, words, 8);
    tiers->bare = pllm_alloc_array(tiers->context, words, 8);
    tiers->chunk_used = pllm_alloc_array(tiers->context, chunks, sizeof(uint32_t));
    if (!tiers->ready || !tiers->bare || !tiers->chunk_used)
        return pllm_fail_memory("the table of frames", words * 16 + chunks * 4);
    pllm_bitmap_set_range(tiers->bare, 0, tiers->frame_max);
    status = pllm_budget_join(tiers->budget, options->member_name ? options->member_name : "frames",
                              0, UINT64_MAX, &tiers->member);
    if (status < 0) return status;
    pllm_region_options region = {.struct_bytes = sizeof region,
                                  .page_max = tiers->chunk_max,
                                  .chunk_bytes = tiers->chunk_bytes};
    return pllm_region_open(tiers->context, tiers->device, tiers->member, &region, &tiers->region);
}

static int host_open(pllm_tiers *tiers, const pllm_tiers_options *options)
{
    uint64_t machine = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t host_bytes = options->host_bytes < machine ? options->host_bytes : machine;
    uint64_t slab = options->host_slab_bytes ? options->host_slab_bytes : HOST_SLAB_BYTES;
    int at_once = host_bytes <= HOST_ONCE_BYTES ||
                  (options->host_at_once && options->host_bytes != UINT64_MAX);
    tiers->host_max = least(host_bytes / tiers->page_bytes, PLLM_NONE - 65);
    tiers->slab_pages = tiers->host_max;
    if (host_bytes > HOST_ONCE_BYTES) {
        uint64_t extent = tiers->extent_pages * tiers->page_bytes;
        tiers->slab_pages = (uint32_t)((slab + extent - 1) / extent) * tiers->extent_pages;
    }
    int status = PLLM_OK;
    while (at_once && status == PLLM_OK && tiers->host.count < tiers->host_max)
        status = host_grow(tiers);
    return status;
}

/* By default 6 MiB: enough to keep a disk busy, and registering it stays under the usual memlock
 * limit of 8 MiB, against which the kernel counts whole huge pages and the rings too. */
static uint32_t staging_choose(const pllm_tiers *tiers, uint32_t staging_count)
{
    if (staging_count) return staging_count * tiers->extent_pages;
    uint32_t pages = (uint32_t)(STAGING_BYTES / tiers->page_bytes);
    return pages < STAGING_PAGES_MIN ? STAGING_PAGES_MIN : pages;
}

static int disk_open(pllm_tiers *tiers, const pllm_tiers_options *options)
{
    uint64_t slot_count = options->disk_bytes / tiers->page_bytes;
    if (slot_count == 0) return PLLM_OK;
    tiers->staging_pages = staging_choose(tiers, options->staging_count);
    uint64_t bytes = tiers->staging_pages * tiers->page_bytes;
    int status = tiers->device->ops->host_alloc(tiers->device, bytes, (void **)&tiers->staging);
    if (status < 0) return status;
    status = pllm_slots_grow(&tiers->on_disk, least(slot_count, PLLM_NONE - 65));
    if (status < 0) return status;
    if (options->disk) {
        tiers->disk = options->disk;
        return PLLM_OK;
    }
    pllm_disk_options disk = {.struct_bytes = sizeof disk,
                              .kind = options->disk_kind,
                              .folder = options->disk_folder,
                              .bytes = tiers->on_disk.count * tiers->page_bytes,
                              .staging = tiers->staging,
                              .staging_bytes = bytes};
    return pllm_disk_open(tiers->context, &disk, &tiers->disk);
}

int pllm_tiers_open(const pllm_context *context, pllm_device *device, pllm_budget *budget,
                    const pllm_tiers_options *options, pllm_tiers **tiers_out)
{
    if (!tiers_out || !device) return pllm_fail(PLLM_EINVAL, 0, "tiers need a device and a result");
    *tiers_out = NULL;
    int status = check_options(options);
    if (status < 0) return status;
    if (options->frame_max && !budget) return pllm_fail(PLLM_EINVAL, 0, "frames need a budget");
    pllm_tiers *tiers = pllm_alloc(context, sizeof *tiers);
    if (!tiers) return pllm_fail_memory("the tiers", sizeof *tiers);
    tiers->context = context;
    tiers->device = device;
    tiers->budget = budget;
    tiers->page_bytes = options->page_bytes;
    tiers->extent_pages =
        (uint32_t)((EXTENT_BYTES + options->page_bytes - 1) / options->page_bytes);
    pllm_slots_init(&tiers->host, context, tiers->extent_pages);
    pllm_slots_init(&tiers->on_disk, context, tiers->extent_pages);
    status = options->frame_max ? frames_open(tiers, options) : PLLM_OK;
    if (status == PLLM_OK) status = host_open(tiers, options);
    if (status == PLLM_OK) status = disk_open(tiers, options);
    if (status < 0) {
        pllm_tiers_close(tiers);
        return status;
    }
    *tiers_out = tiers;
    return PLLM_OK;
}

void pllm_tiers_close(pllm_tiers *tiers)
{
    if (!tiers) return;
    const pllm_device_ops *ops = tiers->device->ops;
    pllm_disk_close(tiers->disk); /* before its buffers go */
    if (tiers->staging)
        ops->host_free(tiers->device, tiers->staging, tiers->staging_pages * tiers->page_bytes);
    for (uint32_t slab = 0; slab < tiers->slab_count; slab++)
        ops->host_free(tiers->device, tiers->slabs[slab], slab_bytes(tiers, slab));
    pllm_free(tiers->context, tiers->slabs);
    pllm_slots_deinit(&tiers->host);
    pllm_slots_deinit(&tiers->on_disk);
    pllm_region_close(tiers->region);
    pllm_budget_leave(tiers->member);
    pllm_free(tiers->context, tiers->ready);
    pllm_free(tiers->context, tiers->bare);
    pllm_free(tiers->context, tiers->chunk_used);
    pllm_free(tiers->context, tiers);
}

/* ---- what there is ---- */

uint64_t pllm_tiers_page_bytes(const pllm_tiers *tiers)
{
    return tiers->page_bytes;
}

pllm_device *pllm_tiers_device(const pllm_tiers *tiers)
{
    return tiers->device;
}

uint32_t pllm_tiers_extent_pages(const pllm_tiers *tiers)
{
    return tiers->extent_pages;
}

pllm_disk *pllm_tiers_disk(const pllm_tiers *tiers)
{
    return tiers->disk;
}

void *pllm_tiers_staging(const pllm_tiers *tiers, uint32_t *page_count_out)
{
    *page_count_out = tiers->staging_pages;
    return tiers->staging;
}

uint32_t pllm_tiers_slot_count(const pllm_tiers *tiers, pllm_place place)
{
    if (place == PLLM_AT_DEVICE) return tiers->frame_max;
    return place == PLLM_AT_HOST ? tiers->host.count : tiers->on_disk.count;
}

void pllm_tiers_stats_get(const pllm_tiers *tiers, pllm_tiers_stats *stats_out)
{
    *stats_out = (pllm_tiers_stats){
        .page_bytes = tiers->page_bytes,
        .frames_used = tiers->frames_used,
        .frames_peak = tiers->frames_peak,
        .frame_limit = pllm_tiers_frame_limit(tiers),
        .host_used = tiers->host.used,
        .host_peak = tiers->host.peak,
        .host_count = tiers->host_max,
        .disk_used = tiers->on_disk.used,
        .disk_peak = tiers->on_disk.peak,
        .disk_count = tiers->on_disk.count,
        .disk_name = tiers->disk ? tiers->disk->ops->name : "",
        .disk_note = tiers->disk ? tiers->disk->note : "",
    };
}

void pllm_tiers_check(const pllm_tiers *tiers)
{
    uint32_t used = 0;
    uint64_t *touching =
        calloc(tiers->chunk_max + 1, sizeof *touching); /* tests only: not counted */
    if (!touching) abort();
    for (uint32_t frame = 0; frame < tiers->frame_max; frame++) {
        int ready = pllm_bitmap_get(tiers->ready, frame),
            bare = pllm_bitmap_get(tiers->bare, frame);
        if (ready && bare) abort();                         /* 1 */
        if (frame_is_backed(tiers, frame) == bare) abort(); /* 3 */
        if (ready && frame < tiers->ready_hint) abort();
        if (bare && frame < tiers->bare_hint) abort();
        if (ready || bare) continue;
        used++;
        chunk_span span = frame_chunks(tiers, frame);
        for (uint32_t i = 0; i < span.count; i++) touching[span.first + i]++;
    }
    for (uint32_t chunk = 0; chunk < tiers->chunk_max; chunk++)
        if (touching[chunk] != tiers->chunk_used[chunk]) abort(); /* 2 */
    free(touching);
    if (used != tiers->frames_used) abort(); /* 1 */
    pllm_slots_check(&tiers->host);
    pllm_slots_check(&tiers->on_disk);
}
