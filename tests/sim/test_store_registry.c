/* The registry, driven at random against a naive model that keeps flat lists and counts anew.
 *
 * Tables are tiny, so that every limit is met: 6 tensors, 7 leases, 12 references, 3 users with
 * quotas, 5 names. After each step the registry's own check runs, and every record is compared. The
 * world that effects describe is kept too: the board's words (from BOARD), the mirror (from
 * MIRROR), events by tensor, memory (from FREE, which must come once, and only when nobody has the
 * tensor). Effects are taken after most steps, not all: they may gather. The seed of a failing run
 * is printed; PLLM_SIM_SEED=n runs that one alone, PLLM_SIM_SEEDS=n seeds 1 to n (6,000). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "failing_context.h"
#include "store/registry.h"

enum {
    SEEDS = 6000,
    STEPS = 200,
    TENSORS = 6,
    LEASES = 7,
    REFERENCES = 12,
    USERS = 3,
    NAMES = 5,
    QUOTA_COUNT = 4,
    EPOCH = 7,
};
static const uint64_t quota_bytes = 1000;
static uint64_t current_seed;

typedef struct model_lease {
    int kind; /* 0: free */
    pllm_store_lease number;
    pllm_store_peer peer;
    uint64_t expires;
} model_lease;

typedef struct model_tensor {
    int state; /* pllm_store_state; ENDED until FREE was carried out */
    char name[8];
    uint64_t generation, charge, fence, used, old_generation;
    uint32_t uid, gid, mode, flags, kind, epoch, poisoned, abandoned, owner_pid;
    uint32_t events; /* since effects were last taken */
    int doomed, adopt_open, moving;
} model_tensor;

typedef struct model_hold {
    int lease, slot; /* lease -1: none */
    uint32_t readers, writers, importing, epoch;
} model_hold;

typedef struct world {
    failing_context memory;
    pllm_registry *registry;
    uint64_t random, now, last_generation;
    model_lease leases[LEASES];
    model_tensor tensors[TENSORS];
    model_hold holds[REFERENCES];
    int deleted_old[8][8]; /* by the lower half of the generation, and uid: draws are few */
    pllm_store_record board[TENSORS], mirror[TENSORS];
    int met[32];
} world;

static uint64_t draw(world *w, uint64_t below)
{
    uint64_t x = w->random += 0x9e3779b97f4a7c15u; /* SplitMix64 */
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return (x ^ (x >> 31)) % below;
}

/* ---- the model ---- */

static int named(const model_tensor *t)
{
    return t->state == PLLM_STORE_STATE_READY || t->state == PLLM_STORE_STATE_SPILLED;
}

static int away(const model_tensor *t)
{
    return t->state == PLLM_STORE_STATE_SPILLED || t->moving;
}

static int kept(const model_tensor *t)
{
    return (t->flags & (PLLM_STORE_FLAG_KEPT | PLLM_STORE_FLAG_PINNED)) != 0;
}

static uint32_t opens(const world *w, int slot)
{
    uint32_t sum = 0;
    for (int i = 0; i < REFERENCES; i++)
        if (w->holds[i].lease >= 0 && w->holds[i].slot == slot)
            sum += w->holds[i].readers + w->holds[i].writers;
    return sum;
}

static uint32_t sum_of(const world *w, int slot, int what)
{
    uint32_t sum = 0;
    for (int i = 0; i < REFERENCES; i++) {
        const model_hold *h = &w->holds[i];
        if (h->lease < 0 || h->slot != slot) continue;
        sum += what == 0   ? h->writers
               : what == 1 ? h->importing
               : what == 2 ? w->leases[h->lease].kind == PLLM_STORE_LEASE_SOCKET
                           : 1;
    }
    return sum;
}

static model_hold *hold_of(world *w, int lease, int slot)
{
    for (int i = 0; i < REFERENCES; i++)
        if (w->holds[i].lease == lease && w->holds[i].slot == slot) return &w->holds[i];
    return NULL;
}

static model_hold *hold_new(world *w, int lease, int slot)
{
    model_hold *h = hold_of(w, lease, slot);
    for (int i = 0; !h && i < REFERENCES; i++)
        if (w->holds[i].lease < 0) {
            h = &w->holds[i];
            *h = (model_hold){.lease = lease, .slot = slot};
        }
    return h;
}

static void model_settle(world *w, int slot)
{
    model_tensor *t = &w->tensors[slot];
    if (named(t) && opens(w, slot) == 0 && !kept(t)) {
        t->state = PLLM_STORE_STATE_ENDED;
        t->events |= PLLM_EFFECT_DELETED;
    }
    if (t->state == PLLM_STORE_STATE_CREATING && opens(w, slot) == 0 && !kept(t)) t->doomed = 1;
}

static void model_hold_clean(model_hold *h)
{
    if (h->readers + h->writers + h->importing == 0) h->lease = -1;
}

static void model_poison(model_tensor *t)
{
    if (t->flags & PLLM_STORE_FLAG_SEALED || t->state == PLLM_STORE_STATE_ENDED) return;
    t->poisoned = 1;
    t->epoch++;
    if (named(t)) t->events |= PLLM_EFFECT_POISONED;
}

