/* context.h - the allocator and the log that a part of the library uses, fixed when it opens.
 *
 * Threads: a context may be shared; both callbacks must then be safe from many threads. Objects
 * opened with a context borrow it: it must outlive them. */
#ifndef PAGEDLLM_CONTEXT_H
#define PAGEDLLM_CONTEXT_H

#include "status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct pllm_context pllm_context; /* opaque */

typedef enum pllm_log_level {
    PLLM_LOG_ERROR = 0,
    PLLM_LOG_WARN = 1,
    PLLM_LOG_INFO = 2,
    PLLM_LOG_DEBUG = 3,
} pllm_log_level;

typedef struct pllm_context_options {
    uint32_t struct_bytes; /* sizeof(pllm_context_options) */
    uint32_t log_level;    /* a pllm_log_level: messages above it are dropped before formatting */
    void *user;            /* passed to every callback */
    /* Host metadata. alignment is a power of two; NULL means out of memory. Both or neither. */
    void *(*allocate)(void *user, uint64_t bytes, uint64_t alignment);
    void (*release)(void *user, void *pointer);
    /* One finished message, no newline. NULL: written to stderr as text. */
    void (*log)(void *user, int level, const char *message);
} pllm_context_options;

/* options may be NULL: malloc and free, warnings to stderr.
 * Ownership: caller owns *context_out. Errors: EINVAL, ENOMEM; then *context_out is NULL. */
PLLM_API int pllm_context_open(const pllm_context_options *options, pllm_context **context_out);
PLLM_API void pllm_context_close(pllm_context *context); /* NULL is fine */

#ifdef __cplusplus
}
#endif
#endif
