/* cuda_weights.c - a model's matrices on the device: every layer is one image.
 *
 *   image: attention norm | ffn norm | q | k | v | o | gate | up | down   (packed, 256-byte aligned
 *          but for neighbours of one format, which touch and so are one matrix)
 *
 * Where all images do not fit, some stay and the others are streamed: they lie in pinned host
 * memory and pass through a ring of slots in the order of layers, over and over, ahead of use.
 * Those that stay are spread evenly, so that each streamed layer's transfer hides behind more
 * compute. A slot belongs to fixed layers, so that a layer's addresses never change:
 *
 *   streamed layers   1 3 5 7 9 11 ...     slot   0 1 2 0 1 2 ...
 *
 * Layer l's slot is free once the compute stream has passed the layer that used it before, which an
 * event says; the copy stream waits for that event, and the compute stream for the copy's. */
#include <string.h>
#include "engine/cuda/cuda_state.h"
#include "engine/spread.h"

enum {
    STAGING_BYTES = 8 << 20,
    LEAST_ROUNDING = 2 * (2 << 20), /* two mappings, each a multiple of the granularity */
};

static uint64_t align(uint64_t bytes)
{
    return (bytes + IMAGE_ALIGN - 1) / IMAGE_ALIGN * IMAGE_ALIGN;
}

static int place_matrix(const pllm_engine *engine, const pllm_tensor_view *view, int joins,
                        uint64_t *used, pllm_cuda_matrix *matrix)
{
    if (view->rank != 2 || view->shape[0] > UINT32_MAX || view->shape[1] > UINT32_MAX)
        return pllm_fail(PLLM_EINVAL, 0, "%s: tensor %s is no matrix",
                         pllm_model_path(engine->model), view->name);
    uint64_t row_bytes = pllm_cuda_matrix_row_bytes(view->dtype, (uint32_t)view->shape[1]);
    if (row_bytes == 0)
        return pllm_fail(PLLM_EUNSUPPORTED, 0,
                         "%s: tensor %s is in %s with rows of %llu: not multiplied on a GPU",
                         pllm_model_path(engine->model), view->name, pllm_dtype_name(view->dtype),
                         (unsigned long long)view->shape[1]);
    if (!joins) *used = align(*used);
    *matrix = (pllm_cuda_matrix){.dtype = view->dtype,
                                 .n = (uint32_t)view->shape[0],
                                 .k = (uint32_t)view->shape[1],
                                 .data = *used,
                                 .row_bytes = row_bytes};
    *used += matrix->n * row_bytes;
    return PLLM_OK;
}

static int same_form(const pllm_tensor_view *a, const pllm_tensor_view *b)
{
    return a->dtype == b->dtype && a->shape[1] == b->shape[1];
}

static int place_layer(const pllm_engine *engine, const pllm_layer_tensors *from, cuda_layer *layer)
{
    uint64_t used = 0;
    layer->attention_norm = used;
    used = align(used + from->attention_norm.shape[0] * sizeof(float));
    layer->ffn_norm = used;
    used = align(used + from->ffn_norm.shape[0] * sizeof(float));
    layer->qkv_joined = same_form(&from->q, &from->k) && same_form(&from->k, &from->v);
    layer->gate_up_joined = same_form(&from->gate, &from->up);
    const struct {
        const pllm_tensor_view *view;
        pllm_cuda_matrix *matrix;
        int joins;
    } matrices[] = {{&from->q, &layer->q, 0},
                    {&from->k, &layer->k, layer->qkv_joined},
                    {&from->v, &layer->v, layer->qkv_joined},
                    {&from->o, &layer->o, 0},
                    {&from->gate, &layer->gate, 0},
                    {&from->up, &layer->up, layer->gate_up_joined},
                    {&from->down, &layer->down, 0}};
    for (size_t i = 0; i < sizeof matrices / sizeof matrices[0]; i++) {
        int status =
            place_matrix(engine, matrices[i].view, matrices[i].joins, &used, matrices[i].matrix);
        if (status < 0) return status;
    }
    layer->bytes = align(used);
    return PLLM_OK;
}

uint64_t pllm_cuda_weights_fixed_bytes(const pllm_engine *engine)
{
    const cuda_weights *weights = &engine->cuda->weights;
    uint64_t bytes = align(weights->embedding.n * weights->embedding.row_bytes) +
                     align(engine->shape.width * sizeof(float));
    if (!engine->shape.tied_output) bytes += align(weights->output.n * weights->output.row_bytes);
    return bytes;
}

