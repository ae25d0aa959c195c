/* An engine and a memory as members of a ledger: what they charge, what they give back when they
 * are idle and while they are called, and that nothing of it shows in their results. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include <pagedllm/memory.h>
#include "base/clock.h"
#include "engine/parts.h"
#include "engine_support.h"
#include "vmm/ledger.h"

#define MODEL PLLM_SOURCE_DIR "/tests/reference/models/llama"
#define MB ((uint64_t)1 << 20)
enum { VOCAB = 320, SEQUENCES = 4, PROMPT = 416 };

static char name[32], path[96];
static pllm_ledger *ledger;

static int setup(void **state)
{
    (void)state;
    snprintf(name, sizeof name, "engine-%d", (int)getpid());
    assert_int_equal(pllm_ledger_path(name, path, sizeof path), PLLM_OK);
    unlink(path);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    pllm_ledger_close(ledger);
    ledger = NULL;
    unlink(path);
    return 0;
}

static void make_ledger(uint64_t limit)
{
    assert_int_equal(pllm_ledger_open(NULL, name, limit, &ledger), PLLM_OK);
}

static pllm_ledger_member_info info_of(const char *member)
{
    static pllm_ledger_member_info rows[PLLM_LEDGER_MEMBERS_MAX];
    int count = pllm_ledger_list(ledger, rows, PLLM_LEDGER_MEMBERS_MAX, NULL);
    for (int i = 0; i < count; i++)
        if (strcmp(rows[i].name, member) == 0) return rows[i];
    fail_msg("no member %s", member);
    return rows[0];
}

static pllm_ledger_member *join(const char *member, int32_t priority)
{
    pllm_ledger_member_options options = {
        .struct_bytes = sizeof options, .name = member, .priority = priority, .wait_ms = 5000};
    pllm_ledger_member *out;
    assert_int_equal(pllm_ledger_join(ledger, &options, &out), PLLM_OK);
    return out;
}

/* ---- an engine ---- */

static pllm_engine_options shared(const char *member)
{
    return (pllm_engine_options){.struct_bytes = sizeof(pllm_engine_options),
                                 .threads = 2,
                                 .host_memory_bytes = 64 << 20,
                                 .sequence_max = SEQUENCES,
                                 .ledger = member ? name : NULL,
                                 .ledger_name = member};
}

typedef struct talk { /* of one engine: its sequences, and a hash of all logits so far */
    pllm_engine *engine;
    pllm_sequence *sequences[SEQUENCES];
    uint64_t sum;
} talk;

static int add(void *user, uint32_t item, uint32_t position, const float *logits)
{
    talk *t = user;
    (void)item, (void)position;
    const unsigned char *bytes = (const unsigned char *)logits;
    for (size_t i = 0; i < VOCAB * sizeof(float); i++)
        t->sum = (t->sum ^ bytes[i]) * 1099511628211u;
    return 0;
}

static void feed(talk *t, uint32_t sequence, uint32_t count, uint32_t generated)
{
    uint32_t ids[PROMPT], length = pllm_sequence_length(t->sequences[sequence]);
    for (uint32_t i = 0; i < count; i++)
        ids[i] = ((length + i + sequence) * 2654435761u) >> 9 & 255;
    pllm_step_item item = {.sequence = t->sequences[sequence],
                           .ids = ids,
                           .token_count = count,
                           .generated = generated,
                           .logits = 1};
    if (pllm_engine_step(t->engine, &item, 1, add, t) < 0) fail_msg("%s", pllm_last_error()->text);
}

static void talk_open(talk *t, const pllm_engine_options *options)
{
    *t = (talk){.engine = test_engine_open(MODEL, options), .sum = 1469598103934665603u};
    for (uint32_t i = 0; i < SEQUENCES; i++)
        assert_int_equal(pllm_sequence_open(t->engine, &t->sequences[i]), PLLM_OK);
}

static void talk_begin(talk *t)
{
    for (uint32_t i = 0; i < SEQUENCES; i++) feed(t, i, PROMPT, 0);
}

static void talk_on(talk *t, uint32_t rounds)
{
    for (uint32_t round = 0; round < rounds; round++)
        for (uint32_t i = 0; i < SEQUENCES; i++) feed(t, i, 1, 1);
}

static uint64_t expected(uint32_t rounds)
{
    pllm_engine_options options = shared(NULL);
    talk alone;
    talk_open(&alone, &options);
    talk_begin(&alone);
    talk_on(&alone, rounds);
    pllm_engine_close(alone.engine);
    return alone.sum;
}

static uint64_t charged_by(const pllm_engine *engine)
{
    pllm_engine_stats stats = {.struct_bytes = sizeof stats};
    assert_int_equal(pllm_engine_stats_get(engine, &stats), PLLM_OK);
    return stats.device_bytes;
}

