/* The simulated device against the suite, with three seeds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "device_conformance.h"
#include "failing_context.h"

typedef struct subject {
    pllm_sim_device_options options;
    failing_context context;
} subject;

static pllm_device *subject_open(void *user)
{
    subject *self = user;
    pllm_device *device;
    failing_context_init(&self->context, FAILING_NEVER);
    assert_int_equal(pllm_device_open_sim(&self->context.context, &self->options, &device),
                     PLLM_OK);
    return device;
}

static void subject_close(pllm_device *device, void *user)
{
    subject *self = user;
    pllm_device_close(device);
    failing_context_check(&self->context);
}

int main(void)
{
    const uint64_t capacity = 32 << 20;
    int failed = 0;
    for (uint64_t seed = 1; seed <= 3; seed++) {
        subject self = {.options = {.struct_bytes = sizeof self.options,
                                    .seed = seed,
                                    .capacity_bytes = capacity,
                                    .latency_ns_max = seed == 1 ? 0 : 1000}};
        device_conformance how = {"sim", subject_open, subject_close, &self, capacity, 1};
        failed += device_conformance_run(&how);
    }
    return failed;
}
