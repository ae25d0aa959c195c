/* The row kernels and the gather kernel against the CPU's reference or double arithmetic: every
 * format, odd sizes, outputs poisoned before (so that what is not written, or written beside its
 * place, is seen), and the same bits for a row alone and among others.
 *
 * Brief form, at most 150 launches, reaches: pllm_embed pllm_norm_* pllm_swiglu_* pllm_rotary_*
 * pllm_argmax pllm_random_* pllm_tensor_* pllm_gather. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>
#include <cmocka.h>
#include "brief.h"
#include "device/cuda.h"
#include "kernels/cuda/linear_format.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/transfer.h"
#include "kernels/kernels.h"

#define POISON 0xa7
enum { ARENA = 1 << 29, STAGE = 1 << 28 };

static struct rig {
    pllm_device *device;
    const pllm_device_ops *ops;
    pllm_stream *stream;
    pllm_cuda_rows *o;
    pllm_cuda_transfer *transfer;
    pllm_chunk *chunk;
    pllm_va base, used; /* a bump allocator, emptied by each test */
    uint8_t *stage;     /* pinned */
    uint64_t state;
    int small; /* brief */
} rig;

#define MUST(...)                                                                                \
    do {                                                                                         \
        if ((__VA_ARGS__) != PLLM_OK) fail_msg("%s: %s", #__VA_ARGS__, pllm_last_error()->text); \
    } while (0)

static uint32_t random_u32(void)
{
    rig.state = rig.state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rig.state >> 32);
}

static float random_float(void) /* -2 .. 2 */
{
    return (float)(int32_t)random_u32() * 0x1p-30f;
}

static void reset(uint64_t seed)
{
    rig.used = 0;
    rig.state = seed;
}

/* Device memory at 256 bytes, plus `shift` to be misaligned. */
static pllm_va take(uint64_t bytes)
{
    pllm_va at = rig.base + rig.used;
    rig.used += (bytes + 511) / 256 * 256;
    if (rig.used > ARENA) fail_msg("the test's arena is too small");
    return at;
}

static void sync_stream(void)
{
    MUST(rig.ops->stream_sync(rig.device, rig.stream));
}

static void upload(pllm_va to, const void *data, uint64_t bytes)
{
    assert_true(bytes <= STAGE);
    memcpy(rig.stage, data, bytes);
    pllm_copy copy = {to, (pllm_va)(uintptr_t)rig.stage, bytes};
    MUST(rig.ops->copy(rig.device, rig.stream, PLLM_COPY_IN, &copy));
    sync_stream();
}

static pllm_va take_data(const void *data, uint64_t bytes)
{
    pllm_va at = take(bytes);
    upload(at, data, bytes);
    return at;
}

static pllm_va take_poisoned(uint64_t bytes)
{
    pllm_va at = take(bytes);
    MUST(rig.ops->fill(rig.device, rig.stream, at, bytes, POISON));
    sync_stream();
    return at;
}

/* In the pinned stage: valid until the next call. */
static void *download(pllm_va from, uint64_t bytes)
{
    assert_true(bytes <= STAGE);
    pllm_copy copy = {(pllm_va)(uintptr_t)rig.stage, from, bytes};
    MUST(rig.ops->copy(rig.device, rig.stream, PLLM_COPY_OUT, &copy));
    sync_stream();
    return rig.stage;
}

static void *download_copy(pllm_va from, uint64_t bytes)
{
    void *copy = malloc(bytes);
    assert_non_null(copy);
    memcpy(copy, download(from, bytes), bytes);
    return copy;
}

static uint32_t size_of(pllm_dtype dtype)
{
    return pllm_dtype_block_bytes(dtype);
}

static float load(const void *base, uint64_t index, pllm_dtype dtype)
{
    if (dtype == PLLM_F32) return ((const float *)base)[index];
    uint16_t half = ((const uint16_t *)base)[index];
    return dtype == PLLM_F16 ? pllm_f16_to_f32(half) : pllm_bf16_to_f32(half);
}

static void store(void *base, uint64_t index, pllm_dtype dtype, float value)
{
    if (dtype == PLLM_F32)
        ((float *)base)[index] = value;
    else
        ((uint16_t *)base)[index] =
            dtype == PLLM_F16 ? pllm_f32_to_f16(value) : pllm_f32_to_bf16(value);
}

static int is_poison(const void *base, uint64_t index, pllm_dtype dtype)
{
    const uint8_t *at = (const uint8_t *)base + index * size_of(dtype);
    for (uint32_t i = 0; i < size_of(dtype); i++)
        if (at[i] != POISON) return 0;
    return 1;
}

/* Within `relative` of f32, or a rounding of the half-width format more. */
static void check_near(double got, double want, double relative, double absolute, pllm_dtype dtype,
                       const char *what, uint64_t index)
{
    double rounding = dtype == PLLM_F16 ? 0x1p-11 : dtype == PLLM_BF16 ? 0x1p-8 : 0;
    double room = fabs(want) * (relative + rounding) + absolute + (dtype == PLLM_F16 ? 0x1p-24 : 0);
    if ((isnan(got) || fabs(got - want) > room) && !launches_only())
        fail_msg("%s: element %llu is %.9g, not %.9g", what, (unsigned long long)index, got, want);
}

static const pllm_dtype plain[3] = {PLLM_F32, PLLM_F16, PLLM_BF16};

static void *random_values(uint64_t count, pllm_dtype dtype)
{
    void *data = malloc(count * size_of(dtype));
    assert_non_null(data);
    for (uint64_t i = 0; i < count; i++) store(data, i, dtype, random_float());
    return data;
}

/* ---- embed ---- */

/* Element i of a packed row, by linear_format.h's words. */
static float packed_element(const uint8_t *row, pllm_dtype dtype, uint32_t k, uint32_t i)
{
    if (dtype <= PLLM_BF16) return load(row, i, dtype);
    const uint16_t *scales = (const uint16_t *)row;
    uint32_t high, at = pllm_packed_quant((int)dtype, i, &high);
    uint8_t byte = row[pllm_packed_scale_bytes((int)dtype, k) + at];
    if (dtype == PLLM_Q8_0) return pllm_f16_to_f32(scales[i / 32]) * (float)(int8_t)byte;
    int nibble = high ? byte >> 4 : byte & 15;
    if (dtype == PLLM_Q4_0)
        return pllm_f16_to_f32(scales[i / 32]) * (float)(nibble >= 8 ? nibble - 16 : nibble);
    return pllm_f16_to_f32(scales[i / 32 * 2]) * (float)nibble +
           pllm_f16_to_f32(scales[i / 32 * 2 + 1]);
}

