/* argmax.cu - where the largest logit of each row is: the lowest index of equals; NaN loses.
 *
 * A value and its index become one integer whose order is the wanted one, so the largest integer
 * is the answer in whatever order it is searched: the value's bits made monotonic (-0 as 0, NaN
 * below all) above the index's complement. On sm_90 eight blocks, a cluster, share a row, so that
 * 128,256 logits take 2 us rather than 10; elsewhere one block takes it. */
#include "kernels/cuda/rows.cuh"

enum { THREADS = 512 };

static __device__ __forceinline__ uint64_t key_of(float value, uint32_t index)
{
    if (isnan(value)) return (uint32_t)~index;
    uint32_t bits = __float_as_uint(value == 0.0f ? 0.0f : value);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (uint64_t)bits << 32 | (uint32_t)~index;
}

static __device__ __forceinline__ uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* The largest key of elements part * THREADS + thread, ... of parts * THREADS apart, in thread 0. */
static __device__ uint64_t block_largest(const float *row, uint32_t n, uint32_t part,
                                         uint32_t parts)
{
    __shared__ uint64_t warps[THREADS / 32];
    uint64_t best = 0;
    uint32_t thread = part * THREADS + threadIdx.x, threads = parts * THREADS;
    if ((uintptr_t)row % 16 == 0) {
        uint32_t quads = n / 4;
#pragma unroll 4
        for (uint32_t i = thread; i < quads; i += threads) {
            float4 v = ((const float4 *)row)[i];
            best = larger(best, larger(larger(key_of(v.x, 4 * i), key_of(v.y, 4 * i + 1)),
                                       larger(key_of(v.z, 4 * i + 2), key_of(v.w, 4 * i + 3))));
        }
        uint32_t rest = 4 * quads + thread;
        if (rest < n) best = larger(best, key_of(row[rest], rest));
    } else {
        for (uint32_t i = thread; i < n; i += threads) best = larger(best, key_of(row[i], i));
    }
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2)
        best = larger(best, __shfl_xor_sync(0xffffffff, best, apart));
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = best;
    __syncthreads();
    for (uint32_t i = 0; i < THREADS / 32; i++) best = larger(best, warps[i]);
    return best;
}

#if __CUDA_ARCH__ >= 900
#define PARTS 8
#define CLUSTER __cluster_dims__(PARTS, 1, 1)
#else
#define PARTS 1
#define CLUSTER
#endif

/* Grid: PARTS x rows (rows.c knows PARTS by the chip). */
extern "C" __global__ void CLUSTER __launch_bounds__(THREADS)
    pllm_argmax(const float *logits, uint64_t stride, uint32_t n, uint32_t *ids_out)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.relaxed.aligned;"); /* waited for below: all have started */
#endif
    rows_begin();
    if (PARTS == 1 && blockIdx.x != 0) return; /* older code on a chip that has clusters */
    uint64_t best = block_largest(logits + blockIdx.y * stride, n, blockIdx.x, PARTS);
#if __CUDA_ARCH__ >= 900
    __shared__ uint64_t parts[PARTS];
    asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
    if (threadIdx.x == 0) { /* into the first block's shared memory */
        uint32_t here = (uint32_t)__cvta_generic_to_shared(&parts[blockIdx.x]), there;
        asm("mapa.shared::cluster.u32 %0, %1, 0;" : "=r"(there) : "r"(here));
        asm volatile("st.shared::cluster.u64 [%0], %1;" ::"r"(there), "l"(best) : "memory");
    }
    __syncwarp(); /* to the cluster's barrier, whole warps */
    asm volatile("barrier.cluster.arrive.release.aligned;\n"
                 "barrier.cluster.wait.acquire.aligned;" ::: "memory");
    if (blockIdx.x != 0) return;
    for (uint32_t i = 0; i < PARTS; i++) best = larger(best, parts[i]);
#endif
    if (threadIdx.x == 0) ids_out[blockIdx.y] = ~(uint32_t)best;
}
