#include "store_rig.h"

#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/clock.h"

static void *serve(void *argument)
{
    store_rig *rig = argument;
    int status = pllm_store_server_run(rig->server, -1);
    return status == PLLM_OK ? NULL : rig;
}

/* ---- the part ---- */

static void heard_changed(void *user, const pllm_store_entry *entry)
{
    store_rig *rig = user;
    rig->heard.changed = *entry->record;
    snprintf(rig->heard.changed_name, sizeof rig->heard.changed_name, "%s", entry->record->name);
    snprintf(rig->heard.changed_handle, sizeof rig->heard.changed_handle, "%s", entry->ipc_handle);
}

static void heard_removed(void *user, const char *name, uint64_t generation)
{
    store_rig *rig = user;
    assert_true(generation != 0);
    snprintf(rig->heard.removed_name, sizeof rig->heard.removed_name, "%s", name);
}

static uint64_t part_prepare(void *user, uint64_t now_ns, int *fd_out, uint32_t *events_out)
{
    store_rig *rig = user;
    (void)now_ns;
    *fd_out = rig->ask_fd;
    *events_out = EPOLLIN;
    return UINT64_MAX;
}

static void part_run(void *user, uint32_t events, uint64_t now_ns)
{
    store_rig *rig = user;
    uint64_t drained;
    (void)now_ns;
    if (!events || read(rig->ask_fd, &drained, sizeof drained) < 0) return;
    pthread_mutex_lock(&rig->lock);
    if (rig->work) rig->work(rig, rig->work_user);
    rig->work = NULL;
    pthread_cond_signal(&rig->done);
    pthread_mutex_unlock(&rig->lock);
}

void store_rig_inside(store_rig *rig, void (*work)(store_rig *rig, void *user), void *user)
{
    uint64_t one = 1;
    pthread_mutex_lock(&rig->lock);
    rig->work = work;
    rig->work_user = user;
    assert_int_equal(write(rig->ask_fd, &one, sizeof one), sizeof one);
    while (rig->work) pthread_cond_wait(&rig->done, &rig->lock);
    pthread_mutex_unlock(&rig->lock);
}

/* ---- life ---- */

static int try_start(store_rig *rig)
{
    pllm_store_part part = {.user = rig,
                            .changed = heard_changed,
                            .removed = heard_removed,
                            .prepare = part_prepare,
                            .run = part_run};
    int status = pllm_store_server_open(&rig->memory.context, &rig->options, &rig->server);
    if (status < 0) return status;
    assert_int_equal(pllm_store_server_add(rig->server, &part), PLLM_OK);
    assert_int_equal(pthread_create(&rig->thread, NULL, serve, rig), 0);
    rig->running = 1;
    return PLLM_OK;
}

void store_rig_start(store_rig *rig)
{
    int status = try_start(rig);
    if (status < 0) print_message("%s\n", pllm_last_error()->text);
    assert_int_equal(status, PLLM_OK);
}

void store_rig_stop(store_rig *rig)
{
    void *failed;
    if (!rig->running) return;
    pllm_store_server_stop(rig->server);
    pthread_join(rig->thread, &failed);
    assert_null(failed);
    pllm_store_server_close(rig->server);
    rig->server = NULL;
    rig->running = 0;
}

void store_rig_restart(store_rig *rig)
{
    store_rig_stop(rig);
    store_rig_start(rig);
}

static void prepare(store_rig *rig, pllm_device *device)
{
    rig->device = device;
    strcpy(rig->folder, "/tmp/store-test-XXXXXX");
    assert_non_null(mkdtemp(rig->folder));
    snprintf(rig->path, sizeof rig->path, "%s/s.sock", rig->folder);
    rig->ask_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    assert_true(rig->ask_fd >= 0);
    pthread_mutex_init(&rig->lock, NULL);
    pthread_cond_init(&rig->done, NULL);
    rig->served.device = device;
    rig->options.struct_bytes = sizeof rig->options;
    rig->options.socket = rig->path;
    rig->options.devices = &rig->served;
    rig->options.device_count = 1;
}

void store_rig_open(store_rig *rig, const pllm_store_server_options *options,
                    uint64_t capacity_bytes)
{
    pllm_device *device;
    memset(rig, 0, sizeof *rig);
    failing_context_init(&rig->memory, FAILING_NEVER);
    pllm_host_device_options host = {.struct_bytes = sizeof host,
                                     .capacity_bytes =
                                         capacity_bytes ? capacity_bytes : (uint64_t)256 << 20};
    assert_int_equal(pllm_device_open_host(&rig->memory.context, &host, &device), PLLM_OK);
    if (options) rig->options = *options;
    prepare(rig, device);
    store_rig_start(rig);
}

