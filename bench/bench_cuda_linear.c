/* Question: how near are products on the GPU to its memory (decode) and its tensor cores (prefill)?
 *
 * Decode walks over matrices that together are far larger than the cache, each launch depending on
 * the one before, as one captured graph; bytes are those of the packed weights. The bound is the
 * same memory read by a kernel that does nothing else, in the same run. "layers" is the chain of
 * one decode step: qkv with its norm, output added, gate and up with their norm, down added.
 * Prefill: 2 * rows * n * k operations over time, by cuBLASLt where it is installed.
 *
 *   bench_cuda_linear [--smoke] [--quick | --shapes] [--sweep] [--json FILE]
 *   FILE: bench/results/cuda_linear.json; --quick: the layers in bf16 and Q4_0 only; --shapes:
 * every shape of the 7B, 8B and 70B layers by both kernels of decode, and whether their bits are
 * those of a row alone; --sweep: also every way to cut the grid */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/context.h"
#include "device/cuda.h"
#include "kernels/cuda/fatbin.h"
#include "kernels/cuda/linear.h"

#define RESULTS "bench/results/cuda_linear.json"

static uint64_t memory_bytes = 4ull << 30, rotate_bytes = 2ull << 30;
static pllm_device *device;
static pllm_stream *stream;
static pllm_va memory, workspace, x, out, norm, weights;
static uint64_t weights_bytes;
static pllm_chunk *chunk;
static pllm_cuda_linear *linear;
static double read_rate; /* bytes a second */
static FILE *json;
static int smoke;

static void must(int status, const char *what)
{
    if (status >= 0) return;
    fprintf(stderr, "bench_cuda_linear: %s: %s\n", what, pllm_last_error()->text);
    exit(1);
}

static void wait_all(void)
{
    must(device->ops->stream_sync(device, stream), "stream_sync");
}

/* Random 16-bit patterns that are small numbers in every format. */
static void fill(pllm_va to, uint64_t bytes)
{
    enum { PART = 32 << 20 };
    static void *host;
    uint64_t state = 7;
    if (!host) {
        must(device->ops->host_alloc(device, PART, &host), "host_alloc");
        for (uint32_t i = 0; i < PART / 2; i++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            ((uint16_t *)host)[i] = (uint16_t)((state >> 40 & 0x87ff) | 0x3000);
        }
    }
    for (uint64_t at = 0; at < bytes; at += PART) {
        pllm_copy copy = {to + at, (uintptr_t)host, bytes - at < PART ? bytes - at : PART};
        must(device->ops->copy(device, stream, PLLM_COPY_IN, &copy), "copy");
    }
    wait_all();
}

static void open_all(void)
{
    int status = pllm_device_open_cuda(NULL, NULL, &device);
    if (status < 0) {
        fprintf(stderr, "bench_cuda_linear: %s\n", pllm_last_error()->text);
        exit(status == PLLM_EUNSUPPORTED && smoke ? 0 : 1);
    }
    must(device->ops->stream_open(device, &stream), "stream");
    must(device->ops->reserve(device, memory_bytes, &memory), "reserve");
    must(device->ops->chunk_create(device, memory_bytes, &chunk), "chunk");
    must(device->ops->map(device, memory, &chunk, 1), "map");
    workspace = memory;
    uint64_t used = pllm_cuda_linear_workspace_bytes(), x_bytes = 8192ull * 28672 * 2;
    x = memory + used;
    out = x + x_bytes;
    norm = out + x_bytes;
    weights = norm + (1 << 20);
    weights_bytes = memory + memory_bytes - weights;
    fill(memory, memory_bytes);
    must(pllm_cuda_linear_open(NULL, device, workspace, used, &linear), "open");
}

