/* Two elastic pools under one limit on the simulated device, driven at random against a model.
 *
 * The model knows of each unit of 4 KiB what it is (free, placed, a block's, a block's room, given
 * back behind a stream) and what was written there. From that it predicts every answer: whether
 * bytes are there to be taken, where a block goes, and, counting pages that are used, whether the
 * limits allow it, since whatever is mapped and unused must make way. What it can't predict, when a
 * fence is done, it looks up. Work on the stream writes to what is given back behind it: were a
 * page to go too early, the device would say so. The seed of a failing run is printed;
 * PLLM_SIM_SEED=n runs that one alone, PLLM_SIM_SEEDS=n seeds 1 to n (120). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "vmm/elastic.h"
#include "failing_context.h"

#define PAGE ((uint64_t)64 << 10)
#define UNIT ((uint64_t)4 << 10)
enum { POOLS = 2, PAGES = 10, PER_PAGE = 16, UNITS = PAGES * PER_PAGE, SEEDS = 120, STEPS = 120 };

static uint64_t current_seed;

typedef struct unit {
    uint8_t kind; /* a pllm_span_kind */
    uint16_t owner;
    uint64_t stamp; /* 0: nothing was written */
} unit;

typedef struct part {
    pllm_vmm_pool *pool;
    unit units[UNITS];
    uint64_t minimum, limit; /* in pages */
    int zeroes, ahead;
} part;

typedef struct world {
    failing_context memory;
    pllm_device *device;
    const pllm_device_ops *ops;
    pllm_stream *stream;
    pllm_vmm *vmm;
    uint64_t random, limit, next_stamp;
    uint16_t next_owner;
    part parts[POOLS];
    uint32_t refused, taken, grown, waited, unfit;
} world;

static uint64_t draw(world *w, uint64_t below)
{
    uint64_t x = w->random += 0x9e3779b97f4a7c15u; /* SplitMix64 */
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return (x ^ (x >> 31)) % below;
}

static volatile uint64_t *word(const world *w, const part *p, uint32_t at)
{
    return w->ops->host_view(w->device, pllm_vmm_base(p->pool) + at * UNIT);
}

static int counts(uint8_t kind)
{
    return kind == PLLM_SPAN_PLACED || kind == PLLM_SPAN_BLOCK || kind == PLLM_SPAN_PENDING;
}

/* Pages with a unit that counts, if [first, end) counted too. */
static uint64_t used_pages(const part *p, uint32_t first, uint32_t end)
{
    uint64_t pages = 0;
    for (uint32_t page = 0; page < PAGES; page++) {
        int used = 0;
        for (uint32_t i = 0; i < PER_PAGE; i++) {
            uint32_t at = page * PER_PAGE + i;
            /* The room that a fence keeps with its block has no owner. */
            used |= counts(p->units[at].kind) && p->units[at].owner;
            used |= at >= first && at < end;
        }
        pages += (uint64_t)used;
    }
    return pages;
}

