/* model.c - finds the files, binds names to tensors, and holds every shape to the hyperparameters.
 *
 * A tensor that the file has and the family does not use is refused: it is a bias, a rope table or
 * a norm that the arithmetic would leave out. Exceptions are values that are computed anyway
 * (rotary_emb.inv_freq) and an output matrix beside tie_word_embeddings. */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>
#include "model/config.h"
#include "model/json.h"
#include "model/model_internal.h"

#define SHARD_MAX 4096u
#define CONFIG_BYTES_MAX (16u << 20)

const pllm_model_shape *pllm_model_shape_of(const pllm_model *model)
{
    return &model->shape;
}
const pllm_layer_tensors *pllm_model_layer(const pllm_model *model, uint32_t layer)
{
    return layer < model->shape.layer_count ? &model->layers[layer] : NULL;
}
const pllm_tensor_view *pllm_model_embedding(const pllm_model *model)
{
    return &model->embedding;
}
const pllm_tensor_view *pllm_model_output_norm(const pllm_model *model)
{
    return &model->output_norm;
}
const pllm_tensor_view *pllm_model_output(const pllm_model *model)
{
    return &model->output;
}
const char *pllm_model_path(const pllm_model *model)
{
    return model->path;
}
uint64_t pllm_model_bytes(const pllm_model *model)
{
    return model->bytes;
}
uint64_t pllm_model_fingerprint(const pllm_model *model)
{
    return model->fingerprint;
}
const pllm_gguf *pllm_model_gguf(const pllm_model *model)
{
    return model->is_gguf ? &model->gguf : NULL;
}
const pllm_context *pllm_model_context(const pllm_model *model)
{
    return model->context;
}

static int drop_if_inside(const uint8_t *map, uint64_t map_bytes, const void *data)
{
    uintptr_t at = (uintptr_t)data, first = (uintptr_t)map;
    if (!map || at < first || at - first >= map_bytes) return 0;
    (void)madvise((void *)first, map_bytes, MADV_DONTNEED); /* maps begin at a page */
    return 1;
}

void pllm_model_drop(const pllm_model *model, const void *data)
{
    if (!data) return; /* random weights lie nowhere */
    if (drop_if_inside(model->map.data, model->map.bytes, data)) return;
    for (uint32_t i = 0; i < model->shard_count; i++) {
        uint64_t bytes;
        const uint8_t *map = pllm_safetensors_map(model->shards[i], &bytes);
        if (drop_if_inside(map, bytes, data)) return;
    }
}

/* ---- binding -------------------------------------------------------------------------------- */

/* NULL when absent. A safetensors tensor of an integer type counts as there; its dtype is then
 * refused by bind. */
static const pllm_tensor_view *find_tensor(const pllm_model *model, const char *name)
{
    if (model->is_gguf) return pllm_gguf_tensor(&model->gguf, name);
    for (uint32_t i = 0; i < model->shard_count; i++) {
        const pllm_safetensors_view *view = pllm_safetensors_peek(model->shards[i], name);
        if (view) return &view->tensor;
    }
    return NULL;
}

static int bind_named(pllm_model *model, const char *name, uint64_t rows, uint64_t columns,
                      pllm_tensor_view *into)
{
    uint32_t rank = columns ? 2 : 1; /* columns 0: a vector */
    const pllm_tensor_view *found = find_tensor(model, name);
    if (!found)
        return pllm_fail(PLLM_ECORRUPT, 0, "%s: tensor %s is missing; fetch the model again",
                         model->path, name);
    int plain = found->dtype <= PLLM_BF16, block = found->dtype <= PLLM_Q4_1;
    if (rank == 1 ? !plain : !block)
        return pllm_fail(
            PLLM_EUNSUPPORTED, 0, "%s: tensor %s is stored as %s; %s are read: convert the model",
            model->path, name,
            found->dtype == PLLM_DTYPE_COUNT ? "integers" : pllm_dtype_name(found->dtype),
            rank == 1 ? "F32, F16 and BF16" : "F32, F16, BF16, Q8_0, Q4_0 and Q4_1");
    if (found->rank != rank || found->shape[0] != rows || (rank == 2 && found->shape[1] != columns))
        return pllm_fail(PLLM_ECORRUPT, 0,
                         "%s: tensor %s has shape [%llu, %llu] (rank %u); the hyperparameters need "
                         "[%llu, %llu] (rank %u)",
                         model->path, name, (unsigned long long)found->shape[0],
                         (unsigned long long)found->shape[1], found->rank, (unsigned long long)rows,
                         (unsigned long long)(columns ? columns : 1), rank);
    *into = *found;
    model->bytes += found->bytes;
    return PLLM_OK;
}

