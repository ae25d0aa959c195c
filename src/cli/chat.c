/* chat.c - pagedllm chat: a conversation in the terminal, one sequence that grows turn by turn.
 *
 * Only what is new in a turn is fed: the sequence keeps the KV blocks of everything before. Lines
 * that begin with / are commands. Works from a pipe too, without the prompts.
 *
 * What goes wrong in a turn (the context or a limit is full, a line cannot be read) is said, and
 * the conversation stands as it was before the line. SIGINT on a terminal ends a reply that is
 * being written, and what was written counts; at the prompt, or from a pipe, it ends the chat. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/context.h"
#include "cli/cli.h"
#include "engine/parts.h"
#include "model/chat_template.h"

typedef struct chat {
    cli_program *cli;
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
    char *input; /* read and not yet handled: [input_first, input_end) */
    size_t input_first, input_end, input_room;
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

static void drop_last(chat *c)
{
    free((char *)(uintptr_t)c->messages[--c->count].content);
}

static void forget(chat *c)
{
    while (c->count > 0) drop_last(c);
    c->done = 0;
    c->tail = PLLM_CHAT_CLOSED;
}

static int begin(chat *c)
{
    forget(c);
    int status = pllm_sequence_truncate(c->sequence, 0);
    const char *system = c->cli->settings->system;
    return status == PLLM_OK && system ? add_message(c, "system", system) : status;
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

/* The last token was shown but not fed; the next turn must follow it. */
static int feed_last(chat *c, const pllm_generate_result *result)
{
    if (result->stop == PLLM_STOP_END || result->stop == PLLM_STOP_CONTEXT ||
        result->generated_tokens == 0)
        return PLLM_OK;
    pllm_step_item item = {
        .sequence = c->sequence, .ids = &c->last_id, .token_count = 1, .generated = 1};
    return pllm_engine_step(c->engine, &item, 1, NULL, NULL);
}

static int generate(chat *c, const uint32_t *ids, uint32_t count)
{
    const pllm_settings *s = c->cli->settings;
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
    if (putchar('\n') == EOF || fflush(stdout) != 0) c->failed = 1;
    if (c->failed) return pllm_fail(PLLM_EIO, 0, "standard output could not be written to the end");
    if (cli_interrupted() && !(c->interactive && cli_interrupt_taken())) return cli_canceled();
    if (status < 0) return status;
    if (result.stop == PLLM_STOP_CONTEXT)
        pllm_log(c->cli->context, PLLM_LOG_WARN,
                 "the context is full: /reset begins a new conversation");
    return feed_last(c, &result);
}

static int answer(chat *c)
{
    uint32_t *ids = NULL, count = 0;
    pllm_chat_request request = {.messages = c->messages,
                                 .count = c->count,
                                 .done = c->done,
                                 .tail = c->tail,
                                 .add_generation = 1};
    const pllm_tokenizer *tokenizer = pllm_engine_tokenizer(c->engine);
    int status = pllm_chat_encode(c->template, tokenizer, &request, &ids, &count);
    if (status < 0) return status;
    c->reply_bytes = 0;
    if (c->reply) c->reply[0] = '\0';
    status = generate(c, ids, count);
    pllm_tokenizer_free(tokenizer, ids);
    return status < 0 ? status : add_message(c, "assistant", c->reply ? c->reply : "");
}

static int turn(chat *c, const char *line)
{
    uint32_t before = pllm_sequence_length(c->sequence);
    int status = add_message(c, "user", line);
    if (status == PLLM_OK) status = answer(c);
    if (status == PLLM_OK) {
        c->done = c->count;
        c->tail = PLLM_CHAT_REPLY_OPEN;
        return PLLM_OK;
    }
    if (cli_interrupted() || c->failed) return status;
    pllm_error kept = *pllm_last_error();
    while (c->count > c->done && strcmp(c->messages[c->count - 1].role, "system") != 0)
        drop_last(c);
    status = pllm_sequence_truncate(c->sequence, before);
    pllm_log(c->cli->context, PLLM_LOG_ERROR, "%s; this line is forgotten, /reset begins anew",
             kept.text);
    return status;
}

/* 1: go on, 0: end, negative: failed. */
static int handle(chat *c, const char *line)
{
    if (line[0] == '\0') return 1;
    if (strcmp(line, "/quit") == 0 || strcmp(line, "/exit") == 0) return 0;
    int status = PLLM_OK;
    if (strcmp(line, "/reset") == 0)
        status = begin(c);
    else if (strcmp(line, "/stats") == 0)
        cli_stats_text(c->engine);
    else if (line[0] == '/')
        pllm_log(c->cli->context, PLLM_LOG_ERROR,
                 "%s is no command: there are /reset, /stats and /quit", line);
    else
        status = turn(c, line);
    return status < 0 ? status : 1;
}

/* The next line without its end; NULL in *line_out: there is none. */
static int next_line(chat *c, char **line_out)
{
    *line_out = NULL;
    size_t seen = c->input_first;
    for (;;) {
        char *end = c->input_end > seen ? memchr(c->input + seen, '\n', c->input_end - seen) : NULL;
        size_t got = 0;
        if (!end) {
            seen = c->input_end;
            if (c->input_room - c->input_end < 4096) {
                char *grown = realloc(c->input, c->input_room + 65536);
                if (!grown) return pllm_fail_memory("a line", c->input_room + 65536);
                c->input = grown;
                c->input_room += 65536;
            }
            int status = cli_read(STDIN_FILENO, c->input + c->input_end,
                                  c->input_room - c->input_end - 1, &got);
            if (status == PLLM_EIO)
                return pllm_fail(PLLM_EIO, errno, "standard input cannot be read: %s",
                                 strerror(errno));
            if (status < 0) return status;
            c->input_end += got;
            if (got > 0) continue;
            if (c->input_first == c->input_end) return PLLM_OK;
            end = c->input + c->input_end++; /* the last line may lack its end */
        }
        *line_out = c->input + c->input_first;
        c->input_first = (size_t)(end - c->input) + 1;
        while (end > *line_out && end[-1] == '\r') end--;
        *end = '\0';
        for (char *at = *line_out; at < end; at++)
            if (*at == '\0') *at = ' '; /* no text has zero bytes; none ends a line unseen */
        return PLLM_OK;
    }
}

static int converse(chat *c)
{
    int status = begin(c);
    while (status >= 0) {
        if (c->interactive) {
            fputs("> ", stdout);
            fflush(stdout);
        }
        if (c->input_first == c->input_end) c->input_first = c->input_end = 0;
        char *line;
        status = next_line(c, &line);
        if (status < 0) break;
        status = line ? handle(c, line) : 0;
        if (status == 0) break;
    }
    if (c->interactive) putchar('\n');
    return status < 0 ? status : PLLM_OK;
}

int command_chat(cli_program *cli)
{
    chat c = {.cli = cli, .interactive = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO)};
    int status = cli_engine_open(cli, NULL, &c.engine);
    if (status == PLLM_OK && !pllm_engine_tokenizer(c.engine))
        status =
            pllm_fail(PLLM_ENOTFOUND, 0, "%s carries no tokenizer: a GGUF file is needed to chat",
                      cli->settings->positionals[0]);
    if (status == PLLM_OK)
        status = pllm_chat_template_open(cli->context, pllm_engine_model(c.engine), &c.template);
    if (status == PLLM_OK) status = pllm_sequence_open(c.engine, &c.sequence);
    if (status == PLLM_OK) status = converse(&c);
    if (status == PLLM_OK) status = cli_stats(cli, c.engine, NULL);
    forget(&c);
    free(c.messages);
    free(c.reply);
    free(c.input);
    pllm_chat_template_close(c.template);
    pllm_engine_close(c.engine);
    return status;
}
