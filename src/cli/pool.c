/* pool.c - pagedllm bench pool: the caching allocator on recorded logs, beside what a program would
 * otherwise call.
 *
 * A log is replayed on a new pool, and in the same run, in turn, on plain device allocation (on the
 * host device a reservation, a chunk and a mapping each; on a GPU cuMemAlloc) and, on a GPU, on the
 * driver's own stream-ordered pool (cuMemAllocAsync, keeping all that is freed). Each call is timed
 * alone; quantiles are over all allocations and frees of a replay, the clock's own time (said
 * first) included, and the best of the runs counts. Nothing runs on the streams meanwhile: what is
 * measured is the calls.
 *
 * Plain allocation costs by the page and may take minutes: a replay of it ends after PLAIN_SECONDS,
 * and its figures are of the part that was replayed; its peak is the sum of what it gave out, each
 * rounded up as the device does it.
 *
 * "reserved" is the most physical memory held at once, over the most bytes asked for at once. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/clock.h"
#include "base/context.h"
#include "base/histogram.h"
#include "base/size.h"
#include "cli/bench.h"
#include "device/cuda.h"
#include "device/open.h"
#include "pool/log.h"
#include "pool/pool.h"

enum { RUNS = 3, STREAMS = PLLM_POOL_LOG_STREAMS, SUBJECTS = 3, LOGS_MAX = 16 };
#define PLAIN_NS 1500000000ull

/* A block, as whoever gave it needs to know. */
typedef struct place {
    uint64_t address, bytes;
    pllm_chunk *chunk;
    uint64_t users; /* streams recorded, where that is left to us */
} place;

typedef struct pool_bench {
    cli_program *cli;
    pllm_device *device;
    const pllm_device_ops *ops;
    pllm_device_info info;
    pllm_stream *streams[STREAMS]; /* 0: the CPU */
    pllm_event *event;
    pllm_pool *pool;
    place *places;
    uint64_t clock_ns; /* what asking the time takes */
} pool_bench;

typedef struct measured {
    uint64_t calls, p50_ns, p99_ns; /* calls 0: not measured */
    double mean_ns;
    uint64_t requested_peak, reserved_peak;
    int whole; /* all of the log */
    pllm_pool_stats stats;
} measured;

typedef struct subject {
    const char *name;
    int (*begin)(pool_bench *b);
    int (*allocate)(pool_bench *b, place *p, uint64_t bytes, uint32_t stream);
    int (*free)(pool_bench *b, place *p, uint32_t stream);
    int (*record)(pool_bench *b, place *p, uint32_t stream);
    int (*end)(pool_bench *b, measured *m); /* every place is free */
    uint64_t limit_ns;                      /* 0: none */
} subject;

/* ---- ours ---- */

static int pool_begin(pool_bench *b)
{
    uint64_t limit = b->cli->settings->vram_limit;
    pllm_pool_options options = {.struct_bytes = sizeof options,
                                 .limit_bytes = limit == PLLM_SIZE_UNLIMITED ? 0 : limit,
                                 .block_max = 1 << 18};
    return pllm_pool_open(b->cli->context, b->device, &options, &b->pool);
}

static int pool_allocate(pool_bench *b, place *p, uint64_t bytes, uint32_t stream)
{
    return pllm_pool_allocate(b->pool, bytes, b->streams[stream], &p->address);
}

static int pool_free(pool_bench *b, place *p, uint32_t stream)
{
    return pllm_pool_free(b->pool, p->address, 0, b->streams[stream]);
}

static int pool_record(pool_bench *b, place *p, uint32_t stream)
{
    return pllm_pool_record_stream(b->pool, p->address, b->streams[stream]);
}

static int pool_end(pool_bench *b, measured *m)
{
    m->stats.struct_bytes = sizeof m->stats;
    int status = pllm_pool_stats_get(b->pool, &m->stats);
    m->reserved_peak = m->stats.reserved_peak_bytes;
    pllm_pool_close(b->pool);
    b->pool = NULL;
    return status;
}

/* ---- plain ---- */

static int plain_begin(pool_bench *b)
{
    (void)b;
    return PLLM_OK;
}

