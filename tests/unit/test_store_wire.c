/* Messages: what is encoded decodes to the same, anything shorter, longer or out of range is
 * refused, and packets pass over a socket with their descriptors. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <cmocka.h>
#include "store/wire.h"

#define TEXT(literal) ((pllm_wire_text){literal, sizeof literal - 1})

static pllm_wire_spec a_spec(void)
{
    return (pllm_wire_spec){.dtype = PLLM_STORE_BF16,
                            .rank = 3,
                            .mode = 0640,
                            .kind = PLLM_STORE_KIND_LEGACY,
                            .device = 2,
                            .flags = PLLM_STORE_FLAG_PINNED,
                            .shape = {2, 3, (uint64_t)1 << 40}};
}

static pllm_wire_info an_info(void)
{
    return (pllm_wire_info){.spec = a_spec(),
                            .slot = 1,
                            .state = PLLM_STORE_STATE_SPILLED,
                            .uid = 2,
                            .gid = 3,
                            .owner_pid = 4,
                            .reference_count = 5,
                            .writer_count = 6,
                            .importer_count = 7,
                            .fence_epoch = 8,
                            .fence_poisoned = 1,
                            .generation = 0x1122334455667788,
                            .bytes = 10,
                            .owner_start = 11,
                            .fence_value = 12,
                            .ctime_ns = -13,
                            .mtime_ns = INT64_MAX,
                            .name = TEXT("model/layer.0")};
}

/* One of every kind; returns 0 when there are no more. */
static int example(uint32_t number, pllm_wire_message *m, char *buffer, uint32_t capacity)
{
    static const uint32_t empty_answers[] = {
        PLLM_WIRE_CLOSE, PLLM_WIRE_UNMAPPED, PLLM_WIRE_SIGNAL,  PLLM_WIRE_DELETE, PLLM_WIRE_RENAME,
        PLLM_WIRE_SEAL,  PLLM_WIRE_PIN,      PLLM_WIRE_UNWATCH, PLLM_WIRE_PING,   PLLM_WIRE_BYE};
    *m = (pllm_wire_message){.request = 0xfedcba98};
    switch (number) {
    case 0:
        m->op = PLLM_WIRE_HELLO;
        m->hello.protocol = 1;
        m->hello.pid = 4711;
        m->hello.uuid = TEXT("GPU-0a1b2c3d");
        return 1;
    case 1:
        m->op = PLLM_WIRE_HELLO | PLLM_WIRE_ANSWER;
        m->fd_count = 1;
        m->welcome.epoch = (uint64_t)7 << 33;
        m->welcome.board_bytes = 64 * 101;
        m->welcome.slot_max = 100;
        m->welcome.device = 1;
        m->welcome.device_count = 2;
        m->welcome.uuids[0] = TEXT("HOST-1");
        m->welcome.uuids[1] = TEXT("GPU-2");
        return 1;
    case 2:
        m->op = PLLM_WIRE_CREATE;
        m->create.spec = a_spec();
        m->create.name = TEXT("a");
        return 1;
    case 3:
    case 4:
        m->op = number == 3 ? PLLM_WIRE_OPEN : PLLM_WIRE_REDEEM;
        m->open.writable = 1;
        m->open.kept_generation = 99;
        m->open.name = TEXT("b");
        return 1;
    case 5:
    case 6:
    case 7:
        m->op = number == 5 ? PLLM_WIRE_CLOSE : number == 6 ? PLLM_WIRE_UNMAPPED : PLLM_WIRE_SIGNAL;
        m->handle.slot = 12;
        m->handle.writable = 1;
        m->handle.generation = 13;
        m->handle.value = 14;
        return 1;
    case 8:
    case 9:
    case 10:
    case 11:
    case 12:
        m->op = (uint32_t[]){PLLM_WIRE_DELETE, PLLM_WIRE_RENAME, PLLM_WIRE_SEAL, PLLM_WIRE_PIN,
                             PLLM_WIRE_STAT}[number - 8];
        m->name.on = 1;
        m->name.name = TEXT("c");
        m->name.name_new = TEXT("dd");
        return 1;
    case 13:
        m->op = PLLM_WIRE_LIST;
        m->list.cursor = 5;
        m->list.prefix = TEXT("model/");
        return 1;
    case 14:
    case 15:
        m->op = PLLM_WIRE_LIST | PLLM_WIRE_ANSWER;
        m->listing.next = 77;
        for (int i = 0; number == 14 && i < 3; i++) {
            pllm_wire_info info = an_info();
            info.slot = (uint32_t)i;
            assert_true(pllm_wire_list_add(m, buffer, capacity, &info));
        }
        return 1;
    case 16:
    case 17:
        m->op = number == 16 ? PLLM_WIRE_WATCH : PLLM_WIRE_UNWATCH;
        m->watch.watch = 3;
        m->watch.kinds = PLLM_EFFECT_CREATED | PLLM_EFFECT_PINNED;
        m->watch.prefix = TEXT("e");
        return 1;
    case 18:
        m->op = PLLM_WIRE_WATCH | PLLM_WIRE_ANSWER;
        m->watch.watch = 3;
        return 1;
    case 19:
        m->op = PLLM_WIRE_EVENT;
        m->request = 0;
        m->event.watch = 3;
        m->event.kinds = PLLM_EFFECT_RENAMED;
        m->event.generation = 4;
        m->event.name = TEXT("new");
        m->event.name_before = TEXT("old");
        return 1;
    case 20:
        m->op = PLLM_WIRE_OFFER;
        m->fd_count = m->offer.piece_count = 2;
        m->offer.offer.spec.dtype = PLLM_STORE_F64;
        m->offer.offer.spec.rank = 1;
        m->offer.offer.spec.mode = 0600;
        m->offer.offer.spec.shape[0] = 1 << 20;
        m->offer.offer.uid = 1;
        m->offer.offer.gid = 2;
        m->offer.offer.writable = 1;
        m->offer.offer.fence_epoch = 3;
        m->offer.offer.old_generation = 4;
        m->offer.offer.fence_value = 5;
        m->offer.offset = 512;
        m->offer.pieces[0] = 4 << 20;
        m->offer.pieces[1] = 2 << 20;
        m->offer.name = TEXT("f");
        return 1;
    case 21:
    case 22:
        m->op = (number == 21 ? PLLM_WIRE_PING : PLLM_WIRE_BYE);
        return 1;
    case 23:
    case 24:
    case 25:
    case 26:
    case 27:
        m->op = (uint32_t[]){PLLM_WIRE_CREATE, PLLM_WIRE_OPEN, PLLM_WIRE_REDEEM, PLLM_WIRE_STAT,
                             PLLM_WIRE_OFFER}[number - 23] |
                PLLM_WIRE_ANSWER;
        m->tensor.info = an_info();
        m->tensor.layout.offset = 1024;
        if (number == 23) {
            m->fd_count = m->tensor.layout.piece_count = PLLM_WIRE_PIECES_MAX;
            for (int i = 0; i < PLLM_WIRE_PIECES_MAX; i++)
                m->tensor.layout.pieces[i] = (uint64_t)(i + 1) << 21;
        } else if (number == 24) {
            m->tensor.layout.legacy = 1;
            for (int i = 0; i < PLLM_WIRE_HANDLE_BYTES; i++)
                m->tensor.layout.handle[i] = (uint8_t)(200 + i);
        }
        return 1;
    case 28:
        m->op = PLLM_WIRE_OPEN | PLLM_WIRE_ANSWER;
        m->status = PLLM_ENOTFOUND;
        m->error = TEXT("no tensor is named \"x\"");
        return 1;
    default:
        if (number - 29 >= sizeof empty_answers / sizeof *empty_answers) return 0;
        m->op = empty_answers[number - 29] | PLLM_WIRE_ANSWER;
        return 1;
    }
}

