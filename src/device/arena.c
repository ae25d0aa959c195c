/* arena.c - reservations, chunks and their mappings; arena.h has the picture. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include "device/arena.h"

#define HUGE_BYTES ((uint64_t)2 << 20)
#define GRANULARITY_MIN ((uint64_t)64 << 10)
#ifndef MADV_COLLAPSE /* Linux 6.1; older ones answer EINVAL */
#define MADV_COLLAPSE 25
#endif
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

struct pllm_chunk {
    uint64_t bytes;
    int fd;
    uint32_t map_count; /* places it is mapped at; under the arena's lock */
    uint32_t imported, read_only;
    uint32_t whole; /* huge pages have been asked for */
};

int pllm_arena_init(pllm_arena *arena, const pllm_context *context, uint64_t capacity_bytes,
                    uint64_t granularity_bytes, uint64_t chunk_bytes)
{
    uint64_t granularity = granularity_bytes ? granularity_bytes : GRANULARITY_MIN;
    if (granularity < GRANULARITY_MIN || (granularity & (granularity - 1)))
        return pllm_fail(PLLM_EINVAL, 0,
                         "granularity of %llu bytes is not a power of two of at least 64 KiB",
                         (unsigned long long)granularity);
    uint64_t chunk = chunk_bytes                ? chunk_bytes
                     : granularity > HUGE_BYTES ? granularity
                                                : HUGE_BYTES;
    if (chunk % granularity)
        return pllm_fail(PLLM_EINVAL, 0, "chunks of %llu bytes are no multiple of %llu",
                         (unsigned long long)chunk, (unsigned long long)granularity);
    uint64_t available = pllm_machine_available_bytes();
    *arena = (pllm_arena){
        .context = context,
        .granularity_bytes = granularity,
        .chunk_bytes = chunk,
        /* Memory is touched lazily: more than the machine has would end in a kill, not an error. */
        .capacity_bytes =
            capacity_bytes == 0 || capacity_bytes > available ? available : capacity_bytes,
        .ranges = {.context = context, .granularity_bytes = granularity},
    };
    int code = pthread_mutex_init(&arena->lock, NULL);
    return code ? pllm_fail(PLLM_ENOMEM, code, "could not make a lock for the arena") : PLLM_OK;
}

void pllm_arena_deinit(pllm_arena *arena)
{
    for (uint32_t i = 0; i < arena->ranges.count; i++)
        munmap((void *)arena->ranges.items[i].va, arena->ranges.items[i].bytes);
    pllm_ranges_deinit(&arena->ranges);
    pthread_mutex_destroy(&arena->lock);
}

/* Address space that starts at a multiple of alignment; the surplus around it is given back. */
static void *map_aligned(uint64_t bytes, uint64_t alignment, int protection)
{
    uint64_t wide;
    if (__builtin_add_overflow(bytes, alignment, &wide)) {
        errno = ENOMEM;
        return NULL;
    }
    char *start = mmap(NULL, wide, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) return NULL;
    uint64_t head = (alignment - (uintptr_t)start % alignment) % alignment;
    if (head) munmap(start, head);
    if (wide - head > bytes) munmap(start + head + bytes, wide - head - bytes);
    return start + head;
}

int pllm_arena_reserve(pllm_arena *arena, uint64_t bytes, pllm_va *va_out)
{
    *va_out = 0;
    int status = pllm_ranges_check_bytes(&arena->ranges, bytes, "a reservation");
    if (status < 0) return status;
    uint64_t *mapped = pllm_ranges_bitmap(&arena->ranges, bytes);
    if (!mapped) return PLLM_ENOMEM;
    uint64_t alignment =
        arena->granularity_bytes > HUGE_BYTES ? arena->granularity_bytes : HUGE_BYTES;
    void *start = map_aligned(bytes, alignment, PROT_NONE);
    if (!start) {
        status = pllm_fail(PLLM_ENOMEM, errno, "could not reserve %llu bytes of address space: %s",
                           (unsigned long long)bytes, strerror(errno));
        goto fail_mapped;
    }
    pthread_mutex_lock(&arena->lock);
    status = pllm_ranges_add(&arena->ranges, (pllm_va)(uintptr_t)start, bytes, mapped);
    pthread_mutex_unlock(&arena->lock);
    if (status < 0) goto fail_start;
    *va_out = (pllm_va)(uintptr_t)start;
    return PLLM_OK;
fail_start:
    munmap(start, bytes);
fail_mapped:
    pllm_free(arena->context, mapped);
    return status;
}

