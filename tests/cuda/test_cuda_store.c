/* The store of named tensors on one GPU, with a daemon and clients that are processes of their own:
 * a consumer on another stream reads what the producer wrote, ten thousand times, under fences;
 * what is open for reading is not written to; handles as text; spilling; a producer that is killed;
 * a daemon that is killed; and all memory is back at the end. For a machine with a GPU; `--driver`
 * runs it on the fake driver. PLLM_TEST_SMALL: fewer rounds.
 *
 *     cuda_store [--driver LIBRARY] [--rounds N]
 *     cuda_store --daemon FD [--driver LIBRARY] --socket PATH      does what is asked over FD
 *     cuda_store --client FD [--driver LIBRARY] --socket PATH
 *
 * The others are this program run anew: CUDA does not survive fork(). The first process only asks.
 *
 *   producer's stream   [wait: back >= round - 4]  fill slot, copy the round's word, signal data
 *   consumer's stream   [wait: data >= round]      copy slot out, signal back         ring of 4
 *
 * The ring is a tensor "NAME", the way back another one, "NAME.back", which the consumer writes. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "base/clock.h"
#include "device/cuda.h"
#include "exit_check.h"
#include "store/names.h"
#include "store/server.h"

#define KIBI ((uint64_t)1 << 10)
#define MEBI ((uint64_t)1 << 20)
#define SLOTS 4u
#define SLOT_BYTES (64 * KIBI)
#define SLOT_STRIDE (MEBI - 16 * KIBI) /* slot 2 lies across two pieces of 2 MiB */
#define RING_BYTES (SLOTS * SLOT_STRIDE + SLOT_BYTES)
#define HOST_BYTES (SLOTS * SLOT_BYTES)
#define LIMIT_BYTES (96 * MEBI) /* of the daemon: what comes on top of it is spilled */
#define READY_BYTES (8 * MEBI)
#define SLAB_BYTES (32 * MEBI) /* the legacy arena's unit, one of which stays */
#define PRESSED 12u
#define PRESSED_BYTES (8 * MEBI)
#define WAIT_MS 20000u
#define OPEN_MAX 64

typedef enum op {
    /* of clients; they answer with the status of the call */
    CREATE = 1, /* name, number: bytes, value: flags */
    OPEN,       /* name, number: writable */
    REDEEM,     /* text: token; kept as name, for reading */
    CLOSE,      /* name */
    REMOVE,     /* name */
    SEAL,       /* name */
    STAT,       /* name -> number: spilled, value: fence */
    VALID,      /* name */
    FILL,       /* name, value: byte, number: the fence then */
    READ,       /* name, value: the byte that all of it is -> number: bytes that are not */
    REFUSE,     /* name, number: also copies. Writing is refused */
    SIGNAL,     /* name, number */
    WAIT,       /* name, number */
    PRODUCE,    /* name, value: the round before the first, number: how many */
    CONSUME,    /* -> value: wrong ones, number: done */
    RAW,        /* text: a handle of CUDA's, number: offset, value: byte, bytes */
    /* of the daemon */
    DAEMON_CREATE,  /* name, bytes: a legacy tensor without a reference, as Redis makes them */
    DAEMON_TEXT,    /* name -> text: its handle, number: offset */
    DAEMON_FIGURES, /* -> number: tensors, value: bytes charged, bytes: spilled and restored */
    END,
} op;

typedef struct message { /* and its answer */
    uint32_t op;
    int32_t status;
    uint64_t number, value, bytes;
    char name[64], text[1024];
} message;

typedef struct peer {
    pid_t pid;
    int socket;
} peer;

static const char *driver; /* NULL: the real one */
static const char *socket_path;

static void note_log(void *user, int level, const char *text)
{
    (void)user;
    if (level <= PLLM_LOG_WARN) fprintf(stderr, "%s\n", text);
}

static pllm_device *device_open(void)
{
    static pllm_context *context;
    static const pllm_context_options logs = {
        .struct_bytes = sizeof logs, .log_level = PLLM_LOG_WARN, .log = note_log};
    pllm_cuda_device_options options = {
        .struct_bytes = sizeof options, .library = driver, .nvml = driver};
    pllm_device *device;
    OK(pllm_context_open(&logs, &context));
    OK(pllm_device_open_cuda(context, &options, &device));
    return device;
}

static void nap_ms(long ms)
{
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
}

/* ---- processes that are asked ---- */

/* 0: the other side has gone. */
static int hear(int fd, message *m)
{
    ssize_t got;
    while ((got = recv(fd, m, sizeof *m, 0)) < 0 && errno == EINTR) continue;
    if (got <= 0) return 0;
    CHECK(got == (ssize_t)sizeof *m);
    return 1;
}

