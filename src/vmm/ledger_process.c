/* ledger_process.c - who a process is, and whether it still is: its pid and start time. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "vmm/ledger.h"

enum { STAT_BYTES = 1024 };

/* The content of /proc/PID/stat: how many bytes, 0: no such process, negative: cannot be known. */
static int read_stat(int32_t pid, char *text)
{
    char path[32];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return errno == ENOENT || errno == ESRCH ? 0 : -1;
    ssize_t bytes = read(fd, text, STAT_BYTES - 1);
    int code = errno;
    close(fd);
    if (bytes < 0) return code == ESRCH ? 0 : -1;
    text[bytes] = '\0';
    return (int)bytes;
}

/* The name in field 2 may hold anything, so fields are counted from its last ')': 3 is the state,
 * 20 the number of threads, 22 the start time. A zombie is gone, unless only its first thread is.
 */
int pllm_ledger_process_find(int32_t pid, pllm_ledger_process *process_out)
{
    char text[STAT_BYTES];
    *process_out = (pllm_ledger_process){0};
    if (pid <= 0) return PLLM_ENOTFOUND;
    int bytes = read_stat(pid, text);
    if (bytes < 0) return PLLM_EIO;
    char *at = bytes ? strrchr(text, ')') : NULL, state = 0;
    unsigned long long start = 0, threads = 0;
    if (!at) return PLLM_ENOTFOUND;
    at++;
    for (int field = 3; field <= 22 && *at; field++) {
        while (*at == ' ') at++;
        if (field == 3) state = *at;
        if (field == 20) threads = strtoull(at, NULL, 10);
        if (field == 22) start = strtoull(at, NULL, 10);
        at += strcspn(at, " ");
    }
    if (start == 0 || ((state == 'Z' || state == 'X') && threads <= 1)) return PLLM_ENOTFOUND;
    process_out->pid = pid;
    process_out->start = start;
    process_out->uid = geteuid();
    return PLLM_OK;
}
