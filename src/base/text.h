/* text.h - foreign text made fit for a sentence. */
#ifndef PLLM_BASE_TEXT_H
#define PLLM_BASE_TEXT_H

#include <stddef.h>

enum { PLLM_QUOTE_BYTES = 72 }; /* a comfortable buffer for pllm_text_quote */

/* The beginning of text, in double quotes: control characters and broken UTF-8 become '?', and what
 * does not fit is cut between characters and ends in "...". Never fails; buffer_bytes >= 8; text
 * may be NULL. Returns buffer. */
const char *pllm_text_quote(const char *text, char *buffer, size_t buffer_bytes);

/* Bytes of the valid UTF-8 character at start that is no control character, or 0. */
size_t pllm_text_character(const char *start);

#endif
