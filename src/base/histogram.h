/* histogram.h - how long things took: counts in buckets whose width grows with the value.
 *
 * Values (nanoseconds by habit, but any uint64_t) below 16 have a bucket each; above, every power
 * of two is cut into 16 buckets, so that a quantile is within 1/32 of a true value, from 1 ns to
 * 584 years, in 8 KB and with no setting. The idea is Gil Tene's HdrHistogram.
 *
 * In place, no allocation; zero bytes are an empty histogram. Threads: one at a time; give each
 * thread its own and merge. */
#ifndef PLLM_BASE_HISTOGRAM_H
#define PLLM_BASE_HISTOGRAM_H

#include <stdint.h>

enum {
    PLLM_HISTOGRAM_SUB_BITS = 4,
    PLLM_HISTOGRAM_BUCKETS = (64 - PLLM_HISTOGRAM_SUB_BITS + 1) << PLLM_HISTOGRAM_SUB_BITS,
};

typedef struct pllm_histogram {
    uint64_t count, min, max; /* min and max are exact; both 0 when empty */
    double sum;
    uint64_t buckets[PLLM_HISTOGRAM_BUCKETS];
} pllm_histogram;

void pllm_histogram_record(pllm_histogram *histogram, uint64_t value);
/* The value that a fraction q (clamped to 0..1) of the records do not exceed, as the middle of its
 * bucket, but never outside [min, max]; 0 when empty. 0 gives min, 1 gives max. */
uint64_t pllm_histogram_quantile(const pllm_histogram *histogram, double q);
double pllm_histogram_mean(const pllm_histogram *histogram); /* 0 when empty */
/* Adds from's records to into, as if they had been recorded there. */
void pllm_histogram_merge(pllm_histogram *into, const pllm_histogram *from);

/* The bucket a value falls in, and the smallest value of a bucket: for printing. */
uint32_t pllm_histogram_bucket(uint64_t value);
uint64_t pllm_histogram_bucket_low(uint32_t bucket);

#endif
