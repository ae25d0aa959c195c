/* elementwise_reference.c - the small operations as plain C, in the order elementwise.h fixes. */
#include <math.h>
#include "kernels/cpu/exp.h"
#include "kernels/elementwise.h"

enum { LANES = 16 };

/* Lane l takes l + 8, then l + 4, l + 2, l + 1. */
static float sum_lanes(float *lanes)
{
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++) lanes[l] += lanes[l + half];
    return lanes[0];
}

float pllm_dot_reference(const float *x, const float *y, uint32_t n)
{
    float lanes[LANES] = {0};
    for (uint32_t i = 0; i < n; i++) lanes[i % LANES] = fmaf(x[i], y[i], lanes[i % LANES]);
    return sum_lanes(lanes);
}

void pllm_rms_norm_reference(float *out, const float *x, const float *weight, uint32_t n,
                             float epsilon)
{
    float scale = 1.0f / sqrtf(pllm_dot_reference(x, x, n) / (float)n + epsilon);
    for (uint32_t i = 0; i < n; i++) out[i] = x[i] * scale * weight[i];
}

void pllm_rotary_reference(float *x, uint32_t heads, uint32_t head_dim, uint32_t rotary_dims,
                           const float *cosine, const float *sine, int interleaved)
{
    uint32_t half = rotary_dims / 2, step = interleaved ? 2 : 1, apart = interleaved ? 1 : half;
    for (uint32_t h = 0; h < heads; h++, x += head_dim) {
        for (uint32_t i = 0; i < half; i++) {
            float a = x[i * step], b = x[i * step + apart];
            x[i * step] = a * cosine[i] - b * sine[i];
            x[i * step + apart] = a * sine[i] + b * cosine[i];
        }
    }
}

void pllm_swiglu_reference(float *out, const float *gate, const float *up, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) out[i] = gate[i] / (1.0f + pllm_exp_scalar(-gate[i])) * up[i];
}

void pllm_add_reference(float *x, const float *y, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) x[i] += y[i];
}

void pllm_softmax_reference(float *x, uint32_t n)
{
    float largest = -INFINITY, lanes[LANES] = {0};
    for (uint32_t i = 0; i < n; i++) largest = x[i] > largest ? x[i] : largest;
    for (uint32_t i = 0; i < n; i++) {
        x[i] = pllm_exp_scalar(x[i] - largest);
        lanes[i % LANES] += x[i];
    }
    float inverse = 1.0f / sum_lanes(lanes);
    for (uint32_t i = 0; i < n; i++) x[i] *= inverse;
}
