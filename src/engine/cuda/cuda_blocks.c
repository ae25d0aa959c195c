/* cuda_blocks.c - which KV blocks are on the device during a pass, and how the others get there.
 *
 * Of each sequence a leading run of blocks, the same in every layer, is held: pinned, its frames in
 * the table that kernels read. With room for everything the run is the whole sequence and nothing
 * else happens here. Otherwise exact attention still reads every block of every layer in every
 * step, so what is not held is streamed, evenly over the layers, so that a layer's transfer hides
 * behind the others' compute:
 *
 *   sequence   | held: in frames | streamed: from host memory through a ring of frames | open |
 *   ring       | group 0 | group 1 | group 2 | group 3 |      a group takes one wave
 *
 * A wave is a run of chunks of 256 tokens whose blocks are on the device together. The whole step
 * is planned before any of it is submitted: no wave waits for the CPU. A group is filled again once
 * the compute stream has passed the wave that used it.
 *
 * Blocks that happen to be resident without being held are borrowed (pinned) for the pass. A prompt
 * holds all blocks of the layer it is in, one layer after the other.
 *
 * Invariants: 1. the first held[s][l] pages of a sequence's layer are pinned once by us, and in the
 * table. 2. between passes nothing else is pinned but the ring. 3. layers are entered and left in
 * order; those between are pinned whole for the sequences of the pass. */
#include <string.h>
#include "engine/cuda/cuda_state.h"

enum {
    HOLD_PIECE = 256, /* blocks that are pinned at a time to be held */
    HOLD_AHEAD = 2,   /* pieces on their way behind one that is waited for */
};

static uint32_t ring_count(const cuda_blocks *blocks)
{
    return blocks->group_count * blocks->wave_blocks;
}

/* Waves of about WAVE_BYTES, and a ring of at most a sixteenth of all blocks there can be, since
 * what it takes is not held; a wave has room for one chunk at least. */
uint32_t pllm_cuda_blocks_plan(pllm_engine *engine)
{
    cuda_blocks *blocks = &engine->cuda->blocks;
    uint64_t all = (uint64_t)engine->cache.group_max * engine->shape.layer_count;
    if (engine->options.kv_limit_bytes / engine->cache.sealed_bytes < all)
        all = engine->options.kv_limit_bytes / engine->cache.sealed_bytes;
    all /= 16;
    uint64_t wave = WAVE_BYTES / engine->cache.sealed_bytes;
    if (wave > all / WAVE_GROUPS) wave = all / WAVE_GROUPS;
    if (wave > WAVE_BLOCKS_MAX) wave = WAVE_BLOCKS_MAX;
    wave -= wave % PLLM_CHUNK_BLOCKS;
    blocks->wave_blocks = wave < PLLM_CHUNK_BLOCKS ? PLLM_CHUNK_BLOCKS : (uint32_t)wave;
    blocks->group_count = all >= WAVE_GROUPS * PLLM_CHUNK_BLOCKS ? WAVE_GROUPS : 2;
    return ring_count(blocks);
}

static uint32_t *table_of(pllm_engine *engine, uint32_t layer, uint32_t slot)
{
    const pllm_kv_cache *cache = &engine->cache;
    return engine->cuda->blocks.tables +
           ((uint64_t)layer * cache->sequence_max + slot) * cache->block_max;
}

static uint32_t *held_of(pllm_engine *engine, uint32_t layer, uint32_t slot)
{
    return &engine->cuda->blocks.held[slot * engine->shape.layer_count + layer];
}

int pllm_cuda_blocks_open(pllm_engine *engine)
{
    cuda_blocks *blocks = &engine->cuda->blocks;
    const pllm_context *context = engine->context;
    const pllm_kv_cache *cache = &engine->cache;
    uint64_t slots = (uint64_t)cache->sequence_max * engine->shape.layer_count;
    uint64_t entries = slots * cache->block_max;
    blocks->held = pllm_alloc_array(context, slots, sizeof(uint32_t));
    blocks->target = pllm_alloc_array(context, cache->sequence_max, sizeof(uint32_t));
    blocks->scratch = pllm_alloc_array(context, cache->block_max, sizeof(pllm_page));
    blocks->waves_of_layer =
        pllm_alloc_array(context, engine->shape.layer_count + 1ull, sizeof(uint32_t));
    blocks->ring_pages = pllm_alloc_array(context, ring_count(blocks), sizeof(pllm_page));
    blocks->ring_frames = pllm_alloc_array(context, ring_count(blocks), sizeof(uint32_t));
    if (!blocks->held || !blocks->target || !blocks->scratch || !blocks->waves_of_layer ||
        !blocks->ring_pages || !blocks->ring_frames)
        return pllm_fail_memory("the table of held blocks", slots * 4);
    void *tables;
    int status = engine->device->ops->host_alloc(engine->device, entries * 4, &tables);
    if (status < 0) return pllm_fail_memory("pinned block tables", entries * 4);
    blocks->tables = tables;
    return PLLM_OK;
}

