/* store_files.c - pagedllm store put and get: tensors from and to .npy and .safetensors files.
 *
 *     put    file mapped -> header checked whole -> each tensor created (kept), filled, fence 1
 *     get    tensors opened for reading -> sizes known -> header -> bytes -> the file's name
 *
 * Whatever stops a put takes the tensors that it made away again. A get's file appears when it is
 * complete (output.c). Where the CPU sees a tensor's memory bytes are copied once; from a GPU they
 * come through a buffer. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "base/context.h"
#include "cli/store.h"
#include "model/file_map.h"
#include "model/npy.h"
#include "model/safetensors.h"
#include "store/names.h"

enum { STEP_BYTES = 8 << 20 }; /* between looks for a signal */

/* Our types as the two formats name them. npy_kind 0: .npy has none. */
static const struct {
    const char *safetensors;
    char npy_kind;
} types[PLLM_STORE_DTYPES] = {
    [PLLM_STORE_F64] = {"F64", 'f'},      [PLLM_STORE_F32] = {"F32", 'f'},
    [PLLM_STORE_F16] = {"F16", 'f'},      [PLLM_STORE_BF16] = {"BF16", 0},
    [PLLM_STORE_F8E4M3] = {"F8_E4M3", 0}, [PLLM_STORE_F8E5M2] = {"F8_E5M2", 0},
    [PLLM_STORE_I64] = {"I64", 'i'},      [PLLM_STORE_I32] = {"I32", 'i'},
    [PLLM_STORE_I16] = {"I16", 'i'},      [PLLM_STORE_I8] = {"I8", 'i'},
    [PLLM_STORE_U8] = {"U8", 'u'},        [PLLM_STORE_BOOL] = {"BOOL", 'b'},
};

static int ends_with(const char *path, const char *ending)
{
    size_t a = strlen(path), b = strlen(ending);
    return a >= b && strcmp(path + a - b, ending) == 0;
}

/* ---- bytes ---- */

static int interrupted(void)
{
    return cli_interrupted() ? cli_canceled() : PLLM_OK;
}

static int fill(cli_store *store, pllm_store_tensor *tensor, const uint8_t *from)
{
    uint64_t bytes = pllm_store_tensor_bytes(tensor), at = 0;
    uint8_t *to = pllm_store_tensor_data(tensor);
    pllm_stream *stream = NULL;
    int status = to ? PLLM_OK : pllm_stream_open(store->device, NULL, &stream);
    while (status == PLLM_OK && at < bytes) {
        uint64_t step = bytes - at < STEP_BYTES ? bytes - at : STEP_BYTES;
        if (to)
            memcpy(to + at, from + at, step);
        else
            status = pllm_device_write(store->device, stream,
                                       pllm_store_tensor_address(tensor) + at, step, from + at);
        at += step;
        if (status == PLLM_OK) status = interrupted();
    }
    pllm_stream_close(store->device, stream);
    return status;
}

static int write_bytes(cli_output *output, const void *data, uint64_t bytes)
{
    if (fwrite(data, 1, bytes, output->file) == bytes) return PLLM_OK;
    return pllm_fail(PLLM_EIO, errno, "%s cannot be written: %s", output->path, strerror(errno));
}

static int drain(cli_store *store, pllm_store_tensor *tensor, cli_output *output)
{
    uint64_t bytes = pllm_store_tensor_bytes(tensor), at = 0;
    const uint8_t *from = pllm_store_tensor_data(tensor);
    uint8_t *buffer = NULL;
    pllm_stream *stream = NULL;
    int status = PLLM_OK;
    if (!from) {
        buffer = malloc(STEP_BYTES);
        status = buffer ? pllm_stream_open(store->device, NULL, &stream)
                        : pllm_fail_memory("a buffer", STEP_BYTES);
    }
    while (status == PLLM_OK && at < bytes) {
        uint64_t step = bytes - at < STEP_BYTES ? bytes - at : STEP_BYTES;
        if (!from)
            status = pllm_device_read(store->device, stream, pllm_store_tensor_address(tensor) + at,
                                      step, buffer);
        if (status == PLLM_OK) status = write_bytes(output, from ? from + at : buffer, step);
        at += step;
        if (status == PLLM_OK) status = interrupted();
    }
    pllm_stream_close(store->device, stream);
    free(buffer);
    return status;
}

