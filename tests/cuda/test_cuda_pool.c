/* A pool on a GPU: blocks of three streams that are filled there, copied out there or on another
 * stream, and freed long before that work is over, hold what they should; chunks move under a
 * limit; and the driver's own pool is there to be compared with. PLLM_TEST_SMALL: fewer steps. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "device/cuda.h"
#include "pool/log.h"
#include "pool/pool.h"

#define MEBI ((uint64_t)1 << 20)
enum { STREAMS = 3, LIVE = 24, PROBE = 256, PROBES = 4096 };

typedef struct block {
    uint64_t address, bytes;
    uint32_t stream;
    uint8_t value;
} block;

typedef struct world {
    pllm_device *device;
    const pllm_device_ops *ops;
    pllm_pool *pool;
    pllm_stream *streams[STREAMS];
    block live[LIVE];
    uint32_t live_count, probe_count;
    unsigned char *probes;
    uint8_t expect[PROBES];
    uint64_t random;
} world;

static void expect(int status)
{
    if (status < 0) print_error("%s\n", pllm_last_error()->text);
    assert_int_equal(status, PLLM_OK);
}

static uint64_t draw(world *w, uint64_t below)
{
    w->random = w->random * 6364136223846793005u + 1442695040888963407u;
    return (w->random >> 33) % below;
}

static void open_world(world *w, uint64_t limit)
{
    *w = (world){.random = 11};
    pllm_pool_options options = {.struct_bytes = sizeof options, .limit_bytes = limit};
    void *probes;
    expect(pllm_device_open_cuda(NULL, NULL, &w->device));
    w->ops = w->device->ops;
    for (int i = 0; i < STREAMS; i++) expect(pllm_stream_open(w->device, NULL, &w->streams[i]));
    expect(w->ops->host_alloc(w->device, PROBES * PROBE, &probes));
    w->probes = probes;
    expect(pllm_pool_open(NULL, w->device, &options, &w->pool));
}

static void close_world(world *w)
{
    pllm_pool_close(w->pool);
    for (int i = 0; i < STREAMS; i++) pllm_stream_close(w->device, w->streams[i]);
    w->ops->host_free(w->device, w->probes, PROBES * PROBE);
    pllm_device_close(w->device);
}

static void step_allocate(world *w)
{
    uint64_t scale = (uint64_t)512 << draw(w, 16);
    block b = {.stream = (uint32_t)draw(w, STREAMS), .value = (uint8_t)(1 + draw(w, 200))};
    b.bytes = scale + draw(w, scale);
    int status = pllm_pool_allocate(w->pool, b.bytes, w->streams[b.stream], &b.address);
    if (status == PLLM_ENODEVMEM) return;
    expect(status);
    expect(w->ops->fill(w->device, w->streams[b.stream], b.address, b.bytes, b.value));
    w->live[w->live_count++] = b;
}

static void step_free(world *w)
{
    uint32_t which = (uint32_t)draw(w, w->live_count), other = (uint32_t)draw(w, STREAMS);
    block b = w->live[which];
    w->live[which] = w->live[--w->live_count];
    if (other != b.stream) {
        pllm_event *event;
        expect(w->ops->event_open(w->device, &event));
        expect(w->ops->event_record(w->device, event, w->streams[b.stream]));
        expect(w->ops->stream_wait(w->device, w->streams[other], event));
        w->ops->event_close(w->device, event);
        expect(pllm_pool_record_stream(w->pool, b.address, w->streams[other]));
    }
    uint64_t bytes = b.bytes < PROBE ? b.bytes : PROBE;
    unsigned char *to = w->probes + (uint64_t)w->probe_count * PROBE;
    memset(to, b.value, PROBE);
    to[0] = 0;
    w->expect[w->probe_count++] = b.value;
    uint64_t from = b.address + (draw(w, 2) ? b.bytes - bytes : 0);
    pllm_copy copy = {(pllm_va)(uintptr_t)to, from, bytes};
    expect(w->ops->copy(w->device, w->streams[other], PLLM_COPY_OUT, &copy));
    expect(pllm_pool_free(w->pool, b.address, b.bytes, w->streams[b.stream]));
}

static void check_probes(world *w)
{
    for (int i = 0; i < STREAMS; i++) expect(pllm_stream_sync(w->device, w->streams[i]));
    for (uint32_t i = 0; i < w->probe_count; i++)
        for (uint32_t k = 0; k < PROBE; k++)
            assert_int_equal(w->probes[i * PROBE + k], w->expect[i]);
    w->probe_count = 0;
}

static void blocks_keep_their_bytes(void **state)
{
    (void)state;
    world w;
    uint32_t steps = getenv("PLLM_TEST_SMALL") ? 400 : 20000;
    open_world(&w, 160 * MEBI);
    for (uint32_t i = 0; i < steps; i++) {
        if (w.live_count == 0 || (w.live_count < LIVE && draw(&w, 2)))
            step_allocate(&w);
        else
            step_free(&w);
        if (w.probe_count == PROBES || i % 1000 == 999) {
            check_probes(&w);
            pllm_pool_check(w.pool);
        }
    }
    check_probes(&w);
    pllm_pool_stats stats = {.struct_bytes = sizeof stats};
    expect(pllm_pool_stats_get(w.pool, &stats));
    assert_int_equal(stats.chunk_bytes, 2 * MEBI);
    assert_true(stats.reserved_peak_bytes <= 160 * MEBI);
    if (steps > 1000) assert_true(stats.remapped_chunks > 0 && stats.fences > 0);
    print_message("%llu calls, %llu hits, %llu chunks made, %llu moved, %llu fences, %llu waits\n",
                  (unsigned long long)(stats.allocate_calls + stats.free_calls),
                  (unsigned long long)stats.hits, (unsigned long long)stats.created_chunks,
                  (unsigned long long)stats.remapped_chunks, (unsigned long long)stats.fences,
                  (unsigned long long)stats.waits);
    close_world(&w);
}

/* Nothing runs on the stream: what is held against the goal is where blocks are put. */
static void a_transformer_reserves_a_tenth_more_at_most(void **state)
{
    (void)state;
    world w;
    pllm_pool_log *log;
    if (getenv("PLLM_TEST_SMALL")) return;
    open_world(&w, 0);
    for (uint32_t k = 0; k < pllm_pool_workload_count; k++) {
        const char *name = pllm_pool_workloads[k].name;
        if (strcmp(name, "prefill") != 0 && strcmp(name, "decode") != 0) continue;
        expect(pllm_pool_log_open(NULL, &log));
        expect(pllm_pool_workloads[k].make(log));
        uint64_t *at = calloc(log->place_count, sizeof *at);
        assert_non_null(at);
        pllm_pool *pool;
        expect(pllm_pool_open(NULL, w.device, NULL, &pool));
        for (uint32_t i = 0; i < log->step_count; i++) {
            const pllm_pool_step *step = &log->steps[i];
            pllm_stream *stream = w.streams[step->stream % STREAMS];
            if (step->kind == 'a')
                expect(pllm_pool_allocate(pool, step->bytes, stream, &at[step->place]));
            else
                expect(pllm_pool_free(pool, at[step->place], 0, stream));
        }
        pllm_pool_stats stats = {.struct_bytes = sizeof stats};
        expect(pllm_pool_stats_get(pool, &stats));
        double ratio = (double)stats.reserved_peak_bytes / (double)log->peak_bytes;
        print_message("%s: reserved %.3f of what was asked for\n", name, ratio);
        assert_true(ratio <= 1.10);
        pllm_pool_close(pool);
        free(at);
        pllm_pool_log_close(log);
    }
    close_world(&w);
}

static void the_drivers_own_pool_is_there_to_compare_with(void **state)
{
    (void)state;
    world w;
    uint64_t now, peak;
    pllm_va va;
    open_world(&w, 0);
    expect(pllm_cuda_async_hold(w.device));
    expect(pllm_cuda_async_alloc(w.device, w.streams[0], 5 * MEBI, &va));
    expect(pllm_stream_sync(w.device, w.streams[0]));
    expect(pllm_cuda_async_reserved(w.device, &now, &peak));
    assert_true(now >= 5 * MEBI && peak >= now);
    expect(pllm_cuda_async_free(w.device, w.streams[0], va));
    expect(pllm_stream_sync(w.device, w.streams[0]));
    expect(pllm_cuda_async_hold(w.device));
    expect(pllm_cuda_async_reserved(w.device, &now, &peak));
    assert_int_equal(now, 0);
    close_world(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_keep_their_bytes),
        cmocka_unit_test(a_transformer_reserves_a_tenth_more_at_most),
        cmocka_unit_test(the_drivers_own_pool_is_there_to_compare_with),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
