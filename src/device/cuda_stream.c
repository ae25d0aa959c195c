/* cuda_stream.c - streams, events, copies and fills on CUDA.
 *
 * The driver orders work as device.h wants it: a wait means the event as it was last recorded, and
 * an event may be destroyed while waits for it are queued. What is kept here: which stream an event
 * was last recorded on (EBUSY), that one never recorded is done, and the failure of a batch that
 * broke off half way, which has submitted something and so must be told by a later sync.
 *
 * Other failures of submitted work are sticky errors of the whole context (cuda_device.c): every
 * call reports them, so they stick to each stream and event by themselves.
 *
 * Events of a capture are notes in a graph, not points in time: asking about them is answered
 * "done". stream_sync spins in the driver, which is the quickest; event_wait is polite: it spins
 * for SPIN_NS, then sleeps for a small part of what it has waited already. */
#include <sys/prctl.h>
#include <time.h>
#include "base/clock.h"
#include "device/cuda_internal.h"

#define SPIN_NS 50000u
#define SLEEP_MAX_NS 200000u
#define BATCH_MAX 256u /* copies of one driver call: their three arrays lie on the stack */

typedef struct cuda_event {
    void *handle;
    void *stream; /* of the last record; only compared */
    int recorded, captured;
    int status; /* of the stream's broken batch, at the last record */
} cuda_event;

static int report(int status)
{
    return pllm_fail(status, 0, "a batch of copies broke off half way in this stream");
}

/* ---- streams ---- */

int cuda_stream_open(pllm_device *device, pllm_stream **stream_out)
{
    cuda_device *cuda = cuda_of(device);
    *stream_out = NULL;
    int status = cuda_enter(cuda);
    if (status < 0) return status;
    cuda_stream *stream = pllm_alloc(device->context, sizeof *stream);
    if (!stream) return pllm_fail_memory("a stream", sizeof *stream);
    stream->self = (pllm_stream *)stream;
    stream->cuda = cuda;
    status = CUDA_DO(cuda, stream_create, &stream->handle, CUDA_STREAM_NON_BLOCKING);
    if (status < 0) {
        pllm_free(device->context, stream);
        return status;
    }
    *stream_out = stream->self;
    return PLLM_OK;
}

void cuda_stream_close(pllm_device *device, pllm_stream *handle)
{
    cuda_device *cuda = cuda_of(device);
    cuda_stream *stream = (cuda_stream *)handle;
    if (!stream) return;
    CUDA_NOTE(cuda, context_set_current, cuda->context);
    CUDA_NOTE(cuda, stream_sync, stream->handle);
    if (!stream->borrowed) CUDA_NOTE(cuda, stream_destroy, stream->handle);
    pllm_free(device->context, stream);
}

int pllm_cuda_stream_wrap(pllm_device *device, void *handle, pllm_stream **stream_out)
{
    cuda_device *cuda;
    *stream_out = NULL;
    pllm_device *inner = pllm_faulty_device_inner(device);
    if (inner) {
        pllm_stream *wrapped;
        int status = pllm_faulty_device_pass(device, "stream_wrap");
        if (status == PLLM_OK) status = pllm_cuda_stream_wrap(inner, handle, &wrapped);
        if (status < 0) return status;
        status = pllm_faulty_stream_adopt(device, wrapped, stream_out);
        if (status < 0) inner->ops->stream_close(inner, wrapped);
        return status;
    }
    int status = cuda_unwrap(device, NULL, "a CUstream", &cuda);
    if (status == PLLM_OK) status = cuda_enter(cuda);
    if (status < 0) return status;
    cuda_stream *stream = pllm_alloc(device->context, sizeof *stream);
    if (!stream) return pllm_fail_memory("a stream", sizeof *stream);
    *stream = (cuda_stream){(pllm_stream *)stream, cuda, handle, 1, PLLM_OK};
    *stream_out = stream->self;
    return PLLM_OK;
}

