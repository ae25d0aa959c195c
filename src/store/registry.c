/* registry.c - the life of tensors: made, found, ended, changed; rights, quotas, consequences.
 *
 * Names are found through a hash with chains (XXH3, seeded with the epoch). Leases and references
 * are in registry_lease.c, the check of the invariants in registry_check.c; the picture of the
 * tables and the invariants are in registry_internal.h. */
#include "store/registry.h"

#include <string.h>
#include "base/hash.h"
#include "store/registry_internal.h"

enum {
    TENSORS_DEFAULT = 16384,
    LEASES_DEFAULT = 4096,
    REFERENCES_DEFAULT = 65536,
    USERS_DEFAULT = 256,
    TABLE_MAX = 1 << 24, /* of each: indices and masks stay far from 32 bits */
};

const char *pllm_store_state_name(uint32_t state)
{
    static const char *const names[] = {"free", "creating", "ready", "spilled", "ended"};
    return state < sizeof names / sizeof *names ? names[state] : "unknown";
}

/* ---- open and close ---- */

static uint32_t power_of_two(uint32_t at_least)
{
    uint32_t power = 16;
    while (power < at_least) power *= 2;
    return power;
}

static void lists_init(pllm_registry *registry)
{
    for (uint32_t i = 0; i < registry->tensor_max; i++) {
        registry->tensors[i].record.slot = i;
        registry->tensors[i].references = NONE;
        registry->tensors[i].hash_next = i + 1 < registry->tensor_max ? i + 1 : NONE;
    }
    for (uint32_t i = 0; i < registry->lease_max; i++)
        registry->leases[i].next = i + 1 < registry->lease_max ? i + 1 : NONE;
    for (uint32_t i = 0; i < registry->reference_max; i++) {
        registry->references[i].slot = NONE;
        registry->references[i].hash_next = i + 1 < registry->reference_max ? i + 1 : NONE;
    }
    memset(registry->buckets, 0xff, ((uint64_t)registry->bucket_mask + 1) * sizeof(uint32_t));
    memset(registry->reference_buckets, 0xff,
           ((uint64_t)registry->reference_mask + 1) * sizeof(uint32_t));
    registry->effect_first = registry->effect_last = registry->changed_first = NONE;
}

int pllm_registry_open(const pllm_context *context, const pllm_registry_options *options,
                       pllm_registry **registry_out)
{
    *registry_out = NULL;
    if (options->struct_bytes != sizeof *options || options->epoch == 0)
        return pllm_fail(PLLM_EINVAL, 0, "a registry needs options of this version and an epoch");
    if (options->tensor_max > TABLE_MAX || options->lease_max > TABLE_MAX ||
        options->reference_max > TABLE_MAX || options->user_max > TABLE_MAX)
        return pllm_fail(PLLM_EINVAL, 0, "a table of the registry holds at most %d", TABLE_MAX);
    pllm_registry *registry = pllm_alloc(context, sizeof *registry);
    if (!registry) return pllm_fail_memory("the registry", sizeof *registry);
    registry->context = context;
    registry->epoch = options->epoch;
    registry->admin_uid = options->admin_uid;
    registry->count_per_user_max = options->count_per_user_max;
    registry->bytes_per_user_max = options->bytes_per_user_max;
    registry->next_expiry_ns = UINT64_MAX;
    registry->tensor_max = options->tensor_max ? options->tensor_max : TENSORS_DEFAULT;
    registry->lease_max = options->lease_max ? options->lease_max : LEASES_DEFAULT;
    registry->reference_max = options->reference_max ? options->reference_max : REFERENCES_DEFAULT;
    registry->user_max = options->user_max ? options->user_max : USERS_DEFAULT;
    registry->bucket_mask = power_of_two(registry->tensor_max) - 1;
    registry->reference_mask = power_of_two(registry->reference_max) - 1;
    registry->tensors = pllm_alloc_array(context, registry->tensor_max, sizeof(tensor));
    registry->leases = pllm_alloc_array(context, registry->lease_max, sizeof(lease));
    registry->references = pllm_alloc_array(context, registry->reference_max, sizeof(reference));
    registry->users = pllm_alloc_array(context, registry->user_max, sizeof(user));
    registry->buckets =
        pllm_alloc_array(context, (uint64_t)registry->bucket_mask + 1, sizeof(uint32_t));
    registry->reference_buckets =
        pllm_alloc_array(context, (uint64_t)registry->reference_mask + 1, sizeof(uint32_t));
    if (!registry->tensors || !registry->leases || !registry->references || !registry->users ||
        !registry->buckets || !registry->reference_buckets) {
        pllm_registry_close(registry);
        return pllm_fail(PLLM_ENOMEM, 0, "no memory for a registry of %u tensors",
                         options->tensor_max ? options->tensor_max : TENSORS_DEFAULT);
    }
    lists_init(registry);
    *registry_out = registry;
    return PLLM_OK;
}

