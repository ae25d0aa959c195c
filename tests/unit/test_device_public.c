/* include/pagedllm/device.h on the host device, and on the fake CUDA driver where that is built. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>
#include <pagedllm/device.h>
#include "device/cuda.h"
#include "failing_context.h"

#define MEBI ((uint64_t)1 << 20)
#define FAKE PLLM_BINARY_DIR "/tests/libfake_cuda.so"

static void devices_are_opened_by_name(void **state)
{
    (void)state;
    pllm_device *device = (pllm_device *)1;
    assert_int_equal(pllm_device_open(NULL, "toaster", &device), PLLM_EINVAL);
    assert_null(device);
    assert_int_equal(pllm_device_open(NULL, "host", NULL), PLLM_EINVAL);
    assert_int_equal(pllm_device_open(NULL, NULL, &device), PLLM_OK);
    pllm_device_info info = {0};
    assert_int_equal(pllm_device_info_get(device, &info), PLLM_EINVAL);
    info.struct_bytes = sizeof info;
    assert_int_equal(pllm_device_info_get(device, &info), PLLM_OK);
    assert_int_equal(info.struct_bytes, sizeof info);
    assert_true(info.total_bytes > 0 && info.granularity_bytes > 0 && info.name[0]);
    assert_int_equal(pllm_device_info_get(NULL, &info), PLLM_EINVAL);
    pllm_device_close(device);
    pllm_device_close(NULL);
}

typedef struct backed { /* one chunk at a place of its own */
    pllm_va va;
    pllm_chunk *chunk;
} backed;

static backed back(pllm_device *device, uint64_t bytes)
{
    backed b;
    assert_int_equal(device->ops->reserve(device, bytes, &b.va), PLLM_OK);
    assert_int_equal(device->ops->chunk_create(device, bytes, &b.chunk), PLLM_OK);
    assert_int_equal(device->ops->map(device, b.va, &b.chunk, 1), PLLM_OK);
    return b;
}

static void unback(pllm_device *device, backed *b, uint64_t bytes)
{
    device->ops->unmap(device, b->va, b->chunk);
    device->ops->chunk_destroy(device, b->chunk);
    device->ops->release(device, b->va, bytes);
}

static void use(pllm_device *device, pllm_stream *stream)
{
    backed b = back(device, MEBI);
    uint32_t values[64], seen[64] = {0};
    for (uint32_t i = 0; i < 64; i++) values[i] = i * 2654435761u;
    assert_int_equal(pllm_device_write(device, stream, b.va + 100, sizeof values, values), PLLM_OK);
    assert_int_equal(pllm_device_read(device, stream, b.va + 100, sizeof seen, seen), PLLM_OK);
    assert_memory_equal(values, seen, sizeof values);
    assert_int_equal(pllm_device_read(device, stream, b.va + MEBI - 4, 8, seen), PLLM_EINVAL);
    assert_int_equal(pllm_device_write(device, stream, b.va, 0, NULL), PLLM_OK);
    assert_int_equal(pllm_device_write(device, NULL, b.va, 4, values), PLLM_EINVAL);
    assert_int_equal(pllm_stream_sync(device, stream), PLLM_OK);
    assert_int_equal(pllm_stream_sync(device, NULL), PLLM_EINVAL);
    unback(device, &b, MEBI);
}

static void streams_order_and_copies_wait(void **state)
{
    (void)state;
    failing_context memory;
    pllm_device *device;
    pllm_stream *stream;
    failing_context_init(&memory, FAILING_NEVER);
    assert_int_equal(pllm_device_open(&memory.context, "host", &device), PLLM_OK);
    int anything;
    assert_int_equal(pllm_stream_open(device, &anything, &stream), PLLM_EINVAL);
    assert_null(stream);
    assert_int_equal(pllm_stream_open(NULL, NULL, &stream), PLLM_EINVAL);
    assert_int_equal(pllm_stream_open(device, NULL, &stream), PLLM_OK);
    use(device, stream);
    pllm_stream_close(device, stream);
    pllm_stream_close(device, NULL);
    pllm_device_close(device);
    failing_context_check(&memory);
}

static void a_stream_of_somebody_elses_is_used_and_left(void **state)
{
    (void)state;
    failing_context memory;
    pllm_cuda_device_options options = {
        .struct_bytes = sizeof options, .library = FAKE, .nvml = FAKE};
    pllm_device *device, *faulty;
    pllm_stream *theirs, *ours;
    failing_context_init(&memory, FAILING_NEVER);
    assert_int_equal(pllm_device_open_cuda(&memory.context, &options, &device), PLLM_OK);
    assert_int_equal(pllm_device_open_faulty(&memory.context, device, NULL, &faulty), PLLM_OK);
    assert_int_equal(pllm_stream_open(device, NULL, &theirs), PLLM_OK);
    void *native = pllm_cuda_stream_handle(theirs);
    assert_int_equal(pllm_stream_open(device, native, &ours), PLLM_OK);
    assert_ptr_equal(pllm_cuda_stream_handle(ours), native);
    use(device, ours);
    pllm_stream_close(device, ours);
    use(device, theirs);                                                /* it is still there */
    assert_int_equal(pllm_stream_open(faulty, native, &ours), PLLM_OK); /* wrapped twice */
    use(faulty, ours);
    pllm_stream_close(faulty, ours);
    assert_int_equal(pllm_faulty_device_live(faulty), 0);
    pllm_faulty_device_arm(faulty, 0);
    assert_int_equal(pllm_stream_open(faulty, native, &ours), PLLM_EDEVICE);
    assert_null(ours);
    memory.fail_at = memory.call_count + 1; /* the wrapper around the wrapper */
    assert_int_equal(pllm_stream_open(faulty, native, &ours), PLLM_ENOMEM);
    assert_null(ours);
    assert_int_equal(pllm_faulty_device_live(faulty), 0);
    pllm_stream_close(device, theirs);
    pllm_device_close(faulty);
    pllm_device_close(device);
    failing_context_check(&memory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(devices_are_opened_by_name),
        cmocka_unit_test(streams_order_and_copies_wait),
        cmocka_unit_test(a_stream_of_somebody_elses_is_used_and_left),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