void store_rig_open_on(store_rig *rig, const pllm_store_server_options *options,
                       pllm_device *device)
{
    memset(rig, 0, sizeof *rig);
    failing_context_init(&rig->memory, FAILING_NEVER);
    if (options) rig->options = *options;
    prepare(rig, device);
    store_rig_start(rig);
}

int store_rig_try(store_rig *rig, pllm_device *device)
{
    prepare(rig, device);
    int status = try_start(rig);
    if (status == PLLM_OK) return 1;
    assert_true(status == PLLM_ENOMEM || status == PLLM_ENODEVMEM || status == PLLM_EDEVICE);
    store_rig_end(rig);
    return 0;
}

void store_rig_end(store_rig *rig)
{
    char path[96];
    store_rig_stop(rig);
    close(rig->ask_fd);
    pthread_mutex_destroy(&rig->lock);
    pthread_cond_destroy(&rig->done);
    assert_int_equal(access(rig->path, F_OK), -1);
    snprintf(path, sizeof path, "%s.lock", rig->path);
    unlink(path);
    assert_int_equal(rmdir(rig->folder), 0); /* nothing else was left in it */
}

void store_rig_close(store_rig *rig)
{
    store_rig_end(rig);
    pllm_device_close(rig->device);
    failing_context_check(&rig->memory);
}

static void stats_take(store_rig *rig, void *user)
{
    pllm_store_server_stats_get(rig->server, user);
}

static void heard_take(store_rig *rig, void *user)
{
    *(store_heard *)user = rig->heard;
}

store_heard store_rig_heard(store_rig *rig)
{
    store_heard heard;
    store_rig_inside(rig, heard_take, &heard);
    return heard;
}

pllm_store_server_stats store_rig_stats(store_rig *rig)
{
    pllm_store_server_stats stats;
    store_rig_inside(rig, stats_take, &stats);
    return stats;
}

void store_rig_until(store_rig *rig, uint32_t tensor_count, uint32_t client_count)
{
    uint64_t deadline = pllm_clock_ns() + (uint64_t)5 * 1000000000;
    pllm_store_server_stats stats;
    do {
        stats = store_rig_stats(rig);
        if (stats.registry.tensor_count == tensor_count && stats.client_count == client_count)
            return;
        usleep(1000);
    } while (pllm_clock_ns() < deadline);
    assert_int_equal(stats.registry.tensor_count, tensor_count);
    assert_int_equal(stats.client_count, client_count);
}

/* ---- packets ---- */

int store_connect(store_rig *rig)
{
    int fd;
    int status = pllm_wire_connect(rig->path, 5000, &fd);
    if (status < 0) print_message("%s\n", pllm_last_error()->text);
    assert_int_equal(status, PLLM_OK);
    return fd;
}

static void forget_fds(store_talk *talk)
{
    for (uint32_t i = 0; i < talk->fd_count; i++) close(talk->fds[i]);
    talk->fd_count = 0;
}

/* PLLM_OK, or ECANCELED: the daemon hung up. */
static int receive(store_talk *talk)
{
    size_t bytes;
    forget_fds(talk);
    int status = pllm_wire_receive(talk->fd, talk->packet, sizeof talk->packet, &bytes, talk->fds,
                                   PLLM_WIRE_FDS_MAX, &talk->fd_count, 0);
    if (status == PLLM_EIO || (status == PLLM_OK && bytes == 0)) return PLLM_ECANCELED;
    assert_int_equal(status, PLLM_OK);
    status = pllm_wire_decode(talk->packet, bytes, &talk->answer);
    if (status < 0) print_message("%s\n", pllm_last_error()->text);
    assert_int_equal(status, PLLM_OK);
    assert_int_equal(talk->answer.fd_count, talk->fd_count);
    return PLLM_OK;
}

static int send_ask(store_talk *talk, const int *fds, uint32_t fd_count)
{
    uint8_t packet[PLLM_WIRE_PACKET_BYTES];
    talk->ask.fd_count = fd_count;
    int bytes = pllm_wire_encode(&talk->ask, packet, sizeof packet);
    if (bytes < 0) print_message("%s\n", pllm_last_error()->text);
    assert_true(bytes > 0);
    return pllm_wire_send(talk->fd, packet, (size_t)bytes, fds, fd_count, 0);
}

int store_ask(store_talk *talk, const int *fds, uint32_t fd_count)
{
    talk->ask.request = ++talk->request;
    if (send_ask(talk, fds, fd_count) < 0) return PLLM_ECANCELED;
    do {
        int status = receive(talk);
        if (status < 0) return status;
    } while (talk->answer.op == PLLM_WIRE_EVENT);
    assert_int_equal(talk->answer.op, talk->ask.op | PLLM_WIRE_ANSWER);
    assert_int_equal(talk->answer.request, talk->request);
    return talk->answer.status;
}