/* Seconds of one run of a captured graph: several in a row, the best of several such. */
static double time_graph(pllm_cuda_graph *graph)
{
    double best = 1e9;
    int repeats = smoke ? 1 : 6;
    must(pllm_cuda_graph_launch(device, graph, stream), "graph");
    wait_all();
    for (int i = 0; i < (smoke ? 1 : 5); i++) {
        uint64_t start = device->ops->now_ns(device);
        for (int j = 0; j < repeats; j++)
            must(pllm_cuda_graph_launch(device, graph, stream), "graph");
        wait_all();
        double seconds = (double)(device->ops->now_ns(device) - start) * 1e-9 / repeats;
        if (seconds < best) best = seconds;
    }
    return best;
}

static void measure_read(void)
{
    const pllm_fatbin *fatbin = pllm_fatbin_find("linear_plain");
    pllm_cuda_module *module;
    pllm_cuda_function *function;
    pllm_cuda_graph *graph;
    pllm_cuda_attributes attributes = {.struct_bytes = sizeof attributes};
    must(pllm_cuda_attributes_get(device, &attributes), "attributes");
    must(pllm_cuda_module_open(device, fatbin->data, fatbin->bytes, &module), "module");
    must(pllm_cuda_function_get(module, "pllm_linear_read", 0, &function), "pllm_linear_read");
    uint64_t pieces = rotate_bytes / 16;
    void *parameters[] = {&weights, &pieces, &out};
    for (uint32_t ctas = 4; ctas <= 16; ctas *= 2) { /* the best of a few grids */
        pllm_cuda_grid grid = {attributes.sm_count * ctas, 1, 1, 512, 0, 0, 0};
        must(pllm_cuda_capture_begin(device, stream), "capture");
        for (int i = 0; i < 8; i++)
            must(pllm_cuda_launch(device, stream, function, &grid, parameters), "launch");
        must(pllm_cuda_capture_end(device, stream, &graph), "capture");
        double rate = 8.0 * (double)rotate_bytes / time_graph(graph);
        if (rate > read_rate) read_rate = rate;
        pllm_cuda_graph_close(graph);
    }
    pllm_cuda_module_close(module);
    printf("read bandwidth: %.0f GB/s\n", read_rate * 1e-9);
    if (json) fprintf(json, "{\"read_gb_s\": %.0f, \"results\": [", read_rate * 1e-9);
}

static int json_rows;

static void note(const char *name, uint32_t rows, double value, const char *unit)
{
    if (!json) return;
    fprintf(json, "%s\n  {\"name\": \"%s\", \"rows\": %u, \"%s\": %.1f}", json_rows++ ? "," : "",
            name, rows, unit, value);
}

static pllm_cuda_matrix matrix_at(pllm_dtype dtype, uint32_t n, uint32_t k, uint64_t *used)
{
    pllm_cuda_matrix m = {dtype, n, k, weights + *used, pllm_cuda_matrix_row_bytes(dtype, k)};
    *used += (m.n * m.row_bytes + 255) / 256 * 256;
    return m;
}

/* Bytes a second of one shape. */
static double decode_rate(pllm_dtype dtype, uint32_t n, uint32_t k, uint32_t rows,
                          pllm_cuda_epilogue epilogue, int with_norm)
{
    enum { MOST = 256 };
    uint64_t used = 0, read = 0;
    uint32_t count = 0;
    static pllm_cuda_matrix matrices[MOST], seconds[MOST];
    pllm_cuda_graph *graph;
    must(pllm_cuda_capture_begin(device, stream), "capture");
    while (count < MOST && (count < 4 || used < rotate_bytes)) {
        matrices[count] = matrix_at(dtype, n, k, &used);
        if (epilogue == PLLM_CUDA_SWIGLU) seconds[count] = matrix_at(dtype, n, k, &used);
        if (used > weights_bytes) break;
        pllm_cuda_product p = {.matrix = &matrices[count],
                               .second = epilogue == PLLM_CUDA_SWIGLU ? &seconds[count] : NULL,
                               .x = x,
                               .x_stride = k,
                               .norm_weight = with_norm ? norm : 0,
                               .epsilon = 1e-5f,
                               .out = out,
                               .out_stride = n,
                               .rows = rows,
                               .epilogue = epilogue,
                               .dependent = count > 0};
        must(pllm_cuda_linear_decode(linear, stream, &p), "decode");
        read = used;
        count++;
    }
    must(pllm_cuda_capture_end(device, stream, &graph), "capture");
    double rate = (double)read / time_graph(graph);
    pllm_cuda_graph_close(graph);
    return rate;
}

