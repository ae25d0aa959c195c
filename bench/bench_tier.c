/* Question: how near do transfers of pages come to the plain thing?
 * Baseline, run in turn with ours: memcpy of the same pages between host memory and the same
 * frames; plain pread and pwrite with O_DIRECT of whole extents, one at a time, on a file beside
 * ours.
 * Expected: host lanes near memcpy, since a batch costs a few microseconds and its worker does
 * nothing but copy; the disk above one-at-a-time reads, since several extents are in flight.
 * One page moves at the best of several runs; the machine is shared and noise only slows.
 *
 *   bench_tier [--smoke] [--page BYTES] [--bytes BYTES] [--folder DIR] [--link BYTES_PER_S]
 * [--json]
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/clock.h"
#include "tier/transfer.h"

enum { RUN_MAX = 16, EXTENT = 1 << 20 };

typedef struct config {
    uint64_t page_bytes, bytes;
    const char *folder;
    double link;
    uint32_t runs;
    int json, smoke;
} config;

typedef struct rig {
    pllm_device *device;
    pllm_budget *budget;
    pllm_tiers *tiers;
    pllm_transfers *transfers;
    uint64_t page_bytes;
    uint32_t count;
    uint32_t *frames, *slots[3], *order; /* order: a permutation, for random slots */
    pllm_ticket *tickets;
} rig;

static void die(const char *what)
{
    fprintf(stderr, "bench_tier: %s: %s\n", what, pllm_last_error()->text);
    exit(1);
}

static void need(int status, const char *what)
{
    if (status < 0) die(what);
}

static void rig_open(rig *r, const config *c, int with_disk, pllm_disk_kind kind)
{
    memset(r, 0, sizeof *r);
    r->page_bytes = c->page_bytes;
    r->count = (uint32_t)(c->bytes / c->page_bytes);
    pllm_host_device_options host = {.struct_bytes = sizeof host, .link_bytes_per_second = c->link};
    need(pllm_device_open_host(NULL, &host, &r->device), "device");
    need(pllm_budget_open(NULL, UINT64_MAX, &r->budget), "budget");
    pllm_tiers_options tiers = {.struct_bytes = sizeof tiers,
                                .frame_max = r->count,
                                .page_bytes = r->page_bytes,
                                .device_limit_bytes = UINT64_MAX,
                                .host_bytes = r->count * r->page_bytes,
                                .disk_bytes = with_disk ? r->count * r->page_bytes : 0,
                                .disk_folder = c->folder,
                                .disk_kind = kind};
    need(pllm_tiers_open(NULL, r->device, r->budget, &tiers, &r->tiers), "tiers");
    pllm_transfers_options transfers = {.struct_bytes = sizeof transfers, .ticket_max = r->count};
    need(pllm_transfers_open(NULL, r->tiers, &transfers, &r->transfers), "transfers");
    r->frames = calloc(r->count, sizeof(uint32_t));
    r->order = calloc(r->count, sizeof(uint32_t));
    r->tickets = calloc(r->count, sizeof(pllm_ticket));
    for (uint32_t place = 1; place <= 2; place++) r->slots[place] = calloc(r->count, 4);
    uint32_t random = 1;
    for (uint32_t i = 0; i < r->count; i++) {
        need(pllm_tiers_frame_alloc(r->tiers, &r->frames[i]), "frame");
        memset(pllm_tiers_frame_view(r->tiers, r->frames[i]), (int)i, r->page_bytes);
        for (uint32_t place = 1; place <= 1 + (uint32_t)with_disk; place++)
            need(pllm_tiers_slot_alloc(r->tiers, (pllm_place)place,
                                       i ? r->slots[place][i - 1] : PLLM_NONE, &r->slots[place][i]),
                 "slot");
        random = random * 1664525 + 1013904223;
        uint32_t j = (uint32_t)((uint64_t)random * (i + 1) >> 32);
        r->order[i] = r->order[j];
        r->order[j] = i;
    }
}

