/* server.h - the daemon: one loop that owns the registry, the board, the memory and the socket.
 *
 * A request costs one receive and one send, and no allocation. Nothing a client does or leaves
 * undone stops the loop: it never waits for a client. One whose answers cannot be delivered is not
 * read from until they are, and is dropped when that takes too long; events that a watcher does not
 * take are told as lost.
 *
 * What else takes part in the loop (the mirror in Redis) does so as a part: it hears every change,
 * gives a descriptor to wait for, and may call the functions under "for parts" from its callbacks.
 *
 * Threads: stop and reclaim are for any thread, all else for one. */
#ifndef PLLM_STORE_SERVER_H
#define PLLM_STORE_SERVER_H

#include "device/device.h"
#include "store/registry.h"
#include "vmm/budget.h"

typedef struct pllm_store_server pllm_store_server;

typedef struct pllm_store_entry { /* a tensor with all that a registry elsewhere wants to know */
    const pllm_store_record *record;
    const char *uuid;       /* of its device */
    const char *ipc_handle; /* base64: a legacy IPC handle, or a token for REDEEM */
    uint64_t offset;        /* in that legacy allocation, or in its shared piece */
} pllm_store_entry;

typedef struct pllm_store_part {
    void *user;
    /* The tensor is new, or one of its fields changed. entry is valid during the call. */
    void (*changed)(void *user, const pllm_store_entry *entry);
    /* A name no longer means that generation: deleted, freed, or renamed (changed follows). */
    void (*removed)(void *user, const char *name, uint64_t generation);
    /* Called once a round: fills what to wait for next. *fd_out -1: nothing. *events_out: EPOLLIN,
     * EPOLLOUT. Returns the time (monotonic) to be called at the latest; UINT64_MAX: none. */
    uint64_t (*prepare)(void *user, uint64_t now_ns, int *fd_out, uint32_t *events_out);
    /* After each wait. events: what the descriptor is ready for, 0 if it is only time. */
    void (*run)(void *user, uint32_t events, uint64_t now_ns);
    void (*close)(void *user); /* when the server closes; may be NULL */
} pllm_store_part;

typedef struct pllm_store_served {
    pllm_device *device; /* borrowed */
    pllm_budget
        *budget; /* borrowed; attach it to a ledger to share a limit: closing the server detaches
                    it, since what clients map stays charged. NULL: one of its own */
    uint64_t limit_bytes; /* of the budget of its own; 0: none */
} pllm_store_served;

typedef struct pllm_store_server_options {
    uint32_t struct_bytes;
    uint32_t device_count;
    const pllm_store_served *devices;   /* the first is the default one */
    const char *socket;                 /* NULL: the default path (wire.h) */
    uint32_t socket_mode;               /* of the socket file; 0: 0600 */
    uint32_t client_max;                /* connections; 0: 1,024 */
    uint32_t client_per_user_max;       /* of users but our own and root; 0: client_max / 4 */
    uint32_t tensor_max, reference_max; /* 0: 16,384 and 65,536 */
    uint32_t watch_max;                 /* 0: 1,024 */
    uint32_t count_per_user_max;        /* tensors; 0: no limit */
    uint64_t bytes_per_user_max;        /* 0: no limit */
    uint64_t ready_bytes;               /* kept exported and zeroed beforehand, each device */
    uint64_t spilled_bytes_max;         /* host memory, each device; 0: nothing is spilled */
    uint64_t disk_bytes;                /* of a spill file behind it, each device; 0: none */
    const char *disk_folder;            /* of that file; NULL: the usual one (disk.h) */
    uint64_t legacy_bytes_max;          /* of slabs for legacy tensors, each device; 0: none */
    uint32_t legacy;                    /* 1: legacy tensors, where a device has them */
    uint32_t hello_ms;                  /* one that has not said HELLO goes; 0: 5,000 */
    uint32_t stall_ms;                  /* one that takes no answers goes; 0: 10,000 */
    uint32_t adopt_ms;                  /* offers are taken for so long; 0: 3,000 */
    uint32_t sweep_ms;                  /* between looks at processes; 0: 500 */
} pllm_store_server_options;

/* Listens when it returns. The socket's folder is made (0700) if it is not there, and must be ours
 * or root's and not writable for others. A socket file that nobody answers is replaced. Beside it
 * lies PATH.lock, which the daemon holds while it lives, and which remembers the epoch.
 * Errors: EINVAL, EEXIST (a daemon is there already), EPERM (folder), EIO, ENOMEM, EDEVICE. */
