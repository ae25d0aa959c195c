/* The pager on the host device with real tiers: contents survive paging, pins are all or none,
 * limits are kept, and a cyclic scan gets the hits it should. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "pager/replay.h"
#include "pager_rig.h"
#include "tier_rig.h"

enum { BYTES = 4096 };

static pager_rig open_rig(uint32_t frames, uint32_t host_slots, uint32_t disk_slots,
                          uint32_t page_max, pllm_policy_kind policy, pllm_prefetch_kind prefetch)
{
    pager_rig rig;
    pager_rig_options options = {
        .frames = frames,
        .host_slots = host_slots,
        .disk_slots = disk_slots,
        .pager = {.page_max = page_max, .policy = policy, .prefetch = prefetch},
    };
    assert_int_equal(pager_rig_open(NULL, &options, &rig), PLLM_OK);
    return rig;
}

static void make_pages(pager_rig *rig, pllm_page *pages, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        assert_int_equal(pager_rig_page(rig, i ? pages[i - 1] : PLLM_NONE, i, &pages[i]), PLLM_OK);
        pllm_pager_check(rig->pager);
    }
}

static void read_page(pager_rig *rig, pllm_page page)
{
    void *view;
    assert_int_equal(pllm_pager_pin(rig->pager, &page, 1, PLLM_PIN_READ, &view), PLLM_OK);
    assert_true(pager_rig_matches(view, BYTES, page, 0));
    pllm_pager_unpin(rig->pager, &page, 1);
}

static pllm_pager_stats stats_of(const pager_rig *rig)
{
    pllm_pager_stats stats;
    pllm_pager_stats_get(rig->pager, &stats);
    return stats;
}

/* ---- contents ---- */

static void contents_survive_host_and_disk(void **state)
{
    (void)state;
    for (int kind = 0; kind < PLLM_POLICY_COUNT; kind++) {
        for (int prefetch = 0; prefetch < 2; prefetch++) {
            enum { N = 60 };
            pllm_page pages[N];
            pager_rig rig =
                open_rig(8, 20, 40, N, (pllm_policy_kind)kind, (pllm_prefetch_kind)prefetch);
            make_pages(&rig, pages, N);
            assert_int_equal(pllm_pager_scan(rig.pager, pages, N), PLLM_OK);
            for (uint32_t round = 0; round < 3; round++) {
                for (uint32_t i = 0; i < N; i++) {
                    read_page(&rig, pages[i]);
                    pllm_pager_check(rig.pager);
                }
            }
            pllm_pager_stats stats = stats_of(&rig);
            assert_int_equal(stats.tiers.frames_peak, 8);
            assert_true(stats.tiers.host_used == 20 && stats.tiers.disk_used >= 32);
            assert_true(stats.evictions > 3 * (N - 8) && stats.evictions >= stats.tiers.host_used);
            assert_true(stats.transfers.disk_read_bytes > 0);
            assert_int_equal(stats.pins, 3 * N);
            assert_int_equal(stats.hits + stats.misses, stats.pins);
            pager_rig_close(&rig);
        }
    }
}

static void an_open_page_is_rewritten_and_paged(void **state)
{
    (void)state;
    pager_rig rig = open_rig(4, 64, 0, 40, PLLM_POLICY_LRU, PLLM_PREFETCH_NONE);
    pllm_page open, others[20];
    void *view;
    assert_int_equal(pllm_pager_page_new(rig.pager, PLLM_NONE, 0, &open), PLLM_OK);
    assert_int_equal(pllm_pager_pin(rig.pager, &open, 1, PLLM_PIN_READ, &view), PLLM_EINVAL);
    assert_int_equal(pllm_pager_pin(rig.pager, &open, 1, PLLM_PIN_NEW, &view), PLLM_OK);
    pager_rig_fill(view, BYTES, open, 0);
    pllm_pager_unpin(rig.pager, &open, 1);
    make_pages(&rig, others, 20);
    for (uint32_t version = 1; version < 6; version++) {
        assert_int_equal(pllm_pager_pin(rig.pager, &open, 1, PLLM_PIN_WRITE, &view), PLLM_OK);
        assert_true(pager_rig_matches(view, BYTES, open, version - 1));
        pager_rig_fill(view, BYTES, open, version);
        pllm_pager_unpin(rig.pager, &open, 1);
        for (uint32_t i = 0; i < 20; i++) read_page(&rig, others[i]);
        /* It was a victim long ago; once it is written it is the first to go. */
        assert_int_equal(pllm_pager_settle(rig.pager), PLLM_OK);
        read_page(&rig, others[version]);
        assert_false(pllm_pager_is_resident(rig.pager, open));
        pllm_pager_check(rig.pager);
    }
    assert_int_equal(pllm_pager_pin(rig.pager, &open, 1, PLLM_PIN_READ, &view), PLLM_OK);
    pllm_pager_seal(rig.pager, open);
    pllm_pager_unpin(rig.pager, &open, 1);
    assert_int_equal(pllm_pager_pin(rig.pager, &open, 1, PLLM_PIN_WRITE, &view), PLLM_EINVAL);
    assert_int_equal(pllm_pager_pin(rig.pager, &open, 1, PLLM_PIN_NEW, &view), PLLM_EINVAL);
    pager_rig_close(&rig);
}

