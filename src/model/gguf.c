/* gguf.c - a cursor over hostile bytes: every read says how much it needs before it looks.
 *
 * Invariants: cursor.at <= cursor.end; a failed read writes the sentence once and the parse ends.
 * Counts are believed only as far as the bytes that are left could hold them, so that a header of
 * 50 bytes cannot ask for gigabytes. */
#include <math.h>
#include <string.h>
#include <xxhash.h>
#include "model/file_map.h"
#include "model/gguf.h"

#define VALUE_COUNT_MAX 4096u    /* published files have 20 to 60 */
#define TENSOR_COUNT_MAX 262144u /* the largest mixtures have some tens of thousands */
#define NAME_BYTES_MAX 255u
#define ALIGNMENT_MAX (1u << 20)

typedef struct cursor {
    const uint8_t *base, *at, *end;
    const char *file;
} cursor;

static const uint8_t scalar_bytes[PLLM_GGUF_TYPE_COUNT] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

static int take(cursor *from, void *into, uint64_t bytes, const char *what)
{
    uint64_t left = (uint64_t)(from->end - from->at);
    if (bytes > left)
        return pllm_fail(PLLM_ECORRUPT, 0,
                         "%s: truncated: %s at byte %llu needs %llu bytes and %llu are left; fetch "
                         "the file again",
                         from->file, what, (unsigned long long)(from->at - from->base),
                         (unsigned long long)bytes, (unsigned long long)left);
    if (into) memcpy(into, from->at, bytes);
    from->at += bytes;
    return PLLM_OK;
}

static int take_string(cursor *from, const char **text, uint64_t *bytes, const char *what)
{
    *bytes = 0;
    int status = take(from, bytes, 8, what);
    if (status < 0) return status;
    *text = (const char *)from->at;
    return take(from, NULL, *bytes, what);
}

/* The payload of one value: data and bytes are set, at moves past it. */
static int take_payload(cursor *from, pllm_gguf_value *value)
{
    value->data = from->at;
    if (value->type == PLLM_GGUF_STRING) {
        for (uint64_t i = 0; i < value->count; i++) {
            const char *text;
            uint64_t bytes;
            int status = take_string(from, &text, &bytes, "a metadata string");
            if (status < 0) return status;
        }
    } else {
        uint64_t bytes;
        if (__builtin_mul_overflow(value->count, (uint64_t)scalar_bytes[value->type], &bytes))
            bytes = UINT64_MAX;
        int status = take(from, NULL, bytes, "a metadata array");
        if (status < 0) return status;
    }
    value->bytes = (uint64_t)(from->at - value->data);
    return PLLM_OK;
}

static int take_value(cursor *from, pllm_gguf_value *value)
{
    char shown[80];
    int status = take_string(from, &value->key, &value->key_bytes, "a metadata key");
    if (status < 0) return status;
    if (value->key_bytes == 0 || value->key_bytes > 65535)
        return pllm_fail(PLLM_ECORRUPT, 0,
                         "%s: a metadata key has %llu bytes; 1 to 65535 are valid", from->file,
                         (unsigned long long)value->key_bytes);
    value->key_hash = XXH3_64bits(value->key, value->key_bytes);
    pllm_printable(shown, value->key, value->key_bytes);
    status = take(from, &value->type, 4, "a metadata type");
    if (status < 0) return status;
    value->count = 1;
    if (value->type == PLLM_GGUF_ARRAY) {
        value->is_array = 1;
        if ((status = take(from, &value->type, 4, "an array's type")) < 0) return status;
        if ((status = take(from, &value->count, 8, "an array's length")) < 0) return status;
        if (value->type == PLLM_GGUF_ARRAY)
            return pllm_fail(PLLM_EUNSUPPORTED, 0,
                             "%s: metadata %s is an array of arrays, which is not read here",
                             from->file, shown);
    }
    if (value->type >= PLLM_GGUF_TYPE_COUNT)
        return pllm_fail(PLLM_ECORRUPT, 0,
                         "%s: metadata %s has type %u; the format knows 0 to 12; the file is "
                         "damaged or newer than this program",
                         from->file, shown, value->type);
    uint64_t least = value->type == PLLM_GGUF_STRING ? 8 : scalar_bytes[value->type];
    uint64_t left = (uint64_t)(from->end - from->at);
    if (value->count > left / least)
        return pllm_fail(PLLM_ECORRUPT, 0,
                         "%s: truncated: metadata %s claims %llu elements and %llu bytes are left",
                         from->file, shown, (unsigned long long)value->count,
                         (unsigned long long)left);
    return take_payload(from, value);
}

