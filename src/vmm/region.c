/* region.c - pages of a reserved range, backed by chunks that are kept when they are freed.
 *
 *   page     0       1       2       3       4     ...
 *   state  MAPPED  EMPTY  FENCED  MAPPED   EMPTY          chunk[page] where not EMPTY
 *   kept   [ chunk, chunk, ... ]                          charged, mapped nowhere
 *   fenced [ 2, ... ]                                     pages that wait for fence[page]
 *   zeros  one chunk, mapped for reading at every EMPTY page whose flag says BEHIND
 *
 * Creating a chunk and touching it for the first time cost far more than mapping one, so chunks
 * that are unmapped wait in kept for the next map. A run of neighbours is mapped by one call of the
 * device.
 *
 * Map is all or nothing, in three steps. begin takes the whole charge, gives pages chunks from kept
 * (state MOVING) and marks the rest (CREATING). run creates, maps and zeroes; if that fails it
 * unmaps and destroys what it made. end makes the pages MAPPED, or EMPTY again, their chunks back
 * to kept. Nothing but open allocates host memory here.
 *
 * "Moving" are the pages between begin and end of either.
 *
 * Invariants (pllm_region_check): 1. A page has a chunk if it is MAPPED or FENCED, and none if it
 * is EMPTY. 2. mapped_count, moving_count and fenced_count match the states; fenced lists each
 * FENCED page once. 3. The member's charge is (mapped + moving + fenced + kept) * chunk_bytes, and
 * one more for the zeros; and what callers have paid. 4. Only EMPTY pages are BEHIND, only those
 * with a chunk EXPORTED. Threads: one caller at a time; run touches only pages of its work, and
 * what open has fixed. */
#include <assert.h>
#include <string.h>
#include <unistd.h>
#include "vmm/region.h"

enum {
    PAGE_EMPTY,
    PAGE_MAPPED,
    PAGE_FENCED,
    PAGE_MOVING,   /* being mapped, with a chunk from kept */
    PAGE_CREATING, /* being mapped, with a new one */
    PAGE_KEEPING,  /* being unmapped; its chunk goes to kept */
    PAGE_ENDING,   /* being unmapped; its chunk is destroyed */
};
enum { FLAG_BEHIND = 1, FLAG_EXPORTED = 2 };
enum { BEHIND_RUN = 64 }; /* places of the zeros that one call maps */

struct pllm_region {
    const pllm_context *context;
    pllm_device *device;
    pllm_budget_member *member;
    pllm_va base;
    uint64_t chunk_bytes;
    uint32_t page_max, kept_max, kept_count, mapped_count, moving_count, fenced_count;
    uint32_t paying_count;  /* callers between pay_begin and map_paid */
    uint32_t keeping_count; /* pages that are KEEPING: there is room in kept for their chunks */
    uint32_t zero_on_reuse;
    uint8_t *state, *flags;         /* [page_max] */
    pllm_chunk **chunk;             /* [page_max] */
    pllm_event **fence;             /* [page_max], borrowed, of FENCED pages */
    uint32_t *fenced;               /* [page_max] */
    pllm_chunk **kept;              /* [kept_max], the newest last */
    pllm_stream *zeroing;           /* with zero_on_reuse: the stream that fills */
    pllm_chunk *zeros, *zeros_seen; /* with zero_behind: the chunk, and itself imported read-only */
    pllm_region_stats stats;
};

static void check_if_asked(const pllm_region *region)
{
#ifdef PLLM_CHECKS
    pllm_region_check(region);
#else
    (void)region;
#endif
}

static void region_free(pllm_region *region)
{
    pllm_free(region->context, region->state);
    pllm_free(region->context, region->chunk);
    pllm_free(region->context, region->fence);
    pllm_free(region->context, region->fenced);
    pllm_free(region->context, region->kept);
    pllm_free(region->context, region->flags);
    pllm_free(region->context, region);
}

