/* prefill.c - launches prompt attention: checks, the choice of a kernel, its grid and tensor maps.
 */
#include "kernels/cuda/prefill.h"
#include <stdio.h>
#include <string.h>
#include "base/context.h"
#include "device/cuda.h"
#include "kernels/cuda/fatbin.h"
#include "kernels/cuda/prefill_args.h"

enum {
    GENERIC_ROWS = 32,
    GENERIC_THREADS = 256,
    SM90_ROWS = 128,
    SM90_THREADS = 384,
    SM90_STAGES = 2,
    SM90_COUNTERS = 64, /* prefill_sm90.cu */
    MMA_ROWS = 128,
    MMA_TOKENS = 64,
    MMA_THREADS = 128,
};

struct pllm_cuda_prefill_kernels {
    const pllm_context *context;
    pllm_device *device;
    uint32_t major, sm_count;
    uint32_t launch_count; /* of sm90 */
    pllm_cuda_module *generic_module, *mma_module, *sm90_module;
    pllm_cuda_function *generic[3][3];    /* [f32, f16, bf16][head_dim to 64, 128, 256] */
    pllm_cuda_function *mma[8], *sm90[8]; /* tensor_index */
};

static uint32_t generic_shared_bytes(uint32_t head_dim)
{
    return 4 * (2 * GENERIC_ROWS * (head_dim + 4) + GENERIC_ROWS * (GENERIC_ROWS + 1));
}

static uint32_t sm90_shared_bytes(uint32_t head_dim)
{
    return (1 + 2 * SM90_STAGES) * SM90_ROWS * head_dim * 2 + 128; /* Q, ring, barriers and work */
}

static uint32_t mma_shared_bytes(uint32_t head_dim)
{
    return (MMA_ROWS + 2 * MMA_TOKENS) * head_dim * 2; /* Q, K, V */
}

static int generic_open(pllm_cuda_prefill_kernels *p)
{
    static const char *const types[3] = {"f32", "f16", "bf16"};
    int status = pllm_fatbin_load(p->device, "prefill_generic", &p->generic_module);
    for (uint32_t i = 0; status >= 0 && i < 9; i++) {
        char name[64];
        const uint32_t dim = 64u << i % 3;
        snprintf(name, sizeof(name), "pllm_prefill_generic_%s_%u", types[i / 3], dim);
        status = pllm_cuda_function_get(p->generic_module, name, generic_shared_bytes(dim),
                                        &p->generic[i / 3][i % 3]);
    }
    return status;
}

/* The eight kernels of a kind that uses tensor cores. */
static uint32_t tensor_index(pllm_dtype dtype, uint32_t head_dim, uint32_t distinct)
{
    return (dtype == PLLM_BF16) * 4u + (head_dim == 128) * 2u + (distinct != 0);
}

static int tensor_open(pllm_cuda_module *module, const char *kind,
                       uint32_t (*shared_bytes)(uint32_t head_dim), pllm_cuda_function **functions)
{
    int status = PLLM_OK;
    for (uint32_t i = 0; status >= 0 && i < 8; i++) {
        char name[64];
        const uint32_t head_dim = i / 2 % 2 ? 128 : 64;
        snprintf(name, sizeof(name), "pllm_prefill_%s_%s_%u%s", kind, i / 4 ? "bf16" : "f16",
                 head_dim, i % 2 ? "_distinct" : "");
        status = pllm_cuda_function_get(module, name, shared_bytes(head_dim), &functions[i]);
    }
    return status;
}

static int mma_open(pllm_cuda_prefill_kernels *p)
{
    int status = pllm_fatbin_load(p->device, "prefill_mma", &p->mma_module);
    if (status < 0) return status;
    return tensor_open(p->mma_module, "mma", mma_shared_bytes, p->mma);
}

static int sm90_open(pllm_cuda_prefill_kernels *p)
{
    int status = pllm_fatbin_load(p->device, "prefill_sm90", &p->sm90_module);
    if (status < 0) return status;
    return tensor_open(p->sm90_module, "sm90", sm90_shared_bytes, p->sm90);
}

