/* server_request.c - what each message does. One function an operation; each takes server->request
 * of a client that has said HELLO, and leaves its answer in server->answer.
 *
 * A function that fails has changed nothing. Descriptors of an answer are borrowed from the blocks:
 * they are sent before anything can take them away. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include "store/server_internal.h"

static int name_find(pllm_store_server *server, pllm_wire_text name, uint32_t *slot_out)
{
    return pllm_registry_find(server->registry, name.data, name.bytes, slot_out);
}

/* What all answers about one tensor hold. */
static void answer_info(pllm_store_server *server, uint32_t slot)
{
    const pllm_store_record *record = pllm_registry_record(server->registry, slot);
    pllm_wire_layout *layout = &server->answer.tensor.layout;
    pllm_wire_info_of(record, &server->answer.tensor.info);
    layout->piece_count = layout->legacy = 0;
    layout->offset = 0;
    server->answer.fd_count = 0;
}

/* And how to map it: the pieces with their descriptors, or the handle. */
static int answer_layout(pllm_store_server *server, uint32_t slot, uint32_t writable)
{
    const pllm_store_block *block = server->blocks[slot];
    pllm_wire_layout *layout = &server->answer.tensor.layout;
    pllm_store_block_layout about;
    pllm_store_block_layout_get(block, &about);
    layout->offset = about.offset;
    layout->legacy = about.legacy;
    if (about.legacy) return pllm_store_block_handle(block, layout->handle);
    for (uint32_t i = 0; i < about.piece_count; i++) {
        int status =
            pllm_store_block_piece(block, i, writable, &layout->pieces[i], &server->out_fds[i]);
        if (status < 0) return status;
    }
    layout->piece_count = server->answer.fd_count = about.piece_count;
    return PLLM_OK;
}

/* A reference whose answer cannot be made is taken back. imported: the client had it mapped before.
 */
static void hold_undo(pllm_store_server *server, client *c, uint32_t slot, uint32_t writable,
                      int imported)
{
    uint64_t generation = pllm_registry_record(server->registry, slot)->generation;
    pllm_error error = *pllm_last_error(); /* the failure that is to be told */
    server->answer.fd_count = 0;
    (void)pllm_registry_drop(server->registry, c->lease, slot, generation, writable,
                             server->now_ns);
    if (!imported)
        (void)pllm_registry_unmapped(server->registry, c->lease, slot, generation, server->now_ns);
    pllm_fail(error.status, error.native, "%s", error.text);
}

/* ---- hello and good-bye ---- */

static int request_hello(pllm_store_server *server, client *c)
{
    if (c->state != CLIENT_NEW)
        return pllm_fail(PLLM_EINVAL, 0, "this connection has said hello already");
    if (server->request.hello.protocol != PLLM_WIRE_VERSION)
        return pllm_fail(PLLM_EUNSUPPORTED, 0,
                         "the client speaks version %u, the store version %d: use the same release",
                         server->request.hello.protocol, PLLM_WIRE_VERSION);
    uint32_t device;
    pllm_wire_text uuid = server->request.hello.uuid;
    int status =
        pllm_store_device_find(uuid.data, uuid.bytes, server->uuids, server->device_count, &device);
    if (status == PLLM_OK)
        status = pllm_registry_lease_open(server->registry, PLLM_STORE_LEASE_SOCKET, &c->peer, 0,
                                          &c->lease);
    if (status < 0) return status;
    c->state = CLIENT_READY;
    c->device = device;
    server->answer.welcome.epoch = server->epoch;
    server->answer.welcome.slot_max = pllm_registry_slot_max(server->registry);
    server->answer.welcome.board_bytes = pllm_board_bytes(server->answer.welcome.slot_max);
    server->answer.welcome.device = device;
    server->answer.welcome.device_count = server->device_count;
    for (uint32_t i = 0; i < server->device_count; i++)
        server->answer.welcome.uuids[i] =
            (pllm_wire_text){server->uuids[i], (uint32_t)strlen(server->uuids[i])};
    server->out_fds[0] = pllm_board_fd(server->board);
    server->answer.fd_count = 1;
    return PLLM_OK;
}

static int request_bye(pllm_store_server *server, client *c)
{
    pllm_registry_lease_close(server->registry, c->lease, PLLM_STORE_END_CLEAN, server->now_ns);
    c->lease = 0;
    c->state = CLIENT_GONE;
    return PLLM_OK;
}

static int request_ping(pllm_store_server *server, client *c)
{
    (void)server, (void)c;
    return PLLM_OK;
}

/* ---- made, opened, closed ---- */

