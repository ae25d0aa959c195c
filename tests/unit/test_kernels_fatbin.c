/* The table of embedded CUDA kernels: whole entries, found by name, in builds with and without. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>
#include "kernels/cuda/fatbin.h"

static void entries_are_whole_fat_binaries(void **state)
{
    (void)state;
    for (const pllm_fatbin *const *entry = pllm_fatbins; *entry; entry++) {
        assert_ptr_equal(pllm_fatbin_find((*entry)->name), *entry); /* names are unique */
        assert_int_equal((uintptr_t)(*entry)->data % 64, 0);
        /* The header, as the CUDA tools write it: magic, version, its own size, the rest's size. */
        struct {
            uint32_t magic;
            uint16_t version, header_bytes;
            uint64_t rest_bytes;
        } header;
        assert_true((*entry)->bytes > sizeof header);
        memcpy(&header, (*entry)->data, sizeof header);
        assert_int_equal(header.magic, 0xba55ed50u);
        assert_int_equal(header.header_bytes + header.rest_bytes, (*entry)->bytes);
    }
}

static void names_that_are_not_there_are_not_found(void **state)
{
    (void)state;
    assert_null(pllm_fatbin_find("no such kernel"));
    assert_null(pllm_fatbin_find(""));
    if (pllm_fatbins[0]) assert_non_null(pllm_fatbin_find("probe")); /* nvcc: all are there */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(entries_are_whole_fat_binaries),
        cmocka_unit_test(names_that_are_not_there_are_not_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
