/* registry_lease.c - leases and references: who holds, how it ends, and what that lets go.
 *
 * A reference stands for all opens of one tensor through one lease, and for the lease's process
 * having it mapped. It goes when all of that is over; a tensor that lost its last one is settled.
 */
#include <string.h>
#include "base/text.h"
#include "store/registry_internal.h"

static uint32_t lease_serial(pllm_store_lease number)
{
    return (uint32_t)(number >> 32);
}

static pllm_store_lease lease_number(const pllm_registry *registry, const lease *l)
{
    return (uint64_t)l->serial << 32 | pllm_registry_lease_index(registry, l);
}

lease *pllm_registry_lease(const pllm_registry *registry, pllm_store_lease number)
{
    uint32_t index = (uint32_t)number;
    if (number == 0 || index >= registry->lease_max) return NULL;
    lease *l = &registry->leases[index];
    return l->kind && l->serial == lease_serial(number) ? l : NULL;
}

int pllm_registry_lease_open(pllm_registry *registry, pllm_store_lease_kind kind,
                             const pllm_store_peer *peer, uint64_t expires_ns,
                             pllm_store_lease *lease_out)
{
    *lease_out = 0;
    uint32_t others = registry->lease_count - registry->socket_count;
    if (registry->free_lease == NONE || (kind != PLLM_STORE_LEASE_SOCKET &&
                                         others >= registry->lease_max - registry->lease_max / 4))
        return pllm_fail(PLLM_ELIMIT, 0, "all %u leases of the store are taken",
                         registry->lease_max);
    lease *l = &registry->leases[registry->free_lease];
    registry->free_lease = l->next;
    l->kind = kind;
    if (++l->serial == 0) l->serial = 1; /* number 0 is no lease */
    l->references = NONE;
    l->reference_count = 0;
    l->expires_ns = expires_ns;
    l->peer = *peer;
    if (l->peer.group_count > PLLM_STORE_GROUPS_MAX) l->peer.group_count = PLLM_STORE_GROUPS_MAX;
    registry->lease_count++;
    registry->socket_count += kind == PLLM_STORE_LEASE_SOCKET;
    if (kind == PLLM_STORE_LEASE_TIMED) {
        registry->timed_count++;
        if (expires_ns < registry->next_expiry_ns) registry->next_expiry_ns = expires_ns;
    }
    *lease_out = lease_number(registry, l);
    return PLLM_OK;
}

int pllm_registry_lease_renew(pllm_registry *registry, pllm_store_lease number, uint64_t expires_ns)
{
    lease *l = pllm_registry_lease(registry, number);
    if (!l || l->kind != PLLM_STORE_LEASE_TIMED)
        return pllm_fail(PLLM_ESTALE, 0, "that lease is over: ask for the tensor again");
    l->expires_ns = expires_ns;
    if (expires_ns < registry->next_expiry_ns) registry->next_expiry_ns = expires_ns;
    return PLLM_OK;
}

/* ---- what a lease's process has mapped ---- */

static void mapped_change(pllm_registry *registry, const reference *r, int more)
{
    const pllm_store_record *record = &registry->tensors[r->slot].record;
    lease *l = &registry->leases[r->lease];
    if (record->kind == PLLM_STORE_KIND_LEGACY || record->device >= PLLM_REGISTRY_DEVICES) return;
    uint64_t change = more ? record->charge_bytes : -record->charge_bytes; /* modulo 2^64 */
    l->mapped_bytes[record->device] += change;
    if (record->importer_count == (uint32_t)(more != 0))
        registry->mapped_bytes[record->device] += change;
    if (l->changed) return;
    l->changed = 1;
    l->changed_next = registry->changed_first;
    registry->changed_first = r->lease;
}

static void import_begin(pllm_registry *registry, reference *r, uint32_t count)
{
    r->importing += count;
    if (r->importing > count) return;
    registry->tensors[r->slot].record.importer_count++;
    mapped_change(registry, r, 1);
}

static void import_end(pllm_registry *registry, reference *r)
{
    if (!r->importing) return;
    registry->tensors[r->slot].record.importer_count--;
    mapped_change(registry, r, 0);
    r->importing = 0;
}