static void embed_case(pllm_dtype dtype, uint32_t k)
{
    enum { N = 37, ROWS = 9, GAP = 3 };
    reset(1 + k);
    uint64_t row_bytes = pllm_packed_row_bytes((int)dtype, k), stride = k + GAP;
    uint8_t *table = malloc(N * row_bytes);
    assert_non_null(table);
    for (uint64_t i = 0; i < N * row_bytes; i++) table[i] = (uint8_t)random_u32();
    uint32_t scales = pllm_packed_scale_bytes((int)dtype, k) / 2;
    for (uint32_t r = 0; r < N; r++) {
        for (uint32_t i = 0; i < scales; i++)
            ((uint16_t *)(table + r * row_bytes))[i] = pllm_f32_to_f16(random_float());
        if (dtype <= PLLM_BF16)
            for (uint32_t i = 0; i < k; i++) store(table + r * row_bytes, i, dtype, random_float());
    }
    uint32_t ids[ROWS] = {36, 0, 5, 5, 37, 1, 0xffffffff, 36, 12};
    pllm_cuda_matrix matrix = {dtype, N, k, take_data(table, N * row_bytes), row_bytes};
    pllm_va out = take_poisoned(ROWS * stride * 4);
    MUST(pllm_cuda_embed(rig.o, rig.stream, &matrix, take_data(ids, sizeof ids), ROWS, out, stride,
                         0));
    const float *got = download(out, ROWS * stride * 4);
    for (uint32_t r = 0; r < ROWS && !launches_only(); r++) {
        for (uint32_t i = 0; i < k; i++) {
            float one = got[r * stride + i];
            if (ids[r] >= N) {
                assert_true(isnan(one));
                continue;
            }
            float want = packed_element(table + ids[r] * row_bytes, dtype, k, i);
            if (memcmp(&one, &want, 4) != 0)
                fail_msg("%s, k %u: row %u element %u is %g, not %g", pllm_dtype_name(dtype), k, r,
                         i, (double)one, (double)want);
        }
        for (uint32_t i = k; i < stride; i++) assert_true(is_poison(got, r * stride + i, PLLM_F32));
    }
    free(table);
}

static void embed_reads_rows_of_every_format(void **state)
{
    (void)state;
    static const uint32_t sizes[] = {32, 96, 576, 4096, 8192};
    static const uint32_t odd[] = {1, 7, 8, 100, 4097};
    for (pllm_dtype dtype = PLLM_F32; dtype <= PLLM_Q4_1; dtype++)
        for (size_t i = 0; i < sizeof sizes / 4; i += 1 + 2 * rig.small)
            embed_case(dtype, sizes[i]);
    for (int d = 0; d < 3; d++)
        for (size_t i = 0; i < sizeof odd / 4; i += 1 + 2 * rig.small) embed_case(plain[d], odd[i]);
}

/* ---- norm ---- */

static void norm_case(uint32_t n, pllm_dtype dtype)
{
    enum { ROWS = 5, GAP = 8 };
    reset(n);
    uint64_t stride = (n + 7) / 8 * 8 + GAP;
    float *x = random_values(ROWS * stride + 1, PLLM_F32);
    float *weight = random_values(n, PLLM_F32);
    uint32_t index[4] = {4, 0, 0, 3};
    pllm_va in = take_data(x, ROWS * stride * 4), w = take_data(weight, n * 4ull);
    pllm_va rows = take_data(index, sizeof index), out = take_poisoned(4 * stride * size_of(dtype));
    MUST(pllm_cuda_rms_norm(rig.o, rig.stream, in, stride, w, 1e-5f, rows, 4, n, out, dtype, stride,
                            0));
    void *got = download_copy(out, 4 * stride * size_of(dtype));
    for (uint32_t r = 0; r < 4; r++) {
        const float *row = x + index[r] * stride;
        double sum = 0;
        for (uint32_t i = 0; i < n; i++) sum += (double)row[i] * row[i];
        double scale = 1 / sqrt(sum / n + 1e-5);
        for (uint32_t i = 0; i < n; i++)
            check_near(load(got, r * stride + i, dtype), row[i] * scale * weight[i], 2e-6, 1e-12,
                       dtype, "norm", r * stride + i);
        for (uint64_t i = n; i < stride; i++) assert_true(is_poison(got, r * stride + i, dtype));
    }
    /* A row alone, without an index, and read from an odd address by the other kernel. */
    uint64_t row_bytes = n * (uint64_t)size_of(dtype);
    for (int odd = 0; odd < 2; odd++) {
        pllm_va from = in + 4 * stride * 4;
        if (odd) {
            from = take(stride * 4 + 4) + 4;
            upload(from, x + 4 * stride, n * 4ull);
        }
        pllm_va alone = take_poisoned(stride * size_of(dtype));
        MUST(pllm_cuda_rms_norm(rig.o, rig.stream, from, stride, w, 1e-5f, 0, 1, n, alone, dtype,
                                stride, 0));
        assert_memory_equal(download(alone, row_bytes), got, row_bytes);
    }
    free(got);
    free(x);
    free(weight);
}

static void norms_are_near_double_and_rows_are_independent(void **state)
{
    (void)state;
    static const uint32_t sizes[] = {1,    3,    64,   100,   576,   2048,  4096,
                                     5120, 8192, 8196, 11008, 16384, 16388, 28672};
    static const uint32_t few[] = {3, 2048, 8192, 11008, 16388}; /* each kernel's */
    for (size_t i = 0; i < sizeof few / 4 && rig.small; i++) norm_case(few[i], plain[i % 3]);
    for (size_t i = 0; i < sizeof sizes / 4 && !rig.small; i++)
        for (int d = 0; d < 3; d++) norm_case(sizes[i], plain[d]);
}

/* ---- swiglu ---- */