static const struct shape {
    const char *name;
    uint32_t n, k, epilogue, norm;
} shapes[] = {{"qkv 12288x4096", 12288, 4096, PLLM_CUDA_STORE, 1},
              {"out 4096x4096", 4096, 4096, PLLM_CUDA_ADD, 0},
              {"gate+up 22016x4096", 11008, 4096, PLLM_CUDA_SWIGLU, 1},
              {"down 4096x11008", 4096, 11008, PLLM_CUDA_ADD, 0},
              {"logits 32000x4096", 32000, 4096, PLLM_CUDA_STORE, 1}};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

static const pllm_dtype dtypes[] = {PLLM_BF16, PLLM_F16, PLLM_F32, PLLM_Q8_0, PLLM_Q4_0, PLLM_Q4_1};

static void decode_table(void)
{
    printf("\ndecode, GB/s (share of reading)%21s1 row%13s4 rows%12s16 rows\n", "", "", "");
    for (uint32_t d = 0; d < sizeof dtypes / sizeof dtypes[0]; d++) {
        for (uint32_t s = 0; s < SHAPES; s++) {
            char name[64];
            snprintf(name, sizeof name, "%s %s", pllm_dtype_name(dtypes[d]), shapes[s].name);
            printf("%-40s", name);
            for (uint32_t rows = 1; rows <= 16; rows *= 4) {
                double rate =
                    decode_rate(dtypes[d], shapes[s].n, shapes[s].k, rows,
                                (pllm_cuda_epilogue)shapes[s].epilogue, (int)shapes[s].norm);
                printf("   %8.0f (%3.0f%%)", rate * 1e-9, 100 * rate / read_rate);
                note(name, rows, rate * 1e-9, "gb_s");
            }
            printf("\n");
            fflush(stdout);
        }
    }
}

/* Every way to cut the grid, for choosing among them. */
static void sweep(void)
{
    static const pllm_dtype some[] = {PLLM_BF16, PLLM_Q4_0};
    static const uint32_t counts[] = {1, 2, 4, 8, 16}, ways[][2] = {{1, 1}, {1, 2}, {2, 1}};
    printf("\nGB/s by CTAs that share k: 1, 2, 4, 8; for (tiles, CTAs on an SM) 1,1 1,2 2,1\n");
    for (uint32_t d = 0; d < 2; d++)
        for (uint32_t s = 0; s < SHAPES; s++)
            for (uint32_t r = 0; r < sizeof counts / sizeof counts[0]; r++) {
                printf("%-5s %-18s %2u rows", pllm_dtype_name(some[d]), shapes[s].name, counts[r]);
                for (uint32_t way = 0; way < 3; way++) {
                    printf(" |");
                    for (uint32_t cluster = 1; cluster <= 8; cluster *= 2) {
                        pllm_cuda_linear_tune(linear,
                                              &(pllm_cuda_linear_tuning){cluster, ways[way][0],
                                                                         ways[way][1], 0, 0, 0});
                        double rate = decode_rate(some[d], shapes[s].n, shapes[s].k, counts[r],
                                                  (pllm_cuda_epilogue)shapes[s].epilogue,
                                                  (int)shapes[s].norm);
                        printf(" %4.0f", rate * 1e-9);
                    }
                }
                printf("\n");
                fflush(stdout);
            }
    pllm_cuda_linear_tune(linear, &(pllm_cuda_linear_tuning){0});
}

/* ---- the layers of three models, one shape after the other ---- */

