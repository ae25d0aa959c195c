/* The team of threads: every task once, barriers that order plain memory, phases that reset by
 * themselves, sleeping and waking, and failures at opening. Under tsan the plain arrays below are
 * what proves the ordering. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <pthread.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/threads.h"
#include "failing_context.h"

enum { TASK_MAX = 64, THREAD_MAX = 8 };

typedef struct work {
    pllm_threads *threads;
    uint32_t phase_count;
    uint32_t round;             /* plain: written by the caller before a run */
    uint32_t cells[TASK_MAX];   /* plain: cell i is written by whoever has task i */
    uint32_t calls[THREAD_MAX]; /* plain */
    uint32_t wrong[THREAD_MAX];
    uint32_t nap_us[THREAD_MAX];
} work;

/* Each phase: every cell must still hold the last phase's number, then gets this one's. A task
 * handed out twice or never, a barrier passed early or a counter not reset leaves a wrong number.
 * The number of tasks varies by phase; the cells beyond are set by static share. */
static void phases(void *argument, uint32_t thread_index)
{
    work *w = argument;
    w->calls[thread_index]++;
    uint32_t base = w->round * w->phase_count;
    for (uint32_t phase = 0; phase < w->phase_count; phase++) {
        uint32_t count = 1 + (phase * 7) % TASK_MAX, number = base + phase + 1;
        if (w->nap_us[thread_index] && phase % 16 == 0) usleep(w->nap_us[thread_index]);
        if (phase % 2) {
            for (uint32_t task; pllm_threads_next(w->threads, count, &task);) {
                w->wrong[thread_index] += w->cells[task] != number - 1;
                w->cells[task] = number;
            }
        } else {
            for (uint32_t first, end;
                 pllm_threads_next_range(w->threads, count, 5, &first, &end);) {
                w->wrong[thread_index] += first % 5 != 0 || end > count || end <= first;
                for (; first < end; first++) {
                    w->wrong[thread_index] += w->cells[first] != number - 1;
                    w->cells[first] = number;
                }
            }
        }
        uint64_t first, end;
        pllm_threads_share(w->threads, thread_index, TASK_MAX - count, 3, &first, &end);
        for (; first < end; first++) {
            w->wrong[thread_index] += w->cells[count + first] != number - 1;
            w->cells[count + first] = number;
        }
        pllm_threads_barrier(w->threads, thread_index);
        for (uint32_t i = 0; i < TASK_MAX; i++) w->wrong[thread_index] += w->cells[i] != number;
        pllm_threads_barrier(w->threads, thread_index);
    }
}

static void check_team(uint32_t thread_count, uint32_t round_count, uint32_t phase_count,
                       uint32_t nap_us)
{
    work w = {.phase_count = phase_count};
    assert_int_equal(pllm_threads_open(NULL, thread_count, &w.threads), PLLM_OK);
    assert_int_equal(pllm_threads_count(w.threads), thread_count);
    w.nap_us[thread_count - 1] = nap_us;
    for (w.round = 0; w.round < round_count; w.round++) {
        pllm_threads_run(w.threads, phases, &w);
        for (uint32_t i = 0; i < TASK_MAX; i++)
            assert_int_equal(w.cells[i], (w.round + 1) * phase_count);
        for (uint32_t i = 0; i < THREAD_MAX; i++) {
            assert_int_equal(w.wrong[i], 0);
            assert_int_equal(w.calls[i], i < thread_count ? w.round + 1 : 0);
        }
    }
    pllm_threads_close(w.threads);
}

static void one_thread(void **state)
{
    (void)state;
    check_team(1, 3, 2000, 0);
}

static void two_threads(void **state)
{
    (void)state;
    check_team(2, 20, 100, 0);
    check_team(2, 2, 64, 300); /* longer than any spinning: the others sleep */
}

static void four_threads(void **state)
{
    (void)state;
    check_team(4, 10, 50, 0);
    check_team(4, 2, 64, 300);
}

static void more_threads_than_processors(void **state)
{
    (void)state;
    check_team(THREAD_MAX, 3, 20, 0);
}

typedef struct counts {
    pllm_threads *threads;
    uint32_t sum[THREAD_MAX];
} counts;

static void only_tasks(void *argument, uint32_t thread_index)
{
    counts *c = argument;
    for (uint32_t task; pllm_threads_next(c->threads, 10, &task);) c->sum[thread_index] += task;
}

/* Without a barrier inside: the counter starts anew at each run. */
static void many_short_runs(void **state)
{
    (void)state;
    for (uint32_t thread_count = 1; thread_count <= 4; thread_count++) {
        counts c = {0};
        assert_int_equal(pllm_threads_open(NULL, thread_count, &c.threads), PLLM_OK);
        for (uint32_t run = 0; run < 500; run++) pllm_threads_run(c.threads, only_tasks, &c);
        uint32_t sum = 0;
        for (uint32_t i = 0; i < THREAD_MAX; i++) sum += c.sum[i];
        assert_int_equal(sum, 500 * 45);
        pllm_threads_close(c.threads);
    }
}

