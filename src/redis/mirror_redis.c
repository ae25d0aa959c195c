/* mirror_redis.c - the two threads that talk to Redis (mirror.h): one writes what changed, one
 * waits for commands. Each has a connection of its own, makes it again when it breaks, with growing
 * pauses, and blocks only itself.
 *
 * The writer's life: connect -> load the scripts -> ask the loop for a full registration -> send
 * lists as they come, and once a second look whether Redis still has what it was given. A broken
 * connection forgets what was to be sent: the next registration has it. What Redis refuses comes
 * with a later registration, too. */
#include <errno.h>
#include <hiredis/hiredis.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "base/clock.h"
#include "redis/mirror_internal.h"

#define SECOND UINT64_C(1000000000)
enum { BATCH = 128, PAUSE_MS_FIRST = 50, PAUSE_MS_MAX = 2000, ANSWER_S = 60, NODE_S = 60 };

/* A hash is written whole, or not at all. KEYS[1]; ARGV: node, generation, then fields and values,
 * the last of them sync. Numbers are compared as text, by length first: Lua's hold 53 bits. 1
 * written, 0 the key has a later sync, or a greater generation of this one, -1 it is another
 * daemon's that lives. What an earlier sync left says nothing: the tensor may have gone while Redis
 * was away, and an older one been given its name. */
static const char put_script[] =
    "local had = redis.call('HMGET', KEYS[1], 'node', 'generation', 'sync')\n"
    "if had[1] and had[1] ~= ARGV[1] then\n"
    "  if redis.call('EXISTS', 'tensor-store:' .. had[1]) == 1 then return -1 end\n"
    "  had = {}\n"
    "end\n"
    "local function less(a, b) return #a < #b or (#a == #b and a < b) end\n"
    "local old, new, was, is = had[2] or '', ARGV[2], had[3] or '', ARGV[#ARGV]\n"
    "if less(is, was) or (is == was and less(new, old)) then return 0 end\n"
    "redis.call('HSET', KEYS[1], 'node', ARGV[1], 'generation', new, unpack(ARGV, 3))\n"
    "return 1\n";
/* KEYS[1]; ARGV: node, generation. Removed if it is that tensor's. */
static const char remove_script[] =
    "local had = redis.call('HMGET', KEYS[1], 'node', 'generation')\n"
    "if had[1] ~= ARGV[1] or had[2] ~= ARGV[2] then return 0 end\n"
    "return redis.call('DEL', KEYS[1])\n";
/* KEYS[1]; ARGV: node, sync. Removed if it is ours and of an earlier registration, or a daemon's
 * that is gone: its key went when nobody renewed it. */
static const char clean_script[] =
    "if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then return 0 end\n"
    "local had = redis.call('HMGET', KEYS[1], 'node', 'sync', 'generation')\n"
    "if not (had[1] and had[2] and had[3]) then return 0 end\n"
    "if had[1] == ARGV[1] and had[2] == ARGV[2] then return 0 end\n"
    "if had[1] ~= ARGV[1] and redis.call('EXISTS', 'tensor-store:' .. had[1]) == 1 then\n"
    "  return 0\n"
    "end\n"
    "return redis.call('DEL', KEYS[1])\n";

/* KEYS[1]; ARGV: answer, seconds. Not loaded: answers are sent when scripts are gone, too. What is
 * no list is left alone. */
static const char answer_script[] = "redis.call('RPUSH', KEYS[1], ARGV[1])\n"
                                    "return redis.call('EXPIRE', KEYS[1], ARGV[2])\n";

enum { SCRIPT_PUT, SCRIPT_REMOVE, SCRIPT_CLEAN, SCRIPTS };

typedef struct writer {
    pllm_mirror *mirror;
    redisContext *redis;
    char sha[SCRIPTS][41];
    uint64_t round; /* of the registration whose entries are being sent */
    mirror_list taken;
    int served;    /* this connection has taken a registration */
    uint32_t told; /* that Redis is away, or refuses */
    char why[200];
} writer;

/* ---- connections ---- */

static int reply_is_ok(redisReply *reply)
{
    int is = reply && reply->type != REDIS_REPLY_ERROR;
    if (reply) freeReplyObject(reply);
    return is;
}

