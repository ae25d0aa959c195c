/* The daemon over a real socket, in a thread: what well-behaved clients see. Bad ones are in
 * test_store_server_bad.c, deaths and returns in test_store_server_death.c. */
#include <fcntl.h>
#include <grp.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/clock.h"
#include "store_rig.h"

#define MIB ((uint64_t)1 << 20)

/* Two clients; what one writes the other reads, through every piece. */
static void two_clients_share_a_tensor(void **state)
{
    (void)state;
    store_rig rig;
    store_talk writer, reader;
    store_rig_open(&rig, NULL, 0);
    store_talk_open(&rig, &writer);
    store_talk_open(&rig, &reader);
    uint64_t size = 14 * MIB, mapped; /* pieces of 8, 4 and 2 */
    assert_int_equal(store_create(&writer, "t/x", size, 0), PLLM_OK);
    assert_int_equal(writer.answer.tensor.layout.piece_count, 3);
    assert_int_equal(writer.answer.tensor.info.bytes, size);
    uint64_t generation = writer.answer.tensor.info.generation;
    uint32_t slot = writer.answer.tensor.info.slot;
    uint64_t *data = store_map(&writer, 1, &mapped);
    assert_non_null(data);
    assert_int_equal(mapped, size);
    for (uint64_t i = 0; i < size / 8; i += 61) {
        assert_int_equal(data[i], 0); /* new memory is zero */
        data[i] = i * 3;
    }
    assert_int_equal(store_open(&reader, "t/x", 0), PLLM_OK);
    assert_int_equal(reader.answer.tensor.info.generation, generation);
    assert_int_equal(reader.answer.tensor.info.reference_count, 2);
    assert_int_equal(reader.answer.tensor.info.importer_count, 2);
    uint64_t *seen = store_map(&reader, 0, &mapped);
    assert_non_null(seen);
    for (uint64_t i = 0; i < size / 8; i += 61) assert_int_equal(seen[i], i * 3);
    /* Opened for reading: the descriptors do not allow more. */
    assert_null(store_map(&reader, 1, &mapped));

    /* A second open of what is mapped brings no descriptors. */
    reader.ask = (pllm_wire_message){.op = PLLM_WIRE_OPEN};
    reader.ask.open.kept_generation = generation;
    reader.ask.open.name = (pllm_wire_text){"t/x", 3};
    assert_int_equal(store_ask(&reader, NULL, 0), PLLM_OK);
    assert_int_equal(reader.fd_count, 0);
    assert_int_equal(store_shut(&reader, slot, generation, 0), PLLM_OK);
    assert_int_equal(store_unmapped(&reader, slot, generation), PLLM_EBUSY);
    assert_int_equal(store_shut(&reader, slot, generation, 0), PLLM_OK);
    assert_int_equal(store_shut(&reader, slot, generation, 0), PLLM_ESTALE);

    /* The last open goes, then the mappings: only then is the memory free. */
    assert_int_equal(store_shut(&writer, slot, generation, 1), PLLM_OK);
    assert_int_equal(store_open(&reader, "t/x", 0), PLLM_ENOTFOUND);
    assert_int_equal(store_unmapped(&reader, slot, generation), PLLM_OK);
    assert_int_equal(store_rig_stats(&rig).registry.tensor_count, 1);
    assert_int_equal(store_unmapped(&writer, slot, generation), PLLM_OK);
    assert_int_equal(store_rig_stats(&rig).registry.tensor_count, 0);
    munmap(data, size);
    munmap(seen, size);
    store_talk_close(&writer);
    store_talk_close(&reader);
    store_rig_close(&rig);
}

static void refusals_say_why(void **state)
{
    (void)state;
    store_rig rig;
    store_talk talk;
    pllm_store_server_options options = {.count_per_user_max = 3, .bytes_per_user_max = 64 * MIB};
    store_rig_open(&rig, &options, 96 * MIB);
    store_talk_open(&rig, &talk);
    assert_int_equal(store_create(&talk, "a", 2 * MIB, 0), PLLM_OK);
    assert_int_equal(store_create(&talk, "a", 2 * MIB, 0), PLLM_EEXIST);
    assert_non_null(memmem(talk.answer.error.data, talk.answer.error.bytes, "\"a\"", 3));
    assert_int_equal(store_create(&talk, "cmd", 2 * MIB, 0), PLLM_EINVAL);
    assert_int_equal(store_create(&talk, "a b", 2 * MIB, 0), PLLM_EINVAL);
    assert_int_equal(store_create(&talk, "", 2 * MIB, 0), PLLM_EINVAL);
    assert_int_equal(store_create(&talk, "b", 0, 0), PLLM_EINVAL);
    assert_int_equal(store_create(&talk, "b", (uint64_t)1 << 49, 0), PLLM_ELIMIT);
    assert_int_equal(store_create(&talk, "b", 63 * MIB, 0), PLLM_ELIMIT); /* bytes */
    assert_int_equal(store_create(&talk, "b", 62 * MIB, 0), PLLM_OK);
    assert_int_equal(store_create(&talk, "c", 1, 0), PLLM_ELIMIT);
    assert_int_equal(store_open(&talk, "c", 0), PLLM_ENOTFOUND);
    assert_int_equal(store_open(&talk, "c d", 0), PLLM_EINVAL);
    assert_int_equal(store_name(&talk, PLLM_WIRE_DELETE, "c", 0, NULL), PLLM_ENOTFOUND);
    talk.ask = (pllm_wire_message){.op = PLLM_WIRE_CREATE};
    talk.ask.create.spec = (pllm_wire_spec){.rank = 0, .device = 3};
    talk.ask.create.name = (pllm_wire_text){"d", 1};
    assert_int_equal(store_ask(&talk, NULL, 0), PLLM_EINVAL);
    talk.ask.create.spec.device = 0;
    talk.ask.create.spec.kind = PLLM_STORE_KIND_LEGACY;
    assert_int_equal(store_ask(&talk, NULL, 0), PLLM_EUNSUPPORTED);
    /* After all that the connection is as good as before. */
    talk.ask = (pllm_wire_message){.op = PLLM_WIRE_PING};
    assert_int_equal(store_ask(&talk, NULL, 0), PLLM_OK);
    store_talk_close(&talk);
    store_rig_close(&rig);

    /* Without quotas the device is the limit; what fails leaves nothing behind. */
    store_rig_open(&rig, NULL, 32 * MIB);
    store_talk_open(&rig, &talk);
    assert_int_equal(store_create(&talk, "a", 24 * MIB, 0), PLLM_OK);
    assert_int_equal(store_create(&talk, "b", 16 * MIB, 0), PLLM_ENODEVMEM);
    assert_int_equal(store_create(&talk, "b", 8 * MIB, 0), PLLM_OK);
    store_talk_close(&talk);
    store_rig_close(&rig);
}

