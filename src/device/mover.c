/* mover.c - moving bytes on the CPU.
 *
 * A plain copy reads the destination's lines before it overwrites them, which is half again as much
 * traffic; stores that bypass the cache do not, but they only pay for themselves on long runs: a
 * KV block of 24 KiB is faster through the cache (and is read soon after), 1 MiB around it.
 * bench_device measures both. */
#include <string.h>
#include "device/arena.h"

#if defined(__x86_64__)
#include <emmintrin.h>

#define STREAM_BYTES ((uint64_t)256 << 10)

void pllm_move(void *to, const void *from, uint64_t bytes)
{
    if (bytes < STREAM_BYTES) {
        memcpy(to, from, bytes);
        return;
    }
    char *target = to;
    const char *source = from;
    uint64_t head = (64 - (uintptr_t)target % 64) % 64;
    memcpy(target, source, head);
    target += head, source += head, bytes -= head;
    uint64_t line_count = bytes / 64;
    for (uint64_t i = 0; i < line_count; i++, target += 64, source += 64) {
        __m128i a = _mm_loadu_si128((const __m128i *)source);
        __m128i b = _mm_loadu_si128((const __m128i *)(source + 16));
        __m128i c = _mm_loadu_si128((const __m128i *)(source + 32));
        __m128i d = _mm_loadu_si128((const __m128i *)(source + 48));
        _mm_stream_si128((__m128i *)target, a);
        _mm_stream_si128((__m128i *)(target + 16), b);
        _mm_stream_si128((__m128i *)(target + 32), c);
        _mm_stream_si128((__m128i *)(target + 48), d);
    }
    _mm_sfence(); /* streaming stores are ordered before the event that follows */
    memcpy(target, source, bytes % 64);
}
#else
void pllm_move(void *to, const void *from, uint64_t bytes)
{
    memcpy(to, from, bytes);
}
#endif
