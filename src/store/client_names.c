/* client_names.c - what a client asks about names, and the events it watches
 * (include/pagedllm/tensor_store.h). */
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "base/clock.h"
#include "store/client_internal.h"

static int check_name(const pllm_store *store, const char *name)
{
    if (store && name) return pllm_store_check_process(store);
    return pllm_fail(PLLM_EINVAL, 0, "a call by name needs a store and a name");
}

static int ask_name(pllm_store *store, uint32_t op, const char *name, const char *name_new,
                    uint32_t on, pllm_store_info *info)
{
    int status = check_name(store, name);
    if (status < 0) return status;
    pllm_store_lock(store);
    memset(&store->out, 0, sizeof store->out);
    store->out.name.name = pllm_store_text(name);
    store->out.name.name_new = pllm_store_text(name_new);
    store->out.name.on = on;
    status = pllm_store_ask(store, op, NULL);
    if (status == PLLM_OK && info) pllm_store_info_of(&store->in.tensor.info, info);
    return pllm_store_unlock(store, status);
}

int pllm_store_delete(pllm_store *store, const char *name)
{
    return ask_name(store, PLLM_WIRE_DELETE, name, NULL, 0, NULL);
}

int pllm_store_rename(pllm_store *store, const char *name, const char *to)
{
    int status = check_name(store, to);
    if (status == PLLM_OK) status = ask_name(store, PLLM_WIRE_RENAME, name, to, 0, NULL);
    if (status < 0) return status;
    /* What is open here under the old name learns the new one: it may have to be offered. */
    pllm_store_info info = {.struct_bytes = sizeof info};
    if (pllm_store_stat(store, to, &info) == PLLM_OK) pllm_store_renamed(store, &info);
    return PLLM_OK;
}

int pllm_store_seal(pllm_store *store, const char *name)
{
    return ask_name(store, PLLM_WIRE_SEAL, name, NULL, 0, NULL);
}

int pllm_store_pin(pllm_store *store, const char *name, uint32_t on)
{
    return ask_name(store, PLLM_WIRE_PIN, name, NULL, on != 0, NULL);
}

int pllm_store_stat(pllm_store *store, const char *name, pllm_store_info *info)
{
    if (!info || info->struct_bytes != sizeof *info)
        return pllm_fail(PLLM_EINVAL, 0, "no pllm_store_info, or of another size than %zu",
                         sizeof *info);
    return ask_name(store, PLLM_WIRE_STAT, name, NULL, 0, info);
}

int pllm_store_list(pllm_store *store, const char *prefix,
                    int (*visit)(void *user, const pllm_store_info *info), void *user,
                    uint64_t *visited_out)
{
    if (!store || !visit) return pllm_fail(PLLM_EINVAL, 0, "a list needs a store and a visitor");
    uint64_t visited = 0;
    uint32_t cursor = 0;
    int status = pllm_store_check_process(store), stop = 0;
    if (status < 0) return status;
    pllm_store_lock(store);
    do {
        memset(&store->out, 0, sizeof store->out);
        store->out.list.cursor = cursor;
        store->out.list.prefix = pllm_store_text(prefix);
        status = pllm_store_ask(store, PLLM_WIRE_LIST, NULL);
        if (status < 0) break;
        if (store->in.listing.next && store->in.listing.next <= cursor)
            status = pllm_fail(PLLM_EINVAL, 0, "the daemon's list goes round in circles");
        cursor = status < 0 ? 0 : store->in.listing.next;
        pllm_wire_info wire;
        for (uint32_t at = 0; !stop && pllm_wire_list_next(&store->in, &at, &wire);) {
            pllm_store_info info;
            pllm_store_info_of(&wire, &info);
            visited++;
            stop = visit(user, &info);
        }
    } while (cursor && !stop);
    pllm_store_unlock(store, status);
    if (visited_out) *visited_out = visited;
    return status;
}

/* ---- events ---- */

/* The registry's bits are ours, two places up. */
_Static_assert(PLLM_EFFECT_CREATED >> 2 == PLLM_STORE_EVENT_CREATED &&
                   PLLM_EFFECT_DELETED >> 2 == PLLM_STORE_EVENT_DELETED &&
                   PLLM_EFFECT_SEALED >> 2 == PLLM_STORE_EVENT_SEALED &&
                   PLLM_EFFECT_RENAMED >> 2 == PLLM_STORE_EVENT_RENAMED &&
                   PLLM_EFFECT_SPILLED >> 2 == PLLM_STORE_EVENT_SPILLED &&
                   PLLM_EFFECT_RESTORED >> 2 == PLLM_STORE_EVENT_RESTORED &&
                   PLLM_EFFECT_POISONED >> 2 == PLLM_STORE_EVENT_POISONED &&
                   PLLM_EFFECT_PINNED >> 2 == PLLM_STORE_EVENT_PINNED,
               "event bits");

static void copy_name(char *to, pllm_wire_text text)
{
    uint32_t bytes = text.bytes > PLLM_STORE_NAME_MAX ? PLLM_STORE_NAME_MAX : text.bytes;
    if (bytes) memcpy(to, text.data, bytes);
    to[bytes] = 0;
}

