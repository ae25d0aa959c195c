/* forward.c - one pass through all layers, every thread running the same body between barriers.
 *
 * A layer, a barrier ending each phase:
 *
 *   1. norm; q, k, v
 *      (prompts: rotate, append to staging; seal what is full: two barriers more)
 *   2. attention, in one wave or several
 *   3. output product, added to the row
 *   4. norm; gate, up
 *   5. down product, added to the row
 *
 * With few rows each thread norms and prepares them for itself, since that is cheaper than a
 * barrier; with many, rows are shared out and one more barrier follows. Both give the same bits,
 * as every row is a function of itself.
 *
 * Thread 0 is the caller's and alone touches the pager and the ring of streamed weights, which it
 * waits for and refills at barriers that are there anyway. Its status travels with the barriers. */
#include <math.h>
#include "engine/engine_internal.h"

/* One of several matrices that multiply the same rows. */
typedef struct part {
    const pllm_operation *operation;
    float *out;
} part;

int pllm_pass_sync(pass_thread *thread)
{
    pllm_pass *pass = thread->pass;
    int *verdict = &pass->verdict[thread->syncs++ & 1];
    /* The slot is free: every thread has read it before it reached the barrier in between. */
    if (thread->index == 0) *verdict = pass->status;
    pllm_threads_barrier(pass->engine->threads, thread->index);
    return *verdict;
}

static uint32_t panels_of(const pllm_operation *operation)
{
    return (operation->linear.n + PLLM_PANEL_ROWS - 1) / PLLM_PANEL_ROWS;
}

/* Panels a task: enough tasks to even out threads that are disturbed, few enough to cost nothing.
 */
static uint32_t grain_of(const pllm_pass *pass, uint32_t panels)
{
    uint32_t threads = pllm_threads_count(pass->engine->threads);
    if (threads == 1) return 64;
    uint32_t grain = panels / (threads * 6), most = pass->row_count > 16 ? 8 : 32;
    return grain < 1 ? 1 : grain > most ? most : grain;
}

/* out[rows][first panel .. end panel) of one operation. */
static void multiply(const pllm_pass *pass, const pllm_activations *rows,
                     const pllm_operation *operation, float *out, uint32_t first, uint32_t end)
{
    const pllm_linear *linear = &operation->linear;
    uint32_t n_first = first * PLLM_PANEL_ROWS, n_end = end * PLLM_PANEL_ROWS;
    if (n_end > linear->n) n_end = linear->n;
    pass->engine->host->kernels->product(out, linear->n, rows, 0, pass->row_count, linear, n_first,
                                         n_end - n_first);
}

static void multiply_parts(pass_thread *thread, const pllm_activations *rows, const part *parts,
                           uint32_t part_count)
{
    uint32_t panels = 0, first, end;
    for (uint32_t i = 0; i < part_count; i++) panels += panels_of(parts[i].operation);
    while (pllm_threads_next_range(thread->pass->engine->threads, panels,
                                   grain_of(thread->pass, panels), &first, &end)) {
        uint32_t base = 0;
        for (uint32_t i = 0; i < part_count && base < end; i++) {
            uint32_t count = panels_of(parts[i].operation);
            uint32_t from = first > base ? first - base : 0;
            uint32_t to = end - base < count ? end - base : count;
            if (from < to) multiply(thread->pass, rows, parts[i].operation, parts[i].out, from, to);
            base += count;
        }
    }
}

/* x += W rows, by panels; y is where products land first. */
static void multiply_add(pass_thread *thread, const pllm_activations *rows,
                         const pllm_operation *operation)
{
    pllm_engine *engine = thread->pass->engine;
    uint32_t panels = panels_of(operation), first, end, n = operation->linear.n;
    while (pllm_threads_next_range(engine->threads, panels, grain_of(thread->pass, panels), &first,
                                   &end)) {
        multiply(thread->pass, rows, operation, engine->host->y, first, end);
        uint32_t from = first * PLLM_PANEL_ROWS,
                 to = end * PLLM_PANEL_ROWS < n ? end * PLLM_PANEL_ROWS : n;
        for (uint32_t row = 0; row < thread->pass->row_count; row++)
            engine->host->kernels->add(engine->host->x + (uint64_t)row * n + from,
                                       engine->host->y + (uint64_t)row * n + from, to - from);
    }
}

static void multiply_gate_up(pass_thread *thread, const pllm_activations *rows,
                             const pllm_layer_weights *layer)
{
    pllm_engine *engine = thread->pass->engine;
    uint32_t panels = panels_of(&layer->gate), first, end, n = layer->gate.linear.n;
    while (pllm_threads_next_range(engine->threads, panels, grain_of(thread->pass, panels), &first,
                                   &end)) {
        multiply(thread->pass, rows, &layer->gate, engine->host->gate, first, end);
        multiply(thread->pass, rows, &layer->up, engine->host->up, first, end);
        uint32_t from = first * PLLM_PANEL_ROWS,
                 to = end * PLLM_PANEL_ROWS < n ? end * PLLM_PANEL_ROWS : n;
        for (uint32_t row = 0; row < thread->pass->row_count; row++) {
            float *gate = engine->host->gate + (uint64_t)row * n + from;
            engine->host->kernels->swiglu(gate, gate, engine->host->up + (uint64_t)row * n + from,
                                          to - from);
        }
    }
}

