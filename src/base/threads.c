/* threads.c - the team: gates that threads wait at, and the counters that open them.
 *
 *   caller   body, argument ->[start gate opens]-> body(0) ...........->[waits at the finish gate]
 *   workers  [wait at start]--------------------> body(i) -> leaving-1 -> last opens the finish
 *   inside   arrived+1; the last one zeroes arrived and the task counter, then opens the barrier
 *
 * A *gate* is one 32-bit word: bit 0 says that someone sleeps, the rest is a generation. Opening
 * takes the next generation and clears bit 0 in one exchange; if the bit was set the sleepers are
 * woken. A waiter knows the generation it came in and leaves when it differs. Because the bit and
 * the generation are one word, no sleeper can be missed and no fence is needed; an opening that
 * nobody sleeps through costs no system call.
 *
 * Spinning: a thread that slept comes back some 15 us late where its processor had halted, and then
 * it is the one that others wait for: with a shorter spin one sleep makes the team sleep at every
 * barrier from there on. So the ceiling of a spin is about what a sleep costs, and all depends on
 * giving up where it does not help, as on a shared processor, where the one waited for needs this
 * very core. Each waiter keeps a budget of pauses for each gate: a wait that ended while spinning
 * doubles it, one that had to sleep quarters it, down to a floor that is small beside a sleep. From
 * the floor the ceiling is tried again after PROBE_FIRST sleeps, and each time that fails twice as
 * many. A team larger than the processors it may use spins only the floor.
 *
 * Invariants:
 *  1. arrived and next_task are written with plain stores only by the last to arrive, while every
 *     other thread is between its arrival and the opening of the barrier.
 *  2. The start gate opens only when every worker of the last run has passed its leaving count, so
 *     no worker can miss a generation.
 *  3. At most one pllm_threads_run is under way.
 * Locks: none. Words written by different parties are 128 bytes apart: adjacent cache lines are
 * fetched in pairs. */
#include <assert.h>
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "base/clock.h"
#include "base/threads.h"

enum {
    SPIN_MAX_NS = 20000,
    SPIN_FLOOR_NS = 400,
    PROBE_FIRST = 16, /* sleeps from the floor before the ceiling is tried again */
    PROBE_LAST = 512,
    LINE_BYTES = 128,
};

typedef struct gate {
    _Alignas(LINE_BYTES) atomic_uint word; /* generation * 2 + someone sleeps */
} gate;

typedef struct spin {
    uint32_t budget;      /* pauses before sleeping */
    uint32_t until_probe; /* sleeps */
    uint32_t probe_gap;
} spin;

typedef struct worker {
    _Alignas(LINE_BYTES) spin at_start; /* the caller's is for the finish gate */
    spin at_barrier;
    pllm_threads *threads;
    uint32_t index;
    pthread_t handle;
} worker;

struct pllm_threads {
    const pllm_context *context;
    void *block; /* the allocation around this struct */
    uint32_t count;
    uint32_t started;              /* workers that exist, counting the caller; count once opened */
    uint32_t spin_floor, spin_max; /* pauses */
    pllm_threads_body body;        /* NULL when the start gate opens: leave for good */
    void *argument;
    bool running;
    gate start, finish, barrier;
    _Alignas(LINE_BYTES) atomic_uint leaving; /* workers still in the body */
    _Alignas(LINE_BYTES) atomic_uint arrived; /* threads at the barrier */
    _Alignas(LINE_BYTES) atomic_uint_least64_t next_task;
    worker workers[];
};

/* ---- gates ---------------------------------------------------------------------------------- */

static inline void cpu_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("isb" ::: "memory");
#endif
}

