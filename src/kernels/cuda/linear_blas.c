/* linear_blas.c - cuBLASLt with pinned algorithms.
 *
 * Idea. The library's own choice depends on the number of rows, and with it the order of sums. Its
 * heuristic is therefore asked once per shape, for 2,048 rows; the first candidate that neither
 * splits k nor reduces across blocks is kept and used for every number of rows. Such an algorithm
 * computes each output as one walk over k in tiles of fixed size, so a row's bits do not depend on
 * how many rows there are (held by tests/cuda/test_cuda_linear.c on the library in use).
 *
 * The library is column-major: a row-major out [m, n] is its n x m, so W takes the place of A,
 * transposed, and x that of B. */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include "base/context.h"
#include "device/cuda.h"
#include "kernels/cuda/linear_blas.h"

enum { REFERENCE_ROWS = 2048, CANDIDATES = 32, PINNED_MAX = 256 };

#define FUNCTIONS(X)                                                                               \
    X(create, "cublasLtCreate", (void **handle))                                                   \
    X(destroy, "cublasLtDestroy", (void *handle))                                                  \
    X(desc_create, "cublasLtMatmulDescCreate", (void **desc, int compute, int scale))              \
    X(desc_destroy, "cublasLtMatmulDescDestroy", (void *desc))                                     \
    X(desc_set, "cublasLtMatmulDescSetAttribute",                                                  \
      (void *desc, int attribute, const void *value, size_t bytes))                                \
    X(layout_create, "cublasLtMatrixLayoutCreate",                                                 \
      (void **layout, int type, uint64_t rows, uint64_t columns, int64_t stride))                  \
    X(layout_destroy, "cublasLtMatrixLayoutDestroy", (void *layout))                               \
    X(preference_create, "cublasLtMatmulPreferenceCreate", (void **preference))                    \
    X(preference_destroy, "cublasLtMatmulPreferenceDestroy", (void *preference))                   \
    X(preference_set, "cublasLtMatmulPreferenceSetAttribute",                                      \
      (void *preference, int attribute, const void *value, size_t bytes))                          \
    X(heuristic, "cublasLtMatmulAlgoGetHeuristic",                                                 \
      (void *handle, void *desc, void *a, void *b, void *c, void *d, void *preference, int wanted, \
       blas_result *results, int *count))                                                          \
    X(algorithm_get, "cublasLtMatmulAlgoConfigGetAttribute",                                       \
      (const blas_algorithm *algorithm, int attribute, void *value, size_t bytes,                  \
       size_t *written))                                                                           \
    X(check, "cublasLtMatmulAlgoCheck",                                                            \
      (void *handle, void *desc, void *a, void *b, void *c, void *d,                               \
       const blas_algorithm *algorithm, blas_result *result))                                      \
    X(multiply, "cublasLtMatmul",                                                                  \
      (void *handle, void *desc, const void *alpha, const void *a, void *a_layout, const void *b,  \
       void *b_layout, const void *beta, const void *c, void *c_layout, void *d, void *d_layout,   \
       const blas_algorithm *algorithm, void *workspace, size_t workspace_bytes, void *stream))

typedef struct pinned {
    uint32_t n, k, dtype, out_dtype, add, aligned, candidate, asked;
    int found;
    blas_algorithm algorithm;
} pinned;

struct pllm_cuda_blas {
    const pllm_context *context;
    pllm_device *device;
    void *library, *handle, *desc;
    char name[64];
    uint32_t pinned_count;
    pinned pinned[PINNED_MAX];
#define X(NAME, SYMBOL, PARAMETERS) int(*NAME) PARAMETERS;
    FUNCTIONS(X)
#undef X
};

static int type_of(pllm_dtype dtype)
{
    return dtype == PLLM_F32 ? BLAS_R_32F : dtype == PLLM_F16 ? BLAS_R_16F : BLAS_R_16BF;
}

static int load_functions(pllm_cuda_blas *blas)
{
#define X(NAME, SYMBOL, PARAMETERS)                       \
    *(void **)&blas->NAME = dlsym(blas->library, SYMBOL); \
    if (!blas->NAME) return pllm_fail(PLLM_EUNSUPPORTED, 0, "cuBLASLt has no %s", SYMBOL);
    FUNCTIONS(X)
#undef X
    size_t (*version)(void) = NULL;
    *(void **)&version = dlsym(blas->library, "cublasLtGetVersion");
    size_t v = version ? version() : 0; /* 13.1.2: 130102, 12.x likewise */
    snprintf(blas->name, sizeof blas->name, "cuBLASLt %zu.%zu.%zu", v / 10000, v / 100 % 100,
             v % 100);
    return PLLM_OK;
}

