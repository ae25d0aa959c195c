/* transfer.h - small slices between device memory and mapped host memory, by a kernel of few
 * blocks.
 *
 * DMA takes 2 us a call whatever its size: 37 GB/s at 256 KiB, 6 at 16 KiB. A kernel that reads or
 * writes host memory itself reaches 50 GB/s at any slice size from 4 KiB, and disturbs a kernel
 * beside it by a sixth (DMA: by 7%). So: runs of 1 MiB and more by copy(), slices by this.
 * Errors: EINVAL, EDEVICE. */
#ifndef PLLM_KERNELS_CUDA_TRANSFER_H
#define PLLM_KERNELS_CUDA_TRANSFER_H

#include "device/cuda.h"

typedef struct pllm_cuda_transfer pllm_cuda_transfer; /* the loaded kernel; read-only once open */

/* Borrows device. EUNSUPPORTED: this build has no CUDA kernels. EDEVICE, ENOMEM. */
int pllm_cuda_transfer_open(const pllm_context *context, pllm_device *device,
                            pllm_cuda_transfer **transfer_out);
void pllm_cuda_transfer_close(pllm_cuda_transfer *t); /* NULL is fine */

typedef struct pllm_cuda_slice {
    pllm_va to, from; /* device addresses, or pllm_cuda_host_va's; at 16 bytes */
    uint32_t bytes;   /* a multiple of 16; 0 is nothing */
    uint32_t reserved;
} pllm_cuda_slice;

/* Copies count slices, in no order: none may overlap what another writes. slices: device address of
 * the array, in device or mapped host memory, unchanged until the kernel is done. ctas 0: 4. */
int pllm_cuda_gather(pllm_cuda_transfer *t, pllm_stream *stream, pllm_va slices, uint32_t count,
                     uint32_t ctas);

#endif
