/* attention_decode.cu - decode attention over the block table on tensor cores: head_dim 64 and 128.
 *
 * Idea: one CTA does one chunk of 256 tokens for one KV head of one row, for up to 8 query heads at
 * once, so that keys and values are read from memory once. Its 4 warps take blocks w and w + 4 of
 * the chunk's 8; no barrier until their results are added up. A decode step is bound by memory, and
 * the tensor cores are used because they leave the rest of the SM idle, not for their speed.
 *
 * Exactness: m16n8k16 with 4 query heads twice in the 8 columns: the high half of an f32 value and
 * what rounding to a half left (22 bits in f16, 16 in bf16). Keys and values enter as they are
 * stored. So one multiply gives f32-like products for free, and a thread holds the sums of both
 * halves, which it adds. The same for the weights p in the second product.
 *
 *   scores [tokens x heads] = K [tokens x channels] . q^T        p = 2^(score - max)
 *   out  [channels x heads] = V^T [channels x tokens] . p        (p is transposed in registers)
 *
 * Quantised keys: the channel's scale multiplies q (in half2, with the exact rounding error kept);
 * q . minimum is one more row. Values: the token's scale multiplies p, p . minimum is added to
 * all channels. Bytes and nibbles are halves already, subnormal ones: n * 2^-24, or n * 2^-20 for a
 * high nibble, which tensor cores multiply exactly; the sums take that power back. In their layout
 * a transposing ldmatrix gives pairs of tokens (keys) or channels (values) in one 16-bit element;
 * tokens and channels are therefore permuted: element n of tile 2j + i is number 16j + 2n + i. q is
 * made to fit half's range by a power of two of its own row.
 *
 * Shared memory, per warp: plain formats: two halves of slices, first the two blocks' keys, then
 * their values in the same place; quantised: two whole slices. 16-byte pieces lie XOR-swizzled so
 * that no read meets a bank twice. The open block of a quantised cache is plain: its warp does it
 * beside its sealed block, and its result is a fifth one in the sum over warps.
 *
 * Time: a CTA goes on to chunks a grid's height further; what it has used of a slot is filled with
 * the next chunk's part at once, so that copies stay under way through softmax and sums. Where the
 * grid is so small that CTAs have room, the wide form starts a chunk's copies together instead.
 *
 * Rule 1: everything depends on the row's own q, keys and values, in an order fixed by positions.
 */
#include "kernels/cuda/attention_products.cuh"

/* ---- results of the warps ---- */

struct results {
    float max[WARPS + 1][HEADS], sum[WARPS + 1][HEADS];
};

/* place(entry, head): where a result lies. FORMAT: of the block; quantised ones' sums are in the
 * units of bytes_ and nibbles_to_halves. */
template <int FORMAT, int HD, int TILES, typename PLACE>
__device__ __forceinline__ void put_result(PLACE place, results *all, uint32_t entry,
                                           uint32_t group, const float (&o)[TILES][HD / 16][4],
                                           const float (&base)[TILES], const float (&max)[TILES],
                                           const float (&sum)[TILES])
{
    uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < TILES; i++) {
        uint32_t head = TILE * i + t;
        if (head >= group) continue;
        float *to = place(entry, head);
#pragma unroll
        for (int j = 0; j < HD / 16; j++) {
            float unit = FORMAT == INT4 && j >= HD / 32 ? 0x1p20f : 0x1p24f;
            float x = o[i][j][0] + o[i][j][1], y = o[i][j][2] + o[i][j][3];
            if (layout<FORMAT, HD>::quantised) {
                *reinterpret_cast<float2 *>(to + 16 * j + 2 * g) =
                    make_float2(fmaf(x, unit, base[i]), fmaf(y, unit, base[i]));
            } else {
                to[16 * j + g] = x;
                to[16 * j + 8 + g] = y;
            }
        }
        if (g == 0) {
            all->max[entry][head] = max[i];
            all->sum[entry][head] = sum[i];
        }
    }
}

__device__ __forceinline__ void put_nothing(results *all, uint32_t entry)
{
    uint32_t lane = threadIdx.x % 32;
    if (lane < HEADS) {
        all->max[entry][lane] = MINUS_INFINITY;
        all->sum[entry][lane] = 0;
    }
}

