/* Elastic pools under many threads at once: blocks and placed ranges in a shared pool, given back
 * at once or behind a stream, while others change limits, list, compact, register and unregister,
 * and the background maps ahead. Each thread knows its own bytes by their mark; at the end nothing
 * is left. What a data race, a lost page or a page of two owners would break. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>
#include <cmocka.h>
#include "vmm_rig.h"

#define KIND(state) (*(vmm_rig_kind *)*(state))
enum { WORKERS = 4, STEPS = 400, PAGES = 64 };

typedef struct shop {
    vmm_rig *rig;
    pllm_vmm_pool *pool;
    atomic_uint busy; /* workers that are not done */
} shop;

typedef struct worker {
    shop *shop;
    pllm_stream *stream;
    unsigned char mark;
    uint64_t random;
    uint32_t done, refused;
    const char *wrong;
} worker;

static uint64_t draw(worker *w, uint64_t below)
{
    w->random = w->random * 6364136223846793005u + 1442695040888963407u;
    return (w->random >> 33) % below;
}

static int holds(const worker *w, uint64_t address, uint64_t bytes)
{
    const unsigned char *at = (const unsigned char *)(uintptr_t)address;
    for (uint64_t i = 0; i < bytes; i += 61)
        if (at[i] != w->mark) return 0;
    return at[bytes - 1] == w->mark;
}

static void mark(const worker *w, uint64_t address, uint64_t bytes)
{
    memset((void *)(uintptr_t)address, w->mark, bytes);
}

/* The stream writes to it once more: its memory may not go before that. */
static int late_work(worker *w, uint64_t address, uint64_t bytes)
{
    pllm_device *device = w->shop->rig->device;
    return device->ops->fill(device, w->stream, address, bytes, w->mark);
}

static const char *use_block(worker *w)
{
    pllm_vmm_pool *pool = w->shop->pool;
    pllm_vmm_block_options options = {
        .struct_bytes = sizeof options, .bytes = 1 + draw(w, 2 * RIG_PAGE), .room_bytes = 3000};
    uint64_t address, bytes = options.bytes;
    if (pllm_vmm_block_allocate(pool, &options, &address) < 0) return w->refused++, NULL;
    mark(w, address, bytes);
    for (int i = 0; i < 3; i++) {
        uint64_t wanted = bytes + draw(w, 4000);
        if (pllm_vmm_block_grow(pool, address, wanted) < 0) break;
        mark(w, address + bytes, wanted - bytes);
        bytes = wanted;
    }
    if (!holds(w, address, bytes)) return "a block holds what others wrote";
    if (bytes > 1 && pllm_vmm_block_grow(pool, address, bytes = bytes / 2) < 0)
        return "a block could not shrink";
    if (!holds(w, address, bytes)) return "a block lost bytes when it shrank";
    w->done++;
    if (draw(w, 2)) return pllm_vmm_block_free(pool, address) < 0 ? "block_free" : NULL;
    if (late_work(w, address, bytes) < 0) return "work on a block was refused";
    return pllm_vmm_block_free_after(pool, address, w->stream) < 0 ? "block_free_after" : NULL;
}

static const char *use_place(worker *w)
{
    pllm_vmm_pool *pool = w->shop->pool;
    uint64_t bytes = 1 + draw(w, 3 * RIG_PAGE), offset = draw(w, PAGES * RIG_PAGE - bytes), address;
    if (pllm_vmm_allocate(pool, offset, bytes, &address) < 0) return w->refused++, NULL;
    mark(w, address, bytes);
    if (pllm_vmm_is_mapped(pool, offset, bytes) != 1) return "an allocation is not mapped";
    if (!holds(w, address, bytes)) return "an allocation holds what others wrote";
    w->done++;
    if (draw(w, 2)) return pllm_vmm_deallocate(pool, offset, bytes) < 0 ? "deallocate" : NULL;
    if (late_work(w, address, bytes) < 0) return "work on an allocation was refused";
    return pllm_vmm_deallocate_after(pool, offset, bytes, w->stream) < 0 ? "deallocate_after"
                                                                         : NULL;
}

