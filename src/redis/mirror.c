/* mirror.c - the daemon's side of the mirror: what changed goes into the list, commands come out.
 * The threads that talk to Redis are in mirror_redis.c; both meet in pllm_mirror
 * (mirror_internal.h).
 *
 * Invariants, under the lock: 1. A slot has at most one PUT in the list, last_put tells where.
 * 2. Nothing but answers enters the list unless `open`: a registration has begun, so that Redis
 * will hold all that came before. 3. The list never holds more than op_max entries; where it would,
 * it is dropped and a registration is asked for. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <limits.h>
#include <unistd.h>
#include "base/clock.h"
#include "redis/mirror_internal.h"

enum { REFRESH_SLOTS = 512 };
#define REFRESH_NS UINT64_C(1000000000)

void pllm_mirror_wake(pllm_mirror *mirror)
{
    uint64_t one = 1;
    (void)!write(mirror->event, &one, sizeof one); /* full: it is readable already */
}

/* A new entry at the list's end; NULL if there is no room. */
static mirror_op *op_add(pllm_mirror *mirror)
{
    mirror_list *list = &mirror->list;
    if (list->count == list->room) {
        uint32_t room = list->room ? 2 * list->room : 64;
        if (room > mirror->op_max) room = mirror->op_max;
        mirror_op *grown = room > list->count
                               ? pllm_grow(mirror->context, list->ops, list->count * sizeof *grown,
                                           room * sizeof *grown)
                               : NULL;
        if (!grown) return NULL;
        list->ops = grown;
        list->room = room;
    }
    mirror_op *op = &list->ops[list->count++];
    memset(op, 0, sizeof *op);
    return op;
}

/* Answers' texts go with their entries. */
void pllm_mirror_list_clear(pllm_mirror *mirror, mirror_list *list)
{
    for (uint32_t i = 0; i < list->count; i++) pllm_free(mirror->context, list->ops[i].text);
    list->count = 0;
}

static void puts_forget(pllm_mirror *mirror)
{
    memset(mirror->last_put, 0, mirror->slot_max * sizeof *mirror->last_put);
}

/* The list ran over: forget it but for the answers, and register everything anew; the writer sees
 * to it that this is begun. */
static void overrun(pllm_mirror *mirror)
{
    mirror_list *list = &mirror->list;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < list->count; i++)
        if (list->ops[i].kind == MIRROR_ANSWER) list->ops[kept++] = list->ops[i];
    list->count = kept;
    puts_forget(mirror);
    mirror->open = 0;
    mirror->wants_all = 1;
}

static void entry_copy(mirror_op *op, const pllm_store_entry *entry)
{
    op->kind = MIRROR_PUT;
    op->record = *entry->record;
    op->offset = entry->offset;
    snprintf(op->uuid, sizeof op->uuid, "%s", entry->uuid);
    snprintf(op->ipc_handle, sizeof op->ipc_handle, "%s", entry->ipc_handle);
}

static void put(pllm_mirror *mirror, const pllm_store_entry *entry)
{
    const pllm_store_record *record = entry->record;
    uint32_t at = mirror->last_put[record->slot];
    mirror_op *op = at ? &mirror->list.ops[at - 1] : NULL;
    if (!op || op->record.generation != record->generation || strcmp(op->record.name, record->name))
        op = op_add(mirror);
    if (!op) {
        overrun(mirror);
        return;
    }
    entry_copy(op, entry);
    mirror->last_put[record->slot] = (uint32_t)(op - mirror->list.ops) + 1;
}

static int is_named(const pllm_store_record *record)
{
    return record->state == PLLM_STORE_STATE_READY || record->state == PLLM_STORE_STATE_SPILLED;
}

static void mirror_changed(void *user, const pllm_store_entry *entry)
{
    pllm_mirror *mirror = user;
    if (!is_named(entry->record)) return; /* removed tells of those that ended */
    pthread_mutex_lock(&mirror->lock);
    if (mirror->open) {
        put(mirror, entry);
        pthread_cond_signal(&mirror->work);
    }
    pthread_mutex_unlock(&mirror->lock);
}

static void mirror_removed(void *user, const char *name, uint64_t generation)
{
    pllm_mirror *mirror = user;
    pthread_mutex_lock(&mirror->lock);
    if (mirror->open) {
        mirror_op *op = op_add(mirror);
        if (op) {
            op->kind = MIRROR_REMOVE;
            op->record.generation = generation;
            snprintf(op->record.name, sizeof op->record.name, "%s", name);
        } else {
            overrun(mirror);
        }
        pthread_cond_signal(&mirror->work);
    }
    pthread_mutex_unlock(&mirror->lock);
}