static int plain_allocate(pool_bench *b, place *p, uint64_t bytes, uint32_t stream)
{
    (void)stream;
    uint64_t granule = b->info.granularity_bytes;
    p->bytes = (bytes + granule - 1) / granule * granule;
    if (pllm_cuda_is(b->device)) return pllm_cuda_plain_alloc(b->device, p->bytes, &p->address);
    int status = b->ops->reserve(b->device, p->bytes, &p->address);
    if (status < 0) return status;
    status = b->ops->chunk_create(b->device, p->bytes, &p->chunk);
    if (status == PLLM_OK) status = b->ops->map(b->device, p->address, &p->chunk, 1);
    if (status < 0) {
        b->ops->chunk_destroy(b->device, p->chunk);
        b->ops->release(b->device, p->address, p->bytes);
    }
    return status;
}

static int plain_free(pool_bench *b, place *p, uint32_t stream)
{
    (void)stream;
    if (pllm_cuda_is(b->device)) {
        pllm_cuda_plain_free(b->device, p->address);
        return PLLM_OK;
    }
    b->ops->unmap(b->device, p->address, p->chunk);
    b->ops->chunk_destroy(b->device, p->chunk);
    b->ops->release(b->device, p->address, p->bytes);
    return PLLM_OK;
}

/* Plain frees wait for the device. */
static int plain_record(pool_bench *b, place *p, uint32_t stream)
{
    (void)b;
    (void)p;
    (void)stream;
    return PLLM_OK;
}

static int plain_end(pool_bench *b, measured *m)
{
    (void)b;
    (void)m; /* replay has summed */
    return PLLM_OK;
}

/* ---- the driver's ---- */

static int async_begin(pool_bench *b)
{
    return pllm_cuda_async_hold(b->device);
}

static int async_allocate(pool_bench *b, place *p, uint64_t bytes, uint32_t stream)
{
    p->users = 0;
    return pllm_cuda_async_alloc(b->device, b->streams[stream], bytes, &p->address);
}

/* What a program does whose block other streams use: their work goes before the free. */
static int async_free(pool_bench *b, place *p, uint32_t stream)
{
    for (uint64_t users = p->users; users; users &= users - 1) {
        pllm_stream *user = b->streams[__builtin_ctzll(users)];
        int status = b->ops->event_record(b->device, b->event, user);
        if (status == PLLM_OK)
            status = b->ops->stream_wait(b->device, b->streams[stream], b->event);
        if (status == PLLM_EBUSY) status = b->ops->stream_sync(b->device, user);
        if (status < 0) return status;
    }
    return pllm_cuda_async_free(b->device, b->streams[stream], p->address);
}

static int async_record(pool_bench *b, place *p, uint32_t stream)
{
    (void)b;
    if (stream) p->users |= 1ull << stream;
    return PLLM_OK;
}

static int async_end(pool_bench *b, measured *m)
{
    uint64_t now;
    for (uint32_t i = 1; i < STREAMS; i++)
        if (b->streams[i]) (void)b->ops->stream_sync(b->device, b->streams[i]);
    return pllm_cuda_async_reserved(b->device, &now, &m->reserved_peak);
}

static const subject subjects[SUBJECTS] = {
    {"pool", pool_begin, pool_allocate, pool_free, pool_record, pool_end, 0},
    {"plain", plain_begin, plain_allocate, plain_free, plain_record, plain_end, PLAIN_NS},
    {"async", async_begin, async_allocate, async_free, async_record, async_end, 0},
};

/* ---- a replay ---- */

typedef struct replay_totals {
    uint64_t requested, given; /* live now; given: as the device rounds it */
    uint64_t *sizes;
} replay_totals;

static int replay_step(pool_bench *b, const subject *s, const pllm_pool_step *step)
{
    place *p = &b->places[step->place];
    if (step->kind == 'a') return s->allocate(b, p, step->bytes, step->stream);
    return step->kind == 'f' ? s->free(b, p, step->stream) : s->record(b, p, step->stream);
}

static void count_step(replay_totals *t, const pllm_pool_step *step, uint64_t granule, measured *m)
{
    uint64_t bytes = step->kind == 'a' ? step->bytes : t->sizes[step->place];
    uint64_t given = (bytes + granule - 1) / granule * granule;
    if (step->kind == 'a') {
        t->sizes[step->place] = bytes;
        t->requested += bytes;
        t->given += given;
        if (t->requested > m->requested_peak) m->requested_peak = t->requested;
        if (t->given > m->reserved_peak) m->reserved_peak = t->given;
    } else {
        t->sizes[step->place] = 0;
        t->requested -= bytes;
        t->given -= given;
    }
}

