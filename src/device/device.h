/* device.h - the one table that every device fills: memory, ordering, movement.
 *
 * A device is an address space backed by physical chunks. host and cuda are real; faulty wraps
 * either and fails the Nth call; sim is single-threaded, with a virtual clock and a seeded order of
 * completion. One conformance suite holds them all to the words below.
 *
 * Addresses (pllm_va) are integers. On a device whose memory the CPU can read (host, sim) an
 * address converts to a pointer by host_view; elsewhere host_view gives NULL.
 *
 * Threads: memory calls and opens are safe from many threads. A stream or event takes one caller
 * at a time, but for event_record, which may note the position of a stream that another thread is
 * using (not on sim). Work on a stream runs in order; nothing orders two streams but events.
 *
 * Errors: every call that returns int returns a pllm status. ENODEVMEM (no error record is
 * written) where physical memory or a configured capacity has run out; EDEVICE where the device
 * failed, with its own code in native. An asynchronous failure is reported by the wait, sync or
 * query that follows it on the same stream; it sticks to events recorded after it, and to streams
 * that wait for one of those, until a stream_sync has reported it. */
#ifndef PLLM_DEVICE_DEVICE_H
#define PLLM_DEVICE_DEVICE_H

#include <stdint.h>
#include <pagedllm/device.h>
#include "base/context.h"

typedef struct pllm_chunk pllm_chunk; /* physical memory, a whole number of granules */
typedef struct pllm_event pllm_event; /* a point in a stream's past or future */
typedef uint64_t pllm_va;

typedef struct pllm_copy {
    pllm_va to, from; /* device addresses, or pointers into host_alloc memory as integers */
    uint64_t bytes;
} pllm_copy;

typedef enum pllm_copy_kind {
    PLLM_COPY_IN = 0,     /* host memory to device: over the link */
    PLLM_COPY_OUT = 1,    /* device to host memory: over the link */
    PLLM_COPY_WITHIN = 2, /* device to device: not over the link */
} pllm_copy_kind;

typedef struct pllm_device_ops {
    const char *name; /* "host", "cuda", "sim"; faulty answers with what it wraps */
    void (*close)(pllm_device *device); /* everything opened from it is already closed */
    int (*info)(pllm_device *device, pllm_device_info *info_out); /* fills all of it */

    /* Address space. bytes: a multiple of the granularity. Errors: EINVAL, ENOMEM, EDEVICE. */
    int (*reserve)(pllm_device *device, uint64_t bytes, pllm_va *va_out);
    void (*release)(pllm_device *device, pllm_va va, uint64_t bytes); /* nothing mapped in it */

    /* Physical memory. New chunks read as zero bytes. Errors: EINVAL, ENOMEM, ENODEVMEM, EDEVICE.
     */
    int (*chunk_create)(pllm_device *device, uint64_t bytes, pllm_chunk **chunk_out);
    void (*chunk_destroy)(pllm_device *device,
                          pllm_chunk *chunk); /* mapped nowhere; NULL is fine */
    /* Backs [va, va + bytes of all the chunks) with them, one after another: all or none. Readable
     * and writable, but for chunks that were imported for reading. The range lies in one
     * reservation, is aligned to the granularity, and nothing of it is mapped. Many chunks in one
     * call cost less than a call each (CUDA gives access once for the run). None are nothing.
     * Errors: EINVAL, ENOMEM, EDEVICE; then nothing changed. */
    int (*map)(pllm_device *device, pllm_va va, pllm_chunk *const *chunks, uint32_t chunk_count);
    /* Takes the backing of one mapped chunk away; no work that touches it may be in flight.
     * A later touch of the range faults. Cannot fail. */
    void (*unmap)(pllm_device *device, pllm_va va, pllm_chunk *chunk);
    /* A file descriptor that another process (or import here) can map. Caller closes it. It holds
     * the memory, whatever becomes of the chunk. read_only: who has only this descriptor can map it
     * for reading only. The host device sees to that; a GPU's descriptors can't be restricted, so
     * there it is for the importer to keep.
     * Imported chunks are exported too.
     * Errors: EUNSUPPORTED (memory can't be exported here), EDEVICE. */
    int (*chunk_export)(pllm_device *device, pllm_chunk *chunk, uint32_t read_only, int *fd_out);
    /* fd stays the caller's. bytes is what the exporter said, and is checked. read_only: it will be
     * mapped for reading; copies and fills into it are refused (EPERM), and a write that is not one
     * of ours faults.
     * Errors: EINVAL (no exported chunk of that size), EPERM (the descriptor is for reading only),
     * ENOMEM, EDEVICE. */
    int (*chunk_import)(pllm_device *device, int fd, uint64_t bytes, uint32_t read_only,
                        pllm_chunk **chunk_out);

    /* Host memory that copies reach at full speed (pinned, where the device cares); zeroed.
     * Errors: ENOMEM. */
    int (*host_alloc)(pllm_device *device, uint64_t bytes, void **pointer_out);
    void (*host_free)(pllm_device *device, void *pointer, uint64_t bytes);
    void *(*host_view)(pllm_device *device, pllm_va va); /* NULL: the CPU cannot read it */

    /* Ordering. Closing a stream first lets its work finish. */
    int (*stream_open)(pllm_device *device, pllm_stream **stream_out);
    void (*stream_close)(pllm_device *device, pllm_stream *stream); /* NULL is fine */
    int (*event_open)(pllm_device *device, pllm_event **event_out);
    /* Streams may still hold waits for it; NULL is fine. */
    void (*event_close)(pllm_device *device, pllm_event *event);
    /* The event now stands for all work submitted to the stream so far. EBUSY: it is pending on
     * another stream (on the same one it may be recorded again). */
    int (*event_record)(pllm_device *device, pllm_event *event, pllm_stream *stream);
    /* 1: done (or never recorded), 0: not yet, negative: the work failed. */
    int (*event_query)(pllm_device *device, pllm_event *event);
    /* Waits on the CPU at most timeout_ns. OK, ETIMEDOUT, or the work's failure. On sim, waiting is
     * what moves the clock. */
    int (*event_wait)(pllm_device *device, pllm_event *event, uint64_t timeout_ns);
    /* Later work on the stream starts only after the event, as last recorded by now. */
    int (*stream_wait)(pllm_device *device, pllm_stream *stream, pllm_event *event);
    int (*stream_sync)(pllm_device *device, pllm_stream *stream);
    /* Calls call(user) on some thread of the CPU once all work submitted to the stream before has
     * ended; later work of the stream starts after it has returned. It may not call the device, and
     * should be short: on some devices other streams wait for it too. A device that has failed
     * may never call it. Errors: ENOMEM, EDEVICE; then it will not be called. */
    int (*stream_call)(pllm_device *device, pllm_stream *stream, void (*call)(void *user),
                       void *user);

    /* Movement: submits and returns. Ranges may not overlap within a call; zero bytes are nothing.
     * A call that returns an error has submitted nothing. Device sides must be mapped: EINVAL
     * otherwise (a device that cannot tell then reports EDEVICE with the work); and not for reading
     * only where they are written to: EPERM. */
    int (*copy)(pllm_device *device, pllm_stream *stream, pllm_copy_kind kind,
                const pllm_copy *copy);
    int (*copy_batch)(pllm_device *device, pllm_stream *stream, pllm_copy_kind kind,
                      const pllm_copy *copies, uint32_t copy_count);
    int (*fill)(pllm_device *device, pllm_stream *stream, pllm_va va, uint64_t bytes,
                uint8_t value);

    uint64_t (*now_ns)(pllm_device *device); /* monotonic; virtual on sim */
} pllm_device_ops;