/* ---- homes ---- */

/* A rig on a disk in memory that counts its requests. */
static pager_rig open_counted(uint32_t frames, uint32_t disk_slots, uint32_t page_max,
                              pllm_disk **disk_out)
{
    pllm_faulty_disk_options faults = pllm_faulty_disk_none();
    pager_rig rig;
    *disk_out = tier_rig_disk(NULL, NULL, (uint64_t)disk_slots * BYTES, 1, &faults);
    pager_rig_options options = {
        .frames = frames,
        .disk_slots = disk_slots,
        .disk = *disk_out,
        .pager = {.page_max = page_max, .policy = PLLM_POLICY_STATIC},
    };
    assert_int_equal(pager_rig_open(NULL, &options, &rig), PLLM_OK);
    return rig;
}

/* Pages leave one after the other, the newest first, as under `static`. Their slots on disk are in
 * the order of the stream still: three streams come back in three reads. */
static void streams_evicted_backwards_are_read_in_long_runs(void **state)
{
    (void)state;
    enum { STREAMS = 3, EACH = 40, N = STREAMS * EACH };
    pllm_disk *disk;
    pager_rig rig = open_counted(2 * N, 2000, N, &disk);
    pllm_page pages[N];
    for (uint32_t i = 0; i < N; i++)
        assert_int_equal(
            pager_rig_page(&rig, i < STREAMS ? PLLM_NONE : pages[i - STREAMS], i, &pages[i]),
            PLLM_OK);
    for (uint32_t i = N; i-- > 0;) {
        assert_int_equal(pllm_pager_evict_pages(rig.pager, &pages[i], 1), 1);
        pllm_pager_check(rig.pager);
    }
    assert_int_equal(stats_of(&rig).tiers.disk_used, N);
    pllm_faulty_disk_stats before, after;
    pllm_faulty_disk_stats_get(disk, &before);
    assert_int_equal(before.writes, N);
    assert_int_equal(pllm_pager_pin(rig.pager, pages, N, PLLM_PIN_READ, NULL), PLLM_OK);
    pllm_faulty_disk_stats_get(disk, &after);
    assert_int_equal(after.reads - before.reads, STREAMS);
    pllm_pager_unpin(rig.pager, pages, N);
    for (uint32_t i = 0; i < N; i++) read_page(&rig, pages[i]);
    pager_rig_close(&rig);
}

/* Slots given early to pages that are held on the device are given back before the disk counts as
 * full: as many pages fit as there are frames and slots. */
static void slots_given_early_do_not_fill_the_disk(void **state)
{
    (void)state;
    enum { FRAMES = 20, SLOTS = 100, STREAM = 10, HELD = 5, N = FRAMES + SLOTS };
    pllm_disk *disk;
    pager_rig rig = open_counted(FRAMES, SLOTS, N + 1, &disk);
    pllm_page pages[N + 1];
    void *view;
    for (uint32_t i = 0; i <= N; i++) { /* not sealed, so that nothing is written ahead of need */
        pllm_page after = i > 0 && i < STREAM ? pages[i - 1] : PLLM_NONE;
        assert_int_equal(pllm_pager_page_new(rig.pager, after, i, &pages[i]), PLLM_OK);
        int status = pllm_pager_pin(rig.pager, &pages[i], 1, PLLM_PIN_NEW, &view);
        assert_int_equal(status, i < N ? PLLM_OK : PLLM_ELIMIT);
        if (status < 0) break;
        pager_rig_fill(view, BYTES, pages[i], 0);
        pllm_pager_unpin(rig.pager, &pages[i], 1);
        pllm_pager_check(rig.pager);
        if (i + 1 != STREAM) continue;
        assert_int_equal(pllm_pager_evict(rig.pager, 1), 1);
        assert_int_equal(stats_of(&rig).tiers.disk_used, STREAM); /* fewer were needed */
        assert_int_equal(pllm_pager_pin(rig.pager, pages, HELD, PLLM_PIN_READ, NULL), PLLM_OK);
    }
    pllm_pager_unpin(rig.pager, pages, HELD);
    assert_int_equal(stats_of(&rig).tiers.disk_used, SLOTS);
    pllm_pager_page_free(rig.pager, pages[N - 1]);
    for (uint32_t i = 0; i < N - 1; i++) read_page(&rig, pages[i]);
    pllm_pager_check(rig.pager);
    pager_rig_close(&rig);
}

/* ---- pins ---- */

