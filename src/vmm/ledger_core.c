/* ledger_core.c - see ledger_core.h for the picture, the lives and the invariants.
 *
 * Dying halfway. Whoever changes a row may be killed after any store, and the next to lock the
 * ledger calls recover. So each operation has one store (put) that makes it true, and what follows
 * from it can be computed again: sums from rows, an orphan's charge from its holders; a HALF row is
 * cleared. put keeps the compiler from moving stores across it; of a killed process the others see
 * the stores up to some point of its program, and none after.
 *
 * Planning. Who gives back is decided for all claims together and from nothing but the present:
 * first what is too much since a limit was lowered, then claim by claim, the highest priority first
 * and of equals the oldest, taking from the lowest members first and of equals from who has most on
 * loan. A claim that even all of them could not meet fails then and there, and takes nothing. */
#include <pagedllm/status.h>
#include <string.h>
#include "vmm/ledger_core.h"

/* A member that let a deadline pass is not asked again for this long, and has this long to come
 * down to a limit that was lowered. */
#define PATIENCE_NS ((uint64_t)1000000000)
#define ANY_PRIORITY INT64_MAX

static void put64(uint64_t *field, uint64_t value)
{
    __atomic_store_n(field, value, __ATOMIC_RELEASE);
}

static void put32(uint32_t *field, uint32_t value)
{
    __atomic_store_n(field, value, __ATOMIC_RELEASE);
}

