/* Frames, host slots and disk slots: who gets which, within which limits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "tier/tiers.h"

#define OK(call)                                                             \
    do {                                                                     \
        int status_ = (call);                                                \
        if (status_ < 0) fail_msg("%s: %s", #call, pllm_last_error()->text); \
    } while (0)

typedef struct places {
    pllm_device *device;
    pllm_budget *budget;
    pllm_tiers *tiers;
} places;

static void places_open(places *p, uint64_t budget_bytes, const pllm_tiers_options *options)
{
    pllm_host_device_options host = {.struct_bytes = sizeof host};
    OK(pllm_device_open_host(NULL, &host, &p->device));
    OK(pllm_budget_open(NULL, budget_bytes, &p->budget));
    OK(pllm_tiers_open(NULL, p->device, p->budget, options, &p->tiers));
}

static void places_close(places *p)
{
    pllm_tiers_close(p->tiers);
    pllm_budget_close(p->budget);
    pllm_device_close(p->device);
}

static pllm_tiers_options options_of(uint32_t frames, uint64_t page_bytes)
{
    return (pllm_tiers_options){.struct_bytes = sizeof(pllm_tiers_options),
                                .frame_max = frames,
                                .page_bytes = page_bytes,
                                .device_limit_bytes = UINT64_MAX};
}

static uint32_t frame_of(places *p)
{
    uint32_t frame;
    OK(pllm_tiers_frame_alloc(p->tiers, &frame));
    return frame;
}

/* ---- slots ---- */

static void test_streams_keep_together(void **state)
{
    (void)state;
    pllm_slots slots;
    pllm_slots_init(&slots, NULL, 8);
    OK(pllm_slots_grow(&slots, 32));
    uint32_t a = pllm_slots_begin(&slots), b = pllm_slots_begin(&slots);
    assert_int_equal(a, 0);
    assert_int_equal(b, 8); /* an extent of its own */
    for (uint32_t i = 1; i < 8; i++) assert_int_equal(a = pllm_slots_follow(&slots, a), i);
    assert_int_equal(pllm_slots_follow(&slots, a), PLLM_NONE); /* not into b's extent */
    assert_int_equal(pllm_slots_follow(&slots, b), 9);
    pllm_slots_give(&slots, b);
    assert_int_equal(pllm_slots_follow(&slots, a), PLLM_NONE); /* nor where b has left a hole */
    assert_int_equal(a = pllm_slots_begin(&slots), 16);
    for (uint32_t i = 17; i < 25; i++) /* and on into the next one, which is wholly free */
        assert_int_equal(a = pllm_slots_follow(&slots, a), i);
    assert_int_equal(pllm_slots_begin(&slots), PLLM_NONE);
    assert_int_equal(pllm_slots_any(&slots), 8);
    pllm_slots_give(&slots, 3);
    assert_int_equal(pllm_slots_any(&slots), 3);
    assert_int_equal(pllm_slots_follow(&slots, 2), PLLM_NONE);  /* taken */
    assert_int_equal(pllm_slots_follow(&slots, 31), PLLM_NONE); /* the end */
    assert_int_equal(slots.used, 8 + 2 + 8 + 1);
    pllm_slots_check(&slots);
    for (uint32_t i = 0; i < 8; i++) pllm_slots_give(&slots, i);
    assert_int_equal(pllm_slots_begin(&slots), 0);
    pllm_slots_check(&slots);
    pllm_slots_deinit(&slots);
}

/* Random takes and gives: nothing is given twice, everything can be had. */
static void test_slots_at_random(void **state)
{
    (void)state;
    enum { COUNT = 500 };
    pllm_slots slots;
    uint32_t held[COUNT], held_count = 0, random = 1;
    pllm_slots_init(&slots, NULL, 7);
    for (uint32_t step = 0; step < 5000; step++) {
        random = random * 1664525 + 1013904223;
        if (slots.count < COUNT && step % 200 == 0)
            OK(pllm_slots_grow(&slots, slots.count + 49 > COUNT ? COUNT - slots.count : 49));
        uint32_t pick = held_count ? (random >> 8) % held_count : 0;
        if (random >> 29 < 3 && held_count) {
            pllm_slots_give(&slots, held[pick]);
            held[pick] = held[--held_count];
        } else {
            uint32_t slot = held_count ? pllm_slots_follow(&slots, held[pick]) : PLLM_NONE;
            if (slot == PLLM_NONE) slot = pllm_slots_begin(&slots);
            if (slot == PLLM_NONE) slot = pllm_slots_any(&slots);
            if (slot == PLLM_NONE) {
                assert_int_equal(held_count, slots.count);
                continue;
            }
            assert_true(slot < slots.count);
            for (uint32_t i = 0; i < held_count; i++) assert_true(held[i] != slot);
            held[held_count++] = slot;
        }
        assert_int_equal(slots.used, held_count);
        if (step % 50 == 0) pllm_slots_check(&slots);
    }
    pllm_slots_deinit(&slots);
}

