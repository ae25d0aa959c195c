/* A pool on the simulated device: blocks of several streams, whose work completes in an order that
 * the seed chooses.
 *
 * Each block is filled with a byte on its stream and copied out again before it is freed, on that
 * stream or on another one that was recorded. The copies run long after the free has returned: what
 * they bring tells whether the memory was given to somebody else in between. A shadow of live
 * blocks tells whether any two overlap, and what the totals must be.
 * The seed of a failing run is printed; PLLM_SIM_SEED=n runs that one alone, PLLM_SIM_SEEDS=n seeds
 * 1 to n (150). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "failing_context.h"
#include "pool/pool.h"

#define CHUNK ((uint64_t)64 << 10)
enum { STREAMS = 4, LIVE = 24, PROBES = 4096, PROBE = 32, SEEDS = 150, STEPS = 400, LIMIT = 40 };

static uint64_t current_seed;

typedef struct shadow {
    uint64_t address, bytes, size;
    uint32_t stream; /* 0: the CPU */
    uint8_t value;
} shadow;

typedef struct world {
    failing_context memory;
    pllm_device *device;
    const pllm_device_ops *ops;
    pllm_pool *pool;
    pllm_stream *streams[STREAMS + 1];
    uint64_t random;
    shadow live[LIVE];
    uint32_t live_count;
    unsigned char *probes; /* copied out, PROBE bytes each */
    uint8_t expect[PROBES];
    uint32_t probe_count;
    pllm_pool_stats model;
    uint32_t refused, handed, pended, few_blocks;
} world;

static uint64_t draw(world *w, uint64_t below)
{
    uint64_t x = w->random += 0x9e3779b97f4a7c15u; /* SplitMix64 */
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return (x ^ (x >> 31)) % below;
}

static unsigned char *view(world *w, uint64_t address)
{
    return w->ops->host_view(w->device, address);
}

/* Copies the block's beginning or end out on a stream. */
static void probe(world *w, const shadow *s, uint32_t stream)
{
    if (w->probe_count == PROBES) return;
    uint64_t bytes = s->bytes < PROBE ? s->bytes : PROBE;
    uint64_t at = s->address + (draw(w, 2) ? s->bytes - bytes : 0);
    unsigned char *to = w->probes + (uint64_t)w->probe_count * PROBE;
    memset(to, s->value, PROBE);
    to[0] = (unsigned char)~s->value;
    w->expect[w->probe_count++] = s->value;
    pllm_copy copy = {(pllm_va)(uintptr_t)to, at, bytes};
    assert_int_equal(w->ops->copy(w->device, w->streams[stream], PLLM_COPY_OUT, &copy), PLLM_OK);
}

static void check_probes(world *w)
{
    for (uint32_t i = 1; i <= STREAMS; i++)
        assert_int_equal(w->ops->stream_sync(w->device, w->streams[i]), PLLM_OK);
    for (uint32_t i = 0; i < w->probe_count; i++)
        for (uint32_t k = 0; k < PROBE; k++)
            assert_int_equal(w->probes[(uint64_t)i * PROBE + k], w->expect[i]);
    w->probe_count = 0;
}

static void fill(world *w, const shadow *s)
{
    if (s->stream == 0)
        memset(view(w, s->address), s->value, s->bytes);
    else
        assert_int_equal(
            w->ops->fill(w->device, w->streams[s->stream], s->address, s->bytes, s->value),
            PLLM_OK);
}

static void step_allocate(world *w)
{
    if (w->live_count == LIVE) return;
    shadow s = {.stream = (uint32_t)draw(w, STREAMS + 1), .value = (uint8_t)(1 + draw(w, 200))};
    uint64_t scale = (uint64_t)64 << draw(w, 13);
    s.bytes = scale + draw(w, scale);
    int status = pllm_pool_allocate(w->pool, s.bytes, w->streams[s.stream], &s.address);
    if (status < 0) {
        if (status != PLLM_ELIMIT || !w->few_blocks) assert_int_equal(status, PLLM_ENODEVMEM);
        w->refused++;
        w->model.failed_calls++;
        return;
    }
    assert_int_equal(pllm_pool_size(w->pool, s.address, &s.size), PLLM_OK);
    assert_true(s.size >= s.bytes);
    for (uint32_t i = 0; i < w->live_count; i++)
        assert_true(s.address + s.size <= w->live[i].address ||
                    w->live[i].address + w->live[i].size <= s.address);
    fill(w, &s);
    w->live[w->live_count++] = s;
    w->model.allocate_calls++;
    w->model.requested_bytes += s.bytes;
    w->model.allocated_bytes += s.size;
    if (w->model.requested_bytes > w->model.requested_peak_bytes)
        w->model.requested_peak_bytes = w->model.requested_bytes;
    if (w->model.allocated_bytes > w->model.allocated_peak_bytes)
        w->model.allocated_peak_bytes = w->model.allocated_bytes;
}

