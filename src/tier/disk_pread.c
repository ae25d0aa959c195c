/* disk_pread.c - the spill file through a few threads that read and write.
 *
 *   submit -> waiting (ring) -> one of 4 threads: pread or pwrite -> done (ring) -> poll
 *
 * Both rings have DEPTH entries and in_flight counts what is in either or with a thread, so neither
 * can overflow. Locks: one, never held while bytes move. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>
#include "base/clock.h"
#include "tier/spill.h"

enum { DEPTH = 64, THREADS = 4 };

typedef struct disk_pread {
    pllm_disk base;
    int fd;
    uint64_t file_bytes;
    pthread_t threads[THREADS];
    uint32_t thread_count;
    uint32_t in_flight; /* the caller's own */

    pthread_mutex_t lock;
    pthread_cond_t filled, finished;
    pllm_disk_request waiting[DEPTH];
    pllm_disk_completion done[DEPTH];
    uint32_t waiting_first, waiting_count, done_first, done_count;
    int stop;
} disk_pread;

/* 0, or the errno; a file that ends early is an EIO. */
static int request_run(int fd, const pllm_disk_request *request)
{
    for (uint64_t moved = 0; moved < request->bytes;) {
        char *buffer = (char *)request->buffer + moved;
        size_t bytes = request->bytes - moved;
        off_t offset = (off_t)(request->offset + moved);
        ssize_t count =
            request->write ? pwrite(fd, buffer, bytes, offset) : pread(fd, buffer, bytes, offset);
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) return count < 0 ? errno : EIO;
        moved += (uint64_t)count;
    }
    return 0;
}

static void *disk_work(void *argument)
{
    disk_pread *disk = argument;
    prctl(PR_SET_NAME, "pllm-disk");
    pthread_mutex_lock(&disk->lock);
    for (;;) {
        while (!disk->waiting_count && !disk->stop) pthread_cond_wait(&disk->filled, &disk->lock);
        if (!disk->waiting_count) break;
        pllm_disk_request request = disk->waiting[disk->waiting_first];
        disk->waiting_first = (disk->waiting_first + 1) % DEPTH;
        disk->waiting_count--;
        pthread_mutex_unlock(&disk->lock);
        int code = request_run(disk->fd, &request);
        pthread_mutex_lock(&disk->lock);
        disk->done[(disk->done_first + disk->done_count++) % DEPTH] = (pllm_disk_completion){
            .cookie = request.cookie, .status = code ? PLLM_EIO : PLLM_OK, .native = code};
        pthread_cond_signal(&disk->finished);
    }
    pthread_mutex_unlock(&disk->lock);
    return NULL;
}

static int pread_submit(pllm_disk *base, const pllm_disk_request *request)
{
    disk_pread *disk = (disk_pread *)base;
    int status = pllm_disk_check(request, disk->file_bytes);
    if (status < 0) return status;
    if (disk->in_flight == DEPTH) return PLLM_EBUSY;
    disk->in_flight++;
    pthread_mutex_lock(&disk->lock);
    disk->waiting[(disk->waiting_first + disk->waiting_count++) % DEPTH] = *request;
    pthread_mutex_unlock(&disk->lock);
    pthread_cond_signal(&disk->filled);
    return PLLM_OK;
}

static void await_one(disk_pread *disk, uint64_t timeout_ns)
{
    uint64_t deadline_ns;
    if (__builtin_add_overflow(pllm_clock_ns(), timeout_ns, &deadline_ns) ||
        deadline_ns > INT64_MAX)
        deadline_ns = INT64_MAX;
    struct timespec deadline = {(time_t)(deadline_ns / 1000000000u),
                                (long)(deadline_ns % 1000000000u)};
    int code = 0;
    while (!disk->done_count && code == 0)
        code = pthread_cond_timedwait(&disk->finished, &disk->lock, &deadline);
}

static int pread_poll(pllm_disk *base, pllm_disk_completion *completions, uint32_t completion_max,
                      uint64_t timeout_ns)
{
    disk_pread *disk = (disk_pread *)base;
    if (!disk->in_flight) return 0;
    uint32_t count = 0;
    pthread_mutex_lock(&disk->lock);
    if (!disk->done_count && timeout_ns) await_one(disk, timeout_ns);
    for (; count < completion_max && disk->done_count; count++) {
        completions[count] = disk->done[disk->done_first];
        disk->done_first = (disk->done_first + 1) % DEPTH;
        disk->done_count--;
    }
    pthread_mutex_unlock(&disk->lock);
    disk->in_flight -= count;
    return (int)count;
}

static void threads_stop(disk_pread *disk)
{
    pthread_mutex_lock(&disk->lock);
    disk->stop = 1;
    pthread_mutex_unlock(&disk->lock);
    pthread_cond_broadcast(&disk->filled);
    for (uint32_t i = 0; i < disk->thread_count; i++) pthread_join(disk->threads[i], NULL);
    pthread_cond_destroy(&disk->finished);
    pthread_cond_destroy(&disk->filled);
    pthread_mutex_destroy(&disk->lock);
}

static void pread_close(pllm_disk *base)
{
    disk_pread *disk = (disk_pread *)base;
    threads_stop(disk); /* they finish what is waiting */
    close(disk->fd);
    pllm_free(base->context, disk);
}

static uint32_t pread_depth(const pllm_disk *base)
{
    (void)base;
    return DEPTH;
}

static const pllm_disk_ops pread_ops = {
    .name = "pread",
    .close = pread_close,
    .submit = pread_submit,
    .poll = pread_poll,
    .depth = pread_depth,
};

/* Signals belong to the program's own threads. Fewer threads than wanted are enough. */
static int threads_start(disk_pread *disk)
{
    pthread_condattr_t monotonic;
    int code = pthread_mutex_init(&disk->lock, NULL);
    if (code) return code;
    pthread_cond_init(&disk->filled, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&disk->finished, &monotonic);
    pthread_condattr_destroy(&monotonic);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (disk->thread_count < THREADS && !code) {
        code = pthread_create(&disk->threads[disk->thread_count], NULL, disk_work, disk);
        if (!code) disk->thread_count++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (disk->thread_count) return 0;
    threads_stop(disk);
    return code;
}

int pllm_disk_open_pread(const pllm_context *context, const pllm_disk_options *options,
                         const pllm_spill *spill, pllm_disk **disk_out)
{
    disk_pread *disk = pllm_alloc(context, sizeof *disk);
    if (!disk) return pllm_fail_memory("a disk backend", sizeof *disk);
    disk->base = (pllm_disk){.ops = &pread_ops, .context = context, .direct = spill->direct};
    memcpy(disk->base.note, spill->note, sizeof spill->note);
    memcpy(disk->base.folder, spill->folder, sizeof spill->folder);
    disk->fd = spill->fd;
    disk->file_bytes = options->bytes;
    int code = threads_start(disk);
    if (code) {
        pllm_free(context, disk);
        return pllm_fail(PLLM_ELIMIT, code, "no thread could be started for the spill file: %s",
                         strerror(code));
    }
    *disk_out = &disk->base;
    return PLLM_OK;
}