static const struct model_shape {
    const char *name;
    uint32_t n, k, epilogue, norm;
} model_shapes[] = {{"7B qkv", 12288, 4096, PLLM_CUDA_STORE, 1},
                    {"7B out", 4096, 4096, PLLM_CUDA_ADD, 0},
                    {"7B gate+up", 11008, 4096, PLLM_CUDA_SWIGLU, 1},
                    {"7B down", 4096, 11008, PLLM_CUDA_ADD, 0},
                    {"7B logits", 32000, 4096, PLLM_CUDA_STORE, 1},
                    {"8B qkv", 6144, 4096, PLLM_CUDA_STORE, 1},
                    {"8B gate+up", 14336, 4096, PLLM_CUDA_SWIGLU, 1},
                    {"8B down", 4096, 14336, PLLM_CUDA_ADD, 0},
                    {"8B logits", 128256, 4096, PLLM_CUDA_STORE, 1},
                    {"70B qkv", 10240, 8192, PLLM_CUDA_STORE, 1},
                    {"70B out", 8192, 8192, PLLM_CUDA_ADD, 0},
                    {"70B gate+up", 28672, 8192, PLLM_CUDA_SWIGLU, 1},
                    {"70B down", 8192, 28672, PLLM_CUDA_ADD, 0}};

static double shape_seconds(pllm_dtype dtype, const struct model_shape *s, uint32_t rows)
{
    double bytes = (double)s->n * (double)pllm_cuda_matrix_row_bytes(dtype, s->k) *
                   (s->epilogue == PLLM_CUDA_SWIGLU ? 2 : 1);
    return bytes /
           decode_rate(dtype, s->n, s->k, rows, (pllm_cuda_epilogue)s->epilogue, (int)s->norm);
}

/* What one launch gives, to compare bits. */
static void shape_result(pllm_dtype dtype, const struct model_shape *s, uint32_t rows, void *to)
{
    uint64_t used = 0;
    pllm_cuda_matrix m = matrix_at(dtype, s->n, s->k, &used);
    pllm_cuda_matrix second = matrix_at(dtype, s->n, s->k, &used);
    int swiglu = s->epilogue == PLLM_CUDA_SWIGLU;
    pllm_cuda_product p = {.matrix = &m,
                           .second = swiglu ? &second : NULL,
                           .x = x,
                           .x_stride = s->k,
                           .norm_weight = s->norm ? norm : 0,
                           .epsilon = 1e-5f,
                           .out = out,
                           .out_stride = s->n,
                           .rows = rows,
                           .epilogue = swiglu ? PLLM_CUDA_SWIGLU : PLLM_CUDA_STORE};
    must(pllm_cuda_linear_decode(linear, stream, &p), "decode");
    pllm_copy copy = {(uintptr_t)to, out, (uint64_t)rows * s->n * 4};
    must(device->ops->copy(device, stream, PLLM_COPY_OUT, &copy), "copy");
    wait_all();
}

/* Each shape by each kernel of decode; every = 1: by every cut of the grid as well. The bits of all
 * must be those of a row alone. Returns how many were not. */
