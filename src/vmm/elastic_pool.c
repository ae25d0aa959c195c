/* elastic_pool.c - a pool: bytes that are somebody's, pages behind them.
 *
 *   bytes   [ PLACED     ][PLACED][ FREE                  ]
 *   used    |  full  | 1,000 | 300 |   0   |   0   |   0   |
 *   pages   | backed | backed|backed| idle | idle  |  none |
 *
 * Allocating takes bytes first (PLACING), counts them in their pages, then has those pages backed
 * that are not; if that fails it takes both back. Freeing gives the bytes back, then lets those
 * pages go that nobody uses, except a few behind what may grow. Bytes freed behind a stream stay
 * PENDING and counted until an event says that its work is done.
 *
 * Invariants (pllm_vmm_pool_check): 1. used[page] is the number of bytes of the page that are
 * PLACING, PLACED, BLOCK or PENDING; what a fence keeps as a block's room is not among them. 2. A
 * page that has PLACED or BLOCK bytes is backed, unless they are being placed. 3. idle_count pages
 * are backed with used 0. 4. Only backed pages are dirty. 5. Each fence's bytes are PENDING.
 * Threads: the pool's lock is held. What maps or unmaps lets go of it meanwhile, and comes back to
 * a pool that is whole, but may be another. */
#include <assert.h>
#include <string.h>
#include "base/clock.h"
#include "vmm/elastic.h"

#define AHEAD_STEP_BYTES ((uint64_t)16 << 20) /* mapped ahead at once, or one page */
#define FREED 0xdb
enum { IN_VAIN_MAX = 8 };

/* ---- bytes and pages ---- */

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static uint32_t first_page(const pllm_vmm_pool *pool, uint64_t offset)
{
    return (uint32_t)(offset / pool->page_bytes);
}

static uint32_t end_page(const pllm_vmm_pool *pool, uint64_t end)
{
    return (uint32_t)(end / pool->page_bytes + (end % pool->page_bytes != 0));
}

/* How many bytes of [offset, end) lie in the page. */
static uint32_t part(const pllm_vmm_pool *pool, uint32_t page, uint64_t offset, uint64_t end)
{
    uint64_t from = page * pool->page_bytes, to = from + pool->page_bytes;
    return (uint32_t)((end < to ? end : to) - (offset > from ? offset : from));
}

static int is_idle(const pllm_vmm_pool *pool, uint32_t page)
{
    return pool->used[page] == 0 && pllm_region_is_mapped(pool->region, page);
}

void pllm_vmm_pool_touch(pllm_vmm_pool *pool, uint64_t offset, uint64_t bytes, int more)
{
    uint64_t end = offset + bytes;
    for (uint32_t page = first_page(pool, offset); page < end_page(pool, end); page++) {
        uint32_t count = part(pool, page, offset, end);
        int idle = is_idle(pool, page);
        assert(more ? count <= pool->page_bytes - pool->used[page] : count <= pool->used[page]);
        pool->used[page] = more ? pool->used[page] + count : pool->used[page] - count;
        pool->idle_count += (uint32_t)(is_idle(pool, page) - idle);
    }
}

/* ---- mapping ---- */

static int no_room(pllm_vmm_pool *pool, uint64_t bytes, int full)
{
    pllm_budget_stats all;
    pllm_budget_stats_get(pool->vmm->budget, &all);
    return pllm_fail(PLLM_ENODEVMEM, 0,
                     "model %s: %llu bytes more do not fit: it has %llu of at most %llu, all "
                     "models %llu of %llu; %s",
                     pool->name, (unsigned long long)bytes,
                     (unsigned long long)pllm_budget_charged(pool->member),
                     (unsigned long long)pool->limit_bytes, (unsigned long long)all.charged_bytes,
                     (unsigned long long)all.limit_bytes,
                     full ? "the device has no more: others are using it"
                          : "free some, or raise a limit");
}

