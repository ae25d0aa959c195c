/* engine.c - opening an engine: its model, memory, limits; and what it tells about itself.
 *
 * Limits. Device bytes are: workspace + open blocks + frames + weights (+ key summaries). kv_limit
 * bounds open blocks and frames together; vram_limit bounds everything. The least that works is
 *   kv_limit:   sequence_max * layers * open block + the executor's least frames, each rounded up
 *               to the device's granularity
 *   vram_limit: workspace + the least weights + the least kv_limit, and what the executor takes for
 *               a while or outside of any budget
 * The host's attention must see one chunk of 8 blocks at a time, a GPU's one layer of a prompt;
 * weights that do not stay pass through a ring of a few layers. On the host device without a
 * vram_limit, weights lie in ordinary memory. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "base/hash.h"
#include "base/size.h"
#include "device/cuda.h"
#include "device/open.h"
#include "engine/engine_internal.h"
#include "engine/parts.h"
#include "pager/replay.h"

static int read_options(pllm_engine *engine, const pllm_engine_options *options)
{
    if (options) {
        if (options->struct_bytes < sizeof *options)
            return pllm_fail(PLLM_EINVAL, 0, "pllm_engine_options.struct_bytes is %u, not %zu",
                             options->struct_bytes, sizeof *options);
        engine->options = *options;
    }
    pllm_engine_options *o = &engine->options;
    if (!o->device) o->device = "host";
    if (!o->vram_limit_bytes) o->vram_limit_bytes = PLLM_UNLIMITED;
    if (!o->kv_limit_bytes) o->kv_limit_bytes = PLLM_UNLIMITED;
    if (!o->policy) o->policy = "static";
    if (!o->prefetch_strategy) o->prefetch_strategy = "sequential";
    if (!o->kv_format) o->kv_format = "auto";
    if (!o->compute) o->compute = "auto";
    if (!o->disk_io) o->disk_io = "auto";
    if (!o->sequence_max) o->sequence_max = 1;
    if (o->sequence_max > 1024)
        return pllm_fail(PLLM_ELIMIT, 0,
                         "sequence_max is %u; at most 1024 sequences are open at once",
                         o->sequence_max);
    return PLLM_OK;
}

/* The position of text in names, or EINVAL with a sentence that lists them. */
static int choose(const char *what, const char *text, const char *const *names, uint32_t name_count)
{
    char list[256] = "";
    for (uint32_t i = 0; i < name_count; i++) {
        if (strcmp(text, names[i]) == 0) return (int)i;
        size_t used = strlen(list);
        snprintf(list + used, sizeof list - used, "%s%s", i ? ", " : "", names[i]);
    }
    return pllm_fail(PLLM_EINVAL, 0, "%s '%s' is unknown: use one of %s", what, text, list);
}

/* Chunks as large as the limits let them be without wasting more than a sixty-fourth: a tight limit
 * is met exactly, a loose one with few mappings. */
static uint64_t chunk_for(const pllm_engine_options *options)
{
    enum { SMALLEST = 64 << 10, LARGEST = 2 << 20 };
    uint64_t least = options->granularity_bytes > SMALLEST ? options->granularity_bytes : SMALLEST;
    uint64_t vram = options->vram_limit_bytes, kv = options->kv_limit_bytes;
    uint64_t limit = vram && (!kv || vram < kv) ? vram : kv, chunk = least;
    while (chunk < LARGEST && (!limit || chunk * 2 <= limit / 64)) chunk *= 2;
    return chunk;
}

int pllm_engine_open_device(const pllm_context *context, const pllm_engine_options *o,
                            pllm_device **device_out)
{
    pllm_host_device_options host = {.struct_bytes = sizeof host,
                                     .granularity_bytes = o->granularity_bytes,
                                     .chunk_bytes = chunk_for(o),
                                     .link_bytes_per_second = o->link_bytes_per_second,
                                     .link_latency_ns = o->link_latency_ns};
    return pllm_device_open_name(context, o->device, &host, device_out);
}

/* inverse_frequency[i] = base^(-2i/dims), stretched as the rope kind says. llama3: Llama 3.1's rule
 * (low frequencies divided by factor, high ones kept, a linear blend between). */
