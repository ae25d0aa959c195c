/* cuda_forward.c - one pass on a GPU, submitted whole and waited for once.
 *
 * Generated rows come first in a pass and take the decode path: matrix-vector kernels with the norm
 * folded in, attention over the block table. Prompt rows take the prefill path in tiles: library
 * matrix products on rounded activations, attention by tiles. x, the residual stream, is f32 for
 * all rows of the pass. With many tiles (weights or KV do not fit) all of them pass one layer
 * before the next layer begins, so that a layer's weights cross the link once.
 *
 *   layer:  rows   | qkv (norm), rotary, append, attention, merge, o (+x), gate and up, down (+x)
 *           tile 0 | norm, qkv, rotary, append to staging, seal, attention, o ... down
 *           tile 1 | ...
 *
 * Both paths give a row the same bits whatever else is in the pass. With everything resident a pass
 * of generated rows is one graph, cached by row count and by chunks rounded up to a power of two.
 */
#include <string.h>
#include "engine/cuda/cuda_state.h"

uint32_t *pllm_cuda_args(pllm_cuda_state *state, uint32_t count, pllm_va *va_out)
{
    uint32_t rounded = (count + 3) / 4 * 4;
    if (state->args_used + rounded > state->args_max) return NULL;
    uint32_t *args = state->args + state->args_used;
    *va_out = state->args_va + (uint64_t)state->args_used * sizeof *args;
    state->args_used += rounded;
    return args;
}

/* Arguments that every pass has, in an order that does not depend on the pass, so that a graph
 * finds them again. */
typedef struct pass_args {
    pllm_va slots, lengths, ids, positions;             /* [decode_rows] */
    pllm_va prompt_ids, prompt_positions, stage_blocks; /* [rows - decode_rows] */
    pllm_va items;                                      /* prefill items, one a segment */
    pllm_va logit_rows;
    uint32_t decode_rows, decode_logits;
} pass_args;

static uint32_t *take(pllm_cuda_state *state, uint32_t count, pllm_va *va_out, int *failed)
{
    uint32_t *args = pllm_cuda_args(state, count, va_out);
    if (!args) *failed = 1;
    return args;
}

/* Segments and tiles of the prompt rows. */
static void cut_prompts(pllm_engine *engine)
{
    pllm_cuda_state *state = engine->cuda;
    const pllm_pass *pass = &engine->pass;
    state->segment_count = state->tile_count = 0;
    uint32_t tile_rows = 0, stage = 0;
    for (uint32_t i = 0; i < pass->item_count; i++) {
        const pass_item *item = &pass->items[i];
        if (item->decode) continue;
        for (uint32_t done = 0; done < item->rows;) {
            uint32_t start = item->start + done, left = item->rows - done;
            if (tile_rows == state->tile_rows || state->tile_count == 0) {
                state->tiles[state->tile_count++] = (cuda_tile){
                    .segment_first = state->segment_count, .row_first = item->row_first + done};
                tile_rows = stage = 0;
            }
            uint32_t room = state->tile_rows - tile_rows, rows = left;
            if (rows > room) {
                /* Cut where a 128-token tile ends, if that leaves any rows. */
                uint32_t cut = (start + room) / 128 * 128;
                rows = cut > start ? cut - start : room;
            }
            cuda_tile *tile = &state->tiles[state->tile_count - 1];
            state->segments[state->segment_count++] =
                (cuda_segment){.item = i,
                               .start = start,
                               .rows = rows,
                               .row_first = item->row_first + done,
                               .stage_first = stage};
            tile->segment_count++;
            tile->rows += rows;
            if (rows > tile->rows_max) tile->rows_max = rows;
            stage += (start + rows - 1) / PLLM_BLOCK_TOKENS - start / PLLM_BLOCK_TOKENS + 1;
            done += rows;
            /* A tile that was cut short inside an item is over. */
            tile_rows = done < item->rows ? state->tile_rows : tile_rows + rows;
        }
    }
}

