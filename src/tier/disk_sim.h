/* disk_sim.h - disks for tests: one in memory that replays from a seed, and one that wraps any
 * other and spoils chosen requests. */
#ifndef PLLM_TIER_DISK_SIM_H
#define PLLM_TIER_DISK_SIM_H

#include "device/device.h"
#include "tier/disk.h"

/* A disk in memory. Nothing happens until it is polled. Each request takes a seeded time up to
 * latency_ns_max and moves its bytes at the end of it; a read's buffer holds 0xFF until then. Its
 * clock is never behind the device's, and a poll that waits moves it to the next completion. */
typedef struct pllm_sim_disk_options {
    uint32_t struct_bytes;
    uint32_t depth; /* 0: 16 */
    uint64_t seed, bytes;
    uint64_t latency_ns_max;
    pllm_device *device; /* whose clock is followed; borrowed; NULL: its own alone */
} pllm_sim_disk_options;
int pllm_disk_open_sim(const pllm_context *context, const pllm_sim_disk_options *options,
                       pllm_disk **disk_out);

/* Requests, reads and writes are numbered from 0 in order of acceptance; UINT64_MAX: never. The
 * permille are chances a request, drawn from the seed. */
typedef struct pllm_faulty_disk_options {
    uint32_t struct_bytes;
    uint32_t persistent;      /* everything after fail_at fails too */
    int32_t native;           /* errno of failures; 0: EIO */
    uint32_t fail_permille;   /* completes with EIO, nothing moved */
    uint64_t fail_at;         /* this request does so */
    uint64_t fail_submit_at;  /* this call of submit returns EIO */
    uint64_t fail_poll_at;    /* this call of poll returns EIO: the backend is broken */
    uint64_t corrupt_read_at; /* this read completes OK with one bit changed */
    uint64_t tear_write_at;   /* this write completes OK with its first half written only */
    uint64_t lose_write_at;   /* this write completes OK with nothing written */
    uint64_t seed;
    uint32_t corrupt_permille, lose_permille;
} pllm_faulty_disk_options;
/* Never fails anything: fill in what should. */
pllm_faulty_disk_options pllm_faulty_disk_none(void);
/* Takes over inner on success. The options may be changed later through the pointer that
 * pllm_faulty_disk_options_of gives. */
int pllm_disk_open_faulty(const pllm_context *context, pllm_disk *inner,
                          const pllm_faulty_disk_options *options, pllm_disk **disk_out);
pllm_faulty_disk_options *pllm_faulty_disk_options_of(pllm_disk *disk);

typedef struct pllm_faulty_disk_stats {
    uint64_t submits, polls, requests, reads, writes;
    uint64_t failed, corrupted, lost; /* how many were spoiled */
    uint64_t read_bytes, write_bytes;
} pllm_faulty_disk_stats;
void pllm_faulty_disk_stats_get(const pllm_disk *disk, pllm_faulty_disk_stats *stats_out);

#endif
