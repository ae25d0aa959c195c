/* Question: how near is decode attention to reading its keys and values once?
 * One layer's KV at 512 to 64K tokens, batch 1 and 16, for the shapes of Llama-2-7B (32 KV heads)
 * and Llama-3.1-8B (8 KV heads, 4 query heads each), head_dim 128. Calls are nodes of a graph,
 * attend and merge in turn, over copies of the cache in other frames, more than any L2 in all
 * (shuffled tables). Bound: bytes of KV over the read bandwidth of this run. Predicted: 85% and
 * more where the cache is hundreds of MB; short ones are bound by latency: about 5 us for attend, 2
 * to 3 for merge. Also: merge alone, sealing and expanding, by bytes read and written.
 *
 *   bench_cuda_attention [--smoke] [--all] [--shape 7B] [--kv int8] [--context N] [--rows N] */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "device/cuda.h"
#include "kernels/attention.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/fatbin.h"

enum { MIB = 1 << 20, RUNS = 5, ROWS_MAX = 16, HEAD_DIM = 128, CHUNKS_MAX = 256 };

typedef struct bench {
    pllm_device *device;
    const pllm_device_ops *ops;
    pllm_stream *stream;
    pllm_cuda_attention *attention;
    pllm_cuda_module *module;
    pllm_cuda_function *read;
    pllm_va pool, open, small, partials, table;
    uint64_t pool_bytes, table_count;
    uint8_t *host;
    double read_gbps;
    int smoke;
} bench;

enum { HOST_BYTES = 32 * MIB, OPEN_BYTES = 16 * MIB, SMALL_BYTES = 4 * MIB };

static void must(int status)
{
    if (status >= 0) return;
    fprintf(stderr, "bench_cuda_attention: %s\n", pllm_last_error()->text);
    exit(1);
}

static pllm_va memory(bench *b, uint64_t bytes)
{
    pllm_va at;
    uint64_t part = bytes < 512 * (uint64_t)MIB ? bytes : 512 * (uint64_t)MIB;
    must(b->ops->reserve(b->device, bytes, &at));
    for (uint64_t done = 0; done < bytes; done += part) { /* until the program ends */
        pllm_chunk *chunk;
        must(b->ops->chunk_create(b->device, part, &chunk));
        must(b->ops->map(b->device, at + done, &chunk, 1));
    }
    return at;
}

static void sync(bench *b)
{
    must(b->ops->stream_sync(b->device, b->stream));
}

static void put(bench *b, pllm_va to, const void *from, uint64_t bytes)
{
    for (uint64_t done = 0; done < bytes; done += HOST_BYTES) {
        uint64_t part = bytes - done < HOST_BYTES ? bytes - done : HOST_BYTES;
        memcpy(b->host, (const uint8_t *)from + done, part);
        pllm_copy copy = {to + done, (pllm_va)(uintptr_t)b->host, part};
        must(b->ops->copy(b->device, b->stream, PLLM_COPY_IN, &copy));
        sync(b);
    }
}

static uint64_t seed = 1;
static uint32_t random_u32(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33);
}
static float uniform(void) /* -1..1 */
{
    return (float)((int32_t)random_u32() - (1 << 30)) * 0x1p-30f;
}

static void measure_read(bench *b)
{
    uint64_t count = b->pool_bytes / 16;
    uint32_t value = 0x12345;
    if (count > (uint64_t)4096 * MIB / 16) count = (uint64_t)4096 * MIB / 16;
    pllm_va sink = b->small;
    void *arguments[] = {&b->pool, &count, &sink, &value};
    pllm_cuda_attributes attributes = {.struct_bytes = sizeof attributes};
    must(pllm_cuda_attributes_get(b->device, &attributes));
    double best = 1e9;
    for (uint32_t ctas = 2; ctas <= 8; ctas *= 2)
        for (int run = 0; run < RUNS; run++) {
            pllm_cuda_grid grid = {.x = attributes.sm_count * ctas, .y = 1, .z = 1, .threads = 512};
            sync(b);
            uint64_t start = pllm_clock_ns();
            must(pllm_cuda_launch(b->device, b->stream, b->read, &grid, arguments));
            sync(b);
            double seconds = (double)(pllm_clock_ns() - start) * 1e-9;
            if (seconds < best) best = seconds;
        }
    b->read_gbps = (double)count * 16 / best * 1e-9;
    printf("read bandwidth %.0f GB/s (%.0f MiB)\n", b->read_gbps, (double)count * 16 / MIB);
}