/* What a CTA works on. */
template <int HD, int TILES> struct task {
    row_work work;
    uint32_t row, kv_head, head_first, group;
    uint8_t *shared;
    query<HD, TILES> *q;
    results *all;
};

/* Adds up the warps' results in their order and writes the chunk's partials, four channels a
 * thread. */
template <int HD, int TILES, typename PLACE>
__device__ __forceinline__ void add_results(const pllm_attend_arguments &a,
                                            const task<HD, TILES> &task, uint32_t chunk,
                                            PLACE place)
{
    const results *all = task.all;
    for (uint32_t i = threadIdx.x; i < task.group * (HD / 4); i += THREADS) {
        uint32_t head = i / (HD / 4), channel = i % (HD / 4) * 4;
        float4 out = make_float4(0, 0, 0, 0);
        float top = MINUS_INFINITY, sum = 0;
#pragma unroll
        for (int e = 0; e < WARPS + 1; e++) top = fmaxf(top, all->max[e][head]);
#pragma unroll
        for (int e = 0; e < WARPS + 1; e++) {
            float weight = weight_of(all->max[e][head], top);
            if (weight == 0) continue; /* nothing was written there */
            float4 x = *reinterpret_cast<const float4 *>(place(e, head) + channel);
            out.x += weight * x.x;
            out.y += weight * x.y;
            out.z += weight * x.z;
            out.w += weight * x.w;
            sum += weight * all->sum[e][head];
        }
        partial_place p = partials_of(a, task.row, task.head_first + head);
        float2 *to = reinterpret_cast<float2 *>(p.out + (uint64_t)chunk * HD + channel);
        to[0] = make_float2(out.x, out.y);
        to[1] = make_float2(out.z, out.w);
        if (channel == 0) {
            p.max[chunk] = top;
            p.sum[chunk] = sum;
        }
    }
}

/* ---- which blocks ---- */

/* Block i (0 or 1) of this warp in a chunk. */
struct block_view {
    uint64_t slice;      /* address of the KV head's slice; 0: the row sees nothing of the block */
    uint32_t first, end; /* the tokens that it sees */
    bool open;
};

__device__ __forceinline__ uint32_t block_of_warp(uint32_t chunk, int i)
{
    return chunk * CHUNK_BLOCKS + threadIdx.x / 32 + i * WARPS;
}

__device__ __forceinline__ bool sees_block(const row_work &w, uint32_t chunk, int i)
{
    uint32_t token = block_of_warp(chunk, i) * BLOCK;
    return chunk < w.chunk_end && token < w.length && token + BLOCK > w.first_token;
}

/* Its entry of the table, read long before the view is needed. */
__device__ __forceinline__ uint32_t frame_of_block(const pllm_attend_arguments &a,
                                                   const row_work &w, uint32_t chunk, int i)
{
    uint32_t block = block_of_warp(chunk, i);
    if (!sees_block(w, chunk, i) || block == (w.length - 1) / BLOCK) return 0;
    return at<uint32_t>(a.table)[w.slot * a.table_stride + block];
}

template <int HD, int TILES>
__device__ __forceinline__ block_view view_block(const pllm_attend_arguments &a,
                                                 const task<HD, TILES> &task, uint32_t chunk, int i,
                                                 uint32_t frame)
{
    const row_work &w = task.work;
    uint32_t block = block_of_warp(chunk, i), token = block * BLOCK;
    block_view v;
    v.open = block == (w.length - 1) / BLOCK;
    v.first = w.first_token > token ? w.first_token - token : 0;
    v.end = min(w.length - token, (uint32_t)BLOCK);
    v.slice = v.open ? a.open + ((uint64_t)w.slot * a.layer_count + a.layer) * a.open_bytes +
                           (uint64_t)task.kv_head * a.open_slice
                     : a.frames + frame * a.frame_bytes + (uint64_t)task.kv_head * a.sealed_slice;
    if (!sees_block(w, chunk, i)) v.slice = v.end = 0;
    return v;
}

/* ---- plain formats ---- */

