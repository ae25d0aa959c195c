/* Deaths and returns: of clients, which leave nothing behind but what they may still have mapped;
 * and of the daemon, whose successor takes over what clients hold. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/clock.h"
#include "store_rig.h"

#define MIB ((uint64_t)1 << 20)

/* A child that does work and then waits to be killed. */
static pid_t child_of(store_rig *rig, void (*work)(store_rig *rig))
{
    int ready[2];
    char byte;
    assert_int_equal(pipe(ready), 0);
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that fails leaves no child */
        work(rig);
        if (write(ready[1], "x", 1) != 1) _exit(1);
        for (;;) pause();
    }
    close(ready[1]);
    assert_int_equal(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    return child;
}

static void end(pid_t child)
{
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
}

static store_talk kept; /* of a child: stays open until it is killed */

static void make_and_hold(store_rig *rig)
{
    uint64_t mapped;
    store_talk_open(rig, &kept);
    if (store_create(&kept, "c", 8 * MIB, 0) != PLLM_OK) _exit(2);
    volatile char *data = store_map(&kept, 1, &mapped);
    data[5] = 1;
}

static void a_killed_client_leaves_nothing(void **state)
{
    (void)state;
    store_rig rig;
    store_talk talk;
    store_rig_open(&rig, NULL, 0);
    store_talk_open(&rig, &talk);
    for (int i = 0; i < 3; i++) {
        pid_t child = child_of(&rig, make_and_hold);
        assert_int_equal(store_name(&talk, PLLM_WIRE_STAT, "c", 0, NULL), PLLM_OK);
        assert_int_equal(talk.answer.tensor.info.owner_pid, child);
        end(child);
        uint64_t killed = pllm_clock_ns();
        store_rig_until(&rig, 0, 1);
        assert_true(pllm_clock_ns() - killed < 1000000000u);
        assert_int_equal(store_rig_stats(&rig).registry.lease_count, 1);
    }
    assert_int_equal(store_name(&talk, PLLM_WIRE_STAT, "c", 0, NULL), PLLM_ENOTFOUND);
    store_talk_close(&talk);
    store_rig_close(&rig);
}

/* A process that closes its socket and lives may have memory mapped: the name goes, the memory
 * stays until the process ends. */
static void who_lives_on_keeps_the_memory(void **state)
{
    (void)state;
    store_rig rig;
    store_talk talk, watcher;
    store_rig_open(&rig, NULL, 0);
    store_talk_open(&rig, &watcher);
    store_talk_open(&rig, &talk);
    assert_int_equal(store_create(&talk, "mine", 4 * MIB, 0), PLLM_OK);
    store_talk_close(&talk);
    store_rig_until(&rig, 1, 1);
    usleep(30000); /* several looks at the process */
    assert_int_equal(store_rig_stats(&rig).registry.tensor_count, 1);
    assert_int_equal(store_rig_stats(&rig).registry.lease_count, 2);
    assert_int_equal(store_open(&watcher, "mine", 0), PLLM_ENOTFOUND);
    store_talk_close(&watcher);
    store_rig_close(&rig);
}

static void hold_for_writing(store_rig *rig)
{
    store_talk_open(rig, &kept);
    if (store_open(&kept, "f", 1) != PLLM_OK) _exit(2);
    pllm_wire_info info = kept.answer.tensor.info;
    if (store_signal(&kept, info.slot, info.generation, 3) != PLLM_OK) _exit(3);
}

typedef struct waiting {
    pllm_board *board;
    pllm_wire_info info;
    uint64_t value, took_ns;
    int status;
} waiting;

static void *wait_on(void *argument)
{
    waiting *w = argument;
    uint64_t start = pllm_clock_ns();
    w->status = pllm_board_wait(w->board, w->info.slot, w->info.generation, w->value, 5000000000u);
    w->took_ns = pllm_clock_ns() - start;
    return NULL;
}

