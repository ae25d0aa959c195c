/* registry.h - who holds which tensor, and what follows when something changes. A pure machine.
 *
 * No I/O, no clock of its own, no locks, and no allocation after open: every call is given the time
 * and answers at once. What has to be done in the world as a consequence is left as effects, which
 * the caller takes with pllm_registry_effect_next and carries out. Consequences are kept as bits on
 * the tensors themselves and the tensors in a list, so that no queue can run over, however many
 * tensors a dying lease lets go at once.
 *
 *     slot        a place for one tensor, and its index on the board
 *     generation  which tensor that is: (epoch << 32 | counter), never given twice. 0: none
 *     lease       who holds: a connection, a process, or a time. Its end gives everything back
 *     reference   (lease, slot): how often opened for reading and for writing, and whether the
 *                 lease's process may still have the memory mapped ("imports" it)
 *
 *     CREATING --commit--> READY <--move begun, ended--> SPILLED
 *         |                  |                             |
 *       abort          delete, or the last reference goes and it is not kept
 *         |                  v                             v
 *         |                ENDED: no name; holders keep the memory, handles say ESTALE
 *         v                  |  no reference and no importer left
 *        free <--freed--   FREE effect
 *
 * A tensor that moves (its bytes are on their way) stays READY or SPILLED, where it was, until the
 * move has ended. Meanwhile it is named, listed, renamed and deleted as any other; what would give
 * out its memory or pin it is EBUSY; and its memory is not freed.
 *
 * Rules that hold between calls (pllm_registry_check asserts them; see registry.c):
 * memory is freed, and its owner's quota credited, once and only when nothing refers to the tensor
 * and no process still maps it; a name stands for at most one tensor; counts are sums of
 * references.
 *
 * Threads: one at a time. Times: now_ns is monotonic and never goes back; records carry wall time,
 * which is now_ns plus an offset that the caller sets. */
#ifndef PLLM_STORE_REGISTRY_H
#define PLLM_STORE_REGISTRY_H

#include "base/context.h"
#include "store/names.h"

typedef struct pllm_registry pllm_registry;
typedef uint64_t pllm_store_lease; /* 0: none. An ended lease's number is not given again */

enum { PLLM_STORE_GROUPS_MAX = 32, PLLM_STORE_SLOT_NONE = UINT32_MAX };

/* Who asks. From the kernel (SO_PEERCRED, SO_PEERGROUPS), never from the message. */
typedef struct pllm_store_peer {
    uint32_t uid, gid, pid;
    uint32_t group_count; /* supplementary groups */
    uint32_t groups[PLLM_STORE_GROUPS_MAX];
    uint64_t pid_start; /* the process's start time (/proc/PID/stat, field 22); 0: unknown */
} pllm_store_peer;

typedef enum pllm_store_lease_kind {
    PLLM_STORE_LEASE_SOCKET = 1, /* ends with its connection */
    PLLM_STORE_LEASE_PID = 2,    /* ends when the caller finds the process gone */
    PLLM_STORE_LEASE_TIMED = 3,  /* ends when its time is over and was not renewed */
} pllm_store_lease_kind;

typedef enum pllm_store_kind { /* where a tensor's memory comes from; fixed at creation */
                               PLLM_STORE_KIND_VMM = 0,
                               PLLM_STORE_KIND_LEGACY = 1, /* a range of the plain arena; never
                                                              spilled: its handle is out */
} pllm_store_kind;

enum {                             /* flags of a tensor */
       PLLM_STORE_FLAG_SEALED = 1, /* nobody writes any more; cannot be undone */
       PLLM_STORE_FLAG_PINNED = 2, /* never spilled, and kept */
       PLLM_STORE_FLAG_KEPT = 4,   /* stays when its last reference goes; may be spilled */
};

