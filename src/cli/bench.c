/* bench.c - pagedllm bench: prefill and decode speed at several depths of context, of a model's
 * file or of a published shape with random weights.
 *
 * For each batch and depth every sequence's context is filled with depth tokens (timed too: it is a
 * prefill), then `prefill` prompt tokens are timed on one of them, the context is cut back to
 * depth, and `decode` steps of one token a sequence are timed one by one, so that the median is
 * known.
 *
 * Beside each speed stand the bytes a token reads (weights and KV blocks), the bytes that could not
 * be resident, and those that moved; fewer moved than were missing would mean that something else
 * was measured, and fails. --resume then evicts every block and times one more step. The bound of a
 * step is the longer of bytes read / the device memory's bandwidth      bytes not resident / the
 * link's bandwidth with both bandwidths measured in the same run (bandwidth.c). */
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/context.h"
#include "base/size.h"
#include "cli/bench.h"
#include "device/cuda.h"
#include "engine/parts.h"
#include "kernels/kv_format.h"

/* ---- what is needed ------------------------------------------------------------------------- */

/* Steps before timing: the first computes again what a cut threw out, the others settle caches. */
static uint64_t warm_steps(uint64_t decode)
{
    return decode < 16 ? 1 : decode < 64 ? 2 : 4;
}

uint64_t bench_tokens_after(const bench_plan *plan)
{
    uint64_t decode = plan->decode ? plan->decode + warm_steps(plan->decode) : 0;
    decode += plan->resume ? 1 : 0;
    return plan->prefill > decode ? plan->prefill : decode;
}

int bench_plan_context(bench_plan *plan)
{
    uint64_t after = bench_tokens_after(plan), total = plan->depth_max + after;
    if (after == 0)
        return pllm_fail(PLLM_EINVAL, 0, "--prefill 0 and --decode 0 leave nothing to measure");
    if (total > UINT32_MAX - 256)
        return pllm_fail(PLLM_ELIMIT, 0, "--depth %llu is more than any context",
                         (unsigned long long)plan->depth_max);
    plan->need.context_max = (uint32_t)((total + 255) / 256 * 256);
    return PLLM_OK;
}

/* The format that the engine takes, by its own rule for "auto". */
static pllm_dtype kv_dtype(const cli_program *cli, pllm_dtype weights)
{
    static const pllm_dtype types[] = {
        [PLLM_OPTION_KV_F32] = PLLM_F32,   [PLLM_OPTION_KV_F16] = PLLM_F16,
        [PLLM_OPTION_KV_BF16] = PLLM_BF16, [PLLM_OPTION_KV_INT8] = PLLM_INT8,
        [PLLM_OPTION_KV_INT4] = PLLM_INT4,
    };
    if (cli->settings->kv_format != PLLM_OPTION_KV_AUTO) return types[cli->settings->kv_format];
    int on_host = strcmp(cli->settings->device.last, "host") == 0;
    return weights == PLLM_F32 || (weights == PLLM_BF16 && on_host) ? PLLM_F32 : PLLM_F16;
}

int bench_memory_of(cli_program *cli, const bench_plan *plan, bench_memory *memory_out)
{
    static const char *const names[] = {"f32", "f16", "bf16", "q8_0", "q4_0", "q4_1"};
    pllm_shape_options options = {.struct_bytes = sizeof options, .name = plan->need.shape};
    while (options.dtype < PLLM_Q4_1 && strcmp(names[options.dtype], plan->need.weights) != 0)
        options.dtype++;
    pllm_model *model;
    int status = pllm_model_open_shape(cli->context, &options, &model);
    if (status < 0) return status;
    const pllm_model_shape *s = pllm_model_shape_of(model);
    pllm_kv_shape kv;
    status = pllm_kv_shape_init(&kv, kv_dtype(cli, options.dtype), s->kv_head_count, s->head_dim);
    if (status == PLLM_OK) {
        uint64_t batch = plan->need.sequence_max, context = plan->need.context_max;
        uint64_t blocks = (context + PLLM_BLOCK_TOKENS - 1) / PLLM_BLOCK_TOKENS * batch;
        uint64_t rows = (plan->depth_max > 2048 ? 2048 : 256) + batch;
        uint64_t row = 4ull * s->width + 3ull * s->head_count * s->head_dim + 2ull * s->ffn_width;
        uint64_t partials = batch * (context / PLLM_CHUNK_TOKENS + 1) * s->head_count;
        memory_out->weight_bytes = pllm_model_bytes(model);
        memory_out->kv_bytes = blocks * s->layer_count * pllm_kv_block_bytes(&kv, kv.sealed) +
                               batch * s->layer_count * pllm_kv_block_bytes(&kv, kv.open);
        memory_out->other_bytes =
            (rows * row + partials * (s->head_dim + 2) + 16ull * s->vocab_size) * sizeof(float);
        if (strcmp(cli->settings->device.last, "host") != 0)
            memory_out->other_bytes += 1 << 30; /* code, libraries and their workspaces */
    }
    pllm_model_close(model);
    return status;
}