static int write_args(pllm_engine *engine, pass_args *a)
{
    pllm_cuda_state *state = engine->cuda;
    const pllm_pass *pass = &engine->pass;
    uint32_t rows = pass->row_count, most = engine->cache.sequence_max;
    int failed = 0;
    state->args_used = 0;
    a->decode_rows = pass->item_count - pass->prompt_items;
    /* Arrays of generated rows have fixed places. */
    uint32_t *slots = take(state, most, &a->slots, &failed);
    uint32_t *lengths = take(state, most, &a->lengths, &failed);
    uint32_t *ids = take(state, most, &a->ids, &failed);
    uint32_t *positions = take(state, most, &a->positions, &failed);
    uint32_t prompt_rows = rows - a->decode_rows;
    uint32_t *prompt_ids = take(state, prompt_rows, &a->prompt_ids, &failed);
    uint32_t *prompt_positions = take(state, prompt_rows, &a->prompt_positions, &failed);
    uint32_t *blocks = take(state, prompt_rows, &a->stage_blocks, &failed);
    uint32_t *logit_rows = take(state, pass->logit_count, &a->logit_rows, &failed);
    uint32_t *items = take(state, 8 * state->segment_count, &a->items, &failed);
    if (failed) return pllm_fail(PLLM_ELIMIT, 0, "a pass of %u rows has too many arguments", rows);
    for (uint32_t i = 0; i < a->decode_rows; i++) {
        slots[i] = pass->items[i].sequence->slot;
        lengths[i] = pass->items[i].start + 1;
    }
    memcpy(ids, pass->row_ids, a->decode_rows * sizeof *ids);
    memcpy(positions, pass->row_positions, a->decode_rows * sizeof *positions);
    memcpy(prompt_ids, pass->row_ids + a->decode_rows, prompt_rows * sizeof *ids);
    memcpy(prompt_positions, pass->row_positions + a->decode_rows, prompt_rows * sizeof *ids);
    a->decode_logits = 0; /* rows of a pass are in order: generated ones first */
    for (uint32_t i = 0; i < pass->logit_count; i++) {
        uint32_t row = pass->logit_rows[i];
        a->decode_logits += row < a->decode_rows;
        logit_rows[i] = row < a->decode_rows ? row : row - a->decode_rows;
    }
    for (uint32_t i = 0; i < state->segment_count; i++) {
        const cuda_segment *s = &state->segments[i];
        const cuda_tile *tile = state->tiles;
        while (i >= tile->segment_first + tile->segment_count) tile++;
        for (uint32_t j = 0; j < s->rows; j++)
            blocks[s->row_first - a->decode_rows + j] =
                s->stage_first + (s->start + j) / PLLM_BLOCK_TOKENS - s->start / PLLM_BLOCK_TOKENS;
        pllm_cuda_prefill_item item = {
            .row_first = s->row_first - tile->row_first,
            .rows = s->rows,
            .position = s->start,
            .stage_first = s->stage_first,
            .table_row = state->quantised ? 0 : pass->items[s->item].sequence->slot};
        memcpy(items + 8 * i, &item, sizeof item);
    }
    return PLLM_OK;
}

static int copy_within(pllm_engine *engine, pllm_va to, pllm_va from, uint64_t bytes)
{
    pllm_copy copy = {.to = to, .from = from, .bytes = bytes};
    return engine->device->ops->copy(engine->device, engine->cuda->compute, PLLM_COPY_WITHIN,
                                     &copy);
}

static uint64_t table_bytes(const pllm_engine *engine) /* of one layer */
{
    return (uint64_t)engine->cache.sequence_max * engine->cache.block_max * sizeof(uint32_t);
}

static int upload_tables(pllm_engine *engine, uint32_t layer_first, uint32_t layer_count)
{
    pllm_cuda_state *state = engine->cuda;
    uint64_t bytes = table_bytes(engine);
    return pllm_cuda_upload(engine, state->tables + layer_first * bytes,
                            (const char *)state->blocks.tables + layer_first * bytes,
                            layer_count * bytes);
}

/* --- matrix products --- */

static pllm_cuda_matrix placed(const pllm_cuda_matrix *matrix, pllm_va image)
{
    pllm_cuda_matrix m = *matrix;
    m.data += image;
    return m;
}

static pllm_cuda_matrix joined(const pllm_cuda_matrix *matrix, pllm_va image, uint32_t n)
{
    pllm_cuda_matrix m = placed(matrix, image);
    m.n = n;
    return m;
}

/* One or three products into the parts of a qkv row, by the launch given. */
typedef int (*product_launch)(pllm_cuda_linear *, pllm_stream *, const pllm_cuda_product *);

static int multiply_qkv(pllm_engine *engine, const cuda_layer *layer, pllm_va image,
                        pllm_cuda_product product, product_launch launch)
{
    pllm_cuda_state *state = engine->cuda;
    uint64_t element = product.out_dtype == PLLM_F32 ? 4 : 2;
    pllm_va out = product.out;
    if (layer->qkv_joined) {
        pllm_cuda_matrix m = joined(&layer->q, image, state->qkv_width);
        product.matrix = &m;
        return launch(state->linear, state->compute, &product);
    }
    const pllm_cuda_matrix *parts[] = {&layer->q, &layer->k, &layer->v};
    for (int i = 0; i < 3; i++) {
        pllm_cuda_matrix m = placed(parts[i], image);
        product.matrix = &m;
        product.out = out;
        int status = launch(state->linear, state->compute, &product);
        if (status < 0) return status;
        out += m.n * element;
    }
    return PLLM_OK;
}

/* --- generated rows --- */

/* Kernels of a step may start while the one before ends (programmatic dependent launch), which
 * hides the start of each; products decide by themselves. Attention and its merge never do: 206
 * tok/s instead of 255. */
enum { STARTS_EARLY = 1 };

