/* server.c - the daemon opened, run and closed; its timers.
 *
 * One epoll set: the listening socket, the clients, the parts' descriptors, an eventfd for other
 * threads, and the caller's stop descriptor. A round waits, serves what is ready, looks at what
 * time it is, and lets the parts run. In rounds in which nothing was ready, memory works ahead
 * (ready pieces made and zeroed), and now and then in the others too. */
#include "store/server.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>
#include "base/clock.h"
#include "base/text.h"
#include "store/server_internal.h"

enum {
    EVENTS_PER_WAIT = 64,
    ROUNDS_PER_TICK = 32, /* while there is always something to serve */
    PATROL_MS = 250,
    LOOKS_PER_SWEEP = 64, /* at clients' processes */
    MOVING_NS = 100000,
    WORK_AHEAD_NS = 200000, /* at a time; a request waits no longer for it */
};
#define MS ((uint64_t)1000000)

/* What an event of the set is for: in the upper half of its data. */
enum { TAG_CLIENT = 0, TAG_LISTEN = PLLM_SERVER_LISTEN, TAG_WAKE = 2, TAG_STOP = 3, TAG_PART = 4 };

static uint64_t tag(uint32_t what, uint32_t index)
{
    return (uint64_t)what << 32 | index;
}

/* ---- open and close ---- */

static uint32_t or_default(uint32_t value, uint32_t usual)
{
    return value ? value : usual;
}

static int options_take(pllm_store_server *server, const pllm_store_server_options *options)
{
    if (options->struct_bytes != sizeof *options)
        return pllm_fail(PLLM_EINVAL, 0, "the store's options are of another version");
    if (options->device_count == 0 || options->device_count > PLLM_WIRE_DEVICES_MAX)
        return pllm_fail(PLLM_EINVAL, 0, "a store has 1 to %d devices", PLLM_WIRE_DEVICES_MAX);
    if (options->client_max > 1 << 20 || options->watch_max > 1 << 20 ||
        options->tensor_max > 1 << 20 || options->reference_max > 1 << 24)
        return pllm_fail(PLLM_EINVAL, 0, "a store has at most 2^20 clients, watches and tensors");
    pllm_store_server_options *own = &server->options;
    *own = *options;
    own->socket_mode = or_default(own->socket_mode, 0600);
    own->client_max = or_default(own->client_max, 1024);
    own->client_per_user_max = or_default(own->client_per_user_max, (own->client_max + 3) / 4);
    own->tensor_max = or_default(own->tensor_max, 16384);
    own->reference_max = or_default(own->reference_max, 65536);
    own->watch_max = or_default(own->watch_max, 1024);
    own->hello_ms = or_default(own->hello_ms, 5000);
    own->stall_ms = or_default(own->stall_ms, 10000);
    own->adopt_ms = or_default(own->adopt_ms, 3000);
    own->sweep_ms = or_default(own->sweep_ms, 500);
    if (!own->socket) return pllm_wire_default_path(server->path, sizeof server->path);
    if (strlen(own->socket) >= sizeof server->path) {
        char quoted[PLLM_QUOTE_BYTES];
        return pllm_fail(PLLM_EINVAL, 0, "a socket's path has at most 107 characters: %s has more",
                         pllm_text_quote(own->socket, quoted, sizeof quoted));
    }
    strcpy(server->path, own->socket);
    return PLLM_OK;
}

static int device_open(pllm_store_server *server, const pllm_store_served *wanted)
{
    store_device *device = &server->devices[server->device_count];
    pllm_device_info info = {.struct_bytes = sizeof info};
    uint64_t limit = wanted->limit_bytes ? wanted->limit_bytes : UINT64_MAX / 2;
    pllm_budget *budget = wanted->budget;
    device->device = wanted->device;
    device->budget = budget;
    int status = wanted->device->ops->info(wanted->device, &info);
    if (status < 0) return status;
    snprintf(device->uuid, sizeof device->uuid, "%s", info.uuid);
    server->uuids[server->device_count++] = device->uuid; /* from here on, close undoes it */
    for (uint32_t i = 0; i + 1 < server->device_count; i++)
        if (strcmp(server->uuids[i], device->uuid) == 0)
            return pllm_fail(PLLM_EINVAL, 0, "the device %s is given twice", device->uuid);
    if (!budget) {
        status = pllm_budget_open(server->context, limit, &device->own_budget);
        if (status < 0) return status;
        budget = device->own_budget;
    }
    status = pllm_budget_join(budget, "store", 0, limit, &device->member);
    if (status < 0) return status;
    pllm_store_memory_options options = {.struct_bytes = sizeof options,
                                         .legacy_bytes_max = server->options.legacy_bytes_max,
                                         .ready_bytes = server->options.ready_bytes,
                                         .spilled_bytes_max = server->options.spilled_bytes_max,
                                         .disk_bytes = server->options.disk_bytes,
                                         .disk_folder = server->options.disk_folder};
    status = pllm_store_memory_open(server->context, device->device, device->member, &options,
                                    &device->memory);
    if (status == PLLM_OK) pllm_store_memory_prepare(device->memory);
    return status;
}

