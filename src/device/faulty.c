/* faulty.c - a device that passes every call to another and fails the Nth.
 *
 * Counted is every call that can fail. A failed open, map or copy does nothing to the inner device.
 * A failed query, wait or sync lets the inner work end first: what it reports is that the work
 * failed, and work that failed is over.
 *
 * fail_async: a failing copy or fill is accepted instead, moves nothing, and spoils its stream:
 * events recorded there afterwards carry the failure, and so does any stream that waits for one of
 * them; stream_sync reports it and clears it.
 *
 * Chunks, addresses and host memory are the inner device's own; streams and events are wrapped, to
 * carry the failure. Threads: as the inner device. */
#include <stdatomic.h>
#include "device/device.h"

typedef struct faulty_stream {
    pllm_stream *inner; /* first: see pllm_faulty_stream_inner */
    int status;         /* sticky until a sync reports it */
} faulty_stream;

typedef struct faulty_event {
    pllm_event *inner;
    int status; /* of what was recorded last */
} faulty_event;

typedef struct faulty_device {
    pllm_device base;
    pllm_device_ops ops; /* ours, under the inner device's name */
    pllm_device *inner;
    uint32_t persistent, fail_async;
    _Atomic uint64_t fail_at, calls;
    _Atomic int64_t live[PLLM_FAULTY_KINDS];
} faulty_device;

static faulty_device *faulty_of(pllm_device *device)
{
    return (faulty_device *)device;
}

static void count_live(faulty_device *faulty, pllm_faulty_kind kind, int64_t change)
{
    atomic_fetch_add(&faulty->live[kind], change);
}

/* Counts a fallible call; true if it is to fail. */
static int faulty_hit(faulty_device *faulty)
{
    uint64_t call = atomic_fetch_add(&faulty->calls, 1), fail_at = atomic_load(&faulty->fail_at);
    return call == fail_at || (faulty->persistent && call > fail_at);
}

static int faulty_fail(const char *what)
{
    return pllm_fail(PLLM_EDEVICE, 0, "injected failure: %s", what);
}

static void faulty_close(pllm_device *device)
{
    pllm_free(device->context, device);
}

static int faulty_info(pllm_device *device, pllm_device_info *info_out)
{
    faulty_device *faulty = faulty_of(device);
    if (faulty_hit(faulty)) return faulty_fail("info");
    return faulty->inner->ops->info(faulty->inner, info_out);
}

/* ---- memory ---- */

static int faulty_reserve(pllm_device *device, uint64_t bytes, pllm_va *va_out)
{
    faulty_device *faulty = faulty_of(device);
    *va_out = 0;
    if (faulty_hit(faulty)) return faulty_fail("reserve");
    int status = faulty->inner->ops->reserve(faulty->inner, bytes, va_out);
    if (status == PLLM_OK) count_live(faulty, PLLM_FAULTY_RESERVATION, 1);
    return status;
}

static void faulty_release(pllm_device *device, pllm_va va, uint64_t bytes)
{
    faulty_device *faulty = faulty_of(device);
    faulty->inner->ops->release(faulty->inner, va, bytes);
    count_live(faulty, PLLM_FAULTY_RESERVATION, -1);
}

static int faulty_chunk_create(pllm_device *device, uint64_t bytes, pllm_chunk **chunk_out)
{
    faulty_device *faulty = faulty_of(device);
    *chunk_out = NULL;
    if (faulty_hit(faulty)) return PLLM_ENODEVMEM; /* bare, as a full device answers */
    int status = faulty->inner->ops->chunk_create(faulty->inner, bytes, chunk_out);
    if (status == PLLM_OK) count_live(faulty, PLLM_FAULTY_CHUNK, 1);
    return status;
}

static void faulty_chunk_destroy(pllm_device *device, pllm_chunk *chunk)
{
    faulty_device *faulty = faulty_of(device);
    if (!chunk) return;
    faulty->inner->ops->chunk_destroy(faulty->inner, chunk);
    count_live(faulty, PLLM_FAULTY_CHUNK, -1);
}

static int faulty_map(pllm_device *device, pllm_va va, pllm_chunk *const *chunks,
                      uint32_t chunk_count)
{
    faulty_device *faulty = faulty_of(device);
    if (faulty_hit(faulty)) return faulty_fail("map");
    int status = faulty->inner->ops->map(faulty->inner, va, chunks, chunk_count);
    if (status == PLLM_OK) count_live(faulty, PLLM_FAULTY_MAPPING, chunk_count);
    return status;
}

