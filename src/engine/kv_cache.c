/* kv_cache.c - groups, sequences, forks and cuts. See kv_cache.h for the picture and invariants. */
#include <assert.h>
#include <string.h>
#include "engine/kv_cache.h"

int pllm_kv_cache_init(pllm_kv_cache *cache, const pllm_context *context, pllm_pager *pager,
                       const pllm_kv_shape *shape, uint32_t layer_count, uint32_t sequence_max,
                       uint32_t context_max, void *open_memory)
{
    memset(cache, 0, sizeof *cache);
    cache->context = context;
    cache->pager = pager;
    cache->shape = *shape;
    cache->layer_count = layer_count;
    cache->sequence_max = sequence_max;
    cache->block_max = (context_max + PLLM_BLOCK_TOKENS - 1) / PLLM_BLOCK_TOKENS;
    cache->group_max = cache->block_max * sequence_max;
    cache->open = open_memory;
    cache->open_bytes = pllm_kv_block_bytes(shape, shape->open);
    cache->sealed_bytes = pllm_kv_block_bytes(shape, shape->sealed);
    cache->layers = pllm_alloc_array(context, layer_count, sizeof *cache->layers);
    cache->group_references = pllm_alloc_array(context, cache->group_max, sizeof(uint32_t));
    cache->free_groups = pllm_alloc_array(context, cache->group_max, sizeof(uint32_t));
    cache->group_pages =
        pllm_alloc_array(context, (uint64_t)cache->group_max * layer_count, sizeof(pllm_page));
    cache->slot_taken = pllm_alloc(context, sequence_max);
    if (!cache->layers || !cache->group_references || !cache->free_groups || !cache->group_pages ||
        !cache->slot_taken) {
        pllm_kv_cache_deinit(cache);
        return pllm_fail_memory("the block tables", (uint64_t)cache->group_max * layer_count * 4);
    }
    for (uint32_t i = 0; i < layer_count; i++)
        cache->layers[i] = (pllm_cache_layer){.kind = PLLM_CACHE_KV,
                                              .heads = shape->kv_heads,
                                              .key_dim = shape->head_dim,
                                              .value_dim = shape->head_dim};
    for (uint64_t i = 0; i < (uint64_t)cache->group_max * layer_count; i++)
        cache->group_pages[i] = PLLM_NONE;
    /* Handed out from the end: low numbers first. */
    for (uint32_t i = 0; i < cache->group_max; i++)
        cache->free_groups[i] = cache->group_max - 1 - i;
    cache->free_group_count = cache->group_max;
    return PLLM_OK;
}

void pllm_kv_cache_deinit(pllm_kv_cache *cache)
{
    pllm_free(cache->context, cache->layers);
    pllm_free(cache->context, cache->group_references);
    pllm_free(cache->context, cache->free_groups);
    pllm_free(cache->context, cache->group_pages);
    pllm_free(cache->context, cache->slot_taken);
    memset(cache, 0, sizeof *cache);
}

int pllm_kv_group_new(pllm_kv_cache *cache, uint32_t after, uint32_t block_index,
                      uint32_t *group_out)
{
    *group_out = PLLM_NONE;
    if (cache->free_group_count == 0)
        return pllm_fail(PLLM_ELIMIT, 0, "all %u groups of KV blocks are in use: close a sequence",
                         cache->group_max);
    uint32_t group = cache->free_groups[cache->free_group_count - 1];
    pllm_page *pages = &cache->group_pages[(uint64_t)group * cache->layer_count];
    for (uint32_t layer = 0; layer < cache->layer_count; layer++) {
        pllm_page follow = after == PLLM_NONE ? PLLM_NONE : pllm_kv_page(cache, after, layer);
        int status = pllm_pager_page_new(cache->pager, follow,
                                         block_index * cache->layer_count + layer, &pages[layer]);
        if (status < 0) {
            while (layer-- > 0) {
                pllm_pager_page_free(cache->pager, pages[layer]);
                pages[layer] = PLLM_NONE;
            }
            return status;
        }
    }
    cache->free_group_count--;
    cache->group_references[group] = 1;
    uint32_t used = cache->group_max - cache->free_group_count;
    if (used > cache->groups_peak) cache->groups_peak = used;
    *group_out = group;
    return PLLM_OK;
}

void pllm_kv_group_release(pllm_kv_cache *cache, uint32_t group)
{
    assert(cache->group_references[group] > 0);
    if (--cache->group_references[group] > 0) return;
    pllm_page *pages = &cache->group_pages[(uint64_t)group * cache->layer_count];
    for (uint32_t layer = 0; layer < cache->layer_count; layer++) {
        pllm_pager_page_free(cache->pager, pages[layer]);
        pages[layer] = PLLM_NONE;
    }
    cache->free_groups[cache->free_group_count++] = group;
}