static uint64_t most(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static int fits(const world *w, const part *p, uint32_t first, uint32_t end)
{
    const part *other = p == &w->parts[0] ? &w->parts[1] : &w->parts[0];
    uint64_t now = used_pages(p, 0, 0), then = used_pages(p, first, end);
    uint64_t others = most(used_pages(other, 0, 0), other->minimum);
    if (then == now) return 1;
    if (then > p->limit || then + used_pages(other, 0, 0) > w->limit) return 0;
    return most(then, p->minimum) == most(now, p->minimum) ||
           most(then, p->minimum) + others <= w->limit;
}

/* Fences that are done by now. */
static void look_up(part *p)
{
    for (uint32_t at = 0; at < UNITS; at++)
        if (p->units[at].kind == PLLM_SPAN_PENDING &&
            pllm_spans_at(&p->pool->spans, at * UNIT)->kind != PLLM_SPAN_PENDING)
            p->units[at] = (unit){0};
}

static void settle(world *w)
{
    while (pllm_vmm_poll(w->vmm) > 0) continue;
    for (int i = 0; i < POOLS; i++) look_up(&w->parts[i]);
}

static int all_are(const part *p, uint32_t first, uint32_t end, uint8_t kind)
{
    for (uint32_t at = first; at < end; at++)
        if (p->units[at].kind != kind) return 0;
    return 1;
}

static int any_is(const part *p, uint32_t first, uint32_t end, uint8_t kind)
{
    for (uint32_t at = first; at < end; at++)
        if (p->units[at].kind == kind) return 1;
    return 0;
}

static void take(world *w, part *p, uint32_t first, uint32_t end, uint8_t kind, uint16_t owner)
{
    for (uint32_t at = first; at < end; at++) {
        if (p->zeroes)
            for (uint32_t i = 0; i < UNIT / 8; i += 37) assert_int_equal(word(w, p, at)[i], 0);
        p->units[at] = (unit){kind, owner, ++w->next_stamp};
        *word(w, p, at) = p->units[at].stamp;
        word(w, p, at)[UNIT / 8 - 1] = ~p->units[at].stamp;
    }
    w->taken++;
}

static void span_of(world *w, uint32_t *first, uint32_t *end)
{
    *first = (uint32_t)draw(w, UNITS);
    *end = *first + 1 + (uint32_t)draw(w, draw(w, 3) ? 24 : UNITS);
    if (*end > UNITS) *end = UNITS;
}

static void expect(world *w, int status, int fit)
{
    assert_int_equal(status, fit ? PLLM_OK : PLLM_ENODEVMEM);
    w->refused += !fit;
}

static void step_allocate(world *w, part *p)
{
    uint32_t first, end;
    span_of(w, &first, &end);
    int status = pllm_vmm_allocate(p->pool, first * UNIT, (end - first) * UNIT, NULL);
    for (int i = 0; i < POOLS; i++) look_up(&w->parts[i]);
    if (status == PLLM_OK) { /* it was free; whether it might have been taken is asked below */
        assert_true(all_are(p, first, end, PLLM_SPAN_FREE) && fits(w, p, first, end));
        take(w, p, first, end, PLLM_SPAN_PLACED, ++w->next_owner);
    } else if (all_are(p, first, end, PLLM_SPAN_FREE)) {
        expect(w, status, fits(w, p, first, end));
    } else {
        int waits = any_is(p, first, end, PLLM_SPAN_PENDING);
        assert_true(status == PLLM_EEXIST || (status == PLLM_EBUSY && waits));
        w->waited += status == PLLM_EBUSY;
    }
}

static void stream_writes(world *w, part *p, uint32_t first, uint32_t end)
{
    uint32_t count = 1 + (uint32_t)draw(w, 8);
    for (uint32_t i = 0; i < count; i++)
        assert_int_equal(w->ops->fill(w->device, w->stream, pllm_vmm_base(p->pool) + first * UNIT,
                                      (end - first) * UNIT, 9),
                         PLLM_OK);
}

static void give(part *p, uint32_t first, uint32_t end, int fenced)
{
    for (uint32_t at = first; at < end; at++) {
        uint16_t owner = p->units[at].kind == PLLM_SPAN_ROOM ? 0 : p->units[at].owner;
        p->units[at] = fenced ? (unit){PLLM_SPAN_PENDING, owner, 0} : (unit){0};
    }
}

static void step_deallocate(world *w, part *p)
{
    uint32_t first, end;
    span_of(w, &first, &end);
    while (draw(w, 4) && first < UNITS - 1 && p->units[first].kind != PLLM_SPAN_PLACED) first++;
    if (end <= first) end = first + 1;
    while (draw(w, 4) && end > first + 1 && !all_are(p, first, end, PLLM_SPAN_PLACED)) end--;
    int right = all_are(p, first, end, PLLM_SPAN_PLACED), fenced = draw(w, 2) == 0;
    if (right && fenced) stream_writes(w, p, first, end);
    uint64_t offset = first * UNIT, bytes = (end - first) * UNIT;
    int status = fenced ? pllm_vmm_deallocate_after(p->pool, offset, bytes, w->stream)
                        : pllm_vmm_deallocate(p->pool, offset, bytes);
    assert_int_equal(status, right ? PLLM_OK : PLLM_EINVAL);
    if (right) give(p, first, end, fenced);
    look_up(p);
}

/* The lowest free run, which may begin anywhere: units are aligned more than blocks need. */
static uint32_t lowest(const part *p, uint32_t length)
{
    for (uint32_t at = 0; at + length <= UNITS; at++)
        if (all_are(p, at, at + length, PLLM_SPAN_FREE)) return at;
    return UNITS;
}

static uint32_t pending(const part *p)
{
    uint32_t count = 0;
    for (uint32_t at = 0; at < UNITS; at++) count += p->units[at].kind == PLLM_SPAN_PENDING;
    return count;
}

static void step_block(world *w, part *p)
{
    uint32_t length = 1 + (uint32_t)draw(w, 40),
             room = (uint32_t)draw(w, 3) ? (uint32_t)draw(w, 24) : 0;
    pllm_vmm_block_options options = {.struct_bytes = sizeof options,
                                      .alignment_bytes = (uint32_t)UNIT,
                                      .bytes = length * UNIT,
                                      .room_bytes = room * UNIT};
    uint64_t address;
    uint32_t waiting = pending(p);
    int status = pllm_vmm_block_allocate(p->pool, &options, &address);
    for (int i = 0; i < POOLS; i++) look_up(&w->parts[i]);
    uint32_t at = lowest(p, length + room);
    if (at == UNITS) {
        assert_int_equal(status, PLLM_ELIMIT);
        w->unfit++;
        return;
    }
    if (status == PLLM_OK) at = (uint32_t)((address - pllm_vmm_base(p->pool)) / UNIT);
    /* Fences met while room was being made change what there is after the place was chosen. */
    if (status == PLLM_OK || pending(p) == waiting) expect(w, status, fits(w, p, at, at + length));
    if (status < 0) return;
    assert_true(all_are(p, at, at + length + room, PLLM_SPAN_FREE));
    assert_true(waiting || at == lowest(p, length + room));
    take(w, p, at, at + length, PLLM_SPAN_BLOCK, ++w->next_owner);
    for (uint32_t i = 0; i < room; i++)
        p->units[at + length + i] = (unit){PLLM_SPAN_ROOM, w->next_owner, 0};
}

/* A block of the pool, if there is one: [first, end), its room to room_end, free to free_end. */
typedef struct found {
    uint32_t first, end, room_end, free_end;
} found;

static int find_block(world *w, const part *p, found *f)
{
    uint32_t from = (uint32_t)draw(w, UNITS);
    for (uint32_t i = 0; i < UNITS; i++) {
        uint32_t at = (from + i) % UNITS;
        if (p->units[at].kind != PLLM_SPAN_BLOCK ||
            (at > 0 && p->units[at - 1].kind == PLLM_SPAN_BLOCK &&
             p->units[at - 1].owner == p->units[at].owner))
            continue;
        uint16_t owner = p->units[at].owner;
        f->first = f->end = at;
        while (f->end < UNITS && p->units[f->end].kind == PLLM_SPAN_BLOCK &&
               p->units[f->end].owner == owner)
            f->end++;
        f->room_end = f->end;
        while (f->room_end < UNITS && p->units[f->room_end].kind == PLLM_SPAN_ROOM &&
               p->units[f->room_end].owner == owner)
            f->room_end++;
        f->free_end = f->room_end;
        while (f->free_end < UNITS && p->units[f->free_end].kind == PLLM_SPAN_FREE) f->free_end++;
        return 1;
    }
    return 0;
}

static void step_grow(world *w, part *p)
{
    found f;
    settle(w);
    if (!find_block(w, p, &f)) return;
    uint16_t owner = p->units[f.first].owner;
    uint32_t end = f.first + 1 + (uint32_t)draw(w, 48);
    int status = pllm_vmm_block_grow(p->pool, pllm_vmm_base(p->pool) + f.first * UNIT,
                                     (end - f.first) * UNIT);
    if (end > f.free_end) {
        assert_int_equal(status, (end - f.first) > UNITS ? PLLM_EINVAL : PLLM_ELIMIT);
        return;
    }
    if (end > f.end) {
        expect(w, status, fits(w, p, f.end, end));
        if (status == PLLM_OK) take(w, p, f.end, end, PLLM_SPAN_BLOCK, owner);
    } else {
        assert_int_equal(status, PLLM_OK);
        for (uint32_t at = end; at < f.end; at++) p->units[at] = (unit){PLLM_SPAN_ROOM, owner, 0};
    }
    w->grown += status == PLLM_OK;
}

static void step_free(world *w, part *p)
{
    found f;
    if (!find_block(w, p, &f)) return;
    int fenced = draw(w, 2) == 0;
    uint64_t address = pllm_vmm_base(p->pool) + f.first * UNIT;
    if (fenced) stream_writes(w, p, f.first, f.end);
    assert_int_equal(fenced ? pllm_vmm_block_free_after(p->pool, address, w->stream)
                            : pllm_vmm_block_free(p->pool, address),
                     PLLM_OK);
    give(p, f.first, f.room_end, fenced);
    look_up(p);
}

static void step_limits(world *w, part *p)
{
    const part *other = p == &w->parts[0] ? &w->parts[1] : &w->parts[0];
    settle(w);
    if (draw(w, 2)) {
        uint64_t limit = 1 + draw(w, 2 * PAGES);
        int right = p->minimum + other->minimum <= limit;
        assert_int_equal(pllm_vmm_set_limit(w->vmm, limit * PAGE),
                         right ? PLLM_OK : PLLM_ENODEVMEM);
        if (right) w->limit = limit;
    } else {
        uint64_t minimum = draw(w, 4), limit = minimum + 1 + draw(w, PAGES);
        int right = minimum + other->minimum <= w->limit;
        assert_int_equal(pllm_vmm_pool_set(p->pool, minimum * PAGE, limit * PAGE),
                         right ? PLLM_OK : PLLM_ENODEVMEM);
        if (right) p->minimum = minimum, p->limit = limit;
    }
}

static void check(world *w)
{
    for (int i = 0; i < POOLS; i++) {
        part *p = &w->parts[i];
        uint64_t allocated = 0;
        pllm_vmm_pool_stats stats = {.struct_bytes = sizeof stats};
        pllm_vmm_pool_check(p->pool);
        assert_int_equal(pllm_vmm_pool_stats_get(p->pool, &stats), PLLM_OK);
        for (uint32_t at = 0; at < UNITS; at++) {
            const unit *u = &p->units[at];
            assert_int_equal(pllm_spans_at(&p->pool->spans, at * UNIT)->kind, u->kind);
            if (u->kind != PLLM_SPAN_PLACED && u->kind != PLLM_SPAN_BLOCK) continue;
            allocated += UNIT;
            assert_int_equal(*word(w, p, at), u->stamp);
            assert_int_equal(word(w, p, at)[UNIT / 8 - 1], ~u->stamp);
        }
        assert_int_equal(stats.allocated_bytes, allocated);
        assert_int_equal(stats.mapped_bytes - stats.ahead_bytes, used_pages(p, 0, 0) * PAGE);
        assert_int_equal(stats.physical_bytes, stats.mapped_bytes + stats.kept_bytes);
        if (!p->ahead) assert_int_equal(stats.ahead_bytes, 0);
    }
    pllm_vmm_stats all = {.struct_bytes = sizeof all};
    assert_int_equal(pllm_vmm_stats_get(w->vmm, &all), PLLM_OK);
    /* Whatever is above a lowered limit is used. */
    uint64_t used = used_pages(&w->parts[0], 0, 0) + used_pages(&w->parts[1], 0, 0);
    assert_true(all.physical_bytes <= most(all.limit_bytes, used * PAGE));
}

static void open_world(world *w, uint64_t seed)
{
    failing_context_init(&w->memory, FAILING_NEVER);
    w->random = seed;
    w->limit = 4 + draw(w, 2 * PAGES - 4);
    const pllm_context *context = &w->memory.context;
    pllm_sim_device_options sim = {.struct_bytes = sizeof sim,
                                   .seed = seed,
                                   .capacity_bytes = 4 * PAGES * PAGE,
                                   .latency_ns_max = 100};
    pllm_vmm_options options = {
        .struct_bytes = sizeof options, .no_background = 1, .limit_bytes = w->limit * PAGE};
    assert_int_equal(pllm_device_open_sim(context, &sim, &w->device), PLLM_OK);
    w->ops = w->device->ops;
    assert_int_equal(w->ops->stream_open(w->device, &w->stream), PLLM_OK);
    assert_int_equal(pllm_vmm_open(context, w->device, &options, &w->vmm), PLLM_OK);
    for (uint32_t i = 0; i < POOLS; i++) {
        part *p = &w->parts[i];
        p->minimum = draw(w, 3);
        p->limit = p->minimum + 1 + draw(w, PAGES);
        p->zeroes = i == 0;
        p->ahead = draw(w, 2) == 0;
        pllm_vmm_pool_options pool = {.struct_bytes = sizeof pool,
                                      .zero_on_reuse = i == 0,
                                      .capacity_bytes = PAGES * PAGE,
                                      .page_bytes = PAGE,
                                      .minimum_bytes = p->minimum * PAGE,
                                      .limit_bytes = p->limit * PAGE,
                                      .kept_bytes = draw(w, 5) * PAGE,
                                      .ahead_bytes = p->ahead ? (1 + draw(w, 3)) * PAGE : 0};
        assert_int_equal(pllm_vmm_register(w->vmm, i ? "second" : "first", &pool, &p->pool),
                         PLLM_OK);
    }
}

static void close_world(world *w)
{
    pllm_vmm_close(w->vmm);
    w->ops->stream_close(w->device, w->stream);
    pllm_device_close(w->device);
    failing_context_check(&w->memory);
}

static void step(world *w)
{
    part *p = &w->parts[draw(w, POOLS)];
    switch (draw(w, 16)) {
    case 0:
    case 1:
    case 2:
    case 3:
        step_allocate(w, p);
        break;
    case 4:
    case 5:
    case 6:
        step_deallocate(w, p);
        break;
    case 7:
    case 8:
        step_block(w, p);
        break;
    case 9:
    case 10:
        step_grow(w, p);
        break;
    case 11:
        step_free(w, p);
        break;
    case 12:
        step_limits(w, p);
        break;
    case 13:
        pllm_vmm_pool_compact(p->pool, NULL);
        look_up(p);
        break;
    default:
        pllm_vmm_poll(w->vmm);
        for (int i = 0; i < POOLS; i++) look_up(&w->parts[i]);
        break;
    }
}

static void random_steps_match_the_model(void **state)
{
    (void)state;
    const char *only = getenv("PLLM_SIM_SEED"), *many = getenv("PLLM_SIM_SEEDS");
    uint64_t first = only ? strtoull(only, NULL, 10) : 1;
    uint64_t last = only ? first : many ? strtoull(many, NULL, 10) : SEEDS;
    uint32_t refused = 0, taken = 0, grown = 0, waited = 0, unfit = 0;
    for (uint64_t seed = first; seed <= last; seed++) {
        static world w;
        w = (world){0};
        current_seed = seed;
        open_world(&w, seed);
        for (uint32_t i = 0; i < STEPS; i++) {
            step(&w);
            check(&w);
        }
        close_world(&w);
        refused += w.refused, taken += w.taken, grown += w.grown;
        waited += w.waited, unfit += w.unfit;
    }
    print_message("%u allocations, %u refused, %u waited, %u found no place; grown %u times\n",
                  taken, refused, waited, unfit, grown);
    if (only || last < SEEDS) return;
    assert_true(refused > 500 && taken > 1000 && grown > 200 && waited > 10 && unfit > 50);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(random_steps_match_the_model)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (failed) print_message("PLLM_SIM_SEED=%llu\n", (unsigned long long)current_seed);
    return failed;
}
