/* Policies on hand-made traces and against slow, literal versions; Belady against brute force; the
 * text form of traces. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/options.h"
#include "failing_context.h"
#include "pager/pager.h"
#include "pager/replay.h"

enum { PAGES = 24, LENGTH = 400 };

static uint32_t random_below(uint64_t *state, uint32_t below)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((*state >> 33) % below);
}

static uint64_t hits_of(const uint32_t *accesses, uint64_t count, uint32_t pages,
                        pllm_policy_kind kind, uint32_t frames)
{
    pllm_trace *trace;
    uint64_t hits;
    assert_int_equal(pllm_trace_open(NULL, pages, NULL, accesses, count, &trace), PLLM_OK);
    assert_int_equal(pllm_replay_policy(trace, kind, frames, &hits), PLLM_OK);
    pllm_trace_close(trace);
    return hits;
}

static uint64_t optimum_of(const uint32_t *accesses, uint64_t count, uint32_t pages,
                           uint32_t frames)
{
    pllm_trace *trace;
    uint64_t hits;
    assert_int_equal(pllm_trace_open(NULL, pages, NULL, accesses, count, &trace), PLLM_OK);
    assert_int_equal(pllm_replay_optimum(trace, frames, &hits), PLLM_OK);
    pllm_trace_close(trace);
    return hits;
}

/* ---- hand traces ---- */

static void lru_evicts_the_least_recent(void **state)
{
    (void)state;
    /* 2 frames: 0 1 | 0 hit | 2 evicts 1 | 0 hit | 1 evicts 2 | 2 evicts 0 | 0 evicts 1 */
    const uint32_t accesses[] = {0, 1, 0, 2, 0, 1, 2, 0};
    assert_int_equal(hits_of(accesses, 8, 3, PLLM_POLICY_LRU, 2), 2);
}

static void cyclic_scan_static_meets_belady_and_lru_gets_nothing(void **state)
{
    (void)state;
    enum { N = 100, F = 10, ROUNDS = 30 };
    static uint32_t accesses[N * ROUNDS];
    for (uint32_t i = 0; i < N * ROUNDS; i++) accesses[i] = i % N;
    uint64_t optimum = optimum_of(accesses, N * ROUNDS, N, F);
    assert_int_equal(hits_of(accesses, N * ROUNDS, N, PLLM_POLICY_LRU, F), 0);
    /* Nine frames stay, one streams. Belady gains a little more by letting the share drift. */
    assert_int_equal(hits_of(accesses, N * ROUNDS, N, PLLM_POLICY_STATIC, F),
                     (F - 1) * (ROUNDS - 1));
    /* (F - 1) / (N - 1) of all accesses that find the frames full */
    assert_in_range(optimum, (F - 1) * (ROUNDS - 1), (F - 1) * (N * ROUNDS) / (N - 1));
}

static void twoq_keeps_the_recurring_through_a_scan(void **state)
{
    (void)state;
    /* Pages 0 to 2 are used with gaps that A1out remembers; then 40 pages pass once. */
    static uint32_t accesses[400];
    uint64_t count = 0;
    uint32_t cold = 3;
    for (uint32_t round = 0; round < 6; round++) {
        for (uint32_t hot = 0; hot < 3; hot++) accesses[count++] = hot;
        for (uint32_t i = 0; i < 3; i++) accesses[count++] = cold++;
    }
    uint64_t before = count;
    for (uint32_t i = 0; i < 40; i++) accesses[count++] = cold++;
    for (uint32_t hot = 0; hot < 3; hot++) accesses[count++] = hot;
    uint64_t two = hits_of(accesses, count, cold, PLLM_POLICY_2Q, 8) -
                   hits_of(accesses, before, cold, PLLM_POLICY_2Q, 8);
    uint64_t lru = hits_of(accesses, count, cold, PLLM_POLICY_LRU, 8) -
                   hits_of(accesses, before, cold, PLLM_POLICY_LRU, 8);
    assert_int_equal(two, 3);
    assert_int_equal(lru, 0);
}

/* ---- literal versions ---- */

typedef struct page_row { /* oldest first */
    uint32_t page[PAGES * 2], count;
} page_row;

static int row_find(const page_row *row, uint32_t page)
{
    for (uint32_t i = 0; i < row->count; i++)
        if (row->page[i] == page) return (int)i;
    return -1;
}
static uint32_t row_take(page_row *row, uint32_t index)
{
    uint32_t page = row->page[index];
    memmove(row->page + index, row->page + index + 1, (--row->count - index) * sizeof *row->page);
    return page;
}
static void row_add(page_row *row, uint32_t page)
{
    row->page[row->count++] = page;
}

