/* Tensors on their way to the host and back: the daemon serves everybody else meanwhile, and who
 * waits is answered when they are there.
 *
 * The device is the host device with a gate: while it is shut, no copy is ever seen to be over, and
 * a move goes on for as long as the test likes. A daemon that waits for a copy would not answer at
 * all. Copies can also be made to fail. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/clock.h"
#include "store_rig.h"

#define MIB ((uint64_t)1 << 20)

/* ---- the gate ---- */

static atomic_int gate_shut, gate_fails;
static const pllm_device_ops *host_ops;
static pllm_device_ops gated_ops;

static int gated_query(pllm_device *device, pllm_event *event)
{
    return atomic_load(&gate_shut) ? 0 : host_ops->event_query(device, event);
}

static int gated_copy(pllm_device *device, pllm_stream *stream, pllm_copy_kind kind,
                      const pllm_copy *copies, uint32_t copy_count)
{
    if (atomic_load(&gate_fails)) return pllm_fail(PLLM_EDEVICE, 7, "the link is down");
    return host_ops->copy_batch(device, stream, kind, copies, copy_count);
}

typedef struct moves {
    store_rig rig;
    pllm_device *device;
    store_talk talk, other, third;
} moves;

static void moves_open(moves *m, uint64_t capacity_bytes)
{
    pllm_host_device_options host = {.struct_bytes = sizeof host, .capacity_bytes = capacity_bytes};
    pllm_store_server_options options = {.spilled_bytes_max = 64 * MIB};
    assert_int_equal(pllm_device_open_host(NULL, &host, &m->device), PLLM_OK);
    host_ops = m->device->ops;
    gated_ops = *host_ops;
    gated_ops.event_query = gated_query;
    gated_ops.copy_batch = gated_copy;
    m->device->ops = &gated_ops;
    atomic_store(&gate_shut, 0);
    atomic_store(&gate_fails, 0);
    store_rig_open_on(&m->rig, &options, m->device);
    store_talk_open(&m->rig, &m->talk);
    store_talk_open(&m->rig, &m->other);
    store_talk_open(&m->rig, &m->third);
}

static void moves_close(moves *m)
{
    store_talk_close(&m->talk);
    store_talk_close(&m->other);
    store_talk_close(&m->third);
    store_rig_end(&m->rig);
    failing_context_check(&m->rig.memory);
    m->device->ops = host_ops;
    pllm_device_close(m->device);
}

/* A sealed tensor that nobody has open; its words count from first. */
static void sealed(moves *m, const char *name, uint64_t bytes, uint64_t first)
{
    uint64_t mapped;
    assert_int_equal(store_create(&m->talk, name, bytes, PLLM_STORE_FLAG_KEPT), PLLM_OK);
    pllm_wire_info info = m->talk.answer.tensor.info;
    uint64_t *data = store_map(&m->talk, 1, &mapped);
    for (uint64_t k = 0; k < mapped / 8; k += 64) data[k] = first + k;
    munmap(data, mapped);
    assert_int_equal(store_name(&m->talk, PLLM_WIRE_SEAL, name, 0, NULL), PLLM_OK);
    assert_int_equal(store_shut(&m->talk, info.slot, info.generation, 1), PLLM_OK);
    assert_int_equal(store_unmapped(&m->talk, info.slot, info.generation), PLLM_OK);
}

static void expect_words(const store_talk *talk, uint64_t first)
{
    uint64_t mapped;
    const uint64_t *data = store_map(talk, 0, &mapped);
    assert_non_null(data);
    for (uint64_t k = 0; k < mapped / 8; k += 64) assert_int_equal(data[k], first + k);
    munmap((void *)(uintptr_t)data, mapped);
}

static void create_send(store_talk *talk, const char *name, uint64_t bytes)
{
    talk->ask = (pllm_wire_message){.op = PLLM_WIRE_CREATE};
    talk->ask.create.name = (pllm_wire_text){name, (uint32_t)strlen(name)};
    talk->ask.create.spec =
        (pllm_wire_spec){.dtype = PLLM_STORE_U8, .rank = 1, .mode = 0600, .shape = {bytes}};
    store_send(talk);
}

static void open_send(store_talk *talk, const char *name)
{
    talk->ask = (pllm_wire_message){.op = PLLM_WIRE_OPEN};
    talk->ask.open.name = (pllm_wire_text){name, (uint32_t)strlen(name)};
    store_send(talk);
}

static void pin_send(store_talk *talk, const char *name)
{
    talk->ask = (pllm_wire_message){.op = PLLM_WIRE_PIN};
    talk->ask.name.name = (pllm_wire_text){name, (uint32_t)strlen(name)};
    talk->ask.name.on = 1;
    store_send(talk);
}

