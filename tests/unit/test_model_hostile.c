/* Goal: a wrong model file gets one sentence that names the file and the point, with the right
 * status, and no byte outside it is read (run under the address sanitizer).
 * Method: a right file, wrong in one place; every prefix of it; random bytes changed. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>
#include "gguf_builder.h"
#include "model/chat_template.h"
#include "model/config.h"
#include "model/model_internal.h"
#include "model/safetensors.h"
#include "model/tokenizer.h"

static int open_tiny(gguf_builder *builder)
{
    uint64_t bytes;
    uint8_t *file = gguf_builder_finish(builder, &bytes);
    pllm_model *model = NULL;
    int status = pllm_model_open_gguf_memory(NULL, "tiny.gguf", file, bytes, &model);
    if (status == PLLM_OK) {
        pllm_tokenizer *tokenizer = NULL;
        pllm_chat_template *chat = NULL;
        status = pllm_tokenizer_open(NULL, model, &tokenizer);
        if (status == PLLM_OK) status = pllm_chat_template_open(NULL, model, &chat);
        pllm_chat_template_close(chat);
        pllm_tokenizer_close(tokenizer);
    } else {
        assert_null(model);
    }
    pllm_model_close(model);
    free(file);
    return status;
}

static void check_failure(int status, int wanted, const char *file, const char *point)
{
    const char *text = pllm_last_error()->text;
    if (status != wanted || !strstr(text, file) || !strstr(text, point))
        fail_msg("status %s, not %s with \"%s\"; the sentence: %s", pllm_status_name(status),
                 pllm_status_name(wanted), point, status < 0 ? text : "(none)");
}

static void check_tiny(gguf_builder builder, int wanted, const char *point)
{
    gguf_builder_tiny(&builder);
    check_failure(open_tiny(&builder), wanted, "tiny.gguf", point);
}

/* The tiny file with one more value, added first. */
#define WITH(add, ...)                                \
    do {                                              \
        gguf_builder with = {0};                      \
        add;                                          \
        gguf_builder_tiny(&with);                     \
        check_failure(open_tiny(&with), __VA_ARGS__); \
    } while (0)

static void test_right_file(void **state)
{
    (void)state;
    gguf_builder builder = {0}, older = {.version = 2}, more = {0}, linear = {0};
    gguf_builder_tiny(&builder);
    assert_int_equal(open_tiny(&builder), PLLM_OK);
    gguf_builder_tiny(&older);
    assert_int_equal(open_tiny(&older), PLLM_OK);
    gguf_builder_string(&more, "nobody.knows.this", "x"); /* unknown keys are skipped */
    gguf_builder_i32s(&more, "nor.this", NULL, 0);
    gguf_builder_tiny(&more);
    assert_int_equal(open_tiny(&more), PLLM_OK);
    gguf_builder_string(&linear, "llama.rope.scaling.type", "linear");
    gguf_builder_f32(&linear, "llama.rope.scaling.factor", 4.0f);
    gguf_builder_tiny(&linear);
    uint64_t bytes;
    uint8_t *file = gguf_builder_finish(&linear, &bytes);
    pllm_model *model;
    assert_int_equal(pllm_model_open_gguf_memory(NULL, "t", file, bytes, &model), PLLM_OK);
    assert_int_equal(pllm_model_shape_of(model)->rope.kind, PLLM_ROPE_LINEAR);
    assert_true(pllm_model_shape_of(model)->rope.factor == 4.0f);
    assert_int_equal(pllm_model_shape_of(model)->vocab_size, GGUF_TINY_VOCAB);
    pllm_model_close(model);
    free(file);
}

/* Models that differ only in weights, or only in metadata, have different fingerprints. */
static void test_fingerprint(void **state)
{
    (void)state;
    uint64_t prints[4];
    for (uint32_t kind = 0; kind < 4; kind++) {
        gguf_builder builder = {0};
        uint64_t bytes;
        pllm_model *model;
        if (kind == 2) gguf_builder_string(&builder, "general.author", "somebody");
        gguf_builder_tiny(&builder);
        uint8_t *file = gguf_builder_finish(&builder, &bytes);
        if (kind == 1) file[bytes - 128] ^= 1; /* the first weight of the last tensor */
        assert_int_equal(
            pllm_model_open_gguf_memory(NULL, kind == 3 ? "elsewhere" : "t", file, bytes, &model),
            PLLM_OK);
        prints[kind] = pllm_model_fingerprint(model);
        pllm_model_close(model);
        free(file);
    }
    assert_int_not_equal(prints[0], prints[1]);
    assert_int_not_equal(prints[0], prints[2]);
    assert_int_equal(prints[0], prints[3]); /* the path is no part of it */
}

