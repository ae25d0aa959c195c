/* trace.c - pagedllm trace: what each policy would have made of recorded accesses.
 *
 * A trace comes from --record. It is replayed without prefetching, so the hits are those of the
 * policy alone; Belady's optimum beside them is the most that any policy could have. */
#include <stdlib.h>
#include "base/context.h"
#include "cli/cli.h"
#include "pager/replay.h"

typedef struct replayed {
    uint64_t frames, hits[PLLM_POLICY_COUNT], optimum;
} replayed;

static int replay(const pllm_trace *trace, replayed *r)
{
    int status = pllm_replay_optimum(trace, (uint32_t)r->frames, &r->optimum);
    for (int kind = 0; status == PLLM_OK && kind < PLLM_POLICY_COUNT; kind++) {
        if (cli_interrupted()) return cli_canceled();
        status =
            pllm_replay_policy(trace, (pllm_policy_kind)kind, (uint32_t)r->frames, &r->hits[kind]);
    }
    return status;
}

static int print_json(const pllm_trace *trace, const replayed *results, uint32_t count)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < count; i++) {
        json_t *row = json_object();
        json_object_set_new(row, "frames", json_integer((json_int_t)results[i].frames));
        for (int kind = 0; kind < PLLM_POLICY_COUNT; kind++)
            json_object_set_new(row, pllm_policy_name((pllm_policy_kind)kind),
                                json_integer((json_int_t)results[i].hits[kind]));
        json_object_set_new(row, "optimum", json_integer((json_int_t)results[i].optimum));
        json_array_append_new(list, row);
    }
    json_t *root = json_object();
    json_object_set_new(root, "accesses", json_integer((json_int_t)trace->access_count));
    json_object_set_new(root, "hits", list);
    return cli_print_json(root);
}

static int print_text(const pllm_trace *trace, const replayed *results, uint32_t count)
{
    printf("%llu accesses; hits, and their share of the accesses\n",
           (unsigned long long)trace->access_count);
    printf("%10s", "frames");
    for (int kind = 0; kind < PLLM_POLICY_COUNT; kind++)
        printf("%20s", pllm_policy_name((pllm_policy_kind)kind));
    printf("%20s\n", "optimum");
    for (uint32_t i = 0; i < count; i++) {
        printf("%10llu", (unsigned long long)results[i].frames);
        for (int kind = 0; kind <= PLLM_POLICY_COUNT; kind++) {
            uint64_t hits = kind < PLLM_POLICY_COUNT ? results[i].hits[kind] : results[i].optimum;
            printf("%12llu %5.1f %%", (unsigned long long)hits,
                   100.0 * (double)hits / (double)trace->access_count);
        }
        putchar('\n');
    }
    return PLLM_OK;
}

int command_trace(cli_program *cli)
{
    const pllm_settings *settings = cli->settings;
    uint32_t count = settings->frames.count;
    pllm_trace *trace;
    int status = pllm_trace_read(cli->context, settings->positionals[0], &trace);
    if (status < 0) return status;
    if (trace->access_count == 0)
        status = pllm_fail(PLLM_EINVAL, 0, "%s holds no accesses", settings->positionals[0]);
    replayed *results = calloc(count ? count : 1, sizeof *results);
    if (!results) status = pllm_fail_memory("results", count * sizeof *results);
    for (uint32_t i = 0; status == PLLM_OK && i < count; i++) {
        results[i].frames = settings->frames.items[i];
        status = replay(trace, &results[i]);
    }
    if (status == PLLM_OK)
        status =
            settings->json ? print_json(trace, results, count) : print_text(trace, results, count);
    free(results);
    pllm_trace_close(trace);
    return status;
}
