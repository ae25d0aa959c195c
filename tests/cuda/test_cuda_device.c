/* The CUDA device against the suite of all devices, then what only CUDA has: kernels, graphs, host
 * memory that kernels read, tensor maps, chunks that other processes import, memory figures, and
 * what a kernel that faults leaves behind. For a machine with a GPU.
 *
 *     cuda_device              everything
 *     cuda_device PATTERN      only tests whose name matches, as in "*copies*"
 *     cuda_device --import FD BYTES SEED     what the test of imports runs in a second process
 *
 * PLLM_TEST_SMALL=1, set where a sanitizer makes everything slow, leaves out the suite's second
 * round and the kernel that faults, which the sanitizer would report. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include "device/cuda.h"
#include "device_conformance.h"
#include "failing_context.h"
#include "kernels/cuda/fatbin.h"

extern char **environ;

#define CAPACITY ((uint64_t)256 << 20)

typedef struct subject {
    failing_context context; /* never fails; counts what is alive */
    pllm_device *inner;      /* with a faulty device around it */
    int faulty;
} subject;

static pllm_device *subject_open(void *user)
{
    subject *self = user;
    pllm_cuda_device_options options = {.struct_bytes = sizeof options, .capacity_bytes = CAPACITY};
    pllm_device *device;
    failing_context_init(&self->context, FAILING_NEVER);
    int status = pllm_device_open_cuda(&self->context.context, &options, &device);
    if (status < 0) print_error("%s\n", pllm_last_error()->text);
    assert_int_equal(status, PLLM_OK);
    self->inner = device;
    if (self->faulty)
        assert_int_equal(
            pllm_device_open_faulty(&self->context.context, self->inner, NULL, &device), PLLM_OK);
    return device;
}

static void subject_close(pllm_device *device, void *user)
{
    subject *self = user;
    pllm_device_close(device);
    if (device != self->inner) pllm_device_close(self->inner);
    failing_context_check(&self->context);
}

/* ---- extras ---- */

typedef struct rig {
    subject subject;
    pllm_device *device;
    const pllm_device_ops *ops;
    pllm_stream *stream;
    pllm_va va; /* one mapped chunk */
    pllm_chunk *chunk;
    uint64_t bytes;
    uint32_t *host; /* as large, pinned */
    pllm_cuda_module *module;
} rig;

static int rig_open(void **state)
{
    rig *r = calloc(1, sizeof *r);
    pllm_device_info info;
    r->device = subject_open(&r->subject);
    r->ops = r->device->ops;
    assert_int_equal(r->ops->info(r->device, &info), PLLM_OK);
    r->bytes = info.chunk_bytes;
    assert_int_equal(r->ops->stream_open(r->device, &r->stream), PLLM_OK);
    assert_int_equal(r->ops->reserve(r->device, r->bytes, &r->va), PLLM_OK);
    assert_int_equal(r->ops->chunk_create(r->device, r->bytes, &r->chunk), PLLM_OK);
    assert_int_equal(r->ops->map(r->device, r->va, &r->chunk, 1), PLLM_OK);
    void *host;
    assert_int_equal(r->ops->host_alloc(r->device, r->bytes, &host), PLLM_OK);
    r->host = host;
    const pllm_fatbin *probe = pllm_fatbin_find("probe");
    assert_non_null(probe);
    int status = pllm_cuda_module_open(r->device, probe->data, probe->bytes, &r->module);
    if (status < 0) print_error("%s\n", pllm_last_error()->text);
    assert_int_equal(status, PLLM_OK);
    *state = r;
    return 0;
}

static int rig_close(void **state)
{
    rig *r = *state;
    pllm_cuda_module_close(r->module);
    r->ops->host_free(r->device, r->host, r->bytes);
    r->ops->unmap(r->device, r->va, r->chunk);
    r->ops->chunk_destroy(r->device, r->chunk);
    r->ops->release(r->device, r->va, r->bytes);
    r->ops->stream_close(r->device, r->stream);
    subject_close(r->device, &r->subject);
    free(r);
    return 0;
}

