/* wire.c - the codec of wire.h. Each body is described once, by a function that reads or writes
 * depending on the codec it is given: so what one side writes the other reads.
 *
 * A field that does not fit or is out of its range marks the codec; what follows does nothing, and
 * the message is refused as a whole. Lengths are checked before anything is touched. */
#include "store/wire.h"

#include <string.h>
#include "store/names.h"

typedef struct codec {
    uint8_t *at;
    size_t left;
    int writing;
    const char *wrong; /* the first thing that was; NULL: all is well so far */
} codec;

static void refuse(codec *c, const char *why)
{
    if (!c->wrong) c->wrong = why;
}

/* Room for bytes more, to be read or written; NULL if there is none. */
static uint8_t *span(codec *c, size_t bytes)
{
    if (c->wrong) return NULL;
    if (bytes > c->left) {
        refuse(c, c->writing ? "it is longer than a packet" : "it ends too early");
        return NULL;
    }
    uint8_t *at = c->at;
    c->at += bytes;
    c->left -= bytes;
    return at;
}

static void number(codec *c, uint64_t *value, int bytes)
{
    uint8_t *at = span(c, (size_t)bytes);
    if (!at) return;
    if (c->writing) {
        for (int i = 0; i < bytes; i++) at[i] = (uint8_t)(*value >> (8 * i));
    } else {
        *value = 0;
        for (int i = 0; i < bytes; i++) *value |= (uint64_t)at[i] << (8 * i);
    }
}

static void u64(codec *c, uint64_t *value)
{
    number(c, value, 8);
}

static void i64(codec *c, int64_t *value)
{
    uint64_t wide = (uint64_t)*value;
    number(c, &wide, 8);
    if (!c->writing) *value = (int64_t)wide;
}

static void u32(codec *c, uint32_t *value)
{
    uint64_t wide = *value;
    number(c, &wide, 4);
    if (!c->writing) *value = (uint32_t)wide;
}

/* A number of bytes bytes that is at most max. */
static void ranged(codec *c, uint32_t *value, int bytes, uint32_t max)
{
    uint64_t wide = *value;
    if (c->writing && *value > max) refuse(c, "a number is out of its range");
    number(c, &wide, bytes);
    if (c->wrong || c->writing) return;
    if (wide > max)
        refuse(c, "a number is out of its range");
    else
        *value = (uint32_t)wide;
}

/* Bits of what can be told to who watches. */
static void kinds(codec *c, uint32_t *value)
{
    ranged(c, value, 4, PLLM_EFFECT_EVENTS);
    if (*value & ~(uint32_t)PLLM_EFFECT_EVENTS) refuse(c, "it speaks of unknown events");
}

static void flag(codec *c, uint32_t *value)
{
    ranged(c, value, 1, 1);
}

/* A length in two bytes, and that many. */
static void text(codec *c, pllm_wire_text *value, uint32_t max)
{
    ranged(c, &value->bytes, 2, max);
    uint8_t *at = span(c, value->bytes);
    if (!at) return;
    if (!c->writing)
        value->data = (const char *)at;
    else if (value->bytes)
        memcpy(at, value->data, value->bytes);
}

/* All that is left. */
static void rest(codec *c, pllm_wire_text *value)
{
    if (!c->writing) {
        value->bytes = (uint32_t)c->left;
        value->data = (const char *)span(c, c->left);
        return;
    }
    uint8_t *at = span(c, value->bytes);
    if (at && value->bytes) memcpy(at, value->data, value->bytes);
}

static void spec_body(codec *c, pllm_wire_spec *spec)
{
    ranged(c, &spec->dtype, 1, PLLM_STORE_DTYPES - 1);
    ranged(c, &spec->rank, 1, PLLM_STORE_RANK_MAX);
    ranged(c, &spec->mode, 2, 0777);
    ranged(c, &spec->kind, 1, PLLM_STORE_KIND_LEGACY);
    ranged(c, &spec->flags, 1,
           PLLM_STORE_FLAG_SEALED | PLLM_STORE_FLAG_PINNED | PLLM_STORE_FLAG_KEPT);
    ranged(c, &spec->device, 1, PLLM_WIRE_DEVICES_MAX - 1);
    for (uint32_t i = 0; i < PLLM_STORE_RANK_MAX && !c->wrong; i++) {
        if (i < spec->rank)
            u64(c, &spec->shape[i]);
        else if (!c->writing)
            spec->shape[i] = 0;
    }
}

