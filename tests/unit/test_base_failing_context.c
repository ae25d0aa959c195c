/* The test context itself: it fails the call it was told to, and counts what is alive. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "failing_context.h"

static void fails_one_call_and_counts(void **state)
{
    (void)state;
    failing_context failing;
    failing_context_init(&failing, 1);
    char *first = pllm_alloc(&failing.context, 100);
    assert_non_null(first);
    assert_int_equal((uintptr_t)first % 64, 0);
    assert_false(failing_context_hit(&failing));
    assert_null(pllm_grow(&failing.context, first, 100, 200));
    assert_true(failing_context_hit(&failing));
    assert_int_equal(failing.live_bytes, 100);
    first = pllm_grow(&failing.context, first, 100, 200);
    assert_non_null(first);
    assert_int_equal(failing.live_count, 1);
    assert_int_equal(failing.live_bytes, 200);
    assert_int_equal(failing.peak_bytes, 300);
    pllm_log(&failing.context, PLLM_LOG_DEBUG, "heard");
    assert_int_equal(failing.message_count, 1);
    pllm_free(&failing.context, first);
    failing_context_check(&failing);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(fails_one_call_and_counts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