static int bind_layer(pllm_model *model, const pllm_tensor_names *names, uint32_t layer)
{
    const pllm_model_shape *shape = &model->shape;
    pllm_layer_tensors *into = &model->layers[layer];
    uint64_t width = shape->width, ffn = shape->ffn_width;
    uint64_t q_rows = (uint64_t)shape->head_count * shape->head_dim;
    uint64_t kv_rows = (uint64_t)shape->kv_head_count * shape->head_dim;
    const struct {
        const char *format;
        uint64_t rows, columns;
        pllm_tensor_view *into;
    } wanted[] = {
        {names->attention_norm, width, 0, &into->attention_norm},
        {names->q, q_rows, width, &into->q},
        {names->k, kv_rows, width, &into->k},
        {names->v, kv_rows, width, &into->v},
        {names->o, width, q_rows, &into->o},
        {names->ffn_norm, width, 0, &into->ffn_norm},
        {names->gate, ffn, width, &into->gate},
        {names->up, ffn, width, &into->up},
        {names->down, width, ffn, &into->down},
    };
    for (uint32_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        char name[128];
        const char *mark = strstr(wanted[i].format, "%u"); /* the table's own formats */
        snprintf(name, sizeof name, "%.*s%u%s", (int)(mark - wanted[i].format), wanted[i].format,
                 layer, mark + 2);
        int status = bind_named(model, name, wanted[i].rows, wanted[i].columns, wanted[i].into);
        if (status < 0) return status;
    }
    return PLLM_OK;
}

static const pllm_tensor_names *names_of(const pllm_model *model)
{
    return model->is_gguf ? &model->shape.family->gguf : &model->shape.family->safetensors;
}

static uint64_t bound_count(const pllm_model *model)
{
    return (uint64_t)model->shape.layer_count * 9 + 2 + !model->shape.tied_output;
}

/* Is this address one of the bound views? Used only once counts differ, to name the stranger. */
static int is_bound(const pllm_model *model, const pllm_tensor_view *tensor)
{
    const void *data = tensor->data;
    if (data == model->embedding.data || data == model->output_norm.data ||
        data == model->output.data)
        return 1;
    for (uint32_t i = 0; i < model->shape.layer_count; i++) {
        const pllm_layer_tensors *layer = &model->layers[i];
        const pllm_tensor_view *views = &layer->attention_norm;
        for (uint32_t j = 0; j < sizeof *layer / sizeof *views; j++)
            if (views[j].data == data) return 1;
    }
    return 0;
}

static int ends_with(const char *text, const char *end)
{
    size_t length = strlen(text), end_length = strlen(end);
    return length >= end_length && strcmp(text + length - end_length, end) == 0;
}

static int check_stranger(const pllm_model *model, const pllm_tensor_view *tensor)
{
    const pllm_tensor_names *names = names_of(model);
    char shown[80];
    if (is_bound(model, tensor) || ends_with(tensor->name, ".rotary_emb.inv_freq")) return PLLM_OK;
    if (model->shape.tied_output && strcmp(tensor->name, names->output) == 0) return PLLM_OK;
    if (names->rope_factors && strcmp(tensor->name, names->rope_factors) == 0) return PLLM_OK;
    return pllm_fail(PLLM_EUNSUPPORTED, 0,
                     "%s: carries tensor %s, which the %s family as known here does not use; "
                     "leaving it out would give wrong results",
                     model->path, pllm_printable(shown, tensor->name, strlen(tensor->name)),
                     model->shape.family->name);
}

