/* attention.c - checks and launches of the attention kernels. */
#include <stdio.h>
#include "base/context.h"
#include "device/cuda.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_arguments.h"
#include "kernels/cuda/fatbin.h"

enum {
    TILE_HEADS = 4, /* query heads of a multiply of attention_decode.cu */
    CTA_HEADS = 8,  /* a CTA has one tile or two */
    DECODE_WARPS = 4,
    DECODE_THREADS = 128,
    GENERIC_THREADS = 256,
    MERGE_THREADS = 256,
    MERGE_CHANNELS = 32, /* of the narrow kernel, twice as many of the broad one */
    MERGE_HEADS = 256,   /* with more heads in all, and at most */
    MERGE_CHUNKS = 16,   /* of these each, the broad one */
    SEAL_THREADS = 128,
    WIDE_PER_SM = 2,  /* wide kernels have room for this */
    GRID_MAX = 65535, /* y and z of a grid */
    CHUNKS_PER_CTA = 4,
    GRID_CTAS = 1 << 12, /* CTAs with nothing to do cost time too */
};

enum { MODULE_DECODE, MODULE_GENERIC, MODULE_MERGE, MODULE_SEAL, MODULES };
static const char *const module_names[MODULES] = {"attention_decode", "attention_generic",
                                                  "attention_merge", "attention_seal"};

typedef struct fast_kernel {
    pllm_dtype format;
    uint32_t head_dim;
    uint32_t per_sm; /* CTAs; as its __launch_bounds__ say */
    const char *name;
    int wide; /* has a form for grids of few CTAs */
} fast_kernel;
static const fast_kernel fast_kernels[] = {
    {PLLM_F16, 64, 4, "f16_64", 1},   {PLLM_F16, 128, 3, "f16_128", 1},
    {PLLM_BF16, 64, 4, "bf16_64", 1}, {PLLM_BF16, 128, 3, "bf16_128", 1},
    {PLLM_INT8, 64, 4, "int8_64", 0}, {PLLM_INT8, 128, 3, "int8_128", 0},
    {PLLM_INT4, 64, 4, "int4_64", 0}, {PLLM_INT4, 128, 4, "int4_128", 0},
};
enum { FAST_KERNELS = sizeof fast_kernels / sizeof *fast_kernels };

struct pllm_cuda_attention {
    const pllm_context *context;
    pllm_device *device;
    uint32_t sm_count, shared_max;
    pllm_cuda_module *modules[MODULES];
    pllm_cuda_function *fast[FAST_KERNELS][2], *wide[FAST_KERNELS][2], *generic, *merge[2], *seal,
        *expand;
};

/* Dynamic shared memory of a fast kernel: `layout`, `query` and `results` in attention_decode.cu.
 */
static uint32_t fast_shared_bytes(const pllm_kv_shape *shape, uint32_t tiles, int wide)
{
    uint32_t plain_half = PLLM_BLOCK_TOKENS * shape->head_dim * 2, slot = plain_half, extra = 0;
    if (shape->sealed == PLLM_INT8 || shape->sealed == PLLM_INT4) {
        slot = (uint32_t)pllm_kv_slice_bytes(shape, shape->sealed);
        extra = slot < plain_half ? plain_half : 0;
    }
    uint32_t query = 16 * tiles * shape->head_dim + 4 * CTA_HEADS * (DECODE_WARPS + 1);
    uint32_t results = 2 * 4 * CTA_HEADS * (DECODE_WARPS + 1);
    return DECODE_WARPS * (wide ? 3 : 2) * slot + extra + query + results;
}

/* `chunk_shared` in attention_generic.cu. */
static uint32_t generic_shared_bytes(void)
{
    return 4 * (PLLM_GROUP_MAX * PLLM_HEAD_DIM_MAX + PLLM_GROUP_MAX * PLLM_CHUNK_TOKENS +
                GENERIC_THREADS * 8 + 2 * PLLM_GROUP_MAX) +
           8 * PLLM_CHUNK_BLOCKS;
}

