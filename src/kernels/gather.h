/* gather.h - many small copies between strided places as one call: slices out of blocks, blocks
 * between a host tier and the arena. Pure; ranges of one call must not overlap. */
#ifndef PLLM_KERNELS_GATHER_H
#define PLLM_KERNELS_GATHER_H

#include <stdint.h>

typedef struct pllm_gather_item {
    void *dst;
    const void *src;
    uint64_t bytes;
} pllm_gather_item;

/* Plain copies: what was copied is in the cache afterwards. */
void pllm_gather(const pllm_gather_item *items, uint64_t item_count);
/* Past the cache: for data that is not read soon, or larger than the cache. Ends with a store
 * fence, so that another thread that is told afterwards sees the data. */
void pllm_gather_stream(const pllm_gather_item *items, uint64_t item_count);

#endif
