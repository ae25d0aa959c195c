/* queue.h - a bounded queue of pointers between any number of threads (MPMC), without a lock.
 *
 * Each cell carries a turn number that says whose it is: position p may be written when its cell's
 * turn is p, and read when it is p + 1; reading hands it to the writer one lap later. A push or pop
 * is one compare-and-swap; producers and consumers touch different lines. The algorithm is Dmitry
 * Vyukov's bounded MPMC queue.
 *
 * Never waits: full and empty are return values, and lanes that are polled want just that. A thread
 * that is stopped in the middle of a push hides what was pushed after it until it goes on; nothing
 * is lost. Order is first in, first out, by the order of the swaps. */
#ifndef PLLM_BASE_QUEUE_H
#define PLLM_BASE_QUEUE_H

#include <stdbool.h>
#include <stdint.h>
#include "base/context.h"

typedef struct pllm_queue pllm_queue;

/* capacity is rounded up to a power of two, at least 2. Ownership: borrows context; the caller owns
 * *queue_out, and always what is inside. Errors: EINVAL (0 or above 2^30), ENOMEM; then NULL. */
int pllm_queue_open(const pllm_context *context, uint32_t capacity, pllm_queue **queue_out);
void pllm_queue_close(pllm_queue *queue); /* NULL is fine; does not look at the items */

uint32_t pllm_queue_capacity(const pllm_queue *queue);
/* False when full. What the caller wrote before, the one who pops item sees. */
bool pllm_queue_push(pllm_queue *queue, void *item);
/* False when empty. */
bool pllm_queue_pop(pllm_queue *queue, void **item_out);
/* How many are inside, at some moment during the call. */
uint32_t pllm_queue_count(const pllm_queue *queue);

#endif