static int region_arrays(pllm_region *region)
{
    const pllm_context *context = region->context;
    uint32_t page_max = region->page_max;
    region->state = pllm_alloc(context, page_max);
    region->chunk = pllm_alloc_array(context, page_max, sizeof *region->chunk);
    region->fence = pllm_alloc_array(context, page_max, sizeof *region->fence);
    region->fenced = pllm_alloc_array(context, page_max, sizeof *region->fenced);
    if (region->kept_max)
        region->kept = pllm_alloc_array(context, region->kept_max, sizeof *region->kept);
    region->flags = pllm_alloc(context, page_max);
    if (region->state && region->flags && region->chunk && region->fence && region->fenced &&
        (region->kept || !region->kept_max))
        return PLLM_OK;
    return pllm_fail_memory("a region's page arrays", (uint64_t)page_max * 22);
}

static pllm_va page_va(const pllm_region *region, uint32_t page)
{
    return region->base + page * region->chunk_bytes;
}

/* ---- zeros behind pages that are not backed ---- */

static int is_leaving(const pllm_region *region, uint32_t page)
{
    return region->state[page] == PAGE_KEEPING || region->state[page] == PAGE_ENDING;
}

/* At every page of the range that is EMPTY (or leaving); where the device refuses there is nothing,
 * as without zeros. */
static int behind_put(pllm_region *region, uint32_t page_first, uint32_t page_end, int leaving)
{
    if (!region->zeros) return PLLM_OK;
    pllm_chunk *run[BEHIND_RUN];
    for (uint32_t i = 0; i < BEHIND_RUN; i++) run[i] = region->zeros_seen;
    for (uint32_t page = page_first, end; page < page_end; page = end) {
        for (end = page; end < page_end && end - page < BEHIND_RUN; end++)
            if ((leaving ? !is_leaving(region, end) : region->state[end] != PAGE_EMPTY) ||
                region->flags[end] & FLAG_BEHIND)
                break;
        if (end == page) {
            end++;
            continue;
        }
        pllm_device *device = region->device;
        int status = device->ops->map(device, page_va(region, page), run, end - page);
        if (status < 0) return status;
        for (uint32_t at = page; at < end; at++) region->flags[at] |= FLAG_BEHIND;
    }
    return PLLM_OK;
}

static void behind_take(pllm_region *region, uint32_t page)
{
    if (!(region->flags[page] & FLAG_BEHIND)) return;
    region->device->ops->unmap(region->device, page_va(region, page), region->zeros_seen);
    region->flags[page] &= (uint8_t)~FLAG_BEHIND;
}

static void behind_close(pllm_region *region)
{
    if (!region->zeros) return;
    for (uint32_t page = 0; page < region->page_max; page++) behind_take(region, page);
    region->device->ops->chunk_destroy(region->device, region->zeros_seen);
    region->device->ops->chunk_destroy(region->device, region->zeros);
    pllm_budget_credit(region->member, region->chunk_bytes);
    region->zeros = NULL;
}

/* One chunk, charged; the places see it as another process would that may only read. */
static int behind_open(pllm_region *region)
{
    pllm_device *device = region->device;
    int fd, status = pllm_budget_charge(region->member, region->chunk_bytes);
    if (status < 0) return status;
    status = device->ops->chunk_create(device, region->chunk_bytes, &region->zeros);
    if (status < 0) goto fail_charge;
    status = device->ops->chunk_export(device, region->zeros, 1, &fd);
    if (status < 0) goto fail_zeros;
    status = device->ops->chunk_import(device, fd, region->chunk_bytes, 1, &region->zeros_seen);
    close(fd);
    if (status < 0) goto fail_zeros;
    status = behind_put(region, 0, region->page_max, 0);
    if (status < 0) behind_close(region);
    return status;
fail_zeros:
    device->ops->chunk_destroy(device, region->zeros);
    region->zeros = NULL;
fail_charge:
    pllm_budget_credit(region->member, region->chunk_bytes);
    return status;
}