/* NULL: it could not be made; why says so. */
static redisContext *redis_connect(const pllm_mirror *mirror, char *why, size_t why_bytes)
{
    const pllm_mirror_address *to = &mirror->address;
    const struct timeval timeout = {.tv_sec = mirror->timeout_ms / 1000,
                                    .tv_usec = mirror->timeout_ms % 1000 * 1000};
    redisContext *redis = to->path[0] ? redisConnectUnixWithTimeout(to->path, timeout)
                                      : redisConnectWithTimeout(to->host, (int)to->port, timeout);
    snprintf(why, why_bytes, "no memory");
    if (!redis) return NULL;
    int good = !redis->err && redisSetTimeout(redis, timeout) == REDIS_OK;
    if (good && to->password[0])
        good = reply_is_ok(to->user[0] ? redisCommand(redis, "AUTH %s %s", to->user, to->password)
                                       : redisCommand(redis, "AUTH %s", to->password));
    if (good && to->database) good = reply_is_ok(redisCommand(redis, "SELECT %u", to->database));
    if (good) good = reply_is_ok(redisCommand(redis, "PING"));
    if (good) {
        snprintf(why, why_bytes, "it does not take our scripts"); /* if that is what comes next */
        return redis;
    }
    snprintf(why, why_bytes, "%s",
             redis->err ? redis->errstr : "it refuses the password, the database or PING");
    redisFree(redis);
    return NULL;
}

/* Waits ms, or until stop. 1: stop. */
static int pause_ms(pllm_mirror *mirror, uint32_t ms)
{
    uint64_t until = pllm_clock_ns() + ms * UINT64_C(1000000);
    const struct timespec at = {.tv_sec = (time_t)(until / SECOND),
                                .tv_nsec = (long)(until % SECOND)};
    pthread_mutex_lock(&mirror->lock);
    int timed_out = 0;
    while (!mirror->stop && timed_out != ETIMEDOUT)
        timed_out = pthread_cond_timedwait(&mirror->room, &mirror->lock, &at);
    int stop = mirror->stop;
    pthread_mutex_unlock(&mirror->lock);
    return stop;
}

/* ---- what is sent ---- */

typedef struct arguments { /* of one EVALSHA, in pieces that outlive it */
    const char *at[64];
    size_t bytes[64];
    int count;
    char key[sizeof "tensor:" + PLLM_STORE_NAME_MAX];
    char shape[PLLM_STORE_SHAPE_TEXT_BYTES];
    char numbers[16][24];
    uint32_t number_count;
} arguments;

static void add(arguments *a, const char *text)
{
    a->at[a->count] = text;
    a->bytes[a->count++] = strlen(text);
}

static void add_number(arguments *a, uint64_t number)
{
    char *to = a->numbers[a->number_count++];
    snprintf(to, sizeof a->numbers[0], "%" PRIu64, number);
    add(a, to);
}

static void add_field(arguments *a, const char *field, const char *value)
{
    add(a, field);
    add(a, value);
}

static void add_count(arguments *a, const char *field, uint64_t value)
{
    add(a, field);
    add_number(a, value);
}

static void begin_script(writer *w, arguments *a, uint32_t script, const char *name,
                         uint64_t generation)
{
    a->count = 0;
    a->number_count = 0;
    add(a, "EVALSHA");
    add(a, w->sha[script]);
    add(a, "1");
    snprintf(a->key, sizeof a->key, "tensor:%s", name);
    add(a, a->key);
    add(a, w->mirror->node);
    add_number(a, generation);
}

static void flags_text(uint32_t flags, char text[32])
{
    snprintf(text, 32, "%s%s%s", flags & PLLM_STORE_FLAG_SEALED ? "sealed " : "",
             flags & PLLM_STORE_FLAG_PINNED ? "pinned " : "",
             flags & PLLM_STORE_FLAG_KEPT ? "kept " : "");
    size_t bytes = strlen(text);
    if (bytes) text[bytes - 1] = 0;
}

static int append(writer *w, const arguments *a)
{
    return redisAppendCommandArgv(w->redis, a->count, (const char **)(uintptr_t)a->at, a->bytes);
}