void pllm_registry_close(pllm_registry *registry)
{
    if (!registry) return;
    const pllm_context *context = registry->context;
    pllm_free(context, registry->reference_buckets);
    pllm_free(context, registry->buckets);
    pllm_free(context, registry->users);
    pllm_free(context, registry->references);
    pllm_free(context, registry->leases);
    pllm_free(context, registry->tensors);
    pllm_free(context, registry);
}

void pllm_registry_clock_set(pllm_registry *registry, int64_t wall_minus_now_ns)
{
    registry->wall_offset_ns = wall_minus_now_ns;
}

/* ---- users ---- */

static user *user_of(const pllm_registry *registry, uint32_t uid)
{
    for (uint32_t i = 0; i < registry->user_count; i++)
        if (registry->users[i].uid == uid) return &registry->users[i];
    return NULL;
}

/* A place for uid. Places are never moved; one that nobody needs is taken over. */
static int user_get(pllm_registry *registry, uint32_t uid, user **user_out)
{
    user *u = user_of(registry, uid);
    for (uint32_t i = 0; !u && i < registry->user_count; i++)
        if (registry->users[i].count == 0 && !registry->users[i].fixed) u = &registry->users[i];
    if (!u && registry->user_count == registry->user_max)
        return pllm_fail(PLLM_ELIMIT, 0, "the store serves at most %u users", registry->user_max);
    if (!u) u = &registry->users[registry->user_count++];
    if (u->uid != uid || (u->count == 0 && !u->fixed))
        *u = (user){.uid = uid,
                    .count_max = registry->count_per_user_max,
                    .bytes_max = registry->bytes_per_user_max};
    *user_out = u;
    return PLLM_OK;
}

int pllm_registry_quota_set(pllm_registry *registry, uint32_t uid, uint64_t bytes_max,
                            uint32_t count_max)
{
    user *u;
    int status = user_get(registry, uid, &u);
    if (status < 0) return status;
    u->fixed = 1;
    u->bytes_max = bytes_max;
    u->count_max = count_max;
    return PLLM_OK;
}

static int quota_check(const user *u, uint64_t charge_bytes)
{
    if (u->count_max && u->count >= u->count_max)
        return pllm_fail(PLLM_ELIMIT, 0, "user %u owns %u tensors, the most: delete some", u->uid,
                         u->count);
    if (u->bytes_max && (charge_bytes > u->bytes_max || u->bytes > u->bytes_max - charge_bytes))
        return pllm_fail(
            PLLM_ELIMIT, 0,
            "user %u owns %llu bytes of at most %llu: %llu more do not fit, delete some", u->uid,
            (unsigned long long)u->bytes, (unsigned long long)u->bytes_max,
            (unsigned long long)charge_bytes);
    return PLLM_OK;
}

/* ---- names ---- */

static uint32_t *bucket_of(const pllm_registry *registry, const char *name, size_t bytes)
{
    return &registry->buckets[pllm_hash64(name, bytes, registry->epoch) & registry->bucket_mask];
}

