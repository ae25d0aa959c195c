/* socket.c - the socket's side of wire.h: where it is, who is at the other end, packets in and out
 * with their descriptors. Descriptors that arrive are closed on every path that does not hand them
 * on. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include "base/text.h"
#include "store/wire.h"
#include "vmm/ledger.h"

int pllm_wire_default_path(char *path, size_t path_bytes)
{
    const char *runtime = getenv("XDG_RUNTIME_DIR");
    int length = runtime && *runtime == '/'
                     ? snprintf(path, path_bytes, "%s/pagedllm/store.sock", runtime)
                     : snprintf(path, path_bytes, "/tmp/pagedllm-%u/store.sock", geteuid());
    if (length >= 0 && (size_t)length < path_bytes &&
        (size_t)length < sizeof((struct sockaddr_un *)0)->sun_path)
        return PLLM_OK;
    return pllm_fail(PLLM_ELIMIT, 0,
                     "XDG_RUNTIME_DIR is too long for a socket's name: give a --socket path");
}

int pllm_wire_address(const char *path, struct sockaddr_un *address_out)
{
    char quoted[PLLM_QUOTE_BYTES];
    size_t bytes = strlen(path);
    if (bytes == 0 || bytes >= sizeof address_out->sun_path)
        return pllm_fail(PLLM_EINVAL, 0, "a socket's path has 1 to %zu characters: %s has not",
                         sizeof address_out->sun_path - 1,
                         pllm_text_quote(path, quoted, sizeof quoted));
    *address_out = (struct sockaddr_un){.sun_family = AF_UNIX};
    memcpy(address_out->sun_path, path, bytes + 1);
    return PLLM_OK;
}

int pllm_wire_process_start(uint32_t pid, uint64_t *start_out)
{
    pllm_ledger_process found;
    int status = pllm_ledger_process_find((int32_t)pid, &found);
    if (status == PLLM_OK) *start_out = found.start;
    return status;
}

int pllm_wire_process_lives(uint32_t pid, uint64_t start)
{
    uint64_t found = 0;
    int status = pllm_wire_process_start(pid, &found);
    return status == PLLM_OK ? found == start : status != PLLM_ENOTFOUND;
}

int pllm_wire_peer(int fd, pllm_store_peer *peer_out)
{
    struct ucred credentials;
    socklen_t bytes = sizeof credentials;
    *peer_out = (pllm_store_peer){0};
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &bytes) < 0)
        return pllm_fail(PLLM_EIO, errno, "the kernel does not say who connected: %s",
                         strerror(errno));
    peer_out->uid = credentials.uid;
    peer_out->gid = credentials.gid;
    peer_out->pid = (uint32_t)credentials.pid;
#ifdef SO_PEERGROUPS
    gid_t groups[PLLM_STORE_GROUPS_MAX];
    bytes = sizeof groups;
    /* With more groups than that the call fails, and only the first one counts. */
    if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &bytes) == 0) {
        peer_out->group_count = bytes / (uint32_t)sizeof *groups;
        for (uint32_t i = 0; i < peer_out->group_count; i++) peer_out->groups[i] = groups[i];
    }
#endif
    /* 0 where /proc does not show it: a socket lease does not need it. */
    (void)pllm_wire_process_start(peer_out->pid, &peer_out->pid_start);
    return PLLM_OK;
}

int pllm_wire_connect(const char *path, uint32_t timeout_ms, int *fd_out)
{
    *fd_out = -1;
    char usual[sizeof((struct sockaddr_un *)0)->sun_path];
    struct sockaddr_un address;
    int status = path ? PLLM_OK : pllm_wire_default_path(usual, sizeof usual);
    if (status == PLLM_OK) status = pllm_wire_address(path ? path : usual, &address);
    if (status < 0) return status;
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0) return pllm_fail(PLLM_EIO, errno, "no socket can be had: %s", strerror(errno));
    struct timeval limit = {timeout_ms / 1000, timeout_ms % 1000 * 1000};
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        int code = errno;
        close(fd);
        if (code == EACCES || code == EPERM)
            return pllm_fail(PLLM_EPERM, code, "this user may not connect to %s", address.sun_path);
        if (code == EAGAIN)
            return pllm_fail(PLLM_ETIMEDOUT, code,
                             "no daemon took the connection at %s within "
                             "%u ms",
                             address.sun_path, timeout_ms);
        return pllm_fail(PLLM_EIO, code,
                         "no store answers at %s (%s): start one with `pagedllm store serve`",
                         address.sun_path, strerror(code));
    }
    /* At the default path anybody may have been first to make the folder in /tmp. */
    pllm_store_peer daemon;
    status = pllm_wire_peer(fd, &daemon);
    if (status == PLLM_OK && !path && daemon.uid != geteuid() && daemon.uid != 0)
        status = pllm_fail(PLLM_EPERM, 0, "the store at %s belongs to user %u, not to this one",
                           address.sun_path, daemon.uid);
    if (status < 0) {
        close(fd);
        return status;
    }
    *fd_out = fd;
    return PLLM_OK;
}

