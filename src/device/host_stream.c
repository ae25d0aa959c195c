/* host_stream.c - streams, events and the simulated link of the host device.
 *
 *   caller  --push-->  [ ring of operations, grows ]  --worker thread-->  memory
 *                                                          |
 *                        event: recorded ... done          +-- waits for events, wakes waiters
 *
 * A stream is a ring of operations and one worker thread, parked while the ring is empty. A push
 * grows the ring through the context's allocator, all operations of a call at once: it either
 * submits everything or returns ENOMEM having submitted nothing.
 *
 * An event is two generation counters: a record takes the next generation, the worker that reaches
 * it sets done. Whoever waits, waits for the generation that was current when it asked, so an event
 * may be recorded again while earlier waits are queued. Queued operations hold a reference, so an
 * event may be closed while streams still have it in their rings.
 *
 * The link is arithmetic on time, not a rate limiter: a copy really moves its bytes, then its
 * stream may not pass the copy's end, which is booked on the direction's clock:
 *   start = max(submitted, end of what this stream did before, link free)
 *   link free = start + bytes / bandwidth;  end = link free + latency
 * so lateness of a thread does not add up and the CPU is free while the link is busy. A worker may
 * run ahead of the link by AHEAD_NS, since nobody can see that; at an event it waits exactly.
 *
 * Invariants: 1. done <= recorded. 2. One slot of the ring always stays free for sync's own record,
 * so that waiting never needs memory. 3. An operation's memory is touched only by the worker.
 * Locks: stream, then event; link alone. Never held while bytes move. */
#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include "device/host.h"

#define RING_FIRST 64u     /* slots of a new stream */
#define AHEAD_NS 20000u    /* how far a stream's copies may run before the link's clock */
#define SPIN_NS 8000u      /* the end of a wait that is too short to sleep */
#define PREFETCH_BYTES 512 /* of the next copy's source, while this one runs */

typedef struct host_event {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    _Atomic uint64_t recorded, done; /* generations */
    _Atomic uint32_t references;     /* the handle and every queued operation */
    void *stream;                    /* of the last record; only compared */
    uint64_t done_ns;                /* under lock */
} host_event;

typedef enum host_op_kind { OP_COPY, OP_FILL, OP_RECORD, OP_WAIT, OP_CALL, OP_STOP } host_op_kind;

typedef struct host_op {
    uint8_t kind, direction, value, call_end; /* call_end: the last copy of its call */
    uint64_t to, from, bytes;
    uint64_t call_bytes; /* first copy of a call over the link: all its bytes */
    uint64_t submitted_ns;
    union {
        host_event *event;
        void (*call)(void *user); /* with `from` as user */
    };
    uint64_t generation;
} host_op;

typedef struct host_stream {
    host_device *host;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t filled;
    host_op *ring;
    uint32_t ring_size, first, count; /* ring_size is a power of two; under lock */
    uint32_t parked;                  /* the worker waits on filled */
    uint64_t end_ns;                  /* worker: the link lets this stream's work be done by then */
    host_event *sync_event;
} host_stream;

/* ---- events ---- */

static int cond_init(pthread_cond_t *cond)
{
    pthread_condattr_t attributes;
    int code = pthread_condattr_init(&attributes);
    if (code) return code;
    code = pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    if (!code) code = pthread_cond_init(cond, &attributes);
    pthread_condattr_destroy(&attributes);
    return code;
}

int pllm_host_event_open(pllm_device *device, pllm_event **event_out)
{
    *event_out = NULL;
    host_event *event = pllm_alloc(device->context, sizeof *event);
    if (!event) return pllm_fail_memory("an event", sizeof *event);
    int code = pthread_mutex_init(&event->lock, NULL);
    if (code) goto fail_event;
    code = cond_init(&event->changed);
    if (code) goto fail_lock;
    atomic_store(&event->references, 1);
    *event_out = (pllm_event *)event;
    return PLLM_OK;
fail_lock:
    pthread_mutex_destroy(&event->lock);
fail_event:
    pllm_free(device->context, event);
    return pllm_fail(PLLM_ENOMEM, code, "could not make a lock for an event");
}