static int parse_values(cursor *from, pllm_gguf *gguf)
{
    for (uint32_t i = 0; i < gguf->value_count; i++) {
        pllm_gguf_value *value = &gguf->values[i];
        int status = take_value(from, value);
        if (status < 0) return status;
        for (uint32_t j = 0; j < i; j++) {
            const pllm_gguf_value *other = &gguf->values[j];
            char shown[80];
            if (other->key_hash == value->key_hash && other->key_bytes == value->key_bytes &&
                memcmp(other->key, value->key, value->key_bytes) == 0)
                return pllm_fail(PLLM_ECORRUPT, 0, "%s: metadata %s is there twice", gguf->file,
                                 pllm_printable(shown, value->key, value->key_bytes));
        }
    }
    return PLLM_OK;
}

static const char *const type_names[] = {
    "F32",   "F16",        "Q4_0",       "Q4_1",       "Q4_2",     "Q4_3",     "Q5_0",
    "Q5_1",  "Q8_0",       "Q8_1",       "Q2_K",       "Q3_K",     "Q4_K",     "Q5_K",
    "Q6_K",  "Q8_K",       "IQ2_XXS",    "IQ2_XS",     "IQ3_XXS",  "IQ1_S",    "IQ4_NL",
    "IQ3_S", "IQ2_S",      "IQ4_XS",     "I8",         "I16",      "I32",      "I64",
    "F64",   "IQ1_M",      "BF16",       "Q4_0_4_4",   "Q4_0_4_8", "Q4_0_8_8", "TQ1_0",
    "TQ2_0", "IQ4_NL_4_4", "IQ4_NL_4_8", "IQ4_NL_8_8", "MXFP4",
};

static int dtype_of(uint32_t type, pllm_dtype *dtype)
{
    switch (type) {
    case 0:
        *dtype = PLLM_F32;
        return 1;
    case 1:
        *dtype = PLLM_F16;
        return 1;
    case 2:
        *dtype = PLLM_Q4_0;
        return 1;
    case 3:
        *dtype = PLLM_Q4_1;
        return 1;
    case 8:
        *dtype = PLLM_Q8_0;
        return 1;
    case 30:
        *dtype = PLLM_BF16;
        return 1;
    default:
        return 0;
    }
}

