/* server_effect.c - what the registry's decisions mean in the world: the board's words, events for
 * watchers, the mirror's record, memory that goes; and the ways in which memory is made.
 *
 * Memory goes back when no process maps it any more, as far as they say; the memory itself sees to
 * it that only the same owner gets it again. */
#include <string.h>
#include "base/clock.h"
#include "store/server_internal.h"

/* ---- consequences ---- */

static void board_write(pllm_store_server *server, const pllm_store_record *record)
{
    pllm_board_words words = {0};
    if (pllm_server_named(record))
        words = (pllm_board_words){record->generation, record->fence_value, record->fence_epoch,
                                   record->fence_poisoned, record->flags};
    pllm_board_set(server->board, record->slot, &words);
}

void pllm_server_entry(pllm_store_server *server, const pllm_store_record *record,
                       pllm_store_entry *entry_out)
{
    pllm_store_block_layout layout = {0};
    uint8_t handle[PLLM_STORE_LEGACY_HANDLE_BYTES];
    const pllm_store_block *block = server->blocks[record->slot];
    if (block) pllm_store_block_layout_get(block, &layout);
    if (layout.legacy && pllm_store_block_handle(block, handle) == PLLM_OK)
        pllm_store_base64_encode(handle, sizeof handle, server->handle_text,
                                 sizeof server->handle_text);
    else
        pllm_store_token_text(record->slot, record->generation, server->handle_text);
    *entry_out = (pllm_store_entry){record, server->uuids[record->device], server->handle_text,
                                    layout.offset};
}

static void parts_tell(pllm_store_server *server, const pllm_registry_effect *effect)
{
    const pllm_store_record *record = effect->record;
    const char *gone = effect->kinds & PLLM_EFFECT_RENAMED   ? effect->name_before
                       : effect->kinds & PLLM_EFFECT_DELETED ? record->name
                                                             : NULL;
    int changed = effect->kinds & PLLM_EFFECT_MIRROR && pllm_server_named(record);
    pllm_store_entry entry;
    if (changed) pllm_server_entry(server, record, &entry);
    for (uint32_t i = 0; i < server->part_count; i++) {
        const pllm_store_part *part = &server->parts[i].part;
        if (gone && part->removed) part->removed(part->user, gone, record->generation);
        if (changed && part->changed) part->changed(part->user, &entry);
    }
}

static int begins(const char *name, const watch *w)
{
    return name && strncmp(name, w->prefix, w->prefix_bytes) == 0;
}

static void watchers_tell(pllm_store_server *server, const pllm_registry_effect *effect)
{
    const pllm_store_record *record = effect->record;
    const char *before = effect->name_before;
    pllm_wire_message event = {.op = PLLM_WIRE_EVENT};
    event.event.generation = record->generation;
    event.event.name = (pllm_wire_text){record->name, (uint32_t)strlen(record->name)};
    if (before) event.event.name_before = (pllm_wire_text){before, (uint32_t)strlen(before)};
    for (uint32_t i = 0; i < server->watch_end; i++) {
        const watch *w = &server->watches[i];
        uint32_t kinds = effect->kinds & PLLM_EFFECT_EVENTS & w->kinds;
        if (w->client < 0 || !kinds || !(begins(record->name, w) || begins(before, w))) continue;
        client *c = &server->clients[w->client];
        if (!pllm_registry_allows(server->registry, &c->peer, record->slot, 4)) continue;
        event.event.watch = w->number;
        event.event.kinds = kinds;
        if (pllm_server_event_send(server, c, &event) < 0) {
            c->lost_count++;
            server->stats.lost_count++;
        }
    }
}

static void memory_free(pllm_store_server *server, const pllm_store_record *record)
{
    pllm_store_memory_free(server->devices[record->device].memory, server->blocks[record->slot],
                           record->abandoned);
    server->blocks[record->slot] = NULL;
    server->memory_busy = 1;
    pllm_registry_freed(server->registry, record->slot);
}

void pllm_server_effects(pllm_store_server *server)
{
    pllm_registry_effect effect;
    while (pllm_registry_effect_next(server->registry, &effect)) {
        if (effect.kinds & PLLM_EFFECT_BOARD) board_write(server, effect.record);
        if (effect.kinds & PLLM_EFFECT_EVENTS && server->stats.watch_count)
            watchers_tell(server, &effect);
        if (server->part_count) parts_tell(server, &effect);
        if (effect.kinds & PLLM_EFFECT_DELETED && effect.record->moving)
            pllm_store_memory_cancel(server->devices[effect.record->device].memory,
                                     server->blocks[effect.slot]);
        if (effect.kinds & PLLM_EFFECT_FREE) memory_free(server, effect.record);
    }
    pllm_server_hold(server);
}

