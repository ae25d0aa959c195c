/* config.c - what config.json and GGUF metadata say, refused where a value would be ignored.
 *
 * A key that changes the arithmetic and is not understood is an error, never skipped: a model that
 * answers wrongly costs more than one that does not open. Keys known to change nothing here
 * (dropout, initialisers, pretraining_tp, cache flags) are not looked at. */
#include <math.h>
#include <string.h>
#include "model/config.h"
#include "model/file_map.h"
#include "model/json.h"

/* Bounds that real models stay far below and that keep later products inside 64 bits. */
#define LAYER_MAX 4096u
#define WIDTH_MAX (1u << 20)
#define HEAD_MAX 8192u
#define HEAD_DIM_MAX 1024u
#define VOCAB_MAX (1u << 24)
#define CONTEXT_MAX (1u << 28)

/* ---- config.json ---------------------------------------------------------------------------- */

static const pllm_json_node *member(const pllm_json_node *object, const char *key)
{
    const pllm_json_node *value = pllm_json_member(object, key);
    return value && value->kind == PLLM_JSON_NULL ? NULL : value; /* null means absent */
}

/* 1 found, 0 absent. */
static int get_u32(const char *file, const pllm_json_node *object, const char *key, uint32_t most,
                   uint32_t *out)
{
    const pllm_json_node *value = member(object, key);
    if (!value) return 0;
    int64_t number = value->kind == PLLM_JSON_INTEGER ? value->integer : 0;
    if (number < 1 || number > (int64_t)most)
        return pllm_fail(PLLM_EINVAL, 0, "%s: %s is not a whole number from 1 to %u", file, key,
                         most);
    *out = (uint32_t)number;
    return 1;
}

static int need_u32(const char *file, const pllm_json_node *object, const char *key, uint32_t most,
                    uint32_t *out)
{
    int found = get_u32(file, object, key, most, out);
    if (found == 0) return pllm_fail(PLLM_EINVAL, 0, "%s: %s is missing", file, key);
    return found;
}

static int get_f32(const char *file, const pllm_json_node *object, const char *key, float *out)
{
    const pllm_json_node *value = member(object, key);
    if (!value) return 0;
    double number = value->number; /* 0 for what is no number */
    if (!(number > 0) || number > 1e30 || (float)number <= 0)
        return pllm_fail(PLLM_EINVAL, 0, "%s: %s is not a number above 0", file, key);
    *out = (float)number;
    return 1;
}

static int need_f32(const char *file, const pllm_json_node *object, const char *key, float *out)
{
    int found = get_f32(file, object, key, out);
    if (found == 0)
        return pllm_fail(PLLM_EINVAL, 0, "%s: %s is missing from its rope settings", file, key);
    return found;
}

/* EUNSUPPORTED when key is true, or any number but zero, or any object or text. */
static int need_off(const char *file, const pllm_json_node *object, const char *key)
{
    const pllm_json_node *value = member(object, key);
    if (!value || value->kind == PLLM_JSON_FALSE) return PLLM_OK;
    if (value->kind == PLLM_JSON_INTEGER && value->integer == 0) return PLLM_OK;
    return pllm_fail(PLLM_EUNSUPPORTED, 0,
                     "%s: sets %s, which changes the arithmetic and is not supported here", file,
                     key);
}

/* EUNSUPPORTED when key is text other than one of the words (separated by spaces). */
static int need_word(const char *file, const pllm_json_node *object, const char *key,
                     const char *words)
{
    const pllm_json_node *value = member(object, key);
    if (!value) return PLLM_OK;
    const char *word = pllm_json_text(value);
    size_t bytes = word ? strlen(word) : 0;
    for (const char *at = words; bytes > 0 && *at;) {
        size_t length = strcspn(at, " ");
        if (length == bytes && memcmp(at, word, bytes) == 0) return PLLM_OK;
        at += length + (at[length] == ' ');
    }
    char shown[80];
    return pllm_fail(PLLM_EUNSUPPORTED, 0, "%s: %s is \"%s\"; supported: %s", file, key,
                     pllm_printable(shown, word ? word : "(no text)", word ? bytes : 9), words);
}

