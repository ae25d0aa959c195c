/* cuda_space.c - where the CUDA executor's buffers lie, and the space of prompts.
 *
 * What generated rows need is small and always there. What prompts need (the residual stream of all
 * their rows, a tile's activations, staging, expanded KV) is large, and of no use between prompts:
 * it is a workspace of its own, opened for the first prompt and closed when a pass of generated
 * rows would have to stream blocks that its memory could hold. To open it again blocks are evicted.
 */
#include "engine/cuda/cuda_state.h"

typedef struct space { /* a bump pointer over device addresses; base 0 only counts */
    pllm_va base;
    uint64_t used;
} space;

static pllm_va take(space *at, uint64_t bytes)
{
    pllm_va va = at->base + at->used;
    at->used += (bytes + 255) / 256 * 256;
    return va;
}

uint64_t pllm_cuda_layout(pllm_engine *engine, pllm_va base)
{
    pllm_cuda_state *state = engine->cuda;
    const pllm_model_shape *s = &engine->shape;
    const pllm_kv_cache *cache = &engine->cache;
    space at = {.base = base};
    uint64_t decode = cache->sequence_max, wide = 2ull * s->ffn_width;
    uint64_t heads = (uint64_t)s->head_count * s->head_dim;
    state->x = take(&at, decode * s->width * 4);
    state->y = take(&at, (uint64_t)LOGIT_ROWS * s->width * 4);
    state->logits = take(&at, (uint64_t)LOGIT_ROWS * s->vocab_size * 4);
    state->d_qkv = take(&at, decode * state->qkv_width * 4);
    state->d_q = take(&at, decode * heads * 4);
    state->d_attended = take(&at, decode * heads * 4);
    state->d_gate_up = take(&at, decode * wide * 4);
    state->d_gate = take(&at, decode * s->ffn_width * 4);
    state->partials = take(&at, pllm_cuda_attention_partial_bytes(&state->kv, (uint32_t)decode));
    state->frequency = take(&at, s->rope.dims / 2 * 4ull);
    state->tables = take(&at, (uint64_t)s->layer_count * decode * cache->block_max * 4);
    state->args_va = take(&at, (uint64_t)state->args_max * 4);
    state->linear_bytes = pllm_cuda_linear_workspace_bytes();
    state->linear_space = take(&at, state->linear_bytes);
    return at.used;
}

uint64_t pllm_cuda_prompt_layout(pllm_engine *engine, pllm_va base)
{
    pllm_cuda_state *state = engine->cuda;
    const pllm_model_shape *s = &engine->shape;
    const pllm_kv_cache *cache = &engine->cache;
    space at = {.base = base};
    uint64_t tile = state->tile_rows, heads = (uint64_t)s->head_count * s->head_dim;
    uint64_t wide = 2ull * s->ffn_width;
    uint64_t element = state->act == PLLM_F32 ? 4 : 2;
    uint64_t open_element = cache->shape.open == PLLM_F32 ? 4 : 2;
    state->p_x = take(&at, (uint64_t)engine->tile_rows * s->width * 4);
    state->p_normed = take(&at, tile * s->width * element);
    state->p_qkv = take(&at, tile * state->qkv_width * element);
    state->p_q = take(&at, tile * heads * open_element);
    state->p_attended = take(&at, tile * heads * element);
    state->p_gate_up = take(&at, tile * wide * element);
    state->p_gate = take(&at, tile * s->ffn_width * element);
    state->stage = take(&at, state->stage_blocks * state->kv.open_bytes);
    if (state->quantised) {
        state->expanded = take(&at, cache->block_max * state->kv.open_bytes);
        state->identity = take(&at, cache->block_max * 4ull);
    }
    return at.used;
}

int pllm_cuda_upload(pllm_engine *engine, pllm_va to, const void *from, uint64_t bytes)
{
    pllm_copy copy = {.to = to, .from = (uintptr_t)from, .bytes = bytes};
    if (bytes == 0) return PLLM_OK;
    return engine->device->ops->copy(engine->device, engine->cuda->compute, PLLM_COPY_IN, &copy);
}

static int open_now(pllm_engine *engine)
{
    pllm_cuda_state *state = engine->cuda;
    return pllm_workspace_open(engine->context, engine->device, engine->budget, "prompts",
                               state->prompt_bytes, &state->prompt_space);
}

/* Frames give way: down to what leaves room, and then whatever the limit says again. */
static int evict_for_it(pllm_engine *engine)
{
    pllm_cuda_state *state = engine->cuda;
    enum { ROUNDING = 64 << 20 };
    pllm_budget_stats budget;
    pllm_budget_stats_get(engine->budget, &budget);
    uint64_t others =
        pllm_workspace_bytes(engine->workspace) + pllm_workspace_bytes(engine->open_space) +
        pllm_workspace_bytes(state->weights.fixed) + pllm_workspace_bytes(state->weights.space) +
        (engine->summaries ? pllm_workspace_bytes(engine->summaries) : 0);
    uint64_t frames = budget.charged_bytes - others;
    uint64_t room = budget.limit_bytes - budget.charged_bytes;
    /* With room in the budget it is the device that is full: others took what was free. */
    uint64_t need = state->prompt_bytes - (room < state->prompt_bytes ? room : 0);
    if (need < frames / 2) need += ROUNDING;
    pllm_cuda_blocks_let_go(engine, NULL);
    int status = pllm_pager_set_device_limit(engine->pager, need < frames ? frames - need : 0);
    if (status == PLLM_OK) status = open_now(engine);
    uint64_t limit = engine->options.kv_limit_bytes;
    if (limit != PLLM_UNLIMITED) limit -= pllm_workspace_bytes(engine->open_space);
    int restored = pllm_pager_set_device_limit(engine->pager, limit);
    return status < 0 ? status : restored;
}

static int upload_identity(pllm_engine *engine)
{
    pllm_cuda_state *state = engine->cuda;
    const pllm_device_ops *ops = engine->device->ops;
    uint32_t blocks = engine->cache.block_max;
    if (!state->quantised) return PLLM_OK;
    if (blocks > state->args_max)
        return pllm_fail(PLLM_ELIMIT, 0, "%u blocks a sequence are too many", blocks);
    for (uint32_t i = 0; i < blocks; i++) state->args[i] = i;
    int status = pllm_cuda_upload(engine, state->identity, state->args, blocks * 4ull);
    return status < 0 ? status : ops->stream_sync(engine->device, state->compute);
}

int pllm_cuda_prompt_space_open(pllm_engine *engine)
{
    pllm_cuda_state *state = engine->cuda;
    if (state->prompt_space) return PLLM_OK;
    int status = open_now(engine);
    if (status == PLLM_ENODEVMEM) status = evict_for_it(engine);
    if (status < 0) return status;
    pllm_cuda_prompt_layout(engine, pllm_workspace_va(state->prompt_space));
    status = upload_identity(engine);
    if (status < 0) pllm_cuda_prompt_space_close(engine);
    return status;
}

void pllm_cuda_prompt_space_close(pllm_engine *engine)
{
    pllm_workspace_close(engine->cuda->prompt_space);
    engine->cuda->prompt_space = NULL;
}