static void a_dead_producer_hangs_nobody(void **state)
{
    (void)state;
    store_rig rig;
    store_talk talk;
    pthread_t thread;
    store_rig_open(&rig, NULL, 0);
    store_talk_open(&rig, &talk);
    waiting w = {.value = 4};
    assert_int_equal(pllm_board_attach(NULL, dup(talk.fds[0]), &w.board), PLLM_OK);
    assert_int_equal(store_create(&talk, "f", 64, 0), PLLM_OK);
    w.info = talk.answer.tensor.info;
    pid_t child = child_of(&rig, hold_for_writing);
    assert_int_equal(pthread_create(&thread, NULL, wait_on, &w), 0);
    usleep(20000);
    end(child);
    pthread_join(thread, NULL);
    assert_int_equal(w.status, PLLM_ECANCELED);
    assert_true(w.took_ns < 2000000000u);
    /* What was signalled before holds; what was not never will, and says so at once. */
    assert_int_equal(pllm_board_wait(w.board, w.info.slot, w.info.generation, 3, 0), PLLM_OK);
    assert_int_equal(pllm_board_wait(w.board, w.info.slot, w.info.generation, 4, 5000000000u),
                     PLLM_ECANCELED);
    /* This client wrote before the other one died: it must open anew to go on. */
    assert_int_equal(store_signal(&talk, w.info.slot, w.info.generation, 4), PLLM_ECANCELED);
    assert_int_equal(store_open(&talk, "f", 1), PLLM_OK);
    assert_int_equal(store_signal(&talk, w.info.slot, w.info.generation, 4), PLLM_OK);
    assert_int_equal(pllm_board_wait(w.board, w.info.slot, w.info.generation, 4, 0), PLLM_OK);
    pllm_board_close(w.board);
    store_talk_close(&talk);
    store_rig_close(&rig);
}

static int until_closed[2]; /* a pipe: who reads it waits for its writer's end */

/* A producer with a child that has nothing to do with the store, but inherited its socket. */
static void hold_and_fork(store_rig *rig)
{
    hold_for_writing(rig);
    pid_t child = fork();
    if (child) return;
    char byte;
    close(until_closed[1]);
    (void)!read(until_closed[0], &byte, 1);
    _exit(0);
}

static void a_dead_producer_with_a_living_child_hangs_nobody(void **state)
{
    (void)state;
    store_rig rig;
    store_talk talk;
    const store_rig none = {0};
    const pllm_store_server_options options = {.sweep_ms = 20};
    rig = none;
    store_rig_open(&rig, &options, 0);
    store_talk_open(&rig, &talk);
    waiting w = {.value = 4};
    assert_int_equal(pllm_board_attach(NULL, dup(talk.fds[0]), &w.board), PLLM_OK);
    assert_int_equal(store_create(&talk, "f", 64, 0), PLLM_OK);
    w.info = talk.answer.tensor.info;
    assert_int_equal(pipe(until_closed), 0);
    pid_t child = child_of(&rig, hold_and_fork);
    end(child);
    wait_on(&w);
    assert_int_equal(w.status, PLLM_ECANCELED);
    store_rig_until(&rig, 1, 1);
    assert_int_equal(store_rig_stats(&rig).registry.lease_count, 1);
    close(until_closed[0]);
    close(until_closed[1]);
    pllm_board_close(w.board);
    store_talk_close(&talk);
    store_rig_close(&rig);
}

/* ---- the daemon's return ---- */

typedef struct held { /* what a client keeps of a tensor it has open */
    pllm_wire_info info;
    char name[PLLM_STORE_NAME_MAX + 1];
    pllm_wire_layout layout;
    int fds[PLLM_WIRE_PIECES_MAX];
    uint64_t *data, bytes;
} held;

static void keep(store_talk *talk, held *h, int writable)
{
    memset(h, 0, sizeof *h);
    h->info = talk->answer.tensor.info;
    h->layout = talk->answer.tensor.layout;
    snprintf(h->name, sizeof h->name, "%.*s", (int)h->info.name.bytes, h->info.name.data);
    h->data = store_map(talk, writable, &h->bytes);
    assert_non_null(h->data);
    for (uint32_t i = 0; i < talk->fd_count; i++) h->fds[i] = dup(talk->fds[i]);
}

static void forget(held *h)
{
    munmap(h->data, h->bytes);
    for (uint32_t i = 0; i < h->layout.piece_count; i++) close(h->fds[i]);
}

