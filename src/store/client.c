/* client.c - the client's connection: asking, answers, and a daemon that went and came back
 * (include/pagedllm/tensor_store.h).
 *
 * An answer that comes too late, after its call gave up, is known by its number: what it brought is
 * given back (client_offer.c). A question that could not be sent was not heard, and is asked again
 * once on a new connection; one that was sent and not answered may have been carried out, and
 * fails. */
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "base/clock.h"
#include "device/open.h"
#include "store/client_internal.h"

#define LOOK_NS UINT64_C(20000000) /* between looks at the socket of calls that ask nothing */

pllm_wire_text pllm_store_text(const char *text)
{
    size_t bytes = text ? strlen(text) : 0;
    /* Longer ones are refused by the daemon's rules: cut where they are too long for sure. */
    return (pllm_wire_text){text, bytes > 4096 ? 4096 : (uint32_t)bytes};
}

void pllm_store_received_close(pllm_store *store)
{
    for (uint32_t i = 0; i < store->received_count; i++) close(store->received[i]);
    store->received_count = 0;
}

/* Who waits for events looks again at which number the socket has. */
static void wake(pllm_store *store)
{
    uint64_t one = 1;
    (void)!write(store->wake, &one, sizeof one); /* full: it is readable already */
}

static void tell_fd_set(pllm_store *store, int fd)
{
    pthread_mutex_lock(&store->tell_lock);
    store->tell_fd = fd;
    pthread_mutex_unlock(&store->tell_lock);
}

static void disconnect(pllm_store *store)
{
    tell_fd_set(store, -1);
    if (store->fd >= 0) {
        close(store->fd);
        wake(store);
    }
    store->fd = -1;
    store->late_count = 0;
    pllm_store_received_close(store);
}

static int gone(pllm_store *store)
{
    disconnect(store);
    return pllm_fail(PLLM_EIO, ECONNRESET,
                     "the store's daemon at %s has gone: what is open stays readable; try again "
                     "when it is back",
                     store->path);
}

int pllm_store_check_process(const pllm_store *store)
{
    if (store->pid == getpid()) return PLLM_OK;
    return pllm_fail(PLLM_EINVAL, 0, "this store is that of process %d, which forked: open another",
                     (int)store->pid);
}

/* ---- one packet there, one back ---- */

static int send_out(pllm_store *store, uint32_t op, uint32_t request, const int *fds)
{
    store->out.op = op;
    store->out.request = request;
    store->out.status = PLLM_OK;
    int bytes = pllm_wire_encode(&store->out, store->packet, sizeof store->packet);
    if (bytes < 0) return bytes;
    return pllm_wire_send(store->fd, store->packet, (size_t)bytes, fds, store->out.fd_count, 0);
}

/* The next packet that is there, decoded into store->in. EBUSY (bare): there is none. */
static int receive_in(pllm_store *store)
{
    size_t bytes;
    pllm_store_received_close(store);
    if (store->fd < 0) return gone(store);
    int status = pllm_wire_receive(store->fd, store->packet, sizeof store->packet, &bytes,
                                   store->received, PLLM_WIRE_FDS_MAX, &store->received_count, 1);
    if (status == PLLM_EIO || (status == PLLM_OK && bytes == 0)) return gone(store);
    /* An answer whose descriptors found no room here is one all the same: what it gave has to be
     * given back. */
    store->received_cut = status == PLLM_ELIMIT && bytes > 0;
    if (status < 0 && !store->received_cut) return status;
    status = pllm_wire_decode(store->packet, bytes, &store->in);
    if (status < 0) pllm_store_received_close(store);
    return status;
}

/* Waits for a packet until deadline, whatever signals interrupt it. 1: there is one, or an end. */
static int wait_in(const pllm_store *store, uint64_t deadline)
{
    for (;;) {
        uint64_t now = pllm_clock_ns();
        struct pollfd in = {.fd = store->fd, .events = POLLIN};
        const uint64_t ms = now < deadline ? (deadline - now + 999999) / 1000000 : 0;
        int ready = poll(&in, 1, ms > INT_MAX ? INT_MAX : (int)ms);
        if (ready > 0) return 1;
        if (now >= deadline) return 0;
    }
}

