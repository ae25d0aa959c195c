/* Every device call and every allocation under vmm fails once, for every N.
 *
 * The scenario opens, maps, reuses, fences, settles, trims and closes. A step that fails must leave
 * everything as it was (pages, kept chunks, charge, live device objects) and, since only one call
 * fails, must succeed when it is tried again. At the end nothing is alive. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>
#include "vmm/region.h"
#include "fault_rig.h"

#define CHUNK ((uint64_t)64 << 10)
/* The least number of fault points; below it the scenario has lost some. */
#define DEVICE_FLOOR 30u
#define ALLOCATION_FLOOR 30u

typedef struct world {
    fault_run *run;
    const pllm_context *context; /* the run's, as is device */
    pllm_device *device;
    pllm_budget *budget;
    pllm_budget_member *member;
    pllm_region *region;
    pllm_stream *stream;
    pllm_event *event;
    pllm_workspace *workspace;
} world;

typedef struct snapshot {
    pllm_region_stats region;
    uint64_t charged;
    int64_t live;
    uint32_t member_count;
} snapshot;

static snapshot look(const world *w)
{
    snapshot seen = {0};
    pllm_budget_stats budget = {0};
    if (w->region) {
        pllm_region_check(w->region);
        pllm_region_stats_get(w->region, &seen.region);
        seen.region.map_calls = 0;
    }
    if (w->device) seen.live = pllm_faulty_device_live(w->device);
    if (w->budget) pllm_budget_stats_get(w->budget, &budget);
    seen.charged = budget.charged_bytes;
    seen.member_count = budget.member_count;
    return seen;
}

#define STEP(w, call) FAULT_STEP((w)->run, snapshot, look(w), FAULT_SAME, call)

static void work(world *w)
{
    const pllm_device_ops *ops = w->device->ops;
    pllm_region_options options = {sizeof options, 16, CHUNK, 8, 1};
    STEP(w, pllm_budget_open(w->context, 16 * CHUNK, &w->budget));
    STEP(w, pllm_budget_join(w->budget, "region", 2 * CHUNK, 12 * CHUNK, &w->member));
    STEP(w, pllm_region_open(w->context, w->device, w->member, &options, &w->region));
    STEP(w, ops->stream_open(w->device, &w->stream));
    STEP(w, ops->event_open(w->device, &w->event));
    STEP(w, pllm_region_map(w->region, 0, 5));
    unsigned char *view = ops->host_view(w->device, pllm_region_base(w->region));
    memset(view, 7, 5 * CHUNK);
    STEP(w, pllm_region_unmap(w->region, 1, 2, NULL));
    STEP(w, pllm_region_unmap(w->region, 4, 1, NULL));
    /* Three kept chunks, in two runs of pages to be zeroed, and two new ones. */
    STEP(w, pllm_region_map(w->region, 0, 7));
    for (uint64_t i = 0; i < 7 * CHUNK; i += 1021)
        assert_int_equal(view[i], i / CHUNK == 0 || i / CHUNK == 3 ? 7 : 0);
    STEP(w, ops->fill(w->device, w->stream, pllm_region_base(w->region), CHUNK, 3));
    STEP(w, ops->event_record(w->device, w->event, w->stream));
    STEP(w, pllm_region_unmap(w->region, 0, 1, w->event));
    STEP(w, pllm_region_unmap(w->region, 5, 2, w->event));
    while (pllm_region_settle(w->region) > 0) continue; /* a failed query ends the fence too */
    STEP(w, pllm_workspace_open(w->context, w->device, w->budget, "workspace", CHUNK + 1,
                                &w->workspace));
    STEP(w, pllm_region_map(w->region, 8, 4));
    pllm_region_trim(w->region, 0);
    STEP(w, ops->event_record(w->device, w->event, w->stream));
    STEP(w, pllm_region_unmap(w->region, 8, 2, w->event)); /* still fenced when it closes */
}

static void clean(world *w)
{
    pllm_workspace_close(w->workspace);
    pllm_region_close(w->region);
    assert_int_equal(pllm_budget_charged(w->member), 0);
    pllm_budget_leave(w->member);
    pllm_budget_close(w->budget);
    w->device->ops->event_close(w->device, w->event);
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
                                      .told = 1,
                                      .device_floor = DEVICE_FLOOR,
                                      .allocation_floor = ALLOCATION_FLOOR},
                            on_host = {.name = "host",
                                       .open = fault_open_host,
                                       .run = run_all,
                                       .told = 1,
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
        cmocka_unit_test(every_allocation_fails_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
