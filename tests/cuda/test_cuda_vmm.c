/* Elastic pools on a GPU: what tests/unit/test_vmm_*.c show on a driver in host memory, with real
 * memory and real work: contents through growth and sharing of pages, deallocation behind a stream,
 * zeros on reuse and behind what is not allocated, memory that is imported, limits, the background.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include <pagedllm/vmm.h>
#include "device/device.h"

#define PAGE ((uint64_t)2 << 20)
enum { PART = 4096 };

typedef struct world {
    pllm_device *inner, *device;
    pllm_stream *stream;
    pllm_vmm *vmm;
} world;

static void expect(int status)
{
    if (status < 0) print_error("%s\n", pllm_last_error()->text);
    assert_true(status >= 0);
}

static void world_open(world *w, uint64_t limit_pages, uint32_t no_background)
{
    pllm_vmm_options options = {.struct_bytes = sizeof options,
                                .no_background = no_background,
                                .limit_bytes = limit_pages * PAGE};
    expect(pllm_device_open(NULL, "cuda", &w->inner));
    expect(pllm_device_open_faulty(NULL, w->inner, NULL, &w->device));
    expect(pllm_stream_open(w->device, NULL, &w->stream));
    expect(pllm_vmm_open(NULL, w->device, &options, &w->vmm));
}

static void world_close(world *w)
{
    pllm_vmm_close(w->vmm);
    pllm_stream_close(w->device, w->stream);
    assert_int_equal(pllm_faulty_device_live(w->device), 0);
    pllm_device_close(w->device);
    pllm_device_close(w->inner);
}

static pllm_vmm_pool *model(world *w, const char *name, uint64_t pages,
                            pllm_vmm_pool_options options)
{
    pllm_vmm_pool *pool;
    options.struct_bytes = sizeof options;
    options.capacity_bytes = pages * PAGE;
    options.page_bytes = PAGE;
    expect(pllm_vmm_register(w->vmm, name, &options, &pool));
    return pool;
}

static void write_all(world *w, uint64_t address, uint64_t bytes, unsigned char value)
{
    const pllm_device_ops *ops = w->device->ops;
    expect(ops->fill(w->device, w->stream, address, bytes, value));
    expect(ops->stream_sync(w->device, w->stream));
}

/* The first, the last and some parts between are all that value. */
static void all_are(world *w, uint64_t address, uint64_t bytes, unsigned char value)
{
    unsigned char seen[PART];
    for (uint64_t i = 0; i <= 8; i++) {
        uint64_t part = bytes < PART ? bytes : PART, at = (bytes - part) / 8 * i;
        expect(pllm_device_read(w->device, w->stream, address + at, part, seen));
        for (uint64_t k = 0; k < part; k++)
            if (seen[k] != value)
                fail_msg("byte %llu is %d, not %d", (unsigned long long)(at + k), seen[k], value);
    }
}

static pllm_vmm_pool_stats stats_of(pllm_vmm_pool *pool)
{
    pllm_vmm_pool_stats stats = {.struct_bytes = sizeof stats};
    expect(pllm_vmm_pool_stats_get(pool, &stats));
    return stats;
}

static void neighbours_share_pages_and_blocks_grow(void **state)
{
    (void)state;
    world w;
    world_open(&w, 32, 1);
    pllm_vmm_pool *pool = model(&w, "model", 64, (pllm_vmm_pool_options){0});
    uint64_t third = PAGE / 3, base = pllm_vmm_base(pool), address;
    for (uint64_t i = 0; i < 6; i++) {
        expect(pllm_vmm_allocate(pool, i * third, third, &address));
        write_all(&w, address, third, (unsigned char)(i + 1));
    }
    assert_int_equal(stats_of(pool).physical_bytes, 2 * PAGE);
    for (uint64_t i = 0; i < 6; i += 2) expect(pllm_vmm_deallocate(pool, i * third, third));
    for (uint64_t i = 1; i < 6; i += 2)
        all_are(&w, base + i * third, third, (unsigned char)(i + 1));
    pllm_vmm_block_options options = {
        .struct_bytes = sizeof options, .bytes = PAGE, .room_bytes = 15 * PAGE};
    expect(pllm_vmm_block_allocate(pool, &options, &address));
    write_all(&w, address, PAGE, 9);
    for (uint64_t pages = 2; pages <= 16; pages++) {
        expect(pllm_vmm_block_grow(pool, address, pages * PAGE));
        write_all(&w, address + (pages - 1) * PAGE, PAGE, 9);
    }
    all_are(&w, address, 16 * PAGE, 9);
    assert_int_equal(pllm_vmm_allocate(pool, 30 * PAGE, 20 * PAGE, NULL), PLLM_ENODEVMEM);
    expect(pllm_vmm_block_free(pool, address));
    for (uint64_t i = 1; i < 6; i += 2) expect(pllm_vmm_deallocate(pool, i * third, third));
    assert_int_equal(stats_of(pool).physical_bytes, 0);
    world_close(&w);
}

