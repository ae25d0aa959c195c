/* gather.cu - slices between device memory and mapped host memory, by few blocks.
 *
 * Over PCIe 5 a read takes about 2 us, so 51 GB/s needs 100 KiB under way; a thread keeps four
 * loads of 16 bytes in flight, 4 blocks of 1,024 threads 256 KiB. More blocks gain nothing and take
 * bandwidth from the kernels beside them (transfer.c).
 *
 * Slices are cut into `split` equal parts (more than one only where there are few slices), and each
 * block takes a run of these; it brings their descriptors into shared memory, 256 at a time, since
 * they may lie across the link too; its warps then take pieces of 2 KiB in turn. */
#include "kernels/cuda/rows.cuh"

enum { BATCH = 256, LOADS = 4, PIECE = 32 * 16 * LOADS };

typedef struct slice {
    uint64_t to, from;
    uint32_t bytes, reserved;
} slice;

static __device__ __forceinline__ slice part_of(const slice *slices, uint64_t index, uint32_t split)
{
    slice s = slices[index / split];
    if (split == 1) return s;
    uint64_t units = s.bytes / 16, part = index % split;
    uint64_t first = units * part / split, end = units * (part + 1) / split;
    s.to += first * 16;
    s.from += first * 16;
    s.bytes = (uint32_t)((end - first) * 16);
    return s;
}

static __device__ __forceinline__ void copy_piece(const slice &s, uint32_t offset)
{
    uint4 data[LOADS];
    uint32_t at = offset + threadIdx.x % 32 * 16;
    const char *from = (const char *)s.from;
    char *to = (char *)s.to;
#pragma unroll
    for (int i = 0; i < LOADS; i++)
        if (at + i * 512 < s.bytes) data[i] = __ldcs((const uint4 *)(from + at + i * 512));
#pragma unroll
    for (int i = 0; i < LOADS; i++)
        if (at + i * 512 < s.bytes) __stcs((uint4 *)(to + at + i * 512), data[i]);
}

extern "C" __global__ void __launch_bounds__(1024, 1)
    pllm_gather(const slice *slices, uint32_t count, uint32_t split)
{
    __shared__ slice batch[BATCH];
    __shared__ uint32_t ends[BATCH]; /* pieces up to and with this part of the batch */
    rows_begin();
    uint64_t parts = (uint64_t)count * split;
    uint64_t first = parts * blockIdx.x / gridDim.x, end = parts * (blockIdx.x + 1) / gridDim.x;
    uint32_t warp = threadIdx.x / 32, warps = blockDim.x / 32;
    for (; first < end; first += BATCH) {
        uint32_t have = end - first < BATCH ? (uint32_t)(end - first) : BATCH;
        if (threadIdx.x < have) {
            batch[threadIdx.x] = part_of(slices, first + threadIdx.x, split);
            ends[threadIdx.x] = (batch[threadIdx.x].bytes + PIECE - 1) / PIECE;
        }
        __syncthreads();
        if (warp == 0) { /* running sums, 32 at a time */
            uint32_t before = 0;
            for (uint32_t i = threadIdx.x; i < BATCH; i += 32) {
                uint32_t sum = i < have ? ends[i] : 0;
#pragma unroll
                for (int apart = 1; apart < 32; apart *= 2) {
                    uint32_t left = __shfl_up_sync(0xffffffff, sum, apart);
                    if (threadIdx.x >= apart) sum += left;
                }
                if (i < have) ends[i] = before + sum;
                before += __shfl_sync(0xffffffff, sum, 31);
            }
        }
        __syncthreads();
        uint32_t total = ends[have - 1], i = 0;
        for (uint32_t piece = warp; piece < total; piece += warps) {
            while (piece >= ends[i]) i++;
            copy_piece(batch[i], (piece - (i ? ends[i - 1] : 0)) * PIECE);
        }
        __syncthreads();
    }
}