/* How many pages of the range are not backed. */
static uint32_t missing(const pllm_vmm_pool *pool, uint32_t page_first, uint32_t page_end)
{
    uint32_t count = 0;
    for (uint32_t page = page_first; page < page_end; page++)
        count += !pllm_region_is_mapped(pool->region, page);
    return count;
}

/* Waits until nobody maps or unmaps. Lets go of the lock. */
static void wait_for_mapper(pllm_vmm_pool *pool)
{
    while (pool->mapping) pthread_cond_wait(&pool->changed, &pool->lock);
}

/* Charges in the ledger what mapping the range takes, without the lock. What this process has and
 * does not use comes before what other processes would have to give back; for mapping ahead nobody
 * is asked at all. */
static int pay(pllm_vmm_pool *pool, uint32_t page_first, uint32_t page_end, int ahead,
               uint32_t *paid)
{
    uint32_t count = pllm_region_pay_begin(pool->region, page_first, page_end - page_first);
    uint64_t bytes = count * pool->page_bytes;
    int status = PLLM_OK;
    pthread_mutex_unlock(&pool->lock);
    uint64_t there = count ? pllm_vmm_ledger_free(pool->vmm) : 0;
    if (bytes > there && ahead) status = PLLM_ENODEVMEM;
    if (bytes > there && !ahead) (void)pllm_vmm_reclaim(pool->vmm, pool, bytes - there, 1);
    if (status == PLLM_OK) status = pllm_budget_charge(pool->member, bytes);
    pthread_mutex_lock(&pool->lock);
    if (status < 0) pllm_region_pay_cancel(pool->region);
    *paid = count;
    return status;
}

static int map_begin(pllm_vmm_pool *pool, uint32_t page_first, uint32_t page_end, int ahead,
                     pllm_region_work *work)
{
    uint32_t paid, count = page_end - page_first;
    if (!pool->vmm->ledger_member)
        return pllm_region_map_begin(pool->region, page_first, count, work);
    int status = pay(pool, page_first, page_end, ahead, &paid);
    if (status < 0) return status;
    wait_for_mapper(pool);                          /* somebody may have begun meanwhile */
    if (ahead && pool->point_count == 0) count = 0; /* somebody needs it: all is credited */
    return pllm_region_map_paid(pool->region, page_first, count, paid, work);
}

/* Nobody is mapping. Maps the range, without the lock for the most part. *full: it was the device
 * that had no room, and not a limit. */
static int map_pages(pllm_vmm_pool *pool, uint32_t page_first, uint32_t page_end, int ahead,
                     int *full)
{
    pllm_region_work work;
    *full = 0;
    int status = map_begin(pool, page_first, page_end, ahead, &work);
    if (status < 0) return status;
    pool->mapping = 1;
    pthread_mutex_unlock(&pool->lock);
    status = pllm_region_map_run(pool->region, &work);
    pthread_mutex_lock(&pool->lock);
    uint32_t unused = 0;
    for (uint32_t page = page_first; page < page_end; page++)
        unused += pool->used[page] == 0 && !pllm_region_is_mapped(pool->region, page);
    status = pllm_region_map_end(pool->region, &work, status);
    if (status == PLLM_OK) pool->idle_count += unused;
    pool->mapping = 0;
    pthread_cond_broadcast(&pool->changed);
    *full = status == PLLM_ENODEVMEM;
    return status;
}

/* A part of what is idle is about to go. */
static void leave_idle(pllm_vmm_pool *pool, uint32_t page_first, uint32_t page_end,
                       pllm_region_work *work)
{
    for (uint32_t page = page_first; page < page_end; page++) {
        if (!is_idle(pool, page)) continue;
        pool->dirty[page] = 0;
        pool->idle_count--;
        (void)pllm_region_unmap_begin(pool->region, page, 1, work);
    }
}