/* ---- put ---- */

typedef struct putting {
    const cli_program *cli;
    cli_store store;
    pllm_store_spec spec; /* of the options; type and shape change */
    char (*made)[PLLM_STORE_NAME_MAX + 1];
    uint32_t made_count;
} putting;

/* Fails before anything is made. */
static int name_make(const putting *p, const char *name, char *whole)
{
    const char *prefix = p->cli->settings->prefix;
    if (!prefix) prefix = "";
    size_t bytes = strlen(prefix) + strlen(name);
    if (bytes > PLLM_STORE_NAME_MAX)
        return pllm_fail(PLLM_EINVAL, 0,
                         "the name %.60s%s, with its prefix, has %zu characters, and %d are the "
                         "most",
                         name, strlen(name) > 60 ? "..." : "", bytes, PLLM_STORE_NAME_MAX);
    memcpy(whole, prefix, strlen(prefix));
    memcpy(whole + strlen(prefix), name, strlen(name) + 1);
    return pllm_store_name_check(whole, bytes);
}

static int put_one(putting *p, const char *name, const uint8_t *data)
{
    pllm_store_tensor *tensor;
    pllm_store *store = p->store.store;
    int status = PLLM_OK;
    if (p->cli->settings->replace) status = pllm_store_delete(store, name);
    if (status == PLLM_ENOTFOUND) status = PLLM_OK;
    if (status == PLLM_OK) status = pllm_store_create(store, name, &p->spec, &tensor);
    if (status == PLLM_ENODEVMEM)
        return pllm_fail(status, 0,
                         "the store has no room for %s: delete tensors, or give its daemon a "
                         "larger --vram-limit",
                         name);
    if (status < 0) return status;
    memcpy(p->made[p->made_count++], name, strlen(name) + 1);
    status = fill(&p->store, tensor, data);
    if (status == PLLM_OK) status = pllm_store_signal(tensor, NULL, 1);
    pllm_error kept = *pllm_last_error();
    int closed = pllm_store_close_tensor(tensor);
    if (status < 0) return cli_fail_again(&kept);
    if (closed == PLLM_OK && p->cli->settings->seal) return pllm_store_seal(store, name);
    return closed;
}

static int put_npy(putting *p, const char *path, const pllm_file_map *map)
{
    char stem[PLLM_STORE_NAME_MAX + 2], name[PLLM_STORE_NAME_MAX + 1];
    pllm_npy npy;
    int status = pllm_npy_parse(path, map->data, map->bytes, &npy);
    if (status < 0) return status;
    uint32_t dtype = 0;
    while (dtype < PLLM_STORE_DTYPES && (types[dtype].npy_kind != npy.kind ||
                                         pllm_store_dtype_bytes(dtype) != npy.element_bytes))
        dtype++;
    if (dtype == PLLM_STORE_DTYPES)
        return pllm_fail(PLLM_EUNSUPPORTED, 0, "%s: the store has no type %c%u", path, npy.kind,
                         npy.element_bytes);
    if (npy.data_bytes == 0)
        return pllm_fail(PLLM_EINVAL, 0,
                         "%s: a dimension of the array is 0; tensors have one element at least",
                         path);
    p->spec.dtype = dtype;
    p->spec.rank = npy.rank;
    memcpy(p->spec.shape, npy.shape, sizeof npy.shape);
    const char *given =
        p->cli->settings->positional_count > 1 ? p->cli->settings->positionals[1] : NULL;
    if (!given) { /* the file's name without folder and ending */
        const char *slash = strrchr(path, '/');
        snprintf(stem, sizeof stem, "%s", slash ? slash + 1 : path);
        char *dot = strrchr(stem, '.');
        if (dot && dot != stem) *dot = '\0';
        given = stem;
    }
    status = name_make(p, given, name);
    if (status < 0 && given == stem) {
        pllm_error kept = *pllm_last_error();
        return pllm_fail(kept.status, kept.native,
                         "%.600s; the name is the file's: give another after it", kept.text);
    }
    return status < 0 ? status : put_one(p, name, map->data + npy.data_offset);
}

