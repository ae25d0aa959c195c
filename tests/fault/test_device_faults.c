/* Every allocation under the host and sim devices fails once: a queue that can't grow submits
 * nothing, an open that fails leaves nothing. And the faulty device itself: what it counts, what it
 * fails, and how a failure spreads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>
#include "device/device.h"
#include "failing_context.h"

#define GRANULE ((uint64_t)64 << 10)
#define CAPACITY (64 * GRANULE)

static int open_device(const pllm_context *context, int sim, pllm_device **device)
{
    pllm_sim_device_options sim_options = {
        .struct_bytes = sizeof sim_options, .capacity_bytes = CAPACITY, .latency_ns_max = 50};
    pllm_host_device_options host_options = {.struct_bytes = sizeof host_options,
                                             .capacity_bytes = CAPACITY};
    return sim ? pllm_device_open_sim(context, &sim_options, device)
               : pllm_device_open_host(context, &host_options, device);
}

#define TRY(call)                                   \
    do {                                            \
        int status_ = (call);                       \
        if (status_ < 0) {                          \
            assert_int_equal(status_, PLLM_ENOMEM); \
            failures++;                             \
            status_ = (call);                       \
        }                                           \
        assert_int_equal(status_, PLLM_OK);         \
    } while (0)

static void a_queue_that_cannot_grow_submits_nothing(void **state)
{
    (void)state;
    for (int sim = 0; sim < 2; sim++)
        for (uint64_t n = 0;; n++) {
            enum { BATCH = 100, ROUNDS = 5 };
            failing_context memory;
            failing_context_init(&memory, n);
            uint32_t failures = 0;
            pllm_device *device;
            pllm_stream *stream;
            pllm_va va;
            pllm_chunk *chunk;
            TRY(open_device(&memory.context, sim, &device));
            const pllm_device_ops *ops = device->ops;
            TRY(ops->reserve(device, GRANULE, &va));
            TRY(ops->chunk_create(device, GRANULE, &chunk));
            TRY(ops->map(device, va, &chunk, 1));
            TRY(ops->stream_open(device, &stream));
            unsigned char *view = ops->host_view(device, va);
            TRY(ops->fill(device, stream, va, BATCH * 16, 5));
            for (uint32_t round = 1; round <= ROUNDS; round++) {
                pllm_copy copies[BATCH];
                for (uint32_t i = 0; i < BATCH; i++)
                    copies[i] = (pllm_copy){va + (round * BATCH + i) * 16, va + i * 16, 16};
                int status = ops->copy_batch(device, stream, PLLM_COPY_WITHIN, copies, BATCH);
                if (status < 0) {
                    assert_int_equal(status, PLLM_ENOMEM);
                    failures++;
                    TRY(ops->stream_sync(device, stream));
                    for (uint32_t i = 0; i < BATCH * 16; i++)
                        assert_int_equal(view[round * BATCH * 16 + i], 0); /* nothing came */
                    TRY(ops->copy_batch(device, stream, PLLM_COPY_WITHIN, copies, BATCH));
                }
            }
            TRY(ops->stream_sync(device, stream));
            for (uint32_t i = 0; i < (ROUNDS + 1) * BATCH * 16; i++) assert_int_equal(view[i], 5);
            assert_int_equal(failures, failing_context_hit(&memory) ? 1 : 0);
            ops->stream_close(device, stream);
            ops->unmap(device, va, chunk);
            ops->chunk_destroy(device, chunk);
            ops->release(device, va, GRANULE);
            pllm_device_close(device);
            failing_context_check(&memory);
            if (!failing_context_hit(&memory)) {
                print_message("allocations failed one by one: %u (%s)\n", (unsigned)n,
                              sim ? "sim" : "host");
                assert_true(n >= 8);
                break;
            }
        }
}

typedef struct fixture {
    pllm_device *inner, *device;
    const pllm_device_ops *ops;
    pllm_stream *a, *b;
    pllm_event *event, *other;
    pllm_chunk *chunk;
    pllm_va va;
    unsigned char *view;
} fixture;

static void open_fixture(fixture *f, uint32_t persistent, uint32_t fail_async)
{
    pllm_faulty_device_options options = {sizeof options, UINT64_MAX, persistent, fail_async};
    assert_int_equal(open_device(NULL, 1, &f->inner), PLLM_OK);
    assert_int_equal(pllm_device_open_faulty(NULL, f->inner, &options, &f->device), PLLM_OK);
    f->ops = f->device->ops;
    assert_int_equal(f->ops->stream_open(f->device, &f->a), PLLM_OK);
    assert_int_equal(f->ops->stream_open(f->device, &f->b), PLLM_OK);
    assert_int_equal(f->ops->event_open(f->device, &f->event), PLLM_OK);
    assert_int_equal(f->ops->event_open(f->device, &f->other), PLLM_OK);
    assert_int_equal(f->ops->reserve(f->device, GRANULE, &f->va), PLLM_OK);
    assert_int_equal(f->ops->chunk_create(f->device, GRANULE, &f->chunk), PLLM_OK);
    assert_int_equal(f->ops->map(f->device, f->va, &f->chunk, 1), PLLM_OK);
    f->view = f->ops->host_view(f->device, f->va);
}

static void close_fixture(fixture *f)
{
    assert_int_equal(pllm_faulty_device_live(f->device), 7);
    (void)f->ops->stream_sync(f->device, f->a);
    (void)f->ops->stream_sync(f->device, f->b);
    f->ops->unmap(f->device, f->va, f->chunk);
    f->ops->chunk_destroy(f->device, f->chunk);
    f->ops->release(f->device, f->va, GRANULE);
    f->ops->event_close(f->device, f->event);
    f->ops->event_close(f->device, f->other);
    f->ops->stream_close(f->device, f->a);
    f->ops->stream_close(f->device, f->b);
    assert_int_equal(pllm_faulty_device_live(f->device), 0);
    pllm_device_close(f->device);
    pllm_device_close(f->inner);
}

