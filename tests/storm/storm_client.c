/* storm_client.c - one client process: a seeded mix of operations until it is killed or told to
 * end.
 *
 * Every call is timed and goes into the ring. What a call may answer is a set; anything else ends
 * the storm. EIO and ETIMEDOUT belong to a daemon that is away: they are allowed only then.
 *
 * A second thread opens, reads, waits and closes through the same store; some signals are given by
 * a stream. */
#include <errno.h>
#include <hiredis/hiredis.h>
#include <jansson.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/clock.h"
#include "base/context.h"
#include "storm.h"

enum { HANDLES_MAX = 12, PID_HOLDS_MAX = 16, REDIS_WAIT_S = 3 };

typedef struct handle {
    pllm_store_tensor *tensor;
    uint32_t writable, no_writes; /* no_writes: it may have been sealed by us */
    char name[24];
} handle;

typedef struct pid_hold { /* through Redis, as long as we live */
    uint64_t generation;
    uint32_t writable;
    char name[24];
} pid_hold;

typedef struct storm_self {
    storm_shared *shared;
    storm_place *place;
    pllm_store *store;
    pllm_device *device;
    pllm_stream *stream;
    pthread_t other;
    atomic_int other_ends;
    redisContext *redis;
    uint64_t random, other_random;
    uint32_t handle_count, hold_count, reply_number, watching;
    handle handles[HANDLES_MAX];
    pid_hold holds[PID_HOLDS_MAX];
} storm_self;

/* ---- calls, timed ---- */

static uint64_t begin(storm_self *self, uint32_t kind, const char *name, uint32_t own_ms)
{
    storm_place *place = self->place;
    storm_op *op = &place->ring[place->ring_at % STORM_RING];
    uint64_t now = pllm_clock_ns();
    *op = (storm_op){.at_ns = now - self->shared->start_ns, .kind = kind, .status = 1};
    snprintf(op->name, sizeof op->name, "%s", name ? name : "");
    atomic_store(&place->limit_ns,
                 (own_ms + UINT64_C(2) * STORM_TIMEOUT_MS + STORM_SLACK_MS) * UINT64_C(1000000));
    atomic_store(&place->began_ns, now);
    return now;
}

static void raise_to(atomic_uint_least64_t *longest, uint64_t value)
{
    uint64_t had = atomic_load(longest);
    while (had < value && !atomic_compare_exchange_weak(longest, &had, value)) continue;
}

static int troubled(const storm_shared *shared, uint64_t since_ns)
{
    return atomic_load(&shared->trouble) ||
           atomic_load(&shared->trouble_end_ns) + UINT64_C(100000000) > since_ns;
}

/* allowed ends with 1. */
static int ended(storm_self *self, uint64_t began, int status, uint32_t own_ms, const int *allowed)
{
    storm_shared *shared = self->shared;
    storm_place *place = self->place;
    storm_op *op = &place->ring[place->ring_at++ % STORM_RING];
    storm_figures *figures = &shared->figures[op->kind];
    uint64_t took = pllm_clock_ns() - began, own_ns = own_ms * UINT64_C(1000000);
    int calm = !troubled(shared, began);
    op->took_ns = took;
    op->status = status;
    atomic_store(&place->began_ns, 0);
    atomic_fetch_add(&figures->calls, 1);
    if (status < 0) atomic_fetch_add(&figures->refused, 1);
    uint64_t over = took > own_ns ? took - own_ns : 0; /* a wait is to take its own time */
    raise_to(&figures->longest_ns, over);
    if (calm) raise_to(&figures->longest_calm_ns, over);
    if (took > atomic_load(&place->limit_ns))
        storm_fail(shared, "%s of %s took %llu ms, which is longer than its timeout",
                   storm_kind_name(op->kind), op->name, (unsigned long long)(took / 1000000));
    if (status == PLLM_OK) return status;
    if (!calm && (status == PLLM_EIO || status == PLLM_ETIMEDOUT)) {
        if (status == PLLM_EIO) usleep(5000); /* asking again at once counts for nothing */
        return status;
    }
    for (; *allowed != 1; allowed++)
        if (*allowed == status) return status;
    storm_fail(shared, "%s of %s answered %s, which it may not: %s", storm_kind_name(op->kind),
               op->name, pllm_status_name(status), pllm_last_error()->text);
}