static void swiglu_case(uint32_t n, pllm_dtype in, pllm_dtype out_dtype)
{
    enum { GAP = 8 };
    const uint32_t ROWS = n >= 8192 ? 17 : 3; /* few elements take another kernel */
    reset(n);
    uint64_t stride = 2 * (uint64_t)n + GAP + n % 2, to_stride = n + GAP;
    void *x = random_values(ROWS * stride, in);
    static const float special[] = {0, -0.0f, 100, -100, 88.5f, -88.5f, 1e30f, -1e30f, 1e-30f};
    for (uint32_t i = 0; i < 9 && i < n; i++) store(x, i, in, special[i] * 1.0f);
    pllm_va at = take_data(x, ROWS * stride * size_of(in));
    pllm_va out = take_poisoned(ROWS * to_stride * size_of(out_dtype));
    MUST(
        pllm_cuda_swiglu(rig.o, rig.stream, at, in, stride, ROWS, n, out, out_dtype, to_stride, 0));
    const void *got = download(out, ROWS * to_stride * size_of(out_dtype));
    float *gate = malloc(n * 4ull), *up = malloc(n * 4ull), *want = malloc(n * 4ull);
    assert_true(gate && up && want);
    const pllm_kernels *kernels = pllm_kernels_by_name("reference");
    for (uint32_t r = 0; r < ROWS && !launches_only(); r++) {
        for (uint32_t i = 0; i < n; i++) {
            gate[i] = load(x, r * stride + i, in);
            up[i] = load(x, r * stride + n + i, in);
        }
        kernels->swiglu(want, gate, up, n);
        for (uint32_t i = 0; i < n; i++) {
            float one = load(got, r * to_stride + i, out_dtype);
            if (isinf(want[i]) || (out_dtype == PLLM_F16 && fabsf(want[i]) > 65000)) continue;
            if (isnan(want[i])) {
                assert_true(isnan(one));
                continue;
            }
            if (out_dtype == PLLM_F32)
                assert_memory_equal(&one, &want[i], 4);
            else
                check_near(one, want[i], 4e-6, 1e-30, out_dtype, "swiglu", r * to_stride + i);
        }
        for (uint64_t i = n; i < to_stride; i++)
            assert_true(is_poison(got, r * to_stride + i, out_dtype));
    }
    free(gate);
    free(up);
    free(want);
    free(x);
}

static void swiglu_has_the_cpu_s_bits(void **state)
{
    (void)state;
    static const uint32_t sizes[] = {1, 9, 13, 1536, 2049, 11008};
    for (size_t i = 0; i < sizeof sizes / 4; i++)
        for (int a = 0; a < 3; a++)
            for (int b = 0; b < 3; b++) {
                if (rig.small && (i % 3 != 2 || (a + 1) % 3 != b)) continue; /* 13 and 11008 */
                swiglu_case(sizes[i], plain[a], plain[b]);
            }
}

/* ---- rotary ---- */

typedef struct rotary_case {
    uint32_t heads, kv_heads, head_dim, dims, interleaved;
    float base;
} rotary_case;

static const uint32_t positions_tried[] = {
    0, 1, 2, 31, 32, 33, 4095, 8191, 65537, 99999, 131071, 131040, 16383, 100001, 1000003, 77777};
enum { TRIED = sizeof positions_tried / 4, BLOCKS = 40 };

/* A row of q, k, v rotated in double: want has q heads, then k heads; v is as it was. */
static void rotate_double(const rotary_case *c, const float *frequency, uint32_t position,
                          const void *row, pllm_dtype dtype, double *want)
{
    uint32_t half = c->dims / 2;
    for (uint32_t h = 0; h < c->heads + c->kv_heads; h++) {
        for (uint32_t i = 0; i < c->head_dim; i++)
            want[h * c->head_dim + i] = load(row, h * c->head_dim + i, dtype);
        for (uint32_t i = 0; i < half; i++) {
            double angle = (double)position * (double)frequency[i];
            uint32_t at = c->interleaved ? 2 * i : i, other = c->interleaved ? 2 * i + 1 : i + half;
            double *x = want + h * c->head_dim, a = x[at], b = x[other];
            x[at] = a * cos(angle) - b * sin(angle);
            x[other] = a * sin(angle) + b * cos(angle);
        }
    }
}

static void check_blocks(const rotary_case *c, const uint8_t *blocks, uint64_t block_bytes,
                         pllm_dtype dtype, const double *want, const void *row,
                         pllm_dtype row_dtype, uint32_t block, uint32_t position)
{
    for (uint32_t h = 0; h < c->kv_heads; h++)
        for (uint32_t i = 0; i < c->head_dim; i++) {
            uint64_t slice = (uint64_t)h * 64 * c->head_dim, token = position % 32;
            const uint8_t *at = blocks + block * block_bytes;
            check_near(load(at, slice + token * c->head_dim + i, dtype),
                       want[(c->heads + h) * c->head_dim + i], 0, 4e-6, dtype, "k", i);
            float v = load(row, (c->heads + c->kv_heads + h) * c->head_dim + i, row_dtype), stored;
            store(&stored, 0, dtype, v);
            uint64_t index = slice + (32 + token) * c->head_dim + i;
            if (!launches_only())
                assert_memory_equal(at + index * size_of(dtype), &stored, size_of(dtype));
        }
}