static void test_host_slots(void **state)
{
    (void)state;
    places p;
    pllm_tiers_options options = options_of(4, 24 << 10);
    options.host_bytes = 100 * (24 << 10) + 1;
    places_open(&p, UINT64_MAX, &options);
    uint32_t slot = PLLM_NONE;
    char *first = NULL;
    for (uint32_t i = 0; i < 100; i++) {
        OK(pllm_tiers_slot_alloc(p.tiers, PLLM_AT_HOST, slot, &slot));
        assert_int_equal(slot, i);
        char *memory = pllm_tiers_host_slot(p.tiers, slot);
        if (i == 0) first = memory;
        assert_ptr_equal(memory, first + i * (24 << 10)); /* runs are contiguous */
        memset(memory, 1, 24 << 10);
    }
    assert_int_equal(pllm_tiers_slot_alloc(p.tiers, PLLM_AT_HOST, slot, &slot), PLLM_ELIMIT);
    assert_int_equal(slot, PLLM_NONE);
    assert_int_equal(pllm_tiers_slot_alloc(p.tiers, PLLM_AT_DISK, slot, &slot), PLLM_ELIMIT);
    assert_int_equal(pllm_tiers_slot_alloc(p.tiers, PLLM_AT_DEVICE, slot, &slot), PLLM_EINVAL);
    pllm_tiers_slot_free(p.tiers, PLLM_AT_HOST, 50);
    OK(pllm_tiers_slot_alloc(p.tiers, PLLM_AT_HOST, PLLM_NONE, &slot));
    assert_int_equal(slot, 50);
    pllm_tiers_stats stats;
    pllm_tiers_stats_get(p.tiers, &stats);
    assert_int_equal(stats.host_used, 100);
    assert_int_equal(stats.host_count, 100);
    assert_string_equal(stats.disk_name, "");
    places_close(&p);
}

static uint64_t resident_bytes(void)
{
    unsigned long long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    assert_non_null(file);
    assert_int_equal(fscanf(file, "%*u %llu", &pages), 1);
    fclose(file);
    return pages * 4096;
}

/* An unlimited host tier takes memory as it is needed, and its slots stay where they are. */
static void test_unlimited_host_is_lazy(void **state)
{
    (void)state;
    places p;
    pllm_tiers_options options = options_of(4, 64 << 10);
    options.host_bytes = UINT64_MAX;
    uint64_t before = resident_bytes();
    places_open(&p, UINT64_MAX, &options);
    assert_int_equal(pllm_tiers_slot_count(p.tiers, PLLM_AT_HOST), 0);
    uint32_t slots[600];
    char *memory[600];
    for (uint32_t i = 0; i < 600; i++) { /* 38 MiB in many slabs; ten streams */
        OK(pllm_tiers_slot_alloc(p.tiers, PLLM_AT_HOST, i < 10 ? PLLM_NONE : slots[i - 10],
                                 &slots[i]));
        memory[i] = pllm_tiers_host_slot(p.tiers, slots[i]);
        memory[i][0] = (char)i;
        memory[i][(64 << 10) - 1] = (char)i;
    }
    for (uint32_t i = 0; i < 600; i++) {
        assert_ptr_equal(memory[i], pllm_tiers_host_slot(p.tiers, slots[i]));
        assert_int_equal(memory[i][0], (char)i);
    }
    uint32_t neighbours = 0;
    for (uint32_t i = 10; i < 600; i++) neighbours += slots[i] == slots[i - 10] + 1;
    assert_true(neighbours >= 540); /* 16 a megabyte: one in sixteen starts an extent */
    assert_true(resident_bytes() - before < 256 << 20);
    pllm_tiers_check(p.tiers);
    places_close(&p);
}

/* ---- frames ---- */

