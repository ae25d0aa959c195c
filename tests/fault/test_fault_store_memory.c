/* Every device call and every allocation under the store's memory fails once, for every N: a step
 * that fails leaves tensors, their bytes and the charge as they were, and succeeds when it is tried
 * again; at the end nothing is alive. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "device/cuda.h"
#include "fault_rig.h"
#include "store/memory.h"
#include "store_moves.h"

#define MEBI ((uint64_t)1 << 20)
#define FAKE PLLM_BINARY_DIR "/tests/libfake_cuda.so"
#define BLOCKS 5

static const pllm_store_owner ann = {1000, 1000, 0600}, bob = {1001, 1001, 0600};

typedef struct world {
    fault_run *run;
    const pllm_context *context; /* the run's, as is device */
    pllm_device *device;
    pllm_budget *budget;
    pllm_budget_member *member;
    pllm_store_memory *memory;
    pllm_store_block *blocks[BLOCKS];
    uint32_t cuda;
} world;

/* What a failed step may not change. */
typedef struct snapshot {
    uint64_t blocks, legacy, spilled, bytes, piece_bytes, spilled_bytes, slab_used;
} snapshot;

static snapshot look(const world *w)
{
    pllm_store_memory_stats s = {0};
    if (!w->memory) return (snapshot){0};
    pllm_store_memory_check(w->memory);
    pllm_store_memory_stats_get(w->memory, &s);
    return (snapshot){s.block_count, s.legacy_count,  s.spilled_count,  s.block_bytes,
                      s.piece_bytes, s.spilled_bytes, s.slab_used_bytes};
}

#define STEP(w, call) FAULT_STEP((w)->run, snapshot, look(w), FAULT_SAME, call)

static int open_cuda(const pllm_context *context, pllm_device **inner)
{
    pllm_cuda_device_options options = {
        .struct_bytes = sizeof options, .library = FAKE, .nvml = FAKE};
    return pllm_device_open_cuda(context, &options, inner);
}

static int open_host(const pllm_context *context, pllm_device **inner)
{
    pllm_host_device_options options = {.struct_bytes = sizeof options,
                                        .capacity_bytes = 128 * MEBI};
    return pllm_device_open_host(context, &options, inner);
}

static void expect_word(world *w, pllm_store_block *block, uint64_t offset, uint8_t value)
{
    uint8_t seen = 0;
    STEP(w, pllm_store_block_read(w->memory, block, offset, 1, &seen));
    assert_int_equal(seen, value);
}

static void adopt_and_let_go(world *w, const pllm_store_block *block)
{
    uint64_t bytes;
    int fd;
    pllm_store_block *adopted;
    assert_int_equal(pllm_store_block_piece(block, 0, 1, &bytes, &fd), PLLM_OK);
    STEP(w, pllm_store_memory_adopt(w->memory, 3 * MEBI, 0, &fd, &bytes, 1, 0, &ann, &adopted));
    expect_word(w, adopted, 0, 11);
    pllm_store_memory_free(w->memory, adopted, 0);
    STEP(w, pllm_store_memory_adopt(w->memory, 1000, 512, &fd, &bytes, 1, 1, &ann, &adopted));
    pllm_store_memory_free(w->memory, adopted, 1);
}