template <int FORMAT, int HD, int TILES>
__device__ __forceinline__ void attend_plain(const pllm_attend_arguments &a,
                                             const task<HD, TILES> &task, uint32_t chunk)
{
    using L = layout<FORMAT, HD>;
    uint32_t warp = threadIdx.x / 32;
    uint32_t slot[2] = {shared_address(task.shared + warp * L::warp),
                        shared_address(task.shared + warp * L::warp) + L::slot};
    auto place = [&](uint32_t entry, uint32_t head) {
        return reinterpret_cast<float *>(task.shared + entry % WARPS * L::warp + L::slot) +
               head * L::out_stride;
    };
    block_view b[2];
#pragma unroll
    for (int i = 0; i < 2; i++)
        b[i] = view_block(a, task, chunk, i, frame_of_block(a, task.work, chunk, i));
    /* q and open blocks come from the kernel before; sealed keys need not wait for it. */
    if (b[0].slice && !b[0].open) copy_plain_keys<HD>(slot[0], b[0].slice, BLOCK);
    copy_commit();
    if (b[1].slice && !b[1].open) copy_plain_keys<HD>(slot[1], b[1].slice, BLOCK);
    wait_for_kernel_before();
#pragma unroll
    for (int i = 0; i < 2; i++)
        if (b[i].slice && b[i].open) copy_plain_keys<HD>(slot[i], b[i].slice, b[i].end);
    copy_commit();
    if (warp == 0) put_nothing(task.all, WARPS);
    prepare_q<FORMAT, HD, L::q_exponent>(a, task.row, task.head_first, task.group, task.q);
    for (;;) {
        /* Under way: keys 0 | keys 1. */
        uint32_t next = chunk + gridDim.y, frame[2];
#pragma unroll
        for (int i = 0; i < 2; i++) frame[i] = frame_of_block(a, task.work, next, i);
        float s[2][TILES][2][2], max[TILES], sum[TILES], base[TILES] = {};
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if (b[0].open)
                copy_wait<0>(); /* its keys may be in the later group */
            else
                copy_wait<1>();
            if (b[i].slice) {
                scores_plain<FORMAT>(slot[i], task.q, s[i]);
                __syncwarp();
                copy_plain_values<HD>(slot[i], b[i].slice, b[i].end);
            }
            copy_commit();
        }
        const uint32_t first[2] = {b[0].first, b[1].first}, end[2] = {b[0].end, b[1].end};
        softmax<L::p_exponent, false>(s, first, end, max, sum);
        float o[TILES][HD / 16][4] = {};
        copy_wait<1>();
        if (b[0].slice) values_plain<FORMAT, HD>(slot[0], s[0], o);
        __syncwarp();
        bool some = b[0].slice || b[1].slice;
        b[0] = view_block(a, task, next, 0, frame[0]);
        if (b[0].slice) copy_plain_keys<HD>(slot[0], b[0].slice, b[0].end);
        copy_commit();
        copy_wait<1>();
        if (b[1].slice) values_plain<FORMAT, HD>(slot[1], s[1], o);
        __syncwarp();
        if (some)
            put_result<FORMAT, HD>(place, task.all, warp, task.group, o, base, max, sum);
        else
            put_nothing(task.all, warp);
        __syncthreads();
        add_results(a, task, chunk, place);
        if (next >= task.work.chunk_end) return;
        __syncthreads(); /* slot 1 has been read */
        b[1] = view_block(a, task, next, 1, frame[1]);
        if (b[1].slice) copy_plain_keys<HD>(slot[1], b[1].slice, b[1].end);
        copy_commit();
        chunk = next;
    }
}

/* The same sums with three slots: keys 0, keys 1 and values 0 start at once, values 1 when keys 0
 * have been used. */
