/* store_rig.h - a store daemon in a thread of the test, in a folder of its own, and clients that
 * speak to it packet by packet.
 *
 *     store_rig rig;
 *     store_rig_open(&rig, NULL);
 *     int fd = store_rig_hello(&rig);
 *     store_talk talk = {.fd = fd};
 *     store_create(&talk, "a", 4 << 20, 0);          asserts OK; talk.answer, talk.fds
 *     assert_int_equal(store_delete(&talk, "b"), PLLM_ENOTFOUND);
 *     store_rig_close(&rig);                          asserts that the daemon ran well */
#ifndef PLLM_TESTS_STORE_RIG_H
#define PLLM_TESTS_STORE_RIG_H

#include <pthread.h>
#include <stdint.h>
#include "failing_context.h"
#include "store/board.h"
#include "store/server.h"
#include "store/wire.h"

typedef struct store_heard { /* what a part of the daemon heard last */
    char changed_name[PLLM_STORE_NAME_MAX + 1], removed_name[PLLM_STORE_NAME_MAX + 1];
    char changed_handle[128];
    pllm_store_record changed;
} store_heard;

typedef struct store_rig {
    failing_context memory;
    pllm_device *device;
    pllm_store_server *server;
    pthread_t thread;
    int running;
    char folder[64], path[80];
    pllm_store_server_options options;
    pllm_store_served served;
    /* Work that a test has done inside the loop: a part of the daemon. */
    int ask_fd;
    pthread_mutex_t lock;
    pthread_cond_t done;
    void (*work)(struct store_rig *rig, void *user);
    void *work_user;
    store_heard heard; /* take it with store_rig_heard */
} store_rig;

/* options (may be NULL): socket and devices are filled in. The host device has capacity_bytes, or
 * 256 MiB. */
void store_rig_open(store_rig *rig, const pllm_store_server_options *options,
                    uint64_t capacity_bytes);
/* Ends the daemon and starts another at the same path. */
void store_rig_restart(store_rig *rig);
/* As if killed: nothing is told to anybody. The folder stays as it is. */
void store_rig_stop(store_rig *rig);
void store_rig_start(store_rig *rig);
void store_rig_close(store_rig *rig);
/* The same with a device of the caller's, who closes it after store_rig_end. */
void store_rig_open_on(store_rig *rig, const pllm_store_server_options *options,
                       pllm_device *device);
/* With memory and options of the rig as they are, on that device: 1 if the daemon runs, 0 if it
 * could not be opened (the status is one of failed memory or device). end is close without the
 * device. */
int store_rig_try(store_rig *rig, pllm_device *device);
void store_rig_end(store_rig *rig);
/* Has work called in the daemon's thread, and waits for it. */
void store_rig_inside(store_rig *rig, void (*work)(store_rig *rig, void *user), void *user);
store_heard store_rig_heard(store_rig *rig);
/* The daemon's own figures. */
pllm_store_server_stats store_rig_stats(store_rig *rig);
/* Waits (at most 5 s) until so many tensors and clients are left. */
void store_rig_until(store_rig *rig, uint32_t tensor_count, uint32_t client_count);

typedef struct store_talk {
    int fd;
    uint32_t request;
    pllm_wire_message ask, answer;
    uint8_t packet[PLLM_WIRE_PACKET_BYTES]; /* of the answer; its texts point into it */
    int fds[PLLM_WIRE_FDS_MAX];             /* that came with it; closed by the next call */
    uint32_t fd_count;
} store_talk;

int store_connect(store_rig *rig);                      /* a socket, without hello */
void store_talk_open(store_rig *rig, store_talk *talk); /* with hello; talk->fds[0]: the board */
void store_talk_close(store_talk *talk);                /* just the socket: a death */
/* Sends talk->ask and waits for its answer, which it returns the status of. Events that come in
 * between are dropped. */
int store_ask(store_talk *talk, const int *fds, uint32_t fd_count);
/* The two halves of it: sends talk->ask; waits for the answer (5 s at most, then it fails). */
void store_send(store_talk *talk);
int store_answer(store_talk *talk);
/* 1: something has come that was not received yet. */
int store_answered(const store_talk *talk);
void store_tell(store_talk *talk); /* talk->ask without waiting: request 0 */
/* The next packet, an event, into talk->answer. 1; 0: none within timeout_ms. */
int store_event(store_talk *talk, uint32_t timeout_ms);

int store_create(store_talk *talk, const char *name, uint64_t bytes, uint32_t flags);
int store_open(store_talk *talk, const char *name, uint32_t writable);
int store_shut(store_talk *talk, uint32_t slot, uint64_t generation, uint32_t writable);
int store_unmapped(store_talk *talk, uint32_t slot, uint64_t generation);
int store_signal(store_talk *talk, uint32_t slot, uint64_t generation, uint64_t value);
/* DELETE, SEAL, STAT, PIN (on), RENAME (name_new). */
int store_name(store_talk *talk, uint32_t op, const char *name, uint32_t on, const char *name_new);
/* The memory of the last create or open, mapped as one run; NULL: it cannot be mapped so. */
void *store_map(const store_talk *talk, int writable, uint64_t *bytes_out);

#endif
