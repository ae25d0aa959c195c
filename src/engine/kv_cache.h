/* kv_cache.h - which pages hold a sequence's keys and values.
 *
 * Tokens are cut into blocks of 32. The blocks of the same tokens in all layers are a group; groups
 * are counted references, so that forks share them; a page of the pager is one (group, layer).
 * The newest, unfinished block of a sequence is open: it lies in the sequence's slot of a
 * workspace, one block a layer, in the open format. When a block is full it is sealed into a new
 * group, whose pages never change again.
 *
 *   sequence: [group 7][group 9][group 12] + open block (length % 32 tokens)
 *   group 9:  page of layer 0 | page of layer 1 | ...
 *
 * A sequence remembers each token's id and whether it was generated, since what made a token
 * decides the path that computes it again. ids may be ahead of length: after a truncation into a
 * sealed block, tokens [length, id_count) wait to be computed again.
 *
 * Invariants: 1. group_count == length / 32. 2. length <= id_count. 3. a group's references are
 * the sequences that list it. 4. group pages of a free group are PLLM_NONE. */
#ifndef PLLM_ENGINE_KV_CACHE_H
#define PLLM_ENGINE_KV_CACHE_H

#include <pagedllm/engine.h>
#include "kernels/kv_format.h"
#include "pager/pager.h"
#include "vmm/region.h"

/* What one layer caches. Windows, latent attention and state-space layers fit in here later. */
typedef enum pllm_cache_kind { PLLM_CACHE_KV = 0 } pllm_cache_kind;
typedef struct pllm_cache_layer {
    pllm_cache_kind kind;
    uint32_t heads, key_dim, value_dim;
    uint32_t window;      /* 0: all tokens */
    uint64_t state_bytes; /* of a layer with state instead of tokens */
} pllm_cache_layer;

typedef struct pllm_kv_cache {
    const pllm_context *context;
    pllm_pager *pager; /* borrowed */
    pllm_kv_shape shape;
    uint32_t layer_count, group_max, sequence_max, block_max; /* block_max: a sequence's */
    pllm_cache_layer *layers;
    uint32_t *group_references; /* [group_max], 0: free */
    pllm_page *group_pages;     /* [group_max][layer_count] */
    uint32_t *free_groups, free_group_count;
    uint8_t *slot_taken; /* [sequence_max] */
    char *open;          /* [sequence_max][layer_count] open blocks; NULL where the CPU sees none */
    uint64_t open_bytes, sealed_bytes;
    uint32_t groups_peak;
} pllm_kv_cache;

struct pllm_sequence {
    struct pllm_engine *engine;
    struct pllm_sequence *next; /* of the engine's list */
    uint32_t slot;
    uint32_t length, id_count, id_capacity;
    uint32_t *ids;
    uint8_t *generated; /* [id_count]: 1 if sampled, 0 if prompt */
    uint32_t *groups, group_count;
};

/* open_memory: sequence_max * layer_count open blocks, borrowed. */
int pllm_kv_cache_init(pllm_kv_cache *cache, const pllm_context *context, pllm_pager *pager,
                       const pllm_kv_shape *shape, uint32_t layer_count, uint32_t sequence_max,
                       uint32_t context_max, void *open_memory);
void pllm_kv_cache_deinit(pllm_kv_cache *cache); /* no sequence is left */

static inline void *pllm_kv_open_block(const pllm_kv_cache *cache, uint32_t slot, uint32_t layer)
{
    return cache->open + ((uint64_t)slot * cache->layer_count + layer) * cache->open_bytes;
}
static inline pllm_page pllm_kv_page(const pllm_kv_cache *cache, uint32_t group, uint32_t layer)
{
    return cache->group_pages[(uint64_t)group * cache->layer_count + layer];
}

/* A group of pages without content for block block_index, whose homes follow those of `after`
 * (a group, or PLLM_NONE). One reference. Errors: ELIMIT, and the pager's; then nothing changed. */
int pllm_kv_group_new(pllm_kv_cache *cache, uint32_t after, uint32_t block_index,
                      uint32_t *group_out);
void pllm_kv_group_release(pllm_kv_cache *cache, uint32_t group);

/* Sequences without an engine's list around them. */
int pllm_kv_sequence_open(pllm_kv_cache *cache, pllm_sequence **sequence_out);
void pllm_kv_sequence_close(pllm_kv_cache *cache, pllm_sequence *sequence);
/* The open blocks are the caller's to copy. */
int pllm_kv_sequence_fork(pllm_kv_cache *cache, const pllm_sequence *from,
                          pllm_sequence **sequence_out);
/* Room for more ids; ENOMEM leaves the sequence as it was. */
int pllm_kv_sequence_reserve(pllm_kv_cache *cache, pllm_sequence *sequence, uint32_t id_count);
/* Keeps tokens [0, token_count). length falls to a block's start where a sealed block is cut. */
void pllm_kv_sequence_truncate(pllm_kv_cache *cache, pllm_sequence *sequence, uint32_t token_count);
void pllm_kv_cache_check(const pllm_kv_cache *cache, const pllm_sequence *first);

#endif
