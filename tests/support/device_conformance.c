/* device_conformance.c - see the header. Contents are checked through COPY_OUT, never through
 * host_view, so that a device the CPU can't read passes too. Every wait has a deadline: a lost wake
 * fails the test instead of hanging it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include "device_conformance.h"

#define DEADLINE_NS 20000000000u
#define STREAMS 12u

static const device_conformance *how; /* of the run in progress */

typedef struct fixture {
    pllm_device *device;
    const pllm_device_ops *ops;
    uint64_t granule;
    pllm_stream *stream;
} fixture;

typedef struct block { /* a reservation wholly backed by one chunk */
    pllm_va va;
    uint64_t bytes;
    pllm_chunk *chunk;
} block;

static int setup(void **state)
{
    fixture *f = calloc(1, sizeof *f);
    pllm_device_info info;
    f->device = how->open(how->user);
    f->ops = f->device->ops;
    assert_int_equal(f->ops->info(f->device, &info), PLLM_OK);
    f->granule = info.granularity_bytes;
    assert_int_equal(f->ops->stream_open(f->device, &f->stream), PLLM_OK);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    fixture *f = *state;
    f->ops->stream_close(f->device, f->stream);
    how->close(f->device, how->user);
    free(f);
    return 0;
}

/* ---- helpers ---- */

static pllm_va reserve(fixture *f, uint64_t bytes)
{
    pllm_va va;
    assert_int_equal(f->ops->reserve(f->device, bytes, &va), PLLM_OK);
    assert_int_not_equal(va, 0);
    assert_int_equal(va % f->granule, 0);
    return va;
}

static pllm_chunk *create(fixture *f, uint64_t bytes)
{
    pllm_chunk *chunk;
    assert_int_equal(f->ops->chunk_create(f->device, bytes, &chunk), PLLM_OK);
    assert_non_null(chunk);
    return chunk;
}

static block block_open(fixture *f, uint64_t granules)
{
    block b = {.bytes = granules * f->granule};
    b.va = reserve(f, b.bytes);
    b.chunk = create(f, b.bytes);
    assert_int_equal(f->ops->map(f->device, b.va, &b.chunk, 1), PLLM_OK);
    return b;
}

static void block_close(fixture *f, block *b)
{
    f->ops->unmap(f->device, b->va, b->chunk);
    f->ops->chunk_destroy(f->device, b->chunk);
    f->ops->release(f->device, b->va, b->bytes);
}

static unsigned char *host_open(fixture *f, uint64_t bytes)
{
    void *pointer;
    assert_int_equal(f->ops->host_alloc(f->device, bytes, &pointer), PLLM_OK);
    return pointer;
}

static pllm_event *event_open(fixture *f)
{
    pllm_event *event;
    assert_int_equal(f->ops->event_open(f->device, &event), PLLM_OK);
    return event;
}

static pllm_stream *stream_open(fixture *f)
{
    pllm_stream *stream;
    assert_int_equal(f->ops->stream_open(f->device, &stream), PLLM_OK);
    return stream;
}

static pllm_va at(const void *host)
{
    return (pllm_va)(uintptr_t)host;
}

static void copy(fixture *f, pllm_stream *stream, pllm_copy_kind kind, pllm_va to, pllm_va from,
                 uint64_t bytes)
{
    pllm_copy one = {to, from, bytes};
    assert_int_equal(f->ops->copy(f->device, stream, kind, &one), PLLM_OK);
}

static void fill(fixture *f, pllm_stream *stream, pllm_va va, uint64_t bytes, uint8_t value)
{
    assert_int_equal(f->ops->fill(f->device, stream, va, bytes, value), PLLM_OK);
}

static void sync_stream(fixture *f, pllm_stream *stream)
{
    assert_int_equal(f->ops->stream_sync(f->device, stream), PLLM_OK);
}

static void wait_event(fixture *f, pllm_event *event)
{
    assert_int_equal(f->ops->event_wait(f->device, event, DEADLINE_NS), PLLM_OK);
    assert_int_equal(f->ops->event_query(f->device, event), 1);
}

/* Bytes that differ by place and by seed. */
static uint8_t pattern(uint64_t seed, uint64_t i)
{
    uint64_t x = (seed + 1) * 0x9e3779b97f4a7c15u + i * 0xbf58476d1ce4e5b9u;
    return (uint8_t)((x ^ (x >> 29)) >> 17);
}

static void put_pattern(fixture *f, pllm_va va, uint64_t bytes, uint64_t seed)
{
    unsigned char *host = host_open(f, bytes);
    for (uint64_t i = 0; i < bytes; i++) host[i] = pattern(seed, i);
    copy(f, f->stream, PLLM_COPY_IN, va, at(host), bytes);
    sync_stream(f, f->stream);
    f->ops->host_free(f->device, host, bytes);
}

static void expect_pattern(fixture *f, pllm_va va, uint64_t bytes, uint64_t seed)
{
    unsigned char *host = host_open(f, bytes);
    copy(f, f->stream, PLLM_COPY_OUT, at(host), va, bytes);
    sync_stream(f, f->stream);
    uint64_t wrong = 0;
    for (uint64_t i = 0; i < bytes; i++) wrong += host[i] != pattern(seed, i);
    assert_int_equal(wrong, 0);
    f->ops->host_free(f->device, host, bytes);
}

static void expect_bytes(fixture *f, pllm_va va, uint64_t bytes, uint8_t value)
{
    unsigned char *host = host_open(f, bytes);
    memset(host, value + 1, bytes);
    copy(f, f->stream, PLLM_COPY_OUT, at(host), va, bytes);
    sync_stream(f, f->stream);
    uint64_t wrong = 0;
    for (uint64_t i = 0; i < bytes; i++) wrong += host[i] != value;
    assert_int_equal(wrong, 0);
    f->ops->host_free(f->device, host, bytes);
}

/* ---- memory ---- */

