/* Two regions under one budget on the simulated device, driven at random against a model.
 *
 * The model knows, for each page, whether it is mapped and which stamp was written there, and how
 * many chunks each region keeps; from that it predicts every answer (OK or ENODEVMEM), every
 * charge and every excess. A stamp that changes means that two pages share a chunk or that a mapped
 * page was touched. Fenced pages settle when the device's clock says so; all of a region's wait for
 * one event, so a map that meets one either finds them all settled or answers EBUSY.
 * The seed of a failing run is printed; PLLM_SIM_SEED=n runs that one alone,
 * PLLM_SIM_SEEDS=n seeds 1 to n (250). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "vmm/region.h"
#include "failing_context.h"

#define CHUNK ((uint64_t)64 << 10)
enum { REGIONS = 2, PAGES = 12, SEEDS = 250, STEPS = 120 };

static uint64_t current_seed; /* for the report of a failure */

typedef struct part { /* one region and what the model knows of it */
    pllm_region *region;
    pllm_budget_member *member;
    pllm_event *fence;
    uint8_t mapped[PAGES], fenced[PAGES];
    uint64_t stamp[PAGES];
    uint32_t kept, kept_max;
    uint64_t minimum, limit; /* in chunks */
} part;

typedef struct world {
    failing_context memory;
    pllm_device *device;
    const pllm_device_ops *ops;
    pllm_stream *stream;
    pllm_budget *budget;
    uint64_t random, budget_limit, capacity; /* the last two in chunks */
    uint64_t next_stamp;
    part parts[REGIONS];
    uint32_t refused, reused, settled_late, busy;
} world;

static uint64_t draw(world *w, uint64_t below)
{
    uint64_t x = w->random += 0x9e3779b97f4a7c15u; /* SplitMix64 */
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return (x ^ (x >> 31)) % below;
}

static uint32_t count(const uint8_t *flags)
{
    uint32_t sum = 0;
    for (uint32_t page = 0; page < PAGES; page++) sum += flags[page];
    return sum;
}

static uint64_t charged(const part *p)
{
    return count(p->mapped) + count(p->fenced) + p->kept;
}

static uint64_t held(const part *p)
{
    return charged(p) > p->minimum ? charged(p) : p->minimum;
}

static uint64_t total_charged(const world *w)
{
    return charged(&w->parts[0]) + charged(&w->parts[1]);
}

static int may_charge(const world *w, const part *p, uint64_t chunks)
{
    const part *other = p == &w->parts[0] ? &w->parts[1] : &w->parts[0];
    uint64_t now = charged(p), then = now + chunks;
    if (chunks == 0) return 1;
    if (then > p->limit || total_charged(w) + chunks > w->budget_limit) return 0;
    uint64_t held_then = then > p->minimum ? then : p->minimum;
    return held_then == held(p) || held_then + held(other) <= w->budget_limit;
}

static volatile uint64_t *word(const world *w, const part *p, uint32_t page, uint64_t offset)
{
    char *view = w->ops->host_view(w->device, pllm_region_base(p->region) + page * CHUNK);
    return (volatile uint64_t *)(void *)(view + offset);
}

static void stamp(world *w, part *p, uint32_t page)
{
    p->stamp[page] = ++w->next_stamp;
    *word(w, p, page, 0) = p->stamp[page];
    *word(w, p, page, CHUNK - 8) = ~p->stamp[page];
}

/* The model's side of a settled fence. */
static void model_settle(part *p)
{
    for (uint32_t page = 0; page < PAGES; page++) {
        if (p->fenced[page] && p->kept < p->kept_max) p->kept++;
        p->fenced[page] = 0;
    }
}

static void settle_all(world *w, part *p)
{
    while (pllm_region_settle(p->region) > 0) w->settled_late++;
    model_settle(p);
}

