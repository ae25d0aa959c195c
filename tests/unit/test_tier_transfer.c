/* The transfer engine: pages come back as they went, in the order and with the failures that
 * transfer.h promises. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "tier_rig.h"

#define OK(call)                                                             \
    do {                                                                     \
        int status_ = (call);                                                \
        if (status_ < 0) fail_msg("%s: %s", #call, pllm_last_error()->text); \
    } while (0)

enum { DEVICE = PLLM_AT_DEVICE, HOST = PLLM_AT_HOST, DISK = PLLM_AT_DISK };

/* A sim device, a sim disk that may be spoiled, pages of 4 KiB. */
typedef struct sim_rig {
    tier_rig rig;
    pllm_device *device;
    pllm_disk *disk;
} sim_rig;

static void sim_open(sim_rig *sim, uint64_t seed, uint32_t frames, uint32_t slots,
                     const pllm_faulty_disk_options *faults)
{
    pllm_sim_device_options device = {
        .struct_bytes = sizeof device, .seed = seed, .latency_ns_max = 20000};
    OK(pllm_device_open_sim(NULL, &device, &sim->device));
    sim->disk = tier_rig_disk(NULL, sim->device, slots * 4096, seed, faults);
    assert_non_null(sim->disk);
    tier_rig_options options = {.device = sim->device,
                                .frames = frames,
                                .host_slots = slots,
                                .disk_slots = slots,
                                .disk = sim->disk};
    OK(tier_rig_open(NULL, &options, &sim->rig));
    for (uint32_t i = 0; i < frames; i++) {
        uint32_t frame;
        OK(pllm_tiers_frame_alloc(sim->rig.tiers, &frame));
        assert_int_equal(frame, i);
    }
    for (uint32_t i = 0, slot; i < slots; i++)
        for (uint32_t place = HOST; place <= DISK; place++)
            OK(pllm_tiers_slot_alloc(sim->rig.tiers, (pllm_place)place, i ? i - 1 : PLLM_NONE,
                                     &slot));
}

static void sim_close(sim_rig *sim)
{
    tier_rig_close(&sim->rig);
    pllm_device_close(sim->device);
}

static void sim_write(sim_rig *sim, uint32_t place, uint32_t slot, uint64_t content)
{
    tier_rig_fill(tier_rig_view(&sim->rig, 0), 4096, content);
    OK(tier_rig_move_now(&sim->rig, DEVICE, place, 0, slot, content));
}

/* Reads a slot into frame 0; the status; content checked when OK. */
static int sim_read(sim_rig *sim, uint32_t place, uint32_t slot, uint64_t tag, uint64_t content)
{
    memset(tier_rig_view(&sim->rig, 0), 0xee, 4096);
    int status = tier_rig_move_now(&sim->rig, place, DEVICE, 0, slot, tag);
    if (status == PLLM_OK)
        assert_true(tier_rig_matches(tier_rig_view(&sim->rig, 0), 4096, content));
    return status;
}

/* ---- round trips ---- */