static tensor *named(const pllm_registry *registry, const char *name, size_t bytes)
{
    if (bytes == 0 || bytes > PLLM_STORE_NAME_MAX) return NULL;
    for (uint32_t i = *bucket_of(registry, name, bytes); i != NONE;
         i = registry->tensors[i].hash_next) {
        tensor *t = &registry->tensors[i];
        if (memcmp(t->record.name, name, bytes) == 0 && t->record.name[bytes] == 0) return t;
    }
    return NULL;
}

static void name_insert(pllm_registry *registry, tensor *t, const char *name, size_t bytes)
{
    memcpy(t->record.name, name, bytes);
    t->record.name[bytes] = 0;
    uint32_t *bucket = bucket_of(registry, name, bytes);
    t->hash_next = *bucket;
    *bucket = t->record.slot;
}

static void name_remove(pllm_registry *registry, tensor *t)
{
    uint32_t *link = bucket_of(registry, t->record.name, strlen(t->record.name));
    while (*link != t->record.slot) link = &registry->tensors[*link].hash_next;
    *link = t->hash_next;
    t->hash_next = NONE;
}

int pllm_registry_find(const pllm_registry *registry, const char *name, size_t name_bytes,
                       uint32_t *slot_out)
{
    const tensor *t = named(registry, name, name_bytes);
    if (!t || !pllm_registry_named(t)) {
        int status = pllm_store_name_check(name, name_bytes);
        if (status < 0) return status;
        return pllm_fail(PLLM_ENOTFOUND, 0, "no tensor is named \"%.*s\"", (int)name_bytes, name);
    }
    *slot_out = t->record.slot;
    return PLLM_OK;
}

int pllm_registry_find_generation(const pllm_registry *registry, uint32_t slot, uint64_t generation)
{
    if (slot < registry->tensor_max && generation) {
        const tensor *t = &registry->tensors[slot];
        if (pllm_registry_named(t) && t->record.generation == generation) return PLLM_OK;
    }
    return pllm_fail(PLLM_ESTALE, 0, "that tensor has ended, or is one of an earlier daemon");
}

const pllm_store_record *pllm_registry_record(const pllm_registry *registry, uint32_t slot)
{
    if (slot >= registry->tensor_max) return NULL;
    const tensor *t = &registry->tensors[slot];
    return t->record.state == PLLM_STORE_STATE_FREE ? NULL : &t->record;
}

uint32_t pllm_registry_slot_max(const pllm_registry *registry)
{
    return registry->tensor_max;
}

/* ---- rights ---- */

int pllm_registry_owner(const pllm_registry *registry, const pllm_store_peer *peer, const tensor *t)
{
    return peer->uid == t->record.uid || peer->uid == 0 || peer->uid == registry->admin_uid;
}

static int in_group(const pllm_store_peer *peer, uint32_t gid)
{
    if (peer->gid == gid) return 1;
    for (uint32_t i = 0; i < peer->group_count; i++)
        if (peer->groups[i] == gid) return 1;
    return 0;
}

/* As for files, the first class that fits decides: an owner that its mode forbids to write may not,
 * though others may. */
int pllm_registry_allows(const pllm_registry *registry, const pllm_store_peer *peer, uint32_t slot,
                         uint32_t access)
{
    const tensor *t = &registry->tensors[slot];
    uint32_t shift = pllm_registry_owner(registry, peer, t) ? 6
                     : in_group(peer, t->record.gid)        ? 3
                                                            : 0;
    return (t->record.mode >> shift & access) == access;
}

int pllm_registry_may(const pllm_registry *registry, const pllm_store_peer *peer, uint32_t slot,
                      uint32_t access)
{
    if (pllm_registry_allows(registry, peer, slot, access)) return PLLM_OK;
    const pllm_store_record *record = &registry->tensors[slot].record;
    return pllm_fail(PLLM_EPERM, 0,
                     "user %u may not %s \"%s\": it belongs to user %u, with mode 0%o", peer->uid,
                     access & 2 ? "write" : "read", record->name, record->uid, record->mode);
}

