/* Logs of pools: text that people may write by hand. What parses keeps its own rules, and is the
 * same after writing and reading. */
#include <stdlib.h>
#include <string.h>
#include "fuzz.h"
#include "pool/log.h"

typedef struct text {
    char *text;
    uint64_t bytes;
} text;

static int gather(void *user, const char *piece, uint64_t bytes)
{
    text *t = user;
    t->text = realloc(t->text, t->bytes + bytes);
    FUZZ_CHECK(t->text);
    memcpy(t->text + t->bytes, piece, bytes);
    t->bytes += bytes;
    return 0;
}

/* No place is used while it is free, or taken twice. */
static void check_steps(const pllm_pool_log *log)
{
    uint8_t *live = calloc(log->place_count + 1u, 1);
    uint64_t *sizes = calloc(log->place_count + 1u, sizeof *sizes), bytes = 0, peak = 0;
    FUZZ_CHECK(live && sizes);
    for (uint32_t i = 0; i < log->step_count; i++) {
        const pllm_pool_step *step = &log->steps[i];
        FUZZ_CHECK(step->place < log->place_count && step->stream < log->stream_count);
        FUZZ_CHECK(live[step->place] == (step->kind != 'a'));
        if (step->kind == 'r') continue;
        live[step->place] = step->kind == 'a';
        if (step->kind == 'a') sizes[step->place] = step->bytes;
        bytes += step->kind == 'a' ? sizes[step->place] : -sizes[step->place];
        if (bytes > peak) peak = bytes;
    }
    FUZZ_CHECK(bytes == log->live_bytes && peak == log->peak_bytes);
    free(live);
    free(sizes);
}

int fuzz_parses(const uint8_t *data, size_t size)
{
    pllm_pool_log *log, *again;
    if (!fuzz_refusal_is_clear(pllm_pool_log_parse(NULL, (const char *)data, size, &log))) return 0;
    check_steps(log);
    text t = {0};
    FUZZ_CHECK(pllm_pool_log_write(log, gather, &t) == 0);
    FUZZ_CHECK(pllm_pool_log_parse(NULL, t.text, t.bytes, &again) == 0);
    FUZZ_CHECK(again->step_count == log->step_count && again->place_count == log->place_count);
    for (uint32_t i = 0; i < log->step_count; i++)
        FUZZ_CHECK(memcmp(&log->steps[i], &again->steps[i], sizeof *log->steps) == 0);
    pllm_pool_log_close(log);
    pllm_pool_log_close(again);
    free(t.text);
    return 1;
}
