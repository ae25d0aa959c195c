/* shapes.c - published models by name, with random weights instead of files.
 *
 * What a forward pass costs depends on shapes and formats, not on values, so that the speed of a
 * 70B model can be measured without 140 GB of download. A shape is one row of the table below. Its
 * tensors are views of an imaginary file: they have names, shapes, sizes and offsets, and data
 * NULL.
 *
 * Who needs the values makes them row by row, wherever the weights shall lie. The generator is
 * counter-based (the finaliser of SplitMix64: Steele, Lea, Flood, OOPSLA 2014): the counter is the
 * place in the imaginary file, so bits do not depend on order, pieces or threads.
 *
 * Values: mean 0, deviation 0.02, the width of a common initialisation. With weights larger by
 * much, softmax would attend one token only; smaller ones would end in subnormal numbers. */
#include <stdio.h>
#include <string.h>
#include <xxhash.h>
#include "model/model_internal.h"

enum { NAME_BYTES = 40, CONTEXT_MAX = 1 << 22 };

typedef struct shape_row {
    const char *name;
    uint32_t layers, width, heads, kv_heads, ffn, vocab, context;
    float rope_base;
    int rope_llama3, tied;
} shape_row;

/* From the models' own config.json. All of the llama family, head_dim = width / heads. */
static const shape_row rows[] = {
    {"llama-2-7b", 32, 4096, 32, 32, 11008, 32000, 4096, 1e4f, 0, 0},
    {"llama-3.1-8b", 32, 4096, 32, 8, 14336, 128256, 131072, 5e5f, 1, 0},
    {"llama-2-70b", 80, 8192, 64, 8, 28672, 32000, 4096, 1e4f, 0, 0},
    {"tinyllama-1.1b", 22, 2048, 32, 4, 5632, 32000, 2048, 1e4f, 0, 0},
    {"smollm2-135m", 30, 576, 9, 3, 1536, 49152, 8192, 1e5f, 0, 1},
};

const char *pllm_shape_name(uint32_t index)
{
    return index < sizeof rows / sizeof rows[0] ? rows[index].name : NULL;
}

int pllm_model_synthetic(const pllm_model *model)
{
    return model->synthetic;
}

/* ---- values --------------------------------------------------------------------------------- */

