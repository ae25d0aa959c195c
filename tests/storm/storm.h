/* storm.h - what the driver and its client processes share: a page of anonymous shared memory.
 *
 * The driver forks the clients, so all of it lies at one address in all of them. Clients write
 * what they did into rings, what they hold into their place when they are told to be quiet, and
 * which tensor became which at a daemon's return into the table of births. Whoever finds something
 * wrong leaves a sentence; the driver prints it with the seed and everybody's last operations. */
#ifndef PLLM_TESTS_STORM_H
#define PLLM_TESTS_STORM_H

#include <pagedllm/tensor_store.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/types.h>

enum {
    STORM_CLIENTS_MAX = 32,
    STORM_RING = 32,
    STORM_HOLDS_MAX = 256,
    STORM_BIRTHS = 1 << 18,
    STORM_NAMES = 40,      /* s/00 ..., which are renamed among each other */
    STORM_FIXED_NAMES = 8, /* p/00 ..., which are not */
    STORM_TIMEOUT_MS = 3000,
    STORM_SLACK_MS = 2000, /* of a busy machine */
    STORM_HUNG_MS = 20000,
    STORM_UNIT = 2 << 20, /* tensors' memory is a multiple of it, or shared */
};

typedef enum storm_kind {
    STORM_CONNECT,
    STORM_CREATE,
    STORM_OPEN,
    STORM_WRITE,
    STORM_SIGNAL,
    STORM_VERIFY,
    STORM_CLOSE,
    STORM_DELETE,
    STORM_RENAME,
    STORM_SEAL,
    STORM_PIN,
    STORM_STAT,
    STORM_LIST,
    STORM_WATCH,
    STORM_EVENT,
    STORM_WAIT,
    STORM_COMMAND, /* through Redis */
    STORM_REDEEM,  /* what Redis told */
    STORM_LEAVE,   /* the store is closed and opened again */
    STORM_KINDS
} storm_kind;

typedef struct storm_op {
    uint64_t at_ns, took_ns, detail;
    uint32_t kind;
    int32_t status;
    char name[24];
} storm_op;

typedef struct storm_hold { /* one reference that a client says it has */
    uint64_t generation;
    uint32_t writable;
    uint32_t sure; /* 0: through Redis, and perhaps of an earlier daemon */
} storm_hold;

typedef struct storm_place {
    pid_t pid;
    atomic_uint quiet;       /* the phase for which holds is filled in, again and again */
    atomic_uint holding;     /* odd while it is */
    atomic_uint other_quiet; /* the phase for which the second thread rests */
    atomic_uint_least64_t began_ns, limit_ns; /* of the call going on; 0: none */
    uint32_t ring_at, hold_count;
    storm_op ring[STORM_RING];
    storm_hold holds[STORM_HOLDS_MAX];
} storm_place;

typedef struct storm_figures { /* of one kind */
    atomic_uint_least64_t calls, refused, longest_ns, longest_calm_ns;
} storm_figures;

typedef struct storm_shared {
    uint64_t seed, start_ns;
    uint32_t client_count;
    char socket[108], redis[160];
    atomic_uint phase;   /* even: go on; odd: be quiet; UINT32_MAX: end in order */
    atomic_uint trouble; /* the daemon is away, or stopped */
    atomic_uint_least64_t trouble_end_ns;
    atomic_uint redis_trouble;
    atomic_uint_least64_t operations, checked, torn, unwritten, doubts, wait_ok, from_streams,
        by_other_threads, spilled_seen;
    storm_figures figures[STORM_KINDS];
    atomic_int failed;
    char failure[512];
    /* Generation -> the generation that its content was first written under. */
    atomic_uint_least64_t births[STORM_BIRTHS][2];
    storm_place places[STORM_CLIENTS_MAX];
} storm_shared;

/* One sentence, the first of all; the process that finds it ends. */
void storm_fail(storm_shared *shared, const char *format, ...)
    __attribute__((format(printf, 2, 3), noreturn));
const char *storm_kind_name(uint32_t kind);
/* Nothing moves across it: what thread sanitizers do not know a fence for. */
static inline void storm_barrier(void)
{
    static atomic_uint here;
    atomic_fetch_add(&here, 1);
}
static inline uint64_t storm_random(uint64_t *state) /* splitmix64 */
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}
static inline uint32_t storm_below(uint64_t *state, uint32_t bound)
{
    return (uint32_t)(storm_random(state) % bound);
}

/* storm_content.c: what tensors hold. */
/* As writer: 1 if it was written, with its counter; 0: somebody else writes just now. */
int storm_content_write(storm_shared *shared, pllm_store_tensor *tensor, const char *name,
                        uint64_t *counter_out);
/* Fails the storm if it is not what a writer left. fence: seen before, the content is at least that
 * old; UINT64_MAX: unknown. */
void storm_content_check(storm_shared *shared, const pllm_store_tensor *tensor, uint64_t fence);
void storm_content_zero(storm_shared *shared, const pllm_store_tensor *tensor);
/* No writer died in the middle of it: for what must be whole. */
int storm_content_whole(const pllm_store_tensor *tensor);

/* storm_client.c: never returns. */
void storm_client(storm_shared *shared, uint32_t index, uint64_t seed) __attribute__((noreturn));

/* storm_look.c: what must be true when all are quiet. */
typedef struct storm_daemon {
    pid_t pid;
    uint64_t ready_bytes, quota_bytes;
    uint64_t base_fds; /* descriptors without memory of tensors, no client there */
} storm_daemon;
/* Every reference is one that a client says it has, and the other way round; every hash in Redis is
 * the daemon's record; every content is right. */
void storm_look(storm_shared *shared, pllm_store *store, const storm_daemon *daemon,
                const char *ledger);
/* When the clients have gone: what is left is what survives without holders. */
void storm_look_end(storm_shared *shared, pllm_store *store, const storm_daemon *daemon,
                    const char *ledger);
/* Descriptors of a process: of tensors' memory (bytes, each file once), and others. */
void storm_descriptors(pid_t pid, uint64_t *memory_bytes_out, uint64_t *others_out);
/* Bytes of files with what in their name that a process has mapped. */
uint64_t storm_mapped(pid_t pid, const char *what);
/* The pid of the redis-server there; 0: none answers. */
pid_t storm_redis_pid(const storm_shared *shared);
int storm_redis_do(const storm_shared *shared, const char *command); /* 1: it answered well */

#endif