static void model_lease_end(world *w, int lease, int died, int lost, int orphan)
{
    int touched[TENSORS] = {0}, left = 0;
    for (int i = 0; i < REFERENCES; i++) {
        model_hold *h = &w->holds[i];
        if (h->lease != lease) continue;
        model_tensor *t = &w->tensors[h->slot];
        if (died && h->writers) model_poison(t);
        if (lost && h->importing) t->abandoned = 1;
        if (h->readers + h->writers) t->used = w->now;
        touched[h->slot] = 1;
        h->readers = h->writers = 0;
        if (!orphan) h->importing = 0;
        model_hold_clean(h);
        left += h->lease >= 0;
    }
    for (int own = 0; left && own < LEASES; own++) { /* the process has a lease of its own */
        const model_lease *l = &w->leases[own];
        if (own == lease || l->kind != PLLM_STORE_LEASE_PID ||
            l->peer.pid != w->leases[lease].peer.pid ||
            l->peer.pid_start != w->leases[lease].peer.pid_start)
            continue;
        for (int slot = 0; slot < TENSORS; slot++) {
            model_hold *h = hold_of(w, lease, slot);
            if (!h) continue;
            h->lease = -1;
            hold_new(w, own, slot)->importing = 1;
        }
        left = 0;
        w->met[13]++;
    }
    w->leases[lease].kind = left ? PLLM_STORE_LEASE_PID : 0;
    for (int slot = 0; slot < TENSORS; slot++)
        if (touched[slot]) model_settle(w, slot);
}

static void usage(const world *w, uint32_t uid, uint64_t *bytes, uint32_t *count)
{
    *bytes = 0;
    *count = 0;
    for (int i = 0; i < TENSORS; i++)
        if (w->tensors[i].state != PLLM_STORE_STATE_FREE && w->tensors[i].uid == uid) {
            *bytes += w->tensors[i].charge;
            ++*count;
        }
}

static int by_name(const world *w, const char *name)
{
    for (int i = 0; i < TENSORS; i++)
        if ((named(&w->tensors[i]) || w->tensors[i].state == PLLM_STORE_STATE_CREATING) &&
            strcmp(w->tensors[i].name, name) == 0)
            return i;
    return -1;
}

/* What was offered as that generation, under whatever name it has now; or who has the name. */
static int by_offer(world *w, const char *name, uint64_t old_generation, uint32_t uid)
{
    int there = by_name(w, name);
    if (there >= 0 && w->tensors[there].old_generation == old_generation &&
        w->tensors[there].uid == uid)
        return there;
    for (int i = 0; i < TENSORS; i++)
        if (w->tensors[i].old_generation == old_generation && w->tensors[i].uid == uid &&
            named(&w->tensors[i]))
            return i;
    return there;
}

static int free_slots(const world *w)
{
    int count = 0;
    for (int i = 0; i < TENSORS; i++) count += w->tensors[i].state == PLLM_STORE_STATE_FREE;
    return count;
}

static int free_holds(const world *w)
{
    int count = 0;
    for (int i = 0; i < REFERENCES; i++) count += w->holds[i].lease < 0;
    return count;
}

static int owner(const pllm_store_peer *peer, const model_tensor *t)
{
    return peer->uid == t->uid || peer->uid == 0;
}

static int allowed(const pllm_store_peer *peer, const model_tensor *t, uint32_t bits)
{
    uint32_t mine = owner(peer, t) ? t->mode >> 6
                    : peer->gid == t->gid || (peer->group_count && peer->groups[0] == t->gid)
                        ? t->mode >> 3
                        : t->mode;
    return (mine & 7 & bits) == bits;
}

/* ---- steps ---- */

static const char *a_name(world *w)
{
    static const char *const names[NAMES] = {"a", "b", "c/d", "e:f", "g"};
    return names[draw(w, NAMES)];
}

static pllm_store_peer a_peer(world *w)
{
    /* uid 0 is the admin; 11 and 12 share group 5, one of them as its second group. */
    static const uint32_t uids[USERS] = {0, 11, 12};
    uint32_t which = (uint32_t)draw(w, USERS);
    pllm_store_peer peer = {.uid = uids[which], .gid = which == 2 ? 6 : 5, .pid = 100 + which};
    peer.pid_start = 1 + draw(w, 2);
    if (which == 2) {
        peer.group_count = 1;
        peer.groups[0] = 5;
    }
    return peer;
}

static int a_lease(world *w)
{
    return (int)draw(w, LEASES);
}

static pllm_store_lease number_of(const world *w, int lease)
{
    return w->leases[lease].kind ? w->leases[lease].number : 0xffffffff00000001u;
}