static void pins_are_all_or_none(void **state)
{
    (void)state;
    pager_rig rig = open_rig(8, 64, 0, 40, PLLM_POLICY_STATIC, PLLM_PREFETCH_NONE);
    pllm_page pages[40];
    void *views[40];
    make_pages(&rig, pages, 24);
    assert_int_equal(pllm_pager_pin(rig.pager, pages, 9, PLLM_PIN_READ, views), PLLM_EBUSY);
    pllm_pager_check(rig.pager);
    assert_int_equal(stats_of(&rig).pinned, 0);
    assert_int_equal(pllm_pager_pin(rig.pager, pages, 6, PLLM_PIN_READ, views), PLLM_OK);
    assert_int_equal(pllm_pager_pin(rig.pager, pages + 10, 3, PLLM_PIN_READ, views), PLLM_EBUSY);
    assert_int_equal(pllm_pager_pin(rig.pager, pages + 10, 2, PLLM_PIN_READ, views), PLLM_OK);
    assert_int_equal(stats_of(&rig).pinned, 8);
    pllm_pager_check(rig.pager);
    /* Nested, and the same page twice in a call. */
    const pllm_page twice[] = {pages[0], pages[0]};
    assert_int_equal(pllm_pager_pin(rig.pager, twice, 2, PLLM_PIN_READ, NULL), PLLM_OK);
    pllm_pager_unpin(rig.pager, twice, 2);
    assert_int_equal(pllm_pager_evict_pages(rig.pager, pages, 1), 0);
    assert_true(pllm_pager_is_resident(rig.pager, pages[0]));
    pllm_pager_unpin(rig.pager, pages, 6);
    assert_int_equal(pllm_pager_evict_pages(rig.pager, pages, 6), 6);
    assert_false(pllm_pager_is_resident(rig.pager, pages[0]));
    pllm_pager_unpin(rig.pager, pages + 10, 2);
    const pllm_page absent[] = {pages[0], 39};
    assert_int_equal(pllm_pager_pin(rig.pager, absent, 2, PLLM_PIN_READ, NULL), PLLM_EINVAL);
    assert_int_equal(stats_of(&rig).pinned, 0);
    pllm_pager_check(rig.pager);
    pager_rig_close(&rig);
}

static void try_pin_brings_pages_without_waiting(void **state)
{
    (void)state;
    pager_rig rig = open_rig(8, 64, 0, 40, PLLM_POLICY_STATIC, PLLM_PREFETCH_NONE);
    pllm_page pages[24];
    void *views[2];
    make_pages(&rig, pages, 24);
    int got = 0;
    for (uint32_t i = 0; i < 1000000 && !got; i++) {
        got = pllm_pager_try_pin(rig.pager, pages + 20, 2, views);
        assert_true(got >= 0);
        if (!got) assert_int_equal(stats_of(&rig).pinned, 0);
        pllm_pager_check(rig.pager);
        assert_int_equal(pllm_pager_poll(rig.pager), PLLM_OK);
    }
    assert_int_equal(got, 1);
    assert_true(pager_rig_matches(views[1], BYTES, pages[21], 0));
    pllm_pager_unpin(rig.pager, pages + 20, 2);
    pager_rig_close(&rig);
}

static void what_try_pin_missed_is_kept_until_used(void **state)
{
    (void)state;
    for (int prefetch = 0; prefetch < 2; prefetch++) {
        pager_rig rig = open_rig(16, 64, 0, 40, PLLM_POLICY_STATIC, (pllm_prefetch_kind)prefetch);
        pllm_page pages[40];
        make_pages(&rig, pages, 40);
        assert_int_equal(pllm_pager_evict(rig.pager, 16), 16);
        assert_int_equal(pllm_pager_scan(rig.pager, pages, 40), PLLM_OK);
        for (uint32_t i = 0; i < 20; i++) read_page(&rig, pages[i]);
        assert_int_equal(pllm_pager_try_pin(rig.pager, pages + 36, 4, NULL), 0);
        assert_int_equal(pllm_pager_settle(rig.pager), PLLM_OK);
        /* Their ranks are the highest, and the reader passes them: still they stay. */
        for (uint32_t i = 0; i < 30; i++) read_page(&rig, pages[i]);
        pllm_pager_check(rig.pager);
        assert_int_equal(pllm_pager_try_pin(rig.pager, pages + 36, 4, NULL), 1);
        pllm_pager_unpin(rig.pager, pages + 36, 4);
        for (uint32_t i = 0; i < 30; i++) read_page(&rig, pages[i]);
        assert_false(pllm_pager_is_resident(rig.pager, pages[37]));
        pllm_pager_check(rig.pager);
        pager_rig_close(&rig);
    }
}

static void without_room_for_homes_the_limit_is_named(void **state)
{
    (void)state;
    pager_rig rig = open_rig(4, 3, 2, 40, PLLM_POLICY_LRU, PLLM_PREFETCH_NONE);
    pllm_page pages[12], page;
    make_pages(&rig, pages, 9); /* four frames and five homes */
    assert_int_equal(pager_rig_page(&rig, PLLM_NONE, 0, &page), PLLM_ELIMIT);
    assert_non_null(strstr(pllm_last_error()->text, "--nvme-size"));
    pllm_pager_check(rig.pager);
    for (uint32_t i = 0; i < 9; i++)
        if (pllm_pager_is_resident(rig.pager, pages[i])) read_page(&rig, pages[i]);
    pllm_pager_page_free(rig.pager, pages[0]);
    assert_int_equal(pager_rig_page(&rig, PLLM_NONE, 0, &page), PLLM_OK);
    pllm_pager_check(rig.pager);
    pager_rig_close(&rig);

    rig = open_rig(4, 0, 0, 40, PLLM_POLICY_LRU, PLLM_PREFETCH_NONE);
    make_pages(&rig, pages, 4);
    assert_int_equal(pager_rig_page(&rig, PLLM_NONE, 0, &page), PLLM_ELIMIT);
    for (uint32_t i = 0; i < 4; i++) read_page(&rig, pages[i]);
    pager_rig_close(&rig);

    rig = open_rig(4, 4, 0, 40, PLLM_POLICY_LRU, PLLM_PREFETCH_NONE);
    assert_int_equal(pllm_pager_set_device_limit(rig.pager, 0), PLLM_OK);
    assert_int_equal(pager_rig_page(&rig, PLLM_NONE, 0, &page), PLLM_ENODEVMEM);
    pager_rig_close(&rig);
}

