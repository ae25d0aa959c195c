/* The defects of a published crate of elastic pools, one test each, numbered as in the list that
 * src/vmm/README.md has: each would fail on code that has the defect. Where it makes sense on the
 * host device and on the CUDA device with its driver in host memory. */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include "vmm_rig.h"

#define KIND(state) (*(vmm_rig_kind *)*(state))

static void allocate(pllm_vmm_pool *pool, uint64_t offset, uint64_t bytes)
{
    uint64_t address;
    assert_int_equal(pllm_vmm_allocate(pool, offset, bytes, &address), PLLM_OK);
    assert_int_equal(address, pllm_vmm_base(pool) + offset);
}

static uint64_t block(pllm_vmm_pool *pool, uint64_t bytes, uint64_t room)
{
    pllm_vmm_block_options options = {
        .struct_bytes = sizeof options, .bytes = bytes, .room_bytes = room};
    uint64_t address;
    assert_int_equal(pllm_vmm_block_allocate(pool, &options, &address), PLLM_OK);
    return address;
}

/* 1. Addresses were given back before what was mapped there: memory stayed, the counter sank. */
static void defect_01_unregistering_gives_all_memory_back(void **state)
{
    vmm_rig rig;
    vmm_rig_open(&rig, KIND(state), 8, 8);
    int64_t before = pllm_faulty_device_live(rig.device);
    pllm_vmm_pool_options keeps = {.kept_bytes = PLLM_UNLIMITED, .ahead_bytes = 2 * RIG_PAGE};
    for (int round = 0; round < 3; round++) { /* the device has room for one such model at a time */
        pllm_vmm_pool *pool = vmm_rig_model(&rig, "model", 64, &keeps);
        allocate(pool, 0, 4 * RIG_PAGE);
        block(pool, RIG_PAGE, RIG_PAGE);
        assert_int_equal(pllm_vmm_deallocate(pool, RIG_PAGE, RIG_PAGE), PLLM_OK);
        assert_int_equal(pllm_vmm_deallocate_after(pool, 3 * RIG_PAGE, RIG_PAGE, rig.stream),
                         PLLM_OK);
        pllm_vmm_poll(rig.vmm);
        assert_true(vmm_rig_physical(&rig) >= 5);
        pllm_vmm_unregister(pool);
        assert_int_equal(vmm_rig_physical(&rig), 0);
        assert_int_equal(pllm_faulty_device_live(rig.device), before);
    }
    pllm_vmm_pool *all = vmm_rig_model(&rig, "all", 8, NULL);
    allocate(all, 0, 8 * RIG_PAGE);
    vmm_rig_close(&rig);
}

/* 2. A second allocation of a model failed, and nothing could grow. */
static void defect_02_a_model_allocates_any_number_of_times_and_grows(void **state)
{
    vmm_rig rig;
    vmm_rig_open(&rig, KIND(state), 64, 64);
    pllm_vmm_pool *pool = vmm_rig_model(&rig, "model", 64, NULL);
    uint64_t blocks[20];
    for (int i = 0; i < 20; i++) {
        blocks[i] = block(pool, 10000, 5000);
        memset((void *)(uintptr_t)blocks[i], i + 1, 10000);
    }
    assert_int_equal(vmm_rig_stats(pool).allocations, 20);
    /* A KV cache grows in one call, at the same address, with its contents. */
    uint64_t cache = block(pool, 1000, 8 * RIG_PAGE);
    for (uint64_t bytes = 1000; bytes <= 8 * RIG_PAGE; bytes += 30000) {
        assert_int_equal(pllm_vmm_block_grow(pool, cache, bytes), PLLM_OK);
        memset((void *)(uintptr_t)(cache + bytes - 1000), 77, 1000);
        assert_int_equal(((unsigned char *)(uintptr_t)cache)[0], 77);
        assert_int_equal(vmm_rig_stats(pool).allocated_bytes, 20 * 10000 + bytes);
    }
    for (int i = 0; i < 20; i++) {
        vmm_rig_all(pool, blocks[i] - pllm_vmm_base(pool), 10000, (unsigned char)(i + 1));
        assert_int_equal(pllm_vmm_block_free(pool, blocks[i]), PLLM_OK);
    }
    assert_int_equal(pllm_vmm_block_free(pool, cache), PLLM_OK);
    assert_int_equal(vmm_rig_physical(&rig), 0);
    assert_int_equal(vmm_rig_stats(pool).free_run_bytes, 64 * RIG_PAGE);
    vmm_rig_close(&rig);
}

/* All that a failed call must leave as it was. */
typedef struct picture {
    pllm_vmm_pool_stats stats;
    uint64_t physical;
    int64_t live;
} picture;

static picture look(const vmm_rig *rig, pllm_vmm_pool *pool)
{
    picture seen = {.stats = vmm_rig_stats(pool),
                    .physical = vmm_rig_physical(rig),
                    .live = pllm_faulty_device_live(rig->device)};
    return seen;
}

/* Fails each device call of an allocation of ten pages in turn; returns how many there are. */
static uint64_t fail_each(vmm_rig *rig, pllm_vmm_pool *pool)
{
    picture before = look(rig, pool);
    for (uint64_t n = 0;; n++) {
        pllm_faulty_device_arm(rig->device, n);
        int status = pllm_vmm_allocate(pool, 5 * RIG_PAGE, 10 * RIG_PAGE, NULL);
        pllm_faulty_device_arm(rig->device, UINT64_MAX);
        if (status == PLLM_OK) return n;
        picture after = look(rig, pool);
        assert_memory_equal(&before, &after, sizeof before);
    }
}

