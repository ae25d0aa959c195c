/* sim.c - a device with no thread and no clock of its own, for tests that must replay exactly.
 *
 *   stream 0   [copy due 40] [record] [copy] ...      heads run; of their due times the least is
 *   stream 1   [wait: held]  [copy]                   next, ties broken by the seed
 *   stream 2   [fill due 15] ...
 *
 * Nothing happens until somebody waits or polls. Then the clock jumps to the next completion: a
 * copy, fill or call at the head of its stream takes a seeded time from when it became the head,
 * and moves its bytes at the end of it, so a reader that does not wait sees old bytes; in checked
 * builds it sees 0xFF (NaN), since the destination is poisoned when the operation starts. (Not when
 * it is submitted: work ordered before it may still read there.) Records and waits take no time.
 *
 * Everything depends only on the seed and the order of calls, so a run replays; addresses differ
 * between processes but never steer anything.
 * Invariants: 1. A head that is a copy, fill or call has a due time, at or after the clock. 2.
 * After every call no head is a record or a satisfied wait (sim_settle). Threads: one for streams
 * and events; the arena is safe from many. */
#include <assert.h>
#include <stdio.h>
#include <string.h>
#include "device/arena.h"

#define RING_FIRST 16u

typedef enum sim_op_kind { SIM_COPY, SIM_FILL, SIM_CALL, SIM_RECORD, SIM_WAIT } sim_op_kind;

typedef struct sim_event {
    uint64_t recorded, done; /* generations, as on the host device */
    uint32_t references;
    void *stream;
} sim_event;

typedef struct sim_op {
    sim_op_kind kind;
    uint8_t value;
    uint64_t to, from, bytes;
    sim_event *event;
    uint64_t generation;
    void (*call)(void *user);
    void *user;
} sim_op;

typedef struct sim_stream {
    struct sim_stream *next; /* in order of opening, so that replays visit alike */
    sim_op *ring;
    uint32_t ring_size, first, count;
    uint32_t started; /* the head is a copy, fill or call, and due_ns its end */
    uint64_t due_ns;
} sim_stream;

typedef struct sim_device {
    pllm_device base;
    pllm_arena arena;
    uint64_t random, clock_ns, latency_ns_max;
    sim_stream *streams;
} sim_device;

static sim_device *sim_of(pllm_device *device)
{
    return (sim_device *)device;
}

