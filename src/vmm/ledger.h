/* ledger.h - the ledger's shared file, for the library's own parts and for tests. What there is for
 * everybody is in <pagedllm/ledger.h>. */
#ifndef PLLM_VMM_LEDGER_H
#define PLLM_VMM_LEDGER_H

#include <pagedllm/ledger.h>
#include "vmm/ledger_core.h"

/* Where a ledger of this name lies. EINVAL: the name. */
int pllm_ledger_path(const char *name, char *path, uint64_t path_bytes);
/* The process as it is now; ENOTFOUND where there is none, or only its remains. */
int pllm_ledger_process_find(int32_t pid, pllm_ledger_process *process_out);

/* The shared state, locked until unlock: for tests, which look or do mischief. */
pllm_ledger_core *pllm_ledger_lock(pllm_ledger *ledger);
void pllm_ledger_unlock(pllm_ledger *ledger);
uint32_t pllm_ledger_member_row(const pllm_ledger_member *member);

/* pllm_ledger_hold for who knows a process by pid and start time, and what all holders map
 * together: union_bytes, each byte once; 0: not known. ELIMIT. */
int pllm_ledger_member_hold(pllm_ledger_member *member, const pllm_ledger_process *process,
                            uint64_t bytes, uint64_t union_bytes);
/* What it has charged, and the sum over those who map it, shared bytes for each. */
void pllm_ledger_member_figures(const pllm_ledger_member *member, uint64_t *charged_out,
                                uint64_t *mapped_out);

#endif
