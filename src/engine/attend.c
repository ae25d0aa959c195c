/* attend.c - one layer's attention: which blocks can be attended now, and attending them.
 *
 * Attention goes by chunks of 256 tokens (8 blocks). Thread 0 plans waves: a wave is a set of
 * chunks whose blocks are all pinned; every thread then works on it, and while it does the pager's
 * transfers go on. With everything resident there is one wave. When nothing more is resident
 * thread 0 waits for the first chunk that is missing.
 *
 *   generated rows: any chunk may come first; each leaves a partial result, and whoever finishes a
 *     head's last chunk merges its partials in ascending order. A task is (chunk, KV head).
 *   prompt rows: chunks are merged into a running state, so they come in ascending order. A task is
 *     (block of 32 positions, KV head) over the wave's chunks.
 *
 * A row at position p sees blocks before p / 32 as sealed, and its own as it was appended (open):
 * a function of p alone, so that the cut of a prompt into pieces never shows. */
#include <math.h>
#include <string.h>
#include "engine/engine_internal.h"

/* Looking further than this for chunks that happen to be resident costs more than it finds: the
 * static share comes first and the rest arrives in order. */
enum { MISSES_MAX = 3 };

static void *stage_block(const pllm_engine *engine, const pass_item *item, uint32_t block)
{
    uint32_t index = item->stage_first + block - item->start / PLLM_BLOCK_TOKENS;
    return engine->host->stage + (uint64_t)index * engine->cache.open_bytes;
}

static int plain(const pllm_engine *engine)
{
    return engine->cache.shape.sealed == engine->cache.shape.open;
}

/* Blocks of a chunk that must be pinned: [*first, *end). In the chunk that a prompt tile lies in,
 * a plain format takes the tile's own blocks from staging, which holds the same bits. */
static void chunk_blocks(const pllm_engine *engine, const pass_item *item, uint32_t chunk,
                         uint32_t *first, uint32_t *end)
{
    uint32_t last = (item->start + item->rows - 1) / PLLM_BLOCK_TOKENS;
    uint32_t limit = !item->decode && plain(engine) ? item->start / PLLM_BLOCK_TOKENS : last;
    *first = chunk * PLLM_CHUNK_BLOCKS;
    *end = *first + PLLM_CHUNK_BLOCKS < limit ? *first + PLLM_CHUNK_BLOCKS : limit;
    if (*end < *first) *end = *first;
}

/* 1: pinned, 0: not now, negative: failed. must: wait for it. */
static int pin_chunks(pllm_pass *pass, attention_wave *wave, pass_item *item, uint32_t chunk_first,
                      uint32_t chunk_end, int must)
{
    pllm_engine *engine = pass->engine;
    pllm_page *pages = wave->pinned + wave->pinned_count;
    uint32_t first, end, last_end, unused, count = 0;
    chunk_blocks(engine, item, chunk_first, &first, &end);
    chunk_blocks(engine, item, chunk_end - 1, &unused, &last_end);
    for (uint32_t block = first; block < last_end; block++)
        pages[count++] = pllm_pass_page(pass, item, block);
    if (count == 0) return 1;
    int status =
        must ? pllm_pager_pin(engine->pager, pages, count, PLLM_PIN_READ, item->views + first)
             : pllm_pager_try_pin(engine->pager, pages, count, item->views + first);
    if (must && status == PLLM_OK) status = 1;
    if (status > 0) wave->pinned_count += count;
    if (status == PLLM_EIO || status == PLLM_ECORRUPT) {
        pass->failed_item = item->step_item;
        engine->lost_pages++;
    }
    return status;
}

static void wave_add(pllm_pass *pass, attention_wave *wave, const pass_item *item,
                     uint32_t chunk_first, uint32_t chunk_end)
{
    uint32_t blocks = 1, kv_heads = pass->engine->shape.kv_head_count;
    if (!item->decode)
        blocks = (item->start + item->rows - 1) / PLLM_BLOCK_TOKENS -
                 item->start / PLLM_BLOCK_TOKENS + 1;
    wave->entries[wave->entry_count++] = (wave_entry){.item = (uint32_t)(item - pass->items),
                                                      .chunk_first = chunk_first,
                                                      .chunk_end = chunk_end,
                                                      .task_first = wave->task_count};
    wave->task_count += blocks * kv_heads;
}

/* Everything of one item that can be pinned without waiting; or, with must, its first missing chunk
 * whatever it takes. */
