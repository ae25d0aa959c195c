/* Attention over KV blocks: every version against a double-precision softmax written here, which
 * reads blocks by its own arithmetic; and the rule that a row's bits depend on nothing but its own
 * q and the keys it sees. Unwritten rows of blocks are NaN throughout. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "kernels/attention.h"

static const struct {
    const char *name;
    const pllm_attention_kernels *kernels;
} versions[] = {
    {"reference", &pllm_attention_reference},
    {"avx2", &pllm_attention_avx2},
    {"avx512", &pllm_attention_avx512},
};
enum { VERSIONS = 3 };

static int runs_here(uint32_t version)
{
    if (version == 1)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
               __builtin_cpu_supports("f16c");
    if (version == 2)
        return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512vbmi");
    return 1;
}

static const pllm_dtype formats[] = {PLLM_F32, PLLM_F16, PLLM_BF16, PLLM_INT8, PLLM_INT4};
static const uint32_t dims[] = {8, 16, 24, 40, 64, 80, 96, 128, 200, 256};
#define COUNT(array) (sizeof(array) / sizeof *(array))

static uint64_t seed = 1;
static float uniform(void) /* -1..1 */
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float)((int64_t)seed >> 40) * 0x1p-23f;
}

/* A chunk of KV: tokens written by append and sealed, q for 32 rows of 16 heads. */
typedef struct world {
    pllm_kv_shape shape;
    pllm_kv_view view;
    uint8_t *blocks[PLLM_CHUNK_BLOCKS];
    float *q; /* [32][PLLM_GROUP_MAX][d] */
    void *scratch;
    double *read[2]; /* head's keys and values as the oracle reads them, [256][d] */
    uint32_t read_head;
} world;

static void world_open(world *w, pllm_dtype format, uint32_t heads, uint32_t d, uint32_t tokens,
                       const pllm_attention_kernels *kernels, int garbage)
{
    memset(w, 0, sizeof *w);
    assert_int_equal(pllm_kv_shape_init(&w->shape, format, heads, d), 0);
    uint64_t open_bytes = pllm_kv_block_bytes(&w->shape, w->shape.open);
    uint64_t sealed_bytes = pllm_kv_block_bytes(&w->shape, w->shape.sealed);
    float *k = malloc(heads * d * sizeof *k), *v = malloc(heads * d * sizeof *v);
    uint8_t *open = NULL;
    for (uint32_t t = 0; t < tokens; t++) {
        uint32_t row = t % PLLM_BLOCK_TOKENS;
        if (row == 0) {
            open = aligned_alloc(4096, open_bytes);
            memset(open, garbage, open_bytes);
        }
        for (uint32_t i = 0; i < heads * d; i++) {
            k[i] = uniform() * (i % 7 == 3 ? 4 : 1) + (i % 5 == 1 ? 2.0f : 0.0f);
            v[i] = uniform();
        }
        kernels->append(&w->shape, open, row, k, v);
        if (row == PLLM_BLOCK_TOKENS - 1) {
            uint8_t *sealed = aligned_alloc(4096, sealed_bytes);
            memset(sealed, garbage, sealed_bytes);
            kernels->seal(&w->shape, sealed, open);
            free(open);
            open = NULL;
            w->blocks[t / PLLM_BLOCK_TOKENS] = sealed;
        }
    }
    if (open) w->blocks[(tokens - 1) / PLLM_BLOCK_TOKENS] = open;
    w->view.block_count = (tokens + PLLM_BLOCK_TOKENS - 1) / PLLM_BLOCK_TOKENS;
    w->view.last_open = open != NULL;
    w->view.token_count = tokens;
    for (uint32_t b = 0; b < w->view.block_count; b++) w->view.blocks[b] = w->blocks[b];
    uint64_t q_count = (uint64_t)32 * PLLM_GROUP_MAX * d;
    w->q = malloc(q_count * sizeof *w->q);
    for (uint64_t i = 0; i < q_count; i++) w->q[i] = uniform() * 2 / sqrtf((float)d);
    uint64_t scratch_bytes = (pllm_attention_scratch_bytes(d) + 63) / 64 * 64;
    w->scratch = aligned_alloc(64, scratch_bytes);
    memset(w->scratch, 0xff, scratch_bytes); /* old scratch must not leak into results */
    free(k);
    free(v);
}

static void world_close(world *w)
{
    for (int b = 0; b < PLLM_CHUNK_BLOCKS; b++) free(w->blocks[b]);
    free(w->q);
    free(w->scratch);
    free(w->read[0]);
    free(w->read[1]);
}

