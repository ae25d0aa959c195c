/* bench_attention.c - how fast is attention over KV blocks?
 *
 * Question: what do reading each KV head once for its whole group of query heads (decode) and
 * packing a chunk into panels (prefill) give? Baseline: the straightforward way, every query head
 * reading its keys and values for itself, also with AVX-512, in the same
 * process, runs alternating. Timed on one core, by the thread's CPU time.
 * Decode reads 7,680 tokens x 30 layers x 3 KV heads of 64: 177 MB at f16, distinct memory, so it
 * comes from RAM. Bound: what one core streams from RAM, measured beside it.
 * Also: gather through the cache against past it, 24 KiB blocks.
 * --smoke: tiny, checks only.
 *
 *   bench_attention [--smoke] [--json FILE] */
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include "kernels/attention.h"
#include "kernels/gather.h"

enum { GROUP = 3, KV_HEADS = 3, HEAD_DIM = 64 };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double best(double a, double b)
{
    return a < b ? a : b;
}

static uint64_t seed = 1;
static float uniform(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float)((int64_t)seed >> 40) * 0x1p-23f;
}

typedef struct cache {
    pllm_kv_shape shape;
    uint64_t block_bytes;
    uint32_t layers, chunks;
    uint8_t *blocks; /* [layers][chunks * 8][block_bytes] */
} cache;

static cache cache_open(pllm_dtype format, uint32_t layers, uint32_t chunks,
                        const pllm_attention_kernels *kernels)
{
    cache c = {.layers = layers, .chunks = chunks};
    float k[KV_HEADS * HEAD_DIM], v[KV_HEADS * HEAD_DIM];
    pllm_kv_shape_init(&c.shape, format, KV_HEADS, HEAD_DIM);
    c.block_bytes = pllm_kv_block_bytes(&c.shape, format);
    uint64_t count = (uint64_t)layers * chunks * PLLM_CHUNK_BLOCKS;
    c.blocks = aligned_alloc(1 << 21, (count * c.block_bytes + (1 << 21)) >> 21 << 21);
    madvise(c.blocks, count * c.block_bytes, MADV_HUGEPAGE); /* as the host device's arena does */
    uint8_t *open = aligned_alloc(4096, pllm_kv_block_bytes(&c.shape, c.shape.open));
    for (uint32_t row = 0; row < PLLM_BLOCK_TOKENS; row++) {
        for (int i = 0; i < KV_HEADS * HEAD_DIM; i++) k[i] = uniform(), v[i] = uniform();
        kernels->append(&c.shape, open, row, k, v);
    }
    kernels->seal(&c.shape, c.blocks, open);
    for (uint64_t i = 1; i < count; i++)
        memcpy(c.blocks + i * c.block_bytes, c.blocks, c.block_bytes);
    free(open);
    return c;
}

static pllm_kv_view cache_view(const cache *c, uint32_t layer, uint32_t chunk)
{
    pllm_kv_view view = {.block_count = PLLM_CHUNK_BLOCKS, .token_count = PLLM_CHUNK_TOKENS};
    for (uint32_t b = 0; b < PLLM_CHUNK_BLOCKS; b++)
        view.blocks[b] =
            c->blocks +
            (((uint64_t)layer * c->chunks + chunk) * PLLM_CHUNK_BLOCKS + b) * c->block_bytes;
    return view;
}

/* The straightforward way (f16): head by head, key by key. */
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,f16c,fma")))
AVX512 static void baseline_decode(const pllm_kv_view *view, uint32_t kv_head, const float *q,
                                   float *max, float *sum, float *out)
{
    float score[PLLM_CHUNK_TOKENS];
    uint64_t slice_bytes = (uint64_t)2 * PLLM_BLOCK_TOKENS * HEAD_DIM * 2;
    for (int h = 0; h < GROUP; h++) {
        float top = -INFINITY, mass = 0;
        for (uint32_t t = 0; t < PLLM_CHUNK_TOKENS; t++) {
            const uint16_t *k =
                (const uint16_t *)((const uint8_t *)view->blocks[t / 32] + kv_head * slice_bytes) +
                t % 32 * HEAD_DIM;
            float dot = 0;
            __m512 acc = _mm512_setzero_ps();
            for (int c = 0; c < HEAD_DIM; c += 16)
                acc = _mm512_fmadd_ps(_mm512_loadu_ps(q + h * HEAD_DIM + c),
                                      _mm512_cvtph_ps(_mm256_loadu_si256((const void *)(k + c))),
                                      acc);
            dot = _mm512_reduce_add_ps(acc);
            score[t] = dot;
            top = dot > top ? dot : top;
        }
        memset(out + h * HEAD_DIM, 0, HEAD_DIM * sizeof *out);
        for (uint32_t t = 0; t < PLLM_CHUNK_TOKENS; t++) {
            float p = expf(score[t] - top);
            const uint16_t *v =
                (const uint16_t *)((const uint8_t *)view->blocks[t / 32] + kv_head * slice_bytes) +
                (32 + t % 32) * HEAD_DIM;
            mass += p;
            for (int c = 0; c < HEAD_DIM; c += 16)
                _mm512_storeu_ps(
                    out + h * HEAD_DIM + c,
                    _mm512_fmadd_ps(_mm512_set1_ps(p),
                                    _mm512_cvtph_ps(_mm256_loadu_si256((const void *)(v + c))),
                                    _mm512_loadu_ps(out + h * HEAD_DIM + c)));
        }
        max[h] = top, sum[h] = mass;
    }
}

