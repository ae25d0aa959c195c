/* memory_area.c - areas: one piece, or one slab of the legacy arena, that blocks of one owner
 * share.
 *
 *   taken   1 1 1 0 0 1 1 1 1 0 0 0 0 0 ...     a bit for 512 bytes; first fit
 *   [ block a  |      | block b  |      zero     )
 *                                ^ touched_end: from here on nobody has written
 *
 * A range is zeroed when it is given out, if anybody can have written there. A slab's memory holds
 * what others left: there all of it counts as touched. An area is retired when one of its blocks
 * was abandoned, since a process may go on writing there; nothing is taken from it any more, and it
 * goes with its last block. Of empty slabs one is kept, for its owner: making one means a call that
 * stops the whole device. */
#include <assert.h>
#include <string.h>
#include <sys/stat.h>
#include "base/bitmap.h"
#include "device/cuda.h"
#include "store/memory_internal.h"

static uint64_t units(uint64_t bytes)
{
    return bytes / STORE_AREA_UNIT + (bytes % STORE_AREA_UNIT != 0);
}

static store_area **list_of(pllm_store_memory *memory, const store_area *area)
{
    return area->piece ? &memory->areas : &memory->slabs;
}

/* Around a piece, or (NULL) a slab of that address. */
static store_area *area_new(pllm_store_memory *memory, store_piece *piece, pllm_va va,
                            uint64_t bytes, const pllm_store_owner *owner)
{
    uint64_t words = pllm_bitmap_words(bytes / STORE_AREA_UNIT);
    store_area *area = pllm_alloc(memory->context, sizeof *area);
    if (!area) {
        pllm_fail_memory("an area of small tensors", sizeof *area);
        return NULL;
    }
    *area = (store_area){.piece = piece, .va = va, .bytes = bytes, .owner = *owner};
    area->touched_end = piece ? 0 : bytes;
    area->taken = pllm_alloc_array(memory->context, words, sizeof *area->taken);
    if (area->taken) return area;
    pllm_fail_memory("an area's bitmap", words * sizeof *area->taken);
    pllm_free(memory->context, area);
    return NULL;
}

static void area_free(pllm_store_memory *memory, store_area *area)
{
    pllm_free(memory->context, area->taken);
    pllm_free(memory->context, area);
}

static void area_enter(pllm_store_memory *memory, store_area *area)
{
    store_area **list = list_of(memory, area);
    area->next = *list;
    *list = area;
}

/* ---- slabs ---- */

static int slab_make(pllm_store_memory *memory, uint64_t bytes, const pllm_store_owner *owner,
                     store_area **area_out)
{
    pllm_va va;
    if (bytes > memory->options.legacy_bytes_max - memory->stats.slab_bytes)
        (void)store_slab_spare(memory);
    if (bytes > memory->options.legacy_bytes_max - memory->stats.slab_bytes)
        return pllm_fail(PLLM_ELIMIT, 0,
                         "legacy tensors have %llu bytes of slabs, and %llu more would pass the "
                         "arena's limit of %llu",
                         (unsigned long long)memory->stats.slab_bytes, (unsigned long long)bytes,
                         (unsigned long long)memory->options.legacy_bytes_max);
    int status = store_charge(memory, bytes);
    if (status < 0) return status;
    status = pllm_cuda_plain_alloc(memory->device, bytes, &va);
    while (status == PLLM_ENODEVMEM && store_stock_trim(memory, bytes) > 0)
        status = pllm_cuda_plain_alloc(memory->device, bytes, &va);
    if (status < 0) goto fail_charge;
    store_area *area = area_new(memory, NULL, va, bytes, owner);
    if (!area) {
        status = PLLM_ENOMEM;
        goto fail_va;
    }
    status = pllm_cuda_ipc_export(memory->device, va, area->handle, NULL);
    if (status < 0) goto fail_area;
    memory->stats.slab_bytes += bytes;
    area_enter(memory, area);
    *area_out = area;
    return PLLM_OK;
fail_area:
    area_free(memory, area);
fail_va:
    pllm_cuda_plain_free(memory->device, va);
fail_charge:
    store_credit(memory, bytes);
    return status;
}

static void slab_destroy(pllm_store_memory *memory, store_area *area)
{
    pllm_cuda_plain_free(memory->device, area->va);
    memory->stats.slab_bytes -= area->bytes;
    store_credit(memory, area->bytes);
    area_free(memory, area);
}

uint64_t store_slab_spare(pllm_store_memory *memory)
{
    store_area **link = &memory->slabs;
    while (*link && (*link)->block_count > 0) link = &(*link)->next;
    store_area *area = *link;
    if (!area) return 0;
    uint64_t bytes = area->bytes;
    *link = area->next;
    slab_destroy(memory, area);
    return bytes;
}

/* ---- areas ---- */

static int area_make(pllm_store_memory *memory, const pllm_store_owner *owner,
                     store_area **area_out)
{
    store_piece *piece;
    int status = store_piece_take(memory, 0, owner, &piece);
    if (status < 0) return status;
    store_area *area = area_new(memory, piece, piece->va, piece->bytes, owner);
    if (!area) {
        store_piece_give(memory, piece, 1, 0);
        return PLLM_ENOMEM;
    }
    area_enter(memory, area);
    *area_out = area;
    return PLLM_OK;
}