/* Prepared rows of in [rows][k], normed first if norm is given. In private memory if there are few
 * rows; otherwise shared, and a barrier has passed. NULL: leave. */
static const pllm_activations *prepare(pass_thread *thread, const float *in, uint32_t k,
                                       const float *norm, uint32_t row_count, uint32_t forms,
                                       pllm_activations *private_rows,
                                       pllm_activations *shared_rows)
{
    pllm_engine *engine = thread->pass->engine;
    float *normed = engine->host->spaces[thread->index].row;
    int is_private = row_count <= PRIVATE_ROWS;
    pllm_activations *rows = is_private ? private_rows : shared_rows;
    uint32_t row = 0;
    while (is_private ? row < row_count : pllm_threads_next(engine->threads, row_count, &row)) {
        const float *x = in + (uint64_t)row * k;
        if (norm) {
            engine->host->kernels->rms_norm(normed, x, norm, k, engine->shape.norm_epsilon);
            x = normed;
        }
        engine->host->kernels->prepare(rows, row, x, forms);
        row++;
    }
    if (!is_private && pllm_pass_sync(thread)) return NULL;
    return rows;
}

/* The parts of the weights (weights.h) that the team is about to read, or has read. Thread 0 sees
 * to those that are streamed: enter before a barrier, leave after one, or ahead where there is
 * nothing to leave. */
static void weights_enter(pass_thread *thread, uint32_t index)
{
    pllm_pass *pass = thread->pass;
    pllm_weights *weights = &pass->engine->host->weights;
    if (thread->index > 0)
        pllm_weights_help(weights, index);
    else if (pass->status == PLLM_OK)
        pass->status = pllm_weights_enter(weights, index);
}

static void weights_ahead(pass_thread *thread)
{
    if (thread->index == 0) pllm_weights_ahead(&thread->pass->engine->host->weights);
}

static void weights_leave(pass_thread *thread, uint32_t index)
{
    if (thread->index == 0) pllm_weights_leave(&thread->pass->engine->host->weights, index);
}

static int run_layer(pass_thread *thread, uint32_t index)
{
    pllm_pass *pass = thread->pass;
    pllm_engine *engine = pass->engine;
    const pllm_layer_weights *layer = &engine->host->weights.layers[index];
    thread_space *space = &engine->host->spaces[thread->index];
    const pllm_model_shape *shape = &engine->shape;
    uint32_t rows = pass->row_count;
    if (thread->index == 0) {
        pass->layer = index;
        if (pass->status == PLLM_OK) pass->status = pllm_pager_poll(engine->pager);
    }

    uint32_t forms = pllm_linear_form(&layer->q.linear) | pllm_linear_form(&layer->k.linear) |
                     pllm_linear_form(&layer->v.linear);
    const pllm_activations *act =
        prepare(thread, engine->host->x, shape->width, layer->attention_norm, rows, forms,
                &space->width, &engine->host->act_width);
    if (!act) return -1;
    const part parts[] = {
        {&layer->q, engine->host->q}, {&layer->k, engine->host->k}, {&layer->v, engine->host->v}};
    multiply_parts(thread, act, parts, 3);
    if (thread->index == 0) pllm_attend_plan_first(pass);
    if (pllm_pass_sync(thread)) return -1;
    if (pllm_attend(thread)) return -1;

    act = prepare(thread, engine->host->attended, shape->head_count * shape->head_dim, NULL, rows,
                  pllm_linear_form(&layer->o.linear), &space->heads, &engine->host->act_heads);
    if (!act) return -1;
    multiply_add(thread, act, &layer->o);
    if (pllm_pass_sync(thread)) return -1;

    if (thread->index == 0 && pass->status == PLLM_OK)
        pass->status = pllm_pager_poll(engine->pager);
    forms = pllm_linear_form(&layer->gate.linear) | pllm_linear_form(&layer->up.linear);
    act = prepare(thread, engine->host->x, shape->width, layer->ffn_norm, rows, forms,
                  &space->width, &engine->host->act_width);
    if (!act) return -1;
    multiply_gate_up(thread, act, layer);
    if (pllm_pass_sync(thread)) return -1;

    act = prepare(thread, engine->host->gate, shape->ffn_width, NULL, rows,
                  pllm_linear_form(&layer->down.linear), &space->ffn, &engine->host->act_ffn);
    if (!act) return -1;
    multiply_add(thread, act, &layer->down);
    if (index + 1 < shape->layer_count) weights_enter(thread, index + 1);
    if (pllm_pass_sync(thread)) return -1;
    weights_leave(thread, index);
    return 0;
}

