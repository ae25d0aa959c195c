/* The public memory: bytes survive eviction, handles go stale, limits hold, failures leave nothing.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <pagedllm/memory.h>
#include "pager/memory_device.h"
#include "failing_context.h"

enum { PAGE = 4096 };

static pllm_memory *open_memory(const pllm_context *context, uint64_t frames, uint64_t host_pages,
                                uint64_t disk_pages)
{
    pllm_memory_options options = {
        .struct_bytes = sizeof options,
        .vram_limit_bytes = frames * PAGE,
        .host_memory_bytes = host_pages * PAGE,
        .nvme_path = "/tmp",
        .nvme_size_bytes = disk_pages * PAGE,
        .page_bytes = PAGE,
        .tensor_max = 4,
    };
    pllm_memory *memory;
    assert_int_equal(pllm_memory_open(context, &options, &memory), PLLM_OK);
    return memory;
}

static pllm_memory_stats stats_of(const pllm_memory *memory)
{
    pllm_memory_stats stats = {.struct_bytes = sizeof stats};
    assert_int_equal(pllm_memory_stats_get(memory, &stats), PLLM_OK);
    return stats;
}

static void fill(unsigned char *bytes, uint64_t count, uint32_t seed)
{
    for (uint64_t i = 0; i < count; i++)
        bytes[i] = (unsigned char)((i * 2654435761u + seed * 40503u) >> 13);
}

static void bytes_survive_at_any_offset(void **state)
{
    (void)state;
    enum { BYTES = 200 * PAGE + 100 };
    pllm_memory *memory = open_memory(NULL, 16, 100, 200);
    unsigned char *mirror = calloc(1, BYTES), *back = malloc(BYTES), *piece = malloc(BYTES);
    assert_true(mirror && back && piece);
    pllm_tensor tensor;
    assert_int_equal(pllm_memory_allocate(memory, BYTES, PLLM_MEMORY_SEQUENTIAL, &tensor), PLLM_OK);
    assert_int_equal(stats_of(memory).resident_bytes, 0);
    uint64_t random = 7;
    for (uint32_t i = 0; i < 120; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        uint64_t offset = (random >> 20) % BYTES, bytes = (random >> 44) % (9 * PAGE);
        if (i % 5 == 0) offset -= offset % PAGE; /* whole pages too */
        if (i % 5 == 0) bytes -= bytes % PAGE;
        if (bytes > BYTES - offset) bytes = BYTES - offset;
        fill(piece, bytes, i);
        memcpy(mirror + offset, piece, bytes);
        assert_int_equal(pllm_memory_write(memory, tensor, offset, bytes, piece), PLLM_OK);
        offset = (random >> 10) % BYTES;
        bytes = (random >> 30) % (20 * PAGE);
        if (bytes > BYTES - offset) bytes = BYTES - offset;
        assert_int_equal(pllm_memory_read(memory, tensor, offset, bytes, back), PLLM_OK);
        assert_memory_equal(back, mirror + offset, bytes);
    }
    uint64_t evicted;
    assert_int_equal(pllm_memory_evict_range(memory, tensor, 0, BYTES, &evicted), PLLM_OK);
    assert_true(evicted > 0 && stats_of(memory).resident_bytes == 0);
    assert_int_equal(pllm_memory_seal(memory, tensor), PLLM_OK);
    assert_int_equal(pllm_memory_write(memory, tensor, 0, 1, piece), PLLM_EINVAL);
    assert_int_equal(pllm_memory_read(memory, tensor, 0, BYTES, back), PLLM_OK);
    assert_memory_equal(back, mirror, BYTES);
    pllm_memory_stats stats = stats_of(memory);
    assert_true(stats.resident_peak_bytes <= 16 * PAGE && stats.disk_read_bytes > 0);
    free(mirror);
    free(back);
    free(piece);
    pllm_memory_close(memory);
}

