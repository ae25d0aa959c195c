/* prefill_sm90.cu - causal attention of prompt rows over paged blocks, on Hopper's tensor cores.
 *
 * The algorithm is FlashAttention-3's (arXiv:2407.08608), written anew for blocks of 32 tokens.
 * A CTA does 128 query rows at absolute positions 128 t .. 128 t + 127 for one head, over tiles of
 * 128 tokens, from the tile on the diagonal down to tile 0. One warp copies K and V tiles into a
 * ring with tensor copies, block by block through the table; two warpgroups of 64 rows each
 * multiply. While a warpgroup's products of the next tile's scores and of this tile's values
 * run, it does softmax; and the two warpgroups take turns, so that one's softmax
 * runs beside the other's products. CTAs stay: one that is done takes the next tile of queries,
 * whose first keys are on their way before it has stored its output.
 *
 *   shared, in tiles of rows of 128 bytes (prefill_wgmma.cuh), WIDE = head_dim / 64 side by side:
 *     Q [WIDE][128] (on its way to registers) | K [STAGES][WIDE][128] | V [STAGES][WIDE][128] |
 * barriers
 *
 * A pool of blocks is one matrix of rows of head_dim elements to the tensor map: block i, head h
 * has its 32 key rows at (i * rows of a block) + 64 h and its values 32 further.
 *
 * The diagonal tile reads blocks of the item's own rows in their open form, from the stage, and
 * those before it from the pool. Where the two forms differ (distinct) it is done twice: own blocks
 * in the open form, then earlier blocks in the sealed form. Blocks that nobody sees are replaced by
 * ones that hold finite numbers, since 0 * NaN would not vanish.
 *
 * Rule 1: a row lies at one place of one tile whatever the cut, walks the same tiles in the same
 * order, and a row of a product depends on no other. The first tile holds the row's own token, so
 * the running maximum is finite from there on. */
#include "prefill_device.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define PREFILL_SM90 1
#endif
#if !defined(__CUDA_ARCH__) || defined(PREFILL_SM90)
#include "prefill_wgmma.cuh"

namespace
{
constexpr uint32_t TILE = 128, BLOCK = 32, STAGES = 2;
constexpr uint32_t TILE_BYTES = TILE * 128; /* 64 columns of a tile */
constexpr uint32_t TURN = 2;                /* named barriers: 2, 3 turns; 4, 5 a warpgroup */

template <uint32_t WIDE> struct layout {
    static constexpr uint32_t matrix = WIDE * TILE_BYTES;
    static constexpr uint32_t q = 0, k = matrix, v = k + STAGES * matrix;
    static constexpr uint32_t barriers = v + STAGES * matrix;
    static constexpr uint32_t k_full = barriers, v_full = k_full + 8 * STAGES;
    static constexpr uint32_t k_free = v_full + 8 * STAGES, v_free = k_free + 8 * STAGES;
    static constexpr uint32_t work_full = v_free + 8 * STAGES, work_free = work_full + 8 * STAGES;
    static constexpr uint32_t work = work_free + 8 * STAGES;
    /* the launcher gives 128 bytes for them */
};

/* Where in the ring: slot, and the parity of its barriers. */
struct ring {
    uint32_t slot = 0, parity = 0;
    __device__ __forceinline__ void next()
    {
        slot++;
        if (slot == STAGES) slot = 0, parity ^= 1;
    }
};

/* What a warp keeps from one tile of queries to the next. */
struct place {
    ring k, v, work;
};

/* The four blocks of a tile as matrix rows; bit i of staged: block i is in the stage. */
struct tile_rows {
    uint32_t row[4], staged;
};

template <uint32_t WIDE>
__device__ __forceinline__ void tile_load(uint32_t to, const tile_rows &rows, uint32_t add,
                                          const prefill_tensor_map *sealed,
                                          const prefill_tensor_map *stage, uint32_t full)
{
    barrier_expect(full, layout<WIDE>::matrix);
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        const void *map = rows.staged >> i & 1 ? stage : sealed;
#pragma unroll
        for (uint32_t j = 0; j < WIDE; j++)
            tensor_load(to + j * TILE_BYTES + i * BLOCK * 128, map, 64 * j, rows.row[i] + add,
                        full);
    }
}