int pllm_cuda_blas_open(const pllm_context *context, pllm_device *device, const char *library,
                        pllm_cuda_blas **blas_out)
{
    *blas_out = NULL;
    pllm_cuda_blas *blas = pllm_alloc(context, sizeof *blas);
    if (!blas) return pllm_fail_memory("the state of cuBLASLt", sizeof *blas);
    blas->context = context;
    blas->device = device;
    int status = PLLM_EUNSUPPORTED, native;
    static const char *const names[] = {"libcublasLt.so.13", "libcublasLt.so.12"};
    for (int i = 0; i < 2 && !blas->library; i++)
        blas->library = dlopen(library ? library : names[i], RTLD_NOW | RTLD_LOCAL);
    if (!blas->library) {
        pllm_fail(status, 0, "cuBLASLt is not installed: %s", dlerror());
        goto fail;
    }
    status = load_functions(blas);
    if (status < 0) goto fail;
    status = pllm_cuda_make_current(device);
    if (status < 0) goto fail;
    native = blas->create(&blas->handle);
    if (native) {
        status = pllm_fail(PLLM_EUNSUPPORTED, native, "%s does not start here (status %d)",
                           blas->name, native);
        goto fail;
    }
    int transposed = BLAS_OP_T;
    native = blas->desc_create(&blas->desc, BLAS_COMPUTE_32F, BLAS_R_32F);
    if (!native)
        native = blas->desc_set(blas->desc, BLAS_DESC_TRANSA, &transposed, sizeof transposed);
    if (native) {
        status = pllm_fail(PLLM_EUNSUPPORTED, native, "%s refuses f32 sums (status %d)", blas->name,
                           native);
        goto fail;
    }
    *blas_out = blas;
    return PLLM_OK;
fail:
    pllm_cuda_blas_close(blas);
    return status;
}

void pllm_cuda_blas_close(pllm_cuda_blas *blas)
{
    if (!blas) return;
    if (blas->desc) blas->desc_destroy(blas->desc);
    if (blas->handle) blas->destroy(blas->handle);
    if (blas->library) dlclose(blas->library);
    pllm_free(blas->context, blas);
}

const char *pllm_cuda_blas_name(const pllm_cuda_blas *blas)
{
    return blas->name;
}

/* The layouts of W, x and out for m rows; all or none. */
static int layouts_create(pllm_cuda_blas *blas, const pllm_cuda_blas_product *p, uint32_t m,
                          void *layouts[3])
{
    int type = type_of(p->dtype), out_type = type_of(p->out_dtype);
    layouts[0] = layouts[1] = layouts[2] = NULL;
    if (!blas->layout_create(&layouts[0], type, p->k, p->n, (int64_t)p->w_stride) &&
        !blas->layout_create(&layouts[1], type, p->k, m, (int64_t)p->x_stride) &&
        !blas->layout_create(&layouts[2], out_type, p->n, m, (int64_t)p->out_stride))
        return PLLM_OK;
    for (int i = 0; i < 3; i++)
        if (layouts[i]) blas->layout_destroy(layouts[i]);
    return pllm_fail(PLLM_ENOMEM, 0, "cuBLASLt has no memory for a layout");
}

static void layouts_destroy(pllm_cuda_blas *blas, void *layouts[3])
{
    for (int i = 0; i < 3; i++) blas->layout_destroy(layouts[i]);
}

/* Does it add up each output in one walk over k? */
static int keeps_order(pllm_cuda_blas *blas, const blas_algorithm *algorithm)
{
    int32_t split = 0;
    uint32_t reduction = 1;
    size_t written;
    if (blas->algorithm_get(algorithm, BLAS_ALGORITHM_SPLIT_K, &split, sizeof split, &written))
        return 0;
    if (blas->algorithm_get(algorithm, BLAS_ALGORITHM_REDUCTION, &reduction, sizeof reduction,
                            &written))
        return 0;
    return split <= 1 && reduction == 0;
}

/* Does it take every number of rows? Asked for some that differ in what divides them. */
static int takes_rows(pllm_cuda_blas *blas, const pllm_cuda_blas_product *p,
                      const blas_algorithm *algorithm)
{
    static const uint32_t some[] = {1, 7, 8, 16, 60, 129, 512, 8192};
    for (uint32_t i = 0; i < sizeof some / sizeof some[0]; i++) {
        void *layouts[3];
        blas_result result = {0};
        if (layouts_create(blas, p, some[i], layouts) < 0) return 0;
        int refused = blas->check(blas->handle, blas->desc, layouts[0], layouts[1], layouts[2],
                                  layouts[2], algorithm, &result);
        layouts_destroy(blas, layouts);
        if (refused || result.workspace_bytes > PLLM_CUDA_BLAS_WORKSPACE) return 0;
    }
    return 1;
}

