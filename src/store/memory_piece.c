/* memory_piece.c - pieces: made, exported, kept ready, zeroed for the next, given up.
 *
 *                       make (charge, create, map, export)
 *                                   |
 *        tick    ------------->   READY  ----- take ---->  USED
 *                                   ^                        |
 *      event done                   |                       give
 *        ZEROING ------------------ +                        |
 *           ^                                                v
 *           +------ tick: fill, one event for all ------   DIRTY       no room, another's: gone
 *
 * What is READY, DIRTY or ZEROING is the stock, at most ready_bytes. How much of it each size
 * should have follows from what was asked for lately (demand, halved now and then); a size that has
 * more than its share makes room for one that has less. The two rules leave half a piece between
 * them, so that they do not undo one another.
 *
 * A piece keeps its place in this process's address space for as long as it lives: mapping costs,
 * and address space does not. */
#include <assert.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>
#include "device/cuda.h"
#include "store/memory_internal.h"

uint32_t store_class_of(const pllm_store_memory *memory, uint64_t bytes)
{
    uint32_t class = 0;
    while (memory->unit_bytes << class < bytes) class ++;
    assert(memory->unit_bytes << class == bytes && class < memory->class_count);
    return class;
}

uint64_t store_stock(const pllm_store_memory *memory)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < memory->class_count; i++) bytes += memory->stocked[i];
    return bytes;
}

void store_credit(pllm_store_memory *memory, uint64_t bytes)
{
    pllm_budget_credit(memory->member, bytes);
    memory->stats.charged_bytes -= bytes;
    memory->refused = 0;
}

static int charge_once(pllm_store_memory *memory, uint64_t bytes, int adopted)
{
    int status = adopted ? pllm_budget_charge_carried(memory->member, bytes)
                         : pllm_budget_charge(memory->member, bytes);
    if (status == PLLM_OK) memory->stats.charged_bytes += bytes;
    return status;
}

static int charge(pllm_store_memory *memory, uint64_t bytes, int adopted)
{
    int status = charge_once(memory, bytes, adopted);
    while (status == PLLM_ENODEVMEM &&
           (store_slab_spare(memory) > 0 || store_stock_trim(memory, bytes) > 0))
        status = charge_once(memory, bytes, adopted);
    return status;
}

int store_charge(pllm_store_memory *memory, uint64_t bytes)
{
    return charge(memory, bytes, 0);
}

int store_charge_adopted(pllm_store_memory *memory, uint64_t bytes)
{
    return charge(memory, bytes, 1);
}

int store_zero_now(pllm_store_memory *memory, pllm_va va, uint64_t bytes)
{
    int status = memory->ops->fill(memory->device, memory->stream, va, bytes, 0);
    int synced = memory->ops->stream_sync(memory->device, memory->stream);
    return status < 0 ? status : synced;
}

/* ---- one piece ---- */

static void close_descriptor(int fd)
{
    if (fd >= 0) close(fd);
}

/* Physical memory: what is ready of other sizes goes if the device has no more. */
static int chunk_make(pllm_store_memory *memory, uint64_t bytes, pllm_chunk **chunk_out)
{
    int status = memory->ops->chunk_create(memory->device, bytes, chunk_out);
    while (status == PLLM_ENODEVMEM && store_stock_trim(memory, bytes) > 0)
        status = memory->ops->chunk_create(memory->device, bytes, chunk_out);
    return status;
}

/* A new piece, clean and exported; its bytes are charged already. pressing: others may go for it.
 */
static int piece_make(pllm_store_memory *memory, uint32_t class, uint32_t pressing,
                      store_piece **piece_out)
{
    const pllm_device_ops *ops = memory->ops;
    pllm_device *device = memory->device;
    uint64_t bytes = memory->unit_bytes << class;
    store_piece *piece = pllm_alloc(memory->context, sizeof *piece);
    if (!piece) return pllm_fail_memory("a piece of tensor memory", sizeof *piece);
    *piece = (store_piece){.bytes = bytes, .class = class, .fd_write = -1, .fd_read = -1};
    int status = ops->reserve(device, bytes, &piece->va);
    if (status < 0) goto fail_piece;
    status = pressing ? chunk_make(memory, bytes, &piece->chunk)
                      : ops->chunk_create(device, bytes, &piece->chunk);
    if (status < 0) goto fail_va;
    status = ops->map(device, piece->va, &piece->chunk, 1);
    if (status < 0) goto fail_chunk;
    status = ops->chunk_export(device, piece->chunk, 0, &piece->fd_write);
    if (status < 0) goto fail_map;
    if (memory->restricts) status = ops->chunk_export(device, piece->chunk, 1, &piece->fd_read);
    if (status < 0) goto fail_fd;
    *piece_out = piece;
    return PLLM_OK;
fail_fd:
    close(piece->fd_write);
fail_map:
    ops->unmap(device, piece->va, piece->chunk);
fail_chunk:
    ops->chunk_destroy(device, piece->chunk);
fail_va:
    ops->release(device, piece->va, bytes);
fail_piece:
    pllm_free(memory->context, piece);
    return status;
}