/* Out to a place, frames freed and taken again in another order, back in, compared. */
static void round_trip(pllm_place place, uint64_t page_bytes, uint32_t count, pllm_disk_kind kind)
{
    tier_rig_options options = {.page_bytes = page_bytes,
                                .frames = count,
                                .host_slots = place == PLLM_AT_HOST ? count : 0,
                                .disk_slots = place == PLLM_AT_DISK ? count : 0,
                                .disk_kind = kind,
                                .folder = PLLM_BINARY_DIR};
    tier_rig rig;
    OK(tier_rig_open(NULL, &options, &rig));
    uint32_t *frames = calloc(count, sizeof *frames), *slots = calloc(count, sizeof *slots);
    pllm_ticket *tickets = calloc(count, sizeof *tickets);
    for (uint32_t i = 0; i < count; i++) {
        OK(pllm_tiers_frame_alloc(rig.tiers, &frames[i]));
        OK(pllm_tiers_slot_alloc(rig.tiers, place, i ? slots[i - 1] : PLLM_NONE, &slots[i]));
        tier_rig_fill(tier_rig_view(&rig, frames[i]), page_bytes, i);
        OK(tier_rig_move(&rig, DEVICE, place, frames[i], slots[i], PLLM_WRITE_BEHIND, i,
                         &tickets[i]));
    }
    for (uint32_t i = 0; i < count; i++) {
        OK(pllm_transfer_wait(rig.transfers, tickets[i], UINT64_MAX));
        pllm_transfer_release(rig.transfers, tickets[i]);
        memset(tier_rig_view(&rig, frames[i]), 0xee, page_bytes);
        pllm_tiers_frame_free(rig.tiers, frames[i]);
    }
    pllm_tiers_check(rig.tiers);
    for (uint32_t i = count; i-- > 0;) OK(pllm_tiers_frame_alloc(rig.tiers, &frames[i]));
    for (uint32_t i = 0; i < count; i++)
        OK(tier_rig_move(&rig, place, DEVICE, frames[i], slots[i], i % 2, i, &tickets[i]));
    while (pllm_transfers_pending(rig.transfers))
        assert_true(pllm_transfers_wait_any(rig.transfers, UINT64_MAX) > 0);
    for (uint32_t i = 0; i < count; i++) {
        assert_int_equal(pllm_transfer_state(rig.transfers, tickets[i]), 1);
        assert_true(tier_rig_matches(tier_rig_view(&rig, frames[i]), page_bytes, i));
    }
    pllm_transfers_check(rig.transfers);
    pllm_transfers_stats stats;
    pllm_transfers_stats_get(rig.transfers, &stats);
    assert_int_equal(stats.pages[DEVICE][place], count);
    assert_int_equal(stats.bytes[place][DEVICE], count * page_bytes);
    assert_int_equal(stats.disk_read_bytes, place == PLLM_AT_DISK ? count * page_bytes : 0);
    assert_true(stats.merged_runs > 0 && stats.failed == 0);
    free(frames), free(slots), free(tickets);
    tier_rig_close(&rig);
}

static void test_host_round_trips(void **state)
{
    (void)state;
    round_trip(PLLM_AT_HOST, 4096, 700, PLLM_DISK_AUTO);
    round_trip(PLLM_AT_HOST, 24 << 10, 300, PLLM_DISK_AUTO);
    round_trip(PLLM_AT_HOST, 96 << 10, 150, PLLM_DISK_AUTO);
}

static void test_disk_round_trips(void **state)
{
    (void)state;
    for (pllm_disk_kind kind = PLLM_DISK_URING; kind <= PLLM_DISK_PREAD; kind++) {
        if (kind == PLLM_DISK_URING && !tier_rig_has_uring()) continue;
        round_trip(PLLM_AT_DISK, 4096, 700, kind);
        round_trip(PLLM_AT_DISK, 24 << 10, 300, kind);
        round_trip(PLLM_AT_DISK, 96 << 10, 150, kind);
    }
}

/* ---- order ---- */

/* 64 neighbouring pages go to disk in one write and come back in one read; strangers do not. */
/* Memory of the caller's own in place of a frame, and the first bytes of a page only: what lies
 * behind them is not touched, neither there nor (host) in the slot. */
static void test_own_memory_and_parts(void **state)
{
    (void)state;
    enum { PART = 1000 };
    sim_rig sim;
    sim_open(&sim, 5, 4, 4, NULL);
    pllm_va own = pllm_tiers_frame_va(sim.rig.tiers, 2);
    char *view = tier_rig_view(&sim.rig, 2);
    for (uint32_t place = HOST; place <= DISK; place++) {
        pllm_transfer transfer = {.from = PLLM_AT_DEVICE,
                                  .to = (pllm_place)place,
                                  .frame = 3,
                                  .slot = 1,
                                  .tag = 9,
                                  .va = own,
                                  .bytes = PART};
        pllm_ticket ticket;
        tier_rig_fill(tier_rig_view(&sim.rig, 3), 4096, 1); /* not what is meant */
        tier_rig_fill(view, 4096, 2);
        OK(pllm_transfer_submit(sim.rig.transfers, &transfer, &ticket));
        OK(pllm_transfer_wait(sim.rig.transfers, ticket, UINT64_MAX));
        pllm_transfer_release(sim.rig.transfers, ticket);
        memset(view, 0x55, 4096);
        transfer.from = (pllm_place)place;
        transfer.to = PLLM_AT_DEVICE;
        OK(pllm_transfer_submit(sim.rig.transfers, &transfer, &ticket));
        OK(pllm_transfer_wait(sim.rig.transfers, ticket, UINT64_MAX));
        pllm_transfer_release(sim.rig.transfers, ticket);
        assert_true(tier_rig_matches(view, PART, 2));
        for (uint32_t i = PART; i < 4096; i++) assert_int_equal(view[i], 0x55);
        assert_true(tier_rig_matches(tier_rig_view(&sim.rig, 3), 4096, 1));
        transfer.bytes = 4097;
        assert_int_equal(pllm_transfer_submit(sim.rig.transfers, &transfer, &ticket), PLLM_EINVAL);
        transfer.bytes = 0;
        transfer.va = 0;
        transfer.frame = 4; /* there is none */
        assert_int_equal(pllm_transfer_submit(sim.rig.transfers, &transfer, &ticket), PLLM_EINVAL);
    }
    pllm_transfers_stats stats;
    pllm_transfers_stats_get(sim.rig.transfers, &stats);
    assert_int_equal(stats.bytes[DEVICE][HOST], PART);
    sim_close(&sim);
}

