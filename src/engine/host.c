/* host.c - the host executor: its life, and what it tells about itself. See forward.c. */
#include <string.h>
#include "engine/engine_internal.h"

static uint64_t round_up(uint64_t bytes, uint64_t unit)
{
    return (bytes + unit - 1) / unit * unit;
}

static int host_plan(pllm_engine *engine, pllm_executor_needs *needs_out)
{
    const pllm_engine_options *o = &engine->options;
    pllm_host_state *host = pllm_alloc(engine->context, sizeof *host);
    if (!host) return pllm_fail_memory("the host executor", sizeof *host);
    engine->host = host;
    host->kernels = pllm_kernels_best();
    host->head_shape = engine->cache.shape;
    host->head_shape.kv_heads = 1;
    uint32_t threads = pllm_threads_count(engine->threads);
    host->spaces = pllm_alloc_array(engine->context, threads, sizeof *host->spaces);
    if (!host->spaces) return pllm_fail_memory("thread spaces", threads * sizeof *host->spaces);
    engine->tile_rows = TILE_ROWS;
    engine->row_max = TILE_ROWS + o->sequence_max - 1;
    /* Tiles of several sequences in one pass: n rows touch at most n / 32 + 2 blocks, and 8. */
    engine->stage_max =
        o->sequence_max == 1 ? PLLM_CHUNK_BLOCKS : PLLM_CHUNK_BLOCKS + 2 * o->sequence_max;
    int status = pllm_weights_plan(&host->weights, engine->context, engine->model, engine->compute);
    if (status < 0) return status;
    pllm_device_info info;
    status = engine->device->ops->info(engine->device, &info);
    if (status < 0) return status;
    *needs_out = (pllm_executor_needs){
        .workspace_bytes = pllm_host_layout(engine, NULL),
        .weight_bytes = round_up(host->weights.least_bytes, info.granularity_bytes),
        .least_frames = PLLM_CHUNK_BLOCKS};
    return PLLM_OK;
}

/* What is left of the budget for weights, once the KV cache has its part: all weights where the KV
 * cache is left an eighth; where they do not fit, the KV cache gets what its longest context needs,
 * up to half. Either way a byte that does not fit costs the same: its copy, once a step. */
static int weight_share(const pllm_engine *engine, uint64_t *bytes_out)
{
    *bytes_out = UINT64_MAX;
    if (engine->limit_bytes == PLLM_UNLIMITED) return PLLM_OK;
    const pllm_weights *weights = &engine->host->weights;
    pllm_device_info info;
    int status = engine->device->ops->info(engine->device, &info);
    if (status < 0) return status;
    pllm_budget_stats stats;
    pllm_budget_stats_get(engine->budget, &stats);
    uint64_t granule = info.granularity_bytes;
    uint64_t open = pllm_workspace_bytes(engine->open_space);
    uint64_t left = stats.limit_bytes - stats.charged_bytes;
    uint64_t least_kv = engine->least_kv_bytes - open;
    uint64_t least = round_up(weights->least_bytes, granule);
    uint64_t all = round_up(weights->total_bytes, granule);
    /* Every block there can be; chunks of frames round up. */
    uint64_t kv =
        (uint64_t)engine->cache.group_max * engine->shape.layer_count * engine->cache.sealed_bytes;
    if (kv > engine->options.kv_limit_bytes - open) kv = engine->options.kv_limit_bytes - open;
    kv = round_up(kv > least_kv ? kv : least_kv, granule) + info.chunk_bytes;
    least_kv += info.chunk_bytes;
    uint64_t eighth = left / 8 < kv ? left / 8 : kv;
    if (eighth < least_kv) eighth = least_kv;
    uint64_t half = left / 2 < kv ? left / 2 : kv;
    if (half < least_kv) half = least_kv;
    uint64_t share = left > half ? left - half : 0;
    if (left > eighth && all <= left - eighth) share = all;
    if (share < least) share = least;
    *bytes_out = share - share % granule;
    return PLLM_OK;
}

static int host_open(pllm_engine *engine)
{
    pllm_device *device = engine->device;
    char *base = device->ops->host_view(device, pllm_workspace_va(engine->workspace));
    char *open = device->ops->host_view(device, pllm_workspace_va(engine->open_space));
    if (!base || !open)
        return pllm_fail(PLLM_EUNSUPPORTED, 0, "device %s cannot be computed on by the CPU",
                         device->ops->name);
    engine->cache.open = open;
    pllm_host_layout(engine, base);
    int status = pllm_host_pass_init(engine);
    if (status < 0) return status;
    pllm_weights_options weights = {.device = device,
                                    .budget = engine->budget,
                                    .kernels = engine->host->kernels,
                                    .threads = engine->threads,
                                    .progress = engine->options.progress,
                                    .user = engine->options.progress_user};
    status = weight_share(engine, &weights.device_bytes);
    if (status < 0) return status;
    return pllm_weights_open(&engine->host->weights, &weights);
}

static void host_close(pllm_engine *engine)
{
    if (!engine->host) return;
    pllm_weights_close(&engine->host->weights);
    pllm_host_pass_deinit(engine);
    pllm_free(engine->context, engine->host->spaces);
    pllm_free(engine->context, engine->host);
    engine->host = NULL;
}

static int host_copy_open(pllm_engine *engine, uint32_t from_slot, uint32_t to_slot)
{
    const pllm_kv_cache *cache = &engine->cache;
    memcpy(pllm_kv_open_block(cache, to_slot, 0), pllm_kv_open_block(cache, from_slot, 0),
           cache->open_bytes * cache->layer_count);
    return PLLM_OK;
}

static void host_info(const pllm_engine *engine, pllm_engine_info *info)
{
    const pllm_host_state *host = engine->host;
    info->weight_bytes = host->weights.packed_bytes;
    info->workspace_bytes = pllm_workspace_bytes(engine->workspace);
    if (host->weights.space) info->workspace_bytes += pllm_workspace_bytes(host->weights.space);
    info->compute = pllm_compute_name(host->weights.layers[0].q.linear.compute);
    info->kernels = host->kernels->name;
}

static void host_stats(const pllm_engine *engine, pllm_engine_stats *stats)
{
    const pllm_weights *weights = &engine->host->weights;
    stats->weight_stream_bytes = weights->stream_bytes;
    stats->weight_resident_bytes = pllm_weights_resident_bytes(weights);
    stats->wait_ns += weights->wait_ns;
}

const pllm_executor pllm_host_executor = {
    .plan = host_plan,
    .open = host_open,
    .close = host_close,
    .forward = pllm_host_forward,
    .copy_open = host_copy_open,
    .info = host_info,
    .stats = host_stats,
};