static int owner_check(const pllm_registry *registry, const pllm_store_peer *peer, const tensor *t,
                       const char *what)
{
    if (pllm_registry_owner(registry, peer, t)) return PLLM_OK;
    return pllm_fail(PLLM_EPERM, 0, "user %u may not %s \"%s\": it belongs to user %u", peer->uid,
                     what, t->record.name, t->record.uid);
}

/* ---- consequences ---- */

void pllm_registry_effect_add(pllm_registry *registry, tensor *t, uint32_t kinds)
{
    if (t->record.state == PLLM_STORE_STATE_CREATING) return; /* commit says all that is to say */
    if (t->effects == 0) {
        t->effect_next = NONE;
        if (registry->effect_last != NONE)
            registry->tensors[registry->effect_last].effect_next = t->record.slot;
        else
            registry->effect_first = t->record.slot;
        registry->effect_last = t->record.slot;
    }
    t->effects |= kinds;
}

int pllm_registry_effect_next(pllm_registry *registry, pllm_registry_effect *effect_out)
{
    uint32_t slot = registry->effect_first;
    if (slot == NONE) return 0;
    tensor *t = &registry->tensors[slot];
    registry->effect_first = t->effect_next;
    if (registry->effect_first == NONE) registry->effect_last = NONE;
    *effect_out = (pllm_registry_effect){slot, t->effects, &t->record,
                                         t->effects & PLLM_EFFECT_RENAMED ? t->name_before : NULL};
    t->effects = 0;
    return 1;
}

static int kept(const tensor *t)
{
    return (t->record.flags & (PLLM_STORE_FLAG_KEPT | PLLM_STORE_FLAG_PINNED)) != 0;
}

void pllm_registry_end(pllm_registry *registry, tensor *t)
{
    name_remove(registry, t);
    t->record.state = PLLM_STORE_STATE_ENDED;
    pllm_registry_effect_add(registry, t,
                             PLLM_EFFECT_BOARD | PLLM_EFFECT_MIRROR | PLLM_EFFECT_DELETED);
    pllm_registry_settle(registry, t);
}

void pllm_registry_settle(pllm_registry *registry, tensor *t)
{
    if (pllm_registry_named(t) && t->record.reference_count == 0 && !kept(t)) {
        pllm_registry_end(registry, t); /* settles it again, as ended */
        return;
    }
    if (t->record.state == PLLM_STORE_STATE_CREATING && t->record.reference_count == 0 && !kept(t))
        t->doomed = 1;
    if (t->record.state == PLLM_STORE_STATE_ENDED && t->references == NONE && !t->record.moving &&
        !t->freeing) {
        t->freeing = 1;
        pllm_registry_effect_add(registry, t, PLLM_EFFECT_FREE);
    }
}

static void slot_free(pllm_registry *registry, tensor *t)
{
    user *u = &registry->users[t->user];
    u->count--;
    u->bytes -= t->record.charge_bytes;
    registry->charged_bytes -= t->record.charge_bytes;
    registry->tensor_count--;
    t->record.state = PLLM_STORE_STATE_FREE;
    t->hash_next = registry->free_tensor;
    registry->free_tensor = t->record.slot;
}

void pllm_registry_freed(pllm_registry *registry, uint32_t slot)
{
    slot_free(registry, &registry->tensors[slot]);
}

/* ---- made ---- */

