/* Products with packed weights: every version against plain arithmetic on the file's own rows, and
 * against the reference to the bit; a row's bits whatever is computed beside it. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>
#include "base/context.h"
#include "kernels/kernels.h"

static const char *const version_names[] = {"reference", "avx2", "avx512"};

/* Every product there is. */
static const struct {
    pllm_dtype dtype;
    pllm_compute compute;
} kinds[] = {
    {PLLM_F32, PLLM_COMPUTE_F32},   {PLLM_F16, PLLM_COMPUTE_AUTO},  {PLLM_BF16, PLLM_COMPUTE_AUTO},
    {PLLM_F32, PLLM_COMPUTE_BF16},  {PLLM_F16, PLLM_COMPUTE_BF16},  {PLLM_BF16, PLLM_COMPUTE_BF16},
    {PLLM_Q8_0, PLLM_COMPUTE_AUTO}, {PLLM_Q4_0, PLLM_COMPUTE_AUTO}, {PLLM_Q4_1, PLLM_COMPUTE_AUTO},
    {PLLM_Q8_0, PLLM_COMPUTE_F32},  {PLLM_Q4_0, PLLM_COMPUTE_F32},  {PLLM_Q4_1, PLLM_COMPUTE_F32},
};
enum { KIND_COUNT = sizeof kinds / sizeof kinds[0] };

static uint64_t random_state = 20260301;

static uint32_t random_u32(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 32);
}

static float random_float(void) /* in [-1, 1) */
{
    return (float)(int32_t)random_u32() * 0x1p-31f;
}

static void put_half(uint8_t *at, uint16_t half)
{
    memcpy(at, &half, sizeof half);
}

static uint16_t get_half(const uint8_t *at)
{
    uint16_t half;
    memcpy(&half, at, sizeof half);
    return half;
}

/* One matrix as a file would hold it, at an odd address, with what it means in f32. */
typedef struct matrix {
    pllm_dtype dtype;
    uint32_t n, k;
    uint64_t row_bytes;
    uint8_t *memory, *rows;
    float *values; /* [n][k] by the definitions in dtype.h */
    pllm_linear linear;
    void *panels;
} matrix;

static void fill_element(uint8_t *at, float *value, pllm_dtype dtype)
{
    float x = random_float() * 0.2f;
    if (dtype == PLLM_F32) {
        memcpy(at, &x, sizeof x);
        *value = x;
    } else if (dtype == PLLM_F16) {
        put_half(at, pllm_f32_to_f16(x));
        *value = pllm_f16_to_f32(get_half(at));
    } else {
        put_half(at, pllm_f32_to_bf16(x));
        *value = pllm_bf16_to_f32(get_half(at));
    }
}

static void fill_block(uint8_t *at, float *values, pllm_dtype dtype)
{
    put_half(at, pllm_f32_to_f16(random_float() * 0.01f));
    float d = pllm_f16_to_f32(get_half(at)), m = 0.0f;
    at += 2;
    if (dtype == PLLM_Q4_1) {
        put_half(at, pllm_f32_to_f16(random_float() * 0.1f));
        m = pllm_f16_to_f32(get_half(at));
        at += 2;
    }
    for (int i = 0; i < (dtype == PLLM_Q8_0 ? 32 : 16); i++) {
        at[i] = (uint8_t)(random_u32() >> 13);
        if (i == 0 && random_u32() % 4 == 0) at[i] = 0x80; /* -128; nibbles 0 and 8 */
        if (dtype == PLLM_Q8_0) {
            values[i] = d * (float)(int8_t)at[i];
        } else {
            int offset = dtype == PLLM_Q4_0 ? 8 : 0;
            values[i] = d * (float)((at[i] & 15) - offset) + m;
            values[i + 16] = d * (float)((at[i] >> 4) - offset) + m;
        }
    }
}