static uint32_t expand_shared_bytes(const pllm_kv_shape *shape)
{
    return (uint32_t)pllm_kv_slice_bytes(shape, shape->sealed);
}

static uint32_t seal_shared_bytes(const pllm_kv_shape *shape)
{
    return PLLM_BLOCK_TOKENS * (shape->head_dim + 2) * 2;
}

static int get_fast(pllm_cuda_attention *attention, uint32_t i, const pllm_kv_shape *shape,
                    uint32_t tiles, int wide, pllm_cuda_function **function_out)
{
    char name[64];
    snprintf(name, sizeof name, "pllm_attend_%s_%u%s", fast_kernels[i].name, tiles * TILE_HEADS,
             wide ? "_wide" : "");
    return pllm_cuda_function_get(attention->modules[MODULE_DECODE], name,
                                  fast_shared_bytes(shape, tiles, wide), function_out);
}

static int get_functions(pllm_cuda_attention *attention)
{
    pllm_kv_shape shape;
    int status;
    for (uint32_t i = 0; i < FAST_KERNELS; i++) {
        status = pllm_kv_shape_init(&shape, fast_kernels[i].format, 1, fast_kernels[i].head_dim);
        if (status < 0) return status;
        for (uint32_t tiles = 1; tiles <= 2; tiles++) {
            status = get_fast(attention, i, &shape, tiles, 0, &attention->fast[i][tiles - 1]);
            if (status < 0) return status;
            if (!fast_kernels[i].wide ||
                attention->shared_max < fast_shared_bytes(&shape, tiles, 1))
                continue;
            status = get_fast(attention, i, &shape, tiles, 1, &attention->wide[i][tiles - 1]);
            if (status < 0) return status;
        }
    }
    status = pllm_cuda_function_get(attention->modules[MODULE_GENERIC], "pllm_attend_generic",
                                    generic_shared_bytes(), &attention->generic);
    if (status < 0) return status;
    status = pllm_cuda_function_get(attention->modules[MODULE_MERGE], "pllm_attend_merge_32", 0,
                                    &attention->merge[0]);
    if (status < 0) return status;
    status = pllm_cuda_function_get(attention->modules[MODULE_MERGE], "pllm_attend_merge_64", 0,
                                    &attention->merge[1]);
    if (status < 0) return status;
    status = pllm_kv_shape_init(&shape, PLLM_INT8, 1, PLLM_HEAD_DIM_MAX);
    if (status < 0) return status;
    status = pllm_cuda_function_get(attention->modules[MODULE_SEAL], "pllm_kv_seal",
                                    seal_shared_bytes(&shape), &attention->seal);
    if (status < 0) return status;
    return pllm_cuda_function_get(attention->modules[MODULE_SEAL], "pllm_kv_expand",
                                  expand_shared_bytes(&shape), &attention->expand);
}

int pllm_cuda_attention_open(const pllm_context *context, pllm_device *device,
                             pllm_cuda_attention **attention_out)
{
    *attention_out = NULL;
    pllm_cuda_attention *attention = pllm_alloc(context, sizeof *attention);
    if (!attention) return pllm_fail_memory("CUDA attention", sizeof *attention);
    attention->context = context;
    attention->device = device;
    pllm_cuda_attributes attributes = {.struct_bytes = sizeof attributes};
    int status = pllm_cuda_attributes_get(device, &attributes);
    if (status < 0) goto fail;
    attention->sm_count = attributes.sm_count;
    attention->shared_max = attributes.shared_per_block_max;
    for (uint32_t i = 0; i < MODULES; i++) {
        status = pllm_fatbin_load(device, module_names[i], &attention->modules[i]);
        if (status < 0) goto fail;
    }
    status = get_functions(attention);
    if (status < 0) goto fail;
    *attention_out = attention;
    return PLLM_OK;
fail:
    pllm_cuda_attention_close(attention);
    return status;
}

