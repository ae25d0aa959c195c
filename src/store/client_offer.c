/* client_offer.c - a daemon that came back is offered what this process holds; answers that come
 * too late are undone.
 *
 * A tensor is on the board of the daemon that knew it last. Where that is not the one there is, it
 * is offered, with what the old board says of its fence, or what a stream has signalled here that
 * did not reach that daemon any more. The daemon may say: not yet, who writes it
 * (or owns it) has to offer it first. So such an offer is repeated by later calls, for as long as
 * daemons take offers. */
#include <string.h>
#include <unistd.h>
#include "base/clock.h"
#include "store/client_internal.h"
#include "store/names.h"

enum { AGAIN_MS = 20, UNTIL_MS = 5000 };

/* The question of one OFFER; its descriptors in fds, to be closed. */
static int offer_prepare(pllm_store *store, const pllm_store_tensor *tensor,
                         const pllm_board_words *words, int *fds)
{
    const client_mapping *m = &tensor->mapping;
    const pllm_store_info *info = &tensor->info;
    memset(&store->out, 0, sizeof store->out);
    pllm_registry_offer *offer = &store->out.offer.offer;
    offer->spec = (pllm_registry_spec){.dtype = info->dtype,
                                       .rank = info->rank,
                                       .mode = info->mode,
                                       .kind = PLLM_STORE_KIND_VMM,
                                       .device = store->device_index,
                                       .flags = words->flags};
    memcpy(offer->spec.shape, info->shape, sizeof offer->spec.shape);
    offer->uid = info->uid;
    offer->gid = info->gid;
    offer->writable = tensor->writable;
    offer->fence_epoch = words->fence_epoch;
    offer->fence_value = words->fence_value;
    offer->old_generation = tensor->generation;
    store->out.offer.name = pllm_store_text(info->name);
    store->out.offer.offset = m->offset;
    store->out.offer.piece_count = m->piece_count;
    for (uint32_t i = 0; i < m->piece_count; i++) {
        store->out.offer.pieces[i] = m->piece_bytes[i];
        int status = store->device->ops->chunk_export(store->device, m->chunks[i],
                                                      !tensor->writable, &fds[i]);
        if (status < 0) {
            while (i-- > 0) close(fds[i]);
            return status;
        }
    }
    store->out.fd_count = m->piece_count;
    return PLLM_OK;
}

static void stale_set(pllm_store *store, pllm_store_tensor *tensor)
{
    pthread_mutex_lock(&store->tell_lock);
    tensor->stale = 1;
    pthread_mutex_unlock(&store->tell_lock);
}

static void lose(pllm_store *store, pllm_store_tensor *tensor, const char *why)
{
    pllm_log(store->context, PLLM_LOG_WARN, "tensor %s is lost with its daemon: %s",
             tensor->info.name, why);
    stale_set(store, tensor);
}

/* The daemon at the other end counts it: store->in says under which numbers and name. */
static void moved(pllm_store *store, pllm_store_tensor *tensor, uint64_t offered)
{
    pllm_store_entry_unlink(store, tensor);
    pthread_mutex_lock(&store->tell_lock);
    tensor->slot = store->in.tensor.info.slot;
    tensor->generation = store->in.tensor.info.generation;
    tensor->board = store->board;
    tensor->offered = offered;
    pthread_mutex_unlock(&store->tell_lock);
    tensor->connection = store->connection;
    /* It may be renamed before we look at the board: by name it is asked for once more. */
    pllm_store_entry_name(store, tensor, UINT64_MAX);
}

