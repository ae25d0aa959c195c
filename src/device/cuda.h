/* cuda.h - the CUDA device behind device.h, and what layers above need beside that table: modules,
 * launches, graphs, tensor maps, the card's own figures.
 *
 * A pllm_va of this device is a CUdeviceptr. host_view gives NULL: the CPU reads by copies. Where a
 * call takes a device, a faulty device that wraps a CUDA one is fine too, with its streams;
 * launches and the like then count as calls that it may fail.
 *
 * Errors: EINVAL (also: not a CUDA device), ENOMEM, ENODEVMEM bare, EDEVICE with the CUresult in
 * native. A kernel that faults ruins the whole context (a sticky error): the call that meets it
 * says so and is logged, every later call of the device says EDEVICE and names that call. The
 * process can go on, but without this device; closing works.
 *
 * Threads: as device.h; modules and functions may be used from many threads. */
#ifndef PLLM_DEVICE_CUDA_H
#define PLLM_DEVICE_CUDA_H

#include "device/device.h"

typedef struct pllm_cuda_device_options {
    uint32_t struct_bytes;
    uint32_t index;          /* as the driver counts, after CUDA_VISIBLE_DEVICES */
    const char *uuid;        /* NULL: by index. "GPU-..." or its beginning */
    uint64_t capacity_bytes; /* of chunks in all; 0: the card's memory */
    const char *library;     /* the driver; NULL: libcuda.so.1 */
    const char *nvml;        /* NULL: libnvidia-ml.so.1 */
} pllm_cuda_device_options;

/* options may be NULL. Retains the device's primary context, which libraries share.
 * Errors: EUNSUPPORTED with a sentence (no driver, too old, no such GPU, no virtual memory),
 * EDEVICE, ENOMEM, EINVAL. */
int pllm_device_open_cuda(const pllm_context *context, const pllm_cuda_device_options *options,
                          pllm_device **device_out);

/* Is it a CUDA device (or a faulty one around it)? */
int pllm_cuda_is(pllm_device *device);

/* What GPUs there are, without making a context. options: library and nvml matter; may be NULL.
 * Fills up to listing_max; *count_out is how many there are. Errors: as open. */
typedef struct pllm_cuda_listing {
    char name[64], uuid[48];
    char driver[32];                 /* "580.65.06"; "" if NVML does not tell */
    uint32_t cuda_major, cuda_minor; /* what the driver supports */
    uint32_t major, minor, sm_count;
    uint64_t total_bytes;
} pllm_cuda_listing;
int pllm_cuda_list(const pllm_cuda_device_options *options, pllm_cuda_listing *listings,
                   uint32_t listing_max, uint32_t *count_out);

typedef struct pllm_cuda_attributes {
    uint32_t struct_bytes, major, minor, sm_count, shared_per_block_max, l2_bytes;
    uint64_t total_bytes;
} pllm_cuda_attributes;
int pllm_cuda_attributes_get(pllm_device *device, pllm_cuda_attributes *out);

/* The whole card's memory in use, as NVML counts it: just before this device made its context, and
 * now. Errors: EUNSUPPORTED without NVML. */
int pllm_cuda_memory_used(pllm_device *device, uint64_t *before_bytes, uint64_t *now_bytes);

/* Kernels. The image is read during the call only. Errors: EUNSUPPORTED: no code in it for this GPU
 * or driver. */
typedef struct pllm_cuda_module pllm_cuda_module;
typedef struct pllm_cuda_function pllm_cuda_function; /* belongs to its module */
int pllm_cuda_module_open(pllm_device *device, const void *fatbin, uint64_t bytes,
                          pllm_cuda_module **module_out);
void pllm_cuda_module_close(pllm_cuda_module *module); /* nothing of it may run; NULL is fine */
/* dynamic_shared_bytes: the most a launch will ask for; above 48 KiB the kernel's limit is raised.
 * Errors: ENOTFOUND (no such kernel), EUNSUPPORTED (more than the GPU has). */
int pllm_cuda_function_get(pllm_cuda_module *module, const char *name,
                           uint32_t dynamic_shared_bytes, pllm_cuda_function **function_out);

typedef struct pllm_cuda_grid {
    uint32_t x, y, z, threads, shared_bytes;
    uint32_t dependent; /* 1: may start before the kernel in front of it has ended; it says when it
                           needs that one's results (griddepcontrol.wait). Where the GPU or driver
                           cannot, it is an ordinary launch. */
    uint32_t cluster; /* blocks of a cluster along x, at most 8, x being a multiple of it (sm_90 and
                         later); 0 or 1: none */
} pllm_cuda_grid;
/* How many clusters of such a launch can run at the same time (sm_90 and later); 0: none. */
int pllm_cuda_clusters_at_once(pllm_device *device, pllm_cuda_function *function,
                               const pllm_cuda_grid *grid, uint32_t *count_out);
/* arguments: one pointer a kernel parameter; read during the call. */
int pllm_cuda_launch(pllm_device *device, pllm_stream *stream, pllm_cuda_function *function,
                     const pllm_cuda_grid *grid, void **arguments);