/* Embeddings of the rows, and the angles of their positions. */
static void enter(pass_thread *thread)
{
    pllm_pass *pass = thread->pass;
    pllm_engine *engine = pass->engine;
    uint32_t half = engine->shape.rope.dims / 2;
    for (uint32_t row; pllm_threads_next(engine->threads, pass->row_count, &row);) {
        pllm_weights_embed(&engine->host->weights, engine->host->kernels, pass->row_ids[row],
                           engine->host->x + (uint64_t)row * engine->shape.width);
        for (uint32_t i = 0; i < half; i++) {
            double angle = (double)pass->row_positions[row] * (double)engine->inverse_frequency[i];
            engine->host->cosine[(uint64_t)row * half + i] = (float)cos(angle);
            engine->host->sine[(uint64_t)row * half + i] = (float)sin(angle);
        }
    }
}

/* The output product of count rows from act, tile by tile; a barrier has passed after the last. */
static int multiply_output(pass_thread *thread, const pllm_activations *act, uint32_t count)
{
    pllm_pass *pass = thread->pass;
    pllm_engine *engine = pass->engine;
    const pllm_weights *weights = &engine->host->weights;
    uint32_t vocab = engine->shape.vocab_size;
    for (uint32_t i = 0; i < weights->tile_count; i++) {
        const pllm_output_tile *tile = &weights->tiles[i];
        const pllm_linear *linear = &tile->operation.linear;
        uint32_t panels = panels_of(&tile->operation), first, end;
        while (pllm_threads_next_range(engine->threads, panels, grain_of(pass, panels), &first,
                                       &end)) {
            uint32_t n_first = first * PLLM_PANEL_ROWS, n_end = end * PLLM_PANEL_ROWS;
            if (n_end > linear->n) n_end = linear->n;
            engine->host->kernels->product(engine->host->logits + tile->row_first, vocab, act, 0,
                                           count, linear, n_first, n_end - n_first);
        }
        if (i + 1 < weights->tile_count) weights_enter(thread, weights->layer_count + i + 1);
        if (pllm_pass_sync(thread)) return -1;
        weights_leave(thread, weights->layer_count + i);
    }
    return 0;
}

static int logits_out(pass_thread *thread)
{
    pllm_pass *pass = thread->pass;
    pllm_engine *engine = pass->engine;
    const pllm_weights *weights = &engine->host->weights;
    uint32_t width = engine->shape.width, vocab = engine->shape.vocab_size;
    uint32_t forms = pllm_linear_form(&weights->output);
    for (uint32_t done = 0; done < pass->logit_count; done += LOGIT_ROWS) {
        uint32_t count =
            pass->logit_count - done < LOGIT_ROWS ? pass->logit_count - done : LOGIT_ROWS;
        /* Gathered first: the rows that want logits need not be neighbours. */
        for (uint32_t i; pllm_threads_next(engine->threads, count, &i);)
            engine->host->kernels->rms_norm(
                engine->host->y + (uint64_t)i * width,
                engine->host->x + (uint64_t)pass->logit_rows[done + i] * width,
                weights->output_norm, width, engine->shape.norm_epsilon);
        weights_enter(thread, weights->layer_count);
        if (pllm_pass_sync(thread)) return -1;
        weights_ahead(thread);
        const pllm_activations *act =
            prepare(thread, engine->host->y, width, NULL, count, forms,
                    &engine->host->spaces[thread->index].width, &engine->host->act_width);
        if (!act) return -1;
        if (multiply_output(thread, act, count)) return -1;
        if (thread->index == 0)
            for (uint32_t i = 0; i < count && pass->status == PLLM_OK; i++)
                pass->status =
                    pllm_pass_deliver(pass, done + i, engine->host->logits + (uint64_t)i * vocab);
        if (pllm_pass_sync(thread)) return -1;
    }
    return 0;
}

static void forward_body(void *argument, uint32_t thread_index)
{
    pass_thread thread = {.pass = argument, .index = thread_index};
    enter(&thread);
    weights_enter(&thread, 0);
    if (pllm_pass_sync(&thread)) return;
    weights_ahead(&thread);
    for (uint32_t layer = 0; layer < thread.pass->engine->shape.layer_count; layer++)
        if (run_layer(&thread, layer)) return;
    logits_out(&thread);
}

int pllm_host_forward(pllm_engine *engine)
{
    pllm_pass *pass = &engine->pass;
    pllm_weights *weights = &engine->host->weights;
    pass->status = PLLM_OK;
    pllm_weights_begin(weights, (pass->logit_count + LOGIT_ROWS - 1) / LOGIT_ROWS);
    pllm_threads_run(engine->threads, forward_body, pass);
    if (pass->status < 0) pllm_weights_abandon(weights);
    return pass->status;
}