static uint64_t most(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint64_t above(uint64_t a, uint64_t b) /* a - b, or nothing */
{
    return a > b ? a - b : 0;
}

static uint64_t sum_capped(uint64_t a, uint64_t b)
{
    return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

static uint64_t held(const pllm_ledger_row *row)
{
    return most(row->charged_bytes, row->minimum_bytes);
}

static int is_process(const pllm_ledger_process *a, const pllm_ledger_process *b)
{
    return a->pid != 0 && a->pid == b->pid && a->start == b->start;
}

/* ---- sums ---- */

static void sums_make(pllm_ledger_core *core)
{
    core->held_bytes = core->charged_bytes = core->minimum_bytes = 0;
    for (uint32_t i = 0; i < PLLM_LEDGER_ROWS; i++) {
        core->held_bytes += held(&core->rows[i]);
        core->charged_bytes += core->rows[i].charged_bytes;
        core->minimum_bytes += core->rows[i].minimum_bytes;
    }
    core->claim_count = 0;
    for (uint32_t i = 0; i < PLLM_LEDGER_CLAIMS; i++)
        core->claim_count += core->claims[i].kind != PLLM_LEDGER_CLAIM_NONE;
}

static void charged_set(pllm_ledger_core *core, pllm_ledger_row *row, uint64_t bytes)
{
    uint64_t held_before = held(row), before = row->charged_bytes;
    put64(&row->charged_bytes, bytes);
    core->held_bytes += held(row) - held_before; /* modulo 2^64, as the next */
    core->charged_bytes += bytes - before;
    core->peak_bytes = most(core->peak_bytes, core->charged_bytes);
}

static void minimum_set(pllm_ledger_core *core, pllm_ledger_row *row, uint64_t bytes)
{
    uint64_t held_before = held(row), before = row->minimum_bytes;
    put64(&row->minimum_bytes, bytes);
    core->held_bytes += held(row) - held_before;
    core->minimum_bytes += bytes - before;
}

/* ---- rows that come and go ---- */

/* charged and minimum last of all to become something, first to become nothing: a FREE or HALF row
 * counts nothing. */
static void row_clear(pllm_ledger_core *core, uint32_t index)
{
    pllm_ledger_row *row = &core->rows[index];
    put32(&row->state, PLLM_LEDGER_HALF);
    for (uint32_t i = 0; i < PLLM_LEDGER_HOLDERS; i++)
        if (core->holders[i].bytes && core->holders[i].row == index)
            put64(&core->holders[i].bytes, 0);
    for (uint32_t i = 0; i < PLLM_LEDGER_CLAIMS; i++)
        if (core->claims[i].kind != PLLM_LEDGER_CLAIM_NONE && core->claims[i].row == index)
            put32(&core->claims[i].kind, PLLM_LEDGER_CLAIM_NONE);
    uint32_t generation = row->generation + 1;
    memset((char *)row + sizeof row->state, 0, sizeof *row - sizeof row->state);
    row->generation = generation;
    put32(&row->state, PLLM_LEDGER_FREE);
    sums_make(core);
}

uint64_t pllm_ledger_core_mapped(const pllm_ledger_core *core, uint32_t index)
{
    uint64_t bytes = core->rows[index].others_bytes;
    for (uint32_t i = 0; i < PLLM_LEDGER_HOLDERS; i++)
        if (core->holders[i].bytes && core->holders[i].row == index)
            bytes = sum_capped(bytes, core->holders[i].bytes);
    return bytes;
}

/* Two holders may map the same chunk, so their sum may be too much; it is never too little, and it
 * ends when they do. A member that knows says what they map together. */
uint64_t pllm_ledger_core_held_by_others(const pllm_ledger_core *core, uint32_t index)
{
    const pllm_ledger_row *row = &core->rows[index];
    uint64_t bytes = least(row->charged_bytes, pllm_ledger_core_mapped(core, index));
    return row->union_bytes ? least(bytes, sum_capped(row->union_bytes, row->others_bytes)) : bytes;
}

/* An orphan keeps what others map. */
static void orphan_settle(pllm_ledger_core *core, uint32_t index)
{
    pllm_ledger_row *row = &core->rows[index];
    uint64_t kept = pllm_ledger_core_held_by_others(core, index);
    if (row->minimum_bytes) minimum_set(core, row, 0);
    put64(&row->asked_bytes, 0);
    row->gives_back = 0;
    if (kept == 0)
        row_clear(core, index);
    else if (kept < row->charged_bytes)
        charged_set(core, row, kept);
}

static void claim_free(pllm_ledger_core *core, pllm_ledger_claim *claim)
{
    put32(&claim->kind, PLLM_LEDGER_CLAIM_NONE);
    core->claim_count--;
    core->progress++; /* what it was to have first is free for others */
}

static void row_orphan(pllm_ledger_core *core, uint32_t index)
{
    put32(&core->rows[index].state, PLLM_LEDGER_ORPHAN);
    for (uint32_t i = 0; i < PLLM_LEDGER_CLAIMS; i++)
        if (core->claims[i].kind != PLLM_LEDGER_CLAIM_NONE && core->claims[i].row == index)
            claim_free(core, &core->claims[i]);
    orphan_settle(core, index);
    core->progress++;
}

void pllm_ledger_core_init(pllm_ledger_core *core, uint64_t limit_bytes)
{
    memset(core, 0, sizeof *core);
    core->limit_bytes = limit_bytes;
}

void pllm_ledger_core_recover(pllm_ledger_core *core, uint64_t now_ns)
{
    for (uint32_t i = 0; i < PLLM_LEDGER_ROWS; i++)
        if (core->rows[i].state == PLLM_LEDGER_HALF) row_clear(core, i);
    sums_make(core);
    for (uint32_t i = 0; i < PLLM_LEDGER_ROWS; i++)
        if (core->rows[i].state == PLLM_LEDGER_ORPHAN) row_orphan(core, i);
    for (uint32_t i = 0; i < PLLM_LEDGER_ROWS; i++) {
        pllm_ledger_row *row = &core->rows[i];
        put64(&row->asked_bytes,
              least(row->asked_bytes, above(row->charged_bytes, row->minimum_bytes)));
    }
    (void)pllm_ledger_core_plan(core, now_ns);
    core->progress++;
}

int pllm_ledger_core_find(const pllm_ledger_core *core, const char *name, int32_t pid)
{
    for (uint32_t i = 0; i < PLLM_LEDGER_ROWS; i++) {
        const pllm_ledger_row *row = &core->rows[i];
        if (row->state >= PLLM_LEDGER_LIVE && (pid == 0 || row->process.pid == pid) &&
            strncmp(row->name, name, sizeof row->name) == 0)
            return (int)i;
    }
    return -1;
}

int pllm_ledger_core_join(pllm_ledger_core *core, const pllm_ledger_entry *entry, uint32_t *row_out)
{
    int taken = pllm_ledger_core_find(core, entry->name, 0);
    pllm_ledger_row *row = taken >= 0 ? &core->rows[taken] : NULL;
    uint32_t index = taken >= 0 ? (uint32_t)taken : 0;
    if (row && !(entry->adopts && row->state == PLLM_LEDGER_ORPHAN &&
                 row->process.uid == entry->process.uid))
        return PLLM_EEXIST;
    while (!row && index < PLLM_LEDGER_ROWS)
        if (core->rows[index].state == PLLM_LEDGER_FREE)
            row = &core->rows[index];
        else
            index++;
    if (!row) return PLLM_ELIMIT;
    if (row->state == PLLM_LEDGER_FREE) put32(&row->state, PLLM_LEDGER_HALF);
    memcpy(row->name, entry->name, strnlen(entry->name, sizeof row->name - 1));
    row->process = entry->process;
    row->priority = entry->priority;
    row->gives_back = entry->gives_back;
    row->limit_bytes = most(entry->limit_bytes, row->charged_bytes);
    put32(&row->state, PLLM_LEDGER_LIVE);
    row->limit_bytes = entry->limit_bytes;
    *row_out = index;
    return PLLM_OK;
}

void pllm_ledger_core_leave(pllm_ledger_core *core, uint32_t index, uint64_t now_ns)
{
    row_orphan(core, index);
    (void)pllm_ledger_core_plan(core, now_ns);
}

/* ---- charging ---- */

/* Bytes that the row would hold more than now with `bytes` more charged. */
static uint64_t charge_growth(const pllm_ledger_row *row, uint64_t bytes)
{
    return most(sum_capped(row->charged_bytes, bytes), row->minimum_bytes) - held(row);
}

static uint64_t claim_growth(const pllm_ledger_core *core, const pllm_ledger_claim *claim)
{
    const pllm_ledger_row *row = &core->rows[claim->row];
    if (claim->kind == PLLM_LEDGER_CLAIM_BYTES) return charge_growth(row, claim->bytes);
    return above(claim->bytes, held(row));
}

static int64_t claim_rank(const pllm_ledger_claim *claim)
{
    return claim->kind == PLLM_LEDGER_CLAIM_MINIMUM ? ANY_PRIORITY : claim->priority;
}

/* What waiting claims of this rank and above, made before ticket, are to have first. */
static uint64_t claimed_ahead(const pllm_ledger_core *core, int64_t rank, uint64_t ticket)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; core->claim_count && i < PLLM_LEDGER_CLAIMS; i++) {
        const pllm_ledger_claim *claim = &core->claims[i];
        if (claim->kind == PLLM_LEDGER_CLAIM_NONE || claim->failed) continue;
        if (claim_rank(claim) > rank || (claim_rank(claim) == rank && claim->ticket < ticket))
            bytes = sum_capped(bytes, claim_growth(core, claim));
    }
    return bytes;
}