void pllm_arena_release(pllm_arena *arena, pllm_va va, uint64_t bytes)
{
    pthread_mutex_lock(&arena->lock);
    uint64_t *mapped = pllm_ranges_remove(&arena->ranges, va, bytes);
    munmap((void *)va, bytes);
    pthread_mutex_unlock(&arena->lock);
    pllm_free(arena->context, mapped);
}

/* One descriptor a chunk: common soft limits (1,024) are soon met, the hard one rarely is. */
static int raise_descriptor_limit(const pllm_context *context)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= limit.rlim_max) return 0;
    rlim_t wanted = limit.rlim_cur * 4;
    limit.rlim_cur = wanted < limit.rlim_max ? wanted : limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0) return 0;
    pllm_log(context, PLLM_LOG_INFO, "raised the limit of open files to %llu for device chunks",
             (unsigned long long)limit.rlim_cur);
    return 1;
}

static int memory_file(const pllm_context *context)
{
    for (;;) {
        int fd = memfd_create("pagedllm", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        if (fd >= 0 || errno != EMFILE || !raise_descriptor_limit(context)) return fd;
    }
}

static int chunk_fail(int code, const char *what)
{
    if (code == ENOMEM || code == ENOSPC) return PLLM_ENODEVMEM;
    return pllm_fail(
        PLLM_EDEVICE, code, "could not %s: %s%s", what, strerror(code),
        code == EMFILE || code == ENFILE ? "; raise the limit of open files (ulimit -n)" : "");
}

int pllm_arena_chunk_create(pllm_arena *arena, uint64_t bytes, pllm_chunk **chunk_out)
{
    *chunk_out = NULL;
    int status = pllm_ranges_check_bytes(&arena->ranges, bytes, "a chunk");
    if (status < 0) return status;
    pllm_chunk *chunk = pllm_alloc(arena->context, sizeof *chunk);
    if (!chunk) return pllm_fail_memory("a chunk", sizeof *chunk);
    pthread_mutex_lock(&arena->lock);
    if (bytes > arena->capacity_bytes - arena->used_bytes)
        status = PLLM_ENODEVMEM;
    else
        arena->used_bytes += bytes;
    pthread_mutex_unlock(&arena->lock);
    if (status < 0) goto fail_chunk;
    chunk->bytes = bytes;
    chunk->fd = memory_file(arena->context);
    if (chunk->fd < 0) {
        status = chunk_fail(errno, "create a memory file for a chunk");
        goto fail_used;
    }
    /* Mode 0400: who gets it for reading can't open it again through /proc to write. */
    if (ftruncate(chunk->fd, (off_t)bytes) != 0 || fcntl(chunk->fd, F_ADD_SEALS, SEALS) != 0 ||
        fchmod(chunk->fd, S_IRUSR) != 0) {
        status = chunk_fail(errno, "size a chunk's memory file");
        goto fail_fd;
    }
    *chunk_out = chunk;
    return PLLM_OK;
fail_fd:
    close(chunk->fd);
fail_used:
    pthread_mutex_lock(&arena->lock);
    arena->used_bytes -= bytes;
    pthread_mutex_unlock(&arena->lock);
fail_chunk:
    pllm_free(arena->context, chunk);
    return status;
}

void pllm_arena_chunk_destroy(pllm_arena *arena, pllm_chunk *chunk)
{
    if (!chunk) return;
    assert(chunk->map_count == 0);
    close(chunk->fd);
    if (!chunk->imported) {
        pthread_mutex_lock(&arena->lock);
        assert(arena->used_bytes >= chunk->bytes);
        arena->used_bytes -= chunk->bytes;
        pthread_mutex_unlock(&arena->lock);
    }
    pllm_free(arena->context, chunk);
}

static int map_none(pllm_va va, uint64_t bytes)
{
    return mmap((void *)va, bytes, PROT_NONE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED
               ? -1
               : 0;
}

/* Memory files get no huge pages by themselves where shmem_enabled is "never", as distributions
 * have it, but they may be asked for one by one: 0.13 ms a chunk of 2 MiB at its first mapping
 * against 1.3 ms of page faults, and one fault instead of 512 whenever it is mapped again. */
static void ask_for_huge_pages(pllm_va va, pllm_chunk *chunk)
{
    if (va % HUGE_BYTES || chunk->bytes % HUGE_BYTES) return;
    (void)madvise((void *)va, chunk->bytes, MADV_HUGEPAGE); /* all of this is only a hint */
    if (chunk->whole || chunk->imported) return;
    chunk->whole = 1;
    for (uint64_t at = 0; at < chunk->bytes; at += HUGE_BYTES) /* an empty range is refused */
        (void)*(volatile char *)(va + at);
    (void)madvise((void *)va, chunk->bytes, MADV_COLLAPSE);
}

static int map_one(pllm_va va, const pllm_chunk *chunk)
{
    int protection = chunk->read_only ? PROT_READ : PROT_READ | PROT_WRITE;
    if (mmap((void *)va, chunk->bytes, protection, MAP_SHARED | MAP_FIXED, chunk->fd, 0) !=
        MAP_FAILED)
        return PLLM_OK;
    int code = errno;
    map_none(va, chunk->bytes); /* a failed MAP_FIXED may have left a hole */
    return pllm_fail(PLLM_EDEVICE, code, "could not map a chunk: %s%s", strerror(code),
                     code == ENOMEM ? "; raise vm.max_map_count or use larger chunks" : "");
}

/* All of the run or nothing of it; under the lock, the range is checked. */
static int map_run(pllm_arena *arena, pllm_range *range, pllm_va va, pllm_chunk *const *chunks,
                   uint32_t chunk_count)
{
    uint64_t done_bytes = 0;
    int status = PLLM_OK;
    for (uint32_t i = 0; i < chunk_count && status == PLLM_OK; i++) {
        pllm_va at = va + done_bytes;
        if (chunks[i]->read_only)
            status = pllm_ranges_set_read_only(&arena->ranges, range, at, chunks[i]->bytes);
        if (status == PLLM_OK) status = map_one(at, chunks[i]);
        done_bytes += chunks[i]->bytes; /* of a failed one too: it is marked, perhaps */
    }
    if (status == PLLM_OK) {
        pllm_ranges_set(&arena->ranges, range, va, done_bytes, 1);
        for (uint32_t i = 0; i < chunk_count; i++) chunks[i]->map_count++;
    } else {
        pllm_ranges_set(&arena->ranges, range, va, done_bytes, 0);
        map_none(va, done_bytes);
    }
    return status;
}

/* The run's size. */
static int check_run(const pllm_arena *arena, pllm_va va, pllm_chunk *const *chunks,
                     uint32_t chunk_count, uint64_t *bytes_out)
{
    *bytes_out = 0;
    int bad = va % arena->granularity_bytes != 0 || (!chunks && chunk_count);
    for (uint32_t i = 0; i < chunk_count && !bad; i++)
        bad = !chunks[i] || __builtin_add_overflow(*bytes_out, chunks[i]->bytes, bytes_out);
    if (!bad) return PLLM_OK;
    return pllm_fail(PLLM_EINVAL, 0, "map: no chunk, or address %llx is not aligned to %llu",
                     (unsigned long long)va, (unsigned long long)arena->granularity_bytes);
}

int pllm_arena_map(pllm_arena *arena, pllm_va va, pllm_chunk *const *chunks, uint32_t chunk_count)
{
    uint64_t bytes;
    int status = check_run(arena, va, chunks, chunk_count, &bytes);
    if (status < 0 || chunk_count == 0) return status;
    pllm_range *range;
    pthread_mutex_lock(&arena->lock);
    status = pllm_ranges_check_map(&arena->ranges, va, bytes, &range);
    if (status == PLLM_OK) status = map_run(arena, range, va, chunks, chunk_count);
    pthread_mutex_unlock(&arena->lock);
    for (uint32_t i = 0; i < chunk_count && status == PLLM_OK; i++) {
        ask_for_huge_pages(va, chunks[i]);
        va += chunks[i]->bytes;
    }
    return status;
}

void pllm_arena_unmap(pllm_arena *arena, pllm_va va, pllm_chunk *chunk)
{
    pthread_mutex_lock(&arena->lock);
    pllm_range *range = pllm_ranges_find(&arena->ranges, va, chunk->bytes);
    assert(range && pllm_ranges_are(&arena->ranges, range, va, chunk->bytes, 1));
    assert(chunk->map_count > 0);
    /* At vm.max_map_count a new mapping is refused, but protecting a whole one never splits. */
    if (map_none(va, chunk->bytes) != 0) mprotect((void *)va, chunk->bytes, PROT_NONE);
    pllm_ranges_set(&arena->ranges, range, va, chunk->bytes, 0);
    chunk->map_count--;
    pthread_mutex_unlock(&arena->lock);
}

static int descriptor_copy(const pllm_context *context, int fd, int *fd_out)
{
    *fd_out = -1;
    for (;;) {
        int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
        if (copy >= 0) {
            *fd_out = copy;
            return PLLM_OK;
        }
        if (errno != EMFILE || !raise_descriptor_limit(context))
            return chunk_fail(errno, "copy a chunk's descriptor");
    }
}

/* The same memory behind a descriptor of its own that can only be read through. */
static int descriptor_read_only(const pllm_context *context, int fd, int *fd_out)
{
    char path[40];
    *fd_out = -1;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    for (;;) {
        int copy = open(path, O_RDONLY | O_CLOEXEC);
        if (copy >= 0) {
            *fd_out = copy;
            return PLLM_OK;
        }
        if (errno != EMFILE || !raise_descriptor_limit(context))
            return chunk_fail(errno, "open a chunk for reading (is /proc there?)");
    }
}

int pllm_arena_chunk_export(pllm_arena *arena, pllm_chunk *chunk, uint32_t read_only, int *fd_out)
{
    /* What came for reading goes on for reading: its descriptor can't do more. */
    return read_only ? descriptor_read_only(arena->context, chunk->fd, fd_out)
                     : descriptor_copy(arena->context, chunk->fd, fd_out);
}

int pllm_arena_chunk_import(pllm_arena *arena, int fd, uint64_t bytes, uint32_t read_only,
                            pllm_chunk **chunk_out)
{
    *chunk_out = NULL;
    int status = pllm_ranges_check_bytes(&arena->ranges, bytes, "an imported chunk");
    if (status < 0) return status;
    struct stat info;
    if (fstat(fd, &info) != 0 || (uint64_t)info.st_size != bytes)
        return pllm_fail(PLLM_EINVAL, 0, "descriptor %d is no chunk of %llu bytes", fd,
                         (unsigned long long)bytes);
    /* Without the seal its owner could shrink it under us, and a touch would kill the process. */
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || !(seals & F_SEAL_SHRINK) || (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)))
        return pllm_fail(PLLM_EINVAL, 0, "descriptor %d is no exported chunk of a host device", fd);
    if (!read_only && (fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDWR)
        return pllm_fail(PLLM_EPERM, 0, "descriptor %d is of a chunk that may only be read", fd);
    pllm_chunk *chunk = pllm_alloc(arena->context, sizeof *chunk);
    if (!chunk) return pllm_fail_memory("a chunk", sizeof *chunk);
    *chunk = (pllm_chunk){.bytes = bytes, .imported = 1, .read_only = read_only != 0};
    status = descriptor_copy(arena->context, fd, &chunk->fd);
    if (status < 0) {
        pllm_free(arena->context, chunk);
        return status;
    }
    *chunk_out = chunk;
    return PLLM_OK;
}

static uint64_t page_round(uint64_t bytes)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    return (bytes + page - 1) / page * page;
}