static void event_drop(const pllm_context *context, host_event *event)
{
    if (atomic_fetch_sub(&event->references, 1) != 1) return;
    pthread_cond_destroy(&event->changed);
    pthread_mutex_destroy(&event->lock);
    pllm_free(context, event);
}

void pllm_host_event_close(pllm_device *device, pllm_event *event)
{
    if (event) event_drop(device->context, (host_event *)event);
}

static void event_finish(host_event *event, uint64_t generation, uint64_t done_ns)
{
    pthread_mutex_lock(&event->lock);
    if (generation > atomic_load(&event->done)) {
        event->done_ns = done_ns;
        atomic_store(&event->done, generation);
    }
    pthread_cond_broadcast(&event->changed);
    pthread_mutex_unlock(&event->lock);
}

int pllm_host_event_query(pllm_device *device, pllm_event *handle)
{
    (void)device;
    host_event *event = (host_event *)handle;
    return atomic_load(&event->done) >= atomic_load(&event->recorded);
}

/* Waits for a generation until deadline_ns of the monotonic clock, UINT64_MAX for ever. */
static int event_await(host_event *event, uint64_t generation, uint64_t deadline_ns)
{
    int code = 0;
    struct timespec deadline = {(time_t)(deadline_ns / 1000000000u),
                                (long)(deadline_ns % 1000000000u)};
    pthread_mutex_lock(&event->lock);
    while (atomic_load(&event->done) < generation && code != ETIMEDOUT)
        code = deadline_ns == UINT64_MAX
                   ? pthread_cond_wait(&event->changed, &event->lock)
                   : pthread_cond_timedwait(&event->changed, &event->lock, &deadline);
    int done = atomic_load(&event->done) >= generation;
    pthread_mutex_unlock(&event->lock);
    return done ? PLLM_OK : PLLM_ETIMEDOUT;
}

int pllm_host_event_wait(pllm_device *device, pllm_event *handle, uint64_t timeout_ns)
{
    host_event *event = (host_event *)handle;
    uint64_t generation = atomic_load(&event->recorded), deadline_ns;
    if (atomic_load(&event->done) >= generation) return PLLM_OK;
    if (timeout_ns == 0) return PLLM_ETIMEDOUT;
    if (timeout_ns > (uint64_t)1 << 62 ||
        __builtin_add_overflow(pllm_host_now_ns(device), timeout_ns, &deadline_ns))
        deadline_ns = UINT64_MAX;
    return event_await(event, generation, deadline_ns);
}

/* ---- the ring ---- */

static int ring_grow(host_stream *stream, uint64_t wanted)
{
    uint64_t size = stream->ring_size;
    while (size < wanted) size *= 2;
    if (size == stream->ring_size) return PLLM_OK;
    const pllm_context *context = stream->host->base.context;
    host_op *ring = size <= UINT32_MAX ? pllm_alloc_array(context, size, sizeof *ring) : NULL;
    if (!ring) return pllm_fail_memory("a stream's queue", size * sizeof *ring);
    for (uint32_t i = 0; i < stream->count; i++)
        ring[i] = stream->ring[(stream->first + i) & (stream->ring_size - 1)];
    pllm_free(context, stream->ring);
    stream->ring = ring;
    stream->ring_size = (uint32_t)size;
    stream->first = 0;
    return PLLM_OK;
}

/* Locks the stream with room for op_count more operations and one to spare, or fails unlocked. */
static int ring_begin(host_stream *stream, uint32_t op_count)
{
    pthread_mutex_lock(&stream->lock);
    int status = ring_grow(stream, (uint64_t)stream->count + op_count + 1);
    if (status < 0) pthread_mutex_unlock(&stream->lock);
    return status;
}

