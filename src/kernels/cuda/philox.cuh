/* philox.cuh - random numbers by number: Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random
 * numbers: as easy as 1, 2, 3", 2011), and normal ones from them by Box and Muller's transform.
 * Group g of a seed is four numbers, for elements 4 g to 4 g + 3: nothing else decides them. */
#ifndef PLLM_KERNELS_CUDA_PHILOX_CUH
#define PLLM_KERNELS_CUDA_PHILOX_CUH

#include <stdint.h>

static __device__ __forceinline__ uint4 philox(uint64_t group, uint64_t seed)
{
    uint4 c = make_uint4((uint32_t)group, (uint32_t)(group >> 32), 0, 0);
    uint32_t low = (uint32_t)seed, high = (uint32_t)(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xd2511f53u * c.x, b = (uint64_t)0xcd9e8d57u * c.z;
        c = make_uint4((uint32_t)(b >> 32) ^ c.y ^ low, (uint32_t)b,
                       (uint32_t)(a >> 32) ^ c.w ^ high, (uint32_t)a);
        low += 0x9e3779b9u;
        high += 0xbb67ae85u;
    }
    return c;
}

/* Two normal numbers from two words: the first gives the radius, the second the angle. */
static __device__ __forceinline__ float2 normal_pair(uint32_t x, uint32_t y)
{
    float radius = sqrtf(-2.0f * logf(((float)x + 0.5f) * 0x1p-32f)), sine, cosine;
    sincospif((float)y * 0x1p-31f, &sine, &cosine);
    return make_float2(radius * cosine, radius * sine);
}

static __device__ __forceinline__ float4 normals(uint64_t group, uint64_t seed)
{
    uint4 bits = philox(group, seed);
    float2 a = normal_pair(bits.x, bits.y), b = normal_pair(bits.z, bits.w);
    return make_float4(a.x, a.y, b.x, b.y);
}

#endif