static int is_free(const pllm_ledger_core *core, uint64_t growth, int64_t rank, uint64_t ticket)
{
    if (growth == 0) return 1;
    if (core->held_bytes > core->limit_bytes) return 0;
    uint64_t room = core->limit_bytes - core->held_bytes;
    return growth <= above(room, claimed_ahead(core, rank, ticket));
}

static int within_own_limit(const pllm_ledger_row *row, uint64_t bytes)
{
    return row->charged_bytes <= row->limit_bytes && bytes <= row->limit_bytes - row->charged_bytes;
}

static int minimum_fits(const pllm_ledger_core *core, const pllm_ledger_row *row, uint64_t bytes)
{
    uint64_t others = core->minimum_bytes - row->minimum_bytes;
    return others <= core->limit_bytes && bytes <= core->limit_bytes - others;
}

static void charge_now(pllm_ledger_core *core, pllm_ledger_row *row, uint64_t bytes)
{
    charged_set(core, row, row->charged_bytes + bytes);
    row->charged_total_bytes += bytes;
}

int pllm_ledger_core_charge(pllm_ledger_core *core, uint32_t index, uint64_t bytes)
{
    pllm_ledger_row *row = &core->rows[index];
    if (bytes == 0) return PLLM_OK;
    if (!within_own_limit(row, bytes) ||
        !is_free(core, charge_growth(row, bytes), row->priority, UINT64_MAX))
        return PLLM_ENODEVMEM;
    charge_now(core, row, bytes);
    return PLLM_OK;
}

void pllm_ledger_core_credit(pllm_ledger_core *core, uint32_t index, uint64_t bytes)
{
    pllm_ledger_row *row = &core->rows[index];
    bytes = least(bytes, row->charged_bytes);
    charged_set(core, row, row->charged_bytes - bytes);
    row->credited_total_bytes += bytes;
    uint64_t given = least(row->asked_bytes, bytes);
    put64(&row->asked_bytes, row->asked_bytes - given);
    row->given_back_bytes += given;
    if (core->claim_count) core->progress++;
}

