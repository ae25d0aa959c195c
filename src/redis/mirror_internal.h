/* mirror_internal.h - what mirror.c and mirror_redis.c share. */
#ifndef PLLM_REDIS_MIRROR_INTERNAL_H
#define PLLM_REDIS_MIRROR_INTERNAL_H

#include <pthread.h>
#include "redis/command.h"
#include "redis/mirror.h"

enum { MIRROR_COMMAND_MAX = 256 };

enum {
    MIRROR_PUT = 1, /* record, uuid, ipc_handle, offset */
    MIRROR_REMOVE,  /* record's name and generation */
    MIRROR_ANSWER,  /* reply, text */
    MIRROR_BEGIN,   /* record.generation: the registration's number */
    MIRROR_END,
};

typedef struct mirror_op {
    uint32_t kind;
    uint64_t offset;
    char *text; /* owned */
    pllm_store_record record;
    char uuid[PLLM_STORE_UUID_BYTES], ipc_handle[128], reply[PLLM_COMMAND_REPLY_BYTES];
} mirror_op;

typedef struct mirror_list {
    mirror_op *ops;
    uint32_t count, room;
} mirror_list;

typedef struct mirror_command {
    int status; /* below 0: it could not be read, and text says why */
    pllm_command command;
    char text[sizeof((pllm_error *)0)->text];
} mirror_command;

struct pllm_mirror {
    const pllm_context *context;
    pllm_store_server *server;
    pllm_mirror_address address;
    char node[512];
    uint32_t slot_max, op_max, timeout_ms;
    int event;           /* wakes the server's loop */
    uint64_t refresh_ns; /* of the loop alone: when slots from refresh_slot are told once more */
    uint32_t refresh_slot;
    /* Of the loop alone: a command for which room is being made, and what had moved by then. Those
     * behind it wait too: they may speak of what it makes. */
    mirror_command *waiting; /* NULL: none */
    uint64_t waiting_moved;

    pthread_mutex_t lock;      /* of all below */
    pthread_cond_t work, room; /* the list has entries, or stop; commands has room, or stop */
    mirror_list list;
    uint32_t *last_put; /* [slot_max] index in list + 1 */
    int connected, open, wants_all, stop;
    uint64_t round;
    mirror_command *commands; /* [MIRROR_COMMAND_MAX], a ring */
    uint32_t command_first, command_count;
    int listener_fd, writer_fd; /* of their connections; -1: none */
    int writer_done;
    pllm_mirror_stats stats;
    pthread_t writer, listener;
    int writer_runs, listener_runs;
};

void pllm_mirror_wake(pllm_mirror *mirror);
void pllm_mirror_list_clear(pllm_mirror *mirror, mirror_list *list);
int pllm_mirror_threads_start(pllm_mirror *mirror); /* ELIMIT */
void pllm_mirror_threads_stop(pllm_mirror *mirror); /* those that were started */

#endif
