/* The shared ledger within one process: its file, its members, reclaim by their threads, reused
 * pids, what others map, and budgets attached to it. Several processes: test_ledger_processes.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/clock.h"
#include "vmm/budget.h"
#include "vmm/ledger.h"

static char name[32], path[96];

static int setup(void **state)
{
    (void)state;
    snprintf(name, sizeof name, "unit-%d", (int)getpid());
    assert_int_equal(pllm_ledger_path(name, path, sizeof path), PLLM_OK);
    unlink(path);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    unlink(path);
    return 0;
}

static pllm_ledger *open_ledger(uint64_t limit)
{
    pllm_ledger *ledger;
    assert_int_equal(pllm_ledger_open(NULL, name, limit, &ledger), PLLM_OK);
    return ledger;
}

static pllm_ledger_member_options options_of(const char *member, uint64_t minimum, int32_t priority)
{
    return (pllm_ledger_member_options){.struct_bytes = sizeof(pllm_ledger_member_options),
                                        .name = member,
                                        .minimum_bytes = minimum,
                                        .priority = priority,
                                        .wait_ms = 2000};
}

static pllm_ledger_member *join(pllm_ledger *ledger, const char *member, uint64_t minimum,
                                int32_t priority)
{
    pllm_ledger_member_options options = options_of(member, minimum, priority);
    pllm_ledger_member *out;
    assert_int_equal(pllm_ledger_join(ledger, &options, &out), PLLM_OK);
    return out;
}

static pllm_ledger_totals totals(pllm_ledger *ledger)
{
    pllm_ledger_totals all = {.struct_bytes = sizeof all};
    assert_true(pllm_ledger_list(ledger, NULL, 0, &all) >= 0);
    return all;
}

static pllm_ledger_member_info info_of(pllm_ledger *ledger, const char *member)
{
    static pllm_ledger_member_info rows[PLLM_LEDGER_MEMBERS_MAX];
    int count = pllm_ledger_list(ledger, rows, PLLM_LEDGER_MEMBERS_MAX, NULL);
    for (int i = 0; i < count; i++)
        if (strcmp(rows[i].name, member) == 0) return rows[i];
    fail_msg("no member %s", member);
    return rows[0];
}

/* ---- the file ---- */

static void a_ledger_is_made_once_and_belongs_to_its_user(void **state)
{
    (void)state;
    pllm_ledger *first, *second;
    assert_int_equal(pllm_ledger_open(NULL, name, 0, &first), PLLM_ENOTFOUND);
    assert_null(first);
    first = open_ledger(1000);
    second = open_ledger(5); /* there is one: its limit stays */
    assert_int_equal(totals(second).limit_bytes, 1000);
    struct stat found;
    assert_int_equal(stat(path, &found), 0);
    assert_int_equal(found.st_mode & 07777, 0600);
    pllm_ledger_member *a = join(first, "a", 10, 0);
    assert_int_equal(totals(second).held_bytes, 10);
    assert_int_equal(pllm_ledger_remove(NULL, name), PLLM_EBUSY);
    pllm_ledger_leave(a);
    assert_int_equal(pllm_ledger_remove(NULL, name), PLLM_OK);
    assert_int_equal(pllm_ledger_remove(NULL, name), PLLM_ENOTFOUND);
    pllm_ledger_close(second);
    pllm_ledger_close(first);
    const char *const bad[] = {"", "a/b", "../x", "a b", "0123456789012345678901234567890123"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(pllm_ledger_open(NULL, bad[i], 1, &first), PLLM_EINVAL);
}

static void refuses(int status, const char *word)
{
    pllm_ledger *ledger;
    assert_int_equal(pllm_ledger_open(NULL, name, 100, &ledger), status);
    assert_null(ledger);
    assert_int_equal(pllm_last_error()->status, status);
    if (!strstr(pllm_last_error()->text, word)) fail_msg("%s", pllm_last_error()->text);
}

static void write_at(long offset, const void *bytes, size_t count)
{
    int fd = open(path, O_WRONLY);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, bytes, count, offset), count);
    close(fd);
}

