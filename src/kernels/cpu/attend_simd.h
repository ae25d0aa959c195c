/* attend_simd.h - attention over KV blocks, one body for every SIMD width.
 *
 * The includer defines the vector type `vec` of W floats, its operations (v_*), NR (vectors in a
 * panel of the prefill micro-kernel) and HEADS (query heads a decode pass keeps in registers), and
 * gets attend_decode, attend_prefill, merge and finish.
 *
 * Decode, one query token:
 *   scores   plain keys: lanes are channels; every key vector is loaded and converted once and
 *            multiplied with the q of up to HEADS heads; the partial sums of W keys are transposed
 *            and added together, so that no key pays a horizontal sum of its own.
 *            quantised keys: lanes are tokens (see kv_format.h); q is multiplied by the channel's
 *            scale, and q . minimum is added once a block.
 *   softmax  over the chunk's scores, masked lanes at -inf.
 *   values   lanes are channels, tokens in ascending order; p is multiplied by the token's scale.
 *   What is read a few slices later is prefetched: slices are too short for the hardware to run
 *   ahead in, and too far apart for it to guess.
 *
 * Prefill, up to 32 rows times the group: the chunk's keys become f32 panels [panel][channel][PANEL
 * keys], its values [panel][token][PANEL channels]; then scores, softmax and values are three
 * passes of one micro-kernel, MR vectors of q (or p) by a panel. 16 KiB of a panel stay in L1 while
 * all rows pass.
 *
 * Why bits do not depend on the company (attention.h's rule): a score is one chain over channels
 * from zero, an output channel one chain over the seen tokens, whatever the blocking; the
 * sum of weights adds lane by token number modulo W, where masked lanes add exactly +0. Tokens that
 * are not seen by a row never enter its output chain, not even as 0 * value. */
#include <math.h>
#include <string.h>
#include "kernels/attention.h"

#define INLINE static inline __attribute__((always_inline))
/* Sanitizers check every access that unrolling multiplies; there, build time matters more. */
#ifdef PLLM_SANITIZED
#define UNROLL
#define CONSTANT_DIMS 0
#else
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define CONSTANT_DIMS 1
#endif
#define NOINLINE static __attribute__((noinline))

enum {
    MR = 6,
    PANEL = NR * W,
    SCORE_ROWS = 126, /* rows of scores kept at a time: a multiple of MR */
};

/* Where one block of a view is, and how its slice is written. */
typedef struct slice {
    const uint8_t *bytes;
    pllm_dtype dtype;
} slice;

INLINE slice view_slice(const pllm_kv_shape *shape, const pllm_kv_view *view, uint32_t kv_head,
                        uint32_t block)
{
    slice at;
    at.dtype = view->last_open && block == view->block_count - 1 ? shape->open : shape->sealed;
    at.bytes = pllm_kv_slice(shape, at.dtype, view->blocks[block], kv_head);
    return at;
}

INLINE uint32_t element_bytes(pllm_dtype dtype)
{
    return dtype == PLLM_F32 ? 4 : 2;
}
INLINE uint32_t dtype_bits(pllm_dtype dtype)
{
    return dtype == PLLM_INT4 ? 4 : dtype == PLLM_INT8 ? 8 : 8 * element_bytes(dtype);
}
INLINE uint64_t value_offset(pllm_dtype dtype, uint32_t d)
{
    return (uint64_t)PLLM_BLOCK_TOKENS * d * dtype_bits(dtype) / 8;
}
INLINE uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}
INLINE uint32_t max_u32(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}
INLINE uint32_t round_up(uint32_t n, uint32_t to)
{
    return (n + to - 1) / to * to;
}

INLINE void prefetch_lines(const uint8_t *next, uint64_t offset, uint64_t bytes)
{
    for (uint64_t at = 0; at < bytes; at += 64) __builtin_prefetch(next + offset + at, 0, 3);
}

/* W tokens of a quantised key row, first token i * W. */
INLINE vec key_row_quantised(pllm_dtype dtype, const uint8_t *row, uint32_t i)
{
    if (dtype == PLLM_INT8) return v_u8(row + i * W, W);
    const uint8_t *bytes = row + i * W % (PLLM_BLOCK_TOKENS / 2);
    return i * W < PLLM_BLOCK_TOKENS / 2 ? v_low_nibbles(bytes, W) : v_high_nibbles(bytes, W);
}

/* ---- decode: scores ---- */

typedef struct score_task {
    const uint8_t *slice;
    const uint8_t *ahead, *scales_ahead; /* to prefetch, or NULL */
    const float *q;                      /* [heads][q_stride], zero-padded to whole vectors */
    float *scores;                    /* [heads][PLLM_CHUNK_TOKENS], at this block's first token */
    uint32_t d, q_stride, first, end; /* tokens of the block wanted: first..end-1 */
} score_task;