/* 3. A failure at page k left the pages before it mapped. */
static void defect_03_a_failed_allocation_leaves_no_page_behind(void **state)
{
    vmm_rig rig;
    vmm_rig_open(&rig, KIND(state), 32, 32);
    pllm_vmm_pool *plain = vmm_rig_model(&rig, "plain", 32, NULL);
    allocate(plain, 4 * RIG_PAGE + 100, RIG_PAGE - 200); /* around it: shares no byte, no page */
    allocate(plain, 15 * RIG_PAGE, 1);
    assert_int_equal(fail_each(&rig, plain), 10 + 1); /* chunks, and the run of them */
    assert_int_equal(vmm_rig_physical(&rig), 12);
    pllm_vmm_unregister(plain);
    pllm_vmm_pool_options options = {.kept_bytes = PLLM_UNLIMITED, .zero_on_reuse = 1};
    pllm_vmm_pool *pool = vmm_rig_model(&rig, "model", 32, &options);
    allocate(pool, 15 * RIG_PAGE, 10 * RIG_PAGE);
    assert_int_equal(pllm_vmm_deallocate(pool, 15 * RIG_PAGE, 10 * RIG_PAGE), PLLM_OK);
    assert_int_equal(fail_each(&rig, pool), 3); /* a run, zeroed, waited for */
    assert_int_equal(vmm_rig_physical(&rig), 10);
    /* Where the limit is what fails, too. */
    assert_int_equal(pllm_vmm_set_limit(rig.vmm, 24 * RIG_PAGE), PLLM_OK);
    picture before = look(&rig, pool);
    vmm_rig_refused(pllm_vmm_allocate(pool, 15 * RIG_PAGE, 15 * RIG_PAGE, NULL), PLLM_ENODEVMEM,
                    "more do not fit");
    picture after = look(&rig, pool);
    assert_memory_equal(&before, &after, sizeof before);
    vmm_rig_close(&rig);
}

/* 4. Where mapping worked and giving access failed, the page could never be mapped again. */
static void defect_04_a_page_without_access_can_be_allocated_again(void **state)
{
    vmm_rig rig;
    vmm_rig_open(&rig, KIND(state), 8, 8);
    pllm_vmm_pool *pool = vmm_rig_model(&rig, "model", 8, NULL);
    picture before = look(&rig, pool);
    if (rig.fake) {
        rig.fake->fail_call = "cuMemSetAccess";
        rig.fake->fail_code = 999;
    } else {
        pllm_faulty_device_arm(rig.device, 4); /* the map, after four chunks */
    }
    assert_int_equal(pllm_vmm_allocate(pool, 0, 4 * RIG_PAGE, NULL), PLLM_EDEVICE);
    picture after = look(&rig, pool);
    assert_memory_equal(&before, &after, sizeof before);
    for (uint64_t page = 0; page < 4; page++)
        assert_int_equal(pllm_vmm_is_mapped(pool, page * RIG_PAGE, 1), 0);
    allocate(pool, 0, 4 * RIG_PAGE);
    vmm_rig_fill(pool, 0, 4 * RIG_PAGE, 1);
    vmm_rig_close(&rig);
}

/* 5. An unmapping that failed half way had freed pages and lowered no counter. */
static void defect_05_a_failed_unmapping_keeps_the_count_true(void **state)
{
    vmm_rig rig;
    vmm_rig_open(&rig, KIND(state), 8, 8);
    pllm_vmm_pool *pool = vmm_rig_model(&rig, "model", 8, NULL);
    allocate(pool, 0, 6 * RIG_PAGE);
    if (rig.fake) { /* the third one says that it failed */
        rig.fake->fail_call = "cuMemUnmap";
        rig.fake->fail_code = 1;
        rig.fake->fail_at = 2;
    }
    assert_int_equal(pllm_vmm_deallocate(pool, RIG_PAGE, 4 * RIG_PAGE), PLLM_OK);
    assert_int_equal(vmm_rig_physical(&rig), 2);
    assert_int_equal(vmm_rig_stats(pool).mapped_bytes, 2 * RIG_PAGE);
    assert_int_equal(pllm_faulty_device_live_of(rig.device, PLLM_FAULTY_CHUNK), 2);
    allocate(pool, RIG_PAGE, 4 * RIG_PAGE);
    assert_int_equal(vmm_rig_physical(&rig), 6);
    /* A range of which a part is not allocated is refused as a whole. */
    vmm_rig_refused(pllm_vmm_deallocate(pool, 4 * RIG_PAGE, 3 * RIG_PAGE), PLLM_EINVAL,
                    "are not allocated");
    assert_int_equal(vmm_rig_physical(&rig), 6);
    vmm_rig_close(&rig);
}

/* 6. The counter took sizes rounded up for pages: two pages freed, one credited. */
static void defect_06_physical_use_is_counted_in_pages_that_are_backed(void **state)
{
    vmm_rig rig;
    vmm_rig_open(&rig, KIND(state), 16, 16);
    pllm_vmm_pool *pool = vmm_rig_model(&rig, "model", 16, NULL);
    allocate(pool, RIG_PAGE / 2, RIG_PAGE); /* a page's bytes, over two pages */
    assert_int_equal(vmm_rig_physical(&rig), 2);
    allocate(pool, 3 * RIG_PAGE - 1, RIG_PAGE + 2); /* three */
    assert_int_equal(vmm_rig_physical(&rig), 5);
    assert_int_equal(vmm_rig_stats(pool).allocated_bytes, 2 * RIG_PAGE + 2);
    assert_int_equal(vmm_rig_stats(pool).mapped_bytes, 5 * RIG_PAGE);
    assert_int_equal(pllm_faulty_device_live_of(rig.device, PLLM_FAULTY_CHUNK), 5);
    assert_int_equal(pllm_vmm_deallocate(pool, RIG_PAGE / 2, RIG_PAGE), PLLM_OK);
    assert_int_equal(vmm_rig_physical(&rig), 3);
    assert_int_equal(pllm_vmm_deallocate(pool, 3 * RIG_PAGE, RIG_PAGE), PLLM_OK); /* its middle */
    assert_int_equal(vmm_rig_physical(&rig), 2);
    assert_int_equal(pllm_vmm_deallocate(pool, 3 * RIG_PAGE - 1, 1), PLLM_OK);
    assert_int_equal(pllm_vmm_deallocate(pool, 4 * RIG_PAGE, 1), PLLM_OK);
    assert_int_equal(vmm_rig_physical(&rig), 0);
    assert_int_equal(vmm_rig_stats(pool).allocated_bytes, 0);
    vmm_rig_close(&rig);
}

/* 7. Freeing a part of a page took its neighbours' bytes with it; unaligned neighbours could not
 * both be there. */
