/* The CUDA device's sad paths, on a driver in host memory (tests/fake): no driver, one too old or
 * with a call missing, GPUs that are not there; every driver call and every allocation failing in
 * turn; a sticky error; memory that can't be pinned or exported; a batch that breaks off half way.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include <cmocka.h>
#include "device/cuda.h"
#include "device/cuda_driver.h"
#include "device/open.h"
#include "failing_context.h"
#include "../fake/fake_cuda.h"

#define LIBRARY PLLM_BINARY_DIR "/tests/libfake_cuda.so"
#define MEBI ((uint64_t)1 << 20)

static fake_cuda *fake;

static int fresh(void **state)
{
    (void)state;
    memset(fake, 0, sizeof *fake);
    fake->version = 13000;
    fake->device_count = 2;
    fake->fail_count = 1;
    return 0;
}

static int nothing_left(void **state)
{
    (void)state;
    assert_int_equal(fake->live, 0);
    return 0;
}

static pllm_cuda_device_options options_of(void)
{
    return (pllm_cuda_device_options){.struct_bytes = sizeof(pllm_cuda_device_options),
                                      .capacity_bytes = 32 * MEBI,
                                      .library = LIBRARY,
                                      .nvml = LIBRARY};
}

static pllm_device *open_fake(const pllm_context *context)
{
    pllm_cuda_device_options options = options_of();
    pllm_device *device;
    assert_int_equal(pllm_device_open_cuda(context, &options, &device), PLLM_OK);
    return device;
}

/* Opening fails with that status and a sentence that says so. */
static void refused(const pllm_cuda_device_options *options, int status, const char *words)
{
    failing_context context;
    pllm_device *device = (pllm_device *)fake;
    failing_context_init(&context, FAILING_NEVER);
    pllm_error_clear();
    assert_int_equal(pllm_device_open_cuda(&context.context, options, &device), status);
    assert_null(device);
    const char *text = pllm_last_error()->text;
    if (!strstr(text, words)) fail_msg("'%s' does not say '%s'", text, words);
    assert_null(strchr(text, '\n'));
    failing_context_check(&context);
    assert_int_equal(fake->live, 0);
}

/* ---- finding a driver and a GPU ---- */

static void no_driver_is_one_clear_sentence(void **state)
{
    (void)state;
    pllm_cuda_device_options options = options_of();
    options.library = "libthere_is_no_such_driver.so.1";
    refused(&options, PLLM_EUNSUPPORTED, "there is no NVIDIA driver here");
    uint32_t count = 7;
    assert_int_equal(pllm_cuda_list(&options, NULL, 0, &count), PLLM_EUNSUPPORTED);
    assert_int_equal(count, 0);
    options.struct_bytes = 3;
    refused(&options, PLLM_EINVAL, "struct_bytes");
    assert_int_equal(pllm_device_open_cuda(NULL, NULL, NULL), PLLM_EINVAL);
}

static void an_old_driver_is_told_its_version(void **state)
{
    (void)state;
    pllm_cuda_device_options options = options_of();
    fake->version = 11040;
    refused(&options, PLLM_EUNSUPPORTED, "CUDA 11.4");
    fake->version = 12000; /* the oldest that will do */
    pllm_device_close(open_fake(NULL));
}

static void a_missing_call_is_named(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int needed;
    } calls[] = {
#define X(field, call, form, need, arguments) {call, need},
        CUDA_DRIVER_CALLS(X)
#undef X
    };
    pllm_cuda_device_options options = options_of();
    for (uint32_t i = 0; i < sizeof calls / sizeof calls[0]; i++) {
        fake->missing = calls[i].name;
        if (calls[i].needed)
            refused(&options, PLLM_EUNSUPPORTED, calls[i].name);
        else
            pllm_device_close(open_fake(NULL));
    }
}

static void gpus_are_chosen_by_number_and_uuid(void **state)
{
    (void)state;
    pllm_cuda_device_options options = options_of();
    pllm_device *device;
    pllm_device_info info;
    options.index = 1;
    assert_int_equal(pllm_device_open_cuda(NULL, &options, &device), PLLM_OK);
    assert_int_equal(device->ops->info(device, &info), PLLM_OK);
    assert_string_equal(info.name, "Fake GPU 1");
    assert_string_equal(info.uuid, "GPU-faa1a1a1-a1a1-a1a1-a1a1-a1a1a1a1a1a1");
    pllm_device_close(device);
    static const char *const names[] = {"GPU-faa0a0a0-a0a0-a0a0-a0a0-a0a0a0a0a0a0", "gpu-FAA0",
                                        "faa0a0"};
    for (int i = 0; i < 3; i++) {
        options.uuid = names[i];
        assert_int_equal(pllm_device_open_cuda(NULL, &options, &device), PLLM_OK);
        assert_int_equal(device->ops->info(device, &info), PLLM_OK);
        assert_string_equal(info.name, "Fake GPU 0");
        pllm_device_close(device);
    }
    options.uuid = "GPU-fa";
    refused(&options, PLLM_EUNSUPPORTED, "more than one GPU");
    options.uuid = "GPU-";
    refused(&options, PLLM_EUNSUPPORTED, "none of the 2 GPUs");
    options.uuid = NULL;
    options.index = 2;
    refused(&options, PLLM_EUNSUPPORTED, "no GPU number 2");
    options.index = 0;
    fake->no_virtual_memory = 1;
    refused(&options, PLLM_EUNSUPPORTED, "virtual memory");
    fake->device_count = 0;
    refused(&options, PLLM_EUNSUPPORTED, "finds no GPU");
}

