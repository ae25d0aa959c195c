/* fake_cuda.h - a CUDA driver and NVML in host memory, as one shared library: the CUDA device's own
 * code runs on it without a GPU, under sanitizers, and meets the failures that a test asks for.
 *
 * Physical memory is System V segments, which another process on the same driver can attach too (by
 * exported descriptors and by IPC handles), address space is PROT_NONE mappings, streams run their
 * work when it is submitted; or, with `deferred`, as late as they may: when somebody synchronises,
 * or asks for an event, one step a question. What was unmapped, freed or overwritten too early then
 * shows. Kernels are not run: a launch is only counted,
 * and told to `kernel` if that is set, which may do what the kernel would: device memory is there
 * to be touched (not with `deferred`). What a driver leaves open is answered the unfriendly way:
 * new memory holds garbage, and a range can't be touched before access to it was set.
 *
 * PLLM_TEST_LAUNCHES in the environment names a file: at the process's end a line is added to it
 * for every kernel that was looked up, "NAME LAUNCHES THREADS", the latter two summed over its
 * launches.
 *
 * A test opens the library as the device does (dlopen gives the same copy) and changes the state
 * between calls. fail_call fails every call of that name, or all of them if NULL, from number
 * fail_at on, fail_count times. A sticky code then stays, as on the real thing. */
#ifndef PLLM_TESTS_FAKE_CUDA_H
#define PLLM_TESTS_FAKE_CUDA_H

#include <dlfcn.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef struct fake_cuda {
    int version;         /* of the driver: 13000 */
    const char *missing; /* a call that it does not have */
    int device_count;    /* up to 4 */
    int deferred;        /* set while no stream is open */
    int no_virtual_memory, no_export, no_pin, no_read_only, nvml_broken;
    uint64_t pin_max, pin_once_max; /* bytes that may be pinned, in all and by one call; 0: any */
    const char *fail_call;
    uint64_t fail_at, fail_count;
    int fail_code;
    _Atomic uint64_t calls; /* that could have failed, of fail_call */
    _Atomic int dead;       /* the sticky code met */
    _Atomic int64_t live;   /* of everything that is opened and closed */
    _Atomic uint64_t launches, batches, syncs, accesses;
    _Atomic uint64_t created_bytes;
    uint64_t graph_cost; /* bytes of the card that each executable graph takes; set while none is */
    _Atomic uint64_t graphs, graphs_made;
    void (*kernel)(const char *name, uint32_t grid_x, uint32_t grid_y, void **arguments);
} fake_cuda;

/* The library's symbol "fake_cuda_state". */
typedef fake_cuda *(*fake_cuda_get)(void);

/* The state that the device under test will meet, too; NULL, said on stderr: no such library. */
static inline fake_cuda *fake_cuda_load(const char *path)
{
    void *library = dlopen(path, RTLD_NOW), *symbol = NULL;
    if (library) symbol = dlsym(library, "fake_cuda_state");
    if (!symbol) {
        fprintf(stderr, "%s\n", dlerror());
        return NULL;
    }
    fake_cuda_get get;
    memcpy(&get, &symbol, sizeof get);
    return get();
}

/* For tests that open many engines on the driver: cuBLASLt, where the machine has one, is loaded
 * once and stays. Each engine would load and unload its hundreds of megabytes, which takes longer
 * than the rest of opening it. */
static inline void fake_cuda_keep_blas(void)
{
    if (!dlopen("libcublasLt.so.13", RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE))
        (void)dlopen("libcublasLt.so.12", RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
}

#endif
