/* Clients that send garbage, half a message, too many descriptors, too much, or nothing: each harms
 * only itself. A good client works beside all of them, and afterwards the daemon has as many
 * descriptors open as before. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/clock.h"
#include "store/server_internal.h"
#include "store_rig.h"

typedef struct bad {
    store_rig rig;
    store_talk good;
    uint32_t fds_before; /* of the process, which is the daemon's too */
    uint64_t dropped_before;
} bad;

static uint32_t fds_open(void)
{
    uint32_t count = 0;
    DIR *folder = opendir("/proc/self/fd");
    while (readdir(folder)) count++;
    closedir(folder);
    return count;
}

static void bad_open(bad *b, const pllm_store_server_options *options)
{
    store_rig_open(&b->rig, options, 0);
    store_talk_open(&b->rig, &b->good);
    assert_int_equal(store_create(&b->good, "good", 4096, 0), PLLM_OK);
    b->good.ask = (pllm_wire_message){.op = PLLM_WIRE_PING};
    assert_int_equal(store_ask(&b->good, NULL, 0), PLLM_OK);
    store_rig_until(&b->rig, 1, 1);
    b->fds_before = fds_open();
    b->dropped_before = store_rig_stats(&b->rig).dropped_count;
}

static void good_works(bad *b)
{
    assert_int_equal(store_open(&b->good, "good", 0), PLLM_OK);
    pllm_wire_info info = b->good.answer.tensor.info;
    assert_int_equal(store_shut(&b->good, info.slot, info.generation, 0), PLLM_OK);
}

