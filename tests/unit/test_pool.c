/* Pools on the host device: what is cut, joined, found, kept away and refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <jansson.h>
#include "failing_context.h"
#include "pool/log.h"
#include "pool/pool.h"

#define CHUNK ((uint64_t)64 << 10)
#define KIB ((uint64_t)1 << 10)

typedef struct fixture {
    failing_context memory;
    pllm_device *device;
    pllm_pool *pool;
    pllm_stream *streams[3];
} fixture;

static void fixture_open(fixture *f, pllm_pool_options options)
{
    options.struct_bytes = sizeof options;
    failing_context_init(&f->memory, FAILING_NEVER);
    pllm_host_device_options host = {.struct_bytes = sizeof host, .chunk_bytes = CHUNK};
    if (!options.capacity_bytes) options.capacity_bytes = 1024 * CHUNK;
    if (!options.block_max) options.block_max = 2048;
    assert_int_equal(pllm_device_open_host(&f->memory.context, &host, &f->device), PLLM_OK);
    assert_int_equal(pllm_pool_open(&f->memory.context, f->device, &options, &f->pool), PLLM_OK);
    for (int i = 0; i < 3; i++)
        assert_int_equal(pllm_stream_open(f->device, NULL, &f->streams[i]), PLLM_OK);
}

static void fixture_close(fixture *f)
{
    pllm_pool_check(f->pool);
    pllm_pool_close(f->pool);
    for (int i = 0; i < 3; i++) pllm_stream_close(f->device, f->streams[i]);
    pllm_device_close(f->device);
    failing_context_check(&f->memory);
}

static uint64_t take(fixture *f, uint64_t bytes, pllm_stream *stream)
{
    uint64_t address;
    assert_int_equal(pllm_pool_allocate(f->pool, bytes, stream, &address), PLLM_OK);
    assert_int_equal(address % 512, 0);
    pllm_pool_check(f->pool);
    return address;
}

static void give(fixture *f, uint64_t address, pllm_stream *stream)
{
    assert_int_equal(pllm_pool_free(f->pool, address, 0, stream), PLLM_OK);
    pllm_pool_check(f->pool);
}

static pllm_pool_stats stats(fixture *f)
{
    pllm_pool_stats now = {.struct_bytes = sizeof now};
    assert_int_equal(pllm_pool_stats_get(f->pool, &now), PLLM_OK);
    return now;
}

static void blocks_are_cut_and_joined_again(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, (pllm_pool_options){0});
    uint64_t whole = take(&f, 10 * CHUNK, NULL);
    assert_int_equal(stats(&f).reserved_bytes, 10 * CHUNK);
    give(&f, whole, NULL);
    uint64_t part[5];
    for (int i = 0; i < 5; i++) {
        part[i] = take(&f, 2 * CHUNK, NULL);
        assert_int_equal(part[i], whole + (uint64_t)i * 2 * CHUNK); /* the lowest part */
    }
    assert_int_equal(stats(&f).splits, 4);
    assert_int_equal(stats(&f).reserved_bytes, 10 * CHUNK);
    const int order[] = {0, 2, 4, 1, 3};
    for (int i = 0; i < 5; i++) give(&f, part[order[i]], NULL);
    assert_int_equal(stats(&f).free_count, 1);
    assert_int_equal(stats(&f).merges, 4 + 0);
    assert_int_equal(take(&f, 10 * CHUNK, NULL), whole);
    assert_int_equal(stats(&f).hits, 1 + 5);
    assert_int_equal(stats(&f).created_chunks, 10);
    fixture_close(&f);
}

