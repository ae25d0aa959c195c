/* share.h - a part of the library that shares a ledger: its member there, and the gate between its
 * callers' thread and the one that is asked to give back.
 *
 * An engine or a memory takes one caller at a time. Its share makes the library's own thread a
 * second one: whoever uses it goes through the gate. When the ledger asks, and nobody is inside,
 * the share's thread gives back at once, with the owner's give_back; otherwise it promises what is
 * on loan, and who is inside gives back as it leaves. Threads: enter and leave from any; the gate
 * may be entered again by who is inside. NULL is a share with nobody: enter and leave do nothing.
 */
#ifndef PLLM_VMM_SHARE_H
#define PLLM_VMM_SHARE_H

#include "vmm/budget.h"

typedef struct pllm_share pllm_share;

typedef struct pllm_share_options {
    uint32_t struct_bytes;
    int32_t priority;
    const char *ledger; /* its name */
    const char *name;   /* of the member; NULL: by pid */
    uint64_t ledger_limit_bytes, minimum_bytes;
    /* Inside the gate, by any thread: gives back what the budget's members show as excess, as far
     * as that goes without the caller's help. */
    void (*give_back)(void *user);
    void *user;
} pllm_share_options;

/* The gate is closed until the first leave: what is opened is not whole yet. Errors as
 * pllm_ledger_open and pllm_ledger_join. */
int pllm_share_open(const pllm_context *context, const pllm_share_options *options,
                    pllm_share **share_out);
void pllm_share_close(pllm_share *share); /* nothing is charged; outside or inside the gate */
/* From now on budget's members are asked; budget outlives the share, or is detached before. */
void pllm_share_attach(pllm_share *share, pllm_budget *budget);
void pllm_share_detach(pllm_share *share);
pllm_ledger_member *pllm_share_member(const pllm_share *share);
/* The most that this member could ever hold, others keeping their minimums. */
uint64_t pllm_share_ceiling(const pllm_share *share);
/* A larger minimum, or ENODEVMEM with a sentence. */
int pllm_share_minimum(pllm_share *share, uint64_t bytes);

void pllm_share_enter(pllm_share *share);
void pllm_share_leave(pllm_share *share);
/* Inside, where it is safe: gives back what is asked. */
void pllm_share_poll(pllm_share *share);

#endif
