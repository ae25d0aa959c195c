/* The small operations: every version against double arithmetic, and against the reference to the
 * bit, over lengths that fill and do not fill sixteen lanes. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>
#include "kernels/cpu/exp.h"
#include "kernels/kernels.h"

enum { N_MAX = 600 };
static const char *const version_names[] = {"reference", "avx2", "avx512"};
static const uint32_t lengths[] = {1, 2, 7, 8, 15, 16, 17, 31, 33, 64, 100, 576, 599};
enum { LENGTH_COUNT = sizeof lengths / sizeof lengths[0] };

static uint64_t random_state = 20260302;

static float random_float(void) /* in [-1, 1) */
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(random_state >> 32) * 0x1p-31f;
}

static void fill(float *x, uint32_t n, float size)
{
    for (uint32_t i = 0; i < n; i++) x[i] = random_float() * size;
}

static void assert_near(double value, double want, double error)
{
    if (!(fabs(value - want) <= error)) fail_msg("%.9g is not %.9g +- %g", value, want, error);
}

/* Runs check with each version this CPU has. */
static void each_version(void (*check)(const pllm_kernels *kernels, const pllm_kernels *reference))
{
    for (int v = 0; v < 3; v++) {
        const pllm_kernels *kernels = pllm_kernels_by_name(version_names[v]);
        if (kernels) check(kernels, pllm_kernels_by_name("reference"));
    }
}

static void exp_is_within_an_ulp(void **state)
{
    (void)state;
    double worst = 0;
    for (float x = -87.0f; x < 88.7f; x += 0.00137f) {
        double want = exp((double)x), error = fabs(pllm_exp_scalar(x) - want) / want;
        if (error > worst) worst = error;
    }
    printf("exp: largest relative error %.3g\n", worst);
    assert_true(worst < 1.1e-7);
    assert_true(pllm_exp_scalar(0.0f) == 1.0f);
    assert_true(pllm_exp_scalar(-INFINITY) == 0.0f);
    assert_true(pllm_exp_scalar(-200.0f) == 0.0f);
    assert_true(isinf(pllm_exp_scalar(INFINITY)));
    assert_true(isinf(pllm_exp_scalar(88.8f)));
    assert_true(isnan(pllm_exp_scalar(NAN)));
    assert_near(pllm_exp_scalar(-100.0f), exp(-100.0), 0x1p-149);
}

static void check_dot(const pllm_kernels *kernels, const pllm_kernels *reference)
{
    for (int l = 0; l < LENGTH_COUNT; l++) {
        float x[N_MAX], y[N_MAX];
        uint32_t n = lengths[l];
        fill(x, N_MAX, 3.0f); /* past n: must not be read as part of the sum */
        fill(y, N_MAX, 3.0f);
        double want = 0, size = 0;
        for (uint32_t i = 0; i < n; i++) {
            want += (double)x[i] * y[i];
            size += fabs((double)x[i] * y[i]);
        }
        float got = kernels->dot(x, y, n), same = reference->dot(x, y, n);
        assert_near(got, want, size * 5e-7);
        assert_memory_equal(&got, &same, sizeof got);
    }
    float none = 0;
    assert_true(kernels->dot(&none, &none, 0) == 0.0f);
}

static void check_rms_norm(const pllm_kernels *kernels, const pllm_kernels *reference)
{
    for (int l = 0; l < LENGTH_COUNT; l++) {
        float x[N_MAX], weight[N_MAX], out[N_MAX] = {0}, same[N_MAX] = {0};
        uint32_t n = lengths[l];
        fill(x, N_MAX, 5.0f);
        fill(weight, N_MAX, 1.0f);
        double squares = 0;
        for (uint32_t i = 0; i < n; i++) squares += (double)x[i] * x[i];
        double scale = 1 / sqrt(squares / n + 1e-5);
        kernels->rms_norm(out, x, weight, n, 1e-5f);
        reference->rms_norm(same, x, weight, n, 1e-5f);
        for (uint32_t i = 0; i < n; i++)
            assert_near(out[i], x[i] * scale * weight[i], fabs(out[i]) * 1e-6);
        assert_memory_equal(out, same, sizeof out);
        kernels->rms_norm(x, x, weight, n, 1e-5f); /* in place */
        assert_memory_equal(x, out, n * sizeof *x);
    }
}

