/* client_tensor.c - tensors on the client's side: mapped, given back, waited for, offered anew
 * (include/pagedllm/tensor_store.h).
 *
 * Tensors of one store are in buckets by name, one entry for each way (reading, writing) a tensor
 * is open. An entry may be given again without asking as long as the board still shows its
 * generation and nothing was renamed since. */
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "base/clock.h"
#include "base/hash.h"
#include "device/cuda.h"
#include "store/client_internal.h"
#include "store/names.h"

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
    if (store->received_cut)
        return pllm_fail(PLLM_ELIMIT, EMFILE,
                         "this process has no descriptors left for the %u pieces of a tensor "
                         "(ulimit -n)",
                         count);
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

/* Nobody reads beyond a tensor's memory because a daemon errs. */
static int layout_check(const pllm_wire_info *info, const pllm_wire_layout *layout)
{
    uint64_t bytes, total = 0;
    int status =
        pllm_store_shape_bytes(info->spec.dtype, info->spec.rank, info->spec.shape, &bytes);
    if (status < 0) return status;
    int wrong = bytes != info->bytes;
    for (uint32_t i = 0; i < layout->piece_count; i++)
        wrong |= __builtin_add_overflow(total, layout->pieces[i], &total);
    if (!layout->legacy) /* else its allocation will say */
        wrong |= layout->offset > total || bytes > total - layout->offset;
    if (!wrong) return PLLM_OK;
    return pllm_fail(PLLM_EINVAL, 0,
                     "the daemon sent a tensor of %llu bytes that does not lie in its memory",
                     (unsigned long long)info->bytes);
}

static int mapping_make(pllm_store *store, const pllm_wire_info *info,
                        const pllm_wire_layout *layout, uint32_t writable, client_mapping *m)
{
    memset(m, 0, sizeof *m);
    int status = layout_check(info, layout);
    if (status == PLLM_OK)
        status = layout->legacy ? legacy_open(store, layout, info->bytes, m)
                                : pieces_map(store, layout, writable, m);
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
    return &store->buckets[pllm_hash64(name, strlen(name), 0) % CLIENT_BUCKETS];
}

static void entry_link(pllm_store *store, pllm_store_tensor *tensor)
{
    pllm_store_tensor **bucket = bucket_of(store, tensor->info.name);
    tensor->next = *bucket;
    *bucket = tensor;
}

void pllm_store_entry_unlink(pllm_store *store, pllm_store_tensor *tensor)
{
    pllm_store_tensor **at = bucket_of(store, tensor->info.name);
    while (*at != tensor) at = &(*at)->next;
    *at = tensor->next;
}

static int is_valid(const pllm_store_tensor *tensor)
{
    return !tensor->stale && pllm_board_valid(tensor->board, tensor->slot, tensor->generation);
}

/* The one that name means, open that way, if that is sure without asking. What is sealed is opened
 * for writing no more. */