template <int FORMAT, int HD, int TILES>
__device__ __forceinline__ void attend_wide(const pllm_attend_arguments &a,
                                            const task<HD, TILES> &task, uint32_t chunk)
{
    using L = layout<FORMAT, HD, true>;
    uint32_t warp = threadIdx.x / 32;
    uint32_t slot = shared_address(task.shared + warp * L::warp);
    auto place = [&](uint32_t entry, uint32_t head) {
        return reinterpret_cast<float *>(task.shared + entry % WARPS * L::warp + L::slot) +
               head * L::out_stride;
    };
    bool early = true; /* the kernel before may still run */
    for (; chunk < task.work.chunk_end; chunk += gridDim.y) {
        block_view b[2];
#pragma unroll
        for (int i = 0; i < 2; i++)
            b[i] = view_block(a, task, chunk, i, frame_of_block(a, task.work, chunk, i));
        if (b[0].slice && !b[0].open) copy_plain_keys<HD>(slot, b[0].slice, BLOCK);
        copy_commit();
        if (b[1].slice && !b[1].open) copy_plain_keys<HD>(slot + L::slot, b[1].slice, BLOCK);
        if (b[0].slice && !b[0].open) copy_plain_values<HD>(slot + 2 * L::slot, b[0].slice, BLOCK);
        if (early) wait_for_kernel_before();
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (b[i].slice && b[i].open)
                copy_plain_keys<HD>(slot + i * L::slot, b[i].slice, b[i].end);
        if (b[0].slice && b[0].open)
            copy_plain_values<HD>(slot + 2 * L::slot, b[0].slice, b[0].end);
        copy_commit();
        if (early) {
            if (warp == 0) put_nothing(task.all, WARPS);
            prepare_q<FORMAT, HD, L::q_exponent>(a, task.row, task.head_first, task.group, task.q);
        }
        early = false;
        /* Under way: keys 0 | keys 1, values 0. */
        float s[2][TILES][2][2], max[TILES], sum[TILES], base[TILES] = {};
        if (b[0].open)
            copy_wait<0>();
        else
            copy_wait<1>();
        if (b[0].slice) scores_plain<FORMAT>(slot, task.q, s[0]);
        __syncwarp();
        if (b[1].slice) copy_plain_values<HD>(slot, b[1].slice, b[1].end);
        copy_commit();
        copy_wait<1>();
        if (b[1].slice) scores_plain<FORMAT>(slot + L::slot, task.q, s[1]);
        const uint32_t first[2] = {b[0].first, b[1].first}, end[2] = {b[0].end, b[1].end};
        softmax<L::p_exponent, false>(s, first, end, max, sum);
        float o[TILES][HD / 16][4] = {};
        if (b[0].slice) values_plain<FORMAT, HD>(slot + 2 * L::slot, s[0], o);
        copy_wait<0>();
        if (b[1].slice) values_plain<FORMAT, HD>(slot, s[1], o);
        __syncwarp();
        if (b[0].slice || b[1].slice)
            put_result<FORMAT, HD>(place, task.all, warp, task.group, o, base, max, sum);
        else
            put_nothing(task.all, warp);
        __syncthreads();
        add_results(a, task, chunk, place);
        __syncthreads();
    }
}

/* ---- quantised formats ---- */

template <int FORMAT, int HD>
__device__ __forceinline__ void copy_sealed_keys(uint32_t slot, uint64_t slice)
{
    using L = layout<FORMAT, HD>;
    copy_pieces<L::half_slice / 16, 1, quantised_keys<FORMAT>>(slot, slice, BLOCK);
    copy_pieces<L::key_scales / 16, 1, as_it_lies>(slot + L::half_slice, slice + 2 * L::half_slice,
                                                   BLOCK);
}

template <int FORMAT, int HD>
__device__ __forceinline__ void copy_sealed_values(uint32_t slot, uint64_t slice)
{
    using L = layout<FORMAT, HD>;
    copy_pieces<L::half_slice / 16, 1, quantised_values<L::value_shift>>(
        slot + L::values, slice + L::half_slice, BLOCK);
    copy_pieces<L::value_scales / 16, 1, as_it_lies>(
        slot + L::values + L::half_slice, slice + 2 * L::half_slice + L::key_scales, BLOCK);
}