/* Until so many clients wait. */
static void until_waiting(moves *m, uint32_t count)
{
    uint64_t deadline = pllm_clock_ns() + 5000000000u;
    while (store_rig_stats(&m->rig).waiting_count != count) assert_true(pllm_clock_ns() < deadline);
}

/* Until nothing moves: a create may be answered before the last of what went for it has gone. */
static void until_still(moves *m)
{
    uint64_t deadline = pllm_clock_ns() + 5000000000u;
    while (store_rig_stats(&m->rig).moving_count) assert_true(pllm_clock_ns() < deadline);
}

static uint32_t state_of(moves *m, const char *name)
{
    assert_int_equal(store_name(&m->third, PLLM_WIRE_STAT, name, 0, NULL), PLLM_OK);
    return m->third.answer.tensor.info.state;
}

/* What another client asks for while something moves, each answered in 5 s or the test fails. */
static void others_are_served(moves *m)
{
    store_talk *t = &m->third;
    for (int i = 0; i < 3; i++) {
        create_send(t, "beside", 4096);
        assert_int_equal(store_answer(t), PLLM_OK);
        open_send(t, "beside");
        assert_int_equal(store_answer(t), PLLM_OK);
        t->ask = (pllm_wire_message){.op = PLLM_WIRE_LIST};
        store_send(t);
        assert_int_equal(store_answer(t), PLLM_OK);
        assert_int_equal(store_name(t, PLLM_WIRE_DELETE, "beside", 0, NULL), PLLM_OK);
        t->ask = (pllm_wire_message){.op = PLLM_WIRE_OPEN};
        t->ask.open.name = (pllm_wire_text){"nobody", 6};
        store_send(t);
        assert_int_equal(store_answer(t), PLLM_ENOTFOUND);
    }
}

/* ---- tests ---- */

/* A spill and a restore, each with others served meanwhile, and all that may happen to a tensor. */
static void a_move_holds_nobody_up(void **state)
{
    (void)state;
    moves m;
    moves_open(&m, 20 * MIB);
    sealed(&m, "a", 8 * MIB, 100);
    sealed(&m, "b", 4 * MIB, 200);
    atomic_store(&gate_shut, 1);
    create_send(&m.talk, "big", 12 * MIB); /* "a" was used longest ago, and both go */
    until_waiting(&m, 1);
    assert_int_equal(store_rig_stats(&m.rig).moving_count, 2);
    others_are_served(&m);
    assert_int_equal(state_of(&m, "a"), PLLM_STORE_STATE_READY); /* until it has gone */
    assert_int_equal(store_name(&m.third, PLLM_WIRE_RENAME, "a", 0, "aa"), PLLM_OK);
    assert_false(store_answered(&m.talk));
    atomic_store(&gate_shut, 0);
    assert_int_equal(store_answer(&m.talk), PLLM_OK);
    pllm_wire_info big = m.talk.answer.tensor.info;
    until_still(&m);
    assert_int_equal(state_of(&m, "aa"), PLLM_STORE_STATE_SPILLED);
    assert_int_equal(store_shut(&m.talk, big.slot, big.generation, 1), PLLM_OK);
    assert_int_equal(store_unmapped(&m.talk, big.slot, big.generation), PLLM_OK);

    /* Back: two wait for one move. */
    atomic_store(&gate_shut, 1);
    open_send(&m.talk, "aa");
    open_send(&m.other, "aa");
    until_waiting(&m, 2);
    assert_int_equal(store_rig_stats(&m.rig).moving_count, 1);
    others_are_served(&m);
    assert_int_equal(state_of(&m, "aa"), PLLM_STORE_STATE_SPILLED);
    pin_send(&m.third, "aa");
    until_waiting(&m, 3);
    assert_false(store_answered(&m.talk) || store_answered(&m.other) || store_answered(&m.third));
    atomic_store(&gate_shut, 0);
    assert_int_equal(store_answer(&m.talk), PLLM_OK);
    expect_words(&m.talk, 100);
    assert_int_equal(store_answer(&m.other), PLLM_OK);
    expect_words(&m.other, 100);
    assert_int_equal(store_answer(&m.third), PLLM_OK);
    assert_int_equal(state_of(&m, "aa"), PLLM_STORE_STATE_READY);
    pllm_store_server_stats stats = store_rig_stats(&m.rig);
    assert_int_equal(stats.restored_count, 1);
    assert_int_equal(stats.spilled_count, 2);
    assert_int_equal(stats.waiting_count + stats.moving_count, 0);
    assert_int_equal(store_open(&m.other, "b", 0), PLLM_OK);
    expect_words(&m.other, 200);
    moves_close(&m);
}

