/* Several processes on one ledger: three that share a limit while a fourth samples it, preemption
 * within its deadline, and members that are killed, with SIGKILL, at any moment. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/clock.h"
#include "vmm/ledger.h"

#define MB ((uint64_t)1 << 20)
#define SECOND ((uint64_t)1000000000)

static char name[32], path[96];

/* What the processes of a test tell each other. */
typedef struct board {
    atomic_int ready, go, done;
    atomic_uint_least64_t took_ns, samples, highest, preempted;
} board;
static board *shared;

static int setup(void **state)
{
    (void)state;
    snprintf(name, sizeof name, "processes-%d", (int)getpid());
    assert_int_equal(pllm_ledger_path(name, path, sizeof path), PLLM_OK);
    unlink(path);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(shared != MAP_FAILED);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    unlink(path);
    munmap(shared, sizeof *shared);
    return 0;
}

static uint64_t draw(uint64_t *random, uint64_t below)
{
    uint64_t x = *random += 0x9e3779b97f4a7c15u; /* SplitMix64 */
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return (x ^ (x >> 31)) % below;
}

/* In a child nothing of cmocka works: it ends with the line. */
#define MUST(condition)                                                    \
    do {                                                                   \
        if (!(condition)) {                                                \
            fprintf(stderr, "child: line %d: %s\n", __LINE__, #condition); \
            _exit(1);                                                      \
        }                                                                  \
    } while (0)

static void wait_for(atomic_int *word, int value)
{
    uint64_t until = pllm_clock_ns() + 60 * SECOND;
    while (atomic_load(word) < value) {
        if (pllm_clock_ns() > until) abort(); /* somebody died who should not have */
        usleep(200);
    }
}

/* ---- a member that owns bytes and gives them back ---- */

typedef struct holder {
    pllm_ledger *ledger;
    pllm_ledger_member *member;
    pthread_mutex_t lock;
    uint64_t bytes, minimum; /* under the lock: charged by this process */
    int gives;               /* 0: keeps all, 1: gives what it is asked for */
} holder;

static uint64_t give(void *user, uint64_t bytes, uint64_t deadline_ns)
{
    holder *self = user;
    (void)deadline_ns;
    pthread_mutex_lock(&self->lock);
    uint64_t loan = self->bytes > self->minimum ? self->bytes - self->minimum : 0;
    uint64_t part = !self->gives ? 0 : bytes < loan ? bytes : loan;
    self->bytes -= part;
    pllm_ledger_credit(self->member, part);
    pthread_mutex_unlock(&self->lock);
    atomic_fetch_add(&shared->preempted, part > 0);
    return part;
}

static void holder_open(holder *self, const char *member, uint64_t minimum, int32_t priority,
                        int gives, uint32_t wait_ms)
{
    *self = (holder){.minimum = minimum, .gives = gives, .lock = PTHREAD_MUTEX_INITIALIZER};
    MUST(pllm_ledger_open(NULL, name, 0, &self->ledger) == PLLM_OK);
    pllm_ledger_member_options options = {.struct_bytes = sizeof options,
                                          .name = member,
                                          .minimum_bytes = minimum,
                                          .priority = priority,
                                          .wait_ms = wait_ms,
                                          .reclaim = give,
                                          .user = self};
    MUST(pllm_ledger_join(self->ledger, &options, &self->member) == PLLM_OK);
}

static void holder_close(holder *self)
{
    pllm_ledger_leave(self->member);
    pllm_ledger_close(self->ledger);
}

static pid_t start(void (*body)(void *), void *argument)
{
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid > 0) return pid;
    body(argument);
    _exit(0);
}

static void must_end_well(pid_t pid)
{
    int how;
    assert_int_equal(waitpid(pid, &how, 0), pid);
    assert_true(WIFEXITED(how) && WEXITSTATUS(how) == 0);
}

/* ---- three share a limit ---- */

enum { LIMIT_MB = 100 };

typedef struct role {
    const char *name;
    uint64_t minimum;
    int32_t priority;
    uint64_t seed;
} role;

