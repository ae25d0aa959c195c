/* output.c - files that appear complete or not at all, and JSON on standard output.
 *
 *   O_TMPFILE in the folder -> write -> link as PATH.PID.partial -> rename to PATH
 *
 * A rename replaces what was there in one step; a link cannot, hence both. Where the file system
 * knows no files without a name, the partial name is there from the start. */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/context.h"
#include "base/text.h"
#include "cli/cli.h"

static int fail_write(const cli_output *output, int code)
{
    return pllm_fail(PLLM_EIO, code, "%s cannot be written: %s", output->path, strerror(code));
}

static int open_nameless(const char *path)
{
    char *copy = strdup(path);
    if (!copy) return -1;
    int fd = open(dirname(copy), O_TMPFILE | O_WRONLY | O_CLOEXEC, 0666);
    free(copy);
    return fd;
}

/* 1: there is a file, to be replaced or (direct) written into; 0: there is none; negative errno. */
static int look_at(const char *path, int *direct_out)
{
    struct stat found;
    *direct_out = 0;
    if (stat(path, &found) != 0) return errno == ENOENT ? 0 : -errno;
    if (S_ISDIR(found.st_mode)) return -EISDIR;
    *direct_out = !S_ISREG(found.st_mode);
    return access(path, W_OK) == 0 ? 1 : -errno;
}

static int open_file(cli_output *output, int direct)
{
    int fd;
    if (direct) {
        fd = open(output->path, O_WRONLY | O_CLOEXEC);
    } else {
        if (asprintf(&output->partial, "%s.%ld.partial", output->path, (long)getpid()) < 0) {
            output->partial = NULL;
            return -ENOMEM;
        }
        fd = open_nameless(output->path);
        output->nameless = fd >= 0;
        if (fd < 0) fd = open(output->partial, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    }
    if (fd < 0) return -errno;
    output->file = fdopen(fd, "wb");
    if (output->file) return 0;
    int code = errno;
    close(fd);
    if (output->partial && !output->nameless) unlink(output->partial);
    return -code;
}

int cli_output_open(cli_output *output, const char *path)
{
    *output = (cli_output){0};
    int direct, code = look_at(path, &direct);
    if (code >= 0) {
        output->path = code > 0 && !direct ? realpath(path, NULL) : strdup(path);
        if (!output->path) return pllm_fail_memory("a file's name", strlen(path));
        code = open_file(output, direct);
    }
    if (code >= 0) return PLLM_OK;
    cli_output_discard(output);
    return pllm_fail(PLLM_EIO, -code, "%s cannot be written: %s", path, strerror(-code));
}

/* Returns 0 or errno. */
static int take_name(const cli_output *output)
{
    if (output->nameless) {
        char self[64];
        snprintf(self, sizeof self, "/proc/self/fd/%d", fileno(output->file));
        if (linkat(AT_FDCWD, self, AT_FDCWD, output->partial, AT_SYMLINK_FOLLOW) != 0) return errno;
    }
    if (rename(output->partial, output->path) == 0) return 0;
    int code = errno;
    unlink(output->partial);
    return code;
}

int cli_output_finish(cli_output *output)
{
    int code = 0;
    if (fflush(output->file) != 0 || ferror(output->file)) code = errno ? errno : EIO;
    if (!code && output->partial) code = take_name(output);
    int status = code ? fail_write(output, code) : PLLM_OK;
    if (!code && output->partial) output->nameless = 1; /* it has its name: nothing to take away */
    cli_output_discard(output);
    return status;
}

void cli_output_discard(cli_output *output)
{
    if (output->file) {
        fclose(output->file);
        if (output->partial && !output->nameless) unlink(output->partial);
    }
    free(output->path);
    free(output->partial);
    *output = (cli_output){0};
}

json_t *cli_json_text(const char *text)
{
    char *clean = strdup(text);
    if (!clean) return NULL;
    for (char *at = clean; *at;) {
        size_t bytes = pllm_text_character(at);
        if (bytes == 0) *at = '?';
        at += bytes ? bytes : 1;
    }
    json_t *string = json_string(clean);
    free(clean);
    return string;
}

int cli_print_json(json_t *root)
{
    char *text = root ? json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(root);
    if (!text) return pllm_fail_memory("the report", 4096);
    puts(text);
    free(text);
    return PLLM_OK;
}
