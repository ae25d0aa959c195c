/* bench.c - pagedllm bench: prefill and decode speed at several depths of context.
 *
 * For each depth the context is filled with depth tokens, then `prefill` prompt tokens are timed,
 * the context is cut back to depth, and `decode` single tokens are timed one by one, so that the
 * median is known. Beside each speed stand the bytes a token reads (weights and KV blocks), the
 * bytes that could not be resident, and those that moved; fewer moved than were missing would mean
 * that something else was measured, and fails. */
#include <stdlib.h>
#include "base/clock.h"
#include "base/context.h"
#include "cli/cli.h"

typedef struct depth_result {
    uint64_t depth, prefill_count, decode_count;
    double prefill_tps, decode_tps, decode_ms_median, decode_ms_best;
    uint64_t read_per_token, missing_per_token, host_per_token, disk_per_token;
    double wait_ms_per_token;
} depth_result;

/* The ids fed are made up; a look at the logits stands for sampling. */
static int look(void *user, uint32_t item, uint32_t position, const float *logits)
{
    (void)item;
    (void)position;
    *(uint32_t *)user = logits[0] > logits[1];
    return 0;
}

static void fill(uint32_t *ids, uint32_t count, uint32_t vocab, uint64_t seed)
{
    uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
    for (uint32_t i = 0; i < count; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        ids[i] = (uint32_t)((state >> 33) % vocab);
    }
}

static int by_size(const void *left, const void *right)
{
    const double *a = left, *b = right;
    return *a < *b ? -1 : *a > *b;
}

static int feed(pllm_engine *engine, pllm_sequence *sequence, const uint32_t *ids, uint32_t count,
                uint32_t generated, int logits)
{
    if (cli_interrupted()) return cli_canceled();
    uint32_t seen;
    pllm_step_item item = {.sequence = sequence,
                           .ids = ids,
                           .token_count = count,
                           .generated = generated,
                           .logits = logits ? 1 : 0};
    return pllm_engine_step(engine, &item, 1, look, &seen);
}

static int judge(const pllm_engine *engine, const pllm_sequence *sequence, uint64_t n,
                 const pllm_engine_stats *before, const pllm_engine_stats *after,
                 depth_result *result)
{
    pllm_engine_info info = {.struct_bytes = sizeof info};
    int status = pllm_engine_info_get(engine, &info);
    if (status < 0) return status;
    uint64_t kv = pllm_sequence_length(sequence) / 32 * 32 * info.kv_bytes_per_token;
    uint64_t room = (uint64_t)after->frames_limit * after->frame_bytes;
    result->read_per_token = info.weight_bytes + kv;
    result->missing_per_token = kv > room ? kv - room : 0;
    result->host_per_token = (after->host_to_device_bytes - before->host_to_device_bytes) / n;
    result->disk_per_token = (after->disk_to_device_bytes - before->disk_to_device_bytes) / n;
    result->wait_ms_per_token = (double)(after->wait_ns - before->wait_ns) * 1e-6 / (double)n;
    /* The context grows while it is timed: a token may miss one row of blocks less than the last.
     */
    uint64_t slack = (uint64_t)info.layer_count * after->frame_bytes * (n / 32 + 1);
    uint64_t moved = result->host_per_token + result->disk_per_token;
    if (moved + slack < result->missing_per_token)
        return pllm_fail(
            PLLM_EINVAL, 0,
            "%llu bytes a token were not resident, but only %llu moved: the measurement is void",
            (unsigned long long)result->missing_per_token, (unsigned long long)moved);
    return PLLM_OK;
}

static int time_decode(pllm_engine *engine, pllm_sequence *sequence, const pllm_settings *settings,
                       const uint32_t *ids, depth_result *result)
{
    uint64_t n = settings->decode;
    double *ms = calloc(n, sizeof *ms);
    if (!ms) return pllm_fail_memory("timings", n * sizeof *ms);
    pllm_engine_stats before = {.struct_bytes = sizeof before}, after = before;
    /* One token first: it computes again what the cut threw out, and settles the caches. */
    int status = feed(engine, sequence, ids, 1, 1, 1);
    if (status == PLLM_OK) status = pllm_engine_stats_get(engine, &before);
    uint64_t begun = pllm_clock_ns();
    for (uint64_t i = 0; status == PLLM_OK && i < n; i++) {
        uint64_t started = pllm_clock_ns();
        status = feed(engine, sequence, ids + 1 + i, 1, 1, 1);
        ms[i] = (double)(pllm_clock_ns() - started) * 1e-6;
    }
    double total = (double)(pllm_clock_ns() - begun) * 1e-9;
    if (status == PLLM_OK) status = pllm_engine_stats_get(engine, &after);
    if (status == PLLM_OK) {
        qsort(ms, n, sizeof *ms, by_size);
        result->decode_count = n;
        result->decode_tps = (double)n / total;
        result->decode_ms_median = ms[n / 2];
        result->decode_ms_best = ms[0];
        status = judge(engine, sequence, n, &before, &after, result);
    }
    free(ms);
    return status;
}

static int measure(pllm_engine *engine, const pllm_settings *settings, const uint32_t *ids,
                   depth_result *result)
{
    pllm_sequence *sequence;
    int status = pllm_sequence_open(engine, &sequence);
    if (status < 0) return status;
    uint32_t depth = (uint32_t)result->depth;
    if (depth) status = feed(engine, sequence, ids, depth, 0, 0);
    if (status == PLLM_OK && settings->prefill) {
        uint64_t started = pllm_clock_ns();
        status = feed(engine, sequence, ids + depth, (uint32_t)settings->prefill, 0, 1);
        result->prefill_tps = (double)settings->prefill * 1e9 / (double)(pllm_clock_ns() - started);
        result->prefill_count = settings->prefill;
        if (status == PLLM_OK) status = pllm_sequence_truncate(sequence, depth);
    }
    if (status == PLLM_OK && settings->decode)
        status = time_decode(engine, sequence, settings, ids + depth, result);
    pllm_sequence_close(sequence);
    return status;
}