static void matrix_open(matrix *w, const pllm_kernels *kernels, pllm_dtype dtype, uint32_t n,
                        uint32_t k, pllm_compute compute, uint64_t seed)
{
    random_state = seed;
    *w = (matrix){.dtype = dtype, .n = n, .k = k};
    assert_int_equal(pllm_linear_check(dtype, n, k, compute), PLLM_OK);
    assert_int_equal(pllm_dtype_row_bytes(dtype, k, &w->row_bytes), PLLM_OK);
    w->row_bytes += 3; /* a stride that is not the row's length */
    w->memory = pllm_alloc(NULL, n * w->row_bytes + 1);
    w->rows = w->memory + 1;
    w->values = pllm_alloc(NULL, (uint64_t)n * k * sizeof(float));
    uint32_t elements = pllm_dtype_block_elements(dtype), bytes = pllm_dtype_block_bytes(dtype);
    for (uint32_t row = 0; row < n; row++) {
        for (uint32_t b = 0; b < k / elements; b++) {
            uint8_t *at = w->rows + row * w->row_bytes + (uint64_t)b * bytes;
            float *values = w->values + (uint64_t)row * k + (uint64_t)b * elements;
            if (elements == 1)
                fill_element(at, values, dtype);
            else
                fill_block(at, values, dtype);
        }
    }
    uint64_t packed = pllm_linear_packed_bytes(dtype, n, k, compute);
    w->panels = pllm_alloc(NULL, packed + 64);
    memset(w->panels, 0xa5, packed + 64);
    pllm_linear_place(&w->linear, dtype, n, k, compute, w->panels);
    uint32_t panels = (n + 15) / 16;
    assert_int_equal(packed, panels * w->linear.panel_bytes);
    /* In two goes, as two threads would. */
    kernels->pack(w->panels, dtype, n, k, compute, w->rows, w->row_bytes, panels / 2,
                  panels - panels / 2);
    kernels->pack(w->panels, dtype, n, k, compute, w->rows, w->row_bytes, 0, panels / 2);
    for (int i = 0; i < 64; i++) assert_int_equal(((uint8_t *)w->panels)[packed + i], 0xa5);
}

static void matrix_close(matrix *w)
{
    pllm_free(NULL, w->memory);
    pllm_free(NULL, w->values);
    pllm_free(NULL, w->panels);
}

/* Rows of x, prepared by one version. */
typedef struct input {
    uint32_t m, k;
    float *x;
    void *memory;
    pllm_activations activations;
} input;

static void input_open(input *in, const pllm_kernels *kernels, uint32_t m, uint32_t k,
                       uint64_t seed)
{
    random_state = seed;
    in->m = m;
    in->k = k;
    in->x = pllm_alloc(NULL, (uint64_t)m * k * sizeof(float));
    for (uint64_t i = 0; i < (uint64_t)m * k; i++)
        in->x[i] = random_float() * (random_u32() % 16 == 0 ? 20.0f : 1.0f);
    uint64_t bytes = pllm_activations_bytes(m, k);
    in->memory = pllm_alloc(NULL, bytes + 64);
    memset(in->memory, 0xa5, bytes + 64);
    pllm_activations_place(&in->activations, in->memory, m, k);
    uint32_t forms = PLLM_FORM_F32 | PLLM_FORM_BF16 | (k % 32 == 0 ? PLLM_FORM_INTEGER : 0);
    for (uint32_t row = 0; row < m; row++)
        kernels->prepare(&in->activations, row, in->x + (uint64_t)row * k, forms);
    for (int i = 0; i < 64; i++) assert_int_equal(((uint8_t *)in->memory)[bytes + i], 0xa5);
}

static void input_close(input *in)
{
    pllm_free(NULL, in->x);
    pllm_free(NULL, in->memory);
}

/* The exact dot product of file values and x, and the error the compute mode may make. */
static double exact(const matrix *w, uint32_t row, const float *x, double *error_out)
{
    const float *values = w->values + (uint64_t)row * w->k;
    double sum = 0, error = 0;
    for (uint32_t i = 0; i < w->k; i++) {
        double term = (double)values[i] * x[i];
        sum += term;
        switch (w->linear.compute) {
        case PLLM_COMPUTE_BF16:
            error += fabs(term) * 0x1p-7;
            break;
        case PLLM_COMPUTE_INTEGER: {
            float largest = 0;
            for (uint32_t j = i / 32 * 32; j < i / 32 * 32 + 32; j++)
                largest = fmaxf(largest, fabsf(x[j]));
            error += fabs((double)values[i]) * largest * 0.501 / 16319; /* 15 bits */
            /* Q4_1 sums d * q * x and m * x apart, which may cancel. */
            error += (fabs(term) + 0.15 * fabsf(x[i])) * 4e-7;
            break;
        }
        default:
            error += fabs(term) * 1e-6;
            break;
        }
    }
    *error_out = error + 1e-30;
    return sum;
}

static const pllm_kernels *version(size_t index)
{
    return pllm_kernels_by_name(version_names[index]);
}

