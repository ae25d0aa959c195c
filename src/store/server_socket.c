/* server_socket.c - where the daemon listens: the folder, the lock, the epoch, the socket file.
 *
 * PATH.lock is held (flock) for the daemon's life, so of two daemons on one path the second is
 * refused whatever state the socket file is in; its text is the number of the last start. The epoch
 * is that plus one, but at least the time of day: a folder that was wiped does not lead to numbers
 * that clients of an earlier daemon still hold. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include "store/server_internal.h"

/* The folder of the socket: made if it is missing; nobody else may put files in it or take them
 * away (a sticky one, like /tmp, lets everybody add, but not take away). */
static int folder_check(const char *path)
{
    char folder[PLLM_STORE_PATH_BYTES];
    struct stat about;
    const char *slash = strrchr(path, '/');
    size_t bytes = slash ? (size_t)(slash - path) : 0;
    if (!slash)
        strcpy(folder, ".");
    else
        snprintf(folder, sizeof folder, "%.*s", bytes ? (int)bytes : 1, path);
    if (mkdir(folder, 0700) < 0 && errno != EEXIST)
        return pllm_fail(errno == EACCES || errno == EPERM ? PLLM_EPERM : PLLM_EIO, errno,
                         "the socket's folder %s cannot be made: %s", folder, strerror(errno));
    if (stat(folder, &about) < 0)
        return pllm_fail(PLLM_EIO, errno, "the socket's folder %s: %s", folder, strerror(errno));
    if (!S_ISDIR(about.st_mode))
        return pllm_fail(PLLM_EPERM, 0, "%s is no folder: give another --socket", folder);
    if (about.st_uid != geteuid() && about.st_uid != 0)
        return pllm_fail(PLLM_EPERM, 0,
                         "the socket's folder %s belongs to user %u: give another --socket", folder,
                         about.st_uid);
    if (about.st_mode & 022 && !(about.st_mode & S_ISVTX))
        return pllm_fail(PLLM_EPERM, 0,
                         "others may write into the socket's folder %s: chmod go-w it, or give "
                         "another --socket",
                         folder);
    return PLLM_OK;
}

static int lock_take(pllm_store_server *server)
{
    char path[PLLM_STORE_PATH_BYTES + 8];
    struct stat about;
    snprintf(path, sizeof path, "%s.lock", server->path);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return pllm_fail(
            errno == EACCES || errno == ELOOP ? PLLM_EPERM : PLLM_EIO, errno,
            "%s cannot be made: %s: --socket needs a folder that is there and that this "
            "user may write to",
            path, strerror(errno));
    server->lock_fd = fd;
    if (fstat(fd, &about) < 0 || !S_ISREG(about.st_mode) || about.st_uid != geteuid())
        return pllm_fail(PLLM_EPERM, 0, "%s is no file of this user's: remove it", path);
    if (flock(fd, LOCK_EX | LOCK_NB) < 0)
        return pllm_fail(PLLM_EEXIST, errno,
                         "a store serves at %s already: stop it, or give another --socket",
                         server->path);
    return PLLM_OK;
}

static int epoch_take(pllm_store_server *server)
{
    char text[24] = {0};
    ssize_t got = pread(server->lock_fd, text, sizeof text - 1, 0);
    unsigned long long last = got > 0 ? strtoull(text, NULL, 10) : 0;
    unsigned long long now = (unsigned long long)time(NULL);
    if (last >= UINT32_MAX - 1) last = 0; /* no number of ours */
    unsigned long long epoch = last + 1 > now ? last + 1 : now;
    if (epoch == 0 || epoch >= UINT32_MAX) epoch = 1; /* after the year 2106 */
    int bytes = snprintf(text, sizeof text, "%llu\n", epoch);
    if (pwrite(server->lock_fd, text, (size_t)bytes, 0) != bytes ||
        ftruncate(server->lock_fd, bytes) < 0)
        return pllm_fail(PLLM_EIO, errno, "%s.lock cannot be written: %s", server->path,
                         strerror(errno));
    server->epoch = (uint32_t)epoch;
    return PLLM_OK;
}

/* What lies at the path goes, if it is a socket that nobody answers. The lock is ours. */
static int stale_remove(const struct sockaddr_un *address)
{
    struct stat about;
    if (lstat(address->sun_path, &about) < 0) return PLLM_OK;
    if (!S_ISSOCK(about.st_mode))
        return pllm_fail(PLLM_EEXIST, 0, "%s is no socket and stays: give another --socket",
                         address->sun_path);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int answered =
        fd >= 0 && (connect(fd, (const struct sockaddr *)address, sizeof *address) == 0 ||
                    errno != ECONNREFUSED);
    if (fd >= 0) close(fd);
    if (answered)
        return pllm_fail(PLLM_EEXIST, 0, "somebody listens at %s already: give another --socket",
                         address->sun_path);
    if (unlink(address->sun_path) < 0 && errno != ENOENT)
        return pllm_fail(PLLM_EIO, errno, "the old socket %s cannot be removed: %s",
                         address->sun_path, strerror(errno));
    return PLLM_OK;
}

int pllm_server_listen(pllm_store_server *server)
{
    struct sockaddr_un address;
    struct stat about;
    int status = pllm_wire_address(server->path, &address);
    if (status == PLLM_OK) status = folder_check(server->path);
    if (status == PLLM_OK) status = lock_take(server);
    if (status == PLLM_OK) status = epoch_take(server);
    if (status == PLLM_OK) status = stale_remove(&address);
    if (status < 0) return status;
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    server->listen_fd = fd;
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
        return pllm_fail(PLLM_EIO, errno, "no socket can be made at %s: %s", server->path,
                         strerror(errno));
    if (lstat(server->path, &about) == 0) {
        server->socket_device = about.st_dev;
        server->socket_inode = about.st_ino;
    }
    /* Nobody can connect before listen. */
    if (chmod(server->path, server->options.socket_mode) < 0 || listen(fd, SOMAXCONN) < 0)
        return pllm_fail(PLLM_EIO, errno, "%s: %s", server->path, strerror(errno));
    return PLLM_OK;
}

void pllm_server_unlisten(pllm_store_server *server)
{
    struct stat about;
    if (server->listen_fd >= 0) {
        if (server->socket_inode && lstat(server->path, &about) == 0 &&
            about.st_dev == server->socket_device && about.st_ino == server->socket_inode)
            unlink(server->path);
        close(server->listen_fd);
    }
    server->listen_fd = -1;
}
