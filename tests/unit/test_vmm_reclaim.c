/* Models that are asked to give back what they have allocated: by models of their vmm, by a limit,
 * and by another process of their ledger. Who is asked, for how much, how often; callbacks that
 * free, promise, re-enter, refuse, and come late. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/clock.h"
#include "exit_check.h"
#include "vmm_rig.h"

#define KIND(state) (*(vmm_rig_kind *)*(state))
#define MS ((uint64_t)1000000)
enum { LIMIT = 16, CACHE = 64 }; /* pages */

/* A model with a cache of single pages, which it gives back from the highest down. */
typedef struct cache {
    pllm_vmm_pool *pool;
    atomic_uint pages;           /* of the cache now: [0, pages) */
    atomic_uint calls, promises; /* promises: calls that free nothing and say they will */
    atomic_int gives, gate;      /* gate 1: a call waits while it is so */
    atomic_uint_least64_t asked_bytes;
    void (*inside)(struct cache *cache);
    void *more;
} cache;

static uint64_t give(void *user, pllm_vmm_pool *pool, uint64_t bytes, uint64_t deadline_ns)
{
    cache *c = user;
    uint64_t freed = 0;
    if (deadline_ns == 0 || bytes == 0) abort();
    atomic_store(&c->asked_bytes, bytes);
    atomic_fetch_add(&c->calls, 1);
    while (atomic_load(&c->gate)) sched_yield();
    if (atomic_load(&c->promises)) {
        atomic_fetch_sub(&c->promises, 1);
        return bytes;
    }
    while (atomic_load(&c->gives) && freed < bytes && atomic_load(&c->pages)) {
        unsigned last = atomic_load(&c->pages) - 1;
        atomic_store(&c->pages, last); /* first: who waits for the page goes on at once */
        if (pllm_vmm_deallocate(pool, last * RIG_PAGE, RIG_PAGE) < 0) abort();
        freed += RIG_PAGE;
    }
    if (c->inside) c->inside(c);
    return freed;
}

static void cache_open(cache *c, vmm_rig *rig, const char *name, int32_t priority, unsigned pages,
                       const pllm_vmm_pool_options *more)
{
    pllm_vmm_pool_options options = {0};
    if (more) options = *more;
    options.priority = priority;
    options.reclaim = give;
    options.user = c;
    memset(c, 0, sizeof *c);
    c->gives = 1;
    c->pool = vmm_rig_model(rig, name, CACHE, &options);
    if (pages) assert_int_equal(pllm_vmm_allocate(c->pool, 0, pages * RIG_PAGE, NULL), PLLM_OK);
    c->pages = pages;
}

static pllm_vmm_pool *plain(vmm_rig *rig, const char *name, int32_t priority)
{
    pllm_vmm_pool_options options = {.priority = priority};
    return vmm_rig_model(rig, name, CACHE, &options);
}

static int allocate(pllm_vmm_pool *pool, uint64_t page, uint64_t pages)
{
    return pllm_vmm_allocate(pool, page * RIG_PAGE, pages * RIG_PAGE, NULL);
}

/* The rig's vmm anew, which waits so long. */
static void open_waiting(vmm_rig *rig, vmm_rig_kind kind, uint32_t wait_ms)
{
    vmm_rig_open(rig, kind, LIMIT, 4 * LIMIT);
    pllm_vmm_close(rig->vmm);
    pllm_vmm_options options = {.struct_bytes = sizeof options,
                                .no_background = 1,
                                .limit_bytes = LIMIT * RIG_PAGE,
                                .wait_ms = wait_ms};
    assert_int_equal(pllm_vmm_open(&rig->memory.context, rig->device, &options, &rig->vmm),
                     PLLM_OK);
}

/* ---- who is asked ---- */

