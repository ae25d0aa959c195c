/* Products on the GPU: every format against the CPU's reference in f32, and rule 1: the bits of a
 * row whatever is multiplied beside it and however the grid is cut. Needs a GPU.
 *
 * Brief form, at most 1000 launches, reaches: pllm_decode_* pllm_stream_* pllm_linear_*. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "base/context.h"
#include "brief.h"
#include "device/cuda.h"
#include "failing_context.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_blas.h"
#include "kernels/cuda/linear_format.h"
#include "kernels/kernels.h"

#if __has_include(<cublasLt.h>)
#include <cublasLt.h>
#define SAME(OURS, THEIRS) _Static_assert((int)(OURS) == (int)(THEIRS), #THEIRS)
_Static_assert(sizeof(blas_algorithm) == sizeof(cublasLtMatmulAlgo_t), "algorithm");
_Static_assert(sizeof(blas_result) == sizeof(cublasLtMatmulHeuristicResult_t), "result");
SAME(offsetof(blas_result, workspace_bytes),
     offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize));
SAME(offsetof(blas_result, state), offsetof(cublasLtMatmulHeuristicResult_t, state));
SAME(BLAS_R_32F, CUDA_R_32F);
SAME(BLAS_R_16F, CUDA_R_16F);
SAME(BLAS_R_16BF, CUDA_R_16BF);
SAME(BLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F);
SAME(BLAS_OP_T, CUBLAS_OP_T);
SAME(BLAS_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSA);
SAME(BLAS_PREFERENCE_WORKSPACE, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
SAME(BLAS_PREFERENCE_REDUCTION, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK);
SAME(BLAS_PREFERENCE_ALIGNMENT_A, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES);
SAME(BLAS_PREFERENCE_ALIGNMENT_A + 3, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
SAME(BLAS_ALGORITHM_SPLIT_K, CUBLASLT_ALGO_CONFIG_SPLITK_NUM);
SAME(BLAS_ALGORITHM_REDUCTION, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME);
#endif

#define OK(CALL) assert_int_equal(must(CALL, #CALL), PLLM_OK)

static int must(int status, const char *call)
{
    if (status < 0) print_error("%s: %d, %s\n", call, status, pllm_last_error()->text);
    return status;
}

/* The GPU, its memory handed out from the bottom and taken back all at once, and a way in and out.
 */
enum { MEMORY_BYTES = 1 << 30, STAGE_BYTES = 64 << 20 };
static pllm_device *device;
static pllm_stream *stream;
static pllm_chunk *chunk;
static pllm_va memory;
static uint64_t memory_used, memory_kept;
static uint8_t *stage;
static pllm_cuda_linear *linear;

static pllm_va give(uint64_t bytes)
{
    pllm_va at = memory + memory_used;
    memory_used += (bytes + 511) / 256 * 256; /* at least one byte that nobody owns */
    assert_true(memory_used <= MEMORY_BYTES);
    return at;
}

static void upload(pllm_va to, const void *from, uint64_t bytes)
{
    for (uint64_t at = 0; at < bytes; at += STAGE_BYTES) {
        uint64_t part = bytes - at < STAGE_BYTES ? bytes - at : STAGE_BYTES;
        memcpy(stage, (const uint8_t *)from + at, part);
        pllm_copy copy = {to + at, (uintptr_t)stage, part};
        OK(device->ops->copy(device, stream, PLLM_COPY_IN, &copy));
        OK(device->ops->stream_sync(device, stream));
    }
}

static void download(void *to, pllm_va from, uint64_t bytes)
{
    for (uint64_t at = 0; at < bytes; at += STAGE_BYTES) {
        uint64_t part = bytes - at < STAGE_BYTES ? bytes - at : STAGE_BYTES;
        pllm_copy copy = {(uintptr_t)stage, from + at, part};
        OK(device->ops->copy(device, stream, PLLM_COPY_OUT, &copy));
        OK(device->ops->stream_sync(device, stream));
        memcpy((uint8_t *)to + at, stage, part);
    }
}

static int suite_open(void **state)
{
    (void)state;
    int status = pllm_device_open_cuda(NULL, NULL, &device);
    if (status < 0) {
        print_message("no GPU here: %s\n", pllm_last_error()->text);
        return status == PLLM_EUNSUPPORTED ? 0 : -1;
    }
    void *pinned;
    pllm_va workspace;
    uint64_t bytes = pllm_cuda_linear_workspace_bytes();
    if (must(device->ops->stream_open(device, &stream), "stream") < 0) return -1;
    if (must(device->ops->reserve(device, MEMORY_BYTES, &memory), "reserve") < 0) return -1;
    if (must(device->ops->chunk_create(device, MEMORY_BYTES, &chunk), "chunk") < 0) return -1;
    if (must(device->ops->map(device, memory, &chunk, 1), "map") < 0) return -1;
    if (must(device->ops->host_alloc(device, STAGE_BYTES, &pinned), "host") < 0) return -1;
    stage = pinned;
    workspace = give(bytes);
    memory_kept = memory_used;
    return must(pllm_cuda_linear_open(NULL, device, workspace, bytes, &linear), "open") < 0 ? -1
                                                                                            : 0;
}