static void versions_are_told(void **state)
{
    (void)state;
    for (size_t v = 0; v < 3; v++)
        printf("version %s: %s\n", version_names[v], version(v) ? "tested" : "not on this CPU");
    assert_non_null(version(0));
    assert_null(pllm_kernels_by_name("mmx"));
    assert_non_null(pllm_kernels_best());
    for (size_t v = 0; v < 3; v++) /* the best is the last that runs */
        if (version(v) && (v == 2 || !version(v + 1))) break;
    assert_ptr_equal(pllm_kernels_best(), version(2)   ? version(2)
                                          : version(1) ? version(1)
                                                       : version(0));
}

static void check_refuses_with_a_sentence(void **state)
{
    (void)state;
    assert_int_equal(pllm_linear_check(PLLM_INT8, 16, 32, PLLM_COMPUTE_AUTO), PLLM_EUNSUPPORTED);
    assert_non_null(strstr(pllm_last_error()->text, "int8"));
    assert_int_equal(pllm_linear_check(PLLM_FP8_E4M3, 16, 32, PLLM_COMPUTE_AUTO),
                     PLLM_EUNSUPPORTED);
    assert_int_equal(pllm_linear_check(PLLM_Q4_1, 16, 32, PLLM_COMPUTE_BF16), PLLM_EUNSUPPORTED);
    assert_int_equal(pllm_linear_check(PLLM_F32, 16, 32, PLLM_COMPUTE_INTEGER), PLLM_EUNSUPPORTED);
    assert_int_equal(pllm_linear_check(PLLM_Q4_1, 16, 48, PLLM_COMPUTE_AUTO), PLLM_EINVAL);
    assert_int_equal(pllm_linear_check(PLLM_F32, 0, 48, PLLM_COMPUTE_AUTO), PLLM_EINVAL);
    assert_int_equal(pllm_linear_check(PLLM_F32, 16, 0, PLLM_COMPUTE_AUTO), PLLM_EINVAL);
    assert_int_equal(pllm_linear_check(PLLM_F32, 16, UINT32_MAX, PLLM_COMPUTE_AUTO), PLLM_EINVAL);
    assert_int_equal(pllm_linear_check(PLLM_F32, UINT32_MAX, 16, PLLM_COMPUTE_AUTO), PLLM_EINVAL);
    assert_int_equal(pllm_linear_check(PLLM_F32, 16, 16, (pllm_compute)9), PLLM_EINVAL);
    assert_int_equal(pllm_linear_check(PLLM_F32, 17, 33, PLLM_COMPUTE_AUTO), PLLM_OK);
}

/* Goal: the packed matrix is the file's matrix and no larger than it needs to be. */
static void packed_rows_come_back(void **state)
{
    (void)state;
    for (int i = 0; i < KIND_COUNT; i++) {
        uint32_t k = 96, n = 37;
        matrix w;
        matrix_open(&w, version(0), kinds[i].dtype, n, k, kinds[i].compute, 7);
        float out[97];
        for (uint32_t row = 0; row < n; row++) {
            out[k] = 4711.0f;
            version(0)->unpack_row(out, &w.linear, row);
            assert_true(out[k] == 4711.0f);
            for (uint32_t j = 0; j < k; j++) {
                float want = w.values[(uint64_t)row * k + j];
                if (w.linear.compute == PLLM_COMPUTE_BF16)
                    want = pllm_bf16_to_f32(pllm_f32_to_bf16(want));
                assert_true(out[j] == want);
            }
        }
        matrix_close(&w);
    }
    /* 576 x 576 of Q4_1: 20 bytes a block, as in the file. */
    assert_int_equal(pllm_linear_packed_bytes(PLLM_Q4_1, 576, 576, PLLM_COMPUTE_AUTO),
                     576 * 576 / 32 * 20);
    assert_int_equal(pllm_linear_packed_bytes(PLLM_Q8_0, 576, 576, PLLM_COMPUTE_AUTO),
                     576 * 576 / 32 * 34);
}

