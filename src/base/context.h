/* context.h - the inside of a pllm_context: allocation and logging for every module.
 *
 * Every module's open call takes a context first and keeps the pointer. Memory comes zeroed and
 * goes back through the same context. Tests pass a context whose allocator fails at the Nth call.
 * A NULL context stands for the default one (malloc, warnings to stderr). */
#ifndef PLLM_BASE_CONTEXT_H
#define PLLM_BASE_CONTEXT_H

#include <stdarg.h>
#include <stddef.h>
#include <pagedllm/context.h>

struct pllm_context {
    pllm_context_options options; /* every callback filled */
};

/* Fills this thread's error record and returns status. text is one sentence for a person. */
int pllm_fail(int status, int native, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Forgets this thread's last failure, so that what is there afterwards is the next call's. */
void pllm_error_clear(void);
/* ENOMEM with a standard sentence naming what was wanted. */
int pllm_fail_memory(const char *what, uint64_t bytes);

/* Zeroed memory, 64-byte aligned; NULL when there is none or bytes is 0 or count * item_bytes
 * overflows. No error record is written: callers say what they wanted (pllm_fail_memory). */
void *pllm_alloc(const pllm_context *context, uint64_t bytes);
void *pllm_alloc_array(const pllm_context *context, uint64_t count, uint64_t item_bytes);
void pllm_free(const pllm_context *context, void *pointer); /* NULL is fine */
/* A copy of old's first old_bytes in a new allocation of new_bytes; frees old on success only. */
void *pllm_grow(const pllm_context *context, void *old, uint64_t old_bytes, uint64_t new_bytes);
char *pllm_strdup(const pllm_context *context, const char *text);

int pllm_log_enabled(const pllm_context *context, int level);
void pllm_log(const pllm_context *context, int level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
