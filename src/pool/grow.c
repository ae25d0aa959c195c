/* grow.c - what happens when nothing free fits: memory is brought to where it does.
 *
 *   run      | free (own) | hole, hole | free (nobody's) | hole ........ |
 *   window         [ wanted: mapped here | to be mapped  | here ]
 *
 * A run is neighbours that the stream may use at once, and holes. A window is a place in a run as
 * long as what is wanted, that begins where a block begins or ends where one ends; the best is the
 * one with the fewest pages to map. None to map: two owners' blocks lay side by side. Otherwise
 * pages come, in this order, from chunks the region has kept; from whole pages of nobody's blocks
 * elsewhere, which become holes; and from the device. Before the device is asked, streams get a
 * moment to get past their frees; when it has said no, all the time they need; then the callback is
 * asked.
 *
 * The walk over all blocks costs microseconds a thousand, and mapping a page tens of them. */
#include "pool/pool_internal.h"

enum {
    SAVE_PAGES = 2,       /* blocks of as many pages are worth a search, */
    SAVE_REST = 64 << 10, /* where more would be left over, */
    SAVE_SLACK = 4,       /* and no more than this part of what is reserved would be free */
};

typedef struct window {
    uint32_t first, last; /* blocks; 0: there is none */
    uint32_t whole;       /* in: whole pages that are free count as if they had to be mapped */
    uint64_t start;       /* offset */
    uint64_t cost, pages; /* pages; pages to be mapped */
} window;

static uint64_t page_down(const pllm_pool *pool, uint64_t offset)
{
    return offset / pool->chunk_bytes;
}

static uint64_t page_up(const pllm_pool *pool, uint64_t offset)
{
    return (offset + pool->chunk_bytes - 1) / pool->chunk_bytes;
}

static int usable(const pool_block *block, uint32_t owner)
{
    return block->state == BLOCK_HOLE ||
           (block->state == BLOCK_FREE && (block->owner == 0 || block->owner == owner));
}

/* Pages that lie wholly in the block and that [start, end) touches. */
static uint64_t pages_of(const pllm_pool *pool, const pool_block *block, uint64_t start,
                         uint64_t end)
{
    uint64_t first = page_up(pool, block->offset), last = page_down(pool, end_of(block));
    if (page_down(pool, start) > first) first = page_down(pool, start);
    if (page_up(pool, end) < last) last = page_up(pool, end);
    return last > first ? last - first : 0;
}

/* Adds a block to the window on trial; 0 where it can't become the best. */
static int window_add(const pllm_pool *pool, const pool_block *block, uint64_t end, window *w,
                      const window *best)
{
    if (block->state == BLOCK_HOLE || w->whole) {
        uint64_t pages = pages_of(pool, block, w->start, end);
        w->cost += pages;
        if (block->state == BLOCK_HOLE) w->pages += pages;
    }
    return !best->first || w->cost < best->cost;
}

/* Begins with block b. */
static void window_after(pllm_pool *pool, uint32_t owner, uint32_t b, uint64_t bytes, window *best)
{
    window w = {.first = b, .whole = best->whole, .start = block_of(pool, b)->offset};
    uint64_t end = w.start + bytes;
    for (w.last = b; w.last; w.last = block_of(pool, w.last)->after) {
        const pool_block *block = block_of(pool, w.last);
        if (!usable(block, owner) || !window_add(pool, block, end, &w, best)) return;
        if (end_of(block) >= end) {
            *best = w;
            return;
        }
    }
}

/* Ends with block b. */
static void window_before(pllm_pool *pool, uint32_t owner, uint32_t b, uint64_t bytes, window *best)
{
    uint64_t end = end_of(block_of(pool, b));
    if (end < bytes) return;
    window w = {.last = b, .whole = best->whole, .start = end - bytes};
    for (w.first = b; w.first; w.first = block_of(pool, w.first)->before) {
        const pool_block *block = block_of(pool, w.first);
        if (!usable(block, owner) || !window_add(pool, block, end, &w, best)) return;
        if (block->offset <= w.start) {
            *best = w;
            return;
        }
    }
}

static void window_find(pllm_pool *pool, uint32_t owner, uint64_t bytes, uint32_t whole,
                        window *best)
{
    *best = (window){.whole = whole};
    for (uint32_t b = pool->first; b; b = block_of(pool, b)->after) {
        const pool_block *block = block_of(pool, b);
        if (!usable(block, owner)) continue;
        window_after(pool, owner, b, bytes, best);
        if (block->state == BLOCK_FREE) window_before(pool, owner, b, bytes, best);
    }
}

