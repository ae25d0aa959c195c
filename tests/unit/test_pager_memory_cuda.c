/* A memory on a device that the CPU can't read (the CUDA device on the driver of tests/fake):
 * reading and writing go through copies, pins give no views, and every failing device call leaves
 * the rest of the memory as it was. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "device/cuda.h"
#include "failing_context.h"
#include "pager/memory_device.h"
#include "../fake/fake_cuda.h"

#define LIBRARY PLLM_BINARY_DIR "/tests/libfake_cuda.so"
#define MEBI ((uint64_t)1 << 20)

static fake_cuda *fake;

static pllm_device *device_open(const pllm_context *context)
{
    pllm_cuda_device_options options = {.struct_bytes = sizeof options,
                                        .capacity_bytes = 64 * MEBI,
                                        .library = LIBRARY,
                                        .nvml = LIBRARY};
    pllm_device *device;
    assert_int_equal(pllm_device_open_cuda(context, &options, &device), PLLM_OK);
    return device;
}

static pllm_memory_options options_of(uint64_t page_bytes, uint64_t limit)
{
    return (pllm_memory_options){.struct_bytes = sizeof(pllm_memory_options),
                                 .page_bytes = page_bytes,
                                 .vram_limit_bytes = limit,
                                 .host_memory_bytes = 64 * MEBI,
                                 .capacity_bytes = 32 * MEBI};
}

static void bytes_come_back_from_pages_that_left(void **state)
{
    (void)state;
    static const uint64_t page_sizes[] = {64 << 10, 4096 * 3, 4 * MEBI};
    for (int p = 0; p < 3; p++) {
        fake->deferred = p != 1; /* work is done as late as may be */
        failing_context context;
        failing_context_init(&context, FAILING_NEVER);
        pllm_device *device = device_open(&context.context);
        uint64_t page = page_sizes[p], total = 10 * MEBI + 12345;
        pllm_memory_options options = options_of(page, page > MEBI ? 8 * MEBI : MEBI);
        pllm_memory *memory;
        pllm_tensor tensor;
        assert_int_equal(pllm_memory_open_on(&context.context, device, &options, &memory), PLLM_OK);
        assert_int_equal(pllm_memory_allocate(memory, total, PLLM_MEMORY_NORMAL, &tensor), PLLM_OK);
        unsigned char *model = calloc(1, total), *seen = malloc(total);
        unsigned random = 1;
        for (int i = 0; i < 60; i++) {
            random = random * 1103515245u + 12345;
            uint64_t bytes = (i % 7 == 0 ? 3 * MEBI : 70000) - random % 4096;
            uint64_t offset = (uint64_t)random * 2654435761u % (total - bytes);
            if (i % 3 == 2) {
                assert_int_equal(pllm_memory_read(memory, tensor, offset, bytes, seen), PLLM_OK);
                assert_memory_equal(seen, model + offset, bytes);
            } else {
                for (uint64_t b = 0; b < bytes; b++)
                    model[offset + b] = (unsigned char)(b * 7 + (b >> 20) * 5 + i);
                assert_int_equal(pllm_memory_write(memory, tensor, offset, bytes, model + offset),
                                 PLLM_OK);
            }
        }
        assert_int_equal(pllm_memory_read(memory, tensor, 0, total, seen), PLLM_OK);
        assert_memory_equal(seen, model, total);
        pllm_memory_stats stats = {.struct_bytes = sizeof stats};
        assert_int_equal(pllm_memory_stats_get(memory, &stats), PLLM_OK);
        assert_true(stats.evictions > 0);

        pllm_memory_view view = {.data = &view};
        pllm_memory_place place;
        uint32_t count;
        assert_int_equal(
            pllm_memory_pin(memory, tensor, 100, 10, PLLM_MEMORY_READ, &view, 1, &count), PLLM_OK);
        assert_null(view.data);
        assert_int_equal(view.bytes, 10);
        assert_int_equal(
            pllm_memory_pin_device(memory, tensor, 100, 10, PLLM_MEMORY_READ, &place, 1, &count),
            PLLM_OK);
        /* The fake's addresses are pointers, which a GPU's are not. */
        assert_memory_equal((void *)(uintptr_t)place.address, model + 100, 10);
        assert_int_equal(pllm_memory_unpin(memory, tensor, 100, 10), PLLM_OK);
        assert_int_equal(pllm_memory_unpin(memory, tensor, 100, 10), PLLM_OK);
        pllm_memory_close(memory);
        pllm_device_close(device);
        free(model);
        free(seen);
        failing_context_check(&context);
        assert_int_equal(fake->live, 0);
    }
}