static void ring_push(host_stream *stream, const host_op *op)
{
    assert(stream->count < stream->ring_size);
    stream->ring[(stream->first + stream->count++) & (stream->ring_size - 1)] = *op;
}

static void ring_end(host_stream *stream)
{
    uint32_t wake = stream->parked;
    pthread_mutex_unlock(&stream->lock);
    if (wake) pthread_cond_signal(&stream->filled);
}

static void push_record(host_stream *stream, host_event *event)
{
    atomic_fetch_add(&event->references, 1);
    host_op op = {.kind = OP_RECORD, .event = event};
    op.generation = atomic_fetch_add(&event->recorded, 1) + 1;
    event->stream = stream;
    ring_push(stream, &op);
}

int pllm_host_event_record(pllm_device *device, pllm_event *handle, pllm_stream *stream_handle)
{
    host_event *event = (host_event *)handle;
    host_stream *stream = (host_stream *)stream_handle;
    /* Two streams could finish two records in either order, and one counter could not tell. */
    if (event->stream != stream && !pllm_host_event_query(device, handle))
        return pllm_fail(PLLM_EBUSY, 0, "the event is still pending on another stream");
    int status = ring_begin(stream, 1);
    if (status < 0) return status;
    push_record(stream, event);
    ring_end(stream);
    return PLLM_OK;
}

int pllm_host_stream_wait(pllm_device *device, pllm_stream *stream_handle, pllm_event *handle)
{
    host_event *event = (host_event *)handle;
    host_stream *stream = (host_stream *)stream_handle;
    /* Work that is over holds nobody up; with a link its end still counts, see run_wait. */
    if (stream->host->link.bytes_per_second == 0 && pllm_host_event_query(device, handle))
        return PLLM_OK;
    int status = ring_begin(stream, 1);
    if (status < 0) return status;
    atomic_fetch_add(&event->references, 1);
    host_op op = {.kind = OP_WAIT, .event = event, .generation = atomic_load(&event->recorded)};
    ring_push(stream, &op);
    ring_end(stream);
    return PLLM_OK;
}

int pllm_host_stream_sync(pllm_device *device, pllm_stream *handle)
{
    host_stream *stream = (host_stream *)handle;
    pthread_mutex_lock(&stream->lock); /* the spare slot: never fails */
    push_record(stream, stream->sync_event);
    ring_end(stream);
    return pllm_host_event_wait(device, (pllm_event *)stream->sync_event, UINT64_MAX);
}

int pllm_host_stream_call(pllm_device *device, pllm_stream *handle, void (*call)(void *user),
                          void *user)
{
    (void)device;
    host_stream *stream = (host_stream *)handle;
    int status = ring_begin(stream, 1);
    if (status < 0) return status;
    host_op op = {.kind = OP_CALL, .from = (uint64_t)(uintptr_t)user, .call = call};
    ring_push(stream, &op);
    ring_end(stream);
    return PLLM_OK;
}

int pllm_host_copy_batch(pllm_device *device, pllm_stream *handle, pllm_copy_kind kind,
                         const pllm_copy *copies, uint32_t copy_count)
{
    host_stream *stream = (host_stream *)handle;
    host_link *link = &stream->host->link;
    int status = pllm_arena_check_copies(&stream->host->arena, kind, copies, copy_count);
    if (status < 0) return status;
    uint32_t last = copy_count;
    uint64_t call_bytes = 0;
    for (uint32_t i = 0; i < copy_count; i++) {
        if (copies[i].bytes == 0) continue;
        last = i;
        if (__builtin_add_overflow(call_bytes, copies[i].bytes, &call_bytes))
            return pllm_fail(PLLM_EINVAL, 0, "the copies of one call pass 2^64 bytes");
    }
    if (last == copy_count) return PLLM_OK;
    int over_link = link->bytes_per_second > 0 && kind != PLLM_COPY_WITHIN;
    host_op op = {.kind = OP_COPY, .direction = (uint8_t)kind};
    op.call_bytes = over_link ? call_bytes : 0;
    op.submitted_ns = over_link ? pllm_host_now_ns(device) : 0;
    status = ring_begin(stream, copy_count);
    if (status < 0) return status;
    for (uint32_t i = 0; i <= last; i++) {
        if (copies[i].bytes == 0) continue;
        op.to = copies[i].to;
        op.from = copies[i].from;
        op.bytes = copies[i].bytes;
        op.call_end = i == last && over_link;
        ring_push(stream, &op);
        op.call_bytes = 0;
    }
    ring_end(stream);
    return PLLM_OK;
}

