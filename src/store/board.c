/* board.c - the shared page, both sides. The layout and the order of its words are in board.h.
 *
 * A waiter reads the futex word first and everything else after it; the daemon writes the futex
 * word last. So whatever a waiter saw half of, its futex call returns at once and it looks again.
 */
#include "store/board.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "base/clock.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010 /* Linux 5.1 */
#endif

enum { SLOTS_MAX = 1 << 24 };
static const uint64_t board_magic = 0x3144524f424d4c50; /* "PLMBORD1" */

typedef struct board_slot {
    _Atomic uint64_t generation, fence;
    _Atomic uint32_t wake, flags, epoch;
    uint32_t zero;
    _Atomic uint64_t last;
    uint64_t reserved[3];
} board_slot;
_Static_assert(sizeof(board_slot) == 64, "a slot is a cache line");

typedef struct board_header {
    uint64_t magic;
    uint32_t version, slot_max;
    uint64_t epoch;
    _Atomic uint64_t renames;
    uint64_t reserved[4];
} board_header;
_Static_assert(sizeof(board_header) == 64, "the slots begin at 64");

struct pllm_board {
    const pllm_context *context;
    board_header *header;
    board_slot *slots;
    uint64_t map_bytes;
    uint32_t slot_max;
    int fd; /* the daemon's side: what clients get; else -1 */
};

uint64_t pllm_board_bytes(uint32_t slot_max)
{
    return sizeof(board_header) + (uint64_t)slot_max * sizeof(board_slot);
}

/* What clients get cannot be written through: opened for reading, and sealed where the kernel can
 * (else one could open it anew through /proc, with the right to). */
static int hand_out(int fd)
{
    int seals = F_SEAL_SHRINK | F_SEAL_GROW;
    if (fcntl(fd, F_ADD_SEALS, seals | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) < 0 &&
        fcntl(fd, F_ADD_SEALS, seals | F_SEAL_SEAL) < 0)
        return -1;
    char path[48];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int read_only = open(path, O_RDONLY | O_CLOEXEC);
    return read_only >= 0 ? read_only : fcntl(fd, F_DUPFD_CLOEXEC, 0);
}

int pllm_board_create(const pllm_context *context, uint32_t slot_max, uint64_t epoch,
                      pllm_board **board_out)
{
    *board_out = NULL;
    if (slot_max == 0 || slot_max > SLOTS_MAX)
        return pllm_fail(PLLM_EINVAL, 0, "a board has 1 to %d slots", SLOTS_MAX);
    pllm_board *board = pllm_alloc(context, sizeof *board);
    if (!board) return pllm_fail_memory("the store's board", sizeof *board);
    uint64_t bytes = pllm_board_bytes(slot_max);
    int status = PLLM_EIO;
    void *map = MAP_FAILED;
    int fd = memfd_create("pagedllm-board", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0 || fchmod(fd, 0400) < 0) goto failed;
    map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) goto failed;
    *board = (pllm_board){.context = context,
                          .header = map,
                          .slots = (board_slot *)((char *)map + sizeof(board_header)),
                          .map_bytes = bytes,
                          .slot_max = slot_max,
                          .fd = -1};
    *board->header = (board_header){
        .magic = board_magic, .version = PLLM_BOARD_VERSION, .slot_max = slot_max, .epoch = epoch};
    board->fd = hand_out(fd);
    if (board->fd < 0) goto failed;
    close(fd);
    *board_out = board;
    return PLLM_OK;
failed:
    status = pllm_fail(status, errno, "the store's board of %llu bytes cannot be made: %s",
                       (unsigned long long)bytes, strerror(errno));
    if (map != MAP_FAILED) munmap(map, bytes);
    if (fd >= 0) close(fd);
    pllm_free(context, board);
    return status;
}

int pllm_board_fd(const pllm_board *board)
{
    return board->fd;
}

static long futex(_Atomic uint32_t *word, int operation, uint32_t value,
                  const struct timespec *timeout)
{
    return syscall(SYS_futex, word, operation, value, timeout, NULL, 0);
}

static void slot_wake(board_slot *slot)
{
    atomic_fetch_add_explicit(&slot->wake, 1, memory_order_seq_cst);
    futex(&slot->wake, FUTEX_WAKE, INT_MAX, NULL);
}

void pllm_board_set(pllm_board *board, uint32_t index, const pllm_board_words *words)
{
    board_slot *slot = &board->slots[index];
    uint64_t fence = words->poisoned ? PLLM_BOARD_POISON : words->fence_value;
    uint64_t generation = atomic_load_explicit(&slot->generation, memory_order_relaxed);
    int told = generation != words->generation;
    if (generation && told) atomic_store_explicit(&slot->generation, 0, memory_order_seq_cst);
    if (words->generation) {
        told |= atomic_load_explicit(&slot->fence, memory_order_relaxed) != fence ||
                atomic_load_explicit(&slot->epoch, memory_order_relaxed) != words->fence_epoch;
        atomic_store_explicit(&slot->flags, words->flags, memory_order_release);
        atomic_store_explicit(&slot->epoch, words->fence_epoch, memory_order_release);
        atomic_store_explicit(&slot->last, words->fence_value, memory_order_release);
        atomic_store_explicit(&slot->fence, fence, memory_order_release);
        atomic_store_explicit(&slot->generation, words->generation, memory_order_release);
    }
    if (told) slot_wake(slot);
}