static int offer(store_talk *talk, held *h, uint32_t writable, uint64_t fence)
{
    talk->ask = (pllm_wire_message){.op = PLLM_WIRE_OFFER};
    pllm_registry_offer *o = &talk->ask.offer.offer;
    o->spec.dtype = h->info.spec.dtype;
    o->spec.rank = h->info.spec.rank;
    o->spec.mode = h->info.spec.mode;
    o->spec.flags = h->info.spec.flags;
    memcpy(o->spec.shape, h->info.spec.shape, sizeof o->spec.shape);
    o->uid = h->info.uid;
    o->gid = h->info.gid;
    o->writable = writable;
    o->old_generation = h->info.generation;
    o->fence_value = fence;
    talk->ask.offer.offset = h->layout.offset;
    talk->ask.offer.piece_count = h->layout.piece_count;
    memcpy(talk->ask.offer.pieces, h->layout.pieces,
           h->layout.piece_count * sizeof *h->layout.pieces);
    talk->ask.offer.name = (pllm_wire_text){h->name, (uint32_t)strlen(h->name)};
    return store_ask(talk, h->fds, h->layout.piece_count);
}

static void a_new_daemon_takes_over_what_clients_hold(void **state)
{
    (void)state;
    store_rig rig;
    store_talk writer, reader;
    held large, small, seen;
    pllm_store_server_options options = {.adopt_ms = 60000};
    store_rig_open(&rig, &options, 0);
    store_talk_open(&rig, &writer);
    store_talk_open(&rig, &reader);
    assert_int_equal(store_create(&writer, "large", 6 * MIB, 0), PLLM_OK);
    keep(&writer, &large, 1);
    assert_int_equal(store_create(&writer, "small", 5000, 0), PLLM_OK);
    keep(&writer, &small, 1);
    assert_int_equal(store_open(&reader, "large", 0), PLLM_OK);
    keep(&reader, &seen, 0);
    for (uint64_t i = 0; i < large.bytes / 8; i += 100) large.data[i] = i + 7;
    small.data[small.layout.offset / 8] = 77;

    store_rig_restart(&rig);
    store_talk_close(&writer);
    store_talk_close(&reader);
    store_talk_open(&rig, &writer);
    store_talk_open(&rig, &reader);
    assert_int_equal(store_open(&writer, "large", 0), PLLM_ENOTFOUND); /* nobody said so yet */
    /* A reader may come first: what it has may be read by others, but not written. */
    assert_int_equal(offer(&reader, &seen, 0, 4), PLLM_OK);
    uint64_t generation = reader.answer.tensor.info.generation;
    assert_true(generation >> 32 > large.info.generation >> 32);
    assert_int_equal(store_open(&reader, "large", 1), PLLM_EPERM);
    assert_int_equal(store_open(&reader, "large", 0), PLLM_OK);
    assert_int_equal(store_shut(&reader, reader.answer.tensor.info.slot, generation, 0), PLLM_OK);
    /* With its writer it is whole again. */
    assert_int_equal(offer(&writer, &large, 1, 9), PLLM_OK);
    assert_int_equal(writer.answer.tensor.info.generation, generation); /* the same one */
    assert_int_equal(writer.answer.tensor.info.reference_count, 2);
    assert_int_equal(writer.answer.tensor.info.fence_value, 9);
    assert_int_equal(offer(&writer, &small, 1, 0), PLLM_OK);
    /* The same name of another generation is not the same tensor. */
    held wrong = large;
    wrong.info.generation--;
    assert_int_equal(offer(&writer, &wrong, 1, 0), PLLM_EEXIST);
    wrong.info.generation = generation;
    assert_int_equal(offer(&writer, &wrong, 1, 0), PLLM_EINVAL); /* of this daemon */
    /* Pieces that the tensor does not lie in. */
    wrong = small;
    strcpy(wrong.name, "other");
    wrong.info.generation += 100; /* one that nobody has offered yet */
    wrong.layout.offset = 2 * MIB;
    assert_int_equal(offer(&writer, &wrong, 1, 0), PLLM_EINVAL);
    assert_int_equal(store_rig_stats(&rig).adopted_count, 2);

    /* A third client finds the bytes, and what it writes the holders see. */
    store_talk third;
    store_talk_open(&rig, &third);
    held again;
    assert_int_equal(store_open(&third, "large", 1), PLLM_OK);
    keep(&third, &again, 1);
    for (uint64_t i = 0; i < large.bytes / 8; i += 100) assert_int_equal(again.data[i], i + 7);
    again.data[3] = 1234;
    assert_int_equal(seen.data[3], 1234);
    forget(&again);
    assert_int_equal(store_open(&third, "small", 0), PLLM_OK);
    keep(&third, &again, 0);
    assert_int_equal(again.data[again.layout.offset / 8], 77);
    forget(&again);
    forget(&large);
    forget(&small);
    forget(&seen);
    store_talk_close(&writer);
    store_talk_close(&reader);
    store_talk_close(&third);
    store_rig_close(&rig);
}

