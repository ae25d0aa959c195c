/* attend_reference.c - attention and KV writing as one would say it: the versions that tuned ones
 * are held against, and that machines without AVX2 run.
 *
 * Rows are read one by one as f32; scores and sums are kept in double. */
#include <math.h>
#include <string.h>
#include "kernels/attention.h"

static void row_to_f32(float *dst, const void *src, pllm_dtype dtype, uint64_t n)
{
    const uint16_t *halves = src;
    if (dtype == PLLM_F32)
        memcpy(dst, src, n * sizeof *dst);
    else if (dtype == PLLM_F16)
        for (uint64_t i = 0; i < n; i++) dst[i] = pllm_f16_to_f32(halves[i]);
    else
        for (uint64_t i = 0; i < n; i++) dst[i] = pllm_bf16_to_f32(halves[i]);
}

static void row_from_f32(void *dst, const float *src, pllm_dtype dtype, uint64_t n)
{
    uint16_t *halves = dst;
    if (dtype == PLLM_F32)
        memcpy(dst, src, n * sizeof *src);
    else if (dtype == PLLM_F16)
        for (uint64_t i = 0; i < n; i++) halves[i] = pllm_f32_to_f16(src[i]);
    else
        for (uint64_t i = 0; i < n; i++) halves[i] = pllm_f32_to_bf16(src[i]);
}

#define ROW_TO_F32 row_to_f32
#define ROW_FROM_F32 row_from_f32
#include "kernels/cpu/kv_write.h"

static void view_row(const pllm_kv_shape *shape, const pllm_kv_view *view, uint32_t kv_head,
                     int value, uint32_t token, float *out)
{
    uint32_t block = token / PLLM_BLOCK_TOKENS;
    int open = view->last_open && block == view->block_count - 1;
    pllm_kv_read_row(shape, open ? shape->open : shape->sealed, view->blocks[block], kv_head, value,
                     token % PLLM_BLOCK_TOKENS, out);
}

/* One query over tokens first..end-1, merged into the state (max, sum, out). */
static void attend_one(const pllm_kv_shape *shape, const pllm_kv_view *view, uint32_t kv_head,
                       const float *q, uint32_t first, uint32_t end, float *max, float *sum,
                       float *out)
{
    uint32_t d = shape->head_dim;
    float row[PLLM_HEAD_DIM_MAX];
    double score[PLLM_CHUNK_TOKENS], total[PLLM_HEAD_DIM_MAX], largest = *max, mass = 0;
    if (first >= end) return;
    for (uint32_t t = first; t < end; t++) {
        view_row(shape, view, kv_head, 0, t, row);
        score[t] = 0;
        for (uint32_t c = 0; c < d; c++) score[t] += (double)q[c] * row[c];
        score[t] = (float)score[t];
        if (score[t] > largest) largest = score[t];
    }
    double kept = *sum != 0 ? exp(*max - largest) : 0.0;
    for (uint32_t c = 0; c < d; c++) total[c] = out[c] * kept;
    for (uint32_t t = first; t < end; t++) {
        double weight = largest > -INFINITY ? exp(score[t] - largest) : 0.0;
        view_row(shape, view, kv_head, 1, t, row);
        mass += weight;
        for (uint32_t c = 0; c < d; c++) total[c] += weight * row[c];
    }
    *sum = (float)(*sum * kept + mass);
    *max = (float)largest;
    for (uint32_t c = 0; c < d; c++) out[c] = (float)total[c];
}

static void attend_decode(const pllm_kv_shape *shape, const pllm_kv_view *view, uint32_t kv_head,
                          const float *q, uint32_t group, float *max, float *sum, float *out,
                          void *scratch)
{
    (void)scratch;
    uint64_t d = shape->head_dim;
    for (uint32_t head = 0; head < group; head++) {
        max[head] = -INFINITY;
        sum[head] = 0;
        memset(out + head * d, 0, d * sizeof *out);
        attend_one(shape, view, kv_head, q + head * d, view->skip, view->token_count, max + head,
                   sum + head, out + head * d);
    }
}

static void attend_prefill(const pllm_kv_shape *shape, const pllm_kv_view *view, uint32_t kv_head,
                           const float *q, uint64_t q_row_stride, uint32_t group, uint32_t rows,
                           uint32_t tokens_first_row, float *max, float *sum, float *out,
                           void *scratch)
{
    (void)scratch;
    uint64_t d = shape->head_dim;
    for (uint32_t row = 0; row < rows; row++) {
        uint32_t seen = tokens_first_row + row, first = view->skip;
        uint32_t end = seen < view->token_count ? seen : view->token_count;
        if (view->window && seen > view->window && seen - view->window > first)
            first = seen - view->window;
        for (uint32_t head = 0; head < group; head++) {
            uint64_t index = (uint64_t)row * group + head;
            attend_one(shape, view, kv_head, q + row * q_row_stride + head * d, first, end,
                       max + index, sum + index, out + index * d);
        }
    }
}

static void finish(float *out, const float *state_out, float sum, uint32_t head_dim)
{
    for (uint32_t c = 0; c < head_dim; c++) out[c] = sum == 0 ? 0.0f : state_out[c] / sum;
}

static void merge(float *out, const float *max, const float *sum, const float *partial_out,
                  uint64_t stride_between_chunks, uint32_t chunk_count, uint32_t head_dim)
{
    double total[PLLM_HEAD_DIM_MAX] = {0}, largest = -INFINITY, mass = 0;
    for (uint32_t chunk = 0; chunk < chunk_count; chunk++)
        largest = fmax(largest, max[chunk * stride_between_chunks]);
    for (uint32_t chunk = 0; chunk < chunk_count; chunk++) {
        uint64_t at = chunk * stride_between_chunks;
        if (sum[at] == 0) continue;
        double weight = exp(max[at] - largest);
        mass += weight * sum[at];
        for (uint32_t c = 0; c < head_dim; c++) total[c] += weight * partial_out[at + c];
    }
    for (uint32_t c = 0; c < head_dim; c++) out[c] = mass == 0 ? 0.0f : (float)(total[c] / mass);
}

uint64_t pllm_attention_scratch_bytes(uint32_t head_dim)
{
    /* Prefill (attend_simd.h) holds the chunk's keys and values as f32, values in panels of up to
     * 64 channels, and 126 rows of scores; decode holds less. A line more for over-wide stores. */
    uint64_t padded = (head_dim + 63) / 64 * 64;
    return sizeof(float) * (PLLM_CHUNK_TOKENS * (head_dim + padded + 126) + 16);
}

const pllm_attention_kernels pllm_attention_reference = {
    .append = kv_append,
    .seal = kv_seal,
    .attend_decode = attend_decode,
    .attend_prefill = attend_prefill,
    .merge = merge,
    .finish = finish,
};