/* The pool full of frames of this format: one block made on the CPU, doubled by copies. */
static void fill_pool(bench *b, pllm_cuda_kv *kv)
{
    uint32_t n = kv->shape.kv_heads * HEAD_DIM;
    uint8_t *open = malloc(kv->open_bytes), *sealed = calloc(1, kv->frame_bytes);
    float *k = malloc(n * sizeof *k), *v = malloc(n * sizeof *v);
    for (uint32_t row = 0; row < PLLM_BLOCK_TOKENS; row++) {
        for (uint32_t i = 0; i < n; i++) {
            k[i] = uniform();
            v[i] = uniform();
        }
        pllm_attention_reference.append(&kv->shape, open, row, k, v);
    }
    pllm_attention_reference.seal(&kv->shape, sealed, open);
    put(b, b->pool, sealed, kv->frame_bytes);
    uint64_t all = b->pool_bytes / kv->frame_bytes * kv->frame_bytes;
    for (uint64_t done = kv->frame_bytes; done < all;) {
        uint64_t part = done < all - done ? done : all - done;
        pllm_copy copy = {b->pool + done, b->pool, part};
        must(b->ops->copy(b->device, b->stream, PLLM_COPY_WITHIN, &copy));
        done += part;
    }
    for (uint64_t slot = 0; (slot + 1) * kv->open_bytes <= OPEN_BYTES; slot++)
        put(b, b->open + slot * kv->open_bytes, open, kv->open_bytes);
    free(open);
    free(sealed);
    free(k);
    free(v);
}

/* Small tables: lengths, slots, q. */
enum { LENGTHS = 0, SLOTS = 4096, PAIRS = 8192, QUERIES = MIB, OUT = 2 * MIB };

typedef struct shape {
    const char *name;
    uint32_t heads, kv_heads;
} shape;

/* Seconds a node, best of RUNS; which: 1 attend, 2 merge, 3 both. */
static double time_graph(bench *b, pllm_cuda_decode *d, uint32_t copies, uint64_t table_bytes,
                         int which, uint32_t dependent)
{
    uint32_t nodes = copies;
    while (nodes < 16) nodes += copies;
    pllm_cuda_graph *graph;
    pllm_va table = d->table;
    d->dependent = dependent;
    must(pllm_cuda_capture_begin(b->device, b->stream));
    for (uint32_t i = 0; i < nodes; i++) {
        d->table = table + i % copies * table_bytes;
        if (which & 1) must(pllm_cuda_attend_decode(b->attention, b->stream, d));
        if (which & 2)
            must(pllm_cuda_attend_merge(b->attention, b->stream, d, b->small + OUT,
                                        (uint64_t)d->kv->heads * HEAD_DIM));
    }
    must(pllm_cuda_capture_end(b->device, b->stream, &graph));
    d->table = table;
    double best = 1e9;
    for (int run = 0; run < (b->smoke ? 2 : RUNS); run++) {
        sync(b);
        uint64_t start = pllm_clock_ns();
        must(pllm_cuda_graph_launch(b->device, graph, b->stream));
        sync(b);
        double one = (double)(pllm_clock_ns() - start) * 1e-9 / nodes;
        if (one < best) best = one;
    }
    pllm_cuda_graph_close(graph);
    return best;
}

