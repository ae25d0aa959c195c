/* Question: what does the pager itself cost, and how many hits does each policy get on the scan
 * that exact decode makes?
 *
 * Cost is processor time of the calling thread where it waits for loads, and time in the pager's
 * calls where they come ahead of their use, during pauses that stand for compute. Bytes are moved
 * by the device's stream, on another thread, so what is left is bookkeeping of pager and transfer
 * engine. Pages are 4 KiB to keep the copies short. A decode step of a 7,680-token context touches
 * 7,200 pages (30 layers of 240 blocks) in some 10 ms; the pager should take below 1 ms of that.
 * Baseline of the resident case: the same loop over a plain array of views and counters.
 * Baseline of hits: Belady's optimum on the recorded accesses.
 *
 *   bench_pager [--smoke] [--json FILE] */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "pager/pager.h"
#include "pager/replay.h"

enum { BYTES = 4096, LAYERS_MAX = 30, BLOCKS_MAX = 240, PAGES_MAX = LAYERS_MAX * BLOCKS_MAX };

typedef struct bench_setup {
    uint32_t layers, blocks, pages, runs, steps;
    FILE *json;
    uint32_t json_rows;
} bench_setup;

typedef struct bench_rig {
    pllm_device *device;
    pllm_budget *budget;
    pllm_pager *pager;
    pllm_page pages[PAGES_MAX];
} bench_rig;

static void check(int condition, const char *what)
{
    if (condition) return;
    fprintf(stderr, "bench_pager: %s: %s\n", what, pllm_last_error()->text);
    exit(1);
}

static void rig_open(bench_rig *rig, const bench_setup *bench, uint32_t frames,
                     pllm_policy_kind policy, pllm_prefetch_kind prefetch)
{
    pllm_host_device_options host = {.struct_bytes = sizeof host};
    check(pllm_device_open_host(NULL, &host, &rig->device) == PLLM_OK, "device");
    check(pllm_budget_open(NULL, UINT64_MAX, &rig->budget) == PLLM_OK, "budget");
    pllm_tiers_options tiers_options = {
        .struct_bytes = sizeof tiers_options,
        .frame_max = frames,
        .page_bytes = BYTES,
        .device_limit_bytes = UINT64_MAX,
        .host_bytes = (uint64_t)bench->pages * BYTES,
    };
    pllm_tiers *tiers;
    check(pllm_tiers_open(NULL, rig->device, rig->budget, &tiers_options, &tiers) == PLLM_OK,
          "tiers");
    pllm_pager_options options = {
        .struct_bytes = sizeof options,
        .page_max = bench->pages,
        .policy = policy,
        .prefetch = prefetch,
        .record_max = bench->pages * bench->steps,
    };
    check(pllm_pager_open(NULL, tiers, &options, &rig->pager) == PLLM_OK, "pager");
    for (uint32_t layer = 0, i = 0; layer < bench->layers; layer++) {
        for (uint32_t block = 0; block < bench->blocks; block++, i++) {
            void *view;
            pllm_page after = block ? rig->pages[i - 1] : PLLM_NONE;
            check(pllm_pager_page_new(rig->pager, after, block * bench->layers + layer,
                                      &rig->pages[i]) == PLLM_OK,
                  "page");
            check(pllm_pager_pin(rig->pager, &rig->pages[i], 1, PLLM_PIN_NEW, &view) == PLLM_OK,
                  "pin of a new page");
            memset(view, (int)(i % 251), BYTES);
            pllm_pager_seal(rig->pager, rig->pages[i]);
            pllm_pager_unpin(rig->pager, &rig->pages[i], 1);
        }
    }
    check(pllm_pager_settle(rig->pager) == PLLM_OK, "settle");
    check(pllm_pager_scan(rig->pager, rig->pages, bench->pages) == PLLM_OK, "scan");
}

static void rig_close(bench_rig *rig)
{
    pllm_pager_close(rig->pager);
    pllm_budget_close(rig->budget);
    pllm_device_close(rig->device);
}

/* With pauses: returns the nanoseconds spent in the pager; what it waits is in them. */
static uint64_t step(bench_rig *rig, const bench_setup *bench, uint32_t group, uint64_t compute_ns)
{
    void *views[PAGES_MAX];
    uint64_t spent = 0;
    for (uint32_t i = 0; i < bench->pages; i += group) {
        uint32_t count = bench->pages - i < group ? bench->pages - i : group;
        uint64_t start = compute_ns ? pllm_clock_ns() : 0; /* reading the clock costs, too */
        check(pllm_pager_pin(rig->pager, rig->pages + i, count, PLLM_PIN_READ, views) == PLLM_OK,
              "pin");
        if (compute_ns) spent += pllm_clock_ns() - start;
        for (uint32_t j = 0; j < count; j++)
            check(*(unsigned char *)views[j] == (i + j) % 251, "content");
        /* What a kernel would take meanwhile; it sleeps, so that it does not count. */
        struct timespec pause = {0, (long)(compute_ns * count)};
        if (compute_ns) nanosleep(&pause, NULL);
        start = compute_ns ? pllm_clock_ns() : 0;
        pllm_pager_unpin(rig->pager, rig->pages + i, count);
        if (compute_ns) spent += pllm_clock_ns() - start;
    }
    return spent;
}

static void report(bench_setup *bench, const char *name, double value, const char *unit)
{
    printf("%-58s %9.1f %s\n", name, value, unit);
    if (!bench->json) return;
    fprintf(bench->json, "%s\n    {\"name\": \"%s\", \"value\": %.2f, \"unit\": \"%s\"}",
            bench->json_rows++ ? "," : "", name, value, unit);
}