/* The tensor is asked for before it has gone: it stays, and something else goes. */
static void an_open_overtakes_a_spill(void **state)
{
    (void)state;
    moves m;
    moves_open(&m, 24 * MIB);
    sealed(&m, "a", 8 * MIB, 100);
    sealed(&m, "b", 8 * MIB, 200);
    atomic_store(&gate_shut, 1);
    create_send(&m.talk, "big", 16 * MIB);
    until_waiting(&m, 1);
    open_send(&m.other, "a");
    until_waiting(&m, 2);
    others_are_served(&m);
    atomic_store(&gate_shut, 0);
    assert_int_equal(store_answer(&m.other), PLLM_OK);
    expect_words(&m.other, 100);
    assert_int_equal(store_answer(&m.talk), PLLM_ENODEVMEM); /* "a" is open, "b" is not enough */
    assert_int_equal(state_of(&m, "a"), PLLM_STORE_STATE_READY);
    assert_int_equal(store_rig_stats(&m.rig).restored_count, 0);
    moves_close(&m);
}

/* What waits may go, and so may what is waited for. */
static void deaths_leave_nothing(void **state)
{
    (void)state;
    moves m;
    moves_open(&m, 16 * MIB);
    sealed(&m, "a", 8 * MIB, 100);
    assert_int_equal(store_create(&m.talk, "big", 12 * MIB, 0), PLLM_OK);
    pllm_wire_info big = m.talk.answer.tensor.info;
    assert_int_equal(state_of(&m, "a"), PLLM_STORE_STATE_SPILLED);
    assert_int_equal(store_shut(&m.talk, big.slot, big.generation, 1), PLLM_OK);
    assert_int_equal(store_unmapped(&m.talk, big.slot, big.generation), PLLM_OK);
    atomic_store(&gate_shut, 1);
    open_send(&m.talk, "a");
    open_send(&m.other, "a");
    until_waiting(&m, 2);
    store_talk_close(&m.other); /* dies */
    until_waiting(&m, 1);
    store_rig_until(&m.rig, 1, 2);
    assert_int_equal(store_name(&m.third, PLLM_WIRE_DELETE, "a", 0, NULL), PLLM_OK);
    assert_int_equal(store_name(&m.third, PLLM_WIRE_STAT, "a", 0, NULL), PLLM_ENOTFOUND);
    assert_int_equal(store_create(&m.third, "a", 4096, 0), PLLM_OK); /* the name is free */
    pllm_wire_info a = m.third.answer.tensor.info;
    assert_int_equal(store_name(&m.third, PLLM_WIRE_DELETE, "a", 0, NULL), PLLM_OK);
    assert_int_equal(store_shut(&m.third, a.slot, a.generation, 1), PLLM_OK);
    assert_int_equal(store_unmapped(&m.third, a.slot, a.generation), PLLM_OK);
    atomic_store(&gate_shut, 0);
    assert_int_equal(store_answer(&m.talk), PLLM_ENOTFOUND);
    store_talk_close(&m.third);
    store_rig_until(&m.rig, 0, 1);
    pllm_store_server_stats stats = store_rig_stats(&m.rig);
    assert_int_equal(stats.spilled_bytes, 0);
    assert_int_equal(stats.charged_bytes, 0);
    assert_int_equal(stats.restored_count, 0);
    store_talk_open(&m.rig, &m.other);
    store_talk_open(&m.rig, &m.third);

    /* The daemon stops while something moves and somebody waits. */
    sealed(&m, "a", 8 * MIB, 100);
    create_send(&m.talk, "big", 12 * MIB);
    assert_int_equal(store_answer(&m.talk), PLLM_OK);
    big = m.talk.answer.tensor.info;
    assert_int_equal(store_shut(&m.talk, big.slot, big.generation, 1), PLLM_OK);
    assert_int_equal(store_unmapped(&m.talk, big.slot, big.generation), PLLM_OK);
    atomic_store(&gate_shut, 1);
    open_send(&m.talk, "a");
    until_waiting(&m, 1);
    atomic_store(&gate_shut, 0);
    moves_close(&m);
}

