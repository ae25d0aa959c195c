/* memory.h - tensors of one's own under a memory budget: the pager without a model.
 *
 * A memory holds tensors, runs of pages of one size. Pages live on the device while they are used;
 * under pressure they move to host memory and to a spill file, and come back when they are pinned,
 * read or written. Bytes never written read as zero. A limit is hard: what cannot fit fails with a
 * sentence that names the limit, and everything else goes on.
 *
 * A range may be touched through pointers only while it is pinned. Pages of a range need not be
 * neighbours on the device: pin returns views, each a contiguous part of the range, in order.
 *
 *     pllm_memory_options options = {.struct_bytes = sizeof options,
 *                                    .vram_limit_bytes = 16 << 20, .nvme_size_bytes = 1 << 30};
 *     pllm_memory_open(context, &options, &memory);
 *     pllm_memory_allocate(memory, 64 << 20, PLLM_MEMORY_NORMAL, &tensor);
 *     pllm_memory_write(memory, tensor, 0, bytes, data);
 *
 * With a ledger the device memory is shared with other processes, and another may ask for part of
 * it. Pages that are not pinned are then evicted and their device memory given back, down to the
 * minimum: at once, on a thread of the library, while nobody is calling; else when the call ends.
 * Pinned pages stay.
 *
 * Threads: one caller at a time per memory; memories are independent. Handles are invalid after
 * fork(). A pllm_tensor names a tensor and its generation: one that was freed is ESTALE. */
#ifndef PAGEDLLM_MEMORY_H
#define PAGEDLLM_MEMORY_H

#include "context.h"