static int same_text(pllm_wire_text a, pllm_wire_text b)
{
    return a.bytes == b.bytes && (!a.bytes || memcmp(a.data, b.data, a.bytes) == 0);
}

static void every_message_comes_back(void **state)
{
    (void)state;
    static uint8_t packet[PLLM_WIRE_PACKET_BYTES], again[PLLM_WIRE_PACKET_BYTES];
    static pllm_wire_message in, out;
    char buffer[1024];
    uint32_t seen[2][PLLM_WIRE_OPS] = {{0}};
    for (uint32_t number = 0; example(number, &in, buffer, sizeof buffer); number++) {
        int bytes = pllm_wire_encode(&in, packet, sizeof packet);
        if (bytes < 0) print_message("%u: %s\n", number, pllm_last_error()->text);
        assert_true(bytes >= PLLM_WIRE_HEADER_BYTES);
        memset(&out, 0xee, sizeof out);
        assert_int_equal(pllm_wire_decode(packet, (size_t)bytes, &out), PLLM_OK);
        assert_int_equal(out.op, in.op);
        assert_int_equal(out.request, in.request);
        assert_int_equal(out.status, in.status);
        assert_int_equal(out.fd_count, in.fd_count);
        assert_true(same_text(in.error, out.error));
        assert_int_equal(pllm_wire_encode(&out, again, sizeof again), bytes);
        assert_memory_equal(packet, again, (size_t)bytes);
        seen[in.op >> 15][in.op & 0x7fff]++;

        /* Nothing shorter is a message, nor anything longer, nor one in a smaller buffer. */
        for (int cut = 0; cut < bytes; cut++)
            assert_int_equal(pllm_wire_decode(packet, (size_t)cut, &out), PLLM_EINVAL);
        packet[bytes] = 0;
        assert_int_equal(pllm_wire_decode(packet, (size_t)bytes + 1, &out), PLLM_EINVAL);
        assert_true(pllm_wire_encode(&in, again, (size_t)bytes - 1) < 0);
    }
    for (uint32_t op = 1; op < PLLM_WIRE_OPS; op++) {
        assert_true(seen[0][op] > 0);
        assert_true(seen[1][op] > 0 || op == PLLM_WIRE_EVENT);
        assert_string_not_equal(pllm_wire_op_name(op), "?");
    }
}