static int shapes_table(pllm_dtype dtype, uint32_t rows, int every)
{
    static const uint32_t cuts[][2] = {{2, 1}, {2, 2}, {4, 1}, {4, 2}, {8, 1}, {8, 2}};
    uint64_t most = 16ull * 128256 * 4;
    uint8_t *alone, *all;
    int wrong = 0;
    must(device->ops->host_alloc(device, most, (void **)&alone), "host_alloc");
    must(device->ops->host_alloc(device, most, (void **)&all), "host_alloc");
    printf(
        "\n%s, %u rows: us, GB/s, share of reading, by registers | by rings (linear_stream.cu) | "
        "as chosen\n",
        pllm_dtype_name(dtype), rows);
    for (uint32_t i = 0; i < sizeof model_shapes / sizeof model_shapes[0]; i++) {
        const struct model_shape *s = &model_shapes[i];
        double bytes = (double)s->n * (double)pllm_cuda_matrix_row_bytes(dtype, s->k) *
                       (s->epilogue == PLLM_CUDA_SWIGLU ? 2 : 1);
        printf("%-12s %6u x %5u", s->name, s->n, s->k);
        shape_result(dtype, s, 1, alone);
        static const uint32_t kernels[] = {1, 2, 0};
        for (uint32_t j = 0; j < 3; j++) {
            pllm_cuda_linear_tune(linear, &(pllm_cuda_linear_tuning){.kernel = kernels[j]});
            double seconds = shape_seconds(dtype, s, rows);
            shape_result(dtype, s, rows, all);
            int differs = memcmp(alone, all, s->n * 4ull) != 0;
            wrong += differs;
            printf(" | %6.1f %5.0f %3.0f%%%s", seconds * 1e6, bytes / seconds * 1e-9,
                   100 * bytes / read_rate / seconds, differs ? " WRONG" : "");
        }
        printf("\n");
        for (uint32_t c = 0; every && c < sizeof cuts / sizeof cuts[0]; c++) {
            printf("    %u CTAs, %u tiles; groups (early):", cuts[c][0], cuts[c][1]);
            for (uint32_t ring = 1; ring <= (cuts[c][1] == 2 ? 2 : 4); ring++)
                for (uint32_t early = 1; early <= ring; early += ring > 1 ? ring - 1 : 1) {
                    pllm_cuda_linear_tuning tuning = {.cluster = cuts[c][0],
                                                      .tiles = cuts[c][1],
                                                      .kernel = 2,
                                                      .ring = ring,
                                                      .early = early};
                    pllm_cuda_linear_tune(linear, &tuning);
                    double seconds = shape_seconds(dtype, s, rows);
                    shape_result(dtype, s, rows, all);
                    int differs = memcmp(alone, all, s->n * 4ull) != 0;
                    wrong += differs;
                    printf(" %u (%u) %.1f%s", ring, early, seconds * 1e6, differs ? " WRONG" : "");
                }
            printf("\n");
        }
        fflush(stdout);
    }
    pllm_cuda_linear_tune(linear, &(pllm_cuda_linear_tuning){0});
    device->ops->host_free(device, alone, most);
    device->ops->host_free(device, all, most);
    return wrong;
}

/* The linear layers of one decode step of Llama-2-7B: 32 layers over as many sets of weights as
 * there is room for. */
