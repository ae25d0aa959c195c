/* fatbin.h - the CUDA kernels that this build contains, by the name of their file.
 *
 * A fat binary holds one file's kernels for several kinds of GPU; the driver picks the one that
 * fits (device/cuda.h: pllm_cuda_module_open). It is read-only data of the program, so nothing is
 * loaded from disk at run time. Threads: constant. */
#ifndef PLLM_KERNELS_CUDA_FATBIN_H
#define PLLM_KERNELS_CUDA_FATBIN_H

#include <stddef.h>
#include <stdint.h>
#include "device/cuda.h"

typedef struct pllm_fatbin {
    const char *name; /* of src/kernels/cuda/<name>.cu */
    const void *data; /* aligned to 64 bytes */
    uint64_t bytes;
} pllm_fatbin;

/* NULL: this build has no such kernels (without nvcc it has none at all). */
const pllm_fatbin *pllm_fatbin_find(const char *name);
/* Its kernels, loaded. Errors: EUNSUPPORTED with a sentence (not in this build), and those of
 * pllm_cuda_module_open; then *module_out is NULL. */
int pllm_fatbin_load(pllm_device *device, const char *name, pllm_cuda_module **module_out);

/* The generated table (cmake/cuda.cmake), ended by NULL. */
extern const pllm_fatbin *const pllm_fatbins[];

#endif