/* ---- who is asked ---- */

typedef struct ledger_plan {
    uint64_t now_ns;
    uint64_t take[PLLM_LEDGER_ROWS], deadline_ns[PLLM_LEDGER_ROWS];
} ledger_plan;

/* What the row can still be asked for. */
static uint64_t supply(const pllm_ledger_core *core, const ledger_plan *plan, uint32_t index)
{
    const pllm_ledger_row *row = &core->rows[index];
    if (row->state != PLLM_LEDGER_LIVE || !row->gives_back) return 0;
    if (row->charged_bytes <= row->minimum_bytes) return 0;
    uint64_t floor = most(row->minimum_bytes, pllm_ledger_core_held_by_others(core, index));
    if (plan->now_ns < row->floor_until_ns) floor = most(floor, row->floor_bytes);
    return above(above(row->charged_bytes, floor), plan->take[index]);
}

/* Takes up to bytes from rows below the priority, but not from `except`; returns what is missing.
 */
static uint64_t take(const pllm_ledger_core *core, ledger_plan *plan, uint64_t bytes,
                     int64_t below_priority, uint32_t except, uint64_t deadline_ns)
{
    while (bytes > 0) {
        uint32_t best = PLLM_LEDGER_ROWS;
        uint64_t best_supply = 0;
        for (uint32_t i = 0; i < PLLM_LEDGER_ROWS; i++) {
            if (core->rows[i].priority >= below_priority || i == except) continue;
            uint64_t there = supply(core, plan, i);
            if (there == 0) continue;
            int32_t priority = core->rows[i].priority;
            if (best < PLLM_LEDGER_ROWS &&
                (priority > core->rows[best].priority ||
                 (priority == core->rows[best].priority && there <= best_supply)))
                continue;
            best = i;
            best_supply = there;
        }
        if (best == PLLM_LEDGER_ROWS) break;
        uint64_t part = least(bytes, best_supply);
        plan->take[best] += part;
        plan->deadline_ns[best] = most(plan->deadline_ns[best], deadline_ns);
        bytes -= part;
    }
    return bytes;
}

static void plan_lowered(const pllm_ledger_core *core, ledger_plan *plan)
{
    uint64_t deadline_ns = sum_capped(plan->now_ns, PATIENCE_NS), found = 0;
    for (uint32_t i = 0; i < PLLM_LEDGER_ROWS; i++) {
        const pllm_ledger_row *row = &core->rows[i];
        uint64_t bytes = least(above(row->charged_bytes, row->limit_bytes), supply(core, plan, i));
        if (bytes == 0 || row->state != PLLM_LEDGER_LIVE) continue;
        plan->take[i] = bytes;
        plan->deadline_ns[i] = deadline_ns;
        found += bytes;
    }
    uint64_t over = above(core->held_bytes, core->limit_bytes);
    (void)take(core, plan, above(over, found), ANY_PRIORITY, PLLM_LEDGER_ROWS, deadline_ns);
}

/* The next claim in order, or PLLM_LEDGER_CLAIMS. */
static uint32_t claim_after(const pllm_ledger_core *core, int64_t rank, uint64_t ticket)
{
    uint32_t best = PLLM_LEDGER_CLAIMS;
    for (uint32_t i = 0; i < PLLM_LEDGER_CLAIMS; i++) {
        const pllm_ledger_claim *claim = &core->claims[i];
        if (claim->kind == PLLM_LEDGER_CLAIM_NONE || claim->failed) continue;
        int64_t mine = claim_rank(claim);
        if (mine > rank || (mine == rank && claim->ticket <= ticket)) continue;
        const pllm_ledger_claim *other = &core->claims[best % PLLM_LEDGER_CLAIMS];
        if (best == PLLM_LEDGER_CLAIMS || mine > claim_rank(other) ||
            (mine == claim_rank(other) && claim->ticket < other->ticket))
            best = i;
    }
    return best;
}