/* Charges and credits at random; whatever the others do, its minimum is always to be had. */
static void share(void *argument)
{
    const role *as = argument;
    uint64_t random = as->seed;
    holder self;
    holder_open(&self, as->name, as->minimum, as->priority, 1, 30);
    atomic_fetch_add(&shared->ready, 1);
    wait_for(&shared->go, 1);
    while (!atomic_load(&shared->done)) {
        uint64_t bytes = (1 + draw(&random, 40)) * MB;
        pthread_mutex_lock(&self.lock);
        if (draw(&random, 2)) {
            if (bytes > self.bytes) bytes = self.bytes;
            self.bytes -= bytes;
            pllm_ledger_credit(self.member, bytes);
            if (self.bytes < as->minimum) { /* back up to it, at once */
                uint64_t rest = as->minimum - self.bytes;
                MUST(pllm_ledger_charge(self.member, rest) == PLLM_OK);
                self.bytes += rest;
            }
            pthread_mutex_unlock(&self.lock);
        } else {
            pthread_mutex_unlock(&self.lock); /* who waits for others may be asked meanwhile */
            int status = pllm_ledger_charge(self.member, bytes);
            MUST(status == PLLM_OK || status == PLLM_ENODEVMEM);
            pthread_mutex_lock(&self.lock);
            if (status == PLLM_OK) self.bytes += bytes;
            pthread_mutex_unlock(&self.lock);
        }
        if (draw(&random, 8) == 0) usleep((useconds_t)draw(&random, 300));
    }
    holder_close(&self);
}

static void sample(void *argument)
{
    uint64_t random = 99;
    pllm_ledger *ledger;
    pllm_ledger_member_info rows[PLLM_LEDGER_MEMBERS_MAX];
    (void)argument;
    MUST(pllm_ledger_open(NULL, name, 0, &ledger) == PLLM_OK);
    wait_for(&shared->go, 1);
    while (!atomic_load(&shared->done)) {
        pllm_ledger_totals all = {.struct_bytes = sizeof all};
        int count = pllm_ledger_list(ledger, rows, PLLM_LEDGER_MEMBERS_MAX, &all);
        uint64_t charged = 0, held = 0;
        MUST(count == 3);
        for (int i = 0; i < count; i++) {
            charged += rows[i].charged_bytes;
            held += rows[i].charged_bytes > rows[i].minimum_bytes ? rows[i].charged_bytes
                                                                  : rows[i].minimum_bytes;
        }
        MUST(charged == all.charged_bytes && charged <= LIMIT_MB * MB);
        MUST(held <= LIMIT_MB * MB); /* so that what is left of each minimum is there */
        if (charged > atomic_load(&shared->highest)) atomic_store(&shared->highest, charged);
        atomic_fetch_add(&shared->samples, 1);
        usleep((useconds_t)draw(&random, 200));
    }
    pllm_ledger_close(ledger);
}

static void three_processes_never_pass_one_limit(void **state)
{
    (void)state;
    role roles[3] = {{"low", 20 * MB, 0, 1}, {"middle", 10 * MB, 1, 2}, {"high", 0, 2, 3}};
    pllm_ledger *ledger;
    assert_int_equal(pllm_ledger_open(NULL, name, LIMIT_MB * MB, &ledger), PLLM_OK);
    pid_t pids[4];
    for (int i = 0; i < 3; i++) pids[i] = start(share, &roles[i]);
    pids[3] = start(sample, NULL);
    wait_for(&shared->ready, 3);
    atomic_store(&shared->go, 1);
    uint64_t until = pllm_clock_ns() + 2 * SECOND;
    while (pllm_clock_ns() < until) usleep(10000);
    atomic_store(&shared->done, 1);
    for (int i = 0; i < 4; i++) must_end_well(pids[i]);
    pllm_ledger_totals all = {.struct_bytes = sizeof all};
    assert_int_equal(pllm_ledger_list(ledger, NULL, 0, &all), 0);
    assert_int_equal(all.held_bytes, 0);
    print_message("%llu samples, highest %llu of %d MiB, %llu times given back\n",
                  (unsigned long long)atomic_load(&shared->samples),
                  (unsigned long long)(atomic_load(&shared->highest) / MB), LIMIT_MB,
                  (unsigned long long)atomic_load(&shared->preempted));
    assert_true(atomic_load(&shared->samples) > 200);
    assert_true(atomic_load(&shared->highest) > LIMIT_MB * MB / 2); /* they did want it */
    assert_true(atomic_load(&shared->preempted) > 10);
    pllm_ledger_close(ledger);
}

/* ---- preemption ---- */