static void the_smallest_that_fits_is_taken(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, (pllm_pool_options){0});
    const uint64_t sizes[] = {400 * KIB, 200 * KIB, 300 * KIB, 260 * KIB, 200 * KIB};
    uint64_t at[5], wall[5];
    for (int i = 0; i < 5; i++) {
        at[i] = take(&f, sizes[i], NULL);
        wall[i] = take(&f, 64 * KIB, NULL);
    }
    for (int i = 0; i < 5; i++) give(&f, at[i], NULL);
    assert_int_equal(take(&f, 255 * KIB, NULL), at[3]);
    assert_int_equal(take(&f, 200 * KIB, NULL), at[1]); /* the lower of two alike */
    assert_int_equal(take(&f, 200 * KIB, NULL), at[4]);
    assert_int_equal(take(&f, 301 * KIB, NULL), at[0]);
    assert_int_equal(take(&f, 200 * KIB, NULL), at[2]);
    /* What 255 left of 260 is too little to be kept apart; 301 of 400 is not. */
    uint64_t size;
    assert_int_equal(pllm_pool_size(f.pool, at[3], &size), PLLM_OK);
    assert_int_equal(size, 260 * KIB);
    assert_int_equal(take(&f, 99 * KIB, NULL), at[0] + 301 * KIB);
    for (int i = 0; i < 5; i++) give(&f, wall[i], NULL);
    fixture_close(&f);
}

static void small_ones_come_from_slabs(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, (pllm_pool_options){0});
    uint64_t at[128], size, slabs;
    int count = 0;
    for (uint64_t bytes = 1; bytes <= 32 * KIB; bytes += bytes < 4096 ? 511 : 1777) {
        at[count] = take(&f, bytes, NULL);
        assert_int_equal(pllm_pool_size(f.pool, at[count++], &size), PLLM_OK);
        assert_true(size >= bytes && (size <= bytes + 511 || size - bytes <= bytes / 4));
    }
    slabs = stats(&f).slabs;
    while (count > 0) give(&f, at[--count], NULL);
    assert_int_equal(pllm_pool_trim(f.pool, 0, NULL), PLLM_OK);
    assert_int_equal(stats(&f).slabs, 0);
    assert_true(slabs > 15);
    assert_int_equal(stats(&f).reserved_bytes, 0);
    for (int i = 0; i < 128; i++) at[i] = take(&f, 300, NULL);
    assert_int_equal(stats(&f).slabs, 1);
    assert_int_equal(stats(&f).reserved_bytes, CHUNK);
    for (int i = 0; i < 128; i++)
        for (int k = 0; k < i; k++) assert_int_not_equal(at[i], at[k]);
    give(&f, at[77], NULL);
    assert_int_equal(take(&f, 512, NULL), at[77]);
    for (int i = 0; i < 128; i++) give(&f, at[i], NULL);
    assert_int_equal(stats(&f).slabs, 1); /* kept, until its memory is wanted */
    uint64_t other = take(&f, CHUNK, NULL);
    assert_int_equal(stats(&f).slabs, 0);
    assert_int_equal(stats(&f).reserved_bytes, CHUNK);
    give(&f, other, NULL);
    fixture_close(&f);
}

static void wrong_frees_are_refused_and_harm_nothing(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, (pllm_pool_options){0});
    uint64_t small = take(&f, 700, NULL), large = take(&f, 100 * KIB, NULL), size;
    uint64_t other = take(&f, 100 * KIB, NULL);
    pllm_pool_stats before = stats(&f);
    const uint64_t foreign[] = {
        0,           1,          small + 1,         small + 512,         large + 512,
        large - 512, UINT64_MAX, other + 100 * KIB, large + 1023 * CHUNK};
    for (uint32_t i = 0; i < sizeof foreign / sizeof foreign[0]; i++) {
        assert_int_equal(pllm_pool_free(f.pool, foreign[i], 0, NULL), PLLM_EINVAL);
        assert_int_equal(pllm_pool_record_stream(f.pool, foreign[i], f.streams[0]), PLLM_EINVAL);
        assert_int_equal(pllm_pool_size(f.pool, foreign[i], &size), PLLM_EINVAL);
    }
    assert_int_equal(pllm_pool_free(f.pool, small, 701, NULL), PLLM_EINVAL);
    assert_int_equal(pllm_pool_free(f.pool, large, 700, NULL), PLLM_EINVAL);
    assert_non_null(strstr(pllm_last_error()->text, "102400 bytes, not 700"));
    pllm_pool_stats after = stats(&f);
    after.refused_calls = before.refused_calls;
    after.stream_count = before.stream_count;
    assert_memory_equal(&before, &after, sizeof before);
    assert_int_equal(pllm_pool_free(f.pool, small, 700, NULL), PLLM_OK);
    assert_int_equal(pllm_pool_free(f.pool, large, 100 * KIB, NULL), PLLM_OK);
    assert_int_equal(pllm_pool_free(f.pool, small, 700, NULL), PLLM_EINVAL);
    assert_int_equal(pllm_pool_free(f.pool, large, 0, f.streams[0]), PLLM_EINVAL);
    assert_int_equal(pllm_pool_record_stream(f.pool, large, f.streams[0]), PLLM_EINVAL);
    assert_non_null(strstr(pllm_last_error()->text, "freed twice"));
    assert_int_equal(pllm_pool_allocate(f.pool, 0, NULL, &size), PLLM_EINVAL);
    assert_int_equal(pllm_pool_allocate(f.pool, 1025 * CHUNK, NULL, &size), PLLM_ELIMIT);
    assert_int_equal(pllm_pool_allocate(f.pool, UINT64_MAX, NULL, &size), PLLM_ELIMIT);
    give(&f, other, NULL);
    fixture_close(&f);
}

