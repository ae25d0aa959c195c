/* pool.h - a caching allocator for a device's memory, ordered by streams.
 *
 * A pool takes physical memory from the device in chunks, maps it into one reserved range, and
 * gives out blocks of it. What is freed stays in the pool, to be given out again without a call of
 * the device. Free chunks that lie where nothing fits are mapped elsewhere before the device is
 * asked for more.
 *
 *     pllm_pool_options options = {.struct_bytes = sizeof options};
 *     pllm_pool_open(context, device, &options, &pool);
 *     pllm_pool_allocate(pool, 1 << 20, stream, &address);
 *     ... work on the stream that uses [address, address + 2^20) ...
 *     pllm_pool_free(pool, address, 1 << 20, stream);     that work may still be running
 *
 * Order: a block that was freed on a stream may be given out on that stream at once, since what is
 * submitted there later runs later; on other streams, and to the CPU, only after an event has shown
 * that the stream got past the free. A stream of NULL is the CPU: an allocation there may be used
 * at once by anybody, and a free says that nobody uses the block any more.
 *
 * Addresses are the device's own; multiples of 512. What a new block holds is undefined.
 *
 * Threads: any number at a time. The pool records events on streams that it has been shown, from
 * whichever thread needs to know: a stream that is being captured into a graph must have had no
 * frees since it was last waited for. */
#ifndef PAGEDLLM_POOL_H
#define PAGEDLLM_POOL_H

#include "device.h"