static void bench_decode(bench *b, pllm_cuda_kv *kv, const shape *s, uint32_t context,
                         uint32_t rows)
{
    uint32_t blocks = context / PLLM_BLOCK_TOKENS, lengths[ROWS_MAX], slots[ROWS_MAX];
    uint64_t slice = pllm_kv_slice_bytes(&kv->shape, kv->shape.sealed);
    uint64_t step_bytes = (uint64_t)rows * blocks * kv->frame_bytes;
    uint64_t frames = b->pool_bytes / kv->frame_bytes, per_copy = (uint64_t)rows * blocks;
    uint32_t copies = (uint32_t)(400ull * MIB / step_bytes) + 1;
    if (copies > 32) copies = 32;
    if (per_copy > frames || copies * per_copy > b->table_count) {
        printf("%-5s %-4s %6u x %2u  does not fit\n", s->name, pllm_dtype_name(kv->shape.sealed),
               context, rows);
        return;
    }
    if (copies * per_copy > frames) copies = (uint32_t)(frames / per_copy);
    uint32_t *table = malloc(copies * per_copy * sizeof *table);
    for (uint64_t i = 0; i < copies * per_copy; i++) {
        uint64_t j = random_u32() % (i + 1);
        table[i] = table[j];
        table[j] = (uint32_t)i;
    }
    for (uint32_t i = 0; i < rows; i++) lengths[i] = context, slots[i] = i;
    put(b, b->table, table, copies * per_copy * sizeof *table);
    put(b, b->small + LENGTHS, lengths, sizeof lengths);
    put(b, b->small + SLOTS, slots, sizeof slots);
    free(table);
    pllm_cuda_decode d = {.kv = kv,
                          .rows = rows,
                          .q = b->small + QUERIES,
                          .q_stride = (uint64_t)kv->heads * HEAD_DIM,
                          .row_slot = b->small + SLOTS,
                          .row_length = b->small + LENGTHS,
                          .table = b->table,
                          .table_stride = blocks,
                          .chunk_bound = (context + 255) / 256,
                          .partials = b->partials};
    uint64_t table_bytes = per_copy * sizeof(uint32_t);
    double bytes = (double)rows * s->kv_heads *
                   ((double)(blocks - 1) * (double)slice +
                    (double)pllm_kv_slice_bytes(&kv->shape, kv->shape.open));
    double attend = time_graph(b, &d, copies, table_bytes, 1, 0);
    double merge = time_graph(b, &d, copies, table_bytes, 2, 0);
    double both = time_graph(b, &d, copies, table_bytes, 3, 0);
    double chained = time_graph(b, &d, copies, table_bytes, 3, 1);
    printf("%-5s %-4s %6u x %2u %9.2f %9.2f %9.2f %9.2f %8.0f %5.0f%% %5.0f%%\n", s->name,
           pllm_dtype_name(kv->shape.sealed), context, rows, attend * 1e6, merge * 1e6, both * 1e6,
           chained * 1e6, bytes / attend * 1e-9, 100 * bytes / attend * 1e-9 / b->read_gbps,
           100 * bytes / chained * 1e-9 / b->read_gbps);
    fflush(stdout);
}

/* Seals `count` blocks (one step's: few; a prompt's: many), or expands them. */
static void bench_blocks(bench *b, pllm_cuda_kv *kv, const shape *s, uint32_t count, int expand)
{
    uint32_t *pairs = malloc(count * 2 * sizeof *pairs);
    pllm_va half = b->pool + b->pool_bytes / 2 / 4096 * 4096;
    double open = (double)pllm_kv_slice_bytes(&kv->shape, kv->shape.open) * s->kv_heads;
    double sealed = (double)pllm_kv_slice_bytes(&kv->shape, kv->shape.sealed) * s->kv_heads;
    for (uint32_t i = 0; i < count; i++) {
        pairs[expand ? i : 2 * i] = i;
        if (!expand) pairs[2 * i + 1] = count - 1 - i;
    }
    put(b, b->table, pairs, count * (expand ? 1 : 2) * sizeof *pairs);
    free(pairs);
    pllm_cuda_kv far =
        *kv; /* sealing reads open blocks in the second half, writes frames in the first */
    double best = 1e9;
    enum { CALLS = 10 };
    for (int run = 0; run < RUNS; run++) {
        sync(b);
        uint64_t start = pllm_clock_ns();
        for (int i = 0; i < CALLS; i++)
            if (expand)
                must(pllm_cuda_expand(b->attention, b->stream, &far, b->table, count, half,
                                      kv->open_bytes));
            else
                must(pllm_cuda_seal(b->attention, b->stream, &far, half, kv->open_bytes, b->table,
                                    count));
        sync(b);
        double one = (double)(pllm_clock_ns() - start) * 1e-9 / CALLS;
        if (one < best) best = one;
    }
    printf("%-5s %-4s %s %5u blocks %9.2f us %8.0f GB/s read and written\n", s->name,
           pllm_dtype_name(kv->shape.sealed), expand ? "expand" : "seal  ", count, best * 1e6,
           (open + sealed) * count / best * 1e-9);
}