static void what_is_no_ledger_is_refused(void **state)
{
    (void)state;
    pllm_ledger_close(open_ledger(100));
    assert_int_equal(chmod(path, 0644), 0);
    refuses(PLLM_EPERM, "this user alone");
    assert_int_equal(chmod(path, 0600), 0);
    write_at(8, "\7\0\0\0", 4);
    refuses(PLLM_EUNSUPPORTED, "version 7");
    write_at(0, "no", 2);
    refuses(PLLM_ECORRUPT, "no ledger");
    assert_int_equal(truncate(path, 100), 0);
    refuses(PLLM_ECORRUPT, "100 bytes");
    unlink(path);
    assert_int_equal(symlink("/etc/hostname", path), 0);
    refuses(PLLM_EIO, "cannot be opened");
    unlink(path);
    assert_int_equal(mkdir(path, 0700), 0);
    refuses(PLLM_EIO, "cannot be opened");
    rmdir(path);
    assert_int_equal(mkfifo(path, 0600), 0);
    refuses(PLLM_EPERM, "this user alone");
    unlink(path);
    pllm_ledger *ledger = open_ledger(100); /* and what contradicts itself */
    pllm_ledger_core *core = pllm_ledger_lock(ledger);
    core->rows[3].charged_bytes = 70;
    pllm_ledger_unlock(ledger);
    refuses(PLLM_ECORRUPT, "contradicts itself");
    pllm_ledger_close(ledger);
}

/* ---- members ---- */

static void members_share_a_limit(void **state)
{
    (void)state;
    pllm_ledger *ledger = open_ledger(100);
    pllm_ledger_member *a = join(ledger, "a", 30, 0), *b = join(ledger, "a", 0, 0), *c;
    assert_string_equal(pllm_ledger_member_name(b), "a.2");
    assert_int_equal(pllm_ledger_charge(b, 71), PLLM_ENODEVMEM); /* 30 are a's */
    assert_int_equal(pllm_ledger_charge(b, 70), PLLM_OK);
    assert_int_equal(pllm_ledger_charge(a, 30), PLLM_OK);
    assert_int_equal(pllm_ledger_charge(a, 1), PLLM_ENODEVMEM);
    pllm_ledger_credit(b, 20);
    assert_int_equal(pllm_ledger_room(a), 20);
    assert_int_equal(pllm_ledger_charge(a, 20), PLLM_OK);
    pllm_ledger_credit(a, 50);
    assert_int_equal(pllm_ledger_room(b), 20); /* 30 stay a's */
    pllm_ledger_member_options options = options_of("c", 21, 5);
    options.wait_ms = 1;
    assert_int_equal(pllm_ledger_join(ledger, &options, &c), PLLM_ENODEVMEM);
    assert_null(c);
    assert_non_null(strstr(pllm_last_error()->text, "minimum of 21"));
    options.minimum_bytes = 3;
    options.limit_bytes = 2;
    assert_int_equal(pllm_ledger_join(ledger, &options, &c), PLLM_EINVAL);
    pllm_ledger_totals all = totals(ledger);
    assert_int_equal(all.member_count, 2);
    assert_int_equal(all.charged_bytes, 50);
    assert_int_equal(all.held_bytes, 80);
    assert_int_equal(all.peak_bytes, 100);
    pllm_ledger_set_reserved(b, 4096);
    pllm_ledger_member_info row = info_of(ledger, "a.2");
    assert_int_equal(row.reserved_bytes, 4096);
    assert_int_equal(row.charged_bytes, 50);
    assert_int_equal(row.charged_total_bytes, 70);
    assert_int_equal(row.credited_total_bytes, 20);
    assert_int_equal(row.pid, getpid());
    assert_int_equal(row.alive, 1);
    pllm_ledger_leave(b); /* with what it has charged */
    assert_int_equal(totals(ledger).held_bytes, 30);
    pllm_ledger_leave(a);
    pllm_ledger_close(ledger);
}

/* ---- reclaim ---- */

typedef struct giver { /* a member that is asked */
    pllm_ledger_member *member;
    uint64_t gives; /* of what it is asked for, at most */
    int promises;   /* says so, and does it never */
    atomic_int calls;
} giver;

static uint64_t give(void *user, uint64_t bytes, uint64_t deadline_ns)
{
    giver *self = user;
    atomic_fetch_add(&self->calls, 1);
    assert_true(deadline_ns > pllm_clock_ns());
    uint64_t part = bytes < self->gives ? bytes : self->gives;
    if (!self->promises) pllm_ledger_credit(self->member, part);
    return part;
}