static void rig_close(rig *r)
{
    pllm_transfers_close(r->transfers);
    pllm_tiers_close(r->tiers);
    pllm_budget_close(r->budget);
    pllm_device_close(r->device);
    free(r->frames), free(r->order), free(r->tickets), free(r->slots[1]), free(r->slots[2]);
}

/* All pages, by slot order or shuffled; seconds. */
static double move_all(rig *r, pllm_place from, pllm_place to, int shuffled)
{
    uint32_t place = from == PLLM_AT_DEVICE ? to : from;
    uint64_t start = pllm_clock_ns();
    for (uint32_t i = 0; i < r->count; i++) {
        uint32_t page = shuffled ? r->order[i] : i;
        pllm_transfer transfer = {from,          to,  r->frames[i], r->slots[place][page],
                                  PLLM_PREFETCH, page};
        if (from == PLLM_AT_DEVICE) transfer.frame = r->frames[page];
        need(pllm_transfer_submit(r->transfers, &transfer, &r->tickets[i]), "submit");
        if (i % 64 == 63) pllm_transfers_poll(r->transfers);
    }
    while (pllm_transfers_pending(r->transfers)) pllm_transfers_wait_any(r->transfers, UINT64_MAX);
    uint64_t end = pllm_clock_ns();
    for (uint32_t i = 0; i < r->count; i++) {
        need(pllm_transfer_state(r->transfers, r->tickets[i]), "transfer");
        pllm_transfer_release(r->transfers, r->tickets[i]);
        const unsigned char *view = pllm_tiers_frame_view(r->tiers, r->frames[i]);
        unsigned char wanted = (unsigned char)(shuffled && to == PLLM_AT_DEVICE ? r->order[i] : i);
        if (view[0] != wanted || view[r->page_bytes - 1] != wanted) {
            fprintf(stderr, "bench_tier: page %u arrived with wrong bytes\n", i);
            exit(1);
        }
    }
    return (double)(end - start) * 1e-9;
}

static double plain_copy(rig *r, int inward, int shuffled)
{
    uint64_t start = pllm_clock_ns();
    for (uint32_t i = 0; i < r->count; i++) {
        void *frame = pllm_tiers_frame_view(r->tiers, r->frames[i]);
        void *slot =
            pllm_tiers_host_slot(r->tiers, r->slots[PLLM_AT_HOST][shuffled ? r->order[i] : i]);
        memcpy(inward ? frame : slot, inward ? slot : frame, r->page_bytes);
    }
    return (double)(pllm_clock_ns() - start) * 1e-9;
}

/* Whole extents, one after the other. */
static double plain_disk(const config *c, int write)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/bench-tier-XXXXXX", c->folder);
    int fd = mkostemp(path, O_DIRECT);
    if (fd < 0) fd = mkstemp(path);
    if (fd < 0) die("a file for the baseline");
    unlink(path);
    void *buffer = aligned_alloc(4096, EXTENT);
    memset(buffer, 1, EXTENT);
    if (posix_fallocate(fd, 0, (off_t)c->bytes)) die("room for the baseline");
    uint64_t start = 0;
    for (int pass = write ? 1 : 0; pass < 2; pass++) { /* a read first writes, uncounted */
        start = pllm_clock_ns();
        for (uint64_t at = 0; at + EXTENT <= c->bytes; at += EXTENT) {
            int writing = write || pass == 0;
            ssize_t moved = writing ? pwrite(fd, buffer, EXTENT, (off_t)at)
                                    : pread(fd, buffer, EXTENT, (off_t)at);
            if (moved != EXTENT) die("the baseline's disk");
        }
    }
    double seconds = (double)(pllm_clock_ns() - start) * 1e-9;
    free(buffer);
    close(fd);
    return seconds;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void report(const config *c, const char *name, double *ours, double *plain)
{
    qsort(ours, c->runs, sizeof *ours, by_size);
    qsort(plain, c->runs, sizeof *plain, by_size);
    double scale = (double)(c->bytes / c->page_bytes * c->page_bytes) * 1e-9;
    double best = scale / ours[0], median = scale / ours[c->runs / 2];
    double plain_best = scale / plain[0], plain_median = scale / plain[c->runs / 2];
    if (c->json)
        printf("{\"name\": \"%s\", \"page_bytes\": %llu, \"gb_per_s\": %.3f, \"median\": %.3f, "
               "\"plain_gb_per_s\": %.3f, \"plain_median\": %.3f, \"ratio\": %.3f, \"runs\": %u}\n",
               name, (unsigned long long)c->page_bytes, best, median, plain_best, plain_median,
               best / plain_best, c->runs);
    else
        printf("%-34s %7.2f GB/s (median %6.2f)   plain %7.2f (median %6.2f)   ratio %.2f\n", name,
               best, median, plain_best, plain_median, best / plain_best);
}

