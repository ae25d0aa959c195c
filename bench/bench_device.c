/* Question: what do streams cost over a plain copy?
 * Host memory to arena in KV blocks of 24 KiB (one batch of scattered blocks) and in runs of 1 MiB,
 * with 1 and 2 streams and no link, beside memcpy of the same pieces by the calling thread. Memory
 * is walked in a scattered order over more than the last cache holds, runs alternate, the best
 * counts. Predicted: one stream near memcpy at 24 KiB (the queue costs 0.1 us of 1.5 us), above it
 * at 1 MiB, where stores bypass the cache; two streams are bound by memory, if two cores are free.
 * Beside the elapsed time stands the processor's, which is what counts where cores are shared.
 * Also: the time from a copy of 64 bytes to the end of its wait, which is two thread switches; and
 * the bandwidth that a simulated link of 10 GB/s gives, which must not pass 10.
 *
 *   bench_device [--smoke] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "device/device.h"

#define RESULTS "bench/results/device.json"
enum { RUNS = 5, STREAMS_MAX = 2 };

typedef struct arena {
    pllm_device *device;
    const pllm_device_ops *ops;
    pllm_stream *streams[STREAMS_MAX];
    pllm_va va;
    pllm_chunk *chunk;
    char *host;
    uint64_t bytes;
} arena;

static void must(int status)
{
    if (status == PLLM_OK) return;
    fprintf(stderr, "bench_device: %s: %s\n", pllm_status_name(status), pllm_last_error()->text);
    exit(1);
}

static void check(int holds, const char *what)
{
    if (holds) return;
    fprintf(stderr, "bench_device: %s\n", what);
    exit(1);
}

static double read_clock(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

typedef struct seconds {
    double elapsed, processor;
} seconds;

static seconds begin(void)
{
    return (seconds){read_clock(CLOCK_MONOTONIC), read_clock(CLOCK_PROCESS_CPUTIME_ID)};
}

static seconds since(seconds start)
{
    seconds now = begin();
    return (seconds){now.elapsed - start.elapsed, now.processor - start.processor};
}

static void keep_least(seconds *best, seconds one)
{
    if (best->elapsed == 0 || one.elapsed < best->elapsed) best->elapsed = one.elapsed;
    if (best->processor == 0 || one.processor < best->processor) best->processor = one.processor;
}

static void arena_open(arena *a, uint64_t bytes, double link)
{
    pllm_host_device_options options = {.struct_bytes = sizeof options,
                                        .link_bytes_per_second = link};
    void *host;
    a->bytes = bytes;
    must(pllm_device_open_host(NULL, &options, &a->device));
    a->ops = a->device->ops;
    for (int i = 0; i < STREAMS_MAX; i++) must(a->ops->stream_open(a->device, &a->streams[i]));
    must(a->ops->reserve(a->device, bytes, &a->va));
    must(a->ops->chunk_create(a->device, bytes, &a->chunk));
    must(a->ops->map(a->device, a->va, &a->chunk, 1));
    must(a->ops->host_alloc(a->device, bytes, &host));
    a->host = host;
    for (uint64_t i = 0; i < bytes; i += 8) memcpy(a->host + i, &i, 8);
    must(a->ops->fill(a->device, a->streams[0], a->va, bytes, 0)); /* touches it */
    must(a->ops->stream_sync(a->device, a->streams[0]));
}

static void arena_close(arena *a)
{
    for (int i = 0; i < STREAMS_MAX; i++) a->ops->stream_close(a->device, a->streams[i]);
    a->ops->unmap(a->device, a->va, a->chunk);
    a->ops->chunk_destroy(a->device, a->chunk);
    a->ops->release(a->device, a->va, a->bytes);
    a->ops->host_free(a->device, a->host, a->bytes);
    pllm_device_close(a->device);
}

/* Piece i goes from a scattered place to another; the largest odd step below count / 2 that shares
 * no factor with it makes both orders permutations. */
static uint32_t make_copies(const arena *a, uint64_t piece, pllm_copy *copies)
{
    uint64_t count = a->bytes / piece, step = count / 2 | 1;
    for (;; step -= 2) {
        uint64_t x = count, y = step;
        while (y) x %= y, x ^= y, y ^= x, x ^= y;
        if (x == 1 || step == 1) break;
    }
    for (uint64_t i = 0; i < count; i++) {
        uint64_t from = i * step % count, to = (from + count / 3) % count;
        copies[i] =
            (pllm_copy){a->va + to * piece, (pllm_va)(uintptr_t)(a->host + from * piece), piece};
    }
    return (uint32_t)count;
}

static seconds time_plain(const pllm_copy *copies, uint32_t count)
{
    seconds start = begin();
    for (uint32_t i = 0; i < count; i++)
        memcpy((void *)(uintptr_t)copies[i].to, (const void *)(uintptr_t)copies[i].from,
               copies[i].bytes);
    return since(start);
}