static void close_ring(pllm_engine *engine)
{
    cuda_blocks *blocks = &engine->cuda->blocks;
    if (!blocks->has_ring) return;
    pllm_pager_unpin(engine->pager, blocks->ring_pages, ring_count(blocks));
    for (uint32_t i = 0; i < ring_count(blocks); i++)
        pllm_pager_page_free(engine->pager, blocks->ring_pages[i]);
    blocks->has_ring = 0;
}

void pllm_cuda_blocks_close(pllm_engine *engine)
{
    cuda_blocks *blocks = &engine->cuda->blocks;
    const pllm_context *context = engine->context;
    pllm_device *device = engine->device;
    const pllm_kv_cache *cache = &engine->cache;
    close_ring(engine);
    for (uint32_t i = 0; i < WAVE_GROUPS; i++) {
        device->ops->event_close(device, blocks->loaded[i]);
        device->ops->event_close(device, blocks->released[i]);
    }
    if (blocks->tables)
        device->ops->host_free(device, blocks->tables,
                               (uint64_t)cache->sequence_max * engine->shape.layer_count *
                                   cache->block_max * 4);
    pllm_free(context, blocks->held);
    pllm_free(context, blocks->target);
    pllm_free(context, blocks->scratch);
    pllm_free(context, blocks->waves_of_layer);
    pllm_free(context, blocks->borrowed);
    pllm_free(context, blocks->copies);
    pllm_free(context, blocks->waves);
    pllm_free(context, blocks->ring_pages);
    pllm_free(context, blocks->ring_frames);
    memset(blocks, 0, sizeof *blocks);
}

/* Pages [first, end) of an item in a layer, into scratch. */
static uint32_t list_pages(pllm_engine *engine, const pass_item *item, uint32_t layer,
                           uint32_t first, uint32_t end)
{
    engine->pass.layer = layer;
    for (uint32_t block = first; block < end; block++)
        engine->cuda->blocks.scratch[block - first] = pllm_pass_page(&engine->pass, item, block);
    return first < end ? end - first : 0;
}

static void enter_in_table(pllm_engine *engine, const pass_item *item, uint32_t layer,
                           uint32_t first, uint32_t end)
{
    uint32_t *table = table_of(engine, layer, item->sequence->slot);
    cuda_blocks *blocks = &engine->cuda->blocks;
    for (uint32_t block = first; block < end; block++) {
        uint32_t frame = pllm_pager_page_frame(engine->pager, blocks->scratch[block - first]);
        table[block] = frame;
        if (frame >= blocks->frame_end) blocks->frame_end = frame + 1;
    }
    blocks->tables_changed = 1;
}

/* Pins blocks [first, end); whose failure it is, if content was lost, is noted. */
int pllm_cuda_blocks_pin(pllm_engine *engine, const pass_item *item, uint32_t layer, uint32_t first,
                         uint32_t end, pllm_pin_mode mode)
{
    uint32_t count = list_pages(engine, item, layer, first, end);
    if (count == 0) return PLLM_OK;
    int status = pllm_pager_pin(engine->pager, engine->cuda->blocks.scratch, count, mode, NULL);
    if (status == PLLM_OK) enter_in_table(engine, item, layer, first, end);
    if (status == PLLM_EIO || status == PLLM_ECORRUPT) {
        engine->pass.failed_item = item->step_item;
        engine->lost_pages++;
    }
    return status;
}

void pllm_cuda_blocks_unpin(pllm_engine *engine, const pass_item *item, uint32_t layer,
                            uint32_t first, uint32_t end)
{
    uint32_t count = list_pages(engine, item, layer, first, end);
    if (count) pllm_pager_unpin(engine->pager, engine->cuda->blocks.scratch, count);
}