/* d: task->d, as a constant where that pays. */
INLINE void scores_plain(const score_task *task, pllm_dtype dtype, int heads, uint32_t d)
{
    uint32_t size = element_bytes(dtype);
    uint64_t row_bytes = (uint64_t)d * size;
    for (uint32_t key = task->first / W * W; key < task->end; key += W) {
        vec quads[HEADS][W / 4];
        UNROLL for (uint32_t quad = 0; quad < W / 4; quad++)
        {
            const uint8_t *row = task->slice + (key + 4 * quad) * row_bytes;
            vec acc[HEADS][4];
            UNROLL for (int h = 0; h < heads; h++) UNROLL for (int i = 0; i < 4; i++) acc[h][i] =
                v_zero();
            if (task->ahead)
                prefetch_lines(task->ahead, (key + 4 * quad) * row_bytes, 4 * row_bytes);
            for (uint32_t c = 0; c < d; c += W) {
                uint32_t n = min_u32(W, d - c);
                vec q[HEADS];
                UNROLL for (int h = 0; h < heads; h++) q[h] =
                    v_load(task->q + h * task->q_stride + c);
                UNROLL for (int i = 0; i < 4; i++)
                {
                    vec k = v_plain(dtype, row + i * row_bytes + (uint64_t)c * size, n);
                    UNROLL for (int h = 0; h < heads; h++) acc[h][i] = v_fma(q[h], k, acc[h][i]);
                }
            }
            UNROLL for (int h = 0; h < heads; h++) quads[h][quad] =
                v_reduce_quad(acc[h][0], acc[h][1], acc[h][2], acc[h][3]);
        }
        UNROLL for (int h = 0; h < heads; h++)
            v_store(task->scores + h * PLLM_CHUNK_TOKENS + key, v_reduce_quads(quads[h]));
    }
}

/* q * scale of every channel, and q . minimum. */
INLINE float fold_scales(const float *q, const uint8_t *scales, const uint8_t *minima, uint32_t d,
                         float *scaled)
{
    vec bias = v_zero();
    for (uint32_t c = 0; c < d; c += W) {
        uint32_t n = min_u32(W, d - c);
        vec channel = v_load(q + c);
        v_store(scaled + c, v_mul(channel, v_plain(PLLM_F16, scales + 2 * c, n)));
        bias = v_fma(channel, v_plain(PLLM_F16, minima + 2 * c, n), bias);
    }
    return v_sum(bias);
}

INLINE void scores_quantised(const score_task *task, pllm_dtype dtype, int heads)
{
    enum { VECTORS = PLLM_BLOCK_TOKENS / W };
    uint32_t d = task->d, bits = dtype_bits(dtype), row_bytes = PLLM_BLOCK_TOKENS * bits / 8;
    pllm_kv_quantised at = pllm_kv_quantised_layout(d, bits);
    float scaled[HEADS][PLLM_HEAD_DIM_MAX] __attribute__((aligned(64)));
    float bias[HEADS];
    UNROLL for (int h = 0; h < heads; h++) bias[h] =
        fold_scales(task->q + h * task->q_stride, task->slice + at.key_scale,
                    task->slice + at.key_min, d, scaled[h]);
    /* Even and odd channels apart: two chains hide the latency of one. */
    vec acc[2][HEADS][VECTORS];
    UNROLL for (int h = 0; h < heads; h++) UNROLL for (int i = 0; i < VECTORS; i++) acc[0][h][i] =
        acc[1][h][i] = v_zero();
    if (task->ahead && task->scales_ahead)
        prefetch_lines(task->scales_ahead, 0, 4 * d + 4 * PLLM_BLOCK_TOKENS);
    for (uint32_t c = 0; c < d; c += 2) {
        if (task->ahead && c * row_bytes % 64 == 0)
            __builtin_prefetch(task->ahead + (uint64_t)c * row_bytes, 0, 3);
        UNROLL for (uint32_t odd = 0; odd < 2; odd++)
        {
            const uint8_t *row = task->slice + (uint64_t)(c + odd) * row_bytes;
            UNROLL for (int i = 0; i < VECTORS; i++)
            {
                vec k = key_row_quantised(dtype, row, i);
                UNROLL for (int h = 0; h < heads; h++) acc[odd][h][i] =
                    v_fma(v_set1(scaled[h][c + odd]), k, acc[odd][h][i]);
            }
        }
    }
    UNROLL for (int h = 0; h < heads; h++) UNROLL for (int i = 0; i < VECTORS; i++)
        v_store(task->scores + h * PLLM_CHUNK_TOKENS + i * W,
                v_add(v_add(acc[0][h][i], acc[1][h][i]), v_set1(bias[h])));
}

/* ---- decode: values ---- */

typedef struct value_task {
    const uint8_t *slice, *ahead;
    const float *p; /* [heads][PLLM_CHUNK_TOKENS], at this block's first token */
    float *out;     /* [heads][d] */
    uint32_t d, first, end;
} value_task;

/* Channels c to c + vectors * W - 1, the last vector n wide. */
INLINE void values_plain_panel(const value_task *task, pllm_dtype dtype, int heads, uint32_t c,
                               int vectors, uint32_t n)
{
    uint32_t size = element_bytes(dtype);
    uint64_t row_bytes = (uint64_t)task->d * size;
    const uint8_t *values = task->slice + PLLM_BLOCK_TOKENS * row_bytes + (uint64_t)c * size;
    vec acc[HEADS][4];
    UNROLL for (int h = 0; h < heads; h++) UNROLL for (int j = 0; j < vectors; j++) acc[h][j] =
        v_load_n(task->out + h * task->d + c + j * W, n);
    for (uint32_t t = task->first; t < task->end; t++) {
        const uint8_t *row = values + t * row_bytes;
        vec p[HEADS];
        if (task->ahead) /* each panel prefetches its own part of the next block's rows */
            prefetch_lines(task->ahead, t * row_bytes + (uint64_t)c * size,
                           (uint64_t)vectors * W * size);
        UNROLL for (int h = 0; h < heads; h++) p[h] = v_set1(task->p[h * PLLM_CHUNK_TOKENS + t]);
        UNROLL for (int j = 0; j < vectors; j++)
        {
            vec v = v_plain(dtype, row + (uint64_t)j * W * size, n);
            UNROLL for (int h = 0; h < heads; h++) acc[h][j] = v_fma(p[h], v, acc[h][j]);
        }
    }
    UNROLL for (int h = 0; h < heads; h++) UNROLL for (int j = 0; j < vectors; j++)
        v_store_n(task->out + h * task->d + c + j * W, acc[h][j], n);
}

