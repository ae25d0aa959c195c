/* KV blocks: shapes and their errors, sizes, appending and sealing in every version, the error of
 * quantised blocks, and lists of copies. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <pagedllm/status.h>
#include "kernels/attention.h"
#include "kernels/gather.h"

static const pllm_attention_kernels *const versions[] = {
    &pllm_attention_reference, &pllm_attention_avx2, &pllm_attention_avx512};
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
static const uint32_t dims[] = {8, 16, 24, 64, 80, 128, 256};
#define COUNT(array) (sizeof(array) / sizeof *(array))

static uint64_t seed = 1;
static float uniform(void) /* -1..1 */
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float)((int64_t)seed >> 40) * 0x1p-23f;
}

static void shapes_are_checked(void **state)
{
    (void)state;
    pllm_kv_shape shape = {.head_dim = 7};
    assert_int_equal(pllm_kv_shape_init(&shape, PLLM_Q8_0, 1, 64), PLLM_EINVAL);
    assert_non_null(strstr(pllm_last_error()->text, "q8_0"));
    assert_int_equal(pllm_kv_shape_init(&shape, PLLM_F16, 0, 64), PLLM_EINVAL);
    assert_int_equal(pllm_kv_shape_init(&shape, PLLM_F16, 1, 4), PLLM_EINVAL);
    assert_int_equal(pllm_kv_shape_init(&shape, PLLM_F16, 1, 60), PLLM_EINVAL);
    assert_int_equal(pllm_kv_shape_init(&shape, PLLM_F16, 1, 264), PLLM_EINVAL);
    assert_non_null(strstr(pllm_last_error()->text, "264"));
    assert_int_equal(shape.head_dim, 7);
    static const pllm_dtype open[] = {PLLM_F32, PLLM_F16, PLLM_BF16, PLLM_F16, PLLM_F16};
    for (uint32_t f = 0; f < COUNT(formats); f++) {
        assert_int_equal(pllm_kv_shape_init(&shape, formats[f], 3, 64), PLLM_OK);
        assert_int_equal(shape.open, open[f]);
    }
}

static void sizes_are_the_designs(void **state)
{
    (void)state;
    pllm_kv_shape shape;
    pllm_kv_shape_init(&shape, PLLM_INT4, 8, 128);
    assert_int_equal(pllm_kv_slice_bytes(&shape, PLLM_F16), 16384);
    assert_int_equal(pllm_kv_slice_bytes(&shape, PLLM_INT4), 4736);
    assert_int_equal(pllm_kv_block_bytes(&shape, PLLM_INT4), 40960); /* 37,888 rounded up */
    for (uint32_t f = 0; f < COUNT(formats); f++)
        for (uint32_t d = 8; d <= 256; d += 8) {
            pllm_kv_shape_init(&shape, formats[f], 3, d);
            assert_int_equal(pllm_kv_slice_bytes(&shape, formats[f]) % 16, 0);
            assert_int_equal(pllm_kv_block_bytes(&shape, formats[f]) % 4096, 0);
            assert_true(pllm_kv_block_bytes(&shape, formats[f]) >=
                        3 * pllm_kv_slice_bytes(&shape, formats[f]));
        }
}

/* 32 rows of k and v [32][heads * d] with what hurts quantisation: channels with an offset and a
 * large scale, constant ones, and rows of zeros. */
static void fill(float *k, float *v, uint32_t heads, uint32_t d)
{
    for (uint32_t row = 0; row < 32; row++)
        for (uint32_t i = 0; i < heads * d; i++) {
            uint32_t c = i % d;
            k[row * heads * d + i] = c % 8 == 3   ? 40 + 3 * uniform()
                                     : c % 8 == 5 ? -0.7f
                                     : c % 8 == 6 ? 1e-6f * uniform()
                                                  : uniform();
            v[row * heads * d + i] = row == 7 ? 0 : uniform() * (float)(row + 1);
        }
}

