/* fences.c - when a block may change streams.
 *
 * A free on a stream stamps the block with the clock of frees. To know how far a stream has got, an
 * event is recorded on it: everything freed there until now lies before it. When the event is done,
 * all blocks of the stream with a stamp up to the event's are nobody's, and join what lies beside
 * them. One event so serves any number of frees, and none is recorded while one stream is all there
 * is and it finds what it needs.
 *
 * A block that other streams were recorded on waits in pending until each of them has got past its
 * stamp. Events are queried in the order they were recorded on a stream, and used again. Work that
 * failed is over like any other; who waits for the stream is told. */
#include <sched.h>
#include <string.h>
#include <time.h>
#include "pool/pool_internal.h"

enum { TURNS_AWAKE = 64, SLEEP_NS = 20000 };

static void owner_begin(pllm_pool *pool, uint32_t number, pllm_stream *stream)
{
    pool_owner *owner = &pool->owners[number];
    owner->stream = stream;
    owner->wanted = owner->fenced = owner->done = pool->clock;
    owner->unfenced_bytes = owner->unfenced_count = 0;
    pool->last_owner = number;
}

int pool_owner_of(pllm_pool *pool, pllm_stream *stream, uint32_t *owner_out)
{
    *owner_out = 0;
    if (!stream) {
        pool->cpu_used = 1;
        return PLLM_OK;
    }
    *owner_out = pool->last_owner;
    if (pool->owners[pool->last_owner].stream == stream) return PLLM_OK;
    uint32_t unused = 0;
    for (uint32_t i = 1; i < pool->owner_count; i++) {
        if (pool->owners[i].stream == stream) {
            *owner_out = pool->last_owner = i;
            return PLLM_OK;
        }
        if (!unused && !pool->owners[i].stream) unused = i;
    }
    if (!unused) {
        if (pool->owner_count == STREAM_MAX)
            return pllm_fail(PLLM_ELIMIT, 0,
                             "a pool knows at most %d streams; pllm_pool_forget_stream makes room",
                             STREAM_MAX - 1);
        unused = pool->owner_count++;
    }
    owner_begin(pool, unused, stream);
    *owner_out = unused;
    return PLLM_OK;
}

/* What is over is seen in order; failed work is over. */
static void fences_ask(pllm_pool *pool, pool_owner *owner)
{
    while (owner->fence_count > 0) {
        pool_fence *fence = &owner->fence[owner->fence_first];
        if (pool->device->ops->event_query(pool->device, fence->event) == 0) return;
        owner->done = fence->stamp;
        pool->events[pool->event_count++] = fence->event;
        owner->fence_first = (owner->fence_first + 1) % FENCE_MAX;
        owner->fence_count--;
    }
}

void pool_fence_now(pllm_pool *pool, uint32_t number)
{
    pool_owner *owner = &pool->owners[number];
    if (!owner->stream || owner->wanted <= owner->fenced) return;
    if (owner->fence_count == FENCE_MAX) fences_ask(pool, owner);
    if (owner->fence_count == FENCE_MAX) return;
    const pllm_device_ops *ops = pool->device->ops;
    pllm_event *event = NULL;
    if (pool->event_count > 0)
        event = pool->events[--pool->event_count];
    else if (ops->event_open(pool->device, &event) < 0)
        return; /* whoever waits comes again */
    if (ops->event_record(pool->device, event, owner->stream) < 0) {
        pool->events[pool->event_count++] = event;
        return;
    }
    owner->fence[(owner->fence_first + owner->fence_count++) % FENCE_MAX] =
        (pool_fence){event, pool->clock};
    owner->fenced = pool->clock;
    owner->unfenced_bytes = owner->unfenced_count = 0;
    pool->stats.fences++;
}

void pool_fence_all(pllm_pool *pool)
{
    for (uint32_t i = 1; i < pool->owner_count; i++) pool_fence_now(pool, i);
}

/* ---- what is over ---- */

static void release_old(pllm_pool *pool, pool_owner *owner)
{
    while (owner->age.oldest) {
        uint32_t b = owner->age.oldest;
        if (block_of(pool, b)->stamp > owner->done) return;
        pool_take(pool, b);
        pool_put(pool, b, 0, 0);
    }
}

