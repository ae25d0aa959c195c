/* The pager on a simulated device and disk: random budgets, orders, delays and faults.
 *
 * Every seed is a run of random calls against a model that knows, for each page, its version and
 * whether it may be lost. After every call the pager's invariants are checked; every pinned page's
 * bytes are compared when it is pinned and again when it is unpinned. Without faults, a call may
 * fail only where the model says that it cannot be done. With faults, calls may fail, but bytes are
 * never wrong, and what is lost stays lost in the same way.
 *
 * PLLM_SIM_SEEDS=N runs N seeds (default 300); PLLM_SIM_SEED=S runs one. A failing seed is printed.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "failing_context.h"
#include "pager_rig.h"
#include "tier/disk_sim.h"

enum { PAGE_MAX = 72, GROUP_MAX = 12, HELD_MAX = 4, CALLS = 400 };

typedef struct model_page {
    uint32_t live, sealed, content, version, pins;
    int lost; /* status that its pin must give for ever */
} model_page;

typedef struct held_pin {
    uint32_t count;
    pllm_page pages[GROUP_MAX];
    void *views[GROUP_MAX];
} held_pin;

typedef struct sim_world {
    uint64_t random;
    failing_context failing;
    pllm_device *sim, *device;
    pllm_disk *disk;
    pager_rig rig;
    uint32_t page_max, frames, slots, faults;
    model_page model[PAGE_MAX];
    held_pin held[HELD_MAX];
    uint32_t held_count, scan_count, scan_at;
    pllm_page scan[PAGE_MAX];
    uint64_t pins, failures;
} sim_world;

static uint64_t current_seed;

#define CHECK(condition)                                                                          \
    do {                                                                                          \
        if (!(condition))                                                                         \
            fail_msg("seed %llu: %s (line %d; last error: %s)", (unsigned long long)current_seed, \
                     #condition, __LINE__, pllm_last_error()->text);                              \
    } while (0)

static uint32_t below(sim_world *world, uint32_t limit)
{
    world->random = world->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((world->random >> 33) % limit);
}

/* ---- what may fail ---- */

static uint32_t pages_pinned(const sim_world *world)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < world->page_max; i++) count += world->model[i].pins > 0;
    return count;
}

static pllm_pager_stats stats_of(const sim_world *world)
{
    pllm_pager_stats stats;
    pllm_pager_stats_get(world->rig.pager, &stats);
    return stats;
}

static int homes_are_full(const sim_world *world)
{
    pllm_pager_stats stats = stats_of(world);
    return stats.tiers.host_used + stats.tiers.disk_used == world->slots;
}

/* A pin of `distinct` pages beyond those pinned has failed: was that right? */
static void check_failure(sim_world *world, int status, uint32_t distinct)
{
    world->failures++;
    if (world->faults) return;
    uint32_t limit = stats_of(world).tiers.frame_limit;
    if (status == PLLM_EBUSY)
        CHECK(pages_pinned(world) + distinct > limit);
    else if (status == PLLM_ENODEVMEM)
        CHECK(distinct > limit);
    else if (status == PLLM_ELIMIT)
        CHECK(homes_are_full(world));
    else
        CHECK(!"a failure that nothing explains");
}

/* ---- reading ---- */

static void verify(const held_pin *pin, sim_world *world)
{
    for (uint32_t i = 0; i < pin->count; i++) {
        pllm_page page = pin->pages[i];
        CHECK(pllm_pager_is_resident(world->rig.pager, page));
        CHECK(pager_rig_matches(pin->views[i], world->rig.page_bytes, page,
                                world->model[page].version));
    }
}

static void unpin(sim_world *world, held_pin *pin)
{
    verify(pin, world);
    for (uint32_t i = 0; i < pin->count; i++) world->model[pin->pages[i]].pins--;
    pllm_pager_unpin(world->rig.pager, pin->pages, pin->count);
    *pin = world->held[--world->held_count];
}

static uint32_t count_distinct(const sim_world *world, const held_pin *pin)
{
    uint32_t distinct = 0;
    for (uint32_t i = 0; i < pin->count; i++) {
        uint32_t j = 0;
        while (j < i && pin->pages[j] != pin->pages[i]) j++;
        distinct += j == i && !world->model[pin->pages[i]].pins;
    }
    return distinct;
}