/* ---- the scan ---- */

typedef struct scan_result {
    double hits, prefetch_used, misses; /* a step, once settled */
    uint64_t optimum;                   /* hits a step, Belady */
} scan_result;

/* Steps of a decode: layers in order, each pinning its blocks in groups. */
static scan_result run_scan(pllm_policy_kind policy, pllm_prefetch_kind prefetch, uint32_t frames,
                            uint32_t prefetch_max, uint32_t group)
{
    enum { LAYERS = 6, BLOCKS = 40, N = LAYERS * BLOCKS, STEPS = 12, LAST = 6 };
    pager_rig rig;
    pager_rig_options options = {
        .frames = frames,
        .host_slots = N,
        .pager = {.page_max = N,
                  .policy = policy,
                  .prefetch = prefetch,
                  .prefetch_max = prefetch_max,
                  .record_max = N * LAST},
    };
    assert_int_equal(pager_rig_open(NULL, &options, &rig), PLLM_OK);
    static pllm_page pages[N];
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        for (uint32_t block = 0; block < BLOCKS; block++) {
            uint32_t i = layer * BLOCKS + block;
            assert_int_equal(pager_rig_page(&rig, block ? pages[i - 1] : PLLM_NONE,
                                            block * LAYERS + layer, &pages[i]),
                             PLLM_OK);
        }
    assert_int_equal(pllm_pager_scan(rig.pager, pages, N), PLLM_OK);
    pllm_pager_stats before = {0};
    for (uint32_t step = 0; step < STEPS; step++) {
        if (step == STEPS - LAST) before = stats_of(&rig);
        for (uint32_t i = 0; i < N; i += group) {
            void *views[N];
            assert_int_equal(pllm_pager_pin(rig.pager, pages + i, group, PLLM_PIN_READ, views),
                             PLLM_OK);
            for (uint32_t j = 0; j < group; j++)
                assert_true(pager_rig_matches(views[j], BYTES, pages[i + j], 0));
            /* Compute takes its time: what was asked for ahead arrives. */
            if (prefetch) assert_int_equal(pllm_pager_settle(rig.pager), PLLM_OK);
            pllm_pager_unpin(rig.pager, pages + i, group);
            if (prefetch) assert_int_equal(pllm_pager_settle(rig.pager), PLLM_OK);
        }
        pllm_pager_check(rig.pager);
    }
    pllm_pager_stats after = stats_of(&rig);
    uint64_t count;
    const uint32_t *record = pllm_pager_record(rig.pager, &count);
    pllm_trace *trace;
    scan_result result = {0};
    assert_int_equal(count, N * LAST);
    assert_memory_equal(record, pages, sizeof pages);
    assert_int_equal(pllm_trace_open(NULL, N, NULL, record, count, &trace), PLLM_OK);
    assert_int_equal(pllm_replay_optimum(trace, frames, &result.optimum), PLLM_OK);
    pllm_trace_close(trace);
    result.optimum /= LAST - 1; /* the first step finds nothing resident there */
    result.misses = (double)(after.misses - before.misses) / LAST;
    result.prefetch_used = (double)(after.prefetch_used - before.prefetch_used) / LAST;
    result.hits = (double)(after.hits - before.hits) / LAST - result.prefetch_used;
    assert_true(after.prefetched == after.prefetch_used + after.prefetch_wasted ||
                after.prefetched - after.prefetch_used - after.prefetch_wasted <= frames);
    pager_rig_close(&rig);
    return result;
}

static void a_cyclic_scan_keeps_a_fixed_share(void **state)
{
    (void)state;
    /* Static alone: all frames but those pinned hold the same pages for ever. */
    scan_result result = run_scan(PLLM_POLICY_STATIC, PLLM_PREFETCH_NONE, 24, 0, 4);
    assert_true(result.hits >= 24 - 4 - 1);
    assert_true(result.optimum >= 23 && result.hits <= (double)result.optimum + 1);
    /* With prefetch: frames less the window less the pins; the rest arrives ahead of its use. */
    result = run_scan(PLLM_POLICY_STATIC, PLLM_PREFETCH_SEQUENTIAL, 24, 8, 4);
    assert_true(result.hits >= 24 - 8 - 4 - 1 && result.hits <= 24);
    assert_true(result.misses <= 1);
    result = run_scan(PLLM_POLICY_STATIC, PLLM_PREFETCH_SEQUENTIAL, 48, 0, 10);
    assert_true(result.hits >= 48 - 16 - 10 - 1);
    assert_true(result.misses <= 1);
    /* Lru has none; prefetching covers for it. */
    result = run_scan(PLLM_POLICY_LRU, PLLM_PREFETCH_NONE, 24, 0, 4);
    assert_true(result.hits == 0);
    result = run_scan(PLLM_POLICY_LRU, PLLM_PREFETCH_SEQUENTIAL, 24, 8, 4);
    assert_true(result.misses <= 1);
    result = run_scan(PLLM_POLICY_2Q, PLLM_PREFETCH_SEQUENTIAL, 24, 8, 4);
    assert_true(result.misses <= 1);
}

