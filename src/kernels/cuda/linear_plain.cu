/* linear_plain.cu - what is not the hot path of linear: f32 products of any shape, packing, and
 * making bf16 or f16 rows out of others.
 *
 * The f32 products take any format and any k. Each output is one chain, or 32 chains a warp joins
 * in a fixed order, over ascending k: nothing depends on the number of rows. Weights are
 * dequantised element by element (linear_format.cuh), so these are far from the memory's speed;
 * they serve tests, exact mode and odd widths. */
#include "kernels/cuda/linear_arguments.h"
#include "kernels/cuda/linear_format.cuh"

namespace
{

__device__ __forceinline__ float load_value(const void *row, int dtype, uint64_t i)
{
    if (dtype == PLLM_F32) return ((const float *)row)[i];
    if (dtype == PLLM_F16) return __half2float(((const __half *)row)[i]);
    return __bfloat162float(((const __nv_bfloat16 *)row)[i]);
}

__device__ __forceinline__ void store_value(void *row, int dtype, uint64_t i, float value)
{
    if (dtype == PLLM_F32)
        ((float *)row)[i] = value;
    else if (dtype == PLLM_F16)
        ((__half *)row)[i] = __float2half_rn(value);
    else
        ((__nv_bfloat16 *)row)[i] = __float2bfloat16_rn(value);
}

__device__ __forceinline__ uint32_t value_bytes(int dtype)
{
    return dtype == PLLM_F32 ? 4 : 2;
}

__device__ __forceinline__ float warp_sum(float sum)
{
#pragma unroll
    for (int bit = 16; bit; bit /= 2) sum += __shfl_xor_sync(~0u, sum, bit);
    return sum;
}

__device__ __forceinline__ void finish(const plain_arguments &a, uint64_t row, uint32_t n,
                                       float value)
{
    uint64_t at = row * a.out_stride + n;
    if (a.epilogue == 1) value += ((const float *)a.out)[at];
    store_value((void *)a.out, a.out_dtype, at, value);
}

} // namespace

/* Decode in f32: a warp a row of W, 8 warps a CTA; grid (n / 8, rows / 4), 4 rows of x at once. */
extern "C" __global__ void __launch_bounds__(256)
    pllm_linear_decode_f32(const __grid_constant__ plain_arguments a)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
    uint32_t n = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t first = blockIdx.y * 4, count = min(a.rows - first, 4u);
    if (n >= a.n) return;
    const uint8_t *w = (const uint8_t *)a.matrix[0] + n * a.row_bytes;
    const uint8_t *w2 = (const uint8_t *)a.matrix[1] + n * a.row_bytes;
    const float *norm = (const float *)a.norm_weight;
    float sum[4] = {}, sum2[4] = {}, squares[4] = {};
    for (uint32_t i = lane; i < a.k; i += 32) {
        float p = pllm_packed_element(w, a.dtype, a.scale_bytes, i), p2 = 0.0f;
        if (a.epilogue == 2) p2 = pllm_packed_element(w2, a.dtype, a.scale_bytes, i);
        float scale = norm ? norm[i] : 1.0f;
#pragma unroll
        for (uint32_t r = 0; r < 4; r++) {
            if (r >= count) break;
            float v = __ldcg((const float *)a.x + (first + r) * a.x_stride + i);
            squares[r] = fmaf(v, v, squares[r]);
            if (norm) v *= scale;
            sum[r] = fmaf(p, v, sum[r]);
            sum2[r] = fmaf(p2, v, sum2[r]);
        }
    }
#pragma unroll
    for (uint32_t r = 0; r < 4; r++) {
        if (r >= count) break;
        float result = warp_sum(sum[r]), factor = 1.0f;
        if (norm) factor = 1.0f / sqrtf(warp_sum(squares[r]) / (float)a.k + a.epsilon);
        result *= factor;
        if (a.epilogue == 2) {
            float up = warp_sum(sum2[r]) * factor;
            result = result / (1.0f + expf(-result)) * up;
        }
        if (lane == 0) finish(a, first + r, n, result);
    }
}