static uint64_t literal_lru(const uint32_t *accesses, uint64_t count, uint32_t frames)
{
    page_row lru = {0};
    uint64_t hits = 0;
    for (uint64_t i = 0; i < count; i++) {
        int at = row_find(&lru, accesses[i]);
        hits += at >= 0;
        if (at >= 0)
            row_take(&lru, (uint32_t)at);
        else if (lru.count == frames)
            row_take(&lru, 0);
        row_add(&lru, accesses[i]);
    }
    return hits;
}

static uint64_t literal_static(const uint32_t *accesses, uint64_t count, uint32_t frames)
{
    page_row set = {0};
    uint64_t hits = 0;
    for (uint64_t i = 0; i < count; i++) {
        if (row_find(&set, accesses[i]) >= 0) {
            hits++;
            continue;
        }
        if (set.count == frames) {
            uint32_t highest = 0;
            for (uint32_t j = 1; j < set.count; j++)
                if (set.page[j] > set.page[highest]) highest = j;
            row_take(&set, highest);
        }
        row_add(&set, accesses[i]);
    }
    return hits;
}

/* As printed in the paper, section 3.2. */
static uint64_t literal_2q(const uint32_t *accesses, uint64_t count, uint32_t frames)
{
    page_row am = {0}, in = {0}, out = {0};
    uint64_t hits = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint32_t page = accesses[i];
        int at = row_find(&am, page);
        if (at >= 0) {
            hits++;
            row_take(&am, (uint32_t)at);
            row_add(&am, page);
            continue;
        }
        if (row_find(&in, page) >= 0) {
            hits++;
            continue;
        }
        int ghost = row_find(&out, page);
        if (ghost >= 0) row_take(&out, (uint32_t)ghost);
        if (am.count + in.count == frames) {
            if (in.count > frames / 4 || am.count == 0) {
                row_add(&out, row_take(&in, 0));
                if (out.count > frames / 2) row_take(&out, 0);
            } else {
                row_take(&am, 0);
            }
        }
        row_add(ghost >= 0 ? &am : &in, page);
    }
    return hits;
}

/* The best of all choices of victims, by trying every one. */
static uint32_t brute_force(const uint32_t *accesses, uint32_t count, uint32_t frames,
                            uint32_t resident)
{
    if (count == 0) return 0;
    uint32_t bit = 1u << accesses[0];
    if (resident & bit) return 1 + brute_force(accesses + 1, count - 1, frames, resident);
    if ((uint32_t)__builtin_popcount(resident) < frames)
        return brute_force(accesses + 1, count - 1, frames, resident | bit);
    uint32_t best = 0;
    for (uint32_t rest = resident; rest; rest &= rest - 1) {
        uint32_t victim = rest & -rest;
        uint32_t hits = brute_force(accesses + 1, count - 1, frames, (resident & ~victim) | bit);
        if (hits > best) best = hits;
    }
    return best;
}

static void belady_is_the_best_of_all_choices(void **state)
{
    (void)state;
    uint64_t seed = 11;
    for (uint32_t trial = 0; trial < 300; trial++) {
        uint32_t accesses[14], pages = 3 + random_below(&seed, 4);
        uint32_t frames = 1 + random_below(&seed, 3);
        for (uint32_t i = 0; i < 14; i++) accesses[i] = random_below(&seed, pages);
        assert_int_equal(optimum_of(accesses, 14, pages, frames),
                         brute_force(accesses, 14, frames, 0));
    }
}

static void policies_do_what_their_literal_versions_do(void **state)
{
    (void)state;
    uint64_t seed = 5;
    for (uint32_t trial = 0; trial < 200; trial++) {
        uint32_t accesses[LENGTH], frames = 1 + random_below(&seed, 12);
        uint32_t skew = 1 + random_below(&seed, 3);
        for (uint32_t i = 0; i < LENGTH; i++) {
            uint32_t page = random_below(&seed, PAGES);
            for (uint32_t j = 1; j < skew; j++) {
                uint32_t other = random_below(&seed, PAGES);
                if (other < page) page = other;
            }
            accesses[i] = page;
        }
        uint64_t lru = hits_of(accesses, LENGTH, PAGES, PLLM_POLICY_LRU, frames);
        uint64_t fixed = hits_of(accesses, LENGTH, PAGES, PLLM_POLICY_STATIC, frames);
        uint64_t two = hits_of(accesses, LENGTH, PAGES, PLLM_POLICY_2Q, frames);
        uint64_t optimum = optimum_of(accesses, LENGTH, PAGES, frames);
        assert_int_equal(lru, literal_lru(accesses, LENGTH, frames));
        assert_int_equal(fixed, literal_static(accesses, LENGTH, frames));
        assert_int_equal(two, literal_2q(accesses, LENGTH, frames));
        assert_true(lru <= optimum && fixed <= optimum && two <= optimum);
    }
}

