/* pool.h - pools inside the library: <pagedllm/pool.h>, on a budget that others share. */
#ifndef PLLM_POOL_POOL_H
#define PLLM_POOL_POOL_H

#include <pagedllm/pool.h>
#include "vmm/budget.h"

/* As pllm_pool_open, but the memory is charged to a member, joined under name, of a budget
 * (borrowed, outlives the pool); options->limit_bytes is that member's. */
int pllm_pool_open_in(const pllm_context *context, pllm_device *device, pllm_budget *budget,
                      const char *name, const pllm_pool_options *options, pllm_pool **pool_out);
/* Asserts the invariants that pool_internal.h lists. */
void pllm_pool_check(pllm_pool *pool);

#endif