void pllm_cuda_blocks_let_go(pllm_engine *engine, pllm_sequence *sequence)
{
    if (!engine->cuda || !engine->cuda->blocks.held) return;
    for (pllm_sequence *s = engine->sequences; s; s = s->next) {
        if (sequence && s != sequence) continue;
        const pass_item item = {.sequence = s};
        for (uint32_t layer = 0; layer < engine->shape.layer_count; layer++) {
            uint32_t *held = held_of(engine, layer, s->slot);
            pllm_cuda_blocks_unpin(engine, &item, layer, 0, *held);
            *held = 0;
        }
    }
    if (!sequence) close_ring(engine); /* opened again when it is needed */
}

/* --- what this pass holds --- */

static int in_pass(const pllm_engine *engine, const pllm_sequence *sequence)
{
    for (uint32_t i = 0; i < engine->pass.item_count; i++)
        if (engine->pass.items[i].sequence == sequence) return 1;
    return 0;
}

static uint32_t blocks_of(const pass_item *item)
{
    return item->sequence->group_count + item->new_count;
}

/* Whole chunks, sequence by sequence and chunk by chunk, until a layer's share is used up. */
static void share_out(pllm_engine *engine, uint64_t quota)
{
    pllm_pass *pass = &engine->pass;
    uint32_t *target = engine->cuda->blocks.target;
    for (uint32_t i = 0; i < pass->item_count; i++) target[pass->items[i].sequence->slot] = 0;
    int took = 1;
    while (took) {
        took = 0;
        for (uint32_t i = 0; i < pass->item_count; i++) {
            uint32_t *t = &target[pass->items[i].sequence->slot];
            uint32_t left = blocks_of(&pass->items[i]) - *t;
            uint32_t step = left < PLLM_CHUNK_BLOCKS ? left : PLLM_CHUNK_BLOCKS;
            if (step == 0 || step > quota) continue;
            *t += step;
            quota -= step;
            took = 1;
        }
    }
}

static int open_ring(pllm_engine *engine)
{
    cuda_blocks *blocks = &engine->cuda->blocks;
    pllm_device *device = engine->device;
    if (blocks->has_ring) return PLLM_OK;
    for (uint32_t i = 0; i < WAVE_GROUPS; i++) {
        int status =
            blocks->loaded[i] ? PLLM_OK : device->ops->event_open(device, &blocks->loaded[i]);
        if (status == PLLM_OK && !blocks->released[i])
            status = device->ops->event_open(device, &blocks->released[i]);
        if (status < 0) return status;
    }
    uint32_t made = 0;
    int status = PLLM_OK;
    while (status == PLLM_OK && made < ring_count(blocks)) {
        status = pllm_pager_page_new(engine->pager, PLLM_NONE, 0, &blocks->ring_pages[made]);
        made += status == PLLM_OK;
    }
    if (status == PLLM_OK)
        status = pllm_pager_pin(engine->pager, blocks->ring_pages, ring_count(blocks), PLLM_PIN_NEW,
                                NULL);
    if (status < 0) {
        while (made > 0) pllm_pager_page_free(engine->pager, blocks->ring_pages[--made]);
        return status;
    }
    for (uint32_t i = 0; i < ring_count(blocks); i++)
        blocks->ring_frames[i] = pllm_pager_page_frame(engine->pager, blocks->ring_pages[i]);
    blocks->has_ring = 1;
    return PLLM_OK;
}

static uint64_t frame_limit(const pllm_engine *engine)
{
    pllm_pager_stats stats;
    pllm_pager_stats_get(engine->pager, &stats);
    return stats.tiers.frame_limit;
}

/* Two batches of a chunk at least, where blocks come from disk. */
static uint32_t batch_frames(const pllm_engine *engine)
{
    return engine->options.nvme_size_bytes ? 2 * PLLM_CHUNK_BLOCKS : 0;
}

uint32_t pllm_cuda_blocks_least(const pllm_engine *engine)
{
    return ring_count(&engine->cuda->blocks) + batch_frames(engine) +
           engine->shape.layer_count * engine->cache.sequence_max;
}

uint32_t pllm_cuda_blocks_of_prompts(const pllm_engine *engine)
{
    const pllm_cuda_state *state = engine->cuda;
    uint64_t limit = frame_limit(engine), taken = pllm_cuda_blocks_least(engine);
    if (!state->prompt_space) taken += state->prompt_bytes / engine->cache.sealed_bytes + 1;
    uint64_t one = engine->cache.block_max, most = limit > taken ? limit - taken : 0;
    if (most < one) most = one;
    return most < UINT32_MAX ? (uint32_t)most : UINT32_MAX;
}

