/* linear_tile.cu - out [m, n] = x [m, k] . w [n, k] for bf16 or f16, f32 sums: what prefill uses
 * where there is no cuBLASLt.
 *
 * Idea. A CTA makes 128 x 128 outputs. 32 k at a time of both sides come to shared memory by
 * asynchronous copies, three stages deep, and from there by ldmatrix to the tensor cores; 8 warps
 * make 64 x 32 outputs each. Rows of 64 bytes are stored in four 16-byte pieces, piece p of row r
 * at p ^ (r / 2 % 4), so that neither the copies nor ldmatrix meet a bank twice.
 * Each output is one chain over ascending k whatever m is. k % 8 == 0, rows at 16 bytes. */
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include "kernels/cuda/linear_arguments.h"
#include "kernels/dtype.h"

namespace
{

constexpr int TILE = 128, STEP = 32, STAGES = 3, STAGE_BYTES = TILE * STEP * 2;

__device__ __forceinline__ uint32_t place(uint32_t row, uint32_t piece)
{
    return row * 64 + (piece ^ (row / 2 % 4)) * 16;
}

__device__ __forceinline__ void copy_piece(uint32_t to, const void *from, int valid)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(valid ? 16 : 0)
                 : "memory");
}

__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

template <int DTYPE>
__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1)
{
    if constexpr (DTYPE == PLLM_F16)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
            "{%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, "
            "%7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* 128 rows of STEP elements from k0 on; rows past the last and k past the end read as zero. */
__device__ __forceinline__ void load_side(uint32_t shared, uint64_t base, uint64_t stride,
                                          uint32_t first, uint32_t count, uint32_t k0, uint32_t k)
{
#pragma unroll
    for (int i = 0; i < 2; i++) {
        uint32_t piece = threadIdx.x + i * 256, row = piece / 4, p = piece % 4;
        uint32_t at = k0 + p * 8;
        int valid = first + row < count && at < k;
        const char *from = (const char *)base;
        if (valid) from += ((first + row) * stride + at) * 2;
        copy_piece(shared + place(row, p), from, valid);
    }
}

__device__ __forceinline__ void store_pair(const tile_arguments &a, uint32_t m, uint32_t n, float p,
                                           float q)
{
    uint64_t at = m * a.out_stride + n;
    float v[2] = {p, q};
    for (int i = 0; i < 2; i++) {
        if (m >= a.m || n + i >= a.n) continue;
        if (a.out_dtype == PLLM_F32) {
            float *out = (float *)a.out + at + i;
            *out = a.add ? *out + v[i] : v[i];
        } else if (a.out_dtype == PLLM_F16) {
            ((__half *)a.out)[at + i] = __float2half_rn(v[i]);
        } else {
            ((__nv_bfloat16 *)a.out)[at + i] = __float2bfloat16_rn(v[i]);
        }
    }
}

template <int DTYPE> __device__ __forceinline__ void tile(const tile_arguments &a)
{
    __shared__ __align__(128) uint8_t memory[STAGES * 2 * STAGE_BYTES];
    uint32_t shared = (uint32_t)__cvta_generic_to_shared(memory);
    uint32_t m_first = blockIdx.x * TILE, n_first = blockIdx.y * TILE;
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t wm = warp / 4 * 64, wn = warp % 4 * 32;
    uint32_t steps = (a.k + STEP - 1) / STEP;
    float c[4][4][4] = {};
    auto load = [&](uint32_t step) {
        if (step < steps) {
            uint32_t at = shared + step % STAGES * 2 * STAGE_BYTES;
            load_side(at, a.x, a.x_stride, m_first, a.m, step * STEP, a.k);
            load_side(at + STAGE_BYTES, a.w, a.w_stride, n_first, a.n, step * STEP, a.k);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    load(0);
    load(1);
    for (uint32_t step = 0; step < steps; step++) {
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        __syncthreads();
        load(step + 2);
        uint32_t xs = shared + step % STAGES * 2 * STAGE_BYTES, ws = xs + STAGE_BYTES;
#pragma unroll
        for (int h = 0; h < 2; h++) { /* 16 k each */
            uint32_t p[4][4], q[2][4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                load_matrices(p[i], xs + place(wm + i * 16 + lane % 16, h * 2 + lane / 16));
#pragma unroll
            for (int j = 0; j < 2; j++)
                load_matrices(
                    q[j], ws + place(wn + j * 16 + lane % 8 + lane / 16 * 8, h * 2 + lane / 8 % 2));
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    multiply<DTYPE>(c[i][j], p[i], q[j / 2][j % 2 * 2], q[j / 2][j % 2 * 2 + 1]);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            uint32_t m = m_first + wm + i * 16 + lane / 4, n = n_first + wn + j * 8 + lane % 4 * 2;
            store_pair(a, m, n, c[i][j][0], c[i][j][1]);
            store_pair(a, m + 8, n, c[i][j][2], c[i][j][3]);
        }
}

} // namespace

/* grid (m / 128, n / 128), 256 threads */
extern "C" __global__ void __launch_bounds__(256, 2)
    pllm_linear_tile_bf16(const __grid_constant__ tile_arguments a)
{
    tile<PLLM_BF16>(a);
}

extern "C" __global__ void __launch_bounds__(256, 2)
    pllm_linear_tile_f16(const __grid_constant__ tile_arguments a)
{
    tile<PLLM_F16>(a);
}
