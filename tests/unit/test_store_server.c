/* The daemon over a real socket, in a thread: what well-behaved clients see. Bad ones are in
 * test_store_server_bad.c. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
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
    for (uint64_t i = 0; i < size / 8; i++) {
        assert_int_equal(data[i], 0); /* new memory is zero */
        data[i] = i * 3;
    }
    assert_int_equal(store_open(&reader, "t/x", 0), PLLM_OK);
    assert_int_equal(reader.answer.tensor.info.generation, generation);
    assert_int_equal(reader.answer.tensor.info.reference_count, 2);
    assert_int_equal(reader.answer.tensor.info.importer_count, 2);
    uint64_t *seen = store_map(&reader, 0, &mapped);
    assert_non_null(seen);
    for (uint64_t i = 0; i < size / 8; i++) assert_int_equal(seen[i], i * 3);
    /* Opened for reading: the descriptors do not allow more. */
    assert_null(store_map(&reader, 1, &mapped));

    /* A second open of what is mapped brings no descriptors. */
    reader.ask = (pllm_wire_message){.op = PLLM_WIRE_OPEN};
    reader.ask.open.kept_generation = generation;
    reader.ask.open.name = (pllm_wire_text){"t/x", 3};
    assert_int_equal(store_ask(&reader, NULL, 0), PLLM_OK);
    assert_int_equal(reader.fd_count, 0);
    assert_int_equal(store_shut(&reader, slot, generation, 0), PLLM_OK);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(two_clients_share_a_tensor),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