/* Nobody is mapping. Unmaps what has been marked, without the lock. */
static void unmap_marked(pllm_vmm_pool *pool, const pllm_region_work *work)
{
    if (work->moving_count == 0) return;
    pool->mapping = 1;
    pthread_mutex_unlock(&pool->lock);
    pllm_region_unmap_run(pool->region, work);
    pthread_mutex_lock(&pool->lock);
    pllm_region_unmap_end(pool->region, work);
    pool->mapping = 0;
    pthread_cond_broadcast(&pool->changed);
}

/* What one allocation waits for. */
typedef struct attempt {
    uint64_t deadline_ns; /* 0: has asked nobody yet */
    uint32_t in_vain;     /* times that there seemed to be enough */
    pllm_budget_claim claim;
} attempt;

/* How much others must give back before `bytes` fit; 0: nothing, by now. */
static uint64_t short_of(pllm_vmm_pool *pool, uint64_t bytes, int full)
{
    pllm_device_info info;
    if (full && pool->device->ops->info(pool->device, &info) < 0) return bytes;
    if (full) return bytes > info.free_bytes ? bytes - info.free_bytes : 0;
    uint64_t here = pllm_budget_short(pool->member, bytes), there = UINT64_MAX;
    if (pool->vmm->ledger_member) there = pllm_vmm_ledger_free(pool->vmm);
    return bytes > there && bytes - there > here ? bytes - there : here;
}

/* No lock is held. 1: worth another try. */
static int ask(pllm_vmm_pool *pool, uint64_t bytes, int full, attempt *a)
{
    uint64_t missing = short_of(pool, bytes, full);
    int minimum = pllm_budget_is_minimum(pool->member, bytes);
    if (missing == 0 && full && a->deadline_ns == 0) missing = bytes; /* it says it has them */
    if (missing == 0) return a->in_vain++ < IN_VAIN_MAX;
    if (a->deadline_ns == 0) {
        uint64_t now = pllm_clock_ns(), wait = pool->vmm->wait_ns;
        a->deadline_ns = wait < UINT64_MAX - now ? now + wait : UINT64_MAX;
    }
    if (!a->claim.member) pllm_budget_claim_make(&a->claim, pool->member, bytes);
    return pllm_vmm_ask(pool, missing, minimum, a->deadline_ns);
}

/* Own unused pages, if it is the model's own limit that is in the way, else anybody's; then what
 * others can spare. */
static int make_room(pllm_vmm_pool *pool, uint64_t bytes, int full, attempt *a)
{
    uint64_t held = pllm_budget_charged(pool->member), freed;
    uint64_t room = held < pool->limit_bytes ? pool->limit_bytes - held : 0;
    if (!full && bytes > room) {
        freed = pllm_vmm_pool_yield(pool, bytes - room);
    } else {
        pthread_mutex_unlock(&pool->lock);
        freed = pllm_vmm_reclaim(pool->vmm, pool, bytes, full);
        if (freed == 0) freed = ask(pool, bytes, full, a) != 0;
        pthread_mutex_lock(&pool->lock);
    }
    return freed > 0 ? PLLM_OK : no_room(pool, bytes, full);
}

int pllm_vmm_pool_is_ready(const pllm_vmm_pool *pool, uint64_t offset, uint64_t bytes)
{
    uint32_t end = end_page(pool, offset + bytes);
    for (uint32_t page = first_page(pool, offset); page < end; page++)
        if (!pllm_region_is_mapped(pool->region, page) ||
            (pool->zero_on_reuse && pool->dirty[page]))
            return 0;
    return 1;
}

/* Zeros the bytes of dirty pages that [offset, end) is about to get. */
static int clear(pllm_vmm_pool *pool, uint64_t offset, uint64_t bytes)
{
    const pllm_device_ops *ops = pool->device->ops;
    uint64_t end = offset + bytes;
    int status = PLLM_OK, filled = 0;
    if (!pool->zero_on_reuse) return PLLM_OK;
    for (uint32_t page = first_page(pool, offset); page < end_page(pool, end); page++) {
        if (!pool->dirty[page] || status < 0) continue;
        uint64_t from = page * pool->page_bytes;
        if (from < offset) from = offset;
        status = ops->fill(pool->device, pool->clearing, pool->base + from,
                           part(pool, page, offset, end), 0);
        filled = 1;
    }
    int synced = filled ? ops->stream_sync(pool->device, pool->clearing) : PLLM_OK;
    return status < 0 ? status : synced;
}