static void rotary_try(const rotary_case *c, pllm_dtype in, pllm_dtype q_dtype, pllm_dtype kv_dtype)
{
    enum { GAP = 8, MULTIPLE = 2, ADD = 1 };
    reset(c->head_dim * 31 + c->dims);
    uint64_t width = (uint64_t)(c->heads + 2 * c->kv_heads) * c->head_dim, stride = width + GAP;
    uint64_t q_width = (uint64_t)c->heads * c->head_dim, q_stride = q_width + GAP;
    uint64_t block_bytes =
        ((uint64_t)64 * c->kv_heads * c->head_dim * size_of(kv_dtype) + 4095) / 4096 * 4096;
    float frequency[128];
    for (uint32_t i = 0; i < c->dims / 2; i++)
        frequency[i] = (float)pow(c->base, -2.0 * i / c->dims);
    void *x = random_values(TRIED * stride, in);
    uint32_t row_block[TRIED]; /* each its own, in another order; one of none */
    for (uint32_t r = 0; r < TRIED; r++) row_block[r] = r * 7 % 19;
    row_block[5] = PLLM_CUDA_NO_BLOCK;
    pllm_cuda_rotary a = {
        .qkv = take_data(x, TRIED * stride * size_of(in)),
        .qkv_dtype = in,
        .qkv_stride = stride,
        .positions = take_data(positions_tried, sizeof positions_tried),
        .inverse_frequency = take_data(frequency, sizeof frequency),
        .rows = TRIED,
        .heads = c->heads,
        .kv_heads = c->kv_heads,
        .head_dim = c->head_dim,
        .rotary_dims = c->dims,
        .interleaved = c->interleaved,
        .q_out = take_poisoned(TRIED * q_stride * size_of(q_dtype)),
        .q_dtype = q_dtype,
        .q_stride = q_stride,
        .blocks = take_poisoned(BLOCKS * block_bytes),
        .block_bytes = block_bytes,
        .block_dtype = kv_dtype,
        .row_block = take_data(row_block, sizeof row_block),
        .block_multiple = MULTIPLE,
        .block_add = ADD,
    };
    MUST(pllm_cuda_rotary_append(rig.o, rig.stream, &a));
    void *q = download_copy(a.q_out, TRIED * q_stride * size_of(q_dtype));
    uint8_t *blocks = download_copy(a.blocks, BLOCKS * block_bytes);
    double *want = malloc((q_width + width) * sizeof *want);
    assert_non_null(want);
    uint64_t written = 0;
    for (uint32_t r = 0; r < TRIED; r++) {
        const uint8_t *row = (const uint8_t *)x + r * stride * size_of(in);
        rotate_double(c, frequency, positions_tried[r], row, in, want);
        for (uint64_t i = 0; i < q_width; i++) /* |a| + |b| <= 4, each angle to 1e-6 */
            check_near(load(q, r * q_stride + i, q_dtype), want[i], 0, 4e-6, q_dtype, "q", i);
        for (uint64_t i = q_width; i < q_stride; i++)
            assert_true(is_poison(q, r * q_stride + i, q_dtype));
        if (row_block[r] == PLLM_CUDA_NO_BLOCK) continue;
        written += 2 * (uint64_t)c->kv_heads * c->head_dim * size_of(kv_dtype);
        check_blocks(c, blocks, block_bytes, kv_dtype, want, row, in, row_block[r] * MULTIPLE + ADD,
                     positions_tried[r]);
    }
    /* Nothing else was written: as many bytes stayed poison as should (values may look like it). */
    uint64_t poison = 0, all = BLOCKS * block_bytes;
    for (uint64_t i = 0; i < all; i++) poison += blocks[i] == POISON;
    if (!launches_only())
        assert_true(poison >= all - written && poison <= all - written + written / 32 + 64);
    free(want);
    free(blocks);
    free(q);
    free(x);
}

static void rotary_is_exact_and_goes_where_it_should(void **state)
{
    (void)state;
    static const rotary_case cases[] = {
        {32, 32, 128, 128, 0, 10000}, {32, 8, 128, 128, 0, 500000}, {9, 3, 64, 64, 0, 100000},
        {4, 2, 24, 24, 0, 10000},     {3, 1, 80, 32, 0, 10000},     {8, 8, 128, 64, 1, 10000},
        {5, 1, 48, 20, 1, 10000},     {2, 2, 256, 256, 0, 10000},   {3, 3, 40, 6, 0, 10000},
        {2, 1, 96, 96, 1, 10000},     {64, 8, 128, 128, 0, 500000}, {2, 1, 16, 0, 0, 10000},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i += 1 + rig.small) {
        rotary_try(&cases[i], PLLM_F32, PLLM_F32, PLLM_F32);
        if (rig.small) continue;
        rotary_try(&cases[i], PLLM_F32, PLLM_F32, PLLM_F16);
        rotary_try(&cases[i], PLLM_BF16, PLLM_BF16, PLLM_BF16);
        rotary_try(&cases[i], PLLM_F16, PLLM_BF16, PLLM_F32);
    }
}

/* The angle itself: with q = (1, 0) the result is its cosine and sine. */
static void angles_are_within_a_millionth(void **state)
{
    (void)state;
    enum { DIMS = 128 };
    const uint32_t ROWS = rig.small ? 64 : 4096;
    reset(3);
    float frequency[DIMS / 2], *x = calloc(ROWS, DIMS * 4);
    uint32_t *positions = malloc(ROWS * 4), *none = malloc(ROWS * 4);
    assert_true(x && positions && none);
    for (int i = 0; i < DIMS / 2; i++) frequency[i] = (float)pow(10000, -2.0 * i / DIMS);
    for (uint32_t r = 0; r < ROWS; r++) {
        positions[r] = r < 2048 ? 131071 - r : random_u32() % 131072;
        none[r] = PLLM_CUDA_NO_BLOCK;
        for (int i = 0; i < DIMS / 2; i++) x[r * DIMS + i] = 1;
    }
    pllm_cuda_rotary a = {
        .qkv = take_data(x, ROWS * DIMS * 4ull),
        .qkv_stride = DIMS,
        .positions = take_data(positions, ROWS * 4),
        .inverse_frequency = take_data(frequency, sizeof frequency),
        .rows = ROWS,
        .heads = 1,
        .head_dim = DIMS,
        .rotary_dims = DIMS,
        .q_stride = DIMS,
        .block_bytes = 4096,
        .row_block = take_data(none, ROWS * 4),
    };
    a.q_out = a.qkv; /* in place */
    MUST(pllm_cuda_rotary_append(rig.o, rig.stream, &a));
    const float *got = download(a.q_out, ROWS * DIMS * 4ull);
    double worst = 0;
    for (uint32_t r = 0; r < ROWS; r++)
        for (int i = 0; i < DIMS / 2; i++) {
            double angle = (double)positions[r] * (double)frequency[i];
            worst = fmax(worst, fabs((double)got[r * DIMS + i] - cos(angle)));
            worst = fmax(worst, fabs((double)got[r * DIMS + 64 + i] - sin(angle)));
        }
    print_message("largest error of a cosine or sine: %.2g\n", worst);
    if (!launches_only()) assert_true(worst < 1.5e-7);
    free(x);
    free(positions);
    free(none);
}

