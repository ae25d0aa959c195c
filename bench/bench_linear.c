/* Question: how near are packed products to what the machine can do?
 *
 * One row: bytes of weights a second, walking over more matrices than the last cache holds, so that
 * every byte comes from memory; the bound is the read bandwidth, measured beside it with the same
 * walk. 256 rows: arithmetic a second, with the matrices in cache; the bound of integer products is
 * half of what vpdpbusd can do, as 15-bit activations take two.
 * Baselines: a plain f32 row-major dot product per output, and the file's own blocks dequantised on
 * the way. Best of several runs: neighbours on the machine only make things slower.
 *
 *   bench_linear [--smoke] [--version NAME] [--json FILE]     FILE: bench/results/linear.json */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "base/context.h"
#include "kernels/kernels.h"

#define RESULTS "bench/results/linear.json"
enum { THREADS_MAX = 2, RUNS = 5 };

static const struct shape {
    const char *name;
    pllm_dtype dtype;
    pllm_compute compute;
    uint32_t n, k;
} shapes[] = {
    {"q4_1 576x576", PLLM_Q4_1, PLLM_COMPUTE_AUTO, 576, 576},
    {"q4_1 1536x576", PLLM_Q4_1, PLLM_COMPUTE_AUTO, 1536, 576},
    {"q4_1 576x1536", PLLM_Q4_1, PLLM_COMPUTE_AUTO, 576, 1536},
    {"q4_0 1536x576", PLLM_Q4_0, PLLM_COMPUTE_AUTO, 1536, 576},
    {"q8_0 49152x576", PLLM_Q8_0, PLLM_COMPUTE_AUTO, 49152, 576},
    {"q4_1 as f32 1536x576", PLLM_Q4_1, PLLM_COMPUTE_F32, 1536, 576},
    {"f32 1536x576", PLLM_F32, PLLM_COMPUTE_F32, 1536, 576},
    {"f16 1536x576", PLLM_F16, PLLM_COMPUTE_F32, 1536, 576},
    {"bf16 1536x576", PLLM_BF16, PLLM_COMPUTE_F32, 1536, 576},
    {"bf16 as bf16 1536x576", PLLM_BF16, PLLM_COMPUTE_BF16, 1536, 576},
};

static double now(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static void *allocate(uint64_t bytes)
{
    void *memory = pllm_alloc(NULL, bytes);
    if (memory) return memory;
    fprintf(stderr, "bench_linear: %llu bytes are not to be had\n", (unsigned long long)bytes);
    exit(1);
}

static uint64_t random_state = 1;

static uint32_t random_u32(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 32);
}

/* File rows of sensible size: random quants, small scales. */
static void fill_rows(uint8_t *rows, pllm_dtype dtype, uint64_t blocks)
{
    uint32_t bytes = pllm_dtype_block_bytes(dtype);
    for (uint64_t b = 0; b < blocks; b++, rows += bytes) {
        if (dtype == PLLM_F32) {
            float value = (float)(int32_t)random_u32() * 0x1p-33f;
            memcpy(rows, &value, 4);
            continue;
        }
        if (bytes == 2) {
            float value = (float)(int32_t)random_u32() * 0x1p-33f;
            uint16_t half = dtype == PLLM_F16 ? pllm_f32_to_f16(value) : pllm_f32_to_bf16(value);
            memcpy(rows, &half, 2);
            continue;
        }
        for (uint32_t i = 0; i < bytes; i++) rows[i] = (uint8_t)random_u32();
        uint16_t d = 0x1400, m = 0x9c00; /* 2^-10, -2^-8 */
        memcpy(rows, &d, 2);
        if (dtype == PLLM_Q4_1) memcpy(rows + 2, &m, 2);
    }
}

typedef struct work {
    const pllm_kernels *kernels;
    const pllm_linear *linear; /* [matrix_count] */
    uint32_t matrix_count, m;
    pllm_activations activations;
    float *x, *out;
    uint8_t *rows; /* one matrix as the file has it */
    float *expanded;
    uint64_t row_bytes;
} work;

typedef struct share {
    const work *work;
    uint32_t index, count;
    pthread_barrier_t *barrier;
    double seconds;
} share;

/* One thread's part of every matrix: a run of panels. */
static void run_share(const work *w, uint32_t index, uint32_t count)
{
    for (uint32_t i = 0; i < w->matrix_count; i++) {
        const pllm_linear *linear = w->linear + i;
        uint32_t panels = (linear->n + 15) / 16;
        uint32_t first = panels * index / count, last = panels * (index + 1) / count;
        uint32_t end = last * 16 < linear->n ? last * 16 : linear->n;
        w->kernels->product(w->out, linear->n, &w->activations, 0, w->m, linear, first * 16,
                            end - first * 16);
    }
}