static void a_deleted_tensor_stays_for_its_holders(void **state)
{
    (void)state;
    store_rig rig;
    store_talk talk;
    pllm_board *board;
    uint64_t mapped;
    store_rig_open(&rig, NULL, 0);
    store_talk_open(&rig, &talk);
    int board_fd = dup(talk.fds[0]);
    assert_int_equal(pllm_board_attach(NULL, board_fd, &board), PLLM_OK);
    assert_int_equal(store_create(&talk, "a", 2 * MIB, 0), PLLM_OK);
    pllm_wire_info first = talk.answer.tensor.info;
    uint64_t *data = store_map(&talk, 1, &mapped);
    data[7] = 99;
    assert_true(pllm_board_valid(board, first.slot, first.generation));
    assert_int_equal(store_name(&talk, PLLM_WIRE_DELETE, "a", 0, NULL), PLLM_OK);
    assert_false(pllm_board_valid(board, first.slot, first.generation));
    assert_int_equal(pllm_board_wait(board, first.slot, first.generation, 1, UINT64_MAX),
                     PLLM_ESTALE);
    /* The name is free at once; the new one is another tensor in other memory. */
    assert_int_equal(store_create(&talk, "a", 2 * MIB, 0), PLLM_OK);
    pllm_wire_info second = talk.answer.tensor.info;
    assert_true(second.slot != first.slot && second.generation > first.generation);
    uint64_t *other = store_map(&talk, 1, &mapped);
    assert_int_equal(other[7], 0);
    other[7] = 1;
    assert_int_equal(data[7], 99);
    assert_int_equal(store_signal(&talk, first.slot, first.generation, 1), PLLM_ESTALE);
    munmap(data, mapped);
    munmap(other, mapped);
    assert_int_equal(store_shut(&talk, first.slot, first.generation, 1), PLLM_OK);
    assert_int_equal(store_unmapped(&talk, first.slot, first.generation), PLLM_OK);
    /* The slot is used again, under another generation. */
    assert_int_equal(store_create(&talk, "b", 2 * MIB, 0), PLLM_OK);
    assert_int_equal(talk.answer.tensor.info.slot, first.slot);
    assert_true(talk.answer.tensor.info.generation > second.generation);
    assert_int_equal(store_shut(&talk, first.slot, first.generation, 1), PLLM_ESTALE);
    pllm_board_close(board);
    store_talk_close(&talk);
    store_rig_close(&rig);
}

static void fences_count_up(void **state)
{
    (void)state;
    store_rig rig;
    store_talk writer, reader;
    pllm_board *board;
    store_rig_open(&rig, NULL, 0);
    store_talk_open(&rig, &writer);
    store_talk_open(&rig, &reader);
    assert_int_equal(pllm_board_attach(NULL, dup(reader.fds[0]), &board), PLLM_OK);
    assert_int_equal(store_create(&writer, "a", 4096, 0), PLLM_OK);
    pllm_wire_info info = writer.answer.tensor.info;
    assert_int_equal(store_open(&reader, "a", 0), PLLM_OK);
    assert_int_equal(store_signal(&reader, info.slot, info.generation, 1), PLLM_EPERM);
    assert_int_equal(pllm_board_wait(board, info.slot, info.generation, 1, 1000000),
                     PLLM_ETIMEDOUT);
    assert_int_equal(store_signal(&writer, info.slot, info.generation, 5), PLLM_OK);
    assert_int_equal(pllm_board_wait(board, info.slot, info.generation, 5, 0), PLLM_OK);
    assert_int_equal(pllm_board_wait(board, info.slot, info.generation, 6, 0), PLLM_ETIMEDOUT);
    assert_int_equal(store_signal(&writer, info.slot, info.generation, 3), PLLM_OK); /* nothing */
    assert_int_equal(pllm_board_wait(board, info.slot, info.generation, 5, 0), PLLM_OK);
    assert_int_equal(store_signal(&writer, info.slot, info.generation, UINT64_MAX), PLLM_EINVAL);
    /* One way: no answer, and in order with what follows. */
    for (uint64_t value = 6; value < 40; value++) {
        writer.ask = (pllm_wire_message){.op = PLLM_WIRE_SIGNAL};
        writer.ask.handle.slot = info.slot;
        writer.ask.handle.generation = info.generation;
        writer.ask.handle.value = value;
        store_tell(&writer);
    }
    assert_int_equal(pllm_board_wait(board, info.slot, info.generation, 39, 5000000000u), PLLM_OK);
    assert_int_equal(store_name(&writer, PLLM_WIRE_STAT, "a", 0, NULL), PLLM_OK);
    assert_int_equal(writer.answer.tensor.info.fence_value, 39);
    pllm_board_close(board);
    store_talk_close(&writer);
    store_talk_close(&reader);
    store_rig_close(&rig);
}