int pllm_cuda_weights_plan(pllm_engine *engine)
{
    cuda_weights *weights = &engine->cuda->weights;
    const pllm_context *context = engine->context;
    uint32_t layers = engine->shape.layer_count;
    weights->layers = pllm_alloc_array(context, layers, sizeof *weights->layers);
    weights->place = pllm_alloc_array(context, layers, sizeof *weights->place);
    weights->slot = pllm_alloc_array(context, layers, sizeof *weights->slot);
    weights->following = pllm_alloc_array(context, layers, sizeof *weights->following);
    weights->streamed = pllm_alloc(context, layers);
    weights->host_images = pllm_alloc_array(context, layers, sizeof *weights->host_images);
    if (!weights->layers || !weights->place || !weights->slot || !weights->following ||
        !weights->streamed || !weights->host_images)
        return pllm_fail_memory("the table of layers", layers * sizeof *weights->layers);
    weights->total_bytes = 0;
    for (uint32_t i = 0; i < layers; i++) {
        int status = place_layer(engine, pllm_model_layer(engine->model, i), &weights->layers[i]);
        if (status < 0) return status;
        if (weights->layers[i].bytes > weights->image_bytes)
            weights->image_bytes = weights->layers[i].bytes;
        weights->total_bytes += weights->layers[i].bytes;
    }
    uint64_t used = 0;
    int status =
        place_matrix(engine, pllm_model_embedding(engine->model), 0, &used, &weights->embedding);
    if (status == PLLM_OK)
        status = place_matrix(engine, pllm_model_output(engine->model), 0, &used, &weights->output);
    if (status < 0) return status;
    weights->total_bytes += pllm_cuda_weights_fixed_bytes(engine);
    uint32_t images = layers < RING_LAYERS ? layers : RING_LAYERS;
    weights->least_bytes = pllm_cuda_weights_fixed_bytes(engine) + images * weights->image_bytes;
    if (weights->total_bytes < weights->least_bytes) weights->least_bytes = weights->total_bytes;
    weights->least_bytes += LEAST_ROUNDING;
    return PLLM_OK;
}

/* Which layers stay, resident_count of them; and which slot of the ring each of the others takes,
 * and after which. Returns the bytes that images and ring take. */
static uint64_t choose_residents(pllm_engine *engine)
{
    cuda_weights *weights = &engine->cuda->weights;
    uint32_t layers = engine->shape.layer_count, streamed = 0;
    uint64_t resident_bytes = 0;
    uint32_t first_of_slot[RING_LAYERS] = {0}, last_of_slot[RING_LAYERS] = {0};
    pllm_spread spread = {.total = layers, .room = weights->resident_count};
    weights->streamed_count = layers - weights->resident_count;
    weights->ring_count =
        weights->streamed_count < RING_LAYERS ? weights->streamed_count : RING_LAYERS;
    for (uint32_t i = 0; i < layers; i++) {
        weights->following[i] = PLLM_NONE;
        weights->streamed[i] = !pllm_spread_next(&spread, 1);
        if (!weights->streamed[i]) {
            weights->place[i] = resident_bytes;
            resident_bytes += weights->layers[i].bytes;
            continue;
        }
        uint32_t slot = weights->slot[i] = streamed % weights->ring_count;
        if (streamed++ < weights->ring_count)
            first_of_slot[slot] = i;
        else
            weights->following[last_of_slot[slot]] = i;
        last_of_slot[slot] = i;
    }
    for (uint32_t slot = 0; slot < weights->ring_count; slot++)
        weights->following[last_of_slot[slot]] = first_of_slot[slot];
    for (uint32_t i = 0; i < layers; i++)
        if (weights->streamed[i])
            weights->place[i] = resident_bytes + weights->slot[i] * weights->image_bytes;
    return resident_bytes + weights->ring_count * weights->image_bytes;
}

/* As many layers as there is room for. */
static uint64_t fill_with_layers(pllm_engine *engine, uint64_t room)
{
    cuda_weights *weights = &engine->cuda->weights;
    weights->resident_count = engine->shape.layer_count - 1;
    uint64_t bytes = choose_residents(engine);
    while (bytes > room && weights->resident_count > 0) {
        weights->resident_count--;
        bytes = choose_residents(engine);
    }
    return bytes;
}

static pllm_va image_va(const cuda_weights *weights, uint32_t layer)
{
    return pllm_workspace_va(weights->space) + weights->place[layer];
}

/* --- loading --- */

