/* Question: does the CUDA device reach what its link and its driver give?
 * Bounds, measured apart from this code on an H200 (PCIe 5, 16 lanes): DMA 55 GB/s each way from 16
 * MiB on, 52 at 2 MiB; batched copies 25 GB/s at 16 KiB, 43 at 64 KiB, 52 at 256 KiB, 0.36 us of
 * processor time a piece; a kept chunk of 16 MiB is mapped in 22 us (755 GB/s) and unmapped in 16;
 * pinning a GiB of huge pages 18 ms after 173 ms of one thread's touching.
 * Goals: DMA 52 GB/s both ways at 2 MiB, mapping 500 GB/s.
 *
 *   bench_cuda_device [--smoke] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "device/cuda.h"
#include "kernels/cuda/fatbin.h"

#define RESULTS "bench/results/cuda_device.json"
#define MEBI ((uint64_t)1 << 20)
enum { RUNS = 7, MAP_CHUNKS = 64, PIECES_MAX = 8192, LAUNCHES = 2000 };

typedef struct bench {
    pllm_device *device;
    const pllm_device_ops *ops;
    pllm_stream *streams[2];
    pllm_event *event;
    pllm_va va;
    uint64_t bytes, chunk_bytes;
    pllm_chunk *chunks[MAP_CHUNKS];
    uint32_t chunk_count;
    char *host;
    FILE *json;
    pllm_copy copies[PIECES_MAX];
} bench;

static void must(int status)
{
    if (status >= 0) return;
    fprintf(stderr, "bench_cuda_device: %s: %s\n", pllm_status_name(status),
            pllm_last_error()->text);
    exit(1);
}

static double now(void)
{
    return 1e-9 * (double)pllm_clock_ns();
}

static void record(const bench *b, const char *name, double value)
{
    if (b->json) fprintf(b->json, ", \"%s\": %.3f", name, value);
}

static void keep_least(double *best, double value)
{
    if (*best == 0 || value < *best) *best = value;
}

/* ---- movement ---- */

static void direct(pllm_copy *copy, pllm_copy_kind kind, pllm_va device, char *host, uint64_t bytes)
{
    pllm_va from = (pllm_va)(uintptr_t)host;
    *copy =
        kind == PLLM_COPY_IN ? (pllm_copy){device, from, bytes} : (pllm_copy){from, device, bytes};
}

/* All of the buffer in pieces, one call each; GB/s. */
static double dma(bench *b, pllm_copy_kind kind, uint64_t piece)
{
    double best = 0;
    for (int run = 0; run < RUNS; run++) {
        double start = now();
        for (uint64_t at = 0; at + piece <= b->bytes; at += piece) {
            pllm_copy copy;
            direct(&copy, kind, b->va + at, b->host + at, piece);
            must(b->ops->copy(b->device, b->streams[0], kind, &copy));
        }
        must(b->ops->stream_sync(b->device, b->streams[0]));
        keep_least(&best, now() - start);
    }
    return (double)(b->bytes / piece * piece) / best * 1e-9;
}

static double both_ways(bench *b, uint64_t piece)
{
    double best = 0;
    uint64_t half = b->bytes / 2;
    for (int run = 0; run < RUNS; run++) {
        double start = now();
        for (uint64_t at = 0; at + piece <= half; at += piece) {
            pllm_copy in, out;
            direct(&in, PLLM_COPY_IN, b->va + at, b->host + at, piece);
            direct(&out, PLLM_COPY_OUT, b->va + half + at, b->host + half + at, piece);
            must(b->ops->copy(b->device, b->streams[0], PLLM_COPY_IN, &in));
            must(b->ops->copy(b->device, b->streams[1], PLLM_COPY_OUT, &out));
        }
        must(b->ops->stream_sync(b->device, b->streams[0]));
        must(b->ops->stream_sync(b->device, b->streams[1]));
        keep_least(&best, now() - start);
    }
    return (double)(half / piece * piece) / best * 1e-9;
}

/* Scattered pieces, as pages of a spill are: one call for all, or one each. */
static double scattered(bench *b, pllm_copy_kind kind, uint64_t piece, int batched,
                        double *submit_us)
{
    uint64_t slots = b->bytes / piece, count = slots < PIECES_MAX ? slots : PIECES_MAX;
    double best = 0, submit = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t slot = i * 40503u % slots; /* odd, slots a power of two: a permutation */
        direct(&b->copies[i], kind, b->va + slot * piece, b->host + i * piece, piece);
    }
    for (int run = 0; run < RUNS; run++) {
        double start = now();
        if (batched)
            must(b->ops->copy_batch(b->device, b->streams[0], kind, b->copies, (uint32_t)count));
        for (uint64_t i = 0; i < count && !batched; i++)
            must(b->ops->copy(b->device, b->streams[0], kind, &b->copies[i]));
        keep_least(&submit, now() - start);
        must(b->ops->stream_sync(b->device, b->streams[0]));
        keep_least(&best, now() - start);
    }
    *submit_us = submit * 1e6 / (double)count;
    return (double)(count * piece) / best * 1e-9;
}

