/* summary_check.h - key summaries that an engine keeps, against those made anew from its blocks. */
#ifndef PLLM_TESTS_SUMMARY_CHECK_H
#define PLLM_TESTS_SUMMARY_CHECK_H

#include "brief.h"
#include "engine/engine_internal.h"
#include "engine/parts.h"

/* Evicts everything, which must fit in host memory; then compares every `step`-th block of every
 * sequence in every layer. KV in f32, f16 or bf16. Returns how many blocks that were. */
static inline uint32_t summary_check(pllm_engine *engine, uint32_t step)
{
    const pllm_kv_cache *cache = &engine->cache;
    uint64_t bytes = pllm_kv_summary_bytes(&cache->shape);
    void *want = malloc(bytes), *got = malloc(bytes);
    uint32_t compared = 0;
    assert_true(pllm_engine_evict_all(engine) >= 0);
    for (const pllm_sequence *s = engine->sequences; s; s = s->next)
        for (uint32_t layer = 0; layer < cache->layer_count; layer++)
            for (uint32_t block = layer % step; block < s->group_count; block += step) {
                pllm_page page = pllm_kv_page(cache, s->groups[block], layer);
                const void *content = pllm_pager_host_copy(engine->pager, page);
                assert_non_null(content);
                pllm_kv_summarise(&cache->shape, content, want);
                if (pllm_engine_read_summary(engine, s, layer, block, got) < 0)
                    fail_msg("%s", pllm_last_error()->text);
                if (!launches_only() && memcmp(got, want, bytes) != 0)
                    fail_msg("block %u of %u in layer %u: another summary", block, s->group_count,
                             layer);
                compared++;
            }
    free(want);
    free(got);
    return compared;
}

#endif