void pllm_cuda_attention_close(pllm_cuda_attention *attention)
{
    if (!attention) return;
    for (uint32_t i = 0; i < MODULES; i++) pllm_cuda_module_close(attention->modules[i]);
    pllm_free(attention->context, attention);
}

uint64_t pllm_cuda_attention_partial_bytes(const pllm_cuda_kv *kv, uint32_t rows)
{
    return (uint64_t)rows * kv->heads * kv->chunk_max * (kv->shape.head_dim + 2) * sizeof(float);
}

static int check_kv(const pllm_cuda_kv *kv)
{
    uint32_t kv_heads = kv->shape.kv_heads;
    if (kv_heads == 0 || kv->heads % kv_heads != 0 || kv->heads / kv_heads > PLLM_GROUP_MAX ||
        kv->heads == 0)
        return pllm_fail(PLLM_EINVAL, 0,
                         "%u query heads over %u KV heads: a KV head serves 1 to %d query heads",
                         kv->heads, kv_heads, PLLM_GROUP_MAX);
    if (kv->frame_bytes < pllm_kv_slice_bytes(&kv->shape, kv->shape.sealed) * kv_heads ||
        kv->open_bytes < pllm_kv_slice_bytes(&kv->shape, kv->shape.open) * kv_heads ||
        kv->frame_bytes % 16 || kv->open_bytes % 16 || kv->frames % 16 || kv->open % 16)
        return pllm_fail(
            PLLM_EINVAL, 0,
            "frames of %llu bytes and open blocks of %llu do not hold the block, or are "
            "not aligned to 16 bytes",
            (unsigned long long)kv->frame_bytes, (unsigned long long)kv->open_bytes);
    return PLLM_OK;
}

static int decode_arguments(const pllm_cuda_decode *decode, pllm_attend_arguments *a)
{
    const pllm_cuda_kv *kv = decode->kv;
    int status = check_kv(kv);
    if (status < 0) return status;
    if (decode->rows > GRID_MAX || decode->layer >= kv->layer_count || decode->q % 16 ||
        decode->q_stride % 4 || decode->partials % 16)
        return pllm_fail(PLLM_EINVAL, 0,
                         "attention of %u rows in layer %u of %u: at most %d rows, q's rows and "
                         "partials aligned to 16 bytes",
                         decode->rows, decode->layer, kv->layer_count, GRID_MAX);
    *a = (pllm_attend_arguments){
        .frames = kv->frames,
        .frame_bytes = kv->frame_bytes,
        .open = kv->open,
        .open_bytes = kv->open_bytes,
        .q = decode->q,
        .q_stride = decode->q_stride,
        .row_slot = decode->row_slot,
        .row_length = decode->row_length,
        .table = decode->table,
        .table_stride = decode->table_stride,
        .chunk_first = decode->row_chunk_first,
        .chunk_end = decode->row_chunk_end,
        .partials = decode->partials,
        .sealed_slice = (uint32_t)pllm_kv_slice_bytes(&kv->shape, kv->shape.sealed),
        .open_slice = (uint32_t)pllm_kv_slice_bytes(&kv->shape, kv->shape.open),
        .layer = decode->layer,
        .layer_count = kv->layer_count,
        .chunk_max = kv->chunk_max,
        .heads = kv->heads,
        .kv_heads = kv->shape.kv_heads,
        .group = kv->heads / kv->shape.kv_heads,
        .head_tiles = 1,
        .head_dim = kv->shape.head_dim,
        .window = kv->window,
        .sealed = kv->shape.sealed,
        .open_dtype = kv->shape.open,
        .out_dtype = decode->out_dtype,
        .scale = kv->scale * 0x1.715476p+0f, /* log2(e) */
    };
    return PLLM_OK;
}

/* Chunks side by side. CTAs go on to chunks a grid's height further without a pause in their
 * copies. That gains where instructions bind, in quantised formats, and costs balance: there one
 * row gets the CTAs that run at once, several get a CTA for four chunks; others one a chunk, up to
 * a number. */