static int decode_gate(pllm_engine *engine, const cuda_layer *layer, pllm_va image, uint32_t rows)
{
    pllm_cuda_state *state = engine->cuda;
    const pllm_model_shape *s = &engine->shape;
    pllm_cuda_matrix gate = placed(&layer->gate, image), up = placed(&layer->up, image);
    pllm_cuda_product product = {.matrix = &gate,
                                 .second = &up,
                                 .x = state->x,
                                 .x_dtype = PLLM_F32,
                                 .x_stride = s->width,
                                 .norm_weight = image + layer->ffn_norm,
                                 .epsilon = s->norm_epsilon,
                                 .out = state->d_gate,
                                 .out_dtype = PLLM_F32,
                                 .out_stride = s->ffn_width,
                                 .rows = rows,
                                 .epilogue = PLLM_CUDA_SWIGLU,
                                 .compute_f32 = state->compute_f32,
                                 .dependent = STARTS_EARLY};
    if (gate.dtype == up.dtype)
        return pllm_cuda_linear_decode(state->linear, state->compute, &product);
    product.second = NULL;
    product.epilogue = PLLM_CUDA_STORE;
    product.out = state->d_gate_up;
    product.out_stride = 2ull * s->ffn_width;
    int status = pllm_cuda_linear_decode(state->linear, state->compute, &product);
    if (status < 0) return status;
    product.matrix = &up;
    product.out += s->ffn_width * sizeof(float);
    status = pllm_cuda_linear_decode(state->linear, state->compute, &product);
    if (status < 0) return status;
    return pllm_cuda_swiglu(state->rows, state->compute, state->d_gate_up, PLLM_F32,
                            2ull * s->ffn_width, rows, s->ffn_width, state->d_gate, PLLM_F32,
                            s->ffn_width, STARTS_EARLY);
}

static int decode_add(pllm_engine *engine, const pllm_cuda_matrix *matrix, pllm_va image,
                      pllm_va in, uint32_t rows)
{
    pllm_cuda_state *state = engine->cuda;
    pllm_cuda_matrix m = placed(matrix, image);
    pllm_cuda_product product = {.matrix = &m,
                                 .x = in,
                                 .x_dtype = PLLM_F32,
                                 .x_stride = m.k,
                                 .out = state->x,
                                 .out_dtype = PLLM_F32,
                                 .out_stride = engine->shape.width,
                                 .rows = rows,
                                 .epilogue = PLLM_CUDA_ADD,
                                 .compute_f32 = state->compute_f32,
                                 .dependent = STARTS_EARLY};
    return pllm_cuda_linear_decode(state->linear, state->compute, &product);
}

static int decode_layer(pllm_engine *engine, uint32_t index, pllm_va image, const pass_args *a,
                        uint32_t chunk_bound)
{
    pllm_cuda_state *state = engine->cuda;
    const pllm_model_shape *s = &engine->shape;
    const cuda_layer *layer = &state->weights.layers[index];
    uint32_t rows = a->decode_rows, heads_width = s->head_count * s->head_dim;
    pllm_cuda_product qkv = {.x = state->x,
                             .x_dtype = PLLM_F32,
                             .x_stride = s->width,
                             .norm_weight = image + layer->attention_norm,
                             .epsilon = s->norm_epsilon,
                             .out = state->d_qkv,
                             .out_dtype = PLLM_F32,
                             .out_stride = state->qkv_width,
                             .rows = rows,
                             .compute_f32 = state->compute_f32,
                             .dependent = STARTS_EARLY};
    int status = multiply_qkv(engine, layer, image, qkv, pllm_cuda_linear_decode);
    if (status < 0) return status;
    pllm_cuda_rotary rotary = {.qkv = state->d_qkv,
                               .qkv_dtype = PLLM_F32,
                               .qkv_stride = state->qkv_width,
                               .positions = a->positions,
                               .inverse_frequency = state->frequency,
                               .rows = rows,
                               .heads = s->head_count,
                               .kv_heads = s->kv_head_count,
                               .head_dim = s->head_dim,
                               .rotary_dims = s->rope.dims,
                               .interleaved = (uint32_t)s->rope.interleaved,
                               .q_out = state->d_q,
                               .q_dtype = PLLM_F32,
                               .q_stride = heads_width,
                               .blocks = state->kv.open,
                               .block_bytes = state->kv.open_bytes,
                               .block_dtype = engine->cache.shape.open,
                               .row_block = a->slots,
                               .block_multiple = s->layer_count,
                               .block_add = index,
                               .dependent = STARTS_EARLY};
    status = pllm_cuda_rotary_append(state->rows, state->compute, &rotary);
    if (status < 0) return status;
    pllm_cuda_decode decode = {.kv = &state->kv,
                               .layer = index,
                               .rows = rows,
                               .q = state->d_q,
                               .q_stride = heads_width,
                               .row_slot = a->slots,
                               .row_length = a->lengths,
                               .table = state->tables + index * table_bytes(engine),
                               .table_stride = engine->cache.block_max,
                               .chunk_bound = chunk_bound,
                               .partials = state->partials};
    status = pllm_cuda_blocks_attend(engine, index, &decode);
    if (status < 0) return status;
    status = pllm_cuda_attend_merge(state->attention, state->compute, &decode, state->d_attended,
                                    heads_width);
    if (status == PLLM_OK) status = decode_add(engine, &layer->o, image, state->d_attended, rows);
    if (status == PLLM_OK) status = decode_gate(engine, layer, image, rows);
    if (status == PLLM_OK) status = decode_add(engine, &layer->down, image, state->d_gate, rows);
    return status;
}

/* --- sealing --- */

/* Blocks to be sealed in a layer, as the kernels read them: pairs of where a block is and its
 * frame; and, where summaries are kept, as many of where it is and its summary's number. */
typedef struct seal_list {
    uint32_t *pairs, count, room;
    pllm_va va;
} seal_list;

static int seal_list_open(pllm_engine *engine, uint32_t room, seal_list *list)
{
    uint32_t lists = engine->cuda->summary ? 2 : 1;
    *list = (seal_list){.room = room};
    list->pairs = pllm_cuda_args(engine->cuda, lists * 2 * room, &list->va);
    if (list->pairs) return PLLM_OK;
    return pllm_fail(PLLM_ELIMIT, 0, "a pass seals more blocks than can be listed");
}