int pllm_board_attach(const pllm_context *context, int fd, pllm_board **board_out)
{
    *board_out = NULL;
    struct stat about;
    pllm_board *board = pllm_alloc(context, sizeof *board);
    int status = board ? PLLM_OK : pllm_fail_memory("the store's board", sizeof *board);
    if (status == PLLM_OK && fstat(fd, &about) < 0)
        status = pllm_fail(PLLM_EIO, errno, "the store's board: %s", strerror(errno));
    /* One that could shrink under us would be a SIGBUS later. */
    int seals = fcntl(fd, F_GET_SEALS);
    if (status == PLLM_OK &&
        (seals < 0 || !(seals & F_SEAL_SHRINK) || about.st_size < (off_t)sizeof(board_header)))
        status = pllm_fail(PLLM_EINVAL, 0, "what the daemon sent is no board");
    void *map = MAP_FAILED;
    uint64_t bytes = 0;
    if (status == PLLM_OK) {
        bytes = (uint64_t)about.st_size;
        map = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
        if (map == MAP_FAILED)
            status = pllm_fail(PLLM_EIO, errno, "the store's board cannot be mapped: %s",
                               strerror(errno));
    }
    close(fd);
    if (status == PLLM_OK) {
        board_header *header = map;
        if (header->magic != board_magic || header->version != PLLM_BOARD_VERSION ||
            header->slot_max > SLOTS_MAX || pllm_board_bytes(header->slot_max) != bytes)
            status = pllm_fail(PLLM_EINVAL, 0, "the daemon's board is of another version");
    }
    if (status < 0) {
        if (map != MAP_FAILED) munmap(map, bytes);
        pllm_free(context, board);
        return status;
    }
    *board = (pllm_board){.context = context,
                          .header = map,
                          .slots = (board_slot *)((char *)map + sizeof(board_header)),
                          .map_bytes = bytes,
                          .slot_max = ((board_header *)map)->slot_max,
                          .fd = -1};
    *board_out = board;
    return PLLM_OK;
}

void pllm_board_close(pllm_board *board)
{
    if (!board) return;
    munmap(board->header, board->map_bytes);
    if (board->fd >= 0) close(board->fd);
    pllm_free(board->context, board);
}

uint32_t pllm_board_slot_max(const pllm_board *board)
{
    return board->slot_max;
}

uint64_t pllm_board_epoch(const pllm_board *board)
{
    return board->header->epoch;
}

void pllm_board_renamed(pllm_board *board)
{
    atomic_fetch_add_explicit(&board->header->renames, 1, memory_order_release);
}

uint64_t pllm_board_renames(const pllm_board *board)
{
    return atomic_load_explicit(&board->header->renames, memory_order_acquire);
}

int pllm_board_valid(const pllm_board *board, uint32_t slot, uint64_t generation)
{
    return slot < board->slot_max && generation &&
           atomic_load_explicit(&board->slots[slot].generation, memory_order_acquire) == generation;
}

int pllm_board_read(const pllm_board *board, uint32_t index, uint64_t generation,
                    pllm_board_words *words_out)
{
    if (!pllm_board_valid(board, index, generation)) return PLLM_ESTALE;
    board_slot *slot = &board->slots[index];
    uint64_t fence = atomic_load_explicit(&slot->fence, memory_order_acquire);
    *words_out = (pllm_board_words){
        .generation = generation,
        .fence_value = atomic_load_explicit(&slot->last, memory_order_acquire),
        .fence_epoch = atomic_load_explicit(&slot->epoch, memory_order_acquire),
        .poisoned = fence == PLLM_BOARD_POISON,
        .flags = atomic_load_explicit(&slot->flags, memory_order_acquire),
    };
    return pllm_board_valid(board, index, generation) ? PLLM_OK : PLLM_ESTALE;
}

int pllm_board_wait(const pllm_board *board, uint32_t index, uint64_t generation, uint64_t value,
                    uint64_t timeout_ns)
{
    uint64_t deadline = 0;
    uint32_t epoch = 0, looked = 0;
    for (;;) {
        if (index >= board->slot_max) return PLLM_ESTALE;
        board_slot *slot = &board->slots[index];
        uint32_t wake = atomic_load_explicit(&slot->wake, memory_order_seq_cst);
        pllm_board_words words;
        int status = pllm_board_read(board, index, generation, &words);
        if (status < 0) return status;
        if (words.fence_value >= value) return PLLM_OK;
        if (!looked++) epoch = words.fence_epoch;
        if (words.poisoned || words.fence_epoch != epoch) return PLLM_ECANCELED;
        if (timeout_ns == 0) return PLLM_ETIMEDOUT;
        struct timespec left = {0}, *wait = NULL;
        if (timeout_ns != UINT64_MAX) {
            uint64_t now = pllm_clock_ns();
            if (!deadline)
                deadline = timeout_ns < UINT64_MAX - now ? now + timeout_ns : UINT64_MAX - 1;
            if (now >= deadline) return PLLM_ETIMEDOUT;
            left.tv_sec = (time_t)((deadline - now) / 1000000000u);
            left.tv_nsec = (long)((deadline - now) % 1000000000u);
            wait = &left;
        }
        futex(&slot->wake, FUTEX_WAIT, wake, wait); /* woken, changed, interrupted, late: look */
    }
}