static uint32_t grid_chunks(const pllm_cuda_decode *decode, uint64_t columns, uint64_t at_once)
{
    pllm_dtype sealed = decode->kv->shape.sealed;
    int quantised = sealed == PLLM_INT8 || sealed == PLLM_INT4;
    uint64_t bound = decode->chunk_bound, chunks = GRID_CTAS / columns + 1;
    if (quantised && decode->rows == 1)
        chunks = at_once / columns;
    else if (quantised && bound * columns > at_once)
        bound = (bound + CHUNKS_PER_CTA - 1) / CHUNKS_PER_CTA;
    if (chunks == 0) chunks = 1;
    if (chunks > bound) chunks = bound;
    return (uint32_t)(chunks < GRID_MAX ? chunks : GRID_MAX);
}

int pllm_cuda_attend_decode(pllm_cuda_attention *attention, pllm_stream *stream,
                            const pllm_cuda_decode *decode)
{
    pllm_attend_arguments a;
    int status = decode_arguments(decode, &a);
    if (status < 0 || decode->rows == 0 || decode->chunk_bound == 0) return status;
    pllm_cuda_function *function = attention->generic;
    pllm_cuda_grid grid = {.threads = GENERIC_THREADS,
                           .shared_bytes = generic_shared_bytes(),
                           .z = decode->rows,
                           .dependent = decode->dependent};
    const pllm_kv_shape *shape = &decode->kv->shape;
    pllm_cuda_function *wide = NULL;
    uint32_t per_sm = 4, tiles = a.group <= TILE_HEADS ? 1 : 2;
    for (uint32_t i = 0; i < FAST_KERNELS; i++)
        if (fast_kernels[i].format == shape->sealed && fast_kernels[i].head_dim == a.head_dim) {
            function = attention->fast[i][tiles - 1];
            wide = attention->wide[i][tiles - 1];
            per_sm = fast_kernels[i].per_sm;
            grid.threads = DECODE_THREADS;
            grid.shared_bytes = fast_shared_bytes(shape, tiles, 0);
            a.head_tiles = (a.group + CTA_HEADS - 1) / CTA_HEADS;
        }
    grid.x = a.kv_heads * a.head_tiles;
    uint64_t columns = (uint64_t)grid.x * grid.z;
    grid.y = grid_chunks(decode, columns, (uint64_t)attention->sm_count * per_sm);
    /* The same arithmetic in the same order, with more copies under way. */
    if (wide && columns * grid.y <= (uint64_t)attention->sm_count * WIDE_PER_SM) {
        function = wide;
        grid.shared_bytes = fast_shared_bytes(shape, tiles, 1);
    }
    void *arguments[] = {&a};
    return pllm_cuda_launch(attention->device, stream, function, &grid, arguments);
}

int pllm_cuda_attend_merge(pllm_cuda_attention *attention, pllm_stream *stream,
                           const pllm_cuda_decode *decode, pllm_va out, uint64_t out_stride)
{
    pllm_attend_arguments a;
    int status = decode_arguments(decode, &a);
    if (status < 0 || decode->rows == 0) return status;
    if (out % 8 || out_stride % 2 ||
        (decode->out_dtype != PLLM_F32 && decode->out_dtype != PLLM_F16 &&
         decode->out_dtype != PLLM_BF16))
        return pllm_fail(PLLM_EINVAL, 0,
                         "attention's result in %s with a stride of %llu: it is f32, f16 or bf16, "
                         "aligned to 8 bytes, with an even stride",
                         pllm_dtype_name(decode->out_dtype), (unsigned long long)out_stride);
    a.out = out;
    a.out_stride = out_stride;
    int broad =
        (uint64_t)a.heads * decode->rows > MERGE_HEADS && decode->chunk_bound <= MERGE_CHUNKS;
    uint32_t channels = broad ? 2 * MERGE_CHANNELS : MERGE_CHANNELS;
    pllm_cuda_grid grid = {.x = a.heads * ((a.head_dim + channels - 1) / channels),
                           .y = decode->rows,
                           .z = 1,
                           .threads = MERGE_THREADS,
                           .dependent = decode->dependent};
    void *arguments[] = {&a};
    return pllm_cuda_launch(attention->device, stream, attention->merge[broad], &grid, arguments);
}