static int check_strangers(const pllm_model *model)
{
    uint64_t count = 0;
    if (model->is_gguf) count = model->gguf.tensor_count;
    for (uint32_t i = 0; i < model->shard_count; i++)
        count += pllm_safetensors_count(model->shards[i]);
    if (count == bound_count(model)) return PLLM_OK;
    for (uint32_t i = 0; i < model->gguf.tensor_count; i++) {
        int status = check_stranger(model, &model->gguf.tensors[i]);
        if (status < 0) return status;
    }
    for (uint32_t i = 0; i < model->shard_count; i++)
        for (uint32_t j = 0; j < pllm_safetensors_count(model->shards[i]); j++) {
            const pllm_safetensors_view *view = pllm_safetensors_at(model->shards[i], j);
            int status = check_stranger(model, &view->tensor);
            if (status < 0) return status;
        }
    return PLLM_OK;
}

/* Each part is hashed with the hash so far as its seed. */
static void mix(uint64_t *hash, const void *data, uint64_t bytes)
{
    *hash = XXH3_64bits_withSeed(data, bytes, *hash);
}

static void mix_head(uint64_t *hash, const pllm_tensor_view *tensor)
{
    mix(hash, tensor->data, tensor->bytes < 64 ? tensor->bytes : 64);
}

static void take_fingerprint(pllm_model *model)
{
    uint64_t *hash = &model->fingerprint;
    if (model->is_gguf)
        mix(hash, model->gguf.base, model->gguf.data_start);
    else
        mix(hash, model->map.data, model->map.bytes);
    for (uint32_t i = 0; i < model->shard_count; i++) {
        uint64_t bytes;
        const uint8_t *header = pllm_safetensors_header(model->shards[i], &bytes);
        mix(hash, header, bytes);
    }
    for (uint32_t i = 0; i < model->shape.layer_count; i++) {
        const pllm_tensor_view *views = &model->layers[i].attention_norm;
        for (uint32_t j = 0; j < sizeof model->layers[i] / sizeof *views; j++)
            mix_head(hash, &views[j]);
    }
    mix_head(hash, &model->embedding);
    mix_head(hash, &model->output_norm);
    mix_head(hash, &model->output);
}

static int bind_all(pllm_model *model)
{
    pllm_model_shape *shape = &model->shape;
    const pllm_tensor_names *names = names_of(model);
    if (model->is_gguf) {
        const pllm_tensor_view *embedding = find_tensor(model, names->embedding);
        if (embedding && shape->vocab_size == 0 && embedding->shape[0] < (1u << 24))
            shape->vocab_size = (uint32_t)embedding->shape[0];
        shape->tied_output = !find_tensor(model, names->output);
    }
    uint64_t layer_bytes = shape->layer_count * sizeof *model->layers;
    model->layers = pllm_alloc(model->context, layer_bytes);
    if (!model->layers) return pllm_fail_memory("layer tables", layer_bytes);
    int status =
        bind_named(model, names->embedding, shape->vocab_size, shape->width, &model->embedding);
    if (status < 0) return status;
    for (uint32_t i = 0; i < shape->layer_count; i++)
        if ((status = bind_layer(model, names, i)) < 0) return status;
    status = bind_named(model, names->output_norm, shape->width, 0, &model->output_norm);
    if (status < 0) return status;
    if (shape->tied_output)
        model->output = model->embedding;
    else
        status = bind_named(model, names->output, shape->vocab_size, shape->width, &model->output);
    if (status < 0) return status;
    status = check_strangers(model);
    if (status < 0) return status;
    const pllm_tensor_view *factors =
        names->rope_factors ? find_tensor(model, names->rope_factors) : NULL;
    if (factors) status = pllm_config_rope_factors(model->path, factors, shape);
    if (status < 0) return status;
    take_fingerprint(model);
    return PLLM_OK;
}

/* ---- files ---------------------------------------------------------------------------------- */

static int join_path(const pllm_context *context, const char *folder, const char *name, char **out)
{
    uint64_t bytes = strlen(folder) + strlen(name) + 2;
    *out = pllm_alloc(context, bytes);
    if (!*out) return pllm_fail_memory("a path", bytes);
    snprintf(*out, bytes, "%s/%s", folder, name);
    return PLLM_OK;
}