INLINE void values_plain(const value_task *task, pllm_dtype dtype, int heads)
{
    uint32_t c = 0, d = task->d;
    for (; c + 4 * W <= d; c += 4 * W) values_plain_panel(task, dtype, heads, c, 4, W);
    if (c + 2 * W <= d) values_plain_panel(task, dtype, heads, c, 2, W), c += 2 * W;
    if (c + W <= d) values_plain_panel(task, dtype, heads, c, 1, W), c += W;
    if (c < d) values_plain_panel(task, dtype, heads, c, 1, d - c);
}

/* p * scale of the wanted tokens, and p . minimum; other tokens count as 0 whatever they hold. */
INLINE float fold_weights(const float *p, const uint8_t *scales, const uint8_t *minima,
                          uint32_t first, uint32_t end, float *scaled)
{
    vec bias = v_zero();
    for (uint32_t t = 0; t < PLLM_BLOCK_TOKENS; t += W) {
        vec weight = v_load(p + t);
        vec shift = v_mul(weight, v_plain(PLLM_F16, minima + 2 * t, W));
        bias = v_add(bias, v_keep_range(shift, v_zero(), t, first, end));
        v_store(scaled + t, v_mul(weight, v_plain(PLLM_F16, scales + 2 * t, W)));
    }
    return v_sum(bias);
}

INLINE uint32_t quantised_channel(const value_task *task, int low, uint32_t c, int vector)
{
    return c + (vector < low ? 0 : task->d / 2) +
           (uint32_t)(vector < low ? vector : vector - low) * W;
}

/* Bytes c.. of every value row: channels c.. (int8: `vectors` of them), or for int4 `vectors` / 2
 * of them from the low nibbles and as many from the high ones, d / 2 channels on. */
INLINE void values_quantised_panel(const value_task *task, pllm_dtype dtype, int heads, uint32_t c,
                                   int vectors, uint32_t n, const uint8_t *values,
                                   float (*scaled)[PLLM_BLOCK_TOKENS], const float *bias)
{
    uint32_t row_bytes = task->d * dtype_bits(dtype) / 8;
    int low = dtype == PLLM_INT4 ? vectors / 2 : vectors;
    vec acc[HEADS][4];
    UNROLL for (int h = 0; h < heads; h++) UNROLL for (int j = 0; j < vectors; j++) acc[h][j] =
        v_load_n(task->out + h * task->d + quantised_channel(task, low, c, j), n);
    for (uint32_t t = task->first; t < task->end; t++) {
        const uint8_t *row = values + (uint64_t)t * row_bytes + c;
        vec p[HEADS];
        if (task->ahead) __builtin_prefetch(task->ahead + (uint64_t)t * row_bytes + c, 0, 3);
        UNROLL for (int h = 0; h < heads; h++) p[h] = v_set1(scaled[h][t]);
        UNROLL for (int j = 0; j < vectors; j++)
        {
            vec v = dtype == PLLM_INT8 ? v_u8(row + j * W, n)
                    : j < low          ? v_low_nibbles(row + j * W, n)
                                       : v_high_nibbles(row + (j - low) * W, n);
            UNROLL for (int h = 0; h < heads; h++) acc[h][j] = v_fma(p[h], v, acc[h][j]);
        }
    }
    UNROLL for (int h = 0; h < heads; h++) UNROLL for (int j = 0; j < vectors; j++)
        v_store_n(task->out + h * task->d + quantised_channel(task, low, c, j),
                  v_add(acc[h][j], v_set1(bias[h])), n);
}

INLINE void values_quantised(const value_task *task, pllm_dtype dtype, int heads)
{
    pllm_kv_quantised at = pllm_kv_quantised_layout(task->d, dtype_bits(dtype));
    const uint8_t *values = task->slice + at.values;
    float scaled[HEADS][PLLM_BLOCK_TOKENS] __attribute__((aligned(64)));
    float bias[HEADS];
    UNROLL for (int h = 0; h < heads; h++) bias[h] =
        fold_weights(task->p + h * PLLM_CHUNK_TOKENS, task->slice + at.value_scale,
                     task->slice + at.value_min, task->first, task->end, scaled[h]);
    uint32_t c = 0, row_bytes = task->d * dtype_bits(dtype) / 8;
    uint32_t wide = dtype == PLLM_INT4 ? 2 * W : 4 * W; /* bytes that give four vectors */
    int narrow = dtype == PLLM_INT4 ? 2 : 1;            /* vectors that W bytes give */
    for (; c + wide <= row_bytes; c += wide)
        values_quantised_panel(task, dtype, heads, c, 4, W, values, scaled, bias);
    for (; c + W <= row_bytes; c += W)
        values_quantised_panel(task, dtype, heads, c, narrow, W, values, scaled, bias);
    if (c < row_bytes)
        values_quantised_panel(task, dtype, heads, c, narrow, row_bytes - c, values, scaled, bias);
}

/* ---- decode: one function a format and number of heads ---- */

typedef void score_function(const score_task *task);
typedef void value_function(const value_task *task);

#define PLAIN_INSTANCE(NAME, DTYPE, HEAD_COUNT)                        \
    NOINLINE void scores_##NAME##_##HEAD_COUNT(const score_task *task) \
    {                                                                  \
        if (CONSTANT_DIMS && task->d == 64)                            \
            scores_plain(task, DTYPE, HEAD_COUNT, 64);                 \
        else if (CONSTANT_DIMS && task->d == 128)                      \
            scores_plain(task, DTYPE, HEAD_COUNT, 128);                \
        else                                                           \
            scores_plain(task, DTYPE, HEAD_COUNT, task->d);            \
    }                                                                  \
    NOINLINE void values_##NAME##_##HEAD_COUNT(const value_task *task) \
    {                                                                  \
        values_plain(task, DTYPE, HEAD_COUNT);                         \
    }