static void defect_07_sub_page_free_spares_the_neighbour(void **state)
{
    vmm_rig rig;
    vmm_rig_open(&rig, KIND(state), 16, 16);
    pllm_vmm_pool *pool = vmm_rig_model(&rig, "model", 16, NULL);
    uint64_t third = RIG_PAGE / 3;
    for (uint64_t i = 0; i < 9; i++) {
        allocate(pool, i * third, third);
        vmm_rig_fill(pool, i * third, third, (unsigned char)(i + 1));
    }
    assert_int_equal(vmm_rig_physical(&rig), 3);
    for (uint64_t i = 0; i < 9; i += 2)
        assert_int_equal(pllm_vmm_deallocate(pool, i * third, third), PLLM_OK);
    for (uint64_t i = 1; i < 9; i += 2) {
        assert_int_equal(pllm_vmm_is_mapped(pool, i * third, third), 1);
        assert_int_equal(pllm_vmm_is_mapped(pool, i * third - 1, third), 0);
        vmm_rig_all(pool, i * third, third, (unsigned char)(i + 1));
    }
    assert_int_equal(vmm_rig_physical(&rig), 3);
    vmm_rig_refused(pllm_vmm_allocate(pool, third - 1, 2, NULL), PLLM_EEXIST, "are allocated");
    for (uint64_t i = 1; i < 9; i += 2)
        assert_int_equal(pllm_vmm_deallocate(pool, i * third, third), PLLM_OK);
    assert_int_equal(vmm_rig_physical(&rig), 0);
    vmm_rig_close(&rig);
}

/* 8. offset + size and its like wrapped round, and passed the checks. */
static void defect_08_sums_that_wrap_are_refused(void **state)
{
    vmm_rig rig;
    vmm_rig_open(&rig, KIND(state), 16, 16);
    pllm_vmm_pool *pool = vmm_rig_model(&rig, "model", 16, NULL);
    allocate(pool, 0, RIG_PAGE);
    picture before = look(&rig, pool);
    static const uint64_t ranges[][2] = {
        {UINT64_MAX, 1},        {UINT64_MAX, 2},
        {1, UINT64_MAX},        {RIG_PAGE, UINT64_MAX - RIG_PAGE + 2},
        {0, UINT64_MAX},        {16 * RIG_PAGE, 1},
        {0, 16 * RIG_PAGE + 1}, {UINT64_MAX - 5, 6}};
    for (uint32_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
        uint64_t offset = ranges[i][0], bytes = ranges[i][1], address = 7;
        vmm_rig_refused(pllm_vmm_allocate(pool, offset, bytes, &address), PLLM_EINVAL, "capacity");
        assert_int_equal(address, 0);
        vmm_rig_refused(pllm_vmm_deallocate(pool, offset, bytes), PLLM_EINVAL, "capacity");
        vmm_rig_refused(pllm_vmm_is_mapped(pool, offset, bytes), PLLM_EINVAL, "capacity");
        pllm_vmm_share share;
        vmm_rig_refused(pllm_vmm_export(pool, offset, bytes, 0, &share, NULL, 0), PLLM_EINVAL,
                        "capacity");
        pllm_vmm_block_options options = {
            .struct_bytes = sizeof options, .bytes = bytes, .room_bytes = offset ? offset : 1};
        assert_int_not_equal(pllm_vmm_block_allocate(pool, &options, &address), PLLM_OK);
    }
    uint64_t at = block(pool, 100, 0);
    vmm_rig_refused(pllm_vmm_block_grow(pool, at, UINT64_MAX), PLLM_EINVAL, "a block of");
    vmm_rig_refused(pllm_vmm_block_free(pool, at - 1), PLLM_EINVAL, "no block begins");
    vmm_rig_refused(pllm_vmm_block_free(pool, pllm_vmm_base(pool) - 1), PLLM_EINVAL, "no block");
    assert_int_equal(pllm_vmm_block_free(pool, at), PLLM_OK);
    picture after = look(&rig, pool);
    before.stats.mapped_peak_bytes = after.stats.mapped_peak_bytes;
    before.stats.created_pages = after.stats.created_pages;
    assert_memory_equal(&before, &after, sizeof before);
    pllm_vmm_pool_options options = {.struct_bytes = sizeof options, .page_bytes = RIG_PAGE};
    static const uint64_t capacities[] = {UINT64_MAX, UINT64_MAX - RIG_PAGE + 2, UINT64_MAX / 2};
    for (uint32_t i = 0; i < 3; i++) {
        options.capacity_bytes = capacities[i];
        assert_int_not_equal(pllm_vmm_register(rig.vmm, "large", &options, &pool), PLLM_OK);
        assert_null(pool);
    }
    vmm_rig_close(&rig);
}

/* 9. No bytes gave an address that was not mapped, or mapped a page. */
static void defect_09_no_bytes_are_refused_with_a_sentence(void **state)
{
    vmm_rig rig;
    vmm_rig_open(&rig, KIND(state), 16, 16);
    pllm_vmm_pool *pool = vmm_rig_model(&rig, "model", 16, NULL);
    uint64_t address = 7;
    vmm_rig_refused(pllm_vmm_allocate(pool, 0, 0, &address), PLLM_EINVAL, "no bytes");
    assert_int_equal(address, 0);
    vmm_rig_refused(pllm_vmm_allocate(pool, 100, 0, NULL), PLLM_EINVAL, "no bytes");
    vmm_rig_refused(pllm_vmm_is_mapped(pool, 0, 0), PLLM_EINVAL, "no bytes");
    vmm_rig_refused(pllm_vmm_deallocate(pool, 0, 0), PLLM_EINVAL, "no bytes");
    vmm_rig_refused(pllm_vmm_deallocate_after(pool, 0, 0, rig.stream), PLLM_EINVAL, "no bytes");
    pllm_vmm_block_options none = {.struct_bytes = sizeof none, .room_bytes = RIG_PAGE};
    vmm_rig_refused(pllm_vmm_block_allocate(pool, &none, &address), PLLM_EINVAL, "0 bytes");
    uint64_t at = block(pool, 1, 0);
    vmm_rig_refused(pllm_vmm_block_grow(pool, at, 0), PLLM_EINVAL, "0 bytes");
    assert_int_equal(vmm_rig_physical(&rig), 1);
    pllm_vmm_pool_options empty = {.struct_bytes = sizeof empty};
    vmm_rig_refused(pllm_vmm_register(rig.vmm, "empty", &empty, &pool), PLLM_EINVAL, "0 bytes");
    vmm_rig_refused(pllm_vmm_set_limit(rig.vmm, 0), PLLM_EINVAL, "no bytes");
    vmm_rig_close(&rig);
}