static double decode_seconds(const cache *c, const pllm_attention_kernels *kernels, const float *q,
                             void *scratch, float *out)
{
    float max[GROUP], sum[GROUP];
    double start = now();
    for (uint32_t layer = 0; layer < c->layers; layer++)
        for (uint32_t head = 0; head < KV_HEADS; head++)
            for (uint32_t chunk = 0; chunk < c->chunks; chunk++) {
                pllm_kv_view view = cache_view(c, layer, chunk), next;
                if (chunk + 1 < c->chunks) {
                    next = cache_view(c, layer, chunk + 1);
                    view.next = &next;
                }
                if (kernels)
                    kernels->attend_decode(&c->shape, &view, head, q, GROUP, max, sum, out,
                                           scratch);
                else
                    baseline_decode(&view, head, q, max, sum, out);
            }
    return now() - start;
}

static double stream_seconds(const cache *c)
{
    uint64_t bytes = c->layers * c->chunks * PLLM_CHUNK_BLOCKS * c->block_bytes, total = 0;
    double start = now();
    for (uint64_t at = 0; at < bytes; at += 64) total += *(const uint64_t *)(c->blocks + at);
    __asm__ volatile("" : : "r"(total));
    return now() - start;
}

static double prefill_seconds(const cache *c, const pllm_attention_kernels *kernels, const float *q,
                              uint32_t calls, void *scratch, float *out)
{
    static float max[32 * GROUP], sum[32 * GROUP];
    for (int i = 0; i < 32 * GROUP; i++) max[i] = -INFINITY, sum[i] = 0;
    memset(out, 0, 32 * GROUP * HEAD_DIM * sizeof *out);
    double start = now();
    for (uint32_t call = 0; call < calls; call++) {
        pllm_kv_view view = cache_view(c, 0, call % c->chunks);
        kernels->attend_prefill(&c->shape, &view, 0, q, GROUP * HEAD_DIM, GROUP, 32,
                                PLLM_CHUNK_TOKENS, max, sum, out, scratch);
    }
    return now() - start;
}