static void info_says_what_the_device_is(void **state)
{
    fixture *f = *state;
    pllm_device_info info;
    assert_int_equal(f->ops->info(f->device, &info), PLLM_OK);
    assert_true(info.granularity_bytes > 0);
    assert_int_equal(info.granularity_bytes & (info.granularity_bytes - 1), 0);
    assert_int_equal(info.chunk_bytes % info.granularity_bytes, 0);
    assert_int_equal(info.total_bytes, how->capacity_bytes);
    assert_true(info.free_bytes <= info.total_bytes && info.free_bytes > 0);
    assert_true(memchr(info.name, 0, sizeof info.name) && info.name[0]);
    assert_true(memchr(info.uuid, 0, sizeof info.uuid) && info.uuid[0]);
    assert_non_null(f->ops->name);
}

static void new_chunks_read_as_zero(void **state)
{
    fixture *f = *state;
    block b = block_open(f, 3);
    expect_bytes(f, b.va, b.bytes, 0);
    fill(f, f->stream, b.va, b.bytes, 0xa5); /* dirty what will be given back */
    expect_bytes(f, b.va, b.bytes, 0xa5);
    f->ops->unmap(f->device, b.va, b.chunk);
    f->ops->chunk_destroy(f->device, b.chunk);
    b.chunk = create(f, b.bytes);
    assert_int_equal(f->ops->map(f->device, b.va, &b.chunk, 1), PLLM_OK);
    expect_bytes(f, b.va, b.bytes, 0);
    block_close(f, &b);
}

static void contents_follow_the_chunk(void **state)
{
    fixture *f = *state;
    uint64_t g = f->granule;
    pllm_va va = reserve(f, 8 * g);
    pllm_chunk *a = create(f, 2 * g), *b = create(f, 2 * g);
    assert_int_equal(f->ops->map(f->device, va, &a, 1), PLLM_OK);
    assert_int_equal(f->ops->map(f->device, va + 2 * g, &b, 1), PLLM_OK);
    put_pattern(f, va, 2 * g, 1);
    put_pattern(f, va + 2 * g, 2 * g, 2);
    f->ops->unmap(f->device, va, a);
    f->ops->unmap(f->device, va + 2 * g, b);
    assert_int_equal(f->ops->map(f->device, va, &b, 1), PLLM_OK); /* they change places */
    assert_int_equal(f->ops->map(f->device, va + 5 * g, &a, 1), PLLM_OK);
    expect_pattern(f, va, 2 * g, 2);
    expect_pattern(f, va + 5 * g, 2 * g, 1);
    f->ops->unmap(f->device, va, b);
    f->ops->unmap(f->device, va + 5 * g, a);
    f->ops->chunk_destroy(f->device, a);
    f->ops->chunk_destroy(f->device, b);
    f->ops->release(f->device, va, 8 * g);
}

static void copies_cross_the_border_of_two_chunks(void **state)
{
    fixture *f = *state;
    uint64_t g = f->granule;
    pllm_va va = reserve(f, 2 * g);
    pllm_chunk *a = create(f, g), *b = create(f, g);
    assert_int_equal(f->ops->map(f->device, va, &a, 1), PLLM_OK);
    assert_int_equal(f->ops->map(f->device, va + g, &b, 1), PLLM_OK);
    put_pattern(f, va + g / 2 + 3, g, 7);
    expect_pattern(f, va + g / 2 + 3, g, 7);
    expect_bytes(f, va, g / 2 + 3, 0);
    f->ops->unmap(f->device, va + g, b);
    f->ops->unmap(f->device, va, a);
    f->ops->chunk_destroy(f->device, a);
    f->ops->chunk_destroy(f->device, b);
    f->ops->release(f->device, va, 2 * g);
}

static void a_run_of_chunks_is_mapped_by_one_call(void **state)
{
    fixture *f = *state;
    uint64_t g = f->granule;
    pllm_va va = reserve(f, 8 * g);
    pllm_chunk *chunks[3] = {create(f, 2 * g), create(f, g), create(f, 3 * g)};
    assert_int_equal(f->ops->map(f->device, va + g, chunks, 3), PLLM_OK);
    expect_bytes(f, va + g, 6 * g, 0);
    put_pattern(f, va + g, 6 * g, 4);
    expect_pattern(f, va + g, 6 * g, 4);
    f->ops->unmap(f->device, va + 3 * g, chunks[1]); /* one at a time, in any order */
    f->ops->unmap(f->device, va + 4 * g, chunks[2]);
    f->ops->unmap(f->device, va + g, chunks[0]);
    pllm_chunk *turned[3] = {chunks[2], chunks[1], chunks[0]};
    assert_int_equal(f->ops->map(f->device, va, turned, 3), PLLM_OK);
    unsigned char *host = host_open(f, 6 * g);
    copy(f, f->stream, PLLM_COPY_OUT, at(host), va, 6 * g);
    sync_stream(f, f->stream);
    for (uint64_t i = 0; i < 6 * g; i++) {
        uint64_t before = i < 3 * g ? i + 3 * g : i < 4 * g ? i - g : i - 4 * g;
        if (host[i] != pattern(4, before)) fail();
    }
    f->ops->host_free(f->device, host, 6 * g);
    assert_int_equal(f->ops->map(f->device, va, NULL, 0), PLLM_OK); /* none are nothing */
    f->ops->unmap(f->device, va, chunks[2]);
    f->ops->unmap(f->device, va + 3 * g, chunks[1]);
    f->ops->unmap(f->device, va + 4 * g, chunks[0]);
    for (uint32_t i = 0; i < 3; i++) f->ops->chunk_destroy(f->device, chunks[i]);
    f->ops->release(f->device, va, 8 * g);
}