int pllm_cuda_prefill_open(const pllm_context *context, pllm_device *device,
                           pllm_cuda_prefill_kernels **prefill_out)
{
    *prefill_out = NULL;
    pllm_cuda_attributes attributes = {.struct_bytes = sizeof(attributes)};
    int status = pllm_cuda_attributes_get(device, &attributes);
    if (status < 0) return status;
    if (attributes.major < 8)
        return pllm_fail(
            PLLM_EUNSUPPORTED, 0,
            "Prompt attention needs a GPU of compute capability 8.0 or later; this one "
            "has %u.%u.",
            attributes.major, attributes.minor);
    pllm_cuda_prefill_kernels *p = pllm_alloc(context, sizeof(*p));
    if (!p) return pllm_fail_memory("prompt attention", sizeof(*p));
    p->context = context;
    p->device = device;
    p->major = attributes.major;
    p->sm_count = attributes.sm_count;
    status = generic_open(p);
    if (status >= 0) status = mma_open(p);
    if (status >= 0 && p->major == 9) status = sm90_open(p);
    if (status < 0) {
        pllm_cuda_prefill_close(p);
        return status;
    }
    *prefill_out = p;
    return PLLM_OK;
}

void pllm_cuda_prefill_close(pllm_cuda_prefill_kernels *prefill)
{
    if (!prefill) return;
    if (prefill->sm90_module) pllm_cuda_module_close(prefill->sm90_module);
    if (prefill->mma_module) pllm_cuda_module_close(prefill->mma_module);
    if (prefill->generic_module) pllm_cuda_module_close(prefill->generic_module);
    pllm_free(prefill->context, prefill);
}

pllm_cuda_prefill_kernel pllm_cuda_prefill_choice(const pllm_cuda_prefill_kernels *prefill,
                                                  const pllm_cuda_prefill *f)
{
    const int tensor_cores = (f->head_dim == 64 || f->head_dim == 128) &&
                             (f->dtype == PLLM_F16 || f->dtype == PLLM_BF16);
    if (!tensor_cores) return PLLM_CUDA_PREFILL_GENERIC;
    return prefill->major == 9 ? PLLM_CUDA_PREFILL_SM90 : PLLM_CUDA_PREFILL_MMA;
}

static int plain(pllm_dtype dtype)
{
    return dtype == PLLM_F32 || dtype == PLLM_F16 || dtype == PLLM_BF16;
}

static int check(const pllm_cuda_prefill *f)
{
    if (!plain(f->dtype) || !plain(f->out_dtype))
        return pllm_fail(PLLM_EINVAL, 0, "Prompt attention works on f32, f16 and bf16, not on %s.",
                         pllm_dtype_name(plain(f->dtype) ? f->out_dtype : f->dtype));
    if (f->heads == 0 || f->kv_heads == 0 || f->heads % f->kv_heads || f->head_dim == 0 ||
        f->head_dim % 8 || f->head_dim > PLLM_HEAD_DIM_MAX)
        return pllm_fail(PLLM_EINVAL, 0,
                         "Prompt attention of %u heads over %u KV heads of %u channels is not "
                         "possible.",
                         f->heads, f->kv_heads, f->head_dim);
    const uint64_t element = pllm_dtype_block_bytes(f->dtype);
    const uint64_t slice = 2 * PLLM_BLOCK_TOKENS * f->head_dim * element;
    const uint64_t width = (uint64_t)f->heads * f->head_dim;
    if (f->sealed_bytes < f->kv_heads * slice || f->stage_bytes < f->kv_heads * slice ||
        f->q_stride < width || f->out_stride < width)
        return pllm_fail(PLLM_EINVAL, 0,
                         "Prompt attention was given blocks or rows shorter than its heads need.");
    const uint64_t out_element = pllm_dtype_block_bytes(f->out_dtype);
    if ((f->sealed | f->stage | f->sealed_bytes | f->stage_bytes | f->items) % 16 ||
        f->q_stride * element % 16 || f->q % 16 || f->out % 16 || f->out_stride * out_element % 16)
        return pllm_fail(PLLM_EINVAL, 0,
                         "Prompt attention needs blocks, rows and items aligned to 16 bytes.");
    if (!(f->scale > 0) || f->band > f->heads || (f->band && f->heads % f->band))
        return pllm_fail(PLLM_EINVAL, 0,
                         "Prompt attention was given a scale or band out of range.");
    return PLLM_OK;
}