static void work_in_flight_keeps_its_memory(void **state)
{
    (void)state;
    world w;
    world_open(&w, 64, 0);
    pllm_vmm_pool *pool =
        model(&w, "model", 64, (pllm_vmm_pool_options){.kept_bytes = PLLM_UNLIMITED});
    const pllm_device_ops *ops = w.device->ops;
    for (int round = 0; round < 20; round++) {
        uint64_t address;
        int status;
        while ((status = pllm_vmm_allocate(pool, 0, 32 * PAGE, &address)) == PLLM_EBUSY) continue;
        expect(status);
        for (int i = 0; i < 20; i++)
            expect(ops->fill(w.device, w.stream, address, 32 * PAGE, (unsigned char)i));
        expect(pllm_vmm_deallocate_after(pool, 0, 32 * PAGE, w.stream));
    }
    expect(pllm_stream_sync(w.device, w.stream));
    while (pllm_vmm_poll(w.vmm) > 0) continue;
    assert_int_equal(stats_of(pool).mapped_bytes, 0);
    assert_int_equal(stats_of(pool).created_pages, 32); /* each of them used 20 times */
    world_close(&w);
}

static void zeros_are_read_where_promised(void **state)
{
    (void)state;
    world w;
    world_open(&w, 64, 1);
    pllm_vmm_pool *pool =
        model(&w, "reused", 16,
              (pllm_vmm_pool_options){
                  .zero_on_reuse = 1, .kept_bytes = PLLM_UNLIMITED, .ahead_bytes = 2 * PAGE});
    uint64_t base = pllm_vmm_base(pool);
    for (int round = 0; round < 3; round++) {
        expect(pllm_vmm_allocate(pool, 1000, 6 * PAGE, NULL));
        all_are(&w, base + 1000, 6 * PAGE, 0);
        write_all(&w, base + 1000, 6 * PAGE, 5);
        expect(pllm_vmm_deallocate(pool, 1000 + PAGE, 5 * PAGE));
        pllm_vmm_poll(w.vmm);
        expect(pllm_vmm_allocate(pool, 1000 + PAGE, 5 * PAGE, NULL));
        all_are(&w, base + 1000, PAGE, 5);
        all_are(&w, base + 1000 + PAGE, 5 * PAGE, 0);
        expect(pllm_vmm_deallocate(pool, 1000, 6 * PAGE));
    }
    pllm_vmm_pool *behind = model(&w, "behind", 16, (pllm_vmm_pool_options){.zero_behind = 1});
    base = pllm_vmm_base(behind);
    all_are(&w, base, 16 * PAGE, 0);
    expect(pllm_vmm_allocate(behind, 4 * PAGE, 4 * PAGE, NULL));
    write_all(&w, base + 4 * PAGE, 4 * PAGE, 7);
    all_are(&w, base, 4 * PAGE, 0);
    all_are(&w, base + 4 * PAGE, 4 * PAGE, 7);
    all_are(&w, base + 8 * PAGE, 8 * PAGE, 0);
    expect(pllm_vmm_deallocate(behind, 4 * PAGE, 4 * PAGE));
    all_are(&w, base, 16 * PAGE, 0);
    world_close(&w);
}

static void a_range_is_imported(void **state)
{
    (void)state;
    world w;
    world_open(&w, 16, 1);
    pllm_vmm_pool *pool = model(&w, "model", 16, (pllm_vmm_pool_options){0});
    uint64_t address;
    expect(pllm_vmm_allocate(pool, PAGE / 2, 3 * PAGE, &address));
    write_all(&w, address, 3 * PAGE, 3);
    pllm_vmm_share share;
    int descriptors[4];
    expect(pllm_vmm_export(pool, PAGE / 2, 3 * PAGE, 1, &share, descriptors, 4));
    pllm_vmm_import *import;
    expect(pllm_vmm_import_open(NULL, w.device, &share, descriptors, 1, &import));
    for (int i = 0; i < 4; i++) close(descriptors[i]);
    all_are(&w, pllm_vmm_import_address(import), 3 * PAGE, 3);
    write_all(&w, address, 3 * PAGE, 4);
    all_are(&w, pllm_vmm_import_address(import), 3 * PAGE, 4);
    expect(pllm_vmm_deallocate(pool, PAGE / 2, 3 * PAGE));
    all_are(&w, pllm_vmm_import_address(import), 3 * PAGE, 4);
    pllm_vmm_import_close(import);
    world_close(&w);
}

static void the_background_maps_ahead(void **state)
{
    (void)state;
    world w;
    world_open(&w, 64, 0);
    pllm_vmm_pool *pool = model(&w, "model", 64, (pllm_vmm_pool_options){.ahead_bytes = 4 * PAGE});
    uint64_t address;
    pllm_vmm_block_options options = {
        .struct_bytes = sizeof options, .bytes = 1, .room_bytes = 32 * PAGE - 1};
    expect(pllm_vmm_block_allocate(pool, &options, &address));
    for (uint64_t pages = 1; pages <= 32; pages++) {
        expect(pllm_vmm_block_grow(pool, address, pages * PAGE));
        write_all(&w, address + (pages - 1) * PAGE, PAGE, (unsigned char)pages);
        while (stats_of(pool).ahead_bytes < 3 * PAGE) continue; /* else the test's time limit */
    }
    pllm_vmm_poll(w.vmm);
    for (uint64_t pages = 1; pages <= 32; pages++)
        all_are(&w, address + (pages - 1) * PAGE, PAGE, (unsigned char)pages);
    uint64_t freed;
    pllm_vmm_compact(w.vmm, &freed);
    assert_int_equal(freed, 4 * PAGE);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(neighbours_share_pages_and_blocks_grow),
        cmocka_unit_test(work_in_flight_keeps_its_memory),
        cmocka_unit_test(zeros_are_read_where_promised),
        cmocka_unit_test(a_range_is_imported),
        cmocka_unit_test(the_background_maps_ahead),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