/* A pin failed as a lost page does: the page says so again, alone; what was lost stays so. */
static void learn_lost(sim_world *world, const held_pin *pin, int status)
{
    int found = 0;
    for (uint32_t i = 0; i < pin->count; i++) {
        model_page *page = &world->model[pin->pages[i]];
        int again = pllm_pager_pin(world->rig.pager, &pin->pages[i], 1, PLLM_PIN_READ, NULL);
        if (again == PLLM_OK) pllm_pager_unpin(world->rig.pager, &pin->pages[i], 1);
        if (page->lost) CHECK(again == page->lost);
        if (again != PLLM_EIO && again != PLLM_ECORRUPT) continue;
        CHECK(world->faults);
        /* EIO is said too where no page could be written to make room; that may pass. */
        if (!strstr(pllm_last_error()->text, "is lost")) continue;
        page->lost = again;
        found |= again == status;
    }
    if (status == PLLM_ECORRUPT) CHECK(found);
}

static void pin_pages(sim_world *world, held_pin *pin, int try_only)
{
    uint32_t distinct = count_distinct(world, pin);
    int lost = 0, status;
    for (uint32_t i = 0; i < pin->count; i++) lost |= world->model[pin->pages[i]].lost;
    if (try_only)
        status = pllm_pager_try_pin(world->rig.pager, pin->pages, pin->count, pin->views);
    else
        status =
            pllm_pager_pin(world->rig.pager, pin->pages, pin->count, PLLM_PIN_READ, pin->views);
    pllm_pager_check(world->rig.pager);
    if (try_only && status == 0) return;
    if (status < 0) {
        if (lost)
            CHECK(status == PLLM_EIO || status == PLLM_ECORRUPT);
        else
            check_failure(world, status, distinct);
        if (status == PLLM_EIO || status == PLLM_ECORRUPT) learn_lost(world, pin, status);
        return;
    }
    CHECK(!lost);
    world->pins += pin->count;
    for (uint32_t i = 0; i < pin->count; i++) world->model[pin->pages[i]].pins++;
    verify(pin, world);
    world->held[world->held_count++] = *pin;
    if (below(world, 3)) unpin(world, &world->held[world->held_count - 1]);
}

static int readable(const sim_world *world, uint32_t page)
{
    return world->model[page].live && world->model[page].content;
}

static void call_read_random(sim_world *world)
{
    held_pin pin = {0};
    uint32_t wanted = 1 + below(world, GROUP_MAX);
    for (uint32_t i = 0; i < 4 * wanted && pin.count < wanted; i++) {
        uint32_t page = below(world, world->page_max);
        if (readable(world, page)) pin.pages[pin.count++] = page;
    }
    if (pin.count && world->held_count < HELD_MAX) pin_pages(world, &pin, below(world, 4) == 0);
}

static void call_read_scan(sim_world *world)
{
    if (!world->scan_count || world->held_count == HELD_MAX) return;
    held_pin pin = {0};
    uint32_t wanted = 1 + below(world, GROUP_MAX / 2);
    for (uint32_t i = 0; i < wanted; i++) {
        uint32_t page = world->scan[world->scan_at++ % world->scan_count];
        if (readable(world, page)) pin.pages[pin.count++] = page;
    }
    if (pin.count) pin_pages(world, &pin, 0);
}

/* ---- writing ---- */

static uint32_t open_page(sim_world *world)
{
    uint32_t start = below(world, world->page_max);
    for (uint32_t i = 0; i < world->page_max; i++) {
        uint32_t page = (start + i) % world->page_max;
        if (world->model[page].live && !world->model[page].sealed) return page;
    }
    return PLLM_NONE;
}

