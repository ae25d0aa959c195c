/* The client against a daemon in a thread: two stores in one process stand for two processes, since
 * everything of a store (socket, lease, mappings) is its own. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include <pagedllm/tensor_store.h>
#include "base/clock.h"
#include "store/client_internal.h"
#include "store_rig.h"

static store_rig rig;

static pllm_store *store_at(void)
{
    pllm_store_options options = {
        .struct_bytes = sizeof options, .socket = rig.path, .timeout_ms = 10000};
    pllm_store *store;
    if (pllm_store_open(NULL, &options, &store) != PLLM_OK) fail_msg("%s", pllm_last_error()->text);
    return store;
}

static pllm_store_spec spec_of(uint64_t elements)
{
    pllm_store_spec spec = {.struct_bytes = sizeof spec, .dtype = PLLM_STORE_F32, .rank = 1};
    spec.shape[0] = elements;
    return spec;
}

static int setup(void **state)
{
    (void)state;
    store_rig_open(&rig, NULL, 0);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    store_rig_close(&rig);
    return 0;
}

static void test_share(void **state)
{
    (void)state;
    pllm_store *a = store_at(), *b = store_at();
    pllm_store_tensor *made, *seen, *again;
    pllm_store_spec spec = spec_of(3 << 20); /* 12 MiB: two pieces */
    spec.shape[1] = 77;                      /* beyond the rank: nobody looks at it */
    assert_int_equal(pllm_store_create(a, "x/y", &spec, &made), PLLM_OK);
    float *data = pllm_store_tensor_data(made);
    assert_non_null(data);
    assert_int_equal(pllm_store_tensor_bytes(made), 12 << 20);
    for (uint32_t i = 0; i < 3 << 20; i += 1001) {
        assert_true(data[i] == 0);
        data[i] = (float)i;
    }
    assert_int_equal(pllm_store_open_tensor(b, "x/y", 0, &seen), PLLM_OK);
    const float *there = pllm_store_tensor_data(seen);
    assert_ptr_not_equal(there, data);
    for (uint32_t i = 0; i < 3 << 20; i += 1001) assert_true(there[i] == (float)i);
    data[5] = 6; /* the same memory, not a copy */
    assert_true(there[5] == 6);

    pllm_store_info info = {.struct_bytes = sizeof info};
    assert_int_equal(pllm_store_stat(b, "x/y", &info), PLLM_OK);
    assert_string_equal(info.name, "x/y");
    assert_int_equal(info.references, 2);
    assert_int_equal(info.writers, 1);
    assert_int_equal(info.rank, 1);
    assert_int_equal(info.shape[0], 3 << 20);
    assert_int_equal(info.owner_pid, getpid());

    /* Again: the same handle, and the daemon hears nothing of it. */
    uint64_t asked = store_rig_stats(&rig).request_count;
    assert_int_equal(pllm_store_open_tensor(b, "x/y", 0, &again), PLLM_OK);
    assert_ptr_equal(again, seen);
    assert_int_equal(pllm_store_close_tensor(again), PLLM_OK);
    assert_true(there[1001] == 1001);
    assert_int_equal(store_rig_stats(&rig).request_count, asked);
    /* For writing it is another mapping. */
    assert_int_equal(pllm_store_open_tensor(b, "x/y", 1, &again), PLLM_OK);
    assert_ptr_not_equal(again, seen);
    ((float *)pllm_store_tensor_data(again))[9] = 10;
    assert_true(data[9] == 10 && there[9] == 10);
    assert_int_equal(pllm_store_close_tensor(again), PLLM_OK);
    assert_true(there[9] == 10);

    assert_int_equal(pllm_store_close_tensor(made), PLLM_OK);
    assert_true(there[5] == 6);
    assert_int_equal(pllm_store_tensor_valid(seen), PLLM_OK);
    assert_int_equal(pllm_store_close_tensor(seen), PLLM_OK);
    store_rig_until(&rig, 0, 2);
    assert_int_equal(pllm_store_open_tensor(b, "x/y", 0, &seen), PLLM_ENOTFOUND);
    assert_null(seen);
    pllm_store_close(a);
    pllm_store_close(b);
    store_rig_until(&rig, 0, 0);
}

/* Written to through a mapping for reading, the process faults: it is memory that refuses. */
static void test_reading_only(void **state)
{
    (void)state;
    pllm_store *a = store_at();
    pllm_store_tensor *made, *seen;
    pllm_store_spec spec = spec_of(4096);
    assert_int_equal(pllm_store_create(a, "r", &spec, &made), PLLM_OK);
    assert_int_equal(pllm_store_open_tensor(a, "r", 0, &seen), PLLM_OK);
    pid_t pid = fork();
    if (pid == 0) {
        signal(SIGSEGV, SIG_DFL);
        signal(SIGBUS, SIG_DFL);
        *(volatile float *)pllm_store_tensor_data(seen) = 1;
        _exit(0);
    }
    int how;
    assert_int_equal(waitpid(pid, &how, 0), pid);
    assert_false(WIFEXITED(how) && WEXITSTATUS(how) == 0);
    assert_int_equal(pllm_store_signal(seen, NULL, 1), PLLM_EPERM);
    pllm_store_close(a);
}