static int open_shard(pllm_model *model, const char *name)
{
    char *path;
    int status = join_path(model->context, model->path, name, &path);
    if (status < 0) return status;
    status = pllm_safetensors_open(model->context, path, &model->shards[model->shard_count]);
    if (status == PLLM_OK) model->shard_count++;
    pllm_free(model->context, path);
    return status;
}

static int shard_reserve(pllm_model *model, uint64_t count)
{
    model->shards = pllm_alloc_array(model->context, count, sizeof *model->shards);
    return model->shards ? PLLM_OK : pllm_fail_memory("a shard list", count * sizeof(void *));
}

/* The shard of that file name, or NULL. */
static const pllm_safetensors *shard_named(const pllm_model *model, const char *name)
{
    for (uint32_t i = model->shard_count; i-- > 0;) { /* newest first: maps come in runs */
        const char *path = pllm_safetensors_path(model->shards[i]);
        const char *slash = strrchr(path, '/');
        if (slash && strcmp(slash + 1, name) == 0) return model->shards[i];
    }
    return NULL;
}

/* Opens each file of weight_map once and checks that it has the tensors promised. */
static int open_mapped(pllm_model *model, const char *index_path, const pllm_json_node *map)
{
    char shown[80];
    uint32_t count = map && map->kind == PLLM_JSON_OBJECT ? map->count : 0;
    if (count == 0) return pllm_fail(PLLM_ECORRUPT, 0, "%s: has no weight_map", index_path);
    int status = shard_reserve(model, count < SHARD_MAX ? count : SHARD_MAX);
    if (status < 0) return status;
    const pllm_json_node *value = map + 1;
    for (uint32_t i = 0; i < count; i++, value += value->span) {
        const char *tensor = value->key, *name = pllm_json_text(value);
        size_t bytes = name ? strlen(name) : 0;
        if (bytes == 0 || bytes > 255 || strchr(name, '/') || !ends_with(name, ".safetensors"))
            return pllm_fail(PLLM_ECORRUPT, 0,
                             "%s: tensor %s is mapped to \"%s\", which is no safetensors file of "
                             "this folder",
                             index_path, pllm_printable(shown, tensor, strlen(tensor)),
                             bytes ? "(another path)" : "");
        if (!shard_named(model, name)) {
            if (model->shard_count == SHARD_MAX)
                return pllm_fail(PLLM_ELIMIT, 0, "%s: more than %u shards", index_path, SHARD_MAX);
            if ((status = open_shard(model, name)) < 0) return status;
        }
        if (!pllm_safetensors_peek(shard_named(model, name), tensor))
            return pllm_fail(PLLM_ECORRUPT, 0,
                             "%s: says that %s holds tensor %s, and it does not; fetch the model "
                             "again",
                             index_path, name, pllm_printable(shown, tensor, strlen(tensor)));
    }
    return PLLM_OK;
}

static int open_index(pllm_model *model, const char *index_path)
{
    pllm_file_map map;
    pllm_json json;
    int status = pllm_file_map_open(index_path, &map);
    if (status < 0) return status;
    status = pllm_json_parse(model->context, index_path, map.data, map.bytes, &json);
    pllm_file_map_close(&map);
    if (status < 0) return status;
    status = open_mapped(model, index_path, pllm_json_member(json.nodes, "weight_map"));
    pllm_json_deinit(&json);
    return status;
}

static int exists(const char *path)
{
    return access(path, F_OK) == 0;
}

static int open_weights(pllm_model *model)
{
    char *single = NULL, *index = NULL;
    int status = join_path(model->context, model->path, "model.safetensors", &single);
    if (status < 0) return status;
    status = join_path(model->context, model->path, "model.safetensors.index.json", &index);
    if (status < 0) goto done;
    if (exists(single)) {
        status = shard_reserve(model, 1);
        if (status == PLLM_OK) status = open_shard(model, "model.safetensors");
    } else if (exists(index)) {
        status = open_index(model, index);
    } else {
        status = pllm_fail(PLLM_ENOTFOUND, 0,
                           "%s: has neither model.safetensors nor model.safetensors.index.json; "
                           "give a folder with a checkpoint, or a GGUF file",
                           model->path);
    }
done:
    pllm_free(model->context, index);
    pllm_free(model->context, single);
    return status;
}