static pllm_cuda_function *function_get(rig *r, const char *name, uint32_t shared_bytes)
{
    pllm_cuda_function *function;
    assert_int_equal(pllm_cuda_function_get(r->module, name, shared_bytes, &function), PLLM_OK);
    return function;
}

static void scale(rig *r, pllm_va to, pllm_va from, uint32_t count, uint32_t factor, uint32_t add)
{
    pllm_cuda_function *function = function_get(r, "pllm_probe_scale", 0);
    pllm_cuda_grid grid = {(count + 255) / 256, 1, 1, 256, 0, 0};
    void *arguments[] = {&to, &from, &count, &factor, &add};
    assert_int_equal(pllm_cuda_launch(r->device, r->stream, function, &grid, arguments), PLLM_OK);
}

static void copy(rig *r, pllm_copy_kind kind, pllm_va to, pllm_va from, uint64_t bytes)
{
    const pllm_copy one = {to, from, bytes};
    assert_int_equal(r->ops->copy(r->device, r->stream, kind, &one), PLLM_OK);
}

static pllm_va at(const void *pointer)
{
    return (pllm_va)(uintptr_t)pointer;
}

static void sync_stream(rig *r)
{
    assert_int_equal(r->ops->stream_sync(r->device, r->stream), PLLM_OK);
}

static void a_kernel_runs_in_the_stream_s_order(void **state)
{
    rig *r = *state;
    enum { COUNT = 100001 };
    for (uint32_t i = 0; i < COUNT; i++) r->host[i] = i * 7;
    copy(r, PLLM_COPY_IN, r->va, at(r->host), COUNT * 4);
    scale(r, r->va + COUNT * 4, r->va, COUNT, 3, 5);
    scale(r, r->va + COUNT * 4, r->va + COUNT * 4, COUNT, 2, 1);
    copy(r, PLLM_COPY_OUT, at(r->host), r->va + COUNT * 4, COUNT * 4);
    sync_stream(r);
    for (uint32_t i = 0; i < COUNT; i++) assert_int_equal(r->host[i], (i * 21 + 5) * 2 + 1);
}

static void kernels_read_and_write_pinned_host_memory(void **state)
{
    rig *r = *state;
    enum { COUNT = 5000 };
    pllm_va from = pllm_cuda_host_va(r->device, r->host + 17);
    pllm_va to = pllm_cuda_host_va(r->device, r->host + 17 + COUNT);
    assert_true(from && to && to - from == COUNT * 4);
    for (uint32_t i = 0; i < COUNT; i++) r->host[17 + i] = i;
    scale(r, to, from, COUNT, 2, 9);
    sync_stream(r);
    for (uint32_t i = 0; i < COUNT; i++) assert_int_equal(r->host[17 + COUNT + i], 2 * i + 9);
    assert_int_equal(pllm_cuda_host_va(r->device, NULL), 0);
}