static uint32_t new_page(sim_world *world)
{
    uint32_t page, live = 0, after = below(world, world->page_max);
    int status = pllm_pager_page_new(world->rig.pager, below(world, 4) ? after : PLLM_NONE,
                                     below(world, 200), &page);
    for (uint32_t i = 0; i < world->page_max; i++) live += world->model[i].live;
    if (status < 0) { /* those on their way out are waited for */
        CHECK(status == PLLM_ELIMIT && live == world->page_max);
        return PLLM_NONE;
    }
    CHECK(!world->model[page].live);
    world->model[page] = (model_page){.live = 1, .version = world->model[page].version};
    return page;
}

/* A new page, or a new version of an open one. */
static void call_write(sim_world *world)
{
    if (world->held_count == HELD_MAX) return;
    uint32_t page = below(world, 2) ? open_page(world) : PLLM_NONE;
    if (page == PLLM_NONE) page = new_page(world);
    if (page == PLLM_NONE || world->model[page].pins) return; /* its readers compare bytes */
    model_page *model = &world->model[page];
    pllm_pin_mode mode = below(world, 3) ? PLLM_PIN_WRITE : PLLM_PIN_NEW;
    if (!model->content || model->lost) mode = PLLM_PIN_NEW;
    held_pin pin = {.count = 1, .pages = {page}};
    int status = pllm_pager_pin(world->rig.pager, &page, 1, mode, pin.views);
    pllm_pager_check(world->rig.pager);
    if (status < 0) {
        check_failure(world, status, 1);
        if (mode == PLLM_PIN_WRITE && (status == PLLM_EIO || status == PLLM_ECORRUPT))
            learn_lost(world, &pin, status);
        return;
    }
    if (mode == PLLM_PIN_WRITE)
        CHECK(pager_rig_matches(pin.views[0], world->rig.page_bytes, page, model->version));
    model->version++;
    model->content = model->pins = 1;
    model->lost = 0;
    pager_rig_fill(pin.views[0], world->rig.page_bytes, page, model->version);
    if (below(world, 3)) {
        pllm_pager_seal(world->rig.pager, page);
        model->sealed = 1;
    }
    world->held[world->held_count++] = pin;
    if (below(world, 4)) unpin(world, &world->held[world->held_count - 1]);
}

static void call_free(sim_world *world)
{
    uint32_t page = below(world, world->page_max);
    if (!world->model[page].live || world->model[page].pins) return;
    pllm_pager_page_free(world->rig.pager, page);
    world->model[page] = (model_page){.version = world->model[page].version};
}

/* ---- the rest ---- */

static void call_scan(sim_world *world)
{
    if (below(world, 8) == 0) {
        CHECK(pllm_pager_scan(world->rig.pager, NULL, 0) == PLLM_OK);
        world->scan_count = 0;
        return;
    }
    uint32_t count = 0, stride = 1 + below(world, 3), start = below(world, world->page_max);
    int repeats = below(world, 4) == 0; /* shared pages come twice in an order */
    for (uint32_t i = 0; i < world->page_max && count < PAGE_MAX - 1; i++) {
        uint32_t page = (start + i * stride) % world->page_max;
        if (!world->model[page].live) continue;
        uint32_t j = 0;
        while (j < count && world->scan[j] != page) j++;
        if (j == count || repeats) world->scan[count++] = page;
    }
    CHECK(pllm_pager_scan(world->rig.pager, world->scan, count) == PLLM_OK);
    world->scan_count = count;
    world->scan_at = 0;
}

static void call_hint(sim_world *world)
{
    pllm_page pages[GROUP_MAX] = {0};
    uint32_t count = below(world, GROUP_MAX);
    for (uint32_t i = 0; i < count; i++) pages[i] = below(world, world->page_max + 1);
    pllm_pager_hint(world->rig.pager, pages, count, (pllm_hint)below(world, 4));
}

static void call_evict(sim_world *world)
{
    pllm_page pages[GROUP_MAX] = {0};
    uint32_t count = below(world, GROUP_MAX);
    int gone;
    if (below(world, 2)) {
        gone = pllm_pager_evict(world->rig.pager, count);
    } else {
        for (uint32_t i = 0; i < count; i++) pages[i] = below(world, world->page_max);
        gone = pllm_pager_evict_pages(world->rig.pager, pages, count);
        for (uint32_t i = 0; i < count && !world->faults && gone >= 0; i++)
            if (world->model[pages[i]].live && !world->model[pages[i]].pins &&
                !homes_are_full(world))
                CHECK(!pllm_pager_is_resident(world->rig.pager, pages[i]));
    }
    CHECK(gone <= (int)count);
    if (gone < 0 && !world->faults) CHECK(gone == PLLM_ELIMIT && homes_are_full(world));
}