static void step_map(world *w, part *p)
{
    uint32_t first = (uint32_t)draw(w, PAGES), pages = (uint32_t)draw(w, PAGES - first + 1);
    int fenced = 0;
    for (uint32_t page = first; page < first + pages; page++) fenced |= p->fenced[page];
    int status = pllm_region_map(p->region, first, pages);
    if (fenced && status == PLLM_EBUSY) {
        w->busy++;
        return;
    }
    if (fenced) model_settle(p);
    uint32_t needed = 0;
    for (uint32_t page = first; page < first + pages; page++) needed += !p->mapped[page];
    uint32_t from_kept = needed < p->kept ? needed : p->kept;
    int fits = may_charge(w, p, needed - from_kept) &&
               total_charged(w) + needed - from_kept <= w->capacity;
    assert_int_equal(status, fits ? PLLM_OK : PLLM_ENODEVMEM);
    w->refused += !fits;
    if (!fits) return;
    w->reused += from_kept;
    p->kept -= from_kept;
    for (uint32_t page = first; page < first + pages; page++) {
        if (p->mapped[page]) continue;
        p->mapped[page] = 1;
        stamp(w, p, page);
    }
}

static void step_unmap(world *w, part *p)
{
    uint32_t first = (uint32_t)draw(w, PAGES), pages = (uint32_t)draw(w, PAGES - first + 1);
    int fence = draw(w, 2) == 0;
    if (fence) {
        settle_all(w, p); /* the event may be recorded again only when no page waits for it */
        for (uint32_t page = first; page < first + pages; page++)
            if (p->mapped[page]) /* work that would fault, were the page to go too early */
                assert_int_equal(w->ops->fill(w->device, w->stream,
                                              pllm_region_base(p->region) + page * CHUNK, CHUNK, 9),
                                 PLLM_OK);
        assert_int_equal(w->ops->event_record(w->device, p->fence, w->stream), PLLM_OK);
    }
    assert_int_equal(pllm_region_unmap(p->region, first, pages, fence ? p->fence : NULL), PLLM_OK);
    for (uint32_t page = first; page < first + pages; page++) {
        if (!p->mapped[page]) continue;
        p->mapped[page] = 0;
        if (fence)
            p->fenced[page] = 1;
        else if (p->kept < p->kept_max)
            p->kept++;
    }
}

static void step_limits(world *w, part *p)
{
    const part *other = p == &w->parts[0] ? &w->parts[1] : &w->parts[0];
    if (draw(w, 2)) {
        uint64_t limit = draw(w, 2 * PAGES);
        int fits = p->minimum + other->minimum <= limit;
        assert_int_equal(pllm_budget_set_limit(w->budget, limit * CHUNK),
                         fits ? PLLM_OK : PLLM_ENODEVMEM);
        if (fits) w->budget_limit = limit;
    } else {
        uint64_t minimum = draw(w, 6), limit = draw(w, PAGES + 1);
        int expected = minimum > limit                              ? PLLM_EINVAL
                       : minimum + other->minimum > w->budget_limit ? PLLM_ENODEVMEM
                                                                    : PLLM_OK;
        assert_int_equal(pllm_budget_member_set(p->member, minimum * CHUNK, limit * CHUNK),
                         expected);
        if (expected == PLLM_OK) p->minimum = minimum, p->limit = limit;
    }
}

static void step_trim(world *w, part *p)
{
    uint32_t keep = (uint32_t)draw(w, 4);
    uint32_t gone = p->kept > keep ? p->kept - keep : 0;
    assert_int_equal(pllm_region_trim(p->region, keep), gone * CHUNK);
    p->kept -= gone;
}

static void check(world *w)
{
    for (uint32_t r = 0; r < REGIONS; r++) {
        part *p = &w->parts[r];
        const part *other = &w->parts[!r];
        pllm_region_check(p->region);
        pllm_region_stats stats;
        pllm_region_stats_get(p->region, &stats);
        assert_int_equal(stats.mapped_count, count(p->mapped));
        assert_int_equal(stats.kept_count, p->kept);
        assert_int_equal(stats.fenced_count, count(p->fenced));
        assert_int_equal(pllm_budget_charged(p->member), charged(p) * CHUNK);
        for (uint32_t page = 0; page < PAGES; page++) {
            assert_int_equal(pllm_region_is_mapped(p->region, page), p->mapped[page]);
            if (!p->mapped[page]) continue;
            assert_int_equal(*word(w, p, page, 0), p->stamp[page]);
            assert_int_equal(*word(w, p, page, CHUNK - 8), ~p->stamp[page]);
        }
        /* Who returns its excess, the other doing the same, is within every limit again. */
        uint64_t excess = pllm_budget_excess(p->member);
        uint64_t other_excess = pllm_budget_excess(other->member);
        uint64_t mine = charged(p) * CHUNK - excess, yours = charged(other) * CHUNK - other_excess;
        uint64_t my_hold = mine > p->minimum * CHUNK ? mine : p->minimum * CHUNK;
        uint64_t your_hold = yours > other->minimum * CHUNK ? yours : other->minimum * CHUNK;
        assert_true(mine <= p->limit * CHUNK);
        assert_true(my_hold + your_hold <= w->budget_limit * CHUNK);
        if (charged(p) <= p->limit && held(p) + held(other) <= w->budget_limit)
            assert_int_equal(excess, 0);
    }
    pllm_budget_stats stats;
    pllm_budget_stats_get(w->budget, &stats);
    assert_int_equal(stats.charged_bytes, total_charged(w) * CHUNK);
}