static void say(int fd, const message *m)
{
    CHECK(send(fd, m, sizeof *m, MSG_NOSIGNAL) == (ssize_t)sizeof *m);
}

static void answer(int fd, message *m, int status)
{
    m->status = status;
    if (status < 0) snprintf(m->text, sizeof m->text, "%s", pllm_last_error()->text);
    say(fd, m);
}

static peer start(const char *role)
{
    int ends[2];
    char own[4096], number[16];
    ssize_t length = readlink("/proc/self/exe", own, sizeof own - 1);
    CHECK(length > 0);
    own[length] = 0;
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
    fflush(NULL);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        int kept = dup(ends[1]); /* stays open */
        snprintf(number, sizeof number, "%d", kept);
        /* Its name says which one it is, where all tests are one program. */
        execl(own, "cuda_store", role, number, "--socket", socket_path,
              driver ? "--driver" : (char *)NULL, driver, (char *)NULL);
        _exit(127);
    }
    close(ends[1]);
    return (peer){pid, ends[0]};
}

/* Waits for the answer to what was said; it must have that status. */
static message heard(const peer *p, int status, int line)
{
    message m;
    if (!hear(p->socket, &m)) {
        fprintf(stderr, "line %d: the other process has gone\n", line);
        exit(1);
    }
    if (m.status != status) {
        fprintf(stderr, "line %d: %s of %s: %s, not %s: %s\n", line, "the call", m.name,
                pllm_status_name(m.status), pllm_status_name(status), m.status < 0 ? m.text : "");
        exit(1);
    }
    return m;
}

static message asked(const peer *p, int status, message m, int line)
{
    say(p->socket, &m);
    return heard(p, status, line);
}
/* ask(&peer, status that must come, fields of the message...) */
#define ask(p, status, ...) asked(p, status, (message){__VA_ARGS__}, __LINE__)

static void end(peer *p)
{
    int result;
    (void)ask(p, PLLM_OK, .op = END);
    CHECK(waitpid(p->pid, &result, 0) == p->pid);
    CHECK(WIFEXITED(result) && WEXITSTATUS(result) == 0);
    close(p->socket);
}

static void end_by_force(peer *p)
{
    CHECK(kill(p->pid, SIGKILL) == 0);
    CHECK(waitpid(p->pid, NULL, 0) == p->pid);
    close(p->socket);
}

/* ---- the daemon ---- */

typedef struct daemon_state {
    pllm_store_server *server;
    int socket;
} daemon_state;

static uint64_t part_prepare(void *user, uint64_t now_ns, int *fd_out, uint32_t *events_out)
{
    (void)now_ns;
    *fd_out = ((daemon_state *)user)->socket;
    *events_out = EPOLLIN;
    return UINT64_MAX;
}

static int daemon_create(daemon_state *d, const message *m)
{
    pllm_store_holder holder = {{0}};
    pllm_store_entry entry;
    const pllm_registry_spec spec = {
        .dtype = PLLM_STORE_U8, .rank = 1, .kind = PLLM_STORE_KIND_LEGACY, .shape = {m->bytes}};
    pllm_store_server_self(d->server, &holder.peer);
    return pllm_store_server_create(d->server, m->name, strlen(m->name), &spec, &holder, &entry);
}

static int daemon_text(daemon_state *d, message *m)
{
    pllm_store_holder holder = {{0}};
    pllm_store_entry entry;
    pllm_store_server_self(d->server, &holder.peer);
    int status = pllm_store_server_get(d->server, m->name, strlen(m->name), 0, &holder, &entry);
    if (status < 0) return status;
    snprintf(m->text, sizeof m->text, "%s", entry.ipc_handle);
    m->number = entry.offset;
    return PLLM_OK;
}

static void part_run(void *user, uint32_t events, uint64_t now_ns)
{
    daemon_state *d = user;
    pllm_store_server_stats stats;
    message m;
    int status = PLLM_OK;
    (void)now_ns;
    if (!events) return;
    if (!hear(d->socket, &m) || m.op == END) {
        pllm_store_server_stop(d->server);
        return;
    }
    if (m.op == DAEMON_CREATE) status = daemon_create(d, &m);
    if (m.op == DAEMON_TEXT) status = daemon_text(d, &m);
    if (m.op == DAEMON_FIGURES) {
        pllm_store_server_stats_get(d->server, &stats);
        m.number = stats.registry.tensor_count;
        m.value = stats.charged_bytes;
        m.bytes = stats.spilled_count << 32 | stats.restored_count;
    }
    answer(d->socket, &m, status);
}