static int make_frequencies(pllm_engine *engine)
{
    const pllm_model_shape *s = &engine->shape;
    uint32_t half = s->rope.dims / 2;
    engine->inverse_frequency = pllm_alloc_array(engine->context, half, sizeof(float));
    if (!engine->inverse_frequency) return pllm_fail_memory("rotary frequencies", half * 4ull);
    for (uint32_t i = 0; i < half; i++) {
        double frequency = pow((double)s->rope.base, -2.0 * i / s->rope.dims);
        if (s->rope.kind == PLLM_ROPE_LINEAR) frequency /= (double)s->rope.factor;
        if (s->rope.kind == PLLM_ROPE_LLAMA3) {
            double length = 2 * M_PI / frequency, original = s->rope.original_context;
            double low = (double)s->rope.low_freq_factor, high = (double)s->rope.high_freq_factor;
            double blend = (original / length - low) / (high - low);
            blend = blend < 0 ? 0 : blend > 1 ? 1 : blend;
            frequency = (1 - blend) * frequency / (double)s->rope.factor + blend * frequency;
        }
        engine->inverse_frequency[i] = (float)frequency;
    }
    return PLLM_OK;
}

static int choose_formats(pllm_engine *engine, pllm_dtype *kv_out)
{
    static const char *const kv_names[] = {"auto", "f32", "f16", "bf16", "int8", "int4"};
    static const pllm_dtype kv_types[] = {PLLM_F16,  PLLM_F32,  PLLM_F16,
                                          PLLM_BF16, PLLM_INT8, PLLM_INT4};
    static const char *const compute_names[] = {"auto", "f32", "bf16"};
    int kv = choose("KV format", engine->options.kv_format, kv_names, 6);
    if (kv < 0) return kv;
    int compute = choose("compute", engine->options.compute, compute_names, 3);
    if (compute < 0) return compute;
    pllm_dtype weights = pllm_model_layer(engine->model, 0)->q.dtype;
    *kv_out = kv_types[kv];
    /* A GPU's attention is at home in 16 bits; the host's reads f32 as fast as it computes. */
    int on_host = !pllm_cuda_is(engine->device);
    if (kv == 0 && (weights == PLLM_F32 || (weights == PLLM_BF16 && on_host))) *kv_out = PLLM_F32;
    engine->compute =
        (pllm_compute[]){PLLM_COMPUTE_AUTO, PLLM_COMPUTE_F32, PLLM_COMPUTE_BF16}[compute];
    return PLLM_OK;
}

static int refuse_limit(const char *option, uint64_t limit, uint64_t least, const char *what)
{
    char have[32], need[32];
    return pllm_fail(PLLM_ENODEVMEM, 0,
                     "--%s is %s, but this model needs at least %s (%llu bytes) %s: raise it "
                     "or use a smaller --kv-format",
                     option, pllm_size_text(limit, have, sizeof have),
                     pllm_size_text_up(least, need, sizeof need), (unsigned long long)least, what);
}

static int refuse_ledger(const pllm_engine *engine)
{
    char have[32], need[32];
    return pllm_fail(
        PLLM_ENODEVMEM, 0,
        "the ledger %s can leave this model %s at most, but it needs at least %s (%llu "
        "bytes): raise the ledger's limit or lower the minimums of other members",
        engine->options.ledger, pllm_size_text(engine->limit_bytes, have, sizeof have),
        pllm_size_text(engine->least_vram_bytes, need, sizeof need),
        (unsigned long long)engine->least_vram_bytes);
}

static uint64_t round_up(uint64_t bytes, uint64_t unit)
{
    return (bytes + unit - 1) / unit * unit;
}

/* What the engine needs at least, and whether the limits leave it. */
static int check_limits(pllm_engine *engine, const pllm_executor_needs *needs, uint64_t open_bytes)
{
    const pllm_engine_options *o = &engine->options;
    pllm_device_info device;
    int status = engine->device->ops->info(engine->device, &device);
    if (status < 0) return status;
    uint64_t least_frames =
        round_up(needs->least_frames * engine->cache.sealed_bytes, device.granularity_bytes);
    engine->fixed_bytes = round_up(needs->workspace_bytes, device.granularity_bytes) +
                          round_up(pllm_summaries_bytes(engine), device.granularity_bytes) +
                          needs->weight_bytes + needs->transient_bytes + needs->outside_bytes;
    engine->least_kv_bytes = round_up(open_bytes, device.granularity_bytes) + least_frames;
    engine->least_vram_bytes = engine->fixed_bytes + engine->least_kv_bytes;
    if (o->vram_limit_bytes >= engine->least_vram_bytes &&
        engine->limit_bytes < engine->least_vram_bytes)
        return refuse_ledger(engine);
    if (o->vram_limit_bytes < engine->least_vram_bytes)
        return refuse_limit("vram-limit", o->vram_limit_bytes, engine->least_vram_bytes,
                            "for its workspace, a ring of layers and one chunk of KV blocks");
    if (o->kv_limit_bytes < engine->least_kv_bytes)
        return refuse_limit("kv-limit", o->kv_limit_bytes, engine->least_kv_bytes,
                            "for the open blocks and one chunk of sealed ones");
    return PLLM_OK;
}