int pllm_vmm_pool_back(pllm_vmm_pool *pool, uint64_t offset, uint64_t bytes)
{
    uint32_t page_first = first_page(pool, offset), page_end = end_page(pool, offset + bytes);
    attempt a = {0};
    int full, status = PLLM_OK;
    for (uint32_t count; (count = missing(pool, page_first, page_end)) > 0 && status == PLLM_OK;) {
        if (pool->mapping) {
            wait_for_mapper(pool);
            continue;
        }
        status = map_pages(pool, page_first, page_end, 0, &full);
        if (status == PLLM_ENODEVMEM) status = make_room(pool, count * pool->page_bytes, full, &a);
    }
    pllm_budget_unclaim(&a.claim);
    return status < 0 ? status : clear(pool, offset, bytes);
}

int pllm_vmm_pool_place(pllm_vmm_pool *pool, uint64_t offset, uint64_t bytes, pllm_span_kind kind)
{
    int status = pllm_spans_turn(&pool->spans, offset, bytes, PLLM_SPAN_PLACING);
    if (status < 0) return status;
    pllm_vmm_pool_touch(pool, offset, bytes, 1);
    status = pllm_vmm_pool_back(pool, offset, bytes);
    if (status < 0) {
        (void)pllm_spans_turn(&pool->spans, offset, bytes, PLLM_SPAN_FREE); /* one whole span */
        pllm_vmm_pool_untouch(pool, offset, bytes);
        return status;
    }
    (void)pllm_spans_turn(&pool->spans, offset, bytes, kind);
    pllm_vmm_pool_grown(pool, offset + bytes);
    return PLLM_OK;
}

/* ---- mapping ahead ---- */

static int is_allocated(const pllm_span *span)
{
    return span->kind == PLLM_SPAN_PLACED || span->kind == PLLM_SPAN_BLOCK ||
           span->kind == PLLM_SPAN_PLACING;
}

/* The pages behind `end` that should be backed although nobody uses them: up to what others use. */
static void window(const pllm_vmm_pool *pool, uint64_t end, uint32_t *page_first,
                   uint32_t *page_end)
{
    uint32_t first = end_page(pool, end), stop = first;
    while (stop < pool->page_max && stop - first < pool->ahead_pages && pool->used[stop] == 0)
        stop++;
    *page_first = first;
    *page_end = stop;
}

void pllm_vmm_pool_grown(pllm_vmm_pool *pool, uint64_t end)
{
    uint32_t first, stop;
    if (!pool->ahead_pages) return;
    window(pool, end, &first, &stop);
    uint32_t short_of = missing(pool, first, stop);
    if (short_of == 0) return;
    uint64_t reach = (pool->ahead_pages + 1) * pool->page_bytes;
    uint32_t kept = 0, first_kept = pool->point_count == PLLM_VMM_POINTS; /* else there is room */
    for (uint32_t i = first_kept; i < pool->point_count; i++) {
        uint64_t point = pool->points[i]; /* what it has grown from needs no more */
        if (point > end || end - point > reach) pool->points[kept++] = point;
    }
    pool->points[kept++] = end;
    pool->point_count = kept;
    /* Waking costs more than growing does: half of what is wanted is enough for a while. */
    if (2 * short_of >= stop - first) pllm_vmm_wake(pool->vmm);
}

