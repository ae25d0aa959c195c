/* step.c - a step: the caller's items cut into passes, run, and committed or taken back.
 *
 * Tokens are appended to their sequences first; passes then work through every token between
 * length and id_count, which covers tokens that a truncation left to be computed again. A pass
 * takes, of each sequence, either prompt rows up to the end of their 256-position tile or one
 * generated row, by what the next token is. A failure truncates every sequence back. */
#include <string.h>
#include "base/clock.h"
#include "base/hash.h"
#include "engine/engine_internal.h"

/* How the next token is to be drawn; and room to draw it here, which a device may do itself. */
static int check_sampling(pllm_engine *engine, const pllm_step_item *item)
{
    if (item->logits != LOGITS_NEXT || !item->sampling) return PLLM_OK;
    int status = pllm_sampling_check(item->sampling);
    uint32_t count = engine->shape.vocab_size;
    if (status < 0 || engine->candidates) return status;
    if (count > PLLM_SAMPLE_MAX)
        return pllm_fail(PLLM_EUNSUPPORTED, 0,
                         "%u tokens are too many to draw from; %d is the most", count,
                         PLLM_SAMPLE_MAX);
    engine->candidates = pllm_alloc_array(engine->context, count, sizeof *engine->candidates);
    return engine->candidates
               ? PLLM_OK
               : pllm_fail_memory("sampling candidates", count * sizeof *engine->candidates);
}

static int check_items(pllm_engine *engine, pllm_step_item *items, uint32_t item_count)
{
    if (item_count == 0 || item_count > engine->cache.sequence_max)
        return pllm_fail(PLLM_EINVAL, 0, "a step takes 1 to %u items (sequence_max), not %u",
                         engine->cache.sequence_max, item_count);
    for (uint32_t i = 0; i < item_count; i++) {
        const pllm_step_item *item = &items[i];
        items[i].status = PLLM_OK;
        if (!item->sequence || item->sequence->engine != engine)
            return items[i].status =
                       pllm_fail(PLLM_EINVAL, 0, "item %u has no sequence of this engine", i);
        for (uint32_t j = 0; j < i; j++)
            if (items[j].sequence == item->sequence)
                return items[i].status =
                           pllm_fail(PLLM_EINVAL, 0, "items %u and %u are the same sequence", j, i);
        if (item->token_count == 0 || (item->generated && item->token_count != 1))
            return items[i].status = pllm_fail(
                       PLLM_EINVAL, 0, "item %u has %u tokens; a generated token comes alone", i,
                       item->token_count);
        uint64_t total = (uint64_t)item->sequence->id_count + item->token_count;
        if (total > engine->context_max)
            return items[i].status = pllm_fail(
                       PLLM_ELIMIT, 0,
                       "%llu tokens are more than the context of %u: shorten the prompt, or "
                       "generate fewer tokens",
                       (unsigned long long)total, engine->context_max);
        for (uint32_t j = 0; j < item->token_count; j++)
            if (item->ids[j] >= engine->shape.vocab_size)
                return items[i].status =
                           pllm_fail(PLLM_EINVAL, 0, "token id %u is outside the vocabulary of %u",
                                     item->ids[j], engine->shape.vocab_size);
        items[i].status = check_sampling(engine, item);
        if (items[i].status < 0) return items[i].status;
    }
    return PLLM_OK;
}

static int append(pllm_engine *engine, const pllm_step_item *item)
{
    pllm_sequence *sequence = item->sequence;
    int status =
        pllm_kv_sequence_reserve(&engine->cache, sequence, sequence->id_count + item->token_count);
    if (status < 0) return status;
    memcpy(sequence->ids + sequence->id_count, item->ids, item->token_count * sizeof *item->ids);
    memset(sequence->generated + sequence->id_count, item->generated ? 1 : 0, item->token_count);
    sequence->id_count += item->token_count;
    return PLLM_OK;
}

/* Rows of one sequence in this pass; 0 if it has nothing left or there is no room. */
static uint32_t rows_for(const pllm_sequence *sequence, uint32_t prompt_rows, int *decode_out)
{
    const pllm_engine *engine = sequence->engine;
    uint32_t start = sequence->length, end = start;
    *decode_out = 0;
    if (start == sequence->id_count) return 0;
    if (sequence->generated[start]) {
        *decode_out = 1;
        return 1;
    }
    uint32_t tile_end = (start / engine->tile_rows + 1) * engine->tile_rows;
    while (end < sequence->id_count && end < tile_end &&
           end - start < engine->tile_rows - prompt_rows && !sequence->generated[end])
        end++;
    return end - start;
}

