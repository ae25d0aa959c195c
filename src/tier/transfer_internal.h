/* transfer_internal.h - the tables that transfer.c (tickets, queues, waiting) and transfer_run.c
 * (runs on streams and disk) share.
 *
 *   submit -> QUEUED in queue[lane][priority] --start--> RUNNING in a run --> OVER --> FREE
 *             BLOCKED behind an unfinished transfer of the same slot ^
 *
 * A request is one page's transfer; a run is what is in flight together: one batched copy, or one
 * disk read or write with the batched copy that goes before or after it.
 *
 *   lane IN     host slots ------------------copy--> frames
 *   lane OUT    frames ----------------------copy--> host slots
 *   lane READ   disk --read--> staging --verify--copy--> frames
 *   lane WRITE  frames --copy--> staging --seal--write--> disk
 *
 * Same slot, same order: transfers that touch one slot happen one after the other in the order of
 * submission, so a read behind a write sees what was written. If that write fails, so does the
 * read.
 *
 * Invariants (pllm_transfers_check): 1. Every request that is not FREE or OVER is in the bucket of
 * its slot, newest first. 2. A QUEUED request is in exactly one queue; a RUNNING one in one run;
 * a BLOCKED one waits for an older one of the same slot. 3. pending counts QUEUED, BLOCKED and
 * RUNNING. 4. Staging pages taken = the sum over disk runs; reading_bytes = that of the reads that
 * the disk has or is to have. */
#ifndef PLLM_TIER_TRANSFER_INTERNAL_H
#define PLLM_TIER_TRANSFER_INTERNAL_H

#include "tier/transfer.h"

enum { LANE_IN, LANE_OUT, LANE_READ, LANE_WRITE, LANE_COUNT };
enum { PRIORITY_COUNT = 3, RECORD_BLOCK = 1024, COPY_PAGES_MAX = 64 };

static inline int lane_is_disk(uint32_t lane)
{
    return lane >= LANE_READ;
}

typedef enum request_state {
    REQUEST_FREE,
    REQUEST_BLOCKED,
    REQUEST_QUEUED,
    REQUEST_RUNNING,
    REQUEST_OVER
} request_state;

typedef struct transfer_request {
    uint32_t generation;
    uint8_t state, lane, priority;
    uint8_t solo;      /* its merged run failed: it is tried once more, alone */
    uint8_t released;  /* nobody will ask: forget it when over */
    uint8_t inherited; /* failed because what it waited for did */
    uint32_t slot, bytes;
    pllm_va va; /* of the frame, or the caller's own */
    uint64_t tag;
    uint32_t next, prev; /* in a queue; next alone: in a run, or among the free */
    uint32_t chain;      /* older request in the same bucket */
    uint32_t waits_on;
    int32_t status, native;
} transfer_request;

typedef struct request_list {
    uint32_t first, last;
} request_list;

typedef enum run_phase { RUN_FREE, RUN_COPYING, RUN_TO_DISK, RUN_ON_DISK } run_phase;

typedef struct transfer_run {
    uint8_t phase, lane, priority;
    uint32_t first, last, count;     /* requests, ascending by slot on the disk lanes */
    uint32_t staging, staging_count; /* pages; PLLM_NONE on the host lanes */
    uint32_t slot;                   /* disk lanes: the lowest */
    uint32_t next;                   /* in a stream's or the disk's list, or among the free */
    uint64_t copy_bytes;
    pllm_event *event;
} transfer_run;

typedef struct run_list {
    uint32_t first, last;
} run_list;

typedef struct copy_stream {
    pllm_copy_kind kind;
    pllm_stream *stream; /* NULL after a failed reopening; opened again at the next use */
    run_list runs;       /* in flight, in order */
    uint64_t bytes;      /* in flight */
} copy_stream;

/* What is known of one disk slot: generation 0 says that nothing valid is there. */
typedef struct slot_record {
    uint64_t checksum;
    uint32_t generation, valid;
} slot_record;

struct pllm_transfers {
    const pllm_context *context;
    pllm_tiers *tiers;
    pllm_device *device;
    pllm_disk *disk; /* NULL: none */
    uint64_t page_bytes, fingerprint;
    uint32_t format;

    transfer_request *requests;
    uint32_t request_max, free_first, pending;
    request_list queues[LANE_COUNT][PRIORITY_COUNT];
    uint32_t *buckets, bucket_mask;

    transfer_run *runs;
    uint32_t run_max, run_free, disk_run_max, disk_runs; /* disk_runs: now, on the disk lanes */
    copy_stream streams[2];                              /* by LANE_IN, LANE_OUT */
    run_list to_disk;
    uint32_t on_disk;
    uint64_t reading_bytes; /* of reads in to_disk and on disk */
    int disk_dead;          /* the backend itself failed: its status */
    int disk_dead_native;
    uint32_t orphans;     /* requests that it had then: failed here, maybe still moving there */
    uint32_t write_first; /* whose turn it is at equal priority */
    pllm_copy *copies;    /* scratch for one call */
    uint32_t copy_max;

    char *staging;
    uint8_t *staging_taken;
    uint32_t staging_pages, staging_used, extent_pages;
    slot_record **records; /* blocks of RECORD_BLOCK, made at the first write */
    uint32_t record_blocks;

    uint32_t finished; /* since the poll began */
    pllm_transfers_stats stats;
};

/* transfer.c */
void pllm_transfer_finish(pllm_transfers *transfers, uint32_t index, int status, int native);
void pllm_transfer_enqueue(pllm_transfers *transfers, uint32_t index, int at_front);
void pllm_transfer_dequeue(pllm_transfers *transfers, uint32_t index);
/* A queued request of this lane and priority for this slot that may be merged, or PLLM_NONE. */
uint32_t pllm_transfer_find(const pllm_transfers *transfers, uint32_t lane, uint32_t priority,
                            uint32_t slot);
slot_record *pllm_transfer_record(const pllm_transfers *transfers, uint32_t slot);

/* transfer_run.c */
int pllm_runs_open(pllm_transfers *transfers);
void pllm_runs_close(pllm_transfers *transfers);
void pllm_runs_reap(pllm_transfers *transfers);  /* what has finished */
void pllm_runs_start(pllm_transfers *transfers); /* what may start */
int pllm_runs_active(const pllm_transfers *transfers);
/* Sleeps until something in flight may have finished, timeout_ns at most. 1: the time was used up.
 */
int pllm_runs_wait(pllm_transfers *transfers, uint64_t timeout_ns);

#endif
