/* server_client.c - connections: accepted, read from, answered, and dropped with a reason.
 *
 * Answers go straight to the socket. One that finds no room is copied (with copies of its
 * descriptors) and the client is not read from until it is out: so at most one waits, and how much
 * a client can have in flight is what its socket holds. An event that finds no room is lost, and
 * counted; the client is told when there is room again.
 *
 * The kernel counts descriptors in flight against the sender's user, for all receivers together. So
 * answers with descriptors also wait where the client has not read those before (SIOCOUTQ). */
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>
#include "base/clock.h"
#include "store/server_internal.h"

enum {
    FDS_UNREAD_MAX = 256, /* before the kernel is asked whether they were read */
    MESSAGES_PER_WAKE = 16,
    ACCEPTS_PER_WAKE = 64,
    LOG_LINES_PER_SECOND = 20,
};

/* Lines that clients cause are few, however many clients cause them. */
static int may_log(pllm_store_server *server)
{
    uint64_t second = server->now_ns / 1000000000u;
    if (second != server->log_second) {
        server->log_second = second;
        server->log_count = 0;
    }
    return server->log_count++ < LOG_LINES_PER_SECOND;
}

static uint32_t index_of(const pllm_store_server *server, const client *c)
{
    return (uint32_t)(c - server->clients);
}

static void wait_for(pllm_store_server *server, client *c, uint32_t events)
{
    if (c->waiting) events &= ~(uint32_t)EPOLLIN;
    if (c->epoll_events == events) return;
    struct epoll_event event = {.events = events, .data.u64 = index_of(server, c)};
    if (epoll_ctl(server->epoll_fd, EPOLL_CTL_MOD, c->fd, &event) == 0) c->epoll_events = events;
}

static void pending_forget(pllm_store_server *server, client *c)
{
    if (!c->pending) return;
    for (uint32_t i = 0; i < c->pending_fd_count; i++) close(c->pending_fds[i]);
    pllm_free(server->context, c->pending);
    c->pending = NULL;
    server->stalled--;
}

static void waiting_forget(pllm_store_server *server, client *c)
{
    uint32_t kept = 0;
    if (!c->waiting) return;
    pllm_free(server->context, c->waiting);
    c->waiting = NULL;
    for (uint32_t i = 0; i < server->waiting_count; i++)
        if (server->waiting[i] != index_of(server, c)) server->waiting[kept++] = server->waiting[i];
    server->waiting_count = kept;
}

/* ---- accepted and dropped ---- */

static int too_many(const pllm_store_server *server, uint32_t uid)
{
    if (pllm_server_own(server, uid)) return 0;
    uint32_t count = 0;
    for (uint32_t i = 0; i < server->options.client_max; i++)
        count += server->clients[i].state != CLIENT_FREE && server->clients[i].peer.uid == uid;
    return count >= server->options.client_per_user_max;
}

static void client_add(pllm_store_server *server, int fd)
{
    pllm_store_peer peer;
    const char *why = NULL;
    if (pllm_wire_peer(fd, &peer) < 0)
        why = "the kernel does not say who it is";
    else if (server->free_client < 0)
        why = "there are as many clients as may be";
    else if (too_many(server, peer.uid))
        why = "its user has as many clients as may be";
    if (!why) {
        client *c = &server->clients[server->free_client];
        struct epoll_event event = {.events = EPOLLIN, .data.u64 = index_of(server, c)};
        if (epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0) {
            server->free_client = c->next;
            *c = (client){.fd = fd,
                          .state = CLIENT_NEW,
                          .epoll_events = EPOLLIN,
                          .peer = peer,
                          .since_ns = server->now_ns};
            server->stats.client_count++;
            return;
        }
        why = strerror(errno);
    }
    close(fd);
    if (may_log(server))
        pllm_log(server->context, PLLM_LOG_WARN, "store: a client is refused: %s", why);
}

void pllm_server_listen_for(pllm_store_server *server, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.u64 = (uint64_t)PLLM_SERVER_LISTEN << 32};
    if (epoll_ctl(server->epoll_fd, EPOLL_CTL_MOD, server->listen_fd, &event) == 0)
        server->deaf = events == 0;
}