/* The layout once more, one element at a time. */
static double element(const world *w, uint32_t head, int value, uint32_t t, uint32_t c)
{
    uint32_t block = t / 32, row = t % 32, d = w->shape.head_dim;
    int open = w->view.last_open && block == w->view.block_count - 1;
    pllm_dtype dtype = open ? w->shape.open : w->shape.sealed;
    const uint8_t *b = w->view.blocks[block];
    uint64_t at = (((uint64_t)head * 2 + (value != 0)) * 32 + row) * d + c;
    if (dtype == PLLM_F32) return ((const float *)(const void *)b)[at];
    if (dtype == PLLM_F16) return pllm_f16_to_f32(((const uint16_t *)(const void *)b)[at]);
    if (dtype == PLLM_BF16) return pllm_bf16_to_f32(((const uint16_t *)(const void *)b)[at]);
    uint32_t half = dtype == PLLM_INT4 ? 2 : 1; /* elements a byte */
    b += head * (64 * d / half + 4 * d + 128);
    const uint16_t *scales = (const void *)(b + 64 * d / half);
    uint32_t q;
    if (value)
        q = half == 1   ? b[32 * d + row * d + c]
            : c < d / 2 ? b[16 * d + row * (d / 2) + c] & 15
                        : b[16 * d + row * (d / 2) + c - d / 2] >> 4;
    else
        q = half == 1  ? b[c * 32 + row]
            : row < 16 ? b[c * 16 + row] & 15
                       : b[c * 16 + row - 16] >> 4;
    double scale = pllm_f16_to_f32(value ? scales[2 * d + row] : scales[c]);
    double minimum = pllm_f16_to_f32(value ? scales[2 * d + 32 + row] : scales[d + c]);
    return scale * q + minimum;
}

/* Reads the head's blocks once; they do not change while the oracle is asked about them. */
static void world_read(world *w, uint32_t head)
{
    uint32_t d = w->shape.head_dim;
    if (w->read[0] && w->read_head == head) return;
    for (int value = 0; value < 2; value++) {
        if (!w->read[value]) w->read[value] = malloc(256 * d * sizeof(double));
        for (uint32_t t = 0; t < w->view.block_count * 32; t++)
            for (uint32_t c = 0; c < d && w->view.blocks[t / 32]; c++)
                w->read[value][t * d + c] = element(w, head, value, t, c);
    }
    w->read_head = head;
}

/* Direct softmax over tokens first..end-1, normalised. */
static void oracle(world *w, uint32_t head, const float *q, uint32_t first, uint32_t end,
                   double *out)
{
    uint32_t d = w->shape.head_dim;
    double score[256], top = -INFINITY, sum = 0;
    world_read(w, head);
    for (uint32_t c = 0; c < d; c++) out[c] = 0;
    for (uint32_t t = first; t < end; t++) {
        score[t] = 0;
        for (uint32_t c = 0; c < d; c++) score[t] += q[c] * w->read[0][t * d + c];
        top = fmax(top, score[t]);
    }
    for (uint32_t t = first; t < end; t++) {
        double p = exp(score[t] - top);
        sum += p;
        for (uint32_t c = 0; c < d; c++) out[c] += p * w->read[1][t * d + c];
    }
    for (uint32_t c = 0; c < d; c++) out[c] = end > first ? out[c] / sum : 0;
}

static void check_close(const float *got, const double *want, uint32_t d, double tolerance,
                        const char *name, const world *w)
{
    for (uint32_t c = 0; c < d; c++)
        if (!(fabs(got[c] - want[c]) <= tolerance))
            fail_msg("%s, %s, head_dim %u, %u tokens, skip %u: channel %u is %g, not %g", name,
                     pllm_dtype_name(w->shape.sealed), d, w->view.token_count, w->view.skip, c,
                     (double)got[c], want[c]);
}

static void check_decode(uint32_t version, world *w, uint32_t head, uint32_t group,
                         double tolerance)
{
    const pllm_attention_kernels *kernels = versions[version].kernels;
    uint32_t d = w->shape.head_dim;
    float max[16], sum[16], out[16 * 256], done[256];
    double want[256];
    memset(out, 0xff, sizeof out);
    kernels->attend_decode(&w->shape, &w->view, head, w->q, group, max, sum, out, w->scratch);
    for (uint32_t h = 0; h < group; h++) {
        oracle(w, head, w->q + h * d, w->view.skip, w->view.token_count, want);
        kernels->finish(done, out + h * d, sum[h], d);
        check_close(done, want, d, tolerance, versions[version].name, w);
    }
}