static void names_change_hands(void **state)
{
    (void)state;
    store_rig rig;
    store_talk talk, other;
    store_rig_open(&rig, NULL, 0);
    store_talk_open(&rig, &talk);
    store_talk_open(&rig, &other);
    assert_int_equal(store_create(&talk, "a", 4096, PLLM_STORE_FLAG_KEPT), PLLM_OK);
    pllm_wire_info info = talk.answer.tensor.info;
    assert_int_equal(store_create(&talk, "b", 4096, 0), PLLM_OK);
    assert_int_equal(store_name(&talk, PLLM_WIRE_RENAME, "a", 0, "b"), PLLM_EEXIST);
    assert_int_equal(store_name(&talk, PLLM_WIRE_RENAME, "a", 0, "cmd"), PLLM_EINVAL);
    assert_int_equal(store_name(&talk, PLLM_WIRE_RENAME, "a", 0, "new/a"), PLLM_OK);
    assert_int_equal(store_open(&other, "a", 0), PLLM_ENOTFOUND);
    assert_int_equal(store_open(&other, "new/a", 0), PLLM_OK);
    assert_int_equal(other.answer.tensor.info.generation, info.generation); /* still that tensor */
    /* Sealed: no more writers. */
    assert_int_equal(store_open(&other, "new/a", 1), PLLM_OK);
    assert_int_equal(store_name(&talk, PLLM_WIRE_SEAL, "new/a", 0, NULL), PLLM_EBUSY);
    assert_int_equal(store_shut(&other, info.slot, info.generation, 1), PLLM_OK);
    assert_int_equal(store_name(&talk, PLLM_WIRE_SEAL, "new/a", 0, NULL), PLLM_OK);
    assert_int_equal(store_open(&other, "new/a", 1), PLLM_EPERM);
    assert_int_equal(store_open(&other, "new/a", 0), PLLM_OK);
    assert_int_equal(other.answer.tensor.info.spec.flags,
                     PLLM_STORE_FLAG_KEPT | PLLM_STORE_FLAG_SEALED);
    /* Kept: it is there when all have gone. */
    talk.ask = (pllm_wire_message){.op = PLLM_WIRE_BYE};
    assert_int_equal(store_ask(&talk, NULL, 0), PLLM_OK);
    assert_int_equal(store_open(&talk, "new/a", 0), PLLM_ESTALE); /* it said good-bye */
    store_talk_close(&talk);
    other.ask = (pllm_wire_message){.op = PLLM_WIRE_BYE};
    store_tell(&other);
    store_talk_close(&other);
    store_rig_until(&rig, 1, 0);
    store_talk_open(&rig, &talk);
    assert_int_equal(store_name(&talk, PLLM_WIRE_STAT, "new/a", 0, NULL), PLLM_OK);
    assert_int_equal(talk.answer.tensor.info.reference_count, 0);
    assert_int_equal(talk.answer.tensor.info.fence_poisoned, 0); /* good-bye is no death */
    assert_int_equal(store_name(&talk, PLLM_WIRE_PIN, "new/a", 1, NULL), PLLM_OK);
    assert_int_equal(store_name(&talk, PLLM_WIRE_DELETE, "new/a", 0, NULL), PLLM_OK);
    store_rig_until(&rig, 0, 1);
    store_talk_close(&talk);
    store_rig_close(&rig);
}

/* More than a packet holds, in pages, and only what begins with the prefix. */
static void lists_come_in_pages(void **state)
{
    enum { COUNT = 1400 };
    (void)state;
    store_rig rig;
    store_talk talk;
    char name[40];
    uint8_t seen[COUNT] = {0};
    store_rig_open(&rig, NULL, 0);
    store_talk_open(&rig, &talk);
    for (int i = 0; i < COUNT; i++) {
        snprintf(name, sizeof name, "%s/number/%d", i % 2 ? "odd" : "even", i);
        assert_int_equal(store_create(&talk, name, 100, 0), PLLM_OK);
    }
    uint32_t cursor = 0, pages = 0, count = 0;
    do {
        talk.ask = (pllm_wire_message){.op = PLLM_WIRE_LIST};
        talk.ask.list.cursor = cursor;
        talk.ask.list.prefix = (pllm_wire_text){"odd/", 4};
        assert_int_equal(store_ask(&talk, NULL, 0), PLLM_OK);
        pllm_wire_info info;
        uint32_t at = 0;
        int number;
        while (pllm_wire_list_next(&talk.answer, &at, &info)) {
            snprintf(name, sizeof name, "%.*s", (int)info.name.bytes, info.name.data);
            assert_int_equal(sscanf(name, "odd/number/%d", &number), 1);
            assert_int_equal(seen[number]++, 0);
            count++;
        }
        cursor = talk.answer.listing.next;
        pages++;
    } while (cursor);
    assert_int_equal(count, COUNT / 2);
    assert_in_range(pages, 2, 5);
    store_talk_close(&talk);
    store_rig_close(&rig);
}

static void expect_event(store_talk *talk, uint32_t kinds, const char *name, const char *before)
{
    assert_true(store_event(talk, 5000));
    assert_int_equal(talk->answer.event.kinds, kinds);
    assert_int_equal(talk->answer.event.name.bytes, strlen(name));
    assert_memory_equal(talk->answer.event.name.data, name, strlen(name));
    assert_int_equal(talk->answer.event.name_before.bytes, strlen(before));
    assert_memory_equal(talk->answer.event.name_before.data, before, strlen(before));
}

static int watch(store_talk *talk, const char *prefix, uint32_t kinds)
{
    talk->ask = (pllm_wire_message){.op = PLLM_WIRE_WATCH};
    talk->ask.watch.kinds = kinds;
    talk->ask.watch.prefix = (pllm_wire_text){prefix, (uint32_t)strlen(prefix)};
    return store_ask(talk, NULL, 0);
}

