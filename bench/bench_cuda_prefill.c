/* bench_cuda_prefill.c - how near to the tensor cores' rate does prompt attention come?
 *
 * Question: TFLOP/s of causal attention over paged blocks, counting 4 * heads * head_dim for each
 * (row, token it sees). Bound: 989 TFLOP/s dense f16 on an H100 or H200 by their data sheet, about
 * 800 in long matrix products at the clocks they keep; cuDNN's attention reaches 604 (8K x 8K) to
 * 680 (8K rows over 64K) on the same machine, FlashAttention-2 320 to 350. Data are random; pool
 * blocks are shuffled. Best of several runs of enough launches to take 20 ms.
 *
 *   bench_cuda_prefill [--smoke] [--kernel generic|mma|sm90] [--band HEADS] */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <pagedllm/context.h>
#include "base/context.h"
#include "device/cuda.h"
#include "kernels/cuda/prefill.h"

enum { BLOCK = PLLM_BLOCK_TOKENS, STAGING_BYTES = 32 << 20 };

typedef struct bench {
    pllm_device *device;
    pllm_stream *stream;
    pllm_cuda_prefill_kernels *prefill;
    void *staging;
    pllm_cuda_prefill_kernel kernel;
    uint32_t band, smoke;
} bench;

typedef struct buffer {
    pllm_va va;
    uint64_t bytes;
    pllm_chunk *chunk;
} buffer;

static void must(int status)
{
    if (status >= 0) return;
    fprintf(stderr, "%s\n", pllm_last_error()->text);
    exit(1);
}

static void copy_in(bench *b, pllm_va to, const void *from, uint64_t bytes)
{
    pllm_copy copy = {.to = to, .from = (uint64_t)(uintptr_t)from, .bytes = bytes};
    must(b->device->ops->copy(b->device, b->stream, PLLM_COPY_IN, &copy));
}

static buffer buffer_open(bench *b, uint64_t bytes)
{
    buffer to = {0};
    pllm_device_info info;
    must(b->device->ops->info(b->device, &info));
    to.bytes =
        (bytes + info.granularity_bytes - 1) / info.granularity_bytes * info.granularity_bytes;
    must(b->device->ops->reserve(b->device, to.bytes, &to.va));
    must(b->device->ops->chunk_create(b->device, to.bytes, &to.chunk));
    must(b->device->ops->map(b->device, to.va, &to.chunk, 1));
    for (uint64_t at = 0; at < to.bytes; at += STAGING_BYTES)
        copy_in(b, to.va + at, b->staging,
                to.bytes - at < STAGING_BYTES ? to.bytes - at : STAGING_BYTES);
    return to;
}

static void buffer_close(bench *b, buffer *it)
{
    b->device->ops->unmap(b->device, it->va, it->chunk);
    b->device->ops->chunk_destroy(b->device, it->chunk);
    b->device->ops->release(b->device, it->va, it->bytes);
}

/* Between 0.5 and 1 in size, either sign. */
static void values_make(bench *b, pllm_dtype dtype)
{
    uint16_t *values = b->staging;
    must(b->device->ops->stream_sync(b->device, b->stream));
    for (uint32_t i = 0; i < STAGING_BYTES / 2; i++) {
        const uint32_t bits = (uint32_t)rand() >> 8;
        values[i] = (uint16_t)((bits & 0x8000) +
                               (dtype == PLLM_F16 ? 0x3800 + bits % 0x400 : 0x3f00 + bits % 0x80));
    }
}

static double run(bench *b, const pllm_cuda_prefill *f, uint32_t count)
{
    const pllm_device_ops *ops = b->device->ops;
    must(ops->stream_sync(b->device, b->stream));
    const uint64_t start = ops->now_ns(b->device);
    for (uint32_t i = 0; i < count; i++) must(pllm_cuda_attend_prefill(b->prefill, b->stream, f));
    must(ops->stream_sync(b->device, b->stream));
    return 1e-9 * (double)(ops->now_ns(b->device) - start);
}

typedef struct shape {
    const char *name;
    uint32_t heads, kv_heads, head_dim;
} shape;

