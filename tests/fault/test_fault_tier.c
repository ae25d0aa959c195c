/* Goal: whichever device call, allocation or disk call fails, once, the tiers and transfers end in
 * a status or in the right bytes; nothing leaks, nothing hangs.
 * Method: one scenario (open, pages out to host and disk, back in, limit lowered and trimmed,
 * close) is run with call 0, 1, 2, ... failing until a run meets no fault. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "failing_context.h"
#include "tier_rig.h"

enum { PAGES = 24, FLOOR_DEVICE = 60, FLOOR_MEMORY = 20, FLOOR_DISK = 8 };

typedef struct scenario {
    const pllm_context *context;
    pllm_device *device;
    const pllm_faulty_disk_options *faults; /* of a simulated disk; NULL: a real disk of kind */
    pllm_disk_kind kind;
    uint32_t arrived, failed;
} scenario;

/* Moves every page; the tickets' outcomes go to statuses. */
static void move_all(scenario *s, tier_rig *rig, const uint32_t *frames, uint32_t slots[3][PAGES],
                     int inward, int *statuses)
{
    pllm_ticket tickets[PAGES];
    for (uint32_t i = 0; i < PAGES; i++) {
        uint32_t place = 1 + i % 2;
        if (!inward) tier_rig_fill(tier_rig_view(rig, frames[i]), 4096, i);
        if (inward) memset(tier_rig_view(rig, frames[i]), 0xee, 4096);
        tickets[i] = 0;
        if (inward && statuses[i] < 0) continue;
        statuses[i] =
            tier_rig_move(rig, inward ? place : PLLM_AT_DEVICE, inward ? PLLM_AT_DEVICE : place,
                          frames[i], slots[place][i], i % 3, i, &tickets[i]);
    }
    for (uint32_t i = 0; i < PAGES; i++) {
        if (!tickets[i]) continue;
        statuses[i] = pllm_transfer_wait(rig->transfers, tickets[i], UINT64_MAX);
        pllm_transfer_release(rig->transfers, tickets[i]);
    }
    assert_int_equal(pllm_transfers_pending(rig->transfers), 0);
    for (uint32_t i = 0; i < PAGES; i++) {
        s->failed += statuses[i] < 0;
        if (!inward || statuses[i] < 0) continue;
        assert_true(tier_rig_matches(tier_rig_view(rig, frames[i]), 4096, i));
        s->arrived++;
    }
    pllm_transfers_check(rig->transfers);
}

static int scenario_run(scenario *s)
{
    uint32_t frames[PAGES], slots[3][PAGES];
    int statuses[PAGES], status = PLLM_OK;
    tier_rig rig;
    pllm_disk *disk = NULL;
    s->arrived = s->failed = 0;
    if (s->faults) {
        disk = tier_rig_disk(s->context, NULL, PAGES * 4096, 1, s->faults);
        if (!disk) return PLLM_ENOMEM;
    }
    tier_rig_options options = {.device = s->device,
                                .frames = PAGES,
                                .host_slots = PAGES,
                                .disk_slots = PAGES,
                                .disk = disk,
                                .disk_kind = s->kind,
                                .folder = PLLM_BINARY_DIR,
                                .staging_count = 1};
    status = tier_rig_open(s->context, &options, &rig);
    if (status < 0) return status;
    for (uint32_t i = 0; i < PAGES && status == PLLM_OK; i++) {
        status = pllm_tiers_frame_alloc(rig.tiers, &frames[i]);
        for (uint32_t place = 1; place <= 2 && status == PLLM_OK; place++)
            status = pllm_tiers_slot_alloc(rig.tiers, (pllm_place)place,
                                           i ? slots[place][i - 1] : PLLM_NONE, &slots[place][i]);
    }
    if (status == PLLM_OK) {
        move_all(s, &rig, frames, slots, 0, statuses);
        move_all(s, &rig, frames, slots, 1, statuses);
        for (uint32_t i = PAGES / 2; i < PAGES; i++) pllm_tiers_frame_free(rig.tiers, frames[i]);
        pllm_tiers_set_device_limit(rig.tiers, PAGES / 2 * 4096);
        pllm_tiers_trim(rig.tiers);
        pllm_tiers_check(rig.tiers);
        if (s->failed) status = PLLM_EIO; /* some kind of failure was seen */
    }
    tier_rig_close(&rig);
    return status;
}

