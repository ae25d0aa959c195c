/* bpe.h - byte-pair merging: a table of ranked merges, and the merging of one word.
 *
 * Of all adjacent pairs that the table knows, the one with the lowest rank is merged, the leftmost
 * among equals, until no pair is known. Source: Sennrich, Haddow and Birch, "Neural Machine
 * Translation of Rare Words with Subword Units", 2016; byte level as in GPT-2. */
#ifndef PLLM_MODEL_BPE_H
#define PLLM_MODEL_BPE_H

#include "base/context.h"

typedef struct pllm_bpe_merge {
    uint64_t pair; /* left id << 32 | right id; UINT64_MAX: empty slot */
    uint32_t rank, merged;
} pllm_bpe_merge;

typedef struct pllm_bpe {
    pllm_bpe_merge *slots; /* open addressing, load at most one half */
    uint64_t slot_mask;
} pllm_bpe;

/* Arrays for merging long words, grown on demand; zero-initialise, one a thread. */
typedef struct pllm_bpe_scratch {
    void *memory;
    uint64_t bytes;
} pllm_bpe_scratch;

int pllm_bpe_init(const pllm_context *context, pllm_bpe *bpe, uint64_t merge_max);
void pllm_bpe_deinit(const pllm_context *context, pllm_bpe *bpe);
/* At most merge_max times, ranks ascending; a pair that is there already keeps its rank. */
void pllm_bpe_add(pllm_bpe *bpe, uint32_t left, uint32_t right, uint32_t rank, uint32_t merged);

/* Merges ids[0, *count) in place. O(n^2) up to 32 symbols, O(n log n) beyond. Errors: ENOMEM. */
int pllm_bpe_word(const pllm_context *context, const pllm_bpe *bpe, pllm_bpe_scratch *scratch,
                  uint32_t *ids, uint32_t *count);
void pllm_bpe_scratch_deinit(const pllm_context *context, pllm_bpe_scratch *scratch);

/* The two ways, for the test that compares them. short: *count <= 32. */
void pllm_bpe_word_short(const pllm_bpe *bpe, uint32_t *ids, uint32_t *count);
int pllm_bpe_word_long(const pllm_context *context, const pllm_bpe *bpe, pllm_bpe_scratch *scratch,
                       uint32_t *ids, uint32_t *count);

#endif