/* What the core's multipliers give at most: ten independent chains in registers. */
AVX512 static double peak_flops(void)
{
#define CHAINS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9)
#define DECLARE(i) __m512 a##i = _mm512_set1_ps(i);
#define STEP(i)                         \
    a##i = _mm512_fmadd_ps(x, x, a##i); \
    __asm__ volatile("" : "+v"(a##i));
    __m512 x = _mm512_set1_ps(1e-9f);
    double seconds = 1e9;
    CHAINS(DECLARE)
    for (int run = 0; run < 20; run++) {
        double start = now();
        for (int n = 0; n < 200000; n++) {
            CHAINS(STEP)
        }
        seconds = best(seconds, now() - start);
    }
    return 2e5 * 10 * 32 / seconds;
}

static void bench_gather(int smoke, FILE *json)
{
    enum { BYTES = 24576 };
    uint64_t count = smoke ? 16 : 6000;
    uint8_t *from = aligned_alloc(4096, count * BYTES), *to = aligned_alloc(4096, count * BYTES);
    pllm_gather_item *items = malloc(count * sizeof *items);
    memset(from, 1, count * BYTES);
    memset(to, 2, count * BYTES);
    for (uint64_t i = 0; i < count; i++) {
        items[i].dst = to + (i * 7919 % count) * BYTES;
        items[i].src = from + i * BYTES;
        items[i].bytes = BYTES;
    }
    double plain = 1e9, stream = 1e9;
    for (int run = 0; run < (smoke ? 1 : 7); run++) {
        double start = now();
        pllm_gather(items, count);
        plain = best(plain, now() - start);
        start = now();
        pllm_gather_stream(items, count);
        stream = best(stream, now() - start);
    }
    double bytes = (double)count * BYTES;
    printf("gather %llu x 24 KiB: %.1f GB/s plain, %.1f GB/s streaming, ratio %.2f\n",
           (unsigned long long)count, bytes / plain / 1e9, bytes / stream / 1e9, plain / stream);
    if (json)
        fprintf(json, "],\n \"gather_24k_gbps\": %.2f, \"gather_24k_streaming_gbps\": %.2f}\n",
                bytes / plain / 1e9, bytes / stream / 1e9);
    for (uint64_t i = 0; i < count; i++)
        if (memcmp(items[i].dst, items[i].src, BYTES)) exit(1);
    free(from);
    free(to);
    free(items);
}

int main(int argc, char **argv)
{
    int smoke = 0;
    const char *json_path = NULL;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--smoke")) {
            smoke = 1;
        } else if (!strcmp(argv[i], "--json") && i + 1 < argc) {
            json_path = argv[++i];
        } else {
            fprintf(stderr, "usage: bench_attention [--smoke] [--json FILE]\n");
            return 2;
        }
    }
    FILE *json = json_path ? fopen(json_path, "w") : NULL;
    if (json_path && !json) {
        fprintf(stderr, "bench_attention: cannot write %s\n", json_path);
        return 1;
    }
    int runs = smoke ? 1 : 7, results = 0;
    static const pllm_dtype formats[] = {PLLM_F16, PLLM_F32, PLLM_BF16, PLLM_INT8, PLLM_INT4};
    static float q[32 * GROUP * HEAD_DIM], out[32 * GROUP * HEAD_DIM];
    for (uint32_t i = 0; i < sizeof q / sizeof *q; i++) q[i] = uniform();
    void *scratch = aligned_alloc(64, (pllm_attention_scratch_bytes(HEAD_DIM) + 63) / 64 * 64);
    const struct {
        const char *name;
        const pllm_attention_kernels *kernels;
        int runs_here;
    } versions[] = {
        {"avx512", &pllm_attention_avx512, __builtin_cpu_supports("avx512vbmi")},
        {"avx2", &pllm_attention_avx2, __builtin_cpu_supports("avx2")},
    };
    int wide = versions[0].runs_here;
    double peak = smoke || !wide ? 0 : peak_flops();
    if (peak > 0) printf("f32 FMA peak of this core: %.1f GFLOP/s\n", peak / 1e9);
    if (json) fprintf(json, "{\"fma_peak_gflops\": %.1f, \"attention\": [\n  ", peak / 1e9);
    for (uint32_t v = 0; v < 2; v++)
        for (uint32_t f = 0; versions[v].runs_here && f < sizeof formats / sizeof *formats; f++) {
            cache c = cache_open(formats[f], smoke ? 1 : 30, smoke ? 2 : 30, versions[v].kernels);
            double ours = 1e9, plain = 1e9, stream = 1e9, prefill = 1e9;
            uint32_t calls = smoke ? 2 : 60;
            for (int run = 0; run < runs; run++) {
                ours = best(ours, decode_seconds(&c, versions[v].kernels, q, scratch, out));
                if (f == 0 && wide) plain = best(plain, decode_seconds(&c, NULL, q, scratch, out));
                stream = best(stream, stream_seconds(&c));
                prefill =
                    best(prefill, prefill_seconds(&c, versions[v].kernels, q, calls, scratch, out));
            }
            double bytes = (double)c.layers * c.chunks * PLLM_CHUNK_BLOCKS * c.block_bytes;
            double flops = 4.0 * 32 * GROUP * PLLM_CHUNK_TOKENS * HEAD_DIM * calls;
            printf("%s %-4s decode %6.1f MB: %5.2f ms, %5.1f GB/s (stream %5.1f)", versions[v].name,
                   pllm_dtype_name(formats[f]), bytes / 1e6, ours * 1e3, bytes / ours / 1e9,
                   bytes / stream / 1e9);
            if (f == 0 && wide) printf(", %.2fx the head-by-head way", plain / ours);
            printf("; prefill %.1f GFLOP/s", flops / prefill / 1e9);
            if (peak > 0) printf(" (%.0f%% of peak)", 100 * flops / prefill / peak);
            printf("\n");
            if (json)
                fprintf(json,
                        "%s{\"version\": \"%s\", \"format\": \"%s\", \"decode_gbps\": %.2f, "
                        "\"read_gbps\": %.2f, \"over_head_by_head\": %.2f, "
                        "\"prefill_gflops\": %.1f}",
                        results++ ? ",\n  " : "", versions[v].name, pllm_dtype_name(formats[f]),
                        bytes / ours / 1e9, bytes / stream / 1e9, f == 0 && wide ? plain / ours : 0,
                        flops / prefill / 1e9);
            free(c.blocks);
        }
    bench_gather(smoke, json);
    if (json && fclose(json) != 0) return 1;
    free(scratch);
    return 0;
}
