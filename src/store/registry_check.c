/* registry_check.c - the invariants of registry_internal.h, asserted; and what is counted. */
#include <assert.h>
#include <string.h>
#include "store/registry_internal.h"

void pllm_registry_stats_get(const pllm_registry *registry, pllm_registry_stats *stats_out)
{
    uint32_t users = 0;
    for (uint32_t i = 0; i < registry->user_count; i++) users += registry->users[i].count > 0;
    *stats_out = (pllm_registry_stats){registry->tensor_count, registry->lease_count,
                                       registry->reference_count, users, registry->charged_bytes};
}

void pllm_registry_usage_get(const pllm_registry *registry, uint32_t uid, uint64_t *bytes_out,
                             uint32_t *count_out)
{
    *bytes_out = 0;
    *count_out = 0;
    for (uint32_t i = 0; i < registry->user_count; i++) {
        if (registry->users[i].uid != uid) continue;
        *bytes_out = registry->users[i].bytes;
        *count_out = registry->users[i].count;
    }
}

static void tensor_check(const pllm_registry *registry, uint32_t slot)
{
    const tensor *t = &registry->tensors[slot];
    const pllm_store_record *record = &t->record;
    assert(record->slot == slot);
    if (record->state == PLLM_STORE_STATE_FREE) {
        assert(t->references == NONE && t->effects == 0);
        return;
    }
    uint32_t opens = 0, writers = 0, importers = 0, sockets = 0, previous = NONE;
    for (uint32_t i = t->references; i != NONE; i = registry->references[i].tensor_next) {
        const reference *r = &registry->references[i];
        assert(r->slot == slot && r->tensor_previous == previous);
        assert(r->readers + r->writers + r->importing > 0);
        assert(pllm_registry_reference(registry, r->lease, slot) == r);
        assert(registry->leases[r->lease].kind);
        opens += r->readers + r->writers;
        writers += r->writers;
        importers += r->importing != 0;
        sockets += registry->leases[r->lease].kind == PLLM_STORE_LEASE_SOCKET;
        previous = i;
    }
    assert(opens == record->reference_count && writers == record->writer_count);    /* 2 */
    assert(importers == record->importer_count && sockets == record->socket_count); /* 2 */
    if (opens == 0 && !(record->flags & (PLLM_STORE_FLAG_KEPT | PLLM_STORE_FLAG_PINNED)))
        assert(!pllm_registry_named(t)); /* 3 */
    assert(t->freeing == (record->state == PLLM_STORE_STATE_ENDED && t->references == NONE &&
                          !record->moving));                                             /* 4 */
    assert(record->generation >> 32 == registry->epoch && (uint32_t)record->generation); /* 6 */
    assert((uint32_t)record->generation <= registry->counter);                           /* 6 */
    if (record->moving)
        assert(pllm_registry_named(t) || record->state == PLLM_STORE_STATE_ENDED); /* 8 */
    if (record->state == PLLM_STORE_STATE_SPILLED || record->moving)               /* 8 */
        assert(importers == 0 && sockets == 0 && writers == 0 &&
               record->flags & PLLM_STORE_FLAG_SEALED && !(record->flags & PLLM_STORE_FLAG_PINNED));
}

static uint32_t names_check(const pllm_registry *registry)
{
    uint32_t count = 0;
    for (uint32_t b = 0; b <= registry->bucket_mask; b++)
        for (uint32_t i = registry->buckets[b]; i != NONE; i = registry->tensors[i].hash_next) {
            const tensor *t = &registry->tensors[i];
            assert(t->record.state == PLLM_STORE_STATE_CREATING || pllm_registry_named(t)); /* 1 */
            for (uint32_t k = t->hash_next; k != NONE; k = registry->tensors[k].hash_next)
                assert(strcmp(t->record.name, registry->tensors[k].record.name) != 0); /* 1 */
            count++;
        }
    return count;
}