static void decode_matches_the_oracle(void **state)
{
    (void)state;
    for (uint32_t version = 0; version < VERSIONS; version++) {
        if (!runs_here(version)) continue;
        for (uint32_t f = 0; f < COUNT(formats); f++)
            for (uint32_t i = 0; i < COUNT(dims); i++) {
                static const uint32_t tokens[] = {1, 31, 32, 47, 80, 255, 256};
                for (uint32_t n = (i + f) % 2; n < COUNT(tokens); n += 2) {
                    world w;
                    uint32_t group = 1 + (i + f + n) % 8;
                    world_open(&w, formats[f], 2, dims[i], tokens[n], versions[version].kernels,
                               0xff);
                    check_decode(version, &w, 1, group, 1e-5);
                    world_close(&w);
                }
            }
    }
}

/* Every count of tokens and every skip of a chunk once, at the shapes that matter. */
static void decode_matches_at_every_count_and_skip(void **state)
{
    (void)state;
    for (uint32_t version = 0; version < VERSIONS; version++) {
        if (!runs_here(version)) continue;
        for (uint32_t f = 0; f < COUNT(formats); f++) {
            world w;
            world_open(&w, formats[f], 1, 16, 251, versions[version].kernels, 0xff);
            pllm_kv_view whole = w.view;
            world_read(&w, 0);
            for (uint32_t n = 1; n <= 251; n++) {
                w.view.token_count = n;
                w.view.block_count = (n + 31) / 32;
                w.view.last_open = whole.last_open && n > 224;
                w.view.skip = n * 7 % 13 ? 0 : n * 31 % (n + 2);
                check_decode(version, &w, 0, 1 + n % 16, 1e-5);
                /* Blocks of masked tokens only may be absent. */
                for (uint32_t b = 0; b < w.view.skip / 32; b++) w.view.blocks[b] = NULL;
                check_decode(version, &w, 0, 3, 1e-5);
                w.view = whole;
            }
            world_close(&w);
        }
    }
}

/* Rows `from` and on of a prefill over one chunk, as finished outputs. */
static void prefill(uint32_t version, const world *w, uint32_t head, uint32_t group, uint32_t from,
                    uint32_t rows, uint32_t first, float *done)
{
    const pllm_attention_kernels *kernels = versions[version].kernels;
    uint32_t d = w->shape.head_dim;
    uint64_t stride = (uint64_t)PLLM_GROUP_MAX * d;
    float *out = calloc((uint64_t)rows * group * d, sizeof *out), max[32 * 16], sum[32 * 16];
    for (uint32_t i = 0; i < rows * group; i++) max[i] = -INFINITY, sum[i] = 0;
    kernels->attend_prefill(&w->shape, &w->view, head, w->q + from * stride, stride, group, rows,
                            first + from, max, sum, out, w->scratch);
    for (uint32_t i = 0; i < rows * group; i++)
        kernels->finish(done + (uint64_t)i * d, out + (uint64_t)i * d, sum[i], d);
    free(out);
}

static void check_prefill(uint32_t version, world *w, uint32_t head, uint32_t group, uint32_t rows,
                          uint32_t first)
{
    uint32_t d = w->shape.head_dim;
    float *done = malloc((uint64_t)rows * group * d * sizeof *done);
    double want[256];
    prefill(version, w, head, group, 0, rows, first, done);
    for (uint32_t r = 0; r < rows; r++) {
        uint32_t seen = first + r, begin = w->view.skip;
        uint32_t end = seen < w->view.token_count ? seen : w->view.token_count;
        if (w->view.window && seen > begin + w->view.window) begin = seen - w->view.window;
        for (uint32_t h = 0; h < group; h++) {
            oracle(w, head, w->q + ((uint64_t)r * PLLM_GROUP_MAX + h) * d, begin, end, want);
            check_close(done + ((uint64_t)r * group + h) * d, want, d, 1e-5, versions[version].name,
                        w);
        }
    }
    free(done);
}

