/* sample.cu - a token drawn from a row of logits: the one that kernels/sample.c finds by sorting,
 * found by counting.
 *
 * Weights are whole numbers (kernels/sample_weight.h), so sums are the same in any order and
 * threads may add as they come. A block of threads has a row:
 *
 *   1. the largest logit, of equals the lowest id: at temperature 0 the answer
 *   2. a histogram of counts and weights over bins of the exponent: the totals, and how far down
 *      the token can lie
 *   3. the tokens that far down come into a list in shared memory, if they fit there; else the
 *      whole row is read again wherever the list is read below
 *   4. what top_k keeps, what top_p keeps of that, and then the token: each is the token at a
 *      position, counted in tokens or in weight, and is found from the highest bits of a key down,
 *      a histogram of 256 bins for each 8 bits. Key: logit (order-preserving) | ~id.
 *
 * Bound by reading the row from L2 three times through one multiprocessor, some 20 us of 128,256
 * logits; the rest is a few passes over the list. Flat rows (high temperatures) take more. */
#include "kernels/cuda/rows.cuh"
#include "kernels/sample_weight.h"

#ifndef THREADS
#define THREADS 1024
#endif

enum { LIST_MAX = 4096, DIGITS = 256, NOTHING = 0 };

typedef struct sampling { /* pllm_sampling */
    float temperature, top_p;
    uint32_t top_k, reserved;
    uint64_t random;
} sampling;

/* Sums of 64 bits as two words, since the chip adds words at once. One word more in 32 keeps the
 * lanes that walk over it on different banks. */
template <uint32_t bins> struct histogram {
    uint32_t count[bins + 32], low[bins + 32], high[bins + 32];
};

template <uint32_t bins> static __device__ __forceinline__ uint32_t place(uint32_t bin)
{
    return bin + bin / (bins / 32);
}

template <uint32_t bins> static __device__ void clear(histogram<bins> &h)
{
    for (uint32_t i = threadIdx.x; i < bins + 32; i += THREADS)
        h.count[i] = h.low[i] = h.high[i] = 0;
}

static __device__ void add_at(uint32_t *count, uint32_t *low, uint32_t *high, uint32_t number,
                              uint64_t weight)
{
    uint32_t lower = (uint32_t)weight;
    atomicAdd(count, number);
    uint32_t carry = atomicAdd(low, lower) + lower < lower;
    uint32_t upper = (uint32_t)(weight >> 32) + carry;
    if (upper) atomicAdd(high, upper);
}

/* Called by whole warps; weight 0 adds nothing. Where a warp has one bin it adds once. */
template <uint32_t bins>
static __device__ void add(histogram<bins> &h, uint32_t bin, uint64_t weight)
{
    const uint32_t all = 0xffffffff;
    uint32_t some = __ballot_sync(all, weight != 0);
    if (some == 0) return;
    uint32_t first = __shfl_sync(all, bin, __ffs(some) - 1);
    if (__all_sync(all, weight == 0 || bin == first)) {
        for (int apart = 16; apart > 0; apart /= 2) weight += __shfl_xor_sync(all, weight, apart);
        uint32_t at = place<bins>(first);
        if (threadIdx.x % 32 == 0)
            add_at(&h.count[at], &h.low[at], &h.high[at], __popc(some), weight);
    } else if (weight) {
        uint32_t at = place<bins>(bin);
        add_at(&h.count[at], &h.low[at], &h.high[at], 1, weight);
    }
}

/* What lies before a bin, and in it. */
typedef struct span {
    uint64_t weight_before, weight;
    uint32_t count_before, count, bin;
} span;

/* One warp: each lane's run of bins, and what lies before it; lane 31's end is the total. */
template <uint32_t bins> static __device__ span lane_span(const histogram<bins> &h)
{
    const uint32_t lane = threadIdx.x % 32, each = bins / 32;
    span s = {0, 0, 0, 0, lane * each};
    for (uint32_t i = 0; i < each; i++) {
        uint32_t at = place<bins>(lane * each + i);
        s.count += h.count[at];
        s.weight += (uint64_t)h.high[at] << 32 | h.low[at];
    }
    uint64_t weight = s.weight;
    uint32_t count = s.count;
    for (int apart = 1; apart < 32; apart *= 2) {
        uint64_t w = __shfl_up_sync(0xffffffff, weight, apart);
        uint32_t c = __shfl_up_sync(0xffffffff, count, apart);
        if (lane >= apart) weight += w, count += c;
    }
    s.weight_before = weight - s.weight;
    s.count_before = count - s.count;
    return s;
}

