/* client_tensor.c - tensors on the client's side: mapped, given back, waited for, offered anew
 * (include/pagedllm/tensor_store.h).
 *
 * Tensors of one store are in buckets by name, one entry for each way (reading, writing) a tensor
 * is open. An entry may be given again without asking as long as the board still shows its
 * generation and nothing was renamed since. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "base/clock.h"
#include "device/cuda.h"
#include "store/client_internal.h"

/* ---- memory ---- */

/* Unmaps and forgets chunks [0, count) and the reservation. */
static void pieces_undo(pllm_store *store, client_mapping *m, uint32_t mapped, uint32_t imported)
{
    pllm_device *device = store->device;
    pllm_va at = m->base;
    for (uint32_t i = 0; i < imported; i++) {
        if (i < mapped) device->ops->unmap(device, at, m->chunks[i]);
        at += m->piece_bytes[i];
        device->ops->chunk_destroy(device, m->chunks[i]);
    }
    if (m->base) device->ops->release(device, m->base, m->total_bytes);
    pllm_free(store->context, m->chunks);
    pllm_free(store->context, m->piece_bytes);
    memset(m, 0, sizeof *m);
}

static int pieces_map(pllm_store *store, const pllm_wire_layout *layout, uint32_t writable,
                      client_mapping *m)
{
    pllm_device *device = store->device;
    uint32_t count = layout->piece_count, imported = 0;
    if (count != store->received_count)
        return pllm_fail(PLLM_EINVAL, 0, "the daemon sent %u descriptors for %u pieces",
                         store->received_count, count);
    m->chunks = pllm_alloc_array(store->context, count, sizeof *m->chunks);
    m->piece_bytes = pllm_alloc_array(store->context, count, sizeof *m->piece_bytes);
    int status =
        m->chunks && m->piece_bytes ? PLLM_OK : pllm_fail_memory("a tensor's pieces", count);
    for (uint32_t i = 0; i < count && status == PLLM_OK; i++) {
        m->piece_bytes[i] = layout->pieces[i];
        m->total_bytes += layout->pieces[i];
        status = device->ops->chunk_import(device, store->received[i], layout->pieces[i], !writable,
                                           &m->chunks[i]);
        imported += status == PLLM_OK;
    }
    if (status == PLLM_OK) status = device->ops->reserve(device, m->total_bytes, &m->base);
    if (status == PLLM_OK) status = device->ops->map(device, m->base, m->chunks, count);
    if (status < 0) {
        pieces_undo(store, m, 0, imported);
        return status;
    }
    m->piece_count = count;
    m->offset = layout->offset;
    return PLLM_OK;
}

static int legacy_open(pllm_store *store, const pllm_wire_layout *layout, uint64_t bytes,
                       client_mapping *m)
{
    uint64_t whole;
    int status = pllm_cuda_ipc_open(store->device, layout->handle, &m->base, &whole);
    if (status < 0) return status;
    m->legacy = 1;
    m->offset = layout->offset;
    if (layout->offset <= whole && bytes <= whole - layout->offset) return PLLM_OK;
    pllm_cuda_ipc_close(store->device, m->base);
    memset(m, 0, sizeof *m);
    return pllm_fail(PLLM_EINVAL, 0,
                     "the tensor does not lie in its legacy allocation of %llu "
                     "bytes",
                     (unsigned long long)whole);
}

static int mapping_make(pllm_store *store, const pllm_wire_layout *layout, uint64_t bytes,
                        uint32_t writable, client_mapping *m)
{
    int status;
    memset(m, 0, sizeof *m);
    if (layout->legacy) {
        status = legacy_open(store, layout, bytes, m);
    } else {
        status = pieces_map(store, layout, writable, m);
    }
    pllm_store_received_close(store);
    return status;
}

static void mapping_undo(pllm_store *store, client_mapping *m)
{
    if (m->legacy) pllm_cuda_ipc_close(store->device, m->base);
    if (m->piece_count) pieces_undo(store, m, m->piece_count, m->piece_count);
}

/* ---- the table ---- */

static pllm_store_tensor **bucket_of(pllm_store *store, const char *name)
{
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (; *name; name++) hash = (hash ^ (uint8_t)*name) * 16777619u;
    return &store->buckets[hash % CLIENT_BUCKETS];
}

static void entry_link(pllm_store *store, pllm_store_tensor *tensor)
{
    pllm_store_tensor **bucket = bucket_of(store, tensor->info.name);
    tensor->next = *bucket;
    *bucket = tensor;
}