static void open_world(world *w, uint64_t seed)
{
    failing_context_init(&w->memory, FAILING_NEVER);
    w->random = seed;
    w->budget_limit = 6 + draw(w, 2 * PAGES - 6);
    w->capacity = w->budget_limit - draw(w, 3);
    const pllm_context *context = &w->memory.context;
    pllm_sim_device_options sim = {.struct_bytes = sizeof sim,
                                   .seed = seed,
                                   .capacity_bytes = w->capacity * CHUNK,
                                   .latency_ns_max = 100};
    assert_int_equal(pllm_device_open_sim(context, &sim, &w->device), PLLM_OK);
    w->ops = w->device->ops;
    assert_int_equal(w->ops->stream_open(w->device, &w->stream), PLLM_OK);
    assert_int_equal(pllm_budget_open(context, w->budget_limit * CHUNK, &w->budget), PLLM_OK);
    for (uint32_t r = 0; r < REGIONS; r++) {
        part *p = &w->parts[r];
        p->minimum = draw(w, 3);
        p->limit = p->minimum + draw(w, PAGES);
        p->kept_max = (uint32_t)draw(w, 5);
        pllm_region_options options = {sizeof options, PAGES, CHUNK, p->kept_max, 0};
        assert_int_equal(w->ops->event_open(w->device, &p->fence), PLLM_OK);
        assert_int_equal(
            pllm_budget_join(w->budget, "part", p->minimum * CHUNK, p->limit * CHUNK, &p->member),
            PLLM_OK);
        assert_int_equal(pllm_region_open(context, w->device, p->member, &options, &p->region),
                         PLLM_OK);
    }
}

static void close_world(world *w)
{
    for (uint32_t r = 0; r < REGIONS; r++) {
        pllm_region_close(w->parts[r].region);
        w->ops->event_close(w->device, w->parts[r].fence);
        assert_int_equal(pllm_budget_charged(w->parts[r].member), 0);
        pllm_budget_leave(w->parts[r].member);
    }
    pllm_budget_close(w->budget);
    w->ops->stream_close(w->device, w->stream);
    pllm_device_close(w->device);
    failing_context_check(&w->memory);
}

static void random_steps_match_the_model(void **state)
{
    (void)state;
    const char *only = getenv("PLLM_SIM_SEED"), *many = getenv("PLLM_SIM_SEEDS");
    uint64_t first = only ? strtoull(only, NULL, 10) : 1;
    uint64_t last = only ? first : many ? strtoull(many, NULL, 10) : SEEDS;
    uint32_t refused = 0, reused = 0, settled_late = 0, busy = 0;
    for (uint64_t seed = first; seed <= last; seed++) {
        world w = {0};
        open_world(&w, seed);
        current_seed = seed;
        for (uint32_t i = 0; i < STEPS; i++) {
            part *p = &w.parts[draw(&w, REGIONS)];
            switch (draw(&w, 8)) {
            case 0:
            case 1:
            case 2:
                step_map(&w, p);
                break;
            case 3:
            case 4:
            case 5:
                step_unmap(&w, p);
                break;
            case 6:
                step_limits(&w, p);
                break;
            default:
                step_trim(&w, p);
                break;
            }
            check(&w);
        }
        refused += w.refused;
        reused += w.reused;
        settled_late += w.settled_late;
        busy += w.busy;
        close_world(&w);
    }
    if (only || last < SEEDS) return;
    assert_true(refused > 1000 && reused > 1000 && settled_late > 1000 && busy > 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(random_steps_match_the_model)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (failed) print_message("PLLM_SIM_SEED=%llu\n", (unsigned long long)current_seed);
    return failed;
}