/* Prefill in f32: tiles of 64 rows by 64 columns, 16 k at a time; a thread owns 4 x 4 outputs. */
extern "C" __global__ void __launch_bounds__(256)
    pllm_linear_prefill_f32(const __grid_constant__ plain_arguments a)
{
    __shared__ float xs[16][68], ws[16][68];
    uint32_t n_first = blockIdx.x * 64, m_first = blockIdx.y * 64;
    uint32_t tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    float sum[4][4] = {};
    for (uint32_t k0 = 0; k0 < a.k; k0 += 16) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t row = i * 16 + ty, k = k0 + tx, m = m_first + row, n = n_first + row;
            int inside = k < a.k;
            xs[tx][row] =
                inside && m < a.rows
                    ? load_value((const char *)a.x + m * a.x_stride * value_bytes(a.x_dtype),
                                 a.x_dtype, k)
                    : 0.0f;
            ws[tx][row] = inside && n < a.n
                              ? pllm_packed_element((const uint8_t *)a.matrix[0] + n * a.row_bytes,
                                                    a.dtype, a.scale_bytes, k)
                              : 0.0f;
        }
        __syncthreads();
        uint32_t count = min(16u, a.k - k0); /* no more: 0 * infinity is no zero */
        for (uint32_t k = 0; k < count; k++) {
            float p[4], q[4];
#pragma unroll
            for (int i = 0; i < 4; i++) p[i] = xs[k][ty + 16 * i], q[i] = ws[k][tx + 16 * i];
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) sum[i][j] = fmaf(p[i], q[j], sum[i][j]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            uint32_t m = m_first + ty + 16 * i, n = n_first + tx + 16 * j;
            if (m < a.rows && n < a.n) finish(a, m, n, sum[i][j]);
        }
}

/* The file's rows (any alignment) to packed rows: a CTA a row, a thread 4 bytes of it. */
extern "C" __global__ void __launch_bounds__(256)
    pllm_linear_pack(const __grid_constant__ pack_arguments a)
{
    const uint8_t *from = (const uint8_t *)a.from + blockIdx.x * a.from_row_bytes;
    uint32_t *to = (uint32_t *)(a.to + (a.row_first + blockIdx.x) * a.to_row_bytes);
    int dtype = a.dtype;
    if (dtype == PLLM_F32 || dtype == PLLM_F16 || dtype == PLLM_BF16) {
        uint64_t bytes = (uint64_t)a.k * (dtype == PLLM_F32 ? 4 : 2);
        for (uint64_t i = threadIdx.x; i * 4 < a.to_row_bytes; i += 256) {
            uint32_t word = 0;
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (i * 4 + j < bytes) word |= (uint32_t)from[i * 4 + j] << (8 * j);
            to[i] = word;
        }
        return;
    }
    uint32_t blocks = a.k / 32, header = dtype == PLLM_Q4_1 ? 4 : 2;
    uint32_t block_bytes = header + (dtype == PLLM_Q8_0 ? 32 : 16);
    for (uint32_t i = threadIdx.x; i < a.scale_bytes / 4; i += 256) {
        uint32_t word = 0;
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
            uint32_t at = i * 4 + j, block = at / header;
            if (block < blocks)
                word |= (uint32_t)from[(uint64_t)block * block_bytes + at % header] << (8 * j);
        }
        to[i] = word;
    }
    to += a.scale_bytes / 4;
    uint32_t unit_blocks = pllm_packed_unit_blocks(dtype);
    for (uint32_t i = threadIdx.x; i < a.units * 16; i += 256) {
        uint32_t unit = i / 16, t = i / 4 % 4, j = i % 4, word = 0;
        if (dtype == PLLM_Q8_0) {
            uint32_t block = unit * unit_blocks + j / 2;
            const uint8_t *q = from + (uint64_t)block * block_bytes + header + t * 8 + j % 2 * 4;
            if (block < blocks)
                word = q[0] | (uint32_t)q[1] << 8 | (uint32_t)q[2] << 16 | (uint32_t)q[3] << 24;
        } else {
            /* The file: byte b holds k = b in its low nibble and k = b + 16 in its high one. */
            uint32_t block = unit * unit_blocks + j;
            const uint8_t *q = from + (uint64_t)block * block_bytes + header + t % 2 * 8;
            if (block < blocks) {
                for (int b = 0; b < 4; b++) {
                    uint32_t low = t / 2 ? q[b] >> 4 : q[b] & 15;
                    uint32_t high = t / 2 ? q[b + 4] >> 4 : q[b + 4] & 15;
                    word |= (low | high << 4) << (8 * b);
                }
                if (dtype == PLLM_Q4_0) word ^= 0x88888888u;
            }
        }
        to[i] = word;
    }
}

namespace
{

__device__ __forceinline__ void store_eight(__nv_bfloat16 *to, const float (&v)[8])
{
    uint4 out;
    uint32_t *words = (uint32_t *)&out;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        __nv_bfloat162 both = __floats2bfloat162_rn(v[2 * i], v[2 * i + 1]);
        words[i] = *(uint32_t *)&both;
    }
    *(uint4 *)to = out;
}

} // namespace