static int append_put(writer *w, const mirror_op *op)
{
    const pllm_store_record *r = &op->record;
    arguments a;
    char mode[8], flags[32];
    begin_script(w, &a, SCRIPT_PUT, r->name, r->generation);
    add_field(&a, "name", r->name);
    add_field(&a, "dtype", pllm_store_dtype_name(r->dtype));
    add_field(&a, "shape", pllm_store_shape_text(r->rank, r->shape, a.shape));
    add_count(&a, "device", r->device);
    add_field(&a, "uuid", op->uuid);
    add_count(&a, "bytes", r->bytes);
    add_field(&a, "ipc_handle", op->ipc_handle);
    add_count(&a, "offset", op->offset);
    add_count(&a, "owner_pid", r->owner_pid);
    add_count(&a, "owner_start", r->owner_start);
    add_count(&a, "refcount", r->reference_count);
    add_count(&a, "ctime", (uint64_t)r->ctime_ns / SECOND);
    add_count(&a, "mtime", (uint64_t)r->mtime_ns / SECOND);
    add_field(&a, "state", pllm_store_state_name(r->state));
    add_field(&a, "kind", r->kind == PLLM_STORE_KIND_LEGACY ? "legacy" : "vmm");
    add_count(&a, "uid", r->uid);
    add_count(&a, "gid", r->gid);
    snprintf(mode, sizeof mode, "%04o", r->mode & 0777);
    add_field(&a, "mode", mode);
    flags_text(r->flags, flags);
    add_field(&a, "flags", flags);
    add_field(&a, "version", "1");
    add_count(&a, "sync", w->round);
    return append(w, &a);
}

static int append_remove(writer *w, const mirror_op *op)
{
    arguments a;
    begin_script(w, &a, SCRIPT_REMOVE, op->record.name, op->record.generation);
    return append(w, &a);
}

/* ---- answers from Redis ---- */

static void count_put(writer *w, const mirror_op *op, const redisReply *reply)
{
    pllm_mirror *mirror = w->mirror;
    int written = reply->type == REDIS_REPLY_INTEGER && reply->integer == 1;
    pthread_mutex_lock(&mirror->lock);
    if (written)
        mirror->stats.written++;
    else
        mirror->stats.refused++;
    uint64_t refused = mirror->stats.refused;
    pthread_mutex_unlock(&mirror->lock);
    if (written || refused > 16) return; /* told often enough */
    pllm_log(mirror->context, PLLM_LOG_WARN, "Redis: tensor:%s was not written: %s",
             op->record.name,
             reply->type == REDIS_REPLY_ERROR ? reply->str
             : reply->integer < 0             ? "another store has a tensor of that name there"
                                              : "it has a newer generation there");
}

/* The answer to the oldest command sent. NULL: the connection broke. */
static redisReply *reply_next(writer *w)
{
    void *reply = NULL;
    if (redisGetReply(w->redis, &reply) != REDIS_OK) return NULL;
    return reply;
}

static int is_no_script(const redisReply *reply)
{
    return reply->type == REDIS_REPLY_ERROR && !strncmp(reply->str, "NOSCRIPT", 8);
}

/* It does not do what it is told: it is full, a replica, has too few of them, or says that this
 * user may not. EBUSY (bare): some other time. */
static int refused(writer *w, const redisReply *reply)
{
    snprintf(w->why, sizeof w->why, "%s", reply->str);
    return PLLM_EBUSY;
}

static int append_op(writer *w, const mirror_op *op)
{
    if (op->kind == MIRROR_PUT) return append_put(w, op);
    if (op->kind == MIRROR_REMOVE) return append_remove(w, op);
    return redisAppendCommand(w->redis, "EVAL %s 1 %s %s %d", answer_script, op->reply, op->text,
                              ANSWER_S);
}

/* What Redis said to it. OK, ESTALE, EBUSY, as send_batch. */
static int reply_take(writer *w, const mirror_op *op, const redisReply *reply)
{
    const int error = reply->type == REDIS_REPLY_ERROR;
    if (op->kind == MIRROR_ANSWER) return PLLM_OK; /* its list is the asker's affair */
    if (is_no_script(reply)) return PLLM_ESTALE;
    if (op->kind == MIRROR_PUT) count_put(w, op, reply);
    if (op->kind == MIRROR_REMOVE && reply->type == REDIS_REPLY_INTEGER) {
        pthread_mutex_lock(&w->mirror->lock);
        w->mirror->stats.removed += (uint64_t)reply->integer;
        pthread_mutex_unlock(&w->mirror->lock);
    }
    /* A key of another type is somebody's, and will be later. */
    return error && !strstr(reply->str, "WRONGTYPE") ? refused(w, reply) : PLLM_OK;
}