void pllm_server_spare_open(pllm_store_server *server)
{
    server->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

void pllm_server_accept(pllm_store_server *server)
{
    for (int i = 0; i < ACCEPTS_PER_WAKE; i++) {
        int fd = accept4(server->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            client_add(server, fd);
            continue;
        }
        if (errno == EINTR || errno == ECONNABORTED) continue;
        if ((errno == EMFILE || errno == ENFILE) && server->spare_fd >= 0) {
            /* No descriptor is left: one was kept for taking the connection and closing it, as it
             * would else wake us for ever. */
            close(server->spare_fd);
            fd = accept4(server->listen_fd, NULL, NULL, SOCK_CLOEXEC);
            if (fd >= 0) close(fd);
            pllm_server_spare_open(server);
            if (may_log(server))
                pllm_log(server->context, PLLM_LOG_WARN,
                         "store: a client is refused: all descriptors are taken (ulimit -n)");
            continue;
        }
        /* Another thread took the one that was kept: nobody is let in until there is one again. */
        if (errno == EMFILE || errno == ENFILE) pllm_server_listen_for(server, 0);
        return;
    }
}

/* What its end means for what it holds: nothing more to come is an end in good order; a process
 * that lives on may still have memory mapped, and imports it until it ends. */
static void lease_end(pllm_store_server *server, client *c)
{
    if (!c->lease) return;
    if (c->peer.pid == 0 || c->peer.pid_start == 0) {
        pllm_registry_lease_close(server->registry, c->lease, PLLM_STORE_END_LOST, server->now_ns);
    } else if (pllm_wire_process_lives(c->peer.pid, c->peer.pid_start)) {
        pllm_registry_lease_orphan(server->registry, c->lease, PLLM_STORE_END_DIED, server->now_ns);
        /* Who is just dying will be seen soon. */
        uint64_t soon = server->now_ns + 5000000;
        if (server->sweep_ns > soon) server->sweep_ns = soon;
    } else {
        pllm_registry_lease_close(server->registry, c->lease, PLLM_STORE_END_DIED, server->now_ns);
    }
    c->lease = 0;
}

static void watches_end(pllm_store_server *server, client *c)
{
    for (uint32_t i = 0; c->watch_count && i < server->watch_end; i++) {
        if (server->watches[i].client != (int)index_of(server, c)) continue;
        server->watches[i].client = -1;
        server->stats.watch_count--;
        c->watch_count--;
    }
}

void pllm_server_drop(pllm_store_server *server, client *c, const char *why)
{
    if (c->state == CLIENT_FREE) return;
    if (why) {
        server->stats.dropped_count++;
        if (may_log(server))
            pllm_log(server->context, PLLM_LOG_WARN,
                     "store: the client of process %u, user %u, is dropped: %s", c->peer.pid,
                     c->peer.uid, why);
    }
    pending_forget(server, c);
    waiting_forget(server, c);
    watches_end(server, c);
    close(c->fd); /* leaves the epoll set */
    c->state = CLIENT_FREE;
    c->next = server->free_client;
    server->free_client = (int)index_of(server, c);
    server->stats.client_count--;
    lease_end(server, c);
    pllm_server_effects(server); /* may tell other clients; this one is gone */
}

/* ---- answered ---- */

static int unread(client *c, uint32_t fd_count)
{
    if (fd_count == 0 || c->fds_unread + fd_count <= FDS_UNREAD_MAX) return 0;
    int bytes = 0;
    if (ioctl(c->fd, SIOCOUTQ, &bytes) == 0 && bytes > 0) return 1;
    c->fds_unread = 0;
    return 0;
}

static int try_send(client *c, const void *packet, uint32_t bytes, const int *fds,
                    uint32_t fd_count)
{
    if (unread(c, fd_count)) return PLLM_EBUSY;
    int status = pllm_wire_send(c->fd, packet, bytes, fds, fd_count, 1);
    if (status == PLLM_OK) c->fds_unread += fd_count;
    return status;
}

/* The answer waits, with copies of its descriptors: the tensor may be gone before it is sent. */
static int pend(pllm_store_server *server, client *c, uint32_t bytes, uint32_t fd_count)
{
    uint64_t fds_at = (bytes + 7u) & ~7u;
    c->pending = pllm_alloc(server->context, fds_at + fd_count * sizeof(int));
    if (!c->pending) return PLLM_ENOMEM;
    memcpy(c->pending, server->out, bytes);
    c->pending_bytes = bytes;
    c->pending_fds = (int *)(void *)(c->pending + fds_at);
    c->pending_fd_count = 0;
    c->since_ns = server->now_ns;
    server->stalled++;
    for (uint32_t i = 0; i < fd_count; i++) {
        int copy = fcntl(server->out_fds[i], F_DUPFD_CLOEXEC, 0);
        if (copy < 0) return PLLM_EIO;
        c->pending_fds[c->pending_fd_count++] = copy;
    }
    wait_for(server, c, unread(c, fd_count) ? 0 : EPOLLOUT);
    return PLLM_OK;
}

/* Why a client goes with whom nothing could be exchanged; NULL: it has gone itself. */
static const char *gone(int status)
{
    const pllm_error *error = pllm_last_error();
    int itself = status == PLLM_EIO && (error->native == EPIPE || error->native == ECONNRESET);
    return itself ? NULL : error->text;
}

/* Sends server->answer. 0: the client may go on; else it was dropped or must wait. */
static int answer(pllm_store_server *server, client *c, int status)
{
    pllm_wire_message *message = &server->answer;
    message->op = server->request.op | PLLM_WIRE_ANSWER;
    message->request = server->request.request;
    message->status = status < 0 ? status : PLLM_OK;
    if (status < 0) {
        const pllm_error *error = pllm_last_error();
        const char *text = error->status == status ? error->text : pllm_status_name(status);
        size_t bytes = strlen(text);
        message->fd_count = 0;
        message->error.data = text;
        message->error.bytes = (uint32_t)(bytes < PLLM_WIRE_TEXT_MAX ? bytes : PLLM_WIRE_TEXT_MAX);
        server->stats.refused_count++;
    }
    if (message->request == 0) return 0; /* no answer is wanted */
    int bytes = pllm_wire_encode(message, server->out, PLLM_WIRE_PACKET_BYTES);
    if (bytes < 0) {
        pllm_server_drop(server, c, pllm_last_error()->text);
        return 1;
    }
    status = try_send(c, server->out, (uint32_t)bytes, server->out_fds, message->fd_count);
    if (status == PLLM_OK) return 0;
    if (status == PLLM_EBUSY) {
        status = pend(server, c, (uint32_t)bytes, message->fd_count);
        if (status < 0) pllm_server_drop(server, c, "its answer cannot be kept for it");
    } else {
        pllm_server_drop(server, c, gone(status));
    }
    return 1;
}

int pllm_server_event_send(pllm_store_server *server, client *c, const pllm_wire_message *event)
{
    if (c->pending || c->lost_count) return PLLM_EBUSY;
    int bytes = pllm_wire_encode(event, server->out, PLLM_WIRE_PACKET_BYTES);
    if (bytes < 0) return PLLM_EBUSY;
    /* A connection that broke is met when it is read from. */
    return try_send(c, server->out, (uint32_t)bytes, NULL, 0) == PLLM_OK ? PLLM_OK : PLLM_EBUSY;
}

/* There is room again, perhaps: first the answer that waits, then the word about lost events. */
static void flush(pllm_store_server *server, client *c)
{
    if (c->pending) {
        int status = try_send(c, c->pending, c->pending_bytes, c->pending_fds, c->pending_fd_count);
        if (status == PLLM_EBUSY) {
            wait_for(server, c, unread(c, c->pending_fd_count) ? 0 : EPOLLOUT);
            return;
        }
        if (status < 0) {
            pllm_server_drop(server, c, gone(status));
            return;
        }
        pending_forget(server, c);
    }
    if (c->lost_count) {
        uint64_t lost = c->lost_count;
        pllm_wire_message event = {.op = PLLM_WIRE_EVENT};
        c->lost_count = 0; /* or it would not be sent */
        if (pllm_server_event_send(server, c, &event) < 0) {
            c->lost_count = lost;
            wait_for(server, c, EPOLLIN | EPOLLOUT);
            return;
        }
    }
    wait_for(server, c, EPOLLIN);
}

void pllm_server_stalled(pllm_store_server *server)
{
    for (uint32_t i = 0; i < server->options.client_max; i++) {
        client *c = &server->clients[i];
        if (c->state != CLIENT_FREE && c->pending && c->epoll_events == 0) flush(server, c);
    }
}

void pllm_server_patrol(pllm_store_server *server)
{
    uint64_t hello_ns = (uint64_t)server->options.hello_ms * 1000000;
    uint64_t stall_ns = (uint64_t)server->options.stall_ms * 1000000;
    for (uint32_t i = 0; i < server->options.client_max; i++) {
        client *c = &server->clients[i];
        if (c->state == CLIENT_FREE) continue;
        uint64_t age = server->now_ns - c->since_ns;
        if (c->state == CLIENT_NEW && age > hello_ns)
            pllm_server_drop(server, c, "it did not say hello");
        else if (c->pending && age > stall_ns)
            pllm_server_drop(server, c, "it does not take its answers");
        else if (c->lost_count && !c->pending && !(c->epoll_events & EPOLLOUT))
            wait_for(server, c, EPOLLIN | EPOLLOUT);
    }
}

/* ---- read from ---- */

/* The message in server->in is carried out when what server->wait says has ended. */
static int client_wait(pllm_store_server *server, client *c, size_t bytes)
{
    c->waiting = pllm_alloc(server->context, bytes);
    if (!c->waiting) return pllm_fail_memory("a message that waits", bytes);
    memcpy(c->waiting, server->in, bytes);
    c->waiting_bytes = (uint32_t)bytes;
    c->wait = server->wait;
    server->waiting[server->waiting_count++] = index_of(server, c);
    wait_for(server, c, EPOLLIN); /* of which there is none now */
    return PLLM_SERVER_WAITS;
}

void pllm_server_client_again(pllm_store_server *server, client *c, int status)
{
    uint8_t *message = c->waiting; /* texts of the request point into it */
    pllm_error error = *pllm_last_error();
    int decoded = pllm_wire_decode(message, c->waiting_bytes, &server->request);
    if (status < 0) {
        (void)pllm_fail(status, error.native, "%s", error.text);
    } else {
        pllm_error_clear();
        status = decoded < 0 ? decoded : pllm_server_request(server, c);
        pllm_server_effects(server);
    }
    if (status == PLLM_SERVER_WAITS) {
        c->wait = server->wait;
        server->waiting[server->waiting_count++] = index_of(server, c);
        return;
    }
    c->waiting = NULL;
    wait_for(server, c, EPOLLIN);
    (void)answer(server, c, status);
    pllm_free(server->context, message);
}

/* One message. 0: there may be more; 1: enough for now, or the client is gone. */
static int client_read(pllm_store_server *server, client *c)
{
    size_t bytes = 0;
    uint32_t fd_count = 0;
    int status = pllm_wire_receive(c->fd, server->in, PLLM_WIRE_PACKET_BYTES, &bytes,
                                   server->in_fds, PLLM_WIRE_FDS_MAX, &fd_count, 1);
    if (status == PLLM_EBUSY) return 1;
    server->stats.request_count++;
    const char *why = NULL;
    if (status < 0 && gone(status)) {
        why = gone(status);
    } else if (status < 0 || bytes == 0) {
        for (uint32_t i = 0; i < fd_count; i++) close(server->in_fds[i]);
        pllm_server_drop(server, c, NULL);
        return 1;
    } else if (pllm_wire_decode(server->in, bytes, &server->request) < 0) {
        why = pllm_last_error()->text;
    } else if (server->request.op & PLLM_WIRE_ANSWER || server->request.op == PLLM_WIRE_EVENT) {
        why = "it sent what only the store says";
    } else if (server->request.fd_count != fd_count) {
        why = "its message came with another number of descriptors than it says";
    } else if (c->state == CLIENT_NEW && server->request.op != PLLM_WIRE_HELLO) {
        why = "it did not begin with hello";
    }
    if (why) {
        for (uint32_t i = 0; i < fd_count; i++) close(server->in_fds[i]);
        pllm_server_drop(server, c, why);
        return 1;
    }
    pllm_error_clear();
    status = pllm_server_request(server, c);
    for (uint32_t i = 0; i < fd_count; i++) close(server->in_fds[i]);
    pllm_server_effects(server);
    if (status == PLLM_SERVER_WAITS) status = client_wait(server, c, bytes);
    if (status == PLLM_SERVER_WAITS) return 1;
    int wanted = server->request.request != 0;
    /* Who asked waits for the answer, and has likely sent nothing more. */
    return answer(server, c, status) || wanted;
}

void pllm_server_client_event(pllm_store_server *server, client *c, uint32_t events)
{
    if (c->state == CLIENT_FREE) return; /* dropped since the wait returned */
    if (events & EPOLLOUT) {
        flush(server, c);
        if (c->state == CLIENT_FREE) return;
    }
    if (events & EPOLLIN && !c->pending && !c->waiting) {
        for (int i = 0; i < MESSAGES_PER_WAKE; i++)
            if (client_read(server, c)) break;
        return;
    }
    /* Nobody is there; with an answer pending nothing is read, and this is the only sign. */
    if (events & (EPOLLHUP | EPOLLERR)) pllm_server_drop(server, c, NULL);
}