static void prefill_matches_the_oracle(void **state)
{
    (void)state;
    for (uint32_t version = 0; version < VERSIONS; version++) {
        if (!runs_here(version)) continue;
        for (uint32_t f = 0; f < COUNT(formats); f++)
            for (uint32_t i = 0; i < COUNT(dims); i++) {
                world w;
                uint32_t tokens = (i + f) % 2 ? 256 : 70 + 10 * i, rows = 1 + (i * 7 + f) % 32;
                uint32_t first = (tokens - 1) / 32 * 32 + 1; /* the diagonal block */
                if (first + rows - 1 > tokens) rows = tokens - first + 1;
                world_open(&w, formats[f], 2, dims[i], tokens, versions[version].kernels, 0xff);
                check_prefill(version, &w, 1, 1 + (i + f) % 8, rows, first);
                check_prefill(version, &w, 0, 2, 1 + i % 3, 300); /* a later row: sees it all */
                world_close(&w);
            }
    }
}

static void prefill_matches_with_masks(void **state)
{
    (void)state;
    for (uint32_t version = 0; version < VERSIONS; version++) {
        if (!runs_here(version)) continue;
        for (uint32_t f = 0; f < COUNT(formats); f += 2) {
            world w;
            world_open(&w, formats[f], 1, 24, 256, versions[version].kernels, 0xff);
            for (uint32_t n = 0; n < 60; n++) {
                uint32_t block = n % 8, row = n * 5 % 32, rows = 1 + n * 11 % (32 - row);
                w.view.skip = n % 3 ? 0 : n * 37 % 200;
                w.view.window = n % 4 ? 1 + n * n * 13 % 300 : 0;
                w.view.token_count = n % 5 ? 256 : 1 + n * 17 % 256;
                check_prefill(version, &w, 0, 1 + n % 16, rows,
                              (n % 7 ? block : block + 8) * 32 + row + 1);
            }
            world_close(&w);
        }
    }
}

/* 32 rows at once, in two pieces, one by one, and head by head: the same bits. */
static void rows_do_not_know_their_neighbours(void **state)
{
    (void)state;
    for (uint32_t version = 0; version < VERSIONS; version++) {
        if (!runs_here(version)) continue;
        for (uint32_t i = 0; i < COUNT(dims); i += 2)
            for (uint32_t place = 0; place < 4; place++) {
                static const uint32_t firsts[] = {1, 97, 225, 289};
                uint32_t d = dims[i], group = 3 + i / 2, first = firsts[place];
                world w;
                world_open(&w, formats[(i / 2 + place) % COUNT(formats)], 1, d, 256,
                           versions[version].kernels, 0xff);
                w.view.window = place == 3 ? 150 : 0;
                uint64_t size = (uint64_t)32 * group * d, row = (uint64_t)group * d;
                float *all = malloc(size * 4), *part = malloc(size * 4);
                prefill(version, &w, 0, group, 0, 32, first, all);
                prefill(version, &w, 0, group, 0, 13, first, part);
                prefill(version, &w, 0, group, 13, 19, first, part + 13 * row);
                assert_memory_equal(all, part, size * 4);
                for (uint32_t r = 0; r < 32; r++)
                    prefill(version, &w, 0, group, r, 1, first, part + r * row);
                assert_memory_equal(all, part, size * 4);
                for (uint32_t r = 0; r < 32; r += 5) {
                    prefill(version, &w, 0, 1, r, 1, first, part);
                    assert_memory_equal(all + r * row, part, d * 4);
                }
                world_close(&w);
                free(all);
                free(part);
            }
    }
}

static void heads_do_not_know_their_group(void **state)
{
    (void)state;
    for (uint32_t version = 0; version < VERSIONS; version++) {
        if (!runs_here(version)) continue;
        for (uint32_t f = 0; f < COUNT(formats); f++)
            for (uint32_t i = 0; i < COUNT(dims); i += 3) {
                world w;
                uint32_t d = dims[i];
                float max[17], sum[17], out[16 * 256], one_max, one_sum, one[256];
                world_open(&w, formats[f], 1, d, 203, versions[version].kernels, 0xff);
                for (uint32_t group = 2; group <= 16; group += 1 + group % 3) {
                    versions[version].kernels->attend_decode(&w.shape, &w.view, 0, w.q, group, max,
                                                             sum, out, w.scratch);
                    for (uint32_t h = 0; h < group; h++) {
                        versions[version].kernels->attend_decode(&w.shape, &w.view, 0, w.q + h * d,
                                                                 1, &one_max, &one_sum, one,
                                                                 w.scratch);
                        assert_memory_equal(&one_max, max + h, 4);
                        assert_memory_equal(&one_sum, sum + h, 4);
                        assert_memory_equal(one, out + h * d, d * 4);
                    }
                }
                world_close(&w);
            }
    }
}