/* Frames, host memory and disk, and the pager over them. */
static int open_pager(pllm_engine *engine, const pllm_executor_needs *needs,
                      pllm_disk_kind disk_kind, pllm_pager_options *pager_options)
{
    const pllm_engine_options *o = &engine->options;
    pllm_kv_cache *cache = &engine->cache;
    uint64_t frame = cache->sealed_bytes;
    uint64_t page_max = (uint64_t)cache->group_max * engine->shape.layer_count + needs->extra_pages;
    /* No more than the other needs can leave, so that chunks are not larger than a tight limit. */
    uint64_t frame_limit = o->vram_limit_bytes == PLLM_UNLIMITED
                               ? PLLM_UNLIMITED
                               : o->vram_limit_bytes - engine->fixed_bytes + needs->transient_bytes;
    if (o->kv_limit_bytes < frame_limit) frame_limit = o->kv_limit_bytes;
    if (frame_limit != PLLM_UNLIMITED) frame_limit -= pllm_workspace_bytes(engine->open_space);
    /* Unlimited: every block there can be, and an extent for each stream of blocks. */
    uint64_t disk_bytes = o->nvme_size_bytes;
    if (disk_bytes == PLLM_UNLIMITED)
        disk_bytes =
            page_max * frame + (uint64_t)o->sequence_max * engine->shape.layer_count * (2 << 20);
    pllm_tiers_options tiers_options = {.struct_bytes = sizeof tiers_options,
                                        .frame_max = (uint32_t)page_max,
                                        .page_bytes = frame,
                                        .device_limit_bytes = frame_limit,
                                        .host_bytes = o->host_memory_bytes,
                                        .host_slab_bytes = needs->host_slab_bytes,
                                        .host_at_once = needs->host_at_once,
                                        .disk_bytes = disk_bytes,
                                        .disk = engine->disk,
                                        .disk_folder = o->nvme_path,
                                        .disk_kind = disk_kind};
    pllm_tiers *tiers;
    int status =
        pllm_tiers_open(engine->context, engine->device, engine->budget, &tiers_options, &tiers);
    if (status < 0) return status;
    engine->disk = NULL; /* the tiers' now */
    pager_options->page_max = (uint32_t)page_max;
    status = pllm_pager_open(engine->context, tiers, pager_options, &engine->pager);
    if (status < 0) {
        pllm_tiers_close(tiers);
        return status;
    }
    cache->pager = engine->pager;
    if (engine->share)
        pllm_ledger_set_reserved(pllm_share_member(engine->share),
                                 page_max * frame + pllm_workspace_bytes(engine->workspace) +
                                     pllm_workspace_bytes(engine->open_space));
    return PLLM_OK;
}

/* Inside the gate, by whichever thread: blocks go until frames are no more than the budget leaves.
 */
static void give_back(void *user)
{
    pllm_engine *engine = user;
    if (!engine->pager) return;
    if (engine->executor->let_go) engine->executor->let_go(engine, NULL);
    uint64_t limit = engine->options.kv_limit_bytes;
    if (limit != PLLM_UNLIMITED) limit -= pllm_workspace_bytes(engine->open_space);
    (void)pllm_pager_set_device_limit(engine->pager, limit); /* as far as it goes */
}

static int open_share(pllm_engine *engine)
{
    const pllm_engine_options *o = &engine->options;
    engine->limit_bytes = o->vram_limit_bytes;
    if (!o->ledger) return PLLM_OK;
    pllm_share_options share = {.struct_bytes = sizeof share,
                                .priority = o->ledger_priority,
                                .ledger = o->ledger,
                                .name = o->ledger_name,
                                .ledger_limit_bytes = o->ledger_limit_bytes,
                                .minimum_bytes = o->ledger_minimum_bytes,
                                .give_back = give_back,
                                .user = engine};
    int status = pllm_share_open(engine->context, &share, &engine->share);
    if (status < 0) return status;
    uint64_t ceiling = pllm_share_ceiling(engine->share);
    if (ceiling < engine->limit_bytes) engine->limit_bytes = ceiling;
    return PLLM_OK;
}

