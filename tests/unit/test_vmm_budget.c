/* Budgets: minimums that others cannot take, limits that move, excess, and threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <pthread.h>
#include <cmocka.h>
#include "vmm/budget.h"

static pllm_budget *open_budget(uint64_t limit)
{
    pllm_budget *budget;
    assert_int_equal(pllm_budget_open(NULL, limit, &budget), PLLM_OK);
    return budget;
}

static pllm_budget_member *join(pllm_budget *budget, uint64_t minimum, uint64_t limit)
{
    pllm_budget_member *member;
    assert_int_equal(pllm_budget_join(budget, "member", minimum, limit, &member), PLLM_OK);
    return member;
}

static void leave(pllm_budget_member *member)
{
    pllm_budget_credit(member, pllm_budget_charged(member));
    pllm_budget_leave(member);
}

static void minimums_cannot_be_taken_by_others(void **state)
{
    (void)state;
    pllm_budget *budget = open_budget(100);
    pllm_budget_member *a = join(budget, 30, 100), *b = join(budget, 20, 60), *c;
    assert_int_equal(pllm_budget_join(budget, "c", 51, 60, &c), PLLM_ENODEVMEM);
    assert_null(c);
    assert_int_equal(pllm_budget_join(budget, "c", 10, 9, &c), PLLM_EINVAL);
    assert_int_equal(pllm_budget_charge(a, 81), PLLM_ENODEVMEM); /* 20 belong to b */
    assert_int_equal(pllm_budget_charge(a, 80), PLLM_OK);
    assert_int_equal(pllm_budget_charge(b, 20), PLLM_OK);
    assert_int_equal(pllm_budget_charge(b, 1), PLLM_ENODEVMEM);
    pllm_budget_credit(a, 60); /* below its minimum: 10 of its 30 stay its own */
    assert_int_equal(pllm_budget_charge(b, 41), PLLM_ENODEVMEM); /* above b's limit */
    assert_int_equal(pllm_budget_member_set(b, 20, 100), PLLM_OK);
    assert_int_equal(pllm_budget_charge(b, 51), PLLM_ENODEVMEM); /* into a's minimum */
    assert_int_equal(pllm_budget_member_set(b, 20, 60), PLLM_OK);
    assert_int_equal(pllm_budget_charge(b, 40), PLLM_OK);
    assert_int_equal(pllm_budget_charge(a, 20), PLLM_OK);
    pllm_budget_stats stats;
    pllm_budget_stats_get(budget, &stats);
    assert_int_equal(stats.charged_bytes, 100);
    assert_int_equal(stats.peak_bytes, 100);
    assert_int_equal(stats.refused_count, 5);
    assert_int_equal(stats.member_count, 2);
    leave(a);
    leave(b);
    pllm_budget_close(budget);
}

static void limits_move_while_charged(void **state)
{
    (void)state;
    pllm_budget *budget = open_budget(100);
    pllm_budget_member *a = join(budget, 10, 80), *b = join(budget, 10, 80);
    assert_int_equal(pllm_budget_charge(a, 60), PLLM_OK);
    assert_int_equal(pllm_budget_charge(b, 30), PLLM_OK);
    assert_int_equal(pllm_budget_excess(a), 0);
    assert_int_equal(pllm_budget_set_limit(budget, 19), PLLM_ENODEVMEM); /* minimums are 20 */
    assert_int_equal(pllm_budget_set_limit(budget, 48), PLLM_OK);
    /* 42 too many, shared as 50 to 20 above the minimums. */
    assert_int_equal(pllm_budget_excess(a), 30);
    assert_int_equal(pllm_budget_excess(b), 12);
    assert_int_equal(pllm_budget_charge(b, 1), PLLM_ENODEVMEM);
    pllm_budget_credit(a, 30);
    pllm_budget_credit(b, 12);
    assert_int_equal(pllm_budget_excess(a) + pllm_budget_excess(b), 0);
    assert_int_equal(pllm_budget_charge(a, 1), PLLM_ENODEVMEM);
    assert_int_equal(pllm_budget_set_limit(budget, 100), PLLM_OK);
    assert_int_equal(pllm_budget_member_set(a, 5, 20), PLLM_OK); /* below its charge of 30 */
    assert_int_equal(pllm_budget_excess(a), 10);
    assert_int_equal(pllm_budget_charge(a, 1), PLLM_ENODEVMEM);
    assert_int_equal(pllm_budget_member_set(a, 20, 5), PLLM_EINVAL);
    assert_int_equal(pllm_budget_member_set(a, 91, 95), PLLM_ENODEVMEM);
    leave(a);
    leave(b);
    pllm_budget_close(budget);
}

static void a_minimum_works_while_another_member_is_over(void **state)
{
    (void)state;
    pllm_budget *budget = open_budget(100);
    pllm_budget_member *a = join(budget, 0, 100);
    assert_int_equal(pllm_budget_charge(a, 90), PLLM_OK);
    pllm_budget_member *b = join(budget, 40, 100); /* a now holds 30 of b's */
    assert_int_equal(pllm_budget_excess(a), 30);
    assert_int_equal(pllm_budget_charge(b, 11), PLLM_ENODEVMEM); /* the limit is hard */
    assert_int_equal(pllm_budget_charge(b, 10), PLLM_OK);
    assert_int_equal(pllm_budget_charge(a, 0), PLLM_OK);
    pllm_budget_credit(a, 30);
    assert_int_equal(pllm_budget_charge(a, 1), PLLM_ENODEVMEM);
    assert_int_equal(pllm_budget_charge(b, 30), PLLM_OK);
    leave(a);
    leave(b);
    pllm_budget_close(budget);
}

