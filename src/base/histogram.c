/* histogram.c - log buckets: the top four bits below the leading one choose within an octave. */
#include "base/histogram.h"

enum { SUB_BITS = PLLM_HISTOGRAM_SUB_BITS, SUB_COUNT = 1 << SUB_BITS };

uint32_t pllm_histogram_bucket(uint64_t value)
{
    if (value < SUB_COUNT) return (uint32_t)value;
    uint32_t shift = 63u - (uint32_t)__builtin_clzll(value) - SUB_BITS;
    return (shift << SUB_BITS) + (uint32_t)(value >> shift); /* value >> shift is 16 to 31 */
}

uint64_t pllm_histogram_bucket_low(uint32_t bucket)
{
    if (bucket < SUB_COUNT) return bucket;
    uint32_t shift = (bucket >> SUB_BITS) - 1;
    return (uint64_t)(SUB_COUNT + bucket % SUB_COUNT) << shift;
}

void pllm_histogram_record(pllm_histogram *histogram, uint64_t value)
{
    if (histogram->count == 0 || value < histogram->min) histogram->min = value;
    if (value > histogram->max) histogram->max = value;
    histogram->count++;
    histogram->sum += (double)value;
    histogram->buckets[pllm_histogram_bucket(value)]++;
}

/* Half a bucket's width above its low end. */
static uint64_t bucket_middle(uint32_t bucket)
{
    uint64_t low = pllm_histogram_bucket_low(bucket);
    if (bucket < 2 * SUB_COUNT) return low; /* width 1 */
    uint32_t shift = (bucket >> SUB_BITS) - 1;
    return low + (1ull << (shift - 1));
}

uint64_t pllm_histogram_quantile(const pllm_histogram *histogram, double q)
{
    if (histogram->count == 0) return 0;
    if (!(q > 0)) return histogram->min;
    if (q >= 1) return histogram->max;
    /* 0.101 * 5000 is a hair above 505; it means 505. */
    double wanted = q * (double)histogram->count * (1 - 1e-14);
    uint64_t rank = (uint64_t)wanted;
    if ((double)rank < wanted) rank++; /* the rank-th record, from 1 */
    uint64_t seen = 0;
    uint32_t bucket = 0;
    while (bucket < PLLM_HISTOGRAM_BUCKETS - 1) {
        seen += histogram->buckets[bucket];
        if (seen >= rank) break;
        bucket++;
    }
    uint64_t value = bucket_middle(bucket);
    if (value < histogram->min) value = histogram->min;
    return value > histogram->max ? histogram->max : value;
}

double pllm_histogram_mean(const pllm_histogram *histogram)
{
    return histogram->count ? histogram->sum / (double)histogram->count : 0;
}

void pllm_histogram_merge(pllm_histogram *into, const pllm_histogram *from)
{
    if (from->count == 0) return;
    if (into->count == 0 || from->min < into->min) into->min = from->min;
    if (from->max > into->max) into->max = from->max;
    into->count += from->count;
    into->sum += from->sum;
    for (uint32_t i = 0; i < PLLM_HISTOGRAM_BUCKETS; i++) into->buckets[i] += from->buckets[i];
}
