/* server.h - the daemon: one loop that owns the registry, the board, the memory and the socket.
 *
 * A request costs one receive and one send, and no allocation. Nothing a client does or leaves
 * undone stops the loop: it never waits for a client. One whose answers cannot be delivered is not
 * read from until they are, and is dropped when that takes too long; events that a watcher does not
 * take are counted, and told as lost.
 *
 * What else takes part in the loop (the mirror in Redis) does so as a part: it hears every change,
 * gives a descriptor to wait for, and may call the functions under "for parts" from its callbacks.
 *
 * Threads: run and all else but stop are for one thread. */
#ifndef PLLM_STORE_SERVER_H
#define PLLM_STORE_SERVER_H

#include "device/device.h"
#include "store/registry.h"

typedef struct pllm_store_server pllm_store_server;

typedef struct pllm_store_entry { /* a tensor with all that a registry elsewhere wants to know */
    const pllm_store_record *record;
    const char *uuid;       /* of its device */
    const char *ipc_handle; /* base64: a legacy IPC handle, or a token for REDEEM */
    uint64_t offset;        /* in that legacy allocation, or in its shared chunk */
} pllm_store_entry;

typedef struct pllm_store_part {
    void *user;
    /* The tensor is new, or one of its fields changed. state ENDED: its name is gone. */
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

typedef struct pllm_store_server_options {
    uint32_t struct_bytes;
    const char *socket;          /* NULL: the default path (wire.h) */
    pllm_device *const *devices; /* borrowed; the first is the default one */
    uint32_t device_count;
    uint32_t socket_mode;         /* of the socket file; 0: 0600 */
    uint32_t client_max;          /* connections; 0: 1,024 */
    uint32_t client_per_user_max; /* 0: a quarter of client_max, but all of it for our own user */
    uint32_t tensor_max, reference_max; /* 0: 16,384 and 65,536 */
    uint32_t count_per_user_max;        /* tensors; 0: no limit */
    uint64_t bytes_per_user_max;        /* 0: no limit */
    uint64_t memory_bytes;              /* device memory, each device; 0: no limit of ours */
    uint64_t warm_bytes;                /* kept exported and zeroed beforehand, each device */
    uint64_t spill_bytes;               /* host memory for spilled tensors; 0: nothing is spilled */
    uint64_t legacy_bytes;              /* of the plain arena, each device; 0: no legacy tensors */
    uint32_t hello_ms;                  /* a connection that has not said HELLO goes; 0: 5,000 */
    uint32_t stall_ms;                  /* one that does not take its answers goes; 0: 10,000 */
    uint32_t adopt_ms;                  /* how long after a start offers are awaited; 0: 3,000 */
    uint32_t sweep_ms;                  /* between looks at pid leases; 0: 500 */
} pllm_store_server_options;

/* Listens when it returns. The socket's folder is made (0700) if it is not there, and must be ours
 * or root's and not writable for others. A socket file that nobody answers is replaced.
 * Errors: EINVAL, EEXIST (a daemon answers there), EPERM (folder), EIO, ENOMEM, EDEVICE. */
int pllm_store_server_open(const pllm_context *context, const pllm_store_server_options *options,
                           pllm_store_server **server_out);
/* Before run. The part's struct is copied. Errors: ELIMIT (four already). */
int pllm_store_server_add(pllm_store_server *server, const pllm_store_part *part);
/* Serves until stop, or until stop_fd (-1: none) can be read from. Errors: EIO. */
int pllm_store_server_run(pllm_store_server *server, int stop_fd);
void pllm_store_server_stop(pllm_store_server *server);  /* any thread, also a signal handler */
void pllm_store_server_close(pllm_store_server *server); /* NULL is fine; removes the socket */
const char *pllm_store_server_path(const pllm_store_server *server);

typedef struct pllm_store_server_stats {
    pllm_registry_stats registry;
    uint64_t request_count, refused_count; /* answered; of them with an error */
    uint64_t dropped_count;                /* clients thrown out */
    uint64_t lost_events, spilled_count, restored_count, adopted_count;
    uint32_t client_count, watch_count;
    uint64_t memory_bytes, warm_bytes, spilled_bytes; /* now, all devices */
} pllm_store_server_stats;
void pllm_store_server_stats_get(const pllm_store_server *server,
                                 pllm_store_server_stats *stats_out);

/* ---- for parts: from their callbacks (not from changed and removed), in the loop's thread ---- */
/* Who asks from outside the socket, and whether a reference is taken for them. */
typedef struct pllm_store_holder {
    pllm_store_peer peer;   /* whose rights; the daemon's own where nothing better is known */
    uint32_t pid;           /* a reference lives with this process, as it is now; 0: see below */
    uint64_t lease_ns;      /* a reference for this long; 0 with pid 0: no reference */
    pllm_store_lease lease; /* out: the lease that took it; 0: none */
} pllm_store_holder;
/* Errors of all: as the registry's, and those of the memory. A tensor created without a reference
 * is kept. */
int pllm_store_server_create(pllm_store_server *server, const char *name, size_t name_bytes,
                             const pllm_registry_spec *spec, pllm_store_holder *holder,
                             pllm_store_entry *entry_out);
int pllm_store_server_get(pllm_store_server *server, const char *name, size_t name_bytes,
                          uint32_t writable, pllm_store_holder *holder,
                          pllm_store_entry *entry_out);
/* With holder's pid or lease: that lease's references to it go. Without: the name is deleted. */
int pllm_store_server_delete(pllm_store_server *server, const char *name, size_t name_bytes,
                             const pllm_store_holder *holder);
/* Every tensor with a name, in slot order: for reconciling. The visitor changes nothing. */
void pllm_store_server_each(pllm_store_server *server,
                            void (*visit)(void *user, const pllm_store_entry *entry), void *user);
/* The device that text means (names.h). */
int pllm_store_server_device(const pllm_store_server *server, const char *text, size_t bytes,
                             uint32_t *index_out);
uint64_t pllm_store_server_epoch(const pllm_store_server *server);

#endif
