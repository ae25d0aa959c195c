/* Sizes: decimal and binary units apart, exact fractions, nonsense refused, text that reads back.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>
#include <pagedllm/status.h>
#include "base/size.h"

static void right_ones(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t bytes;
    } cases[] = {
        {"0", 0},
        {"123", 123},
        {"7B", 7},
        {"24GB", 24000000000u},
        {"24GiB", 25769803776u},
        {"1KB", 1000},
        {"1kB", 1000},
        {"1KiB", 1024},
        {"1kib", 1024},
        {"3MB", 3000000},
        {"3MiB", 3145728},
        {"2TB", 2000000000000u},
        {"2TiB", 2199023255552u},
        {" 1.5 GiB ", 1610612736},
        {"24 gb", 24000000000u},
        {"0.1KiB", 102},                /* 102.4 */
        {"0.0005KB", 1},                /* 0.5: half goes up */
        {"0.000488281249999999KiB", 0}, /* just under half a byte */
        {"0.3GB", 300000000},           /* 0.3 is no binary fraction */
        {"18446744073709551614", UINT64_MAX - 1},
        {"9007199254740993B", 9007199254740993u}, /* 2^53 + 1: no double in between */
        {"9007199254.740993GB", 9007199254740993000u},
        {"unlimited", PLLM_SIZE_UNLIMITED},
        {" unlimited ", PLLM_SIZE_UNLIMITED},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint64_t bytes = 77;
        if (pllm_size_parse(cases[i].text, &bytes) != PLLM_OK || bytes != cases[i].bytes)
            fail_msg("%s gave %llu", cases[i].text, (unsigned long long)bytes);
    }
}

static void wrong_ones(void **state)
{
    (void)state;
    static const char *const cases[] = {
        "",
        " ",
        "GB",
        "-1",
        "-1GB",
        "+1",
        "1.5",
        "1.5B",
        "1.",
        ".5GB",
        "1.GB",
        "24G",
        "24Gi",
        "24Gb",
        "24gB",
        "24GIB",
        "24 G B",
        "1,5GB",
        "1e9",
        "0x10",
        "24GB!",
        "24GBGB",
        "1 2",
        "inf",
        "Unlimited!",
        "unlimitedGB",
        "12 34GB",
        "18446744073709551615",
        "18446744073709551616",
        "99999999999999999999999",
        "16777216TiB",
        "18446745TB",
        "16777215.999999999999999999TiB",
        "1.1234567890123456789GB",
        "1\nGB",
        "\xc2\xa0"
        "1GB",
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint64_t bytes = 77;
        if (pllm_size_parse(cases[i], &bytes) != PLLM_EINVAL || bytes != 77)
            fail_msg("\"%s\" was taken as %llu", cases[i], (unsigned long long)bytes);
        assert_non_null(strstr(pllm_last_error()->text, "24GB")); /* an example */
    }
    assert_int_equal(pllm_size_parse(NULL, NULL), PLLM_EINVAL);
}

static void text(void **state)
{
    (void)state;
    static const struct {
        uint64_t bytes;
        const char *text;
    } cases[] = {
        {0, "0 B"},
        {1000, "1000 B"},
        {1023, "1023 B"},
        {1024, "1 KiB"},
        {1536, "1.5 KiB"},
        {24000000000u, "24 GB"},
        {24500000000u, "24.5 GB"},
        {25769803776u, "24 GiB"},
        {64ull << 20, "64 MiB"},
        {123456789, "117.74 MiB"},
        {1048575, "1 MiB"}, /* 1023.999 KiB */
        {1025, "1 KiB"},
        {1034, "1.01 KiB"},
        {UINT64_MAX - 1, "16777216 TiB"},
        {PLLM_SIZE_UNLIMITED, "unlimited"},
    };
    char buffer[PLLM_SIZE_TEXT_BYTES];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        assert_string_equal(pllm_size_text(cases[i].bytes, buffer, sizeof buffer), cases[i].text);
    assert_string_equal(pllm_size_text(24000000000u, buffer, 3), "24");
}

static void text_reads_back_within_a_hundredth(void **state)
{
    (void)state;
    uint64_t random = 1;
    for (int i = 0; i < 20000; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        uint64_t bytes = random >> (random >> 58), back;
        if (bytes >> 63) continue; /* rounding up may leave 64 bits */
        char buffer[PLLM_SIZE_TEXT_BYTES];
        assert_int_equal(pllm_size_parse(pllm_size_text(bytes, buffer, sizeof buffer), &back), 0);
        uint64_t off = back > bytes ? back - bytes : bytes - back;
        if (off > bytes / 199) fail_msg("%llu: %s", (unsigned long long)bytes, buffer);
    }
}

/* Typed back, it is enough; and hardly more than that. */
static void text_up_reads_back_as_no_less(void **state)
{
    (void)state;
    uint64_t random = 7;
    for (int i = 0; i < 20000; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        uint64_t bytes = random >> (random >> 58), back;
        if (bytes >> 63) continue;
        char buffer[PLLM_SIZE_TEXT_BYTES];
        assert_int_equal(pllm_size_parse(pllm_size_text_up(bytes, buffer, sizeof buffer), &back),
                         0);
        if (back < bytes || back - bytes > bytes / 99)
            fail_msg("%llu: %s", (unsigned long long)bytes, buffer);
    }
    char buffer[PLLM_SIZE_TEXT_BYTES];
    assert_string_equal(pllm_size_text_up(21823488, buffer, sizeof buffer), "20.82 MiB");
    assert_string_equal(pllm_size_text_up(24000000000u, buffer, sizeof buffer), "24 GB");
    assert_string_equal(pllm_size_text_up(1047553, buffer, sizeof buffer), "1023.01 KiB");
    assert_string_equal(pllm_size_text_up(1048575, buffer, sizeof buffer), "1 MiB");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(right_ones),
        cmocka_unit_test(wrong_ones),
        cmocka_unit_test(text),
        cmocka_unit_test(text_reads_back_within_a_hundredth),
        cmocka_unit_test(text_up_reads_back_as_no_less),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