#define ALLOWED(...) ((const int[]){__VA_ARGS__, 1})

static void name_of(storm_self *self, char name[24])
{
    if (storm_below(&self->random, 100) < 15)
        snprintf(name, 24, "p/%02u", storm_below(&self->random, STORM_FIXED_NAMES));
    else
        snprintf(name, 24, "s/%02u", storm_below(&self->random, STORM_NAMES));
}

/* ---- handles ---- */

static void handle_close(storm_self *self, uint32_t index)
{
    handle *h = &self->handles[index];
    uint64_t began = begin(self, STORM_CLOSE, h->name, 0);
    int status = pllm_store_close_tensor(h->tensor);
    ended(self, began, status, 0, ALLOWED(PLLM_EBUSY)); /* a signal is to come */
    if (status == PLLM_EBUSY) {
        (void)pllm_stream_sync(self->device, self->stream);
        began = begin(self, STORM_CLOSE, h->name, 0);
        ended(self, began, pllm_store_close_tensor(h->tensor), 0, ALLOWED(PLLM_OK));
    }
    self->handles[index] = self->handles[--self->handle_count];
}

static handle *handle_add(storm_self *self, pllm_store_tensor *tensor, const char *name,
                          uint32_t writable)
{
    handle *h = &self->handles[self->handle_count++];
    *h = (handle){.tensor = tensor, .writable = writable};
    snprintf(h->name, sizeof h->name, "%.23s", name);
    /* The same tensor, open already and not to be written: the new handle is the same. */
    for (uint32_t i = 0; i + 1 < self->handle_count; i++)
        if (self->handles[i].tensor == tensor) h->no_writes |= self->handles[i].no_writes;
    return h;
}

static void verify(storm_self *self, const handle *h)
{
    uint64_t fence = UINT64_MAX, began = begin(self, STORM_VERIFY, h->name, 0);
    int status = pllm_store_fence(h->tensor, &fence);
    ended(self, began, status, 0, ALLOWED(PLLM_ESTALE, PLLM_ECANCELED));
    if (status < 0) fence = UINT64_MAX;
    storm_content_check(self->shared, h->tensor, fence);
}

static void write_and_signal(storm_self *self, handle *h)
{
    uint64_t counter, began = begin(self, STORM_WRITE, h->name, 0);
    int written = storm_content_write(self->shared, h->tensor, h->name, &counter);
    ended(self, began, written ? PLLM_OK : PLLM_EBUSY, 0, ALLOWED(PLLM_EBUSY));
    if (!written || storm_below(&self->random, 10) == 0) return;
    pllm_stream *stream = storm_below(&self->random, 3) ? NULL : self->stream;
    if (stream) atomic_fetch_add(&self->shared->from_streams, 1);
    began = begin(self, STORM_SIGNAL, h->name, 0);
    ended(self, began, pllm_store_signal(h->tensor, stream, counter), 0,
          ALLOWED(PLLM_ESTALE, PLLM_ECANCELED));
}

/* ---- operations ---- */

static void op_create(storm_self *self)
{
    static const uint64_t sizes[] = {256, 4096, 65536, 300000, 1 << 20, 3 << 20, 7 << 20};
    char name[24];
    pllm_store_tensor *tensor;
    uint32_t dice = storm_below(&self->random, 100);
    uint64_t bytes = sizes[dice < 40 ? dice % 3 : dice < 80 ? 3 + dice % 2 : dice < 96 ? 5 : 6];
    bytes += storm_below(&self->random, 1000) * 8;
    pllm_store_spec spec = {
        .struct_bytes = sizeof spec, .dtype = PLLM_STORE_U8, .rank = 1, .shape = {bytes}};
    if (dice % 2 == 0) spec.flags |= PLLM_STORE_KEPT;
    if (dice % 17 == 0) spec.flags |= PLLM_STORE_PINNED;
    if (storm_below(&self->random, 4) == 0) spec.mode = 0640; /* other pieces than the others' */
    name_of(self, name);
    uint64_t began = begin(self, STORM_CREATE, name, 0);
    int status = pllm_store_create(self->store, name, &spec, &tensor);
    ended(self, began, status, 0, ALLOWED(PLLM_EEXIST, PLLM_ENODEVMEM, PLLM_ELIMIT));
    if (status < 0) return;
    handle *h = handle_add(self, tensor, name, 1);
    storm_content_zero(self->shared, tensor);
    if (storm_below(&self->random, 10) < 8) write_and_signal(self, h);
}

