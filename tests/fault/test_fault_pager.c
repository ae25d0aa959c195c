/* Goal: whichever device call, allocation or disk request fails, once, every call of the pager
 * ends in a status, what is read is right, what is not lost can be read afterwards, and nothing
 * leaks.
 * Method: one scenario (pages to host and disk and back, an open page rewritten, a scan read ahead,
 * pages freed in flight, eviction, a lower limit) runs with call 0, 1, 2, ... failing until a run
 * meets no fault. Invariants are checked after every call. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "failing_context.h"
#include "pager_rig.h"
#include "tier_rig.h"

enum {
    PAGES = 30,
    FRAMES = 8,
    /* The least numbers of calls that must be reached: a scenario that shrinks tests less. */
    FLOOR_DEVICE = 250,
    FLOOR_MEMORY = 40,
    FLOOR_DISK = 10,
};

typedef struct scenario {
    const pllm_context *context;
    pllm_device *device;
    const pllm_faulty_disk_options *faults;
    uint64_t disk_requests, disk_submits, disk_polls, disk_reads, disk_writes;
    uint32_t refused, lost; /* calls that failed; pages that are gone */
    pager_rig rig;
    uint32_t version[PAGES];
    int live[PAGES], content[PAGES];
} scenario;

/* A call may fail; then it says how, and all is as consistent as ever. */
static int step(scenario *s, int status)
{
    pllm_pager_check(s->rig.pager);
    if (status >= 0) return 1;
    s->refused++;
    assert_true(status == PLLM_EIO || status == PLLM_EDEVICE || status == PLLM_ENOMEM ||
                status == PLLM_ECORRUPT || status == PLLM_ENODEVMEM || status == PLLM_EBUSY ||
                status == PLLM_ELIMIT);
    return 0;
}

static void write_page(scenario *s, pllm_page page, int seal)
{
    void *view;
    pllm_pin_mode mode = s->content[page] ? PLLM_PIN_WRITE : PLLM_PIN_NEW;
    if (!step(s, pllm_pager_pin(s->rig.pager, &page, 1, mode, &view))) return;
    if (s->content[page]) assert_true(pager_rig_matches(view, 4096, page, s->version[page]));
    pager_rig_fill(view, 4096, page, ++s->version[page]);
    s->content[page] = 1;
    if (seal) pllm_pager_seal(s->rig.pager, page);
    pllm_pager_unpin(s->rig.pager, &page, 1);
    pllm_pager_check(s->rig.pager);
}

static void read_pages(scenario *s, pllm_page first, uint32_t count)
{
    pllm_page pages[FRAMES];
    void *views[FRAMES];
    uint32_t got = 0;
    for (pllm_page page = first; page < first + count; page++)
        if (s->live[page] && s->content[page]) pages[got++] = page;
    if (!got || !step(s, pllm_pager_pin(s->rig.pager, pages, got, PLLM_PIN_READ, views))) return;
    for (uint32_t i = 0; i < got; i++)
        assert_true(pager_rig_matches(views[i], 4096, pages[i], s->version[pages[i]]));
    pllm_pager_unpin(s->rig.pager, pages, got);
    pllm_pager_check(s->rig.pager);
}

static void pages_free(scenario *s, pllm_page first, uint32_t count)
{
    for (pllm_page page = first; page < first + count; page++) {
        if (s->live[page]) pllm_pager_page_free(s->rig.pager, page);
        s->live[page] = 0;
        pllm_pager_check(s->rig.pager);
    }
}

/* One page at a time: right, or lost for good. */
static void last_word(scenario *s)
{
    for (pllm_page page = 0; page < PAGES; page++) {
        if (!s->live[page] || !s->content[page]) continue;
        void *view;
        int status = pllm_pager_pin(s->rig.pager, &page, 1, PLLM_PIN_READ, &view);
        if (status == PLLM_EDEVICE || status == PLLM_ENOMEM) { /* the fault came only now: once */
            assert_false(step(s, status));
            status = pllm_pager_pin(s->rig.pager, &page, 1, PLLM_PIN_READ, &view);
        }
        if (status == PLLM_OK) {
            assert_true(pager_rig_matches(view, 4096, page, s->version[page]));
            pllm_pager_unpin(s->rig.pager, &page, 1);
        } else {
            assert_true(status == PLLM_EIO || status == PLLM_ECORRUPT);
            assert_int_equal(pllm_pager_pin(s->rig.pager, &page, 1, PLLM_PIN_READ, &view), status);
            s->lost++;
        }
        pllm_pager_check(s->rig.pager);
    }
}