static void a_run_that_does_not_fit_maps_nothing(void **state)
{
    fixture *f = *state;
    uint64_t g = f->granule;
    pllm_va va = reserve(f, 4 * g), other = reserve(f, g);
    pllm_chunk *chunks[3] = {create(f, g), create(f, g), create(f, g)}, *in_the_way = create(f, g);
    pllm_chunk *holed[3] = {chunks[0], NULL, chunks[2]};
    assert_int_equal(f->ops->map(f->device, va + 2 * g, &in_the_way, 1), PLLM_OK);
    put_pattern(f, va + 2 * g, g, 3);
    assert_int_equal(f->ops->map(f->device, va, chunks, 3), PLLM_EINVAL);
    assert_int_equal(f->ops->map(f->device, va + 3 * g, chunks, 2), PLLM_EINVAL); /* past the end */
    assert_int_equal(f->ops->map(f->device, va, holed, 3), PLLM_EINVAL);
    assert_int_equal(f->ops->map(f->device, va, NULL, 1), PLLM_EINVAL);
    assert_int_equal(f->ops->fill(f->device, f->stream, va, 1, 1), PLLM_EINVAL); /* nothing there */
    expect_pattern(f, va + 2 * g, g, 3);
    assert_int_equal(f->ops->map(f->device, va, chunks, 2), PLLM_OK); /* they are free to go */
    assert_int_equal(f->ops->map(f->device, va + 3 * g, &chunks[2], 1), PLLM_OK);
    expect_bytes(f, va, 2 * g, 0);
    f->ops->unmap(f->device, va, chunks[0]);
    f->ops->unmap(f->device, va + g, chunks[1]);
    f->ops->unmap(f->device, va + 2 * g, in_the_way);
    f->ops->unmap(f->device, va + 3 * g, chunks[2]);
    for (uint32_t i = 0; i < 3; i++) f->ops->chunk_destroy(f->device, chunks[i]);
    f->ops->chunk_destroy(f->device, in_the_way);
    f->ops->release(f->device, other, g);
    f->ops->release(f->device, va, 4 * g);
}

static void capacity_is_hard_and_comes_back(void **state)
{
    fixture *f = *state;
    uint64_t each = how->capacity_bytes / 8 / f->granule * f->granule;
    pllm_chunk *chunks[9], *more;
    uint32_t count = 0;
    pllm_fail(PLLM_EIO, 42, "a mark");
    int status = PLLM_OK;
    while (count < 9 && (status = f->ops->chunk_create(f->device, each, &chunks[count])) == PLLM_OK)
        count++;
    assert_int_equal(status, PLLM_ENODEVMEM);
    assert_int_equal(count, 8);
    assert_int_equal(pllm_last_error()->native, 42); /* full is no failure: no record */
    pllm_device_info info;
    assert_int_equal(f->ops->info(f->device, &info), PLLM_OK);
    assert_true(info.free_bytes <= how->capacity_bytes - 8 * each);
    f->ops->chunk_destroy(f->device, chunks[--count]);
    assert_int_equal(f->ops->chunk_create(f->device, each + f->granule, &more), PLLM_ENODEVMEM);
    assert_null(more);
    chunks[count++] = create(f, each);
    while (count > 0) f->ops->chunk_destroy(f->device, chunks[--count]);
    f->ops->chunk_destroy(f->device, NULL);
}

static void bad_memory_calls_change_nothing(void **state)
{
    fixture *f = *state;
    uint64_t g = f->granule;
    pllm_va va;
    pllm_chunk *chunk;
    assert_int_equal(f->ops->reserve(f->device, 0, &va), PLLM_EINVAL);
    assert_int_equal(f->ops->reserve(f->device, g + 1, &va), PLLM_EINVAL);
    assert_int_equal(f->ops->chunk_create(f->device, 0, &chunk), PLLM_EINVAL);
    assert_null(chunk);
    assert_int_equal(f->ops->chunk_create(f->device, g / 2, &chunk), PLLM_EINVAL);
    va = reserve(f, 4 * g);
    pllm_chunk *a = create(f, 2 * g), *b = create(f, 2 * g);
    assert_int_equal(f->ops->map(f->device, va + g, &a, 1), PLLM_OK);
    put_pattern(f, va + g, 2 * g, 3);
    assert_int_equal(f->ops->map(f->device, va + 64, &b, 1), PLLM_EINVAL);
    assert_int_equal(f->ops->map(f->device, va + 3 * g, &b, 1), PLLM_EINVAL); /* past the end */
    assert_int_equal(f->ops->map(f->device, va + 4 * g, &b, 1), PLLM_EINVAL);
    assert_int_equal(f->ops->map(f->device, va + g, &b, 1), PLLM_EINVAL); /* mapped already */
    assert_int_equal(f->ops->map(f->device, va, &b, 1), PLLM_EINVAL);     /* half of it is */
    assert_int_equal(f->ops->map(f->device, va + 2 * g, &b, 1), PLLM_EINVAL);
    expect_pattern(f, va + g, 2 * g, 3);
    f->ops->unmap(f->device, va + g, a);
    assert_int_equal(f->ops->map(f->device, va + 2 * g, &b, 1), PLLM_OK);
    expect_bytes(f, va + 2 * g, 2 * g, 0);
    f->ops->unmap(f->device, va + 2 * g, b);
    f->ops->chunk_destroy(f->device, a);
    f->ops->chunk_destroy(f->device, b);
    f->ops->release(f->device, va, 4 * g);
}

static void exported_chunks_are_the_same_memory(void **state)
{
    fixture *f = *state;
    block b = block_open(f, 2);
    int fd;
    pllm_chunk *imported;
    put_pattern(f, b.va, b.bytes, 5);
    assert_int_equal(f->ops->chunk_export(f->device, b.chunk, 0, &fd), PLLM_OK);
    assert_true(fd >= 0);
    assert_int_equal(f->ops->chunk_import(f->device, fd, b.bytes, 0, &imported), PLLM_OK);
    close(fd); /* import keeps its own hold */
    pllm_va va = reserve(f, b.bytes);
    assert_int_equal(f->ops->map(f->device, va, &imported, 1), PLLM_OK);
    expect_pattern(f, va, b.bytes, 5);
    put_pattern(f, va, f->granule, 6);
    expect_pattern(f, b.va, f->granule, 6);
    block_close(f, &b); /* the importer keeps the memory alive */
    expect_pattern(f, va, f->granule, 6);
    f->ops->unmap(f->device, va, imported);
    f->ops->chunk_destroy(f->device, imported);
    f->ops->release(f->device, va, b.bytes);
}

