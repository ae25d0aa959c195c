/* bandwidth.c - how fast memory and the link are, measured in the run whose results are held
 * against them. Best of a few runs: neighbours on the machine only make things slower. */
#include <string.h>
#include "base/clock.h"
#include "base/context.h"
#include "base/threads.h"
#include "cli/cli.h"
#include "device/cuda.h"
#include "engine/parts.h"
#include "kernels/cuda/fatbin.h"

enum { PROBE_BYTES = 64 << 20, RUNS = 5 };

typedef struct reading {
    pllm_threads *threads;
    const uint64_t *data;
    uint64_t *target;
    uint64_t sums[64];
} reading;

static void copy_body(void *argument, uint32_t index)
{
    reading *r = argument;
    uint64_t first, end;
    pllm_threads_share(r->threads, index, PROBE_BYTES / 8, 8, &first, &end);
    memcpy(r->target + first, r->data + first, (end - first) * 8);
}

static void read_body(void *argument, uint32_t index)
{
    reading *r = argument;
    uint64_t first, end, sum = 0;
    pllm_threads_share(r->threads, index, PROBE_BYTES / 8, 8, &first, &end);
    for (uint64_t i = first; i < end; i++) sum += r->data[i];
    r->sums[index & 63] = sum;
}

static void time_memory(reading *r, cli_memory *memory)
{
    uint64_t best_read = UINT64_MAX, best_copy = UINT64_MAX, best_all = UINT64_MAX;
    for (int run = 0; run < RUNS; run++) {
        uint64_t started = pllm_clock_ns();
        pllm_threads_run(r->threads, read_body, r);
        uint64_t middle = pllm_clock_ns();
        memcpy(r->target, r->data, PROBE_BYTES);
        uint64_t ended = pllm_clock_ns();
        if (middle - started < best_read) best_read = middle - started;
        if (ended - middle < best_copy) best_copy = ended - middle;
        pllm_threads_run(r->threads, copy_body, r);
        uint64_t all = pllm_clock_ns() - ended;
        if (all < best_all) best_all = all;
    }
    memory->read_bytes_per_second = PROBE_BYTES * 1e9 / (double)best_read;
    memory->copy_bytes_per_second = PROBE_BYTES * 1e9 / (double)best_copy;
    memory->copy_all_bytes_per_second = PROBE_BYTES * 1e9 / (double)best_all;
}

int cli_measure_memory(const pllm_context *context, uint32_t thread_count, cli_memory *memory_out)
{
    *memory_out = (cli_memory){0};
    pllm_threads *threads;
    int status = pllm_threads_open(context, thread_count, &threads);
    if (status < 0) return status;
    memory_out->threads = pllm_threads_count(threads);
    pllm_device *device;
    pllm_host_device_options options = {.struct_bytes = sizeof options};
    status = pllm_device_open_host(context, &options, &device);
    void *from = NULL, *to = NULL;
    if (status == PLLM_OK) status = device->ops->info(device, &memory_out->host);
    if (status == PLLM_OK) status = device->ops->host_alloc(device, PROBE_BYTES, &from);
    if (status == PLLM_OK) status = device->ops->host_alloc(device, PROBE_BYTES, &to);
    if (status == PLLM_OK) {
        memset(from, 1, PROBE_BYTES);
        memset(to, 2, PROBE_BYTES);
        reading r = {.threads = threads, .data = from, .target = to};
        time_memory(&r, memory_out);
    }
    if (device && from) device->ops->host_free(device, from, PROBE_BYTES);
    if (device && to) device->ops->host_free(device, to, PROBE_BYTES);
    pllm_device_close(device);
    pllm_threads_close(threads);
    return status;
}

/* ---- the link ------------------------------------------------------------------------------- */

typedef struct probe {
    pllm_device *device;
    pllm_stream *stream;
    pllm_va va;
    pllm_chunk *chunk;
    uint64_t bytes;
    void *host;
    int mapped;
} probe;

static void probe_close(probe *p)
{
    const pllm_device_ops *ops = p->device->ops;
    ops->stream_close(p->device, p->stream);
    if (p->mapped) ops->unmap(p->device, p->va, p->chunk);
    ops->chunk_destroy(p->device, p->chunk);
    if (p->va) ops->release(p->device, p->va, p->bytes);
    if (p->host) ops->host_free(p->device, p->host, p->bytes);
}

static int probe_open(probe *p, int with_host)
{
    const pllm_device_ops *ops = p->device->ops;
    int status = with_host ? ops->host_alloc(p->device, p->bytes, &p->host) : PLLM_OK;
    if (status == PLLM_OK) status = ops->reserve(p->device, p->bytes, &p->va);
    if (status == PLLM_OK) status = ops->chunk_create(p->device, p->bytes, &p->chunk);
    if (status == PLLM_OK) status = ops->map(p->device, p->va, &p->chunk, 1);
    p->mapped = status == PLLM_OK;
    if (status == PLLM_OK) status = ops->stream_open(p->device, &p->stream);
    if (status == PLLM_OK && p->host) memset(p->host, 1, p->bytes);
    return status;
}