static void effects_check(const pllm_registry *registry)
{
    uint32_t listed = 0, marked = 0, last = NONE;
    for (uint32_t i = registry->effect_first; i != NONE; i = registry->tensors[i].effect_next) {
        assert(registry->tensors[i].effects);
        assert(++listed <= registry->tensor_max);
        last = i;
    }
    assert(last == registry->effect_last);
    for (uint32_t i = 0; i < registry->tensor_max; i++) marked += registry->tensors[i].effects != 0;
    assert(listed == marked); /* 7 */
}

static void users_check(const pllm_registry *registry)
{
    uint64_t all_bytes = 0;
    uint32_t all_count = 0;
    for (uint32_t i = 0; i < registry->user_count; i++) {
        uint64_t bytes = 0;
        uint32_t count = 0;
        for (uint32_t k = 0; k < registry->tensor_max; k++) {
            const tensor *t = &registry->tensors[k];
            if (t->record.state == PLLM_STORE_STATE_FREE || t->user != i) continue;
            assert(t->record.uid == registry->users[i].uid);
            bytes += t->record.charge_bytes;
            count++;
        }
        assert(bytes == registry->users[i].bytes && count == registry->users[i].count); /* 5 */
        all_bytes += bytes;
        all_count += count;
    }
    assert(all_bytes == registry->charged_bytes && all_count == registry->tensor_count); /* 5 */
}

/* What is mapped, of one lease or (NONE) of all together. */
static void mapped_check(const pllm_registry *registry, uint32_t lease_index)
{
    uint64_t bytes[PLLM_REGISTRY_DEVICES] = {0};
    for (uint32_t i = 0; i < registry->tensor_max; i++) {
        const pllm_store_record *record = &registry->tensors[i].record;
        if (record->state == PLLM_STORE_STATE_FREE || record->kind == PLLM_STORE_KIND_LEGACY ||
            record->device >= PLLM_REGISTRY_DEVICES)
            continue;
        const reference *r =
            lease_index == NONE ? NULL : pllm_registry_reference(registry, lease_index, i);
        if (lease_index == NONE ? record->importer_count > 0 : r && r->importing)
            bytes[record->device] += record->charge_bytes;
    }
    assert(memcmp(bytes,
                  lease_index == NONE ? registry->mapped_bytes
                                      : registry->leases[lease_index].mapped_bytes,
                  sizeof bytes) == 0); /* 9 */
}

static void leases_check(const pllm_registry *registry)
{
    uint32_t leases = 0, timed = 0, sockets = 0, references = 0;
    for (uint32_t i = 0; i < registry->lease_max; i++) {
        const lease *l = &registry->leases[i];
        if (!l->kind) continue;
        uint32_t count = 0, previous = NONE;
        for (uint32_t r = l->references; r != NONE; r = registry->references[r].lease_next) {
            assert(registry->references[r].lease == i);
            assert(registry->references[r].lease_previous == previous);
            previous = r;
            count++;
        }
        assert(count == l->reference_count);
        if (l->changed) mapped_check(registry, i);
        leases++;
        references += count;
        timed += l->kind == PLLM_STORE_LEASE_TIMED;
        sockets += l->kind == PLLM_STORE_LEASE_SOCKET;
        if (l->kind == PLLM_STORE_LEASE_TIMED) assert(l->expires_ns >= registry->next_expiry_ns);
    }
    assert(leases == registry->lease_count && timed == registry->timed_count);
    assert(sockets == registry->socket_count);
    assert(references == registry->reference_count);
}

void pllm_registry_check(const pllm_registry *registry)
{
    uint32_t in_hash = 0;
    for (uint32_t i = 0; i < registry->tensor_max; i++) {
        tensor_check(registry, i);
        const tensor *t = &registry->tensors[i];
        in_hash += t->record.state == PLLM_STORE_STATE_CREATING || pllm_registry_named(t);
    }
    assert(in_hash == names_check(registry)); /* 1 */
    effects_check(registry);
    users_check(registry);
    leases_check(registry);
    mapped_check(registry, NONE);
}
