/* tensor.c - pagedllm bench tensor: what paging costs, on a tensor that is filled with normal
 * numbers and summed (the plan's first milestone: 250 million floats).
 *
 * Baseline: the same work on one plain stretch of memory of the same device. Runs alternate, the
 * best of each counts; both sums must be equal to the last bit, or the measurement is void. The
 * first run is not timed: it makes pages and homes.
 *
 * Paged, the tensor goes by groups of pages, in order: a group is pinned, given to the worker, and
 * unpinned when the worker says that it is done; a few are under way. Where all fits a group is
 * large, and pinning is what it costs. Where it does not, filling overwrites (nothing is brought
 * in, what must go is written out) and summing announces its order (pages come ahead of their use);
 * groups are a page, since what is pinned or read ahead is not there to stay. Then the least time
 * is that of the bytes without room over the link, out for a fill and in for a sum, whose speed is
 * measured in the same run; or the plain time, if that is longer. */
#include <string.h>
#include <pagedllm/memory.h>
#include "base/clock.h"
#include "base/context.h"
#include "cli/bench.h"
#include "cli/tensor.h"
#include "device/cuda.h"
#include "engine/parts.h"
#include "pager/memory_device.h"

enum {
    RUNS = 5,
    UNDER_WAY = 16,           /* groups at most */
    GROUP_FIRST = 64 << 20,   /* where all fits: the first and the last group, */
    GROUP_BYTES = 1024 << 20, /* and those between */
    GROUP_PIECES = 4096,
    AHEAD_BYTES = 12 << 20, /* read ahead */
    PINNED_BYTES = 8 << 20, /* pinned by groups under way, where not all fits */
    PROBE_BYTES = 64 << 20,
    PROBES = 4,
};

typedef struct phases {
    double fill, sum; /* seconds */
} phases;

typedef struct tensor_bench {
    cli_program *cli;
    pllm_device *device;
    const pllm_device_ops *ops;
    tensor_worker *worker;
    uint64_t calls; /* made to the worker */
    uint64_t bytes, page_bytes, limit_bytes;
    /* plain */
    pllm_va plain;
    pllm_chunk *chunk;
    uint64_t plain_bytes;
    int mapped;
    /* paged */
    pllm_memory *memory;
    pllm_tensor tensor;
    uint64_t under_way;               /* groups */
    uint64_t group_bytes, group_ends; /* bytes of a group; of the first and the last */
    pllm_memory_place *places;
    tensor_piece *pieces;
    /* results */
    double in_per_second, out_per_second;
    phases plain_best, paged_best;
    double sum;
    uint64_t bytes_in, bytes_out, missing_bytes; /* a run */
} tensor_bench;

int cli_is_tensor(const pllm_settings *settings)
{
    return settings->command && strcmp(settings->command, "bench") == 0 &&
           settings->positional_count > 0 && strcmp(settings->positionals[0], "tensor") == 0;
}

static double since(uint64_t start_ns)
{
    return (double)(pllm_clock_ns() - start_ns) * 1e-9;
}

/* ---- plain ---- */

static int work(tensor_bench *b, const tensor_piece *pieces, uint32_t count, int sum)
{
    b->calls++;
    return sum ? b->worker->ops->sum(b->worker, pieces, count)
               : b->worker->ops->fill(b->worker, pieces, count);
}

static int add(tensor_bench *b)
{
    b->calls++;
    return b->worker->ops->add(b->worker);
}

static int wait_for(tensor_bench *b, uint64_t call)
{
    return b->worker->ops->wait(b->worker, call);
}

static int plain_run(tensor_bench *b, phases *took)
{
    tensor_piece whole = {b->plain, 0, b->bytes / 4};
    uint64_t start = pllm_clock_ns();
    int status = work(b, &whole, 1, 0);
    if (status == PLLM_OK) status = wait_for(b, b->calls - 1);
    took->fill = since(start);
    start = pllm_clock_ns();
    if (status == PLLM_OK) status = work(b, &whole, 1, 1);
    if (status == PLLM_OK) status = add(b);
    if (status == PLLM_OK) status = wait_for(b, b->calls - 1);
    took->sum = since(start);
    if (status == PLLM_OK) b->sum = b->worker->ops->total(b->worker);
    return status;
}

