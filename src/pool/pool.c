/* pool.c - opening, and the calls: allocate, free, record, forget, trim.
 *
 * The usual allocation is a lookup of the stream, a slot's list or a tree, and the totals, under
 * one lock: no memory is allocated and the device is not called. What does not fit goes to grow.c.
 */
#include <string.h>
#include "pool/pool_internal.h"

/* ---- opening ---- */

static int check_options(const pllm_pool_options *options)
{
    if (options && options->struct_bytes != sizeof *options)
        return pllm_fail(PLLM_EINVAL, 0, "pllm_pool_options.struct_bytes is %u, not %zu",
                         options->struct_bytes, sizeof *options);
    if (options && options->block_max &&
        (options->block_max < 4 * BLOCKS_SPARE || options->block_max > 1u << 27))
        return pllm_fail(PLLM_EINVAL, 0, "block_max of %u is not between %d and 2^27",
                         options->block_max, 4 * BLOCKS_SPARE);
    return PLLM_OK;
}

/* Chunk size and address space, in chunks that 32 bits can count. */
static int choose_sizes(pllm_pool *pool)
{
    pllm_device_info info;
    int status = pool->device->ops->info(pool->device, &info);
    if (status < 0) return status;
    pllm_pool_options *o = &pool->options;
    /* A chunk goes elsewhere only as a whole: on a GPU, that likes 16 MiB, small ones serve better.
     */
    uint64_t best = info.granularity_bytes > CHUNK_MAX ? info.granularity_bytes : CHUNK_MAX;
    if (best % info.granularity_bytes || best > info.chunk_bytes) best = info.chunk_bytes;
    uint64_t chunk = o->chunk_bytes ? o->chunk_bytes : best;
    uint64_t capacity = o->capacity_bytes ? o->capacity_bytes : 2 * info.total_bytes;
    if (chunk % info.granularity_bytes)
        return pllm_fail(PLLM_EINVAL, 0, "chunks of %llu bytes: no multiple of the device's %llu",
                         (unsigned long long)chunk, (unsigned long long)info.granularity_bytes);
    if (capacity < chunk) capacity = chunk;
    if (capacity / chunk >= UINT32_MAX || capacity > UINT64_MAX / 2)
        return pllm_fail(PLLM_EINVAL, 0, "a capacity of %llu bytes is more than a pool can map",
                         (unsigned long long)capacity);
    pool->chunk_bytes = chunk;
    pool->capacity_bytes = (capacity + chunk - 1) / chunk * chunk;
    return PLLM_OK;
}

static int region_open(pllm_pool *pool)
{
    uint32_t pages = (uint32_t)(pool->capacity_bytes / pool->chunk_bytes);
    pllm_region_options options = {.struct_bytes = sizeof options,
                                   .page_max = pages,
                                   .chunk_bytes = pool->chunk_bytes,
                                   .kept_max = pages};
    int status =
        pllm_region_open(pool->context, pool->device, pool->member, &options, &pool->region);
    if (status < 0) return status;
    pool->base = pllm_region_base(pool->region);
    pool->view = pool->device->ops->host_view(pool->device, pool->base);
    pool->first = pool_block_new(pool);
    *block_of(pool, pool->first) = (pool_block){.bytes = pool->capacity_bytes, .state = BLOCK_HOLE};
    return PLLM_OK;
}

static void pool_free_all(pllm_pool *pool)
{
    pllm_region_close(pool->region);
    pllm_budget_leave(pool->member);
    pllm_budget_close(pool->own_budget);
    pool_blocks_close(pool);
    pthread_mutex_destroy(&pool->lock);
    pllm_free(pool->context, pool);
}

/* Held for a tenth of a microsecond, mostly: who finds it taken had better look again at once. */
static int lock_init(pthread_mutex_t *lock)
{
    pthread_mutexattr_t attributes;
    int code = pthread_mutexattr_init(&attributes);
    if (code) return code;
    code = pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ADAPTIVE_NP);
    if (!code) code = pthread_mutex_init(lock, &attributes);
    pthread_mutexattr_destroy(&attributes);
    return code;
}