static void test_frames_lowest_first(void **state)
{
    (void)state;
    places p;
    pllm_tiers_options options = options_of(300, 24 << 10); /* no divisor of any chunk */
    places_open(&p, UINT64_MAX, &options);
    for (uint32_t i = 0; i < 300; i++) {
        assert_int_equal(frame_of(&p), i);
        char *view = pllm_tiers_frame_view(p.tiers, i);
        memset(view, (int)i, 24 << 10); /* faults if a part has no memory */
        assert_int_equal(pllm_tiers_frame_va(p.tiers, i),
                         pllm_tiers_frame_va(p.tiers, 0) + i * (24 << 10));
    }
    uint32_t frame;
    assert_int_equal(pllm_tiers_frame_alloc(p.tiers, &frame), PLLM_ENODEVMEM);
    for (uint32_t i = 0; i < 300; i++)
        for (uint32_t at = 0; at < 24 << 10; at += 4096)
            assert_int_equal(((unsigned char *)pllm_tiers_frame_view(p.tiers, i))[at], i & 255);
    pllm_tiers_frame_free(p.tiers, 200);
    pllm_tiers_frame_free(p.tiers, 7);
#ifdef PLLM_CHECKS
    assert_int_equal(((unsigned char *)pllm_tiers_frame_view(p.tiers, 7))[100], 0xff);
#endif
    assert_int_equal(frame_of(&p), 7);
    assert_int_equal(frame_of(&p), 200);
    pllm_tiers_check(p.tiers);
    places_close(&p);
}

/* The limit counts frames, also under a chunk; the budget counts chunks and is never passed. */
static void test_limits(void **state)
{
    (void)state;
    places p;
    pllm_tiers_options options = options_of(1000, 4096);
    options.device_limit_bytes = 5 * 4096 + 4095;
    places_open(&p, UINT64_MAX, &options);
    assert_int_equal(pllm_tiers_frame_limit(p.tiers), 5);
    for (uint32_t i = 0; i < 5; i++) frame_of(&p);
    uint32_t frame;
    assert_int_equal(pllm_tiers_frame_alloc(p.tiers, &frame), PLLM_ENODEVMEM);
    OK(pllm_tiers_set_device_limit(p.tiers, 7 * 4096));
    assert_int_equal(pllm_tiers_frame_limit(p.tiers), 7);
    frame_of(&p);
    pllm_budget_stats stats;
    pllm_budget_stats_get(p.budget, &stats);
    assert_true(stats.charged_bytes <= 64 << 10); /* a small limit uses small chunks */
    places_close(&p);

    options.device_limit_bytes = UINT64_MAX;
    places_open(&p, (1 << 20) + 1000, &options);
    uint32_t limit = pllm_tiers_frame_limit(p.tiers), count = 0;
    assert_int_equal(limit, 256);
    while (pllm_tiers_frame_alloc(p.tiers, &frame) == PLLM_OK) count++;
    assert_int_equal(count, limit);
    pllm_budget_stats_get(p.budget, &stats);
    assert_int_equal(stats.charged_bytes, 1 << 20);
    pllm_tiers_check(p.tiers);
    places_close(&p);
}

/* Lowered limits are met by freeing high frames and trimming; raised ones can be used again. */
static void test_shrink_and_grow(void **state)
{
    (void)state;
    places p;
    pllm_tiers_options options = options_of(1024, 24 << 10);
    places_open(&p, UINT64_MAX, &options);
    for (uint32_t i = 0; i < 1024; i++) frame_of(&p);
    uint64_t full = 1024 * (24 << 10);
    pllm_budget_stats stats;
    pllm_budget_stats_get(p.budget, &stats);
    assert_true(stats.charged_bytes >= full && stats.charged_bytes < full + full / 8);
    OK(pllm_tiers_set_device_limit(p.tiers, full / 4));
    assert_int_equal(pllm_tiers_frame_excess(p.tiers), 768);
    uint32_t high = 0, frame;
    for (uint32_t i = 0; i < 1024; i++) {
        if (!pllm_tiers_frame_is_high(p.tiers, i)) continue;
        pllm_tiers_frame_free(p.tiers, i);
        high++;
    }
    assert_int_equal(high, 768);
    assert_int_equal(pllm_tiers_frame_excess(p.tiers), 0);
    uint64_t freed = pllm_tiers_trim(p.tiers);
    assert_true(freed > full / 2);
    pllm_budget_stats_get(p.budget, &stats);
    assert_true(stats.charged_bytes <= full / 4 + (4 << 20));
    assert_int_equal(pllm_tiers_frame_alloc(p.tiers, &frame), PLLM_ENODEVMEM);
    pllm_tiers_check(p.tiers);
    /* the budget itself shrinks under frames in use, then grows */
    OK(pllm_budget_set_limit(p.budget, full / 8));
    uint32_t excess = pllm_tiers_frame_excess(p.tiers);
    assert_true(excess >= 127 && excess <= 256);
    for (uint32_t i = 255; excess-- > 0; i--) pllm_tiers_frame_free(p.tiers, i);
    pllm_tiers_trim(p.tiers);
    pllm_budget_stats_get(p.budget, &stats);
    assert_true(stats.charged_bytes <= full / 8);
    OK(pllm_budget_set_limit(p.budget, UINT64_MAX));
    OK(pllm_tiers_set_device_limit(p.tiers, UINT64_MAX));
    for (;;) {
        int status = pllm_tiers_frame_alloc(p.tiers, &frame);
        if (status == PLLM_ENODEVMEM) break;
        OK(status);
        memset(pllm_tiers_frame_view(p.tiers, frame), 1, 24 << 10);
    }
    assert_int_equal(pllm_tiers_frame_excess(p.tiers), 0);
    pllm_tiers_check(p.tiers);
    places_close(&p);
}

