/* names.c - tables and checks of names.h. No state, no allocation.
 *
 * Foreign text is quoted (base/text.h) before it goes into a sentence: it may hold anything. */
#include "store/names.h"

#include <string.h>
#include "base/context.h"
#include "base/text.h"

static const struct {
    char name[8];
    uint32_t bytes;
} dtypes[PLLM_STORE_DTYPES] = {
    [PLLM_STORE_F64] = {"f64", 8},       [PLLM_STORE_F32] = {"f32", 4},
    [PLLM_STORE_F16] = {"f16", 2},       [PLLM_STORE_BF16] = {"bf16", 2},
    [PLLM_STORE_F8E4M3] = {"f8e4m3", 1}, [PLLM_STORE_F8E5M2] = {"f8e5m2", 1},
    [PLLM_STORE_I64] = {"i64", 8},       [PLLM_STORE_I32] = {"i32", 4},
    [PLLM_STORE_I16] = {"i16", 2},       [PLLM_STORE_I8] = {"i8", 1},
    [PLLM_STORE_U8] = {"u8", 1},         [PLLM_STORE_BOOL] = {"bool", 1},
};

/* Text of a given length, cut and made fit for a sentence. */
static const char *quote(const char *text, size_t bytes, char buffer[PLLM_QUOTE_BYTES])
{
    char copy[PLLM_QUOTE_BYTES];
    size_t taken = bytes < sizeof copy - 1 ? bytes : sizeof copy - 1;
    if (taken) memcpy(copy, text, taken);
    copy[taken] = 0;
    return pllm_text_quote(copy, buffer, PLLM_QUOTE_BYTES);
}

static int in_alphabet(unsigned char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-' || c == '/' || c == ':';
}

static int alphabet_check(const char *text, size_t bytes, const char *what)
{
    char quoted[PLLM_QUOTE_BYTES];
    if (bytes > PLLM_STORE_NAME_MAX)
        return pllm_fail(PLLM_EINVAL, 0, "%s %s is longer than %d characters", what,
                         quote(text, bytes, quoted), PLLM_STORE_NAME_MAX);
    for (size_t i = 0; i < bytes; i++)
        if (!in_alphabet((unsigned char)text[i]))
            return pllm_fail(PLLM_EINVAL, 0,
                             "%s %s holds something else than A-Z a-z 0-9 . _ - / :", what,
                             quote(text, bytes, quoted));
    return PLLM_OK;
}

int pllm_store_name_check(const char *name, size_t bytes)
{
    if (bytes == 0)
        return pllm_fail(PLLM_EINVAL, 0, "a tensor's name is empty: name it like model/layer.0:k");
    int status = alphabet_check(name, bytes, "the tensor name");
    if (status < 0) return status;
    if (bytes == 3 && memcmp(name, "cmd", 3) == 0)
        return pllm_fail(PLLM_EINVAL, 0,
                         "no tensor can be named \"cmd\": tensor:cmd is the list of commands");
    return PLLM_OK;
}

int pllm_store_prefix_check(const char *prefix, size_t bytes)
{
    return alphabet_check(prefix, bytes, "the name prefix");
}

const char *pllm_store_dtype_name(uint32_t dtype)
{
    return dtype < PLLM_STORE_DTYPES ? dtypes[dtype].name : "unknown";
}

uint32_t pllm_store_dtype_bytes(uint32_t dtype)
{
    return dtype < PLLM_STORE_DTYPES ? dtypes[dtype].bytes : 0;
}

int pllm_store_dtype_parse(const char *text, size_t bytes, uint32_t *dtype_out)
{
    for (uint32_t dtype = 0; dtype < PLLM_STORE_DTYPES; dtype++)
        if (strlen(dtypes[dtype].name) == bytes && memcmp(dtypes[dtype].name, text, bytes) == 0) {
            *dtype_out = dtype;
            return PLLM_OK;
        }
    char quoted[PLLM_QUOTE_BYTES];
    return pllm_fail(PLLM_EINVAL, 0,
                     "%s is no element type: use f64 f32 f16 bf16 f8e4m3 f8e5m2 i64 i32 i16 i8 u8 "
                     "or bool",
                     quote(text, bytes, quoted));
}