static void large_shared_memory_is_asked_for(void **state)
{
    rig *r = *state;
    pllm_cuda_attributes attributes = {.struct_bytes = sizeof attributes};
    assert_int_equal(pllm_cuda_attributes_get(r->device, &attributes), PLLM_OK);
    assert_true(attributes.major >= 8 && attributes.sm_count > 0 && attributes.l2_bytes > 0);
    assert_true(attributes.shared_per_block_max > 48 << 10);
    uint32_t words = attributes.shared_per_block_max / 4, sum = 0;
    pllm_cuda_function *function, *none;
    for (uint32_t i = 0; i < words; i++) sum += r->host[i] = i * 5 + 1;
    copy(r, PLLM_COPY_IN, r->va, at(r->host), words * 4);
    function = function_get(r, "pllm_probe_shared", words * 4);
    pllm_va to = r->va + words * 4;
    pllm_cuda_grid grid = {1, 1, 1, 128, words * 4, 0};
    void *arguments[] = {&to, &r->va, &words};
    assert_int_equal(pllm_cuda_launch(r->device, r->stream, function, &grid, arguments), PLLM_OK);
    copy(r, PLLM_COPY_OUT, at(r->host), to, 4);
    sync_stream(r);
    assert_int_equal(r->host[0], sum);
    grid.shared_bytes += 16; /* more than it was got for */
    assert_int_equal(pllm_cuda_launch(r->device, r->stream, function, &grid, arguments),
                     PLLM_EINVAL);
    assert_int_equal(pllm_cuda_function_get(r->module, "pllm_probe_shared",
                                            attributes.shared_per_block_max + 16, &none),
                     PLLM_EUNSUPPORTED);
    assert_int_equal(pllm_cuda_function_get(r->module, "no_such_kernel", 0, &none), PLLM_ENOTFOUND);
    assert_null(none);
}

static void chain(rig *r, uint32_t count)
{
    pllm_cuda_function *function = function_get(r, "pllm_probe_chain", 0);
    pllm_cuda_grid grid = {1, 1, 1, 32, 0, 1};
    void *arguments[] = {&r->va};
    for (uint32_t i = 0; i < count; i++)
        assert_int_equal(pllm_cuda_launch(r->device, r->stream, function, &grid, arguments),
                         PLLM_OK);
}

static void dependent_launches_keep_their_order(void **state)
{
    rig *r = *state;
    chain(r, 200);
    copy(r, PLLM_COPY_OUT, at(r->host), r->va, 4);
    sync_stream(r);
    assert_int_equal(r->host[0], 200);
}

static void a_graph_runs_as_often_as_it_is_launched(void **state)
{
    rig *r = *state;
    pllm_cuda_graph *graph;
    pllm_event *event;
    pllm_stream *other;
    assert_int_equal(r->ops->event_open(r->device, &event), PLLM_OK);
    assert_int_equal(r->ops->stream_open(r->device, &other), PLLM_OK);
    function_get(r, "pllm_probe_chain", 0);
    assert_int_equal(pllm_cuda_capture_begin(r->device, r->stream), PLLM_OK);
    chain(r, 10);
    scale(r, r->va + 4, r->va, 1, 10, 0); /* the second word: ten times the first */
    copy(r, PLLM_COPY_WITHIN, r->va + 8, r->va + 4, 4);
    const pllm_copy two[2] = {{r->va + 12, r->va + 8, 4}, {r->va + 16, r->va + 4, 4}};
    assert_int_equal(r->ops->copy_batch(r->device, r->stream, PLLM_COPY_WITHIN, two, 2), PLLM_OK);
    /* Over another stream and back, as copies beside kernels would be. */
    assert_int_equal(r->ops->event_record(r->device, event, r->stream), PLLM_OK);
    assert_int_equal(r->ops->stream_wait(r->device, other, event), PLLM_OK);
    assert_int_equal(r->ops->fill(r->device, other, r->va + 20, 4, 7), PLLM_OK);
    assert_int_equal(r->ops->event_record(r->device, event, other), PLLM_OK);
    assert_int_equal(r->ops->stream_wait(r->device, r->stream, event), PLLM_OK);
    copy(r, PLLM_COPY_WITHIN, r->va + 24, r->va + 20, 4);
    assert_int_equal(pllm_cuda_capture_end(r->device, r->stream, &graph), PLLM_OK);
    assert_int_equal(r->ops->event_query(r->device, event), 1); /* it was never really recorded */
    copy(r, PLLM_COPY_OUT, at(r->host), r->va, 32);
    sync_stream(r);
    for (uint32_t i = 0; i < 8; i++) assert_int_equal(r->host[i], 0); /* noted, not run */
    for (uint32_t i = 0; i < 5; i++)
        assert_int_equal(pllm_cuda_graph_launch(r->device, graph, r->stream), PLLM_OK);
    assert_int_equal(r->ops->event_record(r->device, event, r->stream), PLLM_OK);
    assert_int_equal(r->ops->event_wait(r->device, event, 10000000000u), PLLM_OK);
    copy(r, PLLM_COPY_OUT, at(r->host), r->va, 32);
    sync_stream(r);
    const uint32_t expected[8] = {50, 500, 500, 500, 500, 0x07070707, 0x07070707, 0};
    assert_memory_equal(r->host, expected, sizeof expected);
    pllm_cuda_graph_close(graph);
    pllm_cuda_graph_close(NULL);
    r->ops->event_close(r->device, event);
    r->ops->stream_close(r->device, other);
}