/* ---- parking, hints ---- */

static int goes_if_even(void *user, uint32_t page)
{
    ++*(uint32_t *)user;
    return page % 2 == 0;
}

static void a_refused_page_is_asked_once_and_comes_back_when_offered(void **state)
{
    (void)state;
    for (int kind = 0; kind < PLLM_POLICY_COUNT; kind++) {
        _Alignas(8) unsigned char memory[4096];
        assert_true(pllm_policy_bytes(16) <= sizeof memory);
        pllm_policy policy;
        pllm_policy_init(&policy, (pllm_policy_kind)kind, 16, 8, memory);
        for (uint32_t page = 0; page < 8; page++) {
            pllm_policy_forget(&policy, page, 7 - page); /* static: 0 goes first, as in lru */
            pllm_policy_arrive(&policy, page, 0);
        }
        uint32_t asked = 0;
        for (uint32_t round = 0; round < 4; round++) {
            uint32_t victim = pllm_policy_victim(&policy, goes_if_even, &asked);
            assert_int_equal(victim, 2 * round);
            pllm_policy_check(&policy);
            pllm_policy_leave(&policy, victim, 1);
        }
        assert_int_equal(pllm_policy_victim(&policy, goes_if_even, &asked), UINT32_MAX);
        assert_int_equal(asked, 8);
        assert_int_equal(pllm_policy_parked_next(&policy, UINT32_MAX), 7);
        pllm_policy_offer(&policy, 3);
        pllm_policy_offer(&policy, 3);
        assert_int_equal(pllm_policy_victim(&policy, NULL, NULL), 3);
        pllm_policy_leave(&policy, 5, 0); /* parked pages may leave */
        pllm_policy_check(&policy);
    }
}

static void hints_order_victims(void **state)
{
    (void)state;
    for (int kind = 0; kind < PLLM_POLICY_COUNT; kind++) {
        _Alignas(8) unsigned char memory[4096];
        pllm_policy policy;
        pllm_policy_init(&policy, (pllm_policy_kind)kind, 16, 6, memory);
        for (uint32_t page = 0; page < 6; page++) {
            pllm_policy_forget(&policy, page, 7 - page);
            pllm_policy_arrive(&policy, page, 0);
        }
        pllm_policy_set_class(&policy, 4, PLLM_CLASS_DOOMED);
        pllm_policy_set_class(&policy, 0, PLLM_CLASS_KEPT);
        const uint32_t order[] = {4, 1, 2, 3, 5, 0};
        for (uint32_t i = 0; i < 6; i++) {
            uint32_t victim = pllm_policy_victim(&policy, NULL, NULL);
            assert_int_equal(victim, order[i]);
            pllm_policy_leave(&policy, victim, 1);
            pllm_policy_check(&policy);
        }
        assert_int_equal(policy.class[4], PLLM_CLASS_NORMAL);
        assert_int_equal(policy.class[0], PLLM_CLASS_KEPT);
    }
    pllm_policy_kind kind;
    assert_int_equal(pllm_policy_from_name("2q", &kind), PLLM_OK);
    assert_int_equal(kind, PLLM_POLICY_2Q);
    assert_int_equal(pllm_policy_from_name("fifo", &kind), PLLM_EINVAL);
    assert_int_equal(pllm_policy_from_name(NULL, &kind), PLLM_EINVAL);
}

/* ---- text ---- */

static int parse(const char *text, pllm_trace **trace)
{
    return pllm_trace_parse(NULL, text, strlen(text), trace);
}

static void traces_survive_a_file(void **state)
{
    (void)state;
    uint64_t seed = 3;
    uint32_t accesses[LENGTH], ranks[PAGES];
    for (uint32_t i = 0; i < LENGTH; i++)
        accesses[i] = i % 3 ? (accesses[i - 1] + 1) % PAGES : random_below(&seed, PAGES);
    for (uint32_t i = 0; i < PAGES; i++) ranks[i] = random_below(&seed, 3) ? i : 99 - i;
    char path[] = "/tmp/pllm-trace-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    pllm_trace *trace, *copy, *again;
    assert_int_equal(pllm_trace_open(NULL, PAGES, ranks, accesses, LENGTH, &trace), PLLM_OK);
    assert_int_equal(pllm_trace_write(trace, path), PLLM_OK);
    assert_int_equal(pllm_trace_read(NULL, path, &again), PLLM_OK);
    unlink(path);
    copy = again;
    assert_int_equal(copy->access_count, LENGTH);
    assert_memory_equal(copy->accesses, accesses, sizeof accesses);
    assert_memory_equal(copy->ranks, ranks, sizeof ranks);
    assert_int_equal(pllm_trace_read(NULL, path, &again), PLLM_EIO);
    pllm_trace_close(copy);
    pllm_trace_close(trace);
}