int pllm_store_shape_bytes(uint32_t dtype, uint32_t rank, const uint64_t *shape,
                           uint64_t *bytes_out)
{
    if (dtype >= PLLM_STORE_DTYPES)
        return pllm_fail(PLLM_EINVAL, 0, "element type number %u is unknown", dtype);
    if (rank > PLLM_STORE_RANK_MAX)
        return pllm_fail(PLLM_EINVAL, 0, "a shape of %u dimensions: at most %d are possible", rank,
                         PLLM_STORE_RANK_MAX);
    uint64_t bytes = dtypes[dtype].bytes;
    for (uint32_t i = 0; i < rank; i++) {
        if (shape[i] == 0) return pllm_fail(PLLM_EINVAL, 0, "dimension %u of the shape is 0", i);
        if (__builtin_mul_overflow(bytes, shape[i], &bytes) || bytes > PLLM_STORE_BYTES_MAX)
            return pllm_fail(PLLM_ELIMIT, 0, "the shape means more than %llu bytes",
                             (unsigned long long)PLLM_STORE_BYTES_MAX);
    }
    *bytes_out = bytes;
    return PLLM_OK;
}

typedef struct cursor {
    const char *at, *end;
} cursor;

static void skip_spaces(cursor *c)
{
    while (c->at < c->end && (*c->at == ' ' || *c->at == '\t')) c->at++;
}

/* A dimension: 1 to PLLM_STORE_BYTES_MAX in decimal. 1, 0 if it is none, -1 if it is too large. */
static int take_number(cursor *c, uint64_t *number_out)
{
    if (c->at == c->end || *c->at < '1' || *c->at > '9') return 0;
    uint64_t number = 0;
    for (; c->at < c->end && *c->at >= '0' && *c->at <= '9'; c->at++) {
        number = number * 10 + (uint64_t)(*c->at - '0');
        if (number > PLLM_STORE_BYTES_MAX) return -1; /* far from where 64 bits end */
    }
    *number_out = number;
    return 1;
}

static int take_character(cursor *c, char wanted)
{
    skip_spaces(c);
    if (c->at == c->end || *c->at != wanted) return 0;
    c->at++;
    skip_spaces(c);
    return 1;
}

int pllm_store_shape_parse(const char *text, size_t bytes, uint32_t *rank_out, uint64_t *shape_out)
{
    cursor c = {text, text + bytes};
    uint64_t shape[PLLM_STORE_RANK_MAX] = {0};
    uint32_t rank = 0;
    char quoted[PLLM_QUOTE_BYTES];
    if (!take_character(&c, '[')) goto invalid;
    while (!take_character(&c, ']')) {
        uint64_t number;
        if (rank > 0 && !take_character(&c, ',')) goto invalid;
        int taken = take_number(&c, &number);
        if (taken < 0 || (taken && rank == PLLM_STORE_RANK_MAX))
            return pllm_fail(PLLM_ELIMIT, 0,
                             "the shape %s is too large: at most %d dimensions and "
                             "%llu bytes",
                             quote(text, bytes, quoted), PLLM_STORE_RANK_MAX,
                             (unsigned long long)PLLM_STORE_BYTES_MAX);
        if (!taken) goto invalid;
        shape[rank++] = number;
    }
    if (c.at != c.end) goto invalid;
    *rank_out = rank;
    memcpy(shape_out, shape, sizeof shape);
    return PLLM_OK;
invalid:
    return pllm_fail(PLLM_EINVAL, 0, "%s is no shape: write one like [2,3,4]",
                     quote(text, bytes, quoted));
}