static void names_mean_devices(void **state)
{
    (void)state;
    static const char *const good[] = {"host", "cuda", "cuda:0", "cuda:131", "cuda:GPU-0a", NULL};
    static const char *const bad[] = {"",        "Host",    "cudas",     "cuda:",   "cuda:-1",
                                      "cuda:0x", "cuda: 1", "cuda:uuid", "cuda:1,2"};
    for (uint32_t i = 0; i < sizeof good / sizeof good[0]; i++)
        assert_int_equal(pllm_device_name_check(good[i]), PLLM_OK);
    for (uint32_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        pllm_device *device = (pllm_device *)fake;
        assert_int_equal(pllm_device_name_check(bad[i]), PLLM_EINVAL);
        assert_int_equal(pllm_device_open_name(NULL, bad[i], NULL, &device), PLLM_EINVAL);
        assert_null(device);
    }
    assert_true(pllm_device_name_is_cuda("cuda:3") && !pllm_device_name_is_cuda("host"));
    pllm_device *device;
    assert_int_equal(pllm_device_open_name(NULL, NULL, NULL, &device), PLLM_OK);
    assert_string_equal(device->ops->name, "host");
    pllm_device_close(device);
}

static void a_driver_that_does_not_start_says_why(void **state)
{
    (void)state;
    pllm_cuda_device_options options = options_of();
    fake->fail_call = "cuInit";
    fake->fail_code = CUDA_SYSTEM_DRIVER_MISMATCH;
    refused(&options, PLLM_EUNSUPPORTED, "reboot");
    fake->calls = 0;
    fake->fail_code = CUDA_UNKNOWN;
    refused(&options, PLLM_EUNSUPPORTED, "CUDA error 999");
    fresh(NULL);
    fake->fail_call = "cuDevicePrimaryCtxRetain"; /* the card is full of others' memory */
    fake->fail_code = CUDA_OUT_OF_MEMORY;
    refused(&options, PLLM_EDEVICE, "others are using it");
}

static void gpus_are_listed(void **state)
{
    (void)state;
    pllm_cuda_device_options options = options_of();
    pllm_cuda_listing listings[4];
    uint32_t count;
    assert_int_equal(pllm_cuda_list(&options, listings, 4, &count), PLLM_OK);
    assert_int_equal(count, 2);
    assert_string_equal(listings[1].name, "Fake GPU 1");
    assert_string_equal(listings[1].driver, "580.00");
    assert_int_equal(listings[1].cuda_major, 13);
    assert_int_equal(listings[1].major, 9);
    assert_int_equal(listings[1].total_bytes, 4096 * MEBI);
    fake->nvml_broken = 1;
    assert_int_equal(pllm_cuda_list(&options, listings, 1, &count), PLLM_OK);
    assert_int_equal(count, 2); /* more than asked for */
    assert_string_equal(listings[0].driver, "");
}

static void memory_in_use_is_nvml_s_figure(void **state)
{
    (void)state;
    uint64_t before, used;
    pllm_chunk *chunk;
    pllm_device *device = open_fake(NULL);
    assert_int_equal(device->ops->chunk_create(device, 2 * MEBI, &chunk), PLLM_OK);
    assert_int_equal(pllm_cuda_memory_used(device, &before, &used), PLLM_OK);
    assert_int_equal(before, 10 * MEBI);
    assert_int_equal(used, 12 * MEBI);
    device->ops->chunk_destroy(device, chunk);
    pllm_device_close(device);
    fake->nvml_broken = 1;
    device = open_fake(NULL);
    assert_int_equal(pllm_cuda_memory_used(device, &before, &used), PLLM_EUNSUPPORTED);
    pllm_device_close(device);
    pllm_host_device_options host = {.struct_bytes = sizeof host, .capacity_bytes = MEBI};
    assert_int_equal(pllm_device_open_host(NULL, &host, &device), PLLM_OK);
    assert_int_equal(pllm_cuda_memory_used(device, &before, &used), PLLM_EINVAL);
    assert_false(pllm_cuda_is(device));
    pllm_device_close(device);
}

/* ---- one life of everything ---- */

static pllm_va at(const void *pointer)
{
    return (pllm_va)(uintptr_t)pointer;
}

/* Kernels: a module, a launch, a graph of it, a tensor map. */
static int life_of_kernels(pllm_device *device, pllm_stream *stream, pllm_va va)
{
    pllm_cuda_module *module;
    pllm_cuda_function *function;
    pllm_cuda_graph *graph = NULL, *captured;
    pllm_cuda_grid grid = {1, 1, 1, 32, 60 << 10, 1};
    void *arguments[] = {&va};
    _Alignas(64) char map[128];
    int status = pllm_cuda_module_open(device, "image", 6, &module);
    if (status < 0) return status;
    status = pllm_cuda_function_get(module, "kernel", 60 << 10, &function);
    if (status < 0) goto out_module;
    status = pllm_cuda_launch(device, stream, function, &grid, arguments);
    if (status == PLLM_OK) status = pllm_cuda_capture_begin(device, stream);
    if (status < 0) goto out_module;
    status = pllm_cuda_launch(device, stream, function, &grid, arguments);
    int ended = pllm_cuda_capture_end(device, stream, &captured);
    graph = captured;
    if (status == PLLM_OK) status = ended;
    if (status == PLLM_OK) status = pllm_cuda_graph_launch(device, graph, stream);
    if (status == PLLM_OK)
        status = pllm_cuda_tensor_map_2d(device, map, va, 2, 64, 64, 128, 32, 64, 1);
    pllm_cuda_graph_close(graph);
out_module:
    pllm_cuda_module_close(module);
    return status;
}

