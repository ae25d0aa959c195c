/* shortened.c - a model file that is made shorter while it is mapped ends the program with a
 * sentence.
 *
 * The kernel answers a read beyond the new end with SIGBUS, in the thread that read. There is no
 * way back from there: what was being packed is lost, and the call stack holds locks of ours. So
 * the handler looks whether the file got shorter since the program began, says so, and ends the
 * process; the spill file and unfinished output have no names and go with it. Any other SIGBUS is
 * the kernel's to deal with, as if there were no handler.
 *
 * Threads: the handler runs in the thread at fault, which is in a copy or a kernel of ours and
 * holds nothing of the C library's that printing a line would want. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/log.h"
#include "cli/cli.h"

static struct watched {
    int file; /* by which the file is known, whatever its name becomes */
    off_t bytes;
    const char *path;
    uint32_t log_format;
} watched = {.file = -1};

static void on_bus(int number, siginfo_t *info, void *context)
{
    (void)context;
    struct stat now;
    if (info->si_code != BUS_ADRERR || fstat(watched.file, &now) != 0 ||
        now.st_size >= watched.bytes) {
        signal(number, SIG_DFL); /* and again, when the instruction is tried again */
        return;
    }
    char text[1024];
    snprintf(
        text, sizeof text,
        "%.600s was cut from %lld to %lld bytes while it was in use: copy the model again, and "
        "replace one that is in use by renaming a new file over it",
        watched.path, (long long)watched.bytes, (long long)now.st_size);
    pllm_log_sink sink;
    pllm_log_sink_init(&sink, STDERR_FILENO, watched.log_format);
    pllm_log_sink_write(&sink, PLLM_LOG_ERROR, text);
    _Exit(1);
}

void cli_watch_model(const pllm_settings *settings)
{
    if (settings->positional_count == 0 || watched.file >= 0) return;
    struct stat info;
    int file = open(settings->positionals[0], O_PATH | O_CLOEXEC);
    if (file < 0) return; /* whoever opens it says why */
    if (fstat(file, &info) != 0 || !S_ISREG(info.st_mode)) {
        close(file);
        return;
    }
    watched = (struct watched){file, info.st_size, settings->positionals[0], settings->log_format};
    struct sigaction action = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO};
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, NULL);
}