static void call_limit(sim_world *world)
{
    uint32_t frames = 1 + below(world, world->frames);
    int status = pllm_pager_set_device_limit(world->rig.pager, frames * world->rig.page_bytes);
    if (status == PLLM_EBUSY)
        CHECK(world->faults || pages_pinned(world) > frames);
    else if (status == PLLM_ELIMIT)
        CHECK(world->faults || homes_are_full(world));
    else
        CHECK(status == PLLM_OK || world->faults);
    if (status == PLLM_OK) CHECK(stats_of(world).tiers.frames_used <= frames);
}

static void one_call(sim_world *world)
{
    static void (*const calls[])(sim_world *) = {
        call_write,     call_write, call_write, call_read_random, call_read_random, call_read_scan,
        call_read_scan, call_free,  call_scan,  call_hint,        call_evict,       call_limit,
    };
    uint32_t which = below(world, 20);
    if (which < 12) {
        if (which >= 7 && below(world, 3)) which = 6; /* rare ones are rare */
        calls[which](world);
    } else if (which < 16) {
        if (world->held_count) unpin(world, &world->held[below(world, world->held_count)]);
    } else if (which < 19) {
        CHECK(pllm_pager_poll(world->rig.pager) == PLLM_OK || world->faults);
        if (below(world, 4) == 0) pllm_pager_tidy(world->rig.pager);
    } else {
        CHECK(pllm_pager_settle(world->rig.pager) == PLLM_OK || world->faults);
    }
    pllm_pager_check(world->rig.pager);
}

/* ---- a run ---- */

static void devices_open(sim_world *world, uint32_t disk_slots, uint64_t page_bytes)
{
    static const uint64_t latencies[] = {1, 1000, 1000000};
    const pllm_context *context = &world->failing.context;
    pllm_sim_device_options sim = {
        .struct_bytes = sizeof sim,
        .seed = current_seed,
        .capacity_bytes = 64 << 20,
        .latency_ns_max = latencies[below(world, 3)],
    };
    CHECK(pllm_device_open_sim(context, &sim, &world->sim) == PLLM_OK);
    pllm_faulty_device_options faulty = {
        .struct_bytes = sizeof faulty,
        .fail_at = world->faults ? below(world, 3000) : UINT64_MAX,
        .fail_async = below(world, 2),
    };
    CHECK(pllm_device_open_faulty(context, world->sim, &faulty, &world->device) == PLLM_OK);
    if (!disk_slots) return;
    pllm_sim_disk_options disk = {
        .struct_bytes = sizeof disk,
        .depth = 1 + below(world, 20),
        .seed = current_seed,
        .bytes = disk_slots * page_bytes,
        .latency_ns_max = latencies[below(world, 3)],
        .device = world->device,
    };
    pllm_disk *inner;
    CHECK(pllm_disk_open_sim(context, &disk, &inner) == PLLM_OK);
    pllm_faulty_disk_options faults = pllm_faulty_disk_none();
    faults.seed = current_seed;
    if (world->faults) {
        faults.fail_permille = below(world, 60);
        faults.corrupt_permille = below(world, 20);
        faults.lose_permille = below(world, 20);
        if (below(world, 8) == 0) faults.fail_poll_at = below(world, 2000);
    }
    CHECK(pllm_disk_open_faulty(context, inner, &faults, &world->disk) == PLLM_OK);
}