/* Heads whose tiles run together, a divisor of heads: few find more of their keys and values in L2,
 * many balance better where a head has few tiles, since the long tiles of each start before any
 * short one. Measured with 32 heads: 4 against 8 gives +4% at 8K x 8K and -10% at 2K x 2K. */
static uint32_t band_choose(const pllm_cuda_prefill *f, uint32_t tiles)
{
    if (f->band) return f->band;
    uint32_t band = tiles < 32 ? 8 : 4;
    if (band > f->heads) band = f->heads;
    while (f->heads % band) band--;
    return band;
}

static int grid_fill(const pllm_cuda_prefill *f, uint32_t tile_rows, prefill_args *a,
                     pllm_cuda_grid *grid)
{
    /* An item that begins anywhere in a tile touches this many. */
    a->tiles = (uint32_t)(((uint64_t)f->row_max + 2 * tile_rows - 2) / tile_rows);
    a->band = band_choose(f, a->tiles);
    const uint64_t count = (uint64_t)f->item_count * f->heads * a->tiles;
    if (count > INT32_MAX)
        return pllm_fail(PLLM_EINVAL, 0,
                         "Prompt attention of %u items of up to %u rows is more than one launch "
                         "can do.",
                         f->item_count, f->row_max);
    grid->x = (uint32_t)count;
    return PLLM_OK;
}

static void args_fill(const pllm_cuda_prefill *f, prefill_args *a)
{
    const uint32_t row_bytes = f->head_dim * pllm_dtype_block_bytes(f->dtype);
    *a = (prefill_args){
        .sealed = f->sealed,
        .stage = f->stage,
        .table = f->table,
        .items = f->items,
        .q = f->q,
        .out = f->out,
        .sealed_bytes = f->sealed_bytes,
        .stage_bytes = f->stage_bytes,
        .table_stride = f->table_stride,
        .q_stride = f->q_stride,
        .out_stride = f->out_stride,
        .heads = f->heads,
        .kv_heads = f->kv_heads,
        .group = f->heads / f->kv_heads,
        .head_dim = f->head_dim,
        .item_count = f->item_count,
        .distinct = f->distinct,
        .out_dtype = f->out_dtype,
        .sealed_block_rows = (uint32_t)(f->sealed_bytes / row_bytes),
        .stage_block_rows = (uint32_t)(f->stage_bytes / row_bytes),
        .scale = f->scale,
        .scale_log2 = f->scale * 1.44269504088896340736f,
    };
}

static int generic_launch(pllm_cuda_prefill_kernels *p, pllm_stream *stream,
                          const pllm_cuda_prefill *f)
{
    prefill_args a;
    pllm_cuda_grid grid = {.y = 1, .z = 1, .threads = GENERIC_THREADS};
    args_fill(f, &a);
    int status = grid_fill(f, GENERIC_ROWS, &a, &grid);
    if (status < 0) return status;
    grid.shared_bytes = generic_shared_bytes(f->head_dim);
    const uint32_t size = f->head_dim <= 64 ? 0 : f->head_dim <= 128 ? 1 : 2;
    const uint32_t type = f->dtype == PLLM_F32 ? 0 : f->dtype == PLLM_F16 ? 1 : 2;
    void *arguments[] = {&a};
    return pllm_cuda_launch(p->device, stream, p->generic[type][size], &grid, arguments);
}

