/* text.c - quoting. File names, arguments and config lines may hold anything, and end up in error
 * sentences, which are UTF-8 and may be shown on a terminal. */
#include <string.h>
#include "base/text.h"

/* Table 3-7 of the Unicode standard in short: continuation bytes, no overlong forms, no
 * surrogates, nothing above U+10FFFF. */
size_t pllm_text_character(const char *start)
{
    const unsigned char *text = (const unsigned char *)start;
    unsigned char lead = text[0];
    if (lead < 0x80) return lead >= 0x20 && lead != 0x7f;
    size_t bytes = lead >= 0xc2 && lead <= 0xdf   ? 2
                   : lead >= 0xe0 && lead <= 0xef ? 3
                   : lead >= 0xf0 && lead <= 0xf4 ? 4
                                                  : 0;
    for (size_t i = 1; i < bytes; i++)
        if ((text[i] & 0xc0) != 0x80) return 0;   /* the ending NUL stops this as well */
    if (lead == 0xc2 && text[1] < 0xa0) return 0; /* C1 controls */
    if (lead == 0xe0 && text[1] < 0xa0) return 0;
    if (lead == 0xed && text[1] > 0x9f) return 0;
    if (lead == 0xf0 && text[1] < 0x90) return 0;
    if (lead == 0xf4 && text[1] > 0x8f) return 0;
    return bytes;
}

const char *pllm_text_quote(const char *text, char *buffer, size_t buffer_bytes)
{
    const char *from = text ? text : "";
    size_t used = 0, room = buffer_bytes - 6; /* two quotes, "..." and NUL */
    buffer[used++] = '"';
    while (*from) {
        size_t bytes = pllm_text_character(from);
        size_t wanted = bytes ? bytes : 1;
        if (used + wanted > room) {
            memcpy(buffer + used, "...", 3);
            used += 3;
            break;
        }
        if (bytes)
            memcpy(buffer + used, from, bytes);
        else
            buffer[used] = '?';
        used += wanted;
        from += wanted;
    }
    buffer[used++] = '"';
    buffer[used] = '\0';
    return buffer;
}
