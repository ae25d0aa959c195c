/* pack.c - weights from a file's rows into panels, and one row back out. Layout: linear.h.
 *
 * Each row of a panel is read once in order; the panel being written (6 KiB for 576 Q4_1) stays in
 * the first cache. Reads are unaligned, as file blocks are. */
#include <string.h>
#include "kernels/cpu/cpu.h"

enum { ROWS = PLLM_PANEL_ROWS };

static uint16_t load_u16(const uint8_t *bytes)
{
    uint16_t value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

/* One row of a block format: lane r of the panel. */
static void pack_blocks(uint8_t *panel, uint32_t r, pllm_dtype dtype, uint32_t k,
                        const uint8_t *row)
{
    uint32_t scales = dtype == PLLM_Q4_1 ? 2 : 1, vectors = dtype == PLLM_Q8_0 ? 8 : 4;
    uint32_t flip = dtype == PLLM_Q8_0 ? 0x80808080u : 0;
    uint8_t *quants = panel + pllm_panel_scale_bytes(dtype, k);
    for (uint32_t group = 0; group < k / PLLM_GROUP; group++) {
        for (uint32_t s = 0; s < scales; s++)
            memcpy(panel + ((uint64_t)(group * scales + s) * ROWS + r) * 2, row + 2 * s, 2);
        row += 2 * scales;
        for (uint32_t v = 0; v < vectors; v++) {
            uint32_t four;
            memcpy(&four, row + 4 * v, 4);
            four ^= flip;
            memcpy(quants + 64 * v + 4 * r, &four, 4);
        }
        row += 4 * vectors;
        quants += 64 * vectors;
    }
}

static uint16_t to_bf16(pllm_dtype dtype, const uint8_t *element)
{
    if (dtype == PLLM_BF16) return load_u16(element);
    if (dtype == PLLM_F16) return pllm_f32_to_bf16(pllm_f16_to_f32(load_u16(element)));
    float value;
    memcpy(&value, element, sizeof value);
    return pllm_f32_to_bf16(value);
}

static void pack_plain(uint8_t *panel, uint32_t r, pllm_dtype dtype, uint32_t k,
                       pllm_compute compute, const uint8_t *row)
{
    if (compute == PLLM_COMPUTE_BF16) {
        uint32_t bytes = pllm_dtype_block_bytes(dtype);
        for (uint32_t i = 0; i < k; i++) {
            uint16_t value = to_bf16(dtype, row + (uint64_t)i * bytes);
            memcpy(panel + ((uint64_t)(i / 2) * ROWS + r) * 4 + i % 2 * 2, &value, 2);
        }
    } else if (dtype == PLLM_F32) {
        for (uint32_t i = 0; i < k; i++)
            memcpy(panel + ((uint64_t)i * ROWS + r) * 4, row + (uint64_t)i * 4, 4);
    } else {
        for (uint32_t i = 0; i < k; i++)
            memcpy(panel + ((uint64_t)i * ROWS + r) * 2, row + (uint64_t)i * 2, 2);
    }
}

void pllm_pack(void *panels, pllm_dtype dtype, uint32_t n, uint32_t k, pllm_compute compute,
               const void *rows, uint64_t row_bytes, uint32_t panel_first, uint32_t panel_count)
{
    pllm_linear linear;
    pllm_linear_place(&linear, dtype, n, k, compute, panels);
    int plain = pllm_dtype_block_elements(dtype) == 1;
    for (uint32_t p = panel_first; p < panel_first + panel_count; p++) {
        uint8_t *panel = (uint8_t *)panels + p * linear.panel_bytes;
        uint32_t first = p * ROWS, count = n - first < ROWS ? n - first : ROWS;
        if (count < ROWS || plain || k / PLLM_GROUP % 2 != 0) memset(panel, 0, linear.panel_bytes);
        for (uint32_t r = 0; r < count; r++) {
            const uint8_t *row = (const uint8_t *)rows + (uint64_t)(first + r) * row_bytes;
            if (plain)
                pack_plain(panel, r, dtype, k, linear.compute, row);
            else
                pack_blocks(panel, r, dtype, k, row);
        }
    }
}

static void unpack_blocks(float *out, const uint8_t *panel, uint32_t r, const pllm_linear *linear)
{
    pllm_dtype dtype = linear->dtype;
    uint32_t scales = dtype == PLLM_Q4_1 ? 2 : 1, vectors = dtype == PLLM_Q8_0 ? 8 : 4;
    const uint8_t *quants = panel + pllm_panel_scale_bytes(dtype, linear->k);
    for (uint32_t group = 0; group < linear->k / PLLM_GROUP; group++) {
        const uint8_t *scale = panel + ((uint64_t)group * scales * ROWS + r) * 2;
        float d = pllm_f16_to_f32(load_u16(scale));
        float m = dtype == PLLM_Q4_1 ? pllm_f16_to_f32(load_u16(scale + 2 * ROWS)) : 0.0f;
        for (uint32_t i = 0; i < 4 * vectors; i++) {
            int byte = quants[64 * (i / 4) + 4 * r + i % 4];
            if (dtype == PLLM_Q8_0) {
                out[i] = d * (float)(byte - 128);
            } else if (dtype == PLLM_Q4_0) {
                out[i] = d * (float)((byte & 15) - 8);
                out[i + 16] = d * (float)((byte >> 4) - 8);
            } else { /* d * nibble is exact, so this rounds once, as an FMA would */
                out[i] = d * (float)(byte & 15) + m;
                out[i + 16] = d * (float)(byte >> 4) + m;
            }
        }
        out += PLLM_GROUP;
        quants += 64 * vectors;
    }
}

void pllm_unpack_row(float *out, const pllm_linear *linear, uint32_t row)
{
    const uint8_t *panel = panel_at(linear, row / ROWS);
    uint32_t r = row % ROWS, k = linear->k;
    if (pllm_dtype_block_elements(linear->dtype) != 1) {
        unpack_blocks(out, panel, r, linear);
    } else if (linear->compute == PLLM_COMPUTE_BF16) {
        for (uint32_t i = 0; i < k; i++)
            out[i] =
                pllm_bf16_to_f32(load_u16(panel + ((uint64_t)(i / 2) * ROWS + r) * 4 + i % 2 * 2));
    } else if (linear->dtype == PLLM_F32) {
        for (uint32_t i = 0; i < k; i++) memcpy(out + i, panel + ((uint64_t)i * ROWS + r) * 4, 4);
    } else {
        for (uint32_t i = 0; i < k; i++) {
            uint16_t half = load_u16(panel + ((uint64_t)i * ROWS + r) * 2);
            out[i] = linear->dtype == PLLM_F16 ? pllm_f16_to_f32(half) : pllm_bf16_to_f32(half);
        }
    }
}
