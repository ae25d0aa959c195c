/* safetensors.c - the header, then a check that the tensors tile
 * the data exactly. Elements must be aligned to their size in memory, which every current writer
 * sees to; the mapping starts on a page, so file alignment is memory alignment. */
#include <stdlib.h>
#include <string.h>
#include "model/file_map.h"
#include "model/json.h"
#include "model/safetensors.h"
#include "model/text_index.h"

#define HEADER_BYTES_MAX 100000000u /* the limit the format's own reader sets */
#define TENSOR_COUNT_MAX 1000000u
#define NAME_BYTES_MAX 4095u

struct pllm_safetensors {
    const pllm_context *context;
    char *path, *names;
    pllm_file_map map; /* empty for pllm_safetensors_parse */
    const uint8_t *data;
    uint64_t bytes, header_bytes; /* header_bytes with its length word */
    pllm_safetensors_view *views; /* by data offset */
    uint32_t count;
    pllm_text_index index;
};

static const struct {
    const char *name;
    uint32_t bytes;
    pllm_dtype dtype;
} dtypes[] = {
    {"F32", 4, PLLM_F32},          {"F16", 2, PLLM_F16},          {"BF16", 2, PLLM_BF16},
    {"F8_E4M3", 1, PLLM_FP8_E4M3}, {"F8_E5M2", 1, PLLM_FP8_E5M2}, {"F64", 8, PLLM_DTYPE_COUNT},
    {"I64", 8, PLLM_DTYPE_COUNT},  {"U64", 8, PLLM_DTYPE_COUNT},  {"I32", 4, PLLM_DTYPE_COUNT},
    {"U32", 4, PLLM_DTYPE_COUNT},  {"I16", 2, PLLM_DTYPE_COUNT},  {"U16", 2, PLLM_DTYPE_COUNT},
    {"I8", 1, PLLM_DTYPE_COUNT},   {"U8", 1, PLLM_DTYPE_COUNT},   {"BOOL", 1, PLLM_DTYPE_COUNT},
};

static int parse_dtype(const char *file, const char *shown, const pllm_json_node *entry,
                       pllm_safetensors_view *view)
{
    const char *name = pllm_json_text(pllm_json_member(entry, "dtype"));
    if (!name)
        return pllm_fail(PLLM_ECORRUPT, 0, "%s: tensor %s has no dtype in the header", file, shown);
    for (uint32_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++)
        if (strcmp(name, dtypes[i].name) == 0) {
            view->dtype_name = dtypes[i].name;
            view->element_bytes = dtypes[i].bytes;
            view->tensor.dtype = dtypes[i].dtype;
            return PLLM_OK;
        }
    char wrong[80];
    return pllm_fail(PLLM_EUNSUPPORTED, 0,
                     "%s: tensor %s has dtype %s, which is not known here; save it as F32, F16 or "
                     "BF16",
                     file, shown, pllm_printable(wrong, name, strlen(name)));
}

static int parse_shape(const char *file, const char *shown, const pllm_json_node *entry,
                       pllm_safetensors_view *view)
{
    const pllm_json_node *shape = pllm_json_member(entry, "shape");
    uint32_t rank = shape && shape->kind == PLLM_JSON_ARRAY ? shape->count : UINT32_MAX;
    if (rank > PLLM_SAFETENSORS_RANK_MAX)
        return pllm_fail(PLLM_EUNSUPPORTED, 0,
                         "%s: tensor %s has no shape, or one of more than %d dimensions", file,
                         shown, PLLM_SAFETENSORS_RANK_MAX);
    uint64_t bytes = view->element_bytes;
    view->tensor.rank = rank;
    for (uint32_t i = 0; i < PLLM_SAFETENSORS_RANK_MAX; i++) {
        const pllm_json_node *dim = i < rank ? pllm_json_at(shape, i) : NULL;
        int64_t size = dim ? dim->integer : 1;
        if ((dim && dim->kind != PLLM_JSON_INTEGER) || size < 0 ||
            __builtin_mul_overflow(bytes, (uint64_t)size, &bytes))
            return pllm_fail(PLLM_ECORRUPT, 0,
                             "%s: tensor %s has a dimension %u that is no size, or its shape "
                             "overflows",
                             file, shown, i);
        view->shape[i] = (uint64_t)size;
        if (i < 4) view->tensor.shape[i] = (uint64_t)size;
    }
    view->tensor.bytes = bytes;
    return PLLM_OK;
}

