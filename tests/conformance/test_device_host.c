/* The host device against the suite: plain, with a simulated link, and with large granules. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "device_conformance.h"
#include "failing_context.h"

typedef struct subject {
    pllm_host_device_options options;
    failing_context context; /* never fails; counts what is alive */
} subject;

static pllm_device *subject_open(void *user)
{
    subject *self = user;
    pllm_device *device;
    failing_context_init(&self->context, FAILING_NEVER);
    assert_int_equal(pllm_device_open_host(&self->context.context, &self->options, &device),
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
    const uint64_t mebi = 1 << 20;
    const pllm_host_device_options kinds[] = {
        {.struct_bytes = sizeof kinds[0], .capacity_bytes = 32 * mebi},
        {.struct_bytes = sizeof kinds[0],
         .capacity_bytes = 32 * mebi,
         .link_bytes_per_second = 4e9,
         .link_latency_ns = 3000},
        {.struct_bytes = sizeof kinds[0],
         .capacity_bytes = 128 * mebi,
         .granularity_bytes = 256 << 10,
         .chunk_bytes = mebi},
    };
    const char *const names[] = {"host", "host with a link", "host with large granules"};
    int failed = 0;
    for (int i = 0; i < 3; i++) {
        subject self = {.options = kinds[i]};
        device_conformance how = {
            names[i], subject_open, subject_close, &self, kinds[i].capacity_bytes, 0};
        failed += device_conformance_run(&how);
    }
    return failed;
}