int cuda_stream_call(pllm_device *device, pllm_stream *handle, void (*call)(void *user), void *user)
{
    cuda_device *cuda = cuda_of(device);
    cuda_stream *stream = (cuda_stream *)handle;
    int status = cuda_enter(cuda);
    if (status == PLLM_OK) status = CUDA_DO(cuda, stream_call, stream->handle, call, user);
    if (status == PLLM_ENODEVMEM)
        status = pllm_fail(PLLM_EDEVICE, CUDA_OUT_OF_MEMORY, "the driver had no memory for a call");
    return status;
}

static int is_capturing(const cuda_stream *stream)
{
    int capture = CUDA_CAPTURE_NONE;
    return stream->cuda->driver.capture_status(stream->handle, &capture) == CUDA_OK &&
           capture != CUDA_CAPTURE_NONE;
}

int cuda_stream_sync(pllm_device *device, pllm_stream *handle)
{
    cuda_device *cuda = cuda_of(device);
    cuda_stream *stream = (cuda_stream *)handle;
    int status = cuda_enter(cuda);
    if (status == PLLM_OK) status = CUDA_DO(cuda, stream_sync, stream->handle);
    if (status == PLLM_OK && stream->status < 0) {
        status = report(stream->status);
        stream->status = PLLM_OK;
    }
    return status;
}

/* ---- events ---- */

int cuda_event_open(pllm_device *device, pllm_event **event_out)
{
    cuda_device *cuda = cuda_of(device);
    *event_out = NULL;
    int status = cuda_enter(cuda);
    if (status < 0) return status;
    cuda_event *event = pllm_alloc(device->context, sizeof *event);
    if (!event) return pllm_fail_memory("an event", sizeof *event);
    status = CUDA_DO(cuda, event_create, &event->handle, CUDA_EVENT_DISABLE_TIMING);
    if (status < 0) {
        pllm_free(device->context, event);
        return status;
    }
    *event_out = (pllm_event *)event;
    return PLLM_OK;
}

void cuda_event_close(pllm_device *device, pllm_event *handle)
{
    cuda_device *cuda = cuda_of(device);
    cuda_event *event = (cuda_event *)handle;
    if (!event) return;
    CUDA_NOTE(cuda, context_set_current, cuda->context);
    CUDA_NOTE(cuda, event_destroy, event->handle);
    pllm_free(device->context, event);
}

/* 1, 0 or the failure; the context is current. */
static int query(cuda_device *cuda, const cuda_event *event)
{
    if (!event->recorded) return 1;
    int code = cuda->driver.event_query(event->handle);
    if (code == CUDA_NOT_READY) return 0;
    int status = cuda_check(cuda, CUDA_CALL_event_query, code);
    if (status < 0) return status;
    return event->status < 0 ? report(event->status) : 1;
}

int cuda_event_record(pllm_device *device, pllm_event *handle, pllm_stream *stream_handle)
{
    cuda_device *cuda = cuda_of(device);
    cuda_event *event = (cuda_event *)handle;
    cuda_stream *stream = (cuda_stream *)stream_handle;
    int status = cuda_enter(cuda);
    if (status < 0) return status;
    if (event->stream != stream && query(cuda, event) == 0)
        return pllm_fail(PLLM_EBUSY, 0, "the event is still pending on another stream");
    int captured = is_capturing(stream);
    status = CUDA_DO(cuda, event_record, event->handle, stream->handle);
    if (status < 0) return status;
    event->stream = stream;
    event->recorded = !captured;
    event->captured = captured;
    event->status = stream->status;
    return PLLM_OK;
}

int cuda_event_query(pllm_device *device, pllm_event *handle)
{
    cuda_device *cuda = cuda_of(device);
    int status = cuda_enter(cuda);
    return status < 0 ? status : query(cuda, (cuda_event *)handle);
}

