/* memory.c - blocks: the device memory of tensors, from creation to the end.
 *
 *   block   pieces of its own          large tensors
 *           a range of an area         small ones (an area is a piece), legacy ones (a slab)
 *           pages on the host          spilled ones (memory_spill.c)
 *
 * Nothing here is decided twice: which tensor may go or must stay is the registry's; this file and
 * its parts keep the promise that a call either does all of what it says or nothing.
 *
 * Invariants (pllm_store_memory_check): 1. A block has pieces, or an area, or pages on the host;
 * one that moves has both.
 * 2. The member's charge is stats.charged_bytes: pieces of blocks and areas, the stock, slabs.
 * 3. The stock's sums match its lists. 4. An area's used bytes and blocks are those that say so.
 * Threads: one at a time. */
#include <assert.h>
#include <string.h>
#include "base/bitmap.h"
#include "device/cuda.h"
#include "store/memory_internal.h"

#define UNIT_BYTES ((uint64_t)2 << 20)
#define BLOCK_BYTES_MAX ((uint64_t)1 << 48)

void store_memory_checked(const pllm_store_memory *memory)
{
#ifdef PLLM_CHECKS
    pllm_store_memory_check(memory);
#else
    (void)memory;
#endif
}

/* ---- open and close ---- */

static int options_fill(pllm_store_memory *memory)
{
    pllm_store_memory_options *options = &memory->options;
    uint64_t unit = memory->unit_bytes;
    if (!options->piece_bytes_max)
        options->piece_bytes_max = unit > (uint64_t)1 << 30 ? unit : (uint64_t)1 << 30;
    if (!options->small_bytes_max) options->small_bytes_max = (uint64_t)1 << 20;
    if (options->small_bytes_max == UINT64_MAX) options->small_bytes_max = 0;
    if (!options->slab_bytes) options->slab_bytes = (uint64_t)32 << 20;
    if (options->slab_bytes < unit) options->slab_bytes = unit;
    options->slab_bytes -= options->slab_bytes % unit;
    uint64_t piece = options->piece_bytes_max;
    while (memory->class_count < STORE_CLASSES_MAX && unit << memory->class_count <= piece)
        memory->class_count++;
    if (memory->class_count == 0 || unit << (memory->class_count - 1) != piece ||
        options->small_bytes_max > unit)
        return pllm_fail(
            PLLM_EINVAL, 0,
            "pieces of up to %llu bytes are no power of two of at least %llu, or small "
            "tensors of %llu don't fit in one",
            (unsigned long long)piece, (unsigned long long)unit,
            (unsigned long long)options->small_bytes_max);
    return PLLM_OK;
}

int pllm_store_memory_open(const pllm_context *context, pllm_device *device,
                           pllm_budget_member *member, const pllm_store_memory_options *options,
                           pllm_store_memory **memory_out)
{
    if (!memory_out || !device || !member)
        return pllm_fail(PLLM_EINVAL, 0, "the store's memory needs a device, a member, a result");
    *memory_out = NULL;
    pllm_store_memory_options chosen = {.struct_bytes = sizeof chosen};
    if (options) chosen = *options;
    if (chosen.struct_bytes != sizeof chosen)
        return pllm_fail(PLLM_EINVAL, 0, "pllm_store_memory_options.struct_bytes is %u, not %zu",
                         chosen.struct_bytes, sizeof chosen);
    pllm_device_info info;
    int status = device->ops->info(device, &info);
    if (status < 0) return status;
    pllm_store_memory *memory = pllm_alloc(context, sizeof *memory);
    if (!memory) return pllm_fail_memory("the store's memory", sizeof *memory);
    memory->context = context;
    memory->device = device;
    memory->ops = device->ops;
    memory->member = member;
    memory->options = chosen;
    memory->restricts = !pllm_cuda_is(device);
    memory->unit_bytes = info.granularity_bytes > UNIT_BYTES ? info.granularity_bytes : UNIT_BYTES;
    status = options_fill(memory);
    if (status < 0) goto fail_memory;
    status = device->ops->stream_open(device, &memory->stream);
    if (status < 0) goto fail_memory;
    status = device->ops->event_open(device, &memory->zeroed);
    if (status < 0) goto fail_stream;
    status = store_spill_open(memory);
    if (status < 0) goto fail_spill;
    *memory_out = memory;
    return PLLM_OK;
fail_spill:
    store_spill_close(memory);
    device->ops->event_close(device, memory->zeroed);
fail_stream:
    device->ops->stream_close(device, memory->stream);
fail_memory:
    pllm_free(context, memory);
    return status;
}