/* ---- a full registration ---- */

static void register_one(void *user, const pllm_store_entry *entry)
{
    pllm_mirror *mirror = user;
    if (is_named(entry->record) && mirror->open) put(mirror, entry);
}

/* A mark of the registration; the list runs over if it finds no room. */
static void mark(pllm_mirror *mirror, uint32_t kind)
{
    mirror_op *op = mirror->open ? op_add(mirror) : NULL;
    if (op) {
        op->kind = kind;
        op->record.generation = mirror->round;
    } else if (mirror->open) {
        overrun(mirror);
    }
}

static void register_all(pllm_mirror *mirror)
{
    pthread_mutex_lock(&mirror->lock);
    if (mirror->wants_all && mirror->connected) {
        /* Answers that wait still come after the hashes that they speak of. */
        mirror_list before = mirror->list;
        mirror->list = (mirror_list){0};
        mirror->wants_all = 0;
        mirror->open = 1;
        mirror->round++;
        mirror->stats.registrations++;
        puts_forget(mirror);
        mark(mirror, MIRROR_BEGIN);
        pllm_store_server_each(mirror->server, register_one, mirror);
        mark(mirror, MIRROR_END);
        for (uint32_t i = 0; i < before.count; i++) {
            mirror_op *op = before.ops[i].kind == MIRROR_ANSWER ? op_add(mirror) : NULL;
            if (!op) continue;
            *op = before.ops[i];
            before.ops[i].text = NULL;
        }
        pllm_mirror_list_clear(mirror, &before);
        pllm_free(mirror->context, before.ops);
        pthread_cond_signal(&mirror->work);
    }
    pthread_mutex_unlock(&mirror->lock);
}

/* ---- commands ---- */

static void answer(pllm_mirror *mirror, const pllm_command *command, int status,
                   const pllm_command_answer *good)
{
    if (!command->reply[0]) return;
    char text[PLLM_COMMAND_ANSWER_BYTES];
    pllm_command_answer_text(command, status, good, text);
    char *copy = pllm_strdup(mirror->context, text);
    pthread_mutex_lock(&mirror->lock);
    /* After the hashes that it speaks of. */
    mirror_op *op = copy ? op_add(mirror) : NULL;
    if (op) {
        op->kind = MIRROR_ANSWER;
        op->text = copy;
        snprintf(op->reply, sizeof op->reply, "%s", command->reply);
        pthread_cond_signal(&mirror->work);
    }
    pthread_mutex_unlock(&mirror->lock);
    if (!op) pllm_free(mirror->context, copy);
}

static int create(pllm_mirror *mirror, const pllm_command *command, pllm_store_holder *holder,
                  pllm_store_entry *entry)
{
    pllm_registry_spec spec = {.dtype = command->dtype,
                               .rank = command->rank,
                               .mode = command->mode,
                               .kind = PLLM_STORE_KIND_LEGACY,
                               .flags = PLLM_STORE_FLAG_KEPT |
                                        (command->pinned ? PLLM_STORE_FLAG_PINNED : 0)};
    memcpy(spec.shape, command->shape, sizeof spec.shape);
    int status = pllm_store_server_device(mirror->server, command->device, strlen(command->device),
                                          &spec.device);
    if (status < 0) return status;
    /* A reference makes it live and end with its holders; without one it stays until deleted. */
    if (command->pid || command->lease_ns) spec.flags &= ~(uint32_t)PLLM_STORE_FLAG_KEPT;
    status = pllm_store_server_create(mirror->server, command->name, strlen(command->name), &spec,
                                      holder, entry);
    if (status != PLLM_EUNSUPPORTED) return status;
    /* No legacy handles here: ipc_handle is a token, to be redeemed over the socket. */
    spec.kind = PLLM_STORE_KIND_VMM;
    return pllm_store_server_create(mirror->server, command->name, strlen(command->name), &spec,
                                    holder, entry);
}