/* A reader that takes the chunks that are there, comes back for the rest, and waits only for one:
 * no page may go between the look that missed it and its use. */
static void reading_in_waves_loads_each_page_once(void **state)
{
    (void)state;
    enum { LAYERS = 6, CHUNKS = 10, CHUNK = 4, BLOCKS = CHUNKS * CHUNK, N = LAYERS * BLOCKS };
    enum { PINS = 20 }; /* of a wave at most */
    pllm_device *device;
    /* Simulated, so that what arrives when is the same on a busy machine. */
    pllm_sim_device_options slow = {.struct_bytes = sizeof slow,
                                    .seed = 7,
                                    .latency_ns_max = 20000,
                                    .capacity_bytes = 64 << 20};
    assert_int_equal(pllm_device_open_sim(NULL, &slow, &device), PLLM_OK);
    for (int kind = 0; kind < PLLM_POLICY_COUNT; kind++) {
        pager_rig rig;
        pager_rig_options options = {
            .device = device,
            .frames = 48,
            .host_slots = N,
            .pager = {.page_max = N,
                      .policy = (pllm_policy_kind)kind,
                      .prefetch = PLLM_PREFETCH_SEQUENTIAL},
        };
        assert_int_equal(pager_rig_open(NULL, &options, &rig), PLLM_OK);
        static pllm_page pages[N];
        for (uint32_t i = 0; i < N; i++)
            assert_int_equal(pager_rig_page(&rig, i % BLOCKS ? pages[i - 1] : PLLM_NONE,
                                            i % BLOCKS * LAYERS + i / BLOCKS, &pages[i]),
                             PLLM_OK);
        assert_int_equal(pllm_pager_scan(rig.pager, pages, N), PLLM_OK);
        uint64_t before = 0;
        pllm_pager_stats stats = {0};
        for (uint32_t step = 0; step < 9; step++) {
            for (uint32_t layer = 0; layer < LAYERS; layer++) {
                const pllm_page *first = pages + layer * BLOCKS;
                uint32_t taken[CHUNKS] = {0}, left = CHUNKS;
                while (left) {
                    pllm_page held[BLOCKS];
                    void *views[CHUNK];
                    uint32_t held_count = 0, missed = 0;
                    for (uint32_t must = 0; must < 2 && !held_count; must++)
                        for (uint32_t c = 0; c < CHUNKS && missed < 3 + must && held_count < PINS;
                             c++) {
                            if (taken[c]) continue;
                            const pllm_page *chunk = first + c * CHUNK;
                            int got = must && !held_count
                                          ? pllm_pager_pin(rig.pager, chunk, CHUNK, PLLM_PIN_READ,
                                                           views) == PLLM_OK
                                          : pllm_pager_try_pin(rig.pager, chunk, CHUNK, views);
                            assert_true(got >= 0 && (!must || held_count || got));
                            missed += !got;
                            if (!got) continue;
                            for (uint32_t i = 0; i < CHUNK; i++)
                                assert_true(pager_rig_matches(views[i], BYTES, chunk[i], 0));
                            memcpy(held + held_count, chunk, CHUNK * sizeof *chunk);
                            held_count += CHUNK;
                            taken[c] = 1;
                            left--;
                        }
                    pllm_pager_unpin(rig.pager, held, held_count);
                    pllm_pager_check(rig.pager);
                }
            }
            stats = stats_of(&rig);
            if (step == 2) before = stats.transfers.pages[PLLM_AT_HOST][PLLM_AT_DEVICE];
        }
        double loads = (double)(stats.transfers.pages[PLLM_AT_HOST][PLLM_AT_DEVICE] - before) / 6;
        /* Static keeps frames less window less pins, less what missed chunks hold; the others load
         * every page, once. Nothing read ahead goes before its use. */
        assert_true(stats.prefetch_wasted <= 8);
        assert_true(loads <= (kind == PLLM_POLICY_STATIC ? N - (48 - 16 - PINS) / 2 : N + 2));
        pager_rig_close(&rig);
    }
    pllm_device_close(device);
}