static void seal_list_add(pllm_engine *engine, seal_list *list, uint32_t layer,
                          const pass_item *item, uint32_t block, uint32_t from)
{
    const pllm_kv_cache *cache = &engine->cache;
    uint64_t row = (uint64_t)layer * cache->sequence_max + item->sequence->slot;
    uint32_t *pair = list->pairs + 2ull * list->count;
    pair[0] = from;
    pair[1] = engine->cuda->blocks.tables[row * cache->block_max + block];
    if (engine->cuda->summary) {
        pair += 2ull * list->room;
        pair[0] = from;
        pair[1] = pllm_summary_index(engine, pllm_pass_group(item, block), layer);
    }
    list->count++;
}

/* blocks: what the list's `from` counts. */
static int seal_listed(pllm_engine *engine, const seal_list *list, pllm_va blocks)
{
    pllm_cuda_state *state = engine->cuda;
    uint64_t bytes = 2ull * list->room * sizeof *list->pairs;
    int status =
        pllm_cuda_upload(engine, list->va, list->pairs, state->summary ? 2 * bytes : bytes);
    if (status == PLLM_OK)
        status = pllm_cuda_seal(state->attention, state->compute, &state->kv, blocks,
                                state->kv.open_bytes, list->va, list->count);
    if (status < 0 || !state->summary) return status;
    return pllm_cuda_summarise(state->summary, state->compute, &engine->cache.shape, blocks,
                               state->kv.open_bytes, list->va + bytes, list->count,
                               pllm_workspace_va(engine->summaries));
}

/* Generated rows whose block is full after this pass: sealed from their open block. */
static int seal_decoded(pllm_engine *engine, uint32_t layer)
{
    const pllm_pass *pass = &engine->pass;
    uint32_t rows = pass->item_count - pass->prompt_items, count = 0;
    for (uint32_t i = 0; i < rows; i++) count += pass->items[i].new_count;
    if (count == 0) return PLLM_OK;
    seal_list list;
    int status = seal_list_open(engine, count, &list);
    if (status < 0) return status;
    for (uint32_t i = 0; i < rows; i++) {
        const pass_item *item = &pass->items[i];
        if (item->new_count)
            seal_list_add(engine, &list, layer, item, item->sequence->group_count,
                          item->sequence->slot * engine->cache.layer_count + layer);
    }
    return seal_listed(engine, &list, engine->cuda->kv.open);
}

/* --- prompts --- */

/* Open blocks that prompts go on with come to staging; what they leave unfinished goes back. */
static int stage_open(pllm_engine *engine, uint32_t layer, const cuda_tile *tile, int back)
{
    pllm_cuda_state *state = engine->cuda;
    for (uint32_t i = 0; i < tile->segment_count; i++) {
        const cuda_segment *s = &state->segments[tile->segment_first + i];
        const pass_item *item = &engine->pass.items[s->item];
        uint64_t bytes = state->kv.open_bytes;
        pllm_va open = state->kv.open +
                       ((uint64_t)item->sequence->slot * engine->shape.layer_count + layer) * bytes;
        pllm_va stage = state->stage + s->stage_first * bytes;
        uint32_t end = s->start + s->rows, last = end / PLLM_BLOCK_TOKENS;
        pllm_va stage_last = stage + (last - s->start / PLLM_BLOCK_TOKENS) * bytes;
        int status = PLLM_OK;
        if (!back && end % PLLM_BLOCK_TOKENS) /* rows past the end are read, and masked: no NaN */
            status =
                engine->device->ops->fill(engine->device, state->compute, stage_last, bytes, 0);
        if (status == PLLM_OK && !back && s->start % PLLM_BLOCK_TOKENS)
            status = copy_within(engine, stage, open, bytes);
        if (status == PLLM_OK && back && end % PLLM_BLOCK_TOKENS)
            status = copy_within(engine, open, stage_last, bytes);
        if (status < 0) return status;
    }
    return PLLM_OK;
}

static int seal_tile(pllm_engine *engine, uint32_t layer, const cuda_tile *tile)
{
    pllm_cuda_state *state = engine->cuda;
    uint32_t count = 0;
    for (uint32_t i = 0; i < tile->segment_count; i++) {
        const cuda_segment *s = &state->segments[tile->segment_first + i];
        count += (s->start + s->rows) / PLLM_BLOCK_TOKENS - s->start / PLLM_BLOCK_TOKENS;
    }
    if (count == 0) return PLLM_OK;
    seal_list list;
    int status = seal_list_open(engine, count, &list);
    if (status < 0) return status;
    for (uint32_t i = 0; i < tile->segment_count; i++) {
        const cuda_segment *s = &state->segments[tile->segment_first + i];
        uint32_t first = s->start / PLLM_BLOCK_TOKENS;
        for (uint32_t block = first; block < (s->start + s->rows) / PLLM_BLOCK_TOKENS; block++)
            seal_list_add(engine, &list, layer, &engine->pass.items[s->item], block,
                          s->stage_first + block - first);
    }
    return seal_listed(engine, &list, state->stage);
}