static void tensor_maps_are_made_and_refused(void **state)
{
    rig *r = *state;
    _Alignas(128) unsigned char map[128] = {0}, empty[128] = {0};
    assert_int_equal(pllm_cuda_tensor_map_2d(r->device, map, r->va, 2, 1000, 512, 1024, 64, 64, 1),
                     PLLM_OK);
    assert_memory_not_equal(map, empty, sizeof map);
    assert_int_equal(pllm_cuda_tensor_map_2d(r->device, map, r->va, 4, 10, 64, 256, 10, 64, 0),
                     PLLM_OK);
    assert_int_equal(pllm_cuda_tensor_map_2d(r->device, map, r->va, 1, 10, 64, 64, 8, 64, 0),
                     PLLM_OK);
    assert_int_equal(
        pllm_cuda_tensor_map_2d(r->device, map, r->va + 8, 2, 1000, 512, 1024, 64, 64, 1),
        PLLM_EINVAL); /* not aligned */
    assert_int_equal(pllm_cuda_tensor_map_2d(r->device, map, r->va, 2, 1000, 512, 1024, 64, 128, 1),
                     PLLM_EINVAL); /* too wide for the swizzle */
    assert_int_equal(pllm_cuda_tensor_map_2d(r->device, map, r->va, 2, 1000, 513, 1024, 64, 64, 1),
                     PLLM_EINVAL); /* a row is longer than the way to the next */
}

static void memory_figures_follow_what_is_allocated(void **state)
{
    rig *r = *state;
    uint64_t before, now, then;
    int status = pllm_cuda_memory_used(r->device, &before, &now);
    if (status == PLLM_EUNSUPPORTED) return; /* no NVML here */
    assert_int_equal(status, PLLM_OK);
    assert_true(now >= before + r->bytes); /* others may come and go: only our own part is sure */
    pllm_chunk *chunk;
    assert_int_equal(r->ops->chunk_create(r->device, (uint64_t)128 << 20, &chunk), PLLM_OK);
    assert_int_equal(pllm_cuda_memory_used(r->device, &before, &then), PLLM_OK);
    print_message("before our context %.1f MiB, now %.1f, with 128 MiB more %.1f\n",
                  (double)before / (1 << 20), (double)now / (1 << 20), (double)then / (1 << 20));
    r->ops->chunk_destroy(r->device, chunk);
}

