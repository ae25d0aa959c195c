/* elastic_blocks.c - the sub-allocator of a pool: blocks at places that it finds, which grow where
 * they are.
 *
 *   [ BLOCK      | ROOM         ][ BLOCK | ROOM ][ FREE                ]
 *                ^ grow moves this border; where the room ends, into what is free behind it
 *
 * The lowest place that fits is taken, so that the high end of the range stays free in one run. A
 * block that is being grown is PLACING as a whole: who frees it meanwhile is told that there is no
 * block. */
#include <string.h>
#include "vmm/elastic.h"

#define ALIGNMENT 256 /* what CUDA's own allocator gives */

int pllm_vmm_block_allocate(pllm_vmm_pool *pool, const pllm_vmm_block_options *options,
                            uint64_t *address_out)
{
    *address_out = 0;
    if (!options || options->struct_bytes != sizeof *options)
        return pllm_fail(PLLM_EINVAL, 0,
                         "no pllm_vmm_block_options, or their struct_bytes is not %zu",
                         sizeof *options);
    uint64_t alignment = options->alignment_bytes ? options->alignment_bytes : ALIGNMENT;
    uint64_t bytes = options->bytes, total, offset;
    if (bytes == 0 || __builtin_add_overflow(bytes, options->room_bytes, &total) ||
        (alignment & (alignment - 1)))
        return pllm_fail(PLLM_EINVAL, 0,
                         "model %s: a block of %llu bytes with room for %llu, aligned to %llu",
                         pool->name, (unsigned long long)bytes,
                         (unsigned long long)options->room_bytes, (unsigned long long)alignment);
    pthread_mutex_lock(&pool->lock);
    pllm_vmm_pool_settle(pool);
    int status = PLLM_OK;
    if (!pllm_spans_fit(&pool->spans, pool->base, total, alignment, &offset))
        status = pllm_fail(
            PLLM_ELIMIT, 0,
            "model %s: no run of %llu free bytes; the longest is %llu, of %llu free in all",
            pool->name, (unsigned long long)total,
            (unsigned long long)pllm_spans_longest_free(&pool->spans),
            (unsigned long long)pool->spans.bytes[PLLM_SPAN_FREE]);
    if (status == PLLM_OK && options->room_bytes)
        status = pllm_spans_turn(&pool->spans, offset + bytes, options->room_bytes, PLLM_SPAN_ROOM);
    if (status == PLLM_OK) {
        status = pllm_vmm_pool_place(pool, offset, bytes, PLLM_SPAN_BLOCK);
        if (status < 0 && options->room_bytes) /* one whole span */
            (void)pllm_spans_turn(&pool->spans, offset + bytes, options->room_bytes,
                                  PLLM_SPAN_FREE);
    }
    pthread_mutex_unlock(&pool->lock);
    if (status == PLLM_OK) *address_out = pool->base + offset;
    return status;
}

/* A block, its room, and what is free behind both. */
typedef struct place {
    uint64_t offset, bytes, room_bytes, free_bytes;
    int waits; /* what is behind it waits for a stream */
} place;