static void offers_end(void **state)
{
    (void)state;
    store_rig rig;
    store_talk talk;
    held h, sealed;
    pllm_board *board;
    pllm_store_server_options options = {.adopt_ms = 150};
    store_rig_open(&rig, &options, 0);
    store_talk_open(&rig, &talk);
    assert_int_equal(store_create(&talk, "late", 2 * MIB, 0), PLLM_OK);
    keep(&talk, &h, 1);
    assert_int_equal(store_create(&talk, "sealed", 2 * MIB, 0), PLLM_OK);
    pllm_wire_info info = talk.answer.tensor.info;
    assert_int_equal(store_name(&talk, PLLM_WIRE_SEAL, "sealed", 0, NULL), PLLM_OK);
    assert_int_equal(store_open(&talk, "sealed", 0), PLLM_OK);
    keep(&talk, &sealed, 0);
    assert_int_equal(sealed.info.generation, info.generation);
    held idle;
    assert_int_equal(store_create(&talk, "idle", 3000, 0), PLLM_OK);
    keep(&talk, &idle, 1);
    store_rig_restart(&rig);
    store_talk_close(&talk);
    store_talk_open(&rig, &talk);
    assert_int_equal(pllm_board_attach(NULL, dup(talk.fds[0]), &board), PLLM_OK);
    /* What is sealed, readers can bring back; then nobody can open it for writing. */
    assert_int_equal(offer(&talk, &sealed, 0, 0), PLLM_OK);
    assert_int_equal(store_open(&talk, "sealed", 1), PLLM_EPERM);
    assert_int_equal(store_open(&talk, "sealed", 0), PLLM_OK);
    /* This one's writer brings it back and goes. A reader waits for what it would have signalled:
     * no producer is left when offers end, and the wait is over. */
    assert_int_equal(offer(&talk, &h, 1, 5), PLLM_OK);
    info = talk.answer.tensor.info;
    assert_int_equal(store_open(&talk, "late", 0), PLLM_OK);
    assert_int_equal(store_shut(&talk, info.slot, info.generation, 1), PLLM_OK);
    assert_int_equal(pllm_board_wait(board, info.slot, info.generation, 6, 5000000000u),
                     PLLM_ECANCELED);
    /* Who was idle all the time and offers now is welcome; but not once it was deleted. */
    assert_int_equal(offer(&talk, &h, 0, 0), PLLM_OK);
    assert_int_equal(talk.answer.tensor.info.generation, info.generation);
    assert_int_equal(store_name(&talk, PLLM_WIRE_DELETE, "late", 0, NULL), PLLM_OK);
    assert_int_equal(offer(&talk, &h, 1, 0), PLLM_ESTALE);
    assert_int_equal(store_name(&talk, PLLM_WIRE_STAT, "late", 0, NULL), PLLM_ENOTFOUND);
    assert_int_equal(offer(&talk, &idle, 1, 1), PLLM_OK); /* long after the others */
    info = talk.answer.tensor.info;
    assert_int_equal(store_shut(&talk, info.slot, info.generation, 1), PLLM_OK);
    pllm_board_close(board);
    forget(&idle);
    forget(&h);
    forget(&sealed);
    store_talk_close(&talk);
    store_rig_close(&rig);
}

/* SIGKILL: the socket file and the lock stay, nobody is told; the next daemon starts all the same,
 * and with a greater epoch. */