static void test_neighbours_merge(void **state)
{
    (void)state;
    sim_rig sim;
    sim_open(&sim, 1, 64, 128, NULL);
    pllm_ticket tickets[64];
    for (uint32_t pass = 0; pass < 2; pass++) {
        for (uint32_t i = 0; i < 64; i++) /* odd order: neighbours are found, not just adjacent */
            OK(tier_rig_move(&sim.rig, pass ? DISK : DEVICE, pass ? DEVICE : DISK, i, (i * 37) % 64,
                             PLLM_PREFETCH, i, &tickets[i]));
        for (uint32_t i = 0; i < 64; i++) {
            OK(pllm_transfer_wait(sim.rig.transfers, tickets[i], UINT64_MAX));
            pllm_transfer_release(sim.rig.transfers, tickets[i]);
        }
    }
    pllm_faulty_disk_stats disk;
    pllm_faulty_disk_stats_get(sim.disk, &disk);
    assert_int_equal(disk.writes, 1);
    assert_int_equal(disk.reads, 1);
    for (uint32_t i = 0; i < 32; i++) /* every other slot: no two are neighbours */
        OK(tier_rig_move(&sim.rig, DISK, DEVICE, i, i * 2, PLLM_PREFETCH, (i * 2 * 45) % 64,
                         &tickets[i]));
    while (pllm_transfers_pending(sim.rig.transfers))
        pllm_transfers_wait_any(sim.rig.transfers, UINT64_MAX);
    pllm_faulty_disk_stats_get(sim.disk, &disk);
    assert_int_equal(disk.reads, 1 + 32);
    sim_close(&sim);
}

/* The disk has about 2 MiB of reads at a time: what waits may still merge, and what comes with one
 * of them is not as much as a frame cache. As one is over the next goes. */
static void test_few_long_reads_in_flight(void **state)
{
    (void)state;
    enum { COUNT = 6 * 256, EXTENT = 256 };
    sim_rig sim;
    sim_open(&sim, 5, COUNT, COUNT, NULL);
    pllm_ticket *tickets = calloc(COUNT, sizeof *tickets);
    pllm_faulty_disk_stats disk;
    uint64_t writes = 0;
    for (uint32_t pass = 0; pass < 2; pass++) {
        for (uint32_t i = 0; i < COUNT; i++)
            OK(tier_rig_move(&sim.rig, pass ? DISK : DEVICE, pass ? DEVICE : DISK, i, i,
                             PLLM_PREFETCH, i, &tickets[i]));
        while (pllm_transfers_pending(sim.rig.transfers)) {
            (void)pllm_transfers_poll(sim.rig.transfers);
            pllm_transfers_check(sim.rig.transfers);
            pllm_faulty_disk_stats_get(sim.disk, &disk);
            if (pass == 0) writes = disk.writes;
            uint64_t bytes_over = 0;
            for (uint32_t i = 0; pass && i < COUNT; i++)
                if (pllm_transfer_state(sim.rig.transfers, tickets[i]) == 1) bytes_over += 4096;
            /* Under way: two extents in the disk, and what is being copied in from staging. */
            if (pass) assert_true(disk.reads <= 2 + 2 + bytes_over / (EXTENT * 4096));
            if (pass) assert_true(disk.reads >= 2);
        }
        for (uint32_t i = 0; i < COUNT; i++) pllm_transfer_release(sim.rig.transfers, tickets[i]);
    }
    assert_true(writes > 0);
    pllm_faulty_disk_stats_get(sim.disk, &disk);
    assert_in_range(disk.reads, 6, 8); /* staging may cut one */
    free(tickets);
    sim_close(&sim);
}