static void watchers_are_told(void **state)
{
    (void)state;
    store_rig rig;
    store_talk talk, watcher, picky;
    store_rig_open(&rig, NULL, 0);
    store_talk_open(&rig, &talk);
    store_talk_open(&rig, &watcher);
    store_talk_open(&rig, &picky);
    assert_int_equal(watch(&watcher, "w/", 0), PLLM_OK);
    uint32_t number = watcher.answer.watch.watch;
    assert_int_equal(watch(&picky, "", PLLM_EFFECT_SEALED), PLLM_OK);
    assert_int_equal(store_create(&talk, "other", 4096, 0), PLLM_OK);
    assert_int_equal(store_create(&talk, "w/a", 4096, 0), PLLM_OK);
    expect_event(&watcher, PLLM_EFFECT_CREATED, "w/a", "");
    assert_int_equal(watcher.answer.event.watch, number);
    assert_int_equal(watcher.answer.event.generation, talk.answer.tensor.info.generation);
    assert_int_equal(store_name(&talk, PLLM_WIRE_SEAL, "w/a", 0, NULL), PLLM_OK);
    expect_event(&watcher, PLLM_EFFECT_SEALED, "w/a", "");
    expect_event(&picky, PLLM_EFFECT_SEALED, "w/a", "");
    assert_int_equal(store_name(&talk, PLLM_WIRE_RENAME, "w/a", 0, "gone"), PLLM_OK);
    expect_event(&watcher, PLLM_EFFECT_RENAMED, "gone", "w/a"); /* the old name began so */
    assert_int_equal(store_name(&talk, PLLM_WIRE_RENAME, "gone", 0, "w/b"), PLLM_OK);
    expect_event(&watcher, PLLM_EFFECT_RENAMED, "w/b", "gone");
    assert_int_equal(store_name(&talk, PLLM_WIRE_PIN, "w/b", 1, NULL), PLLM_OK);
    expect_event(&watcher, PLLM_EFFECT_PINNED, "w/b", "");
    assert_int_equal(store_name(&talk, PLLM_WIRE_DELETE, "w/b", 0, NULL), PLLM_OK);
    expect_event(&watcher, PLLM_EFFECT_DELETED, "w/b", "");
    watcher.ask = (pllm_wire_message){.op = PLLM_WIRE_UNWATCH};
    watcher.ask.watch.watch = number;
    assert_int_equal(store_ask(&watcher, NULL, 0), PLLM_OK);
    assert_int_equal(store_ask(&watcher, NULL, 0), PLLM_ENOTFOUND);
    assert_int_equal(store_create(&talk, "w/c", 4096, 0), PLLM_OK);
    assert_false(store_event(&watcher, 20));
    assert_false(store_event(&picky, 0));
    store_talk_close(&watcher);
    store_talk_close(&picky);
    store_rig_until(&rig, 3, 1);
    assert_int_equal(store_rig_stats(&rig).watch_count, 0);
    store_talk_close(&talk);
    store_rig_close(&rig);
}

static void a_token_is_as_good_as_a_name(void **state)
{
    (void)state;
    store_rig rig;
    store_talk talk;
    char token[PLLM_STORE_TOKEN_BYTES];
    store_rig_open(&rig, NULL, 0);
    store_talk_open(&rig, &talk);
    assert_int_equal(store_create(&talk, "a", 4096, 0), PLLM_OK);
    pllm_wire_info info = talk.answer.tensor.info;
    pllm_store_token_text(info.slot, info.generation, token);
    talk.ask = (pllm_wire_message){.op = PLLM_WIRE_REDEEM};
    talk.ask.open.name = (pllm_wire_text){token, (uint32_t)strlen(token)};
    assert_int_equal(store_ask(&talk, NULL, 0), PLLM_OK);
    assert_int_equal(talk.answer.tensor.info.generation, info.generation);
    assert_int_equal(talk.fd_count, 1);
    pllm_store_token_text(info.slot, info.generation + 1, token);
    assert_int_equal(store_ask(&talk, NULL, 0), PLLM_ESTALE);
    pllm_store_token_text(UINT32_MAX, info.generation, token);
    assert_int_equal(store_ask(&talk, NULL, 0), PLLM_ESTALE);
    token[5] ^= 1;
    assert_int_equal(store_ask(&talk, NULL, 0), PLLM_EINVAL);
    store_talk_close(&talk);
    store_rig_close(&rig);
}

/* Three tensors of 8 MiB where two fit: the sealed one used longest ago goes to host memory, and is
 * whole when it is opened again. Nothing that is open, pinned or unsealed goes. */