static int suite_close(void **state)
{
    (void)state;
    if (!device) return 0;
    pllm_cuda_linear_close(linear);
    device->ops->host_free(device, stage, STAGE_BYTES);
    device->ops->unmap(device, memory, chunk);
    device->ops->chunk_destroy(device, chunk);
    device->ops->release(device, memory, MEMORY_BYTES);
    device->ops->stream_close(device, stream);
    pllm_device_close(device);
    return 0;
}

static void tune(uint32_t cluster, uint32_t tiles, uint32_t own)
{
    pllm_cuda_linear_tune(
        linear, &(pllm_cuda_linear_tuning){cluster, tiles, tiles == 2 ? 1 : 0, own, 0, 0});
}

/* Cut number `way` of decode's grid, by the kernel of registers or the one of rings. */
enum { WAYS = 12 };
static void tune_decode(uint32_t way)
{
    static const struct {
        uint32_t cluster, tiles, ring, early;
    } ways[WAYS] = {{1, 1, 0, 0}, {2, 2, 0, 0}, {4, 1, 0, 0}, {8, 2, 0, 0}, /* registers */
                    {2, 1, 6, 1}, {2, 2, 2, 1}, {4, 1, 3, 2}, {4, 2, 1, 1},
                    {8, 1, 4, 1}, {8, 2, 2, 2}, {8, 1, 1, 1}, {0, 0, 0, 0}};
    pllm_cuda_linear_tune(linear, &(pllm_cuda_linear_tuning){.cluster = ways[way].cluster,
                                                             .tiles = ways[way].tiles,
                                                             .ctas_per_sm = ways[way].tiles == 2,
                                                             .kernel = way < 4 ? 1 : 2,
                                                             .ring = ways[way].ring,
                                                             .early = ways[way].early});
}

static void begin(void)
{
    if (!device) skip();
    memory_used = memory_kept;
    tune(0, 0, 0);
}

static uint64_t random_state;

static uint32_t random_u32(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 32);
}

static float random_float(void) /* in [-1, 1) */
{
    return (float)(int32_t)random_u32() * 0x1p-31f;
}

static void put_half(uint8_t *at, float value, pllm_dtype dtype)
{
    uint16_t half = dtype == PLLM_BF16 ? pllm_f32_to_bf16(value) : pllm_f32_to_f16(value);
    memcpy(at, &half, sizeof half);
}

/* A matrix: in the file's form, as the CPU's reference has it, and on the GPU. */
typedef struct matrix {
    uint8_t *rows;
    uint64_t row_bytes;
    void *panels;
    pllm_linear host;
    pllm_cuda_matrix gpu;
} matrix;

static void fill_row(uint8_t *row, pllm_dtype dtype, uint32_t k)
{
    uint32_t elements = pllm_dtype_block_elements(dtype), bytes = pllm_dtype_block_bytes(dtype);
    for (uint32_t b = 0; b < k / elements; b++, row += bytes) {
        float value = random_float() * 0.2f;
        if (dtype == PLLM_F32) {
            memcpy(row, &value, 4);
        } else if (elements == 1) {
            put_half(row, value, dtype);
        } else {
            for (uint32_t i = 0; i < bytes; i++) row[i] = (uint8_t)(random_u32() >> 13);
            put_half(row, random_float() * 0.01f, PLLM_F16);
            if (dtype == PLLM_Q4_1) put_half(row + 2, random_float() * 0.05f, PLLM_F16);
        }
    }
}