static int parse_rope_kind(const char *file, const pllm_json_node *rope, pllm_model_shape *shape)
{
    const pllm_json_node *named = member(rope, "rope_type");
    if (!named) named = member(rope, "type");
    const char *kind = named ? pllm_json_text(named) : "default";
    if (!kind) return pllm_fail(PLLM_EINVAL, 0, "%s: the rope type is not text", file);
    if (strcmp(kind, "default") == 0) return PLLM_OK;
    int status = need_f32(file, rope, "factor", &shape->rope.factor);
    if (strcmp(kind, "linear") == 0) {
        shape->rope.kind = PLLM_ROPE_LINEAR;
        return status < 0 ? status : PLLM_OK;
    }
    if (strcmp(kind, "llama3") != 0) {
        char shown[80];
        return pllm_fail(PLLM_EUNSUPPORTED, 0,
                         "%s: rope type \"%s\" is not supported; default, linear and llama3 are",
                         file, pllm_printable(shown, kind, strlen(kind)));
    }
    shape->rope.kind = PLLM_ROPE_LLAMA3;
    if (status < 0) return status;
    status = need_f32(file, rope, "low_freq_factor", &shape->rope.low_freq_factor);
    if (status < 0) return status;
    status = need_f32(file, rope, "high_freq_factor", &shape->rope.high_freq_factor);
    if (status < 0) return status;
    status = need_u32(file, rope, "original_max_position_embeddings", CONTEXT_MAX,
                      &shape->rope.original_context);
    if (status < 0) return status;
    if (shape->rope.high_freq_factor <= shape->rope.low_freq_factor)
        return pllm_fail(PLLM_EINVAL, 0,
                         "%s: high_freq_factor (%g) must be above low_freq_factor (%g)", file,
                         (double)shape->rope.high_freq_factor, (double)shape->rope.low_freq_factor);
    return PLLM_OK;
}

static int parse_rope(const char *file, const pllm_json_node *root, pllm_model_shape *shape)
{
    const pllm_json_node *rope = member(root, "rope_parameters");
    if (!rope) rope = member(root, "rope_scaling");
    if (rope && rope->kind != PLLM_JSON_OBJECT)
        return pllm_fail(PLLM_EINVAL, 0, "%s: its rope settings are not an object", file);
    const pllm_json_node *value = rope ? rope + 1 : NULL;
    for (uint32_t i = 0; rope && i < rope->count; i++, value += value->span) {
        char shown[80];
        if (value->kind == PLLM_JSON_OBJECT)
            return pllm_fail(PLLM_EUNSUPPORTED, 0,
                             "%s: rope settings per kind of layer (%s) are not supported", file,
                             pllm_printable(shown, value->key, strlen(value->key)));
    }
    int status = rope ? get_f32(file, rope, "rope_theta", &shape->rope.base) : 0;
    if (status == 0) status = get_f32(file, root, "rope_theta", &shape->rope.base);
    if (status < 0) return status;
    float partial = 1;
    status = rope ? get_f32(file, rope, "partial_rotary_factor", &partial) : 0;
    if (status == 0) status = get_f32(file, root, "partial_rotary_factor", &partial);
    if (status < 0) return status;
    if (partial != 1.0f && !shape->family->partial_rotary)
        return pllm_fail(PLLM_EUNSUPPORTED, 0,
                         "%s: partial_rotary_factor is %g; the %s family rotates whole heads", file,
                         (double)partial, shape->family->name);
    shape->rope.dims = (uint32_t)((float)shape->head_dim * partial);
    return rope ? parse_rope_kind(file, rope, shape) : PLLM_OK;
}

static int parse_token(const char *file, const char *key, const pllm_json_node *value,
                       uint32_t vocab, uint32_t *out)
{
    int64_t id = value->kind == PLLM_JSON_INTEGER ? value->integer : -1;
    if (id < 0 || id >= (int64_t)vocab)
        return pllm_fail(PLLM_EINVAL, 0, "%s: %s is not a token id below vocab_size %u", file, key,
                         vocab);
    *out = (uint32_t)id;
    return PLLM_OK;
}