static void entry_unlink(pllm_store *store, pllm_store_tensor *tensor)
{
    pllm_store_tensor **at = bucket_of(store, tensor->info.name);
    while (*at != tensor) at = &(*at)->next;
    *at = tensor->next;
}

static int is_valid(const pllm_store_tensor *tensor)
{
    return !tensor->stale && pllm_board_valid(tensor->board, tensor->slot, tensor->generation);
}

/* The one that name means, open that way, if that is sure without asking. */
static pllm_store_tensor *entry_by_name(pllm_store *store, const char *name, uint32_t writable)
{
    for (pllm_store_tensor *t = *bucket_of(store, name); t; t = t->next)
        if (t->writable == writable && t->board == store->board && is_valid(t) &&
            t->renames == pllm_board_renames(store->board) && !strcmp(t->info.name, name))
            return t;
    return NULL;
}

/* An entry of that generation; way: open that way, or -1. One that a connection took with it is
 * stale though its generation may live: it has no reference at the daemon. */
static pllm_store_tensor *entry_by_generation(pllm_store *store, uint64_t generation, int way)
{
    for (uint32_t i = 0; i < CLIENT_BUCKETS; i++)
        for (pllm_store_tensor *t = store->buckets[i]; t; t = t->next)
            if (!t->stale && t->generation == generation &&
                (way < 0 || t->writable == (uint32_t)way))
                return t;
    return NULL;
}

/* ---- opening and closing ---- */

void pllm_store_info_of(const pllm_wire_info *wire, pllm_store_info *info)
{
    *info = (pllm_store_info){
        .struct_bytes = sizeof *info,
        .dtype = wire->spec.dtype,
        .rank = wire->spec.rank,
        .mode = wire->spec.mode,
        .flags =
            wire->spec.flags | (wire->spec.kind == PLLM_STORE_KIND_LEGACY ? PLLM_STORE_LEGACY : 0u),
        .uid = wire->uid,
        .gid = wire->gid,
        .owner_pid = wire->owner_pid,
        .references = wire->reference_count,
        .writers = wire->writer_count,
        .importers = wire->importer_count,
        .spilled = wire->state == PLLM_STORE_STATE_SPILLED,
        .poisoned = wire->fence_poisoned,
        .device = wire->spec.device,
        .bytes = wire->bytes,
        .generation = wire->generation,
        .fence = wire->fence_value,
        .ctime_ns = wire->ctime_ns,
        .mtime_ns = wire->mtime_ns,
    };
    memcpy(info->shape, wire->spec.shape, sizeof info->shape);
    uint32_t bytes = wire->name.bytes;
    if (bytes > PLLM_STORE_NAME_MAX) bytes = PLLM_STORE_NAME_MAX;
    memcpy(info->name, wire->name.data, bytes);
}

/* Tells the daemon that one opening of (slot, generation) is given back. */
void pllm_store_tell_close(pllm_store *store, uint32_t slot, uint64_t generation, uint32_t writable)
{
    memset(&store->out, 0, sizeof store->out);
    store->out.handle.slot = slot;
    store->out.handle.generation = generation;
    store->out.handle.writable = writable;
    (void)pllm_store_tell(store, PLLM_WIRE_CLOSE);
}

void pllm_store_tell_unmapped(pllm_store *store, uint32_t slot, uint64_t generation)
{
    memset(&store->out, 0, sizeof store->out);
    store->out.handle.slot = slot;
    store->out.handle.generation = generation;
    (void)pllm_store_tell(store, PLLM_WIRE_UNMAPPED);
}

/* The answer to CREATE, OPEN or REDEEM becomes an entry, or one more opening of one. */
static int entry_from_answer(pllm_store *store, uint32_t writable, uint64_t renames,
                             pllm_store_tensor **tensor_out)
{
    const pllm_wire_info *info = &store->in.tensor.info;
    const uint32_t slot = info->slot;
    const uint64_t generation = info->generation;
    int status = PLLM_OK, given_back = 0;
    pllm_store_tensor *tensor = entry_by_generation(store, generation, (int)writable);
    if (tensor) { /* open already, under another name then: one reference is enough */
        pllm_store_received_close(store);
        entry_unlink(store, tensor);
        given_back = 1;
    } else {
        tensor = pllm_alloc(store->context, sizeof *tensor);
        if (!tensor) status = pllm_fail_memory("an open tensor", sizeof *tensor);
        if (status == PLLM_OK)
            status = mapping_make(store, &store->in.tensor.layout, info->bytes, writable,
                                  &tensor->mapping);
        if (status < 0) {
            const pllm_error error = *pllm_last_error(); /* telling may fill another */
            pllm_free(store->context, tensor);
            pllm_store_received_close(store);
            pllm_store_tell_close(store, slot, generation, writable);
            if (!entry_by_generation(store, generation, -1))
                pllm_store_tell_unmapped(store, slot, generation);
            return pllm_fail(error.status, error.native, "%s", error.text);
        }
        tensor->store = store;
        tensor->writable = writable;
        tensor->slot = slot;
        tensor->generation = generation;
        tensor->board = store->board;
    }
    pllm_store_info_of(info, &tensor->info);
    tensor->renames = renames;
    tensor->open_count++;
    entry_link(store, tensor);
    *tensor_out = tensor;
    if (given_back) pllm_store_tell_close(store, slot, generation, writable);
    return PLLM_OK;
}

