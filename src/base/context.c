/* context.c - the allocator and log callbacks behind every module, and their defaults. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/context.h"
#include "base/log.h"

static void *default_allocate(void *user, uint64_t bytes, uint64_t alignment)
{
    (void)user;
    void *pointer = NULL;
    return posix_memalign(&pointer, alignment, bytes) == 0 ? pointer : NULL;
}

static void default_release(void *user, void *pointer)
{
    (void)user;
    free(pointer);
}

static void default_log(void *user, int level, const char *message)
{
    (void)user;
    char line[1200];
    pllm_log_format(PLLM_LOG_TEXT, 0, level, message, line, sizeof line);
    fputs(line, stderr);
}

static const pllm_context default_context = {
    .options = {.struct_bytes = sizeof(pllm_context_options),
                .log_level = PLLM_LOG_WARN,
                .allocate = default_allocate,
                .release = default_release,
                .log = default_log},
};

static const pllm_context_options *callbacks(const pllm_context *context)
{
    return context ? &context->options : &default_context.options;
}

int pllm_context_open(const pllm_context_options *options, pllm_context **context_out)
{
    if (!context_out) return pllm_fail(PLLM_EINVAL, 0, "context_out is NULL");
    *context_out = NULL;
    pllm_context_options chosen = default_context.options;
    if (options) {
        if (options->struct_bytes < sizeof *options)
            return pllm_fail(PLLM_EINVAL, 0, "pllm_context_options.struct_bytes is %u, not %zu",
                             options->struct_bytes, sizeof *options);
        if (!options->allocate != !options->release)
            return pllm_fail(PLLM_EINVAL, 0,
                             "allocate and release are given together or not at all");
        if (options->log_level > PLLM_LOG_DEBUG)
            return pllm_fail(PLLM_EINVAL, 0, "log level %u is not one of 0 to %d",
                             options->log_level, PLLM_LOG_DEBUG);
        chosen.log_level = options->log_level;
        chosen.user = options->user;
        if (options->allocate) {
            chosen.allocate = options->allocate;
            chosen.release = options->release;
        }
        if (options->log) chosen.log = options->log;
    }
    pllm_context *context = chosen.allocate(chosen.user, sizeof *context, 64);
    if (!context) return pllm_fail_memory("a context", sizeof *context);
    context->options = chosen;
    *context_out = context;
    return PLLM_OK;
}

void pllm_context_close(pllm_context *context)
{
    if (context) context->options.release(context->options.user, context);
}

void *pllm_alloc(const pllm_context *context, uint64_t bytes)
{
    if (bytes == 0) return NULL;
    const pllm_context_options *options = callbacks(context);
    void *pointer = options->allocate(options->user, bytes, 64);
    if (pointer) memset(pointer, 0, bytes);
    return pointer;
}

void *pllm_alloc_array(const pllm_context *context, uint64_t count, uint64_t item_bytes)
{
    uint64_t bytes;
    if (__builtin_mul_overflow(count, item_bytes, &bytes)) return NULL;
    return pllm_alloc(context, bytes);
}

void pllm_free(const pllm_context *context, void *pointer)
{
    if (!pointer) return;
    const pllm_context_options *options = callbacks(context);
    options->release(options->user, pointer);
}

void *pllm_grow(const pllm_context *context, void *old, uint64_t old_bytes, uint64_t new_bytes)
{
    void *grown = pllm_alloc(context, new_bytes);
    if (!grown) return NULL;
    if (old) memcpy(grown, old, old_bytes < new_bytes ? old_bytes : new_bytes);
    pllm_free(context, old);
    return grown;
}

char *pllm_strdup(const pllm_context *context, const char *text)
{
    size_t bytes = strlen(text) + 1;
    char *copy = pllm_alloc(context, bytes);
    if (copy) memcpy(copy, text, bytes);
    return copy;
}

int pllm_log_enabled(const pllm_context *context, int level)
{
    return level <= (int)callbacks(context)->log_level;
}

void pllm_log(const pllm_context *context, int level, const char *format, ...)
{
    if (!pllm_log_enabled(context, level)) return;
    const pllm_context_options *options = callbacks(context);
    char message[1024];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    if (length >= 0) options->log(options->user, level, message);
}