/* 1 row takes another grid than 3,000 of them. */
static void rotated_rows_are_independent(void **state)
{
    (void)state;
    enum { ROWS = 3000, HEADS = 8, KV = 2, D = 64, WIDTH = (HEADS + 2 * KV) * D };
    reset(4); /* brief too: so many rows only take the other grid */
    float *x = random_values(ROWS * (uint64_t)WIDTH, PLLM_F32), frequency[D / 2];
    uint32_t *positions = malloc(ROWS * 4), *row_block = malloc(ROWS * 4);
    assert_true(positions && row_block);
    for (int i = 0; i < D / 2; i++) frequency[i] = (float)pow(10000, -2.0 * i / D);
    for (uint32_t r = 0; r < ROWS; r++) positions[r] = 5000 + r, row_block[r] = r / 32;
    uint64_t block_bytes = 64 * KV * D * 2;
    pllm_cuda_rotary a = {
        .qkv = take_data(x, ROWS * WIDTH * 4ull),
        .qkv_stride = WIDTH,
        .positions = take_data(positions, ROWS * 4),
        .inverse_frequency = take_data(frequency, sizeof frequency),
        .rows = ROWS,
        .heads = HEADS,
        .kv_heads = KV,
        .head_dim = D,
        .rotary_dims = D,
        .q_out = take_poisoned(ROWS * HEADS * D * 2ull),
        .q_dtype = PLLM_BF16,
        .q_stride = HEADS * D,
        .blocks = take_poisoned(100 * block_bytes),
        .block_bytes = block_bytes,
        .block_dtype = PLLM_BF16,
        .row_block = take_data(row_block, ROWS * 4),
        .block_multiple = 1,
    };
    MUST(pllm_cuda_rotary_append(rig.o, rig.stream, &a));
    uint8_t *q = download_copy(a.q_out, ROWS * HEADS * D * 2ull);
    uint8_t *blocks = download_copy(a.blocks, 100 * block_bytes);
    for (uint32_t r = 7; r < ROWS; r += rig.small ? ROWS : 501) {
        pllm_cuda_rotary one = a;
        one.rows = 1;
        one.qkv += r * WIDTH * 4ull;
        one.positions += r * 4;
        one.row_block += r * 4;
        one.q_out = take_poisoned(HEADS * D * 2);
        one.blocks = take_poisoned(100 * block_bytes);
        MUST(pllm_cuda_rotary_append(rig.o, rig.stream, &one));
        assert_memory_equal(download(one.q_out, HEADS * D * 2), q + r * HEADS * D * 2,
                            HEADS * D * 2);
        const uint8_t *alone = download(one.blocks, 100 * block_bytes);
        for (uint32_t kv = 0; kv < 2 * KV; kv++) { /* K and V rows of each head */
            uint64_t at = r / 32 * block_bytes + ((uint64_t)kv * 32 + positions[r] % 32) * D * 2;
            assert_memory_equal(alone + at, blocks + at, D * 2);
        }
    }
    free(q);
    free(blocks);
    free(x);
    free(positions);
    free(row_block);
}

/* ---- argmax ---- */

static void argmax_case(uint32_t n, uint32_t shift)
{
    enum { ROWS = 7 };
    reset(n);
    uint64_t stride = n + shift;
    float *x = random_values(ROWS * stride, PLLM_F32);
    uint32_t want[ROWS];
    for (uint32_t i = 0; i < n; i++) { /* row 1: all NaN; 2: all -inf; 3: zeros of both signs */
        x[stride + i] = NAN;
        x[2 * stride + i] = -INFINITY;
        x[3 * stride + i] = i % 3 == 1 ? 0.0f : -0.0f;
        if (i % 5 == 2) x[4 * stride + i] = NAN;
    }
    x[5 * stride + n - 1] = 3e38f;    /* the last */
    x[6 * stride + n / 2] = INFINITY; /* equals: the lower index */
    x[6 * stride + n - 1] = INFINITY;
    for (uint32_t r = 0; r < ROWS; r++) {
        float best = -INFINITY;
        int found = 0;
        want[r] = 0;
        for (uint32_t i = 0; i < n; i++) {
            float one = x[r * stride + i];
            if (isnan(one) || (found && !(one > best))) continue;
            best = one, want[r] = i, found = 1;
        }
    }
    pllm_va at = take(ROWS * stride * 4 + 64) + 4 * shift;
    upload(at, x, ROWS * stride * 4);
    pllm_va out = take_poisoned(ROWS * 4 + 4);
    MUST(pllm_cuda_argmax(rig.o, rig.stream, at, stride, ROWS, n, out, 0));
    const uint32_t *got = download(out, ROWS * 4 + 4);
    for (uint32_t r = 0; r < ROWS; r++)
        if (got[r] != want[r] && !launches_only())
            fail_msg("n %u, row %u: %u, not %u", n, r, got[r], want[r]);
    assert_true(is_poison(got, ROWS, PLLM_F32));
    free(x);
}

static void argmax_finds_the_first_of_the_largest(void **state)
{
    (void)state;
    static const uint32_t sizes[] = {1, 2, 5, 31, 1000, 4095, 32000, 49152, 128256};
    for (size_t i = 0; i < sizeof sizes / 4; i += 1 + 3 * rig.small)
        for (uint32_t shift = 0; shift < 4; shift += 3) argmax_case(sizes[i], shift);
}

/* ---- random ---- */

