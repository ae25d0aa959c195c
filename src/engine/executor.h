/* executor.h - what runs a pass on one kind of device: the host's threads, or a GPU's streams.
 *
 * The engine above it (sequences, steps, limits, blocks) is one; an executor owns the weights and
 * buffers of its device and turns a filled-in pass into rows of logits.
 *
 * Life: plan (says what memory it wants; nothing large is allocated) -> the engine opens budget,
 * workspace, open blocks and pager -> open (places buffers, loads weights) -> forward ... -> close,
 * also after a plan or open that failed. */
#ifndef PLLM_ENGINE_EXECUTOR_H
#define PLLM_ENGINE_EXECUTOR_H

#include <pagedllm/engine.h>

typedef struct pllm_executor_needs {
    uint64_t workspace_bytes;  /* one mapped block, engine->workspace */
    uint64_t weight_bytes;     /* the least it charges to the budget for weights */
    uint64_t transient_bytes;  /* what it takes from the budget for a while, and gives back */
    uint64_t outside_bytes;    /* device bytes that no budget sees: a context, code, libraries */
    uint64_t budget_max_bytes; /* an unlimited engine takes no more than this; 0: any */
    uint32_t least_frames;     /* of sealed blocks, without which a pass cannot run */
    uint64_t host_slab_bytes;  /* how the tiers allocate host memory: see tiers.h */
    uint32_t host_at_once;
    uint32_t extra_pages; /* of the pager, besides the blocks of all sequences */
} pllm_executor_needs;

typedef struct pllm_executor {
    int brings_blocks; /* it decides itself which blocks come when: the pager prefetches nothing */
    /* Sets row_max, tile_rows and stage_max of the engine, and says what it needs. Limits and
     * shape are known, the device is open. */
    int (*plan)(pllm_engine *engine, pllm_executor_needs *needs_out);
    int (*open)(pllm_engine *engine);
    void (*close)(pllm_engine *engine);
    /* Runs engine->pass through every layer and hands its logits to the sink. */
    int (*forward)(pllm_engine *engine);
    /* Between steps. Copies the open blocks of one slot to another, in every layer. */
    int (*copy_open)(pllm_engine *engine, uint32_t from_slot, uint32_t to_slot);
    /* Lets go of blocks it keeps resident, so that they can be evicted; NULL: it keeps none.
     * sequence NULL: all. */
    void (*let_go)(pllm_engine *engine, pllm_sequence *sequence);
    /* Sealed blocks of a layer that the prompts of one pass may read and make between them, when
     * they are several; NULL: any number. */
    uint32_t (*prompt_blocks)(const pllm_engine *engine);
    /* Fills weight_bytes, compute and kernels. */
    void (*info)(const pllm_engine *engine, pllm_engine_info *info);
    /* Fills what it alone counts; NULL: nothing. */
    void (*stats)(const pllm_engine *engine, pllm_engine_stats *stats);
} pllm_executor;

extern const pllm_executor pllm_host_executor;
extern const pllm_executor pllm_cuda_executor;

#endif