/* What it cannot do without is its minimum in the ledger; chunks of frames round it up. Bytes that
 * no budget sees are charged there all the same. */
static int join_ledger(pllm_engine *engine, const pllm_executor_needs *needs)
{
    if (!engine->share) return PLLM_OK;
    pllm_device_info device;
    int status = engine->device->ops->info(engine->device, &device);
    if (status < 0) return status;
    uint64_t least = engine->least_vram_bytes + device.chunk_bytes;
    if (least > engine->limit_bytes) least = engine->least_vram_bytes;
    if (least > engine->options.ledger_minimum_bytes)
        status = pllm_share_minimum(engine->share, least);
    if (status < 0) return status;
    pllm_share_attach(engine->share, engine->budget);
    pllm_ledger_member *member = pllm_share_member(engine->share);
    return needs->outside_bytes ? pllm_ledger_charge(member, needs->outside_bytes) : PLLM_OK;
}

/* Workspace, open blocks and frames, in that order, under the two limits. */
static int open_memory(pllm_engine *engine)
{
    static const char *const disks[] = {"auto", "uring", "pread"};
    const pllm_engine_options *o = &engine->options;
    pllm_pager_options pager = {.struct_bytes = sizeof pager,
                                .record_max = o->record_max,
                                .fingerprint = pllm_model_fingerprint(engine->model),
                                .format = engine->cache.shape.sealed};
    int status = pllm_policy_from_name(o->policy, &pager.policy);
    if (status == PLLM_OK) status = pllm_prefetch_from_name(o->prefetch_strategy, &pager.prefetch);
    if (status < 0) return status;
    if (engine->executor->brings_blocks) pager.prefetch = PLLM_PREFETCH_NONE;
    int disk = choose("disk I/O", o->disk_io, disks, 3);
    if (disk < 0) return disk;
    pllm_executor_needs needs = {0};
    status = engine->executor->plan(engine, &needs);
    if (status < 0) return status;
    uint64_t open_bytes =
        (uint64_t)o->sequence_max * engine->shape.layer_count * engine->cache.open_bytes;
    status = check_limits(engine, &needs, open_bytes);
    if (status < 0) return status;
    uint64_t limit = o->vram_limit_bytes;
    if (limit != PLLM_UNLIMITED)
        limit -= needs.outside_bytes;
    else if (needs.budget_max_bytes)
        limit = needs.budget_max_bytes;
    status = pllm_budget_open(engine->context, limit, &engine->budget);
    if (status == PLLM_OK) status = join_ledger(engine, &needs);
    if (status == PLLM_OK)
        status = pllm_workspace_open(engine->context, engine->device, engine->budget, "workspace",
                                     needs.workspace_bytes, &engine->workspace);
    if (status == PLLM_OK)
        status = pllm_workspace_open(engine->context, engine->device, engine->budget, "open blocks",
                                     open_bytes, &engine->open_space);
    if (status == PLLM_OK && o->key_summaries)
        status = pllm_workspace_open(engine->context, engine->device, engine->budget, "summaries",
                                     pllm_summaries_bytes(engine), &engine->summaries);
    return status < 0 ? status : open_pager(engine, &needs, (pllm_disk_kind)disk, &pager);
}

/* The file at path, or what options.shape names. */
static int open_model(pllm_engine *engine, const char *path)
{
    static const char *const names[] = {"bf16", "f32", "f16", "q8_0", "q4_0", "q4_1"};
    static const pllm_dtype types[] = {PLLM_BF16, PLLM_F32,  PLLM_F16,
                                       PLLM_Q8_0, PLLM_Q4_0, PLLM_Q4_1};
    const pllm_engine_options *o = &engine->options;
    if (path && o->shape)
        return pllm_fail(PLLM_EINVAL, 0,
                         "a model file and a shape with random weights were given: which of them?");
    if (path) return pllm_model_open(engine->context, path, NULL, &engine->model);
    if (!o->shape) return pllm_fail(PLLM_EINVAL, 0, "the model's path is NULL, and no shape given");
    int type = choose("weight format", o->weights ? o->weights : "bf16", names, 6);
    if (type < 0) return type;
    pllm_shape_options shape = {.struct_bytes = sizeof shape,
                                .name = o->shape,
                                .dtype = types[type],
                                .context_max = o->context_max};
    return pllm_model_open_shape(engine->context, &shape, &engine->model);
}

