/* workspace.c - where the host executor's buffers lie in the workspace, and the tables beside them.
 */
#include <string.h>
#include "engine/engine_internal.h"

typedef struct workspace_layout {
    char *base; /* NULL: count only */
    uint64_t used;
} workspace_layout;

static void *take(workspace_layout *layout, uint64_t bytes)
{
    void *at = layout->base ? layout->base + layout->used : NULL;
    layout->used += (bytes + 63) / 64 * 64;
    return at;
}

static float *take_floats(workspace_layout *layout, uint64_t count)
{
    return take(layout, count * sizeof(float));
}

static void take_activations(workspace_layout *layout, pllm_activations *activations, uint32_t rows,
                             uint32_t k)
{
    void *memory = take(layout, pllm_activations_bytes(rows, k));
    if (memory) pllm_activations_place(activations, memory, rows, k);
}

uint64_t pllm_host_layout(pllm_engine *engine, char *base)
{
    const pllm_model_shape *s = &engine->shape;
    workspace_layout at = {.base = base};
    uint64_t rows = engine->row_max, heads = (uint64_t)s->head_count * s->head_dim;
    uint64_t kv = (uint64_t)s->kv_head_count * s->head_dim;
    uint64_t group = s->head_count / s->kv_head_count;
    engine->host->partial_stride = s->head_count * (s->head_dim + 2);
    engine->host->x = take_floats(&at, rows * s->width);
    engine->host->y = take_floats(&at, (rows > LOGIT_ROWS ? rows : LOGIT_ROWS) * s->width);
    engine->host->q = take_floats(&at, rows * heads);
    engine->host->attended = take_floats(&at, rows * heads);
    engine->host->k = take_floats(&at, rows * kv);
    engine->host->v = take_floats(&at, rows * kv);
    engine->host->gate = take_floats(&at, rows * s->ffn_width);
    engine->host->up = take_floats(&at, rows * s->ffn_width);
    engine->host->cosine = take_floats(&at, rows * (s->rope.dims / 2));
    engine->host->sine = take_floats(&at, rows * (s->rope.dims / 2));
    engine->host->partials = take_floats(&at, (uint64_t)engine->cache.sequence_max *
                                                  engine->chunk_max * engine->host->partial_stride);
    uint64_t states = (uint64_t)engine->stage_max * s->kv_head_count * PLLM_BLOCK_TOKENS * group;
    engine->host->state_max = take_floats(&at, states);
    engine->host->state_sum = take_floats(&at, states);
    engine->host->state_out = take_floats(&at, states * s->head_dim);
    engine->host->stage =
        take(&at, engine->stage_max *
                      pllm_kv_block_bytes(&engine->cache.shape, engine->cache.shape.open));
    engine->host->logits = take_floats(&at, (uint64_t)LOGIT_ROWS * s->vocab_size);
    uint32_t shared = engine->row_max > LOGIT_ROWS ? engine->row_max : LOGIT_ROWS;
    take_activations(&at, &engine->host->act_width, shared, s->width);
    take_activations(&at, &engine->host->act_heads, shared, (uint32_t)heads);
    take_activations(&at, &engine->host->act_ffn, shared, s->ffn_width);
    uint64_t row_elements = (group + 1) * s->head_dim;
    if (row_elements < s->width) row_elements = s->width;
    thread_space counting;
    for (uint32_t i = 0; i < pllm_threads_count(engine->threads); i++) {
        thread_space *space = base ? &engine->host->spaces[i] : &counting;
        space->attention = take(&at, pllm_attention_scratch_bytes(s->head_dim));
        space->row = take_floats(&at, row_elements);
        take_activations(&at, &space->width, PRIVATE_ROWS, s->width);
        take_activations(&at, &space->heads, PRIVATE_ROWS, (uint32_t)heads);
        take_activations(&at, &space->ffn, PRIVATE_ROWS, s->ffn_width);
    }
    return at.used;
}

int pllm_host_pass_init(pllm_engine *engine)
{
    const pllm_context *context = engine->context;
    pllm_pass *pass = &engine->pass;
    uint32_t sequences = engine->cache.sequence_max, blocks = engine->cache.block_max;
    uint64_t entries = (uint64_t)sequences * engine->chunk_max;
    pass->merges_left = pllm_alloc_array(context, (uint64_t)sequences * engine->shape.kv_head_count,
                                         sizeof *pass->merges_left);
    int complete = pass->merges_left != NULL;
    for (int i = 0; i < 2; i++) {
        pass->waves[i].entries = pllm_alloc_array(context, entries, sizeof(wave_entry));
        pass->waves[i].pinned =
            pllm_alloc_array(context, (uint64_t)sequences * blocks, sizeof(pllm_page));
        complete = complete && pass->waves[i].entries && pass->waves[i].pinned;
    }
    for (uint32_t i = 0; complete && i < sequences; i++) {
        pass->items[i].chunk_taken = pllm_alloc(context, engine->chunk_max);
        pass->items[i].views = pllm_alloc_array(context, blocks, sizeof(void *));
        complete = pass->items[i].chunk_taken && pass->items[i].views;
    }
    return complete ? PLLM_OK
                    : pllm_fail_memory("the tables of a pass", entries * sizeof(wave_entry));
}

void pllm_host_pass_deinit(pllm_engine *engine)
{
    const pllm_context *context = engine->context;
    pllm_pass *pass = &engine->pass;
    for (uint32_t i = 0; pass->items && i < engine->cache.sequence_max; i++) {
        pllm_free(context, pass->items[i].chunk_taken);
        pllm_free(context, pass->items[i].views);
    }
    for (int i = 0; i < 2; i++) {
        pllm_free(context, pass->waves[i].entries);
        pllm_free(context, pass->waves[i].pinned);
    }
    pllm_free(context, (void *)pass->merges_left);
}