static void the_lowest_gives_first(void **state)
{
    vmm_rig rig;
    cache low, middle, equal;
    open_waiting(&rig, KIND(state), 20000);
    pllm_vmm_pool *high = plain(&rig, "high", 5);
    cache_open(&middle, &rig, "middle", 2, 5, NULL);
    cache_open(&low, &rig, "low", 1, 5, NULL);
    cache_open(&equal, &rig, "equal", 5, 5, NULL);
    assert_int_equal(allocate(high, 0, 1), PLLM_OK); /* there is one */
    assert_int_equal(low.calls + middle.calls, 0);
    assert_int_equal(allocate(high, 1, 4), PLLM_OK);
    assert_int_equal(low.pages, 1);
    assert_int_equal(middle.calls, 0);
    assert_int_equal(low.asked_bytes, 4 * RIG_PAGE);
    assert_int_equal(allocate(high, 5, 3), PLLM_OK); /* one of low's, two of middle's */
    assert_int_equal(low.pages, 0);
    assert_int_equal(middle.pages, 3);
    vmm_rig_refused(allocate(high, 8, 4), PLLM_ENODEVMEM, "do not fit"); /* equals are not asked */
    assert_int_equal(equal.calls, 0);
    assert_int_equal(middle.pages, 3); /* nor who cannot give all of it */
    assert_int_equal(vmm_rig_physical(&rig), LIMIT);
    pllm_vmm_pool_stats stats = vmm_rig_stats(low.pool);
    while (stats.given_back_bytes < 5 * RIG_PAGE) { /* counted once the callback is over */
        sched_yield();
        stats = vmm_rig_stats(low.pool);
    }
    assert_true(stats.asked_count >= 2);
    assert_int_equal(stats.late_count, 0);
    vmm_rig_close(&rig);
}

static void of_equals_who_has_most_on_loan(void **state)
{
    vmm_rig rig;
    cache small, large;
    open_waiting(&rig, KIND(state), 20000);
    pllm_vmm_pool *high = plain(&rig, "high", 1);
    pllm_vmm_pool_options mine = {.minimum_bytes = 6 * RIG_PAGE};
    cache_open(&small, &rig, "small", 0, 9, &mine); /* 3 above its minimum */
    cache_open(&large, &rig, "large", 0, 7, NULL);
    assert_int_equal(allocate(high, 0, 2), PLLM_OK);
    assert_int_equal(small.calls, 0);
    assert_int_equal(large.pages, 5);
    assert_int_equal(allocate(high, 2, 8), PLLM_OK); /* all that is on loan, and no more */
    assert_int_equal(large.pages, 0);
    assert_int_equal(small.pages, 6);
    vmm_rig_refused(allocate(high, 10, 1), PLLM_ENODEVMEM, "do not fit");
    assert_int_equal(small.pages, 6);
    vmm_rig_close(&rig);
}

/* Nobody else's loan is worth a minimum. */
static void a_minimum_asks_anybody(void **state)
{
    vmm_rig rig;
    cache high;
    open_waiting(&rig, KIND(state), 20000);
    cache_open(&high, &rig, "high", 9, LIMIT, NULL);
    pllm_vmm_pool *low = plain(&rig, "low", 0);
    vmm_rig_refused(allocate(low, 0, 1), PLLM_ENODEVMEM, "do not fit");
    assert_int_equal(high.calls, 0);
    assert_int_equal(pllm_vmm_pool_set(low, 4 * RIG_PAGE, 0), PLLM_OK);
    assert_int_equal(allocate(low, 0, 4), PLLM_OK);
    assert_int_equal(high.pages, LIMIT - 4);
    vmm_rig_refused(allocate(low, 4, 1), PLLM_ENODEVMEM, "do not fit");
    vmm_rig_close(&rig);
}

static void a_lowered_limit_asks(void **state)
{
    vmm_rig rig;
    cache low, other;
    vmm_rig_open(&rig, KIND(state), LIMIT, 4 * LIMIT);
    cache_open(&low, &rig, "low", 0, 8, NULL);
    cache_open(&other, &rig, "other", 1, 8, NULL);
    assert_int_equal(pllm_vmm_set_limit(rig.vmm, 10 * RIG_PAGE), PLLM_OK);
    while (vmm_rig_physical(&rig) > 10) sched_yield();
    assert_int_equal(low.pages, 2);
    assert_int_equal(other.calls, 0);
    assert_int_equal(pllm_vmm_pool_set(other.pool, 0, 3 * RIG_PAGE), PLLM_OK); /* its own */
    while (vmm_rig_physical(&rig) > 5) sched_yield();
    assert_int_equal(other.pages, 3);
    vmm_rig_close(&rig);
}