/* ---- life ---- */

static int check_options(const pllm_region_options *options)
{
    if (!options || options->struct_bytes != sizeof *options)
        return pllm_fail(PLLM_EINVAL, 0, "no pllm_region_options, or of another size than %zu",
                         sizeof *options);
    if (options->page_max == 0) return pllm_fail(PLLM_EINVAL, 0, "a region of no pages");
    return PLLM_OK;
}

int pllm_region_open(const pllm_context *context, pllm_device *device, pllm_budget_member *member,
                     const pllm_region_options *options, pllm_region **region_out)
{
    if (!region_out || !device || !member)
        return pllm_fail(PLLM_EINVAL, 0, "a region needs a device, a budget member and a result");
    *region_out = NULL;
    int status = check_options(options);
    if (status < 0) return status;
    pllm_device_info info;
    status = device->ops->info(device, &info);
    if (status < 0) return status;
    uint64_t chunk_bytes = options->chunk_bytes ? options->chunk_bytes : info.chunk_bytes, bytes;
    if (chunk_bytes % info.granularity_bytes ||
        __builtin_mul_overflow(chunk_bytes, options->page_max, &bytes))
        return pllm_fail(
            PLLM_EINVAL, 0, "chunks of %llu bytes: no multiple of the device's %llu, or too many",
            (unsigned long long)chunk_bytes, (unsigned long long)info.granularity_bytes);
    pllm_region *region = pllm_alloc(context, sizeof *region);
    if (!region) return pllm_fail_memory("a region", sizeof *region);
    region->context = context;
    region->device = device;
    region->member = member;
    region->chunk_bytes = chunk_bytes;
    region->page_max = options->page_max;
    region->kept_max =
        options->kept_max < options->page_max ? options->kept_max : options->page_max;
    region->zero_on_reuse = options->zero_on_reuse;
    status = region_arrays(region);
    if (status < 0) goto fail_region;
    if (region->zero_on_reuse) status = device->ops->stream_open(device, &region->zeroing);
    if (status < 0) goto fail_region;
    status = device->ops->reserve(device, bytes, &region->base);
    if (status < 0) goto fail_stream;
    if (options->zero_behind) status = behind_open(region);
    if (status < 0) goto fail_base;
    *region_out = region;
    return PLLM_OK;
fail_base:
    device->ops->release(device, region->base, bytes);
fail_stream:
    device->ops->stream_close(device, region->zeroing);
fail_region:
    region_free(region);
    return status;
}

static void chunk_discard(pllm_region *region, pllm_chunk *chunk)
{
    region->device->ops->chunk_destroy(region->device, chunk);
    pllm_budget_credit(region->member, region->chunk_bytes);
}

static void chunk_keep(pllm_region *region, pllm_chunk *chunk)
{
    if (region->kept_count + region->keeping_count < region->kept_max)
        region->kept[region->kept_count++] = chunk;
    else
        chunk_discard(region, chunk);
}

/* ---- mapping ---- */

static int check_pages(const pllm_region *region, uint32_t page_first, uint32_t page_count)
{
    if (page_first <= region->page_max && page_count <= region->page_max - page_first)
        return PLLM_OK;
    return pllm_fail(PLLM_EINVAL, 0, "pages %u to %llu lie outside a region of %u", page_first,
                     (unsigned long long)page_first + page_count, region->page_max);
}

static int is_moving(const pllm_region *region, uint32_t page)
{
    return region->state[page] == PAGE_MOVING || region->state[page] == PAGE_CREATING;
}

static uint32_t count_state(const pllm_region *region, const pllm_region_work *work, int state)
{
    uint32_t count = 0;
    for (uint32_t page = work->page_first; page < work->page_end; page++)
        count += region->state[page] == state;
    return count;
}

/* Charges the chunks that kept does not have, less what was paid; credits what was paid too much.
 */