static void gpus_are_listed_and_opened_by_uuid(void **state)
{
    (void)state;
    pllm_cuda_listing listings[16];
    uint32_t count;
    assert_int_equal(pllm_cuda_list(NULL, listings, 16, &count), PLLM_OK);
    assert_true(count > 0);
    for (uint32_t i = 0; i < count && i < 16; i++) {
        pllm_cuda_device_options options = {.struct_bytes = sizeof options,
                                            .uuid = listings[i].uuid};
        pllm_device *device;
        pllm_device_info info;
        print_message("%s %s driver %s, CUDA %u.%u, sm_%u%u, %u SMs, %.1f GiB\n", listings[i].uuid,
                      listings[i].name, listings[i].driver, listings[i].cuda_major,
                      listings[i].cuda_minor, listings[i].major, listings[i].minor,
                      listings[i].sm_count, (double)listings[i].total_bytes / (1 << 30));
        assert_int_equal(pllm_device_open_cuda(NULL, &options, &device), PLLM_OK);
        assert_int_equal(device->ops->info(device, &info), PLLM_OK);
        assert_string_equal(info.uuid, listings[i].uuid);
        pllm_device_close(device);
        options.uuid = listings[i].uuid + 4; /* without "GPU-" */
        assert_int_equal(pllm_device_open_cuda(NULL, &options, &device), PLLM_OK);
        pllm_device_close(device);
    }
    pllm_cuda_device_options none = {.struct_bytes = sizeof none, .index = 999};
    pllm_device *device;
    assert_int_equal(pllm_device_open_cuda(NULL, &none, &device), PLLM_EUNSUPPORTED);
    none.uuid = "GPU-00000000-0000-0000-0000-000000000000";
    assert_int_equal(pllm_device_open_cuda(NULL, &none, &device), PLLM_EUNSUPPORTED);
    assert_null(device);
}

static void launches_pass_through_a_faulty_device(void **state)
{
    rig *r = *state;
    pllm_device *faulty;
    pllm_stream *stream;
    assert_int_equal(pllm_device_open_faulty(NULL, r->device, NULL, &faulty), PLLM_OK);
    assert_true(pllm_cuda_is(faulty));
    assert_int_equal(faulty->ops->stream_open(faulty, &stream), PLLM_OK);
    assert_non_null(pllm_cuda_stream_handle(stream));
    pllm_cuda_function *function = function_get(r, "pllm_probe_chain", 0);
    pllm_cuda_grid grid = {1, 1, 1, 32, 0, 0};
    void *arguments[] = {&r->va};
    assert_int_equal(pllm_cuda_launch(faulty, stream, function, &grid, arguments), PLLM_OK);
    assert_int_equal(faulty->ops->stream_sync(faulty, stream), PLLM_OK);
    pllm_faulty_device_arm(faulty, 0);
    assert_int_equal(pllm_cuda_launch(faulty, stream, function, &grid, arguments), PLLM_EDEVICE);
    assert_int_equal(faulty->ops->stream_sync(faulty, stream), PLLM_OK);
    copy(r, PLLM_COPY_OUT, at(r->host), r->va, 4);
    sync_stream(r);
    assert_int_equal(r->host[0], 1); /* the failed launch did not run */
    faulty->ops->stream_close(faulty, stream);
    pllm_device_close(faulty);
}

/* Somebody else takes all that is left, to the last granule. What we have goes on working; a new
 * chunk is ENODEVMEM, bare, as often as it is asked for; when they give memory back it is there. */
static void a_card_that_others_filled_is_full_and_no_more(void **state)
{
    rig *r = *state;
    enum { CHUNKS_MAX = 2048 };
    static pllm_chunk *chunks[CHUNKS_MAX];
    uint32_t count = 0;
    pllm_device *other;
    pllm_device_info info;
    pllm_chunk *chunk;
    if (getenv("PLLM_TEST_SMALL")) return;
    assert_int_equal(pllm_device_open_cuda(NULL, NULL, &other), PLLM_OK);
    for (uint64_t bytes = (uint64_t)1 << 30; bytes >= 2 << 20 && count < CHUNKS_MAX; bytes /= 2)
        while (count < CHUNKS_MAX &&
               other->ops->chunk_create(other, bytes, &chunks[count]) == PLLM_OK)
            count++;
    assert_int_equal(other->ops->info(other, &info), PLLM_OK);
    print_message("filled with %u chunks; %.1f MiB are left that no chunk gets\n", count,
                  (double)info.free_bytes / (1 << 20));
    pllm_fail(PLLM_EIO, 42, "a mark");
    for (int i = 0; i < 3; i++)
        assert_int_equal(r->ops->chunk_create(r->device, r->bytes, &chunk), PLLM_ENODEVMEM);
    assert_int_equal(pllm_last_error()->native, 42);
    chain(r, 3);
    copy(r, PLLM_COPY_OUT, at(r->host), r->va, 4);
    sync_stream(r);
    assert_int_equal(r->host[0], 3);
    while (count > 0) other->ops->chunk_destroy(other, chunks[--count]);
    assert_int_equal(r->ops->chunk_create(r->device, r->bytes, &chunk), PLLM_OK);
    r->ops->chunk_destroy(r->device, chunk);
    pllm_device_close(other);
}

