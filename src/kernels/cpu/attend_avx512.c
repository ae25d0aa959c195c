/* attend_avx512.c - attention tuned for this instruction set (for now: calls the reference). */
#include "kernels/attention.h"

static void append(const pllm_kv_shape *shape, void *open_block, uint32_t row, const float *k,
                   const float *v)
{
    pllm_attention_reference.append(shape, open_block, row, k, v);
}
static void seal(const pllm_kv_shape *shape, void *sealed, const void *open)
{
    pllm_attention_reference.seal(shape, sealed, open);
}
static void attend_decode(const pllm_kv_shape *shape, const pllm_kv_view *view, uint32_t kv_head,
                          const float *q, uint32_t group, float *max, float *sum, float *out,
                          void *scratch)
{
    pllm_attention_reference.attend_decode(shape, view, kv_head, q, group, max, sum, out, scratch);
}
static void attend_prefill(const pllm_kv_shape *shape, const pllm_kv_view *view, uint32_t kv_head,
                           const float *q, uint64_t q_row_stride, uint32_t group, uint32_t rows,
                           uint32_t tokens_first_row, float *max, float *sum, float *out,
                           void *scratch)
{
    pllm_attention_reference.attend_prefill(shape, view, kv_head, q, q_row_stride, group, rows,
                                            tokens_first_row, max, sum, out, scratch);
}
static void merge(float *out, const float *max, const float *sum, const float *partial_out,
                  uint64_t stride_between_chunks, uint32_t chunk_count, uint32_t head_dim)
{
    pllm_attention_reference.merge(out, max, sum, partial_out, stride_between_chunks, chunk_count,
                                   head_dim);
}
static void finish(float *out, const float *state_out, float sum, uint32_t head_dim)
{
    pllm_attention_reference.finish(out, state_out, sum, head_dim);
}

const pllm_attention_kernels pllm_attention_avx512 = {append,         seal,  attend_decode,
                                                      attend_prefill, merge, finish};
