/* spill.c - makes the spill file.
 *
 *   choose folder -> is there room? (statvfs) -> open without a name (O_TMPFILE; else a name that
 *   is removed at once) -> take the room (fallocate) -> does O_DIRECT really work? (one read)
 *
 * A killed process therefore leaves nothing. A file system in memory works, but spilling there
 * frees no memory, which the note says. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <unistd.h>
#include "base/size.h"
#include "tier/spill.h"

enum { UNIT = 4096, PATH_BYTES = 4096, TMPFS_MAGIC_NUMBER = 0x01021994 };

void pllm_disk_note(char note[160], const char *format, ...)
{
    size_t used = strlen(note);
    if (used && used + 3 < 160) used += (size_t)snprintf(note + used, 160 - used, "; ");
    va_list arguments;
    va_start(arguments, format);
    if (used < 159) vsnprintf(note + used, 160 - used, format, arguments);
    va_end(arguments);
}

/* ---- the folder ---- */

/* mkdir -p, for the user alone. */
static int folders_make(char *path)
{
    for (char *slash = strchr(path + 1, '/');; slash = strchr(slash + 1, '/')) {
        if (slash) *slash = 0;
        int failed = mkdir(path, 0700) && errno != EEXIST;
        if (slash) *slash = '/';
        if (failed) return errno;
        if (!slash) return 0;
    }
}

static int folder_default(char path[PATH_BYTES])
{
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int length = -1;
    if (cache && cache[0] == '/')
        length = snprintf(path, PATH_BYTES, "%s/pagedllm", cache);
    else if (home && home[0] == '/')
        length = snprintf(path, PATH_BYTES, "%s/.cache/pagedllm", home);
    if (length < 0 || length >= PATH_BYTES)
        return pllm_fail(PLLM_EIO, ENOENT,
                         "neither XDG_CACHE_HOME nor HOME names a folder for the spill file; "
                         "choose one with --nvme-path");
    int code = folders_make(path);
    if (code)
        return pllm_fail(PLLM_EIO, code,
                         "the folder %s for the spill file could not be made: %s; choose another "
                         "with --nvme-path",
                         path, strerror(code));
    return PLLM_OK;
}

static int folder_choose(const char *folder, char path[PATH_BYTES])
{
    if (!folder || !folder[0]) return folder_default(path);
    if (strlen(folder) >= PATH_BYTES - 32)
        return pllm_fail(PLLM_EINVAL, 0, "the path of the spill folder is longer than %d bytes",
                         PATH_BYTES - 32);
    strcpy(path, folder);
    return PLLM_OK;
}

/* ---- room ---- */

static int no_room(const char *folder, uint64_t bytes, uint64_t available_bytes, int native)
{
    char needed[PLLM_SIZE_TEXT_BYTES], available[PLLM_SIZE_TEXT_BYTES];
    pllm_size_text(bytes, needed, sizeof needed);
    pllm_size_text(available_bytes, available, sizeof available);
    return pllm_fail(PLLM_ELIMIT, native,
                     "the spill file needs %s, but %s has %s available: give less with "
                     "--nvme-size, or another folder with --nvme-path",
                     needed, folder, available);
}

static int room_check(const char *folder, uint64_t bytes)
{
    struct statvfs room;
    if (statvfs(folder, &room))
        return pllm_fail(PLLM_EIO, errno,
                         "the folder %s for the spill file cannot be used: %s; choose another with "
                         "--nvme-path",
                         folder, strerror(errno));
    uint64_t available = (uint64_t)room.f_bavail * room.f_frsize;
    if (bytes > available || bytes > INT64_MAX) return no_room(folder, bytes, available, ENOSPC);
    return PLLM_OK;
}

static int room_take(const char *folder, pllm_spill *spill, uint64_t bytes)
{
    int code;
    do code = fallocate(spill->fd, 0, 0, (off_t)bytes) ? errno : 0;
    while (code == EINTR);
    if (code == EOPNOTSUPP || code == ENOSYS) {
        pllm_disk_note(spill->note, "the file system takes no room in advance");
        code = ftruncate(spill->fd, (off_t)bytes) ? errno : 0;
    }
    if (!code) return PLLM_OK;
    struct statvfs room = {0};
    if (code == ENOSPC || code == EFBIG || code == EDQUOT) {
        (void)fstatvfs(spill->fd, &room);
        return no_room(folder, bytes, (uint64_t)room.f_bavail * room.f_frsize, code);
    }
    return pllm_fail(PLLM_EIO, code, "the spill file in %s could not be sized: %s", folder,
                     strerror(code));
}

/* ---- the file ---- */

static int file_open(const char *folder, int flags)
{
    int fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC | flags, 0600);
    /* Old kernels see O_TMPFILE as O_DIRECTORY: EISDIR; file systems without it: EOPNOTSUPP. */
    if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != ENOENT)) return fd;
    char path[PATH_BYTES + 32];
    snprintf(path, sizeof path, "%s/pagedllm-spill-XXXXXX", folder);
    fd = mkostemp(path, O_CLOEXEC | flags);
    if (fd >= 0) unlink(path);
    return fd;
}

/* Some file systems take the flag and then refuse the reads. */
static int direct_works(int fd)
{
    _Alignas(UNIT) char unit[UNIT];
    return pread(fd, unit, UNIT, 0) == UNIT;
}

static void direct_drop(pllm_spill *spill, const char *why)
{
    spill->direct = 0;
    pllm_disk_note(spill->note, "%s", why);
    int flags = fcntl(spill->fd, F_GETFL);
    if (flags >= 0) (void)fcntl(spill->fd, F_SETFL, flags & ~O_DIRECT);
}

int pllm_spill_open(const pllm_context *context, const char *folder, uint64_t bytes,
                    pllm_spill *spill_out)
{
    *spill_out = (pllm_spill){.fd = -1};
    char *path = pllm_alloc(context, PATH_BYTES);
    if (!path) return pllm_fail_memory("a path", PATH_BYTES);
    pllm_spill spill = {.fd = -1, .direct = 1};
    struct statfs system;
    int status = folder_choose(folder, path);
    if (status == PLLM_OK) status = room_check(path, bytes);
    if (status < 0) goto done;
    snprintf(spill.folder, sizeof spill.folder, "%s", path);
    spill.fd = file_open(path, O_DIRECT);
    if (spill.fd < 0 && errno == EINVAL) {
        spill.fd = file_open(path, 0);
        if (spill.fd >= 0) direct_drop(&spill, "the file system has no O_DIRECT");
    }
    if (spill.fd < 0) {
        status = pllm_fail(PLLM_EIO, errno,
                           "the spill file could not be made in %s: %s; choose another folder with "
                           "--nvme-path",
                           path, strerror(errno));
        goto done;
    }
    status = room_take(path, &spill, bytes);
    if (status < 0) {
        close(spill.fd);
        goto done;
    }
    if (fstatfs(spill.fd, &system) == 0 && system.f_type == TMPFS_MAGIC_NUMBER)
        direct_drop(&spill, "the spill folder is in memory (tmpfs): spilling frees none");
    else if (spill.direct && !direct_works(spill.fd))
        direct_drop(&spill, "O_DIRECT does not work there");
    *spill_out = spill;
done:
    pllm_free(context, path);
    return status;
}