void store_piece_destroy(pllm_store_memory *memory, store_piece *piece)
{
    const pllm_device_ops *ops = memory->ops;
    close_descriptor(piece->fd_write);
    close_descriptor(piece->fd_read);
    ops->unmap(memory->device, piece->va, piece->chunk);
    ops->chunk_destroy(memory->device, piece->chunk);
    ops->release(memory->device, piece->va, piece->bytes);
    store_credit(memory, piece->bytes);
    pllm_free(memory->context, piece);
}

int store_piece_adopt(pllm_store_memory *memory, pllm_chunk *chunk, uint64_t bytes, int fd,
                      uint32_t read_only, const pllm_store_owner *owner, store_piece **piece_out)
{
    const pllm_device_ops *ops = memory->ops;
    pllm_device *device = memory->device;
    store_piece *piece = pllm_alloc(memory->context, sizeof *piece);
    if (!piece) return pllm_fail_memory("a piece of tensor memory", sizeof *piece);
    *piece = (store_piece){.chunk = chunk,
                           .bytes = bytes,
                           .fd_write = -1,
                           .fd_read = -1,
                           .owned = 1,
                           .imported = 1,
                           .read_only = read_only,
                           .owner = *owner};
    int status = ops->reserve(device, bytes, &piece->va);
    if (status < 0) goto fail_piece;
    status = ops->map(device, piece->va, &piece->chunk, 1);
    if (status < 0) goto fail_va;
    /* What came is what goes out again: a driver need not export what it imported. */
    int *kept = read_only && memory->restricts ? &piece->fd_read : &piece->fd_write;
    *kept = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (*kept < 0) {
        status = pllm_fail(PLLM_EDEVICE, 0, "could not keep a descriptor of an adopted tensor");
        goto fail_map;
    }
    if (memory->restricts && !read_only)
        status = ops->chunk_export(device, piece->chunk, 1, &piece->fd_read);
    if (status < 0) goto fail_fd;
    *piece_out = piece;
    return PLLM_OK;
fail_fd:
    close(*kept);
fail_map:
    ops->unmap(device, piece->va, piece->chunk);
fail_va:
    ops->release(device, piece->va, bytes);
fail_piece:
    pllm_free(memory->context, piece);
    return status;
}

/* ---- the stock ---- */

static void stock_add(pllm_store_memory *memory, store_piece *piece, piece_state state)
{
    store_piece **list = state == PIECE_READY   ? &memory->ready[piece->class]
                         : state == PIECE_DIRTY ? &memory->dirty
                                                : &memory->zeroing;
    piece->state = state;
    piece->next = *list;
    *list = piece;
    memory->stocked[piece->class] += piece->bytes;
}

/* Takes *link out of its list. */
static store_piece *stock_remove(pllm_store_memory *memory, store_piece **link)
{
    store_piece *piece = *link;
    *link = piece->next;
    piece->next = NULL;
    memory->stocked[piece->class] -= piece->bytes;
    return piece;
}

/* The share of the stock that a size should have. Where nothing was asked for yet: half of it in
 * pieces of up to 64 MiB, a quarter in those of up to 16, the rest in the smallest. */
static uint64_t target_of(const pllm_store_memory *memory, uint32_t class)
{
    uint64_t ready = memory->options.ready_bytes, sum = 0;
    uint32_t large = 0, middle = 0;
    for (uint32_t i = 0; i < memory->class_count; i++) {
        uint64_t bytes = memory->unit_bytes << i;
        sum += memory->demand[i];
        if (bytes <= ready / 2 && bytes <= (uint64_t)64 << 20) large = i;
        if (bytes <= ready / 4 && bytes <= (uint64_t)16 << 20) middle = i;
    }
    if (sum > 0) return (uint64_t)((unsigned __int128)ready * memory->demand[class] / sum);
    return (class == large ? ready / 2 : 0) + (class == middle ? ready / 4 : 0) +
           (class == 0 ? ready / 4 : 0);
}

