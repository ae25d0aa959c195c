/* The faulty device, never failing, against the suite: over host and over sim. It must be invisible
 * and count every object back to zero. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "device_conformance.h"
#include "failing_context.h"

typedef struct subject {
    int over_sim;
    pllm_device *inner;
    failing_context context;
} subject;

#define CAPACITY ((uint64_t)32 << 20)

static pllm_device *subject_open(void *user)
{
    subject *self = user;
    pllm_device *device;
    pllm_host_device_options host = {.struct_bytes = sizeof host, .capacity_bytes = CAPACITY};
    pllm_sim_device_options sim = {
        .struct_bytes = sizeof sim, .capacity_bytes = CAPACITY, .latency_ns_max = 100};
    failing_context_init(&self->context, FAILING_NEVER);
    const pllm_context *context = &self->context.context;
    int status = self->over_sim ? pllm_device_open_sim(context, &sim, &self->inner)
                                : pllm_device_open_host(context, &host, &self->inner);
    assert_int_equal(status, PLLM_OK);
    assert_int_equal(pllm_device_open_faulty(context, self->inner, NULL, &device), PLLM_OK);
    assert_string_equal(device->ops->name, self->over_sim ? "sim" : "host");
    return device;
}

static void subject_close(pllm_device *device, void *user)
{
    subject *self = user;
    assert_true(pllm_faulty_device_calls(device) > 0);
    assert_int_equal(pllm_faulty_device_live(device), 0);
    pllm_device_close(device);
    pllm_device_close(self->inner);
    failing_context_check(&self->context);
}

int main(void)
{
    int failed = 0;
    for (int over_sim = 0; over_sim < 2; over_sim++) {
        subject self = {.over_sim = over_sim};
        device_conformance how = {over_sim ? "faulty over sim" : "faulty over host",
                                  subject_open,
                                  subject_close,
                                  &self,
                                  CAPACITY,
                                  over_sim};
        failed += device_conformance_run(&how);
    }
    return failed;
}
