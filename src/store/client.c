/* client.c - the client's connection: asking, answers, and a daemon that went and came back
 * (include/pagedllm/tensor_store.h).
 *
 * An answer that comes too late, after its call gave up, is known by its number: what it brought is
 * given back (client_offer.c). A question that could not be sent was not heard, and is asked again
 * once on a new connection; one that was sent and not answered may have been carried out, and
 * fails. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "base/clock.h"
#include "device/open.h"
#include "store/client_internal.h"

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

static void disconnect(pllm_store *store)
{
    if (store->fd >= 0) close(store->fd);
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

/* The next packet, decoded into store->in. */
static int receive_in(pllm_store *store, int dont_wait)
{
    size_t bytes;
    pllm_store_received_close(store);
    int status =
        pllm_wire_receive(store->fd, store->packet, sizeof store->packet, &bytes, store->received,
                          PLLM_WIRE_FDS_MAX, &store->received_count, dont_wait);
    if (status < 0) return status;
    if (bytes == 0) return gone(store);
    return pllm_wire_decode(store->packet, bytes, &store->in);
}

/* Receives until the answer to request is there; events meanwhile are kept. */
static int receive_answer(pllm_store *store, uint32_t op, uint32_t request)
{
    uint64_t deadline = pllm_clock_ns() + store->timeout_ms * UINT64_C(1000000);
    for (;;) {
        int status = receive_in(store, 0);
        if (status < 0) {
            pllm_store_received_close(store);
            return status;
        }
        if (store->in.op == PLLM_WIRE_EVENT) pllm_store_event_add(store, &store->in);
        if (store->in.op == (op | PLLM_WIRE_ANSWER) && store->in.request == request) break;
        if (store->in.op & PLLM_WIRE_ANSWER) pllm_store_late(store);
        if (pllm_clock_ns() > deadline)
            return pllm_fail(PLLM_ETIMEDOUT, 0, "the store's daemon at %s did not answer in %u ms",
                             store->path, store->timeout_ms);
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
    if (status == PLLM_EIO || status == PLLM_ETIMEDOUT) disconnect(store);
    if (status < 0) return status;
    status = receive_answer(store, op, request);
    if (status == PLLM_ETIMEDOUT && store->fd >= 0) give_up(store, op, request);
    return status;
}

/* Connecting asks questions of its own (HELLO, OFFER): what was prepared is put aside for them. */
static int connect_aside(pllm_store *store)
{
    if (store->offering || (store->fd >= 0 && !store->unoffered)) return PLLM_OK;
    const pllm_wire_message prepared = store->out;
    int status = pllm_store_connected(store);
    store->out = prepared;
    return status;
}

int pllm_store_ask(pllm_store *store, uint32_t op, const int *fds)
{
    int heard, status = connect_aside(store);
    if (status < 0) return status;
    status = exchange(store, op, fds, &heard);
    if (heard || status != PLLM_EIO) return status;
    status = connect_aside(store); /* it went since the last call: ask the one that is there now */
    return status < 0 ? status : exchange(store, op, fds, &heard);
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
    int status = receive_in(store, 1);
    pllm_store_received_close(store);
    if (status == PLLM_OK && store->in.op == PLLM_WIRE_EVENT)
        pllm_store_event_add(store, &store->in);
    if (status == PLLM_OK && store->in.op & PLLM_WIRE_ANSWER) pllm_store_late(store);
    return status;
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
    int heard;
    status = exchange(store, PLLM_WIRE_HELLO, NULL, &heard);
    if (status < 0) return status;
    if (store->received_count != 1)
        return pllm_fail(PLLM_EINVAL, 0, "the daemon at %s sent no board with its hello",
                         store->path);
    if (store->board_count == CLIENT_BOARDS)
        return pllm_fail(PLLM_ELIMIT, 0,
                         "the store's daemon was started %d times since this store was opened: "
                         "open it anew",
                         CLIENT_BOARDS);
    store->device_index = store->in.welcome.device;
    store->received_count = 0; /* attach takes the descriptor */
    pllm_board *board;
    status = pllm_board_attach(store->context, store->received[0], &board);
    if (status < 0) return status;
    store->boards[store->board_count++] = board;
    store->board = board;
    return PLLM_OK;
}

int pllm_store_connected(pllm_store *store)
{
    if (store->fd >= 0 && (!store->unoffered || pllm_clock_ns() < store->offer_again_ns))
        return PLLM_OK;
    if (store->fd >= 0) {
        int status = pllm_store_offer_all(store, 0);
        if (status < 0) disconnect(store);
        return status;
    }
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
    status = say_hello(store);
    if (status == PLLM_OK && before) status = pllm_store_offer_all(store, 1);
    if (status == PLLM_OK && store->watching) status = pllm_store_watch_again(store);
    if (status < 0) disconnect(store);
    return status;
}

static int path_of(const char *given, char *path, size_t bytes)
{
    if (!given) given = getenv("PAGEDLLM_SOCKET");
    if (!given || !*given) return pllm_wire_default_path(path, bytes);
    if (strlen(given) >= bytes)
        return pllm_fail(PLLM_EINVAL, 0, "a socket's path has at most %zu characters", bytes - 1);
    memcpy(path, given, strlen(given) + 1);
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
    store->device = options->device;
    store->timeout_ms = options->timeout_ms ? options->timeout_ms : 5000;
    store->fd = store->wake = -1;
    pthread_mutex_init(&store->lock, NULL);
    int status = path_of(options->socket, store->path, sizeof store->path);
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
    pllm_store_tensors_forget(store);
    memset(&store->out, 0, sizeof store->out);
    (void)pllm_store_tell(store, PLLM_WIRE_BYE);
    disconnect(store);
    for (uint32_t i = 0; i < store->board_count; i++) pllm_board_close(store->boards[i]);
    if (store->wake >= 0) close(store->wake);
    pllm_device_close(store->device_own);
    pthread_mutex_destroy(&store->lock);
    pllm_free(store->context, store);
}