struct pllm_device { /* first member of every device */
    const pllm_device_ops *ops;
    const pllm_context *context;
};

/* The host device: an arena of memfd chunks, one worker thread a stream. */
typedef struct pllm_host_device_options {
    uint32_t struct_bytes;
    uint64_t capacity_bytes;      /* of chunks in all; 0, or more than that: what the machine has
                                     free when the device opens */
    uint64_t granularity_bytes;   /* power of two >= 64 KiB; 0: 64 KiB */
    uint64_t chunk_bytes;         /* preferred; 0: 2 MiB */
    double link_bytes_per_second; /* IN and OUT copies take at least bytes / this, each direction
                                     on its own; 0: no simulated link */
    uint64_t link_latency_ns;     /* added to each IN or OUT copy call */
} pllm_host_device_options;
int pllm_device_open_host(const pllm_context *context, const pllm_host_device_options *options,
                          pllm_device **device_out);

/* sim: nothing happens until something waits or polls (event_query and event_wait advance the
 * clock to the next completion, chosen by the seed). Copies really move bytes, at completion. */
typedef struct pllm_sim_device_options {
    uint32_t struct_bytes;
    uint64_t seed, capacity_bytes, granularity_bytes, chunk_bytes;
    uint64_t latency_ns_max; /* each copy or fill takes a seeded time from 1 to 1 + this */
} pllm_sim_device_options;
int pllm_device_open_sim(const pllm_context *context, const pllm_sim_device_options *options,
                         pllm_device **device_out);

/* faulty: passes calls to inner (borrowed) and fails call number fail_at (0-based, counted over
 * every fallible call) once, or every call from it on when persistent. Asynchronous failures: a
 * failed copy may also be submitted and reported by its event when fail_async is set. */
typedef struct pllm_faulty_device_options {
    uint32_t struct_bytes;
    uint64_t fail_at; /* UINT64_MAX: never */
    uint32_t persistent, fail_async;
} pllm_faulty_device_options;
int pllm_device_open_faulty(const pllm_context *context, pllm_device *inner,
                            const pllm_faulty_device_options *options, pllm_device **device_out);
uint64_t pllm_faulty_device_calls(const pllm_device *device); /* fallible calls seen */
int64_t pllm_faulty_device_live(const pllm_device *device);   /* opened minus closed, all kinds */
typedef enum pllm_faulty_kind {
    PLLM_FAULTY_RESERVATION = 0,
    PLLM_FAULTY_CHUNK,
    PLLM_FAULTY_MAPPING,
    PLLM_FAULTY_HOST,
    PLLM_FAULTY_STREAM,
    PLLM_FAULTY_EVENT,
    PLLM_FAULTY_KINDS,
} pllm_faulty_kind;
int64_t pllm_faulty_device_live_of(const pllm_device *device, pllm_faulty_kind kind);
/* Counts calls from 0 again and fails number fail_at of them. */
void pllm_faulty_device_arm(pllm_device *device, uint64_t fail_at);

/* For calls that a device has beside the table (cuda.h). inner: NULL if the device is not a faulty
 * one. stream_inner: a device with such calls lets its streams begin with a pointer to themselves,
 * so that it may be called for any stream. pass counts one more fallible call of a faulty device,
 * and fails it if its turn has come. */
pllm_device *pllm_faulty_device_inner(pllm_device *device);
pllm_stream *pllm_faulty_stream_inner(pllm_stream *stream);
int pllm_faulty_device_pass(pllm_device *device, const char *what);
/* Wraps a stream that such a call has opened on the inner device. Errors: ENOMEM. */
int pllm_faulty_stream_adopt(pllm_device *device, pllm_stream *inner, pllm_stream **stream_out);

#endif
