/* Question: what does keeping freed chunks save, and what does a map cost when nothing is created?
 * Maps 1 GiB in chunks of 2 MiB and touches the first 64 MiB of it: from created chunks (baseline:
 * the region trims in between) and from kept ones, alternating; and the map alone, untouched.
 * Predicted: a created chunk is zeroed by the kernel when it is first mapped, as one huge page
 * where that is to be had (0.13 ms; more where a hypervisor has to find the memory first), else
 * page by page as it is touched (1.3 ms); a kept one costs the mapping, a few microseconds, and a
 * page fault. Times are the processor's, since the kernel does all the work in the calling thread.
 *
 *   bench_vmm [--smoke] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "vmm/region.h"

#define RESULTS "bench/results/vmm.json"
enum { RUNS = 5 };

static void must(int status)
{
    if (status == PLLM_OK) return;
    fprintf(stderr, "bench_vmm: %s: %s\n", pllm_status_name(status), pllm_last_error()->text);
    exit(1);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

typedef struct cost {
    double map_seconds, touch_seconds;
} cost;

static void keep_least(double *best, double value)
{
    if (*best == 0 || value < *best) *best = value;
}

static void map_and_touch(pllm_device *device, pllm_region *region, uint32_t pages, cost *best)
{
    double start = now();
    must(pllm_region_map(region, 0, pages));
    double mapped = now();
    uint32_t touch = pages < 32 ? pages : 32;
    volatile char *view = device->ops->host_view(device, pllm_region_base(region));
    for (uint64_t i = 0; i < touch * pllm_region_chunk_bytes(region); i += 4096) view[i]++;
    double touched = now();
    keep_least(&best->map_seconds, mapped - start);
    keep_least(&best->touch_seconds, touched - mapped);
    must(pllm_region_unmap(region, 0, pages, NULL));
}

int main(int argc, char **argv)
{
    int smoke = argc == 2 && strcmp(argv[1], "--smoke") == 0;
    if (argc > 1 && !smoke) {
        fprintf(stderr, "usage: bench_vmm [--smoke]\n");
        return 2;
    }
    uint32_t pages = smoke ? 4 : 512;
    uint64_t bytes = (uint64_t)pages << 21;
    pllm_device *device;
    pllm_budget *budget;
    pllm_budget_member *member;
    pllm_region *region;
    pllm_region_options options = {sizeof options, pages, (uint64_t)2 << 20, pages, 0};
    must(pllm_device_open_host(NULL, NULL, &device));
    must(pllm_budget_open(NULL, bytes, &budget));
    must(pllm_budget_join(budget, "bench", 0, bytes, &member));
    must(pllm_region_open(NULL, device, member, &options, &region));
    cost created = {0}, kept = {0};
    for (int run = 0; run < RUNS; run++) {
        pllm_region_trim(region, 0);
        map_and_touch(device, region, pages, &created);
        map_and_touch(device, region, pages, &kept);
    }
    pllm_region_stats stats;
    pllm_region_stats_get(region, &stats);
    if (stats.reused_chunks != (uint64_t)RUNS * pages ||
        stats.created_chunks != stats.reused_chunks) {
        fprintf(stderr, "bench_vmm: chunks were not created and reused as meant\n");
        return 1;
    }
    double created_ms = (created.map_seconds + created.touch_seconds) * 1e3;
    double kept_ms = (kept.map_seconds + kept.touch_seconds) * 1e3;
    printf("%u chunks of 2 MiB, best of %d\n", pages, RUNS);
    printf("created  map %8.2f ms (%.1f us a chunk)  touch of 64 MiB %8.2f ms\n",
           created.map_seconds * 1e3, created.map_seconds * 1e6 / pages,
           created.touch_seconds * 1e3);
    printf("kept     map %8.2f ms (%.1f us a chunk)  touch of 64 MiB %8.2f ms\n",
           kept.map_seconds * 1e3, kept.map_seconds * 1e6 / pages, kept.touch_seconds * 1e3);
    printf("created/kept, mapped and partly touched: %.1fx\n", created_ms / kept_ms);
    FILE *json = smoke ? NULL : fopen(RESULTS, "w");
    if (json) {
        fprintf(json,
                "{\"chunks\": %u, \"created_map_ms\": %.3f, \"created_touch_ms\": %.3f, "
                "\"kept_map_ms\": %.3f, \"kept_touch_ms\": %.3f, \"created_over_kept\": %.2f}\n",
                pages, created.map_seconds * 1e3, created.touch_seconds * 1e3,
                kept.map_seconds * 1e3, kept.touch_seconds * 1e3, created_ms / kept_ms);
        if (fclose(json) != 0) return 1;
    }
    pllm_region_close(region);
    pllm_budget_leave(member);
    pllm_budget_close(budget);
    pllm_device_close(device);
    return 0;
}
