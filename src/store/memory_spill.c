/* memory_spill.c - blocks on their way to the host and back, page by page, through tier.
 *
 *   block on the device   | page 0 | page 1 | ...  | rest |        64 KiB each, by address
 *                             |  ^                              transfers, tickets
 *   pages[]               [ slot ][ slot ] ...                  host memory first, then disk
 *
 * A move is begun, advances when polled, and ends: then the caller is told of it once
 * (pllm_store_memory_moved). While it is under way a block has both, the memory on the device and
 * its slots; whichever end it came from stays whole until the move is over, so that one which fails
 * or is cancelled leaves the block where it was. A few pages at a time are submitted, restores
 * before spills, so that a cancelled move is over when those are.
 *
 * Host memory is taken in slabs as it is first needed, and kept for the next spill. */
#include <assert.h>
#include <stdio.h>
#include <string.h>
#include "store/memory_internal.h"

enum {
    SPILL_TICKETS = 128,           /* pages under way at most, 8 MiB */
    SPILL_TICKETS_OUT = 64,        /* of spills: what a restore waits for is bounded */
    SPILL_SLAB_BYTES = 4 << 20,    /* pinning one is the longest that a poll takes */
    SPILL_FINGERPRINT = 0x53505f4c /* "L_PS": pages of the store */
};

/* ---- places ---- */

int store_spill_open(pllm_store_memory *memory)
{
    const pllm_store_memory_options *options = &memory->options;
    memory->move_last = &memory->moves;
    memory->moved_last = &memory->moved;
    if (!options->spilled_bytes_max && !options->disk_bytes) return PLLM_OK;
    pllm_tiers_options tiers = {.struct_bytes = sizeof tiers,
                                .page_bytes = STORE_PAGE_BYTES,
                                .host_bytes = options->spilled_bytes_max,
                                .host_slab_bytes = SPILL_SLAB_BYTES,
                                .disk_bytes = options->disk_bytes,
                                .disk_folder = options->disk_folder,
                                .disk = options->disk};
    pllm_transfers_options transfers = {.struct_bytes = sizeof transfers,
                                        .ticket_max = SPILL_TICKETS,
                                        .fingerprint = SPILL_FINGERPRINT};
    memory->tickets = pllm_alloc_array(memory->context, SPILL_TICKETS, sizeof *memory->tickets);
    if (!memory->tickets)
        return pllm_fail_memory("the tickets of spilled tensors",
                                SPILL_TICKETS * sizeof *memory->tickets);
    int status = pllm_tiers_open(memory->context, memory->device, NULL, &tiers, &memory->tiers);
    if (status == PLLM_OK)
        status =
            pllm_transfers_open(memory->context, memory->tiers, &transfers, &memory->transfers);
    return status;
}

void store_spill_close(pllm_store_memory *memory)
{
    assert(!memory->moves && !memory->moved);
    pllm_transfers_close(memory->transfers);
    pllm_tiers_close(memory->tiers);
    pllm_free(memory->context, memory->tickets);
}

static uint32_t pages_of(const pllm_store_block *block)
{
    return (uint32_t)((block->bytes + STORE_PAGE_BYTES - 1) / STORE_PAGE_BYTES);
}

/* Room for all pages, less what moves under way have been promised. */
static uint64_t pages_free(const pllm_store_memory *memory)
{
    pllm_tiers_stats s;
    if (!memory->tiers) return 0;
    pllm_tiers_stats_get(memory->tiers, &s);
    uint64_t room = (uint64_t)s.host_count - s.host_used + s.disk_count - s.disk_used;
    return room > memory->promised ? room - memory->promised : 0;
}