static int request_create(pllm_store_server *server, client *c)
{
    const pllm_wire_spec *wanted = &server->request.create.spec;
    pllm_wire_text name = server->request.create.name;
    pllm_registry_spec spec = {.dtype = wanted->dtype,
                               .rank = wanted->rank,
                               .mode = wanted->mode,
                               .kind = wanted->kind,
                               .device = wanted->device,
                               .flags = wanted->flags};
    memcpy(spec.shape, wanted->shape, sizeof spec.shape);
    uint32_t slot;
    int status =
        pllm_server_create(server, c->lease, &c->peer, name.data, name.bytes, &spec, &slot);
    if (status != PLLM_OK) return status;
    answer_info(server, slot);
    status = answer_layout(server, slot, 1);
    if (status < 0) {
        (void)pllm_registry_delete(server->registry, &c->peer, slot, server->now_ns);
        hold_undo(server, c, slot, 1, 0);
    }
    return status;
}

/* The tensor is there: one more reference of this client, and how to map it. */
static int open_slot(pllm_store_server *server, client *c, uint32_t slot)
{
    uint32_t writable = server->request.open.writable;
    const pllm_store_record *record = pllm_registry_record(server->registry, slot);
    pllm_store_block_layout about;
    if (record->device != c->device)
        return pllm_fail(PLLM_EUNSUPPORTED, 0,
                         "\"%s\" is on the store's device %u, %s, and this client maps on %s: open "
                         "the store with the tensor's device",
                         record->name, record->device, server->uuids[record->device],
                         server->uuids[c->device]);
    pllm_store_block_layout_get(server->blocks[slot], &about);
    if (writable && about.read_only)
        return pllm_fail(
            PLLM_EPERM, 0,
            "\"%s\" outlived an earlier store, and who writes it has not come back: it can "
            "be read only",
            record->name);
    int imported = pllm_registry_imports(server->registry, c->lease, slot);
    int status = pllm_registry_hold(server->registry, c->lease, slot, writable, 1, server->now_ns);
    if (status == PLLM_EBUSY) return pllm_server_restore(server, slot);
    if (status < 0) return status;
    answer_info(server, slot);
    if (server->request.open.kept_generation == record->generation) {
        /* Mapped since before its connection broke: counted once. */
        if (!imported)
            (void)pllm_registry_rejoin(server->registry, c->lease, slot, record->generation);
        return PLLM_OK;
    }
    status = answer_layout(server, slot, writable);
    if (status < 0) hold_undo(server, c, slot, writable, imported);
    return status;
}

static int request_open(pllm_store_server *server, client *c)
{
    uint32_t slot;
    int status = name_find(server, server->request.open.name, &slot);
    return status < 0 ? status : open_slot(server, c, slot);
}

static int request_redeem(pllm_store_server *server, client *c)
{
    uint32_t slot;
    uint64_t generation;
    pllm_wire_text token = server->request.open.name;
    int status = pllm_store_token_parse(token.data, token.bytes, &slot, &generation);
    if (status == PLLM_OK)
        status = pllm_registry_find_generation(server->registry, slot, generation);
    return status < 0 ? status : open_slot(server, c, slot);
}

static int request_close(pllm_store_server *server, client *c)
{
    return pllm_registry_drop(server->registry, c->lease, server->request.handle.slot,
                              server->request.handle.generation, server->request.handle.writable,
                              server->now_ns);
}

static int request_unmapped(pllm_store_server *server, client *c)
{
    const uint32_t slot = server->request.handle.slot;
    const uint64_t generation = server->request.handle.generation;
    int status =
        pllm_registry_unmapped(server->registry, c->lease, slot, generation, server->now_ns);
    if (status != PLLM_ESTALE) return status;
    /* Or it is what an earlier connection of the process left mapped. */
    return pllm_registry_rejoin(server->registry, c->lease, slot, generation) < 0 ? status
                                                                                  : PLLM_OK;
}

static int request_signal(pllm_store_server *server, client *c)
{
    return pllm_registry_signal(server->registry, c->lease, server->request.handle.slot,
                                server->request.handle.generation, server->request.handle.value,
                                server->now_ns);
}

/* ---- by name ---- */

static int request_delete(pllm_store_server *server, client *c)
{
    uint32_t slot;
    int status = name_find(server, server->request.name.name, &slot);
    if (status < 0) return status;
    return pllm_registry_delete(server->registry, &c->peer, slot, server->now_ns);
}

static int request_rename(pllm_store_server *server, client *c)
{
    uint32_t slot;
    pllm_wire_text name = server->request.name.name_new;
    int status = name_find(server, server->request.name.name, &slot);
    if (status < 0) return status;
    status = pllm_registry_rename(server->registry, &c->peer, slot, name.data, name.bytes,
                                  server->now_ns);
    if (status == PLLM_OK) pllm_board_renamed(server->board); /* what clients know by name is old */
    return status;
}