static void faulty_unmap(pllm_device *device, pllm_va va, pllm_chunk *chunk)
{
    faulty_device *faulty = faulty_of(device);
    faulty->inner->ops->unmap(faulty->inner, va, chunk);
    count_live(faulty, PLLM_FAULTY_MAPPING, -1);
}

static int faulty_chunk_export(pllm_device *device, pllm_chunk *chunk, uint32_t read_only,
                               int *fd_out)
{
    faulty_device *faulty = faulty_of(device);
    *fd_out = -1;
    if (faulty_hit(faulty)) return faulty_fail("chunk_export");
    return faulty->inner->ops->chunk_export(faulty->inner, chunk, read_only, fd_out);
}

static int faulty_chunk_import(pllm_device *device, int fd, uint64_t bytes, uint32_t read_only,
                               pllm_chunk **chunk_out)
{
    faulty_device *faulty = faulty_of(device);
    *chunk_out = NULL;
    if (faulty_hit(faulty)) return faulty_fail("chunk_import");
    int status = faulty->inner->ops->chunk_import(faulty->inner, fd, bytes, read_only, chunk_out);
    if (status == PLLM_OK) count_live(faulty, PLLM_FAULTY_CHUNK, 1);
    return status;
}

static int faulty_host_alloc(pllm_device *device, uint64_t bytes, void **pointer_out)
{
    faulty_device *faulty = faulty_of(device);
    *pointer_out = NULL;
    if (faulty_hit(faulty)) return pllm_fail_memory("host_alloc (injected failure)", bytes);
    int status = faulty->inner->ops->host_alloc(faulty->inner, bytes, pointer_out);
    if (status == PLLM_OK) count_live(faulty, PLLM_FAULTY_HOST, 1);
    return status;
}

static void faulty_host_free(pllm_device *device, void *pointer, uint64_t bytes)
{
    faulty_device *faulty = faulty_of(device);
    if (!pointer) return;
    faulty->inner->ops->host_free(faulty->inner, pointer, bytes);
    count_live(faulty, PLLM_FAULTY_HOST, -1);
}

static void *faulty_host_view(pllm_device *device, pllm_va va)
{
    return faulty_of(device)->inner->ops->host_view(faulty_of(device)->inner, va);
}

/* ---- ordering ---- */

int pllm_faulty_stream_adopt(pllm_device *device, pllm_stream *inner, pllm_stream **stream_out)
{
    *stream_out = NULL;
    faulty_stream *stream = pllm_alloc(device->context, sizeof *stream);
    if (!stream) return pllm_fail_memory("a stream", sizeof *stream);
    stream->inner = inner;
    count_live(faulty_of(device), PLLM_FAULTY_STREAM, 1);
    *stream_out = (pllm_stream *)stream;
    return PLLM_OK;
}

static int faulty_stream_open(pllm_device *device, pllm_stream **stream_out)
{
    faulty_device *faulty = faulty_of(device);
    pllm_stream *inner;
    *stream_out = NULL;
    if (faulty_hit(faulty)) return faulty_fail("stream_open");
    int status = faulty->inner->ops->stream_open(faulty->inner, &inner);
    if (status < 0) return status;
    status = pllm_faulty_stream_adopt(device, inner, stream_out);
    if (status < 0) faulty->inner->ops->stream_close(faulty->inner, inner);
    return status;
}

static void faulty_stream_close(pllm_device *device, pllm_stream *handle)
{
    faulty_device *faulty = faulty_of(device);
    faulty_stream *stream = (faulty_stream *)handle;
    if (!stream) return;
    faulty->inner->ops->stream_close(faulty->inner, stream->inner);
    count_live(faulty, PLLM_FAULTY_STREAM, -1);
    pllm_free(device->context, stream);
}

static int faulty_event_open(pllm_device *device, pllm_event **event_out)
{
    faulty_device *faulty = faulty_of(device);
    *event_out = NULL;
    if (faulty_hit(faulty)) return faulty_fail("event_open");
    faulty_event *event = pllm_alloc(device->context, sizeof *event);
    if (!event) return pllm_fail_memory("an event", sizeof *event);
    int status = faulty->inner->ops->event_open(faulty->inner, &event->inner);
    if (status < 0) {
        pllm_free(device->context, event);
        return status;
    }
    count_live(faulty, PLLM_FAULTY_EVENT, 1);
    *event_out = (pllm_event *)event;
    return PLLM_OK;
}

static void faulty_event_close(pllm_device *device, pllm_event *handle)
{
    faulty_device *faulty = faulty_of(device);
    faulty_event *event = (faulty_event *)handle;
    if (!event) return;
    faulty->inner->ops->event_close(faulty->inner, event->inner);
    count_live(faulty, PLLM_FAULTY_EVENT, -1);
    pllm_free(device->context, event);
}

