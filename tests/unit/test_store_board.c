/* The shared page: who reads it sees whether a handle holds, waits for fences, and cannot write. */
#include <fcntl.h>
#include <pthread.h>
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
#include "failing_context.h"
#include "store/board.h"

enum { SLOTS = 8 };

typedef struct boards {
    pllm_board *daemon, *client;
} boards;

static void open_both(boards *b)
{
    assert_int_equal(pllm_board_create(NULL, SLOTS, 77, &b->daemon), PLLM_OK);
    assert_int_equal(pllm_board_attach(NULL, dup(pllm_board_fd(b->daemon)), &b->client), PLLM_OK);
    assert_int_equal(pllm_board_slot_max(b->client), SLOTS);
    assert_int_equal(pllm_board_epoch(b->client), 77);
}

static void close_both(boards *b)
{
    pllm_board_close(b->client);
    pllm_board_close(b->daemon);
}

static void words_are_seen(void **state)
{
    (void)state;
    boards b;
    pllm_board_words words = {.generation = 5, .fence_value = 3, .flags = 1}, seen;
    open_both(&b);
    assert_false(pllm_board_valid(b.client, 2, 0));
    assert_false(pllm_board_valid(b.client, 2, 5));
    pllm_board_set(b.daemon, 2, &words);
    assert_true(pllm_board_valid(b.client, 2, 5));
    assert_false(pllm_board_valid(b.client, 2, 4));
    assert_false(pllm_board_valid(b.client, 3, 5));
    assert_false(pllm_board_valid(b.client, SLOTS, 5));
    assert_int_equal(pllm_board_read(b.client, 2, 5, &seen), PLLM_OK);
    assert_int_equal(seen.fence_value, 3);
    assert_int_equal(seen.flags, 1);
    assert_int_equal(seen.poisoned, 0);
    words.poisoned = words.fence_epoch = 1;
    pllm_board_set(b.daemon, 2, &words);
    assert_int_equal(pllm_board_read(b.client, 2, 5, &seen), PLLM_OK);
    assert_int_equal(seen.fence_value, 3); /* kept under the poison */
    assert_int_equal(seen.poisoned, 1);
    assert_int_equal(seen.fence_epoch, 1);
    const pllm_board_words ended = {0};
    pllm_board_set(b.daemon, 2, &ended);
    assert_int_equal(pllm_board_read(b.client, 2, 5, &seen), PLLM_ESTALE);
    close_both(&b);
}

static void nobody_else_writes(void **state)
{
    (void)state;
    boards b;
    char path[64], byte = 1;
    open_both(&b);
    int fd = pllm_board_fd(b.daemon);
    size_t bytes = (size_t)pllm_board_bytes(SLOTS);
    assert_true(mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED);
    assert_true(pwrite(fd, &byte, 1, 64) < 0);
    assert_true(ftruncate(fd, 0) < 0);
    /* Nor through a new way in. */
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int again = open(path, O_RDWR);
    if (again >= 0) {
        assert_true(mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, again, 0) == MAP_FAILED);
        assert_true(pwrite(again, &byte, 1, 64) < 0);
        assert_true(ftruncate(again, 0) < 0);
        close(again);
    }
    close_both(&b);
}

static void what_is_no_board_is_refused(void **state)
{
    (void)state;
    pllm_board *board;
    int fd = memfd_create("x", MFD_ALLOW_SEALING);
    assert_int_equal(ftruncate(fd, 64 * 9), 0);
    assert_int_equal(pllm_board_attach(NULL, dup(fd), &board), PLLM_EINVAL); /* could shrink */
    assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
    assert_int_equal(pllm_board_attach(NULL, dup(fd), &board), PLLM_EINVAL); /* all zero */
    assert_null(board);
    close(fd);
    assert_int_equal(pllm_board_attach(NULL, open("/dev/null", O_RDONLY), &board), PLLM_EINVAL);
    assert_int_equal(pllm_board_attach(NULL, -1, &board), PLLM_EIO);
    assert_int_equal(pllm_board_create(NULL, 0, 1, &board), PLLM_EINVAL);
    for (uint64_t n = 0; n < 3; n++) {
        failing_context failing;
        failing_context_init(&failing, n);
        int status = pllm_board_create(&failing.context, SLOTS, 1, &board);
        assert_int_equal(status, failing_context_hit(&failing) ? PLLM_ENOMEM : PLLM_OK);
        pllm_board_close(board);
        failing_context_check(&failing);
    }
}

typedef struct waiter {
    pllm_board *board;
    uint64_t generation, value, timeout_ns;
    int status;
    atomic_int thread; /* its number, once it runs */
} waiter;

static void *wait_in_thread(void *argument)
{
    waiter *w = argument;
    atomic_store(&w->thread, gettid());
    w->status = pllm_board_wait(w->board, 1, w->generation, w->value, w->timeout_ns);
    return NULL;
}