static void act(scenario *s)
{
    pllm_pager *pager = s->rig.pager;
    pllm_page order[PAGES], page;
    uint32_t count = 0;
    for (uint32_t i = 0; i < PAGES; i++) {
        assert_int_equal(pllm_pager_page_new(pager, i ? i - 1 : PLLM_NONE, i, &page), PLLM_OK);
        assert_int_equal(page, i);
        s->live[i] = 1;
        write_page(s, i, i != 3); /* page 3 stays open */
    }
    for (uint32_t i = 0; i < PAGES; i++)
        if (i != 3 && i < 24) order[count++] = i;
    step(s, pllm_pager_scan(pager, order, count));
    for (uint32_t round = 0; round < 2; round++) {
        for (uint32_t i = 0; i < 24; i += 3) read_pages(s, i, 3);
        write_page(s, 3, 0);
    }
    pllm_pager_hint(pager, order, 4, PLLM_WILL_NEED);
    pages_free(s, 24, 4); /* some are on their way */
    for (uint32_t i = 0; i < 40; i++) {
        void *views[2];
        int got = pllm_pager_try_pin(pager, order + 10, 2, views);
        if (!step(s, got) || got) {
            if (got > 0) pllm_pager_unpin(pager, order + 10, 2);
            break;
        }
        step(s, pllm_pager_poll(pager));
    }
    step(s, pllm_pager_evict(pager, 3));
    step(s, pllm_pager_evict_pages(pager, order, 5));
    step(s, pllm_pager_set_device_limit(pager, 4 * 4096));
    step(s, pllm_pager_poll(pager));
    pllm_pager_tidy(pager);
    pllm_pager_check(pager);
    read_pages(s, 6, 3);
    step(s, pllm_pager_set_device_limit(pager, FRAMES * 4096));
    read_pages(s, 12, 6);
    step(s, pllm_pager_settle(pager));
    last_word(s);
}

static int scenario_run(scenario *s)
{
    pllm_disk *disk = tier_rig_disk(s->context, s->device, PAGES * 4096, 1, s->faults);
    if (!disk) return PLLM_ENOMEM;
    pager_rig_options options = {
        .device = s->device,
        .frames = FRAMES,
        .host_slots = 8,
        .disk_slots = PAGES,
        .disk = disk,
        .pager =
            {
                .page_max = PAGES,
                .policy = PLLM_POLICY_STATIC,
                .prefetch = PLLM_PREFETCH_SEQUENTIAL,
                .record_max = 50,
            },
    };
    int status = pager_rig_open(s->context, &options, &s->rig);
    if (status < 0) return status;
    act(s);
    pllm_faulty_disk_stats stats;
    pllm_faulty_disk_stats_get(disk, &stats);
    s->disk_requests = stats.requests;
    s->disk_submits = stats.submits;
    s->disk_polls = stats.polls;
    s->disk_reads = stats.reads;
    s->disk_writes = stats.writes;
    pager_rig_close(&s->rig);
    return PLLM_OK;
}

/* One run with the given faults; everything is opened and closed here. */
static int run(uint64_t memory_at, uint64_t device_at, int async,
               const pllm_faulty_disk_options *faults, scenario *s, int *hit_out)
{
    failing_context failing;
    pllm_device *sim, *device;
    pllm_sim_device_options options = {
        .struct_bytes = sizeof options, .capacity_bytes = 64 << 20, .latency_ns_max = 1000};
    pllm_faulty_device_options faulty = {
        .struct_bytes = sizeof faulty, .fail_at = device_at, .fail_async = (uint32_t)async};
    failing_context_init(&failing, memory_at);
    /* The simulated device's own allocations are the device's tests' business. */
    assert_int_equal(pllm_device_open_sim(NULL, &options, &sim), PLLM_OK);
    assert_int_equal(pllm_device_open_faulty(NULL, sim, &faulty, &device), PLLM_OK);
    memset(s, 0, sizeof *s);
    s->context = &failing.context;
    s->device = device;
    s->faults = faults;
    int status = scenario_run(s);
    *hit_out = failing_context_hit(&failing) || pllm_faulty_device_calls(device) > device_at;
    assert_int_equal(pllm_faulty_device_live(device), 0);
    pllm_device_close(device);
    pllm_device_close(sim);
    failing_context_check(&failing);
    return status;
}

static void no_fault_loses_nothing(void **state)
{
    (void)state;
    scenario s;
    int hit;
    assert_int_equal(run(FAILING_NEVER, UINT64_MAX, 0, NULL, &s, &hit), PLLM_OK);
    assert_false(hit);
    assert_int_equal(s.refused, 0);
    assert_int_equal(s.lost, 0);
    assert_true(s.disk_reads > 10 && s.disk_writes > 10);
}

static void every_device_call_may_fail(void **state)
{
    (void)state;
    for (int async = 0; async < 2; async++) {
        uint64_t n = 0;
        for (int hit = 1; hit; n++) {
            scenario s;
            int status = run(FAILING_NEVER, n, async, NULL, &s, &hit);
            if (status < 0)
                assert_true(status == PLLM_EDEVICE || status == PLLM_ENODEVMEM ||
                            status == PLLM_ENOMEM);
            assert_int_equal(s.lost, 0); /* the copies elsewhere are good */
            if (!hit) assert_int_equal(s.refused, 0);
        }
        print_message("%llu device calls failed in turn\n", (unsigned long long)n - 1);
        assert_true(n - 1 >= FLOOR_DEVICE);
    }
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    uint64_t n = 0;
    for (int hit = 1; hit; n++) {
        scenario s;
        int status = run(n, UINT64_MAX, 0, NULL, &s, &hit);
        if (status < 0) assert_int_equal(status, PLLM_ENOMEM);
        assert_int_equal(s.lost, 0);
        if (!hit) assert_true(status == PLLM_OK && s.refused == 0);
    }
    print_message("%llu allocations failed in turn\n", (unsigned long long)n - 1);
    assert_true(n - 1 >= FLOOR_MEMORY);
}