/* ---- holes ---- */

static void hole_put(pllm_pool *pool, uint32_t b)
{
    pool_block *block = block_of(pool, b);
    block->state = BLOCK_HOLE;
    block->owner = 0;
    block->stamp = 0;
    if (block->after && block_of(pool, block->after)->state == BLOCK_HOLE) pool_block_join(pool, b);
    if (block->before && block_of(pool, block->before)->state == BLOCK_HOLE)
        pool_block_join(pool, block->before);
}

/* Takes up to page_max whole pages out of a block of nobody's, from its end; how many it were. */
static uint64_t block_unmap(pllm_pool *pool, uint32_t b, uint64_t page_max)
{
    pool_block *block = block_of(pool, b);
    uint64_t first = page_up(pool, block->offset), end = page_down(pool, end_of(block));
    if (first >= end || pool->unused_count < BLOCKS_SPARE || page_max == 0) return 0;
    if (end - first > page_max) first = end - page_max;
    uint64_t start = first * pool->chunk_bytes, bytes = (end - first) * pool->chunk_bytes;
    pool_take(pool, b);
    if (end_of(block) > start + bytes) {
        uint32_t behind = pool_block_cut(pool, b, start + bytes - block->offset);
        pool_put(pool, behind, 0, 0);
    }
    uint32_t hole = b;
    if (block->offset < start) {
        hole = pool_block_cut(pool, b, start - block->offset);
        pool_put(pool, b, 0, 0);
    }
    (void)pllm_region_unmap(pool->region, (uint32_t)first, (uint32_t)(end - first), NULL);
    pool_index_remove(pool, hole);
    hole_put(pool, hole);
    return end - first;
}

static uint64_t whole_pages(const pllm_pool *pool, const pool_block *block)
{
    if (block->state != BLOCK_FREE || block->owner != 0) return 0;
    uint64_t first = page_up(pool, block->offset), end = page_down(pool, end_of(block));
    return first < end ? end - first : 0;
}

/* Whole pages of nobody's outside the window; up to page_max of them are unmapped, from the highest
 * address down. */
static uint64_t pages_elsewhere(pllm_pool *pool, const window *w, uint64_t page_max, int unmap)
{
    uint64_t pages = 0;
    uint32_t last = pool->first;
    while (block_of(pool, last)->after) last = block_of(pool, last)->after;
    for (uint32_t b = last, before; b && pages < page_max; b = before) {
        before = block_of(pool, b)->before;
        if (b == w->last) {
            for (; b != w->first; b = before) before = block_of(pool, b)->before;
            before = block_of(pool, b)->before;
            continue;
        }
        uint64_t here = whole_pages(pool, block_of(pool, b));
        if (here > page_max - pages) here = page_max - pages;
        if (here && unmap) {
            here = block_unmap(pool, b, here);
            pool->stats.remapped_chunks += here;
        }
        pages += here;
    }
    return pages;
}

static uint32_t kept_count(const pllm_pool *pool)
{
    pllm_region_stats stats;
    pllm_region_stats_get(pool->region, &stats);
    return stats.kept_count;
}

void pool_reserved_note(pllm_pool *pool)
{
    uint64_t reserved = pllm_budget_charged(pool->member);
    pool->stats.reserved_bytes = reserved;
    if (reserved > pool->stats.reserved_peak_bytes) pool->stats.reserved_peak_bytes = reserved;
}

/* ---- using a window ---- */

/* Backs the pages of one hole under the window; the rest of it stays a hole. */
static int hole_map(pllm_pool *pool, uint32_t b, uint64_t start, uint64_t end)
{
    pool_block *block = block_of(pool, b);
    if (start < block->offset) start = block->offset;
    if (end > end_of(block)) end = end_of(block);
    uint64_t first = page_down(pool, start), last = page_up(pool, end);
    int status = pllm_region_map(pool->region, (uint32_t)first, (uint32_t)(last - first));
    if (status < 0) return status;
    start = first * pool->chunk_bytes;
    end = last * pool->chunk_bytes;
    if (end_of(block) > end) (void)pool_block_cut(pool, b, end - block->offset);
    if (block->offset < start) b = pool_block_cut(pool, b, start - block->offset);
    block_of(pool, b)->state = BLOCK_NONE;
    pool_index_add(pool, b);
    pool_put(pool, b, 0, 0);
    return PLLM_OK;
}