static int tables_open(pllm_store_server *server)
{
    const pllm_store_server_options *options = &server->options;
    server->clients = pllm_alloc_array(server->context, options->client_max, sizeof(client));
    server->watches = pllm_alloc_array(server->context, options->watch_max, sizeof(watch));
    server->waiting = pllm_alloc_array(server->context, options->client_max, sizeof(uint32_t));
    server->blocks =
        pllm_alloc_array(server->context, options->tensor_max, sizeof(pllm_store_block *));
    server->in = pllm_alloc(server->context, PLLM_WIRE_PACKET_BYTES);
    server->out = pllm_alloc(server->context, PLLM_WIRE_PACKET_BYTES);
    server->listing = pllm_alloc(server->context, PLLM_WIRE_PACKET_BYTES);
    if (!server->clients || !server->watches || !server->blocks || !server->in || !server->out ||
        !server->listing || !server->waiting)
        return pllm_fail(PLLM_ENOMEM, 0, "no memory for the store's tables");
    for (uint32_t i = 0; i < options->client_max; i++)
        server->clients[i].next = i + 1 < options->client_max ? (int)i + 1 : PLLM_STORE_NONE;
    for (uint32_t i = 0; i < options->watch_max; i++) server->watches[i].client = PLLM_STORE_NONE;
    pllm_registry_options registry = {.struct_bytes = sizeof registry,
                                      .epoch = server->epoch,
                                      .tensor_max = options->tensor_max,
                                      .lease_max = options->client_max * 4,
                                      .reference_max = options->reference_max,
                                      .admin_uid = server->own_uid,
                                      .count_per_user_max = options->count_per_user_max,
                                      .bytes_per_user_max = options->bytes_per_user_max};
    int status = pllm_registry_open(server->context, &registry, &server->registry);
    if (status == PLLM_OK)
        status =
            pllm_board_create(server->context, options->tensor_max, server->epoch, &server->board);
    return status;
}

static int descriptors_open(pllm_store_server *server)
{
    server->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    server->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    server->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    struct epoll_event listening = {.events = EPOLLIN, .data.u64 = tag(TAG_LISTEN, 0)};
    struct epoll_event waking = {.events = EPOLLIN, .data.u64 = tag(TAG_WAKE, 0)};
    if (server->epoll_fd < 0 || server->wake_fd < 0 || server->spare_fd < 0 ||
        epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, server->listen_fd, &listening) < 0 ||
        epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, server->wake_fd, &waking) < 0)
        return pllm_fail(PLLM_EIO, errno, "the store's descriptors: %s", strerror(errno));
    return PLLM_OK;
}

static void clock_set(pllm_store_server *server)
{
    struct timespec wall;
    clock_gettime(CLOCK_REALTIME, &wall);
    server->now_ns = pllm_clock_ns();
    pllm_registry_clock_set(server->registry, (int64_t)wall.tv_sec * 1000000000 + wall.tv_nsec -
                                                  (int64_t)server->now_ns);
}

