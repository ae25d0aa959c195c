/* weights.c - sizes and places of a model's weights, and their packing at load. See weights.h. */
#include <string.h>
#include "engine/weights.h"
#include "engine/spread.h"

enum { PART_ALIGN = 64, PANELS_A_TASK = 8 };

static uint64_t align(uint64_t bytes)
{
    return (bytes + PART_ALIGN - 1) / PART_ALIGN * PART_ALIGN;
}

static uint64_t bytes_of(const pllm_linear *linear)
{
    return (linear->n + PLLM_PANEL_ROWS - 1) / PLLM_PANEL_ROWS * linear->panel_bytes;
}

/* ---- sizes and places ---- */

static int describe(const pllm_model *model, const pllm_tensor_view *view, pllm_compute asked,
                    pllm_linear *linear)
{
    if (view->rank != 2 || view->shape[0] > UINT32_MAX || view->shape[1] > UINT32_MAX)
        return pllm_fail(PLLM_EINVAL, 0, "%s: tensor %s is no matrix", pllm_model_path(model),
                         view->name);
    uint32_t n = (uint32_t)view->shape[0], k = (uint32_t)view->shape[1];
    pllm_compute compute = pllm_compute_resolve(view->dtype, asked);
    /* bf16 arithmetic is for plain formats; block formats keep their own. */
    if (asked == PLLM_COMPUTE_BF16 && pllm_dtype_block_elements(view->dtype) > 1)
        compute = pllm_compute_resolve(view->dtype, PLLM_COMPUTE_AUTO);
    int status = pllm_linear_check(view->dtype, n, k, compute);
    if (status < 0) {
        return pllm_fail(status, 0, "%s: tensor %s: %s", pllm_model_path(model), view->name,
                         pllm_last_error()->text);
    }
    pllm_linear_place(linear, view->dtype, n, k, compute, NULL);
    return PLLM_OK;
}

static void operations_of(pllm_layer_weights *layer, pllm_operation *operations[7])
{
    operations[0] = &layer->q;
    operations[1] = &layer->k;
    operations[2] = &layer->v;
    operations[3] = &layer->o;
    operations[4] = &layer->gate;
    operations[5] = &layer->up;
    operations[6] = &layer->down;
}

static void views_of(const pllm_layer_tensors *layer, const pllm_tensor_view *views[7])
{
    views[0] = &layer->q;
    views[1] = &layer->k;
    views[2] = &layer->v;
    views[3] = &layer->o;
    views[4] = &layer->gate;
    views[5] = &layer->up;
    views[6] = &layer->down;
}

void pllm_weights_place(pllm_weights *weights, uint32_t part, char *at)
{
    if (part >= weights->layer_count) {
        weights->tiles[part - weights->layer_count].operation.linear.panels = at;
        return;
    }
    pllm_layer_weights *layer = &weights->layers[part];
    pllm_operation *operations[7];
    operations_of(layer, operations);
    uint64_t norm_bytes = align(weights->width * sizeof(float));
    layer->attention_norm = (float *)(void *)at;
    layer->ffn_norm = (float *)(void *)(at + norm_bytes);
    at += 2 * norm_bytes;
    for (uint32_t i = 0; i < 7; i++) {
        operations[i]->linear.panels = at;
        at += bytes_of(&operations[i]->linear);
    }
}

static int plan_layer(pllm_weights *weights, uint32_t index, pllm_compute compute)
{
    const pllm_tensor_view *views[7];
    pllm_operation *operations[7];
    views_of(pllm_model_layer(weights->model, index), views);
    operations_of(&weights->layers[index], operations);
    pllm_weight_part *part = &weights->parts[index];
    for (uint32_t i = 0; i < 7; i++) {
        int status = describe(weights->model, views[i], compute, &operations[i]->linear);
        if (status < 0) return status;
        part->matrix_bytes += bytes_of(&operations[i]->linear);
    }
    part->bytes = part->matrix_bytes + 2 * align(weights->width * sizeof(float));
    if (part->bytes > weights->slot_bytes) weights->slot_bytes = part->bytes;
    weights->packed_bytes += part->matrix_bytes;
    weights->total_bytes += part->bytes;
    return PLLM_OK;
}

static uint64_t fixed_bytes(const pllm_weights *weights)
{
    return align(weights->width * sizeof(float));
}