static int pool_open(const pllm_context *context, pllm_device *device, pllm_budget *budget,
                     const char *name, const pllm_pool_options *options, pllm_pool **pool_out)
{
    if (!pool_out || !device)
        return pllm_fail(PLLM_EINVAL, 0, "a pool needs a device and a place for the result");
    *pool_out = NULL;
    int status = check_options(options);
    if (status < 0) return status;
    pllm_pool *pool = pllm_alloc(context, sizeof *pool);
    if (!pool) return pllm_fail_memory("a pool", sizeof *pool);
    pool->context = context;
    pool->device = device;
    if (options) pool->options = *options;
    pllm_pool_options *o = &pool->options;
    if (o->limit_bytes == 0) o->limit_bytes = PLLM_UNLIMITED;
    if (o->wait_us == 0) o->wait_us = 2000;
    pool->owner_count = 1;
    int code = lock_init(&pool->lock);
    if (code) {
        pllm_free(context, pool);
        return pllm_fail(PLLM_ENOMEM, code, "could not make a lock for a pool");
    }
    status = choose_sizes(pool);
    if (status == PLLM_OK)
        status = pool_blocks_open(pool, o->block_max ? o->block_max : BLOCK_MAX_DEFAULT);
    if (status == PLLM_OK && !budget) {
        status = pllm_budget_open(context, o->limit_bytes, &pool->own_budget);
        budget = pool->own_budget;
    }
    if (status == PLLM_OK)
        status = pllm_budget_join(budget, name, 0, o->limit_bytes, &pool->member);
    if (status == PLLM_OK) status = region_open(pool);
    if (status < 0) {
        pool_free_all(pool);
        return status;
    }
    *pool_out = pool;
    return PLLM_OK;
}

int pllm_pool_open(const pllm_context *context, pllm_device *device,
                   const pllm_pool_options *options, pllm_pool **pool_out)
{
    return pool_open(context, device, NULL, "pool", options, pool_out);
}

int pllm_pool_open_in(const pllm_context *context, pllm_device *device, pllm_budget *budget,
                      const char *name, const pllm_pool_options *options, pllm_pool **pool_out)
{
    return pool_open(context, device, budget, name, options, pool_out);
}

void pllm_pool_close(pllm_pool *pool)
{
    if (!pool) return;
    (void)pool_writer_end(&pool->writer);
    pool_fences_close(pool);
    pool_free_all(pool);
}

/* ---- totals ---- */

static uint32_t size_class(uint64_t bytes)
{
    uint64_t units = (bytes - 1) >> UNIT_SHIFT;
    uint32_t number = units ? 64 - (uint32_t)__builtin_clzll(units) : 0;
    return number < PLLM_POOL_CLASSES ? number : PLLM_POOL_CLASSES - 1;
}

static void count_in(pllm_pool_stats *stats, const pool_block *block)
{
    uint32_t number = size_class(block->bytes);
    stats->live_count++;
    stats->requested_bytes += block->requested;
    stats->allocated_bytes += block->bytes;
    if (stats->requested_bytes > stats->requested_peak_bytes)
        stats->requested_peak_bytes = stats->requested_bytes;
    if (stats->allocated_bytes > stats->allocated_peak_bytes)
        stats->allocated_peak_bytes = stats->allocated_bytes;
    stats->class_live_count[number]++;
    stats->class_live_bytes[number] += block->bytes;
    stats->class_calls[number]++;
}

static void count_out(pllm_pool_stats *stats, const pool_block *block)
{
    uint32_t number = size_class(block->bytes);
    stats->live_count--;
    stats->requested_bytes -= block->requested;
    stats->allocated_bytes -= block->bytes;
    stats->class_live_count[number]--;
    stats->class_live_bytes[number] -= block->bytes;
}

/* ---- allocating ---- */

static int take_block(pllm_pool *pool, uint32_t owner, uint64_t bytes, uint32_t *block_out)
{
    uint32_t b = pool->unused_count < BLOCKS_SPARE ? 0 : pool_find(pool, owner, bytes);
    if (!b) return pool_obtain(pool, owner, bytes, block_out);
    int saved = pool_save(pool, owner, bytes, b, block_out);
    if (saved > 0) return PLLM_OK;
    if (saved < 0) return pool_obtain(pool, owner, bytes, block_out); /* b may be gone */
    pool_take(pool, b);
    *block_out = pool_carve(pool, b, 0, bytes);
    return PLLM_OK;
}