/* What callbacks free may be kept by their model: that goes too. */
static void what_is_kept_counts(void **state)
{
    vmm_rig rig;
    cache low;
    open_waiting(&rig, KIND(state), 20000);
    pllm_vmm_pool_options keeps = {.kept_bytes = PLLM_UNLIMITED};
    pllm_vmm_pool *high = plain(&rig, "high", 1);
    cache_open(&low, &rig, "low", 0, LIMIT, &keeps);
    assert_int_equal(allocate(high, 0, 6), PLLM_OK);
    assert_int_equal(low.pages, LIMIT - 6);
    assert_int_equal(low.calls, 1);
    vmm_rig_close(&rig);
}

/* The device is full, not the limit. */
static void a_full_device_asks(void **state)
{
    vmm_rig rig;
    cache low;
    vmm_rig_open(&rig, KIND(state), 4 * LIMIT, LIMIT);
    pllm_vmm_pool *high = plain(&rig, "high", 1);
    cache_open(&low, &rig, "low", 0, LIMIT, NULL);
    assert_int_equal(allocate(high, 0, 3), PLLM_OK);
    assert_int_equal(low.pages, LIMIT - 3);
    vmm_rig_refused(allocate(high, 3, LIMIT), PLLM_ENODEVMEM, "the device has no more");
    assert_int_equal(low.pages, LIMIT - 3);
    vmm_rig_close(&rig);
}

/* ---- answers ---- */

static void who_gives_nothing_is_not_asked_again(void **state)
{
    vmm_rig rig;
    cache low;
    open_waiting(&rig, KIND(state), 60000); /* none of it passes */
    pllm_vmm_pool *high = plain(&rig, "high", 1);
    cache_open(&low, &rig, "low", 0, LIMIT, NULL);
    low.gives = 0;
    uint64_t began = pllm_clock_ns();
    vmm_rig_refused(allocate(high, 0, 1), PLLM_ENODEVMEM, "do not fit");
    assert_int_equal(low.calls, 1);
    vmm_rig_refused(allocate(high, 0, 1), PLLM_ENODEVMEM, "do not fit");
    assert_int_equal(low.calls, 1);
    assert_true(pllm_clock_ns() - began < 30000 * MS);
    assert_int_equal(vmm_rig_stats(low.pool).late_count, 0);
    assert_int_equal(vmm_rig_stats(low.pool).given_back_bytes, 0);
    vmm_rig_close(&rig);
}

static void who_promises_is_called_again(void **state)
{
    vmm_rig rig;
    cache low;
    open_waiting(&rig, KIND(state), 60000);
    pllm_vmm_pool *high = plain(&rig, "high", 1);
    cache_open(&low, &rig, "low", 0, LIMIT, NULL);
    low.promises = 2;
    assert_int_equal(allocate(high, 0, 2), PLLM_OK);
    assert_int_equal(low.calls, 3);
    assert_int_equal(low.pages, LIMIT - 2);
    vmm_rig_close(&rig);
}

static void broken_promises_cost_the_deadline(void **state)
{
    vmm_rig rig;
    cache low;
    open_waiting(&rig, KIND(state), 60);
    pllm_vmm_pool *high = plain(&rig, "high", 1);
    cache_open(&low, &rig, "low", 0, LIMIT, NULL);
    low.promises = 1000000;
    uint64_t began = pllm_clock_ns();
    vmm_rig_refused(allocate(high, 0, 2), PLLM_ENODEVMEM, "do not fit");
    assert_true(pllm_clock_ns() - began >= 60 * MS);
    unsigned calls = low.calls;
    vmm_rig_refused(allocate(high, 0, 2), PLLM_ENODEVMEM, "do not fit"); /* at once */
    assert_int_equal(low.calls, calls);
    assert_int_equal(vmm_rig_stats(low.pool).late_count, 1);
    vmm_rig_close(&rig);
}