/* A slot with everything but references; nothing is charged or taken yet when this fails. */
static int slot_take(pllm_registry *registry, uint32_t uid, const char *name, size_t name_bytes,
                     const pllm_registry_spec *spec, tensor **tensor_out)
{
    uint64_t bytes;
    uint32_t mode;
    user *u;
    int status = pllm_store_name_check(name, name_bytes);
    if (status == PLLM_OK)
        status = pllm_store_shape_bytes(spec->dtype, spec->rank, spec->shape, &bytes);
    if (status == PLLM_OK) status = pllm_store_mode_check(spec->mode, &mode);
    if (status < 0) return status;
    if (spec->kind > PLLM_STORE_KIND_LEGACY ||
        spec->flags &
            ~(uint32_t)(PLLM_STORE_FLAG_SEALED | PLLM_STORE_FLAG_PINNED | PLLM_STORE_FLAG_KEPT))
        return pllm_fail(PLLM_EINVAL, 0, "a tensor of kind %u with flags 0x%x is unknown",
                         spec->kind, spec->flags);
    if (named(registry, name, name_bytes))
        return pllm_fail(
            PLLM_EEXIST, 0,
            "a tensor named \"%.*s\" is there already: delete it, or take another name",
            (int)name_bytes, name);
    if (registry->free_tensor == NONE)
        return pllm_fail(PLLM_ELIMIT, 0, "the store holds %u tensors, which is all it can",
                         registry->tensor_max);
    if (registry->counter == UINT32_MAX)
        return pllm_fail(PLLM_ELIMIT, 0, "the store has made 2^32 tensors: restart it");
    status = user_get(registry, uid, &u);
    uint64_t charge_bytes = spec->charge_bytes ? spec->charge_bytes : bytes;
    if (status == PLLM_OK) status = quota_check(u, charge_bytes);
    if (status < 0) return status;

    tensor *t = &registry->tensors[registry->free_tensor];
    registry->free_tensor = t->hash_next;
    uint32_t slot = t->record.slot;
    *t = (tensor){.user = (uint32_t)(u - registry->users), .references = NONE};
    t->record = (pllm_store_record){.dtype = (uint8_t)spec->dtype,
                                    .rank = (uint8_t)spec->rank,
                                    .kind = (uint8_t)spec->kind,
                                    .state = PLLM_STORE_STATE_CREATING,
                                    .slot = slot,
                                    .flags = spec->flags,
                                    .device = spec->device,
                                    .uid = uid,
                                    .mode = mode,
                                    .bytes = bytes,
                                    .charge_bytes = charge_bytes};
    memcpy(t->record.shape, spec->shape, spec->rank * sizeof *spec->shape);
    t->record.generation = (uint64_t)registry->epoch << 32 | ++registry->counter;
    name_insert(registry, t, name, name_bytes);
    u->count++;
    u->bytes += charge_bytes;
    registry->charged_bytes += charge_bytes;
    registry->tensor_count++;
    *tensor_out = t;
    return PLLM_OK;
}

static void slot_give_back(pllm_registry *registry, tensor *t)
{
    while (t->references != NONE)
        pllm_registry_reference_end(registry, &registry->references[t->references]);
    name_remove(registry, t);
    slot_free(registry, t);
}

/* The first reference of a tensor just made. */
static int first_reference(pllm_registry *registry, tensor *t, const lease *l, uint32_t writable)
{
    reference *r;
    int status = pllm_registry_reference_get(registry, pllm_registry_lease_index(registry, l),
                                             t->record.slot, &r);
    if (status == PLLM_OK)
        pllm_registry_reference_add(registry, r, writable, l->kind == PLLM_STORE_LEASE_SOCKET);
    return status;
}

int pllm_registry_create(pllm_registry *registry, pllm_store_lease number,
                         const pllm_store_peer *peer, const char *name, size_t name_bytes,
                         const pllm_registry_spec *spec, uint64_t now_ns, uint32_t *slot_out)
{
    *slot_out = PLLM_STORE_SLOT_NONE;
    const lease *l = pllm_registry_lease(registry, number);
    if (number && !l) return pllm_fail(PLLM_ESTALE, 0, "that lease is over: connect again");
    if (l) peer = &l->peer;
    if (spec->flags & PLLM_STORE_FLAG_SEALED)
        return pllm_fail(PLLM_EINVAL, 0, "a new tensor has nothing to seal: write it first");
    if (!l && !(spec->flags & (PLLM_STORE_FLAG_KEPT | PLLM_STORE_FLAG_PINNED)))
        return pllm_fail(PLLM_EINVAL, 0, "a tensor that nobody holds must be kept");
    tensor *t;
    int status = slot_take(registry, peer->uid, name, name_bytes, spec, &t);
    if (status < 0) return status;
    if (l) status = first_reference(registry, t, l, 1);
    if (status < 0) {
        slot_give_back(registry, t);
        return status;
    }
    t->record.gid = peer->gid;
    t->record.owner_pid = peer->pid;
    t->record.owner_start = peer->pid_start;
    t->record.used_ns = now_ns;
    t->record.ctime_ns = t->record.mtime_ns = pllm_registry_wall(registry, now_ns);
    *slot_out = t->record.slot;
    return PLLM_OK;
}