static void sealed_tensors_make_room(void **state)
{
    (void)state;
    store_rig rig;
    store_talk talk;
    char name[8];
    uint64_t mapped;
    pllm_store_server_options options = {.spilled_bytes_max = 64 * MIB};
    store_rig_open(&rig, &options, 24 * MIB);
    store_talk_open(&rig, &talk);
    for (int i = 0; i < 2; i++) {
        snprintf(name, sizeof name, "t%d", i);
        assert_int_equal(store_create(&talk, name, 8 * MIB, PLLM_STORE_FLAG_KEPT), PLLM_OK);
        pllm_wire_info info = talk.answer.tensor.info;
        uint64_t *data = store_map(&talk, 1, &mapped);
        for (uint64_t k = 0; k < mapped / 8; k += 500) data[k] = k + (uint64_t)i;
        munmap(data, mapped);
        assert_int_equal(store_name(&talk, PLLM_WIRE_SEAL, name, 0, NULL), PLLM_OK);
        assert_int_equal(store_shut(&talk, info.slot, info.generation, 1), PLLM_OK);
        assert_int_equal(store_unmapped(&talk, info.slot, info.generation), PLLM_OK);
    }
    assert_int_equal(store_name(&talk, PLLM_WIRE_PIN, "t0", 1, NULL), PLLM_OK);
    assert_int_equal(store_create(&talk, "big", 16 * MIB, 0), PLLM_OK);
    assert_int_equal(store_name(&talk, PLLM_WIRE_STAT, "t1", 0, NULL), PLLM_OK);
    assert_int_equal(talk.answer.tensor.info.state, PLLM_STORE_STATE_SPILLED); /* t0 is pinned */
    assert_int_equal(store_rig_stats(&rig).spilled_count, 1);
    assert_int_equal(store_create(&talk, "more", 8 * MIB, 0), PLLM_ENODEVMEM);
    assert_int_equal(store_open(&talk, "t1", 0), PLLM_ENODEVMEM); /* no room to come back */
    assert_int_equal(store_name(&talk, PLLM_WIRE_PIN, "t0", 0, NULL), PLLM_OK);
    assert_int_equal(store_open(&talk, "t1", 0), PLLM_OK); /* now t0 goes */
    uint64_t *data = store_map(&talk, 0, &mapped);
    for (uint64_t k = 0; k < mapped / 8; k += 500) assert_int_equal(data[k], k + 1);
    munmap(data, mapped);
    assert_int_equal(store_name(&talk, PLLM_WIRE_STAT, "t0", 0, NULL), PLLM_OK);
    assert_int_equal(talk.answer.tensor.info.state, PLLM_STORE_STATE_SPILLED);
    assert_int_equal(store_rig_stats(&rig).restored_count, 1);
    /* A spilled one can be deleted. */
    assert_int_equal(store_name(&talk, PLLM_WIRE_DELETE, "t0", 0, NULL), PLLM_OK);
    assert_int_equal(store_rig_stats(&rig).spilled_bytes, 0);
    store_talk_close(&talk);
    store_rig_close(&rig);
}

/* ---- where it listens ---- */

static int open_at(const char *path, const store_rig *rig)
{
    pllm_store_server_options options = rig->options;
    pllm_store_server *server;
    options.socket = path;
    int status = pllm_store_server_open(&rig->memory.context, &options, &server);
    pllm_store_server_close(server);
    return status;
}

static void one_daemon_a_path(void **state)
{
    (void)state;
    store_rig rig;
    char path[120], lock[130];
    struct stat about;
    store_rig_open(&rig, NULL, 0);
    assert_int_equal(open_at(rig.path, &rig), PLLM_EEXIST);
    store_talk talk; /* the first one is still there, and its socket too */
    store_talk_open(&rig, &talk);
    store_talk_close(&talk);
    assert_int_equal(stat(rig.path, &about), 0);
    assert_int_equal(about.st_mode & 0777, 0600);

    /* A socket that nobody answers is replaced; one that somebody else answers is not. */
    snprintf(path, sizeof path, "%s/stale", rig.folder);
    struct sockaddr_un address;
    assert_int_equal(pllm_wire_address(path, &address), PLLM_OK);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    listen(fd, 1);
    assert_int_equal(open_at(path, &rig), PLLM_EEXIST);
    close(fd);
    assert_int_equal(open_at(path, &rig), PLLM_OK);
    assert_int_equal(access(path, F_OK), -1);
    snprintf(lock, sizeof lock, "%s.lock", path);
    unlink(lock);

    /* A file is no socket, and is not touched. */
    fd = open(path, O_WRONLY | O_CREAT, 0600);
    close(fd);
    assert_int_equal(open_at(path, &rig), PLLM_EEXIST);
    assert_int_equal(access(path, F_OK), 0);
    unlink(path);
    unlink(lock);

    /* Folders: made when missing; not where others may write. */
    snprintf(path, sizeof path, "%s/sub/s.sock", rig.folder);
    assert_int_equal(open_at(path, &rig), PLLM_OK);
    snprintf(lock, sizeof lock, "%s/sub", rig.folder);
    assert_int_equal(stat(lock, &about), 0);
    assert_int_equal(about.st_mode & 0777, 0700);
    chmod(lock, 0770);
    assert_int_equal(open_at(path, &rig), PLLM_EPERM);
    chmod(lock, 01777);
    assert_int_equal(open_at(path, &rig), PLLM_OK);
    snprintf(path, sizeof path, "%s/sub/s.sock.lock", rig.folder);
    unlink(path);
    rmdir(lock);
    snprintf(path, sizeof path, "%s/none/sub/s.sock", rig.folder);
    assert_int_equal(open_at(path, &rig), PLLM_EIO);
    memset(path, 'x', sizeof path - 1);
    path[sizeof path - 1] = 0;
    assert_int_equal(open_at(path, &rig), PLLM_EINVAL);
    store_rig_close(&rig);
}

static void generations_grow_over_restarts(void **state)
{
    (void)state;
    store_rig rig;
    store_talk talk;
    uint64_t last = 0;
    store_rig_open(&rig, NULL, 0);
    for (int i = 0; i < 3; i++) {
        store_talk_open(&rig, &talk);
        assert_int_equal(store_create(&talk, "a", 4096, PLLM_STORE_FLAG_KEPT), PLLM_OK);
        assert_true(talk.answer.tensor.info.generation >> 32 > last >> 32);
        last = talk.answer.tensor.info.generation;
        store_talk_close(&talk);
        store_rig_stop(&rig);
        if (i == 1) { /* what stands there is no number of a start: the time of day is one */
            char path[130];
            snprintf(path, sizeof path, "%s.lock", rig.path);
            FILE *file = fopen(path, "w");
            assert_non_null(file);
            assert_true(fputs("99999999999\n", file) >= 0);
            assert_int_equal(fclose(file), 0);
            while ((uint64_t)time(NULL) <= last >> 32) usleep(10000);
        }
        store_rig_start(&rig);
    }
    store_rig_close(&rig);
}