int pllm_registry_mapped_next(pllm_registry *registry, pllm_store_peer *peer_out)
{
    if (registry->changed_first == NONE) return 0;
    lease *l = &registry->leases[registry->changed_first];
    registry->changed_first = l->changed_next;
    l->changed = 0;
    *peer_out = l->peer;
    return 1;
}

static uint64_t mapped_rounded(uint64_t bytes)
{
    return (bytes + MAPPED_UNIT - 1) / MAPPED_UNIT * MAPPED_UNIT;
}

uint64_t pllm_registry_mapped(const pllm_registry *registry, const pllm_store_peer *peer,
                              uint32_t device)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < registry->lease_max; i++) {
        const lease *l = &registry->leases[i];
        if (l->kind &&
            (!peer || (l->peer.pid == peer->pid && l->peer.pid_start == peer->pid_start)))
            bytes += mapped_rounded(l->mapped_bytes[device]);
    }
    return bytes;
}

uint64_t pllm_registry_mapped_together(const pllm_registry *registry, uint32_t device)
{
    return mapped_rounded(registry->mapped_bytes[device]);
}

/* The fence of what dies while open for writing says so, unless no more was to come. */
static void poison(pllm_registry *registry, tensor *t)
{
    if (t->record.flags & PLLM_STORE_FLAG_SEALED || t->record.state == PLLM_STORE_STATE_ENDED)
        return;
    t->record.fence_poisoned = 1;
    t->record.fence_epoch++;
    pllm_registry_effect_add(registry, t,
                             PLLM_EFFECT_BOARD | PLLM_EFFECT_MIRROR | PLLM_EFFECT_POISONED);
}

static void lease_free(pllm_registry *registry, lease *l)
{
    registry->timed_count -= l->kind == PLLM_STORE_LEASE_TIMED;
    registry->socket_count -= l->kind == PLLM_STORE_LEASE_SOCKET;
    registry->lease_count--;
    l->kind = 0;
    l->next = registry->free_lease;
    registry->free_lease = pllm_registry_lease_index(registry, l);
}

void pllm_registry_lease_close(pllm_registry *registry, pllm_store_lease number, pllm_store_end end,
                               uint64_t now_ns)
{
    lease *l = pllm_registry_lease(registry, number);
    if (!l) return;
    while (l->references != NONE) {
        reference *r = &registry->references[l->references];
        tensor *t = &registry->tensors[r->slot];
        if (end != PLLM_STORE_END_CLEAN && r->writers) poison(registry, t);
        if (end == PLLM_STORE_END_LOST && r->importing) t->record.abandoned = 1;
        if (r->readers + r->writers) {
            t->record.used_ns = now_ns;
            pllm_registry_effect_add(registry, t, PLLM_EFFECT_MIRROR);
        }
        pllm_registry_reference_end(registry, r);
        pllm_registry_settle(registry, t);
    }
    lease_free(registry, l);
}

/* What an orphan imports, its process's own lease imports from now on. */
static void imports_move(pllm_registry *registry, lease *from, const lease *to)
{
    while (from->references != NONE) {
        reference *r = &registry->references[from->references];
        uint32_t slot = r->slot, count = r->importing;
        tensor *t = &registry->tensors[slot];
        pllm_registry_reference_end(registry, r); /* so there is one for to */
        if (pllm_registry_reference_get(registry, pllm_registry_lease_index(registry, to), slot,
                                        &r) == PLLM_OK)
            import_begin(registry, r, count);
        pllm_registry_settle(registry, t);
    }
}

void pllm_registry_lease_orphan(pllm_registry *registry, pllm_store_lease number,
                                pllm_store_end end, uint64_t now_ns)
{
    lease *l = pllm_registry_lease(registry, number);
    pllm_store_lease own;
    if (!l || l->kind != PLLM_STORE_LEASE_SOCKET) return;
    for (uint32_t i = l->references, next; i != NONE; i = next) {
        reference *r = &registry->references[i];
        tensor *t = &registry->tensors[r->slot];
        next = r->lease_next;
        if (end != PLLM_STORE_END_CLEAN && r->writers) poison(registry, t);
        if (r->readers + r->writers) {
            t->record.used_ns = now_ns;
            pllm_registry_effect_add(registry, t, PLLM_EFFECT_MIRROR);
        }
        if (r->importing) {
            t->record.reference_count -= r->readers + r->writers;
            t->record.writer_count -= r->writers;
            t->record.socket_count--;
            r->readers = r->writers = 0;
        } else {
            pllm_registry_reference_end(registry, r);
            pllm_registry_settle(registry, t);
        }
    }
    int has_own = pllm_registry_lease_of_pid(registry, l->peer.pid, l->peer.pid_start, &own) == 0;
    l->kind = PLLM_STORE_LEASE_PID; /* before anything is settled: counts are by kind */
    registry->socket_count--;
    if (has_own) imports_move(registry, l, pllm_registry_lease(registry, own));
    for (uint32_t i = l->references; i != NONE; i = registry->references[i].lease_next)
        pllm_registry_settle(registry, &registry->tensors[registry->references[i].slot]);
    if (l->references == NONE) lease_free(registry, l);
}