static void a_growing_scan_does_not_thrash(void **state)
{
    (void)state;
    enum { LAYERS = 4, START = 12, STEPS = 12, MAX = LAYERS * (START + STEPS) };
    pager_rig rig = open_rig(24, MAX, 0, MAX, PLLM_POLICY_STATIC, PLLM_PREFETCH_SEQUENTIAL);
    pllm_page layer_pages[LAYERS][START + STEPS], order[MAX];
    uint32_t blocks = 0;
    uint64_t loaded_before = 0;
    for (uint32_t step = 0; step < STEPS; step++) {
        uint32_t target = START + step;
        for (; blocks < target; blocks++)
            for (uint32_t layer = 0; layer < LAYERS; layer++)
                assert_int_equal(
                    pager_rig_page(&rig, blocks ? layer_pages[layer][blocks - 1] : PLLM_NONE,
                                   blocks * LAYERS + layer, &layer_pages[layer][blocks]),
                    PLLM_OK);
        for (uint32_t layer = 0; layer < LAYERS; layer++)
            memcpy(order + layer * blocks, layer_pages[layer], blocks * sizeof *order);
        assert_int_equal(pllm_pager_scan(rig.pager, order, LAYERS * blocks), PLLM_OK);
        pllm_pager_check(rig.pager);
        for (uint32_t i = 0; i < LAYERS * blocks; i++) {
            read_page(&rig, order[i]);
            assert_int_equal(pllm_pager_settle(rig.pager), PLLM_OK);
        }
        pllm_pager_check(rig.pager);
        uint64_t loaded = stats_of(&rig).transfers.pages[PLLM_AT_HOST][PLLM_AT_DEVICE];
        /* 24 frames, 8 of them ahead: at least a dozen pages of a step need no load. */
        if (step > 2) assert_true(loaded - loaded_before <= LAYERS * blocks - 12);
        loaded_before = loaded;
    }
    pllm_pager_stats stats = stats_of(&rig);
    assert_true(stats.prefetch_wasted * 10 <= stats.prefetched);
    pager_rig_close(&rig);
}

static void turning_away_frees_what_was_read_ahead(void **state)
{
    (void)state;
    pager_rig rig = open_rig(12, 64, 0, 64, PLLM_POLICY_LRU, PLLM_PREFETCH_SEQUENTIAL);
    pllm_page pages[48];
    make_pages(&rig, pages, 48);
    assert_int_equal(pllm_pager_scan(rig.pager, pages, 24), PLLM_OK);
    assert_int_equal(pllm_pager_settle(rig.pager), PLLM_OK);
    pllm_pager_check(rig.pager);
    assert_int_equal(stats_of(&rig).prefetched, 4);
    assert_int_equal(pllm_pager_scan(rig.pager, pages + 24, 24), PLLM_OK);
    pllm_pager_check(rig.pager);
    for (uint32_t i = 24; i < 48; i++) {
        read_page(&rig, pages[i]);
        pllm_pager_check(rig.pager);
    }
    for (uint32_t i = 0; i < 4; i++) assert_false(pllm_pager_is_resident(rig.pager, pages[i]));
    assert_true(stats_of(&rig).prefetch_wasted >= 4);
    /* Freed pages leave holes in the order; others take their numbers. */
    for (uint32_t i = 30; i < 40; i++) pllm_pager_page_free(rig.pager, pages[i]);
    pllm_pager_check(rig.pager);
    make_pages(&rig, pages + 30, 10);
    for (uint32_t i = 24; i < 48; i++) read_page(&rig, pages[i]);
    assert_int_equal(pllm_pager_scan(rig.pager, NULL, 0), PLLM_OK);
    pllm_pager_check(rig.pager);
    for (uint32_t i = 0; i < 48; i++) read_page(&rig, pages[i]);
    pllm_pager_check(rig.pager);
    pager_rig_close(&rig);
}

/* ---- write-behind, limits, hints, frees ---- */

static void sealed_pages_are_written_under_pressure_only(void **state)
{
    (void)state;
    pager_rig rig = open_rig(16, 64, 0, 64, PLLM_POLICY_LRU, PLLM_PREFETCH_NONE);
    pllm_page pages[16];
    make_pages(&rig, pages, 12);
    assert_int_equal(pllm_pager_settle(rig.pager), PLLM_OK);
    assert_int_equal(stats_of(&rig).written_behind, 0);
    make_pages(&rig, pages + 12, 4);
    assert_int_equal(pllm_pager_settle(rig.pager), PLLM_OK);
    pllm_pager_stats stats = stats_of(&rig);
    assert_int_equal(stats.written_behind, 16);
    assert_int_equal(stats.evictions, 0);
    /* Evicting what is written costs no write. */
    assert_int_equal(pllm_pager_evict(rig.pager, 5), 5);
    stats = stats_of(&rig);
    assert_int_equal(stats.evictions, 5);
    assert_int_equal(stats.evictions_dirty, 0);
    assert_int_equal(stats.resident, 11);
    pager_rig_close(&rig);
}

static void the_limit_can_change_while_running(void **state)
{
    (void)state;
    pager_rig rig;
    pager_rig_options options = {
        .frames = 128,
        .host_slots = 300,
        .pager = {.page_max = 200, .policy = PLLM_POLICY_LRU},
    };
    assert_int_equal(pager_rig_open(NULL, &options, &rig), PLLM_OK);
    static pllm_page pages[200];
    make_pages(&rig, pages, 200);
    assert_int_equal(pllm_pager_settle(rig.pager), PLLM_OK);
    pllm_budget_stats budget;
    pllm_budget_stats_get(rig.budget, &budget);
    assert_int_equal(budget.charged_bytes, 128 * BYTES);
    assert_int_equal(pllm_pager_set_device_limit(rig.pager, 32 * BYTES), PLLM_OK);
    pllm_budget_stats_get(rig.budget, &budget);
    assert_int_equal(budget.charged_bytes, 2 * 65536);
    assert_int_equal(stats_of(&rig).resident, 32);
    pllm_pager_check(rig.pager);
    for (uint32_t i = 0; i < 200; i++) read_page(&rig, pages[i]);
    assert_int_equal(stats_of(&rig).resident, 32);
    /* Pins may stand in the way for now. */
    assert_int_equal(pllm_pager_pin(rig.pager, pages, 20, PLLM_PIN_READ, NULL), PLLM_OK);
    assert_int_equal(pllm_pager_set_device_limit(rig.pager, 16 * BYTES), PLLM_EBUSY);
    pllm_pager_unpin(rig.pager, pages, 20);
    for (uint32_t i = 0; i < 1000 && stats_of(&rig).resident > 16; i++)
        assert_int_equal(pllm_pager_poll(rig.pager), PLLM_OK);
    assert_int_equal(stats_of(&rig).resident, 16);
    assert_int_equal(pllm_pager_set_device_limit(rig.pager, 128 * BYTES), PLLM_OK);
    for (uint32_t i = 0; i < 200; i++) read_page(&rig, pages[i]);
    assert_int_equal(stats_of(&rig).resident, 128);
    pllm_pager_check(rig.pager);
    pager_rig_close(&rig);
}