static void matrix_open(matrix *w, pllm_dtype dtype, uint32_t n, uint32_t k, uint64_t seed)
{
    const pllm_kernels *reference = pllm_kernels_by_name("reference");
    random_state = seed;
    *w = (matrix){0};
    assert_int_equal(pllm_dtype_row_bytes(dtype, k, &w->row_bytes), PLLM_OK);
    w->row_bytes += 3; /* no alignment is promised */
    w->rows = pllm_alloc(NULL, n * w->row_bytes);
    for (uint32_t i = 0; i < n; i++) fill_row(w->rows + i * w->row_bytes, dtype, k);
    w->panels = pllm_alloc(NULL, pllm_linear_packed_bytes(dtype, n, k, PLLM_COMPUTE_F32));
    pllm_linear_place(&w->host, dtype, n, k, PLLM_COMPUTE_F32, w->panels);
    reference->pack(w->panels, dtype, n, k, PLLM_COMPUTE_F32, w->rows, w->row_bytes, 0,
                    (n + 15) / 16);

    uint64_t packed = pllm_cuda_matrix_row_bytes(dtype, k);
    assert_int_equal(packed % 16, 0);
    w->gpu = (pllm_cuda_matrix){dtype, n, k, give(n * packed), packed};
    pllm_va file = give(n * w->row_bytes + 1) + 1;
    upload(file, w->rows, n * w->row_bytes);
    /* In two parts, each from its own first row. */
    OK(device->ops->fill(device, stream, w->gpu.data, n * packed, 0xa5));
    OK(pllm_cuda_linear_pack(linear, stream, &w->gpu, file + n / 2 * w->row_bytes, w->row_bytes,
                             n / 2, n - n / 2));
    OK(pllm_cuda_linear_pack(linear, stream, &w->gpu, file, w->row_bytes, 0, n / 2));
}

static void matrix_close(matrix *w)
{
    pllm_free(NULL, w->rows);
    pllm_free(NULL, w->panels);
}

/* Rows of f32 with a stride larger than k. */
typedef struct rows {
    uint32_t count, k, stride;
    float *host;
    pllm_va gpu, gpu16[3]; /* f32; by dtype: F16, BF16 */
} rows;

static void rows_open(rows *x, uint32_t count, uint32_t k, uint64_t seed)
{
    random_state = seed;
    *x = (rows){.count = count, .k = k, .stride = (k + 7) / 8 * 8 + 8};
    uint64_t elements = (uint64_t)count * x->stride;
    x->host = pllm_alloc(NULL, elements * 4);
    uint16_t *half = pllm_alloc(NULL, elements * 2);
    for (uint64_t i = 0; i < elements; i++)
        x->host[i] = random_float() * (random_u32() % 16 == 0 ? 20.0f : 1.0f);
    x->gpu = give(elements * 4);
    upload(x->gpu, x->host, elements * 4);
    for (int dtype = PLLM_F16; dtype <= PLLM_BF16; dtype++) {
        for (uint64_t i = 0; i < elements; i++)
            half[i] =
                dtype == PLLM_F16 ? pllm_f32_to_f16(x->host[i]) : pllm_f32_to_bf16(x->host[i]);
        x->gpu16[dtype] = give(elements * 2);
        upload(x->gpu16[dtype], half, elements * 2);
    }
    pllm_free(NULL, half);
}

/* The CPU's answer in f32: [x->count][n]. */
static float *answer(const matrix *w, const rows *x, const float *norm, float epsilon)
{
    const pllm_kernels *reference = pllm_kernels_by_name("reference");
    uint32_t k = x->k, n = w->host.n;
    float *out = pllm_alloc(NULL, (uint64_t)x->count * n * 4), *row = pllm_alloc(NULL, k * 4ull);
    void *place = pllm_alloc(NULL, pllm_activations_bytes(1, k));
    for (uint32_t i = 0; i < x->count; i++) {
        memcpy(row, x->host + (uint64_t)i * x->stride, k * 4ull);
        if (norm) reference->rms_norm(row, row, norm, k, epsilon);
        pllm_activations activations;
        pllm_activations_place(&activations, place, 1, k);
        reference->prepare(&activations, 0, row, PLLM_FORM_F32);
        reference->product(out + (uint64_t)i * n, n, &activations, 0, 1, &w->host, 0, n);
    }
    pllm_free(NULL, row);
    pllm_free(NULL, place);
    return out;
}

/* |got - wanted| <= tolerance * |wanted|, as norms of each row. */
static void check_close(const float *got, uint64_t got_stride, const float *wanted, uint32_t count,
                        uint32_t n, double tolerance, const char *what)
{
    for (uint32_t i = 0; i < count && !launches_only(); i++) {
        double error = 0, size = 0;
        for (uint32_t j = 0; j < n; j++) {
            double e = (double)got[i * got_stride + j] - wanted[(uint64_t)i * n + j];
            error += e * e;
            size += (double)wanted[(uint64_t)i * n + j] * wanted[(uint64_t)i * n + j];
        }
        if (sqrt(error) <= tolerance * sqrt(size)) continue;
        fail_msg("%s: row %u of %u x %u is off by %g of its size (%g allowed)", what, i, count, n,
                 sqrt(error / size), tolerance);
    }
}

typedef int launch(pllm_cuda_linear *, pllm_stream *, const pllm_cuda_product *);

/* Runs it on outputs that hold `before` (NULL: poison) and gives [rows][out_stride], whose padding
 * must be untouched. */