static void what_is_imported_for_reading_is_only_read(void **state)
{
    fixture *f = *state;
    uint64_t g = f->granule;
    block b = block_open(f, 2);
    int fd, again;
    pllm_chunk *imported, *writable = create(f, g);
    put_pattern(f, b.va, b.bytes, 5);
    assert_int_equal(f->ops->chunk_export(f->device, b.chunk, 1, &fd), PLLM_OK);
    assert_int_equal(f->ops->chunk_import(f->device, fd, b.bytes, 1, &imported), PLLM_OK);
    pllm_va va = reserve(f, 3 * g);
    pllm_chunk *run[2] = {writable, imported}; /* beside what may be written */
    assert_int_equal(f->ops->map(f->device, va, run, 2), PLLM_OK);
    expect_pattern(f, va + g, b.bytes, 5);
    const pllm_copy within = {va + g, b.va, 16}, across = {va + g - 8, b.va, 16};
    assert_int_equal(f->ops->fill(f->device, f->stream, va + g, 1, 1), PLLM_EPERM);
    assert_int_equal(f->ops->fill(f->device, f->stream, va, g + 1, 1), PLLM_EPERM);
    assert_int_equal(f->ops->copy(f->device, f->stream, PLLM_COPY_WITHIN, &within), PLLM_EPERM);
    assert_int_equal(f->ops->copy(f->device, f->stream, PLLM_COPY_WITHIN, &across), PLLM_EPERM);
    fill(f, f->stream, va, g, 7);
    expect_bytes(f, va, g, 7);
    expect_pattern(f, va + g, b.bytes, 5);
    if (f->ops->host_view(f->device, va)) { /* the CPU's own memory: the descriptor says so */
        pllm_chunk *none;
        assert_int_equal(f->ops->chunk_import(f->device, fd, b.bytes, 0, &none), PLLM_EPERM);
        assert_null(none);
        assert_ptr_equal(mmap(NULL, b.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0),
                         MAP_FAILED);
        assert_int_equal(f->ops->chunk_export(f->device, imported, 0, &again), PLLM_OK);
        assert_int_equal(f->ops->chunk_import(f->device, again, b.bytes, 0, &none), PLLM_EPERM);
        close(again);
    }
    close(fd);
    put_pattern(f, b.va, b.bytes, 6); /* its owner goes on writing */
    expect_pattern(f, va + g, b.bytes, 6);
    f->ops->unmap(f->device, va + g, imported);
    f->ops->chunk_destroy(f->device, imported);
    pllm_chunk *more = create(f, 2 * g); /* the place forgets what it was */
    assert_int_equal(f->ops->map(f->device, va + g, &more, 1), PLLM_OK);
    fill(f, f->stream, va, 3 * g, 8);
    expect_bytes(f, va, 3 * g, 8);
    f->ops->unmap(f->device, va + g, more);
    f->ops->unmap(f->device, va, writable);
    f->ops->chunk_destroy(f->device, more);
    f->ops->chunk_destroy(f->device, writable);
    f->ops->release(f->device, va, 3 * g);
    block_close(f, &b);
}

static void only_exported_chunks_are_imported(void **state)
{
    fixture *f = *state;
    block b = block_open(f, 2);
    int fd, ends[2];
    pllm_chunk *imported;
    assert_int_equal(f->ops->chunk_export(f->device, b.chunk, 0, &fd), PLLM_OK);
    assert_true(f->ops->chunk_import(f->device, fd, 4 * f->granule, 0, &imported) < 0);
    assert_null(imported);
    assert_true(f->ops->chunk_import(f->device, fd, f->granule + 1, 0, &imported) < 0);
    assert_true(f->ops->chunk_import(f->device, -1, f->granule, 0, &imported) < 0);
    assert_int_equal(pipe(ends), 0);
    assert_true(f->ops->chunk_import(f->device, ends[0], f->granule, 0, &imported) < 0);
    FILE *file = tmpfile(); /* of the right size, but its owner could shrink it under us */
    assert_non_null(file);
    assert_int_equal(ftruncate(fileno(file), (off_t)f->granule), 0);
    assert_true(f->ops->chunk_import(f->device, fileno(file), f->granule, 0, &imported) < 0);
    assert_null(imported);
    fclose(file);
    int unsealed = memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_int_equal(ftruncate(unsealed, (off_t)f->granule), 0);
    assert_true(f->ops->chunk_import(f->device, unsealed, f->granule, 0, &imported) < 0);
    assert_null(imported);
    close(unsealed);
    close(ends[0]);
    close(ends[1]);
    close(fd);
    block_close(f, &b);
}

static void host_memory_is_zeroed(void **state)
{
    fixture *f = *state;
    static const uint64_t sizes[] = {1, 100, 4096, 70000, ((uint64_t)5 << 20) + 1};
    for (uint32_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        unsigned char *host = host_open(f, sizes[i]);
        for (uint64_t at_byte = 0; at_byte < sizes[i]; at_byte += 997)
            assert_int_equal(host[at_byte], 0);
        memset(host, 1, sizes[i]);
        f->ops->host_free(f->device, host, sizes[i]);
    }
}

static void many_chunks_hold_their_own_bytes(void **state)
{
    fixture *f = *state;
    enum { COUNT = 64 };
    uint64_t g = f->granule;
    pllm_va va = reserve(f, COUNT * g);
    pllm_chunk *chunks[COUNT];
    for (uint32_t i = 0; i < COUNT; i++) {
        chunks[i] = create(f, g);
        assert_int_equal(f->ops->map(f->device, va + i * g, &chunks[i], 1), PLLM_OK);
        fill(f, f->stream, va + i * g, g, (uint8_t)(i + 1));
    }
    sync_stream(f, f->stream);
    for (uint32_t i = 0; i < COUNT; i += 2) f->ops->unmap(f->device, va + i * g, chunks[i]);
    for (uint32_t i = 0; i < COUNT; i += 2) /* back in reverse order */
        assert_int_equal(f->ops->map(f->device, va + (COUNT - 2 - i) * g, &chunks[i], 1), PLLM_OK);
    for (uint32_t i = 0; i < COUNT; i++)
        expect_bytes(f, va + i * g, g, (uint8_t)((i % 2 ? i : COUNT - 2 - i) + 1));
    for (uint32_t i = 0; i < COUNT; i++) {
        f->ops->unmap(f->device, va + (i % 2 ? i : COUNT - 2 - i) * g, chunks[i]);
        f->ops->chunk_destroy(f->device, chunks[i]);
    }
    f->ops->release(f->device, va, COUNT * g);
}