/* OK; EIO: the connection broke; ESTALE: Redis forgot the scripts, and so what they should do;
 * EBUSY: it refused some. */
static int send_batch(writer *w, const mirror_op *ops, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (append_op(w, &ops[i]) != REDIS_OK) return PLLM_EIO;
    int result = PLLM_OK;
    for (uint32_t i = 0; i < count; i++) {
        redisReply *reply = reply_next(w);
        if (!reply) return PLLM_EIO;
        int status = reply_take(w, &ops[i], reply);
        if (status < 0 && result != PLLM_ESTALE) result = status;
        freeReplyObject(reply);
    }
    return result;
}

/* Removes this node's hashes of other registrations than round, page by page of a scan. ESTALE:
 * Redis forgot the scripts. */
static int clean(writer *w, uint64_t round)
{
    char cursor[32] = "0";
    do {
        redisReply *page = redisCommand(w->redis, "SCAN %s MATCH tensor:* COUNT 512", cursor);
        if (!page || page->type != REDIS_REPLY_ARRAY || page->elements != 2 ||
            page->element[0]->type != REDIS_REPLY_STRING) {
            int status = page && page->type == REDIS_REPLY_ERROR ? refused(w, page) : PLLM_EIO;
            if (page) freeReplyObject(page);
            return status;
        }
        snprintf(cursor, sizeof cursor, "%s", page->element[0]->str);
        const redisReply *keys = page->element[1];
        int status = REDIS_OK, forgotten = 0;
        size_t sent = 0;
        for (; sent < keys->elements && status == REDIS_OK; sent++)
            status = redisAppendCommand(w->redis, "EVALSHA %s 1 %b %s %" PRIu64,
                                        w->sha[SCRIPT_CLEAN], keys->element[sent]->str,
                                        keys->element[sent]->len, w->mirror->node, round);
        for (size_t i = 0; i < sent && status == REDIS_OK; i++) {
            redisReply *reply = reply_next(w);
            forgotten |= reply && is_no_script(reply);
            if (reply)
                freeReplyObject(reply);
            else
                status = REDIS_ERR;
        }
        freeReplyObject(page);
        if (status != REDIS_OK) return PLLM_EIO;
        if (forgotten) return PLLM_ESTALE;
    } while (strcmp(cursor, "0") != 0);
    return PLLM_OK;
}

/* The key goes first: if Redis loses its data in between, it goes too, and that is noticed. */
static int registration_begin(writer *w, uint64_t round)
{
    redisReply *reply = redisCommand(w->redis, "SET tensor-store:%s %" PRIu64 " EX %d",
                                     w->mirror->node, round, NODE_S);
    if (!reply) return PLLM_EIO;
    int status = reply->type == REDIS_REPLY_ERROR ? refused(w, reply) : PLLM_OK;
    freeReplyObject(reply);
    w->round = status == PLLM_OK ? round : 0;
    w->served |= status == PLLM_OK;
    return status;
}

/* Sends what was taken, in batches that a BEGIN or END cuts. */
static int send_taken(writer *w)
{
    const mirror_op *ops = w->taken.ops;
    int result = PLLM_OK; /* ESTALE does not stop what follows: there are answers in it */
    for (uint32_t i = 0, end; i < w->taken.count; i = end) {
        for (end = i; end < w->taken.count && end - i < BATCH && ops[end].kind < MIRROR_BEGIN;)
            end++;
        int status = send_batch(w, ops + i, end - i);
        if (status == PLLM_EIO) return status;
        if (status < 0) result = status;
        if (end == w->taken.count || ops[end].kind < MIRROR_BEGIN) continue;
        status = ops[end].kind == MIRROR_BEGIN ? registration_begin(w, ops[end].record.generation)
                                               : clean(w, w->round);
        if (status < 0) return status;
        if (ops[end].kind == MIRROR_END && result == PLLM_OK && w->told) {
            pllm_log(w->mirror->context, PLLM_LOG_WARN, "Redis is back");
            w->told = 0;
        }
        end++;
    }
    return result;
}