/* 10. A page size that the driver can't map was found out at the first allocation. */
static void defect_10_page_sizes_are_checked_when_a_model_registers(void **state)
{
    vmm_rig rig;
    vmm_rig_open(&rig, KIND(state), 16, 16);
    pllm_vmm_pool_options options = {.struct_bytes = sizeof options, .capacity_bytes = 1};
    pllm_vmm_pool *pool;
    static const uint64_t bad[] = {
        1, 4096, RIG_PAGE / 2, RIG_PAGE - 1, RIG_PAGE + 1, RIG_PAGE * 3 / 2, (uint64_t)2 << 30};
    for (uint32_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        options.page_bytes = bad[i];
        vmm_rig_refused(pllm_vmm_register(rig.vmm, "model", &options, &pool), PLLM_EINVAL,
                        "at least 65536 bytes");
    }
    options.page_bytes = 3 * RIG_PAGE;
    int status = pllm_vmm_register(rig.vmm, "three", &options, &pool);
    if (rig.kind == RIG_HOST)
        vmm_rig_refused(status, PLLM_EINVAL, "powers of two");
    else
        assert_int_equal(status, PLLM_OK);
    options.page_bytes = 2 * RIG_PAGE;
    assert_int_equal(pllm_vmm_register(rig.vmm, "two", &options, &pool), PLLM_OK);
    assert_int_equal(pllm_vmm_page_bytes(pool), 2 * RIG_PAGE);
    assert_int_equal(pllm_vmm_capacity(pool), 2 * RIG_PAGE);
    allocate(pool, 0, 1);
    options.page_bytes = 0; /* what the device likes */
    assert_int_equal(pllm_vmm_register(rig.vmm, "default", &options, &pool), PLLM_OK);
    pllm_device_info info;
    assert_int_equal(rig.device->ops->info(rig.device, &info), PLLM_OK);
    assert_int_equal(pllm_vmm_page_bytes(pool), info.chunk_bytes);
    vmm_rig_close(&rig);
}

static uint64_t driver_calls(vmm_rig *rig, const char *call, pllm_vmm_pool *pool, uint64_t pages)
{
    rig->fake->fail_call = call;
    rig->fake->fail_code = 999;
    rig->fake->fail_at = UINT64_MAX; /* only counted */
    rig->fake->calls = 0;
    allocate(pool, 0, pages * RIG_PAGE);
    uint64_t calls = rig->fake->calls;
    assert_int_equal(pllm_vmm_deallocate(pool, 0, pages * RIG_PAGE), PLLM_OK);
    return calls;
}

/* 11. The device was opened anew for each page. */
static void defect_11_no_page_opens_the_device(void **state)
{
    vmm_rig rig;
    vmm_rig_open(&rig, KIND(state), 64, 64);
    pllm_vmm_pool *pool = vmm_rig_model(&rig, "model", 64, NULL);
    static const char *const calls[] = {"cuInit",           "cuDeviceGet",
                                        "cuDeviceGetCount", "cuDevicePrimaryCtxRetain",
                                        "cuDeviceTotalMem", "cuMemGetAllocationGranularity",
                                        "cuStreamCreate"};
    for (uint32_t i = 0; i < sizeof calls / sizeof calls[0]; i++)
        assert_int_equal(driver_calls(&rig, calls[i], pool, 64), 0);
    assert_int_equal(driver_calls(&rig, "cuMemCreate", pool, 64), 64);  /* counting does count */
    assert_true(driver_calls(&rig, "cuCtxSetCurrent", pool, 64) <= 70); /* once a device call */
    vmm_rig_close(&rig);
}

/* 12. Three driver calls a page, whatever had been there before: 1,536 a GiB. Here 64 pages of a
 * size to choose (16 MiB on a GPU) are 64 mappings and one access; on any device one call. */
static void defect_12_a_run_of_kept_pages_is_one_device_call(void **state)
{
    vmm_rig rig;
    vmm_rig_open(&rig, KIND(state), 64, 64);
    pllm_vmm_pool_options options = {.kept_bytes = PLLM_UNLIMITED};
    pllm_vmm_pool *pool = vmm_rig_model(&rig, "model", 64, &options);
    allocate(pool, 0, 64 * RIG_PAGE);
    assert_int_equal(pllm_vmm_deallocate(pool, 0, 64 * RIG_PAGE), PLLM_OK);
    uint64_t before = pllm_faulty_device_calls(rig.device);
    allocate(pool, 0, 64 * RIG_PAGE);
    assert_int_equal(pllm_faulty_device_calls(rig.device) - before, 1);
    assert_int_equal(pllm_vmm_deallocate(pool, 0, 64 * RIG_PAGE), PLLM_OK);
    if (rig.fake) {
        assert_int_equal(driver_calls(&rig, "cuMemSetAccess", pool, 64), 1);
        assert_int_equal(driver_calls(&rig, "cuMemMap", pool, 64), 64);
        assert_int_equal(driver_calls(&rig, "cuMemCreate", pool, 64), 0);
        assert_true(driver_calls(&rig, NULL, pool, 64) <= 64 + 4);
    }
    assert_int_equal(vmm_rig_stats(pool).created_pages, 64);
    vmm_rig_close(&rig);
}

typedef struct gate {
    pthread_mutex_t lock;
} gate;

static void wait_for_gate(void *user)
{
    gate *shut = user;
    pthread_mutex_lock(&shut->lock);
    pthread_mutex_unlock(&shut->lock);
}