static int parse_tokens(const char *file, const pllm_json_node *root, pllm_model_shape *shape)
{
    const pllm_json_node *bos = member(root, "bos_token_id"), *eos = member(root, "eos_token_id");
    int status = PLLM_OK;
    if (bos) status = parse_token(file, "bos_token_id", bos, shape->vocab_size, &shape->bos_id);
    if (status < 0 || !eos) return status;
    int list = eos->kind == PLLM_JSON_ARRAY;
    uint32_t count = list ? eos->count : 1;
    if (count > 8)
        return pllm_fail(PLLM_ELIMIT, 0, "%s: eos_token_id lists %u ids; up to 8 are read", file,
                         count);
    for (uint32_t i = 0; i < count; i++) {
        const pllm_json_node *id = list ? pllm_json_at(eos, i) : eos;
        status = parse_token(file, "eos_token_id", id, shape->vocab_size, &shape->eos_ids[i]);
        if (status < 0) return status;
    }
    shape->eos_count = count;
    return PLLM_OK;
}

static int parse_sizes(const char *file, const pllm_json_node *root, pllm_model_shape *shape)
{
    const struct {
        const char *key;
        uint32_t most, *out;
    } needed[] = {
        {"hidden_size", WIDTH_MAX, &shape->width},
        {"num_hidden_layers", LAYER_MAX, &shape->layer_count},
        {"num_attention_heads", HEAD_MAX, &shape->head_count},
        {"intermediate_size", WIDTH_MAX, &shape->ffn_width},
        {"vocab_size", VOCAB_MAX, &shape->vocab_size},
        {"max_position_embeddings", CONTEXT_MAX, &shape->context_max},
    };
    for (uint32_t i = 0; i < sizeof needed / sizeof needed[0]; i++) {
        int status = need_u32(file, root, needed[i].key, needed[i].most, needed[i].out);
        if (status < 0) return status;
    }
    shape->kv_head_count = shape->head_count;
    int status = get_u32(file, root, "num_key_value_heads", HEAD_MAX, &shape->kv_head_count);
    if (status < 0) return status;
    status = get_u32(file, root, "head_dim", HEAD_DIM_MAX, &shape->head_dim);
    if (status == 0) {
        if (shape->width % shape->head_count)
            return pllm_fail(PLLM_EINVAL, 0,
                             "%s: hidden_size %u is not a multiple of num_attention_heads %u, and "
                             "head_dim is missing",
                             file, shape->width, shape->head_count);
        shape->head_dim = shape->width / shape->head_count;
    }
    return status < 0 ? status : PLLM_OK;
}

static int parse_features(const char *file, const pllm_json_node *root, pllm_model_shape *shape)
{
    static const char *const off[] = {"attention_bias", "mlp_bias",          "quantization_config",
                                      "sliding_window", "num_local_experts", "rope_interleaved"};
    for (uint32_t i = 0; i < sizeof off / sizeof off[0]; i++) {
        int status = need_off(file, root, off[i]);
        if (status < 0) return status;
    }
    int status = need_word(file, root, "hidden_act", "silu");
    if (status < 0) return status;
    const char *floats = "float32 float16 bfloat16";
    if ((status = need_word(file, root, "dtype", floats)) < 0) return status;
    if ((status = need_word(file, root, "torch_dtype", floats)) < 0) return status;
    const pllm_json_node *tied = member(root, "tie_word_embeddings");
    if (tied && tied->kind != PLLM_JSON_TRUE && tied->kind != PLLM_JSON_FALSE)
        return pllm_fail(PLLM_EINVAL, 0, "%s: tie_word_embeddings is not true or false", file);
    shape->tied_output = tied && tied->kind == PLLM_JSON_TRUE;
    status = get_f32(file, root, "rms_norm_eps", &shape->norm_epsilon);
    return status < 0 ? status : PLLM_OK;
}