#define QUANTISED_INSTANCE(NAME, DTYPE, HEAD_COUNT)                    \
    NOINLINE void scores_##NAME##_##HEAD_COUNT(const score_task *task) \
    {                                                                  \
        scores_quantised(task, DTYPE, HEAD_COUNT);                     \
    }                                                                  \
    NOINLINE void values_##NAME##_##HEAD_COUNT(const value_task *task) \
    {                                                                  \
        values_quantised(task, DTYPE, HEAD_COUNT);                     \
    }
#if HEADS == 4
#define INSTANCES(KIND, NAME, DTYPE)                                \
    KIND##_INSTANCE(NAME, DTYPE, 1) KIND##_INSTANCE(NAME, DTYPE, 2) \
        KIND##_INSTANCE(NAME, DTYPE, 3) KIND##_INSTANCE(NAME, DTYPE, 4)
#define ROW(WHAT, NAME)                                                            \
    {                                                                              \
        WHAT##_##NAME##_1, WHAT##_##NAME##_2, WHAT##_##NAME##_3, WHAT##_##NAME##_4 \
    }
#else
#define INSTANCES(KIND, NAME, DTYPE) KIND##_INSTANCE(NAME, DTYPE, 1) KIND##_INSTANCE(NAME, DTYPE, 2)
#define ROW(WHAT, NAME)                      \
    {                                        \
        WHAT##_##NAME##_1, WHAT##_##NAME##_2 \
    }
#endif

INSTANCES(PLAIN, f32, PLLM_F32)
INSTANCES(PLAIN, f16, PLLM_F16)
INSTANCES(PLAIN, bf16, PLLM_BF16)
INSTANCES(QUANTISED, int8, PLLM_INT8)
INSTANCES(QUANTISED, int4, PLLM_INT4)

static score_function *const score_functions[PLLM_DTYPE_COUNT][HEADS] = {
    [PLLM_F32] = ROW(scores, f32),   [PLLM_F16] = ROW(scores, f16),
    [PLLM_BF16] = ROW(scores, bf16), [PLLM_INT8] = ROW(scores, int8),
    [PLLM_INT4] = ROW(scores, int4),
};
static value_function *const value_functions[PLLM_DTYPE_COUNT][HEADS] = {
    [PLLM_F32] = ROW(values, f32),   [PLLM_F16] = ROW(values, f16),
    [PLLM_BF16] = ROW(values, bf16), [PLLM_INT8] = ROW(values, int8),
    [PLLM_INT4] = ROW(values, int4),
};

/* Turns scores of tokens first..end-1 into weights exp(score - largest) in place, where largest is
 * at least floor. Scores of the vectors' other lanes become 0. Returns the weights' sum. */
INLINE float softmax_range(float *scores, uint32_t first, uint32_t end, float floor, float *largest)
{
    const vec masked = v_set1(-INFINITY);
    uint32_t begin = first / W * W;
    vec top = v_set1(floor);
    for (uint32_t t = begin; t < end; t += W) {
        vec s = v_load(scores + t);
        if (t < first || t + W > end) {
            s = v_keep_range(s, masked, t, first, end);
            v_store(scores + t, s);
        }
        top = v_max(top, s);
    }
    float max = v_largest(top);
    *largest = max;
    vec total = v_zero(), shift = v_set1(max == -INFINITY ? 0.0f : max);
    for (uint32_t t = begin; t < end; t += W) {
        vec p = v_exp(v_sub(v_load(scores + t), shift));
        v_store(scores + t, p);
        total = v_add(total, p);
    }
    return v_sum(total);
}

/* A call reads runs: the keys of its blocks, then their values, then the next view's keys. While
 * run r is read, run r + distance is prefetched, far enough ahead to cover the memory's latency at
 * its full rate (100 ns and more at 40 GB/s); more than four slices ahead would push each other out
 * of L1, since blocks lie multiples of 4 KiB apart and fall on the same sets. */
typedef struct run_list {
    const pllm_kv_shape *shape;
    const pllm_kv_view *view;
    uint32_t kv_head, block_first, block_count, distance;
} run_list;

INLINE uint32_t view_blocks(const pllm_kv_view *view)
{
    return (view->token_count + PLLM_BLOCK_TOKENS - 1) / PLLM_BLOCK_TOKENS -
           view->skip / PLLM_BLOCK_TOKENS;
}

INLINE run_list run_list_of(const pllm_kv_shape *shape, const pllm_kv_view *view, uint32_t kv_head)
{
    enum { AHEAD_BYTES = 8192, AHEAD_MAX = 4 };
    run_list runs = {shape, view, kv_head, view->skip / PLLM_BLOCK_TOKENS, view_blocks(view), 1};
    uint64_t run_bytes = value_offset(shape->sealed, shape->head_dim);
    while (runs.distance < AHEAD_MAX && runs.distance * run_bytes < AHEAD_BYTES) runs.distance++;
    return runs;
}