/* Name, dims and type; fills everything but data. The dims come innermost first. */
static int take_tensor(cursor *from, pllm_gguf *gguf, pllm_tensor_view *tensor, char **names)
{
    const char *name;
    uint64_t name_bytes, dims[4] = {1, 1, 1, 1};
    uint32_t type = 0;
    char shown[80];
    int status = take_string(from, &name, &name_bytes, "a tensor's name");
    if (status < 0) return status;
    pllm_printable(shown, name, name_bytes);
    if (name_bytes == 0 || name_bytes > NAME_BYTES_MAX || memchr(name, 0, name_bytes))
        return pllm_fail(PLLM_ECORRUPT, 0,
                         "%s: a tensor's name (\"%s\") has %llu bytes or a zero byte inside; 1 to "
                         "%u are valid",
                         gguf->file, shown, (unsigned long long)name_bytes, NAME_BYTES_MAX);
    memcpy(*names, name, name_bytes); /* zeroed memory: the terminator is there */
    tensor->name = *names;
    *names += name_bytes + 1;
    if ((status = take(from, &tensor->rank, 4, "a tensor's rank")) < 0) return status;
    if (tensor->rank == 0 || tensor->rank > 4)
        return pllm_fail(PLLM_ECORRUPT, 0, "%s: tensor %s has rank %u; 1 to 4 are valid",
                         gguf->file, shown, tensor->rank);
    if ((status = take(from, dims, 8 * (uint64_t)tensor->rank, "a tensor's shape")) < 0)
        return status;
    if ((status = take(from, &type, 4, "a tensor's type")) < 0) return status;
    if ((status = take(from, &tensor->file_offset, 8, "a tensor's offset")) < 0) return status;
    if (!dtype_of(type, &tensor->dtype)) {
        const uint32_t known = sizeof type_names / sizeof type_names[0];
        return pllm_fail(PLLM_EUNSUPPORTED, 0,
                         "%s: tensor %s is stored as %s (GGUF type %u), which is not read here; "
                         "use a file in F32, F16, BF16, Q8_0, Q4_0 or Q4_1",
                         gguf->file, shown, type < known ? type_names[type] : "an unknown type",
                         type);
    }
    uint64_t rows = 1;
    for (uint32_t i = 0; i < 4; i++) {
        tensor->shape[i] = i < tensor->rank ? dims[tensor->rank - 1 - i] : 1;
        if (dims[i] == 0 || (i > 0 && __builtin_mul_overflow(rows, dims[i], &rows)))
            return pllm_fail(PLLM_ECORRUPT, 0,
                             "%s: tensor %s has a shape [%llu, %llu, %llu, %llu] that is empty or "
                             "overflows",
                             gguf->file, shown, (unsigned long long)dims[0],
                             (unsigned long long)dims[1], (unsigned long long)dims[2],
                             (unsigned long long)dims[3]);
    }
    uint64_t row_bytes;
    if (pllm_dtype_row_bytes(tensor->dtype, dims[0], &row_bytes) < 0 ||
        __builtin_mul_overflow(row_bytes, rows, &tensor->bytes))
        return pllm_fail(PLLM_ECORRUPT, 0,
                         "%s: tensor %s: rows of %llu elements are not whole blocks of %s, or its "
                         "size overflows",
                         gguf->file, shown, (unsigned long long)dims[0],
                         pllm_dtype_name(tensor->dtype));
    return PLLM_OK;
}

/* Offsets are relative to data_start, aligned and ascending, as every writer lays them out; that
 * also rules out overlap. */
static int place_tensor(pllm_gguf *gguf, pllm_tensor_view *tensor, const uint8_t *data,
                        uint64_t bytes, uint64_t *used)
{
    char shown[80];
    uint64_t offset = tensor->file_offset, room = bytes - gguf->data_start;
    pllm_printable(shown, tensor->name, strlen(tensor->name));
    if (offset % gguf->alignment)
        return pllm_fail(PLLM_ECORRUPT, 0,
                         "%s: tensor %s starts at offset %llu, not a multiple of the alignment %u",
                         gguf->file, shown, (unsigned long long)offset, gguf->alignment);
    if (offset < *used)
        return pllm_fail(PLLM_ECORRUPT, 0,
                         "%s: tensor %s starts at offset %llu, inside the one before it, which "
                         "ends at %llu",
                         gguf->file, shown, (unsigned long long)offset, (unsigned long long)*used);
    if (offset > room || tensor->bytes > room - offset)
        return pllm_fail(PLLM_ECORRUPT, 0,
                         "%s: truncated: tensor %s has %llu bytes at offset %llu and the file "
                         "holds %llu bytes of data; fetch it again",
                         gguf->file, shown, (unsigned long long)tensor->bytes,
                         (unsigned long long)offset, (unsigned long long)room);
    *used = offset + tensor->bytes;
    tensor->file_offset = gguf->data_start + offset;
    tensor->data = data + tensor->file_offset;
    return PLLM_OK;
}