/* Sleeps with little slack: the usual 50 us would be added to every wait. */
static void doze(uint64_t ns)
{
    const struct timespec time = {0, (long)ns};
    int slack = prctl(PR_GET_TIMERSLACK);
    if (slack > 1000) prctl(PR_SET_TIMERSLACK, 1000ul);
    clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL);
    if (slack > 1000) prctl(PR_SET_TIMERSLACK, (unsigned long)slack);
}

int cuda_event_wait(pllm_device *device, pllm_event *handle, uint64_t timeout_ns)
{
    cuda_device *cuda = cuda_of(device);
    int status = cuda_enter(cuda);
    if (status < 0) return status;
    uint64_t start_ns = pllm_clock_ns();
    for (;;) {
        status = query(cuda, (cuda_event *)handle);
        if (status != 0) return status < 0 ? status : PLLM_OK;
        uint64_t waited_ns = pllm_clock_ns() - start_ns;
        if (waited_ns >= timeout_ns) return PLLM_ETIMEDOUT;
        if (waited_ns < SPIN_NS) continue;
        uint64_t sleep_ns = waited_ns / 128 + 1000;
        if (sleep_ns > SLEEP_MAX_NS) sleep_ns = SLEEP_MAX_NS;
        if (sleep_ns > timeout_ns - waited_ns) sleep_ns = timeout_ns - waited_ns;
        doze(sleep_ns);
    }
}

int cuda_stream_wait(pllm_device *device, pllm_stream *stream_handle, pllm_event *handle)
{
    cuda_device *cuda = cuda_of(device);
    cuda_event *event = (cuda_event *)handle;
    cuda_stream *stream = (cuda_stream *)stream_handle;
    int status = cuda_enter(cuda);
    if (status < 0) return status;
    if (!event->recorded && !event->captured) return PLLM_OK;
    status = CUDA_DO(cuda, stream_wait, stream->handle, event->handle, 0);
    if (status == PLLM_OK && event->status < 0) stream->status = event->status;
    return status;
}

/* ---- movement ---- */

static int copy_one(const cuda_stream *stream, pllm_copy_kind kind, const pllm_copy *copy,
                    uint32_t *call)
{
    const cuda_driver *driver = &stream->cuda->driver;
    void *handle = stream->handle;
    switch (kind) {
    case PLLM_COPY_IN:
        *call = CUDA_CALL_copy_in;
        return driver->copy_in(copy->to, (const void *)(uintptr_t)copy->from, copy->bytes, handle);
    case PLLM_COPY_OUT:
        *call = CUDA_CALL_copy_out;
        return driver->copy_out((void *)(uintptr_t)copy->to, copy->from, copy->bytes, handle);
    default:
        *call = CUDA_CALL_copy_within;
        return driver->copy_within(copy->to, copy->from, copy->bytes, handle);
    }
}

/* A failure in the middle of a call: the first *submitted_count copies are on their way. Then the
 * call has succeeded, and the failure is the stream's. */
static int submitted(cuda_stream *stream, int status, uint32_t submitted_count)
{
    if (status == PLLM_ENODEVMEM)
        status = pllm_fail(PLLM_EDEVICE, CUDA_OUT_OF_MEMORY, "the driver had no memory for a copy");
    if (status == PLLM_OK || submitted_count == 0 || atomic_load(&stream->cuda->dead))
        return status;
    stream->status = status;
    return PLLM_OK;
}

static int copy_each(cuda_stream *stream, pllm_copy_kind kind, const pllm_copy *copies,
                     uint32_t first, uint32_t copy_count, uint32_t submitted_count)
{
    for (uint32_t i = first; i < copy_count; i++) {
        uint64_t bytes;
        for (uint64_t at = 0; at < copies[i].bytes; at += bytes) {
            uint32_t call;
            pllm_copy run = {copies[i].to + at, copies[i].from + at, copies[i].bytes - at};
            if (kind != PLLM_COPY_WITHIN)
                run.bytes = cuda_host_run(stream->cuda, kind == PLLM_COPY_IN ? run.from : run.to,
                                          run.bytes);
            bytes = run.bytes;
            int code = copy_one(stream, kind, &run, &call);
            if (code != CUDA_OK)
                return submitted(stream, cuda_check(stream->cuda, call, code), submitted_count);
            submitted_count++;
        }
    }
    return PLLM_OK;
}