static void who_is_late_frees_all_the_same(void **state)
{
    vmm_rig rig;
    cache low;
    open_waiting(&rig, KIND(state), 60);
    pllm_vmm_pool *high = plain(&rig, "high", 1);
    cache_open(&low, &rig, "low", 0, LIMIT, NULL);
    low.gate = 1;
    uint64_t began = pllm_clock_ns();
    vmm_rig_refused(allocate(high, 0, 2), PLLM_ENODEVMEM, "do not fit");
    assert_true(pllm_clock_ns() - began >= 60 * MS);
    vmm_rig_refused(allocate(high, 0, 2), PLLM_ENODEVMEM, "do not fit");
    assert_int_equal(low.calls, 1);
    assert_int_equal(vmm_rig_stats(low.pool).late_count, 1);
    low.gate = 0;
    while (vmm_rig_physical(&rig) > LIMIT - 2) sched_yield();
    assert_int_equal(allocate(high, 0, 2), PLLM_OK);
    assert_int_equal(low.calls, 1);
    vmm_rig_close(&rig);
}

/* ---- what a callback may do ---- */

typedef struct inner {
    vmm_rig *rig;
    pllm_vmm_pool *lowest;
    int stolen, allocated, listed;
    atomic_int done;
} inner;

static void everything(cache *c)
{
    inner *i = c->more;
    pllm_vmm_pool_stats stats[4] = {{.struct_bytes = sizeof stats[0]}};
    pllm_vmm_pool *found;
    uint32_t count = 0;
    i->listed = pllm_vmm_list(i->rig->vmm, stats, 4, &count) == PLLM_OK && count == 3 &&
                pllm_vmm_find(i->rig->vmm, "low", &found) == PLLM_OK && found == c->pool;
    pllm_vmm_compact(i->rig->vmm, NULL);
    (void)pllm_vmm_poll(i->rig->vmm);
    /* What it has just freed is for who waits, and nobody is asked for a callback's needs. */
    i->stolen = allocate(i->lowest, 0, 1);
    i->allocated = allocate(c->pool, CACHE - 1, 1);
    atomic_store(&i->done, 1);
}

static void a_callback_may_call_everything(void **state)
{
    vmm_rig rig;
    cache low;
    inner i = {.rig = &rig};
    open_waiting(&rig, KIND(state), 20000);
    pllm_vmm_pool *high = plain(&rig, "high", 1);
    i.lowest = plain(&rig, "lowest", -1);
    cache_open(&low, &rig, "low", 0, LIMIT, NULL);
    low.more = &i;
    low.inside = everything;
    assert_int_equal(allocate(high, 0, 2), PLLM_OK); /* maybe before the callback returns */
    while (!atomic_load(&i.done)) sched_yield();
    assert_int_equal(low.calls, 1);
    assert_true(i.listed);
    assert_int_equal(i.stolen, PLLM_ENODEVMEM);
    assert_int_equal(i.allocated, PLLM_ENODEVMEM);
    vmm_rig_close(&rig);
}

static void *unregister(void *argument)
{
    pllm_vmm_unregister(argument);
    return NULL;
}

static void *allocate_one(void *argument)
{
    (void)allocate(argument, 0, 1);
    return NULL;
}

static void unregister_waits_for_the_callback(void **state)
{
    vmm_rig rig;
    cache low;
    pthread_t threads[2];
    open_waiting(&rig, KIND(state), 20000);
    pllm_vmm_pool *high = plain(&rig, "high", 1);
    cache_open(&low, &rig, "low", 0, LIMIT, NULL);
    low.gate = 1;
    assert_int_equal(pthread_create(&threads[0], NULL, allocate_one, high), 0);
    while (low.calls == 0) sched_yield();
    assert_int_equal(pthread_create(&threads[1], NULL, unregister, low.pool), 0);
    pllm_vmm_pool *found;
    while (pllm_vmm_find(rig.vmm, "low", &found) == PLLM_OK) sched_yield();
    low.gate = 0;
    for (int i = 0; i < 2; i++) assert_int_equal(pthread_join(threads[i], NULL), 0);
    assert_int_equal(low.calls, 1);
    assert_int_equal(allocate(high, 1, LIMIT - 1), PLLM_OK);
    vmm_rig_close(&rig);
}