void pllm_store_memory_close(pllm_store_memory *memory)
{
    if (!memory) return;
    assert(!memory->blocks);
    (void)pllm_store_memory_trim(memory, UINT64_MAX);
    assert(memory->stats.charged_bytes == 0);
    store_spill_close(memory);
    memory->ops->event_close(memory->device, memory->zeroed);
    memory->ops->stream_close(memory->device, memory->stream);
    pllm_free(memory->context, memory);
}

/* ---- blocks ---- */

/* How many pieces make up bytes, the largest first; the size of number index in *piece_bytes. */
static uint32_t pieces_of(const pllm_store_memory *memory, uint64_t bytes, uint32_t index,
                          uint64_t *piece_bytes)
{
    uint64_t unit = memory->unit_bytes, most = memory->options.piece_bytes_max;
    uint64_t rounded = (bytes + unit - 1) / unit * unit, whole = rounded / most;
    uint64_t count = whole + (uint64_t)__builtin_popcountll(rounded % most);
    if (piece_bytes) {
        *piece_bytes = most;
        uint64_t rest = rounded % most;
        for (uint64_t i = whole; i <= index && rest; i++) {
            *piece_bytes = (uint64_t)1 << (63 - __builtin_clzll(rest));
            rest -= *piece_bytes;
        }
    }
    return count > UINT32_MAX ? UINT32_MAX : (uint32_t)count;
}

int pllm_store_memory_measure(const pllm_store_memory *memory, uint64_t bytes, uint32_t legacy,
                              uint64_t *charge_bytes_out)
{
    uint64_t unit = memory->unit_bytes;
    *charge_bytes_out = 0;
    if (bytes > BLOCK_BYTES_MAX ||
        (!legacy && pieces_of(memory, bytes, 0, NULL) > PLLM_STORE_BLOCK_PIECES_MAX))
        return pllm_fail(
            PLLM_ELIMIT, 0,
            "a tensor of %llu bytes is too large: it has at most %d pieces of %llu bytes",
            (unsigned long long)bytes, (int)PLLM_STORE_BLOCK_PIECES_MAX,
            (unsigned long long)memory->options.piece_bytes_max);
    if (legacy || bytes <= memory->options.small_bytes_max) unit = STORE_AREA_UNIT;
    *charge_bytes_out = (bytes + unit - 1) / unit * unit;
    return PLLM_OK;
}

static void block_enter(pllm_store_memory *memory, pllm_store_block *block)
{
    block->next = memory->blocks;
    if (block->next) block->next->previous = block;
    memory->blocks = block;
    memory->stats.block_count++;
    memory->stats.legacy_count += block->legacy;
    memory->stats.block_bytes += block->bytes;
}

/* Takes what the block is made of; it has its size, owner and kind. */
int store_block_back(pllm_store_memory *memory, pllm_store_block *block)
{
    if (block->legacy || block->bytes <= memory->options.small_bytes_max)
        return store_area_take(memory, block);
    uint32_t count = pieces_of(memory, block->bytes, 0, NULL), taken = 0;
    block->pieces = pllm_alloc_array(memory->context, count, sizeof *block->pieces);
    if (!block->pieces) return pllm_fail_memory("a tensor's pieces", count * sizeof *block->pieces);
    int status = PLLM_OK;
    for (; taken < count && status == PLLM_OK; taken += status == PLLM_OK) {
        uint64_t bytes;
        (void)pieces_of(memory, block->bytes, taken, &bytes);
        status = store_piece_take(memory, store_class_of(memory, bytes), &block->owner,
                                  &block->pieces[taken]);
    }
    if (status < 0) {
        while (taken > 0) store_piece_give(memory, block->pieces[--taken], 1, 0);
        pllm_free(memory->context, block->pieces);
        block->pieces = NULL;
        return status;
    }
    for (uint32_t i = 0; i < count; i++) { /* from now on their descriptors may be somebody's */
        block->pieces[i]->owned = 1;
        block->pieces[i]->owner = block->owner;
    }
    block->piece_count = count;
    block->offset = 0;
    return PLLM_OK;
}