/* ---- parts ---- */

typedef struct part_call {
    int status;
    const char *name;
    pllm_store_holder holder;
    uint32_t flags;
    pllm_store_record record;
    uint32_t seen;
} part_call;

static void call_create(store_rig *rig, void *user)
{
    part_call *call = user;
    pllm_store_entry entry;
    pllm_registry_spec spec = {.dtype = PLLM_STORE_F32, .rank = 1, .shape = {16}};
    pllm_store_server_self(rig->server, &call->holder.peer);
    call->status = pllm_store_server_create(rig->server, call->name, strlen(call->name), &spec,
                                            &call->holder, &entry);
    if (call->status == PLLM_OK) call->record = *entry.record;
}

static void call_get(store_rig *rig, void *user)
{
    part_call *call = user;
    pllm_store_entry entry;
    pllm_store_server_self(rig->server, &call->holder.peer);
    call->status = pllm_store_server_get(rig->server, call->name, strlen(call->name), 0,
                                         &call->holder, &entry);
    if (call->status == PLLM_OK) call->record = *entry.record;
}

static void call_delete(store_rig *rig, void *user)
{
    part_call *call = user;
    pllm_store_server_self(rig->server, &call->holder.peer);
    call->status =
        pllm_store_server_delete(rig->server, call->name, strlen(call->name), &call->holder);
}

static void count_entry(void *user, const pllm_store_entry *entry)
{
    assert_true(strlen(entry->ipc_handle) == PLLM_STORE_TOKEN_BYTES - 1 && entry->uuid[0]);
    ++*(uint32_t *)user;
}

static void call_each(store_rig *rig, void *user)
{
    pllm_store_server_each(rig->server, count_entry, &((part_call *)user)->seen);
}

static void parts_hear_and_act(void **state)
{
    (void)state;
    store_rig rig;
    store_talk talk;
    pllm_store_server_options options = {.sweep_ms = 10};
    store_rig_open(&rig, &options, 0);
    /* Without a holder: kept, no reference. */
    part_call call = {.name = "p"};
    store_rig_inside(&rig, call_create, &call);
    assert_int_equal(call.status, PLLM_OK);
    assert_int_equal(call.record.reference_count, 0);
    assert_int_equal(call.record.flags, PLLM_STORE_FLAG_KEPT);
    assert_string_equal(store_rig_heard(&rig).changed_name, "p");
    assert_int_equal(strlen(store_rig_heard(&rig).changed_handle), PLLM_STORE_TOKEN_BYTES - 1);
    store_rig_inside(&rig, call_create, &call);
    assert_int_equal(call.status, PLLM_EEXIST);

    /* What the part made is a tensor like others. */
    store_talk_open(&rig, &talk);
    assert_int_equal(store_open(&talk, "p", 0), PLLM_OK);
    assert_int_equal(store_name(&talk, PLLM_WIRE_RENAME, "p", 0, "q"), PLLM_OK);
    assert_string_equal(store_rig_heard(&rig).removed_name, "p");
    assert_string_equal(store_rig_heard(&rig).changed_name, "q");
    assert_int_equal(store_rig_heard(&rig).changed.reference_count, 1);

    /* A reference for a time: it ends by itself. */
    call = (part_call){.name = "q", .holder.lease_ns = 30000000};
    store_rig_inside(&rig, call_get, &call);
    assert_int_equal(call.status, PLLM_OK);
    assert_int_equal(call.record.reference_count, 2);
    for (int i = 0; i < 500 && store_rig_heard(&rig).changed.reference_count != 1; i++) {
        usleep(5000);
    }
    assert_int_equal(store_rig_heard(&rig).changed.reference_count, 1);

    /* One that a process has: it ends with the process. */
    pid_t child = fork();
    if (child == 0) {
        pause();
        _exit(0);
    }
    call = (part_call){.name = "q", .holder.pid = (uint32_t)child};
    store_rig_inside(&rig, call_get, &call);
    assert_int_equal(call.status, PLLM_OK);
    pllm_store_lease lease = call.holder.lease;
    store_rig_inside(&rig, call_get, &call);
    assert_true(lease != 0 && call.holder.lease == lease); /* one lease a process */
    assert_int_equal(call.record.reference_count, 3);
    store_rig_inside(&rig, call_delete, &call); /* one of its two */
    assert_int_equal(call.status, PLLM_OK);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    for (int i = 0; i < 500 && store_rig_heard(&rig).changed.reference_count != 1; i++) {
        usleep(5000);
    }
    assert_int_equal(store_rig_heard(&rig).changed.reference_count, 1);
    store_rig_inside(&rig, call_get, &call);
    assert_int_equal(call.status, PLLM_ENOTFOUND); /* no such process */

    /* Metadata alone takes nothing. */
    call = (part_call){.name = "q"};
    store_rig_inside(&rig, call_get, &call);
    assert_int_equal(call.status, PLLM_OK);
    assert_int_equal(call.record.reference_count, 1);
    store_rig_inside(&rig, call_each, &call);
    assert_int_equal(call.seen, 1);
    call.holder = (pllm_store_holder){0};
    store_rig_inside(&rig, call_delete, &call);
    assert_int_equal(call.status, PLLM_OK);
    assert_string_equal(store_rig_heard(&rig).removed_name, "q");
    store_rig_inside(&rig, call_delete, &call);
    assert_int_equal(call.status, PLLM_ENOTFOUND);

    /* A process that made it holds it, and it goes with the process. */
    child = fork();
    if (child == 0) {
        pause();
        _exit(0);
    }
    call = (part_call){.name = "r", .holder.pid = (uint32_t)child};
    store_rig_inside(&rig, call_create, &call);
    assert_int_equal(call.status, PLLM_OK);
    assert_int_equal(call.record.owner_pid, child);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    store_rig_until(&rig, 1, 1); /* "q" is still open in talk */
    store_talk_close(&talk);
    store_rig_close(&rig);
}