/* What is demanded late comes before most of what was queued for prefetch; write-behind last. */
static void demand_overtakes(uint32_t place)
{
    sim_rig sim;
    enum { COUNT = 3000, WIDE = 2 }; /* more than may be in flight; slots apart, so no merging */
    sim_open(&sim, 2, 64, COUNT * WIDE, NULL);
    pllm_ticket *tickets = calloc(COUNT, sizeof *tickets), demanded, promoted;
    for (uint32_t i = 0; i < COUNT; i++)
        OK(tier_rig_move(&sim.rig, DEVICE, place, i % 60, i * WIDE, PLLM_DEMAND, i, &tickets[i]));
    while (pllm_transfers_pending(sim.rig.transfers))
        pllm_transfers_wait_any(sim.rig.transfers, UINT64_MAX);
    for (uint32_t i = 0; i < COUNT; i++) pllm_transfer_release(sim.rig.transfers, tickets[i]);
    for (uint32_t i = 0; i < COUNT - 1; i++)
        OK(tier_rig_move(&sim.rig, place, DEVICE, i % 60, i * WIDE, PLLM_PREFETCH, i, &tickets[i]));
    pllm_transfers_poll(sim.rig.transfers);
    promoted = tickets[COUNT - 2];
    pllm_transfer_promote(sim.rig.transfers, promoted, PLLM_DEMAND);
    OK(tier_rig_move(&sim.rig, place, DEVICE, 61, (COUNT - 1) * WIDE, PLLM_DEMAND, COUNT - 1,
                     &demanded));
    OK(pllm_transfer_wait(sim.rig.transfers, demanded, UINT64_MAX));
    uint32_t before = COUNT - pllm_transfers_pending(sim.rig.transfers);
    assert_true(before < COUNT * 3 / 4);
    OK(pllm_transfer_wait(sim.rig.transfers, promoted, UINT64_MAX));
    assert_true(COUNT - pllm_transfers_pending(sim.rig.transfers) < COUNT * 3 / 4 + 64);
    free(tickets);
    sim_close(&sim);
}

static void test_demand_overtakes(void **state)
{
    (void)state;
    demand_overtakes(PLLM_AT_HOST);
    demand_overtakes(PLLM_AT_DISK);
}

/* A read behind a write of the same slot sees the written bytes, a write behind a read leaves the
 * read what was there before; for both places, however the clock falls. */
static void test_same_slot_keeps_order(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 20; seed++) {
        sim_rig sim;
        sim_open(&sim, seed, 8, 16, NULL);
        for (uint32_t place = HOST; place <= DISK; place++) {
            pllm_ticket tickets[5];
            for (uint32_t i = 0; i < 5; i++)
                tier_rig_fill(tier_rig_view(&sim.rig, i), 4096, 100 + i);
            sim_write(&sim, place, 3, 7);
            tier_rig_fill(tier_rig_view(&sim.rig, 0), 4096, 100);
            OK(tier_rig_move(&sim.rig, place, DEVICE, 5, 3, PLLM_WRITE_BEHIND, 7, &tickets[0]));
            OK(tier_rig_move(&sim.rig, DEVICE, place, 0, 3, PLLM_WRITE_BEHIND, 8, &tickets[1]));
            OK(tier_rig_move(&sim.rig, DEVICE, place, 1, 3, PLLM_PREFETCH, 9, &tickets[2]));
            OK(tier_rig_move(&sim.rig, place, DEVICE, 6, 3, PLLM_DEMAND, 9, &tickets[3]));
            OK(tier_rig_move(&sim.rig, place, DEVICE, 7, 3, PLLM_DEMAND, 9, &tickets[4]));
            OK(pllm_transfer_cancel(sim.rig.transfers, tickets[1])); /* from the middle */
            for (uint32_t i = 0; i < 5; i++) {
                if (i != 1) OK(pllm_transfer_wait(sim.rig.transfers, tickets[i], UINT64_MAX));
                pllm_transfer_release(sim.rig.transfers, tickets[i]);
            }
            assert_true(tier_rig_matches(tier_rig_view(&sim.rig, 5), 4096, 7));
            assert_true(tier_rig_matches(tier_rig_view(&sim.rig, 6), 4096, 101));
            assert_true(tier_rig_matches(tier_rig_view(&sim.rig, 7), 4096, 101));
        }
        pllm_transfers_check(sim.rig.transfers);
        sim_close(&sim);
    }
}

/* ---- tickets ---- */