static int open_folder(pllm_model *model)
{
    int status = join_path(model->context, model->path, "config.json", &model->config_path);
    if (status < 0) return status;
    status = pllm_file_map_open(model->config_path, &model->map);
    if (status < 0) return status;
    if (model->map.bytes > CONFIG_BYTES_MAX)
        return pllm_fail(PLLM_ELIMIT, 0, "%s: has %llu bytes; a configuration has at most %u",
                         model->config_path, (unsigned long long)model->map.bytes,
                         CONFIG_BYTES_MAX);
    status = pllm_config_parse(model->context, model->config_path, model->map.data,
                               model->map.bytes, &model->shape);
    if (status < 0) return status;
    status = open_weights(model);
    return status < 0 ? status : bind_all(model);
}

static int open_gguf(pllm_model *model, const uint8_t *data, uint64_t bytes)
{
    int status = pllm_gguf_parse(model->context, model->path, data, bytes, &model->gguf);
    if (status < 0) return status;
    model->is_gguf = 1;
    status = pllm_config_from_gguf(&model->gguf, &model->shape);
    return status < 0 ? status : bind_all(model);
}

int pllm_model_create(const pllm_context *context, const char *path, pllm_model **out)
{
    *out = NULL;
    pllm_model *model = pllm_alloc(context, sizeof *model);
    if (!model) return pllm_fail_memory("a model", sizeof *model);
    model->context = context;
    model->path = pllm_strdup(context, path);
    if (!model->path) {
        pllm_free(context, model);
        return pllm_fail_memory("a path", strlen(path) + 1);
    }
    *out = model;
    return PLLM_OK;
}

/* Trailing slashes would double in sentences. */
static void trim_path(char *path)
{
    for (size_t length = strlen(path); length > 1 && path[length - 1] == '/'; length--)
        path[length - 1] = 0;
}

int pllm_model_open(const pllm_context *context, const char *path,
                    const pllm_model_options *options, pllm_model **out)
{
    if (!out) return pllm_fail(PLLM_EINVAL, 0, "out is NULL");
    *out = NULL;
    if (!path || !*path) return pllm_fail(PLLM_EINVAL, 0, "the model's path is empty");
    if (options && options->struct_bytes < sizeof *options)
        return pllm_fail(PLLM_EINVAL, 0, "pllm_model_options.struct_bytes is %u, not %zu",
                         options->struct_bytes, sizeof *options);
    if (options && (options->rank != 0 || options->world != 1))
        return pllm_fail(PLLM_EUNSUPPORTED, 0,
                         "rank %u of %u: a model is not split over devices yet; use rank 0 of 1",
                         options->rank, options->world);
    pllm_model *model;
    int status = pllm_model_create(context, path, &model);
    if (status < 0) return status;
    trim_path(model->path);
    struct stat info;
    if (stat(model->path, &info) == 0 && S_ISDIR(info.st_mode)) {
        status = open_folder(model);
    } else {
        status = pllm_file_map_open(model->path, &model->map);
        if (status == PLLM_OK) status = open_gguf(model, model->map.data, model->map.bytes);
    }
    if (status < 0)
        pllm_model_close(model);
    else
        *out = model;
    return status;
}

int pllm_model_open_gguf_memory(const pllm_context *context, const char *file, const uint8_t *data,
                                uint64_t bytes, pllm_model **out)
{
    int status = pllm_model_create(context, file, out);
    if (status < 0) return status;
    status = open_gguf(*out, data, bytes);
    if (status == PLLM_OK) return PLLM_OK;
    pllm_model_close(*out);
    *out = NULL;
    return status;
}

void pllm_model_close(pllm_model *model)
{
    if (!model) return;
    const pllm_context *context = model->context;
    pllm_free(context, model->layers);
    pllm_free(context, model->names);
    for (uint32_t i = 0; i < model->shard_count; i++) pllm_safetensors_close(model->shards[i]);
    pllm_free(context, model->shards);
    if (model->is_gguf) pllm_gguf_deinit(&model->gguf);
    pllm_file_map_close(&model->map);
    pllm_free(context, model->config_path);
    pllm_free(context, model->path);
    pllm_free(context, model);
}
