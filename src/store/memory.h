/* memory.h - device memory of the store's tensors: pieces that processes map, kept ready and clean.
 *
 *   tensor of 70 MiB    [ piece 64 MiB ][ 4 MiB ][ 2 MiB ]     powers of two, largest first, each
 *                                                              with its descriptors
 *   small tensors       [ a | b |   | c      |        ]        one 2 MiB piece of one owner,
 * offsets of 512 bytes legacy tensors      [ a | b |        | c |        ]        a slab: one plain
 * allocation of one owner with one IPC handle, offsets ready               64 MiB, 64 MiB, 2 MiB
 * ...              made, zeroed and exported beforehand
 *
 * A *block* is the memory of one tensor. It reads as zero when it is made, whoever had the memory
 * before. Importing a piece or a slab shows all of it, so what is shared is shared within one
 * owner: the same uid, gid and mode.
 *
 * A descriptor or handle that was given out cannot be called back, and its receiver may have kept
 * it. So memory that has been a tensor's is zeroed and used again only for the same owner; for
 * another it is given up and made anew.
 *
 * Everything physical is charged to the budget's member, ready pieces too, from before it is made
 * until after it is gone. A block stays charged until pllm_store_memory_free, which the caller may
 * call only when no process maps it any more; if one may still (it broke off without saying so),
 * the caller says `abandoned`, and that memory is never given to another tensor.
 *
 * Slow work is done ahead, by pllm_store_memory_tick in the caller's idle time: zeroing of what was
 * given back (in the device's stream, nobody waits), making and exporting pieces of the sizes that
 * were asked for lately.
 * Threads: one at a time. Device calls of others may go on beside it. */
#ifndef PLLM_STORE_MEMORY_H
#define PLLM_STORE_MEMORY_H

#include "device/device.h"
#include "tier/disk.h"
#include "vmm/budget.h"

typedef struct pllm_store_memory pllm_store_memory; /* of one device */
typedef struct pllm_store_block pllm_store_block;   /* of one tensor */

enum {
    PLLM_STORE_OFFSET_BYTES = 512,       /* offsets are multiples of this */
    PLLM_STORE_BLOCK_PIECES_MAX = 252,   /* what one message can carry */
    PLLM_STORE_LEGACY_HANDLE_BYTES = 64, /* CUipcMemHandle */
};

typedef struct pllm_store_memory_options {
    uint32_t struct_bytes;
    uint64_t ready_bytes;       /* of pieces kept ready, charged; 0: none */
    uint64_t piece_bytes_max;   /* power of two; 0: 1 GiB */
    uint64_t small_bytes_max;   /* tensors up to it share a piece; 0: 1 MiB; UINT64_MAX: none do */
    uint64_t legacy_bytes_max;  /* of slabs; 0: no legacy blocks */
    uint64_t slab_bytes;        /* of the legacy arena; 0: 32 MiB. Larger tensors get their own */
    uint64_t spilled_bytes_max; /* host memory for spilled blocks; 0: none */
    uint64_t disk_bytes;        /* on disk, for what does not fit in host memory; 0: none */
    const char *disk_folder;    /* of the spill file; NULL: the usual one (disk.h) */
    pllm_disk *disk;            /* instead of that file (tests); taken over on success */
} pllm_store_memory_options;

/* Ownership: borrows context, device and member, which it uses alone; caller owns *memory_out.
 * options may be NULL. Makes nothing ready yet: tick does, or pllm_store_memory_prepare.
 * Errors: EINVAL, ENOMEM, EDEVICE, and those of the spill file (EIO, ELIMIT); then *memory_out is
 * NULL. */
int pllm_store_memory_open(const pllm_context *context, pllm_device *device,
                           pllm_budget_member *member, const pllm_store_memory_options *options,
                           pllm_store_memory **memory_out);
/* Every block has been freed. NULL is fine. */
void pllm_store_memory_close(pllm_store_memory *memory);