static int choose(pllm_cuda_blas *blas, const pllm_cuda_blas_product *p, pinned *pin)
{
    void *layouts[3], *preference = NULL;
    int status = layouts_create(blas, p, pin->asked ? pin->asked : REFERENCE_ROWS, layouts);
    if (status < 0) return status;
    uint64_t workspace = PLLM_CUDA_BLAS_WORKSPACE;
    uint32_t reduction = 0, alignment = pin->aligned ? 16 : 4;
    blas_result results[CANDIDATES];
    int count = 0;
    if (blas->preference_create(&preference)) {
        status = pllm_fail(PLLM_ENOMEM, 0, "cuBLASLt has no memory for a preference");
        goto done;
    }
    blas->preference_set(preference, BLAS_PREFERENCE_WORKSPACE, &workspace, sizeof workspace);
    blas->preference_set(preference, BLAS_PREFERENCE_REDUCTION, &reduction, sizeof reduction);
    for (int i = 0; i < 4; i++)
        blas->preference_set(preference, BLAS_PREFERENCE_ALIGNMENT_A + i, &alignment,
                             sizeof alignment);
    if (blas->heuristic(blas->handle, blas->desc, layouts[0], layouts[1], layouts[2], layouts[2],
                        preference, CANDIDATES, results, &count))
        count = 0;
    uint32_t skipped = 0;
    for (int i = 0; i < count && !pin->found; i++) {
        if (results[i].state || !keeps_order(blas, &results[i].algorithm) ||
            !takes_rows(blas, p, &results[i].algorithm))
            continue;
        if (skipped++ < pin->candidate) continue;
        pin->algorithm = results[i].algorithm;
        pin->found = 1;
    }
    blas->preference_destroy(preference);
done:
    layouts_destroy(blas, layouts);
    return status;
}

/* The algorithm for a shape, chosen at its first use. */
static int find(pllm_cuda_blas *blas, const pllm_cuda_blas_product *p, pinned **pin_out)
{
    uint32_t bytes = p->out_dtype == PLLM_F32 ? 4 : 2;
    uint64_t all = p->x | p->w | p->out | p->x_stride * 2 | p->w_stride * 2 | p->out_stride * bytes;
    pinned wanted = {p->n,         p->k,     p->dtype, p->out_dtype, p->add, all % 16 == 0,
                     p->candidate, p->asked, 0,        {{0}}};
    for (uint32_t i = 0; i < blas->pinned_count; i++) {
        pinned *pin = &blas->pinned[i];
        if (pin->n == wanted.n && pin->k == wanted.k && pin->dtype == wanted.dtype &&
            pin->out_dtype == wanted.out_dtype && pin->add == wanted.add &&
            pin->aligned == wanted.aligned && pin->candidate == wanted.candidate &&
            pin->asked == wanted.asked) {
            *pin_out = pin;
            return PLLM_OK;
        }
    }
    if (blas->pinned_count == PINNED_MAX) return PLLM_EUNSUPPORTED;
    int status = choose(blas, p, &wanted);
    if (status < 0) return status;
    *pin_out = &blas->pinned[blas->pinned_count++];
    **pin_out = wanted;
    return PLLM_OK;
}

int pllm_cuda_blas_multiply(pllm_cuda_blas *blas, pllm_stream *stream, pllm_va workspace,
                            const pllm_cuda_blas_product *p)
{
    pinned *pin;
    int status = pllm_cuda_make_current(blas->device);
    if (status < 0) return status;
    status = find(blas, p, &pin);
    if (status < 0) return status;
    if (!pin->found) return PLLM_EUNSUPPORTED;
    void *layouts[3];
    status = layouts_create(blas, p, p->m, layouts);
    if (status < 0) return status;
    float alpha = 1.0f, beta = p->add ? 1.0f : 0.0f;
    int native = blas->multiply(blas->handle, blas->desc, &alpha, (void *)(uintptr_t)p->w,
                                layouts[0], (void *)(uintptr_t)p->x, layouts[1], &beta,
                                (void *)(uintptr_t)p->out, layouts[2], (void *)(uintptr_t)p->out,
                                layouts[2], &pin->algorithm, (void *)(uintptr_t)workspace,
                                PLLM_CUDA_BLAS_WORKSPACE, pllm_cuda_stream_handle(stream));
    layouts_destroy(blas, layouts);
    if (!native) return PLLM_OK;
    return pllm_fail(PLLM_EDEVICE, native, "%s failed to multiply %u rows by %u x %u (status %d)",
                     blas->name, p->m, p->n, p->k, native);
}