/* Free memory in the middle is mapped elsewhere before anything new is taken. */
static void free_chunks_move_to_where_they_fit(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, (pllm_pool_options){.limit_bytes = 16 * CHUNK});
    uint64_t at[8];
    for (int i = 0; i < 8; i++) at[i] = take(&f, 2 * CHUNK, NULL);
    for (int i = 0; i < 8; i += 2) give(&f, at[i], NULL);
    unsigned char *kept = (unsigned char *)(uintptr_t)at[3];
    memset(kept, 42, 2 * CHUNK);
    uint64_t large = take(&f, 7 * CHUNK, NULL); /* no two free ones are neighbours */
    memset((void *)(uintptr_t)large, 1, 7 * CHUNK);
    for (uint64_t i = 0; i < 2 * CHUNK; i++) assert_int_equal(kept[i], 42);
    pllm_pool_stats now = stats(&f);
    assert_int_equal(now.reserved_bytes, 16 * CHUNK);
    assert_int_equal(now.created_chunks, 16);
    assert_int_equal(now.remapped_chunks, 7);
    uint64_t none;
    assert_int_equal(pllm_pool_allocate(f.pool, 2 * CHUNK, NULL, &none), PLLM_ENODEVMEM);
    assert_int_equal(none, 0);
    pllm_pool_check(f.pool);
    take(&f, CHUNK, NULL);
    assert_int_equal(stats(&f).failed_calls, 1);
    fixture_close(&f);
}

/* A place that others have left half a page on both sides of is better than three whole pages. */
static void large_blocks_use_up_the_fewest_pages(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, (pllm_pool_options){0});
    take(&f, 9 * CHUNK + CHUNK / 2, NULL);
    uint64_t gap = take(&f, 3 * CHUNK, NULL);
    take(&f, 9 * CHUNK + CHUNK / 2, NULL);
    give(&f, gap, NULL);
    uint64_t large = take(&f, 6 * CHUNK, NULL); /* takes the gap's two whole pages */
    assert_int_equal(stats(&f).remapped_chunks, 2);
    give(&f, large, NULL);
    pllm_pool_stats before = stats(&f);
    assert_int_equal(take(&f, 3 * CHUNK, NULL), gap);
    pllm_pool_stats after = stats(&f);
    assert_int_equal(after.remapped_chunks, before.remapped_chunks + 2);
    assert_int_equal(after.created_chunks, before.created_chunks);
    assert_int_equal(take(&f, 4 * CHUNK, NULL), large);
    fixture_close(&f);
}

/* A stream is held by a slow copy over the link: 64 KiB at 1 MB/s. */
typedef struct slow {
    fixture f;
    void *host;
} slow;

