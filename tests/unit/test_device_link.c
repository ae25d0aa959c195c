/* The host device's simulated link. Lower bounds are exact, since they are the contract; upper
 * bounds are far away from what is expected and catch wrong units and serialised directions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>
#include <cmocka.h>
#include "device/device.h"

#define MEBI ((uint64_t)1 << 20)
#define MS ((uint64_t)1000000)

typedef struct fixture {
    pllm_device *device;
    const pllm_device_ops *ops;
    pllm_stream *a, *b;
    pllm_event *event_a, *event_b;
    pllm_chunk *chunk;
    pllm_va va;
    void *host;
} fixture;

static void open_fixture(fixture *f, double bytes_per_second, uint64_t latency_ns)
{
    pllm_host_device_options options = {.struct_bytes = sizeof options,
                                        .capacity_bytes = 16 * MEBI,
                                        .link_bytes_per_second = bytes_per_second,
                                        .link_latency_ns = latency_ns};
    assert_int_equal(pllm_device_open_host(NULL, &options, &f->device), PLLM_OK);
    f->ops = f->device->ops;
    assert_int_equal(f->ops->stream_open(f->device, &f->a), PLLM_OK);
    assert_int_equal(f->ops->stream_open(f->device, &f->b), PLLM_OK);
    assert_int_equal(f->ops->event_open(f->device, &f->event_a), PLLM_OK);
    assert_int_equal(f->ops->event_open(f->device, &f->event_b), PLLM_OK);
    assert_int_equal(f->ops->reserve(f->device, 4 * MEBI, &f->va), PLLM_OK);
    assert_int_equal(f->ops->chunk_create(f->device, 4 * MEBI, &f->chunk), PLLM_OK);
    assert_int_equal(f->ops->map(f->device, f->va, &f->chunk, 1), PLLM_OK);
    assert_int_equal(f->ops->host_alloc(f->device, 4 * MEBI, &f->host), PLLM_OK);
    assert_int_equal(f->ops->fill(f->device, f->a, f->va, 4 * MEBI, 1), PLLM_OK); /* touch it */
    assert_int_equal(f->ops->stream_sync(f->device, f->a), PLLM_OK);
}

static void close_fixture(fixture *f)
{
    f->ops->event_close(f->device, f->event_a);
    f->ops->event_close(f->device, f->event_b);
    f->ops->stream_close(f->device, f->a);
    f->ops->stream_close(f->device, f->b);
    f->ops->unmap(f->device, f->va, f->chunk);
    f->ops->chunk_destroy(f->device, f->chunk);
    f->ops->release(f->device, f->va, 4 * MEBI);
    f->ops->host_free(f->device, f->host, 4 * MEBI);
    pllm_device_close(f->device);
}

static void submit(fixture *f, pllm_stream *stream, pllm_copy_kind kind, uint64_t offset,
                   uint64_t bytes)
{
    pllm_va device = f->va + offset, host = (pllm_va)(uintptr_t)f->host + offset;
    pllm_copy copy =
        kind == PLLM_COPY_IN ? (pllm_copy){device, host, bytes} : (pllm_copy){host, device, bytes};
    assert_int_equal(f->ops->copy(f->device, stream, kind, &copy), PLLM_OK);
}

static uint64_t finish(fixture *f, uint64_t start_ns)
{
    assert_int_equal(f->ops->event_record(f->device, f->event_a, f->a), PLLM_OK);
    assert_int_equal(f->ops->event_record(f->device, f->event_b, f->b), PLLM_OK);
    assert_int_equal(f->ops->event_wait(f->device, f->event_a, UINT64_MAX), PLLM_OK);
    assert_int_equal(f->ops->event_wait(f->device, f->event_b, UINT64_MAX), PLLM_OK);
    return f->ops->now_ns(f->device) - start_ns;
}

static void a_copy_takes_its_bytes_over_the_bandwidth(void **state)
{
    (void)state;
    fixture f;
    open_fixture(&f, 20e6, 5 * MS);
    uint64_t start = f.ops->now_ns(f.device);
    struct timespec before, after;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
    submit(&f, f.a, PLLM_COPY_IN, 0, 1000000); /* 50 ms and 5 ms */
    assert_int_equal(f.ops->event_record(f.device, f.event_a, f.a), PLLM_OK);
    assert_int_equal(f.ops->event_query(f.device, f.event_a), 0);
    assert_int_equal(f.ops->event_wait(f.device, f.event_a, MS), PLLM_ETIMEDOUT);
    uint64_t elapsed = finish(&f, start);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
    assert_true(elapsed >= 55 * MS && elapsed < 500 * MS);
    int64_t cpu_ns = (after.tv_sec - before.tv_sec) * 1000000000 + after.tv_nsec - before.tv_nsec;
    assert_true(cpu_ns < 20 * (int64_t)MS); /* the processor is free meanwhile */
    close_fixture(&f);
}

