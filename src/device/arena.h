/* arena.h - address space and memfd chunks: the memory half of the devices that live in host memory
 * (host and sim). Private to src/device.
 *
 *   reservation   [ none | chunk A | none | chunk B | none ... ]   PROT_NONE where nothing is
 * mapped chunk         one sealed memfd; mapped over the reservation with MAP_FIXED
 *
 * Unmapping puts PROT_NONE back, so a stale touch faults instead of reading someone else's bytes.
 * Reservations and what is mapped in them are a pllm_ranges.
 *
 * Invariant: used_bytes is the sum of created, living chunks and never passes capacity_bytes
 * (imported chunks belong to their creator's capacity).
 * Threads: safe from many threads (one lock; held over the mmap calls, a few microseconds). */
#ifndef PLLM_DEVICE_ARENA_H
#define PLLM_DEVICE_ARENA_H

#include <pthread.h>
#include "device/ranges.h"

typedef struct pllm_arena {
    const pllm_context *context;
    uint64_t granularity_bytes, chunk_bytes, capacity_bytes, used_bytes;
    pthread_mutex_t lock;
    pllm_ranges ranges;
} pllm_arena;

/* Zeros stand for the defaults that device.h names. Errors: EINVAL, ENOMEM. */
int pllm_arena_init(pllm_arena *arena, const pllm_context *context, uint64_t capacity_bytes,
                    uint64_t granularity_bytes, uint64_t chunk_bytes);
void pllm_arena_deinit(pllm_arena *arena);

int pllm_arena_reserve(pllm_arena *arena, uint64_t bytes, pllm_va *va_out);
void pllm_arena_release(pllm_arena *arena, pllm_va va, uint64_t bytes);
int pllm_arena_chunk_create(pllm_arena *arena, uint64_t bytes, pllm_chunk **chunk_out);
void pllm_arena_chunk_destroy(pllm_arena *arena, pllm_chunk *chunk);
int pllm_arena_map(pllm_arena *arena, pllm_va va, pllm_chunk *const *chunks, uint32_t chunk_count);
void pllm_arena_unmap(pllm_arena *arena, pllm_va va, pllm_chunk *chunk);
int pllm_arena_chunk_export(pllm_arena *arena, pllm_chunk *chunk, uint32_t read_only, int *fd_out);
int pllm_arena_chunk_import(pllm_arena *arena, int fd, uint64_t bytes, uint32_t read_only,
                            pllm_chunk **chunk_out);
int pllm_arena_host_alloc(uint64_t bytes, void **pointer_out);
void pllm_arena_host_free(void *pointer, uint64_t bytes);

/* EINVAL unless every device side of every copy is mapped; EPERM as pllm_ranges_check_copies. */
int pllm_arena_check_copies(pllm_arena *arena, pllm_copy_kind kind, const pllm_copy *copies,
                            uint32_t copy_count);
int pllm_arena_check_fill(pllm_arena *arena, pllm_va va, uint64_t bytes);
uint64_t pllm_arena_free_bytes(pllm_arena *arena); /* what it may still create */

/* machine.c: what this machine is. */
uint64_t pllm_machine_available_bytes(void); /* memory this process may still take */
void pllm_machine_name(char *text, uint64_t text_bytes);
void pllm_machine_uuid(char *text, uint64_t text_bytes);

/* mover.c: copies bytes that don't overlap; large ones bypass the cache. */
void pllm_move(void *to, const void *from, uint64_t bytes);

#endif
