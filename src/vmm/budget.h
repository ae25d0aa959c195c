/* budget.h - how much physical device memory the parts of one process may take.
 *
 * A budget has one hard limit. Members (regions, workspaces) each have a guaranteed minimum, which
 * the others cannot take, and a limit of their own; all can change while running. Charging is
 * all-or-nothing and never blocks: no room is PLLM_ENODEVMEM, and the caller evicts and retries.
 * Lowering a limit below what is charged never fails: the member is then over, and every further
 * charge is refused until it has given back (pllm_budget_excess says how much).
 * A budget may be attached to a member of a ledger, which processes share: every charge is then
 * charged there too, which may ask others to give back and wait for it as long as the member's
 * options say; what the ledger asks of this one shows as excess.
 * Threads: safe from many threads. */
#ifndef PLLM_VMM_BUDGET_H
#define PLLM_VMM_BUDGET_H

#include <pagedllm/ledger.h>
#include "device/device.h"

typedef struct pllm_budget pllm_budget;
typedef struct pllm_budget_member pllm_budget_member;

int pllm_budget_open(const pllm_context *context, uint64_t limit_bytes, pllm_budget **budget_out);
void pllm_budget_close(pllm_budget *budget); /* every member has left */
/* Before anything is charged. Borrows ledger, which outlives the budget; NULL: alone again. What
 * the ledger's member has charged already (it took over what another left) is carried: charged for
 * nobody here, until _charge_carried finds it again or _carry lets it go. */
void pllm_budget_attach(pllm_budget *budget, pllm_ledger_member *ledger);
/* Credits are not passed on any more: others map what this process is about to let go of, and the
 * ledger finds out what stays when its member leaves. */
void pllm_budget_detach(pllm_budget *budget);
pllm_ledger_member *pllm_budget_ledger(const pllm_budget *budget); /* NULL: none */
uint64_t pllm_budget_carried(const pllm_budget *budget);
void pllm_budget_carry(pllm_budget *budget, uint64_t bytes_max); /* no more than that */
/* EINVAL if minimum > limit; ENODEVMEM if the minimums together pass the budget's limit. */
int pllm_budget_join(pllm_budget *budget, const char *name, uint64_t minimum_bytes,
                     uint64_t limit_bytes, pllm_budget_member **member_out);
void pllm_budget_leave(pllm_budget_member *member); /* nothing charged; NULL is fine */
int pllm_budget_charge(pllm_budget_member *member, uint64_t bytes);         /* OK or ENODEVMEM */
int pllm_budget_charge_carried(pllm_budget_member *member, uint64_t bytes); /* of what is carried */
void pllm_budget_credit(pllm_budget_member *member, uint64_t bytes);
/* Live changes: OK, EINVAL, or ENODEVMEM as for join. */
int pllm_budget_set_limit(pllm_budget *budget, uint64_t limit_bytes);
int pllm_budget_member_set(pllm_budget_member *member, uint64_t minimum_bytes,
                           uint64_t limit_bytes);
uint64_t pllm_budget_excess(const pllm_budget_member *member); /* bytes this member should return */
uint64_t pllm_budget_charged(const pllm_budget_member *member);
uint64_t pllm_budget_loan(pllm_budget *budget); /* bytes that members hold above their minimums */
uint64_t pllm_budget_over(pllm_budget *budget); /* bytes held beyond the limit */
uint64_t pllm_budget_member_over(const pllm_budget_member *member); /* beyond its own */
/* What this one holds above its minimum, and above floor_bytes. */
uint64_t pllm_budget_member_loan(const pllm_budget_member *member, uint64_t floor_bytes);

/* Who waits for what others give back has it first: until unclaim, a charge of a member of lower
 * priority (0 unless set) leaves bytes free, unless it is inside its own minimum. One that claims
 * for its own minimum comes before all. The struct is the caller's, and of nobody else's concern.
 * short: what others have to give back before the budget alone would let `bytes` be charged. */
typedef struct pllm_budget_claim {
    struct pllm_budget_claim *next;
    pllm_budget_member *member; /* NULL: not claimed */
    uint64_t bytes;
} pllm_budget_claim;
void pllm_budget_member_priority(pllm_budget_member *member, int32_t priority);
void pllm_budget_claim_make(pllm_budget_claim *claim, pllm_budget_member *member, uint64_t bytes);
void pllm_budget_unclaim(pllm_budget_claim *claim);
uint64_t pllm_budget_short(const pllm_budget_member *member, uint64_t bytes);
/* Is a charge of bytes inside the member's minimum? */
int pllm_budget_is_minimum(const pllm_budget_member *member, uint64_t bytes);
/* limit_bytes: attached, no more than the ledger would give now. */
typedef struct pllm_budget_stats {
    uint64_t limit_bytes, charged_bytes, peak_bytes, refused_count;
    uint32_t member_count;
} pllm_budget_stats;
void pllm_budget_stats_get(const pllm_budget *budget, pllm_budget_stats *stats_out);

#endif