/* Until the thread sleeps: it is in its wait. */
static void until_asleep(waiter *w)
{
    char path[64], state = 0;
    while (!atomic_load(&w->thread)) usleep(100);
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", atomic_load(&w->thread));
    while (state != 'S') {
        FILE *file = fopen(path, "re");
        assert_non_null(file);
        if (fscanf(file, "%*d (%*[^)]) %c", &state) != 1) state = 0;
        fclose(file);
        usleep(100);
    }
}

/* Waits in a thread while the daemon does something. */
static int wait_while(boards *b, uint64_t value, const pllm_board_words *then)
{
    pthread_t thread;
    waiter w = {b->client, 9, value, 5000000000u, 1, 0};
    assert_int_equal(pthread_create(&thread, NULL, wait_in_thread, &w), 0);
    until_asleep(&w);
    uint64_t start = pllm_clock_ns();
    pllm_board_set(b->daemon, 1, then);
    pthread_join(thread, NULL);
    assert_true(pllm_clock_ns() - start < 4000000000u); /* woken, not late */
    return w.status;
}

static void waits_end_as_they_should(void **state)
{
    (void)state;
    boards b;
    open_both(&b);
    pllm_board_words words = {.generation = 9};
    pllm_board_set(b.daemon, 1, &words);
    assert_int_equal(pllm_board_wait(b.client, 1, 9, 0, 0), PLLM_OK);
    assert_int_equal(pllm_board_wait(b.client, 1, 9, 1, 0), PLLM_ETIMEDOUT);
    uint64_t start = pllm_clock_ns();
    assert_int_equal(pllm_board_wait(b.client, 1, 9, 1, 20000000), PLLM_ETIMEDOUT);
    assert_true(pllm_clock_ns() - start >= 20000000);
    words.fence_value = 4;
    assert_int_equal(wait_while(&b, 4, &words), PLLM_OK);
    assert_int_equal(pllm_board_wait(b.client, 1, 9, 4, UINT64_MAX), PLLM_OK);
    words.poisoned = words.fence_epoch = 1;
    assert_int_equal(wait_while(&b, 5, &words), PLLM_ECANCELED);
    assert_int_equal(pllm_board_wait(b.client, 1, 9, 5, UINT64_MAX), PLLM_ECANCELED);
    assert_int_equal(pllm_board_wait(b.client, 1, 9, 4, 0), PLLM_OK); /* it was reached */
    words.poisoned = 0;                                               /* a new producer */
    pllm_board_set(b.daemon, 1, &words);
    assert_int_equal(pllm_board_wait(b.client, 1, 9, 5, 0), PLLM_ETIMEDOUT);
    words.fence_epoch = 2; /* poisoned and cleared while it slept: its producer died all the same */
    assert_int_equal(wait_while(&b, 5, &words), PLLM_ECANCELED);
    pllm_board_words none = {0}, other = {.generation = 10, .fence_value = 100};
    assert_int_equal(wait_while(&b, 5, &none), PLLM_ESTALE);
    pllm_board_set(b.daemon, 1, &words);
    assert_int_equal(wait_while(&b, 5, &other),
                     PLLM_ESTALE); /* another tensor's fence is no news */
    assert_int_equal(pllm_board_wait(b.client, SLOTS, 9, 0, 0), PLLM_ESTALE);
    close_both(&b);
}

/* One producer, three consumers, every value: none is missed, and what was written before a signal
 * is seen after the wait. */
static _Atomic uint64_t payload;

static void *consume(void *argument)
{
    waiter *w = argument;
    for (uint64_t value = 1; value <= w->value; value++) {
        w->status = pllm_board_wait(w->board, 1, 9, value, 5000000000u);
        if (w->status != PLLM_OK) return NULL;
        if (atomic_load_explicit(&payload, memory_order_relaxed) < value * 2) w->status = 1;
        if (w->status) return NULL;
    }
    return NULL;
}

static void no_signal_is_missed(void **state)
{
    enum { VALUES = 3000, THREADS = 3 };
    (void)state;
    boards b;
    pthread_t threads[THREADS];
    waiter waiters[THREADS];
    open_both(&b);
    pllm_board_words words = {.generation = 9};
    pllm_board_set(b.daemon, 1, &words);
    for (int i = 0; i < THREADS; i++) {
        waiters[i] = (waiter){.board = b.client, .value = VALUES};
        assert_int_equal(pthread_create(&threads[i], NULL, consume, &waiters[i]), 0);
    }
    for (words.fence_value = 1; words.fence_value <= VALUES; words.fence_value++) {
        atomic_store_explicit(&payload, words.fence_value * 2, memory_order_relaxed);
        pllm_board_set(b.daemon, 1, &words);
        if (words.fence_value % 64 == 0) usleep(50);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(waiters[i].status, PLLM_OK);
    }
    close_both(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(words_are_seen),
        cmocka_unit_test(nobody_else_writes),
        cmocka_unit_test(what_is_no_board_is_refused),
        cmocka_unit_test(waits_end_as_they_should),
        cmocka_unit_test(no_signal_is_missed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
