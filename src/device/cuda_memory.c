/* cuda_memory.c - reservations, chunks and their mappings, and pinned host memory, on CUDA.
 *
 *   reservation   cuMemAddressReserve                [ none | chunk A | none | chunk B ... ]
 *   chunk         cuMemCreate: a handle that is kept; mapping and unmapping it costs no allocation
 *   host memory   mmap + huge pages + touched by many threads + cuMemHostRegister
 *
 * New chunks must read as zeros, and the driver does not promise that: a chunk is *fresh* until it
 * has been zeroed, which its first mapping does, through a stream of the device's own, before map
 * returns. Kept chunks pay nothing.
 *
 * The lock is held for the bookkeeping only, not over driver calls: map takes its granules first
 * and gives them back if the driver refuses. Registering what has been touched as huge pages pins a
 * GiB in 18 ms, where cuMemHostAlloc takes 330. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/threads.h"
#include "device/arena.h"
#include "device/cuda_internal.h"

#define TOUCH_BYTES ((uint64_t)2 << 20) /* one task of touching: a huge page */
#define TEAM_BYTES ((uint64_t)64 << 20) /* from here on threads pay */
#define TEAM_MAX 16u
#define PART_BYTES ((uint64_t)16 << 20) /* pinned at a time where a whole is refused */

typedef struct cuda_chunk {
    uint64_t bytes;
    unsigned long long memory; /* the driver's handle */
    uint32_t map_count;        /* under the device's lock */
    uint32_t imported, fresh, read_only;
    int fd; /* of an imported one: the driver exports only what it created; else 0 */
} cuda_chunk;

cuda_allocation cuda_allocation_of(const cuda_device *cuda)
{
    return (cuda_allocation){
        .type = CUDA_ALLOCATION_PINNED,
        .handle_types = atomic_load(&cuda->exportable) ? CUDA_HANDLE_FILE : 0,
        .location = {CUDA_LOCATION_DEVICE, cuda->ordinal},
    };
}

int cuda_reserve(pllm_device *device, uint64_t bytes, pllm_va *va_out)
{
    cuda_device *cuda = cuda_of(device);
    *va_out = 0;
    int status = pllm_ranges_check_bytes(&cuda->ranges, bytes, "a reservation");
    if (status == PLLM_OK) status = cuda_enter(cuda);
    if (status < 0) return status;
    uint64_t va, *mapped = pllm_ranges_bitmap(&cuda->ranges, bytes);
    if (!mapped) return PLLM_ENOMEM;
    status = CUDA_DO(cuda, address_reserve, &va, bytes, 0, 0, 0);
    if (status == PLLM_ENODEVMEM)
        status = pllm_fail(PLLM_ENOMEM, CUDA_OUT_OF_MEMORY,
                           "could not reserve %llu bytes of the GPU's address space",
                           (unsigned long long)bytes);
    if (status < 0) goto fail_mapped;
    pthread_mutex_lock(&cuda->lock);
    status = pllm_ranges_add(&cuda->ranges, va, bytes, mapped);
    pthread_mutex_unlock(&cuda->lock);
    if (status < 0) goto fail_va;
    *va_out = va;
    return PLLM_OK;
fail_va:
    CUDA_NOTE(cuda, address_free, va, bytes);
fail_mapped:
    pllm_free(cuda->base.context, mapped);
    return status;
}

void cuda_release(pllm_device *device, pllm_va va, uint64_t bytes)
{
    cuda_device *cuda = cuda_of(device);
    pthread_mutex_lock(&cuda->lock);
    uint64_t *mapped = pllm_ranges_remove(&cuda->ranges, va, bytes);
    pthread_mutex_unlock(&cuda->lock);
    pllm_free(device->context, mapped);
    CUDA_NOTE(cuda, address_free, va, bytes); /* needs no context */
}

/* ---- chunks ---- */