typedef enum pllm_store_state {
    PLLM_STORE_STATE_FREE = 0,
    PLLM_STORE_STATE_CREATING = 1, /* its memory is being made; no one else sees it */
    PLLM_STORE_STATE_READY = 2,
    PLLM_STORE_STATE_SPILLED = 3, /* its bytes are on the host; an open brings them back */
    PLLM_STORE_STATE_ENDED = 4,   /* the name is gone, the memory not yet */
} pllm_store_state;
const char *pllm_store_state_name(uint32_t state); /* "ready"; static storage */

typedef struct pllm_store_record {      /* a tensor, as the registry holds it; read only outside */
    char name[PLLM_STORE_NAME_MAX + 1]; /* of an ended one: what it was called */
    uint8_t dtype, rank, kind, state;   /* pllm_store_dtype, -, _kind, _state */
    uint32_t slot, flags, device;       /* device: an index into the daemon's list */
    uint32_t uid, gid, mode;
    uint32_t owner_pid;
    uint32_t reference_count; /* opens not yet closed, of all leases */
    uint32_t writer_count;    /* those of them that are for writing */
    uint32_t importer_count;  /* leases whose process may have it mapped */
    uint32_t socket_count;    /* leases of kind SOCKET that refer to it */
    uint32_t fence_epoch;     /* how often its fence was poisoned */
    uint32_t fence_poisoned;
    uint32_t abandoned;   /* a lease ended of which nobody knows whether it still maps this */
    uint32_t moving;      /* its bytes are on their way to the host, or back */
    uint64_t fence_value; /* the greatest ever signalled */
    uint64_t generation;  /* given when it is created, seen when it is READY */
    uint64_t shape[PLLM_STORE_RANK_MAX];
    uint64_t bytes, charge_bytes; /* of the elements; of the owner's quota */
    uint64_t owner_start;         /* start time of owner_pid */
    uint64_t used_ns;             /* monotonic; last opened or closed */
    int64_t ctime_ns, mtime_ns;   /* wall time since 1970. mtime: last signal, seal or rename */
} pllm_store_record;

enum { PLLM_REGISTRY_DEVICES = 16 }; /* of which it counts what is mapped */

typedef struct pllm_registry_options {
    uint32_t struct_bytes;
    uint32_t epoch;              /* of this start of the daemon, from 1; greater than all before */
    uint32_t tensor_max;         /* slots; 0: 16,384 */
    uint32_t lease_max;          /* 0: 4,096 */
    uint32_t reference_max;      /* (lease, tensor) pairs; 0: 65,536 */
    uint32_t user_max;           /* uids that own something at one time; 0: 256 */
    uint32_t admin_uid;          /* the daemon's: it and uid 0 count as every tensor's owner */
    uint32_t count_per_user_max; /* tensors; 0: no limit */
    uint64_t bytes_per_user_max; /* 0: no limit */
} pllm_registry_options;

/* Errors: EINVAL, ENOMEM; then *registry_out is NULL. */
int pllm_registry_open(const pllm_context *context, const pllm_registry_options *options,
                       pllm_registry **registry_out);
void pllm_registry_close(pllm_registry *registry); /* NULL is fine; no effects are left behind */
void pllm_registry_clock_set(pllm_registry *registry, int64_t wall_minus_now_ns);
/* Limits of one uid, in place of the options'. 0: none. What is over stays. Errors: ELIMIT. */
int pllm_registry_quota_set(pllm_registry *registry, uint32_t uid, uint64_t bytes_max,
                            uint32_t count_max);

/* ---- leases ---- */
/* expires_ns: of TIMED only. Errors: ELIMIT (none is free; a quarter is for connections only). */
int pllm_registry_lease_open(pllm_registry *registry, pllm_store_lease_kind kind,
                             const pllm_store_peer *peer, uint64_t expires_ns,
                             pllm_store_lease *lease_out);