static void step_lease_open(world *w)
{
    pllm_store_peer peer = a_peer(w);
    int kind = 1 + (int)draw(w, 3), place = 0;
    uint64_t expires = w->now + 1 + draw(w, 40);
    pllm_store_lease number;
    int others = 0;
    if (kind == PLLM_STORE_LEASE_PID &&
        pllm_registry_lease_of_pid(w->registry, peer.pid, peer.pid_start, &number) == PLLM_OK)
        return; /* a process has one */
    for (int i = 0; i < LEASES; i++) others += w->leases[i].kind > PLLM_STORE_LEASE_SOCKET;
    while (place < LEASES && w->leases[place].kind) place++;
    if (kind != PLLM_STORE_LEASE_SOCKET && others >= LEASES - LEASES / 4) place = LEASES;
    int status =
        pllm_registry_lease_open(w->registry, (pllm_store_lease_kind)kind, &peer, expires, &number);
    assert_int_equal(status, place < LEASES ? PLLM_OK : PLLM_ELIMIT);
    if (status < 0) return;
    for (int i = 0; i < LEASES; i++)
        assert_true(!w->leases[i].kind || w->leases[i].number != number);
    assert_true(number != 0);
    w->leases[place] = (model_lease){kind, number, peer, expires};
}

static void step_lease_end(world *w)
{
    int lease = a_lease(w), end = (int)draw(w, 3), orphan = draw(w, 3) == 0;
    model_lease *l = &w->leases[lease];
    if (!l->kind) return;
    pllm_store_lease number = l->number;
    if (orphan && l->kind == PLLM_STORE_LEASE_SOCKET) {
        pllm_registry_lease_orphan(w->registry, number, (pllm_store_end)end, w->now);
        model_lease_end(w, lease, end != 0, 0, 1);
    } else {
        pllm_registry_lease_close(w->registry, number, (pllm_store_end)end, w->now);
        model_lease_end(w, lease, end != 0, end == PLLM_STORE_END_LOST, 0);
        pllm_registry_lease_close(w->registry, number, PLLM_STORE_END_DIED, w->now); /* nothing */
    }
}

static void step_time(world *w)
{
    w->now += draw(w, 20);
    int lease = a_lease(w);
    if (draw(w, 3) == 0) {
        uint64_t expires = w->now + 1 + draw(w, 60);
        int status = pllm_registry_lease_renew(w->registry, number_of(w, lease), expires);
        int timed = w->leases[lease].kind == PLLM_STORE_LEASE_TIMED;
        assert_int_equal(status, timed ? PLLM_OK : PLLM_ESTALE);
        if (timed) w->leases[lease].expires = expires;
    }
    uint64_t next = pllm_registry_sweep(w->registry, w->now), earliest = UINT64_MAX;
    for (int i = 0; i < LEASES; i++) {
        if (w->leases[i].kind != PLLM_STORE_LEASE_TIMED) continue;
        if (w->leases[i].expires <= w->now)
            model_lease_end(w, i, 1, 0, 0), w->met[0]++;
        else if (w->leases[i].expires < earliest)
            earliest = w->leases[i].expires;
    }
    assert_true(next <= earliest && (next > w->now || earliest <= w->now)); /* early is allowed */
}

/* What create and a first offer have in common: the status, and on OK the model's new tensor. */
static int model_make(world *w, const pllm_store_peer *peer, uint32_t uid, const char *name,
                      const pllm_registry_spec *spec, int lease)
{
    uint64_t bytes;
    uint32_t count;
    usage(w, uid, &bytes, &count);
    if (by_name(w, name) >= 0) return PLLM_EEXIST;
    if (!free_slots(w)) return PLLM_ELIMIT;
    if (count >= QUOTA_COUNT || bytes + spec->charge_bytes > quota_bytes) return PLLM_ELIMIT;
    if (lease >= 0 && !free_holds(w)) return PLLM_ELIMIT;
    (void)peer;
    return PLLM_OK;
}

static void step_create(world *w)
{
    int lease = draw(w, 5) ? a_lease(w) : -1;
    pllm_store_peer peer = a_peer(w);
    const char *name = a_name(w);
    uint32_t slot;
    static const uint32_t modes[] = {0600, 0400, 0640, 0660, 0644, 0666, 0604};
    pllm_registry_spec spec = {.dtype = PLLM_STORE_U8, .rank = 1, .mode = modes[draw(w, 7)]};
    spec.shape[0] = 1 + draw(w, 300);
    spec.charge_bytes = spec.shape[0] + draw(w, 300);
    spec.kind = draw(w, 6) == 0;
    spec.flags = draw(w, 2) == 0   ? PLLM_STORE_FLAG_KEPT
                 : draw(w, 4) == 0 ? PLLM_STORE_FLAG_PINNED
                                   : 0;
    pllm_store_lease number = lease >= 0 ? number_of(w, lease) : 0;
    int status =
        pllm_registry_create(w->registry, number, &peer, name, strlen(name), &spec, w->now, &slot);
    if (lease >= 0 && !w->leases[lease].kind) {
        assert_int_equal(status, PLLM_ESTALE);
        return;
    }
    if (lease >= 0) peer = w->leases[lease].peer;
    if (lease < 0 && !spec.flags) {
        assert_int_equal(status, PLLM_EINVAL);
        return;
    }
    assert_int_equal(status, model_make(w, &peer, peer.uid, name, &spec, lease));
    w->met[1] += status == PLLM_ELIMIT;
    if (status < 0) return;
    model_tensor *t = &w->tensors[slot];
    assert_int_equal(t->state, PLLM_STORE_STATE_FREE);
    const pllm_store_record *record = pllm_registry_record(w->registry, slot);
    assert_true(record->generation > w->last_generation); /* never again one that was */
    w->last_generation = record->generation;
    *t = (model_tensor){.state = PLLM_STORE_STATE_CREATING,
                        .generation = record->generation,
                        .charge = spec.charge_bytes,
                        .used = w->now,
                        .uid = peer.uid,
                        .gid = peer.gid,
                        .mode = spec.mode,
                        .flags = spec.flags,
                        .kind = spec.kind,
                        .owner_pid = peer.pid};
    strcpy(t->name, name);
    if (lease >= 0) {
        model_hold *h = hold_new(w, lease, (int)slot);
        h->writers = 1;
        h->importing = w->leases[lease].kind == PLLM_STORE_LEASE_SOCKET;
    }
}