/* Which tile of queries comes next: CTAs that are done take the next of the grid's order. A launch
 * uses one counter and leaves it 0; the launcher gives the counters out in turn. */
constexpr uint32_t NONE = ~0u;
__device__ uint32_t counters[64];

/* The copying warp: takes the next tile that is one, tells the others. false: none is left. */
template <uint32_t WIDE>
__device__ __forceinline__ bool work_take(const prefill_args &a, char *shared, uint32_t base,
                                          ring &at, prefill_work *w)
{
    using in = layout<WIDE>;
    const uint32_t lane = threadIdx.x % 32;
    uint32_t index;
    do {
        if (lane == 0) index = atomicAdd(&counters[a.counter], 1);
        index = __shfl_sync(~0u, index, 0);
    } while (index < a.work_count && !prefill_find<TILE>(a, index, w));
    const bool found = index < a.work_count;
    /* Every CTA ends with one number too many: the last of those. */
    if (index == a.work_count + gridDim.x - 1 && lane == 0) atomicExch(&counters[a.counter], 0);
    barrier_wait(base + in::work_free + 8 * at.slot, at.parity ^ 1);
    if (lane == 0) {
        *(volatile uint32_t *)(shared + in::work + 4 * at.slot) = found ? index : NONE;
        barrier_arrive(base + in::work_full + 8 * at.slot);
    }
    at.next();
    return found;
}

/* The others: what it told. */
template <uint32_t WIDE>
__device__ __forceinline__ bool work_hear(const prefill_args &a, char *shared, uint32_t base,
                                          ring &at, prefill_work *w)
{
    using in = layout<WIDE>;
    barrier_wait(base + in::work_full + 8 * at.slot, at.parity);
    const uint32_t index = *(volatile uint32_t *)(shared + in::work + 4 * at.slot);
    /* Each thread for itself, once a tile of queries: a sanitizer can follow that. */
    barrier_arrive(base + in::work_free + 8 * at.slot);
    at.next();
    return index != NONE && prefill_find<TILE>(a, index, w);
}

/* What the copying warp does for one tile of queries; all lanes come along, lane 0 issues. Shortly
 * before the end it takes the next. */
template <uint32_t WIDE, bool DISTINCT>
__device__ __forceinline__ bool produce(const prefill_args &a, const prefill_work &w,
                                        const prefill_tensor_map *sealed,
                                        const prefill_tensor_map *stage, char *shared,
                                        uint32_t base, place &place_at, prefill_work *next)
{
    using at = layout<WIDE>;
    ring &k_at = place_at.k, &v_at = place_at.v;
    bool more = false;
    const uint32_t lane = threadIdx.x % 32, slice = w.head / a.group * 2 * BLOCK;
    const uint32_t first = w.position / BLOCK, end = w.position + w.rows;
    const uint32_t full = end / BLOCK, last = (end - 1) / BLOCK; /* full blocks; the last one */
    const uint32_t count = w.tile + 1 + DISTINCT;

    /* lane 4 s + i: block i of the tile s before the one that comes next. */
    int64_t block = (int64_t)(w.tile - 1) * 4 - (int64_t)(lane / 4) * 4 + lane % 4;
    if (w.tile == 0) block = -1;
    uint32_t ahead = block >= 0 ? w.table[block] : 0, entry = 0;
    block -= 32;

    tile_rows rows = {}, before = {};
    for (uint32_t n = 0; n <= count; n++) {
        before = rows;
        if (n < count) {
            if (n <= DISTINCT) { /* the diagonal */
                uint32_t b = w.tile * 4 + lane % 4, staged, row;
                if (DISTINCT && n == 1) {
                    staged = full == 0;
                    if (!staged) row = w.table[min(b, full - 1)];
                } else {
                    staged = DISTINCT || b >= first;
                    if (!staged) row = w.table[b];
                }
                if (staged) {
                    b = min(max(b, first), last);
                    row = (w.stage_first + b - first) * a.stage_block_rows;
                } else
                    row *= a.sealed_block_rows;
                rows.staged = __ballot_sync(~0u, staged) & 15;
#pragma unroll
                for (uint32_t i = 0; i < 4; i++) rows.row[i] = __shfl_sync(~0u, row, i) + slice;
            } else {
                const uint32_t step = (n - 1 - DISTINCT) % 8;
                if (step == 0) {
                    entry = ahead;
                    ahead = block >= 0 ? w.table[block] : 0;
                    block -= 32;
                }
                rows.staged = 0;
#pragma unroll
                for (uint32_t i = 0; i < 4; i++)
                    rows.row[i] =
                        __shfl_sync(~0u, entry, step * 4 + i) * a.sealed_block_rows + slice;
            }
            barrier_wait(base + at::k_free + 8 * k_at.slot, k_at.parity ^ 1);
            if (lane == 0)
                tile_load<WIDE>(base + at::k + k_at.slot * at::matrix, rows, 0, sealed, stage,
                                base + at::k_full + 8 * k_at.slot);
            k_at.next();
        }
        if (n + 3 == count || (count < 3 && n == 0))
            more = work_take<WIDE>(a, shared, base, place_at.work, next);
        if (n > 0) {
            barrier_wait(base + at::v_free + 8 * v_at.slot, v_at.parity ^ 1);
            if (lane == 0)
                tile_load<WIDE>(base + at::v + v_at.slot * at::matrix, before, BLOCK, sealed, stage,
                                base + at::v_full + 8 * v_at.slot);
            v_at.next();
        }
        __syncwarp();
    }
    return more;
}