static void slow_open(slow *s, uint32_t wait_us, uint64_t limit)
{
    fixture *f = &s->f;
    failing_context_init(&f->memory, FAILING_NEVER);
    pllm_host_device_options host = {
        .struct_bytes = sizeof host, .chunk_bytes = CHUNK, .link_bytes_per_second = 1e6};
    pllm_pool_options options = {.struct_bytes = sizeof options,
                                 .capacity_bytes = 256 * CHUNK,
                                 .block_max = 2048,
                                 .limit_bytes = limit,
                                 .wait_us = wait_us};
    assert_int_equal(pllm_device_open_host(&f->memory.context, &host, &f->device), PLLM_OK);
    assert_int_equal(pllm_pool_open(&f->memory.context, f->device, &options, &f->pool), PLLM_OK);
    for (int i = 0; i < 3; i++)
        assert_int_equal(pllm_stream_open(f->device, NULL, &f->streams[i]), PLLM_OK);
    assert_int_equal(f->device->ops->host_alloc(f->device, CHUNK, &s->host), PLLM_OK);
}

static void slow_close(slow *s)
{
    s->f.device->ops->host_free(s->f.device, s->host, CHUNK);
    fixture_close(&s->f);
}

static void hold(slow *s, pllm_stream *stream, uint64_t address)
{
    pllm_copy copy = {address, (pllm_va)(uintptr_t)s->host, CHUNK};
    assert_int_equal(s->f.device->ops->copy(s->f.device, stream, PLLM_COPY_IN, &copy), PLLM_OK);
}

static void blocks_change_streams_when_the_work_is_over(void **state)
{
    (void)state;
    slow s;
    slow_open(&s, 1, 0);
    fixture *f = &s.f;
    uint64_t a = take(f, 2 * CHUNK, f->streams[0]), small = take(f, 600, f->streams[0]);
    hold(&s, f->streams[0], a);
    give(f, a, f->streams[0]);
    give(f, small, f->streams[0]);
    assert_int_equal(stats(f).fences, 0); /* nobody has asked yet */
    /* At once where it was freed, */
    assert_int_equal(take(f, 2 * CHUNK, f->streams[0]), a);
    assert_int_equal(take(f, 600, f->streams[0]), small);
    give(f, a, f->streams[0]);
    give(f, small, f->streams[0]);
    /* elsewhere not: */
    uint64_t b = take(f, 2 * CHUNK, f->streams[1]), c = take(f, 2 * CHUNK, NULL);
    assert_true(b != a && c != a);
    assert_int_not_equal(take(f, 600, f->streams[1]), small);
    assert_true(stats(f).fences > 0);
    /* until the stream is past it. */
    assert_int_equal(pllm_stream_sync(f->device, f->streams[0]), PLLM_OK);
    uint64_t seen = 0;
    for (int i = 0; i < 40 && !seen; i++) seen = take(f, 2 * CHUNK, f->streams[1]) == a;
    assert_true(seen);
    slow_close(&s);
}

static void recorded_streams_keep_a_block_away(void **state)
{
    (void)state;
    slow s;
    slow_open(&s, 1, 0);
    fixture *f = &s.f;
    uint64_t a = take(f, 2 * CHUNK, f->streams[0]);
    assert_int_equal(pllm_pool_record_stream(f->pool, a, f->streams[1]), PLLM_OK);
    assert_int_equal(pllm_pool_record_stream(f->pool, a, f->streams[0]), PLLM_OK);
    hold(&s, f->streams[1], a);
    give(f, a, f->streams[0]);
    assert_int_equal(stats(f).pending_bytes, 2 * CHUNK);
    assert_int_equal(stats(f).pending_count, 1);
    assert_int_equal(pllm_pool_free(f->pool, a, 0, NULL), PLLM_EINVAL);
    assert_int_not_equal(take(f, 2 * CHUNK, f->streams[0]), a); /* not even its own stream */
    assert_int_not_equal(take(f, 2 * CHUNK, f->streams[1]), a);
    assert_int_equal(pllm_stream_sync(f->device, f->streams[1]), PLLM_OK);
    assert_int_equal(pllm_pool_trim(f->pool, UINT64_MAX, NULL), PLLM_OK); /* looks */
    assert_int_equal(stats(f).pending_count, 0);
    assert_int_equal(take(f, 2 * CHUNK, f->streams[0]), a);
    slow_close(&s);
}

static void at_the_limit_it_waits(void **state)
{
    (void)state;
    slow s;
    slow_open(&s, 1, 4 * CHUNK);
    fixture *f = &s.f;
    uint64_t a = take(f, 3 * CHUNK, f->streams[0]);
    hold(&s, f->streams[0], a);
    give(f, a, f->streams[0]);
    take(f, 3 * CHUNK, f->streams[1]); /* 65 ms later */
    assert_true(stats(f).waits > 0);
    assert_int_equal(stats(f).reserved_peak_bytes <= 4 * CHUNK, 1);
    slow_close(&s);
}