static void movement(bench *b)
{
    static const uint64_t large[] = {256 << 10, 2 * MEBI, 16 * MEBI};
    static const uint64_t small[] = {4 << 10, 16 << 10, 64 << 10, 256 << 10, 2 * MEBI};
    char name[64];
    for (uint32_t i = 0; i < 3; i++) {
        double in = dma(b, PLLM_COPY_IN, large[i]), out = dma(b, PLLM_COPY_OUT, large[i]);
        double both = both_ways(b, large[i]);
        printf("DMA    %6llu KiB   in %6.1f   out %6.1f   both at once %6.1f GB/s each way\n",
               (unsigned long long)large[i] >> 10, in, out, both);
        snprintf(name, sizeof name, "dma_in_%llu_kib_gb_s", (unsigned long long)large[i] >> 10);
        record(b, name, in);
        snprintf(name, sizeof name, "dma_out_%llu_kib_gb_s", (unsigned long long)large[i] >> 10);
        record(b, name, out);
    }
    for (uint32_t i = 0; i < 5; i++) {
        double us[3], in = scattered(b, PLLM_COPY_IN, small[i], 1, &us[0]);
        double out = scattered(b, PLLM_COPY_OUT, small[i], 1, &us[1]);
        double each = scattered(b, PLLM_COPY_IN, small[i], 0, &us[2]);
        printf("batch  %6llu KiB   in %6.1f   out %6.1f   one call each %6.1f GB/s; submitting "
               "%.2f, %.2f, %.2f us a piece\n",
               (unsigned long long)small[i] >> 10, in, out, each, us[0], us[1], us[2]);
        snprintf(name, sizeof name, "batch_in_%llu_kib_gb_s", (unsigned long long)small[i] >> 10);
        record(b, name, in);
        snprintf(name, sizeof name, "batch_out_%llu_kib_gb_s", (unsigned long long)small[i] >> 10);
        record(b, name, out);
    }
}

/* ---- mapping ---- */

static void mapping(bench *b, uint64_t chunk_bytes)
{
    pllm_va va;
    pllm_chunk *chunks[MAP_CHUNKS];
    double create = 0, first = 0, map = 0, unmap = 0;
    char name[64];
    must(b->ops->reserve(b->device, MAP_CHUNKS * chunk_bytes, &va));
    double start = now();
    for (int i = 0; i < MAP_CHUNKS; i++)
        must(b->ops->chunk_create(b->device, chunk_bytes, &chunks[i]));
    create = now() - start;
    for (int run = 0; run < RUNS; run++) {
        start = now();
        for (uint64_t i = 0; i < MAP_CHUNKS; i++)
            must(b->ops->map(b->device, va + i * chunk_bytes, &chunks[i], 1));
        if (run == 0)
            first = now() - start; /* zeroes them too */
        else
            keep_least(&map, now() - start);
        start = now();
        for (uint64_t i = 0; i < MAP_CHUNKS; i++)
            b->ops->unmap(b->device, va + i * chunk_bytes, chunks[i]);
        keep_least(&unmap, now() - start);
    }
    for (int i = 0; i < MAP_CHUNKS; i++) b->ops->chunk_destroy(b->device, chunks[i]);
    b->ops->release(b->device, va, MAP_CHUNKS * chunk_bytes);
    double gb_s = (double)(MAP_CHUNKS * chunk_bytes) / map * 1e-9;
    printf("chunks %6llu KiB   create %6.1f   first map, with zeroing %6.1f   map %6.1f   unmap "
           "%6.1f us each; map %.0f GB/s\n",
           (unsigned long long)chunk_bytes >> 10, create * 1e6 / MAP_CHUNKS,
           first * 1e6 / MAP_CHUNKS, map * 1e6 / MAP_CHUNKS, unmap * 1e6 / MAP_CHUNKS, gb_s);
    snprintf(name, sizeof name, "map_%llu_kib_gb_s", (unsigned long long)chunk_bytes >> 10);
    record(b, name, gb_s);
}

/* ---- waiting and launching ---- */