/* The run to prefetch during run `run`, NULL if unknown; *scales: its slice's scales likewise. */
INLINE const uint8_t *run_ahead(const run_list *runs, uint32_t run, const uint8_t **scales)
{
    const pllm_kv_view *view = runs->view;
    uint32_t target = run + runs->distance, first = runs->block_first, d = runs->shape->head_dim;
    *scales = NULL;
    if (target >= 2 * runs->block_count) {
        target -= 2 * runs->block_count;
        view = view->next;
        if (!view || view->skip >= view->token_count || target >= view_blocks(view)) return NULL;
        first = view->skip / PLLM_BLOCK_TOKENS;
    } else if (target >= runs->block_count) {
        slice at = view_slice(runs->shape, view, runs->kv_head, first + target - runs->block_count);
        return at.bytes + value_offset(at.dtype, d);
    }
    slice at = view_slice(runs->shape, view, runs->kv_head, first + target);
    if (dtype_bits(at.dtype) < 16) *scales = at.bytes + 2 * value_offset(at.dtype, d);
    return at.bytes;
}

static void attend_decode(const pllm_kv_shape *shape, const pllm_kv_view *view, uint32_t kv_head,
                          const float *q, uint32_t group, float *max, float *sum, float *out,
                          void *scratch)
{
    uint32_t d = shape->head_dim, padded = round_up(d, W);
    float *scores = scratch, *q_padded = scores + PLLM_GROUP_MAX * PLLM_CHUNK_TOKENS;
    memset(out, 0, (uint64_t)group * d * sizeof *out);
    if (view->skip >= view->token_count) {
        for (uint32_t h = 0; h < group; h++) max[h] = -INFINITY, sum[h] = 0;
        return;
    }
    for (uint32_t h = 0; h < group; h++) {
        memcpy(q_padded + h * padded, q + (uint64_t)h * d, d * sizeof *q);
        memset(q_padded + h * padded + d, 0, (padded - d) * sizeof *q);
    }
    run_list runs = run_list_of(shape, view, kv_head);
    for (uint32_t run = 0; run < 2 * runs.block_count; run++) {
        uint32_t block = runs.block_first + run % runs.block_count;
        uint32_t start = block * PLLM_BLOCK_TOKENS;
        uint32_t begin = view->skip > start ? view->skip - start : 0;
        uint32_t end = min_u32(view->token_count - start, PLLM_BLOCK_TOKENS);
        slice at = view_slice(shape, view, kv_head, block);
        const uint8_t *scales, *ahead = run_ahead(&runs, run, &scales);
        if (run < runs.block_count) {
            score_task task = {at.bytes, ahead,  scales, q_padded, scores + start,
                               d,        padded, begin,  end};
            for (uint32_t h = 0; h < group; h += HEADS) {
                score_functions[at.dtype][min_u32(group - h, HEADS) - 1](&task);
                task.q += HEADS * padded, task.scores += HEADS * PLLM_CHUNK_TOKENS;
                task.ahead = NULL;
            }
        } else {
            if (run == runs.block_count)
                for (uint32_t h = 0; h < group; h++)
                    sum[h] = softmax_range(scores + h * PLLM_CHUNK_TOKENS, view->skip,
                                           view->token_count, -INFINITY, &max[h]);
            value_task task = {at.bytes, ahead, scores + start, out, d, begin, end};
            for (uint32_t h = 0; h < group; h += HEADS) {
                value_functions[at.dtype][min_u32(group - h, HEADS) - 1](&task);
                task.p += HEADS * PLLM_CHUNK_TOKENS, task.out += HEADS * d;
                task.ahead = NULL;
            }
        }
    }
}

/* ---- prefill: the chunk as f32 panels ---- */

/* Tokens begin..end-1 (block-local, whole vectors) of plain keys into keys[panel][channel][PANEL];
 * start: the block's first token in the chunk. Rows beyond the written ones give lanes of garbage,
 * which stay in their lanes and are masked. */
INLINE void unpack_keys_plain(float *keys, const uint8_t *rows, uint32_t d, uint32_t start,
                              uint32_t end, pllm_dtype dtype)
{
    uint64_t size = element_bytes(dtype), row_bytes = d * size;
    for (uint32_t t = 0; t < end; t += W) {
        uint32_t token = start + t;
        float *panel = keys + (uint64_t)(token / PANEL) * PANEL * d + token % PANEL;
        for (uint32_t c = 0; c < d; c += W) {
            uint32_t n = min_u32(W, d - c);
            vec tile[W];
            if (n == W)
                UNROLL for (int i = 0; i < W; i++) tile[i] =
                    v_plain(dtype, rows + (t + i) * row_bytes + c * size, W);
            else
                UNROLL for (int i = 0; i < W; i++) tile[i] =
                    v_plain(dtype, rows + (t + i) * row_bytes + c * size, n);
            v_transpose(tile);
            if (n == W)
                UNROLL for (int i = 0; i < W; i++)
                    v_store(panel + (uint64_t)(c + i) * PANEL, tile[i]);
            else
                for (uint32_t i = 0; i < n; i++)
                    v_store(panel + (uint64_t)(c + i) * PANEL, tile[i]);
        }
    }
}

INLINE void unpack_keys_quantised(float *keys, const uint8_t *bytes, uint32_t d, uint32_t start,
                                  uint32_t end, pllm_dtype dtype)
{
    uint32_t bits = dtype_bits(dtype), row_bytes = PLLM_BLOCK_TOKENS * bits / 8;
    pllm_kv_quantised at = pllm_kv_quantised_layout(d, bits);
    float scale[PLLM_HEAD_DIM_MAX], minimum[PLLM_HEAD_DIM_MAX];
    for (uint32_t c = 0; c < d; c += W) {
        uint32_t n = min_u32(W, d - c);
        v_store_n(scale + c, v_plain(PLLM_F16, bytes + at.key_scale + 2 * c, n), n);
        v_store_n(minimum + c, v_plain(PLLM_F16, bytes + at.key_min + 2 * c, n), n);
    }
    for (uint32_t t = 0; t < end; t += W) {
        uint32_t token = start + t;
        float *panel = keys + (uint64_t)(token / PANEL) * PANEL * d + token % PANEL;
        for (uint32_t c = 0; c < d; c++)
            v_store(panel + (uint64_t)c * PANEL,
                    v_fma(v_set1(scale[c]),
                          key_row_quantised(dtype, bytes + (uint64_t)c * row_bytes, t / W),
                          v_set1(minimum[c])));
    }
}