static void test_names(void **state)
{
    (void)state;
    pllm_store *a = store_at(), *b = store_at();
    pllm_store_tensor *x, *y, *held;
    pllm_store_spec spec = spec_of(16);
    assert_int_equal(pllm_store_create(a, "x", &spec, &x), PLLM_OK);
    assert_int_equal(pllm_store_create(a, "x", &spec, &y), PLLM_EEXIST);
    assert_int_equal(pllm_store_create(a, "y", &spec, &y), PLLM_OK);
    ((float *)pllm_store_tensor_data(x))[0] = 1;
    ((float *)pllm_store_tensor_data(y))[0] = 2;
    assert_int_equal(pllm_store_open_tensor(b, "x", 0, &held), PLLM_OK);
    /* A name that means another tensor now: what is known by name must not be believed. */
    assert_int_equal(pllm_store_rename(a, "x", "z"), PLLM_OK);
    assert_int_equal(pllm_store_rename(a, "y", "x"), PLLM_OK);
    pllm_store_tensor *other, *same;
    assert_int_equal(pllm_store_open_tensor(b, "x", 0, &other), PLLM_OK);
    assert_true(((float *)pllm_store_tensor_data(other))[0] == 2);
    assert_int_equal(pllm_store_open_tensor(b, "z", 0, &same), PLLM_OK);
    assert_ptr_equal(same, held); /* open already, under its old name */
    assert_true(((float *)pllm_store_tensor_data(held))[0] == 1);
    pllm_store_info info = {.struct_bytes = sizeof info};
    assert_int_equal(pllm_store_stat(b, "z", &info), PLLM_OK);
    assert_int_equal(info.references, 2); /* a's and b's: asking again counts b no second time */
    assert_int_equal(pllm_store_rename(a, "z", "x"), PLLM_EEXIST);

    assert_int_equal(pllm_store_delete(a, "z"), PLLM_OK);
    assert_int_equal(pllm_store_tensor_valid(held), PLLM_ESTALE);
    assert_true(((float *)pllm_store_tensor_data(held))[0] == 1); /* still there to be read */
    /* The name again: another tensor, never the bytes of the first. */
    pllm_store_tensor *fresh, *reopened;
    assert_int_equal(pllm_store_create(a, "z", &spec, &fresh), PLLM_OK);
    assert_int_equal(pllm_store_open_tensor(b, "z", 0, &reopened), PLLM_OK);
    assert_ptr_not_equal(reopened, held);
    assert_true(((float *)pllm_store_tensor_data(reopened))[0] == 0);
    assert_int_equal(pllm_store_delete(a, "nowhere"), PLLM_ENOTFOUND);
    assert_int_equal(pllm_store_seal(a, "z"), PLLM_OK);
    pllm_store_tensor *writer;
    assert_int_equal(pllm_store_open_tensor(b, "z", 1, &writer), PLLM_EPERM);
    pllm_store_close(b);
    pllm_store_close(a);
    store_rig_until(&rig, 0, 0);
}

static int count_visit(void *user, const pllm_store_info *info)
{
    uint32_t *count = user;
    assert_int_equal(info->rank, 1);
    return ++*count == 700;
}

static void test_list(void **state)
{
    (void)state;
    pllm_store *a = store_at();
    pllm_store_tensor *tensor;
    pllm_store_spec spec = spec_of(16);
    char name[16];
    for (uint32_t i = 0; i < 600; i++) { /* more than one answer holds */
        snprintf(name, sizeof name, "%s/%u", i % 3 ? "a" : "b", i);
        assert_int_equal(pllm_store_create(a, name, &spec, &tensor), PLLM_OK);
    }
    uint32_t count = 0;
    uint64_t visited;
    assert_int_equal(pllm_store_list(a, NULL, count_visit, &count, &visited), PLLM_OK);
    assert_int_equal(visited, 600);
    assert_int_equal(pllm_store_list(a, "b/", count_visit, &count, &visited), PLLM_OK);
    assert_int_equal(visited, 100); /* stopped by the visitor at 700 */
    pllm_store_close(a);
}

typedef struct producer {
    pllm_store_tensor *tensor;
    uint64_t rounds;
} producer;

static void *produce(void *argument)
{
    producer *p = argument;
    volatile uint64_t *data = pllm_store_tensor_data(p->tensor);
    for (uint64_t i = 1; i <= p->rounds; i++) {
        data[i % 64] = i * i;
        if (pllm_store_signal(p->tensor, NULL, i) != PLLM_OK) return argument;
    }
    return NULL;
}

static void test_fences(void **state)
{
    (void)state;
    pllm_store *a = store_at(), *b = store_at();
    pllm_store_tensor *made, *seen;
    pllm_store_spec spec = spec_of(4096);
    assert_int_equal(pllm_store_create(a, "f", &spec, &made), PLLM_OK);
    assert_int_equal(pllm_store_open_tensor(b, "f", 0, &seen), PLLM_OK);
    assert_int_equal(pllm_store_wait(seen, 1, 30), PLLM_ETIMEDOUT);
    producer p = {made, 500};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, produce, &p), 0);
    const volatile uint64_t *data = pllm_store_tensor_data(seen);
    for (uint64_t i = 1; i <= p.rounds; i++) {
        assert_int_equal(pllm_store_wait(seen, i, 10000), PLLM_OK);
        assert_true(data[i % 64] >= i * i); /* written before it was signalled; may be overtaken */
    }
    void *failed;
    pthread_join(thread, &failed);
    assert_null(failed);
    uint64_t value;
    assert_int_equal(pllm_store_fence(seen, &value), PLLM_OK);
    assert_int_equal(value, 500);

    /* From a stream: after its work. */
    pllm_device *device;
    pllm_stream *stream;
    assert_int_equal(pllm_device_open(NULL, "host", &device), PLLM_OK);
    pllm_store_options options = {
        .struct_bytes = sizeof options, .socket = rig.path, .device = device};
    pllm_store *c;
    assert_int_equal(pllm_store_open(NULL, &options, &c), PLLM_OK);
    pllm_store_tensor *writer;
    assert_int_equal(pllm_store_open_tensor(c, "f", 1, &writer), PLLM_OK);
    assert_int_equal(pllm_stream_open(device, NULL, &stream), PLLM_OK);
    assert_int_equal(device->ops->fill(device, stream, pllm_store_tensor_address(writer), 4096, 7),
                     PLLM_OK);
    assert_int_equal(pllm_store_signal(writer, stream, 501), PLLM_OK);
    assert_int_equal(pllm_store_wait(seen, 501, 10000), PLLM_OK);
    assert_int_equal(((const uint8_t *)pllm_store_tensor_data(seen))[4095], 7);
    assert_int_equal(pllm_stream_sync(device, stream), PLLM_OK);
    assert_int_equal(pllm_store_close_tensor(writer), PLLM_OK);
    pllm_stream_close(device, stream);
    pllm_store_close(c);
    pllm_device_close(device);
    pllm_store_close(a);
    pllm_store_close(b);
}