/* The next pages to map ahead, the newest point first. 0: there are none. */
static int next_ahead(pllm_vmm_pool *pool, uint32_t *page_first, uint32_t *page_end)
{
    uint64_t step = AHEAD_STEP_BYTES / pool->page_bytes;
    for (; pool->point_count > 0; pool->point_count--) {
        uint64_t point = pool->points[pool->point_count - 1];
        uint32_t first, stop;
        if (!is_allocated(pllm_spans_at(&pool->spans, point - 1))) continue; /* freed since */
        window(pool, point, &first, &stop);
        while (first < stop && pllm_region_is_mapped(pool->region, first)) first++;
        if (first == stop) continue;
        uint32_t end = first + 1;
        while (end < stop && end - first < step && !pllm_region_is_mapped(pool->region, end)) end++;
        *page_first = first;
        *page_end = end;
        return 1;
    }
    return 0;
}

void pllm_vmm_pool_ahead(pllm_vmm_pool *pool)
{
    uint32_t first, end;
    int full;
    while (next_ahead(pool, &first, &end)) {
        if (pool->mapping) {
            wait_for_mapper(pool);
            continue;
        }
        /* Only memory that is there for nothing: no room is made for it. */
        if (map_pages(pool, first, end, 1, &full) < 0) pool->point_count = 0;
    }
}

/* ---- giving back ---- */

#ifdef PLLM_CHECKS
/* What stays backed only because of its neighbours shows who still reads it. */
static void spoil(pllm_vmm_pool *pool, uint64_t offset, uint64_t bytes)
{
    const pllm_device_ops *ops = pool->device->ops;
    uint64_t end = offset + bytes;
    for (uint32_t page = first_page(pool, offset); page < end_page(pool, end); page++) {
        uint64_t from = page * pool->page_bytes;
        if (from < offset) from = offset;
        if (pllm_region_is_mapped(pool->region, page))
            (void)ops->fill(pool->device, pool->clearing, pool->base + from,
                            part(pool, page, offset, end), FREED);
    }
    (void)ops->stream_sync(pool->device, pool->clearing);
}
#endif

/* Where the nearest allocation before the free byte at offset ends; 0: there is none. */
static uint64_t grows_from(const pllm_vmm_pool *pool, uint64_t offset)
{
    const pllm_span *span = pllm_spans_at(&pool->spans, offset);
    while (span->offset > 0 && (span->kind == PLLM_SPAN_FREE || span->kind == PLLM_SPAN_ROOM))
        span = pllm_spans_at(&pool->spans, span->offset - 1);
    return is_allocated(span) ? span->offset + span->bytes : 0;
}

/* Bytes that should go where unused ones are: a limit was lowered, or somebody has a minimum. */
static uint64_t above_limits(const pllm_vmm_pool *pool)
{
    pllm_budget_stats all;
    pllm_budget_stats_get(pool->vmm->budget, &all);
    uint64_t over = all.charged_bytes > all.limit_bytes ? all.charged_bytes - all.limit_bytes : 0;
    uint64_t own = pllm_budget_excess(pool->member);
    return own > over ? own : over;
}

uint64_t pllm_vmm_pool_shed(pllm_vmm_pool *pool)
{
    uint64_t freed = 0, excess, more = 1;
    while (more > 0 && (excess = above_limits(pool)) > 0) {
        more = pllm_vmm_pool_yield(pool, excess);
        freed += more;
    }
    return freed;
}

/* Of the range, and of what was mapped ahead behind it, all but what stays mapped ahead of whoever
 * may grow here. */
static void unmap_unused(pllm_vmm_pool *pool, uint32_t first, uint32_t end, uint64_t grown)
{
    pllm_region_work work = {0};
    uint32_t kept_first = end, kept_end = end, reach = end;
    if (grown) window(pool, grown, &kept_first, &kept_end);
    while (reach < pool->page_max && reach - end < pool->ahead_pages && is_idle(pool, reach))
        reach++;
    leave_idle(pool, first, least(kept_first, reach), &work);
    for (uint32_t page = kept_first; page < kept_end; page++)
        if (pllm_region_is_exported(pool->region, page)) leave_idle(pool, page, page + 1, &work);
    leave_idle(pool, kept_end > first ? kept_end : first, reach, &work);
    unmap_marked(pool, &work);
}