static int memory_create(cuda_device *cuda, uint64_t bytes, unsigned long long *memory)
{
    cuda_allocation allocation = cuda_allocation_of(cuda);
    int code = cuda->driver.memory_create(memory, bytes, &allocation, 0);
    if (allocation.handle_types && (code == CUDA_NOT_SUPPORTED || code == CUDA_NOT_PERMITTED)) {
        /* Some containers forbid what exporting needs. Nothing else depends on it. */
        allocation.handle_types = 0;
        code = cuda->driver.memory_create(memory, bytes, &allocation, 0);
        if (code == CUDA_OK && atomic_exchange(&cuda->exportable, 0))
            pllm_log(cuda->base.context, PLLM_LOG_INFO,
                     "%s: memory can't be exported to other processes here", cuda->name);
    }
    return cuda_check(cuda, CUDA_CALL_memory_create, code);
}

int cuda_chunk_create(pllm_device *device, uint64_t bytes, pllm_chunk **chunk_out)
{
    cuda_device *cuda = cuda_of(device);
    *chunk_out = NULL;
    int status = pllm_ranges_check_bytes(&cuda->ranges, bytes, "a chunk");
    if (status == PLLM_OK) status = cuda_enter(cuda);
    if (status < 0) return status;
    cuda_chunk *chunk = pllm_alloc(device->context, sizeof *chunk);
    if (!chunk) return pllm_fail_memory("a chunk", sizeof *chunk);
    pthread_mutex_lock(&cuda->lock);
    if (bytes > cuda->capacity_bytes - cuda->used_bytes)
        status = PLLM_ENODEVMEM;
    else
        cuda->used_bytes += bytes;
    pthread_mutex_unlock(&cuda->lock);
    if (status < 0) goto fail_chunk;
    status = memory_create(cuda, bytes, &chunk->memory);
    if (status < 0) goto fail_used;
    chunk->bytes = bytes;
    chunk->fresh = 1;
    *chunk_out = (pllm_chunk *)chunk;
    return PLLM_OK;
fail_used:
    pthread_mutex_lock(&cuda->lock);
    cuda->used_bytes -= bytes;
    pthread_mutex_unlock(&cuda->lock);
fail_chunk:
    pllm_free(device->context, chunk);
    return status;
}

void cuda_chunk_destroy(pllm_device *device, pllm_chunk *handle)
{
    cuda_device *cuda = cuda_of(device);
    cuda_chunk *chunk = (cuda_chunk *)handle;
    if (!chunk) return;
    assert(chunk->map_count == 0);
    CUDA_NOTE(cuda, memory_release, chunk->memory);
    if (chunk->imported) {
        close(chunk->fd);
    } else {
        pthread_mutex_lock(&cuda->lock);
        assert(cuda->used_bytes >= chunk->bytes);
        cuda->used_bytes -= chunk->bytes;
        pthread_mutex_unlock(&cuda->lock);
    }
    pllm_free(device->context, chunk);
}

/* ---- mapping ---- */

/* Access for a run of one kind. A driver that knows no reading only gets the other asked for: then
 * it is our own copies and fills that are refused. */
static int driver_access(cuda_device *cuda, pllm_va va, uint64_t bytes, uint32_t read_only)
{
    cuda_access access = {{CUDA_LOCATION_DEVICE, cuda->ordinal}, CUDA_ACCESS_READ_WRITE};
    if (read_only && !atomic_load(&cuda->no_read_only)) {
        access.flags = CUDA_ACCESS_READ;
        int code = cuda->driver.memory_access(va, bytes, &access, 1);
        if (code == CUDA_OK || code == CUDA_OUT_OF_MEMORY || cuda_error_sticks(code))
            return cuda_check(cuda, CUDA_CALL_memory_access, code);
        access.flags = CUDA_ACCESS_READ_WRITE;
        int status = CUDA_DO(cuda, memory_access, va, bytes, &access, 1);
        if (status == PLLM_OK && !atomic_exchange(&cuda->no_read_only, 1))
            pllm_log(cuda->base.context, PLLM_LOG_INFO,
                     "%s: the driver maps nothing for reading only; kernels could write there",
                     cuda->name);
        return status;
    }
    return CUDA_DO(cuda, memory_access, va, bytes, &access, 1);
}

