/* linear_avx512.c - products with AVX-512, VNNI and BF16: one register is a panel's 16 rows.
 *
 * Integers. A 15-bit activation is a = 128 * high + low, both int8; weights are unsigned bytes.
 * vpdpbusd multiplies the four bytes of each of 16 rows by four activations, broadcast, and sums
 * them exactly; high and low sums meet as 128 * high + low once a group. A group of 32 is stored
 * as 64 bytes: [32 high][32 low]. Q8_0 and Q4_0 hold q + offset, so offset * sum(a) is taken off,
 * still in integers.
 *
 * Few rows (direct): weights are unpacked in registers on their way from memory, the loads of the
 * next lines asked for early; the time is the memory's. Many rows (tiled): two panels of up to
 * CHUNK_GROUPS groups are unpacked to bytes in 30 KiB of stack, the first cache's, and 6 rows of x
 * at a time go by, so that two thirds of the instructions are vpdpbusd. Between chunks of k the f32
 * sums rest in out. Both make the same FMA chain. */
#if defined(__x86_64__)
#include "kernels/cpu/float_lanes.h"

enum { CHUNK_GROUPS = 24, TILE_ROWS = 6, DIRECT_ROWS = 4, DIRECT_MAX = 16, AHEAD_BYTES = 4096 };

static void prepare_group(pllm_activations *activations, uint64_t index, const float *x)
{
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512 x0 = _mm512_loadu_ps(x), x1 = _mm512_loadu_ps(x + 16);
    __m512i largest = _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(x0), magnitude),
                                       _mm512_and_si512(_mm512_castps_si512(x1), magnitude));
    pllm_group_scale scale = pllm_group_scale_of(_mm512_reduce_max_epu32(largest));
    __m512 inverse = _mm512_set1_ps(scale.inverse);
    __mmask16 keep = scale.inverse == 0.0f ? 0 : 0xffff;
    __m512i a0 = _mm512_maskz_cvtps_epi32(keep, _mm512_mul_ps(x0, inverse));
    __m512i a1 = _mm512_maskz_cvtps_epi32(keep, _mm512_mul_ps(x1, inverse));
    __m512i high0 = _mm512_srai_epi32(_mm512_add_epi32(a0, _mm512_set1_epi32(64)), 7);
    __m512i high1 = _mm512_srai_epi32(_mm512_add_epi32(a1, _mm512_set1_epi32(64)), 7);
    __m512i low0 = _mm512_sub_epi32(a0, _mm512_slli_epi32(high0, 7));
    __m512i low1 = _mm512_sub_epi32(a1, _mm512_slli_epi32(high1, 7));
    __m128i *out = (__m128i *)(activations->quantised + index * 64);
    _mm_storeu_si128(out, _mm512_cvtepi32_epi8(high0));
    _mm_storeu_si128(out + 1, _mm512_cvtepi32_epi8(high1));
    _mm_storeu_si128(out + 2, _mm512_cvtepi32_epi8(low0));
    _mm_storeu_si128(out + 3, _mm512_cvtepi32_epi8(low1));
    int32_t sum = _mm512_reduce_add_epi32(_mm512_add_epi32(a0, a1));
    activations->scale[index] = scale.scale;
    activations->sum[index] = sum;
    activations->scaled_sum[index] = scale.scale * (float)sum;
}

void pllm_prepare_avx512(pllm_activations *activations, uint32_t row, const float *x,
                         uint32_t forms)
{
    pllm_prepare_plain(activations, row, x, forms);
    if (!(forms & PLLM_FORM_INTEGER)) return;
    uint64_t first = (uint64_t)row * activations->group_count;
    for (uint32_t g = 0; g < activations->k / PLLM_GROUP; g++)
        prepare_group(activations, first + g, x + (uint64_t)g * PLLM_GROUP);
}

