/* ledger_core.h - the rules of a limit that processes share, as a state machine over plain rows.
 *
 * No pointers, locks, clocks or system calls: the struct lies in shared memory (ledger.c), who
 * calls holds the ledger's lock, and time is an argument. Tests run it on a virtual clock.
 *
 *   limit |= A charged =|== B charged ==|- B's minimum, unused -|  free, less what is claimed  |
 *
 * A member holds the larger of its charge and its minimum; held_bytes is the sum of that. A charge
 * that grows it must leave held_bytes within the limit; one inside the member's own minimum always
 * succeeds. What is above a minimum is on loan: a claim, which is a charge that has to wait, makes
 * members of lower priority give back, the lowest first. A claim for a minimum, and a limit that
 * was lowered, ask everybody.
 *
 * Life of a row:   FREE -join-> HALF -> LIVE -leave-> HALF -> FREE
 *                  LIVE -died-> FREE, or ORPHAN while other processes map what it had charged
 *                  ORPHAN -the last of them went, or told-> FREE;  -joined again by name-> LIVE
 * Life of a claim: free -claim-> waits -poll: charged | failed | deadline-> free
 *
 * Invariants (pllm_ledger_core_check): 1. held_bytes and charged_bytes are the sums over rows;
 * 2. minimums fit in the limit; 3. minimum <= limit of every member; 4. rows that are FREE are zero
 * but for their generation; 5. a charge or a minimum never takes held_bytes beyond the limit: it is
 * above only after the limit was lowered, and then only falls; 6. nothing is asked below a minimum.
 * Whoever dies while changing a row leaves it so that pllm_ledger_core_recover makes all of this
 * true again: what an operation does to a row becomes true with one store, sums are computed anew.
 */
#ifndef PLLM_VMM_LEDGER_CORE_H
#define PLLM_VMM_LEDGER_CORE_H

#include <stdint.h>

enum {
    PLLM_LEDGER_ROWS = 64,
    PLLM_LEDGER_CLAIMS = 64,
    PLLM_LEDGER_HOLDERS = 256,
    PLLM_LEDGER_NAME_BYTES = 40, /* with the zero at its end */
    PLLM_LEDGER_WAITS = 1,       /* a claim was made, or goes on waiting */
};

typedef enum pllm_ledger_state {
    PLLM_LEDGER_FREE = 0,
    PLLM_LEDGER_HALF = 1, /* being filled or cleared: nobody's */
    PLLM_LEDGER_LIVE = 2,
    PLLM_LEDGER_ORPHAN = 3, /* its process is gone, others still map charged_bytes of it */
} pllm_ledger_state;

/* A process: a pid alone may be another's by now. start: field 22 of /proc/PID/stat. */
typedef struct pllm_ledger_process {
    uint64_t start;
    int32_t pid; /* 0: none */
    uint32_t uid;
} pllm_ledger_process;

typedef struct pllm_ledger_row {
    uint32_t state, generation; /* generation: counts the members that had this row */
    char name[PLLM_LEDGER_NAME_BYTES];
    pllm_ledger_process process;
    int32_t priority;
    uint32_t gives_back; /* 1: it can be asked */
    uint64_t minimum_bytes, limit_bytes, charged_bytes;
    uint64_t others_bytes;   /* mapped by processes that no holder names: charged until told */
    uint64_t union_bytes;    /* what holders map together, each byte once; 0: their sum */
    uint64_t reserved_bytes; /* address space, for people who look */

    /* Reclaim. request is a futex word: the member's thread sleeps on it. */
    uint32_t request, answered; /* number of the last request made, and answered */
    uint64_t asked_bytes;       /* to be given back yet */
    uint64_t asked_deadline_ns;
    uint64_t floor_bytes, floor_until_ns; /* it said, or showed, that it goes no lower for now */

    uint64_t charged_total_bytes, credited_total_bytes, refused_count; /* since it joined */
    uint64_t asked_count, given_back_bytes, late_count;
} pllm_ledger_row;

typedef enum pllm_ledger_claim_kind {
    PLLM_LEDGER_CLAIM_NONE = 0,
    PLLM_LEDGER_CLAIM_BYTES = 1,   /* to charge bytes */
    PLLM_LEDGER_CLAIM_MINIMUM = 2, /* to have bytes as minimum */
} pllm_ledger_claim_kind;

typedef struct pllm_ledger_claim {
    uint32_t kind, row, failed;
    int32_t priority;
    pllm_ledger_process waiter;
    uint64_t bytes, ticket, deadline_ns;
} pllm_ledger_claim;

/* A process that maps bytes of a row's memory, and is no member for that. */
typedef struct pllm_ledger_holder {
    uint64_t bytes; /* 0: the entry is free */
    pllm_ledger_process process;
    uint32_t row, reserved;
} pllm_ledger_holder;