/* Lets the pages go that nobody uses any more. Lets go of the lock, with all as it should be. */
void pllm_vmm_pool_untouch(pllm_vmm_pool *pool, uint64_t offset, uint64_t bytes)
{
    uint32_t first = first_page(pool, offset), end = end_page(pool, offset + bytes), idle = 0;
    pllm_vmm_pool_touch(pool, offset, bytes, 0);
    for (uint32_t page = first; page < end; page++) {
        pool->dirty[page] = (uint8_t)pllm_region_is_mapped(pool->region, page);
        idle += is_idle(pool, page) != 0;
    }
    if (idle) {
        wait_for_mapper(pool);
        unmap_unused(pool, first, end, pool->ahead_pages ? grows_from(pool, offset) : 0);
        (void)pllm_vmm_pool_shed(pool);
    }
    uint64_t grown = pool->ahead_pages ? grows_from(pool, offset) : 0;
    if (grown) pllm_vmm_pool_grown(pool, grown);
}

void pllm_vmm_pool_drop(pllm_vmm_pool *pool, uint64_t offset, uint64_t bytes)
{
#ifdef PLLM_CHECKS
    spoil(pool, offset, bytes);
#endif
    pllm_vmm_pool_untouch(pool, offset, bytes);
}

static int fence_open(pllm_vmm_pool *pool, pllm_stream *stream, pllm_vmm_fence **fence_out)
{
    const pllm_device_ops *ops = pool->device->ops;
    pllm_vmm_fence *fence = pool->spare_fences;
    int status;
    if (!fence) {
        fence = pllm_alloc(pool->context, sizeof *fence);
        if (!fence) return pllm_fail_memory("a fenced deallocation", sizeof *fence);
        status = ops->event_open(pool->device, &fence->event);
        if (status < 0) {
            pllm_free(pool->context, fence);
            return status;
        }
        fence->next = pool->spare_fences;
        pool->spare_fences = fence;
    }
    status = ops->event_record(pool->device, fence->event, stream);
    if (status < 0) return status; /* it stays among the spare ones */
    pool->spare_fences = fence->next;
    *fence_out = fence;
    return PLLM_OK;
}

int pllm_vmm_pool_give(pllm_vmm_pool *pool, uint64_t offset, uint64_t bytes, uint64_t span_bytes,
                       pllm_stream *stream)
{
    int status = pllm_spans_prepare(&pool->spans, offset, span_bytes);
    if (status < 0) return status;
    if (!stream) {
        (void)pllm_spans_turn(&pool->spans, offset, span_bytes, PLLM_SPAN_FREE);
        pllm_vmm_pool_drop(pool, offset, bytes);
        return PLLM_OK;
    }
    pllm_vmm_fence *fence = NULL;
    status = fence_open(pool, stream, &fence);
    if (status < 0) return status;
    (void)pllm_spans_turn(&pool->spans, offset, span_bytes, PLLM_SPAN_PENDING);
    fence->offset = offset;
    fence->bytes = bytes;
    fence->span_bytes = span_bytes;
    fence->next = pool->fences;
    pool->fences = fence;
    pool->fence_count++;
    pllm_vmm_wake(pool->vmm);
    return PLLM_OK;
}

void pllm_vmm_pool_settle(pllm_vmm_pool *pool)
{
    for (pllm_vmm_fence **link = &pool->fences, *fence; (fence = *link) != NULL;) {
        if (pool->device->ops->event_query(pool->device, fence->event) == 0) {
            link = &fence->next;
            continue;
        }
        *link = fence->next; /* work that failed is over, too */
        fence->next = pool->spare_fences;
        pool->spare_fences = fence;
        pool->fence_count--;
        (void)pllm_spans_turn(&pool->spans, fence->offset, fence->span_bytes, PLLM_SPAN_FREE);
        pllm_vmm_pool_drop(pool, fence->offset, fence->bytes);
        link = &pool->fences; /* the lock was let go of */
    }
}

