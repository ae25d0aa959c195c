/* text_index.h - byte strings to 32-bit numbers: an open-addressing hash table of fixed size.
 *
 * The table holds no text, only numbers; the owner's text_at says what string a number stands
 * for. That keeps a vocabulary's index at four bytes a slot beside the pieces it already has.
 * XXH3 with a fixed seed: a hostile file could aim for collisions only by breaking XXH3, and then
 * it slows down its own loading. */
#ifndef PLLM_MODEL_TEXT_INDEX_H
#define PLLM_MODEL_TEXT_INDEX_H

#include "base/context.h"

#define PLLM_TEXT_NONE UINT32_MAX

typedef const char *(*pllm_text_at)(const void *owner, uint32_t number, uint64_t *bytes_out);

typedef struct pllm_text_index {
    uint32_t *slots; /* number, or PLLM_TEXT_NONE */
    uint64_t slot_mask;
    pllm_text_at text_at;
    const void *owner;
} pllm_text_index;

/* Room for count_max numbers at a load of at most one half. Errors: ENOMEM. */
int pllm_text_index_init(const pllm_context *context, pllm_text_index *index, uint64_t count_max,
                         pllm_text_at text_at, const void *owner);
void pllm_text_index_deinit(const pllm_context *context, pllm_text_index *index);
/* Returns the number already there for the same text, or PLLM_TEXT_NONE after adding. */
uint32_t pllm_text_index_add(pllm_text_index *index, uint32_t number);
uint32_t pllm_text_index_find(const pllm_text_index *index, const void *text, uint64_t bytes);

#endif
