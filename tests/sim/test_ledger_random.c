/* The rules of the shared ledger on a virtual clock: processes that join, charge, claim, answer,
 * are late, die and are noticed, in a seeded order, against a model that knows only what each
 * process did.
 *
 * A process may die between any two steps, and the model then expects its share back when the death
 * is noticed, less what others map. Members that are asked answer truly, promise and break it,
 * refuse, or say nothing. After every step the invariants hold, charges inside a minimum succeed,
 * nobody's sum passes the limit, and a claim that waits has enough asked on its behalf. From time
 * to time the holder of the lock is taken to have died: sums and half-made rows are spoiled, and
 * recover must make all true again. PLLM_SIM_SEED=n runs that seed alone, PLLM_SIM_SEEDS=n seeds 1
 * to n (3,000). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <pagedllm/status.h>
#include "vmm/ledger_core.h"

#ifdef PLLM_SANITIZED
enum { SEEDS = 300 };
#else
enum { SEEDS = 3000 };
#endif
enum { ACTORS = 7, VIEWERS = 3, STEPS = 160, NONE = UINT32_MAX };

static uint64_t current_seed; /* for the report of a failure */

typedef struct actor { /* one process */
    pllm_ledger_process process;
    uint32_t row;   /* NONE: not joined */
    uint64_t claim; /* 0: none waits */
    uint64_t claim_bytes, claim_deadline;
    int claims_minimum;
    uint64_t charged, minimum, limit;
    int32_t priority;
    int dead;   /* and not noticed */
    int temper; /* 0 honest, 1 half, 2 refuses, 3 silent */
    uint64_t mapped[VIEWERS], untracked;
    uint32_t seen_request;
} actor;

typedef struct world {
    pllm_ledger_core core;
    uint64_t random, now;
    actor actors[ACTORS];
    pllm_ledger_process viewers[VIEWERS];
    int32_t next_pid;
    uint32_t claims_met, claims_refused, deaths, orphans, preempted;
} world;

static uint64_t draw(world *w, uint64_t below)
{
    uint64_t x = w->random += 0x9e3779b97f4a7c15u; /* SplitMix64 */
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return (x ^ (x >> 31)) % below;
}

static pllm_ledger_process born(world *w)
{
    /* Few pids, so that they come again with another start. */
    w->next_pid++;
    return (pllm_ledger_process){
        .pid = 100 + w->next_pid % 5, .start = (uint64_t)w->next_pid, .uid = 1};
}

