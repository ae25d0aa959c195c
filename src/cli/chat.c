/* chat.c - pagedllm chat: a conversation in the terminal, one sequence that grows turn by turn.
 *
 * Only what is new in a turn is fed: the sequence keeps the KV blocks of everything before. Lines
 * that begin with / are commands. Works from a pipe too, without the prompts. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/context.h"
#include "cli/cli.h"
#include "engine/parts.h"
#include "model/chat_template.h"

typedef struct chat {
    const pllm_settings *settings;
    pllm_engine *engine;
    pllm_sequence *sequence;
    pllm_chat_template *template;
    pllm_chat_message *messages; /* contents are ours */
    uint32_t count, room, done;
    pllm_chat_tail tail;
    char *reply; /* of this turn, so far */
    size_t reply_bytes;
    uint32_t last_id;
    int interactive, failed;
} chat;

static int add_message(chat *c, const char *role, const char *content)
{
    if (c->count == c->room) {
        uint32_t room = c->room ? 2 * c->room : 16;
        pllm_chat_message *grown = realloc(c->messages, room * sizeof *grown);
        if (!grown) return pllm_fail_memory("the conversation", room * sizeof *grown);
        c->messages = grown;
        c->room = room;
    }
    char *copy = strdup(content);
    if (!copy) return pllm_fail_memory("a message", strlen(content));
    c->messages[c->count++] = (pllm_chat_message){.role = role, .content = copy};
    return PLLM_OK;
}

static void forget(chat *c)
{
    for (uint32_t i = 0; i < c->count; i++) free((char *)(uintptr_t)c->messages[i].content);
    c->count = c->done = 0;
    c->tail = PLLM_CHAT_CLOSED;
}

static int begin(chat *c)
{
    forget(c);
    int status = pllm_sequence_truncate(c->sequence, 0);
    if (status == PLLM_OK && c->settings->system)
        status = add_message(c, "system", c->settings->system);
    return status;
}

static int take_text(void *user, const char *text, uint64_t bytes)
{
    chat *c = user;
    char *grown = realloc(c->reply, c->reply_bytes + bytes + 1);
    if (!grown || fwrite(text, 1, bytes, stdout) != bytes || fflush(stdout) != 0) {
        c->failed = 1;
        if (grown) c->reply = grown;
        return 1;
    }
    c->reply = grown;
    memcpy(c->reply + c->reply_bytes, text, bytes);
    c->reply_bytes += bytes;
    c->reply[c->reply_bytes] = '\0';
    return cli_interrupted();
}

static int take_token(void *user, uint32_t id)
{
    ((chat *)user)->last_id = id;
    return 0;
}

static int generate(chat *c, const uint32_t *ids, uint32_t count)
{
    const pllm_settings *s = c->settings;
    pllm_generate_options options = {.struct_bytes = sizeof options,
                                     .max_tokens = (uint32_t)s->max_tokens,
                                     .temperature = (float)s->temperature,
                                     .top_k = (uint32_t)s->top_k,
                                     .top_p = (float)s->top_p,
                                     .seed = s->seed,
                                     .stop = s->stop.items,
                                     .stop_count = s->stop.count,
                                     .text = take_text,
                                     .token = take_token,
                                     .user = c};
    pllm_generate_result result;
    int status = pllm_generate(c->engine, c->sequence, ids, count, &options, &result);
    putchar('\n');
    if (status < 0) return status;
    if (c->failed) return pllm_fail(PLLM_EIO, 0, "the reply could not be written or kept");
    if (cli_interrupted()) return cli_canceled();
    if (result.stop == PLLM_STOP_CONTEXT)
        fprintf(stderr, "pagedllm: the context is full: /reset begins a new conversation\n");
    /* The last token was shown but not fed; the next turn must follow it. */
    if (result.stop != PLLM_STOP_END && result.stop != PLLM_STOP_CONTEXT &&
        result.generated_tokens) {
        pllm_step_item item = {
            .sequence = c->sequence, .ids = &c->last_id, .token_count = 1, .generated = 1};
        status = pllm_engine_step(c->engine, &item, 1, NULL, NULL);
    }
    return status;
}