/* Zeroes the fresh chunks of a run, neighbours at once. */
static int driver_zero(cuda_device *cuda, pllm_va va, cuda_chunk *const *chunks,
                       uint32_t chunk_count)
{
    uint32_t filled = 0;
    int status = PLLM_OK;
    for (uint32_t i = 0; i < chunk_count && status == PLLM_OK;) {
        uint64_t bytes = 0;
        uint32_t end = i;
        while (end < chunk_count && chunks[end]->fresh) bytes += chunks[end++]->bytes;
        if (bytes == 0) {
            va += chunks[i++]->bytes;
            continue;
        }
        status = CUDA_DO(cuda, fill, va, 0, bytes, cuda->zeroing);
        filled = 1;
        va += bytes;
        i = end;
    }
    if (!filled) return status;
    int synced =
        CUDA_DO(cuda, stream_sync, cuda->zeroing); /* also before what failed is unmapped */
    if (status == PLLM_OK) status = synced;
    for (uint32_t i = 0; i < chunk_count && status == PLLM_OK; i++) chunks[i]->fresh = 0;
    return status;
}

/* Maps a run, gives access once for each stretch of one kind, and zeroes what is fresh; undoes it
 * all on failure. */
static int driver_map(cuda_device *cuda, pllm_va va, cuda_chunk *const *chunks,
                      uint32_t chunk_count)
{
    uint32_t mapped = 0;
    uint64_t bytes = 0, done_bytes = 0;
    int status = PLLM_OK;
    for (; mapped < chunk_count; mapped++) {
        status = CUDA_DO(cuda, memory_map, va + bytes, chunks[mapped]->bytes, 0,
                         chunks[mapped]->memory, 0);
        if (status < 0) goto fail;
        bytes += chunks[mapped]->bytes;
    }
    for (uint32_t i = 0; i < chunk_count && status == PLLM_OK;) {
        uint64_t stretch = 0;
        uint32_t read_only = chunks[i]->read_only;
        while (i < chunk_count && chunks[i]->read_only == read_only) stretch += chunks[i++]->bytes;
        status = driver_access(cuda, va + done_bytes, stretch, read_only);
        done_bytes += stretch;
    }
    if (status == PLLM_OK) status = driver_zero(cuda, va, chunks, chunk_count);
    if (status == PLLM_OK) return PLLM_OK;
fail:
    while (mapped-- > 0) {
        bytes -= chunks[mapped]->bytes;
        CUDA_NOTE(cuda, memory_unmap, va + bytes, chunks[mapped]->bytes);
    }
    /* Page tables take memory too: a full card may refuse even to map. */
    if (status == PLLM_ENODEVMEM)
        status = pllm_fail(PLLM_EDEVICE, CUDA_OUT_OF_MEMORY,
                           "%s has no memory left to map a chunk: others are using it", cuda->name);
    return status;
}

/* Takes the run's granules, under the lock. */
static int run_take(cuda_device *cuda, pllm_va va, uint64_t bytes, cuda_chunk *const *chunks,
                    uint32_t chunk_count)
{
    pllm_range *range;
    int status = pllm_ranges_check_map(&cuda->ranges, va, bytes, &range);
    if (status < 0) return status;
    pllm_va at = va;
    for (uint32_t i = 0; i < chunk_count && status == PLLM_OK; i++) {
        if (chunks[i]->read_only)
            status = pllm_ranges_set_read_only(&cuda->ranges, range, at, chunks[i]->bytes);
        at += chunks[i]->bytes;
    }
    pllm_ranges_set(&cuda->ranges, range, va, bytes, status == PLLM_OK);
    for (uint32_t i = 0; i < chunk_count && status == PLLM_OK; i++) chunks[i]->map_count++;
    return status;
}

