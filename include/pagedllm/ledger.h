/* ledger.h - one limit of device memory, shared by the processes of one user.
 *
 * A ledger is a file in shared memory (/dev/shm/pagedllm-UID-NAME, readable by its user alone). Its
 * members, in any number of processes, charge what they take of the device and credit what they
 * give back; together they never hold more than the ledger's limit. A member's minimum is its own,
 * charged or not: a charge inside it always succeeds. What a member holds above its minimum is on
 * loan: who asks for more than is free makes members of lower priority give back, the lowest first,
 * takes what they return, and is otherwise refused: at once where even all of them would not be
 * enough.
 *
 * An engine or a memory joins by the ledger_* fields of its options. This header is for programs
 * with device memory of their own, and for tools that look.
 *
 * Death. A member's process is known by its pid and start time. One that is gone is noticed by any
 * member that lives, within half a second, and by every call here that finds too little; its share
 * is free again, less what other processes still map of its memory (pllm_ledger_hold).
 * Nobody's death, at whatever instruction, leaves the ledger wrong or locked.
 *
 * Threads: all calls are safe from many threads, but for those that open and close. Handles are
 * invalid after fork(). Processes must see each other in /proc: a ledger belongs to one pid
 * namespace. */
#ifndef PAGEDLLM_LEDGER_H
#define PAGEDLLM_LEDGER_H

#include "context.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct pllm_ledger pllm_ledger;               /* opaque */
typedef struct pllm_ledger_member pllm_ledger_member; /* opaque */

#define PLLM_LEDGER_MEMBERS_MAX 64
#define PLLM_LEDGER_NAME_MAX 39 /* bytes of a member's name; a ledger's: 31 */

/* Opens the ledger of that name (letters, digits, '.', '_' and '-'; NULL: "default"), and makes it
 * with limit_bytes if there is none; where there is one its limit stays. limit_bytes 0: it must
 * exist. Ownership: borrows context (may be NULL); caller owns *ledger_out.
 * Errors: EINVAL (the name), ENOTFOUND, ENOMEM, EIO, EPERM (the file is not this user's alone),
 * ECORRUPT (it is no ledger, or its content contradicts itself), EUNSUPPORTED (another version, or
 * another pid namespace), EBUSY (its lock is held for seconds). */
PLLM_API int pllm_ledger_open(const pllm_context *context, const char *name, uint64_t limit_bytes,
                              pllm_ledger **ledger_out);
PLLM_API void pllm_ledger_close(pllm_ledger *ledger); /* its members have left; NULL is fine */
/* Takes the file away. ENOTFOUND; EBUSY: somebody is a member, or memory is still mapped. */
PLLM_API int pllm_ledger_remove(const pllm_context *context, const char *name);

typedef struct pllm_ledger_member_options {
    uint32_t struct_bytes;  /* sizeof(pllm_ledger_member_options) */
    int32_t priority;       /* higher may ask lower to give back */
    const char *name;       /* NULL: "pid-" and the pid; where it is taken, .2, .3... is appended */
    uint64_t minimum_bytes; /* its own at all times */
    uint64_t limit_bytes;   /* its own; 0: the ledger's alone */
    uint32_t wait_ms;       /* how long a charge waits for what others were asked for; 0: 500 */
    uint32_t adopt;         /* 1: takes over what a member of this name, now dead, left charged for
                               others that map it */
    /* Called on a thread of the library: give back about `bytes` (by pllm_ledger_credit, from any
     * thread) before deadline_ns of CLOCK_MONOTONIC. Returns how much of that it has given back by
     * now or will have by then; 0: nothing can go. Called again while it owes what it promised. It
     * may charge, but not leave. NULL: this member is never asked. */
    uint64_t (*reclaim)(void *user, uint64_t bytes, uint64_t deadline_ns);
    void *user;
} pllm_ledger_member_options;

/* Makes this process (once more) a member. Waits for the minimum as a charge does, but asks members
 * of any priority, since nobody else's loan is worth a minimum.
 * Errors: EINVAL, ENODEVMEM (the minimum cannot be had: the text says what is free), ELIMIT (as
 * many members as there can be), ENOMEM. */
