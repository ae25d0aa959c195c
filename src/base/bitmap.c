/* bitmap.c - word-wise searches; runs are found by hopping between the next clear and set bits. */
#include <assert.h>
#include "base/bitmap.h"

/* Bits [low, high) of one word; high is 1 to 64, low below it. */
static uint64_t mask(uint64_t low, uint64_t high)
{
    return (UINT64_MAX >> (64 - (high - low))) << low;
}

void pllm_bitmap_set_range(uint64_t *words, uint64_t first, uint64_t count)
{
    for (uint64_t end = first + count; first < end;) {
        uint64_t word = first / 64, high = (word + 1) * 64 < end ? 64 : end - word * 64;
        words[word] |= mask(first % 64, high);
        first = word * 64 + high;
    }
}

void pllm_bitmap_clear_range(uint64_t *words, uint64_t first, uint64_t count)
{
    for (uint64_t end = first + count; first < end;) {
        uint64_t word = first / 64, high = (word + 1) * 64 < end ? 64 : end - word * 64;
        words[word] &= ~mask(first % 64, high);
        first = word * 64 + high;
    }
}

uint64_t pllm_bitmap_count(const uint64_t *words, uint64_t first, uint64_t count)
{
    uint64_t set = 0;
    for (uint64_t end = first + count; first < end;) {
        uint64_t word = first / 64, high = (word + 1) * 64 < end ? 64 : end - word * 64;
        set += (uint64_t)__builtin_popcountll(words[word] & mask(first % 64, high));
        first = word * 64 + high;
    }
    return set;
}

/* flip is 0 to find set bits, all ones to find clear ones. */
static uint64_t find(const uint64_t *words, uint64_t bit_count, uint64_t from, uint64_t flip)
{
    if (from >= bit_count) return PLLM_BITMAP_NONE;
    uint64_t word = from / 64, last = (bit_count - 1) / 64;
    uint64_t bits = (words[word] ^ flip) & (UINT64_MAX << (from % 64));
    while (bits == 0) {
        if (word++ == last) return PLLM_BITMAP_NONE;
        bits = words[word] ^ flip;
    }
    uint64_t bit = word * 64 + (uint64_t)__builtin_ctzll(bits);
    return bit < bit_count ? bit : PLLM_BITMAP_NONE;
}

uint64_t pllm_bitmap_find_set(const uint64_t *words, uint64_t bit_count, uint64_t from)
{
    return find(words, bit_count, from, 0);
}

uint64_t pllm_bitmap_find_clear(const uint64_t *words, uint64_t bit_count, uint64_t from)
{
    return find(words, bit_count, from, UINT64_MAX);
}

uint64_t pllm_bitmap_find_clear_run(const uint64_t *words, uint64_t bit_count, uint64_t from,
                                    uint64_t run_count)
{
    assert(from <= bit_count);
    if (run_count == 0) return from;
    for (;;) {
        uint64_t first = pllm_bitmap_find_clear(words, bit_count, from);
        if (first == PLLM_BITMAP_NONE || bit_count - first < run_count) return PLLM_BITMAP_NONE;
        /* Look for the end only as far as matters. */
        uint64_t end = pllm_bitmap_find_set(words, first + run_count, first);
        if (end == PLLM_BITMAP_NONE) return first;
        from = end + 1;
    }
}