static void run_give_back(cuda_device *cuda, pllm_va va, uint64_t bytes, cuda_chunk *const *chunks,
                          uint32_t chunk_count)
{
    pthread_mutex_lock(&cuda->lock);
    pllm_range *range = pllm_ranges_find(&cuda->ranges, va, bytes); /* the list may have moved */
    assert(range && pllm_ranges_are(&cuda->ranges, range, va, bytes, 1));
    pllm_ranges_set(&cuda->ranges, range, va, bytes, 0);
    for (uint32_t i = 0; i < chunk_count; i++) {
        assert(chunks[i]->map_count > 0);
        chunks[i]->map_count--;
    }
    pthread_mutex_unlock(&cuda->lock);
}

int cuda_map(pllm_device *device, pllm_va va, pllm_chunk *const *handles, uint32_t chunk_count)
{
    cuda_device *cuda = cuda_of(device);
    cuda_chunk *const *chunks = (cuda_chunk *const *)handles;
    uint64_t bytes = 0;
    int bad = va % cuda->granularity_bytes != 0 || (!chunks && chunk_count);
    for (uint32_t i = 0; i < chunk_count && !bad; i++)
        bad = !chunks[i] || __builtin_add_overflow(bytes, chunks[i]->bytes, &bytes);
    if (bad)
        return pllm_fail(PLLM_EINVAL, 0, "map: no chunk, or address %llx is not aligned to %llu",
                         (unsigned long long)va, (unsigned long long)cuda->granularity_bytes);
    int status = cuda_enter(cuda);
    if (status < 0 || chunk_count == 0) return status;
    pthread_mutex_lock(&cuda->lock);
    status = run_take(cuda, va, bytes, chunks, chunk_count);
    pthread_mutex_unlock(&cuda->lock);
    if (status < 0) return status;
    status = driver_map(cuda, va, chunks, chunk_count);
    if (status < 0) run_give_back(cuda, va, bytes, chunks, chunk_count);
    return status;
}

void cuda_unmap(pllm_device *device, pllm_va va, pllm_chunk *handle)
{
    cuda_device *cuda = cuda_of(device);
    cuda_chunk *chunk = (cuda_chunk *)handle;
    CUDA_NOTE(cuda, context_set_current, cuda->context);
    CUDA_NOTE(cuda, memory_unmap, va, chunk->bytes);
    run_give_back(cuda, va, chunk->bytes, &chunk, 1);
}

/* ---- between processes ---- */

/* Maps the chunk at a place of its own and takes it away again: what makes its zeros, and what
 * shows that an imported one is as large as it was said to be. */
static int map_once(cuda_device *cuda, cuda_chunk *chunk)
{
    uint64_t va;
    int status = CUDA_DO(cuda, address_reserve, &va, chunk->bytes, 0, 0, 0);
    if (status < 0) return status;
    status = driver_map(cuda, va, &chunk, 1);
    if (status == PLLM_OK) CUDA_NOTE(cuda, memory_unmap, va, chunk->bytes);
    CUDA_NOTE(cuda, address_free, va, chunk->bytes);
    return status;
}

/* The driver has no descriptors for reading only: that is for the importer to keep. */
int cuda_chunk_export(pllm_device *device, pllm_chunk *handle, uint32_t read_only, int *fd_out)
{
    (void)read_only;
    cuda_device *cuda = cuda_of(device);
    cuda_chunk *chunk = (cuda_chunk *)handle;
    *fd_out = -1;
    int status = cuda_enter(cuda);
    if (status < 0) return status;
    if (!atomic_load(&cuda->exportable))
        return pllm_fail(PLLM_EUNSUPPORTED, 0,
                         "%s: memory can't be exported to other processes here", cuda->name);
    if (chunk->imported) { /* as it came: passed on, it means the same memory */
        *fd_out = fcntl(chunk->fd, F_DUPFD_CLOEXEC, 0);
        if (*fd_out >= 0) return PLLM_OK;
        return pllm_fail(PLLM_EDEVICE, errno, "no descriptor for an imported chunk: %s",
                         strerror(errno));
    }
    if (chunk->fresh) status = map_once(cuda, chunk);
    if (status == PLLM_OK)
        status = CUDA_DO(cuda, memory_export, fd_out, chunk->memory, CUDA_HANDLE_FILE, 0);
    if (status < 0) *fd_out = -1;
    return status;
}

