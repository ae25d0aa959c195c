/* npy.c - the dict in a .npy header is read by a scanner that knows strings, True, False and a
 * tuple of numbers, and nothing else of Python: the three keys in any order, each once. */
#include <stdio.h>
#include <string.h>
#include "model/file_map.h"
#include "model/npy.h"

enum { TEXT_BYTES_MAX = 64 * 1024 }; /* a header of one plain array has about 80 */

static const uint8_t magic[6] = {0x93, 'N', 'U', 'M', 'P', 'Y'};

typedef struct scanner {
    const char *file, *at, *end;
} scanner;

static int fail_form(const scanner *s)
{
    char shown[80];
    uint64_t left = (uint64_t)(s->end - s->at);
    return pllm_fail(PLLM_ECORRUPT, 0, "%s: its .npy header cannot be read from here: \"%s\"",
                     s->file, pllm_printable(shown, s->at, left < 40 ? left : 40));
}

static void skip_space(scanner *s)
{
    while (s->at < s->end && (*s->at == ' ' || *s->at == '\t' || *s->at == '\n')) s->at++;
}

static int take(scanner *s, char c)
{
    skip_space(s);
    if (s->at == s->end || *s->at != c) return 0;
    s->at++;
    return 1;
}

static int take_word(scanner *s, const char *word)
{
    size_t length = strlen(word);
    skip_space(s);
    if ((size_t)(s->end - s->at) < length || memcmp(s->at, word, length) != 0) return 0;
    s->at += length;
    return 1;
}

/* 'text' or "text", without escapes. */
static int take_string(scanner *s, const char **text_out, size_t *bytes_out)
{
    skip_space(s);
    if (s->at == s->end || (*s->at != '\'' && *s->at != '"')) return 0;
    const char quote = *s->at, *from = s->at + 1, *to = from;
    while (to < s->end && *to != quote && *to != '\\' && *to != '\n') to++;
    if (to == s->end || *to != quote) return 0;
    *text_out = from;
    *bytes_out = (size_t)(to - from);
    s->at = to + 1;
    return 1;
}

static int parse_type(scanner *s, pllm_npy *npy)
{
    static const char *const known[] = {"<f2", "<f4", "<f8", "<i2", "<i4", "<i8",
                                        "|i1", "|u1", "|b1", "<i1", "<u1", "<b1"};
    const char *text;
    size_t bytes;
    if (!take_string(s, &text, &bytes))
        return pllm_fail(PLLM_EUNSUPPORTED, 0,
                         "%s: the array's type is no plain number (a record?): save each field as "
                         "an array of its own",
                         s->file);
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (bytes == 3 && memcmp(known[i], text, 3) == 0) {
            npy->kind = text[1];
            npy->element_bytes = (uint32_t)(text[2] - '0');
            return PLLM_OK;
        }
    char shown[80];
    pllm_printable(shown, text, bytes < 40 ? bytes : 40);
    if (bytes > 0 && text[0] == '>')
        return pllm_fail(PLLM_EUNSUPPORTED, 0,
                         "%s: the array's type %s is big-endian: save it as little-endian, with "
                         "a.astype(a.dtype.newbyteorder('<'))",
                         s->file, shown);
    return pllm_fail(PLLM_EUNSUPPORTED, 0,
                     "%s: the array's type %s is not one of <f2 <f4 <f8 <i2 <i4 <i8 |i1 |u1 |b1; "
                     "convert it, or save bf16 and f8 as .safetensors",
                     s->file, shown);
}

static int parse_order(scanner *s)
{
    if (take_word(s, "False")) return PLLM_OK;
    if (!take_word(s, "True")) return fail_form(s);
    return pllm_fail(PLLM_EUNSUPPORTED, 0,
                     "%s: the array is in Fortran order: save numpy.ascontiguousarray(a) in its "
                     "place",
                     s->file);
}

static int parse_number(scanner *s, uint64_t *value_out)
{
    uint64_t value = 0;
    skip_space(s);
    if (s->at < s->end && *s->at == '-')
        return pllm_fail(PLLM_ECORRUPT, 0, "%s: a dimension of the array is negative", s->file);
    const char *from = s->at;
    for (; s->at < s->end && *s->at >= '0' && *s->at <= '9'; s->at++)
        if (__builtin_mul_overflow(value, 10, &value) ||
            __builtin_add_overflow(value, (uint64_t)(*s->at - '0'), &value))
            return pllm_fail(PLLM_ELIMIT, 0, "%s: a dimension of the array overflows 64 bits",
                             s->file);
    if (s->at == from) return fail_form(s);
    take_word(s, "L"); /* as Python 2 wrote them */
    *value_out = value;
    return PLLM_OK;
}

static int parse_shape(scanner *s, pllm_npy *npy)
{
    if (!take(s, '(')) return fail_form(s);
    while (!take(s, ')')) {
        if (npy->rank == PLLM_NPY_RANK_MAX)
            return pllm_fail(PLLM_EUNSUPPORTED, 0, "%s: the array has more than %d dimensions",
                             s->file, PLLM_NPY_RANK_MAX);
        int status = parse_number(s, &npy->shape[npy->rank]);
        if (status < 0) return status;
        npy->rank++;
        if (take(s, ',')) continue;
        /* (3) is a number in Python, not a tuple: a shape of one dimension is (3,). */
        if (npy->rank == 1 || !take(s, ')')) return fail_form(s);
        break;
    }
    return PLLM_OK;
}