INLINE int32_t load_i32(const int8_t *p)
{
    int32_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

INLINE int offset_of(pllm_dtype dtype)
{
    return dtype == PLLM_Q8_0 ? 128 : dtype == PLLM_Q4_0 ? 8 : 0;
}

INLINE int scale_step_of(pllm_dtype dtype)
{
    return dtype == PLLM_Q4_1 ? 64 : 32;
}

INLINE int quant_step_of(pllm_dtype dtype)
{
    return dtype == PLLM_Q8_0 ? 512 : 256;
}

/* The 8 x 64 bytes of a group, four k a vector in order of k. */
INLINE void unpack_group(__m512i *w, pllm_dtype dtype, const uint8_t *quants)
{
    const __m512i low = _mm512_set1_epi8(15);
    UNROLL for (int v = 0; v < 4; v++)
    {
        __m512i bytes = _mm512_load_si512(quants + 64 * v);
        if (dtype == PLLM_Q8_0) {
            w[v] = bytes;
            w[v + 4] = _mm512_load_si512(quants + 64 * v + 256);
        } else {
            w[v] = _mm512_and_si512(bytes, low);
            w[v + 4] = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low);
        }
    }
}

/* The end of a group's chain: total += d * scale * sum (+ m * scaled_sum). */
INLINE __m512 finish_group(pllm_dtype dtype, __m512 total, __m512i sum, __m512 d, __m512 m,
                           const pllm_activations *activations, uint64_t group)
{
    __m512 scale = _mm512_mul_ps(d, _mm512_set1_ps(activations->scale[group]));
    total = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(sum), total);
    if (dtype == PLLM_Q4_1)
        total = _mm512_fmadd_ps(m, _mm512_set1_ps(activations->scaled_sum[group]), total);
    return total;
}

INLINE void store_total(const float_tile *tile, uint32_t n, int r, __m512 total)
{
    float *out = tile->out + (uint64_t)r * tile->out_stride + n;
    uint32_t left = tile->n_end - n;
    if (left >= 16)
        _mm512_storeu_ps(out, total);
    else
        v16_store_first(out, left, total);
}

/* ROWS rows by one panel, straight from packed weights. */
TILE void tile_direct(pllm_dtype dtype, const float_tile *tile, int rows)
{
    const pllm_activations *activations = tile->activations;
    const uint8_t *scales = panel_at(tile->linear, tile->n / PLLM_PANEL_ROWS);
    const uint8_t *quants = scales + pllm_panel_scale_bytes(dtype, tile->linear->k);
    uint32_t groups = tile->linear->k / PLLM_GROUP;
    uint64_t stride = activations->group_count, first = tile->m * stride;
    int group_bytes = scale_step_of(dtype) + quant_step_of(dtype);
    __m512 totals[DIRECT_ROWS];
    UNROLL for (int r = 0; r < rows; r++) totals[r] = _mm512_setzero_ps();
    for (uint32_t g = 0; g < groups; g++) {
        if (tile->ahead) {
            const char *ahead = (const char *)(tile->ahead + (uint64_t)g * (unsigned)group_bytes);
            UNROLL for (int i = 0; i < group_bytes; i += 64) _mm_prefetch(ahead + i, _MM_HINT_T0);
        }
        __m512i w[8];
        unpack_group(w, dtype, quants);
        __m512 d = _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)scales)), m = d;
        if (dtype == PLLM_Q4_1)
            m = _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(scales + 32)));
        UNROLL for (int r = 0; r < rows; r++)
        {
            uint64_t group = first + (uint64_t)r * stride + g;
            const int8_t *a = activations->quantised + group * 64;
            __m512i high[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
            __m512i low[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
            if (dtype != PLLM_Q4_1)
                low[0] = _mm512_set1_epi32(-offset_of(dtype) * activations->sum[group]);
            UNROLL for (int v = 0; v < 8; v++)
            {
                __m512i high4 = _mm512_set1_epi32(load_i32(a + 4 * v));
                __m512i low4 = _mm512_set1_epi32(load_i32(a + 32 + 4 * v));
                high[v % 2] = _mm512_dpbusd_epi32(high[v % 2], w[v], high4);
                low[v % 2] = _mm512_dpbusd_epi32(low[v % 2], w[v], low4);
            }
            __m512i sum = _mm512_slli_epi32(_mm512_add_epi32(high[0], high[1]), 7);
            sum = _mm512_add_epi32(sum, _mm512_add_epi32(low[0], low[1]));
            totals[r] = finish_group(dtype, totals[r], sum, d, m, activations, group);
        }
        quants += quant_step_of(dtype);
        scales += scale_step_of(dtype);
    }
    UNROLL for (int r = 0; r < rows; r++) store_total(tile, tile->n, r, totals[r]);
}