static void a_killed_daemon_is_followed(void **state)
{
    (void)state;
    char folder[] = "/tmp/store-test-XXXXXX", path[80];
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/s.sock", folder);
    uint64_t last = 0;
    held h = {0};
    for (int life = 0; life < 3; life++) {
        int ready[2];
        char byte;
        assert_int_equal(pipe(ready), 0);
        pid_t daemon = fork();
        if (daemon == 0) {
            pllm_device *device;
            pllm_store_server *server;
            pllm_host_device_options host = {.struct_bytes = sizeof host,
                                             .capacity_bytes = 64 * MIB};
            if (pllm_device_open_host(NULL, &host, &device) < 0) _exit(1);
            pllm_store_served served = {.device = device};
            pllm_store_server_options options = {.struct_bytes = sizeof options,
                                                 .socket = path,
                                                 .devices = &served,
                                                 .device_count = 1};
            if (pllm_store_server_open(NULL, &options, &server) < 0) _exit(2);
            if (write(ready[1], "x", 1) != 1) _exit(3);
            pllm_store_server_run(server, -1);
            _exit(4);
        }
        close(ready[1]);
        assert_int_equal(read(ready[0], &byte, 1), 1);
        close(ready[0]);
        store_rig rig = {0};
        store_talk talk;
        strcpy(rig.path, path);
        store_talk_open(&rig, &talk);
        if (life == 0) {
            assert_int_equal(store_create(&talk, "x", 2 * MIB, 0), PLLM_OK);
            keep(&talk, &h, 1);
            h.data[0] = 1000;
        } else {
            assert_int_equal(offer(&talk, &h, 1, 0), PLLM_OK);
            assert_int_equal(h.data[0], 999 + (uint64_t)life);
            h.data[0]++;
            h.info.generation = talk.answer.tensor.info.generation;
        }
        assert_true(h.info.generation >> 32 > last >> 32);
        last = h.info.generation;
        end(daemon);
        store_talk_close(&talk);
    }
    forget(&h);
    unlink(path);
    strcat(path, ".lock");
    unlink(path);
    rmdir(folder);
}

/* ---- daemons in a ledger ---- */