/* 1: room is being made for it; it is to be carried out again. */
static int carry_out(pllm_mirror *mirror, const pllm_command *command)
{
    pllm_store_holder holder = {.pid = command->pid, .lease_ns = command->lease_ns};
    pllm_store_server_self(mirror->server, &holder.peer);
    holder.lease = command->lease;
    pllm_store_entry entry = {0};
    pllm_error_clear(); /* not every failure has a sentence: none of an earlier one */
    const size_t bytes = strlen(command->name);
    int status;
    if (command->op == PLLM_COMMAND_CREATE)
        status = create(mirror, command, &holder, &entry);
    else if (command->op == PLLM_COMMAND_GET)
        status = pllm_store_server_get(mirror->server, command->name, bytes, command->writable,
                                       &holder, &entry);
    else
        status = pllm_store_server_delete(mirror->server, command->name, bytes, &holder);
    if (command->op == PLLM_COMMAND_CREATE && status == PLLM_EBUSY) return 1;
    const pllm_command_answer good = {.record = entry.record,
                                      .uuid = entry.uuid,
                                      .ipc_handle = entry.ipc_handle,
                                      .offset = entry.offset,
                                      .lease = holder.lease};
    answer(mirror, command, status, &good);
    return 0;
}

static int command_take(pllm_mirror *mirror, mirror_command *command)
{
    pthread_mutex_lock(&mirror->lock);
    int there = mirror->command_count > 0;
    if (there) {
        *command = mirror->commands[mirror->command_first];
        mirror->command_first = (mirror->command_first + 1) % MIRROR_COMMAND_MAX;
        mirror->command_count--;
        pthread_cond_broadcast(
            &mirror->room); /* the writer may wait there too, for something else */
    }
    pthread_mutex_unlock(&mirror->lock);
    return there;
}

/* ---- one for which room is being made ---- */

static void waiting_begin(pllm_mirror *mirror, const mirror_command *command)
{
    mirror->waiting = pllm_alloc(mirror->context, sizeof *command);
    mirror->waiting_moved = pllm_store_server_moved(mirror->server);
    if (mirror->waiting) {
        *mirror->waiting = *command;
        return;
    }
    (void)pllm_fail_memory("a command that waits for room", sizeof *command);
    answer(mirror, &command->command, PLLM_ENOMEM, NULL);
    pllm_mirror_wake(mirror);
}

/* 1: none waits any more. */
static int waiting_end(pllm_mirror *mirror)
{
    uint64_t moved = pllm_store_server_moved(mirror->server);
    if (!mirror->waiting) return 1;
    if (moved == mirror->waiting_moved) return 0;
    mirror->waiting_moved = moved;
    if (carry_out(mirror, &mirror->waiting->command)) return 0;
    pllm_free(mirror->context, mirror->waiting);
    mirror->waiting = NULL;
    return 1;
}

/* ---- taking part in the server's loop ---- */

/* Some tensors once more, so that all are within a while: what Redis lost in part (evicted, removed
 * by somebody), or did not take because its name was another's, stands there again. */
static void refresh(pllm_mirror *mirror, uint64_t now_ns)
{
    if (now_ns < mirror->refresh_ns) return;
    mirror->refresh_ns = now_ns + REFRESH_NS;
    pthread_mutex_lock(&mirror->lock);
    if (mirror->open && mirror->list.count < mirror->op_max / 2) {
        const uint32_t first = mirror->refresh_slot, end = first + REFRESH_SLOTS;
        pllm_store_server_range(mirror->server, first, end, register_one, mirror);
        mirror->refresh_slot = end < mirror->slot_max ? end : 0;
        if (mirror->list.count) pthread_cond_signal(&mirror->work);
    }
    pthread_mutex_unlock(&mirror->lock);
}

static uint64_t mirror_prepare(void *user, uint64_t now_ns, int *fd_out, uint32_t *events_out)
{
    pllm_mirror *mirror = user;
    (void)now_ns;
    *fd_out = mirror->event;
    *events_out = EPOLLIN;
    return mirror->refresh_ns;
}

static void mirror_run(void *user, uint32_t events, uint64_t now_ns)
{
    pllm_mirror *mirror = user;
    refresh(mirror, now_ns);
    if (events & EPOLLIN) {
        uint64_t count;
        (void)!read(mirror->event, &count, sizeof count);
        register_all(mirror);
    } else if (!mirror->waiting) {
        return;
    }
    if (!waiting_end(mirror)) return;
    mirror_command command;
    /* A bounded number, so that a flood of commands does not shut out the socket's clients. */
    for (uint32_t i = 0; i < 64; i++) {
        if (!command_take(mirror, &command)) return;
        if (command.status == PLLM_OK) {
            if (!carry_out(mirror, &command.command)) continue;
            waiting_begin(mirror, &command);
            return;
        } else {
            (void)pllm_fail(command.status, 0, "%s", command.text);
            answer(mirror, &command.command, command.status, NULL);
        }
    }
    pllm_mirror_wake(mirror);
}

