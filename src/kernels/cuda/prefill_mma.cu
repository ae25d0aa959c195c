/* prefill_mma.cu - causal attention of prompt rows over paged blocks, on the tensor cores of any
 * GPU from sm_80 on: what runs where prefill_sm90.cu does not.
 *
 * The algorithm is FlashAttention-2's (arXiv:2307.08691), written anew for blocks of 32 tokens. A
 * CTA does 128 query rows at absolute positions for one head, four warps of 32 rows, over tiles of
 * 64 tokens from the diagonal down to 0. Copies into shared memory are asynchronous: the values of
 * a tile come while its scores are made, the keys of the next while its softmax and output are.
 *
 *   shared:  Q [128][head_dim] | K [64][head_dim] | V [64][head_dim]
 *   the 16-byte piece c of row r lies at piece c ^ r % 8, so that ldmatrix meets no bank twice
 *
 * The diagonal is two tiles; where open and sealed forms differ they are done twice, as in
 * prefill_sm90.cu. The running maximum starts at a finite floor: a tile of which a row sees nothing
 * then multiplies its sums by 1 and adds 0. */
#include "prefill_device.cuh"

namespace
{
constexpr uint32_t ROWS = 128, TOKENS = 64, BLOCK = 32, THREADS = 128;
constexpr float FLOOR = -1e30f;

struct half_tag {
};
struct bfloat_tag {
};

__device__ __forceinline__ uint32_t shared_address(const void *pointer)
{
    return (uint32_t)__cvta_generic_to_shared(pointer);
}

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

__device__ __forceinline__ void matrices_load(uint32_t (&to)[4], uint32_t from)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
}

__device__ __forceinline__ void matrices_load_transposed(uint32_t (&to)[4], uint32_t from)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
}

#define MMA(type, tag)                                                                         \
    __device__ __forceinline__ void mma(tag, float(&d)[4], const uint32_t(&a)[4], uint32_t b0, \
                                        uint32_t b1)                                           \
    {                                                                                          \
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 "            \
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"       \
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                          \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));          \
    }
MMA("f16", half_tag)
MMA("bf16", bfloat_tag)

__device__ __forceinline__ float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

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

/* WIDE: head_dim / 64. */
template <uint32_t WIDE> __device__ __forceinline__ uint32_t place(uint32_t row, uint32_t piece)
{
    return row * (WIDE * 128) + (piece / 8 * 8 + (piece ^ row) % 8) * 16;
}

/* From the place of piece 0 or 1 of a row to that of the piece 2 * pairs further: what place()
 * gives, without a register for each. Tiles are aligned to 128 bytes. */
__device__ __forceinline__ uint32_t place_on(uint32_t from, uint32_t pairs)
{
    return (from ^ pairs % 4 * 32) + pairs / 4 * 128;
}

/* What a tile shows to a row. */
enum see { SEE_ALL, SEE_CAUSAL, SEE_OWN, SEE_EARLIER };

struct step {
    uint32_t tile;  /* of 64 tokens */
    uint32_t shows; /* enum see */
};

/* Step n: the diagonal's two tiles, later first; if distinct, again in the sealed form; the rest.
 */
template <bool DISTINCT>
__device__ __forceinline__ step step_find(const prefill_work &w, uint32_t n)
{
    const uint32_t top = 2 * w.tile + 1;
    if (n < 2) return step{top - n, DISTINCT ? SEE_OWN : SEE_CAUSAL};
    if (!DISTINCT) return step{top - n, SEE_ALL};
    if (n < 4) return step{top + 2 - n, SEE_EARLIER};
    return step{top + 2 - n, SEE_ALL};
}

/* Address of the tile's block (0 or 1) of this head: its 32 key rows, then its 32 value rows.
 * Blocks nobody sees are replaced by ones with finite numbers. */
template <uint32_t WIDE, bool DISTINCT>
__device__ __forceinline__ uint64_t block_find(const prefill_args &a, const prefill_work &w,
                                               const step &s, uint32_t which)
{
    const uint32_t first = w.position / BLOCK, end = w.position + w.rows;
    const uint32_t full = end / BLOCK, last = (end - 1) / BLOCK;
    uint32_t block = 2 * s.tile + which;
    const uint64_t slice = (uint64_t)(w.head / a.group) * (2 * BLOCK * WIDE * 128);
    bool staged = false;
    if (s.shows == SEE_CAUSAL)
        staged = block >= first;
    else if (s.shows == SEE_OWN)
        staged = true;
    else if (s.shows == SEE_EARLIER) {
        staged = full == 0;
        if (!staged) block = min(block, full - 1);
    }
    if (!staged) return a.sealed + w.table[block] * a.sealed_bytes + slice;
    block = min(max(block, first), last);
    return a.stage + (uint64_t)(w.stage_first + block - first) * a.stage_bytes + slice;
}

