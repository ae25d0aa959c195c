/* linear_format.cuh - one element of a packed row as f32, in any format: the slow, general way. */
#ifndef PLLM_KERNELS_CUDA_LINEAR_FORMAT_CUH
#define PLLM_KERNELS_CUDA_LINEAR_FORMAT_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include "kernels/cuda/linear_format.h"

/* row: the start of the packed row, whose length is k; scale_bytes: pllm_packed_scale_bytes. */
__device__ __forceinline__ float pllm_packed_element(const uint8_t *row, int dtype,
                                                     uint32_t scale_bytes, uint32_t i)
{
    switch (dtype) {
    case PLLM_F32:
        return __ldg((const float *)row + i);
    case PLLM_F16:
        return __half2float(((const __half *)row)[i]);
    case PLLM_BF16:
        return __bfloat162float(((const __nv_bfloat16 *)row)[i]);
    default:
        break;
    }
    uint32_t high, at = pllm_packed_quant(dtype, i, &high);
    uint8_t byte = row[scale_bytes + at];
    if (dtype == PLLM_Q8_0)
        return __half2float(((const __half *)row)[i / 32]) * (float)(int8_t)byte;
    int nibble = high ? byte >> 4 : byte & 15;
    if (dtype == PLLM_Q4_0)
        return __half2float(((const __half *)row)[i / 32]) * (float)((nibble ^ 8) - 8);
    return __half2float(((const __half *)row)[i / 32 * 2]) * (float)nibble +
           __half2float(((const __half *)row)[i / 32 * 2 + 1]);
}

#endif