static void huge_numbers_do_not_wrap(void **state)
{
    (void)state;
    pllm_budget *budget = open_budget(UINT64_MAX);
    pllm_budget_member *a = join(budget, UINT64_MAX - 1, UINT64_MAX), *b;
    assert_int_equal(pllm_budget_join(budget, "b", 2, 5, &b), PLLM_ENODEVMEM);
    b = join(budget, 1, UINT64_MAX);
    assert_int_equal(pllm_budget_charge(a, UINT64_MAX), PLLM_ENODEVMEM);
    assert_int_equal(pllm_budget_charge(a, UINT64_MAX - 1), PLLM_OK);
    assert_int_equal(pllm_budget_charge(b, UINT64_MAX - 1), PLLM_ENODEVMEM);
    assert_int_equal(pllm_budget_charge(b, 2), PLLM_ENODEVMEM);
    leave(a);
    leave(b);
    pllm_budget_close(budget);
}

typedef struct charger {
    pllm_budget *budget;
    pllm_budget_member *member;
    uint64_t got, seed;
    int broke;
} charger;

static void claims_come_first(void **state)
{
    (void)state;
    pllm_budget *budget = open_budget(100);
    pllm_budget_member *low = join(budget, 0, 100), *high = join(budget, 0, 100);
    pllm_budget_member *own = join(budget, 10, 100);
    pllm_budget_claim claim = {0}, second;
    pllm_budget_unclaim(&claim); /* nothing was claimed */
    pllm_budget_member_priority(high, 1);
    assert_int_equal(pllm_budget_charge(low, 80), PLLM_OK);
    assert_int_equal(pllm_budget_short(high, 10), 0);
    assert_int_equal(pllm_budget_short(high, 40), 30);
    assert_int_equal(pllm_budget_short(high, UINT64_MAX), UINT64_MAX - 10);
    pllm_budget_claim_make(&claim, high, 40);
    pllm_budget_credit(low, 35);
    assert_int_equal(pllm_budget_charge(low, 6), PLLM_ENODEVMEM);
    assert_int_equal(pllm_budget_short(low, 6), 1);
    assert_int_equal(pllm_budget_charge(low, 5), PLLM_OK);
    assert_int_equal(pllm_budget_charge(own, 11), PLLM_ENODEVMEM);
    assert_true(pllm_budget_is_minimum(own, 10) && !pllm_budget_is_minimum(own, 11));
    assert_int_equal(pllm_budget_charge(own, 10), PLLM_OK); /* its minimum */
    assert_int_equal(pllm_budget_charge(high, 40), PLLM_OK);
    pllm_budget_unclaim(&claim);
    pllm_budget_credit(low, 20);
    pllm_budget_claim_make(&claim, low, 20); /* who is lower waits for what is left */
    pllm_budget_claim_make(&second, high, 1);
    assert_int_equal(pllm_budget_charge(high, 20), PLLM_OK);
    pllm_budget_unclaim(&claim);
    pllm_budget_unclaim(&second);
    assert_int_equal(pllm_budget_member_loan(own, 0), 0);
    assert_int_equal(pllm_budget_member_loan(low, 25), 5);
    assert_int_equal(pllm_budget_set_limit(budget, 90), PLLM_OK);
    assert_int_equal(pllm_budget_over(budget), 10);
    assert_int_equal(pllm_budget_member_set(low, 0, 28), PLLM_OK);
    assert_int_equal(pllm_budget_member_over(low), 2);
    leave(low);
    leave(high);
    leave(own);
    pllm_budget_close(budget);
}

static void *charge_and_credit(void *argument)
{
    charger *self = argument;
    for (int i = 0; i < 5000; i++) {
        self->seed = self->seed * 6364136223846793005u + 1442695040888963407u;
        uint64_t bytes = (self->seed >> 40) % 50;
        if ((self->seed >> 33) % 2 && self->got >= bytes) {
            pllm_budget_credit(self->member, bytes);
            self->got -= bytes;
        } else if (pllm_budget_charge(self->member, bytes) == PLLM_OK) {
            self->got += bytes;
        } else if (self->got + bytes <= 100) {
            self->broke = 1; /* its minimum was refused */
        }
        pllm_budget_stats stats;
        pllm_budget_stats_get(self->budget, &stats);
        if (stats.charged_bytes > stats.limit_bytes) self->broke = 1;
    }
    return NULL;
}

static void threads_keep_the_limit_and_their_minimums(void **state)
{
    (void)state;
    pllm_budget *budget = open_budget(700);
    charger chargers[4];
    pthread_t threads[4];
    /* All are members before one charges: who joins late finds its minimum taken, for a while. */
    for (int i = 0; i < 4; i++)
        chargers[i] = (charger){budget, join(budget, 100, 400), 0, (uint64_t)i + 1, 0};
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, charge_and_credit, &chargers[i]), 0);
    uint64_t got = 0;
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        assert_false(chargers[i].broke);
        assert_int_equal(pllm_budget_charged(chargers[i].member), chargers[i].got);
        got += chargers[i].got;
    }
    pllm_budget_stats stats;
    pllm_budget_stats_get(budget, &stats);
    assert_int_equal(stats.charged_bytes, got);
    assert_true(stats.peak_bytes <= 700 && stats.refused_count > 0);
    for (int i = 0; i < 4; i++) leave(chargers[i].member);
    pllm_budget_close(budget);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(minimums_cannot_be_taken_by_others),
        cmocka_unit_test(limits_move_while_charged),
        cmocka_unit_test(a_minimum_works_while_another_member_is_over),
        cmocka_unit_test(huge_numbers_do_not_wrap),
        cmocka_unit_test(claims_come_first),
        cmocka_unit_test(threads_keep_the_limit_and_their_minimums),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
