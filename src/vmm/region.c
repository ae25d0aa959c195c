/* region.c - pages of a reserved range, backed by chunks that are kept when they are freed.
 *
 *   page     0       1       2       3       4     ...
 *   state  MAPPED  EMPTY  FENCED  MAPPED   EMPTY          chunk[page] where not EMPTY
 *   kept   [ chunk, chunk, ... ]                          charged, mapped nowhere
 *   fenced [ 2, ... ]                                     pages that wait for fence[page]
 *
 * Creating a chunk and touching it for the first time cost far more than mapping one, so chunks
 * that are unmapped wait in kept for the next map.
 *
 * Map is all or nothing: the whole charge is taken first, then each EMPTY page gets a chunk and is
 * MAPPING, then runs of those are mapped, one call each; a failure takes exactly those back,
 * returns as many chunks to kept as came from there and destroys the rest. Nothing but open
 * allocates host memory here.
 *
 * Invariants (pllm_region_check): 1. A page has a chunk unless it is EMPTY. 2. mapped_count and
 * fenced_count match the states; fenced lists each FENCED page once. 3. The member's charge is
 * (mapped + fenced + kept) * chunk_bytes. 4. No page is MAPPING between calls.
 * Threads: one caller at a time. */
#include <assert.h>
#include <string.h>
#include "vmm/region.h"

enum { PAGE_EMPTY, PAGE_MAPPED, PAGE_FENCED, PAGE_MAPPING };

struct pllm_region {
    const pllm_context *context;
    pllm_device *device;
    pllm_budget_member *member;
    pllm_va base;
    uint64_t chunk_bytes;
    uint32_t page_max, kept_max, kept_count, mapped_count, fenced_count;
    uint32_t zero_on_reuse;
    uint8_t *state;       /* [page_max] */
    pllm_chunk **chunk;   /* [page_max] */
    pllm_event **fence;   /* [page_max], borrowed, of FENCED pages */
    uint32_t *fenced;     /* [page_max] */
    pllm_chunk **kept;    /* [kept_max], the newest last */
    uint8_t *reused;      /* [page_max], during a map with zero_on_reuse: came from kept */
    pllm_stream *zeroing; /* with zero_on_reuse: the stream that fills */
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
    pllm_free(region->context, region->reused);
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
    if (region->zero_on_reuse) region->reused = pllm_alloc(context, page_max);
    if (region->state && region->chunk && region->fence && region->fenced &&
        (region->kept || !region->kept_max) && (region->reused || !region->zero_on_reuse))
        return PLLM_OK;
    return pllm_fail_memory("a region's page arrays", (uint64_t)page_max * 22);
}

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
    *region_out = region;
    return PLLM_OK;
fail_stream:
    device->ops->stream_close(device, region->zeroing);
fail_region:
    region_free(region);
    return status;
}

static pllm_va page_va(const pllm_region *region, uint32_t page)
{
    return region->base + page * region->chunk_bytes;
}

static void chunk_discard(pllm_region *region, pllm_chunk *chunk)
{
    region->device->ops->chunk_destroy(region->device, chunk);
    pllm_budget_credit(region->member, region->chunk_bytes);
}

/* Takes a page's backing out of the address range; the caller says what becomes of the chunk. */
static pllm_chunk *page_detach(pllm_region *region, uint32_t page)
{
    pllm_chunk *chunk = region->chunk[page];
    region->device->ops->unmap(region->device, page_va(region, page), chunk);
    region->chunk[page] = NULL;
    region->fence[page] = NULL;
    region->state[page] = PAGE_EMPTY;
    return chunk;
}