/* ---- paged ---- */

/* A stretch of the tensor, pinned while its call is under way. */
typedef struct group {
    uint64_t offset, bytes, call;
} group;

static uint64_t group_size(const tensor_bench *b, uint64_t offset)
{
    uint64_t left = b->bytes - offset, bytes = offset ? b->group_bytes : b->group_ends;
    if (left > b->group_ends && left - b->group_ends < bytes) bytes = left - b->group_ends;
    bytes = (bytes + b->page_bytes - 1) / b->page_bytes * b->page_bytes;
    return bytes < left ? bytes : left;
}

/* Pins the group and gives it to the worker. */
static int group_begin(tensor_bench *b, group *g, uint64_t offset, int sum)
{
    uint32_t count;
    *g = (group){offset, group_size(b, offset), b->calls};
    int status = pllm_memory_pin_device(b->memory, b->tensor, offset, g->bytes,
                                        sum ? PLLM_MEMORY_READ : PLLM_MEMORY_OVERWRITE, b->places,
                                        GROUP_PIECES, &count);
    if (status < 0) return status;
    uint64_t first = offset / 4;
    for (uint32_t i = 0; i < count; i++) {
        b->pieces[i] = (tensor_piece){b->places[i].address, first, b->places[i].bytes / 4};
        first += b->places[i].bytes / 4;
    }
    status = work(b, b->pieces, count, sum);
    if (status < 0) {
        pllm_error kept = *pllm_last_error();
        (void)pllm_memory_unpin(b->memory, b->tensor, offset, g->bytes);
        return cli_fail_again(&kept);
    }
    return PLLM_OK;
}

static int group_end(tensor_bench *b, const group *g)
{
    int waited = wait_for(b, g->call);
    int status = pllm_memory_unpin(b->memory, b->tensor, g->offset, g->bytes);
    if (waited < 0) return waited;
    /* The room is for a page ahead: now, not when the next pin looks. */
    return status == PLLM_OK && b->missing_bytes ? pllm_memory_poll(b->memory) : status;
}

static int paged_pass(tensor_bench *b, int sum)
{
    group groups[UNDER_WAY];
    uint64_t made = 0, done = 0, offset = 0;
    int status = PLLM_OK;
    while (status == PLLM_OK && offset < b->bytes) {
        if (cli_interrupted()) status = cli_canceled();
        if (status == PLLM_OK && made - done == b->under_way)
            status = group_end(b, &groups[done++ % UNDER_WAY]);
        if (status < 0) break;
        status = group_begin(b, &groups[made % UNDER_WAY], offset, sum);
        if (status == PLLM_OK) offset += groups[made++ % UNDER_WAY].bytes;
    }
    if (status == PLLM_OK && sum) status = add(b);
    pllm_error kept = *pllm_last_error();
    for (; done < made; done++) {
        int ended = group_end(b, &groups[done % UNDER_WAY]);
        if (status == PLLM_OK && ended < 0) status = ended, kept = *pllm_last_error();
    }
    if (status < 0) return cli_fail_again(&kept);
    return sum ? wait_for(b, b->calls - 1) : PLLM_OK;
}

/* Order of a fill: none, so that nothing is read ahead that will be overwritten. */
static int paged_run(tensor_bench *b, phases *took)
{
    double total = 0;
    int status = pllm_memory_advise(b->memory, b->tensor, 0, 0, PLLM_MEMORY_SEQUENTIAL);
    uint64_t start = pllm_clock_ns();
    if (status == PLLM_OK) status = paged_pass(b, 0);
    took->fill = since(start);
    start = pllm_clock_ns();
    if (status == PLLM_OK)
        status = pllm_memory_advise(b->memory, b->tensor, 0, b->bytes, PLLM_MEMORY_SEQUENTIAL);
    if (status == PLLM_OK) status = paged_pass(b, 1);
    took->sum = since(start);
    if (status == PLLM_OK) total = b->worker->ops->total(b->worker);
    if (status == PLLM_OK && memcmp(&total, &b->sum, sizeof total) != 0)
        return pllm_fail(PLLM_EINVAL, 0,
                         "the paged sum is %.17g, the plain one %.17g: the measurement is void",
                         total, b->sum);
    return status;
}

