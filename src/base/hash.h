/* hash.h - XXH3 with a seed: fast, good against corruption, worthless against an attacker. Names
 * that leave the process need a cryptographic hash instead. Values are the same on every machine.
 */
#ifndef PLLM_BASE_HASH_H
#define PLLM_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

typedef struct pllm_hash128 {
    uint64_t low, high;
} pllm_hash128;

/* data may be NULL when bytes is 0. */
uint64_t pllm_hash64(const void *data, size_t bytes, uint64_t seed);
pllm_hash128 pllm_hash128_of(const void *data, size_t bytes, uint64_t seed);

static inline int pllm_hash128_equal(pllm_hash128 a, pllm_hash128 b)
{
    return a.low == b.low && a.high == b.high;
}

#endif
