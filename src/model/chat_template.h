/* chat_template.h - a conversation as the text a model was trained on, in the ChatML form:
 *
 *     <|im_start|>ROLE\nCONTENT<|im_end|>\n  ...  <|im_start|>assistant\n
 *
 * A model's own template is a program in a template language; it is not run but recognised by its
 * two markers, and its default system message is read out of it. A template that does more than
 * ChatML (tools, reasoning blocks) is still formatted as plain ChatML. */
#ifndef PLLM_MODEL_CHAT_TEMPLATE_H
#define PLLM_MODEL_CHAT_TEMPLATE_H

#include "model/model.h"
#include "model/tokenizer.h"

typedef struct pllm_chat_template pllm_chat_template; /* opaque; immutable, any thread */

typedef struct pllm_chat_message {
    const char *role, *content; /* UTF-8, zero-terminated; role is not empty */
} pllm_chat_message;

typedef enum pllm_chat_tail {                       /* how the text so far ends, when done > 0 */
                              PLLM_CHAT_CLOSED,     /* every done message came from a format call */
                              PLLM_CHAT_REPLY_OPEN, /* the last is a reply, cut off: no marker */
                              PLLM_CHAT_REPLY_ENDED, /* the last is a reply with <|im_end|> */
} pllm_chat_tail;

/* Messages [0, done) are in the sequence already; the text for [done, count) follows. A whole
 * conversation at once is done = 0. Turn by turn: format with add_generation, generate a reply,
 * append it and the next user message to messages, set done past the reply and tail to how the
 * reply ended, format again: the texts put together are the whole conversation's. */
typedef struct pllm_chat_request {
    const pllm_chat_message *messages;
    uint32_t count, done;
    pllm_chat_tail tail;
    int add_generation; /* end with the beginning of the assistant's turn */
} pllm_chat_request;

/* Errors: ENOTFOUND (no template, or a folder), EUNSUPPORTED (not ChatML), ENOMEM. */
int pllm_chat_template_open(const pllm_context *context, const pllm_model *model,
                            pllm_chat_template **out);
void pllm_chat_template_close(pllm_chat_template *self); /* NULL is fine */
/* The system message that goes first when the conversation brings none; NULL: there is none. */
const char *pllm_chat_template_system(const pllm_chat_template *self);

/* Ownership: *text_out (zero-terminated) goes back through pllm_chat_free.
 * Errors: EINVAL (a role is missing or empty, done > count), ENOMEM. */
int pllm_chat_format(const pllm_chat_template *self, const pllm_chat_request *request,
                     char **text_out, uint64_t *bytes_out);
void pllm_chat_free(const pllm_chat_template *self, char *text);
/* The same as ids. Markers inside roles and contents stay text: a user cannot end a turn.
 * Ownership: *ids_out goes back through pllm_tokenizer_free. */
int pllm_chat_encode(const pllm_chat_template *self, const pllm_tokenizer *tokenizer,
                     const pllm_chat_request *request, uint32_t **ids_out, uint32_t *count_out);

#endif