static int life_of_copies(pllm_device *device, pllm_stream *stream, pllm_va va, uint64_t bytes)
{
    const pllm_device_ops *ops = device->ops;
    pllm_event *event;
    void *host;
    int status = ops->host_alloc(device, bytes, &host);
    if (status < 0) return status;
    status = ops->event_open(device, &event);
    if (status < 0) goto out_host;
    const pllm_copy in[2] = {{va, at(host), 100}, {va + 200, at(host), 100}};
    status = ops->copy_batch(device, stream, PLLM_COPY_IN, in, 2);
    if (status == PLLM_OK) status = ops->fill(device, stream, va + 400, 100, 3);
    if (status == PLLM_OK) status = ops->event_record(device, event, stream);
    if (status == PLLM_OK) status = ops->stream_wait(device, stream, event);
    if (status == PLLM_OK) status = ops->event_wait(device, event, 1000000);
    const pllm_copy out = {at(host), va, 600};
    if (status == PLLM_OK) status = ops->copy(device, stream, PLLM_COPY_OUT, &out);
    if (status == PLLM_OK) status = ops->stream_sync(device, stream);
    ops->event_close(device, event);
out_host:
    ops->host_free(device, host, bytes);
    return status;
}

static int life_of_export(pllm_device *device, pllm_chunk *chunk, uint64_t bytes)
{
    pllm_chunk *imported;
    int fd, status = device->ops->chunk_export(device, chunk, 0, &fd);
    if (status < 0) return status;
    status = device->ops->chunk_import(device, fd, bytes, 0, &imported);
    if (status == PLLM_OK) device->ops->chunk_destroy(device, imported);
    close(fd);
    return status;
}

static int life(const pllm_context *context)
{
    pllm_cuda_device_options options = options_of();
    pllm_device *device;
    pllm_device_info info;
    pllm_stream *stream;
    pllm_va va;
    pllm_chunk *chunk;
    int status = pllm_device_open_cuda(context, &options, &device);
    if (status < 0) return status;
    const pllm_device_ops *ops = device->ops;
    status = ops->info(device, &info);
    uint64_t bytes = info.granularity_bytes * 2;
    if (status == PLLM_OK) status = ops->stream_open(device, &stream);
    if (status < 0) goto out_device;
    status = ops->reserve(device, bytes, &va);
    if (status < 0) goto out_stream;
    status = ops->chunk_create(device, bytes, &chunk);
    if (status < 0) goto out_va;
    status = life_of_export(device, chunk, bytes);
    if (status == PLLM_OK) status = ops->map(device, va, &chunk, 1);
    if (status < 0) goto out_chunk;
    status = life_of_copies(device, stream, va, bytes);
    if (status == PLLM_OK) status = life_of_kernels(device, stream, va);
    ops->unmap(device, va, chunk);
out_chunk:
    ops->chunk_destroy(device, chunk);
out_va:
    ops->release(device, va, bytes);
out_stream:
    ops->stream_close(device, stream);
out_device:
    pllm_device_close(device);
    return status;
}

static void every_driver_call_may_fail(void **state)
{
    (void)state;
    static const int codes[] = {CUDA_OUT_OF_MEMORY, CUDA_INVALID_VALUE, CUDA_ILLEGAL_ADDRESS};
    for (int i = 0; i < 3; i++) {
        uint64_t n = 0, noticed = 0;
        for (;; n++) {
            failing_context context;
            failing_context_init(&context, FAILING_NEVER);
            fresh(NULL);
            fake->fail_code = codes[i];
            fake->fail_at = n;
            int status = life(&context.context);
            failing_context_check(&context);
            assert_int_equal(fake->live, 0);
            if (status < 0)
                assert_true(status == PLLM_EDEVICE || status == PLLM_ENODEVMEM ||
                            status == PLLM_ENOMEM || status == PLLM_EUNSUPPORTED ||
                            status == PLLM_EINVAL);
            noticed += status < 0;
            if (fake->calls <= n) break;
            assert_true(n < 500);
        }
        assert_true(n > 80 && noticed > 40); /* it was not one early exit */
    }
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    for (uint64_t n = 0;; n++) {
        failing_context context;
        failing_context_init(&context, n);
        int status = life(&context.context);
        failing_context_check(&context);
        assert_int_equal(fake->live, 0);
        if (!failing_context_hit(&context)) {
            assert_int_equal(status, PLLM_OK);
            break;
        }
        assert_int_equal(status, PLLM_ENOMEM);
    }
}

/* ---- what must go on, and what must not ---- */

typedef struct log_seen {
    uint32_t errors, warnings;
    char last[512];
} log_seen;

static void log_note(void *user, int level, const char *message)
{
    log_seen *seen = user;
    seen->errors += level == PLLM_LOG_ERROR;
    seen->warnings += level == PLLM_LOG_WARN;
    if (level <= PLLM_LOG_WARN) snprintf(seen->last, sizeof seen->last, "%s", message);
}

static pllm_context *logging_context(log_seen *seen)
{
    pllm_context_options options = {
        .struct_bytes = sizeof options, .log_level = PLLM_LOG_INFO, .user = seen, .log = log_note};
    pllm_context *context;
    memset(seen, 0, sizeof *seen);
    assert_int_equal(pllm_context_open(&options, &context), PLLM_OK);
    return context;
}