/* A producer that is killed: who waits is told at once, not when its time is over. */
static void test_producer_dies(void **state)
{
    (void)state;
    pllm_store *b = store_at();
    int ready[2];
    assert_int_equal(pipe(ready), 0);
    pid_t pid = fork();
    if (pid == 0) {
        pllm_store *a = store_at();
        pllm_store_tensor *made;
        pllm_store_spec spec = spec_of(16);
        spec.flags = PLLM_STORE_KEPT;
        int status = pllm_store_create(a, "p", &spec, &made);
        (void)!write(ready[1], &status, sizeof status);
        for (;;) pause();
    }
    int status;
    assert_int_equal(read(ready[0], &status, sizeof status), sizeof status);
    assert_int_equal(status, PLLM_OK);
    pllm_store_tensor *seen, *writer;
    assert_int_equal(pllm_store_open_tensor(b, "p", 0, &seen), PLLM_OK);
    kill(pid, SIGKILL);
    uint64_t before = pllm_clock_ns();
    assert_int_equal(pllm_store_wait(seen, 1, 60000), PLLM_ECANCELED);
    assert_true(pllm_clock_ns() - before < UINT64_C(20000000000));
    waitpid(pid, NULL, 0);
    /* Another producer takes over. */
    assert_int_equal(pllm_store_open_tensor(b, "p", 1, &writer), PLLM_OK);
    assert_int_equal(pllm_store_signal(writer, NULL, 3), PLLM_OK);
    assert_int_equal(pllm_store_wait(seen, 3, 10000), PLLM_OK);
    close(ready[0]);
    close(ready[1]);
    pllm_store_close(b);
    pllm_store *c = store_at(); /* it was kept: it outlives its holders, and goes by name */
    assert_int_equal(pllm_store_delete(c, "p"), PLLM_OK);
    pllm_store_close(c);
    store_rig_until(&rig, 0, 0);
}

/* The daemon is killed and comes back: what is held goes on under the same handles. */
static void test_daemon_dies(void **state)
{
    (void)state;
    pllm_store *a = store_at(), *b = store_at();
    pllm_store_tensor *made, *seen, *other;
    pllm_store_spec spec = spec_of(3 << 20);
    assert_int_equal(pllm_store_create(a, "d", &spec, &made), PLLM_OK);
    assert_int_equal(pllm_store_open_tensor(b, "d", 0, &seen), PLLM_OK);
    ((float *)pllm_store_tensor_data(made))[7] = 8;
    assert_int_equal(pllm_store_signal(made, NULL, 5), PLLM_OK);
    store_rig_stop(&rig);
    assert_true(((float *)pllm_store_tensor_data(seen))[7] == 8);
    assert_int_equal(pllm_store_open_tensor(b, "else", 0, &other), PLLM_EIO);
    assert_non_null(strstr(pllm_last_error()->text, "pagedllm store serve"));
    store_rig_start(&rig);
    pllm_store_info info = {.struct_bytes = sizeof info};
    assert_int_equal(pllm_store_stat(a, "d", &info), PLLM_OK);
    assert_int_equal(info.fence, 5);
    assert_int_equal(pllm_store_stat(b, "d", &info), PLLM_OK);
    assert_int_equal(info.references, 2);
    assert_int_equal(pllm_store_tensor_valid(made), PLLM_OK);
    assert_int_equal(pllm_store_tensor_valid(seen), PLLM_OK);
    assert_int_equal(pllm_store_wait(seen, 5, 1000), PLLM_OK);
    assert_int_equal(pllm_store_signal(made, NULL, 6), PLLM_OK);
    assert_int_equal(pllm_store_wait(seen, 6, 1000), PLLM_OK);
    ((float *)pllm_store_tensor_data(made))[7] = 9;
    assert_true(((float *)pllm_store_tensor_data(seen))[7] == 9);
    /* A third process finds it as if nothing had been. */
    pllm_store *c = store_at();
    assert_int_equal(pllm_store_open_tensor(c, "d", 0, &other), PLLM_OK);
    assert_true(((float *)pllm_store_tensor_data(other))[7] == 9);
    pllm_store_close(c);
    pllm_store_close(a);
    pllm_store_close(b);
    store_rig_until(&rig, 0, 0);
}

/* Who only reads may come back first; the writer goes on when it comes, too. */
static void test_reader_offers_first(void **state)
{
    (void)state;
    pllm_store *a = store_at(), *b = store_at();
    pllm_store_tensor *made, *seen;
    pllm_store_spec spec = spec_of(3 << 20);
    pllm_store_info info = {.struct_bytes = sizeof info};
    assert_int_equal(pllm_store_create(a, "r", &spec, &made), PLLM_OK);
    assert_int_equal(pllm_store_open_tensor(b, "r", 0, &seen), PLLM_OK);
    assert_int_equal(pllm_store_signal(made, NULL, 3), PLLM_OK);
    store_rig_restart(&rig);
    a->looked_ns = pllm_clock_ns() + UINT64_C(60000000000);   /* it does not look by itself */
    assert_int_equal(pllm_store_tensor_valid(made), PLLM_OK); /* nobody has asked the new one yet */
    assert_int_equal(pllm_store_wait(made, 3, 1000), PLLM_OK);
    assert_int_equal(pllm_store_stat(b, "r", &info), PLLM_OK);
    assert_int_equal(info.references, 1);
    assert_int_equal(pllm_store_wait(seen, 3, 1000), PLLM_OK);
    assert_int_equal(pllm_store_stat(a, "r", &info), PLLM_OK);
    assert_int_equal(info.references, 2);
    assert_int_equal(pllm_store_signal(made, NULL, 4), PLLM_OK);
    assert_int_equal(pllm_store_wait(seen, 4, 1000), PLLM_OK);
    pllm_store_close(a);
    pllm_store_close(b);
    store_rig_until(&rig, 0, 0);
}

/* Who did not hear of a renaming offers the old name: it is one tensor all the same, also where it
 * is renamed once more before the last one is back. */