static void work(world *w)
{
    pllm_store_memory_options options = {.struct_bytes = sizeof options,
                                         .ready_bytes = 8 * MEBI,
                                         .legacy_bytes_max = 16 * MEBI,
                                         .slab_bytes = 2 * MEBI,
                                         .spilled_bytes_max = 16 * MEBI};
    const uint8_t word = 11;
    STEP(w, pllm_store_memory_open(w->context, w->device, w->member, &options, &w->memory));
    for (int i = 0; i < 3; i++) (void)pllm_store_memory_tick(w->memory); /* may fail, is no error */
    STEP(w, pllm_store_memory_create(w->memory, 3 * MEBI, 0, &ann, &w->blocks[0]));
    STEP(w, pllm_store_block_write(w->memory, w->blocks[0], 0, 1, &word));
    STEP(w, pllm_store_memory_create(w->memory, 7 * MEBI, 0, &bob, &w->blocks[1]));
    STEP(w, pllm_store_memory_create(w->memory, 3000, 0, &ann, &w->blocks[2]));
    STEP(w, pllm_store_block_write(w->memory, w->blocks[2], 2999, 1, &word));
    STEP(w, pllm_store_memory_create(w->memory, 100, 0, &ann, &w->blocks[3]));
    if (w->cuda) STEP(w, pllm_store_memory_create(w->memory, 5000, 1, &ann, &w->blocks[4]));
    STEP(w, spill_now(w->memory, w->blocks[0]));
    STEP(w, spill_now(w->memory, w->blocks[2]));
    for (int i = 0; i < 3; i++) (void)pllm_store_memory_tick(w->memory);
    STEP(w, restore_now(w->memory, w->blocks[0]));
    STEP(w, restore_now(w->memory, w->blocks[2]));
    expect_word(w, w->blocks[0], 0, 11);
    expect_word(w, w->blocks[2], 2999, 11);
    expect_word(w, w->blocks[2], 0, 0);
    adopt_and_let_go(w, w->blocks[0]);
    pllm_store_memory_free(w->memory, w->blocks[3], 0); /* its place again: to be zeroed */
    STEP(w, pllm_store_memory_create(w->memory, 100, 0, &ann, &w->blocks[3]));
    pllm_store_memory_free(w->memory, w->blocks[1], 0); /* dirty, taken before a tick sees it */
    STEP(w, pllm_store_memory_create(w->memory, 7 * MEBI, 0, &bob, &w->blocks[1]));
    expect_word(w, w->blocks[1], 5, 0);
    pllm_store_memory_free(w->memory, w->blocks[1], 0);
    (void)pllm_store_memory_tick(w->memory); /* being zeroed */
    STEP(w, pllm_store_memory_create(w->memory, 7 * MEBI, 0, &bob, &w->blocks[1]));
    expect_word(w, w->blocks[1], 5, 0);
}

static void clean(world *w)
{
    for (int i = 0; i < BLOCKS; i++) pllm_store_memory_free(w->memory, w->blocks[i], 0);
    pllm_store_memory_check(w->memory);
    pllm_store_memory_close(w->memory);
    assert_int_equal(pllm_budget_charged(w->member), 0);
    pllm_budget_leave(w->member);
    pllm_budget_close(w->budget);
}

static world begin(fault_run *run, uint32_t cuda)
{
    world w = {.run = run, .context = run->context, .device = run->device, .cuda = cuda};
    STEP(&w, pllm_budget_open(w.context, 64 * MEBI, &w.budget));
    STEP(&w, pllm_budget_join(w.budget, "store", 0, 64 * MEBI, &w.member));
    return w;
}

static void run_host(fault_run *run)
{
    world w = begin(run, 0);
    work(&w);
    clean(&w);
}

static void run_cuda(fault_run *run)
{
    world w = begin(run, 1);
    work(&w);
    clean(&w);
}

/* A tick that fails is no step: not every failed allocation is told. */
static const fault_scenario scenarios[] = {{.name = "host",
                                            .open = open_host,
                                            .run = run_host,
                                            .device_floor = 60,
                                            .allocation_floor = 40},
                                           {.name = "cuda, fake",
                                            .open = open_cuda,
                                            .run = run_cuda,
                                            .device_floor = 60,
                                            .allocation_floor = 40}};

static void every_device_call_fails_once(void **state)
{
    (void)state;
    for (uint32_t cuda = 0; cuda < 2; cuda++) fault_each_device_call(&scenarios[cuda], 0);
}

static void every_device_call_fails_once_asynchronously(void **state)
{
    (void)state;
    for (uint32_t cuda = 0; cuda < 2; cuda++) fault_each_device_call(&scenarios[cuda], 1);
}