static float *run(launch *launched, pllm_cuda_product p, const float *before)
{
    uint64_t element = p.out_dtype == PLLM_F32 ? 4 : 2, bytes = p.rows * p.out_stride * element;
    uint32_t n = p.matrix->n;
    uint8_t *raw = pllm_alloc(NULL, bytes);
    float *out = pllm_alloc(NULL, p.rows * p.out_stride * 4);
    uint64_t mark = memory_used;
    p.out = give(bytes);
    if (before)
        upload(p.out, before, bytes);
    else
        OK(device->ops->fill(device, stream, p.out, bytes, 0xa5));
    OK(launched(linear, stream, &p));
    download(raw, p.out, bytes);
    memory_used = mark;
    for (uint32_t i = 0; i < p.rows; i++) {
        const uint8_t *row = raw + i * p.out_stride * element;
        for (uint64_t j = n * element; !before && j < p.out_stride * element; j++)
            assert_int_equal(row[j], 0xa5);
        for (uint32_t j = 0; j < n; j++) {
            uint16_t half;
            memcpy(&half, row + j * element, 2);
            if (p.out_dtype == PLLM_F32)
                memcpy(&out[i * p.out_stride + j], row + j * element, 4);
            else
                out[i * p.out_stride + j] =
                    p.out_dtype == PLLM_F16 ? pllm_f16_to_f32(half) : pllm_bf16_to_f32(half);
        }
    }
    pllm_free(NULL, raw);
    return out;
}

static pllm_cuda_product product_of(const matrix *w, const rows *x)
{
    return (pllm_cuda_product){.matrix = &w->gpu,
                               .x = x->gpu,
                               .x_dtype = PLLM_F32,
                               .x_stride = x->stride,
                               .out_dtype = PLLM_F32,
                               .out_stride = w->gpu.n + 4 - w->gpu.n % 4 + 4,
                               .rows = x->count};
}

/* The same product of rows first .. first + count - 1 alone must give the same bits. */
static void check_rows_alone(launch *launched, pllm_cuda_product p, const float *all,
                             uint32_t first, uint32_t count, const char *what)
{
    uint64_t element = p.x_dtype == PLLM_F32 ? 4 : 2;
    p.x += first * p.x_stride * element;
    p.rows = count;
    float *some = run(launched, p, NULL);
    for (uint32_t i = 0; i < count; i++)
        if (!launches_only() && memcmp(some + i * p.out_stride, all + (first + i) * p.out_stride,
                                       p.matrix->n * 4ull) != 0)
            fail_msg("%s: row %u has other bits as row %u of %u", what, first + i, i, count);
    pllm_free(NULL, some);
}

static double tolerance_of(pllm_dtype dtype, uint32_t compute_f32)
{
    if (compute_f32) return 1e-5;
    return dtype == PLLM_F16 ? 2e-3 : dtype == PLLM_F32 || dtype == PLLM_BF16 ? 1e-2 : 3e-4;
}

static const struct shape {
    uint32_t n, k;
} shapes[] = {{16, 32},   {33, 64},    {129, 96},   {5, 160},    {100, 576},  {40, 1056},
              {7000, 64}, {5000, 288}, {272, 4096}, {17, 11008}, {24, 14336}, {130, 28672},
              {19, 40},   {35, 33},    {16, 65536}}; /* the last: of 16 rows not all find room in
                                                        shared memory */

static int has_rows(pllm_dtype dtype, uint32_t k)
{
    return pllm_cuda_matrix_row_bytes(dtype, k) != 0;
}

/* Of the shapes above: the first with more units than a group and a cut tile; two for f32; and the
 * widest, which is cut as far as it goes. */
static int briefly(pllm_dtype dtype, uint32_t shape)
{
    if (shapes[shape].k == 65536) return dtype == PLLM_BF16;
    return shapes[shape].k == 1056 || shapes[shape].k == 40 || shapes[shape].k == 33;
}

