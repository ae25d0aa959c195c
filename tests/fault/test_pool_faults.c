/* Every device call and every allocation under a pool fails once, for every N.
 *
 * The scenario opens, allocates small and large, on streams and on the CPU, frees, moves chunks,
 * waits at the limit, records, forgets, trims and closes. A step that fails must leave what is live
 * as it was, and succeed when it is tried again; many failures (an event that could not be
 * recorded) need not be seen at all. At the end nothing is alive. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>
#include "failing_context.h"
#include "pool/log.h"
#include "pool/pool.h"

#define CHUNK ((uint64_t)64 << 10)
/* The least number of fault points; below it the scenario has lost some. */
#define DEVICE_FLOOR 30u
#define ALLOCATION_FLOOR 15u

typedef struct world {
    const pllm_context *context;
    pllm_device *inner, *device;
    pllm_pool *pool;
    pllm_stream *streams[2];
    uint32_t failures;
} world;

static pllm_pool_stats look(const world *w)
{
    pllm_pool_stats all = {.struct_bytes = sizeof all}, live = {0};
    if (!w->pool) return live;
    pllm_pool_check(w->pool);
    assert_int_equal(pllm_pool_stats_get(w->pool, &all), PLLM_OK);
    live.requested_bytes = all.requested_bytes;
    live.allocated_bytes = all.allocated_bytes;
    live.live_count = all.live_count;
    live.pending_count = all.pending_count;
    live.allocate_calls = all.allocate_calls;
    live.free_calls = all.free_calls;
    return live;
}

#define STEP(w, call)                                            \
    do {                                                         \
        pllm_pool_stats before = look(w);                        \
        int status_ = (call);                                    \
        if (status_ < 0) {                                       \
            pllm_pool_stats after = look(w);                     \
            (w)->failures++;                                     \
            if (before.pending_count > after.pending_count)      \
                after.pending_count = before.pending_count;      \
            assert_memory_equal(&before, &after, sizeof before); \
            status_ = (call);                                    \
        }                                                        \
        assert_int_equal(status_, PLLM_OK);                      \
    } while (0)

static void work_saving(world *w);

static void work(world *w)
{
    uint64_t a, b, c, d, small, other;
    pllm_pool_options options = {.struct_bytes = sizeof options,
                                 .block_max = 1024,
                                 .limit_bytes = 12 * CHUNK,
                                 .capacity_bytes = 64 * CHUNK,
                                 .wait_us = 1};
    STEP(w, pllm_pool_open(w->context, w->device, &options, &w->pool));
    for (int i = 0; i < 2; i++) STEP(w, w->device->ops->stream_open(w->device, &w->streams[i]));
    STEP(w, pllm_pool_allocate(w->pool, 3 * CHUNK, w->streams[0], &a));
    STEP(w, pllm_pool_allocate(w->pool, 3 * CHUNK, w->streams[1], &b));
    STEP(w, pllm_pool_allocate(w->pool, 3 * CHUNK, w->streams[0], &c));
    STEP(w, pllm_pool_allocate(w->pool, 3 * CHUNK - 500, NULL, &d));
    memset(w->device->ops->host_view(w->device, b), 7, 3 * CHUNK);
    STEP(w, w->device->ops->fill(w->device, w->streams[0], a, 3 * CHUNK, 1));
    STEP(w, pllm_pool_free(w->pool, a, 0, w->streams[0]));
    STEP(w, pllm_pool_free(w->pool, c, 0, w->streams[0]));
    /* At the limit, in two pieces, and still another stream's. */
    STEP(w, pllm_pool_allocate(w->pool, 5 * CHUNK, w->streams[1], &a));
    const unsigned char *kept = w->device->ops->host_view(w->device, b);
    for (uint64_t i = 0; i < 3 * CHUNK; i += 1021) assert_int_equal(kept[i], 7);
    STEP(w, pllm_pool_free(w->pool, d, 3 * CHUNK - 500, NULL));
    STEP(w, pllm_pool_allocate(w->pool, 700, w->streams[1], &small));
    STEP(w, pllm_pool_record_stream(w->pool, small, w->streams[0]));
    STEP(w, pllm_pool_record_stream(w->pool, a, w->streams[0]));
    STEP(w, pllm_pool_free(w->pool, small, 700, w->streams[1]));
    STEP(w, pllm_pool_free(w->pool, a, 0, w->streams[1]));
    STEP(w, pllm_pool_allocate(w->pool, 8 * CHUNK, NULL, &other));
    STEP(w, pllm_pool_forget_stream(w->pool, w->streams[1]));
    STEP(w, pllm_pool_free(w->pool, other, 0, NULL));
    STEP(w, pllm_pool_trim(w->pool, 4 * CHUNK, NULL));
    STEP(w, pllm_pool_allocate(w->pool, 6 * CHUNK, w->streams[0], &other));
    STEP(w, pllm_pool_free(w->pool, other, 0, w->streams[0]));
    STEP(w, pllm_pool_set_limit(w->pool, 6 * CHUNK));
    work_saving(w);
}

