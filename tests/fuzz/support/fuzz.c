/* fuzz.c - helpers of fuzz targets. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include <pagedllm/status.h>
#include "fuzz.h"

void fuzz_check_failed(const char *condition, const char *file, int line)
{
    fprintf(stderr, "%s:%d: does not hold: %s\n", file, line, condition);
    abort();
}

const char *fuzz_file(const uint8_t *data, size_t size)
{
    static int file = -1;
    static char path[64];
    if (file >= 0) close(file);
    file = memfd_create("fuzz", MFD_CLOEXEC);
    FUZZ_CHECK(file >= 0);
    for (size_t at = 0; at < size;) {
        ssize_t wrote = write(file, data + at, size - at);
        FUZZ_CHECK(wrote > 0);
        at += (size_t)wrote;
    }
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    return path;
}

int fuzz_refusal_is_clear(int status)
{
    if (status == PLLM_OK) return 1;
    FUZZ_CHECK(status < 0);
    FUZZ_CHECK(pllm_last_error()->status == status);
    FUZZ_CHECK(pllm_last_error()->text[0] != '\0');
    return 0;
}