static uint64_t least_of(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

int bench_fits(const cli_program *cli, const bench_memory *memory, const cli_bandwidth *machine,
               int below_device)
{
    const pllm_settings *s = cli->settings;
    uint64_t need = memory->weight_bytes + memory->kv_bytes + memory->other_bytes;
    uint64_t room = machine->device.free_bytes, below = 0;
    if (strcmp(s->device.last, "host") != 0) {
        room = least_of(room, s->vram_limit);
        if (below_device) {
            below = least_of(s->host_memory, machine->memory.host.free_bytes / 10 * 9);
            if (s->nvme_path || s->nvme_size) below += least_of(s->nvme_size, UINT64_MAX / 4);
        }
    }
    if (need <= room + below) return PLLM_OK;
    char weights[PLLM_SIZE_TEXT_BYTES], kv[PLLM_SIZE_TEXT_BYTES], have[PLLM_SIZE_TEXT_BYTES];
    return pllm_fail(PLLM_ENOMEM, 0,
                     "needs %s of weights and %s of KV blocks, with buffers %.1f GB; there are %s",
                     pllm_size_text(memory->weight_bytes, weights, sizeof weights),
                     pllm_size_text(memory->kv_bytes, kv, sizeof kv), (double)need * 1e-9,
                     pllm_size_text(room + below, have, sizeof have));
}

/* ---- steps ---------------------------------------------------------------------------------- */

/* The ids fed are made up; the next one is chosen all the same, as generating does. */
enum { NEXT_ID = 3 }; /* of pllm_step_item.logits */

static void fill(uint32_t *ids, uint64_t count, uint32_t vocab, uint64_t seed)
{
    uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
    for (uint64_t i = 0; i < count; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        ids[i] = (uint32_t)((state >> 33) % vocab);
    }
}

static int by_size(const void *left, const void *right)
{
    const double *a = left, *b = right;
    return *a < *b ? -1 : *a > *b;
}

/* What a measurement works with. Sequence i reads the ids from i on, so that no two are alike. */
typedef struct bench_run {
    pllm_engine *engine;
    const bench_plan *plan;
    bench_result *result;
    uint32_t *ids;
    pllm_sequence **sequences;
    pllm_step_item *items;
    pllm_engine_info info;
    uint64_t step_weights; /* bytes of weights that a step reads */
    double *ms;
} bench_run;

static int may_go_on(const bench_run *run)
{
    if (cli_interrupted()) return cli_canceled();
    if (run->plan->deadline_ns == 0 || pllm_clock_ns() < run->plan->deadline_ns) return PLLM_OK;
    return pllm_fail(PLLM_ETIMEDOUT, 0, "its time was up before it was measured");
}

/* With a deadline a prompt goes in pieces of whole tiles, which cost the same where all is resident
 * (a prompt that streams is better off whole). */
static int prompt(bench_run *run, uint32_t sequence, uint64_t from, uint64_t count, int logits)
{
    enum { HOST_PIECE = 256, PIECE = 8192 };
    uint64_t piece = strcmp(run->info.device, "host") == 0 ? HOST_PIECE : PIECE;
    if (run->plan->deadline_ns == 0 || piece > count) piece = count;
    int status = PLLM_OK;
    for (uint64_t done = 0; status == PLLM_OK && done < count; done += piece) {
        status = may_go_on(run);
        if (status < 0) return status;
        int last = count - done <= piece;
        pllm_step_item item = {.sequence = run->sequences[sequence],
                               .ids = run->ids + sequence + from + done,
                               .token_count = (uint32_t)(last ? count - done : piece),
                               .logits = logits && last ? NEXT_ID : 0};
        status = pllm_engine_step(run->engine, &item, 1, NULL, NULL);
    }
    return status;
}

/* One token of every sequence. */
static int step(bench_run *run, uint64_t position)
{
    int status = may_go_on(run);
    if (status < 0) return status;
    uint32_t batch = (uint32_t)run->result->batch;
    for (uint32_t i = 0; i < batch; i++)
        run->items[i] = (pllm_step_item){.sequence = run->sequences[i],
                                         .ids = run->ids + i + position,
                                         .token_count = 1,
                                         .generated = 1,
                                         .logits = NEXT_ID};
    return pllm_engine_step(run->engine, run->items, batch, NULL, NULL);
}

/* All but the embedding, of which a step reads single rows; tied, it is the output matrix too. */
static uint64_t step_weight_bytes(const pllm_engine *engine, uint64_t weight_bytes)
{
    const pllm_model *model = pllm_engine_model(engine);
    if (pllm_model_shape_of(model)->tied_output) return weight_bytes;
    double share = (double)pllm_model_embedding(model)->bytes / (double)pllm_model_bytes(model);
    return weight_bytes - (uint64_t)((double)weight_bytes * share);
}

static void set_bound(bench_run *run, const cli_bandwidth *machine, uint64_t read, uint64_t missing)
{
    bench_result *r = run->result;
    r->bound_by = "";
    /* A disk's bandwidth is not measured here. */
    if (machine->read_bytes_per_second <= 0 || r->disk_per_token > 0) return;
    r->bound_ms = 1e3 * (double)read / machine->read_bytes_per_second;
    r->bound_by = "device memory";
    if (missing > 0 && machine->link_bytes_per_second > 0) {
        double link_ms = 1e3 * (double)missing / machine->link_bytes_per_second;
        if (link_ms > r->bound_ms) {
            r->bound_ms = link_ms;
            r->bound_by = "link";
        }
    }
    r->of_bound = r->bound_ms / r->decode_ms_median;
}

/* Pages, and what came for one use only. */
static uint64_t link_bytes_in(const pllm_engine_stats *stats)
{
    return stats->host_to_device_bytes + stats->weight_stream_bytes + stats->kv_stream_bytes;
}

static int judge(bench_run *run, const cli_bandwidth *machine, const pllm_engine_stats *before,
                 const pllm_engine_stats *after)
{
    bench_result *r = run->result;
    uint64_t n = r->decode_count, batch = r->batch;
    uint64_t kv =
        batch * (pllm_sequence_length(run->sequences[0]) / 32 * 32) * run->info.kv_bytes_per_token;
    uint64_t room = (uint64_t)after->frames_limit * after->frame_bytes;
    uint64_t read = run->step_weights + kv, missing = kv > room ? kv - room : 0;
    /* 0: a device that does not count. */
    if (after->weight_resident_bytes > 0)
        missing += run->info.weight_bytes - after->weight_resident_bytes;
    uint64_t host = (link_bytes_in(after) - link_bytes_in(before)) / n;
    uint64_t disk = (after->disk_to_device_bytes - before->disk_to_device_bytes) / n;
    r->read_per_token = read / batch;
    r->missing_per_token = missing / batch;
    r->host_per_token = host / batch;
    r->disk_per_token = disk / batch;
    r->wait_ms_per_token = (double)(after->wait_ns - before->wait_ns) * 1e-6 / (double)(n * batch);
    set_bound(run, machine, read, missing);
    /* The context grows while it is timed: a token may miss one row of blocks less than the last.
     */
    uint64_t slack = batch * run->info.layer_count * after->frame_bytes * (n / 32 + 1);
    if (host + disk + slack < missing)
        return pllm_fail(
            PLLM_EINVAL, 0,
            "%llu bytes a step were not resident, but only %llu moved: the measurement is void",
            (unsigned long long)missing, (unsigned long long)(host + disk));
    return PLLM_OK;
}

static int time_decode(bench_run *run, const cli_bandwidth *machine)
{
    bench_result *result = run->result;
    uint64_t n = run->plan->decode, warm = warm_steps(n);
    pllm_engine_stats before = {.struct_bytes = sizeof before}, after = before;
    int status = PLLM_OK;
    for (uint64_t i = 0; status == PLLM_OK && i < warm; i++) status = step(run, result->depth + i);
    if (status == PLLM_OK) status = pllm_engine_stats_get(run->engine, &before);
    uint64_t begun = pllm_clock_ns();
    for (uint64_t i = 0; status == PLLM_OK && i < n; i++) {
        uint64_t started = pllm_clock_ns();
        status = step(run, result->depth + warm + i);
        run->ms[i] = (double)(pllm_clock_ns() - started) * 1e-6;
    }
    double total = (double)(pllm_clock_ns() - begun) * 1e-9;
    if (status == PLLM_OK) status = pllm_engine_stats_get(run->engine, &after);
    if (status < 0) return status;
    qsort(run->ms, n, sizeof *run->ms, by_size);
    result->decode_count = n;
    result->decode_tps = (double)(n * result->batch) / total;
    result->decode_ms_median = run->ms[n / 2];
    result->decode_ms_best = run->ms[0];
    return judge(run, machine, &before, &after);
}

/* The first sequence, cut to `from` tokens, takes count prompt tokens; again while that costs
 * little, as short prompts are over in milliseconds, and noisy. It then holds all of them. */
static int time_prompt(bench_run *run, uint64_t from, uint64_t count, double *ms_out,
                       uint64_t *runs_out)
{
    enum { RUNS = 5 };
    double ms[RUNS], spent = 0;
    uint64_t runs = 0;
    do {
        int status = pllm_sequence_truncate(run->sequences[0], (uint32_t)from);
        uint64_t started = pllm_clock_ns();
        if (status == PLLM_OK) status = prompt(run, 0, from, count, 1);
        if (status < 0) return status;
        ms[runs] = (double)(pllm_clock_ns() - started) * 1e-6;
        spent += ms[runs++];
    } while (runs < RUNS && spent < 500);
    qsort(ms, runs, sizeof *ms, by_size);
    *ms_out = ms[(runs - 1) / 2];
    *runs_out = runs;
    return PLLM_OK;
}

static int time_prefill(bench_run *run)
{
    bench_result *r = run->result;
    r->prefill_count = run->plan->prefill;
    int status = time_prompt(run, r->depth, r->prefill_count, &r->prefill_ms, &r->prefill_runs);
    if (status < 0) return status;
    r->prefill_tps = 1e3 * (double)r->prefill_count / r->prefill_ms;
    return pllm_sequence_truncate(run->sequences[0], (uint32_t)r->depth);
}

static int time_fill(bench_run *run)
{
    bench_result *r = run->result;
    if (r->depth == 0) return PLLM_OK;
    uint64_t runs = 1;
    pllm_engine_stats before = {.struct_bytes = sizeof before}, after = before;
    int status = pllm_engine_stats_get(run->engine, &before);
    if (status == PLLM_OK) status = time_prompt(run, 0, r->depth, &r->fill_ms, &runs);
    if (status == PLLM_OK) status = pllm_engine_stats_get(run->engine, &after);
    r->fill_in = (link_bytes_in(&after) - link_bytes_in(&before)) / runs;
    r->fill_out = (after.device_to_host_bytes - before.device_to_host_bytes) / runs;
    uint64_t begun = pllm_clock_ns();
    for (uint32_t i = 1; status == PLLM_OK && i < r->batch; i++)
        status = prompt(run, i, 0, r->depth, 1);
    double all_ms = r->fill_ms + (double)(pllm_clock_ns() - begun) * 1e-6;
    r->fill_tps = 1e3 * (double)(r->depth * r->batch) / all_ms;
    return status;
}

/* A token after every block has left the device. */
static int time_resume(bench_run *run)
{
    bench_result *r = run->result;
    uint64_t position = pllm_sequence_length(run->sequences[0]);
    int status = pllm_engine_evict_all(run->engine);
    uint64_t started = pllm_clock_ns();
    if (status == PLLM_OK) status = step(run, position);
    r->resume_ms = (double)(pllm_clock_ns() - started) * 1e-6;
    return status;
}

/* What a GPU does once (code loaded, graphs captured, libraries woken) is not part of a speed. */
static int warm_up(bench_run *run)
{
    if (strcmp(run->info.device, "host") == 0) return PLLM_OK;
    uint64_t most = run->result->depth + bench_tokens_after(run->plan);
    int status = prompt(run, 0, 0, most < 512 ? most : 512, 1);
    if (status == PLLM_OK) status = pllm_sequence_truncate(run->sequences[0], 0);
    return status;
}

static int run_all(bench_run *run, const cli_bandwidth *machine)
{
    int status = PLLM_OK;
    for (uint32_t i = 0; status == PLLM_OK && i < run->result->batch; i++)
        status = pllm_sequence_open(run->engine, &run->sequences[i]);
    if (status == PLLM_OK) status = warm_up(run);
    if (status == PLLM_OK) status = time_fill(run);
    if (status == PLLM_OK && run->plan->prefill) status = time_prefill(run);
    if (status == PLLM_OK && run->plan->decode) status = time_decode(run, machine);
    if (status == PLLM_OK && run->plan->resume) status = time_resume(run);
    return status;
}

int bench_measure(pllm_engine *engine, const bench_plan *plan, const cli_bandwidth *machine,
                  bench_result *result)
{
    bench_run run = {.engine = engine,
                     .plan = plan,
                     .result = result,
                     .info = {.struct_bytes = sizeof run.info}};
    int status = pllm_engine_info_get(engine, &run.info);
    if (status < 0) return status;
    uint64_t id_count = result->depth + bench_tokens_after(plan) + result->batch + 512;
    run.step_weights = step_weight_bytes(engine, run.info.weight_bytes);
    run.ids = calloc(id_count, sizeof *run.ids);
    run.sequences = calloc(result->batch, sizeof *run.sequences);
    run.items = calloc(result->batch, sizeof *run.items);
    run.ms = calloc(plan->decode + 1, sizeof *run.ms);
    result->bound_by = "";
    if (run.ids && run.sequences && run.items && run.ms) {
        fill(run.ids, id_count, run.info.vocab_size, plan->seed);
        status = run_all(&run, machine);
    } else {
        status = pllm_fail_memory("token ids", id_count * sizeof *run.ids);
    }
    for (uint32_t i = 0; run.sequences && i < result->batch; i++)
        pllm_sequence_close(run.sequences[i]);
    free(run.ids);
    free(run.sequences);
    free(run.items);
    free(run.ms);
    return status < 0 && cli_interrupted() ? cli_canceled() : status;
}

/* ---- what is told --------------------------------------------------------------------------- */

static void add_count(json_t *object, const char *name, uint64_t value)
{
    json_object_set_new(object, name, json_integer((json_int_t)value));
}

static void add_real(json_t *object, const char *name, double value)
{
    json_object_set_new(object, name, json_real(value));
}

json_t *bench_result_json(const bench_result *r)
{
    json_t *o = json_object();
    add_count(o, "depth", r->depth);
    add_count(o, "batch", r->batch);
    if (r->depth) {
        add_real(o, "fill_ms", r->fill_ms);
        add_real(o, "fill_tokens_per_second", r->fill_tps);
        add_count(o, "fill_in_bytes", r->fill_in);
        add_count(o, "fill_out_bytes", r->fill_out);
    }
    add_count(o, "prefill_tokens", r->prefill_count);
    add_count(o, "prefill_runs", r->prefill_runs);
    add_real(o, "prefill_ms", r->prefill_ms);
    add_real(o, "prefill_tokens_per_second", r->prefill_tps);
    add_count(o, "decode_tokens", r->decode_count);
    add_real(o, "decode_tokens_per_second", r->decode_tps);
    add_real(o, "decode_ms_median", r->decode_ms_median);
    add_real(o, "decode_ms_best", r->decode_ms_best);
    add_count(o, "read_bytes_per_token", r->read_per_token);
    add_count(o, "not_resident_bytes_per_token", r->missing_per_token);
    add_count(o, "host_to_device_bytes_per_token", r->host_per_token);
    add_count(o, "disk_to_device_bytes_per_token", r->disk_per_token);
    add_real(o, "wait_ms_per_token", r->wait_ms_per_token);
    if (r->resume_ms > 0) add_real(o, "resume_ms", r->resume_ms);
    if (r->bound_ms > 0) {
        add_real(o, "bound_ms", r->bound_ms);
        json_object_set_new(o, "bound_by", json_string(r->bound_by));
        add_real(o, "of_bound", r->of_bound);
    }
    return o;
}

json_t *bench_engine_json(const pllm_engine *engine, const cli_bandwidth *machine)
{
    pllm_engine_info info = {.struct_bytes = sizeof info};
    pllm_engine_stats stats = {.struct_bytes = sizeof stats};
    pllm_engine_info_get(engine, &info);
    pllm_engine_stats_get(engine, &stats);
    json_t *o = json_object();
    json_object_set_new(o, "model", cli_json_text(pllm_model_path(pllm_engine_model(engine))));
    json_object_set_new(o, "device", json_string(info.device));
    json_object_set_new(o, "device_name", cli_json_text(machine->device.name));
    json_object_set_new(o, "kernels", json_string(info.kernels));
    json_object_set_new(o, "kv_format", json_string(info.kv_format));
    json_object_set_new(o, "compute", json_string(info.compute));
    add_count(o, "threads", info.threads);
    add_count(o, "weight_bytes", info.weight_bytes);
    add_count(o, "step_weight_bytes", step_weight_bytes(engine, info.weight_bytes));
    add_count(o, "workspace_bytes", info.workspace_bytes);
    add_count(o, "weight_resident_bytes", stats.weight_resident_bytes);
    add_count(o, "device_bytes_peak", stats.device_bytes_peak);
    uint64_t before, now; /* what the driver sees, less what was in use before */
    pllm_device *device = pllm_engine_device(engine);
    if (pllm_cuda_is(device) && pllm_cuda_memory_used(device, &before, &now) == PLLM_OK)
        add_count(o, "device_bytes_seen", now > before ? now - before : 0);
    add_real(o, "device_read_bytes_per_second", machine->read_bytes_per_second);
    add_real(o, "link_bytes_per_second", machine->link_bytes_per_second);
    return o;
}

static int print_json(const pllm_engine *engine, const cli_bandwidth *machine,
                      const bench_result *results, uint32_t count)
{
    json_t *root = bench_engine_json(engine, machine), *list = json_array();
    for (uint32_t i = 0; i < count; i++)
        json_array_append_new(list, bench_result_json(&results[i]));
    json_object_set_new(root, "results", list);
    return cli_print_json(root);
}

static int print_text(const cli_bandwidth *machine, const bench_result *results, uint32_t count)
{
    printf("device memory is read at %.1f GB/s, the link carries %.1f GB/s\n",
           machine->read_bytes_per_second * 1e-9, machine->link_bytes_per_second * 1e-9);
    printf("%8s %5s %11s %11s %11s %10s %9s %14s %14s %10s\n", "depth", "batch", "prefill/s",
           "ttft ms", "decode/s", "ms median", "of bound", "MB read/token", "MB moved/token",
           "ms waited");
    for (uint32_t i = 0; i < count; i++) {
        const bench_result *r = &results[i];
        int filled = r->prefill_count == 0;
        printf("%8llu %5llu %11.1f %11.1f %11.1f %10.2f %8.0f%% %14.1f %14.1f %10.2f\n",
               (unsigned long long)r->depth, (unsigned long long)r->batch,
               filled ? r->fill_tps : r->prefill_tps, filled ? r->fill_ms : r->prefill_ms,
               r->decode_tps, r->decode_ms_median, 100 * r->of_bound,
               (double)r->read_per_token * 1e-6,
               (double)(r->host_per_token + r->disk_per_token) * 1e-6, r->wait_ms_per_token);
        if (r->resume_ms > 0)
            printf("%14s the first token after all blocks were evicted: %.1f ms\n", "",
                   r->resume_ms);
    }
    return PLLM_OK;
}

/* ---- the command ---------------------------------------------------------------------------- */

static uint64_t most_of(const pllm_uint_list *list)
{
    uint64_t most = 0;
    for (uint32_t i = 0; i < list->count; i++)
        if (list->items[i] > most) most = list->items[i];
    return most;
}

/* Before the first depth takes its minutes. */
static int check_context(const pllm_engine *engine, const bench_plan *plan)
{
    pllm_engine_info info = {.struct_bytes = sizeof info};
    int status = pllm_engine_info_get(engine, &info);
    uint64_t after = bench_tokens_after(plan);
    if (status < 0 || plan->depth_max + after <= info.context_max) return status;
    return pllm_fail(PLLM_ELIMIT, 0,
                     "--depth %llu and the %llu tokens timed after it are more than the model's "
                     "context of %u",
                     (unsigned long long)plan->depth_max, (unsigned long long)after,
                     info.context_max);
}

static int measure_all(cli_program *cli, pllm_engine *engine, const bench_plan *plan,
                       const cli_bandwidth *machine)
{
    const pllm_settings *settings = cli->settings;
    uint32_t count = settings->depth.count * settings->batch.count, done = 0;
    bench_result *results = calloc(count + 1, sizeof *results);
    if (!results) return pllm_fail_memory("results", count * sizeof *results);
    int status = check_context(engine, plan);
    for (uint32_t b = 0; b < settings->batch.count; b++)
        for (uint32_t d = 0; status == PLLM_OK && d < settings->depth.count; d++, done++) {
            results[done].batch = settings->batch.items[b];
            results[done].depth = settings->depth.items[d];
            status = bench_measure(engine, plan, machine, &results[done]);
        }
    if (status == PLLM_OK)
        status = settings->json ? print_json(engine, machine, results, count)
                                : print_text(machine, results, count);
    if (status == PLLM_OK) status = cli_stats(cli, engine, NULL);
    free(results);
    return status;
}

int command_bench(cli_program *cli)
{
    const pllm_settings *settings = cli->settings;
    if (cli_is_tensor(settings)) return bench_tensor(cli);
    if (cli_is_pool(settings)) return bench_pool(cli);
    if (settings->suite) return bench_suite(cli);
    char weights[16];
    pllm_settings_text(settings, pllm_option_find("weights"), weights, sizeof weights);
    bench_plan plan = {.need = {.shape = settings->shape,
                                .weights = weights,
                                .sequence_max = (uint32_t)most_of(&settings->batch)},
                       .prefill = settings->prefill,
                       .decode = settings->decode,
                       .seed = settings->seed,
                       .resume = settings->resume,
                       .depth_max = most_of(&settings->depth)};
    cli_bandwidth machine;
    int status = bench_plan_context(&plan);
    if (status == PLLM_OK) status = cli_measure_bandwidth(cli, &machine);
    if (status == PLLM_OK && settings->shape) {
        bench_memory memory;
        status = bench_memory_of(cli, &plan, &memory);
        if (status == PLLM_OK) status = bench_fits(cli, &memory, &machine, 1);
    }
    pllm_engine *engine = NULL;
    if (status == PLLM_OK) status = cli_engine_open(cli, &plan.need, &engine);
    if (status == PLLM_OK) status = measure_all(cli, engine, &plan, &machine);
    pllm_engine_close(engine);
    return status;
}