/* A free frame that is backed is used before one that would need the budget. */
static void test_backed_before_bare(void **state)
{
    (void)state;
    places p;
    pllm_tiers_options options = options_of(64, 64 << 10);
    places_open(&p, 1 << 20, &options); /* sixteen frames */
    for (uint32_t i = 0; i < 16; i++) frame_of(&p);
    for (uint32_t i = 0; i < 8; i++) pllm_tiers_frame_free(p.tiers, i);
    assert_true(pllm_tiers_trim(p.tiers) == 8 * (64 << 10));
    pllm_tiers_frame_free(p.tiers, 12);
    OK(pllm_budget_set_limit(p.budget, 8 * (64 << 10)));
    assert_int_equal(frame_of(&p), 12);
    uint32_t frame;
    assert_int_equal(pllm_tiers_frame_alloc(p.tiers, &frame), PLLM_ENODEVMEM);
    pllm_tiers_check(p.tiers);
    places_close(&p);
}

static void test_options_are_checked(void **state)
{
    (void)state;
    places p;
    pllm_host_device_options host = {.struct_bytes = sizeof host};
    OK(pllm_device_open_host(NULL, &host, &p.device));
    OK(pllm_budget_open(NULL, UINT64_MAX, &p.budget));
    pllm_tiers_options bad[4] = {options_of(4, 4096), options_of(4, 1000),
                                 options_of(PLLM_NONE, 4096), options_of(4, 0)};
    bad[0].struct_bytes = 8;
    for (uint32_t i = 0; i < 4; i++) {
        assert_int_equal(pllm_tiers_open(NULL, p.device, p.budget, &bad[i], &p.tiers), PLLM_EINVAL);
        assert_null(p.tiers);
    }
    pllm_tiers_options options = options_of(4, 4096);
    options.disk_bytes = (uint64_t)1 << 52;
    options.disk_folder = PLLM_BINARY_DIR;
    int status = pllm_tiers_open(NULL, p.device, p.budget, &options, &p.tiers);
    assert_int_equal(status, PLLM_ELIMIT);
    assert_non_null(strstr(pllm_last_error()->text, "--nvme-size"));
    pllm_tiers_close(NULL);
    /* Without frames it needs no budget, and has slots alone. */
    options = options_of(4, 4096);
    assert_int_equal(pllm_tiers_open(NULL, p.device, NULL, &options, &p.tiers), PLLM_EINVAL);
    options = options_of(0, 4096);
    options.host_bytes = 1 << 20;
    OK(pllm_tiers_open(NULL, p.device, NULL, &options, &p.tiers));
    uint32_t place;
    assert_int_equal(pllm_tiers_frame_alloc(p.tiers, &place), PLLM_ENODEVMEM);
    OK(pllm_tiers_slot_alloc(p.tiers, PLLM_AT_HOST, PLLM_NONE, &place));
    assert_int_equal(pllm_tiers_frame_limit(p.tiers), 0);
    assert_int_equal(pllm_tiers_is_over(p.tiers), 0);
    assert_int_equal(pllm_tiers_trim(p.tiers), 0);
    pllm_tiers_check(p.tiers);
    pllm_tiers_close(p.tiers);
    pllm_budget_close(p.budget);
    pllm_device_close(p.device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_streams_keep_together),
        cmocka_unit_test(test_slots_at_random),
        cmocka_unit_test(test_host_slots),
        cmocka_unit_test(test_unlimited_host_is_lazy),
        cmocka_unit_test(test_frames_lowest_first),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_shrink_and_grow),
        cmocka_unit_test(test_backed_before_bare),
        cmocka_unit_test(test_options_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