/* Of what is kept, as many pages as are wanted, or all; bytes. */
static uint64_t drop_kept(pllm_vmm_pool *pool, uint64_t pages)
{
    pllm_region_stats stats;
    pllm_region_stats_get(pool->region, &stats);
    return pllm_region_trim(pool->region,
                            pages < stats.kept_count ? stats.kept_count - (uint32_t)pages : 0);
}

uint64_t pllm_vmm_pool_yield(pllm_vmm_pool *pool, uint64_t bytes)
{
    uint64_t pages = bytes / pool->page_bytes + (bytes % pool->page_bytes != 0);
    uint64_t freed = drop_kept(pool, pages);
    if (freed >= bytes) return freed;
    pool->point_count = 0; /* nothing comes back before somebody grows */
    wait_for_mapper(pool); /* who maps ahead right now, too; and who unmapped has kept something */
    freed += drop_kept(pool, pages - freed / pool->page_bytes);
    if (freed >= bytes || pool->idle_count == 0) return freed;
    pllm_region_work work = {0};
    pllm_region_stats stats;
    uint64_t wanted = pages - freed / pool->page_bytes;
    for (uint32_t page = pool->page_max; page-- > 0 && work.moving_count < wanted;) {
        if (pool->idle_count == 0) break;
        leave_idle(pool, page, page + 1, &work);
    }
    unmap_marked(pool, &work);
    /* Those that were kept go now: as many as have been unmapped. */
    pllm_region_stats_get(pool->region, &stats);
    uint32_t more = work.moving_count < stats.kept_count ? work.moving_count : stats.kept_count;
    (void)pllm_region_trim(pool->region, stats.kept_count - more);
    return freed + work.moving_count * pool->page_bytes;
}

/* ---- by place ---- */

static int check_range(const pllm_vmm_pool *pool, uint64_t offset, uint64_t bytes)
{
    if (bytes == 0)
        return pllm_fail(PLLM_EINVAL, 0, "model %s: a range of no bytes at %llu", pool->name,
                         (unsigned long long)offset);
    if (bytes <= pool->capacity && offset <= pool->capacity - bytes) return PLLM_OK;
    return pllm_fail(PLLM_EINVAL, 0, "model %s: %llu bytes at %llu lie beyond its capacity of %llu",
                     pool->name, (unsigned long long)bytes, (unsigned long long)offset,
                     (unsigned long long)pool->capacity);
}

int pllm_vmm_allocate(pllm_vmm_pool *pool, uint64_t offset, uint64_t bytes, uint64_t *address_out)
{
    const pllm_span *other;
    if (address_out) *address_out = 0;
    int status = check_range(pool, offset, bytes);
    if (status < 0) return status;
    pthread_mutex_lock(&pool->lock);
    pllm_vmm_pool_settle(pool);
    if (pllm_spans_are(&pool->spans, offset, bytes, 1u << PLLM_SPAN_FREE, &other))
        status = pllm_vmm_pool_place(pool, offset, bytes, PLLM_SPAN_PLACED);
    else if (other->kind == PLLM_SPAN_PENDING)
        status = pllm_fail(
            PLLM_EBUSY, 0,
            "model %s: bytes %llu to %llu are being given back and wait for a stream", pool->name,
            (unsigned long long)other->offset, (unsigned long long)(other->offset + other->bytes));
    else
        status = pllm_fail(PLLM_EEXIST, 0, "model %s: bytes %llu to %llu are %s", pool->name,
                           (unsigned long long)other->offset,
                           (unsigned long long)(other->offset + other->bytes),
                           other->kind == PLLM_SPAN_ROOM ? "a block's room" : "allocated");
    pthread_mutex_unlock(&pool->lock);
    if (status == PLLM_OK && address_out) *address_out = pool->base + offset;
    return status;
}

