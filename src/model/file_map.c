/* file_map.c - open, check that it is a file with something in it, map. The descriptor is closed at
 * once: the mapping keeps the file alive, even when it is deleted. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "model/file_map.h"

static int fail_open(const char *path, int code)
{
    if (code == ENOENT || code == ENOTDIR)
        return pllm_fail(PLLM_ENOTFOUND, code, "%s: there is no such file; check the path", path);
    if (code == EACCES || code == EPERM)
        return pllm_fail(PLLM_EPERM, code, "%s: this user may not read it; check its permissions",
                         path);
    return pllm_fail(PLLM_EIO, code, "%s: cannot be opened: %s", path, strerror(code));
}

int pllm_file_map_open(const char *path, pllm_file_map *map)
{
    *map = (pllm_file_map){0};
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a fifo must not hang us */
    if (descriptor < 0) return fail_open(path, errno);
    int status = PLLM_OK;
    struct stat info;
    if (fstat(descriptor, &info) != 0) {
        status = pllm_fail(PLLM_EIO, errno, "%s: cannot be examined: %s", path, strerror(errno));
    } else if (!S_ISREG(info.st_mode)) {
        status = pllm_fail(PLLM_EINVAL, 0, "%s: is not a regular file", path);
    } else if (info.st_size == 0) {
        status = pllm_fail(PLLM_ECORRUPT, 0, "%s: is empty; fetch it again", path);
    } else {
        void *data = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
        if (data == MAP_FAILED) {
            status = pllm_fail(PLLM_EIO, errno, "%s: its %llu bytes cannot be mapped: %s", path,
                               (unsigned long long)info.st_size, strerror(errno));
        } else {
            map->data = data;
            map->bytes = (uint64_t)info.st_size;
        }
    }
    close(descriptor);
    return status;
}

void pllm_file_map_close(pllm_file_map *map)
{
    if (map->data) munmap((void *)(uintptr_t)map->data, map->bytes);
    *map = (pllm_file_map){0};
}

const char *pllm_printable(char shown[80], const void *text, uint64_t bytes)
{
    const unsigned char *from = text;
    uint32_t kept = bytes < 79 ? (uint32_t)bytes : 79;
    for (uint32_t i = 0; i < kept; i++)
        shown[i] = (from[i] >= 0x20 && from[i] < 0x7f) ? (char)from[i] : '?';
    if (bytes > 79) memset(shown + 76, '.', 3);
    shown[kept] = 0;
    return shown;
}
