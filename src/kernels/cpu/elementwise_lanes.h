/* elementwise_lanes.h - the small operations over sixteen lanes: the body of
 * elementwise_avx2.c and elementwise_avx512.c, which define VERSION(name) and include this. */
#include "kernels/cpu/lanes16.h"
#include "kernels/elementwise.h"

float VERSION(pllm_dot)(const float *x, const float *y, uint32_t n)
{
    v16 sum = v16_set1(0.0f);
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16) sum = v16_fma(v16_load(x + i), v16_load(y + i), sum);
    if (i < n)
        sum = v16_fma(v16_load_first(x + i, n - i, 0.0f), v16_load_first(y + i, n - i, 0.0f), sum);
    return v16_sum(sum);
}

void VERSION(pllm_rms_norm)(float *out, const float *x, const float *weight, uint32_t n,
                            float epsilon)
{
    float scale = 1.0f / sqrtf(VERSION(pllm_dot)(x, x, n) / (float)n + epsilon);
    for (uint32_t i = 0; i < n; i++) out[i] = x[i] * scale * weight[i];
}

void VERSION(pllm_rotary)(float *x, uint32_t heads, uint32_t head_dim, uint32_t rotary_dims,
                          const float *cosine, const float *sine, int interleaved)
{
    if (interleaved) { /* adjacent lanes: the compiler's shuffles do */
        for (uint32_t h = 0; h < heads; h++, x += head_dim) {
            for (uint32_t i = 0; i < rotary_dims / 2; i++) {
                float a = x[2 * i], b = x[2 * i + 1];
                x[2 * i] = a * cosine[i] - b * sine[i];
                x[2 * i + 1] = a * sine[i] + b * cosine[i];
            }
        }
        return;
    }
    uint32_t half = rotary_dims / 2;
    for (uint32_t h = 0; h < heads; h++, x += head_dim) {
        for (uint32_t i = 0; i < half; i += 16) {
            uint32_t count = half - i < 16 ? half - i : 16;
            v16 a = v16_load_first(x + i, count, 0.0f);
            v16 b = v16_load_first(x + half + i, count, 0.0f);
            v16 c = v16_load_first(cosine + i, count, 0.0f);
            v16 s = v16_load_first(sine + i, count, 0.0f);
            v16_store_first(x + i, count, v16_sub(v16_mul(a, c), v16_mul(b, s)));
            v16_store_first(x + half + i, count, v16_add(v16_mul(a, s), v16_mul(b, c)));
        }
    }
}

INLINE v16 swiglu_lanes(v16 gate, v16 up)
{
    v16 below = v16_add(v16_set1(1.0f), v16_exp(v16_negate(gate)));
    return v16_mul(v16_div(gate, below), up);
}

void VERSION(pllm_swiglu)(float *out, const float *gate, const float *up, uint32_t n)
{
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16)
        v16_store(out + i, swiglu_lanes(v16_load(gate + i), v16_load(up + i)));
    if (i < n)
        v16_store_first(out + i, n - i,
                        swiglu_lanes(v16_load_first(gate + i, n - i, 0.0f),
                                     v16_load_first(up + i, n - i, 0.0f)));
}

void VERSION(pllm_add)(float *x, const float *y, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) x[i] += y[i];
}

/* A NaN is passed over in the search for the largest, then spreads through the sum. */
void VERSION(pllm_softmax)(float *x, uint32_t n)
{
    uint32_t whole = n / 16 * 16;
    v16 largest = v16_set1(-INFINITY), sum = v16_set1(0.0f);
    for (uint32_t i = 0; i < whole; i += 16) largest = v16_max(v16_load(x + i), largest);
    if (whole < n) largest = v16_max(v16_load_first(x + whole, n - whole, -INFINITY), largest);
    largest = v16_set1(v16_largest(largest));
    for (uint32_t i = 0; i < whole; i += 16) {
        v16 e = v16_exp(v16_sub(v16_load(x + i), largest));
        v16_store(x + i, e);
        sum = v16_add(sum, e);
    }
    if (whole < n) {
        v16 last = v16_load_first(x + whole, n - whole, -INFINITY);
        v16 e = v16_exp(v16_sub(last, largest));
        v16_store_first(x + whole, n - whole, e);
        sum = v16_add(sum, e);
    }
    float inverse = 1.0f / v16_sum(sum);
    for (uint32_t i = 0; i < n; i++) x[i] *= inverse;
}