static void join_giver(pllm_ledger *ledger, giver *self, const char *member, uint64_t minimum,
                       int32_t priority, uint64_t charged)
{
    pllm_ledger_member_options options = options_of(member, minimum, priority);
    options.reclaim = give;
    options.user = self;
    assert_int_equal(pllm_ledger_join(ledger, &options, &self->member), PLLM_OK);
    assert_int_equal(pllm_ledger_charge(self->member, charged), PLLM_OK);
}

static void lower_priorities_give_back_above_their_minimums(void **state)
{
    (void)state;
    pllm_ledger *ledger = open_ledger(100);
    giver low = {.gives = UINT64_MAX}, middle = {.gives = UINT64_MAX};
    join_giver(ledger, &low, "low", 10, -1, 40);
    join_giver(ledger, &middle, "middle", 0, 3, 50);
    pllm_ledger_member *high = join(ledger, "high", 0, 7), *equal = join(ledger, "equal", 0, 3);
    assert_int_equal(pllm_ledger_charge(high, 30), PLLM_OK); /* 10 are free, 20 are low's */
    assert_int_equal(atomic_load(&middle.calls), 0);
    assert_int_equal(info_of(ledger, "low").charged_bytes, 20);
    assert_int_equal(pllm_ledger_charge(equal, 11), PLLM_ENODEVMEM); /* low has 10 to give */
    assert_int_equal(atomic_load(&low.calls), 1);                    /* and was not asked in vain */
    assert_int_equal(pllm_ledger_charge(equal, 10), PLLM_OK);
    assert_int_equal(info_of(ledger, "low").charged_bytes, 10);
    assert_int_equal(pllm_ledger_room(high), 50);
    assert_int_equal(pllm_ledger_charge(high, 50), PLLM_OK); /* all of middle's */
    assert_int_equal(pllm_ledger_charge(high, 1), PLLM_ENODEVMEM);
    assert_int_equal(info_of(ledger, "low").charged_bytes, 10);
    assert_int_equal(info_of(ledger, "middle").given_back_bytes, 50);
    assert_int_equal(totals(ledger).charged_bytes, 100);
    pllm_ledger_leave(equal);
    pllm_ledger_leave(high);
    pllm_ledger_leave(middle.member);
    pllm_ledger_leave(low.member);
    pllm_ledger_close(ledger);
}

static void who_cannot_give_is_no_reason_to_wait(void **state)
{
    (void)state;
    pllm_ledger *ledger = open_ledger(100);
    giver low = {.gives = 5}, lower = {.gives = 7};
    join_giver(ledger, &low, "low", 0, 0, 50);
    join_giver(ledger, &lower, "lower", 0, -5, 50);
    pllm_ledger_member *high = join(ledger, "high", 0, 1);
    uint64_t began = pllm_clock_ns();
    assert_int_equal(pllm_ledger_charge(high, 20), PLLM_ENODEVMEM); /* 7 and 5 came */
    assert_true(pllm_clock_ns() - began < 1500000000u);             /* of a deadline of 2 s */
    assert_int_equal(totals(ledger).charged_bytes, 88);
    assert_int_equal(pllm_ledger_charge(high, 12), PLLM_OK);
    int calls = atomic_load(&low.calls) + atomic_load(&lower.calls);
    began = pllm_clock_ns();
    assert_int_equal(pllm_ledger_charge(high, 1), PLLM_ENODEVMEM); /* not asked again so soon */
    assert_true(pllm_clock_ns() - began < 500000000u);
    assert_int_equal(atomic_load(&low.calls) + atomic_load(&lower.calls), calls);
    pllm_ledger_leave(high);
    pllm_ledger_leave(lower.member);
    pllm_ledger_leave(low.member);
    pllm_ledger_close(ledger);
}