static void decode_is_right_and_keeps_bits(void **state)
{
    (void)state;
    begin();
    for (int dtype = PLLM_F32; dtype <= PLLM_Q4_1; dtype++) {
        for (uint32_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
            if (!has_rows((pllm_dtype)dtype, shapes[s].k)) continue;
            if (brief() && !briefly((pllm_dtype)dtype, s)) continue;
            const int widest = shapes[s].k == 65536; /* f32 takes any k the same way */
            memory_used = memory_kept;
            matrix w;
            rows x;
            matrix_open(&w, (pllm_dtype)dtype, shapes[s].n, shapes[s].k, 11 + s);
            rows_open(&x, 17, shapes[s].k, 77 + s);
            float *wanted = answer(&w, &x, NULL, 0);
            for (uint32_t f32 = 0; f32 <= (widest ? 0u : 1u); f32++) {
                char what[96];
                snprintf(what, sizeof what, "decode %s %u x %u%s", pllm_dtype_name(w.gpu.dtype),
                         w.gpu.n, w.gpu.k, f32 ? " f32" : "");
                pllm_cuda_product p = product_of(&w, &x);
                p.compute_f32 = f32;
                float *all = run(pllm_cuda_linear_decode, p, NULL);
                check_close(all, p.out_stride, wanted, 17, w.gpu.n, tolerance_of(w.gpu.dtype, f32),
                            what);
                static const uint32_t parts[][2] = {{0, 1}, {16, 1}, {3, 2}, {5, 3},  {2, 4},
                                                    {4, 7}, {7, 8},  {8, 9}, {1, 16}, {0, 17}};
                const uint32_t odd = f32 || shapes[s].k % 32; /* to one kernel in any case */
                for (uint32_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
                    if (brief() && (i % 3 || ((odd || widest) && i))) continue;
                    p.dependent = i % 2;
                    check_rows_alone(pllm_cuda_linear_decode, p, all, parts[i][0], parts[i][1],
                                     what);
                }
                for (uint32_t way = 0; way < WAYS && !(brief() && odd); way++) {
                    if (brief() && widest && way > 0) break;
                    tune_decode(way);
                    if (!brief()) check_rows_alone(pllm_cuda_linear_decode, p, all, 4, 1, what);
                    if (!brief() || way < 4)
                        check_rows_alone(pllm_cuda_linear_decode, p, all, 2, 5, what);
                    check_rows_alone(pllm_cuda_linear_decode, p, all, 1, 16, what);
                }
                tune(0, 0, 0);
                pllm_free(NULL, all);
            }
            pllm_free(NULL, wanted);
            pllm_free(NULL, x.host);
            matrix_close(&w);
        }
    }
}

static float silu(float v)
{
    return v / (1.0f + expf(-v));
}

static void decode_norm_add_and_swiglu(void **state)
{
    (void)state;
    begin();
    static const uint32_t ks[] = {64, 576, 4096};
    const uint32_t checked = launches_only() ? 0 : 16; /* rows */
    for (int dtype = PLLM_F32; dtype <= PLLM_Q4_1; dtype++) {
        for (uint32_t s = 0; s < (brief() ? 1u : 3u); s++) {
            memory_used = memory_kept;
            uint32_t k = ks[s], n = s == 0 ? 4100 : 143; /* many jobs a cluster */
            matrix w, up;
            rows x;
            matrix_open(&w, (pllm_dtype)dtype, n, k, 5 + s);
            matrix_open(&up, (pllm_dtype)dtype, n, k, 6 + s);
            rows_open(&x, 16, k, 7 + s);
            float *norm = pllm_alloc(NULL, k * 4ull), epsilon = 1e-5f;
            for (uint32_t i = 0; i < k; i++) norm[i] = 1.0f + 0.5f * random_float();
            pllm_va norm_gpu = give(k * 4ull);
            upload(norm_gpu, norm, k * 4ull);
            for (uint32_t with_norm = 0; with_norm <= 1; with_norm++) {
                float *a = answer(&w, &x, with_norm ? norm : NULL, epsilon);
                float *b = answer(&up, &x, with_norm ? norm : NULL, epsilon);
                for (uint32_t f32 = 0; f32 <= (brief() ? 0u : 1u); f32++) {
                    double tolerance = tolerance_of((pllm_dtype)dtype, f32);
                    char what[96];
                    snprintf(what, sizeof what, "%s k %u f32 %u norm %u",
                             pllm_dtype_name((pllm_dtype)dtype), k, f32, with_norm);
                    pllm_cuda_product p = product_of(&w, &x);
                    p.compute_f32 = f32;
                    p.norm_weight = with_norm ? norm_gpu : 0;
                    p.epsilon = epsilon;
                    float *stored = run(pllm_cuda_linear_decode, p, NULL);
                    check_close(stored, p.out_stride, a, 16, n, tolerance, what);

                    p.epilogue = PLLM_CUDA_ADD;
                    float *before = pllm_alloc(NULL, 16 * p.out_stride * 4);
                    for (uint32_t i = 0; i < 16 * p.out_stride; i++) before[i] = random_float();
                    float *added = run(pllm_cuda_linear_decode, p, before);
                    for (uint32_t i = 0; i < checked; i++)
                        for (uint32_t j = 0; j < n; j++) {
                            uint64_t at = i * p.out_stride + j;
                            float sum = before[at] + stored[at];
                            assert_memory_equal(&added[at], &sum, 4);
                        }
                    pllm_free(NULL, before);
                    pllm_free(NULL, added);

                    p.epilogue = PLLM_CUDA_SWIGLU;
                    p.second = &up.gpu;
                    float *both = run(pllm_cuda_linear_decode, p, NULL);
                    p.epilogue = PLLM_CUDA_STORE;
                    p.matrix = &up.gpu;
                    float *ups = run(pllm_cuda_linear_decode, p, NULL);
                    check_close(ups, p.out_stride, b, 16, n, tolerance, what);
                    for (uint32_t i = 0; i < checked; i++)
                        for (uint32_t j = 0; j < n; j++) {
                            uint64_t at = i * p.out_stride + j;
                            float product = silu(stored[at]) * ups[at];
                            float allowed = 2e-6f * (fabsf(product) + fabsf(ups[at]));
                            assert_true(fabsf(product - both[at]) <= allowed);
                        }
                    p.epilogue = PLLM_CUDA_SWIGLU;
                    p.matrix = &w.gpu;
                    for (uint32_t way = 0; way < WAYS; way++) {
                        if (brief() && way % 3 != with_norm) continue;
                        tune_decode(way);
                        if (!brief() || way < 4)
                            check_rows_alone(pllm_cuda_linear_decode, p, both, 3, 1, what);
                        check_rows_alone(pllm_cuda_linear_decode, p, both, 1, 9, what);
                    }
                    tune(0, 0, 0);
                    pllm_free(NULL, both);
                    pllm_free(NULL, ups);
                    pllm_free(NULL, stored);
                }
                pllm_free(NULL, a);
                pllm_free(NULL, b);
            }
            pllm_free(NULL, norm);
            pllm_free(NULL, x.host);
            matrix_close(&w);
            matrix_close(&up);
        }
    }
}