static void step_adopt(world *w)
{
    int lease = a_lease(w);
    const char *name = a_name(w);
    uint32_t slot, fresh;
    pllm_registry_offer offer = {.spec = {.dtype = PLLM_STORE_U8, .rank = 1, .mode = 0660}};
    offer.spec.shape[0] = 1 + draw(w, 100);
    offer.spec.charge_bytes = offer.spec.shape[0];
    offer.uid = a_peer(w).uid;
    offer.gid = 5;
    offer.writable = (uint32_t)draw(w, 2);
    offer.fence_epoch = (uint32_t)draw(w, 3);
    offer.fence_value = draw(w, 50);
    offer.old_generation = (uint64_t)(EPOCH - 1) << 32 | (1 + draw(w, 4));
    if (draw(w, 20) == 0) offer.old_generation = (uint64_t)EPOCH << 32 | 1;
    int status = pllm_registry_adopt(w->registry, number_of(w, lease), name, strlen(name), &offer,
                                     w->now, &slot, &fresh);
    model_lease *l = &w->leases[lease];
    if (!l->kind) {
        assert_int_equal(status, PLLM_ESTALE);
        return;
    }
    if (offer.old_generation >> 32 >= EPOCH) {
        assert_int_equal(status, PLLM_EINVAL);
        return;
    }
    int there = by_offer(w, name, offer.old_generation, offer.uid);
    int socket = l->kind == PLLM_STORE_LEASE_SOCKET;
    model_tensor *t = there >= 0 ? &w->tensors[there] : NULL;
    if (t && t->old_generation == offer.old_generation && t->uid == offer.uid) {
        int expected = !named(t)                                             ? PLLM_EBUSY
                       : !allowed(&l->peer, t, offer.writable ? 6 : 4)       ? PLLM_EPERM
                       : offer.writable && t->flags & PLLM_STORE_FLAG_SEALED ? PLLM_EPERM
                       : socket && away(t)                                   ? PLLM_EBUSY
                       : !hold_of(w, lease, there) && !free_holds(w)         ? PLLM_ELIMIT
                                                                             : PLLM_OK;
        assert_int_equal(status, expected);
        if (status < 0) return;
        assert_int_equal(slot, there);
        assert_int_equal(fresh, 0);
        w->met[2]++;
        model_hold *h = hold_new(w, lease, there);
        if (offer.writable)
            h->writers++, h->epoch = t->epoch;
        else
            h->readers++;
        h->importing |= (uint32_t)socket;
        t->used = w->now;
        if (offer.fence_value > t->fence) t->fence = offer.fence_value;
        return;
    }
    int expected = l->peer.uid != offer.uid && l->peer.uid != 0 ? PLLM_EPERM
                   : w->deleted_old[(uint32_t)offer.old_generation][offer.uid & 7]
                       ? PLLM_ESTALE
                       : model_make(w, &l->peer, offer.uid, name, &offer.spec, lease);
    assert_int_equal(status, expected);
    if (status < 0) return;
    assert_int_equal(fresh, 1);
    const pllm_store_record *record = pllm_registry_record(w->registry, slot);
    t = &w->tensors[slot];
    assert_int_equal(t->state, PLLM_STORE_STATE_FREE);
    assert_true(record->generation > w->last_generation);
    w->last_generation = record->generation;
    *t = (model_tensor){.state = PLLM_STORE_STATE_CREATING,
                        .generation = record->generation,
                        .charge = offer.spec.charge_bytes,
                        .fence = offer.fence_value,
                        .epoch = offer.fence_epoch,
                        .used = w->now,
                        .old_generation = offer.old_generation,
                        .adopt_open = 1,
                        .uid = offer.uid,
                        .gid = 5,
                        .mode = 0660,
                        .owner_pid = l->peer.pid};
    strcpy(t->name, name);
    model_hold *h = hold_new(w, lease, (int)slot);
    h->writers = offer.writable;
    h->readers = !offer.writable;
    h->importing = (uint32_t)socket;
    h->epoch = t->epoch;
}