/* One step of work ahead (a piece made, zeroing submitted or taken in); none of it is needed for
 * any other call to be right. 1: call again soon, there is more to do or the device is at it; 0:
 * nothing to do, or the budget is full. Failures are told by the next create that meets them. */
int pllm_store_memory_tick(pllm_store_memory *memory);
/* Ticks until all is ready, waiting for the device. */
void pllm_store_memory_prepare(pllm_store_memory *memory);
/* Gives back ready pieces of at least bytes together, if there are as many; what that was. For who
 * is asked to reclaim. */
uint64_t pllm_store_memory_trim(pllm_store_memory *memory, uint64_t bytes);

/* ---- blocks ---- */
typedef struct pllm_store_owner {
    uint32_t uid, gid, mode;
} pllm_store_owner;

/* What a block of so many bytes will take of the budget at most (small and legacy ones: their own
 * share, rounded to 512 bytes): what a quota charges. Errors: ELIMIT: too large to be made. */
int pllm_store_memory_measure(const pllm_store_memory *memory, uint64_t bytes, uint32_t legacy,
                              uint64_t *charge_bytes_out);

/* All zeros. Ready pieces of other sizes are given up before ENODEVMEM is answered.
 * Errors: EINVAL (0 bytes), ELIMIT (more than PLLM_STORE_BLOCK_PIECES_MAX pieces), EUNSUPPORTED
 * (legacy, and the device has none), ENODEVMEM (bare: spill something, then ask again), ENOMEM,
 * EDEVICE; then nothing changed but what is ready. legacy: ELIMIT also past legacy_bytes_max. */
int pllm_store_memory_create(pllm_store_memory *memory, uint64_t bytes, uint32_t legacy,
                             const pllm_store_owner *owner, pllm_store_block **block_out);
/* A block that a client of an earlier daemon holds: one descriptor a piece (they stay the
 * caller's), bytes of each, and offset of the tensor in the first. read_only: the descriptors allow
 * no more; then they are all that can be given out. Small tensors that come with descriptors of one
 * piece share it again where the device can tell (host); elsewhere each is charged a piece.
 * Errors: EINVAL (not such descriptors, or the tensor does not lie in them), ENODEVMEM, ENOMEM,
 * EDEVICE. */
int pllm_store_memory_adopt(pllm_store_memory *memory, uint64_t bytes, uint64_t offset,
                            const int *fds, const uint64_t *piece_bytes, uint32_t piece_count,
                            uint32_t read_only, const pllm_store_owner *owner,
                            pllm_store_block **block_out);
/* No process maps it any more; abandoned: one may. A move is cancelled and waited for, which the
 * caller avoids by not freeing what moves. NULL is fine. Cannot fail. */
void pllm_store_memory_free(pllm_store_memory *memory, pllm_store_block *block, uint32_t abandoned);

typedef struct pllm_store_block_layout {
    uint64_t bytes;       /* of the tensor */
    uint64_t offset;      /* in its first piece, or in its slab */
    uint32_t piece_count; /* 0: legacy, or spilled */
    uint32_t legacy, spilled;
    uint32_t read_only; /* an adopted one that came so */
} pllm_store_block_layout;
void pllm_store_block_layout_get(const pllm_store_block *block, pllm_store_block_layout *out);
/* Piece number index of a block that is not spilled: its size, and the descriptor to send. It stays
 * the block's and is valid until the block is freed or spilled; a send copies it.
 * writable 0: where the device can restrict descriptors, one for reading.
 * Errors: EINVAL (no such piece), EPERM (writable, but the block is read_only). */
int pllm_store_block_piece(const pllm_store_block *block, uint32_t index, uint32_t writable,
                           uint64_t *bytes_out, int *fd_out);
/* The slab's handle, of a legacy block; the tensor is at the layout's offset from what the handle
 * opens. EINVAL: it is none. */
int pllm_store_block_handle(const pllm_store_block *block,
                            uint8_t handle_out[PLLM_STORE_LEGACY_HANDLE_BYTES]);