int pllm_registry_commit(pllm_registry *registry, uint32_t slot, uint64_t now_ns)
{
    tensor *t = &registry->tensors[slot];
    (void)now_ns;
    if (t->doomed) { /* it was never there for anybody: no events, only the memory */
        name_remove(registry, t);
        t->record.state = PLLM_STORE_STATE_ENDED;
        pllm_registry_settle(registry, t);
        return pllm_fail(PLLM_ECANCELED, 0, "who asked for \"%s\" has gone", t->record.name);
    }
    t->record.state = PLLM_STORE_STATE_READY;
    pllm_registry_effect_add(registry, t,
                             PLLM_EFFECT_BOARD | PLLM_EFFECT_MIRROR | PLLM_EFFECT_CREATED);
    return PLLM_OK;
}

void pllm_registry_abort(pllm_registry *registry, uint32_t slot)
{
    slot_give_back(registry, &registry->tensors[slot]);
}

/* The tensor of that user that was old_generation, if it was offered already: mostly under that
 * name, but who offers may not have heard of a renaming, before the daemon's death or since. What
 * another user offers under its number is another tensor. */
static tensor *adopted(pllm_registry *registry, const char *name, size_t name_bytes,
                       uint64_t old_generation, uint32_t uid)
{
    tensor *t = named(registry, name, name_bytes);
    if (t && t->old_generation == old_generation && t->record.uid == uid) return t;
    for (uint32_t i = 0; i < registry->tensor_max; i++) {
        t = &registry->tensors[i];
        if (t->old_generation == old_generation && t->record.uid == uid && pllm_registry_named(t))
            return t;
    }
    return NULL;
}

int pllm_registry_adopt(pllm_registry *registry, pllm_store_lease number, const char *name,
                        size_t name_bytes, const pllm_registry_offer *offer, uint64_t now_ns,
                        uint32_t *slot_out, uint32_t *fresh_out)
{
    *slot_out = PLLM_STORE_SLOT_NONE;
    *fresh_out = 0;
    const lease *l = pllm_registry_lease(registry, number);
    if (!l) return pllm_fail(PLLM_ESTALE, 0, "that lease is over: connect again");
    int status = pllm_store_name_check(name, name_bytes);
    if (status < 0) return status;
    if (offer->old_generation == 0 || offer->old_generation >> 32 >= registry->epoch)
        return pllm_fail(PLLM_EINVAL, 0, "only a tensor of an earlier daemon can be offered");
    tensor *t = adopted(registry, name, name_bytes, offer->old_generation, offer->uid);
    if (t) {
        if (!pllm_registry_named(t)) return PLLM_EBUSY;
        status = pllm_registry_hold(registry, number, t->record.slot, offer->writable, 1, now_ns);
        if (status < 0) return status;
        if (offer->fence_value > t->record.fence_value && offer->fence_value != UINT64_MAX) {
            t->record.fence_value = offer->fence_value;
            pllm_registry_effect_add(registry, t, PLLM_EFFECT_BOARD);
        }
        *slot_out = t->record.slot;
        return PLLM_OK;
    }
    if (l->peer.uid != offer->uid && l->peer.uid != 0 && l->peer.uid != registry->admin_uid)
        return pllm_fail(PLLM_EPERM, 0,
                         "\"%.*s\" belongs to user %u, who has not offered it yet: try again",
                         (int)name_bytes, name, offer->uid);
    for (uint32_t i = 0; i < DELETED_OLD; i++)
        if (registry->deleted_old[i].generation == offer->old_generation &&
            registry->deleted_old[i].uid == offer->uid)
            return pllm_fail(PLLM_ESTALE, 0, "\"%.*s\" was deleted meanwhile", (int)name_bytes,
                             name);
    status = slot_take(registry, offer->uid, name, name_bytes, &offer->spec, &t);
    if (status < 0) return status;
    status = first_reference(registry, t, l, offer->writable);
    if (status < 0) {
        slot_give_back(registry, t);
        return status;
    }
    t->record.gid = offer->gid;
    t->record.owner_pid = l->peer.pid;
    t->record.owner_start = l->peer.pid_start;
    t->record.used_ns = now_ns;
    t->record.ctime_ns = t->record.mtime_ns = pllm_registry_wall(registry, now_ns);
    t->record.fence_value = offer->fence_value == UINT64_MAX ? 0 : offer->fence_value;
    t->record.fence_epoch = offer->fence_epoch;
    t->old_generation = offer->old_generation;
    t->adopt_open = 1;
    registry->references[t->references].fence_epoch = offer->fence_epoch;
    *slot_out = t->record.slot;
    *fresh_out = 1;
    return PLLM_OK;
}