int pllm_host_fill(pllm_device *device, pllm_stream *handle, pllm_va va, uint64_t bytes,
                   uint8_t value)
{
    (void)device;
    host_stream *stream = (host_stream *)handle;
    int status = pllm_arena_check_fill(&stream->host->arena, va, bytes);
    if (status < 0 || bytes == 0) return status;
    status = ring_begin(stream, 1);
    if (status < 0) return status;
    host_op op = {.kind = OP_FILL, .value = value, .to = va, .bytes = bytes};
    ring_push(stream, &op);
    ring_end(stream);
    return PLLM_OK;
}

/* ---- the worker ---- */

static uint64_t most(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* Returns not before deadline_ns; asleep but for the last few microseconds. */
static void sleep_until(uint64_t deadline_ns)
{
    uint64_t now = pllm_host_now_ns(NULL);
    if (deadline_ns > now + SPIN_NS) {
        uint64_t wake_ns = deadline_ns - SPIN_NS;
        struct timespec wake = {(time_t)(wake_ns / 1000000000u), (long)(wake_ns % 1000000000u)};
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &wake, NULL) == EINTR) continue;
    }
    while (pllm_host_now_ns(NULL) < deadline_ns) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
}

/* Books a call's bytes on its direction of the link. */
static void link_book(host_stream *stream, const host_op *op)
{
    host_link *link = &stream->host->link;
    double carry_ns = (double)op->call_bytes / link->bytes_per_second * 1e9;
    uint64_t bytes_ns = carry_ns < 9e18 ? (uint64_t)carry_ns + 1 : (uint64_t)9e18;
    pthread_mutex_lock(&link->lock);
    uint64_t start_ns = most(most(op->submitted_ns, stream->end_ns), link->free_ns[op->direction]);
    link->free_ns[op->direction] = start_ns + bytes_ns;
    pthread_mutex_unlock(&link->lock);
    stream->end_ns = start_ns + bytes_ns + link->latency_ns;
}

static void run_copy(host_stream *stream, const host_op *op)
{
    if (op->call_bytes) link_book(stream, op);
    pllm_move((void *)(uintptr_t)op->to, (const void *)(uintptr_t)op->from, op->bytes);
    if (op->call_end && stream->end_ns > pllm_host_now_ns(NULL) + AHEAD_NS)
        sleep_until(stream->end_ns - AHEAD_NS);
}

static void run_wait(host_stream *stream, const host_op *op)
{
    host_event *event = op->event;
    if (atomic_load(&event->done) < op->generation) event_await(event, op->generation, UINT64_MAX);
    pthread_mutex_lock(&event->lock);
    stream->end_ns = most(stream->end_ns, event->done_ns);
    pthread_mutex_unlock(&event->lock);
    event_drop(stream->host->base.context, event);
}

static void run_record(host_stream *stream, const host_op *op)
{
    int linked = stream->host->link.bytes_per_second > 0;
    if (linked && stream->end_ns) sleep_until(stream->end_ns);
    event_finish(op->event, op->generation, linked ? pllm_host_now_ns(NULL) : 0);
    event_drop(stream->host->base.context, op->event);
}

/* After the link's end of what came before, as a record. */
static void run_call(host_stream *stream, const host_op *op)
{
    if (stream->host->link.bytes_per_second > 0 && stream->end_ns) sleep_until(stream->end_ns);
    op->call((void *)(uintptr_t)op->from);
}