int pllm_registry_lease_of_pid(const pllm_registry *registry, uint32_t pid, uint64_t pid_start,
                               pllm_store_lease *lease_out)
{
    for (uint32_t i = 0; i < registry->lease_max; i++) {
        const lease *l = &registry->leases[i];
        if (l->kind != PLLM_STORE_LEASE_PID || l->peer.pid != pid || l->peer.pid_start != pid_start)
            continue;
        *lease_out = lease_number(registry, l);
        return PLLM_OK;
    }
    return PLLM_ENOTFOUND;
}

int pllm_registry_lease_next(const pllm_registry *registry, pllm_store_lease_kind kind,
                             uint32_t *cursor, pllm_store_lease *lease_out,
                             const pllm_store_peer **peer_out)
{
    while (*cursor < registry->lease_max) {
        const lease *l = &registry->leases[(*cursor)++];
        if (l->kind != (uint32_t)kind) continue;
        *lease_out = lease_number(registry, l);
        *peer_out = &l->peer;
        return 1;
    }
    return 0;
}

uint32_t pllm_registry_lease_kind(const pllm_registry *registry, pllm_store_lease number)
{
    const lease *l = pllm_registry_lease(registry, number);
    return l ? l->kind : 0;
}

uint32_t pllm_registry_lease_references(const pllm_registry *registry, pllm_store_lease number)
{
    const lease *l = pllm_registry_lease(registry, number);
    return l ? l->reference_count : 0;
}

uint64_t pllm_registry_sweep(pllm_registry *registry, uint64_t now_ns)
{
    if (registry->timed_count == 0) return registry->next_expiry_ns = UINT64_MAX;
    if (now_ns < registry->next_expiry_ns) return registry->next_expiry_ns;
    uint64_t next = UINT64_MAX;
    for (uint32_t i = 0; i < registry->lease_max; i++) {
        lease *l = &registry->leases[i];
        if (l->kind != PLLM_STORE_LEASE_TIMED) continue;
        if (l->expires_ns <= now_ns)
            pllm_registry_lease_close(registry, lease_number(registry, l), PLLM_STORE_END_DIED,
                                      now_ns);
        else if (l->expires_ns < next)
            next = l->expires_ns;
    }
    return registry->next_expiry_ns = next;
}

/* ---- references ---- */

reference *pllm_registry_reference(const pllm_registry *registry, uint32_t lease_index,
                                   uint32_t slot)
{
    uint32_t i = registry->reference_buckets[pllm_registry_bucket(registry, lease_index, slot)];
    for (; i != NONE; i = registry->references[i].hash_next) {
        reference *r = &registry->references[i];
        if (r->lease == lease_index && r->slot == slot) return r;
    }
    return NULL;
}

int pllm_registry_reference_get(pllm_registry *registry, uint32_t lease_index, uint32_t slot,
                                reference **reference_out)
{
    reference *r = pllm_registry_reference(registry, lease_index, slot);
    if (r) {
        *reference_out = r;
        return PLLM_OK;
    }
    uint32_t index = registry->free_reference;
    if (index == NONE)
        return pllm_fail(PLLM_ELIMIT, 0, "all %u references of the store are taken",
                         registry->reference_max);
    lease *l = &registry->leases[lease_index];
    tensor *t = &registry->tensors[slot];
    r = &registry->references[index];
    registry->free_reference = r->hash_next;
    uint32_t *bucket =
        &registry->reference_buckets[pllm_registry_bucket(registry, lease_index, slot)];
    *r = (reference){.lease = lease_index,
                     .slot = slot,
                     .hash_next = *bucket,
                     .lease_next = l->references,
                     .lease_previous = NONE,
                     .tensor_next = t->references,
                     .tensor_previous = NONE};
    if (l->references != NONE) registry->references[l->references].lease_previous = index;
    if (t->references != NONE) registry->references[t->references].tensor_previous = index;
    *bucket = l->references = t->references = index;
    l->reference_count++;
    t->record.socket_count += l->kind == PLLM_STORE_LEASE_SOCKET;
    registry->reference_count++;
    *reference_out = r;
    return PLLM_OK;
}