static int open_all(pllm_engine *engine, const char *path)
{
    int status = open_model(engine, path);
    if (status < 0) return status;
    engine->shape = *pllm_model_shape_of(engine->model);
    const pllm_engine_options *o = &engine->options;
    status = open_share(engine);
    if (status < 0) return status;
    pllm_engine_options limited = *o;
    limited.vram_limit_bytes = engine->limit_bytes;
    if (!engine->device)
        status = pllm_engine_open_device(engine->context, &limited, &engine->device);
    if (status < 0) return status;
    pllm_dtype kv;
    status = choose_formats(engine, &kv);
    if (status < 0) return status;
    uint32_t context_max = engine->shape.context_max;
    if (o->context_max && o->context_max < context_max) context_max = o->context_max;
    engine->context_max = context_max;
    pllm_kv_shape shape;
    status = pllm_kv_shape_init(&shape, kv, engine->shape.kv_head_count, engine->shape.head_dim);
    if (status < 0) return status;
    if (engine->shape.head_count / engine->shape.kv_head_count > PLLM_GROUP_MAX)
        return pllm_fail(PLLM_EUNSUPPORTED, 0,
                         "%u query heads share a KV head; at most %u are supported",
                         engine->shape.head_count / engine->shape.kv_head_count, PLLM_GROUP_MAX);
    if ((uint64_t)(context_max + 31) / 32 * o->sequence_max * engine->shape.layer_count >
        UINT32_MAX / 2)
        return pllm_fail(PLLM_ELIMIT, 0,
                         "%u sequences of %u tokens are more blocks than can be numbered",
                         o->sequence_max, context_max);
    status = pllm_tokenizer_open(engine->context, engine->model, &engine->tokenizer);
    if (status < 0 && status != PLLM_ENOTFOUND) return status;
    pllm_chat_template *template;
    status = pllm_chat_template_open(engine->context, engine->model, &template);
    if (status == PLLM_ENOMEM) return status;
    engine->has_chat_template = status == PLLM_OK;
    if (status == PLLM_OK) pllm_chat_template_close(template);
    status = make_frequencies(engine);
    if (status < 0) return status;
    status = pllm_threads_open(engine->context, o->threads, &engine->threads);
    if (status < 0) return status;
    status = pllm_kv_cache_init(&engine->cache, engine->context, NULL, &shape,
                                engine->shape.layer_count, o->sequence_max, context_max, NULL);
    if (status < 0) return status;
    engine->chunk_max = (context_max + PLLM_CHUNK_TOKENS - 1) / PLLM_CHUNK_TOKENS;
    engine->executor = pllm_cuda_is(engine->device) ? &pllm_cuda_executor : &pllm_host_executor;
    /* Limits first: a refusal should not wait for the weights. */
    status = open_memory(engine);
    if (status < 0) return status;
    status = pllm_pass_init(engine);
    if (status < 0) return status;
    return engine->executor->open(engine);
}

int pllm_engine_open(const pllm_context *context, const char *path,
                     const pllm_engine_options *options, pllm_engine **engine_out)
{
    return pllm_engine_open_on(context, path, options, NULL, NULL, engine_out);
}

int pllm_engine_open_on(const pllm_context *context, const char *path,
                        const pllm_engine_options *options, pllm_device *device, pllm_disk *disk,
                        pllm_engine **engine_out)
{
    if (engine_out) *engine_out = NULL;
    pllm_engine *engine = engine_out ? pllm_alloc(context, sizeof *engine) : NULL;
    if (!engine) {
        pllm_disk_close(disk);
        if (!engine_out) return pllm_fail(PLLM_EINVAL, 0, "engine_out is NULL");
        return pllm_fail_memory("an engine", sizeof *engine);
    }
    pllm_error_clear();
    engine->context = context;
    engine->device = device;
    engine->device_borrowed = device != NULL;
    engine->disk = disk;
    int status = read_options(engine, options);
    if (status == PLLM_OK) status = open_all(engine, path);
    if (status < 0) {
        pllm_error kept = *pllm_last_error();
        const char *engine_ledger = engine->options.ledger; /* the caller's text */
        pllm_engine_close(engine);
        if (status == PLLM_ENODEVMEM && kept.status != status && engine_ledger)
            return pllm_fail(status, 0,
                             "the ledger %s gave less than it had when this model began to open: "
                             "try again, with a --ledger-minimum or a higher priority",
                             engine_ledger);
        return status == kept.status ? pllm_fail(kept.status, kept.native, "%s", kept.text)
                                     : pllm_fail(status, 0, "the engine could not open: %s",
                                                 pllm_status_name(status));
    }
    *engine_out = engine;
    pllm_share_leave(engine->share); /* it was inside since its share opened */
    return PLLM_OK;
}

