/* policy.h - which resident page goes first: static, lru and 2q as pure functions over arrays.
 *
 * A policy sees accesses, arrivals and departures of pages and names a victim among those that
 * may go; it does no I/O and knows no frames, so that a recorded trace replays through it and can
 * be set beside Belady's optimum (replay.h). */
#ifndef PLLM_PAGER_POLICY_H
#define PLLM_PAGER_POLICY_H

#include "base/context.h"

typedef enum pllm_policy_kind {
    PLLM_POLICY_STATIC,
    PLLM_POLICY_LRU,
    PLLM_POLICY_2Q
} pllm_policy_kind;

#endif