/* 64 rows, 32 of each block. */
template <uint32_t WIDE>
__device__ __forceinline__ void tile_copy(uint32_t to, uint64_t block0, uint64_t block1)
{
#pragma unroll
    for (uint32_t i = 0; i < WIDE * 4; i++) {
        const uint32_t index = i * THREADS + threadIdx.x;
        const uint32_t row = index / (8 * WIDE), piece = index % (8 * WIDE);
        const uint64_t from = i < WIDE * 2 ? block0 + (uint64_t)row * (WIDE * 128)
                                           : block1 + (uint64_t)(row - BLOCK) * (WIDE * 128);
        copy16(to + place<WIDE>(row, piece), from + piece * 16, true);
    }
}

template <uint32_t WIDE>
__device__ __forceinline__ void q_copy(const prefill_args &a, const prefill_work &w, uint32_t to)
{
#pragma unroll
    for (uint32_t i = 0; i < WIDE * 8; i++) {
        const uint32_t index = i * THREADS + threadIdx.x;
        const uint32_t row = index / (8 * WIDE), piece = index % (8 * WIDE);
        const uint32_t position = w.tile * ROWS + row;
        const bool valid = position >= w.position && position < w.position + w.rows;
        const uint64_t source = valid ? w.row_first + (position - w.position) : w.row_first;
        const uint64_t from = a.q + 2 * (source * a.q_stride + (uint64_t)w.head * (WIDE * 64));
        copy16(to + place<WIDE>(row, piece), from + piece * 16, valid); /* zeros where not valid */
    }
}

/* s[m][j]: rows 16 m.. of the warp's 32, tokens 8 j... */
template <typename TAG, uint32_t WIDE>
__device__ __forceinline__ void scores(float (&s)[2][8][4], uint32_t q, uint32_t k)
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    q += place<WIDE>(warp * 32 + lane % 16, lane / 16);
    k += place<WIDE>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (uint32_t i = 0; i < 64; i++) s[i / 32][i / 4 % 8][i % 4] = 0;
#pragma unroll
    for (uint32_t c = 0; c < WIDE * 4; c++) {
        uint32_t rows[2][4];
#pragma unroll
        for (uint32_t m = 0; m < 2; m++)
            matrices_load(rows[m], place_on(q, c) + m * 16 * WIDE * 128);
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
            uint32_t tokens[4];
            matrices_load(tokens, place_on(k, c) + j * 16 * WIDE * 128);
#pragma unroll
            for (uint32_t m = 0; m < 2; m++) {
                mma(TAG(), s[m][2 * j], rows[m], tokens[0], tokens[1]);
                mma(TAG(), s[m][2 * j + 1], rows[m], tokens[2], tokens[3]);
            }
        }
    }
}

template <typename TAG, uint32_t WIDE>
__device__ __forceinline__ void values(float (&o)[2][WIDE * 8][4], const uint32_t (&p)[2][4][4],
                                       uint32_t v)
{
    const uint32_t lane = threadIdx.x % 32;
    v += place<WIDE>(lane % 16, lane / 16);
#pragma unroll
    for (uint32_t c = 0; c < 4; c++) {
#pragma unroll
        for (uint32_t j = 0; j < WIDE * 4; j++) {
            uint32_t columns[4];
            matrices_load_transposed(columns, place_on(v, j) + c * 16 * WIDE * 128);
#pragma unroll
            for (uint32_t m = 0; m < 2; m++) {
                mma(TAG(), o[m][2 * j], p[m][c], columns[0], columns[1]);
                mma(TAG(), o[m][2 * j + 1], p[m][c], columns[2], columns[3]);
            }
        }
    }
}

__device__ __forceinline__ bool sees(uint32_t shows, uint32_t row, uint32_t token)
{
    if (shows == SEE_EARLIER) return token / BLOCK < row / BLOCK;
    return token <= row && (shows == SEE_CAUSAL || token / BLOCK == row / BLOCK);
}

__device__ __forceinline__ float quad_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

