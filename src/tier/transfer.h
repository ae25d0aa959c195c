/* transfer.h - moves pages between tiers, asynchronously, and says when each has arrived.
 *
 * A state machine that advances only in poll and wait; threads belong to the device's streams and
 * the disk backend. Lanes: DMA in (host to device), DMA out, disk. Pages between disk and device
 * pass through staging extents of host memory (at least 1 MiB each), where their checksum is
 * written or verified. Queued transfers of one lane run by priority, then in order of submission;
 * neighbours (consecutive slots of one place) are merged into one read, write or batched copy.
 *
 * Every page that goes to disk gets a header {magic, version, fingerprint, format, tag, bytes,
 * generation} and an XXH3 checksum over header and bytes; a page read back that does not match
 * completes with ECORRUPT and its frame's content is not to be used. (The spill file dies with the
 * process, so headers live in a table beside the slots, not among the data, and reads stay
 * aligned.)
 *
 * Transfers that touch the same slot happen one after the other, in order of submission, whatever
 * their priorities (an urgent one hurries those before it): a read behind a write sees what was
 * written, and fails if that write fails. Transfers that share a frame are the caller's business.
 *
 * When a merged read or write fails, its pages are tried once more one by one, so that a bad sector
 * costs the pages on it and no others.
 *
 * A ticket names a transfer and its generation: asking about one that is over and forgotten is
 * ESTALE, never another transfer's answer. Tickets are forgotten by pllm_transfer_release.
 * Ownership of frames and slots stays with the caller, who must not free them in between.
 * Threads: one caller at a time. */
#ifndef PLLM_TIER_TRANSFER_H
#define PLLM_TIER_TRANSFER_H

#include "tier/tiers.h"

typedef struct pllm_transfers pllm_transfers;
typedef uint64_t pllm_ticket; /* 0: none */

typedef enum pllm_priority {
    PLLM_DEMAND = 0, /* somebody waits for it */
    PLLM_PREFETCH = 1,
    PLLM_WRITE_BEHIND = 2,
} pllm_priority;

typedef struct pllm_transfer {
    pllm_place from, to; /* one of them AT_DEVICE, the other AT_HOST or AT_DISK */
    uint32_t frame, slot;
    pllm_priority priority;
    uint64_t tag;   /* what the page is: bound into the checksum; equal on write and read */
    pllm_va va;     /* 0: the frame. Else the device's end, memory of the caller's own */
    uint32_t bytes; /* 0: a page. Else only its first bytes are moved; equal on write and read */
} pllm_transfer;

typedef struct pllm_transfers_options {
    uint32_t struct_bytes;
    uint32_t ticket_max;    /* transfers known at once; 0: 4096 */
    uint32_t staging_count; /* extents used at most, of those that tiers has; 0: all */
    uint64_t fingerprint;   /* of model and format: bound into every checksum */
    uint32_t format;        /* a pllm_dtype */
} pllm_transfers_options;

/* Borrows tiers. Errors: EINVAL, ENOMEM, EDEVICE. */
int pllm_transfers_open(const pllm_context *context, pllm_tiers *tiers,
                        const pllm_transfers_options *options, pllm_transfers **transfers_out);
void pllm_transfers_close(
    pllm_transfers *transfers); /* waits for what is in flight; NULL is fine */

/* EBUSY (bare): all tickets taken, poll and release first. EINVAL. A submit that returns an error
 * never completes later. */
int pllm_transfer_submit(pllm_transfers *transfers, const pllm_transfer *transfer,
                         pllm_ticket *ticket_out);
/* 0: under way, 1: done, negative: failed (ESTALE: no such ticket). Does not poll. The failure's
 * sentence is in this thread's error record. */
int pllm_transfer_state(pllm_transfers *transfers, pllm_ticket ticket);
/* Makes a queued transfer as urgent as priority. */
void pllm_transfer_promote(pllm_transfers *transfers, pllm_ticket ticket, pllm_priority priority);
/* Takes a transfer that has not started out of its queue: OK, or EBUSY if it has started. */
int pllm_transfer_cancel(pllm_transfers *transfers, pllm_ticket ticket);
/* Polls until the ticket is over or the time is up (UINT64_MAX: for ever). OK, its failure, or
 * ETIMEDOUT. */
int pllm_transfer_wait(pllm_transfers *transfers, pllm_ticket ticket, uint64_t timeout_ns);
/* The ticket may be over or under way (then it is forgotten once over). */
void pllm_transfer_release(pllm_transfers *transfers, pllm_ticket ticket);
/* Advances everything that can advance without waiting; returns how many transfers it finished. */
int pllm_transfers_poll(pllm_transfers *transfers);
/* Waits at most timeout_ns for anything at all to finish, then as poll. 0 at once if idle. */
int pllm_transfers_wait_any(pllm_transfers *transfers, uint64_t timeout_ns);
uint32_t pllm_transfers_pending(const pllm_transfers *transfers);

typedef struct pllm_transfers_stats {
    uint64_t pages[3][3], bytes[3][3]; /* [from][to] by pllm_place, finished */
    uint64_t merged_runs; /* reads, writes and batched copies that carried more than one page */
    uint64_t failed, corrupt;
    uint64_t disk_read_bytes, disk_write_bytes;
} pllm_transfers_stats;
void pllm_transfers_stats_get(const pllm_transfers *transfers, pllm_transfers_stats *stats_out);

/* The numbered invariants of transfer_internal.h, for tests; aborts when one is broken. */
void pllm_transfers_check(const pllm_transfers *transfers);

#endif
