/* tokenizer.h - text to token ids and back: byte-level BPE from a GGUF file's metadata.
 *
 * Works on bytes: any byte string can be encoded, valid UTF-8 or not; bytes that are no UTF-8 are
 * words of their own. A byte for which the vocabulary has no token (SmolLM2 lacks 21, such as
 * U+0004 and the bytes that never occur in UTF-8) is left out, as in the implementations that
 * models are trained with, and a warning with the count goes to the log.
 *
 * Threads: immutable after open; encode, decode and piece may run concurrently. */
#ifndef PLLM_MODEL_TOKENIZER_H
#define PLLM_MODEL_TOKENIZER_H

#include "model/model.h"
#include "model/utf8.h"

typedef struct pllm_tokenizer pllm_tokenizer; /* opaque */

/* Ownership: caller owns *out; it copies what it needs from the model.
 * Errors: ENOTFOUND (the model carries no tokenizer), EUNSUPPORTED (another kind, by name),
 * ECORRUPT, EINVAL, ELIMIT, ENOMEM. */
int pllm_tokenizer_open(const pllm_context *context, const pllm_model *model, pllm_tokenizer **out);
void pllm_tokenizer_close(pllm_tokenizer *tokenizer); /* NULL is fine */

/* A range of the text in which special tokens are not looked for: somebody else's words. */
typedef struct pllm_text_range {
    uint64_t first, bytes;
} pllm_text_range;

/* Adds nothing (no beginning-of-sequence id). parse_special: text that spells a control token
 * becomes that token; user-defined added tokens are always recognised.
 * Ownership: *ids_out goes back through pllm_tokenizer_free; NULL when *count_out is 0.
 * Errors: ELIMIT (2^32 ids, or a text that cannot be split), ENOMEM; then *ids_out is NULL. */
int pllm_tokenizer_encode(const pllm_tokenizer *tokenizer, const char *text, uint64_t bytes,
                          int parse_special, uint32_t **ids_out, uint32_t *count_out);
/* With parse_special but for the ranges, which ascend and do not overlap. */
int pllm_tokenizer_encode_guarded(const pllm_tokenizer *tokenizer, const char *text, uint64_t bytes,
                                  const pllm_text_range *ranges, uint32_t range_count,
                                  uint32_t **ids_out, uint32_t *count_out);
/* The bytes of all ids, special ones as their text; a zero byte follows that *bytes_out does not
 * count. Ownership: *text_out goes back through pllm_tokenizer_free. Errors: EINVAL (an id past
 * the vocabulary), ENOMEM. */
int pllm_tokenizer_decode(const pllm_tokenizer *tokenizer, const uint32_t *ids, uint32_t count,
                          char **text_out, uint64_t *bytes_out);
void pllm_tokenizer_free(const pllm_tokenizer *tokenizer, void *pointer);

/* One id's bytes, which may be part of a character (see pllm_utf8_stream); empty past the
 * vocabulary (padding rows of an embedding). Not terminated. */
const char *pllm_tokenizer_piece(const pllm_tokenizer *tokenizer, uint32_t id, uint32_t *bytes_out);

uint32_t pllm_tokenizer_vocab_size(const pllm_tokenizer *tokenizer);
uint32_t pllm_tokenizer_bos(const pllm_tokenizer *tokenizer); /* PLLM_NO_TOKEN: none */
uint32_t pllm_tokenizer_eos(const pllm_tokenizer *tokenizer); /* the first, or PLLM_NO_TOKEN */
int pllm_tokenizer_add_bos(const pllm_tokenizer *tokenizer);  /* a prompt is to begin with bos */
int pllm_tokenizer_is_special(const pllm_tokenizer *tokenizer, uint32_t id); /* control, unknown */
int pllm_tokenizer_is_end(const pllm_tokenizer *tokenizer, uint32_t id);     /* generation ends */
/* The token that text spells exactly, special or not; PLLM_NO_TOKEN when there is none. */
uint32_t pllm_tokenizer_find(const pllm_tokenizer *tokenizer, const char *text, uint64_t bytes);

#endif
