/* cuda_executor.c - the CUDA executor's life: what it needs of the device, opening and closing.
 *
 * Device bytes under a limit:
 *
 *   | context, code, libraries | workspace | open blocks | embeddings | layers (+ ring) | KV frames
 * | measured when opening      fixed                                  chosen here       the rest
 *
 * Weights stay whole where the KV cache is left an eighth of what remains; where they do not fit,
 * the KV cache gets what its longest context needs, up to half, and the weights the rest. Either
 * way a byte that does not fit costs the same: its share of the link, once a step.
 *
 * Prompts pass the layers in tiles of PREFILL_TILE rows. Where everything fits a pass is one tile;
 * otherwise a pass takes as many rows as an eighth of the device holds of the residual stream. */
#include <math.h>
#include <string.h>
#include "engine/cuda/cuda_state.h"

enum {
    OUTSIDE_SLACK = 64 << 20,  /* code that libraries load when first called */
    OUTSIDE_GUESS = 608 << 20, /* where nothing measures it */
    FREE_SLACK = 256 << 20,    /* of an unlimited engine: left to others */
    WAVE_ARGS_MAX = 4 << 20,   /* u32 */
    HOST_SLAB_BYTES = 256 << 20,
};

static void choose_formats(pllm_engine *engine)
{
    pllm_cuda_state *state = engine->cuda;
    const pllm_model_shape *s = &engine->shape;
    const pllm_kv_cache *cache = &engine->cache;
    int all_f16 = 1, all_f32 = 1;
    for (uint32_t i = 0; i < s->layer_count; i++) {
        const pllm_layer_tensors *t = pllm_model_layer(engine->model, i);
        const pllm_dtype dtypes[] = {t->q.dtype,    t->k.dtype,  t->v.dtype,   t->o.dtype,
                                     t->gate.dtype, t->up.dtype, t->down.dtype};
        for (size_t j = 0; j < sizeof dtypes / sizeof dtypes[0]; j++) {
            all_f16 &= dtypes[j] == PLLM_F16;
            all_f32 &= dtypes[j] == PLLM_F32;
        }
    }
    state->compute_f32 =
        engine->compute == PLLM_COMPUTE_F32 || (engine->compute == PLLM_COMPUTE_AUTO && all_f32);
    state->act = state->compute_f32 ? PLLM_F32 : all_f16 ? PLLM_F16 : PLLM_BF16;
    state->quantised = cache->shape.sealed != cache->shape.open;
    state->qkv_width = (s->head_count + 2 * s->kv_head_count) * s->head_dim;
    state->kv = (pllm_cuda_kv){.shape = cache->shape,
                               .heads = s->head_count,
                               .scale = 1.0f / sqrtf((float)s->head_dim),
                               .frame_bytes = cache->sealed_bytes,
                               .open_bytes = cache->open_bytes,
                               .layer_count = s->layer_count,
                               .chunk_max = engine->chunk_max};
}

static uint64_t kv_bytes(const pllm_engine *engine) /* of every block there can be */
{
    const pllm_kv_cache *cache = &engine->cache;
    return (uint64_t)cache->group_max * engine->shape.layer_count * cache->sealed_bytes;
}

/* u32 arguments of the largest pass. */
static uint32_t count_args(const pllm_engine *engine)
{
    const pllm_cuda_state *state = engine->cuda;
    uint64_t sequences = engine->cache.sequence_max, layers = engine->shape.layer_count;
    uint64_t waves =
        sequences * engine->cache.block_max / state->blocks.wave_blocks + sequences + 2;
    uint64_t wave_args = (layers * waves + 1) * (2 * sequences + 4);
    if (wave_args > WAVE_ARGS_MAX) wave_args = WAVE_ARGS_MAX;
    uint64_t pairs = layers * (2 * (engine->row_max / PLLM_BLOCK_TOKENS + 2 * sequences + 2) +
                               4 * (engine->row_max / state->tile_rows + sequences + 2));
    if (engine->options.key_summaries) pairs *= 2;
    return (uint32_t)(4 * (sequences + 4) + 4 * (engine->row_max + 4ull) +
                      8ull * state->segment_max + pairs + wave_args +
                      LOGIT_ROWS * sizeof(pllm_sampling) / sizeof(uint32_t));
}

/* Sizes that follow from tile_rows; pass_rows: of a pass, if it may have more than a tile. Returns
 * the bytes of workspace and prompt space. */