PLLM_API int pllm_ledger_join(pllm_ledger *ledger, const pllm_ledger_member_options *options,
                              pllm_ledger_member **member_out);
/* Credits all that is charged, but for what others map. NULL is fine. */
PLLM_API void pllm_ledger_leave(pllm_ledger_member *member);
PLLM_API const char *pllm_ledger_member_name(const pllm_ledger_member *member);

/* All of bytes, or ENODEVMEM (bare) and nothing. Under a microsecond where there is room. */
PLLM_API int pllm_ledger_charge(pllm_ledger_member *member, uint64_t bytes);
PLLM_API void pllm_ledger_credit(pllm_ledger_member *member, uint64_t bytes);
/* What this member is asked to give back yet. Cheap: for polling where work can be interrupted. */
PLLM_API uint64_t pllm_ledger_asked(const pllm_ledger_member *member);
/* What it could charge now, others giving back what they can. */
PLLM_API uint64_t pllm_ledger_room(const pllm_ledger_member *member);
/* Address space that it has reserved: only shown to people. */
PLLM_API void pllm_ledger_set_reserved(pllm_ledger_member *member, uint64_t bytes);

/* Process pid maps bytes (0: none any more) of the memory that this member has charged. When the
 * member is gone they stay charged until that process is gone too. pid 0: unknown processes do;
 * then until told (by a later call here, or by adopting and leaving). A chunk that several
 * processes map counts for each, but never more than was charged. ELIMIT: 256 such processes are
 * known. ENOTFOUND: there is no such process. */
PLLM_API int pllm_ledger_hold(pllm_ledger_member *member, int32_t pid, uint64_t bytes);

/* Live changes to any member, by name. UINT64_MAX (INT32_MIN): as it is; limit 0: none of its own.
 * A limit below what is charged makes the member give back as far as it can; a minimum is waited
 * for as when joining. Errors: ENOTFOUND, EINVAL (minimum above limit), ENODEVMEM; the text says
 * why. */
typedef struct pllm_ledger_change {
    uint32_t struct_bytes;
    int32_t priority;
    uint64_t minimum_bytes, limit_bytes;
} pllm_ledger_change;
PLLM_API int pllm_ledger_set(pllm_ledger *ledger, const char *member_name,
                             const pllm_ledger_change *change);
/* The limit of the ledger. Below what is charged, everybody is asked to give back, and nothing
 * above a minimum can be charged until they have. ENODEVMEM: it is below the minimums together. */
PLLM_API int pllm_ledger_set_limit(pllm_ledger *ledger, uint64_t limit_bytes);

typedef struct pllm_ledger_member_info {
    char name[PLLM_LEDGER_NAME_MAX + 1];
    int32_t pid, priority;
    uint32_t alive; /* 0: its process is gone, and charged_bytes is what others map */
    uint32_t reserved;
    uint64_t reserved_bytes, charged_bytes, minimum_bytes, limit_bytes; /* limit UINT64_MAX: none */
    uint64_t held_by_others_bytes, asked_bytes;
    uint64_t charged_total_bytes, credited_total_bytes; /* since it joined: for rates */
    uint64_t asked_count, given_back_bytes, late_count, refused_count;
} pllm_ledger_member_info;

typedef struct pllm_ledger_totals {
    uint32_t struct_bytes; /* filled by the caller */
    uint32_t member_count;
    uint64_t limit_bytes, charged_bytes, peak_bytes, minimum_bytes;
    uint64_t held_bytes; /* the larger of charge and minimum, of all: what is not free */
    uint64_t refused_count;
} pllm_ledger_totals;

/* The ledger at one moment: at most member_max members in rows; totals_out may be NULL. Notices the
 * dead first. Returns how many rows were filled, or EINVAL. */
PLLM_API int pllm_ledger_list(pllm_ledger *ledger, pllm_ledger_member_info *rows,
                              uint32_t member_max, pllm_ledger_totals *totals_out);

#ifdef __cplusplus
}
#endif
#endif