/* The same tokens with other garbage after them, and as the start of a fuller chunk. */
static void unseen_rows_do_not_matter(void **state)
{
    (void)state;
    for (uint32_t version = 0; version < VERSIONS; version++) {
        if (!runs_here(version)) continue;
        for (uint32_t f = 0; f < COUNT(formats); f++)
            for (uint32_t i = 0; i < COUNT(dims); i += 2) {
                static const int garbage[] = {0xff, 0x00, 0x7b, 0x7c};
                uint32_t d = dims[i], tokens = 65 + 11 * i;
                float max[4], sum[4], out[4][3 * 256], rows[4][8 * 3 * 256];
                uint64_t start = seed;
                for (int g = 0; g < 4; g++) {
                    world w;
                    seed = start;
                    world_open(&w, formats[f], 1, d, tokens, versions[version].kernels, garbage[g]);
                    versions[version].kernels->attend_decode(&w.shape, &w.view, 0, w.q, 3, max, sum,
                                                             out[g], w.scratch);
                    prefill(version, &w, 0, 3, 0, 1 + (tokens - 1) % 8, (tokens - 1) / 8 * 8 + 1,
                            rows[g]);
                    assert_memory_equal(out[0], out[g], 3 * d * 4);
                    assert_memory_equal(rows[0], rows[g], (1 + (tokens - 1) % 8) * 3 * d * 4);
                    world_close(&w);
                }
            }
    }
}

/* A token that is NaN spoils the rows that see it and no earlier one. */
static void a_later_nan_does_not_reach_back(void **state)
{
    (void)state;
    for (uint32_t version = 0; version < VERSIONS; version++) {
        if (!runs_here(version)) continue;
        for (uint32_t i = 0; i < COUNT(dims); i++) {
            uint32_t d = dims[i], group = 1 + i % 5;
            float *clean = malloc(32 * group * d * 4), *spoilt = malloc(32 * group * d * 4);
            float nan[256];
            world w;
            world_open(&w, PLLM_F16, 1, d, 223, versions[version].kernels, 0xff);
            for (uint32_t c = 0; c < d; c++) nan[c] = c % 2 ? NAN : INFINITY;
            prefill(version, &w, 0, group, 0, 31, 193, clean);
            versions[version].kernels->append(&w.shape, w.blocks[6], 20, nan, nan);
            prefill(version, &w, 0, group, 0, 31, 193, spoilt);
            assert_memory_equal(clean, spoilt, 20 * group * d * 4);
            assert_true(isnan(spoilt[20 * group * d]));
            world_close(&w);
            free(clean);
            free(spoilt);
        }
    }
}

/* Four chunks: prefill's running state and decode's merged partials, against the oracle's
 * softmax pieced together in double. */
static void chunks_merge_in_order(void **state)
{
    (void)state;
    for (uint32_t version = 0; version < VERSIONS; version++) {
        if (!runs_here(version)) continue;
        const pllm_attention_kernels *kernels = versions[version].kernels;
        for (uint32_t i = 0; i < COUNT(dims); i++) {
            enum { CHUNKS = 4, GROUP = 2, STRIDE = 300 };
            uint32_t d = dims[i];
            world w[CHUNKS];
            float parts[GROUP][CHUNKS * STRIDE], max[GROUP], sum[GROUP], out[GROUP * 256] = {0};
            float state_max[GROUP] = {-INFINITY, -INFINITY}, state_sum[GROUP] = {0}, done[256];
            for (uint32_t chunk = 0; chunk < CHUNKS; chunk++) {
                world_open(&w[chunk], PLLM_F16, 1, d, chunk == CHUNKS - 1 ? 77 : 256, kernels,
                           0xff);
                memcpy(w[chunk].q, w[0].q, GROUP * d * 4);
                if (chunk == 1) w[chunk].view.skip = 256; /* one chunk is masked whole */
            }
            for (uint32_t chunk = 0; chunk < CHUNKS; chunk++) {
                float part[GROUP * 256];
                kernels->attend_decode(&w[chunk].shape, &w[chunk].view, 0, w[0].q, GROUP, max, sum,
                                       part, w[0].scratch);
                for (uint32_t h = 0; h < GROUP; h++) {
                    float *to = parts[h] + chunk * STRIDE;
                    to[0] = max[h], to[1] = sum[h];
                    memcpy(to + 2, part + h * d, d * 4);
                }
                kernels->attend_prefill(&w[chunk].shape, &w[chunk].view, 0, w[0].q, 0, GROUP, 1,
                                        845 - chunk * 256, state_max, state_sum, out, w[0].scratch);
            }
            for (uint32_t h = 0; h < GROUP; h++) {
                double want[256] = {0}, piece[256], mass = 0;
                for (uint32_t chunk = 0; chunk < CHUNKS; chunk++) {
                    if (chunk == 1) continue;
                    double weight = 0;
                    for (uint32_t t = 0; t < w[chunk].view.token_count; t++) {
                        double score = 0;
                        for (uint32_t c = 0; c < d; c++)
                            score += w[0].q[h * d + c] * element(&w[chunk], 0, 0, t, c);
                        weight += exp(score);
                    }
                    oracle(&w[chunk], 0, w[0].q + h * d, 0, w[chunk].view.token_count, piece);
                    for (uint32_t c = 0; c < d; c++) want[c] += weight * piece[c];
                    mass += weight;
                }
                for (uint32_t c = 0; c < d; c++) want[c] /= mass;
                kernels->merge(done, parts[h], parts[h] + 1, parts[h] + 2, STRIDE, CHUNKS, d);
                check_close(done, want, d, 1e-5, versions[version].name, &w[0]);
                kernels->finish(out + h * d, out + h * d, state_sum[h], d);
                check_close(out + h * d, want, d, 1e-5, versions[version].name, &w[0]);
            }
            for (uint32_t chunk = 0; chunk < CHUNKS; chunk++) world_close(&w[chunk]);
        }
    }
}