/* Gives it all back. */
void store_block_unback(pllm_store_memory *memory, pllm_store_block *block, uint32_t abandoned)
{
    if (block->area) store_area_give(memory, block, abandoned);
    for (uint32_t i = 0; i < block->piece_count; i++)
        store_piece_give(memory, block->pieces[i], 0, abandoned);
    pllm_free(memory->context, block->pieces);
    block->pieces = NULL;
    block->piece_count = 0;
}

int pllm_store_memory_create(pllm_store_memory *memory, uint64_t bytes, uint32_t legacy,
                             const pllm_store_owner *owner, pllm_store_block **block_out)
{
    uint64_t charge;
    *block_out = NULL;
    if (bytes == 0) return pllm_fail(PLLM_EINVAL, 0, "a tensor of 0 bytes");
    int status = pllm_store_memory_measure(memory, bytes, legacy, &charge);
    if (status < 0) return status;
    if (legacy && !pllm_cuda_is(memory->device))
        return pllm_fail(PLLM_EUNSUPPORTED, 0, "device %s has no legacy memory: only CUDA has",
                         memory->ops->name);
    if (legacy && memory->options.legacy_bytes_max == 0)
        return pllm_fail(PLLM_EUNSUPPORTED, 0, "the store was started without a legacy arena");
    pllm_store_block *block = pllm_alloc(memory->context, sizeof *block);
    if (!block) return pllm_fail_memory("a tensor", sizeof *block);
    *block = (pllm_store_block){.bytes = bytes, .owner = *owner, .legacy = legacy != 0};
    status = store_block_back(memory, block);
    if (status < 0) {
        pllm_free(memory->context, block);
        store_memory_checked(memory);
        return status;
    }
    block_enter(memory, block);
    *block_out = block;
    store_memory_checked(memory);
    return PLLM_OK;
}

void pllm_store_memory_free(pllm_store_memory *memory, pllm_store_block *block, uint32_t abandoned)
{
    if (!block) return;
    pllm_store_memory_cancel(memory, block);
    (void)pllm_store_memory_settle(memory, block);
    if (block->spilled) {
        store_spill_forget(memory, block);
        memory->stats.spilled_count--;
        memory->stats.spilled_bytes -= block->bytes;
    } else {
        store_block_unback(memory, block, abandoned);
        memory->stats.block_bytes -= block->bytes;
    }
    memory->stats.block_count--;
    memory->stats.legacy_count -= block->legacy;
    if (block->next) block->next->previous = block->previous;
    if (block->previous)
        block->previous->next = block->next;
    else
        memory->blocks = block->next;
    pllm_free(memory->context, block);
    store_memory_checked(memory);
}

/* ---- adopting ---- */

static int adopt_check(const pllm_store_memory *memory, uint64_t bytes, uint64_t offset,
                       const uint64_t *piece_bytes, uint32_t piece_count)
{
    uint64_t sum = 0, end;
    int bad = bytes == 0 || piece_count == 0 || piece_count > PLLM_STORE_BLOCK_PIECES_MAX ||
              (piece_count > 1 && offset > 0) || __builtin_add_overflow(offset, bytes, &end);
    for (uint32_t i = 0; i < piece_count && !bad; i++)
        bad = piece_bytes[i] == 0 || piece_bytes[i] % memory->unit_bytes ||
              piece_bytes[i] > BLOCK_BYTES_MAX || __builtin_add_overflow(sum, piece_bytes[i], &sum);
    if (!bad && end <= sum) return PLLM_OK;
    return pllm_fail(PLLM_EINVAL, 0, "%llu bytes at %llu do not lie in the %u pieces offered",
                     (unsigned long long)bytes, (unsigned long long)offset, piece_count);
}