static void a_sticky_error_is_told_once_and_stays(void **state)
{
    (void)state;
    log_seen seen;
    pllm_context *context = logging_context(&seen);
    pllm_device *device = open_fake(context);
    const pllm_device_ops *ops = device->ops;
    pllm_stream *stream;
    pllm_event *event;
    pllm_va va;
    pllm_chunk *chunk, *more;
    pllm_device_info info;
    void *host;
    assert_int_equal(ops->stream_open(device, &stream), PLLM_OK);
    assert_int_equal(ops->event_open(device, &event), PLLM_OK);
    assert_int_equal(ops->reserve(device, MEBI, &va), PLLM_OK);
    assert_int_equal(ops->chunk_create(device, MEBI, &chunk), PLLM_OK);
    assert_int_equal(ops->map(device, va, &chunk, 1), PLLM_OK);
    assert_int_equal(ops->host_alloc(device, MEBI, &host), PLLM_OK);
    fake->fail_call = "cuStreamSynchronize";
    fake->fail_code = CUDA_ILLEGAL_ADDRESS;
    fake->calls = 0;
    assert_int_equal(ops->fill(device, stream, va, 16, 0), PLLM_OK);
    assert_int_equal(ops->stream_sync(device, stream), PLLM_EDEVICE);
    assert_int_equal(pllm_last_error()->native, CUDA_ILLEGAL_ADDRESS);
    assert_non_null(strstr(pllm_last_error()->text, "cuStreamSynchronize"));
    assert_non_null(strstr(pllm_last_error()->text, "ILLEGAL_ADDRESS"));
    assert_int_equal(seen.errors, 1);
    assert_non_null(strstr(seen.last, "cuStreamSynchronize"));

    const pllm_copy copy = {va, at(host), 16};
    pllm_va more_va;
    void *more_host;
    int fd;
    const int statuses[] = {
        ops->info(device, &info),
        ops->reserve(device, MEBI, &more_va),
        ops->chunk_create(device, MEBI, &more),
        ops->map(device, va, &chunk, 1),
        ops->chunk_export(device, chunk, 0, &fd),
        ops->chunk_import(device, 0, MEBI, 0, &more),
        ops->host_alloc(device, MEBI, &more_host),
        ops->stream_open(device, &(pllm_stream *){NULL}),
        ops->event_open(device, &(pllm_event *){NULL}),
        ops->event_record(device, event, stream),
        ops->event_query(device, event),
        ops->event_wait(device, event, 1000),
        ops->stream_wait(device, stream, event),
        ops->stream_sync(device, stream),
        ops->copy(device, stream, PLLM_COPY_IN, &copy),
        ops->copy_batch(device, stream, PLLM_COPY_IN, &copy, 1),
        ops->fill(device, stream, va, 16, 1),
        pllm_cuda_make_current(device),
        pllm_cuda_capture_begin(device, stream),
    };
    for (uint32_t i = 0; i < sizeof statuses / sizeof statuses[0]; i++)
        assert_int_equal(statuses[i], PLLM_EDEVICE);
    assert_non_null(strstr(pllm_last_error()->text, "failed earlier"));
    assert_non_null(strstr(pllm_last_error()->text, "cuStreamSynchronize"));
    ops->host_free(device, host, MEBI);
    ops->unmap(device, va, chunk);
    ops->chunk_destroy(device, chunk);
    ops->release(device, va, MEBI);
    ops->event_close(device, event);
    ops->stream_close(device, stream);
    pllm_device_close(device);
    assert_int_equal(seen.errors, 1); /* and nothing more was said */
    pllm_context_close(context);
}

static void memory_that_is_not_pinned_still_serves(void **state)
{
    (void)state;
    log_seen seen;
    pllm_context *context = logging_context(&seen);
    fake->no_pin = 1;
    pllm_device *device = open_fake(context);
    const pllm_device_ops *ops = device->ops;
    void *host;
    assert_int_equal(ops->host_alloc(device, 3 * MEBI, &host), PLLM_OK);
    assert_int_equal(seen.warnings, 1);
    assert_non_null(strstr(seen.last, "could not be pinned"));
    assert_non_null(strstr(seen.last, "ulimit"));
    assert_int_equal(pllm_cuda_host_va(device, host), 0);
    pllm_stream *stream;
    pllm_va va;
    pllm_chunk *chunk;
    assert_int_equal(ops->stream_open(device, &stream), PLLM_OK);
    assert_int_equal(ops->reserve(device, MEBI, &va), PLLM_OK);
    assert_int_equal(ops->chunk_create(device, MEBI, &chunk), PLLM_OK);
    assert_int_equal(ops->map(device, va, &chunk, 1), PLLM_OK);
    memset(host, 7, 200);
    const pllm_copy in[2] = {{va, at(host), 100}, {va + 100, at(host), 100}};
    const pllm_copy out = {at(host) + MEBI, va, 200};
    assert_int_equal(ops->copy_batch(device, stream, PLLM_COPY_IN, in, 2), PLLM_OK);
    assert_int_equal(fake->batches, 0); /* the driver's batches want pinned memory */
    assert_int_equal(ops->copy(device, stream, PLLM_COPY_OUT, &out), PLLM_OK);
    assert_int_equal(ops->stream_sync(device, stream), PLLM_OK);
    assert_memory_equal((char *)host + MEBI, host, 200);
    ops->host_free(device, host, 3 * MEBI);
    fake->no_pin = 0;
    assert_int_equal(ops->host_alloc(device, MEBI, &host), PLLM_OK);
    const pllm_copy again[2] = {{va, at(host), 100}, {va + 100, at(host), 100}};
    assert_int_equal(ops->copy_batch(device, stream, PLLM_COPY_IN, again, 2), PLLM_OK);
    assert_int_equal(fake->batches, 1); /* all that is left is pinned */
    ops->host_free(device, host, MEBI);
    ops->unmap(device, va, chunk);
    ops->chunk_destroy(device, chunk);
    ops->release(device, va, MEBI);
    ops->stream_close(device, stream);
    pllm_device_close(device);
    pllm_context_close(context);
}