static void step_adopt_end(world *w)
{
    pllm_registry_adopt_end(w->registry);
    for (int i = 0; i < TENSORS; i++) {
        model_tensor *t = &w->tensors[i];
        if (!t->adopt_open || !named(t)) continue;
        t->adopt_open = 0;
        if (sum_of(w, i, 0) || t->poisoned || t->flags & PLLM_STORE_FLAG_SEALED) continue;
        t->poisoned = 1;
        t->epoch++;
        t->events |= PLLM_EFFECT_POISONED;
    }
}

/* Those being created are committed or not. */
static void step_commit(world *w)
{
    for (int i = 0; i < TENSORS; i++) {
        model_tensor *t = &w->tensors[i];
        if (t->state != PLLM_STORE_STATE_CREATING || draw(w, 3) == 0) continue;
        if (draw(w, 5) == 0) {
            pllm_registry_abort(w->registry, (uint32_t)i);
            for (int k = 0; k < REFERENCES; k++)
                if (w->holds[k].lease >= 0 && w->holds[k].slot == i) w->holds[k].lease = -1;
            t->state = PLLM_STORE_STATE_FREE;
            w->met[3]++;
            continue;
        }
        int status = pllm_registry_commit(w->registry, (uint32_t)i, w->now);
        assert_int_equal(status, t->doomed ? PLLM_ECANCELED : PLLM_OK);
        w->met[4] += t->doomed;
        t->state = t->doomed ? PLLM_STORE_STATE_ENDED : PLLM_STORE_STATE_READY;
        if (!t->doomed) t->events |= PLLM_EFFECT_CREATED;
    }
}

static void step_hold(world *w)
{
    int lease = a_lease(w), slot = (int)draw(w, TENSORS);
    uint32_t writable = (uint32_t)draw(w, 2), import = draw(w, 4) > 0;
    model_lease *l = &w->leases[lease];
    model_tensor *t = &w->tensors[slot];
    int socket = l->kind == PLLM_STORE_LEASE_SOCKET;
    int status = pllm_registry_hold(w->registry, number_of(w, lease), (uint32_t)slot, writable,
                                    import, w->now);
    int expected = !l->kind || !named(t)                           ? PLLM_ESTALE
                   : !allowed(&l->peer, t, writable ? 6 : 4)       ? PLLM_EPERM
                   : writable && t->flags & PLLM_STORE_FLAG_SEALED ? PLLM_EPERM
                   : socket && away(t)                             ? PLLM_EBUSY
                   : !hold_of(w, lease, slot) && !free_holds(w)    ? PLLM_ELIMIT
                                                                   : PLLM_OK;
    assert_int_equal(status, expected);
    w->met[5] += status == PLLM_EPERM;
    w->met[6] += status == PLLM_EBUSY;
    if (status < 0) return;
    model_hold *h = hold_new(w, lease, slot);
    if (writable)
        h->writers++, h->epoch = t->epoch;
    else
        h->readers++;
    if (import && socket) h->importing = 1;
    t->used = w->now;
    assert_int_equal(pllm_registry_imports(w->registry, l->number, (uint32_t)slot), h->importing);
}

/* The generation that is there, or (one in eight) another one. */
static uint64_t a_generation(world *w, int slot)
{
    return w->tensors[slot].generation + (draw(w, 8) == 0);
}

static void step_drop(world *w)
{
    int lease = a_lease(w), slot = (int)draw(w, TENSORS), unmap = draw(w, 3) == 0;
    uint32_t writable = (uint32_t)draw(w, 2);
    uint64_t generation = a_generation(w, slot);
    model_tensor *t = &w->tensors[slot];
    model_hold *h =
        w->leases[lease].kind && t->state != PLLM_STORE_STATE_FREE && generation == t->generation
            ? hold_of(w, lease, slot)
            : NULL;
    if (unmap) {
        int status = pllm_registry_unmapped(w->registry, number_of(w, lease), (uint32_t)slot,
                                            generation, w->now);
        int expected = !h || !h->importing ? PLLM_ESTALE : h->readers + h->writers ? PLLM_EBUSY : 0;
        assert_int_equal(status, expected);
        if (status < 0) return;
        w->met[7]++;
        h->importing = 0;
    } else {
        int status = pllm_registry_drop(w->registry, number_of(w, lease), (uint32_t)slot,
                                        generation, writable, w->now);
        uint32_t *count = !h ? NULL : writable ? &h->writers : &h->readers;
        assert_int_equal(status, count && *count ? PLLM_OK : PLLM_ESTALE);
        if (status < 0) return;
        w->met[8]++;
        --*count;
        t->used = w->now;
    }
    model_hold_clean(h);
    model_settle(w, slot);
}