typedef struct memory_thread {
    fixture *f;
    int broke;
} memory_thread;

static void *map_and_unmap(void *argument)
{
    memory_thread *self = argument;
    fixture *f = self->f;
    for (int i = 0; i < 50 && !self->broke; i++) {
        pllm_va va;
        pllm_chunk *chunk;
        if (f->ops->reserve(f->device, 2 * f->granule, &va) < 0) {
            self->broke = 1;
            break;
        }
        if (f->ops->chunk_create(f->device, f->granule, &chunk) == PLLM_OK) {
            self->broke = f->ops->map(f->device, va + f->granule, &chunk, 1) < 0;
            if (!self->broke) f->ops->unmap(f->device, va + f->granule, chunk);
            f->ops->chunk_destroy(f->device, chunk);
        } else {
            self->broke = 1;
        }
        f->ops->release(f->device, va, 2 * f->granule);
    }
    return NULL;
}

static void memory_calls_are_safe_from_many_threads(void **state)
{
    fixture *f = *state;
    memory_thread selves[4];
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) {
        selves[i] = (memory_thread){f, 0};
        assert_int_equal(pthread_create(&threads[i], NULL, map_and_unmap, &selves[i]), 0);
    }
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < 4; i++) assert_false(selves[i].broke);
    pllm_chunk *all = create(f, how->capacity_bytes / f->granule * f->granule); /* all came back */
    f->ops->chunk_destroy(f->device, all);
}

#ifndef PLLM_SANITIZED /* sanitizers take the signal for themselves */
static int touch_is_fatal(const volatile unsigned char *byte)
{
    pid_t child = fork();
    if (child == 0) {
        struct rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        signal(SIGSEGV, SIG_DFL);
        (void)*byte;
        _exit(0);
    }
    int result = 0;
    assert_true(child > 0 && waitpid(child, &result, 0) == child);
    return WIFSIGNALED(result) && WTERMSIG(result) == SIGSEGV;
}

static void a_stale_touch_faults(void **state)
{
    fixture *f = *state;
    block b = block_open(f, 1);
    unsigned char *view = f->ops->host_view(f->device, b.va);
    fill(f, f->stream, b.va, b.bytes, 9);
    sync_stream(f, f->stream);
    if (view) {
        assert_int_equal(view[0], 9);
        assert_false(touch_is_fatal(view));
        f->ops->unmap(f->device, b.va, b.chunk);
        assert_true(touch_is_fatal(view));
        assert_true(touch_is_fatal(view + b.bytes - 1));
        assert_int_equal(f->ops->map(f->device, b.va, &b.chunk, 1), PLLM_OK);
        assert_int_equal(view[0], 9);
    }
    block_close(f, &b);
}
#endif

/* ---- order ---- */

static void work_on_a_stream_runs_in_order(void **state)
{
    fixture *f = *state;
    block a = block_open(f, 2), b = block_open(f, 2);
    /* Each step overwrites what the one before it left; any swap shows in the end. */
    for (uint32_t i = 0; i < 300; i++) {
        uint64_t bytes = 512 + i;
        fill(f, f->stream, a.va, bytes, (uint8_t)i);
        copy(f, f->stream, PLLM_COPY_WITHIN, b.va + i, a.va, bytes);
    }
    unsigned char *host = host_open(f, 1200);
    copy(f, f->stream, PLLM_COPY_OUT, at(host), b.va, 1111);
    sync_stream(f, f->stream);
    for (uint32_t i = 0; i < 299; i++) assert_int_equal(host[i], (uint8_t)i);
    for (uint32_t i = 299; i < 299 + 811; i++) assert_int_equal(host[i], (uint8_t)299);
    f->ops->host_free(f->device, host, 1200);
    block_close(f, &a);
    block_close(f, &b);
}

static void events_order_streams(void **state)
{
    fixture *f = *state;
    pllm_stream *streams[2] = {f->stream, stream_open(f)};
    pllm_event *events[2] = {event_open(f), event_open(f)};
    block a = block_open(f, 4), b = block_open(f, 4);
    unsigned char *host = host_open(f, a.bytes);
    for (uint32_t i = 0; i < 40; i++) { /* the block is handed back and forth */
        uint32_t turn = i % 2;
        assert_int_equal(f->ops->stream_wait(f->device, streams[turn], events[!turn]), PLLM_OK);
        fill(f, streams[turn], turn ? b.va : a.va, a.bytes - i, (uint8_t)(i + 1));
        copy(f, streams[turn], PLLM_COPY_WITHIN, turn ? a.va : b.va, turn ? b.va : a.va, a.bytes);
        assert_int_equal(f->ops->event_record(f->device, events[turn], streams[turn]), PLLM_OK);
    }
    assert_int_equal(f->ops->stream_wait(f->device, streams[0], events[1]), PLLM_OK);
    copy(f, streams[0], PLLM_COPY_OUT, at(host), a.va, a.bytes);
    assert_int_equal(f->ops->event_record(f->device, events[0], streams[0]), PLLM_OK);
    wait_event(f, events[0]);
    for (uint64_t i = 0; i < a.bytes; i++) {
        uint64_t from_end = a.bytes - i; /* turns 0 to from_end - 1 wrote this byte */
        assert_int_equal(host[i], from_end > 39 ? 40 : from_end);
    }
    f->ops->event_close(f->device, events[0]);
    f->ops->event_close(f->device, events[1]);
    f->ops->stream_close(f->device, streams[1]);
    f->ops->host_free(f->device, host, a.bytes);
    block_close(f, &a);
    block_close(f, &b);
}