/* m_count rows in passes of equal height; the panel comes from memory once, then from cache. */
INLINE void direct_rows(pllm_dtype dtype, float_tile tile, uint32_t m_count)
{
    tile.ahead = (uintptr_t)panel_at(tile.linear, tile.n / PLLM_PANEL_ROWS) + AHEAD_BYTES;
    while (m_count > 0) {
        uint32_t rows = next_height(m_count, DIRECT_ROWS);
        switch (rows) {
        case 4:
            tile_direct(dtype, &tile, 4);
            break;
        case 3:
            tile_direct(dtype, &tile, 3);
            break;
        case 2:
            tile_direct(dtype, &tile, 2);
            break;
        default:
            tile_direct(dtype, &tile, 1);
            break;
        }
        next_rows(&tile, rows, 0);
        tile.ahead = 0;
        m_count -= rows;
    }
}

/* Two panels' chunk of k, unpacked. */
typedef struct unpacked {
    uint8_t bytes[CHUNK_GROUPS][8][2][64];
    float d[CHUNK_GROUPS][2][16], m[CHUNK_GROUPS][2][16];
} __attribute__((aligned(64))) unpacked;

TILE void unpack_chunk(unpacked *chunk, pllm_dtype dtype, const pllm_linear *linear, uint32_t panel,
                       int side, uint32_t group_first, uint32_t group_count)
{
    const uint8_t *scales = panel_at(linear, panel);
    const uint8_t *quants = scales + pllm_panel_scale_bytes(dtype, linear->k);
    scales += (uint64_t)group_first * (unsigned)scale_step_of(dtype);
    quants += (uint64_t)group_first * (unsigned)quant_step_of(dtype);
    for (uint32_t g = 0; g < group_count; g++) {
        __m512i w[8];
        unpack_group(w, dtype, quants);
        UNROLL for (int v = 0; v < 8; v++) _mm512_store_si512(chunk->bytes[g][v][side], w[v]);
        _mm512_store_ps(chunk->d[g][side], v16_load_f16(scales));
        if (dtype == PLLM_Q4_1) _mm512_store_ps(chunk->m[g][side], v16_load_f16(scales + 32));
        quants += quant_step_of(dtype);
        scales += scale_step_of(dtype);
    }
}

/* ROWS rows by the two panels of a chunk. first: the chunk's first group. */
TILE void tile_chunk(pllm_dtype dtype, const float_tile *tile, const unpacked *chunk,
                     uint32_t group_first, uint32_t group_count, uint32_t panels, int rows)
{
    const pllm_activations *activations = tile->activations;
    uint64_t stride = activations->group_count, first = tile->m * stride + group_first;
    const int8_t *a = activations->quantised + first * 64;
    __m512 totals[TILE_ROWS][2];
    UNROLL for (int r = 0; r < rows; r++)
    {
        UNROLL for (uint32_t p = 0; p < 2; p++)
        {
            uint32_t n = tile->n + p * PLLM_PANEL_ROWS;
            totals[r][p] = _mm512_setzero_ps();
            if (group_first > 0 && p < panels) {
                const float *out = tile->out + (uint64_t)r * tile->out_stride + n;
                uint32_t left = tile->n_end - n;
                totals[r][p] = v16_load_first(out, left < 16 ? left : 16, 0.0f);
            }
        }
    }
    for (uint32_t g = 0; g < group_count; g++, a += 64) {
        look_ahead(tile, g);
        __m512i sums[TILE_ROWS][2];
        UNROLL for (int r = 0; r < rows; r++) sums[r][0] = sums[r][1] = _mm512_setzero_si512();
        UNROLL for (int part = 0; part < 2; part++)
        {
            UNROLL for (int v = 0; v < 8; v++)
            {
                __m512i w0 = _mm512_load_si512(chunk->bytes[g][v][0]);
                __m512i w1 = _mm512_load_si512(chunk->bytes[g][v][1]);
                UNROLL for (int r = 0; r < rows; r++)
                {
                    const int8_t *at = a + (uint64_t)r * stride * 64 + 32 * part + 4 * v;
                    __m512i four = _mm512_set1_epi32(load_i32(at));
                    sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], w0, four);
                    sums[r][1] = _mm512_dpbusd_epi32(sums[r][1], w1, four);
                }
            }
            if (part == 0) { /* the high halves are done: weigh them and go on with the low */
                UNROLL for (int r = 0; r < rows; r++)
                {
                    sums[r][0] = _mm512_slli_epi32(sums[r][0], 7);
                    sums[r][1] = _mm512_slli_epi32(sums[r][1], 7);
                    if (dtype == PLLM_Q4_1) continue;
                    int32_t sum = activations->sum[first + (uint64_t)r * stride + g];
                    __m512i start = _mm512_set1_epi32(offset_of(dtype) * sum);
                    sums[r][0] = _mm512_sub_epi32(sums[r][0], start);
                    sums[r][1] = _mm512_sub_epi32(sums[r][1], start);
                }
            }
        }
        UNROLL for (int p = 0; p < 2; p++)
        {
            __m512 d = _mm512_load_ps(chunk->d[g][p]);
            __m512 m = dtype == PLLM_Q4_1 ? _mm512_load_ps(chunk->m[g][p]) : d;
            UNROLL for (int r = 0; r < rows; r++) totals[r][p] =
                finish_group(dtype, totals[r][p], sums[r][p], d, m, activations,
                             first + (uint64_t)r * stride + g);
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
    {
        store_total(tile, tile->n, r, totals[r][0]);
        if (panels > 1) store_total(tile, tile->n + PLLM_PANEL_ROWS, r, totals[r][1]);
    }
}