/* ---- memory ---- */

static int block_create(pllm_store_server *server, const pllm_store_record *record,
                        pllm_store_block **block_out)
{
    pllm_store_owner owner = {record->uid, record->gid, record->mode};
    int status =
        pllm_store_memory_create(server->devices[record->device].memory, record->bytes,
                                 record->kind == PLLM_STORE_KIND_LEGACY, &owner, block_out);
    return status == PLLM_ENODEVMEM ? pllm_server_room(server, record) : status;
}

int pllm_server_create(pllm_store_server *server, pllm_store_lease lease,
                       const pllm_store_peer *peer, const char *name, size_t name_bytes,
                       pllm_registry_spec *spec, uint32_t *slot_out)
{
    uint64_t bytes;
    int status = pllm_store_shape_bytes(spec->dtype, spec->rank, spec->shape, &bytes);
    if (status < 0) return status;
    if (spec->device >= server->device_count)
        return pllm_fail(PLLM_EINVAL, 0, "the store has no device %u: it has %u, from 0",
                         spec->device, server->device_count);
    uint32_t legacy = spec->kind == PLLM_STORE_KIND_LEGACY;
    if (legacy && !server->options.legacy_bytes_max)
        return pllm_fail(PLLM_EUNSUPPORTED, 0, "this store was started without legacy tensors");
    status = pllm_store_memory_measure(server->devices[spec->device].memory, bytes, legacy,
                                       &spec->charge_bytes);
    if (status == PLLM_OK)
        status = pllm_registry_create(server->registry, lease, peer, name, name_bytes, spec,
                                      server->now_ns, slot_out);
    if (status < 0) return status;
    const pllm_store_record *record = pllm_registry_record(server->registry, *slot_out);
    status = block_create(server, record, &server->blocks[*slot_out]);
    server->memory_busy = 1;
    if (status != PLLM_OK) {
        pllm_registry_abort(server->registry, *slot_out);
        return status;
    }
    return pllm_registry_commit(server->registry, *slot_out, server->now_ns);
}

/* ---- for parts ---- */

void pllm_store_server_self(const pllm_store_server *server, pllm_store_peer *peer_out)
{
    *peer_out = server->self;
}

/* The lease that a holder's reference hangs on: its process's, one for a time, or none (0). */
static int holder_lease(pllm_store_server *server, pllm_store_holder *holder)
{
    holder->lease = 0;
    if (holder->pid) {
        uint64_t start;
        int status = pllm_wire_process_start(holder->pid, &start);
        if (status < 0)
            return pllm_fail(status, 0,
                             status == PLLM_ENOTFOUND ? "there is no process %u"
                                                      : "process %u cannot be looked at now",
                             holder->pid);
        holder->peer.pid = holder->pid;
        holder->peer.pid_start = start;
        if (pllm_registry_lease_of_pid(server->registry, holder->pid, start, &holder->lease) ==
            PLLM_OK)
            return PLLM_OK;
        return pllm_registry_lease_open(server->registry, PLLM_STORE_LEASE_PID, &holder->peer, 0,
                                        &holder->lease);
    }
    if (!holder->lease_ns) return PLLM_OK;
    uint64_t expires = server->now_ns + holder->lease_ns;
    if (expires < server->now_ns) expires = UINT64_MAX;
    if (server->sweep_ns > expires) server->sweep_ns = expires;
    return pllm_registry_lease_open(server->registry, PLLM_STORE_LEASE_TIMED, &holder->peer,
                                    expires, &holder->lease);
}

/* A lease that came to hold nothing is not kept. */
static void holder_forget(pllm_store_server *server, pllm_store_holder *holder)
{
    if (holder->lease && pllm_registry_lease_references(server->registry, holder->lease) == 0)
        pllm_registry_lease_close(server->registry, holder->lease, PLLM_STORE_END_CLEAN,
                                  server->now_ns);
    holder->lease = 0;
}

