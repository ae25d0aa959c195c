/* input.c - files of text and of token ids, and the .npy files that logits are written to.
 *
 * .npy, version 1.0 (NumPy's format description): magic, version, header length, a Python
 * dictionary as text, then the elements. Only what this program exchanges is read: one dimension,
 * C order, little-endian integers. */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/context.h"
#include "cli/cli.h"

static const char npy_magic[] = "\x93NUMPY";

/* Everything that comes from fd; free(). EIO: errno says why. */
static int read_all(int fd, char **text_out, size_t *used_out)
{
    size_t used = 0, room = 1 << 16, got = 0;
    char *text = malloc(room);
    if (!text) return PLLM_ENOMEM;
    for (;;) {
        int status = cli_read(fd, text + used, room - used - 1, &got);
        if (status < 0) {
            int code = errno;
            free(text);
            errno = code;
            return status;
        }
        if (got == 0) break;
        used += got;
        if (used < room - 1) continue;
        char *grown = room > SIZE_MAX / 2 ? NULL : realloc(text, room * 2);
        if (!grown) {
            free(text);
            return PLLM_ENOMEM;
        }
        text = grown;
        room *= 2;
    }
    text[used] = '\0';
    *text_out = text;
    *used_out = used;
    return PLLM_OK;
}

int cli_read_file(const char *path, char **text_out, uint64_t *bytes_out)
{
    *text_out = NULL;
    *bytes_out = 0;
    bool standard = strcmp(path, "-") == 0;
    const char *name = standard ? "standard input" : path;
    int fd = standard ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return pllm_fail(PLLM_ENOTFOUND, errno, "the file %s cannot be opened: %s", name,
                         strerror(errno));
    size_t used = 0;
    int status = read_all(fd, text_out, &used), code = errno;
    if (!standard) close(fd);
    *bytes_out = used;
    if (status == PLLM_ENOMEM) return pllm_fail_memory(name, used);
    if (status == PLLM_EIO)
        return pllm_fail(PLLM_EIO, code, "%s cannot be read: %s", name, strerror(code));
    return status;
}

static int ids_from_json(const char *path, const char *text, uint64_t bytes, uint32_t **ids_out,
                         uint32_t *count_out)
{
    json_error_t error;
    json_t *root = json_loadb(text, bytes, 0, &error);
    if (!root)
        return pllm_fail(PLLM_EINVAL, 0, "%s is neither .npy nor a JSON array: %s", path,
                         error.text);
    size_t count = json_array_size(root);
    int status = !json_is_array(root) || count > UINT32_MAX
                     ? pllm_fail(PLLM_EINVAL, 0,
                                 "%s is not a JSON array of token ids, such as [1, 2, 3]", path)
                     : PLLM_OK;
    uint32_t *ids = status == PLLM_OK ? malloc((count + 1) * sizeof *ids) : NULL;
    if (status == PLLM_OK && !ids) status = pllm_fail_memory("token ids", count * sizeof *ids);
    for (size_t i = 0; status == PLLM_OK && i < count; i++) {
        json_t *item = json_array_get(root, i);
        json_int_t value = json_integer_value(item);
        if (!json_is_integer(item) || value < 0 || value > UINT32_MAX)
            status = pllm_fail(PLLM_EINVAL, 0, "%s: item %zu is no token id", path, i);
        else
            ids[i] = (uint32_t)value;
    }
    json_decref(root);
    if (status < 0) {
        free(ids);
        return status;
    }
    *ids_out = ids;
    *count_out = (uint32_t)count;
    return PLLM_OK;
}