int pllm_store_server_open(const pllm_context *context, const pllm_store_server_options *options,
                           pllm_store_server **server_out)
{
    *server_out = NULL;
    pllm_store_server *server = pllm_alloc(context, sizeof *server);
    if (!server) return pllm_fail_memory("the store", sizeof *server);
    server->context = context;
    server->listen_fd = server->lock_fd = server->epoll_fd = server->wake_fd = server->spare_fd =
        -1;
    server->own_uid = geteuid();
    server->self = (pllm_store_peer){.uid = geteuid(), .gid = getegid(), .pid = (uint32_t)getpid()};
    (void)pllm_wire_process_start(server->self.pid, &server->self.pid_start);
    int status = options_take(server, options);
    if (status == PLLM_OK) status = pllm_server_listen(server);
    if (status == PLLM_OK) status = tables_open(server);
    if (status == PLLM_OK) status = descriptors_open(server);
    for (uint32_t i = 0; status == PLLM_OK && i < options->device_count; i++)
        status = device_open(server, &options->devices[i]);
    if (status < 0) {
        pllm_store_server_close(server);
        return status;
    }
    clock_set(server);
    server->adopt_until_ns = server->now_ns + server->options.adopt_ms * MS;
    server->sweep_ns = server->now_ns + server->options.sweep_ms * MS;
    server->patrol_ns = server->now_ns + PATROL_MS * MS;
    *server_out = server;
    return PLLM_OK;
}

/* Tensors go, whoever holds them: their processes keep what they have mapped, and may offer it to
 * the next daemon. */
static void tensors_end(pllm_store_server *server)
{
    if (!server->registry || !server->blocks) return;
    for (uint32_t slot = 0; slot < server->options.tensor_max; slot++) {
        const pllm_store_record *record = pllm_registry_record(server->registry, slot);
        if (!record || !server->blocks[slot]) continue;
        pllm_store_memory_free(server->devices[record->device].memory, server->blocks[slot],
                               record->importer_count > 0 || record->abandoned);
    }
}

void pllm_store_server_close(pllm_store_server *server)
{
    if (!server) return;
    pllm_server_unlisten(server);
    for (uint32_t i = 0; i < server->part_count; i++)
        if (server->parts[i].part.close) server->parts[i].part.close(server->parts[i].part.user);
    server->part_count = 0;
    /* The board stays as it is: what clients hold they may offer to the daemon that comes next. */
    for (uint32_t i = 0; server->clients && i < server->options.client_max; i++) {
        client *c = &server->clients[i];
        if (c->state == CLIENT_FREE) continue;
        for (uint32_t k = 0; c->pending && k < c->pending_fd_count; k++) close(c->pending_fds[k]);
        pllm_free(server->context, c->pending);
        pllm_free(server->context, c->waiting);
        close(c->fd);
    }
    if (server->registry) pllm_server_hold_end(server);
    tensors_end(server);
    for (uint32_t i = 0; i < server->device_count; i++) {
        pllm_store_memory_close(server->devices[i].memory);
        pllm_budget_leave(server->devices[i].member);
        if (server->devices[i].own_budget) pllm_budget_close(server->devices[i].own_budget);
    }
    pllm_board_close(server->board);
    pllm_registry_close(server->registry);
    if (server->epoll_fd >= 0) close(server->epoll_fd);
    if (server->wake_fd >= 0) close(server->wake_fd);
    if (server->spare_fd >= 0) close(server->spare_fd);
    /* The lock last: who starts next must not be met by what this one still undoes in Redis. */
    if (server->lock_fd >= 0) close(server->lock_fd);
    pllm_free(server->context, server->listing);
    pllm_free(server->context, server->out);
    pllm_free(server->context, server->in);
    pllm_free(server->context, server->blocks);
    pllm_free(server->context, server->watches);
    pllm_free(server->context, server->waiting);
    pllm_free(server->context, server->clients);
    pllm_free(server->context, server);
}

const char *pllm_store_server_path(const pllm_store_server *server)
{
    return server->path;
}

int pllm_store_server_add(pllm_store_server *server, const pllm_store_part *part)
{
    if (server->part_count == PLLM_STORE_PARTS_MAX)
        return pllm_fail(PLLM_ELIMIT, 0, "a store has at most %d parts", PLLM_STORE_PARTS_MAX);
    server->parts[server->part_count++] =
        (part_state){.part = *part, .fd = PLLM_STORE_NONE, .deadline_ns = UINT64_MAX};
    return PLLM_OK;
}

/* ---- other threads ---- */

static void wake(pllm_store_server *server)
{
    uint64_t one = 1;
    ssize_t written = write(server->wake_fd, &one, sizeof one); /* full means awake already */
    (void)written;
}

void pllm_store_server_stop(pllm_store_server *server)
{
    atomic_store(&server->stopping, 1);
    wake(server);
}

void pllm_store_server_reclaim(pllm_store_server *server, uint32_t device, uint64_t bytes)
{
    if (device >= server->device_count || bytes == 0) return;
    atomic_fetch_add(&server->devices[device].reclaim_bytes, bytes);
    wake(server);
}

