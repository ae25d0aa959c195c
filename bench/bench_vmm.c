/* Questions: what does keeping freed chunks save, what does mapping them as one run save, and what
 * does a model wait that grows by a chunk while memory is mapped ahead of it?
 *
 *   bench_vmm [--device host|cuda|cuda:N] [--smoke]
 *
 * 1. Map 1 GiB, in turn: page by page at 2 MiB from nothing (create, map, give access: what a
 * simple pool does), page by page at 2 MiB from chunks that are there, and into a region from kept
 * chunks of the size that the device likes (host 2 MiB, cuda 16), which is one run. Predicted on a
 * GPU: creating 2 MiB takes some 190 us, mapping 2, giving access 40, so 118 ms, 21 ms and less
 * than 1 ms. On the host device a new chunk is zeroed by the kernel when it is first mapped, as one
 * huge page where that is to be had (0.13 ms), else as it is touched; a kept one costs a call of
 * the kernel, 4 us. There the first 64 MiB are touched, too, in a time of their own.
 * 2. A block grows by one chunk every 2 ms, as a KV cache would between tokens, with 64 MiB mapped
 * ahead of it by the pool's thread, and without; the calmest of three rounds of 500, all of which
 * are written down: where all processors are busy the thread comes late. Predicted: a lock, a few
 * steps in a tree and now and then a wake-up of the thread, 1 to 10 us, for no driver call is
 * waited for.
 *
 * Times of mapping are the processor's on the host device, else the clock's, as those of growing
 * are. Writes bench/results/vmm.json, or cuda_vmm.json. The last line is the result. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <pagedllm/vmm.h>
#include "vmm/region.h"

enum { RUNS = 5, ROUNDS = 3, GROWTHS_MAX = 500 };
#define SMALL_PAGE ((uint64_t)2 << 20)
#define PACE_NS 2000000
#define AHEAD_BYTES ((uint64_t)64 << 20)

static void must(int status)
{
    if (status >= 0) return;
    fprintf(stderr, "bench_vmm: %s: %s\n", pllm_status_name(status), pllm_last_error()->text);
    exit(1);
}

static double now(void) /* microseconds */
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return 1e6 * (double)time.tv_sec + 1e-3 * (double)time.tv_nsec;
}

/* Of mapping: on the host device the kernel does all the work in the calling thread, and other
 * programs' time is no part of it. */
