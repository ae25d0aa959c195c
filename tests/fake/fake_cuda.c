/* fake_cuda.c - see the header. The forms of the calls are those that cuda_driver.h lists. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <unistd.h>
#include "device/cuda_driver.h"
#include "fake_cuda.h"

#define EXPORT __attribute__((visibility("default")))
#define GRANULARITY ((size_t)64 << 10)
#define TOTAL ((size_t)4 << 30)
#define MEMORY_MAX 4096
#define PINNED_MAX 1024
#define PLAIN_MAX 1024

static fake_cuda state = {.version = 13000, .device_count = 2};

/* Physical memory is a System V segment that is marked for removal at once: Linux attaches it by
 * its number as long as somebody still has it attached, in whatever process, and then it is gone.
 */
typedef struct memory {
    size_t bytes;
    void *anchor; /* what keeps it */
    int segment, references, imported;
} memory;
typedef struct plain { /* a plain allocation, or another process's that was opened */
    size_t bytes;
    char *start; /* NULL: no entry */
    int segment, opened;
} plain;
static plain plains[PLAIN_MAX];
static memory memories[MEMORY_MAX]; /* handle: index + 1 */
static struct {
    char *start;
    size_t bytes;
} pinned[PINNED_MAX]; /* registered memory */
static size_t pinned_bytes;
static uint32_t pinned_end; /* none at or past this was ever used */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static _Thread_local void *current; /* the thread's context */
static char context_mark;           /* its address is the primary context */

EXPORT fake_cuda *fake_cuda_state(void);
fake_cuda *fake_cuda_state(void)
{
    return &state;
}

static int step(const char *call)
{
    int dead = atomic_load(&state.dead);
    if (dead) return dead;
    if (!state.fail_code || (state.fail_call && strcmp(call, state.fail_call) != 0)) return 0;
    uint64_t number = atomic_fetch_add(&state.calls, 1);
    if (number < state.fail_at || number - state.fail_at >= state.fail_count) return 0;
    if (state.fail_code >= 700 && state.fail_code < 800) atomic_store(&state.dead, state.fail_code);
    return state.fail_code;
}

#define STEP(call)               \
    do {                         \
        int code_ = step(call);  \
        if (code_) return code_; \
    } while (0)
/* Most calls need a context in their thread. */
#define STEP_IN(call)                             \
    do {                                          \
        if (current != &context_mark) return 201; \
        STEP(call);                               \
    } while (0)

static void count(int64_t change)
{
    atomic_fetch_add(&state.live, change);
}

static uint64_t used_bytes(void)
{
    return atomic_load(&state.created_bytes) + atomic_load(&state.graphs) * state.graph_cost;
}

/* ---- the driver and its devices ---- */

static int fake_init(uint32_t flags)
{
    (void)flags;
    STEP("cuInit");
    return state.device_count ? CUDA_OK : CUDA_NO_DEVICE;
}
static int fake_error_name(int code, const char **name)
{
    *name = code == CUDA_ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS" : NULL;
    return *name ? CUDA_OK : CUDA_INVALID_VALUE;
}
static int fake_error_string(int code, const char **text)
{
    *text = code == CUDA_ILLEGAL_ADDRESS ? "an illegal memory access was encountered" : NULL;
    return *text ? CUDA_OK : CUDA_INVALID_VALUE;
}
static int fake_device_count(int *value)
{
    STEP("cuDeviceGetCount");
    *value = state.device_count;
    return CUDA_OK;
}
static int fake_device_get(int *device, int ordinal)
{
    STEP("cuDeviceGet");
    *device = ordinal;
    return CUDA_OK;
}
static int fake_device_name(char *name, int bytes, int device)
{
    STEP("cuDeviceGetName");
    snprintf(name, (size_t)bytes, "Fake GPU %d", device);
    return CUDA_OK;
}
static int fake_device_uuid(void *uuid, int device)
{
    STEP("cuDeviceGetUuid");
    memset(uuid, 0xa0 + device, 16);
    ((uint8_t *)uuid)[0] = 0xfa;
    return CUDA_OK;
}
static int fake_device_total(size_t *bytes, int device)
{
    (void)device;
    STEP("cuDeviceTotalMem");
    *bytes = TOTAL;
    return CUDA_OK;
}
static int fake_device_attribute(int *value, int attribute, int device)
{
    (void)device;
    STEP("cuDeviceGetAttribute");
    switch (attribute) {
    case CUDA_ATTRIBUTE_MAJOR:
        *value = 9;
        break;
    case CUDA_ATTRIBUTE_SM_COUNT:
        *value = 132;
        break;
    case CUDA_ATTRIBUTE_L2_BYTES:
        *value = 50 << 20;
        break;
    case CUDA_ATTRIBUTE_SHARED_PER_BLOCK_MAX:
        *value = 227 << 10;
        break;
    case CUDA_ATTRIBUTE_VIRTUAL_MEMORY:
        *value = !state.no_virtual_memory;
        break;
    case CUDA_ATTRIBUTE_FILE_HANDLES:
        *value = 1;
        break;
    default:
        *value = 0;
    }
    return CUDA_OK;
}
static int fake_context_retain(void **context, int device)
{
    (void)device;
    STEP("cuDevicePrimaryCtxRetain");
    *context = &context_mark;
    count(1);
    return CUDA_OK;
}
static int fake_context_release(int device)
{
    (void)device;
    count(-1);
    return CUDA_OK;
}
static int fake_context_set_current(void *context)
{
    if (context && context != &context_mark) return 201;
    STEP("cuCtxSetCurrent");
    current = context;
    return CUDA_OK;
}
static int fake_memory_info(size_t *free_bytes, size_t *total_bytes)
{
    STEP_IN("cuMemGetInfo");
    *total_bytes = TOTAL;
    *free_bytes = TOTAL - used_bytes();
    return CUDA_OK;
}
static int fake_granularity(size_t *bytes, const cuda_allocation *allocation, int option)
{
    STEP("cuMemGetAllocationGranularity");
    if (option != CUDA_GRANULARITY_MINIMUM || allocation->location.type != CUDA_LOCATION_DEVICE)
        return CUDA_INVALID_VALUE;
    *bytes = GRANULARITY;
    return CUDA_OK;
}

