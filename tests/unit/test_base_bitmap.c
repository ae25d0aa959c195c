/* Bitmap against an array of bools, over sizes around the word boundaries; the queue in one thread
 * and in many. */
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>
#include "base/bitmap.h"
#include "base/queue.h"
#include "base/threads.h"
#include "failing_context.h"

static uint64_t random_state = 42;

static uint32_t random_below(uint32_t limit)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((random_state >> 33) % limit);
}

enum { BIT_MAX = 200 };

static uint64_t slow_find(const bool *bits, uint64_t count, uint64_t from, bool wanted)
{
    for (; from < count; from++)
        if (bits[from] == wanted) return from;
    return PLLM_BITMAP_NONE;
}

static uint64_t slow_run(const bool *bits, uint64_t count, uint64_t from, uint64_t run)
{
    for (; from + run <= count; from++) {
        uint64_t length = 0;
        while (length < run && !bits[from + length]) length++;
        if (length == run) return from;
    }
    return PLLM_BITMAP_NONE;
}

static void agrees_with_an_array(void **state)
{
    (void)state;
    static const uint32_t counts[] = {1, 63, 64, 65, 127, 128, 129, BIT_MAX};
    for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
        uint32_t count = counts[c];
        bool bits[BIT_MAX] = {0};
        uint64_t words[BIT_MAX / 64 + 2] = {0};
        words[pllm_bitmap_words(count)] = 0x5aa5; /* a guard */
        for (int step = 0; step < 600; step++) {
            uint32_t first = random_below(count), length = random_below(count - first + 1);
            if (step % 3) length = length < 6 ? length : length % 6;
            bool value = random_below(2);
            for (uint32_t i = 0; i < length; i++) bits[first + i] = value;
            if (length == 1 && value)
                pllm_bitmap_set(words, first);
            else if (length == 1)
                pllm_bitmap_clear(words, first);
            else if (value)
                pllm_bitmap_set_range(words, first, length);
            else
                pllm_bitmap_clear_range(words, first, length);
            uint64_t sum = 0;
            for (uint32_t i = 0; i < count; i++) {
                assert_int_equal(pllm_bitmap_get(words, i), bits[i]);
                sum += i >= first && bits[i];
            }
            assert_int_equal(pllm_bitmap_count(words, first, count - first), sum);
            assert_int_equal(words[pllm_bitmap_words(count)], 0x5aa5);
            uint32_t from = random_below(count + 1), run = 1 + random_below(count);
            assert_int_equal(pllm_bitmap_find_set(words, count, from),
                             slow_find(bits, count, from, true));
            assert_int_equal(pllm_bitmap_find_clear(words, count, from),
                             slow_find(bits, count, from, false));
            for (uint32_t r = run; r > 0; r /= 2)
                assert_int_equal(pllm_bitmap_find_clear_run(words, count, from, r),
                                 slow_run(bits, count, from, r));
        }
    }
    assert_int_equal(pllm_bitmap_words(0), 0);
    assert_int_equal(pllm_bitmap_find_clear(NULL, 0, 0), PLLM_BITMAP_NONE);
}

static void queue_keeps_order_and_bounds(void **state)
{
    (void)state;
    pllm_queue *queue;
    void *item;
    assert_int_equal(pllm_queue_open(NULL, 0, &queue), PLLM_EINVAL);
    assert_int_equal(pllm_queue_open(NULL, 3, &queue), PLLM_OK);
    assert_int_equal(pllm_queue_capacity(queue), 4);
    assert_false(pllm_queue_pop(queue, &item));
    uintptr_t in = 1, out = 1;
    for (int round = 0; round < 50; round++) {
        while (pllm_queue_push(queue, (void *)in)) in++;
        assert_int_equal(in - out, 4);
        assert_int_equal(pllm_queue_count(queue), 4);
        for (int i = 0; i < round % 4 + 1; i++) {
            assert_true(pllm_queue_pop(queue, &item));
            assert_int_equal((uintptr_t)item, out++);
        }
    }
    while (pllm_queue_pop(queue, &item)) assert_int_equal((uintptr_t)item, out++);
    assert_int_equal(in, out);
    assert_int_equal(pllm_queue_count(queue), 0);
    pllm_queue_close(queue);
    failing_context failing;
    failing_context_init(&failing, 0);
    assert_int_equal(pllm_queue_open(&failing.context, 4, &queue), PLLM_ENOMEM);
    assert_null(queue);
}

enum { ITEM_COUNT = 4000, SIDE_COUNT = 2 };

typedef struct traffic {
    pllm_queue *queue;
    struct item {
        uint32_t producer, number; /* plain: the queue orders them */
    } items[SIDE_COUNT][ITEM_COUNT];
    uint32_t seen[SIDE_COUNT][SIDE_COUNT][ITEM_COUNT]; /* consumer, producer */
    uint32_t seen_count[SIDE_COUNT][SIDE_COUNT];
    uint32_t disorder[SIDE_COUNT];
    atomic_uint left;
} traffic;

static traffic shared_traffic;

/* Threads 0 and 1 push, 2 and 3 pop. */
static void push_or_pop(void *argument, uint32_t thread_index)
{
    traffic *t = argument;
    if (thread_index < SIDE_COUNT) {
        for (uint32_t i = 0; i < ITEM_COUNT; i++) {
            struct item *item = &t->items[thread_index][i];
            item->producer = thread_index;
            item->number = i;
            while (!pllm_queue_push(t->queue, item)) sched_yield();
        }
        return;
    }
    uint32_t me = thread_index - SIDE_COUNT;
    while (atomic_load(&t->left) > 0) {
        void *popped;
        if (!pllm_queue_pop(t->queue, &popped)) {
            sched_yield();
            continue;
        }
        struct item *item = popped;
        uint32_t *count = &t->seen_count[me][item->producer];
        uint32_t *seen = t->seen[me][item->producer];
        if (*count > 0 && seen[*count - 1] >= item->number) t->disorder[me]++;
        seen[(*count)++] = item->number;
        atomic_fetch_sub(&t->left, 1);
    }
}

/* Every item exactly once, and those of one producer in order at each consumer. */
static void queue_between_threads(void **state)
{
    (void)state;
    traffic *t = &shared_traffic;
    pllm_threads *threads;
    assert_int_equal(pllm_queue_open(NULL, 16, &t->queue), PLLM_OK);
    assert_int_equal(pllm_threads_open(NULL, 2 * SIDE_COUNT, &threads), PLLM_OK);
    atomic_init(&t->left, SIDE_COUNT * ITEM_COUNT);
    pllm_threads_run(threads, push_or_pop, t);
    pllm_threads_close(threads);
    pllm_queue_close(t->queue);
    static uint8_t times[SIDE_COUNT][ITEM_COUNT];
    for (uint32_t c = 0; c < SIDE_COUNT; c++) {
        assert_int_equal(t->disorder[c], 0);
        for (uint32_t p = 0; p < SIDE_COUNT; p++)
            for (uint32_t i = 0; i < t->seen_count[c][p]; i++) times[p][t->seen[c][p][i]]++;
    }
    for (uint32_t p = 0; p < SIDE_COUNT; p++)
        for (uint32_t i = 0; i < ITEM_COUNT; i++) assert_int_equal(times[p][i], 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_an_array),
        cmocka_unit_test(queue_keeps_order_and_bounds),
        cmocka_unit_test(queue_between_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