static int launch_blocks(pllm_cuda_attention *attention, pllm_stream *stream,
                         pllm_cuda_function *function, pllm_seal_arguments *a, uint32_t count,
                         uint32_t shared_bytes)
{
    uint64_t item_bytes = a->pairs ? 8 : 4;
    for (uint32_t done = 0; done < count; done += GRID_MAX) {
        pllm_cuda_grid grid = {.x = a->kv_heads,
                               .y = count - done < GRID_MAX ? count - done : GRID_MAX,
                               .z = 1,
                               .threads = SEAL_THREADS,
                               .shared_bytes = shared_bytes};
        void *arguments[] = {a};
        int status = pllm_cuda_launch(attention->device, stream, function, &grid, arguments);
        if (status < 0) return status;
        if (a->pairs)
            a->pairs += item_bytes * grid.y;
        else
            a->table += item_bytes * grid.y, a->to += a->to_bytes * grid.y;
    }
    return PLLM_OK;
}

int pllm_cuda_seal(pllm_cuda_attention *attention, pllm_stream *stream, const pllm_cuda_kv *kv,
                   pllm_va from_blocks, uint64_t from_bytes, pllm_va pairs, uint32_t count)
{
    int status = check_kv(kv);
    if (status < 0) return status;
    pllm_seal_arguments a = {
        .from = from_blocks,
        .from_bytes = from_bytes,
        .to = kv->frames,
        .to_bytes = kv->frame_bytes,
        .pairs = pairs,
        .sealed = kv->shape.sealed,
        .open_dtype = kv->shape.open,
        .sealed_slice = (uint32_t)pllm_kv_slice_bytes(&kv->shape, kv->shape.sealed),
        .open_slice = (uint32_t)pllm_kv_slice_bytes(&kv->shape, kv->shape.open),
        .kv_heads = kv->shape.kv_heads,
        .head_dim = kv->shape.head_dim};
    if (from_blocks % 16 || from_bytes % 16)
        return pllm_fail(PLLM_EINVAL, 0, "blocks to seal must be aligned to 16 bytes");
    return launch_blocks(attention, stream, attention->seal, &a, count,
                         seal_shared_bytes(&kv->shape));
}

int pllm_cuda_expand(pllm_cuda_attention *attention, pllm_stream *stream, const pllm_cuda_kv *kv,
                     pllm_va table, uint32_t count, pllm_va to, uint64_t to_bytes)
{
    int status = check_kv(kv);
    if (status < 0) return status;
    if (kv->shape.sealed != PLLM_INT8 && kv->shape.sealed != PLLM_INT4)
        return pllm_fail(PLLM_EINVAL, 0, "%s blocks are plain already; only int8 and int4 expand",
                         pllm_dtype_name(kv->shape.sealed));
    if (to % 16 || to_bytes % 16)
        return pllm_fail(PLLM_EINVAL, 0, "blocks to expand into must be aligned to 16 bytes");
    pllm_seal_arguments a = {
        .from = kv->frames,
        .from_bytes = kv->frame_bytes,
        .to = to,
        .to_bytes = to_bytes,
        .table = table,
        .sealed = kv->shape.sealed,
        .open_dtype = kv->shape.open,
        .sealed_slice = (uint32_t)pllm_kv_slice_bytes(&kv->shape, kv->shape.sealed),
        .open_slice = (uint32_t)pllm_kv_slice_bytes(&kv->shape, kv->shape.open),
        .kv_heads = kv->shape.kv_heads,
        .head_dim = kv->shape.head_dim};
    return launch_blocks(attention, stream, attention->expand, &a, count,
                         expand_shared_bytes(&kv->shape));
}
