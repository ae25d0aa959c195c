/* host.h - the parts of the host device, private to src/device. */
#ifndef PLLM_DEVICE_HOST_H
#define PLLM_DEVICE_HOST_H

#include "device/arena.h"

/* The simulated link: each direction carries bytes one after another for all streams. */
typedef struct host_link {
    pthread_mutex_t lock;
    double bytes_per_second; /* 0: no link */
    uint64_t latency_ns;
    uint64_t free_ns[2]; /* by direction: when the last byte booked so far has passed */
} host_link;

typedef struct host_device {
    pllm_device base;
    pllm_arena arena;
    host_link link;
} host_device;

uint64_t pllm_host_now_ns(pllm_device *device);

/* host_stream.c: the ordering and movement slots of the table. */
int pllm_host_stream_open(pllm_device *device, pllm_stream **stream_out);
void pllm_host_stream_close(pllm_device *device, pllm_stream *stream);
int pllm_host_event_open(pllm_device *device, pllm_event **event_out);
void pllm_host_event_close(pllm_device *device, pllm_event *event);
int pllm_host_event_record(pllm_device *device, pllm_event *event, pllm_stream *stream);
int pllm_host_event_query(pllm_device *device, pllm_event *event);
int pllm_host_event_wait(pllm_device *device, pllm_event *event, uint64_t timeout_ns);
int pllm_host_stream_wait(pllm_device *device, pllm_stream *stream, pllm_event *event);
int pllm_host_stream_sync(pllm_device *device, pllm_stream *stream);
int pllm_host_stream_call(pllm_device *device, pllm_stream *stream, void (*call)(void *user),
                          void *user);
int pllm_host_copy_batch(pllm_device *device, pllm_stream *stream, pllm_copy_kind kind,
                         const pllm_copy *copies, uint32_t copy_count);
int pllm_host_fill(pllm_device *device, pllm_stream *stream, pllm_va va, uint64_t bytes,
                   uint8_t value);

#endif