template <int FORMAT, int HD, int TILES>
__device__ __forceinline__ void attend_quantised(const pllm_attend_arguments &a,
                                                 const task<HD, TILES> &task, uint32_t chunk)
{
    using L = layout<FORMAT, HD>;
    uint32_t warp = threadIdx.x / 32;
    uint32_t slot[2] = {shared_address(task.shared + warp * L::warp),
                        shared_address(task.shared + warp * L::warp) + L::slot};
    /* The row's last block, its warp, and the place of its keys, then values, then result. */
    uint32_t open_block = (task.work.length - 1) / BLOCK, open_chunk = open_block / CHUNK_BLOCKS;
    uint32_t open_warp = open_block % WARPS, open_slot = open_block / WARPS % 2;
    uint8_t *open_place = L::open_extra ? task.shared + WARPS * L::warp
                                        : task.shared + open_warp * L::warp + open_slot * L::slot;
    /* Results lie where values lay, four heads a slot; where a slot is the open block's, in the
     * other one's keys too, which nothing follows. */
    auto place = [&](uint32_t entry, uint32_t of_head) {
        if (entry == WARPS) return reinterpret_cast<float *>(open_place) + of_head * L::out_stride;
        uint32_t high = of_head / (HEADS / 2), at_slot = high, offset = L::values;
        if (!L::open_extra && chunk == open_chunk && entry == open_warp) {
            at_slot = 1 - open_slot;
            offset = high ? 0 : L::values;
        }
        return reinterpret_cast<float *>(task.shared + entry * L::warp + at_slot * L::slot +
                                         offset) +
               of_head % (HEADS / 2) * L::out_stride;
    };
    block_view b[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        b[i] = view_block(a, task, chunk, i, frame_of_block(a, task.work, chunk, i));
        if (b[i].slice && !b[i].open) copy_sealed_keys<FORMAT, HD>(slot[i], b[i].slice);
        copy_commit();
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (b[i].slice && !b[i].open) copy_sealed_values<FORMAT, HD>(slot[i], b[i].slice);
        copy_commit();
    }
    wait_for_kernel_before();
#pragma unroll
    for (int i = 0; i < 2; i++)
        if (b[i].slice && b[i].open)
            copy_plain_keys<HD>(shared_address(open_place), b[i].slice, b[i].end);
    copy_commit();
    if (warp == 0) put_nothing(task.all, WARPS);
    prepare_q<F16, HD, L::q_exponent>(a, task.row, task.head_first, task.group, task.q);
    for (;;) {
        /* Under way: keys 0 | keys 1 | values 0 | values 1 | open keys. */
        uint32_t next = chunk + gridDim.y, frame[2];
#pragma unroll
        for (int i = 0; i < 2; i++) frame[i] = frame_of_block(a, task.work, next, i);
        float s[2][TILES][2][2], s_open[TILES][2][2], max[TILES], sum[TILES], base[TILES] = {};
        float open_max[TILES], open_sum[TILES];
        bool open = chunk == open_chunk && warp == open_warp;
        if (open) {
            block_view v = open_slot ? b[1] : b[0];
            b[0].slice = open_slot ? b[0].slice : 0;
            b[1].slice = open_slot ? 0 : b[1].slice;
            b[0].end = open_slot ? b[0].end : 0;
            b[1].end = open_slot ? 0 : b[1].end;
            copy_wait<0>();
            scores_plain<F16>(shared_address(open_place), task.q, s_open);
            __syncwarp();
            copy_plain_values<HD>(shared_address(open_place), v.slice, v.end);
#pragma unroll
            for (int i = 0; i < TILES; i++) {
                open_max[i] =
                    head_top(mask_and_top<false>(s_open[i], v.first, v.end)) - L::p_exponent;
                open_sum[i] = head_sum(to_weights(s_open[i], open_max[i]));
            }
        }
        copy_commit();
        copy_wait<5>();
        if (b[0].slice) scores_quantised<FORMAT>(slot[0], task.q, s[0]);
        copy_wait<4>();
        if (b[1].slice) scores_quantised<FORMAT>(slot[1], task.q, s[1]);
        __syncwarp();
        bool seen[2] = {b[0].slice != 0, b[1].slice != 0};
        const uint32_t first[2] = {b[0].first, b[1].first}, end[2] = {b[0].end, b[1].end};
#pragma unroll
        for (int i = 0; i < 2; i++) {
            b[i] = view_block(a, task, next, i, frame[i]);
            if (b[i].slice && !b[i].open) copy_sealed_keys<FORMAT, HD>(slot[i], b[i].slice);
            copy_commit();
        }
        softmax<L::p_exponent, true>(s, first, end, max, sum);
        {
            float o[TILES][HD / 16][4] = {};
            copy_wait<5>();
            if (seen[0]) values_quantised<FORMAT, HD>(slot[0], s[0], o, base);
            copy_wait<4>();
            if (seen[1]) values_quantised<FORMAT, HD>(slot[1], s[1], o, base);
#pragma unroll
            for (int i = 0; i < TILES; i++) base[i] = head_sum(base[i]);
            __syncwarp();
            if (seen[0] || seen[1])
                put_result<FORMAT, HD>(place, task.all, warp, task.group, o, base, max, sum);
            else
                put_nothing(task.all, warp);
        }
        if (open) {
            float o[TILES][HD / 16][4] = {};
            copy_wait<0>();
            values_plain<F16, HD>(shared_address(open_place), s_open, o);
            __syncwarp();
            put_result<F16, HD>(place, task.all, WARPS, task.group, o, base, open_max, open_sum);
        }
        __syncthreads();
        add_results(a, task, chunk, place);
        if (next >= task.work.chunk_end) return;
        __syncthreads(); /* the places of values have been read */
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if (b[i].slice && !b[i].open) copy_sealed_values<FORMAT, HD>(slot[i], b[i].slice);
            copy_commit();
        }
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (b[i].slice && b[i].open)
                copy_plain_keys<HD>(shared_address(open_place), b[i].slice, b[i].end);
        copy_commit();
        chunk = next;
    }
}