static void op_open(storm_self *self)
{
    char name[24];
    pllm_store_tensor *tensor;
    uint32_t writable = storm_below(&self->random, 100) < 30;
    name_of(self, name);
    uint64_t began = begin(self, STORM_OPEN, name, 0);
    int status = pllm_store_open_tensor(self->store, name, writable, &tensor);
    ended(self, began, status, 0, ALLOWED(PLLM_ENOTFOUND, PLLM_EPERM, PLLM_ENODEVMEM));
    if (status == PLLM_EPERM && !writable)
        storm_fail(self->shared, "%s may not be read: %s", name, pllm_last_error()->text);
    if (status < 0) return;
    verify(self, handle_add(self, tensor, name, writable));
}

static void op_write(storm_self *self)
{
    handle *h = &self->handles[storm_below(&self->random, self->handle_count)];
    if (h->writable && !h->no_writes) write_and_signal(self, h);
}

static void op_wait(storm_self *self)
{
    const handle *h = &self->handles[storm_below(&self->random, self->handle_count)];
    uint64_t fence = 0;
    uint32_t ms = storm_below(&self->random, 30);
    (void)pllm_store_fence(h->tensor, &fence);
    uint64_t began = begin(self, STORM_WAIT, h->name, ms);
    int status = pllm_store_wait(h->tensor, fence + storm_below(&self->random, 2), ms);
    ended(self, began, status, ms, ALLOWED(PLLM_ETIMEDOUT, PLLM_ECANCELED, PLLM_ESTALE));
    if (status == PLLM_OK) atomic_fetch_add(&self->shared->wait_ok, 1);
}

static void op_rename(storm_self *self)
{
    char from[24], to[24];
    snprintf(from, sizeof from, "s/%02u", storm_below(&self->random, STORM_NAMES));
    snprintf(to, sizeof to, "s/%02u", storm_below(&self->random, STORM_NAMES));
    uint64_t began = begin(self, STORM_RENAME, from, 0);
    self->place->ring[self->place->ring_at % STORM_RING].detail = (uint64_t)atoi(to + 2);
    ended(self, began, pllm_store_rename(self->store, from, to), 0,
          ALLOWED(PLLM_ENOTFOUND, PLLM_EEXIST));
}

static void op_seal(storm_self *self)
{
    char name[24];
    name_of(self, name);
    uint64_t began = begin(self, STORM_SEAL, name, 0);
    /* Whatever the answer is: one that was not heard may have been carried out. */
    for (uint32_t i = 0; i < self->handle_count; i++) self->handles[i].no_writes = 1;
    ended(self, began, pllm_store_seal(self->store, name), 0, ALLOWED(PLLM_ENOTFOUND, PLLM_EBUSY));
}

static void op_stat(storm_self *self)
{
    char name[24];
    pllm_store_info info = {.struct_bytes = sizeof info};
    name_of(self, name);
    uint64_t began = begin(self, STORM_STAT, name, 0);
    int status = pllm_store_stat(self->store, name, &info);
    ended(self, began, status, 0, ALLOWED(PLLM_ENOTFOUND));
    if (status == PLLM_OK && (strcmp(info.name, name) != 0 || info.writers > info.references))
        storm_fail(self->shared, "asked for %s, the daemon tells of %s with %u references", name,
                   info.name, info.references);
}

static int count_one(void *user, const pllm_store_info *info)
{
    storm_self *self = user;
    if (strncmp(info->name, "s/", 2) != 0)
        storm_fail(self->shared, "a list of s/ has %s", info->name);
    return 0;
}