static void a_broken_promise_ends_at_the_deadline(void **state)
{
    (void)state;
    pllm_ledger *ledger = open_ledger(100);
    giver liar = {.gives = 100, .promises = 1};
    join_giver(ledger, &liar, "liar", 0, 0, 100);
    pllm_ledger_member_options options = options_of("high", 0, 1);
    options.wait_ms = 60;
    pllm_ledger_member *high;
    assert_int_equal(pllm_ledger_join(ledger, &options, &high), PLLM_OK);
    uint64_t began = pllm_clock_ns();
    assert_int_equal(pllm_ledger_charge(high, 10), PLLM_ENODEVMEM);
    uint64_t took = pllm_clock_ns() - began;
    assert_true(took >= 60000000u && took < 1000000000u);
    assert_int_equal(info_of(ledger, "liar").late_count, 1);
    assert_int_equal(pllm_ledger_asked(liar.member), 0);
    began = pllm_clock_ns();
    assert_int_equal(pllm_ledger_charge(high, 10), PLLM_ENODEVMEM); /* not waited for again */
    assert_true(pllm_clock_ns() - began < 50000000u);
    pllm_ledger_leave(high);
    pllm_ledger_leave(liar.member);
    pllm_ledger_close(ledger);
}

static void a_minimum_is_had_from_anybody(void **state)
{
    (void)state;
    pllm_ledger *ledger = open_ledger(100);
    giver high = {.gives = UINT64_MAX};
    join_giver(ledger, &high, "high", 40, 9, 100);
    pllm_ledger_member *low = join(ledger, "low", 60, -9), *other;
    assert_int_equal(pllm_ledger_charge(low, 60), PLLM_OK);
    assert_int_equal(info_of(ledger, "high").charged_bytes, 40);
    pllm_ledger_member_options options = options_of("other", 1, 9);
    assert_int_equal(pllm_ledger_join(ledger, &options, &other), PLLM_ENODEVMEM);
    pllm_ledger_leave(low);
    pllm_ledger_leave(high.member);
    pllm_ledger_close(ledger);
}

/* ---- live changes ---- */

static void limits_change_live(void **state)
{
    (void)state;
    pllm_ledger *ledger = open_ledger(100);
    giver a = {.gives = UINT64_MAX};
    join_giver(ledger, &a, "a", 10, 0, 80);
    pllm_ledger_member *b = join(ledger, "b", 20, 0);
    pllm_ledger_change change = {.struct_bytes = sizeof change,
                                 .priority = INT32_MIN,
                                 .minimum_bytes = UINT64_MAX,
                                 .limit_bytes = 50};
    assert_int_equal(pllm_ledger_set(ledger, "a", &change), PLLM_OK);
    uint64_t until = pllm_clock_ns() + 2000000000u; /* its thread gives back what is above */
    while (info_of(ledger, "a").charged_bytes > 50 && pllm_clock_ns() < until) usleep(1000);
    assert_int_equal(info_of(ledger, "a").charged_bytes, 50);
    assert_int_equal(pllm_ledger_charge(a.member, 1), PLLM_ENODEVMEM);
    change.limit_bytes = 5;
    assert_int_equal(pllm_ledger_set(ledger, "a", &change), PLLM_EINVAL);
    assert_non_null(strstr(pllm_last_error()->text, "minimum"));
    assert_int_equal(pllm_ledger_set(ledger, "nobody", &change), PLLM_ENOTFOUND);
    change.limit_bytes = UINT64_MAX;
    change.minimum_bytes = 90;
    change.priority = 4;
    assert_int_equal(pllm_ledger_set(ledger, "b", &change), PLLM_OK); /* a gave 40 more */
    assert_int_equal(info_of(ledger, "a").charged_bytes, 10);
    assert_int_equal(info_of(ledger, "b").priority, 4);
    change.minimum_bytes = 91;
    assert_int_equal(pllm_ledger_set(ledger, "b", &change), PLLM_ENODEVMEM);
    change.minimum_bytes = 0;
    assert_int_equal(pllm_ledger_set(ledger, "b", &change), PLLM_OK);
    assert_int_equal(pllm_ledger_set_limit(ledger, 9), PLLM_ENODEVMEM); /* a's minimum is 10 */
    assert_int_equal(pllm_ledger_charge(b, 90), PLLM_OK);
    assert_int_equal(pllm_ledger_set_limit(ledger, 60), PLLM_OK); /* b is never asked */
    assert_int_equal(pllm_ledger_charge(b, 1), PLLM_ENODEVMEM);
    pllm_ledger_credit(a.member, 10);
    assert_int_equal(pllm_ledger_charge(a.member, 10), PLLM_OK); /* its minimum, all the same */
    pllm_ledger_leave(b);
    pllm_ledger_leave(a.member);
    pllm_ledger_close(ledger);
}