static int take_slot(pllm_pool *pool, uint32_t owner, uint64_t bytes, uint32_t *block_out)
{
    uint32_t slot_class = pool_slot_class(bytes), b = pool_slot_find(pool, owner, slot_class);
    if (!b && pool_waits(pool, UINT64_MAX)) { /* slots of others may have become nobody's */
        pool_poll(pool);
        b = pool_slot_find(pool, owner, slot_class);
    }
    if (!b) {
        int status = take_block(pool, owner, pool_slab_bytes(slot_class), block_out);
        if (status == PLLM_ENODEVMEM || status == PLLM_ELIMIT)
            return take_block(pool, owner, bytes, block_out);
        if (status < 0) return status;
        if (pool->unused_count < pool_slab_slots(slot_class)) return PLLM_OK; /* a large slot */
        pool_slab_make(pool, *block_out, slot_class);
        b = pool_slot_find(pool, owner, slot_class);
    }
    pool_take(pool, b);
    *block_out = b;
    return PLLM_OK;
}

int pllm_pool_allocate(pllm_pool *pool, uint64_t bytes, pllm_stream *stream, uint64_t *address_out)
{
    *address_out = 0;
    if (bytes == 0) return pllm_fail(PLLM_EINVAL, 0, "an allocation of 0 bytes");
    if (bytes > pool->capacity_bytes)
        return pllm_fail(PLLM_ELIMIT, 0,
                         "%llu bytes are more than the pool's address space of %llu: its "
                         "capacity_bytes",
                         (unsigned long long)bytes, (unsigned long long)pool->capacity_bytes);
    uint64_t rounded = (bytes + UNIT - 1) & ~(uint64_t)(UNIT - 1);
    uint32_t owner, b = 0;
    pthread_mutex_lock(&pool->lock);
    pool->grown = 0;
    int status = pool_owner_of(pool, stream, &owner);
    if (status == PLLM_OK)
        status = rounded <= SMALL_MAX ? take_slot(pool, owner, rounded, &b)
                                      : take_block(pool, owner, rounded, &b);
    if (status < 0) {
        pool->stats.failed_calls++;
        pthread_mutex_unlock(&pool->lock);
        return status;
    }
    pool_block *block = block_of(pool, b);
    block->state = BLOCK_LIVE;
    block->requested = bytes;
    block->users = 0;
    block->stamp = pool->next_number++;
    pool->stats.allocate_calls++;
    pool->stats.hits += !pool->grown;
    count_in(&pool->stats, block);
    if (pool->writer.write) pool_writer_allocated(&pool->writer, block->stamp, bytes, owner);
    *address_out = pool->base + block->offset;
    pthread_mutex_unlock(&pool->lock);
    return PLLM_OK;
}

/* ---- freeing ---- */

static int refuse(pllm_pool *pool, uint64_t address, uint64_t bytes, uint32_t b)
{
    const pool_block *block = block_of(pool, b);
    unsigned long long at = (unsigned long long)address;
    pool->stats.refused_calls++;
    if (address < pool->base || address - pool->base >= pool->capacity_bytes)
        return pllm_fail(PLLM_EINVAL, 0, "0x%llx is not an address of this pool", at);
    if (b && block->state == BLOCK_LIVE)
        return pllm_fail(PLLM_EINVAL, 0,
                         "the block at 0x%llx was allocated with %llu bytes, not %llu", at,
                         (unsigned long long)block->requested, (unsigned long long)bytes);
    if (b) return pllm_fail(PLLM_EINVAL, 0, "the block at 0x%llx is free: freed twice?", at);
    return pllm_fail(PLLM_EINVAL, 0, "no block begins at 0x%llx: freed twice, or inside another?",
                     at);
}

/* The live block at an address; 0, with the lock still held: it was refused. */
static int live_block(pllm_pool *pool, uint64_t address, uint64_t bytes, uint32_t *block_out)
{
    uint64_t offset = address - pool->base;
    uint32_t b = pool_index_find(pool, offset);
    const pool_block *block = block_of(pool, b);
    *block_out = b;
    if (!b || block->state != BLOCK_LIVE || (bytes && bytes != block->requested))
        return refuse(pool, address, bytes, b);
    return PLLM_OK;
}

#ifdef PLLM_CHECKS
/* In the stream's order: what was submitted may still use the block. */
static void poison(pllm_pool *pool, const pool_block *block, pllm_stream *stream)
{
    if (!pool->view || block->users) return;
    if (!stream)
        memset(pool->view + block->offset, POISON, block->bytes);
    else
        (void)pool->device->ops->fill(pool->device, stream, pool->base + block->offset,
                                      block->bytes, POISON);
}
#endif