void pllm_registry_adopt_end(pllm_registry *registry)
{
    for (uint32_t i = 0; i < registry->tensor_max; i++) {
        tensor *t = &registry->tensors[i];
        if (!t->adopt_open || !pllm_registry_named(t)) continue;
        t->adopt_open = 0;
        if (t->record.writer_count || t->record.fence_poisoned ||
            t->record.flags & PLLM_STORE_FLAG_SEALED)
            continue;
        t->record.fence_poisoned = 1;
        t->record.fence_epoch++;
        pllm_registry_effect_add(registry, t,
                                 PLLM_EFFECT_BOARD | PLLM_EFFECT_MIRROR | PLLM_EFFECT_POISONED);
    }
}

/* ---- changed ---- */

static int named_check(const pllm_registry *registry, uint32_t slot)
{
    if (slot < registry->tensor_max && pllm_registry_named(&registry->tensors[slot]))
        return PLLM_OK;
    return pllm_fail(PLLM_ESTALE, 0, "that tensor has ended");
}

int pllm_registry_delete(pllm_registry *registry, const pllm_store_peer *peer, uint32_t slot,
                         uint64_t now_ns)
{
    (void)now_ns;
    int status = named_check(registry, slot);
    if (status == PLLM_OK) status = owner_check(registry, peer, &registry->tensors[slot], "delete");
    if (status < 0) return status;
    tensor *t = &registry->tensors[slot];
    if (t->old_generation)
        registry->deleted_old[registry->deleted_old_next++ % DELETED_OLD] =
            (deleted){t->old_generation, t->record.uid};
    pllm_registry_end(registry, t);
    return PLLM_OK;
}

int pllm_registry_rename(pllm_registry *registry, const pllm_store_peer *peer, uint32_t slot,
                         const char *name, size_t name_bytes, uint64_t now_ns)
{
    int status = named_check(registry, slot);
    if (status == PLLM_OK) status = owner_check(registry, peer, &registry->tensors[slot], "rename");
    if (status == PLLM_OK) status = pllm_store_name_check(name, name_bytes);
    if (status < 0) return status;
    tensor *t = &registry->tensors[slot];
    const tensor *other = named(registry, name, name_bytes);
    if (other == t) return PLLM_OK;
    if (other)
        return pllm_fail(
            PLLM_EEXIST, 0,
            "a tensor named \"%.*s\" is there already: delete it, or take another name",
            (int)name_bytes, name);
    if (!(t->effects & PLLM_EFFECT_RENAMED))
        memcpy(t->name_before, t->record.name, sizeof t->name_before);
    name_remove(registry, t);
    name_insert(registry, t, name, name_bytes);
    t->record.mtime_ns = pllm_registry_wall(registry, now_ns);
    pllm_registry_effect_add(registry, t, PLLM_EFFECT_MIRROR | PLLM_EFFECT_RENAMED);
    return PLLM_OK;
}