static void op_list(storm_self *self)
{
    uint64_t visited = 0, began = begin(self, STORM_LIST, "s/", 0);
    ended(self, began, pllm_store_list(self->store, "s/", count_one, self, &visited), 0,
          ALLOWED(PLLM_OK));
    if (visited > STORM_NAMES)
        storm_fail(self->shared, "%llu tensors have %d names", (unsigned long long)visited,
                   STORM_NAMES);
}

static void op_watch(storm_self *self)
{
    char prefix[24];
    uint32_t on = storm_below(&self->random, 4) > 0;
    snprintf(prefix, sizeof prefix, "s/%u", storm_below(&self->random, 4));
    uint64_t began = begin(self, STORM_WATCH, on ? prefix : "", 0);
    int status = pllm_store_watch(self->store, on ? prefix : NULL);
    ended(self, began, status, 0, ALLOWED(PLLM_OK));
    self->watching = on && status == PLLM_OK;
}

static void op_event(storm_self *self)
{
    pllm_store_event event = {.struct_bytes = sizeof event};
    uint32_t ms = storm_below(&self->random, 20);
    if (!self->watching) return;
    uint64_t began = begin(self, STORM_EVENT, "", ms);
    int status = pllm_store_event_next(self->store, ms, &event);
    ended(self, began, status, ms, ALLOWED(PLLM_ETIMEDOUT));
}

static void op_by_name(storm_self *self, uint32_t kind)
{
    char name[24];
    name_of(self, name);
    uint64_t began = begin(self, kind, name, 0);
    if (kind == STORM_DELETE)
        ended(self, began, pllm_store_delete(self->store, name), 0, ALLOWED(PLLM_ENOTFOUND));
    else
        ended(self, began, pllm_store_pin(self->store, name, storm_below(&self->random, 3) == 0), 0,
              ALLOWED(PLLM_ENOTFOUND, PLLM_ENODEVMEM));
}

/* ---- through Redis ---- */

static void redis_end(storm_self *self)
{
    if (self->redis) redisFree(self->redis);
    self->redis = NULL;
}

static int redis_begin(storm_self *self)
{
    if (self->redis && !self->redis->err) return 1;
    redis_end(self);
    const struct timeval limit = {.tv_sec = 1};
    self->redis = redisConnectUnixWithTimeout(self->shared->redis, limit);
    if (self->redis && !self->redis->err &&
        redisSetTimeout(self->redis, (struct timeval){.tv_sec = REDIS_WAIT_S + 1}) == REDIS_OK)
        return 1;
    redis_end(self);
    return 0;
}

/* The answer, or NULL: Redis went, or the daemon, before it came. *sent_out: it may be carried out.
 */
static json_t *command(storm_self *self, const char *text, const char *reply, int *sent_out)
{
    *sent_out = 0;
    if (!redis_begin(self)) return NULL;
    redisReply *pushed = redisCommand(self->redis, "RPUSH tensor:cmd %s", text);
    *sent_out = 1;
    redisReply *got = pushed ? redisCommand(self->redis, "BLPOP %s %d", reply, REDIS_WAIT_S) : NULL;
    json_t *answer = NULL;
    if (got && got->type == REDIS_REPLY_ARRAY && got->elements == 2)
        answer = json_loads(got->element[1]->str, 0, NULL);
    if (pushed) freeReplyObject(pushed);
    if (got) freeReplyObject(got);
    if (!answer) redis_end(self);
    return answer;
}

static uint64_t number_in(const json_t *answer, const char *key)
{
    const char *text = json_string_value(json_object_get(answer, key));
    return text ? strtoull(text, NULL, 10) : 0;
}

/* Which of our references is the one to the tensor that has this name now: the newest. */
static pid_hold *hold_of(storm_self *self, const char *name)
{
    pid_hold *newest = NULL;
    for (uint32_t i = 0; i < self->hold_count; i++)
        if (strcmp(self->holds[i].name, name) == 0 &&
            (!newest || self->holds[i].generation > newest->generation ||
             (self->holds[i].generation == newest->generation && !self->holds[i].writable)))
            newest = &self->holds[i];
    return newest;
}