/* Of what the driver refused: a card without memory says nothing of the descriptor. */
static int import_failed(cuda_device *cuda, int status, int fd, uint64_t bytes)
{
    int native = status == PLLM_ENODEVMEM ? CUDA_OUT_OF_MEMORY : pllm_last_error()->native;
    if (atomic_load(&cuda->dead)) return status;
    if (native == CUDA_OUT_OF_MEMORY)
        return pllm_fail(PLLM_EDEVICE, native,
                         "%s has no memory left to map another process's chunk: others are using "
                         "it",
                         cuda->name);
    return pllm_fail(PLLM_EINVAL, native,
                     "descriptor %d is no exported chunk of %llu bytes of this GPU", fd,
                     (unsigned long long)bytes);
}

int cuda_chunk_import(pllm_device *device, int fd, uint64_t bytes, uint32_t read_only,
                      pllm_chunk **chunk_out)
{
    cuda_device *cuda = cuda_of(device);
    struct stat info;
    *chunk_out = NULL;
    int status = pllm_ranges_check_bytes(&cuda->ranges, bytes, "an imported chunk");
    if (status == PLLM_OK) status = cuda_enter(cuda);
    if (status < 0) return status;
    /* What the driver exports is neither a file nor a pipe; it need not be asked about those. */
    if (fstat(fd, &info) != 0 || S_ISREG(info.st_mode) || S_ISFIFO(info.st_mode) ||
        S_ISDIR(info.st_mode) || S_ISSOCK(info.st_mode))
        return pllm_fail(PLLM_EINVAL, 0, "descriptor %d is no exported chunk of a CUDA device", fd);
    cuda_chunk *chunk = pllm_alloc(device->context, sizeof *chunk);
    if (!chunk) return pllm_fail_memory("a chunk", sizeof *chunk);
    *chunk = (cuda_chunk){.bytes = bytes,
                          .imported = 1,
                          .read_only = read_only != 0,
                          .fd = fcntl(fd, F_DUPFD_CLOEXEC, 0)};
    if (chunk->fd < 0) {
        status = pllm_fail(PLLM_EDEVICE, errno, "no descriptor to keep for an imported chunk: %s",
                           strerror(errno));
        goto fail_free;
    }
    status = CUDA_DO(cuda, memory_import, &chunk->memory, (void *)(intptr_t)fd, CUDA_HANDLE_FILE);
    if (status < 0) goto fail_chunk;
    status = map_once(cuda, chunk);
    if (status < 0) goto fail_memory;
    *chunk_out = (pllm_chunk *)chunk;
    return PLLM_OK;
fail_memory:
    CUDA_NOTE(cuda, memory_release, chunk->memory);
fail_chunk:
    close(chunk->fd);
    status = import_failed(cuda, status, fd, bytes);
fail_free:
    pllm_free(device->context, chunk);
    return status;
}

/* ---- host memory ---- */

typedef struct touch {
    pllm_threads *threads;
    char *memory;
    uint64_t bytes;
} touch;

static void touch_pages(void *argument, uint32_t thread_index)
{
    touch *work = argument;
    uint32_t tasks = (uint32_t)((work->bytes + TOUCH_BYTES - 1) / TOUCH_BYTES);
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    (void)thread_index;
    for (uint32_t task; pllm_threads_next(work->threads, tasks, &task);) {
        uint64_t first = task * TOUCH_BYTES, end = first + TOUCH_BYTES;
        if (end > work->bytes) end = work->bytes;
        for (uint64_t at = first; at < end; at += page) *(volatile char *)(work->memory + at) = 0;
    }
}

/* The kernel zeroes a page when it is first touched: with many threads that takes 16 times less,
 * and pinning then only walks the pages. Only speed is lost where there are no threads. */
