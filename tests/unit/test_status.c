/* Status names, the error record and the context's defaults. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "base/context.h"

static void names_match_codes(void **state)
{
    (void)state;
    assert_string_equal(pllm_status_name(PLLM_OK), "OK");
    assert_string_equal(pllm_status_name(PLLM_ENODEVMEM), "ENODEVMEM");
    assert_string_equal(pllm_status_name(PLLM_ELIMIT), "ELIMIT");
    assert_string_equal(pllm_status_name(-16), "EUNKNOWN");
    assert_string_equal(pllm_status_name(1), "EUNKNOWN");
}

static void record_may_quote_itself_and_is_cut_between_characters(void **state)
{
    (void)state;
    assert_int_equal(pllm_fail(PLLM_EIO, 5, "inner"), PLLM_EIO);
    pllm_fail(PLLM_EINVAL, 0, "outer: %s", pllm_last_error()->text);
    assert_string_equal(pllm_last_error()->text, "outer: inner");
    char longest[2048];
    memset(longest, 'a', sizeof longest);
    longest[1022] = (char)0xc3; /* a two-byte character across the end */
    longest[1023] = (char)0xa9;
    longest[2047] = '\0';
    pllm_fail(PLLM_EINVAL, 0, "%s", longest);
    assert_int_equal(strlen(pllm_last_error()->text), 1022);
}

/* Memory as it comes back from use: not clear. */
static void *dirty_allocate(void *user, uint64_t bytes, uint64_t alignment)
{
    (void)user;
    void *pointer = aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
    if (pointer) memset(pointer, 0xa5, bytes);
    return pointer;
}

static void plain_release(void *user, void *pointer)
{
    (void)user;
    free(pointer);
}

static void context_checks_its_options(void **state)
{
    (void)state;
    pllm_context *context;
    pllm_context_options options = {.struct_bytes = 4};
    assert_int_equal(pllm_context_open(&options, &context), PLLM_EINVAL);
    assert_null(context);
    options.struct_bytes = sizeof options;
    options.log_level = 9;
    assert_int_equal(pllm_context_open(&options, &context), PLLM_EINVAL);
    options = (pllm_context_options){.struct_bytes = sizeof options, .allocate = dirty_allocate};
    assert_int_equal(pllm_context_open(&options, &context), PLLM_EINVAL);
    options.release = plain_release;
    assert_int_equal(pllm_context_open(&options, &context), PLLM_OK);
    assert_null(pllm_alloc_array(context, UINT64_MAX / 2 + 2, 2)); /* 2 bytes, were it to wrap */
    unsigned char *bytes = pllm_alloc(context, 100);
    assert_int_equal((uintptr_t)bytes % 64, 0);
    for (int i = 0; i < 100; i++) assert_int_equal(bytes[i], 0);
    bytes[99] = 7;
    bytes = pllm_grow(context, bytes, 100, 1000);
    assert_int_equal(bytes[99], 7);
    pllm_free(context, bytes);
    pllm_context_close(context);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_match_codes),
        cmocka_unit_test(record_may_quote_itself_and_is_cut_between_characters),
        cmocka_unit_test(context_checks_its_options),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