static int attend_prompts(pllm_engine *engine, uint32_t layer, const cuda_tile *tile,
                          const pass_args *a)
{
    pllm_cuda_state *state = engine->cuda;
    const pllm_model_shape *s = &engine->shape;
    const pllm_kv_cache *cache = &engine->cache;
    pllm_va table = state->tables + layer * table_bytes(engine);
    pllm_cuda_prefill f = {.heads = s->head_count,
                           .kv_heads = s->kv_head_count,
                           .head_dim = s->head_dim,
                           .dtype = cache->shape.open,
                           .scale = state->kv.scale,
                           .sealed = state->kv.frames,
                           .sealed_bytes = state->kv.frame_bytes,
                           .sealed_count = state->blocks.frame_end,
                           .table = table,
                           .table_stride = cache->block_max,
                           .stage = state->stage,
                           .stage_bytes = state->kv.open_bytes,
                           .stage_count = state->stage_blocks,
                           .items = a->items + tile->segment_first * sizeof(pllm_cuda_prefill_item),
                           .item_count = tile->segment_count,
                           .row_max = tile->rows_max,
                           .q = state->p_q,
                           .q_stride = (uint64_t)s->head_count * s->head_dim,
                           .out = state->p_attended,
                           .out_dtype = state->act,
                           .out_stride = (uint64_t)s->head_count * s->head_dim};
    if (!state->quantised) return pllm_cuda_attend_prefill(state->prefill, state->compute, &f);
    /* One sequence at a time is expanded, whole, into plain blocks. */
    f.distinct = 1;
    f.sealed = state->expanded;
    f.sealed_bytes = state->kv.open_bytes;
    f.sealed_count = cache->block_max;
    f.table = state->identity;
    f.item_count = 1;
    for (uint32_t i = 0; i < tile->segment_count; i++) {
        const cuda_segment *segment = &state->segments[tile->segment_first + i];
        uint32_t slot = engine->pass.items[segment->item].sequence->slot;
        uint32_t count = (segment->start + segment->rows) / PLLM_BLOCK_TOKENS;
        int status = PLLM_OK;
        if (count)
            status = pllm_cuda_expand(state->attention, state->compute, &state->kv,
                                      table + (uint64_t)slot * cache->block_max * 4, count,
                                      state->expanded, state->kv.open_bytes);
        if (status == PLLM_OK)
            status = pllm_cuda_attend_prefill(state->prefill, state->compute, &f);
        if (status < 0) return status;
        f.items += sizeof(pllm_cuda_prefill_item);
    }
    return PLLM_OK;
}

static int prefill_product(pllm_engine *engine, const pllm_cuda_matrix *matrix, pllm_va x,
                           uint64_t x_stride, pllm_va out, pllm_dtype out_dtype,
                           uint64_t out_stride, uint32_t rows, pllm_cuda_epilogue epilogue)
{
    pllm_cuda_state *state = engine->cuda;
    pllm_cuda_product product = {.matrix = matrix,
                                 .x = x,
                                 .x_dtype = state->act,
                                 .x_stride = x_stride,
                                 .out = out,
                                 .out_dtype = out_dtype,
                                 .out_stride = out_stride,
                                 .rows = rows,
                                 .epilogue = epilogue,
                                 .compute_f32 = state->compute_f32};
    return pllm_cuda_linear_prefill(state->linear, state->compute, &product);
}

static int prefill_ffn(pllm_engine *engine, const cuda_layer *layer, pllm_va image, pllm_va x,
                       uint32_t rows)
{
    pllm_cuda_state *state = engine->cuda;
    const pllm_model_shape *s = &engine->shape;
    uint64_t wide = 2ull * s->ffn_width, element = state->act == PLLM_F32 ? 4 : 2;
    int status = pllm_cuda_rms_norm(state->rows, state->compute, x, s->width,
                                    image + layer->ffn_norm, s->norm_epsilon, 0, rows, s->width,
                                    state->p_normed, state->act, s->width, 0);
    if (status < 0) return status;
    if (layer->gate_up_joined) {
        pllm_cuda_matrix both = joined(&layer->gate, image, 2 * s->ffn_width);
        status = prefill_product(engine, &both, state->p_normed, s->width, state->p_gate_up,
                                 state->act, wide, rows, PLLM_CUDA_STORE);
    } else {
        pllm_cuda_matrix gate = placed(&layer->gate, image), up = placed(&layer->up, image);
        status = prefill_product(engine, &gate, state->p_normed, s->width, state->p_gate_up,
                                 state->act, wide, rows, PLLM_CUDA_STORE);
        if (status == PLLM_OK)
            status = prefill_product(engine, &up, state->p_normed, s->width,
                                     state->p_gate_up + s->ffn_width * element, state->act, wide,
                                     rows, PLLM_CUDA_STORE);
    }
    if (status == PLLM_OK)
        status = pllm_cuda_swiglu(state->rows, state->compute, state->p_gate_up, state->act, wide,
                                  rows, s->ffn_width, state->p_gate, state->act, s->ffn_width, 0);
    if (status < 0) return status;
    pllm_cuda_matrix down = placed(&layer->down, image);
    return prefill_product(engine, &down, state->p_gate, s->ffn_width, x, PLLM_F32, s->width, rows,
                           PLLM_CUDA_ADD);
}