static void futex_wait(atomic_uint *word, uint32_t value)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake_all(atomic_uint *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

/* The generation a waiter comes in: read it before doing what lets the gate open. */
static inline uint32_t gate_generation(gate *g)
{
    return atomic_load_explicit(&g->word, memory_order_relaxed) >> 1;
}

/* One opener at a time. */
static void gate_open(gate *g)
{
    uint32_t next = (gate_generation(g) + 1) << 1;
    if (atomic_exchange_explicit(&g->word, next, memory_order_release) & 1)
        futex_wake_all(&g->word);
}

static inline bool gate_passed(gate *g, uint32_t generation)
{
    return atomic_load_explicit(&g->word, memory_order_acquire) >> 1 != generation;
}

static void gate_sleep(gate *g, uint32_t generation)
{
    uint32_t closed = generation << 1;
    for (;;) {
        uint32_t seen = closed;
        if (!atomic_compare_exchange_strong_explicit(&g->word, &seen, closed | 1,
                                                     memory_order_acquire, memory_order_acquire) &&
            seen != (closed | 1))
            return; /* opened */
        futex_wait(&g->word, closed | 1);
        if (gate_passed(g, generation)) return;
    }
}

static void spin_helped(const pllm_threads *threads, spin *s)
{
    s->budget = s->budget * 2 < threads->spin_max ? s->budget * 2 : threads->spin_max;
    s->probe_gap = PROBE_FIRST;
}

static void spin_failed(const pllm_threads *threads, spin *s)
{
    s->budget /= 4;
    if (s->budget > threads->spin_floor) return;
    s->budget = threads->spin_floor;
    if (s->until_probe-- > 0) return;
    s->budget = threads->spin_max;
    s->until_probe = s->probe_gap;
    if (s->probe_gap < PROBE_LAST) s->probe_gap *= 2;
}

static void gate_wait(const pllm_threads *threads, gate *g, uint32_t generation, spin *s)
{
    for (uint32_t i = 0; i < s->budget; i++) {
        if (gate_passed(g, generation)) {
            /* One that was open at once says nothing about spinning. */
            if (i > 0) spin_helped(threads, s);
            return;
        }
        cpu_pause();
    }
    spin_failed(threads, s);
    gate_sleep(g, generation);
}

/* Pauses in ns nanoseconds: a pause takes from a few to 140 cycles, depending on the processor. */
static uint32_t pauses_in(uint64_t ns)
{
    enum { TRY_COUNT = 3, PAUSE_COUNT = 200 };
    uint64_t best_ns = UINT64_MAX; /* the least disturbed try */
    for (int i = 0; i < TRY_COUNT; i++) {
        uint64_t begin = pllm_clock_ns();
        for (int j = 0; j < PAUSE_COUNT; j++) cpu_pause();
        uint64_t took = pllm_clock_ns() - begin;
        if (took < best_ns) best_ns = took;
    }
    return (uint32_t)(ns * PAUSE_COUNT / (best_ns + 1)) + 1;
}

/* ---- inside a body -------------------------------------------------------------------------- */

void pllm_threads_barrier(pllm_threads *threads, uint32_t thread_index)
{
    assert(thread_index < threads->count);
    if (threads->count == 1) {
        atomic_store_explicit(&threads->next_task, 0, memory_order_relaxed);
        return;
    }
    uint32_t generation = gate_generation(&threads->barrier);
    uint32_t before = atomic_fetch_add_explicit(&threads->arrived, 1, memory_order_acq_rel);
    if (before + 1 < threads->count) {
        gate_wait(threads, &threads->barrier, generation,
                  &threads->workers[thread_index].at_barrier);
        return;
    }
    atomic_store_explicit(&threads->arrived, 0, memory_order_relaxed);
    atomic_store_explicit(&threads->next_task, 0, memory_order_relaxed);
    gate_open(&threads->barrier);
}

/* The first of the next grain tasks. 64 bits, since every thread may overshoot by a grain. */
static inline uint64_t take(pllm_threads *threads, uint32_t grain)
{
    if (threads->count > 1)
        return atomic_fetch_add_explicit(&threads->next_task, grain, memory_order_relaxed);
    uint64_t task = atomic_load_explicit(&threads->next_task, memory_order_relaxed);
    atomic_store_explicit(&threads->next_task, task + grain, memory_order_relaxed);
    return task;
}

bool pllm_threads_next(pllm_threads *threads, uint32_t task_count, uint32_t *task_out)
{
    uint64_t task = take(threads, 1);
    *task_out = (uint32_t)task;
    return task < task_count;
}

bool pllm_threads_next_range(pllm_threads *threads, uint32_t task_count, uint32_t grain,
                             uint32_t *first_out, uint32_t *end_out)
{
    assert(grain > 0);
    uint64_t first = take(threads, grain);
    if (first >= task_count) return false;
    *first_out = (uint32_t)first;
    *end_out = task_count - first < grain ? task_count : (uint32_t)first + grain;
    return true;
}

void pllm_threads_share(const pllm_threads *threads, uint32_t thread_index, uint64_t item_count,
                        uint64_t unit, uint64_t *first_out, uint64_t *end_out)
{
    assert(unit > 0 && thread_index < threads->count);
    uint64_t unit_count = item_count / unit + (item_count % unit != 0);
    uint64_t each = unit_count / threads->count, extra = unit_count % threads->count;
    uint64_t begin = thread_index * each + (thread_index < extra ? thread_index : extra);
    uint64_t end = begin + each + (thread_index < extra);
    *first_out = begin * unit < item_count ? begin * unit : item_count;
    *end_out = end * unit < item_count ? end * unit : item_count;
}

/* ---- the team ------------------------------------------------------------------------------- */

static void *worker_main(void *argument)
{
    worker *self = argument;
    pllm_threads *threads = self->threads;
    for (uint32_t generation = 0;; generation = (generation + 1) & (UINT32_MAX >> 1)) {
        gate_wait(threads, &threads->start, generation, &self->at_start);
        if (!threads->body) return NULL;
        threads->body(threads->argument, self->index);
        if (atomic_fetch_sub_explicit(&threads->leaving, 1, memory_order_acq_rel) == 1)
            gate_open(&threads->finish);
    }
}

void pllm_threads_run(pllm_threads *threads, pllm_threads_body body, void *argument)
{
    assert(!threads->running && body);
    threads->running = true;
    atomic_store_explicit(&threads->next_task, 0, memory_order_relaxed);
    if (threads->count > 1) {
        threads->body = body;
        threads->argument = argument;
        atomic_store_explicit(&threads->leaving, threads->count - 1, memory_order_relaxed);
        uint32_t generation = gate_generation(&threads->finish);
        gate_open(&threads->start);
        body(argument, 0);
        gate_wait(threads, &threads->finish, generation, &threads->workers[0].at_start);
    } else {
        body(argument, 0);
    }
    threads->running = false;
}

uint32_t pllm_threads_count(const pllm_threads *threads)
{
    return threads->count;
}

static int start_workers(pllm_threads *threads)
{
    sigset_t all, before;
    sigfillset(&all);
    sigdelset(&all, SIGBUS); /* of the thread's own doing: blocked, it could not be caught */
    pthread_sigmask(SIG_SETMASK, &all, &before); /* inherited: signals belong to the caller */
    int failed = 0;
    for (uint32_t i = 1; i < threads->count && !failed; i++) {
        failed =
            pthread_create(&threads->workers[i].handle, NULL, worker_main, &threads->workers[i]);
        if (failed) break;
        char name[16];
        snprintf(name, sizeof name, "pllm-%u", (unsigned)i);
        pthread_setname_np(threads->workers[i].handle, name);
        threads->started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!failed) return PLLM_OK;
    return pllm_fail(PLLM_ELIMIT, failed,
                     "the system started only %u of %u threads (%s); ask for fewer with --threads",
                     (unsigned)threads->started, (unsigned)threads->count, strerror(failed));
}

int pllm_threads_open(const pllm_context *context, uint32_t thread_count,
                      pllm_threads **threads_out)
{
    *threads_out = NULL;
    uint32_t available = pllm_threads_available();
    if (thread_count == 0)
        thread_count = available < PLLM_THREADS_MAX ? available : PLLM_THREADS_MAX;
    if (thread_count > PLLM_THREADS_MAX)
        return pllm_fail(PLLM_EINVAL, 0, "%u threads are more than the limit of %d",
                         (unsigned)thread_count, PLLM_THREADS_MAX);
    /* The allocator aligns to 64; the struct asks for 128 to keep lines apart, so it is placed
     * by hand in a slightly larger block. */
    uint64_t bytes = sizeof(pllm_threads) + thread_count * sizeof(worker);
    char *block = pllm_alloc(context, bytes + LINE_BYTES);
    if (!block) return pllm_fail_memory("a team of threads", bytes);
    pllm_threads *threads =
        (pllm_threads *)(((uintptr_t)block + LINE_BYTES - 1) & ~(uintptr_t)(LINE_BYTES - 1));
    threads->context = context;
    threads->block = block;
    threads->count = thread_count;
    threads->started = 1;
    threads->spin_max = pauses_in(SPIN_MAX_NS);
    threads->spin_floor = threads->spin_max / (SPIN_MAX_NS / SPIN_FLOOR_NS) + 1;
    if (thread_count > available) threads->spin_max = threads->spin_floor;
    for (uint32_t i = 0; i < thread_count; i++) {
        worker *w = &threads->workers[i];
        w->threads = threads;
        w->index = i;
        w->at_start = w->at_barrier = (spin){threads->spin_max, PROBE_FIRST, PROBE_FIRST};
    }
    int status = start_workers(threads);
    if (status < 0) {
        pllm_threads_close(threads);
        return status;
    }
    *threads_out = threads;
    return PLLM_OK;
}

void pllm_threads_close(pllm_threads *threads)
{
    if (!threads) return;
    assert(!threads->running);
    threads->body = NULL;
    gate_open(&threads->start);
    for (uint32_t i = 1; i < threads->started; i++) pthread_join(threads->workers[i].handle, NULL);
    pllm_free(threads->context, threads->block);
}
