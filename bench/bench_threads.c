/* Question: what do a run (fork and join) and a barrier of the thread team cost?
 * Baseline: the same with a mutex and condition variable (pthread_barrier_t), alternating.
 * Expected: a barrier whose threads arrive together is two transfers of a cache line, 0.1 to 1 us;
 * pthread_barrier sleeps each time, 5 to 50 us. A decode step of 30 layers has some 150 barriers,
 * so at 1 us they are 0.15 ms of it.
 *
 * bench_threads [--smoke] [--threads N]; medians over rounds, in nanoseconds. On a machine that is
 * shared or has fewer processors than threads both numbers are those of sleeping and waking. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/threads.h"

enum { ROUND_MAX = 64 };

typedef struct measure {
    pllm_threads *threads;
    pthread_barrier_t plain;
    uint32_t count;   /* barriers in a run */
    uint32_t work_ns; /* computed between two barriers, to arrive nearly together */
} measure;

static void compute(uint32_t ns)
{
    if (ns == 0) return;
    for (uint64_t end = pllm_clock_ns() + ns; pllm_clock_ns() < end;) {
    }
}

static void body_empty(void *argument, uint32_t thread_index)
{
    (void)argument, (void)thread_index;
}

static void body_ours(void *argument, uint32_t thread_index)
{
    measure *m = argument;
    for (uint32_t i = 0; i < m->count; i++) {
        compute(m->work_ns);
        pllm_threads_barrier(m->threads, thread_index);
    }
}

static void body_plain(void *argument, uint32_t thread_index)
{
    measure *m = argument;
    (void)thread_index;
    for (uint32_t i = 0; i < m->count; i++) {
        compute(m->work_ns);
        pthread_barrier_wait(&m->plain);
    }
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, uint32_t count)
{
    qsort(values, count, sizeof *values, compare);
    return values[count / 2];
}

/* Nanoseconds a barrier adds to the computing between two. */
static double barrier_ns(measure *m, pllm_threads_body body)
{
    uint64_t begin = pllm_clock_ns();
    pllm_threads_run(m->threads, body, m);
    return (double)(pllm_clock_ns() - begin) / m->count - m->work_ns;
}

int main(int argc, char **argv)
{
    uint32_t rounds = 31, thread_count = 0;
    measure m = {.count = 500};
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--smoke") == 0)
            rounds = 3, m.count = 20;
        else if (strcmp(argv[i], "--threads") == 0 && i + 1 < argc)
            thread_count = (uint32_t)atoi(argv[++i]);
        else
            return fprintf(stderr, "usage: %s [--smoke] [--threads N]\n", argv[0]), 2;
    }
    if (pllm_threads_open(NULL, thread_count, &m.threads) < 0)
        return fprintf(stderr, "%s\n", pllm_last_error()->text), 1;
    thread_count = pllm_threads_count(m.threads);
    pthread_barrier_init(&m.plain, NULL, thread_count);

    double runs[ROUND_MAX], ours[ROUND_MAX], plain[ROUND_MAX];
    for (uint32_t i = 0; i < rounds; i++) {
        enum { RUN_COUNT = 50 };
        uint64_t begin = pllm_clock_ns();
        for (int j = 0; j < RUN_COUNT; j++) pllm_threads_run(m.threads, body_empty, &m);
        runs[i] = (double)(pllm_clock_ns() - begin) / RUN_COUNT;
    }
    printf("%u threads, %u rounds, medians (least)\n", thread_count, rounds);
    double middle = median(runs, rounds);
    printf("run of an empty body    %8.0f ns (%.0f)\n", middle, runs[0]);
    static const uint32_t work[] = {0, 25000};
    for (int w = 0; w < 2; w++) {
        m.work_ns = work[w];
        if (work[w] > 0 && m.count > 100) m.count = 100;
        for (uint32_t i = 0; i < rounds; i++) {
            plain[i] = barrier_ns(&m, body_plain);
            ours[i] = barrier_ns(&m, body_ours);
        }
        double our_median = median(ours, rounds), plain_median = median(plain, rounds);
        printf(
            "barrier after %5u ns   %8.0f ns (%.0f); pthread_barrier %8.0f ns (%.0f); ratio %.2f\n",
            work[w], our_median, ours[0], plain_median, plain[0], our_median / plain_median);
    }
    pthread_barrier_destroy(&m.plain);
    pllm_threads_close(m.threads);
    return 0;
}