/* A slot for the page: in host memory, else on disk; it follows the page before. */
static int page_place(pllm_store_memory *memory, pllm_store_block *block, uint32_t page)
{
    store_page before = page ? block->pages[page - 1] : (store_page){PLLM_NONE, PLLM_AT_HOST};
    store_page *p = &block->pages[page];
    for (pllm_place place = PLLM_AT_HOST; place <= PLLM_AT_DISK; place++) {
        uint32_t after = before.place == place ? before.slot : PLLM_NONE;
        p->place = place;
        if (pllm_tiers_slot_alloc(memory->tiers, place, after, &p->slot) == PLLM_OK) {
            memory->promised--;
            if (place == PLLM_AT_DISK) memory->stats.disk_pages++;
            return PLLM_OK;
        }
    }
    p->slot = PLLM_NONE;
    return pllm_fail(PLLM_ELIMIT, 0, "the machine has no more host memory for spilled tensors");
}

static void pages_free_all(pllm_store_memory *memory, pllm_store_block *block)
{
    for (uint32_t i = 0; i < pages_of(block); i++) {
        if (block->pages[i].slot == PLLM_NONE) continue;
        pllm_tiers_slot_free(memory->tiers, block->pages[i].place, block->pages[i].slot);
        memory->stats.disk_pages -= block->pages[i].place == PLLM_AT_DISK;
    }
    pllm_free(memory->context, block->pages);
    block->pages = NULL;
}

void store_spill_forget(pllm_store_memory *memory, pllm_store_block *block)
{
    pages_free_all(memory, block);
}

/* ---- a page ---- */

static uint32_t page_bytes(const pllm_store_block *block, uint32_t page)
{
    uint64_t rest = block->bytes - (uint64_t)page * STORE_PAGE_BYTES;
    return rest < STORE_PAGE_BYTES ? (uint32_t)rest : STORE_PAGE_BYTES;
}

/* Pieces are whole pages long: none lies in two. */
static pllm_va page_va(const pllm_store_block *block, uint32_t page)
{
    uint64_t offset = block->offset + (uint64_t)page * STORE_PAGE_BYTES;
    if (block->area) return block->area->va + offset;
    uint32_t i = 0;
    while (offset >= block->pieces[i]->bytes) offset -= block->pieces[i++]->bytes;
    return block->pieces[i]->va + offset;
}

static int page_submit(pllm_store_memory *memory, pllm_store_block *block, store_ticket *ticket)
{
    uint32_t page = block->page_next;
    int out = block->moving == STORE_MOVE_OUT;
    int status = out ? page_place(memory, block, page) : PLLM_OK;
    if (status < 0) return status;
    const store_page *p = &block->pages[page];
    pllm_transfer transfer = {.from = out ? PLLM_AT_DEVICE : p->place,
                              .to = out ? p->place : PLLM_AT_DEVICE,
                              .slot = p->slot,
                              .priority = out ? PLLM_WRITE_BEHIND : PLLM_DEMAND,
                              .tag = block->spill_serial << 32 | page,
                              .va = page_va(block, page),
                              .bytes = page_bytes(block, page)};
    status = pllm_transfer_submit(memory->transfers, &transfer, &ticket->ticket);
    if (status < 0) return status;
    ticket->block = block;
    block->page_next++;
    block->under_way++;
    memory->under_way[out]++;
    return PLLM_OK;
}

/* ---- a move ---- */

/* What is not under way yet, will not be. */
static void move_fail(pllm_store_memory *memory, pllm_store_block *block, int status)
{
    if (block->move_status < 0) return;
    block->move_status = status;
    block->move_error = *pllm_last_error();
    if (block->move_error.status != status) {
        block->move_error = (pllm_error){.status = status};
        snprintf(block->move_error.text, sizeof block->move_error.text, "%s",
                 pllm_status_name(status));
    }
    if (block->moving != STORE_MOVE_OUT) return;
    uint32_t placed = block->page_next;
    if (placed < pages_of(block) && block->pages[placed].slot != PLLM_NONE) placed++;
    memory->promised -= pages_of(block) - placed;
}