#ifdef __cplusplus
extern "C" {
#endif

#ifndef PLLM_UNLIMITED
#define PLLM_UNLIMITED UINT64_MAX
#endif

typedef struct pllm_pool pllm_pool; /* opaque */

/* Every field but the first may be zero (or NULL), which means what is said beside it. */
typedef struct pllm_pool_options {
    uint32_t struct_bytes;   /* sizeof(pllm_pool_options) */
    uint32_t block_max;      /* blocks, used and free, at once; 0: 65,536. 72 bytes of host memory a
                                block, taken when opening */
    uint64_t limit_bytes;    /* of physical memory; 0: none */
    uint64_t capacity_bytes; /* of address space; 0: twice the device's memory */
    uint64_t chunk_bytes;    /* multiple of the device's granularity; 0: 2 MiB if the device can */
    uint32_t wait_us; /* an allocation that finds nothing waits so long for streams to get past
                         their frees before it takes new memory, half as long each time that it was
                         in vain; 0: 2,000. At the limit it waits for all of them */
    /* No memory is left, and nothing is being waited for. May free blocks of the pool, or anything
     * else; returns 1 to try again, 0 to let the allocation fail. attempt counts from 0. Called
     * without locks, in the allocating thread; must not allocate from this pool. */
    int (*out_of_memory)(void *user, pllm_pool *pool, uint64_t bytes, uint32_t attempt);
    void *user;
} pllm_pool_options;

/* Ownership: borrows context (may be NULL) and device, which outlive the pool; caller owns
 * *pool_out. options may be NULL. Errors: EINVAL, ENOMEM, EDEVICE; then *pool_out is NULL. */
PLLM_API int pllm_pool_open(const pllm_context *context, pllm_device *device,
                            const pllm_pool_options *options, pllm_pool **pool_out);
/* Waits for the streams on which blocks were freed, then gives everything back, live blocks too.
 * Streams that the pool has been shown are still open, or were forgotten. NULL is fine. */
PLLM_API void pllm_pool_close(pllm_pool *pool);

/* A block of at least bytes. Errors: EINVAL (0 bytes), ENODEVMEM (the device, or the limit, is
 * full; all was tried), ELIMIT (block_max, or more than 63 streams, or no address space that long),
 * EDEVICE; then *address_out is 0 and no block is lost. */
PLLM_API int pllm_pool_allocate(pllm_pool *pool, uint64_t bytes, pllm_stream *stream,
                                uint64_t *address_out);
/* stream: the one after whose present work the block is not used any more (of other streams,
 * pllm_pool_record_stream tells). bytes: as allocated, or 0 not to have it checked.
 * Errors: EINVAL (not a live block's address: foreign, or freed before; another size), ELIMIT as
 * above; then nothing changed. */
PLLM_API int pllm_pool_free(pllm_pool *pool, uint64_t address, uint64_t bytes, pllm_stream *stream);
/* Work on this stream uses the block too: once it is freed, it stays away until this stream has got
 * past all that was submitted to it by then. Errors: as free. */
PLLM_API int pllm_pool_record_stream(pllm_pool *pool, uint64_t address, pllm_stream *stream);
/* To be called before a stream closes that the pool has been shown. Waits for its work. Live blocks
 * of it stay, to be freed on another. Nobody may use the stream meanwhile. Errors: those of its
 * work, which is over all the same. */
PLLM_API int pllm_pool_forget_stream(pllm_pool *pool, pllm_stream *stream);
/* What the block can hold: at least what was asked for. Errors: EINVAL. */
PLLM_API int pllm_pool_size(pllm_pool *pool, uint64_t address, uint64_t *bytes_out);

/* Gives free memory back to the device until the pool holds at most keep_bytes, or no more can go:
 * chunks with a live block in them stay, and those that wait for a stream (nothing is waited for).
 * freed_bytes_out may be NULL. */
PLLM_API int pllm_pool_trim(pllm_pool *pool, uint64_t keep_bytes, uint64_t *freed_bytes_out);
/* A new limit while running; free memory beyond it is given back. What is live stays: then nothing
 * new is taken until enough was freed. Errors: EINVAL (0). */
PLLM_API int pllm_pool_set_limit(pllm_pool *pool, uint64_t limit_bytes);

enum { PLLM_POOL_CLASSES = 32 };
typedef struct pllm_pool_stats {
    uint32_t struct_bytes; /* in: sizeof(pllm_pool_stats) */
    uint32_t stream_count; /* known now, the CPU among them if it allocated or freed */
    uint64_t limit_bytes, chunk_bytes;
    uint64_t requested_bytes, requested_peak_bytes; /* of live blocks, as asked for */
    uint64_t allocated_bytes, allocated_peak_bytes; /* of live blocks, as given */
    uint64_t reserved_bytes, reserved_peak_bytes;   /* physical memory held */
    uint64_t pending_bytes; /* freed, and kept away until other streams are done with it */
    uint64_t live_count, pending_count, free_count;    /* blocks */
    uint64_t allocate_calls, free_calls, record_calls; /* that succeeded */
    uint64_t hits;          /* allocations for which nothing was mapped */
    uint64_t failed_calls;  /* allocations that failed */
    uint64_t refused_calls; /* frees, records, sizes of what is no live block, or of another size */
    uint64_t splits, merges, slabs;
    uint64_t created_chunks, remapped_chunks, trimmed_chunks;
    uint64_t fences, waits, callbacks; /* events recorded; times waited; times out of memory */
    /* By size: class i holds blocks of more than 256 << i and at most 512 << i bytes, as given. */
    uint64_t class_live_count[PLLM_POOL_CLASSES], class_live_bytes[PLLM_POOL_CLASSES],
        class_calls[PLLM_POOL_CLASSES];
} pllm_pool_stats;
/* Errors: EINVAL. */
PLLM_API int pllm_pool_stats_get(pllm_pool *pool, pllm_pool_stats *stats);

/* Takes text as it is made; 0, or a status to stop with. Called with the pool locked: it must not
 * call the pool. */
typedef int (*pllm_pool_write)(void *user, const char *text, uint64_t bytes);
/* One JSON object: the statistics, and every block in order of address: offset, bytes, state (live,
 * free, pending, slab, hole: address space without memory) and the stream's number, 0 being the
 * CPU. Errors: what write returned. */
PLLM_API int pllm_pool_snapshot(pllm_pool *pool, pllm_pool_write write, void *user);
/* Writes the log of what happens from here on (live blocks first, as allocations): a line
 * "pagedllm-pool-log 1", then
 *     a ID BYTES STREAM      allocated
 *     f ID STREAM            freed
 *     r ID STREAM            recorded
 * Text comes in pieces; the last one when the recording ends: write NULL. user stays borrowed until
 * then. Errors: EBUSY (being recorded already); at the end what write returned. `pagedllm bench
 * pool
 * --log FILE` replays it. */
PLLM_API int pllm_pool_record(pllm_pool *pool, pllm_pool_write write, void *user);

#ifdef __cplusplus
}
#endif
#endif