/* ---- the link ---- */

/* Bytes a second of copies of PROBE_BYTES between the plain memory and host memory. */
static int measure_link(tensor_bench *b)
{
    void *host = NULL;
    pllm_stream *stream = NULL;
    uint64_t bytes = b->plain_bytes < PROBE_BYTES ? b->plain_bytes : PROBE_BYTES;
    int status = b->ops->host_alloc(b->device, bytes, &host);
    if (status == PLLM_OK) status = b->ops->stream_open(b->device, &stream);
    pllm_copy in = {b->plain, (pllm_va)(uintptr_t)host, bytes}, out = {in.from, in.to, bytes};
    for (int run = 0; status == PLLM_OK && run < 2 * PROBES; run++) {
        double *best = run % 2 ? &b->out_per_second : &b->in_per_second;
        uint64_t start = pllm_clock_ns();
        status = b->ops->copy(b->device, stream, run % 2 ? PLLM_COPY_OUT : PLLM_COPY_IN,
                              run % 2 ? &out : &in);
        if (status == PLLM_OK) status = b->ops->stream_sync(b->device, stream);
        double rate = (double)bytes / since(start);
        if (run >= 2 && rate > *best) *best = rate; /* the first of each only touches */
    }
    b->ops->stream_close(b->device, stream);
    if (host) b->ops->host_free(b->device, host, bytes);
    return status;
}

/* ---- the whole ---- */

static void tensor_close(tensor_bench *b)
{
    if (b->worker) b->worker->ops->close(b->worker);
    pllm_memory_close(b->memory);
    if (b->device) {
        if (b->mapped) b->ops->unmap(b->device, b->plain, b->chunk);
        b->ops->chunk_destroy(b->device, b->chunk);
        if (b->plain) b->ops->release(b->device, b->plain, b->plain_bytes);
    }
    pllm_device_close(b->device);
    pllm_free(b->cli->context, b->places);
    pllm_free(b->cli->context, b->pieces);
}

static int device_open(tensor_bench *b)
{
    cli_engine_choice choice;
    cli_engine_choose(b->cli, NULL, &choice);
    int status = pllm_engine_open_device(b->cli->context, &choice.options, &b->device);
    if (status == PLLM_OK) b->ops = b->device->ops;
    return status;
}

static int plain_open(tensor_bench *b)
{
    pllm_device_info info;
    int status = b->ops->info(b->device, &info);
    if (status < 0) return status;
    uint64_t granule = info.granularity_bytes;
    b->plain_bytes = (b->bytes + granule - 1) / granule * granule;
    status = b->ops->reserve(b->device, b->plain_bytes, &b->plain);
    if (status == PLLM_OK) status = b->ops->chunk_create(b->device, b->plain_bytes, &b->chunk);
    if (status == PLLM_ENODEVMEM)
        return pllm_fail(status, 0,
                         "the device has no %llu bytes for a plain tensor to compare with",
                         (unsigned long long)b->plain_bytes);
    if (status == PLLM_OK) status = b->ops->map(b->device, b->plain, &b->chunk, 1);
    b->mapped = status == PLLM_OK;
    return status;
}

