/* Question: what does a charge cost that processes share?
 *
 *   bench_ledger [--smoke]
 *
 * 1. A charge and its credit, nobody else there: p50 and p99 of single pairs, halved. Beside it a
 * budget of this process alone, and one that is attached to the ledger. Predicted: two uncontended
 * robust locks and a few additions, some 40 to 100 ns a call.
 * 2. The same while another process does it too, without rest: the lock goes back and forth, and
 * sleeps and wakes where both are on one processor.
 * 3. A refusal where nobody could give back.
 * 4. 64 MiB taken back from a process of lower priority: a futex there, its callback, a futex back.
 * On a machine with free processors some tens of microseconds.
 * Writes bench/results/ledger.json. The last line is the result. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/clock.h"
#include "vmm/budget.h"
#include "vmm/ledger.h"

#define MB ((uint64_t)1 << 20)
enum { TIMES_MAX = 200000 };

static char name[32];
static double times[TIMES_MAX];

static void must(int status)
{
    if (status >= 0) return;
    fprintf(stderr, "bench_ledger: %s: %s\n", pllm_status_name(status), pllm_last_error()->text);
    exit(1);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

typedef struct spread {
    double p50, p99;
} spread;

static spread spread_of(uint32_t count)
{
    qsort(times, count, sizeof times[0], ascending);
    return (spread){times[count / 2], times[(uint64_t)count * 99 / 100]};
}

static pllm_ledger_member *join(pllm_ledger *ledger, const char *member, int32_t priority,
                                uint64_t (*reclaim)(void *, uint64_t, uint64_t), void *user)
{
    pllm_ledger_member_options options = {.struct_bytes = sizeof options,
                                          .name = member,
                                          .priority = priority,
                                          .wait_ms = 2000,
                                          .reclaim = reclaim,
                                          .user = user};
    pllm_ledger_member *out;
    must(pllm_ledger_join(ledger, &options, &out));
    return out;
}

static spread pairs(pllm_ledger_member *member, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint64_t began = pllm_clock_ns();
        must(pllm_ledger_charge(member, 2 * MB));
        pllm_ledger_credit(member, 2 * MB);
        times[i] = (double)(pllm_clock_ns() - began) / 2;
    }
    return spread_of(count);
}

static spread budget_pairs(pllm_ledger_member *ledger, uint32_t count)
{
    pllm_budget *budget;
    pllm_budget_member *member;
    must(pllm_budget_open(NULL, 1024 * MB, &budget));
    pllm_budget_attach(budget, ledger);
    must(pllm_budget_join(budget, "bench", 0, UINT64_MAX, &member));
    for (uint32_t i = 0; i < count; i++) {
        uint64_t began = pllm_clock_ns();
        must(pllm_budget_charge(member, 2 * MB));
        pllm_budget_credit(member, 2 * MB);
        times[i] = (double)(pllm_clock_ns() - began) / 2;
    }
    pllm_budget_leave(member);
    pllm_budget_close(budget);
    return spread_of(count);
}

static spread refusals(pllm_ledger_member *member, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint64_t began = pllm_clock_ns();
        if (pllm_ledger_charge(member, 2048 * MB) == PLLM_OK) exit(1);
        times[i] = (double)(pllm_clock_ns() - began);
    }
    return spread_of(count);
}

/* ---- another process ---- */

static uint64_t give(void *user, uint64_t bytes, uint64_t deadline_ns)
{
    (void)deadline_ns;
    pllm_ledger_credit(*(pllm_ledger_member **)user, bytes);
    return bytes;
}

/* mode 0: charges and credits without rest; 1: takes what is free whenever it can. */
static pid_t other(int mode)
{
    pid_t pid = fork();
    if (pid != 0) return pid;
    pllm_ledger *ledger;
    pllm_ledger_member *member = NULL;
    must(pllm_ledger_open(NULL, name, 0, &ledger));
    member = join(ledger, "other", 0, give, &member);
    for (;;) {
        int status = pllm_ledger_charge(member, mode ? 64 * MB : MB);
        if (mode)
            usleep(100);
        else if (status == PLLM_OK)
            pllm_ledger_credit(member, MB);
    }
}

static void end(pid_t pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

static void wait_for(pllm_ledger *ledger, uint64_t charged)
{
    pllm_ledger_totals all = {.struct_bytes = sizeof all};
    do must(pllm_ledger_list(ledger, NULL, 0, &all));
    while (all.charged_bytes < charged || all.member_count < 2);
}

static spread taken_back(pllm_ledger *ledger, pllm_ledger_member *high, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        wait_for(ledger, 1024 * MB);
        uint64_t began = pllm_clock_ns();
        must(pllm_ledger_charge(high, 64 * MB));
        times[i] = (double)(pllm_clock_ns() - began);
        pllm_ledger_credit(high, 64 * MB);
    }
    return spread_of(count);
}

int main(int argc, char **argv)
{
    int smoke = argc > 1 && strcmp(argv[1], "--smoke") == 0;
    uint32_t count = smoke ? 2000 : TIMES_MAX;
    snprintf(name, sizeof name, "bench-%d", (int)getpid());
    pllm_ledger *ledger;
    must(pllm_ledger_open(NULL, name, 1024 * MB, &ledger));
    pid_t pid = other(0);
    pllm_ledger_member *member = join(ledger, "bench", 1, NULL, NULL);
    wait_for(ledger, 0);
    spread contended = pairs(member, count / 4);
    end(pid);
    usleep(60000);
    must(pllm_ledger_list(ledger, NULL, 0, NULL));
    spread alone = pairs(member, count), budget = budget_pairs(NULL, count),
           attached = budget_pairs(member, count), refused = refusals(member, count / 20);
    pllm_ledger_leave(member);
    pid = other(1);
    member = join(ledger, "bench", 1, NULL, NULL);
    spread back = taken_back(ledger, member, smoke ? 20 : 500);
    pllm_ledger_leave(member);
    end(pid);
    pllm_ledger_close(ledger);
    usleep(60000);
    must(pllm_ledger_remove(NULL, name));
    const struct {
        const char *what, *key;
        spread value;
    } rows[] = {
        {"charge or credit, alone", "alone", alone},
        {"the same, a budget without a ledger", "budget", budget},
        {"the same, a budget attached", "attached", attached},
        {"charge or credit, another process at it", "contended", contended},
        {"a refusal", "refused", refused},
        {"64 MiB taken back from another process", "taken_back", back},
    };
    FILE *file = smoke ? NULL : fopen("bench/results/ledger.json", "w");
    if (file) fprintf(file, "{");
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        printf("%-42s p50 %9.0f ns   p99 %9.0f ns\n", rows[i].what, rows[i].value.p50,
               rows[i].value.p99);
        if (file)
            fprintf(file, "%s\n  \"%s\": {\"p50_ns\": %.0f, \"p99_ns\": %.0f}", i ? "," : "",
                    rows[i].key, rows[i].value.p50, rows[i].value.p99);
    }
    if (file) {
        fprintf(file, "\n}\n");
        fclose(file);
    }
    printf("ledger: a charge of a microsecond at most: %s (p50 %.0f ns)\n",
           alone.p50 < 1000 ? "yes" : "no", alone.p50);
    return 0;
}
