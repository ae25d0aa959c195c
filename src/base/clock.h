/* clock.h - the monotonic clock in nanoseconds, for intervals and deadlines; never wall time. */
#ifndef PLLM_BASE_CLOCK_H
#define PLLM_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t pllm_clock_of(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline uint64_t pllm_clock_ns(void)
{
    return pllm_clock_of(CLOCK_MONOTONIC);
}

/* Processor time of the calling thread: steadier than the clock on a shared machine. */
static inline uint64_t pllm_clock_thread_cpu_ns(void)
{
    return pllm_clock_of(CLOCK_THREAD_CPUTIME_ID);
}

#endif