/* Values of the block's tokens first..end-1 into values[panel][token][PANEL]. */
INLINE void unpack_values_plain(float *values, const uint8_t *rows, uint32_t d, uint32_t start,
                                uint32_t first, uint32_t end, pllm_dtype dtype)
{
    uint64_t size = element_bytes(dtype);
    for (uint32_t t = first; t < end; t++)
        for (uint32_t c = 0; c < d; c += W) {
            float *to = values + (uint64_t)(c / PANEL) * PANEL * PLLM_CHUNK_TOKENS +
                        (uint64_t)(start + t) * PANEL + c % PANEL;
            const uint8_t *from = rows + (t * (uint64_t)d + c) * size;
            v_store(to, d - c >= W ? v_plain(dtype, from, W) : v_plain(dtype, from, d - c));
        }
}

INLINE void unpack_values_quantised(float *values, const uint8_t *bytes, uint32_t d, uint32_t start,
                                    uint32_t first, uint32_t end, pllm_dtype dtype)
{
    uint32_t bits = dtype_bits(dtype);
    pllm_kv_quantised at = pllm_kv_quantised_layout(d, bits);
    float scale[PLLM_BLOCK_TOKENS], minimum[PLLM_BLOCK_TOKENS];
    float row[PLLM_HEAD_DIM_MAX + 2 * W];
    for (uint32_t t = 0; t < PLLM_BLOCK_TOKENS; t += W) {
        v_store(scale + t, v_plain(PLLM_F16, bytes + at.value_scale + 2 * t, W));
        v_store(minimum + t, v_plain(PLLM_F16, bytes + at.value_min + 2 * t, W));
    }
    for (uint32_t t = first; t < end; t++) {
        const uint8_t *from = bytes + at.values + (uint64_t)t * d * bits / 8;
        uint32_t row_bytes = d * bits / 8;
        for (uint32_t c = 0; c < row_bytes; c += W) {
            uint32_t n = min_u32(W, row_bytes - c);
            if (dtype == PLLM_INT8) {
                v_store_n(row + c, v_u8(from + c, n), n);
            } else {
                v_store_n(row + c, v_low_nibbles(from + c, n), n);
                v_store_n(row + d / 2 + c, v_high_nibbles(from + c, n), n);
            }
        }
        for (uint32_t c = 0; c < d; c += W) {
            float *to = values + (uint64_t)(c / PANEL) * PANEL * PLLM_CHUNK_TOKENS +
                        (uint64_t)(start + t) * PANEL + c % PANEL;
            v_store(to, v_fma(v_set1(scale[t]), v_load_n(row + c, min_u32(W, d - c)),
                              v_set1(minimum[t])));
        }
    }
}

NOINLINE void unpack_block(float *keys, float *values, slice at, uint32_t d, uint32_t start,
                           uint32_t first, uint32_t end)
{
    const uint8_t *rows = at.bytes + value_offset(at.dtype, d);
    switch (at.dtype) {
    case PLLM_F32:
        unpack_keys_plain(keys, at.bytes, d, start, end, PLLM_F32);
        unpack_values_plain(values, rows, d, start, first, end, PLLM_F32);
        break;
    case PLLM_F16:
        unpack_keys_plain(keys, at.bytes, d, start, end, PLLM_F16);
        unpack_values_plain(values, rows, d, start, first, end, PLLM_F16);
        break;
    case PLLM_BF16:
        unpack_keys_plain(keys, at.bytes, d, start, end, PLLM_BF16);
        unpack_values_plain(values, rows, d, start, first, end, PLLM_BF16);
        break;
    case PLLM_INT8:
        unpack_keys_quantised(keys, at.bytes, d, start, end, PLLM_INT8);
        unpack_values_quantised(values, at.bytes, d, start, first, end, PLLM_INT8);
        break;
    default:
        unpack_keys_quantised(keys, at.bytes, d, start, end, PLLM_INT4);
        unpack_values_quantised(values, at.bytes, d, start, first, end, PLLM_INT4);
        break;
    }
}

/* ---- prefill: the micro-kernel ---- */

/* c[i][0..vectors*W) (+)= sum over k of a[i][k] * b[k][0..vectors*W), b's rows PANEL apart. Starts
 * from c if `add`, else from zero; the last vector is n wide. */
INLINE void multiply(int rows, int vectors, int add, const float *const *a, const float *b,
                     float *const *c, uint32_t depth, uint32_t n)
{
    v_mask mask = lanes(n);
    vec acc[MR][NR];
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < vectors; j++) acc[i][j] =
        !add              ? v_zero()
        : j < vectors - 1 ? v_load(c[i] + j * W)
                          : v_load_mask(c[i] + j * W, mask);
    for (uint32_t k = 0; k < depth; k++, b += PANEL) {
        vec row[NR];
        UNROLL for (int j = 0; j < vectors; j++) row[j] = v_load(b + j * W);
        UNROLL for (int i = 0; i < rows; i++)
        {
            vec scalar = v_set1(a[i][k]);
            UNROLL for (int j = 0; j < vectors; j++) acc[i][j] = v_fma(scalar, row[j], acc[i][j]);
        }
    }
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vectors; j++) if (j < vectors - 1)
            v_store(c[i] + j * W, acc[i][j]);
    else v_store_mask(c[i] + j * W, acc[i][j], mask);
}

