/* tensor_store.h - device tensors that processes share by name.
 *
 * A daemon (`pagedllm store serve`) owns the memory. A pllm_store is a connection to it, and the
 * lease that everything opened through it belongs to: when the connection ends, however it ends,
 * all of it is given back. Two programs share a tensor like this:
 *
 *     pllm_store_open(context, NULL, &store);                                    both
 *     pllm_store_spec spec = {.struct_bytes = sizeof spec, .dtype = PLLM_STORE_F32,
 *                             .rank = 2, .shape = {1024, 1024}};
 *     pllm_store_create(store, "activations", &spec, &tensor);                   the producer
 *     float *data = pllm_store_tensor_data(tensor);                              (host device)
 *     pllm_store_signal(tensor, NULL, 1);
 *
 *     pllm_store_open_tensor(store, "activations", 0, &tensor);                  the consumer
 *     pllm_store_wait(tensor, 1, 5000);
 *
 * Memory. On the host device it is mapped as the opener asked: written to through a tensor that was
 * opened for reading, it faults. A GPU's driver lets an importer map what it holds as it likes;
 * there it is this library that maps for reading only, and a program that calls the driver itself
 * is not held to it. Tensors of at most 1 MiB share a chunk with others of the same user, group and
 * mode, and with nobody else's. A process sees the whole chunk.
 *
 * Lifetime. A tensor lives as long as somebody refers to it, and longer if it is kept or pinned. A
 * process counts once for each tensor and way (reading, writing) it has open, however often. Delete
 * takes the name at once; the memory goes when the last holder has let go, and handles say ESTALE.
 *
 * The daemon's death. What is mapped stays mapped and readable. Calls that ask the daemon fail with
 * EIO until it is back; the next call on the store or a tensor of it then offers what this process
 * holds, under the names that it knows, and handles go on. What could not be offered (legacy
 * tensors; what nobody held) is gone: ESTALE. A connection that breaks while the daemon lives is
 * made again in the same way, but counts as its process's death for the fences that it wrote.
 *
 * Order. Each tensor has a fence, a number that only grows: the producer signals, consumers wait.
 * When a process that had it open for writing dies, the fence is poisoned and waiters get
 * ECANCELED, until a producer that opened it since signals again.
 *
 * Threads: safe from many threads, calls of one store take turns at its socket. After fork() the
 * parent's handles go on, and the child's are for nothing but closing the store, which frees its
 * descriptors: calls that ask the daemon, and closing a tensor, are EINVAL there. */
#ifndef PAGEDLLM_TENSOR_STORE_H
#define PAGEDLLM_TENSOR_STORE_H

#include "device.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PLLM_STORE_RANK_MAX 8
#define PLLM_STORE_NAME_MAX 128 /* A-Z a-z 0-9 . _ - / : */

/* Element types. Append-only: the numbers pass between processes. */
typedef enum pllm_store_dtype {
    PLLM_STORE_F64 = 0,
    PLLM_STORE_F32 = 1,
    PLLM_STORE_F16 = 2,
    PLLM_STORE_BF16 = 3,
    PLLM_STORE_F8E4M3 = 4,
    PLLM_STORE_F8E5M2 = 5,
    PLLM_STORE_I64 = 6,
    PLLM_STORE_I32 = 7,
    PLLM_STORE_I16 = 8,
    PLLM_STORE_I8 = 9,
    PLLM_STORE_U8 = 10,
    PLLM_STORE_BOOL = 11,
    PLLM_STORE_DTYPES
} pllm_store_dtype;

typedef struct pllm_store pllm_store;               /* opaque: a connection */
typedef struct pllm_store_tensor pllm_store_tensor; /* opaque: a tensor this process has open */

typedef struct pllm_store_options {
    uint32_t struct_bytes; /* sizeof(pllm_store_options) */
    uint32_t timeout_ms;   /* of every question to the daemon; 0: 5,000. A call that finds it
                              back asks once more for each tensor that is open */
    const char *socket;    /* NULL: PAGEDLLM_SOCKET, else the user's own (see the README) */
    pllm_device *device;   /* where tensors are mapped, borrowed; the daemon must serve this very
                              one (by UUID). NULL: the host device, opened by the store */
} pllm_store_options;