static int turn(chat *c, const char *line)
{
    uint32_t *ids = NULL, count = 0;
    int status = add_message(c, "user", line);
    if (status < 0) return status;
    pllm_chat_request request = {.messages = c->messages,
                                 .count = c->count,
                                 .done = c->done,
                                 .tail = c->tail,
                                 .add_generation = 1};
    const pllm_tokenizer *tokenizer = pllm_engine_tokenizer(c->engine);
    status = pllm_chat_encode(c->template, tokenizer, &request, &ids, &count);
    if (status < 0) return status;
    c->reply_bytes = 0;
    if (c->reply) c->reply[0] = '\0';
    uint32_t before = pllm_sequence_length(c->sequence);
    status = generate(c, ids, count);
    pllm_tokenizer_free(tokenizer, ids);
    if (status == PLLM_ELIMIT) {
        /* Not lost: the conversation stands as it was before this line. */
        fprintf(stderr, "pagedllm: %s; /reset begins a new conversation\n",
                pllm_last_error()->text);
        free((char *)(uintptr_t)c->messages[--c->count].content);
        return pllm_sequence_truncate(c->sequence, before);
    }
    if (status == PLLM_OK) status = add_message(c, "assistant", c->reply ? c->reply : "");
    c->done = c->count;
    c->tail = PLLM_CHAT_REPLY_OPEN;
    return status;
}

/* 1: go on, 0: end, negative: failed. */
static int handle(chat *c, char *line)
{
    line[strcspn(line, "\r\n")] = '\0';
    if (line[0] == '\0') return 1;
    if (strcmp(line, "/quit") == 0 || strcmp(line, "/exit") == 0) return 0;
    if (strcmp(line, "/reset") == 0) {
        int status = begin(c);
        return status < 0 ? status : 1;
    }
    if (strcmp(line, "/stats") == 0) {
        pllm_settings shown = *c->settings;
        shown.stats = true;
        shown.stats_json = NULL;
        int status = cli_stats(&shown, c->engine, NULL);
        return status < 0 ? status : 1;
    }
    if (line[0] == '/') {
        fprintf(stderr, "pagedllm: commands are /reset, /stats and /quit\n");
        return 1;
    }
    int status = turn(c, line);
    return status < 0 ? status : 1;
}

static int converse(chat *c)
{
    int status = begin(c);
    char *line = NULL;
    size_t room = 0;
    while (status >= 0) {
        if (c->interactive) {
            fputs("> ", stdout);
            fflush(stdout);
        }
        if (getline(&line, &room, stdin) < 0) break;
        status = handle(c, line);
        if (status == 0) break;
    }
    free(line);
    if (cli_interrupted()) return cli_canceled();
    return status < 0 ? status : PLLM_OK;
}

int command_chat(const pllm_settings *settings)
{
    chat c = {.settings = settings, .interactive = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO)};
    int status = cli_engine_open(settings, 1, 0, &c.engine);
    if (status == PLLM_OK && !pllm_engine_tokenizer(c.engine))
        status =
            pllm_fail(PLLM_ENOTFOUND, 0, "%s carries no tokenizer: a GGUF file is needed to chat",
                      settings->positionals[0]);
    if (status == PLLM_OK)
        status = pllm_chat_template_open(NULL, pllm_engine_model(c.engine), &c.template);
    if (status == PLLM_OK) status = pllm_sequence_open(c.engine, &c.sequence);
    if (status == PLLM_OK) status = converse(&c);
    if (status == PLLM_OK) status = cli_stats(settings, c.engine, NULL);
    forget(&c);
    free(c.messages);
    free(c.reply);
    pllm_chat_template_close(c.template);
    pllm_engine_close(c.engine);
    return status;
}