static void step_change(world *w)
{
    pllm_store_peer peer = a_peer(w);
    uint32_t slot = (uint32_t)draw(w, TENSORS);
    model_tensor *t = &w->tensors[slot];
    int status, expected;
    const char *name = a_name(w);
    int lease = a_lease(w), other, on;
    model_hold *h = w->leases[lease].kind ? hold_of(w, lease, (int)slot) : NULL;
    uint32_t own = h ? h->writers : 0;
    switch (draw(w, 6)) {
    case 0:
        status = pllm_registry_delete(w->registry, &peer, slot, w->now);
        assert_int_equal(status, !named(t) ? PLLM_ESTALE : !owner(&peer, t) ? PLLM_EPERM : PLLM_OK);
        if (status < 0) return;
        if (t->old_generation)
            w->deleted_old[(uint32_t)t->old_generation][t->uid & 7] = 1, w->met[14]++;
        t->state = PLLM_STORE_STATE_ENDED;
        t->events |= PLLM_EFFECT_DELETED;
        return;
    case 1:
        status = pllm_registry_rename(w->registry, &peer, slot, name, strlen(name), w->now);
        other = by_name(w, name);
        expected = !named(t)                          ? PLLM_ESTALE
                   : !owner(&peer, t)                 ? PLLM_EPERM
                   : other >= 0 && other != (int)slot ? PLLM_EEXIST
                                                      : PLLM_OK;
        assert_int_equal(status, expected);
        if (status < 0 || other == (int)slot) return;
        strcpy(t->name, name);
        t->events |= PLLM_EFFECT_RENAMED;
        return;
    case 2:
    case 3:
    case 4:
        status = pllm_registry_seal(w->registry, number_of(w, lease), &peer, slot, w->now);
        expected = !named(t)                           ? PLLM_ESTALE
                   : !own && !owner(&peer, t)          ? PLLM_EPERM
                   : t->flags & PLLM_STORE_FLAG_SEALED ? PLLM_OK
                   : sum_of(w, (int)slot, 0) > own     ? PLLM_EBUSY
                                                       : PLLM_OK;
        assert_int_equal(status, expected);
        if (status < 0 || t->flags & PLLM_STORE_FLAG_SEALED) return;
        t->flags |= PLLM_STORE_FLAG_SEALED;
        t->events |= PLLM_EFFECT_SEALED;
        return;
    default:
        on = (int)draw(w, 2);
        status = pllm_registry_pin(w->registry, &peer, slot, (uint32_t)on, w->now);
        expected = !named(t)          ? PLLM_ESTALE
                   : !owner(&peer, t) ? PLLM_EPERM
                   : on && away(t)    ? PLLM_EBUSY
                                      : PLLM_OK;
        assert_int_equal(status, expected);
        if (status < 0 || ((t->flags & PLLM_STORE_FLAG_PINNED) != 0) == on) return;
        t->flags ^= PLLM_STORE_FLAG_PINNED;
        t->events |= PLLM_EFFECT_PINNED;
        model_settle(w, (int)slot);
    }
}

static void step_signal(world *w)
{
    int lease = a_lease(w), slot = (int)draw(w, TENSORS);
    uint64_t value = draw(w, 12) ? draw(w, 60) : UINT64_MAX, generation = a_generation(w, slot);
    model_tensor *t = &w->tensors[slot];
    model_hold *h = w->leases[lease].kind && named(t) && generation == t->generation
                        ? hold_of(w, lease, slot)
                        : NULL;
    int status = pllm_registry_signal(w->registry, number_of(w, lease), (uint32_t)slot, generation,
                                      value, w->now);
    int expected = !h                                    ? PLLM_ESTALE
                   : !h->writers                         ? PLLM_EPERM
                   : value == UINT64_MAX                 ? PLLM_EINVAL
                   : t->poisoned && h->epoch != t->epoch ? PLLM_ECANCELED
                                                         : PLLM_OK;
    assert_int_equal(status, expected);
    w->met[9] += status == PLLM_ECANCELED;
    if (status < 0) return;
    w->met[10] += t->poisoned;
    t->poisoned = 0;
    if (value > t->fence) t->fence = value;
}

static void step_spill(world *w)
{
    uint32_t slot = pllm_registry_spill_candidate(w->registry, 0);
    uint64_t oldest = UINT64_MAX;
    for (int i = 0; i < TENSORS; i++) {
        const model_tensor *t = &w->tensors[i];
        if (t->state != PLLM_STORE_STATE_READY || t->kind || t->moving || sum_of(w, i, 0) ||
            sum_of(w, i, 1) || sum_of(w, i, 2) || !(t->flags & PLLM_STORE_FLAG_SEALED) ||
            t->flags & PLLM_STORE_FLAG_PINNED)
            continue;
        if (t->used < oldest) oldest = t->used;
    }
    if (oldest == UINT64_MAX) {
        assert_int_equal(slot, PLLM_STORE_SLOT_NONE);
    } else {
        assert_true(slot < TENSORS);
        assert_int_equal(w->tensors[slot].used, oldest);
        assert_int_equal(pllm_registry_spill_candidate(w->registry, 1), PLLM_STORE_SLOT_NONE);
        pllm_registry_move_begin(w->registry, slot);
        w->tensors[slot].moving = 1;
        w->met[11]++;
    }
}