static int ids_from_npy(const char *path, const char *data, uint64_t bytes, uint32_t **ids_out,
                        uint32_t *count_out)
{
    uint64_t header =
        bytes >= 10 ? (uint64_t)(uint8_t)data[8] | (uint64_t)(uint8_t)data[9] << 8 : 0;
    if (bytes < 10 || data[6] != 1 || 10 + header > bytes)
        return pllm_fail(PLLM_EINVAL, 0, "%s is no .npy file of version 1.0", path);
    char *text = strndup(data + 10, header);
    if (!text) return pllm_fail_memory("a .npy header", header);
    const char *descr = strstr(text, "'descr':"), *shape = strstr(text, "'shape':");
    char type[8] = "";
    unsigned long long count = 0;
    char after = 0;
    if (descr) sscanf(descr, "'descr': '%7[^']'", type);
    int one = shape && sscanf(shape, "'shape': (%llu,%c", &count, &after) == 2 && after == ')';
    int c_order = strstr(text, "'fortran_order': False") != NULL;
    free(text);
    uint32_t width = type[0] == '<' && (type[1] == 'i' || type[1] == 'u') && !type[3]
                         ? (uint32_t)(type[2] - '0')
                         : 0;
    if (!one || !c_order || (width != 4 && width != 8))
        return pllm_fail(PLLM_EINVAL, 0,
                         "%s must hold one dimension of little-endian 32- or 64-bit integers",
                         path);
    const char *at = data + 10 + header;
    if (count > UINT32_MAX || (bytes - 10 - header) / width < count)
        return pllm_fail(PLLM_EINVAL, 0, "%s announces %llu ids, but does not hold them", path,
                         count);
    uint32_t *ids = malloc((count + 1) * sizeof *ids);
    if (!ids) return pllm_fail_memory("token ids", count * sizeof *ids);
    for (uint64_t i = 0; i < count; i++) {
        int64_t value = 0;
        memcpy(&value, at + i * width, width);
        if (width == 4 && type[1] == 'i') value = (int32_t)value;
        if (value < 0 || value > UINT32_MAX) {
            free(ids);
            return pllm_fail(PLLM_EINVAL, 0, "%s: item %llu is no token id", path,
                             (unsigned long long)i);
        }
        ids[i] = (uint32_t)value;
    }
    *ids_out = ids;
    *count_out = (uint32_t)count;
    return PLLM_OK;
}

int cli_read_ids(const char *path, uint32_t **ids_out, uint32_t *id_count_out)
{
    *ids_out = NULL;
    *id_count_out = 0;
    char *text;
    uint64_t bytes;
    int status = cli_read_file(path, &text, &bytes);
    if (status < 0) return status;
    if (strcmp(path, "-") == 0) path = "standard input";
    int is_npy = bytes >= 6 && memcmp(text, npy_magic, 6) == 0;
    status = is_npy ? ids_from_npy(path, text, bytes, ids_out, id_count_out)
                    : ids_from_json(path, text, bytes, ids_out, id_count_out);
    free(text);
    return status;
}

int npy_open(npy_writer *writer, const char *path, uint64_t row_count, uint64_t columns)
{
    *writer = (npy_writer){.rows_left = row_count, .columns = columns};
    char header[128];
    int length = snprintf(header, sizeof header,
                          "{'descr': '<f4', 'fortran_order': False, 'shape': (%llu, %llu), }",
                          (unsigned long long)row_count, (unsigned long long)columns);
    int padded = (10 + length + 1 + 63) / 64 * 64 - 10; /* the data begins at a multiple of 64 */
    int status = cli_output_open(&writer->output, path);
    if (status < 0) return status;
    const unsigned char version[4] = {1, 0, (unsigned char)(padded & 255),
                                      (unsigned char)(padded >> 8)};
    FILE *file = writer->output.file; /* its errors are seen at the first row, or at the end */
    fwrite(npy_magic, 1, 6, file);
    fwrite(version, 1, 4, file);
    fprintf(file, "%-*s\n", padded - 1, header);
    return PLLM_OK;
}

int npy_write_row(npy_writer *writer, const float *row)
{
    if (fwrite(row, sizeof *row, writer->columns, writer->output.file) != writer->columns)
        return pllm_fail(PLLM_EIO, errno, "%s cannot be written: %s", writer->output.path,
                         strerror(errno));
    writer->rows_left--;
    return PLLM_OK;
}

int npy_finish(npy_writer *writer)
{
    if (writer->rows_left == 0) return cli_output_finish(&writer->output);
    cli_output_discard(&writer->output);
    return PLLM_EINVAL; /* whoever stopped early has said why */
}
