/* Pools on the CUDA device, on the driver of tests/fake, whose work is done as late as may be:
 * blocks keep their bytes until the streams that use them are past them, chunks that move take
 * nothing along, and a failing driver call loses nothing. And the driver's own pool, for
 * comparisons. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "../fake/fake_cuda.h"
#include "device/cuda.h"
#include "failing_context.h"
#include "pool/pool.h"

#define LIBRARY PLLM_BINARY_DIR "/tests/libfake_cuda.so"
#define MEBI ((uint64_t)1 << 20)
enum { STREAMS = 3, LIVE = 10, STEPS = 250, PROBE = 64, PROBES = 1024 };

static fake_cuda *fake;

typedef struct block {
    uint64_t address, bytes;
    uint32_t stream;
    uint8_t value;
} block;

typedef struct world {
    failing_context memory;
    pllm_device *device;
    const pllm_device_ops *ops;
    pllm_pool *pool;
    pllm_stream *streams[STREAMS];
    block live[LIVE];
    uint32_t live_count, probe_count, refused;
    unsigned char *probes;
    uint8_t expect[PROBES];
    uint32_t random;
} world;

static uint32_t draw(world *w, uint32_t below)
{
    w->random = w->random * 1664525u + 1013904223u;
    return (uint32_t)((uint64_t)w->random * below >> 32);
}

static void open_world(world *w, uint32_t seed, uint64_t limit)
{
    *w = (world){.random = seed};
    failing_context_init(&w->memory, FAILING_NEVER);
    const pllm_context *context = &w->memory.context;
    pllm_cuda_device_options options = {.struct_bytes = sizeof options,
                                        .capacity_bytes = 64 * MEBI,
                                        .library = LIBRARY,
                                        .nvml = LIBRARY};
    pllm_pool_options pool = {.struct_bytes = sizeof pool,
                              .limit_bytes = limit,
                              .capacity_bytes = 256 * MEBI,
                              .block_max = 1024,
                              .wait_us = 1};
    void *probes;
    assert_int_equal(pllm_device_open_cuda(context, &options, &w->device), PLLM_OK);
    w->ops = w->device->ops;
    for (int i = 0; i < STREAMS; i++)
        assert_int_equal(pllm_stream_open(w->device, NULL, &w->streams[i]), PLLM_OK);
    assert_int_equal(w->ops->host_alloc(w->device, PROBES * PROBE, &probes), PLLM_OK);
    w->probes = probes;
    assert_int_equal(pllm_pool_open(context, w->device, &pool, &w->pool), PLLM_OK);
}

static void close_world(world *w)
{
    pllm_pool_close(w->pool);
    for (int i = 0; i < STREAMS; i++) pllm_stream_close(w->device, w->streams[i]);
    w->ops->host_free(w->device, w->probes, PROBES * PROBE);
    pllm_device_close(w->device);
    assert_int_equal(fake->live, 0);
    failing_context_check(&w->memory);
}

static int step_allocate(world *w)
{
    block b = {.stream = draw(w, STREAMS), .value = (uint8_t)(1 + draw(w, 200))};
    b.bytes = draw(w, 3) ? 1 + draw(w, 6 << 20) : 64 + draw(w, 20000);
    int status = pllm_pool_allocate(w->pool, b.bytes, w->streams[b.stream], &b.address);
    if (status < 0) return status;
    assert_int_equal(w->ops->fill(w->device, w->streams[b.stream], b.address, b.bytes, b.value),
                     PLLM_OK);
    w->live[w->live_count++] = b;
    return PLLM_OK;
}

static void step_free(world *w)
{
    uint32_t which = draw(w, w->live_count), other = draw(w, STREAMS);
    block b = w->live[which];
    w->live[which] = w->live[--w->live_count];
    if (draw(w, 2) && other != b.stream && !fake->fail_call) {
        pllm_event *event;
        assert_int_equal(w->ops->event_open(w->device, &event), PLLM_OK);
        assert_int_equal(w->ops->event_record(w->device, event, w->streams[b.stream]), PLLM_OK);
        assert_int_equal(w->ops->stream_wait(w->device, w->streams[other], event), PLLM_OK);
        w->ops->event_close(w->device, event);
        assert_int_equal(pllm_pool_record_stream(w->pool, b.address, w->streams[other]), PLLM_OK);
    } else {
        other = b.stream;
    }
    uint64_t bytes = b.bytes < PROBE ? b.bytes : PROBE;
    unsigned char *to = w->probes + w->probe_count * PROBE;
    memset(to, b.value, PROBE);
    to[0] = 0;
    w->expect[w->probe_count++] = b.value;
    pllm_copy copy = {(pllm_va)(uintptr_t)to, b.address + b.bytes - bytes, bytes};
    assert_int_equal(w->ops->copy(w->device, w->streams[other], PLLM_COPY_OUT, &copy), PLLM_OK);
    assert_int_equal(pllm_pool_free(w->pool, b.address, b.bytes, w->streams[b.stream]), PLLM_OK);
}

static void check_probes(world *w)
{
    for (int i = 0; i < STREAMS; i++)
        assert_int_equal(pllm_stream_sync(w->device, w->streams[i]), PLLM_OK);
    for (uint32_t i = 0; i < w->probe_count; i++)
        for (int k = 0; k < PROBE; k++) assert_int_equal(w->probes[i * PROBE + k], w->expect[i]);
    w->probe_count = 0;
}

static void blocks_keep_their_bytes(void **state)
{
    (void)state;
    for (uint32_t seed = 1; seed <= 2; seed++) {
        world w;
        fake->deferred = 1;
        open_world(&w, seed, 24 * MEBI);
        for (uint32_t i = 0; i < STEPS; i++) {
            if (w.live_count < LIVE && draw(&w, 2)) {
                int status = step_allocate(&w);
                if (status < 0) assert_int_equal(status, PLLM_ENODEVMEM);
                w.refused += status < 0;
            } else if (w.live_count > 0) {
                step_free(&w);
            }
            pllm_pool_check(w.pool);
            if (i % 100 == 99) check_probes(&w);
        }
        check_probes(&w);
        pllm_pool_stats stats = {.struct_bytes = sizeof stats};
        assert_int_equal(pllm_pool_stats_get(w.pool, &stats), PLLM_OK);
        assert_int_equal(stats.chunk_bytes, 2 * MEBI);
        assert_true(stats.reserved_peak_bytes <= 24 * MEBI);
        assert_true(stats.remapped_chunks > 0 && stats.fences > 0 && stats.waits > 0);
        assert_int_equal(stats.live_count, w.live_count);
        close_world(&w);
        fake->deferred = 0;
    }
}

static void failing_calls_lose_nothing(void **state)
{
    (void)state;
    static const char *const calls[] = {"cuMemCreate",   "cuMemMap",      "cuMemSetAccess",
                                        "cuEventCreate", "cuEventRecord", "cuEventQuery"};
    for (uint32_t c = 0; c < sizeof calls / sizeof calls[0]; c++) {
        uint32_t failed = 0;
        for (uint64_t n = 0; n < 8; n++) {
            world w;
            open_world(&w, 7, 16 * MEBI);
            fake->fail_call = calls[c];
            fake->fail_code = strcmp(calls[c], "cuMemCreate") == 0 ? 2 : 1; /* out of memory */
            fake->calls = 0;
            fake->fail_at = n;
            fake->fail_count = 1;
            for (uint32_t i = 0; i < 60; i++) {
                if (w.live_count < 4) {
                    if (step_allocate(&w) < 0) failed++;
                } else {
                    step_free(&w);
                }
                pllm_pool_check(w.pool);
            }
            fake->fail_count = 0;
            fake->fail_call = NULL;
            check_probes(&w);
            while (w.live_count > 0) step_free(&w);
            uint64_t freed;
            assert_int_equal(pllm_stream_sync(w.device, w.streams[0]), PLLM_OK);
            assert_int_equal(pllm_pool_trim(w.pool, 0, &freed), PLLM_OK);
            pllm_pool_check(w.pool);
            close_world(&w);
        }
        if (c == 1 || c == 2) assert_true(failed > 0); /* these can't be made good */
    }
}

static void the_drivers_own_pool_is_there_to_compare_with(void **state)
{
    (void)state;
    world w;
    open_world(&w, 1, 0);
    uint64_t now, peak;
    pllm_va va;
    assert_int_equal(pllm_cuda_async_hold(w.device), PLLM_OK);
    assert_int_equal(pllm_cuda_async_alloc(w.device, w.streams[0], 5000, &va), PLLM_OK);
    assert_int_equal(pllm_cuda_async_reserved(w.device, &now, &peak), PLLM_OK);
    assert_true(now >= 5000 && peak >= now);
    assert_int_equal(pllm_cuda_async_free(w.device, w.streams[0], va), PLLM_OK);
    close_world(&w);
    fake->missing = "cuMemAllocAsync";
    open_world(&w, 1, 0);
    assert_int_equal(pllm_cuda_async_alloc(w.device, w.streams[0], 5000, &va), PLLM_EUNSUPPORTED);
    close_world(&w);
    fake->missing = NULL;
}

int main(void)
{
    fake = fake_cuda_load(LIBRARY);
    if (!fake) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_keep_their_bytes),
        cmocka_unit_test(failing_calls_lose_nothing),
        cmocka_unit_test(the_drivers_own_pool_is_there_to_compare_with),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