/* How many blocks of each sequence of the pass are to be held. */
static int choose_targets(pllm_engine *engine)
{
    cuda_blocks *blocks = &engine->cuda->blocks;
    pllm_pass *pass = &engine->pass;
    uint64_t layers = engine->shape.layer_count, total = 0, idle = 0, working = 0;
    for (uint32_t i = 0; i < pass->item_count; i++) {
        const pass_item *item = &pass->items[i];
        total += blocks_of(item) * layers;
        /* Two layers of a prompt are pinned at a time; a generated row seals a block a layer. */
        working += item->decode ? layers : 2ull * blocks_of(item);
    }
    for (const pllm_sequence *s = engine->sequences; s; s = s->next)
        if (!in_pass(engine, s))
            for (uint32_t layer = 0; layer < layers; layer++)
                idle += *held_of(engine, layer, s->slot);
    uint64_t ring = blocks->has_ring ? ring_count(blocks) : 0, limit = frame_limit(engine);
    if (total + idle + ring > limit && pass->prompt_items == 0 && engine->cuda->prompt_space) {
        pllm_cuda_prompt_space_close(engine);
        limit = frame_limit(engine);
    }
    blocks->streaming = 0;
    if (total + idle + ring > limit) {
        for (pllm_sequence *s = engine->sequences; s; s = s->next)
            if (!in_pass(engine, s)) pllm_cuda_blocks_let_go(engine, s);
        if (total + ring > limit) blocks->streaming = 1;
    }
    if (blocks->streaming) working += batch_frames(engine);
    uint64_t spare = ring_count(blocks) + working;
    blocks->frame_limit = limit;
    blocks->working = working;
    share_out(engine, blocks->streaming ? (limit > spare ? (limit - spare) / layers : 0) : total);
    return PLLM_OK;
}

/* What is to be held and is not yet, in pieces, item by item and layer by layer. */
typedef struct hold_walk {
    uint32_t item, layer, block; /* block: 0: this layer's first piece */
} hold_walk;
typedef struct hold_piece {
    const pass_item *item;
    uint32_t layer, first, end;
} hold_piece;

static uint32_t target_of(const pllm_engine *engine, const pass_item *item)
{
    uint32_t target = engine->cuda->blocks.target[item->sequence->slot];
    return target < item->sequence->group_count ? target : item->sequence->group_count;
}

static int hold_next(pllm_engine *engine, hold_walk *walk, hold_piece *piece_out)
{
    for (; walk->item < engine->pass.item_count; walk->item++, walk->layer = 0)
        for (; walk->layer < engine->shape.layer_count; walk->layer++, walk->block = 0) {
            const pass_item *item = &engine->pass.items[walk->item];
            uint32_t target = target_of(engine, item), first = walk->block;
            if (first == 0) first = *held_of(engine, walk->layer, item->sequence->slot);
            if (first >= target) continue;
            walk->block = target - first < HOLD_PIECE ? target : first + HOLD_PIECE;
            *piece_out = (hold_piece){item, walk->layer, first, walk->block};
            return 1;
        }
    return 0;
}

static void announce(pllm_engine *engine, const hold_piece *piece)
{
    uint32_t count = list_pages(engine, piece->item, piece->layer, piece->first, piece->end);
    pllm_pager_hint(engine->pager, engine->cuda->blocks.scratch, count, PLLM_WILL_NEED);
    (void)pllm_pager_poll(engine->pager); /* off they go */
}

/* Blocks that are not resident come over the link, which does not rest: those of the next pieces
 * are on their way while one is waited for, and while the CPU enters it in the tables. */
static int hold_targets(pllm_engine *engine)
{
    pllm_pass *pass = &engine->pass;
    for (uint32_t i = 0; i < pass->item_count; i++) /* first make room */
        for (uint32_t layer = 0; layer < engine->shape.layer_count; layer++) {
            const pass_item *item = &pass->items[i];
            uint32_t *held = held_of(engine, layer, item->sequence->slot);
            uint32_t target = target_of(engine, item);
            if (*held <= target) continue;
            pllm_cuda_blocks_unpin(engine, item, layer, target, *held);
            *held = target;
        }
    hold_walk at = {0}, ahead = {0};
    hold_piece piece, later;
    uint32_t announced = 0;
    for (uint32_t pieces = 0; hold_next(engine, &at, &piece); pieces++) {
        while (announced <= pieces + HOLD_AHEAD && hold_next(engine, &ahead, &later)) {
            announce(engine, &later);
            announced++;
        }
        int status = pllm_cuda_blocks_pin(engine, piece.item, piece.layer, piece.first, piece.end,
                                          PLLM_PIN_READ);
        if (status < 0) return status;
        *held_of(engine, piece.layer, piece.item->sequence->slot) = piece.end;
    }
    return PLLM_OK;
}

