/* Goal: pages come back as they went, whatever their size, order and place. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "tier/transfer.h"

typedef struct tier_rig {
    pllm_device *device;
    pllm_budget *budget;
    pllm_tiers *tiers;
    pllm_transfers *transfers;
} tier_rig;

static void rig_open(tier_rig *rig, const pllm_tiers_options *options, uint32_t ticket_max)
{
    pllm_host_device_options host = {.struct_bytes = sizeof host};
    memset(rig, 0, sizeof *rig);
    assert_int_equal(pllm_device_open_host(NULL, &host, &rig->device), PLLM_OK);
    assert_int_equal(pllm_budget_open(NULL, UINT64_MAX, &rig->budget), PLLM_OK);
    if (pllm_tiers_open(NULL, rig->device, rig->budget, options, &rig->tiers) < 0)
        fail_msg("%s", pllm_last_error()->text);
    pllm_transfers_options transfers = {.struct_bytes = sizeof transfers, .ticket_max = ticket_max};
    assert_int_equal(pllm_transfers_open(NULL, rig->tiers, &transfers, &rig->transfers), PLLM_OK);
}

static void rig_close(tier_rig *rig)
{
    pllm_transfers_close(rig->transfers);
    pllm_tiers_close(rig->tiers);
    pllm_budget_close(rig->budget);
    pllm_device_close(rig->device);
}

static void page_fill(void *page, uint64_t bytes, uint64_t seed)
{
    uint64_t *words = page;
    for (uint64_t i = 0; i < bytes / 8; i++)
        words[i] = (seed + i) * UINT64_C(0x9e3779b97f4a7c15) ^ seed;
}

static int page_is(const void *page, uint64_t bytes, uint64_t seed)
{
    const uint64_t *words = page;
    for (uint64_t i = 0; i < bytes / 8; i++)
        if (words[i] != ((seed + i) * UINT64_C(0x9e3779b97f4a7c15) ^ seed)) return 0;
    return 1;
}

static void move(tier_rig *rig, pllm_place from, pllm_place to, uint32_t frame, uint32_t slot,
                 pllm_priority priority, uint64_t tag, pllm_ticket *ticket)
{
    pllm_transfer transfer = {from, to, frame, slot, priority, tag};
    if (pllm_transfer_submit(rig->transfers, &transfer, ticket) != PLLM_OK)
        fail_msg("%s", pllm_last_error()->text);
}

/* Out to a place, frames freed and taken again in another order, back in, compared. */
static void round_trip(pllm_place place, uint64_t page_bytes, uint32_t count)
{
    pllm_tiers_options options = {.struct_bytes = sizeof options,
                                  .frame_max = count,
                                  .page_bytes = page_bytes,
                                  .device_limit_bytes = UINT64_MAX,
                                  .host_bytes = place == PLLM_AT_HOST ? count * page_bytes : 0,
                                  .disk_bytes = place == PLLM_AT_DISK ? count * page_bytes : 0,
                                  .disk_folder = PLLM_BINARY_DIR};
    tier_rig rig;
    rig_open(&rig, &options, 0);
    uint32_t *frames = calloc(count, sizeof *frames), *slots = calloc(count, sizeof *slots);
    pllm_ticket *tickets = calloc(count, sizeof *tickets);
    for (uint32_t i = 0; i < count; i++) {
        assert_int_equal(pllm_tiers_frame_alloc(rig.tiers, &frames[i]), PLLM_OK);
        assert_int_equal(
            pllm_tiers_slot_alloc(rig.tiers, place, i ? slots[i - 1] : PLLM_NONE, &slots[i]),
            PLLM_OK);
        page_fill(pllm_tiers_frame_view(rig.tiers, frames[i]), page_bytes, i);
        move(&rig, PLLM_AT_DEVICE, place, frames[i], slots[i], PLLM_WRITE_BEHIND, i, &tickets[i]);
    }
    for (uint32_t i = 0; i < count; i++) {
        assert_int_equal(pllm_transfer_wait(rig.transfers, tickets[i], UINT64_MAX), PLLM_OK);
        pllm_transfer_release(rig.transfers, tickets[i]);
        assert_int_equal(pllm_transfer_state(rig.transfers, tickets[i]), PLLM_ESTALE);
        memset(pllm_tiers_frame_view(rig.tiers, frames[i]), 0xee, page_bytes);
        pllm_tiers_frame_free(rig.tiers, frames[i]);
    }
    pllm_tiers_check(rig.tiers);
    for (uint32_t i = count; i-- > 0;)
        assert_int_equal(pllm_tiers_frame_alloc(rig.tiers, &frames[i]), PLLM_OK);
    for (uint32_t i = 0; i < count; i++)
        move(&rig, place, PLLM_AT_DEVICE, frames[i], slots[i], PLLM_DEMAND, i, &tickets[i]);
    while (pllm_transfers_pending(rig.transfers))
        assert_true(pllm_transfers_wait_any(rig.transfers, UINT64_MAX) > 0);
    for (uint32_t i = 0; i < count; i++) {
        assert_int_equal(pllm_transfer_state(rig.transfers, tickets[i]), 1);
        assert_true(page_is(pllm_tiers_frame_view(rig.tiers, frames[i]), page_bytes, i));
    }
    pllm_transfers_stats stats;
    pllm_transfers_stats_get(rig.transfers, &stats);
    assert_int_equal(stats.pages[PLLM_AT_DEVICE][place], count);
    assert_int_equal(stats.bytes[place][PLLM_AT_DEVICE], count * page_bytes);
    assert_true(stats.merged_runs > 0 && stats.failed == 0);
    free(frames), free(slots), free(tickets);
    rig_close(&rig);
}

static void test_host_round_trips(void **state)
{
    (void)state;
    round_trip(PLLM_AT_HOST, 4096, 700);
    round_trip(PLLM_AT_HOST, 24 << 10, 300);
    round_trip(PLLM_AT_HOST, 96 << 10, 150);
}

static void test_disk_round_trips(void **state)
{
    (void)state;
    round_trip(PLLM_AT_DISK, 4096, 700);
    round_trip(PLLM_AT_DISK, 24 << 10, 300);
    round_trip(PLLM_AT_DISK, 96 << 10, 150);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_host_round_trips),
        cmocka_unit_test(test_disk_round_trips),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
