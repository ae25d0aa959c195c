/* probe.cu - kernels that show that a device works: what was launched runs, sees its arguments, and
 * reads and writes the memory it was given, on the card or mapped from the host. */
#include <cstdint>

/* to[i] = from[i] * factor + add. from may be mapped host memory. */
extern "C" __global__ void pllm_probe_scale(uint32_t *to, const uint32_t *from, uint32_t count,
                                            uint32_t factor, uint32_t add)
{
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) to[i] = from[i] * factor + add;
}

/* Sums through dynamic shared memory, so that a launch with more of it than 48 KiB is tried.
 * words: how many words of shared memory there are; to[0] = sum of from[0 .. words). One block. */
extern "C" __global__ void pllm_probe_shared(uint32_t *to, const uint32_t *from, uint32_t words)
{
    extern __shared__ uint32_t shared[];
    for (uint32_t i = threadIdx.x; i < words; i += blockDim.x) shared[i] = from[i];
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t sum = 0;
        for (uint32_t i = 0; i < words; i++) sum += shared[i];
        to[0] = sum;
    }
}

/* to[0] += 1, after what was launched before has ended: for programmatic dependent launches. */
extern "C" __global__ void pllm_probe_chain(uint32_t *to)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
    if (threadIdx.x == 0) to[0] += 1;
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* Writes through a wild address: for tests of what a fault does to the device. */
extern "C" __global__ void pllm_probe_fault(uint64_t address)
{
    *(volatile uint32_t *)address = 1;
}

/* Spins for about `cycles` clocks, for tests that need work in flight. */
extern "C" __global__ void pllm_probe_spin(uint64_t cycles)
{
    long long start = clock64();
    while ((uint64_t)(clock64() - start) < cycles) {
    }
}

/* Reads `count` pieces of 16 bytes once, many in flight: what the memory can give. sink is written
 * only where a sum happens to be `sink_value`, so that the reads are kept. */
extern "C" __global__ void __launch_bounds__(512)
    pllm_probe_read(const uint4 *from, uint64_t count, uint32_t *sink, uint32_t sink_value)
{
    uint64_t stride = (uint64_t)gridDim.x * blockDim.x, i = blockIdx.x * blockDim.x + threadIdx.x;
    uint32_t sum = 0;
    for (; i + 7 * stride < count; i += 8 * stride) {
        uint4 x[8];
#pragma unroll
        for (int j = 0; j < 8; j++) x[j] = __ldcs(from + i + j * stride);
#pragma unroll
        for (int j = 0; j < 8; j++) sum ^= x[j].x ^ x[j].y ^ x[j].z ^ x[j].w;
    }
    for (; i < count; i += stride) sum ^= from[i].x;
    if (sum == sink_value) *sink = sum;
}