/* --- the plan of what is streamed --- */

static int add_copy(pllm_engine *engine, pllm_va to, const void *from, uint32_t wave_first)
{
    cuda_blocks *blocks = &engine->cuda->blocks;
    uint64_t bytes = engine->cache.sealed_bytes;
    pllm_copy *last =
        blocks->copy_count > wave_first ? &blocks->copies[blocks->copy_count - 1] : NULL;
    if (last && last->to + last->bytes == to && last->from + last->bytes == (uintptr_t)from) {
        last->bytes += bytes; /* neighbours in both places go as one */
        return PLLM_OK;
    }
    if (blocks->copy_count == blocks->copy_room) {
        uint32_t room = blocks->copy_room ? 2 * blocks->copy_room : 1024;
        pllm_copy *grown = pllm_grow(engine->context, blocks->copies,
                                     blocks->copy_count * sizeof *grown, room * sizeof *grown);
        if (!grown) return pllm_fail_memory("the copies of a step", room * sizeof *grown);
        blocks->copies = grown;
        blocks->copy_room = room;
    }
    blocks->copies[blocks->copy_count++] =
        (pllm_copy){.to = to, .from = (uintptr_t)from, .bytes = bytes};
    return PLLM_OK;
}

static int borrow(pllm_engine *engine, const pass_item *item, pllm_page page)
{
    cuda_blocks *blocks = &engine->cuda->blocks;
    if (blocks->borrowed_count == blocks->borrowed_room) {
        uint32_t room = blocks->borrowed_room ? 2 * blocks->borrowed_room : 256;
        pllm_page *grown = pllm_grow(engine->context, blocks->borrowed,
                                     blocks->borrowed_count * sizeof *grown, room * sizeof *grown);
        if (!grown) return pllm_fail_memory("the list of borrowed blocks", room * sizeof *grown);
        blocks->borrowed = grown;
        blocks->borrowed_room = room;
    }
    int status = pllm_pager_pin(engine->pager, &page, 1, PLLM_PIN_READ, NULL);
    if (status == PLLM_OK) blocks->borrowed[blocks->borrowed_count++] = page;
    if (status == PLLM_EIO || status == PLLM_ECORRUPT) {
        engine->pass.failed_item = item->step_item;
        engine->lost_pages++;
    }
    return status;
}

void pllm_cuda_blocks_return(pllm_engine *engine)
{
    cuda_blocks *blocks = &engine->cuda->blocks;
    if (blocks->borrowed_count)
        pllm_pager_unpin(engine->pager, blocks->borrowed, blocks->borrowed_count);
    blocks->borrowed_count = 0;
}

/* A new wave of a layer, with no chunks in it yet. */
static cuda_wave *new_wave(pllm_engine *engine, uint32_t rows)
{
    cuda_blocks *blocks = &engine->cuda->blocks;
    if (blocks->wave_count == blocks->wave_room) {
        uint32_t room = blocks->wave_room ? 2 * blocks->wave_room : 64;
        cuda_wave *grown = pllm_grow(engine->context, blocks->waves,
                                     blocks->wave_count * sizeof *grown, room * sizeof *grown);
        if (!grown) {
            pllm_fail_memory("the waves of a step", room * sizeof *grown);
            return NULL;
        }
        blocks->waves = grown;
        blocks->wave_room = room;
    }
    cuda_wave *wave = &blocks->waves[blocks->wave_count++];
    wave->copy_first = blocks->copy_count;
    wave->copy_count = 0;
    wave->group = (uint32_t)(blocks->groups_used++ % blocks->group_count);
    wave->ranges = pllm_cuda_args(engine->cuda, 2 * rows, &wave->ranges_va);
    if (!wave->ranges) {
        pllm_fail(PLLM_ELIMIT, 0, "a step of %u rows streams more blocks than can be planned",
                  rows);
        return NULL;
    }
    memset(wave->ranges, 0, 2ull * rows * sizeof *wave->ranges);
    return wave;
}

