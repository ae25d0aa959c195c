/* weight_ring.c - parts of the weights that do not fit pass through a ring of slots, ahead of use.
 *
 *   a pass reads:   layers 1 3 5 7 | tiles 31 33 | (tiles again, for more rows of logits)
 *   the ring:       slot 0 1 2 0 1 2 ...            then the first layers of the next pass
 *
 * Every pass begins with the layers, so when one ends the first of the next are already under way;
 * how often it needs the output matrix is only known when it begins. Thread 0 enters a part before
 * the barrier that ends the part before it, and refills a slot after the barrier that ends the part
 * in it, so the team needs no barriers of its own for this. Who copies:
 *
 *   a stream   where the device moves bytes by itself, has a link, or the team is one thread. One
 *              event a slot.
 *   the team   where a copy is the processor's work and there are several threads. The next part is
 *              on offer from the barrier after which its slot is free; at its enter every thread
 *              takes pieces until none is left. A thread's pieces are done when it comes to the
 *              barrier, so whoever passes it may read the part. Two slots are enough.
 *
 * The team's way overlaps nothing, but no processor rests and no thread more than there are
 * processors wants one: a single copying thread gave 6 GB/s to a machine of 16 that copies many
 * times that, and on two it took turns with the team. Measured on two with SmolLM2, over the time
 * without a limit: 75 MB a token cost 0.3 ms so and 1.8 ms by a stream, 98 MB 2.2 and 3.8.
 *
 * A piece is taken in one step with the count it is one of, so a taken piece is always of the part
 * on offer, and that part's addresses stay until the piece is done.
 *
 * A copy that could not be submitted is tried again when its part is needed; only then does it fail
 * the pass. After a pass that failed, was canceled or left a copy broken, the next one waits for
 * the stream and starts the ring anew.
 *
 * Invariants: 1. left <= entered <= left + 2, as a part is entered before the one before it is
 * left; entered <= sent <= left + ring_count. 2. Parts left .. sent - 1 are in their slots or on
 * their way; the team reads those below entered. 3. Where a part is read changes only when the team
 * does not read it (enter): the same layer may be on its way to a second slot meanwhile. */
#include <assert.h>
#include <stdatomic.h>
#include <string.h>
#include "engine/weights.h"

/* Long copies go around the cache, which is right for what is read much later. A part is read right
 * after it has come, so one that a cache may hold is copied in pieces, which go through it:
 * measured with SmolLM2 (layers of 2.4 MB, 32 MB of cache), 77 MB a token cost 0.8 ms so, 3.1 ms
 * around the cache. */
enum { PIECE_BYTES = 128 << 10, CACHED_BYTES = 8 << 20, PIECE_UNIT = 4096 };

/* What the pass reads at a position, or the next pass if it is known. */
static uint32_t part_at(const pllm_weights *weights, uint64_t position)
{
    uint64_t layers = weights->streamed_layers;
    if (position >= weights->pass_end) {
        position -= weights->pass_end;
        return position < layers ? weights->order[position] : UINT32_MAX;
    }
    if (position >= layers) position = layers + (position - layers) % weights->streamed_tiles;
    return weights->order[position];
}

static char *slot_of(const pllm_weights *weights, uint64_t number)
{
    pllm_va va = weights->ring_va + number % weights->ring_count * weights->slot_bytes;
    return weights->device->ops->host_view(weights->device, va);
}

static uint64_t parts_of(uint64_t bytes, uint64_t unit)
{
    return (bytes + unit - 1) / unit;
}

/* In pieces of which each thread gets as many as the next, were all alike. */
static void offer(pllm_weights *weights, uint32_t part)
{
    uint64_t bytes = weights->parts[part].bytes;
    uint64_t pieces = weights->team * parts_of(bytes, (uint64_t)weights->team * PIECE_BYTES);
    weights->task_piece = parts_of(parts_of(bytes, pieces), PIECE_UNIT) * PIECE_UNIT;
    weights->task_to = slot_of(weights, weights->sent);
    weights->task_from = weights->parts[part].home;
    weights->task_bytes = bytes;
    pieces = parts_of(bytes, weights->task_piece);
    assert(pieces <= UINT32_MAX);
    atomic_store_explicit(&weights->task, pieces << 32, memory_order_release);
}

void pllm_weights_help(pllm_weights *weights, uint32_t part)
{
    if (!weights->team || !weights->parts[part].streamed) return;
    for (;;) {
        uint64_t task = atomic_load_explicit(&weights->task, memory_order_relaxed);
        if ((uint32_t)task < task >> 32)
            task = atomic_fetch_add_explicit(&weights->task, 1, memory_order_acquire);
        if ((uint32_t)task >= task >> 32) return;
        uint64_t at = (uint32_t)task * weights->task_piece, bytes = weights->task_bytes - at;
        if (bytes > weights->task_piece) bytes = weights->task_piece;
        memcpy(weights->task_to + at, weights->task_from + at, bytes);
    }
}