static void every_disk_call_may_fail(void **state)
{
    (void)state;
    scenario s;
    int hit;
    assert_int_equal(run(FAILING_NEVER, UINT64_MAX, 0, NULL, &s, &hit), PLLM_OK);
    const struct {
        const char *what;
        size_t option; /* which field of the options */
        uint64_t count;
        uint32_t lost_max;
    } kinds[] = {
        {"requests", offsetof(pllm_faulty_disk_options, fail_at), s.disk_requests, 1},
        {"submits", offsetof(pllm_faulty_disk_options, fail_submit_at), s.disk_submits, 1},
        {"polls", offsetof(pllm_faulty_disk_options, fail_poll_at), s.disk_polls, PAGES},
        {"corrupt reads", offsetof(pllm_faulty_disk_options, corrupt_read_at), s.disk_reads, 1},
        {"torn writes", offsetof(pllm_faulty_disk_options, tear_write_at), s.disk_writes, PAGES},
        {"lost writes", offsetof(pllm_faulty_disk_options, lose_write_at), s.disk_writes, PAGES},
    };
    for (size_t kind = 0; kind < sizeof kinds / sizeof *kinds; kind++) {
        uint32_t lost = 0, refused = 0;
        for (uint64_t n = 0; n < kinds[kind].count; n++) {
            pllm_faulty_disk_options faults = pllm_faulty_disk_none();
            *(uint64_t *)((char *)&faults + kinds[kind].option) = n;
            assert_int_equal(run(FAILING_NEVER, UINT64_MAX, 0, &faults, &s, &hit), PLLM_OK);
            assert_true(s.lost <= kinds[kind].lost_max);
            lost += s.lost;
            refused += s.refused;
        }
        print_message("%llu disk %s failed in turn: %u pages lost, %u calls refused\n",
                      (unsigned long long)kinds[kind].count, kinds[kind].what, lost, refused);
        assert_true(kinds[kind].count >= FLOOR_DISK);
    }
}

/* ---- what a person reads ---- */

static void expect_sentence(pllm_pager *pager, pllm_page page, int status, const char *what)
{
    void *view;
    /* Twice: when it is read, and ever after. */
    for (uint32_t i = 0; i < 2; i++) {
        pllm_fail(PLLM_EINVAL, 0, "of another call");
        assert_int_equal(pllm_pager_pin(pager, &page, 1, PLLM_PIN_READ, &view), status);
        const pllm_error *error = pllm_last_error();
        const char *const parts[] = {what, "KV cache", "in a simulated folder", "--nvme-path",
                                     "feed its sequence again"};
        assert_int_equal(error->status, status);
        for (size_t j = 0; j < sizeof parts / sizeof *parts; j++)
            if (!strstr(error->text, parts[j])) fail_msg("no '%s' in: %s", parts[j], error->text);
    }
}

static void a_lost_page_names_folder_and_way_out(void **state)
{
    (void)state;
    pllm_faulty_disk_options faults = pllm_faulty_disk_none();
    faults.native = ENXIO;
    pllm_disk *disk = tier_rig_disk(NULL, NULL, PAGES * 4096, 1, &faults);
    pager_rig rig;
    pager_rig_options options = {.frames = 4,
                                 .disk_slots = PAGES,
                                 .disk = disk,
                                 .pager = {.page_max = PAGES, .policy = PLLM_POLICY_LRU}};
    assert_non_null(disk);
    assert_int_equal(pager_rig_open(NULL, &options, &rig), PLLM_OK);
    pllm_page pages[12];
    for (uint32_t i = 0; i < 12; i++)
        assert_int_equal(pager_rig_page(&rig, PLLM_NONE, i, &pages[i]), PLLM_OK);
    assert_int_equal(pllm_pager_settle(rig.pager), PLLM_OK);
    pllm_faulty_disk_stats stats;
    pllm_faulty_disk_stats_get(disk, &stats);
    pllm_faulty_disk_options_of(disk)->corrupt_read_at = stats.reads;
    pllm_faulty_disk_options_of(disk)->fail_at = stats.requests + 1;
    expect_sentence(rig.pager, pages[0], PLLM_ECORRUPT, "does not match its checksum");
    expect_sentence(rig.pager, pages[1], PLLM_EIO, strerror(ENXIO));
    pllm_pager_check(rig.pager);
    pager_rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_fault_loses_nothing),
        cmocka_unit_test(every_device_call_may_fail),
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(every_disk_call_may_fail),
        cmocka_unit_test(a_lost_page_names_folder_and_way_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
