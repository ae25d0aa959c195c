/* blocks.c - the table of blocks: all there will ever be are allocated when a pool opens.
 *
 * The index finds a block by its offset: open addressing with linear probing, twice as many places
 * as blocks, and no tombstones (what follows a removed entry moves up). Trees are treaps whose
 * priority is a hash of the block's number, so that they need no field for it and stay balanced
 * whatever is allocated (Seidel and Aragon, "Randomized search trees", 1996). */
#include <string.h>
#include "pool/pool_internal.h"

int pool_blocks_open(pllm_pool *pool, uint32_t block_max)
{
    uint32_t places = 16, shift = 60;
    while (places < 2 * (uint64_t)block_max && shift > 33) places *= 2, shift--;
    pool->block_max = block_max;
    pool->blocks = pllm_alloc_array(pool->context, (uint64_t)block_max + 1, sizeof *pool->blocks);
    pool->index = pllm_alloc_array(pool->context, places, sizeof *pool->index);
    if (!pool->blocks || !pool->index)
        return pllm_fail_memory("a pool's blocks", (uint64_t)block_max * 72);
    pool->index_shift = shift;
    pool->index_mask = places - 1;
    pool->unused_count = block_max;
    pool->unused_first = 1;
    for (uint32_t b = 1; b < block_max; b++) pool->blocks[b].after = b + 1;
    return PLLM_OK;
}

void pool_blocks_close(pllm_pool *pool)
{
    pllm_free(pool->context, pool->blocks);
    pllm_free(pool->context, pool->index);
}

uint32_t pool_block_new(pllm_pool *pool)
{
    assert(pool->unused_count > 0);
    uint32_t b = pool->unused_first;
    pool_block *block = block_of(pool, b);
    pool->unused_first = block->after;
    pool->unused_count--;
    *block = (pool_block){.state = BLOCK_FREE};
    return b;
}

void pool_block_drop(pllm_pool *pool, uint32_t b)
{
    pool->blocks[b] = (pool_block){.state = BLOCK_NONE, .after = pool->unused_first};
    pool->unused_first = b;
    pool->unused_count++;
}

/* ---- the index ---- */

static uint32_t place_of(const pllm_pool *pool, uint64_t offset)
{
    return (uint32_t)((offset >> UNIT_SHIFT) * 0x9e3779b97f4a7c15u >> pool->index_shift);
}

uint32_t pool_index_find(const pllm_pool *pool, uint64_t offset)
{
    for (uint32_t place = place_of(pool, offset);; place = (place + 1) & pool->index_mask) {
        uint32_t b = pool->index[place];
        if (b == 0 || pool->blocks[b].offset == offset) return b;
    }
}

void pool_index_add(pllm_pool *pool, uint32_t b)
{
    uint32_t place = place_of(pool, pool->blocks[b].offset);
    while (pool->index[place]) place = (place + 1) & pool->index_mask;
    pool->index[place] = b;
}

void pool_index_remove(pllm_pool *pool, uint32_t b)
{
    uint32_t mask = pool->index_mask, place = place_of(pool, pool->blocks[b].offset);
    while (pool->index[place] != b) {
        assert(pool->index[place]);
        place = (place + 1) & mask;
    }
    /* What could stand in the gap comes there: its own place is not between the gap and it. */
    uint32_t gap = place;
    for (;;) {
        place = (place + 1) & mask;
        uint32_t other = pool->index[place];
        if (other == 0) break;
        uint32_t home = place_of(pool, pool->blocks[other].offset);
        if (((place - home) & mask) < ((place - gap) & mask)) continue;
        pool->index[gap] = other;
        gap = place;
    }
    pool->index[gap] = 0;
}

/* ---- cutting and joining ---- */