static int faulty_event_record(pllm_device *device, pllm_event *handle, pllm_stream *stream_handle)
{
    faulty_device *faulty = faulty_of(device);
    faulty_event *event = (faulty_event *)handle;
    faulty_stream *stream = (faulty_stream *)stream_handle;
    if (faulty_hit(faulty)) return faulty_fail("event_record");
    int status = faulty->inner->ops->event_record(faulty->inner, event->inner, stream->inner);
    if (status == PLLM_OK) event->status = stream->status;
    return status;
}

static int event_status(const faulty_event *event)
{
    return event->status < 0 ? faulty_fail("the work before the event failed") : PLLM_OK;
}

static int faulty_event_query(pllm_device *device, pllm_event *handle)
{
    faulty_device *faulty = faulty_of(device);
    faulty_event *event = (faulty_event *)handle;
    if (faulty_hit(faulty)) {
        (void)faulty->inner->ops->event_wait(faulty->inner, event->inner, UINT64_MAX);
        event->status = PLLM_EDEVICE;
        return faulty_fail("event_query");
    }
    int answer = faulty->inner->ops->event_query(faulty->inner, event->inner);
    int status = answer == 1 ? event_status(event) : PLLM_OK;
    return status < 0 ? status : answer;
}

static int faulty_event_wait(pllm_device *device, pllm_event *handle, uint64_t timeout_ns)
{
    faulty_device *faulty = faulty_of(device);
    faulty_event *event = (faulty_event *)handle;
    if (faulty_hit(faulty)) {
        (void)faulty->inner->ops->event_wait(faulty->inner, event->inner, UINT64_MAX);
        event->status = PLLM_EDEVICE;
        return faulty_fail("event_wait");
    }
    int status = faulty->inner->ops->event_wait(faulty->inner, event->inner, timeout_ns);
    return status == PLLM_OK ? event_status(event) : status;
}

static int faulty_stream_wait(pllm_device *device, pllm_stream *handle, pllm_event *event_handle)
{
    faulty_device *faulty = faulty_of(device);
    faulty_event *event = (faulty_event *)event_handle;
    faulty_stream *stream = (faulty_stream *)handle;
    if (faulty_hit(faulty)) return faulty_fail("stream_wait");
    int status = faulty->inner->ops->stream_wait(faulty->inner, stream->inner, event->inner);
    if (status == PLLM_OK && event->status < 0) stream->status = event->status;
    return status;
}

static int faulty_stream_sync(pllm_device *device, pllm_stream *handle)
{
    faulty_device *faulty = faulty_of(device);
    faulty_stream *stream = (faulty_stream *)handle;
    int hit = faulty_hit(faulty);
    int status = faulty->inner->ops->stream_sync(faulty->inner, stream->inner);
    int failed = stream->status < 0;
    stream->status = PLLM_OK;
    if (status < 0) return status;
    return hit || failed ? faulty_fail("the stream's work failed") : PLLM_OK;
}

/* The call is made even where the stream's work has failed: it says that the work is over. */
static int faulty_stream_call(pllm_device *device, pllm_stream *handle, void (*call)(void *user),
                              void *user)
{
    faulty_device *faulty = faulty_of(device);
    faulty_stream *stream = (faulty_stream *)handle;
    if (faulty_hit(faulty)) return faulty_fail("stream_call");
    return faulty->inner->ops->stream_call(faulty->inner, stream->inner, call, user);
}

/* ---- movement ---- */

/* A movement is to fail: now, or later through its stream. */
static int movement_fail(faulty_device *faulty, faulty_stream *stream, const char *what)
{
    if (!faulty->fail_async) return faulty_fail(what);
    stream->status = PLLM_EDEVICE;
    return PLLM_OK;
}

static int faulty_copy(pllm_device *device, pllm_stream *handle, pllm_copy_kind kind,
                       const pllm_copy *copy)
{
    faulty_device *faulty = faulty_of(device);
    faulty_stream *stream = (faulty_stream *)handle;
    if (faulty_hit(faulty)) return movement_fail(faulty, stream, "copy");
    return faulty->inner->ops->copy(faulty->inner, stream->inner, kind, copy);
}

static int faulty_copy_batch(pllm_device *device, pllm_stream *handle, pllm_copy_kind kind,
                             const pllm_copy *copies, uint32_t copy_count)
{
    faulty_device *faulty = faulty_of(device);
    faulty_stream *stream = (faulty_stream *)handle;
    if (faulty_hit(faulty)) return movement_fail(faulty, stream, "copy_batch");
    return faulty->inner->ops->copy_batch(faulty->inner, stream->inner, kind, copies, copy_count);
}

