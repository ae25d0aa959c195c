/* store_moves.h - spills and restores of the store's memory that are waited for, for tests that are
 * about what they do and not about when. */
#ifndef PLLM_TESTS_STORE_MOVES_H
#define PLLM_TESTS_STORE_MOVES_H

#include "store/memory.h"

static inline int spill_now(pllm_store_memory *memory, pllm_store_block *block)
{
    int status = pllm_store_memory_spill(memory, block);
    return status == 1 ? pllm_store_memory_settle(memory, block) : status;
}

static inline int restore_now(pllm_store_memory *memory, pllm_store_block *block)
{
    int status = pllm_store_memory_restore(memory, block);
    return status == 1 ? pllm_store_memory_settle(memory, block) : status;
}

#endif
