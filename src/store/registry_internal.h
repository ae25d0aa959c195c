/* registry_internal.h - the registry's tables, shared by its files.
 *
 *     users      [user_max]       uid, what it owns, its limits
 *     leases     [lease_max]      serial, peer, the head of its list of references
 *     references [reference_max]  in three lists: of its lease, of its tensor, of its hash bucket
 *     tensors    [tensor_max]     the record, the head of its references, its place in the name
 * hash
 *
 * Links are indices; NONE ends a list. All is allocated when the registry opens.
 *
 * Invariants (registry_check.c asserts them):
 *   1. A name that is in the hash belongs to one tensor, which is CREATING, READY or SPILLED; each
 *      such tensor is in it.
 *   2. reference_count, writer_count, importer_count and socket_count of a tensor are the sums over
 *      its references; no reference is empty.
 *   3. A tensor whose reference_count is 0 and that is not kept nor pinned is ENDED (or CREATING).
 *   4. FREE is asked for exactly when a tensor is ENDED, has no reference left and does not move.
 *   5. A user's bytes and count are the sums over its tensors that are not free.
 *   6. Generations are of this epoch, and no two tensors' are equal.
 *   7. A tensor with effects is in the list of effects, once; one without is not.
 *   8. A SPILLED tensor and one that moves are sealed, without importers, writers or sockets'
 *      references, and unpinned; only READY, SPILLED and ENDED ones move.
 *   9. mapped_bytes are sums over what is imported, legacy tensors left out. */
#ifndef PLLM_STORE_REGISTRY_INTERNAL_H
#define PLLM_STORE_REGISTRY_INTERNAL_H

#include "store/registry.h"

#define NONE UINT32_MAX
enum { DELETED_OLD = 512, MAPPED_UNIT = 2 << 20 };

typedef struct user {
    uint32_t uid, count, count_max;
    uint32_t fixed; /* limits were set for it: stays when it owns nothing */
    uint64_t bytes, bytes_max;
} user;

typedef struct lease {
    uint32_t kind, serial; /* kind 0: free, and next is the next free one */
    uint32_t next, references, reference_count;
    uint64_t expires_ns;
    pllm_store_peer peer;
    uint64_t mapped_bytes[PLLM_REGISTRY_DEVICES]; /* of tensors that it imports */
    uint32_t changed, changed_next;               /* changed: in the list of those */
} lease;

typedef struct reference {
    uint32_t lease, slot;
    uint32_t readers, writers;
    uint32_t importing;   /* of a process's lease: how many of its connections broke with it */
    uint32_t fence_epoch; /* of the tensor, when this was last opened for writing */
    uint32_t hash_next;   /* of a free one: the next free one */
    uint32_t lease_next, lease_previous;
    uint32_t tensor_next, tensor_previous;
} reference;

typedef struct tensor {
    pllm_store_record record;
    char name_before[PLLM_STORE_NAME_MAX + 1];
    uint32_t user, references;
    uint32_t hash_next; /* of a free one: the next free one */
    uint32_t effects, effect_next;
    uint32_t doomed;         /* CREATING, and its lease is gone */
    uint32_t freeing;        /* FREE was asked for */
    uint64_t old_generation; /* adopted: what it was before the daemon's death; 0: was not */
    uint32_t adopt_open;     /* its producer may still come back and offer it */
} tensor;

typedef struct deleted {
    uint64_t generation;
    uint32_t uid; /* whose: another user may have offered something under that number */
} deleted;

struct pllm_registry {
    const pllm_context *context;
    uint32_t epoch, counter, admin_uid;
    uint32_t tensor_max, lease_max, reference_max, user_max;
    uint32_t bucket_mask, reference_mask;
    uint32_t free_tensor, free_lease, free_reference;
    uint32_t effect_first, effect_last;
    uint32_t changed_first;
    uint64_t mapped_bytes[PLLM_REGISTRY_DEVICES]; /* of tensors that anybody imports */
    uint32_t tensor_count, lease_count, reference_count, timed_count, socket_count, user_count;
    uint32_t count_per_user_max;
    uint64_t bytes_per_user_max, charged_bytes, next_expiry_ns;
    int64_t wall_offset_ns;
    /* Adopted tensors that were deleted, by their old generation: they do not come back through who
     * offers them late. A ring. */
    deleted deleted_old[DELETED_OLD];
    uint32_t deleted_old_next;
    user *users;
    lease *leases;
    reference *references;
    tensor *tensors;
    uint32_t *buckets, *reference_buckets;
};

/* registry.c */
void pllm_registry_effect_add(pllm_registry *registry, tensor *t, uint32_t kinds);
/* The name goes; the rest when nobody refers to it. */
void pllm_registry_end(pllm_registry *registry, tensor *t);
/* Something stopped referring to t: end it or ask for FREE, if that was the last. */
void pllm_registry_settle(pllm_registry *registry, tensor *t);
int pllm_registry_owner(const pllm_registry *registry, const pllm_store_peer *peer,
                        const tensor *t);
/* registry_lease.c */
lease *pllm_registry_lease(const pllm_registry *registry, pllm_store_lease number); /* or NULL */
reference *pllm_registry_reference(const pllm_registry *registry, uint32_t lease_index,
                                   uint32_t slot);
/* The reference of (lease, slot), made if there is none. Errors: ELIMIT. */
int pllm_registry_reference_get(pllm_registry *registry, uint32_t lease_index, uint32_t slot,
                                reference **reference_out);
/* Counts one more open (or only an import). */
void pllm_registry_reference_add(pllm_registry *registry, reference *r, uint32_t writable,
                                 uint32_t import);
/* Forgets all that r still stands for; r is free afterwards. */
void pllm_registry_reference_end(pllm_registry *registry, reference *r);

static inline uint32_t pllm_registry_bucket(const pllm_registry *registry, uint32_t lease_index,
                                            uint32_t slot)
{
    uint64_t mixed =
        ((uint64_t)lease_index << 32 | slot) * 0x9e3779b97f4a7c15u; /* Fibonacci hashing */
    return (uint32_t)(mixed >> 32) & registry->reference_mask;
}

static inline uint32_t pllm_registry_lease_index(const pllm_registry *registry, const lease *l)
{
    return (uint32_t)(l - registry->leases);
}

static inline int64_t pllm_registry_wall(const pllm_registry *registry, uint64_t now_ns)
{
    return (int64_t)now_ns + registry->wall_offset_ns;
}

/* Its bytes are not on the device, or on their way. */
static inline int pllm_registry_away(const tensor *t)
{
    return t->record.state == PLLM_STORE_STATE_SPILLED || t->record.moving;
}

static inline int pllm_registry_named(const tensor *t)
{
    return t->record.state == PLLM_STORE_STATE_READY || t->record.state == PLLM_STORE_STATE_SPILLED;
}

#endif