/* ---- many at a time ---- */

typedef struct runner {
    pthread_t thread;
    cache cache;
    unsigned seed, had, refused;
    pthread_mutex_t lock; /* of the cache: callbacks take it, allocations are made without */
} runner;

static uint64_t give_locked(void *user, pllm_vmm_pool *pool, uint64_t bytes, uint64_t deadline_ns)
{
    runner *r = user;
    pthread_mutex_lock(&r->lock);
    uint64_t freed = give(&r->cache, pool, bytes, deadline_ns);
    pthread_mutex_unlock(&r->lock);
    return freed;
}

static void *run(void *argument)
{
    runner *r = argument;
    for (int i = 0; i < 150; i++) {
        r->seed = r->seed * 1103515245u + 12345u;
        unsigned pages = r->seed >> 16 & 3;
        if (pages == 0) {
            pthread_mutex_lock(&r->lock);
            (void)give(&r->cache, r->cache.pool, RIG_PAGE, 1);
            pthread_mutex_unlock(&r->lock);
            continue;
        }
        /* Above all the cache may have: it may shrink meanwhile, and grows only here. */
        int status = allocate(r->cache.pool, CACHE / 2, pages);
        if (status == PLLM_OK) {
            r->had++;
            pthread_mutex_lock(&r->lock);
            unsigned at = atomic_load(&r->cache.pages);
            if (at < CACHE / 2 && allocate(r->cache.pool, at, 1) == PLLM_OK)
                atomic_store(&r->cache.pages, at + 1);
            pthread_mutex_unlock(&r->lock);
            (void)pllm_vmm_deallocate(r->cache.pool, CACHE / 2 * RIG_PAGE, pages * RIG_PAGE);
        } else {
            r->refused++;
        }
    }
    return NULL;
}

static void many_ask_each_other(void **state)
{
    enum { RUNNERS = 3 };
    vmm_rig rig;
    runner runners[RUNNERS];
    open_waiting(&rig, KIND(state), 5);
    for (int i = 0; i < RUNNERS; i++) {
        runner *r = &runners[i];
        memset(r, 0, sizeof *r);
        r->seed = (unsigned)i + 7;
        r->cache.gives = 1;
        pthread_mutex_init(&r->lock, NULL);
        pllm_vmm_pool_options options = {.priority = i, .reclaim = give_locked, .user = r};
        options.minimum_bytes = (i == 0 ? 2 : 0) * RIG_PAGE;
        const char *names[] = {"a", "b", "c"};
        r->cache.pool = vmm_rig_model(&rig, names[i], CACHE, &options);
    }
    for (int i = 0; i < RUNNERS; i++)
        assert_int_equal(pthread_create(&runners[i].thread, NULL, run, &runners[i]), 0);
    for (int i = 0; i < RUNNERS; i++) assert_int_equal(pthread_join(runners[i].thread, NULL), 0);
    for (int i = 0; i < RUNNERS; i++) {
        (void)vmm_rig_stats(runners[i].cache.pool);
        print_message("%u had, %u refused, asked %u times\n", runners[i].had, runners[i].refused,
                      atomic_load(&runners[i].cache.calls));
    }
    assert_true(vmm_rig_physical(&rig) <= LIMIT);
    assert_true(runners[RUNNERS - 1].had > 0);
    vmm_rig_close(&rig);
    for (int i = 0; i < RUNNERS; i++) pthread_mutex_destroy(&runners[i].lock);
}

/* ---- processes ---- */

typedef struct board {
    atomic_int ready, done;
    atomic_uint calls, pages;
} board;

static pllm_vmm *open_shared(pllm_device *device, const char *ledger, const char *name,
                             int32_t priority)
{
    pllm_vmm_options options = {.struct_bytes = sizeof options,
                                .ledger = ledger,
                                .ledger_limit_bytes = LIMIT * RIG_PAGE,
                                .ledger_priority = priority,
                                .wait_ms = 20000,
                                .ledger_name = name};
    pllm_vmm *vmm;
    OK(pllm_vmm_open(NULL, device, &options, &vmm));
    return vmm;
}