static void test_renamed_then_dead(void **state)
{
    (void)state;
    pllm_store *a = store_at(), *b = store_at(), *c = store_at();
    pllm_store_tensor *made, *seen, *last, *again;
    pllm_store_spec spec = spec_of(16);
    pllm_store_info info = {.struct_bytes = sizeof info};
    assert_int_equal(pllm_store_create(a, "x", &spec, &made), PLLM_OK);
    assert_int_equal(pllm_store_open_tensor(b, "x", 0, &seen), PLLM_OK);
    assert_int_equal(pllm_store_open_tensor(c, "x", 0, &last), PLLM_OK);
    assert_int_equal(pllm_store_rename(a, "x", "z"), PLLM_OK);
    store_rig_restart(&rig);
    assert_int_equal(pllm_store_stat(a, "z", &info), PLLM_OK);
    assert_int_equal(pllm_store_stat(b, "x", &info), PLLM_ENOTFOUND);
    assert_int_equal(pllm_store_stat(b, "z", &info), PLLM_OK);
    assert_int_equal(info.references, 2);
    assert_int_equal(pllm_store_rename(b, "z", "y"), PLLM_OK);
    assert_int_equal(pllm_store_stat(c, "y", &info), PLLM_OK);
    assert_int_equal(info.references, 3);
    assert_int_equal(pllm_store_signal(made, NULL, 4), PLLM_OK);
    assert_int_equal(pllm_store_wait(seen, 4, 1000), PLLM_OK);
    assert_int_equal(pllm_store_wait(last, 4, 1000), PLLM_OK);
    assert_int_equal(pllm_store_open_tensor(c, "y", 0, &again), PLLM_OK);
    assert_ptr_equal(again, last);
    store_rig_until(&rig, 1, 3);
    pllm_store_close(c);
    pllm_store_close(b);
    pllm_store_close(a);
    store_rig_until(&rig, 0, 0);
}

static void be_busy(store_rig *at, void *user)
{
    (void)at;
    *(atomic_int *)user = 1;
    usleep(400000);
}

static void *hold_up(void *user)
{
    store_rig_inside(&rig, be_busy, user);
    return NULL;
}

/* Answers that come when nobody waits for them any more leave nothing open. */
static void test_late_answers(void **state)
{
    (void)state;
    pllm_store_options options = {
        .struct_bytes = sizeof options, .socket = rig.path, .timeout_ms = 100};
    pllm_store *a = store_at(), *b;
    pllm_store_tensor *made, *seen, *other;
    pllm_store_spec spec = spec_of(16);
    pllm_store_info info = {.struct_bytes = sizeof info};
    pthread_t thread;
    atomic_int busy = 0;
    assert_int_equal(pllm_store_create(a, "l", &spec, &made), PLLM_OK);
    assert_int_equal(pllm_store_open(NULL, &options, &b), PLLM_OK);
    assert_int_equal(pthread_create(&thread, NULL, hold_up, &busy), 0);
    while (!atomic_load(&busy)) usleep(1000);
    assert_int_equal(pllm_store_open_tensor(b, "l", 0, &seen), PLLM_ETIMEDOUT);
    assert_int_equal(pllm_store_create(b, "m", &spec, &other), PLLM_ETIMEDOUT);
    pthread_join(thread, NULL);
    assert_int_equal(pllm_store_stat(a, "l", &info), PLLM_OK); /* b's have been done by now */
    while (pllm_store_stat(b, "l", &info) == PLLM_ETIMEDOUT) continue;
    assert_int_equal(pllm_store_stat(b, "l", &info), PLLM_OK);
    assert_int_equal(info.references, 1);
    assert_int_equal(info.importers, 1);
    assert_int_equal(pllm_store_stat(b, "m", &info), PLLM_ENOTFOUND);
    pllm_store_close(b);
    pllm_store_close(a);
    store_rig_until(&rig, 0, 0);
}

static void test_events(void **state)
{
    (void)state;
    pllm_store *a = store_at(), *b = store_at();
    pllm_store_event event = {.struct_bytes = sizeof event};
    assert_int_equal(pllm_store_event_next(b, 10, &event), PLLM_EINVAL);
    assert_int_equal(pllm_store_watch(b, "w/"), PLLM_OK);
    assert_int_equal(pllm_store_event_next(b, 10, &event), PLLM_ETIMEDOUT);
    pllm_store_tensor *tensor;
    pllm_store_spec spec = spec_of(16);
    assert_int_equal(pllm_store_create(a, "v/other", &spec, &tensor), PLLM_OK);
    assert_int_equal(pllm_store_create(a, "w/one", &spec, &tensor), PLLM_OK);
    assert_int_equal(pllm_store_event_next(b, 10000, &event), PLLM_OK);
    assert_string_equal(event.name, "w/one");
    assert_true(event.kinds & PLLM_STORE_EVENT_CREATED);
    assert_int_equal(pllm_store_rename(a, "w/one", "w/two"), PLLM_OK);
    assert_int_equal(pllm_store_event_next(b, 10000, &event), PLLM_OK);
    assert_string_equal(event.name, "w/two");
    assert_string_equal(event.name_before, "w/one");
    /* An event that comes while an answer is waited for is not lost. */
    assert_int_equal(pllm_store_close_tensor(tensor), PLLM_OK);
    pllm_store_info info = {.struct_bytes = sizeof info};
    while (pllm_store_stat(b, "w/two", &info) == PLLM_OK) continue;
    assert_int_equal(pllm_store_event_next(b, 10000, &event), PLLM_OK);
    assert_true(event.kinds & PLLM_STORE_EVENT_DELETED);
    assert_int_equal(pllm_store_watch(b, NULL), PLLM_OK);
    assert_int_equal(pllm_store_event_next(b, 10, &event), PLLM_EINVAL);
    pllm_store_close(a);
    pllm_store_close(b);
}

