/* cuda_driver.h - the few calls, types and numbers of the CUDA driver that we use, declared by
 * ourselves from its documented binary interface: building needs no CUDA headers, and one program
 * runs with or without a GPU. Private to src/device. tests/cuda/test_cuda_abi.c holds all of this
 * to cuda.h where that is installed.
 *
 * The table is filled through cuGetProcAddress_v2, which takes the version of a call's form that is
 * meant, so a newer driver goes on giving us the form we know. Driver handles (CUcontext, CUstream
 * and so on) are void pointers here; a CUdevice is an int, a CUdeviceptr and the handle of physical
 * memory are 64-bit numbers. Threads: a filled table is constant. */
#ifndef PLLM_DEVICE_CUDA_DRIVER_H
#define PLLM_DEVICE_CUDA_DRIVER_H

#include <stddef.h>
#include <stdint.h>
#include "base/context.h"

/* The oldest driver: the first with cuGetProcAddress_v2 and tensor maps. */
#define CUDA_VERSION_MIN 12000
#define CUDA_VERSION_MIN_WORDS "CUDA 12.0 (driver 525)"
/* Programmatic dependence can be captured into a graph from this version on. */
#define CUDA_VERSION_GRAPH_DEPENDENCE 12030

enum { /* CUresult */
       CUDA_OK = 0,
       CUDA_INVALID_VALUE = 1,
       CUDA_OUT_OF_MEMORY = 2,
       CUDA_STUB_LIBRARY = 34,
       CUDA_DEVICE_UNAVAILABLE = 46,
       CUDA_NO_DEVICE = 100,
       CUDA_INVALID_IMAGE = 200,
       CUDA_NO_BINARY_FOR_GPU = 209,
       CUDA_ECC_UNCORRECTABLE = 214,
       CUDA_NVLINK_UNCORRECTABLE = 220,
       CUDA_UNSUPPORTED_PTX_VERSION = 222,
       CUDA_CONTAINED = 226,
       CUDA_NOT_FOUND = 500,
       CUDA_NOT_READY = 600,
       CUDA_ILLEGAL_ADDRESS = 700,
       CUDA_LAUNCH_TIMEOUT = 702,
       CUDA_CONTEXT_IS_DESTROYED = 709,
       CUDA_ASSERT = 710,
       CUDA_NOT_REGISTERED = 713,
       CUDA_HARDWARE_STACK_ERROR = 714,
       CUDA_ILLEGAL_INSTRUCTION = 715,
       CUDA_MISALIGNED_ADDRESS = 716,
       CUDA_INVALID_ADDRESS_SPACE = 717,
       CUDA_INVALID_PC = 718,
       CUDA_LAUNCH_FAILED = 719,
       CUDA_TENSOR_MEMORY_LEAK = 721,
       CUDA_NOT_PERMITTED = 800,
       CUDA_NOT_SUPPORTED = 801,
       CUDA_SYSTEM_DRIVER_MISMATCH = 803,
       CUDA_UNKNOWN = 999,
};

enum { /* CUdevice_attribute */
       CUDA_ATTRIBUTE_SM_COUNT = 16,
       CUDA_ATTRIBUTE_L2_BYTES = 38,
       CUDA_ATTRIBUTE_MAJOR = 75,
       CUDA_ATTRIBUTE_MINOR = 76,
       CUDA_ATTRIBUTE_SHARED_PER_BLOCK_MAX = 97,
       CUDA_ATTRIBUTE_VIRTUAL_MEMORY = 102,
       CUDA_ATTRIBUTE_FILE_HANDLES = 103,
};