typedef void multiply_function(const float *const *a, const float *b, float *const *c,
                               uint32_t depth, uint32_t n);
#define MULTIPLY(ROWS, VECTORS)                                                                \
    NOINLINE void multiply_new_##ROWS##_##VECTORS(const float *const *a, const float *b,       \
                                                  float *const *c, uint32_t depth, uint32_t n) \
    {                                                                                          \
        multiply(ROWS, VECTORS, 0, a, b, c, depth, n);                                         \
    }                                                                                          \
    NOINLINE void multiply_add_##ROWS##_##VECTORS(const float *const *a, const float *b,       \
                                                  float *const *c, uint32_t depth, uint32_t n) \
    {                                                                                          \
        multiply(ROWS, VECTORS, 1, a, b, c, depth, n);                                         \
    }
#if NR == 4
#define MULTIPLY_ROWS(ROWS) MULTIPLY(ROWS, 1) MULTIPLY(ROWS, 2) MULTIPLY(ROWS, 3) MULTIPLY(ROWS, 4)
#define MULTIPLY_ROW(KIND, R)                                                            \
    {                                                                                    \
        multiply_##KIND##_##R##_1, multiply_##KIND##_##R##_2, multiply_##KIND##_##R##_3, \
            multiply_##KIND##_##R##_4                                                    \
    }
#else
#define MULTIPLY_ROWS(ROWS) MULTIPLY(ROWS, 1) MULTIPLY(ROWS, 2)
#define MULTIPLY_ROW(KIND, R)                                \
    {                                                        \
        multiply_##KIND##_##R##_1, multiply_##KIND##_##R##_2 \
    }
#endif
MULTIPLY_ROWS(1)
MULTIPLY_ROWS(2)
MULTIPLY_ROWS(3)
MULTIPLY_ROWS(4)
MULTIPLY_ROWS(5)
MULTIPLY_ROWS(6)
#define MULTIPLY_TABLE(KIND)                                                    \
    {                                                                           \
        MULTIPLY_ROW(KIND, 1), MULTIPLY_ROW(KIND, 2), MULTIPLY_ROW(KIND, 3),    \
            MULTIPLY_ROW(KIND, 4), MULTIPLY_ROW(KIND, 5), MULTIPLY_ROW(KIND, 6) \
    }
static multiply_function *const multiply_new[MR][NR] = MULTIPLY_TABLE(new);
static multiply_function *const multiply_add[MR][NR] = MULTIPLY_TABLE(add);

/* ---- prefill: three passes ---- */

/* What one call works on. Query vector i is head i % group of row i / group. */
typedef struct prefill {
    const float *q;
    uint64_t q_row_stride;
    uint32_t group, rows, d;
    uint32_t seen_first;                /* row r sees tokens before seen_first + r ... */
    uint32_t token_count, skip, window; /* ... less what these cut off */
    float *max, *sum, *out;             /* state of this call's first row */
    float *keys, *values, *scores;      /* scratch */
} prefill;

INLINE uint32_t row_end(const prefill *job, uint32_t row)
{
    return min_u32(job->seen_first + row, job->token_count);
}
INLINE uint32_t row_begin(const prefill *job, uint32_t row)
{
    uint32_t seen = job->seen_first + row;
    return job->window && seen > job->window ? max_u32(job->skip, seen - job->window) : job->skip;
}

/* Scores of all vectors against tokens begin..end-1 (rounded out to whole vectors). */
static void prefill_scores(const prefill *job, uint32_t begin, uint32_t end)
{
    uint32_t count = job->rows * job->group, d = job->d;
    for (uint32_t panel = begin / PANEL; panel * PANEL < end; panel++) {
        uint32_t vectors = (min_u32(end - panel * PANEL, PANEL) + W - 1) / W;
        for (uint32_t i = 0; i < count; i += MR) {
            uint32_t rows = min_u32(count - i, MR);
            const float *a[MR];
            float *c[MR];
            for (uint32_t r = 0; r < rows; r++) {
                uint32_t row = (i + r) / job->group, head = (i + r) % job->group;
                a[r] = job->q + row * job->q_row_stride + (uint64_t)head * d;
                c[r] = job->scores + (uint64_t)(i + r) * PLLM_CHUNK_TOKENS + panel * PANEL;
            }
            multiply_new[rows - 1][vectors - 1](a, job->keys + (uint64_t)panel * PANEL * d, c, d,
                                                W);
        }
    }
}

INLINE float scalar_exp(float x)
{
    float lanes[W];
    v_store(lanes, v_exp(v_set1(x)));
    return lanes[0];
}

/* Scores to weights, and the state to the new largest score. */
static void prefill_softmax(const prefill *job)
{
    for (uint32_t row = 0; row < job->rows; row++) {
        uint32_t begin = row_begin(job, row), end = row_end(job, row);
        if (begin >= end) continue;
        for (uint32_t head = 0; head < job->group; head++) {
            uint32_t i = row * job->group + head;
            float largest, old = job->max[i];
            float *out = job->out + (uint64_t)i * job->d;
            float mass = softmax_range(job->scores + (uint64_t)i * PLLM_CHUNK_TOKENS, begin, end,
                                       old, &largest);
            float kept = old == largest ? 1.0f : scalar_exp(old - largest);
            job->max[i] = largest;
            job->sum[i] = job->sum[i] * kept + mass;
            if (kept != 1.0f)
                for (uint32_t c = 0; c < job->d; c++) out[c] *= kept;
        }
    }
}