uint32_t pool_block_cut(pllm_pool *pool, uint32_t b, uint64_t bytes)
{
    pool_block *block = block_of(pool, b);
    assert(bytes > 0 && bytes < block->bytes);
    uint32_t rest = pool_block_new(pool);
    pool_block *behind = block_of(pool, rest);
    behind->offset = block->offset + bytes;
    behind->bytes = block->bytes - bytes;
    behind->stamp = block->stamp;
    behind->state = block->state;
    behind->owner = block->owner;
    behind->before = b;
    behind->after = block->after;
    if (behind->after) block_of(pool, behind->after)->before = rest;
    block->after = rest;
    block->bytes = bytes;
    if (behind->state != BLOCK_HOLE) pool_index_add(pool, rest);
    return rest;
}

void pool_block_join(pllm_pool *pool, uint32_t b)
{
    pool_block *block = block_of(pool, b);
    uint32_t gone = block->after;
    pool_block *behind = block_of(pool, gone);
    assert(behind->offset == end_of(block));
    if (behind->state != BLOCK_HOLE) pool_index_remove(pool, gone);
    block->bytes += behind->bytes;
    if (behind->stamp > block->stamp) block->stamp = behind->stamp;
    block->after = behind->after;
    if (block->after) block_of(pool, block->after)->before = b;
    pool_block_drop(pool, gone);
}

/* ---- lists, over older and newer ---- */

void pool_list_add(pllm_pool *pool, pool_list *list, uint32_t b)
{
    pool_block *block = block_of(pool, b);
    block->older = list->newest;
    block->newer = 0;
    if (list->newest)
        block_of(pool, list->newest)->newer = b;
    else
        list->oldest = b;
    list->newest = b;
}

void pool_list_remove(pllm_pool *pool, pool_list *list, uint32_t b)
{
    pool_block *block = block_of(pool, b);
    if (block->older)
        block_of(pool, block->older)->newer = block->newer;
    else
        list->oldest = block->newer;
    if (block->newer)
        block_of(pool, block->newer)->older = block->older;
    else
        list->newest = block->older;
    block->older = block->newer = 0;
}

/* ---- trees, by (bytes, offset) ---- */

static uint32_t priority(uint32_t b)
{
    return b * 2654435769u;
}

static int less(const pool_block *a, const pool_block *b)
{
    return a->bytes != b->bytes ? a->bytes < b->bytes : a->offset < b->offset;
}

void pool_tree_add(pllm_pool *pool, uint32_t *root, uint32_t b)
{
    pool_block *blocks = pool->blocks, *block = &blocks[b];
    uint32_t *link = root, top = priority(b);
    while (*link && priority(*link) >= top)
        link = less(block, &blocks[*link]) ? &blocks[*link].left : &blocks[*link].right;
    /* Block takes this place; what hung here is split around it. */
    uint32_t *smaller = &block->left, *larger = &block->right;
    for (uint32_t t = *link; t;) {
        if (less(&blocks[t], block)) {
            *smaller = t;
            smaller = &blocks[t].right;
            t = *smaller;
        } else {
            *larger = t;
            larger = &blocks[t].left;
            t = *larger;
        }
    }
    *smaller = *larger = 0;
    *link = b;
}

void pool_tree_remove(pllm_pool *pool, uint32_t *root, uint32_t b)
{
    pool_block *blocks = pool->blocks, *block = &blocks[b];
    uint32_t *link = root;
    while (*link != b) {
        assert(*link);
        link = less(block, &blocks[*link]) ? &blocks[*link].left : &blocks[*link].right;
    }
    uint32_t smaller = block->left, larger = block->right;
    while (smaller && larger) {
        if (priority(smaller) >= priority(larger)) {
            *link = smaller;
            link = &blocks[smaller].right;
            smaller = *link;
        } else {
            *link = larger;
            link = &blocks[larger].left;
            larger = *link;
        }
    }
    *link = smaller ? smaller : larger;
    block->left = block->right = 0;
}

uint32_t pool_tree_fit(const pllm_pool *pool, uint32_t root, uint64_t bytes)
{
    uint32_t best = 0;
    for (uint32_t t = root; t;) {
        const pool_block *block = &pool->blocks[t];
        int fits = block->bytes >= bytes;
        best = fits ? t : best;
        t = fits ? block->left : block->right;
    }
    return best;
}