static seconds time_streams(arena *a, const pllm_copy *copies, uint32_t count, uint32_t streams)
{
    seconds start = begin();
    for (uint32_t s = 0; s < streams; s++) {
        uint32_t first = count * s / streams, end = count * (s + 1) / streams;
        must(a->ops->copy_batch(a->device, a->streams[s], PLLM_COPY_IN, copies + first,
                                end - first));
    }
    for (uint32_t s = 0; s < streams; s++) must(a->ops->stream_sync(a->device, a->streams[s]));
    return since(start);
}

static void bench_piece(arena *a, uint64_t piece, FILE *json, int first)
{
    uint64_t room = a->bytes / piece;
    pllm_copy *copies = pllm_alloc_array(NULL, room, sizeof *copies);
    check(copies != NULL, "out of memory");
    uint32_t count = make_copies(a, piece, copies);
    seconds plain = {0}, streamed[STREAMS_MAX + 1] = {0};
    for (int run = 0; run < RUNS; run++) {
        keep_least(&plain, time_plain(copies, count));
        for (uint32_t s = 1; s <= STREAMS_MAX; s++) {
            keep_least(&streamed[s], time_streams(a, copies, count, s));
            for (uint32_t i = 0; i < count; i += 17)
                check(memcmp((void *)(uintptr_t)copies[i].to, (void *)(uintptr_t)copies[i].from,
                             piece) == 0,
                      "a copy has other bytes than its source");
        }
    }
    double gigabytes = (double)count * (double)piece / 1e9;
    printf("%6llu KiB  memcpy %6.2f GB/s   1 stream %6.2f (%.2fx)   2 streams %6.2f (%.2fx)   "
           "processor: 1 stream %.2fx of memcpy's bytes a second\n",
           (unsigned long long)piece >> 10, gigabytes / plain.elapsed,
           gigabytes / streamed[1].elapsed, plain.elapsed / streamed[1].elapsed,
           gigabytes / streamed[2].elapsed, plain.elapsed / streamed[2].elapsed,
           plain.processor / streamed[1].processor);
    if (json)
        fprintf(json,
                "%s  {\"piece_bytes\": %llu, \"memcpy_gbps\": %.2f, \"one_stream_gbps\": %.2f, "
                "\"two_streams_gbps\": %.2f, \"memcpy_per_processor_gbps\": %.2f, "
                "\"one_stream_per_processor_gbps\": %.2f}",
                first ? "" : ",\n", (unsigned long long)piece, gigabytes / plain.elapsed,
                gigabytes / streamed[1].elapsed, gigabytes / streamed[2].elapsed,
                gigabytes / plain.processor, gigabytes / streamed[1].processor);
    pllm_free(NULL, copies);
}

static double bench_latency(arena *a, int rounds)
{
    pllm_copy copy = {a->va, (pllm_va)(uintptr_t)a->host, 64};
    seconds best = {0};
    for (int i = 0; i < rounds; i++) {
        seconds start = begin();
        must(a->ops->copy(a->device, a->streams[0], PLLM_COPY_IN, &copy));
        must(a->ops->stream_sync(a->device, a->streams[0]));
        keep_least(&best, since(start));
    }
    return best.elapsed * 1e6;
}

static double bench_link(uint64_t bytes, double link)
{
    arena a;
    arena_open(&a, bytes, link);
    pllm_copy *copies = pllm_alloc_array(NULL, bytes / 24576, sizeof *copies);
    check(copies != NULL, "out of memory");
    uint32_t count = make_copies(&a, 24576, copies);
    seconds best = {0};
    for (int run = 0; run < RUNS; run++) keep_least(&best, time_streams(&a, copies, count, 1));
    pllm_free(NULL, copies);
    arena_close(&a);
    return count * 24576.0 / best.elapsed;
}

int main(int argc, char **argv)
{
    int smoke = argc == 2 && strcmp(argv[1], "--smoke") == 0;
    if (argc > 1 && !smoke) {
        fprintf(stderr, "usage: bench_device [--smoke]\n");
        return 2;
    }
    uint64_t bytes = (uint64_t)(smoke ? 4 : 128) << 20;
    FILE *json = smoke ? NULL : fopen(RESULTS, "w");
    if (json) fprintf(json, "{\"copies\": [\n");
    arena a;
    arena_open(&a, bytes, 0);
    printf("host to arena, best of %d\n", RUNS);
    bench_piece(&a, 24 << 10, json, 1);
    bench_piece(&a, 256 << 10, json, 0);
    bench_piece(&a, 1 << 20, json, 0);
    double latency_us = bench_latency(&a, smoke ? 10 : 1000);
    arena_close(&a);
    double link = bench_link(bytes / 2, 10e9);
    printf("64 bytes and a wait: %.1f us\n", latency_us);
    printf("link of 10 GB/s: %.2f GB/s (%.2fx)\n", link / 1e9, link / 10e9);
    check(link <= 10e9, "the link carried more than its bandwidth");
    if (json) {
        fprintf(json, "],\n \"latency_us\": %.2f, \"link_of_10_gbps\": %.3f}\n", latency_us,
                link / 1e9);
        if (fclose(json) != 0) return 1;
    }
    return 0;
}