const char *pllm_store_shape_text(uint32_t rank, const uint64_t *shape,
                                  char buffer[PLLM_STORE_SHAPE_TEXT_BYTES])
{
    char *at = buffer;
    *at++ = '[';
    for (uint32_t i = 0; i < rank && i < PLLM_STORE_RANK_MAX; i++) {
        char digits[24];
        uint32_t count = 0;
        uint64_t left = shape[i] <= PLLM_STORE_BYTES_MAX ? shape[i] : PLLM_STORE_BYTES_MAX;
        do digits[count++] = (char)('0' + left % 10);
        while (left /= 10);
        if (i > 0) *at++ = ',';
        while (count) *at++ = digits[--count];
    }
    *at++ = ']';
    *at = 0;
    return buffer;
}

int pllm_store_mode_check(uint32_t mode, uint32_t *mode_out)
{
    if (mode == 0) mode = PLLM_STORE_MODE_DEFAULT;
    if (mode & ~(uint32_t)PLLM_STORE_MODE_MASK)
        return pllm_fail(PLLM_EINVAL, 0,
                         "mode 0%o has bits besides read and write: use one like 0640", mode);
    if ((mode & 0400) == 0)
        return pllm_fail(PLLM_EINVAL, 0, "mode 0%o does not let its owner read: use one like 0640",
                         mode);
    *mode_out = mode;
    return PLLM_OK;
}

static unsigned char lower(char c)
{
    return (unsigned char)(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
}

/* 2: the same but for case; 1: text is its beginning; 0: neither. */
static int uuid_matches(const char *uuid, const char *text, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        if (!uuid[i] || lower(uuid[i]) != lower(text[i])) return 0;
    return uuid[bytes] == 0 ? 2 : 1;
}

int pllm_store_device_find(const char *text, size_t bytes, const char *const *uuids, uint32_t count,
                           uint32_t *index_out)
{
    char quoted[PLLM_QUOTE_BYTES];
    if (count == 0) return pllm_fail(PLLM_ENOTFOUND, 0, "the store has no device");
    if (bytes == 0) {
        *index_out = 0;
        return PLLM_OK;
    }
    if (bytes >= PLLM_STORE_UUID_BYTES)
        return pllm_fail(PLLM_EINVAL, 0, "the device %s is longer than any UUID",
                         quote(text, bytes, quoted));
    if (bytes <= 3) { /* no UUID is so short that its beginning would be meant */
        uint32_t number = 0;
        size_t i = 0;
        for (; i < bytes && text[i] >= '0' && text[i] <= '9'; i++)
            number = number * 10 + (uint32_t)(text[i] - '0');
        if (i == bytes) {
            if (number >= count)
                return pllm_fail(PLLM_ENOTFOUND, 0, "the store has no device %u: it has %u, from 0",
                                 number, count);
            *index_out = number;
            return PLLM_OK;
        }
    }
    uint32_t found = 0, which = 0;
    for (uint32_t i = 0; i < count; i++) {
        int match = uuid_matches(uuids[i], text, bytes);
        if (match == 2) {
            *index_out = i;
            return PLLM_OK;
        }
        if (match == 1) found++, which = i;
    }
    if (found == 1) {
        *index_out = which;
        return PLLM_OK;
    }
    return pllm_fail(PLLM_ENOTFOUND, 0, "%s of the store's devices %s %s",
                     found ? "more than one" : "none", found ? "have UUIDs that begin with" : "is",
                     quote(text, bytes, quoted));
}

static const char base64_digits[] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

size_t pllm_store_base64_encode(const void *data, size_t bytes, char *text, size_t text_bytes)
{
    const unsigned char *in = data;
    if (bytes > SIZE_MAX / 2 || (bytes + 2) / 3 * 4 >= text_bytes) return 0;
    char *out = text;
    for (size_t i = 0; i < bytes; i += 3) {
        size_t left = bytes - i;
        uint32_t triple = (uint32_t)in[i] << 16 | (left > 1 ? (uint32_t)in[i + 1] << 8 : 0) |
                          (left > 2 ? in[i + 2] : 0u);
        *out++ = base64_digits[triple >> 18];
        *out++ = base64_digits[triple >> 12 & 63];
        *out++ = left > 1 ? base64_digits[triple >> 6 & 63] : '=';
        *out++ = left > 2 ? base64_digits[triple & 63] : '=';
    }
    *out = 0;
    return (size_t)(out - text);
}

static int base64_value(char c)
{
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

int pllm_store_base64_decode(const char *text, size_t text_bytes, void *data, size_t data_bytes,
                             size_t *bytes_out)
{
    unsigned char *out = data;
    size_t used = 0;
    if (text_bytes % 4) goto invalid;
    for (size_t i = 0; i < text_bytes; i += 4) {
        int pads = i + 4 == text_bytes ? (text[i + 3] == '=') + (text[i + 2] == '=') : 0;
        if (pads && text[i + 3] != '=') goto invalid; /* "A=BC" and the like */
        uint32_t triple = 0;
        for (int k = 0; k < 4; k++) {
            int value = k >= 4 - pads ? 0 : base64_value(text[i + (size_t)k]);
            if (value < 0) goto invalid;
            triple = triple << 6 | (uint32_t)value;
        }
        /* One spelling a value: bits that the padding leaves over are 0. */
        if ((pads == 1 && (triple & 0xff)) || (pads == 2 && (triple & 0xffff))) goto invalid;
        size_t bytes = 3 - (size_t)pads;
        if (bytes > data_bytes - used) goto invalid;
        for (size_t k = 0; k < bytes; k++) out[used++] = (unsigned char)(triple >> (16 - 8 * k));
    }
    *bytes_out = used;
    return PLLM_OK;
invalid:
    return pllm_fail(PLLM_EINVAL, 0, "that is no base64 of at most %zu bytes", data_bytes);
}

/* 24 bytes: "PLT1", slot, generation, and the two again, inverted, as a check; 32 characters. */
enum { TOKEN_RAW = 24 };
static const char token_mark[4] = {'P', 'L', 'T', '1'};

static void put(unsigned char *to, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++) to[i] = (unsigned char)(value >> (8 * i));
}

static uint64_t take(const unsigned char *from, int bytes)
{
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++) value |= (uint64_t)from[i] << (8 * i);
    return value;
}