/* device: sim, so that every order replays; at once, then by event. */
static void test_every_device_call(void **state)
{
    (void)state;
    for (uint32_t async = 0; async < 2; async++) {
        uint64_t call = 0;
        for (;; call++) {
            pllm_sim_device_options sim = {
                .struct_bytes = sizeof sim, .seed = call, .latency_ns_max = 1000};
            pllm_device *inner, *device;
            assert_int_equal(pllm_device_open_sim(NULL, &sim, &inner), PLLM_OK);
            pllm_faulty_device_options faulty = {
                .struct_bytes = sizeof faulty, .fail_at = call, .fail_async = async};
            assert_int_equal(pllm_device_open_faulty(NULL, inner, &faulty, &device), PLLM_OK);
            pllm_faulty_disk_options none = pllm_faulty_disk_none();
            scenario s = {.device = device, .faults = &none};
            int status = scenario_run(&s);
            int hit = pllm_faulty_device_calls(device) > call;
            if (!hit) assert_int_equal(status, PLLM_OK);
            if (!hit) assert_int_equal(s.arrived, PAGES);
            assert_int_equal(pllm_faulty_device_live(device), 0);
            pllm_device_close(device);
            pllm_device_close(inner);
            if (!hit) break;
        }
        print_message("device calls failed, %s: %llu\n", async ? "by event" : "at once",
                      (unsigned long long)call);
        assert_true(call >= FLOOR_DEVICE);
    }
}

static void each_allocation(pllm_disk_kind kind, const pllm_faulty_disk_options *faults)
{
    pllm_device *device;
    pllm_host_device_options host = {.struct_bytes = sizeof host};
    assert_int_equal(pllm_device_open_host(NULL, &host, &device), PLLM_OK);
    uint64_t call = 0;
    for (;; call++) {
        failing_context failing;
        failing_context_init(&failing, call);
        scenario s = {
            .context = &failing.context, .device = device, .faults = faults, .kind = kind};
        int status = scenario_run(&s);
        int hit = failing_context_hit(&failing);
        if (!hit) assert_int_equal(status, PLLM_OK);
        failing_context_check(&failing);
        if (!hit) break;
    }
    pllm_device_close(device);
    print_message("allocations failed: %llu\n", (unsigned long long)call);
    assert_true(call >= FLOOR_MEMORY);
}

static void test_every_allocation(void **state)
{
    (void)state;
    pllm_faulty_disk_options none = pllm_faulty_disk_none();
    each_allocation(PLLM_DISK_AUTO, &none);
    if (tier_rig_has_uring()) each_allocation(PLLM_DISK_URING, NULL);
    each_allocation(PLLM_DISK_PREAD, NULL);
}

/* what: 0 a request, 1 a submit, 2 a poll. */
static void each_disk_call(uint32_t what)
{
    pllm_device *device;
    pllm_host_device_options host = {.struct_bytes = sizeof host};
    assert_int_equal(pllm_device_open_host(NULL, &host, &device), PLLM_OK);
    uint32_t refused = 0;
    for (uint64_t call = 0; call < 80; call++) {
        pllm_faulty_disk_options faults = pllm_faulty_disk_none();
        if (what == 0) faults.fail_at = call;
        if (what == 1) faults.fail_submit_at = call;
        if (what == 2) faults.fail_poll_at = call;
        scenario s = {.device = device, .faults = &faults};
        int status = scenario_run(&s);
        refused += status < 0;
        /* a bad request costs one page; a broken backend costs the disk, not the host */
        assert_true(s.arrived >= (what == 2 ? PAGES / 2 : PAGES - 1));
    }
    assert_true(refused >= FLOOR_DISK);
    pllm_device_close(device);
}

static void test_every_disk_call(void **state)
{
    (void)state;
    for (uint32_t what = 0; what < 3; what++) each_disk_call(what);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_device_call),
        cmocka_unit_test(test_every_allocation),
        cmocka_unit_test(test_every_disk_call),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
