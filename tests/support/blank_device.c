#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "blank_device.h"

enum { GRANULE = 2 << 20 };
#define BASE ((pllm_va)1 << 40)

struct pllm_chunk {
    uint64_t bytes;
    pllm_va at; /* 0: mapped nowhere */
};

typedef struct blank_device {
    pllm_device base;
    uint64_t capacity_bytes, live_bytes, reserved_bytes;
    uint64_t handles; /* streams and events alive */
    uint8_t *mapped;  /* by granule of the one reservation */
} blank_device;

static blank_device *blank_of(pllm_device *device)
{
    return (blank_device *)device;
}

static void blank_close(pllm_device *device)
{
    blank_device *blank = blank_of(device);
    assert_int_equal(blank->live_bytes, 0);
    assert_int_equal(blank->reserved_bytes, 0);
    assert_int_equal(blank->handles, 0);
    free(blank);
}

static int blank_info(pllm_device *device, pllm_device_info *info_out)
{
    memset(info_out, 0, sizeof *info_out);
    info_out->struct_bytes = sizeof *info_out;
    info_out->total_bytes = blank_of(device)->capacity_bytes;
    info_out->free_bytes = info_out->total_bytes - blank_of(device)->live_bytes;
    info_out->granularity_bytes = info_out->chunk_bytes = GRANULE;
    return PLLM_OK;
}

static int blank_reserve(pllm_device *device, uint64_t bytes, pllm_va *va_out)
{
    blank_device *blank = blank_of(device);
    assert_int_equal(blank->reserved_bytes, 0);
    blank->reserved_bytes = bytes;
    blank->mapped = calloc(bytes / GRANULE, 1);
    assert_non_null(blank->mapped);
    *va_out = BASE;
    return PLLM_OK;
}

static void blank_release(pllm_device *device, pllm_va va, uint64_t bytes)
{
    blank_device *blank = blank_of(device);
    assert_true(va == BASE && bytes == blank->reserved_bytes);
    blank->reserved_bytes = 0;
    free(blank->mapped);
}

static int blank_chunk_create(pllm_device *device, uint64_t bytes, pllm_chunk **chunk_out)
{
    blank_device *blank = blank_of(device);
    *chunk_out = NULL;
    if (bytes > blank->capacity_bytes - blank->live_bytes) return PLLM_ENODEVMEM;
    *chunk_out = calloc(1, sizeof **chunk_out);
    assert_non_null(*chunk_out);
    (*chunk_out)->bytes = bytes;
    blank->live_bytes += bytes;
    return PLLM_OK;
}

static void blank_chunk_destroy(pllm_device *device, pllm_chunk *chunk)
{
    if (!chunk) return;
    assert_int_equal(chunk->at, 0);
    blank_of(device)->live_bytes -= chunk->bytes;
    free(chunk);
}

static void mark(blank_device *blank, pllm_va va, uint64_t bytes, uint8_t mapped)
{
    for (uint64_t i = (va - BASE) / GRANULE; i < (va - BASE + bytes) / GRANULE; i++) {
        assert_true(i < blank->reserved_bytes / GRANULE);
        assert_int_equal(blank->mapped[i], !mapped);
        blank->mapped[i] = mapped;
    }
}

static int blank_map(pllm_device *device, pllm_va va, pllm_chunk *const *chunks,
                     uint32_t chunk_count)
{
    for (uint32_t i = 0; i < chunk_count; i++) {
        assert_int_equal(chunks[i]->at, 0);
        mark(blank_of(device), va, chunks[i]->bytes, 1);
        chunks[i]->at = va;
        va += chunks[i]->bytes;
    }
    return PLLM_OK;
}

static void blank_unmap(pllm_device *device, pllm_va va, pllm_chunk *chunk)
{
    assert_true(chunk->at == va);
    mark(blank_of(device), va, chunk->bytes, 0);
    chunk->at = 0;
}

static void *blank_host_view(pllm_device *device, pllm_va va)
{
    (void)device;
    (void)va;
    return NULL;
}

static int blank_stream_open(pllm_device *device, pllm_stream **stream_out)
{
    *stream_out = malloc(1);
    assert_non_null(*stream_out);
    blank_of(device)->handles++;
    return PLLM_OK;
}

static void blank_stream_close(pllm_device *device, pllm_stream *stream)
{
    if (stream) blank_of(device)->handles--;
    free(stream);
}

static int blank_event_open(pllm_device *device, pllm_event **event_out)
{
    return blank_stream_open(device, (pllm_stream **)event_out);
}

static void blank_event_close(pllm_device *device, pllm_event *event)
{
    blank_stream_close(device, (pllm_stream *)event);
}

static int blank_event_record(pllm_device *device, pllm_event *event, pllm_stream *stream)
{
    (void)device;
    (void)event;
    (void)stream;
    return PLLM_OK;
}

static int blank_event_query(pllm_device *device, pllm_event *event)
{
    (void)device;
    (void)event;
    return 1;
}

static int blank_event_wait(pllm_device *device, pllm_event *event, uint64_t timeout_ns)
{
    (void)device;
    (void)event;
    (void)timeout_ns;
    return PLLM_OK;
}

static int blank_stream_sync(pllm_device *device, pllm_stream *stream)
{
    (void)device;
    (void)stream;
    return PLLM_OK;
}

static uint64_t blank_now_ns(pllm_device *device)
{
    (void)device;
    return 0;
}

static const pllm_device_ops blank_ops = {
    .name = "blank",
    .close = blank_close,
    .info = blank_info,
    .reserve = blank_reserve,
    .release = blank_release,
    .chunk_create = blank_chunk_create,
    .chunk_destroy = blank_chunk_destroy,
    .map = blank_map,
    .unmap = blank_unmap,
    .host_view = blank_host_view,
    .stream_open = blank_stream_open,
    .stream_close = blank_stream_close,
    .event_open = blank_event_open,
    .event_close = blank_event_close,
    .event_record = blank_event_record,
    .event_query = blank_event_query,
    .event_wait = blank_event_wait,
    .stream_sync = blank_stream_sync,
    .now_ns = blank_now_ns,
};

pllm_device *blank_device_open(uint64_t capacity_bytes)
{
    blank_device *blank = calloc(1, sizeof *blank);
    assert_non_null(blank);
    blank->base.ops = &blank_ops;
    blank->capacity_bytes = capacity_bytes;
    return &blank->base;
}

uint64_t blank_device_live_bytes(const pllm_device *device)
{
    return ((const blank_device *)device)->live_bytes;
}