/* ---- death ---- */

static void a_reused_pid_fools_nobody(void **state)
{
    (void)state;
    pllm_ledger *ledger = open_ledger(100);
    pllm_ledger_member *a = join(ledger, "a", 0, 0), *b = join(ledger, "b", 0, 0);
    assert_int_equal(pllm_ledger_charge(a, 60), PLLM_OK);
    assert_int_equal(pllm_ledger_charge(b, 40), PLLM_OK);
    /* As if this process had got the pid of a's, which ended before. */
    pllm_ledger_core *core = pllm_ledger_lock(ledger);
    core->rows[pllm_ledger_member_row(a)].process.start--;
    pllm_ledger_unlock(ledger);
    usleep(60000); /* somebody may just have looked */
    assert_int_equal(pllm_ledger_charge(b, 60), PLLM_OK);
    pllm_ledger_totals all = totals(ledger);
    assert_int_equal(all.member_count, 1);
    assert_int_equal(all.charged_bytes, 100);
    assert_int_equal(pllm_ledger_charge(a, 0), PLLM_ENODEVMEM); /* its row is not its own */
    pllm_ledger_credit(a, 60);
    pllm_ledger_leave(a);
    assert_int_equal(totals(ledger).charged_bytes, 100);
    pllm_ledger_leave(b);
    pllm_ledger_close(ledger);
}

static void what_others_map_stays_charged(void **state)
{
    (void)state;
    pllm_ledger *ledger = open_ledger(100);
    int hold[2];
    assert_int_equal(pipe(hold), 0);
    pid_t viewer = fork();
    if (viewer == 0) {
        char byte;
        close(hold[1]);
        _exit(read(hold[0], &byte, 1) < 0);
    }
    close(hold[0]);
    pllm_ledger_member *a = join(ledger, "store", 20, 0), *b;
    assert_int_equal(pllm_ledger_charge(a, 60), PLLM_OK);
    assert_int_equal(pllm_ledger_hold(a, viewer, 8), PLLM_OK);
    assert_int_equal(pllm_ledger_hold(a, 0, 100), PLLM_OK); /* more than there is counts as that */
    assert_int_equal(info_of(ledger, "store").held_by_others_bytes, 60);
    assert_int_equal(pllm_ledger_hold(a, 0, 4), PLLM_OK);
    assert_int_equal(pllm_ledger_hold(a, 0x3fffffff, 4), PLLM_ENOTFOUND);
    pllm_ledger_leave(a);
    pllm_ledger_member_info row = info_of(ledger, "store");
    assert_int_equal(row.alive, 0);
    assert_int_equal(row.charged_bytes, 12);
    assert_int_equal(totals(ledger).held_bytes, 12);
    pllm_ledger_member_options options = options_of("store", 0, 0);
    options.adopt = 1;
    assert_int_equal(pllm_ledger_join(ledger, &options, &b), PLLM_OK);
    assert_string_equal(pllm_ledger_member_name(b), "store");
    assert_int_equal(info_of(ledger, "store").charged_bytes, 12);
    assert_int_equal(pllm_ledger_hold(b, 0, 0), PLLM_OK);
    pllm_ledger_leave(b);
    assert_int_equal(totals(ledger).held_bytes, 8); /* the viewer's */
    close(hold[1]);
    assert_int_equal(waitpid(viewer, NULL, 0), viewer);
    usleep(60000);
    assert_int_equal(totals(ledger).held_bytes, 0);
    assert_int_equal(totals(ledger).member_count, 0);
    pllm_ledger_close(ledger);
}

/* ---- budgets ---- */