typedef enum pllm_store_end {                           /* how a lease ended */
                              PLLM_STORE_END_CLEAN = 0, /* it said good-bye */
                              PLLM_STORE_END_DIED = 1, /* it did not: fences of what it had open for
                                                          writing are poisoned */
                              PLLM_STORE_END_LOST =
                                  2, /* died, and what it imported may be mapped still: abandoned */
} pllm_store_end;
/* Gives back all it holds. An unknown lease is nothing. */
void pllm_registry_lease_close(pllm_registry *registry, pllm_store_lease lease, pllm_store_end end,
                               uint64_t now_ns);
/* A connection ended, but its process lives and may have memory mapped: the lease becomes one of
 * kind PID that is but an importer (so memory comes back when the process ends), or joins the one
 * that its process has, or ends at once if it imports nothing. Opens are dropped, as for DIED, or
 * CLEAN. */
void pllm_registry_lease_orphan(pllm_registry *registry, pllm_store_lease lease, pllm_store_end end,
                                uint64_t now_ns);
int pllm_registry_lease_renew(pllm_registry *registry, pllm_store_lease lease,
                              uint64_t expires_ns); /* ESTALE */
/* The lease of that process, if it has one: ENOTFOUND (bare). */
int pllm_registry_lease_of_pid(const pllm_registry *registry, uint32_t pid, uint64_t pid_start,
                               pllm_store_lease *lease_out);
/* Walks leases of one kind: *cursor from 0; 0 when there are no more. The lease met may be closed
 * before the next call. */
int pllm_registry_lease_next(const pllm_registry *registry, pllm_store_lease_kind kind,
                             uint32_t *cursor, pllm_store_lease *lease_out,
                             const pllm_store_peer **peer_out);
uint32_t pllm_registry_lease_kind(const pllm_registry *registry, pllm_store_lease lease); /* or 0 */
uint32_t pllm_registry_lease_references(const pllm_registry *registry, pllm_store_lease lease);
/* Ends timed leases that are over (died). Returns the next time one will be, or UINT64_MAX. */
uint64_t pllm_registry_sweep(pllm_registry *registry, uint64_t now_ns);

/* ---- life of a tensor ---- */
typedef struct pllm_registry_spec {
    uint32_t dtype, rank, mode, kind, device, flags;
    uint64_t shape[PLLM_STORE_RANK_MAX];
    uint64_t charge_bytes; /* what its memory will take; 0: its own bytes */
} pllm_registry_spec;

/* Takes name, quota and slot, and one reference for writing (for SOCKET leases also as importer).
 * The caller then makes the memory and calls commit or abort. lease 0 (with peer): nobody refers to
 * it, so its flags must say kept or pinned.
 * Errors: EINVAL, EEXIST, EPERM, ELIMIT (quota or a table), ESTALE (lease). */
int pllm_registry_create(pllm_registry *registry, pllm_store_lease lease,
                         const pllm_store_peer *peer, const char *name, size_t name_bytes,
                         const pllm_registry_spec *spec, uint64_t now_ns, uint32_t *slot_out);
/* READY, and found by its name. ECANCELED: its lease ended meanwhile; the memory comes back with
 * FREE.
 */
int pllm_registry_commit(pllm_registry *registry, uint32_t slot, uint64_t now_ns);
void pllm_registry_abort(pllm_registry *registry, uint32_t slot); /* as if never asked for */

/* At a daemon's return, a client offers what it holds. The first offer of an old_generation
 * takes a slot as create does, with *fresh_out 1: adopt the memory, then commit or abort. Later
 * ones get a reference to that tensor (*fresh_out 0), under whatever name it has.
 * Errors: as create; EEXIST where name stands for something else; EPERM where the offer is a first
 * one, and who offers is not its owner (try again); ESTALE where it was deleted since; EBUSY
 * (bare): the first is under way. */
typedef struct pllm_registry_offer {
    pllm_registry_spec spec;
    uint32_t uid, gid;       /* whose it was */
    uint32_t writable;       /* open for writing in the offering client */
    uint32_t fence_epoch;    /* as its old board page shows */
    uint64_t old_generation; /* of an epoch before this one */
    uint64_t fence_value;
} pllm_registry_offer;
int pllm_registry_adopt(pllm_registry *registry, pllm_store_lease lease, const char *name,
                        size_t name_bytes, const pllm_registry_offer *offer, uint64_t now_ns,
                        uint32_t *slot_out, uint32_t *fresh_out);