static void append_writes_its_row_only(void **state)
{
    (void)state;
    for (uint32_t version = 0; version < VERSIONS; version++)
        for (uint32_t f = 0; f < 3 && runs_here(version); f++)
            for (uint32_t i = 0; i < COUNT(dims); i++) {
                enum { HEADS = 2 };
                uint32_t d = dims[i], n = HEADS * d, size = formats[f] == PLLM_F32 ? 4 : 2;
                pllm_kv_shape shape;
                pllm_kv_shape_init(&shape, formats[f], HEADS, d);
                uint64_t bytes = pllm_kv_block_bytes(&shape, shape.open);
                uint8_t *block = malloc(bytes), *expected = malloc(bytes);
                float *k = malloc(32 * n * 4), *v = malloc(32 * n * 4);
                fill(k, v, HEADS, d);
                memset(block, 0xa5, bytes);
                memset(expected, 0xa5, bytes);
                static const uint32_t order[] = {31, 0, 17};
                for (uint32_t r = 0; r < COUNT(order); r++) {
                    versions[version]->append(&shape, block, order[r], k + order[r] * n,
                                              v + order[r] * n);
                    for (uint32_t at = 0; at < 2 * n; at++) {
                        uint32_t head = at / (2 * d), value = at / d % 2, c = at % d;
                        float x = (value ? v : k)[order[r] * n + head * d + c];
                        uint8_t *to = expected +
                                      (((uint64_t)head * 2 + value) * 32 + order[r]) * d * size +
                                      c * size;
                        uint16_t half = f == 1 ? pllm_f32_to_f16(x) : pllm_f32_to_bf16(x);
                        memcpy(to, size == 4 ? (const void *)&x : &half, size);
                    }
                }
                assert_memory_equal(block, expected, bytes);
                free(block);
                free(expected);
                free(k);
                free(v);
            }
}

/* Plain formats come back as written; quantised ones within half a step, no element clipped, and
 * every version seals to the same bits. */
static void sealing_keeps_its_bounds(void **state)
{
    (void)state;
    for (uint32_t f = 0; f < COUNT(formats); f++)
        for (uint32_t i = 0; i < COUNT(dims); i++) {
            enum { HEADS = 2 };
            uint32_t d = dims[i], n = HEADS * d;
            pllm_kv_shape shape;
            pllm_kv_shape_init(&shape, formats[f], HEADS, d);
            uint64_t open_bytes = pllm_kv_block_bytes(&shape, shape.open);
            uint64_t used = HEADS * pllm_kv_slice_bytes(&shape, shape.sealed);
            uint8_t *open = malloc(open_bytes), *sealed = malloc(used), *first = malloc(used);
            float *k = malloc(32 * n * 4), *v = malloc(32 * n * 4), before[256], after[256];
            fill(k, v, HEADS, d);
            for (uint32_t row = 0; row < 32; row++)
                versions[0]->append(&shape, open, row, k + row * n, v + row * n);
            versions[0]->seal(&shape, first, open);
            for (uint32_t version = 1; version < VERSIONS; version++) {
                if (!runs_here(version)) continue;
                memset(sealed, 0xff, used);
                versions[version]->seal(&shape, sealed, open);
                assert_memory_equal(sealed, first, used);
            }
            float levels = formats[f] == PLLM_INT8 ? 255 : formats[f] == PLLM_INT4 ? 15 : 0;
            for (uint32_t head = 0; head < HEADS; head++)
                for (int value = 0; value < 2; value++)
                    for (uint32_t row = 0; row < 32; row++) {
                        pllm_kv_read_row(&shape, shape.open, open, head, value, row, before);
                        pllm_kv_read_row(&shape, shape.sealed, first, head, value, row, after);
                        for (uint32_t c = 0; c < d; c++) {
                            float low = INFINITY, high = -INFINITY;
                            for (uint32_t j = 0; j < (value ? d : 32); j++) {
                                float x =
                                    value ? v[row * n + head * d + j] : k[j * n + head * d + c];
                                low = fminf(low, x), high = fmaxf(high, x);
                            }
                            /* Half a step; scale and minimum are halves rounded outwards. */
                            float bound = levels == 0 ? 0
                                                      : 0.51f * (high - low) / levels +
                                                            1e-3f * fabsf(high - low) / 2 + 1e-7f;
                            assert_true(fabsf(after[c] - before[c]) <= bound);
                        }
                    }
            free(open);
            free(sealed);
            free(first);
            free(k);
            free(v);
        }
}