static int work_charge(pllm_region *region, const pllm_region_work *work, uint32_t paid)
{
    uint32_t created = work->created_count;
    if (created < paid) pllm_budget_credit(region->member, (paid - created) * region->chunk_bytes);
    if (created <= paid) return PLLM_OK;
    return pllm_budget_charge(region->member, (created - paid) * region->chunk_bytes);
}

static int map_begin(pllm_region *region, uint32_t page_first, uint32_t page_count, uint32_t paid,
                     pllm_region_work *work_out)
{
    pllm_region_work work = {.page_first = page_first, .page_end = page_first + page_count};
    region->stats.map_calls++;
    if (count_state(region, &work, PAGE_FENCED)) {
        pllm_region_settle(region);
        if (count_state(region, &work, PAGE_FENCED))
            return pllm_fail(PLLM_EBUSY, 0, "a page of %u to %u still waits for its fence",
                             page_first, work.page_end);
    }
    work.moving_count = count_state(region, &work, PAGE_EMPTY);
    if (work.moving_count > region->kept_count)
        work.created_count = work.moving_count - region->kept_count;
    int status = work_charge(region, &work, paid);
    if (status < 0) return status;
    for (uint32_t page = page_first; page < work.page_end; page++) {
        if (region->state[page] != PAGE_EMPTY) continue;
        region->state[page] = region->kept_count ? PAGE_MOVING : PAGE_CREATING;
        if (region->kept_count) region->chunk[page] = region->kept[--region->kept_count];
    }
    region->moving_count += work.moving_count;
    *work_out = work;
    return PLLM_OK;
}

int pllm_region_map_begin(pllm_region *region, uint32_t page_first, uint32_t page_count,
                          pllm_region_work *work_out)
{
    int status = check_pages(region, page_first, page_count);
    return status < 0 ? status : map_begin(region, page_first, page_count, 0, work_out);
}

uint32_t pllm_region_pay_begin(pllm_region *region, uint32_t page_first, uint32_t page_count)
{
    pllm_region_work work = {.page_first = page_first, .page_end = page_first + page_count};
    uint32_t count = count_state(region, &work, PAGE_EMPTY);
    region->paying_count++;
    return count > region->kept_count ? count - region->kept_count : 0;
}

void pllm_region_pay_cancel(pllm_region *region)
{
    region->paying_count--;
}

int pllm_region_map_paid(pllm_region *region, uint32_t page_first, uint32_t page_count,
                         uint32_t paid_count, pllm_region_work *work_out)
{
    region->paying_count--;
    int status = map_begin(region, page_first, page_count, paid_count, work_out);
    if (status < 0) pllm_budget_credit(region->member, paid_count * region->chunk_bytes);
    return status;
}

/* The end of the run of pages of the work from page on, for which only_reused or any will do. */
static uint32_t run_end(const pllm_region *region, const pllm_region_work *work, uint32_t page,
                        int only_reused)
{
    while (page < work->page_end &&
           (only_reused ? region->state[page] == PAGE_MOVING : is_moving(region, page)))
        page++;
    return page;
}

static int chunks_create(pllm_region *region, const pllm_region_work *work)
{
    pllm_device *device = region->device;
    int status = PLLM_OK;
    for (uint32_t page = work->page_first; page < work->page_end && status == PLLM_OK; page++)
        if (region->state[page] == PAGE_CREATING)
            status = device->ops->chunk_create(device, region->chunk_bytes, &region->chunk[page]);
    return status;
}

/* Maps whole runs; *mapped_end is where it got to. */
static int chunks_map(pllm_region *region, const pllm_region_work *work, uint32_t *mapped_end)
{
    pllm_device *device = region->device;
    uint32_t page = work->page_first, end;
    for (; page < work->page_end; page = end) {
        *mapped_end = page;
        end = run_end(region, work, page, 0);
        if (end == page) {
            end++;
            continue;
        }
        for (uint32_t at = page; at < end; at++) behind_take(region, at);
        int status =
            device->ops->map(device, page_va(region, page), &region->chunk[page], end - page);
        if (status < 0) return status;
    }
    *mapped_end = work->page_end;
    return PLLM_OK;
}