static double mapping_now(const pllm_device *device)
{
    struct timespec time;
    int host = strcmp(device->ops->name, "host") == 0;
    clock_gettime(host ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &time);
    return 1e6 * (double)time.tv_sec + 1e-3 * (double)time.tv_nsec;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double at_share(double *values, uint32_t count, double share) /* sorts them */
{
    qsort(values, count, sizeof *values, ascending);
    uint32_t index = (uint32_t)(share * count);
    return values[index < count ? index : count - 1];
}

typedef struct setup {
    pllm_device *device;
    const char *device_name;
    uint64_t bytes, chunk_bytes;
    uint32_t growths, smoke;
} setup;

/* ---- 1. mapping ---- */

typedef struct mapping {
    double created_us[RUNS], single_us[RUNS], kept_us[RUNS]; /* mapping all of it */
    double created_touch_us[RUNS], kept_touch_us[RUNS];      /* then the first of it; host only */
} mapping;

static double touch(const setup *s, pllm_va va)
{
    volatile char *view = s->device->ops->host_view(s->device, va);
    uint64_t bytes = s->bytes < (64u << 20) ? s->bytes : 64u << 20;
    double start = mapping_now(s->device);
    for (uint64_t i = 0; view && i < bytes; i += 4096) view[i]++;
    return mapping_now(s->device) - start;
}

/* Page by page: chunks that are NULL are created. */
static double map_single(const setup *s, pllm_va va, pllm_chunk **chunks, uint32_t count)
{
    const pllm_device_ops *ops = s->device->ops;
    double start = mapping_now(s->device);
    for (uint32_t i = 0; i < count; i++) {
        if (!chunks[i]) must(ops->chunk_create(s->device, SMALL_PAGE, &chunks[i]));
        must(ops->map(s->device, va + i * SMALL_PAGE, &chunks[i], 1));
    }
    return mapping_now(s->device) - start;
}

static void unmap_single(const setup *s, pllm_va va, pllm_chunk **chunks, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        s->device->ops->unmap(s->device, va + i * SMALL_PAGE, chunks[i]);
}

static void measure_single(const setup *s, mapping *m, int run)
{
    uint32_t count = (uint32_t)(s->bytes / SMALL_PAGE);
    pllm_chunk **chunks = calloc(count, sizeof *chunks);
    pllm_va va;
    if (!chunks) exit(1);
    must(s->device->ops->reserve(s->device, s->bytes, &va));
    m->created_us[run] = map_single(s, va, chunks, count);
    m->created_touch_us[run] = touch(s, va);
    unmap_single(s, va, chunks, count);
    m->single_us[run] = map_single(s, va, chunks, count);
    unmap_single(s, va, chunks, count);
    for (uint32_t i = 0; i < count; i++) s->device->ops->chunk_destroy(s->device, chunks[i]);
    s->device->ops->release(s->device, va, s->bytes);
    free(chunks);
}

static void measure_kept(const setup *s, mapping *m, int run)
{
    uint32_t count = (uint32_t)(s->bytes / s->chunk_bytes);
    pllm_region_options options = {sizeof options, count, s->chunk_bytes, count, 0};
    pllm_budget *budget;
    pllm_budget_member *member;
    pllm_region *region;
    must(pllm_budget_open(NULL, s->bytes, &budget));
    must(pllm_budget_join(budget, "bench", 0, s->bytes, &member));
    must(pllm_region_open(NULL, s->device, member, &options, &region));
    must(pllm_region_map(region, 0, count));
    touch(s, pllm_region_base(region));
    must(pllm_region_unmap(region, 0, count, NULL));
    double start = mapping_now(s->device);
    must(pllm_region_map(region, 0, count));
    m->kept_us[run] = mapping_now(s->device) - start;
    m->kept_touch_us[run] = touch(s, pllm_region_base(region));
    pllm_region_stats stats;
    pllm_region_stats_get(region, &stats);
    if (stats.reused_chunks != count || stats.created_chunks != count) {
        fprintf(stderr, "bench_vmm: chunks were not created and reused as meant\n");
        exit(1);
    }
    pllm_region_close(region);
    pllm_budget_leave(member);
    pllm_budget_close(budget);
}

/* ---- 2. growing ---- */

typedef struct growth {
    double p50_us, p99_us, most_us;
    uint64_t waited; /* growths that found nothing mapped ahead */
} growth;

static void pause_for(uint64_t ns)
{
    struct timespec time = {0, (long)ns};
    nanosleep(&time, NULL);
}

static pllm_vmm_pool_stats stats_of(pllm_vmm_pool *pool)
{
    pllm_vmm_pool_stats stats = {.struct_bytes = sizeof stats};
    must(pllm_vmm_pool_stats_get(pool, &stats));
    return stats;
}

/* Grows to half of the capacity, frees, and begins again: chunks are new at first, then kept ones.
 */
static growth measure_growth(const setup *s, uint64_t ahead_bytes)
{
    static double us[GROWTHS_MAX];
    growth result = {0};
    pllm_vmm *vmm;
    pllm_vmm_pool *pool;
    pllm_vmm_options options = {.struct_bytes = sizeof options, .limit_bytes = s->bytes};
    pllm_vmm_pool_options model = {.struct_bytes = sizeof model,
                                   .capacity_bytes = s->bytes,
                                   .page_bytes = s->chunk_bytes,
                                   .kept_bytes = PLLM_UNLIMITED,
                                   .ahead_bytes = ahead_bytes};
    pllm_vmm_block_options block = {.struct_bytes = sizeof block,
                                    .bytes = s->chunk_bytes,
                                    .room_bytes = s->bytes / 2 - s->chunk_bytes};
    must(pllm_vmm_open(NULL, s->device, &options, &vmm));
    must(pllm_vmm_register(vmm, "bench", &model, &pool));
    uint64_t address = 0, bytes = 0;
    for (uint32_t i = 0; i < s->growths; i++) {
        if (bytes + s->chunk_bytes > s->bytes / 2) {
            must(pllm_vmm_block_free(pool, address));
            address = 0;
        }
        if (!address) {
            must(pllm_vmm_block_allocate(pool, &block, &address));
            bytes = s->chunk_bytes;
            pause_for(5 * PACE_NS);
        }
        pause_for(PACE_NS);
        result.waited += stats_of(pool).ahead_bytes == 0;
        bytes += s->chunk_bytes;
        double start = now();
        must(pllm_vmm_block_grow(pool, address, bytes));
        us[i] = now() - start;
    }
    pllm_vmm_close(vmm);
    result.p50_us = at_share(us, s->growths, 0.50);
    result.p99_us = at_share(us, s->growths, 0.99);
    result.most_us = us[s->growths - 1];
    return result;
}

static growth calmest(const setup *s, uint64_t ahead_bytes, double p99_us[ROUNDS])
{
    growth best = {0};
    for (int round = 0; round < ROUNDS; round++) {
        growth now_seen = measure_growth(s, ahead_bytes);
        p99_us[round] = now_seen.p99_us;
        if (round == 0 || now_seen.p99_us < best.p99_us) best = now_seen;
    }
    return best;
}

/* ---- */

static void save(const setup *s, const pllm_device_info *info, mapping *m, const growth *ahead,
                 const double *p99_us, const growth *plain)
{
    int host = strcmp(s->device->ops->name, "host") == 0;
    FILE *json = fopen(host ? "bench/results/vmm.json" : "bench/results/cuda_vmm.json", "w");
    if (!json) return;
    fprintf(json,
            "{\"device\": \"%s\", \"map_bytes\": %llu, \"chunk_bytes\": %llu, \"runs\": %d,\n"
            " \"page_by_page_ms\": %.3f, \"page_by_page_mapping_only_ms\": %.3f, "
            "\"kept_run_ms\": %.3f,\n \"kept_over_page_by_page\": %.1f, "
            "\"kept_over_mapping_only\": %.1f,\n",
            info->name, (unsigned long long)s->bytes, (unsigned long long)s->chunk_bytes, RUNS,
            at_share(m->created_us, RUNS, 0.5) * 1e-3, at_share(m->single_us, RUNS, 0.5) * 1e-3,
            at_share(m->kept_us, RUNS, 0.5) * 1e-3,
            at_share(m->created_us, RUNS, 0.5) / at_share(m->kept_us, RUNS, 0.5),
            at_share(m->single_us, RUNS, 0.5) / at_share(m->kept_us, RUNS, 0.5));
    if (host)
        fprintf(json, " \"created_touch_64mib_ms\": %.3f, \"kept_touch_64mib_ms\": %.3f,\n",
                at_share(m->created_touch_us, RUNS, 0.5) * 1e-3,
                at_share(m->kept_touch_us, RUNS, 0.5) * 1e-3);
    fprintf(json,
            " \"growths\": %u, \"growth_ahead_p50_us\": %.2f, \"growth_ahead_p99_us\": %.2f, "
            "\"growth_ahead_most_us\": %.2f, \"growth_ahead_missed\": %llu,\n"
            " \"growth_ahead_p99_us_rounds\": [%.2f, %.2f, %.2f],\n"
            " \"growth_plain_p50_us\": %.2f, \"growth_plain_p99_us\": %.2f}\n",
            s->growths, ahead->p50_us, ahead->p99_us, ahead->most_us,
            (unsigned long long)ahead->waited, p99_us[0], p99_us[1], p99_us[2], plain->p50_us,
            plain->p99_us);
    if (fclose(json) != 0) exit(1);
}

static int usage(void)
{
    fprintf(stderr, "usage: bench_vmm [--device host|cuda|cuda:N] [--smoke]\n");
    return 2;
}

int main(int argc, char **argv)
{
    setup s = {.device_name = "host", .growths = GROWTHS_MAX};
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--smoke") == 0)
            s.smoke = 1;
        else if (strcmp(argv[i], "--device") == 0 && i + 1 < argc)
            s.device_name = argv[++i];
        else
            return usage();
    }
    pllm_device_info info = {.struct_bytes = sizeof info};
    must(pllm_device_open(NULL, s.device_name, &s.device));
    must(pllm_device_info_get(s.device, &info));
    s.chunk_bytes = info.chunk_bytes;
    s.bytes = s.smoke ? 16 * s.chunk_bytes : (uint64_t)1 << 30;
    if (s.smoke) s.growths = 20;
    mapping m;
    for (int run = 0; run < (s.smoke ? 1 : RUNS); run++) {
        measure_single(&s, &m, run);
        measure_kept(&s, &m, run);
    }
    for (int run = 1; s.smoke && run < RUNS; run++) {
        m.created_us[run] = m.created_us[0], m.single_us[run] = m.single_us[0];
        m.kept_us[run] = m.kept_us[0], m.kept_touch_us[run] = m.kept_touch_us[0];
        m.created_touch_us[run] = m.created_touch_us[0];
    }
    double p99_us[ROUNDS];
    growth plain = calmest(&s, 0, p99_us);
    growth ahead = calmest(&s, AHEAD_BYTES, p99_us);
    double created = at_share(m.created_us, RUNS, 0.5), single = at_share(m.single_us, RUNS, 0.5);
    double kept = at_share(m.kept_us, RUNS, 0.5);
    printf("%s, %llu MiB, medians of %d\n", info.name, (unsigned long long)(s.bytes >> 20), RUNS);
    printf("page by page at 2 MiB, created  %9.3f ms   touch of 64 MiB %8.3f ms\n", created * 1e-3,
           at_share(m.created_touch_us, RUNS, 0.5) * 1e-3);
    printf("page by page at 2 MiB, mapped   %9.3f ms\n", single * 1e-3);
    printf("kept chunks of %2llu MiB, one run %9.3f ms   touch of 64 MiB %8.3f ms\n",
           (unsigned long long)(s.chunk_bytes >> 20), kept * 1e-3,
           at_share(m.kept_touch_us, RUNS, 0.5) * 1e-3);
    printf("growth by a chunk, %u times: mapped ahead p50 %.2f us, p99 %.2f us, most %.2f us, "
           "%llu found nothing ahead; without p50 %.2f us, p99 %.2f us\n",
           s.growths, ahead.p50_us, ahead.p99_us, ahead.most_us, (unsigned long long)ahead.waited,
           plain.p50_us, plain.p99_us);
    if (!s.smoke) save(&s, &info, &m, &ahead, p99_us, &plain);
    pllm_device_close(s.device);
    printf("kept chunks map %.1fx as fast as page by page (%.1fx of mapping alone), growth p99 "
           "%.1f us\n",
           created / kept, single / kept, ahead.p99_us);
    return 0;
}
