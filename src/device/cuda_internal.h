/* cuda_internal.h - the parts of the CUDA device, private to src/device/cuda_*.c.
 *
 *   cuda_driver.c   finds the driver; its table of calls
 *   cuda_device.c   open, close, errors, what the card is
 *   cuda_memory.c   reservations, chunks, mappings, host memory
 *   cuda_plain.c    plain allocations and their legacy handles for other processes
 *   cuda_async.c    the driver's own pool of stream-ordered allocations
 *   cuda_stream.c   streams, events, copies and fills
 *   cuda_launch.c   modules, launches, graphs, tensor maps
 *
 * Every entry begins with cuda_enter, which refuses a ruined device and makes the context current
 * in the calling thread: other libraries may have put another one there. Driver calls go through
 * CUDA_DO, which turns a CUresult into a status and remembers the first sticky one. */
#ifndef PLLM_DEVICE_CUDA_INTERNAL_H
#define PLLM_DEVICE_CUDA_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include "device/cuda.h"
#include "device/cuda_driver.h"
#include "device/ranges.h"

typedef struct cuda_opened { /* another process's allocation */
    struct cuda_opened *next;
    cuda_ipc_handle handle;
    uint64_t va, bytes;
    uint32_t count; /* of opens not yet closed */
} cuda_opened;

/* Host memory that was pinned in parts from its start on, since it could not be as a whole: one
 * copy may not reach from one part into the next, nor into what follows them and is not pinned. */
typedef struct cuda_parts {
    uint64_t start, bytes, pinned_bytes;
} cuda_parts;

typedef struct cuda_device {
    pllm_device base;
    cuda_driver driver;
    cuda_nvml nvml;
    int ordinal;
    void *context; /* the primary one */
    void *zeroing; /* a stream of our own, for new chunks */
    char name[64], uuid[48];
    pllm_cuda_attributes attributes;
    uint64_t used_before_bytes; /* NVML's figure before the context was made */
    uint64_t granularity_bytes, chunk_bytes, capacity_bytes;
    pthread_mutex_t lock; /* ranges, used_bytes, parts */
    pllm_ranges ranges;
    uint64_t used_bytes;      /* of chunks created here */
    pthread_mutex_t ipc_lock; /* opened; before lock */
    cuda_opened *opened;
    _Atomic uint32_t dead;           /* 0, or the first sticky error: call << 16 | code */
    _Atomic uint32_t exportable;     /* chunks are made so that they can be exported */
    _Atomic uint32_t no_read_only;   /* the driver refused access for reading only */
    _Atomic uint32_t no_batch;       /* this driver refused a batch of copies */
    _Atomic uint32_t unpinned_count; /* host allocations that could not be pinned, all of them */
    cuda_parts *parts;
    uint32_t parts_room;
    _Atomic uint32_t parts_count;
    _Atomic uint32_t unpinned_told;
} cuda_device;

typedef struct cuda_stream {
    pllm_stream *self; /* itself: a faulty stream begins with what it wraps */
    cuda_device *cuda;
    void *handle;
    int borrowed; /* somebody else's: not destroyed */
    int status;   /* of a batch that failed half way; until a sync has reported it */
} cuda_stream;

static inline cuda_device *cuda_of(pllm_device *device)
{
    return (cuda_device *)device;
}

/* PLLM_OK, or EDEVICE for a ruined device. */
int cuda_enter(cuda_device *cuda);
/* Turns a CUresult into a status with its error record; call: CUDA_CALL_*. */
int cuda_check(cuda_device *cuda, uint32_t call, int code);
/* The same where nothing can be returned: one line in the log, none for a ruined device, which may
 * be asked to close things all the same. */
void cuda_note(cuda_device *cuda, uint32_t call, int code);

#define CUDA_DO(cuda, call, ...) \
    cuda_check((cuda), CUDA_CALL_##call, (cuda)->driver.call(__VA_ARGS__))
#define CUDA_NOTE(cuda, call, ...) \
    cuda_note((cuda), CUDA_CALL_##call, (cuda)->driver.call(__VA_ARGS__))

/* The CUDA device that a caller means: itself, or what faulty devices wrap, each of which counts
 * the call and may fail it (what NULL: none counts). stream may be NULL, or is replaced likewise.
 * EINVAL: it is none. */
int cuda_unwrap(pllm_device *device, pllm_stream **stream, const char *what,
                cuda_device **cuda_out);

/* cuda_memory.c */
int cuda_reserve(pllm_device *device, uint64_t bytes, pllm_va *va_out);
void cuda_release(pllm_device *device, pllm_va va, uint64_t bytes);
int cuda_chunk_create(pllm_device *device, uint64_t bytes, pllm_chunk **chunk_out);
void cuda_chunk_destroy(pllm_device *device, pllm_chunk *chunk);
int cuda_map(pllm_device *device, pllm_va va, pllm_chunk *const *chunks, uint32_t chunk_count);
void cuda_unmap(pllm_device *device, pllm_va va, pllm_chunk *chunk);
int cuda_chunk_export(pllm_device *device, pllm_chunk *chunk, uint32_t read_only, int *fd_out);
int cuda_chunk_import(pllm_device *device, int fd, uint64_t bytes, uint32_t read_only,
                      pllm_chunk **chunk_out);
int cuda_host_alloc(pllm_device *device, uint64_t bytes, void **pointer_out);
void cuda_host_free(pllm_device *device, void *pointer, uint64_t bytes);
/* How many bytes from an address of host memory one copy may take, up to `bytes`. */
uint64_t cuda_host_run(cuda_device *cuda, uint64_t address, uint64_t bytes);
cuda_allocation cuda_allocation_of(const cuda_device *cuda);

/* cuda_stream.c */
int cuda_stream_open(pllm_device *device, pllm_stream **stream_out);
void cuda_stream_close(pllm_device *device, pllm_stream *stream);
int cuda_event_open(pllm_device *device, pllm_event **event_out);
void cuda_event_close(pllm_device *device, pllm_event *event);
int cuda_event_record(pllm_device *device, pllm_event *event, pllm_stream *stream);
int cuda_event_query(pllm_device *device, pllm_event *event);
int cuda_event_wait(pllm_device *device, pllm_event *event, uint64_t timeout_ns);
int cuda_stream_wait(pllm_device *device, pllm_stream *stream, pllm_event *event);
int cuda_stream_sync(pllm_device *device, pllm_stream *stream);
int cuda_stream_call(pllm_device *device, pllm_stream *stream, void (*call)(void *user),
                     void *user);
int cuda_copy(pllm_device *device, pllm_stream *stream, pllm_copy_kind kind, const pllm_copy *copy);
int cuda_copy_batch(pllm_device *device, pllm_stream *stream, pllm_copy_kind kind,
                    const pllm_copy *copies, uint32_t copy_count);
int cuda_fill(pllm_device *device, pllm_stream *stream, pllm_va va, uint64_t bytes, uint8_t value);

#endif