typedef struct loader {
    pllm_engine *engine;
    char *staging; /* pinned */
    pllm_va raw;   /* on the device: rows as the file has them */
    uint64_t done_bytes;
} loader;

static int progress(loader *l, uint64_t bytes)
{
    const pllm_engine_options *o = &l->engine->options;
    uint64_t total = pllm_model_bytes(l->engine->model);
    l->done_bytes += bytes;
    if (o->progress && l->done_bytes < total &&
        o->progress(o->progress_user, "loading", l->done_bytes, total))
        return pllm_fail(PLLM_ECANCELED, 0, "loading %s was canceled",
                         pllm_model_path(l->engine->model));
    return PLLM_OK;
}

static uint64_t seed_of(const pllm_tensor_view *view)
{
    uint64_t seed = 1469598103934665603u; /* FNV-1a of the name */
    for (const char *c = view->name; c && *c; c++) seed = (seed ^ (uint8_t)*c) * 1099511628211u;
    return seed;
}

/* The view's rows to matrix, whose data is an address now. */
static int load_matrix(loader *l, const pllm_tensor_view *view, const pllm_cuda_matrix *matrix)
{
    pllm_engine *engine = l->engine;
    pllm_cuda_state *state = engine->cuda;
    pllm_device *device = engine->device;
    if (!view->data) {
        int status = pllm_cuda_random(state->rows, state->compute, matrix, 0, 0.02f, seed_of(view));
        return status < 0 ? status : progress(l, view->bytes);
    }
    uint64_t row_bytes;
    int status = pllm_dtype_row_bytes(view->dtype, matrix->k, &row_bytes);
    if (status < 0) return status;
    uint32_t step = (uint32_t)(STAGING_BYTES / row_bytes);
    if (step == 0)
        return pllm_fail(PLLM_ELIMIT, 0, "tensor %s has rows of %llu bytes; at most %u are loaded",
                         view->name, (unsigned long long)row_bytes, STAGING_BYTES);
    for (uint32_t row = 0; row < matrix->n; row += step) {
        uint32_t count = matrix->n - row < step ? matrix->n - row : step;
        memcpy(l->staging, (const char *)view->data + row * row_bytes, count * row_bytes);
        status = pllm_cuda_upload(engine, l->raw, l->staging, count * row_bytes);
        if (status == PLLM_OK)
            status = pllm_cuda_linear_pack(state->linear, state->compute, matrix, l->raw, row_bytes,
                                           row, count);
        if (status == PLLM_OK) status = device->ops->stream_sync(device, state->compute);
        if (status < 0) return status;
    }
    pllm_model_drop(engine->model, view->data);
    return progress(l, view->bytes);
}

static int load_norm(loader *l, const pllm_tensor_view *view, pllm_va to)
{
    pllm_device *device = l->engine->device;
    uint64_t n = view->shape[0];
    float *staged = (float *)(void *)l->staging;
    if (n * sizeof *staged > STAGING_BYTES)
        return pllm_fail(PLLM_ELIMIT, 0, "norm %s has %llu weights", view->name,
                         (unsigned long long)n);
    if (view->dtype != PLLM_F32 && view->dtype != PLLM_F16 && view->dtype != PLLM_BF16)
        return pllm_fail(PLLM_EUNSUPPORTED, 0, "%s: norm %s is in %s; f32, f16 or bf16 is needed",
                         pllm_model_path(l->engine->model), view->name,
                         pllm_dtype_name(view->dtype));
    if (!view->data)
        pllm_tensor_random(view, 0, n, staged);
    else if (view->dtype == PLLM_F32)
        memcpy(staged, view->data, n * sizeof *staged);
    else
        for (uint64_t i = 0; i < n; i++) {
            uint16_t half;
            memcpy(&half, (const char *)view->data + 2 * i, sizeof half);
            staged[i] = view->dtype == PLLM_F16 ? pllm_f16_to_f32(half) : pllm_bf16_to_f32(half);
        }
    int status = pllm_cuda_upload(l->engine, to, staged, n * sizeof *staged);
    if (status == PLLM_OK) status = device->ops->stream_sync(device, l->engine->cuda->compute);
    return status < 0 ? status : progress(l, view->bytes);
}

static pllm_cuda_matrix at(const pllm_cuda_matrix *matrix, pllm_va image)
{
    pllm_cuda_matrix placed = *matrix;
    placed.data += image;
    return placed;
}