INLINE void chunk_rows(pllm_dtype dtype, float_tile tile, const unpacked *chunk,
                       uint32_t group_first, uint32_t group_count, uint32_t panels,
                       uint32_t m_count)
{
    while (m_count > 0) {
        uint32_t rows = next_height(m_count, TILE_ROWS);
        switch (rows) {
        case 6:
            tile_chunk(dtype, &tile, chunk, group_first, group_count, panels, 6);
            break;
        case 5:
            tile_chunk(dtype, &tile, chunk, group_first, group_count, panels, 5);
            break;
        case 4:
            tile_chunk(dtype, &tile, chunk, group_first, group_count, panels, 4);
            break;
        case 3:
            tile_chunk(dtype, &tile, chunk, group_first, group_count, panels, 3);
            break;
        case 2:
            tile_chunk(dtype, &tile, chunk, group_first, group_count, panels, 2);
            break;
        default:
            tile_chunk(dtype, &tile, chunk, group_first, group_count, panels, 1);
            break;
        }
        next_rows(&tile, rows, group_count);
        m_count -= rows;
    }
}

/* Two panels (or the one left) for many rows; k in chunks of nearly equal size. */
INLINE void tiled_rows(pllm_dtype dtype, float_tile tile, uint32_t panels, uint32_t m_count)
{
    unpacked chunk;
    uint32_t groups = tile.linear->k / PLLM_GROUP, panel = tile.n / PLLM_PANEL_ROWS;
    uint32_t chunks = (groups + CHUNK_GROUPS - 1) / CHUNK_GROUPS;
    uint32_t step = (groups + chunks - 1) / chunks;
    uint32_t tiles = (m_count + TILE_ROWS - 1) / TILE_ROWS;
    plan_ahead(&tile, panels, tiles, groups);
    for (uint32_t first = 0; first < groups; first += step) {
        uint32_t count = groups - first < step ? groups - first : step;
        unpack_chunk(&chunk, dtype, tile.linear, panel, 0, first, count);
        /* With one panel left, both sides hold it, and one is stored. */
        unpack_chunk(&chunk, dtype, tile.linear, panel + panels - 1, 1, first, count);
        chunk_rows(dtype, tile, &chunk, first, count, panels, m_count);
        tile.ahead += (uint64_t)tiles * count * tile.ahead_step;
    }
}

#define INTEGER_FUNCTIONS(suffix, dtype)                                                          \
    static __attribute__((noinline)) void direct_##suffix(float_tile tile, uint32_t m_count)      \
    {                                                                                             \
        for (; tile.n < tile.n_end; tile.n += PLLM_PANEL_ROWS) direct_rows(dtype, tile, m_count); \
    }                                                                                             \
    static __attribute__((noinline)) void tiled_##suffix(float_tile tile, uint32_t m_count)       \
    {                                                                                             \
        for (; tile.n < tile.n_end; tile.n += 2 * PLLM_PANEL_ROWS)                                \
            tiled_rows(dtype, tile, tile.n_end - tile.n > PLLM_PANEL_ROWS ? 2 : 1, m_count);      \
    }