static void give_back(pllm_pool *pool, uint32_t b, uint32_t owner)
{
    if (owner == 0) {
        pool_put(pool, b, 0, 0);
        return;
    }
    pool_owner *to = &pool->owners[owner];
    to->wanted = ++pool->clock;
    to->unfenced_bytes += block_of(pool, b)->bytes;
    to->unfenced_count++;
    pool_put(pool, b, owner, pool->clock);
    /* An event now and then spares those who will ask the wait: other streams, and whoever wants
     * to map pages elsewhere. */
    int others = pool->owner_count - 1 + pool->cpu_used > 1;
    if ((others && to->unfenced_count >= FENCE_FREES) ||
        to->unfenced_bytes >= pool->stats.reserved_bytes / FENCE_SHARE + 2 * pool->chunk_bytes)
        pool_fence_now(pool, owner);
}

int pllm_pool_free(pllm_pool *pool, uint64_t address, uint64_t bytes, pllm_stream *stream)
{
    uint32_t b, owner;
    pthread_mutex_lock(&pool->lock);
    int status = live_block(pool, address, bytes, &b);
    if (status == PLLM_OK) status = pool_owner_of(pool, stream, &owner);
    if (status < 0) {
        pthread_mutex_unlock(&pool->lock);
        return status;
    }
    pool_block *block = block_of(pool, b);
    block->users &= ~(1ull << owner);
    pool->stats.free_calls++;
    count_out(&pool->stats, block);
    if (pool->writer.write) pool_writer_did(&pool->writer, 'f', block->stamp, owner);
#ifdef PLLM_CHECKS
    poison(pool, block, stream);
#endif
    if (block->users)
        pool_pend(pool, b, owner);
    else
        give_back(pool, b, owner);
    pthread_mutex_unlock(&pool->lock);
    return PLLM_OK;
}

int pllm_pool_record_stream(pllm_pool *pool, uint64_t address, pllm_stream *stream)
{
    uint32_t b, owner;
    pthread_mutex_lock(&pool->lock);
    int status = live_block(pool, address, 0, &b);
    if (status == PLLM_OK) status = pool_owner_of(pool, stream, &owner);
    if (status == PLLM_OK) {
        pool_block *block = block_of(pool, b);
        if (owner) block->users |= 1ull << owner; /* the CPU's use ends before it frees */
        pool->stats.record_calls++;
        if (pool->writer.write) pool_writer_did(&pool->writer, 'r', block->stamp, owner);
    }
    pthread_mutex_unlock(&pool->lock);
    return status;
}

int pllm_pool_size(pllm_pool *pool, uint64_t address, uint64_t *bytes_out)
{
    uint32_t b;
    pthread_mutex_lock(&pool->lock);
    int status = live_block(pool, address, 0, &b);
    *bytes_out = status == PLLM_OK ? block_of(pool, b)->bytes : 0;
    pthread_mutex_unlock(&pool->lock);
    return status;
}

int pllm_pool_forget_stream(pllm_pool *pool, pllm_stream *stream)
{
    if (!stream) return PLLM_OK;
    int status = pool->device->ops->stream_sync(pool->device, stream);
    pllm_error kept = *pllm_last_error();
    pthread_mutex_lock(&pool->lock);
    pool_forget(pool, stream);
    pthread_mutex_unlock(&pool->lock);
    return status < 0 ? pllm_fail(status, kept.native, "%s", kept.text) : PLLM_OK;
}

/* ---- limits ---- */

int pllm_pool_trim(pllm_pool *pool, uint64_t keep_bytes, uint64_t *freed_bytes_out)
{
    pthread_mutex_lock(&pool->lock);
    uint64_t before = pllm_budget_charged(pool->member);
    pool_shrink(pool, keep_bytes);
    uint64_t freed = before - pllm_budget_charged(pool->member);
    pthread_mutex_unlock(&pool->lock);
    if (freed_bytes_out) *freed_bytes_out = freed;
    return PLLM_OK;
}

int pllm_pool_set_limit(pllm_pool *pool, uint64_t limit_bytes)
{
    if (limit_bytes == 0) return pllm_fail(PLLM_EINVAL, 0, "a limit of 0 bytes");
    pthread_mutex_lock(&pool->lock);
    int status = pool->own_budget ? pllm_budget_set_limit(pool->own_budget, limit_bytes) : PLLM_OK;
    if (status == PLLM_OK) status = pllm_budget_member_set(pool->member, 0, limit_bytes);
    if (status == PLLM_OK) {
        pool->options.limit_bytes = limit_bytes;
        pool_shrink(pool, limit_bytes);
    }
    pthread_mutex_unlock(&pool->lock);
    return status;
}