/* Frames that may still be borrowed: what is not held, nor the ring's, nor needed for new blocks.
 */
static void count_borrowable(pllm_engine *engine)
{
    cuda_blocks *blocks = &engine->cuda->blocks;
    uint64_t taken = ring_count(blocks) + blocks->working;
    for (const pllm_sequence *s = engine->sequences; s; s = s->next)
        for (uint32_t layer = 0; layer < engine->shape.layer_count; layer++)
            taken +=
                in_pass(engine, s) ? blocks->target[s->slot] : *held_of(engine, layer, s->slot);
    blocks->borrowable = taken < blocks->frame_limit ? blocks->frame_limit - taken : 0;
}

/* Where a block is to be copied from; NULL: it is to be borrowed where it is. */
static const void *source_of(pllm_engine *engine, pllm_page page)
{
    cuda_blocks *blocks = &engine->cuda->blocks;
    if (pllm_pager_is_resident(engine->pager, page) && blocks->borrowable > 0) return NULL;
    const void *copy = pllm_pager_host_copy(engine->pager, page);
    if (copy) return copy;
    /* Its only copy is in a frame that is needed: written now, it can be streamed. */
    if (pllm_pager_evict_pages(engine->pager, &page, 1) < 0) return NULL;
    return pllm_pager_host_copy(engine->pager, page);
}

/* Brings one block into a place of the wave. Returns 1 if it took a ring frame, 0, or negative. */
static int plan_block(pllm_engine *engine, const pass_item *item, uint32_t layer, uint32_t block,
                      const cuda_wave *wave, uint32_t used)
{
    cuda_blocks *blocks = &engine->cuda->blocks;
    uint32_t *entry = &table_of(engine, layer, item->sequence->slot)[block];
    engine->pass.layer = layer;
    pllm_page page = pllm_pass_page(&engine->pass, item, block);
    const void *from = source_of(engine, page);
    if (!from && !pllm_pager_is_resident(engine->pager, page)) {
        blocks->by_pager = 1; /* it could only be written to disk: the pager brings them all */
        return 0;
    }
    if (!from) {
        int status = borrow(engine, item, page);
        if (blocks->borrowable) blocks->borrowable--;
        if (status < 0) return status;
        *entry = pllm_pager_page_frame(engine->pager, page);
        return 0;
    }
    *entry = blocks->ring_frames[wave->group * blocks->wave_blocks + used];
    int status = add_copy(engine, engine->cuda->kv.frames + *entry * engine->cuda->kv.frame_bytes,
                          from, wave->copy_first);
    blocks->streamed_bytes += engine->cache.sealed_bytes;
    return status < 0 ? status : 1;
}

static uint32_t chunks_of(const pass_item *item)
{
    return item->start / PLLM_CHUNK_TOKENS + 1; /* with the row's own token, at position start */
}

/* The chunks of one row that are not held, into this and further waves. */
static int plan_row(pllm_engine *engine, uint32_t layer, uint32_t row, uint32_t rows,
                    cuda_wave **wave, uint32_t *used)
{
    const pass_item *item = &engine->pass.items[row];
    uint32_t count = item->sequence->group_count;
    uint32_t target = engine->cuda->blocks.target[item->sequence->slot];
    if (target >= count) return PLLM_OK;
    for (uint32_t chunk = target / PLLM_CHUNK_BLOCKS; chunk < chunks_of(item); chunk++) {
        uint32_t first = chunk * PLLM_CHUNK_BLOCKS;
        uint32_t end = first + PLLM_CHUNK_BLOCKS < count ? first + PLLM_CHUNK_BLOCKS : count;
        uint32_t needed =
            end > first ? end - first : 0; /* the last may have its open block alone */
        if (!*wave || *used + needed > engine->cuda->blocks.wave_blocks) {
            *wave = new_wave(engine, rows);
            if (!*wave) return pllm_last_error()->status;
            *used = 0;
        }
        uint32_t *range = (*wave)->ranges;
        if (range[rows + row] == 0) range[row] = chunk;
        range[rows + row] = chunk + 1;
        for (uint32_t block = first; block < end; block++) {
            int took = plan_block(engine, item, layer, block, *wave, *used);
            if (took < 0) return took;
            *used += (uint32_t)took;
        }
        (*wave)->copy_count = engine->cuda->blocks.copy_count - (*wave)->copy_first;
    }
    return PLLM_OK;
}