/* What is missing for each claim, in order, after what is free and what the plan brings so far. */
static int plan_claims(pllm_ledger_core *core, ledger_plan *plan)
{
    int failed = 0;
    uint64_t coming = 0, needed = core->held_bytes, ticket = 0;
    int64_t rank = ANY_PRIORITY;
    for (uint32_t i = 0; i < PLLM_LEDGER_ROWS; i++) coming += plan->take[i];
    for (;;) {
        uint32_t next = claim_after(core, rank, ticket);
        if (next == PLLM_LEDGER_CLAIMS) return failed;
        pllm_ledger_claim *claim = &core->claims[next];
        rank = claim_rank(claim);
        ticket = claim->ticket;
        uint64_t growth = claim_growth(core, claim);
        uint64_t wanted = sum_capped(needed, growth);
        uint64_t missing = above(wanted, sum_capped(core->limit_bytes, coming));
        ledger_plan before = *plan;
        if (growth && take(core, plan, missing, rank, claim->row, claim->deadline_ns) > 0) {
            *plan = before;
            claim->failed = failed = 1;
            continue;
        }
        if (growth) coming += missing;
        needed = wanted;
    }
}

int pllm_ledger_core_plan(pllm_ledger_core *core, uint64_t now_ns)
{
    ledger_plan plan = {.now_ns = now_ns};
    for (uint32_t i = 0; i < PLLM_LEDGER_ROWS; i++) {
        pllm_ledger_row *row = &core->rows[i];
        if (row->asked_bytes == 0 || now_ns < row->asked_deadline_ns) continue;
        row->floor_bytes = row->charged_bytes; /* it is late */
        row->floor_until_ns = sum_capped(now_ns, PATIENCE_NS);
        row->late_count++;
        put64(&row->asked_bytes, 0);
    }
    if (core->claim_count == 0 && core->held_bytes <= core->limit_bytes) {
        int over = 0;
        for (uint32_t i = 0; i < PLLM_LEDGER_ROWS; i++)
            over |= core->rows[i].asked_bytes > 0 ||
                    core->rows[i].charged_bytes > core->rows[i].limit_bytes;
        if (!over) return 0;
    }
    plan_lowered(core, &plan);
    int changed = plan_claims(core, &plan);
    if (changed) core->progress++;
    for (uint32_t i = 0; i < PLLM_LEDGER_ROWS; i++) {
        pllm_ledger_row *row = &core->rows[i];
        if (plan.take[i] > row->asked_bytes) {
            row->asked_deadline_ns = plan.deadline_ns[i];
            row->asked_count++;
            put32(&row->request, row->request + 1);
            changed = 1;
        }
        put64(&row->asked_bytes, plan.take[i]);
    }
    return changed;
}

void pllm_ledger_core_answer(pllm_ledger_core *core, uint32_t index, uint32_t request,
                             uint64_t bytes, uint64_t now_ns)
{
    pllm_ledger_row *row = &core->rows[index];
    if (request != row->request)
        return; /* it was asked for more since: that will be answered too */
    row->answered = request;
    if (bytes >= row->asked_bytes) return;
    row->floor_bytes = above(row->charged_bytes, bytes);
    row->floor_until_ns = row->asked_deadline_ns;
    put64(&row->asked_bytes, bytes);
    core->progress++;
    (void)pllm_ledger_core_plan(core, now_ns);
}

/* ---- claims ---- */

static pllm_ledger_claim *claim_find(pllm_ledger_core *core, uint64_t ticket)
{
    for (uint32_t i = 0; i < PLLM_LEDGER_CLAIMS; i++)
        if (core->claims[i].kind != PLLM_LEDGER_CLAIM_NONE && core->claims[i].ticket == ticket)
            return &core->claims[i];
    return NULL;
}

void pllm_ledger_core_unclaim(pllm_ledger_core *core, uint64_t ticket, uint64_t now_ns)
{
    pllm_ledger_claim *claim = claim_find(core, ticket);
    if (!claim) return;
    claim_free(core, claim);
    (void)pllm_ledger_core_plan(core, now_ns);
}