static void layers(pllm_dtype dtype)
{
    enum { LAYERS = 32, PER_LAYER = 4 };
    static pllm_cuda_matrix m[LAYERS][5];
    for (uint32_t rows = 1; rows <= 16; rows *= 4) {
        uint64_t used = 0, bytes = 0;
        uint32_t sets = 0;
        while (sets < LAYERS) {
            uint64_t before = used;
            m[sets][0] = matrix_at(dtype, 12288, 4096, &used);
            m[sets][1] = matrix_at(dtype, 4096, 4096, &used);
            m[sets][2] = matrix_at(dtype, 11008, 4096, &used);
            m[sets][3] = matrix_at(dtype, 11008, 4096, &used);
            m[sets][4] = matrix_at(dtype, 4096, 11008, &used);
            if (used > weights_bytes) break;
            bytes = used - before;
            sets++;
        }
        pllm_cuda_graph *graph;
        must(pllm_cuda_capture_begin(device, stream), "capture");
        for (uint32_t i = 0; i < LAYERS; i++) {
            pllm_cuda_matrix *w = m[i % sets];
            pllm_va qkv = out, hidden = out + (8 << 20), gate = out + (16 << 20);
            const pllm_cuda_product products[PER_LAYER] = {
                {.matrix = &w[0],
                 .x = hidden,
                 .x_stride = 4096,
                 .norm_weight = norm,
                 .out = qkv,
                 .out_stride = 12288,
                 .epilogue = PLLM_CUDA_STORE},
                {.matrix = &w[1],
                 .x = qkv,
                 .x_stride = 12288,
                 .out = hidden,
                 .out_stride = 4096,
                 .epilogue = PLLM_CUDA_ADD},
                {.matrix = &w[2],
                 .second = &w[3],
                 .x = hidden,
                 .x_stride = 4096,
                 .norm_weight = norm,
                 .out = gate,
                 .out_stride = 11008,
                 .epilogue = PLLM_CUDA_SWIGLU},
                {.matrix = &w[4],
                 .x = gate,
                 .x_stride = 11008,
                 .out = hidden,
                 .out_stride = 4096,
                 .epilogue = PLLM_CUDA_ADD},
            };
            for (uint32_t j = 0; j < PER_LAYER; j++) {
                pllm_cuda_product p = products[j];
                p.epsilon = 1e-5f;
                p.rows = rows;
                p.dependent = i + j > 0;
                must(pllm_cuda_linear_decode(linear, stream, &p), "decode");
            }
        }
        must(pllm_cuda_capture_end(device, stream, &graph), "capture");
        double seconds = time_graph(graph), rate = (double)bytes * LAYERS / seconds;
        pllm_cuda_graph_close(graph);
        char name[64];
        snprintf(name, sizeof name, "%s 7B layers", pllm_dtype_name(dtype));
        printf("%-6s 7B, 32 layers, %2u rows: %7.3f ms, %5.0f GB/s (%3.0f%%)\n",
               pllm_dtype_name(dtype), rows, seconds * 1e3, rate * 1e-9, 100 * rate / read_rate);
        note(name, rows, rate * 1e-9, "gb_s");
        fflush(stdout);
    }
}

static double prefill_rate(pllm_dtype dtype, uint32_t n, uint32_t k, uint32_t rows)
{
    uint64_t used = 0;
    pllm_cuda_matrix m = matrix_at(dtype, n, k, &used);
    pllm_cuda_product p = {.matrix = &m,
                           .x = x,
                           .x_dtype = dtype == PLLM_F16 ? PLLM_F16 : PLLM_BF16,
                           .x_stride = k,
                           .out = out,
                           .out_dtype = dtype == PLLM_F16 ? PLLM_F16 : PLLM_BF16,
                           .out_stride = n,
                           .rows = rows};
    uint32_t count = smoke ? 1 : rows >= 8192 ? 5 : 20;
    double best = 1e9;
    for (int i = 0; i < (smoke ? 1 : 4); i++) {
        uint64_t start = device->ops->now_ns(device);
        for (uint32_t j = 0; j < count; j++)
            must(pllm_cuda_linear_prefill(linear, stream, &p), "prefill");
        wait_all();
        double seconds = (double)(device->ops->now_ns(device) - start) * 1e-9 / count;
        if (i > 0 || smoke) best = seconds < best ? seconds : best;
    }
    return 2.0 * rows * n * k / best;
}

static void prefill_table(void)
{
    static const pllm_dtype some[] = {PLLM_BF16, PLLM_Q8_0, PLLM_Q4_0};
    static const struct {
        uint32_t n, k;
    } sizes[] = {{12288, 4096}, {4096, 4096}, {22016, 4096}, {4096, 11008}};
    for (uint32_t library = 2; library-- > 0;) {
        pllm_cuda_linear_tune(linear, &(pllm_cuda_linear_tuning){.own = !library});
        printf("\nprefill by %s, TFLOP/s%14s512 rows   2048 rows   8192 rows\n",
               pllm_cuda_linear_library(linear), "");
        for (uint32_t d = 0; d < (library ? 3 : 1); d++)
            for (uint32_t s = 0; s < 4; s++) {
                char name[64];
                snprintf(name, sizeof name, "%s %ux%u", pllm_dtype_name(some[d]), sizes[s].n,
                         sizes[s].k);
                printf("%-32s", name);
                for (uint32_t rows = 512; rows <= (library ? 8192 : 2048); rows *= 4) {
                    if (rows * (uint64_t)sizes[s].n * 2 > 8192ull * 28672 * 2) continue;
                    double rate = prefill_rate(some[d], sizes[s].n, sizes[s].k, rows);
                    printf("%12.0f", rate * 1e-12);
                    note(name, rows, rate * 1e-12, library ? "tflop_s" : "own_tflop_s");
                }
                printf("\n");
                fflush(stdout);
            }
    }
    pllm_cuda_linear_tune(linear, &(pllm_cuda_linear_tuning){0});
}