int pllm_store_server_create(pllm_store_server *server, const char *name, size_t name_bytes,
                             const pllm_registry_spec *spec, pllm_store_holder *holder,
                             pllm_store_entry *entry_out)
{
    pllm_registry_spec wanted = *spec;
    uint32_t slot;
    server->now_ns = pllm_clock_ns();
    int status = holder_lease(server, holder);
    if (status < 0) return status;
    if (!holder->lease) wanted.flags |= PLLM_STORE_FLAG_KEPT;
    status =
        pllm_server_create(server, holder->lease, &holder->peer, name, name_bytes, &wanted, &slot);
    if (status != PLLM_OK)
        holder_forget(server, holder);
    else
        pllm_server_entry(server, pllm_registry_record(server->registry, slot), entry_out);
    pllm_server_effects(server);
    return status == PLLM_SERVER_WAITS ? PLLM_EBUSY : status;
}

int pllm_store_server_get(pllm_store_server *server, const char *name, size_t name_bytes,
                          uint32_t writable, pllm_store_holder *holder, pllm_store_entry *entry_out)
{
    uint32_t slot;
    server->now_ns = pllm_clock_ns();
    int status = pllm_registry_find(server->registry, name, name_bytes, &slot);
    if (status == PLLM_OK)
        status = pllm_registry_may(server->registry, &holder->peer, slot, writable ? 6 : 4);
    if (status == PLLM_OK) status = holder_lease(server, holder);
    if (status == PLLM_OK && holder->lease) {
        status =
            pllm_registry_hold(server->registry, holder->lease, slot, writable, 0, server->now_ns);
        if (status < 0) holder_forget(server, holder);
    }
    pllm_server_effects(server);
    if (status == PLLM_OK)
        pllm_server_entry(server, pllm_registry_record(server->registry, slot), entry_out);
    return status;
}

int pllm_store_server_delete(pllm_store_server *server, const char *name, size_t name_bytes,
                             const pllm_store_holder *holder)
{
    uint32_t slot;
    pllm_store_lease lease = holder->lease;
    server->now_ns = pllm_clock_ns();
    int status = pllm_registry_find(server->registry, name, name_bytes, &slot);
    if (status < 0) return status;
    if (holder->pid && !lease) {
        uint64_t start;
        if (pllm_wire_process_start(holder->pid, &start) < 0 ||
            pllm_registry_lease_of_pid(server->registry, holder->pid, start, &lease) < 0)
            return pllm_fail(PLLM_ENOTFOUND, 0, "process %u holds nothing", holder->pid);
    }
    if (pllm_registry_lease_kind(server->registry, lease) == PLLM_STORE_LEASE_SOCKET)
        return pllm_fail(PLLM_EPERM, 0, "that lease is a connection's");
    if (lease) {
        uint64_t generation = pllm_registry_record(server->registry, slot)->generation;
        status = pllm_registry_drop(server->registry, lease, slot, generation, 0, server->now_ns);
        if (status < 0)
            status =
                pllm_registry_drop(server->registry, lease, slot, generation, 1, server->now_ns);
        pllm_store_holder forgotten = {.lease = lease};
        if (status == PLLM_OK) holder_forget(server, &forgotten);
    } else {
        status = pllm_registry_delete(server->registry, &holder->peer, slot, server->now_ns);
    }
    pllm_server_effects(server);
    return status;
}

void pllm_store_server_each(pllm_store_server *server,
                            void (*visit)(void *user, const pllm_store_entry *entry), void *user)
{
    pllm_store_server_range(server, 0, UINT32_MAX, visit, user);
}

void pllm_store_server_range(pllm_store_server *server, uint32_t first, uint32_t end,
                             void (*visit)(void *user, const pllm_store_entry *entry), void *user)
{
    uint32_t slot_max = pllm_registry_slot_max(server->registry);
    if (end > slot_max) end = slot_max;
    for (uint32_t slot = first; slot < end; slot++) {
        const pllm_store_record *record = pllm_registry_record(server->registry, slot);
        pllm_store_entry entry;
        if (!record || !pllm_server_named(record)) continue;
        pllm_server_entry(server, record, &entry);
        visit(user, &entry);
    }
}

int pllm_store_server_device(const pllm_store_server *server, const char *text, size_t bytes,
                             uint32_t *index_out)
{
    return pllm_store_device_find(text, bytes, server->uuids, server->device_count, index_out);
}

uint64_t pllm_store_server_epoch(const pllm_store_server *server)
{
    return server->epoch;
}

uint32_t pllm_store_server_slot_max(const pllm_store_server *server)
{
    return pllm_registry_slot_max(server->registry);
}