static int make_groups(pllm_engine *engine, pass_item *item)
{
    pllm_sequence *sequence = item->sequence;
    uint32_t blocks = (item->start + item->rows) / PLLM_BLOCK_TOKENS;
    uint32_t after =
        sequence->group_count ? sequence->groups[sequence->group_count - 1] : PLLM_NONE;
    item->new_count = 0;
    for (uint32_t block = sequence->group_count; block < blocks; block++) {
        int status =
            pllm_kv_group_new(&engine->cache, after, block, &item->new_groups[item->new_count]);
        if (status < 0) return status;
        after = item->new_groups[item->new_count++];
    }
    return PLLM_OK;
}

static void list_rows(pllm_pass *pass, const pllm_step_item *step_item, pass_item *item)
{
    const pllm_sequence *sequence = item->sequence;
    /* Logits only for this step's own tokens, not for those computed again. */
    uint32_t own = sequence->id_count - step_item->token_count, last = sequence->id_count - 1;
    for (uint32_t i = 0; i < item->rows; i++) {
        uint32_t position = item->start + i, row = pass->row_count++;
        pass->row_ids[row] = sequence->ids[position];
        pass->row_positions[row] = position;
        if (position < own || step_item->logits == 0) continue;
        if (step_item->logits != LOGITS_ALL && position != last) continue;
        pass->logit_rows[pass->logit_count] = row;
        pass->logit_items[pass->logit_count] = item->step_item;
        pass->logit_positions[pass->logit_count++] = position;
    }
}

/* Prompts of a pass whose blocks the device could not have together wait for the next one. */
static int has_room(const pllm_engine *engine, const pllm_sequence *sequence, uint32_t rows)
{
    const pllm_pass *pass = &engine->pass;
    uint64_t blocks = (sequence->length + rows) / PLLM_BLOCK_TOKENS;
    if (pass->prompt_items == 0 || !engine->executor->prompt_blocks) return 1;
    for (uint32_t i = 0; i < pass->item_count; i++)
        if (!pass->items[i].decode)
            blocks += (pass->items[i].start + pass->items[i].rows) / PLLM_BLOCK_TOKENS;
    return blocks <= engine->executor->prompt_blocks(engine);
}

/* Takes item i of the step into the pass, if it has rows of this kind left. */
static int gather_item(pllm_engine *engine, const pllm_step_item *items, uint32_t i, int decode,
                       uint32_t *prompt_rows)
{
    pllm_pass *pass = &engine->pass;
    int is_decode;
    uint32_t rows = rows_for(items[i].sequence, *prompt_rows, &is_decode);
    if (rows == 0 || is_decode != decode) return PLLM_OK;
    if (!decode && !has_room(engine, items[i].sequence, rows)) return PLLM_OK;
    pass_item *item = &pass->items[pass->item_count++];
    item->sequence = items[i].sequence;
    item->step_item = i;
    item->decode = (uint32_t)decode;
    item->start = item->sequence->length;
    item->rows = rows;
    item->row_first = pass->row_count;
    item->stage_first = pass->stage_used;
    if (!decode) {
        *prompt_rows += rows;
        pass->prompt_items++;
        pass->stage_used +=
            (item->start + rows - 1) / PLLM_BLOCK_TOKENS - item->start / PLLM_BLOCK_TOKENS + 1;
    }
    list_rows(pass, &items[i], item);
    return make_groups(engine, item);
}

/* Fills engine->pass with what comes next, generated rows first. Returns 1, 0 when nothing is left,
 * or negative. */
static int gather(pllm_engine *engine, const pllm_step_item *items, uint32_t item_count)
{
    pllm_pass *pass = &engine->pass;
    uint32_t prompt_rows = 0;
    pass->item_count = pass->row_count = pass->prompt_items = pass->stage_used = pass->logit_count =
        0;
    pass->failed_item = PLLM_NONE;
    for (int decode = 1; decode >= 0; decode--)
        for (uint32_t i = 0; i < item_count; i++) {
            int status = gather_item(engine, items, i, decode, &prompt_rows);
            if (status < 0) return status;
        }
    return pass->item_count > 0;
}

/* Tells the pager the order of the pages this pass will read, if it is not the order it knows. */
static int announce(pllm_engine *engine)
{
    pllm_pass *pass = &engine->pass;
    uint64_t signature = 0;
    uint32_t count = 0;
    if (engine->executor->brings_blocks) return PLLM_OK;
    for (uint32_t i = 0; i < pass->item_count; i++) {
        const pllm_sequence *sequence = pass->items[i].sequence;
        signature = pllm_hash64(sequence->groups, sequence->group_count * sizeof *sequence->groups,
                                signature + 1);
        count += sequence->group_count;
    }
    if (signature == engine->scan_signature) return PLLM_OK;
    pllm_page *order = pllm_alloc_array(engine->context,
                                        (uint64_t)count * engine->shape.layer_count, sizeof *order);
    if (count && !order)
        return pllm_fail_memory("the reading order",
                                (uint64_t)count * engine->shape.layer_count * 4);
    uint32_t at = 0;
    for (pass->layer = 0; pass->layer < engine->shape.layer_count; pass->layer++)
        for (uint32_t i = 0; i < pass->item_count; i++)
            for (uint32_t block = 0; block < pass->items[i].sequence->group_count; block++)
                order[at++] = pllm_pass_page(pass, &pass->items[i], block);
    int status = pllm_pager_scan(engine->pager, order, at);
    pllm_free(engine->context, order);
    if (status == PLLM_OK) engine->scan_signature = signature;
    return status;
}