static void command_answered(storm_self *self, const json_t *answer, const char *op,
                             const char *name, uint32_t with_pid, uint32_t writable)
{
    const char *error = json_string_value(json_object_get(answer, "error"));
    if (!json_is_true(json_object_get(answer, "ok"))) {
        static const char *const may[] = {"ENOTFOUND", "EEXIST", "ENODEVMEM", "ELIMIT",
                                          "EPERM",     "ESTALE", "EBUSY"};
        for (uint32_t i = 0; i < sizeof may / sizeof *may; i++)
            if (error && !strcmp(error, may[i])) return;
        storm_fail(self->shared, "%s of %s through Redis answered %s: %s", op, name,
                   error ? error : "nothing", json_string_value(json_object_get(answer, "text")));
    }
    if (!with_pid) return;
    if (strcmp(op, "delete") != 0) {
        pid_hold *h = &self->holds[self->hold_count++];
        *h = (pid_hold){.generation = number_in(answer, "generation"), .writable = writable};
        snprintf(h->name, sizeof h->name, "%s", name);
    } else {
        pid_hold *h = hold_of(self, name);
        if (!h) storm_fail(self->shared, "%s was let go through Redis, and was not held", name);
        *h = self->holds[--self->hold_count];
    }
}

/* The text that stands in a hash opens the tensor. */
static void op_redeem(storm_self *self, const json_t *answer, const char *name)
{
    const char *token = json_string_value(json_object_get(answer, "ipc_handle"));
    uint32_t writable = storm_below(&self->random, 4) == 0;
    pllm_store_tensor *tensor;
    if (!token || self->handle_count == HANDLES_MAX) return;
    uint64_t began = begin(self, STORM_REDEEM, name, 0);
    int status = pllm_store_redeem(self->store, token, writable, &tensor);
    ended(self, began, status, 0, ALLOWED(PLLM_ESTALE, PLLM_EPERM, PLLM_ENODEVMEM));
    if (status < 0) return;
    pllm_store_info info = {.struct_bytes = sizeof info};
    pllm_store_tensor_info(tensor, &info);
    if (info.generation != number_in(answer, "generation"))
        storm_fail(self->shared, "the handle of %s opened another tensor", name);
    verify(self, handle_add(self, tensor, info.name, writable));
}

static void op_command(storm_self *self)
{
    static const char *const ops[] = {"create", "get", "get", "get", "delete", "delete"};
    const char *op = ops[storm_below(&self->random, 6)];
    char name[24], reply[64], extra[160] = "", text[512];
    uint32_t writable = 0, with_pid = storm_below(&self->random, 3) == 0, dice;
    if (with_pid) { /* of names that are not renamed, so that we know what we hold */
        snprintf(name, sizeof name, "p/%02u", storm_below(&self->random, STORM_FIXED_NAMES));
        if (!strcmp(op, "delete") && !hold_of(self, name)) op = "get";
        if (strcmp(op, "delete") && self->hold_count == PID_HOLDS_MAX) return;
    } else {
        name_of(self, name);
    }
    int create = !strcmp(op, "create");
    dice = storm_below(&self->random, 2);
    if (create) {
        int n = snprintf(extra, sizeof extra, ",\"dtype\":\"u8\",\"shape\":[%u]",
                         256 * (1 + storm_below(&self->random, 4000)));
        writable = 1;
        if (!with_pid && dice) snprintf(extra + n, sizeof extra - (size_t)n, ",\"lease_s\":0.2");
    } else if (!strcmp(op, "get")) {
        if (!with_pid && dice) snprintf(extra, sizeof extra, ",\"lease_s\":0.2");
        writable = with_pid && dice;
        if (writable) snprintf(extra, sizeof extra, ",\"writable\":true");
    }
    if (with_pid)
        snprintf(extra + strlen(extra), sizeof extra - strlen(extra), ",\"pid\":%d", getpid());
    snprintf(reply, sizeof reply, "storm:%d:%u", getpid(), self->reply_number++);
    snprintf(text, sizeof text, "{\"op\":\"%s\",\"name\":\"%s\",\"reply\":\"%s\"%s}", op, name,
             reply, extra);
    uint64_t began = begin(self, STORM_COMMAND, name, 1000 * (REDIS_WAIT_S + 2));
    int sent;
    json_t *answer = command(self, text, reply, &sent);
    self->place->ring[self->place->ring_at % STORM_RING].detail = with_pid << 8 | (uint8_t)op[0];
    ended(self, began, answer ? PLLM_OK : PLLM_ETIMEDOUT, 1000 * (REDIS_WAIT_S + 2),
          ALLOWED(PLLM_ETIMEDOUT));
    if (answer) {
        command_answered(self, answer, op, name, with_pid, writable);
        if (!with_pid && dice) op_redeem(self, answer, name);
        json_decref(answer);
    } else if (sent && with_pid) { /* nobody knows what we hold now: it goes with us */
        atomic_fetch_add(&self->shared->doubts, 1);
        kill(getpid(), SIGKILL);
    }
}