/* The daemon hung up. */
static void assert_hung_up(int fd)
{
    char bytes[256];
    ssize_t got;
    struct timeval limit = {5, 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    while ((got = recv(fd, bytes, sizeof bytes, 0)) > 0) continue;
    assert_true(got == 0 || errno == ECONNRESET);
    close(fd);
}

static void bad_close(bad *b, uint64_t dropped)
{
    good_works(b);
    store_rig_until(&b->rig, 1, 1);
    assert_int_equal(store_rig_stats(&b->rig).dropped_count - b->dropped_before, dropped);
    b->good.ask = (pllm_wire_message){.op = PLLM_WIRE_PING};
    assert_int_equal(store_ask(&b->good, NULL, 0), PLLM_OK); /* lets go of descriptors that came */
    assert_int_equal(fds_open(), b->fds_before);
    store_talk_close(&b->good);
    store_rig_close(&b->rig);
}

static uint64_t draw(uint64_t *random, uint64_t below)
{
    uint64_t x = *random += 0x9e3779b97f4a7c15u; /* SplitMix64 */
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return (x ^ (x >> 31)) % below;
}

static int hello_packet(uint8_t *packet, size_t bytes)
{
    pllm_wire_message hello = {.op = PLLM_WIRE_HELLO, .request = 1};
    hello.hello.protocol = PLLM_WIRE_VERSION;
    return pllm_wire_encode(&hello, packet, bytes);
}

static void garbage_ends_the_connection(void **state)
{
    enum { TRIES = 60 };
    (void)state;
    bad b;
    uint8_t bytes[2000];
    uint64_t random = 1, dropped = 0;
    bad_open(&b, NULL);
    for (int i = 0; i < TRIES; i++) {
        store_talk talk;
        int fd;
        if (i % 2) { /* also from one that has been polite so far */
            store_talk_open(&b.rig, &talk);
            fd = dup(talk.fd);
            store_talk_close(&talk);
        } else {
            fd = store_connect(&b.rig);
        }
        size_t length = 1 + draw(&random, sizeof bytes - 1);
        for (size_t k = 0; k < length; k++) bytes[k] = (uint8_t)draw(&random, 256);
        if (i % 3 == 0) memcpy(bytes, "PLS1\1\0", 6); /* at least the beginning is right */
        assert_int_equal(send(fd, bytes, length, MSG_NOSIGNAL), length);
        assert_hung_up(fd);
        dropped++;
        good_works(&b);
    }
    bad_close(&b, dropped);
}

static void half_a_message_ends_the_connection(void **state)
{
    (void)state;
    bad b;
    uint8_t packet[256];
    uint64_t dropped = 0;
    bad_open(&b, NULL);
    int length = hello_packet(packet, sizeof packet);
    for (int cut = 1; cut < length; cut++) {
        int fd = store_connect(&b.rig);
        assert_int_equal(send(fd, packet, (size_t)cut, MSG_NOSIGNAL), cut);
        assert_hung_up(fd);
        dropped++;
    }
    int fd = store_connect(&b.rig); /* and one byte too many */
    assert_int_equal(send(fd, packet, (size_t)length + 1, MSG_NOSIGNAL), length + 1);
    assert_hung_up(fd);
    bad_close(&b, dropped + 1);
}

static void out_of_turn_ends_the_connection(void **state)
{
    (void)state;
    bad b;
    uint8_t packet[256];
    bad_open(&b, NULL);
    /* Anything before hello. */
    int fd = store_connect(&b.rig);
    pllm_wire_message ping = {.op = PLLM_WIRE_PING, .request = 1};
    int length = pllm_wire_encode(&ping, packet, sizeof packet);
    assert_int_equal(send(fd, packet, (size_t)length, MSG_NOSIGNAL), length);
    assert_hung_up(fd);
    /* What only the daemon says. */
    store_talk talk;
    store_talk_open(&b.rig, &talk);
    pllm_wire_message event = {.op = PLLM_WIRE_EVENT};
    length = pllm_wire_encode(&event, packet, sizeof packet);
    assert_int_equal(send(talk.fd, packet, (size_t)length, MSG_NOSIGNAL), length);
    assert_hung_up(dup(talk.fd));
    store_talk_close(&talk);
    /* Hello twice, or in another version, is only refused. */
    store_talk_open(&b.rig, &talk);
    talk.ask = (pllm_wire_message){.op = PLLM_WIRE_HELLO};
    talk.ask.hello.protocol = PLLM_WIRE_VERSION;
    assert_int_equal(store_ask(&talk, NULL, 0), PLLM_EINVAL);
    store_talk_close(&talk);
    memset(&talk, 0, sizeof talk);
    talk.fd = store_connect(&b.rig);
    talk.ask = (pllm_wire_message){.op = PLLM_WIRE_HELLO};
    talk.ask.hello.protocol = PLLM_WIRE_VERSION + 1;
    assert_int_equal(store_ask(&talk, NULL, 0), PLLM_EUNSUPPORTED);
    talk.ask.hello.protocol = PLLM_WIRE_VERSION;
    talk.ask.hello.uuid = (pllm_wire_text){"GPU-none", 8};
    assert_int_equal(store_ask(&talk, NULL, 0), PLLM_ENOTFOUND);
    talk.ask.hello.uuid.bytes = 0;
    assert_int_equal(store_ask(&talk, NULL, 0), PLLM_OK);
    store_talk_close(&talk);
    bad_close(&b, 2);
}

/* Descriptors that nobody asked for are closed, and who sent them is gone. */
static void descriptors_are_not_taken(void **state)
{
    (void)state;
    bad b;
    uint8_t packet[256];
    int fds[PLLM_WIRE_FDS_MAX];
    bad_open(&b, NULL);
    int null = open("/dev/null", O_RDONLY);
    for (int i = 0; i < PLLM_WIRE_FDS_MAX; i++) fds[i] = null;
    int length = hello_packet(packet, sizeof packet);
    static const uint32_t counts[] = {1, 16, PLLM_WIRE_FDS_MAX};
    for (int i = 0; i < 3; i++) {
        int fd = store_connect(&b.rig);
        assert_int_equal(pllm_wire_send(fd, packet, (size_t)length, fds, counts[i], 0), PLLM_OK);
        assert_hung_up(fd);
    }
    /* An offer says how many come: too few, too many, and with an empty packet. */
    store_talk talk;
    store_talk_open(&b.rig, &talk);
    pllm_wire_message offer = {.op = PLLM_WIRE_OFFER, .request = 9, .fd_count = 2};
    offer.offer.piece_count = 2;
    offer.offer.name = (pllm_wire_text){"x", 1};
    length = pllm_wire_encode(&offer, packet, sizeof packet);
    assert_true(length > 0);
    assert_int_equal(pllm_wire_send(talk.fd, packet, (size_t)length, fds, 3, 0), PLLM_OK);
    assert_hung_up(dup(talk.fd));
    store_talk_close(&talk);
    store_talk_open(&b.rig, &talk);
    assert_int_equal(pllm_wire_send(talk.fd, packet, (size_t)length, fds, 1, 0), PLLM_OK);
    assert_hung_up(dup(talk.fd));
    store_talk_close(&talk);
    int fd = store_connect(&b.rig);
    assert_int_equal(pllm_wire_send(fd, packet, 0, fds, 5, 0), PLLM_OK); /* reads as an end */
    assert_hung_up(fd);
    close(null);
    bad_close(&b, 5);
}

static void nothing_at_all_is_waited_for_only_so_long(void **state)
{
    (void)state;
    bad b;
    pllm_store_server_options options = {.hello_ms = 50};
    bad_open(&b, &options);
    int fd = store_connect(&b.rig);
    assert_hung_up(fd);
    for (int i = 0; i < 50; i++) close(store_connect(&b.rig)); /* and there are those who just go */
    bad_close(&b, 1);
}

/* Asks and asks and never reads an answer: it is not read from until it does, and goes after a
 * while. Its answers carry descriptors, of which only so many may be in flight. */
static void who_does_not_listen_is_left_alone(void **state)
{
    (void)state;
    bad b;
    store_talk talk;
    uint8_t packet[256];
    pllm_store_server_options options = {.stall_ms = 300};
    bad_open(&b, &options);
    store_talk_open(&b.rig, &talk);
    pllm_wire_message open = {.op = PLLM_WIRE_OPEN, .request = 7};
    open.open.name = (pllm_wire_text){"good", 4};
    int length = pllm_wire_encode(&open, packet, sizeof packet);
    int sent = 0;
    while (send(talk.fd, packet, (size_t)length, MSG_NOSIGNAL | MSG_DONTWAIT) == length) sent++;
    assert_in_range(sent, 10, 100000); /* it filled what there is to fill */
    good_works(&b);
    /* It listens after all: every answer is there, in order, none is lost. */
    uint64_t answers = 0;
    while (answers < (uint64_t)sent) {
        size_t bytes;
        uint32_t fd_count;
        int fds[4];
        int status = pllm_wire_receive(talk.fd, talk.packet, sizeof talk.packet, &bytes, fds, 4,
                                       &fd_count, 0);
        assert_int_equal(status, PLLM_OK);
        assert_true(bytes > 0);
        assert_int_equal(pllm_wire_decode(talk.packet, bytes, &talk.answer), PLLM_OK);
        assert_int_equal(talk.answer.status, PLLM_OK);
        assert_int_equal(fd_count, 1);
        close(fds[0]);
        answers++;
        if (answers == 5) good_works(&b);
    }
    /* And now it never does. */
    while (send(talk.fd, packet, (size_t)length, MSG_NOSIGNAL | MSG_DONTWAIT) == length) continue;
    uint64_t deadline = pllm_clock_ns() + 5000000000u;
    while (store_rig_stats(&b.rig).dropped_count == b.dropped_before &&
           pllm_clock_ns() < deadline) {
        good_works(&b);
        usleep(10000);
    }
    store_talk_close(&talk);
    bad_close(&b, 1);
}

/* Events that are not taken are lost, and that is told; the watcher stays. */
static void a_slow_watcher_loses_events_only(void **state)
{
    (void)state;
    bad b;
    store_talk talk;
    bad_open(&b, NULL);
    store_talk_open(&b.rig, &talk);
    talk.ask = (pllm_wire_message){.op = PLLM_WIRE_WATCH};
    assert_int_equal(store_ask(&talk, NULL, 0), PLLM_OK);
    uint32_t made = 0;
    while (store_rig_stats(&b.rig).lost_count < 10) {
        assert_int_equal(store_create(&b.good, "much", 64, 0), PLLM_OK);
        assert_int_equal(store_name(&b.good, PLLM_WIRE_DELETE, "much", 0, NULL), PLLM_OK);
        pllm_wire_info info = b.good.answer.tensor.info;
        (void)info;
        assert_true(++made < 5000);
    }
    uint32_t got = 0, lost = 0;
    while (store_event(&talk, 1000)) {
        got++;
        lost += talk.answer.event.kinds == 0;
        if (lost) break;
    }
    assert_int_equal(lost, 1);
    assert_in_range(got, 10, 2 * made);
    talk.ask = (pllm_wire_message){.op = PLLM_WIRE_PING};
    assert_int_equal(store_ask(&talk, NULL, 0), PLLM_OK);
    store_talk_close(&talk);
    /* "much" was deleted while open, again and again: its holders kept all of them. */
    b.good.ask = (pllm_wire_message){.op = PLLM_WIRE_BYE};
    assert_int_equal(store_ask(&b.good, NULL, 0), PLLM_OK);
    store_talk_close(&b.good);
    store_rig_until(&b.rig, 0, 0);
    store_rig_close(&b.rig);
}

static void more_clients_than_may_be_are_refused(void **state)
{
    (void)state;
    bad b;
    int fds[8];
    pllm_store_server_options options = {.client_max = 4};
    bad_open(&b, &options);
    for (int i = 0; i < 3; i++) fds[i] = store_connect(&b.rig);
    store_rig_until(&b.rig, 1, 4);
    for (int i = 3; i < 8; i++) assert_hung_up(store_connect(&b.rig));
    for (int i = 0; i < 3; i++) close(fds[i]);
    bad_close(&b, 0);
}

/* No descriptor left: new ones are refused, the loop does not spin, and all goes on when there are
 * some again. */
static void no_descriptor_left(void **state)
{
    (void)state;
    bad b;
    struct rlimit before, few;
    bad_open(&b, NULL);
    int who = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    struct sockaddr_un address;
    assert_int_equal(pllm_wire_address(b.rig.path, &address), PLLM_OK);
    getrlimit(RLIMIT_NOFILE, &before);
    few = before;
    few.rlim_cur = (rlim_t)who + 1;
    setrlimit(RLIMIT_NOFILE, &few);
    assert_int_equal(connect(who, (struct sockaddr *)&address, sizeof address), 0);
    assert_hung_up(who);
    setrlimit(RLIMIT_NOFILE, &before);
    good_works(&b);
    bad_close(&b, 0);
}

static void spare_lose(store_rig *rig, void *user)
{
    (void)user;
    close(rig->server->spare_fd);
    rig->server->spare_fd = -1;
}

static void spare_look(store_rig *rig, void *user)
{
    *(int *)user = rig->server->spare_fd;
}

static uint64_t cpu_us(void)
{
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (uint64_t)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1000000 +
           (uint64_t)(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
}

/* Not even the one that was kept for refusing them: who connects waits, and the loop does not spin
 * meanwhile. */
static void no_spare_left(void **state)
{
    (void)state;
    bad b;
    struct rlimit before, few;
    const pllm_store_server_options options = {.sweep_ms = 50};
    bad_open(&b, &options);
    store_rig_inside(&b.rig, spare_lose, NULL);
    int who = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    struct sockaddr_un address;
    assert_int_equal(pllm_wire_address(b.rig.path, &address), PLLM_OK);
    getrlimit(RLIMIT_NOFILE, &before);
    few = before;
    few.rlim_cur = 1; /* whatever is free, it is not to be had */
    setrlimit(RLIMIT_NOFILE, &few);
    assert_int_equal(connect(who, (struct sockaddr *)&address, sizeof address), 0);
    uint64_t used = cpu_us();
    poll(NULL, 0, 300);
    used = cpu_us() - used;
    setrlimit(RLIMIT_NOFILE, &before);
    assert_true(used < 100000);
    close(who);
    int spare = -1; /* is there again when it can be */
    for (int i = 0; i < 1000 && spare < 0; i++) {
        poll(NULL, 0, 5);
        store_rig_inside(&b.rig, spare_look, &spare);
    }
    assert_true(spare >= 0);
    good_works(&b);
    bad_close(&b, 0);
}

/* Everything above at once, from many connections, for a moment. */
static void a_flood(void **state)
{
    enum { CLIENTS = 40, ROUNDS = 60 };
    (void)state;
    bad b;
    uint8_t packet[512];
    uint64_t random = 99;
    bad_open(&b, NULL);
    int fds[CLIENTS];
    for (int i = 0; i < CLIENTS; i++) fds[i] = -1;
    int hello = hello_packet(packet, sizeof packet);
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < CLIENTS; i++) {
            if (fds[i] < 0) {
                fds[i] = store_connect(&b.rig);
                send(fds[i], packet, (size_t)hello, MSG_NOSIGNAL | MSG_DONTWAIT);
                continue;
            }
            uint8_t other[512];
            pllm_wire_message message = {.op = 1 + (uint32_t)draw(&random, PLLM_WIRE_OPS - 1),
                                         .request = (uint32_t)draw(&random, 3)};
            if (message.op == PLLM_WIRE_EVENT) continue;
            message.name.name = (pllm_wire_text){"nope", 4};
            int length = pllm_wire_encode(&message, other, sizeof other);
            if (length < 0) length = hello;
            if (draw(&random, 8) == 0) other[draw(&random, (uint64_t)length)] ^= 0x41;
            ssize_t sent = send(fds[i], other, (size_t)length, MSG_NOSIGNAL | MSG_DONTWAIT);
            if (sent != length || draw(&random, 10) == 0) {
                close(fds[i]);
                fds[i] = -1;
            }
        }
        if (round % 10 == 0) good_works(&b);
    }
    for (int i = 0; i < CLIENTS; i++)
        if (fds[i] >= 0) close(fds[i]);
    good_works(&b);
    store_rig_until(&b.rig, store_rig_stats(&b.rig).registry.tensor_count, 1);
    b.good.ask = (pllm_wire_message){.op = PLLM_WIRE_BYE};
    assert_int_equal(store_ask(&b.good, NULL, 0), PLLM_OK);
    store_talk_close(&b.good);
    store_rig_close(&b.rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(garbage_ends_the_connection),
        cmocka_unit_test(half_a_message_ends_the_connection),
        cmocka_unit_test(out_of_turn_ends_the_connection),
        cmocka_unit_test(descriptors_are_not_taken),
        cmocka_unit_test(nothing_at_all_is_waited_for_only_so_long),
        cmocka_unit_test(who_does_not_listen_is_left_alone),
        cmocka_unit_test(a_slow_watcher_loses_events_only),
        cmocka_unit_test(more_clients_than_may_be_are_refused),
        cmocka_unit_test(no_descriptor_left),
        cmocka_unit_test(no_spare_left),
        cmocka_unit_test(a_flood),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