static int world_open(sim_world *world, uint64_t seed)
{
    memset(world, 0, sizeof *world);
    current_seed = seed;
    world->random = seed * 0x9e3779b97f4a7c15u + 1;
    failing_context_init(&world->failing, FAILING_NEVER);
    world->faults = below(world, 3) == 0;
    world->page_max = 8 + below(world, PAGE_MAX - 8);
    world->frames = 2 + below(world, 24);
    uint32_t host = below(world, 3) ? below(world, PAGE_MAX) : 0;
    uint32_t on_disk = below(world, 3) ? below(world, PAGE_MAX) : 0;
    world->slots = host + on_disk;
    uint64_t page_bytes = below(world, 3) ? 4096 : 20480;
    devices_open(world, on_disk, page_bytes);
    pager_rig_options options = {
        .device = world->device,
        .page_bytes = page_bytes,
        .frames = world->frames,
        .host_slots = host,
        .disk_slots = on_disk,
        .disk = world->disk,
        .pager =
            {
                .page_max = world->page_max,
                .policy = (pllm_policy_kind)below(world, PLLM_POLICY_COUNT),
                .prefetch = (pllm_prefetch_kind)below(world, 2),
                .prefetch_max = below(world, 2) ? below(world, world->frames + 2) : 0,
                .record_max = below(world, 2) * 64,
                .fingerprint = seed,
            },
    };
    int status = pager_rig_open(&world->failing.context, &options, &world->rig);
    if (status < 0) CHECK(world->faults);
    return status;
}

/* The last word: what is not lost reads right, one page at a time; then nothing is left. */
static void world_settle(sim_world *world)
{
    if (world->disk) *pllm_faulty_disk_options_of(world->disk) = pllm_faulty_disk_none();
    while (world->held_count) unpin(world, &world->held[0]);
    (void)pllm_pager_settle(world->rig.pager);
    pllm_pager_check(world->rig.pager);
    for (uint32_t page = 0; page < world->page_max; page++) {
        if (!readable(world, page)) continue;
        held_pin pin = {.count = 1, .pages = {page}};
        pin_pages(world, &pin, 0);
        if (world->held_count) unpin(world, &world->held[0]);
    }
    for (uint32_t page = 0; page < world->page_max; page++)
        if (world->model[page].live) pllm_pager_page_free(world->rig.pager, page);
    (void)pllm_pager_settle(world->rig.pager);
    pllm_pager_check(world->rig.pager);
    pllm_pager_stats stats = stats_of(world);
    CHECK(stats.pages == 0 && stats.resident == 0 && stats.pinned == 0);
    CHECK(stats.tiers.frames_used == 0 && stats.tiers.host_used == 0);
    CHECK(stats.tiers.disk_used == 0);
    CHECK(stats.prefetched == stats.prefetch_used + stats.prefetch_wasted);
    CHECK(stats.hits + stats.misses == stats.pins);
}

static void run_seed(uint64_t seed, uint64_t *pins, uint64_t *failures)
{
    static sim_world world;
    if (world_open(&world, seed) == PLLM_OK) {
        for (uint32_t call = 0; call < CALLS; call++) one_call(&world);
        world_settle(&world);
    }
    pager_rig_close(&world.rig);
    CHECK(pllm_faulty_device_live(world.device) == 0);
    pllm_device_close(world.device);
    pllm_device_close(world.sim);
    failing_context_check(&world.failing);
    *pins += world.pins;
    *failures += world.failures;
}

static void pager_holds_under_every_seed(void **state)
{
    (void)state;
    const char *one = getenv("PLLM_SIM_SEED"), *many = getenv("PLLM_SIM_SEEDS");
    uint64_t first = one ? strtoull(one, NULL, 10) : 1;
    uint64_t count = one ? 1 : many ? strtoull(many, NULL, 10) : 300;
    uint64_t pins = 0, failures = 0;
    for (uint64_t seed = first; seed < first + count; seed++) run_seed(seed, &pins, &failures);
    print_message("%llu seeds: %llu pages pinned, %llu calls refused\n", (unsigned long long)count,
                  (unsigned long long)pins, (unsigned long long)failures);
    if (count >= 100) assert_true(pins > count * 200 && failures > count / 10);
}

static void say_seed(int number)
{
    (void)number;
    fprintf(stderr, "seed %llu: PLLM_SIM_SEED replays it\n", (unsigned long long)current_seed);
}

int main(void)
{
    signal(SIGABRT, say_seed); /* a broken invariant aborts */
    const struct CMUnitTest tests[] = {cmocka_unit_test(pager_holds_under_every_seed)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
