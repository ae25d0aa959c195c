/* server_move.c - tensors on their way to the host and back, and who waits for them.
 *
 * A request that needs memory which is not there, or a tensor that is not, begins what brings it
 * and answers PLLM_SERVER_WAITS. Then it has changed nothing else: the client's message is kept,
 * the client is not read from, and when what it waits for has ended the message is carried out
 * again from the start. So whatever happened meanwhile (the tensor was deleted, the name taken) is
 * met as if the message had come only now; and a client that goes while it waits leaves nothing.
 *
 * Who waits for a tensor comes before who waits for room, and before a reclaim: what is there is
 * open before it could be sent away again. A spill that an open overtakes is cancelled, and so is a
 * move of what was deleted. */
#include <stdio.h>
#include <string.h>
#include "store/server_internal.h"

#define OWED_MAX (UINT64_MAX / 4) /* sums stay far from overflow */

/* ---- begun ---- */

static uint64_t wanted_by_waiting(const pllm_store_server *server, uint32_t device)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < server->waiting_count; i++) {
        const wait *w = &server->clients[server->waiting[i]].wait;
        if (w->device == device) bytes += w->room_bytes;
    }
    return bytes;
}

/* Sends away what was used longest ago until so much is on its way. */
static void spill(pllm_store_server *server, uint32_t index, uint64_t bytes)
{
    store_device *device = &server->devices[index];
    while (device->spilling_bytes < bytes) {
        uint32_t slot = pllm_registry_spill_candidate(server->registry, index);
        if (slot == PLLM_STORE_SLOT_NONE) return;
        pllm_store_block *block = server->blocks[slot];
        if (pllm_store_memory_spill(device->memory, block) != 1) return;
        pllm_store_block_cookie_set(block, slot);
        pllm_registry_move_begin(server->registry, slot);
        device->spilling_bytes += pllm_registry_record(server->registry, slot)->charge_bytes;
        server->moving = 1;
    }
}

static int no_memory(const pllm_store_server *server, const pllm_store_record *record)
{
    const store_device *device = &server->devices[record->device];
    if (device->failure.status < 0)
        return pllm_fail(PLLM_ENODEVMEM, 0,
                         "the store has no room for the %llu bytes of \"%s\" on %s, and a tensor "
                         "could not be moved to the host: %.600s",
                         (unsigned long long)record->bytes, record->name, device->uuid,
                         device->failure.text);
    return pllm_fail(
        PLLM_ENODEVMEM, 0,
        "the store has no room for the %llu bytes of \"%s\" on %s: raise its limit, or "
        "delete or seal other tensors",
        (unsigned long long)record->bytes, record->name, device->uuid);
}

int pllm_server_room(pllm_store_server *server, const pllm_store_record *record)
{
    store_device *device = &server->devices[record->device];
    uint64_t wanted =
        record->charge_bytes + device->owed_bytes + wanted_by_waiting(server, record->device);
    if (device->failure.status == PLLM_OK) spill(server, record->device, wanted);
    if (device->spilling_bytes == 0) return no_memory(server, record);
    server->wait = (wait){PLLM_STORE_SLOT_NONE, record->device, record->charge_bytes};
    return PLLM_SERVER_WAITS;
}

int pllm_server_restore(pllm_store_server *server, uint32_t slot)
{
    const pllm_store_record *record = pllm_registry_record(server->registry, slot);
    pllm_store_memory *memory = server->devices[record->device].memory;
    pllm_store_block *block = server->blocks[slot];
    if (record->moving && record->state == PLLM_STORE_STATE_READY) {
        pllm_store_memory_cancel(memory, block); /* it is all there still */
    } else if (!record->moving) {
        int status = pllm_store_memory_restore(memory, block);
        if (status == PLLM_ENODEVMEM) return pllm_server_room(server, record);
        if (status < 0) return status;
        pllm_store_block_cookie_set(block, slot);
        pllm_registry_move_begin(server->registry, slot);
        server->moving = 1;
    }
    server->wait = (wait){slot, record->device, 0};
    return PLLM_SERVER_WAITS;
}

/* ---- ended ---- */

enum { MATCH_SLOT, MATCH_ROOM };

/* Those who wait for this slot, or for room on this device, once more, in the order in which they
 * came. status below 0: instead, this is their answer, in the error record. */