/* The other stream uses the block after what its own has done so far. */
static void use_elsewhere(world *w, const shadow *s, uint32_t other)
{
    if (s->stream) {
        pllm_event *event;
        assert_int_equal(w->ops->event_open(w->device, &event), PLLM_OK);
        assert_int_equal(w->ops->event_record(w->device, event, w->streams[s->stream]), PLLM_OK);
        assert_int_equal(w->ops->stream_wait(w->device, w->streams[other], event), PLLM_OK);
        w->ops->event_close(w->device, event);
    }
    probe(w, s, other);
}

static void step_free(world *w)
{
    if (w->live_count == 0) return;
    uint32_t which = (uint32_t)draw(w, w->live_count), stream;
    shadow s = w->live[which];
    if (draw(w, 3) == 0) {
        uint32_t other = 1 + (uint32_t)draw(w, STREAMS);
        use_elsewhere(w, &s, other);
        assert_int_equal(pllm_pool_record_stream(w->pool, s.address, w->streams[other]), PLLM_OK);
        w->model.record_calls++;
        w->pended += other != s.stream;
    }
    stream = s.stream;
    if (stream == 0) { /* the CPU's block: freed there, or after use on a stream */
        for (uint64_t i = 0; i < s.bytes; i += s.bytes / 16 + 1)
            assert_int_equal(view(w, s.address)[i], s.value);
        stream = (uint32_t)draw(w, STREAMS + 1);
        if (stream) probe(w, &s, stream);
    } else if (draw(w, 8) == 0) { /* freed by the CPU, which waits for it first */
        assert_int_equal(w->ops->stream_sync(w->device, w->streams[stream]), PLLM_OK);
        stream = 0;
    } else if (draw(w, 4) == 0) { /* handed on, and freed there */
        uint32_t other = 1 + (uint32_t)draw(w, STREAMS);
        use_elsewhere(w, &s, other);
        stream = other;
        w->handed++;
    } else {
        probe(w, &s, stream);
    }
    uint64_t wrong = s.bytes + 1 + draw(w, 100);
    if (draw(w, 4) == 0) {
        assert_int_equal(pllm_pool_free(w->pool, s.address, wrong, NULL), PLLM_EINVAL);
        assert_int_equal(pllm_pool_free(w->pool, s.address + 256, 0, NULL), PLLM_EINVAL);
        w->model.refused_calls += 2;
    }
    assert_int_equal(
        pllm_pool_free(w->pool, s.address, draw(w, 2) ? s.bytes : 0, w->streams[stream]), PLLM_OK);
    w->live[which] = w->live[--w->live_count];
    w->model.free_calls++;
    w->model.requested_bytes -= s.bytes;
    w->model.allocated_bytes -= s.size;
}

static void check(world *w)
{
    pllm_pool_stats seen = {.struct_bytes = sizeof seen};
    pllm_pool_check(w->pool);
    assert_int_equal(pllm_pool_stats_get(w->pool, &seen), PLLM_OK);
    const pllm_pool_stats *m = &w->model;
    assert_int_equal(seen.live_count, w->live_count);
    assert_int_equal(seen.requested_bytes, m->requested_bytes);
    assert_int_equal(seen.requested_peak_bytes, m->requested_peak_bytes);
    assert_int_equal(seen.allocated_bytes, m->allocated_bytes);
    assert_int_equal(seen.allocated_peak_bytes, m->allocated_peak_bytes);
    assert_int_equal(seen.allocate_calls, m->allocate_calls);
    assert_int_equal(seen.free_calls, m->free_calls);
    assert_int_equal(seen.record_calls, m->record_calls);
    assert_int_equal(seen.refused_calls, m->refused_calls);
    assert_int_equal(seen.failed_calls, m->failed_calls);
    assert_true(seen.reserved_peak_bytes <= LIMIT * CHUNK);
    uint64_t count = 0, bytes = 0, calls = 0;
    for (uint32_t i = 0; i < PLLM_POOL_CLASSES; i++) {
        uint64_t live = 0, live_bytes = 0;
        for (uint32_t k = 0; k < w->live_count; k++) {
            uint64_t size = w->live[k].size;
            if (size > ((uint64_t)512 << i) || (i > 0 && size <= ((uint64_t)256 << i))) continue;
            live++;
            live_bytes += size;
        }
        assert_int_equal(seen.class_live_count[i], live);
        assert_int_equal(seen.class_live_bytes[i], live_bytes);
        count += live;
        bytes += live_bytes;
        calls += seen.class_calls[i];
    }
    assert_int_equal(count, seen.live_count);
    assert_int_equal(bytes, seen.allocated_bytes);
    assert_int_equal(calls, seen.allocate_calls);
}