static int send_by_stream(pllm_weights *weights, uint32_t part)
{
    const pllm_device_ops *ops = weights->device->ops;
    uint64_t slot = weights->sent % weights->ring_count;
    uint64_t bytes = weights->parts[part].bytes, piece = bytes;
    if (bytes <= CACHED_BYTES) piece = PIECE_BYTES;
    pllm_copy copies[CACHED_BYTES / PIECE_BYTES];
    uint32_t count = 0;
    for (uint64_t at = 0; at < bytes; at += piece)
        copies[count++] = (pllm_copy){.to = weights->ring_va + slot * weights->slot_bytes + at,
                                      .from = (uintptr_t)weights->parts[part].home + at,
                                      .bytes = bytes - at < piece ? bytes - at : piece};
    int status = ops->copy_batch(weights->device, weights->copies, PLLM_COPY_IN, copies, count);
    if (status == PLLM_OK)
        status = ops->event_record(weights->device, weights->loaded[slot], weights->copies);
    return status;
}

static int fill(pllm_weights *weights)
{
    while (weights->sent < weights->left + weights->ring_count) {
        uint32_t part = part_at(weights, weights->sent_at);
        if (part == UINT32_MAX) break;
        if (weights->team) {
            if (weights->sent > weights->entered) break; /* one at a time */
            offer(weights, part);
        } else {
            int status = send_by_stream(weights, part);
            if (status < 0) return status;
        }
        weights->sent++;
        weights->sent_at++;
        weights->stream_bytes += weights->parts[part].bytes;
    }
    return PLLM_OK;
}

void pllm_weights_begin(pllm_weights *weights, uint32_t output_count)
{
    if (weights->ring_count == 0) return;
    if (weights->primed) {
        assert(weights->sent_at >= weights->pass_end);
        weights->sent_at -= weights->pass_end;
    } else {
        /* What it reports has failed a pass already. */
        if (weights->copies)
            (void)weights->device->ops->stream_sync(weights->device, weights->copies);
        weights->sent = weights->entered = weights->left = weights->sent_at = 0;
        weights->primed = 1;
    }
    weights->pass_end = weights->streamed_layers + (uint64_t)output_count * weights->streamed_tiles;
    (void)fill(weights); /* what fails here is tried again by enter */
}

static int wait_for_stream(pllm_weights *weights)
{
    const pllm_device_ops *ops = weights->device->ops;
    pllm_event *loaded = weights->loaded[weights->entered % weights->ring_count];
    int status = ops->event_query(weights->device, loaded);
    if (status == 0) {
        uint64_t start = ops->now_ns(weights->device);
        status = ops->event_wait(weights->device, loaded, UINT64_MAX);
        weights->wait_ns += ops->now_ns(weights->device) - start;
    }
    return status;
}

int pllm_weights_enter(pllm_weights *weights, uint32_t part)
{
    if (!weights->parts[part].streamed) return PLLM_OK;
    int status = PLLM_OK;
    if (weights->sent == weights->entered) {
        assert(!weights->team); /* others take pieces already */
        status = fill(weights);
        if (weights->sent == weights->entered) return status;
    }
    assert(part_at(weights, weights->sent_at - (weights->sent - weights->entered)) == part);
    if (weights->team) {
        uint64_t start = weights->device->ops->now_ns(weights->device);
        pllm_weights_help(weights, part);
        weights->wait_ns += weights->device->ops->now_ns(weights->device) - start;
    } else {
        status = wait_for_stream(weights);
    }
    if (status < 0) return status;
    pllm_weights_place(weights, part, slot_of(weights, weights->entered++));
    return PLLM_OK;
}

void pllm_weights_leave(pllm_weights *weights, uint32_t part)
{
    if (weights->parts[part].streamed) {
#ifdef PLLM_CHECKS
        memset(slot_of(weights, weights->left), 0xff,
               weights->slot_bytes); /* NaN: a stale read shows */
#endif
        weights->left++;
    }
    (void)fill(weights);
}

void pllm_weights_ahead(pllm_weights *weights)
{
    (void)fill(weights);
}

void pllm_weights_abandon(pllm_weights *weights)
{
    weights->primed = 0;
}

int pllm_weight_ring_open(pllm_weights *weights, pllm_va ring)
{
    const pllm_device_ops *ops = weights->device->ops;
    weights->ring_va = ring;
    weights->order =
        pllm_alloc_array(weights->context, weights->part_count, sizeof *weights->order);
    if (!weights->order)
        return pllm_fail_memory("the order of weights", weights->part_count * 4ull);
    uint32_t count = 0;
    for (uint32_t i = 0; i < weights->part_count; i++) {
        if (!weights->parts[i].streamed) continue;
        weights->order[count++] = i;
        if (i < weights->layer_count)
            weights->streamed_layers++;
        else
            weights->streamed_tiles++;
    }
    if (weights->team) return PLLM_OK;
    int status = ops->stream_open(weights->device, &weights->copies);
    for (uint32_t i = 0; status == PLLM_OK && i < weights->ring_count; i++)
        status = ops->event_open(weights->device, &weights->loaded[i]);
    return status;
}

void pllm_weight_ring_close(pllm_weights *weights)
{
    if (!weights->device) return;
    const pllm_device_ops *ops = weights->device->ops;
    ops->stream_close(weights->device, weights->copies); /* its copies end first */
    for (uint32_t i = 0; i < WEIGHT_RING; i++)
        ops->event_close(weights->device, weights->loaded[i]);
    pllm_free(weights->context, weights->order);
}