static int replay_all(pool_bench *b, const subject *s, const pllm_pool_log *log, replay_totals *t,
                      measured *m)
{
    pllm_histogram times = {0};
    uint64_t began = pllm_clock_ns(), from = began, until = began;
    int status = PLLM_OK;
    for (uint32_t i = 0; i < log->step_count && status == PLLM_OK; i++) {
        const pllm_pool_step *step = &log->steps[i];
        if (s->limit_ns && until - began > s->limit_ns) {
            m->whole = 0;
            break;
        }
        if (i % 1024 == 0 && cli_interrupted()) return cli_canceled();
        from = pllm_clock_ns();
        status = replay_step(b, s, step);
        until = pllm_clock_ns();
        if (status < 0 || step->kind == 'r') continue;
        pllm_histogram_record(&times, until - from);
        count_step(t, step, b->info.granularity_bytes, m);
    }
    if (status == PLLM_ENODEVMEM)
        return pllm_fail(status, 0,
                         "the device has no room for %s's blocks of this log: %llu bytes", s->name,
                         (unsigned long long)log->peak_bytes);
    m->calls = times.count;
    m->p50_ns = pllm_histogram_quantile(&times, 0.5);
    m->p99_ns = pllm_histogram_quantile(&times, 0.99);
    m->mean_ns = pllm_histogram_mean(&times);
    return status;
}

static int replay(pool_bench *b, const subject *s, const pllm_pool_log *log, measured *m)
{
    *m = (measured){.whole = 1};
    replay_totals totals = {.sizes = calloc(log->place_count + 1u, sizeof *totals.sizes)};
    b->places = calloc(log->place_count + 1u, sizeof *b->places);
    int status = totals.sizes && b->places ? s->begin(b) : pllm_fail_memory("a replay", 4096);
    if (status == PLLM_OK) {
        status = replay_all(b, s, log, &totals, m);
        pllm_error kept = *pllm_last_error();
        for (uint32_t i = 0; i < log->place_count; i++)
            if (totals.sizes[i]) (void)s->free(b, &b->places[i], 0);
        int ended = s->end(b, m);
        if (status < 0) status = cli_fail_again(&kept);
        if (status == PLLM_OK) status = ended;
    }
    free(totals.sizes);
    free(b->places);
    b->places = NULL;
    return status;
}

/* Which replay is shown: the one with the least median, then the least mean. */
static void keep_best(measured *best, const measured *one)
{
    if (best->calls == 0 || one->p50_ns < best->p50_ns ||
        (one->p50_ns == best->p50_ns && one->mean_ns < best->mean_ns))
        *best = *one;
}

static int measure(pool_bench *b, const pllm_pool_log *log, measured *best)
{
    int status = PLLM_OK;
    uint32_t count = pllm_cuda_is(b->device) ? SUBJECTS : SUBJECTS - 1;
    for (uint32_t i = 1; i < log->stream_count && status == PLLM_OK; i++)
        if (!b->streams[i]) status = b->ops->stream_open(b->device, &b->streams[i]);
    for (uint32_t run = 0; run < RUNS; run++)
        for (uint32_t s = 0; s < count && status == PLLM_OK; s++) {
            if (s == 1 && run > 0 && !best[s].whole) continue; /* long enough */
            measured one;
            status = replay(b, &subjects[s], log, &one);
            if (status == PLLM_EUNSUPPORTED && s == 2)
                status = PLLM_OK; /* a driver without it */
            else if (status == PLLM_OK)
                keep_best(&best[s], &one);
        }
    return status;
}

/* ---- reporting ---- */

typedef struct entry {
    char name[64];
    pllm_pool_log *log;
    measured of[SUBJECTS];
} entry;

static double ratio(const measured *m)
{
    return m->requested_peak ? (double)m->reserved_peak / (double)m->requested_peak : 0;
}