static void *work(void *argument)
{
    worker *w = argument;
    for (uint32_t step = 0; step < STEPS && !w->wrong; step++)
        w->wrong = draw(w, 2) ? use_block(w) : use_place(w);
    atomic_fetch_sub(&w->shop->busy, 1);
    return NULL;
}

/* Whatever else may happen to a vmm at the same time. */
static void meddle(shop *s)
{
    pllm_vmm *vmm = s->rig->vmm;
    pllm_vmm_pool_options options = {
        .minimum_bytes = 2 * RIG_PAGE, .kept_bytes = 2 * RIG_PAGE, .ahead_bytes = RIG_PAGE};
    pllm_vmm_pool_stats list[4] = {{.struct_bytes = sizeof list[0]}};
    pllm_vmm_stats all = {.struct_bytes = sizeof all};
    uint32_t count;
    for (uint64_t round = 0; atomic_load(&s->busy) > 0; round++) {
        pllm_vmm_pool *guest = vmm_rig_model(s->rig, "guest", 8, &options), *found;
        /* Where the limit sank below what the others have, even a minimum has to wait. */
        int status = pllm_vmm_allocate(guest, round % 4 * RIG_PAGE, RIG_PAGE, NULL);
        assert_true(status == PLLM_OK || status == PLLM_ENODEVMEM);
        if (status == PLLM_OK) vmm_rig_fill(guest, round % 4 * RIG_PAGE, RIG_PAGE, 200);
        assert_int_equal(pllm_vmm_set_limit(vmm, (12 + round % 12) * RIG_PAGE), PLLM_OK);
        assert_int_equal(pllm_vmm_find(vmm, "guest", &found), PLLM_OK);
        assert_int_equal(pllm_vmm_list(vmm, list, 4, &count), PLLM_OK);
        assert_int_equal(count, 2);
        (void)pllm_vmm_poll(vmm);
        vmm_rig_stats(s->pool); /* checks the invariants */
        if (round % 4 == 0) pllm_vmm_compact(vmm, NULL);
        if (status == PLLM_OK) vmm_rig_all(guest, round % 4 * RIG_PAGE, RIG_PAGE, 200);
        pllm_vmm_unregister(guest);
        assert_int_equal(pllm_vmm_stats_get(vmm, &all), PLLM_OK);
    }
}