static void bad_traces_are_refused(void **state)
{
    (void)state;
    pllm_trace *trace;
    const char *const bad[] = {
        "",
        "pagedllm trace 2\npages 4\n",
        "pagedllm trace 1\n1 2",
        "pagedllm trace 1\npages 4\n1 4",
        "pagedllm trace 1\npages 4\n3-1",
        "pagedllm trace 1\npages 4\n1-",
        "pagedllm trace 1\npages 4\nrank 4 0\n",
        "pagedllm trace 1\npages 4\nrank 1\n2",
        "pagedllm trace 1\npages 4\n1 x",
        "pagedllm trace 1\npages 99999999999\n1",
        "pagedllm trace 1\npages 4\n-1",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(parse(bad[i], &trace), PLLM_EINVAL);
        assert_null(trace);
    }
    assert_int_equal(parse("pagedllm trace 1\npages 99999999\n1", &trace), PLLM_ELIMIT);
    assert_int_equal(parse("pagedllm trace 1 # v\npages 4\n\nrank 1 9\n0-3 2 # x\n1\n", &trace),
                     PLLM_OK);
    assert_int_equal(trace->access_count, 6);
    assert_int_equal(trace->accesses[5], 1);
    assert_int_equal(trace->ranks[1], 9);
    pllm_trace_close(trace);
    const uint32_t beyond[] = {4};
    assert_int_equal(pllm_trace_open(NULL, 4, NULL, beyond, 1, &trace), PLLM_EINVAL);
}

static void replay_survives_lost_allocations(void **state)
{
    (void)state;
    const char text[] = "pagedllm trace 1\npages 200\nrank 1 9\n0-199 5 0-199";
    for (uint64_t n = 0;; n++) {
        failing_context failing;
        failing_context_init(&failing, n);
        pllm_trace *trace;
        uint64_t hits;
        int status = pllm_trace_parse(&failing.context, text, strlen(text), &trace);
        if (status == PLLM_OK) status = pllm_replay_policy(trace, PLLM_POLICY_2Q, 20, &hits);
        if (status == PLLM_OK) status = pllm_replay_optimum(trace, 20, &hits);
        assert_int_equal(status, failing_context_hit(&failing) ? PLLM_ENOMEM : PLLM_OK);
        pllm_trace_close(trace);
        failing_context_check(&failing);
        if (!failing_context_hit(&failing)) {
            assert_true(n >= 7);
            break;
        }
    }
}

/* The command line has its own list of names, since it is below the pager: the same one. */
static void the_command_line_has_the_same_names(void **state)
{
    (void)state;
    for (int prefetch = 0; prefetch < 2; prefetch++) {
        const pllm_option *option = pllm_option_find(prefetch ? "prefetch-strategy" : "policy");
        assert_non_null(option);
        char names[64], *rest = names;
        snprintf(names, sizeof names, "%s", option->argument);
        uint32_t count = 0, seen = 0;
        for (char *name; (name = strtok_r(rest, "|", &rest)); count++) {
            pllm_policy_kind policy = PLLM_POLICY_STATIC;
            pllm_prefetch_kind kind = PLLM_PREFETCH_NONE;
            int status = prefetch ? pllm_prefetch_from_name(name, &kind)
                                  : pllm_policy_from_name(name, &policy);
            assert_int_equal(status, PLLM_OK);
            seen |= 1u << (prefetch ? (int)kind : (int)policy);
            status = prefetch ? pllm_prefetch_from_name("mru", &kind)
                              : pllm_policy_from_name("mru", &policy);
            assert_int_equal(status, PLLM_EINVAL);
            assert_non_null(strstr(pllm_last_error()->text, name)); /* what there is, is listed */
        }
        assert_int_equal(count, prefetch ? PLLM_PREFETCH_SEQUENTIAL + 1 : PLLM_POLICY_COUNT);
        assert_int_equal(seen, (1u << count) - 1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lru_evicts_the_least_recent),
        cmocka_unit_test(cyclic_scan_static_meets_belady_and_lru_gets_nothing),
        cmocka_unit_test(twoq_keeps_the_recurring_through_a_scan),
        cmocka_unit_test(belady_is_the_best_of_all_choices),
        cmocka_unit_test(policies_do_what_their_literal_versions_do),
        cmocka_unit_test(a_refused_page_is_asked_once_and_comes_back_when_offered),
        cmocka_unit_test(hints_order_victims),
        cmocka_unit_test(traces_survive_a_file),
        cmocka_unit_test(bad_traces_are_refused),
        cmocka_unit_test(replay_survives_lost_allocations),
        cmocka_unit_test(the_command_line_has_the_same_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