/* The block that holds offset, from b on. */
static uint32_t block_at(pllm_pool *pool, uint32_t b, uint64_t offset)
{
    while (end_of(block_of(pool, b)) <= offset) b = block_of(pool, b)->after;
    return b;
}

static int window_map(pllm_pool *pool, uint64_t start, uint64_t bytes)
{
    /* From the window's end: what is mapped joins what lies before it, and takes its number. */
    for (uint32_t b = block_at(pool, pool->first, start + bytes - 1);;) {
        uint32_t before = block_of(pool, b)->before;
        int more = block_of(pool, b)->offset > start;
        if (block_of(pool, b)->state == BLOCK_HOLE) {
            int status = hole_map(pool, b, start, start + bytes);
            if (status < 0) return status;
        }
        if (!more) return PLLM_OK;
        b = before;
    }
}

/* Joins what the window touches, all of it mapped, and cuts the wanted part out. */
static uint32_t window_take(pllm_pool *pool, uint64_t start, uint64_t bytes)
{
    uint32_t b = block_at(pool, pool->first, start);
    pool_block *block = block_of(pool, b);
    uint32_t owner = block->owner;
    pool_take(pool, b);
    while (end_of(block) < start + bytes) {
        uint32_t next = block->after;
        if (block_of(pool, next)->owner) owner = block_of(pool, next)->owner;
        pool_take(pool, next);
        pool_block_join(pool, b);
        pool->stats.merges++;
    }
    block->owner = (uint8_t)owner;
    return pool_carve(pool, b, start - block->offset, bytes);
}

/* Brings pages under the window, as far as they are free elsewhere before any are made. */
static int window_use(pllm_pool *pool, const window *w, uint64_t bytes, uint64_t elsewhere,
                      uint32_t *block_out)
{
    if (elsewhere) (void)pages_elsewhere(pool, w, elsewhere, 1); /* may change w's blocks */
    int status = w->pages ? window_map(pool, w->start, bytes) : PLLM_OK;
    pool_reserved_note(pool);
    pool->grown |= w->pages > 0;
    if (status == PLLM_OK) *block_out = window_take(pool, w->start, bytes);
    return status;
}

static uint64_t beyond_kept(const pllm_pool *pool, const window *w)
{
    uint64_t kept = kept_count(pool);
    return w->pages > kept ? w->pages - kept : 0;
}

/* ---- saving ---- */

/* A free block that fits may be the wrong place all the same: whole pages are what can be mapped
 * elsewhere, and what lies in pages that others use is good for nothing else. While little is free,
 * large blocks are put where they use up the fewest whole pages, if that takes no new memory; free
 * block b is where it would be put otherwise. 1: done; 0: b is as good; a failure: b may have
 * changed. Without this, transformer logs reserve up to 14% more
 * than was asked for, with it 8%. */
int pool_save(pllm_pool *pool, uint32_t owner, uint64_t bytes, uint32_t b, uint32_t *block_out)
{
    const pool_block *block = block_of(pool, b);
    uint64_t slack = pool->stats.reserved_bytes - pool->stats.allocated_bytes;
    if (bytes < SAVE_PAGES * pool->chunk_bytes || block->bytes - bytes <= SAVE_REST ||
        slack > bytes + pool->stats.reserved_bytes / SAVE_SLACK)
        return 0;
    uint64_t cost = pages_of(pool, block, block->offset, block->offset + bytes);
    window w;
    window_find(pool, owner, bytes, 1, &w);
    if (!w.first || w.cost >= cost) return 0;
    uint64_t elsewhere = beyond_kept(pool, &w);
    if (pages_elsewhere(pool, &w, elsewhere, 0) < elsewhere) return 0;
    int status = window_use(pool, &w, bytes, elsewhere, block_out);
    return status < 0 ? status : 1;
}

/* ---- the whole ---- */

typedef struct attempt {
    uint64_t stamp;    /* frees before it are worth waiting for: others come without end */
    uint64_t until_ns; /* 0: has not waited yet */
    uint32_t turn, asked, given_up;
} attempt;

/* 1 if there was something to wait for, and a moment has passed. */
static int wait_for_room(pllm_pool *pool, attempt *a)
{
    if (!pool_waits(pool, a->stamp)) return 0;
    if (a->turn == 0) pool->stats.waits++;
    pool_wait(pool, a->turn++);
    return 1;
}

