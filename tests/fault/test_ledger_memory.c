/* Every allocation of opening and joining a ledger fails once: nothing leaks, nothing stays behind,
 * and the next try succeeds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>
#include <cmocka.h>
#include <pagedllm/memory.h>
#include "failing_context.h"
#include "vmm/ledger.h"

static int use(const pllm_context *context, const char *name)
{
    pllm_ledger *ledger;
    pllm_ledger_member *member;
    int status = pllm_ledger_open(context, name, 100, &ledger);
    if (status < 0) {
        assert_null(ledger);
        return status;
    }
    pllm_ledger_member_options options = {.struct_bytes = sizeof options, .minimum_bytes = 40};
    status = pllm_ledger_join(ledger, &options, &member);
    pllm_ledger_totals all = {.struct_bytes = sizeof all};
    assert_true(pllm_ledger_list(ledger, NULL, 0, &all) >= 0);
    assert_int_equal(all.held_bytes, status == PLLM_OK ? 40 : 0);
    assert_int_equal(all.member_count, status == PLLM_OK ? 1 : 0);
    pllm_ledger_leave(status == PLLM_OK ? member : NULL);
    pllm_ledger_close(ledger);
    return status;
}

/* A memory that is a member. */
static int use_memory(const pllm_context *context, const char *name)
{
    pllm_memory *memory;
    pllm_memory_options options = {.struct_bytes = sizeof options,
                                   .page_bytes = 1 << 16,
                                   .capacity_bytes = 1 << 22,
                                   .ledger = name,
                                   .ledger_limit_bytes = 1 << 24};
    int status = pllm_memory_open(context, &options, &memory);
    if (status < 0) assert_null(memory);
    pllm_memory_close(memory);
    return status;
}

static void a_memory_that_cannot_open_leaves(void **state)
{
    (void)state;
    char name[32];
    uint64_t n = 0;
    snprintf(name, sizeof name, "memory-%d", (int)getpid());
    for (int hit = 1; hit; n++) {
        failing_context failing;
        failing_context_init(&failing, n);
        int status = use_memory(&failing.context, name);
        hit = failing_context_hit(&failing);
        if (hit) assert_true(status == PLLM_OK || status == PLLM_ENOMEM);
        if (!hit) assert_int_equal(status, PLLM_OK);
        failing_context_check(&failing);
    }
    assert_true(n > 15);
    assert_int_equal(pllm_ledger_remove(NULL, name), PLLM_OK); /* nobody is a member */
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    char name[32];
    snprintf(name, sizeof name, "memory-%d", (int)getpid());
    for (uint64_t n = 0;; n++) {
        failing_context failing;
        failing_context_init(&failing, n);
        int status = use(&failing.context, name);
        int hit = failing_context_hit(&failing);
        assert_int_equal(status, hit ? PLLM_ENOMEM : PLLM_OK);
        failing_context_check(&failing);
        if (!hit) break;
        assert_true(n < 10);
    }
    assert_int_equal(pllm_ledger_remove(NULL, name), PLLM_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_allocation_may_fail),
                                       cmocka_unit_test(a_memory_that_cannot_open_leaves)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