static void streams_are_forgotten(void **state)
{
    (void)state;
    slow s;
    slow_open(&s, 1, 0);
    fixture *f = &s.f;
    uint64_t a = take(f, 2 * CHUNK, f->streams[0]), b = take(f, 2 * CHUNK, f->streams[1]);
    uint64_t c = take(f, 2 * CHUNK, f->streams[1]);
    assert_int_equal(pllm_pool_record_stream(f->pool, b, f->streams[0]), PLLM_OK);
    assert_int_equal(pllm_pool_record_stream(f->pool, c, f->streams[0]), PLLM_OK);
    hold(&s, f->streams[0], a);
    give(f, a, f->streams[0]);
    give(f, b, NULL);
    assert_int_equal(stats(f).stream_count, 3);
    assert_int_equal(pllm_pool_forget_stream(f->pool, f->streams[0]), PLLM_OK);
    assert_int_equal(stats(f).stream_count, 2);
    pllm_stream_close(f->device, f->streams[0]);
    assert_int_equal(stats(f).pending_count, 0);
    assert_int_equal(take(f, 4 * CHUNK, NULL), a); /* a and b are nobody's, and joined */
    give(f, c, NULL);
    assert_int_equal(stats(f).pending_count, 0); /* nobody is left to wait for */
    assert_int_equal(pllm_stream_open(f->device, NULL, &f->streams[0]), PLLM_OK);
    slow_close(&s);
}

static void sixty_three_streams_and_no_more(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, (pllm_pool_options){0});
    pllm_stream *streams[64];
    uint64_t at;
    for (int i = 0; i < 64; i++) {
        assert_int_equal(pllm_stream_open(f.device, NULL, &streams[i]), PLLM_OK);
        assert_int_equal(pllm_pool_allocate(f.pool, 99, streams[i], &at),
                         i < 63 ? PLLM_OK : PLLM_ELIMIT);
    }
    assert_int_equal(at, 0);
    assert_int_equal(pllm_pool_forget_stream(f.pool, streams[5]), PLLM_OK);
    assert_int_equal(pllm_pool_allocate(f.pool, 99, streams[63], &at), PLLM_OK);
    for (int i = 0; i < 64; i++) {
        assert_int_equal(pllm_pool_forget_stream(f.pool, streams[i]), PLLM_OK);
        pllm_stream_close(f.device, streams[i]);
    }
    fixture_close(&f);
}

typedef struct asked {
    uint64_t block;
    uint32_t times, give_at;
} asked;

static int make_room(void *user, pllm_pool *pool, uint64_t bytes, uint32_t attempt)
{
    asked *a = user;
    assert_int_equal(attempt, a->times);
    assert_int_equal(bytes, 3 * CHUNK);
    if (a->times++ < a->give_at) return 1;
    if (!a->block) return 0;
    assert_int_equal(pllm_pool_free(pool, a->block, 0, NULL), PLLM_OK);
    a->block = 0;
    return 1;
}

static void the_callback_may_make_room(void **state)
{
    (void)state;
    fixture f;
    asked a = {.give_at = 2};
    fixture_open(
        &f, (pllm_pool_options){.limit_bytes = 4 * CHUNK, .out_of_memory = make_room, .user = &a});
    a.block = take(&f, 2 * CHUNK, NULL);
    uint64_t at = take(&f, 3 * CHUNK, NULL), none;
    assert_int_equal(a.times, 3);
    assert_int_equal(stats(&f).callbacks, 3);
    a.times = 0;
    assert_int_equal(pllm_pool_allocate(f.pool, 3 * CHUNK, NULL, &none), PLLM_ENODEVMEM);
    assert_int_equal(a.times, 3);
    give(&f, at, NULL);
    fixture_close(&f);
}