static uint64_t set_rows(pllm_engine *engine, uint32_t tile_rows, uint64_t pass_rows)
{
    pllm_cuda_state *state = engine->cuda;
    uint32_t sequences = engine->cache.sequence_max;
    state->tile_rows = engine->tile_rows = tile_rows;
    if (pass_rows > tile_rows) engine->tile_rows = (uint32_t)pass_rows;
    engine->row_max = engine->tile_rows + sequences - 1;
    state->stage_blocks = tile_rows / PLLM_BLOCK_TOKENS + 2 * (sequences + 1);
    engine->stage_max = state->stage_blocks;
    state->segment_max = 2 * sequences + engine->row_max / 64 + 8;
    state->args_max = count_args(engine);
    return pllm_cuda_layout(engine, 0) + pllm_cuda_prompt_layout(engine, 0);
}

/* Rows of a tile and of a pass. available: device bytes for everything the budget sees; others:
 * what cannot be done without besides workspace and prompt space. Where even the fewest rows do not
 * fit they are chosen, so that the least that is then named is enough. */
static void choose_rows(pllm_engine *engine, uint64_t available, uint64_t others)
{
    enum { FEWEST = 128 };
    pllm_cuda_state *state = engine->cuda;
    uint32_t longest = (engine->context_max + 127) / 128 * 128;
    uint32_t tile_rows = longest < PREFILL_TILE ? longest : PREFILL_TILE;
    int fits = state->weights.total_bytes + kv_bytes(engine) + available / 16 <= available;
    uint64_t pass_rows = available / 8 / (engine->shape.width * sizeof(float)) / 128 * 128;
    if (pass_rows > longest) pass_rows = longest;
    if (fits) pass_rows = 0;
    for (;;) {
        uint64_t spaces = set_rows(engine, tile_rows, pass_rows);
        int small = tile_rows <= FEWEST || spaces <= available / 3;
        if (small && spaces + others <= available) return;
        if (tile_rows > FEWEST)
            tile_rows = (tile_rows / 2 + 127) / 128 * 128;
        else if (pass_rows > FEWEST)
            pass_rows = 0;
        else
            return;
    }
}

static int open_kernels(pllm_engine *engine)
{
    pllm_cuda_state *state = engine->cuda;
    int status = pllm_cuda_rows_open(engine->context, engine->device, &state->rows);
    if (status == PLLM_OK)
        status = pllm_cuda_attention_open(engine->context, engine->device, &state->attention);
    if (status == PLLM_OK)
        status = pllm_cuda_prefill_open(engine->context, engine->device, &state->prefill);
    if (status == PLLM_OK && engine->options.key_summaries)
        status = pllm_cuda_summary_open(engine->context, engine->device, &state->summary);
    return status;
}

static int cuda_plan(pllm_engine *engine, pllm_executor_needs *needs_out)
{
    pllm_cuda_state *state = pllm_alloc(engine->context, sizeof *state);
    if (!state) return pllm_fail_memory("the CUDA executor", sizeof *state);
    engine->cuda = state;
    int status = open_kernels(engine);
    if (status < 0) return status;
    choose_formats(engine);
    pllm_executor_needs needs = {0};
    status = pllm_cuda_weights_plan(engine);
    if (status < 0) return status;
    needs.weight_bytes = state->weights.least_bytes;
    uint64_t before, now;
    status = pllm_cuda_memory_used(engine->device, &before, &now);
    needs.outside_bytes =
        status < 0 ? OUTSIDE_GUESS : (now > before ? now - before : 0) + OUTSIDE_SLACK;
    needs.outside_bytes += GRAPH_BYTES;
    pllm_device_info info;
    status = engine->device->ops->info(engine->device, &info);
    if (status < 0) return status;
    uint64_t available = info.free_bytes > FREE_SLACK ? info.free_bytes - FREE_SLACK : 0;
    needs.budget_max_bytes = available;
    if (engine->limit_bytes != PLLM_UNLIMITED) {
        uint64_t limit = engine->limit_bytes > needs.outside_bytes
                             ? engine->limit_bytes - needs.outside_bytes
                             : 0;
        if (limit < available) available = limit;
    }
    uint64_t summaries = pllm_summaries_bytes(engine);
    available -= summaries < available ? summaries : available;
    const pllm_kv_cache *cache = &engine->cache;
    needs.extra_pages = pllm_cuda_blocks_plan(engine);
    /* One layer of the longest context, and what every pass needs. */
    needs.least_frames = pllm_cuda_blocks_least(engine) + cache->block_max;
    if (needs.least_frames > (uint64_t)cache->group_max * engine->shape.layer_count)
        needs.least_frames = cache->group_max * engine->shape.layer_count;
    uint64_t open_bytes =
        (uint64_t)cache->sequence_max * engine->shape.layer_count * cache->open_bytes;
    choose_rows(engine, available,
                needs.weight_bytes + open_bytes + needs.least_frames * cache->sealed_bytes +
                    4 * info.granularity_bytes);
    needs.workspace_bytes = pllm_cuda_layout(engine, 0);
    state->prompt_bytes = pllm_cuda_prompt_layout(engine, 0) + info.granularity_bytes - 1;
    state->prompt_bytes -= state->prompt_bytes % info.granularity_bytes;
    needs.transient_bytes = state->prompt_bytes;
    needs.host_slab_bytes = HOST_SLAB_BYTES;
    needs.host_at_once = 1;
    *needs_out = needs;
    return PLLM_OK;
}