static void pins_give_views_in_order(void **state)
{
    (void)state;
    pllm_memory *memory = open_memory(NULL, 16, 64, 0);
    pllm_tensor tensor;
    pllm_memory_view views[16];
    uint32_t count;
    assert_int_equal(pllm_memory_allocate(memory, 40 * PAGE, PLLM_MEMORY_NORMAL, &tensor), PLLM_OK);
    for (uint64_t offset = 0; offset < 40 * PAGE; offset += 8 * PAGE) {
        assert_int_equal(
            pllm_memory_pin(memory, tensor, offset, 8 * PAGE, PLLM_MEMORY_WRITE, views, 16, &count),
            PLLM_OK);
        uint64_t at = offset;
        for (uint32_t v = 0; v < count; v++)
            for (uint64_t i = 0; i < views[v].bytes; i += 8, at += 8) {
                assert_int_equal(*(uint64_t *)((char *)views[v].data + i), 0);
                *(uint64_t *)((char *)views[v].data + i) = at;
            }
        assert_int_equal(at, offset + 8 * PAGE);
        assert_int_equal(pllm_memory_deallocate(memory, tensor), PLLM_EBUSY);
        assert_int_equal(pllm_memory_unpin(memory, tensor, offset, 8 * PAGE), PLLM_OK);
    }
    assert_int_equal(pllm_memory_unpin(memory, tensor, 0, PAGE), PLLM_EINVAL);
    /* A range inside a page, over a page's end, and one that is too large. */
    assert_int_equal(
        pllm_memory_pin(memory, tensor, 3 * PAGE - 8, 16, PLLM_MEMORY_READ, views, 16, &count),
        PLLM_OK);
    assert_int_equal(*(uint64_t *)views[0].data, 3 * PAGE - 8);
    assert_int_equal(views[0].bytes + (count > 1 ? views[1].bytes : 0), 16);
    assert_int_equal(pllm_memory_unpin(memory, tensor, 3 * PAGE - 8, 16), PLLM_OK);
    assert_int_equal(
        pllm_memory_pin(memory, tensor, 0, 17 * PAGE, PLLM_MEMORY_READ, views, 16, &count),
        PLLM_EBUSY);
    assert_non_null(strstr(pllm_last_error()->text, "raise the device limit"));
    assert_int_equal(pllm_memory_pin(memory, tensor, 0, 1, PLLM_MEMORY_READ, views, 0, &count),
                     PLLM_EINVAL);
    assert_int_equal(pllm_memory_ensure_resident(memory, tensor, 30 * PAGE, 4 * PAGE), PLLM_OK);
    assert_int_equal(pllm_memory_deallocate(memory, tensor), PLLM_OK);
    pllm_memory_close(memory);
}

/* Overwriting whole pages brings nothing in; what is covered in part keeps the rest. */
static void overwriting_brings_nothing_in(void **state)
{
    (void)state;
    pllm_memory *memory = open_memory(NULL, 16, 64, 0);
    pllm_memory_stats before = {.struct_bytes = sizeof before}, after = before;
    pllm_tensor tensor;
    pllm_memory_view views[8];
    uint32_t count;
    unsigned char page[PAGE];
    const uint64_t bytes = 40 * PAGE - 100;
    assert_int_equal(pllm_memory_allocate(memory, bytes, PLLM_MEMORY_NORMAL, &tensor), PLLM_OK);
    for (uint64_t at = 0; at < bytes; at += PAGE) {
        memset(page, 1, PAGE);
        uint64_t part = bytes - at < PAGE ? bytes - at : PAGE;
        assert_int_equal(pllm_memory_write(memory, tensor, at, part, page), PLLM_OK);
    }
    assert_int_equal(pllm_memory_evict(memory, 16 * PAGE, NULL), PLLM_OK);
    assert_int_equal(pllm_memory_stats_get(memory, &before), PLLM_OK);
    /* Nothing is here, and half of page 5 is needed. */
    const uint64_t first = 1 * PAGE, length = 4 * PAGE + PAGE / 2;
    assert_int_equal(
        pllm_memory_pin(memory, tensor, first, length, PLLM_MEMORY_OVERWRITE, views, 8, &count),
        PLLM_OK);
    for (uint32_t v = 0; v < count; v++) memset(views[v].data, 2, views[v].bytes);
    assert_int_equal(pllm_memory_unpin(memory, tensor, first, length), PLLM_OK);
    assert_int_equal(pllm_memory_stats_get(memory, &after), PLLM_OK);
    assert_int_equal(after.bytes_in - before.bytes_in, PAGE);
    /* The end of the tensor is the end of its last page. */
    assert_int_equal(pllm_memory_evict(memory, 16 * PAGE, NULL), PLLM_OK);
    assert_int_equal(pllm_memory_pin(memory, tensor, 38 * PAGE, bytes - 38 * PAGE,
                                     PLLM_MEMORY_OVERWRITE, views, 8, &count),
                     PLLM_OK);
    for (uint32_t v = 0; v < count; v++) memset(views[v].data, 3, views[v].bytes);
    assert_int_equal(pllm_memory_unpin(memory, tensor, 38 * PAGE, bytes - 38 * PAGE), PLLM_OK);
    before = after;
    assert_int_equal(pllm_memory_stats_get(memory, &after), PLLM_OK);
    assert_int_equal(after.bytes_in, before.bytes_in);
    for (uint64_t at = 0; at < bytes; at += PAGE) {
        uint64_t part = bytes - at < PAGE ? bytes - at : PAGE;
        assert_int_equal(pllm_memory_read(memory, tensor, at, part, page), PLLM_OK);
        for (uint64_t i = 0; i < part; i++) {
            int want = at + i >= 38 * PAGE ? 3 : at + i >= first && at + i < first + length ? 2 : 1;
            assert_int_equal(page[i], want);
        }
    }
    assert_int_equal(pllm_memory_pin(memory, tensor, 0, 1, (pllm_memory_mode)3, NULL, 0, NULL),
                     PLLM_EINVAL);
    assert_int_equal(pllm_memory_seal(memory, tensor), PLLM_OK);
    assert_int_equal(pllm_memory_pin(memory, tensor, 0, PAGE, PLLM_MEMORY_OVERWRITE, NULL, 0, NULL),
                     PLLM_EINVAL);
    pllm_memory_close(memory);
}