static void launches(bench *b)
{
    const pllm_fatbin *probe = pllm_fatbin_find("probe");
    pllm_cuda_module *module;
    pllm_cuda_function *chain;
    pllm_cuda_graph *graph;
    pllm_stream *stream = b->streams[0];
    double plain = 0, dependent = 0, in_graph = 0, sync = 0, wait = 0;
    if (!probe) return;
    must(pllm_cuda_module_open(b->device, probe->data, probe->bytes, &module));
    must(pllm_cuda_function_get(module, "pllm_probe_chain", 0, &chain));
    pllm_cuda_grid grid = {1, 1, 1, 32, 0, 0};
    void *arguments[] = {&b->va};
    must(pllm_cuda_capture_begin(b->device, stream));
    for (int i = 0; i < LAUNCHES; i++)
        must(pllm_cuda_launch(b->device, stream, chain, &grid, arguments));
    must(pllm_cuda_capture_end(b->device, stream, &graph));
    for (int run = 0; run < RUNS; run++) {
        for (grid.dependent = 0; grid.dependent < 2; grid.dependent++) {
            double start = now();
            for (int i = 0; i < LAUNCHES; i++)
                must(pllm_cuda_launch(b->device, stream, chain, &grid, arguments));
            must(b->ops->stream_sync(b->device, stream));
            keep_least(grid.dependent ? &dependent : &plain, now() - start);
        }
        double start = now();
        must(pllm_cuda_graph_launch(b->device, graph, stream));
        must(b->ops->stream_sync(b->device, stream));
        keep_least(&in_graph, now() - start);
        grid.dependent = 0;
        start = now();
        for (int i = 0; i < 100; i++) {
            must(pllm_cuda_launch(b->device, stream, chain, &grid, arguments));
            must(b->ops->stream_sync(b->device, stream));
        }
        keep_least(&sync, now() - start);
        start = now();
        for (int i = 0; i < 100; i++) {
            must(pllm_cuda_launch(b->device, stream, chain, &grid, arguments));
            must(b->ops->event_record(b->device, b->event, stream));
            must(b->ops->event_wait(b->device, b->event, 1000000000u));
        }
        keep_least(&wait, now() - start);
    }
    printf("tiny kernels: %.2f us a launch, %.2f dependent, %.2f in a graph; launch and sync %.1f "
           "us, launch and event_wait %.1f us\n",
           plain * 1e6 / LAUNCHES, dependent * 1e6 / LAUNCHES, in_graph * 1e6 / LAUNCHES,
           sync * 1e4, wait * 1e4);
    record(b, "launch_us", plain * 1e6 / LAUNCHES);
    record(b, "launch_in_graph_us", in_graph * 1e6 / LAUNCHES);
    record(b, "launch_sync_us", sync * 1e4);
    pllm_cuda_graph_close(graph);
    pllm_cuda_module_close(module);
}

static void host_memory(bench *b, uint64_t bytes)
{
    void *memory;
    double start = now();
    must(b->ops->host_alloc(b->device, bytes, &memory));
    double got = now();
    int pinned = pllm_cuda_host_va(b->device, memory) != 0;
    double freeing = now();
    b->ops->host_free(b->device, memory, bytes);
    double gibi = (double)bytes / (1 << 30);
    printf("host   %6llu MiB   %s in %.0f ms a GiB, given back in %.0f ms a GiB\n",
           (unsigned long long)(bytes / MEBI), pinned ? "pinned" : "NOT pinned",
           (got - start) * 1e3 / gibi, (now() - freeing) * 1e3 / gibi);
    record(b, "host_alloc_ms_gib", (got - start) * 1e3 / gibi);
}

static void bench_open(bench *b, int smoke)
{
    pllm_device_info info;
    void *host;
    must(pllm_device_open_cuda(NULL, NULL, &b->device));
    b->ops = b->device->ops;
    must(b->ops->info(b->device, &info));
    printf("%s, %s\n", info.name, info.uuid);
    b->chunk_bytes = info.chunk_bytes;
    b->bytes = smoke ? 2 * info.chunk_bytes : 1024 * MEBI;
    b->json = smoke ? NULL : fopen(RESULTS, "w");
    if (b->json) fprintf(b->json, "{\"device\": \"%s\"", info.name);
    must(b->ops->reserve(b->device, b->bytes, &b->va));
    for (uint64_t at = 0; at < b->bytes; at += info.chunk_bytes) {
        pllm_chunk **chunk = &b->chunks[b->chunk_count++];
        must(b->ops->chunk_create(b->device, info.chunk_bytes, chunk));
        must(b->ops->map(b->device, b->va + at, chunk, 1));
    }
    must(b->ops->host_alloc(b->device, b->bytes, &host));
    b->host = host;
    must(b->ops->stream_open(b->device, &b->streams[0]));
    must(b->ops->stream_open(b->device, &b->streams[1]));
    must(b->ops->event_open(b->device, &b->event));
}

static void bench_close(bench *b)
{
    b->ops->event_close(b->device, b->event);
    b->ops->stream_close(b->device, b->streams[0]);
    b->ops->stream_close(b->device, b->streams[1]);
    b->ops->host_free(b->device, b->host, b->bytes);
    for (uint32_t i = 0; i < b->chunk_count; i++) {
        b->ops->unmap(b->device, b->va + i * b->chunk_bytes, b->chunks[i]);
        b->ops->chunk_destroy(b->device, b->chunks[i]);
    }
    b->ops->release(b->device, b->va, b->bytes);
    pllm_device_close(b->device);
}

int main(int argc, char **argv)
{
    int smoke = argc == 2 && strcmp(argv[1], "--smoke") == 0;
    if (argc > 1 && !smoke) {
        fprintf(stderr, "usage: bench_cuda_device [--smoke]\n");
        return 2;
    }
    static bench b;
    bench_open(&b, smoke);
    movement(&b);
    mapping(&b, 2 * MEBI);
    mapping(&b, 16 * MEBI);
    launches(&b);
    host_memory(&b, smoke ? 64 * MEBI : 4096 * MEBI);
    int failed = 0;
    if (b.json) {
        fprintf(b.json, "}\n");
        failed = fclose(b.json) != 0;
    }
    bench_close(&b);
    return failed;
}