static void fields_come_back(void **state)
{
    (void)state;
    static uint8_t packet[PLLM_WIRE_PACKET_BYTES];
    static pllm_wire_message in, out;
    char buffer[1024];
    example(23, &in, buffer, sizeof buffer);
    int bytes = pllm_wire_encode(&in, packet, sizeof packet);
    assert_int_equal(pllm_wire_decode(packet, (size_t)bytes, &out), PLLM_OK);
    assert_memory_equal(&out.tensor.info.spec, &in.tensor.info.spec, sizeof in.tensor.info.spec);
    assert_int_equal(out.tensor.info.ctime_ns, -13);
    assert_int_equal(out.tensor.info.mtime_ns, INT64_MAX);
    assert_int_equal(out.tensor.info.generation, in.tensor.info.generation);
    assert_int_equal(out.tensor.info.importer_count, 7);
    assert_true(same_text(out.tensor.info.name, in.tensor.info.name));
    assert_memory_equal(out.tensor.layout.pieces, in.tensor.layout.pieces,
                        sizeof in.tensor.layout.pieces);
    assert_int_equal(out.tensor.layout.offset, 1024);
    /* The bytes themselves are fixed: little-endian, where wire.h says. */
    static const uint8_t head[] = {'P',  'L',  'S',  '1',  1, 0, 2, 0x80,
                                   0x98, 0xba, 0xdc, 0xfe, 0, 0, 0, 0};
    assert_memory_equal(packet, head, sizeof head);
    assert_int_equal(packet[16] | packet[17] << 8, bytes - PLLM_WIRE_HEADER_BYTES);
    assert_int_equal(packet[20], PLLM_WIRE_PIECES_MAX);

    example(14, &in, buffer, sizeof buffer);
    bytes = pllm_wire_encode(&in, packet, sizeof packet);
    assert_int_equal(pllm_wire_decode(packet, (size_t)bytes, &out), PLLM_OK);
    pllm_wire_info info;
    uint32_t at = 0, count = 0;
    while (pllm_wire_list_next(&out, &at, &info)) assert_int_equal(info.slot, count++);
    assert_int_equal(count, 3);
    /* A list that has no room for one more says so and stays whole. */
    info = an_info();
    uint32_t before = in.listing.infos.bytes;
    assert_int_equal(pllm_wire_list_add(&in, buffer, before + 100, &info), 0);
    assert_int_equal(in.listing.infos.bytes, before);
    assert_int_equal(in.listing.count, 3);
}