static void ignore_changed(void *user, const pllm_store_entry *entry)
{
    (void)user, (void)entry;
}

static int daemon_main(int fd)
{
    daemon_state d = {.socket = fd};
    pllm_device *device = device_open();
    pllm_store_served served = {.device = device, .limit_bytes = LIMIT_BYTES};
    pllm_store_server_options options = {.struct_bytes = sizeof options,
                                         .device_count = 1,
                                         .devices = &served,
                                         .socket = socket_path,
                                         .ready_bytes = READY_BYTES,
                                         .spilled_bytes_max = 1024 * MEBI,
                                         .legacy_bytes_max = 2 * SLAB_BYTES,
                                         .legacy = 1};
    pllm_store_part part = {
        .user = &d, .changed = ignore_changed, .prepare = part_prepare, .run = part_run};
    message m = {0};
    OK(pllm_store_server_open(device->context, &options, &d.server));
    OK(pllm_store_server_add(d.server, &part));
    answer(fd, &m, PLLM_OK); /* it is there */
    OK(pllm_store_server_run(d.server, -1));
    pllm_store_server_close(d.server);
    pllm_device_close(device);
    answer(fd, &m, PLLM_OK); /* to END */
    return 0;
}

static peer daemon_start(void)
{
    peer p = start("--daemon");
    (void)heard(&p, PLLM_OK, __LINE__);
    return p;
}

/* ---- a client ---- */

typedef struct opened {
    char name[64];
    pllm_store_tensor *tensor;
} opened;

typedef struct client {
    pllm_device *device;
    const pllm_device_ops *ops;
    pllm_stream *stream;
    pllm_store *store;
    unsigned char *host;
    opened open[OPEN_MAX];
} client;

/* The one of that name; "" finds a free place. */
static opened *find(client *c, const char *name)
{
    for (int i = 0; i < OPEN_MAX; i++)
        if (strcmp(c->open[i].name, name) == 0) return &c->open[i];
    fprintf(stderr, "\"%s\" is not open here\n", name);
    exit(1);
}

static pllm_store_tensor *tensor_of(client *c, const char *name)
{
    return find(c, name)->tensor;
}

static int make(client *c, const message *m)
{
    pllm_store_tensor *tensor = NULL;
    const pllm_store_spec spec = {.struct_bytes = sizeof spec,
                                  .dtype = PLLM_STORE_U8,
                                  .rank = 1,
                                  .flags = (uint32_t)m->value,
                                  .shape = {m->number}};
    int status = m->op == CREATE ? pllm_store_create(c->store, m->name, &spec, &tensor)
                 : m->op == OPEN
                     ? pllm_store_open_tensor(c->store, m->name, m->number != 0, &tensor)
                     : pllm_store_redeem(c->store, m->text, 0, &tensor);
    if (status < 0) return status;
    opened *place = find(c, "");
    memcpy(place->name, m->name, sizeof place->name);
    place->tensor = tensor;
    return PLLM_OK;
}

static int shut(client *c, const char *name)
{
    opened *place = find(c, name);
    int status = pllm_store_close_tensor(place->tensor);
    if (status == PLLM_OK) memset(place, 0, sizeof *place);
    return status;
}

static int stat_of(client *c, message *m)
{
    pllm_store_info info = {.struct_bytes = sizeof info};
    int status = pllm_store_stat(c->store, m->name, &info);
    m->number = info.spilled;
    m->value = info.fence;
    return status;
}

static int fill(client *c, const message *m)
{
    pllm_store_tensor *tensor = tensor_of(c, m->name);
    int status = c->ops->fill(c->device, c->stream, pllm_store_tensor_address(tensor),
                              pllm_store_tensor_bytes(tensor), (uint8_t)m->value);
    if (status == PLLM_OK) status = pllm_store_signal(tensor, c->stream, m->number);
    if (status == PLLM_OK) status = c->ops->stream_sync(c->device, c->stream);
    return status;
}

static int compare(client *c, pllm_va va, uint64_t bytes, message *m)
{
    m->number = 0;
    for (uint64_t at = 0; at < bytes; at += HOST_BYTES) {
        uint64_t part = bytes - at < HOST_BYTES ? bytes - at : HOST_BYTES;
        int status = pllm_device_read(c->device, c->stream, va + at, part, c->host);
        if (status < 0) return status;
        for (uint64_t i = 0; i < part; i++) m->number += c->host[i] != (uint8_t)m->value;
    }
    return PLLM_OK;
}

