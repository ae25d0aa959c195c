/* threads.h - a team of threads that runs one body at a time, with barriers and shared tasks
 * inside.
 *
 *     static void layer(void *argument, uint32_t thread_index)
 *     {
 *         step *s = argument;
 *         for (uint32_t row; pllm_threads_next(s->threads, s->row_count, &row);) norm(s, row);
 *         pllm_threads_barrier(s->threads, thread_index);          a new phase: tasks from 0 again
 *         for (uint32_t tile; pllm_threads_next(s->threads, s->tile_count, &tile);) mul(s, tile);
 *     }
 *     pllm_threads_run(threads, layer, &s);                        returns when all are done
 *
 * A *phase* is the time from the start of a run, or a barrier, to the next barrier or the end of
 * the run. Each phase has one task counter, which starts at 0 by itself. Which thread gets which
 * task differs from run to run: a result must not depend on it (rule 1).
 *
 * What a thread wrote before a barrier, or the caller before a run, every thread sees after it.
 * Waiting spins no longer than a sleep would cost (20 us), much less where that did not help
 * lately, then sleeps on a futex. Cut phases into tasks rather than static shares where work
 * allows: a thread that wakes late then costs nothing. With one thread everything is a plain call.
 *
 * Threads: one pllm_threads_run at a time per team, and not from inside its own body. Every thread
 * of the team must reach the same barriers in the same order. Workers block all signals but
 * SIGBUS, so that a program may catch what a mapped file does that is cut short. */
#ifndef PLLM_BASE_THREADS_H
#define PLLM_BASE_THREADS_H

#include <stdbool.h>
#include <stdint.h>
#include "base/context.h"

typedef struct pllm_threads pllm_threads;
typedef void (*pllm_threads_body)(void *argument, uint32_t thread_index);

enum { PLLM_THREADS_MAX = 1024 };

/* A team of thread_count threads, the caller of pllm_threads_run being one of them; 0 means
 * pllm_threads_available(). Ownership: borrows context; caller owns *threads_out.
 * Errors: EINVAL (above PLLM_THREADS_MAX), ENOMEM, ELIMIT (the system gives no more threads); then
 * *threads_out is NULL. */
int pllm_threads_open(const pllm_context *context, uint32_t thread_count,
                      pllm_threads **threads_out);
void pllm_threads_close(pllm_threads *threads); /* NULL is fine; no run may be under way */

uint32_t pllm_threads_count(const pllm_threads *threads);
/* Processors this process may use: its affinity mask, bounded by its cgroup's quota (v1 or v2). */
uint32_t pllm_threads_available(void);

/* Calls body(argument, i) once on each thread, i from 0 (the caller) to count - 1, and returns when
 * all have returned. */
void pllm_threads_run(pllm_threads *threads, pllm_threads_body body, void *argument);

/* Inside a body: waits until every thread of the team is here, then begins a new phase. */
void pllm_threads_barrier(pllm_threads *threads, uint32_t thread_index);

/* Inside a body: the next task of this phase, or false when all task_count have been handed out.
 * Every thread must give the same task_count within a phase. */
bool pllm_threads_next(pllm_threads *threads, uint32_t task_count, uint32_t *task_out);

/* The same by ranges of up to grain tasks, [*first_out, *end_out), for tasks of under a
 * microsecond. The grain must be the same within a phase; ranges begin at multiples of it. */
bool pllm_threads_next_range(pllm_threads *threads, uint32_t task_count, uint32_t grain,
                             uint32_t *first_out, uint32_t *end_out);

/* Static shares: thread thread_index's [*first_out, *end_out) of item_count, in multiples of unit
 * items but for the last, as even as they can be; may be empty. */
void pllm_threads_share(const pllm_threads *threads, uint32_t thread_index, uint64_t item_count,
                        uint64_t unit, uint64_t *first_out, uint64_t *end_out);

#endif