/* What holds for every shape, wherever it came from. */
static int check_shape(const char *file, const pllm_model_shape *shape)
{
    if (shape->head_count % shape->kv_head_count)
        return pllm_fail(PLLM_EINVAL, 0,
                         "%s: %u attention heads cannot share %u key-value heads evenly", file,
                         shape->head_count, shape->kv_head_count);
    if (shape->head_dim % 2 || shape->head_dim > HEAD_DIM_MAX)
        return pllm_fail(PLLM_EINVAL, 0,
                         "%s: a head has %u dimensions; an even number up to %u is needed", file,
                         shape->head_dim, HEAD_DIM_MAX);
    if (shape->rope.dims % 2 || shape->rope.dims == 0 || shape->rope.dims > shape->head_dim)
        return pllm_fail(PLLM_EINVAL, 0, "%s: %u rotary dimensions do not fit heads of %u", file,
                         shape->rope.dims, shape->head_dim);
    if (shape->rope.dims != shape->head_dim && !shape->family->partial_rotary)
        return pllm_fail(PLLM_EUNSUPPORTED, 0,
                         "%s: %u of %u head dimensions are rotated; the %s family rotates all",
                         file, shape->rope.dims, shape->head_dim, shape->family->name);
    if (!(shape->norm_epsilon < 1))
        return pllm_fail(PLLM_EINVAL, 0, "%s: a norm epsilon of %g is no small number", file,
                         (double)shape->norm_epsilon);
    return PLLM_OK;
}

static void set_defaults(pllm_model_shape *shape)
{
    *shape = (pllm_model_shape){.norm_epsilon = 1e-6f, .bos_id = PLLM_NO_TOKEN};
    shape->rope.base = 10000;
    shape->rope.factor = shape->rope.low_freq_factor = shape->rope.high_freq_factor = 1;
    for (uint32_t i = 0; i < 8; i++) shape->eos_ids[i] = PLLM_NO_TOKEN;
}

static int parse_root(const char *file, const pllm_json_node *root, pllm_model_shape *shape)
{
    const char *type = pllm_json_text(member(root, "model_type"));
    if (!type) return pllm_fail(PLLM_EINVAL, 0, "%s: model_type is missing", file);
    shape->family = pllm_family_find(type, strlen(type));
    if (!shape->family) {
        char shown[80];
        return pllm_fail(PLLM_EUNSUPPORTED, 0, "%s: model_type \"%s\" is not supported; %s is",
                         file, pllm_printable(shown, type, strlen(type)), pllm_family_list());
    }
    shape->rope.interleaved = shape->family->safetensors.rope_interleaved;
    int status = parse_sizes(file, root, shape);
    if (status < 0) return status;
    if ((status = parse_features(file, root, shape)) < 0) return status;
    if ((status = parse_rope(file, root, shape)) < 0) return status;
    if ((status = parse_tokens(file, root, shape)) < 0) return status;
    return check_shape(file, shape);
}

int pllm_config_parse(const pllm_context *context, const char *file, const void *text,
                      uint64_t bytes, pllm_model_shape *shape)
{
    pllm_json json;
    set_defaults(shape);
    int status = pllm_json_parse(context, file, text, bytes, &json);
    if (status < 0) return status;
    status = parse_root(file, json.nodes, shape);
    pllm_json_deinit(&json);
    return status;
}

/* ---- GGUF metadata -------------------------------------------------------------------------- */

/* "llama" + ".block_count": keys carry the architecture's name. */
static const char *key_of(char key[128], const pllm_model_shape *shape, const char *rest)
{
    strcpy(key, shape->family->name); /* rows of the table are short */
    strcat(key, rest);
    return key;
}

