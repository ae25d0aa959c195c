/* swiglu.cu - out = gate / (1 + exp(-gate)) * up, where a row is [gate n][up n].
 *
 * An f32 result has the bits of the CPU's kernels: exp is theirs (kernels/cpu/exp.h: reduction by
 * ln 2 in two parts, a polynomial of degree 7 by FMA), the division is IEEE's. A half-width result
 * takes the chip's own exp2 and reciprocal, whose errors (1e-6) vanish in its rounding; the exact
 * form would cost more than reading the bytes. Bound: bytes of gate, up and out. */
#include "kernels/cuda/rows.cuh"

/* pllm_exp_scalar: below -104 it is 0, above 88.73 infinity, a denormal is rounded once. */
static __device__ __forceinline__ float exact_exp(float x)
{
    if (isnan(x)) return x;
    x = fmaxf(fminf(x, 89.0f), -104.0f);
    float n = rintf(__fmul_rn(x, 0x1.715476p+0f));
    float r = fmaf(-n, 0x1.7f7d1cp-20f, fmaf(-n, 0x1.62e4p-1f, x));
    float p = fmaf(r, 0x1.a01a02p-13f, 0x1.6c16c2p-10f);
    p = fmaf(r, p, 0x1.111112p-7f);
    p = fmaf(r, p, 0x1.555556p-5f);
    p = fmaf(r, p, 0x1.555556p-3f);
    p = fmaf(r, p, 0.5f);
    p = fmaf(r, p, 1.0f);
    p = fmaf(r, p, 1.0f);
    int whole = (int)n, half = whole >> 1; /* two factors: n reaches -150 and 128 */
    float first = __uint_as_float((uint32_t)(half + 127) << 23);
    float second = __uint_as_float((uint32_t)(whole - half + 127) << 23);
    return __fmul_rn(__fmul_rn(p, first), second);
}

static __device__ __forceinline__ float gated(float gate, float up, int exact)
{
    if (exact)
        return __fmul_rn(__fdiv_rn(gate, __fadd_rn(1.0f, exact_exp(-gate))), up);
    return __fdividef(gate, 1.0f + __expf(-gate)) * up;
}

/* Eight elements a thread; blocks_per_row blocks share a row. n and strides in whole eights. */
extern "C" __global__ void __launch_bounds__(256)
    pllm_swiglu_wide(const void *gate_up, int dtype, uint64_t stride, uint32_t n,
                     uint32_t blocks_per_row, void *out, int out_dtype, uint64_t out_stride)
{
    rows_begin();
    uint64_t row = blockIdx.x / blocks_per_row;
    uint32_t at = ((blockIdx.x % blocks_per_row) * 256 + threadIdx.x) * 8;
    if (at >= n) return;
    float gate[8], up[8];
    rows_load8(gate, gate_up, row * stride + at, dtype);
    rows_load8(up, gate_up, row * stride + n + at, dtype);
#pragma unroll
    for (int i = 0; i < 8; i++) gate[i] = gated(gate[i], up[i], out_dtype == ROWS_F32);
    rows_store8(out, row * out_stride + at, out_dtype, gate);
}

extern "C" __global__ void __launch_bounds__(256)
    pllm_swiglu_any(const void *gate_up, int dtype, uint64_t stride, uint32_t n,
                    uint32_t blocks_per_row, void *out, int out_dtype, uint64_t out_stride)
{
    rows_begin();
    uint64_t row = blockIdx.x / blocks_per_row;
    uint32_t at = (blockIdx.x % blocks_per_row) * 256 + threadIdx.x;
    if (at >= n) return;
    float gate = rows_load(gate_up, row * stride + at, dtype);
    float up = rows_load(gate_up, row * stride + n + at, dtype);
    rows_store(out, row * out_stride + at, out_dtype, gated(gate, up, out_dtype == ROWS_F32));
}