static void test_tickets(void **state)
{
    (void)state;
    tier_rig rig;
    tier_rig_options options = {.frames = 4, .host_slots = 4, .ticket_max = 2};
    OK(tier_rig_open(NULL, &options, &rig));
    uint32_t frame, slot;
    OK(pllm_tiers_frame_alloc(rig.tiers, &frame));
    OK(pllm_tiers_slot_alloc(rig.tiers, PLLM_AT_HOST, PLLM_NONE, &slot));
    pllm_ticket a, b, c;
    OK(tier_rig_move(&rig, DEVICE, HOST, frame, slot, PLLM_DEMAND, 0, &a));
    OK(tier_rig_move(&rig, HOST, DEVICE, frame, slot, PLLM_DEMAND, 0, &b));
    assert_int_equal(tier_rig_move(&rig, HOST, DEVICE, frame, slot, PLLM_DEMAND, 0, &c),
                     PLLM_EBUSY);
    assert_int_equal(c, 0);
    assert_int_equal(pllm_transfer_state(rig.transfers, a), 0); /* queued: nothing polls yet */
    assert_int_equal(pllm_transfer_wait(rig.transfers, b, 0), PLLM_ETIMEDOUT);
    pllm_transfer_release(rig.transfers, a); /* under way: forgotten when over */
    assert_int_equal(pllm_transfer_state(rig.transfers, a), PLLM_ESTALE);
    OK(pllm_transfer_wait(rig.transfers, b, UINT64_MAX));
    assert_int_equal(pllm_transfer_cancel(rig.transfers, b), PLLM_EBUSY);
    pllm_transfer_release(rig.transfers, b);
    OK(tier_rig_move(&rig, DEVICE, HOST, frame, slot, PLLM_DEMAND, 0, &c));
    assert_true(c != a && c != b);
    assert_int_equal(pllm_transfer_wait(rig.transfers, a, UINT64_MAX), PLLM_ESTALE);
    assert_int_equal(pllm_transfer_cancel(rig.transfers, b), PLLM_ESTALE);
    pllm_transfer_release(rig.transfers, b); /* must not forget c */
    pllm_transfer_promote(rig.transfers, b, PLLM_DEMAND);
    OK(pllm_transfer_cancel(rig.transfers, c));
    assert_int_equal(pllm_transfer_state(rig.transfers, c), PLLM_ECANCELED);
    pllm_transfer_release(rig.transfers, c);
    assert_int_equal(pllm_transfer_state(rig.transfers, 0), PLLM_ESTALE);
    assert_int_equal(pllm_transfers_wait_any(rig.transfers, UINT64_MAX), 0);
    tier_rig_close(&rig);
}

static void test_nonsense_is_refused(void **state)
{
    (void)state;
    tier_rig rig;
    tier_rig_options options = {.frames = 4, .host_slots = 4};
    OK(tier_rig_open(NULL, &options, &rig));
    pllm_ticket ticket;
    assert_int_equal(tier_rig_move(&rig, HOST, HOST, 0, 0, 0, 0, &ticket), PLLM_EINVAL);
    assert_int_equal(tier_rig_move(&rig, HOST, DISK, 0, 0, 0, 0, &ticket), PLLM_EINVAL);
    assert_int_equal(tier_rig_move(&rig, DEVICE, DISK, 0, 0, 0, 0, &ticket), PLLM_EINVAL);
    assert_int_equal(tier_rig_move(&rig, DEVICE, HOST, 0, 4, 0, 0, &ticket), PLLM_EINVAL);
    assert_int_equal(tier_rig_move(&rig, DEVICE, HOST, 4, 0, 0, 0, &ticket), PLLM_EINVAL);
    assert_int_equal(tier_rig_move(&rig, DEVICE, HOST, 0, 0, 3, 0, &ticket), PLLM_EINVAL);
    /* a frame that has no memory behind it: the device refuses, the ticket says so */
    assert_int_equal(tier_rig_move_now(&rig, DEVICE, HOST, 3, 0, 0), PLLM_EINVAL);
    tier_rig_close(&rig);
}

/* ---- bad disks ---- */

static void expect_text(int status, int expected, const char *part)
{
    assert_int_equal(status, expected);
    if (!strstr(pllm_last_error()->text, part))
        fail_msg("\"%s\" does not say \"%s\"", pllm_last_error()->text, part);
}

/* A changed bit, a torn write, a lost write, a page asked for under another name or never written:
 * each is found, and only it. */