INTEGER_FUNCTIONS(q8_0, PLLM_Q8_0)
INTEGER_FUNCTIONS(q4_0, PLLM_Q4_0)
INTEGER_FUNCTIONS(q4_1, PLLM_Q4_1)
#undef INTEGER_FUNCTIONS

/* bf16 pairs: each instruction adds two products to each lane, by its own rounding rules. */
TILE void tile_pair(const float_tile *tile, int rows, int panels)
{
    uint64_t stride = tile->activations->k_padded, panel_bytes = tile->linear->panel_bytes;
    const uint16_t *x = tile->activations->bf16 + tile->m * stride;
    const uint8_t *panel = panel_at(tile->linear, tile->n / PLLM_PANEL_ROWS);
    __m512 sums[16];
    UNROLL for (int i = 0; i < rows * panels; i++) sums[i] = _mm512_setzero_ps();
    for (uint32_t i = 0; i < tile->linear->k; i += 2, panel += 64) {
        look_ahead(tile, i / 2);
        __m512bh w[4];
        UNROLL for (int p = 0; p < panels; p++) w[p] =
            (__m512bh)_mm512_load_si512(panel + (uint64_t)p * panel_bytes);
        UNROLL for (int r = 0; r < rows; r++)
        {
            const int8_t *at = (const int8_t *)(x + (uint64_t)r * stride + i);
            __m512bh pair = (__m512bh)_mm512_set1_epi32(load_i32(at));
            UNROLL for (int p = 0; p < panels; p++) sums[r * panels + p] =
                _mm512_dpbf16_ps(sums[r * panels + p], w[p], pair);
        }
    }
    UNROLL for (int p = 0; p < panels; p++)
    {
        UNROLL for (int r = 0; r < rows; r++)
            store_total(tile, tile->n + (uint32_t)p * PLLM_PANEL_ROWS, r, sums[r * panels + p]);
    }
}

static void rows_pair(float_tile tile, uint32_t m_count, uint32_t panels)
{
    while (m_count > 0) {
        uint32_t rows = next_height(m_count, FLOAT_ROWS);
        if (panels == 4)
            tile_pair(&tile, 1, 4);
        else if (panels == 1)
            tile_pair(&tile, 1, 1), rows = 1;
        else
            switch (rows) {
            case 6:
                tile_pair(&tile, 6, FLOAT_PANELS);
                break;
            case 5:
                tile_pair(&tile, 5, FLOAT_PANELS);
                break;
            case 4:
                tile_pair(&tile, 4, FLOAT_PANELS);
                break;
            case 3:
                tile_pair(&tile, 3, FLOAT_PANELS);
                break;
            case 2:
                tile_pair(&tile, 2, FLOAT_PANELS);
                break;
            default:
                tile_pair(&tile, 1, FLOAT_PANELS);
                break;
            }
        next_rows(&tile, rows, float_steps(KIND_PAIR, tile.linear));
        m_count -= rows;
    }
}

void pllm_product_avx512(float *out, uint64_t out_stride, const pllm_activations *activations,
                         uint32_t m_first, uint32_t m_count, const pllm_linear *linear,
                         uint32_t n_first, uint32_t n_count)
{
    float_tile tile = {out,     out_stride,        activations, linear, m_first,
                       n_first, n_first + n_count, 0,           0};
    if (linear->compute != PLLM_COMPUTE_INTEGER) {
        product_float(tile, m_count);
        return;
    }
    /* Measured: nibbles are cheaper unpacked in registers up to 16 rows, bytes tile at once. */
    int few = m_count <= (linear->dtype == PLLM_Q8_0 ? DIRECT_ROWS : DIRECT_MAX);
    switch (linear->dtype) {
    case PLLM_Q8_0:
        (few ? direct_q8_0 : tiled_q8_0)(tile, m_count);
        break;
    case PLLM_Q4_0:
        (few ? direct_q4_0 : tiled_q4_0)(tile, m_count);
        break;
    default:
        (few ? direct_q4_1 : tiled_q4_1)(tile, m_count);
        break;
    }
}
#else
typedef int pllm_no_avx512; /* a file needs a declaration */
#endif