static int block_find(pllm_vmm_pool *pool, uint64_t address, place *found)
{
    const pllm_spans *spans = &pool->spans;
    uint64_t offset = address - pool->base;
    const pllm_span *span =
        address >= pool->base && offset < pool->capacity ? pllm_spans_at(spans, offset) : NULL;
    if (!span || span->kind != PLLM_SPAN_BLOCK || span->offset != offset)
        return pllm_fail(PLLM_EINVAL, 0, "model %s: no block begins at %llx%s", pool->name,
                         (unsigned long long)address,
                         span && span->kind == PLLM_SPAN_PLACING ? "; one there is growing" : "");
    *found = (place){.offset = offset, .bytes = span->bytes};
    uint64_t end = offset + span->bytes;
    if (end < spans->capacity && (span = pllm_spans_at(spans, end))->kind == PLLM_SPAN_ROOM) {
        found->room_bytes = span->bytes;
        end += span->bytes;
    }
    if (end == spans->capacity) return PLLM_OK;
    span = pllm_spans_at(spans, end);
    if (span->kind == PLLM_SPAN_FREE) {
        found->free_bytes = span->bytes;
        end += span->bytes;
    }
    found->waits = end < spans->capacity && pllm_spans_at(spans, end)->kind == PLLM_SPAN_PENDING;
    return PLLM_OK;
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static void turn(pllm_vmm_pool *pool, uint64_t offset, uint64_t bytes, pllm_span_kind kind)
{
    if (bytes > 0) (void)pllm_spans_turn(&pool->spans, offset, bytes, kind); /* whole spans */
}

/* Pages are missing: the block is PLACING, its longer end in two spans, as it came from room and
 * from free addresses, so that all can be put back without memory. */
static int grow_slowly(pllm_vmm_pool *pool, const place *block, uint64_t bytes)
{
    uint64_t end = block->offset + block->bytes, more = bytes - block->bytes;
    uint64_t from_room = least(more, block->room_bytes), from_free = more - from_room;
    int status = PLLM_OK;
    if (from_room) status = pllm_spans_turn(&pool->spans, end, from_room, PLLM_SPAN_PLACING);
    if (status == PLLM_OK && from_free) {
        status = pllm_spans_turn(&pool->spans, end + from_room, from_free, PLLM_SPAN_PLACING);
        if (status < 0) turn(pool, end, from_room, PLLM_SPAN_ROOM);
    }
    if (status < 0) return status;
    turn(pool, block->offset, block->bytes, PLLM_SPAN_PLACING);
    pllm_vmm_pool_touch(pool, end, more, 1);
    status = pllm_vmm_pool_back(pool, end, more);
    if (status == PLLM_OK) {
        turn(pool, block->offset, bytes, PLLM_SPAN_BLOCK);
        return PLLM_OK;
    }
    turn(pool, block->offset, block->bytes, PLLM_SPAN_BLOCK);
    turn(pool, end, block->room_bytes, PLLM_SPAN_ROOM);
    turn(pool, end + from_room, from_free, PLLM_SPAN_FREE);
    pllm_vmm_pool_untouch(pool, end, more);
    return status;
}

static int grow_longer(pllm_vmm_pool *pool, const place *block, uint64_t bytes)
{
    uint64_t end = block->offset + block->bytes, more = bytes - block->bytes;
    if (more > block->room_bytes + block->free_bytes)
        return pllm_fail(block->waits ? PLLM_EBUSY : PLLM_ELIMIT, 0,
                         "model %s: the block at %llx can grow by %llu bytes where it is, not by "
                         "%llu: what is behind them is %s",
                         pool->name, (unsigned long long)(pool->base + block->offset),
                         (unsigned long long)(block->room_bytes + block->free_bytes),
                         (unsigned long long)more,
                         block->waits ? "given back, and waits for a stream" : "taken");
    int status = PLLM_OK;
    if (!pllm_vmm_pool_is_ready(pool, end, more)) {
        status = grow_slowly(pool, block, bytes);
        if (status < 0) return status;
    } else {
        pllm_vmm_pool_touch(pool, end, more, 1);
        turn(pool, block->offset, bytes, PLLM_SPAN_BLOCK); /* as many spans as before, or fewer */
    }
    pllm_vmm_pool_grown(pool, block->offset + bytes);
    return PLLM_OK;
}

static int grow_shorter(pllm_vmm_pool *pool, const place *block, uint64_t bytes)
{
    uint64_t end = block->offset + bytes, less = block->bytes - bytes;
    int status = pllm_spans_turn(&pool->spans, end, less + block->room_bytes, PLLM_SPAN_ROOM);
    if (status == PLLM_OK) pllm_vmm_pool_drop(pool, end, less);
    return status;
}

int pllm_vmm_block_grow(pllm_vmm_pool *pool, uint64_t address, uint64_t bytes)
{
    place block = {0};
    if (bytes == 0 || bytes > pool->capacity)
        return pllm_fail(PLLM_EINVAL, 0, "model %s: a block of %llu bytes", pool->name,
                         (unsigned long long)bytes);
    pthread_mutex_lock(&pool->lock);
    if (pool->fences) pllm_vmm_pool_settle(pool);
    int status = block_find(pool, address, &block);
    if (status == PLLM_OK && bytes > block.bytes)
        status = grow_longer(pool, &block, bytes);
    else if (status == PLLM_OK && bytes < block.bytes)
        status = grow_shorter(pool, &block, bytes);
    pthread_mutex_unlock(&pool->lock);
    return status;
}

static int block_free(pllm_vmm_pool *pool, uint64_t address, pllm_stream *stream)
{
    place block = {0};
    pthread_mutex_lock(&pool->lock);
    pllm_vmm_pool_settle(pool);
    int status = block_find(pool, address, &block);
    if (status == PLLM_OK)
        status = pllm_vmm_pool_give(pool, block.offset, block.bytes, block.bytes + block.room_bytes,
                                    stream);
    pthread_mutex_unlock(&pool->lock);
    return status;
}

int pllm_vmm_block_free(pllm_vmm_pool *pool, uint64_t address)
{
    return block_free(pool, address, NULL);
}

int pllm_vmm_block_free_after(pllm_vmm_pool *pool, uint64_t address, pllm_stream *stream)
{
    if (!stream) return pllm_fail(PLLM_EINVAL, 0, "model %s: no stream to wait for", pool->name);
    return block_free(pool, address, stream);
}