/* The packet in store->in is not what a call waits for. */
static void take_other(pllm_store *store)
{
    pllm_store_received_close(store);
    if (store->in.op == PLLM_WIRE_EVENT) pllm_store_event_add(store, &store->in);
    if (store->in.op & PLLM_WIRE_ANSWER) pllm_store_late(store);
}

/* Receives until the answer to request is there; events meanwhile are kept. */
static int receive_answer(pllm_store *store, uint32_t op, uint32_t request)
{
    uint64_t deadline = pllm_clock_ns() + store->timeout_ms * UINT64_C(1000000);
    for (;;) {
        if (store->fd >= 0 && !wait_in(store, deadline))
            return pllm_fail(PLLM_ETIMEDOUT, 0, "the store's daemon at %s did not answer in %u ms",
                             store->path, store->timeout_ms);
        int status = receive_in(store);
        if (status == PLLM_EBUSY) continue;
        if (status < 0) return status;
        if (store->in.op == (op | PLLM_WIRE_ANSWER) && store->in.request == request) break;
        take_other(store);
    }
    if (store->in.status == PLLM_OK) return PLLM_OK;
    pllm_store_received_close(store);
    return pllm_fail(store->in.status, 0, "%.*s", (int)store->in.error.bytes, store->in.error.data);
}

/* The daemon may do yet what was asked: then its answer has to be undone. Who cannot remember that
 * leaves, which gives everything back. */
static void give_up(pllm_store *store, uint32_t op, uint32_t request)
{
    uint32_t writable = op == PLLM_WIRE_CREATE  ? 1
                        : op == PLLM_WIRE_OFFER ? store->out.offer.offer.writable
                                                : store->out.open.writable;
    if (op != PLLM_WIRE_CREATE && op != PLLM_WIRE_OPEN && op != PLLM_WIRE_REDEEM &&
        op != PLLM_WIRE_OFFER && op != PLLM_WIRE_WATCH)
        return;
    if (store->late_count == CLIENT_LATE)
        disconnect(store);
    else
        store->late[store->late_count++] = (client_late){request, op, writable};
}

/* Asks and waits for the answer. *heard_out 0: it could not be sent. */
static int exchange(pllm_store *store, uint32_t op, const int *fds, int *heard_out)
{
    uint32_t request = ++store->request;
    if (request == 0) request = ++store->request; /* 0 wants no answer */
    int status = send_out(store, op, request, fds);
    *heard_out = status == PLLM_OK;
    if (status == PLLM_EIO) disconnect(store); /* ETIMEDOUT: nothing was sent, and nothing broke */
    if (status < 0) return status;
    status = receive_answer(store, op, request);
    if (status == PLLM_ETIMEDOUT && store->fd >= 0) give_up(store, op, request);
    return status;
}

/* Connecting asks questions of its own (HELLO, OFFER): what was prepared is put aside for them. */
static int connect_aside(pllm_store *store)
{
    if (store->fd >= 0 && !store->unoffered) return PLLM_OK;
    const pllm_wire_message prepared = store->out;
    int status = pllm_store_connected(store);
    store->out = prepared;
    return status;
}

/* The numbers that are this connection's. */
static int fill_in(pllm_store *store, uint32_t op, const pllm_store_tensor *about)
{
    if (op == PLLM_WIRE_CREATE) store->out.create.spec.device = store->device_index;
    if (!about) return PLLM_OK;
    if (about->stale) return pllm_store_fail_stale(about);
    if (about->board != store->board)
        return pllm_fail(PLLM_EIO, 0, "the new daemon has not taken over tensor %s yet: try again",
                         about->info.name);
    store->out.handle.slot = about->slot;
    store->out.handle.generation = about->generation;
    return PLLM_OK;
}

int pllm_store_ask_here(pllm_store *store, uint32_t op, const int *fds)
{
    int heard;
    return exchange(store, op, fds, &heard);
}