/* Byte position of a field in the packet, by what it is set to. */
static void out_of_range_is_refused(void **state)
{
    (void)state;
    static uint8_t packet[PLLM_WIRE_PACKET_BYTES];
    static pllm_wire_message m, out;
    char buffer[1024];
    static const struct {
        uint32_t example, at;
        uint8_t value;
    } cases[] = {
        {0, 0, 'Q'},                      /* magic */
        {0, 4, 2},                        /* version */
        {0, 6, 0},                        /* op 0 */
        {0, 6, PLLM_WIRE_OPS},            /* op past the end */
        {0, 12, 1},                       /* a request with a status */
        {0, 16, 200},                     /* length */
        {0, 20, 1},                       /* a descriptor that hello has not */
        {1, 20, 0},                       /* the board's, missing */
        {1, 24 + 8 + 8 + 4, 16},          /* device */
        {1, 24 + 8 + 8 + 4 + 1, 17},      /* device count */
        {2, 24, PLLM_STORE_DTYPES},       /* dtype */
        {2, 25, PLLM_STORE_RANK_MAX + 1}, /* rank */
        {2, 27, 2},                       /* mode 01xxx */
        {2, 28, 2},                       /* kind */
        {2, 29, 8},                       /* flags */
        {2, 30, 16},                      /* device */
        {3, 24, 2},                       /* writable */
        {5, 28, 2},                       /* writable */
        {11, 24, 2},                      /* on */
        {16, 24 + 4, 1},                  /* kinds: BOARD is no event */
        {20, 20, 3},                      /* descriptors that are not one a piece */
        {23, 20, 1},                      /* the same, of an answer */
        {28, 15, 0x7f},                   /* a status above 0 */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        example(cases[i].example, &m, buffer, sizeof buffer);
        int bytes = pllm_wire_encode(&m, packet, sizeof packet);
        assert_true(bytes > 0);
        assert_int_equal(pllm_wire_decode(packet, (size_t)bytes, &out), PLLM_OK);
        packet[cases[i].at] = cases[i].value;
        int status = pllm_wire_decode(packet, (size_t)bytes, &out);
        if (status != PLLM_EINVAL) print_message("case %zu\n", i);
        assert_int_equal(status, PLLM_EINVAL);
    }
    /* And is not sent. */
    char name[PLLM_STORE_NAME_MAX + 2];
    memset(name, 'n', sizeof name);
    m = (pllm_wire_message){.op = PLLM_WIRE_STAT};
    m.name.name = (pllm_wire_text){name, PLLM_STORE_NAME_MAX};
    assert_true(pllm_wire_encode(&m, packet, sizeof packet) > 0);
    m.name.name.bytes++;
    assert_true(pllm_wire_encode(&m, packet, sizeof packet) < 0);
    m = (pllm_wire_message){.op = PLLM_WIRE_OPEN, .fd_count = 1};
    assert_true(pllm_wire_encode(&m, packet, sizeof packet) < 0);
    m = (pllm_wire_message){.op = 99};
    assert_true(pllm_wire_encode(&m, packet, sizeof packet) < 0);
    /* A listing whose count is not that of its infos. */
    example(14, &m, buffer, sizeof buffer);
    m.listing.count = 2;
    assert_true(pllm_wire_encode(&m, packet, sizeof packet) < 0);
}

static void packets_pass_with_their_descriptors(void **state)
{
    (void)state;
    int pair[2], fds[8], got[8];
    uint8_t packet[64] = "hello", in[64];
    size_t bytes;
    uint32_t count;
    struct stat first, second;
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
    assert_int_equal(pllm_wire_receive(pair[1], in, sizeof in, &bytes, got, 8, &count, 1),
                     PLLM_EBUSY);
    for (int i = 0; i < 8; i++) fds[i] = memfd_create("x", 0);
    assert_int_equal(pllm_wire_send(pair[0], packet, 20, fds, 8, 0), PLLM_OK);
    assert_int_equal(pllm_wire_receive(pair[1], in, sizeof in, &bytes, got, 8, &count, 1), PLLM_OK);
    assert_int_equal(bytes, 20);
    assert_int_equal(count, 8);
    assert_memory_equal(packet, in, 20);
    for (int i = 0; i < 8; i++) {
        fstat(fds[i], &first);
        fstat(got[i], &second);
        assert_int_equal(first.st_ino, second.st_ino); /* in order */
        assert_true(fcntl(got[i], F_GETFD) & FD_CLOEXEC);
        close(got[i]);
    }
    /* More than there is room for: nothing is kept open, the packet is refused. */
    int next = dup(0);
    close(next);
    assert_int_equal(pllm_wire_send(pair[0], packet, 20, fds, 8, 0), PLLM_OK);
    assert_int_equal(pllm_wire_receive(pair[1], in, sizeof in, &bytes, got, 7, &count, 1),
                     PLLM_ELIMIT);
    assert_int_equal(pllm_wire_send(pair[0], packet, 20, fds, 2, 0), PLLM_OK);
    assert_int_equal(pllm_wire_receive(pair[1], in, 19, &bytes, got, 8, &count, 1), PLLM_ELIMIT);
    int after = dup(0);
    assert_int_equal(next, after);
    close(after);
    assert_int_equal(pllm_wire_send(pair[0], packet, 20, fds, PLLM_WIRE_FDS_MAX + 1, 0),
                     PLLM_ELIMIT);
    /* The other side goes. */
    close(pair[0]);
    assert_int_equal(pllm_wire_receive(pair[1], in, sizeof in, &bytes, got, 8, &count, 0), PLLM_OK);
    assert_int_equal(bytes, 0);
    assert_int_equal(pllm_wire_send(pair[1], packet, 20, NULL, 0, 0), PLLM_EIO);
    close(pair[1]);
    for (int i = 0; i < 8; i++) close(fds[i]);
}

