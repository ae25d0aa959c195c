/* engine_internal.h - what the files of the engine share: the engine itself, and one pass.
 *
 * A step is cut into passes; a pass is up to 256 prompt rows (each sequence's within one aligned
 * tile of 256 positions) and one generated row for each sequence, run through every layer at once.
 *
 * Memory picture of the device bytes:
 *   | workspace: rows, prepared rows, scores, logits | open blocks | frames of sealed blocks ... |
 *   the first two are fixed when the engine opens; frames are what kv_limit and vram_limit vary. */
#ifndef PLLM_ENGINE_ENGINE_INTERNAL_H
#define PLLM_ENGINE_ENGINE_INTERNAL_H

#include <stdatomic.h>
#include "engine/executor.h"
#include "engine/kv_cache.h"
#include "engine/weights.h"
#include "kernels/attention.h"
#include "kernels/kv_summary.h"
#include "kernels/sample.h"
#include "model/chat_template.h"
#include "model/tokenizer.h"
#include "vmm/share.h"

enum {
    TILE_ROWS = 256, /* the host's prompt tiles are aligned to this; equals PLLM_CHUNK_TOKENS */
    LOGIT_ROWS = 16, /* rows of logits computed together */
    LOGITS_ALL = 2,  /* of pllm_step_item.logits */
    LOGITS_NEXT = 3,
    PRIVATE_ROWS = 2, /* up to this many rows, each thread prepares them for itself */
};

/* One sequence's rows in a pass. */
typedef struct pass_item {
    pllm_sequence *sequence;
    uint32_t step_item;              /* index in the caller's items */
    uint32_t decode;                 /* 1: one generated row; 0: prompt rows of one tile */
    uint32_t start, rows, row_first; /* positions [start, start + rows) are rows row_first... */
    uint32_t logits_from;            /* rows from here on (relative) want logits; rows: none */
    uint32_t *new_groups, new_count; /* blocks this pass seals; room for row_max / 32 + 1 */
    uint32_t stage_first;            /* prompt: first of its staging blocks */
    /* The host executor's: attention of the current layer; thread 0 only. */
    uint32_t chunk_count, chunks_left, chunk_next;
    uint8_t *chunk_taken; /* [chunk_max], decode */
    void **views;         /* [block_max]: where pinned blocks are */
} pass_item;

/* Chunks whose blocks are pinned and can be attended now. */
typedef struct wave_entry {
    uint32_t item, chunk_first, chunk_end, task_first;
} wave_entry;
typedef struct attention_wave {
    wave_entry *entries;
    uint32_t entry_count, task_count;
    pllm_page *pinned;
    uint32_t pinned_count;
    int last; /* nothing is left after it in this layer */
} attention_wave;

/* Memory of one thread. */
typedef struct thread_space {
    void *attention;                    /* kernels' scratch */
    float *row;                         /* [row_elements]: a normed row, or a rotated q and k */
    pllm_activations width, heads, ffn; /* PRIVATE_ROWS rows each */
} thread_space;

typedef struct pllm_pass {
    pllm_engine *engine;
    pass_item *items;
    uint32_t item_count, row_count, prompt_items, stage_used;
    uint32_t *row_ids, *row_positions; /* [row_max] */
    uint32_t *logit_rows, *logit_items, *logit_positions, logit_count;
    uint32_t layer;
    uint32_t failed_item; /* whose blocks could not be had, or PLLM_NONE */
    pllm_step_item *step_items;
    pllm_logits_sink sink;
    void *sink_user;
    /* The host executor's. */
    attention_wave waves[2];
    atomic_uint *merges_left; /* [sequence_max][kv_heads] */
    int status;               /* thread 0 only */
    int verdict[2];           /* published at barriers */
} pllm_pass;

/* The host executor: every thread of the team runs the same body. */
typedef struct pllm_host_state {
    const pllm_kernels *kernels;
    pllm_weights weights;
    pllm_kv_shape head_shape; /* one KV head of cache.shape */

    /* In the workspace. Strides are the natural ones. */
    float *x, *y;                 /* [row_max][width] */
    float *q, *attended;          /* [row_max][heads * head_dim] */
    float *k, *v;                 /* [row_max][kv_heads * head_dim] */
    float *gate, *up;             /* [row_max][ffn] */
    float *cosine, *sine;         /* [row_max][rope.dims / 2] */
    float *partials;              /* [sequence_max][chunk_max][partial_stride] */
    float *state_max, *state_sum; /* [stage_max][kv_heads][32][group] */
    float *state_out;             /* [stage_max][kv_heads][32][group][head_dim] */
    char *stage;                  /* [stage_max] open blocks */
    float *logits;                /* [LOGIT_ROWS][vocab] */
    pllm_activations act_width, act_heads, act_ffn;
    thread_space *spaces; /* [threads] */
    uint32_t partial_stride;
} pllm_host_state;