static int parse_offsets(const pllm_safetensors *self, const char *shown,
                         const pllm_json_node *entry, pllm_safetensors_view *view)
{
    const pllm_json_node *offsets = pllm_json_member(entry, "data_offsets");
    const pllm_json_node *first = pllm_json_at(offsets, 0), *last = pllm_json_at(offsets, 1);
    int valid = first && last && offsets->kind == PLLM_JSON_ARRAY && offsets->count == 2 &&
                first->kind == PLLM_JSON_INTEGER && last->kind == PLLM_JSON_INTEGER;
    int64_t begin = valid ? first->integer : -1, end = valid ? last->integer : -1;
    if (begin < 0 || end < begin)
        return pllm_fail(PLLM_ECORRUPT, 0, "%s: tensor %s has no valid pair of data_offsets",
                         self->path, shown);
    uint64_t room = self->bytes - self->header_bytes;
    if ((uint64_t)end > room)
        return pllm_fail(PLLM_ECORRUPT, 0,
                         "%s: truncated: tensor %s ends at byte %lld of the data and the file "
                         "holds %llu; fetch it again",
                         self->path, shown, (long long)end, (unsigned long long)room);
    if ((uint64_t)(end - begin) != view->tensor.bytes)
        return pllm_fail(
            PLLM_ECORRUPT, 0, "%s: tensor %s spans %lld bytes and its shape and dtype need %llu",
            self->path, shown, (long long)(end - begin), (unsigned long long)view->tensor.bytes);
    view->tensor.file_offset = self->header_bytes + (uint64_t)begin;
    view->tensor.data = self->data + view->tensor.file_offset;
    if (view->tensor.file_offset % view->element_bytes)
        return pllm_fail(PLLM_EUNSUPPORTED, 0,
                         "%s: tensor %s starts at byte %llu, not a multiple of its %u-byte "
                         "elements; save the file again with a current safetensors library",
                         self->path, shown, (unsigned long long)view->tensor.file_offset,
                         view->element_bytes);
    return PLLM_OK;
}

static int parse_entry(pllm_safetensors *self, const pllm_json_node *entry,
                       pllm_safetensors_view *view, char **names)
{
    char shown[80];
    const char *name = entry->key;
    size_t name_bytes = strlen(name);
    pllm_printable(shown, name, name_bytes);
    if (name_bytes == 0 || name_bytes > NAME_BYTES_MAX || entry->kind != PLLM_JSON_OBJECT)
        return pllm_fail(PLLM_ECORRUPT, 0,
                         "%s: header entry \"%s\" is no tensor: its name has 1 to %u bytes and its "
                         "value is an object",
                         self->path, shown, NAME_BYTES_MAX);
    memcpy(*names, name, name_bytes + 1);
    view->tensor.name = *names;
    *names += name_bytes + 1;
    int status = parse_dtype(self->path, shown, entry, view);
    if (status < 0) return status;
    status = parse_shape(self->path, shown, entry, view);
    if (status < 0) return status;
    return parse_offsets(self, shown, entry, view);
}

static int compare_views(const void *left, const void *right)
{
    const pllm_tensor_view *a = &((const pllm_safetensors_view *)left)->tensor;
    const pllm_tensor_view *b = &((const pllm_safetensors_view *)right)->tensor;
    if (a->file_offset != b->file_offset) return a->file_offset < b->file_offset ? -1 : 1;
    if (a->bytes != b->bytes) return a->bytes < b->bytes ? -1 : 1; /* empty ones first */
    return strcmp(a->name, b->name);
}

static int check_cover(const pllm_safetensors *self)
{
    char shown[80];
    uint64_t used = self->header_bytes;
    for (uint32_t i = 0; i < self->count; i++) {
        const pllm_tensor_view *tensor = &self->views[i].tensor;
        if (tensor->file_offset != used)
            return pllm_fail(PLLM_ECORRUPT, 0,
                             "%s: tensor %s starts at byte %llu and the one before it ends at "
                             "%llu: %s",
                             self->path, pllm_printable(shown, tensor->name, strlen(tensor->name)),
                             (unsigned long long)tensor->file_offset, (unsigned long long)used,
                             tensor->file_offset < used ? "they overlap" : "there is a hole");
        used += tensor->bytes;
    }
    if (used != self->bytes)
        return pllm_fail(PLLM_ECORRUPT, 0,
                         "%s: %llu bytes at the end belong to no tensor; fetch the file again",
                         self->path, (unsigned long long)(self->bytes - used));
    return PLLM_OK;
}

static const char *view_name_at(const void *owner, uint32_t number, uint64_t *bytes_out)
{
    const pllm_safetensors_view *views = owner;
    *bytes_out = strlen(views[number].tensor.name);
    return views[number].tensor.name;
}

static int is_metadata(const pllm_json_node *entry)
{
    return strcmp(entry->key, "__metadata__") == 0;
}