static int parse_dict(scanner *s, pllm_npy *npy)
{
    enum { TYPE = 1, ORDER = 2, SHAPE = 4 };
    unsigned seen = 0;
    if (!take(s, '{')) return fail_form(s);
    while (!take(s, '}')) {
        const char *key;
        size_t bytes;
        if (!take_string(s, &key, &bytes) || !take(s, ':')) return fail_form(s);
        unsigned now = bytes == 5 && memcmp(key, "descr", 5) == 0             ? TYPE
                       : bytes == 13 && memcmp(key, "fortran_order", 13) == 0 ? ORDER
                       : bytes == 5 && memcmp(key, "shape", 5) == 0           ? SHAPE
                                                                              : 0;
        if (!now || seen & now) return fail_form(s);
        int status = now == TYPE    ? parse_type(s, npy)
                     : now == ORDER ? parse_order(s)
                                    : parse_shape(s, npy);
        if (status < 0) return status;
        seen |= now;
        if (take(s, ',')) continue;
        if (!take(s, '}')) return fail_form(s);
        break;
    }
    skip_space(s);
    if (s->at != s->end) return fail_form(s);
    if (seen == (TYPE | ORDER | SHAPE)) return PLLM_OK;
    return pllm_fail(PLLM_ECORRUPT, 0,
                     "%s: its .npy header lacks one of descr, fortran_order and shape", s->file);
}

/* Where the text is. */
static int parse_frame(const char *file, const uint8_t *data, uint64_t bytes, scanner *s)
{
    if (bytes < 10 || memcmp(data, magic, sizeof magic) != 0)
        return pllm_fail(PLLM_ECORRUPT, 0, "%s: is no .npy file", file);
    if ((data[6] != 1 && data[6] != 2) || data[7] != 0)
        return pllm_fail(PLLM_EUNSUPPORTED, 0,
                         "%s: is .npy version %u.%u; 1.0 and 2.0 are read, as numpy.save writes",
                         file, data[6], data[7]);
    uint64_t prefix = data[6] == 1 ? 10 : 12, length = data[8] | (uint64_t)data[9] << 8;
    if (data[6] == 2 && bytes >= 12) length |= (uint64_t)data[10] << 16 | (uint64_t)data[11] << 24;
    if (bytes < prefix || length > bytes - prefix || length > TEXT_BYTES_MAX)
        return pllm_fail(PLLM_ECORRUPT, 0,
                         "%s: truncated, or no .npy file: it claims a header of %llu bytes, the "
                         "file has %llu and the limit is %d",
                         file, (unsigned long long)length, (unsigned long long)bytes,
                         TEXT_BYTES_MAX);
    *s = (scanner){file, (const char *)data + prefix, (const char *)data + prefix + length};
    return PLLM_OK;
}

int pllm_npy_parse(const char *file, const uint8_t *data, uint64_t bytes, pllm_npy *npy_out)
{
    scanner s = {0};
    pllm_npy npy = {0};
    int status = parse_frame(file, data, bytes, &s);
    if (status < 0) return status;
    npy.data_offset = (uint64_t)((const uint8_t *)s.end - data);
    status = parse_dict(&s, &npy);
    if (status < 0) return status;
    npy.data_bytes = npy.element_bytes;
    int empty = 0; /* a dimension of 0 hides an overflow of those before it */
    for (uint32_t i = 0; i < npy.rank; i++) empty |= npy.shape[i] == 0;
    for (uint32_t i = 0; i < npy.rank && !empty; i++)
        if (__builtin_mul_overflow(npy.data_bytes, npy.shape[i], &npy.data_bytes))
            return pllm_fail(PLLM_ELIMIT, 0, "%s: the array's shape overflows 64 bits", file);
    if (empty) npy.data_bytes = 0;
    if (bytes - npy.data_offset != npy.data_bytes)
        return pllm_fail(PLLM_ECORRUPT, 0,
                         "%s: its type and shape need %llu bytes of elements, and %llu follow the "
                         "header%s",
                         file, (unsigned long long)npy.data_bytes,
                         (unsigned long long)(bytes - npy.data_offset),
                         bytes - npy.data_offset < npy.data_bytes ? ": truncated" : "");
    *npy_out = npy;
    return PLLM_OK;
}

uint32_t pllm_npy_header(const pllm_npy *npy, uint8_t header[PLLM_NPY_HEADER_BYTES_MAX])
{
    enum { PREFIX = 10 };
    char text[PLLM_NPY_HEADER_BYTES_MAX];
    int used = snprintf(text, sizeof text, "{'descr': '%c%c%u', 'fortran_order': False, 'shape': (",
                        npy->element_bytes == 1 ? '|' : '<', npy->kind, npy->element_bytes);
    for (uint32_t i = 0; i < npy->rank && i < PLLM_NPY_RANK_MAX; i++)
        used += snprintf(text + used, sizeof text - (size_t)used, "%s%llu", i ? ", " : "",
                         (unsigned long long)npy->shape[i]);
    used += snprintf(text + used, sizeof text - (size_t)used, "%s), }", npy->rank == 1 ? "," : "");
    uint32_t whole = (uint32_t)(PREFIX + used + 1 + 63) / 64 * 64; /* elements begin aligned */
    memset(header, ' ', whole);
    memcpy(header, magic, sizeof magic);
    header[6] = 1;
    header[7] = 0;
    header[8] = (uint8_t)((whole - PREFIX) & 255);
    header[9] = (uint8_t)((whole - PREFIX) >> 8);
    memcpy(header + PREFIX, text, (size_t)used);
    header[whole - 1] = '\n';
    return whole;
}
