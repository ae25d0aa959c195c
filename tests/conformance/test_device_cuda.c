/* The CUDA device's own code against the suite, on a driver in host memory (tests/fake): plain,
 * under a driver without batches of copies, and where no memory can be pinned. tests/cuda/ has a
 * real GPU. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "device/cuda.h"
#include "device_conformance.h"
#include "failing_context.h"
#include "../fake/fake_cuda.h"

#define LIBRARY PLLM_BINARY_DIR "/tests/libfake_cuda.so"
#define CAPACITY ((uint64_t)32 << 20)

typedef struct subject {
    failing_context context; /* never fails; counts what is alive */
    fake_cuda *fake;
} subject;

static pllm_device *subject_open(void *user)
{
    subject *self = user;
    pllm_cuda_device_options options = {.struct_bytes = sizeof options,
                                        .capacity_bytes = CAPACITY,
                                        .library = LIBRARY,
                                        .nvml = LIBRARY};
    pllm_device *device;
    failing_context_init(&self->context, FAILING_NEVER);
    assert_int_equal(pllm_device_open_cuda(&self->context.context, &options, &device), PLLM_OK);
    return device;
}

static void subject_close(pllm_device *device, void *user)
{
    subject *self = user;
    pllm_device_close(device);
    failing_context_check(&self->context);
    assert_int_equal(self->fake->live, 0); /* all that the driver gave came back */
}

int main(void)
{
    subject self = {.fake = fake_cuda_load(LIBRARY)};
    if (!self.fake) return 1;
    int failed = 0;
    device_conformance how = {"cuda", subject_open, subject_close, &self, CAPACITY, 0};
    failed += device_conformance_run(&how);
    how.name = "cuda with late work";
    self.fake->deferred = 1;
    failed += device_conformance_run(&how);
    self.fake->deferred = 0;
    how.name = "cuda without batches";
    self.fake->version = 12000;
    failed += device_conformance_run(&how);
    how.name = "cuda without pinned memory";
    self.fake->version = 13000;
    self.fake->no_pin = 1;
    failed += device_conformance_run(&how);
    return failed;
}