/* ---- the second thread ---- */

static void other_operate(storm_self *self)
{
    char name[24];
    pllm_store_tensor *tensor;
    uint64_t fence = UINT64_MAX, began = pllm_clock_ns();
    snprintf(name, sizeof name, "s/%02u", storm_below(&self->other_random, STORM_NAMES));
    int status = pllm_store_open_tensor(self->store, name, 0, &tensor);
    if (status == PLLM_OK) {
        atomic_fetch_add(&self->shared->by_other_threads, 1);
        if (pllm_store_fence(tensor, &fence) < 0) fence = UINT64_MAX;
        storm_content_check(self->shared, tensor, fence);
        (void)pllm_store_wait(tensor, fence, storm_below(&self->other_random, 5));
        status = pllm_store_close_tensor(tensor);
    } else if (status == PLLM_ENOTFOUND || status == PLLM_ENODEVMEM || status == PLLM_EIO ||
               (status == PLLM_ETIMEDOUT && troubled(self->shared, began))) {
        status = PLLM_OK;
    }
    if (status < 0)
        storm_fail(self->shared, "a second thread with %s: %s", name, pllm_last_error()->text);
    /* Two calls that ask, and the first thread's before each of them. */
    if (pllm_clock_ns() - began >
        (UINT64_C(8) * STORM_TIMEOUT_MS + STORM_SLACK_MS) * UINT64_C(1000000))
        storm_fail(self->shared, "a second thread needed too long for %s", name);
    usleep(storm_below(&self->other_random, 8000));
}

static void *other_run(void *user)
{
    storm_self *self = user;
    while (!atomic_load(&self->other_ends)) {
        uint32_t phase = atomic_load(&self->shared->phase);
        if (phase % 2 == 0) {
            other_operate(self);
        } else {
            atomic_store(&self->place->other_quiet, phase);
            usleep(2000);
        }
    }
    return NULL;
}

static void other_start(storm_self *self)
{
    atomic_store(&self->other_ends, 0);
    if (pthread_create(&self->other, NULL, other_run, self) != 0)
        storm_fail(self->shared, "no thread");
}

static void other_end(storm_self *self)
{
    atomic_store(&self->other_ends, 1);
    pthread_join(self->other, NULL);
}

/* ---- the connection ---- */

static void connect_store(storm_self *self)
{
    pllm_store_options options = {.struct_bytes = sizeof options,
                                  .timeout_ms = STORM_TIMEOUT_MS,
                                  .device = self->device,
                                  .socket = self->shared->socket};
    for (;;) {
        uint64_t began = begin(self, STORM_CONNECT, "", 0);
        int status = pllm_store_open(NULL, &options, &self->store);
        ended(self, began, status, 0, ALLOWED(PLLM_OK));
        if (status == PLLM_OK) break;
        usleep(20000);
    }
    other_start(self);
}

static void leave(storm_self *self)
{
    other_end(self);
    (void)pllm_stream_sync(self->device, self->stream);
    uint64_t began = begin(self, STORM_LEAVE, "", 0);
    pllm_store_close(self->store);
    self->store = NULL;
    self->handle_count = 0;
    ended(self, began, PLLM_OK, 0, ALLOWED(PLLM_OK));
    uint64_t files, others, mapped = storm_mapped(getpid(), "/memfd:pagedllm");
    storm_descriptors(getpid(), &files, &others);
    if (files || mapped)
        storm_fail(self->shared, "a client that closed its store has files of %llu and maps %llu",
                   (unsigned long long)files, (unsigned long long)mapped);
}