const char *pllm_store_token_text(uint32_t slot, uint64_t generation,
                                  char text[PLLM_STORE_TOKEN_BYTES])
{
    unsigned char raw[TOKEN_RAW];
    memcpy(raw, token_mark, sizeof token_mark);
    put(raw + 4, slot, 4);
    put(raw + 8, generation, 8);
    put(raw + 16, ~(generation ^ slot), 8);
    pllm_store_base64_encode(raw, sizeof raw, text, PLLM_STORE_TOKEN_BYTES);
    return text;
}

int pllm_store_token_parse(const char *text, size_t bytes, uint32_t *slot_out,
                           uint64_t *generation_out)
{
    unsigned char raw[TOKEN_RAW];
    size_t got = 0;
    if (bytes == PLLM_STORE_TOKEN_BYTES - 1 &&
        pllm_store_base64_decode(text, bytes, raw, sizeof raw, &got) == PLLM_OK &&
        got == TOKEN_RAW && memcmp(raw, token_mark, sizeof token_mark) == 0) {
        uint32_t slot = (uint32_t)take(raw + 4, 4);
        uint64_t generation = take(raw + 8, 8);
        if (generation && take(raw + 16, 8) == ~(generation ^ slot)) {
            *slot_out = slot;
            *generation_out = generation;
            return PLLM_OK;
        }
    }
    return pllm_fail(PLLM_EINVAL, 0,
                     "that is no token of a tensor: it is the whole of its ipc_handle field");
}
