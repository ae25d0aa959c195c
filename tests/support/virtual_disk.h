/* virtual_disk.h - a disk in memory for tests: single-threaded, replays from its seed, finishes
 * requests in any order, and fails, tears or corrupts when told to. */
#ifndef PLLM_TESTS_VIRTUAL_DISK_H
#define PLLM_TESTS_VIRTUAL_DISK_H

#include "tier/disk.h"

typedef struct virtual_disk_options {
    uint64_t seed, bytes;
    uint32_t depth;          /* requests at once; 0: 8 */
    uint32_t delay_max;      /* polls a request may take */
    uint32_t read_failures;  /* of 1,000 reads: EIO */
    uint32_t write_failures; /* of 1,000 writes: EIO, half of it written */
    uint32_t corruptions;    /* of 1,000 reads: a bit is flipped for good */
    uint64_t fail_at; /* the call (submit or completion) with this number fails; if counted */
    uint32_t counted; /* fail_at is in force */
} virtual_disk_options;

int virtual_disk_open(const pllm_context *context, const virtual_disk_options *options,
                      pllm_disk **disk_out);
void virtual_disk_heal(pllm_disk *disk); /* no more failures */
/* Of an open disk; the counter may be given to outlive it. */
void virtual_disk_count_into(pllm_disk *disk, uint64_t *calls);

#endif