static void test_wrong_bytes_are_found(void **state)
{
    (void)state;
    sim_rig sim;
    sim_open(&sim, 5, 16, 32, NULL);
    pllm_faulty_disk_options *faults = pllm_faulty_disk_options_of(sim.disk);
    pllm_faulty_disk_stats stats;
    sim_write(&sim, DISK, 1, 1);
    assert_int_equal(sim_read(&sim, DISK, 1, 1, 1), PLLM_OK);
    expect_text(sim_read(&sim, DISK, 1, 2, 1), PLLM_ECORRUPT, "a simulated folder");
    assert_int_equal(sim_read(&sim, DISK, 2, 1, 1), PLLM_ECORRUPT); /* never written */
    pllm_faulty_disk_stats_get(sim.disk, &stats);
    faults->corrupt_read_at = stats.reads;
    assert_int_equal(sim_read(&sim, DISK, 1, 1, 1), PLLM_ECORRUPT);
    assert_int_equal(sim_read(&sim, DISK, 1, 1, 1), PLLM_OK);
    pllm_faulty_disk_stats_get(sim.disk, &stats);
    faults->lose_write_at = stats.writes;
    tier_rig_fill(tier_rig_view(&sim.rig, 0), 4096, 2); /* the next version of page 1: lost */
    OK(tier_rig_move_now(&sim.rig, DEVICE, DISK, 0, 1, 1));
    assert_int_equal(sim_read(&sim, DISK, 1, 1, 1), PLLM_ECORRUPT);
    /* of sixteen pages read in one run, the torn half fails, the others arrive */
    pllm_faulty_disk_stats_get(sim.disk, &stats);
    faults->tear_write_at = stats.writes;
    pllm_ticket tickets[16];
    for (uint32_t pass = 0; pass < 2; pass++)
        for (uint32_t i = 0; i < 16; i++) {
            if (!pass) tier_rig_fill(tier_rig_view(&sim.rig, i), 4096, i);
            if (pass) OK(pllm_transfer_wait(sim.rig.transfers, tickets[i], UINT64_MAX));
            if (pass) pllm_transfer_release(sim.rig.transfers, tickets[i]);
            OK(tier_rig_move(&sim.rig, pass ? DISK : DEVICE, pass ? DEVICE : DISK, i, 8 + i,
                             PLLM_DEMAND, i, &tickets[i]));
        }
    for (uint32_t i = 0; i < 16; i++)
        assert_int_equal(pllm_transfer_wait(sim.rig.transfers, tickets[i], UINT64_MAX),
                         i < 8 ? PLLM_OK : PLLM_ECORRUPT);
    pllm_transfers_stats transfers;
    pllm_transfers_stats_get(sim.rig.transfers, &transfers);
    assert_int_equal(transfers.corrupt, 4 + 8);
    sim_close(&sim);
}

/* One bad page in the middle of a merged run fails alone; the error names folder and cause. */
static void test_bad_sector_fails_alone(void **state)
{
    (void)state;
    sim_rig sim;
    sim_open(&sim, 6, 16, 32, NULL);
    pllm_faulty_disk_options *faults = pllm_faulty_disk_options_of(sim.disk);
    pllm_faulty_disk_stats stats;
    pllm_ticket tickets[16];
    for (uint32_t direction = 0; direction < 2; direction++) {
        pllm_faulty_disk_stats_get(sim.disk, &stats);
        faults->fail_at = stats.requests; /* the merged run fails: everyone is tried alone */
        for (uint32_t i = 0; i < 16; i++) {
            tier_rig_fill(tier_rig_view(&sim.rig, i), 4096, i);
            OK(tier_rig_move(&sim.rig, direction ? DISK : DEVICE, direction ? DEVICE : DISK, i, i,
                             PLLM_DEMAND, i, &tickets[i]));
        }
        for (uint32_t i = 0; i < 16; i++) {
            OK(pllm_transfer_wait(sim.rig.transfers, tickets[i], UINT64_MAX));
            pllm_transfer_release(sim.rig.transfers, tickets[i]);
            assert_true(tier_rig_matches(tier_rig_view(&sim.rig, i), 4096, i));
        }
    }
    pllm_faulty_disk_stats_get(sim.disk, &stats);
    assert_int_equal(stats.requests, 2 * 17);
    faults->fail_at = stats.requests; /* alone, and for good */
    expect_text(sim_read(&sim, DISK, 3, 3, 3), PLLM_EIO, "could not be read back");
    expect_text(pllm_last_error()->status, PLLM_EIO, "a simulated folder");
    assert_int_equal(sim_read(&sim, DISK, 3, 3, 3), PLLM_OK);
    pllm_faulty_disk_stats_get(sim.disk, &stats);
    faults->fail_at = stats.requests;
    faults->native = 28; /* ENOSPC */
    tier_rig_fill(tier_rig_view(&sim.rig, 0), 4096, 9);
    int status = tier_rig_move_now(&sim.rig, DEVICE, DISK, 0, 3, 9);
    expect_text(status, PLLM_EIO, "No space left");
    assert_int_equal(sim_read(&sim, DISK, 3, 9, 9), PLLM_ECORRUPT); /* never the old page */
    assert_int_equal(sim_read(&sim, DISK, 3, 3, 3), PLLM_ECORRUPT);
    sim_close(&sim);
}

