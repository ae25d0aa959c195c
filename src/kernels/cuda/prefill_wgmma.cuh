/* prefill_wgmma.cuh - Hopper's own instructions, one wrapper each: warpgroup products, tensor
 * copies, barriers in shared memory, register donation. (PTX ISA, sections on wgmma,
 * cp.async.bulk.tensor, mbarrier and setmaxnreg.)
 *
 * Shared tiles are rows of 128 bytes under the 128-byte swizzle, at 1024-byte alignment: the
 * 16-byte piece c of row r lies at r * 128 + ((c ^ r % 8) * 16). A matrix wider than 64 elements is
 * several such tiles. A descriptor says where an operand of a product begins:
 *   K-major (rows run along the summed dimension: K): 8-row groups are 1024 bytes apart; the
 *     next 16 of the sum are 32 bytes on, within the row;
 *   MN-major (rows are steps of the summed dimension: V): 8-step groups are 1024 bytes apart, the
 *     next 64 columns one tile on; the next 16 of the sum are 16 rows on.
 *
 * Accumulators of m64nN: d[4 j + 2 i + e] of lane l in warp w is row 16 w + 8 i + l / 4, column
 * 8 j + 2 (l % 4) + e. Two neighbouring j, packed, are the A operand of 16 summed columns.
 *
 * A product runs on after its instruction; the accumulators are touched by nothing until a wait
 * that names them. The waits take them as operands so that the compiler keeps to that too. */
#ifndef PLLM_KERNELS_CUDA_PREFILL_WGMMA_CUH
#define PLLM_KERNELS_CUDA_PREFILL_WGMMA_CUH

#include <stdint.h>

#define ACC8(d, i)                                                                              \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
        "+f"(d[i + 6]), "+f"(d[i + 7])
#define ACC32(d, i) ACC8(d, i), ACC8(d, i + 8), ACC8(d, i + 16), ACC8(d, i + 24)
#define ACC64(d) ACC32(d, 0), ACC32(d, 32)

#define REGS32                                                                                   \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
    "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define REGS64                                                                                  \
    REGS32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
           "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

struct half_tag {
};
struct bfloat_tag {
};

/* S[64][128] (+)= A[64][16] B[128][16]^T: A in registers, B K-major in shared memory. */
#define WGMMA_RS_ADD_128(type, tag)                                                           \
    __device__ __forceinline__ void wgmma_rs_add(tag, float(&d)[64], const uint32_t *a,       \
                                                 uint64_t b, int add)                         \
    {                                                                                         \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"                             \
                     "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" REGS64 \
                     "}, {%64, %65, %66, %67}, %68, p, 1, 1, 0;\n}\n"                         \
                     : ACC64(d)                                                               \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));         \
    }
WGMMA_RS_ADD_128("f16", half_tag)
WGMMA_RS_ADD_128("bf16", bfloat_tag)

/* O[64][128] += P[64][16] V[16][128]: P in registers, V MN-major in shared memory. */
#define WGMMA_RS_128(type, tag)                                                                 \
    __device__ __forceinline__ void wgmma_rs(tag, float(&d)[64], const uint32_t *a, uint64_t b) \
    {                                                                                           \
        asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" REGS64   \
                     "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"                              \
                     : ACC64(d)                                                                 \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                     \
    }
WGMMA_RS_128("f16", half_tag)
WGMMA_RS_128("bf16", bfloat_tag)

/* O[64][64] += P[64][16] V[16][64]. */
#define WGMMA_RS_64(type, tag)                                                                  \
    __device__ __forceinline__ void wgmma_rs(tag, float(&d)[32], const uint32_t *a, uint64_t b) \
    {                                                                                           \
        asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" REGS32    \
                     "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;\n"                              \
                     : ACC32(d, 0)                                                              \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                     \
    }
WGMMA_RS_64("f16", half_tag)
WGMMA_RS_64("bf16", bfloat_tag)

__device__ __forceinline__ void wgmma_fence()
{
    asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}

/* Until at most PENDING groups run; d is of one that no longer does. */
template <int PENDING> __device__ __forceinline__ void wgmma_wait(float (&d)[64])
{
    asm volatile("wgmma.wait_group.sync.aligned %64;\n" : ACC64(d) : "n"(PENDING) : "memory");
}

template <int PENDING> __device__ __forceinline__ void wgmma_wait(float (&d)[32])
{
    asm volatile("wgmma.wait_group.sync.aligned %32;\n" : ACC32(d, 0) : "n"(PENDING) : "memory");
}

/* Keeps the compiler from moving what it does to d across this point. */
__device__ __forceinline__ void wgmma_touch(float (&d)[64])
{
    asm volatile("" : ACC64(d)::"memory");
}

__device__ __forceinline__ void wgmma_touch(float (&d)[32])
{
    asm volatile("" : ACC32(d, 0)::"memory");
}

/* address: in shared memory; leading, stride: bytes. Swizzle of 128 bytes. */
__device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t address, uint32_t leading,
                                                     uint32_t stride)
{
    return (uint64_t)((address & 0x3ffff) >> 4) | (uint64_t)(leading >> 4) << 16 |
           (uint64_t)(stride >> 4) << 32 | (uint64_t)1 << 62;
}

__device__ __forceinline__ uint32_t shared_address(const void *pointer)
{
    return (uint32_t)__cvta_generic_to_shared(pointer);
}

__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals)
                 : "memory");
}

__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier),
                 "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint32_t barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity)
{
    asm volatile("{\n.reg .pred p;\nagain:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@!p bra again;\n}\n" ::"r"(barrier),
                 "r"(parity)
                 : "memory");
}

/* A box of a tensor map, at column x of row y, to shared memory; counts its bytes on the barrier.
 */
__device__ __forceinline__ void tensor_load(uint32_t to, const void *map, uint32_t x, uint32_t y,
                                            uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];\n" ::"r"(to),
                 "l"(map), "r"(x), "r"(y), "r"(barrier)
                 : "memory");
}

/* 16 bytes, or 16 zero bytes where not valid; copies_wait: all this thread's are there. */
__device__ __forceinline__ void copy16(uint32_t to, uint64_t from, bool valid)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from),
                 "r"(valid ? 16 : 0)
                 : "memory");
}

__device__ __forceinline__ void copies_wait()
{
    asm volatile("cp.async.wait_all;\n" ::: "memory");
}

__device__ __forceinline__ void tensor_map_prefetch(const void *map)
{
    asm volatile("prefetch.tensormap [%0];\n" ::"l"(map) : "memory");
}

/* Ordinary writes to shared memory before this are seen by products and tensor copies after it. */
__device__ __forceinline__ void fence_async()
{
    asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

__device__ __forceinline__ void matrices_load(uint32_t *to, uint32_t from)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
}

template <int COUNT> __device__ __forceinline__ void registers_give()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(COUNT));
}

template <int COUNT> __device__ __forceinline__ void registers_take()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(COUNT));
}

/* Named barriers of the CTA: id 0 is __syncthreads. */
__device__ __forceinline__ void named_sync(uint32_t id, uint32_t threads)
{
    asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void named_arrive(uint32_t id, uint32_t threads)
{
    asm volatile("bar.arrive %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

/* low in the lower half. */
__device__ __forceinline__ uint32_t pack2(half_tag, float low, float high)
{
    uint32_t y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

__device__ __forceinline__ uint32_t pack2(bfloat_tag, float low, float high)
{
    uint32_t y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

#endif