/* Has all of the ledger as its cache, and gives back what it is asked for until it is told to end.
 */
static void lower(board *shared, const char *ledger)
{
    pllm_device *device;
    OK(pllm_device_open(NULL, "host", &device));
    pllm_vmm *vmm = open_shared(device, ledger, "lower", 0);
    cache c = {.gives = 1};
    pllm_vmm_pool_options options = {.struct_bytes = sizeof options,
                                     .capacity_bytes = CACHE * RIG_PAGE,
                                     .page_bytes = RIG_PAGE,
                                     .minimum_bytes = 2 * RIG_PAGE,
                                     .kept_bytes = PLLM_UNLIMITED,
                                     .reclaim = give,
                                     .user = &c};
    OK(pllm_vmm_register(vmm, "cache", &options, &c.pool));
    OK(allocate(c.pool, 0, LIMIT));
    c.pages = LIMIT;
    atomic_store(&shared->ready, 1);
    while (!atomic_load(&shared->done)) usleep(500);
    atomic_store(&shared->calls, atomic_load(&c.calls));
    atomic_store(&shared->pages, atomic_load(&c.pages));
    pllm_vmm_close(vmm);
    pllm_device_close(device);
    _exit(0);
}

static void another_process_gets_a_cache(void **state)
{
    (void)state;
    char name[32];
    snprintf(name, sizeof name, "vmm-reclaim-%d", (int)getpid());
    (void)pllm_ledger_remove(NULL, name);
    board *shared =
        mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(shared != MAP_FAILED);
    pid_t pid = fork();
    if (pid == 0) lower(shared, name);
    while (!atomic_load(&shared->ready) && waitpid(pid, NULL, WNOHANG) == 0) usleep(500);
    pllm_device *device;
    assert_int_equal(pllm_device_open(NULL, "host", &device), PLLM_OK);
    pllm_vmm *vmm = open_shared(device, name, "higher", 1);
    pllm_vmm_pool_options options = {
        .struct_bytes = sizeof options, .capacity_bytes = CACHE * RIG_PAGE, .page_bytes = RIG_PAGE};
    pllm_vmm_pool *pool;
    assert_int_equal(pllm_vmm_register(vmm, "model", &options, &pool), PLLM_OK);
    uint64_t began = pllm_clock_ns();
    assert_int_equal(allocate(pool, 0, 5), PLLM_OK);
    assert_true(pllm_clock_ns() - began < 20000 * MS);
    /* Its last two pages are its model's minimum, though not its process's. */
    assert_int_equal(allocate(pool, 5, LIMIT - 7), PLLM_OK);
    vmm_rig_refused(allocate(pool, LIMIT - 2, 1), PLLM_ENODEVMEM, "do not fit");
    atomic_store(&shared->done, 1);
    int how;
    assert_int_equal(waitpid(pid, &how, 0), pid);
    assert_true(WIFEXITED(how) && WEXITSTATUS(how) == 0);
    assert_true(shared->calls >= 2);
    assert_int_equal(shared->pages, 2);
    assert_int_equal(allocate(pool, LIMIT - 2, 2), PLLM_OK);
    pllm_vmm_close(vmm);
    pllm_device_close(device);
    assert_int_equal(pllm_ledger_remove(NULL, name), PLLM_OK);
    munmap(shared, sizeof *shared);
}

int main(void)
{
    alarm(120); /* who asks in vain for ever fails */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(another_process_gets_a_cache), /* it forks: first */
        ON_BOTH(the_lowest_gives_first),
        ON_BOTH(of_equals_who_has_most_on_loan),
        ON_BOTH(a_minimum_asks_anybody),
        ON_BOTH(a_lowered_limit_asks),
        ON_BOTH(what_is_kept_counts),
        ON_BOTH(a_full_device_asks),
        ON_HOST(who_gives_nothing_is_not_asked_again),
        ON_HOST(who_promises_is_called_again),
        ON_HOST(broken_promises_cost_the_deadline),
        ON_HOST(who_is_late_frees_all_the_same),
        ON_BOTH(a_callback_may_call_everything),
        ON_BOTH(unregister_waits_for_the_callback),
        ON_BOTH(many_ask_each_other),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