/* ---- memory ---- */

static int fake_address_reserve(uint64_t *va, size_t bytes, size_t alignment, uint64_t wanted,
                                unsigned long long flags)
{
    STEP("cuMemAddressReserve");
    if (bytes == 0 || bytes % GRANULARITY || alignment || wanted || flags)
        return CUDA_INVALID_VALUE;
    size_t wide = bytes + GRANULARITY;
    char *start = mmap(NULL, wide, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) return CUDA_OUT_OF_MEMORY;
    size_t head = (GRANULARITY - (uintptr_t)start % GRANULARITY) % GRANULARITY;
    if (head) munmap(start, head);
    if (wide - head > bytes) munmap(start + head + bytes, wide - head - bytes);
    *va = (uint64_t)(uintptr_t)(start + head);
    count(1);
    return CUDA_OK;
}
static int fake_address_free(uint64_t va, size_t bytes)
{
    munmap((void *)(uintptr_t)va, bytes);
    count(-1);
    STEP("cuMemAddressFree");
    return CUDA_OK;
}
/* Attaches a new segment with what others left in it; all of it would be slow. */
static void *segment_open(int *segment, size_t bytes, void *at)
{
    *segment = shmget(IPC_PRIVATE, bytes, IPC_CREAT | 0600);
    if (*segment < 0) abort();
    char *start = shmat(*segment, at, 0);
    if (start == (void *)-1 || shmctl(*segment, IPC_RMID, NULL) != 0) abort();
    for (size_t offset = 0; offset < bytes; offset += GRANULARITY)
        memset(start + offset, 0xcd, 4096);
    return start;
}
static unsigned long long memory_enter(const memory *m)
{
    pthread_mutex_lock(&lock);
    uint32_t i = 0;
    while (i < MEMORY_MAX && memories[i].references) i++;
    if (i == MEMORY_MAX) abort();
    memories[i] = *m;
    pthread_mutex_unlock(&lock);
    return i + 1;
}
static int fake_memory_create(unsigned long long *handle, size_t bytes,
                              const cuda_allocation *allocation, unsigned long long flags)
{
    STEP_IN("cuMemCreate");
    if (bytes == 0 || bytes % GRANULARITY || flags || allocation->type != CUDA_ALLOCATION_PINNED)
        return CUDA_INVALID_VALUE;
    if (state.no_export && allocation->handle_types) return CUDA_NOT_SUPPORTED;
    if (atomic_load(&state.created_bytes) + bytes > TOTAL) return CUDA_OUT_OF_MEMORY;
    memory m = {.bytes = bytes, .references = 1};
    m.anchor = segment_open(&m.segment, bytes, NULL);
    *handle = memory_enter(&m);
    count(1);
    atomic_fetch_add(&state.created_bytes, bytes);
    return CUDA_OK;
}
static int fake_memory_release(unsigned long long handle)
{
    pthread_mutex_lock(&lock);
    memory *m = &memories[handle - 1];
    if (--m->references == 0) {
        shmdt(m->anchor);
        if (!m->imported) atomic_fetch_sub(&state.created_bytes, m->bytes);
    }
    pthread_mutex_unlock(&lock);
    count(-1);
    STEP("cuMemRelease");
    return CUDA_OK;
}
static int fake_memory_map(uint64_t va, size_t bytes, size_t offset, unsigned long long handle,
                           unsigned long long flags)
{
    STEP_IN("cuMemMap");
    if (va % GRANULARITY || bytes % GRANULARITY || offset || flags) return CUDA_INVALID_VALUE;
    pthread_mutex_lock(&lock);
    memory m = memories[handle - 1];
    pthread_mutex_unlock(&lock);
    if (bytes != m.bytes) return CUDA_INVALID_VALUE;
    void *at = (void *)(uintptr_t)va;
    if (shmat(m.segment, at, SHM_REMAP) != at) return CUDA_OUT_OF_MEMORY;
    if (mprotect(at, bytes, PROT_NONE) != 0) abort(); /* until access is set */
    count(1);
    return CUDA_OK;
}
static int fake_memory_unmap(uint64_t va, size_t bytes)
{
    if (mmap((void *)(uintptr_t)va, bytes, PROT_NONE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
        abort();
    count(-1);
    STEP("cuMemUnmap");
    return CUDA_OK;
}
static int fake_memory_access(uint64_t va, size_t bytes, const cuda_access *access, size_t number)
{
    STEP_IN("cuMemSetAccess");
    if (number != 1 || (access->flags != CUDA_ACCESS_READ_WRITE &&
                        (access->flags != CUDA_ACCESS_READ || state.no_read_only)))
        return CUDA_INVALID_VALUE;
    atomic_fetch_add(&state.accesses, 1);
    int protection = access->flags == CUDA_ACCESS_READ ? PROT_READ : PROT_READ | PROT_WRITE;
    return mprotect((void *)(uintptr_t)va, bytes, protection) == 0 ? CUDA_OK : CUDA_INVALID_VALUE;
}
/* A descriptor of no file: its value is the segment, so that another process finds it too. A mark
 * of ours tells it from others' descriptors of that kind. */
#define EXPORT_MARK ((uint64_t)0xfade << 48)
static int fake_memory_export(void *fd_out, unsigned long long handle, int type,
                              unsigned long long flags)
{
    STEP_IN("cuMemExportToShareableHandle");
    if (type != CUDA_HANDLE_FILE || flags) return CUDA_INVALID_VALUE;
    pthread_mutex_lock(&lock);
    const int imported = memories[handle - 1].imported != 0; /* only its maker exports memory */
    uint64_t value = EXPORT_MARK | (uint32_t)memories[handle - 1].segment;
    pthread_mutex_unlock(&lock);
    if (imported) return CUDA_INVALID_VALUE;
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0) return CUDA_OUT_OF_MEMORY;
    if (write(fd, &value, sizeof value) != sizeof value) abort();
    memcpy(fd_out, &fd, sizeof fd);
    return CUDA_OK;
}
/* Takes the value and puts it back; another process may be doing the same. */
static int export_value(int fd, uint64_t *value)
{
    for (int tries = 0; tries < 1000; tries++) {
        if (read(fd, value, sizeof *value) == sizeof *value) {
            if (write(fd, value, sizeof *value) != sizeof *value) abort();
            return *value >> 32 == EXPORT_MARK >> 32;
        }
        if (errno != EAGAIN) return 0;
        usleep(100);
    }
    return 0;
}
static int fake_memory_import(unsigned long long *handle, void *fd_value, int type)
{
    uint64_t value;
    int fd = (int)(intptr_t)fd_value;
    STEP_IN("cuMemImportFromShareableHandle");
    if (type != CUDA_HANDLE_FILE || !export_value(fd, &value)) return CUDA_INVALID_VALUE;
    int segment = (int)(uint32_t)value;
    pthread_mutex_lock(&lock);
    uint32_t i = 0;
    while (i < MEMORY_MAX && !(memories[i].references && memories[i].segment == segment)) i++;
    if (i < MEMORY_MAX) memories[i].references++;
    pthread_mutex_unlock(&lock);
    *handle = i + 1;
    if (i == MEMORY_MAX) { /* of another process */
        struct shmid_ds info;
        memory m = {.segment = segment, .references = 1, .imported = 1};
        m.anchor = shmat(segment, NULL, 0);
        if (m.anchor == (void *)-1 || shmctl(segment, IPC_STAT, &info) != 0)
            return CUDA_INVALID_VALUE;
        m.bytes = info.shm_segsz;
        *handle = memory_enter(&m);
    }
    count(1);
    return CUDA_OK;
}

/* ---- plain allocations ---- */

static int plain_enter(plain p, uint64_t *va)
{
    uint32_t i = 0;
    pthread_mutex_lock(&lock);
    while (i < PLAIN_MAX && plains[i].start) i++;
    if (i == PLAIN_MAX) abort();
    plains[i] = p;
    pthread_mutex_unlock(&lock);
    *va = (uint64_t)(uintptr_t)p.start;
    count(1);
    return CUDA_OK;
}
/* Under the lock. */
static plain *plain_of(uint64_t va)
{
    for (uint32_t i = 0; i < PLAIN_MAX; i++)
        if (plains[i].start && va - (uint64_t)(uintptr_t)plains[i].start < plains[i].bytes)
            return &plains[i];
    return NULL;
}
static int plain_leave(uint64_t va, int opened)
{
    pthread_mutex_lock(&lock);
    plain *p = plain_of(va);
    if (!p || (uint64_t)(uintptr_t)p->start != va || p->opened != opened) abort();
    shmdt(p->start);
    if (!opened) atomic_fetch_sub(&state.created_bytes, p->bytes);
    p->start = NULL;
    pthread_mutex_unlock(&lock);
    count(-1);
    return CUDA_OK;
}
static int fake_plain_alloc(uint64_t *va, size_t bytes)
{
    STEP_IN("cuMemAlloc");
    if (bytes == 0) return CUDA_INVALID_VALUE;
    if (atomic_load(&state.created_bytes) + bytes > TOTAL) return CUDA_OUT_OF_MEMORY;
    plain p = {.bytes = bytes};
    p.start = segment_open(&p.segment, bytes, NULL);
    atomic_fetch_add(&state.created_bytes, bytes);
    return plain_enter(p, va);
}
static int fake_plain_free(uint64_t va)
{
    plain_leave(va, 0);
    STEP_IN("cuMemFree");
    return CUDA_OK;
}
/* The driver's pool: every block its own allocation, which is returned at once. */
static int fake_async_alloc(uint64_t *va, size_t bytes, void *stream)
{
    (void)stream;
    return fake_plain_alloc(va, bytes);
}
static int fake_async_free(uint64_t va, void *stream)
{
    (void)stream;
    return fake_plain_free(va);
}
static int fake_async_pool(void **pool, int device)
{
    STEP_IN("cuDeviceGetDefaultMemPool");
    *pool = &state;
    return device == 0 ? CUDA_OK : CUDA_INVALID_VALUE;
}
static int fake_async_get(void *pool, int attribute, void *value)
{
    STEP_IN("cuMemPoolGetAttribute");
    uint64_t bytes = atomic_load(&state.created_bytes);
    memcpy(value, &bytes, sizeof bytes);
    return pool == &state && attribute >= CUDA_POOL_RESERVED ? CUDA_OK : CUDA_INVALID_VALUE;
}
static int fake_async_set(void *pool, int attribute, void *value)
{
    STEP_IN("cuMemPoolSetAttribute");
    (void)value;
    return pool == &state && attribute >= CUDA_POOL_RELEASE_THRESHOLD ? CUDA_OK
                                                                      : CUDA_INVALID_VALUE;
}
static int fake_async_trim(void *pool, size_t keep_bytes)
{
    STEP_IN("cuMemPoolTrimTo");
    (void)keep_bytes;
    return pool == &state ? CUDA_OK : CUDA_INVALID_VALUE;
}
static int fake_plain_range(uint64_t *base, size_t *bytes, uint64_t va)
{
    STEP_IN("cuMemGetAddressRange");
    pthread_mutex_lock(&lock);
    plain *p = plain_of(va);
    *base = p ? (uint64_t)(uintptr_t)p->start : 0;
    *bytes = p ? p->bytes : 0;
    pthread_mutex_unlock(&lock);
    return p ? CUDA_OK : CUDA_NOT_FOUND;
}
typedef struct ticket { /* what a handle says, in its 64 bytes */
    uint64_t mark;
    int segment;
    pid_t process;
} ticket;
static int fake_ipc_get(cuda_ipc_handle *handle, uint64_t va)
{
    STEP_IN("cuIpcGetMemHandle");
    memset(handle, 0, sizeof *handle);
    pthread_mutex_lock(&lock);
    plain *p = plain_of(va);
    ticket t = {EXPORT_MARK, p ? p->segment : 0, getpid()};
    int opened = p && p->opened;
    pthread_mutex_unlock(&lock);
    if (!p || opened) return CUDA_INVALID_VALUE;
    memcpy(handle, &t, sizeof t);
    return CUDA_OK;
}
static int fake_ipc_open(uint64_t *va, cuda_ipc_handle handle, uint32_t flags)
{
    ticket t;
    struct shmid_ds info;
    STEP_IN("cuIpcOpenMemHandle");
    memcpy(&t, &handle, sizeof t);
    if (t.mark != EXPORT_MARK || flags != CUDA_IPC_LAZY_PEER) return CUDA_INVALID_VALUE;
    if (t.process == getpid()) return 201; /* as the driver: only other processes open it */
    pthread_mutex_lock(&lock);
    for (uint32_t i = 0; i < PLAIN_MAX; i++)
        if (plains[i].start && plains[i].opened && plains[i].segment == t.segment) {
            pthread_mutex_unlock(&lock);
            return 208; /* CUDA_ERROR_ALREADY_MAPPED: others count */
        }
    pthread_mutex_unlock(&lock);
    plain p = {.segment = t.segment, .opened = 1};
    p.start = shmat(t.segment, NULL, 0);
    if (p.start == (void *)-1 || shmctl(t.segment, IPC_STAT, &info) != 0) return CUDA_INVALID_VALUE;
    p.bytes = info.shm_segsz;
    return plain_enter(p, va);
}
static int fake_ipc_close(uint64_t va)
{
    plain_leave(va, 1);
    STEP_IN("cuIpcCloseMemHandle");
    return CUDA_OK;
}

/* ---- host memory ---- */

static int fake_host_register(void *pointer, size_t bytes, uint32_t flags)
{
    STEP_IN("cuMemHostRegister");
    if (bytes % 4096 || flags != (CUDA_REGISTER_PORTABLE | CUDA_REGISTER_DEVICEMAP))
        return CUDA_INVALID_VALUE;
    if (state.no_pin) return CUDA_OUT_OF_MEMORY;
    if (state.pin_once_max && bytes > state.pin_once_max) return CUDA_OUT_OF_MEMORY;
    pthread_mutex_lock(&lock);
    int full = state.pin_max && pinned_bytes + bytes > state.pin_max;
    uint32_t i = 0;
    while (i < PINNED_MAX && pinned[i].start) i++;
    if (i == PINNED_MAX) abort();
    if (!full) {
        if (i >= pinned_end) pinned_end = i + 1;
        pinned[i].start = pointer;
        pinned[i].bytes = bytes;
        pinned_bytes += bytes;
    }
    pthread_mutex_unlock(&lock);
    if (full) return CUDA_OUT_OF_MEMORY;
    count(1);
    return CUDA_OK;
}
static int fake_host_unregister(void *pointer)
{
    pthread_mutex_lock(&lock);
    uint32_t i = 0;
    while (i < PINNED_MAX && pinned[i].start != pointer) i++;
    if (i < PINNED_MAX) {
        pinned_bytes -= pinned[i].bytes;
        pinned[i].start = NULL;
    }
    pthread_mutex_unlock(&lock);
    if (i == PINNED_MAX) return CUDA_NOT_REGISTERED;
    count(-1);
    STEP_IN("cuMemHostUnregister");
    return CUDA_OK;
}
static int fake_host_va(uint64_t *va, void *pointer, uint32_t flags)
{
    (void)flags;
    STEP_IN("cuMemHostGetDevicePointer");
    int found = 0;
    pthread_mutex_lock(&lock);
    for (uint32_t i = 0; i < pinned_end && !found; i++) {
        uintptr_t start = (uintptr_t)pinned[i].start;
        found = start && (uintptr_t)pointer - start < pinned[i].bytes;
    }
    pthread_mutex_unlock(&lock);
    if (!found) return CUDA_INVALID_VALUE;
    *va = (uint64_t)(uintptr_t)pointer;
    return CUDA_OK;
}

/* ---- streams, events and movement ----
 *
 * A stream is a list of operations. Submitting runs the whole list, or leaves it where it is when
 * work is deferred. An event counts its records and how many of them a stream has reached; who
 * waits for it, waits for the count at that time. One lock for all of it. */

typedef struct event event;
typedef struct operation {
    struct operation *next;
    enum { COPY, FILL, CALL, RECORD, WAIT } kind;
    uint64_t to, from;
    size_t bytes;
    unsigned char value;
    event *event;
    uint64_t generation;
    void (*call)(void *user);
    void *user;
} operation;

typedef struct stream {
    struct stream *next; /* of all streams */
    operation *first, **end;
    int capturing;
} stream;

struct event {
    uint64_t recorded, done;
    stream *stream; /* of the last record */
    int references; /* the handle's and the operations' */
};

static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER; /* streams, events, operations */
static stream *streams;

static void event_drop(event *e)
{
    if (--e->references == 0) free(e);
}

/* Most fills are zeros over whole new segments, most of which nobody then touches: the kernel takes
 * their pages back, which reads as zeros and costs no page. ThreadSanitizer must see a write. */
static void fill(uint64_t to, uint8_t value, uint64_t bytes)
{
    void *start = (void *)(uintptr_t)to;
#ifndef __SANITIZE_THREAD__
    if (value == 0 && to % 4096 == 0 && bytes % 4096 == 0 && bytes >= GRANULARITY / 2 &&
        madvise(start, bytes, MADV_REMOVE) == 0)
        return;
#endif
    memset(start, value, bytes);
}

/* Runs the first operation; 0 if there is none or it has to wait. */
static int run_one(stream *s)
{
    operation *op = s->first;
    if (!op || (op->kind == WAIT && op->event->done < op->generation)) return 0;
    if (op->kind == COPY)
        memcpy((void *)(uintptr_t)op->to, (const void *)(uintptr_t)op->from, op->bytes);
    else if (op->kind == FILL)
        fill(op->to, op->value, op->bytes);
    else if (op->kind == CALL)
        op->call(op->user); /* under the lock: it may not call the driver */
    else if (op->kind == RECORD && op->event->done < op->generation)
        op->event->done = op->generation;
    if (op->event) event_drop(op->event);
    s->first = op->next;
    if (!s->first) s->end = &s->first;
    free(op);
    return 1;
}

/* Runs the stream to its end, and of the others only what it waits for. */
static void run_all(stream *s)
{
    while (s->first) {
        if (run_one(s)) continue;
        stream *other = streams;
        while (other && (other == s || !run_one(other))) other = other->next;
        if (!other) abort(); /* a deadlock of events */
    }
}

static void submit(stream *s, operation op)
{
    if (s->capturing) return; /* noted, and not run */
    operation *copy = malloc(sizeof *copy);
    if (!copy) abort();
    *copy = op;
    copy->next = NULL;
    pthread_mutex_lock(&order);
    if (op.event) {
        op.event->references++;
        if (op.kind == RECORD) {
            copy->generation = ++op.event->recorded;
            op.event->stream = s;
        } else {
            copy->generation = op.event->recorded;
        }
    }
    *s->end = copy;
    s->end = &copy->next;
    if (!state.deferred) run_all(s);
    pthread_mutex_unlock(&order);
}

static int fake_stream_create(void **out, uint32_t flags)
{
    STEP_IN("cuStreamCreate");
    if (flags != CUDA_STREAM_NON_BLOCKING) return CUDA_INVALID_VALUE;
    stream *s = calloc(1, sizeof *s);
    if (!s) abort();
    s->end = &s->first;
    pthread_mutex_lock(&order);
    s->next = streams;
    streams = s;
    pthread_mutex_unlock(&order);
    count(1);
    *out = s;
    return CUDA_OK;
}
static int fake_stream_destroy(void *handle)
{
    stream *s = handle, **link = &streams;
    pthread_mutex_lock(&order);
    run_all(s);
    while (*link != s) link = &(*link)->next;
    *link = s->next;
    pthread_mutex_unlock(&order);
    free(s);
    count(-1);
    STEP_IN("cuStreamDestroy");
    return CUDA_OK;
}
static int fake_stream_sync(void *handle)
{
    STEP_IN("cuStreamSynchronize");
    pthread_mutex_lock(&order);
    run_all(handle);
    pthread_mutex_unlock(&order);
    atomic_fetch_add(&state.syncs, 1);
    return CUDA_OK;
}
static int fake_stream_wait(void *handle, void *any, uint32_t flags)
{
    STEP_IN("cuStreamWaitEvent");
    if (!handle || !any || flags) return CUDA_INVALID_VALUE;
    submit(handle, (operation){.kind = WAIT, .event = any});
    return CUDA_OK;
}
static int fake_stream_call(void *handle, void (*call)(void *user), void *user)
{
    STEP_IN("cuLaunchHostFunc");
    if (!handle || !call) return CUDA_INVALID_VALUE;
    submit(handle, (operation){.kind = CALL, .call = call, .user = user});
    return CUDA_OK;
}
static int fake_event_create(void **out, uint32_t flags)
{
    STEP_IN("cuEventCreate");
    if (flags != CUDA_EVENT_DISABLE_TIMING) return CUDA_INVALID_VALUE;
    event *e = calloc(1, sizeof *e);
    if (!e) abort();
    e->references = 1;
    count(1);
    *out = e;
    return CUDA_OK;
}
static int fake_event_destroy(void *any)
{
    pthread_mutex_lock(&order);
    event_drop(any);
    pthread_mutex_unlock(&order);
    count(-1);
    STEP_IN("cuEventDestroy");
    return CUDA_OK;
}
static int fake_event_record(void *any, void *handle)
{
    STEP_IN("cuEventRecord");
    if (!handle || !any) return CUDA_INVALID_VALUE;
    submit(handle, (operation){.kind = RECORD, .event = any});
    return CUDA_OK;
}
static int fake_event_query(void *any)
{
    event *e = any;
    STEP_IN("cuEventQuery");
    pthread_mutex_lock(&order);
    int done = e->done >= e->recorded;
    for (stream *s = done ? NULL : streams; s; s = s->next) run_one(s); /* time passes */
    pthread_mutex_unlock(&order);
    return done ? CUDA_OK : CUDA_NOT_READY;
}

/* Host memory of a copy is in one registration, or in none. */
static int is_one_piece(uint64_t address, size_t bytes)
{
    int good = 1;
    pthread_mutex_lock(&lock);
    for (uint32_t i = 0; i < pinned_end; i++) {
        uint64_t start = (uint64_t)(uintptr_t)pinned[i].start, end = start + pinned[i].bytes;
        if (!start || address >= end || address + bytes <= start) continue;
        good = address >= start && address + bytes <= end;
    }
    pthread_mutex_unlock(&lock);
    return good;
}
static int move(void *handle, uint64_t to, uint64_t from, size_t bytes)
{
    submit(handle, (operation){.kind = COPY, .to = to, .from = from, .bytes = bytes});
    return CUDA_OK;
}
static int fake_copy_in(uint64_t to, const void *from, size_t bytes, void *handle)
{
    STEP_IN("cuMemcpyHtoDAsync");
    if (!is_one_piece((uint64_t)(uintptr_t)from, bytes)) return CUDA_INVALID_VALUE;
    return move(handle, to, (uint64_t)(uintptr_t)from, bytes);
}
static int fake_copy_out(void *to, uint64_t from, size_t bytes, void *handle)
{
    STEP_IN("cuMemcpyDtoHAsync");
    if (!is_one_piece((uint64_t)(uintptr_t)to, bytes)) return CUDA_INVALID_VALUE;
    return move(handle, (uint64_t)(uintptr_t)to, from, bytes);
}
static int fake_copy_within(uint64_t to, uint64_t from, size_t bytes, void *handle)
{
    STEP_IN("cuMemcpyDtoDAsync");
    return move(handle, to, from, bytes);
}
static int fake_copy_batch(uint64_t *to, uint64_t *from, size_t *bytes, size_t number,
                           cuda_copy_attributes *attributes, size_t *first, size_t attribute_count,
                           size_t *failed, void *handle)
{
    (void)failed;
    STEP_IN("cuMemcpyBatchAsync");
    if (attribute_count != 1 || first[0] != 0 ||
        attributes->source_order != CUDA_SOURCE_ORDER_STREAM || ((stream *)handle)->capturing)
        return CUDA_INVALID_VALUE;
    for (size_t i = 0; i < number; i++)
        if (!is_one_piece(to[i], bytes[i]) || !is_one_piece(from[i], bytes[i]))
            return CUDA_INVALID_VALUE;
    for (size_t i = 0; i < number; i++) move(handle, to[i], from[i], bytes[i]);
    atomic_fetch_add(&state.batches, 1);
    return CUDA_OK;
}
static int fake_fill(uint64_t va, unsigned char value, size_t bytes, void *handle)
{
    STEP_IN("cuMemsetD8Async");
    submit(handle, (operation){.kind = FILL, .to = va, .value = value, .bytes = bytes});
    return CUDA_OK;
}

/* ---- kernels: noted, not run ---- */

#define KERNEL_MAX 512
static char kernel_names[KERNEL_MAX][64];

static int thing_open(void **out)
{
    *out = malloc(1);
    if (!*out) abort();
    count(1);
    return CUDA_OK;
}
static int thing_close(void *any)
{
    free(any);
    count(-1);
    return CUDA_OK;
}

static int fake_module_load(void **module, const void *image)
{
    STEP_IN("cuModuleLoadData");
    return image ? thing_open(module) : CUDA_INVALID_IMAGE;
}
static int fake_module_unload(void *module)
{
    thing_close(module);
    STEP_IN("cuModuleUnload");
    return CUDA_OK;
}
static int fake_module_function(void **function, void *module, const char *name)
{
    STEP_IN("cuModuleGetFunction");
    if (strcmp(name, "missing") == 0) return CUDA_NOT_FOUND;
    (void)module;
    pthread_mutex_lock(&lock);
    uint32_t i = 0;
    while (i < KERNEL_MAX && kernel_names[i][0] && strcmp(kernel_names[i], name) != 0) i++;
    if (i == KERNEL_MAX) abort();
    snprintf(kernel_names[i], sizeof kernel_names[i], "%s", name);
    pthread_mutex_unlock(&lock);
    *function = kernel_names[i];
    return CUDA_OK;
}
static int fake_function_set(void *function, int attribute, int value)
{
    (void)function;
    STEP_IN("cuFuncSetAttribute");
    return attribute == CUDA_FUNCTION_DYNAMIC_SHARED_MAX && value > 48 << 10 ? CUDA_OK
                                                                             : CUDA_INVALID_VALUE;
}
static int fake_cluster_count(int *count, void *function, const cuda_launch *launch)
{
    STEP_IN("cuOccupancyMaxActiveClusters");
    if (!function || launch->attribute_count != 1) return CUDA_INVALID_VALUE;
    *count = 16;
    return CUDA_OK;
}
/* What was launched, for PLLM_TEST_LAUNCHES. */
static struct {
    _Atomic uint64_t count, threads;
} kernel_launches[KERNEL_MAX];

static void note_launch(const cuda_launch *launch, const void *function)
{
    size_t i = (size_t)((const char *)function - kernel_names[0]) / sizeof kernel_names[0];
    uint64_t blocks = (uint64_t)launch->grid_x * launch->grid_y * launch->grid_z;
    atomic_fetch_add(&kernel_launches[i].count, 1);
    atomic_fetch_add(&kernel_launches[i].threads, blocks * launch->block_x);
}

__attribute__((destructor)) static void tell_launches(void)
{
    const char *path = getenv("PLLM_TEST_LAUNCHES");
    FILE *file = path && *path ? fopen(path, "a") : NULL;
    if (!file) return;
    for (size_t i = 0; i < KERNEL_MAX && kernel_names[i][0]; i++)
        fprintf(file, "%s %llu %llu\n", kernel_names[i],
                (unsigned long long)atomic_load(&kernel_launches[i].count),
                (unsigned long long)atomic_load(&kernel_launches[i].threads));
    fclose(file);
}

static int fake_launch(const cuda_launch *launch, void *function, void **arguments, void **extra)
{
    STEP_IN("cuLaunchKernelEx");
    if (!launch->stream || !function || !arguments || extra) return CUDA_INVALID_VALUE;
    atomic_fetch_add(&state.launches, 1);
    note_launch(launch, function);
    if (state.kernel && !((stream *)launch->stream)->capturing)
        state.kernel(function, launch->grid_x, launch->grid_y, arguments);
    return CUDA_OK;
}
static int fake_capture_begin(void *handle, int mode)
{
    STEP_IN("cuStreamBeginCapture");
    if (mode != CUDA_CAPTURE_RELAXED || ((stream *)handle)->capturing) return CUDA_INVALID_VALUE;
    ((stream *)handle)->capturing = 1;
    return CUDA_OK;
}
static int fake_capture_end(void *handle, void **graph)
{
    ((stream *)handle)->capturing = 0;
    STEP_IN("cuStreamEndCapture");
    return thing_open(graph);
}
static int fake_capture_status(void *handle, int *status)
{
    STEP_IN("cuStreamIsCapturing");
    *status = ((stream *)handle)->capturing;
    return CUDA_OK;
}
static int fake_graph_make(void **executable, void *graph, unsigned long long flags)
{
    STEP_IN("cuGraphInstantiateWithFlags");
    if (!graph || flags) return CUDA_INVALID_VALUE;
    atomic_fetch_add(&state.graphs, 1);
    atomic_fetch_add(&state.graphs_made, 1);
    return thing_open(executable);
}
static int fake_graph_upload(void *executable, void *handle)
{
    STEP_IN("cuGraphUpload");
    return executable && handle ? CUDA_OK : CUDA_INVALID_VALUE;
}
static int fake_graph_launch(void *executable, void *handle)
{
    STEP_IN("cuGraphLaunch");
    return executable && handle ? CUDA_OK : CUDA_INVALID_VALUE;
}
static int fake_graph_destroy(void *graph)
{
    thing_close(graph);
    STEP_IN("cuGraphDestroy");
    return CUDA_OK;
}
static int fake_graph_close(void *executable)
{
    thing_close(executable);
    atomic_fetch_sub(&state.graphs, 1);
    STEP_IN("cuGraphExecDestroy");
    return CUDA_OK;
}
static int fake_tensor_map(void *map, int type, uint32_t rank, void *base, const uint64_t *sizes,
                           const uint64_t *strides, const uint32_t *box, const uint32_t *steps,
                           int interleave, int swizzle, int promotion, int fill)
{
    (void)type, (void)base, (void)swizzle, (void)promotion, (void)interleave, (void)fill;
    STEP_IN("cuTensorMapEncodeTiled");
    if (rank != 2 || !sizes[0] || !strides[0] || !box[0] || steps[0] != 1)
        return CUDA_INVALID_VALUE;
    memset(map, 1, 128);
    return CUDA_OK;
}

/* ---- how it is found ---- */

/* Typed as the device's own table has them: a form that differs would not compile. */
static const cuda_driver table = {
#define X(field, name, form, needed, arguments) .field = fake_##field,
    CUDA_DRIVER_CALLS(X)
#undef X
};

EXPORT int cuDriverGetVersion(int *version);
int cuDriverGetVersion(int *version)
{
    *version = state.version;
    return CUDA_OK;
}

EXPORT int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags,
                               int *status);