static void touch_all(const pllm_context *context, void *memory, uint64_t bytes)
{
    touch work = {.memory = memory, .bytes = bytes};
    uint32_t count = pllm_threads_available();
    if (bytes < TEAM_BYTES || count < 2) return;
    if (count > TEAM_MAX) count = TEAM_MAX;
    if (pllm_threads_open(context, count, &work.threads) < 0) return;
    pllm_threads_run(work.threads, touch_pages, &work);
    pllm_threads_close(work.threads);
}

static uint64_t page_round(uint64_t bytes)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    return (bytes + page - 1) / page * page;
}

static int register_host(cuda_device *cuda, void *memory, uint64_t bytes)
{
    return cuda->driver.host_register(memory, bytes,
                                      CUDA_REGISTER_PORTABLE | CUDA_REGISTER_DEVICEMAP);
}

static void unregister_parts(cuda_device *cuda, uint64_t start, uint64_t bytes)
{
    for (uint64_t at = 0; at < bytes; at += PART_BYTES)
        CUDA_NOTE(cuda, host_unregister, (void *)(uintptr_t)(start + at));
}

/* Under the lock: the parts that an address lies in, or parts_count. */
static uint32_t parts_at(const cuda_device *cuda, uint64_t address)
{
    uint32_t i = 0, count = atomic_load(&cuda->parts_count);
    while (i < count && address - cuda->parts[i].start >= cuda->parts[i].bytes) i++;
    return i;
}

/* The parts that begin at start are let go and forgotten. Returns 0: there are none. */
static int forget_parts(cuda_device *cuda, uint64_t start, cuda_parts *parts_out)
{
    if (atomic_load(&cuda->parts_count) == 0) return 0;
    pthread_mutex_lock(&cuda->lock);
    uint32_t i = parts_at(cuda, start), count = atomic_load(&cuda->parts_count);
    int found = i < count;
    if (found) {
        *parts_out = cuda->parts[i];
        cuda->parts[i] = cuda->parts[count - 1];
        atomic_store(&cuda->parts_count, count - 1);
    }
    pthread_mutex_unlock(&cuda->lock);
    if (found) unregister_parts(cuda, start, parts_out->pinned_bytes);
    return found;
}

/* A whole that was refused is tried in parts, from its start as far as that goes. Returns how many
 * bytes are pinned, and are noted as parts; *code: the driver's last word. */
static uint64_t pin_parts(cuda_device *cuda, char *memory, uint64_t bytes, int *code)
{
    uint64_t pinned = 0;
    if (bytes <= PART_BYTES) return 0;
    while (pinned < bytes) {
        uint64_t part = bytes - pinned < PART_BYTES ? bytes - pinned : PART_BYTES;
        *code = register_host(cuda, memory + pinned, part);
        if (*code != CUDA_OK) break;
        pinned += part;
    }
    if (pinned == 0) return 0;
    pthread_mutex_lock(&cuda->lock);
    uint32_t count = atomic_load(&cuda->parts_count);
    if (count == cuda->parts_room) {
        uint32_t room = count ? 2 * count : 16;
        cuda_parts *grown =
            pllm_grow(cuda->base.context, cuda->parts, count * sizeof *grown, room * sizeof *grown);
        if (grown) {
            cuda->parts = grown;
            cuda->parts_room = room;
        }
    }
    int noted = count < cuda->parts_room;
    if (noted) {
        cuda->parts[count] = (cuda_parts){(uintptr_t)memory, bytes, pinned};
        atomic_store(&cuda->parts_count, count + 1);
    }
    pthread_mutex_unlock(&cuda->lock);
    if (noted) return pinned;
    unregister_parts(cuda, (uintptr_t)memory, pinned);
    return 0;
}

/* Once a device: who reads it knows what to do, and it would be said of every slab. */
static void tell_unpinned(cuda_device *cuda, uint64_t bytes, uint64_t pinned, int code)
{
    char text[256];
    cuda_error_text(&cuda->driver, code, text, sizeof text);
    if (atomic_exchange(&cuda->unpinned_told, 1))
        pllm_log(cuda->base.context, PLLM_LOG_INFO, "%llu more MiB of host memory are not pinned",
                 (unsigned long long)((bytes - pinned) >> 20));
    else
        pllm_log(cuda->base.context, PLLM_LOG_WARN,
                 "%.2f of %.2f GiB of host memory, and maybe more later, could not be pinned (%s): "
                 "copies to and from it run at a fraction of the link's speed and hold up the "
                 "thread that submits them, and kernels can't reach it; use less host memory "
                 "(ulimit -l is not what limits it)",
                 (double)(bytes - pinned) / (1 << 30), (double)bytes / (1 << 30), text);
}