typedef struct pllm_ledger_core {
    uint64_t limit_bytes;
    uint64_t held_bytes, charged_bytes, minimum_bytes; /* sums over rows */
    uint64_t peak_bytes, refused_count, ticket;
    uint32_t claim_count;
    uint32_t progress; /* futex word: bumped when a waiting claim should look again */
    pllm_ledger_row rows[PLLM_LEDGER_ROWS];
    pllm_ledger_claim claims[PLLM_LEDGER_CLAIMS];
    pllm_ledger_holder holders[PLLM_LEDGER_HOLDERS];
} pllm_ledger_core;

typedef struct pllm_ledger_entry { /* of a new member */
    const char *name;
    pllm_ledger_process process;
    int32_t priority;
    uint32_t gives_back, adopts; /* adopts: takes over an orphan of this name and user, with what
                                    others map of it charged */
    uint64_t limit_bytes;
} pllm_ledger_entry;

/* All return a pllm status without a sentence; row is an index, claim a number that never comes
 * again.
 * init: zeroed memory becomes an empty ledger. recover: after the death of who held the lock. */
void pllm_ledger_core_init(pllm_ledger_core *core, uint64_t limit_bytes);
void pllm_ledger_core_recover(pllm_ledger_core *core, uint64_t now_ns);
/* The first invariant that is broken, or 0. */
int pllm_ledger_core_check(const pllm_ledger_core *core);

/* A member with no minimum yet. EEXIST: the name is taken; ELIMIT: no row is free. */
int pllm_ledger_core_join(pllm_ledger_core *core, const pllm_ledger_entry *entry,
                          uint32_t *row_out);
/* With whatever is charged; what others map of it stays. */
void pllm_ledger_core_leave(pllm_ledger_core *core, uint32_t row, uint64_t now_ns);
/* OK, or ENODEVMEM and nothing changed. Asks nobody. */
int pllm_ledger_core_charge(pllm_ledger_core *core, uint32_t row, uint64_t bytes);
void pllm_ledger_core_credit(pllm_ledger_core *core, uint32_t row, uint64_t bytes);

/* What cannot be had at once but if others give back. OK: done; WAITS: *claim_out stands for it,
 * poll until it says something else; ENODEVMEM: not even then, or the deadline is now. EINVAL: a
 * minimum above the member's limit. waiter: the process that polls. */
int pllm_ledger_core_claim(pllm_ledger_core *core, uint32_t row, pllm_ledger_claim_kind kind,
                           uint64_t bytes, const pllm_ledger_process *waiter, uint64_t now_ns,
                           uint64_t deadline_ns, uint64_t *claim_out);
/* OK: it has what it claimed. ENODEVMEM: refused, or the deadline has passed. Both end it. */
int pllm_ledger_core_poll(pllm_ledger_core *core, uint64_t claim, uint64_t now_ns);
void pllm_ledger_core_unclaim(pllm_ledger_core *core, uint64_t claim, uint64_t now_ns);
/* A member's answer to its request: the bytes it has given back since, or will before the deadline.
 */
void pllm_ledger_core_answer(pllm_ledger_core *core, uint32_t row, uint32_t request, uint64_t bytes,
                             uint64_t now_ns);
/* Decides anew who is asked for how much. Returns 1 if a request was made or a claim failed. */
int pllm_ledger_core_plan(pllm_ledger_core *core, uint64_t now_ns);

/* Live changes. A minimum that grows is a claim, not a change. ENODEVMEM: minimums do not fit. */
int pllm_ledger_core_set_limit(pllm_ledger_core *core, uint64_t limit_bytes, uint64_t now_ns);
/* EINVAL: the minimum is above the limit. ENODEVMEM: the minimum grew and is not free. */
int pllm_ledger_core_set(pllm_ledger_core *core, uint32_t row, uint64_t minimum_bytes,
                         uint64_t limit_bytes, int32_t priority, uint64_t now_ns);

/* A process is gone: its row, claims and holdings. Others' maps of its memory stay charged. */
void pllm_ledger_core_reap(pllm_ledger_core *core, const pllm_ledger_process *process,
                           uint64_t now_ns);
/* process maps bytes of the row's memory (0: none any more); process NULL: somebody does, until
 * told. ELIMIT: no entry is free. */
int pllm_ledger_core_hold(pllm_ledger_core *core, uint32_t row, const pllm_ledger_process *process,
                          uint64_t bytes);
/* What of the row's charge others map; and the sum over those who map, shared bytes for each. */
uint64_t pllm_ledger_core_held_by_others(const pllm_ledger_core *core, uint32_t row);
uint64_t pllm_ledger_core_mapped(const pllm_ledger_core *core, uint32_t row);

/* What the row could charge now; with_reclaim: and if everybody gave back whom it may ask. */
uint64_t pllm_ledger_core_room(const pllm_ledger_core *core, uint32_t row, int with_reclaim,
                               uint64_t now_ns);
/* LIVE or ORPHAN row of that name (pid 0: any process), or -1. */
int pllm_ledger_core_find(const pllm_ledger_core *core, const char *name, int32_t pid);

#endif