static void test_missing(void **state)
{
    (void)state;
    static const char *const values[] = {"general.architecture",
                                         "llama.block_count",
                                         "llama.context_length",
                                         "llama.embedding_length",
                                         "llama.feed_forward_length",
                                         "llama.attention.head_count",
                                         "llama.attention.layer_norm_rms_epsilon"};
    static const char *const tensors[] = {"token_embd.weight", "blk.0.attn_norm.weight",
                                          "blk.0.attn_q.weight", "blk.0.ffn_down.weight",
                                          "output_norm.weight"};
    for (uint32_t i = 0; i < sizeof values / sizeof values[0]; i++)
        check_tiny((gguf_builder){.skip = values[i]}, PLLM_EINVAL, values[i]);
    for (uint32_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++)
        check_tiny((gguf_builder){.skip = tensors[i]}, PLLM_ECORRUPT, tensors[i]);
    check_tiny((gguf_builder){.skip = "tokenizer.ggml.model"}, PLLM_ENOTFOUND, "no tokenizer");
    check_tiny((gguf_builder){.skip = "tokenizer.ggml.tokens"}, PLLM_ECORRUPT, "ggml.tokens");
    check_tiny((gguf_builder){.skip = "tokenizer.ggml.merges"}, PLLM_ECORRUPT, "ggml.merges");
    check_tiny((gguf_builder){.skip = "tokenizer.chat_template"}, PLLM_ENOTFOUND, "chat template");
}

static void test_unsupported(void **state)
{
    (void)state;
    check_tiny((gguf_builder){.version = 1}, PLLM_EUNSUPPORTED, "version 1");
    check_tiny((gguf_builder){.version = 4}, PLLM_EUNSUPPORTED, "version 4");
    check_tiny((gguf_builder){.version = 0x03000000}, PLLM_EUNSUPPORTED, "big-endian");
    gguf_builder other = {.skip = "general.architecture"};
    gguf_builder_tiny(&other);
    other.skip = NULL;
    gguf_builder_string(&other, "general.architecture", "mamba\x01");
    check_failure(open_tiny(&other), PLLM_EUNSUPPORTED, "tiny.gguf", "\"mamba?\"");
    check_tiny((gguf_builder){.odd_tensor = "blk.0.attn_q.weight", .odd_type = 12},
               PLLM_EUNSUPPORTED, "Q4_K");
    check_tiny((gguf_builder){.odd_tensor = "blk.0.attn_q.weight", .odd_type = 99},
               PLLM_EUNSUPPORTED, "type 99");
    WITH(gguf_builder_u32(&with, "llama.expert_count", 8), PLLM_EUNSUPPORTED, "tiny.gguf", "8");
    WITH(gguf_builder_string(&with, "llama.rope.scaling.type", "yarn"), PLLM_EUNSUPPORTED,
         "tiny.gguf", "yarn");
    WITH(gguf_builder_u32(&with, "llama.rope.dimension_count", 8), PLLM_EUNSUPPORTED, "tiny.gguf",
         "8 of 16");
    WITH(gguf_builder_u32(&with, "llama.attention.value_length", 8), PLLM_EUNSUPPORTED, "tiny.gguf",
         "8");
    WITH(gguf_builder_tensor(&with, "blk.0.attn_q.bias", 1, 32, 1, 0), PLLM_EUNSUPPORTED,
         "tiny.gguf", "blk.0.attn_q.bias");
    static const uint8_t nested[24] = {9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0};
    WITH(gguf_builder_raw(&with, "deep", 9, nested, sizeof nested), PLLM_EUNSUPPORTED, "tiny.gguf",
         "deep");
}

static void replace(gguf_builder *builder, const char *key, const char *text)
{
    builder->skip = key;
    gguf_builder_tiny(builder);
    builder->skip = NULL;
    gguf_builder_string(builder, key, text);
}