int pllm_weights_plan(pllm_weights *weights, const pllm_context *context, const pllm_model *model,
                      pllm_compute compute)
{
    const pllm_model_shape *shape = pllm_model_shape_of(model);
    memset(weights, 0, sizeof *weights);
    weights->context = context;
    weights->model = model;
    weights->width = shape->width;
    weights->layer_count = shape->layer_count;
    weights->tied = shape->tied_output;
    int status = describe(model, pllm_model_output(model), compute, &weights->output);
    if (status == PLLM_OK)
        status = describe(model, pllm_model_embedding(model), compute, &weights->embedding);
    if (status < 0) return status;
    /* As many tiles as there can be: one of one panel is the least. */
    uint64_t panels = (weights->output.n + PLLM_PANEL_ROWS - 1) / PLLM_PANEL_ROWS;
    uint64_t parts = shape->layer_count + panels;
    weights->layers = pllm_alloc_array(context, shape->layer_count, sizeof *weights->layers);
    weights->tiles = pllm_alloc_array(context, panels, sizeof *weights->tiles);
    weights->parts = pllm_alloc_array(context, parts, sizeof *weights->parts);
    if (!weights->layers || !weights->tiles || !weights->parts)
        return pllm_fail_memory("the table of weights", parts * sizeof *weights->parts);
    weights->slot_bytes = weights->output.panel_bytes;
    weights->packed_bytes = bytes_of(&weights->output);
    weights->total_bytes = fixed_bytes(weights) + weights->packed_bytes;
    if (!weights->tied) weights->packed_bytes += bytes_of(&weights->embedding);
    for (uint32_t i = 0; status == PLLM_OK && i < shape->layer_count; i++)
        status = plan_layer(weights, i, compute);
    weights->least_bytes = fixed_bytes(weights) + WEIGHT_RING_LEAST * weights->slot_bytes;
    if (weights->total_bytes < weights->least_bytes) weights->least_bytes = weights->total_bytes;
    return status;
}

/* Cuts the output matrix into tiles of so many rows: the parts after the layers. */
static void cut_output(pllm_weights *weights, uint32_t tile_rows)
{
    const pllm_linear *whole = &weights->output;
    weights->tile_rows = tile_rows;
    weights->tile_count = 0;
    for (uint32_t row = 0; row < whole->n; row += tile_rows) {
        pllm_output_tile *tile = &weights->tiles[weights->tile_count];
        uint32_t rows = whole->n - row < tile_rows ? whole->n - row : tile_rows;
        tile->row_first = row;
        tile->operation.linear = *whole;
        tile->operation.linear.n = rows;
        pllm_weight_part *part = &weights->parts[weights->layer_count + weights->tile_count++];
        part->bytes = part->matrix_bytes = bytes_of(&tile->operation.linear);
    }
    weights->part_count = weights->layer_count + weights->tile_count;
}

/* Parts that stay, of at most room bytes together, spread over the pass. */
static uint64_t choose_residents(pllm_weights *weights, uint64_t room)
{
    pllm_spread spread = {.total = weights->total_bytes - fixed_bytes(weights), .room = room};
    for (uint32_t i = 0; i < weights->part_count; i++)
        weights->parts[i].streamed = !pllm_spread_next(&spread, weights->parts[i].bytes);
    uint64_t resident = spread.stays;
    /* What rounding has left over. */
    for (uint32_t i = weights->part_count; i-- > 0;) {
        pllm_weight_part *part = &weights->parts[i];
        if (!part->streamed || resident + part->bytes > room) continue;
        part->streamed = 0;
        resident += part->bytes;
    }
    return resident;
}

/* ---- packing ---- */

typedef struct packer {
    const pllm_weights *weights;
    const pllm_weights_options *options;
    uint64_t done_bytes, total_bytes;
    /* the matrix, or rows of one, being packed */
    const pllm_tensor_view *view;
    const pllm_linear *linear;
    void *panels;
    uint32_t row_first;
    uint64_t row_bytes;
    uint8_t *rows; /* random weights: room of each thread for the rows of one panel */
} packer;