static void access_is_set_once_for_a_run(void **state)
{
    (void)state;
    enum { COUNT = 8 };
    pllm_device *device = open_fake(NULL);
    const pllm_device_ops *ops = device->ops;
    pllm_chunk *chunks[COUNT], *reader;
    pllm_va va;
    int fd;
    assert_int_equal(ops->reserve(device, COUNT * MEBI, &va), PLLM_OK);
    for (int i = 0; i < COUNT; i++)
        assert_int_equal(ops->chunk_create(device, MEBI, &chunks[i]), PLLM_OK);
    uint64_t before = fake->accesses, syncs = fake->syncs;
    assert_int_equal(ops->map(device, va, chunks, COUNT), PLLM_OK);
    assert_int_equal(fake->accesses - before, 1);
    assert_int_equal(fake->syncs - syncs, 1); /* and the new ones are zeroed together */
    for (uint64_t i = 0; i < COUNT; i++) ops->unmap(device, va + i * MEBI, chunks[i]);
    assert_int_equal(ops->chunk_export(device, chunks[3], 1, &fd), PLLM_OK);
    fake->no_read_only = 1; /* such drivers there are: our own checks remain */
    assert_int_equal(ops->chunk_import(device, fd, MEBI, 1, &reader), PLLM_OK);
    close(fd);
    pllm_chunk *own = chunks[3];
    chunks[3] = reader;
    before = fake->accesses;
    assert_int_equal(ops->map(device, va, chunks, COUNT), PLLM_OK);
    assert_int_equal(fake->accesses - before, 3); /* those before it, it, those after it */
    pllm_stream *stream;
    assert_int_equal(ops->stream_open(device, &stream), PLLM_OK);
    assert_int_equal(ops->fill(device, stream, va + 3 * MEBI, 1, 1), PLLM_EPERM);
    assert_int_equal(ops->fill(device, stream, va + 4 * MEBI, 1, 1), PLLM_OK);
    ops->stream_close(device, stream);
    for (uint64_t i = 0; i < COUNT; i++) {
        ops->unmap(device, va + i * MEBI, chunks[i]);
        ops->chunk_destroy(device, chunks[i]);
    }
    ops->chunk_destroy(device, own);
    ops->release(device, va, COUNT * MEBI);
    pllm_device_close(device);
}

/* Whichever call of a run the driver refuses, nothing of the run stays. */
static void a_run_that_breaks_off_is_taken_back(void **state)
{
    (void)state;
    enum { COUNT = 5 };
    pllm_device *device = open_fake(NULL);
    const pllm_device_ops *ops = device->ops;
    pllm_chunk *chunks[COUNT];
    pllm_va va;
    assert_int_equal(ops->reserve(device, COUNT * MEBI, &va), PLLM_OK);
    for (int i = 0; i < COUNT; i++)
        assert_int_equal(ops->chunk_create(device, MEBI, &chunks[i]), PLLM_OK);
    int64_t live = fake->live;
    for (uint64_t n = 0; n < COUNT; n++) {
        fake->fail_call = "cuMemMap";
        fake->fail_code = CUDA_OUT_OF_MEMORY;
        fake->fail_at = n;
        fake->fail_count = 1;
        fake->calls = 0;
        assert_int_equal(ops->map(device, va, chunks, COUNT), PLLM_EDEVICE);
        assert_int_equal(fake->live, live);
    }
    fake->fail_code = 0;
    assert_int_equal(ops->map(device, va, chunks, COUNT), PLLM_OK);
    for (uint64_t i = 0; i < COUNT; i++) {
        ops->unmap(device, va + i * MEBI, chunks[i]);
        ops->chunk_destroy(device, chunks[i]);
    }
    ops->release(device, va, COUNT * MEBI);
    pllm_device_close(device);
}

/* Refused as a whole, it is pinned in parts; a copy never reaches from one into another, which the
 * fake refuses; and however often that happens, it is said once. */