static void every_allocation_fails_once(void **state)
{
    (void)state;
    for (uint32_t cuda = 0; cuda < 2; cuda++) fault_each_allocation(&scenarios[cuda]);
}

/* Failures at random moments in random lives: whatever is refused, what there is keeps its bytes.
 */
static void random_lives_survive_random_failures(void **state)
{
    (void)state;
    enum { LIVES = 12, STEPS = 1200 };
    for (uint32_t cuda = 0; cuda < 2; cuda++) {
        fault_run run;
        fault_run_open(&run, &scenarios[cuda], UINT64_MAX, 0, FAILING_NEVER);
        world w = begin(&run, cuda);
        struct {
            pllm_store_block *block;
            uint64_t bytes;
            uint8_t value; /* of its last byte */
        } lives[LIVES] = {{0}};
        uint64_t x = 0x5eed0007 + cuda;
        uint32_t failed = 0;
        pllm_store_memory_options options = {.struct_bytes = sizeof options,
                                             .ready_bytes = 12 * MEBI,
                                             .legacy_bytes_max = 16 * MEBI,
                                             .slab_bytes = 2 * MEBI,
                                             .spilled_bytes_max = 16 * MEBI};
        assert_int_equal(pllm_store_memory_open(w.context, w.device, w.member, &options, &w.memory),
                         PLLM_OK);
        for (int step = 0; step < STEPS; step++) {
            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            uint32_t i = x % LIVES, what = x / 64 % 8;
            pllm_store_block **block = &lives[i].block;
            pllm_faulty_device_arm(w.device, x / 512 % 16);
            if (x / 8192 % 4 == 0) run.memory.fail_at = run.memory.call_count + x / 32768 % 4;
            int status = PLLM_OK;
            if (!*block) {
                uint64_t bytes = 1 + x / 1024 % (what < 4 ? 5000 : 6 * MEBI);
                status = pllm_store_memory_create(w.memory, bytes, cuda && what == 2,
                                                  what & 1 ? &ann : &bob, block);
                assert_int_equal(status == PLLM_OK, *block != NULL);
                lives[i].bytes = bytes;
                lives[i].value = 0;
            } else if (what == 0) {
                pllm_store_memory_free(w.memory, *block, x / 4096 % 2);
                *block = NULL;
            } else if (what == 1) {
                status = spill_now(w.memory, *block);
            } else if (what == 2) {
                status = restore_now(w.memory, *block);
            } else if (what == 3) {
                (void)pllm_store_memory_trim(w.memory, x % (4 * MEBI));
            } else {
                (void)pllm_store_memory_tick(w.memory);
            }
            failed += status < 0;
            pllm_faulty_device_arm(w.device, UINT64_MAX);
            run.memory.fail_at = FAILING_NEVER;
            pllm_store_memory_check(w.memory);
            if (!*block) continue;
            uint8_t seen = 1, value = (uint8_t)(x >> 32);
            assert_int_equal(pllm_store_block_read(w.memory, *block, lives[i].bytes - 1, 1, &seen),
                             PLLM_OK);
            assert_int_equal(seen, lives[i].value);
            assert_int_equal(
                pllm_store_block_write(w.memory, *block, lives[i].bytes - 1, 1, &value), PLLM_OK);
            lives[i].value = value;
        }
        print_message("calls that failed: %u (%s)\n", (unsigned)failed,
                      cuda ? "cuda, fake" : "host");
        assert_true(failed > 20);
        for (uint32_t i = 0; i < LIVES; i++) pllm_store_memory_free(w.memory, lives[i].block, 0);
        clean(&w);
        fault_run_close(&run);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_device_call_fails_once),
        cmocka_unit_test(every_device_call_fails_once_asynchronously),
        cmocka_unit_test(every_allocation_fails_once),
        cmocka_unit_test(random_lives_survive_random_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