static json_t *subject_json(const subject *s, const measured *m)
{
    json_t *object = json_pack(
        "{s:s,s:I,s:b,s:I,s:I,s:f,s:I,s:I,s:f}", "name", s->name, "calls", (json_int_t)m->calls,
        "whole_log", m->whole, "p50_ns", (json_int_t)m->p50_ns, "p99_ns", (json_int_t)m->p99_ns,
        "mean_ns", m->mean_ns, "peak_requested_bytes", (json_int_t)m->requested_peak,
        "peak_reserved_bytes", (json_int_t)m->reserved_peak, "reserved_over_requested", ratio(m));
    const pllm_pool_stats *p = &m->stats;
    if (object && p->struct_bytes)
        json_object_set_new(object, "pool",
                            json_pack("{s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I}", "allocate_calls",
                                      (json_int_t)p->allocate_calls, "hits", (json_int_t)p->hits,
                                      "splits", (json_int_t)p->splits, "merges",
                                      (json_int_t)p->merges, "created_chunks",
                                      (json_int_t)p->created_chunks, "remapped_chunks",
                                      (json_int_t)p->remapped_chunks, "fences",
                                      (json_int_t)p->fences, "waits", (json_int_t)p->waits,
                                      "peak_allocated_bytes", (json_int_t)p->allocated_peak_bytes));
    return object;
}

static int print_json(const pool_bench *b, const entry *entries, uint32_t count)
{
    json_t *logs = json_array();
    for (uint32_t i = 0; i < count; i++) {
        const entry *e = &entries[i];
        json_t *allocators = json_array();
        for (uint32_t s = 0; s < SUBJECTS; s++)
            if (e->of[s].calls)
                json_array_append_new(allocators, subject_json(&subjects[s], &e->of[s]));
        json_array_append_new(logs,
                              json_pack("{s:o,s:I,s:I,s:I,s:I,s:o}", "name", cli_json_text(e->name),
                                        "steps", (json_int_t)e->log->step_count, "streams",
                                        (json_int_t)e->log->stream_count, "peak_bytes",
                                        (json_int_t)e->log->peak_bytes, "peak_blocks",
                                        (json_int_t)e->log->peak_count, "allocators", allocators));
    }
    return cli_print_json(json_pack("{s:s,s:o,s:i,s:I,s:o}", "device", b->ops->name, "name",
                                    cli_json_text(b->info.name), "runs", RUNS, "clock_ns",
                                    (json_int_t)b->clock_ns, "logs", logs));
}

static void print_text(const pool_bench *b, const entry *entries, uint32_t count)
{
    char peak[PLLM_SIZE_TEXT_BYTES], reserved[PLLM_SIZE_TEXT_BYTES];
    printf("%s; asking the time takes %llu ns, which is in every figure\n", b->info.name,
           (unsigned long long)b->clock_ns);
    printf("%-12s %-6s %9s %10s %10s %10s %12s %12s %9s\n", "log", "", "calls", "p50 us", "p99 us",
           "mean us", "peak", "reserved", "reserved/");
    for (uint32_t i = 0; i < count; i++)
        for (uint32_t s = 0; s < SUBJECTS; s++) {
            const measured *m = &entries[i].of[s];
            if (!m->calls) continue;
            printf("%-12.12s %-6s %9llu%s %9.3f %10.3f %10.3f %12s %12s %9.3f\n",
                   s ? "" : entries[i].name, subjects[s].name, (unsigned long long)m->calls,
                   m->whole ? " " : "+", (double)m->p50_ns * 1e-3, (double)m->p99_ns * 1e-3,
                   m->mean_ns * 1e-3, pllm_size_text(m->requested_peak, peak, sizeof peak),
                   pllm_size_text(m->reserved_peak, reserved, sizeof reserved), ratio(m));
        }
    printf("calls: allocations and frees; + means that the log was ended early\n");
}

/* ---- the logs ---- */

static int load(pool_bench *b, const char *path, entry *e)
{
    char *text;
    uint64_t bytes;
    int status = cli_read_file(path, &text, &bytes);
    if (status < 0) return status;
    status = pllm_pool_log_parse(b->cli->context, text, bytes, &e->log);
    free(text);
    const char *name = strrchr(path, '/');
    snprintf(e->name, sizeof e->name, "%s", name ? name + 1 : path);
    return status;
}

static int make(pool_bench *b, const pllm_pool_workload *workload, entry *e)
{
    int status = pllm_pool_log_open(b->cli->context, &e->log);
    if (status < 0) return status;
    snprintf(e->name, sizeof e->name, "%s", workload->name);
    return workload->make(e->log);
}