/* Is a block that this pass reads neither on the device nor in host memory? */
static int needs_disk(pllm_engine *engine, uint32_t rows)
{
    for (uint32_t row = 0; row < rows; row++) {
        const pass_item *item = &engine->pass.items[row];
        uint32_t first = engine->cuda->blocks.target[item->sequence->slot];
        for (uint32_t layer = 0; layer < engine->shape.layer_count; layer++) {
            engine->pass.layer = layer;
            for (uint32_t block = first; block < item->sequence->group_count; block++) {
                pllm_page page = pllm_pass_page(&engine->pass, item, block);
                if (!pllm_pager_is_resident(engine->pager, page) &&
                    !pllm_pager_host_copy(engine->pager, page))
                    return 1;
            }
        }
    }
    return 0;
}

static int plan_waves(pllm_engine *engine, uint32_t rows)
{
    cuda_blocks *blocks = &engine->cuda->blocks;
    blocks->wave_count = blocks->copy_count = 0;
    count_borrowable(engine);
    blocks->by_pager = engine->options.nvme_size_bytes > 0 && needs_disk(engine, rows);
    if (blocks->by_pager) return PLLM_OK;
    /* Held chunks need no wave: they are attended while the first of the others arrive. */
    blocks->held_ranges = pllm_cuda_args(engine->cuda, 2 * rows, &blocks->held_ranges_va);
    for (uint32_t row = 0; row < rows; row++) {
        const pass_item *item = &engine->pass.items[row];
        uint32_t target = blocks->target[item->sequence->slot];
        blocks->held_ranges[row] = 0;
        blocks->held_ranges[rows + row] =
            target >= item->sequence->group_count ? chunks_of(item) : target / PLLM_CHUNK_BLOCKS;
    }
    for (uint32_t layer = 0; layer < engine->shape.layer_count; layer++) {
        cuda_wave *wave = NULL;
        uint32_t used = 0;
        blocks->waves_of_layer[layer] = blocks->wave_count;
        for (uint32_t row = 0; row < rows; row++) {
            int status = plan_row(engine, layer, row, rows, &wave, &used);
            if (status < 0) return status;
            if (!blocks->by_pager) continue;
            pllm_cuda_blocks_return(engine);
            count_borrowable(engine);
            return PLLM_OK;
        }
    }
    blocks->waves_of_layer[engine->shape.layer_count] = blocks->wave_count;
    blocks->tables_changed = 1;
    return PLLM_OK;
}

int pllm_cuda_blocks_balance(pllm_engine *engine)
{
    cuda_blocks *blocks = &engine->cuda->blocks;
    blocks->entered = blocks->left = 0;
    int status = choose_targets(engine);
    if (status == PLLM_OK) status = hold_targets(engine);
    if (status < 0 || !blocks->streaming) return status;
    uint32_t rows = engine->pass.item_count - engine->pass.prompt_items;
    if (rows == 0) return PLLM_OK;
    status = open_ring(engine);
    return status < 0 ? status : plan_waves(engine, rows);
}

/* --- a layer --- */

int pllm_cuda_blocks_enter(pllm_engine *engine, uint32_t layer)
{
    cuda_blocks *blocks = &engine->cuda->blocks;
    pllm_pass *pass = &engine->pass;
    uint32_t i = 0;
    int status = PLLM_OK;
    for (; i < pass->item_count; i++) {
        const pass_item *item = &pass->items[i];
        uint32_t count = item->sequence->group_count;
        uint32_t held = *held_of(engine, layer, item->sequence->slot);
        if (!item->decode)
            status = pllm_cuda_blocks_pin(engine, item, layer, held, count, PLLM_PIN_READ);
        if (status < 0) break;
        status = pllm_cuda_blocks_pin(engine, item, layer, count, blocks_of(item), PLLM_PIN_NEW);
        if (status == PLLM_OK) continue;
        if (!item->decode) pllm_cuda_blocks_unpin(engine, item, layer, held, count);
        break;
    }
    if (status == PLLM_OK) {
        blocks->entered = layer + 1;
        return PLLM_OK;
    }
    while (i-- > 0) {
        const pass_item *item = &pass->items[i];
        uint32_t count = item->sequence->group_count;
        uint32_t held = *held_of(engine, layer, item->sequence->slot);
        pllm_cuda_blocks_unpin(engine, item, layer, item->decode ? count : held, blocks_of(item));
    }
    return status;
}