int pllm_registry_seal(pllm_registry *registry, pllm_store_lease number,
                       const pllm_store_peer *peer, uint32_t slot, uint64_t now_ns)
{
    int status = named_check(registry, slot);
    if (status < 0) return status;
    tensor *t = &registry->tensors[slot];
    const lease *l = pllm_registry_lease(registry, number);
    const reference *r =
        l ? pllm_registry_reference(registry, pllm_registry_lease_index(registry, l), slot) : NULL;
    uint32_t own_writers = r ? r->writers : 0;
    if (!own_writers) status = owner_check(registry, peer, t, "seal");
    if (status < 0) return status;
    if (t->record.flags & PLLM_STORE_FLAG_SEALED) return PLLM_OK;
    if (t->record.writer_count > own_writers)
        return pllm_fail(PLLM_EBUSY, 0,
                         "\"%s\" is open for writing elsewhere: it seals when they "
                         "have closed it",
                         t->record.name);
    t->record.flags |= PLLM_STORE_FLAG_SEALED;
    t->record.mtime_ns = pllm_registry_wall(registry, now_ns);
    pllm_registry_effect_add(registry, t,
                             PLLM_EFFECT_BOARD | PLLM_EFFECT_MIRROR | PLLM_EFFECT_SEALED);
    return PLLM_OK;
}

int pllm_registry_pin(pllm_registry *registry, const pllm_store_peer *peer, uint32_t slot,
                      uint32_t on, uint64_t now_ns)
{
    (void)now_ns;
    int status = named_check(registry, slot);
    if (status == PLLM_OK) status = owner_check(registry, peer, &registry->tensors[slot], "pin");
    if (status < 0) return status;
    tensor *t = &registry->tensors[slot];
    if (on && pllm_registry_away(t)) return PLLM_EBUSY;
    if (((t->record.flags & PLLM_STORE_FLAG_PINNED) != 0) == (on != 0)) return PLLM_OK;
    t->record.flags ^= PLLM_STORE_FLAG_PINNED;
    pllm_registry_effect_add(registry, t,
                             PLLM_EFFECT_BOARD | PLLM_EFFECT_MIRROR | PLLM_EFFECT_PINNED);
    pllm_registry_settle(registry, t);
    return PLLM_OK;
}

/* ---- spilled ---- */

uint32_t pllm_registry_spill_candidate(const pllm_registry *registry, uint32_t device)
{
    const tensor *oldest = NULL;
    for (uint32_t i = 0; i < registry->tensor_max; i++) {
        const tensor *t = &registry->tensors[i];
        const pllm_store_record *record = &t->record;
        if (record->state != PLLM_STORE_STATE_READY || record->device != device ||
            record->kind != PLLM_STORE_KIND_VMM || record->moving || record->importer_count ||
            record->socket_count || record->writer_count ||
            !(record->flags & PLLM_STORE_FLAG_SEALED) || record->flags & PLLM_STORE_FLAG_PINNED)
            continue;
        if (!oldest || record->used_ns < oldest->record.used_ns) oldest = t;
    }
    return oldest ? oldest->record.slot : PLLM_STORE_SLOT_NONE;
}

void pllm_registry_move_begin(pllm_registry *registry, uint32_t slot)
{
    registry->tensors[slot].record.moving = 1;
}

void pllm_registry_move_end(pllm_registry *registry, uint32_t slot, uint32_t moved, uint64_t now_ns)
{
    tensor *t = &registry->tensors[slot];
    t->record.moving = 0;
    if (moved && t->record.state == PLLM_STORE_STATE_READY) {
        t->record.state = PLLM_STORE_STATE_SPILLED;
        pllm_registry_effect_add(registry, t, PLLM_EFFECT_MIRROR | PLLM_EFFECT_SPILLED);
    } else if (moved && t->record.state == PLLM_STORE_STATE_SPILLED) {
        t->record.state = PLLM_STORE_STATE_READY;
        t->record.used_ns = now_ns;
        pllm_registry_effect_add(registry, t, PLLM_EFFECT_MIRROR | PLLM_EFFECT_RESTORED);
    }
    pllm_registry_settle(registry, t);
}