static int request_seal(pllm_store_server *server, client *c)
{
    uint32_t slot;
    int status = name_find(server, server->request.name.name, &slot);
    if (status < 0) return status;
    return pllm_registry_seal(server->registry, c->lease, &c->peer, slot, server->now_ns);
}

static int request_pin(pllm_store_server *server, client *c)
{
    uint32_t slot, on = server->request.name.on;
    int status = name_find(server, server->request.name.name, &slot);
    if (status < 0) return status;
    status = pllm_registry_pin(server->registry, &c->peer, slot, on, server->now_ns);
    /* What is pinned is on the device. */
    return status == PLLM_EBUSY ? pllm_server_restore(server, slot) : status;
}

static int request_stat(pllm_store_server *server, client *c)
{
    uint32_t slot;
    int status = name_find(server, server->request.name.name, &slot);
    if (status == PLLM_OK) status = pllm_registry_may(server->registry, &c->peer, slot, 4);
    if (status == PLLM_OK) answer_info(server, slot);
    return status;
}

static int begins(const char *name, const char *prefix, uint32_t bytes)
{
    return strncmp(name, prefix, bytes) == 0;
}

/* What the client may read, in the order of slots: the cursor is the next slot, so that what comes
 * and goes in between is seen once or not at all, and nothing twice. */
static int request_list(pllm_store_server *server, client *c)
{
    enum { LISTING_BYTES = PLLM_WIRE_PACKET_BYTES - PLLM_WIRE_HEADER_BYTES - 8 };
    pllm_wire_text prefix = server->request.list.prefix;
    int status = pllm_store_prefix_check(prefix.data, prefix.bytes);
    if (status < 0) return status;
    server->answer.listing.next = server->answer.listing.count = 0;
    server->answer.listing.infos = (pllm_wire_text){(const char *)server->listing, 0};
    uint32_t slot_max = pllm_registry_slot_max(server->registry);
    for (uint32_t slot = server->request.list.cursor; slot < slot_max; slot++) {
        const pllm_store_record *record = pllm_registry_record(server->registry, slot);
        if (!record || !pllm_server_named(record) ||
            !begins(record->name, prefix.data, prefix.bytes) ||
            !pllm_registry_allows(server->registry, &c->peer, slot, 4))
            continue;
        pllm_wire_info info;
        pllm_wire_info_of(record, &info);
        if (!pllm_wire_list_add(&server->answer, (char *)server->listing, LISTING_BYTES, &info)) {
            server->answer.listing.next = slot; /* never 0: the first one fits */
            break;
        }
    }
    return PLLM_OK;
}

/* ---- watching ---- */

static int request_watch(pllm_store_server *server, client *c)
{
    pllm_wire_text prefix = server->request.watch.prefix;
    int status = pllm_store_prefix_check(prefix.data, prefix.bytes);
    if (status < 0) return status;
    uint32_t place = 0;
    while (place < server->watch_end && server->watches[place].client >= 0) place++;
    if (c->watch_count >= (server->options.watch_max + 3) / 4)
        return pllm_fail(PLLM_ELIMIT, 0, "one connection has at most %u watches",
                         (server->options.watch_max + 3) / 4);
    if (place == server->options.watch_max)
        return pllm_fail(PLLM_ELIMIT, 0, "the store has %u watches, which is all it can",
                         server->options.watch_max);
    watch *w = &server->watches[place];
    if (place == server->watch_end) server->watch_end++;
    if (++server->watch_next == 0) server->watch_next = 1; /* events say 0 for "lost" */
    *w = (watch){.client = (int)(c - server->clients),
                 .number = server->watch_next,
                 .kinds = server->request.watch.kinds ? server->request.watch.kinds
                                                      : (uint32_t)PLLM_EFFECT_EVENTS,
                 .prefix_bytes = prefix.bytes};
    if (prefix.bytes) memcpy(w->prefix, prefix.data, prefix.bytes);
    c->watch_count++;
    server->stats.watch_count++;
    server->answer.watch.watch = w->number;
    return PLLM_OK;
}

static int request_unwatch(pllm_store_server *server, client *c)
{
    for (uint32_t i = 0; i < server->watch_end; i++) {
        watch *w = &server->watches[i];
        if (w->client != (int)(c - server->clients) || w->number != server->request.watch.watch)
            continue;
        w->client = -1;
        c->watch_count--;
        server->stats.watch_count--;
        return PLLM_OK;
    }
    return pllm_fail(PLLM_ENOTFOUND, 0, "this connection has no watch %u",
                     server->request.watch.watch);
}

/* ---- offers after a restart ---- */

static uint32_t fds_read_only(const int *fds, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        int flags = fcntl(fds[i], F_GETFL);
        if (flags < 0 || (flags & O_ACCMODE) == O_RDONLY) return 1;
    }
    return 0;
}