/* 13. What kernels still used was unmapped under them. */
static void defect_13_memory_in_use_by_a_stream_stays_until_it_is_done(void **state)
{
    vmm_rig rig;
    vmm_rig_open(&rig, KIND(state), 16, 16);
    const pllm_device_ops *ops = rig.device->ops;
    pllm_vmm_pool *pool = vmm_rig_model(&rig, "model", 16, NULL);
    gate shut = {PTHREAD_MUTEX_INITIALIZER};
    pllm_stream *stream;
    assert_int_equal(ops->stream_open(rig.device, &stream), PLLM_OK);
    allocate(pool, 0, 3 * RIG_PAGE);
    if (rig.kind == RIG_HOST) { /* the stream stops here until the gate is opened */
        pthread_mutex_lock(&shut.lock);
        assert_int_equal(ops->stream_call(rig.device, stream, wait_for_gate, &shut), PLLM_OK);
    }
    /* Work that faults, or is refused, where its memory has gone. */
    int copies = rig.kind == RIG_HOST ? 1 : 50; /* late work: one a question */
    for (int i = 0; i < copies; i++)
        assert_int_equal(ops->fill(rig.device, stream, pllm_vmm_base(pool), 3 * RIG_PAGE, 9),
                         PLLM_OK);
    assert_int_equal(pllm_vmm_deallocate_after(pool, 100, 3 * RIG_PAGE - 100, stream), PLLM_OK);
    assert_int_equal(vmm_rig_physical(&rig), 3);
    assert_int_equal(vmm_rig_stats(pool).pending, 1);
    assert_int_equal(vmm_rig_stats(pool).pending_bytes, 3 * RIG_PAGE - 100);
    assert_int_equal(pllm_vmm_is_mapped(pool, 100, 1), 0);
    assert_int_equal(pllm_vmm_is_mapped(pool, 0, 100), 1);
    vmm_rig_refused(pllm_vmm_allocate(pool, 2 * RIG_PAGE, RIG_PAGE, NULL), PLLM_EBUSY,
                    "wait for a stream");
    vmm_rig_refused(pllm_vmm_deallocate(pool, RIG_PAGE, RIG_PAGE), PLLM_EINVAL, "not allocated");
    uint64_t neighbour = block(pool, RIG_PAGE, 0); /* goes elsewhere */
    assert_int_equal(neighbour, pllm_vmm_base(pool) + 3 * RIG_PAGE);
    assert_int_equal(pllm_vmm_block_free_after(pool, neighbour, stream), PLLM_OK);
    assert_int_equal(pllm_vmm_poll(rig.vmm), 2);
    if (rig.kind == RIG_HOST) pthread_mutex_unlock(&shut.lock);
    ops->stream_close(rig.device, stream); /* lets its work finish */
    assert_int_equal(pllm_vmm_poll(rig.vmm), 0);
    assert_int_equal(vmm_rig_physical(&rig), 1);
    vmm_rig_all(pool, 0, 100, 9);
    allocate(pool, 100, 4 * RIG_PAGE);
    vmm_rig_close(&rig);
}

static sigjmp_buf faulted;

static void on_fault(int number)
{
    (void)number;
    siglongjmp(faulted, 1);
}

/* 1: touching the byte faulted. */
static int faults(volatile unsigned char *byte, int write)
{
    struct sigaction action = {.sa_handler = on_fault}, old_segv, old_bus;
    int result = 0;
    sigaction(SIGSEGV, &action, &old_segv);
    sigaction(SIGBUS, &action, &old_bus);
    if (sigsetjmp(faulted, 1))
        result = 1;
    else if (write)
        *byte = 1;
    else
        (void)*byte;
    sigaction(SIGSEGV, &old_segv, NULL);
    sigaction(SIGBUS, &old_bus, NULL);
    return result;
}

/* 14. Nothing behind what was not mapped, so that a stray read ended the context; and reused pages
 * showed what was there before. */
static void defect_14_stray_reads_get_zeros_where_asked_for(void **state)
{
    vmm_rig rig;
    vmm_rig_open(&rig, KIND(state), 16, 16);
    pllm_vmm_pool *plain = vmm_rig_model(&rig, "plain", 8, NULL);
    allocate(plain, 0, RIG_PAGE);
    assert_int_equal(faults(vmm_rig_bytes(plain, RIG_PAGE), 0), 1); /* as the header says */
    pllm_vmm_pool_options options = {.zero_behind = 1, .kept_bytes = PLLM_UNLIMITED};
    pllm_vmm_pool *pool = vmm_rig_model(&rig, "zeros", 8, &options);
    assert_int_equal(vmm_rig_physical(&rig), 2); /* the page of zeros is memory too */
    vmm_rig_all(pool, 0, 8 * RIG_PAGE, 0);
    allocate(pool, RIG_PAGE + 10, 2 * RIG_PAGE);
    vmm_rig_fill(pool, RIG_PAGE, 3 * RIG_PAGE, 5);
    vmm_rig_all(pool, 0, RIG_PAGE, 0);
    vmm_rig_all(pool, 4 * RIG_PAGE, 4 * RIG_PAGE, 0);
    assert_int_equal(faults(vmm_rig_bytes(pool, 5 * RIG_PAGE), 1), 1); /* never written */
    assert_int_equal(pllm_vmm_deallocate(pool, RIG_PAGE + 10, 2 * RIG_PAGE), PLLM_OK);
    vmm_rig_all(pool, 0, 8 * RIG_PAGE, 0);
    /* A failed allocation puts them back, too. */
    pllm_faulty_device_arm(rig.device, 2);
    assert_int_equal(pllm_vmm_allocate(pool, 0, 5 * RIG_PAGE, NULL), PLLM_EDEVICE);
    vmm_rig_all(pool, 0, 8 * RIG_PAGE, 0);
    allocate(pool, 0, 8 * RIG_PAGE);
    vmm_rig_fill(pool, 0, 8 * RIG_PAGE, 5);
    vmm_rig_close(&rig);
}

