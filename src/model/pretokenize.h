/* pretokenize.h - text to words: the regular expression that comes before byte-pair merging.
 *
 * Nothing is dropped: the words put together are the text. Bytes that are no UTF-8 form words of
 * their own. */
#ifndef PLLM_MODEL_PRETOKENIZE_H
#define PLLM_MODEL_PRETOKENIZE_H

#include "base/context.h"

typedef struct pllm_pretokenizer pllm_pretokenizer; /* opaque; immutable, any thread */

/* name: GGUF's tokenizer.ggml.pre; file: for sentences.
 * Errors: EUNSUPPORTED (another name), ENOMEM. */
int pllm_pretokenizer_open(const pllm_context *context, const char *file, const char *name,
                           uint64_t name_bytes, pllm_pretokenizer **out);
void pllm_pretokenizer_close(pllm_pretokenizer *self); /* NULL is fine */

/* A word that is a token as it stands is not merged (llama 3's rule). */
int pllm_pretokenizer_prefers_whole_words(const pllm_pretokenizer *self);

typedef int (*pllm_word_fn)(void *user, const char *word, uint64_t bytes); /* < 0 stops */

/* Calls take for every word in order. Errors: what take returns; ELIMIT (a text that the
 * expression engine gives up on), ENOMEM. */
int pllm_pretokenizer_split(const pllm_pretokenizer *self, const char *text, uint64_t bytes,
                            pllm_word_fn take, void *user);

#endif