/* ---- a second process ---- */

static uint32_t word(uint32_t seed, uint32_t i)
{
    return (seed + i) * 2654435761u;
}

static int import_main(char **arguments)
{
    int fd = atoi(arguments[0]);
    uint64_t bytes = strtoull(arguments[1], NULL, 10);
    uint32_t seed = (uint32_t)strtoul(arguments[2], NULL, 10), wrong = 0;
    pllm_device *device;
    pllm_chunk *chunk;
    pllm_stream *stream;
    pllm_va va;
    void *host;
    if (pllm_device_open_cuda(NULL, NULL, &device) < 0) return 10;
    const pllm_device_ops *ops = device->ops;
    if (ops->chunk_import(device, fd, bytes, 0, &chunk) < 0) return 11;
    if (ops->reserve(device, bytes, &va) < 0 || ops->map(device, va, &chunk, 1) < 0) return 12;
    if (ops->stream_open(device, &stream) < 0 || ops->host_alloc(device, bytes, &host) < 0)
        return 13;
    const pllm_copy out = {at(host), va, bytes};
    if (ops->copy(device, stream, PLLM_COPY_OUT, &out) < 0) return 14;
    if (ops->stream_sync(device, stream) < 0) return 14;
    for (uint32_t i = 0; i < bytes / 4; i++) wrong += ((uint32_t *)host)[i] != word(seed, i);
    if (wrong) return 15;
    if (ops->fill(device, stream, va, bytes, 0x5a) < 0) return 16;
    if (ops->stream_sync(device, stream) < 0) return 16;
    ops->host_free(device, host, bytes);
    ops->stream_close(device, stream);
    ops->unmap(device, va, chunk);
    ops->chunk_destroy(device, chunk);
    ops->release(device, va, bytes);
    pllm_device_close(device);
    return 0;
}

static void another_process_sees_an_exported_chunk(void **state)
{
    rig *r = *state;
    int fd, result;
    char own[4096], fd_text[32], bytes_text[32];
    pid_t child;
    int status = r->ops->chunk_export(r->device, r->chunk, 0, &fd);
    if (status == PLLM_EUNSUPPORTED) {
        print_message("%s\n", pllm_last_error()->text);
        return;
    }
    assert_int_equal(status, PLLM_OK);
    for (uint32_t i = 0; i < r->bytes / 4; i++) r->host[i] = word(9, i);
    copy(r, PLLM_COPY_IN, r->va, at(r->host), r->bytes);
    sync_stream(r);
    ssize_t length = readlink("/proc/self/exe", own, sizeof own - 1);
    assert_true(length > 0);
    own[length] = 0;
    fd = dup(fd); /* without close-on-exec, if it had that */
    snprintf(fd_text, sizeof fd_text, "%d", fd);
    snprintf(bytes_text, sizeof bytes_text, "%llu", (unsigned long long)r->bytes);
    char import[] = "--import", seed_text[] = "9";
    char self[] = "cuda_device"; /* which one it is, where all tests are one program */
    char *arguments[] = {self, import, fd_text, bytes_text, seed_text, NULL};
    assert_int_equal(posix_spawn(&child, own, NULL, NULL, arguments, environ), 0);
    assert_int_equal(waitpid(child, &result, 0), child);
    assert_true(WIFEXITED(result));
    assert_int_equal(WEXITSTATUS(result), 0);
    close(fd);
    copy(r, PLLM_COPY_OUT, at(r->host), r->va, r->bytes);
    sync_stream(r);
    uint32_t wrong = 0;
    for (uint32_t i = 0; i < r->bytes / 4; i++) wrong += r->host[i] != 0x5a5a5a5a;
    assert_int_equal(wrong, 0);
}