static int memory_open(tensor_bench *b)
{
    const pllm_settings *settings = b->cli->settings;
    char policy[16], prefetch[16], member[40];
    pllm_settings_text(settings, pllm_option_find("policy"), policy, sizeof policy);
    pllm_settings_text(settings, pllm_option_find("prefetch_strategy"), prefetch, sizeof prefetch);
    uint64_t pages = (b->bytes + b->page_bytes - 1) / b->page_bytes;
    uint64_t ahead = AHEAD_BYTES / b->page_bytes;
    pllm_memory_options options = {
        .struct_bytes = sizeof options,
        .vram_limit_bytes = settings->vram_limit,
        .host_memory_bytes = settings->host_memory,
        .nvme_path = settings->nvme_path,
        .nvme_size_bytes = settings->nvme_size,
        .page_bytes = b->page_bytes,
        .capacity_bytes = pages * b->page_bytes,
        .tensor_max = 1,
        .policy = policy,
        .prefetch_strategy = prefetch,
        .prefetch_pages = ahead < 2 ? 2 : (uint32_t)ahead,
        .ledger = settings->ledger,
        .ledger_limit_bytes = settings->ledger_limit,
        .ledger_minimum_bytes = settings->ledger_minimum,
        .ledger_priority = (int32_t)settings->ledger_priority,
        .ledger_name = cli_member_name(settings, member, sizeof member),
    };
    int status = pllm_memory_open_on(b->cli->context, b->device, &options, &b->memory);
    if (status == PLLM_OK)
        status = pllm_memory_allocate(b->memory, b->bytes, PLLM_MEMORY_NORMAL, &b->tensor);
    pllm_memory_stats stats = {.struct_bytes = sizeof stats};
    if (status == PLLM_OK) status = pllm_memory_stats_get(b->memory, &stats);
    if (status < 0) return status;
    b->limit_bytes = stats.vram_limit_bytes;
    uint64_t wanted = pages * b->page_bytes;
    b->missing_bytes = wanted > b->limit_bytes ? wanted - b->limit_bytes : 0;
    b->under_way = UNDER_WAY;
    b->group_bytes = GROUP_BYTES;
    b->group_ends = GROUP_FIRST;
    if (b->group_bytes > GROUP_PIECES * b->page_bytes)
        b->group_bytes = GROUP_PIECES * b->page_bytes;
    if (b->group_ends > b->group_bytes) b->group_ends = b->group_bytes;
    if (b->missing_bytes) {
        uint64_t most = b->limit_bytes / 4 < PINNED_BYTES ? b->limit_bytes / 4 : PINNED_BYTES;
        b->group_bytes = b->group_ends = b->page_bytes;
        b->under_way = most / b->page_bytes;
        if (b->under_way > UNDER_WAY) b->under_way = UNDER_WAY;
        if (b->under_way == 0) b->under_way = 1;
    }
    return PLLM_OK;
}

static int tensor_open(tensor_bench *b)
{
    const pllm_context *context = b->cli->context;
    uint64_t tiles = (b->bytes / 4 + TENSOR_TILE - 1) / TENSOR_TILE, seed = b->cli->settings->seed;
    b->places = pllm_alloc_array(context, GROUP_PIECES, sizeof *b->places);
    b->pieces = pllm_alloc_array(context, GROUP_PIECES, sizeof *b->pieces);
    if (!b->places || !b->pieces)
        return pllm_fail_memory("a list of pages", GROUP_PIECES * sizeof *b->pieces);
    int status = device_open(b);
    if (status < 0) return status;
    status = pllm_cuda_is(b->device)
                 ? tensor_worker_open_cuda(context, b->device, tiles, seed, &b->worker)
                 : tensor_worker_open_host(context, b->device, tiles, seed, &b->worker);
    if (status == PLLM_OK) status = plain_open(b);
    if (status == PLLM_OK) status = memory_open(b);
    return status;
}

static void keep_best(phases *best, phases one)
{
    if (best->fill == 0 || one.fill < best->fill) best->fill = one.fill;
    if (best->sum == 0 || one.sum < best->sum) best->sum = one.sum;
}

static int measure(tensor_bench *b)
{
    int status = measure_link(b);
    for (int run = 0; status == PLLM_OK && run <= RUNS; run++) {
        pllm_memory_stats before = {.struct_bytes = sizeof before}, after = before;
        phases plain = {0}, paged = {0};
        status = plain_run(b, &plain);
        if (status == PLLM_OK) status = pllm_memory_stats_get(b->memory, &before);
        if (status == PLLM_OK) status = paged_run(b, &paged);
        if (status == PLLM_OK) status = pllm_memory_stats_get(b->memory, &after);
        if (status < 0 || run == 0) continue;
        keep_best(&b->plain_best, plain);
        keep_best(&b->paged_best, paged);
        b->bytes_in = after.bytes_in - before.bytes_in;
        b->bytes_out = after.bytes_out - before.bytes_out;
    }
    return status;
}

