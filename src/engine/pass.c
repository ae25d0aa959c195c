/* pass.c - the tables of one pass that every executor needs. */
#include <string.h>
#include "engine/engine_internal.h"

int pllm_pass_init(pllm_engine *engine)
{
    const pllm_context *context = engine->context;
    pllm_pass *pass = &engine->pass;
    uint32_t sequences = engine->cache.sequence_max, rows = engine->row_max;
    pass->engine = engine;
    pass->items = pllm_alloc_array(context, sequences, sizeof *pass->items);
    pass->row_ids = pllm_alloc_array(context, rows, sizeof(uint32_t));
    pass->row_positions = pllm_alloc_array(context, rows, sizeof(uint32_t));
    pass->logit_rows = pllm_alloc_array(context, rows, sizeof(uint32_t));
    pass->logit_items = pllm_alloc_array(context, rows, sizeof(uint32_t));
    pass->logit_positions = pllm_alloc_array(context, rows, sizeof(uint32_t));
    int complete = pass->items && pass->row_ids && pass->row_positions && pass->logit_rows &&
                   pass->logit_items && pass->logit_positions;
    for (uint32_t i = 0; complete && i < sequences; i++) {
        pass->items[i].new_groups =
            pllm_alloc_array(context, rows / PLLM_BLOCK_TOKENS + 1, sizeof(uint32_t));
        complete = pass->items[i].new_groups != NULL;
    }
    return complete ? PLLM_OK : pllm_fail_memory("the rows of a pass", rows * 20ull);
}

void pllm_pass_deinit(pllm_engine *engine)
{
    const pllm_context *context = engine->context;
    pllm_pass *pass = &engine->pass;
    for (uint32_t i = 0; pass->items && i < engine->cache.sequence_max; i++)
        pllm_free(context, pass->items[i].new_groups);
    pllm_free(context, pass->items);
    pllm_free(context, pass->row_ids);
    pllm_free(context, pass->row_positions);
    pllm_free(context, pass->logit_rows);
    pllm_free(context, pass->logit_items);
    pllm_free(context, pass->logit_positions);
    memset(pass, 0, sizeof *pass);
}

uint32_t pllm_pass_group(const pass_item *item, uint32_t block)
{
    const pllm_sequence *sequence = item->sequence;
    return block < sequence->group_count ? sequence->groups[block]
                                         : item->new_groups[block - sequence->group_count];
}

pllm_page pllm_pass_page(const pllm_pass *pass, const pass_item *item, uint32_t block)
{
    return pllm_kv_page(&pass->engine->cache, pllm_pass_group(item, block), pass->layer);
}

int pllm_pass_deliver(pllm_pass *pass, uint32_t index, const float *logits)
{
    uint32_t which = pass->logit_items[index];
    pllm_step_item *item = &pass->step_items[which];
    if (item->logits == LOGITS_NEXT) {
        uint32_t count = pass->engine->shape.vocab_size;
        item->next_id = item->sampling
                            ? pllm_sample(logits, count, item->sampling, pass->engine->candidates)
                            : pllm_argmax(logits, count);
        return PLLM_OK;
    }
    if (pass->sink(pass->sink_user, which, pass->logit_positions[index], logits) == 0)
        return PLLM_OK;
    return pllm_fail(PLLM_ECANCELED, 0, "canceled while logits were read");
}