/* ---- a kernel that faults: last, since the context is gone afterwards ---- */

static void a_faulting_kernel_is_named_and_the_device_closes(void **state)
{
    rig *r = *state;
    pllm_cuda_function *function = function_get(r, "pllm_probe_fault", 0);
    pllm_cuda_grid grid = {1, 1, 1, 1, 0, 0};
    uint64_t wild = 0x10;
    void *arguments[] = {&wild};
    pllm_event *event;
    pllm_chunk *chunk;
    assert_int_equal(r->ops->event_open(r->device, &event), PLLM_OK);
    assert_int_equal(pllm_cuda_launch(r->device, r->stream, function, &grid, arguments), PLLM_OK);
    assert_int_equal(r->ops->stream_sync(r->device, r->stream), PLLM_EDEVICE);
    assert_non_null(strstr(pllm_last_error()->text, "cuStreamSynchronize"));
    assert_int_not_equal(pllm_last_error()->native, 0);
    print_message("%s\n", pllm_last_error()->text);
    assert_int_equal(r->ops->stream_sync(r->device, r->stream), PLLM_EDEVICE); /* still */
    assert_int_equal(r->ops->event_query(r->device, event), PLLM_EDEVICE);
    assert_int_equal(r->ops->event_record(r->device, event, r->stream), PLLM_EDEVICE);
    assert_int_equal(r->ops->fill(r->device, r->stream, r->va, 16, 0), PLLM_EDEVICE);
    assert_int_equal(r->ops->chunk_create(r->device, r->bytes, &chunk), PLLM_EDEVICE);
    assert_non_null(strstr(pllm_last_error()->text, "cuStreamSynchronize"));
    print_message("%s\n", pllm_last_error()->text);
    r->ops->event_close(r->device, event);
}

int main(int argc, char **argv)
{
    if (argc == 5 && strcmp(argv[1], "--import") == 0) return import_main(argv + 2);
    if (argc > 1) cmocka_set_test_filter(argv[1]);
#define CASE(test) cmocka_unit_test_setup_teardown(test, rig_open, rig_close)
    const struct CMUnitTest extras[] = {
        CASE(a_kernel_runs_in_the_stream_s_order),
        CASE(kernels_read_and_write_pinned_host_memory),
        CASE(large_shared_memory_is_asked_for),
        CASE(dependent_launches_keep_their_order),
        CASE(a_graph_runs_as_often_as_it_is_launched),
        CASE(tensor_maps_are_made_and_refused),
        CASE(memory_figures_follow_what_is_allocated),
        CASE(launches_pass_through_a_faulty_device),
        CASE(a_card_that_others_filled_is_full_and_no_more),
        CASE(another_process_sees_an_exported_chunk),
        cmocka_unit_test(gpus_are_listed_and_opened_by_uuid),
    };
    const struct CMUnitTest last[] = {CASE(a_faulting_kernel_is_named_and_the_device_closes)};
    subject plain = {0}, wrapped = {.faulty = 1};
    const device_conformance hows[] = {
        {"cuda", subject_open, subject_close, &plain, CAPACITY, 0},
        {"faulty around cuda", subject_open, subject_close, &wrapped, CAPACITY, 0},
    };
    int failed = 0, small = getenv("PLLM_TEST_SMALL") != NULL;
    for (int i = 0; i < (small ? 1 : 2); i++) failed += device_conformance_run(&hows[i]);
    failed += cmocka_run_group_tests_name("cuda extras", extras, NULL, NULL);
    if (!small) failed += cmocka_run_group_tests_name("cuda faults", last, NULL, NULL);
    return failed;
}