static const char *tensor_name_at(const void *owner, uint32_t number, uint64_t *bytes_out)
{
    const pllm_tensor_view *tensors = owner;
    *bytes_out = strlen(tensors[number].name);
    return tensors[number].name;
}

static int parse_tensors(cursor *from, pllm_gguf *gguf, uint64_t bytes)
{
    char *names = gguf->names, shown[80];
    int status;
    for (uint32_t i = 0; i < gguf->tensor_count; i++)
        if ((status = take_tensor(from, gguf, &gguf->tensors[i], &names)) < 0) return status;
    uint64_t header = (uint64_t)(from->at - from->base);
    gguf->data_start = (header + gguf->alignment - 1) / gguf->alignment * gguf->alignment;
    if (gguf->data_start > bytes)
        return pllm_fail(PLLM_ECORRUPT, 0,
                         "%s: truncated: ends before its tensor data, which starts at byte %llu",
                         gguf->file, (unsigned long long)gguf->data_start);
    uint64_t used = 0;
    for (uint32_t i = 0; i < gguf->tensor_count; i++) {
        status = place_tensor(gguf, &gguf->tensors[i], from->base, bytes, &used);
        if (status < 0) return status;
        if (pllm_text_index_add(&gguf->index, i) != PLLM_TEXT_NONE)
            return pllm_fail(
                PLLM_ECORRUPT, 0, "%s: tensor %s is there twice", gguf->file,
                pllm_printable(shown, gguf->tensors[i].name, strlen(gguf->tensors[i].name)));
    }
    return PLLM_OK;
}

/* Magic, version and the two counts, each held against what the file could contain. */
static int parse_head(cursor *from, pllm_gguf *gguf)
{
    char magic[4];
    uint64_t tensor_count = 0, value_count = 0;
    if (from->end - from->at < 4 || memcmp(from->at, "GGUF", 4) != 0)
        return pllm_fail(PLLM_EINVAL, 0,
                         "%s: is not a GGUF file: it does not start with the letters GGUF",
                         gguf->file);
    int status = take(from, magic, 4, "the magic");
    if (status < 0) return status;
    if ((status = take(from, &gguf->version, 4, "the version")) < 0) return status;
    if (gguf->version != 2 && gguf->version != 3) {
        int swapped = (gguf->version & 0xffff) == 0;
        return pllm_fail(PLLM_EUNSUPPORTED, 0,
                         "%s: is GGUF version %u%s; versions 2 and 3 are read: convert it again",
                         gguf->file, swapped ? __builtin_bswap32(gguf->version) : gguf->version,
                         swapped ? " in big-endian order" : "");
    }
    if ((status = take(from, &tensor_count, 8, "the tensor count")) < 0) return status;
    if ((status = take(from, &value_count, 8, "the metadata count")) < 0) return status;
    uint64_t left = (uint64_t)(from->end - from->at);
    if (tensor_count > TENSOR_COUNT_MAX || tensor_count > left / 24)
        return pllm_fail(PLLM_ECORRUPT, 0,
                         "%s: claims %llu tensors; %llu bytes are left and the limit is %u",
                         gguf->file, (unsigned long long)tensor_count, (unsigned long long)left,
                         TENSOR_COUNT_MAX);
    if (value_count > VALUE_COUNT_MAX || value_count > left / 13)
        return pllm_fail(PLLM_ECORRUPT, 0,
                         "%s: claims %llu metadata values; %llu bytes are left and the limit is %u",
                         gguf->file, (unsigned long long)value_count, (unsigned long long)left,
                         VALUE_COUNT_MAX);
    gguf->tensor_count = (uint32_t)tensor_count;
    gguf->value_count = (uint32_t)value_count;
    return PLLM_OK;
}

static int parse_alignment(pllm_gguf *gguf)
{
    gguf->alignment = 32;
    int status = pllm_gguf_u32(gguf, "general.alignment", 8, ALIGNMENT_MAX, &gguf->alignment);
    if (status < 0) return status;
    if (gguf->alignment & (gguf->alignment - 1))
        return pllm_fail(PLLM_ECORRUPT, 0, "%s: general.alignment is %u, not a power of two",
                         gguf->file, gguf->alignment);
    return PLLM_OK;
}