static int offer_memory(pllm_store_server *server, const pllm_store_record *record,
                        uint32_t read_only, pllm_store_block **block_out)
{
    pllm_store_owner owner = {record->uid, record->gid, record->mode};
    return pllm_store_memory_adopt(server->devices[record->device].memory, record->bytes,
                                   server->request.offer.offset, server->in_fds,
                                   server->request.offer.pieces, server->request.offer.piece_count,
                                   read_only, &owner, block_out);
}

/* The first offer brings the memory. Where a reader comes first, it can only be read until a writer
 * offers it too. */
static int offer_adopt(pllm_store_server *server, uint32_t slot, uint32_t read_only)
{
    const pllm_store_record *record = pllm_registry_record(server->registry, slot);
    int status = PLLM_OK;
    if (server->request.offer.piece_count == 0 || record->kind == PLLM_STORE_KIND_LEGACY)
        status =
            pllm_fail(PLLM_ESTALE, 0, "memory of \"%s\" went with the earlier store", record->name);
    if (status == PLLM_OK) status = offer_memory(server, record, read_only, &server->blocks[slot]);
    if (status < 0) {
        pllm_registry_abort(server->registry, slot);
        return status;
    }
    server->stats.adopted_count++;
    if (!server->adopt_until_ns)
        server->adopt_until_ns = server->now_ns + server->options.adopt_ms * (uint64_t)1000000;
    return pllm_registry_commit(server->registry, slot, server->now_ns);
}

/* A writer's descriptors in place of a reader's: the same memory. If that fails, it stays as it is.
 */
static void offer_improve(pllm_store_server *server, uint32_t slot)
{
    const pllm_store_record *record = pllm_registry_record(server->registry, slot);
    pllm_store_block_layout about;
    pllm_store_block *block;
    pllm_store_block_layout_get(server->blocks[slot], &about);
    if (!about.read_only || server->request.offer.piece_count != about.piece_count ||
        offer_memory(server, record, 0, &block) < 0)
        return;
    pllm_store_memory_free(server->devices[record->device].memory, server->blocks[slot], 1);
    server->blocks[slot] = block;
}

static int request_offer(pllm_store_server *server, client *c)
{
    pllm_registry_offer *offer = &server->request.offer.offer;
    pllm_wire_text name = server->request.offer.name;
    uint32_t slot, fresh;
    if (offer->spec.device >= server->device_count)
        return pllm_fail(PLLM_EINVAL, 0, "the store has no device %u", offer->spec.device);
    uint64_t bytes;
    int status =
        pllm_store_shape_bytes(offer->spec.dtype, offer->spec.rank, offer->spec.shape, &bytes);
    if (status == PLLM_OK)
        status = pllm_store_memory_measure(server->devices[offer->spec.device].memory, bytes, 0,
                                           &offer->spec.charge_bytes);
    if (status == PLLM_OK)
        status = pllm_registry_adopt(server->registry, c->lease, name.data, name.bytes, offer,
                                     server->now_ns, &slot, &fresh);
    if (status < 0) return status;
    uint32_t read_only = fds_read_only(server->in_fds, server->request.offer.piece_count);
    if (fresh)
        status = offer_adopt(server, slot, read_only);
    else if (offer->writable && !read_only)
        offer_improve(server, slot);
    if (status == PLLM_OK) answer_info(server, slot);
    return status;
}

int pllm_server_request(pllm_store_server *server, client *c)
{
    static int (*const requests[PLLM_WIRE_OPS])(pllm_store_server *, client *) = {
        [PLLM_WIRE_HELLO] = request_hello,     [PLLM_WIRE_CREATE] = request_create,
        [PLLM_WIRE_OPEN] = request_open,       [PLLM_WIRE_REDEEM] = request_redeem,
        [PLLM_WIRE_CLOSE] = request_close,     [PLLM_WIRE_UNMAPPED] = request_unmapped,
        [PLLM_WIRE_SIGNAL] = request_signal,   [PLLM_WIRE_DELETE] = request_delete,
        [PLLM_WIRE_RENAME] = request_rename,   [PLLM_WIRE_SEAL] = request_seal,
        [PLLM_WIRE_PIN] = request_pin,         [PLLM_WIRE_STAT] = request_stat,
        [PLLM_WIRE_LIST] = request_list,       [PLLM_WIRE_WATCH] = request_watch,
        [PLLM_WIRE_UNWATCH] = request_unwatch, [PLLM_WIRE_OFFER] = request_offer,
        [PLLM_WIRE_PING] = request_ping,       [PLLM_WIRE_BYE] = request_bye,
    };
    server->answer.fd_count = 0;
    server->answer.error = (pllm_wire_text){0};
    if (c->state == CLIENT_GONE)
        return pllm_fail(PLLM_ESTALE, 0, "this connection has said good-bye");
    return requests[server->request.op](server, c);
}