/* Write a, write b, read a, with the Nth device call failing: each step works or says why not, and
 * when all is well again what was written is there. */
static void a_failing_device_call_is_told(void **state)
{
    (void)state;
    fake->deferred = 1;
    static unsigned char a[300000], b[300000], seen[300000];
    memset(a, 1, sizeof a);
    memset(b, 2, sizeof b);
    pllm_device *inner = device_open(NULL), *device;
    for (uint64_t n = 0;; n++) {
        pllm_memory_options options = options_of(64 << 10, 4 * (64 << 10));
        pllm_memory *memory;
        pllm_tensor first, second;
        assert_int_equal(pllm_device_open_faulty(NULL, inner, NULL, &device), PLLM_OK);
        assert_int_equal(pllm_memory_open_on(NULL, device, &options, &memory), PLLM_OK);
        assert_int_equal(pllm_memory_allocate(memory, sizeof a, PLLM_MEMORY_NORMAL, &first),
                         PLLM_OK);
        assert_int_equal(pllm_memory_allocate(memory, sizeof b, PLLM_MEMORY_NORMAL, &second),
                         PLLM_OK);
        pllm_faulty_device_arm(device, n);
        int wrote_a = pllm_memory_write(memory, first, 0, sizeof a, a);
        int wrote_b = pllm_memory_write(memory, second, 0, sizeof b, b);
        int read_a = pllm_memory_read(memory, first, 0, sizeof seen, seen);
        if (wrote_a == PLLM_OK && read_a == PLLM_OK) assert_memory_equal(seen, a, sizeof a);
        int hit = pllm_faulty_device_calls(device) > n;
        pllm_faulty_device_arm(device, UINT64_MAX);
        if (!hit) assert_true(wrote_a == PLLM_OK && wrote_b == PLLM_OK && read_a == PLLM_OK);
        int again = PLLM_EDEVICE; /* what was moving meanwhile may report its own failure, once */
        for (int i = 0; again < 0 && i < (hit ? 3 : 1); i++)
            again = pllm_memory_write(memory, second, 0, sizeof b, b);
        assert_int_equal(again, PLLM_OK);
        assert_int_equal(pllm_memory_read(memory, second, 0, sizeof seen, seen), PLLM_OK);
        assert_memory_equal(seen, b, sizeof b);
        pllm_memory_close(memory);
        assert_int_equal(pllm_faulty_device_live(device), 0);
        pllm_device_close(device);
        if (!hit) break;
    }
    pllm_device_close(inner);
    assert_int_equal(fake->live, 0);
}

static void devices_are_named(void **state)
{
    (void)state;
    pllm_memory_options options = options_of(0, MEBI);
    pllm_memory *memory;
    options.device = "host";
    assert_int_equal(pllm_memory_open(NULL, &options, &memory), PLLM_OK);
    pllm_memory_close(memory);
    options.device = "abacus";
    assert_int_equal(pllm_memory_open(NULL, &options, &memory), PLLM_EINVAL);
    assert_null(memory);
    options.device = "cuda:1000"; /* no machine has it, with or without a driver */
    assert_int_equal(pllm_memory_open(NULL, &options, &memory), PLLM_EUNSUPPORTED);
    assert_null(memory);
}

int main(void)
{
    fake = fake_cuda_load(LIBRARY);
    if (!fake) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_come_back_from_pages_that_left),
        cmocka_unit_test(a_failing_device_call_is_told),
        cmocka_unit_test(devices_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