static pllm_store_tensor *entry_by_name(pllm_store *store, const char *name, uint32_t writable)
{
    pllm_board_words words;
    for (pllm_store_tensor *t = *bucket_of(store, name); t; t = t->next)
        if (t->writable == writable && t->board == store->board && !t->stale &&
            !strcmp(t->info.name, name) &&
            pllm_board_read(t->board, t->slot, t->generation, &words) == PLLM_OK &&
            !(writable && words.flags & PLLM_STORE_FLAG_SEALED) &&
            t->renames == pllm_board_renames(t->board))
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

/* Nobody is to find by its name what its maker could not map. */
static void tell_delete(pllm_store *store)
{
    char name[PLLM_STORE_NAME_MAX];
    const pllm_wire_text made = store->in.tensor.info.name;
    if (made.bytes > sizeof name) return;
    memcpy(name, made.data, made.bytes); /* it is in the packet that is written to next */
    memset(&store->out, 0, sizeof store->out);
    store->out.name.name = (pllm_wire_text){name, made.bytes};
    (void)pllm_store_tell(store, PLLM_WIRE_DELETE);
}

void pllm_store_entry_name(pllm_store *store, pllm_store_tensor *tensor, uint64_t renames)
{
    pthread_mutex_lock(&store->tell_lock);
    pllm_store_info_of(&store->in.tensor.info, &tensor->info);
    pthread_mutex_unlock(&store->tell_lock);
    tensor->renames = renames;
    entry_link(store, tensor);
}

void pllm_store_renamed(pllm_store *store, const pllm_store_info *info)
{
    pllm_store_lock(store);
    for (uint32_t way = 0; way < 2; way++) {
        pllm_store_tensor *tensor = entry_by_generation(store, info->generation, (int)way);
        if (!tensor) continue;
        pllm_store_entry_unlink(store, tensor);
        pthread_mutex_lock(&store->tell_lock);
        memcpy(tensor->info.name, info->name, sizeof info->name);
        pthread_mutex_unlock(&store->tell_lock);
        tensor->renames = UINT64_MAX; /* by name it is asked for once more */
        entry_link(store, tensor);
    }
    (void)pllm_store_unlock(store, PLLM_OK);
}

/* The answer to CREATE, OPEN or REDEEM becomes an entry, or one more opening of one. */
static int entry_from_answer(pllm_store *store, uint32_t op, uint32_t writable, uint64_t renames,
                             pllm_store_tensor **tensor_out)
{
    const pllm_wire_info *info = &store->in.tensor.info;
    const uint32_t slot = info->slot;
    const uint64_t generation = info->generation;
    int status = PLLM_OK, given_back = 0;
    pllm_store_tensor *tensor = entry_by_generation(store, generation, (int)writable);
    if (tensor) { /* open already, under another name then: one reference is enough */
        pllm_store_received_close(store);
        pllm_store_entry_unlink(store, tensor);
        given_back = 1;
    } else {
        tensor = pllm_alloc(store->context, sizeof *tensor);
        if (!tensor) status = pllm_fail_memory("an open tensor", sizeof *tensor);
        if (status == PLLM_OK)
            status =
                mapping_make(store, info, &store->in.tensor.layout, writable, &tensor->mapping);
        if (status < 0) {
            const pllm_error error = *pllm_last_error(); /* telling may fill another */
            pllm_free(store->context, tensor);
            pllm_store_received_close(store);
            if (op == PLLM_WIRE_CREATE) tell_delete(store);
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
        tensor->connection = store->connection;
        tensor->bytes = info->bytes;
    }
    pllm_store_entry_name(store, tensor, renames);
    tensor->open_count++;
    *tensor_out = tensor;
    if (given_back) pllm_store_tell_close(store, slot, generation, writable);
    return PLLM_OK;
}

/* Asks for a tensor. Renames are counted before the daemon looks; if another one than that did,
 * its count is not known. */
static int ask_tensor(pllm_store *store, uint32_t op, uint32_t writable,
                      pllm_store_tensor **tensor_out)
{
    const pllm_board *board = store->board;
    uint64_t renames = pllm_board_renames(board);
    int status = pllm_store_ask(store, op, NULL);
    if (store->board != board) renames = UINT64_MAX;
    return status < 0 ? status : entry_from_answer(store, op, writable, renames, tensor_out);
}

static int check_call(const pllm_store *store, const char *name, const void *result)
{
    if (store && name && result) return pllm_store_check_process(store);
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
    memset(&store->out, 0, sizeof store->out);
    pllm_wire_spec *to = &store->out.create.spec;
    to->dtype = spec->dtype;
    to->rank = spec->rank;
    to->mode = spec->mode;
    to->kind = spec->flags & PLLM_STORE_LEGACY ? PLLM_STORE_KIND_LEGACY : PLLM_STORE_KIND_VMM;
    to->flags = spec->flags & ~(uint32_t)PLLM_STORE_LEGACY;
    memcpy(to->shape, spec->shape, spec->rank * sizeof *to->shape);
    store->out.create.name = pllm_store_text(name);
    return pllm_store_unlock(store, ask_tensor(store, PLLM_WIRE_CREATE, 1, tensor_out));
}

static int open_by(pllm_store *store, uint32_t op, const char *name, uint32_t writable,
                   pllm_store_tensor **tensor_out)
{
    memset(&store->out, 0, sizeof store->out);
    store->out.open.writable = writable;
    store->out.open.name = pllm_store_text(name);
    return ask_tensor(store, op, writable, tensor_out);
}

int pllm_store_open_tensor(pllm_store *store, const char *name, uint32_t writable,
                           pllm_store_tensor **tensor_out)
{
    int status = check_call(store, name, tensor_out);
    if (status < 0) return status;
    *tensor_out = NULL;
    writable = writable != 0;
    pllm_store_lock(store);
    pllm_store_look(store);
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

/* Has this process that generation mapped, be it stale? */
static int is_mapped(const pllm_store *store, uint64_t generation)
{
    for (uint32_t i = 0; i < CLIENT_BUCKETS; i++)
        for (const pllm_store_tensor *t = store->buckets[i]; t; t = t->next)
            if (t->generation == generation) return 1;
    return 0;
}

/* Unmaps the entry, frees it, and tells the daemon what that gives back. A daemon that dropped us
 * while we had it mapped keeps the memory for this process until it hears of that: connects 1 sees
 * to it. */
static void entry_close(pllm_store *store, pllm_store_tensor *tensor, int connects)
{
    const uint32_t slot = tensor->slot;
    const uint64_t generation = tensor->generation;
    const pllm_board *board = tensor->board;
    pllm_store_entry_unlink(store, tensor);
    mapping_undo(store, &tensor->mapping);
    const int last = !is_mapped(store, generation);
    if (board == store->board) {
        if (!tensor->stale) pllm_store_tell_close(store, slot, generation, tensor->writable);
        if (last) pllm_store_tell_unmapped(store, slot, generation);
    }
    pllm_free(store->context, tensor);
    if (connects && last && store->fd < 0 && board == store->board &&
        pllm_store_connected(store) == PLLM_OK && board == store->board)
        pllm_store_tell_unmapped(store, slot, generation);
}

int pllm_store_close_tensor(pllm_store_tensor *tensor)
{
    if (!tensor) return PLLM_OK;
    pllm_store *store = tensor->store;
    int status = pllm_store_check_process(store);
    if (status < 0) return status;
    pllm_store_lock(store);
    pthread_mutex_lock(&store->tell_lock);
    const uint32_t pending_count = tensor->pending_count;
    pthread_mutex_unlock(&store->tell_lock);
    if (tensor->open_count > 1)
        tensor->open_count--;
    else if (pending_count)
        status = pllm_fail(PLLM_EBUSY, 0,
                           "a stream has still a signal of tensor %s to give: synchronise it first",
                           tensor->info.name);
    else
        entry_close(store, tensor, 1);
    return pllm_store_unlock(store, status);
}

void pllm_store_tensors_forget(pllm_store *store)
{
    for (uint32_t i = 0; i < CLIENT_BUCKETS; i++)
        while (store->buckets[i]) entry_close(store, store->buckets[i], 0);
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
    return tensor->bytes;
}

int pllm_store_fail_stale(const pllm_store_tensor *tensor)
{
    return pllm_fail(PLLM_ESTALE, 0, "tensor %s was deleted, or lost with its daemon",
                     tensor->info.name);
}

/* For calls that ask nothing: a daemon that came back is noticed, unless another thread is asking
 * something, and will notice it. */
static void look(pllm_store *store)
{
    if (pllm_store_check_process(store) < 0 || pthread_mutex_trylock(&store->lock) != 0) return;
    pllm_store_look(store);
    pthread_mutex_unlock(&store->lock);
}

int pllm_store_tensor_valid(const pllm_store_tensor *tensor)
{
    pllm_store *store = tensor->store;
    look(store);
    pthread_mutex_lock(&store->tell_lock);
    int status = is_valid(tensor) ? PLLM_OK : pllm_store_fail_stale(tensor);
    pthread_mutex_unlock(&store->tell_lock);
    return status;
}

/* ---- order ---- */

typedef struct stream_signal { /* what a stream will tell; freed when it has */
    pllm_store_tensor *tensor;
    uint64_t value;
} stream_signal;

/* Without `lock`, and so without its packets. A connection that takes nothing is broken off: the
 * next who asks finds it so. tell_lock held. */
static void signal_tell(pllm_store *store, const pllm_store_tensor *tensor, uint64_t value)
{
    if (store->tell_fd < 0 || tensor->stale || tensor->board != store->board) return;
    pllm_wire_message out;
    uint8_t packet[128];
    memset(&out, 0, offsetof(pllm_wire_message, handle) + sizeof out.handle);
    out.op = PLLM_WIRE_SIGNAL;
    out.handle.slot = tensor->slot;
    out.handle.generation = tensor->generation;
    out.handle.value = value;
    int bytes = pllm_wire_encode(&out, packet, sizeof packet);
    if (bytes < 0 || pllm_wire_send(store->tell_fd, packet, (size_t)bytes, NULL, 0, 0) < 0)
        (void)shutdown(store->tell_fd, SHUT_RDWR);
}

static void signal_from_stream(void *user)
{
    stream_signal *signal = user;
    pllm_store_tensor *tensor = signal->tensor;
    pllm_store *store = tensor->store;
    const pllm_context *context = store->context;
    const uint64_t value = signal->value;
    pthread_mutex_lock(&store->tell_lock);
    /* Where no daemon hears it, the next one is told. */
    if (value > tensor->signalled) tensor->signalled = value;
    signal_tell(store, tensor, value);
    tensor->pending_count--; /* the last touch of the tensor */
    pthread_mutex_unlock(&store->tell_lock);
    pllm_free(context, signal); /* the store may be closed by now */
}

void pllm_store_signals_again(pllm_store *store)
{
    pthread_mutex_lock(&store->tell_lock);
    for (uint32_t i = 0; i < CLIENT_BUCKETS; i++)
        for (pllm_store_tensor *t = store->buckets[i]; t; t = t->next)
            if (t->signalled > t->offered) signal_tell(store, t, t->signalled);
    pthread_mutex_unlock(&store->tell_lock);
}

static void pending_add(pllm_store_tensor *tensor, uint32_t more)
{
    pthread_mutex_lock(&tensor->store->tell_lock);
    tensor->pending_count += more; /* UINT32_MAX: one less */
    pthread_mutex_unlock(&tensor->store->tell_lock);
}

static int signal_in_stream(pllm_store_tensor *tensor, pllm_stream *stream, uint64_t value)
{
    pllm_store *store = tensor->store;
    stream_signal *signal = pllm_alloc(store->context, sizeof *signal);
    if (!signal) return pllm_fail_memory("a signal", sizeof *signal);
    *signal = (stream_signal){tensor, value};
    pending_add(tensor, 1);
    int status = store->device->ops->stream_call(store->device, stream, signal_from_stream, signal);
    if (status == PLLM_OK) return PLLM_OK;
    pending_add(tensor, UINT32_MAX);
    pllm_free(store->context, signal);
    return status;
}

int pllm_store_signal(pllm_store_tensor *tensor, pllm_stream *stream, uint64_t value)
{
    pllm_store *store = tensor->store;
    if (!tensor->writable)
        return pllm_fail(PLLM_EPERM, 0,
                         "this tensor is open for reading: who signals has it open for writing");
    if (value == UINT64_MAX)
        return pllm_fail(PLLM_EINVAL, 0, "a fence's value is at most 2^64 - 2");
    int status = pllm_store_check_process(store);
    if (status == PLLM_OK) status = pllm_store_tensor_valid(tensor);
    if (status < 0) return status;
    if (stream) return signal_in_stream(tensor, stream, value);
    pllm_store_lock(store);
    memset(&store->out, 0, sizeof store->out);
    store->out.handle.value = value;
    status = pllm_store_ask(store, PLLM_WIRE_SIGNAL, tensor);
    return pllm_store_unlock(store, status);
}

typedef struct fence_place { /* where a tensor's words are */
    const pllm_board *board;
    uint32_t slot;
    uint64_t generation;
} fence_place;

/* As far as is known here. ESTALE (bare). */
static int fence_where(const pllm_store_tensor *tensor, fence_place *place)
{
    pthread_mutex_lock(&tensor->store->tell_lock);
    *place = (fence_place){tensor->board, tensor->slot, tensor->generation};
    int status = tensor->stale ? PLLM_ESTALE : PLLM_OK;
    pthread_mutex_unlock(&tensor->store->tell_lock);
    return status;
}

static int fence_fail(const pllm_store_tensor *tensor, int status, uint64_t value,
                      uint32_t timeout_ms)
{
    pthread_mutex_lock(&tensor->store->tell_lock); /* of the name */
    if (status == PLLM_ESTALE)
        (void)pllm_store_fail_stale(tensor);
    else if (status == PLLM_ECANCELED)
        (void)pllm_fail(status, 0, "the producer of tensor %s is gone", tensor->info.name);
    else
        (void)pllm_fail(status, 0, "the fence of tensor %s did not reach %llu within %u ms",
                        tensor->info.name, (unsigned long long)value, timeout_ms);
    pthread_mutex_unlock(&tensor->store->tell_lock);
    return status;
}

int pllm_store_wait(pllm_store_tensor *tensor, uint64_t value, uint32_t timeout_ms)
{
    /* Mostly the value is there, or comes soon: the socket is looked at only after a slice. */
    const uint64_t slice = 100 * UINT64_C(1000000);
    const uint64_t end = pllm_clock_ns() + timeout_ms * UINT64_C(1000000);
    fence_place at;
    int status = fence_where(tensor, &at);
    while (status == PLLM_OK) {
        uint64_t now = pllm_clock_ns(), left = end > now ? end - now : 0;
        status =
            pllm_board_wait(at.board, at.slot, at.generation, value, left < slice ? left : slice);
        if (status == PLLM_OK) return PLLM_OK;
        if (status == PLLM_ECANCELED) break;
        /* The daemon may have gone, and another have taken the tensor over. */
        const fence_place before = at;
        look(tensor->store);
        int where = fence_where(tensor, &at);
        const int moved = at.board != before.board || at.generation != before.generation;
        if (where < 0 || moved || (status == PLLM_ETIMEDOUT && pllm_clock_ns() < end))
            status = where;
    }
    return fence_fail(tensor, status, value, timeout_ms);
}

int pllm_store_fence(const pllm_store_tensor *tensor, uint64_t *value_out)
{
    pllm_board_words words;
    fence_place at;
    look(tensor->store);
    int status = fence_where(tensor, &at);
    if (status == PLLM_OK) status = pllm_board_read(at.board, at.slot, at.generation, &words);
    if (status == PLLM_OK && words.poisoned) status = PLLM_ECANCELED;
    if (status < 0) return fence_fail(tensor, status, 0, 0);
    *value_out = words.fence_value;
    return PLLM_OK;
}