void pllm_engine_close(pllm_engine *engine)
{
    if (!engine) return;
    pllm_share_enter(engine->share);
    pllm_share_detach(engine->share);
    while (engine->sequences) pllm_sequence_close(engine->sequences);
    if (engine->executor) engine->executor->close(engine);
    pllm_pass_deinit(engine);
    pllm_pager_close(engine->pager);
    pllm_workspace_close(engine->summaries);
    pllm_workspace_close(engine->open_space);
    pllm_workspace_close(engine->workspace);
    pllm_kv_cache_deinit(&engine->cache);
    pllm_budget_close(engine->budget);
    pllm_share_close(engine->share);
    if (!engine->device_borrowed) pllm_device_close(engine->device);
    pllm_disk_close(engine->disk);
    pllm_threads_close(engine->threads);
    pllm_free(engine->context, engine->inverse_frequency);
    pllm_free(engine->context, engine->candidates);
    pllm_tokenizer_close(engine->tokenizer);
    pllm_model_close(engine->model);
    pllm_free(engine->context, engine);
}

int pllm_engine_info_get(const pllm_engine *engine, pllm_engine_info *info_out)
{
    if (info_out->struct_bytes < sizeof *info_out)
        return pllm_fail(PLLM_EINVAL, 0, "pllm_engine_info.struct_bytes is %u, not %zu",
                         info_out->struct_bytes, sizeof *info_out);
    const pllm_model_shape *s = &engine->shape;
    const pllm_kv_cache *cache = &engine->cache;
    *info_out = (pllm_engine_info){
        .struct_bytes = info_out->struct_bytes,
        .vocab_size = s->vocab_size,
        .context_max = engine->context_max,
        .layer_count = s->layer_count,
        .width = s->width,
        .head_count = s->head_count,
        .kv_head_count = s->kv_head_count,
        .head_dim = s->head_dim,
        .has_tokenizer = engine->tokenizer != NULL,
        .has_chat_template = engine->has_chat_template,
        .threads = pllm_threads_count(engine->threads),
        .kv_bytes_per_block = cache->sealed_bytes,
        .kv_bytes_per_token = cache->sealed_bytes / PLLM_BLOCK_TOKENS * s->layer_count,
        .workspace_bytes = engine->fixed_bytes,
        .least_vram_bytes = engine->least_vram_bytes,
        .least_kv_bytes = engine->least_kv_bytes,
        .device = engine->device->ops->name,
        .kv_format = pllm_dtype_name(cache->shape.sealed),
        .family = s->family->name,
    };
    engine->executor->info(engine, info_out);
    return PLLM_OK;
}

int pllm_engine_stats_get(const pllm_engine *engine, pllm_engine_stats *stats_out)
{
    if (stats_out->struct_bytes < sizeof *stats_out)
        return pllm_fail(PLLM_EINVAL, 0, "pllm_engine_stats.struct_bytes is %u, not %zu",
                         stats_out->struct_bytes, sizeof *stats_out);
    pllm_pager_stats pager;
    pllm_share_enter(engine->share);
    pllm_pager_stats_get(engine->pager, &pager);
    pllm_share_leave(engine->share);
    pllm_budget_stats budget;
    pllm_budget_stats_get(engine->budget, &budget);
    const pllm_kv_cache *cache = &engine->cache;
    uint64_t group_bytes = cache->sealed_bytes * cache->layer_count;
    uint64_t open_bytes = (uint64_t)engine->sequence_count * cache->layer_count * cache->open_bytes;
    const pllm_transfers_stats *moved = &pager.transfers;
    *stats_out = (pllm_engine_stats){
        .struct_bytes = stats_out->struct_bytes,
        .frames_used = pager.tiers.frames_used,
        .frames_peak = pager.tiers.frames_peak,
        .frames_limit = pager.tiers.frame_limit,
        .host_slots_used = pager.tiers.host_used,
        .disk_slots_used = pager.tiers.disk_used,
        .frame_bytes = cache->sealed_bytes,
        .device_bytes = budget.charged_bytes,
        .device_bytes_peak = budget.peak_bytes,
        .device_limit_bytes = budget.limit_bytes,
        .kv_bytes = (cache->group_max - cache->free_group_count) * group_bytes + open_bytes,
        .kv_bytes_peak = cache->groups_peak * group_bytes + open_bytes,
        .pins = pager.pins,
        .hits = pager.hits,
        .misses = pager.misses,
        .evictions = pager.evictions,
        .prefetched = pager.prefetched,
        .prefetch_used = pager.prefetch_used,
        .prefetch_wasted = pager.prefetch_wasted,
        .written_behind = pager.written_behind,
        .host_to_device_bytes = moved->bytes[PLLM_AT_HOST][PLLM_AT_DEVICE],
        .device_to_host_bytes = moved->bytes[PLLM_AT_DEVICE][PLLM_AT_HOST],
        .disk_to_device_bytes = moved->bytes[PLLM_AT_DISK][PLLM_AT_DEVICE],
        .device_to_disk_bytes = moved->bytes[PLLM_AT_DEVICE][PLLM_AT_DISK],
        .wait_ns = pager.wait_ns,
        .prompt_tokens = engine->prompt_tokens,
        .generated_tokens = engine->generated_tokens,
        .prefill_ns = engine->prefill_ns,
        .decode_ns = engine->decode_ns,
        .steps = engine->steps,
        .lost_pages = engine->lost_pages,
        .disk_io = pager.tiers.disk_name,
        .disk_note = pager.tiers.disk_note,
    };
    if (engine->executor->stats) engine->executor->stats(engine, stats_out);
    return PLLM_OK;
}