/* One driver call for up to BATCH_MAX copies: it costs little more than one copy's. */
static int copy_group(cuda_stream *stream, const pllm_copy *copies, uint32_t *next,
                      uint32_t copy_count, uint32_t *group_count)
{
    uint64_t to[BATCH_MAX], from[BATCH_MAX];
    size_t bytes[BATCH_MAX], first = 0, failed = 0;
    uint32_t count = 0, i = *next;
    for (; i < copy_count && count < BATCH_MAX; i++) {
        if (copies[i].bytes == 0) continue;
        to[count] = copies[i].to;
        from[count] = copies[i].from;
        bytes[count++] = copies[i].bytes;
    }
    *group_count = count;
    if (count == 0) {
        *next = i;
        return CUDA_OK;
    }
    cuda_copy_attributes attributes = {.source_order = CUDA_SOURCE_ORDER_STREAM};
    int code = stream->cuda->driver.copy_batch(to, from, bytes, count, &attributes, &first, 1,
                                               &failed, stream->handle);
    if (code == CUDA_OK) *next = i;
    return code;
}

int cuda_copy_batch(pllm_device *device, pllm_stream *handle, pllm_copy_kind kind,
                    const pllm_copy *copies, uint32_t copy_count)
{
    cuda_device *cuda = cuda_of(device);
    cuda_stream *stream = (cuda_stream *)handle;
    pthread_mutex_lock(&cuda->lock);
    int status = pllm_ranges_check_copies(&cuda->ranges, kind, copies, copy_count);
    pthread_mutex_unlock(&cuda->lock);
    if (status == PLLM_OK) status = cuda_enter(cuda);
    if (status < 0) return status;
    uint32_t next = 0, submitted_count = 0;
    /* Graphs don't take batches, and the driver wants pinned memory in them, of one piece. */
    if (copy_count > 1 && cuda->driver.copy_batch && !atomic_load(&cuda->no_batch) &&
        (kind == PLLM_COPY_WITHIN ||
         (atomic_load(&cuda->unpinned_count) == 0 && atomic_load(&cuda->parts_count) == 0)) &&
        !is_capturing(stream)) {
        while (next < copy_count) {
            uint32_t group_count;
            int code = copy_group(stream, copies, &next, copy_count, &group_count);
            if (code == CUDA_NOT_SUPPORTED && submitted_count == 0) {
                atomic_store(&cuda->no_batch, 1); /* one at a time from now on */
                break;
            }
            if (code != CUDA_OK)
                return submitted(stream, cuda_check(cuda, CUDA_CALL_copy_batch, code),
                                 submitted_count);
            submitted_count += group_count;
        }
    }
    return copy_each(stream, kind, copies, next, copy_count, submitted_count);
}

int cuda_copy(pllm_device *device, pllm_stream *stream, pllm_copy_kind kind, const pllm_copy *copy)
{
    return cuda_copy_batch(device, stream, kind, copy, 1);
}

int cuda_fill(pllm_device *device, pllm_stream *handle, pllm_va va, uint64_t bytes, uint8_t value)
{
    cuda_device *cuda = cuda_of(device);
    cuda_stream *stream = (cuda_stream *)handle;
    pthread_mutex_lock(&cuda->lock);
    int status = pllm_ranges_check_fill(&cuda->ranges, va, bytes);
    pthread_mutex_unlock(&cuda->lock);
    if (status == PLLM_OK) status = cuda_enter(cuda);
    if (status < 0 || bytes == 0) return status;
    return submitted(stream, CUDA_DO(cuda, fill, va, value, bytes, stream->handle), 0);
}