/* A row with a NaN or an infinity gives NaN or infinity, and leaves its neighbours alone. */
static void bad_rows_stay_alone(void **state)
{
    (void)state;
    begin();
    if (brief()) return; /* the same launches again */
    for (int dtype = PLLM_F32; dtype <= PLLM_Q4_1; dtype++) {
        memory_used = memory_kept;
        matrix w;
        rows x;
        matrix_open(&w, (pllm_dtype)dtype, 64, 512, 1);
        rows_open(&x, 12, 512, 2);
        pllm_cuda_product p = product_of(&w, &x);
        float *good = run(pllm_cuda_linear_decode, p, NULL);
        x.host[3 * x.stride + 100] = NAN;
        x.host[9 * x.stride + 500] = INFINITY;
        upload(x.gpu, x.host, 12ull * x.stride * 4);
        float *bad = run(pllm_cuda_linear_decode, p, NULL);
        for (uint32_t i = 0; i < 12 && !launches_only(); i++)
            for (uint32_t j = 0; j < 64; j++) {
                uint64_t at = i * p.out_stride + j;
                if (i == 3)
                    assert_true(isnan(bad[at]));
                else if (i == 9)
                    assert_true(dtype == PLLM_F16 || !isfinite(bad[at])); /* f16: saturated */
                else
                    assert_memory_equal(&bad[at], &good[at], 4);
            }
        pllm_free(NULL, good);
        pllm_free(NULL, bad);
        pllm_free(NULL, x.host);
        matrix_close(&w);
    }
}

static void prefill_of(pllm_dtype dtype, uint32_t n, uint32_t k, uint32_t count, uint32_t library,
                       uint32_t f32, uint32_t checked)
{
    memory_used = memory_kept;
    matrix w;
    rows x;
    matrix_open(&w, dtype, n, k, 21 + k);
    rows_open(&x, count, k, 22 + n);
    tune(0, 0, !library);
    char what[96];
    snprintf(what, sizeof what, "prefill %s %u x %u by %s%s", pllm_dtype_name(dtype), n, k,
             pllm_cuda_linear_library(linear), f32 ? " f32" : "");
    uint32_t stored_count = x.count;
    x.count = checked;
    float *wanted = answer(&w, &x, NULL, 0);
    x.count = stored_count;
    pllm_cuda_product p = product_of(&w, &x);
    p.compute_f32 = f32;
    for (int x_dtype = PLLM_F32; x_dtype <= PLLM_BF16; x_dtype++) {
        p.x = x_dtype == PLLM_F32 ? x.gpu : x.gpu16[x_dtype];
        p.x_dtype = (pllm_dtype)x_dtype;
        p.out_dtype = PLLM_F32;
        float *all = run(pllm_cuda_linear_prefill, p, NULL);
        double tolerance = f32 && x_dtype == PLLM_F32 ? 1e-5 : 1e-2;
        check_close(all, p.out_stride, wanted, checked, n, tolerance, what);
        static const uint32_t parts[] = {1, 2, 17, 64, 300, 512, 777, 1024};
        for (uint32_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
            if (parts[i] > count || (brief() && i != 2)) continue;
            check_rows_alone(pllm_cuda_linear_prefill, p, all, 0, parts[i], what);
            check_rows_alone(pllm_cuda_linear_prefill, p, all, count - parts[i], parts[i], what);
        }
        p.epilogue = PLLM_CUDA_ADD;
        float *before = pllm_alloc(NULL, count * p.out_stride * 4);
        for (uint64_t i = 0; i < count * p.out_stride; i++) before[i] = random_float();
        float *added = run(pllm_cuda_linear_prefill, p, before);
        for (uint32_t i = 0; i < count; i++)
            for (uint32_t j = 0; j < n; j++) {
                uint64_t at = i * p.out_stride + j;
                float sum = before[at] + all[at];
                if (!launches_only() &&
                    fabsf(added[at] - sum) > 1e-5f * (fabsf(before[at]) + fabsf(all[at])))
                    fail_msg("%s: added %g to %g, got %g", what, all[at], before[at], added[at]);
            }
        pllm_free(NULL, added);
        pllm_free(NULL, before);
        p.epilogue = PLLM_CUDA_STORE;
        for (int out = PLLM_F16; out <= PLLM_BF16; out++) {
            p.out_dtype = (pllm_dtype)out;
            float *half = run(pllm_cuda_linear_prefill, p, NULL);
            check_close(half, p.out_stride, wanted, checked, n, 1e-2, what);
            if (!brief())
                check_rows_alone(pllm_cuda_linear_prefill, p, half, count / 3, count / 2 + 1, what);
            pllm_free(NULL, half);
        }
        pllm_free(NULL, all);
    }
    pllm_free(NULL, wanted);
    pllm_free(NULL, x.host);
    matrix_close(&w);
}