static int check_call(const pllm_store *store, const char *name, const void *result)
{
    if (store && name && result) return PLLM_OK;
    return pllm_fail(PLLM_EINVAL, 0, "a tensor needs a store, a name and a place for the result");
}

int pllm_store_create(pllm_store *store, const char *name, const pllm_store_spec *spec,
                      pllm_store_tensor **tensor_out)
{
    int status = check_call(store, name, tensor_out);
    if (status < 0) return status;
    *tensor_out = NULL;
    if (!spec || spec->struct_bytes != sizeof *spec)
        return pllm_fail(PLLM_EINVAL, 0, "no pllm_store_spec, or of another size than %zu",
                         sizeof *spec);
    const uint32_t known = PLLM_STORE_PINNED | PLLM_STORE_KEPT | PLLM_STORE_LEGACY;
    if (spec->flags & ~known)
        return pllm_fail(PLLM_EINVAL, 0, "a spec's flags are PINNED, KEPT and LEGACY, not %#x",
                         spec->flags);
    /* Asked here too, so that nothing that makes no sense travels. */
    uint64_t bytes;
    status = pllm_store_name_check(name, strlen(name));
    if (status == PLLM_OK)
        status = pllm_store_shape_bytes(spec->dtype, spec->rank, spec->shape, &bytes);
    if (status < 0) return status;
    pllm_store_lock(store);
    status = pllm_store_connected(store);
    memset(&store->out, 0, sizeof store->out);
    pllm_wire_spec *to = &store->out.create.spec;
    to->dtype = spec->dtype;
    to->rank = spec->rank;
    to->mode = spec->mode;
    to->kind = spec->flags & PLLM_STORE_LEGACY ? PLLM_STORE_KIND_LEGACY : PLLM_STORE_KIND_VMM;
    to->flags = spec->flags & ~(uint32_t)PLLM_STORE_LEGACY;
    memcpy(to->shape, spec->shape, spec->rank * sizeof *to->shape);
    store->out.create.name = pllm_store_text(name);
    if (status == PLLM_OK) {
        to->device = store->device_index;
        uint64_t renames = pllm_board_renames(store->board);
        status = pllm_store_ask(store, PLLM_WIRE_CREATE, NULL);
        if (status == PLLM_OK) status = entry_from_answer(store, 1, renames, tensor_out);
    }
    return pllm_store_unlock(store, status);
}

static int open_by(pllm_store *store, uint32_t op, const char *name, uint32_t writable,
                   pllm_store_tensor **tensor_out)
{
    int status = pllm_store_connected(store);
    if (status < 0) return status;
    memset(&store->out, 0, sizeof store->out);
    store->out.open.writable = writable;
    store->out.open.name = pllm_store_text(name);
    uint64_t renames = pllm_board_renames(store->board); /* before the daemon looks */
    status = pllm_store_ask(store, op, NULL);
    return status < 0 ? status : entry_from_answer(store, writable, renames, tensor_out);
}

int pllm_store_open_tensor(pllm_store *store, const char *name, uint32_t writable,
                           pllm_store_tensor **tensor_out)
{
    int status = check_call(store, name, tensor_out);
    if (status < 0) return status;
    *tensor_out = NULL;
    writable = writable != 0;
    pllm_store_lock(store);
    pllm_store_tensor *tensor = entry_by_name(store, name, writable);
    if (tensor) {
        tensor->open_count++;
        *tensor_out = tensor;
        return pllm_store_unlock(store, PLLM_OK);
    }
    status = open_by(store, PLLM_WIRE_OPEN, name, writable, tensor_out);
    return pllm_store_unlock(store, status);
}

