/* gather_copy.c - lists of copies, through the cache or past it. */
#include <string.h>
#include "kernels/gather.h"
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

void pllm_gather(const pllm_gather_item *items, uint64_t item_count)
{
    for (uint64_t i = 0; i < item_count; i++)
        if (items[i].bytes) memcpy(items[i].dst, items[i].src, items[i].bytes);
}

#if defined(__SSE2__)
static void copy_stream(uint8_t *dst, const uint8_t *src, uint64_t bytes)
{
    uint64_t head = -(uintptr_t)dst & 63;
    if (bytes < 256 + head) {
        if (bytes) memcpy(dst, src, bytes);
        return;
    }
    memcpy(dst, src, head);
    dst += head, src += head, bytes -= head;
    /* Whole lines, so that each write-combining buffer leaves in one go. */
    for (; bytes >= 64; bytes -= 64, dst += 64, src += 64) {
        const __m128i *from = (const __m128i *)src;
        __m128i a = _mm_loadu_si128(from), b = _mm_loadu_si128(from + 1);
        __m128i c = _mm_loadu_si128(from + 2), d = _mm_loadu_si128(from + 3);
        _mm_stream_si128((__m128i *)dst, a);
        _mm_stream_si128((__m128i *)dst + 1, b);
        _mm_stream_si128((__m128i *)dst + 2, c);
        _mm_stream_si128((__m128i *)dst + 3, d);
    }
    memcpy(dst, src, bytes);
}

void pllm_gather_stream(const pllm_gather_item *items, uint64_t item_count)
{
    for (uint64_t i = 0; i < item_count; i++)
        copy_stream(items[i].dst, items[i].src, items[i].bytes);
    _mm_sfence();
}
#else
void pllm_gather_stream(const pllm_gather_item *items, uint64_t item_count)
{
    pllm_gather(items, item_count);
}
#endif