int pllm_arena_host_alloc(uint64_t bytes, void **pointer_out)
{
    *pointer_out = NULL;
    if (bytes == 0 || bytes > UINT64_MAX / 2)
        return pllm_fail(PLLM_EINVAL, 0, "host_alloc of %llu bytes", (unsigned long long)bytes);
    uint64_t alignment = bytes >= HUGE_BYTES ? HUGE_BYTES : (uint64_t)sysconf(_SC_PAGESIZE);
    void *pointer = map_aligned(page_round(bytes), alignment, PROT_READ | PROT_WRITE);
    if (!pointer) return pllm_fail_memory("copies to and from the device", bytes);
    if (bytes >= HUGE_BYTES) (void)madvise(pointer, page_round(bytes), MADV_HUGEPAGE);
    *pointer_out = pointer;
    return PLLM_OK;
}

void pllm_arena_host_free(void *pointer, uint64_t bytes)
{
    if (pointer) munmap(pointer, page_round(bytes));
}

int pllm_arena_check_copies(pllm_arena *arena, pllm_copy_kind kind, const pllm_copy *copies,
                            uint32_t copy_count)
{
    pthread_mutex_lock(&arena->lock);
    int status = pllm_ranges_check_copies(&arena->ranges, kind, copies, copy_count);
    pthread_mutex_unlock(&arena->lock);
    return status;
}

int pllm_arena_check_fill(pllm_arena *arena, pllm_va va, uint64_t bytes)
{
    pthread_mutex_lock(&arena->lock);
    int status = pllm_ranges_check_fill(&arena->ranges, va, bytes);
    pthread_mutex_unlock(&arena->lock);
    return status;
}

uint64_t pllm_arena_free_bytes(pllm_arena *arena)
{
    uint64_t available = pllm_machine_available_bytes();
    pthread_mutex_lock(&arena->lock);
    uint64_t left = arena->capacity_bytes - arena->used_bytes;
    pthread_mutex_unlock(&arena->lock);
    return left < available ? left : available;
}