static int plan_item(pllm_pass *pass, attention_wave *wave, pass_item *item, int must)
{
    if (item->chunks_left == 0) return PLLM_OK;
    uint32_t first = item->chunk_next, missed = 0;
    for (uint32_t chunk = first; chunk < item->chunk_count; chunk++) {
        if (item->decode && item->chunk_taken[chunk]) continue;
        int status = pin_chunks(pass, wave, item, chunk, chunk + 1, must);
        if (status < 0) return status;
        if (status == 0) {
            if (!item->decode || ++missed == MISSES_MAX) break;
            continue;
        }
        must = 0; /* one is enough to go on with */
        item->chunks_left--;
        if (item->decode) {
            item->chunk_taken[chunk] = 1;
            wave_add(pass, wave, item, chunk, chunk + 1);
        } else {
            item->chunk_next = chunk + 1;
        }
    }
    if (!item->decode && item->chunk_next > first)
        wave_add(pass, wave, item, first, item->chunk_next);
    return PLLM_OK;
}

static void wave_release(pllm_pass *pass, attention_wave *wave)
{
    pllm_pager_unpin(pass->engine->pager, wave->pinned, wave->pinned_count);
    wave->pinned_count = 0;
}

static void plan(pllm_pass *pass, attention_wave *wave)
{
    wave->entry_count = wave->task_count = wave->pinned_count = 0;
    wave->last = 1;
    if (pass->status < 0) return;
    int status = PLLM_OK;
    for (uint32_t i = 0; status == PLLM_OK && i < pass->item_count; i++)
        status = plan_item(pass, wave, &pass->items[i], 0);
    for (uint32_t i = 0; status == PLLM_OK && wave->entry_count == 0 && i < pass->item_count; i++)
        status = plan_item(pass, wave, &pass->items[i], 1);
    for (uint32_t i = 0; i < pass->item_count; i++)
        if (pass->items[i].chunks_left) wave->last = 0;
    if (status < 0) {
        pass->status = status;
        wave_release(pass, wave);
    }
}

void pllm_attend_plan_first(pllm_pass *pass)
{
    pllm_engine *engine = pass->engine;
    uint32_t decode_index = 0;
    for (uint32_t i = 0; i < pass->item_count; i++) {
        pass_item *item = &pass->items[i];
        item->chunk_count = (item->start + item->rows - 1) / PLLM_CHUNK_TOKENS + 1;
        item->chunks_left = item->chunk_count;
        item->chunk_next = 0;
        if (!item->decode) continue;
        memset(item->chunk_taken, 0, item->chunk_count);
        for (uint32_t head = 0; head < engine->shape.kv_head_count; head++)
            atomic_store_explicit(
                &pass->merges_left[decode_index * engine->shape.kv_head_count + head],
                item->chunk_count, memory_order_relaxed);
        decode_index++;
    }
    /* Prompts seal blocks first, and the frames for that must not be pinned away. */
    if (pass->prompt_items == 0) plan(pass, &pass->waves[0]);
}

/* A prompt's rows of one staging block: rotate q and k, write k and v into staging. */
static void append_prompt(pllm_pass *pass, const pass_item *item, uint32_t block)
{
    pllm_engine *engine = pass->engine;
    const pllm_model_shape *shape = &engine->shape;
    uint32_t half = shape->rope.dims / 2, d = shape->head_dim;
    uint32_t begin = block * PLLM_BLOCK_TOKENS, end = begin + PLLM_BLOCK_TOKENS;
    void *staged = stage_block(engine, item, block);
    if (begin < item->start) {
        memcpy(staged, pllm_kv_open_block(&engine->cache, item->sequence->slot, pass->layer),
               engine->cache.open_bytes);
        begin = item->start;
    }
    if (end > item->start + item->rows) end = item->start + item->rows;
    for (uint32_t position = begin; position < end; position++) {
        uint64_t row = item->row_first + position - item->start;
        float *q = engine->host->q + row * shape->head_count * d,
              *k = engine->host->k + row * shape->kv_head_count * d;
        const float *cosine = engine->host->cosine + row * half,
                    *sine = engine->host->sine + row * half;
        engine->host->kernels->rotary(q, shape->head_count, d, shape->rope.dims, cosine, sine,
                                      shape->rope.interleaved);
        engine->host->kernels->rotary(k, shape->kv_head_count, d, shape->rope.dims, cosine, sine,
                                      shape->rope.interleaved);
        float scale = 1.0f / sqrtf((float)d);
        for (uint32_t i = 0; i < shape->head_count * d; i++) q[i] *= scale;
        engine->host->kernels->attention->append(&engine->cache.shape, staged,
                                                 position % PLLM_BLOCK_TOKENS, k,
                                                 engine->host->v + row * shape->kv_head_count * d);
    }
}