static void check_against_exact(size_t v, int kind, uint32_t n, uint32_t k, uint32_t m)
{
    const pllm_kernels *kernels = version(v);
    matrix w;
    input in, plain;
    matrix_open(&w, kernels, kinds[kind].dtype, n, k, kinds[kind].compute, n * 31 + k);
    input_open(&in, kernels, m, k, k + m);
    input_open(&plain, version(0), m, k, k + m);
    uint64_t stride = n + 5;
    float *out = pllm_alloc(NULL, m * stride * sizeof *out);
    float *want = pllm_alloc(NULL, m * stride * sizeof *want);
    for (uint64_t i = 0; i < m * stride; i++) out[i] = want[i] = 4711.0f;
    kernels->product(out, stride, &in.activations, 0, m, &w.linear, 0, n);
    version(0)->product(want, stride, &plain.activations, 0, m, &w.linear, 0, n);
    for (uint32_t row = 0; row < m; row++) {
        for (uint32_t j = 0; j < n; j++) {
            double error, sum = exact(&w, j, in.x + (uint64_t)row * k, &error);
            if (!(fabs(out[row * stride + j] - sum) <= error))
                fail_msg("%s %s %s n %u k %u: out[%u][%u] = %g, exactly %g +- %g", kernels->name,
                         pllm_dtype_name(w.dtype), pllm_compute_name(w.linear.compute), n, k, row,
                         j, out[row * stride + j], sum, error);
        }
    }
    if (w.linear.compute != PLLM_COMPUTE_BF16)
        assert_memory_equal(out, want, m * stride * sizeof *out); /* gaps too: left alone */
    for (uint32_t row = 0; row < m; row++)
        for (uint64_t j = n; j < stride; j++) assert_true(out[row * stride + j] == 4711.0f);
    pllm_free(NULL, out);
    pllm_free(NULL, want);
    input_close(&in);
    input_close(&plain);
    matrix_close(&w);
}

static void products_are_right_and_equal_the_reference(void **state)
{
    (void)state;
    for (size_t v = 0; v < 3; v++) {
        if (!version(v)) continue;
        for (int i = 0; i < KIND_COUNT; i++) {
            check_against_exact(v, i, 1, 32, 1);
            check_against_exact(v, i, 16, 64, 2);
            check_against_exact(v, i, 37, 96, 7);
            check_against_exact(v, i, 33, 576, 9);
            check_against_exact(v, i, 49, 1536, 3);
            check_against_exact(v, i, 47, 1056, 14);
            if (pllm_dtype_block_elements(kinds[i].dtype) > 1) continue;
            check_against_exact(v, i, 5, 1, 1);
            check_against_exact(v, i, 18, 33, 6);
        }
    }
}

/* Goal: rule 1. Method: each row alone is the truth; then rows together in every count, from
 * every offset, with n split in uneven pieces. */
static void bits_do_not_depend_on_neighbours(void **state)
{
    (void)state;
    static const uint32_t counts[] = {2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16, 17, 64, 256};
    enum { N = 72, K = 576, M = 256 };
    float *alone = pllm_alloc(NULL, M * N * sizeof *alone);
    float *together = pllm_alloc(NULL, M * N * sizeof *together);
    for (size_t v = 0; v < 3; v++) {
        if (!version(v)) continue;
        const pllm_kernels *kernels = version(v);
        uint32_t m = v == 0 ? 3 : M;
        for (int i = 0; i < KIND_COUNT; i++) {
            matrix w;
            input in;
            matrix_open(&w, kernels, kinds[i].dtype, N, K, kinds[i].compute, 5);
            input_open(&in, kernels, m, K, 6);
            for (uint32_t row = 0; row < m; row++)
                kernels->product(alone + row * N, N, &in.activations, row, 1, &w.linear, 0, N);
            for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
                if (counts[c] > m) break;
                uint32_t first = (m - counts[c]) / 2;
                memset(together, 0, M * N * sizeof *together);
                kernels->product(together, N, &in.activations, first, counts[c], &w.linear, 0, 16);
                kernels->product(together, N, &in.activations, first, counts[c], &w.linear, 16, 48);
                kernels->product(together, N, &in.activations, first, counts[c], &w.linear, 64, 8);
                assert_memory_equal(together, alone + first * N, counts[c] * N * sizeof *together);
            }
            input_close(&in);
            matrix_close(&w);
        }
    }
    pllm_free(NULL, alone);
    pllm_free(NULL, together);
}