static void step_restore(world *w)
{
    for (uint32_t i = 0; i < TENSORS; i++) {
        model_tensor *t = &w->tensors[i];
        if (t->state != PLLM_STORE_STATE_SPILLED || t->moving || draw(w, 2)) continue;
        pllm_registry_move_begin(w->registry, i);
        t->moving = 1;
    }
}

/* Of those on their way some arrive, some are back where they were, whatever became of the tensor.
 */
static void step_moved(world *w)
{
    for (uint32_t i = 0; i < TENSORS; i++) {
        model_tensor *t = &w->tensors[i];
        if (!t->moving || draw(w, 2)) continue;
        uint32_t moved = draw(w, 4) > 0;
        pllm_registry_move_end(w->registry, i, moved, w->now);
        t->moving = 0;
        w->met[15] += t->state == PLLM_STORE_STATE_ENDED;
        w->met[16] += !moved;
        if (moved && t->state == PLLM_STORE_STATE_READY) {
            t->state = PLLM_STORE_STATE_SPILLED;
            t->events |= PLLM_EFFECT_SPILLED;
            w->met[17]++;
        } else if (moved && t->state == PLLM_STORE_STATE_SPILLED) {
            t->state = PLLM_STORE_STATE_READY;
            t->used = w->now;
            t->events |= PLLM_EFFECT_RESTORED;
            w->met[18]++;
        }
    }
}

/* ---- consequences and comparison ---- */

static void take_effects(world *w)
{
    pllm_registry_effect effect;
    while (pllm_registry_effect_next(w->registry, &effect)) {
        model_tensor *t = &w->tensors[effect.slot];
        assert_int_equal(effect.kinds & PLLM_EFFECT_EVENTS, t->events);
        t->events = 0;
        if (effect.kinds & PLLM_EFFECT_BOARD) w->board[effect.slot] = *effect.record;
        if (effect.kinds & PLLM_EFFECT_MIRROR) w->mirror[effect.slot] = *effect.record;
        assert_int_equal((effect.kinds & PLLM_EFFECT_RENAMED) != 0, effect.name_before != NULL);
        if (effect.kinds & PLLM_EFFECT_FREE) {
            assert_int_equal(t->state, PLLM_STORE_STATE_ENDED);
            assert_int_equal(t->moving, 0);
            assert_int_equal(sum_of(w, (int)effect.slot, 3), 0); /* nobody has it */
            assert_int_equal(effect.record->abandoned, t->abandoned);
            pllm_registry_freed(w->registry, effect.slot);
            t->state = PLLM_STORE_STATE_FREE;
            w->met[12]++;
        }
    }
    for (int i = 0; i < TENSORS; i++) {
        const model_tensor *t = &w->tensors[i];
        assert_int_equal(t->events, 0); /* all were told */
        /* Nothing that could be free is not. */
        assert_false(t->state == PLLM_STORE_STATE_ENDED && !t->moving && sum_of(w, i, 3) == 0);
        if (t->state == PLLM_STORE_STATE_FREE || t->state == PLLM_STORE_STATE_CREATING) continue;
        const pllm_store_record *board = &w->board[i], *mirror = &w->mirror[i];
        if (t->doomed) continue;
        assert_int_equal(board->state == PLLM_STORE_STATE_ENDED, !named(t));
        assert_int_equal(board->generation, t->generation);
        if (!named(t)) continue;
        assert_int_equal(board->fence_value, t->fence);
        assert_int_equal(board->fence_epoch, t->epoch);
        assert_int_equal(board->fence_poisoned, t->poisoned);
        assert_int_equal(board->flags, t->flags);
        assert_string_equal(mirror->name, t->name);
        assert_int_equal(mirror->generation, t->generation);
        assert_int_equal(mirror->reference_count, opens(w, i));
        assert_int_equal(mirror->state, t->state);
        assert_int_equal(mirror->flags, t->flags);
        assert_int_equal(mirror->fence_poisoned, t->poisoned);
    }
}

