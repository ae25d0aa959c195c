/* device.h - a device to put memory on, and streams that order work there.
 *
 * "host" is the processor with memory files as its chunks; "cuda" an NVIDIA GPU by the driver API.
 * Pools (vmm.h, pool.h) and named tensors (tensor_store.h) take a device and streams of it.
 *
 *     pllm_device_open(context, "cuda:0", &device);
 *     pllm_stream_open(device, NULL, &stream);
 *     pllm_device_write(device, stream, address, sizeof values, values);
 *
 * Addresses are integers. On the host device an address is a pointer; on a GPU a CUdeviceptr.
 * Threads: devices are safe from many threads; a stream takes one caller at a time. Handles are
 * invalid after fork(). */
#ifndef PAGEDLLM_DEVICE_H
#define PAGEDLLM_DEVICE_H

#include "context.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct pllm_device pllm_device; /* opaque */
typedef struct pllm_stream pllm_stream; /* opaque: a queue of work, run in order */

typedef struct pllm_device_info {
    uint32_t struct_bytes; /* sizeof(pllm_device_info) */
    char name[64], uuid[48];
    uint64_t total_bytes, free_bytes; /* physical memory this device can still give is free_bytes */
    uint64_t granularity_bytes;       /* of reservations, chunks and mappings; a power of two */
    uint64_t chunk_bytes;             /* what the device likes best for chunks */
    double link_bytes_per_second;     /* simulated link; 0: none, copies run at memory speed */
    uint32_t cpu_copies;              /* 1: a copy is a memcpy between views, and no more */
} pllm_device_info;

/* name: "host" (NULL), "cuda", "cuda:1", "cuda:GPU-<uuid or its beginning>".
 * Ownership: borrows context (may be NULL); caller owns *device_out. Errors: EINVAL (no such name),
 * EUNSUPPORTED (no driver or GPU, with a sentence), EDEVICE, ENOMEM; then *device_out is NULL. */
PLLM_API int pllm_device_open(const pllm_context *context, const char *name,
                              pllm_device **device_out);
/* Everything opened from it, or with it, is closed already. NULL is fine. */
PLLM_API void pllm_device_close(pllm_device *device);
/* Errors: EINVAL (info->struct_bytes is another), EDEVICE. */
PLLM_API int pllm_device_info_get(pllm_device *device, pllm_device_info *info);

/* native: NULL opens a stream of its own. On a GPU it may be a CUstream of this process (PyTorch's
 * current one, or CU_STREAM_LEGACY), which is used and never destroyed.
 * Errors: EINVAL (native on a device that has none), ENOMEM, EDEVICE; then *stream_out is NULL. */
PLLM_API int pllm_stream_open(pllm_device *device, void *native, pllm_stream **stream_out);
/* Waits for the stream's work first. NULL is fine. */
PLLM_API void pllm_stream_close(pllm_device *device, pllm_stream *stream);
/* Waits until everything submitted to the stream is done. Errors: EDEVICE: some of it failed. */
PLLM_API int pllm_stream_sync(pllm_device *device, pllm_stream *stream);

/* Copies between mapped memory of the device and the program's, after all earlier work of the
 * stream, and waits until it is done. Errors: EINVAL (not all mapped), EPERM (written to where it
 * is mapped for reading), ENOMEM, EDEVICE. */
PLLM_API int pllm_device_read(pllm_device *device, pllm_stream *stream, uint64_t address,
                              uint64_t bytes, void *pointer);
PLLM_API int pllm_device_write(pllm_device *device, pllm_stream *stream, uint64_t address,
                               uint64_t bytes, const void *pointer);

#ifdef __cplusplus
}
#endif
#endif
