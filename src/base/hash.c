/* hash.c - the two XXH3 entry points, in one place so that the library behind can change. */
#include <xxhash.h>
#include "base/hash.h"

uint64_t pllm_hash64(const void *data, size_t bytes, uint64_t seed)
{
    return XXH3_64bits_withSeed(bytes ? data : "", bytes, seed);
}

pllm_hash128 pllm_hash128_of(const void *data, size_t bytes, uint64_t seed)
{
    XXH128_hash_t hash = XXH3_128bits_withSeed(bytes ? data : "", bytes, seed);
    return (pllm_hash128){.low = hash.low64, .high = hash.high64};
}