static void budgets_charge_the_ledger(void **state)
{
    (void)state;
    pllm_ledger *ledger = open_ledger(100);
    giver low = {.gives = UINT64_MAX};
    join_giver(ledger, &low, "low", 0, 0, 30);
    pllm_ledger_member *member = join(ledger, "engine", 10, 1), *other = join(ledger, "x", 0, 2);
    pllm_budget *budget;
    pllm_budget_member *frames, *space;
    pllm_budget_stats stats;
    assert_int_equal(pllm_budget_open(NULL, 90, &budget), PLLM_OK);
    pllm_budget_attach(budget, member);
    pllm_budget_stats_get(budget, &stats);
    assert_int_equal(stats.limit_bytes, 90); /* 100 with low's */
    assert_int_equal(pllm_budget_join(budget, "space", 20, 20, &space), PLLM_OK);
    assert_int_equal(pllm_budget_join(budget, "frames", 0, UINT64_MAX, &frames), PLLM_OK);
    assert_int_equal(pllm_budget_charge(space, 20), PLLM_OK);
    assert_int_equal(info_of(ledger, "engine").charged_bytes, 20);
    assert_int_equal(pllm_budget_charge(frames, 71), PLLM_ENODEVMEM); /* its own limit */
    assert_int_equal(atomic_load(&low.calls), 0);                     /* asks nobody for that */
    assert_int_equal(pllm_budget_charge(frames, 60), PLLM_OK);
    assert_int_equal(info_of(ledger, "low").charged_bytes, 20);
    assert_int_equal(pllm_ledger_charge(other, 20), PLLM_OK);
    pllm_budget_stats_get(budget, &stats);
    assert_int_equal(stats.limit_bytes, 80); /* the ledger has no more */
    assert_int_equal(pllm_budget_charge(frames, 1), PLLM_ENODEVMEM);
    assert_int_equal(pllm_budget_charged(frames), 60);
    pllm_budget_stats_get(budget, &stats);
    assert_int_equal(stats.charged_bytes, 80);
    assert_int_equal(stats.peak_bytes, 80);
    /* What the ledger asks for is excess of who is above its minimum. */
    assert_int_equal(pllm_ledger_set_limit(ledger, 100), PLLM_OK);
    pllm_ledger_core *core = pllm_ledger_lock(ledger);
    core->rows[pllm_ledger_member_row(member)].asked_bytes = 15;
    core->rows[pllm_ledger_member_row(member)].asked_deadline_ns = UINT64_MAX;
    pllm_ledger_unlock(ledger);
    assert_int_equal(pllm_budget_excess(space), 0);
    assert_int_equal(pllm_budget_excess(frames), 15);
    pllm_budget_credit(frames, 15);
    assert_int_equal(pllm_budget_excess(frames), 0);
    pllm_budget_credit(frames, 45);
    pllm_budget_credit(space, 20);
    pllm_budget_leave(frames);
    pllm_budget_leave(space);
    pllm_budget_close(budget);
    assert_int_equal(info_of(ledger, "engine").charged_bytes, 0);
    pllm_ledger_leave(other);
    pllm_ledger_leave(member);
    pllm_ledger_leave(low.member);
    pllm_ledger_close(ledger);
}

static void processes_are_told_apart(void **state)
{
    (void)state;
    pllm_ledger_process self, again, child;
    assert_int_equal(pllm_ledger_process_find(getpid(), &self), PLLM_OK);
    assert_int_equal(pllm_ledger_process_find(getpid(), &again), PLLM_OK);
    assert_true(self.start == again.start && self.start > 0);
    assert_int_equal(pllm_ledger_process_find(0, &again), PLLM_ENOTFOUND);
    pid_t pid = fork();
    if (pid == 0) _exit(0);
    siginfo_t ended; /* a zombie has its pid and start still, and no memory */
    assert_int_equal(waitid(P_PID, (id_t)pid, &ended, WEXITED | WNOWAIT), 0);
    assert_int_equal(pllm_ledger_process_find(pid, &child), PLLM_ENOTFOUND);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

int main(void)
{
#define TEST(function) cmocka_unit_test_setup_teardown(function, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(a_ledger_is_made_once_and_belongs_to_its_user),
        TEST(what_is_no_ledger_is_refused),
        TEST(members_share_a_limit),
        TEST(lower_priorities_give_back_above_their_minimums),
        TEST(who_cannot_give_is_no_reason_to_wait),
        TEST(a_broken_promise_ends_at_the_deadline),
        TEST(a_minimum_is_had_from_anybody),
        TEST(limits_change_live),
        TEST(a_reused_pid_fools_nobody),
        TEST(what_others_map_stays_charged),
        TEST(budgets_charge_the_ledger),
        TEST(processes_are_told_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