static int deallocate(pllm_vmm_pool *pool, uint64_t offset, uint64_t bytes, pllm_stream *stream)
{
    const pllm_span *other;
    int status = check_range(pool, offset, bytes);
    if (status < 0) return status;
    pthread_mutex_lock(&pool->lock);
    pllm_vmm_pool_settle(pool);
    if (pllm_spans_are(&pool->spans, offset, bytes, 1u << PLLM_SPAN_PLACED, &other))
        status = pllm_vmm_pool_give(pool, offset, bytes, bytes, stream);
    else
        status = pllm_fail(PLLM_EINVAL, 0, "model %s: bytes %llu to %llu are not allocated%s",
                           pool->name, (unsigned long long)other->offset,
                           (unsigned long long)(other->offset + other->bytes),
                           other->kind == PLLM_SPAN_BLOCK ? " by place, but as a block" : "");
    pthread_mutex_unlock(&pool->lock);
    return status;
}

int pllm_vmm_deallocate(pllm_vmm_pool *pool, uint64_t offset, uint64_t bytes)
{
    return deallocate(pool, offset, bytes, NULL);
}

int pllm_vmm_deallocate_after(pllm_vmm_pool *pool, uint64_t offset, uint64_t bytes,
                              pllm_stream *stream)
{
    if (!stream) return pllm_fail(PLLM_EINVAL, 0, "model %s: no stream to wait for", pool->name);
    return deallocate(pool, offset, bytes, stream);
}

int pllm_vmm_is_mapped(pllm_vmm_pool *pool, uint64_t offset, uint64_t bytes)
{
    int status = check_range(pool, offset, bytes);
    if (status < 0) return status;
    pthread_mutex_lock(&pool->lock);
    status = pllm_spans_are(&pool->spans, offset, bytes,
                            1u << PLLM_SPAN_PLACED | 1u << PLLM_SPAN_BLOCK, NULL);
    pthread_mutex_unlock(&pool->lock);
    return status;
}

/* ---- invariants ---- */

static void check_fences(const pllm_vmm_pool *pool)
{
    uint32_t count = 0;
    for (const pllm_vmm_fence *fence = pool->fences; fence; fence = fence->next, count++)
        assert(pllm_spans_are(&pool->spans, fence->offset, fence->span_bytes,
                              1u << PLLM_SPAN_PENDING, NULL)); /* 5 */
    assert(count == pool->fence_count);
}

/* The room that a fence keeps with its block counts for nothing. */
static uint64_t room_within(const pllm_vmm_pool *pool, uint64_t from, uint64_t to)
{
    uint64_t bytes = 0;
    for (const pllm_vmm_fence *fence = pool->fences; fence; fence = fence->next) {
        uint64_t first = fence->offset + fence->bytes, end = fence->offset + fence->span_bytes;
        if (first < from) first = from;
        if (end > to) end = to;
        if (first < end) bytes += end - first;
    }
    return bytes;
}

void pllm_vmm_pool_check(const pllm_vmm_pool *pool)
{
    uint32_t idle = 0;
    pllm_spans_check(&pool->spans);
    pllm_region_check(pool->region);
    check_fences(pool);
    for (uint32_t page = 0; page < pool->page_max; page++) {
        uint64_t from = page * pool->page_bytes, to = from + pool->page_bytes, used = 0;
        int mapped = pllm_region_is_mapped(pool->region, page);
        for (uint64_t at = from; at < to;) {
            const pllm_span *span = pllm_spans_at(&pool->spans, at);
            uint64_t end = span->offset + span->bytes;
            if (end > to) end = to;
            if (is_allocated(span) || span->kind == PLLM_SPAN_PENDING) used += end - at;
            if (is_allocated(span) && span->kind != PLLM_SPAN_PLACING) assert(mapped); /* 2 */
            at = end;
        }
        assert(used - room_within(pool, from, to) == pool->used[page]); /* 1 */
        idle += mapped && pool->used[page] == 0;
        assert(mapped || !pool->dirty[page]); /* 4 */
    }
    assert(idle == pool->idle_count); /* 3 */
}