static void bench_resident(bench_setup *bench)
{
    static bench_rig rig;
    static uint32_t counters[PAGES_MAX];
    static void *volatile view;
    rig_open(&rig, bench, bench->pages, PLLM_POLICY_STATIC, PLLM_PREFETCH_SEQUENTIAL);
    const uint32_t groups[] = {bench->blocks, 8, 1};
    for (size_t g = 0; g < sizeof groups / sizeof *groups; g++) {
        double best = 1e30, plain = 1e30;
        for (uint32_t run = 0; run < bench->runs; run++) {
            uint64_t start = pllm_clock_thread_cpu_ns();
            for (uint32_t i = 0; i < bench->pages; i++) {
                counters[rig.pages[i]]++;
                view = &counters[rig.pages[i]];
            }
            (void)view;
            uint64_t middle = pllm_clock_thread_cpu_ns();
            step(&rig, bench, groups[g], 0);
            uint64_t end = pllm_clock_thread_cpu_ns();
            double ns = (double)(end - middle) / bench->pages;
            double ns_plain = (double)(middle - start) / bench->pages;
            if (ns < best) best = ns;
            if (ns_plain < plain) plain = ns_plain;
        }
        char name[96];
        snprintf(name, sizeof name, "resident: pin + unpin, groups of %u (plain %.1f)", groups[g],
                 plain);
        report(bench, name, best, "ns/page");
    }
    rig_close(&rig);
}

static void bench_scan(bench_setup *bench, pllm_policy_kind policy, pllm_prefetch_kind prefetch,
                       uint32_t group)
{
    static bench_rig rig;
    uint32_t frames = bench->pages / 10;
    int ahead = prefetch == PLLM_PREFETCH_SEQUENTIAL;
    rig_open(&rig, bench, frames, policy, prefetch);
    for (uint32_t i = 0; i < 2; i++) step(&rig, bench, group, 0); /* settles */
    pllm_pager_stats before, after;
    pllm_pager_stats_get(rig.pager, &before);
    double best = 1e30;
    for (uint32_t i = 0; i < bench->steps; i++) {
        uint64_t start = pllm_clock_thread_cpu_ns();
        uint64_t spent = step(&rig, bench, group, ahead ? 1400 : 0);
        if (!ahead) spent = pllm_clock_thread_cpu_ns() - start;
        double ns = (double)spent / bench->pages;
        if (ns < best) best = ns;
    }
    pllm_pager_stats_get(rig.pager, &after);
    uint64_t count, optimum;
    const uint32_t *record = pllm_pager_record(rig.pager, &count);
    pllm_trace *trace;
    check(pllm_trace_open(NULL, bench->pages, NULL, record, count, &trace) == PLLM_OK, "trace");
    check(pllm_replay_optimum(trace, frames, &optimum) == PLLM_OK, "optimum");
    pllm_trace_close(trace);
    double loads = (double)(after.transfers.pages[PLLM_AT_HOST][PLLM_AT_DEVICE] -
                            before.transfers.pages[PLLM_AT_HOST][PLLM_AT_DEVICE]) /
                   bench->steps;
    double misses = (double)(after.misses - before.misses) / bench->steps;
    char name[96];
    snprintf(name, sizeof name, "10%% of frames, %s, %s, groups of %u: cost",
             pllm_policy_name(policy), ahead ? "sequential" : "none", group);
    report(bench, name, best, "ns/page");
    snprintf(name, sizeof name, "  kept from step to step (Belady %.0f)",
             (double)optimum / (bench->steps > 1 ? bench->steps - 1 : 1));
    report(bench, name, bench->pages - loads, "pages/step");
    report(bench, "  not resident when pinned", misses, "pages/step");
    /* A paging bench that did not page measures nothing. */
    check(loads + 1 >= bench->pages - frames, "fewer pages were loaded than were not resident");
    rig_close(&rig);
}

int main(int argc, char **argv)
{
    bench_setup bench = {LAYERS_MAX, BLOCKS_MAX, PAGES_MAX, 20, 5, NULL, 0};
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--smoke")) {
            bench = (bench_setup){24, 40, 960, 2, 2, bench.json, 0}; /* a tenth holds a layer */
        } else if (!strcmp(argv[i], "--json") && i + 1 < argc) {
            bench.json = fopen(argv[++i], "w");
            if (!bench.json) return fprintf(stderr, "bench_pager: cannot write %s\n", argv[i]), 1;
        } else {
            return fprintf(stderr, "usage: bench_pager [--smoke] [--json FILE]\n"), 2;
        }
    }
    if (bench.json) fprintf(bench.json, "{\"bench\": \"pager\", \"results\": [");
    bench_resident(&bench);
    uint32_t small = bench.blocks / 8;
    for (int policy = 0; policy < PLLM_POLICY_COUNT; policy++) {
        bench_scan(&bench, (pllm_policy_kind)policy, PLLM_PREFETCH_NONE, small);
        bench_scan(&bench, (pllm_policy_kind)policy, PLLM_PREFETCH_SEQUENTIAL, small);
    }
    bench_scan(&bench, PLLM_POLICY_STATIC, PLLM_PREFETCH_SEQUENTIAL, bench.blocks);
    bench_scan(&bench, PLLM_POLICY_STATIC, PLLM_PREFETCH_SEQUENTIAL, 1);
    if (bench.json) {
        fprintf(bench.json, "\n]}\n");
        fclose(bench.json);
    }
    return 0;
}