/* What is left of the budget for weights, once the KV cache has its part. */
static uint64_t weight_share(const pllm_engine *engine)
{
    const cuda_weights *weights = &engine->cuda->weights;
    pllm_budget_stats stats;
    pllm_budget_stats_get(engine->budget, &stats);
    uint64_t left = stats.limit_bytes - stats.charged_bytes, kv = kv_bytes(engine);
    left -= left < engine->cuda->prompt_bytes ? left : engine->cuda->prompt_bytes;
    if (engine->options.kv_limit_bytes < kv) kv = engine->options.kv_limit_bytes;
    uint64_t least_kv = engine->least_kv_bytes > left / 8 ? engine->least_kv_bytes : left / 8;
    if (least_kv > kv) least_kv = kv;
    uint64_t granule = 4 * (2 << 20); /* mappings round up */
    if (weights->total_bytes + least_kv + granule <= left) return weights->total_bytes + granule;
    uint64_t kv_part = kv < left / 2 ? kv + granule : left / 2;
    /* What cannot be done without comes first: the limits were checked against both leasts. */
    uint64_t least = engine->cuda->weights.least_bytes;
    if (kv_part > left - least) kv_part = left - least;
    return left - kv_part;
}

static int open_orders(pllm_engine *engine)
{
    pllm_cuda_state *state = engine->cuda;
    const pllm_device_ops *ops = engine->device->ops;
    int status = ops->stream_open(engine->device, &state->compute);
    if (status == PLLM_OK) status = ops->stream_open(engine->device, &state->copies);
    for (int i = 0; status == PLLM_OK && i < 2; i++)
        status = ops->event_open(engine->device, &state->layer_done[i]);
    return status;
}

static int open_tables(pllm_engine *engine)
{
    pllm_cuda_state *state = engine->cuda;
    const pllm_context *context = engine->context;
    const pllm_device_ops *ops = engine->device->ops;
    uint64_t args = state->args_max * 4ull;
    uint64_t logits = (uint64_t)LOGIT_ROWS * engine->shape.vocab_size * sizeof(float);
    void *pinned;
    int status = ops->host_alloc(engine->device, args, &pinned);
    if (status < 0) return pllm_fail_memory("pinned arguments", args);
    state->args = pinned;
    status = ops->host_alloc(engine->device, logits, &pinned);
    if (status < 0) return pllm_fail_memory("pinned logits", logits);
    state->logits_out = pinned;
    state->segments = pllm_alloc_array(context, state->segment_max, sizeof *state->segments);
    state->tiles = pllm_alloc_array(context, state->segment_max, sizeof *state->tiles);
    if (!state->segments || !state->tiles)
        return pllm_fail_memory("the tables of a pass",
                                state->segment_max * sizeof *state->segments);
    return PLLM_OK;
}

static int upload_frequencies(pllm_engine *engine)
{
    pllm_cuda_state *state = engine->cuda;
    const pllm_device_ops *ops = engine->device->ops;
    uint64_t bytes = engine->shape.rope.dims / 2 * sizeof(float);
    if (bytes / 4 > state->args_max)
        return pllm_fail(PLLM_ELIMIT, 0, "%u rotary dimensions are too many",
                         engine->shape.rope.dims);
    memcpy(state->args, engine->inverse_frequency, bytes);
    int status = pllm_cuda_upload(engine, state->frequency, state->args, bytes);
    return status < 0 ? status : ops->stream_sync(engine->device, state->compute);
}