static int gguf_sizes(const pllm_gguf *gguf, pllm_model_shape *shape)
{
    const struct {
        const char *rest;
        uint32_t most, *out;
        int needed;
    } sizes[] = {
        {".embedding_length", WIDTH_MAX, &shape->width, 1},
        {".block_count", LAYER_MAX, &shape->layer_count, 1},
        {".attention.head_count", HEAD_MAX, &shape->head_count, 1},
        {".feed_forward_length", WIDTH_MAX, &shape->ffn_width, 1},
        {".context_length", CONTEXT_MAX, &shape->context_max, 1},
        {".attention.head_count_kv", HEAD_MAX, &shape->kv_head_count, 0},
        {".attention.key_length", HEAD_DIM_MAX, &shape->head_dim, 0},
        {".rope.dimension_count", HEAD_DIM_MAX, &shape->rope.dims, 0},
        {".vocab_size", VOCAB_MAX, &shape->vocab_size, 0},
    };
    char key[128];
    for (uint32_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        key_of(key, shape, sizes[i].rest);
        int found = pllm_gguf_u32(gguf, key, 1, sizes[i].most, sizes[i].out);
        if (found < 0) return found;
        if (!found && sizes[i].needed)
            return pllm_fail(PLLM_EINVAL, 0, "%s: metadata %s is missing", gguf->file, key);
    }
    if (!shape->kv_head_count) shape->kv_head_count = shape->head_count;
    if (!shape->head_dim) {
        if (shape->width % shape->head_count)
            return pllm_fail(PLLM_EINVAL, 0,
                             "%s: width %u is not a multiple of %u heads, and "
                             "attention.key_length is missing",
                             gguf->file, shape->width, shape->head_count);
        shape->head_dim = shape->width / shape->head_count;
    }
    if (!shape->rope.dims) shape->rope.dims = shape->head_dim;
    uint32_t value_dim = shape->head_dim;
    int found = pllm_gguf_u32(gguf, key_of(key, shape, ".attention.value_length"), 1, HEAD_DIM_MAX,
                              &value_dim);
    if (found < 0) return found;
    if (value_dim != shape->head_dim)
        return pllm_fail(PLLM_EUNSUPPORTED, 0,
                         "%s: values have %u dimensions a head and keys %u; they must be equal",
                         gguf->file, value_dim, shape->head_dim);
    return PLLM_OK;
}

static int gguf_rope(const pllm_gguf *gguf, pllm_model_shape *shape)
{
    char key[128];
    const char *kind = "none";
    uint64_t bytes = 4;
    int found = pllm_gguf_f32(gguf, key_of(key, shape, ".rope.freq_base"), &shape->rope.base);
    if (found < 0) return found;
    found = pllm_gguf_string(gguf, key_of(key, shape, ".rope.scaling.type"), &kind, &bytes);
    if (found < 0) return found;
    float factor = 1;
    found = pllm_gguf_f32(gguf, key_of(key, shape, ".rope.scaling.factor"), &factor);
    if (found == 0) found = pllm_gguf_f32(gguf, key_of(key, shape, ".rope.scale_linear"), &factor);
    if (found < 0) return found;
    int linear = bytes == 6 && memcmp(kind, "linear", 6) == 0;
    int none = bytes == 4 && memcmp(kind, "none", 4) == 0;
    /* A factor with no type is the older way to say linear. */
    if (!linear && none && !pllm_gguf_find(gguf, key_of(key, shape, ".rope.scaling.type")))
        linear = factor != 1.0f;
    if (!linear && !none) {
        char shown[80];
        return pllm_fail(PLLM_EUNSUPPORTED, 0,
                         "%s: rope scaling \"%s\" is not supported; none and linear are",
                         gguf->file, pllm_printable(shown, kind, bytes));
    }
    if (linear) {
        shape->rope.kind = PLLM_ROPE_LINEAR;
        shape->rope.factor = factor;
    }
    return PLLM_OK;
}

