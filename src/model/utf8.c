/* utf8.c - the well-formed byte sequences of the Unicode Standard, table 3-7. */
#include <string.h>
#include "model/utf8.h"

/* Bytes of a character that starts with lead, and the range of its second byte; 0: no lead. */
static uint32_t lead_length(uint8_t lead, uint8_t *low, uint8_t *high)
{
    *low = 0x80;
    *high = 0xbf;
    if (lead < 0x80) return 1;
    if (lead >= 0xc2 && lead <= 0xdf) return 2;
    if (lead >= 0xe0 && lead <= 0xef) {
        if (lead == 0xe0) *low = 0xa0;
        if (lead == 0xed) *high = 0x9f;
        return 3;
    }
    if (lead >= 0xf0 && lead <= 0xf4) {
        if (lead == 0xf0) *low = 0x90;
        if (lead == 0xf4) *high = 0x8f;
        return 4;
    }
    return 0;
}

pllm_utf8_kind pllm_utf8_classify(const char *text, uint64_t bytes, uint32_t *used_out)
{
    const uint8_t *at = (const uint8_t *)text;
    uint8_t low, high;
    uint32_t length = lead_length(at[0], &low, &high);
    *used_out = 1;
    if (length == 0) return PLLM_UTF8_INVALID;
    for (uint32_t i = 1; i < length; i++) {
        *used_out = i;
        if (i == bytes) return PLLM_UTF8_PARTIAL;
        if (at[i] < low || at[i] > high) return PLLM_UTF8_INVALID;
        low = 0x80;
        high = 0xbf;
    }
    *used_out = length;
    return PLLM_UTF8_VALID;
}

uint64_t pllm_utf8_valid_prefix(const char *text, uint64_t bytes)
{
    uint64_t at = 0;
    while (at < bytes) {
        uint32_t used;
        if ((uint8_t)text[at] < 0x80)
            used = 1; /* most text */
        else if (pllm_utf8_classify(text + at, bytes - at, &used) != PLLM_UTF8_VALID)
            break;
        at += used;
    }
    return at;
}

uint32_t pllm_utf8_code_point(const char *text, uint32_t bytes)
{
    static const uint8_t lead_bits[5] = {0, 0x7f, 0x1f, 0x0f, 0x07};
    uint32_t point = (uint8_t)text[0] & lead_bits[bytes];
    for (uint32_t i = 1; i < bytes; i++) point = point << 6 | ((uint8_t)text[i] & 0x3f);
    return point;
}

static uint64_t put_replacement(char *out)
{
    memcpy(out, "\xef\xbf\xbd", 3);
    return 3;
}

uint64_t pllm_utf8_stream_push(pllm_utf8_stream *stream, const char *piece, uint64_t bytes,
                               char *out)
{
    uint64_t written = 0;
    for (uint64_t i = 0; i < bytes; i++) {
        stream->pending[stream->pending_count++] = piece[i];
        while (stream->pending_count > 0) {
            uint32_t used;
            pllm_utf8_kind kind = pllm_utf8_classify(stream->pending, stream->pending_count, &used);
            if (kind == PLLM_UTF8_PARTIAL) break;
            if (kind == PLLM_UTF8_VALID) {
                memcpy(out + written, stream->pending, used);
                written += used;
            } else {
                written += put_replacement(out + written);
            }
            stream->pending_count -= used;
            memmove(stream->pending, stream->pending + used, stream->pending_count);
        }
    }
    return written;
}

uint64_t pllm_utf8_stream_finish(pllm_utf8_stream *stream, char *out)
{
    uint64_t written = stream->pending_count > 0 ? put_replacement(out) : 0;
    stream->pending_count = 0;
    return written;
}
