/* host.c - the host executor: its life, and what it tells about itself. See forward.c. */
#include <string.h>
#include "engine/engine_internal.h"

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
    *needs_out = (pllm_executor_needs){.workspace_bytes = pllm_host_layout(engine, NULL),
                                       .least_frames = PLLM_CHUNK_BLOCKS};
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
    return pllm_weights_init(&engine->host->weights, engine->context, engine->model,
                             engine->host->kernels, engine->compute, engine->threads,
                             engine->options.progress, engine->options.progress_user);
}

static void host_close(pllm_engine *engine)
{
    if (!engine->host) return;
    pllm_weights_deinit(&engine->host->weights);
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
    info->compute = pllm_compute_name(host->weights.layers[0].q.linear.compute);
    info->kernels = host->kernels->name;
}

const pllm_executor pllm_host_executor = {
    .name = "host",
    .plan = host_plan,
    .open = host_open,
    .close = host_close,
    .forward = pllm_host_forward,
    .copy_open = host_copy_open,
    .info = host_info,
};