/* Places are the device's addresses of the same bytes that views show, on a device of one's own. */
static void places_are_where_views_are(void **state)
{
    (void)state;
    pllm_device *device;
    pllm_host_device_options host = {.struct_bytes = sizeof host};
    assert_int_equal(pllm_device_open_host(NULL, &host, &device), PLLM_OK);
    pllm_memory_options options = {.struct_bytes = sizeof options,
                                   .vram_limit_bytes = 16 * PAGE,
                                   .host_memory_bytes = 32 * PAGE,
                                   .page_bytes = PAGE,
                                   .prefetch_pages = 2};
    pllm_memory *memory;
    assert_int_equal(pllm_memory_open_on(NULL, device, &options, &memory), PLLM_OK);
    pllm_tensor tensor;
    pllm_memory_view views[8];
    pllm_memory_place places[8];
    uint32_t view_count, place_count;
    assert_int_equal(pllm_memory_allocate(memory, 40 * PAGE, PLLM_MEMORY_NORMAL, &tensor), PLLM_OK);
    for (uint64_t at = 100; at + 4 * PAGE < 40 * PAGE; at += 3 * PAGE) {
        assert_int_equal(
            pllm_memory_pin(memory, tensor, at, 4 * PAGE, PLLM_MEMORY_WRITE, views, 8, &view_count),
            PLLM_OK);
        assert_int_equal(pllm_memory_pin_device(memory, tensor, at, 4 * PAGE, PLLM_MEMORY_READ,
                                                places, 8, &place_count),
                         PLLM_OK);
        assert_int_equal(view_count, place_count);
        for (uint32_t i = 0; i < place_count; i++) {
            assert_int_equal(views[i].bytes, places[i].bytes);
            assert_ptr_equal(views[i].data, device->ops->host_view(device, places[i].address));
        }
        assert_int_equal(pllm_memory_pin_device(memory, tensor, at, 1, PLLM_MEMORY_READ, places, 0,
                                                &place_count),
                         PLLM_EINVAL);
        assert_int_equal(pllm_memory_unpin(memory, tensor, at, 4 * PAGE), PLLM_OK);
        assert_int_equal(pllm_memory_unpin(memory, tensor, at, 4 * PAGE), PLLM_OK);
    }
    pllm_memory_close(memory);
    pllm_device_close(device);
}

/* `static` keeps pages that lie evenly: of any quarter of the tensor, about as many as fit in all.
 */