int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *status)
{
    (void)flags, (void)status;
    *function = NULL;
    if (version > state.version || (state.missing && strcmp(name, state.missing) == 0))
        return CUDA_NOT_FOUND;
#define X(field, call, form, needed, arguments)     \
    if (strcmp(name, call) == 0 && version >= form) \
        memcpy(function, &table.field, sizeof *function);
    CUDA_DRIVER_CALLS(X)
#undef X
    return *function ? CUDA_OK : CUDA_NOT_FOUND;
}

/* The same library serves as NVML. */
EXPORT int nvmlInit_v2(void);
int nvmlInit_v2(void)
{
    if (state.nvml_broken) return 1;
    count(1);
    return 0;
}
EXPORT int nvmlShutdown(void);
int nvmlShutdown(void)
{
    count(-1);
    return 0;
}
EXPORT int nvmlDeviceGetHandleByUUID(const char *uuid, void **device);
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device)
{
    *device = &context_mark;
    return strncmp(uuid, "GPU-fa", 6) == 0 ? 0 : 1;
}
EXPORT int nvmlDeviceGetMemoryInfo(void *device, void *total_free_used);
int nvmlDeviceGetMemoryInfo(void *device, void *total_free_used)
{
    unsigned long long used = (10 << 20) + used_bytes();
    const unsigned long long figures[3] = {TOTAL, TOTAL - used, used};
    if (device != &context_mark) return 1;
    memcpy(total_free_used, figures, sizeof figures);
    return 0;
}
EXPORT int nvmlSystemGetDriverVersion(char *text, uint32_t bytes);
int nvmlSystemGetDriverVersion(char *text, uint32_t bytes)
{
    snprintf(text, bytes, "580.00");
    return 0;
}