/* Undoes what a failed pass began. Its open blocks may already hold the rows of a later block;
 * those rows that were there before are then computed again when the sequence next takes a step. */
static void take_back(pllm_engine *engine)
{
    for (uint32_t i = 0; i < engine->pass.item_count; i++) {
        pass_item *item = &engine->pass.items[i];
        while (item->new_count > 0)
            pllm_kv_group_release(&engine->cache, item->new_groups[--item->new_count]);
        uint32_t block = item->start / PLLM_BLOCK_TOKENS;
        if (!item->decode && (item->start + item->rows) / PLLM_BLOCK_TOKENS > block)
            item->sequence->length = block * PLLM_BLOCK_TOKENS;
    }
}

static void commit(pllm_engine *engine, uint64_t elapsed_ns)
{
    uint32_t prompt = 0, generated = 0;
    for (uint32_t i = 0; i < engine->pass.item_count; i++) {
        pass_item *item = &engine->pass.items[i];
        for (uint32_t j = 0; j < item->new_count; j++)
            item->sequence->groups[item->sequence->group_count++] = item->new_groups[j];
        item->new_count = 0;
        item->sequence->length += item->rows;
        *(item->decode ? &generated : &prompt) += item->rows;
    }
    engine->prompt_tokens += prompt;
    engine->generated_tokens += generated;
    *(prompt ? &engine->prefill_ns : &engine->decode_ns) += elapsed_ns;
}

static int run_passes(pllm_engine *engine, const pllm_step_item *items, uint32_t item_count)
{
    uint64_t done = 0, goal = 0;
    for (uint32_t i = 0; i < item_count; i++)
        goal += items[i].sequence->id_count - items[i].sequence->length;
    for (;;) {
        uint64_t started = pllm_clock_ns();
        int status = gather(engine, items, item_count);
        if (status > 0 && (status = announce(engine)) == PLLM_OK &&
            (status = engine->executor->forward(engine)) == PLLM_OK) {
            done += engine->pass.row_count;
            commit(engine, pllm_clock_ns() - started);
            pllm_share_poll(engine->share); /* between passes nothing is in use */
            if (goal > engine->tile_rows && engine->options.progress &&
                engine->options.progress(engine->options.progress_user, "reading", done, goal))
                return pllm_fail(PLLM_ECANCELED, 0, "canceled while the prompt was read");
            continue;
        }
        if (status < 0) take_back(engine);
        return status;
    }
}

static int step(pllm_engine *engine, pllm_step_item *items, uint32_t item_count,
                pllm_logits_sink sink, void *user)
{
    int status = check_items(engine, items, item_count);
    if (status < 0) return status;
    for (uint32_t i = 0; i < item_count; i++)
        if (items[i].logits && items[i].logits != LOGITS_NEXT && !sink)
            return pllm_fail(PLLM_EINVAL, 0, "logits are asked for, but there is no sink");
    engine->pass.step_items = items;
    engine->pass.sink = sink;
    engine->pass.sink_user = user;
    engine->pass.failed_item = PLLM_NONE;
    pllm_error_clear();
    uint32_t appended = 0;
    while (status == PLLM_OK && appended < item_count) {
        status = append(engine, &items[appended]);
        appended += status == PLLM_OK;
    }
    if (status == PLLM_OK) status = run_passes(engine, items, item_count);
    if (status < 0) {
        if (pllm_last_error()->status != status)
            pllm_fail(status, 0,
                      "the step could not run (%s): more memory is pinned than the limits "
                      "leave, raise --kv-limit or --vram-limit",
                      pllm_status_name(status));
        pllm_error kept = *pllm_last_error(); /* cleaning up may fail too, and matters less */
        if (engine->pass.failed_item < item_count) items[engine->pass.failed_item].status = status;
        for (uint32_t i = 0; i < appended; i++)
            pllm_sequence_cut(items[i].sequence,
                              items[i].sequence->id_count - items[i].token_count);
        pllm_pager_tidy(engine->pager);
        return pllm_fail(kept.status, kept.native, "%s", kept.text);
    }
    engine->steps++;
    pllm_pager_tidy(engine->pager);
    return PLLM_OK;
}

int pllm_engine_step(pllm_engine *engine, pllm_step_item *items, uint32_t item_count,
                     pllm_logits_sink sink, void *user)
{
    pllm_share_enter(engine->share);
    int status = step(engine, items, item_count, sink, user);
    pllm_share_leave(engine->share);
    return status;
}