static void what_stays_lies_evenly(void **state)
{
    (void)state;
    enum { PAGES = 64, FRAMES = 32 };
    pllm_memory_options options = {.struct_bytes = sizeof options,
                                   .vram_limit_bytes = FRAMES * PAGE,
                                   .host_memory_bytes = 2 * PAGES * PAGE,
                                   .page_bytes = PAGE,
                                   .policy = "static",
                                   .prefetch_strategy = "none"};
    pllm_memory *memory;
    pllm_tensor tensor;
    unsigned char page[PAGE] = {1};
    assert_int_equal(pllm_memory_open(NULL, &options, &memory), PLLM_OK);
    assert_int_equal(pllm_memory_allocate(memory, PAGES * PAGE, PLLM_MEMORY_NORMAL, &tensor),
                     PLLM_OK);
    for (uint64_t i = 0; i < PAGES; i++)
        assert_int_equal(pllm_memory_write(memory, tensor, i * PAGE, PAGE, page), PLLM_OK);
    /* Which page goes also depends on which are still being written back: it settles. */
    uint32_t even = 0;
    for (uint32_t round = 0; even < 4 && round < 100; round++) {
        even = 0;
        for (uint64_t quarter = 0; quarter < 4; quarter++) {
            uint64_t before = stats_of(memory).misses;
            for (uint64_t i = quarter * PAGES / 4; i < (quarter + 1) * PAGES / 4; i++)
                assert_int_equal(pllm_memory_read(memory, tensor, i * PAGE, PAGE, page), PLLM_OK);
            uint64_t misses = stats_of(memory).misses - before;
            even += misses >= PAGES / 8 - 2 && misses <= PAGES / 8 + 3;
        }
    }
    assert_int_equal(even, 4);
    pllm_memory_close(memory);
}

static void handles_go_stale(void **state)
{
    (void)state;
    pllm_memory *memory = open_memory(NULL, 16, 16, 0);
    pllm_tensor tensor, next, others[3];
    uint64_t bytes;
    char byte = 1;
    assert_int_equal(pllm_memory_allocate(memory, 10, PLLM_MEMORY_NORMAL, &tensor), PLLM_OK);
    assert_int_equal(pllm_memory_write(memory, tensor, 9, 1, &byte), PLLM_OK);
    assert_int_equal(pllm_memory_write(memory, tensor, 10, 1, &byte), PLLM_EINVAL);
    assert_int_equal(pllm_memory_read(memory, tensor, UINT64_MAX, 2, &byte), PLLM_EINVAL);
    assert_int_equal(pllm_memory_deallocate(memory, tensor), PLLM_OK);
    assert_int_equal(pllm_memory_deallocate(memory, tensor), PLLM_ESTALE);
    assert_int_equal(pllm_memory_allocate(memory, 20, PLLM_MEMORY_NORMAL, &next), PLLM_OK);
    assert_int_equal(pllm_memory_read(memory, tensor, 0, 1, &byte), PLLM_ESTALE);
    assert_int_equal(pllm_memory_read(memory, 0, 0, 1, &byte), PLLM_ESTALE);
    byte = 1;
    assert_int_equal(pllm_memory_read(memory, next, 9, 1, &byte), PLLM_OK);
    assert_int_equal(byte, 0); /* nothing of the old tensor shows */
    assert_int_equal(pllm_memory_size(memory, next, &bytes, NULL), PLLM_OK);
    assert_int_equal(bytes, 20);
    for (int i = 0; i < 3; i++)
        assert_int_equal(pllm_memory_allocate(memory, 1, PLLM_MEMORY_NORMAL, &others[i]), PLLM_OK);
    assert_int_equal(pllm_memory_allocate(memory, 1, PLLM_MEMORY_NORMAL, &tensor), PLLM_ELIMIT);
    assert_int_equal(pllm_memory_deallocate(memory, others[0]), PLLM_OK);
    assert_int_equal(pllm_memory_allocate(memory, 40 * PAGE, PLLM_MEMORY_NORMAL, &tensor),
                     PLLM_ELIMIT);
    assert_int_equal(pllm_memory_allocate(memory, 28 * PAGE, PLLM_MEMORY_KEEP, &tensor), PLLM_OK);
    assert_int_equal(stats_of(memory).pages, 31);
    pllm_memory_close(memory);
}

