/* text_index.c - linear probing; nothing is ever removed. */
#include <string.h>
#include <xxhash.h>
#include "model/text_index.h"

int pllm_text_index_init(const pllm_context *context, pllm_text_index *index, uint64_t count_max,
                         pllm_text_at text_at, const void *owner)
{
    uint64_t slot_count = 8;
    while (slot_count < count_max * 2) slot_count *= 2; /* count_max is below 2^32 */
    index->slots = pllm_alloc_array(context, slot_count, sizeof *index->slots);
    if (!index->slots) return pllm_fail_memory("a name index", slot_count * sizeof *index->slots);
    memset(index->slots, 0xff, slot_count * sizeof *index->slots);
    index->slot_mask = slot_count - 1;
    index->text_at = text_at;
    index->owner = owner;
    return PLLM_OK;
}

void pllm_text_index_deinit(const pllm_context *context, pllm_text_index *index)
{
    pllm_free(context, index->slots);
    *index = (pllm_text_index){0};
}

static uint64_t slot_of(const pllm_text_index *index, const void *text, uint64_t bytes)
{
    uint64_t slot = XXH3_64bits(text, bytes) & index->slot_mask;
    for (; index->slots[slot] != PLLM_TEXT_NONE; slot = (slot + 1) & index->slot_mask) {
        uint64_t other_bytes;
        const char *other = index->text_at(index->owner, index->slots[slot], &other_bytes);
        if (other_bytes == bytes && memcmp(other, text, bytes) == 0) break;
    }
    return slot;
}

uint32_t pllm_text_index_add(pllm_text_index *index, uint32_t number)
{
    uint64_t bytes;
    const char *text = index->text_at(index->owner, number, &bytes);
    uint64_t slot = slot_of(index, text, bytes);
    if (index->slots[slot] != PLLM_TEXT_NONE) return index->slots[slot];
    index->slots[slot] = number;
    return PLLM_TEXT_NONE;
}

uint32_t pllm_text_index_find(const pllm_text_index *index, const void *text, uint64_t bytes)
{
    if (!index->slots) return PLLM_TEXT_NONE;
    return index->slots[slot_of(index, text, bytes)];
}