int cuda_host_alloc(pllm_device *device, uint64_t bytes, void **pointer_out)
{
    cuda_device *cuda = cuda_of(device);
    *pointer_out = NULL;
    int status = cuda_enter(cuda);
    if (status == PLLM_OK) status = pllm_arena_host_alloc(bytes, pointer_out);
    if (status < 0) return status;
    touch_all(device->context, *pointer_out, bytes);
    uint64_t whole = page_round(bytes), pinned = 0;
    int code = register_host(cuda, *pointer_out, whole);
    if (code == CUDA_OK) return PLLM_OK;
    if (!cuda_error_sticks(code)) pinned = pin_parts(cuda, *pointer_out, whole, &code);
    if (!cuda_error_sticks(code)) {
        if (pinned == whole) return PLLM_OK;
        atomic_fetch_add(&cuda->unpinned_count, 1);
        tell_unpinned(cuda, whole, pinned, code);
        return PLLM_OK;
    }
    status = cuda_check(cuda, CUDA_CALL_host_register, code);
    cuda_parts parts;
    (void)forget_parts(cuda, (uintptr_t)*pointer_out, &parts);
    pllm_arena_host_free(*pointer_out, bytes);
    *pointer_out = NULL;
    return status;
}

void cuda_host_free(pllm_device *device, void *pointer, uint64_t bytes)
{
    cuda_device *cuda = cuda_of(device);
    cuda_parts parts;
    if (!pointer) return;
    cuda->driver.context_set_current(cuda->context);
    if (forget_parts(cuda, (uintptr_t)pointer, &parts)) {
        if (parts.pinned_bytes < parts.bytes) atomic_fetch_sub(&cuda->unpinned_count, 1);
        pllm_arena_host_free(pointer, bytes);
        return;
    }
    int code = cuda->driver.host_unregister(pointer);
    if (code == CUDA_NOT_REGISTERED)
        atomic_fetch_sub(&cuda->unpinned_count, 1);
    else
        cuda_note(cuda, CUDA_CALL_host_unregister, code);
    pllm_arena_host_free(pointer, bytes);
}

uint64_t cuda_host_run(cuda_device *cuda, uint64_t address, uint64_t bytes)
{
    if (atomic_load(&cuda->parts_count) == 0) return bytes;
    pthread_mutex_lock(&cuda->lock);
    uint32_t i = parts_at(cuda, address);
    if (i < atomic_load(&cuda->parts_count)) {
        uint64_t at = address - cuda->parts[i].start, pinned = cuda->parts[i].pinned_bytes;
        uint64_t end = at / PART_BYTES * PART_BYTES + PART_BYTES;
        if (at < pinned && end - at < bytes) bytes = end - at;
        if (at < pinned && pinned - at < bytes) bytes = pinned - at;
    }
    pthread_mutex_unlock(&cuda->lock);
    return bytes;
}

pllm_va pllm_cuda_host_va(pllm_device *device, const void *pointer)
{
    cuda_device *cuda;
    uint64_t va = 0;
    if (!pointer || cuda_unwrap(device, NULL, NULL, &cuda) < 0 || cuda_enter(cuda) < 0) return 0;
    pthread_mutex_lock(&cuda->lock);
    int in_parts = parts_at(cuda, (uintptr_t)pointer) < atomic_load(&cuda->parts_count);
    pthread_mutex_unlock(&cuda->lock);
    if (in_parts) return 0; /* what is said of one address must hold for the allocation */
    return cuda->driver.host_va(&va, (void *)(uintptr_t)pointer, 0) == CUDA_OK ? va : 0;
}