static void limits_change_and_memory_goes_back(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, (pllm_pool_options){0});
    uint64_t at[8], freed, none;
    for (int i = 0; i < 8; i++) at[i] = take(&f, 2 * CHUNK, NULL);
    for (int i = 1; i < 8; i += 2) give(&f, at[i], NULL);
    assert_int_equal(pllm_pool_trim(f.pool, 13 * CHUNK, &freed), PLLM_OK);
    assert_int_equal(freed, 3 * CHUNK);
    assert_int_equal(stats(&f).reserved_bytes, 13 * CHUNK);
    assert_int_equal(stats(&f).trimmed_chunks, 3);
    pllm_pool_check(f.pool);
    assert_int_equal(pllm_pool_set_limit(f.pool, 10 * CHUNK), PLLM_OK);
    assert_int_equal(stats(&f).reserved_bytes, 10 * CHUNK);
    assert_int_equal(pllm_pool_set_limit(f.pool, 4 * CHUNK), PLLM_OK);
    assert_int_equal(stats(&f).reserved_bytes, 8 * CHUNK); /* what is live stays */
    assert_int_equal(pllm_pool_allocate(f.pool, CHUNK, NULL, &none), PLLM_ENODEVMEM);
    assert_int_equal(pllm_pool_set_limit(f.pool, 0), PLLM_EINVAL);
    for (int i = 0; i < 8; i += 2) give(&f, at[i], NULL);
    assert_int_equal(pllm_pool_set_limit(f.pool, 20 * CHUNK), PLLM_OK);
    take(&f, 12 * CHUNK, NULL);
    fixture_close(&f);
}

static void the_table_of_blocks_is_a_limit(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, (pllm_pool_options){.block_max = 40});
    uint64_t at[40], count = 0, none;
    int status = PLLM_OK;
    for (; count < 40 && status == PLLM_OK; count++)
        status = pllm_pool_allocate(f.pool, count % 2 ? 300 : 40 * KIB, NULL, &at[count]);
    assert_int_equal(status, PLLM_ELIMIT);
    assert_true(count > 20);
    assert_int_equal(pllm_pool_allocate(f.pool, 40 * KIB, NULL, &none), PLLM_ELIMIT);
    pllm_pool_check(f.pool);
    for (uint64_t i = 0; i + 1 < count; i++) give(&f, at[i], NULL);
    take(&f, 40 * KIB, NULL);
    fixture_close(&f);
}

static void freed_memory_is_poisoned_in_checked_builds(void **state)
{
    (void)state;
#ifdef PLLM_CHECKS
    fixture f;
    fixture_open(&f, (pllm_pool_options){0});
    const uint64_t sizes[] = {600, 3 * CHUNK};
    for (int k = 0; k < 4; k++) {
        uint64_t bytes = sizes[k % 2], at = take(&f, bytes, f.streams[0]);
        unsigned char *view = (unsigned char *)(uintptr_t)at;
        memset(view, 1, bytes);
        give(&f, at, k < 2 ? f.streams[0] : NULL);
        assert_int_equal(pllm_stream_sync(f.device, f.streams[0]), PLLM_OK);
        for (uint64_t i = 0; i < bytes; i++) assert_int_equal(view[i], 0xdd);
    }
    fixture_close(&f);
#endif
}

/* ---- what it tells ---- */

typedef struct text {
    char *text;
    uint64_t bytes, fail_after;
} text;

static int gather(void *user, const char *piece, uint64_t bytes)
{
    text *t = user;
    if (t->fail_after && t->bytes + bytes > t->fail_after) return PLLM_EIO;
    t->text = realloc(t->text, t->bytes + bytes + 1);
    memcpy(t->text + t->bytes, piece, bytes);
    t->bytes += bytes;
    t->text[t->bytes] = '\0';
    return PLLM_OK;
}

static uint64_t number(const json_t *object, const char *name)
{
    const json_t *value = json_object_get(object, name);
    assert_non_null(value);
    return (uint64_t)json_integer_value(value);
}