static int copy_out(const pllm_engine *engine, pllm_va from, uint64_t bytes, void *out)
{
    const pllm_device_ops *ops = engine->device->ops;
    pllm_stream *stream;
    void *pinned;
    int status = ops->host_alloc(engine->device, bytes, &pinned);
    if (status < 0) return status;
    status = ops->stream_open(engine->device, &stream);
    if (status == PLLM_OK) {
        pllm_copy copy = {.to = (uintptr_t)pinned, .from = from, .bytes = bytes};
        status = ops->copy(engine->device, stream, PLLM_COPY_OUT, &copy);
        int synced = ops->stream_sync(engine->device, stream);
        if (status == PLLM_OK) status = synced;
        ops->stream_close(engine->device, stream);
    }
    if (status == PLLM_OK) memcpy(out, pinned, bytes);
    ops->host_free(engine->device, pinned, bytes);
    return status;
}

int pllm_engine_read_summary(const pllm_engine *engine, const pllm_sequence *sequence,
                             uint32_t layer, uint32_t block, void *summary_out)
{
    if (!engine->summaries)
        return pllm_fail(PLLM_EUNSUPPORTED, 0, "this engine keeps no key summaries");
    if (layer >= engine->shape.layer_count || block >= sequence->group_count)
        return pllm_fail(PLLM_EINVAL, 0, "there is no sealed block %u in layer %u", block, layer);
    return copy_out(engine, pllm_summary_va(engine, sequence->groups[block], layer),
                    pllm_kv_summary_bytes(&engine->cache.shape), summary_out);
}

int pllm_engine_set_kv_limit(pllm_engine *engine, uint64_t bytes)
{
    if (bytes < engine->least_kv_bytes)
        return refuse_limit("kv-limit", bytes, engine->least_kv_bytes,
                            "for the open blocks and one chunk of sealed ones");
    uint64_t frames =
        bytes == PLLM_UNLIMITED ? bytes : bytes - pllm_workspace_bytes(engine->open_space);
    pllm_share_enter(engine->share);
    engine->options.kv_limit_bytes = bytes;
    if (engine->executor->let_go) engine->executor->let_go(engine, NULL);
    int status = pllm_pager_set_device_limit(engine->pager, frames);
    pllm_share_leave(engine->share);
    return status;
}

int pllm_engine_evict_all(pllm_engine *engine)
{
    pllm_share_enter(engine->share);
    if (engine->executor->let_go) engine->executor->let_go(engine, NULL);
    int status = pllm_pager_evict(engine->pager, UINT32_MAX);
    pllm_share_leave(engine->share);
    return status < 0 ? status : PLLM_OK;
}

static void sequence_add(pllm_engine *engine, pllm_sequence *sequence)
{
    pllm_share_enter(engine->share);
    sequence->engine = engine;
    sequence->next = engine->sequences;
    engine->sequences = sequence;
    engine->sequence_count++;
    pllm_share_leave(engine->share);
}

int pllm_sequence_open(pllm_engine *engine, pllm_sequence **sequence_out)
{
    int status = pllm_kv_sequence_open(&engine->cache, sequence_out);
    if (status == PLLM_OK) sequence_add(engine, *sequence_out);
    return status;
}

