/* log.c - text and JSON lines. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "base/clock.h"
#include "base/log.h"
#include "base/text.h"

const char *pllm_log_level_name(int level)
{
    static const char *const names[] = {"error", "warn", "info", "debug"};
    return level < 0 ? names[0] : names[level < 3 ? level : 3];
}

/* One character of the message as it goes into the line: returns how many bytes of from it used. */
static size_t escape(const char *from, uint32_t format, char out[8])
{
    size_t bytes = pllm_text_character(from);
    unsigned char c = (unsigned char)*from;
    if (bytes > 1 || (bytes == 1 && (format == PLLM_LOG_TEXT || (c != '"' && c != '\\')))) {
        memcpy(out, from, bytes);
        out[bytes] = '\0';
        return bytes;
    }
    if (bytes == 1) /* a quote or a backslash, in JSON */
        snprintf(out, 8, "\\%c", c);
    else if (c == '\n' && format == PLLM_LOG_JSON)
        memcpy(out, "\\n", 3);
    else if (c < 0x20 && format == PLLM_LOG_JSON)
        snprintf(out, 8, "\\u%04x", c);
    else
        memcpy(out, c < 0x20 ? " " : "?", 2);
    return 1;
}

size_t pllm_log_format(uint32_t format, uint64_t time_ns, int level, const char *message,
                       char *buffer, size_t buffer_bytes)
{
    const char *tail = format == PLLM_LOG_JSON ? "\"}\n" : "\n", *name = pllm_log_level_name(level);
    int head;
    if (format == PLLM_LOG_JSON) {
        time_t seconds = (time_t)(time_ns / 1000000000u);
        struct tm utc = {0};
        char date[32];
        gmtime_r(&seconds, &utc);
        strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S", &utc);
        head =
            snprintf(buffer, buffer_bytes, "{\"time\":\"%s.%03uZ\",\"level\":\"%s\",\"message\":\"",
                     date, (unsigned)(time_ns / 1000000 % 1000), name);
    } else {
        head = snprintf(buffer, buffer_bytes, "pagedllm: %s: ", name);
    }
    size_t used = (size_t)head, room = buffer_bytes - strlen(tail) - 1;
    while (*message) {
        char out[8];
        size_t taken = escape(message, format, out), bytes = strlen(out);
        if (used + bytes > room) break;
        memcpy(buffer + used, out, bytes);
        used += bytes;
        message += taken;
    }
    memcpy(buffer + used, tail, strlen(tail) + 1);
    return used + strlen(tail);
}

void pllm_log_sink_init(pllm_log_sink *sink, int file, uint32_t format)
{
    sink->file = file;
    sink->format = format;
    atomic_init(&sink->lost_count, 0);
}

void pllm_log_sink_write(void *user, int level, const char *message)
{
    pllm_log_sink *sink = user;
    char line[2048];
    size_t bytes = pllm_log_format(sink->format, pllm_clock_of(CLOCK_REALTIME), level, message,
                                   line, sizeof line);
    int kept = errno; /* whoever logs is often about to report it */
    ssize_t wrote;
    do wrote = write(sink->file, line, bytes);
    while (wrote < 0 && errno == EINTR);
    if (wrote != (ssize_t)bytes) atomic_fetch_add(&sink->lost_count, 1);
    errno = kept;
}