/* Panels hold whole rows and follow each other, so one alone is packed as a matrix of its rows. */
static void pack_random(packer *p, uint32_t thread_index, uint32_t panel)
{
    const pllm_linear *linear = p->linear;
    uint8_t *rows = p->rows + thread_index * PLLM_PANEL_ROWS * p->row_bytes;
    uint32_t first = panel * PLLM_PANEL_ROWS;
    uint32_t count = linear->n - first < PLLM_PANEL_ROWS ? linear->n - first : PLLM_PANEL_ROWS;
    pllm_tensor_random(p->view, p->row_first + first, count, rows);
    p->options->kernels->pack((uint8_t *)p->panels + panel * linear->panel_bytes, linear->dtype,
                              count, linear->k, linear->compute, rows, p->row_bytes, 0, 1);
}

static void pack_body(void *argument, uint32_t thread_index)
{
    packer *p = argument;
    const pllm_linear *linear = p->linear;
    uint32_t panel_count = (linear->n + PLLM_PANEL_ROWS - 1) / PLLM_PANEL_ROWS, first, end;
    while (pllm_threads_next_range(p->options->threads, panel_count, PANELS_A_TASK, &first, &end)) {
        if (p->view->data)
            p->options->kernels->pack(p->panels, linear->dtype, linear->n, linear->k,
                                      linear->compute,
                                      (const char *)p->view->data + p->row_first * p->row_bytes,
                                      p->row_bytes, first, end - first);
        else
            for (uint32_t i = first; i < end; i++) pack_random(p, thread_index, i);
    }
}

/* The view's rows from row_first on to linear's panels, which are written here alone. */
static int pack_matrix(packer *p, const pllm_tensor_view *view, const pllm_linear *linear,
                       uint32_t row_first)
{
    const pllm_context *context = p->weights->context;
    int status = pllm_dtype_row_bytes(view->dtype, linear->k, &p->row_bytes);
    if (status < 0) return status;
    if (!view->data) {
        uint64_t room = pllm_threads_count(p->options->threads) * PLLM_PANEL_ROWS * p->row_bytes;
        p->rows = pllm_alloc(context, room);
        if (!p->rows) return pllm_fail_memory("rows of random weights", room);
    }
    p->view = view;
    p->linear = linear;
    p->panels = (void *)(uintptr_t)linear->panels;
    p->row_first = row_first;
    pllm_threads_run(p->options->threads, pack_body, p);
    pllm_free(context, p->rows);
    p->rows = NULL;
    uint64_t bytes = linear->n * p->row_bytes;
    if (view->data) pllm_model_drop(p->weights->model, view->data);
    p->done_bytes += bytes;
    if (p->done_bytes < p->total_bytes && p->options->progress &&
        p->options->progress(p->options->user, "loading", p->done_bytes, p->total_bytes))
        return pllm_fail(PLLM_ECANCELED, 0, "loading %s was canceled",
                         pllm_model_path(p->weights->model));
    return PLLM_OK;
}

static int read_norm(const packer *p, const pllm_tensor_view *view, float *norm)
{
    uint64_t n = p->weights->width;
    const char *path = pllm_model_path(p->weights->model);
    if (view->shape[0] != n)
        return pllm_fail(PLLM_EINVAL, 0, "%s: norm %s has %llu weights, not %llu", path, view->name,
                         (unsigned long long)view->shape[0], (unsigned long long)n);
    switch (view->dtype) {
    case PLLM_F32:
        if (view->data)
            memcpy(norm, view->data, n * sizeof *norm);
        else
            pllm_tensor_random(view, 0, n, norm);
        return PLLM_OK;
    case PLLM_F16:
    case PLLM_BF16:
        for (uint64_t i = 0; i < n; i++) {
            uint16_t half;
            memcpy(&half, (const char *)view->data + 2 * i, sizeof half);
            norm[i] = view->dtype == PLLM_F16 ? pllm_f16_to_f32(half) : pllm_bf16_to_f32(half);
        }
        return PLLM_OK;
    default:
        return pllm_fail(PLLM_EUNSUPPORTED, 0, "%s: norm %s is in %s; f32, f16 or bf16 is needed",
                         path, view->name, pllm_dtype_name(view->dtype));
    }
}