/* Does Redis have the registration in force? Then that is renewed, or others would take this daemon
 * for gone. OK; ESTALE: not; EBUSY: it does not say; EIO: the connection broke. */
static int check_kept(writer *w)
{
    redisReply *reply = redisCommand(w->redis, "GET tensor-store:%s", w->mirror->node);
    if (!reply) return PLLM_EIO;
    char want[24];
    snprintf(want, sizeof want, "%" PRIu64, w->round);
    int status = reply->type == REDIS_REPLY_ERROR ? refused(w, reply)
                 : reply->type == REDIS_REPLY_STRING && !strcmp(reply->str, want) ? PLLM_OK
                                                                                  : PLLM_ESTALE;
    freeReplyObject(reply);
    if (status < 0) return status;
    reply = redisCommand(w->redis, "EXPIRE tensor-store:%s %d", w->mirror->node, NODE_S);
    if (!reply) return PLLM_EIO;
    if (reply->type == REDIS_REPLY_ERROR) status = refused(w, reply);
    freeReplyObject(reply);
    return status;
}

/* ---- the writer ---- */

static int load_scripts(writer *w)
{
    static const char *const texts[SCRIPTS] = {put_script, remove_script, clean_script};
    for (uint32_t i = 0; i < SCRIPTS; i++) {
        redisReply *reply = redisCommand(w->redis, "SCRIPT LOAD %s", texts[i]);
        int good = reply && reply->type == REDIS_REPLY_STRING && reply->len == 40;
        if (good) memcpy(w->sha[i], reply->str, 41);
        if (!good)
            snprintf(w->why, sizeof w->why, "%s",
                     reply && reply->type == REDIS_REPLY_ERROR ? reply->str : w->redis->errstr);
        if (reply) freeReplyObject(reply);
        if (!good) return PLLM_EIO;
    }
    return PLLM_OK;
}

static void state_set(pllm_mirror *mirror, int connected, int wants_all)
{
    pthread_mutex_lock(&mirror->lock);
    if (connected && !mirror->connected) mirror->stats.connects++;
    mirror->connected = connected;
    mirror->wants_all = wants_all;
    if (wants_all) mirror->open = 0; /* what changes until it begins is part of it */
    if (!connected) {
        mirror->open = 0;
        pllm_mirror_list_clear(mirror, &mirror->list);
        memset(mirror->last_put, 0, mirror->slot_max * sizeof *mirror->last_put);
    }
    pthread_mutex_unlock(&mirror->lock);
    if (wants_all) pllm_mirror_wake(mirror);
}

/* Takes the list, waiting up to a second for one. 1: there is something; 0: not; -1: stop. */
static int take(writer *w)
{
    pllm_mirror *mirror = w->mirror;
    uint64_t until = pllm_clock_ns() + SECOND;
    const struct timespec at = {.tv_sec = (time_t)(until / SECOND),
                                .tv_nsec = (long)(until % SECOND)};
    pthread_mutex_lock(&mirror->lock);
    int timed_out = 0;
    if (mirror->wants_all) pllm_mirror_wake(mirror); /* the list ran over */
    /* Before a registration there are only answers, and what they speak of is not in Redis yet. */
    while (!mirror->stop && !(mirror->list.count && mirror->open) && timed_out != ETIMEDOUT)
        timed_out = pthread_cond_timedwait(&mirror->work, &mirror->lock, &at);
    int result = mirror->list.count && mirror->open ? 1 : mirror->stop ? -1 : 0;
    if (result <= 0) {
        pthread_mutex_unlock(&mirror->lock);
        return result;
    }
    const mirror_list empty = w->taken;
    w->taken = mirror->list;
    mirror->list = empty;
    for (uint32_t i = 0; i < w->taken.count; i++)
        if (w->taken.ops[i].kind == MIRROR_PUT) mirror->last_put[w->taken.ops[i].record.slot] = 0;
    pthread_mutex_unlock(&mirror->lock);
    return result;
}