/* One piece of a client's, charged. */
static int adopt_piece(pllm_store_memory *memory, int fd, uint64_t bytes, uint32_t read_only,
                       const pllm_store_owner *owner, store_piece **piece_out)
{
    pllm_chunk *chunk;
    int status = store_charge_adopted(memory, bytes);
    if (status < 0) return status;
    status = memory->ops->chunk_import(memory->device, fd, bytes, read_only, &chunk);
    if (status < 0) goto fail_charge;
    status = store_piece_adopt(memory, chunk, bytes, fd, read_only, owner, piece_out);
    if (status < 0) goto fail_chunk;
    memory->stats.piece_count++;
    memory->stats.piece_bytes += bytes;
    return PLLM_OK;
fail_chunk:
    memory->ops->chunk_destroy(memory->device, chunk);
fail_charge:
    store_credit(memory, bytes);
    return status;
}

/* A small one: in the area of its piece, if another block has brought that already. */
static int adopt_small(pllm_store_memory *memory, pllm_store_block *block, int fd,
                       uint64_t piece_bytes, uint32_t read_only)
{
    store_piece *piece;
    store_area *area = store_area_of_file(memory, fd, read_only, &block->owner);
    if (area) return store_area_claim(memory, area, block);
    int status = adopt_piece(memory, fd, piece_bytes, read_only, &block->owner, &piece);
    if (status < 0) return status;
    status = store_area_adopt(memory, piece, fd, &area);
    if (status < 0) {
        store_piece_give(memory, piece, 0, 1);
        return status;
    }
    status = store_area_claim(memory, area, block);
    if (status < 0) store_area_drop(memory, area, 1);
    return status;
}

static int adopt_large(pllm_store_memory *memory, pllm_store_block *block, const int *fds,
                       const uint64_t *piece_bytes, uint32_t piece_count, uint32_t read_only)
{
    uint32_t taken = 0;
    int status = PLLM_OK;
    block->pieces = pllm_alloc_array(memory->context, piece_count, sizeof *block->pieces);
    if (!block->pieces)
        return pllm_fail_memory("a tensor's pieces", piece_count * sizeof *block->pieces);
    for (; taken < piece_count && status == PLLM_OK; taken += status == PLLM_OK)
        status = adopt_piece(memory, fds[taken], piece_bytes[taken], read_only, &block->owner,
                             &block->pieces[taken]);
    if (status < 0) {
        while (taken > 0) store_piece_give(memory, block->pieces[--taken], 0, 1);
        pllm_free(memory->context, block->pieces);
        block->pieces = NULL;
        return status;
    }
    block->piece_count = piece_count;
    return PLLM_OK;
}

int pllm_store_memory_adopt(pllm_store_memory *memory, uint64_t bytes, uint64_t offset,
                            const int *fds, const uint64_t *piece_bytes, uint32_t piece_count,
                            uint32_t read_only, const pllm_store_owner *owner,
                            pllm_store_block **block_out)
{
    *block_out = NULL;
    int status = adopt_check(memory, bytes, offset, piece_bytes, piece_count);
    if (status < 0) return status;
    pllm_store_block *block = pllm_alloc(memory->context, sizeof *block);
    if (!block) return pllm_fail_memory("a tensor", sizeof *block);
    *block = (pllm_store_block){
        .bytes = bytes, .offset = offset, .owner = *owner, .read_only = read_only != 0};
    if (piece_count == 1 && bytes <= memory->options.small_bytes_max)
        status = adopt_small(memory, block, fds[0], piece_bytes[0], read_only != 0);
    else
        status = adopt_large(memory, block, fds, piece_bytes, piece_count, read_only != 0);
    if (status < 0) {
        pllm_free(memory->context, block);
    } else {
        block_enter(memory, block);
        *block_out = block;
    }
    store_memory_checked(memory);
    return status;
}

/* ---- what a client is told ---- */

void pllm_store_block_cookie_set(pllm_store_block *block, uint64_t cookie)
{
    block->cookie = cookie;
}

uint64_t pllm_store_block_cookie(const pllm_store_block *block)
{
    return block->cookie;
}

static uint32_t piece_count_of(const pllm_store_block *block)
{
    return block->area && block->area->piece ? 1 : block->piece_count;
}

