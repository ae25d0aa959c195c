/* stats.c - what a pool tells: totals, a snapshot, a recording; and the check of its invariants. */
#include <string.h>
#include "pool/pool_internal.h"

int pllm_pool_stats_get(pllm_pool *pool, pllm_pool_stats *stats)
{
    if (!stats || stats->struct_bytes != sizeof *stats)
        return pllm_fail(PLLM_EINVAL, 0, "no pllm_pool_stats, or of another size than %zu",
                         sizeof *stats);
    pllm_region_stats region;
    pthread_mutex_lock(&pool->lock);
    pllm_region_stats_get(pool->region, &region);
    *stats = pool->stats;
    stats->struct_bytes = sizeof *stats;
    stats->stream_count = pool->cpu_used;
    for (uint32_t i = 1; i < pool->owner_count; i++)
        stats->stream_count += pool->owners[i].stream != NULL;
    stats->limit_bytes = pool->options.limit_bytes;
    stats->chunk_bytes = pool->chunk_bytes;
    stats->created_chunks = region.created_chunks;
    pthread_mutex_unlock(&pool->lock);
    return PLLM_OK;
}

/* ---- the snapshot ---- */

static const char *state_name(const pool_block *block)
{
    static const char *const names[] = {
        [BLOCK_NONE] = "none",       [BLOCK_FREE] = "free", [BLOCK_LIVE] = "live",
        [BLOCK_PENDING] = "pending", [BLOCK_SLAB] = "slab", [BLOCK_HOLE] = "hole"};
    return names[block->state];
}

static void write_block(pool_writer *writer, const pool_block *block, int slot)
{
    pool_writer_format(writer, "{\"offset\": %llu, \"bytes\": %llu, \"state\": \"%s\"",
                       (unsigned long long)block->offset, (unsigned long long)block->bytes,
                       state_name(block));
    if (slot) pool_writer_text(writer, ", \"slot\": true");
    if (block->state == BLOCK_LIVE)
        pool_writer_format(writer, ", \"requested\": %llu, \"number\": %llu",
                           (unsigned long long)block->requested, (unsigned long long)block->stamp);
    if (block->state == BLOCK_FREE || block->state == BLOCK_PENDING)
        pool_writer_format(writer, ", \"stream\": %u", block->owner);
    if (block->state != BLOCK_SLAB) {
        pool_writer_text(writer, "}");
        return;
    }
}

static void write_slab(pllm_pool *pool, pool_writer *writer, const pool_block *slab)
{
    uint64_t bytes = pool_slot_bytes(slab->slot_class);
    pool_writer_text(writer, ", \"slots\": [");
    for (uint32_t i = 0; i < pool_slab_slots(slab->slot_class); i++) {
        if (i) pool_writer_text(writer, ", ");
        write_block(writer, block_of(pool, pool_index_find(pool, slab->offset + i * bytes)), 1);
    }
    pool_writer_text(writer, "]}");
}

static void write_totals(pllm_pool *pool, pool_writer *writer)
{
    const pllm_pool_stats *s = &pool->stats;
    const struct {
        const char *name;
        uint64_t value;
    } totals[] = {
        {"capacity_bytes", pool->capacity_bytes},
        {"chunk_bytes", pool->chunk_bytes},
        {"requested_bytes", s->requested_bytes},
        {"requested_peak_bytes", s->requested_peak_bytes},
        {"allocated_bytes", s->allocated_bytes},
        {"allocated_peak_bytes", s->allocated_peak_bytes},
        {"reserved_bytes", s->reserved_bytes},
        {"reserved_peak_bytes", s->reserved_peak_bytes},
        {"pending_bytes", s->pending_bytes},
        {"live_count", s->live_count},
        {"allocate_calls", s->allocate_calls},
        {"free_calls", s->free_calls},
        {"hits", s->hits},
        {"splits", s->splits},
        {"merges", s->merges},
        {"remapped_chunks", s->remapped_chunks},
        {"fences", s->fences},
        {"waits", s->waits},
    };
    if (pool->options.limit_bytes == PLLM_UNLIMITED)
        pool_writer_text(writer, "\"limit_bytes\": null, ");
    else
        pool_writer_format(writer, "\"limit_bytes\": %llu, ",
                           (unsigned long long)pool->options.limit_bytes);
    for (uint32_t i = 0; i < sizeof totals / sizeof totals[0]; i++)
        pool_writer_format(writer, "\"%s\": %llu, ", totals[i].name,
                           (unsigned long long)totals[i].value);
}

int pllm_pool_snapshot(pllm_pool *pool, pllm_pool_write write, void *user)
{
    pool_writer writer;
    if (!write) return pllm_fail(PLLM_EINVAL, 0, "a snapshot needs somebody to write it");
    pool_writer_begin(&writer, write, user);
    pthread_mutex_lock(&pool->lock);
    pool_writer_text(&writer, "{\"pool\": {");
    write_totals(pool, &writer);
    pool_writer_text(&writer, "\"blocks\": [");
    for (uint32_t b = pool->first; b; b = block_of(pool, b)->after) {
        const pool_block *block = block_of(pool, b);
        pool_writer_text(&writer, b == pool->first ? "\n" : ",\n");
        write_block(&writer, block, 0);
        if (block->state == BLOCK_SLAB) write_slab(pool, &writer, block);
    }
    pool_writer_text(&writer, "\n]}}\n");
    int status = pool_writer_end(&writer);
    pthread_mutex_unlock(&pool->lock);
    return status;
}

/* ---- the recording ---- */