static int prefill_tile(pllm_engine *engine, uint32_t index, pllm_va image, const cuda_tile *tile,
                        const pass_args *a)
{
    pllm_cuda_state *state = engine->cuda;
    const pllm_model_shape *s = &engine->shape;
    const cuda_layer *layer = &state->weights.layers[index];
    uint32_t rows = tile->rows, heads_width = s->head_count * s->head_dim;
    uint64_t prompt_first = (tile->row_first - a->decode_rows) * sizeof(uint32_t);
    pllm_va x = state->p_x + (tile->row_first - a->decode_rows) * (uint64_t)s->width * 4;
    int status = pllm_cuda_rms_norm(state->rows, state->compute, x, s->width,
                                    image + layer->attention_norm, s->norm_epsilon, 0, rows,
                                    s->width, state->p_normed, state->act, s->width, 0);
    if (status < 0) return status;
    pllm_cuda_product qkv = {.x = state->p_normed,
                             .x_dtype = state->act,
                             .x_stride = s->width,
                             .out = state->p_qkv,
                             .out_dtype = state->act,
                             .out_stride = state->qkv_width,
                             .rows = rows,
                             .compute_f32 = state->compute_f32};
    status = multiply_qkv(engine, layer, image, qkv, pllm_cuda_linear_prefill);
    if (status == PLLM_OK) status = stage_open(engine, index, tile, 0);
    if (status < 0) return status;
    pllm_cuda_rotary rotary = {
        .qkv = state->p_qkv,
        .qkv_dtype = state->act,
        .qkv_stride = state->qkv_width,
        .positions = a->prompt_positions + prompt_first,
        .inverse_frequency = state->frequency,
        .rows = rows,
        .heads = s->head_count,
        .kv_heads = s->kv_head_count,
        .head_dim = s->head_dim,
        .rotary_dims = s->rope.dims,
        .interleaved = (uint32_t)s->rope.interleaved,
        .q_out = state->p_q,
        .q_dtype = engine->cache.shape.open,
        .q_stride = heads_width,
        .blocks = state->stage,
        .block_bytes = state->kv.open_bytes,
        .block_dtype = engine->cache.shape.open,
        .row_block = a->stage_blocks + prompt_first,
        .block_multiple = 1,
    };
    status = pllm_cuda_rotary_append(state->rows, state->compute, &rotary);
    if (status == PLLM_OK) status = seal_tile(engine, index, tile);
    if (status == PLLM_OK) status = attend_prompts(engine, index, tile, a);
    if (status == PLLM_OK) status = stage_open(engine, index, tile, 1);
    if (status < 0) return status;
    pllm_cuda_matrix o = placed(&layer->o, image);
    status = prefill_product(engine, &o, state->p_attended, heads_width, x, PLLM_F32, s->width,
                             rows, PLLM_CUDA_ADD);
    return status < 0 ? status : prefill_ffn(engine, layer, image, x, rows);
}

/* --- a pass --- */

static int embed(pllm_engine *engine, pllm_va ids, uint32_t rows, pllm_va x)
{
    pllm_cuda_state *state = engine->cuda;
    if (rows == 0) return PLLM_OK;
    return pllm_cuda_embed(state->rows, state->compute, &state->weights.embedding, ids, rows, x,
                           engine->shape.width, 0);
}

static int decode_layers(pllm_engine *engine, const pass_args *a, uint32_t chunk_bound)
{
    int status = embed(engine, a->ids, a->decode_rows, engine->cuda->x);
    for (uint32_t layer = 0; status == PLLM_OK && layer < engine->shape.layer_count; layer++) {
        pllm_va image;
        status = pllm_cuda_layer_enter(engine, layer, &image);
        if (status == PLLM_OK) status = decode_layer(engine, layer, image, a, chunk_bound);
        if (status == PLLM_OK) status = pllm_cuda_layer_leave(engine, layer);
    }
    return status;
}

/* The layers of such a pass as a graph, made when it is first needed. */
static int capture_layers(pllm_engine *engine, const pass_args *a, uint32_t chunk_bound,
                          pllm_cuda_graph **graph_out)
{
    pllm_cuda_state *state = engine->cuda;
    int status = pllm_cuda_capture_begin(engine->device, state->compute);
    if (status < 0) return status;
    status = decode_layers(engine, a, chunk_bound);
    pllm_cuda_graph *captured = NULL;
    int ended = pllm_cuda_capture_end(engine->device, state->compute, &captured);
    if (status == PLLM_OK) status = ended;
    if (status == PLLM_OK)
        *graph_out = captured;
    else
        pllm_cuda_graph_close(captured);
    return status;
}

static int decode_graph(pllm_engine *engine, const pass_args *a, uint32_t chunks)
{
    pllm_cuda_state *state = engine->cuda;
    uint32_t bucket = 0;
    while ((1u << bucket) < chunks) bucket++;
    pllm_cuda_graph *graph = pllm_cuda_graphs_find(engine, a->decode_rows, bucket);
    if (graph) return pllm_cuda_graph_launch(engine->device, graph, state->compute);
    if (!pllm_cuda_graphs_are_made(engine)) return decode_layers(engine, a, chunks);
    uint32_t bound = 1u << bucket < engine->chunk_max ? 1u << bucket : engine->chunk_max;
    int status = capture_layers(engine, a, bound, &graph);
    if (status == PLLM_ENODEVMEM) { /* the card is full of others' memory */
        pllm_cuda_graphs_refused(engine);
        return decode_layers(engine, a, chunks);
    }
    if (status < 0) return status;
    status = pllm_cuda_graph_launch(engine->device, graph, state->compute);
    if (status == PLLM_OK)
        pllm_cuda_graphs_keep(engine, a->decode_rows, bucket, graph);
    else
        pllm_cuda_graph_close(graph);
    return status;
}