static void limits_and_options_are_kept(void **state)
{
    (void)state;
    pllm_memory *memory = open_memory(NULL, 64, 64, 0);
    pllm_tensor tensor;
    static char data[48 * PAGE];
    uint64_t evicted;
    assert_int_equal(pllm_memory_allocate(memory, sizeof data, PLLM_MEMORY_NORMAL, &tensor),
                     PLLM_OK);
    memset(data, 5, sizeof data);
    assert_int_equal(pllm_memory_write(memory, tensor, 0, sizeof data, data), PLLM_OK);
    assert_int_equal(pllm_memory_evict(memory, 3 * PAGE + 1, &evicted), PLLM_OK);
    assert_int_equal(evicted, 4 * PAGE);
    assert_int_equal(pllm_memory_set_vram_limit(memory, 16 * PAGE), PLLM_OK);
    assert_true(stats_of(memory).resident_bytes <= 16 * PAGE);
    assert_int_equal(pllm_memory_set_vram_limit(memory, 100), PLLM_EINVAL);
    assert_int_equal(pllm_memory_advise(memory, tensor, 0, PAGE, (pllm_memory_advice)9),
                     PLLM_EINVAL);
    assert_int_equal(pllm_memory_poll(memory), PLLM_OK);
    assert_int_equal(pllm_memory_allocate(memory, PAGE, (pllm_memory_advice)9, &tensor),
                     PLLM_EINVAL);
    assert_true(tensor == 0 && stats_of(memory).tensors == 1);
    pllm_memory_close(memory);

    pllm_memory_options bad = {.struct_bytes = sizeof bad, .page_bytes = 100};
    assert_int_equal(pllm_memory_open(NULL, &bad, &memory), PLLM_EINVAL);
    bad = (pllm_memory_options){.struct_bytes = sizeof bad, .device = "cuda"};
    assert_int_equal(pllm_memory_open(NULL, &bad, &memory), PLLM_EUNSUPPORTED);
    bad = (pllm_memory_options){.struct_bytes = sizeof bad, .vram_limit_bytes = 4096};
    assert_int_equal(pllm_memory_open(NULL, &bad, &memory), PLLM_ENODEVMEM);
    bad = (pllm_memory_options){.struct_bytes = sizeof bad, .policy = "mru"};
    assert_int_equal(pllm_memory_open(NULL, &bad, &memory), PLLM_EINVAL);
    bad = (pllm_memory_options){
        .struct_bytes = sizeof bad, .nvme_path = "/no/such/folder", .nvme_size_bytes = 1 << 20};
    assert_int_equal(pllm_memory_open(NULL, &bad, &memory), PLLM_EIO);
    assert_null(memory);
}

static int use(const pllm_context *context)
{
    pllm_memory_options options = {
        .struct_bytes = sizeof options,
        .vram_limit_bytes = 16 * PAGE,
        .host_memory_bytes = 40 * PAGE,
        .page_bytes = PAGE,
        .tensor_max = 3,
    };
    pllm_memory *memory;
    pllm_tensor tensor;
    static unsigned char data[30 * PAGE], back[30 * PAGE];
    int status = pllm_memory_open(context, &options, &memory);
    if (status < 0) return status;
    fill(data, sizeof data, 3);
    status = pllm_memory_allocate(memory, sizeof data, PLLM_MEMORY_SEQUENTIAL, &tensor);
    if (status < 0) { /* nothing of it is left, and the failure is what is told */
        assert_int_equal(pllm_last_error()->status, status);
        assert_true(tensor == 0 && stats_of(memory).tensors == 0 && stats_of(memory).pages == 0);
    }
    if (status == PLLM_OK) status = pllm_memory_write(memory, tensor, 0, sizeof data, data);
    if (status == PLLM_OK) status = pllm_memory_read(memory, tensor, 0, sizeof data, back);
    if (status == PLLM_OK) assert_memory_equal(back, data, sizeof data);
    pllm_memory_close(memory);
    return status;
}

static void every_lost_allocation_is_survived(void **state)
{
    (void)state;
    uint64_t n = 0;
    for (;; n++) {
        failing_context failing;
        failing_context_init(&failing, n);
        int status = use(&failing.context);
        if (status != PLLM_OK) assert_int_equal(status, PLLM_ENOMEM);
        failing_context_check(&failing);
        if (!failing_context_hit(&failing)) break;
    }
    print_message("%llu allocations failed in turn\n", (unsigned long long)n);
    assert_true(n >= 40);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_survive_at_any_offset),
        cmocka_unit_test(pins_give_views_in_order),
        cmocka_unit_test(overwriting_brings_nothing_in),
        cmocka_unit_test(places_are_where_views_are),
        cmocka_unit_test(what_stays_lies_evenly),
        cmocka_unit_test(handles_go_stale),
        cmocka_unit_test(limits_and_options_are_kept),
        cmocka_unit_test(every_lost_allocation_is_survived),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
