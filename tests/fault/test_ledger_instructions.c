/* A process dies at every single instruction of every operation on the ledger.
 *
 * A child does one operation on a ledger in shared memory, one machine instruction at a time
 * (ptrace). After each, what it would leave by dying right there is copied; recover must make all
 * invariants true again, the child's death must then return its share, and the others' rows must be
 * as they were. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include <pagedllm/status.h>
#include "vmm/ledger_core.h"

typedef struct scene {
    pllm_ledger_core core;
    atomic_int inside; /* 1: the child is in the operation */
    int32_t status;
} scene;

static const pllm_ledger_process child_is = {.pid = 7, .start = 70},
                                 other_is = {.pid = 8, .start = 80},
                                 viewer_is = {.pid = 9, .start = 90},
                                 gone_is = {.pid = 6, .start = 60};
enum { CHILD = 0, OTHER = 1, GONE = 2, LIMIT = 100 };

static void row_make(pllm_ledger_core *core, const char *name, const pllm_ledger_process *process,
                     int32_t priority, uint64_t minimum, uint64_t charged)
{
    pllm_ledger_entry entry = {.name = name,
                               .process = *process,
                               .priority = priority,
                               .gives_back = 1,
                               .limit_bytes = 1000};
    uint32_t row;
    assert_int_equal(pllm_ledger_core_join(core, &entry, &row), PLLM_OK);
    assert_int_equal(pllm_ledger_core_set(core, row, minimum, 1000, priority, 0), PLLM_OK);
    assert_int_equal(pllm_ledger_core_charge(core, row, charged), PLLM_OK);
}

/* The child's row, one that can be asked, and what a dead one left mapped. */
static void scene_make(scene *s)
{
    memset(s, 0, sizeof *s);
    pllm_ledger_core *core = &s->core;
    pllm_ledger_core_init(core, LIMIT);
    row_make(core, "child", &child_is, 5, 10, 20);
    row_make(core, "other", &other_is, 0, 15, 60);
    row_make(core, "gone", &gone_is, 0, 0, 12);
    assert_int_equal(pllm_ledger_core_hold(core, GONE, &viewer_is, 9), PLLM_OK);
    assert_int_equal(pllm_ledger_core_hold(core, CHILD, &viewer_is, 3), PLLM_OK);
    pllm_ledger_core_reap(core, &gone_is, 0);
    assert_int_equal(core->held_bytes, 89);
}

/* ---- the operations ---- */

static int op_charge(pllm_ledger_core *core)
{
    return pllm_ledger_core_charge(core, CHILD, 11);
}

static int op_credit(pllm_ledger_core *core)
{
    pllm_ledger_core_credit(core, CHILD, 15);
    return PLLM_OK;
}

static int op_claim_waits(pllm_ledger_core *core)
{
    uint64_t claim;
    return pllm_ledger_core_claim(core, CHILD, PLLM_LEDGER_CLAIM_BYTES, 30, &child_is, 1, 9,
                                  &claim) == PLLM_LEDGER_WAITS
               ? PLLM_OK
               : -1;
}

static int op_claim_fails(pllm_ledger_core *core)
{
    uint64_t claim;
    return pllm_ledger_core_claim(core, CHILD, PLLM_LEDGER_CLAIM_BYTES, 90, &child_is, 1, 9,
                                  &claim) == PLLM_ENODEVMEM
               ? PLLM_OK
               : -1;
}

static int op_claim_minimum(pllm_ledger_core *core)
{
    uint64_t claim;
    return pllm_ledger_core_claim(core, CHILD, PLLM_LEDGER_CLAIM_MINIMUM, 25, &child_is, 1, 9,
                                  &claim);
}

static int op_set_up(pllm_ledger_core *core)
{
    return pllm_ledger_core_set(core, CHILD, 30, 40, 3, 1);
}

static int op_set_down(pllm_ledger_core *core)
{
    return pllm_ledger_core_set(core, CHILD, 2, 4, 3, 1);
}

static int op_join(pllm_ledger_core *core)
{
    pllm_ledger_entry entry = {
        .name = "new", .process = child_is, .gives_back = 1, .limit_bytes = 50};
    uint32_t row;
    return pllm_ledger_core_join(core, &entry, &row);
}

static int op_adopt(pllm_ledger_core *core)
{
    pllm_ledger_entry entry = {.name = "gone", .process = child_is, .adopts = 1, .limit_bytes = 5};
    uint32_t row;
    return pllm_ledger_core_join(core, &entry, &row);
}

static int op_leave(pllm_ledger_core *core)
{
    pllm_ledger_core_leave(core, CHILD, 1);
    return PLLM_OK;
}

static int op_hold(pllm_ledger_core *core)
{
    return pllm_ledger_core_hold(core, CHILD, &other_is, 6);
}

static int op_reap_viewer(pllm_ledger_core *core)
{
    pllm_ledger_core_reap(core, &viewer_is, 1);
    return PLLM_OK;
}