/* Thread 0: full blocks of an item become pages. */
static int seal(pllm_pass *pass, const pass_item *item)
{
    pllm_engine *engine = pass->engine;
    for (uint32_t i = 0; i < item->new_count; i++) {
        uint32_t block = item->sequence->group_count + i;
        const void *open =
            item->decode ? pllm_kv_open_block(&engine->cache, item->sequence->slot, pass->layer)
                         : stage_block(engine, item, block);
        pllm_page page = pllm_pass_page(pass, item, block);
        void *view;
        int status = pllm_pager_pin(engine->pager, &page, 1, PLLM_PIN_NEW, &view);
        if (status < 0) return status;
        engine->host->kernels->attention->seal(&engine->cache.shape, view, open);
        if (engine->summaries)
            pllm_kv_summarise(
                &engine->cache.shape, open,
                engine->device->ops->host_view(
                    engine->device,
                    pllm_summary_va(engine, pllm_pass_group(item, block), pass->layer)));
        pllm_pager_unpin(engine->pager, &page, 1);
        pllm_pager_seal(engine->pager, page);
    }
    return PLLM_OK;
}

/* Thread 0: the unfinished block of each prompt becomes its sequence's open block. Only once every
 * task has read the one before. */
static void keep_open(pllm_pass *pass)
{
    pllm_engine *engine = pass->engine;
    for (uint32_t i = 0; i < pass->item_count; i++) {
        const pass_item *item = &pass->items[i];
        uint32_t end = item->start + item->rows;
        if (!item->decode && end % PLLM_BLOCK_TOKENS != 0)
            memcpy(pllm_kv_open_block(&engine->cache, item->sequence->slot, pass->layer),
                   stage_block(engine, item, end / PLLM_BLOCK_TOKENS), engine->cache.open_bytes);
    }
}

static void seal_all(pllm_pass *pass, int decode)
{
    for (uint32_t i = 0; i < pass->item_count && pass->status == PLLM_OK; i++)
        if ((int)pass->items[i].decode == decode) pass->status = seal(pass, &pass->items[i]);
}

static void prompt_task(pllm_pass *pass, const wave_entry *entry, uint32_t task, void *scratch)
{
    pllm_engine *engine = pass->engine;
    const pllm_model_shape *shape = &engine->shape;
    const pass_item *item = &pass->items[entry->item];
    uint32_t group = shape->head_count / shape->kv_head_count, d = shape->head_dim;
    uint32_t kv_head = task % shape->kv_head_count, heads = shape->head_count;
    uint32_t block = item->start / PLLM_BLOCK_TOKENS + task / shape->kv_head_count;
    uint32_t begin =
        block * PLLM_BLOCK_TOKENS < item->start ? item->start : block * PLLM_BLOCK_TOKENS;
    uint32_t end = (block + 1) * PLLM_BLOCK_TOKENS;
    if (end > item->start + item->rows) end = item->start + item->rows;
    uint32_t rows = end - begin;
    uint64_t row = item->row_first + begin - item->start;
    uint64_t state =
        (uint64_t)(item->stage_first + task / shape->kv_head_count) * shape->kv_head_count +
        kv_head;
    float *max = engine->host->state_max + state * PLLM_BLOCK_TOKENS * group;
    float *sum = engine->host->state_sum + state * PLLM_BLOCK_TOKENS * group;
    float *out = engine->host->state_out + state * PLLM_BLOCK_TOKENS * group * d;
    if (entry->chunk_first == 0) {
        for (uint32_t i = 0; i < rows * group; i++) max[i] = -INFINITY, sum[i] = 0;
        memset(out, 0, (uint64_t)rows * group * d * sizeof *out);
    }
    for (uint32_t chunk = entry->chunk_first; chunk < entry->chunk_end; chunk++) {
        uint32_t first = chunk * PLLM_CHUNK_BLOCKS, base = chunk * PLLM_CHUNK_TOKENS;
        pllm_kv_view view = {
            .token_count = end - base, .block_count = block + 1 - first, .last_open = 1};
        if (chunk + 1 < item->chunk_count)
            view =
                (pllm_kv_view){.token_count = PLLM_CHUNK_TOKENS, .block_count = PLLM_CHUNK_BLOCKS};
        uint32_t pinned_first, pinned_end;
        chunk_blocks(engine, item, chunk, &pinned_first, &pinned_end);
        for (uint32_t i = 0; i < view.block_count; i++)
            view.blocks[i] = first + i < pinned_end && !(view.last_open && first + i == block)
                                 ? item->views[first + i]
                                 : stage_block(engine, item, first + i);
        engine->host->kernels->attention->attend_prefill(
            &engine->cache.shape, &view, kv_head,
            engine->host->q + row * heads * d + (uint64_t)kv_head * group * d, (uint64_t)heads * d,
            group, rows, begin - base + 1, max, sum, out, scratch);
    }
    if (entry->chunk_end < item->chunk_count) return;
    for (uint32_t i = 0; i < rows; i++)
        for (uint32_t g = 0; g < group; g++)
            engine->host->kernels->attention->finish(
                engine->host->attended + (row + i) * heads * d +
                    (uint64_t)(kv_head * group + g) * d,
                out + ((uint64_t)i * group + g) * d, sum[i * group + g], d);
}