static void tickets_take_in(pllm_store_memory *memory)
{
    for (uint32_t i = 0; i < SPILL_TICKETS; i++) {
        store_ticket *t = &memory->tickets[i];
        if (!t->block) continue;
        int state = pllm_transfer_state(memory->transfers, t->ticket);
        if (state == 0) continue;
        pllm_transfer_release(memory->transfers, t->ticket);
        if (state < 0) move_fail(memory, t->block, state);
        t->block->under_way--;
        memory->under_way[t->block->moving == STORE_MOVE_OUT]--;
        t->block = NULL;
    }
}

/* Submits pages of moves of one direction, as many as may be under way. */
static void tickets_give(pllm_store_memory *memory, uint32_t moving)
{
    uint32_t i = 0, out = moving == STORE_MOVE_OUT;
    uint32_t most = out ? SPILL_TICKETS_OUT : SPILL_TICKETS;
    for (pllm_store_block *block = memory->moves; block; block = block->move_next) {
        if (block->moving != moving) continue;
        while (block->move_status == PLLM_OK && block->page_next < pages_of(block)) {
            while (i < SPILL_TICKETS && memory->tickets[i].block) i++;
            if (i == SPILL_TICKETS || memory->under_way[out] >= most) return;
            int status = page_submit(memory, block, &memory->tickets[i]);
            if (status < 0) move_fail(memory, block, status);
        }
    }
}

/* All its pages are over. */
static void move_end(pllm_store_memory *memory, pllm_store_block *block)
{
    int ok = block->move_status == PLLM_OK, out = block->moving == STORE_MOVE_OUT;
    if (out == ok) /* where it is not: on the device */
        store_block_unback(memory, block, 0);
    else
        pages_free_all(memory, block);
    if (ok && out) {
        block->spilled = 1;
        memory->stats.block_bytes -= block->bytes;
        memory->stats.spilled_bytes += block->bytes;
        memory->stats.spilled_count++;
    } else if (ok) {
        block->spilled = block->read_only = 0;
        memory->stats.block_bytes += block->bytes;
        memory->stats.spilled_bytes -= block->bytes;
        memory->stats.spilled_count--;
    }
    block->moving = STORE_MOVE_NONE;
    memory->stats.moving_count--;
}

static void moves_end(pllm_store_memory *memory)
{
    pllm_store_block **link = &memory->moves;
    uint32_t ended = 0;
    while (*link) {
        pllm_store_block *block = *link;
        int over = block->under_way == 0 &&
                   (block->move_status < 0 || block->page_next == pages_of(block));
        if (!over) {
            link = &block->move_next;
            continue;
        }
        *link = block->move_next;
        if (!*link) memory->move_last = link;
        move_end(memory, block);
        block->move_next = NULL;
        *memory->moved_last = block;
        memory->moved_last = &block->move_next;
        ended++;
    }
    if (ended) store_memory_checked(memory);
}

static void move_begin(pllm_store_memory *memory, pllm_store_block *block, uint32_t moving)
{
    block->moving = moving;
    block->move_status = PLLM_OK;
    block->page_next = block->under_way = 0;
    block->move_next = NULL;
    *memory->move_last = block;
    memory->move_last = &block->move_next;
    memory->stats.moving_count++;
}

int pllm_store_memory_spill(pllm_store_memory *memory, pllm_store_block *block)
{
    uint32_t count = pages_of(block);
    if (block->moving) return PLLM_EBUSY;
    if (block->spilled) return PLLM_OK;
    if (block->legacy)
        return pllm_fail(PLLM_EUNSUPPORTED, 0, "a legacy tensor stays: its handle is given out");
    if (count > pages_free(memory)) return PLLM_ELIMIT;
    block->pages = pllm_alloc_array(memory->context, count, sizeof *block->pages);
    if (!block->pages) return pllm_fail_memory("a spilled tensor", count * sizeof *block->pages);
    for (uint32_t i = 0; i < count; i++) block->pages[i] = (store_page){PLLM_NONE, PLLM_AT_HOST};
    block->spill_serial = ++memory->spill_serial;
    memory->promised += count;
    move_begin(memory, block, STORE_MOVE_OUT);
    store_memory_checked(memory);
    return 1;
}