typedef struct sitter_role {
    int gives;
    uint64_t bytes;
} sitter_role;

/* Takes bytes, and stays until it is ended. */
static void sit(void *argument)
{
    const sitter_role *as = argument;
    holder self;
    holder_open(&self, "sitter", 10 * MB, 0, as->gives, 100);
    MUST(pllm_ledger_charge(self.member, as->bytes) == PLLM_OK);
    pthread_mutex_lock(&self.lock);
    self.bytes = as->bytes;
    pthread_mutex_unlock(&self.lock);
    atomic_store(&shared->ready, 1);
    for (;;) pause();
}

static void end(pid_t pid)
{
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static void preemption_keeps_its_deadline(void **state)
{
    (void)state;
    pllm_ledger *ledger;
    assert_int_equal(pllm_ledger_open(NULL, name, LIMIT_MB * MB, &ledger), PLLM_OK);
    sitter_role as = {.gives = 1, .bytes = LIMIT_MB * MB};
    pid_t pid = start(sit, &as);
    wait_for(&shared->ready, 1);
    holder high;
    holder_open(&high, "high", 0, 5, 0, 400);
    uint64_t began = pllm_clock_ns();
    assert_int_equal(pllm_ledger_charge(high.member, 90 * MB), PLLM_OK);
    uint64_t took = pllm_clock_ns() - began;
    print_message("90 MiB taken back from another process in %.3f ms\n", (double)took / 1e6);
    assert_true(took < 400000000u);
    began = pllm_clock_ns();
    assert_int_equal(pllm_ledger_charge(high.member, MB),
                     PLLM_ENODEVMEM); /* its minimum: at once */
    assert_true(pllm_clock_ns() - began < 200000000u);
    end(pid);
    holder_close(&high);
    pllm_ledger_close(ledger);
}

static void a_member_that_cannot_answer_costs_a_deadline(void **state)
{
    (void)state;
    pllm_ledger *ledger;
    assert_int_equal(pllm_ledger_open(NULL, name, LIMIT_MB * MB, &ledger), PLLM_OK);
    sitter_role as = {.gives = 1, .bytes = LIMIT_MB * MB};
    pid_t pid = start(sit, &as);
    wait_for(&shared->ready, 1);
    holder high;
    holder_open(&high, "high", 0, 5, 0, 400);
    assert_int_equal(kill(pid, SIGSTOP), 0);
    assert_int_equal(waitpid(pid, NULL, WUNTRACED), pid);
    uint64_t began = pllm_clock_ns();
    assert_int_equal(pllm_ledger_charge(high.member, MB), PLLM_ENODEVMEM);
    uint64_t took = pllm_clock_ns() - began;
    assert_true(took >= 400000000u && took < 1400000000u);
    end(pid);
    holder_close(&high);
    pllm_ledger_close(ledger);
}

/* ---- death ---- */

static uint64_t charged_now(pllm_ledger *ledger) /* as it is, looking for nobody */
{
    uint64_t bytes = pllm_ledger_lock(ledger)->charged_bytes;
    pllm_ledger_unlock(ledger);
    return bytes;
}

static void a_killed_member_returns_its_share_within_a_second(void **state)
{
    (void)state;
    pllm_ledger *ledger;
    assert_int_equal(pllm_ledger_open(NULL, name, LIMIT_MB * MB, &ledger), PLLM_OK);
    sitter_role as = {.bytes = 60 * MB};
    pid_t pid = start(sit, &as);
    wait_for(&shared->ready, 1);
    holder other; /* a member that charges nothing: its thread alone has to notice */
    holder_open(&other, "other", 0, 0, 0, 100);
    pllm_ledger_core *core = pllm_ledger_lock(ledger); /* a third process maps 4 MiB of it */
    pllm_ledger_process self;
    assert_int_equal(pllm_ledger_process_find(getpid(), &self), PLLM_OK);
    int row = pllm_ledger_core_find(core, "sitter", 0);
    assert_int_equal(pllm_ledger_core_hold(core, (uint32_t)row, &self, 4 * MB), PLLM_OK);
    pllm_ledger_unlock(ledger);
    assert_int_equal(charged_now(ledger), 60 * MB);
    uint64_t began = pllm_clock_ns();
    assert_int_equal(kill(pid, SIGKILL), 0); /* and nobody waits for it: it stays a zombie */
    while (charged_now(ledger) == 60 * MB && pllm_clock_ns() - began < 5 * SECOND) usleep(1000);
    uint64_t took = pllm_clock_ns() - began;
    print_message("its share was back after %.0f ms\n", (double)took / 1e6);
    assert_true(took < SECOND);
    assert_int_equal(charged_now(ledger), 4 * MB);
    assert_int_equal(pllm_ledger_charge(other.member, 97 * MB), PLLM_ENODEVMEM);
    assert_int_equal(pllm_ledger_charge(other.member, 96 * MB), PLLM_OK);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    holder_close(&other);
    pllm_ledger_close(ledger);
}

/* Charges, claims, credits, holds, joins and leaves as fast as it can. */
static void rush(void *argument)
{
    uint64_t random = *(uint64_t *)argument;
    pllm_ledger *ledger;
    MUST(pllm_ledger_open(NULL, name, 0, &ledger) == PLLM_OK);
    atomic_fetch_add(&shared->ready, 1);
    for (;;) {
        pllm_ledger_member_options options = {.struct_bytes = sizeof options,
                                              .name = "rush",
                                              .minimum_bytes = draw(&random, 5) * MB,
                                              .priority = (int32_t)draw(&random, 3),
                                              .wait_ms = 1};
        pllm_ledger_member *member;
        if (pllm_ledger_join(ledger, &options, &member) < 0) continue;
        for (int i = 0; i < 50; i++) {
            uint64_t bytes = draw(&random, 40) * MB;
            if (pllm_ledger_charge(member, bytes) == PLLM_OK && draw(&random, 2))
                pllm_ledger_credit(member, bytes);
            (void)pllm_ledger_hold(member, getppid(), draw(&random, 2) * MB);
        }
        (void)pllm_ledger_hold(member, getppid(), 0);
        pllm_ledger_leave(member);
    }
}

static void kills_at_any_moment_leave_it_true(void **state)
{
    (void)state;
    enum { ROUNDS = 60, RUSHERS = 2 };
    uint64_t random = 5;
    pllm_ledger *ledger;
    assert_int_equal(pllm_ledger_open(NULL, name, LIMIT_MB * MB, &ledger), PLLM_OK);
    pllm_ledger_process self;
    assert_int_equal(pllm_ledger_process_find(getpid(), &self), PLLM_OK);
    for (int round = 0; round < ROUNDS; round++) {
        pid_t pids[RUSHERS];
        atomic_store(&shared->ready, 0);
        for (int i = 0; i < RUSHERS; i++) {
            uint64_t seed = draw(&random, UINT64_MAX);
            pids[i] = start(rush, &seed);
        }
        wait_for(&shared->ready, RUSHERS);
        usleep((useconds_t)draw(&random, 6000));
        for (int i = 0; i < RUSHERS; i++) end(pids[i]);
        pllm_ledger_core *core = pllm_ledger_lock(ledger); /* recovers, if it must */
        assert_int_equal(pllm_ledger_core_check(core), 0);
        pllm_ledger_unlock(ledger);
        usleep(51000); /* a look less old than 50 ms counts */
        pllm_ledger_totals all = {.struct_bytes = sizeof all};
        pllm_ledger_member_info rows[PLLM_LEDGER_MEMBERS_MAX];
        int count = pllm_ledger_list(ledger, rows, PLLM_LEDGER_MEMBERS_MAX, &all);
        for (int i = 0; i < count; i++) assert_int_equal(rows[i].alive, 0);
        assert_true(all.held_bytes <= RUSHERS * MB); /* what this process "maps" of them */
        core = pllm_ledger_lock(ledger);
        pllm_ledger_core_reap(core, &self, pllm_clock_ns());
        assert_int_equal(pllm_ledger_core_check(core), 0);
        assert_int_equal(core->held_bytes, 0);
        pllm_ledger_unlock(ledger);
    }
    pllm_ledger_close(ledger);
}

int main(void)
{
#define TEST(function) cmocka_unit_test_setup_teardown(function, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(three_processes_never_pass_one_limit),
        TEST(preemption_keeps_its_deadline),
        TEST(a_member_that_cannot_answer_costs_a_deadline),
        TEST(a_killed_member_returns_its_share_within_a_second),
        TEST(kills_at_any_moment_leave_it_true),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
