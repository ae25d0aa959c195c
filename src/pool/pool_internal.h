/* pool_internal.h - what the files of pool share.
 *
 *   reserved range   | live |free| live |   hole    |free| slab: s s s s | live |  hole ...  |
 *   chunks           [chunk][chunk][chunk]          [chunk][chunk][chunk][chunk]
 *
 * Blocks tile the reserved range. A hole is whole pages without memory; every other block lies on
 * mapped pages, wherever in them it begins. A slab is a block cut into slots of one size; slots are
 * blocks too, but no part of the tiling and never cut or merged.
 *
 * Free blocks belong to a stream (number 1 and up), or to nobody (0: the CPU): those nobody's work
 * can touch any more. Each owner has a tree of free blocks by (bytes, offset), lists of free slots
 * by size, and, if it is a stream, a list of all of them by age. A free gives a block to its
 * stream, stamped with the pool's clock of frees; once an event has shown that the stream got past
 * that stamp, the block becomes nobody's. Events are recorded only when somebody may want to know.
 *
 * Life of a block:   free -allocate-> live -free-> free
 *                                     live -free, other streams were recorded-> pending -> free
 *                    hole <-map, unmap-> free     free -> slab -> free
 *
 * Invariants (pllm_pool_check): 1. Blocks tile the range, in order. 2. Holes begin and end at
 * pages, which are not mapped; pages under all others are. 3. No two neighbours are free with the
 * same owner, or both holes. 4. Each free block is in its owner's tree or slot list, and in its
 * list by age; each block but holes and slabs is found by its offset, nothing else is. 5. A slab's
 * idle count is that of its slots that are free and nobody's. 6. Totals match the blocks. Locks:
 * one, held throughout but while waiting and in the callback. */
#ifndef PLLM_POOL_INTERNAL_H
#define PLLM_POOL_INTERNAL_H

#include <assert.h>
#include <pthread.h>
#include "base/context.h"
#include "pool/log.h"
#include "pool/pool.h"
#include "vmm/region.h"

enum {
    UNIT = 512, /* of sizes and addresses */
    UNIT_SHIFT = 9,
    CHUNK_MAX = 2 << 20,  /* unless the device or the program wants larger ones */
    SMALL_MAX = 32 << 10, /* the largest that comes from a slab */
    SLOT_CLASSES = 20,
    STREAM_MAX = 64, /* with the CPU: a bit each */
    FENCE_MAX = 8,   /* events in flight a stream */
    BLOCK_MAX_DEFAULT = 65536,
    BLOCKS_SPARE = 8, /* what one operation may need for cuts */
    FENCE_FREES = 64, /* frees of a stream after which others are thought of, */
    FENCE_SHARE = 32, /* or this part of what is reserved */
    WAITS_IN_VAIN_MAX = 10,
    POISON = 0xdd, /* freed memory, in checked builds */
};

enum { BLOCK_NONE, BLOCK_FREE, BLOCK_LIVE, BLOCK_PENDING, BLOCK_SLAB, BLOCK_HOLE };

/* Indices of blocks; 0 is none. Links serve as the state needs. */
typedef struct pool_block {
    uint64_t offset, bytes;
    uint64_t requested;     /* LIVE: as asked for */
    uint64_t stamp;         /* FREE, PENDING: clock of its free; LIVE: its number in the log */
    uint32_t before, after; /* neighbours by address; slots have none. NONE: after is the next */
    union {
        struct {
            uint32_t left, right; /* FREE: in its owner's tree, or slot list */
        };
        uint64_t users; /* LIVE, PENDING: streams recorded, a bit each */
    };
    uint32_t older, newer; /* FREE: by age; PENDING, idle SLAB: in their lists */
    uint32_t slab;         /* of a slot: the block it was cut from; of a SLAB: its idle slots */
    uint8_t state, owner;  /* owner: FREE: the stream; PENDING: the one it was freed on */
    uint8_t slot_class;    /* of slots and slabs */
    uint8_t unused;
} pool_block;
_Static_assert(sizeof(pool_block) == 64, "a block is a cache line");

typedef struct pool_list {
    uint32_t oldest, newest;
} pool_list;

typedef struct pool_fence {
    pllm_event *event;
    uint64_t stamp; /* frees up to here lie before the event */
} pool_fence;

typedef struct pool_owner {
    pllm_stream *stream; /* NULL: the CPU, or nobody yet */
    /* Of the clock of frees: the last that somebody waits for, the last an event stands behind, the
     * last known to be over. */
    uint64_t wanted, fenced, done;
    uint64_t unfenced_bytes;
    uint32_t unfenced_count;
    uint32_t tree;
    uint32_t slots[SLOT_CLASSES];
    pool_list age;
    pool_fence fence[FENCE_MAX]; /* a ring */
    uint32_t fence_first, fence_count;
} pool_owner;

