/* Clients in processes of their own do anything in any order, and are killed at any moment. Each
 * tensor's words all hold its own mark, so that memory given to two shows. Afterwards nothing is
 * left: no tensor, no lease, no byte of memory that is not ready for the next.
 * PLLM_STORM_SEED=n, PLLM_STORM_KILLS=n (60). */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/clock.h"
#include "store_rig.h"

enum { CHILDREN = 5, NAMES = 12, HELD = 6 };
#define MIB ((uint64_t)1 << 20)

static uint64_t draw(uint64_t *random, uint64_t below)
{
    uint64_t x = *random += 0x9e3779b97f4a7c15u; /* SplitMix64 */
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return (x ^ (x >> 31)) % below;
}

typedef struct open_one {
    pllm_wire_info info;
    uint64_t *data, mapped, offset;
    uint32_t writable;
} open_one;

/* The first and the last word of a tensor name its generation, once its creator has written it. */
static void mark_check(const open_one *o, int code)
{
    uint64_t last = (o->offset + o->info.bytes) / 8 - 1, first = o->offset / 8;
    uint64_t a = __atomic_load_n(&o->data[first], __ATOMIC_ACQUIRE);
    uint64_t b = __atomic_load_n(&o->data[last], __ATOMIC_ACQUIRE);
    if ((a && a != o->info.generation) || (b && b != o->info.generation)) _exit(code);
}

static void taken(store_talk *talk, open_one *o, uint32_t writable, int created)
{
    o->info = talk->answer.tensor.info;
    o->offset = talk->answer.tensor.layout.offset;
    o->writable = writable;
    o->data = store_map(talk, (int)writable, &o->mapped);
    if (!o->data) _exit(20);
    mark_check(o, created ? 21 : 22);
    if (!created) return;
    __atomic_store_n(&o->data[o->offset / 8], o->info.generation, __ATOMIC_RELEASE);
    __atomic_store_n(&o->data[(o->offset + o->info.bytes) / 8 - 1], o->info.generation,
                     __ATOMIC_RELEASE);
}

static void let_go(store_talk *talk, open_one *o)
{
    mark_check(o, 23);
    munmap(o->data, o->mapped);
    o->data = NULL;
    if (store_shut(talk, o->info.slot, o->info.generation, o->writable) != PLLM_OK) _exit(24);
    int status = store_unmapped(talk, o->info.slot, o->info.generation);
    if (status != PLLM_OK && status != PLLM_EBUSY && status != PLLM_ESTALE) _exit(25);
}

static void child(store_rig *rig, uint64_t random)
{
    static store_talk talk;
    open_one held[HELD] = {{{{0}}}};
    char name[16], other[16];
    alarm(60);
    store_talk_open(rig, &talk);
    for (;;) {
        open_one *o = &held[draw(&random, HELD)];
        int status = PLLM_OK;
        snprintf(name, sizeof name, "n%d", (int)draw(&random, NAMES));
        snprintf(other, sizeof other, "n%d", (int)draw(&random, NAMES));
        uint32_t writable = (uint32_t)draw(&random, 2);
        switch (draw(&random, 10)) {
        case 0:
        case 1:
        case 2:
            if (o->data) break;
            status = store_create(&talk, name, draw(&random, 3) ? 4096 : 3 * MIB, 0);
            if (status == PLLM_OK) taken(&talk, o, 1, 1);
            break;
        case 3:
        case 4:
        case 5:
            if (o->data) break;
            status = store_open(&talk, name, writable);
            if (status == PLLM_OK) taken(&talk, o, writable, 0);
            break;
        case 6:
        case 7:
            if (o->data) let_go(&talk, o);
            break;
        case 8:
            if (o->data && o->writable)
                status = store_signal(&talk, o->info.slot, o->info.generation, draw(&random, 99));
            break;
        default:
            status = draw(&random, 2) ? store_name(&talk, PLLM_WIRE_DELETE, name, 0, NULL)
                                      : store_name(&talk, PLLM_WIRE_RENAME, name, 0, other);
            break;
        }
        if (status == PLLM_ECANCELED && talk.answer.status == PLLM_OK) _exit(26); /* hung up on */
        for (int i = 0; i < HELD; i++)
            if (held[i].data) mark_check(&held[i], 27);
    }
}

static void killed_at_any_moment(void **state)
{
    (void)state;
    const char *seed = getenv("PLLM_STORM_SEED"), *many = getenv("PLLM_STORM_KILLS");
    uint64_t random = seed ? strtoull(seed, NULL, 10) : 1;
    int kills = many ? atoi(many) : 60;
    pid_t children[CHILDREN] = {0};
    uint64_t asked = 0;
    store_rig rig;
    pllm_store_server_options options = {.ready_bytes = 8 * MIB, .sweep_ms = 50};
    store_rig_open(&rig, &options, 0);
    for (int i = 0; i < kills + CHILDREN; i++) {
        int which = i % CHILDREN, result;
        if (children[which]) {
            uint64_t late = pllm_clock_ns() + 5000000000u; /* but not before it did anything */
            while (store_rig_stats(&rig).request_count < asked + 30 && pllm_clock_ns() < late)
                usleep(200);
            usleep((useconds_t)draw(&random, 5000));
            kill(children[which], SIGKILL);
            waitpid(children[which], &result, 0);
            if (!WIFSIGNALED(result)) print_message("child says %d\n", WEXITSTATUS(result));
            assert_true(WIFSIGNALED(result) && WTERMSIG(result) == SIGKILL);
        }
        uint64_t own = draw(&random, UINT64_MAX);
        asked = store_rig_stats(&rig).request_count;
        children[which] = fork();
        if (children[which] == 0) child(&rig, own);
    }
    for (int i = 0; i < CHILDREN; i++) {
        kill(children[i], SIGKILL);
        waitpid(children[i], NULL, 0);
    }
    store_rig_until(&rig, 0, 0);
    pllm_store_server_stats stats = store_rig_stats(&rig);
    assert_int_equal(stats.registry.lease_count, 0);
    assert_int_equal(stats.registry.reference_count, 0);
    assert_int_equal(stats.registry.charged_bytes, 0);
    assert_int_equal(stats.dropped_count, 0);
    assert_true(stats.request_count > 1000);
    store_rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(killed_at_any_moment)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
