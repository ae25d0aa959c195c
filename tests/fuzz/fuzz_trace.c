/* Recorded traces: text that people may write by hand. What parses must replay. */
#include "fuzz.h"
#include "pager/replay.h"

int fuzz_parses(const uint8_t *data, size_t bytes)
{
    pllm_trace *trace;
    if (!fuzz_refusal_is_clear(pllm_trace_parse(NULL, (const char *)data, bytes, &trace))) return 0;
    if (trace->access_count < 4096 && trace->page_count < 4096) {
        uint64_t hits, most;
        FUZZ_CHECK(pllm_replay_policy(trace, PLLM_POLICY_2Q, 3, &hits) == 0);
        FUZZ_CHECK(pllm_replay_optimum(trace, 3, &most) == 0);
        FUZZ_CHECK(hits <= most);
    }
    pllm_trace_close(trace);
    return 1;
}