static void test_refused(void **state)
{
    (void)state;
    pllm_store *a = store_at(), *none;
    pllm_store_tensor *tensor;
    pllm_store_spec spec = spec_of(16);
    assert_int_equal(pllm_store_create(a, "cmd", &spec, &tensor), PLLM_EINVAL);
    assert_int_equal(pllm_store_create(a, "a b", &spec, &tensor), PLLM_EINVAL);
    spec.dtype = PLLM_STORE_DTYPES;
    assert_int_equal(pllm_store_create(a, "x", &spec, &tensor), PLLM_EINVAL);
    spec = spec_of(UINT64_MAX / 2);
    assert_true(pllm_store_create(a, "x", &spec, &tensor) == PLLM_ELIMIT);
    spec = spec_of(16);
    spec.flags = 64;
    assert_int_equal(pllm_store_create(a, "x", &spec, &tensor), PLLM_EINVAL);
    spec.flags = PLLM_STORE_LEGACY;
    assert_int_equal(pllm_store_create(a, "x", &spec, &tensor), PLLM_EUNSUPPORTED);
    spec = spec_of(1 << 30); /* 4 GiB of 256 MiB */
    assert_int_equal(pllm_store_create(a, "x", &spec, &tensor), PLLM_ENODEVMEM);
    assert_int_equal(pllm_store_redeem(a, "no such token", 0, &tensor), PLLM_EINVAL);
    spec = spec_of(16);
    assert_int_equal(pllm_store_create(a, "x", &spec, &tensor), PLLM_OK); /* nothing is harmed */
    pllm_store_close(a);
    const pllm_store_options options = {.struct_bytes = sizeof options,
                                        .socket = "/tmp/no-daemon-is-here.sock"};
    assert_int_equal(pllm_store_open(NULL, &options, &none), PLLM_EIO);
    assert_non_null(strstr(pllm_last_error()->text, "pagedllm store serve --socket"));
    store_rig_until(&rig, 0, 0);
}

/* Every allocation of the client failed in turn: nothing leaks, and the daemon is left clean. */
static void test_no_memory(void **state)
{
    (void)state;
    failing_context failing;
    uint64_t n = 0;
    for (;; n++) {
        failing_context_init(&failing, n);
        pllm_store_options options = {.struct_bytes = sizeof options, .socket = rig.path};
        pllm_store *store;
        pllm_store_tensor *tensor = NULL;
        int status = pllm_store_open(&failing.context, &options, &store);
        if (status == PLLM_OK) {
            pllm_store_spec spec = spec_of(3 << 20);
            status = pllm_store_create(store, "n", &spec, &tensor);
            if (status == PLLM_OK) status = pllm_store_signal(tensor, NULL, 1);
            pllm_store_close(store);
        }
        failing_context_check(&failing);
        store_rig_until(&rig, 0, 0);
        if (status == PLLM_OK) break;
        assert_int_equal(status, PLLM_ENOMEM);
    }
    print_message("%u allocations failed in turn\n", (unsigned)n);
    assert_true(n >= 8);
}

/* The daemon was restarted, and the first call that notices is any of them: what the question holds
 * (a slot, a generation, a device's number) is the new daemon's. */
static void test_first_call_after(void **state)
{
    (void)state;
    pllm_store *a = store_at(), *b = store_at();
    pllm_store_tensor *made, *seen, *other;
    pllm_store_spec spec = spec_of(16);
    uint64_t value;
    assert_int_equal(pllm_store_create(a, "s", &spec, &made), PLLM_OK);
    assert_int_equal(pllm_store_open_tensor(b, "s", 0, &seen), PLLM_OK);
    assert_int_equal(pllm_store_signal(made, NULL, 5), PLLM_OK);
    store_rig_restart(&rig);
    a->looked_ns = pllm_clock_ns() + UINT64_C(60000000000); /* no look: the question finds out */
    if (pllm_store_signal(made, NULL, 6) != PLLM_OK) fail_msg("%s", pllm_last_error()->text);
    a->looked_ns = 0;
    /* Who only looks finds out too. */
    for (uint32_t i = 0; i < 500 && pllm_store_wait(seen, 6, 5) != PLLM_OK; i++) continue;
    assert_int_equal(pllm_store_wait(seen, 6, 0), PLLM_OK);
    store_rig_restart(&rig);
    assert_int_equal(pllm_store_create(a, "t", &spec, &other), PLLM_OK);
    usleep(30000);
    assert_int_equal(pllm_store_fence(seen, &value), PLLM_OK);
    assert_ptr_equal(seen->board, b->board);
    store_rig_restart(&rig);
    usleep(30000);
    assert_int_equal(pllm_store_tensor_valid(made), PLLM_OK);
    assert_int_equal(pllm_store_tensor_valid(seen), PLLM_OK);
    /* Given again without asking, and the new daemon knows it all the same. */
    store_rig_restart(&rig);
    usleep(30000);
    assert_int_equal(pllm_store_open_tensor(a, "s", 1, &other), PLLM_OK);
    assert_ptr_equal(other, made);
    assert_ptr_equal(made->board, a->board);
    assert_int_equal(store_rig_stats(&rig).adopted_count, 2);
    pllm_store_close(b);
    pllm_store_close(a);
    store_rig_until(&rig, 0, 0);
}

/* A connection that breaks while the daemon lives: what is open goes on, and is counted. */
static void test_cut_off(void **state)
{
    (void)state;
    pllm_store *a = store_at(), *b = store_at();
    pllm_store_tensor *made, *gone, *seen;
    pllm_store_spec spec = spec_of(16);
    spec.flags = PLLM_STORE_KEPT;
    assert_int_equal(pllm_store_create(a, "c", &spec, &made), PLLM_OK);
    assert_int_equal(pllm_store_create(a, "g", &spec, &gone), PLLM_OK);
    shutdown(a->fd, SHUT_RDWR);
    pllm_store_info info = {.struct_bytes = sizeof info};
    do assert_int_equal(pllm_store_stat(b, "c", &info), PLLM_OK);
    while (info.writers);
    assert_int_equal(pllm_store_delete(b, "g"), PLLM_OK);
    assert_int_equal(pllm_store_stat(a, "c", &info), PLLM_OK);
    assert_int_equal(info.writers, 1);
    assert_int_equal(pllm_store_tensor_valid(made), PLLM_OK);
    assert_int_equal(pllm_store_tensor_valid(gone), PLLM_ESTALE);
    assert_int_equal(pllm_store_signal(made, NULL, 1), PLLM_OK);
    assert_int_equal(pllm_store_open_tensor(b, "c", 0, &seen), PLLM_OK);
    assert_int_equal(pllm_store_wait(seen, 1, 0), PLLM_OK);
    assert_int_equal(a->board_count, 1);
    assert_int_equal(pllm_store_close_tensor(made), PLLM_OK);
    assert_int_equal(pllm_store_stat(a, "c", &info), PLLM_OK);
    assert_int_equal(info.references, 1);
    assert_int_equal(pllm_store_delete(a, "c"), PLLM_OK);
    pllm_store_close(b);
    pllm_store_close(a);
}