static uint64_t most(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static pllm_ledger_row *row_of(world *w, const actor *a)
{
    return &w->core.rows[a->row];
}

static uint64_t left_by(const actor *a)
{
    uint64_t bytes = a->untracked;
    for (int i = 0; i < VIEWERS; i++) bytes += a->mapped[i];
    return bytes < a->charged ? bytes : a->charged;
}

/* ---- what must be true after every step ---- */

/* Whom a plan asks, and for whom. */
static void check_plan(world *w)
{
    (void)pllm_ledger_core_plan(&w->core, w->now);
    uint64_t asked = 0, claimed = 0;
    for (uint32_t i = 0; i < PLLM_LEDGER_ROWS; i++) asked += w->core.rows[i].asked_bytes;
    int64_t highest_claim = -1;
    for (uint32_t i = 0; i < PLLM_LEDGER_CLAIMS; i++) {
        const pllm_ledger_claim *claim = &w->core.claims[i];
        if (claim->kind == PLLM_LEDGER_CLAIM_NONE || claim->failed) continue;
        const pllm_ledger_row *row = &w->core.rows[claim->row];
        uint64_t held = most(row->charged_bytes, row->minimum_bytes);
        int by_minimum = claim->kind == PLLM_LEDGER_CLAIM_MINIMUM;
        claimed += by_minimum ? most(held, claim->bytes) - held
                              : most(row->charged_bytes + claim->bytes, row->minimum_bytes) - held;
        int64_t rank = by_minimum ? INT64_MAX : claim->priority;
        if (rank > highest_claim) highest_claim = rank;
    }
    /* Nobody gives back for an equal: only for higher ones, or since a limit was lowered. */
    int lowered = w->core.held_bytes > w->core.limit_bytes;
    for (int i = 0; i < ACTORS && !lowered; i++) {
        actor *a = &w->actors[i];
        if (a->row == NONE || !row_of(w, a)->asked_bytes || a->charged > a->limit) continue;
        assert_true(a->priority < highest_claim);
    }
    /* No claim waits in vain: as long as it waits, enough is free or asked for. */
    if (claimed) assert_true(w->core.held_bytes + claimed <= w->core.limit_bytes + asked);
}

static void check(world *w, uint64_t held_before)
{
    assert_int_equal(pllm_ledger_core_check(&w->core), 0);
    if (w->core.held_bytes > w->core.limit_bytes)
        assert_true(w->core.held_bytes <= held_before); /* it only falls */
    for (int i = 0; i < ACTORS; i++) {
        actor *a = &w->actors[i];
        if (a->row == NONE) continue;
        pllm_ledger_row *row = row_of(w, a);
        assert_int_equal(row->state, PLLM_LEDGER_LIVE);
        assert_true(row->process.start == a->process.start);
        assert_true(row->charged_bytes == a->charged);
        assert_true(row->minimum_bytes == a->minimum);
    }
    if (draw(w, 2)) check_plan(w);
}

/* ---- steps ---- */

static void step_join(world *w, actor *a)
{
    char name[16];
    memset(name, 0, sizeof name);
    name[0] = (char)('a' + (a - w->actors));
    a->process = born(w);
    a->priority = (int32_t)draw(w, 4);
    a->limit = draw(w, 3) ? 1000 : 60;
    a->temper = (int)draw(w, 4);
    pllm_ledger_entry entry = {.name = name,
                               .process = a->process,
                               .priority = a->priority,
                               .gives_back = draw(w, 5) > 0,
                               .adopts = (uint32_t)draw(w, 2),
                               .limit_bytes = a->limit};
    int orphan = pllm_ledger_core_find(&w->core, name, 0);
    uint64_t left = orphan >= 0 ? w->core.rows[orphan].charged_bytes : 0;
    int status = pllm_ledger_core_join(&w->core, &entry, &a->row);
    if (orphan >= 0 && !entry.adopts) {
        assert_int_equal(status, PLLM_EEXIST);
        a->row = NONE;
        return;
    }
    assert_int_equal(status, PLLM_OK);
    a->claim = 0;
    a->charged = left;
    a->minimum = 0;
    a->dead = 0;
    a->seen_request = row_of(w, a)->request;
    if (orphan < 0) {
        memset(a->mapped, 0, sizeof a->mapped);
        a->untracked = 0;
    }
}

/* Gone for the ledger: what others map of it stays with a row that no actor has. */
static void forget(world *w, actor *a, uint64_t held_before)
{
    uint64_t left = left_by(a), before = most(a->charged, a->minimum);
    assert_true(w->core.held_bytes == held_before - before + left);
    w->orphans += left > 0;
    a->row = NONE;
    a->charged = left;
}

static void step_charge(world *w, actor *a, uint64_t bytes)
{
    uint64_t held = w->core.held_bytes, limit = w->core.limit_bytes;
    int within = a->charged + bytes <= a->minimum;
    int status = pllm_ledger_core_charge(&w->core, a->row, bytes);
    if (within) assert_int_equal(status, PLLM_OK); /* minimums are always honoured */
    if (a->charged + bytes > a->limit && bytes) assert_int_equal(status, PLLM_ENODEVMEM);
    if (status == PLLM_OK) {
        a->charged += bytes;
        if (!within && bytes && a->charged > a->minimum) assert_true(w->core.held_bytes <= limit);
    } else {
        assert_true(w->core.held_bytes == held);
    }
}

static void claim_ended(world *w, actor *a, int status)
{
    if (status == PLLM_LEDGER_WAITS) return;
    if (status == PLLM_OK) {
        *(a->claims_minimum ? &a->minimum : &a->charged) =
            a->claim_bytes + (a->claims_minimum ? 0 : a->charged);
        w->claims_met++;
    }
    if (status < 0) {
        assert_int_equal(status, PLLM_ENODEVMEM);
        w->claims_refused++;
    }
    a->claim = 0;
}

static void step_claim(world *w, actor *a)
{
    a->claim_bytes = 1 + draw(w, 50);
    a->claim_deadline = w->now + draw(w, 150);
    uint64_t claim = 0;
    int status = pllm_ledger_core_claim(&w->core, a->row, PLLM_LEDGER_CLAIM_BYTES, a->claim_bytes,
                                        &a->process, w->now, a->claim_deadline, &claim);
    a->claim = claim;
    claim_ended(w, a, status);
}

static void step_poll(world *w, actor *a)
{
    int status = pllm_ledger_core_poll(&w->core, a->claim, w->now);
    if (w->now >= a->claim_deadline) assert_int_not_equal(status, PLLM_LEDGER_WAITS);
    claim_ended(w, a, status);
}

static void step_credit(world *w, actor *a, uint64_t bytes)
{
    if (bytes > a->charged) bytes = a->charged;
    pllm_ledger_core_credit(&w->core, a->row, bytes);
    a->charged -= bytes;
}

/* A member that was asked does as it is made. */
static void step_answer(world *w, actor *a)
{
    pllm_ledger_row *row = row_of(w, a);
    if (row->request == a->seen_request) return;
    a->seen_request = row->request;
    uint64_t asked = row->asked_bytes;
    if (asked) assert_true(a->charged >= asked + a->minimum);
    if (a->temper == 3) return;
    if (a->temper == 0) {
        step_credit(w, a, asked);
        w->preempted += asked > 0;
    }
    uint64_t promise = a->temper == 1 ? asked / 2 : 0;
    pllm_ledger_core_answer(&w->core, a->row, a->seen_request, promise, w->now);
}

static void step_minimum(world *w, actor *a)
{
    uint64_t minimum = draw(w, 40), before = a->minimum;
    uint64_t free =
        w->core.limit_bytes > w->core.held_bytes ? w->core.limit_bytes - w->core.held_bytes : 0;
    uint64_t grows = most(a->charged, minimum) - most(a->charged, before);
    if (minimum < before) grows = 0;
    int32_t priority = (int32_t)draw(w, 4);
    uint64_t limit = draw(w, 2) ? 1000 : 20 + draw(w, 60);
    int status = pllm_ledger_core_set(&w->core, a->row, minimum, limit, priority, w->now);
    if (minimum > limit) {
        assert_int_equal(status, PLLM_EINVAL);
        return;
    }
    if (status == PLLM_OK) {
        assert_true(grows <= free || grows == 0);
        a->minimum = minimum;
        a->limit = limit;
        a->priority = priority;
    } else {
        assert_int_equal(status, PLLM_ENODEVMEM);
        assert_true(grows > 0 || w->core.minimum_bytes - before + minimum > w->core.limit_bytes);
    }
}

static void step_hold(world *w, actor *a)
{
    uint32_t viewer = (uint32_t)draw(w, VIEWERS + 1);
    uint64_t bytes = draw(w, 3) ? draw(w, 12) : 0;
    if (viewer == VIEWERS)
        a->untracked = bytes;
    else
        a->mapped[viewer] = bytes;
    assert_int_equal(pllm_ledger_core_hold(&w->core, a->row,
                                           viewer == VIEWERS ? NULL : &w->viewers[viewer], bytes),
                     PLLM_OK);
}

static void step_viewer_dies(world *w)
{
    uint32_t viewer = (uint32_t)draw(w, VIEWERS);
    pllm_ledger_core_reap(&w->core, &w->viewers[viewer], w->now);
    w->viewers[viewer] = born(w);
    for (int i = 0; i < ACTORS; i++) {
        actor *a = &w->actors[i];
        a->mapped[viewer] = 0;
        if (a->row == NONE) a->charged = left_by(a);
    }
}

/* Who held the lock died in the middle of something. */
static void step_spoil(world *w)
{
    w->core.held_bytes = draw(w, 1000);
    w->core.charged_bytes += 5;
    w->core.minimum_bytes = 0;
    w->core.claim_count = (uint32_t)draw(w, 9);
    for (uint32_t i = 0; i < PLLM_LEDGER_ROWS; i++)
        if (w->core.rows[i].state == PLLM_LEDGER_FREE) {
            memset(w->core.rows[i].name, 'x', 8);
            w->core.rows[i].limit_bytes = 77;
            w->core.rows[i].state = PLLM_LEDGER_HALF;
            break;
        }
    pllm_ledger_core_recover(&w->core, w->now);
}

static void step_limit(world *w)
{
    uint64_t limit = 40 + draw(w, 120), minimum = w->core.minimum_bytes;
    int status = pllm_ledger_core_set_limit(&w->core, limit, w->now);
    assert_int_equal(status, minimum > limit ? PLLM_ENODEVMEM : PLLM_OK);
}

static void step_end(world *w, actor *a)
{
    uint64_t held = w->core.held_bytes;
    if (draw(w, 2)) {
        pllm_ledger_core_leave(&w->core, a->row, w->now);
    } else {
        pllm_ledger_core_reap(&w->core, &a->process, w->now);
        w->deaths++;
    }
    forget(w, a, held);
}

static void step(world *w)
{
    actor *a = &w->actors[draw(w, ACTORS)];
    uint64_t kind = draw(w, 100), held = w->core.held_bytes;
    for (int i = 0; i < ACTORS && kind >= 60; i++) /* who was asked comes first */
        if (w->actors[i].row != NONE && row_of(w, &w->actors[i])->asked_bytes) a = &w->actors[i];
    w->now += draw(w, 4);
    if (draw(w, 60) == 0) w->now += 3000000000u; /* what was late is forgiven */
    if (kind < 3) {
        step_limit(w);
    } else if (kind < 5) {
        step_viewer_dies(w);
    } else if (kind < 7) {
        step_spoil(w);
    } else if (kind < 9) {
        (void)pllm_ledger_core_plan(&w->core, w->now);
    } else if (a->row == NONE) {
        step_join(w, a);
    } else if (a->dead) {
        if (draw(w, 3) == 0) { /* noticed */
            pllm_ledger_core_reap(&w->core, &a->process, w->now);
            forget(w, a, held);
            w->deaths++;
        }
    } else if (kind < 12) {
        a->dead = 1; /* its claim and row stay until somebody looks */
    } else if (kind < 15) {
        step_end(w, a);
    } else if (kind < 22) {
        step_minimum(w, a);
    } else if (kind < 27) {
        step_hold(w, a);
    } else if (a->claim != 0 && kind < 60) {
        step_poll(w, a);
    } else if (kind < 60) {
        draw(w, 2) ? step_charge(w, a, draw(w, 30)) : step_claim(w, a);
        if (a->minimum > a->charged) step_charge(w, a, a->minimum - a->charged);
    } else if (kind < 80) {
        step_answer(w, a);
    } else {
        step_credit(w, a, draw(w, 30));
    }
    check(w, held);
}

static void finish(world *w)
{
    w->now += 1000;
    for (int i = 0; i < ACTORS; i++) {
        actor *a = &w->actors[i];
        uint64_t held = w->core.held_bytes;
        if (a->row == NONE) continue;
        if (a->claim != 0) step_poll(w, a); /* by its deadline it has ended */
        held = w->core.held_bytes;
        pllm_ledger_core_reap(&w->core, &a->process, w->now);
        forget(w, a, held);
    }
    for (uint32_t i = 0; i < PLLM_LEDGER_ROWS; i++)
        if (w->core.rows[i].state == PLLM_LEDGER_ORPHAN)
            assert_int_equal(pllm_ledger_core_hold(&w->core, i, NULL, 0), PLLM_OK);
    for (int i = 0; i < VIEWERS; i++) pllm_ledger_core_reap(&w->core, &w->viewers[i], w->now);
    assert_int_equal(pllm_ledger_core_check(&w->core), 0);
    assert_true(w->core.held_bytes == 0 && w->core.charged_bytes == 0 && w->core.claim_count == 0);
    for (uint32_t i = 0; i < PLLM_LEDGER_ROWS; i++)
        assert_int_equal(w->core.rows[i].state, PLLM_LEDGER_FREE);
}

static world *run_seed(uint64_t seed)
{
    static world w;
    memset(&w, 0, sizeof w);
    current_seed = w.random = seed;
    pllm_ledger_core_init(&w.core, 100);
    for (int i = 0; i < ACTORS; i++) w.actors[i].row = NONE;
    for (int i = 0; i < VIEWERS; i++) w.viewers[i] = born(&w);
    for (int i = 0; i < STEPS; i++) step(&w);
    finish(&w);
    return &w;
}

static void report_seed(void)
{
    if (current_seed)
        print_message("failed with PLLM_SIM_SEED=%llu\n", (unsigned long long)current_seed);
}

static void random_lives_keep_every_promise(void **state)
{
    (void)state;
    const char *one = getenv("PLLM_SIM_SEED"), *many = getenv("PLLM_SIM_SEEDS");
    uint64_t first = one ? strtoull(one, NULL, 10) : 1;
    uint64_t last = one ? first : many ? strtoull(many, NULL, 10) : SEEDS;
    uint64_t met = 0, refused = 0, deaths = 0, orphans = 0, preempted = 0;
    atexit(report_seed);
    for (uint64_t seed = first; seed <= last; seed++) {
        const world *w = run_seed(seed);
        met += w->claims_met, refused += w->claims_refused, deaths += w->deaths;
        orphans += w->orphans, preempted += w->preempted;
    }
    current_seed = 0;
    print_message("%llu claims met, %llu refused, %llu deaths, %llu orphans, %llu preempted\n",
                  (unsigned long long)met, (unsigned long long)refused, (unsigned long long)deaths,
                  (unsigned long long)orphans, (unsigned long long)preempted);
    if (last - first < 100) return;
    /* The walk reaches what it is for. */
    assert_true(met > last && refused > last && deaths > last && orphans > 50 &&
                preempted > last / 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(random_lives_keep_every_promise)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
