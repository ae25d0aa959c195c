/* Key summaries against means and deviations in double, and what a bad key spoils. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "base/context.h"
#include "kernels/attention.h"
#include "kernels/kv_summary.h"

enum { HEADS = 3, DIM = 40, WIDTH = HEADS * DIM };

static float key(uint32_t token, uint32_t channel)
{
    uint32_t bits = (token * 2654435761u) ^ (channel * 40503u + 977u) * 2246822519u;
    return (float)(bits >> 8 & 0xffff) / 8192 - 4 + (float)(channel % 7);
}

static void check_format(pllm_dtype format)
{
    pllm_kv_shape shape;
    assert_int_equal(pllm_kv_shape_init(&shape, format, HEADS, DIM), PLLM_OK);
    void *open = calloc(1, pllm_kv_block_bytes(&shape, shape.open));
    uint64_t bytes = pllm_kv_summary_bytes(&shape);
    assert_int_equal(bytes, HEADS * 2 * 2 * DIM * 2);
    uint8_t *summary = malloc(bytes + 2);
    memset(summary, 0x5a, bytes + 2);
    float row[WIDTH], value[WIDTH];
    for (uint32_t i = 0; i < WIDTH; i++) value[i] = NAN; /* values are not looked at */
    for (uint32_t token = 0; token < PLLM_BLOCK_TOKENS; token++) {
        for (uint32_t i = 0; i < WIDTH; i++) row[i] = key(token, i);
        pllm_attention_reference.append(&shape, open, token, row, value);
    }
    pllm_kv_summarise(&shape, open, summary);
    assert_int_equal(summary[bytes], 0x5a);
    for (uint32_t head = 0; head < HEADS; head++)
        for (uint32_t run = 0; run < 2; run++)
            for (uint32_t i = 0; i < DIM; i++) {
                double sum = 0, squares = 0;
                for (uint32_t t = 0; t < 16; t++) {
                    float read[DIM];
                    pllm_kv_read_row(&shape, shape.open, open, head, 0, run * 16 + t, read);
                    sum += (double)read[i];
                }
                for (uint32_t t = 0; t < 16; t++) {
                    float read[DIM];
                    pllm_kv_read_row(&shape, shape.open, open, head, 0, run * 16 + t, read);
                    squares += ((double)read[i] - sum / 16) * ((double)read[i] - sum / 16);
                }
                uint16_t half[2];
                uint64_t at = ((uint64_t)head * 2 + run) * 2 * DIM;
                memcpy(&half[0], summary + 2 * (at + i), 2);
                memcpy(&half[1], summary + 2 * (at + DIM + i), 2);
                double mean = (double)pllm_f16_to_f32(half[0]);
                double deviation = (double)pllm_f16_to_f32(half[1]);
                assert_true(fabs(mean - sum / 16) <= 1e-3 * (fabs(sum / 16) + 0.1));
                assert_true(fabs(deviation - sqrt(squares / 16)) <= 1e-3 * (deviation + 0.1));
            }
    free(summary);
    free(open);
}

static void means_and_deviations(void **state)
{
    (void)state;
    check_format(PLLM_F32);
    check_format(PLLM_F16);
    check_format(PLLM_BF16);
    check_format(PLLM_INT4); /* its open form is f16 */
}

static void a_bad_key_spoils_its_channel_alone(void **state)
{
    (void)state;
    pllm_kv_shape shape;
    assert_int_equal(pllm_kv_shape_init(&shape, PLLM_F32, 1, 8), PLLM_OK);
    void *open = calloc(1, pllm_kv_block_bytes(&shape, shape.open));
    float row[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    for (uint32_t token = 0; token < PLLM_BLOCK_TOKENS; token++) {
        row[3] = token == 20 ? NAN : 3;
        pllm_attention_reference.append(&shape, open, token, row, row);
    }
    uint16_t summary[2][2][8];
    pllm_kv_summarise(&shape, open, summary);
    for (uint32_t run = 0; run < 2; run++)
        for (uint32_t i = 0; i < 8; i++) {
            int bad = run == 1 && i == 3;
            assert_int_equal(isnan(pllm_f16_to_f32(summary[run][0][i])) != 0, bad);
            if (!bad) assert_true(pllm_f16_to_f32(summary[run][1][i]) == 0);
        }
    free(open);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(means_and_deviations),
        cmocka_unit_test(a_bad_key_spoils_its_channel_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