/* Room for all names: none is longer than NAME_BYTES_MAX, and together they fit the header. */
static int reserve_tensors(pllm_gguf *gguf, uint64_t left)
{
    if (gguf->tensor_count == 0) return PLLM_OK;
    uint64_t names_bytes = (uint64_t)gguf->tensor_count * (NAME_BYTES_MAX + 1);
    if (names_bytes > left + gguf->tensor_count) names_bytes = left + gguf->tensor_count;
    uint64_t views_bytes = (uint64_t)gguf->tensor_count * sizeof *gguf->tensors;
    gguf->tensors = pllm_alloc(gguf->context, views_bytes);
    if (!gguf->tensors) return pllm_fail_memory("a tensor table", views_bytes);
    gguf->names = pllm_alloc(gguf->context, names_bytes);
    if (!gguf->names) return pllm_fail_memory("tensor names", names_bytes);
    return pllm_text_index_init(gguf->context, &gguf->index, gguf->tensor_count, tensor_name_at,
                                gguf->tensors);
}

int pllm_gguf_parse(const pllm_context *context, const char *file, const uint8_t *data,
                    uint64_t bytes, pllm_gguf *gguf)
{
    *gguf = (pllm_gguf){.context = context, .file = file, .base = data};
    cursor from = {.base = data, .at = data, .end = data + bytes, .file = file};
    int status = parse_head(&from, gguf);
    if (status < 0) return status;
    if (gguf->value_count > 0) {
        gguf->values = pllm_alloc_array(context, gguf->value_count, sizeof *gguf->values);
        if (!gguf->values)
            return pllm_fail_memory("metadata", gguf->value_count * sizeof *gguf->values);
    }
    status = parse_values(&from, gguf);
    if (status < 0) goto fail;
    status = parse_alignment(gguf);
    if (status < 0) goto fail;
    status = reserve_tensors(gguf, (uint64_t)(from.end - from.at));
    if (status < 0) goto fail;
    status = parse_tensors(&from, gguf, bytes);
    if (status < 0) goto fail;
    return PLLM_OK;
fail:
    pllm_gguf_deinit(gguf);
    return status;
}

void pllm_gguf_deinit(pllm_gguf *gguf)
{
    pllm_text_index_deinit(gguf->context, &gguf->index);
    pllm_free(gguf->context, gguf->names);
    pllm_free(gguf->context, gguf->tensors);
    pllm_free(gguf->context, gguf->values);
    *gguf = (pllm_gguf){0};
}

const pllm_tensor_view *pllm_gguf_tensor(const pllm_gguf *gguf, const char *name)
{
    uint32_t number = pllm_text_index_find(&gguf->index, name, strlen(name));
    return number == PLLM_TEXT_NONE ? NULL : &gguf->tensors[number];
}

const pllm_gguf_value *pllm_gguf_find(const pllm_gguf *gguf, const char *key)
{
    uint64_t bytes = strlen(key), hash = XXH3_64bits(key, bytes);
    for (uint32_t i = 0; i < gguf->value_count; i++) {
        const pllm_gguf_value *value = &gguf->values[i];
        if (value->key_hash == hash && value->key_bytes == bytes &&
            memcmp(value->key, key, bytes) == 0)
            return value;
    }
    return NULL;
}

static int type_is_integer(uint32_t type)
{
    return type <= PLLM_GGUF_I32 || type == PLLM_GGUF_U64 || type == PLLM_GGUF_I64;
}