static void *share_main(void *argument)
{
    share *s = argument;
    s->seconds = 1e9;
    for (int run = 0; run < RUNS; run++) {
        pthread_barrier_wait(s->barrier);
        double start = now(CLOCK_MONOTONIC);
        run_share(s->work, s->index, s->count);
        pthread_barrier_wait(s->barrier);
        double seconds = now(CLOCK_MONOTONIC) - start;
        if (seconds < s->seconds) s->seconds = seconds;
    }
    return NULL;
}

/* Best seconds of a walk over all matrices. */
static double time_threads(const work *w, uint32_t count)
{
    pthread_t threads[THREADS_MAX];
    share shares[THREADS_MAX];
    pthread_barrier_t barrier;
    pthread_barrier_init(&barrier, NULL, count);
    for (uint32_t t = 0; t < count; t++) {
        shares[t] = (share){w, t, count, &barrier, 0};
        if (t > 0 && pthread_create(threads + t, NULL, share_main, shares + t) != 0) exit(1);
    }
    share_main(shares);
    for (uint32_t t = 1; t < count; t++) pthread_join(threads[t], NULL);
    pthread_barrier_destroy(&barrier);
    return shares[0].seconds;
}

/* Baseline: expanded row-major f32 weights, one dot product an output. */
static double time_plain(const work *w)
{
    double best = 1e9;
    const pllm_linear *linear = w->linear;
    for (int run = 0; run < RUNS; run++) {
        double start = now(CLOCK_MONOTONIC);
        for (uint32_t m = 0; m < w->m; m++)
            for (uint32_t n = 0; n < linear->n; n++)
                w->out[(uint64_t)m * linear->n + n] =
                    w->kernels->dot(w->expanded + (uint64_t)n * linear->k,
                                    w->x + (uint64_t)m * linear->k, linear->k);
        double seconds = now(CLOCK_MONOTONIC) - start;
        if (seconds < best) best = seconds;
    }
    return best;
}

/* The bound of one row: the same bytes, only read. */
static double read_bandwidth(const void *memory, uint64_t bytes)
{
    double best = 0;
    for (int run = 0; run < RUNS; run++) {
        double start = now(CLOCK_MONOTONIC);
        const uint64_t *words = memory;
        uint64_t sums[8] = {0};
        for (uint64_t i = 0; i + 64 <= bytes / 8; i += 64) {
            __builtin_prefetch(words + i + 1024);
            for (uint64_t j = 0; j < 64; j++) sums[j % 8] += words[i + j];
        }
        double seconds = now(CLOCK_MONOTONIC) - start;
        uint64_t sum = 0;
        for (int j = 0; j < 8; j++) sum += sums[j];
        if (sum == 42) printf(" ");
        if ((double)bytes / seconds > best) best = (double)bytes / seconds;
    }
    return best;
}

/* A benchmark of wrong results is worth nothing: bf16 is the coarsest, some 2^-8 a term. */
static void check_equal(const char *name, const float *out, const float *plain, uint32_t n)
{
    double difference = 0, size = 0;
    for (uint32_t i = 0; i < n; i++) {
        difference += ((double)out[i] - plain[i]) * ((double)out[i] - plain[i]);
        size += (double)plain[i] * plain[i];
    }
    if (difference <= 1e-4 * size) return;
    fprintf(stderr, "bench_linear: %s: the product is not the dot products\n", name);
    exit(1);
}

