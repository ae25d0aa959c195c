/* Elastic pools whose limit is a ledger's, shared by two that would be two processes: what one
 * keeps and does not use goes to the other, of higher priority or not; mapping ahead asks nobody;
 * what a process has itself comes first; minimums hold. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include <pagedllm/ledger.h>
#include "vmm_rig.h"

#define KIND(state) (*(vmm_rig_kind *)*(state))
enum { LIMIT = 16 }; /* pages, of the ledger */

typedef struct pair {
    char name[32];
    vmm_rig rig; /* its own vmm is closed again */
    pllm_vmm *high, *low;
} pair;

static pllm_vmm *join(pair *p, const char *name, int32_t priority, uint64_t minimum_pages)
{
    pllm_vmm_options options = {.struct_bytes = sizeof options,
                                .no_background = 1,
                                .ledger = p->name,
                                .ledger_limit_bytes = LIMIT * RIG_PAGE,
                                .ledger_minimum_bytes = minimum_pages * RIG_PAGE,
                                .ledger_priority = priority,
                                .ledger_name = name};
    pllm_vmm *vmm;
    assert_int_equal(pllm_vmm_open(&p->rig.memory.context, p->rig.device, &options, &vmm), PLLM_OK);
    return vmm;
}

static void pair_open(pair *p, vmm_rig_kind kind, uint64_t minimum_pages)
{
    memset(p, 0, sizeof *p);
    vmm_rig_open(&p->rig, kind, LIMIT, 4 * LIMIT);
    pllm_vmm_close(p->rig.vmm);
    p->rig.vmm = NULL;
    snprintf(p->name, sizeof p->name, "vmm-shared-%d", (int)getpid());
    (void)pllm_ledger_remove(NULL, p->name); /* of a run that was killed */
    p->high = join(p, "high", 1, 0);
    p->low = join(p, "low", 0, minimum_pages);
}

static void pair_close(pair *p)
{
    pllm_vmm_close(p->high);
    pllm_vmm_close(p->low);
    assert_int_equal(pllm_ledger_remove(NULL, p->name), PLLM_OK);
    vmm_rig_close(&p->rig);
}

static pllm_vmm_pool *model(pair *p, pllm_vmm *vmm, const char *name,
                            const pllm_vmm_pool_options *options)
{
    p->rig.vmm = vmm;
    pllm_vmm_pool *pool = vmm_rig_model(&p->rig, name, 4 * LIMIT, options);
    p->rig.vmm = NULL;
    return pool;
}

static uint64_t held(const pair *p) /* pages, in the ledger */
{
    pllm_ledger *ledger;
    pllm_ledger_totals totals = {.struct_bytes = sizeof totals};
    assert_int_equal(pllm_ledger_open(NULL, p->name, 0, &ledger), PLLM_OK);
    assert_true(pllm_ledger_list(ledger, NULL, 0, &totals) >= 0);
    pllm_ledger_close(ledger);
    assert_true(totals.held_bytes <= totals.limit_bytes);
    return totals.held_bytes / RIG_PAGE;
}

/* Addresses of that member's models, in pages, as `pagedllm top` shows them. */
static uint64_t reserved(const pair *p, const char *member)
{
    pllm_ledger *ledger;
    pllm_ledger_member_info rows[PLLM_LEDGER_MEMBERS_MAX];
    uint64_t bytes = UINT64_MAX;
    assert_int_equal(pllm_ledger_open(NULL, p->name, 0, &ledger), PLLM_OK);
    int count = pllm_ledger_list(ledger, rows, PLLM_LEDGER_MEMBERS_MAX, NULL);
    for (int i = 0; i < count; i++)
        if (strcmp(rows[i].name, member) == 0) bytes = rows[i].reserved_bytes;
    pllm_ledger_close(ledger);
    return bytes / RIG_PAGE;
}

static uint64_t kept(pllm_vmm_pool *pool)
{
    return vmm_rig_stats(pool).kept_bytes / RIG_PAGE;
}