int pllm_sequence_fork(pllm_sequence *sequence, pllm_sequence **sequence_out)
{
    pllm_engine *engine = sequence->engine;
    int status = pllm_kv_sequence_fork(&engine->cache, sequence, sequence_out);
    if (status < 0) return status;
    status = engine->executor->copy_open(engine, sequence->slot, (*sequence_out)->slot);
    if (status < 0) {
        pllm_kv_sequence_close(&engine->cache, *sequence_out);
        *sequence_out = NULL;
        return status;
    }
    sequence_add(engine, *sequence_out);
    return PLLM_OK;
}

void pllm_sequence_close(pllm_sequence *sequence)
{
    if (!sequence) return;
    pllm_engine *engine = sequence->engine;
    pllm_share_enter(engine->share);
    if (engine->executor->let_go) engine->executor->let_go(engine, sequence);
    pllm_sequence **at = &engine->sequences;
    while (*at != sequence) at = &(*at)->next;
    *at = sequence->next;
    engine->sequence_count--;
    pllm_kv_sequence_close(&engine->cache, sequence);
    pllm_share_leave(engine->share);
}

void pllm_sequence_cut(pllm_sequence *sequence, uint32_t token_count)
{
    pllm_engine *engine = sequence->engine;
    pllm_share_enter(engine->share);
    if (engine->executor->let_go) engine->executor->let_go(engine, sequence);
    pllm_kv_sequence_truncate(&engine->cache, sequence, token_count);
    pllm_share_leave(engine->share);
}

int pllm_sequence_truncate(pllm_sequence *sequence, uint32_t token_count)
{
    if (token_count > sequence->id_count)
        return pllm_fail(PLLM_EINVAL, 0, "a sequence of %u tokens cannot be cut to %u",
                         sequence->id_count, token_count);
    pllm_sequence_cut(sequence, token_count);
    return PLLM_OK;
}

uint32_t pllm_sequence_length(const pllm_sequence *sequence)
{
    return sequence->id_count;
}

int pllm_engine_encode(pllm_engine *engine, const char *text, uint64_t text_bytes,
                       int parse_special, uint32_t **ids_out, uint32_t *id_count_out)
{
    *ids_out = NULL;
    *id_count_out = 0;
    if (!engine->tokenizer)
        return pllm_fail(PLLM_ENOTFOUND, 0, "%s carries no tokenizer: give token ids instead",
                         pllm_model_path(engine->model));
    return pllm_tokenizer_encode(engine->tokenizer, text, text_bytes, parse_special, ids_out,
                                 id_count_out);
}

int pllm_engine_decode(pllm_engine *engine, const uint32_t *ids, uint32_t id_count, char **text_out,
                       uint64_t *text_bytes_out)
{
    *text_out = NULL;
    *text_bytes_out = 0;
    if (!engine->tokenizer)
        return pllm_fail(PLLM_ENOTFOUND, 0, "%s carries no tokenizer: its ids have no text",
                         pllm_model_path(engine->model));
    return pllm_tokenizer_decode(engine->tokenizer, ids, id_count, text_out, text_bytes_out);
}

void pllm_engine_free(pllm_engine *engine, void *pointer)
{
    pllm_free(engine->context, pointer);
}

int pllm_engine_write_trace(const pllm_engine *engine, const char *path)
{
    uint64_t count;
    const uint32_t *accesses = pllm_pager_record(engine->pager, &count);
    if (count == 0)
        return pllm_fail(PLLM_ENOTFOUND, 0,
                         "no sealed block was read, so there is no trace to write");
    pllm_trace *trace;
    int status =
        pllm_trace_open(engine->context, engine->cache.group_max * engine->cache.layer_count,
                        pllm_pager_ranks(engine->pager), accesses, count, &trace);
    if (status < 0) return status;
    status = pllm_trace_write(trace, path);
    pllm_trace_close(trace);
    return status;
}

void pllm_engine_check(const pllm_engine *engine)
{
    pllm_share_enter(engine->share);
    pllm_kv_cache_check(&engine->cache, engine->sequences);
    pllm_pager_check(engine->pager);
    pllm_share_leave(engine->share);
}

pllm_device *pllm_engine_device(const pllm_engine *engine)
{
    return engine->device;
}

const pllm_model *pllm_engine_model(const pllm_engine *engine)
{
    return engine->model;
}

const pllm_tokenizer *pllm_engine_tokenizer(const pllm_engine *engine)
{
    return engine->tokenizer;
}