static uint32_t unmap_calls;
static const pllm_device_ops *host_ops;

static void counted_unmap(pllm_device *device, pllm_va va, pllm_chunk *chunk)
{
    unmap_calls++;
    host_ops->unmap(device, va, chunk);
}

static void poll_evicts_and_only_tidy_unmaps(void **state)
{
    (void)state;
    pllm_device *device;
    pllm_host_device_options host = {.struct_bytes = sizeof host};
    assert_int_equal(pllm_device_open_host(NULL, &host, &device), PLLM_OK);
    host_ops = device->ops;
    pllm_device_ops ops = *host_ops;
    ops.unmap = counted_unmap;
    device->ops = &ops;
    pager_rig rig;
    pager_rig_options options = {
        .device = device,
        .frames = 128,
        .host_slots = 128,
        .pager = {.page_max = 128, .policy = PLLM_POLICY_LRU},
    };
    assert_int_equal(pager_rig_open(NULL, &options, &rig), PLLM_OK);
    pllm_page pages[128];
    pllm_budget_stats budget;
    make_pages(&rig, pages, 128);
    assert_int_equal(pllm_pager_pin(rig.pager, pages, 128, PLLM_PIN_READ, NULL), PLLM_OK);
    assert_int_equal(pllm_pager_set_device_limit(rig.pager, 16 * BYTES), PLLM_EBUSY);
    pllm_pager_unpin(rig.pager, pages, 128);
    /* The limit is reached while a step would run. */
    uint32_t before = unmap_calls;
    for (uint32_t i = 0; i < 100000 && stats_of(&rig).resident > 16; i++)
        assert_int_equal(pllm_pager_poll(rig.pager), PLLM_OK);
    assert_int_equal(stats_of(&rig).resident, 16);
    for (uint32_t i = 100; i < 128; i++) read_page(&rig, pages[i]);
    assert_int_equal(unmap_calls, before);
    pllm_pager_tidy(rig.pager);
    assert_true(unmap_calls > before);
    pllm_budget_stats_get(rig.budget, &budget);
    /* 16 frames of 4 KiB lie in one chunk of 64 KiB, or, by when they were taken, in two. */
    assert_true(budget.charged_bytes <= 2 * 65536);
    pllm_pager_check(rig.pager);
    before = unmap_calls;
    pllm_pager_tidy(rig.pager);
    assert_int_equal(unmap_calls, before);
    pager_rig_close(&rig);
    device->ops = host_ops;
    pllm_device_close(device);
}

static void hints_are_advice(void **state)
{
    (void)state;
    for (int kind = 0; kind < PLLM_POLICY_COUNT; kind++) {
        pager_rig rig = open_rig(8, 64, 0, 40, (pllm_policy_kind)kind, PLLM_PREFETCH_NONE);
        pllm_page pages[24];
        make_pages(&rig, pages, 24);
        read_page(&rig, pages[23]);
        pllm_pager_hint(rig.pager, pages + 23, 1, PLLM_KEEP);
        for (uint32_t i = 0; i < 23; i++) read_page(&rig, pages[i]);
        assert_true(pllm_pager_is_resident(rig.pager, pages[23]));
        read_page(&rig, pages[0]);
        pllm_pager_hint(rig.pager, pages, 1, PLLM_DONT_NEED);
        assert_int_equal(pllm_pager_evict(rig.pager, 1), 1);
        assert_false(pllm_pager_is_resident(rig.pager, pages[0]));
        pllm_pager_hint(rig.pager, pages, 2, PLLM_WILL_NEED);
        assert_int_equal(pllm_pager_settle(rig.pager), PLLM_OK);
        assert_true(pllm_pager_is_resident(rig.pager, pages[0]));
        pllm_pager_check(rig.pager);
        /* Wrong ones, over and over, cost no frame for ever. */
        for (uint32_t i = 0; i < 24; i++) {
            pllm_pager_hint(rig.pager, pages, 24, PLLM_WILL_NEED);
            pllm_pager_check(rig.pager);
            read_page(&rig, pages[i]);
            pllm_pager_check(rig.pager);
        }
        assert_int_equal(pllm_pager_pin(rig.pager, pages + 10, 8, PLLM_PIN_READ, NULL), PLLM_OK);
        pllm_pager_unpin(rig.pager, pages + 10, 8);
        pager_rig_close(&rig);
    }
}

