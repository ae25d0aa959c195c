/* linear_avx2.c - products with AVX2 and FMA: panels in two halves of 8 rows.
 *
 * Integers. A weight byte is widened to 16 bits by masking, which leaves elements 0 and 2 of a
 * four in one vector and 1 and 3 in another; the quantised activations are stored in that order,
 * 64 bytes a group: [8 fours][a0, a2, a1, a3] int16. vpmaddwd then gives exact pair sums, with no
 * saturation and the 15 bits whole. */
#if defined(__x86_64__)
#include "kernels/cpu/float_lanes.h"

static void prepare_group(pllm_activations *activations, uint64_t index, const float *x)
{
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i largest = _mm256_setzero_si256();
    for (int i = 0; i < 4; i++)
        largest = _mm256_max_epu32(largest, _mm256_and_si256(load_bits(x + 8 * i), magnitude));
    __m128i four =
        _mm_max_epu32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
    four = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0x4e));
    four = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0xb1));
    pllm_group_scale scale = pllm_group_scale_of((uint32_t)_mm_cvtsi128_si32(four));

    int32_t a[PLLM_GROUP], sum = 0;
    __m256 inverse = _mm256_set1_ps(scale.inverse);
    __m256i keep = _mm256_set1_epi32(scale.inverse == 0.0f ? 0 : -1);
    for (int i = 0; i < 4; i++) {
        __m256i rounded = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), inverse));
        _mm256_storeu_si256((__m256i *)(a + 8 * i), _mm256_and_si256(rounded, keep));
    }
    int16_t *out = (int16_t *)(activations->quantised + index * 64);
    for (int i = 0; i < PLLM_GROUP; i += 4) {
        out[i] = (int16_t)a[i];
        out[i + 1] = (int16_t)a[i + 2];
        out[i + 2] = (int16_t)a[i + 1];
        out[i + 3] = (int16_t)a[i + 3];
    }
    for (int i = 0; i < PLLM_GROUP; i++) sum += a[i];
    activations->scale[index] = scale.scale;
    activations->sum[index] = sum;
    activations->scaled_sum[index] = scale.scale * (float)sum;
}

void pllm_prepare_avx2(pllm_activations *activations, uint32_t row, const float *x, uint32_t forms)
{
    pllm_prepare_plain(activations, row, x, forms);
    if (!(forms & PLLM_FORM_INTEGER)) return;
    uint64_t first = (uint64_t)row * activations->group_count;
    for (uint32_t g = 0; g < activations->k / PLLM_GROUP; g++)
        prepare_group(activations, first + g, x + (uint64_t)g * PLLM_GROUP);
}

/* sum += w . the pair at a, in each lane. The empty asm keeps the compiler from turning the chain
 * into a tree, whose many live sums would not fit in sixteen registers. */
INLINE __m256i add_pairs(__m256i sum, __m256i w, const int8_t *a)
{
    __m256i pair = _mm256_broadcastd_epi32(_mm_loadu_si32(a));
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(w, pair));
    __asm__("" : "+x"(sum));
    return sum;
}

