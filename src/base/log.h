/* log.h - finished log lines, and a ready callback for pllm_context_options.
 *
 *     pllm_log_sink sink;
 *     pllm_log_sink_init(&sink, STDERR_FILENO, settings->log_format);
 *     options.user = &sink; options.log = pllm_log_sink_write; options.log_level = ...
 *
 * A line goes out in one write, so lines of several threads and processes don't mix. A write that
 * fails is counted, and the program goes on. Threads: any. */
#ifndef PLLM_BASE_LOG_H
#define PLLM_BASE_LOG_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <pagedllm/context.h>

/* Values of the option log_format. */
enum { PLLM_LOG_TEXT, PLLM_LOG_JSON };

typedef struct pllm_log_sink {
    int file; /* a descriptor, borrowed */
    uint32_t format;
    atomic_uint_least64_t lost_count; /* lines that could not be written */
} pllm_log_sink;

void pllm_log_sink_init(pllm_log_sink *sink, int file, uint32_t format);
/* The callback: user is a pllm_log_sink. */
void pllm_log_sink_write(void *user, int level, const char *message);

/* "error", "warn", "info" or "debug". */
const char *pllm_log_level_name(int level);

/* One line with its newline into buffer (at least 128 bytes), always ended; returns its length.
 * Text:  pagedllm: warn: message
 * JSON:  {"time":"2025-01-31T12:00:00.123Z","level":"warn","message":"..."}
 * time_ns is wall time since 1970. Newlines and other control characters in message become spaces
 * in text and escapes in JSON; bytes that are not UTF-8 become '?'. What does not fit is cut
 * between characters, and JSON stays whole. */
size_t pllm_log_format(uint32_t format, uint64_t time_ns, int level, const char *message,
                       char *buffer, size_t buffer_bytes);

#endif