static int unknown_log(const char *which)
{
    char names[160] = "";
    size_t used = 0;
    for (uint32_t i = 0; i < pllm_pool_workload_count && used < sizeof names; i++)
        used +=
            (size_t)snprintf(names + used, sizeof names - used, "%s ", pllm_pool_workloads[i].name);
    return pllm_fail(PLLM_ENOTFOUND, 0,
                     "there is no file %.200s, and the logs made here are %sor all", which, names);
}

/* "all", the name of a bundled one, or a file. */
static int choose(pool_bench *b, const char *which, entry *entries, uint32_t *count)
{
    int all = strcmp(which, "all") == 0;
    for (uint32_t i = 0; i < pllm_pool_workload_count; i++) {
        const pllm_pool_workload *workload = &pllm_pool_workloads[i];
        if (!all && strcmp(which, workload->name) != 0) continue;
        int status = make(b, workload, &entries[(*count)++]);
        if (status < 0 || !all) return status;
    }
    if (*count) return PLLM_OK;
    if (access(which, F_OK) != 0 && !strchr(which, '/')) return unknown_log(which);
    return load(b, which, &entries[(*count)++]);
}

static int write_text(void *user, const char *text, uint64_t bytes)
{
    cli_output *output = user;
    if (fwrite(text, 1, bytes, output->file) == bytes) return PLLM_OK;
    return pllm_fail(PLLM_EIO, 0, "could not write to %s", output->path);
}

/* For bench/pool/pytorch.py, which replays the same. */
static int write_log(const entry *e, const char *folder)
{
    char path[4096];
    cli_output output = {0};
    snprintf(path, sizeof path, "%s/%s.log", folder, e->name);
    int status = cli_output_open(&output, path);
    if (status == PLLM_OK) status = pllm_pool_log_write(e->log, write_text, &output);
    if (status == PLLM_OK) return cli_output_finish(&output);
    cli_output_discard(&output);
    return status;
}

/* ---- the whole ---- */

int cli_is_pool(const pllm_settings *settings)
{
    return settings->command && strcmp(settings->command, "bench") == 0 &&
           settings->positional_count > 0 && strcmp(settings->positionals[0], "pool") == 0;
}

static uint64_t time_of_clock(void)
{
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < 1000; i++) {
        uint64_t from = pllm_clock_ns(), took = pllm_clock_ns() - from;
        if (took < best) best = took;
    }
    return best;
}

static int bench_open(pool_bench *b)
{
    pllm_host_device_options host = {.struct_bytes = sizeof host};
    int status =
        pllm_device_open_name(b->cli->context, b->cli->settings->device.last, &host, &b->device);
    if (status < 0) return status;
    b->ops = b->device->ops;
    b->clock_ns = time_of_clock();
    status = b->ops->info(b->device, &b->info);
    if (status == PLLM_OK) status = b->ops->event_open(b->device, &b->event);
    return status;
}

static void bench_close(pool_bench *b)
{
    if (!b->device) return;
    for (uint32_t i = 1; i < STREAMS; i++) b->ops->stream_close(b->device, b->streams[i]);
    b->ops->event_close(b->device, b->event);
    pllm_device_close(b->device);
}

int bench_pool(cli_program *cli)
{
    pool_bench b = {.cli = cli};
    entry *entries = calloc(LOGS_MAX, sizeof *entries);
    uint32_t count = 0;
    if (!entries) return pllm_fail_memory("the results", LOGS_MAX * sizeof *entries);
    int status = choose(&b, cli->settings->log, entries, &count);
    for (uint32_t i = 0; i < count && status == PLLM_OK && cli->settings->output; i++)
        status = write_log(&entries[i], cli->settings->output);
    if (status == PLLM_OK) status = bench_open(&b);
    for (uint32_t i = 0; i < count && status == PLLM_OK; i++)
        status = measure(&b, entries[i].log, entries[i].of);
    if (status == PLLM_OK && cli->settings->json)
        status = print_json(&b, entries, count);
    else if (status == PLLM_OK)
        print_text(&b, entries, count);
    bench_close(&b);
    for (uint32_t i = 0; i < count; i++) pllm_pool_log_close(entries[i].log);
    free(entries);
    return status;
}