/* The generated row's index among generated rows: where its partials lie. */
static uint32_t decode_index(const pllm_pass *pass, uint32_t item)
{
    uint32_t index = 0;
    for (uint32_t i = 0; i < item; i++) index += pass->items[i].decode;
    return index;
}

/* The blocks of one chunk that a generated row sees, but for its own open one. */
static void view_chunk(const pllm_engine *engine, const pass_item *item, uint32_t chunk,
                       pllm_kv_view *view)
{
    uint32_t first = chunk * PLLM_CHUNK_BLOCKS, pinned_first, pinned_end;
    chunk_blocks(engine, item, chunk, &pinned_first, &pinned_end);
    *view = (pllm_kv_view){.token_count = (pinned_end - first) * PLLM_BLOCK_TOKENS,
                           .block_count = pinned_end - first};
    for (uint32_t i = 0; i < view->block_count; i++) view->blocks[i] = item->views[first + i];
}

/* next: what this thread attends after it with the same head, or NULL; only to fetch it early. */
static void decode_task(pllm_pass *pass, const wave_entry *entry, const wave_entry *next,
                        uint32_t kv_head, const thread_space *space)
{
    pllm_engine *engine = pass->engine;
    const pllm_model_shape *shape = &engine->shape;
    const pass_item *item = &pass->items[entry->item];
    uint32_t group = shape->head_count / shape->kv_head_count, d = shape->head_dim;
    uint32_t heads = shape->head_count, half = shape->rope.dims / 2, chunk = entry->chunk_first;
    uint64_t row = item->row_first;
    const float *cosine = engine->host->cosine + row * half,
                *sine = engine->host->sine + row * half;
    /* Each task rotates its own copy of q: cheaper than a phase of its own. */
    float *q = space->row;
    memcpy(q, engine->host->q + row * heads * d + (uint64_t)kv_head * group * d,
           group * d * sizeof *q);
    engine->host->kernels->rotary(q, group, d, shape->rope.dims, cosine, sine,
                                  shape->rope.interleaved);
    float scale = 1.0f / sqrtf((float)d);
    for (uint32_t i = 0; i < group * d; i++) q[i] *= scale;

    pllm_kv_view view, following;
    view_chunk(engine, item, chunk, &view);
    if (next) {
        view_chunk(engine, &pass->items[next->item], next->chunk_first, &following);
        view.next = &following;
    }
    if (chunk + 1 == item->chunk_count) {
        char *open = pllm_kv_open_block(&engine->cache, item->sequence->slot, pass->layer);
        float *k = q + group * d;
        memcpy(k, engine->host->k + (row * shape->kv_head_count + kv_head) * d, d * sizeof *k);
        engine->host->kernels->rotary(k, 1, d, shape->rope.dims, cosine, sine,
                                      shape->rope.interleaved);
        engine->host->kernels->attention->append(
            &engine->host->head_shape,
            open + kv_head * pllm_kv_slice_bytes(&engine->host->head_shape,
                                                 engine->host->head_shape.open),
            item->start % PLLM_BLOCK_TOKENS, k,
            engine->host->v + (row * shape->kv_head_count + kv_head) * d);
        view.blocks[view.block_count++] = open;
        view.last_open = 1;
        view.token_count = item->start + 1 - chunk * PLLM_CHUNK_TOKENS;
    }
    uint32_t index = decode_index(pass, entry->item), stride = engine->host->partial_stride;
    float *partials = engine->host->partials + (uint64_t)index * engine->chunk_max * stride;
    float *partial = partials + (uint64_t)chunk * stride, *out = partial + 2 * heads;
    uint32_t head = kv_head * group;
    engine->host->kernels->attention->attend_decode(&engine->cache.shape, &view, kv_head, q, group,
                                                    partial + head, partial + heads + head,
                                                    out + (uint64_t)head * d, space->attention);
    if (atomic_fetch_sub_explicit(&pass->merges_left[index * shape->kv_head_count + kv_head], 1,
                                  memory_order_acq_rel) != 1)
        return;
    for (uint32_t g = head; g < head + group; g++)
        engine->host->kernels->attention->merge(
            engine->host->attended + row * heads * d + (uint64_t)g * d, partials + g,
            partials + heads + g, partials + 2 * heads + (uint64_t)g * d, stride, item->chunk_count,
            d);
}