static void test_tokenizer_refusals(void **state)
{
    (void)state;
    gguf_builder kind = {0}, pre = {0}, chat = {0}, merges = {0}, types = {0}, type = {0};
    replace(&kind, "tokenizer.ggml.model", "llama");
    check_failure(open_tiny(&kind), PLLM_EUNSUPPORTED, "tiny.gguf", "\"llama\"");
    replace(&pre, "tokenizer.ggml.pre", "tekken");
    check_failure(open_tiny(&pre), PLLM_EUNSUPPORTED, "tiny.gguf", "\"tekken\"");
    replace(&chat, "tokenizer.chat_template", "{{ '[INST]' }}");
    check_failure(open_tiny(&chat), PLLM_EUNSUPPORTED, "tiny.gguf", "not ChatML");
    merges.skip = "tokenizer.ggml.merges";
    gguf_builder_tiny(&merges);
    merges.skip = NULL;
    const char *wrong[] = {"t h", "th x"};
    gguf_builder_strings(&merges, "tokenizer.ggml.merges", wrong, 2);
    check_failure(open_tiny(&merges), PLLM_ECORRUPT, "tiny.gguf", "merge 1 (\"th x\")");
    types.skip = type.skip = "tokenizer.ggml.token_type";
    gguf_builder_tiny(&types);
    gguf_builder_tiny(&type);
    types.skip = type.skip = NULL;
    int32_t few[] = {1, 1}, all[GGUF_TINY_VOCAB] = {0};
    gguf_builder_i32s(&types, "tokenizer.ggml.token_type", few, 2);
    check_failure(open_tiny(&types), PLLM_ECORRUPT, "tiny.gguf", "2 entries");
    all[7] = 77;
    gguf_builder_i32s(&type, "tokenizer.ggml.token_type", all, GGUF_TINY_VOCAB);
    check_failure(open_tiny(&type), PLLM_ECORRUPT, "tiny.gguf", "type 77");
    gguf_builder eos = {.skip = "tokenizer.ggml.eos_token_id"};
    gguf_builder_tiny(&eos);
    eos.skip = NULL;
    gguf_builder_u32(&eos, "tokenizer.ggml.eos_token_id", GGUF_TINY_VOCAB);
    check_failure(open_tiny(&eos), PLLM_EINVAL, "tiny.gguf", "eos_token_id");
}

static void test_shapes(void **state)
{
    (void)state;
    const char *q = "blk.0.attn_q.weight";
    const uint64_t huge = (uint64_t)1 << 40;
    check_tiny((gguf_builder){.odd_tensor = q, .odd_dims = {64, 16}}, PLLM_ECORRUPT, q);
    check_tiny((gguf_builder){.odd_tensor = q, .odd_rank = 5}, PLLM_ECORRUPT, "rank 5");
    check_tiny((gguf_builder){.odd_tensor = q, .odd_dims = {33}}, PLLM_ECORRUPT, "whole blocks");
    check_tiny((gguf_builder){.odd_tensor = q, .odd_rank = 3, .odd_dims = {32, huge, huge}},
               PLLM_ECORRUPT, "overflows");
    check_tiny((gguf_builder){.odd_tensor = q, .odd_rank = 3, .odd_dims = {huge, 1 << 20, 4}},
               PLLM_ECORRUPT, q); /* bytes overflow, elements do not */
    check_tiny((gguf_builder){.odd_tensor = q, .odd_dims = {32, huge}}, PLLM_ECORRUPT, "truncated");
    check_tiny((gguf_builder){.odd_tensor = q, .odd_shift = 1}, PLLM_ECORRUPT, "alignment");
    check_tiny((gguf_builder){.odd_tensor = q, .odd_shift = -32}, PLLM_ECORRUPT, "inside the one");
    check_tiny((gguf_builder){.odd_tensor = q, .odd_shift = INT64_MAX - 31}, PLLM_ECORRUPT,
               "truncated");
    check_tiny((gguf_builder){.odd_tensor = "blk.0.attn_norm.weight", .odd_type = 8},
               PLLM_EUNSUPPORTED, "q8_0");
    WITH(gguf_builder_u32(&with, "general.alignment", 48), PLLM_ECORRUPT, "tiny.gguf", "48");
    WITH(gguf_builder_u32(&with, "general.alignment", 1), PLLM_EINVAL, "tiny.gguf", "alignment");
    WITH(gguf_builder_u32(&with, "general.name", 1), PLLM_ECORRUPT, "tiny.gguf", "twice");
    WITH(gguf_builder_tensor(&with, "token_embd.weight", 2, 32, 265, 8), PLLM_ECORRUPT, "tiny.gguf",
         "twice");
    gguf_builder heads = {.skip = "llama.attention.head_count_kv"};
    gguf_builder_tiny(&heads);
    heads.skip = NULL;
    gguf_builder_u32(&heads, "llama.attention.head_count_kv", 3);
    check_failure(open_tiny(&heads), PLLM_EINVAL, "tiny.gguf", "3 key-value heads");
    gguf_builder array = {.skip = "llama.attention.head_count_kv"};
    gguf_builder_tiny(&array);
    array.skip = NULL;
    int32_t per_layer[] = {1};
    gguf_builder_i32s(&array, "llama.attention.head_count_kv", per_layer, 1);
    check_failure(open_tiny(&array), PLLM_EINVAL, "tiny.gguf", "one whole number");
}