static host_op ring_pop(host_stream *stream)
{
    pthread_mutex_lock(&stream->lock);
    while (stream->count == 0) {
        stream->parked = 1;
        pthread_cond_wait(&stream->filled, &stream->lock);
        stream->parked = 0;
    }
    host_op op = stream->ring[stream->first];
    stream->first = (stream->first + 1) & (stream->ring_size - 1);
    stream->count--;
    if (stream->count > 0 && stream->ring[stream->first].kind == OP_COPY) {
        const char *next = (const char *)(uintptr_t)stream->ring[stream->first].from;
        for (uint32_t at = 0; at < PREFETCH_BYTES; at += 64) __builtin_prefetch(next + at);
    }
    pthread_mutex_unlock(&stream->lock);
    return op;
}

static void *stream_work(void *argument)
{
    host_stream *stream = argument;
    prctl(PR_SET_NAME, "pllm-stream");
    prctl(PR_SET_TIMERSLACK, 1); /* the link's sleeps: the default is 50 microseconds late */
    for (;;) {
        host_op op = ring_pop(stream);
        switch (op.kind) {
        case OP_COPY:
            run_copy(stream, &op);
            break;
        case OP_FILL:
            memset((void *)(uintptr_t)op.to, op.value, op.bytes);
            break;
        case OP_RECORD:
            run_record(stream, &op);
            break;
        case OP_WAIT:
            run_wait(stream, &op);
            break;
        case OP_CALL:
            run_call(stream, &op);
            break;
        default:
            sleep_until(stream->end_ns);
            return NULL;
        }
    }
}

int pllm_host_stream_open(pllm_device *device, pllm_stream **stream_out)
{
    *stream_out = NULL;
    const pllm_context *context = device->context;
    host_stream *stream = pllm_alloc(context, sizeof *stream);
    if (!stream) return pllm_fail_memory("a stream", sizeof *stream);
    stream->host = (host_device *)device;
    stream->ring_size = RING_FIRST;
    stream->ring = pllm_alloc_array(context, RING_FIRST, sizeof *stream->ring);
    int status, code;
    if (!stream->ring) {
        status = pllm_fail_memory("a stream's queue", RING_FIRST * sizeof *stream->ring);
        goto fail_stream;
    }
    status = pllm_host_event_open(device, (pllm_event **)&stream->sync_event);
    if (status < 0) goto fail_ring;
    code = pthread_mutex_init(&stream->lock, NULL);
    if (code) goto fail_event;
    code = pthread_cond_init(&stream->filled, NULL);
    if (code) goto fail_lock;
    /* Signals belong to the program's own threads. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    code = pthread_create(&stream->thread, NULL, stream_work, stream);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code) goto fail_cond;
    *stream_out = (pllm_stream *)stream;
    return PLLM_OK;
fail_cond:
    pthread_cond_destroy(&stream->filled);
fail_lock:
    pthread_mutex_destroy(&stream->lock);
fail_event:
    status = pllm_fail(PLLM_ENOMEM, code, "could not start a stream's thread: %s", strerror(code));
    event_drop(context, stream->sync_event);
fail_ring:
    pllm_free(context, stream->ring);
fail_stream:
    pllm_free(context, stream);
    return status;
}

void pllm_host_stream_close(pllm_device *device, pllm_stream *handle)
{
    host_stream *stream = (host_stream *)handle;
    if (!stream) return;
    host_op stop = {.kind = OP_STOP};
    pthread_mutex_lock(&stream->lock); /* the spare slot again */
    ring_push(stream, &stop);
    ring_end(stream);
    pthread_join(stream->thread, NULL);
    pthread_cond_destroy(&stream->filled);
    pthread_mutex_destroy(&stream->lock);
    event_drop(device->context, stream->sync_event);
    pllm_free(device->context, stream->ring);
    pllm_free(device->context, stream);
}