static int register_again(writer *w)
{
    pllm_log(w->mirror->context, PLLM_LOG_WARN,
             "Redis lost what it was told of; registering everything again");
    w->round = 0; /* until the next registration begins */
    if (load_scripts(w) < 0) return PLLM_EIO;
    state_set(w->mirror, 1, 1);
    return PLLM_OK;
}

/* It refused something: all is registered again after a while. */
static int register_later(writer *w)
{
    if (!w->told++)
        pllm_log(
            w->mirror->context, PLLM_LOG_WARN,
            "Redis refuses what it is told (%s): tensors are served on, and registered when it "
            "does not",
            w->why);
    w->round = 0;
    if (!pause_ms(w->mirror, PAUSE_MS_MAX)) state_set(w->mirror, 1, 1);
    return PLLM_OK;
}

/* Serves one connection until it breaks (0) or stop (1). */
static int serve(writer *w)
{
    pllm_mirror *mirror = w->mirror;
    uint64_t checked = pllm_clock_ns();
    w->round = 0;
    w->served = 0;
    state_set(mirror, 1, 1);
    for (;;) {
        int there = take(w);
        if (there < 0) { /* the daemon ends in order: its tensors go, and so do their hashes */
            int status = clean(w, 0);
            if (status == PLLM_ESTALE && load_scripts(w) == PLLM_OK) status = clean(w, 0);
            if (status == PLLM_OK)
                reply_is_ok(redisCommand(w->redis, "DEL tensor-store:%s", mirror->node));
            return 1;
        }
        int status = there ? send_taken(w) : PLLM_OK;
        pllm_mirror_list_clear(mirror, &w->taken);
        if (status == PLLM_OK && w->round && pllm_clock_ns() - checked > SECOND) {
            checked = pllm_clock_ns();
            status = check_kept(w);
        }
        if (status == PLLM_ESTALE) status = register_again(w);
        if (status == PLLM_EBUSY) status = register_later(w);
        if (status < 0) return 0;
    }
}

static int writer_fd_set(pllm_mirror *mirror, int fd)
{
    pthread_mutex_lock(&mirror->lock);
    mirror->writer_fd = fd;
    int stop = mirror->stop;
    pthread_mutex_unlock(&mirror->lock);
    return stop;
}

/* One connection, from beginning to end. 1: stop. */
static int connect_and_serve(writer *w)
{
    pllm_mirror *mirror = w->mirror;
    w->served = 0;
    w->redis = redis_connect(mirror, w->why, sizeof w->why);
    if (!w->redis) return 0;
    int stop = writer_fd_set(mirror, w->redis->fd);
    if (!stop && load_scripts(w) == PLLM_OK) {
        stop = serve(w);
        state_set(mirror, 0, 0);
        if (!stop)
            snprintf(w->why, sizeof w->why, "%s", w->redis->err ? w->redis->errstr : "an error");
    }
    writer_fd_set(mirror, -1);
    redisFree(w->redis);
    return stop;
}

static void *writer_main(void *argument)
{
    pllm_mirror *mirror = argument;
    writer w = {.mirror = mirror};
    uint32_t pause = PAUSE_MS_FIRST;
    for (int stop = 0; !stop;) {
        stop = connect_and_serve(&w);
        if (stop) break;
        if (w.served) pause = PAUSE_MS_FIRST;
        if (!w.told++)
            pllm_log(mirror->context, PLLM_LOG_WARN,
                     "Redis is away (%s): tensors are served on, and registered when it is back",
                     w.why);
        stop = pause_ms(mirror, pause);
        if (pause < PAUSE_MS_MAX) pause *= 2;
    }
    pllm_mirror_list_clear(mirror, &w.taken);
    pllm_free(mirror->context, w.taken.ops);
    pthread_mutex_lock(&mirror->lock);
    mirror->writer_done = 1;
    pthread_cond_broadcast(&mirror->room);
    pthread_mutex_unlock(&mirror->lock);
    return NULL;
}

/* ---- the listener ---- */

static int listener_fd_set(pllm_mirror *mirror, int fd)
{
    pthread_mutex_lock(&mirror->lock);
    mirror->listener_fd = fd;
    int stop = mirror->stop;
    pthread_mutex_unlock(&mirror->lock);
    return stop;
}