/* Producers have had time to offer: an adopted tensor that is neither sealed nor open for writing
 * has lost its own, and its fence is poisoned. Concerns what was adopted since the last call;
 * offers are still taken. */
void pllm_registry_adopt_end(pllm_registry *registry);

/* The slot behind a name, or behind slot and generation. Errors: ENOTFOUND, ESTALE. */
int pllm_registry_find(const pllm_registry *registry, const char *name, size_t name_bytes,
                       uint32_t *slot_out);
int pllm_registry_find_generation(const pllm_registry *registry, uint32_t slot,
                                  uint64_t generation);
/* NULL for a free slot. */
const pllm_store_record *pllm_registry_record(const pllm_registry *registry, uint32_t slot);
uint32_t pllm_registry_slot_max(const pllm_registry *registry);

/* May the peer do this? access: 4 read, 2 write, or both. 1 or 0. */
int pllm_registry_allows(const pllm_registry *registry, const pllm_store_peer *peer, uint32_t slot,
                         uint32_t access);
/* The same as a status: OK, or EPERM with a sentence. */
int pllm_registry_may(const pllm_registry *registry, const pllm_store_peer *peer, uint32_t slot,
                      uint32_t access);

/* One more reference. import: descriptors go out with the answer (SOCKET leases only); it stays so
 * until unmapped or the lease's end. Reading needs 4; writing needs 4 and 2 and is refused once
 * sealed. Errors: EPERM, EBUSY (bare: it is spilled, or moves; restore, then ask again), ELIMIT,
 * ESTALE. */
int pllm_registry_hold(pllm_registry *registry, pllm_store_lease lease, uint32_t slot,
                       uint32_t writable, uint32_t import, uint64_t now_ns);
/* Does this lease import the tensor already? Then it need not be sent the descriptors again. */
int pllm_registry_imports(const pllm_registry *registry, pllm_store_lease lease, uint32_t slot);

/* What processes may have mapped, without legacy tensors. 1: *peer_out is one whose share changed
 * since; 0: no more. */
int pllm_registry_mapped_next(pllm_registry *registry, pllm_store_peer *peer_out);
/* Bytes of that process (NULL: the sum over all of them), and of all of them together, each tensor
 * once. Rounded up to 2 MiB for each lease: small tensors share that much. */
uint64_t pllm_registry_mapped(const pllm_registry *registry, const pllm_store_peer *peer,
                              uint32_t device);
uint64_t pllm_registry_mapped_together(const pllm_registry *registry, uint32_t device);

/* One reference less. A closed writer poisons nothing. Errors: ESTALE (no such reference). */
int pllm_registry_drop(pllm_registry *registry, pllm_store_lease lease, uint32_t slot,
                       uint64_t generation, uint32_t writable, uint64_t now_ns);
/* The lease's process has no mapping of it any more. ESTALE; EBUSY: it still has it open. */
int pllm_registry_unmapped(pllm_registry *registry, pllm_store_lease lease, uint32_t slot,
                           uint64_t generation, uint64_t now_ns);

/* An import that the process has from a connection of its that broke (lease_orphan) is this
 * connection's from now on, or nobody's: held or unmapped next. ENOTFOUND (bare): there is none. */
int pllm_registry_rejoin(pllm_registry *registry, pllm_store_lease lease, uint32_t slot,
                         uint64_t generation);

/* Owner only: delete, rename, pin. Who has it open for writing, or its owner: seal. All need a
 * READY or SPILLED tensor. Errors: EPERM, EEXIST and EINVAL (rename), EBUSY (seal: others have it
 * open for writing). */
int pllm_registry_delete(pllm_registry *registry, const pllm_store_peer *peer, uint32_t slot,
                         uint64_t now_ns);