static int load_layer(loader *l, uint32_t index)
{
    pllm_engine *engine = l->engine;
    cuda_weights *weights = &engine->cuda->weights;
    const pllm_layer_tensors *from = pllm_model_layer(engine->model, index);
    const cuda_layer *layer = &weights->layers[index];
    pllm_va image = image_va(weights, index);
    int status = load_norm(l, &from->attention_norm, image + layer->attention_norm);
    if (status == PLLM_OK) status = load_norm(l, &from->ffn_norm, image + layer->ffn_norm);
    const struct {
        const pllm_tensor_view *view;
        const pllm_cuda_matrix *matrix;
    } matrices[] = {{&from->q, &layer->q},       {&from->k, &layer->k},
                    {&from->v, &layer->v},       {&from->o, &layer->o},
                    {&from->gate, &layer->gate}, {&from->up, &layer->up},
                    {&from->down, &layer->down}};
    for (size_t i = 0; status == PLLM_OK && i < sizeof matrices / sizeof matrices[0]; i++) {
        pllm_cuda_matrix matrix = at(matrices[i].matrix, image);
        status = load_matrix(l, matrices[i].view, &matrix);
    }
    if (status < 0 || !weights->streamed[index]) return status;
    status =
        engine->device->ops->host_alloc(engine->device, layer->bytes, &weights->host_images[index]);
    if (status < 0)
        return pllm_fail(
            PLLM_ENOMEM, 0,
            "layer %u of %u needs %llu bytes of host memory, since it does not fit the "
            "device: free memory or raise --vram-limit",
            index, engine->shape.layer_count, (unsigned long long)layer->bytes);
    pllm_copy out = {
        .to = (uintptr_t)weights->host_images[index], .from = image, .bytes = layer->bytes};
    status = engine->device->ops->copy(engine->device, engine->cuda->compute, PLLM_COPY_OUT, &out);
    if (status == PLLM_OK)
        status = engine->device->ops->stream_sync(engine->device, engine->cuda->compute);
    return status;
}

static int load_fixed(loader *l)
{
    pllm_engine *engine = l->engine;
    cuda_weights *weights = &engine->cuda->weights;
    pllm_va base = pllm_workspace_va(weights->fixed);
    weights->output_norm = base;
    base += align(engine->shape.width * sizeof(float));
    weights->embedding.data = base;
    base += align(weights->embedding.n * weights->embedding.row_bytes);
    int status = load_norm(l, pllm_model_output_norm(engine->model), weights->output_norm);
    if (status == PLLM_OK)
        status = load_matrix(l, pllm_model_embedding(engine->model), &weights->embedding);
    if (engine->shape.tied_output) {
        weights->output = weights->embedding;
        return status;
    }
    weights->output.data = base;
    return status < 0 ? status : load_matrix(l, pllm_model_output(engine->model), &weights->output);
}

static int load_all(pllm_engine *engine)
{
    const pllm_device_ops *ops = engine->device->ops;
    loader l = {.engine = engine, .raw = engine->cuda->linear_space};
    void *staging;
    int status = ops->host_alloc(engine->device, STAGING_BYTES, &staging);
    if (status < 0) return pllm_fail_memory("the staging of weights", STAGING_BYTES);
    l.staging = staging;
    status = load_fixed(&l);
    for (uint32_t i = 0; status == PLLM_OK && i < engine->shape.layer_count; i++)
        status = load_layer(&l, i);
    int synced = ops->stream_sync(engine->device, engine->cuda->compute);
    if (status == PLLM_OK) status = synced;
    ops->host_free(engine->device, staging, STAGING_BYTES);
    const pllm_engine_options *o = &engine->options;
    uint64_t total = pllm_model_bytes(engine->model);
    if (status == PLLM_OK && o->progress && o->progress(o->progress_user, "loading", total, total))
        status =
            pllm_fail(PLLM_ECANCELED, 0, "loading %s was canceled", pllm_model_path(engine->model));
    return status;
}

