/* float_lanes.h - products in f32 over sixteen lanes, one lane an output row: shared by
 * linear_avx2.c and linear_avx512.c.
 *
 * A tile is ROWS rows of x by PANELS panels. Its sums are ROWS * PANELS independent FMA chains
 * over ascending k, kept in registers, so tiles of any shape give the same bits. One row takes four
 * panels at once: a chain alone would wait four cycles for each FMA. */
#ifndef PLLM_KERNELS_CPU_FLOAT_LANES_H
#define PLLM_KERNELS_CPU_FLOAT_LANES_H

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/lanes16.h"

typedef enum float_kind { /* how a weight becomes f32 */
                          KIND_F32,
                          KIND_F16,
                          KIND_BF16,
                          KIND_PAIR, /* bf16 pairs, x rounded to bf16 */
                          KIND_Q8_0,
                          KIND_Q4_0,
                          KIND_Q4_1
} float_kind;

INLINE float_kind float_kind_of(const pllm_linear *linear)
{
    if (linear->compute == PLLM_COMPUTE_BF16) return KIND_PAIR;
    switch (linear->dtype) {
    case PLLM_F16:
        return KIND_F16;
    case PLLM_BF16:
        return KIND_BF16;
    case PLLM_Q8_0:
        return KIND_Q8_0;
    case PLLM_Q4_0:
        return KIND_Q4_0;
    case PLLM_Q4_1:
        return KIND_Q4_1;
    default:
        return KIND_F32;
    }
}

/* Everything a tile needs; m and n are absolute. */
typedef struct float_tile {
    float *out; /* of row m, output 0 */
    uint64_t out_stride;
    const pllm_activations *activations;
    const pllm_linear *linear;
    uint32_t m, n, n_end; /* n_end: outputs from here on are not written */
    /* While rows go by the panels at hand, the next panels are asked for, step bytes for each k (or
     * group), a share by each tile, so that they are in cache when their turn comes. */
    uintptr_t ahead; /* may lie past the matrix: only ever prefetched */
    uint32_t ahead_step;
} float_tile;

/* Shares out the panels after these over tile_count tiles of step_count steps. */
INLINE void plan_ahead(float_tile *tile, uint32_t panels, uint32_t tile_count, uint32_t step_count)
{
    uint64_t bytes = tile->linear->panel_bytes * panels, steps = (uint64_t)tile_count * step_count;
    tile->ahead = (uintptr_t)panel_at(tile->linear, tile->n / PLLM_PANEL_ROWS) + bytes;
    tile->ahead_step = (uint32_t)((bytes + steps - 1) / steps);
}

INLINE void look_ahead(const float_tile *tile, uint32_t step)
{
    uintptr_t at = tile->ahead + (uint64_t)step * tile->ahead_step;
    for (uint32_t i = 0; i < tile->ahead_step; i += 64)
        _mm_prefetch((const char *)(at + i), _MM_HINT_T1);
}

/* The tile below: rows further, with the next share of what is ahead. */
INLINE void next_rows(float_tile *tile, uint32_t rows, uint32_t step_count)
{
    tile->m += rows;
    tile->out += rows * tile->out_stride;
    tile->ahead += (uint64_t)step_count * tile->ahead_step;
}

INLINE uint32_t float_steps(float_kind kind, const pllm_linear *linear)
{
    if (kind >= KIND_Q8_0) return linear->k / PLLM_GROUP;
    return kind == KIND_PAIR ? (linear->k + 1) / 2 : linear->k;
}

/* Sixteen plain weights of element i. */
INLINE v16 plain_weights(float_kind kind, const uint8_t *panel, uint32_t i)
{
    switch (kind) {
    case KIND_F32:
        return v16_load(panel + (uint64_t)i * 64);
    case KIND_F16:
        return v16_load_f16(panel + (uint64_t)i * 32);
    case KIND_BF16:
        return v16_load_bf16(panel + (uint64_t)i * 32);
    default:
        return v16_load_bf16_pair(panel + (uint64_t)(i / 2) * 64, i % 2);
    }
}

INLINE v16 activation(float_kind kind, const float *f32, const uint16_t *bf16, uint64_t index)
{
    if (kind != KIND_PAIR) return v16_set1(f32[index]);
    uint32_t bits = (uint32_t)bf16[index] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return v16_set1(value);
}