int pllm_kv_sequence_open(pllm_kv_cache *cache, pllm_sequence **sequence_out)
{
    *sequence_out = NULL;
    uint32_t slot = 0;
    while (slot < cache->sequence_max && cache->slot_taken[slot]) slot++;
    if (slot == cache->sequence_max)
        return pllm_fail(PLLM_ELIMIT, 0,
                         "%u sequences are open, as many as sequence_max allows: close one",
                         cache->sequence_max);
    pllm_sequence *sequence = pllm_alloc(cache->context, sizeof *sequence);
    if (!sequence) return pllm_fail_memory("a sequence", sizeof *sequence);
    sequence->groups = pllm_alloc_array(cache->context, cache->block_max, sizeof(uint32_t));
    if (!sequence->groups) {
        pllm_free(cache->context, sequence);
        return pllm_fail_memory("a sequence's block table", cache->block_max * 4ull);
    }
    sequence->slot = slot;
    cache->slot_taken[slot] = 1;
    *sequence_out = sequence;
    return PLLM_OK;
}

void pllm_kv_sequence_close(pllm_kv_cache *cache, pllm_sequence *sequence)
{
    if (!sequence) return;
    for (uint32_t i = 0; i < sequence->group_count; i++)
        pllm_kv_group_release(cache, sequence->groups[i]);
    cache->slot_taken[sequence->slot] = 0;
    pllm_free(cache->context, sequence->ids);
    pllm_free(cache->context, sequence->generated);
    pllm_free(cache->context, sequence->groups);
    pllm_free(cache->context, sequence);
}

int pllm_kv_sequence_reserve(pllm_kv_cache *cache, pllm_sequence *sequence, uint32_t id_count)
{
    if (id_count <= sequence->id_capacity) return PLLM_OK;
    uint32_t capacity = sequence->id_capacity ? sequence->id_capacity : 256;
    while (capacity < id_count) capacity += capacity / 2;
    uint32_t *ids = pllm_alloc_array(cache->context, capacity, sizeof *ids);
    uint8_t *generated = pllm_alloc(cache->context, capacity);
    if (!ids || !generated) {
        pllm_free(cache->context, ids);
        pllm_free(cache->context, generated);
        return pllm_fail_memory("a sequence's tokens", capacity * 5ull);
    }
    if (sequence->id_count) {
        memcpy(ids, sequence->ids, sequence->id_count * sizeof *ids);
        memcpy(generated, sequence->generated, sequence->id_count);
    }
    pllm_free(cache->context, sequence->ids);
    pllm_free(cache->context, sequence->generated);
    sequence->ids = ids;
    sequence->generated = generated;
    sequence->id_capacity = capacity;
    return PLLM_OK;
}

int pllm_kv_sequence_fork(pllm_kv_cache *cache, const pllm_sequence *from,
                          pllm_sequence **sequence_out)
{
    pllm_sequence *sequence;
    int status = pllm_kv_sequence_open(cache, &sequence);
    if (status < 0) return status;
    status = pllm_kv_sequence_reserve(cache, sequence, from->id_count);
    if (status < 0) {
        pllm_kv_sequence_close(cache, sequence);
        return status;
    }
    if (from->id_count) {
        memcpy(sequence->ids, from->ids, from->id_count * sizeof *from->ids);
        memcpy(sequence->generated, from->generated, from->id_count);
    }
    sequence->id_count = from->id_count;
    sequence->length = from->length;
    sequence->group_count = from->group_count;
    for (uint32_t i = 0; i < from->group_count; i++) {
        sequence->groups[i] = from->groups[i];
        cache->group_references[from->groups[i]]++;
    }
    *sequence_out = sequence;
    return PLLM_OK;
}

void pllm_kv_sequence_truncate(pllm_kv_cache *cache, pllm_sequence *sequence, uint32_t token_count)
{
    if (token_count >= sequence->id_count) return;
    sequence->id_count = token_count;
    if (token_count >= sequence->length) return;
    uint32_t groups = token_count / PLLM_BLOCK_TOKENS;
    int cuts_sealed = groups < sequence->group_count;
    while (sequence->group_count > groups)
        pllm_kv_group_release(cache, sequence->groups[--sequence->group_count]);
    /* The rows of a sealed block are gone or quantised: they are computed again. */
    sequence->length = cuts_sealed ? groups * PLLM_BLOCK_TOKENS : token_count;
}

void pllm_kv_cache_check(const pllm_kv_cache *cache, const pllm_sequence *first)
{
    uint32_t used = 0;
    for (uint32_t group = 0; group < cache->group_max; group++) {
        uint32_t references = 0;
        for (const pllm_sequence *s = first; s; s = s->next)
            for (uint32_t i = 0; i < s->group_count; i++) references += s->groups[i] == group;
        assert(references == cache->group_references[group]); /* 3 */
        used += references > 0;
        if (references == 0) assert(pllm_kv_page(cache, group, 0) == PLLM_NONE); /* 4 */
    }
    assert(used + cache->free_group_count == cache->group_max);
    for (const pllm_sequence *s = first; s; s = s->next) {
        assert(s->group_count == s->length / PLLM_BLOCK_TOKENS); /* 1 */
        assert(s->length <= s->id_count);                        /* 2 */
    }
    (void)used;
}