/* Hands a command to the loop, waiting while it has enough. 1: stop. */
static int command_give(pllm_mirror *mirror, const char *text, size_t bytes)
{
    mirror_command command = {0};
    command.status = pllm_command_parse(text, bytes, &command.command);
    if (command.status < 0)
        snprintf(command.text, sizeof command.text, "%s", pllm_last_error()->text);
    pthread_mutex_lock(&mirror->lock);
    while (!mirror->stop && mirror->command_count == MIRROR_COMMAND_MAX)
        pthread_cond_wait(&mirror->room, &mirror->lock);
    int stop = mirror->stop;
    if (!stop) {
        uint32_t at = (mirror->command_first + mirror->command_count++) % MIRROR_COMMAND_MAX;
        mirror->commands[at] = command;
        mirror->stats.commands++;
        mirror->stats.bad_commands += command.status < 0;
    }
    pthread_mutex_unlock(&mirror->lock);
    if (command.status < 0)
        pllm_log(mirror->context, PLLM_LOG_INFO, "tensor:cmd: %s", command.text);
    pllm_mirror_wake(mirror);
    return stop;
}

/* One round of waiting. OK, EIO (the connection broke), ECANCELED (stop). */
static int listen_once(pllm_mirror *mirror, redisContext *redis)
{
    redisReply *reply = redisCommand(redis, "BLPOP tensor:cmd 1");
    int status = PLLM_OK;
    if (!reply)
        status = PLLM_EIO;
    else if (reply->type == REDIS_REPLY_ARRAY && reply->elements == 2 &&
             reply->element[1]->type == REDIS_REPLY_STRING)
        status = command_give(mirror, reply->element[1]->str, reply->element[1]->len)
                     ? PLLM_ECANCELED
                     : PLLM_OK;
    else if (reply->type == REDIS_REPLY_ERROR) { /* tensor:cmd is no list: somebody may mend that */
        pllm_log(mirror->context, PLLM_LOG_WARN, "tensor:cmd cannot be read: %s", reply->str);
        status = pause_ms(mirror, PAUSE_MS_MAX) ? PLLM_ECANCELED : PLLM_OK;
    }
    if (reply) freeReplyObject(reply);
    return status;
}

static void *listener_main(void *argument)
{
    pllm_mirror *mirror = argument;
    uint32_t pause = PAUSE_MS_FIRST;
    for (int stop = 0; !stop;) {
        char why[160];
        redisContext *redis = redis_connect(mirror, why, sizeof why);
        if (redis) {
            /* BLPOP answers after a second at the latest; a dead host would not. */
            redisSetTimeout(redis, (struct timeval){.tv_sec = 1 + mirror->timeout_ms / 1000 + 1});
            stop = listener_fd_set(mirror, redis->fd);
            pause = PAUSE_MS_FIRST;
            for (int status = PLLM_OK; !stop && status == PLLM_OK;) {
                status = listen_once(mirror, redis);
                if (status == PLLM_ECANCELED) stop = 1;
            }
            listener_fd_set(mirror, -1);
            redisFree(redis);
        }
        if (!stop) stop = pause_ms(mirror, pause);
        if (pause < PAUSE_MS_MAX) pause *= 2;
    }
    return NULL;
}

/* ---- both ---- */

int pllm_mirror_threads_start(pllm_mirror *mirror)
{
    sigset_t all, before;
    mirror->listener_fd = -1;
    sigfillset(&all); /* signals are for the loop's thread */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    mirror->writer_runs = pthread_create(&mirror->writer, NULL, writer_main, mirror) == 0;
    mirror->listener_runs =
        mirror->writer_runs && pthread_create(&mirror->listener, NULL, listener_main, mirror) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (mirror->listener_runs) return PLLM_OK;
    return pllm_fail(PLLM_ELIMIT, 0, "the system gives no more threads (two for Redis)");
}