/* ---- being quiet ---- */

/* Says what it holds. The daemon may have been another since our last call: ask it something. */
static void report(storm_self *self, uint32_t phase)
{
    storm_place *place = self->place;
    pllm_store_info info = {.struct_bytes = sizeof info};
    uint32_t count = 0;
    int status;
    do {
        uint64_t began = begin(self, STORM_STAT, "none", 0);
        status = pllm_store_stat(self->store, "none", &info);
        ended(self, began, status, 0, ALLOWED(PLLM_ENOTFOUND));
    } while (status != PLLM_ENOTFOUND);
    atomic_fetch_add(&place->holding, 1);
    for (uint32_t i = 0; i < self->handle_count; i++) {
        const handle *h = &self->handles[i];
        uint32_t same = 0;
        while (same < i && self->handles[same].tensor != h->tensor) same++;
        if (same < i || pllm_store_tensor_valid(h->tensor) < 0) continue;
        pllm_store_tensor_info(h->tensor, &info);
        place->holds[count++] = (storm_hold){info.generation, h->writable, 1};
    }
    for (uint32_t i = 0; i < self->hold_count; i++)
        place->holds[count++] = (storm_hold){self->holds[i].generation, self->holds[i].writable, 0};
    place->hold_count = count;
    atomic_fetch_add(&place->holding, 1);
    atomic_store(&place->quiet, phase);
}

static void operate(storm_self *self)
{
    uint32_t dice = storm_below(&self->random, 1000);
    if (self->handle_count == HANDLES_MAX || (self->handle_count > 0 && dice < 170))
        handle_close(self, storm_below(&self->random, self->handle_count));
    else if (dice < 300)
        op_create(self);
    else if (dice < 500)
        op_open(self);
    else if (dice < 620 && self->handle_count)
        op_write(self);
    else if (dice < 760 && self->handle_count)
        verify(self, &self->handles[storm_below(&self->random, self->handle_count)]);
    else if (dice < 790 && self->handle_count)
        op_wait(self);
    else if (dice < 820)
        op_by_name(self, STORM_DELETE);
    else if (dice < 850)
        op_rename(self);
    else if (dice < 865)
        op_seal(self);
    else if (dice < 885)
        op_by_name(self, STORM_PIN);
    else if (dice < 925)
        op_stat(self);
    else if (dice < 930)
        op_list(self);
    else if (dice < 938)
        op_watch(self);
    else if (dice < 960)
        op_event(self);
    else if (dice < 997)
        op_command(self);
    else {
        leave(self);
        connect_store(self);
        self->watching = 0;
    }
    atomic_fetch_add(&self->shared->operations, 1);
}

void storm_client(storm_shared *shared, uint32_t index, uint64_t seed)
{
    static storm_self self; /* large, and this process has one */
    self.shared = shared;
    self.place = &shared->places[index];
    self.random = seed;
    signal(SIGPIPE, SIG_IGN); /* hiredis */
    self.other_random = seed + 1;
    if (pllm_device_open(NULL, "host", &self.device) < 0 ||
        pllm_stream_open(self.device, NULL, &self.stream) < 0)
        storm_fail(shared, "no device: %s", pllm_last_error()->text);
    connect_store(&self);
    for (;;) {
        uint32_t phase = atomic_load(&shared->phase);
        if (phase == UINT32_MAX) break;
        if (phase % 2 == 0) {
            operate(&self);
            continue;
        }
        report(&self, phase); /* again: a command of somebody dead may still be carried out */
        for (int i = 0; i < 20 && atomic_load(&shared->phase) == phase; i++) usleep(2000);
    }
    while (self.handle_count) handle_close(&self, self.handle_count - 1);
    leave(&self);
    redis_end(&self);
    pllm_stream_close(self.device, self.stream);
    pllm_device_close(self.device);
    exit(0);
}