/* As a program that knows CUDA alone: the handle's allocation, and the tensor in it. */
static int raw(client *c, message *m)
{
    uint8_t handle[PLLM_CUDA_IPC_BYTES];
    size_t got;
    pllm_va base;
    uint64_t whole;
    int status = pllm_store_base64_decode(m->text, strlen(m->text), handle, sizeof handle, &got);
    if (status == PLLM_OK && got != sizeof handle)
        status = pllm_fail(PLLM_EINVAL, 0, "a handle of %zu bytes", got);
    if (status == PLLM_OK) status = pllm_cuda_ipc_open(c->device, handle, &base, &whole);
    if (status < 0) return status;
    if (m->number + m->bytes > whole)
        status = pllm_fail(PLLM_EINVAL, 0, "an allocation of only %llu bytes",
                           (unsigned long long)whole);
    if (status == PLLM_OK) status = compare(c, base + m->number, m->bytes, m);
    pllm_cuda_ipc_close(c->device, base);
    return status;
}

static int must_refuse(int status, const char *what)
{
    if (status == PLLM_EPERM) return PLLM_OK;
    return pllm_fail(PLLM_EINVAL, 0, "%s a tensor that is open for reading: %s", what,
                     pllm_status_name(status));
}

static int refuse(client *c, const message *m)
{
    pllm_store_tensor *tensor = tensor_of(c, m->name);
    pllm_va va = pllm_store_tensor_address(tensor), last = va + RING_BYTES - 1;
    int status = must_refuse(pllm_store_signal(tensor, c->stream, UINT64_MAX - 1), "signal");
    if (!m->number || status < 0) return status;
    status = must_refuse(c->ops->fill(c->device, c->stream, last, 1, 1), "fill");
    if (status == PLLM_OK)
        status = must_refuse(pllm_device_write(c->device, c->stream, va, 64, c->host), "copy to");
    return status;
}

static uint64_t word_of(uint64_t round)
{
    return round * 0x9e3779b97f4a7c15u;
}

static pllm_store_tensor *back_of(client *c, const char *name)
{
    char back[64];
    snprintf(back, sizeof back, "%.50s.back", name);
    return tensor_of(c, back);
}

/* A slot: [word | bytes of the round | word]. */
static int produce(client *c, message *m)
{
    pllm_store_tensor *data = tensor_of(c, m->name), *back = back_of(c, m->name);
    int status = PLLM_OK;
    for (uint64_t n = 1; n <= m->number && status == PLLM_OK; n++) {
        uint64_t round = m->value + n, slot = round % SLOTS, word = word_of(round);
        pllm_va va = pllm_store_tensor_address(data) + slot * SLOT_STRIDE;
        if (n > SLOTS) status = pllm_store_wait(back, round - SLOTS, WAIT_MS);
        if (status < 0) break;
        unsigned char *from = c->host + slot * 64;
        memcpy(from, &word, 8);
        const pllm_copy ends[2] = {{va, (pllm_va)(uintptr_t)from, 8},
                                   {va + SLOT_BYTES - 8, (pllm_va)(uintptr_t)from, 8}};
        status = c->ops->fill(c->device, c->stream, va, SLOT_BYTES, (uint8_t)round);
        if (status == PLLM_OK)
            status = c->ops->copy_batch(c->device, c->stream, PLLM_COPY_IN, ends, 2);
        if (status == PLLM_OK) status = pllm_store_signal(data, c->stream, round);
    }
    if (status == PLLM_OK) status = pllm_store_wait(back, m->value + m->number, WAIT_MS);
    int synced = c->ops->stream_sync(c->device, c->stream);
    return status < 0 ? status : synced;
}

static int consume(client *c, message *m)
{
    pllm_store_tensor *data = tensor_of(c, m->name), *back = back_of(c, m->name);
    uint64_t before = m->value, rounds = m->number;
    m->value = m->number = 0;
    for (uint64_t round = before + 1; round <= before + rounds; round++, m->number++) {
        unsigned char *to = c->host + round % SLOTS * SLOT_BYTES;
        const pllm_copy out = {(pllm_va)(uintptr_t)to,
                               pllm_store_tensor_address(data) + round % SLOTS * SLOT_STRIDE,
                               SLOT_BYTES};
        int status = pllm_store_wait(data, round, WAIT_MS);
        if (status == PLLM_OK) status = c->ops->copy(c->device, c->stream, PLLM_COPY_OUT, &out);
        if (status == PLLM_OK) status = pllm_store_signal(back, c->stream, round);
        if (status == PLLM_OK) status = c->ops->stream_sync(c->device, c->stream);
        if (status < 0) return status;
        uint64_t word = word_of(round), bad = 0;
        bad |= (uint64_t)(memcmp(to, &word, 8) != 0);
        bad |= (uint64_t)(memcmp(to + SLOT_BYTES - 8, &word, 8) != 0);
        for (uint64_t i = 8; i < SLOT_BYTES - 8; i++) bad |= to[i] ^ (uint8_t)round;
        m->value += bad != 0;
    }
    return PLLM_OK;
}