static void note_demand(pllm_store_memory *memory, uint32_t class)
{
    uint64_t sum = 0;
    memory->demand[class] += memory->unit_bytes << class;
    for (uint32_t i = 0; i < memory->class_count; i++) sum += memory->demand[i];
    if (sum / 4 <= memory->options.ready_bytes) return;
    for (uint32_t i = 0; i < memory->class_count; i++) memory->demand[i] /= 2;
}

/* The fills are over: all READY now or, if some failed, gone. */
static void zeroing_end(pllm_store_memory *memory, int status)
{
    while (memory->zeroing) {
        store_piece *piece = stock_remove(memory, &memory->zeroing);
        if (status < 0)
            store_piece_destroy(memory, piece);
        else
            stock_add(memory, piece, PIECE_READY);
    }
}

static void zeroing_wait(pllm_store_memory *memory)
{
    if (!memory->zeroing) return;
    int status = memory->ops->event_wait(memory->device, memory->zeroed, UINT64_MAX);
    int synced = memory->ops->stream_sync(memory->device, memory->stream);
    zeroing_end(memory, status < 0 ? status : synced);
}

/* The stocked piece whose going frees bytes with least to spare; else the largest. Those that the
 * device still zeroes are waited for, if there is nothing else. */
static store_piece **stock_best(pllm_store_memory *memory, uint64_t bytes)
{
    store_piece **best = NULL;
    for (store_piece **link = &memory->dirty; *link; link = &(*link)->next)
        if (!best || ((*best)->bytes < bytes && (*link)->bytes > (*best)->bytes) ||
            ((*link)->bytes >= bytes && (*link)->bytes < (*best)->bytes))
            best = link;
    if (best) return best;
    for (uint32_t i = 0; i < memory->class_count; i++)
        if (memory->ready[i]) {
            best = &memory->ready[i];
            if ((*best)->bytes >= bytes) break;
        }
    return best;
}

uint64_t store_stock_trim(pllm_store_memory *memory, uint64_t bytes)
{
    uint64_t gone = 0;
    while (gone < bytes) {
        store_piece **link = stock_best(memory, bytes - gone);
        if (!link && memory->zeroing) {
            zeroing_wait(memory);
            continue;
        }
        if (!link) break;
        store_piece *piece = stock_remove(memory, link);
        gone += piece->bytes;
        store_piece_destroy(memory, piece);
    }
    return gone;
}

/* Makes room in the stock for one more piece of the class, from sizes that have more than theirs.
 */
static int stock_room(pllm_store_memory *memory, uint32_t class)
{
    uint64_t bytes = memory->unit_bytes << class, stock = store_stock(memory);
    if (bytes > memory->options.ready_bytes) return 0;
    for (uint32_t i = memory->class_count;
         i-- > 0 && stock + bytes > memory->options.ready_bytes;) {
        uint64_t each = memory->unit_bytes << i, target = target_of(memory, i);
        while (i != class && stock + bytes > memory->options.ready_bytes && memory->ready[i] &&
               memory->stocked[i] > target + each / 2) {
            store_piece_destroy(memory, stock_remove(memory, &memory->ready[i]));
            stock -= each;
        }
    }
    return stock + bytes <= memory->options.ready_bytes;
}

/* ---- take and give ---- */

/* The owner's own before one that nobody has had yet; never another's. */
static store_piece **find(store_piece **link, uint32_t class, const pllm_store_owner *owner)
{
    store_piece **unowned = NULL;
    for (; *link; link = &(*link)->next) {
        if ((*link)->class != class) continue;
        if ((*link)->owned && store_owner_same(&(*link)->owner, owner)) return link;
        if (!(*link)->owned) unowned = link;
    }
    return unowned;
}

/* One that is stocked, made clean if it is not yet; NULL: none, and the status says if that is all
 * that is wrong. */
static int stock_take(pllm_store_memory *memory, uint32_t class, const pllm_store_owner *owner,
                      store_piece **piece_out)
{
    store_piece **link = find(&memory->ready[class], class, owner);
    *piece_out = NULL;
    if (link) {
        memory->stats.ready_hits++;
        *piece_out = stock_remove(memory, link);
        return PLLM_OK;
    }
    memory->stats.ready_misses++;
    if (find(&memory->zeroing, class, owner)) zeroing_wait(memory);
    link = find(&memory->ready[class], class, owner);
    if (link) {
        *piece_out = stock_remove(memory, link);
        return PLLM_OK;
    }
    link = find(&memory->dirty, class, owner);
    if (!link) {
        /* Full of another's? Then one of those goes, and tick makes one that is nobody's. */
        if (memory->ready[class])
            store_piece_destroy(memory, stock_remove(memory, &memory->ready[class]));
        return PLLM_OK;
    }
    store_piece *piece = stock_remove(memory, link);
    int status = store_zero_now(memory, piece->va, piece->bytes);
    if (status < 0)
        store_piece_destroy(memory, piece);
    else
        *piece_out = piece;
    return status;
}