static void an_idle_engine_gives_back_at_once(void **state)
{
    (void)state;
    make_ledger(16 * MB);
    pllm_engine_options options = shared("low");
    talk low;
    talk_open(&low, &options);
    talk_begin(&low);
    pllm_ledger_member_info before = info_of("low");
    pllm_engine_info info = {.struct_bytes = sizeof info};
    assert_int_equal(pllm_engine_info_get(low.engine, &info), PLLM_OK);
    assert_true(before.minimum_bytes >= info.least_vram_bytes); /* what it cannot do without */
    assert_true(before.charged_bytes > before.minimum_bytes + MB / 2);
    assert_true(before.charged_bytes == charged_by(low.engine)); /* weights and all */
    pllm_ledger_member *high = join("high", 1);
    uint64_t began = pllm_clock_ns(), rest = 16 * MB - before.minimum_bytes;
    assert_int_equal(pllm_ledger_charge(high, rest), PLLM_OK);
    assert_true(pllm_clock_ns() - began < 2000000000u);
    pllm_ledger_member_info after = info_of("low");
    assert_true(after.charged_bytes <= before.minimum_bytes && after.given_back_bytes > 0);
    assert_int_equal(pllm_ledger_charge(high, 1), PLLM_ENODEVMEM); /* its minimum stays its own */
    talk_on(&low, 5);
    assert_true(info_of("low").charged_bytes <= before.minimum_bytes);
    pllm_ledger_credit(high, rest);
    talk_on(&low, 5); /* and grows again where there is room */
    assert_true(info_of("low").charged_bytes > before.minimum_bytes);
    pllm_engine_check(low.engine);
    assert_true(low.sum == expected(10));
    pllm_ledger_leave(high);
    pllm_engine_close(low.engine);
}

typedef struct bully {
    pllm_ledger_member *member;
    atomic_int stops;
    uint32_t had, refused;
} bully;

static void *push_around(void *user)
{
    bully *b = user;
    for (uint32_t i = 1; !atomic_load(&b->stops); i++) {
        uint64_t bytes = (i % 26 + 1) * MB / 2;
        if (pllm_ledger_charge(b->member, bytes) == PLLM_OK) {
            b->had++;
            usleep(500);
            pllm_ledger_credit(b->member, bytes);
        } else {
            b->refused++;
        }
        usleep(500);
    }
    return NULL;
}

static void a_busy_engine_gives_back_between_passes(void **state)
{
    (void)state;
    enum { ROUNDS = 60 };
    make_ledger(14 * MB);
    pllm_engine_options options = shared("low");
    talk low;
    talk_open(&low, &options);
    bully b = {.member = join("high", 1)};
    pthread_t thread;
    talk_begin(&low);
    assert_int_equal(pthread_create(&thread, NULL, push_around, &b), 0);
    /* Idle, it has more than its minimum, and gives it back; then every pass has to fight for it.
     */
    for (uint64_t end = pllm_clock_ns() + 10000000000u;
         info_of("low").given_back_bytes == 0 && pllm_clock_ns() < end;)
        usleep(500);
    talk_on(&low, ROUNDS);
    atomic_store(&b.stops, 1);
    assert_int_equal(pthread_join(thread, NULL), 0);
    pllm_ledger_member_info info = info_of("low");
    print_message("had %u, refused %u; asked %llu times, gave back %llu bytes, late %llu\n", b.had,
                  b.refused, (unsigned long long)info.asked_count,
                  (unsigned long long)info.given_back_bytes, (unsigned long long)info.late_count);
    assert_true(info.asked_count > 0 && info.given_back_bytes > 0);
    assert_int_equal(info.late_count, 0);
    pllm_engine_check(low.engine);
    pllm_ledger_leave(b.member);
    assert_true(low.sum == expected(ROUNDS));
    pllm_engine_close(low.engine);
}

static void two_engines_share(void **state)
{
    (void)state;
    make_ledger(16 * MB);
    pllm_engine_options options = shared("low");
    talk low, high;
    talk_open(&low, &options);
    talk_begin(&low);
    options.ledger_name = "high";
    options.ledger_priority = 1;
    talk_open(&high, &options);
    talk_begin(&high);
    for (int i = 0; i < 5; i++) {
        talk_on(&low, 1);
        talk_on(&high, 1);
    }
    pllm_ledger_totals totals = {.struct_bytes = sizeof totals};
    assert_int_equal(pllm_ledger_list(ledger, NULL, 0, &totals), 0);
    assert_true(totals.peak_bytes <= 16 * MB);
    uint64_t sum = expected(5);
    assert_true(low.sum == sum && high.sum == sum);
    pllm_engine_close(low.engine);
    pllm_engine_close(high.engine);
    assert_int_equal(pllm_ledger_list(ledger, NULL, 0, &totals), 0);
    assert_int_equal(totals.member_count, 0);
}