typedef struct pllm_cuda_state pllm_cuda_state; /* cuda/cuda_state.h */

struct pllm_engine {
    const pllm_context *context;
    pllm_engine_options options;
    pllm_model *model;
    pllm_tokenizer *tokenizer; /* NULL: the model carries none */
    uint32_t has_chat_template;
    pllm_device *device;
    int device_borrowed;
    pllm_disk *disk; /* given, and not yet taken over by the tiers */
    pllm_budget *budget;
    pllm_share
        *share; /* of a ledger; NULL: none. Every public call that touches memory is inside */
    uint64_t limit_bytes; /* vram_limit, and what a ledger could ever leave it: to plan with */
    pllm_threads *threads;
    pllm_compute compute;
    pllm_model_shape shape;
    const pllm_executor *executor;
    pllm_host_state *host; /* NULL on other devices; likewise: */
    pllm_cuda_state *cuda;
    pllm_pager *pager;
    pllm_kv_cache cache;
    pllm_workspace *workspace, *open_space;
    pllm_workspace *summaries; /* NULL, or [group_max][layers]: see pllm_summary_va */
    pllm_sequence *sequences;
    uint32_t sequence_count;
    float *inverse_frequency;   /* [rope.dims / 2] */
    pllm_candidate *candidates; /* [vocab_size], once a step samples */
    uint32_t context_max;       /* tokens a sequence may hold */
    uint32_t row_max, chunk_max, stage_max;
    uint32_t tile_rows; /* prompt rows of one pass, cut at multiples of this */

    pllm_pass pass;
    uint64_t scan_signature;
    uint64_t fixed_bytes, least_kv_bytes, least_vram_bytes;
    uint64_t prompt_tokens, generated_tokens, prefill_ns, decode_ns, steps, lost_pages;
};

/* Key summaries (kernels/kv_summary.h) of all blocks there can be; 0: the option is off. */
static inline uint64_t pllm_summaries_bytes(const pllm_engine *engine)
{
    if (!engine->options.key_summaries) return 0;
    return (uint64_t)engine->cache.group_max * engine->shape.layer_count *
           pllm_kv_summary_bytes(&engine->cache.shape);
}
/* Numbers of summaries: a group's are neighbours, so they are shared, cut and used again as the
 * group is. Written when the block is sealed, read by nobody before. */
static inline uint32_t pllm_summary_index(const pllm_engine *engine, uint32_t group, uint32_t layer)
{
    return group * engine->shape.layer_count + layer;
}
static inline pllm_va pllm_summary_va(const pllm_engine *engine, uint32_t group, uint32_t layer)
{
    return pllm_workspace_va(engine->summaries) +
           (uint64_t)pllm_summary_index(engine, group, layer) *
               pllm_kv_summary_bytes(&engine->cache.shape);
}

/* Keeps token_count tokens; blocks that the executor holds resident are let go first. */
void pllm_sequence_cut(pllm_sequence *sequence, uint32_t token_count);

/* pass.c: what any executor's pass needs, row_max rows of it. */
int pllm_pass_init(pllm_engine *engine);
void pllm_pass_deinit(pllm_engine *engine);
/* The group of an item's sealed block, of those this pass seals too; its page in pass->layer. */
uint32_t pllm_pass_group(const pass_item *item, uint32_t block);
pllm_page pllm_pass_page(const pllm_pass *pass, const pass_item *item, uint32_t block);

/* Hands row `index` of the pass's logits to the sink, or takes from it what the item wants. Returns
 * OK or ECANCELED. */
int pllm_pass_deliver(pllm_pass *pass, uint32_t index, const float *logits);

/* workspace.c: lays the host executor's buffers out. With base NULL only counts; returns bytes. */
uint64_t pllm_host_layout(pllm_engine *engine, char *base);
/* Host tables of attention. */
int pllm_host_pass_init(pllm_engine *engine);
void pllm_host_pass_deinit(pllm_engine *engine);
/* forward.c */
int pllm_host_forward(pllm_engine *engine);

/* Barrier that also carries thread 0's status; non-zero: every thread leaves. */
typedef struct pass_thread {
    pllm_pass *pass;
    uint32_t index, syncs;
} pass_thread;
int pllm_pass_sync(pass_thread *thread);

/* attend.c: one layer's attention for every item, from q, k, v to attended. */
int pllm_attend(pass_thread *thread);
void pllm_attend_plan_first(pllm_pass *pass); /* thread 0, before the barrier that ends q, k, v */
/* sampler.c */
int pllm_sampling_check(const pllm_sampling *sampling);
uint64_t pllm_sampling_draw(uint64_t *seed_state); /* the next 64 random bits */

#endif