static int pack_layer(packer *p, uint32_t index)
{
    const pllm_layer_tensors *from = pllm_model_layer(p->weights->model, index);
    pllm_layer_weights *layer = &p->weights->layers[index];
    const pllm_tensor_view *views[7];
    pllm_operation *operations[7];
    views_of(from, views);
    operations_of(layer, operations);
    int status = read_norm(p, &from->attention_norm, layer->attention_norm);
    if (status == PLLM_OK) status = read_norm(p, &from->ffn_norm, layer->ffn_norm);
    for (uint32_t i = 0; status == PLLM_OK && i < 7; i++)
        status = pack_matrix(p, views[i], &operations[i]->linear, 0);
    return status;
}

static int pack_all(pllm_weights *weights, const pllm_weights_options *options)
{
    const pllm_model *model = weights->model;
    packer p = {.weights = weights, .options = options, .total_bytes = pllm_model_bytes(model)};
    int status = read_norm(&p, pllm_model_output_norm(model), weights->output_norm);
    if (status == PLLM_OK && !weights->tied)
        status = pack_matrix(&p, pllm_model_embedding(model), &weights->embedding, 0);
    for (uint32_t i = 0; status == PLLM_OK && i < weights->tile_count; i++)
        status = pack_matrix(&p, pllm_model_output(model), &weights->tiles[i].operation.linear,
                             weights->tiles[i].row_first);
    for (uint32_t i = 0; status == PLLM_OK && i < weights->layer_count; i++)
        status = pack_layer(&p, i);
    if (status == PLLM_OK && options->progress &&
        options->progress(options->user, "loading", p.total_bytes, p.total_bytes))
        status = pllm_fail(PLLM_ECANCELED, 0, "loading %s was canceled", pllm_model_path(model));
    return status;
}

/* ---- opening ---- */

static char *take(pllm_weights *weights, uint64_t bytes)
{
    return pllm_alloc(weights->context, bytes);
}

/* No limit: a part is an allocation. */
static int place_in_memory(pllm_weights *weights)
{
    static const char what[] = "packed weights (free memory, or use a smaller model)";
    weights->output_norm = (float *)(void *)take(weights, fixed_bytes(weights));
    if (!weights->output_norm) return pllm_fail_memory(what, fixed_bytes(weights));
    for (uint32_t i = 0; i < weights->part_count; i++) {
        weights->parts[i].home = take(weights, weights->parts[i].bytes);
        if (!weights->parts[i].home) return pllm_fail_memory(what, weights->parts[i].bytes);
    }
    return PLLM_OK;
}

/* Under a limit: device memory for what stays and the ring, host memory for what is streamed. */
static int place_on_device(pllm_weights *weights, const pllm_weights_options *options,
                           uint64_t resident)
{
    const pllm_device_ops *ops = weights->device->ops;
    uint64_t ring = fixed_bytes(weights) + resident;
    uint64_t bytes = ring + weights->ring_count * weights->slot_bytes;
    int status = pllm_workspace_open(weights->context, weights->device, options->budget, "weights",
                                     bytes, &weights->space);
    if (status == PLLM_ENODEVMEM)
        return pllm_fail(status, 0, "there is no device memory for %llu bytes of weights",
                         (unsigned long long)bytes);
    if (status < 0) return status;
    char *base = ops->host_view(weights->device, pllm_workspace_va(weights->space));
    weights->output_norm = (float *)(void *)base;
    base += fixed_bytes(weights);
    for (uint32_t i = 0; i < weights->part_count; i++)
        if (weights->parts[i].streamed) weights->host_bytes += weights->parts[i].bytes;
    if (weights->ring_count > 0) {
        void *memory;
        status = ops->host_alloc(weights->device, weights->host_bytes, &memory);
        if (status < 0) {
            uint64_t wanted = weights->host_bytes;
            weights->host_bytes = 0;
            return pllm_fail(PLLM_ENOMEM, 0,
                             "%llu bytes of weights do not fit --vram-limit, and there is no host "
                             "memory for them either: free memory or raise the limit",
                             (unsigned long long)wanted);
        }
        weights->host_memory = memory;
        status = pllm_weight_ring_open(weights, pllm_workspace_va(weights->space) + ring);
        if (status < 0) return status;
    }
    char *host = weights->host_memory;
    for (uint32_t i = 0; i < weights->part_count; i++) {
        pllm_weight_part *part = &weights->parts[i];
        char **at = part->streamed ? &host : &base;
        part->home = *at;
        *at += part->bytes;
    }
    return PLLM_OK;
}