/* options may be NULL. Ownership: borrows context (may be NULL); caller owns *store_out.
 * Errors: EIO (nobody listens: says how to start a daemon), EPERM (the daemon is another user's, or
 * refuses this one), ENOTFOUND (it does not serve that device), EUNSUPPORTED (another protocol),
 * EINVAL, ENOMEM, ETIMEDOUT, EDEVICE; then *store_out is NULL. */
PLLM_API int pllm_store_open(const pllm_context *context, const pllm_store_options *options,
                             pllm_store **store_out);
/* Gives back all that is open, whose handles are then invalid. No stream may still have a signal to
 * give. NULL is fine. */
PLLM_API void pllm_store_close(pllm_store *store);

/* ---- tensors ---- */
enum {
    PLLM_STORE_SEALED = 1, /* nobody writes any more; cannot be undone. Only in infos */
    PLLM_STORE_PINNED = 2, /* stays when its last reference goes, and is never spilled */
    PLLM_STORE_KEPT = 4,   /* stays when its last reference goes */
    PLLM_STORE_LEGACY = 8, /* plain memory with a CUDA IPC handle (one GPU, no spilling), for
                              programs that know no others */
};

typedef struct pllm_store_spec {
    uint32_t struct_bytes; /* sizeof(pllm_store_spec) */
    uint32_t dtype, rank;  /* rank 0: one element */
    uint32_t mode;         /* read and write for owner, group, others, as chmod counts; 0: 0600 */
    uint32_t flags;        /* PLLM_STORE_PINNED, KEPT, LEGACY */
    uint64_t shape[PLLM_STORE_RANK_MAX]; /* each at least 1 */
} pllm_store_spec;

/* A new tensor, all zeros, open for writing. The caller gives it back with close_tensor.
 * Errors: EINVAL, EEXIST, ELIMIT (a quota, or a table of the daemon), ENODEVMEM, EUNSUPPORTED
 * (legacy, where there is none), and those of asking: EIO, ETIMEDOUT, EDEVICE, ENOMEM, ELIMIT (no
 * descriptors are left in this process). After an error there is no such tensor, but for EIO and
 * ETIMEDOUT (see names). */
PLLM_API int pllm_store_create(pllm_store *store, const char *name, const pllm_store_spec *spec,
                               pllm_store_tensor **tensor_out);
/* writable 0: mapped for reading. A tensor that this process has open the same way already is given
 * again, without asking the daemon. Errors: ENOTFOUND, EPERM (mode; or sealed, and writable),
 * ENODEVMEM (it was spilled and there is no room), and those of asking. */
PLLM_API int pllm_store_open_tensor(pllm_store *store, const char *name, uint32_t writable,
                                    pllm_store_tensor **tensor_out);
/* By the text that stands in `ipc_handle` of the tensor's hash in Redis. Errors: as open_tensor;
 * EINVAL (no such text), ESTALE. */
PLLM_API int pllm_store_redeem(pllm_store *store, const char *token, uint32_t writable,
                               pllm_store_tensor **tensor_out);
/* Once for each create, open_tensor and redeem. Work on the tensor has ended, the caller sees to
 * that. Errors: EBUSY: a stream has still a signal of it to give, and it stays open. NULL is fine.
 */
PLLM_API int pllm_store_close_tensor(pllm_store_tensor *tensor);

typedef struct pllm_store_info {
    uint32_t struct_bytes; /* in: sizeof(pllm_store_info) */
    uint32_t dtype, rank, mode, flags;
    uint32_t uid, gid, owner_pid;
    uint32_t references, writers; /* processes that have it open; of them for writing */
    uint32_t importers;           /* processes that may still have it mapped */
    uint32_t spilled;             /* 1: its bytes are in host memory until it is opened */
    uint32_t poisoned;            /* 1: a producer died */
    uint32_t device;              /* the daemon's number of it */
    uint64_t shape[PLLM_STORE_RANK_MAX];
    uint64_t bytes, generation, fence;
    int64_t ctime_ns, mtime_ns; /* since 1970 */
    char name[PLLM_STORE_NAME_MAX + 1];
} pllm_store_info;