int64_t pllm_gguf_integer_at(const pllm_gguf_value *value, uint64_t i)
{
    const uint8_t *at = value->data + i * scalar_bytes[value->type];
    union {
        uint8_t u8;
        int8_t i8;
        uint16_t u16;
        int16_t i16;
        uint32_t u32;
        int32_t i32;
        int64_t i64; /* a u64 past INT64_MAX reads as negative, and is refused as such */
    } number;
    memcpy(&number, at, scalar_bytes[value->type]);
    switch (value->type) {
    case PLLM_GGUF_U8:
        return number.u8;
    case PLLM_GGUF_I8:
        return number.i8;
    case PLLM_GGUF_U16:
        return number.u16;
    case PLLM_GGUF_I16:
        return number.i16;
    case PLLM_GGUF_U32:
        return number.u32;
    case PLLM_GGUF_I32:
        return number.i32;
    default:
        return number.i64;
    }
}

static int fail_type(const pllm_gguf *gguf, const char *key, const char *wanted)
{
    return pllm_fail(PLLM_EINVAL, 0, "%s: metadata %s is not %s", gguf->file, key, wanted);
}

int pllm_gguf_u32(const pllm_gguf *gguf, const char *key, uint32_t least, uint32_t most,
                  uint32_t *value_out)
{
    const pllm_gguf_value *value = pllm_gguf_find(gguf, key);
    if (!value) return 0;
    if (value->is_array || !type_is_integer(value->type))
        return fail_type(gguf, key, "one whole number");
    int64_t number = pllm_gguf_integer_at(value, 0);
    if (number < (int64_t)least || number > (int64_t)most)
        return pllm_fail(PLLM_EINVAL, 0, "%s: metadata %s is %lld; %u to %u are valid", gguf->file,
                         key, (long long)number, least, most);
    *value_out = (uint32_t)number;
    return 1;
}

int pllm_gguf_f32(const pllm_gguf *gguf, const char *key, float *value_out)
{
    const pllm_gguf_value *value = pllm_gguf_find(gguf, key);
    if (!value) return 0;
    float number;
    if (!value->is_array && value->type == PLLM_GGUF_F32) {
        memcpy(&number, value->data, 4);
    } else if (!value->is_array && value->type == PLLM_GGUF_F64) {
        double wide;
        memcpy(&wide, value->data, 8);
        number = fabs(wide) < 1e38 ? (float)wide : 0;
    } else {
        return fail_type(gguf, key, "one floating-point number");
    }
    if (!isfinite(number) || number <= 0)
        return pllm_fail(PLLM_EINVAL, 0, "%s: metadata %s is %g; a number above 0 is needed",
                         gguf->file, key, (double)number);
    *value_out = number;
    return 1;
}

int pllm_gguf_bool(const pllm_gguf *gguf, const char *key, int *value_out)
{
    const pllm_gguf_value *value = pllm_gguf_find(gguf, key);
    if (!value) return 0;
    if (value->is_array || value->type != PLLM_GGUF_BOOL) return fail_type(gguf, key, "a boolean");
    *value_out = value->data[0] != 0;
    return 1;
}

int pllm_gguf_string(const pllm_gguf *gguf, const char *key, const char **text_out,
                     uint64_t *bytes_out)
{
    const pllm_gguf_value *value = pllm_gguf_find(gguf, key);
    if (!value) return 0;
    if (value->is_array || value->type != PLLM_GGUF_STRING) return fail_type(gguf, key, "a string");
    const uint8_t *at = value->data;
    *text_out = pllm_gguf_next_string(&at, bytes_out);
    return 1;
}

int pllm_gguf_array(const pllm_gguf *gguf, const char *key, pllm_gguf_type type,
                    const pllm_gguf_value **value_out)
{
    const pllm_gguf_value *value = pllm_gguf_find(gguf, key);
    if (!value) return 0;
    int fits =
        value->type == (uint32_t)type || (type == PLLM_GGUF_I32 && type_is_integer(value->type));
    if (!value->is_array || !fits) return fail_type(gguf, key, "an array of the expected type");
    *value_out = value;
    return 1;
}

const char *pllm_gguf_next_string(const uint8_t **at, uint64_t *bytes_out)
{
    memcpy(bytes_out, *at, 8);
    const char *text = (const char *)*at + 8;
    *at += 8 + *bytes_out;
    return text;
}