INLINE void tile_plain(v16 *sums, float_kind kind, const float_tile *tile, int rows, int panels)
{
    uint64_t stride = tile->activations->k_padded, panel_bytes = tile->linear->panel_bytes;
    const float *f32 = tile->activations->f32 + tile->m * stride;
    const uint16_t *bf16 = tile->activations->bf16 + tile->m * stride;
    const uint8_t *panel = panel_at(tile->linear, tile->n / PLLM_PANEL_ROWS);
    uint32_t k = tile->linear->k, step = kind == KIND_PAIR ? 2 : 1;
    for (uint32_t i = 0; i < k; i += step) {
        look_ahead(tile, i / step);
        UNROLL for (uint32_t odd = 0; odd < step; odd++)
        { /* past an odd k both sides are zero */
            v16 w[4];
            UNROLL for (int p = 0; p < panels; p++) w[p] =
                plain_weights(kind, panel + (uint64_t)p * panel_bytes, i + odd);
            UNROLL for (int r = 0; r < rows; r++)
            {
                v16 x = activation(kind, f32, bf16, (uint64_t)r * stride + i + odd);
                UNROLL for (int p = 0; p < panels; p++) sums[r * panels + p] =
                    v16_fma(w[p], x, sums[r * panels + p]);
            }
        }
    }
}

/* Four weights of 16 rows lie in one vector; d * q is exact, so d * q + m is one rounding. */
INLINE void tile_blocks(v16 *sums, float_kind kind, const float_tile *tile, int rows, int panels)
{
    uint64_t stride = tile->activations->k_padded, panel_bytes = tile->linear->panel_bytes;
    const float *f32 = tile->activations->f32 + tile->m * stride;
    const uint8_t *panel = panel_at(tile->linear, tile->n / PLLM_PANEL_ROWS);
    uint64_t scale_bytes = pllm_panel_scale_bytes(tile->linear->dtype, tile->linear->k);
    uint32_t groups = tile->linear->k / PLLM_GROUP;
    int nibbles = kind != KIND_Q8_0, scale_step = kind == KIND_Q4_1 ? 64 : 32;
    int mask = nibbles ? 15 : 255, offset = kind == KIND_Q8_0 ? 128 : kind == KIND_Q4_0 ? 8 : 0;
    for (uint32_t g = 0; g < groups; g++) {
        look_ahead(tile, g);
        v16 d[4], m[4];
        UNROLL for (int p = 0; p < panels; p++)
        {
            const uint8_t *scale = panel + (uint64_t)p * panel_bytes + g * (unsigned)scale_step;
            d[p] = v16_load_f16(scale);
            m[p] = kind == KIND_Q4_1 ? v16_load_f16(scale + 32) : d[p];
        }
        for (int v = 0; v < 8; v++) {
            const uint8_t *four =
                panel + scale_bytes +
                (nibbles ? g * 256u + (uint64_t)(v % 4) * 64 : g * 512u + v * 64u);
            UNROLL for (int j = 0; j < 4; j++)
            {
                v16 w[4];
                UNROLL for (int p = 0; p < panels; p++)
                {
                    int shift = 8 * j + (nibbles && v >= 4 ? 4 : 0);
                    v16 q = v16_load_bits(four + (uint64_t)p * panel_bytes, shift, mask, offset);
                    w[p] = kind == KIND_Q4_1 ? v16_fma(d[p], q, m[p]) : v16_mul(d[p], q);
                }
                UNROLL for (int r = 0; r < rows; r++)
                {
                    v16 x = v16_set1(f32[(uint64_t)r * stride + g * 32 + v * 4u + (unsigned)j]);
                    UNROLL for (int p = 0; p < panels; p++) sums[r * panels + p] =
                        v16_fma(w[p], x, sums[r * panels + p]);
                }
            }
        }
    }
}

TILE void tile_any(float_kind kind, const float_tile *tile, int rows, int panels)
{
    v16 sums[32];
    UNROLL for (int i = 0; i < rows * panels; i++) sums[i] = v16_set1(0.0f);
    if (kind >= KIND_Q8_0)
        tile_blocks(sums, kind, tile, rows, panels);
    else
        tile_plain(sums, kind, tile, rows, panels);
    UNROLL for (int p = 0; p < panels; p++)
    {
        uint32_t n = tile->n + (uint32_t)p * PLLM_PANEL_ROWS, left = tile->n_end - n;
        UNROLL for (int r = 0; r < rows; r++)
        {
            float *out = tile->out + (uint64_t)r * tile->out_stride + n;
            if (left >= 16)
                v16_store(out, sums[r * panels + p]);
            else
                v16_store_first(out, left, sums[r * panels + p]);
        }
    }
}

/* The tile of many rows, FLOAT_ROWS by FLOAT_PANELS: as many chains as there are registers for, so
 * that a weight or an activation, once loaded, serves several FMAs. One row: by 4 panels. */