/* A read queued behind a write that fails does not get what was there before. */
static void test_read_behind_failed_write(void **state)
{
    (void)state;
    sim_rig sim;
    pllm_faulty_disk_options faults = pllm_faulty_disk_none();
    faults.fail_at = 1;
    sim_open(&sim, 7, 4, 8, &faults);
    sim_write(&sim, DISK, 0, 5);
    pllm_ticket tickets[3];
    OK(tier_rig_move(&sim.rig, DEVICE, DISK, 0, 0, PLLM_DEMAND, 5, &tickets[0]));
    OK(tier_rig_move(&sim.rig, DISK, DEVICE, 1, 0, PLLM_DEMAND, 5, &tickets[1]));
    OK(tier_rig_move(&sim.rig, DISK, DEVICE, 2, 0, PLLM_DEMAND, 5, &tickets[2]));
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(pllm_transfer_wait(sim.rig.transfers, tickets[i], UINT64_MAX), PLLM_EIO);
    sim_close(&sim);
}

/* A write that fails before it reaches the disk takes the page that was there with it: its owner
 * believes to have newer bytes, and must never get the older ones. */
static void test_failed_write_leaves_nothing(void **state)
{
    (void)state;
    sim_rig sim;
    pllm_device *inner;
    pllm_sim_device_options device = {.struct_bytes = sizeof device, .latency_ns_max = 1000};
    pllm_faulty_device_options faulty = {.struct_bytes = sizeof faulty, .fail_at = UINT64_MAX};
    for (faulty.fail_async = 0; faulty.fail_async < 2; faulty.fail_async++) {
        OK(pllm_device_open_sim(NULL, &device, &inner));
        OK(pllm_device_open_faulty(NULL, inner, &faulty, &sim.device));
        sim.disk = tier_rig_disk(NULL, sim.device, 4 * 4096, 1, NULL);
        tier_rig_options options = {
            .device = sim.device, .frames = 4, .disk_slots = 4, .disk = sim.disk};
        OK(tier_rig_open(NULL, &options, &sim.rig));
        uint32_t index;
        OK(pllm_tiers_frame_alloc(sim.rig.tiers, &index));
        OK(pllm_tiers_slot_alloc(sim.rig.tiers, PLLM_AT_DISK, PLLM_NONE, &index));
        sim_write(&sim, DISK, 0, 5);
        tier_rig_fill(tier_rig_view(&sim.rig, 0), 4096, 6);
        pllm_faulty_device_arm(sim.device, 0); /* the copy out */
        assert_int_equal(tier_rig_move_now(&sim.rig, DEVICE, DISK, 0, 0, 5), PLLM_EDEVICE);
        assert_int_equal(sim_read(&sim, DISK, 0, 5, 5), PLLM_ECORRUPT);
        sim_write(&sim, DISK, 0, 5); /* the stream works again */
        assert_int_equal(sim_read(&sim, DISK, 0, 5, 5), PLLM_OK);
        sim_close(&sim);
        pllm_device_close(inner);
    }
}

/* The disk goes away in the middle: every page that needs it fails, none hangs, host goes on. */
static void test_disk_dies(void **state)
{
    (void)state;
    for (uint32_t how = 0; how < 3; how++) {
        sim_rig sim;
        sim_open(&sim, 8, 64, 4096, NULL);
        pllm_faulty_disk_options *faults = pllm_faulty_disk_options_of(sim.disk);
        pllm_faulty_disk_stats stats;
        pllm_ticket tickets[2000];
        for (uint32_t i = 0; i < 2000; i++)
            OK(tier_rig_move(&sim.rig, DEVICE, DISK, i % 64, i * 2, PLLM_DEMAND, i, &tickets[i]));
        for (uint32_t i = 0; i < 10; i++) pllm_transfers_poll(sim.rig.transfers);
        pllm_faulty_disk_stats_get(sim.disk, &stats);
        if (how == 0) faults->fail_at = stats.requests, faults->persistent = 1;
        if (how == 1) faults->fail_poll_at = stats.polls;
        if (how == 2) faults->fail_submit_at = stats.submits;
        uint32_t failed = 0;
        for (uint32_t i = 0; i < 2000; i++)
            failed += pllm_transfer_wait(sim.rig.transfers, tickets[i], UINT64_MAX) == PLLM_EIO;
        assert_true(how == 2 ? failed == 1 : failed > 100);
        sim_write(&sim, HOST, 0, 1);
        assert_int_equal(sim_read(&sim, HOST, 0, 1, 1), PLLM_OK);
        pllm_transfers_check(sim.rig.transfers);
        sim_close(&sim);
    }
}