static void info_body(codec *c, pllm_wire_info *info)
{
    spec_body(c, &info->spec);
    ranged(c, &info->state, 1, PLLM_STORE_STATE_ENDED);
    flag(c, &info->fence_poisoned);
    u32(c, &info->slot);
    u32(c, &info->uid);
    u32(c, &info->gid);
    u32(c, &info->owner_pid);
    u32(c, &info->reference_count);
    u32(c, &info->writer_count);
    u32(c, &info->importer_count);
    u32(c, &info->fence_epoch);
    u64(c, &info->generation);
    u64(c, &info->bytes);
    u64(c, &info->owner_start);
    u64(c, &info->fence_value);
    i64(c, &info->ctime_ns);
    i64(c, &info->mtime_ns);
    text(c, &info->name, PLLM_STORE_NAME_MAX);
}

static void pieces_body(codec *c, uint32_t count, uint64_t *pieces)
{
    for (uint32_t i = 0; i < count && !c->wrong; i++) u64(c, &pieces[i]);
}

static void layout_body(codec *c, pllm_wire_layout *layout)
{
    ranged(c, &layout->piece_count, 2, PLLM_WIRE_PIECES_MAX);
    flag(c, &layout->legacy);
    u64(c, &layout->offset);
    if (!c->wrong && layout->legacy) {
        uint8_t *at = span(c, PLLM_WIRE_HANDLE_BYTES);
        if (at && c->writing) memcpy(at, layout->handle, PLLM_WIRE_HANDLE_BYTES);
        if (at && !c->writing) memcpy(layout->handle, at, PLLM_WIRE_HANDLE_BYTES);
    }
    pieces_body(c, layout->piece_count, layout->pieces);
}

static void offer_body(codec *c, pllm_wire_message *message)
{
    pllm_registry_offer *offer = &message->offer.offer;
    pllm_wire_spec spec = {.dtype = offer->spec.dtype,
                           .rank = offer->spec.rank,
                           .mode = offer->spec.mode,
                           .kind = offer->spec.kind,
                           .device = offer->spec.device,
                           .flags = offer->spec.flags};
    memcpy(spec.shape, offer->spec.shape, sizeof spec.shape);
    spec_body(c, &spec);
    if (!c->writing) {
        offer->spec = (pllm_registry_spec){.dtype = spec.dtype,
                                           .rank = spec.rank,
                                           .mode = spec.mode,
                                           .kind = spec.kind,
                                           .device = spec.device,
                                           .flags = spec.flags};
        memcpy(offer->spec.shape, spec.shape, sizeof spec.shape);
    }
    flag(c, &offer->writable);
    u32(c, &offer->uid);
    u32(c, &offer->gid);
    u32(c, &offer->fence_epoch);
    u64(c, &offer->old_generation);
    u64(c, &offer->fence_value);
    u64(c, &message->offer.offset);
    ranged(c, &message->offer.piece_count, 2, PLLM_WIRE_PIECES_MAX);
    pieces_body(c, message->offer.piece_count, message->offer.pieces);
    text(c, &message->offer.name, PLLM_STORE_NAME_MAX);
}

/* How many descriptors come with it: of an offer one a piece, of nothing else. */
static uint32_t request_body(codec *c, pllm_wire_message *message)
{
    switch (message->op) {
    case PLLM_WIRE_HELLO:
        u32(c, &message->hello.protocol);
        u32(c, &message->hello.pid);
        text(c, &message->hello.uuid, PLLM_STORE_UUID_BYTES - 1);
        break;
    case PLLM_WIRE_CREATE:
        spec_body(c, &message->create.spec);
        text(c, &message->create.name, PLLM_STORE_NAME_MAX);
        break;
    case PLLM_WIRE_OPEN:
    case PLLM_WIRE_REDEEM:
        flag(c, &message->open.writable);
        u64(c, &message->open.kept_generation);
        text(c, &message->open.name, PLLM_STORE_NAME_MAX);
        break;
    case PLLM_WIRE_CLOSE:
    case PLLM_WIRE_UNMAPPED:
    case PLLM_WIRE_SIGNAL:
        u32(c, &message->handle.slot);
        flag(c, &message->handle.writable);
        u64(c, &message->handle.generation);
        u64(c, &message->handle.value);
        break;
    case PLLM_WIRE_DELETE:
    case PLLM_WIRE_RENAME:
    case PLLM_WIRE_SEAL:
    case PLLM_WIRE_PIN:
    case PLLM_WIRE_STAT:
        flag(c, &message->name.on);
        text(c, &message->name.name, PLLM_STORE_NAME_MAX);
        text(c, &message->name.name_new, PLLM_STORE_NAME_MAX);
        break;
    case PLLM_WIRE_LIST:
        u32(c, &message->list.cursor);
        text(c, &message->list.prefix, PLLM_STORE_NAME_MAX);
        break;
    case PLLM_WIRE_WATCH:
    case PLLM_WIRE_UNWATCH:
        u32(c, &message->watch.watch);
        kinds(c, &message->watch.kinds);
        text(c, &message->watch.prefix, PLLM_STORE_NAME_MAX);
        break;
    case PLLM_WIRE_EVENT:
        u32(c, &message->event.watch);
        kinds(c, &message->event.kinds);
        u64(c, &message->event.generation);
        text(c, &message->event.name, PLLM_STORE_NAME_MAX);
        text(c, &message->event.name_before, PLLM_STORE_NAME_MAX);
        break;
    case PLLM_WIRE_OFFER:
        offer_body(c, message);
        return message->offer.piece_count;
    case PLLM_WIRE_PING:
    case PLLM_WIRE_BYE:
        break;
    default:
        refuse(c, "its operation is unknown");
    }
    return 0;
}