static int cuda_open(pllm_engine *engine)
{
    pllm_cuda_state *state = engine->cuda;
    pllm_cuda_layout(engine, pllm_workspace_va(engine->workspace));
    state->kv.frames = pllm_pager_frame_base(engine->pager);
    state->kv.open = pllm_workspace_va(engine->open_space);
    int status = open_orders(engine);
    if (status == PLLM_OK) status = open_tables(engine);
    if (status == PLLM_OK)
        status = pllm_cuda_linear_open(engine->context, engine->device, state->linear_space,
                                       state->linear_bytes, &state->linear);
    if (status == PLLM_OK) status = upload_frequencies(engine);
    if (status == PLLM_OK) status = pllm_cuda_blocks_open(engine);
    if (status == PLLM_OK) status = pllm_cuda_weights_open(engine, weight_share(engine));
    return status;
}

static void cuda_close(pllm_engine *engine)
{
    pllm_cuda_state *state = engine->cuda;
    if (!state) return;
    pllm_device *device = engine->device;
    const pllm_device_ops *ops = device->ops;
    if (state->copies) ops->stream_sync(device, state->copies);
    if (state->compute) ops->stream_sync(device, state->compute);
    pllm_cuda_graphs_close(engine);
    pllm_cuda_prompt_space_close(engine);
    pllm_cuda_blocks_close(engine);
    pllm_cuda_weights_close(engine);
    pllm_cuda_linear_close(state->linear);
    pllm_cuda_prefill_close(state->prefill);
    pllm_cuda_attention_close(state->attention);
    pllm_cuda_rows_close(state->rows);
    pllm_cuda_summary_close(state->summary);
    ops->event_close(device, state->layer_done[0]);
    ops->event_close(device, state->layer_done[1]);
    ops->stream_close(device, state->copies);
    ops->stream_close(device, state->compute);
    if (state->args) ops->host_free(device, state->args, state->args_max * 4ull);
    if (state->logits_out)
        ops->host_free(device, state->logits_out,
                       (uint64_t)LOGIT_ROWS * engine->shape.vocab_size * sizeof(float));
    pllm_free(engine->context, state->segments);
    pllm_free(engine->context, state->tiles);
    pllm_free(engine->context, state);
    engine->cuda = NULL;
}

static int cuda_copy_open(pllm_engine *engine, uint32_t from_slot, uint32_t to_slot)
{
    pllm_cuda_state *state = engine->cuda;
    const pllm_device_ops *ops = engine->device->ops;
    uint64_t bytes = state->kv.open_bytes * engine->shape.layer_count;
    pllm_copy copy = {.to = state->kv.open + to_slot * bytes,
                      .from = state->kv.open + from_slot * bytes,
                      .bytes = bytes};
    int status = ops->copy(engine->device, state->compute, PLLM_COPY_WITHIN, &copy);
    return status < 0 ? status : ops->stream_sync(engine->device, state->compute);
}

static void cuda_info(const pllm_engine *engine, pllm_engine_info *info)
{
    const pllm_cuda_state *state = engine->cuda;
    info->weight_bytes = state->weights.total_bytes;
    info->compute = pllm_dtype_name(state->act);
    info->kernels = "cuda";
}

static void cuda_stats(const pllm_engine *engine, pllm_engine_stats *stats)
{
    const pllm_cuda_state *state = engine->cuda;
    stats->weight_stream_bytes = state->weights.streamed_bytes;
    stats->kv_stream_bytes = state->blocks.streamed_bytes;
    stats->graph_bytes = state->graphs.bytes;
    stats->graph_count = state->graphs.count;
    stats->weight_resident_bytes = state->weights.total_bytes;
    for (uint32_t i = 0; i < engine->shape.layer_count; i++)
        if (state->weights.streamed[i])
            stats->weight_resident_bytes -= state->weights.layers[i].bytes;
}

const pllm_executor pllm_cuda_executor = {
    .brings_blocks = 1,
    .plan = cuda_plan,
    .open = cuda_open,
    .close = cuda_close,
    .forward = pllm_cuda_forward,
    .copy_open = cuda_copy_open,
    .let_go = pllm_cuda_blocks_let_go,
    .prompt_blocks = pllm_cuda_blocks_of_prompts,
    .info = cuda_info,
    .stats = cuda_stats,
};
