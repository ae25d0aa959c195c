/* place.c - free blocks and slots: whose they are, which fits, what is left of it.
 *
 * Large blocks: the smallest that fits, of the stream's own and nobody's, the lowest address among
 * equals; what is left over is cut off, unless it is so little (3%, at most 64 KiB) that nobody
 * would want it. A block that comes back joins its neighbours of the same owner.
 *
 * Small ones: sizes in steps of 512 bytes to 4 KiB, then four steps a doubling; the slot that was
 * freed last. A slab stays when its last slot is freed: somebody will want one again, and what is
 * idle is taken apart before anything is asked of the device. */
#include "pool/pool_internal.h"

enum { CRUMB_MAX = 64 << 10, CRUMB_SHARE = 32 };

/* ---- sizes of slots ---- */

uint32_t pool_slot_class(uint64_t bytes)
{
    uint32_t units = (uint32_t)((bytes + UNIT - 1) / UNIT);
    if (units <= 8) return units - 1;
    uint32_t doubling = 31 - (uint32_t)__builtin_clz(units - 1); /* 3, 4, 5 */
    uint32_t step = 1u << (doubling - 2);
    return 8 + (doubling - 3) * 4 + (units - 1 - (1u << doubling)) / step;
}

uint64_t pool_slot_bytes(uint32_t slot_class)
{
    if (slot_class < 8) return (uint64_t)(slot_class + 1) * UNIT;
    uint32_t doubling = 3 + (slot_class - 8) / 4, step = 1u << (doubling - 2);
    return (uint64_t)((1u << doubling) + ((slot_class - 8) % 4 + 1) * step) * UNIT;
}

uint32_t pool_slab_slots(uint32_t slot_class)
{
    uint64_t slots = (64 << 10) / pool_slot_bytes(slot_class);
    return slots < 8 ? 8 : (uint32_t)slots;
}

uint64_t pool_slab_bytes(uint32_t slot_class)
{
    return pool_slab_slots(slot_class) * pool_slot_bytes(slot_class);
}

/* ---- slots ---- */

static void slot_put(pllm_pool *pool, uint32_t b, uint32_t owner)
{
    pool_block *block = block_of(pool, b);
    uint32_t *list = &pool->owners[owner].slots[block->slot_class];
    block->left = 0;
    block->right = *list;
    if (*list) block_of(pool, *list)->left = b;
    *list = b;
    if (owner) return;
    pool_block *slab = block_of(pool, block->slab);
    if (++slab->slab == pool_slab_slots(slab->slot_class))
        pool_list_add(pool, &pool->idle_slabs, block->slab);
}

static void slot_take(pllm_pool *pool, uint32_t b)
{
    pool_block *block = block_of(pool, b);
    if (block->left)
        block_of(pool, block->left)->right = block->right;
    else
        pool->owners[block->owner].slots[block->slot_class] = block->right;
    if (block->right) block_of(pool, block->right)->left = block->left;
    block->left = block->right = 0;
    if (block->owner) return;
    pool_block *slab = block_of(pool, block->slab);
    if (slab->slab-- == pool_slab_slots(slab->slot_class))
        pool_list_remove(pool, &pool->idle_slabs, block->slab);
}

uint32_t pool_slot_find(pllm_pool *pool, uint32_t owner, uint32_t slot_class)
{
    uint32_t b = pool->owners[owner].slots[slot_class];
    return b ? b : pool->owners[0].slots[slot_class];
}

/* Cuts a taken block; its slots are the block's owner's, lowest offset first to be used. */
void pool_slab_make(pllm_pool *pool, uint32_t b, uint32_t slot_class)
{
    uint64_t bytes = pool_slot_bytes(slot_class);
    pool_block *slab = block_of(pool, b);
    uint32_t owner = slab->owner;
    assert(pool->unused_count >= pool_slab_slots(slot_class));
    pool_index_remove(pool, b);
    slab->state = BLOCK_SLAB;
    slab->slot_class = (uint8_t)slot_class;
    slab->slab = 0;
    for (uint32_t i = pool_slab_slots(slot_class); i-- > 0;) {
        uint32_t s = pool_block_new(pool);
        pool_block *slot = block_of(pool, s);
        slot->offset = slab->offset + i * bytes;
        slot->bytes = bytes;
        slot->slab = b;
        slot->slot_class = (uint8_t)slot_class;
        pool_index_add(pool, s);
        pool_put(pool, s, owner, slab->stamp);
    }
    pool->stats.slabs++;
}

