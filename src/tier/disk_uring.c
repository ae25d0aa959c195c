/* disk_uring.c - the spill file through io_uring.
 *
 * The kernel gets each request at once and completes into a ring shared with us, so that looking
 * for completions costs no system call. The staging buffer is registered, which spares the kernel
 * pinning its pages for every request; where the memlock limit refuses, requests go without (READ
 * and WRITE instead of READ_FIXED and WRITE_FIXED) and the note says so.
 *
 * user_data carries the cookie and, above it, the length in 4 KiB units, to tell a short transfer.
 * An older kernel without timed waits (IORING_FEAT_EXT_ARG, before 5.11) counts as having none. */
#include <errno.h>
#include <liburing.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "tier/spill.h"

enum { DEPTH = 64, UNIT = 4096 };

typedef struct disk_uring {
    pllm_disk base;
    struct io_uring ring;
    int fd;
    uint32_t in_flight;
    uint32_t unsent; /* in our ring, but the kernel would not take them yet */
    uint64_t file_bytes;
    char *staging;
    uint64_t staging_bytes;
} disk_uring;

static int ring_send(disk_uring *disk)
{
    int sent = io_uring_submit(&disk->ring);
    if (sent < 0) return sent;
    disk->unsent -= (uint32_t)sent < disk->unsent ? (uint32_t)sent : disk->unsent;
    return 0;
}

static int uring_submit(pllm_disk *base, const pllm_disk_request *request)
{
    disk_uring *disk = (disk_uring *)base;
    int status = pllm_disk_check(request, disk->file_bytes);
    if (status < 0) return status;
    if (disk->in_flight == DEPTH) return PLLM_EBUSY;
    struct io_uring_sqe *entry = io_uring_get_sqe(&disk->ring);
    if (!entry) return PLLM_EBUSY;
    char *buffer = request->buffer;
    unsigned bytes = (unsigned)request->bytes;
    int fixed = base->registered && buffer >= disk->staging &&
                buffer + bytes <= disk->staging + disk->staging_bytes;
    if (fixed && request->write)
        io_uring_prep_write_fixed(entry, disk->fd, buffer, bytes, request->offset, 0);
    else if (fixed)
        io_uring_prep_read_fixed(entry, disk->fd, buffer, bytes, request->offset, 0);
    else if (request->write)
        io_uring_prep_write(entry, disk->fd, buffer, bytes, request->offset);
    else
        io_uring_prep_read(entry, disk->fd, buffer, bytes, request->offset);
    entry->user_data = request->bytes / UNIT << 32 | request->cookie;
    disk->in_flight++;
    disk->unsent++;
    (void)ring_send(disk); /* what is not taken now is sent by the next poll */
    return PLLM_OK;
}

static int uring_reap(disk_uring *disk, pllm_disk_completion *completions, uint32_t completion_max)
{
    struct io_uring_cqe *entries[DEPTH];
    unsigned count = io_uring_peek_batch_cqe(&disk->ring, entries,
                                             completion_max < DEPTH ? completion_max : DEPTH);
    for (unsigned i = 0; i < count; i++) {
        uint64_t bytes = (entries[i]->user_data >> 32) * UNIT;
        int result = entries[i]->res;
        int done = result >= 0 && (uint64_t)result == bytes;
        completions[i] = (pllm_disk_completion){
            .cookie = (uint32_t)entries[i]->user_data,
            .status = done ? PLLM_OK : PLLM_EIO,
            .native = done         ? 0
                      : result < 0 ? -result
                                   : EIO,
        };
    }
    io_uring_cq_advance(&disk->ring, count);
    disk->in_flight -= count;
    return (int)count;
}