int pllm_registry_rename(pllm_registry *registry, const pllm_store_peer *peer, uint32_t slot,
                         const char *name, size_t name_bytes, uint64_t now_ns);
int pllm_registry_seal(pllm_registry *registry, pllm_store_lease lease, const pllm_store_peer *peer,
                       uint32_t slot, uint64_t now_ns);
int pllm_registry_pin(pllm_registry *registry, const pllm_store_peer *peer, uint32_t slot,
                      uint32_t on, uint64_t now_ns);

/* Raises the fence to value (a smaller one is nothing). A poisoned fence is cleared by a lease that
 * opened the tensor for writing after the poison; others' signals are refused with ECANCELED.
 * Errors: EPERM (not open for writing by this lease), EINVAL (UINT64_MAX), ECANCELED, ESTALE. */
int pllm_registry_signal(pllm_registry *registry, pllm_store_lease lease, uint32_t slot,
                         uint64_t generation, uint64_t value, uint64_t now_ns);

/* ---- spilling ---- */
/* The sealed, unpinned VMM tensor of that device, that no process maps and no connection holds and
 * that does not move, which was used longest ago: its slot, or PLLM_STORE_SLOT_NONE. */
uint32_t pllm_registry_spill_candidate(const pllm_registry *registry, uint32_t device);
/* Its bytes are on their way: of a candidate to the host, of a SPILLED one back. */
void pllm_registry_move_begin(pllm_registry *registry, uint32_t slot);
/* They have arrived (moved 1), or are where they were. Of one that ended meanwhile: FREE, if nobody
 * refers to it. */
void pllm_registry_move_end(pllm_registry *registry, uint32_t slot, uint32_t moved,
                            uint64_t now_ns);

/* ---- consequences ---- */
enum {
    PLLM_EFFECT_BOARD = 1 << 0,   /* write the slot's words anew, and wake */
    PLLM_EFFECT_MIRROR = 1 << 1,  /* the record changed (also when its tensor ended) */
    PLLM_EFFECT_FREE = 1 << 2,    /* the memory may go now; then call pllm_registry_freed */
    PLLM_EFFECT_CREATED = 1 << 3, /* the rest: tell who watches */
    PLLM_EFFECT_DELETED = 1 << 4, /* its name is gone, however */
    PLLM_EFFECT_SEALED = 1 << 5,
    PLLM_EFFECT_RENAMED = 1 << 6,
    PLLM_EFFECT_SPILLED = 1 << 7,
    PLLM_EFFECT_RESTORED = 1 << 8,
    PLLM_EFFECT_POISONED = 1 << 9,
    PLLM_EFFECT_PINNED = 1 << 10, /* or unpinned */
    PLLM_EFFECT_EVENTS = ((1 << 11) - 1) & ~7,
};
typedef struct pllm_registry_effect {
    uint32_t slot, kinds;
    const pllm_store_record *record; /* as it is now; valid until freed */
    const char *name_before;         /* of RENAMED: the first name since effects were last taken */
} pllm_registry_effect;
/* 1: *effect_out is the next; 0: none. Take them after every call that changes something. */
int pllm_registry_effect_next(pllm_registry *registry, pllm_registry_effect *effect_out);
/* The memory is gone: quota credited, slot free. Only after FREE. */
void pllm_registry_freed(pllm_registry *registry, uint32_t slot);

typedef struct pllm_registry_stats {
    uint32_t tensor_count, lease_count, reference_count, user_count; /* slots not free; ... */
    uint64_t charged_bytes;
} pllm_registry_stats;
void pllm_registry_stats_get(const pllm_registry *registry, pllm_registry_stats *stats_out);
/* What a uid owns. */
void pllm_registry_usage_get(const pllm_registry *registry, uint32_t uid, uint64_t *bytes_out,
                             uint32_t *count_out);
void pllm_registry_check(const pllm_registry *registry); /* asserts the invariants; slow */

#endif