/* Fills the reused pages of the work, whole runs at a time, and waits. */
static int pages_zero(pllm_region *region, const pllm_region_work *work)
{
    pllm_device *device = region->device;
    int status = PLLM_OK;
    if (!region->zero_on_reuse || work->moving_count == work->created_count) return PLLM_OK;
    for (uint32_t page = work->page_first; page < work->page_end && status == PLLM_OK;) {
        uint32_t end = run_end(region, work, page, 1);
        if (end > page)
            status = device->ops->fill(device, region->zeroing, page_va(region, page),
                                       (end - page) * region->chunk_bytes, 0);
        page = end > page ? end : page + 1;
    }
    /* After a failed submission too: what was submitted must end before the pages go. */
    int synced = device->ops->stream_sync(device, region->zeroing);
    return status < 0 ? status : synced;
}

/* After a failure: nothing of the work is mapped, and what it created is gone. */
static void work_undo(pllm_region *region, const pllm_region_work *work, uint32_t mapped_end)
{
    pllm_device *device = region->device;
    for (uint32_t page = work->page_first; page < work->page_end; page++) {
        if (!is_moving(region, page)) continue;
        if (page < mapped_end)
            device->ops->unmap(device, page_va(region, page), region->chunk[page]);
        if (region->state[page] != PAGE_CREATING) continue;
        device->ops->chunk_destroy(device, region->chunk[page]);
        region->chunk[page] = NULL;
    }
}

int pllm_region_map_run(pllm_region *region, const pllm_region_work *work)
{
    uint32_t mapped_end = work->page_first;
    int status = chunks_create(region, work);
    if (status == PLLM_OK) status = chunks_map(region, work, &mapped_end);
    if (status == PLLM_OK) status = pages_zero(region, work);
    if (status < 0) work_undo(region, work, mapped_end);
    return status;
}

int pllm_region_map_end(pllm_region *region, const pllm_region_work *work, int status)
{
    for (uint32_t page = work->page_first; page < work->page_end; page++) {
        if (!is_moving(region, page)) continue;
        if (status == PLLM_OK) {
            region->state[page] = PAGE_MAPPED;
            continue;
        }
        if (region->state[page] == PAGE_MOVING) chunk_keep(region, region->chunk[page]);
        region->chunk[page] = NULL;
        region->state[page] = PAGE_EMPTY;
    }
    region->moving_count -= work->moving_count;
    if (status < 0) {
        pllm_budget_credit(region->member, work->created_count * region->chunk_bytes);
        (void)behind_put(region, work->page_first, work->page_end, 0);
    } else {
        region->mapped_count += work->moving_count;
        region->stats.created_chunks += work->created_count;
        region->stats.reused_chunks += work->moving_count - work->created_count;
        if (region->mapped_count > region->stats.mapped_peak)
            region->stats.mapped_peak = region->mapped_count;
    }
    check_if_asked(region);
    return status;
}

int pllm_region_map(pllm_region *region, uint32_t page_first, uint32_t page_count)
{
    pllm_region_work work;
    int status = pllm_region_map_begin(region, page_first, page_count, &work);
    if (status < 0) return status;
    return pllm_region_map_end(region, &work, pllm_region_map_run(region, &work));
}

/* ---- unmapping ---- */

static void page_leaves(pllm_region *region, uint32_t page)
{
    int keep = !(region->flags[page] & FLAG_EXPORTED) &&
               region->kept_count + region->keeping_count < region->kept_max;
    region->state[page] = keep ? PAGE_KEEPING : PAGE_ENDING;
    region->flags[page] = 0;
    region->keeping_count += (uint32_t)keep;
    region->moving_count++;
}

