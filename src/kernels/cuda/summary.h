/* summary.h - key summaries of sealed blocks on a CUDA device. See kernels/kv_summary.h. */
#ifndef PLLM_KERNELS_CUDA_SUMMARY_H
#define PLLM_KERNELS_CUDA_SUMMARY_H

#include "device/cuda.h"
#include "kernels/kv_summary.h"

typedef struct pllm_cuda_summary pllm_cuda_summary; /* the loaded kernel; read-only once open */

/* Borrows device. EUNSUPPORTED: this build has no CUDA kernels. EDEVICE, ENOMEM. */
int pllm_cuda_summary_open(const pllm_context *context, pllm_device *device,
                           pllm_cuda_summary **summary_out);
void pllm_cuda_summary_close(pllm_cuda_summary *summary); /* NULL is fine */

/* Summarises blocks in the open format, each 32 full rows. pairs: u32 [count][2] in device memory:
 * number in blocks, number in summaries (pllm_kv_summary_bytes each). Enqueues. EINVAL, EDEVICE. */
int pllm_cuda_summarise(pllm_cuda_summary *summary, pllm_stream *stream, const pllm_kv_shape *shape,
                        pllm_va blocks, uint64_t block_bytes, pllm_va pairs, uint32_t count,
                        pllm_va summaries);

#endif