/* Memory that was mapped when a connection broke goes as soon as it is unmapped, not only with the
 * process: of what went on under a new connection, of what had ended meanwhile, of what is closed
 * while nothing is connected, and with the store. */
static void test_cut_off_frees(void **state)
{
    (void)state;
    pllm_store *a = store_at(), *b = store_at();
    pllm_store_tensor *kept, *read, *ended, *unheard;
    pllm_store_spec spec = spec_of(16);
    assert_int_equal(pllm_store_create(a, "ended", &spec, &ended), PLLM_OK);
    assert_int_equal(pllm_store_create(a, "unheard", &spec, &unheard), PLLM_OK);
    spec.flags = PLLM_STORE_KEPT;
    assert_int_equal(pllm_store_create(a, "kept", &spec, &kept), PLLM_OK);
    assert_int_equal(pllm_store_open_tensor(a, "kept", 0, &read), PLLM_OK);
    pllm_store_info info = {.struct_bytes = sizeof info};
    for (uint32_t i = 0; i < 2; i++) { /* twice: counted once all the same */
        shutdown(a->fd, SHUT_RDWR);
        do assert_int_equal(pllm_store_stat(b, "kept", &info), PLLM_OK);
        while (info.writers);
        assert_int_equal(pllm_store_stat(a, "kept", &info), PLLM_OK);
    }
    assert_int_equal(pllm_store_tensor_valid(ended), PLLM_ESTALE);
    store_rig_until(&rig, 3, 2);
    assert_int_equal(pllm_store_close_tensor(ended), PLLM_OK);
    store_rig_until(&rig, 2, 2);
    assert_int_equal(pllm_store_close_tensor(kept), PLLM_OK);
    assert_int_equal(pllm_store_delete(b, "kept"), PLLM_OK);
    assert_int_equal(pllm_store_stat(a, "kept", &info), PLLM_ENOTFOUND);
    assert_int_equal(store_rig_stats(&rig).registry.tensor_count, 2); /* it is mapped still */
    shutdown(a->fd, SHUT_RDWR);
    store_rig_until(&rig, 2, 1);
    assert_int_equal(pllm_store_close_tensor(read), PLLM_OK);
    store_rig_until(&rig, 1, 2);
    shutdown(a->fd, SHUT_RDWR);
    store_rig_until(&rig, 1, 1);
    pllm_store_close(a);
    store_rig_until(&rig, 0, 1);
    pllm_store_close(b);
    assert_int_equal(store_rig_stats(&rig).registry.lease_count <= 1, 1);
    store_rig_until(&rig, 0, 0);
}

/* A child has copies of all of a store. What it does with them is nothing to its parent's, which go
 * on: it may end, close everything in good order, or try to use it. */
static void test_fork(void **state)
{
    (void)state;
    pllm_store *a = store_at();
    pllm_store_tensor *made, *other;
    pllm_store_spec spec = spec_of(16);
    pllm_store_info info = {.struct_bytes = sizeof info};
    assert_int_equal(pllm_store_create(a, "f", &spec, &made), PLLM_OK);
    for (int what = 0; what < 3; what++) {
        pid_t pid = fork();
        if (pid == 0) {
            pllm_store_event event = {.struct_bytes = sizeof event};
            if (what == 0) _exit(0);
            if (what == 1) {
                pllm_store_close(a);
                _exit(0);
            }
            int bad = pllm_store_open_tensor(a, "f", 1, &other) != PLLM_EINVAL ||
                      pllm_store_delete(a, "f") != PLLM_EINVAL ||
                      pllm_store_seal(a, "f") != PLLM_EINVAL ||
                      pllm_store_watch(a, "") != PLLM_EINVAL ||
                      pllm_store_event_next(a, 0, &event) != PLLM_EINVAL ||
                      pllm_store_signal(made, NULL, 9) != PLLM_EINVAL ||
                      pllm_store_wait(made, 1, 0) != PLLM_ETIMEDOUT ||
                      pllm_store_close_tensor(made) != PLLM_EINVAL;
            _exit(bad);
        }
        int how;
        assert_int_equal(waitpid(pid, &how, 0), pid);
        assert_true(WIFEXITED(how) && WEXITSTATUS(how) == 0);
        assert_int_equal(pllm_store_stat(a, "f", &info), PLLM_OK);
        assert_int_equal(info.writers, 1);
        assert_int_equal(info.fence, 0);
        assert_int_equal(info.poisoned, 0);
    }
    assert_int_equal(a->connection, 1);
    pllm_store_close(a);
    store_rig_until(&rig, 0, 0);
}

/* In a process of its own: how many descriptors it may have is its own affair. 0, or a line. */
static int without_descriptors(void)
{
    pllm_store *a = store_at();
    pllm_store_tensor *t;
    pllm_store_spec spec = spec_of(3 << 20); /* two pieces */
    struct rlimit all, few;
    int next = dup(0);
    close(next);
    getrlimit(RLIMIT_NOFILE, &all);
    for (int more = 0; more < 2; more++) { /* none, and one of the two */
        few = (struct rlimit){(rlim_t)(next + more), all.rlim_max};
        setrlimit(RLIMIT_NOFILE, &few);
        if (pllm_store_open_tensor(a, "there", 1, &t) != PLLM_ELIMIT) return __LINE__;
        if (!strstr(pllm_last_error()->text, "ulimit")) return __LINE__;
        spec.flags = PLLM_STORE_KEPT;
        if (pllm_store_create(a, "made", &spec, &t) != PLLM_ELIMIT) return __LINE__;
        pllm_store *other;
        const pllm_store_options options = {.struct_bytes = sizeof options, .socket = rig.path};
        if (pllm_store_open(NULL, &options, &other) == PLLM_OK) return __LINE__;
        setrlimit(RLIMIT_NOFILE, &all);
    }
    pllm_store_info info = {.struct_bytes = sizeof info};
    if (pllm_store_stat(a, "made", &info) != PLLM_ENOTFOUND) return __LINE__;
    if (pllm_store_stat(a, "there", &info) != PLLM_OK) return __LINE__;
    if (info.references != 1 || info.importers != 1) return __LINE__;
    if (pllm_store_open_tensor(a, "there", 1, &t) != PLLM_OK) return __LINE__;
    pllm_store_close(a);
    return 0;
}