static void many_threads_use_one_pool(void **state)
{
    vmm_rig rig;
    shop s = {.rig = &rig, .busy = WORKERS};
    worker workers[WORKERS];
    pthread_t threads[WORKERS];
    vmm_rig_open(&rig, KIND(state), 24, 64);
    pllm_vmm_close(rig.vmm);
    pllm_vmm_options with_background = {.struct_bytes = sizeof with_background,
                                        .limit_bytes = 24 * RIG_PAGE};
    assert_int_equal(pllm_vmm_open(&rig.memory.context, rig.device, &with_background, &rig.vmm),
                     PLLM_OK);
    pllm_vmm_pool_options options = {
        .kept_bytes = 4 * RIG_PAGE, .ahead_bytes = 2 * RIG_PAGE, .zero_on_reuse = 1};
    s.pool = vmm_rig_model(&rig, "shared", PAGES, &options);
    for (uint32_t i = 0; i < WORKERS; i++) {
        workers[i] = (worker){.shop = &s, .mark = (unsigned char)(i + 1), .random = i + 1};
        assert_int_equal(rig.device->ops->stream_open(rig.device, &workers[i].stream), PLLM_OK);
        assert_int_equal(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
    }
    meddle(&s);
    uint32_t done = 0;
    for (uint32_t i = 0; i < WORKERS; i++) {
        pthread_join(threads[i], NULL);
        if (workers[i].wrong) fail_msg("%s: %s", workers[i].wrong, pllm_last_error()->text);
        done += workers[i].done;
        rig.device->ops->stream_close(rig.device, workers[i].stream);
    }
    while (pllm_vmm_poll(rig.vmm) > 0) continue;
    assert_true(done > WORKERS); /* how many are refused depends on how late the streams are */
    assert_int_equal(vmm_rig_stats(s.pool).allocated_bytes, 0);
    assert_int_equal(vmm_rig_stats(s.pool).free_run_bytes, PAGES * RIG_PAGE);
    pllm_vmm_compact(rig.vmm, NULL);
    assert_int_equal(vmm_rig_physical(&rig), 0);
    vmm_rig_close(&rig);
}

static uint64_t now_ms(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000 + (uint64_t)time.tv_nsec / 1000000;
}

/* By itself, without a call of the pool: mapping ahead, and unmapping behind a stream. */
static void the_background_works_alone(void **state)
{
    vmm_rig rig;
    vmm_rig_open(&rig, KIND(state), 24, 64);
    pllm_vmm_close(rig.vmm);
    pllm_vmm_options options = {.struct_bytes = sizeof options};
    assert_int_equal(pllm_vmm_open(&rig.memory.context, rig.device, &options, &rig.vmm), PLLM_OK);
    pllm_vmm_pool_options model = {.ahead_bytes = 3 * RIG_PAGE};
    pllm_vmm_pool *pool = vmm_rig_model(&rig, "model", 16, &model);
    assert_int_equal(pllm_vmm_allocate(pool, 0, RIG_PAGE + 1, NULL), PLLM_OK);
    uint64_t deadline = now_ms() + 20000;
    while (vmm_rig_stats(pool).ahead_bytes < 3 * RIG_PAGE && now_ms() < deadline) continue;
    assert_int_equal(vmm_rig_stats(pool).ahead_bytes, 3 * RIG_PAGE);
    assert_int_equal(pllm_vmm_deallocate_after(pool, 0, RIG_PAGE + 1, rig.stream), PLLM_OK);
    while (vmm_rig_stats(pool).mapped_bytes > 0 && now_ms() < deadline) continue;
    assert_int_equal(vmm_rig_stats(pool).mapped_bytes, 0);
    assert_int_equal(vmm_rig_stats(pool).pending, 0);
    vmm_rig_close(&rig);
}

/* The background may be unmapping just then, and what it unmaps is kept: it has to go as well. */
static void compacting_leaves_nothing_behind_the_background(void **state)
{
    enum { ROUNDS = 100, MOST = 48 };
    vmm_rig rig;
    vmm_rig_open(&rig, KIND(state), 64, 64);
    pllm_vmm_close(rig.vmm);
    pllm_vmm_options options = {.struct_bytes = sizeof options};
    assert_int_equal(pllm_vmm_open(&rig.memory.context, rig.device, &options, &rig.vmm), PLLM_OK);
    pllm_vmm_pool_options keeps = {.kept_bytes = PLLM_UNLIMITED};
    pllm_vmm_pool *pool = vmm_rig_model(&rig, "model", MOST, &keeps);
    for (int round = 0; round < ROUNDS; round++) {
        assert_int_equal(pllm_vmm_allocate(pool, 0, MOST * RIG_PAGE, NULL), PLLM_OK);
        assert_int_equal(pllm_vmm_deallocate_after(pool, 0, MOST * RIG_PAGE, rig.stream), PLLM_OK);
        while (vmm_rig_stats(pool).pending > 0) continue; /* until it has begun */
        pllm_vmm_compact(rig.vmm, NULL);
        assert_int_equal(vmm_rig_physical(&rig), 0);
    }
    vmm_rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        ON_BOTH(many_threads_use_one_pool),
        ON_BOTH(the_background_works_alone),
        ON_CUDA_LATE(the_background_works_alone),
        ON_BOTH(compacting_leaves_nothing_behind_the_background),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