static void the_path_is_found(void **state)
{
    (void)state;
    char path[108], expected[108];
    int fd;
    setenv("XDG_RUNTIME_DIR", "/run/user/7", 1);
    assert_int_equal(pllm_wire_default_path(path, sizeof path), PLLM_OK);
    assert_string_equal(path, "/run/user/7/pagedllm/store.sock");
    setenv("XDG_RUNTIME_DIR", "not/absolute", 1);
    snprintf(expected, sizeof expected, "/tmp/pagedllm-%u/store.sock", geteuid());
    assert_int_equal(pllm_wire_default_path(path, sizeof path), PLLM_OK);
    assert_string_equal(path, expected);
    unsetenv("XDG_RUNTIME_DIR");
    assert_int_equal(pllm_wire_default_path(path, sizeof path), PLLM_OK);
    assert_string_equal(path, expected);
    assert_int_equal(pllm_wire_default_path(path, 10), PLLM_ELIMIT);
    char longer[200];
    memset(longer, 'p', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    assert_int_equal(pllm_wire_connect(longer, 10, &fd), PLLM_EINVAL);
    assert_int_equal(pllm_wire_connect("", 10, &fd), PLLM_EINVAL);
    assert_int_equal(pllm_wire_connect("/nowhere/at/all.sock", 10, &fd), PLLM_EIO);
    assert_non_null(strstr(pllm_last_error()->text, "pagedllm store serve"));
}

static void processes_are_told_by_their_start(void **state)
{
    (void)state;
    uint64_t own, again, init;
    assert_int_equal(pllm_wire_process_start((uint32_t)getpid(), &own), PLLM_OK);
    assert_int_equal(pllm_wire_process_start((uint32_t)getpid(), &again), PLLM_OK);
    assert_int_equal(own, again);
    assert_int_equal(pllm_wire_process_start(1, &init), PLLM_OK);
    assert_true(init <= own && own > 0);
    assert_int_equal(pllm_wire_process_lives((uint32_t)getpid(), again), 1);
    assert_int_equal(pllm_wire_process_lives((uint32_t)getpid(), again + 1), 0);
    assert_int_equal(pllm_wire_process_lives(0x7fffffff, again), 0);
    /* Who has no descriptor to look with says of nobody that it is dead. */
    struct rlimit before;
    getrlimit(RLIMIT_NOFILE, &before);
    const struct rlimit none = {0, before.rlim_max};
    setrlimit(RLIMIT_NOFILE, &none);
    const int lives = pllm_wire_process_lives((uint32_t)getpid(), again);
    const int start = pllm_wire_process_start((uint32_t)getpid(), &own);
    setrlimit(RLIMIT_NOFILE, &before);
    assert_int_equal(lives, 1);
    assert_int_equal(start, PLLM_EIO);
    assert_int_equal(pllm_wire_process_start(0x7fffffff, &own), PLLM_ENOTFOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_message_comes_back),
        cmocka_unit_test(fields_come_back),
        cmocka_unit_test(out_of_range_is_refused),
        cmocka_unit_test(packets_pass_with_their_descriptors),
        cmocka_unit_test(the_path_is_found),
        cmocka_unit_test(processes_are_told_by_their_start),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