void pllm_mirror_threads_stop(pllm_mirror *mirror)
{
    pthread_mutex_lock(&mirror->lock);
    mirror->stop = 1;
    if (mirror->listener_fd >= 0) shutdown(mirror->listener_fd, SHUT_RDWR); /* ends its wait */
    pthread_cond_broadcast(&mirror->work);
    pthread_cond_broadcast(&mirror->room);
    /* The writer removes what it wrote, if Redis lets it do that in time. */
    const uint64_t until = pllm_clock_ns() + mirror->timeout_ms * UINT64_C(1000000);
    const struct timespec at = {.tv_sec = (time_t)(until / SECOND),
                                .tv_nsec = (long)(until % SECOND)};
    int timed_out = 0;
    while (mirror->writer_runs && !mirror->writer_done && timed_out != ETIMEDOUT)
        timed_out = pthread_cond_timedwait(&mirror->room, &mirror->lock, &at);
    if (mirror->writer_fd >= 0) shutdown(mirror->writer_fd, SHUT_RDWR);
    pthread_mutex_unlock(&mirror->lock);
    if (mirror->writer_runs) pthread_join(mirror->writer, NULL);
    if (mirror->listener_runs) pthread_join(mirror->listener, NULL);
}

/* ---- addresses ---- */

/* Without what may be a password in it: the sentence may come to stand in a log. */
static int bad_address(const char *text)
{
    const char *sign = strrchr(text, '@');
    return pllm_fail(
        PLLM_EINVAL, 0,
        "\"%s%.200s\" is no address of a Redis: it is unix://PATH or redis://HOST:PORT",
        sign ? "..." : "", sign ? sign : text);
}

/* A number up to max that ends at end. */
static int read_number(const char *text, const char *end, uint32_t max, uint32_t *number_out)
{
    uint32_t number = 0;
    if (text == end || end - text > 6) return 0;
    for (; text < end; text++) {
        if (*text < '0' || *text > '9') return 0;
        number = number * 10 + (uint32_t)(*text - '0');
    }
    *number_out = number;
    return number <= max;
}

static int read_part(const char *text, const char *end, char *to, size_t to_bytes)
{
    if ((size_t)(end - text) >= to_bytes) return 0;
    memcpy(to, text, (size_t)(end - text));
    to[end - text] = 0;
    return 1;
}

static int parse_unix(const char *text, const char *at, pllm_mirror_address *address)
{
    const char *end = strchr(at, '?');
    if (end && (strncmp(end, "?db=", 4) != 0 ||
                !read_number(end + 4, end + strlen(end), 65535, &address->database)))
        return bad_address(text);
    if (!end) end = at + strlen(at);
    return end > at && read_part(at, end, address->path, sizeof address->path) ? PLLM_OK
                                                                               : bad_address(text);
}

static int parse_tcp(const char *text, const char *at, pllm_mirror_address *address)
{
    const char *end = at + strlen(at), *slash = strchr(at, '/');
    if (slash && slash[1] && !read_number(slash + 1, end, 65535, &address->database))
        return bad_address(text);
    if (slash) end = slash;
    const char *sign = memrchr(at, '@', (size_t)(end - at));
    if (sign) { /* [user]:password */
        const char *colon = memchr(at, ':', (size_t)(sign - at));
        if (!colon || !read_part(at, colon, address->user, sizeof address->user) ||
            !read_part(colon + 1, sign, address->password, sizeof address->password))
            return bad_address(text);
        at = sign + 1;
    }
    const char *colon = NULL;
    if (*at == '[') { /* an IPv6 address */
        const char *close = memchr(at, ']', (size_t)(end - at));
        if (!close || !read_part(at + 1, close, address->host, sizeof address->host))
            return bad_address(text);
        if (close + 1 < end) colon = close + 1;
        if (colon && *colon != ':') return bad_address(text);
    } else {
        colon = memchr(at, ':', (size_t)(end - at));
        if (!read_part(at, colon ? colon : end, address->host, sizeof address->host))
            return bad_address(text);
    }
    address->port = 6379;
    if (colon && !read_number(colon + 1, end, 65535, &address->port)) return bad_address(text);
    return address->host[0] && address->port ? PLLM_OK : bad_address(text);
}

int pllm_mirror_address_parse(const char *text, pllm_mirror_address *address_out)
{
    memset(address_out, 0, sizeof *address_out);
    if (!strncmp(text, "unix://", 7)) return parse_unix(text, text + 7, address_out);
    if (!strncmp(text, "redis://", 8)) return parse_tcp(text, text + 8, address_out);
    return bad_address(text);
}