static void open_world(world *w, uint64_t seed)
{
    failing_context_init(&w->memory, FAILING_NEVER);
    w->random = seed;
    const pllm_context *context = &w->memory.context;
    pllm_sim_device_options sim = {.struct_bytes = sizeof sim,
                                   .seed = seed,
                                   .capacity_bytes = (LIMIT - draw(w, 4)) * CHUNK,
                                   .chunk_bytes = CHUNK,
                                   .latency_ns_max = 2000};
    w->few_blocks = draw(w, 3) == 0;
    pllm_pool_options options = {.struct_bytes = sizeof options,
                                 .block_max = w->few_blocks ? 32 + (uint32_t)draw(w, 64) : 2048,
                                 .limit_bytes = LIMIT * CHUNK,
                                 .capacity_bytes = 4 * LIMIT * CHUNK,
                                 .wait_us = 1 + (uint32_t)draw(w, 3)};
    assert_int_equal(pllm_device_open_sim(context, &sim, &w->device), PLLM_OK);
    w->ops = w->device->ops;
    assert_int_equal(pllm_pool_open(context, w->device, &options, &w->pool), PLLM_OK);
    for (uint32_t i = 1; i <= STREAMS; i++)
        assert_int_equal(w->ops->stream_open(w->device, &w->streams[i]), PLLM_OK);
    void *probes;
    assert_int_equal(w->ops->host_alloc(w->device, PROBES * PROBE, &probes), PLLM_OK);
    w->probes = probes;
}

static void close_world(world *w)
{
    check_probes(w);
    if (draw(w, 2))
        while (w->live_count > 0) step_free(w);
    check(w);
    pllm_pool_close(w->pool); /* with frees that no stream has reached */
    for (uint32_t i = 1; i <= STREAMS; i++) w->ops->stream_close(w->device, w->streams[i]);
    w->ops->host_free(w->device, w->probes, PROBES * PROBE);
    pllm_device_close(w->device);
    failing_context_check(&w->memory);
}

static void forget(world *w)
{
    uint32_t stream = 1 + (uint32_t)draw(w, STREAMS);
    assert_int_equal(pllm_pool_forget_stream(w->pool, w->streams[stream]), PLLM_OK);
    w->ops->stream_close(w->device, w->streams[stream]);
    assert_int_equal(w->ops->stream_open(w->device, &w->streams[stream]), PLLM_OK);
}

static void blocks_keep_their_bytes_until_streams_are_past_them(void **state)
{
    (void)state;
    const char *only = getenv("PLLM_SIM_SEED"), *many = getenv("PLLM_SIM_SEEDS");
    uint64_t first = only ? strtoull(only, NULL, 10) : 1;
    uint64_t last = only ? first : many ? strtoull(many, NULL, 10) : SEEDS;
    uint32_t refused = 0, handed = 0, pended = 0;
    for (uint64_t seed = first; seed <= last; seed++) {
        world *w = calloc(1, sizeof *w);
        open_world(w, seed);
        current_seed = seed;
        for (uint32_t i = 0; i < STEPS; i++) {
            uint64_t what = draw(w, 100);
            if (what < 50)
                step_allocate(w);
            else if (what < 97)
                step_free(w);
            else if (what < 98)
                assert_int_equal(pllm_pool_trim(w->pool, draw(w, LIMIT) * CHUNK, NULL), PLLM_OK);
            else if (what < 99)
                forget(w);
            else
                check_probes(w);
            check(w);
        }
        refused += w->refused;
        handed += w->handed;
        pended += w->pended;
        close_world(w);
        free(w);
    }
    if (only || last < SEEDS) return;
    assert_true(refused > 100 && handed > 1000 && pended > 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_keep_their_bytes_until_streams_are_past_them)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (failed) print_message("PLLM_SIM_SEED=%llu\n", (unsigned long long)current_seed);
    return failed;
}
