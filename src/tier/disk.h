/* disk.h - asynchronous reads and writes of one spill file.
 *
 * Three backends fill this table: io_uring (O_DIRECT, registered staging buffers), a pool of
 * preadv/pwritev threads (where the kernel, seccomp or the memlock limit says no), and sim (a
 * seeded virtual disk for tests that can delay, fail, tear and corrupt).
 * The file is preallocated, unlinked as soon as it is open, so that a killed process leaves
 * nothing, and refused up front (ELIMIT) where the file system has no room for it.
 * Threads: one caller at a time. */
#ifndef PLLM_TIER_DISK_H
#define PLLM_TIER_DISK_H

#include "base/context.h"

typedef struct pllm_disk pllm_disk;
typedef enum pllm_disk_kind { PLLM_DISK_AUTO, PLLM_DISK_URING, PLLM_DISK_PREAD } pllm_disk_kind;

typedef struct pllm_disk_request {
    void *buffer;           /* aligned to 4 KiB; inside a registered buffer where there is one */
    uint64_t offset, bytes; /* multiples of 4 KiB */
    uint32_t write;
    uint32_t cookie;
} pllm_disk_request;

typedef struct pllm_disk_completion {
    uint32_t cookie;
    int32_t status, native; /* OK, or EIO with errno: short transfers count as EIO */
} pllm_disk_completion;

typedef struct pllm_disk_ops {
    const char *name; /* "uring", "pread", "sim" */
    /* Waits for what is in flight, also after a poll that failed: then buffers may go. */
    void (*close)(pllm_disk *disk);
    /* Accepts the request or returns EBUSY (queue full: poll first), EIO, EINVAL. */
    int (*submit)(pllm_disk *disk, const pllm_disk_request *request);
    /* Up to completion_max finished requests; waits at most timeout_ns for the first if there is
     * something in flight. Returns how many, or a negative status. */
    int (*poll)(pllm_disk *disk, pllm_disk_completion *completions, uint32_t completion_max,
                uint64_t timeout_ns);
    uint32_t (*depth)(const pllm_disk *disk); /* requests it takes at once */
} pllm_disk_ops;

struct pllm_disk { /* first member of every backend */
    const pllm_disk_ops *ops;
    const pllm_context *context;
    uint32_t direct;     /* O_DIRECT is in force */
    uint32_t registered; /* staging buffers are registered */
    char note[160];      /* why something fell back, "" if nothing did; for a person */
    char folder[256];    /* where the file is, for messages; cut if longer */
};

typedef struct pllm_disk_options {
    uint32_t struct_bytes;
    pllm_disk_kind kind;
    const char *folder; /* NULL or "": $XDG_CACHE_HOME/pagedllm or ~/.cache/pagedllm */
    uint64_t bytes;     /* size of the spill file */
    void *staging;      /* the buffer every request lies in; registered if possible */
    uint64_t staging_bytes;
} pllm_disk_options;

/* AUTO: io_uring, and where that cannot be had, the pool of threads.
 * Errors: EINVAL, ENOMEM, EIO (folder missing, not writable), ELIMIT (no room; says how much there
 * is and how much was asked). tmpfs or a file system without O_DIRECT works and says so in note. */
int pllm_disk_open(const pllm_context *context, const pllm_disk_options *options,
                   pllm_disk **disk_out);
static inline void pllm_disk_close(pllm_disk *disk)
{
    if (disk) disk->ops->close(disk);
}

#endif