int pllm_ledger_core_poll(pllm_ledger_core *core, uint64_t ticket, uint64_t now_ns)
{
    pllm_ledger_claim *claim = claim_find(core, ticket);
    if (!claim) return PLLM_ENODEVMEM; /* its row went */
    pllm_ledger_row *row = &core->rows[claim->row];
    int by_minimum = claim->kind == PLLM_LEDGER_CLAIM_MINIMUM, status = PLLM_LEDGER_WAITS;
    int allowed = by_minimum
                      ? claim->bytes <= row->limit_bytes && minimum_fits(core, row, claim->bytes)
                      : within_own_limit(row, claim->bytes);
    if (allowed && is_free(core, claim_growth(core, claim), claim_rank(claim), claim->ticket)) {
        if (by_minimum)
            minimum_set(core, row, claim->bytes);
        else
            charge_now(core, row, claim->bytes);
        status = PLLM_OK;
    } else if (!allowed || claim->failed || now_ns >= claim->deadline_ns) {
        status = PLLM_ENODEVMEM;
    } else {
        (void)pllm_ledger_core_plan(core, now_ns);
        if (claim->failed) status = PLLM_ENODEVMEM;
    }
    if (status == PLLM_LEDGER_WAITS) return status;
    if (status < 0) row->refused_count++, core->refused_count++;
    claim_free(core, claim);
    (void)pllm_ledger_core_plan(core, now_ns);
    return status;
}

int pllm_ledger_core_claim(pllm_ledger_core *core, uint32_t row, pllm_ledger_claim_kind kind,
                           uint64_t bytes, const pllm_ledger_process *waiter, uint64_t now_ns,
                           uint64_t deadline_ns, uint64_t *claim_out)
{
    uint32_t index = 0;
    if (kind == PLLM_LEDGER_CLAIM_MINIMUM && bytes > core->rows[row].limit_bytes)
        return PLLM_EINVAL;
    while (index < PLLM_LEDGER_CLAIMS && core->claims[index].kind != PLLM_LEDGER_CLAIM_NONE)
        index++;
    if (index == PLLM_LEDGER_CLAIMS) {
        core->rows[row].refused_count++, core->refused_count++;
        return PLLM_ENODEVMEM;
    }
    core->claims[index] = (pllm_ledger_claim){.row = row,
                                              .priority = core->rows[row].priority,
                                              .waiter = *waiter,
                                              .bytes = bytes,
                                              .ticket = ++core->ticket,
                                              .deadline_ns = deadline_ns};
    put32(&core->claims[index].kind, kind);
    core->claim_count++;
    *claim_out = core->ticket;
    return pllm_ledger_core_poll(core, core->ticket, now_ns);
}

/* ---- live changes ---- */

int pllm_ledger_core_set_limit(pllm_ledger_core *core, uint64_t limit_bytes, uint64_t now_ns)
{
    if (core->minimum_bytes > limit_bytes) return PLLM_ENODEVMEM;
    put64(&core->limit_bytes, limit_bytes);
    core->progress++;
    (void)pllm_ledger_core_plan(core, now_ns);
    return PLLM_OK;
}

int pllm_ledger_core_set(pllm_ledger_core *core, uint32_t index, uint64_t minimum_bytes,
                         uint64_t limit_bytes, int32_t priority, uint64_t now_ns)
{
    pllm_ledger_row *row = &core->rows[index];
    if (minimum_bytes > limit_bytes) return PLLM_EINVAL;
    if (minimum_bytes > row->minimum_bytes &&
        (!minimum_fits(core, row, minimum_bytes) ||
         !is_free(core, above(minimum_bytes, held(row)), ANY_PRIORITY, UINT64_MAX)))
        return PLLM_ENODEVMEM;
    /* In an order that keeps minimum <= limit between the two. */
    if (minimum_bytes > row->limit_bytes) put64(&row->limit_bytes, limit_bytes);
    minimum_set(core, row, minimum_bytes);
    put64(&row->limit_bytes, limit_bytes);
    row->priority = priority;
    core->progress++;
    (void)pllm_ledger_core_plan(core, now_ns);
    return PLLM_OK;
}

/* ---- death, and what outlives it ---- */

void pllm_ledger_core_reap(pllm_ledger_core *core, const pllm_ledger_process *process,
                           uint64_t now_ns)
{
    for (uint32_t i = 0; i < PLLM_LEDGER_CLAIMS; i++) {
        pllm_ledger_claim *claim = &core->claims[i];
        if (claim->kind != PLLM_LEDGER_CLAIM_NONE && is_process(&claim->waiter, process))
            claim_free(core, claim);
    }
    for (uint32_t i = 0; i < PLLM_LEDGER_HOLDERS; i++) {
        pllm_ledger_holder *holder = &core->holders[i];
        if (!holder->bytes || !is_process(&holder->process, process)) continue;
        put64(&holder->bytes, 0);
        if (core->rows[holder->row].state == PLLM_LEDGER_ORPHAN) orphan_settle(core, holder->row);
        core->progress++;
    }
    for (uint32_t i = 0; i < PLLM_LEDGER_ROWS; i++)
        if (core->rows[i].state == PLLM_LEDGER_LIVE && is_process(&core->rows[i].process, process))
            row_orphan(core, i);
    (void)pllm_ledger_core_plan(core, now_ns);
}

