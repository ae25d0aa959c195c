/* server_internal.h - the daemon's state, shared by its files.
 *
 *     server.c          open, close, the loop, timers, parts
 *     server_socket.c   the path: folder, lock, epoch, listening socket
 *     server_client.c   connections: accepted, read, answered, dropped
 *     server_request.c  what each message does
 *     server_effect.c   consequences: board, watchers, parts, memory; calls for parts
 *     server_move.c     tensors on their way to the host and back, and who waits for them
 *
 * A client's index is its place in clients; a tensor's slot is its place in blocks, on the board
 * and in the registry. */
#ifndef PLLM_STORE_SERVER_INTERNAL_H
#define PLLM_STORE_SERVER_INTERNAL_H

#include <stdatomic.h>
#include <sys/types.h>
#include "store/board.h"
#include "store/memory.h"
#include "store/server.h"
#include "store/wire.h"

enum {
    PLLM_STORE_PARTS_MAX = 4,
    PLLM_STORE_PATH_BYTES = 128, /* more than a socket's name can be */
    PLLM_STORE_NONE = -1,
    PLLM_SERVER_WAITS = 1, /* a request's: its answer comes later, server->wait says after what */
};

typedef struct wait {
    uint32_t slot; /* the end of this tensor's move; PLLM_STORE_SLOT_NONE: room */
    uint32_t device;
    uint64_t room_bytes; /* of memory on that device; 0: the tensor */
} wait;

typedef enum client_state {
    CLIENT_FREE = 0,
    CLIENT_NEW = 1,   /* connected, no HELLO yet */
    CLIENT_READY = 2, /* has a lease */
    CLIENT_GONE = 3,  /* said BYE: its lease is over */
} client_state;

typedef struct client {
    int fd, next;           /* next: of the free list */
    uint32_t state, device; /* device: the one it maps with */
    uint32_t epoll_events;  /* that are being waited for */
    pllm_store_peer peer;
    pllm_store_lease lease;
    uint64_t since_ns; /* connected; with an answer pending: when it could not be sent */
    /* Descriptors sent since the client was last seen to have read everything. */
    uint32_t fds_unread;
    uint32_t watch_count;
    uint64_t lost_count; /* events that found no room; told when there is some */
    /* The one answer that found no room: nothing is read before it is out. */
    uint8_t *pending;
    uint32_t pending_bytes, pending_fd_count;
    int *pending_fds; /* in the same allocation as pending; ours to close */
    /* The message that waits for memory, or for a tensor: nothing is read before it is answered. */
    uint8_t *waiting;
    uint32_t waiting_bytes;
    wait wait;
} client;

typedef struct watch {
    int client; /* its index; -1: free */
    uint32_t number, kinds, prefix_bytes;
    char prefix[PLLM_STORE_NAME_MAX];
} watch;

typedef struct store_device {
    pllm_device *device;
    pllm_budget *own_budget; /* NULL: the caller's is used */
    pllm_budget *budget;     /* the caller's, or NULL */
    pllm_budget_member *member;
    pllm_store_memory *memory;
    char uuid[PLLM_STORE_UUID_BYTES];
    atomic_uint_least64_t reclaim_bytes; /* asked for by another thread */
    uint64_t owed_bytes;                 /* of what was asked for, what is to go still */
    uint64_t spilling_bytes;             /* what moves to the host will give back */
    pllm_error failure; /* of a spill, while those who waited for it are answered */
} store_device;

typedef struct part_state {
    pllm_store_part part;
    int fd; /* in the epoll set; -1: none */
    uint32_t events, ready;
    uint64_t deadline_ns;
} part_state;