/* A plain block may be sealed in place. */
static void plain_blocks_seal_in_place(void **state)
{
    (void)state;
    for (uint32_t version = 0; version < VERSIONS; version++) {
        if (!runs_here(version)) continue;
        pllm_kv_shape shape;
        pllm_kv_shape_init(&shape, PLLM_F16, 1, 64);
        uint64_t bytes = pllm_kv_block_bytes(&shape, PLLM_F16);
        uint8_t *block = malloc(bytes), *copy = malloc(bytes);
        for (uint64_t i = 0; i < bytes; i++) copy[i] = block[i] = (uint8_t)(i * 7);
        versions[version]->seal(&shape, block, block);
        assert_memory_equal(block, copy, bytes);
        free(block);
        free(copy);
    }
}

/* Values no format can hold must still give defined bytes, the same in every version. */
static void odd_values_seal_alike(void **state)
{
    (void)state;
    static const float odd[] = {NAN, INFINITY, -INFINITY, 65504, -65504, 1e-8f, -0.0f, 1e30f};
    for (uint32_t f = 3; f < COUNT(formats); f++) {
        pllm_kv_shape shape;
        pllm_kv_shape_init(&shape, formats[f], 1, 16);
        uint64_t used = pllm_kv_slice_bytes(&shape, formats[f]);
        uint8_t *open = malloc(pllm_kv_block_bytes(&shape, PLLM_F16));
        uint8_t *first = malloc(used), *sealed = malloc(used);
        float row[16];
        for (uint32_t r = 0; r < 32; r++) {
            for (uint32_t c = 0; c < 16; c++)
                row[c] = c == r % 16 || c == 2 ? odd[(r + c) % COUNT(odd)] : uniform();
            versions[0]->append(&shape, open, r, row, row);
        }
        for (uint32_t version = 0; version < VERSIONS; version++) {
            if (!runs_here(version)) continue;
            versions[version]->seal(&shape, version ? sealed : first, open);
            if (version) assert_memory_equal(first, sealed, used);
        }
        free(open);
        free(first);
        free(sealed);
    }
}

static void gather_copies_exactly(void **state)
{
    (void)state;
    enum { BYTES = 1 << 20, ITEMS = 200 };
    uint8_t *from = malloc(BYTES), *to = malloc(BYTES), *expected = malloc(BYTES);
    pllm_gather_item items[ITEMS];
    for (int stream = 0; stream < 2; stream++) {
        for (int i = 0; i < BYTES; i++) from[i] = (uint8_t)(i * 31 >> 3);
        memset(to, 0xee, BYTES);
        memset(expected, 0xee, BYTES);
        uint64_t at = 0;
        for (int i = 0; i < ITEMS; i++) {
            static const uint64_t sizes[] = {0, 1, 63, 64, 65, 319, 320, 511, 4096, 7000};
            uint64_t bytes = sizes[i % COUNT(sizes)], source = (uint64_t)i * 5009 % (BYTES - 8192);
            at += 1 + (uint64_t)i % 70; /* every alignment */
            items[i].dst = to + at, items[i].src = from + source, items[i].bytes = bytes;
            memcpy(expected + at, from + source, bytes);
            at += bytes;
        }
        assert_true(at < BYTES);
        (stream ? pllm_gather_stream : pllm_gather)(items, ITEMS);
        assert_memory_equal(to, expected, BYTES);
    }
    pllm_gather(NULL, 0);
    pllm_gather_stream(NULL, 0);
    free(from);
    free(to);
    free(expected);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shapes_are_checked),         cmocka_unit_test(sizes_are_the_designs),
        cmocka_unit_test(append_writes_its_row_only), cmocka_unit_test(sealing_keeps_its_bounds),
        cmocka_unit_test(plain_blocks_seal_in_place), cmocka_unit_test(odd_values_seal_alike),
        cmocka_unit_test(gather_copies_exactly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