/* The same warp: the lane with the position (in tokens or in weight) writes the span of its bin. */
template <uint32_t bins>
static __device__ void locate(const histogram<bins> &h, span s, uint64_t position, int in_tokens,
                              span *out)
{
    uint64_t before = in_tokens ? s.count_before : s.weight_before;
    uint64_t length = in_tokens ? s.count : s.weight;
    if (position < before || position - before >= length) return;
    for (;; s.bin++) {
        uint32_t at = place<bins>(s.bin);
        s.count = h.count[at];
        s.weight = (uint64_t)h.high[at] << 32 | h.low[at];
        before = in_tokens ? s.count_before : s.weight_before;
        length = in_tokens ? s.count : s.weight;
        if (position - before < length) break;
        s.count_before += s.count;
        s.weight_before += s.weight;
    }
    *out = s;
}

/* ---- a row ---- */

typedef struct source { /* the list, or with `listed` NOTHING the row */
    const float *row;
    uint32_t n;
    float best, temperature;
    const float *list;
    const uint32_t *list_ids;
    uint32_t listed;
} source;

static __device__ __forceinline__ uint64_t key_of(float value, uint32_t id)
{
    uint32_t bits = __float_as_uint(value == 0.0f ? 0.0f : value);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (uint64_t)bits << 32 | (uint32_t)~id;
}

static __device__ __forceinline__ uint32_t length_of(const source &s)
{
    return s.listed ? s.listed : s.n;
}

/* A token of the source; weight 0: none. i may lie past the end. */
static __device__ __forceinline__ uint64_t token_at(const source &s, uint32_t i, uint64_t *key_out)
{
    if (i >= length_of(s)) return 0;
    float logit = s.listed ? s.list[i] : s.row[i];
    *key_out = key_of(logit, s.listed ? s.list_ids[i] : i);
    return sample_weight(sample_exponent(logit, s.best, s.temperature));
}

/* Whole warps go round together, past the end too. */
#define EACH(i, length) \
    (uint32_t i = threadIdx.x, end_ = ((length) + 31) / 32 * 32; i < end_; i += THREADS)

typedef struct found {
    uint64_t weight_before, weight; /* of the tokens before, and of one here */
    uint64_t position;              /* what is left of it */
    uint64_t prefix;                /* the key's bits from `shift` up */
    int shift;
} found;

/* The token at a position: with by_id that one, else its logit (or the one token, if fewer bits say
 * which). All threads call it, and have the same answer. */
static __device__ found find(const source &s, uint64_t position, int in_tokens, int by_id,
                             histogram<DIGITS> &h, span *shared)
{
    found f = {0, 0, position, 0, 64};
    while (f.shift > 0) {
        f.shift -= 8;
        __syncthreads();
        clear(h);
        __syncthreads();
        for
            EACH(i, length_of(s))
            {
                uint64_t key = 0, weight = token_at(s, i, &key);
                if (f.shift < 56 && key >> (f.shift + 8) != f.prefix) weight = 0;
                add(h, 255 - (uint32_t)(key >> f.shift) % 256, weight);
            }
        __syncthreads();
        if (threadIdx.x < 32) locate(h, lane_span(h), f.position, in_tokens, shared);
        __syncthreads();
        span at = *shared;
        f.prefix = f.prefix << 8 | (255 - at.bin);
        f.weight_before += at.weight_before;
        f.position -= in_tokens ? at.count_before : at.weight_before;
        f.weight = at.weight / at.count; /* equal logits, once all their bits are known */
        if (at.count == 1) break;
        if (f.shift != 32) continue;
        if (!by_id) break;
        if (!in_tokens) f.position /= f.weight;
        in_tokens = 1;
    }
    return f;
}