static int infos_count(const pllm_wire_message *message, uint32_t *count_out)
{
    pllm_wire_info info;
    uint32_t at = 0;
    *count_out = 0;
    while (pllm_wire_list_next(message, &at, &info)) ++*count_out;
    return at == message->listing.infos.bytes;
}

static uint32_t answer_body(codec *c, pllm_wire_message *message)
{
    switch (message->op & ~(uint32_t)PLLM_WIRE_ANSWER) {
    case PLLM_WIRE_HELLO:
        u64(c, &message->welcome.epoch);
        u64(c, &message->welcome.board_bytes);
        u32(c, &message->welcome.slot_max);
        ranged(c, &message->welcome.device, 1, PLLM_WIRE_DEVICES_MAX - 1);
        ranged(c, &message->welcome.device_count, 1, PLLM_WIRE_DEVICES_MAX);
        for (uint32_t i = 0; i < message->welcome.device_count && !c->wrong; i++)
            text(c, &message->welcome.uuids[i], PLLM_STORE_UUID_BYTES - 1);
        return 1;
    case PLLM_WIRE_CREATE:
    case PLLM_WIRE_OPEN:
    case PLLM_WIRE_REDEEM:
    case PLLM_WIRE_STAT:
    case PLLM_WIRE_OFFER:
        info_body(c, &message->tensor.info);
        layout_body(c, &message->tensor.layout);
        return message->tensor.layout.piece_count;
    case PLLM_WIRE_LIST: {
        uint32_t count = 0;
        u32(c, &message->listing.next);
        u32(c, &message->listing.count);
        rest(c, &message->listing.infos);
        if (!c->wrong && (!infos_count(message, &count) || count != message->listing.count))
            refuse(c, "its list is broken");
        return 0;
    }
    case PLLM_WIRE_WATCH:
        u32(c, &message->watch.watch);
        return 0;
    case PLLM_WIRE_CLOSE:
    case PLLM_WIRE_UNMAPPED:
    case PLLM_WIRE_SIGNAL:
    case PLLM_WIRE_DELETE:
    case PLLM_WIRE_RENAME:
    case PLLM_WIRE_SEAL:
    case PLLM_WIRE_PIN:
    case PLLM_WIRE_UNWATCH:
    case PLLM_WIRE_PING:
    case PLLM_WIRE_BYE:
        return 0;
    default:
        refuse(c, "its operation is unknown");
        return 0;
    }
}

static void body(codec *c, pllm_wire_message *message)
{
    uint32_t fds = 0;
    if (!(message->op & PLLM_WIRE_ANSWER)) {
        if (message->status != 0) refuse(c, "a request has no status");
        fds = request_body(c, message);
    } else if (message->status < 0) {
        rest(c, &message->error);
        if (message->error.bytes > PLLM_WIRE_TEXT_MAX) refuse(c, "its sentence is too long");
    } else {
        if (message->status != 0) refuse(c, "its status is unknown");
        fds = answer_body(c, message);
    }
    if (!c->wrong && fds != message->fd_count)
        refuse(c, "it comes with another number of descriptors than it needs");
}

/* What both directions hold the header to; the body's length is theirs. */
static void header(codec *c, pllm_wire_message *message, uint32_t *body_bytes)
{
    uint32_t magic = PLLM_WIRE_MAGIC, version = PLLM_WIRE_VERSION;
    uint32_t status = (uint32_t)message->status;
    u32(c, &magic);
    ranged(c, &version, 2, UINT16_MAX);
    ranged(c, &message->op, 2, UINT16_MAX);
    u32(c, &message->request);
    u32(c, &status);
    u32(c, body_bytes);
    ranged(c, &message->fd_count, 4, PLLM_WIRE_FDS_MAX);
    message->status = (int32_t)status;
    if (magic != PLLM_WIRE_MAGIC) refuse(c, "it does not begin as one of ours does");
    if (version != PLLM_WIRE_VERSION) refuse(c, "it is of another version");
}