static int client_do(client *c, message *m)
{
    pllm_store_tensor *tensor;
    switch (m->op) {
    case CREATE:
    case OPEN:
    case REDEEM:
        return make(c, m);
    case CLOSE:
        return shut(c, m->name);
    case REMOVE:
        return pllm_store_delete(c->store, m->name);
    case SEAL:
        return pllm_store_seal(c->store, m->name);
    case STAT:
        return stat_of(c, m);
    case VALID:
        return pllm_store_tensor_valid(tensor_of(c, m->name));
    case FILL:
        return fill(c, m);
    case READ:
        tensor = tensor_of(c, m->name);
        return compare(c, pllm_store_tensor_address(tensor), pllm_store_tensor_bytes(tensor), m);
    case REFUSE:
        return refuse(c, m);
    case SIGNAL:
        return pllm_store_signal(tensor_of(c, m->name), NULL, m->number);
    case WAIT:
        return pllm_store_wait(tensor_of(c, m->name), m->number, WAIT_MS);
    case PRODUCE:
        return produce(c, m);
    case CONSUME:
        return consume(c, m);
    case RAW:
        return raw(c, m);
    default:
        return pllm_fail(PLLM_EINVAL, 0, "operation %u", m->op);
    }
}

static int client_main(int fd)
{
    client c = {.device = device_open()};
    const pllm_store_options options = {
        .struct_bytes = sizeof options, .socket = socket_path, .device = c.device};
    message m;
    void *host;
    c.ops = c.device->ops;
    OK(c.ops->stream_open(c.device, &c.stream));
    OK(c.ops->host_alloc(c.device, HOST_BYTES, &host));
    c.host = host;
    OK(pllm_store_open(c.device->context, &options, &c.store));
    while (hear(fd, &m) && m.op != END) answer(fd, &m, client_do(&c, &m));
    pllm_store_close(c.store);
    c.ops->host_free(c.device, c.host, HOST_BYTES);
    c.ops->stream_close(c.device, c.stream);
    pllm_device_close(c.device);
    answer(fd, &(message){.op = END}, PLLM_OK);
    return 0;
}

/* ---- the first process: what is asked ---- */

typedef struct stage {
    peer daemon, producer, consumer;
    uint64_t wrong;
} stage;

/* The ring and the way back, open in both processes. */
static void ring_open(const stage *s, const peer *producer, const char *name, uint32_t flags)
{
    message back = {.op = CREATE, .number = 64};
    message data = {.op = CREATE, .number = RING_BYTES, .value = flags};
    snprintf(data.name, sizeof data.name, "%s", name);
    snprintf(back.name, sizeof back.name, "%s.back", name);
    (void)asked(producer, PLLM_OK, data, __LINE__);
    (void)asked(&s->consumer, PLLM_OK, back, __LINE__);
    data.op = READ;
    data.value = 0;
    CHECK(asked(producer, PLLM_OK, data, __LINE__).number == 0); /* new memory is all zeros */
    data.op = back.op = OPEN;
    data.number = back.number = 0;
    (void)asked(&s->consumer, PLLM_OK, data, __LINE__);
    (void)asked(producer, PLLM_OK, back, __LINE__);
}

static void ring_close(const peer *p, const char *name)
{
    message m = {.op = CLOSE};
    snprintf(m.name, sizeof m.name, "%s", name);
    (void)asked(p, PLLM_OK, m, __LINE__);
    snprintf(m.name, sizeof m.name, "%s.back", name);
    (void)asked(p, PLLM_OK, m, __LINE__);
}

static void run_rounds(stage *s, const char *name, const char *what, uint64_t before,
                       uint64_t rounds)
{
    message m = {.op = PRODUCE, .value = before, .number = rounds};
    snprintf(m.name, sizeof m.name, "%s", name);
    uint64_t start_ns = pllm_clock_ns();
    say(s->producer.socket, &m);
    m.op = CONSUME;
    message got = asked(&s->consumer, PLLM_OK, m, __LINE__);
    uint64_t took_ns = pllm_clock_ns() - start_ns;
    (void)heard(&s->producer, PLLM_OK, __LINE__);
    CHECK(got.number == rounds);
    s->wrong += got.value;
    printf("  %-34s %llu rounds, %llu wrong, %.1f us a round\n", what, (unsigned long long)rounds,
           (unsigned long long)got.value, (double)took_ns / 1e3 / (double)rounds);
    fflush(stdout);
}