__device__ __forceinline__ float quad_sum(float x)
{
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

template <typename TAG, uint32_t WIDE, bool DISTINCT>
__device__ __forceinline__ void prefill(const prefill_args &a)
{
    extern __shared__ __align__(128) char shared[];
    prefill_work w;
    if (!prefill_find<ROWS>(a, blockIdx.x, &w)) return;
    const uint32_t q = shared_address(shared), k = q + ROWS * WIDE * 128;
    const uint32_t v = k + TOKENS * WIDE * 128;
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t row = warp * 32 + lane / 4; /* and 8, 16, 24 below it, within the tile */
    const uint32_t count = 2 * w.tile + 2 + 2 * DISTINCT;

    float o[2][WIDE * 8][4], max[2][2], sum[2][2];
#pragma unroll
    for (uint32_t m = 0; m < 2; m++) {
        max[m][0] = max[m][1] = FLOOR;
        sum[m][0] = sum[m][1] = 0;
#pragma unroll
        for (uint32_t i = 0; i < WIDE * 32; i++) o[m][i / 4][i % 4] = 0;
    }
    step at = step_find<DISTINCT>(w, 0), next = at;
    uint64_t block0 = block_find<WIDE, DISTINCT>(a, w, at, 0);
    uint64_t block1 = block_find<WIDE, DISTINCT>(a, w, at, 1);
    q_copy<WIDE>(a, w, q);
    tile_copy<WIDE>(k, block0, block1);

#pragma unroll 1
    for (uint32_t n = 0; n < count; n++, at = next) {
        float s[2][8][4];
        copies_wait();
        __syncthreads(); /* these keys are here; nobody reads the last values any more */
        tile_copy<WIDE>(v, block0 + BLOCK * WIDE * 128, block1 + BLOCK * WIDE * 128);
        if (n + 1 < count) {
            next = step_find<DISTINCT>(w, n + 1);
            block0 = block_find<WIDE, DISTINCT>(a, w, next, 0);
            block1 = block_find<WIDE, DISTINCT>(a, w, next, 1);
        }
        scores<TAG, WIDE>(s, q, k);
        copies_wait();
        __syncthreads(); /* these values are here; nobody reads these keys any more */
        if (n + 1 < count) tile_copy<WIDE>(k, block0, block1);

        if (at.shows != SEE_ALL) {
            const uint32_t token = at.tile % 2 * TOKENS + lane % 4 * 2;
#pragma unroll
            for (uint32_t i = 0; i < 64; i++)
                if (!sees(at.shows, row + i / 32 * 16 + i / 2 % 2 * 8,
                          token + i / 4 % 8 * 8 + i % 2))
                    s[i / 32][i / 4 % 8][i % 4] = -INFINITY;
        }
        uint32_t p[2][4][4];
#pragma unroll
        for (uint32_t m = 0; m < 2; m++) {
            float keep[2];
#pragma unroll
            for (uint32_t r = 0; r < 2; r++) {
                float top = fmaxf(s[m][0][2 * r], s[m][0][2 * r + 1]);
#pragma unroll
                for (uint32_t j = 1; j < 8; j++)
                    top = fmaxf(top, fmaxf(s[m][j][2 * r], s[m][j][2 * r + 1]));
                top = fmaxf(quad_max(top), max[m][r]);
                keep[r] = exp2_fast((max[m][r] - top) * a.scale_log2);
                max[m][r] = top;
                const float less = -top * a.scale_log2;
                float total = 0;
#pragma unroll
                for (uint32_t i = 0; i < 16; i++) {
                    float &x = s[m][i / 2][2 * r + i % 2];
                    x = exp2_fast(fmaf(x, a.scale_log2, less));
                    total += x;
                }
                sum[m][r] = fmaf(sum[m][r], keep[r], total);
            }
#pragma unroll
            for (uint32_t i = 0; i < WIDE * 32; i++) o[m][i / 4][i % 4] *= keep[i / 2 % 2];
#pragma unroll
            for (uint32_t i = 0; i < 16; i++)
                p[m][i / 4][i % 4] =
                    pack2(TAG(), s[m][i / 2][i % 2 * 2], s[m][i / 2][i % 2 * 2 + 1]);
        }
        values<TAG, WIDE>(o, p, v);
    }

#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t position = w.tile * ROWS + row + 8 * i;
        const float by = 1 / quad_sum(sum[i / 2][i % 2]);
        if (position < w.position || position >= w.position + w.rows) continue;
        const uint64_t to = (uint64_t)(w.row_first + (position - w.position)) * a.out_stride +
                            (uint64_t)w.head * (WIDE * 64) + lane % 4 * 2;
#pragma unroll
        for (uint32_t j = 0; j < WIDE * 8; j++)
            prefill_store2(a.out, a.out_dtype, to + 8 * j, o[i / 2][j][i % 2 * 2] * by,
                           o[i / 2][j][i % 2 * 2 + 1] * by);
    }
}
} // namespace

#define PREFILL_KERNEL(name, ...)                            \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) \
        name(const __grid_constant__ prefill_args a)         \
    {                                                        \
        prefill<__VA_ARGS__>(a);                             \
    }

PREFILL_KERNEL(pllm_prefill_mma_f16_64, half_tag, 1, false)
PREFILL_KERNEL(pllm_prefill_mma_f16_128, half_tag, 2, false)
PREFILL_KERNEL(pllm_prefill_mma_bf16_64, bfloat_tag, 1, false)
PREFILL_KERNEL(pllm_prefill_mma_bf16_128, bfloat_tag, 2, false)
PREFILL_KERNEL(pllm_prefill_mma_f16_64_distinct, half_tag, 1, true)
PREFILL_KERNEL(pllm_prefill_mma_f16_128_distinct, half_tag, 2, true)
PREFILL_KERNEL(pllm_prefill_mma_bf16_64_distinct, bfloat_tag, 1, true)
PREFILL_KERNEL(pllm_prefill_mma_bf16_128_distinct, bfloat_tag, 2, true)