void pllm_registry_reference_add(pllm_registry *registry, reference *r, uint32_t writable,
                                 uint32_t import)
{
    tensor *t = &registry->tensors[r->slot];
    t->record.reference_count++;
    if (writable) {
        r->writers++;
        r->fence_epoch = t->record.fence_epoch;
        t->record.writer_count++;
    } else {
        r->readers++;
    }
    if (import && !r->importing) import_begin(registry, r, 1);
}

void pllm_registry_reference_end(pllm_registry *registry, reference *r)
{
    lease *l = &registry->leases[r->lease];
    tensor *t = &registry->tensors[r->slot];
    uint32_t index = (uint32_t)(r - registry->references);
    t->record.reference_count -= r->readers + r->writers;
    t->record.writer_count -= r->writers;
    import_end(registry, r);
    t->record.socket_count -= l->kind == PLLM_STORE_LEASE_SOCKET;
    l->reference_count--;

    if (r->lease_previous != NONE)
        registry->references[r->lease_previous].lease_next = r->lease_next;
    else
        l->references = r->lease_next;
    if (r->lease_next != NONE)
        registry->references[r->lease_next].lease_previous = r->lease_previous;
    if (r->tensor_previous != NONE)
        registry->references[r->tensor_previous].tensor_next = r->tensor_next;
    else
        t->references = r->tensor_next;
    if (r->tensor_next != NONE)
        registry->references[r->tensor_next].tensor_previous = r->tensor_previous;
    uint32_t *link =
        &registry->reference_buckets[pllm_registry_bucket(registry, r->lease, r->slot)];
    while (*link != index) link = &registry->references[*link].hash_next;
    *link = r->hash_next;

    r->slot = NONE; /* free */
    r->hash_next = registry->free_reference;
    registry->free_reference = index;
    registry->reference_count--;
}

static int not_held(void)
{
    return pllm_fail(PLLM_ESTALE, 0, "that tensor is not open here: it ended, or was closed");
}

/* The live reference of a lease to that very generation, or NULL. */
static reference *held(const pllm_registry *registry, pllm_store_lease number, uint32_t slot,
                       uint64_t generation)
{
    const lease *l = pllm_registry_lease(registry, number);
    if (!l || slot >= registry->tensor_max ||
        registry->tensors[slot].record.generation != generation)
        return NULL;
    return pllm_registry_reference(registry, pllm_registry_lease_index(registry, l), slot);
}

int pllm_registry_hold(pllm_registry *registry, pllm_store_lease number, uint32_t slot,
                       uint32_t writable, uint32_t import, uint64_t now_ns)
{
    lease *l = pllm_registry_lease(registry, number);
    if (!l) return pllm_fail(PLLM_ESTALE, 0, "that lease is over: connect again");
    if (slot >= registry->tensor_max || !pllm_registry_named(&registry->tensors[slot]))
        return pllm_fail(PLLM_ESTALE, 0, "that tensor has ended");
    tensor *t = &registry->tensors[slot];
    int status = pllm_registry_may(registry, &l->peer, slot, writable ? 6 : 4);
    if (status < 0) return status;
    if (writable && t->record.flags & PLLM_STORE_FLAG_SEALED)
        return pllm_fail(PLLM_EPERM, 0, "\"%s\" is sealed: it can be read only", t->record.name);
    int socket = l->kind == PLLM_STORE_LEASE_SOCKET;
    if (socket && pllm_registry_away(t)) return PLLM_EBUSY;
    if (t->record.reference_count == UINT32_MAX)
        return pllm_fail(PLLM_ELIMIT, 0, "\"%s\" is open too often", t->record.name);
    reference *r;
    status =
        pllm_registry_reference_get(registry, pllm_registry_lease_index(registry, l), slot, &r);
    if (status < 0) return status;
    pllm_registry_reference_add(registry, r, writable, import && socket);
    t->record.used_ns = now_ns;
    pllm_registry_effect_add(registry, t, PLLM_EFFECT_MIRROR);
    return PLLM_OK;
}

