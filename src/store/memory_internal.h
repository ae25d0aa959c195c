/* memory_internal.h - the parts of the store's memory, private to src/store/memory*.c.
 *
 *   memory.c         open, blocks (new ones, adopted ones), their bytes, figures
 *   memory_spill.c   blocks on their way to the host and back
 *   memory_piece.c   pieces: made, kept ready, zeroed, given up
 *   memory_area.c    areas: pieces and slabs that several blocks of one owner share
 */
#ifndef PLLM_STORE_MEMORY_INTERNAL_H
#define PLLM_STORE_MEMORY_INTERNAL_H

#include "store/memory.h"
#include "tier/transfer.h"

enum {
    STORE_PAGE_BYTES = 64 << 10, /* of spilled blocks; divides every piece */
    STORE_CLASSES_MAX = 24,      /* sizes of pieces: unit_bytes << class */
    STORE_AREA_UNIT = PLLM_STORE_OFFSET_BYTES,
};

typedef enum piece_state {
    PIECE_USED, /* of a block, or of an area */
    PIECE_READY,
    PIECE_DIRTY,
    PIECE_ZEROING, /* in the stream, before the event */
} piece_state;

typedef struct store_piece {
    struct store_piece *next; /* in the list of its state */
    pllm_chunk *chunk;
    pllm_va va; /* mapped there for as long as it lives */
    uint64_t bytes;
    uint32_t class;
    piece_state state;
    int fd_write, fd_read; /* -1: none of its own */
    uint32_t owned, imported, read_only;
    pllm_store_owner owner; /* with owned: who may have kept its descriptors */
} store_piece;

/* One piece or slab whose bytes are given out in units of 512. */
typedef struct store_area {
    struct store_area *next;
    store_piece *piece; /* NULL: a slab */
    pllm_va va;
    uint64_t bytes;
    uint64_t *taken;               /* a bit a unit */
    uint64_t touched_end;          /* from here on it has never been anybody's, and is zero */
    uint64_t used_bytes;           /* in units */
    uint64_t device, file;         /* an adopted one's, where the device can tell; else 0 */
    uint32_t block_count, retired; /* retired: nothing more is taken from it */
    pllm_store_owner owner;
    uint8_t handle[PLLM_STORE_LEGACY_HANDLE_BYTES];
} store_area;

typedef struct store_page { /* where a page of a spilled block is */
    uint32_t slot;          /* PLLM_NONE: not yet anywhere */
    pllm_place place;       /* AT_HOST or AT_DISK */
} store_page;

typedef enum store_move { STORE_MOVE_NONE, STORE_MOVE_OUT, STORE_MOVE_IN } store_move;

struct pllm_store_block {
    pllm_store_block *next, *previous; /* of all */
    uint64_t bytes, offset, cookie;
    pllm_store_owner owner;
    store_area *area;     /* small and legacy ones */
    store_piece **pieces; /* [piece_count], others */
    uint32_t piece_count;
    uint32_t legacy, spilled, read_only;
    store_page *pages; /* spilled, or moving */
    /* While it moves, and until the caller is told of the end: */
    pllm_store_block *move_next;
    store_move moving;
    uint32_t page_next, under_way; /* the next page to submit; pages with tickets */
    int move_status;               /* of the first failure */
    pllm_error move_error;
    uint64_t spill_serial; /* tells this spill's pages from all others */
};

typedef struct store_ticket {
    pllm_store_block *block; /* NULL: not in use */
    pllm_ticket ticket;
} store_ticket;

struct pllm_store_memory {
    const pllm_context *context;
    pllm_device *device;
    const pllm_device_ops *ops;
    pllm_budget_member *member;
    pllm_store_memory_options options; /* with defaults filled in */
    pllm_stream *stream;               /* ours: fills and copies */
    pllm_event *zeroed;                /* after the pieces that are ZEROING */
    uint64_t unit_bytes;               /* the smallest piece */
    uint32_t class_count, restricts;   /* restricts: descriptors for reading differ */
    store_piece *ready[STORE_CLASSES_MAX], *dirty, *zeroing;
    uint64_t stocked[STORE_CLASSES_MAX]; /* bytes READY, DIRTY or ZEROING */
    uint64_t demand[STORE_CLASSES_MAX];  /* bytes asked for lately */
    uint32_t refused;                    /* the budget had no room for one more ready piece */
    store_area *areas, *slabs;
    pllm_store_block *blocks;
    pllm_tiers *tiers; /* NULL: nothing is spilled */
    pllm_transfers *transfers;
    store_ticket *tickets; /* of pages under way */
    uint32_t under_way[2]; /* of them; in, out */
    uint64_t promised;     /* pages of moves that have no slot yet */
    uint64_t spill_serial;
    pllm_store_block *moves, **move_last;  /* in the order in which they began */
    pllm_store_block *moved, **moved_last; /* over, and the caller has not been told */
    pllm_store_memory_stats stats;         /* kept up to date by all parts */
};