/* ---- the loop ---- */

/* The part's descriptor in the set, as it wants it for this round. */
static void part_prepare(pllm_store_server *server, uint32_t index)
{
    part_state *state = &server->parts[index];
    int fd = PLLM_STORE_NONE;
    uint32_t events = 0;
    state->ready = 0;
    state->deadline_ns = UINT64_MAX;
    if (state->part.prepare)
        state->deadline_ns = state->part.prepare(state->part.user, server->now_ns, &fd, &events);
    if (fd == state->fd && events == state->events && fd < 0) return;
    struct epoll_event event = {.events = events, .data.u64 = tag(TAG_PART, index)};
    if (state->fd >= 0 && state->fd != fd)
        epoll_ctl(server->epoll_fd, EPOLL_CTL_DEL, state->fd, NULL); /* it may be closed */
    /* A descriptor that was closed and opened again has the same number and is not in the set. */
    if (fd >= 0 && epoll_ctl(server->epoll_fd, EPOLL_CTL_MOD, fd, &event) < 0 &&
        (errno != ENOENT || epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0))
        pllm_log(server->context, PLLM_LOG_WARN, "store: a part's descriptor: %s", strerror(errno));
    state->fd = fd;
    state->events = events;
}

static int timeout_ms(const pllm_store_server *server)
{
    uint64_t next = server->sweep_ns;
    if (server->stats.client_count && server->patrol_ns < next) next = server->patrol_ns;
    if (server->adopt_until_ns && server->adopt_until_ns < next) next = server->adopt_until_ns;
    for (uint32_t i = 0; i < server->part_count; i++)
        if (server->parts[i].deadline_ns < next) next = server->parts[i].deadline_ns;
    if (server->stalled && server->now_ns + MS < next) next = server->now_ns + MS;
    if (server->memory_busy && server->tick_ns < next) next = server->tick_ns;
    if (next <= server->now_ns) return 0;
    uint64_t ms = (next - server->now_ns + MS - 1) / MS;
    return ms > 60000 ? 60000 : (int)ms;
}

/* A connection stays open as long as anybody has its descriptor, and a child may have inherited it.
 * A client that has died is gone all the same; its child may have the memory mapped. A few at a
 * time. */
static void clients_look(pllm_store_server *server)
{
    uint32_t looked = 0;
    for (uint32_t i = 0; i < server->options.client_max && looked < LOOKS_PER_SWEEP; i++) {
        client *c = &server->clients[server->look_next++ % server->options.client_max];
        if (c->state == CLIENT_FREE || c->peer.pid == 0 || c->peer.pid_start == 0) continue;
        looked++;
        if (pllm_wire_process_lives(c->peer.pid, c->peer.pid_start)) continue;
        c->peer.pid_start = 0; /* nobody knows who has it mapped */
        pllm_server_drop(server, c, NULL);
    }
}

/* While tensors move they are looked at ten thousand times a second: what is under way at a time is
 * over in some hundred microseconds. */
static int wait_events(const pllm_store_server *server, struct epoll_event *events)
{
    int timeout = timeout_ms(server);
    if (server->moving && timeout != 0) {
        struct pollfd set = {.fd = server->epoll_fd, .events = POLLIN};
        (void)ppoll(&set, 1, &(struct timespec){0, MOVING_NS}, NULL);
        timeout = 0;
    }
    return epoll_wait(server->epoll_fd, events, EVENTS_PER_WAIT, timeout);
}

static void sweep(pllm_store_server *server)
{
    uint32_t cursor = 0;
    pllm_store_lease lease;
    const pllm_store_peer *peer;
    while (
        pllm_registry_lease_next(server->registry, PLLM_STORE_LEASE_PID, &cursor, &lease, &peer)) {
        if (pllm_wire_process_lives(peer->pid, peer->pid_start)) continue;
        pllm_registry_lease_close(server->registry, lease, PLLM_STORE_END_DIED, server->now_ns);
        pllm_server_effects(server);
    }
    clients_look(server);
    if (server->spare_fd < 0) pllm_server_spare_open(server);
    if (server->deaf && server->spare_fd >= 0) pllm_server_listen_for(server, EPOLLIN);
    uint64_t next = server->now_ns + server->options.sweep_ms * MS;
    uint64_t expiry = pllm_registry_sweep(server->registry, server->now_ns);
    server->sweep_ns = expiry < next ? expiry : next;
    pllm_server_effects(server);
    pllm_server_carry(server);
    clock_set(server); /* the wall clock may have been set */
}