int pllm_cuda_weights_open(pllm_engine *engine, uint64_t available_bytes)
{
    cuda_weights *weights = &engine->cuda->weights;
    uint32_t layers = engine->shape.layer_count;
    uint64_t fixed = pllm_cuda_weights_fixed_bytes(engine), space;
    if (weights->total_bytes <= available_bytes) {
        weights->resident_count = layers;
        space = choose_residents(engine);
    } else {
        if (available_bytes < weights->least_bytes)
            return pllm_fail(PLLM_ENODEVMEM, 0,
                             "%llu bytes of device memory are left for weights; embeddings and %d "
                             "layers take %llu: raise --vram-limit",
                             (unsigned long long)available_bytes, RING_LAYERS,
                             (unsigned long long)weights->least_bytes);
        space = fill_with_layers(engine, available_bytes - fixed - LEAST_ROUNDING);
    }
    int status = pllm_workspace_open(engine->context, engine->device, engine->budget, "weights",
                                     fixed, &weights->fixed);
    if (status == PLLM_OK)
        status = pllm_workspace_open(engine->context, engine->device, engine->budget, "layers",
                                     space, &weights->space);
    for (uint32_t i = 0; status == PLLM_OK && i < weights->ring_count; i++) {
        status = engine->device->ops->event_open(engine->device, &weights->loaded[i]);
        if (status == PLLM_OK)
            status = engine->device->ops->event_open(engine->device, &weights->released[i]);
    }
    if (status == PLLM_ENODEVMEM && pllm_last_error()->status != status)
        return pllm_fail(status, 0, "there is no device memory for %llu bytes of weights",
                         (unsigned long long)(fixed + space));
    return status < 0 ? status : load_all(engine);
}

void pllm_cuda_weights_close(pllm_engine *engine)
{
    cuda_weights *weights = &engine->cuda->weights;
    pllm_device *device = engine->device;
    for (uint32_t i = 0; weights->host_images && i < engine->shape.layer_count; i++)
        if (weights->host_images[i])
            device->ops->host_free(device, weights->host_images[i], weights->layers[i].bytes);
    for (uint32_t i = 0; i < RING_LAYERS; i++) {
        device->ops->event_close(device, weights->loaded[i]);
        device->ops->event_close(device, weights->released[i]);
    }
    pllm_workspace_close(weights->space);
    pllm_workspace_close(weights->fixed);
    pllm_free(engine->context, weights->layers);
    pllm_free(engine->context, weights->place);
    pllm_free(engine->context, weights->slot);
    pllm_free(engine->context, weights->following);
    pllm_free(engine->context, weights->streamed);
    pllm_free(engine->context, weights->host_images);
    memset(weights, 0, sizeof *weights);
}

/* --- streaming --- */

static int send(pllm_engine *engine, uint32_t layer)
{
    pllm_cuda_state *state = engine->cuda;
    cuda_weights *weights = &state->weights;
    pllm_device *device = engine->device;
    uint64_t bytes = weights->layers[layer].bytes;
    pllm_copy copy = {.to = image_va(weights, layer),
                      .from = (uintptr_t)weights->host_images[layer],
                      .bytes = bytes};
    int status = device->ops->copy(device, state->copies, PLLM_COPY_IN, &copy);
    if (status == PLLM_OK)
        status =
            device->ops->event_record(device, weights->loaded[weights->slot[layer]], state->copies);
    if (status == PLLM_OK) weights->streamed_bytes += bytes;
    return status;
}

/* The first layer of each slot, before anything has been computed. */
static int prime(pllm_engine *engine)
{
    cuda_weights *weights = &engine->cuda->weights;
    uint32_t sent = 0;
    for (uint32_t i = 0; sent < weights->ring_count && i < engine->shape.layer_count; i++) {
        if (!weights->streamed[i]) continue;
        int status = send(engine, i);
        if (status < 0) return status;
        sent++;
    }
    weights->primed = 1;
    return PLLM_OK;
}

int pllm_cuda_layer_enter(pllm_engine *engine, uint32_t layer, pllm_va *image_out)
{
    cuda_weights *weights = &engine->cuda->weights;
    *image_out = image_va(weights, layer);
    if (!weights->streamed[layer]) return PLLM_OK;
    int status = weights->primed ? PLLM_OK : prime(engine);
    if (status < 0) return status;
    return engine->device->ops->stream_wait(engine->device, engine->cuda->compute,
                                            weights->loaded[weights->slot[layer]]);
}

int pllm_cuda_layer_leave(pllm_engine *engine, uint32_t layer)
{
    pllm_cuda_state *state = engine->cuda;
    cuda_weights *weights = &state->weights;
    if (!weights->streamed[layer] || weights->following[layer] == layer) return PLLM_OK;
    pllm_event *released = weights->released[weights->slot[layer]];
    int status = engine->device->ops->event_record(engine->device, released, state->compute);
    if (status == PLLM_OK)
        status = engine->device->ops->stream_wait(engine->device, state->copies, released);
    return status < 0 ? status : send(engine, weights->following[layer]);
}