/* Adds tokens begin..end-1, seen by all, to vectors i..i+rows-1, one panel of channels. */
INLINE void prefill_add(const prefill *job, uint32_t i, uint32_t rows, uint32_t channel,
                        uint32_t begin, uint32_t end)
{
    uint32_t width = min_u32(job->d - channel, PANEL), vectors = (width + W - 1) / W;
    const float *b = job->values + (uint64_t)channel * PLLM_CHUNK_TOKENS + (uint64_t)begin * PANEL;
    const float *a[MR];
    float *c[MR];
    for (uint32_t r = 0; r < rows; r++) {
        a[r] = job->scores + (uint64_t)(i + r) * PLLM_CHUNK_TOKENS + begin;
        c[r] = job->out + (uint64_t)(i + r) * job->d + channel;
    }
    multiply_add[rows - 1][vectors - 1](a, b, c, end - begin, width - (vectors - 1) * W);
}

/* Tokens seen by every row go through full register blocks; those at the edges, which some rows
 * must not touch, row by row. Either way an output is one ascending chain. */
static void prefill_values(const prefill *job)
{
    enum { RUN = 64 }; /* tokens of a panel: 16 KiB at PANEL = 64 */
    uint32_t count = job->rows * job->group, last = job->rows - 1;
    uint32_t begin = row_begin(job, 0);
    uint32_t common = row_end(job, 0) / PLLM_BLOCK_TOKENS * PLLM_BLOCK_TOKENS;
    if (row_end(job, 0) == row_end(job, last)) common = row_end(job, 0);
    if (row_begin(job, last) != begin || common <= begin) common = 0;
    for (uint32_t channel = 0; channel < job->d; channel += PANEL) {
        for (uint32_t t = begin; t < common; t += RUN)
            for (uint32_t i = 0; i < count; i += MR)
                prefill_add(job, i, min_u32(count - i, MR), channel, t, min_u32(common, t + RUN));
        for (uint32_t row = 0; row < job->rows; row++) {
            uint32_t from = max_u32(common, row_begin(job, row)), to = row_end(job, row);
            if (from >= to) continue;
            for (uint32_t head = 0; head < job->group; head += MR)
                prefill_add(job, row * job->group + head, min_u32(job->group - head, MR), channel,
                            from, to);
        }
    }
}

static void attend_prefill(const pllm_kv_shape *shape, const pllm_kv_view *view, uint32_t kv_head,
                           const float *q, uint64_t q_row_stride, uint32_t group, uint32_t rows,
                           uint32_t tokens_first_row, float *max, float *sum, float *out,
                           void *scratch)
{
    uint32_t d = shape->head_dim;
    float *keys = scratch, *values = keys + PLLM_CHUNK_TOKENS * d;
    prefill job = {.q = q, .q_row_stride = q_row_stride, .group = group, .rows = rows, .d = d};
    job.seen_first = tokens_first_row, job.token_count = view->token_count;
    job.skip = view->skip, job.window = view->window;
    job.max = max, job.sum = sum, job.out = out;
    job.keys = keys, job.values = values;
    job.scores = values + PLLM_CHUNK_TOKENS * round_up(d, PANEL);
    uint32_t begin = row_begin(&job, 0), end = row_end(&job, rows - 1);
    if (begin >= end) return;
    for (uint32_t block = begin / PLLM_BLOCK_TOKENS; block * PLLM_BLOCK_TOKENS < end; block++) {
        uint32_t start = block * PLLM_BLOCK_TOKENS;
        slice at = view_slice(shape, view, kv_head, block);
        if (start + PLLM_BLOCK_TOKENS < end)
            prefetch_lines(view_slice(shape, view, kv_head, block + 1).bytes, 0,
                           pllm_kv_slice_bytes(shape, at.dtype));
        unpack_block(keys, values, at, d, start, begin > start ? begin - start : 0,
                     min_u32(end - start, PLLM_BLOCK_TOKENS));
    }
    for (uint32_t done = 0; done < rows;) {
        job.rows = min_u32(rows - done, SCORE_ROWS / group);
        prefill_scores(&job, row_begin(&job, 0), row_end(&job, job.rows - 1));
        prefill_softmax(&job);
        prefill_values(&job);
        done += job.rows, job.seen_first += job.rows, job.q += job.rows * q_row_stride;
        job.max += job.rows * group, job.sum += job.rows * group;
        job.out += (uint64_t)job.rows * group * d;
    }
}

/* ---- merging ---- */

static void finish(float *out, const float *state_out, float sum, uint32_t head_dim)
{
    for (uint32_t c = 0; c < head_dim; c++) out[c] = sum == 0 ? 0.0f : state_out[c] / sum;
}

static void merge(float *out, const float *max, const float *sum, const float *partial_out,
                  uint64_t stride_between_chunks, uint32_t chunk_count, uint32_t head_dim)
{
    float largest = -INFINITY, mass = 0;
    vec total[PLLM_HEAD_DIM_MAX / W];
    for (uint32_t chunk = 0; chunk < chunk_count; chunk++)
        if (max[chunk * stride_between_chunks] > largest)
            largest = max[chunk * stride_between_chunks];
    for (uint32_t c = 0; c < head_dim; c += W) total[c / W] = v_zero();
    for (uint32_t chunk = 0; chunk < chunk_count; chunk++) {
        uint64_t at = chunk * stride_between_chunks;
        if (sum[at] == 0) continue; /* everything masked */
        float weight = scalar_exp(max[at] - largest);
        mass += weight * sum[at];
        for (uint32_t c = 0; c < head_dim; c += W)
            total[c / W] =
                v_fma(v_set1(weight), v_load_n(partial_out + at + c, min_u32(W, head_dim - c)),
                      total[c / W]);
    }
    for (uint32_t c = 0; c < head_dim; c += W)
        v_store_n(out + c, total[c / W], min_u32(W, head_dim - c));
    finish(out, out, mass, head_dim);
}
