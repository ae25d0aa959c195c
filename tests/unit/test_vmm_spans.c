/* Spans against a plain array, at random: what is at each byte, where a block fits, the longest
 * free run; alignment; and a turn that finds no memory, which leaves all as it was. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>
#include "vmm/spans.h"
#include "failing_context.h"

enum { BYTES = 200, STEPS = 3000 };

static uint64_t draw(uint64_t *random, uint64_t below)
{
    uint64_t x = *random += 0x9e3779b97f4a7c15u; /* SplitMix64 */
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return (x ^ (x >> 31)) % below;
}

static uint64_t longest(const uint8_t *kinds)
{
    uint64_t best = 0, run = 0;
    for (uint32_t i = 0; i < BYTES; i++) {
        run = kinds[i] == PLLM_SPAN_FREE ? run + 1 : 0;
        if (run > best) best = run;
    }
    return best;
}

/* The lowest aligned offset with so many free bytes; BYTES: none. */
static uint64_t lowest(const uint8_t *kinds, uint64_t base, uint64_t bytes, uint64_t alignment)
{
    for (uint64_t at = 0; at + bytes <= BYTES; at++) {
        uint64_t i = 0;
        while (i < bytes && kinds[at + i] == PLLM_SPAN_FREE) i++;
        if (i == bytes && (base + at) % alignment == 0) return at;
    }
    return BYTES;
}

static void compare(const pllm_spans *spans, const uint8_t *kinds, uint64_t *random)
{
    pllm_spans_check(spans);
    for (uint32_t i = 0; i < BYTES; i++) assert_int_equal(pllm_spans_at(spans, i)->kind, kinds[i]);
    assert_int_equal(pllm_spans_longest_free(spans), longest(kinds));
    uint64_t base = draw(random, 64), bytes = 1 + draw(random, 60), offset = BYTES;
    uint64_t alignment = (uint64_t)1 << draw(random, 6);
    int fits = pllm_spans_fit(spans, base, bytes, alignment, &offset);
    uint64_t expected = lowest(kinds, base, bytes, alignment);
    assert_int_equal(fits, expected < BYTES);
    if (fits) assert_int_equal(offset, expected);
}

static void random_turns_match_an_array(void **state)
{
    (void)state;
    failing_context memory;
    failing_context_init(&memory, FAILING_NEVER);
    uint8_t kinds[BYTES] = {0};
    uint64_t random = 1;
    pllm_spans spans;
    assert_int_equal(pllm_spans_init(&spans, &memory.context, BYTES), PLLM_OK);
    for (uint32_t step = 0; step < STEPS; step++) {
        uint64_t offset = draw(&random, BYTES), bytes = 1 + draw(&random, 30);
        if (bytes > BYTES - offset) bytes = BYTES - offset;
        uint32_t kind =
            draw(&random, 2) ? PLLM_SPAN_FREE : (uint32_t)draw(&random, PLLM_SPAN_KINDS);
        assert_int_equal(pllm_spans_turn(&spans, offset, bytes, kind), PLLM_OK);
        memset(kinds + offset, (int)kind, bytes);
        compare(&spans, kinds, &random);
        const pllm_span *other = NULL;
        uint32_t mask = (uint32_t)draw(&random, 1u << PLLM_SPAN_KINDS);
        int are = 1;
        for (uint64_t i = offset; i < offset + bytes; i++) are &= mask >> kinds[i] & 1;
        assert_int_equal(pllm_spans_are(&spans, offset, bytes, mask, &other), are);
    }
    pllm_spans_deinit(&spans);
    failing_context_check(&memory);
}

static void a_turn_without_memory_changes_nothing(void **state)
{
    (void)state;
    for (uint64_t n = 0;; n++) {
        failing_context memory;
        failing_context_init(&memory, n);
        uint8_t kinds[BYTES] = {0};
        uint64_t random = 7;
        pllm_spans spans;
        int status = pllm_spans_init(&spans, &memory.context, BYTES);
        if (status < 0) {
            failing_context_check(&memory);
            continue;
        }
        for (uint64_t at = 1; at < BYTES - 1; at += 2) {
            status = pllm_spans_turn(&spans, at, 1, PLLM_SPAN_PLACED);
            if (status < 0) {
                assert_int_equal(status, PLLM_ENOMEM);
                compare(&spans, kinds, &random);
                assert_int_equal(pllm_spans_turn(&spans, at, 1, PLLM_SPAN_PLACED), PLLM_OK);
            }
            kinds[at] = PLLM_SPAN_PLACED;
            compare(&spans, kinds, &random);
        }
        /* Whole spans go without memory, wherever they are. */
        uint64_t before = atomic_load(&memory.call_count);
        for (uint64_t at = 1; at < BYTES - 1; at += 2)
            assert_int_equal(pllm_spans_turn(&spans, at, 1, PLLM_SPAN_FREE), PLLM_OK);
        assert_int_equal(atomic_load(&memory.call_count), before);
        assert_int_equal(pllm_spans_longest_free(&spans), BYTES);
        pllm_spans_deinit(&spans);
        failing_context_check(&memory);
        if (!failing_context_hit(&memory)) return;
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_turns_match_an_array),
        cmocka_unit_test(a_turn_without_memory_changes_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