/* A moment's worth; zeroing goes on in the device, so where there is more it is looked at later. */
static void work_ahead(pllm_store_server *server)
{
    int more;
    do {
        more = 0;
        for (uint32_t i = 0; i < server->device_count; i++)
            more |= pllm_store_memory_tick(server->devices[i].memory);
    } while (more && pllm_clock_ns() - server->now_ns < WORK_AHEAD_NS);
    server->memory_busy = more;
    server->tick_ns = server->now_ns + MS;
}

static void timers(pllm_store_server *server)
{
    if (server->now_ns >= server->sweep_ns) sweep(server);
    if (server->now_ns >= server->patrol_ns) {
        pllm_server_patrol(server);
        server->patrol_ns = server->now_ns + PATROL_MS * MS;
    }
    if (server->adopt_until_ns && server->now_ns >= server->adopt_until_ns) {
        server->adopt_until_ns = 0;
        pllm_registry_adopt_end(server->registry);
        pllm_server_effects(server);
    }
    if (server->stalled) pllm_server_stalled(server);
    pllm_server_reclaim_all(server);
}

/* 1: the stop descriptor is ready. */
static int serve(pllm_store_server *server, const struct epoll_event *events, int count)
{
    int stop = 0;
    for (int i = 0; i < count; i++) {
        uint32_t index = (uint32_t)events[i].data.u64;
        uint64_t drained;
        switch (events[i].data.u64 >> 32) {
        case TAG_CLIENT:
            pllm_server_client_event(server, &server->clients[index], events[i].events);
            break;
        case TAG_LISTEN:
            pllm_server_accept(server);
            break;
        case TAG_WAKE:
            while (read(server->wake_fd, &drained, sizeof drained) > 0) continue;
            break;
        case TAG_STOP:
            stop = 1;
            break;
        default:
            server->parts[index].ready |= events[i].events;
            break;
        }
    }
    return stop;
}

int pllm_store_server_run(pllm_store_server *server, int stop_fd)
{
    struct epoll_event events[EVENTS_PER_WAIT];
    struct epoll_event stopping = {.events = EPOLLIN, .data.u64 = tag(TAG_STOP, 0)};
    if (stop_fd >= 0 && epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, stop_fd, &stopping) < 0)
        return pllm_fail(PLLM_EIO, errno, "the stop descriptor: %s", strerror(errno));
    int status = PLLM_OK, stop = 0;
    for (uint32_t round = 0; !stop && !atomic_load(&server->stopping); round++) {
        server->now_ns = pllm_clock_ns();
        for (uint32_t i = 0; i < server->part_count; i++) part_prepare(server, i);
        int count = wait_events(server, events);
        if (count < 0 && errno != EINTR) {
            status = pllm_fail(PLLM_EIO, errno, "the store's loop: %s", strerror(errno));
            break;
        }
        server->now_ns = pllm_clock_ns();
        stop = serve(server, events, count > 0 ? count : 0);
        timers(server);
        if (server->moving) pllm_server_moves(server);
        if (server->memory_busy && (count == 0 || round % ROUNDS_PER_TICK == 0) &&
            server->now_ns >= server->tick_ns)
            work_ahead(server);
        for (uint32_t i = 0; i < server->part_count; i++)
            if (server->parts[i].part.run)
                server->parts[i].part.run(server->parts[i].part.user, server->parts[i].ready,
                                          server->now_ns);
        pllm_server_effects(server);
    }
    if (stop_fd >= 0) epoll_ctl(server->epoll_fd, EPOLL_CTL_DEL, stop_fd, NULL);
    return status;
}

void pllm_store_server_stats_get(const pllm_store_server *server,
                                 pllm_store_server_stats *stats_out)
{
    *stats_out = server->stats;
    stats_out->waiting_count = server->waiting_count;
    pllm_registry_stats_get(server->registry, &stats_out->registry);
    for (uint32_t i = 0; i < server->device_count; i++) {
        pllm_store_memory_stats memory;
        pllm_store_memory_stats_get(server->devices[i].memory, &memory);
        stats_out->charged_bytes += memory.charged_bytes;
        stats_out->ready_bytes += memory.ready_bytes;
        stats_out->spilled_bytes += memory.spilled_bytes;
        stats_out->moving_count += memory.moving_count;
    }
}