/* Bytes of a block, spilled or not, copied at once. Errors: EINVAL (outside), EPERM (read_only),
 * EBUSY (it moves, or those bytes are on disk), EDEVICE. */
int pllm_store_block_read(pllm_store_memory *memory, pllm_store_block *block, uint64_t offset,
                          uint64_t bytes, void *pointer);
int pllm_store_block_write(pllm_store_memory *memory, pllm_store_block *block, uint64_t offset,
                           uint64_t bytes, const void *pointer);

/* ---- spilling ---- */
/* Both begin a move, which pllm_store_memory_poll carries on. Until it is over the block is where
 * it was, whole, and takes room in both places; then it is where it was to go, or, if the move
 * failed or was cancelled, still where it was. One that moves may be read by whom has it mapped,
 * and must not be given out anew. Both return 1: begun; 0: nothing to do. spill: to host memory or,
 * where that is full, to disk; the device memory goes back to the stock or the device. Nobody maps
 * it. Errors: EUNSUPPORTED (legacy: its handle is out), ELIMIT (bare: no room there), EBUSY (bare:
 * it moves), ENOMEM. restore: into pieces like a new block's. Errors: ENODEVMEM (bare), EBUSY
 * (bare), ENOMEM, EDEVICE.
 */
int pllm_store_memory_spill(pllm_store_memory *memory, pllm_store_block *block);
int pllm_store_memory_restore(pllm_store_memory *memory, pllm_store_block *block);
/* Ends the move as soon as the pages under way are over, if it is not over before: ECANCELED. */
void pllm_store_memory_cancel(pllm_store_memory *memory, pllm_store_block *block);
/* Does not wait. 1: something moves still, or has ended and is to be asked for; 0: nothing. */
int pllm_store_memory_poll(pllm_store_memory *memory);
/* A block whose move has ended, and how: OK, ECANCELED, ELIMIT (host memory ran out after all),
 * ECORRUPT (the disk returned other bytes), EIO, ENOMEM, EDEVICE, with the sentence in this
 * thread's error record. Each once; NULL: no more. Blocks are told apart by the cookie. */
pllm_store_block *pllm_store_memory_moved(pllm_store_memory *memory, int *status_out);
/* Waits for the end of this block's move, if it moves; its status, which moved does not tell then.
 */
int pllm_store_memory_settle(pllm_store_memory *memory, pllm_store_block *block);
void pllm_store_block_cookie_set(pllm_store_block *block, uint64_t cookie); /* the caller's; 0 */
uint64_t pllm_store_block_cookie(const pllm_store_block *block);

/* ---- figures ---- */
typedef struct pllm_store_memory_stats {
    uint32_t block_count, legacy_count, spilled_count, moving_count;
    uint32_t piece_count;      /* that blocks have, shared ones once */
    uint64_t block_bytes;      /* of tensors on the device */
    uint64_t piece_bytes;      /* physical, that blocks have */
    uint64_t ready_bytes;      /* clean and exported */
    uint64_t dirty_bytes;      /* given back, not yet zero */
    uint64_t legacy_bytes_max; /* of slabs; 0: no legacy blocks */
    uint64_t slab_bytes;       /* physical, of the legacy arena */
    uint64_t slab_used_bytes;  /* of that, blocks' */
    uint64_t spilled_bytes;    /* of tensors in host memory and on disk */
    uint64_t disk_pages;       /* of 64 KiB, on disk */
    uint64_t charged_bytes;    /* piece + ready + dirty + slab: what the member is charged */
    uint64_t ready_hits, ready_misses; /* pieces that create found ready, or had to make or zero */
} pllm_store_memory_stats;
void pllm_store_memory_stats_get(const pllm_store_memory *memory, pllm_store_memory_stats *out);

/* Asserts the invariants that memory.c lists; called after every change in checked builds. */
void pllm_store_memory_check(const pllm_store_memory *memory);

#endif