static void all_masked_is_empty(void **state)
{
    (void)state;
    for (uint32_t version = 0; version < VERSIONS; version++) {
        if (!runs_here(version)) continue;
        world w;
        world_open(&w, PLLM_F16, 1, 64, 50, versions[version].kernels, 0xff);
        w.view.skip = 50;
        float max, sum, out[64], done[64];
        versions[version].kernels->attend_decode(&w.shape, &w.view, 0, w.q, 1, &max, &sum, out,
                                                 w.scratch);
        assert_true(max == -INFINITY && sum == 0);
        versions[version].kernels->merge(done, &max, &sum, out, 1, 1, 64);
        for (int c = 0; c < 64; c++) assert_true(out[c] == 0 && done[c] == 0);
        world_close(&w);
    }
}

/* Scores of +-1e4 and beyond: no overflow; the largest takes all. */
static void extreme_scores_stay_finite(void **state)
{
    (void)state;
    for (uint32_t version = 0; version < VERSIONS; version++) {
        if (!runs_here(version)) continue;
        for (uint32_t f = 0; f < COUNT(formats); f++) {
            world w;
            world_open(&w, formats[f], 1, 64, 250, versions[version].kernels, 0xff);
            for (uint32_t i = 0; i < 32 * PLLM_GROUP_MAX * 64; i++) w.q[i] *= 8e3f;
            float max[3], sum[3], out[3 * 64], done[26 * 3 * 64];
            double want[64];
            versions[version].kernels->attend_decode(&w.shape, &w.view, 0, w.q, 3, max, sum, out,
                                                     w.scratch);
            prefill(version, &w, 0, 3, 0, 26, 225, done);
            for (uint32_t h = 0; h < 3; h++) {
                if (!(max[h] > 5e3f && sum[h] >= 1 && sum[h] < 251))
                    fail_msg("%s %s head %u: max %g, sum %g", versions[version].name,
                             pllm_dtype_name(formats[f]), h, (double)max[h], (double)sum[h]);
                versions[version].kernels->finish(out + h * 64, out + h * 64, sum[h], 64);
                oracle(&w, 0, w.q + h * 64, 0, 250, want);
                /* A score of 1e4 carries an error of 1e-3 in f32, and so do the weights. */
                check_close(out + h * 64, want, 64, 0.03, versions[version].name, &w);
            }
            for (uint32_t i = 0; i < 26 * 3 * 64; i++) assert_true(fabsf(done[i]) < 1.01f);
            world_close(&w);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decode_matches_the_oracle),
        cmocka_unit_test(decode_matches_at_every_count_and_skip),
        cmocka_unit_test(prefill_matches_the_oracle),
        cmocka_unit_test(prefill_matches_with_masks),
        cmocka_unit_test(rows_do_not_know_their_neighbours),
        cmocka_unit_test(heads_do_not_know_their_group),
        cmocka_unit_test(unseen_rows_do_not_matter),
        cmocka_unit_test(a_later_nan_does_not_reach_back),
        cmocka_unit_test(chunks_merge_in_order),
        cmocka_unit_test(all_masked_is_empty),
        cmocka_unit_test(extreme_scores_stay_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