/* The least a phase could take. */
static double bound(const tensor_bench *b, double plain, double bytes_per_second)
{
    double link = bytes_per_second > 0 ? (double)b->missing_bytes / bytes_per_second : 0;
    return link > plain ? link : plain;
}

static int report(const tensor_bench *b)
{
    const phases *plain = &b->plain_best, *paged = &b->paged_best;
    double fill = bound(b, plain->fill, b->out_per_second);
    double sum = bound(b, plain->sum, b->in_per_second);
    double plain_all = plain->fill + plain->sum, paged_all = paged->fill + paged->sum;
    if (!b->cli->settings->json) {
        printf("%s, %llu bytes in pages of %llu, %llu without room\n", b->ops->name,
               (unsigned long long)b->bytes, (unsigned long long)b->page_bytes,
               (unsigned long long)b->missing_bytes);
        printf("%-8s %10s %10s %10s\n", "ms", "fill", "sum", "both");
        printf("%-8s %10.3f %10.3f %10.3f\n", "plain", plain->fill * 1e3, plain->sum * 1e3,
               plain_all * 1e3);
        printf("%-8s %10.3f %10.3f %10.3f\n", "paged", paged->fill * 1e3, paged->sum * 1e3,
               paged_all * 1e3);
        printf("%-8s %10.3f %10.3f %10.3f\n", "bound", fill * 1e3, sum * 1e3, (fill + sum) * 1e3);
        printf("%-8s %10.3f %10.3f %10.3f\n", "ratio", paged->fill / fill, paged->sum / sum,
               paged_all / (fill + sum));
        printf("link in %.1f, out %.1f GB/s; a run moved %.1f MB in, %.1f MB out\n",
               b->in_per_second * 1e-9, b->out_per_second * 1e-9, (double)b->bytes_in * 1e-6,
               (double)b->bytes_out * 1e-6);
        return PLLM_OK;
    }
    return cli_print_json(json_pack(
        "{s:s,s:I,s:I,s:I,s:I,s:i,s:{s:f,s:f},s:{s:f,s:f},s:{s:f,s:f},s:f,s:f,s:f,s:f,s:I,s:I,s:f}",
        "device", b->ops->name, "bytes", (json_int_t)b->bytes, "page_bytes",
        (json_int_t)b->page_bytes, "vram_limit_bytes", (json_int_t)b->limit_bytes,
        "not_resident_bytes", (json_int_t)b->missing_bytes, "runs", RUNS, "plain", "fill_ms",
        plain->fill * 1e3, "sum_ms", plain->sum * 1e3, "paged", "fill_ms", paged->fill * 1e3,
        "sum_ms", paged->sum * 1e3, "bound", "fill_ms", fill * 1e3, "sum_ms", sum * 1e3, "overhead",
        paged_all / plain_all - 1, "over_bound", paged_all / (fill + sum),
        "link_in_bytes_per_second", b->in_per_second, "link_out_bytes_per_second",
        b->out_per_second, "host_to_device_bytes", (json_int_t)b->bytes_in, "device_to_host_bytes",
        (json_int_t)b->bytes_out, "sum", b->sum));
}

int bench_tensor(cli_program *cli)
{
    const pllm_settings *settings = cli->settings;
    tensor_bench b = {
        .cli = cli, .bytes = settings->bytes / 4 * 4, .page_bytes = settings->page_size};
    /* Over the link a copy of 2 MiB loses 6% to its beginning, one of 4 MiB 3%; but pages that come
     * and go take room from those that stay. */
    if (!pllm_settings_given(settings, "page_size") && settings->vram_limit < b.bytes)
        b.page_bytes = 4 << 20;
    if (b.page_bytes % (TENSOR_TILE * 4) != 0)
        return pllm_fail(PLLM_EINVAL, 0,
                         "--page-size of a tensor is a multiple of %d KiB, the part that is summed "
                         "at a time",
                         TENSOR_TILE * 4 / 1024);
    int status = tensor_open(&b);
    if (status == PLLM_OK) status = measure(&b);
    if (status == PLLM_OK) status = report(&b);
    tensor_close(&b);
    return status;
}