static void a_snapshot_tells_every_block(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, (pllm_pool_options){.limit_bytes = 64 * CHUNK});
    uint64_t a = take(&f, 3 * CHUNK, NULL), b = take(&f, 100, f.streams[0]);
    uint64_t c = take(&f, 5 * CHUNK, f.streams[1]);
    give(&f, a, f.streams[0]);
    give(&f, b, NULL);
    text t = {0};
    assert_int_equal(pllm_pool_snapshot(f.pool, gather, &t), PLLM_OK);
    json_t *root = json_loads(t.text, 0, NULL), *pool = json_object_get(root, "pool");
    assert_non_null(pool);
    uint64_t offset = 0, live = 0, free_bytes = 0, slots = 0, index;
    json_t *block;
    json_array_foreach(json_object_get(pool, "blocks"), index, block)
    {
        const char *what = json_string_value(json_object_get(block, "state"));
        assert_int_equal(number(block, "offset"), offset);
        offset += number(block, "bytes");
        if (strcmp(what, "live") == 0) live += number(block, "requested");
        if (strcmp(what, "free") == 0) free_bytes += number(block, "bytes");
        if (strcmp(what, "free") == 0 && number(block, "bytes") == 3 * CHUNK)
            assert_int_equal(number(block, "stream"), 1);
        if (strcmp(what, "slab") == 0) slots += json_array_size(json_object_get(block, "slots"));
    }
    assert_int_equal(offset, number(pool, "capacity_bytes"));
    assert_int_equal(live, 5 * CHUNK);
    assert_true(free_bytes >= 3 * CHUNK);
    assert_int_equal(slots, 128);
    assert_int_equal(number(pool, "requested_bytes"), 5 * CHUNK);
    assert_int_equal(number(pool, "reserved_bytes"), stats(&f).reserved_bytes);
    json_decref(root);
    free(t.text);
    t = (text){0};
    assert_int_equal(pllm_pool_set_limit(f.pool, PLLM_UNLIMITED), PLLM_OK);
    assert_int_equal(pllm_pool_snapshot(f.pool, gather, &t), PLLM_OK);
    root = json_loads(t.text, 0, NULL); /* no number that a reader can't take */
    assert_true(json_is_null(json_object_get(json_object_get(root, "pool"), "limit_bytes")));
    json_decref(root);
    free(t.text);
    t = (text){.fail_after = 1};
    assert_int_equal(pllm_pool_snapshot(f.pool, gather, &t), PLLM_EIO);
    give(&f, c, NULL);
    fixture_close(&f);
}

static void a_recording_is_what_happened(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, (pllm_pool_options){0});
    uint64_t a = take(&f, 3000, NULL), gone = take(&f, 77, NULL);
    give(&f, gone, NULL);
    text t = {0};
    assert_int_equal(pllm_pool_record(f.pool, gather, &t), PLLM_OK);
    assert_int_equal(pllm_pool_record(f.pool, gather, &t), PLLM_EBUSY);
    uint64_t b = take(&f, 5000000, f.streams[0]);
    assert_int_equal(pllm_pool_record_stream(f.pool, b, f.streams[1]), PLLM_OK);
    give(&f, a, NULL);
    give(&f, b, f.streams[0]);
    assert_int_equal(pllm_pool_record(f.pool, NULL, NULL), PLLM_OK);
    take(&f, 1, NULL);
    assert_string_equal(t.text, "pagedllm-pool-log 1\na 0 3000 0\na 2 5000000 1\nr 2 2\n"
                                "f 0 0\nf 2 1\n");
    pllm_pool_log *log;
    assert_int_equal(pllm_pool_log_parse(NULL, t.text, t.bytes, &log), PLLM_OK);
    assert_int_equal(log->step_count, 5);
    assert_int_equal(log->place_count, 2);
    assert_int_equal(log->stream_count, 3);
    assert_int_equal(log->peak_bytes, 5003000);
    assert_int_equal(log->live_count, 0);
    pllm_pool_log_close(log);
    free(t.text);
    t = (text){.fail_after = 1};
    assert_int_equal(pllm_pool_record(f.pool, gather, &t), PLLM_OK);
    assert_int_equal(pllm_pool_record(f.pool, NULL, NULL), PLLM_EIO);
    fixture_close(&f);
}