int pllm_ledger_core_hold(pllm_ledger_core *core, uint32_t index,
                          const pllm_ledger_process *process, uint64_t bytes)
{
    pllm_ledger_holder *free_entry = NULL, *found = NULL;
    for (uint32_t i = 0; process && i < PLLM_LEDGER_HOLDERS && !found; i++) {
        pllm_ledger_holder *holder = &core->holders[i];
        if (!holder->bytes)
            free_entry = free_entry ? free_entry : holder;
        else if (holder->row == index && is_process(&holder->process, process))
            found = holder;
    }
    if (!process) {
        put64(&core->rows[index].others_bytes, bytes);
    } else if (found) {
        put64(&found->bytes, bytes);
    } else if (bytes) {
        if (!free_entry) return PLLM_ELIMIT;
        free_entry->process = *process;
        free_entry->row = index;
        put64(&free_entry->bytes, bytes);
    }
    if (core->rows[index].state == PLLM_LEDGER_ORPHAN) {
        orphan_settle(core, index);
        core->progress++;
    }
    return PLLM_OK;
}

uint64_t pllm_ledger_core_room(const pllm_ledger_core *core, uint32_t index, int with_reclaim,
                               uint64_t now_ns)
{
    const pllm_ledger_row *row = &core->rows[index];
    uint64_t bytes = above(core->limit_bytes, core->held_bytes);
    bytes = above(bytes, claimed_ahead(core, row->priority, UINT64_MAX));
    if (with_reclaim) {
        ledger_plan plan = {.now_ns = now_ns};
        for (uint32_t i = 0; i < PLLM_LEDGER_ROWS; i++)
            if (i != index && core->rows[i].priority < row->priority)
                bytes = sum_capped(bytes, supply(core, &plan, i));
    }
    bytes = sum_capped(bytes, above(row->minimum_bytes, row->charged_bytes));
    return least(bytes, above(row->limit_bytes, row->charged_bytes));
}

int pllm_ledger_core_check(const pllm_ledger_core *core)
{
    static const pllm_ledger_row empty;
    uint64_t held_bytes = 0, charged = 0, minimum = 0;
    for (uint32_t i = 0; i < PLLM_LEDGER_ROWS; i++) {
        const pllm_ledger_row *row = &core->rows[i];
        held_bytes += held(row);
        charged += row->charged_bytes;
        minimum += row->minimum_bytes;
        if (row->state != PLLM_LEDGER_FREE && row->minimum_bytes > row->limit_bytes) return 3;
        if (row->state == PLLM_LEDGER_FREE) {
            pllm_ledger_row copy = *row;
            copy.generation = 0;
            if (memcmp(&copy, &empty, sizeof copy) != 0) return 4;
        } else if (row->state != PLLM_LEDGER_LIVE && row->state != PLLM_LEDGER_ORPHAN) {
            return 4;
        }
        if (row->asked_bytes > above(row->charged_bytes, row->minimum_bytes)) return 6;
        if (row->name[sizeof row->name - 1] != '\0') return 4;
    }
    if (held_bytes != core->held_bytes || charged != core->charged_bytes ||
        minimum != core->minimum_bytes)
        return 1;
    if (minimum > core->limit_bytes) return 2;
    uint32_t claims = 0;
    for (uint32_t i = 0; i < PLLM_LEDGER_CLAIMS; i++) {
        const pllm_ledger_claim *claim = &core->claims[i];
        if (claim->kind == PLLM_LEDGER_CLAIM_NONE) continue;
        claims++;
        if (claim->kind > PLLM_LEDGER_CLAIM_MINIMUM || claim->row >= PLLM_LEDGER_ROWS ||
            core->rows[claim->row].state != PLLM_LEDGER_LIVE)
            return 7;
    }
    if (claims != core->claim_count) return 1;
    for (uint32_t i = 0; i < PLLM_LEDGER_HOLDERS; i++) {
        const pllm_ledger_holder *holder = &core->holders[i];
        if (holder->bytes &&
            (holder->row >= PLLM_LEDGER_ROWS || core->rows[holder->row].state == PLLM_LEDGER_FREE))
            return 8;
    }
    return 0;
}