/* A process with no room for descriptors fails with a sentence, and holds nothing at the daemon for
 * an answer that it could not take. */
static void test_no_descriptors(void **state)
{
    (void)state;
    pllm_store *b = store_at();
    pllm_store_tensor *there;
    pllm_store_spec spec = spec_of(3 << 20);
    assert_int_equal(pllm_store_create(b, "there", &spec, &there), PLLM_OK);
    pid_t pid = fork();
    if (pid == 0) {
        int line = without_descriptors();
        if (line) fprintf(stderr, "line %d: %s\n", line, pllm_last_error()->text);
        _exit(line != 0);
    }
    int how;
    assert_int_equal(waitpid(pid, &how, 0), pid);
    assert_true(WIFEXITED(how) && WEXITSTATUS(how) == 0);
    pllm_store_close(b);
    store_rig_until(&rig, 0, 0);
}

/* A signal that a stream gives while there is no daemon is told to the next one. */
static void test_stream_without_daemon(void **state)
{
    (void)state;
    pllm_device *device;
    pllm_stream *stream;
    assert_int_equal(pllm_device_open(NULL, "host", &device), PLLM_OK);
    pllm_store_options options = {
        .struct_bytes = sizeof options, .socket = rig.path, .device = device};
    pllm_store *a, *b = store_at();
    pllm_store_tensor *made, *seen;
    pllm_store_spec spec = spec_of(16);
    assert_int_equal(pllm_store_open(NULL, &options, &a), PLLM_OK);
    assert_int_equal(pllm_store_create(a, "s", &spec, &made), PLLM_OK);
    assert_int_equal(pllm_store_open_tensor(b, "s", 0, &seen), PLLM_OK);
    assert_int_equal(pllm_stream_open(device, NULL, &stream), PLLM_OK);
    store_rig_stop(&rig);
    assert_int_equal(pllm_store_signal(made, stream, 9), PLLM_OK);
    assert_int_equal(pllm_stream_sync(device, stream), PLLM_OK);
    store_rig_start(&rig);
    usleep(30000);
    assert_int_equal(pllm_store_tensor_valid(made), PLLM_OK);
    assert_int_equal(pllm_store_wait(seen, 9, 10000), PLLM_OK);
    /* The stream does not wait for a thread that waits for the daemon, or for the device. */
    assert_int_equal(pllm_store_signal(made, stream, 10), PLLM_OK);
    pllm_store_lock(a);
    assert_int_equal(pllm_stream_sync(device, stream), PLLM_OK);
    pllm_store_unlock(a, PLLM_OK);
    assert_int_equal(pllm_store_wait(seen, 10, 10000), PLLM_OK);
    pllm_stream_close(device, stream);
    pllm_store_close(b);
    pllm_store_close(a);
    pllm_device_close(device);
}

/* Several threads on one store, while its daemon is restarted again and again: no call waits longer
 * than it may, what it says is true, and nothing is left (the sanitizers look on). */
typedef struct crowd {
    pllm_store *store;
    pllm_store_tensor *shared;
    atomic_int stop;
    atomic_uint next, wrong;
} crowd;

static void crowd_step(crowd *c, uint32_t who, uint32_t i)
{
    char name[32];
    pllm_store_tensor *tensor;
    pllm_store_spec spec = spec_of(16 + i % 7);
    pllm_store_info info = {.struct_bytes = sizeof info};
    pllm_store_event event = {.struct_bytes = sizeof event};
    uint64_t value;
    snprintf(name, sizeof name, "t/%u", (who + i) % 3);
    int status = i % 2 ? pllm_store_create(c->store, name, &spec, &tensor)
                       : pllm_store_open_tensor(c->store, name, i % 4 == 0, &tensor);
    if (status == PLLM_OK) {
        const uint8_t *data = pllm_store_tensor_data(tensor);
        if (!data || pllm_store_tensor_bytes(tensor) < 64 || data[0]) c->wrong++;
        (void)pllm_store_tensor_info(tensor, &info);
        (void)pllm_store_signal(tensor, NULL, i);
        if (pllm_store_close_tensor(tensor) != PLLM_OK) c->wrong++;
    }
    if (i % 5 == 0) (void)pllm_store_delete(c->store, name);
    if (i % 7 == 0) (void)pllm_store_rename(c->store, name, "t/0");
    (void)pllm_store_event_next(c->store, i % 3, &event);
    (void)pllm_store_wait(c->shared, i, 1);
    (void)pllm_store_fence(c->shared, &value);
    if (pllm_store_tensor_valid(c->shared) != PLLM_OK) c->wrong++;
}

static void *crowd_member(void *user)
{
    crowd *c = user;
    const uint32_t who = c->next++;
    for (uint32_t i = 0; !c->stop; i++) crowd_step(c, who, i);
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    crowd c = {.store = store_at()};
    pllm_store_spec spec = spec_of(16);
    pthread_t threads[4];
    assert_int_equal(pllm_store_create(c.store, "shared", &spec, &c.shared), PLLM_OK);
    assert_int_equal(pllm_store_watch(c.store, "t/"), PLLM_OK);
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, crowd_member, &c), 0);
    for (uint32_t i = 0; i < 6; i++) {
        usleep(60000);
        store_rig_restart(&rig);
    }
    usleep(60000);
    c.stop = 1;
    for (uint32_t i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    assert_int_equal(c.wrong, 0);
    pllm_store_info info = {.struct_bytes = sizeof info};
    assert_int_equal(pllm_store_stat(c.store, "shared", &info), PLLM_OK);
    assert_int_equal(info.references, 1);
    store_rig_until(&rig, 1, 1);
    pllm_store_close(c.store);
    store_rig_until(&rig, 0, 0);
}

/* ---- a daemon that errs ---- */

typedef struct liar { /* says hello, and then nothing, or an answer that is wrong */
    int listen_fd, lies;
    pthread_t thread;
    pllm_wire_message in, out;
    uint8_t packet[PLLM_WIRE_PACKET_BYTES];
} liar;