static const store_piece *piece_of(const pllm_store_block *block, uint32_t index)
{
    return block->area ? block->area->piece : block->pieces[index];
}

void pllm_store_block_layout_get(const pllm_store_block *block, pllm_store_block_layout *out)
{
    *out = (pllm_store_block_layout){
        .bytes = block->bytes,
        .offset = block->spilled ? 0 : block->offset,
        .piece_count = block->spilled ? 0 : piece_count_of(block),
        .legacy = block->legacy,
        .spilled = block->spilled,
        .read_only = block->read_only,
    };
}

int pllm_store_block_piece(const pllm_store_block *block, uint32_t index, uint32_t writable,
                           uint64_t *bytes_out, int *fd_out)
{
    *bytes_out = 0;
    *fd_out = -1;
    if (block->spilled || index >= piece_count_of(block))
        return pllm_fail(PLLM_EINVAL, 0, "there is no piece %u of %u", index,
                         piece_count_of(block));
    const store_piece *piece = piece_of(block, index);
    if (writable && piece->read_only)
        return pllm_fail(PLLM_EPERM, 0, "this tensor was handed over for reading only");
    *bytes_out = piece->bytes;
    *fd_out = writable || piece->fd_read < 0 ? piece->fd_write : piece->fd_read;
    return PLLM_OK;
}

int pllm_store_block_handle(const pllm_store_block *block,
                            uint8_t handle_out[PLLM_STORE_LEGACY_HANDLE_BYTES])
{
    memset(handle_out, 0, PLLM_STORE_LEGACY_HANDLE_BYTES);
    if (!block->legacy) return pllm_fail(PLLM_EINVAL, 0, "this tensor has no legacy handle");
    memcpy(handle_out, block->area->handle, PLLM_STORE_LEGACY_HANDLE_BYTES);
    return PLLM_OK;
}

/* ---- bytes ---- */

/* Copies between pointer and [offset, offset + bytes) of a block on the device, piece by piece. */
static int block_move(pllm_store_memory *memory, const pllm_store_block *block, pllm_copy_kind kind,
                      uint64_t offset, uint64_t bytes, uint64_t pointer)
{
    const pllm_device_ops *ops = memory->ops;
    uint64_t first = 0; /* of the tensor, where the piece begins */
    int status = PLLM_OK;
    for (uint32_t i = 0; bytes > 0 && status == PLLM_OK; i++) {
        pllm_va va = block->area ? block->area->va + block->offset : block->pieces[i]->va;
        uint64_t room = block->area ? block->bytes : block->pieces[i]->bytes, at = 0;
        if (!block->area && i == 0) va += block->offset, room -= block->offset;
        if (offset >= first + room) {
            first += room;
            continue;
        }
        at = offset - first;
        uint64_t part = room - at < bytes ? room - at : bytes;
        pllm_copy copy = {va + at, pointer, part};
        if (kind == PLLM_COPY_OUT) copy = (pllm_copy){pointer, va + at, part};
        status = ops->copy(memory->device, memory->stream, kind, &copy);
        offset += part;
        pointer += part;
        bytes -= part;
        first += room;
    }
    int synced = ops->stream_sync(memory->device, memory->stream);
    return status < 0 ? status : synced;
}

static int check_range(const pllm_store_block *block, uint64_t offset, uint64_t bytes)
{
    if (offset <= block->bytes && bytes <= block->bytes - offset) return PLLM_OK;
    return pllm_fail(PLLM_EINVAL, 0, "%llu bytes at %llu lie outside a tensor of %llu",
                     (unsigned long long)bytes, (unsigned long long)offset,
                     (unsigned long long)block->bytes);
}

int pllm_store_block_read(pllm_store_memory *memory, pllm_store_block *block, uint64_t offset,
                          uint64_t bytes, void *pointer)
{
    int status = check_range(block, offset, bytes);
    if (status < 0 || bytes == 0) return status;
    if (block->moving) return PLLM_EBUSY;
    if (block->spilled) return store_spill_bytes(memory, block, offset, bytes, pointer, NULL);
    return block_move(memory, block, PLLM_COPY_OUT, offset, bytes, (uintptr_t)pointer);
}