static void bench_open(bench *b)
{
    must(pllm_device_open_cuda(NULL, NULL, &b->device));
    b->ops = b->device->ops;
    must(b->ops->stream_open(b->device, &b->stream));
    must(pllm_cuda_attention_open(NULL, b->device, &b->attention));
    const pllm_fatbin *probe = pllm_fatbin_find("probe");
    must(pllm_cuda_module_open(b->device, probe->data, probe->bytes, &b->module));
    must(pllm_cuda_function_get(b->module, "pllm_probe_read", 0, &b->read));
    must(b->ops->host_alloc(b->device, HOST_BYTES, (void **)&b->host));
    pllm_device_info info;
    must(b->ops->info(b->device, &info));
    uint64_t want = (b->smoke ? 1ull : 18ull) << 30;
    while (want > info.free_bytes / 2 && want > 1ull << 30) want /= 2;
    b->pool_bytes = want;
    b->pool = memory(b, b->pool_bytes);
    b->open = memory(b, OPEN_BYTES);
    b->small = memory(b, SMALL_BYTES);
    b->table_count = 1 << 20;
    b->table = memory(b, b->table_count * sizeof(uint32_t));
    b->partials = memory(b, 512 * (uint64_t)MIB);
    float *q = malloc(ROWS_MAX * 32 * HEAD_DIM * sizeof *q);
    for (uint32_t i = 0; i < ROWS_MAX * 32 * HEAD_DIM; i++) q[i] = uniform() * 2;
    put(b, b->small + QUERIES, q, ROWS_MAX * 32 * HEAD_DIM * sizeof *q);
    free(q);
    printf("%s\n", info.name);
}

int main(int argc, char **argv)
{
    static const shape shapes[] = {{"7B", 32, 32}, {"8B", 32, 8}};
    static const pllm_dtype formats[] = {PLLM_F16, PLLM_INT8, PLLM_INT4, PLLM_BF16};
    static const uint32_t contexts[] = {512, 2048, 8192, 32768, 65536};
    bench b = {0};
    uint32_t format_count = 3, only_context = 0, only_rows = 0;
    const char *only_shape = NULL, *only_kv = NULL;
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(argv[i], "--smoke") == 0) b.smoke = 1;
        if (strcmp(argv[i], "--all") == 0) format_count = 4;
        if (strcmp(argv[i], "--shape") == 0) only_shape = value;
        if (strcmp(argv[i], "--kv") == 0) only_kv = value;
        if (strcmp(argv[i], "--context") == 0) only_context = (uint32_t)atoi(value);
        if (strcmp(argv[i], "--rows") == 0) only_rows = (uint32_t)atoi(value);
    }
    bench_open(&b);
    for (uint32_t i = 0; i < 2; i++)
        for (uint32_t f = 0; f < format_count; f++) {
            if (only_shape && strcmp(only_shape, shapes[i].name) != 0) continue;
            if (only_kv && strcmp(only_kv, pllm_dtype_name(formats[f])) != 0) continue;
            pllm_cuda_kv kv = {.heads = shapes[i].heads, .scale = 0.08838835f, .layer_count = 1};
            must(pllm_kv_shape_init(&kv.shape, formats[f], shapes[i].kv_heads, HEAD_DIM));
            kv.frames = b.pool;
            kv.open = b.open;
            kv.frame_bytes = pllm_kv_block_bytes(&kv.shape, kv.shape.sealed);
            kv.open_bytes = pllm_kv_block_bytes(&kv.shape, kv.shape.open);
            kv.chunk_max = CHUNKS_MAX;
            fill_pool(&b, &kv);
            if (b.read_gbps == 0) {
                measure_read(&b); /* not on zeros */
                printf("%-5s %-4s %11s %9s %9s %9s %9s %8s %6s %6s\n", "shape", "kv", "context",
                       "attend us", "merge us", "both us", "chained", "GB/s", "attend", "chain");
            }
            for (uint32_t rows = 1; rows <= 16; rows += 15)
                for (uint32_t c = 0; c < (b.smoke ? 2 : 5); c++) {
                    if (only_context && contexts[c] != only_context) continue;
                    if (only_rows && rows != only_rows) continue;
                    bench_decode(&b, &kv, &shapes[i], contexts[c], rows);
                }
            if (only_context || only_rows) continue;
            bench_blocks(&b, &kv, &shapes[i], 1, 0);
            bench_blocks(&b, &kv, &shapes[i], 16, 0);
            bench_blocks(&b, &kv, &shapes[i], 512, 0);
            if (formats[f] == PLLM_INT8 || formats[f] == PLLM_INT4) {
                fill_pool(&b, &kv);
                bench_blocks(&b, &kv, &shapes[i], 512, 1);
            }
        }
    return 0;
}
