/* status.c - status names and the thread-local error record. The record is the library's only
 * mutable global, and it belongs to one thread. */
#include <stdio.h>
#include <string.h>
#include "base/context.h"

static _Thread_local pllm_error last_error;

const pllm_error *pllm_last_error(void)
{
    return &last_error;
}

int pllm_fail(int status, int native, const char *format, ...)
{
    /* Formatted aside first: an argument may be the old record's own text. */
    char text[sizeof last_error.text];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (length < 0) text[0] = '\0';
    last_error.status = status;
    last_error.native = native;
    size_t end = length < 0 ? 0 : strlen(text);
    if (length > (int)end) { /* cut: drop a last character that lost its tail */
        size_t start = end - 1;
        while (start > 0 && ((unsigned char)text[start] & 0xc0) == 0x80) start--;
        unsigned char lead = (unsigned char)text[start];
        size_t whole = lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
        if (start + whole > end) end = start;
    }
    for (size_t i = 0; i < end; i++) last_error.text[i] = text[i];
    last_error.text[end] = '\0';
    return status;
}

void pllm_error_clear(void)
{
    last_error = (pllm_error){.status = PLLM_OK};
}

int pllm_fail_memory(const char *what, uint64_t bytes)
{
    return pllm_fail(PLLM_ENOMEM, 0, "out of host memory: %llu bytes for %s",
                     (unsigned long long)bytes, what);
}

const char *pllm_status_name(int status)
{
    static const char *const names[] = {
        "OK",    "EINVAL",    "ENOMEM",       "ENODEVMEM", "EDEVICE",   "EIO",
        "EBUSY", "ENOTFOUND", "EEXIST",       "ESTALE",    "ETIMEDOUT", "ECANCELED",
        "EPERM", "ECORRUPT",  "EUNSUPPORTED", "ELIMIT",
    };
    int count = (int)(sizeof names / sizeof names[0]);
    return status <= 0 && status > -count ? names[-status] : "EUNKNOWN";
}

const char *pllm_version(void)
{
    return PLLM_VERSION;
}