typedef union fd_control { /* aligned as the kernel's header wants it */
    char bytes[CMSG_SPACE(PLLM_WIRE_FDS_MAX * sizeof(int))];
    struct cmsghdr header;
} fd_control;

int pllm_wire_send(int fd, const void *packet, size_t bytes, const int *fds, uint32_t fd_count,
                   int dont_wait)
{
    struct iovec part = {(void *)(uintptr_t)packet, bytes};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    fd_control control;
    if (fd_count > PLLM_WIRE_FDS_MAX)
        return pllm_fail(PLLM_ELIMIT, 0, "a message carries at most %d descriptors",
                         PLLM_WIRE_FDS_MAX);
    if (fd_count) {
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
        memset(control.bytes, 0, message.msg_controllen);
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(fd_count * sizeof(int));
        memcpy(CMSG_DATA(head), fds, fd_count * sizeof(int));
    }
    ssize_t sent;
    do sent = sendmsg(fd, &message, MSG_NOSIGNAL | (dont_wait ? MSG_DONTWAIT : 0));
    while (sent < 0 && errno == EINTR);
    if (sent >= 0) return PLLM_OK;
    if (errno == EAGAIN)
        return dont_wait ? PLLM_EBUSY
                         : pllm_fail(PLLM_ETIMEDOUT, errno,
                                     "the store did not take a message in "
                                     "time");
    return pllm_fail(PLLM_EIO, errno, "the store's connection is gone: %s", strerror(errno));
}

/* The descriptors that came: kept in fds while there is room, else closed. 1: all were kept. */
static int take_fds(struct msghdr *message, int *fds, uint32_t fd_max, uint32_t *fd_count_out)
{
    int all = 1;
    *fd_count_out = 0;
    for (struct cmsghdr *head = CMSG_FIRSTHDR(message); head; head = CMSG_NXTHDR(message, head)) {
        if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS) continue;
        size_t count = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(head) + i * sizeof(int), sizeof fd);
            if (*fd_count_out < fd_max) {
                fds[(*fd_count_out)++] = fd;
            } else {
                close(fd);
                all = 0;
            }
        }
    }
    return all;
}

int pllm_wire_receive(int fd, void *packet, size_t packet_bytes, size_t *bytes_out, int *fds,
                      uint32_t fd_max, uint32_t *fd_count_out, int dont_wait)
{
    *bytes_out = 0;
    *fd_count_out = 0;
    struct iovec part = {packet, packet_bytes};
    fd_control control;
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    ssize_t got;
    do got = recvmsg(fd, &message, MSG_CMSG_CLOEXEC | (dont_wait ? MSG_DONTWAIT : 0));
    while (got < 0 && errno == EINTR);
    if (got < 0) {
        if (errno == EAGAIN)
            return dont_wait ? PLLM_EBUSY
                             : pllm_fail(PLLM_ETIMEDOUT, errno, "the store did not answer in time");
        return pllm_fail(PLLM_EIO, errno, "the store's connection is gone: %s", strerror(errno));
    }
    int all = take_fds(&message, fds, fd_max, fd_count_out);
    if (!all || message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) {
        for (uint32_t i = 0; i < *fd_count_out; i++) close(fds[i]);
        *fd_count_out = 0;
        if (!(message.msg_flags & MSG_TRUNC)) *bytes_out = (size_t)got;
        return pllm_fail(PLLM_ELIMIT, 0, "a message came with more %s",
                         message.msg_flags & MSG_TRUNC
                             ? "bytes than are allowed"
                             : "descriptors than can be taken (ulimit -n?)");
    }
    *bytes_out = (size_t)got;
    return PLLM_OK;
}
