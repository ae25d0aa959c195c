/* chat_template.c - recognises ChatML and writes it. One routine lays the text out; run first with
 * nowhere to write it measures, run again it writes and notes where other people's words lie. */
#include <assert.h>
#include <string.h>
#include "model/chat_template.h"
#include "model/model_internal.h"

#define START "<|im_start|>"
#define END "<|im_end|>"

struct pllm_chat_template {
    const pllm_context *context;
    char *system; /* NULL: none */
};

static const char *find(const char *text, uint64_t bytes, const char *what)
{
    return memmem(text, bytes, what, strlen(what));
}

/* The text between "<|im_start|>system\n" and "<|im_end|>" where it is one literal: no quote in
 * between, since a quote ends the literal and an expression follows. The line feed may be one, or
 * the two characters of its escape. */
static const char *find_system(const char *text, uint64_t bytes, uint64_t *length_out)
{
    const char *end_of_text = text + bytes, *at = text;
    while ((at = find(at, (uint64_t)(end_of_text - at), START "system"))) {
        at += strlen(START "system");
        uint64_t left = (uint64_t)(end_of_text - at);
        uint32_t skip = left > 0 && at[0] == '\n' ? 1 : 0;
        if (left > 1 && at[0] == '\\' && at[1] == 'n') skip = 2;
        const char *end = find(at, left, END);
        if (skip == 0 || !end || end < at + skip) continue;
        uint64_t length = (uint64_t)(end - at) - skip;
        if (memchr(at + skip, '\'', length) || memchr(at + skip, '"', length)) continue;
        *length_out = length;
        return at + skip;
    }
    return NULL;
}

/* Escapes of a template literal: \n, \t and \\; others stay as they are. */
static void unescape(char *text)
{
    char *to = text;
    for (const char *from = text; *from; from++) {
        if (from[0] == '\\' && (from[1] == 'n' || from[1] == 't' || from[1] == '\\')) {
            from++;
            *to++ = *from == 'n' ? '\n' : *from == 't' ? '\t' : '\\';
        } else {
            *to++ = *from;
        }
    }
    *to = 0;
}

int pllm_chat_template_open(const pllm_context *context, const pllm_model *model,
                            pllm_chat_template **out)
{
    *out = NULL;
    const pllm_gguf *gguf = pllm_model_gguf(model);
    const char *text = NULL;
    uint64_t bytes = 0, length = 0;
    int found = gguf ? pllm_gguf_string(gguf, "tokenizer.chat_template", &text, &bytes) : 0;
    if (found < 0) return found;
    if (!found)
        return pllm_fail(PLLM_ENOTFOUND, 0,
                         "%s: carries no chat template; use raw completion with it",
                         pllm_model_path(model));
    if (!find(text, bytes, START) || !find(text, bytes, END))
        return pllm_fail(PLLM_EUNSUPPORTED, 0,
                         "%s: its chat template is not ChatML (it lacks " START " or " END
                         "), the one form supported; use raw completion with it",
                         pllm_model_path(model));
    pllm_chat_template *self = pllm_alloc(context, sizeof *self);
    if (!self) return pllm_fail_memory("a chat template", sizeof *self);
    self->context = context;
    const char *system = find_system(text, bytes, &length);
    if (system) {
        self->system = pllm_alloc(context, length + 1);
        if (!self->system) {
            pllm_free(context, self);
            return pllm_fail_memory("a chat template", length + 1);
        }
        memcpy(self->system, system, length);
        unescape(self->system);
    }
    *out = self;
    return PLLM_OK;
}

void pllm_chat_template_close(pllm_chat_template *self)
{
    if (!self) return;
    pllm_free(self->context, self->system);
    pllm_free(self->context, self);
}

const char *pllm_chat_template_system(const pllm_chat_template *self)
{
    return self->system;
}

typedef struct layout {
    char *text;              /* NULL while measuring */
    pllm_text_range *ranges; /* likewise */
    uint64_t bytes;
    uint32_t range_count;
} layout;