static void host_lanes(const config *c)
{
    rig r;
    rig_open(&r, c, 0, PLLM_DISK_AUTO);
    static const char *const names[] = {"device to host, sequential", "host to device, sequential",
                                        "host to device, random slots"};
    for (uint32_t kind = 0; kind < 3; kind++) {
        double ours[RUN_MAX], plain[RUN_MAX];
        for (uint32_t i = 0; i < c->runs; i++) {
            ours[i] = kind == 0 ? move_all(&r, PLLM_AT_DEVICE, PLLM_AT_HOST, 0)
                                : move_all(&r, PLLM_AT_HOST, PLLM_AT_DEVICE, kind == 2);
            plain[i] = plain_copy(&r, kind != 0, kind == 2);
        }
        report(c, names[kind], ours, plain);
    }
    rig_close(&r);
}

static void disk_lanes(const config *c, pllm_disk_kind kind)
{
    rig r;
    rig_open(&r, c, 1, kind);
    pllm_tiers_stats stats;
    pllm_tiers_stats_get(r.tiers, &stats);
    if (stats.disk_note[0] && !c->json) printf("  %s: %s\n", stats.disk_name, stats.disk_note);
    for (uint32_t what = 0; what < 3; what++) {
        double ours[RUN_MAX], plain[RUN_MAX];
        char name[64];
        for (uint32_t i = 0; i < c->runs; i++) {
            ours[i] = what == 0 ? move_all(&r, PLLM_AT_DEVICE, PLLM_AT_DISK, 0)
                                : move_all(&r, PLLM_AT_DISK, PLLM_AT_DEVICE, what == 2);
            plain[i] = plain_disk(c, what == 0);
        }
        snprintf(name, sizeof name, "%s, %s", stats.disk_name,
                 what == 0   ? "write"
                 : what == 1 ? "read"
                             : "read, random pages");
        report(c, name, ours, plain);
    }
    rig_close(&r);
}

int main(int argc, char **argv)
{
    config c = {.page_bytes = 24 << 10, .bytes = 128 << 20, .folder = ".", .runs = 5};
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (!strcmp(argv[i], "--smoke"))
            c.smoke = 1, c.bytes = 4 << 20, c.runs = 1;
        else if (!strcmp(argv[i], "--json"))
            c.json = 1;
        else if (!strcmp(argv[i], "--page"))
            c.page_bytes = strtoull(value, NULL, 0), i++;
        else if (!strcmp(argv[i], "--bytes"))
            c.bytes = strtoull(value, NULL, 0), i++;
        else if (!strcmp(argv[i], "--link"))
            c.link = strtod(value, NULL), i++;
        else if (!strcmp(argv[i], "--folder"))
            c.folder = value, i++;
        else {
            fprintf(stderr, "bench_tier: %s is not an option\n", argv[i]);
            return 2;
        }
    }
    host_lanes(&c);
    pllm_disk *probe;
    pllm_disk_options options = {
        .struct_bytes = sizeof options, .kind = PLLM_DISK_URING, .folder = c.folder, .bytes = 4096};
    if (pllm_disk_open(NULL, &options, &probe) == PLLM_OK) {
        pllm_disk_close(probe);
        disk_lanes(&c, PLLM_DISK_URING);
    } else if (!c.json) {
        printf("left out: %s\n", pllm_last_error()->text);
    }
    disk_lanes(&c, PLLM_DISK_PREAD);
    return 0;
}