void store_send(store_talk *talk)
{
    talk->ask.request = ++talk->request;
    assert_int_equal(send_ask(talk, NULL, 0), PLLM_OK);
}

int store_answered(const store_talk *talk)
{
    struct pollfd in = {.fd = talk->fd, .events = POLLIN};
    return poll(&in, 1, 0) == 1;
}

int store_answer(store_talk *talk)
{
    struct pollfd in = {.fd = talk->fd, .events = POLLIN};
    assert_int_equal(poll(&in, 1, 5000), 1);
    assert_int_equal(receive(talk), PLLM_OK);
    assert_int_equal(talk->answer.request, talk->request);
    return talk->answer.status;
}

void store_tell(store_talk *talk)
{
    talk->ask.request = 0;
    assert_int_equal(send_ask(talk, NULL, 0), PLLM_OK);
}

int store_event(store_talk *talk, uint32_t timeout_ms)
{
    struct pollfd wait = {.fd = talk->fd, .events = POLLIN};
    if (poll(&wait, 1, (int)timeout_ms) != 1) return 0;
    assert_int_equal(receive(talk), PLLM_OK);
    assert_int_equal(talk->answer.op, PLLM_WIRE_EVENT);
    return 1;
}

void store_talk_open(store_rig *rig, store_talk *talk)
{
    memset(talk, 0, sizeof *talk);
    talk->fd = store_connect(rig);
    talk->ask = (pllm_wire_message){.op = PLLM_WIRE_HELLO};
    talk->ask.hello.protocol = PLLM_WIRE_VERSION;
    talk->ask.hello.pid = (uint32_t)getpid();
    assert_int_equal(store_ask(talk, NULL, 0), PLLM_OK);
    assert_int_equal(talk->fd_count, 1);
}

void store_talk_close(store_talk *talk)
{
    forget_fds(talk);
    close(talk->fd);
}

static pllm_wire_text text_of(const char *text)
{
    return (pllm_wire_text){text, text ? (uint32_t)strlen(text) : 0};
}

int store_create(store_talk *talk, const char *name, uint64_t bytes, uint32_t flags)
{
    talk->ask = (pllm_wire_message){.op = PLLM_WIRE_CREATE};
    talk->ask.create.spec =
        (pllm_wire_spec){.dtype = PLLM_STORE_U8, .rank = 1, .flags = flags, .shape = {bytes}};
    talk->ask.create.name = text_of(name);
    return store_ask(talk, NULL, 0);
}

int store_open(store_talk *talk, const char *name, uint32_t writable)
{
    talk->ask = (pllm_wire_message){.op = PLLM_WIRE_OPEN};
    talk->ask.open.writable = writable;
    talk->ask.open.name = text_of(name);
    return store_ask(talk, NULL, 0);
}

static int handle(store_talk *talk, uint32_t op, uint32_t slot, uint64_t generation,
                  uint32_t writable, uint64_t value)
{
    talk->ask = (pllm_wire_message){.op = op};
    talk->ask.handle.slot = slot;
    talk->ask.handle.generation = generation;
    talk->ask.handle.writable = writable;
    talk->ask.handle.value = value;
    return store_ask(talk, NULL, 0);
}

int store_shut(store_talk *talk, uint32_t slot, uint64_t generation, uint32_t writable)
{
    return handle(talk, PLLM_WIRE_CLOSE, slot, generation, writable, 0);
}

int store_unmapped(store_talk *talk, uint32_t slot, uint64_t generation)
{
    return handle(talk, PLLM_WIRE_UNMAPPED, slot, generation, 0, 0);
}

int store_signal(store_talk *talk, uint32_t slot, uint64_t generation, uint64_t value)
{
    return handle(talk, PLLM_WIRE_SIGNAL, slot, generation, 0, value);
}

int store_name(store_talk *talk, uint32_t op, const char *name, uint32_t on, const char *name_new)
{
    talk->ask = (pllm_wire_message){.op = op};
    talk->ask.name.on = on;
    talk->ask.name.name = text_of(name);
    talk->ask.name.name_new = text_of(name_new);
    return store_ask(talk, NULL, 0);
}

void *store_map(const store_talk *talk, int writable, uint64_t *bytes_out)
{
    const pllm_wire_layout *layout = &talk->answer.tensor.layout;
    uint64_t bytes = 0, at = 0;
    for (uint32_t i = 0; i < layout->piece_count; i++) bytes += layout->pieces[i];
    char *base = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(base != MAP_FAILED);
    for (uint32_t i = 0; i < layout->piece_count; at += layout->pieces[i++])
        if (mmap(base + at, layout->pieces[i], PROT_READ | (writable ? PROT_WRITE : 0),
                 MAP_SHARED | MAP_FIXED, talk->fds[i], 0) == MAP_FAILED) {
            munmap(base, bytes);
            return NULL;
        }
    *bytes_out = bytes;
    return base;
}