int pllm_store_block_write(pllm_store_memory *memory, pllm_store_block *block, uint64_t offset,
                           uint64_t bytes, const void *pointer)
{
    int status = check_range(block, offset, bytes);
    if (status < 0 || bytes == 0) return status;
    if (block->moving) return PLLM_EBUSY;
    if (block->spilled) return store_spill_bytes(memory, block, offset, bytes, NULL, pointer);
    return block_move(memory, block, PLLM_COPY_IN, offset, bytes, (uintptr_t)pointer);
}

/* ---- figures ---- */

void pllm_store_memory_stats_get(const pllm_store_memory *memory, pllm_store_memory_stats *out)
{
    *out = memory->stats;
    out->ready_bytes = 0;
    for (uint32_t i = 0; i < memory->class_count; i++)
        for (const store_piece *piece = memory->ready[i]; piece; piece = piece->next)
            out->ready_bytes += piece->bytes;
    out->dirty_bytes = store_stock(memory) - out->ready_bytes;
}

/* 4: every bit that is set is a block's, and the other way round. */
static uint64_t check_areas(const pllm_store_memory *memory, const store_area *area,
                            uint64_t *used_out)
{
    uint64_t bytes = 0;
    *used_out = 0;
    for (; area; area = area->next) {
        uint64_t used = 0;
        uint32_t count = 0;
        for (const pllm_store_block *block = memory->blocks; block; block = block->next)
            if (block->area == area) {
                assert(store_owner_same(&block->owner, &area->owner));
                used += (block->bytes + STORE_AREA_UNIT - 1) / STORE_AREA_UNIT * STORE_AREA_UNIT;
                count++;
            }
        assert(used == area->used_bytes && count == area->block_count);
        assert(pllm_bitmap_count(area->taken, 0, area->bytes / STORE_AREA_UNIT) ==
               used / STORE_AREA_UNIT);
        bytes += area->bytes;
        *used_out += used;
    }
    return bytes;
}

void pllm_store_memory_check(const pllm_store_memory *memory)
{
    const pllm_store_memory_stats *stats = &memory->stats;
    uint64_t used, pieces = check_areas(memory, memory->areas, &used), tensors = 0, spilled = 0;
    uint64_t slabs = check_areas(memory, memory->slabs, &used);
    uint64_t stocked[STORE_CLASSES_MAX] = {0};
    assert(slabs == stats->slab_bytes && used == stats->slab_used_bytes);
    for (const pllm_store_block *block = memory->blocks; block; block = block->next) {
        int here = block->area || block->pieces;
        assert(!block->area || !block->pieces);                              /* 1 */
        assert(here == (!block->spilled || block->moving));                  /* 1 */
        assert((block->pages != NULL) == (block->spilled || block->moving)); /* 1 */
        for (uint32_t i = 0; i < block->piece_count; i++) {
            assert(block->pieces[i]->state == PIECE_USED);
            assert(store_owner_same(&block->pieces[i]->owner, &block->owner));
            pieces += block->pieces[i]->bytes;
        }
        *(block->spilled ? &spilled : &tensors) += block->bytes;
    }
    assert(pieces == stats->piece_bytes && tensors == stats->block_bytes);
    assert(spilled == stats->spilled_bytes);
    for (uint32_t i = 0; i < memory->class_count; i++)
        for (const store_piece *piece = memory->ready[i]; piece; piece = piece->next) {
            assert(piece->state == PIECE_READY && piece->class == i);
            stocked[i] += piece->bytes;
        }
    for (const store_piece *piece = memory->dirty; piece; piece = piece->next)
        stocked[piece->class] += piece->bytes;
    for (const store_piece *piece = memory->zeroing; piece; piece = piece->next)
        stocked[piece->class] += piece->bytes;
    for (uint32_t i = 0; i < memory->class_count; i++) assert(stocked[i] == memory->stocked[i]);
    assert(store_stock(memory) <= memory->options.ready_bytes);           /* 3 */
    assert(stats->charged_bytes == pieces + slabs + store_stock(memory)); /* 2 */
    assert(stats->charged_bytes == pllm_budget_charged(memory->member));
}
