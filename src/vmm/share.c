/* share.c - see share.h.
 *
 * Locks: the gate, recursive, held for as long as a caller is inside; and a small one for the
 * pointer to the budget, which the share's thread reads outside of the gate. Under it everything
 * else may be taken; it is never waited for by the share's thread, which tries, and by nobody who
 * holds another lock. So the one who asks can wait for this process while that waits for nobody. */
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include "base/size.h"
#include "vmm/ledger.h"
#include "vmm/share.h"

struct pllm_share {
    const pllm_context *context;
    pllm_ledger *ledger;
    pllm_ledger_member *member;
    void (*give_back)(void *user);
    void *user;
    pthread_mutex_t gate;
    uint32_t depth; /* of who is inside */
    pthread_mutex_t lock;
    pllm_budget *budget; /* under lock. NULL: nothing to give yet, or any more */
};

static uint64_t loan_of(pllm_share *share)
{
    pthread_mutex_lock(&share->lock);
    uint64_t bytes = share->budget ? pllm_budget_loan(share->budget) : 0;
    pthread_mutex_unlock(&share->lock);
    return bytes;
}

static void budget_set(pllm_share *share, pllm_budget *budget)
{
    pthread_mutex_lock(&share->lock);
    share->budget = budget;
    pthread_mutex_unlock(&share->lock);
}

/* Inside the gate. The caller's last error stays what it was. */
static void give_if_asked(pllm_share *share)
{
    if (!pllm_ledger_asked(share->member) || loan_of(share) == 0) return;
    pllm_error kept = *pllm_last_error();
    share->give_back(share->user);
    if (kept.status)
        pllm_fail(kept.status, kept.native, "%s", kept.text);
    else
        pllm_error_clear();
}

/* On the share's thread. What is on loan is promised to who waits: who is inside leaves before
 * long, and if it does not, the deadline tells. */
static uint64_t asked(void *user, uint64_t bytes, uint64_t deadline_ns)
{
    pllm_share *share = user;
    (void)deadline_ns;
    if (pthread_mutex_trylock(&share->gate) != 0) {
        uint64_t loan = loan_of(share);
        return bytes < loan ? bytes : loan;
    }
    give_if_asked(share);
    uint64_t left = pllm_ledger_asked(share->member);
    pthread_mutex_unlock(&share->gate);
    return left < bytes ? bytes - left : 0;
}

static int gate_init(pthread_mutex_t *gate)
{
    pthread_mutexattr_t kind;
    int code = pthread_mutexattr_init(&kind);
    if (code) return code;
    code = pthread_mutexattr_settype(&kind, PTHREAD_MUTEX_RECURSIVE);
    if (!code) code = pthread_mutex_init(gate, &kind);
    pthread_mutexattr_destroy(&kind);
    return code;
}

static void tell_limit(const pllm_share *share, const pllm_share_options *options)
{
    pllm_ledger_totals totals = {.struct_bytes = sizeof totals};
    char have[32], given[32];
    if (!options->ledger_limit_bytes || pllm_ledger_list(share->ledger, NULL, 0, &totals) < 0 ||
        totals.limit_bytes == options->ledger_limit_bytes)
        return;
    pllm_log(share->context, PLLM_LOG_WARN,
             "the ledger %s has a limit of %s already, which stays, and not %s: pagedllm limit "
             "total changes it",
             options->ledger, pllm_size_text(totals.limit_bytes, have, sizeof have),
             pllm_size_text(options->ledger_limit_bytes, given, sizeof given));
}

int pllm_share_open(const pllm_context *context, const pllm_share_options *options,
                    pllm_share **share_out)
{
    *share_out = NULL;
    pllm_share *share = pllm_alloc(context, sizeof *share);
    if (!share) return pllm_fail_memory("a share of a ledger", sizeof *share);
    share->context = context;
    share->give_back = options->give_back;
    share->user = options->user;
    int code = gate_init(&share->gate);
    if (!code && (code = pthread_mutex_init(&share->lock, NULL)) != 0)
        pthread_mutex_destroy(&share->gate);
    if (code) {
        pllm_free(context, share);
        return pllm_fail(PLLM_ENOMEM, code, "could not make the gate of a share");
    }
    pllm_share_enter(share);
    int status =
        pllm_ledger_open(context, options->ledger, options->ledger_limit_bytes, &share->ledger);
    pllm_ledger_member_options member = {.struct_bytes = sizeof member,
                                         .priority = options->priority,
                                         .name = options->name,
                                         .minimum_bytes = options->minimum_bytes,
                                         .reclaim = asked,
                                         .user = share};
    if (status == PLLM_OK) tell_limit(share, options);
    if (status == PLLM_OK) status = pllm_ledger_join(share->ledger, &member, &share->member);
    if (status < 0) {
        pllm_share_close(share);
        return status;
    }
    *share_out = share;
    return PLLM_OK;
}

void pllm_share_close(pllm_share *share)
{
    if (!share) return;
    pllm_ledger_leave(share->member); /* its thread has ended then */
    pllm_ledger_close(share->ledger);
    for (; share->depth > 0; share->depth--) pthread_mutex_unlock(&share->gate);
    pthread_mutex_destroy(&share->gate);
    pthread_mutex_destroy(&share->lock);
    pllm_free(share->context, share);
}

void pllm_share_attach(pllm_share *share, pllm_budget *budget)
{
    if (!share) return;
    pllm_budget_attach(budget, share->member);
    budget_set(share, budget);
}

void pllm_share_detach(pllm_share *share)
{
    if (share) budget_set(share, NULL);
}

pllm_ledger_member *pllm_share_member(const pllm_share *share)
{
    return share->member;
}

uint64_t pllm_share_ceiling(const pllm_share *share)
{
    const pllm_ledger_core *core = pllm_ledger_lock(share->ledger);
    const pllm_ledger_row *row = &core->rows[pllm_ledger_member_row(share->member)];
    uint64_t others = core->minimum_bytes - row->minimum_bytes;
    uint64_t bytes = core->limit_bytes > others ? core->limit_bytes - others : 0;
    if (row->limit_bytes < bytes) bytes = row->limit_bytes;
    pllm_ledger_unlock(share->ledger);
    return bytes;
}

int pllm_share_minimum(pllm_share *share, uint64_t bytes)
{
    pllm_ledger_change change = {.struct_bytes = sizeof change,
                                 .priority = INT32_MIN,
                                 .minimum_bytes = bytes,
                                 .limit_bytes = UINT64_MAX};
    return pllm_ledger_set(share->ledger, pllm_ledger_member_name(share->member), &change);
}

void pllm_share_enter(pllm_share *share)
{
    if (!share) return;
    pthread_mutex_lock(&share->gate);
    share->depth++;
}

void pllm_share_poll(pllm_share *share)
{
    if (share) give_if_asked(share);
}

void pllm_share_leave(pllm_share *share)
{
    if (!share) return;
    if (share->depth > 1) {
        share->depth--;
        pthread_mutex_unlock(&share->gate);
        return;
    }
    give_if_asked(share);
    share->depth = 0;
    pthread_mutex_unlock(&share->gate);
    /* Who asked between the two found the gate closed. */
    if (!pllm_ledger_asked(share->member) || pthread_mutex_trylock(&share->gate) != 0) return;
    give_if_asked(share);
    pthread_mutex_unlock(&share->gate);
}