static void mirror_close(void *user)
{
    pllm_mirror *mirror = user;
    if (!mirror) return;
    pllm_mirror_threads_stop(mirror);
    pllm_mirror_list_clear(mirror, &mirror->list);
    if (mirror->event >= 0) close(mirror->event);
    pthread_mutex_destroy(&mirror->lock);
    pthread_cond_destroy(&mirror->work);
    pthread_cond_destroy(&mirror->room);
    pllm_free(mirror->context, mirror->waiting);
    pllm_free(mirror->context, mirror->list.ops);
    pllm_free(mirror->context, mirror->last_put);
    pllm_free(mirror->context, mirror->commands);
    pllm_free(mirror->context, mirror);
}

void pllm_mirror_stats_get(pllm_mirror *mirror, pllm_mirror_stats *stats_out)
{
    pthread_mutex_lock(&mirror->lock);
    *stats_out = mirror->stats;
    stats_out->connected = (uint32_t)mirror->connected;
    pthread_mutex_unlock(&mirror->lock);
}

static int mirror_init(pllm_mirror *mirror, const pllm_mirror_options *options)
{
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&mirror->lock, NULL);
    pthread_cond_init(&mirror->work, &monotonic);
    pthread_cond_init(&mirror->room, &monotonic);
    pthread_condattr_destroy(&monotonic);
    mirror->event = -1;
    int status = pllm_mirror_address_parse(options->address, &mirror->address);
    if (status < 0) return status;
    mirror->timeout_ms = options->timeout_ms ? options->timeout_ms : 2000;
    mirror->op_max = 2 * mirror->slot_max + 4096;
    /* Greater than in any earlier life: hashes that one left are not of this registration. */
    mirror->round = pllm_store_server_epoch(mirror->server) << 20;
    /* A relative path would be another daemon's, too. */
    char host[128] = "localhost", whole[PATH_MAX];
    const char *path = pllm_store_server_path(mirror->server);
    gethostname(host, sizeof host - 1);
    if (realpath(path, whole) && strlen(whole) < sizeof mirror->node - sizeof host) path = whole;
    snprintf(mirror->node, sizeof mirror->node, "%s:%s", host, path);
    mirror->last_put =
        pllm_alloc_array(mirror->context, mirror->slot_max, sizeof *mirror->last_put);
    mirror->commands =
        pllm_alloc_array(mirror->context, MIRROR_COMMAND_MAX, sizeof *mirror->commands);
    if (!mirror->last_put || !mirror->commands)
        return pllm_fail_memory("the mirror's tables", mirror->slot_max * sizeof(uint32_t));
    mirror->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (mirror->event < 0)
        return pllm_fail(PLLM_EIO, errno, "no event descriptor: %s", strerror(errno));
    return pllm_mirror_threads_start(mirror);
}

int pllm_mirror_open(const pllm_context *context, pllm_store_server *server,
                     const pllm_mirror_options *options, pllm_mirror **mirror_out)
{
    *mirror_out = NULL;
    if (!options || options->struct_bytes != sizeof *options || !options->address)
        return pllm_fail(PLLM_EINVAL, 0, "no pllm_mirror_options, of another size, or no address");
    pllm_mirror *mirror = pllm_alloc(context, sizeof *mirror);
    if (!mirror) return pllm_fail_memory("a mirror", sizeof *mirror);
    mirror->context = context;
    mirror->server = server;
    mirror->listener_fd = mirror->writer_fd = -1;
    mirror->slot_max = pllm_store_server_slot_max(server);
    int status = mirror_init(mirror, options);
    const pllm_store_part part = {.user = mirror,
                                  .changed = mirror_changed,
                                  .removed = mirror_removed,
                                  .prepare = mirror_prepare,
                                  .run = mirror_run,
                                  .close = mirror_close};
    if (status == PLLM_OK) status = pllm_store_server_add(server, &part);
    if (status < 0) {
        mirror_close(mirror);
        return status;
    }
    *mirror_out = mirror;
    return PLLM_OK;
}