static int faulty_fill(pllm_device *device, pllm_stream *handle, pllm_va va, uint64_t bytes,
                       uint8_t value)
{
    faulty_device *faulty = faulty_of(device);
    faulty_stream *stream = (faulty_stream *)handle;
    if (faulty_hit(faulty)) return movement_fail(faulty, stream, "fill");
    return faulty->inner->ops->fill(faulty->inner, stream->inner, va, bytes, value);
}

static uint64_t faulty_now_ns(pllm_device *device)
{
    return faulty_of(device)->inner->ops->now_ns(faulty_of(device)->inner);
}

static const pllm_device_ops faulty_ops = {
    .close = faulty_close,
    .info = faulty_info,
    .reserve = faulty_reserve,
    .release = faulty_release,
    .chunk_create = faulty_chunk_create,
    .chunk_destroy = faulty_chunk_destroy,
    .map = faulty_map,
    .unmap = faulty_unmap,
    .chunk_export = faulty_chunk_export,
    .chunk_import = faulty_chunk_import,
    .host_alloc = faulty_host_alloc,
    .host_free = faulty_host_free,
    .host_view = faulty_host_view,
    .stream_open = faulty_stream_open,
    .stream_close = faulty_stream_close,
    .event_open = faulty_event_open,
    .event_close = faulty_event_close,
    .event_record = faulty_event_record,
    .event_query = faulty_event_query,
    .event_wait = faulty_event_wait,
    .stream_wait = faulty_stream_wait,
    .stream_sync = faulty_stream_sync,
    .stream_call = faulty_stream_call,
    .copy = faulty_copy,
    .copy_batch = faulty_copy_batch,
    .fill = faulty_fill,
    .now_ns = faulty_now_ns,
};

/* ---- calls beside the table ---- */

pllm_device *pllm_faulty_device_inner(pllm_device *device)
{
    return device->ops->close == faulty_close ? faulty_of(device)->inner : NULL;
}

pllm_stream *pllm_faulty_stream_inner(pllm_stream *stream)
{
    return ((faulty_stream *)stream)->inner;
}

int pllm_faulty_device_pass(pllm_device *device, const char *what)
{
    return faulty_hit(faulty_of(device)) ? faulty_fail(what) : PLLM_OK;
}

int pllm_device_open_faulty(const pllm_context *context, pllm_device *inner,
                            const pllm_faulty_device_options *options, pllm_device **device_out)
{
    if (!device_out || !inner)
        return pllm_fail(PLLM_EINVAL, 0, "a faulty device needs an inner device and a result");
    *device_out = NULL;
    pllm_faulty_device_options chosen = {.struct_bytes = sizeof chosen, .fail_at = UINT64_MAX};
    if (options) chosen = *options;
    if (chosen.struct_bytes != sizeof chosen)
        return pllm_fail(PLLM_EINVAL, 0, "pllm_faulty_device_options.struct_bytes is %u, not %zu",
                         chosen.struct_bytes, sizeof chosen);
    faulty_device *faulty = pllm_alloc(context, sizeof *faulty);
    if (!faulty) return pllm_fail_memory("a faulty device", sizeof *faulty);
    faulty->ops = faulty_ops;
    faulty->ops.name = inner->ops->name;
    faulty->base = (pllm_device){&faulty->ops, context};
    faulty->inner = inner;
    faulty->persistent = chosen.persistent;
    faulty->fail_async = chosen.fail_async;
    atomic_store(&faulty->fail_at, chosen.fail_at);
    *device_out = &faulty->base;
    return PLLM_OK;
}

void pllm_faulty_device_arm(pllm_device *device, uint64_t fail_at)
{
    faulty_device *faulty = faulty_of(device);
    atomic_store(&faulty->fail_at, UINT64_MAX);
    atomic_store(&faulty->calls, 0);
    atomic_store(&faulty->fail_at, fail_at);
}

uint64_t pllm_faulty_device_calls(const pllm_device *device)
{
    return atomic_load(&((const faulty_device *)device)->calls);
}

int64_t pllm_faulty_device_live(const pllm_device *device)
{
    int64_t live = 0;
    for (int kind = 0; kind < PLLM_FAULTY_KINDS; kind++)
        live += pllm_faulty_device_live_of(device, kind);
    return live;
}

int64_t pllm_faulty_device_live_of(const pllm_device *device, pllm_faulty_kind kind)
{
    return atomic_load(&((const faulty_device *)device)->live[kind]);
}
