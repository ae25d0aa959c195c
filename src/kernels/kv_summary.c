#include "kernels/kv_summary.h"
#include <math.h>

/* One channel of one run: keys are stride floats apart. */
static void summarise(const float *keys, uint32_t stride, uint16_t *mean_out,
                      uint16_t *deviation_out)
{
    float sum = 0, squares = 0;
    for (uint32_t i = 0; i < PLLM_SUMMARY_TOKENS; i++) sum += keys[i * stride];
    float mean = sum / PLLM_SUMMARY_TOKENS;
    for (uint32_t i = 0; i < PLLM_SUMMARY_TOKENS; i++) {
        float apart = keys[i * stride] - mean;
        float square = apart * apart;
        squares += square;
    }
    *mean_out = pllm_f32_to_f16(mean);
    *deviation_out = pllm_f32_to_f16(sqrtf(squares / PLLM_SUMMARY_TOKENS));
}

void pllm_kv_summarise(const pllm_kv_shape *shape, const void *open, void *summary)
{
    float keys[PLLM_BLOCK_TOKENS * PLLM_HEAD_DIM_MAX];
    uint16_t *out = summary;
    uint32_t dim = shape->head_dim;
    for (uint32_t head = 0; head < shape->kv_heads; head++) {
        for (uint32_t row = 0; row < PLLM_BLOCK_TOKENS; row++)
            pllm_kv_read_row(shape, shape->open, open, head, 0, row, keys + row * dim);
        for (uint32_t run = 0; run < PLLM_SUMMARY_RUNS; run++) {
            for (uint32_t i = 0; i < dim; i++)
                summarise(keys + run * PLLM_SUMMARY_TOKENS * dim + i, dim, out + i, out + dim + i);
            out += 2 * dim;
        }
    }
}
