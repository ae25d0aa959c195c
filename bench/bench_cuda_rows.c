/* Question: how near are the row kernels to the memory, and the gather kernel to the link?
 * Long calls (a prompt's 4,096 rows) take turns over buffers of 400 MB in all, more than any L2,
 * and are timed as a run of launches; short ones (a decode step's 1 to 16 rows) as nodes of a
 * graph, 400 in a row, with and without programmatic dependence. Bound: bytes read and written over
 * the read bandwidth that a sum over 1 GB reaches in this run. Lanes: slices between device memory
 * and pinned host memory, in scattered order, beside DMA of 64 MiB. Predicted: long calls 85% and
 * more of the bound; short ones 2 us a node, less with dependence; gather and scatter 49 GB/s at
 * every size from 4 KiB.
 *
 * Beside a transfer: how much longer the sum over 1 GB takes while slices or DMA come in.
 *
 *   bench_cuda_rows [--smoke] [long|short|lanes]      results: bench/results/cuda_rows.json */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "device/cuda.h"
#include "kernels/cuda/linear_format.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/transfer.h"

enum { MIB = 1 << 20, COPIES = 4, NODES = 400, RUNS = 5 };

typedef struct bench {
    pllm_device *device;
    const pllm_device_ops *ops;
    pllm_stream *stream, *other;
    pllm_cuda_rows *o;
    pllm_cuda_transfer *transfer;
    pllm_va in, out; /* in: numbers; out: written */
    pllm_va list;    /* of slices, the last */
    uint64_t area;   /* bytes of each */
    uint8_t *host;
    uint64_t host_bytes;
    double read_gbps;
    int smoke;
    FILE *json; /* or NULL */
} bench;

static void must(int status)
{
    if (status == PLLM_OK) return;
    fprintf(stderr, "bench_cuda_rows: %s: %s\n", pllm_status_name(status), pllm_last_error()->text);
    exit(1);
}