int pllm_region_unmap_begin(pllm_region *region, uint32_t page_first, uint32_t page_count,
                            pllm_region_work *work)
{
    int status = check_pages(region, page_first, page_count);
    if (status < 0) return status;
    uint32_t page_end = page_first + page_count;
    for (uint32_t page = page_first; page < page_end; page++) {
        if (region->state[page] != PAGE_MAPPED) continue;
        region->mapped_count--;
        page_leaves(region, page);
        work->moving_count++;
    }
    if (work->page_end == 0 || page_first < work->page_first) work->page_first = page_first;
    if (page_end > work->page_end) work->page_end = page_end;
    return PLLM_OK;
}

void pllm_region_unmap_run(pllm_region *region, const pllm_region_work *work)
{
    pllm_device *device = region->device;
    for (uint32_t page = work->page_first; page < work->page_end; page++) {
        if (!is_leaving(region, page)) continue;
        device->ops->unmap(device, page_va(region, page), region->chunk[page]);
        if (region->state[page] != PAGE_ENDING) continue;
        device->ops->chunk_destroy(device, region->chunk[page]);
        region->chunk[page] = NULL;
    }
    (void)behind_put(region, work->page_first, work->page_end, 1);
}

void pllm_region_unmap_end(pllm_region *region, const pllm_region_work *work)
{
    uint32_t ended = 0;
    for (uint32_t page = work->page_first; page < work->page_end; page++) {
        if (!is_leaving(region, page)) continue;
        if (region->state[page] == PAGE_KEEPING) {
            region->kept[region->kept_count++] = region->chunk[page];
            region->keeping_count--;
        } else {
            ended++;
        }
        region->chunk[page] = NULL;
        region->fence[page] = NULL;
        region->state[page] = PAGE_EMPTY;
    }
    region->moving_count -= work->moving_count;
    pllm_budget_credit(region->member, ended * region->chunk_bytes);
    check_if_asked(region);
}

int pllm_region_unmap(pllm_region *region, uint32_t page_first, uint32_t page_count,
                      pllm_event *fence)
{
    pllm_region_work work = {0};
    int status = check_pages(region, page_first, page_count);
    if (status < 0) return status;
    if (!fence) {
        (void)pllm_region_unmap_begin(region, page_first, page_count, &work);
        pllm_region_unmap_run(region, &work);
        pllm_region_unmap_end(region, &work);
        return PLLM_OK;
    }
    for (uint32_t page = page_first; page < page_first + page_count; page++) {
        if (region->state[page] != PAGE_MAPPED) continue;
        region->mapped_count--;
        region->state[page] = PAGE_FENCED;
        region->fence[page] = fence;
        region->fenced[region->fenced_count++] = page;
    }
    check_if_asked(region);
    return PLLM_OK;
}

uint32_t pllm_region_settle(pllm_region *region)
{
    uint32_t still = 0;
    pllm_event *asked = NULL;
    int answer = 0;
    pllm_region_work work = {.page_first = UINT32_MAX};
    for (uint32_t i = 0; i < region->fenced_count; i++) {
        uint32_t page = region->fenced[i];
        if (region->fence[page] != asked) { /* runs of pages share a fence: one query */
            asked = region->fence[page];
            answer = region->device->ops->event_query(region->device, asked);
        }
        if (answer == 0) {
            region->fenced[still++] = page;
            continue;
        }
        page_leaves(region, page); /* work that failed is over too */
        work.moving_count++;
        if (page < work.page_first) work.page_first = page;
        if (page >= work.page_end) work.page_end = page + 1;
    }
    region->fenced_count = still;
    if (work.moving_count == 0) return still;
    pllm_region_unmap_run(region, &work);
    pllm_region_unmap_end(region, &work);
    return still;
}

uint64_t pllm_region_trim(pllm_region *region, uint32_t kept_max)
{
    uint64_t bytes = 0;
    while (region->kept_count > kept_max) {
        chunk_discard(region, region->kept[--region->kept_count]);
        bytes += region->chunk_bytes;
    }
    check_if_asked(region);
    return bytes;
}