/* Writing to what is open for reading: our own check, copies and fills of VMM tensors; of legacy
 * ones, which have no such thing in CUDA, signals alone. */
static void reading_only(const stage *s)
{
    (void)ask(&s->consumer, PLLM_OK, .op = REFUSE, .name = "vmm", .number = 1);
    (void)ask(&s->consumer, PLLM_OK, .op = REFUSE, .name = "legacy", .number = 0);
    printf("a tensor open for reading refuses copies, fills and signals\n");
}

static void handles(const stage *s)
{
    const uint64_t bytes = 300000;
    message text, token;
    (void)ask(&s->daemon, PLLM_OK, .op = DAEMON_CREATE, .name = "by-text", .bytes = bytes);
    text = ask(&s->daemon, PLLM_OK, .op = DAEMON_TEXT, .name = "by-text");
    (void)ask(&s->producer, PLLM_OK, .op = OPEN, .name = "by-text", .number = 1);
    (void)ask(&s->producer, PLLM_OK, .op = FILL, .name = "by-text", .value = 0x5a, .number = 1);
    text.op = RAW;
    text.bytes = bytes;
    text.value = 0x5a;
    CHECK(asked(&s->consumer, PLLM_OK, text, __LINE__).number == 0);
    (void)ask(&s->producer, PLLM_OK, .op = CLOSE, .name = "by-text");
    (void)ask(&s->producer, PLLM_OK, .op = REMOVE, .name = "by-text");

    (void)ask(&s->producer, PLLM_OK, .op = CREATE, .name = "by-token", .number = bytes);
    (void)ask(&s->producer, PLLM_OK, .op = FILL, .name = "by-token", .value = 0xa5, .number = 1);
    token = ask(&s->daemon, PLLM_OK, .op = DAEMON_TEXT, .name = "by-token");
    token.op = REDEEM;
    (void)asked(&s->consumer, PLLM_OK, token, __LINE__);
    message seen = ask(&s->consumer, PLLM_OK, .op = READ, .name = "by-token", .value = 0xa5);
    CHECK(seen.number == 0);
    (void)ask(&s->consumer, PLLM_OK, .op = CLOSE, .name = "by-token");
    (void)ask(&s->producer, PLLM_OK, .op = CLOSE, .name = "by-token");
    printf("ipc_handle: a legacy tensor by CUDA's handle and offset, a VMM tensor by its token\n");
}

static message pressed(op what, uint64_t i)
{
    message m = {.op = what};
    snprintf(m.name, sizeof m.name, "pressed-%llu", (unsigned long long)i);
    return m;
}

/* More than the limit: sealed tensors that nobody has open go to host memory, and come back. */
static void pressure(const stage *s)
{
    uint64_t spilled = 0;
    for (uint64_t i = 0; i < PRESSED; i++) {
        message m = pressed(CREATE, i);
        m.number = PRESSED_BYTES;
        m.value = PLLM_STORE_KEPT;
        (void)asked(&s->producer, PLLM_OK, m, __LINE__);
        m = pressed(FILL, i);
        m.value = 0x80 + i;
        m.number = 1;
        (void)asked(&s->producer, PLLM_OK, m, __LINE__);
        (void)asked(&s->producer, PLLM_OK, pressed(CLOSE, i), __LINE__);
        (void)asked(&s->producer, PLLM_OK, pressed(SEAL, i), __LINE__);
    }
    for (uint64_t i = 0; i < PRESSED; i++)
        spilled += asked(&s->consumer, PLLM_OK, pressed(STAT, i), __LINE__).number;
    CHECK(spilled > 0);
    for (uint64_t i = 0; i < PRESSED; i++) {
        message m = pressed(READ, i);
        m.value = 0x80 + i;
        (void)asked(&s->consumer, PLLM_OK, pressed(OPEN, i), __LINE__);
        CHECK(asked(&s->consumer, PLLM_OK, pressed(STAT, i), __LINE__).number == 0);
        CHECK(asked(&s->consumer, PLLM_OK, m, __LINE__).number == 0);
        (void)asked(&s->consumer, PLLM_OK, pressed(CLOSE, i), __LINE__);
    }
    message figures = ask(&s->daemon, PLLM_OK, .op = DAEMON_FIGURES);
    CHECK(figures.value <= LIMIT_BYTES);
    for (uint64_t i = 0; i < PRESSED; i++)
        (void)asked(&s->producer, PLLM_OK, pressed(REMOVE, i), __LINE__);
    printf("%u sealed tensors of %llu MiB under a limit of %llu MiB: %llu spilled, all right when "
           "opened (%llu moves out, %llu back)\n",
           PRESSED, (unsigned long long)(PRESSED_BYTES / MEBI),
           (unsigned long long)(LIMIT_BYTES / MEBI), (unsigned long long)spilled,
           (unsigned long long)(figures.bytes >> 32),
           (unsigned long long)(figures.bytes & UINT32_MAX));
}