static int parse_header(pllm_safetensors *self, const pllm_json_node *root)
{
    uint64_t names_bytes = 0;
    const pllm_json_node *entry = root + 1;
    for (uint32_t i = 0; i < root->count; i++, entry += entry->span) {
        if (is_metadata(entry)) continue;
        names_bytes += strlen(entry->key) + 1;
        self->count++;
    }
    if (self->count == 0 || self->count > TENSOR_COUNT_MAX)
        return pllm_fail(PLLM_ECORRUPT, 0, "%s: holds %u tensors; 1 to %u are read", self->path,
                         self->count, TENSOR_COUNT_MAX);
    self->views = pllm_alloc_array(self->context, self->count, sizeof *self->views);
    if (!self->views) return pllm_fail_memory("a tensor table", self->count * sizeof *self->views);
    self->names = pllm_alloc(self->context, names_bytes);
    if (!self->names) return pllm_fail_memory("tensor names", names_bytes);
    char *names = self->names;
    pllm_safetensors_view *view = self->views;
    entry = root + 1;
    for (uint32_t i = 0; i < root->count; i++, entry += entry->span) {
        if (is_metadata(entry)) continue;
        int status = parse_entry(self, entry, view++, &names);
        if (status < 0) return status;
    }
    qsort(self->views, self->count, sizeof *self->views, compare_views);
    int status = check_cover(self);
    if (status < 0) return status;
    status =
        pllm_text_index_init(self->context, &self->index, self->count, view_name_at, self->views);
    for (uint32_t i = 0; status == PLLM_OK && i < self->count; i++)
        pllm_text_index_add(&self->index, i);
    return status;
}

static int parse(pllm_safetensors *self)
{
    uint64_t text_bytes = 0;
    if (self->bytes >= 8) memcpy(&text_bytes, self->data, 8);
    if (self->bytes < 8 || text_bytes > self->bytes - 8 || text_bytes > HEADER_BYTES_MAX)
        return pllm_fail(PLLM_ECORRUPT, 0,
                         "%s: is no safetensors file, or truncated: it claims a header of %llu "
                         "bytes, the file has %llu and the limit is %u",
                         self->path, (unsigned long long)text_bytes,
                         (unsigned long long)self->bytes, HEADER_BYTES_MAX);
    self->header_bytes = 8 + text_bytes;
    pllm_json json;
    int status = pllm_json_parse(self->context, self->path, self->data + 8, text_bytes, &json);
    if (status < 0) return status;
    status = parse_header(self, json.nodes);
    pllm_json_deinit(&json);
    return status;
}

static int create(const pllm_context *context, const char *path, pllm_safetensors **out)
{
    *out = pllm_alloc(context, sizeof **out);
    if (!*out) return pllm_fail_memory("a safetensors file", sizeof **out);
    (*out)->context = context;
    (*out)->path = pllm_strdup(context, path);
    if ((*out)->path) return PLLM_OK;
    pllm_free(context, *out);
    *out = NULL;
    return pllm_fail_memory("a path", strlen(path) + 1);
}

int pllm_safetensors_parse(const pllm_context *context, const char *file, const uint8_t *data,
                           uint64_t bytes, pllm_safetensors **out)
{
    int status = create(context, file, out);
    if (status < 0) return status;
    (*out)->data = data;
    (*out)->bytes = bytes;
    status = parse(*out);
    if (status == PLLM_OK) return PLLM_OK;
    pllm_safetensors_close(*out);
    *out = NULL;
    return status;
}

int pllm_safetensors_open(const pllm_context *context, const char *path, pllm_safetensors **out)
{
    int status = create(context, path, out);
    if (status < 0) return status;
    pllm_safetensors *self = *out;
    status = pllm_file_map_open(path, &self->map);
    if (status < 0) goto fail;
    self->data = self->map.data;
    self->bytes = self->map.bytes;
    status = parse(self);
    if (status < 0) goto fail;
    return PLLM_OK;
fail:
    pllm_safetensors_close(self);
    *out = NULL;
    return status;
}

void pllm_safetensors_close(pllm_safetensors *self)
{
    if (!self) return;
    pllm_text_index_deinit(self->context, &self->index);
    pllm_free(self->context, self->names);
    pllm_free(self->context, self->views);
    pllm_file_map_close(&self->map);
    pllm_free(self->context, self->path);
    pllm_free(self->context, self);
}

const pllm_safetensors_view *pllm_safetensors_peek(const pllm_safetensors *self, const char *name)
{
    uint32_t number = pllm_text_index_find(&self->index, name, strlen(name));
    return number == PLLM_TEXT_NONE ? NULL : &self->views[number];
}

int pllm_safetensors_find(const pllm_safetensors *self, const char *name,
                          pllm_safetensors_view *view_out)
{
    const pllm_safetensors_view *view = pllm_safetensors_peek(self, name);
    if (!view) return pllm_fail(PLLM_ENOTFOUND, 0, "%s: has no tensor %s", self->path, name);
    *view_out = *view;
    return PLLM_OK;
}

uint32_t pllm_safetensors_count(const pllm_safetensors *self)
{
    return self->count;
}

const pllm_safetensors_view *pllm_safetensors_at(const pllm_safetensors *self, uint32_t index)
{
    return &self->views[index];
}

const char *pllm_safetensors_path(const pllm_safetensors *self)
{
    return self->path;
}

const uint8_t *pllm_safetensors_map(const pllm_safetensors *file, uint64_t *bytes_out)
{
    *bytes_out = file->map.bytes;
    return file->map.data;
}

const uint8_t *pllm_safetensors_header(const pllm_safetensors *self, uint64_t *bytes_out)
{
    *bytes_out = self->header_bytes;
    return self->data;
}
