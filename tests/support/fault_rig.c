/* fault_rig.c - see fault_rig.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <dirent.h>
#include <cmocka.h>
#include "fault_rig.h"

#define CAPACITY_BYTES ((uint64_t)4 << 20)

int fault_open_sim(const pllm_context *context, pllm_device **inner)
{
    pllm_sim_device_options options = {
        .struct_bytes = sizeof options, .capacity_bytes = CAPACITY_BYTES, .latency_ns_max = 50};
    return pllm_device_open_sim(context, &options, inner);
}

int fault_open_host(const pllm_context *context, pllm_device **inner)
{
    pllm_host_device_options options = {.struct_bytes = sizeof options,
                                        .capacity_bytes = CAPACITY_BYTES};
    return pllm_device_open_host(context, &options, inner);
}

static uint32_t descriptors_open(void)
{
    uint32_t count = 0;
    DIR *folder = opendir("/proc/self/fd");
    assert_non_null(folder);
    while (readdir(folder)) count++;
    closedir(folder);
    return count;
}

/* A device that could not be opened for want of memory is opened again. */
static void tried(fault_run *run, int status)
{
    if (status == PLLM_OK) return;
    assert_int_equal(status, PLLM_ENOMEM);
    run->failures++;
}

void fault_run_open(fault_run *run, const fault_scenario *scenario, uint64_t fail_device,
                    uint32_t fail_async, uint64_t fail_allocation)
{
    pllm_faulty_device_options options = {
        .struct_bytes = sizeof options, .fail_at = fail_device, .fail_async = fail_async};
    *run = (fault_run){.context = &run->memory.context};
    failing_context_init(&run->memory, fail_allocation);
    while (!run->inner && run->failures < 2) tried(run, scenario->open(run->context, &run->inner));
    while (!run->device && run->failures < 2)
        tried(run, pllm_device_open_faulty(run->context, run->inner, &options, &run->device));
    assert_non_null(run->device);
}

void fault_run_close(fault_run *run)
{
    assert_int_equal(pllm_faulty_device_live(run->device), 0);
    pllm_device_close(run->device);
    pllm_device_close(run->inner);
    failing_context_check(&run->memory);
}

void fault_each_device_call(const fault_scenario *scenario, uint32_t fail_async)
{
    uint32_t descriptors = descriptors_open();
    uint64_t n = 0;
    for (int hit = 1; hit; n += (uint64_t)hit) {
        fault_run run;
        fault_run_open(&run, scenario, n, fail_async, FAILING_NEVER);
        scenario->run(&run);
        hit = pllm_faulty_device_calls(run.device) > n;
        assert_true(run.failures <= (uint32_t)hit);
        fault_run_close(&run);
        assert_int_equal(descriptors_open(), descriptors);
    }
    print_message("device calls failed one by one: %u (%s%s)\n", (unsigned)n, scenario->name,
                  fail_async ? ", asynchronously" : "");
    assert_true(n >= scenario->device_floor);
}

void fault_each_allocation(const fault_scenario *scenario)
{
    uint32_t descriptors = descriptors_open();
    uint64_t n = 0;
    for (int hit = 1; hit; n += (uint64_t)hit) {
        fault_run run;
        fault_run_open(&run, scenario, UINT64_MAX, 0, n);
        run.expected = PLLM_ENOMEM;
        scenario->run(&run);
        hit = failing_context_hit(&run.memory);
        assert_true(run.failures <= (uint32_t)hit);
        if (scenario->told) assert_int_equal(run.failures, hit);
        fault_run_close(&run);
        assert_int_equal(descriptors_open(), descriptors);
    }
    print_message("allocations failed one by one: %u (%s)\n", (unsigned)n, scenario->name);
    assert_true(n >= scenario->allocation_floor);
}