static void freed_in_flight_is_freed_once(void **state)
{
    (void)state;
    pager_rig rig = open_rig(8, 64, 0, 30, PLLM_POLICY_LRU, PLLM_PREFETCH_SEQUENTIAL);
    pllm_page pages[30];
    for (uint32_t round = 0; round < 20; round++) {
        make_pages(&rig, pages, 30);
        pllm_page none;
        assert_int_equal(pllm_pager_page_new(rig.pager, PLLM_NONE, 0, &none), PLLM_ELIMIT);
        assert_int_equal(pllm_pager_scan(rig.pager, pages, 30), PLLM_OK);
        read_page(&rig, pages[round]);
        for (uint32_t i = 0; i < 30; i++) {
            pllm_pager_page_free(rig.pager, pages[i]);
            pllm_pager_check(rig.pager);
        }
        assert_int_equal(pllm_pager_settle(rig.pager), PLLM_OK);
        pllm_pager_stats stats = stats_of(&rig);
        assert_int_equal(stats.pages, 0);
        assert_true(stats.tiers.frames_used == 0 && stats.tiers.host_used == 0);
    }
    pager_rig_close(&rig);
}

/* A sequence cut back at full context and fed again: its pages are freed while they are written and
 * read, over a link so slow that none of that is over when new ones are made. */
static void a_number_freed_in_flight_can_be_had_at_once(void **state)
{
    (void)state;
    enum { N = 24 };
    pllm_device *device;
    pllm_host_device_options slow = {.struct_bytes = sizeof slow, .link_latency_ns = 2000000};
    assert_int_equal(pllm_device_open_host(NULL, &slow, &device), PLLM_OK);
    pager_rig rig;
    pager_rig_options options = {
        .device = device,
        .frames = 8,
        .host_slots = N,
        .pager = {.page_max = N, .prefetch = PLLM_PREFETCH_SEQUENTIAL},
    };
    assert_int_equal(pager_rig_open(NULL, &options, &rig), PLLM_OK);
    pllm_page pages[N], again[N];
    make_pages(&rig, pages, N);
    for (uint32_t round = 0; round < 3; round++) {
        assert_int_equal(pllm_pager_scan(rig.pager, pages, N), PLLM_OK); /* reads ahead */
        assert_int_equal(pllm_pager_poll(rig.pager), PLLM_OK);
        for (uint32_t i = 0; i < N; i++) pllm_pager_page_free(rig.pager, pages[i]);
        assert_true(stats_of(&rig).pages > 0); /* in flight, or this shows nothing */
        for (uint32_t i = 0; i < N; i++) {
            assert_int_equal(
                pllm_pager_page_new(rig.pager, i ? again[i - 1] : PLLM_NONE, i, &again[i]),
                PLLM_OK);
            pllm_pager_check(rig.pager);
        }
        assert_int_equal(pllm_pager_page_new(rig.pager, PLLM_NONE, 0, &pages[0]), PLLM_ELIMIT);
        for (uint32_t i = 0; i < N; i++) pllm_pager_page_free(rig.pager, again[i]);
        make_pages(&rig, pages, N);
    }
    pager_rig_close(&rig);
    pllm_device_close(device);
}

static void options_are_checked(void **state)
{
    (void)state;
    pager_rig rig;
    pager_rig_options options = {.frames = 4, .pager = {.page_max = 0}};
    assert_int_equal(pager_rig_open(NULL, &options, &rig), PLLM_EINVAL);
    options.pager = (pllm_pager_options){.page_max = 4, .policy = (pllm_policy_kind)7};
    assert_int_equal(pager_rig_open(NULL, &options, &rig), PLLM_EINVAL);
    pllm_prefetch_kind kind;
    assert_int_equal(pllm_prefetch_from_name("sequential", &kind), PLLM_OK);
    assert_int_equal(kind, PLLM_PREFETCH_SEQUENTIAL);
    assert_int_equal(pllm_prefetch_from_name("attentive", &kind), PLLM_EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(contents_survive_host_and_disk),
        cmocka_unit_test(an_open_page_is_rewritten_and_paged),
        cmocka_unit_test(streams_evicted_backwards_are_read_in_long_runs),
        cmocka_unit_test(slots_given_early_do_not_fill_the_disk),
        cmocka_unit_test(pins_are_all_or_none),
        cmocka_unit_test(try_pin_brings_pages_without_waiting),
        cmocka_unit_test(what_try_pin_missed_is_kept_until_used),
        cmocka_unit_test(without_room_for_homes_the_limit_is_named),
        cmocka_unit_test(a_cyclic_scan_keeps_a_fixed_share),
        cmocka_unit_test(reading_in_waves_loads_each_page_once),
        cmocka_unit_test(a_growing_scan_does_not_thrash),
        cmocka_unit_test(turning_away_frees_what_was_read_ahead),
        cmocka_unit_test(sealed_pages_are_written_under_pressure_only),
        cmocka_unit_test(the_limit_can_change_while_running),
        cmocka_unit_test(poll_evicts_and_only_tidy_unmaps),
        cmocka_unit_test(hints_are_advice),
        cmocka_unit_test(freed_in_flight_is_freed_once),
        cmocka_unit_test(a_number_freed_in_flight_can_be_had_at_once),
        cmocka_unit_test(options_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