void pllm_region_close(pllm_region *region)
{
    if (!region) return;
    pllm_device *device = region->device;
    for (uint32_t i = 0; i < region->fenced_count; i++)
        (void)device->ops->event_wait(device, region->fence[region->fenced[i]], UINT64_MAX);
    for (uint32_t page = 0; page < region->page_max; page++) {
        if (region->state[page] == PAGE_EMPTY) continue;
        device->ops->unmap(device, page_va(region, page), region->chunk[page]);
        chunk_discard(region, region->chunk[page]);
    }
    while (region->kept_count > 0) chunk_discard(region, region->kept[--region->kept_count]);
    behind_close(region);
    device->ops->release(device, region->base, region->page_max * region->chunk_bytes);
    device->ops->stream_close(device, region->zeroing);
    region_free(region);
}

/* ---- asking ---- */

int pllm_region_export(pllm_region *region, uint32_t page, uint32_t read_only, int *fd_out)
{
    pllm_device *device = region->device;
    *fd_out = -1;
    if (!pllm_region_is_mapped(region, page))
        return pllm_fail(PLLM_EINVAL, 0, "page %u is not mapped: there is nothing to export", page);
    int status = device->ops->chunk_export(device, region->chunk[page], read_only, fd_out);
    if (status == PLLM_OK) region->flags[page] |= FLAG_EXPORTED;
    return status;
}

int pllm_region_is_exported(const pllm_region *region, uint32_t page)
{
    return pllm_region_is_mapped(region, page) && region->flags[page] & FLAG_EXPORTED;
}

int pllm_region_is_mapped(const pllm_region *region, uint32_t page)
{
    return page < region->page_max && region->state[page] == PAGE_MAPPED;
}

pllm_va pllm_region_base(const pllm_region *region)
{
    return region->base;
}

uint64_t pllm_region_chunk_bytes(const pllm_region *region)
{
    return region->chunk_bytes;
}

void pllm_region_stats_get(const pllm_region *region, pllm_region_stats *stats_out)
{
    *stats_out = region->stats;
    stats_out->mapped_count = region->mapped_count;
    stats_out->kept_count = region->kept_count;
    stats_out->fenced_count = region->fenced_count;
}

void pllm_region_check(const pllm_region *region)
{
    uint32_t mapped = 0, fenced = 0, moving = 0, keeping = 0;
    for (uint32_t page = 0; page < region->page_max; page++) {
        uint8_t state = region->state[page]; /* of moving pages run may be changing the rest */
        if (state == PAGE_MAPPED || state == PAGE_FENCED)
            assert(region->chunk[page] && !(region->flags[page] & FLAG_BEHIND)); /* 1, 4 */
        if (state == PAGE_EMPTY)
            assert(!region->chunk[page] && !(region->flags[page] & FLAG_EXPORTED));
        mapped += state == PAGE_MAPPED;
        fenced += state == PAGE_FENCED;
        moving += is_moving(region, page) || is_leaving(region, page);
        keeping += state == PAGE_KEEPING;
    }
    assert(mapped == region->mapped_count && fenced == region->fenced_count); /* 2 */
    assert(moving == region->moving_count && keeping == region->keeping_count);
    for (uint32_t i = 0; i < region->fenced_count; i++)
        assert(region->state[region->fenced[i]] == PAGE_FENCED);
    assert(region->kept_count + keeping <= region->kept_max);
    for (uint32_t i = 0; i < region->kept_count; i++) assert(region->kept[i]);
    uint64_t chunks = (uint64_t)mapped + moving + fenced + region->kept_count;
    uint64_t bytes = (chunks + (region->zeros != NULL)) * region->chunk_bytes;
    uint64_t charged = pllm_budget_charged(region->member);
    assert(region->paying_count ? charged >= bytes : charged == bytes); /* 3 */
}