/* A daemon in a process of its own, a member of the ledger, without memory kept ready. */
static pid_t ledger_daemon(const char *path, const char *ledger_name, uint64_t limit_bytes,
                           uint32_t adopt_ms, int stop_fd)
{
    int ready[2];
    char byte = 0;
    assert_int_equal(pipe(ready), 0);
    pid_t daemon = fork();
    if (daemon == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that fails leaves no daemon */
        pllm_device *device;
        pllm_ledger *ledger;
        pllm_ledger_member *member;
        pllm_budget *budget;
        pllm_store_server *server;
        pllm_ledger_member_options as = {
            .struct_bytes = sizeof as, .name = "store", .adopt = 1, .wait_ms = 20};
        if (pllm_device_open_host(NULL, NULL, &device) < 0 ||
            pllm_ledger_open(NULL, ledger_name, limit_bytes, &ledger) < 0 ||
            pllm_ledger_join(ledger, &as, &member) < 0 ||
            pllm_budget_open(NULL, UINT64_MAX / 2, &budget) < 0)
            _exit(1);
        pllm_budget_attach(budget, member);
        pllm_store_served served = {.device = device, .budget = budget};
        pllm_store_server_options options = {.struct_bytes = sizeof options,
                                             .socket = path,
                                             .devices = &served,
                                             .device_count = 1,
                                             .adopt_ms = adopt_ms,
                                             .sweep_ms = 20};
        if (pllm_store_server_open(NULL, &options, &server) < 0) _exit(2);
        if (write(ready[1], "x", 1) != 1) _exit(3);
        pllm_store_server_run(server, stop_fd);
        pllm_store_server_close(server);
        pllm_budget_close(budget);
        pllm_ledger_leave(member);
        pllm_ledger_close(ledger);
        _exit(0);
    }
    close(ready[1]);
    assert_int_equal(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    return daemon;
}

typedef struct ledger_rig {
    char folder[32], path[64], name[32];
    pllm_ledger *ledger;
    store_rig rig; /* only its path */
} ledger_rig;

static void ledger_rig_open(ledger_rig *r, uint64_t limit_bytes)
{
    memset(r, 0, sizeof *r);
    strcpy(r->folder, "/tmp/store-test-XXXXXX");
    assert_non_null(mkdtemp(r->folder));
    snprintf(r->path, sizeof r->path, "%s/s.sock", r->folder);
    snprintf(r->name, sizeof r->name, "store-death-%d", (int)getpid());
    strcpy(r->rig.path, r->path);
    assert_int_equal(pllm_ledger_open(NULL, r->name, limit_bytes, &r->ledger), PLLM_OK);
}

static void ledger_rig_close(ledger_rig *r)
{
    pllm_ledger_close(r->ledger);
    assert_int_equal(pllm_ledger_remove(NULL, r->name), PLLM_OK);
    unlink(r->path);
    strcat(r->path, ".lock");
    unlink(r->path);
    rmdir(r->folder);
}

/* The store's row, or zeros. */
static pllm_ledger_member_info store_row(ledger_rig *r)
{
    pllm_ledger_member_info rows[PLLM_LEDGER_MEMBERS_MAX] = {{{0}}};
    int count = pllm_ledger_list(r->ledger, rows, PLLM_LEDGER_MEMBERS_MAX, NULL);
    for (int i = 0; i < count; i++)
        if (strcmp(rows[i].name, "store") == 0) return rows[i];
    return (pllm_ledger_member_info){.charged_bytes = 0};
}

/* Within 2 s the store has that charged. */
static void charged_becomes(ledger_rig *r, uint64_t bytes)
{
    uint64_t until = pllm_clock_ns() + 2000000000u;
    while (store_row(r).charged_bytes != bytes && pllm_clock_ns() < until) usleep(2000);
    assert_int_equal(store_row(r).charged_bytes, bytes);
}

static void is_gone(ledger_rig *r)
{
    uint64_t until = pllm_clock_ns() + 2000000000u;
    while (store_row(r).alive && pllm_clock_ns() < until) usleep(2000);
    assert_int_equal(store_row(r).alive, 0);
}

/* What a client maps stays charged when the daemon is killed, once, however many map it; the next
 * daemon takes the charge over, so that offers fit into a ledger that is full. */
static void a_killed_daemon_leaves_charged_what_is_mapped(void **state)
{
    (void)state;
    ledger_rig r;
    ledger_rig_open(&r, 8 * MIB);
    pid_t daemon = ledger_daemon(r.path, r.name, 0, 60000, -1);
    store_talk talk, reader;
    held large, small, seen;
    store_talk_open(&r.rig, &talk);
    store_talk_open(&r.rig, &reader);
    assert_int_equal(store_create(&talk, "large", 6 * MIB, 0), PLLM_OK);
    keep(&talk, &large, 1);
    assert_int_equal(store_row(&r).held_by_others_bytes, 6 * MIB);
    assert_int_equal(store_create(&talk, "small", 4096, 0), PLLM_OK);
    keep(&talk, &small, 1);
    assert_int_equal(store_open(&reader, "large", 0), PLLM_OK);
    keep(&reader, &seen, 0);
    assert_int_equal(store_row(&r).held_by_others_bytes, 8 * MIB);
    large.data[9] = 99;
    for (int life = 0; life < 2; life++) {
        end(daemon);
        store_talk_close(&talk);
        store_talk_close(&reader);
        is_gone(&r);
        assert_int_equal(store_row(&r).charged_bytes, 8 * MIB);

        daemon = ledger_daemon(r.path, r.name, 0, 60000, -1);
        store_talk_open(&r.rig, &talk);
        store_talk_open(&r.rig, &reader);
        assert_int_equal(store_row(&r).alive, 1);
        assert_int_equal(store_row(&r).charged_bytes, 8 * MIB);
        assert_int_equal(store_create(&talk, "more", 2 * MIB, 0), PLLM_ENODEVMEM);
        assert_int_equal(offer(&talk, &large, 1, 0), PLLM_OK);
        large.info.generation = talk.answer.tensor.info.generation;
        assert_int_equal(offer(&talk, &small, 1, 0), PLLM_OK);
        small.info.generation = talk.answer.tensor.info.generation;
        assert_int_equal(offer(&reader, &seen, 0, 0), PLLM_OK);
        seen.info.generation = reader.answer.tensor.info.generation;
        assert_int_equal(store_row(&r).charged_bytes, 8 * MIB);
        assert_int_equal(store_row(&r).held_by_others_bytes, 8 * MIB);
    }
    assert_int_equal(large.data[9], 99);
    /* Closed by one it is mapped by the other; closed by both it is nobody's charge. */
    pllm_wire_info info = talk.answer.tensor.info; /* of the small one */
    assert_int_equal(store_shut(&talk, info.slot, info.generation, 1), PLLM_OK);
    assert_int_equal(store_unmapped(&talk, info.slot, info.generation), PLLM_OK);
    assert_int_equal(store_row(&r).held_by_others_bytes, 6 * MIB);
    assert_int_equal(store_name(&talk, PLLM_WIRE_DELETE, "large", 0, NULL), PLLM_OK);
    assert_int_equal(store_row(&r).held_by_others_bytes, 6 * MIB);
    forget(&large);
    forget(&small);
    forget(&seen);
    end(daemon);
    store_talk_close(&talk);
    store_talk_close(&reader);
    pllm_ledger_member *heir; /* who knows that nothing is mapped any more */
    pllm_ledger_member_options as = {.struct_bytes = sizeof as, .name = "store", .adopt = 1};
    assert_int_equal(pllm_ledger_join(r.ledger, &as, &heir), PLLM_OK);
    assert_int_equal(pllm_ledger_hold(heir, getpid(), 0), PLLM_OK);
    pllm_ledger_leave(heir);
    ledger_rig_close(&r);
}

/* What nobody offers stays charged as long as the process lives that maps it, and no longer. */
static void what_is_not_offered_is_let_go_with_its_process(void **state)
{
    (void)state;
    ledger_rig r;
    ledger_rig_open(&r, 64 * MIB);
    pid_t daemon = ledger_daemon(r.path, r.name, 0, 40, -1);
    pid_t client = child_of(&r.rig, make_and_hold); /* 8 MiB */
    assert_int_equal(store_row(&r).held_by_others_bytes, 8 * MIB);
    end(daemon);
    is_gone(&r);
    assert_int_equal(store_row(&r).charged_bytes, 8 * MIB);
    daemon = ledger_daemon(r.path, r.name, 0, 40, -1);
    store_talk talk;
    store_talk_open(&r.rig, &talk);
    assert_int_equal(store_create(&talk, "mine", 2 * MIB, 0), PLLM_OK);
    usleep(150000); /* the time for offers is over */
    assert_int_equal(store_row(&r).charged_bytes, 10 * MIB);
    end(client);
    charged_becomes(&r, 2 * MIB);
    talk.ask = (pllm_wire_message){.op = PLLM_WIRE_BYE};
    (void)store_ask(&talk, NULL, 0);
    store_talk_close(&talk);
    charged_becomes(&r, 0);
    end(daemon);
    ledger_rig_close(&r);
}

/* The same where the daemon ends in good order: it lets go of memory that clients still map. */
static void a_daemon_that_is_told_to_end_leaves_that_charged_too(void **state)
{
    (void)state;
    ledger_rig r;
    ledger_rig_open(&r, 64 * MIB);
    int told[2];
    assert_int_equal(pipe(told), 0);
    pid_t daemon = ledger_daemon(r.path, r.name, 0, 0, told[0]);
    pid_t client = child_of(&r.rig, make_and_hold);
    assert_int_equal(write(told[1], "x", 1), 1);
    int status;
    assert_int_equal(waitpid(daemon, &status, 0), daemon);
    assert_int_equal(status, 0);
    close(told[0]);
    close(told[1]);
    assert_int_equal(store_row(&r).alive, 0);
    assert_int_equal(store_row(&r).charged_bytes, 8 * MIB);
    end(client);
    charged_becomes(&r, 0);
    ledger_rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_killed_client_leaves_nothing),
        cmocka_unit_test(who_lives_on_keeps_the_memory),
        cmocka_unit_test(a_dead_producer_hangs_nobody),
        cmocka_unit_test(a_dead_producer_with_a_living_child_hangs_nobody),
        cmocka_unit_test(a_new_daemon_takes_over_what_clients_hold),
        cmocka_unit_test(offers_end),
        cmocka_unit_test(a_killed_daemon_is_followed),
        cmocka_unit_test(a_killed_daemon_leaves_charged_what_is_mapped),
        cmocka_unit_test(what_is_not_offered_is_let_go_with_its_process),
        cmocka_unit_test(a_daemon_that_is_told_to_end_leaves_that_charged_too),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