struct pllm_store_server {
    const pllm_context *context;
    pllm_store_server_options options; /* every default filled in */
    char path[PLLM_STORE_PATH_BYTES];
    int listen_fd, lock_fd, epoll_fd, wake_fd, spare_fd;
    dev_t socket_device; /* of the socket file that is ours to remove */
    ino_t socket_inode;
    uint32_t epoch, own_uid;
    pllm_store_peer self;
    pllm_registry *registry;
    pllm_board *board;
    pllm_store_block **blocks; /* [tensor_max] */
    store_device devices[PLLM_WIRE_DEVICES_MAX];
    const char *uuids[PLLM_WIRE_DEVICES_MAX];
    uint32_t device_count;
    client *clients; /* [client_max] */
    int free_client;
    watch *watches; /* [watch_max]; those below watch_end may be in use */
    uint32_t watch_end, watch_next;
    part_state parts[PLLM_STORE_PARTS_MAX];
    uint32_t part_count;
    atomic_int stopping;
    int memory_busy;   /* memory has work to do ahead */
    int moving;        /* tensors move, or have moved */
    uint32_t *waiting; /* [client_max] clients whose message waits, as they came */
    uint32_t waiting_count;
    wait wait;          /* of the request that is being carried out */
    int stalled;        /* clients with answers pending */
    int deaf;           /* there are no descriptors, not even the spare one: nobody is let in */
    uint32_t look_next; /* the client whose process is looked at next */
    uint32_t log_count; /* lines about clients in this second */
    uint64_t now_ns, log_second, sweep_ns, patrol_ns, adopt_until_ns, tick_ns;
    pllm_store_server_stats stats;
    char handle_text[PLLM_STORE_LEGACY_HANDLE_BYTES * 2]; /* base64, of the entry last made */
    uint8_t *in, *out, *listing;                          /* a packet each */
    int in_fds[PLLM_WIRE_FDS_MAX], out_fds[PLLM_WIRE_FDS_MAX];
    pllm_wire_message request, answer;
};

/* server_socket.c */
int pllm_server_listen(pllm_store_server *server);
void pllm_server_unlisten(pllm_store_server *server);

/* server_client.c */
enum { PLLM_SERVER_LISTEN = 1 }; /* the listening socket's tag in the set (server.c) */
void pllm_server_accept(pllm_store_server *server);
void pllm_server_listen_for(pllm_store_server *server, uint32_t events); /* EPOLLIN, or 0 */
void pllm_server_spare_open(pllm_store_server *server);
void pllm_server_client_event(pllm_store_server *server, client *c, uint32_t events);
void pllm_server_drop(pllm_store_server *server, client *c, const char *why);
/* Carries out the message that waits, or (status below 0, and the error record) refuses it. */
void pllm_server_client_again(pllm_store_server *server, client *c, int status);
/* Sends without waiting. EBUSY: no room now. */
int pllm_server_event_send(pllm_store_server *server, client *c, const pllm_wire_message *event);
/* Those that took too long, and answers that wait for something else than room. */
void pllm_server_patrol(pllm_store_server *server);
void pllm_server_stalled(pllm_store_server *server);

/* server_request.c: carries out server->request of c; fills server->answer and server->out_fds. The
 * status of the answer, or WAITS: nothing was changed, ask again. */
int pllm_server_request(pllm_store_server *server, client *c);

/* server_effect.c */
void pllm_server_effects(pllm_store_server *server);
/* A tensor with its memory, READY; changes spec->charge_bytes. Or WAITS, and there is none. */
int pllm_server_create(pllm_store_server *server, pllm_store_lease lease,
                       const pllm_store_peer *peer, const char *name, size_t name_bytes,
                       pllm_registry_spec *spec, uint32_t *slot_out);
void pllm_server_entry(pllm_store_server *server, const pllm_store_record *record,
                       pllm_store_entry *entry_out);

/* server_move.c */
/* There is no room for this tensor: WAITS, with what goes begun, or ENODEVMEM. */
int pllm_server_room(pllm_store_server *server, const pllm_store_record *record);
/* Brings back a tensor that is spilled, or on its way: WAITS, or why not. */
int pllm_server_restore(pllm_store_server *server, uint32_t slot);
void pllm_server_moves(pllm_store_server *server); /* what moves, a step further */
void pllm_server_reclaim_all(pllm_store_server *server);

/* server_hold.c: the ledger hears what clients map; what an earlier daemon left charged and nobody
 * maps any more is let go of; clients' memory stays charged though this daemon lets go of it. */
void pllm_server_hold(pllm_store_server *server);
void pllm_server_carry(pllm_store_server *server);
void pllm_server_hold_end(pllm_store_server *server);

static inline int pllm_server_named(const pllm_store_record *record)
{
    return record->state == PLLM_STORE_STATE_READY || record->state == PLLM_STORE_STATE_SPILLED;
}

static inline int pllm_server_own(const pllm_store_server *server, uint32_t uid)
{
    return uid == 0 || uid == server->own_uid;
}

#endif
