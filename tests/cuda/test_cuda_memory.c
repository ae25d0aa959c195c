/* The pager, the tiers and the device together on a GPU, through the public memory: random writes
 * and reads of tensors several times the device's limit, held against a plain array, with pages in
 * host memory and in a spill file; sealed pages; device calls failing now and then. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "device/cuda.h"
#include "pager/memory_device.h"

#define MEBI ((uint64_t)1 << 20)
#define TOTAL (40 * MEBI + 54321)

typedef struct shadow {
    pllm_memory *memory;
    pllm_tensor tensor;
    unsigned char *bytes, *seen;
    uint64_t random;
} shadow;

static uint64_t next(shadow *s)
{
    s->random = s->random * 6364136223846793005u + 1442695040888963407u;
    return s->random >> 24;
}

static void expect(int status)
{
    if (status < 0) print_error("%s\n", pllm_last_error()->text);
    assert_int_equal(status, PLLM_OK);
}

static void shadow_open(shadow *s, pllm_device *device, const pllm_memory_options *options)
{
    *s = (shadow){.random = 7};
    expect(device ? pllm_memory_open_on(NULL, device, options, &s->memory)
                  : pllm_memory_open(NULL, options, &s->memory));
    expect(pllm_memory_allocate(s->memory, TOTAL, PLLM_MEMORY_NORMAL, &s->tensor));
    s->bytes = calloc(1, TOTAL);
    s->seen = malloc(TOTAL);
    assert_true(s->bytes && s->seen);
}

static void shadow_close(shadow *s)
{
    pllm_memory_close(s->memory);
    free(s->bytes);
    free(s->seen);
}

/* One write or read somewhere; what it returned. A write that fails is undone by writing again. */
static int touch(shadow *s)
{
    uint64_t bytes = next(s) % (next(s) % 4 == 0 ? 5 * MEBI : 100000) + 1;
    uint64_t offset = next(s) % (TOTAL - bytes);
    if (next(s) % 3 == 0) {
        int status = pllm_memory_read(s->memory, s->tensor, offset, bytes, s->seen);
        if (status == PLLM_OK) assert_memory_equal(s->seen, s->bytes + offset, bytes);
        return status;
    }
    unsigned char seed = (unsigned char)next(s);
    for (uint64_t i = 0; i < bytes; i++)
        s->bytes[offset + i] = (unsigned char)(seed + i * 31 + (i >> 8) + (i >> 20) * 5);
    return pllm_memory_write(s->memory, s->tensor, offset, bytes, s->bytes + offset);
}

static void check_all(shadow *s)
{
    expect(pllm_memory_read(s->memory, s->tensor, 0, TOTAL, s->seen));
    assert_memory_equal(s->seen, s->bytes, TOTAL);
}

static void pages_go_to_host_memory_and_come_back(void **state)
{
    (void)state;
    static const uint64_t pages[] = {64 << 10, 2 * MEBI};
    for (int i = 0; i < 2; i++) {
        shadow s;
        pllm_memory_options options = {.struct_bytes = sizeof options,
                                       .device = "cuda",
                                       .page_bytes = pages[i],
                                       .vram_limit_bytes = 12 * MEBI,
                                       .host_memory_bytes = 64 * MEBI,
                                       .capacity_bytes = 64 * MEBI};
        shadow_open(&s, NULL, &options);
        for (int step = 0; step < 150; step++) expect(touch(&s));
        check_all(&s);
        expect(pllm_memory_seal(s.memory, s.tensor));
        check_all(&s);
        pllm_memory_stats stats = {.struct_bytes = sizeof stats};
        expect(pllm_memory_stats_get(s.memory, &stats));
        assert_true(stats.evictions > 0 && stats.resident_peak_bytes <= 12 * MEBI);
        shadow_close(&s);
    }
}

static void pages_go_to_disk_and_come_back(void **state)
{
    (void)state;
    shadow s;
    pllm_memory_options options = {.struct_bytes = sizeof options,
                                   .device = "cuda",
                                   .page_bytes = MEBI,
                                   .vram_limit_bytes = 8 * MEBI,
                                   .host_memory_bytes = 8 * MEBI,
                                   .nvme_path = ".",
                                   .nvme_size_bytes = 64 * MEBI,
                                   .capacity_bytes = 64 * MEBI};
    shadow_open(&s, NULL, &options);
    for (int step = 0; step < 60; step++) expect(touch(&s));
    check_all(&s);
    pllm_memory_stats stats = {.struct_bytes = sizeof stats};
    expect(pllm_memory_stats_get(s.memory, &stats));
    assert_true(stats.disk_write_bytes > 0 && stats.disk_read_bytes > 0);
    shadow_close(&s);
}

/* Each failure is one call's; what was written before, and again after, is there in the end. */
static void device_calls_that_fail_spoil_nothing_else(void **state)
{
    (void)state;
    pllm_device *inner, *device;
    pllm_cuda_device_options cuda = {.struct_bytes = sizeof cuda};
    expect(pllm_device_open_cuda(NULL, &cuda, &inner));
    expect(pllm_device_open_faulty(NULL, inner, NULL, &device));
    shadow s;
    pllm_memory_options options = {.struct_bytes = sizeof options,
                                   .page_bytes = 256 << 10,
                                   .vram_limit_bytes = 12 * MEBI,
                                   .host_memory_bytes = 64 * MEBI,
                                   .capacity_bytes = 64 * MEBI};
    shadow_open(&s, device, &options);
    uint32_t failures = 0;
    for (int step = 0; step < 60; step++) {
        uint64_t before = s.random;
        pllm_faulty_device_arm(device, next(&s) % 40);
        int status = touch(&s);
        pllm_faulty_device_arm(device, UINT64_MAX);
        failures += status < 0;
        /* The same again, without a fault. What was moving meanwhile may report its own failure. */
        for (int again = 0; status < 0 && again < 4; again++) {
            s.random = before;
            next(&s);
            status = touch(&s);
        }
        expect(status);
    }
    assert_true(failures > 5);
    check_all(&s);
    shadow_close(&s);
    assert_int_equal(pllm_faulty_device_live(device), 0);
    pllm_device_close(device);
    pllm_device_close(inner);
}

int main(int argc, char **argv)
{
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pages_go_to_host_memory_and_come_back),
        cmocka_unit_test(pages_go_to_disk_and_come_back),
        cmocka_unit_test(device_calls_that_fail_spoil_nothing_else),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