/* Starts copying this warpgroup's 64 rows of Q; zeros where the item has no row. */
template <uint32_t WIDE>
__device__ __forceinline__ void q_copy(const prefill_args &a, const prefill_work &w, uint32_t to,
                                       uint32_t group)
{
    const uint32_t thread = threadIdx.x % 128;
#pragma unroll
    for (uint32_t i = 0; i < WIDE * 4; i++) {
        const uint32_t index = i * 128 + thread, row = group * 64 + index / (8 * WIDE);
        const uint32_t piece = index % (8 * WIDE), position = w.tile * TILE + row;
        const bool valid = position >= w.position && position < w.position + w.rows;
        const uint64_t source = w.row_first + (valid ? position - w.position : 0);
        const uint64_t from = a.q + 2 * (source * a.q_stride + (uint64_t)w.head * (WIDE * 64));
        copy16(to + piece / 8 * TILE_BYTES + row * 128 + ((piece ^ row) % 8) * 16,
               from + 16 * piece, valid);
    }
}

template <typename TAG, uint32_t WIDE>
__device__ __forceinline__ void scores_start(float (&s)[64], const uint32_t (&q)[WIDE * 16],
                                             uint32_t k)
{
    const uint64_t k_at = wgmma_descriptor(k, 16, 1024);
    wgmma_touch(s);
    wgmma_fence();
#pragma unroll
    for (uint32_t j = 0; j < WIDE; j++) {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t on = (j * TILE_BYTES + i * 32) >> 4;
            wgmma_rs_add(TAG(), s, q + 4 * (4 * j + i), k_at + on, i + j > 0);
        }
    }
    wgmma_commit();
}

/* This warp's 16 rows of Q as A operands; q: of the warpgroup's rows. */
template <uint32_t WIDE>
__device__ __forceinline__ void q_load(uint32_t (&to)[WIDE * 16], uint32_t q)
{
    const uint32_t lane = threadIdx.x % 32, row = threadIdx.x / 32 % 4 * 16 + lane % 16;
#pragma unroll
    for (uint32_t i = 0; i < WIDE * 4; i++) {
        const uint32_t piece = 2 * i + lane / 16;
        matrices_load(to + 4 * i,
                      q + piece / 8 * TILE_BYTES + row * 128 + ((piece ^ row) % 8) * 16);
    }
}

template <typename TAG, uint32_t WIDE>
__device__ __forceinline__ void values_start(float (&o)[WIDE * 32], const uint32_t (&p)[32],
                                             uint32_t v)
{
    const uint64_t v_at = wgmma_descriptor(v, TILE_BYTES, 1024);
    wgmma_touch(o);
    wgmma_fence();
#pragma unroll
    for (uint32_t i = 0; i < 8; i++) wgmma_rs(TAG(), o, p + 4 * i, v_at + (i * 16 * 128 >> 4));
    wgmma_commit();
}