static void prefill_small(void **state)
{
    (void)state;
    begin();
    for (int dtype = PLLM_F32; dtype <= PLLM_Q4_1; dtype++)
        for (uint32_t library = 0; library <= 1; library++) {
            if (brief() && library && dtype == PLLM_F32) continue;
            prefill_of((pllm_dtype)dtype, 67, brief() ? 288 : 576, 33, library, 0, 33);
            if (brief() && !library && (dtype == PLLM_F16 || dtype == PLLM_Q4_1)) {
                prefill_of((pllm_dtype)dtype, 70, 96, 70, 0, 1, 70);
                if (dtype == PLLM_F16) prefill_of(PLLM_F16, 33, 37, 20, 0, 0, 20);
            }
            if (brief()) continue;
            prefill_of((pllm_dtype)dtype, 136, 96, 200, library, 0, 200);
            if (library) continue;
            prefill_of((pllm_dtype)dtype, 70, 96, 100, library, 1, 100);
            if (pllm_dtype_block_elements((pllm_dtype)dtype) == 1) {
                prefill_of((pllm_dtype)dtype, 70, 37, 40, library, 0, 40);
                prefill_of((pllm_dtype)dtype, 33, 40, 70, library, 0, 70);
            }
        }
}

/* Real widths; the weights of one are expanded in several tiles. */
static void prefill_large(void **state)
{
    (void)state;
    begin();
    if (brief()) skip();
    for (uint32_t library = 0; library <= 1; library++) {
        prefill_of(PLLM_BF16, 1024, 4096, 2048, library, 0, 3);
        prefill_of(PLLM_BF16, 512, 11008, 2048, library, 0, 3);
        prefill_of(PLLM_Q4_0, 4352, 4096, 520, library, 0, 3);
    }
}

static void two_matrices_in_a_row_are_one(void **state)
{
    (void)state;
    begin();
    for (int dtype = PLLM_F32; dtype <= PLLM_Q4_1; dtype++) {
        memory_used = memory_kept;
        matrix w;
        rows x;
        matrix_open(&w, (pllm_dtype)dtype, 80, 320, 31);
        rows_open(&x, 3, 320, 32);
        float *whole = run(pllm_cuda_linear_decode, product_of(&w, &x), NULL);
        matrix part = w;
        part.gpu.n = 48;
        part.gpu.data += 32 * part.gpu.row_bytes;
        float *some = run(pllm_cuda_linear_decode, product_of(&part, &x), NULL);
        uint64_t stride = product_of(&w, &x).out_stride,
                 part_stride = product_of(&part, &x).out_stride;
        for (uint32_t i = 0; i < 3; i++)
            assert_memory_equal(whole + i * stride + 32, some + i * part_stride, 48 * 4);
        pllm_free(NULL, whole);
        pllm_free(NULL, some);
        pllm_free(NULL, x.host);
        matrix_close(&w);
    }
}