/* A file cut anywhere is refused, and nothing past its end is read. */
static void test_every_prefix(void **state)
{
    (void)state;
    gguf_builder builder = {0};
    gguf_builder_tiny(&builder);
    uint64_t bytes;
    uint8_t *file = gguf_builder_finish(&builder, &bytes);
    uint64_t last = bytes - 1; /* the last tensor is 128 bytes: any cut takes some of it */
    for (uint64_t n = 0; n <= last; n += n < 9000 ? 1 : 13) {
        uint8_t *cut = malloc(n + !n); /* its own allocation, so that the sanitizer sees the end */
        memcpy(cut, file, n);
        pllm_model *model = NULL;
        int status = pllm_model_open_gguf_memory(NULL, "cut.gguf", cut, n, &model);
        if (status != PLLM_ECORRUPT && status != PLLM_EINVAL)
            fail_msg("%llu bytes of %llu: status %d", (unsigned long long)n,
                     (unsigned long long)bytes, status);
        assert_non_null(strstr(pllm_last_error()->text, "cut.gguf"));
        free(cut);
    }
    free(file);
}

/* Bytes changed at random: any status of the list, no crash. Seeded; the seed is printed. */
static void test_random_damage(void **state)
{
    (void)state;
    gguf_builder builder = {0};
    gguf_builder_tiny(&builder);
    uint64_t bytes, seed = 20240611, opened = 0;
    uint8_t *file = gguf_builder_finish(&builder, &bytes), *copy = malloc(bytes);
    pllm_context_options quiet = {.struct_bytes = sizeof quiet, .log_level = PLLM_LOG_ERROR};
    pllm_context *context;
    assert_int_equal(pllm_context_open(&quiet, &context), PLLM_OK);
    print_message("seed %llu\n", (unsigned long long)seed);
    for (uint32_t run = 0; run < 3000; run++) {
        memcpy(copy, file, bytes);
        for (uint32_t i = 0; i < 1 + run % 3; i++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            copy[(seed >> 33) % (run % 2 ? 700 : 9000)] = (uint8_t)(seed >> 24);
        }
        pllm_model *model = NULL;
        int status = pllm_model_open_gguf_memory(context, "t", copy, bytes, &model);
        assert_in_range(-status, 0, 15);
        pllm_tokenizer *tokenizer = NULL;
        if (status == PLLM_OK && pllm_tokenizer_open(context, model, &tokenizer) == PLLM_OK)
            opened++;
        pllm_tokenizer_close(tokenizer);
        pllm_model_close(model);
    }
    assert_in_range(opened, 100, 2999); /* some damage is harmless, some is not */
    pllm_context_close(context);
    free(copy);
    free(file);
}

/* ---- counts that ask for more than there is ---- */