static void page_unmap(pllm_region *region, uint32_t page)
{
    pllm_chunk *chunk = page_detach(region, page);
    if (region->kept_count < region->kept_max)
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

/* Gives one EMPTY page a chunk; *kept_used counts those that came from kept. */
static int page_attach(pllm_region *region, uint32_t page, uint32_t *kept_used)
{
    pllm_device *device = region->device;
    int from_kept = region->kept_count > 0;
    if (from_kept) {
        region->chunk[page] = region->kept[--region->kept_count];
        ++*kept_used;
    } else {
        int status = device->ops->chunk_create(device, region->chunk_bytes, &region->chunk[page]);
        if (status < 0) return status;
    }
    if (region->reused) region->reused[page] = (uint8_t)from_kept;
    region->state[page] = PAGE_MAPPING;
    return PLLM_OK;
}

/* Maps the MAPPING pages, a call a run; *mapped_end: all of them before it are mapped. */
static int pages_map(pllm_region *region, uint32_t page_first, uint32_t page_end,
                     uint32_t *mapped_end)
{
    pllm_device *device = region->device;
    for (uint32_t page = page_first; page < page_end;) {
        uint32_t end = page;
        while (end < page_end && region->state[end] == PAGE_MAPPING) end++;
        if (end > page) {
            int status =
                device->ops->map(device, page_va(region, page), region->chunk + page, end - page);
            if (status < 0) return status;
        }
        page = end > page ? end : page + 1;
        *mapped_end = page;
    }
    return PLLM_OK;
}

/* Fills the reused pages among those being mapped, whole runs at a time, and waits. */
static int pages_zero(pllm_region *region, uint32_t page_first, uint32_t page_end)
{
    pllm_device *device = region->device;
    int status = PLLM_OK;
    for (uint32_t page = page_first; page < page_end && status == PLLM_OK;) {
        uint32_t end = page;
        while (end < page_end && region->state[end] == PAGE_MAPPING && region->reused[end]) end++;
        if (end > page)
            status = device->ops->fill(device, region->zeroing, page_va(region, page),
                                       (end - page) * region->chunk_bytes, 0);
        page = end > page ? end : page + 1;
    }
    /* After a failed submission too: what was submitted must end before the pages go. */
    int synced = device->ops->stream_sync(device, region->zeroing);
    return status < 0 ? status : synced;
}

/* Takes back the MAPPING pages of a failed map: kept gets as many chunks as it gave. */
static void pages_undo(pllm_region *region, uint32_t page_first, uint32_t page_end,
                       uint32_t mapped_end, uint32_t kept_used)
{
    for (uint32_t page = page_first; page < page_end; page++) {
        if (region->state[page] != PAGE_MAPPING) continue;
        pllm_chunk *chunk = region->chunk[page];
        if (page < mapped_end)
            page_detach(region, page);
        else
            region->chunk[page] = NULL, region->state[page] = PAGE_EMPTY;
        if (kept_used > 0) {
            region->kept[region->kept_count++] = chunk;
            kept_used--;
        } else {
            region->device->ops->chunk_destroy(region->device, chunk);
        }
    }
}

int pllm_region_map(pllm_region *region, uint32_t page_first, uint32_t page_count)
{
    int status = check_pages(region, page_first, page_count);
    if (status < 0) return status;
    uint32_t page_end = page_first + page_count, needed = 0, fenced = 0, kept_used = 0;
    uint32_t mapped_end = page_first;
    region->stats.map_calls++;
    for (uint32_t page = page_first; page < page_end; page++)
        fenced += region->state[page] == PAGE_FENCED;
    if (fenced) {
        pllm_region_settle(region);
        for (uint32_t page = page_first; page < page_end; page++)
            if (region->state[page] == PAGE_FENCED)
                return pllm_fail(PLLM_EBUSY, 0, "page %u still waits for its fence", page);
    }
    for (uint32_t page = page_first; page < page_end; page++)
        needed += region->state[page] == PAGE_EMPTY;
    uint32_t created = needed > region->kept_count ? needed - region->kept_count : 0;
    status = pllm_budget_charge(region->member, created * region->chunk_bytes);
    if (status < 0) return status;
    for (uint32_t page = page_first; page < page_end && status == PLLM_OK; page++)
        if (region->state[page] == PAGE_EMPTY) status = page_attach(region, page, &kept_used);
    if (status == PLLM_OK) status = pages_map(region, page_first, page_end, &mapped_end);
    if (status == PLLM_OK && region->zero_on_reuse && kept_used)
        status = pages_zero(region, page_first, page_end);
    if (status < 0) {
        pages_undo(region, page_first, page_end, mapped_end, kept_used);
        pllm_budget_credit(region->member, created * region->chunk_bytes);
        check_if_asked(region);
        return status;
    }
    for (uint32_t page = page_first; page < page_end; page++)
        if (region->state[page] == PAGE_MAPPING) region->state[page] = PAGE_MAPPED;
    region->mapped_count += needed;
    region->stats.reused_chunks += kept_used;
    region->stats.created_chunks += created;
    if (region->mapped_count > region->stats.mapped_peak)
        region->stats.mapped_peak = region->mapped_count;
    check_if_asked(region);
    return PLLM_OK;
}

/* ---- unmapping ---- */

int pllm_region_unmap(pllm_region *region, uint32_t page_first, uint32_t page_count,
                      pllm_event *fence)
{
    int status = check_pages(region, page_first, page_count);
    if (status < 0) return status;
    for (uint32_t page = page_first; page < page_first + page_count; page++) {
        if (region->state[page] != PAGE_MAPPED) continue;
        region->mapped_count--;
        if (fence) {
            region->state[page] = PAGE_FENCED;
            region->fence[page] = fence;
            region->fenced[region->fenced_count++] = page;
        } else {
            page_unmap(region, page);
        }
    }
    check_if_asked(region);
    return PLLM_OK;
}

uint32_t pllm_region_settle(pllm_region *region)
{
    uint32_t still = 0;
    pllm_event *asked = NULL;
    int answer = 0;
    for (uint32_t i = 0; i < region->fenced_count; i++) {
        uint32_t page = region->fenced[i];
        if (region->fence[page] != asked) { /* runs of pages share a fence: one query */
            asked = region->fence[page];
            answer = region->device->ops->event_query(region->device, asked);
        }
        if (answer == 0)
            region->fenced[still++] = page;
        else
            page_unmap(region, page); /* work that failed is over too */
    }
    region->fenced_count = still;
    check_if_asked(region);
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
    for (uint32_t page = 0; page < region->page_max; page++)
        if (region->state[page] != PAGE_EMPTY) chunk_discard(region, page_detach(region, page));
    while (region->kept_count > 0) chunk_discard(region, region->kept[--region->kept_count]);
    device->ops->release(device, region->base, region->page_max * region->chunk_bytes);
    device->ops->stream_close(device, region->zeroing);
    region_free(region);
}

/* ---- asking ---- */

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
    uint32_t mapped = 0, fenced = 0;
    for (uint32_t page = 0; page < region->page_max; page++) {
        assert(region->state[page] != PAGE_MAPPING);                                  /* 4 */
        assert((region->chunk[page] != NULL) == (region->state[page] != PAGE_EMPTY)); /* 1 */
        mapped += region->state[page] == PAGE_MAPPED;
        fenced += region->state[page] == PAGE_FENCED;
    }
    assert(mapped == region->mapped_count && fenced == region->fenced_count); /* 2 */
    for (uint32_t i = 0; i < region->fenced_count; i++)
        assert(region->state[region->fenced[i]] == PAGE_FENCED);
    assert(region->kept_count <= region->kept_max);
    for (uint32_t i = 0; i < region->kept_count; i++) assert(region->kept[i]);
    assert(pllm_budget_charged(region->member) ==
           ((uint64_t)mapped + fenced + region->kept_count) * region->chunk_bytes); /* 3 */
}