static void what_cannot_be_had_is_said(void **state)
{
    (void)state;
    make_ledger(MB);
    pllm_engine *engine;
    pllm_engine_options options = shared("low");
    assert_int_equal(pllm_engine_open(NULL, MODEL, &options, &engine), PLLM_ENODEVMEM);
    assert_non_null(strstr(pllm_last_error()->text, "the ledger"));
    assert_int_equal(pllm_ledger_set_limit(ledger, 16 * MB), PLLM_OK);
    pllm_ledger_member *other = join("other", 0);
    assert_int_equal(pllm_ledger_charge(other, 15 * MB), PLLM_OK);
    assert_int_equal(pllm_engine_open(NULL, MODEL, &options, &engine), PLLM_ENODEVMEM);
    assert_non_null(strstr(pllm_last_error()->text, "is free"));
    pllm_ledger_totals totals = {.struct_bytes = sizeof totals};
    assert_int_equal(pllm_ledger_list(ledger, NULL, 0, &totals), 0);
    assert_int_equal(totals.member_count, 1); /* who could not open has left */
    pllm_ledger_leave(other);
    options.ledger = "no/name";
    assert_int_equal(pllm_engine_open(NULL, MODEL, &options, &engine), PLLM_EINVAL);
}

/* ---- a memory ---- */

static void a_memory_gives_back_what_is_not_pinned(void **state)
{
    (void)state;
    make_ledger(16 * MB);
    pllm_memory_options options = {.struct_bytes = sizeof options,
                                   .host_memory_bytes = 64 * MB,
                                   .page_bytes = MB / 4,
                                   .capacity_bytes = 64 * MB,
                                   .ledger = name,
                                   .ledger_name = "memory",
                                   .ledger_minimum_bytes = 3 * MB};
    pllm_memory *memory;
    pllm_tensor tensor;
    assert_int_equal(pllm_memory_open(NULL, &options, &memory), PLLM_OK);
    assert_int_equal(pllm_memory_allocate(memory, 14 * MB, PLLM_MEMORY_NORMAL, &tensor), PLLM_OK);
    uint8_t *bytes = malloc(14 * MB), *back = malloc(14 * MB);
    for (size_t i = 0; i < 14 * MB; i++) bytes[i] = (uint8_t)(i * 31 >> 7);
    assert_int_equal(pllm_memory_write(memory, tensor, 0, 14 * MB, bytes), PLLM_OK);
    assert_int_equal(info_of("memory").charged_bytes, 14 * MB);
    pllm_memory_view views[32];
    uint32_t view_count;
    assert_int_equal(
        pllm_memory_pin(memory, tensor, 0, 6 * MB, PLLM_MEMORY_READ, views, 32, &view_count),
        PLLM_OK);
    pllm_ledger_member *high = join("high", 1);
    assert_int_equal(pllm_ledger_charge(high, 8 * MB), PLLM_OK); /* 2 are free, 6 come */
    assert_true(info_of("memory").charged_bytes <= 8 * MB);
    uint64_t began = pllm_clock_ns();
    assert_int_equal(pllm_ledger_charge(high, 4 * MB), PLLM_ENODEVMEM); /* pinned */
    assert_true(pllm_clock_ns() - began < 4000000000u);
    for (uint32_t i = 0, at = 0; i < view_count; at += (uint32_t)views[i].bytes, i++)
        assert_memory_equal(views[i].data, bytes + at, views[i].bytes);
    assert_int_equal(pllm_memory_unpin(memory, tensor, 0, 6 * MB), PLLM_OK);
    assert_int_equal(pllm_memory_read(memory, tensor, 0, 14 * MB, back), PLLM_OK);
    assert_memory_equal(back, bytes, 14 * MB);
    free(bytes);
    free(back);
    pllm_ledger_leave(high);
    pllm_memory_close(memory);
    pllm_ledger_totals totals = {.struct_bytes = sizeof totals};
    assert_int_equal(pllm_ledger_list(ledger, NULL, 0, &totals), 0);
    assert_true(totals.held_bytes == 0 && totals.peak_bytes <= 16 * MB);
}

int main(void)
{
#define TEST(function) cmocka_unit_test_setup_teardown(function, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(an_idle_engine_gives_back_at_once),
        TEST(a_busy_engine_gives_back_between_passes),
        TEST(two_engines_share),
        TEST(what_cannot_be_had_is_said),
        TEST(a_memory_gives_back_what_is_not_pinned),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