static void what_one_keeps_goes_to_the_other(void **state)
{
    pair p;
    pair_open(&p, KIND(state), 2);
    pllm_vmm_pool_options keeps = {.kept_bytes = PLLM_UNLIMITED};
    pllm_vmm_pool *low = model(&p, p.low, "low", &keeps), *high = model(&p, p.high, "high", &keeps);
    assert_int_equal(pllm_vmm_allocate(low, 0, 10 * RIG_PAGE, NULL), PLLM_OK);
    vmm_rig_fill(low, 0, RIG_PAGE, 3);
    assert_int_equal(pllm_vmm_deallocate(low, RIG_PAGE, 9 * RIG_PAGE), PLLM_OK);
    assert_int_equal(kept(low), 9);
    assert_int_equal(pllm_vmm_allocate(high, 0, 12 * RIG_PAGE, NULL), PLLM_OK);
    assert_true(kept(low) <= 3);
    assert_true(held(&p) <= LIMIT);
    assert_int_equal(reserved(&p, "low"), 4 * LIMIT);
    pllm_vmm_pool *second = model(&p, p.low, "second", &keeps);
    assert_int_equal(reserved(&p, "low"), 8 * LIMIT);
    pllm_vmm_unregister(second);
    assert_int_equal(reserved(&p, "low"), 4 * LIMIT);
    /* 2 are the low one's for good; it uses 1. */
    vmm_rig_refused(pllm_vmm_allocate(high, 12 * RIG_PAGE, 3 * RIG_PAGE, NULL), PLLM_ENODEVMEM,
                    "do not fit");
    assert_int_equal(pllm_vmm_allocate(high, 12 * RIG_PAGE, 2 * RIG_PAGE, NULL), PLLM_OK);
    assert_int_equal(pllm_vmm_allocate(low, RIG_PAGE, RIG_PAGE, NULL), PLLM_OK);
    vmm_rig_all(low, 0, RIG_PAGE, 3);
    assert_int_equal(held(&p), LIMIT);
    pair_close(&p);
}

static void own_unused_memory_comes_first(void **state)
{
    pair p;
    pair_open(&p, KIND(state), 0);
    pllm_vmm_pool_options keeps = {.kept_bytes = PLLM_UNLIMITED};
    pllm_vmm_pool *low = model(&p, p.low, "low", &keeps), *high = model(&p, p.high, "high", &keeps);
    pllm_vmm_pool *second = model(&p, p.high, "second", &keeps);
    assert_int_equal(pllm_vmm_allocate(low, 0, 8 * RIG_PAGE, NULL), PLLM_OK);
    assert_int_equal(pllm_vmm_deallocate(low, 0, 8 * RIG_PAGE), PLLM_OK);
    assert_int_equal(pllm_vmm_allocate(high, 0, 8 * RIG_PAGE, NULL), PLLM_OK);
    assert_int_equal(pllm_vmm_deallocate(high, 0, 8 * RIG_PAGE), PLLM_OK);
    assert_int_equal(held(&p), LIMIT);
    assert_int_equal(pllm_vmm_allocate(second, 0, 8 * RIG_PAGE, NULL), PLLM_OK);
    assert_int_equal(kept(high), 0);
    assert_int_equal(kept(low), 8);
    pair_close(&p);
}

static void mapping_ahead_asks_nobody(void **state)
{
    pair p;
    pair_open(&p, KIND(state), 0);
    pllm_vmm_pool_options keeps = {.kept_bytes = PLLM_UNLIMITED},
                          ahead = {.ahead_bytes = 6 * RIG_PAGE};
    pllm_vmm_pool *low = model(&p, p.low, "low", &keeps), *high = model(&p, p.high, "high", &ahead);
    assert_int_equal(pllm_vmm_allocate(low, 0, 12 * RIG_PAGE, NULL), PLLM_OK);
    assert_int_equal(pllm_vmm_deallocate(low, 0, 12 * RIG_PAGE), PLLM_OK);
    assert_int_equal(pllm_vmm_allocate(high, 0, RIG_PAGE, NULL), PLLM_OK);
    pllm_vmm_poll(p.high);
    assert_int_equal(vmm_rig_stats(high).ahead_bytes, 0); /* 6 at once, where 3 are free */
    assert_int_equal(kept(low), 12);
    pllm_vmm_pool_compact(low, NULL);
    assert_int_equal(pllm_vmm_allocate(high, RIG_PAGE, RIG_PAGE, NULL), PLLM_OK);
    pllm_vmm_poll(p.high);
    assert_int_equal(vmm_rig_stats(high).ahead_bytes, 6 * RIG_PAGE);
    /* The rest is there for the other, which may not ask the higher one for more. */
    assert_int_equal(pllm_vmm_allocate(low, 0, 8 * RIG_PAGE, NULL), PLLM_OK);
    assert_int_equal(pllm_vmm_allocate(low, 8 * RIG_PAGE, RIG_PAGE, NULL), PLLM_ENODEVMEM);
    assert_int_equal(held(&p), LIMIT);
    pair_close(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        ON_BOTH(what_one_keeps_goes_to_the_other),
        ON_BOTH(own_unused_memory_comes_first),
        ON_BOTH(mapping_ahead_asks_nobody),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