/* A reference for a time ends when the time is over, not when the daemon looks at processes. */
static void a_lease_ends_at_its_end(void **state)
{
    (void)state;
    store_rig rig;
    const pllm_store_server_options options = {.sweep_ms = 3600000};
    store_rig_open(&rig, &options, 0);
    part_call call = {.name = "t", .holder.lease_ns = 30000000};
    uint64_t before = pllm_clock_ns();
    store_rig_inside(&rig, call_create, &call);
    assert_int_equal(call.status, PLLM_OK);
    store_rig_until(&rig, 0, 0);
    assert_true(pllm_clock_ns() - before >= 30000000);
    store_rig_close(&rig);
}

/* Who may: another user, over a socket that all may use. */
static void users_are_told_apart(void **state)
{
    (void)state;
    if (geteuid() != 0) {
        skip();
        return;
    }
    store_rig rig;
    store_talk talk;
    pllm_store_server_options options = {.socket_mode = 0666, .client_per_user_max = 2};
    store_rig_open(&rig, &options, 0);
    chmod(rig.folder, 0711);
    store_talk_open(&rig, &talk);
    static const struct {
        const char *name;
        uint32_t mode;
    } tensors[] = {{"own", 0600}, {"all", 0644}, {"write", 0666}, {"group", 0640}};
    for (int i = 0; i < 4; i++) {
        talk.ask = (pllm_wire_message){.op = PLLM_WIRE_CREATE};
        talk.ask.create.spec = (pllm_wire_spec){.rank = 1, .mode = tensors[i].mode, .shape = {64}};
        talk.ask.create.name = (pllm_wire_text){tensors[i].name, (uint32_t)strlen(tensors[i].name)};
        assert_int_equal(store_ask(&talk, NULL, 0), PLLM_OK);
    }
    pid_t child = fork();
    if (child == 0) {
        store_talk other, third;
        int wrong = 0;
        if (setgid(54321) < 0 || setgroups(0, NULL) < 0 || setuid(54321) < 0) _exit(99);
        store_talk_open(&rig, &other);
        wrong |= store_open(&other, "own", 0) != PLLM_EPERM;
        wrong |= (store_name(&other, PLLM_WIRE_STAT, "own", 0, NULL) != PLLM_EPERM) << 1;
        wrong |= (store_open(&other, "all", 0) != PLLM_OK) << 2;
        wrong |= (store_open(&other, "all", 1) != PLLM_EPERM) << 3;
        wrong |= (store_open(&other, "write", 1) != PLLM_OK) << 4;
        wrong |= (store_open(&other, "group", 0) != PLLM_EPERM) << 5;
        wrong |= (store_name(&other, PLLM_WIRE_DELETE, "write", 0, NULL) != PLLM_EPERM) << 6;
        wrong |= (store_name(&other, PLLM_WIRE_RENAME, "all", 0, "x") != PLLM_EPERM) << 7;
        if (wrong) _exit(wrong & 0x7f ? wrong & 0x7f : 98);
        /* What it lists is what it may read. */
        other.ask = (pllm_wire_message){.op = PLLM_WIRE_LIST};
        if (store_ask(&other, NULL, 0) != PLLM_OK || other.answer.listing.count != 2) _exit(97);
        /* Its own tensor is its own, though root may see to it. */
        if (store_create(&other, "theirs", 64, PLLM_STORE_FLAG_KEPT) != PLLM_OK) _exit(96);
        if (other.answer.tensor.info.uid != 54321) _exit(95);
        /* Two connections, not three. */
        store_talk_open(&rig, &third);
        int fd = store_connect(&rig);
        char byte;
        if (recv(fd, &byte, 1, 0) != 0) _exit(94);
        other.ask = (pllm_wire_message){.op = PLLM_WIRE_BYE};
        store_ask(&other, NULL, 0);
        _exit(0);
    }
    int result;
    waitpid(child, &result, 0);
    assert_true(WIFEXITED(result));
    assert_int_equal(WEXITSTATUS(result), 0);
    assert_int_equal(store_name(&talk, PLLM_WIRE_DELETE, "theirs", 0, NULL), PLLM_OK);
    store_talk_close(&talk);
    store_rig_close(&rig);
}

/* 0, or the line at which somebody of the tensors' group was let do what it may not, or not what it
 * may. */
