/* Every device call and every allocation under an elastic pool fails once, for every N.
 *
 * The scenario registers, allocates by place and by block, grows, shrinks, frees at once and behind
 * a stream, maps ahead, exports, compacts and closes. A step that fails must leave everything as it
 * was and, since only one call fails, must succeed when it is tried again. A chunk that can't be
 * created is not always a failure: unused memory is given back and the step goes on. At the end
 * nothing is alive. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "fault_rig.h"
#include "vmm_rig.h"

#define PAGE ((uint64_t)64 << 10)
/* The least number of fault points; below it the scenario has lost some. */
#define DEVICE_FLOOR 55u
#define DRIVER_FLOOR 200u
#define ALLOCATION_FLOOR 75u

typedef struct world {
    fault_run *run;
    const pllm_context *context; /* the run's, as is device */
    pllm_device *device;
    pllm_vmm *vmm;
    pllm_vmm_pool *pool, *other;
    pllm_vmm_import *import;
    pllm_stream *stream;
} world;

typedef struct snapshot {
    uint64_t allocated, pending, free_run, allocations, mapped, models;
} snapshot;

/* What a failed step may not change. Kept pages and those mapped ahead are not among it. */
static snapshot look(const world *w)
{
    snapshot seen = {0};
    if (!w->vmm) return seen;
    pllm_vmm_pool *pools[] = {w->pool, w->other};
    for (int i = 0; i < 2; i++) {
        if (!pools[i]) continue;
        pllm_vmm_pool_stats stats = {.struct_bytes = sizeof stats};
        pthread_mutex_lock(&pools[i]->lock);
        pllm_vmm_pool_check(pools[i]);
        pthread_mutex_unlock(&pools[i]->lock);
        assert_int_equal(pllm_vmm_pool_stats_get(pools[i], &stats), PLLM_OK);
        seen.allocated += stats.allocated_bytes;
        seen.pending += stats.pending_bytes;
        seen.free_run += stats.free_run_bytes;
        seen.allocations += stats.allocations;
        seen.mapped += stats.mapped_bytes - stats.ahead_bytes;
        seen.models++;
    }
    return seen;
}

/* A call may have met fences that are done, whatever became of itself. */
static void same(snapshot before, snapshot after)
{
    if (before.pending) {
        before.pending = after.pending;
        before.mapped = after.mapped;
        before.free_run = after.free_run;
    }
    assert_memory_equal(&before, &after, sizeof before);
}

#define STEP(w, call) FAULT_STEP((w)->run, snapshot, look(w), same, call)

static void settle(const world *w)
{
    while (pllm_vmm_poll(w->vmm) > 0) continue;
}

static void share(world *w)
{
    pllm_vmm_share what;
    int descriptors[2];
    STEP(w, pllm_vmm_export(w->pool, 0, PAGE + 1, 0, &what, descriptors, 2));
    assert_int_equal(what.page_count, 2);
    STEP(w, pllm_vmm_import_open(w->context, w->device, &what, descriptors, 0, &w->import));
    for (int i = 0; i < 2; i++) close(descriptors[i]);
}

static void work(world *w)
{
    const pllm_device_ops *ops = w->device->ops;
    pllm_vmm_options options = {
        .struct_bytes = sizeof options, .no_background = 1, .limit_bytes = 24 * PAGE};
    pllm_vmm_pool_options first = {.struct_bytes = sizeof first,
                                   .zero_on_reuse = 1,
                                   .capacity_bytes = 32 * PAGE,
                                   .page_bytes = PAGE,
                                   .kept_bytes = 6 * PAGE,
                                   .ahead_bytes = 2 * PAGE};
    pllm_vmm_pool_options second = {.struct_bytes = sizeof second,
                                    .zero_behind = 1,
                                    .capacity_bytes = 8 * PAGE,
                                    .page_bytes = PAGE,
                                    .minimum_bytes = PAGE};
    pllm_vmm_block_options block = {
        .struct_bytes = sizeof block, .bytes = 1000, .room_bytes = PAGE};
    uint64_t cache, other;
    STEP(w, pllm_vmm_open(w->context, w->device, &options, &w->vmm));
    STEP(w, pllm_vmm_register(w->vmm, "first", &first, &w->pool));
    STEP(w, ops->stream_open(w->device, &w->stream));
    STEP(w, pllm_vmm_allocate(w->pool, 0, 3 * PAGE, NULL));
    memset((void *)(uintptr_t)pllm_vmm_base(w->pool), 7, 3 * PAGE);
    settle(w); /* maps ahead */
    STEP(w, pllm_vmm_block_allocate(w->pool, &block, &cache));
    STEP(w, pllm_vmm_block_grow(w->pool, cache, PAGE));
    STEP(w, pllm_vmm_block_grow(w->pool, cache, 4 * PAGE)); /* beyond its room */
    for (uint64_t i = 0; i < 4 * PAGE; i += 1021)
        assert_int_equal(((unsigned char *)(uintptr_t)cache)[i], 0);
    STEP(w, pllm_vmm_block_allocate(w->pool, &block, &other));
    STEP(w, pllm_vmm_block_grow(w->pool, cache, 2 * PAGE));
    STEP(w, pllm_vmm_register(w->vmm, "second", &second, &w->other));
    STEP(w, pllm_vmm_allocate(w->other, PAGE / 2, 4 * PAGE, NULL));
    STEP(w, ops->fill(w->device, w->stream, pllm_vmm_base(w->pool), PAGE, 3));
    share(w);
    STEP(w, pllm_vmm_deallocate_after(w->pool, 0, 2 * PAGE, w->stream));
    STEP(w, pllm_vmm_block_free_after(w->pool, other, w->stream));
    settle(w);
    STEP(w, pllm_vmm_deallocate(w->other, PAGE, PAGE)); /* the middle of an allocation */
    STEP(w, pllm_vmm_allocate(w->pool, 0, 2 * PAGE, NULL));
    STEP(w, pllm_vmm_allocate(w->pool, 12 * PAGE, 8 * PAGE, NULL));
    STEP(w, pllm_vmm_set_limit(w->vmm, 23 * PAGE));
    STEP(w, pllm_vmm_block_free(w->pool, cache));
    pllm_vmm_compact(w->vmm, NULL);
    STEP(w, pllm_vmm_deallocate_after(w->pool, 12 * PAGE, PAGE, w->stream)); /* open when it ends */
}

