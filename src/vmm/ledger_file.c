/* ledger_file.c - a ledger's file in shared memory.
 *
 * It is made without a name, filled, and then linked to its name in one step: nobody ever sees half
 * a ledger, and of two that make it at once one wins and the other opens that. What is opened must
 * be a plain file of this user alone, of this version and size, made in this pid namespace
 * (elsewhere every member would look dead), whose lock can be had and whose content obeys its
 * invariants. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "base/clock.h"
#include "vmm/ledger.h"
#include "vmm/ledger_file.h"

#define FOLDER "/dev/shm"
#define MAGIC ((uint64_t)0x72656764656c6c70) /* "plledger" */
enum { VERSION = 2, LOCK_SECONDS = 3, NAME_MAX_BYTES = 31 };

int pllm_ledger_path(const char *name, char *path, uint64_t path_bytes)
{
    static const char allowed[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    if (!name) name = "default";
    size_t bytes = strnlen(name, NAME_MAX_BYTES + 1);
    if (bytes == 0 || bytes > NAME_MAX_BYTES || strspn(name, allowed) != bytes)
        return pllm_fail(PLLM_EINVAL, 0,
                         "a ledger's name has 1 to %d letters, digits, '.', '_' or '-'",
                         NAME_MAX_BYTES);
    snprintf(path, path_bytes, FOLDER "/pagedllm-%u-%s", (unsigned)geteuid(), name);
    return PLLM_OK;
}

static uint64_t pid_namespace(void)
{
    struct stat found;
    return stat("/proc/self/ns/pid", &found) == 0 ? (uint64_t)found.st_ino : 0;
}

static int fail_io(const char *path, const char *what)
{
    int code = errno;
    return pllm_fail(PLLM_EIO, code, "the ledger %s cannot be %s: %s", path, what, strerror(code));
}

static int map_file(const char *path, int fd, pllm_ledger_file **file_out)
{
    void *at = mmap(NULL, sizeof **file_out, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) return fail_io(path, "mapped");
    *file_out = at;
    return PLLM_OK;
}

static int lock_init(pthread_mutex_t *lock)
{
    pthread_mutexattr_t kind;
    int code = pthread_mutexattr_init(&kind);
    if (code) return code;
    code = pthread_mutexattr_setpshared(&kind, PTHREAD_PROCESS_SHARED);
    if (!code) code = pthread_mutexattr_setrobust(&kind, PTHREAD_MUTEX_ROBUST);
    if (!code) code = pthread_mutex_init(lock, &kind);
    pthread_mutexattr_destroy(&kind);
    return code;
}

/* 1: it was there already. */
static int make_file(const char *path, uint64_t limit_bytes)
{
    pllm_ledger_file *file = NULL;
    char self[40];
    int fd = open(FOLDER, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0) return fail_io(path, "made");
    int status = PLLM_OK;
    /* Allocated now: without room, a later touch would be a SIGBUS. */
    int code = posix_fallocate(fd, 0, sizeof *file);
    if (code || fchmod(fd, 0600) != 0) {
        errno = code ? code : errno;
        status = fail_io(path, "made");
    }
    if (status == PLLM_OK) status = map_file(path, fd, &file);
    if (status == PLLM_OK) {
        pllm_ledger_core_init(&file->core, limit_bytes);
        file->pid_namespace = pid_namespace();
        file->file_bytes = sizeof *file;
        file->row_bytes = sizeof(pllm_ledger_row);
        file->lock_bytes = sizeof(pthread_mutex_t);
        file->version = VERSION;
        file->magic = MAGIC;
        code = lock_init(&file->lock);
        snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
        if (code)
            status = pllm_fail(PLLM_ENOMEM, code, "could not make the lock of a ledger");
        else if (linkat(AT_FDCWD, self, AT_FDCWD, path, AT_SYMLINK_FOLLOW) != 0)
            status = errno == EEXIST ? 1 : fail_io(path, "made");
        munmap(file, sizeof *file);
    }
    close(fd);
    return status;
}

static int check_stat(const char *path, int fd)
{
    struct stat found;
    if (fstat(fd, &found) != 0) return fail_io(path, "looked at");
    if (!S_ISREG(found.st_mode) || found.st_uid != geteuid() || (found.st_mode & 077) != 0)
        return pllm_fail(PLLM_EPERM, 0,
                         "%s is not a file of this user alone (mode 0600): it is not taken for a "
                         "ledger",
                         path);
    if (found.st_size != (off_t)sizeof(pllm_ledger_file))
        return pllm_fail(PLLM_ECORRUPT, 0,
                         "%s has %lld bytes, a ledger of this version %zu: remove it if nobody "
                         "uses it",
                         path, (long long)found.st_size, sizeof(pllm_ledger_file));
    return PLLM_OK;
}

/* After a death the core is made true before the lock counts as whole: who dies in between leaves
 * it to the next. */
static void after_lock(pllm_ledger_file *file, int code)
{
    if (code != EOWNERDEAD) return;
    pllm_ledger_core_recover(&file->core, pllm_clock_ns());
    pthread_mutex_consistent(&file->lock);
}

void pllm_ledger_file_lock(pllm_ledger_file *file)
{
    after_lock(file, pthread_mutex_lock(&file->lock));
}

void pllm_ledger_file_unlock(pllm_ledger_file *file)
{
    pthread_mutex_unlock(&file->lock);
}

static int check_content(const char *path, pllm_ledger_file *file)
{
    if (file->magic != MAGIC)
        return pllm_fail(PLLM_ECORRUPT, 0, "%s is no ledger: remove it if nobody uses it", path);
    if (file->version != VERSION || file->file_bytes != sizeof *file ||
        file->row_bytes != sizeof(pllm_ledger_row) || file->lock_bytes != sizeof file->lock)
        return pllm_fail(
            PLLM_EUNSUPPORTED, 0,
            "%s is a ledger of version %u, this library's is %d: end its members, then "
            "remove it",
            path, file->version, VERSION);
    if (file->pid_namespace != pid_namespace())
        return pllm_fail(PLLM_EUNSUPPORTED, 0,
                         "%s belongs to another pid namespace (a container): its members cannot be "
                         "seen from here",
                         path);
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += LOCK_SECONDS;
    int code = pthread_mutex_timedlock(&file->lock, &until);
    if (code && code != EOWNERDEAD)
        return pllm_fail(code == ETIMEDOUT ? PLLM_EBUSY : PLLM_ECORRUPT, code,
                         "the lock of %s cannot be had in %d s: a member is stopped, or the file "
                         "is damaged",
                         path, LOCK_SECONDS);
    after_lock(file, code);
    int broken = pllm_ledger_core_check(&file->core);
    pllm_ledger_file_unlock(file);
    if (!broken) return PLLM_OK;
    return pllm_fail(PLLM_ECORRUPT, broken,
                     "%s contradicts itself (rule %d): end its members, then remove it", path,
                     broken);
}

int pllm_ledger_file_open(const char *name, uint64_t limit_bytes, pllm_ledger_file **file_out)
{
    char path[96];
    *file_out = NULL;
    int status = pllm_ledger_path(name, path, sizeof path), fd = -1;
    /* Twice: what is there may go before it is opened, what is not may come before it is made. */
    for (int i = 0; status == PLLM_OK && fd < 0 && i < 3; i++) {
        fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
        if (fd >= 0) break;
        if (errno != ENOENT) return fail_io(path, "opened");
        if (limit_bytes == 0)
            return pllm_fail(PLLM_ENOTFOUND, 0,
                             "there is no ledger %s of this user: whoever gives it a limit "
                             "(--ledger-limit SIZE) makes it",
                             name ? name : "default");
        status = make_file(path, limit_bytes);
        if (status > 0) status = PLLM_OK;
    }
    if (status < 0) return status;
    if (fd < 0) return fail_io(path, "opened");
    pllm_ledger_file *file = NULL;
    status = check_stat(path, fd);
    if (status == PLLM_OK) status = map_file(path, fd, &file);
    close(fd);
    if (status == PLLM_OK) status = check_content(path, file);
    if (status < 0) {
        pllm_ledger_file_close(file);
        return status;
    }
    *file_out = file;
    return PLLM_OK;
}

void pllm_ledger_file_close(pllm_ledger_file *file)
{
    if (file) munmap(file, sizeof *file);
}