static void calls_and_objects_are_counted(void **state)
{
    (void)state;
    fixture f;
    open_fixture(&f, 0, 0);
    assert_int_equal(pllm_faulty_device_calls(f.device), 7);
    assert_int_equal(pllm_faulty_device_live_of(f.device, PLLM_FAULTY_RESERVATION), 1);
    assert_int_equal(pllm_faulty_device_live_of(f.device, PLLM_FAULTY_CHUNK), 1);
    assert_int_equal(pllm_faulty_device_live_of(f.device, PLLM_FAULTY_MAPPING), 1);
    assert_int_equal(pllm_faulty_device_live_of(f.device, PLLM_FAULTY_STREAM), 2);
    assert_int_equal(pllm_faulty_device_live_of(f.device, PLLM_FAULTY_EVENT), 2);
    assert_int_equal(pllm_faulty_device_live_of(f.device, PLLM_FAULTY_HOST), 0);
    void *host;
    assert_int_equal(f.ops->host_alloc(f.device, 10, &host), PLLM_OK);
    assert_int_equal(pllm_faulty_device_live_of(f.device, PLLM_FAULTY_HOST), 1);
    f.ops->host_free(f.device, host, 10);
    close_fixture(&f);
}

static void one_call_fails_or_every_one_from_it(void **state)
{
    (void)state;
    for (uint32_t persistent = 0; persistent < 2; persistent++) {
        fixture f;
        open_fixture(&f, persistent, 0);
        pllm_faulty_device_arm(f.device, 1);
        pllm_chunk *chunk, *second;
        assert_int_equal(f.ops->chunk_create(f.device, GRANULE, &chunk), PLLM_OK);
        assert_int_equal(f.ops->chunk_create(f.device, GRANULE, &second), PLLM_ENODEVMEM);
        assert_null(second);
        int status = f.ops->fill(f.device, f.a, f.va, 8, 1);
        assert_int_equal(status, persistent ? PLLM_EDEVICE : PLLM_OK);
        assert_int_equal(pllm_faulty_device_calls(f.device), 3);
        pllm_faulty_device_arm(f.device, UINT64_MAX);
        assert_int_equal(f.ops->fill(f.device, f.a, f.va, 8, 1), PLLM_OK);
        f.ops->chunk_destroy(f.device, chunk);
        close_fixture(&f);
    }
}

static void an_asynchronous_failure_follows_the_work(void **state)
{
    (void)state;
    fixture f;
    open_fixture(&f, 0, 1);
    memset(f.view, 5, 64);
    assert_int_equal(f.ops->event_record(f.device, f.other, f.a), PLLM_OK); /* before it: clean */
    pllm_faulty_device_arm(f.device, 0);
    assert_int_equal(f.ops->fill(f.device, f.a, f.va, 64, 9), PLLM_OK); /* accepted, never done */
    assert_int_equal(f.ops->event_record(f.device, f.event, f.a), PLLM_OK);
    assert_int_equal(f.ops->event_query(f.device, f.other), 1);
    assert_int_equal(f.ops->event_wait(f.device, f.event, UINT64_MAX), PLLM_EDEVICE);
    assert_int_equal(f.ops->event_query(f.device, f.event), PLLM_EDEVICE);
    assert_int_equal(f.view[0], 5);
    /* Who waits for failed work has failed as well. */
    assert_int_equal(f.ops->stream_wait(f.device, f.b, f.event), PLLM_OK);
    assert_int_equal(f.ops->event_record(f.device, f.other, f.b), PLLM_OK);
    assert_int_equal(f.ops->event_wait(f.device, f.other, UINT64_MAX), PLLM_EDEVICE);
    /* A sync reports it and makes the stream fit again; the old event keeps its failure. */
    assert_int_equal(f.ops->stream_sync(f.device, f.a), PLLM_EDEVICE);
    assert_int_equal(f.ops->stream_sync(f.device, f.a), PLLM_OK);
    assert_int_equal(f.ops->event_query(f.device, f.event), PLLM_EDEVICE);
    assert_int_equal(f.ops->event_record(f.device, f.event, f.a), PLLM_OK);
    assert_int_equal(f.ops->event_query(f.device, f.event), 1);
    assert_int_equal(f.ops->stream_sync(f.device, f.b), PLLM_EDEVICE);
    close_fixture(&f);
}

static void a_failed_query_means_that_the_work_is_over(void **state)
{
    (void)state;
    for (int way = 0; way < 3; way++) {
        fixture f;
        open_fixture(&f, 0, 0);
        assert_int_equal(f.ops->fill(f.device, f.a, f.va, 64, 9), PLLM_OK);
        assert_int_equal(f.ops->event_record(f.device, f.event, f.a), PLLM_OK);
        pllm_faulty_device_arm(f.device, 0);
        int status = way == 0   ? f.ops->event_query(f.device, f.event)
                     : way == 1 ? f.ops->event_wait(f.device, f.event, 0)
                                : f.ops->stream_sync(f.device, f.a);
        assert_int_equal(status, PLLM_EDEVICE);
        assert_int_equal(f.view[63], 9);
        close_fixture(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_queue_that_cannot_grow_submits_nothing),
        cmocka_unit_test(calls_and_objects_are_counted),
        cmocka_unit_test(one_call_fails_or_every_one_from_it),
        cmocka_unit_test(an_asynchronous_failure_follows_the_work),
        cmocka_unit_test(a_failed_query_means_that_the_work_is_over),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
