/* bitmap.h - a set of small integers over words that the caller owns: which frames, slots or file
 * blocks are taken. Bit i of the set is bit i % 64 of word i / 64.
 *
 * Plain functions on uint64_t arrays; pllm_bitmap_words(n) words hold n bits, zeroed is empty. Bits
 * of the last word at or above n must stay 0. Searches look at 64 bits at a time. Threads: the
 * caller's lock. Out-of-range arguments are our own mistakes (assert). */
#ifndef PLLM_BASE_BITMAP_H
#define PLLM_BASE_BITMAP_H

#include <stdbool.h>
#include <stdint.h>

#define PLLM_BITMAP_NONE UINT64_MAX

static inline uint64_t pllm_bitmap_words(uint64_t bit_count)
{
    return bit_count / 64 + (bit_count % 64 != 0);
}

static inline bool pllm_bitmap_get(const uint64_t *words, uint64_t bit)
{
    return words[bit / 64] >> (bit % 64) & 1;
}

static inline void pllm_bitmap_set(uint64_t *words, uint64_t bit)
{
    words[bit / 64] |= 1ull << (bit % 64);
}

static inline void pllm_bitmap_clear(uint64_t *words, uint64_t bit)
{
    words[bit / 64] &= ~(1ull << (bit % 64));
}

void pllm_bitmap_set_range(uint64_t *words, uint64_t first, uint64_t count);
void pllm_bitmap_clear_range(uint64_t *words, uint64_t first, uint64_t count);
/* Set bits in [first, first + count). */
uint64_t pllm_bitmap_count(const uint64_t *words, uint64_t first, uint64_t count);

/* The first set or clear bit at or after from, below bit_count; or PLLM_BITMAP_NONE. */
uint64_t pllm_bitmap_find_set(const uint64_t *words, uint64_t bit_count, uint64_t from);
uint64_t pllm_bitmap_find_clear(const uint64_t *words, uint64_t bit_count, uint64_t from);
/* The first bit, at or after from, of the first run of run_count clear bits; or NONE. First fit: it
 * keeps low bits busy, so that what is high can be given back. run_count 0 is from itself. */
uint64_t pllm_bitmap_find_clear_run(const uint64_t *words, uint64_t bit_count, uint64_t from,
                                    uint64_t run_count);

#endif