enum { /* flags and kinds, under the names of what they do */
       CUDA_ALLOCATION_PINNED = 1,
       CUDA_LOCATION_DEVICE = 1,
       CUDA_HANDLE_FILE = 1,
       CUDA_ACCESS_READ = 1,
       CUDA_ACCESS_READ_WRITE = 3,
       CUDA_IPC_LAZY_PEER = 1,
       CUDA_GRANULARITY_MINIMUM = 0,
       CUDA_REGISTER_PORTABLE = 1,
       CUDA_REGISTER_DEVICEMAP = 2,
       CUDA_STREAM_NON_BLOCKING = 1,
       CUDA_EVENT_DISABLE_TIMING = 2,
       CUDA_SOURCE_ORDER_STREAM = 1,
       CUDA_CAPTURE_RELAXED = 2,
       CUDA_CAPTURE_NONE = 0,
       CUDA_POOL_RELEASE_THRESHOLD = 4,
       CUDA_POOL_RESERVED = 5,
       CUDA_POOL_RESERVED_PEAK = 6,
       CUDA_FUNCTION_DYNAMIC_SHARED_MAX = 8,
       CUDA_LAUNCH_CLUSTER = 4,
       CUDA_LAUNCH_SERIALIZATION = 6, /* programmatic stream serialization */
       CUDA_MAP_UINT8 = 0,
       CUDA_MAP_UINT16 = 1,
       CUDA_MAP_UINT32 = 2,
       CUDA_MAP_SWIZZLE_NONE = 0,
       CUDA_MAP_SWIZZLE_128B = 3,
       CUDA_MAP_PROMOTE_L2_256B = 3,
};

typedef struct cuda_location {
    int32_t type, id;
} cuda_location;

typedef struct cuda_allocation {
    int32_t type, handle_types;
    cuda_location location;
    void *windows_data;
    uint8_t compression, rdma;
    uint16_t usage;
    uint8_t reserved[4];
} cuda_allocation;

typedef struct cuda_access {
    cuda_location location;
    int32_t flags;
} cuda_access;

typedef struct cuda_ipc_handle { /* passed by value */
    char bytes[64];
} cuda_ipc_handle;

typedef struct cuda_copy_attributes {
    int32_t source_order;
    cuda_location from_hint, to_hint;
    uint32_t flags;
} cuda_copy_attributes;

typedef struct cuda_launch_attribute {
    int32_t id;
    char pad[4];
    union {
        char bytes[64];
        int32_t flag;
        uint32_t cluster[3];
    } value;
} cuda_launch_attribute;

typedef struct cuda_launch {
    uint32_t grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes;
    void *stream;
    cuda_launch_attribute *attributes;
    uint32_t attribute_count;
} cuda_launch;