int pllm_store_memory_restore(pllm_store_memory *memory, pllm_store_block *block)
{
    if (block->moving) return PLLM_EBUSY;
    if (!block->spilled) return PLLM_OK;
    int status = store_block_back(memory, block);
    if (status == PLLM_OK) {
        move_begin(memory, block, STORE_MOVE_IN);
        status = 1;
    }
    store_memory_checked(memory);
    return status;
}

void pllm_store_memory_cancel(pllm_store_memory *memory, pllm_store_block *block)
{
    if (!block->moving || block->move_status < 0) return;
    for (uint32_t i = 0; i < SPILL_TICKETS; i++)
        if (memory->tickets[i].block == block)
            (void)pllm_transfer_cancel(memory->transfers, memory->tickets[i].ticket);
    (void)pllm_fail(PLLM_ECANCELED, 0, "the move of a tensor was cancelled");
    move_fail(memory, block, PLLM_ECANCELED);
}

int pllm_store_memory_poll(pllm_store_memory *memory)
{
    if (!memory->moves) return memory->moved != NULL;
    (void)pllm_transfers_poll(memory->transfers);
    tickets_take_in(memory);
    tickets_give(memory, STORE_MOVE_IN);
    tickets_give(memory, STORE_MOVE_OUT);
    (void)pllm_transfers_poll(memory->transfers);
    moves_end(memory);
    return memory->moves != NULL || memory->moved != NULL;
}

pllm_store_block *pllm_store_memory_moved(pllm_store_memory *memory, int *status_out)
{
    pllm_store_block *block = memory->moved;
    if (!block) return NULL;
    memory->moved = block->move_next;
    if (!memory->moved) memory->moved_last = &memory->moved;
    block->move_next = NULL;
    *status_out = block->move_status;
    if (block->move_status < 0)
        (void)pllm_fail(block->move_status, block->move_error.native, "%s", block->move_error.text);
    return block;
}

int pllm_store_memory_settle(pllm_store_memory *memory, pllm_store_block *block)
{
    while (block->moving) {
        (void)pllm_store_memory_poll(memory);
        if (block->moving) (void)pllm_transfers_wait_any(memory->transfers, 1000000);
    }
    pllm_store_block **link = &memory->moved;
    while (*link && *link != block) link = &(*link)->move_next;
    if (!*link) return PLLM_OK;
    *link = block->move_next;
    if (!*link) memory->moved_last = link;
    block->move_next = NULL;
    if (block->move_status < 0)
        (void)pllm_fail(block->move_status, block->move_error.native, "%s", block->move_error.text);
    return block->move_status;
}

/* ---- bytes of a spilled block ---- */

int store_spill_bytes(pllm_store_memory *memory, pllm_store_block *block, uint64_t offset,
                      uint64_t bytes, void *to, const void *from)
{
    while (bytes > 0) {
        uint32_t page = (uint32_t)(offset / STORE_PAGE_BYTES), at = offset % STORE_PAGE_BYTES;
        uint64_t part = STORE_PAGE_BYTES - at < bytes ? STORE_PAGE_BYTES - at : bytes;
        if (block->pages[page].place != PLLM_AT_HOST)
            return pllm_fail(PLLM_EBUSY, 0, "those bytes are on disk: restore the tensor first");
        char *slot = (char *)pllm_tiers_host_slot(memory->tiers, block->pages[page].slot) + at;
        if (to) {
            memcpy(to, slot, part);
            to = (char *)to + part;
        } else {
            memcpy(slot, from, part);
            from = (const char *)from + part;
        }
        offset += part;
        bytes -= part;
    }
    return PLLM_OK;
}