/* For libraries: the CUstream, and the context made current in this thread (every call of the
 * device does that for itself). */
void *pllm_cuda_stream_handle(pllm_stream *stream);
int pllm_cuda_make_current(pllm_device *device);

/* A CUstream of this process (PyTorch's current one; 1 is the legacy default stream) as a stream of
 * the device: used, never destroyed; closing waits for its work. Errors: EINVAL, ENOMEM. */
int pllm_cuda_stream_wrap(pllm_device *device, void *handle, pllm_stream **stream_out);

/* Plain allocations: what programs that know nothing of virtual memory management can share, by
 * legacy IPC handles. The driver makes a handle for a *whole allocation* and resolves it to that
 * allocation's first byte, whatever address inside it was meant. So what callers exchange is a
 * handle and an offset; and who gets a handle can reach all of the allocation.
 *
 * bytes: rounded up to the device's granularity. The memory counts in capacity_bytes, and holds
 * what others left there. It can be copied and filled as mapped memory. Errors: EINVAL, ENOMEM,
 * ENODEVMEM (bare), EDEVICE. */
int pllm_cuda_plain_alloc(pllm_device *device, uint64_t bytes, pllm_va *va_out);
/* No work that touches it may be in flight. Other processes must have closed it: the driver leaves
 * undefined what they see afterwards. */
void pllm_cuda_plain_free(pllm_device *device, pllm_va va); /* 0 is fine */

/* The driver's own stream-ordered allocator (cuMemAllocAsync on the device's default pool), for
 * comparison: what it gives counts in no capacity_bytes, and copies and fills refuse it. hold lets
 * the pool keep all that is freed, and gives back what is free now; peak_out of reserved counts
 * from there on. Errors: EUNSUPPORTED (not in this driver), ENODEVMEM, EDEVICE. */
int pllm_cuda_async_hold(pllm_device *device);
int pllm_cuda_async_alloc(pllm_device *device, pllm_stream *stream, uint64_t bytes,
                          pllm_va *va_out);
int pllm_cuda_async_free(pllm_device *device, pllm_stream *stream, pllm_va va);
int pllm_cuda_async_reserved(pllm_device *device, uint64_t *now_out, uint64_t *peak_out);

enum { PLLM_CUDA_IPC_BYTES = 64 };
/* handle: of the allocation that va lies in (a plain one of any library in this process);
 * *offset_out, unless NULL: where in it va lies. Errors: EINVAL (no such memory), EUNSUPPORTED
 * (some containers forbid it), EDEVICE. */
int pllm_cuda_ipc_export(pllm_device *device, pllm_va va, uint8_t handle[PLLM_CUDA_IPC_BYTES],
                         uint64_t *offset_out);
/* Another process's allocation: its first byte, and unless NULL its size. Opened again, it is at
 * the same place, and must be closed as often. Errors: EINVAL (not such a handle, its memory is
 * gone, or it is this process's own), ENOMEM, EDEVICE. */
int pllm_cuda_ipc_open(pllm_device *device, const uint8_t handle[PLLM_CUDA_IPC_BYTES],
                       pllm_va *va_out, uint64_t *bytes_out);
void pllm_cuda_ipc_close(pllm_device *device, pllm_va va); /* what open gave; 0 is fine */

/* Where kernels find memory of host_alloc: any address inside it. 0: they can't (not pinned, or in
 * parts). */
pllm_va pllm_cuda_host_va(pllm_device *device, const void *pointer);

/* Graphs. Between begin and end, what is submitted to the stream (launches, copies, fills, events
 * that lead to other streams and back) is noted instead of run. end gives the executable graph, or
 * an error; the stream runs as before in either case. */
typedef struct pllm_cuda_graph pllm_cuda_graph;
int pllm_cuda_capture_begin(pllm_device *device, pllm_stream *stream);
int pllm_cuda_capture_end(pllm_device *device, pllm_stream *stream, pllm_cuda_graph **graph_out);
int pllm_cuda_graph_launch(pllm_device *device, pllm_cuda_graph *graph, pllm_stream *stream);
void pllm_cuda_graph_close(pllm_cuda_graph *graph); /* it may not be running; NULL is fine */

/* A descriptor for the tensor memory accelerator (sm_90 and later), 64-byte aligned, to be passed
 * to kernels as a __grid_constant__ parameter. rows x columns elements of 1, 2 or 4 bytes,
 * row_bytes apart (multiple of 16, as is base); boxes of box_rows x box_columns, each at most 256;
 * beyond the edges zeros are read. swizzle_128b: then a box row is at most 128 bytes. */
int pllm_cuda_tensor_map_2d(pllm_device *device, void *map_128_bytes, pllm_va base,
                            uint32_t element_bytes, uint64_t rows, uint64_t columns,
                            uint64_t row_bytes, uint32_t box_rows, uint32_t box_columns,
                            uint32_t swizzle_128b);

#endif
