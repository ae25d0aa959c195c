/* memory_copy.c - see the header. */
#include "pager/memory_copy.h"
#include <string.h>

#define HALF_BYTES ((uint64_t)1 << 20) /* large enough for the link's full speed, nearly */

int pllm_memory_copier_open(memory_copier *copier, pllm_device *device)
{
    void *staging;
    if (copier->device) return PLLM_OK;
    const pllm_device_ops *ops = device->ops;
    int status = ops->stream_open(device, &copier->stream);
    if (status < 0) return status;
    status = ops->event_open(device, &copier->events[0]);
    if (status < 0) goto fail_stream;
    status = ops->event_open(device, &copier->events[1]);
    if (status < 0) goto fail_event;
    status = ops->host_alloc(device, 2 * HALF_BYTES, &staging);
    if (status < 0) goto fail_events;
    copier->staging = staging;
    copier->device = device;
    return PLLM_OK;
fail_events:
    ops->event_close(device, copier->events[1]);
fail_event:
    ops->event_close(device, copier->events[0]);
fail_stream:
    ops->stream_close(device, copier->stream);
    memset(copier, 0, sizeof *copier);
    return status;
}

void pllm_memory_copier_close(memory_copier *copier)
{
    if (!copier->device) return;
    const pllm_device_ops *ops = copier->device->ops;
    ops->stream_close(copier->device, copier->stream);
    ops->event_close(copier->device, copier->events[0]);
    ops->event_close(copier->device, copier->events[1]);
    ops->host_free(copier->device, copier->staging, 2 * HALF_BYTES);
    memset(copier, 0, sizeof *copier);
}

/* Part number n of a range: where it begins, and its length; 0 past the end. */
static uint64_t part_of(uint64_t bytes, uint64_t n)
{
    uint64_t at = n * HALF_BYTES;
    if (at >= bytes) return 0;
    return bytes - at < HALF_BYTES ? bytes - at : HALF_BYTES;
}

static char *half(const memory_copier *copier, uint64_t n)
{
    return copier->staging + n % 2 * HALF_BYTES;
}

static int submit(memory_copier *copier, pllm_copy_kind kind, const pllm_copy *copy, uint64_t n)
{
    const pllm_device_ops *ops = copier->device->ops;
    int status = ops->copy(copier->device, copier->stream, kind, copy);
    if (status < 0) return status;
    return ops->event_record(copier->device, copier->events[n % 2], copier->stream);
}

static int await(memory_copier *copier, uint64_t n)
{
    return copier->device->ops->event_wait(copier->device, copier->events[n % 2], UINT64_MAX);
}

/* Whatever happened, nothing moves when this returns; the first failure is the call's. */
static int settle(memory_copier *copier, int status)
{
    int synced = copier->device->ops->stream_sync(copier->device, copier->stream);
    return status < 0 ? status : synced;
}

int pllm_memory_copy_in(memory_copier *copier, pllm_va to, const void *from, uint64_t bytes)
{
    int status = PLLM_OK;
    uint64_t part;
    for (uint64_t n = 0; status == PLLM_OK && (part = part_of(bytes, n)) > 0; n++) {
        /* The copy before last, out of this half; before this call nothing moved, and an event may
         * still tell of a failure. */
        if (n >= 2) status = await(copier, n);
        if (status < 0) break;
        memcpy(half(copier, n), (const char *)from + n * HALF_BYTES, part);
        const pllm_copy copy = {to + n * HALF_BYTES, (pllm_va)(uintptr_t)half(copier, n), part};
        status = submit(copier, PLLM_COPY_IN, &copy, n);
    }
    return settle(copier, status);
}

static int fetch(memory_copier *copier, pllm_va from, uint64_t bytes, uint64_t n)
{
    uint64_t part = part_of(bytes, n);
    if (part == 0) return PLLM_OK;
    const pllm_copy copy = {(pllm_va)(uintptr_t)half(copier, n), from + n * HALF_BYTES, part};
    return submit(copier, PLLM_COPY_OUT, &copy, n);
}

int pllm_memory_copy_out(memory_copier *copier, void *to, pllm_va from, uint64_t bytes)
{
    uint64_t part;
    int status = fetch(copier, from, bytes, 0);
    for (uint64_t n = 0; status == PLLM_OK && (part = part_of(bytes, n)) > 0; n++) {
        status = fetch(copier, from, bytes, n + 1); /* while this one is taken out */
        if (status == PLLM_OK) status = await(copier, n);
        if (status == PLLM_OK) memcpy((char *)to + n * HALF_BYTES, half(copier, n), part);
    }
    return settle(copier, status);
}

int pllm_memory_copy_zero(memory_copier *copier, pllm_va to, uint64_t bytes)
{
    return settle(copier, copier->device->ops->fill(copier->device, copier->stream, to, bytes, 0));
}
