/* ledger_file.h - the shared file: made, opened and checked; its lock. For ledger.c alone. */
#ifndef PLLM_VMM_LEDGER_FILE_H
#define PLLM_VMM_LEDGER_FILE_H

#include <pthread.h>
#include "base/context.h"
#include "vmm/ledger_core.h"

/* Everything that processes share. The lock is robust: who gets it after its holder's death makes
 * the core true again first. */
typedef struct pllm_ledger_file {
    uint64_t magic;
    uint32_t version, file_bytes, row_bytes, lock_bytes;
    uint64_t pid_namespace; /* inode of /proc/self/ns/pid where it was made */
    uint64_t looked_ns;     /* when somebody last looked for the dead */
    pthread_mutex_t lock;
    pllm_ledger_core core;
} pllm_ledger_file;

/* limit_bytes 0: it must exist. Errors as pllm_ledger_open. */
int pllm_ledger_file_open(const char *name, uint64_t limit_bytes, pllm_ledger_file **file_out);
void pllm_ledger_file_close(pllm_ledger_file *file);
void pllm_ledger_file_lock(pllm_ledger_file *file);
void pllm_ledger_file_unlock(pllm_ledger_file *file);

#endif
