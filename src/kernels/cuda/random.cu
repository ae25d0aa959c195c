/* random.cu - weights of a wanted standard deviation, for models whose size is the point.
 *
 * Element (row, column) of a matrix of k columns has index row * k + column; it and the seed decide
 * the number, however a matrix is made piece by piece. Plain formats are normal. Quantised ones have
 * uniform quants under scales of one size, which makes the deviation right and the mean zero:
 *   Q8_0  q in -127..127 (-128 becomes 0)   mean square 5,397.5
 *   Q4_0  q in -8..7, d of random sign      mean square 21.5, the sign takes the mean away
 *   Q4_1  q in 0..15, m = -7.5 d            variance 21.25 */
#include "kernels/cuda/linear_format.h"
#include "kernels/cuda/philox.cuh"
#include "kernels/cuda/rows.cuh"

/* k % 4 == 0: four elements a thread. */
extern "C" __global__ void __launch_bounds__(256)
    pllm_random_wide(char *data, int dtype, uint64_t row_bytes, uint64_t row_first, uint32_t n,
                     uint32_t k, float deviation, uint64_t seed)
{
    uint32_t groups = k / 4;
    for (uint64_t row = blockIdx.y; row < n; row += gridDim.y) {
        uint64_t first = (row_first + row) * groups;
        for (uint32_t g = blockIdx.x * 256 + threadIdx.x; g < groups; g += gridDim.x * 256) {
            float4 v = normals(first + g, seed);
            rows_store4(data + row * row_bytes, 4 * (uint64_t)g, dtype,
                        make_float4(v.x * deviation, v.y * deviation, v.z * deviation,
                                    v.w * deviation));
        }
    }
}

extern "C" __global__ void __launch_bounds__(256)
    pllm_random_any(char *data, int dtype, uint64_t row_bytes, uint64_t row_first, uint32_t n,
                    uint32_t k, float deviation, uint64_t seed)
{
    for (uint64_t row = blockIdx.y; row < n; row += gridDim.y)
        for (uint32_t c = blockIdx.x * 256 + threadIdx.x; c < k; c += gridDim.x * 256) {
            uint64_t index = (row_first + row) * k + c;
            float4 v = normals(index / 4, seed);
            float one = index & 2 ? index & 1 ? v.w : v.z : index & 1 ? v.y : v.x;
            rows_store(data + row * row_bytes, c, dtype, one * deviation);
        }
}

static __device__ __forceinline__ uint32_t without_128(uint32_t bytes)
{
#pragma unroll
    for (int i = 0; i < 32; i += 8)
        if ((bytes >> i & 255) == 128) bytes &= ~(255u << i);
    return bytes;
}

/* The u-th half of a row's scales; block b's word decides the sign of its scale. */
static __device__ __forceinline__ uint16_t scale_half(int dtype, uint32_t u, uint32_t blocks,
                                                      uint64_t first, float deviation,
                                                      uint64_t seed)
{
    uint32_t block = dtype == ROWS_Q4_1 ? u / 2 : u;
    if (block >= blocks) return 0;
    float d = deviation * (dtype == ROWS_Q8_0   ? 0.0136115f
                           : dtype == ROWS_Q4_0 ? 0.2156655f
                                                : 0.2169305f);
    if (dtype == ROWS_Q4_0 && philox(first + 4 * (uint64_t)block, seed).z & 1) d = -d;
    if (dtype == ROWS_Q4_1 && u % 2) d *= -7.5f;
    return (uint16_t)rows_to_half(d, ROWS_F16);
}

/* Eight quants a thread, and a scale; padding becomes zero. Group g of a row is elements 8 g ... */
extern "C" __global__ void __launch_bounds__(256)
    pllm_random_quantised(char *data, int dtype, uint64_t row_bytes, uint64_t row_first,
                          uint32_t n, uint32_t k, float deviation, uint64_t seed)
{
    uint32_t scale_bytes = pllm_packed_scale_bytes(dtype, k), groups = k / 8;
    uint32_t padded = pllm_packed_units(dtype, k) * pllm_packed_unit_blocks(dtype) * 4;
    uint32_t work = padded > scale_bytes / 2 ? padded : scale_bytes / 2;
    for (uint64_t row = blockIdx.y; row < n; row += gridDim.y) {
        char *to = data + row * row_bytes;
        uint64_t first = (row_first + row) * groups;
        for (uint32_t u = blockIdx.x * 256 + threadIdx.x; u < work; u += gridDim.x * 256) {
            if (u < scale_bytes / 2)
                ((uint16_t *)to)[u] = scale_half(dtype, u, k / 32, first, deviation, seed);
            if (u >= padded) continue;
            uint32_t high, byte = scale_bytes + pllm_packed_quant(dtype, 8 * u, &high);
            uint4 bits = u < groups ? philox(first + u, seed) : make_uint4(0, 0, 0, 0);
            if (dtype == ROWS_Q8_0)
                *(uint2 *)(to + byte) = make_uint2(without_128(bits.x), without_128(bits.y));
            else
                *(uint32_t *)(to + byte) = bits.x;
        }
    }
}
