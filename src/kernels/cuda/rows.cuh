/* rows.cuh - what the row kernels share: loads and stores of eight elements, and the order of a sum.
 *
 * A format is a run-time argument (the numbers of kernels/dtype.h): these kernels wait for memory,
 * and a branch that all threads take the same way costs nothing beside that.
 *
 * Programmatic dependent launch: every kernel waits for its predecessor before it reads or writes
 * anything that others touch, and then lets its successor in. In this order: letting it in first
 * fills the GPU with a row of kernels that wait for each other, and 16 rows took twice as long.
 * Launched without the attribute both do nothing. */
#ifndef PLLM_KERNELS_CUDA_ROWS_CUH
#define PLLM_KERNELS_CUDA_ROWS_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

enum { ROWS_F32 = 0, ROWS_F16 = 1, ROWS_BF16 = 2, ROWS_Q8_0 = 3, ROWS_Q4_0 = 4, ROWS_Q4_1 = 5 };

static __device__ __forceinline__ void rows_begin(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

static __device__ __forceinline__ float rows_from_half(uint32_t bits, int dtype)
{
    if (dtype == ROWS_BF16) return __uint_as_float(bits << 16);
    return __half2float(__ushort_as_half((unsigned short)bits));
}

static __device__ __forceinline__ uint32_t rows_to_half(float value, int dtype)
{
    if (dtype == ROWS_BF16) return __bfloat16_as_ushort(__float2bfloat16_rn(value));
    return __half_as_ushort(__float2half_rn(value));
}

static __device__ __forceinline__ float rows_load(const void *base, uint64_t index, int dtype)
{
    if (dtype == ROWS_F32) return ((const float *)base)[index];
    return rows_from_half(((const uint16_t *)base)[index], dtype);
}

static __device__ __forceinline__ void rows_store(void *base, uint64_t index, int dtype,
                                                  float value)
{
    if (dtype == ROWS_F32)
        ((float *)base)[index] = value;
    else
        ((uint16_t *)base)[index] = (uint16_t)rows_to_half(value, dtype);
}

/* Eight elements from index, which lies at 16 bytes (f32, f16, bf16). */
static __device__ __forceinline__ void rows_load8(float (&out)[8], const void *base,
                                                  uint64_t index, int dtype)
{
    if (dtype == ROWS_F32) {
        const float4 *at = (const float4 *)((const float *)base + index);
        float4 low = at[0], high = at[1];
        out[0] = low.x, out[1] = low.y, out[2] = low.z, out[3] = low.w;
        out[4] = high.x, out[5] = high.y, out[6] = high.z, out[7] = high.w;
        return;
    }
    uint4 bits = *(const uint4 *)((const uint16_t *)base + index);
    uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out[2 * i] = rows_from_half(words[i] & 0xffff, dtype);
        out[2 * i + 1] = rows_from_half(words[i] >> 16, dtype);
    }
}

static __device__ __forceinline__ void rows_store8(void *base, uint64_t index, int dtype,
                                                   const float (&in)[8])
{
    if (dtype == ROWS_F32) {
        float4 *at = (float4 *)((float *)base + index);
        at[0] = make_float4(in[0], in[1], in[2], in[3]);
        at[1] = make_float4(in[4], in[5], in[6], in[7]);
        return;
    }
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        words[i] = rows_to_half(in[2 * i], dtype) | rows_to_half(in[2 * i + 1], dtype) << 16;
    *(uint4 *)((uint16_t *)base + index) = make_uint4(words[0], words[1], words[2], words[3]);
}

/* Four elements from index, which lies at 16 (f32) or 8 bytes. */
static __device__ __forceinline__ void rows_store4(void *base, uint64_t index, int dtype, float4 v)
{
    if (dtype == ROWS_F32) {
        *(float4 *)((float *)base + index) = v;
        return;
    }
    *(uint2 *)((uint16_t *)base + index) =
        make_uint2(rows_to_half(v.x, dtype) | rows_to_half(v.y, dtype) << 16,
                   rows_to_half(v.z, dtype) | rows_to_half(v.w, dtype) << 16);
}

/* The sum of one value a thread, for all: halving within a warp, then warps in order. */
template <typename number>
static __device__ __forceinline__ number rows_block_sum(number value, number *scratch /*[32]*/)
{
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2)
        value += __shfl_xor_sync(0xffffffff, value, apart);
    uint32_t warp = threadIdx.x / 32, warps = blockDim.x / 32;
    if (threadIdx.x % 32 == 0) scratch[warp] = value;
    __syncthreads();
    number sum = scratch[0];
    for (uint32_t i = 1; i < warps; i++) sum += scratch[i];
    return sum;
}

#endif