static uint64_t mix_counter(uint64_t counter)
{
    uint64_t z = counter * 0x9e3779b97f4a7c15u + 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Sixteen nibbles with mean 8: 0 becomes 8, so that 1 to 15 lie around it. Deviation 4.183. */
static uint64_t nibbles_around_8(uint64_t v)
{
    uint64_t any = (v | v >> 1 | v >> 2 | v >> 3) & 0x1111111111111111u;
    return v | (any ^ 0x1111111111111111u) << 3;
}

/* Eight signed bytes with mean 0: -128 becomes 0. Deviation 73.47. */
static uint64_t bytes_around_0(uint64_t v)
{
    const uint64_t low = 0x7f7f7f7f7f7f7f7fu;
    uint64_t other = v ^ ~low;
    uint64_t is_least = ~(((other & low) + low) | other | low);
    return v ^ is_least;
}

static void put_half(uint8_t *to, float value)
{
    uint16_t half = pllm_f32_to_f16(value);
    memcpy(to, &half, sizeof half);
}

static void fill_block(uint8_t *to, pllm_dtype dtype, uint64_t counter)
{
    uint64_t word;
    switch (dtype) {
    case PLLM_Q8_0:
        put_half(to, 0.02f / 73.47f);
        for (uint32_t i = 0; i < 4; i++) {
            word = bytes_around_0(mix_counter(counter + i));
            memcpy(to + 2 + 8 * i, &word, sizeof word);
        }
        return;
    case PLLM_Q4_0:
        put_half(to, 0.02f / 4.183f);
        for (uint32_t i = 0; i < 2; i++) {
            word = nibbles_around_8(mix_counter(counter + i));
            memcpy(to + 2 + 8 * i, &word, sizeof word);
        }
        return;
    default: /* Q4_1: the same values, d * nibble - 8 d */
        put_half(to, 0.02f / 4.183f);
        put_half(to + 2, -8 * pllm_f16_to_f32(pllm_f32_to_f16(0.02f / 4.183f)));
        for (uint32_t i = 0; i < 2; i++) {
            word = nibbles_around_8(mix_counter(counter + i));
            memcpy(to + 4 + 8 * i, &word, sizeof word);
        }
        return;
    }
}

/* A uniform value for each quarter of a word, odd multiples of half a step: symmetric around 0. */
static float uniform(uint64_t word, uint32_t quarter)
{
    int32_t odd = (int32_t)(word >> (16 * quarter) & 0xffff) * 2 - 0xffff;
    return (float)odd * (0.02f * 1.7320508f / 0xffff);
}

static void fill_plain(uint8_t *to, pllm_dtype dtype, uint64_t counter, uint64_t k)
{
    for (uint64_t i = 0; i < k; i += 4) {
        uint64_t word = mix_counter(counter + i);
        uint32_t count = k - i < 4 ? (uint32_t)(k - i) : 4;
        for (uint32_t j = 0; j < count; j++) {
            float value = uniform(word, j);
            uint16_t half;
            if (dtype == PLLM_F32) {
                memcpy(to + 4 * (i + j), &value, sizeof value);
                continue;
            }
            half = dtype == PLLM_F16 ? pllm_f32_to_f16(value) : pllm_f32_to_bf16(value);
            memcpy(to + 2 * (i + j), &half, sizeof half);
        }
    }
}

void pllm_tensor_random(const pllm_tensor_view *view, uint64_t row_first, uint64_t row_count,
                        void *out)
{
    if (view->rank == 1) {
        const float one = 1;
        for (uint64_t i = 0; i < row_count; i++)
            memcpy((uint8_t *)out + i * sizeof one, &one, sizeof one);
        return;
    }
    uint64_t k = view->shape[1], row_bytes = view->bytes / view->shape[0];
    uint32_t elements = pllm_dtype_block_elements(view->dtype);
    uint32_t block_bytes = pllm_dtype_block_bytes(view->dtype);
    for (uint64_t r = 0; r < row_count; r++) {
        uint8_t *to = (uint8_t *)out + r * row_bytes;
        uint64_t place = view->file_offset + (row_first + r) * row_bytes;
        if (elements == 1)
            fill_plain(to, view->dtype, place, k);
        else
            for (uint64_t b = 0; b < k / elements; b++)
                fill_block(to + b * block_bytes, view->dtype, place + b * block_bytes);
    }
}

/* ---- the imaginary file --------------------------------------------------------------------- */

typedef struct layout {
    pllm_model *model;
    pllm_dtype dtype;
    char *name; /* the next one goes here */
    uint64_t offset;
} layout;

/* columns 0: a vector. */
static int place(layout *l, const char *format, uint32_t layer, uint64_t row_count,
                 uint64_t columns, pllm_tensor_view *view)
{
    const char *mark = strstr(format, "%u"); /* the family table's own formats */
    if (mark)
        snprintf(l->name, NAME_BYTES, "%.*s%u%s", (int)(mark - format), format, layer, mark + 2);
    else
        snprintf(l->name, NAME_BYTES, "%s", format);
    *view = (pllm_tensor_view){.name = l->name,
                               .dtype = columns ? l->dtype : PLLM_F32,
                               .rank = columns ? 2 : 1,
                               .shape = {row_count, columns ? columns : 1, 1, 1},
                               .bytes = row_count * sizeof(float),
                               .file_offset = l->offset};
    l->name += NAME_BYTES;
    if (columns) {
        uint64_t row_bytes;
        int status = pllm_dtype_row_bytes(l->dtype, columns, &row_bytes);
        if (status < 0) return status;
        view->bytes = row_count * row_bytes;
    }
    l->offset += view->bytes;
    l->model->bytes += view->bytes;
    return PLLM_OK;
}

static int place_layer(layout *l, const pllm_tensor_names *names, uint32_t layer)
{
    const pllm_model_shape *s = &l->model->shape;
    pllm_layer_tensors *into = &l->model->layers[layer];
    uint64_t q_rows = (uint64_t)s->head_count * s->head_dim;
    uint64_t kv_rows = (uint64_t)s->kv_head_count * s->head_dim;
    const struct {
        const char *format;
        uint64_t row_count, columns;
        pllm_tensor_view *into;
    } wanted[] = {
        {names->attention_norm, s->width, 0, &into->attention_norm},
        {names->q, q_rows, s->width, &into->q},
        {names->k, kv_rows, s->width, &into->k},
        {names->v, kv_rows, s->width, &into->v},
        {names->o, s->width, q_rows, &into->o},
        {names->ffn_norm, s->width, 0, &into->ffn_norm},
        {names->gate, s->ffn_width, s->width, &into->gate},
        {names->up, s->ffn_width, s->width, &into->up},
        {names->down, s->width, s->ffn_width, &into->down},
    };
    int status = PLLM_OK;
    for (size_t i = 0; status == PLLM_OK && i < sizeof wanted / sizeof wanted[0]; i++)
        status = place(l, wanted[i].format, layer, wanted[i].row_count, wanted[i].columns,
                       wanted[i].into);
    return status;
}

static int place_all(pllm_model *model, pllm_dtype dtype)
{
    const pllm_model_shape *s = &model->shape;
    const pllm_tensor_names *names = &s->family->gguf;
    uint64_t name_bytes = ((uint64_t)s->layer_count * 9 + 3) * NAME_BYTES;
    model->layers = pllm_alloc_array(model->context, s->layer_count, sizeof *model->layers);
    model->names = pllm_alloc(model->context, name_bytes);
    if (!model->layers || !model->names) return pllm_fail_memory("tensor tables", name_bytes);
    layout l = {.model = model, .dtype = dtype, .name = model->names};
    int status = place(&l, names->embedding, 0, s->vocab_size, s->width, &model->embedding);
    for (uint32_t i = 0; status == PLLM_OK && i < s->layer_count; i++)
        status = place_layer(&l, names, i);
    if (status == PLLM_OK)
        status = place(&l, names->output_norm, 0, s->width, 0, &model->output_norm);
    if (status < 0) return status;
    if (s->tied_output) {
        model->output = model->embedding;
        return PLLM_OK;
    }
    return place(&l, names->output, 0, s->vocab_size, s->width, &model->output);
}

static void take_shape(const shape_row *row, uint32_t context_max, pllm_model_shape *shape)
{
    *shape = (pllm_model_shape){
        .family = pllm_family_find("llama", 5),
        .layer_count = row->layers,
        .width = row->width,
        .head_count = row->heads,
        .kv_head_count = row->kv_heads,
        .head_dim = row->width / row->heads,
        .ffn_width = row->ffn,
        .vocab_size = row->vocab,
        .context_max = context_max ? context_max : row->context,
        .norm_epsilon = 1e-5f,
        .rope = {.kind = row->rope_llama3 ? PLLM_ROPE_LLAMA3 : PLLM_ROPE_DEFAULT,
                 .base = row->rope_base,
                 .factor = row->rope_llama3 ? 8 : 1,
                 .low_freq_factor = 1,
                 .high_freq_factor = row->rope_llama3 ? 4 : 1,
                 .original_context = row->rope_llama3 ? 8192 : 0,
                 .dims = row->width / row->heads,
                 .interleaved = 1},
        .tied_output = row->tied,
        .bos_id = PLLM_NO_TOKEN,
    };
}

static int find_row(const char *name, const shape_row **row_out)
{
    char list[160] = "";
    for (uint32_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if (strcmp(rows[i].name, name) == 0) {
            *row_out = &rows[i];
            return PLLM_OK;
        }
        size_t used = strlen(list);
        snprintf(list + used, sizeof list - used, "%s%s", i ? ", " : "", rows[i].name);
    }
    if (strcmp(name, "mixtral-8x7b") == 0)
        return pllm_fail(PLLM_EUNSUPPORTED, 0,
                         "shape mixtral-8x7b is a mixture of experts, a family that does not run "
                         "yet: use one of %s",
                         list);
    char shown[80];
    return pllm_fail(PLLM_ENOTFOUND, 0, "shape '%s' is unknown: use one of %s",
                     pllm_printable(shown, name, strlen(name)), list);
}

int pllm_model_open_shape(const pllm_context *context, const pllm_shape_options *options,
                          pllm_model **out)
{
    if (!out) return pllm_fail(PLLM_EINVAL, 0, "out is NULL");
    *out = NULL;
    if (!options || options->struct_bytes < sizeof *options || !options->name)
        return pllm_fail(PLLM_EINVAL, 0,
                         "pllm_shape_options need struct_bytes of %zu and the name of a shape",
                         sizeof *options);
    if (options->dtype > PLLM_Q4_1)
        return pllm_fail(PLLM_EINVAL, 0,
                         "weights cannot be in %s: use f32, f16, bf16, q8_0, q4_0 or q4_1",
                         pllm_dtype_name(options->dtype));
    if (options->context_max > CONTEXT_MAX)
        return pllm_fail(PLLM_ELIMIT, 0, "a context of %u tokens is more than the %u of any shape",
                         options->context_max, CONTEXT_MAX);
    const shape_row *row = NULL;
    int status = find_row(options->name, &row);
    if (status < 0) return status;
    char path[80];
    snprintf(path, sizeof path, "%s (random %s)", row->name, pllm_dtype_name(options->dtype));
    pllm_model *model;
    status = pllm_model_create(context, path, &model);
    if (status < 0) return status;
    model->synthetic = 1;
    take_shape(row, options->context_max, &model->shape);
    status = place_all(model, options->dtype);
    if (status < 0) {
        pllm_model_close(model);
        return status;
    }
    /* Everything else follows from the row and the format. */
    model->fingerprint = XXH3_64bits(path, strlen(path));
    *out = model;
    return PLLM_OK;
}