static void clean(world *w)
{
    if (w->import) pllm_vmm_import_close(w->import);
    pllm_vmm_close(w->vmm);
    w->device->ops->stream_close(w->device, w->stream);
}

static void run_all(fault_run *run)
{
    world w = {.run = run, .context = run->context, .device = run->device};
    work(&w);
    clean(&w);
}

static const fault_scenario on_sim = {.name = "sim",
                                      .open = fault_open_sim,
                                      .run = run_all,
                                      .device_floor = DEVICE_FLOOR,
                                      .allocation_floor = ALLOCATION_FLOOR},
                            on_host = {.name = "host",
                                       .open = fault_open_host,
                                       .run = run_all,
                                       .device_floor = DEVICE_FLOOR,
                                       .allocation_floor = ALLOCATION_FLOOR};

static void every_device_call_fails_once(void **state)
{
    (void)state;
    fault_each_device_call(&on_sim, 0);
    fault_each_device_call(&on_host, 0);
}

static void every_device_call_fails_once_asynchronously(void **state)
{
    (void)state;
    fault_each_device_call(&on_sim, 1);
    fault_each_device_call(&on_host, 1);
}

static int open_cuda(const pllm_context *context, pllm_device **inner)
{
    pllm_cuda_device_options options = {.struct_bytes = sizeof options,
                                        .capacity_bytes = 64 * PAGE,
                                        .library = RIG_LIBRARY,
                                        .nvml = RIG_LIBRARY};
    return pllm_device_open_cuda(context, &options, inner);
}

/* Under the CUDA device: calls of the driver, which may also fail where our table can't. */
static void every_driver_call_fails_once(void **state)
{
    (void)state;
    static const fault_scenario on_cuda = {.open = open_cuda};
    fake_cuda *fake = fake_cuda_load(RIG_LIBRARY);
    assert_non_null(fake);
    for (uint64_t n = 0;; n++) {
        memset(fake, 0, sizeof *fake);
        fake->version = 13000;
        fake->device_count = 1;
        fake->fail_count = 1;
        fault_run run;
        fault_run_open(&run, &on_cuda, UINT64_MAX, 0, FAILING_NEVER);
        world w = {.run = &run, .context = run.context, .device = run.device};
        fake->fail_at = n;
        fake->fail_code = 1; /* CUDA_ERROR_INVALID_VALUE, which passes */
        work(&w);
        assert_true(run.failures <= 1);
        uint64_t calls = fake->calls;
        fake->fail_code = 0;
        clean(&w);
        fault_run_close(&run);
        assert_int_equal(fake->live, 0);
        if (calls > n) continue;
        print_message("driver calls failed one by one: %u\n", (unsigned)n);
        assert_true(n >= DRIVER_FLOOR);
        return;
    }
}

static void every_allocation_fails_once(void **state)
{
    (void)state;
    fault_each_allocation(&on_sim);
    fault_each_allocation(&on_host);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_device_call_fails_once),
        cmocka_unit_test(every_device_call_fails_once_asynchronously),
        cmocka_unit_test(every_driver_call_fails_once),
        cmocka_unit_test(every_allocation_fails_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