static void liar_answer(liar *l, int fd, int memory)
{
    pllm_wire_message *out = &l->out;
    memset(out, 0, sizeof *out);
    out->op = l->in.op | PLLM_WIRE_ANSWER;
    out->request = l->in.request;
    pllm_board *board = NULL;
    if (l->in.op == PLLM_WIRE_HELLO) {
        assert_int_equal(pllm_board_create(NULL, 4, 77, &board), PLLM_OK);
        out->welcome.epoch = 77;
        out->fd_count = 1;
        memory = pllm_board_fd(board);
    } else if (l->in.op == PLLM_WIRE_OPEN && l->lies) {
        pllm_wire_info *info = &out->tensor.info;
        info->spec.dtype = PLLM_STORE_U8;
        info->spec.rank = 1;
        info->generation = l->in.request;
        info->slot = 1000000; /* of 4 */
        info->bytes = info->spec.shape[0] = l->lies == 1 ? 4 << 20 : 1 << 20;
        if (l->lies == 3) info->bytes = 64;
        out->tensor.layout.offset = l->lies == 2 ? UINT64_MAX - 4095 : 0;
        out->tensor.layout.pieces[0] = 2 << 20;
        out->tensor.layout.piece_count = out->fd_count = 1;
    } else {
        return;
    }
    int bytes = pllm_wire_encode(out, l->packet, sizeof l->packet);
    assert_true(bytes > 0);
    (void)pllm_wire_send(fd, l->packet, (size_t)bytes, &memory, out->fd_count, 0);
    pllm_board_close(board);
}

static void *lie(void *argument)
{
    liar *l = argument;
    pllm_device *device;
    pllm_chunk *chunk;
    int memory, fd = accept(l->listen_fd, NULL, NULL), fds[4];
    assert_int_equal(pllm_device_open(NULL, "host", &device), PLLM_OK);
    assert_int_equal(device->ops->chunk_create(device, 2 << 20, &chunk), PLLM_OK);
    assert_int_equal(device->ops->chunk_export(device, chunk, 0, &memory), PLLM_OK);
    for (;;) {
        size_t bytes;
        uint32_t count;
        if (pllm_wire_receive(fd, l->packet, sizeof l->packet, &bytes, fds, 4, &count, 0) < 0 ||
            bytes == 0 || pllm_wire_decode(l->packet, bytes, &l->in) < 0)
            break;
        liar_answer(l, fd, memory);
    }
    close(fd);
    close(memory);
    device->ops->chunk_destroy(device, chunk);
    pllm_device_close(device);
    return NULL;
}

static void liar_open(liar *l, const char *path)
{
    struct sockaddr_un address;
    assert_int_equal(pllm_wire_address(path, &address), PLLM_OK);
    l->listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(l->listen_fd, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(l->listen_fd, 4), 0);
    assert_int_equal(pthread_create(&l->thread, NULL, lie, l), 0);
}

static void ignore(int number)
{
    (void)number;
}

/* What it sends is not believed; and what it does not send is not waited for longer than was said,
 * though a timer's signals interrupt every wait. */
static void test_liar(void **state)
{
    (void)state;
    static liar l;
    char path[96];
    snprintf(path, sizeof path, "%s/liar.sock", rig.folder);
    liar_open(&l, path);
    const pllm_store_options options = {
        .struct_bytes = sizeof options, .socket = path, .timeout_ms = 200};
    pllm_store *a;
    pllm_store_tensor *tensor;
    assert_int_equal(pllm_store_open(NULL, &options, &a), PLLM_OK);
    for (l.lies = 1; l.lies <= 3; l.lies++) {
        assert_int_equal(pllm_store_open_tensor(a, "x", 0, &tensor), PLLM_EINVAL);
        assert_null(tensor);
    }
    l.lies = 0;
    const struct sigaction action = {.sa_handler = ignore};
    const struct itimerval often = {{0, 20000}, {0, 20000}}, never = {{0, 0}, {0, 0}};
    assert_int_equal(sigaction(SIGALRM, &action, NULL), 0);
    assert_int_equal(setitimer(ITIMER_REAL, &often, NULL), 0);
    uint64_t before = pllm_clock_ns();
    int status = pllm_store_open_tensor(a, "x", 0, &tensor);
    uint64_t took = pllm_clock_ns() - before;
    assert_int_equal(setitimer(ITIMER_REAL, &never, NULL), 0);
    assert_int_equal(status, PLLM_ETIMEDOUT);
    assert_true(took >= 200000000 && took < UINT64_C(5000000000));
    pllm_store_close(a);
    pthread_join(l.thread, NULL);
    close(l.listen_fd);
    unlink(path);
}

/* At the path that nobody named, another user's daemon is not trusted. */
static void test_stranger(void **state)
{
    (void)state;
    if (geteuid() != 0) skip(); /* to be another user */
    static liar l;
    char folder[80], path[112];
    snprintf(folder, sizeof folder, "%s/pagedllm", rig.folder);
    snprintf(path, sizeof path, "%s/store.sock", folder);
    assert_int_equal(chmod(rig.folder, 0755), 0);
    assert_int_equal(mkdir(folder, 0777), 0);
    assert_int_equal(chmod(folder, 0777), 0);
    assert_int_equal(seteuid(65534), 0);
    liar_open(&l, path);
    assert_int_equal(seteuid(0), 0);
    setenv("XDG_RUNTIME_DIR", rig.folder, 1);
    unsetenv("PAGEDLLM_SOCKET");
    pllm_store *a;
    assert_int_equal(pllm_store_open(NULL, NULL, &a), PLLM_EPERM);
    unsetenv("XDG_RUNTIME_DIR");
    pthread_join(l.thread, NULL);
    close(l.listen_fd);
    unlink(path);
    assert_int_equal(rmdir(folder), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_share),
        TEST(test_reading_only),
        TEST(test_names),
        TEST(test_list),
        TEST(test_fences),
        TEST(test_producer_dies),
        TEST(test_daemon_dies),
        TEST(test_events),
        TEST(test_reader_offers_first),
        TEST(test_late_answers),
        TEST(test_refused),
        TEST(test_no_memory),
        TEST(test_first_call_after),
        TEST(test_cut_off),
        TEST(test_cut_off_frees),
        TEST(test_fork),
        TEST(test_no_descriptors),
        TEST(test_stream_without_daemon),
        TEST(test_renamed_then_dead),
        TEST(test_threads),
        TEST(test_liar),
        TEST(test_stranger),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