/* A large block goes where it uses up the fewest pages, for which others move. */
static void work_saving(world *w)
{
    uint64_t gap, large, at[2];
    pllm_pool_options options = {
        .struct_bytes = sizeof options, .block_max = 256, .capacity_bytes = 64 * CHUNK};
    pllm_pool_close(w->pool);
    w->pool = NULL;
    STEP(w, pllm_pool_open(w->context, w->device, &options, &w->pool));
    STEP(w, pllm_pool_allocate(w->pool, 9 * CHUNK + CHUNK / 2, NULL, &at[0]));
    STEP(w, pllm_pool_allocate(w->pool, 4 * CHUNK, NULL, &gap));
    STEP(w, pllm_pool_allocate(w->pool, 9 * CHUNK + CHUNK / 2, NULL, &at[1]));
    STEP(w, pllm_pool_free(w->pool, gap, 0, NULL));
    STEP(w, pllm_pool_allocate(w->pool, 6 * CHUNK, NULL, &large));
    STEP(w, pllm_pool_free(w->pool, large, 0, NULL));
    STEP(w, pllm_pool_allocate(w->pool, 4 * CHUNK, NULL, &gap));
    pllm_pool_check(w->pool);
    STEP(w, pllm_pool_allocate(w->pool, 5 * CHUNK, NULL, &large));
}

static void clean(world *w)
{
    pllm_pool_close(w->pool);
    for (int i = 0; i < 2; i++) w->device->ops->stream_close(w->device, w->streams[i]);
    assert_int_equal(pllm_faulty_device_live(w->device), 0);
    pllm_device_close(w->device);
    pllm_device_close(w->inner);
}

static int open_inner(const pllm_context *context, int sim, pllm_device **inner)
{
    pllm_sim_device_options sim_options = {.struct_bytes = sizeof sim_options,
                                           .capacity_bytes = 64 * CHUNK,
                                           .chunk_bytes = CHUNK,
                                           .latency_ns_max = 5000};
    pllm_host_device_options host_options = {.struct_bytes = sizeof host_options,
                                             .chunk_bytes = CHUNK};
    return sim ? pllm_device_open_sim(context, &sim_options, inner)
               : pllm_device_open_host(context, &host_options, inner);
}

static void every_device_call(int sim)
{
    for (uint64_t n = 0;; n++) {
        failing_context memory;
        failing_context_init(&memory, FAILING_NEVER);
        world w = {.context = &memory.context};
        pllm_faulty_device_options faulty = {.struct_bytes = sizeof faulty, .fail_at = n};
        assert_int_equal(open_inner(w.context, sim, &w.inner), PLLM_OK);
        assert_int_equal(pllm_device_open_faulty(w.context, w.inner, &faulty, &w.device), PLLM_OK);
        work(&w);
        uint64_t calls = pllm_faulty_device_calls(w.device);
        clean(&w);
        failing_context_check(&memory);
        if (calls <= n) {
            assert_true(n >= DEVICE_FLOOR);
            return;
        }
    }
}

static void every_device_call_on_the_host(void **state)
{
    (void)state;
    every_device_call(0);
}

static void every_device_call_on_sim(void **state)
{
    (void)state;
    every_device_call(1);
}

static void every_allocation(void **state)
{
    (void)state;
    for (uint64_t n = 0;; n++) {
        failing_context memory;
        failing_context_init(&memory, FAILING_NEVER);
        world w = {.context = &memory.context};
        pllm_faulty_device_options faulty = {.struct_bytes = sizeof faulty, .fail_at = UINT64_MAX};
        assert_int_equal(open_inner(w.context, 0, &w.inner), PLLM_OK);
        assert_int_equal(pllm_device_open_faulty(w.context, w.inner, &faulty, &w.device), PLLM_OK);
        memory.fail_at = memory.call_count + n;
        work(&w);
        int hit = failing_context_hit(&memory);
        clean(&w);
        failing_context_check(&memory);
        if (!hit) {
            assert_true(n >= ALLOCATION_FLOOR);
            return;
        }
    }
}

static void every_allocation_of_a_log(void **state)
{
    (void)state;
    char text[16384] = PLLM_POOL_LOG_HEAD "\n", line[32];
    for (int i = 0; i < 300; i++)
        strcat(text, (snprintf(line, sizeof line, "a %d 7 1\n", i), line));
    for (int i = 0; i < 300; i++) strcat(text, (snprintf(line, sizeof line, "f %d 1\n", i), line));
    for (uint64_t n = 0;; n++) {
        failing_context memory;
        pllm_pool_log *log;
        failing_context_init(&memory, n);
        int status = pllm_pool_log_parse(&memory.context, text, strlen(text), &log);
        int hit = failing_context_hit(&memory);
        assert_int_equal(status, hit ? PLLM_ENOMEM : PLLM_OK);
        pllm_pool_log_close(log);
        failing_context_check(&memory);
        if (!hit) return;
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_device_call_on_the_host),
        cmocka_unit_test(every_device_call_on_sim),
        cmocka_unit_test(every_allocation),
        cmocka_unit_test(every_allocation_of_a_log),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
