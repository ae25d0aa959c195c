/* utf8.h - which bytes are a character, and a stream that never splits one. */
#ifndef PLLM_MODEL_UTF8_H
#define PLLM_MODEL_UTF8_H

#include <stdint.h>

typedef enum pllm_utf8_kind {
    PLLM_UTF8_VALID,   /* *used_out: bytes of the character, 1 to 4 */
    PLLM_UTF8_INVALID, /* *used_out: bytes that one U+FFFD stands for (maximal subpart), 1 to 3 */
    PLLM_UTF8_PARTIAL, /* so far a character's beginning; *used_out: all bytes given */
} pllm_utf8_kind;

/* bytes > 0. Overlong forms, surrogates and code points past U+10FFFF are invalid. */
pllm_utf8_kind pllm_utf8_classify(const char *text, uint64_t bytes, uint32_t *used_out);
/* Length of the longest prefix that is valid UTF-8. */
uint64_t pllm_utf8_valid_prefix(const char *text, uint64_t bytes);
/* The code point of a VALID character. */
uint32_t pllm_utf8_code_point(const char *text, uint32_t bytes);

/* Pieces of text in, whole characters out; bytes that can never become a character come out as
 * U+FFFD, so that the output is always valid UTF-8. Zero-initialise. */
typedef struct pllm_utf8_stream {
    char pending[4];
    uint32_t pending_count; /* 0 to 3 between calls */
} pllm_utf8_stream;

#define PLLM_UTF8_ROOM(bytes) (3 * ((uint64_t)(bytes) + 4)) /* what a push may write, at most */

/* out has PLLM_UTF8_ROOM(bytes); returns the bytes written (no terminator). */
uint64_t pllm_utf8_stream_push(pllm_utf8_stream *stream, const char *piece, uint64_t bytes,
                               char *out);
/* At the end: what is pending becomes one U+FFFD. out has 3 bytes. */
uint64_t pllm_utf8_stream_finish(pllm_utf8_stream *stream, char *out);

#endif