struct pllm_pool {
    pthread_mutex_t lock;
    const pllm_context *context;
    pllm_device *device;
    pllm_budget *own_budget; /* NULL: shared */
    pllm_budget_member *member;
    pllm_region *region;
    pllm_va base;
    char *view; /* NULL: the CPU cannot read the device */
    uint64_t chunk_bytes, capacity_bytes;
    pllm_pool_options options;

    pool_block *blocks; /* [block_max + 1] */
    uint32_t block_max, unused_first, unused_count;
    uint32_t *index; /* open addressing, by offset */
    uint32_t index_shift, index_mask;
    uint32_t first; /* block at offset 0 */

    pool_owner owners[STREAM_MAX];
    uint32_t owner_count; /* numbers ever used */
    uint32_t last_owner;
    uint32_t cpu_used;
    uint64_t clock; /* of frees on streams */
    pool_list pending, idle_slabs;
    uint32_t grown;                             /* in this call: memory was mapped */
    uint32_t waits_in_vain;                     /* one after another */
    pllm_event *events[STREAM_MAX * FENCE_MAX]; /* to be recorded again */
    uint32_t event_count;
    uint64_t next_number; /* in the log */
    pool_writer writer;
    pllm_pool_stats stats;
};

static inline pool_block *block_of(pllm_pool *pool, uint32_t b)
{
    return &pool->blocks[b];
}

static inline uint64_t end_of(const pool_block *block)
{
    return block->offset + block->bytes;
}

/* blocks.c: the table, found by offset, cut and merged; lists; trees. */
int pool_blocks_open(pllm_pool *pool, uint32_t block_max);
void pool_blocks_close(pllm_pool *pool);
uint32_t pool_block_new(pllm_pool *pool); /* there is one: look at unused_count first */
void pool_block_drop(pllm_pool *pool, uint32_t b);
uint32_t pool_index_find(const pllm_pool *pool, uint64_t offset);
void pool_index_add(pllm_pool *pool, uint32_t b);
void pool_index_remove(pllm_pool *pool, uint32_t b);
uint32_t pool_block_cut(pllm_pool *pool, uint32_t b, uint64_t bytes); /* the part behind bytes */
void pool_block_join(pllm_pool *pool, uint32_t b); /* with the block after it, which goes */
void pool_list_add(pllm_pool *pool, pool_list *list, uint32_t b);
void pool_list_remove(pllm_pool *pool, pool_list *list, uint32_t b);
void pool_tree_add(pllm_pool *pool, uint32_t *root, uint32_t b);
void pool_tree_remove(pllm_pool *pool, uint32_t *root, uint32_t b);
uint32_t pool_tree_fit(const pllm_pool *pool, uint32_t root, uint64_t bytes);

/* place.c: free blocks and slots of owners. */
uint32_t pool_slot_class(uint64_t bytes);
uint64_t pool_slot_bytes(uint32_t slot_class);
void pool_put(pllm_pool *pool, uint32_t b, uint32_t owner, uint64_t stamp); /* becomes free */
void pool_take(pllm_pool *pool, uint32_t b); /* out of tree, lists: nobody's hands */
uint32_t pool_find(pllm_pool *pool, uint32_t owner, uint64_t bytes); /* best fit; still free */
/* The part [at, at + bytes) of a free block that was taken; the rest is put back. */
uint32_t pool_carve(pllm_pool *pool, uint32_t b, uint64_t at, uint64_t bytes);
uint32_t pool_slot_find(pllm_pool *pool, uint32_t owner, uint32_t slot_class);
void pool_slab_make(pllm_pool *pool, uint32_t b, uint32_t slot_class);
void pool_slabs_release(pllm_pool *pool); /* those without a slot in use */
uint64_t pool_slab_bytes(uint32_t slot_class);
uint32_t pool_slab_slots(uint32_t slot_class);

/* fences.c: what streams have got past. */
int pool_owner_of(pllm_pool *pool, pllm_stream *stream, uint32_t *owner_out);
void pool_fence_now(pllm_pool *pool, uint32_t owner); /* if it must and can */
void pool_fence_all(pllm_pool *pool);
void pool_poll(pllm_pool *pool);                       /* what is over becomes nobody's */
int pool_waits(const pllm_pool *pool, uint64_t stamp); /* for frees up to stamp? */
void pool_wait(pllm_pool *pool, uint32_t turn);        /* gives the lock away for a moment */
void pool_pend(pllm_pool *pool, uint32_t b, uint32_t owner);
void pool_forget(pllm_pool *pool, pllm_stream *stream); /* its work is over */
void pool_fences_close(pllm_pool *pool);

/* grow.c: memory from elsewhere and to elsewhere. */
int pool_obtain(pllm_pool *pool, uint32_t owner, uint64_t bytes, uint32_t *block_out);
int pool_save(pllm_pool *pool, uint32_t owner, uint64_t bytes, uint32_t b, uint32_t *block_out);
void pool_shrink(pllm_pool *pool, uint64_t keep_bytes);
void pool_reserved_note(pllm_pool *pool);

#endif