/* As it was when opened (counts, fence and name may have changed since). Errors: EINVAL. */
PLLM_API int pllm_store_tensor_info(const pllm_store_tensor *tensor, pllm_store_info *info);
/* Where it is on the device, contiguous; on the CPU, or NULL if the CPU cannot see it. */
PLLM_API uint64_t pllm_store_tensor_address(const pllm_store_tensor *tensor);
PLLM_API void *pllm_store_tensor_data(const pllm_store_tensor *tensor);
PLLM_API uint64_t pllm_store_tensor_bytes(const pllm_store_tensor *tensor);
/* OK; or ESTALE: deleted, or lost with a daemon. Its memory stays readable until it is closed. */
PLLM_API int pllm_store_tensor_valid(const pllm_store_tensor *tensor);

/* ---- order ---- */
/* Raises the fence to value, at once (stream NULL) or when all work submitted to the stream so far
 * has ended. Open for writing. A smaller value than the fence has is nothing. What a stream signals
 * while the daemon is away is told to the next one.
 * Errors: EPERM, EINVAL (UINT64_MAX), ESTALE, ENOMEM, ECANCELED (another producer died: open it for
 * writing anew), EIO, ETIMEDOUT. */
PLLM_API int pllm_store_signal(pllm_store_tensor *tensor, pllm_stream *stream, uint64_t value);
/* Waits until the fence is at least value. What the producer wrote before it signalled is then
 * there, for the CPU and for work submitted from now on. Only a call that finds the daemon back may
 * take longer, as above. Errors: ETIMEDOUT; ECANCELED (its producer died); ESTALE. */
PLLM_API int pllm_store_wait(pllm_store_tensor *tensor, uint64_t value, uint32_t timeout_ms);
PLLM_API int pllm_store_fence(const pllm_store_tensor *tensor, uint64_t *value_out); /* as wait */

/* ---- names ---- */
/* Errors of all: ENOTFOUND, EPERM, EINVAL, and those of asking. After EIO and ETIMEDOUT the daemon
 * may have done it all the same; what it then opened is given back when its answer comes. */
PLLM_API int pllm_store_delete(pllm_store *store, const char *name);
PLLM_API int pllm_store_rename(pllm_store *store, const char *name, const char *to); /* EEXIST */
/* EBUSY: others have it open for writing. */
PLLM_API int pllm_store_seal(pllm_store *store, const char *name);
PLLM_API int pllm_store_pin(pllm_store *store, const char *name, uint32_t on);
PLLM_API int pllm_store_stat(pllm_store *store, const char *name, pllm_store_info *info);
/* Calls visit for every tensor whose name begins with prefix (NULL: all), until it returns other
 * than 0; *visited_out (may be NULL) is how many. Tensors that come and go meanwhile may be missed
 * or seen. visit may not call the store. */
PLLM_API int pllm_store_list(pllm_store *store, const char *prefix,
                             int (*visit)(void *user, const pllm_store_info *info), void *user,
                             uint64_t *visited_out);

/* What happens to tensors whose names begin with prefix, from here on. */
enum {
    PLLM_STORE_EVENT_LOST = 1, /* events were dropped, or the daemon came back: look for yourself */
    PLLM_STORE_EVENT_CREATED = 2,
    PLLM_STORE_EVENT_DELETED = 4, /* by a call, or with its last reference */
    PLLM_STORE_EVENT_SEALED = 8,
    PLLM_STORE_EVENT_RENAMED = 16,
    PLLM_STORE_EVENT_SPILLED = 32,
    PLLM_STORE_EVENT_RESTORED = 64,
    PLLM_STORE_EVENT_POISONED = 128,
    PLLM_STORE_EVENT_PINNED = 256, /* or unpinned */
};
typedef struct pllm_store_event {
    uint32_t struct_bytes; /* in: sizeof(pllm_store_event) */
    uint32_t kinds;        /* one bit, or several that came together */
    uint64_t generation;
    char name[PLLM_STORE_NAME_MAX + 1], name_before[PLLM_STORE_NAME_MAX + 1];
} pllm_store_event;
/* One prefix a store; a second call replaces the first, NULL ends it. */
PLLM_API int pllm_store_watch(pllm_store *store, const char *prefix);
/* The next event. Errors: ETIMEDOUT, EINVAL (not watching), EIO. */
PLLM_API int pllm_store_event_next(pllm_store *store, uint32_t timeout_ms, pllm_store_event *event);

/* "f32"; "unknown" past the end. Static storage. 0 bytes: no such type. */
PLLM_API const char *pllm_store_dtype_name(uint32_t dtype);
PLLM_API uint32_t pllm_store_dtype_bytes(uint32_t dtype);

#ifdef __cplusplus
}
#endif
#endif