static void streams_share_a_direction(void **state)
{
    (void)state;
    fixture f;
    open_fixture(&f, 50e6, 0);
    uint64_t start = f.ops->now_ns(f.device);
    for (uint64_t i = 0; i < 10; i++) {
        submit(&f, f.a, PLLM_COPY_OUT, i * 100000, 100000);
        submit(&f, f.b, PLLM_COPY_OUT, (10 + i) * 100000, 100000);
    }
    assert_true(finish(&f, start) >= 40 * MS); /* 2 MB */
    close_fixture(&f);
}

static void directions_do_not_share(void **state)
{
    (void)state;
    fixture f;
    open_fixture(&f, 10e6, 0);
    uint64_t start = f.ops->now_ns(f.device);
    submit(&f, f.a, PLLM_COPY_IN, 0, 1500000);
    submit(&f, f.b, PLLM_COPY_OUT, 2 * MEBI, 1500000);
    uint64_t elapsed = finish(&f, start);
    assert_true(elapsed >= 150 * MS && elapsed < 290 * MS); /* 300 were they one */
    close_fixture(&f);
}

static void a_batch_is_one_call(void **state)
{
    (void)state;
    fixture f;
    open_fixture(&f, 1e9, 20 * MS);
    pllm_copy copies[10];
    for (uint64_t i = 0; i < 10; i++)
        copies[i] = (pllm_copy){f.va + i * 4096, (pllm_va)(uintptr_t)f.host + i * 4096, 4096};
    uint64_t start = f.ops->now_ns(f.device);
    assert_int_equal(f.ops->copy_batch(f.device, f.a, PLLM_COPY_IN, copies, 10), PLLM_OK);
    uint64_t elapsed = finish(&f, start);
    assert_true(elapsed >= 20 * MS && elapsed < 150 * MS);
    start = f.ops->now_ns(f.device);
    for (int i = 0; i < 5; i++) submit(&f, f.a, PLLM_COPY_IN, 0, 4096);
    assert_true(finish(&f, start) >= 100 * MS);
    close_fixture(&f);
}

static void work_within_the_device_is_not_on_the_link(void **state)
{
    (void)state;
    fixture f;
    open_fixture(&f, 1000, 0); /* a mebibyte would take 17 minutes */
    pllm_copy copy = {f.va, f.va + MEBI, MEBI};
    assert_int_equal(f.ops->copy(f.device, f.a, PLLM_COPY_WITHIN, &copy), PLLM_OK);
    assert_int_equal(f.ops->fill(f.device, f.a, f.va, MEBI, 1), PLLM_OK);
    assert_int_equal(f.ops->event_record(f.device, f.event_a, f.a), PLLM_OK);
    assert_int_equal(f.ops->event_wait(f.device, f.event_a, 10000 * MS), PLLM_OK);
    close_fixture(&f);
}

static void waiting_streams_start_after_the_copy_has_ended(void **state)
{
    (void)state;
    fixture f;
    open_fixture(&f, 20e6, 0);
    uint64_t start = f.ops->now_ns(f.device);
    submit(&f, f.a, PLLM_COPY_IN, 0, 600000); /* 30 ms in, then 30 ms out on another stream */
    assert_int_equal(f.ops->event_record(f.device, f.event_a, f.a), PLLM_OK);
    assert_int_equal(f.ops->stream_wait(f.device, f.b, f.event_a), PLLM_OK);
    submit(&f, f.b, PLLM_COPY_OUT, 0, 600000);
    assert_true(finish(&f, start) >= 60 * MS);
    close_fixture(&f);
}

static void bad_options_are_refused(void **state)
{
    (void)state;
    pllm_device *device;
    pllm_host_device_options options = {.struct_bytes = sizeof options,
                                        .link_bytes_per_second = -1};
    assert_int_equal(pllm_device_open_host(NULL, &options, &device), PLLM_EINVAL);
    options.link_bytes_per_second = 0.0 / 0.0;
    assert_int_equal(pllm_device_open_host(NULL, &options, &device), PLLM_EINVAL);
    options.link_bytes_per_second = 0;
    options.granularity_bytes = 4096;
    assert_int_equal(pllm_device_open_host(NULL, &options, &device), PLLM_EINVAL);
    options.granularity_bytes = 3 << 16;
    assert_int_equal(pllm_device_open_host(NULL, &options, &device), PLLM_EINVAL);
    options.granularity_bytes = 1 << 20;
    options.chunk_bytes = 1 << 19;
    assert_int_equal(pllm_device_open_host(NULL, &options, &device), PLLM_EINVAL);
    options.struct_bytes = 3;
    assert_int_equal(pllm_device_open_host(NULL, &options, &device), PLLM_EINVAL);
    assert_null(device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_copy_takes_its_bytes_over_the_bandwidth),
        cmocka_unit_test(streams_share_a_direction),
        cmocka_unit_test(directions_do_not_share),
        cmocka_unit_test(a_batch_is_one_call),
        cmocka_unit_test(work_within_the_device_is_not_on_the_link),
        cmocka_unit_test(waiting_streams_start_after_the_copy_has_ended),
        cmocka_unit_test(bad_options_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