void pool_slabs_release(pllm_pool *pool)
{
    while (pool->idle_slabs.oldest) {
        uint32_t b = pool->idle_slabs.oldest;
        pool_block *slab = block_of(pool, b);
        uint64_t bytes = pool_slot_bytes(slab->slot_class);
        uint32_t slots = pool_slab_slots(slab->slot_class);
        for (uint32_t i = 0; i < slots; i++) {
            uint32_t s = pool_index_find(pool, slab->offset + i * bytes);
            pool_take(pool, s); /* the first takes the slab off the list of idle ones */
            pool_index_remove(pool, s);
            pool_block_drop(pool, s);
        }
        pool_index_add(pool, b);
        slab->slab = 0;
        pool_put(pool, b, 0, 0);
        pool->stats.slabs--;
    }
}

/* ---- blocks ---- */

/* The neighbour, if it is free and the same owner's: out of its tree. */
static int joins(pllm_pool *pool, uint32_t b, uint32_t owner)
{
    const pool_block *block = block_of(pool, b);
    if (!b || block->state != BLOCK_FREE || block->owner != owner) return 0;
    pool_take(pool, b);
    pool->stats.merges++;
    return 1;
}

void pool_put(pllm_pool *pool, uint32_t b, uint32_t owner, uint64_t stamp)
{
    pool_owner *to = &pool->owners[owner];
    pool_block *block = block_of(pool, b);
    block->stamp = owner ? stamp : 0;
    block->users = 0;
    if (!block->slab) {
        if (joins(pool, block->after, owner)) pool_block_join(pool, b);
        if (joins(pool, block->before, owner)) {
            b = block->before;
            block = block_of(pool, b);
            pool_block_join(pool, b);
        }
    }
    block->state = BLOCK_FREE;
    block->owner = (uint8_t)owner;
    pool->stats.free_count++;
    if (block->slab)
        slot_put(pool, b, owner);
    else
        pool_tree_add(pool, &to->tree, b);
    if (owner) pool_list_add(pool, &to->age, b);
}

void pool_take(pllm_pool *pool, uint32_t b)
{
    pool_block *block = block_of(pool, b);
    pool_owner *from = &pool->owners[block->owner];
    if (block->slab)
        slot_take(pool, b);
    else
        pool_tree_remove(pool, &from->tree, b);
    if (block->owner) pool_list_remove(pool, &from->age, b);
    block->state = BLOCK_NONE; /* neighbours that come back leave it alone */
    pool->stats.free_count--;
}

uint32_t pool_find(pllm_pool *pool, uint32_t owner, uint64_t bytes)
{
    uint32_t shared = pool_tree_fit(pool, pool->owners[0].tree, bytes);
    if (owner == 0) return shared;
    uint32_t own = pool_tree_fit(pool, pool->owners[owner].tree, bytes);
    if (!own || !shared) return own ? own : shared;
    return block_of(pool, own)->bytes <= block_of(pool, shared)->bytes ? own : shared;
}

uint32_t pool_carve(pllm_pool *pool, uint32_t b, uint64_t at, uint64_t bytes)
{
    pool_block *block = block_of(pool, b);
    if (at > 0) {
        uint32_t front = b;
        b = pool_block_cut(pool, b, at);
        block = block_of(pool, b);
        pool_put(pool, front, block->owner, block->stamp);
        pool->stats.splits++;
    }
    uint64_t rest = block->bytes - bytes, crumb = bytes / CRUMB_SHARE;
    if (crumb > CRUMB_MAX) crumb = CRUMB_MAX;
    if (rest > 0 && rest >= crumb && pool->unused_count > 0) {
        uint32_t behind = pool_block_cut(pool, b, bytes);
        pool_put(pool, behind, block->owner, block->stamp);
        pool->stats.splits++;
    }
    return b;
}