static void defect_14_reused_bytes_are_zero_where_asked_for(void **state)
{
    vmm_rig rig;
    vmm_rig_open(&rig, KIND(state), 16, 16);
    pllm_vmm_pool_options options = {
        .zero_on_reuse = 1, .kept_bytes = PLLM_UNLIMITED, .ahead_bytes = 2 * RIG_PAGE};
    pllm_vmm_pool *pool = vmm_rig_model(&rig, "model", 16, &options);
    allocate(pool, 0, 1000);
    vmm_rig_fill(pool, 0, 1000, 5);
    allocate(pool, 1000, 6 * RIG_PAGE);
    vmm_rig_all(pool, 1000, 6 * RIG_PAGE, 0);
    vmm_rig_fill(pool, 1000, 6 * RIG_PAGE, 5);
    /* Some pages go to the kept ones, some stay mapped ahead, one is shared. */
    assert_int_equal(pllm_vmm_deallocate(pool, 1000, 6 * RIG_PAGE), PLLM_OK);
    assert_int_equal(vmm_rig_stats(pool).ahead_bytes, 2 * RIG_PAGE);
    assert_int_equal(vmm_rig_stats(pool).kept_bytes, 4 * RIG_PAGE);
    allocate(pool, 1000, 6 * RIG_PAGE);
    vmm_rig_all(pool, 1000, 6 * RIG_PAGE, 0);
    vmm_rig_all(pool, 0, 1000, 5);
    assert_int_equal(vmm_rig_stats(pool).created_pages, 7);
    vmm_rig_close(&rig);
}

/* 15. No chunk could leave the process. */
static void defect_15_a_range_can_be_mapped_by_others(void **state)
{
    vmm_rig rig;
    vmm_rig_open(&rig, KIND(state), 16, 32);
    pllm_vmm_pool_options options = {.kept_bytes = PLLM_UNLIMITED};
    pllm_vmm_pool *pool = vmm_rig_model(&rig, "model", 16, &options);
    allocate(pool, RIG_PAGE / 2, 3 * RIG_PAGE);
    vmm_rig_fill(pool, RIG_PAGE / 2, 3 * RIG_PAGE, 3);
    pllm_vmm_share share;
    int descriptors[4];
    vmm_rig_refused(pllm_vmm_export(pool, RIG_PAGE / 2, 3 * RIG_PAGE, 0, &share, descriptors, 3),
                    PLLM_EINVAL, "4 are needed");
    assert_int_equal(share.page_count, 4);
    vmm_rig_refused(pllm_vmm_export(pool, 0, RIG_PAGE, 0, &share, descriptors, 4), PLLM_EINVAL,
                    "not all of");
    assert_int_equal(pllm_vmm_export(pool, RIG_PAGE / 2, 3 * RIG_PAGE, 1, &share, descriptors, 4),
                     PLLM_OK);
    pllm_vmm_import *import;
    const pllm_context *context = &rig.memory.context;
    assert_int_equal(pllm_vmm_import_open(context, rig.device, &share, descriptors, 1, &import),
                     PLLM_OK);
    for (int i = 0; i < 4; i++) close(descriptors[i]);
    unsigned char *seen = (unsigned char *)(uintptr_t)pllm_vmm_import_address(import);
    for (uint64_t i = 0; i < 3 * RIG_PAGE; i++) assert_int_equal(seen[i], 3);
    assert_int_equal(faults(seen, 1), 1); /* for reading only */
    vmm_rig_fill(pool, RIG_PAGE / 2, 3 * RIG_PAGE, 4);
    assert_int_equal(seen[3 * RIG_PAGE - 1], 4);
    /* What others may still read is never anybody else's. */
    assert_int_equal(pllm_vmm_deallocate(pool, RIG_PAGE / 2, 3 * RIG_PAGE), PLLM_OK);
    assert_int_equal(vmm_rig_stats(pool).kept_bytes, 0);
    allocate(pool, 0, 4 * RIG_PAGE);
    vmm_rig_fill(pool, 0, 4 * RIG_PAGE, 6);
    assert_int_not_equal(seen[RIG_PAGE], 6);
    pllm_vmm_import_close(import);
    share.bytes = 8 * RIG_PAGE;
    vmm_rig_refused(pllm_vmm_import_open(context, rig.device, &share, descriptors, 1, &import),
                    PLLM_EINVAL, "a share of");
    vmm_rig_close(&rig);
}

/* In a child: maps the range on a device of its own; 0 if all of it is the value. */
static int child_sees(vmm_rig_kind kind, const pllm_vmm_share *share, const int *descriptors,
                      unsigned char value)
{
    pllm_device *device;
    pllm_vmm_import *import;
    pllm_cuda_device_options cuda = {
        .struct_bytes = sizeof cuda, .library = RIG_LIBRARY, .nvml = RIG_LIBRARY};
    int status = kind == RIG_HOST ? pllm_device_open_host(NULL, NULL, &device)
                                  : pllm_device_open_cuda(NULL, &cuda, &device);
    if (status < 0) return 1;
    if (pllm_vmm_import_open(NULL, device, share, descriptors, 1, &import) < 0) return 2;
    const unsigned char *seen = (unsigned char *)(uintptr_t)pllm_vmm_import_address(import);
    for (uint64_t i = 0; i < share->bytes; i++)
        if (seen[i] != value) return 3;
    pllm_vmm_import_close(import);
    pllm_device_close(device);
    return 0;
}