static void wrong_calls_are_refused(void **state)
{
    (void)state;
    begin();
    matrix w;
    rows x;
    matrix_open(&w, PLLM_Q8_0, 32, 64, 41);
    rows_open(&x, 2, 64, 42);
    pllm_cuda_product good = product_of(&w, &x), p;
    good.out = give(1024);
    OK(pllm_cuda_linear_decode(linear, stream, &good));
#define REFUSED(LAUNCH, CHANGE)                                    \
    do {                                                           \
        p = good;                                                  \
        CHANGE;                                                    \
        assert_int_equal(LAUNCH(linear, stream, &p), PLLM_EINVAL); \
        assert_true(strlen(pllm_last_error()->text) > 10);         \
    } while (0)
    pllm_cuda_matrix odd = w.gpu;
    odd.row_bytes += 8;
    REFUSED(pllm_cuda_linear_decode, p.matrix = &odd);
    odd = w.gpu, odd.k = 65;
    REFUSED(pllm_cuda_linear_decode, p.matrix = &odd);
    odd = w.gpu, odd.dtype = PLLM_INT8;
    REFUSED(pllm_cuda_linear_prefill, p.matrix = &odd);
    odd = w.gpu, odd.n = 31;
    REFUSED(pllm_cuda_linear_decode, (p.epilogue = PLLM_CUDA_SWIGLU, p.second = &odd));
    REFUSED(pllm_cuda_linear_decode, p.epilogue = PLLM_CUDA_SWIGLU);
    REFUSED(pllm_cuda_linear_prefill, (p.epilogue = PLLM_CUDA_SWIGLU, p.second = &w.gpu));
    REFUSED(pllm_cuda_linear_decode, p.rows = 0);
    REFUSED(pllm_cuda_linear_decode, p.x = 0);
    REFUSED(pllm_cuda_linear_decode, p.x_dtype = PLLM_BF16);
    REFUSED(pllm_cuda_linear_decode, p.out_dtype = PLLM_BF16);
    REFUSED(pllm_cuda_linear_decode, p.out_stride = 31);
    REFUSED(pllm_cuda_linear_prefill, p.norm_weight = x.gpu);
    REFUSED(pllm_cuda_linear_prefill, (p.epilogue = PLLM_CUDA_ADD, p.out_dtype = PLLM_BF16));
    assert_int_equal(pllm_cuda_linear_pack(linear, stream, &w.gpu, x.gpu, 68, 30, 3), PLLM_EINVAL);
    pllm_cuda_linear *other;
    assert_int_equal(pllm_cuda_linear_open(NULL, device, memory, 100, &other), PLLM_EINVAL);
    assert_null(other);
    pllm_cuda_blas *blas;
    assert_int_equal(pllm_cuda_blas_open(NULL, device, "libno-such-library.so", &blas),
                     PLLM_EUNSUPPORTED);
    assert_null(blas);
    OK(device->ops->stream_sync(device, stream));
    pllm_free(NULL, x.host);
    matrix_close(&w);
}

/* Opening fails cleanly at every allocation and every call of the device. */
static void opening_survives_every_fault(void **state)
{
    (void)state;
    begin();
    uint64_t bytes = pllm_cuda_linear_workspace_bytes();
    for (uint64_t n = 0; n < 100; n++) {
        failing_context failing;
        pllm_cuda_linear *opened;
        failing_context_init(&failing, n);
        int status = pllm_cuda_linear_open(&failing.context, device, memory, bytes, &opened);
        assert_int_equal(status, failing_context_hit(&failing) ? PLLM_ENOMEM : PLLM_OK);
        assert_int_equal(opened == NULL, status < 0);
        pllm_cuda_linear_close(opened);
        failing_context_check(&failing);
        if (!failing_context_hit(&failing)) break;
    }
    for (uint64_t n = 0; n < 100; n++) {
        pllm_faulty_device_options options = {sizeof options, n, 0, 0};
        pllm_device *faulty;
        pllm_cuda_linear *opened;
        OK(pllm_device_open_faulty(NULL, device, &options, &faulty));
        int status = pllm_cuda_linear_open(NULL, faulty, memory, bytes, &opened);
        int hit = pllm_faulty_device_calls(faulty) > n;
        assert_int_equal(opened == NULL, status < 0);
        if (!hit) assert_int_equal(status, PLLM_OK);
        pllm_cuda_linear_close(opened);
        pllm_device_close(faulty);
        if (!hit) break;
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decode_is_right_and_keeps_bits),
        cmocka_unit_test(decode_norm_add_and_swiglu),
        cmocka_unit_test(bad_rows_stay_alone),
        cmocka_unit_test(two_matrices_in_a_row_are_one),
        cmocka_unit_test(prefill_small),
        cmocka_unit_test(prefill_large),
        cmocka_unit_test(wrong_calls_are_refused),
        cmocka_unit_test(opening_survives_every_fault),
    };
    return cmocka_run_group_tests(tests, suite_open, suite_close);
}