/* What a tile on the diagonal shows: everything up to the row itself; of that only the row's own
 * block; only the blocks before it. */
enum { SEE_CAUSAL, SEE_OWN, SEE_EARLIER };

template <int SEE> __device__ __forceinline__ void mask(float (&s)[64], uint32_t row)
{
    const uint32_t column = threadIdx.x % 4 * 2;
#pragma unroll
    for (uint32_t i = 0; i < 64; i++) {
        const uint32_t r = row + i / 2 % 2 * 8, c = column + i / 4 * 8 + i % 2;
        bool seen = c <= r;
        if (SEE == SEE_OWN) seen = seen && c / BLOCK == r / BLOCK;
        if (SEE == SEE_EARLIER) seen = c / BLOCK < r / BLOCK;
        if (!seen) s[i] = -INFINITY;
    }
}

struct softmax {
    float max[2], sum[2]; /* of rows l / 4 and l / 4 + 8; sum: of this thread's columns */
};

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

/* Scores to weights. keep: what the older sums and outputs are multiplied by. Four chains a row, so
 * that one warp alone keeps its units busy. */
__device__ __forceinline__ void softmax_step(softmax &state, float (&s)[64], float (&keep)[2],
                                             float scale, bool start)
{
#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
        float top[4], sum[4];
#pragma unroll
        for (uint32_t i = 0; i < 32; i++) {
            const float x = s[i / 2 * 4 + 2 * r + i % 2];
            top[i % 4] = i < 4 ? x : fmaxf(top[i % 4], x);
        }
        float max = quad_max(fmaxf(fmaxf(top[0], top[1]), fmaxf(top[2], top[3])));
        if (!start) max = fmaxf(max, state.max[r]);
        keep[r] = start ? 0 : exp2_fast((state.max[r] - max) * scale);
        state.max[r] = max;
        const float less = -max * scale;
#pragma unroll
        for (uint32_t i = 0; i < 32; i++) {
            float &x = s[i / 2 * 4 + 2 * r + i % 2];
            x = exp2_fast(fmaf(x, scale, less));
            sum[i % 4] = i < 4 ? x : sum[i % 4] + x;
        }
        const float total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
        state.sum[r] = start ? total : fmaf(state.sum[r], keep[r], total);
    }
}

/* Without it the assembler moves the wait for the values' product above the softmax, and nothing
 * overlaps: a branch, never taken, that needs every weight. */
__device__ __forceinline__ void softmax_finished(const softmax &state)
{
    if (__any_sync(~0u, state.sum[0] + state.sum[1] < 0)) asm volatile("nanosleep.u32 1;\n");
}

template <typename TAG>
__device__ __forceinline__ void weights_pack(uint32_t (&p)[32], const float (&s)[64])
{
#pragma unroll
    for (uint32_t i = 0; i < 32; i++) p[i] = pack2(TAG(), s[2 * i], s[2 * i + 1]);
}

template <uint32_t WIDE>
__device__ __forceinline__ void output_scale(float (&o)[WIDE * 32], const float (&by)[2])
{
#pragma unroll
    for (uint32_t i = 0; i < WIDE * 32; i++) o[i] *= by[i / 2 % 2];
}

template <uint32_t WIDE, int DTYPE>
__device__ __forceinline__ void output_store(const prefill_args &a, const prefill_work &w,
                                             const float (&o)[WIDE * 32], uint32_t row)
{
#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
        const uint32_t position = w.tile * TILE + row + 8 * r;
        if (position < w.position || position >= w.position + w.rows) continue;
        const uint64_t to = (uint64_t)(w.row_first + (position - w.position)) * a.out_stride +
                            (uint64_t)w.head * (WIDE * 64) + threadIdx.x % 4 * 2;
#pragma unroll
        for (uint32_t j = 0; j < WIDE * 8; j++)
            prefill_store2(a.out, DTYPE, to + 8 * j, o[4 * j + 2 * r], o[4 * j + 2 * r + 1]);
    }
}

