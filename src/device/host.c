/* host.c - the host device: its table, its options and its memory slots.
 *
 * A device in its own right, not a stand-in: an arena behind reserve, map and unmap (arena.c),
 * streams that run beside the caller (host_stream.c), chunks that other processes can map. */
#include <stdio.h>
#include <string.h>
#include <time.h>
#include "device/host.h"

static host_device *host_of(pllm_device *device)
{
    return (host_device *)device;
}

static void host_close(pllm_device *device)
{
    host_device *host = host_of(device);
    pthread_mutex_destroy(&host->link.lock);
    pllm_arena_deinit(&host->arena);
    pllm_free(device->context, host);
}

static int host_info(pllm_device *device, pllm_device_info *info_out)
{
    host_device *host = host_of(device);
    memset(info_out, 0, sizeof *info_out);
    info_out->struct_bytes = sizeof *info_out;
    pllm_machine_name(info_out->name, sizeof info_out->name);
    pllm_machine_uuid(info_out->uuid, sizeof info_out->uuid);
    info_out->total_bytes = host->arena.capacity_bytes;
    info_out->free_bytes = pllm_arena_free_bytes(&host->arena);
    info_out->granularity_bytes = host->arena.granularity_bytes;
    info_out->chunk_bytes = host->arena.chunk_bytes;
    info_out->link_bytes_per_second = host->link.bytes_per_second;
    info_out->cpu_copies = host->link.bytes_per_second == 0 && host->link.latency_ns == 0;
    return PLLM_OK;
}

static int host_reserve(pllm_device *device, uint64_t bytes, pllm_va *va_out)
{
    return pllm_arena_reserve(&host_of(device)->arena, bytes, va_out);
}

static void host_release(pllm_device *device, pllm_va va, uint64_t bytes)
{
    pllm_arena_release(&host_of(device)->arena, va, bytes);
}

static int host_chunk_create(pllm_device *device, uint64_t bytes, pllm_chunk **chunk_out)
{
    return pllm_arena_chunk_create(&host_of(device)->arena, bytes, chunk_out);
}

static void host_chunk_destroy(pllm_device *device, pllm_chunk *chunk)
{
    pllm_arena_chunk_destroy(&host_of(device)->arena, chunk);
}

static int host_map(pllm_device *device, pllm_va va, pllm_chunk *const *chunks,
                    uint32_t chunk_count)
{
    return pllm_arena_map(&host_of(device)->arena, va, chunks, chunk_count);
}

static void host_unmap(pllm_device *device, pllm_va va, pllm_chunk *chunk)
{
    pllm_arena_unmap(&host_of(device)->arena, va, chunk);
}

static int host_chunk_export(pllm_device *device, pllm_chunk *chunk, uint32_t read_only,
                             int *fd_out)
{
    return pllm_arena_chunk_export(&host_of(device)->arena, chunk, read_only, fd_out);
}

static int host_chunk_import(pllm_device *device, int fd, uint64_t bytes, uint32_t read_only,
                             pllm_chunk **chunk_out)
{
    return pllm_arena_chunk_import(&host_of(device)->arena, fd, bytes, read_only, chunk_out);
}

static int host_host_alloc(pllm_device *device, uint64_t bytes, void **pointer_out)
{
    (void)device;
    return pllm_arena_host_alloc(bytes, pointer_out);
}

static void host_host_free(pllm_device *device, void *pointer, uint64_t bytes)
{
    (void)device;
    pllm_arena_host_free(pointer, bytes);
}

static void *host_host_view(pllm_device *device, pllm_va va)
{
    (void)device;
    return (void *)(uintptr_t)va;
}

static int host_copy(pllm_device *device, pllm_stream *stream, pllm_copy_kind kind,
                     const pllm_copy *copy)
{
    return pllm_host_copy_batch(device, stream, kind, copy, 1);
}

uint64_t pllm_host_now_ns(pllm_device *device)
{
    (void)device;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static const pllm_device_ops host_ops = {
    .name = "host",
    .close = host_close,
    .info = host_info,
    .reserve = host_reserve,
    .release = host_release,
    .chunk_create = host_chunk_create,
    .chunk_destroy = host_chunk_destroy,
    .map = host_map,
    .unmap = host_unmap,
    .chunk_export = host_chunk_export,
    .chunk_import = host_chunk_import,
    .host_alloc = host_host_alloc,
    .host_free = host_host_free,
    .host_view = host_host_view,
    .stream_open = pllm_host_stream_open,
    .stream_close = pllm_host_stream_close,
    .event_open = pllm_host_event_open,
    .event_close = pllm_host_event_close,
    .event_record = pllm_host_event_record,
    .event_query = pllm_host_event_query,
    .event_wait = pllm_host_event_wait,
    .stream_wait = pllm_host_stream_wait,
    .stream_sync = pllm_host_stream_sync,
    .stream_call = pllm_host_stream_call,
    .copy = host_copy,
    .copy_batch = pllm_host_copy_batch,
    .fill = pllm_host_fill,
    .now_ns = pllm_host_now_ns,
};

int pllm_device_open_host(const pllm_context *context, const pllm_host_device_options *options,
                          pllm_device **device_out)
{
    if (!device_out) return pllm_fail(PLLM_EINVAL, 0, "device_out is NULL");
    *device_out = NULL;
    pllm_host_device_options chosen = {.struct_bytes = sizeof chosen};
    if (options) chosen = *options;
    if (chosen.struct_bytes != sizeof chosen)
        return pllm_fail(PLLM_EINVAL, 0, "pllm_host_device_options.struct_bytes is %u, not %zu",
                         chosen.struct_bytes, sizeof chosen);
    /* Below a byte a second a copy would take years, and NaN compares false. */
    if (chosen.link_bytes_per_second != 0 && !(chosen.link_bytes_per_second >= 1))
        return pllm_fail(PLLM_EINVAL, 0, "a link of %g bytes per second",
                         chosen.link_bytes_per_second);
    host_device *host = pllm_alloc(context, sizeof *host);
    if (!host) return pllm_fail_memory("a host device", sizeof *host);
    host->base = (pllm_device){&host_ops, context};
    int status = pllm_arena_init(&host->arena, context, chosen.capacity_bytes,
                                 chosen.granularity_bytes, chosen.chunk_bytes);
    if (status < 0) goto fail_host;
    host->link.bytes_per_second = chosen.link_bytes_per_second;
    host->link.latency_ns = chosen.link_latency_ns;
    int code = pthread_mutex_init(&host->link.lock, NULL);
    if (code) {
        status = pllm_fail(PLLM_ENOMEM, code, "could not make a lock for the link");
        goto fail_arena;
    }
    *device_out = &host->base;
    return PLLM_OK;
fail_arena:
    pllm_arena_deinit(&host->arena);
fail_host:
    pllm_free(context, host);
    return status;
}