static void no_tasks_and_huge_counts(void **state)
{
    (void)state;
    pllm_threads *threads;
    assert_int_equal(pllm_threads_open(NULL, 1, &threads), PLLM_OK);
    uint32_t task, first, end;
    assert_false(pllm_threads_next(threads, 0, &task));
    pllm_threads_barrier(threads, 0);
    assert_true(pllm_threads_next_range(threads, UINT32_MAX, 0x80000000u, &first, &end));
    assert_true(pllm_threads_next_range(threads, UINT32_MAX, 0x80000000u, &first, &end));
    assert_int_equal(first, 0x80000000u);
    assert_int_equal(end, UINT32_MAX);
    assert_false(pllm_threads_next_range(threads, UINT32_MAX, 0x80000000u, &first, &end));
    pllm_threads_close(threads);
}

static void shares_are_even_and_whole(void **state)
{
    (void)state;
    pllm_threads *threads;
    assert_int_equal(pllm_threads_open(NULL, 3, &threads), PLLM_OK);
    for (uint64_t items = 0; items < 50; items++)
        for (uint64_t unit = 1; unit < 9; unit++) {
            uint64_t next = 0, least = UINT64_MAX, most = 0;
            for (uint32_t i = 0; i < 3; i++) {
                uint64_t first, end;
                pllm_threads_share(threads, i, items, unit, &first, &end);
                assert_int_equal(first, next);
                assert_true(end >= first && (end % unit == 0 || end == items));
                uint64_t units = (end - first + unit - 1) / unit;
                least = units < least ? units : least;
                most = units > most ? units : most;
                next = end;
            }
            assert_int_equal(next, items);
            assert_true(most - least <= 1);
        }
    pllm_threads_close(threads);
}

static void opening_fails_cleanly(void **state)
{
    (void)state;
    pllm_threads *threads;
    assert_int_equal(pllm_threads_open(NULL, PLLM_THREADS_MAX + 1, &threads), PLLM_EINVAL);
    assert_null(threads);
    for (uint64_t n = 0;; n++) {
        failing_context failing;
        failing_context_init(&failing, n);
        int status = pllm_threads_open(&failing.context, 2, &threads);
        assert_int_equal(status, failing_context_hit(&failing) ? PLLM_ENOMEM : PLLM_OK);
        assert_true((threads == NULL) == (status != PLLM_OK));
        pllm_threads_close(threads);
        failing_context_check(&failing);
        if (!failing_context_hit(&failing)) break;
    }
}

/* A stack larger than the address space is what no system gives. */
static void the_system_may_refuse_threads(void **state)
{
    (void)state;
    pthread_attr_t before, huge;
    pllm_threads *threads;
    failing_context failing;
    failing_context_init(&failing, FAILING_NEVER);
    assert_int_equal(pthread_getattr_default_np(&before), 0);
    assert_int_equal(pthread_attr_init(&huge), 0);
    assert_int_equal(pthread_attr_setstacksize(&huge, (size_t)1 << 47), 0);
    assert_int_equal(pthread_setattr_default_np(&huge), 0);
    int status = pllm_threads_open(&failing.context, 3, &threads);
    assert_int_equal(pthread_setattr_default_np(&before), 0);
    pthread_attr_destroy(&huge);
    pthread_attr_destroy(&before);
    assert_int_equal(status, PLLM_ELIMIT);
    assert_null(threads);
    assert_non_null(strstr(pllm_last_error()->text, "only 1 of 3 threads"));
    failing_context_check(&failing);
}

static void zero_means_what_is_available(void **state)
{
    (void)state;
    pllm_threads *threads;
    uint32_t available = pllm_threads_available();
    assert_in_range(available, 1, 16384);
    assert_int_equal(pllm_threads_open(NULL, 0, &threads), PLLM_OK);
    assert_int_equal(pllm_threads_count(threads),
                     available < PLLM_THREADS_MAX ? available : PLLM_THREADS_MAX);
    pllm_threads_close(threads);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_thread),
        cmocka_unit_test(two_threads),
        cmocka_unit_test(four_threads),
        cmocka_unit_test(more_threads_than_processors),
        cmocka_unit_test(many_short_runs),
        cmocka_unit_test(no_tasks_and_huge_counts),
        cmocka_unit_test(shares_are_even_and_whole),
        cmocka_unit_test(opening_fails_cleanly),
        cmocka_unit_test(the_system_may_refuse_threads),
        cmocka_unit_test(zero_means_what_is_available),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