/* ROWS rows of x by HALVES halves of a panel, from the given half. */
TILE void tile_integer(pllm_dtype dtype, const float_tile *tile, const uint8_t *panel, int half,
                       int rows, int halves)
{
    const pllm_activations *activations = tile->activations;
    uint64_t groups = tile->linear->k / PLLM_GROUP, stride = activations->group_count;
    uint64_t first = tile->m * stride;
    const uint8_t *quants = panel + pllm_panel_scale_bytes(dtype, tile->linear->k) + half * 32;
    const uint8_t *scales = panel + half * 16, *ahead = panel + 4096;
    int parts = dtype == PLLM_Q8_0 ? 1 : 2, vectors = 8 / parts;
    int scale_step = dtype == PLLM_Q4_1 ? 64 : 32;
    int offset = dtype == PLLM_Q8_0 ? 128 : dtype == PLLM_Q4_0 ? 8 : 0;
    const __m256i low = _mm256_set1_epi16(dtype == PLLM_Q8_0 ? 255 : 15);
    __m256 totals[4];
    UNROLL for (int i = 0; i < rows * halves; i++) totals[i] = _mm256_setzero_ps();
    for (uint64_t g = 0; g < groups; g++, quants += 64 * vectors, scales += scale_step) {
        if (half == 0) /* with few rows memory is the limit: ask for what is 4 KiB ahead */
            for (int i = 0; i < 64 * vectors + scale_step; i += 64)
                _mm_prefetch((const char *)ahead + g * (64u * vectors + scale_step) + i,
                             _MM_HINT_T0);
        __m256i sums[4];
        UNROLL for (int r = 0; r < rows; r++)
        {
            UNROLL for (int h = 0; h < halves; h++)
            {
                int32_t start = -offset * activations->sum[first + (uint64_t)r * stride + g];
                sums[r * halves + h] = _mm256_set1_epi32(start);
            }
        }
        for (int v = 0; v < vectors; v++) {
            UNROLL for (int h = 0; h < halves; h++)
            {
                __m256i bytes = load_bits(quants + 64 * v + 32 * h);
                for (int part = 0; part < parts; part++) {
                    __m256i even = _mm256_and_si256(_mm256_srli_epi16(bytes, 4 * part), low);
                    __m256i odd = _mm256_and_si256(_mm256_srli_epi16(bytes, 8 + 4 * part), low);
                    UNROLL for (int r = 0; r < rows; r++)
                    {
                        uint64_t group = first + (uint64_t)r * stride + g;
                        const int8_t *a = activations->quantised + group * 64 + 8 * v + 32 * part;
                        sums[r * halves + h] = add_pairs(sums[r * halves + h], even, a);
                        sums[r * halves + h] = add_pairs(sums[r * halves + h], odd, a + 4);
                    }
                }
            }
        }
        UNROLL for (int h = 0; h < halves; h++)
        {
            __m256 d = _mm256_cvtph_ps(load_half_bits(scales + 16 * h));
            __m256 m =
                dtype == PLLM_Q4_1 ? _mm256_cvtph_ps(load_half_bits(scales + 16 * h + 32)) : d;
            UNROLL for (int r = 0; r < rows; r++)
            {
                uint64_t group = first + (uint64_t)r * stride + g;
                __m256 scale = _mm256_mul_ps(d, _mm256_set1_ps(activations->scale[group]));
                __m256 sum = _mm256_cvtepi32_ps(sums[r * halves + h]);
                __m256 total = _mm256_fmadd_ps(scale, sum, totals[r * halves + h]);
                if (dtype == PLLM_Q4_1)
                    total =
                        _mm256_fmadd_ps(m, _mm256_set1_ps(activations->scaled_sum[group]), total);
                totals[r * halves + h] = total;
            }
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
    {
        UNROLL for (int h = 0; h < halves; h++)
        {
            uint32_t n = tile->n + (uint32_t)(half + h) * 8;
            float *out = tile->out + (uint64_t)r * tile->out_stride + n, lanes[8];
            if (n + 8 <= tile->n_end) {
                _mm256_storeu_ps(out, totals[r * halves + h]);
            } else if (n < tile->n_end) {
                _mm256_storeu_ps(lanes, totals[r * halves + h]);
                memcpy(out, lanes, (tile->n_end - n) * sizeof *out);
            }
        }
    }
}

INLINE void integer_rows(pllm_dtype dtype, float_tile tile, uint32_t m_count)
{
    const uint8_t *panel = panel_at(tile.linear, tile.n / PLLM_PANEL_ROWS);
    for (; m_count >= 4; m_count -= 4) {
        tile_integer(dtype, &tile, panel, 0, 4, 1);
        tile_integer(dtype, &tile, panel, 1, 4, 1);
        tile.m += 4;
        tile.out += 4 * tile.out_stride;
    }
    for (; m_count > 0; m_count--) {
        tile_integer(dtype, &tile, panel, 0, 1, 2);
        tile.m++;
        tile.out += tile.out_stride;
    }
}

static void integer_q8_0(float_tile tile, uint32_t m_count)
{
    integer_rows(PLLM_Q8_0, tile, m_count);
}

static void integer_q4_0(float_tile tile, uint32_t m_count)
{
    integer_rows(PLLM_Q4_0, tile, m_count);
}

static void integer_q4_1(float_tile tile, uint32_t m_count)
{
    integer_rows(PLLM_Q4_1, tile, m_count);
}

void pllm_product_avx2(float *out, uint64_t out_stride, const pllm_activations *activations,
                       uint32_t m_first, uint32_t m_count, const pllm_linear *linear,
                       uint32_t n_first, uint32_t n_count)
{
    float_tile tile = {out,     out_stride,        activations, linear, m_first,
                       n_first, n_first + n_count, 0,           0};
    if (linear->compute != PLLM_COMPUTE_INTEGER) {
        product_float(tile, m_count);
        return;
    }
    for (; tile.n < tile.n_end; tile.n += PLLM_PANEL_ROWS) {
        switch (linear->dtype) {
        case PLLM_Q8_0:
            integer_q8_0(tile, m_count);
            break;
        case PLLM_Q4_0:
            integer_q4_0(tile, m_count);
            break;
        default:
            integer_q4_1(tile, m_count);
            break;
        }
    }
}
#else
typedef int pllm_no_avx2; /* a file needs a declaration */
#endif