/* One tile of queries; Q is in shared memory. OVERLAP: scores of the next tile run beside this
 * tile's values and softmax. TURNS: the warpgroups start their products in turn. next: what is done
 * after this (false: nothing), whose Q is asked for as soon as it is known. */
template <typename TAG, uint32_t WIDE, bool DISTINCT, bool OVERLAP, bool TURNS>
__device__ __forceinline__ bool consume(const prefill_args &a, const prefill_work &w, char *shared,
                                        uint32_t base, uint32_t group, place &at,
                                        prefill_work *next)
{
    using in = layout<WIDE>;
    const uint32_t thread = threadIdx.x % 128, lane = threadIdx.x % 32;
    const uint32_t row = group * 64 + thread / 32 * 16 + lane / 4; /* and 8 below it */
    const uint32_t count = w.tile + 1 + DISTINCT;
    float s[64], o[WIDE * 32], keep[2];
    uint32_t p[32];
    softmax state;
#pragma unroll
    for (uint32_t i = 0; i < WIDE * 32; i++) o[i] = 0;

    uint32_t a_of_q[WIDE * 16];
    q_load<WIDE>(a_of_q, base + in::q + group * 64 * 128);
    barrier_wait(base + in::k_full + 8 * at.k.slot, at.k.parity);
    scores_start<TAG, WIDE>(s, a_of_q, base + in::k + at.k.slot * in::matrix);
    wgmma_wait<0>(s);
    if (lane == 0) barrier_arrive(base + in::k_free + 8 * at.k.slot);
    at.k.next();
    mask<DISTINCT ? SEE_OWN : SEE_CAUSAL>(s, row);
    softmax_step(state, s, keep, a.scale_log2, true);
    weights_pack<TAG>(p, s);

#pragma unroll 1
    for (uint32_t n = 1; n < count; n++) {
        barrier_wait(base + in::k_full + 8 * at.k.slot, at.k.parity);
        if (TURNS) named_sync(TURN + group, 256);
        scores_start<TAG, WIDE>(s, a_of_q, base + in::k + at.k.slot * in::matrix);
        if (!OVERLAP) wgmma_wait<0>(s);
        barrier_wait(base + in::v_full + 8 * at.v.slot, at.v.parity);
        values_start<TAG, WIDE>(o, p, base + in::v + at.v.slot * in::matrix);
        if (TURNS) named_arrive(TURN + (group ^ 1), 256);
        if (OVERLAP)
            wgmma_wait<1>(s);
        else
            wgmma_wait<0>(o);
        if (lane == 0) barrier_arrive(base + in::k_free + 8 * at.k.slot);
        at.k.next();
        if (DISTINCT && n == 1) mask<SEE_EARLIER>(s, row);
        softmax_step(state, s, keep, a.scale_log2, false);
        softmax_finished(state);
        wgmma_wait<0>(o);
        if (lane == 0) barrier_arrive(base + in::v_free + 8 * at.v.slot);
        at.v.next();
        weights_pack<TAG>(p, s);
        /* Mostly no row has a new maximum, and a product with 1 changes nothing. */
        if (__any_sync(~0u, keep[0] != 1 || keep[1] != 1)) output_scale<WIDE>(o, keep);
    }
    const bool more = work_hear<WIDE>(a, shared, base, at.work, next);
    if (more) {
        named_sync(TURN + 2 + group, 128); /* all of this warpgroup has loaded its Q */
        q_copy<WIDE>(a, *next, base + in::q, group);
    }
    barrier_wait(base + in::v_full + 8 * at.v.slot, at.v.parity);
    values_start<TAG, WIDE>(o, p, base + in::v + at.v.slot * in::matrix);
    const float by[2] = {1 / quad_sum(state.sum[0]), 1 / quad_sum(state.sum[1])};
    wgmma_wait<0>(o);
    if (lane == 0) barrier_arrive(base + in::v_free + 8 * at.v.slot);
    at.v.next();
    output_scale<WIDE>(o, by);
    if (a.out_dtype == PREFILL_F32)
        output_store<WIDE, PREFILL_F32>(a, w, o, row);
    else if (a.out_dtype == PREFILL_F16)
        output_store<WIDE, PREFILL_F16>(a, w, o, row);
    else
        output_store<WIDE, PREFILL_BF16>(a, w, o, row);
    return more;
}