/* Generated rows only: tasks are head by head, chunk by chunk, handed out in ranges, so that a
 * thread knows which chunk it attends next. */
static void run_decode_wave(pass_thread *thread, const attention_wave *wave)
{
    pllm_pass *pass = thread->pass;
    pllm_engine *engine = pass->engine;
    thread_space *space = &engine->host->spaces[thread->index];
    uint32_t threads = pllm_threads_count(engine->threads);
    uint32_t grain = wave->task_count / (threads * 6), first, end;
    grain = grain < 1 ? 1 : grain > 8 ? 8 : grain;
    while (pllm_threads_next_range(engine->threads, wave->task_count, grain, &first, &end)) {
        /* More is to come: the disk is kept busy while this wave is worked on. */
        if (thread->index == 0 && !wave->last && pass->status == PLLM_OK)
            pass->status = pllm_pager_poll(engine->pager);
        for (uint32_t task = first; task < end; task++) {
            const wave_entry *entry = &wave->entries[task % wave->entry_count];
            int same_head = task + 1 < end && (task + 1) % wave->entry_count != 0;
            decode_task(pass, entry, same_head ? entry + 1 : NULL, task / wave->entry_count, space);
        }
    }
}

static void run_wave(pass_thread *thread, const attention_wave *wave)
{
    pllm_pass *pass = thread->pass;
    thread_space *space = &pass->engine->host->spaces[thread->index];
    if (pass->prompt_items == 0) {
        run_decode_wave(thread, wave);
        return;
    }
    for (uint32_t task; pllm_threads_next(pass->engine->threads, wave->task_count, &task);) {
        uint32_t low = 0, high = wave->entry_count;
        while (high - low > 1) {
            uint32_t middle = (low + high) / 2;
            if (wave->entries[middle].task_first <= task)
                low = middle;
            else
                high = middle;
        }
        const wave_entry *entry = &wave->entries[low];
        if (pass->items[entry->item].decode)
            decode_task(pass, entry, NULL, task - entry->task_first, space);
        else
            prompt_task(pass, entry, task - entry->task_first, space->attention);
    }
}

/* Appends every prompt's rows and seals its full blocks: two barriers more than decoding needs. */
static int enter_prompts(pass_thread *thread)
{
    pllm_pass *pass = thread->pass;
    for (uint32_t task; pllm_threads_next(pass->engine->threads, pass->stage_used, &task);) {
        uint32_t i = 0;
        for (; i < pass->item_count; i++) {
            const pass_item *item = &pass->items[i];
            uint32_t blocks = (item->start + item->rows - 1) / PLLM_BLOCK_TOKENS -
                              item->start / PLLM_BLOCK_TOKENS + 1;
            if (!item->decode && task >= item->stage_first && task < item->stage_first + blocks)
                break;
        }
        const pass_item *item = &pass->items[i];
        append_prompt(pass, item, item->start / PLLM_BLOCK_TOKENS + task - item->stage_first);
    }
    if (pllm_pass_sync(thread)) return -1;
    if (thread->index == 0) {
        keep_open(pass);
        seal_all(pass, 0);
        plan(pass, &pass->waves[0]);
    }
    return pllm_pass_sync(thread);
}

int pllm_attend(pass_thread *thread)
{
    pllm_pass *pass = thread->pass;
    if (pass->prompt_items && enter_prompts(thread)) return -1;
    for (uint32_t number = 0;; number++) {
        attention_wave *now = &pass->waves[number & 1], *next = &pass->waves[(number + 1) & 1];
        run_wave(thread, now);
        int last = now->last;
        (void)pllm_pass_sync(thread); /* what failed meanwhile shows at the next one */
        if (thread->index == 0) {
            wave_release(pass, now);
            if (last)
                seal_all(pass, 1);
            else
                plan(pass, next);
        }
        if (last) return 0;
        if (pllm_pass_sync(thread)) return -1;
    }
}