static void memory_is_pinned_in_parts(void **state)
{
    (void)state;
    enum { BYTES = 28 << 20 };
    static const struct {
        uint64_t most, once;
        uint32_t fails, warnings; /* fails: the first so many calls, of each allocation */
    } cases[] = {
        {0, 16 * MEBI, 0, 0}, {0, 0, 1, 0}, {24 * MEBI, 0, 0, 1}, {MEBI, 0, 0, 1}, {0, 0, 2, 1}};
    for (uint32_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        log_seen seen;
        pllm_context *context = logging_context(&seen);
        pllm_device *device = open_fake(context);
        const pllm_device_ops *ops = device->ops;
        void *host[2];
        fake->pin_max = cases[c].most;
        fake->pin_once_max = cases[c].once;
        for (uint32_t i = 0; i < 2; i++) {
            fake->fail_call = "cuMemHostRegister";
            fake->fail_code = cases[c].fails ? CUDA_OUT_OF_MEMORY : 0;
            fake->fail_at = 0;
            fake->fail_count = cases[c].fails;
            fake->calls = 0;
            assert_int_equal(ops->host_alloc(device, BYTES, &host[i]), PLLM_OK);
        }
        fake->fail_code = 0;
        assert_int_equal(seen.warnings, cases[c].warnings);
        assert_int_equal(pllm_cuda_host_va(device, (char *)host[0] + 5), 0);
        pllm_stream *stream;
        pllm_va va;
        pllm_chunk *chunk;
        assert_int_equal(ops->stream_open(device, &stream), PLLM_OK);
        assert_int_equal(ops->reserve(device, BYTES, &va), PLLM_OK);
        assert_int_equal(ops->chunk_create(device, BYTES, &chunk), PLLM_OK);
        assert_int_equal(ops->map(device, va, &chunk, 1), PLLM_OK);
        for (uint64_t i = 0; i < BYTES / 8; i++) ((uint64_t *)host[0])[i] = i * 0x9e3779b97f4a7c15u;
        const pllm_copy in[2] = {{va, at(host[0]), 15 * MEBI},
                                 {va + 15 * MEBI, at(host[0]) + 15 * MEBI, BYTES - 15 * MEBI}};
        const pllm_copy out = {at(host[1]), va, BYTES};
        assert_int_equal(ops->copy_batch(device, stream, PLLM_COPY_IN, in, 2), PLLM_OK);
        assert_int_equal(ops->copy(device, stream, PLLM_COPY_OUT, &out), PLLM_OK);
        assert_int_equal(ops->stream_sync(device, stream), PLLM_OK);
        assert_memory_equal(host[0], host[1], BYTES);
        for (uint32_t i = 0; i < 2; i++) ops->host_free(device, host[i], BYTES);
        fake->pin_max = fake->pin_once_max = 0;
        assert_int_equal(ops->host_alloc(device, BYTES, &host[0]), PLLM_OK);
        assert_true(pllm_cuda_host_va(device, host[0]) != 0); /* nothing is left of the parts */
        uint64_t batches = fake->batches;
        const pllm_copy again[2] = {{va, at(host[0]), 100}, {va + 100, at(host[0]) + 100, 100}};
        assert_int_equal(ops->copy_batch(device, stream, PLLM_COPY_IN, again, 2), PLLM_OK);
        assert_int_equal(fake->batches, batches + 1);
        ops->host_free(device, host[0], BYTES);
        ops->unmap(device, va, chunk);
        ops->chunk_destroy(device, chunk);
        ops->release(device, va, BYTES);
        ops->stream_close(device, stream);
        pllm_device_close(device);
        assert_int_equal(fake->live, 0);
        pllm_context_close(context);
    }
}

static void memory_that_can_t_be_exported_still_serves(void **state)
{
    (void)state;
    fake->no_export = 1;
    pllm_device *device = open_fake(NULL);
    pllm_chunk *chunk;
    int fd;
    assert_int_equal(device->ops->chunk_create(device, MEBI, &chunk), PLLM_OK);
    assert_int_equal(device->ops->chunk_export(device, chunk, 0, &fd), PLLM_EUNSUPPORTED);
    assert_int_equal(fd, -1);
    device->ops->chunk_destroy(device, chunk);
    pllm_device_close(device);
}

static void an_exported_chunk_was_zeroed_even_if_never_mapped(void **state)
{
    (void)state;
    pllm_device *device = open_fake(NULL);
    const pllm_device_ops *ops = device->ops;
    pllm_chunk *chunk, *imported;
    pllm_va va;
    int fd;
    assert_int_equal(ops->chunk_create(device, MEBI, &chunk), PLLM_OK);
    assert_int_equal(ops->chunk_export(device, chunk, 0, &fd), PLLM_OK);
    assert_int_equal(ops->chunk_import(device, fd, MEBI, 0, &imported), PLLM_OK);
    close(fd);
    assert_int_equal(ops->reserve(device, MEBI, &va), PLLM_OK);
    assert_int_equal(ops->map(device, va, &imported, 1), PLLM_OK);
    const unsigned char *bytes = (const unsigned char *)(uintptr_t)va; /* the fake's memory */
    for (uint64_t i = 0; i < MEBI; i += 97) assert_int_equal(bytes[i], 0);
    ops->unmap(device, va, imported);
    ops->release(device, va, MEBI);
    ops->chunk_destroy(device, imported);
    ops->chunk_destroy(device, chunk);
    pllm_device_close(device);
}

/* What is wrong with importing is said: not every failure is a wrong descriptor. */
static void an_import_that_fails_says_why(void **state)
{
    (void)state;
    static const char *const full[] = {"cuMemImportFromShareableHandle", "cuMemAddressReserve",
                                       "cuMemMap"};
    pllm_device *device = open_fake(NULL);
    const pllm_device_ops *ops = device->ops;
    pllm_chunk *chunk, *imported;
    int fd;
    assert_int_equal(ops->chunk_create(device, MEBI, &chunk), PLLM_OK);
    assert_int_equal(ops->chunk_export(device, chunk, 0, &fd), PLLM_OK);
    for (uint32_t i = 0; i < 3; i++) {
        fake->fail_call = full[i];
        fake->fail_code = CUDA_OUT_OF_MEMORY;
        fake->calls = 0;
        pllm_fail(PLLM_EIO, 42, "a mark");
        assert_int_equal(ops->chunk_import(device, fd, MEBI, 0, &imported), PLLM_EDEVICE);
        assert_null(imported);
        assert_int_equal(pllm_last_error()->native, CUDA_OUT_OF_MEMORY);
        assert_non_null(strstr(pllm_last_error()->text, "no memory left"));
        fake->fail_code = CUDA_INVALID_VALUE;
        fake->calls = 0;
        assert_int_equal(ops->chunk_import(device, fd, MEBI, 0, &imported), PLLM_EINVAL);
        assert_int_equal(pllm_last_error()->native, CUDA_INVALID_VALUE);
    }
    fake->fail_call = NULL;
    fake->fail_code = 0;
    struct rlimit limit, none;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    none = limit;
    none.rlim_cur = 3;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    int status = ops->chunk_import(device, fd, MEBI, 0, &imported);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    assert_int_equal(status, PLLM_EDEVICE);
    assert_int_equal(pllm_last_error()->native, EMFILE);
    assert_int_equal(ops->chunk_import(device, fd, MEBI, 0, &imported), PLLM_OK);
    ops->chunk_destroy(device, imported);
    close(fd);
    ops->chunk_destroy(device, chunk);
    pllm_device_close(device);
}