template <typename TAG, uint32_t WIDE, bool DISTINCT, bool OVERLAP, bool TURNS>
__device__ __forceinline__ void prefill(const prefill_args &a, const prefill_tensor_map *sealed,
                                        const prefill_tensor_map *stage)
{
    using in = layout<WIDE>;
    extern __shared__ __align__(1024) char shared[];
    const uint32_t base = shared_address(shared);
    if (threadIdx.x == 0) {
        tensor_map_prefetch(sealed);
        tensor_map_prefetch(stage);
        for (uint32_t i = 0; i < STAGES; i++) {
            barrier_init(base + in::k_full + 8 * i, 1), barrier_init(base + in::v_full + 8 * i, 1);
            barrier_init(base + in::k_free + 8 * i, 8), barrier_init(base + in::v_free + 8 * i, 8);
            barrier_init(base + in::work_full + 8 * i, 1);
            barrier_init(base + in::work_free + 8 * i, 256);
        }
        fence_async();
    }
    __syncthreads();
    prefill_work w, next;
    place at;
    if (threadIdx.x < 128) {
        registers_give<40>();
        if (threadIdx.x < 32) {
            bool more = work_take<WIDE>(a, shared, base, at.work, &w);
            while (more) {
                more = produce<WIDE, DISTINCT>(a, w, sealed, stage, shared, base, at, &next);
                w = next;
            }
        }
    } else {
        registers_take<232>();
        const uint32_t group = threadIdx.x / 128 - 1;
        if (TURNS && group == 0) named_arrive(TURN, 256);
        bool more = work_hear<WIDE>(a, shared, base, at.work, &w);
        if (more) q_copy<WIDE>(a, w, base + in::q, group);
        while (more) {
            copies_wait();
            named_sync(TURN + 2 + group, 128);
            more =
                consume<TAG, WIDE, DISTINCT, OVERLAP, TURNS>(a, w, shared, base, group, at, &next);
            w = next;
        }
    }
}
} // namespace
#endif

#ifdef PREFILL_SM90
#define PREFILL_BODY(...) prefill<__VA_ARGS__>(a, &sealed, &stage);
#else
#define PREFILL_BODY(...)
#endif

#define PREFILL_KERNEL(name, ...)                                                                  \
    extern "C" __global__ void __launch_bounds__(384, 1) name(                                     \
        const __grid_constant__ prefill_args a, const __grid_constant__ prefill_tensor_map sealed, \
        const __grid_constant__ prefill_tensor_map stage)                                          \
    {                                                                                              \
        PREFILL_BODY(__VA_ARGS__)                                                                  \
    }

#ifndef PREFILL_OVERLAP /* for measuring what each of the two gives */
#define PREFILL_OVERLAP true
#define PREFILL_TURNS true
#endif

PREFILL_KERNEL(pllm_prefill_sm90_f16_64, half_tag, 1, false, PREFILL_OVERLAP, PREFILL_TURNS)
PREFILL_KERNEL(pllm_prefill_sm90_f16_128, half_tag, 2, false, PREFILL_OVERLAP, PREFILL_TURNS)
PREFILL_KERNEL(pllm_prefill_sm90_bf16_64, bfloat_tag, 1, false, PREFILL_OVERLAP, PREFILL_TURNS)
PREFILL_KERNEL(pllm_prefill_sm90_bf16_128, bfloat_tag, 2, false, PREFILL_OVERLAP, PREFILL_TURNS)
PREFILL_KERNEL(pllm_prefill_sm90_f16_64_distinct, half_tag, 1, true, PREFILL_OVERLAP, PREFILL_TURNS)
PREFILL_KERNEL(pllm_prefill_sm90_f16_128_distinct, half_tag, 2, true, PREFILL_OVERLAP,
               PREFILL_TURNS)
PREFILL_KERNEL(pllm_prefill_sm90_bf16_64_distinct, bfloat_tag, 1, true, PREFILL_OVERLAP,
               PREFILL_TURNS)
PREFILL_KERNEL(pllm_prefill_sm90_bf16_128_distinct, bfloat_tag, 2, true, PREFILL_OVERLAP,
               PREFILL_TURNS)