/* A disk whose poll failed was given up, but it goes on with what it has: closing waits for that.
 */
static void test_close_after_the_disk_died(void **state)
{
    (void)state;
    sim_rig sim;
    sim_open(&sim, 3, 64, 256, NULL);
    pllm_faulty_disk_options *faults = pllm_faulty_disk_options_of(sim.disk);
    pllm_faulty_disk_stats stats;
    pllm_ticket tickets[64];
    for (uint32_t i = 0; i < 64; i++)
        OK(tier_rig_move(&sim.rig, DEVICE, DISK, i, i * 3, PLLM_DEMAND, i, &tickets[i]));
    do {
        pllm_transfers_wait_any(sim.rig.transfers, 0);
        pllm_faulty_disk_stats_get(sim.disk, &stats);
    } while (stats.requests < 10);
    faults->fail_poll_at = stats.polls;
    faults->native = ENXIO;
    for (uint32_t i = 0; i < 64; i++)
        (void)pllm_transfer_wait(sim.rig.transfers, tickets[i], UINT64_MAX);
    assert_int_equal(pllm_transfer_state(sim.rig.transfers, tickets[63]), PLLM_EIO);
    /* Ever after it says what ended it, not what this thread failed at meanwhile. */
    pllm_fail(PLLM_EIO, ENOSPC, "another disk is full");
    expect_text(tier_rig_move_now(&sim.rig, DISK, DEVICE, 0, 200, 200), PLLM_EIO, strerror(ENXIO));
    pllm_fail(PLLM_EIO, ENOSPC, "another disk is full");
    expect_text(tier_rig_move_now(&sim.rig, DEVICE, DISK, 0, 201, 201), PLLM_EIO, strerror(ENXIO));
    pllm_transfers_close(sim.rig.transfers);
    sim.rig.transfers = NULL;
    pllm_disk_completion left[64];
    assert_int_equal(sim.disk->ops->poll(sim.disk, left, 64, UINT64_MAX), 0);
    sim_close(&sim);
}

/* Closing with everything under way waits for it; nothing is written to freed memory (asan). */
static void test_close_in_flight(void **state)
{
    (void)state;
    tier_rig rig;
    tier_rig_options options = {
        .frames = 300, .host_slots = 300, .disk_slots = 300, .folder = PLLM_BINARY_DIR};
    OK(tier_rig_open(NULL, &options, &rig));
    for (uint32_t i = 0; i < 300; i++) {
        uint32_t frame, slot;
        pllm_ticket ticket;
        OK(pllm_tiers_frame_alloc(rig.tiers, &frame));
        OK(pllm_tiers_slot_alloc(rig.tiers, (pllm_place)(1 + i % 2), PLLM_NONE, &slot));
        OK(tier_rig_move(&rig, DEVICE, 1 + i % 2, frame, slot, PLLM_DEMAND, i, &ticket));
        if (i % 50 == 49) pllm_transfers_poll(rig.transfers);
    }
    tier_rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_host_round_trips),
        cmocka_unit_test(test_disk_round_trips),
        cmocka_unit_test(test_own_memory_and_parts),
        cmocka_unit_test(test_neighbours_merge),
        cmocka_unit_test(test_few_long_reads_in_flight),
        cmocka_unit_test(test_demand_overtakes),
        cmocka_unit_test(test_same_slot_keeps_order),
        cmocka_unit_test(test_tickets),
        cmocka_unit_test(test_nonsense_is_refused),
        cmocka_unit_test(test_wrong_bytes_are_found),
        cmocka_unit_test(test_bad_sector_fails_alone),
        cmocka_unit_test(test_read_behind_failed_write),
        cmocka_unit_test(test_failed_write_leaves_nothing),
        cmocka_unit_test(test_disk_dies),
        cmocka_unit_test(test_close_after_the_disk_died),
        cmocka_unit_test(test_close_in_flight),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