int pllm_store_redeem(pllm_store *store, const char *token, uint32_t writable,
                      pllm_store_tensor **tensor_out)
{
    int status = check_call(store, token, tensor_out);
    if (status < 0) return status;
    *tensor_out = NULL;
    pllm_store_lock(store);
    status = open_by(store, PLLM_WIRE_REDEEM, token, writable != 0, tensor_out);
    return pllm_store_unlock(store, status);
}

/* Unmaps the entry, frees it, and tells the daemon what that gives back. */
static void entry_close(pllm_store *store, pllm_store_tensor *tensor)
{
    entry_unlink(store, tensor);
    mapping_undo(store, &tensor->mapping);
    if (!tensor->stale && tensor->board == store->board) {
        pllm_store_tell_close(store, tensor->slot, tensor->generation, tensor->writable);
        if (!entry_by_generation(store, tensor->generation, -1))
            pllm_store_tell_unmapped(store, tensor->slot, tensor->generation);
    }
    pllm_free(store->context, tensor);
}

int pllm_store_close_tensor(pllm_store_tensor *tensor)
{
    if (!tensor) return PLLM_OK;
    pllm_store *store = tensor->store;
    int status = PLLM_OK;
    pllm_store_lock(store);
    if (tensor->open_count > 1)
        tensor->open_count--;
    else if (atomic_load(&tensor->pending_count))
        status = pllm_fail(PLLM_EBUSY, 0,
                           "a stream has still a signal of tensor %s to give: synchronise it first",
                           tensor->info.name);
    else
        entry_close(store, tensor);
    return pllm_store_unlock(store, status);
}

void pllm_store_tensors_forget(pllm_store *store)
{
    for (uint32_t i = 0; i < CLIENT_BUCKETS; i++)
        while (store->buckets[i]) entry_close(store, store->buckets[i]);
}

/* ---- asking a tensor ---- */

int pllm_store_tensor_info(const pllm_store_tensor *tensor, pllm_store_info *info)
{
    if (!tensor || !info || info->struct_bytes != sizeof *info)
        return pllm_fail(PLLM_EINVAL, 0, "no tensor, or a pllm_store_info of another size than %zu",
                         sizeof *info);
    pllm_store_lock(tensor->store);
    *info = tensor->info;
    return pllm_store_unlock(tensor->store, PLLM_OK);
}

uint64_t pllm_store_tensor_address(const pllm_store_tensor *tensor)
{
    return tensor->mapping.base + tensor->mapping.offset;
}

void *pllm_store_tensor_data(const pllm_store_tensor *tensor)
{
    pllm_device *device = tensor->store->device;
    return device->ops->host_view(device, pllm_store_tensor_address(tensor));
}

uint64_t pllm_store_tensor_bytes(const pllm_store_tensor *tensor)
{
    return tensor->info.bytes;
}

static int fail_stale(const pllm_store_tensor *tensor)
{
    return pllm_fail(PLLM_ESTALE, 0, "tensor %s was deleted, or lost with its daemon",
                     tensor->info.name);
}

int pllm_store_tensor_valid(const pllm_store_tensor *tensor)
{
    pllm_store_lock(tensor->store);
    int status = is_valid(tensor) ? PLLM_OK : fail_stale(tensor);
    return pllm_store_unlock(tensor->store, status);
}

/* ---- order ---- */

typedef struct stream_signal { /* what a stream will tell; freed when it has */
    pllm_store_tensor *tensor;
    uint64_t value;
} stream_signal;

static void signal_prepare(pllm_store *store, const pllm_store_tensor *tensor, uint64_t value)
{
    memset(&store->out, 0, sizeof store->out);
    store->out.handle.slot = tensor->slot;
    store->out.handle.generation = tensor->generation;
    store->out.handle.value = value;
}

static void signal_from_stream(void *user)
{
    stream_signal *signal = user;
    pllm_store_tensor *tensor = signal->tensor;
    pllm_store *store = tensor->store;
    pllm_store_lock(store);
    signal_prepare(store, tensor, signal->value);
    if (signal->value > tensor->signalled) tensor->signalled = signal->value;
    if (!tensor->stale && tensor->board == store->board)
        (void)pllm_store_tell(store, PLLM_WIRE_SIGNAL);
    atomic_fetch_sub(&tensor->pending_count, 1); /* the last touch of the tensor */
    pthread_mutex_unlock(&store->lock);
    pllm_free(store->context, signal);
}