static int view_dtype(const char *path, const pllm_safetensors_view *view, uint32_t *dtype_out)
{
    for (uint32_t i = 0; i < PLLM_STORE_DTYPES; i++)
        if (strcmp(types[i].safetensors, view->dtype_name) == 0) {
            *dtype_out = i;
            return PLLM_OK;
        }
    return pllm_fail(PLLM_EUNSUPPORTED, 0,
                     "%s: tensor %.80s is %s, which the store has not: convert it to a signed "
                     "type",
                     path, view->tensor.name, view->dtype_name);
}

/* only NULL: all. make 0: looks whether each could be made, and makes none. */
static int put_views(putting *p, const pllm_safetensors *file, const char *only, int make)
{
    char name[PLLM_STORE_NAME_MAX + 1];
    const char *path = pllm_safetensors_path(file);
    for (uint32_t i = 0; i < pllm_safetensors_count(file); i++) {
        const pllm_safetensors_view *view = pllm_safetensors_at(file, i);
        uint64_t bytes;
        if (only && strcmp(only, view->tensor.name) != 0) continue;
        int status = view_dtype(path, view, &p->spec.dtype);
        if (status == PLLM_OK) status = name_make(p, view->tensor.name, name);
        if (status < 0) return status;
        p->spec.rank = view->tensor.rank;
        for (uint32_t j = 0; j < PLLM_STORE_RANK_MAX; j++)
            p->spec.shape[j] = j < view->tensor.rank ? view->shape[j] : 0;
        status = pllm_store_shape_bytes(p->spec.dtype, p->spec.rank, p->spec.shape, &bytes);
        if (status < 0) {
            pllm_error kept = *pllm_last_error();
            return pllm_fail(status, 0, "%s: tensor %.80s: %.600s", path, view->tensor.name,
                             kept.text);
        }
        if (make) status = put_one(p, name, view->tensor.data);
        if (status < 0) return status;
    }
    return PLLM_OK;
}

static int put_safetensors(putting *p, const char *path)
{
    const pllm_settings *settings = p->cli->settings;
    const char *only = settings->positional_count > 1 ? settings->positionals[1] : NULL;
    pllm_safetensors *file;
    pllm_safetensors_view view;
    int status = pllm_safetensors_open(p->cli->context, path, &file);
    if (status < 0) return status;
    free(p->made);
    p->made = calloc(pllm_safetensors_count(file), sizeof *p->made);
    if (!p->made) status = pllm_fail_memory("names", sizeof *p->made);
    if (status == PLLM_OK && only) status = pllm_safetensors_find(file, only, &view);
    if (status == PLLM_OK) status = put_views(p, file, only, 0);
    if (status == PLLM_OK) status = put_views(p, file, only, 1);
    pllm_safetensors_close(file);
    return status;
}

int store_put(cli_program *cli)
{
    const char *path = cli->settings->positionals[0];
    int npy = ends_with(path, ".npy");
    putting p = {.cli = cli};
    pllm_file_map map = {0};
    if (!npy && !ends_with(path, ".safetensors"))
        return pllm_fail(PLLM_EINVAL, 0, "%s is neither .npy nor .safetensors", path);
    p.made = calloc(1, sizeof *p.made);
    if (!p.made) return pllm_fail_memory("a name", sizeof *p.made);
    int status = cli_store_spec(cli->settings, &p.spec);
    if (status == PLLM_OK && npy) status = pllm_file_map_open(path, &map);
    if (status == PLLM_OK) status = cli_store_open(cli, &p.store);
    if (status == PLLM_OK) status = npy ? put_npy(&p, path, &map) : put_safetensors(&p, path);
    if (status < 0 && p.store.store) {
        pllm_error kept = *pllm_last_error();
        while (p.made_count > 0) (void)pllm_store_delete(p.store.store, p.made[--p.made_count]);
        (void)cli_fail_again(&kept);
    }
    cli_store_close(&p.store);
    pllm_file_map_close(&map);
    free(p.made);
    return status;
}