static void a_wait_means_the_event_as_recorded_then(void **state)
{
    fixture *f = *state;
    pllm_stream *other = stream_open(f);
    pllm_event *e = event_open(f), *g = event_open(f);
    block a = block_open(f, 1);
    fill(f, f->stream, a.va, a.bytes, 1);
    assert_int_equal(f->ops->event_record(f->device, e, f->stream), PLLM_OK);
    assert_int_equal(f->ops->stream_wait(f->device, other, e), PLLM_OK);
    assert_int_equal(f->ops->event_record(f->device, g, other), PLLM_OK);
    /* e again, now behind g: were the wait above to mean this one, both would wait for ever. */
    assert_int_equal(f->ops->stream_wait(f->device, f->stream, g), PLLM_OK);
    assert_int_equal(f->ops->event_record(f->device, e, f->stream), PLLM_OK);
    wait_event(f, e);
    wait_event(f, g);
    f->ops->event_close(f->device, e);
    f->ops->event_close(f->device, g);
    f->ops->stream_close(f->device, other);
    block_close(f, &a);
}

static void events_are_asked_waited_for_and_used_again(void **state)
{
    fixture *f = *state;
    pllm_event *event = event_open(f);
    block a = block_open(f, 16);
    assert_int_equal(f->ops->event_query(f->device, event), 1); /* never recorded: done */
    assert_int_equal(f->ops->event_wait(f->device, event, 0), PLLM_OK);
    assert_int_equal(f->ops->stream_wait(f->device, f->stream, event), PLLM_OK);
    assert_int_equal(f->ops->event_record(f->device, event, f->stream), PLLM_OK); /* no work */
    wait_event(f, event);
    uint64_t clock = f->ops->now_ns(f->device);
    for (uint32_t round = 0; round < 20; round++) {
        fill(f, f->stream, a.va, a.bytes, (uint8_t)round);
        assert_int_equal(f->ops->event_record(f->device, event, f->stream), PLLM_OK);
        if (round % 2) { /* again on the same stream, before it is done */
            fill(f, f->stream, a.va, a.bytes, (uint8_t)(round + 100));
            assert_int_equal(f->ops->event_record(f->device, event, f->stream), PLLM_OK);
        }
        if (round % 3 == 0) {
            int status = f->ops->event_wait(f->device, event, 0);
            assert_true(status == PLLM_OK || status == PLLM_ETIMEDOUT);
        }
        if (round % 4 < 2) {
            while (f->ops->event_query(f->device, event) == 0)
                sched_yield(); /* ctest has a limit */
            assert_int_equal(f->ops->event_query(f->device, event), 1);
        } else {
            wait_event(f, event);
        }
        assert_int_equal(f->ops->event_wait(f->device, event, 0), PLLM_OK);
        expect_bytes(f, a.va, a.bytes, (uint8_t)(round % 2 ? round + 100 : round));
        assert_true(f->ops->now_ns(f->device) >= clock);
        clock = f->ops->now_ns(f->device);
    }
    f->ops->event_close(f->device, event);
    f->ops->event_close(f->device, NULL);
    block_close(f, &a);
}

static void an_event_pending_on_one_stream_is_not_taken_by_another(void **state)
{
    fixture *f = *state;
    pllm_stream *other = stream_open(f);
    pllm_event *event = event_open(f);
    block a = block_open(f, 16);
    fill(f, f->stream, a.va, a.bytes, 1);
    assert_int_equal(f->ops->event_record(f->device, event, f->stream), PLLM_OK);
    int status = f->ops->event_record(f->device, event, other); /* done by now, or refused */
    assert_true(status == PLLM_OK || status == PLLM_EBUSY);
    wait_event(f, event);
    assert_int_equal(f->ops->event_record(f->device, event, other), PLLM_OK);
    wait_event(f, event);
    f->ops->event_close(f->device, event);
    f->ops->stream_close(f->device, other);
    block_close(f, &a);
}

static void closing_lets_work_finish(void **state)
{
    fixture *f = *state;
    pllm_stream *first = stream_open(f), *second = stream_open(f);
    pllm_event *event = event_open(f);
    block a = block_open(f, 32);
    fill(f, first, a.va, a.bytes, 1);
    fill(f, first, a.va, a.bytes / 2, 2);
    assert_int_equal(f->ops->event_record(f->device, event, first), PLLM_OK);
    assert_int_equal(f->ops->stream_wait(f->device, second, event), PLLM_OK);
    fill(f, second, a.va, f->granule, 3);
    f->ops->event_close(f->device, event); /* while second may still wait for it */
    f->ops->stream_close(f->device, second);
    expect_bytes(f, a.va, f->granule, 3);
    f->ops->stream_close(f->device, first);
    f->ops->stream_close(f->device, NULL);
    expect_bytes(f, a.va + f->granule, a.bytes / 2 - f->granule, 2);
    expect_bytes(f, a.va + a.bytes / 2, a.bytes / 2, 1);
    block_close(f, &a);
}

static void many_streams_run_beside_each_other(void **state)
{
    fixture *f = *state;
    pllm_stream *streams[STREAMS];
    pllm_event *events[STREAMS];
    block blocks[STREAMS];
    for (uint32_t i = 0; i < STREAMS; i++) {
        streams[i] = stream_open(f);
        events[i] = event_open(f);
        blocks[i] = block_open(f, 2);
    }
    for (uint32_t round = 0; round < 20; round++)
        for (uint32_t i = 0; i < STREAMS; i++) {
            fill(f, streams[i], blocks[i].va, blocks[i].bytes, (uint8_t)(i * 20 + round));
            assert_int_equal(f->ops->event_record(f->device, events[i], streams[i]), PLLM_OK);
        }
    for (uint32_t i = STREAMS; i-- > 0;) wait_event(f, events[i]);
    for (uint32_t i = 0; i < STREAMS; i++) {
        expect_bytes(f, blocks[i].va, blocks[i].bytes, (uint8_t)(i * 20 + 19));
        f->ops->event_close(f->device, events[i]);
        f->ops->stream_close(f->device, streams[i]);
        block_close(f, &blocks[i]);
    }
}

typedef struct stream_thread {
    fixture *f;
    block target;
    uint8_t value;
    int broke;
} stream_thread;