/* Something of the batch is on its way, so submitting has succeeded, and the failure is the work's:
 * the event, the stream that waits for it and both syncs report it, once each. */
static void a_batch_that_breaks_off_fails_as_its_work(void **state)
{
    (void)state;
    enum { COUNT = 300 };
    pllm_device *device = open_fake(NULL);
    const pllm_device_ops *ops = device->ops;
    pllm_stream *stream, *other;
    pllm_event *event;
    pllm_va va;
    pllm_chunk *chunk;
    static pllm_copy copies[COUNT];
    assert_int_equal(ops->stream_open(device, &stream), PLLM_OK);
    assert_int_equal(ops->stream_open(device, &other), PLLM_OK);
    assert_int_equal(ops->event_open(device, &event), PLLM_OK);
    assert_int_equal(ops->reserve(device, MEBI, &va), PLLM_OK);
    assert_int_equal(ops->chunk_create(device, MEBI, &chunk), PLLM_OK);
    assert_int_equal(ops->map(device, va, &chunk, 1), PLLM_OK);
    for (uint64_t i = 0; i < COUNT; i++) copies[i] = (pllm_copy){va + i * 64, va + MEBI / 2, 64};
    fake->fail_call = "cuMemcpyBatchAsync";
    fake->fail_code = CUDA_INVALID_VALUE;
    fake->fail_at = 1;
    assert_int_equal(ops->copy_batch(device, stream, PLLM_COPY_WITHIN, copies, COUNT), PLLM_OK);
    assert_int_equal(ops->event_record(device, event, stream), PLLM_OK);
    assert_int_equal(ops->event_query(device, event), PLLM_EDEVICE);
    assert_int_equal(ops->event_wait(device, event, 1000), PLLM_EDEVICE);
    assert_int_equal(ops->stream_wait(device, other, event), PLLM_OK);
    assert_int_equal(ops->stream_sync(device, stream), PLLM_EDEVICE);
    assert_int_equal(ops->stream_sync(device, stream), PLLM_OK);
    assert_int_equal(ops->stream_sync(device, other), PLLM_EDEVICE);
    assert_int_equal(ops->stream_sync(device, other), PLLM_OK);
    assert_int_equal(ops->event_record(device, event, stream), PLLM_OK);
    assert_int_equal(ops->event_query(device, event), 1);
    fake->fail_at = 0; /* the first group: nothing was submitted, and the call says so */
    fake->calls = 0;
    assert_int_equal(ops->copy_batch(device, stream, PLLM_COPY_WITHIN, copies, COUNT),
                     PLLM_EDEVICE);
    assert_int_equal(ops->stream_sync(device, stream), PLLM_OK);
    fake->fail_code = CUDA_NOT_SUPPORTED; /* then one at a time, now and later */
    fake->calls = 0;
    uint64_t batches = fake->batches;
    assert_int_equal(ops->copy_batch(device, stream, PLLM_COPY_WITHIN, copies, COUNT), PLLM_OK);
    assert_int_equal(ops->copy_batch(device, stream, PLLM_COPY_WITHIN, copies, COUNT), PLLM_OK);
    assert_int_equal(fake->batches, batches);
    ops->unmap(device, va, chunk);
    ops->chunk_destroy(device, chunk);
    ops->release(device, va, MEBI);
    ops->event_close(device, event);
    ops->stream_close(device, other);
    ops->stream_close(device, stream);
    pllm_device_close(device);
}

static void pending_events_are_known_as_such(void **state)
{
    (void)state;
    fake->deferred = 1;
    pllm_device *device = open_fake(NULL);
    const pllm_device_ops *ops = device->ops;
    pllm_stream *stream, *other;
    pllm_event *event;
    assert_int_equal(ops->stream_open(device, &stream), PLLM_OK);
    assert_int_equal(ops->stream_open(device, &other), PLLM_OK);
    assert_int_equal(ops->event_open(device, &event), PLLM_OK);
    assert_int_equal(ops->event_record(device, event, stream), PLLM_OK);
    assert_int_equal(ops->event_record(device, event, other), PLLM_EBUSY);
    assert_int_equal(ops->event_record(device, event, stream), PLLM_OK); /* its own stream may */
    assert_int_equal(ops->event_wait(device, event, 0), PLLM_ETIMEDOUT);
    assert_int_equal(ops->event_wait(device, event, UINT64_MAX), PLLM_OK);
    assert_int_equal(ops->event_record(device, event, other), PLLM_OK);
    ops->event_close(device, event); /* while it is pending */
    ops->stream_close(device, other);
    ops->stream_close(device, stream);
    pllm_device_close(device);
}