/* Other choices that could be pinned. */
static void candidates(void)
{
    static const struct {
        uint32_t n, k;
    } sizes[] = {{12288, 4096}, {4096, 4096}, {22016, 4096}, {4096, 11008}};
    printf("\nbf16 at 2048 rows, TFLOP/s, by candidate 0, 1, ... when asked for 1024, 2048, 8192 "
           "rows\n");
    for (uint32_t s = 0; s < 4; s++) {
        printf("%5u x %5u", sizes[s].n, sizes[s].k);
        for (uint32_t asked = 1024; asked <= 8192; asked *= asked == 2048 ? 4 : 2) {
            printf(" |");
            for (uint32_t candidate = 0; candidate < 6; candidate++) {
                pllm_cuda_linear_tune(
                    linear, &(pllm_cuda_linear_tuning){.candidate = candidate, .asked = asked});
                printf(" %4.0f", prefill_rate(PLLM_BF16, sizes[s].n, sizes[s].k, 2048) * 1e-12);
            }
        }
        printf("\n");
        fflush(stdout);
    }
    pllm_cuda_linear_tune(linear, &(pllm_cuda_linear_tuning){0});
}

int main(int argc, char **argv)
{
    int sweeping = 0, quick = 0, table = 0;
    const char *results = RESULTS;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--smoke") == 0)
            smoke = 1;
        else if (strcmp(argv[i], "--shapes") == 0)
            table = 1;
        else if (strcmp(argv[i], "--sweep") == 0)
            sweeping = 1;
        else if (strcmp(argv[i], "--quick") == 0)
            quick = 1;
        else if (strcmp(argv[i], "--json") == 0 && i + 1 < argc)
            results = argv[++i];
        else {
            fprintf(stderr, "usage: bench_cuda_linear [--smoke] [--quick | --shapes] [--sweep] "
                            "[--json FILE]\n");
            return 2;
        }
    }
    if (smoke) rotate_bytes = 64 << 20;
    open_all();
    if (table) {
        static const pllm_dtype some[] = {PLLM_BF16, PLLM_Q4_0, PLLM_Q8_0};
        int wrong = 0;
        measure_read();
        rotate_bytes = 512 << 20; /* ten times the L2 cache */
        for (uint32_t d = 0; d < sizeof some / sizeof some[0]; d++)
            for (uint32_t rows = 16; rows; rows = rows == 16 ? 1 : 0)
                if (rows == 16 || d == 0)
                    wrong += shapes_table(some[d], rows, sweeping && rows > 8);
        printf("results with other bits: %d\n", wrong);
        return wrong > 0;
    }
    if (!smoke && !quick) json = fopen(results, "w");
    measure_read();
    for (uint32_t d = 0; d < sizeof dtypes / sizeof dtypes[0]; d++)
        if (!quick || dtypes[d] == PLLM_BF16 || dtypes[d] == PLLM_Q4_0) layers(dtypes[d]);
    if (!quick) decode_table();
    if (sweeping) sweep();
    if (!quick) prefill_table();
    if (sweeping && !quick) candidates();
    if (json) {
        fprintf(json, "\n]}\n");
        fclose(json);
    }
    pllm_cuda_linear_close(linear);
    device->ops->unmap(device, memory, chunk);
    device->ops->chunk_destroy(device, chunk);
    device->ops->release(device, memory, memory_bytes);
    device->ops->stream_close(device, stream);
    pllm_device_close(device);
    return 0;
}