static void philox_host(uint64_t group, uint64_t seed, uint32_t out[4])
{
    uint32_t c[4] = {(uint32_t)group, (uint32_t)(group >> 32), 0, 0};
    uint32_t k[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    for (int round = 0; round < 10; round++) {
        uint64_t a = 0xd2511f53ull * c[0], b = 0xcd9e8d57ull * c[2];
        uint32_t next[4] = {(uint32_t)(b >> 32) ^ c[1] ^ k[0], (uint32_t)b,
                            (uint32_t)(a >> 32) ^ c[3] ^ k[1], (uint32_t)a};
        memcpy(c, next, sizeof c);
        k[0] += 0x9e3779b9u;
        k[1] += 0xbb67ae85u;
    }
    memcpy(out, c, sizeof c);
}

static double normal_host(uint64_t index, uint64_t seed)
{
    uint32_t bits[4];
    philox_host(index / 4, seed, bits);
    const uint32_t *pair = bits + index % 4 / 2 * 2;
    float uniform = ((float)pair[0] + 0.5f) * 0x1p-32f; /* rounded as the kernel rounds it */
    double radius = sqrt(-2 * log(uniform));
    double angle = (double)(float)pair[1] * 0x1p-31 * 3.14159265358979323846;
    return radius * (index % 2 ? sin(angle) : cos(angle));
}

static void random_plain_case(uint32_t n, uint32_t k, pllm_dtype dtype)
{
    reset(0);
    uint64_t row_bytes = pllm_packed_row_bytes((int)dtype, k), bytes = n * row_bytes;
    pllm_cuda_matrix whole = {dtype, n, k, take_poisoned(bytes), row_bytes};
    MUST(pllm_cuda_random(rig.o, rig.stream, &whole, 1000, 0.02f, 0x123456789abcdefu));
    uint8_t *got = download_copy(whole.data, bytes);
    double sum = 0, squares = 0;
    for (uint64_t r = 0; r < n; r++) {
        for (uint32_t i = 0; i < k; i++) {
            double one = load(got + r * row_bytes, i, dtype);
            if (r < 4 || r + 1 == n)
                check_near(one, 0.02 * normal_host((1000 + r) * k + i, 0x123456789abcdefu), 1e-5,
                           1e-7, dtype, "random", r * k + i);
            sum += one;
            squares += one * one;
        }
    }
    double count = (double)n * k;
    if (count > 1e5 && !launches_only()) {
        assert_true(fabs(sum / count) < 5 * 0.02 / sqrt(count));
        assert_true(fabs(sqrt(squares / count) / 0.02 - 1) < 0.01);
    }
    /* In two pieces, the same. */
    pllm_cuda_matrix part = {dtype, n / 2, k, take_poisoned(bytes), row_bytes}, rest = part;
    rest.data += n / 2 * row_bytes;
    rest.n = n - n / 2;
    MUST(pllm_cuda_random(rig.o, rig.stream, &rest, 1000 + n / 2, 0.02f, 0x123456789abcdefu));
    MUST(pllm_cuda_random(rig.o, rig.stream, &part, 1000, 0.02f, 0x123456789abcdefu));
    assert_memory_equal(download(part.data, bytes), got, bytes);
    free(got);
}

static void random_quantised_case(uint32_t n, uint32_t k, pllm_dtype dtype)
{
    reset(0);
    uint64_t row_bytes = pllm_packed_row_bytes((int)dtype, k), bytes = n * row_bytes;
    pllm_cuda_matrix whole = {dtype, n, k, take_poisoned(bytes), row_bytes};
    MUST(pllm_cuda_random(rig.o, rig.stream, &whole, 5, 0.02f, 77));
    uint8_t *got = download_copy(whole.data, bytes);
    double sum = 0, squares = 0, count = (double)n * k;
    for (uint64_t r = 0; r < n && !launches_only(); r++) {
        const uint8_t *row = got + r * row_bytes;
        for (uint32_t i = 0; i < k; i++) {
            double one = packed_element(row, dtype, k, i);
            sum += one;
            squares += one * one;
        }
        uint32_t used = k / 32 * (dtype == PLLM_Q4_1 ? 4 : 2);
        uint32_t scales = pllm_packed_scale_bytes((int)dtype, k);
        for (uint32_t i = used; i < scales; i++) assert_int_equal(row[i], 0);
        uint32_t padded =
            pllm_packed_units((int)dtype, k) * pllm_packed_unit_blocks((int)dtype) * 32;
        for (uint32_t i = k; i < padded; i++) {
            uint32_t high;
            assert_int_equal(row[scales + pllm_packed_quant((int)dtype, i, &high)], 0);
        }
    }
    if (count > 1e5 && !launches_only()) {
        assert_true(fabs(sum / count) < 40 * 0.02 / sqrt(count)); /* a block shares a sign */
        assert_true(fabs(sqrt(squares / count) / 0.02 - 1) < 0.01);
    }
    pllm_cuda_matrix again = whole;
    again.data = take_poisoned(bytes);
    again.n = n / 2;
    MUST(pllm_cuda_random(rig.o, rig.stream, &again, 5, 0.02f, 77));
    again.data += n / 2 * row_bytes;
    again.n = n - n / 2;
    MUST(pllm_cuda_random(rig.o, rig.stream, &again, 5 + n / 2, 0.02f, 77));
    assert_memory_equal(download(again.data - n / 2 * row_bytes, bytes), got, bytes);
    MUST(pllm_cuda_random(rig.o, rig.stream, &whole, 5, 0.02f, 78));
    if (!launches_only()) assert_memory_not_equal(download(whole.data, bytes), got, bytes);
    free(got);
}

static void random_weights_depend_on_place_and_seed_alone(void **state)
{
    (void)state;
    uint32_t known[4];
    philox_host(0, 0, known); /* the published answer for zeros */
    assert_int_equal(known[0], 0x6627e8d5);
    assert_int_equal(known[3], 0x9b00dbd8);
    for (int d = 0; d < 3; d++) {
        random_plain_case(rig.small ? 60 : 600, 576, plain[d]);
        random_plain_case(9, 7, plain[d]);
        if (!rig.small) random_plain_case(70000, 8, plain[d]);
        random_plain_case(3, 4099, plain[d]);
    }
    for (pllm_dtype dtype = PLLM_Q8_0; dtype <= PLLM_Q4_1; dtype++) {
        random_quantised_case(rig.small ? 60 : 600, 576, dtype);
        if (!rig.small) random_quantised_case(100, 4096, dtype);
        random_quantised_case(5, 32, dtype);
        random_quantised_case(3, 14336, dtype);
    }
}

/* ---- a tensor in pieces ---- */

static void a_tensor_s_sum_does_not_depend_on_its_pieces(void **state)
{
    (void)state;
    enum { TILE_MAX = 300 };
    const uint32_t TILES = rig.small ? 30 : TILE_MAX;
    const uint64_t elements = TILES * (uint64_t)PLLM_CUDA_TILE - 4321;
    reset(1);
    pllm_va sums = take_poisoned(TILES * 8), total = take_poisoned(16);
    pllm_va data = take_poisoned(elements * 4 + 16),
            apart = take_poisoned(2 * elements * 4 + 65536);
    pllm_cuda_piece whole = {data, 0, elements}, pieces[TILE_MAX];
    MUST(pllm_cuda_tensor_fill(rig.o, rig.stream, &whole, 1, 1.0f, 9));
    MUST(pllm_cuda_tensor_sum(rig.o, rig.stream, &whole, 1, sums));
    MUST(pllm_cuda_tensor_total(rig.o, rig.stream, sums, TILES, total));
    double one = *(const double *)download(total, 8), two;
    float *got = download_copy(data, elements * 4 + 16);
    double want = 0;
    for (uint64_t i = elements; i < elements + 4; i++) assert_true(is_poison(got, i, PLLM_F32));
    for (uint64_t i = 0; i < elements; i++) {
        if (i % 997 == 0) check_near(got[i], normal_host(i, 9), 1e-5, 1e-5, PLLM_F32, "tensor", i);
        want += got[i];
    }
    if (!launches_only()) assert_true(fabs(one - want) < 1e-3);
    for (uint32_t i = 0; i < TILES; i++) { /* every tile a piece, far apart, backwards */
        uint64_t first = (uint64_t)i * PLLM_CUDA_TILE, left = elements - first;
        pieces[TILES - 1 - i] = (pllm_cuda_piece){apart + first * 8, first,
                                                  left < PLLM_CUDA_TILE ? left : PLLM_CUDA_TILE};
    }
    MUST(pllm_cuda_tensor_fill(rig.o, rig.stream, pieces, TILES, 1.0f, 9));
    MUST(pllm_cuda_tensor_sum(rig.o, rig.stream, pieces, TILES / 3, sums));
    MUST(pllm_cuda_tensor_sum(rig.o, rig.stream, pieces + TILES / 3, TILES - TILES / 3, sums));
    MUST(pllm_cuda_tensor_total(rig.o, rig.stream, sums, TILES, total));
    two = *(const double *)download(total, 8);
    if (!launches_only()) assert_memory_equal(&one, &two, 8);
    for (uint32_t i = 0; i < TILES; i += 13) {
        uint64_t first = (uint64_t)i * PLLM_CUDA_TILE;
        uint64_t bytes = pieces[TILES - 1 - i].elements * 4;
        assert_memory_equal(download(pieces[TILES - 1 - i].data, bytes), got + first, bytes);
    }
    free(got);
}

/* ---- gather and scatter ---- */

static void gather_case(uint32_t count, uint32_t bytes_max, uint32_t ctas, int out)
{
    enum { HALF = STAGE / 2 };
    const uint64_t AREA = rig.small ? 4 << 20 : 96 << 20;
    reset(count + bytes_max);
    /* The first half of the stage is for upload and download; slices lie in the second. */
    uint8_t *host = rig.stage + HALF;
    uint8_t *copy = malloc(AREA), *want = malloc(AREA);
    pllm_cuda_slice *slices = calloc(count, sizeof *slices);
    assert_true(copy && want && slices);
    for (uint64_t i = 0; i < AREA; i += 4) {
        uint32_t word = random_u32();
        memcpy(copy + i, &word, 4);
    }
    pllm_va device = take(AREA), host_va = pllm_cuda_host_va(rig.device, host);
    memset(want, POISON, AREA);
    if (out) {
        upload(device, copy, AREA);
        memset(host, POISON, AREA);
    } else {
        MUST(rig.ops->fill(rig.device, rig.stream, device, AREA, POISON));
        sync_stream();
        memcpy(host, copy, AREA);
    }
    uint64_t at = 0, room = AREA / count / 16 * 16;
    for (uint32_t i = 0; i < count; i++, at += room) {
        uint64_t bytes = random_u32() % (bytes_max / 16 + 1) * 16;
        if (i % 3 == 0) bytes = bytes_max;
        if (bytes + 16 > room) bytes = room - 16;
        uint64_t from = random_u32() % ((AREA - bytes) / 16) * 16, to = at + i % 2 * 16;
        slices[i] = (pllm_cuda_slice){.to = (out ? host_va : device) + to,
                                      .from = (out ? device : host_va) + from,
                                      .bytes = (uint32_t)bytes};
        memcpy(want + to, copy + from, bytes);
    }
    pllm_va list = take_data(slices, count * sizeof *slices);
    MUST(pllm_cuda_gather(rig.transfer, rig.stream, list, count, ctas));
    sync_stream();
    const uint8_t *got = out ? host : download(device, AREA);
    if (!launches_only() && memcmp(got, want, AREA) != 0) {
        uint64_t i = 0;
        while (got[i] == want[i]) i++;
        fail_msg("%u slices of %u bytes, %s: byte %llu is wrong", count, bytes_max,
                 out ? "out" : "in", (unsigned long long)i);
    }
    free(copy);
    free(want);
    free(slices);
}

static void gather_moves_slices_and_nothing_else(void **state)
{
    (void)state;
    for (int out = 0; out < 2; out++) {
        gather_case(300, 2064, 8, out);
        if (rig.small) continue;
        gather_case(1, 16, 0, out);
        gather_case(1, 5 << 20, 0, out);
        gather_case(3, 1 << 20, 8, out);
        gather_case(7, 4096, 8, out);
        gather_case(300, 16384, 8, out);
        gather_case(1000, 65536, 3, out);
        gather_case(5000, 2064, 16, out);
        gather_case(40, 70000, 1, out);
    }
}

/* ---- graphs and dependence ---- */

/* embed, norm, rotary, norm, argmax with dependence, in a graph, against the same one by one. */
static void a_dependent_chain_in_a_graph_gives_the_same(void **state)
{
    (void)state;
    enum { N = 500, K = 4096, ROWS = 4 };
    reset(6);
    uint64_t row_bytes = K * 2;
    pllm_cuda_matrix table = {PLLM_BF16, N, K, take(N * row_bytes), row_bytes};
    MUST(pllm_cuda_random(rig.o, rig.stream, &table, 0, 1.0f, 1));
    uint32_t ids[ROWS] = {3, 499, 0, 77};
    float *weight = random_values(K, PLLM_F32);
    pllm_va id = take_data(ids, sizeof ids), w = take_data(weight, K * 4);
    pllm_va x = take(ROWS * K * 4), y = take(ROWS * K * 4), z = take(ROWS * K * 2);
    pllm_va best = take(ROWS * 4);
    uint32_t want[ROWS], got[ROWS];
    for (uint32_t dependent = 0; dependent < 2; dependent++) {
        pllm_cuda_graph *graph = NULL;
        for (int i = 0; i < 4; i++)
            MUST(rig.ops->fill(rig.device, rig.stream, (pllm_va[]){x, y, z, best}[i],
                               (uint64_t[]){ROWS * K * 4, ROWS * K * 4, ROWS * K * 2, ROWS * 4}[i],
                               POISON));
        sync_stream();
        if (dependent) MUST(pllm_cuda_capture_begin(rig.device, rig.stream));
        MUST(pllm_cuda_embed(rig.o, rig.stream, &table, id, ROWS, x, K, 0));
        MUST(pllm_cuda_rms_norm(rig.o, rig.stream, x, K, w, 1e-5f, 0, ROWS, K, y, PLLM_F32, K,
                                dependent));
        MUST(pllm_cuda_swiglu(rig.o, rig.stream, y, PLLM_F32, K, ROWS, K / 2, z, PLLM_F32, K / 2,
                              dependent));
        MUST(pllm_cuda_rms_norm(rig.o, rig.stream, z, K / 2, w, 1e-5f, 0, ROWS, K / 2, y, PLLM_F32,
                                K, dependent));
        MUST(pllm_cuda_argmax(rig.o, rig.stream, y, K, ROWS, K / 2, best, dependent));
        if (dependent) {
            MUST(pllm_cuda_capture_end(rig.device, rig.stream, &graph));
            for (int i = 0; i < 20; i++)
                MUST(pllm_cuda_graph_launch(rig.device, graph, rig.stream));
        }
        memcpy(dependent ? got : want, download(best, sizeof got), sizeof got);
        pllm_cuda_graph_close(graph);
    }
    assert_memory_equal(got, want, sizeof got);
    free(weight);
}

/* ---- arguments ---- */

static void wrong_arguments_are_refused_with_a_sentence(void **state)
{
    (void)state;
    reset(0);
    pllm_va a = take(1 << 20);
    pllm_cuda_matrix odd = {PLLM_Q8_0, 4, 40, a, 64}, near = {PLLM_BF16, 4, 64, a, 120};
    pllm_cuda_rotary r = {.qkv = a, .rows = 1, .heads = 1, .head_dim = 300};
    assert_int_equal(pllm_cuda_embed(rig.o, rig.stream, &odd, a, 1, a, 64, 0), PLLM_EINVAL);
    assert_int_equal(pllm_cuda_embed(rig.o, rig.stream, &near, a, 1, a, 64, 0), PLLM_EINVAL);
    assert_int_equal(pllm_cuda_random(rig.o, rig.stream, &odd, 0, 1, 1), PLLM_EINVAL);
    assert_int_equal(
        pllm_cuda_rms_norm(rig.o, rig.stream, a, 10, a, 0, 0, 1, 11, a, PLLM_F32, 11, 0),
        PLLM_EINVAL);
    assert_int_equal(
        pllm_cuda_swiglu(rig.o, rig.stream, a, PLLM_Q8_0, 64, 1, 32, a, PLLM_F32, 32, 0),
        PLLM_EINVAL);
    assert_int_equal(pllm_cuda_rotary_append(rig.o, rig.stream, &r), PLLM_EINVAL);
    r.head_dim = 64;
    r.rotary_dims = 65;
    assert_int_equal(pllm_cuda_rotary_append(rig.o, rig.stream, &r), PLLM_EINVAL);
    assert_int_equal(pllm_cuda_argmax(rig.o, rig.stream, a, 8, 1, 9, a, 0), PLLM_EINVAL);
    assert_int_equal(pllm_cuda_gather(rig.transfer, rig.stream, a + 4, 1, 0), PLLM_EINVAL);
    assert_int_equal(pllm_cuda_embed(rig.o, rig.stream, &near, a, 0, a, 64, 0), PLLM_OK);
    sync_stream();
}

static int open_rig(void **state)
{
    (void)state;
    pllm_cuda_device_options options = {.struct_bytes = sizeof options};
    void *stage;
    rig.small = brief();
    MUST(pllm_device_open_cuda(NULL, &options, &rig.device));
    rig.ops = rig.device->ops;
    MUST(rig.ops->stream_open(rig.device, &rig.stream));
    MUST(pllm_cuda_rows_open(NULL, rig.device, &rig.o));
    MUST(pllm_cuda_transfer_open(NULL, rig.device, &rig.transfer));
    MUST(rig.ops->reserve(rig.device, ARENA, &rig.base));
    MUST(rig.ops->chunk_create(rig.device, ARENA, &rig.chunk));
    MUST(rig.ops->map(rig.device, rig.base, &rig.chunk, 1));
    MUST(rig.ops->host_alloc(rig.device, STAGE, &stage));
    rig.stage = stage;
    return 0;
}

static int close_rig(void **state)
{
    (void)state;
    if (!rig.chunk || !rig.stage) return 0; /* no GPU: the setup has failed and said why */
    rig.ops->host_free(rig.device, rig.stage, STAGE);
    rig.ops->unmap(rig.device, rig.base, rig.chunk);
    rig.ops->chunk_destroy(rig.device, rig.chunk);
    rig.ops->release(rig.device, rig.base, ARENA);
    pllm_cuda_transfer_close(rig.transfer);
    pllm_cuda_rows_close(rig.o);
    rig.ops->stream_close(rig.device, rig.stream);
    pllm_device_close(rig.device);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrong_arguments_are_refused_with_a_sentence),
        cmocka_unit_test(embed_reads_rows_of_every_format),
        cmocka_unit_test(norms_are_near_double_and_rows_are_independent),
        cmocka_unit_test(swiglu_has_the_cpu_s_bits),
        cmocka_unit_test(rotary_is_exact_and_goes_where_it_should),
        cmocka_unit_test(angles_are_within_a_millionth),
        cmocka_unit_test(rotated_rows_are_independent),
        cmocka_unit_test(argmax_finds_the_first_of_the_largest),
        cmocka_unit_test(random_weights_depend_on_place_and_seed_alone),
        cmocka_unit_test(a_tensor_s_sum_does_not_depend_on_its_pieces),
        cmocka_unit_test(gather_moves_slices_and_nothing_else),
        cmocka_unit_test(a_dependent_chain_in_a_graph_gives_the_same),
    };
    return cmocka_run_group_tests_name("cuda rows", tests, open_rig, close_rig);
}