static void compare(world *w)
{
    pllm_registry_check(w->registry);
    uint32_t tensors = 0, leases = 0, slot;
    uint64_t charged = 0;
    for (int i = 0; i < LEASES; i++) {
        uint32_t holds = 0;
        if (!w->leases[i].kind) continue;
        leases++;
        for (int k = 0; k < REFERENCES; k++) holds += w->holds[k].lease == i;
        assert_int_equal(pllm_registry_lease_references(w->registry, w->leases[i].number), holds);
        assert_int_equal(pllm_registry_lease_kind(w->registry, w->leases[i].number),
                         w->leases[i].kind);
    }
    for (int i = 0; i < TENSORS; i++) {
        const model_tensor *t = &w->tensors[i];
        const pllm_store_record *record = pllm_registry_record(w->registry, (uint32_t)i);
        assert_int_equal(record != NULL, t->state != PLLM_STORE_STATE_FREE);
        if (!record) continue;
        tensors++;
        charged += t->charge;
        assert_int_equal(record->state, t->state);
        assert_string_equal(record->name, t->name);
        assert_int_equal(record->generation, t->generation);
        assert_int_equal(record->uid, t->uid);
        assert_int_equal(record->gid, t->gid);
        assert_int_equal(record->mode, t->mode);
        assert_int_equal(record->flags, t->flags);
        assert_int_equal(record->owner_pid, t->owner_pid);
        assert_int_equal(record->charge_bytes, t->charge);
        assert_int_equal(record->reference_count, opens(w, i));
        assert_int_equal(record->writer_count, sum_of(w, i, 0));
        assert_int_equal(record->importer_count, sum_of(w, i, 1));
        assert_int_equal(record->socket_count, sum_of(w, i, 2));
        assert_int_equal(record->fence_value, t->fence);
        assert_int_equal(record->fence_epoch, t->epoch);
        assert_int_equal(record->fence_poisoned, t->poisoned);
        assert_int_equal(record->abandoned, t->abandoned);
        assert_int_equal(record->used_ns, t->used);
        int found = pllm_registry_find(w->registry, t->name, strlen(t->name), &slot);
        if (named(t)) assert_true(found == PLLM_OK && slot == (uint32_t)i);
        assert_int_equal(pllm_registry_find_generation(w->registry, (uint32_t)i, t->generation),
                         named(t) ? PLLM_OK : PLLM_ESTALE);
    }
    static const uint32_t uids[USERS] = {0, 11, 12};
    for (int i = 0; i < USERS; i++) {
        uint64_t bytes, model_bytes;
        uint32_t count, model_count;
        pllm_registry_usage_get(w->registry, uids[i], &bytes, &count);
        usage(w, uids[i], &model_bytes, &model_count);
        assert_int_equal(bytes, model_bytes);
        assert_int_equal(count, model_count);
    }
    pllm_registry_stats stats;
    pllm_registry_stats_get(w->registry, &stats);
    assert_int_equal(stats.tensor_count, tensors);
    assert_int_equal(stats.lease_count, leases);
    assert_int_equal(stats.charged_bytes, charged);
    assert_int_equal(stats.reference_count, REFERENCES - free_holds(w));
}

static void run_seed(uint64_t seed, int *met)
{
    world w = {0};
    current_seed = w.random = seed;
    w.now = 1000;
    for (int i = 0; i < REFERENCES; i++) w.holds[i].lease = -1;
    failing_context_init(&w.memory, FAILING_NEVER);
    pllm_registry_options options = {.struct_bytes = sizeof options,
                                     .epoch = EPOCH,
                                     .tensor_max = TENSORS,
                                     .lease_max = LEASES,
                                     .reference_max = REFERENCES,
                                     .user_max = USERS,
                                     .count_per_user_max = QUOTA_COUNT,
                                     .bytes_per_user_max = quota_bytes};
    assert_int_equal(pllm_registry_open(&w.memory.context, &options, &w.registry), PLLM_OK);
    uint64_t calls = atomic_load(&w.memory.call_count);
    for (int i = 0; i < STEPS; i++) {
        switch (draw(&w, 24)) {
        case 0:
        case 1:
            step_lease_open(&w);
            break;
        case 2:
            step_lease_end(&w);
            break;
        case 3:
            step_time(&w);
            break;
        case 4:
        case 5:
        case 6:
            step_create(&w);
            break;
        case 7:
        case 8:
        case 9:
            step_commit(&w);
            break;
        case 10:
        case 11:
        case 12:
            step_hold(&w);
            break;
        case 13:
        case 14:
        case 15:
            step_drop(&w);
            break;
        case 16:
        case 17:
            step_change(&w);
            break;
        case 18:
        case 19:
            step_signal(&w);
            break;
        case 20:
            step_spill(&w);
            if (draw(&w, 2)) step_moved(&w);
            break;
        case 21:
            step_moved(&w);
            step_restore(&w);
            break;
        case 22:
            step_adopt(&w);
            break;
        default:
            if (draw(&w, 4) == 0) step_adopt_end(&w);
            break;
        }
        if (draw(&w, 4)) take_effects(&w);
        compare(&w);
    }
    assert_int_equal(atomic_load(&w.memory.call_count), calls); /* nothing was allocated */
    pllm_registry_close(w.registry);
    failing_context_check(&w.memory);
    for (int i = 0; i < 32; i++) met[i] += w.met[i];
}

static void random_steps_match_the_model(void **state)
{
    (void)state;
    const char *only = getenv("PLLM_SIM_SEED"), *many = getenv("PLLM_SIM_SEEDS");
    uint64_t first = only ? strtoull(only, NULL, 10) : 1;
    uint64_t last = only ? first : many ? strtoull(many, NULL, 10) : SEEDS;
    int met[32] = {0};
    for (uint64_t seed = first; seed <= last; seed++) run_seed(seed, met);
    if (only || last < SEEDS) return;
    for (int i = 0; i <= 18; i++) { /* everything that matters came up */
        if (getenv("V") || met[i] < 30) print_message("case %d came up %d times\n", i, met[i]);
        assert_true(met[i] >= 30);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(random_steps_match_the_model)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (failed) print_message("PLLM_SIM_SEED=%llu\n", (unsigned long long)current_seed);
    return failed;
}
