/* attention_device.cuh - what the attention kernels share: asynchronous copies, matrix fragments,
 * where a row's partials lie, which chunks a launch does.
 *
 * Partials, per (row, head): out f32 [chunk_max][head_dim] | max [chunk_max] | sum [chunk_max]. A
 * chunk's max is in the log2 domain and may be any number near its largest score: out and sum are
 * taken relative to it. */
#ifndef PLLM_KERNELS_CUDA_ATTENTION_DEVICE_CUH
#define PLLM_KERNELS_CUDA_ATTENTION_DEVICE_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>
#include "kernels/cuda/attention_arguments.h"

enum { BLOCK = 32, CHUNK = 256, CHUNK_BLOCKS = 8, GROUP_MAX = 16, HEAD_DIM_MAX = 256 };
enum { F32 = 0, F16 = 1, BF16 = 2, INT8 = 6, INT4 = 7 }; /* pllm_dtype */

#define MINUS_INFINITY __int_as_float(0xff800000)

/* Programmatic dependent launch: nothing the kernel before wrote is read ahead of this. */
__device__ __forceinline__ void wait_for_kernel_before()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Weight of something whose max is `mine` beside the overall `top`; 0 where nothing was seen. */
__device__ __forceinline__ float weight_of(float mine, float top)
{
    return mine == MINUS_INFINITY ? 0.0f : exp2_fast(mine - top);
}

template <typename T> __device__ __forceinline__ const T *at(uint64_t address)
{
    return reinterpret_cast<const T *>(address);
}

/* What one row has to do in this launch. */
struct row_work {
    uint32_t length, slot, first_token; /* first_token: the window's edge */
    uint32_t chunk_first, chunk_end;
};

__device__ __forceinline__ row_work row_work_of(const pllm_attend_arguments &a, uint32_t row)
{
    row_work w;
    w.length = at<uint32_t>(a.row_length)[row];
    w.slot = at<uint32_t>(a.row_slot)[row];
    uint32_t first = a.chunk_first ? at<uint32_t>(a.chunk_first)[row] : 0;
    uint32_t end = a.chunk_end ? at<uint32_t>(a.chunk_end)[row] : ~0u;
    w.first_token = a.window && w.length > a.window ? w.length - a.window : 0;
    w.chunk_first = max(first, w.first_token / CHUNK);
    w.chunk_end = min(min(end, (w.length + CHUNK - 1) / CHUNK), a.chunk_max);
    return w;
}

/* Address of block `block` of a row: its frame, or the open block of its slot. */
__device__ __forceinline__ uint64_t block_address(const pllm_attend_arguments &a, const row_work &w,
                                                  uint32_t block)
{
    if (block == (w.length - 1) / BLOCK)
        return a.open + ((uint64_t)w.slot * a.layer_count + a.layer) * a.open_bytes;
    uint32_t frame = at<uint32_t>(a.table)[w.slot * a.table_stride + block];
    return a.frames + frame * a.frame_bytes;
}

struct partial_place {
    float *out, *max, *sum; /* of chunk 0 */
};

__device__ __forceinline__ partial_place partials_of(const pllm_attend_arguments &a, uint32_t row,
                                                     uint32_t head)
{
    partial_place p;
    uint64_t index = (uint64_t)row * a.heads + head;
    p.out = reinterpret_cast<float *>(a.partials) + index * a.chunk_max * (a.head_dim + 2);
    p.max = p.out + (uint64_t)a.chunk_max * a.head_dim;
    p.sum = p.max + a.chunk_max;
    return p;
}

__device__ __forceinline__ uint32_t shared_address(const void *pointer)
{
    return (uint32_t)__cvta_generic_to_shared(pointer);
}

/* 16 bytes past the L1; zeros in place of what `bytes` leaves out. */
__device__ __forceinline__ void copy_async(uint32_t to, const void *from, uint32_t bytes)
{
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void copy_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* At most `pending` of this thread's newest groups are still under way; the warp sees the rest. */
template <int pending> __device__ __forceinline__ void copy_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
    __syncwarp();
}

__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

template <int FORMAT>
__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1)
{
    if (FORMAT == BF16)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
            "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
            "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Two floats as two halves in the matrix format, and what that rounding left. */
template <int FORMAT>
__device__ __forceinline__ void split(float x, float y, uint32_t &high, uint32_t &low)
{
    if (FORMAT == BF16) {
        __nv_bfloat162 h = __floats2bfloat162_rn(x, y);
        __nv_bfloat162 l = __floats2bfloat162_rn(x - __low2float(h), y - __high2float(h));
        high = *reinterpret_cast<uint32_t *>(&h);
        low = *reinterpret_cast<uint32_t *>(&l);
    } else {
        __half2 h = __floats2half2_rn(x, y);
        __half2 l = __floats2half2_rn(x - __low2float(h), y - __high2float(h));
        high = *reinterpret_cast<uint32_t *>(&h);
        low = *reinterpret_cast<uint32_t *>(&l);
    }
}

__device__ __forceinline__ __half2 as_half2(uint32_t bits)
{
    return *reinterpret_cast<__half2 *>(&bits);
}

__device__ __forceinline__ uint32_t as_bits(__half2 value)
{
    return *reinterpret_cast<uint32_t *>(&value);
}

#endif