static void *use_own_stream(void *argument)
{
    stream_thread *self = argument;
    fixture *f = self->f;
    pllm_stream *stream;
    pllm_event *event;
    if (f->ops->stream_open(f->device, &stream) < 0) return NULL;
    if (f->ops->event_open(f->device, &event) < 0) return NULL;
    for (int i = 0; i < 100; i++) {
        uint8_t value = (uint8_t)(i == 99 ? self->value : i);
        self->broke |= f->ops->fill(f->device, stream, self->target.va, 4096, value) < 0;
        self->broke |= f->ops->event_record(f->device, event, stream) < 0;
        if (i % 10 == 0) self->broke |= f->ops->event_wait(f->device, event, DEADLINE_NS) < 0;
    }
    self->broke |= f->ops->stream_sync(f->device, stream) < 0;
    f->ops->event_close(f->device, event);
    f->ops->stream_close(f->device, stream);
    return NULL;
}

static void each_thread_may_have_its_stream(void **state)
{
    fixture *f = *state;
    if (how->one_thread) return; /* says so in its contract */
    stream_thread selves[4];
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) {
        selves[i] = (stream_thread){f, block_open(f, 1), (uint8_t)(200 + i), 0};
        assert_int_equal(pthread_create(&threads[i], NULL, use_own_stream, &selves[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        assert_false(selves[i].broke);
        expect_bytes(f, selves[i].target.va, 4096, selves[i].value);
        block_close(f, &selves[i].target);
    }
}

typedef struct calls {
    unsigned char *host; /* what the work before is to have left there */
    uint32_t count;
    uint8_t seen[3];
} calls;

static void note_call(void *user)
{
    calls *c = user;
    c->seen[c->count++] = c->host[0];
    c->host[0] = (unsigned char)(100 + c->count); /* later work sees it */
}

static void calls_come_in_the_streams_order(void **state)
{
    fixture *f = *state;
    block a = block_open(f, 8);
    unsigned char *host = host_open(f, a.bytes);
    calls c = {.host = host};
    pllm_event *event = event_open(f);
    for (uint8_t i = 0; i < 3; i++) {
        fill(f, f->stream, a.va, a.bytes, (uint8_t)(i + 1));
        copy(f, f->stream, PLLM_COPY_OUT, at(host), a.va, a.bytes);
        assert_int_equal(f->ops->stream_call(f->device, f->stream, note_call, &c), PLLM_OK);
        copy(f, f->stream, PLLM_COPY_IN, a.va + 4096 + i, at(host), 1);
    }
    assert_int_equal(f->ops->event_record(f->device, event, f->stream), PLLM_OK);
    wait_event(f, event);
    assert_int_equal(c.count, 3);
    for (uint8_t i = 0; i < 3; i++) assert_int_equal(c.seen[i], i + 1);
    expect_bytes(f, a.va + 4096 + 2, 1, 103);
    f->ops->event_close(f->device, event);
    f->ops->host_free(f->device, host, a.bytes);
    block_close(f, &a);
}

static void closing_waits_for_calls(void **state)
{
    fixture *f = *state;
    unsigned char byte = 9;
    calls c = {.host = &byte};
    pllm_stream *stream = stream_open(f);
    for (uint8_t i = 0; i < 3; i++)
        assert_int_equal(f->ops->stream_call(f->device, stream, note_call, &c), PLLM_OK);
    f->ops->stream_close(f->device, stream);
    assert_int_equal(c.count, 3);
    assert_int_equal(c.seen[0], 9);
    assert_int_equal(c.seen[2], 102);
}

/* ---- movement ---- */

static void batches_move_every_piece(void **state)
{
    fixture *f = *state;
    enum { COUNT = 200, PIECE = 777 };
    block a = block_open(f, 8), b = block_open(f, 8);
    unsigned char *from = host_open(f, COUNT * PIECE), *to = host_open(f, COUNT * PIECE);
    for (uint32_t i = 0; i < COUNT * PIECE; i++) from[i] = pattern(11, i);
    pllm_copy in[COUNT], within[COUNT], out[COUNT];
    for (uint32_t i = 0; i < COUNT; i++) {
        uint64_t slot = (i * 73u) % COUNT; /* 73 and 200 share no factor: a permutation */
        uint64_t bytes = i % 50 == 7 ? 0 : PIECE - i % 5;
        in[i] = (pllm_copy){a.va + slot * 800 + i % 3, at(from) + i * PIECE, bytes};
        within[i] = (pllm_copy){b.va + i * 900, in[i].to, bytes};
        out[i] = (pllm_copy){at(to) + i * PIECE, within[i].to, bytes};
    }
    assert_int_equal(f->ops->copy_batch(f->device, f->stream, PLLM_COPY_IN, in, COUNT), PLLM_OK);
    assert_int_equal(f->ops->copy_batch(f->device, f->stream, PLLM_COPY_WITHIN, within, COUNT),
                     PLLM_OK);
    assert_int_equal(f->ops->copy_batch(f->device, f->stream, PLLM_COPY_OUT, out, COUNT), PLLM_OK);
    assert_int_equal(f->ops->copy_batch(f->device, f->stream, PLLM_COPY_OUT, out, 0), PLLM_OK);
    sync_stream(f, f->stream);
    for (uint32_t i = 0; i < COUNT; i++)
        for (uint32_t k = 0; k < PIECE; k++)
            assert_int_equal(to[i * PIECE + k], k < in[i].bytes ? from[i * PIECE + k] : 0);
    f->ops->host_free(f->device, from, COUNT * PIECE);
    f->ops->host_free(f->device, to, COUNT * PIECE);
    block_close(f, &a);
    block_close(f, &b);
}

static void large_copies_arrive_whole_at_any_alignment(void **state)
{
    fixture *f = *state;
    uint64_t granules = ((uint64_t)600 << 10) / f->granule + 2;
    block a = block_open(f, granules), b = block_open(f, granules);
    static const uint64_t shifts[][2] = {{0, 0}, {1, 0}, {0, 13}, {63, 64}, {17, 5}};
    for (uint32_t i = 0; i < 5; i++) {
        uint64_t bytes = ((uint64_t)600 << 10) + i * 7;
        fill(f, f->stream, a.va, a.bytes, 0xee);
        fill(f, f->stream, b.va, b.bytes, 0xee);
        put_pattern(f, a.va + shifts[i][0], bytes, i);
        copy(f, f->stream, PLLM_COPY_WITHIN, b.va + shifts[i][1], a.va + shifts[i][0], bytes);
        expect_pattern(f, b.va + shifts[i][1], bytes, i);
        expect_bytes(f, b.va + shifts[i][1] + bytes, 100, 0xee); /* and no further */
        if (shifts[i][1]) expect_bytes(f, b.va, shifts[i][1], 0xee);
        if (shifts[i][0]) expect_bytes(f, a.va, shifts[i][0], 0xee);
    }
    block_close(f, &a);
    block_close(f, &b);
}

static void fills_touch_only_their_range(void **state)
{
    fixture *f = *state;
    block a = block_open(f, 2);
    fill(f, f->stream, a.va, a.bytes, 1);
    fill(f, f->stream, a.va + 13, f->granule - 2, 2);
    fill(f, f->stream, a.va + 5, 1, 3);
    fill(f, f->stream, a.va + 6, 0, 4);
    expect_bytes(f, a.va, 5, 1);
    expect_bytes(f, a.va + 5, 1, 3);
    expect_bytes(f, a.va + 6, 7, 1);
    expect_bytes(f, a.va + 13, f->granule - 2, 2);
    expect_bytes(f, a.va + f->granule + 11, f->granule - 11, 1);
    block_close(f, &a);
}

static void bad_movements_are_refused_whole(void **state)
{
    fixture *f = *state;
    uint64_t g = f->granule;
    pllm_va va = reserve(f, 4 * g);
    pllm_chunk *chunk = create(f, g);
    assert_int_equal(f->ops->map(f->device, va + g, &chunk, 1), PLLM_OK);
    put_pattern(f, va + g, g, 8);
    unsigned char *host = host_open(f, 2 * g);
    const pllm_copy bad[] = {
        {at(host), va, 16},             /* not mapped */
        {at(host), va + 2 * g - 8, 16}, /* runs off the chunk */
        {at(host), va + 4 * g, 16},     /* outside the reservation */
        {at(host), va + g, UINT64_MAX}, /* wraps */
        {0, va + g, 16},
    };
    for (uint32_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        pllm_copy pair[2] = {{at(host), va + g, 64}, bad[i]}; /* a good one before it */
        assert_int_equal(f->ops->copy(f->device, f->stream, PLLM_COPY_OUT, &bad[i]), PLLM_EINVAL);
        assert_int_equal(f->ops->copy_batch(f->device, f->stream, PLLM_COPY_OUT, pair, 2),
                         PLLM_EINVAL);
    }
    pllm_copy in = {va + 2 * g - 8, at(host), 16}, within = {va + g, va + g + 8, 16};
    assert_int_equal(f->ops->copy(f->device, f->stream, PLLM_COPY_IN, &in), PLLM_EINVAL);
    assert_int_equal(f->ops->copy(f->device, f->stream, PLLM_COPY_WITHIN, &within), PLLM_EINVAL);
    in.to = va + g;
    assert_int_equal(f->ops->copy(f->device, f->stream, (pllm_copy_kind)7, &in), PLLM_EINVAL);
    assert_int_equal(f->ops->fill(f->device, f->stream, va + 3 * g, 8, 1), PLLM_EINVAL);
    assert_int_equal(f->ops->fill(f->device, f->stream, va + g, g + 1, 1), PLLM_EINVAL);
    sync_stream(f, f->stream);
    for (uint32_t i = 0; i < 64; i++) assert_int_equal(host[i], 0); /* nothing was submitted */
    expect_pattern(f, va + g, g, 8);
    f->ops->host_free(f->device, host, 2 * g);
    f->ops->unmap(f->device, va + g, chunk);
    f->ops->chunk_destroy(f->device, chunk);
    f->ops->release(f->device, va, 4 * g);
}

static void a_stream_takes_a_long_queue(void **state)
{
    fixture *f = *state;
    block a = block_open(f, 1);
    for (uint32_t i = 0; i < 5000; i++) fill(f, f->stream, a.va + i % 4000, 1, (uint8_t)(i % 251));
    unsigned char *host = host_open(f, 4000);
    copy(f, f->stream, PLLM_COPY_OUT, at(host), a.va, 4000);
    sync_stream(f, f->stream);
    for (uint32_t i = 0; i < 4000; i++) assert_int_equal(host[i], (i < 1000 ? i + 4000 : i) % 251);
    f->ops->host_free(f->device, host, 4000);
    block_close(f, &a);
}

int device_conformance_run(const device_conformance *conformance)
{
#define CASE(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        CASE(info_says_what_the_device_is),
        CASE(new_chunks_read_as_zero),
        CASE(contents_follow_the_chunk),
        CASE(copies_cross_the_border_of_two_chunks),
        CASE(a_run_of_chunks_is_mapped_by_one_call),
        CASE(a_run_that_does_not_fit_maps_nothing),
        CASE(capacity_is_hard_and_comes_back),
        CASE(bad_memory_calls_change_nothing),
        CASE(exported_chunks_are_the_same_memory),
        CASE(what_is_imported_for_reading_is_only_read),
        CASE(only_exported_chunks_are_imported),
        CASE(host_memory_is_zeroed),
        CASE(many_chunks_hold_their_own_bytes),
        CASE(memory_calls_are_safe_from_many_threads),
#ifndef PLLM_SANITIZED
        CASE(a_stale_touch_faults),
#endif
        CASE(work_on_a_stream_runs_in_order),
        CASE(events_order_streams),
        CASE(a_wait_means_the_event_as_recorded_then),
        CASE(events_are_asked_waited_for_and_used_again),
        CASE(an_event_pending_on_one_stream_is_not_taken_by_another),
        CASE(closing_lets_work_finish),
        CASE(many_streams_run_beside_each_other),
        CASE(each_thread_may_have_its_stream),
        CASE(calls_come_in_the_streams_order),
        CASE(closing_waits_for_calls),
        CASE(batches_move_every_piece),
        CASE(large_copies_arrive_whole_at_any_alignment),
        CASE(fills_touch_only_their_range),
        CASE(bad_movements_are_refused_whole),
        CASE(a_stream_takes_a_long_queue),
    };
    how = conformance;
    return _cmocka_run_group_tests(conformance->name, tests, sizeof tests / sizeof tests[0], NULL,
                                   NULL);
}