/* Where the ring is full its newest place says that some were lost. */
static pllm_store_event *event_place(pllm_store *store)
{
    if (store->event_count < CLIENT_EVENTS) store->event_count++;
    pllm_store_event *event =
        &store->events[(store->event_first + store->event_count - 1) % CLIENT_EVENTS];
    const int was_full = event->struct_bytes != 0;
    memset(event, 0, sizeof *event);
    event->struct_bytes = sizeof *event;
    event->kinds = was_full ? PLLM_STORE_EVENT_LOST : 0;
    uint64_t one = 1;
    (void)!write(store->wake, &one, sizeof one);
    return event;
}

void pllm_store_event_add(pllm_store *store, const pllm_wire_message *message)
{
    if (!store->watching || message->event.watch != store->watch) return;
    pllm_store_event *event = event_place(store);
    event->kinds |= message->event.kinds ? message->event.kinds >> 2 : PLLM_STORE_EVENT_LOST;
    event->generation = message->event.generation;
    copy_name(event->name, message->event.name);
    copy_name(event->name_before, message->event.name_before);
}

static int ask_anywhere(pllm_store *store, uint32_t op, const int *fds)
{
    (void)fds;
    return pllm_store_ask(store, op, NULL);
}

static int watch_ask(pllm_store *store, int (*ask)(pllm_store *, uint32_t, const int *))
{
    memset(&store->out, 0, sizeof store->out);
    store->out.watch.prefix = pllm_store_text(store->watch_prefix);
    int status = ask(store, PLLM_WIRE_WATCH, NULL);
    if (status == PLLM_OK) store->watch = store->in.watch.watch;
    return status;
}

int pllm_store_watch_again(pllm_store *store)
{
    event_place(store)->kinds |= PLLM_STORE_EVENT_LOST;
    int status = watch_ask(store, pllm_store_ask_here);
    if (status == PLLM_OK || store->fd < 0) return status;
    pllm_log(store->context, PLLM_LOG_WARN, "nothing is watched any more: %s",
             pllm_last_error()->text);
    store->watching = 0; /* the tensors are worth more: the connection stays */
    return PLLM_OK;
}

int pllm_store_watch(pllm_store *store, const char *prefix)
{
    if (!store) return pllm_fail(PLLM_EINVAL, 0, "watching needs a store");
    int status = prefix ? pllm_store_prefix_check(prefix, strlen(prefix)) : PLLM_OK;
    if (status == PLLM_OK) status = pllm_store_check_process(store);
    if (status < 0) return status;
    pllm_store_lock(store);
    if (store->watching) {
        memset(&store->out, 0, sizeof store->out);
        store->out.watch.watch = store->watch;
        store->watching = 0;
        status = pllm_store_ask(store, PLLM_WIRE_UNWATCH, NULL);
        if (status == PLLM_ENOTFOUND) status = PLLM_OK; /* it went with a daemon */
    }
    store->event_count = 0;
    memset(store->events, 0, sizeof store->events);
    if (status == PLLM_OK && prefix) {
        snprintf(store->watch_prefix, sizeof store->watch_prefix, "%s", prefix);
        status = watch_ask(store, ask_anywhere);
        store->watching = status == PLLM_OK;
    }
    return pllm_store_unlock(store, status);
}

/* 1: *event is the next; 0: there is none; negative: not watching, or the daemon has gone. */
static int event_take(pllm_store *store, pllm_store_event *event, int *fd_out)
{
    pllm_store_lock(store);
    uint64_t count;
    (void)!read(store->wake, &count, sizeof count);
    int status = store->watching ? pllm_store_connected(store)
                                 : pllm_fail(PLLM_EINVAL, 0, "this store watches nothing");
    while (status == PLLM_OK && store->event_count == 0) {
        int taken = pllm_store_take_event(store);
        if (taken == PLLM_EBUSY) break;
        if (taken < 0) status = pllm_store_connected(store);
    }
    if (status == PLLM_OK && store->event_count) {
        *event = store->events[store->event_first];
        store->events[store->event_first].struct_bytes = 0;
        store->event_first = (store->event_first + 1) % CLIENT_EVENTS;
        store->event_count--;
        status = 1;
        uint64_t one = 1; /* another thread may wait for the next one */
        if (store->event_count) (void)!write(store->wake, &one, sizeof one);
    }
    *fd_out = store->fd;
    return pllm_store_unlock(store, status);
}

int pllm_store_event_next(pllm_store *store, uint32_t timeout_ms, pllm_store_event *event)
{
    if (!store || !event || event->struct_bytes != sizeof *event)
        return pllm_fail(PLLM_EINVAL, 0, "no store, or a pllm_store_event of another size than %zu",
                         sizeof *event);
    if (pllm_store_check_process(store) < 0) return PLLM_EINVAL;
    uint64_t end = pllm_clock_ns() + timeout_ms * UINT64_C(1000000);
    for (;;) {
        int fd, status = event_take(store, event, &fd);
        if (status != 0) return status < 0 ? status : PLLM_OK;
        uint64_t now = pllm_clock_ns();
        if (now >= end)
            return pllm_fail(PLLM_ETIMEDOUT, 0, "nothing happened in %u ms", timeout_ms);
        struct pollfd wait[2] = {{.fd = fd, .events = POLLIN},
                                 {.fd = store->wake, .events = POLLIN}};
        const uint64_t ms = (end - now) / 1000000 + 1;
        (void)poll(wait, 2, ms > INT_MAX ? INT_MAX : (int)ms);
    }
}
