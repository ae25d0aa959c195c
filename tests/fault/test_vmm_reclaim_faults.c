/* Every device call and every allocation fails once, for every N, while models ask each other to
 * give back. A call that fails has changed nothing but what callbacks freed, and whoever asks again
 * gets it. At the end nothing is alive. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdatomic.h>
#include <string.h>
#include <cmocka.h>
#include "vmm_rig.h"

#define PAGE RIG_PAGE
enum { LIMIT = 8, DEVICE_FLOOR = 30, ALLOCATION_FLOOR = 50 };

typedef struct world {
    const pllm_context *context;
    pllm_device *inner, *device;
    pllm_vmm *vmm;
    pllm_vmm_pool *high, *low;
    pllm_stream *stream;
    uint32_t failures;
    atomic_uint freed; /* pages of low, from the highest down */
} world;

/* Frees by turns at once and behind a stream; a free that fails is tried again by the next call. */
static uint64_t give(void *user, pllm_vmm_pool *pool, uint64_t bytes, uint64_t deadline_ns)
{
    world *w = user;
    uint64_t promised = 0;
    (void)deadline_ns;
    while (promised < bytes && w->freed < LIMIT) {
        uint64_t offset = (LIMIT - 1 - w->freed) * PAGE;
        int status = w->freed & 1 ? pllm_vmm_deallocate_after(pool, offset, PAGE, w->stream)
                                  : pllm_vmm_deallocate(pool, offset, PAGE);
        if (status < 0) return bytes; /* and is called again */
        w->freed++;
        promised += PAGE;
    }
    return promised;
}

#define STEP(w, call)                       \
    do {                                    \
        int status_ = (call);               \
        if (status_ < 0) {                  \
            (w)->failures++;                \
            status_ = (call);               \
        }                                   \
        assert_int_equal(status_, PLLM_OK); \
        if ((w)->high) check((w)->high);    \
        if ((w)->low) check((w)->low);      \
    } while (0)

static void check(pllm_vmm_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    pllm_vmm_pool_check(pool);
    pthread_mutex_unlock(&pool->lock);
}

static void work(world *w)
{
    pllm_vmm_options options = {.struct_bytes = sizeof options,
                                .no_background = 1,
                                .limit_bytes = LIMIT * PAGE,
                                .wait_ms = 20000};
    pllm_vmm_pool_options low = {.struct_bytes = sizeof low,
                                 .capacity_bytes = 2 * LIMIT * PAGE,
                                 .page_bytes = PAGE,
                                 .kept_bytes = 2 * PAGE,
                                 .reclaim = give,
                                 .user = w};
    pllm_vmm_pool_options high = low;
    high.reclaim = NULL;
    high.priority = 1;
    pllm_vmm_block_options block = {.struct_bytes = sizeof block, .bytes = PAGE};
    uint64_t address;
    STEP(w, w->device->ops->stream_open(w->device, &w->stream));
    STEP(w, pllm_vmm_open(w->context, w->device, &options, &w->vmm));
    STEP(w, pllm_vmm_register(w->vmm, "low", &low, &w->low));
    STEP(w, pllm_vmm_register(w->vmm, "high", &high, &w->high));
    STEP(w, pllm_vmm_allocate(w->low, 0, LIMIT * PAGE, NULL));
    STEP(w, pllm_vmm_allocate(w->high, 0, 2 * PAGE, NULL));
    STEP(w, pllm_vmm_block_allocate(w->high, &block, &address));
    STEP(w, pllm_vmm_block_grow(w->high, address, 2 * PAGE));
    STEP(w, pllm_vmm_set_limit(w->vmm, (LIMIT - 2) * PAGE));
    while (w->freed < 6) pllm_vmm_poll(w->vmm); /* it was asked, and not waited for */
}

static void clean(world *w)
{
    pllm_vmm_close(w->vmm);
    w->device->ops->stream_close(w->device, w->stream);
    assert_int_equal(pllm_faulty_device_live(w->device), 0);
    pllm_device_close(w->device);
    pllm_device_close(w->inner);
}

static void open_inner(world *w, uint64_t fail_at)
{
    pllm_host_device_options host = {.struct_bytes = sizeof host, .capacity_bytes = 64 * PAGE};
    pllm_faulty_device_options options = {sizeof options, fail_at, 0, 0};
    STEP(w, pllm_device_open_host(w->context, &host, &w->inner));
    STEP(w, pllm_device_open_faulty(w->context, w->inner, &options, &w->device));
}

static void every_device_call_fails_once(void **state)
{
    (void)state;
    failing_context memory;
    failing_context_init(&memory, FAILING_NEVER);
    for (uint64_t n = 0;; n++) {
        world w = {.context = &memory.context};
        open_inner(&w, n);
        work(&w);
        assert_true(w.failures <= 1);
        int hit = pllm_faulty_device_calls(w.device) > n;
        clean(&w);
        failing_context_check(&memory);
        if (hit) continue;
        print_message("device calls failed one by one: %u\n", (unsigned)n);
        assert_true(n >= DEVICE_FLOOR);
        return;
    }
}

static void every_allocation_fails_once(void **state)
{
    (void)state;
    for (uint64_t n = 0;; n++) {
        failing_context memory;
        failing_context_init(&memory, n);
        world w = {.context = &memory.context};
        open_inner(&w, UINT64_MAX);
        work(&w);
        assert_true(w.failures <= 1);
        clean(&w);
        failing_context_check(&memory);
        if (failing_context_hit(&memory)) continue;
        print_message("allocations failed one by one: %u\n", (unsigned)n);
        assert_true(n >= ALLOCATION_FLOOR);
        return;
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_device_call_fails_once),
        cmocka_unit_test(every_allocation_fails_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