static void test_absurd_counts(void **state)
{
    (void)state;
    struct {
        char magic[4];
        uint32_t version;
        uint64_t tensors, values;
        uint64_t rest[8];
    } head = {.magic = "GGUF", .version = 3};
    pllm_model *model;
    head.tensors = UINT64_MAX;
    check_failure(pllm_model_open_gguf_memory(NULL, "h", (void *)&head, sizeof head, &model),
                  PLLM_ECORRUPT, "h:", "18446744073709551615 tensors");
    head.tensors = 0;
    head.values = (uint64_t)1 << 62;
    check_failure(pllm_model_open_gguf_memory(NULL, "h", (void *)&head, sizeof head, &model),
                  PLLM_ECORRUPT, "h:", "metadata values");
    head.values = 1;
    head.rest[0] = UINT64_MAX; /* a key's length */
    check_failure(pllm_model_open_gguf_memory(NULL, "h", (void *)&head, sizeof head, &model),
                  PLLM_ECORRUPT, "h:", "truncated");
    head.rest[0] = 8;
    memcpy(&head.rest[1], "a string", 8);
    head.rest[2] = 9 | (uint64_t)4 << 32; /* an array of u32 */
    head.rest[3] = (uint64_t)1 << 62;     /* elements: times 4 overflows */
    check_failure(pllm_model_open_gguf_memory(NULL, "h", (void *)&head, sizeof head, &model),
                  PLLM_ECORRUPT, "h:", "4611686018427387904");
    check_failure(pllm_model_open_gguf_memory(NULL, "h", (const void *)"GGML", 4, &model),
                  PLLM_EINVAL, "h:", "not a GGUF");
}

/* ---- safetensors ---- */

/* The header is padded with spaces to whole multiples of align bytes. */
static int parse_safetensors(const char *header, uint64_t align, uint64_t data_bytes,
                             uint64_t claim)
{
    uint64_t text_bytes = (strlen(header) + align - 1) / align * align;
    uint64_t bytes = 8 + text_bytes + data_bytes;
    uint8_t *file = calloc(1, bytes);
    memset(file + 8, ' ', text_bytes);
    if (claim == 0) claim = text_bytes;
    memcpy(file, &claim, 8);
    memcpy(file + 8, header, strlen(header));
    pllm_safetensors *parsed = NULL;
    int status = pllm_safetensors_parse(NULL, "m.safetensors", file, bytes, &parsed);
    pllm_safetensors_close(parsed);
    free(file);
    return status;
}

static void test_safetensors(void **state)
{
    (void)state;
    const struct {
        const char *header;
        uint64_t data_bytes;
        int status;
        const char *point;
    } cases[] = {
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}} ", 8, PLLM_OK, ""},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}} ", 7, PLLM_ECORRUPT,
         "truncated"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}} ", 9, PLLM_ECORRUPT,
         "belong to no tensor"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}} ", 8, PLLM_ECORRUPT,
         "need 12"},
        {"{\"a\":{\"dtype\":\"F33\",\"shape\":[2],\"data_offsets\":[0,8]}} ", 8, PLLM_EUNSUPPORTED,
         "F33"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}} ", 8, PLLM_ECORRUPT,
         "data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}", 8, PLLM_ECORRUPT,
         "no size"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387905],"
         "\"data_offsets\":[0,4]}} ",
         4, PLLM_ECORRUPT, "overflows"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4,
         PLLM_EUNSUPPORTED, "more than 8"},
        {"{\"a\":{\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":[0,4]},"
         "\"b\":{\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":[3,7]}}",
         7, PLLM_ECORRUPT, "overlap"},
        {"{\"a\":{\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":[0,4]},"
         "\"b\":{\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":[5,9]}}",
         9, PLLM_ECORRUPT, "hole"},
        {"{\"a\":{\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":[0,4]},"
         "\"a\":{\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":[0,4]}}",
         4, PLLM_ECORRUPT, "JSON"},
        {"{\"a\":5}", 0, PLLM_ECORRUPT, "\"a\""},
        {"{}", 0, PLLM_ECORRUPT, "0 tensors"},
        {"[]", 0, PLLM_ECORRUPT, "not an object"},
        {"{\"a\":", 0, PLLM_ECORRUPT, "JSON"},
    };
    for (uint32_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int status = parse_safetensors(cases[i].header, 8, cases[i].data_bytes, 0);
        if (cases[i].status == PLLM_OK)
            assert_int_equal(status, PLLM_OK);
        else
            check_failure(status, cases[i].status, "m.safetensors", cases[i].point);
    }
    check_failure(parse_safetensors("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],"
                                    "\"data_offsets\":[0,4]}}   ",
                                    1, 4, 0),
                  PLLM_EUNSUPPORTED, "m.safetensors", "not a multiple");
    check_failure(parse_safetensors("{}", 8, 0, UINT64_MAX), PLLM_ECORRUPT, "m.safetensors",
                  "18446744073709551615");
    check_failure(parse_safetensors("{}", 1, 0, 3), PLLM_ECORRUPT, "m.safetensors", "truncated");
}

/* ---- config.json ---- */

