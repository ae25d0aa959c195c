/* Many threads on one pool of the host device: blocks that the CPU writes are stamped at both ends
 * and pass from thread to thread before they are freed; each thread's stream has blocks of its own,
 * filled and copied out. A block given to two would lose its stamps; a missing lock shows under
 * tsan. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "failing_context.h"
#include "pool/pool.h"

#define CHUNK ((uint64_t)64 << 10)
enum { THREADS = 6, ROUNDS = 1500, POSTED = 16 };

typedef struct parcel {
    uint64_t address, bytes, stamp;
} parcel;

typedef struct shared {
    failing_context memory;
    pllm_device *device;
    pllm_pool *pool;
    pthread_mutex_t lock;
    parcel posted[POSTED]; /* under lock */
    atomic_uint wrong;
    atomic_ullong allocated, freed, requested;
} shared;

typedef struct worker {
    shared *all;
    pthread_t thread;
    uint64_t random;
    uint32_t number;
} worker;

static uint64_t draw(worker *w, uint64_t below)
{
    w->random = w->random * 6364136223846793005u + 1442695040888963407u;
    return (w->random >> 33) % below;
}

static void stamp(const parcel *p)
{
    uint64_t *words = (uint64_t *)(uintptr_t)p->address;
    words[0] = p->stamp;
    words[p->bytes / 8 - 1] = ~p->stamp;
}

static int intact(const parcel *p)
{
    const uint64_t *words = (const uint64_t *)(uintptr_t)p->address;
    return words[0] == p->stamp && words[p->bytes / 8 - 1] == ~p->stamp;
}

static void drop(shared *all, const parcel *p)
{
    if (!p->address) return;
    if (!intact(p)) all->wrong++;
    if (pllm_pool_free(all->pool, p->address, p->bytes, NULL) < 0) all->wrong++;
    all->freed++;
}

static void round_on_cpu(worker *w)
{
    shared *all = w->all;
    uint64_t scale = (uint64_t)128 << draw(w, 11);
    parcel mine = {.bytes = (scale + draw(w, scale)) / 8 * 8, .stamp = w->random}, old;
    int status = pllm_pool_allocate(all->pool, mine.bytes, NULL, &mine.address);
    if (status == PLLM_ENODEVMEM) return;
    if (status < 0) {
        all->wrong++;
        return;
    }
    all->allocated++;
    stamp(&mine);
    uint64_t place = draw(w, POSTED);
    pthread_mutex_lock(&all->lock);
    old = all->posted[place];
    all->posted[place] = mine;
    pthread_mutex_unlock(&all->lock);
    drop(all, &old);
}

static void round_on_stream(worker *w, pllm_stream *stream, unsigned char *out)
{
    shared *all = w->all;
    const pllm_device_ops *ops = all->device->ops;
    uint64_t bytes = 64 + draw(w, 3 * CHUNK), address;
    uint8_t value = (uint8_t)(1 + draw(w, 200));
    int status = pllm_pool_allocate(all->pool, bytes, stream, &address);
    if (status == PLLM_ENODEVMEM) return;
    all->allocated++;
    pllm_copy copy = {(pllm_va)(uintptr_t)out, address + bytes - 64, 64};
    if (status < 0 || ops->fill(all->device, stream, address, bytes, value) < 0 ||
        ops->copy(all->device, stream, PLLM_COPY_OUT, &copy) < 0 ||
        pllm_pool_free(all->pool, address, bytes, stream) < 0)
        all->wrong++;
    all->freed++;
    if (draw(w, 8) > 0) return; /* mostly the free returns long before the work is over */
    if (pllm_stream_sync(all->device, stream) < 0) all->wrong++;
    for (int i = 0; i < 64; i++)
        if (out[i] != value) all->wrong++;
}

static void *work(void *user)
{
    worker *w = user;
    shared *all = w->all;
    pllm_stream *stream;
    void *out;
    if (pllm_stream_open(all->device, NULL, &stream) < 0) return NULL;
    if (all->device->ops->host_alloc(all->device, 64, &out) < 0) return NULL;
    for (uint32_t i = 0; i < ROUNDS; i++) {
        if (draw(w, 3))
            round_on_cpu(w);
        else
            round_on_stream(w, stream, out);
        if (draw(w, 400) == 0) (void)pllm_pool_trim(all->pool, 0, NULL);
        pllm_pool_stats stats = {.struct_bytes = sizeof stats};
        if (draw(w, 50) == 0 && pllm_pool_stats_get(all->pool, &stats) < 0) all->wrong++;
    }
    if (pllm_pool_forget_stream(all->pool, stream) < 0) all->wrong++;
    pllm_stream_close(all->device, stream);
    all->device->ops->host_free(all->device, out, 64);
    return w;
}

static void many_threads_share_a_pool(void **state)
{
    (void)state;
    static shared all;
    worker workers[THREADS];
    failing_context_init(&all.memory, FAILING_NEVER);
    pllm_host_device_options host = {.struct_bytes = sizeof host, .chunk_bytes = CHUNK};
    pllm_pool_options options = {.struct_bytes = sizeof options,
                                 .block_max = 8192,
                                 .limit_bytes = 64 * CHUNK,
                                 .capacity_bytes = 512 * CHUNK};
    pthread_mutex_init(&all.lock, NULL);
    assert_int_equal(pllm_device_open_host(&all.memory.context, &host, &all.device), PLLM_OK);
    assert_int_equal(pllm_pool_open(&all.memory.context, all.device, &options, &all.pool), PLLM_OK);
    for (uint32_t i = 0; i < THREADS; i++) {
        workers[i] = (worker){.all = &all, .random = i + 1, .number = i};
        assert_int_equal(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
    }
    for (uint32_t i = 0; i < THREADS; i++) {
        void *result;
        pthread_join(workers[i].thread, &result);
        assert_non_null(result);
    }
    for (uint32_t i = 0; i < POSTED; i++) drop(&all, &all.posted[i]);
    assert_int_equal(all.wrong, 0);
    pllm_pool_check(all.pool);
    pllm_pool_stats stats = {.struct_bytes = sizeof stats};
    assert_int_equal(pllm_pool_stats_get(all.pool, &stats), PLLM_OK);
    assert_int_equal(stats.live_count, 0);
    assert_int_equal(stats.allocate_calls, all.allocated);
    assert_int_equal(stats.free_calls, all.freed);
    assert_true(stats.allocate_calls > THREADS * ROUNDS / 2);
    pllm_pool_close(all.pool);
    pllm_device_close(all.device);
    failing_context_check(&all.memory);
    pthread_mutex_destroy(&all.lock);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(many_threads_share_a_pool)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