static int time_copy(probe *p, uint64_t bytes, uint64_t *ns_out)
{
    pllm_copy copy = {.to = p->va, .from = (pllm_va)(uintptr_t)p->host, .bytes = bytes};
    uint64_t started = pllm_clock_ns();
    int status = p->device->ops->copy(p->device, p->stream, PLLM_COPY_IN, &copy);
    if (status == PLLM_OK) status = p->device->ops->stream_sync(p->device, p->stream);
    *ns_out = pllm_clock_ns() - started;
    return status;
}

/* One copy as long as lets the call itself not count, but not longer than a slow link bears. */
static int measure_link(pllm_device *device, double *bytes_per_second_out)
{
    enum { FIRST = 1 << 20, LONG_NS = 10000000 };
    probe p = {.device = device, .bytes = PROBE_BYTES};
    int status = probe_open(&p, 1);
    uint64_t bytes = FIRST, ns = 0;
    while (status == PLLM_OK && bytes < PROBE_BYTES) {
        status = time_copy(&p, bytes, &ns);
        if (ns > LONG_NS) break;
        bytes *= 2;
    }
    for (int run = 0; status == PLLM_OK && run < RUNS; run++) {
        status = time_copy(&p, bytes, &ns);
        double rate = (double)bytes * 1e9 / (double)ns;
        if (status == PLLM_OK && rate > *bytes_per_second_out) *bytes_per_second_out = rate;
    }
    probe_close(&p);
    return status;
}

/* ---- a GPU's own memory --------------------------------------------------------------------- */

static int time_reads(probe *p, pllm_cuda_function *function, uint32_t grid_x, uint64_t *ns_out)
{
    enum { LAUNCHES = 8 }; /* the first ones hide what submitting costs */
    uint64_t pieces = p->bytes / 16;
    void *parameters[] = {&p->va, &pieces, &p->va};
    pllm_cuda_grid grid = {.x = grid_x, .y = 1, .z = 1, .threads = 512};
    int status = PLLM_OK;
    uint64_t started = pllm_clock_ns();
    for (int i = 0; status == PLLM_OK && i < LAUNCHES; i++)
        status = pllm_cuda_launch(p->device, p->stream, function, &grid, parameters);
    int synced = p->device->ops->stream_sync(p->device, p->stream);
    *ns_out = (pllm_clock_ns() - started) / LAUNCHES;
    return status < 0 ? status : synced;
}

/* Many times what its cache holds, by a kernel that only reads; the best of a few grids. Leaves 0
 * where this build has no kernels. */
static int measure_cuda_read(pllm_device *device, double *bytes_per_second_out)
{
    const pllm_fatbin *fatbin = pllm_fatbin_find("linear_plain");
    if (!fatbin) return PLLM_OK;
    pllm_cuda_attributes attributes = {.struct_bytes = sizeof attributes};
    probe p = {.device = device, .bytes = 2ull << 30};
    pllm_cuda_module *module = NULL;
    pllm_cuda_function *function;
    int status = pllm_cuda_attributes_get(device, &attributes);
    if (status == PLLM_OK) status = probe_open(&p, 0);
    if (status == PLLM_OK)
        status = pllm_cuda_module_open(device, fatbin->data, fatbin->bytes, &module);
    if (status == PLLM_OK)
        status = pllm_cuda_function_get(module, "pllm_linear_read", 0, &function);
    for (uint32_t ctas = 2; status == PLLM_OK && ctas <= 16; ctas *= 2) {
        uint64_t ns;
        for (int run = 0; status == PLLM_OK && run < 3; run++) {
            status = time_reads(&p, function, attributes.sm_count * ctas, &ns);
            double rate = (double)p.bytes * 1e9 / (double)ns;
            if (status == PLLM_OK && rate > *bytes_per_second_out) *bytes_per_second_out = rate;
        }
    }
    pllm_cuda_module_close(module);
    probe_close(&p);
    return status == PLLM_ENODEVMEM ? PLLM_OK : status; /* a full card has no room to try */
}

int cli_measure_bandwidth(cli_program *cli, cli_bandwidth *bandwidth_out)
{
    *bandwidth_out = (cli_bandwidth){0};
    int status =
        cli_measure_memory(cli->context, (uint32_t)cli->settings->threads, &bandwidth_out->memory);
    if (status < 0) return status;
    cli_engine_choice choice;
    cli_engine_choose(cli, NULL, &choice);
    pllm_device *device;
    status = pllm_engine_open_device(cli->context, &choice.options, &device);
    if (status < 0) return status;
    status = device->ops->info(device, &bandwidth_out->device);
    if (strcmp(device->ops->name, "host") == 0) {
        bandwidth_out->read_bytes_per_second = bandwidth_out->memory.read_bytes_per_second;
        /* Without a simulated link, blocks come by as many copies at once as there are lanes. */
        bandwidth_out->link_bytes_per_second = bandwidth_out->memory.copy_all_bytes_per_second;
    }
    if (status == PLLM_OK && (bandwidth_out->device.link_bytes_per_second > 0 ||
                              strcmp(device->ops->name, "host") != 0)) {
        bandwidth_out->link_bytes_per_second = 0;
        status = measure_link(device, &bandwidth_out->link_bytes_per_second);
    }
    if (status == PLLM_OK && pllm_cuda_is(device))
        status = measure_cuda_read(device, &bandwidth_out->read_bytes_per_second);
    pllm_device_close(device);
    return status;
}