static void logs_are_read_or_refused(void **state)
{
    (void)state;
#define HEAD PLLM_POOL_LOG_HEAD "\n"
    const struct {
        const char *text, *why;
    } cases[] = {
        {HEAD, NULL},
        {PLLM_POOL_LOG_HEAD, NULL},
        {HEAD "# all\n\na 18446744073709551615 1 63\r\nf 18446744073709551615 0", NULL},
        {HEAD "a 1 5 0\nf 1 0\na 1 9 0\n", NULL},
        {"", "line 1"},
        {"pagedllm-pool-log 12\n", "line 1"},
        {HEAD "a 1 5 0\na 1 5 0\n", "line 3 of a pool's log: that id is in use"},
        {HEAD "f 1 0\n", "no block has that id"},
        {HEAD "a 1 5 0\nf 1 0\nr 1 0\n", "line 4 of a pool's log: no block has that id"},
        {HEAD "a 1 0 0\n", "0 bytes"},
        {HEAD "a 1 5 64\n", "a stream above 63"},
        {HEAD "a 1 5\n", "a number is missing"},
        {HEAD "a 1 5 0 \n", "more on the line"},
        {HEAD "a 1 x 0\n", "no number"},
        {HEAD "a 1 18446744073709551616 0\n", "more than 64 bits"},
        {HEAD "a 1 18446744073709551615 0\na 2 1 0\n", "an allocation of 1 bytes"},
        {HEAD " a 1 5 0\n", "begins with none"},
    };
    for (uint32_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        pllm_pool_log *log;
        int status = pllm_pool_log_parse(NULL, cases[i].text, strlen(cases[i].text), &log);
        assert_int_equal(status, cases[i].why ? PLLM_EINVAL : PLLM_OK);
        if (cases[i].why) assert_non_null(strstr(pllm_last_error()->text, cases[i].why));
        assert_true((log == NULL) == (cases[i].why != NULL));
        pllm_pool_log_close(log);
    }
}

static void options_are_checked(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, (pllm_pool_options){0});
    pllm_pool *pool;
    pllm_pool_options options = {.struct_bytes = sizeof options - 1};
    assert_int_equal(pllm_pool_open(NULL, f.device, &options, &pool), PLLM_EINVAL);
    options = (pllm_pool_options){.struct_bytes = sizeof options, .chunk_bytes = CHUNK + 512};
    assert_int_equal(pllm_pool_open(NULL, f.device, &options, &pool), PLLM_EINVAL);
    options = (pllm_pool_options){.struct_bytes = sizeof options, .block_max = 5};
    assert_int_equal(pllm_pool_open(NULL, f.device, &options, &pool), PLLM_EINVAL);
    options = (pllm_pool_options){.struct_bytes = sizeof options, .capacity_bytes = UINT64_MAX};
    assert_int_equal(pllm_pool_open(NULL, f.device, &options, &pool), PLLM_EINVAL);
    assert_null(pool);
    assert_int_equal(pllm_pool_open(NULL, NULL, NULL, &pool), PLLM_EINVAL);
    pllm_pool_stats wrong = {.struct_bytes = 1};
    assert_int_equal(pllm_pool_stats_get(f.pool, &wrong), PLLM_EINVAL);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_are_cut_and_joined_again),
        cmocka_unit_test(the_smallest_that_fits_is_taken),
        cmocka_unit_test(small_ones_come_from_slabs),
        cmocka_unit_test(wrong_frees_are_refused_and_harm_nothing),
        cmocka_unit_test(free_chunks_move_to_where_they_fit),
        cmocka_unit_test(large_blocks_use_up_the_fewest_pages),
        cmocka_unit_test(blocks_change_streams_when_the_work_is_over),
        cmocka_unit_test(recorded_streams_keep_a_block_away),
        cmocka_unit_test(at_the_limit_it_waits),
        cmocka_unit_test(streams_are_forgotten),
        cmocka_unit_test(sixty_three_streams_and_no_more),
        cmocka_unit_test(the_callback_may_make_room),
        cmocka_unit_test(limits_change_and_memory_goes_back),
        cmocka_unit_test(the_table_of_blocks_is_a_limit),
        cmocka_unit_test(freed_memory_is_poisoned_in_checked_builds),
        cmocka_unit_test(a_snapshot_tells_every_block),
        cmocka_unit_test(a_recording_is_what_happened),
        cmocka_unit_test(logs_are_read_or_refused),
        cmocka_unit_test(options_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