/* The same for a while, only to save new memory. Each time that it was in vain the next is half as
 * long: streams that are milliseconds behind shall not hold up every allocation that grows. */
static int wait_a_while(pllm_pool *pool, attempt *a)
{
    uint64_t now = pool->device->ops->now_ns(pool->device);
    if (a->given_up) return 0;
    if (a->until_ns == 0)
        a->until_ns = now + ((uint64_t)pool->options.wait_us * 1000 >> pool->waits_in_vain);
    if (now < a->until_ns) return wait_for_room(pool, a);
    a->given_up = 1;
    if (pool->waits_in_vain < WAITS_IN_VAIN_MAX) pool->waits_in_vain++;
    return 0;
}

static int ask_for_room(pllm_pool *pool, uint64_t bytes, attempt *a)
{
    if (!pool->options.out_of_memory) return 0;
    pool->stats.callbacks++;
    pthread_mutex_unlock(&pool->lock);
    int again = pool->options.out_of_memory(pool->options.user, pool, bytes, a->asked++);
    pthread_mutex_lock(&pool->lock);
    a->stamp = pool->clock; /* what it freed on streams is worth waiting for too */
    return again > 0;
}

/* One try; *block_out 0 with OK: try again. */
static int obtain_once(pllm_pool *pool, uint32_t owner, uint64_t bytes, attempt *a,
                       uint32_t *block_out)
{
    window w;
    pool_poll(pool);
    pool_slabs_release(pool);
    uint32_t b = pool_find(pool, owner, bytes);
    if (b) {
        if (a->turn > 0) pool->waits_in_vain = 0;
        pool_take(pool, b);
        *block_out = pool_carve(pool, b, 0, bytes);
        return PLLM_OK;
    }
    window_find(pool, owner, bytes, 0, &w);
    int status = PLLM_ENODEVMEM;
    pool_fence_all(pool);
    if (w.first) {
        uint64_t elsewhere = beyond_kept(pool, &w);
        if (elsewhere && pages_elsewhere(pool, &w, elsewhere, 0) < elsewhere) {
            if (wait_a_while(pool, a)) return PLLM_OK;
        } else if (a->turn > 0) {
            pool->waits_in_vain = 0;
        }
        status = window_use(pool, &w, bytes, elsewhere, block_out);
        if (status != PLLM_ENODEVMEM) return status;
    }
    if (wait_for_room(pool, a) || ask_for_room(pool, bytes, a)) return PLLM_OK;
    if (!w.first)
        return pllm_fail(PLLM_ELIMIT, 0, "no %llu bytes of the pool's address space lie together",
                         (unsigned long long)bytes);
    return PLLM_ENODEVMEM;
}

/* A taken block, of the owner it was found with. */
int pool_obtain(pllm_pool *pool, uint32_t owner, uint64_t bytes, uint32_t *block_out)
{
    attempt a = {.stamp = pool->clock};
    *block_out = 0;
    for (;;) {
        if (pool->unused_count < BLOCKS_SPARE) {
            pool_poll(pool);
            pool_slabs_release(pool);
        }
        if (pool->unused_count < BLOCKS_SPARE)
            return pllm_fail(PLLM_ELIMIT, 0, "all %u blocks of the pool are in use: block_max",
                             pool->block_max);
        int status = obtain_once(pool, owner, bytes, &a, block_out);
        if (status < 0 || *block_out) return status;
    }
}

/* ---- giving back ---- */

void pool_shrink(pllm_pool *pool, uint64_t keep_bytes)
{
    const window none = {0};
    pool_fence_all(pool);
    pool_poll(pool);
    pool_slabs_release(pool);
    uint64_t reserved = pllm_budget_charged(pool->member);
    if (reserved <= keep_bytes) return;
    uint64_t pages = page_up(pool, reserved - keep_bytes), kept = kept_count(pool);
    if (pages > kept) {
        uint64_t remapped = pool->stats.remapped_chunks;
        (void)pages_elsewhere(pool, &none, pages - kept, 1);
        pool->stats.remapped_chunks = remapped;
        kept = kept_count(pool);
    }
    uint64_t freed = pllm_region_trim(pool->region, (uint32_t)(kept > pages ? kept - pages : 0));
    pool->stats.trimmed_chunks += freed / pool->chunk_bytes;
    pool_reserved_note(pool);
}