#define SIZES                                                                 \
    "\"model_type\":\"llama\",\"hidden_size\":64,\"num_hidden_layers\":3,"    \
    "\"num_attention_heads\":4,\"intermediate_size\":160,\"vocab_size\":320," \
    "\"max_position_embeddings\":512"

static int parse_config(const char *text, pllm_model_shape *shape)
{
    return pllm_config_parse(NULL, "config.json", text, strlen(text), shape);
}

static void test_config_right(void **state)
{
    (void)state;
    pllm_model_shape shape;
    assert_int_equal(parse_config("{" SIZES "}", &shape), PLLM_OK);
    assert_int_equal(shape.kv_head_count, 4);
    assert_int_equal(shape.head_dim, 16);
    assert_int_equal(shape.bos_id, PLLM_NO_TOKEN);
    assert_int_equal(shape.eos_count, 0);
    assert_true(shape.rope.base == 10000.0f);
    assert_int_equal(parse_config("{" SIZES ",\"rope_theta\":5e5,\"head_dim\":32,"
                                  "\"num_key_value_heads\":2,\"eos_token_id\":[2,5],"
                                  "\"tie_word_embeddings\":true,\"torch_dtype\":\"bfloat16\","
                                  "\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}}",
                                  &shape),
                     PLLM_OK);
    assert_int_equal(shape.rope.kind, PLLM_ROPE_LINEAR);
    assert_true(shape.rope.factor == 2.0f && shape.rope.base == 5e5f);
    assert_int_equal(shape.rope.dims, 32);
    assert_int_equal(shape.eos_count, 2);
    assert_int_equal(shape.eos_ids[1], 5);
    assert_true(shape.tied_output);
    assert_int_equal(parse_config("{" SIZES
                                  ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,"
                                  "\"low_freq_factor\":1,\"high_freq_factor\":4,"
                                  "\"original_max_position_embeddings\":64},\"rope_theta\":5e5}",
                                  &shape),
                     PLLM_OK);
    assert_int_equal(shape.rope.kind, PLLM_ROPE_LLAMA3);
    assert_int_equal(shape.rope.original_context, 64);
    assert_int_equal(parse_config("{" SIZES ",\"rope_scaling\":null,\"eos_token_id\":null,"
                                  "\"sliding_window\":null,\"rope_parameters\":{"
                                  "\"rope_type\":\"default\",\"rope_theta\":7}}",
                                  &shape),
                     PLLM_OK);
    assert_true(shape.rope.base == 7.0f);
}