/* field, name, version of the form, needed (1) or not (0), arguments. All return a CUresult. */
#define CUDA_DRIVER_CALLS(X)                                                                       \
    X(init, "cuInit", 12000, 1, (uint32_t flags))                                                  \
    X(error_name, "cuGetErrorName", 12000, 1, (int code, const char **name))                       \
    X(error_string, "cuGetErrorString", 12000, 1, (int code, const char **text))                   \
    X(device_count, "cuDeviceGetCount", 12000, 1, (int *count))                                    \
    X(device_get, "cuDeviceGet", 12000, 1, (int *device, int ordinal))                             \
    X(device_name, "cuDeviceGetName", 12000, 1, (char *name, int bytes, int device))               \
    X(device_uuid, "cuDeviceGetUuid", 12000, 1, (void *uuid_16_bytes, int device))                 \
    X(device_total, "cuDeviceTotalMem", 12000, 1, (size_t * bytes, int device))                    \
    X(device_attribute, "cuDeviceGetAttribute", 12000, 1, (int *value, int attribute, int device)) \
    X(context_retain, "cuDevicePrimaryCtxRetain", 12000, 1, (void **context, int device))          \
    X(context_release, "cuDevicePrimaryCtxRelease", 12000, 1, (int device))                        \
    X(context_set_current, "cuCtxSetCurrent", 12000, 1, (void *context))                           \
    X(memory_info, "cuMemGetInfo", 12000, 1, (size_t * free_bytes, size_t * total_bytes))          \
    X(granularity, "cuMemGetAllocationGranularity", 12000, 1,                                      \
      (size_t * bytes, const cuda_allocation *allocation, int option))                             \
    X(address_reserve, "cuMemAddressReserve", 12000, 1,                                            \
      (uint64_t * va, size_t bytes, size_t alignment, uint64_t wanted, unsigned long long flags))  \
    X(address_free, "cuMemAddressFree", 12000, 1, (uint64_t va, size_t bytes))                     \
    X(memory_create, "cuMemCreate", 12000, 1,                                                      \
      (unsigned long long *memory, size_t bytes, const cuda_allocation *allocation,                \
       unsigned long long flags))                                                                  \
    X(memory_release, "cuMemRelease", 12000, 1, (unsigned long long memory))                       \
    X(memory_map, "cuMemMap", 12000, 1,                                                            \
      (uint64_t va, size_t bytes, size_t offset, unsigned long long memory,                        \
       unsigned long long flags))                                                                  \
    X(memory_unmap, "cuMemUnmap", 12000, 1, (uint64_t va, size_t bytes))                           \
    X(memory_access, "cuMemSetAccess", 12000, 1,                                                   \
      (uint64_t va, size_t bytes, const cuda_access *access, size_t count))                        \
    X(memory_export, "cuMemExportToShareableHandle", 12000, 1,                                     \
      (void *fd_out, unsigned long long memory, int handle_type, unsigned long long flags))        \
    X(memory_import, "cuMemImportFromShareableHandle", 12000, 1,                                   \
      (unsigned long long *memory, void *fd, int handle_type))                                     \
    X(plain_alloc, "cuMemAlloc", 12000, 1, (uint64_t * va, size_t bytes))                          \
    X(plain_free, "cuMemFree", 12000, 1, (uint64_t va))                                            \
    X(async_alloc, "cuMemAllocAsync", 12000, 0, (uint64_t * va, size_t bytes, void *stream))       \
    X(async_free, "cuMemFreeAsync", 12000, 0, (uint64_t va, void *stream))                         \
    X(async_pool, "cuDeviceGetDefaultMemPool", 12000, 0, (void **pool, int device))                \
    X(async_get, "cuMemPoolGetAttribute", 12000, 0, (void *pool, int attribute, void *value))      \
    X(async_set, "cuMemPoolSetAttribute", 12000, 0, (void *pool, int attribute, void *value))      \
    X(async_trim, "cuMemPoolTrimTo", 12000, 0, (void *pool, size_t keep_bytes))                    \
    X(plain_range, "cuMemGetAddressRange", 12000, 1,                                               \
      (uint64_t * base, size_t * bytes, uint64_t va))                                              \
    X(ipc_get, "cuIpcGetMemHandle", 12000, 1, (cuda_ipc_handle * handle, uint64_t va))             \
    X(ipc_open, "cuIpcOpenMemHandle", 12000, 1,                                                    \
      (uint64_t * va, cuda_ipc_handle handle, uint32_t flags))                                     \
    X(ipc_close, "cuIpcCloseMemHandle", 12000, 1, (uint64_t va))                                   \
    X(host_register, "cuMemHostRegister", 12000, 1, (void *pointer, size_t bytes, uint32_t flags)) \
    X(host_unregister, "cuMemHostUnregister", 12000, 1, (void *pointer))                           \
    X(host_va, "cuMemHostGetDevicePointer", 12000, 1,                                              \
      (uint64_t * va, void *pointer, uint32_t flags))                                              \
    X(stream_create, "cuStreamCreate", 12000, 1, (void **stream, uint32_t flags))                  \
    X(stream_destroy, "cuStreamDestroy", 12000, 1, (void *stream))                                 \
    X(stream_sync, "cuStreamSynchronize", 12000, 1, (void *stream))                                \
    X(stream_wait, "cuStreamWaitEvent", 12000, 1, (void *stream, void *event, uint32_t flags))     \
    X(stream_call, "cuLaunchHostFunc", 12000, 1,                                                   \
      (void *stream, void (*call)(void *user), void *user))                                        \
    X(event_create, "cuEventCreate", 12000, 1, (void **event, uint32_t flags))                     \
    X(event_destroy, "cuEventDestroy", 12000, 1, (void *event))                                    \
    X(event_record, "cuEventRecord", 12000, 1, (void *event, void *stream))                        \
    X(event_query, "cuEventQuery", 12000, 1, (void *event))                                        \
    X(copy_in, "cuMemcpyHtoDAsync", 12000, 1,                                                      \
      (uint64_t to, const void *from, size_t bytes, void *stream))                                 \
    X(copy_out, "cuMemcpyDtoHAsync", 12000, 1,                                                     \
      (void *to, uint64_t from, size_t bytes, void *stream))                                       \
    X(copy_within, "cuMemcpyDtoDAsync", 12000, 1,                                                  \
      (uint64_t to, uint64_t from, size_t bytes, void *stream))                                    \
    X(copy_batch, "cuMemcpyBatchAsync", 12080, 0,                                                  \
      (uint64_t * to, uint64_t * from, size_t * bytes, size_t count,                               \
       cuda_copy_attributes * attributes, size_t * first_of_attribute, size_t attribute_count,     \
       size_t * failed, void *stream))                                                             \
    X(fill, "cuMemsetD8Async", 12000, 1,                                                           \
      (uint64_t va, unsigned char value, size_t bytes, void *stream))                              \
    X(module_load, "cuModuleLoadData", 12000, 1, (void **module, const void *image))               \
    X(module_unload, "cuModuleUnload", 12000, 1, (void *module))                                   \
    X(module_function, "cuModuleGetFunction", 12000, 1,                                            \
      (void **function, void *module, const char *name))                                           \
    X(function_set, "cuFuncSetAttribute", 12000, 1, (void *function, int attribute, int value))    \
    X(cluster_count, "cuOccupancyMaxActiveClusters", 12000, 1,                                     \
      (int *count, void *function, const cuda_launch *launch))                                     \
    X(launch, "cuLaunchKernelEx", 12000, 1,                                                        \
      (const cuda_launch *launch, void *function, void **arguments, void **extra))                 \
    X(capture_begin, "cuStreamBeginCapture", 12000, 1, (void *stream, int mode))                   \
    X(capture_end, "cuStreamEndCapture", 12000, 1, (void *stream, void **graph))                   \
    X(capture_status, "cuStreamIsCapturing", 12000, 1, (void *stream, int *status))                \
    X(graph_make, "cuGraphInstantiateWithFlags", 12000, 1,                                         \
      (void **executable, void *graph, unsigned long long flags))                                  \
    X(graph_upload, "cuGraphUpload", 12000, 1, (void *executable, void *stream))                   \
    X(graph_launch, "cuGraphLaunch", 12000, 1, (void *executable, void *stream))                   \
    X(graph_destroy, "cuGraphDestroy", 12000, 1, (void *graph))                                    \
    X(graph_close, "cuGraphExecDestroy", 12000, 1, (void *executable))                             \
    X(tensor_map, "cuTensorMapEncodeTiled", 12000, 1,                                              \
      (void *map, int type, uint32_t rank, void *base, const uint64_t *sizes,                      \
       const uint64_t *strides, const uint32_t *box, const uint32_t *steps, int interleave,        \
       int swizzle, int promotion, int fill))