/* ---- the kernels ---- */

/* Grid: x: KV head and tile of up to 8 query heads, y: chunks, in strides of the grid, z: rows. */
template <int FORMAT, int HD, int TILES, bool WIDE>
__device__ __forceinline__ void attend(const pllm_attend_arguments &a)
{
    extern __shared__ __align__(128) uint8_t shared[];
    uint32_t tile = blockIdx.x % a.head_tiles;
    task<HD, TILES> task;
    task.row = blockIdx.z;
    task.kv_head = blockIdx.x / a.head_tiles;
    task.head_first = task.kv_head * a.group + tile * HEADS;
    task.group = min(a.group - tile * HEADS, (uint32_t)HEADS);
    task.shared = shared;
    task.q = reinterpret_cast<query<HD, TILES> *>(shared + layout<FORMAT, HD, WIDE>::blocks);
    task.all = reinterpret_cast<results *>(task.q + 1);
    task.work = row_work_of(a, task.row);
    uint32_t chunk = task.work.chunk_first + blockIdx.y;
    if (chunk >= task.work.chunk_end)
        wait_for_kernel_before(); /* a kernel after this one counts on that one having ended */
    else if (FORMAT == INT8 || FORMAT == INT4)
        attend_quantised<FORMAT>(a, task, chunk);
    else if (WIDE)
        attend_wide<FORMAT>(a, task, chunk);
    else
        attend_plain<FORMAT>(a, task, chunk);
}

#define KERNEL(NAME, FORMAT, HD, TILES, WIDE, CTAS)                         \
    extern "C" __global__ void __launch_bounds__(THREADS, CTAS)             \
        pllm_attend_##NAME(const __grid_constant__ pllm_attend_arguments a) \
    {                                                                       \
        attend<FORMAT, HD, TILES, WIDE>(a);                                 \
    }
/* For groups of up to 4 heads, of up to 8; and for grids that leave room, with a slot more a warp.
 */
#define KERNELS(NAME, FORMAT, HD, CTAS)          \
    KERNEL(NAME##_4, FORMAT, HD, 1, false, CTAS) \
    KERNEL(NAME##_8, FORMAT, HD, 2, false, CTAS)
#define KERNELS_WIDE(NAME, FORMAT, HD)            \
    KERNEL(NAME##_4_wide, FORMAT, HD, 1, true, 2) \
    KERNEL(NAME##_8_wide, FORMAT, HD, 2, true, 2)

KERNELS(f16_64, F16, 64, 4)
KERNELS(f16_128, F16, 128, 3)
KERNELS(bf16_64, BF16, 64, 4)
KERNELS(bf16_128, BF16, 128, 3)
KERNELS(int8_64, INT8, 64, 4)
KERNELS(int8_128, INT8, 128, 3)
KERNELS(int4_64, INT4, 64, 4)
KERNELS(int4_128, INT4, 128, 4)
KERNELS_WIDE(f16_64, F16, 64)
KERNELS_WIDE(f16_128, F16, 128)
KERNELS_WIDE(bf16_64, BF16, 64)
KERNELS_WIDE(bf16_128, BF16, 128)