static inline int store_owner_same(const pllm_store_owner *a, const pllm_store_owner *b)
{
    return a->uid == b->uid && a->gid == b->gid && a->mode == b->mode;
}

/* memory_piece.c */
uint32_t store_class_of(const pllm_store_memory *memory, uint64_t bytes); /* a piece's exact size */
/* A clean piece for that owner, USED. Errors: ENODEVMEM, ENOMEM, EDEVICE, EUNSUPPORTED. */
int store_piece_take(pllm_store_memory *memory, uint32_t class, const pllm_store_owner *owner,
                     store_piece **piece_out);
/* clean: nobody has had it since it was taken. abandoned: somebody may have it mapped. */
void store_piece_give(pllm_store_memory *memory, store_piece *piece, uint32_t clean,
                      uint32_t abandoned);
void store_piece_destroy(pllm_store_memory *memory, store_piece *piece);
/* Maps what was imported and holds descriptors for it; takes chunk over on success. */
int store_piece_adopt(pllm_store_memory *memory, pllm_chunk *chunk, uint64_t bytes, int fd,
                      uint32_t read_only, const pllm_store_owner *owner, store_piece **piece_out);
/* Charges, giving up what is ready where that makes room. */
int store_charge(pllm_store_memory *memory, uint64_t bytes);
/* The same for what a client brings: an earlier daemon may have charged it, and then it still is.
 */
int store_charge_adopted(pllm_store_memory *memory, uint64_t bytes);
void store_credit(pllm_store_memory *memory, uint64_t bytes);
uint64_t store_stock(const pllm_store_memory *memory); /* bytes READY, DIRTY and ZEROING */
/* Gives up stocked pieces until bytes have gone, or none are left; what has gone. */
uint64_t store_stock_trim(pllm_store_memory *memory, uint64_t bytes);
int store_zero_now(pllm_store_memory *memory, pllm_va va, uint64_t bytes);

/* memory.c */
void store_memory_checked(const pllm_store_memory *memory); /* checks, in checked builds */
int store_block_back(pllm_store_memory *memory, pllm_store_block *block);
void store_block_unback(pllm_store_memory *memory, pllm_store_block *block, uint32_t abandoned);

/* memory_spill.c */
int store_spill_open(pllm_store_memory *memory);
void store_spill_close(pllm_store_memory *memory);
/* The slots of a spilled block go. */
void store_spill_forget(pllm_store_memory *memory, pllm_store_block *block);
/* Copies between a spilled block and to, or from; EBUSY: on disk. */
int store_spill_bytes(pllm_store_memory *memory, pllm_store_block *block, uint64_t offset,
                      uint64_t bytes, void *to, const void *from);

/* memory_area.c */
/* A zeroed range for the block, in an area of its owner. Errors: as create. */
int store_area_take(pllm_store_memory *memory, pllm_store_block *block);
void store_area_give(pllm_store_memory *memory, pllm_store_block *block, uint32_t abandoned);
/* An area around an adopted piece; nothing but what is adopted lies in it. */
int store_area_adopt(pllm_store_memory *memory, store_piece *piece, int fd, store_area **area_out);
/* The adopted area of that owner and memory, where the device can tell; else NULL. */
store_area *store_area_of_file(pllm_store_memory *memory, int fd, uint32_t read_only,
                               const pllm_store_owner *owner);
int store_area_claim(pllm_store_memory *memory, store_area *area, pllm_store_block *block);
void store_area_drop(pllm_store_memory *memory, store_area *area, uint32_t abandoned);
uint64_t store_slab_spare(pllm_store_memory *memory); /* frees an empty slab, if one is kept */

#endif