int pllm_wire_decode(const void *packet, size_t bytes, pllm_wire_message *message_out)
{
    codec c = {.at = (uint8_t *)(uintptr_t)packet, .left = bytes}; /* reading: not written to */
    uint32_t body_bytes = 0;
    message_out->op = message_out->request = message_out->fd_count = 0;
    message_out->status = 0;
    message_out->error = (pllm_wire_text){0};
    header(&c, message_out, &body_bytes);
    if (!c.wrong && (bytes > PLLM_WIRE_PACKET_BYTES || body_bytes != c.left))
        refuse(&c, "its length is not what it says");
    body(&c, message_out);
    if (!c.wrong && c.left) refuse(&c, "something is left over at its end");
    if (!c.wrong) return PLLM_OK;
    return pllm_fail(PLLM_EINVAL, 0, "a message of %zu bytes (%s) is refused: %s", bytes,
                     pllm_wire_op_name(message_out->op), c.wrong);
}

int pllm_wire_encode(const pllm_wire_message *message, void *packet, size_t packet_bytes)
{
    /* Writing: the message is only read, through functions that serve both ways. */
    pllm_wire_message *same = (pllm_wire_message *)(uintptr_t)message;
    size_t room = packet_bytes < PLLM_WIRE_PACKET_BYTES ? packet_bytes : PLLM_WIRE_PACKET_BYTES;
    if (room < PLLM_WIRE_HEADER_BYTES) return pllm_fail(PLLM_ELIMIT, 0, "a packet has a header");
    uint8_t *start = packet;
    codec c = {start + PLLM_WIRE_HEADER_BYTES, room - PLLM_WIRE_HEADER_BYTES, 1, NULL};
    codec head = {start, PLLM_WIRE_HEADER_BYTES, 1, NULL};
    body(&c, same);
    uint32_t body_bytes = (uint32_t)(c.at - start) - PLLM_WIRE_HEADER_BYTES;
    if (!c.wrong) header(&head, same, &body_bytes);
    const char *wrong = c.wrong ? c.wrong : head.wrong;
    if (wrong)
        return pllm_fail(PLLM_EINVAL, 0, "the message %s cannot be sent: %s",
                         pllm_wire_op_name(message->op), wrong);
    return (int)(PLLM_WIRE_HEADER_BYTES + body_bytes);
}

int pllm_wire_list_add(pllm_wire_message *message, char *buffer, uint32_t capacity,
                       const pllm_wire_info *info)
{
    uint32_t used = message->listing.infos.bytes;
    codec c = {(uint8_t *)buffer + used, capacity - used, 1, NULL};
    info_body(&c, (pllm_wire_info *)(uintptr_t)info);
    if (c.wrong) return 0;
    message->listing.infos = (pllm_wire_text){buffer, capacity - (uint32_t)c.left};
    message->listing.count++;
    return 1;
}

int pllm_wire_list_next(const pllm_wire_message *message, uint32_t *at, pllm_wire_info *info_out)
{
    const pllm_wire_text *infos = &message->listing.infos;
    if (*at >= infos->bytes) return 0;
    codec c = {(uint8_t *)(uintptr_t)infos->data + *at, infos->bytes - *at, 0, NULL};
    info_body(&c, info_out);
    if (c.wrong) return 0;
    *at = infos->bytes - (uint32_t)c.left;
    return 1;
}

void pllm_wire_info_of(const pllm_store_record *record, pllm_wire_info *info_out)
{
    *info_out = (pllm_wire_info){
        .spec = {record->dtype,
                 record->rank,
                 record->mode,
                 record->kind,
                 record->device,
                 record->flags,
                 {0}},
        .slot = record->slot,
        .state = record->state,
        .uid = record->uid,
        .gid = record->gid,
        .owner_pid = record->owner_pid,
        .reference_count = record->reference_count,
        .writer_count = record->writer_count,
        .importer_count = record->importer_count,
        .fence_epoch = record->fence_epoch,
        .fence_poisoned = record->fence_poisoned,
        .generation = record->generation,
        .bytes = record->bytes,
        .owner_start = record->owner_start,
        .fence_value = record->fence_value,
        .ctime_ns = record->ctime_ns,
        .mtime_ns = record->mtime_ns,
        .name = {record->name, (uint32_t)strlen(record->name)},
    };
    memcpy(info_out->spec.shape, record->shape, sizeof record->shape);
}

const char *pllm_wire_op_name(uint32_t op)
{
    static const char *const names[PLLM_WIRE_OPS] = {
        "?",      "hello",   "create", "open",  "redeem", "close", "unmapped",
        "signal", "delete",  "rename", "seal",  "pin",    "stat",  "list",
        "watch",  "unwatch", "event",  "offer", "ping",   "bye"};
    op &= ~(uint32_t)PLLM_WIRE_ANSWER;
    return op < PLLM_WIRE_OPS ? names[op] : "?";
}
