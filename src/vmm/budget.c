/* budget.c - one hard limit shared by members with guaranteed minimums.
 *
 *   limit   |== member A: charged ==|== member B: charged ==|-- B's unused minimum --|  free  |
 *
 * What a member holds of the limit is the larger of its charge and its minimum; the sum of that
 * over members is what others cannot take.
 *
 * Invariants: 1. held_bytes = sum of max(charged, minimum). 2. charged_bytes = sum of charged, and
 * no charge ever takes it past the limit. 3. The minimums together fit in the limit.
 * Ledger: a charge is made here first, since it costs others nothing to be refused here, then in
 * the ledger, and taken back here if that refuses; bytes are used only after both. A credit goes to
 * the ledger first, so that who charges next finds it there.
 * A claim is a promise to who waits: charges of lower priority leave it free (claimed_before).
 * What is carried is charged in the ledger alone, and for memory that this process is yet to get.
 * Locks: one, a leaf; the ledger, which may wait, is called without it. */
#include <assert.h>
#include <pthread.h>
#include "vmm/budget.h"
#include "vmm/ledger.h"

struct pllm_budget_member {
    pllm_budget *budget;
    pllm_budget_member *next;
    char *name;
    uint64_t minimum_bytes, limit_bytes, charged_bytes;
    int32_t priority;
};

struct pllm_budget {
    const pllm_context *context;
    pllm_ledger_member *ledger; /* NULL: alone */
    pthread_mutex_t lock;
    pllm_budget_member *members;
    pllm_budget_claim *claims;
    uint64_t limit_bytes, held_bytes, minimum_bytes, charged_bytes, peak_bytes, refused_count;
    uint64_t carried_bytes; /* charged in the ledger, and not here */
    uint32_t member_count;
};

int pllm_budget_open(const pllm_context *context, uint64_t limit_bytes, pllm_budget **budget_out)
{
    *budget_out = NULL;
    pllm_budget *budget = pllm_alloc(context, sizeof *budget);
    if (!budget) return pllm_fail_memory("a budget", sizeof *budget);
    budget->context = context;
    budget->limit_bytes = limit_bytes;
    int code = pthread_mutex_init(&budget->lock, NULL);
    if (code) {
        pllm_free(context, budget);
        return pllm_fail(PLLM_ENOMEM, code, "could not make a lock for a budget");
    }
    *budget_out = budget;
    return PLLM_OK;
}

void pllm_budget_attach(pllm_budget *budget, pllm_ledger_member *ledger)
{
    uint64_t mapped;
    assert(budget->charged_bytes == 0);
    budget->ledger = ledger;
    budget->carried_bytes = 0;
    if (ledger) pllm_ledger_member_figures(ledger, &budget->carried_bytes, &mapped);
}

void pllm_budget_detach(pllm_budget *budget)
{
    budget->ledger = NULL;
    budget->carried_bytes = 0;
}

pllm_ledger_member *pllm_budget_ledger(const pllm_budget *budget)
{
    return budget->ledger;
}

uint64_t pllm_budget_carried(const pllm_budget *budget)
{
    pthread_mutex_t *lock = (pthread_mutex_t *)&budget->lock;
    pthread_mutex_lock(lock);
    uint64_t bytes = budget->carried_bytes;
    pthread_mutex_unlock(lock);
    return bytes;
}

void pllm_budget_carry(pllm_budget *budget, uint64_t bytes_max)
{
    pthread_mutex_lock(&budget->lock);
    uint64_t gone = budget->carried_bytes > bytes_max ? budget->carried_bytes - bytes_max : 0;
    budget->carried_bytes -= gone;
    pthread_mutex_unlock(&budget->lock);
    if (gone) pllm_ledger_credit(budget->ledger, gone);
}

void pllm_budget_close(pllm_budget *budget)
{
    if (!budget) return;
    assert(budget->member_count == 0);
    pthread_mutex_destroy(&budget->lock);
    pllm_free(budget->context, budget);
}