static int uring_poll(pllm_disk *base, pllm_disk_completion *completions, uint32_t completion_max,
                      uint64_t timeout_ns)
{
    disk_uring *disk = (disk_uring *)base;
    int code = disk->unsent ? ring_send(disk) : 0;
    if (code < 0 && code != -EAGAIN && code != -EBUSY && code != -EINTR)
        return pllm_fail(PLLM_EIO, -code, "io_uring takes no requests any more: %s",
                         strerror(-code));
    if (!disk->in_flight) return 0;
    int count = uring_reap(disk, completions, completion_max);
    if (count || !timeout_ns) return count;
    struct io_uring_cqe *entry;
    struct __kernel_timespec timeout = {(long long)(timeout_ns / 1000000000u),
                                        (long long)(timeout_ns % 1000000000u)};
    code = io_uring_wait_cqe_timeout(&disk->ring, &entry, &timeout);
    if (code < 0 && code != -ETIME && code != -EINTR && code != -EAGAIN && code != -EBUSY)
        return pllm_fail(PLLM_EIO, -code, "io_uring cannot be waited for: %s", strerror(-code));
    return uring_reap(disk, completions, completion_max);
}

/* Waits for what the kernel holds, whatever polls say: it reads into and writes from buffers that
 * the caller is about to free. Where waiting fails, looking still works, since the ring is shared
 * memory. What the kernel never took it never will. */
static void drain(disk_uring *disk)
{
    pllm_disk_completion completions[DEPTH];
    const struct timespec pause = {0, 1000000};
    while (disk->in_flight > disk->unsent) {
        if (uring_poll(&disk->base, completions, DEPTH, 1000000000u) >= 0) continue;
        if (!uring_reap(disk, completions, DEPTH)) nanosleep(&pause, NULL);
    }
}

static void uring_close(pllm_disk *base)
{
    disk_uring *disk = (disk_uring *)base;
    drain(disk);
    /* The kernel tears rings down later, on its own time; the locked memory should be free now. */
    if (base->registered) (void)io_uring_unregister_buffers(&disk->ring);
    io_uring_queue_exit(&disk->ring);
    close(disk->fd);
    pllm_free(base->context, disk);
}

static uint32_t uring_depth(const pllm_disk *base)
{
    (void)base;
    return DEPTH;
}

static const pllm_disk_ops uring_ops = {
    .name = "uring",
    .close = uring_close,
    .submit = uring_submit,
    .poll = uring_poll,
    .depth = uring_depth,
};

static void staging_register(disk_uring *disk, const pllm_disk_options *options)
{
    if (!options->staging || !options->staging_bytes) return;
    struct iovec buffer = {options->staging, options->staging_bytes};
    int code = io_uring_register_buffers(&disk->ring, &buffer, 1);
    if (code < 0) {
        pllm_disk_note(disk->base.note, "buffers are not registered (%s%s)", strerror(-code),
                       code == -ENOMEM ? ": see ulimit -l" : "");
        return;
    }
    disk->base.registered = 1;
    disk->staging = options->staging;
    disk->staging_bytes = options->staging_bytes;
}

int pllm_disk_open_uring(const pllm_context *context, const pllm_disk_options *options,
                         const pllm_spill *spill, pllm_disk **disk_out)
{
    disk_uring *disk = pllm_alloc(context, sizeof *disk);
    if (!disk) return pllm_fail_memory("a disk backend", sizeof *disk);
    int code = io_uring_queue_init(DEPTH, &disk->ring, 0);
    if (code == 0 && !(disk->ring.features & IORING_FEAT_EXT_ARG)) {
        io_uring_queue_exit(&disk->ring);
        code = -ENOSYS;
    }
    if (code < 0) {
        pllm_free(context, disk);
        return pllm_fail(PLLM_EUNSUPPORTED, -code,
                         "io_uring is not to be had here: %s; use the pool of threads",
                         strerror(-code));
    }
    disk->base = (pllm_disk){.ops = &uring_ops, .context = context, .direct = spill->direct};
    memcpy(disk->base.note, spill->note, sizeof spill->note);
    memcpy(disk->base.folder, spill->folder, sizeof spill->folder);
    disk->fd = spill->fd;
    disk->file_bytes = options->bytes;
    staging_register(disk, options);
    *disk_out = &disk->base;
    return PLLM_OK;
}
