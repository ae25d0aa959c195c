/* weights.c - packing of a model's tensors at load. */
#include <stdatomic.h>
#include <string.h>
#include "engine/weights.h"

typedef struct packer {
    pllm_weights *weights;
    const pllm_model *model;
    const pllm_kernels *kernels;
    pllm_threads *threads;
    pllm_compute compute;
    uint64_t done_bytes, total_bytes;
    int (*progress)(void *user, const char *what, uint64_t done, uint64_t total);
    void *user;
    /* the matrix being packed */
    const pllm_tensor_view *view;
    uint64_t row_bytes;
    void *panels;
    uint32_t n, k;
    uint8_t *rows; /* random weights: room of each thread for the rows of one panel */
} packer;

enum { PANELS_A_TASK = 8 };

/* Panels hold whole rows and follow each other, so one alone is packed as a matrix of its rows. */
static void pack_random(packer *p, uint32_t thread_index, uint32_t panel)
{
    uint64_t room = PLLM_PANEL_ROWS * p->row_bytes;
    uint8_t *rows = p->rows + thread_index * room;
    uint32_t first = panel * PLLM_PANEL_ROWS;
    uint32_t count = p->n - first < PLLM_PANEL_ROWS ? p->n - first : PLLM_PANEL_ROWS;
    uint64_t panel_bytes =
        pllm_linear_packed_bytes(p->view->dtype, PLLM_PANEL_ROWS, p->k, p->compute);
    pllm_tensor_random(p->view, first, count, rows);
    p->kernels->pack((uint8_t *)p->panels + panel * panel_bytes, p->view->dtype, count, p->k,
                     p->compute, rows, p->row_bytes, 0, 1);
}

static void pack_body(void *argument, uint32_t thread_index)
{
    packer *p = argument;
    uint32_t panel_count = (p->n + PLLM_PANEL_ROWS - 1) / PLLM_PANEL_ROWS;
    uint32_t first, end;
    while (pllm_threads_next_range(p->threads, panel_count, PANELS_A_TASK, &first, &end)) {
        if (p->view->data)
            p->kernels->pack(p->panels, p->view->dtype, p->n, p->k, p->compute, p->view->data,
                             p->row_bytes, first, end - first);
        else
            for (uint32_t i = first; i < end; i++) pack_random(p, thread_index, i);
    }
}

static int pack_matrix(packer *p, const pllm_tensor_view *view, pllm_operation *operation)
{
    if (view->rank != 2 || view->shape[0] > UINT32_MAX || view->shape[1] > UINT32_MAX)
        return pllm_fail(PLLM_EINVAL, 0, "%s: tensor %s is no matrix", pllm_model_path(p->model),
                         view->name);
    p->n = (uint32_t)view->shape[0];
    p->k = (uint32_t)view->shape[1];
    pllm_compute compute = pllm_compute_resolve(view->dtype, p->compute);
    /* bf16 arithmetic is for plain formats; block formats keep their own. */
    if (p->compute == PLLM_COMPUTE_BF16 && pllm_dtype_block_elements(view->dtype) > 1)
        compute = pllm_compute_resolve(view->dtype, PLLM_COMPUTE_AUTO);
    int status = pllm_linear_check(view->dtype, p->n, p->k, compute);
    if (status < 0) {
        return pllm_fail(status, 0, "%s: tensor %s: %s", pllm_model_path(p->model), view->name,
                         pllm_last_error()->text);
    }
    status = pllm_dtype_row_bytes(view->dtype, p->k, &p->row_bytes);
    if (status < 0) return status;
    uint64_t bytes = pllm_linear_packed_bytes(view->dtype, p->n, p->k, compute);
    p->panels = pllm_alloc(p->weights->context, bytes);
    if (!p->panels)
        return pllm_fail_memory("packed weights (free memory, or use a smaller model)", bytes);
    if (!view->data) {
        uint64_t room = pllm_threads_count(p->threads) * PLLM_PANEL_ROWS * p->row_bytes;
        p->rows = pllm_alloc(p->weights->context, room);
        if (!p->rows) {
            pllm_free(p->weights->context, p->panels);
            return pllm_fail_memory("rows of random weights", room);
        }
    }
    p->view = view;
    pllm_compute asked = p->compute;
    p->compute = compute;
    pllm_linear_place(&operation->linear, view->dtype, p->n, p->k, compute, p->panels);
    p->weights->packed_bytes += bytes;
    pllm_threads_run(p->threads, pack_body, p);
    p->compute = asked;
    pllm_free(p->weights->context, p->rows);
    p->rows = NULL;
    pllm_model_drop(p->model, view->data, view->bytes);
    p->done_bytes += view->bytes;
    if (p->done_bytes < p->total_bytes && p->progress &&
        p->progress(p->user, "loading", p->done_bytes, p->total_bytes))
        return pllm_fail(PLLM_ECANCELED, 0, "loading %s was canceled", pllm_model_path(p->model));
    return PLLM_OK;
}