/* ---- get ---- */

typedef struct got {
    pllm_store_tensor *tensor;
    pllm_store_info info;
    uint64_t begin;   /* in the file's data */
    const char *name; /* in the file */
} got;

static int open_got(cli_store *store, const char *name, got *g)
{
    int status = pllm_store_open_tensor(store->store, name, 0, &g->tensor);
    if (status < 0) return status;
    g->info.struct_bytes = sizeof g->info;
    return pllm_store_tensor_info(g->tensor, &g->info);
}

static int write_npy(cli_store *store, const got *g, const char *path)
{
    uint8_t header[PLLM_NPY_HEADER_BYTES_MAX];
    cli_output output = {0};
    pllm_npy npy = {.kind = types[g->info.dtype].npy_kind,
                    .element_bytes = pllm_store_dtype_bytes(g->info.dtype),
                    .rank = g->info.rank};
    memcpy(npy.shape, g->info.shape, sizeof npy.shape);
    if (!npy.kind)
        return pllm_fail(PLLM_EUNSUPPORTED, 0,
                         "%s is %s, which .npy has not: write to a .safetensors file", g->info.name,
                         pllm_store_dtype_name(g->info.dtype));
    int status = cli_output_open(&output, path);
    if (status == PLLM_OK) status = write_bytes(&output, header, pllm_npy_header(&npy, header));
    if (status == PLLM_OK) status = drain(store, g->tensor, &output);
    if (status == PLLM_OK) return cli_output_finish(&output);
    cli_output_discard(&output);
    return status;
}

/* Larger elements first, so that each tensor is aligned; then by name. */
static int by_alignment(const void *a, const void *b)
{
    const got *left = a, *right = b;
    uint32_t l = pllm_store_dtype_bytes(left->info.dtype),
             r = pllm_store_dtype_bytes(right->info.dtype);
    return l != r ? (l > r ? -1 : 1) : strcmp(left->name, right->name);
}

static char *safetensors_header(const got *all, uint32_t count)
{
    json_t *root = json_object();
    for (uint32_t i = 0; i < count; i++) {
        const pllm_store_info *info = &all[i].info;
        json_t *entry = json_object(), *shape = json_array(), *offsets = json_array();
        for (uint32_t j = 0; j < info->rank; j++)
            json_array_append_new(shape, json_integer((json_int_t)info->shape[j]));
        json_array_append_new(offsets, json_integer((json_int_t)all[i].begin));
        json_array_append_new(offsets, json_integer((json_int_t)(all[i].begin + info->bytes)));
        json_object_set_new(entry, "dtype", json_string(types[info->dtype].safetensors));
        json_object_set_new(entry, "shape", shape);
        json_object_set_new(entry, "data_offsets", offsets);
        json_object_set_new(root, all[i].name, entry);
    }
    char *text = json_object_size(root) == count ? json_dumps(root, JSON_COMPACT) : NULL;
    json_decref(root);
    return text;
}

