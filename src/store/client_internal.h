/* client_internal.h - what the client's files share (client.c: the connection; client_tensor.c:
 * tensors; client_names.c: names and events).
 *
 * Locks. `lock` guards the socket, the tables and the packets; under it the daemon's answer is
 * waited for, for a bounded time, and the device is called. `tell_lock`, taken after it, guards
 * what a stream needs for its signal and a waiter for its fence, and is held for moments: a stream
 * that waited for `lock` could wait for a device call that waits for the stream. What is of both
 * locks is written under both and read under either. A fence is waited for without a lock. */
#ifndef PLLM_STORE_CLIENT_INTERNAL_H
#define PLLM_STORE_CLIENT_INTERNAL_H

#include <pthread.h>
#include <sys/types.h>
#include "device/device.h"
#include "store/board.h"
#include "store/wire.h"

enum { CLIENT_BUCKETS = 256, CLIENT_EVENTS = 64, CLIENT_BOARDS = 64, CLIENT_LATE = 16 };

typedef struct client_mapping { /* where a tensor's memory is in this process */
    pllm_va base;               /* of the reservation, or of a legacy allocation */
    uint64_t total_bytes;       /* of the reservation */
    uint64_t offset;            /* of the tensor from base */
    uint32_t piece_count;       /* 0: legacy, or nothing */
    uint32_t legacy;
    pllm_chunk **chunks;   /* [piece_count] */
    uint64_t *piece_bytes; /* [piece_count] */
} client_mapping;

struct pllm_store_tensor { /* one way (reading, writing) of having a tensor open */
    pllm_store *store;
    pllm_store_tensor *next; /* in its bucket */
    uint32_t open_count;     /* handles given out for it, all this pointer */
    uint32_t writable;
    uint64_t bytes;
    uint64_t renames;    /* the board's count when name was known to be right */
    uint64_t connection; /* the last one on which the daemon counted it */
    client_mapping mapping;
    /* of both locks */
    uint32_t stale; /* lost with a daemon */
    uint32_t slot;
    uint64_t generation;
    pllm_board *board; /* on which that is: of the daemon that knew it last */
    pllm_store_info info;
    /* of tell_lock */
    uint32_t pending_count; /* signals that streams will give */
    uint64_t signalled;     /* the greatest that a stream gave, heard or not */
    uint64_t offered;       /* what this daemon heard of it with its offer */
};

typedef struct client_late { /* a question that was given up: its answer may come yet */
    uint32_t request, op, writable;
} client_late;

struct pllm_store {
    const pllm_context *context;
    pllm_device *device;
    pllm_device *device_own; /* closed with us */
    pid_t pid;               /* whose it is: not a child's, which has copies of all this */
    char path[108];
    uint32_t timeout_ms;
    int path_usual; /* nobody named it: who is at its other end has to be asked */

    pthread_mutex_t tell_lock;
    int tell_fd; /* of both locks: fd once hello is said and all is offered; else -1 */

    pthread_mutex_t lock; /* of all below */
    uint64_t looked_ns;   /* when the socket was looked at without a question */
    int fd;               /* -1: not connected */
    uint64_t connection;  /* how often hello was said */
    int wake;             /* an event descriptor: events were queued while a call waited */
    uint32_t request, device_index;
    pllm_board *board;                 /* the newest of boards */
    pllm_board *boards[CLIENT_BOARDS]; /* of earlier daemons too: a waiter may look at one */
    uint32_t board_count;
    pllm_store_tensor *buckets[CLIENT_BUCKETS];
    client_late late[CLIENT_LATE];
    uint32_t late_count;
    uint32_t unoffered; /* tensors whose offer is to be repeated */
    uint64_t offer_again_ns, offer_until_ns;
    int watching;
    uint32_t watch;
    char watch_prefix[PLLM_STORE_NAME_MAX + 1];
    pllm_store_event events[CLIENT_EVENTS]; /* a ring */
    uint32_t event_first, event_count;
    int received[PLLM_WIRE_FDS_MAX]; /* descriptors of the last answer */
    uint32_t received_count;
    int received_cut;          /* this process had no room for them: there are none */
    pllm_wire_message in, out; /* the answer, the question */
    uint8_t packet[PLLM_WIRE_PACKET_BYTES];
};

/* store->out as prepared (op and fields) is asked, connecting first if need be; the answer is
 * store->in, its descriptors received. about (may be NULL): the tensor whose numbers the question
 * holds: they may be others after connecting, and are filled in here; so is CREATE's device.
 * Locked. Errors: the daemon's own, with its sentence; EIO, ETIMEDOUT, ESTALE (about). After an
 * error there are no descriptors. */
int pllm_store_ask(pllm_store *store, uint32_t op, const pllm_store_tensor *about);
/* The same on the connection that there is, with descriptors: while connecting. */
int pllm_store_ask_here(pllm_store *store, uint32_t op, const int *fds);
/* EINVAL after a fork, in the child: what it said would be taken for its parent's. */
int pllm_store_check_process(const pllm_store *store);
/* The same without an answer, and without connecting: for what a broken connection says by itself.
 */
int pllm_store_tell(pllm_store *store, uint32_t op);
void pllm_store_received_close(pllm_store *store);
int pllm_store_connected(pllm_store *store); /* connects if it is not; offers what is held */
/* Takes in a packet that is there already, without waiting: OK, EBUSY (bare: none), EIO. */
int pllm_store_take_event(pllm_store *store);
void pllm_store_event_add(pllm_store *store, const pllm_wire_message *message);
/* Looks at the socket, unless that was done a moment ago, and connects again if the daemon went:
 * for calls that ask nothing. Its failure is nothing. Locked. */
void pllm_store_look(pllm_store *store);
/* Once tell_fd is there: signals that streams gave while it was not. */
void pllm_store_signals_again(pllm_store *store);
/* The answer to an offer or a creation: its info, and the bucket of the name in it. */
void pllm_store_entry_name(pllm_store *store, pllm_store_tensor *tensor, uint64_t renames);
void pllm_store_renamed(pllm_store *store, const pllm_store_info *info); /* not locked */
void pllm_store_entry_unlink(pllm_store *store, pllm_store_tensor *tensor);
int pllm_store_fail_stale(const pllm_store_tensor *tensor); /* either lock held */
/* client_offer.c: what an earlier daemon knew is offered to the one there is; what this one knew
 * went with the connection before. */
int pllm_store_offer_all(pllm_store *store, int reconnected);
/* store->in answers a question that was given up: what it brought is given back. */
void pllm_store_late(pllm_store *store);
/* client_tensor.c */
void pllm_store_tell_close(pllm_store *store, uint32_t slot, uint64_t generation,
                           uint32_t writable);
void pllm_store_tell_unmapped(pllm_store *store, uint32_t slot, uint64_t generation);
void pllm_store_tensors_forget(pllm_store *store); /* unmaps and frees all */
void pllm_store_info_of(const pllm_wire_info *wire, pllm_store_info *info);
/* client_names.c: watching goes on with a new daemon. */
int pllm_store_watch_again(pllm_store *store);
pllm_wire_text pllm_store_text(const char *text);

static inline void pllm_store_lock(pllm_store *store)
{
    pthread_mutex_lock(&store->lock);
}

static inline int pllm_store_unlock(pllm_store *store, int status)
{
    pthread_mutex_unlock(&store->lock);
    return status;
}

#endif