/* Goal: hard inputs are right, or visibly bad, never quietly wrong. */
static void hard_values(void **state)
{
    (void)state;
    enum { N = 16, K = 96 };
    for (size_t v = 0; v < 3; v++) {
        if (!version(v)) continue;
        const pllm_kernels *kernels = version(v);
        for (int i = 0; i < KIND_COUNT; i++) {
            matrix w;
            input in;
            float x[K], out[N], first[N];
            matrix_open(&w, kernels, kinds[i].dtype, N, K, kinds[i].compute, 11);
            input_open(&in, kernels, 1, K, 12);
            uint32_t form = pllm_linear_form(&w.linear);
            const float scales[] = {0.0f, 1e30f, 1e-28f, 1e-36f};
            for (int s = 0; s < 4; s++) {
                for (int j = 0; j < K; j++) x[j] = j < 32 ? 0.0f : in.x[j] * scales[s];
                kernels->prepare(&in.activations, 0, x, form);
                kernels->product(out, N, &in.activations, 0, 1, &w.linear, 0, N);
                for (uint32_t j = 0; j < N; j++) {
                    double error, sum = exact(&w, j, x, &error);
                    assert_true(fabs(out[j] - sum) <= error + (s == 3 ? 1e-29 : 0));
                }
            }
            const float bad[] = {NAN, INFINITY, -INFINITY};
            for (int b = 0; b < 3; b++) {
                memcpy(x, in.x, sizeof x);
                x[40] = bad[b];
                kernels->prepare(&in.activations, 0, x, form);
                kernels->product(first, N, &in.activations, 0, 1, &w.linear, 0, N);
                for (int j = 0; j < N; j++)
                    assert_true(!isfinite(first[j]) || w.values[j * K + 40] == 0);
            }
            /* One element holds the group's scale, the others are near it and near nothing. */
            for (int j = 0; j < K; j++)
                x[j] = j % 3 == 0 ? 7.0f : j % 3 == 1 ? -7.0f : 7.0f * 0x1p-15f;
            kernels->prepare(&in.activations, 0, x, form);
            kernels->product(out, N, &in.activations, 0, 1, &w.linear, 0, N);
            for (uint32_t j = 0; j < N; j++) {
                double error, sum = exact(&w, j, x, &error);
                assert_true(fabs(out[j] - sum) <= error);
            }
            input_close(&in);
            matrix_close(&w);
        }
    }
}

/* Goal: no intermediate overflows or saturates. Method: all weights and inputs at their ends. */
static void extreme_weights(void **state)
{
    (void)state;
    enum { N = 16, K = 64 };
    static const uint8_t bytes[] = {0x00, 0xff, 0x80, 0x7f, 0x81};
    for (size_t v = 0; v < 3; v++) {
        if (!version(v)) continue;
        for (int kind = 6; kind < 9; kind++) {
            pllm_dtype dtype = kinds[kind].dtype;
            for (size_t b = 0; b < sizeof bytes * 4; b++) {
                matrix w;
                input in;
                float x[K], out[N];
                matrix_open(&w, version(v), dtype, N, K, PLLM_COMPUTE_AUTO, 3);
                input_open(&in, version(v), 1, K, 4);
                uint32_t block = pllm_dtype_block_bytes(dtype), head = dtype == PLLM_Q4_1 ? 4 : 2;
                for (uint32_t row = 0; row < N; row++) {
                    for (uint32_t g = 0; g < K / 32; g++) {
                        uint8_t *at = w.rows + row * w.row_bytes + g * block;
                        put_half(at, 0x3c00); /* 1.0 */
                        if (head == 4) put_half(at + 2, 0xc000);
                        memset(at + head, bytes[b / 4], block - head);
                        for (uint32_t i = 0; i < 32; i++) {
                            uint8_t byte = bytes[b / 4];
                            int nibble = i < 16 ? byte & 15 : byte >> 4;
                            w.values[row * K + g * 32 + i] =
                                dtype == PLLM_Q8_0   ? (float)(int8_t)byte
                                : dtype == PLLM_Q4_0 ? (float)(nibble - 8)
                                                     : (float)nibble - 2.0f;
                        }
                    }
                }
                version(v)->pack(w.panels, dtype, N, K, PLLM_COMPUTE_AUTO, w.rows, w.row_bytes, 0,
                                 1);
                for (int j = 0; j < K; j++)
                    x[j] = b % 4 == 0   ? 1.0f
                           : b % 4 == 1 ? -1.0f
                           : b % 4 == 2 ? (j % 2 ? 1.0f : -1.0f)
                           : j == 0     ? 1.0f
                                        : 127.0f / 16319.0f;
                version(v)->prepare(&in.activations, 0, x, PLLM_FORM_INTEGER);
                version(v)->product(out, N, &in.activations, 0, 1, &w.linear, 0, N);
                for (uint32_t j = 0; j < N; j++) {
                    double error, sum = exact(&w, j, x, &error);
                    assert_true(fabs(out[j] - sum) <= error * 1.01 + 1e-6);
                }
                input_close(&in);
                matrix_close(&w);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(versions_are_told),
        cmocka_unit_test(check_refuses_with_a_sentence),
        cmocka_unit_test(packed_rows_come_back),
        cmocka_unit_test(products_are_right_and_equal_the_reference),
        cmocka_unit_test(bits_do_not_depend_on_neighbours),
        cmocka_unit_test(hard_values),
        cmocka_unit_test(extreme_weights),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