static int op_raise_limit(pllm_ledger_core *core)
{
    return pllm_ledger_core_set_limit(core, 150, 1);
}

static int op_answer(pllm_ledger_core *core)
{
    pllm_ledger_core_answer(core, CHILD, core->rows[CHILD].request, 0, 1);
    return PLLM_OK;
}

/* ---- dying at each instruction ---- */

static void check_after_death(const scene *before, const pllm_ledger_core *left, int viewer_lives,
                              uint64_t instruction)
{
    static pllm_ledger_core core;
    memcpy(&core, left, sizeof core);
    pllm_ledger_core_recover(&core, 1);
    int broken = pllm_ledger_core_check(&core);
    if (broken)
        fail_msg("rule %d is broken at instruction %llu", broken, (unsigned long long)instruction);
    assert_true(core.held_bytes <= core.limit_bytes);
    const pllm_ledger_row *other = &core.rows[OTHER], *was = &before->core.rows[OTHER];
    assert_true(other->state == was->state && other->charged_bytes == was->charged_bytes &&
                other->minimum_bytes == was->minimum_bytes &&
                other->limit_bytes == was->limit_bytes);
    pllm_ledger_core_reap(&core, &child_is, 1);
    assert_int_equal(pllm_ledger_core_check(&core), 0);
    for (uint32_t i = 0; i < PLLM_LEDGER_CLAIMS; i++)
        assert_int_equal(core.claims[i].kind, PLLM_LEDGER_CLAIM_NONE);
    assert_int_equal(core.rows[OTHER].asked_bytes, 0);
    /* The other's 60, and at most what the viewer maps: 3 of the child, 9 of the dead; and 6 that
     * the other may map of the child. */
    assert_true(core.held_bytes >= 60 + (viewer_lives ? 9u : 0) && core.held_bytes <= 78);
    pllm_ledger_core_reap(&core, &viewer_is, 1);
    pllm_ledger_core_reap(&core, &other_is, 1);
    assert_int_equal(core.held_bytes, 0);
}

static void child_runs(scene *s, int (*operation)(pllm_ledger_core *))
{
    ptrace(PTRACE_TRACEME, 0, NULL, NULL);
    raise(SIGSTOP);
    atomic_store(&s->inside, 1);
    s->status = operation(&s->core);
    atomic_store(&s->inside, 0);
    _exit(0);
}

static void die_at_each_instruction(const char *what, int (*operation)(pllm_ledger_core *))
{
    static scene before;
    static pllm_ledger_core last;
    scene *s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(s != MAP_FAILED);
    scene_make(s);
    memcpy(&before, s, sizeof before);
    s->status = -1000;
    pid_t pid = fork();
    if (pid == 0) child_runs(s, operation);
    uint64_t steps = 0, states = 0;
    int how, was_inside = 0, viewer_lives = operation != op_reap_viewer;
    while (waitpid(pid, &how, 0) == pid && WIFSTOPPED(how)) {
        int inside = atomic_load(&s->inside);
        if (inside && memcmp(&last, &s->core, sizeof last) != 0) {
            memcpy(&last, &s->core, sizeof last);
            check_after_death(&before, &last, viewer_lives, steps);
            states++;
        }
        steps += (uint64_t)inside;
        /* Before and after, at full speed to the next stop would miss it: it is short. */
        was_inside |= inside;
        assert_int_equal(
            ptrace(was_inside && !inside ? PTRACE_CONT : PTRACE_SINGLESTEP, pid, NULL, NULL), 0);
    }
    assert_true(WIFEXITED(how) && WEXITSTATUS(how) == 0);
    assert_int_equal(s->status, PLLM_OK);
    assert_int_equal(pllm_ledger_core_check(&s->core), 0);
    assert_true(steps > 10);
    print_message("%s: %llu instructions, %llu states\n", what, (unsigned long long)steps,
                  (unsigned long long)states);
    munmap(s, sizeof *s);
}

static void any_instruction_may_be_the_last(void **state)
{
    (void)state;
    const struct {
        const char *what;
        int (*operation)(pllm_ledger_core *);
    } all[] = {
        {"charge", op_charge},
        {"credit", op_credit},
        {"join", op_join},
        {"set up", op_set_up},
        {"claim waits", op_claim_waits},
        {"claim fails", op_claim_fails},
        {"minimum", op_claim_minimum},
        {"set down", op_set_down},
        {"adopt", op_adopt},
        {"leave", op_leave},
        {"hold", op_hold},
        {"reap", op_reap_viewer},
        {"raise limit", op_raise_limit},
        {"answer", op_answer},
    };
    size_t count = sizeof all / sizeof all[0];
#ifdef PLLM_SANITIZED
    count = 4; /* many times the instructions, of which few are ours */
#endif
    for (size_t i = 0; i < count; i++) die_at_each_instruction(all[i].what, all[i].operation);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(any_instruction_may_be_the_last)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
