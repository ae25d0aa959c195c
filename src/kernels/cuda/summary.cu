/* summary.cu - key summaries of sealed blocks (kernels/kv_summary.h), with the CPU's bits.
 *
 * A block of threads takes a run of 16 tokens of one KV head of one block, a thread a channel (or
 * several): 16 loads, each coalesced over the channels. Bound by reading the keys once; they have
 * just been written, so they come from L2. */
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

enum { TOKENS = 32, RUN = 16, F32 = 0, F16 = 1 };

static __device__ __forceinline__ float key_at(const void *keys, int dtype, uint64_t index)
{
    if (dtype == F32) return ((const float *)keys)[index];
    if (dtype == F16) return __half2float(((const __half *)keys)[index]);
    return __bfloat162float(((const __nv_bfloat16 *)keys)[index]);
}

/* pairs: u32 [gridDim.x][2]: block in blocks, place in summaries. gridDim.y: KV heads, .z: runs. */
extern "C" __global__ void pllm_summarise(const char *blocks, uint64_t block_bytes,
                                          const uint32_t *pairs, char *summaries,
                                          uint64_t summary_bytes, uint32_t head_dim, int dtype)
{
    const uint32_t head = blockIdx.y, run = blockIdx.z;
    const uint64_t element = dtype == F32 ? 4 : 2;
    const char *keys = blocks + pairs[2 * blockIdx.x] * block_bytes +
                       ((uint64_t)head * 2 * TOKENS + run * RUN) * head_dim * element;
    __half *out = (__half *)(summaries + pairs[2 * blockIdx.x + 1] * summary_bytes) +
                  ((uint64_t)head * (TOKENS / RUN) + run) * 2 * head_dim;
    for (uint32_t channel = threadIdx.x; channel < head_dim; channel += blockDim.x) {
        float key[RUN], sum = 0, squares = 0;
#pragma unroll
        for (uint32_t i = 0; i < RUN; i++)
            key[i] = key_at(keys, dtype, (uint64_t)i * head_dim + channel);
#pragma unroll
        for (uint32_t i = 0; i < RUN; i++) sum = __fadd_rn(sum, key[i]);
        const float mean = __fdiv_rn(sum, RUN);
#pragma unroll
        for (uint32_t i = 0; i < RUN; i++) {
            const float apart = __fsub_rn(key[i], mean);
            squares = __fadd_rn(squares, __fmul_rn(apart, apart));
        }
        out[channel] = __float2half_rn(mean);
        out[head_dim + channel] = __float2half_rn(__fsqrt_rn(__fdiv_rn(squares, RUN)));
    }
}