int store_piece_take(pllm_store_memory *memory, uint32_t class, const pllm_store_owner *owner,
                     store_piece **piece_out)
{
    store_piece *piece;
    uint64_t bytes = memory->unit_bytes << class;
    note_demand(memory, class);
    int status = stock_take(memory, class, owner, &piece);
    if (status < 0) return status;
    if (!piece) {
        status = store_charge(memory, bytes);
        if (status < 0) return status;
        status = piece_make(memory, class, 1, &piece);
        if (status < 0) {
            store_credit(memory, bytes);
            return status;
        }
        memory->refused = 0;
    }
    piece->state = PIECE_USED;
    memory->stats.piece_count++;
    memory->stats.piece_bytes += bytes;
    *piece_out = piece;
    return PLLM_OK;
}

void store_piece_give(pllm_store_memory *memory, store_piece *piece, uint32_t clean,
                      uint32_t abandoned)
{
    memory->stats.piece_count--;
    memory->stats.piece_bytes -= piece->bytes;
    if (piece->imported || abandoned || !stock_room(memory, piece->class))
        store_piece_destroy(memory, piece);
    else
        stock_add(memory, piece, clean ? PIECE_READY : PIECE_DIRTY);
}

/* ---- ahead ---- */

/* Submits the fills of all that is DIRTY, and one event. What can't be filled goes. */
static void zeroing_begin(pllm_store_memory *memory)
{
    const pllm_device_ops *ops = memory->ops;
    int status = PLLM_OK;
    while (memory->dirty) {
        store_piece *piece = stock_remove(memory, &memory->dirty);
        if (status == PLLM_OK)
            status = ops->fill(memory->device, memory->stream, piece->va, piece->bytes, 0);
        stock_add(memory, piece, PIECE_ZEROING);
    }
    if (status == PLLM_OK)
        status = ops->event_record(memory->device, memory->zeroed, memory->stream);
    if (status == PLLM_OK) return;
    (void)ops->stream_sync(memory->device, memory->stream); /* before any of them is unmapped */
    zeroing_end(memory, status);
}

/* The size that lacks most of its share; class_count: none lacks half a piece. */
static uint32_t class_wanted(const pllm_store_memory *memory)
{
    uint32_t wanted = memory->class_count;
    uint64_t most = 0;
    for (uint32_t i = 0; i < memory->class_count; i++) {
        uint64_t target = target_of(memory, i), each = memory->unit_bytes << i;
        if (target < memory->stocked[i] + each / 2 || each > memory->options.ready_bytes) continue;
        uint64_t lack = target - memory->stocked[i];
        if (lack >= most) wanted = i, most = lack;
    }
    return wanted;
}

int pllm_store_memory_tick(pllm_store_memory *memory)
{
    if (memory->zeroing) {
        int answer = memory->ops->event_query(memory->device, memory->zeroed);
        if (answer == 0) return 1;
        /* The event's work is over; the sync tells of failures and clears them. */
        int synced = memory->ops->stream_sync(memory->device, memory->stream);
        zeroing_end(memory, answer < 0 ? answer : synced);
        return 1;
    }
    if (memory->dirty) {
        zeroing_begin(memory);
        return 1;
    }
    uint32_t class = memory->refused ? memory->class_count : class_wanted(memory);
    if (class == memory->class_count || !stock_room(memory, class)) return 0;
    uint64_t bytes = memory->unit_bytes << class;
    store_piece *piece;
    int status = charge_once(memory, bytes, 0);
    if (status == PLLM_OK) {
        status = piece_make(memory, class, 0, &piece);
        if (status < 0) store_credit(memory, bytes);
    }
    if (status < 0) {
        memory->refused = 1; /* until something is given back */
        return 0;
    }
    stock_add(memory, piece, PIECE_READY);
    return 1;
}

void pllm_store_memory_prepare(pllm_store_memory *memory)
{
    while (pllm_store_memory_tick(memory)) zeroing_wait(memory);
}

uint64_t pllm_store_memory_trim(pllm_store_memory *memory, uint64_t bytes)
{
    uint64_t gone = bytes > 0 ? store_slab_spare(memory) : 0;
    if (gone < bytes) gone += store_stock_trim(memory, bytes - gone);
    memory->refused = 1; /* tick does not take it again at once */
    return gone;
}
