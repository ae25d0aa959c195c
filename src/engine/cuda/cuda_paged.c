/* cuda_paged.c - attention of generated rows over blocks that lie on disk.
 *
 * A disk is read through staging by threads of the host, so this is the one place where a pass
 * waits on the CPU: the pager pins a batch of chunks, the GPU attends them, and meanwhile the next
 * batch is on its way (a hint). Half of what may be borrowed is a batch, so that two fit. Against a
 * disk's few GB/s the waiting costs nothing. Blocks in host memory come the same way here: mixing
 * both kinds in one step is for the pager to order. */
#include "engine/cuda/cuda_state.h"

enum { BATCH_MAX = 512 };

static uint32_t batch_blocks(const cuda_blocks *blocks)
{
    uint64_t half = blocks->borrowable / 2;
    if (half > BATCH_MAX) half = BATCH_MAX;
    half -= half % PLLM_CHUNK_BLOCKS;
    return half < PLLM_CHUNK_BLOCKS ? PLLM_CHUNK_BLOCKS : (uint32_t)half;
}

/* What comes after this batch: the next of the row, or the first of the next layer. */
static void announce(pllm_engine *engine, const pass_item *item, uint32_t layer, uint32_t first,
                     uint32_t count)
{
    cuda_blocks *blocks = &engine->cuda->blocks;
    uint32_t all = item->sequence->group_count;
    if (first >= all) {
        if (++layer == engine->shape.layer_count) return;
        first = blocks->target[item->sequence->slot];
    }
    uint32_t end = first + count < all ? first + count : all, listed = 0;
    engine->pass.layer = layer;
    for (uint32_t block = first; block < end; block++)
        blocks->scratch[listed++] = pllm_pass_page(&engine->pass, item, block);
    pllm_pager_hint(engine->pager, blocks->scratch, listed, PLLM_WILL_NEED);
}

/* Chunks [first, end) of one row, whose blocks are in the table. Ranges are written anew each time,
 * so the stream is waited for. */
static int attend(pllm_engine *engine, uint32_t layer, pllm_cuda_decode *decode, uint32_t *ranges,
                  pllm_va ranges_va, uint32_t row, uint32_t chunk_first, uint32_t chunk_end)
{
    pllm_cuda_state *state = engine->cuda;
    const pllm_kv_cache *cache = &engine->cache;
    for (uint32_t i = 0; i < 2 * decode->rows; i++) ranges[i] = 0;
    ranges[row] = chunk_first;
    ranges[decode->rows + row] = chunk_end;
    uint64_t table =
        ((uint64_t)layer * cache->sequence_max + engine->pass.items[row].sequence->slot) *
        cache->block_max * sizeof(uint32_t);
    int status = pllm_cuda_upload(engine, ranges_va, ranges, 2ull * decode->rows * sizeof *ranges);
    if (status == PLLM_OK)
        status = pllm_cuda_upload(engine, state->tables + table,
                                  (const char *)state->blocks.tables + table,
                                  cache->block_max * sizeof(uint32_t));
    decode->row_chunk_first = ranges_va;
    decode->row_chunk_end = ranges_va + decode->rows * sizeof(uint32_t);
    if (status == PLLM_OK)
        status = pllm_cuda_attend_decode(state->attention, state->compute, decode);
    int synced = engine->device->ops->stream_sync(engine->device, state->compute);
    return status < 0 ? status : synced;
}

static int attend_row(pllm_engine *engine, uint32_t layer, pllm_cuda_decode *decode,
                      uint32_t *ranges, pllm_va ranges_va, uint32_t row)
{
    cuda_blocks *blocks = &engine->cuda->blocks;
    const pass_item *item = &engine->pass.items[row];
    uint32_t all = item->sequence->group_count, step = batch_blocks(blocks);
    uint32_t target = blocks->target[item->sequence->slot];
    uint32_t chunks = item->start / PLLM_CHUNK_TOKENS + 1;
    uint32_t first = target >= all ? all : target;
    uint32_t chunk = target >= all ? chunks : target / PLLM_CHUNK_BLOCKS;
    int status = PLLM_OK;
    if (chunk > 0) status = attend(engine, layer, decode, ranges, ranges_va, row, 0, chunk);
    while (status == PLLM_OK && chunk < chunks) {
        uint32_t end = first + step < all ? first + step : all;
        uint32_t chunk_end = end == all ? chunks : end / PLLM_CHUNK_BLOCKS;
        status = pllm_cuda_blocks_pin(engine, item, layer, first, end, PLLM_PIN_READ);
        if (status < 0) break;
        announce(engine, item, layer, end, step);
        status = attend(engine, layer, decode, ranges, ranges_va, row, chunk, chunk_end);
        pllm_cuda_blocks_unpin(engine, item, layer, first, end);
        first = end;
        chunk = chunk_end;
    }
    return status;
}

int pllm_cuda_paged_attend(pllm_engine *engine, uint32_t layer, pllm_cuda_decode *decode)
{
    pllm_cuda_state *state = engine->cuda;
    uint32_t used = state->args_used; /* the ranges' place serves every layer */
    pllm_va ranges_va;
    uint32_t *ranges = pllm_cuda_args(state, 2 * decode->rows, &ranges_va);
    if (!ranges)
        return pllm_fail(PLLM_ELIMIT, 0, "a pass of %u rows has too many arguments", decode->rows);
    int status = PLLM_OK;
    for (uint32_t row = 0; status == PLLM_OK && row < decode->rows; row++)
        status = attend_row(engine, layer, decode, ranges, ranges_va, row);
    state->args_used = used;
    return status;
}