#if defined(__AVX512F__)
enum { FLOAT_ROWS = 6, FLOAT_PANELS = 2 };
#else
enum { FLOAT_ROWS = 4, FLOAT_PANELS = 1 }; /* two registers a chain, sixteen in all */
#endif

/* The height of the next tile: as few tiles as may be, of nearly equal height. */
INLINE uint32_t next_height(uint32_t m_count, uint32_t rows_max)
{
    uint32_t tiles = (m_count + rows_max - 1) / rows_max;
    return (m_count + tiles - 1) / tiles;
}

INLINE void tile_of_height(float_kind kind, const float_tile *tile, uint32_t rows)
{
    switch (rows) {
    case 6:
        tile_any(kind, tile, FLOAT_ROWS, FLOAT_PANELS);
        break;
    case 5:
        tile_any(kind, tile, FLOAT_ROWS < 5 ? FLOAT_ROWS : 5, FLOAT_PANELS);
        break;
    case 4:
        tile_any(kind, tile, 4, FLOAT_PANELS);
        break;
    case 3:
        tile_any(kind, tile, 3, FLOAT_PANELS);
        break;
    case 2:
        tile_any(kind, tile, 2, FLOAT_PANELS);
        break;
    default:
        tile_any(kind, tile, 1, FLOAT_PANELS);
        break;
    }
}

/* All m of the call by the given number of panels: 4 (if there is one row), FLOAT_PANELS or 1. */
INLINE void float_rows(float_kind kind, float_tile tile, uint32_t m_count, uint32_t panels)
{
    while (m_count > 0) {
        uint32_t rows = next_height(m_count, FLOAT_ROWS);
        if (panels == FLOAT_PANELS) {
            tile_of_height(kind, &tile, rows);
        } else if (panels == 4) {
            tile_any(kind, &tile, 1, 4);
        } else if (rows == FLOAT_ROWS) {
            tile_any(kind, &tile, FLOAT_ROWS, 1);
        } else {
            tile_any(kind, &tile, 1, 1);
            rows = 1;
        }
        next_rows(&tile, rows, float_steps(kind, tile.linear));
        m_count -= rows;
    }
}

#define FLOAT_KIND_FUNCTION(name, kind)                                                            \
    static __attribute__((noinline)) void name(float_tile tile, uint32_t m_count, uint32_t panels) \
    {                                                                                              \
        float_rows(kind, tile, m_count, panels);                                                   \
    }
FLOAT_KIND_FUNCTION(rows_f32, KIND_F32)
FLOAT_KIND_FUNCTION(rows_f16, KIND_F16)
FLOAT_KIND_FUNCTION(rows_bf16, KIND_BF16)
FLOAT_KIND_FUNCTION(rows_q8_0, KIND_Q8_0)
FLOAT_KIND_FUNCTION(rows_q4_0, KIND_Q4_0)
FLOAT_KIND_FUNCTION(rows_q4_1, KIND_Q4_1)
#if defined(__AVX512BF16__)
static void rows_pair(float_tile tile, uint32_t m_count, uint32_t panels); /* by its instruction */
#else
FLOAT_KIND_FUNCTION(rows_pair, KIND_PAIR)
#endif
#undef FLOAT_KIND_FUNCTION

static void product_float(float_tile tile, uint32_t m_count)
{
    /* One row: four panels at a time. More: panels that stay in cache while all rows go by. */
    while (tile.n < tile.n_end) {
        uint32_t left = (tile.n_end - tile.n + 15) / PLLM_PANEL_ROWS, panels = 1;
        if (m_count == 1 && left >= 4)
            panels = 4;
        else if (left >= FLOAT_PANELS)
            panels = FLOAT_PANELS;
        float_kind kind = float_kind_of(tile.linear);
        if (panels != 4)
            plan_ahead(&tile, panels, (m_count + FLOAT_ROWS - 1) / FLOAT_ROWS,
                       float_steps(kind, tile.linear));
        switch (kind) {
        case KIND_F32:
            rows_f32(tile, m_count, panels);
            break;
        case KIND_F16:
            rows_f16(tile, m_count, panels);
            break;
        case KIND_BF16:
            rows_bf16(tile, m_count, panels);
            break;
        case KIND_Q8_0:
            rows_q8_0(tile, m_count, panels);
            break;
        case KIND_Q4_0:
            rows_q4_0(tile, m_count, panels);
            break;
        case KIND_Q4_1:
            rows_q4_1(tile, m_count, panels);
            break;
        case KIND_PAIR:
            rows_pair(tile, m_count, panels);
            break;
        }
        tile.n += panels * PLLM_PANEL_ROWS;
    }
}

#endif