static int read_norm(packer *p, const pllm_tensor_view *view, float **norm_out)
{
    uint64_t n = view->shape[0];
    float *norm = pllm_alloc_array(p->weights->context, n, sizeof *norm);
    if (!norm) return pllm_fail_memory("a norm's weights", n * sizeof *norm);
    *norm_out = norm;
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
                         pllm_model_path(p->model), view->name, pllm_dtype_name(view->dtype));
    }
}

static int pack_layer(packer *p, const pllm_layer_tensors *from, pllm_layer_weights *to)
{
    int status = read_norm(p, &from->attention_norm, &to->attention_norm);
    if (status == PLLM_OK) status = read_norm(p, &from->ffn_norm, &to->ffn_norm);
    const struct {
        const pllm_tensor_view *view;
        pllm_operation *operation;
    } matrices[] = {{&from->q, &to->q},      {&from->k, &to->k},       {&from->v, &to->v},
                    {&from->o, &to->o},      {&from->gate, &to->gate}, {&from->up, &to->up},
                    {&from->down, &to->down}};
    for (size_t i = 0; status == PLLM_OK && i < sizeof matrices / sizeof matrices[0]; i++)
        status = pack_matrix(p, matrices[i].view, matrices[i].operation);
    return status;
}

int pllm_weights_init(pllm_weights *weights, const pllm_context *context, const pllm_model *model,
                      const pllm_kernels *kernels, pllm_compute compute, pllm_threads *threads,
                      int (*progress)(void *user, const char *what, uint64_t done, uint64_t total),
                      void *user)
{
    const pllm_model_shape *shape = pllm_model_shape_of(model);
    memset(weights, 0, sizeof *weights);
    weights->context = context;
    weights->layer_count = shape->layer_count;
    weights->tied = shape->tied_output;
    weights->layers = pllm_alloc_array(context, shape->layer_count, sizeof *weights->layers);
    if (!weights->layers)
        return pllm_fail_memory("layers", shape->layer_count * sizeof *weights->layers);
    packer p = {.weights = weights,
                .model = model,
                .kernels = kernels,
                .threads = threads,
                .compute = compute,
                .total_bytes = pllm_model_bytes(model),
                .progress = progress,
                .user = user};
    int status = read_norm(&p, pllm_model_output_norm(model), &weights->output_norm);
    if (status == PLLM_OK)
        status = pack_matrix(&p, pllm_model_embedding(model), &weights->embedding);
    if (status == PLLM_OK) {
        if (weights->tied)
            weights->output = weights->embedding;
        else
            status = pack_matrix(&p, pllm_model_output(model), &weights->output);
    }
    for (uint32_t layer = 0; status == PLLM_OK && layer < shape->layer_count; layer++)
        status = pack_layer(&p, pllm_model_layer(model, layer), &weights->layers[layer]);
    if (status == PLLM_OK && progress && progress(user, "loading", p.total_bytes, p.total_bytes))
        status = pllm_fail(PLLM_ECANCELED, 0, "loading %s was canceled", pllm_model_path(model));
    if (status < 0) pllm_weights_deinit(weights);
    return status;
}

static void drop(pllm_weights *weights, const void *pointer)
{
    pllm_free(weights->context, (void *)(uintptr_t)pointer);
}

void pllm_weights_deinit(pllm_weights *weights)
{
    for (uint32_t i = 0; weights->layers && i < weights->layer_count; i++) {
        pllm_layer_weights *layer = &weights->layers[i];
        const void *const owned[] = {
            layer->attention_norm,     layer->ffn_norm,         layer->q.linear.panels,
            layer->k.linear.panels,    layer->v.linear.panels,  layer->o.linear.panels,
            layer->gate.linear.panels, layer->up.linear.panels, layer->down.linear.panels};
        for (size_t j = 0; j < sizeof owned / sizeof owned[0]; j++) drop(weights, owned[j]);
    }
    if (!weights->tied) drop(weights, weights->output.linear.panels);
    drop(weights, weights->embedding.linear.panels);
    drop(weights, weights->output_norm);
    drop(weights, weights->layers);
    memset(weights, 0, sizeof *weights);
}