static uint64_t most(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static uint64_t held(const pllm_budget_member *member)
{
    return most(member->charged_bytes, member->minimum_bytes);
}

/* Minimums cannot overflow: each set of them that was accepted fits in the limit. */
static int minimum_fits(const pllm_budget *budget, uint64_t others_bytes, uint64_t minimum_bytes)
{
    return others_bytes <= budget->limit_bytes &&
           minimum_bytes <= budget->limit_bytes - others_bytes;
}

static int check_minimum(const char *name, uint64_t minimum_bytes, uint64_t limit_bytes)
{
    if (minimum_bytes <= limit_bytes) return PLLM_OK;
    return pllm_fail(PLLM_EINVAL, 0, "%s: the minimum of %llu bytes is above its limit of %llu",
                     name, (unsigned long long)minimum_bytes, (unsigned long long)limit_bytes);
}

int pllm_budget_join(pllm_budget *budget, const char *name, uint64_t minimum_bytes,
                     uint64_t limit_bytes, pllm_budget_member **member_out)
{
    *member_out = NULL;
    int status = check_minimum(name, minimum_bytes, limit_bytes);
    if (status < 0) return status;
    pllm_budget_member *member = pllm_alloc(budget->context, sizeof *member);
    if (!member) return pllm_fail_memory("a budget's member", sizeof *member);
    member->budget = budget;
    member->minimum_bytes = minimum_bytes;
    member->limit_bytes = limit_bytes;
    member->name = pllm_strdup(budget->context, name);
    if (!member->name) {
        pllm_free(budget->context, member);
        return pllm_fail_memory("a budget member's name", 0);
    }
    pthread_mutex_lock(&budget->lock);
    if (minimum_fits(budget, budget->minimum_bytes, minimum_bytes)) {
        budget->minimum_bytes += minimum_bytes;
        budget->held_bytes += minimum_bytes;
        budget->member_count++;
        member->next = budget->members;
        budget->members = member;
    } else {
        budget->refused_count++;
        status = PLLM_ENODEVMEM;
    }
    pthread_mutex_unlock(&budget->lock);
    if (status < 0) {
        pllm_free(budget->context, member->name);
        pllm_free(budget->context, member);
        return status;
    }
    *member_out = member;
    return PLLM_OK;
}

void pllm_budget_leave(pllm_budget_member *member)
{
    if (!member) return;
    pllm_budget *budget = member->budget;
    pthread_mutex_lock(&budget->lock);
    assert(member->charged_bytes == 0);
    pllm_budget_member **link = &budget->members;
    while (*link != member) link = &(*link)->next;
    *link = member->next;
    budget->minimum_bytes -= member->minimum_bytes;
    budget->held_bytes -= member->minimum_bytes;
    budget->member_count--;
    pthread_mutex_unlock(&budget->lock);
    pllm_free(budget->context, member->name);
    pllm_free(budget->context, member);
}

static int64_t rank(const pllm_budget_member *member, uint64_t bytes)
{
    uint64_t room = member->minimum_bytes > member->charged_bytes
                        ? member->minimum_bytes - member->charged_bytes
                        : 0;
    return bytes <= room ? INT64_MAX : member->priority;
}

/* What others wait for who come before the member. */
static uint64_t claimed_before(const pllm_budget *budget, const pllm_budget_member *member)
{
    uint64_t bytes = 0;
    for (const pllm_budget_claim *claim = budget->claims; claim; claim = claim->next)
        if (claim->member != member && rank(claim->member, claim->bytes) > member->priority &&
            __builtin_add_overflow(bytes, claim->bytes, &bytes))
            bytes = UINT64_MAX;
    return bytes;
}

static int charge_here(pllm_budget_member *member, uint64_t bytes)
{
    pllm_budget *budget = member->budget;
    if (member->charged_bytes > member->limit_bytes ||
        bytes > member->limit_bytes - member->charged_bytes ||
        budget->charged_bytes > budget->limit_bytes ||
        bytes > budget->limit_bytes - budget->charged_bytes)
        return PLLM_ENODEVMEM;
    uint64_t charged = member->charged_bytes + bytes;
    uint64_t growth = most(charged, member->minimum_bytes) - held(member);
    /* Inside its own minimum a member takes nothing that others could have: it may charge even
     * while they hold too much (the limit was lowered, or someone joined). */
    if (growth > 0) {
        uint64_t claimed = budget->claims ? claimed_before(budget, member) : 0;
        if (budget->held_bytes > budget->limit_bytes ||
            claimed > budget->limit_bytes - budget->held_bytes ||
            growth > budget->limit_bytes - budget->held_bytes - claimed)
            return PLLM_ENODEVMEM;
    }
    member->charged_bytes = charged;
    budget->held_bytes += growth;
    budget->charged_bytes += bytes;
    return PLLM_OK;
}

static void credit_here(pllm_budget_member *member, uint64_t bytes)
{
    pllm_budget *budget = member->budget;
    assert(bytes <= member->charged_bytes);
    uint64_t before = held(member);
    member->charged_bytes -= bytes;
    budget->charged_bytes -= bytes;
    budget->held_bytes -= before - held(member);
}

static int charge(pllm_budget_member *member, uint64_t bytes, uint64_t carried_max)
{
    pllm_budget *budget = member->budget;
    if (bytes == 0) return PLLM_OK; /* who is over may still map what it keeps */
    pthread_mutex_lock(&budget->lock);
    int status = charge_here(member, bytes);
    uint64_t carried = budget->carried_bytes < carried_max ? budget->carried_bytes : carried_max;
    if (status == PLLM_OK && budget->ledger) {
        budget->carried_bytes -= carried;
        pthread_mutex_unlock(&budget->lock);
        if (bytes > carried) status = pllm_ledger_charge(budget->ledger, bytes - carried);
        pthread_mutex_lock(&budget->lock);
        if (status < 0) {
            credit_here(member, bytes);
            budget->carried_bytes += carried;
        }
    }
    budget->refused_count += status < 0;
    budget->peak_bytes =
        status < 0 ? budget->peak_bytes : most(budget->peak_bytes, budget->charged_bytes);
    pthread_mutex_unlock(&budget->lock);
    return status;
}

int pllm_budget_charge(pllm_budget_member *member, uint64_t bytes)
{
    return charge(member, bytes, 0);
}

int pllm_budget_charge_carried(pllm_budget_member *member, uint64_t bytes)
{
    return charge(member, bytes, bytes);
}

void pllm_budget_credit(pllm_budget_member *member, uint64_t bytes)
{
    pllm_budget *budget = member->budget;
    if (budget->ledger && bytes) pllm_ledger_credit(budget->ledger, bytes);
    pthread_mutex_lock(&budget->lock);
    credit_here(member, bytes);
    pthread_mutex_unlock(&budget->lock);
}

int pllm_budget_set_limit(pllm_budget *budget, uint64_t limit_bytes)
{
    int status = PLLM_OK;
    pthread_mutex_lock(&budget->lock);
    if (budget->minimum_bytes <= limit_bytes)
        budget->limit_bytes = limit_bytes;
    else
        status = PLLM_ENODEVMEM;
    pthread_mutex_unlock(&budget->lock);
    return status;
}

int pllm_budget_member_set(pllm_budget_member *member, uint64_t minimum_bytes, uint64_t limit_bytes)
{
    pllm_budget *budget = member->budget;
    int status = check_minimum(member->name, minimum_bytes, limit_bytes);
    if (status < 0) return status;
    pthread_mutex_lock(&budget->lock);
    uint64_t others = budget->minimum_bytes - member->minimum_bytes;
    if (minimum_fits(budget, others, minimum_bytes)) {
        budget->held_bytes -= held(member);
        member->minimum_bytes = minimum_bytes;
        member->limit_bytes = limit_bytes;
        budget->held_bytes += held(member);
        budget->minimum_bytes = others + minimum_bytes;
    } else {
        status = PLLM_ENODEVMEM;
    }
    pthread_mutex_unlock(&budget->lock);
    return status;
}

uint64_t pllm_budget_excess(const pllm_budget_member *member)
{
    pllm_budget *budget = member->budget;
    pthread_mutex_lock(&budget->lock);
    uint64_t excess = 0;
    if (member->charged_bytes > member->limit_bytes)
        excess = member->charged_bytes - member->limit_bytes;
    uint64_t over = budget->ledger ? pllm_ledger_asked(budget->ledger) : 0;
    if (budget->held_bytes > budget->limit_bytes)
        over = most(over, budget->held_bytes - budget->limit_bytes);
    if (over > 0 && member->charged_bytes > member->minimum_bytes) {
        /* Each member that is above its minimum returns its share, rounded up, so that together
         * they return enough and no one is emptied for the others. */
        uint64_t above = budget->held_bytes - budget->minimum_bytes;
        uint64_t mine = member->charged_bytes - member->minimum_bytes;
        if (over > above) over = above; /* the ledger asks for more than there is */
        unsigned __int128 product = (unsigned __int128)over * mine;
        excess = most(excess, (uint64_t)((product + above - 1) / above));
    }
    pthread_mutex_unlock(&budget->lock);
    return excess;
}

uint64_t pllm_budget_charged(const pllm_budget_member *member)
{
    pthread_mutex_lock(&member->budget->lock);
    uint64_t charged = member->charged_bytes;
    pthread_mutex_unlock(&member->budget->lock);
    return charged;
}

uint64_t pllm_budget_loan(pllm_budget *budget)
{
    pthread_mutex_lock(&budget->lock);
    uint64_t bytes = budget->held_bytes - budget->minimum_bytes;
    pthread_mutex_unlock(&budget->lock);
    return bytes;
}

uint64_t pllm_budget_over(pllm_budget *budget)
{
    pthread_mutex_lock(&budget->lock);
    uint64_t bytes =
        budget->held_bytes > budget->limit_bytes ? budget->held_bytes - budget->limit_bytes : 0;
    pthread_mutex_unlock(&budget->lock);
    return bytes;
}

uint64_t pllm_budget_member_over(const pllm_budget_member *member)
{
    pthread_mutex_lock(&member->budget->lock);
    uint64_t bytes = member->charged_bytes > member->limit_bytes
                         ? member->charged_bytes - member->limit_bytes
                         : 0;
    pthread_mutex_unlock(&member->budget->lock);
    return bytes;
}

uint64_t pllm_budget_member_loan(const pllm_budget_member *member, uint64_t floor_bytes)
{
    pthread_mutex_lock(&member->budget->lock);
    uint64_t floor = most(member->minimum_bytes, floor_bytes);
    uint64_t bytes = member->charged_bytes > floor ? member->charged_bytes - floor : 0;
    pthread_mutex_unlock(&member->budget->lock);
    return bytes;
}

/* ---- waiting for others ---- */

void pllm_budget_member_priority(pllm_budget_member *member, int32_t priority)
{
    pthread_mutex_lock(&member->budget->lock);
    member->priority = priority;
    pthread_mutex_unlock(&member->budget->lock);
}

void pllm_budget_claim_make(pllm_budget_claim *claim, pllm_budget_member *member, uint64_t bytes)
{
    pllm_budget *budget = member->budget;
    pthread_mutex_lock(&budget->lock);
    *claim = (pllm_budget_claim){.next = budget->claims, .member = member, .bytes = bytes};
    budget->claims = claim;
    pthread_mutex_unlock(&budget->lock);
}

void pllm_budget_unclaim(pllm_budget_claim *claim)
{
    if (!claim->member) return;
    pllm_budget *budget = claim->member->budget;
    pthread_mutex_lock(&budget->lock);
    pllm_budget_claim **link = &budget->claims;
    while (*link != claim) link = &(*link)->next;
    *link = claim->next;
    pthread_mutex_unlock(&budget->lock);
    claim->member = NULL;
}

uint64_t pllm_budget_short(const pllm_budget_member *member, uint64_t bytes)
{
    typedef unsigned __int128 wide; /* sums of bytes */
    const pllm_budget *budget = member->budget;
    pthread_mutex_lock(&member->budget->lock);
    wide charged = (wide)member->charged_bytes + bytes, all = (wide)budget->charged_bytes + bytes;
    wide held_then = budget->held_bytes - held(member);
    held_then += charged > member->minimum_bytes ? charged : member->minimum_bytes;
    if (charged > held(member)) {
        held_then += claimed_before(budget, member);
        if (held_then > all) all = held_then;
    }
    wide missing = all > budget->limit_bytes ? all - budget->limit_bytes : 0;
    pthread_mutex_unlock(&member->budget->lock);
    return missing > UINT64_MAX ? UINT64_MAX : (uint64_t)missing;
}

int pllm_budget_is_minimum(const pllm_budget_member *member, uint64_t bytes)
{
    pthread_mutex_lock(&member->budget->lock);
    int is = rank(member, bytes) == INT64_MAX;
    pthread_mutex_unlock(&member->budget->lock);
    return is;
}

void pllm_budget_stats_get(const pllm_budget *budget, pllm_budget_stats *stats_out)
{
    pthread_mutex_t *lock = (pthread_mutex_t *)&budget->lock;
    uint64_t room = budget->ledger ? pllm_ledger_room(budget->ledger) : UINT64_MAX;
    pthread_mutex_lock(lock);
    uint64_t limit = budget->limit_bytes;
    if (room < UINT64_MAX - budget->charged_bytes && budget->charged_bytes + room < limit)
        limit = budget->charged_bytes + room;
    *stats_out = (pllm_budget_stats){
        .limit_bytes = limit,
        .charged_bytes = budget->charged_bytes,
        .peak_bytes = budget->peak_bytes,
        .refused_count = budget->refused_count,
        .member_count = budget->member_count,
    };
    pthread_mutex_unlock(lock);
}