int pllm_store_signal(pllm_store_tensor *tensor, pllm_stream *stream, uint64_t value)
{
    pllm_store *store = tensor->store;
    if (!tensor->writable)
        return pllm_fail(PLLM_EPERM, 0,
                         "tensor %s is open for reading: who signals has it open "
                         "for writing",
                         tensor->info.name);
    if (value == UINT64_MAX)
        return pllm_fail(PLLM_EINVAL, 0, "a fence's value is at most 2^64 - 2");
    int status = pllm_store_tensor_valid(tensor);
    if (status < 0) return status;
    if (stream) {
        stream_signal *signal = pllm_alloc(store->context, sizeof *signal);
        if (!signal) return pllm_fail_memory("a signal", sizeof *signal);
        *signal = (stream_signal){tensor, value};
        atomic_fetch_add(&tensor->pending_count, 1);
        status = store->device->ops->stream_call(store->device, stream, signal_from_stream, signal);
        if (status == PLLM_OK) return PLLM_OK;
        atomic_fetch_sub(&tensor->pending_count, 1);
        pllm_free(store->context, signal);
        return status;
    }
    pllm_store_lock(store);
    status = pllm_store_connected(store); /* numbers may be new ones after this */
    signal_prepare(store, tensor, value);
    if (status == PLLM_OK && tensor->stale) status = fail_stale(tensor);
    if (status == PLLM_OK && tensor->board != store->board)
        status =
            pllm_fail(PLLM_EIO, 0, "the new daemon has not taken over tensor %s yet: try again",
                      tensor->info.name);
    if (status == PLLM_OK) status = pllm_store_ask(store, PLLM_WIRE_SIGNAL, NULL);
    return pllm_store_unlock(store, status);
}

/* Where the tensor's words are now; ESTALE. Connects again if the daemon went. */
static int fence_where(pllm_store_tensor *tensor, const pllm_board **board_out, uint32_t *slot_out,
                       uint64_t *generation_out)
{
    pllm_store *store = tensor->store;
    pllm_store_lock(store);
    /* A daemon that is away may come back before the caller's time is over. */
    while (store->fd >= 0 && pllm_store_take_event(store) == PLLM_OK) continue;
    (void)pllm_store_connected(store);
    *board_out = tensor->board;
    *slot_out = tensor->slot;
    *generation_out = tensor->generation;
    return pllm_store_unlock(store, tensor->stale ? PLLM_ESTALE : PLLM_OK);
}

int pllm_store_wait(pllm_store_tensor *tensor, uint64_t value, uint32_t timeout_ms)
{
    const uint64_t slice = 100 * UINT64_C(1000000);
    uint64_t end = pllm_clock_ns() + timeout_ms * UINT64_C(1000000), now;
    const pllm_board *board;
    uint32_t slot;
    uint64_t generation;
    pllm_store *store = tensor->store;
    /* Mostly the value is there, or comes soon: the socket is looked at only after a slice. */
    pllm_store_lock(store);
    board = tensor->board;
    slot = tensor->slot;
    generation = tensor->generation;
    int status = pllm_store_unlock(store, tensor->stale ? PLLM_ESTALE : PLLM_OK);
    while (status == PLLM_OK) {
        now = pllm_clock_ns();
        uint64_t left = end > now ? end - now : 0;
        status = pllm_board_wait(board, slot, generation, value, left < slice ? left : slice);
        if (status == PLLM_OK) return PLLM_OK;
        if (status == PLLM_ESTALE || (status == PLLM_ETIMEDOUT && pllm_clock_ns() < end)) {
            const uint64_t before = generation;
            int where = fence_where(tensor, &board, &slot, &generation);
            if (status == PLLM_ETIMEDOUT || generation != before) status = where;
        }
    }
    if (status == PLLM_ESTALE) return fail_stale(tensor);
    if (status == PLLM_ECANCELED)
        return pllm_fail(PLLM_ECANCELED, 0, "the producer of tensor %s is gone", tensor->info.name);
    return pllm_fail(PLLM_ETIMEDOUT, 0, "the fence of tensor %s did not reach %llu within %u ms",
                     tensor->info.name, (unsigned long long)value, timeout_ms);
}

int pllm_store_fence(const pllm_store_tensor *tensor, uint64_t *value_out)
{
    pllm_board_words words;
    pllm_store_lock(tensor->store);
    int status = tensor->stale
                     ? PLLM_ESTALE
                     : pllm_board_read(tensor->board, tensor->slot, tensor->generation, &words);
    if (status < 0)
        status = fail_stale(tensor);
    else if (words.poisoned)
        status =
            pllm_fail(PLLM_ECANCELED, 0, "the producer of tensor %s is gone", tensor->info.name);
    else
        *value_out = words.fence_value;
    return pllm_store_unlock(tensor->store, status);
}