/* Killed in the middle of its rounds. */
static void producer_dies(stage *s)
{
    peer victim = start("--client");
    message m = {.op = PRODUCE, .name = "doomed", .number = (uint64_t)1 << 40};
    ring_open(s, &victim, "doomed", 0);
    say(victim.socket, &m);
    m.op = CONSUME;
    say(s->consumer.socket, &m);
    for (uint64_t until_ns = pllm_clock_ns() + WAIT_MS * UINT64_C(1000000), seen = 0; seen < 50;
         nap_ms(1)) {
        CHECK(pllm_clock_ns() < until_ns);
        seen = ask(&s->producer, PLLM_OK, .op = STAT, .name = "doomed").value;
    }
    uint64_t start_ns = pllm_clock_ns();
    end_by_force(&victim);
    message got = heard(&s->consumer, PLLM_ECANCELED, __LINE__);
    uint64_t took_ns = pllm_clock_ns() - start_ns;
    CHECK(took_ns < WAIT_MS * UINT64_C(1000000));
    s->wrong += got.value;
    printf("a producer killed after %llu rounds (%llu wrong): its consumer hears of it %.1f ms "
           "later\n",
           (unsigned long long)got.number, (unsigned long long)got.value, (double)took_ns / 1e6);
    /* The tensor goes on with who opens it since. */
    (void)ask(&s->consumer, PLLM_ECANCELED, .op = WAIT, .name = "doomed", .number = 1u << 30);
    (void)ask(&s->producer, PLLM_OK, .op = OPEN, .name = "doomed", .number = 1);
    (void)ask(&s->producer, PLLM_OK, .op = FILL, .name = "doomed", .value = 7, .number = 1u << 30);
    /* A stream's signal is not answered; this one is, and comes after it. */
    (void)ask(&s->producer, PLLM_OK, .op = SIGNAL, .name = "doomed", .number = 1u << 30);
    (void)ask(&s->consumer, PLLM_OK, .op = WAIT, .name = "doomed", .number = 1u << 30);
    got = ask(&s->consumer, PLLM_OK, .op = READ, .name = "doomed", .value = 7);
    CHECK(got.number == 0);
    (void)ask(&s->producer, PLLM_OK, .op = CLOSE, .name = "doomed");
    ring_close(&s->consumer, "doomed");
}

/* VMM tensors go on, with bytes and fences; legacy ones are lost. */
static void daemon_dies(stage *s, uint64_t fence)
{
    message seen;
    (void)ask(&s->producer, PLLM_OK, .op = FILL, .name = "vmm", .value = 0x33, .number = fence);
    end_by_force(&s->daemon);
    (void)ask(&s->consumer, PLLM_EIO, .op = STAT, .name = "vmm");
    seen = ask(&s->consumer, PLLM_OK, .op = READ, .name = "vmm", .value = 0x33);
    CHECK(seen.number == 0);
    s->daemon = daemon_start();
    seen = ask(&s->producer, PLLM_OK, .op = STAT, .name = "vmm");
    CHECK(seen.value == fence && seen.number == 0);
    seen = ask(&s->consumer, PLLM_OK, .op = STAT, .name = "vmm");
    CHECK(seen.value == fence);
    (void)ask(&s->producer, PLLM_OK, .op = VALID, .name = "vmm");
    (void)ask(&s->consumer, PLLM_OK, .op = VALID, .name = "vmm");
    (void)ask(&s->consumer, PLLM_OK, .op = WAIT, .name = "vmm", .number = fence);
    (void)ask(&s->consumer, PLLM_OK, .op = REFUSE, .name = "vmm", .number = 1);
    (void)ask(&s->producer, PLLM_ESTALE, .op = VALID, .name = "legacy");
    (void)ask(&s->consumer, PLLM_ESTALE, .op = WAIT, .name = "legacy", .number = 1);
    /* Who comes new gets the same memory. */
    peer late = start("--client");
    (void)ask(&late, PLLM_OK, .op = OPEN, .name = "vmm", .number = 0);
    seen = ask(&late, PLLM_OK, .op = READ, .name = "vmm", .value = 0x33);
    CHECK(seen.number == 0);
    (void)ask(&late, PLLM_ENOTFOUND, .op = OPEN, .name = "legacy", .number = 0);
    end(&late);
    printf("the daemon killed and started again: VMM tensors go on, legacy ones say ESTALE\n");
}