#ifdef __cplusplus
extern "C" {
#endif

#ifndef PLLM_UNLIMITED
#define PLLM_UNLIMITED UINT64_MAX
#endif

typedef struct pllm_memory pllm_memory; /* opaque */
typedef uint64_t pllm_tensor;           /* 0: none */

/* Every field but the first may be zero (or NULL), which means what is said beside it. */
typedef struct pllm_memory_options {
    uint32_t struct_bytes;         /* sizeof(pllm_memory_options) */
    uint32_t tensor_max;           /* tensors at once; 0: 1,024 */
    const char *device;            /* "host" (NULL), "cuda", "cuda:1", "cuda:GPU-<uuid>" */
    uint64_t vram_limit_bytes;     /* of the device; 0: no limit */
    uint64_t host_memory_bytes;    /* for pages that left the device; 0: none; PLLM_UNLIMITED */
    const char *nvme_path;         /* folder of the spill file; NULL: the user's cache folder */
    uint64_t nvme_size_bytes;      /* 0: no spill file */
    uint64_t page_bytes;           /* multiple of 4,096; 0: 1 MiB */
    uint64_t capacity_bytes;       /* of all tensors together; 0: what the limits together hold */
    const char *policy;            /* "lru" (NULL), "static", "2q" */
    const char *prefetch_strategy; /* "sequential" (NULL), "none" */
    uint32_t prefetch_pages;       /* read ahead and not yet used at once; 0: a third of the limit.
                                      They take room from what would stay */
    /* A limit of device memory shared with other processes: see ledger.h. ledger NULL: none. All
     * that this memory takes of the device is charged there too. */
    const char *ledger;            /* its name; made with the next if there is none */
    uint64_t ledger_limit_bytes;   /* of the ledger, by who makes it; 0: it must exist */
    uint64_t ledger_minimum_bytes; /* of this memory, and at least what it cannot do without */
    int32_t ledger_priority;       /* higher makes lower give back */
    uint32_t ledger_reserved;      /* zero */
    const char *ledger_name;       /* of this memory among the members; NULL: by its pid */
} pllm_memory_options;

/* Ownership: borrows context (may be NULL); caller owns *memory_out. Errors: EINVAL, ENOMEM,
 * ENODEVMEM (the limit holds not even one page), EDEVICE, EIO (the spill file's folder), ELIMIT (no
 * room for it), EUNSUPPORTED (no such device here); then *memory_out is NULL. */
PLLM_API int pllm_memory_open(const pllm_context *context, const pllm_memory_options *options,
                              pllm_memory **memory_out);
PLLM_API void pllm_memory_close(pllm_memory *memory); /* frees all tensors; NULL is fine */

/* Advice, for a range or from the start; a wrong one costs time, never correctness. */
typedef enum pllm_memory_advice {
    PLLM_MEMORY_NORMAL = 0,
    PLLM_MEMORY_WILL_NEED = 1,  /* start bringing it */
    PLLM_MEMORY_DONT_NEED = 2,  /* first to go */
    PLLM_MEMORY_KEEP = 3,       /* last to go */
    PLLM_MEMORY_SEQUENTIAL = 4, /* will be read in order, over and over: read ahead of it. One range
                                   at a time: the last one given */
} pllm_memory_advice;

/* A tensor of bytes > 0, all zero, taking no memory until it is touched. Errors: EINVAL, ENOMEM,
 * ELIMIT (tensor_max or the capacity is reached); then *tensor_out is 0 and nothing was made. */
PLLM_API int pllm_memory_allocate(pllm_memory *memory, uint64_t bytes, pllm_memory_advice advice,
                                  pllm_tensor *tensor_out);
/* Errors: ESTALE, EBUSY (pinned). */
PLLM_API int pllm_memory_deallocate(pllm_memory *memory, pllm_tensor tensor);
/* Errors: ESTALE. page_bytes_out may be NULL. */
PLLM_API int pllm_memory_size(const pllm_memory *memory, pllm_tensor tensor, uint64_t *bytes_out,
                              uint64_t *page_bytes_out);

/* Copies between the caller's buffer and [offset, offset + bytes). Page by page: a range larger
 * than the device works. On failure a part may have been written.
 * Errors: ESTALE; EINVAL (beyond the end; writing a sealed tensor); EBUSY (pins leave no room);
 * ENODEVMEM; ELIMIT (no room outside the device: says which limit to raise); EIO, ECORRUPT (a page
 * was lost: it stays lost, others are unharmed). */
PLLM_API int pllm_memory_write(pllm_memory *memory, pllm_tensor tensor, uint64_t offset,
                               uint64_t bytes, const void *data);
PLLM_API int pllm_memory_read(pllm_memory *memory, pllm_tensor tensor, uint64_t offset,
                              uint64_t bytes, void *data);

typedef enum pllm_memory_mode {
    PLLM_MEMORY_READ = 0,
    PLLM_MEMORY_WRITE = 1,
    PLLM_MEMORY_OVERWRITE = 2, /* all of the range will be written: what it held is undefined from
                                  here on, and need not be brought in */
} pllm_memory_mode;

typedef struct pllm_memory_view {
    void *data; /* NULL on a device that the CPU can't read: read and write copy, kernels see places
                 */
    uint64_t bytes;
} pllm_memory_view;

/* Makes the range resident and keeps it so until unpin: all of it, or none. Fills up to view_max
 * views, in order, and their number; a range touches at most one view a page, fewer where
 * neighbours lie together. views may be NULL with view_max 0: then the range is only kept.
 * Pins count. Errors: as write; EINVAL where view_max is too small. */
PLLM_API int pllm_memory_pin(pllm_memory *memory, pllm_tensor tensor, uint64_t offset,
                             uint64_t bytes, pllm_memory_mode mode, pllm_memory_view *views,
                             uint32_t view_max, uint32_t *view_count_out);
/* The same for kernels: where the range is in the device's own addresses (on the host device these
 * are no pointers). Its content is there when the call returns; kernels that touch it must have
 * ended before it is unpinned. */
typedef struct pllm_memory_place {
    uint64_t address, bytes;
} pllm_memory_place;
PLLM_API int pllm_memory_pin_device(pllm_memory *memory, pllm_tensor tensor, uint64_t offset,
                                    uint64_t bytes, pllm_memory_mode mode,
                                    pllm_memory_place *places, uint32_t place_max,
                                    uint32_t *place_count_out);
/* The range as it was pinned. Errors: ESTALE, EINVAL (not pinned). */
PLLM_API int pllm_memory_unpin(pllm_memory *memory, pllm_tensor tensor, uint64_t offset,
                               uint64_t bytes);
/* Brings the range in without keeping it there. Errors: as pin. */
PLLM_API int pllm_memory_ensure_resident(pllm_memory *memory, pllm_tensor tensor, uint64_t offset,
                                         uint64_t bytes);
/* Errors: ESTALE, EINVAL. */
PLLM_API int pllm_memory_advise(pllm_memory *memory, pllm_tensor tensor, uint64_t offset,
                                uint64_t bytes, pllm_memory_advice advice);
/* No more writes: pages are then written behind while others are used, and evicting them is free.
 * Errors: ESTALE. */
PLLM_API int pllm_memory_seal(pllm_memory *memory, pllm_tensor tensor);

/* Takes unpinned pages off the device until at least bytes are free, by policy; or those of a
 * range. What went comes out in *evicted_bytes_out (may be NULL). Waits for what must be written.
 * Errors: ESTALE, EINVAL, ELIMIT, EIO, EDEVICE, only if nothing went. */
PLLM_API int pllm_memory_evict(pllm_memory *memory, uint64_t bytes, uint64_t *evicted_bytes_out);
PLLM_API int pllm_memory_evict_range(pllm_memory *memory, pllm_tensor tensor, uint64_t offset,
                                     uint64_t bytes, uint64_t *evicted_bytes_out);
/* A new limit while running: evicts down to it. Errors: EINVAL, EBUSY (pins prevent it for now:
 * later calls go on trying), ELIMIT, EIO, EDEVICE. */
PLLM_API int pllm_memory_set_vram_limit(pllm_memory *memory, uint64_t bytes);
/* Lets reading ahead and writing behind go on; every other call does so too. Errors: EDEVICE, EIO.
 */
PLLM_API int pllm_memory_poll(pllm_memory *memory);

typedef struct pllm_memory_stats {
    uint32_t struct_bytes; /* in: sizeof(pllm_memory_stats) */
    uint32_t tensors;
    uint64_t tensor_bytes; /* asked for */
    uint64_t page_bytes, pages;
    uint64_t resident_bytes, resident_peak_bytes, vram_limit_bytes;
    uint64_t host_bytes, disk_bytes; /* homes in use */
    uint64_t hits, misses, evictions;
    uint64_t prefetched, prefetch_used;
    uint64_t bytes_in, bytes_out; /* moved to and from the device */
    uint64_t disk_read_bytes, disk_write_bytes;
} pllm_memory_stats;
/* Errors: EINVAL. */
PLLM_API int pllm_memory_stats_get(const pllm_memory *memory, pllm_memory_stats *stats);

#ifdef __cplusplus
}
#endif
#endif