static void bench_shape(const struct shape *shape, const pllm_kernels *kernels, uint64_t walk_bytes,
                        uint32_t m_many, FILE *json, int first)
{
    uint32_t n = shape->n, k = shape->k;
    uint64_t bytes = pllm_linear_packed_bytes(shape->dtype, n, k, shape->compute);
    uint32_t count = (uint32_t)((walk_bytes + bytes - 1) / bytes);
    work w = {.kernels = kernels, .m = 1};
    uint64_t row_bytes = 0;
    if (pllm_dtype_row_bytes(shape->dtype, k, &row_bytes) < 0) exit(1);
    w.rows = allocate(n * row_bytes);
    fill_rows(w.rows, shape->dtype, (uint64_t)n * (k / pllm_dtype_block_elements(shape->dtype)));
    uint8_t *panels = allocate(count * bytes);
    pllm_linear *linear = allocate(count * sizeof *linear);
    double pack_start = now(CLOCK_MONOTONIC);
    for (uint32_t i = 0; i < count; i++) {
        pllm_linear_place(linear + i, shape->dtype, n, k, shape->compute, panels + i * bytes);
        kernels->pack(panels + i * bytes, shape->dtype, n, k, shape->compute, w.rows, row_bytes, 0,
                      (n + 15) / 16);
    }
    double pack_rate = (double)(count * bytes) / (now(CLOCK_MONOTONIC) - pack_start);
    w.linear = linear;
    w.matrix_count = count;
    void *memory = allocate(pllm_activations_bytes(m_many, k));
    w.x = allocate((uint64_t)m_many * k * sizeof(float));
    w.out = allocate((uint64_t)m_many * n * sizeof(float));
    for (uint64_t i = 0; i < (uint64_t)m_many * k; i++)
        w.x[i] = (float)(int32_t)random_u32() * 0x1p-31f;
    pllm_activations_place(&w.activations, memory, m_many, k);
    for (uint32_t m = 0; m < m_many; m++)
        kernels->prepare(&w.activations, m, w.x + (uint64_t)m * k, pllm_linear_form(linear));

    double read = read_bandwidth(panels, count * bytes) / 1e9;
    double one = (double)(count * bytes) / time_threads(&w, 1) / 1e9;
    double two = (double)(count * bytes) / time_threads(&w, 2) / 1e9;
    /* Many rows, and the baseline, with one matrix, in cache where it fits. */
    w.matrix_count = 1;
    w.expanded = allocate((uint64_t)n * k * sizeof(float));
    for (uint32_t row = 0; row < n; row++)
        kernels->unpack_row(w.expanded + (uint64_t)row * k, linear, row);
    double plain_one = time_plain(&w);
    float *plain = allocate(n * sizeof *plain);
    memcpy(plain, w.out, n * sizeof *plain);
    double own_one = time_threads(&w, 1);
    check_equal(shape->name, w.out, plain, n);
    pllm_free(NULL, plain);
    w.m = m_many;
    double operations = 2.0 * m_many * n * k;
    double many = operations / time_threads(&w, 1) / 1e9;
    w.m = 4;
    double few = operations / m_many * 4 / time_threads(&w, 1) / 1e9;
    printf("%-22s %6.1f %7.1f %7.1f %8.2fx %9.0f %9.0f %9.1f\n", shape->name, read, one, two,
           plain_one / own_one, few, many, pack_rate / 1e9);
    if (json)
        fprintf(json,
                "%s\n  {\"shape\": \"%s\", \"read_gbps\": %.2f, \"one_row_gbps\": [%.2f, %.2f], "
                "\"over_plain_f32\": %.2f, \"rows4_gflops\": %.1f, \"rows%u_gflops\": %.1f, "
                "\"pack_gbps\": %.2f}",
                first ? "" : ",", shape->name, read, one, two, plain_one / own_one, few, m_many,
                many, pack_rate / 1e9);
    pllm_free(NULL, w.rows);
    pllm_free(NULL, panels);
    pllm_free(NULL, linear);
    pllm_free(NULL, memory);
    pllm_free(NULL, w.x);
    pllm_free(NULL, w.out);
    pllm_free(NULL, w.expanded);
}

int main(int argc, char **argv)
{
    const pllm_kernels *kernels = pllm_kernels_best();
    const char *json_path = NULL;
    uint64_t walk_bytes = 128u << 20;
    uint32_t m_many = 256;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--smoke") == 0) {
            walk_bytes = 1 << 20;
            m_many = 16;
        } else if (strcmp(argv[i], "--version") == 0 && i + 1 < argc) {
            kernels = pllm_kernels_by_name(argv[++i]);
        } else if (strcmp(argv[i], "--json") == 0 && i + 1 < argc) {
            json_path = argv[++i];
        } else {
            fprintf(stderr, "usage: bench_linear [--smoke] [--version NAME] [--json FILE]\n");
            return 2;
        }
    }
    if (!kernels) {
        fprintf(stderr, "bench_linear: this CPU has no such version\n");
        return 2;
    }
    /* scripts/bench.sh makes the folder and runs this from the top of the tree. */
    FILE *json = NULL;
    if (json_path || m_many == 256) json = fopen(json_path ? json_path : RESULTS, "w");
    if (json_path && !json) {
        fprintf(stderr, "bench_linear: cannot write %s\n", json_path);
        return 1;
    }
    printf("version %s; best of %d\n", kernels->name, RUNS);
    printf("%-22s %6s %7s %7s %9s %9s %6s%-3u %9s\n", "", "read", "1 row", "2 thr.", "over f32",
           "4 rows", "rows", m_many, "pack");
    printf("%-22s %6s %7s %7s %9s %9s %9s %9s\n", "", "GB/s", "GB/s", "GB/s", "dot", "GFLOP/s",
           "GFLOP/s", "GB/s");
    if (json) fprintf(json, "{\"version\": \"%s\", \"results\": [", kernels->name);
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        if (m_many == 16 && shapes[i].n > 2000) continue; /* smoke */
        bench_shape(shapes + i, kernels, walk_bytes, m_many, json, i == 0);
    }
    if (json) {
        fprintf(json, "\n]}\n");
        if (fclose(json) != 0) return 1;
    }
    return 0;
}