static int mma_launch(pllm_cuda_prefill_kernels *p, pllm_stream *stream, const pllm_cuda_prefill *f)
{
    prefill_args a;
    pllm_cuda_grid grid = {.y = 1, .z = 1, .threads = MMA_THREADS};
    args_fill(f, &a);
    int status = grid_fill(f, MMA_ROWS, &a, &grid);
    if (status < 0) return status;
    grid.shared_bytes = mma_shared_bytes(f->head_dim);
    void *arguments[] = {&a};
    return pllm_cuda_launch(p->device, stream,
                            p->mma[tensor_index(f->dtype, f->head_dim, f->distinct)], &grid,
                            arguments);
}

/* The pool as a matrix of rows of head_dim elements; boxes are the 32 rows of one head's keys or
 * values in one block, 64 columns of them. */
static int map_make(pllm_cuda_prefill_kernels *p, const pllm_cuda_prefill *f, pllm_va base,
                    uint64_t block_bytes, uint64_t count, prefill_tensor_map *map)
{
    const uint64_t row_bytes = (uint64_t)f->head_dim * 2;
    const uint64_t rows = count * (block_bytes / row_bytes);
    if (block_bytes % row_bytes || rows > INT32_MAX)
        return pllm_fail(
            PLLM_EINVAL, 0,
            "A pool of %llu blocks of %llu bytes is not a matrix of rows of %llu bytes "
            "that a tensor copy can address.",
            (unsigned long long)count, (unsigned long long)block_bytes,
            (unsigned long long)row_bytes);
    return pllm_cuda_tensor_map_2d(p->device, map, base, 2, rows ? rows : 1, f->head_dim, row_bytes,
                                   PLLM_BLOCK_TOKENS, 64, 1);
}

static int sm90_launch(pllm_cuda_prefill_kernels *p, pllm_stream *stream,
                       const pllm_cuda_prefill *f)
{
    prefill_args a;
    prefill_tensor_map sealed, stage;
    pllm_cuda_grid grid = {.y = 1, .z = 1, .threads = SM90_THREADS};
    args_fill(f, &a);
    int status = grid_fill(f, SM90_ROWS, &a, &grid);
    if (status >= 0) status = map_make(p, f, f->stage, f->stage_bytes, f->stage_count, &stage);
    if (status < 0) return status;
    if (f->sealed_count > 0)
        status = map_make(p, f, f->sealed, f->sealed_bytes, f->sealed_count, &sealed);
    else
        sealed = stage; /* never read */
    if (status < 0) return status;
    grid.shared_bytes = sm90_shared_bytes(f->head_dim);
    a.work_count = grid.x;
    a.counter = p->launch_count++ % SM90_COUNTERS;
    if (grid.x > p->sm_count) grid.x = p->sm_count; /* one CTA fits an SM, and stays */
    void *arguments[] = {&a, &sealed, &stage};
    return pllm_cuda_launch(p->device, stream,
                            p->sm90[tensor_index(f->dtype, f->head_dim, f->distinct)], &grid,
                            arguments);
}

int pllm_cuda_attend_prefill(pllm_cuda_prefill_kernels *prefill, pllm_stream *stream,
                             const pllm_cuda_prefill *f)
{
    int status = check(f);
    if (status < 0) return status;
    if (f->item_count == 0 || f->row_max == 0) return PLLM_OK;
    const pllm_cuda_prefill_kernel best = pllm_cuda_prefill_choice(prefill, f);
    const pllm_cuda_prefill_kernel kernel = f->kernel ? f->kernel : best;
    if (kernel == PLLM_CUDA_PREFILL_GENERIC) return generic_launch(prefill, stream, f);
    if (kernel == PLLM_CUDA_PREFILL_MMA && best != PLLM_CUDA_PREFILL_GENERIC)
        return mma_launch(prefill, stream, f);
    if (kernel == PLLM_CUDA_PREFILL_SM90 && best == PLLM_CUDA_PREFILL_SM90)
        return sm90_launch(prefill, stream, f);
    return pllm_fail(PLLM_EUNSUPPORTED, 0,
                     "The prompt attention kernel asked for does not run on this device with "
                     "head_dim %u and %s.",
                     f->head_dim, pllm_dtype_name(f->dtype));
}