static int gguf_tokens(const pllm_gguf *gguf, pllm_model_shape *shape)
{
    static const char *const ends[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    const pllm_gguf_value *tokens = NULL;
    int found = pllm_gguf_array(gguf, "tokenizer.ggml.tokens", PLLM_GGUF_STRING, &tokens);
    if (found < 0) return found;
    if (tokens && tokens->count > VOCAB_MAX)
        return pllm_fail(PLLM_ELIMIT, 0, "%s: %llu tokens; up to %u are read", gguf->file,
                         (unsigned long long)tokens->count, VOCAB_MAX);
    if (tokens && shape->vocab_size == 0) shape->vocab_size = (uint32_t)tokens->count;
    uint32_t most = shape->vocab_size ? shape->vocab_size - 1 : VOCAB_MAX - 1;
    found = pllm_gguf_u32(gguf, "tokenizer.ggml.bos_token_id", 0, most, &shape->bos_id);
    if (found < 0) return found;
    for (uint32_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
        uint32_t id;
        found = pllm_gguf_u32(gguf, ends[i], 0, most, &id);
        if (found < 0) return found;
        int known = 0;
        for (uint32_t j = 0; j < shape->eos_count; j++) known |= shape->eos_ids[j] == id;
        if (found && !known) shape->eos_ids[shape->eos_count++] = id;
    }
    return PLLM_OK;
}

int pllm_config_from_gguf(const pllm_gguf *gguf, pllm_model_shape *shape)
{
    const char *name;
    uint64_t bytes;
    char key[128], shown[80];
    set_defaults(shape);
    int found = pllm_gguf_string(gguf, "general.architecture", &name, &bytes);
    if (found < 0) return found;
    if (!found)
        return pllm_fail(PLLM_EINVAL, 0, "%s: metadata general.architecture is missing",
                         gguf->file);
    shape->family = pllm_family_find(name, bytes);
    if (!shape->family)
        return pllm_fail(PLLM_EUNSUPPORTED, 0, "%s: architecture \"%s\" is not supported; %s is",
                         gguf->file, pllm_printable(shown, name, bytes), pllm_family_list());
    shape->rope.interleaved = shape->family->gguf.rope_interleaved;
    int status = gguf_sizes(gguf, shape);
    if (status < 0) return status;
    uint32_t experts = 0;
    found = pllm_gguf_u32(gguf, key_of(key, shape, ".expert_count"), 0, UINT32_MAX, &experts);
    if (found < 0) return found;
    if (experts > 0)
        return pllm_fail(PLLM_EUNSUPPORTED, 0,
                         "%s: is a mixture of %u experts, which is not supported", gguf->file,
                         experts);
    found = pllm_gguf_f32(gguf, key_of(key, shape, ".attention.layer_norm_rms_epsilon"),
                          &shape->norm_epsilon);
    if (found < 0) return found;
    if (!found) return pllm_fail(PLLM_EINVAL, 0, "%s: metadata %s is missing", gguf->file, key);
    if ((status = gguf_rope(gguf, shape)) < 0) return status;
    if ((status = gguf_tokens(gguf, shape)) < 0) return status;
    return check_shape(gguf->file, shape);
}

/* Llama 3's divisor of one frequency (the rule of its published inference code): 1 for waves that
 * fit the original context high_freq_factor times, factor for those that fit it less than
 * low_freq_factor times, in between the harmonic blend. */
static double llama3_divisor(const pllm_model_shape *shape, uint32_t pair)
{
    double frequency = pow((double)shape->rope.base, -2.0 * pair / shape->rope.dims);
    double turns = shape->rope.original_context * frequency / (2 * M_PI);
    double low = (double)shape->rope.low_freq_factor, high = (double)shape->rope.high_freq_factor;
    if (turns > high) return 1;
    if (turns < low) return (double)shape->rope.factor;
    double smooth = (turns - low) / (high - low);
    return 1 / ((1 - smooth) / (double)shape->rope.factor + smooth);
}

int pllm_config_rope_factors(const char *file, const pllm_tensor_view *factors,
                             pllm_model_shape *shape)
{
    uint32_t pairs = shape->rope.dims / 2;
    if (factors->dtype != PLLM_F32 || factors->rank != 1 || factors->shape[0] != pairs)
        return pllm_fail(PLLM_ECORRUPT, 0, "%s: tensor %s is not %u numbers in F32", file,
                         factors->name, pairs);
    const float *values = factors->data;
    float least = values[0], most = values[0];
    for (uint32_t i = 1; i < pairs; i++) {
        least = fminf(least, values[i]);
        most = fmaxf(most, values[i]);
    }
    if (least == 1.0f && most == 1.0f) return PLLM_OK;
    pllm_model_shape guess = *shape; /* every published llama 3 has these three */
    guess.rope.kind = PLLM_ROPE_LLAMA3;
    guess.rope.factor = most;
    guess.rope.low_freq_factor = 1;
    guess.rope.high_freq_factor = 4;
    guess.rope.original_context = 8192;
    int fits = shape->rope.kind == PLLM_ROPE_DEFAULT && isfinite(most) && most > 1;
    for (uint32_t i = 0; fits && i < pairs; i++) {
        double wanted = llama3_divisor(&guess, i);
        fits = fabs((double)values[i] - wanted) <= 1e-3 * wanted;
    }
    if (!fits)
        return pllm_fail(PLLM_EUNSUPPORTED, 0,
                         "%s: tensor %s scales the rotary frequencies in a way that is not "
                         "supported; Llama 3's is",
                         file, factors->name);
    *shape = guess;
    return PLLM_OK;
}