void pllm_cuda_blocks_leave(pllm_engine *engine, uint32_t layer, int sealed)
{
    cuda_blocks *blocks = &engine->cuda->blocks;
    pllm_pass *pass = &engine->pass;
    for (uint32_t i = 0; i < pass->item_count; i++) {
        const pass_item *item = &pass->items[i];
        uint32_t count = item->sequence->group_count, all = blocks_of(item);
        uint32_t *held = held_of(engine, layer, item->sequence->slot);
        uint32_t pinned_first = item->decode ? count : *held;
        uint32_t keep = *held;
        if (sealed) {
            uint32_t new_pages = list_pages(engine, item, layer, count, all);
            for (uint32_t j = 0; j < new_pages; j++)
                pllm_pager_seal(engine->pager, blocks->scratch[j]);
            /* The run that is held grows, if it reaches what is pinned here. */
            if (*held >= pinned_first) {
                keep = blocks->target[item->sequence->slot];
                if (keep > all) keep = all;
                if (keep < *held) keep = *held;
            }
        }
        pllm_cuda_blocks_unpin(engine, item, layer, keep > pinned_first ? keep : pinned_first, all);
        *held = keep;
    }
    blocks->left = layer + 1;
}

/* What a failed pass pinned for blocks that will not be. */
void pllm_cuda_blocks_undo(pllm_engine *engine)
{
    cuda_blocks *blocks = &engine->cuda->blocks;
    pllm_pass *pass = &engine->pass;
    while (blocks->left < blocks->entered) pllm_cuda_blocks_leave(engine, blocks->left, 0);
    for (uint32_t i = 0; i < pass->item_count; i++)
        for (uint32_t layer = 0; layer < engine->shape.layer_count; layer++) {
            const pass_item *item = &pass->items[i];
            uint32_t *held = held_of(engine, layer, item->sequence->slot);
            if (*held <= item->sequence->group_count) continue;
            pllm_cuda_blocks_unpin(engine, item, layer, item->sequence->group_count, *held);
            *held = item->sequence->group_count;
        }
    pllm_cuda_blocks_return(engine);
}

static int attend_wave(pllm_engine *engine, pllm_cuda_decode *decode, const cuda_wave *wave)
{
    pllm_cuda_state *state = engine->cuda;
    cuda_blocks *blocks = &state->blocks;
    const pllm_device_ops *ops = engine->device->ops;
    pllm_event *loaded = blocks->loaded[wave->group], *released = blocks->released[wave->group];
    int status = ops->stream_wait(engine->device, state->copies, released);
    if (status == PLLM_OK && wave->copy_count)
        status = ops->copy_batch(engine->device, state->copies, PLLM_COPY_IN,
                                 blocks->copies + wave->copy_first, wave->copy_count);
    if (status == PLLM_OK) status = ops->event_record(engine->device, loaded, state->copies);
    if (status == PLLM_OK) status = ops->stream_wait(engine->device, state->compute, loaded);
    decode->row_chunk_first = wave->ranges_va;
    decode->row_chunk_end = wave->ranges_va + decode->rows * sizeof(uint32_t);
    if (status == PLLM_OK)
        status = pllm_cuda_attend_decode(state->attention, state->compute, decode);
    if (status == PLLM_OK) status = ops->event_record(engine->device, released, state->compute);
    return status;
}

int pllm_cuda_blocks_attend(pllm_engine *engine, uint32_t layer, pllm_cuda_decode *decode)
{
    pllm_cuda_state *state = engine->cuda;
    cuda_blocks *blocks = &state->blocks;
    decode->row_chunk_first = decode->row_chunk_end = 0;
    if (!blocks->streaming)
        return pllm_cuda_attend_decode(state->attention, state->compute, decode);
    if (blocks->by_pager) return pllm_cuda_paged_attend(engine, layer, decode);
    decode->row_chunk_first = blocks->held_ranges_va;
    decode->row_chunk_end = blocks->held_ranges_va + decode->rows * sizeof(uint32_t);
    int status = pllm_cuda_attend_decode(state->attention, state->compute, decode);
    for (uint32_t i = blocks->waves_of_layer[layer];
         status == PLLM_OK && i < blocks->waves_of_layer[layer + 1]; i++)
        status = attend_wave(engine, decode, &blocks->waves[i]);
    return status;
}