/* A copy that fails leaves the tensor where it was, and who waits hears why. */
static void failures_leave_it_where_it_was(void **state)
{
    (void)state;
    moves m;
    moves_open(&m, 16 * MIB);
    sealed(&m, "a", 8 * MIB, 100);
    atomic_store(&gate_fails, 1);
    create_send(&m.talk, "big", 12 * MIB);
    assert_int_equal(store_answer(&m.talk), PLLM_ENODEVMEM);
    assert_int_equal(state_of(&m, "a"), PLLM_STORE_STATE_READY);
    assert_int_equal(store_open(&m.other, "a", 0), PLLM_OK);
    expect_words(&m.other, 100);
    pllm_wire_info a = m.other.answer.tensor.info;
    assert_int_equal(store_shut(&m.other, a.slot, a.generation, 0), PLLM_OK);
    assert_int_equal(store_unmapped(&m.other, a.slot, a.generation), PLLM_OK);
    atomic_store(&gate_fails, 0);
    create_send(&m.talk, "big", 12 * MIB);
    assert_int_equal(store_answer(&m.talk), PLLM_OK);
    pllm_wire_info big = m.talk.answer.tensor.info;
    assert_int_equal(store_shut(&m.talk, big.slot, big.generation, 1), PLLM_OK);
    assert_int_equal(store_unmapped(&m.talk, big.slot, big.generation), PLLM_OK);
    atomic_store(&gate_fails, 1);
    open_send(&m.talk, "a");
    assert_int_equal(store_answer(&m.talk), PLLM_EDEVICE);
    char text[256];
    snprintf(text, sizeof text, "%.*s", (int)m.talk.answer.error.bytes, m.talk.answer.error.data);
    assert_non_null(strstr(text, "\"a\" could not be brought back"));
    assert_int_equal(state_of(&m, "a"), PLLM_STORE_STATE_SPILLED);
    atomic_store(&gate_fails, 0);
    open_send(&m.talk, "a");
    assert_int_equal(store_answer(&m.talk), PLLM_OK);
    expect_words(&m.talk, 100);
    moves_close(&m);
}

/* ---- a part that creates ---- */

typedef struct part_create {
    int status;
    uint64_t moved;
} part_create;

static void create_inside(store_rig *rig, void *user)
{
    part_create *call = user;
    pllm_store_entry entry;
    pllm_store_holder holder = {0};
    pllm_registry_spec spec = {.dtype = PLLM_STORE_U8, .rank = 1, .shape = {12 * MIB}};
    pllm_store_server_self(rig->server, &holder.peer);
    call->moved = pllm_store_server_moved(rig->server);
    call->status = pllm_store_server_create(rig->server, "part", 4, &spec, &holder, &entry);
}

static void a_part_asks_again(void **state)
{
    (void)state;
    moves m;
    part_create call = {0};
    moves_open(&m, 16 * MIB);
    sealed(&m, "a", 8 * MIB, 100);
    atomic_store(&gate_shut, 1);
    store_rig_inside(&m.rig, create_inside, &call);
    assert_int_equal(call.status, PLLM_EBUSY);
    uint64_t before = call.moved;
    others_are_served(&m);
    store_rig_inside(&m.rig, create_inside, &call);
    assert_int_equal(call.status, PLLM_EBUSY);
    assert_int_equal(call.moved, before);
    atomic_store(&gate_shut, 0);
    uint64_t deadline = pllm_clock_ns() + 5000000000u;
    while (store_rig_stats(&m.rig).moved_count == before) assert_true(pllm_clock_ns() < deadline);
    store_rig_inside(&m.rig, create_inside, &call);
    assert_int_equal(call.status, PLLM_OK);
    assert_true(call.moved > before);
    moves_close(&m);
}

/* What a ledger asks back goes though an open holds up the first choice. */
static void a_reclaim_goes_on(void **state)
{
    (void)state;
    moves m;
    moves_open(&m, 32 * MIB);
    sealed(&m, "a", 8 * MIB, 100);
    sealed(&m, "b", 8 * MIB, 200);
    atomic_store(&gate_shut, 1);
    pllm_store_server_reclaim(m.rig.server, 0, 8 * MIB);
    uint64_t deadline = pllm_clock_ns() + 5000000000u;
    while (store_rig_stats(&m.rig).moving_count != 1) assert_true(pllm_clock_ns() < deadline);
    open_send(&m.other, "a");
    until_waiting(&m, 1);
    atomic_store(&gate_shut, 0);
    assert_int_equal(store_answer(&m.other), PLLM_OK);
    while (store_rig_stats(&m.rig).spilled_count != 1) assert_true(pllm_clock_ns() < deadline);
    assert_int_equal(state_of(&m, "a"), PLLM_STORE_STATE_READY);
    assert_int_equal(state_of(&m, "b"), PLLM_STORE_STATE_SPILLED);
    assert_int_equal(store_rig_stats(&m.rig).charged_bytes, 8 * MIB);
    moves_close(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_move_holds_nobody_up), cmocka_unit_test(an_open_overtakes_a_spill),
        cmocka_unit_test(deaths_leave_nothing),   cmocka_unit_test(failures_leave_it_where_it_was),
        cmocka_unit_test(a_part_asks_again),      cmocka_unit_test(a_reclaim_goes_on),
    };
    alarm(60); /* a daemon that waits for a copy answers nobody, the test neither */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