int pllm_store_ask(pllm_store *store, uint32_t op, const pllm_store_tensor *about)
{
    int heard, status = PLLM_OK;
    for (int i = 0; i < 2; i++) { /* it went since the last call: ask the one that is there now */
        status = connect_aside(store);
        if (status == PLLM_OK) status = fill_in(store, op, about);
        if (status < 0) return status;
        status = exchange(store, op, NULL, &heard);
        if (heard || status != PLLM_EIO) break;
    }
    return status;
}

int pllm_store_tell(pllm_store *store, uint32_t op)
{
    if (store->fd < 0) return PLLM_EIO;
    store->out.fd_count = 0;
    int status = send_out(store, op, 0, NULL);
    if (status == PLLM_EIO || status == PLLM_ETIMEDOUT) disconnect(store);
    return status;
}

int pllm_store_take_event(pllm_store *store)
{
    int status = receive_in(store);
    if (status == PLLM_OK) take_other(store);
    return status;
}

void pllm_store_look(pllm_store *store)
{
    const uint64_t now = pllm_clock_ns();
    if (now < store->looked_ns + LOOK_NS || pllm_store_check_process(store) < 0) return;
    store->looked_ns = now;
    while (store->fd >= 0 && pllm_store_take_event(store) != PLLM_EBUSY) continue;
    (void)pllm_store_connected(store);
}

/* ---- connecting ---- */

static int say_hello(pllm_store *store)
{
    pllm_device_info info = {.struct_bytes = sizeof info};
    int status = store->device->ops->info(store->device, &info);
    if (status < 0) return status;
    memset(&store->out, 0, sizeof store->out);
    store->out.hello.protocol = PLLM_WIRE_VERSION;
    store->out.hello.pid = (uint32_t)getpid();
    store->out.hello.uuid = pllm_store_text(info.uuid);
    status = pllm_store_ask_here(store, PLLM_WIRE_HELLO, NULL);
    if (status < 0) return status;
    if (store->received_cut)
        return pllm_fail(PLLM_ELIMIT, EMFILE,
                         "this process has no descriptor left for the store (ulimit -n)");
    if (store->received_count != 1)
        return pllm_fail(PLLM_EINVAL, 0, "the daemon at %s sent no board with its hello",
                         store->path);
    store->device_index = store->in.welcome.device;
    store->connection++;
    if (store->board && pllm_board_epoch(store->board) == store->in.welcome.epoch) {
        pllm_store_received_close(store); /* it lives, and its board is here already */
        return PLLM_OK;
    }
    if (store->board_count == CLIENT_BOARDS)
        return pllm_fail(PLLM_ELIMIT, 0,
                         "the store's daemon was started %d times since this store was opened: "
                         "open it anew",
                         CLIENT_BOARDS);
    store->received_count = 0; /* attach takes the descriptor */
    pllm_board *board;
    status = pllm_board_attach(store->context, store->received[0], &board);
    if (status < 0) return status;
    store->boards[store->board_count++] = board;
    store->board = board;
    return PLLM_OK;
}

/* At the usual path anybody may have been first to make the folder in /tmp. */
static int check_owner(const pllm_store *store)
{
    pllm_store_peer daemon;
    if (!store->path_usual) return PLLM_OK;
    int status = pllm_wire_peer(store->fd, &daemon);
    if (status == PLLM_OK && daemon.uid != geteuid() && daemon.uid != 0)
        status = pllm_fail(PLLM_EPERM, 0, "the store at %s belongs to user %u, not to this one",
                           store->path, daemon.uid);
    return status;
}

/* On a connection that there is: what could not be offered is offered again, now and then. */
static int offer_again(pllm_store *store)
{
    if (!store->unoffered || pllm_clock_ns() < store->offer_again_ns) return PLLM_OK;
    int status = pllm_store_offer_all(store, 0);
    if (status < 0)
        disconnect(store);
    else
        pllm_store_signals_again(store);
    return status;
}