static void defect_15_another_process_sees_the_range(void **state)
{
    vmm_rig rig;
    vmm_rig_open(&rig, KIND(state), 16, 16);
    pllm_vmm_pool *pool = vmm_rig_model(&rig, "model", 16, NULL);
    allocate(pool, 100, 2 * RIG_PAGE);
    vmm_rig_fill(pool, 100, 2 * RIG_PAGE, 42);
    pllm_vmm_share share;
    int descriptors[3], status;
    assert_int_equal(pllm_vmm_export(pool, 100, 2 * RIG_PAGE, 1, &share, descriptors, 3), PLLM_OK);
    pid_t child = fork();
    if (child == 0) _exit(child_sees(rig.kind, &share, descriptors, 42));
    assert_true(child > 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    for (int i = 0; i < 3; i++) close(descriptors[i]);
    vmm_rig_close(&rig);
}

/* 16. The budget was one integer: no minimum, no change while running, no taking back. */
static void defect_16_the_limit_is_real_and_shared(void **state)
{
    vmm_rig rig;
    vmm_rig_open(&rig, KIND(state), 10, 16);
    pllm_vmm_pool_options sure = {.minimum_bytes = 4 * RIG_PAGE};
    pllm_vmm_pool_options keeps = {.kept_bytes = PLLM_UNLIMITED, .ahead_bytes = RIG_PAGE};
    pllm_vmm_pool *first = vmm_rig_model(&rig, "first", 64, &keeps);
    pllm_vmm_pool *second = vmm_rig_model(&rig, "second", 64, &sure);
    vmm_rig_refused(pllm_vmm_allocate(first, 0, 7 * RIG_PAGE, NULL), PLLM_ENODEVMEM,
                    "model first"); /* 4 of 10 are the second's */
    allocate(first, 0, 6 * RIG_PAGE);
    allocate(second, 0, 4 * RIG_PAGE);
    vmm_rig_refused(pllm_vmm_allocate(second, 4 * RIG_PAGE, 1, NULL), PLLM_ENODEVMEM, "655360");
    /* What the first keeps is the second's as soon as it wants it. */
    assert_int_equal(pllm_vmm_deallocate(first, 0, 5 * RIG_PAGE), PLLM_OK);
    assert_int_equal(vmm_rig_physical(&rig), 10);
    allocate(second, 4 * RIG_PAGE, 3 * RIG_PAGE);
    assert_int_equal(vmm_rig_physical(&rig), 10);
    assert_int_equal(vmm_rig_stats(first).kept_bytes, 2 * RIG_PAGE);
    /* A lower limit takes what nobody uses, and then refuses. */
    assert_int_equal(pllm_vmm_set_limit(rig.vmm, 7 * RIG_PAGE), PLLM_OK);
    pllm_vmm_stats stats = {.struct_bytes = sizeof stats};
    assert_int_equal(pllm_vmm_stats_get(rig.vmm, &stats), PLLM_OK);
    assert_int_equal(stats.physical_bytes, 8 * RIG_PAGE);
    assert_int_equal(stats.excess_bytes, RIG_PAGE);
    vmm_rig_refused(pllm_vmm_allocate(first, 0, 1, NULL), PLLM_ENODEVMEM, "do not fit");
    assert_int_equal(pllm_vmm_deallocate(second, 0, 2 * RIG_PAGE), PLLM_OK);
    allocate(first, 0, RIG_PAGE);
    assert_int_equal(pllm_vmm_pool_set(first, 0, 2 * RIG_PAGE), PLLM_OK);
    assert_int_equal(pllm_vmm_set_limit(rig.vmm, 10 * RIG_PAGE), PLLM_OK);
    vmm_rig_refused(pllm_vmm_allocate(first, RIG_PAGE, 1, NULL), PLLM_ENODEVMEM, "do not fit");
    vmm_rig_refused(pllm_vmm_set_limit(rig.vmm, 3 * RIG_PAGE), PLLM_ENODEVMEM, "minimums");
    vmm_rig_close(&rig);
}

/* 17. Fragmentation was the free share, and compact did nothing. */
static void defect_17_compact_gives_back_and_fragmentation_is_of_runs(void **state)
{
    vmm_rig rig;
    vmm_rig_open(&rig, KIND(state), 16, 16);
    pllm_vmm_pool_options options = {.kept_bytes = PLLM_UNLIMITED, .ahead_bytes = 2 * RIG_PAGE};
    pllm_vmm_pool *pool = vmm_rig_model(&rig, "model", 16, &options);
    assert_true(vmm_rig_stats(pool).fragmentation == 0); /* empty: one run */
    for (uint64_t page = 0; page < 16; page += 4) allocate(pool, page * RIG_PAGE, 2 * RIG_PAGE);
    assert_true(vmm_rig_stats(pool).fragmentation == 1 - 2.0 / 8);
    assert_int_equal(pllm_vmm_deallocate(pool, 4 * RIG_PAGE, 2 * RIG_PAGE), PLLM_OK);
    assert_true(vmm_rig_stats(pool).fragmentation == 1 - 6.0 / 10);
    pllm_vmm_poll(rig.vmm);
    assert_int_equal(vmm_rig_stats(pool).ahead_bytes, 6 * RIG_PAGE);
    assert_int_equal(pllm_vmm_deallocate(pool, 12 * RIG_PAGE, 2 * RIG_PAGE), PLLM_OK);
    assert_true(vmm_rig_stats(pool).kept_bytes + vmm_rig_stats(pool).ahead_bytes > 0);
    int64_t chunks = pllm_faulty_device_live_of(rig.device, PLLM_FAULTY_CHUNK);
    uint64_t freed, physical = vmm_rig_physical(&rig);
    pllm_vmm_compact(rig.vmm, &freed);
    assert_int_equal(freed, (physical - 4) * RIG_PAGE);
    assert_int_equal(vmm_rig_physical(&rig), 4);
    assert_int_equal(pllm_faulty_device_live_of(rig.device, PLLM_FAULTY_CHUNK), 4);
    assert_true(chunks > 4);
    pllm_vmm_poll(rig.vmm); /* nothing comes back by itself */
    assert_int_equal(vmm_rig_physical(&rig), 4);
    assert_int_equal(vmm_rig_stats(pool).ahead_bytes + vmm_rig_stats(pool).kept_bytes, 0);
    vmm_rig_close(&rig);
}

typedef struct worker {
    pllm_vmm_pool *own, *shared;
    unsigned char mark;
    uint64_t random;
} worker;

static void *work(void *argument)
{
    worker *self = argument;
    for (uint32_t step = 0; step < 200; step++) {
        self->random = self->random * 6364136223846793005u + 1442695040888963407u;
        uint64_t bytes = 1 + (self->random >> 33) % (2 * RIG_PAGE);
        pllm_vmm_pool *pool = self->random >> 63 ? self->own : self->shared;
        pllm_vmm_block_options options = {
            .struct_bytes = sizeof options, .bytes = bytes, .room_bytes = 4096};
        uint64_t address;
        if (pllm_vmm_block_allocate(pool, &options, &address) < 0) continue;
        memset((void *)(uintptr_t)address, self->mark, bytes);
        int grown = pllm_vmm_block_grow(pool, address, bytes + 4096) == PLLM_OK;
        if (grown) memset((void *)(uintptr_t)(address + bytes), self->mark, 4096);
        for (uint64_t i = 0; i < bytes + (grown ? 4096 : 0); i += 97)
            if (((unsigned char *)(uintptr_t)address)[i] != self->mark) return self;
        if (pllm_vmm_block_free(pool, address) < 0) return self;
        if (step % 16 == 0) pllm_vmm_pool_compact(pool, NULL);
    }
    return NULL;
}

/* 18. One caller at a time, no background work, a device by its number. */
static void defect_18_models_are_safe_from_many_threads(void **state)
{
    enum { THREADS = 4 };
    vmm_rig rig;
    vmm_rig_open(&rig, KIND(state), 24, 24);
    pllm_vmm_close(rig.vmm);
    pllm_vmm_options with_background = {.struct_bytes = sizeof with_background,
                                        .limit_bytes = 24 * RIG_PAGE};
    assert_int_equal(pllm_vmm_open(&rig.memory.context, rig.device, &with_background, &rig.vmm),
                     PLLM_OK);
    pllm_vmm_pool_options options = {.kept_bytes = 4 * RIG_PAGE, .ahead_bytes = RIG_PAGE};
    worker workers[THREADS];
    pthread_t threads[THREADS];
    pllm_vmm_pool *shared = vmm_rig_model(&rig, "shared", 32, &options);
    for (int i = 0; i < THREADS; i++) {
        char name[8] = {'m', (char)('0' + i)};
        workers[i] = (worker){vmm_rig_model(&rig, name, 32, &options), shared,
                              (unsigned char)(i + 1), (uint64_t)i + 1};
        assert_int_equal(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        void *wrong;
        pthread_join(threads[i], &wrong);
        assert_null(wrong);
        assert_int_equal(vmm_rig_stats(workers[i].own).allocated_bytes, 0);
    }
    assert_int_equal(vmm_rig_stats(shared).allocated_bytes, 0);
    vmm_rig_close(&rig);
}

/* 19. The tests built structs and ran nothing. This is the crate's own example, and runs. */
static void defect_19_two_models_share_a_limit_for_real(void **state)
{
    vmm_rig rig;
    vmm_rig_open(&rig, KIND(state), 32, 32);
    pllm_vmm_pool *llama = vmm_rig_model(&rig, "llama-7b", 64 << 4, NULL), *found;
    pllm_vmm_pool *gpt2 = vmm_rig_model(&rig, "gpt2", 32 << 4, NULL);
    pllm_vmm_pool_options options = {.struct_bytes = sizeof options, .capacity_bytes = 1};
    vmm_rig_refused(pllm_vmm_register(rig.vmm, "gpt2", &options, &found), PLLM_EEXIST, "gpt2");
    assert_int_equal(pllm_vmm_find(rig.vmm, "llama-7b", &found), PLLM_OK);
    assert_ptr_equal(found, llama);
    vmm_rig_refused(pllm_vmm_find(rig.vmm, "nobody", &found), PLLM_ENOTFOUND, "nobody");
    for (uint64_t round = 0; round < 3; round++) {
        allocate(llama, round * 20 * RIG_PAGE, 20 * RIG_PAGE);
        vmm_rig_fill(llama, round * 20 * RIG_PAGE, 20 * RIG_PAGE, 1);
        vmm_rig_refused(pllm_vmm_allocate(gpt2, 0, 13 * RIG_PAGE, NULL), PLLM_ENODEVMEM, "gpt2");
        allocate(gpt2, 0, 12 * RIG_PAGE);
        vmm_rig_fill(gpt2, 0, 12 * RIG_PAGE, 2);
        vmm_rig_all(llama, round * 20 * RIG_PAGE, 20 * RIG_PAGE, 1);
        assert_int_equal(pllm_vmm_deallocate(llama, round * 20 * RIG_PAGE, 20 * RIG_PAGE), PLLM_OK);
        vmm_rig_all(gpt2, 0, 12 * RIG_PAGE, 2);
        assert_int_equal(pllm_vmm_deallocate(gpt2, 0, 12 * RIG_PAGE), PLLM_OK);
    }
    pllm_vmm_pool_stats list[1] = {{.struct_bytes = sizeof list[0]}};
    uint32_t count;
    assert_int_equal(pllm_vmm_list(rig.vmm, list, 1, &count), PLLM_OK);
    assert_int_equal(count, 2);
    assert_string_equal(list[0].name, "llama-7b");
    vmm_rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        ON_BOTH(defect_01_unregistering_gives_all_memory_back),
        ON_BOTH(defect_02_a_model_allocates_any_number_of_times_and_grows),
        ON_BOTH(defect_03_a_failed_allocation_leaves_no_page_behind),
        ON_BOTH(defect_04_a_page_without_access_can_be_allocated_again),
        ON_BOTH(defect_05_a_failed_unmapping_keeps_the_count_true),
        ON_BOTH(defect_06_physical_use_is_counted_in_pages_that_are_backed),
        ON_BOTH(defect_07_sub_page_free_spares_the_neighbour),
        ON_BOTH(defect_08_sums_that_wrap_are_refused),
        ON_BOTH(defect_09_no_bytes_are_refused_with_a_sentence),
        ON_BOTH(defect_10_page_sizes_are_checked_when_a_model_registers),
        ON_CUDA(defect_11_no_page_opens_the_device),
        ON_BOTH(defect_12_a_run_of_kept_pages_is_one_device_call),
        ON_HOST(defect_13_memory_in_use_by_a_stream_stays_until_it_is_done),
        ON_CUDA_LATE(defect_13_memory_in_use_by_a_stream_stays_until_it_is_done),
        ON_BOTH(defect_14_stray_reads_get_zeros_where_asked_for),
        ON_BOTH(defect_14_reused_bytes_are_zero_where_asked_for),
        ON_BOTH(defect_15_a_range_can_be_mapped_by_others),
        ON_BOTH(defect_15_another_process_sees_the_range),
        ON_BOTH(defect_16_the_limit_is_real_and_shared),
        ON_BOTH(defect_17_compact_gives_back_and_fragmentation_is_of_runs),
        ON_BOTH(defect_18_models_are_safe_from_many_threads),
        ON_BOTH(defect_19_two_models_share_a_limit_for_real),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