static json_t *result_json(const depth_result *r)
{
    return json_pack(
        "{s:I,s:I,s:f,s:I,s:f,s:f,s:f,s:I,s:I,s:I,s:I,s:f}", "depth", (json_int_t)r->depth,
        "prefill_tokens", (json_int_t)r->prefill_count, "prefill_tokens_per_second", r->prefill_tps,
        "decode_tokens", (json_int_t)r->decode_count, "decode_tokens_per_second", r->decode_tps,
        "decode_ms_median", r->decode_ms_median, "decode_ms_best", r->decode_ms_best,
        "read_bytes_per_token", (json_int_t)r->read_per_token, "not_resident_bytes_per_token",
        (json_int_t)r->missing_per_token, "host_to_device_bytes_per_token",
        (json_int_t)r->host_per_token, "disk_to_device_bytes_per_token",
        (json_int_t)r->disk_per_token, "wait_ms_per_token", r->wait_ms_per_token);
}

static int print_json(const pllm_settings *settings, const pllm_engine *engine,
                      const depth_result *results)
{
    pllm_engine_info info = {.struct_bytes = sizeof info};
    pllm_engine_stats stats = {.struct_bytes = sizeof stats};
    pllm_engine_info_get(engine, &info);
    pllm_engine_stats_get(engine, &stats);
    json_t *list = json_array();
    for (uint32_t i = 0; i < settings->depth.count; i++)
        json_array_append_new(list, result_json(&results[i]));
    return cli_print_json(json_pack("{s:o,s:s,s:s,s:s,s:s,s:i,s:I,s:I,s:I,s:o}", "model",
                                    cli_json_text(settings->positionals[0]), "device", info.device,
                                    "kernels", info.kernels, "kv_format", info.kv_format, "compute",
                                    info.compute, "threads", (int)info.threads, "weight_bytes",
                                    (json_int_t)info.weight_bytes, "workspace_bytes",
                                    (json_int_t)info.workspace_bytes, "device_bytes_peak",
                                    (json_int_t)stats.device_bytes_peak, "results", list));
}

static int print_text(const pllm_settings *settings, const depth_result *results)
{
    printf("%8s %12s %12s %10s %14s %14s %10s\n", "depth", "prefill/s", "decode/s", "ms median",
           "MB read/token", "MB moved/token", "ms waited");
    for (uint32_t i = 0; i < settings->depth.count; i++) {
        const depth_result *r = &results[i];
        printf("%8llu %12.1f %12.1f %10.2f %14.1f %14.1f %10.2f\n", (unsigned long long)r->depth,
               r->prefill_tps, r->decode_tps, r->decode_ms_median, (double)r->read_per_token * 1e-6,
               (double)(r->host_per_token + r->disk_per_token) * 1e-6, r->wait_ms_per_token);
    }
    return PLLM_OK;
}

/* What every depth needs, before the first takes its minutes. */
static int check_depths(const pllm_settings *settings, const pllm_engine *engine,
                        uint32_t *id_count_out)
{
    pllm_engine_info info = {.struct_bytes = sizeof info};
    int status = pllm_engine_info_get(engine, &info);
    if (status < 0) return status;
    uint64_t deepest = 0, decode = settings->decode ? settings->decode + 1 : 0;
    uint64_t most = settings->prefill > decode ? settings->prefill : decode;
    for (uint32_t i = 0; i < settings->depth.count; i++)
        if (settings->depth.items[i] > deepest) deepest = settings->depth.items[i];
    if (most == 0)
        return pllm_fail(PLLM_EINVAL, 0, "--prefill 0 and --decode 0 leave nothing to measure");
    if (deepest + most > info.context_max)
        return pllm_fail(PLLM_ELIMIT, 0,
                         "--depth %llu and the %llu tokens timed after it are more than the "
                         "model's context of %u",
                         (unsigned long long)deepest, (unsigned long long)most, info.context_max);
    *id_count_out = (uint32_t)(deepest + most);
    return PLLM_OK;
}

static int bench(cli_program *cli, pllm_engine *engine)
{
    const pllm_settings *settings = cli->settings;
    uint32_t id_count = 0;
    int status = check_depths(settings, engine, &id_count);
    if (status < 0) return status;
    pllm_engine_info info = {.struct_bytes = sizeof info};
    pllm_engine_info_get(engine, &info);
    depth_result *results = calloc(settings->depth.count + 1, sizeof *results);
    uint32_t *ids = calloc(id_count, sizeof *ids);
    if (!results || !ids) status = pllm_fail_memory("token ids", id_count * sizeof *ids);
    if (status == PLLM_OK) fill(ids, id_count, info.vocab_size, settings->seed);
    for (uint32_t i = 0; status == PLLM_OK && i < settings->depth.count; i++) {
        results[i].depth = settings->depth.items[i];
        status = measure(engine, settings, ids, &results[i]);
    }
    if (status < 0 && cli_interrupted()) status = cli_canceled();
    if (status == PLLM_OK)
        status =
            settings->json ? print_json(settings, engine, results) : print_text(settings, results);
    if (status == PLLM_OK) status = cli_stats(cli, engine, NULL);
    free(ids);
    free(results);
    return status;
}

int command_bench(cli_program *cli)
{
    pllm_engine *engine;
    int status = cli_engine_open(cli, &engine);
    if (status == PLLM_OK) status = bench(cli, engine);
    pllm_engine_close(engine);
    return status;
}