static void check_rotary(const pllm_kernels *kernels, const pllm_kernels *reference)
{
    static const uint32_t dims[] = {2, 8, 30, 32, 48, 64};
    enum { HEADS = 3, HEAD_DIM = 64 };
    for (int d = 0; d < 12; d++) {
        int interleaved = d % 2;
        uint32_t rotary_dims = dims[d / 2], half = rotary_dims / 2;
        float x[HEADS * HEAD_DIM], before[HEADS * HEAD_DIM], same[HEADS * HEAD_DIM];
        float cosine[32], sine[32];
        fill(x, HEADS * HEAD_DIM, 4.0f);
        memcpy(before, x, sizeof x);
        memcpy(same, x, sizeof x);
        for (uint32_t i = 0; i < half; i++) {
            cosine[i] = cosf(0.3f * (float)i + 1.0f);
            sine[i] = sinf(0.3f * (float)i + 1.0f);
        }
        kernels->rotary(x, HEADS, HEAD_DIM, rotary_dims, cosine, sine, interleaved);
        reference->rotary(same, HEADS, HEAD_DIM, rotary_dims, cosine, sine, interleaved);
        assert_memory_equal(x, same, sizeof x);
        for (uint32_t h = 0; h < HEADS; h++) {
            const float *old = before + h * HEAD_DIM, *new = x + h *HEAD_DIM;
            for (uint32_t i = 0; i < half; i++) {
                uint32_t a = interleaved ? 2 * i : i, b = interleaved ? 2 * i + 1 : i + half;
                assert_near(new[a], (double)old[a] * cosine[i] - (double)old[b] * sine[i], 2e-6);
                assert_near(new[b], (double)old[a] * sine[i] + (double)old[b] * cosine[i], 2e-6);
            }
            for (uint32_t i = rotary_dims; i < HEAD_DIM; i++) assert_true(new[i] == old[i]);
        }
    }
}

static void check_swiglu_and_add(const pllm_kernels *kernels, const pllm_kernels *reference)
{
    for (int l = 0; l < LENGTH_COUNT; l++) {
        float gate[N_MAX], up[N_MAX], out[N_MAX] = {0}, same[N_MAX] = {0};
        uint32_t n = lengths[l];
        fill(gate, N_MAX, 12.0f);
        fill(up, N_MAX, 3.0f);
        kernels->swiglu(out, gate, up, n);
        reference->swiglu(same, gate, up, n);
        assert_memory_equal(out, same, sizeof out);
        for (uint32_t i = 0; i < n; i++) {
            double want = gate[i] / (1 + exp(-(double)gate[i])) * up[i];
            assert_near(out[i], want, fabs(want) * 4e-7);
        }
        kernels->add(out, up, n);
        for (uint32_t i = 0; i < n; i++) assert_true(out[i] == same[i] + up[i]);
        for (uint32_t i = n; i < N_MAX; i++) assert_true(out[i] == 0);
        kernels->swiglu(gate, gate, up, n); /* in place */
        assert_memory_equal(gate, same, n * sizeof *gate);
    }
    float ends[5] = {-200.0f, 200.0f, NAN, 0.0f, -INFINITY}, ones[5] = {1, 1, 1, 1, 1};
    kernels->swiglu(ends, ends, ones, 4);
    assert_true(ends[0] == 0.0f && ends[1] == 200.0f && isnan(ends[2]) && ends[3] == 0.0f);
}

static void check_softmax(const pllm_kernels *kernels, const pllm_kernels *reference)
{
    for (int l = 0; l < LENGTH_COUNT; l++) {
        float x[N_MAX], same[N_MAX];
        double want[N_MAX], sum = 0;
        uint32_t n = lengths[l];
        fill(x, N_MAX, 30.0f);
        x[n] = 90.0f; /* past the end: not the largest */
        if (n > 8) x[3] = -INFINITY;
        memcpy(same, x, sizeof x);
        for (uint32_t i = 0; i < n; i++) sum += want[i] = exp((double)x[i] - 30);
        kernels->softmax(x, n);
        reference->softmax(same, n);
        assert_memory_equal(x, same, sizeof x);
        for (uint32_t i = 0; i < n; i++)
            assert_near(x[i], want[i] / sum, want[i] / sum * 4e-6 + 1e-30);
    }
    float bad[20], empty[20];
    fill(bad, 20, 1.0f);
    bad[18] = NAN;
    for (int i = 0; i < 20; i++) empty[i] = -INFINITY;
    kernels->softmax(bad, 20);
    kernels->softmax(empty, 20);
    for (int i = 0; i < 20; i++) assert_true(isnan(bad[i]) && isnan(empty[i]));
}

static void dots(void **state)
{
    (void)state;
    each_version(check_dot);
}

static void rms_norms(void **state)
{
    (void)state;
    each_version(check_rms_norm);
}

static void rotations(void **state)
{
    (void)state;
    each_version(check_rotary);
}

static void gates_and_sums(void **state)
{
    (void)state;
    each_version(check_swiglu_and_add);
}

static void softmaxes(void **state)
{
    (void)state;
    each_version(check_softmax);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exp_is_within_an_ulp),
        cmocka_unit_test(dots),
        cmocka_unit_test(rms_norms),
        cmocka_unit_test(rotations),
        cmocka_unit_test(gates_and_sums),
        cmocka_unit_test(softmaxes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