static int write_safetensors(cli_store *store, got *all, uint32_t count, const char *path)
{
    uint64_t at = 0;
    cli_output output = {0};
    qsort(all, count, sizeof *all, by_alignment);
    for (uint32_t i = 0; i < count; i++) {
        if (i && strcmp(all[i].name, all[i - 1].name) == 0)
            return pllm_fail(PLLM_EINVAL, 0, "%s is named twice", all[i].name);
        all[i].begin = at;
        at += all[i].info.bytes;
    }
    char *text = safetensors_header(all, count);
    if (!text) return pllm_fail_memory("a header", 4096);
    static const char spaces[8] = "       ";
    uint64_t bytes = strlen(text), padded = (bytes + 7) / 8 * 8; /* little-endian, as we run */
    int status = cli_output_open(&output, path);
    if (status == PLLM_OK) status = write_bytes(&output, &padded, sizeof padded);
    if (status == PLLM_OK) status = write_bytes(&output, text, bytes);
    if (status == PLLM_OK) status = write_bytes(&output, spaces, padded - bytes);
    for (uint32_t i = 0; i < count && status == PLLM_OK; i++)
        status = drain(store, all[i].tensor, &output);
    free(text);
    if (status == PLLM_OK) return cli_output_finish(&output);
    cli_output_discard(&output);
    return status;
}

static int get_all(cli_store *store, got *all, uint32_t count, const char *path)
{
    if (ends_with(path, ".safetensors")) return write_safetensors(store, all, count, path);
    if (count == 1) return write_npy(store, &all[0], path);
    return pllm_fail(PLLM_EINVAL, 0,
                     "a .npy file holds one tensor, and %u are asked for: give a .safetensors file",
                     count);
}

static int check_get(const pllm_settings *settings, const char *path)
{
    if (!ends_with(path, ".npy") && !ends_with(path, ".safetensors") &&
        strcmp(path, "/dev/stdout") != 0)
        return pllm_fail(PLLM_EINVAL, 0, "%s is neither .npy nor .safetensors", path);
    return settings->prefix ? pllm_store_prefix_check(settings->prefix, strlen(settings->prefix))
                            : PLLM_OK;
}

static int get_with(const pllm_settings *settings, cli_store *store, const char *path)
{
    const uint32_t named = settings->positional_count - 1;
    pllm_store_info *rows = NULL;
    got *all = NULL;
    uint64_t count = named, opened = 0;
    int status = PLLM_OK;
    if (settings->prefix) status = cli_store_list(store->store, settings->prefix, &rows, &count);
    if (status == PLLM_OK && count == 0)
        status = pllm_fail(PLLM_ENOTFOUND, 0, "no tensor's name begins with %s", settings->prefix);
    if (status == PLLM_OK) {
        all = calloc(count, sizeof *all);
        if (!all) status = pllm_fail_memory("tensors", count * sizeof *all);
    }
    for (; status == PLLM_OK && opened < count; opened++) {
        const char *name = settings->prefix ? rows[opened].name : settings->positionals[opened];
        size_t cut = settings->prefix ? strlen(settings->prefix) : 0;
        all[opened].name = name[cut] ? name + cut : name;
        status = open_got(store, name, &all[opened]);
    }
    if (status == PLLM_OK) status = get_all(store, all, (uint32_t)count, path);
    pllm_error kept = *pllm_last_error();
    for (uint64_t i = 0; i < opened; i++) (void)pllm_store_close_tensor(all[i].tensor);
    free(all);
    free(rows);
    return status < 0 ? cli_fail_again(&kept) : status;
}

int store_get(cli_program *cli)
{
    const pllm_settings *settings = cli->settings;
    const char *path = settings->positionals[settings->positional_count - 1];
    cli_store store = {0};
    int elsewhere = 0, status = check_get(settings, path);
    if (status == PLLM_OK) status = cli_store_open(cli, &store);
    if (status == PLLM_OK) {
        status = get_with(settings, &store, path);
        elsewhere = status == PLLM_EUNSUPPORTED;
        pllm_error kept = *pllm_last_error();
        cli_store_close(&store);
        if (status < 0) status = cli_fail_again(&kept);
    }
    /* On another device than was taken for granted: on a GPU, then. */
    if (!elsewhere || pllm_settings_given(settings, "device")) return status;
    pllm_error kept = *pllm_last_error();
    if (cli_store_open_on(cli, "cuda", &store) < 0) return cli_fail_again(&kept);
    status = get_with(settings, &store, path);
    kept = *pllm_last_error();
    cli_store_close(&store);
    return status < 0 ? cli_fail_again(&kept) : status;
}