static int offer_one(pllm_store *store, pllm_store_tensor *tensor)
{
    int fds[PLLM_WIRE_FDS_MAX];
    pllm_board_words words;
    /* A legacy handle dies with its process; what the daemon had ended must not come back. */
    if (tensor->mapping.legacy ||
        pllm_board_read(tensor->board, tensor->slot, tensor->generation, &words) < 0) {
        stale_set(store, tensor);
        return PLLM_OK;
    }
    /* Streams may have signalled while there was no daemon to hear it. */
    pthread_mutex_lock(&store->tell_lock);
    if (tensor->signalled > words.fence_value) words.fence_value = tensor->signalled;
    pthread_mutex_unlock(&store->tell_lock);
    int status = offer_prepare(store, tensor, &words, fds);
    const int prepared = status == PLLM_OK; /* else descriptors are short, now */
    if (prepared) status = pllm_store_ask_here(store, PLLM_WIRE_OFFER, fds);
    for (uint32_t i = 0; prepared && i < tensor->mapping.piece_count; i++) close(fds[i]);
    if (status == PLLM_OK) {
        moved(store, tensor, words.fence_value);
        return PLLM_OK;
    }
    if (store->fd < 0) return status; /* it went again: the next one is offered all of this */
    int later =
        !prepared || status == PLLM_EBUSY || status == PLLM_EPERM || status == PLLM_ETIMEDOUT;
    if (later && pllm_clock_ns() < store->offer_until_ns)
        store->unoffered++;
    else
        lose(store, tensor, pllm_last_error()->text);
    return PLLM_OK;
}

/* The daemon lives and has dropped us. To it this process still has the memory mapped, so that this
 * is what it was, if the tensor is still there. */
static int redeem_one(pllm_store *store, pllm_store_tensor *tensor)
{
    char token[PLLM_STORE_TOKEN_BYTES];
    memset(&store->out, 0, sizeof store->out);
    store->out.open.writable = tensor->writable;
    store->out.open.kept_generation = tensor->generation;
    store->out.open.name =
        pllm_store_text(pllm_store_token_text(tensor->slot, tensor->generation, token));
    int status = pllm_store_ask_here(store, PLLM_WIRE_REDEEM, NULL);
    if (status < 0 && store->fd < 0) return status;
    if (status == PLLM_OK)
        moved(store, tensor, 0);
    else
        stale_set(store, tensor);
    return PLLM_OK;
}

static int offer_each(pllm_store *store)
{
    for (uint32_t i = 0; i < CLIENT_BUCKETS; i++)
        for (pllm_store_tensor *t = store->buckets[i], *next; t; t = next) {
            next = t->next; /* its name may be another, and so its bucket: it may come once more */
            if (t->stale || t->connection == store->connection) continue;
            int status = t->board == store->board ? redeem_one(store, t) : offer_one(store, t);
            if (status < 0) return status;
        }
    return PLLM_OK;
}

int pllm_store_offer_all(pllm_store *store, int reconnected)
{
    const uint64_t now = pllm_clock_ns();
    if (reconnected) store->offer_until_ns = now + UNTIL_MS * UINT64_C(1000000);
    store->unoffered = 0;
    int status = offer_each(store);
    store->offer_again_ns = now + AGAIN_MS * UINT64_C(1000000);
    return status;
}

/* ---- answers that come too late ---- */

void pllm_store_late(pllm_store *store)
{
    uint32_t i = 0;
    while (i < store->late_count && store->late[i].request != store->in.request) i++;
    if (i == store->late_count) return;
    const client_late late = store->late[i];
    store->late[i] = store->late[--store->late_count];
    if (store->in.status != PLLM_OK) return;
    const pllm_wire_message asked = store->out; /* may have to be asked again */
    if (late.op == PLLM_WIRE_WATCH) {
        const uint32_t number = store->in.watch.watch;
        memset(&store->out, 0, sizeof store->out);
        store->out.watch.watch = number;
        (void)pllm_store_tell(store, PLLM_WIRE_UNWATCH);
    } else {
        const uint32_t slot = store->in.tensor.info.slot;
        const uint64_t generation = store->in.tensor.info.generation;
        pllm_store_tell_close(store, slot, generation, late.writable);
        /* Refused, and nothing, where it is open here still. */
        pllm_store_tell_unmapped(store, slot, generation);
    }
    store->out = asked;
}