/* Empty: it goes, or stays as the one spare slab. */
void store_area_drop(pllm_store_memory *memory, store_area *area, uint32_t abandoned)
{
    assert(area->block_count == 0);
    store_area **link = list_of(memory, area);
    while (*link != area) link = &(*link)->next;
    *link = area->next;
    if (area->piece) {
        store_piece_give(memory, area->piece, area->touched_end == 0, abandoned);
        area_free(memory, area);
    } else if (area->retired || area->bytes != memory->options.slab_bytes) {
        slab_destroy(memory, area);
    } else {
        (void)store_slab_spare(memory);
        area_enter(memory, area);
    }
}

static void range_set(pllm_store_memory *memory, store_area *area, pllm_store_block *block)
{
    uint64_t count = units(block->bytes), first = block->offset / STORE_AREA_UNIT;
    pllm_bitmap_set_range(area->taken, first, count);
    area->used_bytes += count * STORE_AREA_UNIT;
    area->block_count++;
    if (!area->piece) memory->stats.slab_used_bytes += count * STORE_AREA_UNIT;
    if (area->touched_end < (first + count) * STORE_AREA_UNIT)
        area->touched_end = (first + count) * STORE_AREA_UNIT;
    block->area = area;
}

static void range_clear(pllm_store_memory *memory, store_area *area, pllm_store_block *block)
{
    uint64_t count = units(block->bytes);
    pllm_bitmap_clear_range(area->taken, block->offset / STORE_AREA_UNIT, count);
    area->used_bytes -= count * STORE_AREA_UNIT;
    area->block_count--;
    if (!area->piece) memory->stats.slab_used_bytes -= count * STORE_AREA_UNIT;
    block->area = NULL;
}

/* One of the owner's with room: where, or NULL. */
static store_area *area_find(const pllm_store_memory *memory, const pllm_store_block *block,
                             uint64_t *first_out)
{
    store_area *area = block->legacy ? memory->slabs : memory->areas;
    for (; area; area = area->next) {
        if (area->retired || !store_owner_same(&area->owner, &block->owner)) continue;
        if (area->bytes - area->used_bytes < block->bytes) continue;
        uint64_t first = pllm_bitmap_find_clear_run(area->taken, area->bytes / STORE_AREA_UNIT, 0,
                                                    units(block->bytes));
        if (first == PLLM_BITMAP_NONE) continue;
        *first_out = first;
        return area;
    }
    return NULL;
}

int store_area_take(pllm_store_memory *memory, pllm_store_block *block)
{
    uint64_t first = 0, slab_bytes = memory->options.slab_bytes;
    store_area *area = area_find(memory, block, &first);
    int status = PLLM_OK;
    if (!area && block->legacy) {
        uint64_t wanted = block->bytes + memory->unit_bytes - 1;
        wanted -= wanted % memory->unit_bytes;
        status = slab_make(memory, wanted > slab_bytes ? wanted : slab_bytes, &block->owner, &area);
    } else if (!area) {
        status = area_make(memory, &block->owner, &area);
    }
    if (status < 0) return status;
    uint64_t offset = first * STORE_AREA_UNIT;
    block->offset = offset;
    if (offset < area->touched_end)
        status = store_zero_now(memory, area->va + offset, units(block->bytes) * STORE_AREA_UNIT);
    if (status < 0) {
        if (area->block_count == 0) store_area_drop(memory, area, 0);
        return status;
    }
    range_set(memory, area, block);
    if (area->piece) { /* from now on its descriptors may be somebody's */
        area->piece->owned = 1;
        area->piece->owner = block->owner;
    }
    return PLLM_OK;
}

void store_area_give(pllm_store_memory *memory, pllm_store_block *block, uint32_t abandoned)
{
    store_area *area = block->area;
    range_clear(memory, area, block);
    /* An abandoned block's writer may go on in the others' piece, too: it goes with the last. */
    if (abandoned) area->retired = 1;
    if (area->block_count == 0) store_area_drop(memory, area, area->retired);
}

/* Descriptors of one memory file name the same file; a GPU's tell nothing. */
static int file_of(int fd, uint64_t *device, uint64_t *file)
{
    struct stat info;
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) return 0;
    *device = info.st_dev;
    *file = info.st_ino;
    return 1;
}

store_area *store_area_of_file(pllm_store_memory *memory, int fd, uint32_t read_only,
                               const pllm_store_owner *owner)
{
    uint64_t device, file;
    store_area *area = file_of(fd, &device, &file) ? memory->areas : NULL;
    while (area && (!area->piece->imported || area->device != device || area->file != file ||
                    area->piece->read_only != read_only || !store_owner_same(&area->owner, owner)))
        area = area->next;
    return area;
}

int store_area_adopt(pllm_store_memory *memory, store_piece *piece, int fd, store_area **area_out)
{
    store_area *area = area_new(memory, piece, piece->va, piece->bytes, &piece->owner);
    if (!area) return PLLM_ENOMEM;
    (void)file_of(fd, &area->device, &area->file);
    area->retired = 1;
    area->touched_end = area->bytes;
    area_enter(memory, area);
    *area_out = area;
    return PLLM_OK;
}

int store_area_claim(pllm_store_memory *memory, store_area *area, pllm_store_block *block)
{
    uint64_t first = block->offset / STORE_AREA_UNIT, count = units(block->bytes);
    if (block->offset % STORE_AREA_UNIT || first + count > area->bytes / STORE_AREA_UNIT ||
        pllm_bitmap_count(area->taken, first, count) > 0)
        return pllm_fail(PLLM_EINVAL, 0,
                         "%llu bytes at %llu lie outside of the piece, or over another tensor",
                         (unsigned long long)block->bytes, (unsigned long long)block->offset);
    range_set(memory, area, block);
    return PLLM_OK;
}