static int one_of_the_group(store_rig *rig, const char *token)
{
    static store_talk other;
    store_talk_open(rig, &other);
    other.ask = (pllm_wire_message){.op = PLLM_WIRE_WATCH};
    if (store_ask(&other, NULL, 0) != PLLM_OK) return __LINE__;
    if (store_open(&other, "group", 0) != PLLM_OK) return __LINE__;
    const pllm_wire_info group = other.answer.tensor.info;
    if (store_open(&other, "group", 1) != PLLM_EPERM) return __LINE__;
    if (store_signal(&other, group.slot, group.generation, 1) != PLLM_EPERM) return __LINE__;
    if (store_name(&other, PLLM_WIRE_DELETE, "group", 0, NULL) != PLLM_EPERM) return __LINE__;
    if (store_name(&other, PLLM_WIRE_RENAME, "group", 0, "x") != PLLM_EPERM) return __LINE__;
    if (store_name(&other, PLLM_WIRE_PIN, "group", 1, NULL) != PLLM_EPERM) return __LINE__;
    if (store_name(&other, PLLM_WIRE_SEAL, "group", 0, NULL) != PLLM_EPERM) return __LINE__;
    if (store_open(&other, "shared", 1) != PLLM_OK) return __LINE__;
    if (store_name(&other, PLLM_WIRE_PIN, "shared", 1, NULL) != PLLM_EPERM) return __LINE__;
    if (store_name(&other, PLLM_WIRE_DELETE, "shared", 0, NULL) != PLLM_EPERM) return __LINE__;
    if (store_name(&other, PLLM_WIRE_SEAL, "shared", 0, NULL) != PLLM_EBUSY) return __LINE__;
    /* Its mode holds for who has a token, too. */
    other.ask = (pllm_wire_message){.op = PLLM_WIRE_REDEEM};
    other.ask.open.name = (pllm_wire_text){token, (uint32_t)strlen(token)};
    if (store_ask(&other, NULL, 0) != PLLM_EPERM) return __LINE__;
    /* Of its own it has three at most, however often it connects. */
    if (store_create(&other, "mine/1", 64, PLLM_STORE_FLAG_KEPT) != PLLM_OK) return __LINE__;
    if (store_create(&other, "mine/2", 64, PLLM_STORE_FLAG_KEPT) != PLLM_OK) return __LINE__;
    if (store_create(&other, "mine/3", 64, PLLM_STORE_FLAG_KEPT) != PLLM_OK) return __LINE__;
    store_talk_close(&other);
    store_talk_open(rig, &other);
    if (store_create(&other, "mine/4", 64, 0) != PLLM_ELIMIT) return __LINE__;
    if (store_name(&other, PLLM_WIRE_DELETE, "mine/1", 0, NULL) != PLLM_OK) return __LINE__;
    if (store_name(&other, PLLM_WIRE_DELETE, "mine/2", 0, NULL) != PLLM_OK) return __LINE__;
    return 0;
}

/* The group may what its mode says, and not what is the owner's. */
static void groups_are_told_apart(void **state)
{
    (void)state;
    if (geteuid() != 0) {
        skip();
        return;
    }
    store_rig rig;
    store_talk talk;
    const pllm_store_server_options options = {.socket_mode = 0666, .count_per_user_max = 3};
    store_rig_open(&rig, &options, 0);
    chmod(rig.folder, 0711);
    store_talk_open(&rig, &talk);
    static const struct {
        const char *name;
        uint32_t mode;
    } tensors[] = {{"group", 0640}, {"shared", 0660}, {"own", 0600}};
    for (int i = 0; i < 3; i++) {
        talk.ask = (pllm_wire_message){.op = PLLM_WIRE_CREATE};
        talk.ask.create.spec = (pllm_wire_spec){.rank = 1, .mode = tensors[i].mode, .shape = {64}};
        talk.ask.create.name = (pllm_wire_text){tensors[i].name, (uint32_t)strlen(tensors[i].name)};
        assert_int_equal(store_ask(&talk, NULL, 0), PLLM_OK);
    }
    char token[PLLM_STORE_TOKEN_BYTES];
    pllm_store_token_text(talk.answer.tensor.info.slot, talk.answer.tensor.info.generation, token);
    pid_t child = fork();
    if (child == 0) {
        if (setgroups(0, NULL) < 0 || setuid(54322) < 0) _exit(99);
        int line = one_of_the_group(&rig, token);
        if (line) fprintf(stderr, "line %d: %s\n", line, pllm_last_error()->text);
        _exit(line != 0);
    }
    int result;
    waitpid(child, &result, 0);
    assert_true(WIFEXITED(result) && WEXITSTATUS(result) == 0);
    store_talk_close(&talk);
    store_rig_close(&rig);
}

static void reclaim_gives_back(void **state)
{
    (void)state;
    store_rig rig;
    store_talk talk;
    pllm_store_server_options options = {.ready_bytes = 16 * MIB, .spilled_bytes_max = 64 * MIB};
    store_rig_open(&rig, &options, 64 * MIB);
    store_talk_open(&rig, &talk);
    assert_int_equal(store_create(&talk, "a", 8 * MIB, PLLM_STORE_FLAG_KEPT), PLLM_OK);
    pllm_wire_info info = talk.answer.tensor.info;
    assert_int_equal(store_name(&talk, PLLM_WIRE_SEAL, "a", 0, NULL), PLLM_OK);
    assert_int_equal(store_shut(&talk, info.slot, info.generation, 1), PLLM_OK);
    assert_int_equal(store_unmapped(&talk, info.slot, info.generation), PLLM_OK);
    assert_true(store_rig_stats(&rig).charged_bytes >= 8 * MIB);
    pllm_store_server_reclaim(rig.server, 0, 1024 * MIB); /* more than there is */
    pllm_store_server_stats stats;
    uint64_t deadline = pllm_clock_ns() + 5000000000u;
    do stats = store_rig_stats(&rig);
    while (stats.spilled_count == 0 && pllm_clock_ns() < deadline);
    assert_int_equal(stats.spilled_count, 1);
    store_talk_close(&talk);
    store_rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(two_clients_share_a_tensor),
        cmocka_unit_test(refusals_say_why),
        cmocka_unit_test(a_deleted_tensor_stays_for_its_holders),
        cmocka_unit_test(fences_count_up),
        cmocka_unit_test(names_change_hands),
        cmocka_unit_test(lists_come_in_pages),
        cmocka_unit_test(watchers_are_told),
        cmocka_unit_test(a_token_is_as_good_as_a_name),
        cmocka_unit_test(sealed_tensors_make_room),
        cmocka_unit_test(one_daemon_a_path),
        cmocka_unit_test(generations_grow_over_restarts),
        cmocka_unit_test(parts_hear_and_act),
        cmocka_unit_test(a_lease_ends_at_its_end),
        cmocka_unit_test(users_are_told_apart),
        cmocka_unit_test(groups_are_told_apart),
        cmocka_unit_test(reclaim_gives_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