static void record_live(pllm_pool *pool, const pool_block *block)
{
    if (block->state != BLOCK_LIVE) return;
    pool_writer_allocated(&pool->writer, block->stamp, block->requested, 0);
    for (uint64_t users = block->users; users; users &= users - 1)
        pool_writer_did(&pool->writer, 'r', block->stamp, (uint32_t)__builtin_ctzll(users));
}

int pllm_pool_record(pllm_pool *pool, pllm_pool_write write, void *user)
{
    int status = PLLM_OK;
    pthread_mutex_lock(&pool->lock);
    if (!write) {
        status = pool_writer_end(&pool->writer);
    } else if (pool->writer.write) {
        status = pllm_fail(PLLM_EBUSY, 0, "the pool is being recorded already");
    } else {
        pool_writer_begin(&pool->writer, write, user);
        pool_writer_text(&pool->writer, PLLM_POOL_LOG_HEAD "\n");
        for (uint32_t b = 1; b <= pool->block_max; b++) record_live(pool, block_of(pool, b));
    }
    pthread_mutex_unlock(&pool->lock);
    return status;
}

/* ---- the check ---- */

static void check_tiling(pllm_pool *pool)
{
    uint64_t offset = 0;
    const pool_block *last = NULL;
    for (uint32_t b = pool->first; b; b = block_of(pool, b)->after) {
        const pool_block *block = block_of(pool, b);
        assert(block->offset == offset && block->bytes > 0); /* 1 */
        offset += block->bytes;
        uint64_t first = block->offset / pool->chunk_bytes;
        uint64_t end = (offset + pool->chunk_bytes - 1) / pool->chunk_bytes;
        int hole = block->state == BLOCK_HOLE;
        if (hole) assert(block->offset % pool->chunk_bytes == 0 && offset % pool->chunk_bytes == 0);
        for (uint64_t page = first; page < end; page++)
            assert(pllm_region_is_mapped(pool->region, (uint32_t)page) == !hole); /* 2 */
        if (last && last->state == block->state && (hole || block->state == BLOCK_FREE))
            assert(!hole && last->owner != block->owner); /* 3 */
        last = block;
    }
    assert(offset == pool->capacity_bytes);
}

static uint32_t check_tree(pllm_pool *pool, uint32_t b, uint32_t owner)
{
    if (!b) return 0;
    const pool_block *block = block_of(pool, b);
    assert(block->state == BLOCK_FREE && block->owner == owner && block->slab == 0);
    return 1 + check_tree(pool, block->left, owner) + check_tree(pool, block->right, owner);
}

/* Free blocks in trees and slot lists; those of streams are in the list by age too. */
static uint32_t check_owners(pllm_pool *pool)
{
    uint32_t all = 0;
    for (uint32_t i = 0; i < pool->owner_count; i++) {
        const pool_owner *owner = &pool->owners[i];
        uint32_t count = check_tree(pool, owner->tree, i), aged = 0;
        for (uint32_t k = 0; k < SLOT_CLASSES; k++)
            for (uint32_t b = owner->slots[k]; b; b = block_of(pool, b)->right, count++)
                assert(block_of(pool, b)->state == BLOCK_FREE && block_of(pool, b)->owner == i &&
                       block_of(pool, b)->slot_class == k);
        for (uint32_t b = owner->age.oldest; b; b = block_of(pool, b)->newer) aged++;
        assert(aged == (i ? count : 0)); /* 4 */
        all += count;
    }
    return all;
}

void pllm_pool_check(pllm_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    check_tiling(pool);
    pllm_pool_stats seen = {0};
    uint32_t unused = 0, idle = 0, slab_idle = 0;
    for (uint32_t b = 1; b <= pool->block_max; b++) {
        const pool_block *block = block_of(pool, b);
        unused += block->state == BLOCK_NONE;
        if (block->state == BLOCK_FREE || block->state == BLOCK_LIVE ||
            block->state == BLOCK_PENDING)
            assert(pool_index_find(pool, block->offset) == b); /* 4 */
        seen.free_count += block->state == BLOCK_FREE;
        seen.pending_count += block->state == BLOCK_PENDING;
        if (block->state == BLOCK_PENDING) seen.pending_bytes += block->bytes;
        if (block->state == BLOCK_LIVE) {
            seen.live_count++;
            seen.allocated_bytes += block->bytes;
            seen.requested_bytes += block->requested;
        }
        if (block->state == BLOCK_SLAB) {
            seen.slabs++;
            slab_idle += block->slab;
        } else if (block->slab) {
            assert(block_of(pool, block->slab)->state == BLOCK_SLAB);
            idle += block->state == BLOCK_FREE && block->owner == 0;
        }
    }
    uint32_t indexed = 0;
    for (uint32_t i = 0; i <= pool->index_mask; i++) indexed += pool->index[i] != 0;
    const pllm_pool_stats *s = &pool->stats;
    assert(check_owners(pool) == seen.free_count && seen.free_count == s->free_count);
    assert(indexed == seen.free_count + seen.live_count + seen.pending_count); /* 4 */
    assert(idle == slab_idle);                                                 /* 5 */
    assert(unused == pool->unused_count && seen.slabs == s->slabs);            /* 6 */
    assert(seen.live_count == s->live_count && seen.allocated_bytes == s->allocated_bytes);
    assert(seen.requested_bytes == s->requested_bytes);
    assert(seen.pending_count == s->pending_count && seen.pending_bytes == s->pending_bytes);
    assert(pllm_budget_charged(pool->member) == s->reserved_bytes);
    pthread_mutex_unlock(&pool->lock);
}
