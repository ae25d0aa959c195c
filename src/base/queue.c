/* queue.c - see the header for the idea.
 *
 *   cells   [turn item] [turn item] ...      position p lives in cell p % capacity
 *   head    next position to pop       tail  next position to push       head <= tail
 *
 * Invariant: a cell's turn is p (free for push p), or p + 1 (holds item p), with p % capacity its
 * index. Positions are 64 bits and never wrap in practice. */
#include <stdatomic.h>
#include "base/queue.h"

enum { LINE_BYTES = 64, CAPACITY_MAX = 1 << 30 };

typedef struct cell {
    atomic_uint_least64_t turn;
    void *item;
} cell;

struct pllm_queue {
    const pllm_context *context;
    uint64_t mask;
    _Alignas(LINE_BYTES) atomic_uint_least64_t tail;
    _Alignas(LINE_BYTES) atomic_uint_least64_t head;
    _Alignas(LINE_BYTES) cell cells[];
};

int pllm_queue_open(const pllm_context *context, uint32_t capacity, pllm_queue **queue_out)
{
    *queue_out = NULL;
    if (capacity == 0 || capacity > CAPACITY_MAX)
        return pllm_fail(PLLM_EINVAL, 0, "a queue's capacity is from 1 to %d, not %u", CAPACITY_MAX,
                         (unsigned)capacity);
    uint64_t cells = 2;
    while (cells < capacity) cells *= 2;
    uint64_t bytes = sizeof(pllm_queue) + cells * sizeof(cell);
    pllm_queue *queue = pllm_alloc(context, bytes);
    if (!queue) return pllm_fail_memory("a queue", bytes);
    queue->context = context;
    queue->mask = cells - 1;
    for (uint64_t i = 0; i < cells; i++) atomic_init(&queue->cells[i].turn, i);
    *queue_out = queue;
    return PLLM_OK;
}

void pllm_queue_close(pllm_queue *queue)
{
    if (queue) pllm_free(queue->context, queue);
}

uint32_t pllm_queue_capacity(const pllm_queue *queue)
{
    return (uint32_t)(queue->mask + 1);
}

/* Claims the position whose cell's turn is position + ahead, advancing *end by one; NULL if the
 * cell is still a lap behind, which is full for a push and empty for a pop. */
static cell *claim(pllm_queue *queue, atomic_uint_least64_t *end, uint64_t ahead,
                   uint64_t *position_out)
{
    uint64_t position = atomic_load_explicit(end, memory_order_relaxed);
    for (;;) {
        cell *c = &queue->cells[position & queue->mask];
        uint64_t turn = atomic_load_explicit(&c->turn, memory_order_acquire);
        int64_t lead = (int64_t)(turn - (position + ahead));
        if (lead < 0) return NULL;
        if (lead > 0) { /* another took it meanwhile */
            position = atomic_load_explicit(end, memory_order_relaxed);
        } else if (atomic_compare_exchange_weak_explicit(
                       end, &position, position + 1, memory_order_relaxed, memory_order_relaxed)) {
            *position_out = position;
            return c;
        }
    }
}

bool pllm_queue_push(pllm_queue *queue, void *item)
{
    uint64_t position;
    cell *c = claim(queue, &queue->tail, 0, &position);
    if (!c) return false;
    c->item = item;
    atomic_store_explicit(&c->turn, position + 1, memory_order_release);
    return true;
}

bool pllm_queue_pop(pllm_queue *queue, void **item_out)
{
    uint64_t position;
    cell *c = claim(queue, &queue->head, 1, &position);
    if (!c) return false;
    *item_out = c->item;
    atomic_store_explicit(&c->turn, position + queue->mask + 1, memory_order_release);
    return true;
}

uint32_t pllm_queue_count(const pllm_queue *queue)
{
    /* head first: it never passes tail, so the difference is not negative. */
    uint64_t head = atomic_load_explicit(&queue->head, memory_order_acquire);
    uint64_t tail = atomic_load_explicit(&queue->tail, memory_order_acquire);
    uint64_t count = tail - head;
    return (uint32_t)(count > queue->mask + 1 ? queue->mask + 1 : count);
}