int pllm_store_connected(pllm_store *store)
{
    if (store->fd >= 0) return offer_again(store);
    const pllm_board *before = store->board;
    int status = pllm_wire_connect(store->path, store->timeout_ms, &store->fd);
    if (status < 0) {
        store->fd = -1;
        if (status != PLLM_EIO) return status;
        return pllm_fail(PLLM_EIO, pllm_last_error()->native,
                         "no daemon answers at %s: start one with `pagedllm store serve --socket "
                         "%s`",
                         store->path, store->path);
    }
    status = check_owner(store);
    if (status == PLLM_OK) status = say_hello(store);
    if (status == PLLM_OK && before) status = pllm_store_offer_all(store, 1);
    if (status == PLLM_OK && store->watching) status = pllm_store_watch_again(store);
    if (status < 0) {
        disconnect(store);
        return status;
    }
    tell_fd_set(store, store->fd);
    pllm_store_signals_again(store);
    wake(store);
    return PLLM_OK;
}

static int path_of(const char *given, pllm_store *store)
{
    if (!given) given = getenv("PAGEDLLM_SOCKET");
    store->path_usual = !given || !*given;
    if (store->path_usual) return pllm_wire_default_path(store->path, sizeof store->path);
    if (strlen(given) >= sizeof store->path)
        return pllm_fail(PLLM_EINVAL, 0, "a socket's path has at most %zu characters",
                         sizeof store->path - 1);
    memcpy(store->path, given, strlen(given) + 1);
    return PLLM_OK;
}

int pllm_store_open(const pllm_context *context, const pllm_store_options *options,
                    pllm_store **store_out)
{
    static const pllm_store_options none = {.struct_bytes = sizeof none};
    if (!store_out) return pllm_fail(PLLM_EINVAL, 0, "pllm_store_open needs a result");
    *store_out = NULL;
    if (!options) options = &none;
    if (options->struct_bytes != sizeof *options)
        return pllm_fail(PLLM_EINVAL, 0, "pllm_store_options has another size than %zu",
                         sizeof *options);
    pllm_store *store = pllm_alloc(context, sizeof *store);
    if (!store) return pllm_fail_memory("a store", sizeof *store);
    store->context = context;
    store->pid = getpid();
    store->device = options->device;
    store->timeout_ms = options->timeout_ms ? options->timeout_ms : 5000;
    store->fd = store->tell_fd = store->wake = -1;
    pthread_mutex_init(&store->lock, NULL);
    pthread_mutex_init(&store->tell_lock, NULL);
    int status = path_of(options->socket, store);
    if (status == PLLM_OK && !store->device) {
        status = pllm_device_open_name(context, "host", NULL, &store->device_own);
        store->device = store->device_own;
    }
    if (status == PLLM_OK) {
        store->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (store->wake < 0)
            status = pllm_fail(PLLM_EIO, errno, "no event descriptor: %s", strerror(errno));
    }
    if (status == PLLM_OK) status = pllm_store_connected(store);
    if (status < 0) {
        pllm_store_close(store);
        return status;
    }
    *store_out = store;
    return PLLM_OK;
}

void pllm_store_close(pllm_store *store)
{
    if (!store) return;
    if (pllm_store_check_process(store) <
        0) { /* the parent's goes on; a lock may be held for ever */
        if (store->fd >= 0) close(store->fd);
        if (store->wake >= 0) close(store->wake);
        store->fd = store->wake = -1;
        return;
    }
    /* A daemon that lives has to hear what is unmapped. */
    uint32_t any = 0;
    for (uint32_t i = 0; i < CLIENT_BUCKETS; i++) any |= store->buckets[i] != NULL;
    store->looked_ns = 0;
    if (any) pllm_store_look(store);
    pllm_store_tensors_forget(store);
    memset(&store->out, 0, sizeof store->out);
    (void)pllm_store_tell(store, PLLM_WIRE_BYE);
    disconnect(store);
    for (uint32_t i = 0; i < store->board_count; i++) pllm_board_close(store->boards[i]);
    if (store->wake >= 0) close(store->wake);
    pllm_device_close(store->device_own);
    pthread_mutex_destroy(&store->tell_lock);
    pthread_mutex_destroy(&store->lock);
    pllm_free(store->context, store);
}