int pllm_registry_imports(const pllm_registry *registry, pllm_store_lease number, uint32_t slot)
{
    const lease *l = pllm_registry_lease(registry, number);
    if (!l || slot >= registry->tensor_max) return 0;
    const reference *r =
        pllm_registry_reference(registry, pllm_registry_lease_index(registry, l), slot);
    return r && r->importing != 0;
}

int pllm_registry_drop(pllm_registry *registry, pllm_store_lease number, uint32_t slot,
                       uint64_t generation, uint32_t writable, uint64_t now_ns)
{
    reference *r = held(registry, number, slot, generation);
    if (!r || (writable ? r->writers : r->readers) == 0) return not_held();
    tensor *t = &registry->tensors[slot];
    t->record.reference_count--;
    if (writable) {
        r->writers--;
        t->record.writer_count--;
    } else {
        r->readers--;
    }
    t->record.used_ns = now_ns;
    if (r->readers + r->writers + r->importing == 0) pllm_registry_reference_end(registry, r);
    pllm_registry_effect_add(registry, t, PLLM_EFFECT_MIRROR);
    pllm_registry_settle(registry, t);
    return PLLM_OK;
}

int pllm_registry_unmapped(pllm_registry *registry, pllm_store_lease number, uint32_t slot,
                           uint64_t generation, uint64_t now_ns)
{
    (void)now_ns;
    reference *r = held(registry, number, slot, generation);
    if (!r || !r->importing) return not_held();
    if (r->readers + r->writers)
        return pllm_fail(PLLM_EBUSY, 0, "\"%s\" is still open here: close it first",
                         registry->tensors[slot].record.name);
    tensor *t = &registry->tensors[slot];
    pllm_registry_reference_end(registry, r);
    pllm_registry_settle(registry, t);
    return PLLM_OK;
}

int pllm_registry_rejoin(pllm_registry *registry, pllm_store_lease number, uint32_t slot,
                         uint64_t generation)
{
    const lease *l = pllm_registry_lease(registry, number);
    pllm_store_lease own;
    if (!l || pllm_registry_lease_of_pid(registry, l->peer.pid, l->peer.pid_start, &own) < 0)
        return PLLM_ENOTFOUND;
    reference *r = held(registry, own, slot, generation);
    if (!r || !r->importing) return PLLM_ENOTFOUND;
    tensor *t = &registry->tensors[slot];
    if (r->importing > 1)
        r->importing--;
    else
        import_end(registry, r);
    if (r->readers + r->writers + r->importing == 0) pllm_registry_reference_end(registry, r);
    pllm_registry_settle(registry, t);
    lease *process = pllm_registry_lease(registry, own);
    if (process->references == NONE) lease_free(registry, process);
    return PLLM_OK;
}

int pllm_registry_signal(pllm_registry *registry, pllm_store_lease number, uint32_t slot,
                         uint64_t generation, uint64_t value, uint64_t now_ns)
{
    reference *r = held(registry, number, slot, generation);
    if (!r || !pllm_registry_named(&registry->tensors[slot])) return not_held();
    tensor *t = &registry->tensors[slot];
    if (!r->writers)
        return pllm_fail(PLLM_EPERM, 0, "\"%s\" is not open for writing here: only writers signal",
                         t->record.name);
    if (value == UINT64_MAX)
        return pllm_fail(PLLM_EINVAL, 0, "a fence counts to 2^64 - 2; the last number is poison");
    if (t->record.fence_poisoned) {
        if (r->fence_epoch != t->record.fence_epoch)
            return pllm_fail(PLLM_ECANCELED, 0,
                             "another producer of \"%s\" died: open it again for writing to go on",
                             t->record.name);
        t->record.fence_poisoned = 0;
        pllm_registry_effect_add(registry, t, PLLM_EFFECT_BOARD | PLLM_EFFECT_MIRROR);
    }
    if (value > t->record.fence_value) {
        t->record.fence_value = value;
        pllm_registry_effect_add(registry, t, PLLM_EFFECT_BOARD);
    }
    t->record.mtime_ns = pllm_registry_wall(registry, now_ns);
    return PLLM_OK;
}