static void measure(bench *b, const shape *s, pllm_dtype dtype, uint32_t rows, uint32_t context,
                    uint32_t distinct)
{
    const uint64_t block_bytes = (uint64_t)s->kv_heads * 2 * BLOCK * s->head_dim * 2;
    const uint32_t width = s->heads * s->head_dim, blocks = context / BLOCK;
    buffer pool = buffer_open(b, blocks * block_bytes);
    buffer stage = buffer_open(b, (rows / BLOCK + 1) * block_bytes);
    buffer table = buffer_open(b, (uint64_t)blocks * 4);
    buffer items = buffer_open(b, sizeof(pllm_cuda_prefill_item));
    buffer q = buffer_open(b, (uint64_t)rows * width * 2);
    buffer out = buffer_open(b, (uint64_t)rows * width * 2);
    uint32_t *entries = calloc(blocks, sizeof(*entries));
    if (!entries) exit(1);
    for (uint32_t i = 0; i < blocks; i++) {
        const uint32_t j = (uint32_t)rand() % (i + 1);
        entries[i] = entries[j];
        entries[j] = i;
    }
    copy_in(b, table.va, entries, (uint64_t)blocks * 4);
    const pllm_cuda_prefill_item item = {.rows = rows, .position = context - rows};
    copy_in(b, items.va, &item, sizeof(item));
    const pllm_cuda_prefill f = {
        .heads = s->heads,
        .kv_heads = s->kv_heads,
        .head_dim = s->head_dim,
        .dtype = dtype,
        .scale = s->head_dim == 128 ? 0.08838834764f : 0.125f,
        .sealed = pool.va,
        .sealed_bytes = block_bytes,
        .sealed_count = blocks,
        .table = table.va,
        .table_stride = blocks,
        .stage = stage.va,
        .stage_bytes = block_bytes,
        .stage_count = rows / BLOCK,
        .distinct = distinct,
        .items = items.va,
        .item_count = 1,
        .row_max = rows,
        .q = q.va,
        .q_stride = width,
        .out = out.va,
        .out_dtype = dtype,
        .out_stride = width,
        .band = s->heads % (b->band ? b->band : 1) ? 0 : b->band,
        .kernel = b->kernel,
    };
    const double pairs = (double)rows * (context - rows) + (double)rows * (rows + 1.0) / 2;
    const double work = 4.0 * s->heads * s->head_dim * pairs;
    run(b, &f, 1);
    double best = run(b, &f, 1);
    if (!b->smoke) {
        uint32_t count = (uint32_t)(0.02 / best) + 1;
        for (uint32_t i = 0; i < 5; i++) {
            const double time = run(b, &f, count) / count;
            if (time < best) best = time;
        }
    }
    printf("%-14s %-5s%s %6u x %6u  %9.3f ms  %6.1f TFLOP/s  %4.1f%% of 989\n", s->name,
           pllm_dtype_name(dtype), distinct ? " distinct" : "         ", rows, context, 1e3 * best,
           1e-12 * work / best, 100 * 1e-12 * work / best / 989);
    fflush(stdout);
    free(entries);
    buffer *all[] = {&pool, &stage, &table, &items, &q, &out};
    for (uint32_t i = 0; i < 6; i++) buffer_close(b, all[i]);
}

int main(int argc, char **argv)
{
    bench b = {0};
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--smoke") == 0) b.smoke = 1;
        if (strcmp(argv[i], "--band") == 0 && i + 1 < argc) b.band = (uint32_t)atoi(argv[++i]);
        if (strcmp(argv[i], "--kernel") == 0 && i + 1 < argc) {
            const char *name = argv[++i];
            b.kernel = strcmp(name, "generic") == 0 ? PLLM_CUDA_PREFILL_GENERIC
                       : strcmp(name, "mma") == 0   ? PLLM_CUDA_PREFILL_MMA
                                                    : PLLM_CUDA_PREFILL_SM90;
        }
    }
    const pllm_cuda_device_options options = {.struct_bytes = sizeof(options)};
    must(pllm_device_open_cuda(NULL, &options, &b.device));
    must(b.device->ops->stream_open(b.device, &b.stream));
    must(b.device->ops->host_alloc(b.device, STAGING_BYTES, &b.staging));
    must(pllm_cuda_prefill_open(NULL, b.device, &b.prefill));
    static const shape shapes[] = {
        {"llama-2-7b", 32, 32, 128}, {"llama-3.1-8b", 32, 8, 128}, {"llama-3.2-1b", 32, 8, 64}};
    static const uint32_t sizes[][2] = {{2048, 2048}, {8192, 8192}, {2048, 32768}, {2048, 65536}};
    const uint32_t count = b.smoke ? 1 : b.kernel == PLLM_CUDA_PREFILL_GENERIC ? 2 : 4;
    values_make(&b, PLLM_BF16);
    for (uint32_t i = 0; i < 2; i++)
        for (uint32_t j = 0; j < count; j++)
            measure(&b, &shapes[i], PLLM_BF16, sizes[j][0], sizes[j][1], 0);
    values_make(&b, PLLM_F16);
    measure(&b, &shapes[0], PLLM_F16, sizes[count - 1][0], sizes[count - 1][1], 0);
    measure(&b, &shapes[0], PLLM_F16, sizes[count - 1][0], sizes[count - 1][1], 1);
    measure(&b, &shapes[2], PLLM_F16, sizes[1 % count][0], sizes[1 % count][1], 0);
    measure(&b, &shapes[2], PLLM_F16, sizes[count - 1][0], sizes[count - 1][1], 0);
    pllm_cuda_prefill_close(b.prefill);
    b.device->ops->host_free(b.device, b.staging, STAGING_BYTES);
    b.device->ops->stream_close(b.device, b.stream);
    pllm_device_close(b.device);
    return 0;
}