/* SplitMix64 (Steele, Lea, Flood 2014). */
static uint64_t sim_random(sim_device *sim)
{
    uint64_t x = sim->random += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* ---- memory: the arena's, see arena.h ---- */

static void sim_close(pllm_device *device)
{
    pllm_arena_deinit(&sim_of(device)->arena);
    pllm_free(device->context, device);
}

static int sim_info(pllm_device *device, pllm_device_info *info_out)
{
    pllm_arena *arena = &sim_of(device)->arena;
    memset(info_out, 0, sizeof *info_out);
    info_out->struct_bytes = sizeof *info_out;
    snprintf(info_out->name, sizeof info_out->name, "simulated device");
    snprintf(info_out->uuid, sizeof info_out->uuid, "SIM-0");
    info_out->total_bytes = arena->capacity_bytes;
    info_out->free_bytes =
        arena->capacity_bytes - arena->used_bytes; /* not the machine's: replays */
    info_out->granularity_bytes = arena->granularity_bytes;
    info_out->chunk_bytes = arena->chunk_bytes;
    return PLLM_OK;
}

static int sim_reserve(pllm_device *device, uint64_t bytes, pllm_va *va_out)
{
    return pllm_arena_reserve(&sim_of(device)->arena, bytes, va_out);
}

static void sim_release(pllm_device *device, pllm_va va, uint64_t bytes)
{
    pllm_arena_release(&sim_of(device)->arena, va, bytes);
}

static int sim_chunk_create(pllm_device *device, uint64_t bytes, pllm_chunk **chunk_out)
{
    return pllm_arena_chunk_create(&sim_of(device)->arena, bytes, chunk_out);
}

static void sim_chunk_destroy(pllm_device *device, pllm_chunk *chunk)
{
    pllm_arena_chunk_destroy(&sim_of(device)->arena, chunk);
}

static int sim_map(pllm_device *device, pllm_va va, pllm_chunk *const *chunks, uint32_t chunk_count)
{
    return pllm_arena_map(&sim_of(device)->arena, va, chunks, chunk_count);
}

static void sim_unmap(pllm_device *device, pllm_va va, pllm_chunk *chunk)
{
    pllm_arena_unmap(&sim_of(device)->arena, va, chunk);
}

static int sim_chunk_export(pllm_device *device, pllm_chunk *chunk, uint32_t read_only, int *fd_out)
{
    return pllm_arena_chunk_export(&sim_of(device)->arena, chunk, read_only, fd_out);
}

static int sim_chunk_import(pllm_device *device, int fd, uint64_t bytes, uint32_t read_only,
                            pllm_chunk **chunk_out)
{
    return pllm_arena_chunk_import(&sim_of(device)->arena, fd, bytes, read_only, chunk_out);
}

static int sim_host_alloc(pllm_device *device, uint64_t bytes, void **pointer_out)
{
    (void)device;
    return pllm_arena_host_alloc(bytes, pointer_out);
}

static void sim_host_free(pllm_device *device, void *pointer, uint64_t bytes)
{
    (void)device;
    pllm_arena_host_free(pointer, bytes);
}

static void *sim_host_view(pllm_device *device, pllm_va va)
{
    (void)device;
    return (void *)(uintptr_t)va;
}

/* ---- the clock ---- */

static void sim_event_drop(sim_device *sim, sim_event *event)
{
    if (--event->references == 0) pllm_free(sim->base.context, event);
}

static sim_op *stream_head(sim_stream *stream)
{
    return stream->count ? &stream->ring[stream->first] : NULL;
}

static void stream_pop(sim_stream *stream)
{
    stream->first = (stream->first + 1) & (stream->ring_size - 1);
    stream->count--;
    stream->started = 0;
}

static void op_start(sim_device *sim, sim_stream *stream, const sim_op *op)
{
    stream->started = 1;
    stream->due_ns = sim->clock_ns + 1 + sim_random(sim) % (sim->latency_ns_max + 1);
#ifdef PLLM_CHECKS
    if (op->kind != SIM_CALL) memset((void *)(uintptr_t)op->to, 0xff, op->bytes);
#else
    (void)op;
#endif
}

/* Runs a stream's records and satisfied waits; true if it got anywhere. */
static int stream_settle(sim_device *sim, sim_stream *stream)
{
    int moved = 0;
    for (sim_op *op; (op = stream_head(stream)) && !stream->started; moved = 1) {
        if (op->kind == SIM_COPY || op->kind == SIM_FILL || op->kind == SIM_CALL) {
            op_start(sim, stream, op);
            continue;
        }
        if (op->kind == SIM_WAIT && op->event->done < op->generation) break;
        if (op->kind == SIM_RECORD && op->event->done < op->generation)
            op->event->done = op->generation;
        sim_event_drop(sim, op->event);
        stream_pop(stream);
    }
    return moved;
}

static void sim_settle(sim_device *sim)
{
    for (int moved = 1; moved;) {
        moved = 0;
        for (sim_stream *stream = sim->streams; stream; stream = stream->next)
            moved |= stream_settle(sim, stream);
    }
}

static sim_stream *next_due(sim_device *sim)
{
    sim_stream *next = NULL;
    uint32_t alike = 0;
    for (sim_stream *stream = sim->streams; stream; stream = stream->next) {
        if (!stream->started) continue;
        if (next && stream->due_ns > next->due_ns) continue;
        alike = next && stream->due_ns == next->due_ns ? alike + 1 : 1;
        if (alike == 1 || sim_random(sim) % alike == 0) next = stream;
    }
    return next;
}

/* Jumps to the next completion, unless it lies after deadline_ns; 0: nothing left to complete. */
static int sim_step(sim_device *sim, uint64_t deadline_ns)
{
    sim_stream *stream = next_due(sim);
    if (!stream) return 0;
    if (stream->due_ns > deadline_ns) {
        sim->clock_ns = deadline_ns;
        return 0;
    }
    const sim_op *op = stream_head(stream);
    assert(stream->due_ns >= sim->clock_ns); /* invariant 1 */
    sim->clock_ns = stream->due_ns;
    if (op->kind == SIM_COPY)
        memcpy((void *)(uintptr_t)op->to, (const void *)(uintptr_t)op->from, op->bytes);
    else if (op->kind == SIM_FILL)
        memset((void *)(uintptr_t)op->to, op->value, op->bytes);
    else
        op->call(op->user);
    stream_pop(stream);
    sim_settle(sim);
    return 1;
}

static uint64_t sim_now_ns(pllm_device *device)
{
    return sim_of(device)->clock_ns;
}

/* ---- streams and events ---- */

static int stream_room(sim_device *sim, sim_stream *stream, uint32_t op_count)
{
    uint64_t size = stream->ring_size, wanted = (uint64_t)stream->count + op_count;
    while (size < wanted) size *= 2;
    if (size == stream->ring_size) return PLLM_OK;
    const pllm_context *context = sim->base.context;
    sim_op *ring = size <= UINT32_MAX ? pllm_alloc_array(context, size, sizeof *ring) : NULL;
    if (!ring) return pllm_fail_memory("a stream's queue", size * sizeof *ring);
    for (uint32_t i = 0; i < stream->count; i++)
        ring[i] = stream->ring[(stream->first + i) & (stream->ring_size - 1)];
    pllm_free(context, stream->ring);
    stream->ring = ring;
    stream->ring_size = (uint32_t)size;
    stream->first = 0;
    return PLLM_OK;
}

static void stream_push(sim_stream *stream, const sim_op *op)
{
    stream->ring[(stream->first + stream->count++) & (stream->ring_size - 1)] = *op;
}

static int sim_stream_open(pllm_device *device, pllm_stream **stream_out)
{
    sim_device *sim = sim_of(device);
    *stream_out = NULL;
    sim_stream *stream = pllm_alloc(device->context, sizeof *stream);
    if (!stream) return pllm_fail_memory("a stream", sizeof *stream);
    stream->ring_size = RING_FIRST;
    stream->ring = pllm_alloc_array(device->context, RING_FIRST, sizeof *stream->ring);
    if (!stream->ring) {
        pllm_free(device->context, stream);
        return pllm_fail_memory("a stream's queue", RING_FIRST * sizeof *stream->ring);
    }
    sim_stream **link = &sim->streams;
    while (*link) link = &(*link)->next;
    *link = stream;
    *stream_out = (pllm_stream *)stream;
    return PLLM_OK;
}

static int sim_stream_sync(pllm_device *device, pllm_stream *handle)
{
    sim_stream *stream = (sim_stream *)handle;
    while (stream->count > 0)
        if (!sim_step(sim_of(device), UINT64_MAX))
            return pllm_fail(PLLM_EDEVICE, 0, "a stream waits for an event that cannot come");
    return PLLM_OK;
}

static void sim_stream_close(pllm_device *device, pllm_stream *handle)
{
    sim_device *sim = sim_of(device);
    sim_stream *stream = (sim_stream *)handle;
    if (!stream) return;
    (void)sim_stream_sync(device, handle);
    sim_stream **link = &sim->streams;
    while (*link != stream) link = &(*link)->next;
    *link = stream->next;
    pllm_free(device->context, stream->ring);
    pllm_free(device->context, stream);
}

static int sim_event_open(pllm_device *device, pllm_event **event_out)
{
    *event_out = NULL;
    sim_event *event = pllm_alloc(device->context, sizeof *event);
    if (!event) return pllm_fail_memory("an event", sizeof *event);
    event->references = 1;
    *event_out = (pllm_event *)event;
    return PLLM_OK;
}

static void sim_event_close(pllm_device *device, pllm_event *event)
{
    if (event) sim_event_drop(sim_of(device), (sim_event *)event);
}

static int sim_event_record(pllm_device *device, pllm_event *handle, pllm_stream *stream_handle)
{
    sim_event *event = (sim_event *)handle;
    sim_stream *stream = (sim_stream *)stream_handle;
    if (event->stream != stream && event->done < event->recorded)
        return pllm_fail(PLLM_EBUSY, 0, "the event is still pending on another stream");
    int status = stream_room(sim_of(device), stream, 1);
    if (status < 0) return status;
    event->references++;
    event->stream = stream;
    sim_op op = {.kind = SIM_RECORD, .event = event, .generation = ++event->recorded};
    stream_push(stream, &op);
    sim_settle(sim_of(device));
    return PLLM_OK;
}

static int sim_event_query(pllm_device *device, pllm_event *handle)
{
    sim_event *event = (sim_event *)handle;
    if (event->done < event->recorded) sim_step(sim_of(device), UINT64_MAX);
    return event->done >= event->recorded;
}

static int sim_event_wait(pllm_device *device, pllm_event *handle, uint64_t timeout_ns)
{
    sim_device *sim = sim_of(device);
    sim_event *event = (sim_event *)handle;
    uint64_t deadline_ns;
    if (__builtin_add_overflow(sim->clock_ns, timeout_ns, &deadline_ns)) deadline_ns = UINT64_MAX;
    while (event->done < event->recorded)
        if (!sim_step(sim, deadline_ns)) return PLLM_ETIMEDOUT;
    return PLLM_OK;
}

static int sim_stream_wait(pllm_device *device, pllm_stream *handle, pllm_event *event_handle)
{
    sim_event *event = (sim_event *)event_handle;
    sim_stream *stream = (sim_stream *)handle;
    int status = stream_room(sim_of(device), stream, 1);
    if (status < 0) return status;
    event->references++;
    sim_op op = {.kind = SIM_WAIT, .event = event, .generation = event->recorded};
    stream_push(stream, &op);
    sim_settle(sim_of(device));
    return PLLM_OK;
}

static int sim_stream_call(pllm_device *device, pllm_stream *handle, void (*call)(void *user),
                           void *user)
{
    sim_stream *stream = (sim_stream *)handle;
    int status = stream_room(sim_of(device), stream, 1);
    if (status < 0) return status;
    sim_op op = {.kind = SIM_CALL, .call = call, .user = user};
    stream_push(stream, &op);
    sim_settle(sim_of(device));
    return PLLM_OK;
}

static int sim_copy_batch(pllm_device *device, pllm_stream *handle, pllm_copy_kind kind,
                          const pllm_copy *copies, uint32_t copy_count)
{
    sim_device *sim = sim_of(device);
    sim_stream *stream = (sim_stream *)handle;
    int status = pllm_arena_check_copies(&sim->arena, kind, copies, copy_count);
    if (status == PLLM_OK) status = stream_room(sim, stream, copy_count);
    if (status < 0) return status;
    for (uint32_t i = 0; i < copy_count; i++) {
        if (copies[i].bytes == 0) continue;
        sim_op op = {
            .kind = SIM_COPY, .to = copies[i].to, .from = copies[i].from, .bytes = copies[i].bytes};
        stream_push(stream, &op);
    }
    sim_settle(sim);
    return PLLM_OK;
}

static int sim_copy(pllm_device *device, pllm_stream *stream, pllm_copy_kind kind,
                    const pllm_copy *copy)
{
    return sim_copy_batch(device, stream, kind, copy, 1);
}

static int sim_fill(pllm_device *device, pllm_stream *handle, pllm_va va, uint64_t bytes,
                    uint8_t value)
{
    sim_device *sim = sim_of(device);
    sim_stream *stream = (sim_stream *)handle;
    int status = pllm_arena_check_fill(&sim->arena, va, bytes);
    if (status < 0 || bytes == 0) return status;
    status = stream_room(sim, stream, 1);
    if (status < 0) return status;
    sim_op op = {.kind = SIM_FILL, .value = value, .to = va, .bytes = bytes};
    stream_push(stream, &op);
    sim_settle(sim);
    return PLLM_OK;
}

static const pllm_device_ops sim_ops = {
    .name = "sim",
    .close = sim_close,
    .info = sim_info,
    .reserve = sim_reserve,
    .release = sim_release,
    .chunk_create = sim_chunk_create,
    .chunk_destroy = sim_chunk_destroy,
    .map = sim_map,
    .unmap = sim_unmap,
    .chunk_export = sim_chunk_export,
    .chunk_import = sim_chunk_import,
    .host_alloc = sim_host_alloc,
    .host_free = sim_host_free,
    .host_view = sim_host_view,
    .stream_open = sim_stream_open,
    .stream_close = sim_stream_close,
    .event_open = sim_event_open,
    .event_close = sim_event_close,
    .event_record = sim_event_record,
    .event_query = sim_event_query,
    .event_wait = sim_event_wait,
    .stream_wait = sim_stream_wait,
    .stream_sync = sim_stream_sync,
    .stream_call = sim_stream_call,
    .copy = sim_copy,
    .copy_batch = sim_copy_batch,
    .fill = sim_fill,
    .now_ns = sim_now_ns,
};

int pllm_device_open_sim(const pllm_context *context, const pllm_sim_device_options *options,
                         pllm_device **device_out)
{
    if (!device_out) return pllm_fail(PLLM_EINVAL, 0, "device_out is NULL");
    *device_out = NULL;
    pllm_sim_device_options chosen = {.struct_bytes = sizeof chosen};
    if (options) chosen = *options;
    if (chosen.struct_bytes != sizeof chosen)
        return pllm_fail(PLLM_EINVAL, 0, "pllm_sim_device_options.struct_bytes is %u, not %zu",
                         chosen.struct_bytes, sizeof chosen);
    sim_device *sim = pllm_alloc(context, sizeof *sim);
    if (!sim) return pllm_fail_memory("a simulated device", sizeof *sim);
    sim->base = (pllm_device){&sim_ops, context};
    sim->random = chosen.seed;
    sim->latency_ns_max = chosen.latency_ns_max < UINT64_MAX / 2 ? chosen.latency_ns_max : 0;
    int status = pllm_arena_init(&sim->arena, context, chosen.capacity_bytes,
                                 chosen.granularity_bytes, chosen.chunk_bytes);
    if (status < 0) {
        pllm_free(context, sim);
        return status;
    }
    *device_out = &sim->base;
    return PLLM_OK;
}