int pllm_store_server_open(const pllm_context *context, const pllm_store_server_options *options,
                           pllm_store_server **server_out);
/* Before run. The part's struct is copied. Errors: ELIMIT (four already). */
int pllm_store_server_add(pllm_store_server *server, const pllm_store_part *part);
/* Serves until stop, or until stop_fd (-1: none) can be read from. Errors: EIO. */
int pllm_store_server_run(pllm_store_server *server, int stop_fd);
void pllm_store_server_stop(pllm_store_server *server);  /* any thread, also a signal handler */
void pllm_store_server_close(pllm_store_server *server); /* NULL is fine; removes the socket */
const char *pllm_store_server_path(const pllm_store_server *server);
/* Any thread: gives back about so much device memory soon (ready pieces first, then spills). For
 * the callback of a ledger. */
void pllm_store_server_reclaim(pllm_store_server *server, uint32_t device, uint64_t bytes);

typedef struct pllm_store_server_stats {
    pllm_registry_stats registry;
    uint64_t request_count, refused_count; /* messages that came; of them answered with an error */
    uint64_t dropped_count;                /* clients thrown out */
    uint64_t lost_count;                   /* events that a watcher did not get */
    uint64_t spilled_count, restored_count, adopted_count;
    uint64_t moved_count; /* moves to the host and back that ended, however */
    uint32_t client_count, watch_count, waiting_count;  /* waiting: for a tensor, or for room */
    uint32_t moving_count;                              /* tensors on their way now */
    uint64_t charged_bytes, ready_bytes, spilled_bytes; /* of memory now, all devices */
} pllm_store_server_stats;
void pllm_store_server_stats_get(const pllm_store_server *server,
                                 pllm_store_server_stats *stats_out);

/* ---- for parts: from prepare and run (not from changed and removed), in the loop's thread ---- */
/* Who asks from outside the socket, and whether a reference is taken for them. */
typedef struct pllm_store_holder {
    pllm_store_peer peer;   /* whose rights; see pllm_store_server_self */
    uint32_t pid;           /* a reference lives as long as this process; 0: see lease_ns */
    uint64_t lease_ns;      /* a reference for this long; 0 with pid 0: no reference */
    pllm_store_lease lease; /* out: the lease that took it, 0: none. In (delete): one that was */
} pllm_store_holder;
void pllm_store_server_self(const pllm_store_server *server, pllm_store_peer *peer_out);
/* Errors of all: as the registry's, and those of the memory; ENOTFOUND for a pid that is not there.
 * Create also EBUSY (bare): room is being made; ask again when pllm_store_server_moved, which a
 * part may look at in every run, has changed. A tensor created without a reference is kept.
 * entry_out is valid until the next call. */
int pllm_store_server_create(pllm_store_server *server, const char *name, size_t name_bytes,
                             const pllm_registry_spec *spec, pllm_store_holder *holder,
                             pllm_store_entry *entry_out);
int pllm_store_server_get(pllm_store_server *server, const char *name, size_t name_bytes,
                          uint32_t writable, pllm_store_holder *holder,
                          pllm_store_entry *entry_out);
/* With holder's pid or lease: that lease lets the tensor go. Without: the name is deleted. */
int pllm_store_server_delete(pllm_store_server *server, const char *name, size_t name_bytes,
                             const pllm_store_holder *holder);
/* Every tensor with a name, in slot order: for reconciling. The visitor changes nothing. */
void pllm_store_server_each(pllm_store_server *server,
                            void (*visit)(void *user, const pllm_store_entry *entry), void *user);
/* The same of slots first to end - 1. */
void pllm_store_server_range(pllm_store_server *server, uint32_t first, uint32_t end,
                             void (*visit)(void *user, const pllm_store_entry *entry), void *user);
uint64_t pllm_store_server_moved(const pllm_store_server *server); /* moves that have ended */
/* The device that text means (names.h), and a device's UUID. */
int pllm_store_server_device(const pllm_store_server *server, const char *text, size_t bytes,
                             uint32_t *index_out);
uint64_t pllm_store_server_epoch(const pllm_store_server *server);
uint32_t pllm_store_server_slot_max(const pllm_store_server *server); /* slots are below it */

#endif