static void put(layout *into, const char *text)
{
    uint64_t bytes = strlen(text);
    if (into->text) memcpy(into->text + into->bytes, text, bytes);
    into->bytes += bytes;
}

static void put_foreign(layout *into, const char *text)
{
    uint64_t bytes = strlen(text);
    if (bytes == 0) return;
    if (into->ranges) into->ranges[into->range_count] = (pllm_text_range){into->bytes, bytes};
    into->range_count++;
    put(into, text);
}

static void put_message(layout *into, const char *role, const char *content)
{
    put(into, START);
    put_foreign(into, role);
    put(into, "\n");
    put_foreign(into, content);
    put(into, END "\n");
}

static void lay_out(const pllm_chat_template *self, const pllm_chat_request *request, layout *into)
{
    const pllm_chat_message *messages = request->messages;
    if (request->done > 0 && request->tail == PLLM_CHAT_REPLY_OPEN) put(into, END "\n");
    if (request->done > 0 && request->tail == PLLM_CHAT_REPLY_ENDED) put(into, "\n");
    if (request->done == 0 && request->count > 0 && self->system &&
        strcmp(messages[0].role, "system") != 0)
        put_message(into, "system", self->system);
    for (uint32_t i = request->done; i < request->count; i++)
        put_message(into, messages[i].role, messages[i].content);
    if (request->add_generation) put(into, START "assistant\n");
}

static int check_request(const pllm_chat_request *request)
{
    if (request->done > request->count)
        return pllm_fail(PLLM_EINVAL, 0, "%u messages are done of %u", request->done,
                         request->count);
    for (uint32_t i = 0; i < request->count; i++) {
        const pllm_chat_message *message = &request->messages[i];
        if (!message->role || !*message->role || !message->content)
            return pllm_fail(PLLM_EINVAL, 0,
                             "message %u has no role or no content; both are needed", i);
    }
    return PLLM_OK;
}

static int format(const pllm_chat_template *self, const pllm_chat_request *request, layout *into)
{
    *into = (layout){0};
    int status = check_request(request);
    if (status < 0) return status;
    lay_out(self, request, into);
    uint64_t bytes = into->bytes, ranges_bytes = into->range_count * sizeof *into->ranges;
    char *text = pllm_alloc(self->context, bytes + 1);
    if (!text) return pllm_fail_memory("a conversation's text", bytes + 1);
    pllm_text_range *ranges = pllm_alloc(self->context, ranges_bytes + 1);
    if (!ranges) {
        pllm_free(self->context, text);
        return pllm_fail_memory("a conversation's text", ranges_bytes);
    }
    *into = (layout){.text = text, .ranges = ranges};
    lay_out(self, request, into);
    assert(into->bytes == bytes);
    return PLLM_OK;
}

int pllm_chat_format(const pllm_chat_template *self, const pllm_chat_request *request,
                     char **text_out, uint64_t *bytes_out)
{
    layout made;
    *text_out = NULL;
    *bytes_out = 0;
    int status = format(self, request, &made);
    if (status < 0) return status;
    pllm_free(self->context, made.ranges);
    *text_out = made.text;
    *bytes_out = made.bytes;
    return PLLM_OK;
}

void pllm_chat_free(const pllm_chat_template *self, char *text)
{
    pllm_free(self->context, text);
}

int pllm_chat_encode(const pllm_chat_template *self, const pllm_tokenizer *tokenizer,
                     const pllm_chat_request *request, uint32_t **ids_out, uint32_t *count_out)
{
    layout made;
    *ids_out = NULL;
    *count_out = 0;
    int status = format(self, request, &made);
    if (status < 0) return status;
    status = pllm_tokenizer_encode_guarded(tokenizer, made.text, made.bytes, made.ranges,
                                           made.range_count, ids_out, count_out);
    pllm_free(self->context, made.ranges);
    pllm_free(self->context, made.text);
    return status;
}