typedef struct cuda_driver {
    void *library;
    int version; /* 12040 is CUDA 12.4 */
#define X(field, name, form, needed, arguments) int(*field) arguments;
    CUDA_DRIVER_CALLS(X)
#undef X
} cuda_driver;

/* Which call: for the names in messages. */
enum {
#define X(field, name, form, needed, arguments) CUDA_CALL_##field,
    CUDA_DRIVER_CALLS(X)
#undef X
        CUDA_CALL_COUNT
};
const char *cuda_call_name(uint32_t call); /* "cuMemMap" */

/* Opens the driver library (NULL: libcuda.so.1), fills the table, and starts the driver. The
 * library stays in the process: drivers don't survive being unloaded. Errors: EUNSUPPORTED, with a
 * sentence: none there, too old, it finds no GPU. */
int cuda_driver_open(cuda_driver *driver, const char *library);
void cuda_driver_close(cuda_driver *driver);

/* "CUDA error 700 (CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered)" */
void cuda_error_text(const cuda_driver *driver, int code, char *text, size_t text_bytes);
/* After one of these the driver answers every call on the context with the same. */
int cuda_error_sticks(int code);

/* NVML, the driver's own view of the whole card: optional. */
typedef struct cuda_nvml {
    void *library, *device; /* NULL: not there */
    int (*shutdown)(void);
    int (*memory)(void *device, void *total_free_used);
} cuda_nvml;

/* Opens it for the GPU of that UUID ("GPU-..."). Leaves library NULL where anything is missing. */
void cuda_nvml_open(cuda_nvml *nvml, const char *library, const char *uuid);
void cuda_nvml_close(cuda_nvml *nvml);
/* EUNSUPPORTED where NVML is not there or refuses. */
int cuda_nvml_used(const cuda_nvml *nvml, uint64_t *bytes_out);
/* The driver's own version, "580.65.06"; "" where NVML is not there. */
void cuda_nvml_driver_version(const char *library, char *text, size_t text_bytes);

#endif