/* Packed rows to dense bf16, k % 8 == 0: a thread 16 bytes of quants, that is 8 elements of each
 * block of a unit; four threads store 64 bytes side by side. */
extern "C" __global__ void __launch_bounds__(256)
    pllm_linear_expand(const __grid_constant__ expand_arguments a)
{
    uint32_t index = blockIdx.x * 256 + threadIdx.x, line = index / a.pieces;
    uint32_t piece = index % a.pieces;
    if (line >= a.rows) return;
    const uint8_t *row = (const uint8_t *)a.from + line * a.row_bytes;
    __nv_bfloat16 *to = (__nv_bfloat16 *)a.to + (uint64_t)line * a.k;
    float v[8];
    if (a.dtype == PLLM_F32) {
        float4 p = __ldg((const float4 *)row + piece * 2);
        float4 q = __ldg((const float4 *)row + piece * 2 + 1);
        v[0] = p.x, v[1] = p.y, v[2] = p.z, v[3] = p.w;
        v[4] = q.x, v[5] = q.y, v[6] = q.z, v[7] = q.w;
        store_eight(to + piece * 8, v);
        return;
    }
    uint32_t unit = piece / 4, t = piece % 4;
    uint4 quants = __ldg((const uint4 *)(row + a.scale_bytes) + piece);
    const uint32_t q[4] = {quants.x, quants.y, quants.z, quants.w};
    if (a.dtype == PLLM_Q8_0) {
        __half2 d = __ldg((const __half2 *)row + unit);
#pragma unroll
        for (int b = 0; b < 2; b++) {
            uint32_t k = (unit * 2 + b) * 32 + t * 8;
            float scale = b ? __high2float(d) : __low2float(d);
#pragma unroll
            for (int i = 0; i < 8; i++)
                v[i] = scale * (float)(int8_t)(q[b * 2 + i / 4] >> (i % 4 * 8));
            if (k < a.k) store_eight(to + k, v);
        }
        return;
    }
#pragma unroll
    for (int b = 0; b < 4; b++) {
        uint32_t block = unit * 4 + b, k = block * 32 + t * 8;
        if (k >= a.k) return;
        if (a.dtype == PLLM_Q4_0) {
            float d = __half2float(__ldg((const __half *)row + block));
#pragma unroll
            for (int i = 0; i < 8; i++)
                v[i] = d * (float)((int32_t)(q[b] << (28 - i % 4 * 8 - i / 4 * 4)) >> 28);
        } else {
            float2 both = __half22float2(__ldg((const __half2 *)row + block));
#pragma unroll
            for (int i = 0; i < 8; i++)
                v[i] = both.x * (float)(q[b] >> (i % 4 * 8 + i / 4 * 4) & 15) + both.y;
        }
        store_eight(to + k, v);
    }
}

/* Rows of x to dense bf16 or f16 (saturated) rows. */
extern "C" __global__ void __launch_bounds__(256)
    pllm_linear_convert(const __grid_constant__ convert_arguments a)
{
    uint32_t k = (blockIdx.x * 256 + threadIdx.x) * 2;
    if (k >= a.k) return;
    const char *row = (const char *)a.from + blockIdx.y * a.from_stride * value_bytes(a.from_dtype);
    uint16_t *to = (uint16_t *)a.to + (uint64_t)blockIdx.y * a.k;
    for (uint32_t i = k; i < min(k + 2, a.k); i++) {
        float v = load_value(row, a.from_dtype, i);
        if (a.to_dtype == PLLM_F16) v = v > 65504.0f ? 65504.0f : v < -65504.0f ? -65504.0f : v;
        store_value(to, a.to_dtype, i, v);
    }
}

/* Reads `pieces` of 16 bytes and nothing else: the bound of decode, for benches. */
extern "C" __global__ void __launch_bounds__(512)
    pllm_linear_read(const uint4 *from, uint64_t pieces, uint32_t *to)
{
    uint64_t step = (uint64_t)gridDim.x * 512, i = (uint64_t)blockIdx.x * 512 + threadIdx.x;
    uint32_t all = 0;
    for (; i + 7 * step < pieces; i += 8 * step) {
        uint4 v[8];
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] = __ldcs(from + i + j * step);
#pragma unroll
        for (int j = 0; j < 8; j++) all ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
    }
    for (; i < pieces; i += step) all ^= from[i].x;
    if (all == 0x12345678u) *to = all; /* so that nothing is left out */
}
