/* board.h - the shared page on which a client sees, without a message, whether its handles still
 * hold and how far each tensor's fence is.
 *
 * The daemon makes a memfd, maps it writable, seals it against further writers and hands out its
 * descriptor; clients map it for reading. 64 bytes a slot after a header of 64:
 *
 *     generation   8   which tensor; 0: none, or it ended. A handle of another generation is stale
 *     fence        8   the value waited for; UINT64_MAX while poisoned
 *     wake         4   futex: changes with every change of fence, epoch or generation
 *     flags        4   PLLM_STORE_FLAG_*
 *     epoch        4   how often this tensor's fence was poisoned
 *     last         8   the greatest value ever signalled, poisoned or not
 *
 * Order. The daemon takes a generation away before it touches the other words and gives the new one
 * after them; a reader that finds its generation before and after reading has read its own words.
 * fence is stored with release: what a producer wrote before it signalled is seen by who has seen
 * the value (on the CPU; devices have their streams).
 *
 * Threads: one writer; any number of readers, in any process. */
#ifndef PLLM_STORE_BOARD_H
#define PLLM_STORE_BOARD_H

#include "base/context.h"

typedef struct pllm_board pllm_board; /* a mapping, writable or not */

#define PLLM_BOARD_POISON UINT64_MAX
enum { PLLM_BOARD_VERSION = 1 };

/* The daemon's side. Errors: ENOMEM, EIO. */
int pllm_board_create(const pllm_context *context, uint32_t slot_max, uint64_t epoch,
                      pllm_board **board_out);
int pllm_board_fd(const pllm_board *board); /* borrowed; for clients. -1 on a client's side */
uint64_t pllm_board_bytes(uint32_t slot_max);

typedef struct pllm_board_words { /* of one slot, as it should read from now on */
    uint64_t generation;          /* 0: the others are nothing */
    uint64_t fence_value;
    uint32_t fence_epoch, poisoned, flags;
} pllm_board_words;
/* Writes what differs, and wakes those who wait on the slot if fence, epoch or generation do. */
void pllm_board_set(pllm_board *board, uint32_t slot, const pllm_board_words *words);
/* Some name means another tensor now, though its handles hold on. Before the renaming is answered.
 */
void pllm_board_renamed(pllm_board *board);

/* The client's side. Takes fd over, also on failure. Errors: EINVAL (no such board), ENOMEM, EIO.
 */
int pllm_board_attach(const pllm_context *context, int fd, pllm_board **board_out);
void pllm_board_close(pllm_board *board); /* both sides; NULL is fine */
uint32_t pllm_board_slot_max(const pllm_board *board);
uint64_t pllm_board_epoch(const pllm_board *board); /* of the daemon's start */

/* How often that happened: while it is the same, a name means what it meant. */
uint64_t pllm_board_renames(const pllm_board *board);

/* Does slot still hold that generation? 1 or 0. A few nanoseconds. */
int pllm_board_valid(const pllm_board *board, uint32_t slot, uint64_t generation);
/* The slot's words, if it is still that generation: OK or ESTALE (bare). */
int pllm_board_read(const pllm_board *board, uint32_t slot, uint64_t generation,
                    pllm_board_words *words_out);
/* Waits until the fence is at least value. All results are bare (no error record):
 *   OK          it is
 *   ECANCELED   it is poisoned, or was while this call waited
 *   ESTALE      the tensor ended, before or while waiting
 *   ETIMEDOUT   neither happened within timeout_ns (0: only looks; UINT64_MAX: for ever)
 * The daemon's sudden death is not seen here: wait in slices, and look at the socket in between. */
int pllm_board_wait(const pllm_board *board, uint32_t slot, uint64_t generation, uint64_t value,
                    uint64_t timeout_ns);

#endif
