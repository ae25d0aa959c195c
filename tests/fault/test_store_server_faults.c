/* The daemon when the Nth allocation, or the Nth call of the device, fails: a request is refused or
 * done, nothing in between; the daemon lives, and when it closes nothing is left behind. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>
#include "store_rig.h"

#define MIB ((uint64_t)1 << 20)

typedef struct fault {
    store_rig rig; /* folder, path and options; the device is opened here */
    pllm_device *host, *faulty;
    int refused; /* requests that said ENOMEM, ENODEVMEM or EDEVICE */
} fault;

static int took(fault *f, int status)
{
    if (status != PLLM_OK) {
        assert_true(status == PLLM_ENOMEM || status == PLLM_ENODEVMEM || status == PLLM_EDEVICE);
        f->refused++;
    }
    return status == PLLM_OK;
}

static void bytes_write(store_talk *talk, char value)
{
    uint64_t mapped;
    uint64_t offset = talk->answer.tensor.layout.offset;
    char *data = store_map(talk, 1, &mapped);
    assert_non_null(data);
    assert_int_equal(data[offset], 0);
    data[offset] = value;
    munmap(data, mapped);
}

static void bytes_check(store_talk *talk, char value)
{
    uint64_t mapped;
    uint64_t offset = talk->answer.tensor.layout.offset;
    char *data = store_map(talk, 0, &mapped);
    assert_non_null(data);
    assert_int_equal(data[offset], value);
    munmap(data, mapped);
}

/* A sealed tensor that nobody has open, with one byte in it. */
static int sealed(fault *f, store_talk *talk, const char *name, char value)
{
    if (!took(f, store_create(talk, name, 6 * MIB, PLLM_STORE_FLAG_KEPT))) return 0;
    pllm_wire_info info = talk->answer.tensor.info;
    bytes_write(talk, value);
    assert_int_equal(store_name(talk, PLLM_WIRE_SEAL, name, 0, NULL), PLLM_OK);
    assert_int_equal(store_shut(talk, info.slot, info.generation, 1), PLLM_OK);
    assert_int_equal(store_unmapped(talk, info.slot, info.generation), PLLM_OK);
    return 1;
}

static void scenario(fault *f)
{
    store_talk talk, other;
    store_talk_open(&f->rig, &talk);
    store_talk_open(&f->rig, &other);
    int first = sealed(f, &talk, "first", 11), second = sealed(f, &talk, "second", 12);
    int small = took(f, store_create(&talk, "small", 3000, 0));
    if (small) bytes_write(&talk, 13);
    talk.ask = (pllm_wire_message){.op = PLLM_WIRE_WATCH};
    assert_int_equal(store_ask(&talk, NULL, 0), PLLM_OK);
    /* 16 MiB of device: this one makes the others go to host memory. */
    int large = took(f, store_create(&talk, "large", 8 * MIB, 0));
    if (large) {
        pllm_wire_info info = talk.answer.tensor.info;
        bytes_write(&talk, 14);
        assert_int_equal(store_signal(&talk, info.slot, info.generation, 2), PLLM_OK);
        if (took(f, store_open(&other, "large", 0))) bytes_check(&other, 14);
        assert_int_equal(store_name(&talk, PLLM_WIRE_DELETE, "large", 0, NULL), PLLM_OK);
    }
    talk.ask = (pllm_wire_message){.op = PLLM_WIRE_BYE};
    assert_int_equal(store_ask(&talk, NULL, 0), PLLM_OK);
    other.ask = (pllm_wire_message){.op = PLLM_WIRE_LIST};
    assert_int_equal(store_ask(&other, NULL, 0), PLLM_OK);
    assert_int_equal(other.answer.listing.count, (uint32_t)(first + second));
    /* What was made has its bytes, wherever it was meanwhile. */
    if (first && took(f, store_open(&other, "first", 0))) bytes_check(&other, 11);
    if (second && took(f, store_open(&other, "second", 0))) bytes_check(&other, 12);
    store_talk_close(&talk);
    store_talk_close(&other);
}

/* One life of a daemon. fail_memory, fail_device: which call fails. */
static void live(uint64_t fail_memory, uint64_t fail_device, int *memory_hit, int *device_hit)
{
    fault f = {0};
    pllm_host_device_options host = {.struct_bytes = sizeof host, .capacity_bytes = 16 * MIB};
    pllm_faulty_device_options faulty = {.struct_bytes = sizeof faulty, .fail_at = fail_device};
    assert_int_equal(pllm_device_open_host(NULL, &host, &f.host), PLLM_OK);
    assert_int_equal(pllm_device_open_faulty(NULL, f.host, &faulty, &f.faulty), PLLM_OK);
    failing_context_init(&f.rig.memory, fail_memory);
    f.rig.options = (pllm_store_server_options){.ready_bytes = 4 * MIB,
                                                .spilled_bytes_max = 64 * MIB,
                                                .tensor_max = 16,
                                                .client_max = 4,
                                                .reference_max = 32,
                                                .watch_max = 4};
    if (store_rig_try(&f.rig, f.faulty)) {
        scenario(&f);
        store_rig_end(&f.rig);
    }
    *memory_hit = failing_context_hit(&f.rig.memory);
    *device_hit = pllm_faulty_device_calls(f.faulty) > fail_device;
    failing_context_check(&f.rig.memory);
    assert_int_equal(pllm_faulty_device_live(f.faulty), 0);
    pllm_device_close(f.faulty);
    pllm_device_close(f.host);
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    int hit = 1, other;
    for (uint64_t n = 0; hit && n < 2000; n++) live(n, UINT64_MAX, &hit, &other);
    assert_false(hit);
}

static void every_device_call_may_fail(void **state)
{
    (void)state;
    int hit = 1, other;
    for (uint64_t n = 0; hit && n < 2000; n++) live(FAILING_NEVER, n, &other, &hit);
    assert_false(hit);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(every_device_call_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