static void a_failed_map_leaves_the_place_free(void **state)
{
    (void)state;
    static const char *const calls[] = {"cuMemMap", "cuMemSetAccess", "cuMemsetD8Async",
                                        "cuStreamSynchronize"};
    pllm_device *device = open_fake(NULL);
    const pllm_device_ops *ops = device->ops;
    pllm_va va;
    pllm_chunk *chunk;
    assert_int_equal(ops->reserve(device, MEBI, &va), PLLM_OK);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(ops->chunk_create(device, MEBI, &chunk), PLLM_OK);
        fake->fail_call = calls[i];
        fake->fail_code = i % 2 ? CUDA_OUT_OF_MEMORY : CUDA_INVALID_VALUE;
        fake->calls = 0;
        assert_int_equal(ops->map(device, va, &chunk, 1), PLLM_EDEVICE);
        assert_int_equal(ops->map(device, va, &chunk, 1), PLLM_OK);
        ops->unmap(device, va, chunk);
        ops->chunk_destroy(device, chunk);
    }
    ops->release(device, va, MEBI);
    pllm_device_close(device);
}

/* Others hold the memory: full, and no failure, until they give some back. */
static void a_card_that_others_filled_is_full(void **state)
{
    (void)state;
    pllm_device *device = open_fake(NULL);
    pllm_chunk *chunk;
    pllm_device_info info;
    fake->fail_call = "cuMemCreate";
    fake->fail_code = CUDA_OUT_OF_MEMORY;
    fake->fail_count = 2;
    pllm_fail(PLLM_EIO, 42, "a mark");
    for (int i = 0; i < 2; i++) {
        assert_int_equal(device->ops->chunk_create(device, MEBI, &chunk), PLLM_ENODEVMEM);
        assert_null(chunk);
    }
    assert_int_equal(pllm_last_error()->native, 42);
    assert_int_equal(device->ops->info(device, &info), PLLM_OK);
    assert_int_equal(info.free_bytes, 32 * MEBI); /* what was refused is not counted as used */
    assert_int_equal(device->ops->chunk_create(device, MEBI, &chunk), PLLM_OK);
    device->ops->chunk_destroy(device, chunk);
    pllm_device_close(device);
}

static void launches_are_counted_by_a_faulty_device(void **state)
{
    (void)state;
    pllm_device *inner = open_fake(NULL), *device;
    pllm_stream *stream;
    pllm_cuda_module *module;
    pllm_cuda_function *function;
    pllm_cuda_grid grid = {1, 1, 1, 32, 0, 0};
    void *arguments[] = {&stream};
    assert_int_equal(pllm_device_open_faulty(NULL, inner, NULL, &device), PLLM_OK);
    assert_int_equal(device->ops->stream_open(device, &stream), PLLM_OK);
    assert_true(pllm_cuda_is(device) && pllm_cuda_is(inner));
    assert_non_null(pllm_cuda_stream_handle(stream));
    assert_int_equal(pllm_cuda_module_open(device, "image", 6, &module), PLLM_OK);
    assert_int_equal(pllm_cuda_function_get(module, "kernel", 0, &function), PLLM_OK);
    assert_int_equal(pllm_cuda_launch(device, stream, function, &grid, arguments), PLLM_OK);
    assert_int_equal(fake->launches, 1);
    pllm_faulty_device_arm(device, 0);
    assert_int_equal(pllm_cuda_launch(device, stream, function, &grid, arguments), PLLM_EDEVICE);
    assert_int_equal(fake->launches, 1);
    grid.x = 0;
    assert_int_equal(pllm_cuda_launch(device, stream, function, &grid, arguments), PLLM_EINVAL);
    grid = (pllm_cuda_grid){1, 1, 1, 32, 49 << 10, 0}; /* more than it was got for */
    assert_int_equal(pllm_cuda_launch(device, stream, function, &grid, arguments), PLLM_EINVAL);
    assert_int_equal(pllm_cuda_function_get(module, "missing", 0, &function), PLLM_ENOTFOUND);
    assert_int_equal(pllm_cuda_function_get(module, "kernel", 1 << 20, &function),
                     PLLM_EUNSUPPORTED);
    pllm_cuda_module_close(module);
    fake->fail_call = "cuModuleLoadData";
    fake->fail_code = CUDA_NO_BINARY_FOR_GPU;
    assert_int_equal(pllm_cuda_module_open(device, "image", 6, &module), PLLM_EUNSUPPORTED);
    assert_non_null(strstr(pllm_last_error()->text, "sm_90"));
    assert_null(module);
    device->ops->stream_close(device, stream);
    pllm_device_close(device);
    pllm_device_close(inner);
}

int main(void)
{
    fake = fake_cuda_load(LIBRARY);
    if (!fake) return 1;
#define CASE(test) cmocka_unit_test_setup_teardown(test, fresh, nothing_left)
    const struct CMUnitTest tests[] = {
        CASE(no_driver_is_one_clear_sentence),
        CASE(an_old_driver_is_told_its_version),
        CASE(a_missing_call_is_named),
        CASE(gpus_are_chosen_by_number_and_uuid),
        CASE(names_mean_devices),
        CASE(a_driver_that_does_not_start_says_why),
        CASE(gpus_are_listed),
        CASE(memory_in_use_is_nvml_s_figure),
        CASE(every_driver_call_may_fail),
        CASE(every_allocation_may_fail),
        CASE(a_sticky_error_is_told_once_and_stays),
        CASE(memory_that_is_not_pinned_still_serves),
        CASE(access_is_set_once_for_a_run),
        CASE(a_run_that_breaks_off_is_taken_back),
        CASE(memory_is_pinned_in_parts),
        CASE(memory_that_can_t_be_exported_still_serves),
        CASE(an_exported_chunk_was_zeroed_even_if_never_mapped),
        CASE(an_import_that_fails_says_why),
        CASE(a_batch_that_breaks_off_fails_as_its_work),
        CASE(pending_events_are_known_as_such),
        CASE(a_failed_map_leaves_the_place_free),
        CASE(a_card_that_others_filled_is_full),
        CASE(launches_are_counted_by_a_faulty_device),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