static void wake(pllm_store_server *server, uint32_t match, uint32_t device, uint32_t slot,
                 int status)
{
    uint32_t count = server->waiting_count;
    pllm_error error = *pllm_last_error();
    server->waiting_count = 0; /* who waits again is added below those not yet looked at */
    for (uint32_t i = 0; i < count; i++) {
        uint32_t index = server->waiting[i];
        client *c = &server->clients[index];
        if (!c->waiting) continue; /* it was dropped by what another's message did */
        if (match == MATCH_SLOT ? c->wait.slot != slot
                                : c->wait.room_bytes == 0 || c->wait.device != device) {
            server->waiting[server->waiting_count++] = index;
            continue;
        }
        if (status < 0) (void)pllm_fail(status, error.native, "%s", error.text);
        pllm_server_client_again(server, c, status);
    }
}

/* What a reclaim is owed goes before others take it; what it is owed still is sent away. */
static void reclaim(pllm_store_server *server, uint32_t index)
{
    store_device *device = &server->devices[index];
    if (device->owed_bytes == 0) return;
    uint64_t gone = pllm_store_memory_trim(device->memory, device->owed_bytes);
    device->owed_bytes -= gone < device->owed_bytes ? gone : device->owed_bytes;
    if (device->failure.status == PLLM_OK) spill(server, index, device->owed_bytes);
    if (device->spilling_bytes == 0) device->owed_bytes = 0; /* there is no more */
}

static void move_end(pllm_store_server *server, uint32_t index, uint32_t slot, int status)
{
    store_device *device = &server->devices[index];
    const pllm_store_record *record = pllm_registry_record(server->registry, slot);
    pllm_store_block_layout layout;
    pllm_store_block_layout_get(server->blocks[slot], &layout);
    uint32_t out = layout.spilled == (status == PLLM_OK); /* it was a spill */
    int failed = status < 0 && status != PLLM_ECANCELED;
    if (failed)
        pllm_fail(status, pllm_last_error()->native, "\"%s\" could not be %s: %.700s", record->name,
                  out ? "moved to the host" : "brought back", pllm_last_error()->text);
    pllm_error error = *pllm_last_error();
    if (failed) pllm_log(server->context, PLLM_LOG_WARN, "store: %s", error.text);
    if (out) device->spilling_bytes -= record->charge_bytes;
    server->stats.spilled_count += out && status == PLLM_OK;
    server->stats.restored_count += !out && status == PLLM_OK;
    server->stats.moved_count++;
    server->memory_busy = 1;
    if (failed && out) device->failure = error;
    pllm_registry_move_end(server->registry, slot, status == PLLM_OK, server->now_ns);
    pllm_server_effects(server); /* may free it */
    if (failed && !out) (void)pllm_fail(status, error.native, "%s", error.text);
    wake(server, MATCH_SLOT, index, slot, failed && !out ? status : PLLM_OK);
    reclaim(server, index);
    wake(server, MATCH_ROOM, index, slot, PLLM_OK);
    device->failure.status = PLLM_OK;
}

void pllm_server_moves(pllm_store_server *server)
{
    int moving = 0;
    for (uint32_t i = 0; i < server->device_count; i++) {
        pllm_store_memory *memory = server->devices[i].memory;
        pllm_store_block *block;
        int status;
        if (!pllm_store_memory_poll(memory)) continue;
        while ((block = pllm_store_memory_moved(memory, &status)) != NULL)
            move_end(server, i, (uint32_t)pllm_store_block_cookie(block), status);
        moving |= pllm_store_memory_poll(memory); /* those that the ends have begun */
    }
    server->moving = moving;
}

void pllm_server_reclaim_all(pllm_store_server *server)
{
    for (uint32_t i = 0; i < server->device_count; i++) {
        store_device *device = &server->devices[i];
        uint64_t wanted = atomic_exchange(&device->reclaim_bytes, 0);
        if (!wanted) continue;
        if (wanted > OWED_MAX - device->owed_bytes) wanted = OWED_MAX - device->owed_bytes;
        device->owed_bytes += wanted;
        reclaim(server, i);
        pllm_server_effects(server);
    }
}

uint64_t pllm_store_server_moved(const pllm_store_server *server)
{
    return server->stats.moved_count;
}