static uint32_t most_chunks(const pllm_engine *engine, uint32_t rows)
{
    uint32_t most = 1;
    for (uint32_t i = 0; i < rows; i++) {
        uint32_t chunks = engine->pass.items[i].start / PLLM_CHUNK_TOKENS + 1;
        if (chunks > most) most = chunks;
    }
    return most;
}

/* Only generated rows. */
static int run_decode(pllm_engine *engine, const pass_args *a)
{
    pllm_cuda_state *state = engine->cuda;
    uint32_t layers = engine->shape.layer_count, chunks = most_chunks(engine, a->decode_rows);
    int seals = 0, status = PLLM_OK;
    for (uint32_t i = 0; i < a->decode_rows; i++) seals |= engine->pass.items[i].new_count > 0;
    for (uint32_t layer = 0; seals && status == PLLM_OK && layer < layers; layer++)
        status = pllm_cuda_blocks_enter(engine, layer);
    if (status == PLLM_OK && state->blocks.tables_changed)
        status = upload_tables(engine, 0, layers);
    if (status < 0) return status;
    state->blocks.tables_changed = 0;
    if (state->blocks.streaming || state->weights.streamed_count)
        status = decode_layers(engine, a, chunks);
    else
        status = decode_graph(engine, a, chunks);
    for (uint32_t layer = 0; seals && status == PLLM_OK && layer < layers; layer++)
        status = seal_decoded(engine, layer);
    return status;
}

/* The layer before this one is over: what was pinned for it may go, if it has not yet. */
static int leave_before(pllm_engine *engine, uint32_t layer)
{
    pllm_cuda_state *state = engine->cuda;
    if (layer <= state->blocks.left) return PLLM_OK;
    int status = engine->device->ops->event_wait(engine->device, state->layer_done[(layer - 1) & 1],
                                                 UINT64_MAX);
    if (status == PLLM_OK) pllm_cuda_blocks_leave(engine, layer - 1, 1);
    return status;
}

/* Prompts, and generated rows beside them: layer by layer. A layer's blocks are let go one layer
 * later, so that the GPU never waits for the CPU. */
static int run_prompts(pllm_engine *engine, const pass_args *a)
{
    pllm_cuda_state *state = engine->cuda;
    const pllm_device_ops *ops = engine->device->ops;
    uint32_t layers = engine->shape.layer_count, chunks = most_chunks(engine, a->decode_rows);
    int status = embed(engine, a->ids, a->decode_rows, engine->cuda->x);
    if (status == PLLM_OK)
        status = embed(engine, a->prompt_ids, engine->pass.row_count - a->decode_rows, state->p_x);
    for (uint32_t layer = 0; status == PLLM_OK && layer < layers; layer++) {
        /* Batches from disk need frames of their own, and wait anyway. */
        if (state->blocks.by_pager) status = leave_before(engine, layer);
        if (status == PLLM_OK) status = pllm_cuda_blocks_enter(engine, layer);
        if ((status == PLLM_EBUSY || status == PLLM_ENODEVMEM) && layer > state->blocks.left) {
            /* The layer before still holds what this one needs. */
            status = leave_before(engine, layer);
            if (status == PLLM_OK) status = pllm_cuda_blocks_enter(engine, layer);
        }
        if (status == PLLM_OK) status = upload_tables(engine, layer, 1);
        pllm_va image;
        if (status == PLLM_OK) status = pllm_cuda_layer_enter(engine, layer, &image);
        if (status < 0) return status;
        if (a->decode_rows) {
            status = decode_layer(engine, layer, image, a, chunks);
            if (status == PLLM_OK) status = seal_decoded(engine, layer);
        }
        for (uint32_t tile = 0; status == PLLM_OK && tile < state->tile_count; tile++)
            status = prefill_tile(engine, layer, image, &state->tiles[tile], a);
        if (status == PLLM_OK) status = pllm_cuda_layer_leave(engine, layer);
        if (status == PLLM_OK)
            status =
                ops->event_record(engine->device, state->layer_done[layer & 1], state->compute);
        if (status == PLLM_OK) status = leave_before(engine, layer);
    }
    state->blocks.tables_changed = 0;
    return status;
}

static pllm_step_item *logits_item(const pllm_pass *pass, uint32_t index)
{
    return &pass->step_items[pass->logit_items[index]];
}

/* The next token of each of these rows of logits, into y. */
static int choose_next(pllm_engine *engine, uint32_t first, uint32_t count)
{
    pllm_cuda_state *state = engine->cuda;
    uint32_t vocab = engine->shape.vocab_size, used = state->args_used, drawn = 0;
    pllm_sampling samplings[LOGIT_ROWS] = {0};
    for (uint32_t i = 0; i < count; i++) {
        const pllm_step_item *item = logits_item(&engine->pass, first + i);
        if (item->sampling) samplings[i] = *item->sampling;
        drawn += item->sampling != NULL;
    }
    if (drawn == 0)
        return pllm_cuda_argmax(state->rows, state->compute, state->logits, vocab, count, vocab,
                                state->y, 1);
    pllm_va va; /* the place serves every part of the logits: each is waited for */
    void *args = pllm_cuda_args(state, count * sizeof *samplings / sizeof(uint32_t), &va);
    if (!args) return pllm_fail(PLLM_ELIMIT, 0, "there is no room to say how tokens are drawn");
    state->args_used = used;
    memcpy(args, samplings, count * sizeof *samplings);
    int status = pllm_cuda_upload(engine, va, args, count * sizeof *samplings);
    if (status < 0) return status;
    return pllm_cuda_sample(state->rows, state->compute, state->logits, vocab, count, vocab, va,
                            state->y, 0);
}

