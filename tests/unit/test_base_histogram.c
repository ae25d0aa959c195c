/* Histogram buckets, quantiles against a sorted array, merging; the hash wrappers' fixed values. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "base/clock.h"
#include "base/hash.h"
#include "base/histogram.h"

static void buckets_tile_the_numbers(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < PLLM_HISTOGRAM_BUCKETS; i++) {
        uint64_t low = pllm_histogram_bucket_low(i);
        assert_int_equal(pllm_histogram_bucket(low), i);
        if (i > 0) assert_int_equal(pllm_histogram_bucket(low - 1), i - 1);
    }
    assert_int_equal(pllm_histogram_bucket(UINT64_MAX), PLLM_HISTOGRAM_BUCKETS - 1);
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void quantiles_are_within_a_32nd(void **state)
{
    (void)state;
    enum { COUNT = 5000 };
    static uint64_t values[COUNT];
    static pllm_histogram whole, halves[2];
    uint64_t random = 3;
    for (int i = 0; i < COUNT; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        values[i] = (random >> 11) >> (random % 50);
        pllm_histogram_record(&whole, values[i]);
        pllm_histogram_record(&halves[i % 2], values[i]);
    }
    qsort(values, COUNT, sizeof values[0], compare);
    for (int permille = 0; permille <= 1000; permille++) {
        int rank = (permille * COUNT + 999) / 1000; /* from 1 */
        uint64_t right = values[rank > 0 ? rank - 1 : 0];
        uint64_t got = pllm_histogram_quantile(&whole, permille / 1000.0);
        uint64_t off = got > right ? got - right : right - got;
        if (off > right / 32 + 1)
            fail_msg("q=%d: %llu, not %llu", permille, (unsigned long long)got,
                     (unsigned long long)right);
    }
    assert_int_equal(pllm_histogram_quantile(&whole, 0), values[0]);
    assert_int_equal(pllm_histogram_quantile(&whole, 1), values[COUNT - 1]);
    pllm_histogram merged = {0};
    pllm_histogram_merge(&merged, &halves[0]);
    pllm_histogram_merge(&merged, &halves[1]);
    assert_int_equal(merged.count, COUNT);
    assert_int_equal(merged.min, whole.min);
    assert_int_equal(merged.max, whole.max);
    assert_memory_equal(merged.buckets, whole.buckets, sizeof whole.buckets);
}

static void empty_and_single(void **state)
{
    (void)state;
    pllm_histogram histogram = {0}, empty = {0};
    assert_int_equal(pllm_histogram_quantile(&histogram, 0.5), 0);
    pllm_histogram_merge(&histogram, &empty);
    assert_int_equal(histogram.count, 0);
    pllm_histogram_record(&histogram, 1000001);
    pllm_histogram_merge(&histogram, &empty);
    assert_int_equal(pllm_histogram_quantile(&histogram, 0.5), 1000001); /* clamped to min, max */
    assert_int_equal(histogram.min, 1000001);
    assert_true(pllm_histogram_mean(&histogram) == 1000001.0);
}

static void hashes_are_xxh3(void **state)
{
    (void)state;
    /* Published values of XXH3 with seed 0 for no bytes. */
    assert_int_equal(pllm_hash64(NULL, 0, 0), 0x2d06800538d394c2u);
    pllm_hash128 none = pllm_hash128_of(NULL, 0, 0);
    assert_int_equal(none.low, 0x6001c324468d497fu);
    assert_int_equal(none.high, 0x99aa06d3014798d8u);
    char data[300];
    memset(data, 'x', sizeof data);
    pllm_hash128 before = pllm_hash128_of(data, sizeof data, 1);
    assert_true(pllm_hash128_equal(before, pllm_hash128_of(data, sizeof data, 1)));
    assert_false(pllm_hash128_equal(before, pllm_hash128_of(data, sizeof data, 2)));
    uint64_t narrow = pllm_hash64(data, sizeof data, 1);
    data[299] ^= 1;
    assert_false(pllm_hash128_equal(before, pllm_hash128_of(data, sizeof data, 1)));
    assert_int_not_equal(narrow, pllm_hash64(data, sizeof data, 1));
}

static void clock_goes_forward(void **state)
{
    (void)state;
    uint64_t begin = pllm_clock_ns(), cpu = pllm_clock_thread_cpu_ns();
    while (pllm_clock_ns() < begin + 1000) {
    }
    assert_true(pllm_clock_thread_cpu_ns() >= cpu);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(buckets_tile_the_numbers), cmocka_unit_test(quantiles_are_within_a_32nd),
        cmocka_unit_test(empty_and_single),         cmocka_unit_test(hashes_are_xxh3),
        cmocka_unit_test(clock_goes_forward),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