static void record(bench *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void record(bench *b, const char *format, ...)
{
    va_list list;
    if (!b->json) return;
    va_start(list, format);
    vfprintf(b->json, format, list);
    va_end(list);
}

static void sync_all(bench *b)
{
    must(b->ops->stream_sync(b->device, b->stream));
    must(b->ops->stream_sync(b->device, b->other));
}

static pllm_va memory(bench *b, uint64_t bytes)
{
    pllm_va at;
    pllm_chunk *chunk;
    must(b->ops->reserve(b->device, bytes, &at));
    must(b->ops->chunk_create(b->device, bytes, &chunk));
    must(b->ops->map(b->device, at, &chunk, 1)); /* until the program ends */
    return at;
}

/* A shape of a call; which: the copy of its buffers to use. */
typedef struct shape {
    uint32_t rows, n, heads, kv_heads;
    pllm_dtype in, to;
} shape;
typedef void (*call)(bench *b, const shape *s, uint32_t which, uint32_t dependent);

/* Small tables at the start of `in`: ids, positions, blocks, weights; filled by bench_open. */
enum { IDS = 0, POSITIONS = MIB / 4, BLOCKS = MIB / 2, WEIGHT = MIB, TABLES = 2 * MIB };

static pllm_va part(bench *b, pllm_va of, uint32_t which)
{
    return of + TABLES + (b->area - TABLES) / COPIES / 4096 * 4096 * which;
}

static void call_embed(bench *b, const shape *s, uint32_t which, uint32_t dependent)
{
    pllm_cuda_matrix table = {s->in, 8192, s->n, part(b, b->in, which),
                              pllm_packed_row_bytes((int)s->in, s->n)};
    must(pllm_cuda_embed(b->o, b->stream, &table, b->in + IDS, s->rows, part(b, b->out, which),
                         s->n, dependent));
}

static void call_norm(bench *b, const shape *s, uint32_t which, uint32_t dependent)
{
    must(pllm_cuda_rms_norm(b->o, b->stream, part(b, b->in, which), s->n, b->in + WEIGHT, 1e-5f, 0,
                            s->rows, s->n, part(b, b->out, which), s->to, s->n, dependent));
}

static void call_swiglu(bench *b, const shape *s, uint32_t which, uint32_t dependent)
{
    must(pllm_cuda_swiglu(b->o, b->stream, part(b, b->in, which), s->in, 2 * s->n, s->rows, s->n,
                          part(b, b->out, which), s->to, s->n, dependent));
}

static void call_rotary(bench *b, const shape *s, uint32_t which, uint32_t dependent)
{
    uint64_t q_bytes = (uint64_t)s->rows * s->heads * 128 * pllm_dtype_block_bytes(s->to);
    pllm_cuda_rotary r = {
        .qkv = part(b, b->in, which),
        .qkv_dtype = s->in,
        .qkv_stride = (s->heads + 2 * s->kv_heads) * 128,
        .positions = b->in + POSITIONS,
        .inverse_frequency = b->in + WEIGHT,
        .rows = s->rows,
        .heads = s->heads,
        .kv_heads = s->kv_heads,
        .head_dim = 128,
        .rotary_dims = 128,
        .q_out = part(b, b->out, which),
        .q_dtype = s->to,
        .q_stride = s->heads * 128,
        .blocks = part(b, b->out, which) + (q_bytes + 4095) / 4096 * 4096,
        .block_bytes = (uint64_t)64 * s->kv_heads * 128 * 2,
        .block_dtype = PLLM_BF16,
        .row_block = b->in + BLOCKS,
        .block_multiple = 1,
        .dependent = dependent,
    };
    must(pllm_cuda_rotary_append(b->o, b->stream, &r));
}

static void call_argmax(bench *b, const shape *s, uint32_t which, uint32_t dependent)
{
    must(pllm_cuda_argmax(b->o, b->stream, part(b, b->in, which), s->n, s->rows, s->n, b->out,
                          dependent));
}

static void call_random(bench *b, const shape *s, uint32_t which, uint32_t dependent)
{
    (void)dependent;
    pllm_cuda_matrix to = {s->to, s->rows, s->n, part(b, b->out, which),
                           pllm_packed_row_bytes((int)s->to, s->n)};
    must(pllm_cuda_random(b->o, b->stream, &to, 0, 0.02f, 7));
}

/* Seconds a call, best of RUNS. */
static double time_long(bench *b, call function, const shape *s)
{
    double best = 1e9;
    uint32_t count = b->smoke ? 4 : 40;
    for (int run = 0; run < (b->smoke ? 1 : RUNS); run++) {
        for (uint32_t i = 0; i < COPIES; i++) function(b, s, i, 0);
        sync_all(b);
        uint64_t start = pllm_clock_ns();
        for (uint32_t i = 0; i < count; i++) function(b, s, i % COPIES, 0);
        sync_all(b);
        double one = (double)(pllm_clock_ns() - start) * 1e-9 / count;
        if (one < best) best = one;
    }
    return best;
}

static double time_short(bench *b, call function, const shape *s, uint32_t dependent)
{
    pllm_cuda_graph *graph;
    uint32_t nodes = b->smoke ? 8 : NODES;
    must(pllm_cuda_capture_begin(b->device, b->stream));
    for (uint32_t i = 0; i < nodes; i++) function(b, s, i % COPIES, dependent && i > 0);
    must(pllm_cuda_capture_end(b->device, b->stream, &graph));
    double best = 1e9;
    for (int run = 0; run < RUNS + 2; run++) {
        sync_all(b);
        uint64_t start = pllm_clock_ns();
        must(pllm_cuda_graph_launch(b->device, graph, b->stream));
        sync_all(b);
        double one = (double)(pllm_clock_ns() - start) * 1e-9 / nodes;
        if (one < best) best = one;
    }
    pllm_cuda_graph_close(graph);
    return best;
}

static void report_long(bench *b, const char *name, call function, shape s, double bytes)
{
    double seconds = time_long(b, function, &s), gbps = bytes / seconds * 1e-9;
    printf("%-34s %9.1f us %8.0f GB/s %5.0f%%\n", name, seconds * 1e6, gbps,
           100 * gbps / b->read_gbps);
    record(b, ",\n  {\"long\": \"%s\", \"us\": %.2f, \"gbps\": %.0f, \"of_bound\": %.3f}", name,
           seconds * 1e6, gbps, gbps / b->read_gbps);
}

static void report_short(bench *b, const char *name, call function, shape s)
{
    double t[2][3];
    static const uint32_t rows[3] = {1, 4, 16};
    for (uint32_t d = 0; d < 2; d++)
        for (int i = 0; i < 3; i++) {
            s.rows = rows[i];
            t[d][i] = time_short(b, function, &s, d) * 1e6;
        }
    printf("%-34s %6.2f %6.2f %6.2f   %6.2f %6.2f %6.2f\n", name, t[0][0], t[0][1], t[0][2],
           t[1][0], t[1][1], t[1][2]);
    record(b,
           ",\n  {\"short\": \"%s\", \"rows\": [1, 4, 16], \"us\": [%.2f, %.2f, %.2f], "
           "\"dependent_us\": [%.2f, %.2f, %.2f]}",
           name, t[0][0], t[0][1], t[0][2], t[1][0], t[1][1], t[1][2]);
}

/* ---- memory and link ---- */

static double time_tensor(bench *b, int fill)
{
    pllm_cuda_piece piece = {b->in + TABLES, 0, (b->area - TABLES) / 4};
    double best = 1e9;
    for (int run = 0; run < RUNS; run++) {
        sync_all(b);
        uint64_t start = pllm_clock_ns();
        for (int i = 0; i < 8; i++)
            must(fill ? pllm_cuda_tensor_fill(b->o, b->stream, &piece, 1, 1, 5)
                      : pllm_cuda_tensor_sum(b->o, b->stream, &piece, 1, b->out));
        sync_all(b);
        double one = (double)(pllm_clock_ns() - start) * 1e-9 / 8;
        if (one < best) best = one;
    }
    return (double)(piece.elements * 4) / best * 1e-9;
}

/* GB/s of slices of `bytes`, in (to the device) or out. */
static double time_slices(bench *b, uint32_t bytes, uint32_t ctas, int out)
{
    uint64_t total = b->host_bytes / 2, count = total / bytes, step = count * 5 / 8 | 1;
    uint64_t list_bytes = count * sizeof(pllm_cuda_slice);
    pllm_cuda_slice *list = (void *)(b->host + total); /* pinned, behind the data */
    pllm_va host = pllm_cuda_host_va(b->device, b->host), device = b->out + TABLES;
    for (uint64_t i = 0; i < count; i++) { /* odd step, count a power of two: a permutation */
        uint64_t near = i * bytes, far = i * step % count * bytes;
        list[i] = (pllm_cuda_slice){.to = out ? host + near : device + near,
                                    .from = out ? device + far : host + far,
                                    .bytes = bytes};
    }
    b->list = b->out + TABLES + total; /* behind the data there too */
    pllm_copy copy = {b->list, (pllm_va)(uintptr_t)list, list_bytes};
    must(b->ops->copy(b->device, b->stream, PLLM_COPY_IN, &copy));
    sync_all(b);
    double best = 1e9;
    for (int run = 0; run < RUNS; run++) {
        uint64_t start = pllm_clock_ns();
        must(pllm_cuda_gather(b->transfer, b->stream, copy.to, (uint32_t)count, ctas));
        sync_all(b);
        double one = (double)(pllm_clock_ns() - start) * 1e-9;
        if (one < best) best = one;
    }
    return (double)total / best * 1e-9;
}

/* GB/s in, out, or each way at once. */
static double time_dma(bench *b, int in, int out)
{
    uint64_t bytes = b->host_bytes / 2;
    pllm_va near = (pllm_va)(uintptr_t)b->host;
    pllm_copy to = {b->out + TABLES, near, bytes};
    pllm_copy from = {near + bytes, b->out + TABLES + bytes, bytes};
    double best = 1e9;
    for (int run = 0; run < RUNS; run++) {
        sync_all(b);
        uint64_t start = pllm_clock_ns();
        if (in) must(b->ops->copy(b->device, b->stream, PLLM_COPY_IN, &to));
        if (out) must(b->ops->copy(b->device, b->other, PLLM_COPY_OUT, &from));
        sync_all(b);
        double one = (double)(pllm_clock_ns() - start) * 1e-9;
        if (one < best) best = one;
    }
    return (double)bytes / best * 1e-9;
}

/* How much longer the sum over 1 GB takes while something comes in all the time. ctas 0: DMA. */
static double time_beside(bench *b, uint32_t ctas)
{
    pllm_cuda_piece piece = {b->in + TABLES, 0, 250000000};
    pllm_copy to = {b->out + TABLES, (pllm_va)(uintptr_t)b->host, b->host_bytes / 2};
    uint64_t count = b->host_bytes / 2 / 16384;
    double took[2] = {1e9, 1e9};
    for (int run = 0; run < 2 * RUNS; run++) {
        sync_all(b);
        if (run % 2 && ctas)
            must(pllm_cuda_gather(b->transfer, b->other, b->list, (uint32_t)count, ctas));
        if (run % 2 && !ctas) must(b->ops->copy(b->device, b->other, PLLM_COPY_IN, &to));
        uint64_t start = pllm_clock_ns();
        for (int i = 0; i < 6; i++) /* less than the transfer takes, which is 2.5 ms */
            must(pllm_cuda_tensor_sum(b->o, b->stream, &piece, 1, b->out));
        must(b->ops->stream_sync(b->device, b->stream));
        double one = (double)(pllm_clock_ns() - start);
        if (one < took[run % 2]) took[run % 2] = one;
    }
    sync_all(b);
    return took[1] / took[0] - 1;
}

static void bench_lanes(bench *b)
{
    static const uint32_t sizes[] = {4096, 16384, 65536};
    static const uint32_t ctas[] = {1, 2, 4, 8, 16};
    double in = time_dma(b, 1, 0), out = time_dma(b, 0, 1), both = time_dma(b, 1, 1);
    printf("\nlanes, GB/s: DMA of %llu MiB: in %.1f, out %.1f, both at once %.1f each\n",
           (unsigned long long)(b->host_bytes / 2 / MIB), in, out, both);
    record(b, ",\n  {\"lane\": \"dma\", \"in\": %.1f, \"out\": %.1f, \"both\": %.1f}", in, out,
           both);
    printf("%-20s %8s %8s %8s %8s %8s\n", "by a kernel of", "1 CTA", "2", "4", "8", "16");
    for (int o = 0; o < 2; o++)
        for (int i = 0; i < 3; i++) {
            double t[5];
            for (int c = 0; c < 5; c++) t[c] = time_slices(b, sizes[i], ctas[c], o);
            printf("%s of %5u KiB     %8.1f %8.1f %8.1f %8.1f %8.1f\n", o ? "scatter" : "gather ",
                   sizes[i] / 1024, t[0], t[1], t[2], t[3], t[4]);
            record(b,
                   ",\n  {\"lane\": \"%s\", \"slice_bytes\": %u, \"ctas\": [1, 2, 4, 8, 16], "
                   "\"gbps\": [%.1f, %.1f, %.1f, %.1f, %.1f]}",
                   o ? "scatter" : "gather", sizes[i], t[0], t[1], t[2], t[3], t[4]);
        }
    (void)time_slices(b, 16384, 8, 0); /* leaves its list */
    double beside[6];
    for (int c = 0; c < 6; c++) beside[c] = 100 * time_beside(b, c ? ctas[c - 1] : 0);
    printf("a sum beside it, %%: DMA +%.0f; gather of 16 KiB by 1, 2, 4, 8, 16 CTAs: +%.0f +%.0f "
           "+%.0f +%.0f +%.0f\n",
           beside[0], beside[1], beside[2], beside[3], beside[4], beside[5]);
    record(b,
           ",\n  {\"slower_beside_percent\": {\"dma\": %.1f, \"gather_ctas\": [1, 2, 4, 8, 16], "
           "\"gather\": [%.1f, %.1f, %.1f, %.1f, %.1f]}}",
           beside[0], beside[1], beside[2], beside[3], beside[4], beside[5]);
}

/* ---- the whole ---- */

static void bench_open(bench *b)
{
    pllm_cuda_device_options options = {.struct_bytes = sizeof options};
    must(pllm_device_open_cuda(NULL, &options, &b->device));
    b->ops = b->device->ops;
    must(b->ops->stream_open(b->device, &b->stream));
    must(b->ops->stream_open(b->device, &b->other));
    must(pllm_cuda_rows_open(NULL, b->device, &b->o));
    must(pllm_cuda_transfer_open(NULL, b->device, &b->transfer));
    b->area = 2048ull * MIB;
    b->in = memory(b, b->area);
    b->out = memory(b, b->area);
    b->host_bytes = b->smoke ? 16 * MIB : 256 * MIB;
    void *host;
    must(b->ops->host_alloc(b->device, b->host_bytes, &host));
    b->host = host;
    uint32_t *tables = calloc(1, TABLES);
    if (!tables) must(pllm_fail_memory("tables", TABLES));
    for (uint32_t i = 0; i < MIB / 16; i++) {
        tables[IDS / 4 + i] = i * 2654435761u % 8192;
        tables[POSITIONS / 4 + i] = i;
        tables[BLOCKS / 4 + i] = i / 32;
    }
    for (int i = 0; i < MIB / 4; i++)
        ((float *)tables)[WEIGHT / 4 + i] = (float)pow(10000, -(i % 64) / 64.0);
    memcpy(b->host, tables, TABLES);
    free(tables);
    pllm_copy copy = {b->in, (pllm_va)(uintptr_t)b->host, TABLES};
    must(b->ops->copy(b->device, b->stream, PLLM_COPY_IN, &copy));
    sync_all(b);
}

static void bench_long(bench *b)
{
    const double m = 4096;
    printf("\n4,096 rows                              time      moved  of bound\n");
    report_long(b, "embed 4096 bf16", call_embed, (shape){4096, 4096, 0, 0, PLLM_BF16, 0},
                m * 4096 * 6);
    report_long(b, "embed 4096 q4_0", call_embed, (shape){4096, 4096, 0, 0, PLLM_Q4_0, 0},
                m * 4096 * 4.5625);
    report_long(b, "norm 4096 f32 -> bf16", call_norm, (shape){4096, 4096, 0, 0, 0, PLLM_BF16},
                m * 4096 * 6);
    report_long(b, "norm 8192 f32 -> bf16", call_norm, (shape){4096, 8192, 0, 0, 0, PLLM_BF16},
                m * 8192 * 6);
    report_long(b, "norm 576 f32 -> f32", call_norm, (shape){4096, 576, 0, 0, 0, PLLM_F32},
                m * 576 * 8);
    report_long(b, "swiglu 11008 bf16", call_swiglu, (shape){4096, 11008, 0, 0, 2, 2},
                m * 11008 * 6);
    report_long(b, "swiglu 14336 bf16", call_swiglu, (shape){4096, 14336, 0, 0, 2, 2},
                m * 14336 * 6);
    report_long(b, "swiglu 11008 f32", call_swiglu, (shape){4096, 11008, 0, 0, 0, 0},
                m * 11008 * 12);
    report_long(b, "rotary 32 + 2 x 32 heads bf16", call_rotary, (shape){4096, 0, 32, 32, 2, 2},
                m * 96 * 128 * 4);
    report_long(b, "rotary 32 + 2 x 8 heads bf16", call_rotary, (shape){4096, 0, 32, 8, 2, 2},
                m * 48 * 128 * 4);
    report_long(b, "argmax 128 rows of 128256", call_argmax, (shape){128, 128256, 0, 0, 0, 0},
                128.0 * 128256 * 4);
    report_long(b, "random bf16", call_random, (shape){32768, 4096, 0, 0, 0, PLLM_BF16},
                32768.0 * 4096 * 2);
    report_long(b, "random q8_0", call_random, (shape){32768, 4096, 0, 0, 0, PLLM_Q8_0},
                32768.0 * 4096 * 1.0625);
    report_long(b, "random q4_0", call_random, (shape){32768, 4096, 0, 0, 0, PLLM_Q4_0},
                32768.0 * 4096 * 0.5625);
}

static void bench_short(bench *b)
{
    printf("\nus a node of a graph                in order: 1, 4, 16 rows     dependent\n");
    report_short(b, "embed 4096 bf16", call_embed, (shape){0, 4096, 0, 0, PLLM_BF16, 0});
    report_short(b, "norm 4096", call_norm, (shape){0, 4096, 0, 0, 0, 0});
    report_short(b, "norm 8192", call_norm, (shape){0, 8192, 0, 0, 0, 0});
    report_short(b, "swiglu 11008 f32", call_swiglu, (shape){0, 11008, 0, 0, 0, 0});
    report_short(b, "rotary 32 + 2 x 32 heads", call_rotary, (shape){0, 0, 32, 32, 0, 0});
    report_short(b, "rotary 32 + 2 x 8 heads", call_rotary, (shape){0, 0, 32, 8, 0, 0});
    report_short(b, "argmax 32000", call_argmax, (shape){0, 32000, 0, 0, 0, 0});
    report_short(b, "argmax 128256", call_argmax, (shape){0, 128256, 0, 0, 0, 0});
}

int main(int argc, char **argv)
{
    bench b = {0};
    const char *only = "";
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--smoke") == 0)
            b.smoke = 1;
        else
            only = argv[i];
    bench_open(&b);
    if (!b.smoke && !*only)
        b.json = fopen("bench/results/cuda_rows.json", "w"); /* if in the tree */
    double fill = time_tensor(&b, 1);
    b.read_gbps = time_tensor(&b, 0);
    printf("a sum reads %.0f GB/s (the bound below); normal numbers are written at %.0f GB/s\n",
           b.read_gbps, fill);
    record(&b, "{\"read_gbps\": %.0f, \"normal_gbps\": %.0f, \"results\": [\n  {}", b.read_gbps,
           fill);
    if (!*only || strcmp(only, "long") == 0) bench_long(&b);
    if (!*only || strcmp(only, "short") == 0) bench_short(&b);
    if (!*only || strcmp(only, "lanes") == 0) bench_lanes(&b);
    record(&b, "\n]}\n");
    if (b.json && fclose(b.json) != 0) return 1;
    pllm_cuda_transfer_close(b.transfer);
    pllm_cuda_rows_close(b.o);
    return 0;
}