static __device__ uint64_t largest_key(const float *row, uint32_t n, uint64_t *warps)
{
    uint64_t best = 0;
#pragma unroll 8
    for (uint32_t i = threadIdx.x; i < n; i += THREADS) {
        float value = row[i];
        uint64_t key = isnan(value) ? (uint32_t)~i : key_of(value, i);
        if (key > best) best = key;
    }
    for (int apart = 16; apart > 0; apart /= 2) {
        uint64_t other = __shfl_xor_sync(0xffffffff, best, apart);
        if (other > best) best = other;
    }
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = best;
    __syncthreads();
    for (uint32_t i = 0; i < THREADS / 32; i++)
        if (warps[i] > best) best = warps[i];
    return best;
}

/* Tokens in bins up to `last` come to the list; all there are, if *length says that they fit. */
static __device__ void make_list(const source &s, uint32_t last, float *list, uint32_t *ids,
                                 uint32_t *length)
{
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i < s.n; i += THREADS) {
        float x = sample_exponent(s.row[i], s.best, s.temperature);
        if (!(x > SAMPLE_LEAST) || sample_bin(x) > last || sample_weight(x) == 0) continue;
        uint32_t at = atomicAdd(length, 1);
        list[at] = s.row[i];
        ids[at] = i;
    }
}

/* Grid: a row each. */
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    pllm_sample(const float *logits, uint64_t stride, uint32_t n, const sampling *samplings,
                uint32_t *ids_out)
{
    __shared__ union {
        histogram<SAMPLE_BINS> bins;
        struct {
            float logits[LIST_MAX];
            uint32_t ids[LIST_MAX];
        } list;
    } space;
    __shared__ histogram<DIGITS> digits;
    __shared__ uint64_t warps[THREADS / 32];
    __shared__ span shared, totals;
    __shared__ uint32_t listed;
    rows_begin();
    const sampling rule = samplings[blockIdx.x];
    source s = {logits + blockIdx.x * stride,
                n,
                0,
                rule.temperature,
                space.list.logits,
                space.list.ids,
                NOTHING};
    const uint64_t best = largest_key(s.row, n, warps);
    const uint32_t best_id = ~(uint32_t)best;
    if (!(rule.temperature > 0) || best >> 32 == 0) {
        if (threadIdx.x == 0) ids_out[blockIdx.x] = best_id;
        return;
    }
    s.best = s.row[best_id];
    clear(space.bins);
    __syncthreads();
#pragma unroll 4
    for
        EACH(i, n)
        {
            float x = i < n ? sample_exponent(s.row[i], s.best, s.temperature) : SAMPLE_LEAST;
            uint64_t weight = sample_weight(x);
            add(space.bins, weight ? sample_bin(x) : 0, weight);
        }
    __syncthreads();
    if (threadIdx.x < 32) {
        span lane = lane_span(space.bins);
        uint64_t total = __shfl_sync(0xffffffff, lane.weight_before + lane.weight, 31);
        uint32_t count = __shfl_sync(0xffffffff, lane.count_before + lane.count, 31);
        int few = rule.top_k && count > rule.top_k;
        uint64_t last = sample_part(total, rule.top_p) - 1;
        if (last + 1 == total) last = __umul64hi(rule.random, total);
        if (few) last = rule.top_k - 1;
        locate(space.bins, lane, last, few, &shared);
        if (threadIdx.x == 0) {
            totals.weight = total;
            totals.count = count;
            listed = 0;
        }
    }
    __syncthreads();
    const span cut = shared;
    __syncthreads();
    if (cut.count_before + cut.count <= LIST_MAX) {
        make_list(s, cut.bin, space.list.logits, space.list.ids, &listed);
        __syncthreads();
        s.listed = listed;
    }
    uint64_t total = totals.weight;
    if (rule.top_k && totals.count > rule.top_k) {
        found f = find(s, rule.top_k - 1, 1, 0, digits, &shared);
        total = f.weight_before + (f.position + 1) * f.weight;
    }
    uint64_t part = sample_part(total, rule.top_p), kept = total;
    if (part != total) {
        found f = find(s, part - 1, 0, 0, digits, &shared);
        kept = f.weight_before + (f.position / f.weight + 1) * f.weight;
    }
    found f = find(s, __umul64hi(rule.random, kept), 0, 1, digits, &shared);
    for (uint32_t i = threadIdx.x; i < length_of(s); i += THREADS) {
        uint64_t key = 0, weight = token_at(s, i, &key);
        if (weight && key >> f.shift == f.prefix) ids_out[blockIdx.x] = ~(uint32_t)key;
    }
}