static uint64_t used_bytes(pllm_device *device)
{
    uint64_t before, now;
    pllm_device_info info = {.struct_bytes = sizeof info};
    if (pllm_cuda_memory_used(device, &before, &now) == PLLM_OK) return now;
    OK(pllm_device_info_get(device, &info));
    return info.total_bytes - info.free_bytes;
}

/* What clients gave back the daemon no longer holds, but for what it keeps ready. */
static void daemon_is_empty(const stage *s)
{
    const uint64_t kept = READY_BYTES + SLAB_BYTES;
    message figures;
    for (int i = 0; i < 500; i++, nap_ms(10)) {
        figures = ask(&s->daemon, PLLM_OK, .op = DAEMON_FIGURES);
        if (figures.number == 0 && figures.value <= kept) break;
    }
    CHECK(figures.number == 0 && figures.value <= kept);
}

static int first_main(uint64_t rounds, int small)
{
    char folder[] = "/tmp/cuda-store-XXXXXX", path[64];
    stage s = {0};
    CHECK(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/s.sock", folder);
    socket_path = path;
    pllm_device *device = device_open();
    uint64_t base = used_bytes(device), now = 0, slack = (small ? 256 : 64) * MEBI;
    s.daemon = daemon_start();
    s.producer = start("--client");
    s.consumer = start("--client");
    printf("a consumer on another stream of another process, under the store's fences\n");
    ring_open(&s, &s.producer, "vmm", 0);
    ring_open(&s, &s.producer, "legacy", PLLM_STORE_LEGACY);
    run_rounds(&s, "vmm", "VMM tensor", 0, rounds);
    run_rounds(&s, "legacy", "legacy tensor", 0, rounds);
    reading_only(&s);
    handles(&s);
    pressure(&s);
    producer_dies(&s);
    daemon_dies(&s, rounds + 1);
    ring_close(&s.producer, "legacy");
    ring_close(&s.consumer, "legacy");
    /* At once, without a stream. */
    (void)ask(&s.consumer, PLLM_OK, .op = SIGNAL, .name = "vmm.back", .number = rounds + 1);
    run_rounds(&s, "vmm", "VMM tensor, the next daemon", rounds + 1, rounds / 10 + SLOTS);
    ring_close(&s.producer, "vmm");
    ring_close(&s.consumer, "vmm");
    daemon_is_empty(&s);
    end(&s.producer);
    end(&s.consumer);
    end(&s.daemon);
    for (int i = 0; i < 100; i++, nap_ms(100)) /* contexts of killed processes take a while */
        if ((now = used_bytes(device)) <= base + slack) break;
    CHECK(now <= base + slack);
    pllm_device_close(device);
    strcat(path, ".lock");
    unlink(path);
    CHECK(rmdir(folder) == 0); /* nothing else was left in it */
    printf("memory in use: %.1f MiB at the start, %.1f MiB at the end\n", (double)base / MEBI,
           (double)now / MEBI);
    printf("%llu rounds of each kind, %llu wrong\n", (unsigned long long)rounds,
           (unsigned long long)s.wrong);
    return s.wrong != 0;
}

int main(int argc, char **argv)
{
    const char *role = NULL;
    int fd = -1, small = getenv("PLLM_TEST_SMALL") != NULL;
    uint64_t rounds = small ? 200 : 10000;
    for (int i = 1; i < argc; i++) {
        if (i + 1 < argc && strcmp(argv[i], "--driver") == 0) {
            driver = argv[++i];
        } else if (i + 1 < argc && strcmp(argv[i], "--socket") == 0) {
            socket_path = argv[++i];
        } else if (i + 1 < argc && strcmp(argv[i], "--rounds") == 0) {
            rounds = strtoull(argv[++i], NULL, 10);
        } else if (i + 1 < argc && strncmp(argv[i], "--", 2) == 0) {
            role = argv[i];
            fd = atoi(argv[++i]);
        } else {
            fprintf(stderr, "usage: cuda_store [--driver LIBRARY] [--rounds N]\n");
            return 2;
        }
    }
    if (!role) return first_main(rounds, small);
    return strcmp(role, "--daemon") == 0 ? daemon_main(fd) : client_main(fd);
}