static void test_config_wrong(void **state)
{
    (void)state;
    const struct {
        const char *text;
        int status;
        const char *point;
    } cases[] = {
        {"{", PLLM_ECORRUPT, "JSON"},
        {"{\"a\":1,\"a\":2}", PLLM_ECORRUPT, "JSON"},
        {"{}", PLLM_EINVAL, "model_type"},
        {"{\"model_type\":\"qwen9\"}", PLLM_EUNSUPPORTED, "qwen9"},
        {"{\"model_type\":\"llama\"}", PLLM_EINVAL, "hidden_size"},
        {"{" SIZES ",\"head_dim\":-1}", PLLM_EINVAL, "head_dim"},
        {"{" SIZES ",\"head_dim\":1e3}", PLLM_EINVAL, "head_dim"},
        {"{" SIZES ",\"head_dim\":15}", PLLM_EINVAL, "15 dimensions"},
        {"{" SIZES ",\"num_key_value_heads\":3}", PLLM_EINVAL, "3 key-value heads"},
        {"{" SIZES ",\"num_key_value_heads\":99999999999}", PLLM_EINVAL, "num_key_value_heads"},
        {"{" SIZES ",\"hidden_act\":\"gelu\"}", PLLM_EUNSUPPORTED, "\"gelu\""},
        {"{" SIZES ",\"hidden_act\":\"sil\"}", PLLM_EUNSUPPORTED, "\"sil\""},
        {"{" SIZES ",\"attention_bias\":true}", PLLM_EUNSUPPORTED, "attention_bias"},
        {"{" SIZES ",\"mlp_bias\":true}", PLLM_EUNSUPPORTED, "mlp_bias"},
        {"{" SIZES ",\"quantization_config\":{}}", PLLM_EUNSUPPORTED, "quantization_config"},
        {"{" SIZES ",\"rope_interleaved\":true}", PLLM_EUNSUPPORTED, "rope_interleaved"},
        {"{" SIZES ",\"sliding_window\":4096}", PLLM_EUNSUPPORTED, "sliding_window"},
        {"{" SIZES ",\"dtype\":\"float8\"}", PLLM_EUNSUPPORTED, "float8"},
        {"{" SIZES ",\"tie_word_embeddings\":1}", PLLM_EINVAL, "tie_word_embeddings"},
        {"{" SIZES ",\"rms_norm_eps\":0}", PLLM_EINVAL, "rms_norm_eps"},
        {"{" SIZES ",\"rms_norm_eps\":2}", PLLM_EINVAL, "epsilon"},
        {"{" SIZES ",\"rope_theta\":-1}", PLLM_EINVAL, "rope_theta"},
        {"{" SIZES ",\"rope_scaling\":[]}", PLLM_EINVAL, "rope"},
        {"{" SIZES ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2}}", PLLM_EUNSUPPORTED,
         "\"yarn\""},
        {"{" SIZES ",\"rope_scaling\":{\"type\":\"linear\"}}", PLLM_EINVAL, "factor"},
        {"{" SIZES ",\"rope_scaling\":{\"type\":\"llama3\",\"factor\":2}}", PLLM_EINVAL,
         "low_freq_factor"},
        {"{" SIZES ",\"rope_scaling\":{\"type\":\"llama3\",\"factor\":2,\"low_freq_factor\":4,"
         "\"high_freq_factor\":4,\"original_max_position_embeddings\":9}}",
         PLLM_EINVAL, "must be above"},
        {"{" SIZES ",\"rope_parameters\":{\"full_attention\":{}}}", PLLM_EUNSUPPORTED,
         "full_attention"},
        {"{" SIZES ",\"partial_rotary_factor\":0.5}", PLLM_EUNSUPPORTED, "partial_rotary_factor"},
        {"{" SIZES ",\"eos_token_id\":320}", PLLM_EINVAL, "eos_token_id"},
        {"{" SIZES ",\"eos_token_id\":\"2\"}", PLLM_EINVAL, "eos_token_id"},
        {"{" SIZES ",\"eos_token_id\":[1,2,3,4,5,6,7,8,9]}", PLLM_ELIMIT, "eos_token_id"},
        {"{" SIZES ",\"bos_token_id\":-1}", PLLM_EINVAL, "bos_token_id"},
    };
    pllm_model_shape shape;
    for (uint32_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        check_failure(parse_config(cases[i].text, &shape), cases[i].status, "config.json",
                      cases[i].point);
}

/* GGUF stores only what Llama 3's rope rule gives; it is known again by its numbers. */
static void test_rope_factors(void **state)
{
    (void)state;
    enum { PAIRS = 64 };
    pllm_model_shape shape;
    float values[PAIRS];
    pllm_tensor_view view = {.name = "rope_freqs.weight",
                             .rank = 1,
                             .shape = {PAIRS, 1, 1, 1},
                             .data = values,
                             .bytes = sizeof values};
    for (uint32_t kind = 0; kind < 4; kind++) {
        assert_int_equal(parse_config("{" SIZES ",\"head_dim\":128,\"rope_theta\":5e5}", &shape),
                         PLLM_OK);
        for (uint32_t i = 0; i < PAIRS; i++) { /* as a converter computes it, in wave lengths */
            double wave = 2 * 3.14159265358979 * pow(5e5, 2.0 * i / 128);
            double smooth = (8192 / wave - 1) / 3;
            double blend = 1 / ((1 - smooth) / 32 + smooth);
            values[i] = (float)(wave < 8192 / 4.0 ? 1 : wave > 8192 ? 32 : blend);
            if (kind == 1) values[i] = 1;
            if (kind == 2 && i == 40) values[i] *= 1.1f;
        }
        view.shape[0] = kind == 3 ? 63 : PAIRS;
        int status = pllm_config_rope_factors("f.gguf", &view, &shape);
        if (kind == 2)
            check_failure(status, PLLM_EUNSUPPORTED, "f.gguf", "rope_freqs.weight");
        else if (kind == 3)
            check_failure(status, PLLM_ECORRUPT, "f.gguf", "64 numbers");
        else
            assert_int_equal(status, PLLM_OK);
        assert_int_equal(shape.rope.kind, kind == 0 ? PLLM_ROPE_LLAMA3 : PLLM_ROPE_DEFAULT);
        if (kind == 0)
            assert_true(shape.rope.factor == 32.0f && shape.rope.original_context == 8192);
    }
    gguf_builder ones = {0}, wrong = {0};
    gguf_builder_tiny(&wrong);
    gguf_builder_tensor(&wrong, "rope_freqs.weight", 1, 8, 1, 0); /* the builder's own bytes */
    check_failure(open_tiny(&wrong), PLLM_EUNSUPPORTED, "tiny.gguf", "rope_freqs.weight");
    gguf_builder_tiny(&ones);
    gguf_builder_tensor(&ones, "rope_freqs.weight", 1, 7, 1, 0);
    check_failure(open_tiny(&ones), PLLM_ECORRUPT, "tiny.gguf", "8 numbers");
}