/* Which parts stay under a limit; returns their bytes. */
static uint64_t choose(pllm_weights *weights, uint64_t device_bytes)
{
    uint32_t panels = (weights->output.n + PLLM_PANEL_ROWS - 1) / PLLM_PANEL_ROWS;
    cut_output(weights, panels * PLLM_PANEL_ROWS);
    if (weights->total_bytes <= device_bytes) return weights->total_bytes - fixed_bytes(weights);
    uint64_t tile_panels = weights->slot_bytes / weights->output.panel_bytes;
    if (tile_panels < panels) cut_output(weights, (uint32_t)tile_panels * PLLM_PANEL_ROWS);
    uint64_t room = device_bytes - fixed_bytes(weights);
    weights->ring_count = !weights->team && room >= WEIGHT_RING * weights->slot_bytes
                              ? WEIGHT_RING
                              : WEIGHT_RING_LEAST;
    return choose_residents(weights, room - weights->ring_count * weights->slot_bytes);
}

int pllm_weights_open(pllm_weights *weights, const pllm_weights_options *options)
{
    weights->device = options->device;
    int limited = options->device_bytes != UINT64_MAX, status;
    if (limited && options->device_bytes < weights->least_bytes)
        return pllm_fail(PLLM_ENODEVMEM, 0,
                         "%llu bytes of device memory are left for weights; a ring of layers takes "
                         "%llu: raise --vram-limit",
                         (unsigned long long)options->device_bytes,
                         (unsigned long long)weights->least_bytes);
    if (limited) {
        pllm_device_info info;
        status = weights->device->ops->info(weights->device, &info);
        if (status < 0) return status;
        uint32_t threads = pllm_threads_count(options->threads);
        weights->team = info.cpu_copies && threads > 1 ? threads : 0;
    }
    uint64_t resident = choose(weights, options->device_bytes);
    /* Opening looked all over the file, and a look maps up to 2 MiB: all of that goes before the
     * memory that is filled from it comes. */
    pllm_model_drop(weights->model, pllm_model_output(weights->model)->data);
    status = limited ? place_on_device(weights, options, resident) : place_in_memory(weights);
    if (status < 0) return status;
    for (uint32_t i = 0; i < weights->part_count; i++)
        pllm_weights_place(weights, i, weights->parts[i].home);
    if (!weights->tied) {
        uint64_t bytes = bytes_of(&weights->embedding);
        weights->embedding.panels = take(weights, bytes);
        if (!weights->embedding.panels)
            return pllm_fail_memory("the packed embedding (free memory, or use a smaller model)",
                                    bytes);
    }
    return pack_all(weights, options);
}

void pllm_weights_close(pllm_weights *weights)
{
    const pllm_context *context = weights->context;
    pllm_weight_ring_close(weights);
    if (!weights->space) {
        for (uint32_t i = 0; weights->parts && i < weights->part_count; i++)
            pllm_free(context, weights->parts[i].home);
        pllm_free(context, weights->output_norm);
    }
    if (weights->host_memory)
        weights->device->ops->host_free(weights->device, weights->host_memory, weights->host_bytes);
    pllm_workspace_close(weights->space);
    pllm_free(context, (void *)(uintptr_t)weights->embedding.panels);
    pllm_free(context, weights->layers);
    pllm_free(context, weights->tiles);
    pllm_free(context, weights->parts);
    memset(weights, 0, sizeof *weights);
}

/* ---- reading ---- */

void pllm_weights_embed(const pllm_weights *weights, const pllm_kernels *kernels, uint32_t id,
                        float *out)
{
    if (!weights->tied) {
        kernels->unpack_row(out, &weights->embedding, id);
        return;
    }
    uint32_t tile = id / weights->tile_rows;
    pllm_linear linear = weights->tiles[tile].operation.linear;
    linear.panels = weights->parts[weights->layer_count + tile].home;
    kernels->unpack_row(out, &linear, id - weights->tiles[tile].row_first);
}

uint64_t pllm_weights_resident_bytes(const pllm_weights *weights)
{
    uint64_t bytes = weights->packed_bytes;
    for (uint32_t i = 0; i < weights->part_count; i++)
        if (weights->parts[i].streamed) bytes -= weights->parts[i].matrix_bytes;
    return bytes;
}