/* Logits [first, first + count) of the pass, whose rows lie in x; at most LOGIT_ROWS. */
static int logits_part(pllm_engine *engine, const pass_args *a, pllm_va x, uint32_t first,
                       uint32_t count)
{
    pllm_cuda_state *state = engine->cuda;
    const pllm_pass *pass = &engine->pass;
    const pllm_model_shape *s = &engine->shape;
    int status = pllm_cuda_rms_norm(
        state->rows, state->compute, x, s->width, state->weights.output_norm, s->norm_epsilon,
        a->logit_rows + first * sizeof(uint32_t), count, s->width, state->y, PLLM_F32, s->width, 0);
    if (status < 0) return status;
    pllm_cuda_product product = {.matrix = &state->weights.output,
                                 .x = state->y,
                                 .x_dtype = PLLM_F32,
                                 .x_stride = s->width,
                                 .out = state->logits,
                                 .out_dtype = PLLM_F32,
                                 .out_stride = s->vocab_size,
                                 .rows = count,
                                 .compute_f32 = state->compute_f32,
                                 .dependent = STARTS_EARLY};
    status = pllm_cuda_linear_decode(state->linear, state->compute, &product);
    if (status < 0) return status;
    int all_next = 1; /* nobody wants rows: then they stay where they are */
    for (uint32_t i = 0; i < count; i++)
        all_next &= logits_item(pass, first + i)->logits == LOGITS_NEXT;
    pllm_copy out = {.to = (uintptr_t)state->logits_out,
                     .from = state->logits,
                     .bytes = (uint64_t)count * s->vocab_size * sizeof(float)};
    if (all_next) {
        status = choose_next(engine, first, count);
        if (status < 0) return status;
        out.from = state->y;
        out.bytes = count * sizeof(uint32_t);
    }
    status = engine->device->ops->copy(engine->device, state->compute, PLLM_COPY_OUT, &out);
    if (status == PLLM_OK)
        status = engine->device->ops->stream_sync(engine->device, state->compute);
    for (uint32_t i = 0; status == PLLM_OK && i < count; i++)
        if (all_next)
            memcpy(&logits_item(pass, first + i)->next_id, state->logits_out + i, sizeof(uint32_t));
        else
            status = pllm_pass_deliver(&engine->pass, first + i,
                                       state->logits_out + (uint64_t)i * s->vocab_size);
    return status;
}

static int logits_out(pllm_engine *engine, const pass_args *a)
{
    uint32_t done = 0, all = engine->pass.logit_count;
    while (done < all) {
        int decode = done < a->decode_logits;
        uint32_t left = (decode ? a->decode_logits : all) - done;
        uint32_t count = left < LOGIT_ROWS ? left : LOGIT_ROWS;
        int status =
            logits_part(engine, a, decode ? engine->cuda->x : engine->cuda->p_x, done, count);
        if (status < 0) return status;
        done += count;
    }
    return PLLM_OK;
}

static int submit(pllm_engine *engine)
{
    pllm_cuda_state *state = engine->cuda;
    pass_args a;
    int status = engine->pass.prompt_items ? pllm_cuda_prompt_space_open(engine) : PLLM_OK;
    if (status < 0) return status;
    cut_prompts(engine);
    status = write_args(engine, &a);
    if (status == PLLM_OK) status = pllm_cuda_blocks_balance(engine);
    if (status == PLLM_OK)
        status = pllm_cuda_upload(engine, state->args_va, state->args,
                                  (uint64_t)state->args_used * sizeof *state->args);
    if (status < 0) return status;
    status = engine->pass.prompt_items ? run_prompts(engine, &a) : run_decode(engine, &a);
    return status < 0 ? status : logits_out(engine, &a);
}

int pllm_cuda_forward(pllm_engine *engine)
{
    pllm_cuda_state *state = engine->cuda;
    const pllm_device_ops *ops = engine->device->ops;
    int status = submit(engine);
    pllm_error kept = *pllm_last_error();
    /* Everything is over before any block is let go, also after a failure. */
    int synced = ops->stream_sync(engine->device, state->compute);
    if (status == PLLM_OK && synced < 0) {
        status = synced;
        kept = *pllm_last_error();
    }
    if (status < 0) {
        ops->stream_sync(engine->device, state->copies);
        state->weights.primed = 0;
        pllm_cuda_blocks_undo(engine);
        return kept.status == status ? pllm_fail(status, kept.native, "%s", kept.text) : status;
    }
    while (state->blocks.left < state->blocks.entered)
        pllm_cuda_blocks_leave(engine, state->blocks.left, 1);
    pllm_cuda_blocks_return(engine);
    (void)pllm_pager_poll(engine->pager); /* the pass is done: who next waits is told */
    return PLLM_OK;
}