/* ---- files and folders ---- */

static void write_file(const char *folder, const char *name, const void *data, size_t bytes)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    fclose(file);
}

static void write_text(const char *folder, const char *name, const char *text)
{
    write_file(folder, name, text, strlen(text));
}

static void copy_file(const char *from, const char *folder, const char *name)
{
    static char data[1 << 20];
    FILE *file = fopen(from, "rb");
    assert_non_null(file);
    size_t bytes = fread(data, 1, sizeof data, file);
    fclose(file);
    write_file(folder, name, data, bytes);
}

static void test_folder(void **state)
{
    (void)state;
    const char *tiny = PLLM_SOURCE_DIR "/tests/reference/models/llama/";
    char folder[] = "/tmp/pagedllm-test-XXXXXX", command[600], from[512];
    pllm_model *model = NULL;
    assert_non_null(mkdtemp(folder));
    check_failure(pllm_model_open(NULL, "/nowhere/model.gguf", NULL, &model), PLLM_ENOTFOUND,
                  "/nowhere/model.gguf", "no such file");
    check_failure(pllm_model_open(NULL, "/dev/null", NULL, &model), PLLM_EINVAL, "/dev/null",
                  "regular");
    check_failure(pllm_model_open(NULL, folder, NULL, &model), PLLM_ENOTFOUND, folder,
                  "config.json");
    write_text(folder, "config.json", "");
    check_failure(pllm_model_open(NULL, folder, NULL, &model), PLLM_ECORRUPT, folder, "empty");
    snprintf(from, sizeof from, "%sconfig.json", tiny);
    copy_file(from, folder, "config.json");
    check_failure(pllm_model_open(NULL, folder, NULL, &model), PLLM_ENOTFOUND, folder,
                  "neither model.safetensors");
    const char *index = "model.safetensors.index.json";
    write_text(folder, index, "{\"weight_map\":{\"x\":\"../x.safetensors\"}}");
    check_failure(pllm_model_open(NULL, folder, NULL, &model), PLLM_ECORRUPT, index,
                  "no safetensors file of this folder");
    write_text(folder, index, "{\"weight_map\":{\"x\":\"gone.safetensors\"}}");
    check_failure(pllm_model_open(NULL, folder, NULL, &model), PLLM_ENOTFOUND, folder,
                  "gone.safetensors");
    snprintf(from, sizeof from, "%smodel.safetensors", tiny);
    copy_file(from, folder, "a-1.safetensors");
    write_text(folder, index, "{\"weight_map\":{\"x\":\"a-1.safetensors\"}}");
    check_failure(pllm_model_open(NULL, folder, NULL, &model), PLLM_ECORRUPT, index,
                  "holds tensor x");
    write_text(folder, index, "{\"weight_map\":{\"lm_head.weight\":\"a-1.safetensors\"}}");
    assert_int_equal(pllm_model_open(NULL, folder, NULL, &model), PLLM_OK);
    pllm_model_close(model);
    snprintf(command, sizeof command, "rm -r '%s'", folder);
    assert_int_equal(system(command), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_right_file),
        cmocka_unit_test(test_fingerprint),
        cmocka_unit_test(test_missing),
        cmocka_unit_test(test_unsupported),
        cmocka_unit_test(test_tokenizer_refusals),
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_every_prefix),
        cmocka_unit_test(test_random_damage),
        cmocka_unit_test(test_absurd_counts),
        cmocka_unit_test(test_safetensors),
        cmocka_unit_test(test_config_right),
        cmocka_unit_test(test_config_wrong),
        cmocka_unit_test(test_rope_factors),
        cmocka_unit_test(test_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