static void release_pending(pllm_pool *pool)
{
    for (uint32_t b = pool->pending.oldest, next; b; b = next) {
        pool_block *block = block_of(pool, b);
        next = block->newer;
        for (uint64_t users = block->users; users; users &= users - 1) {
            uint32_t user = (uint32_t)__builtin_ctzll(users);
            if (pool->owners[user].done >= block->stamp) block->users &= ~(1ull << user);
        }
        if (block->users) continue;
        pool_list_remove(pool, &pool->pending, b);
        pool->stats.pending_bytes -= block->bytes;
        pool->stats.pending_count--;
        uint32_t owner = pool->owners[block->owner].done < block->stamp ? block->owner : 0;
#ifdef PLLM_CHECKS
        if (!owner && pool->view) memset(pool->view + block->offset, POISON, block->bytes);
#endif
        pool_put(pool, b, owner, block->stamp);
    }
}

void pool_poll(pllm_pool *pool)
{
    for (uint32_t i = 1; i < pool->owner_count; i++) fences_ask(pool, &pool->owners[i]);
    release_pending(pool);
    for (uint32_t i = 1; i < pool->owner_count; i++) release_old(pool, &pool->owners[i]);
}

void pool_pend(pllm_pool *pool, uint32_t b, uint32_t owner)
{
    pool_block *block = block_of(pool, b);
    block->state = BLOCK_PENDING;
    block->owner = (uint8_t)owner;
    block->stamp = ++pool->clock;
    if (owner) pool->owners[owner].wanted = pool->clock;
    for (uint64_t users = block->users; users; users &= users - 1) {
        uint32_t user = (uint32_t)__builtin_ctzll(users);
        pool->owners[user].wanted = pool->clock;
        pool_fence_now(pool, user);
    }
    pool_list_add(pool, &pool->pending, b);
    pool->stats.pending_bytes += block->bytes;
    pool->stats.pending_count++;
}

/* ---- waiting ---- */

int pool_waits(const pllm_pool *pool, uint64_t stamp)
{
    for (uint32_t i = 1; i < pool->owner_count; i++)
        if (pool->owners[i].fence_count > 0 && pool->owners[i].done < stamp) return 1;
    return 0;
}

/* Others go on meanwhile, and may change everything. On a simulated device it is the asking that
 * makes time pass. */
void pool_wait(pllm_pool *pool, uint32_t turn)
{
    static const struct timespec moment = {0, SLEEP_NS};
    pthread_mutex_unlock(&pool->lock);
    if (turn < TURNS_AWAKE)
        sched_yield();
    else
        clock_nanosleep(CLOCK_MONOTONIC, 0, &moment, NULL);
    pthread_mutex_lock(&pool->lock);
}

/* The stream's work is over. */
void pool_forget(pllm_pool *pool, pllm_stream *stream)
{
    uint32_t number = 1;
    while (number < pool->owner_count && pool->owners[number].stream != stream) number++;
    if (number == pool->owner_count) return;
    pool_owner *owner = &pool->owners[number];
    for (; owner->fence_count > 0; owner->fence_count--) {
        pool->events[pool->event_count++] = owner->fence[owner->fence_first].event;
        owner->fence_first = (owner->fence_first + 1) % FENCE_MAX;
    }
    owner->done = owner->fenced = owner->wanted = pool->clock;
    release_pending(pool);
    release_old(pool, owner);
    for (uint32_t b = 1; b <= pool->block_max; b++)
        if (block_of(pool, b)->state == BLOCK_LIVE) block_of(pool, b)->users &= ~(1ull << number);
    owner->stream = NULL;
}

void pool_fences_close(pllm_pool *pool)
{
    const pllm_device_ops *ops = pool->device->ops;
    for (uint32_t i = 1; i < pool->owner_count; i++) {
        pool_owner *owner = &pool->owners[i];
        for (; owner->fence_count > 0; owner->fence_count--) {
            pllm_event *event = owner->fence[owner->fence_first].event;
            (void)ops->event_wait(pool->device, event, UINT64_MAX);
            pool->events[pool->event_count++] = event;
            owner->fence_first = (owner->fence_first + 1) % FENCE_MAX;
        }
        if (owner->stream && owner->wanted > owner->fenced)
            (void)ops->stream_sync(pool->device, owner->stream);
    }
    while (pool->event_count > 0) ops->event_close(pool->device, pool->events[--pool->event_count]);
}
