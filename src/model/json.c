/* json.c - recursive descent, at most DEPTH_MAX deep.
 *
 * Numbers are converted here: strtod asks the locale what a decimal point is. Up to 19 digits are
 * kept and scaled in long double, which is exact to the last bit of a float. */
#include <math.h>
#include <string.h>
#include <xxhash.h>
#include "model/json.h"
#include "model/utf8.h"

#define DEPTH_MAX 64u

typedef struct parser {
    pllm_json *json;
    const char *file, *text, *at, *end;
    char *arena; /* next free byte */
    uint32_t node_room;
} parser;

static int fail(const parser *from, const char *what)
{
    uint64_t line = 1;
    for (const char *c = from->text; c < from->at; c++) line += *c == '\n';
    return pllm_fail(PLLM_ECORRUPT, 0, "%s: is not valid JSON at line %llu, byte %llu: %s",
                     from->file, (unsigned long long)line,
                     (unsigned long long)(from->at - from->text), what);
}

static void skip_space(parser *from)
{
    while (from->at < from->end &&
           (*from->at == ' ' || *from->at == '\n' || *from->at == '\r' || *from->at == '\t'))
        from->at++;
}

static int take(parser *from, char wanted)
{
    skip_space(from);
    if (from->at == from->end || *from->at != wanted) return 0;
    from->at++;
    return 1;
}

/* A fresh node's number; nodes may move, so callers keep numbers, not pointers. */
static int add_node(parser *from, uint32_t *number_out)
{
    pllm_json *json = from->json;
    if (json->node_count == from->node_room) {
        uint64_t room = from->node_room ? (uint64_t)from->node_room * 2 : 64;
        if (room > UINT32_MAX)
            return pllm_fail(PLLM_ELIMIT, 0, "%s: has 2^31 values or more", from->file);
        pllm_json_node *grown =
            pllm_grow(json->context, json->nodes, json->node_count * sizeof *json->nodes,
                      room * sizeof *json->nodes);
        if (!grown) return pllm_fail_memory("a JSON document", room * sizeof *json->nodes);
        json->nodes = grown;
        from->node_room = (uint32_t)room;
    }
    *number_out = json->node_count++;
    json->nodes[*number_out].span = 1;
    return PLLM_OK;
}

/* ---- strings -------------------------------------------------------------------------------- */

static int hex4(parser *from, uint32_t *unit_out)
{
    *unit_out = 0;
    if (from->end - from->at < 4) return 0;
    for (uint32_t i = 0; i < 4; i++) {
        char c = *from->at++;
        uint32_t digit;
        if (c >= '0' && c <= '9')
            digit = (uint32_t)(c - '0');
        else if ((c | 32) >= 'a' && (c | 32) <= 'f')
            digit = (uint32_t)((c | 32) - 'a' + 10);
        else
            return 0;
        *unit_out = *unit_out << 4 | digit;
    }
    return 1;
}

static void put_code_point(parser *from, uint32_t point)
{
    if (point < 0x80) {
        *from->arena++ = (char)point;
        return;
    }
    uint32_t more = point < 0x800 ? 1 : point < 0x10000 ? 2 : 3;
    static const uint8_t leads[4] = {0, 0xc0, 0xe0, 0xf0};
    *from->arena++ = (char)(leads[more] | point >> 6 * more);
    while (more-- > 0) *from->arena++ = (char)(0x80 | (point >> 6 * more & 0x3f));
}

/* After "\u": a character of the basic plane, or a surrogate pair. */
static int take_unicode(parser *from)
{
    uint32_t point, low;
    if (!hex4(from, &point)) return fail(from, "\\u needs four hexadecimal digits");
    if (point == 0) return fail(from, "a zero character in a string");
    if (point >= 0xd800 && point <= 0xdfff) {
        int paired = point < 0xdc00 && from->end - from->at >= 2 && from->at[0] == '\\' &&
                     from->at[1] == 'u';
        if (paired) {
            from->at += 2;
            paired = hex4(from, &low) && low >= 0xdc00 && low <= 0xdfff;
        }
        if (!paired) return fail(from, "half a surrogate pair");
        point = 0x10000 + ((point - 0xd800) << 10) + (low - 0xdc00);
    }
    put_code_point(from, point);
    return PLLM_OK;
}

static int take_escape(parser *from)
{
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    if (from->at == from->end) return fail(from, "it ends inside a string");
    char c = *from->at++;
    if (c == 'u') return take_unicode(from);
    const char *found = memchr(names, c, sizeof names - 1);
    if (!found) return fail(from, "an unknown escape");
    *from->arena++ = values[found - names];
    return PLLM_OK;
}

/* After the opening quote. What it writes, zero included, is no longer than what it reads. */
static int take_string(parser *from, const char **text_out, uint32_t *bytes_out)
{
    char *start = from->arena;
    for (;;) {
        if (from->at == from->end) return fail(from, "it ends inside a string");
        char c = *from->at++;
        if (c == '"') break;
        if ((unsigned char)c < 0x20) return fail(from, "a control character in a string");
        if (c != '\\') {
            *from->arena++ = c;
            continue;
        }
        int status = take_escape(from);
        if (status < 0) return status;
    }
    *bytes_out = (uint32_t)(from->arena - start);
    *from->arena++ = 0;
    *text_out = start;
    return PLLM_OK;
}

/* ---- numbers -------------------------------------------------------------------------------- */

static int is_digit(const parser *from)
{
    return from->at < from->end && *from->at >= '0' && *from->at <= '9';
}

typedef struct decimal {
    uint64_t digits;  /* up to 19 of them */
    int64_t exponent; /* of ten */
    int full;         /* digits were left out */
} decimal;

static void take_digits(parser *from, decimal *into, int fraction)
{
    for (; is_digit(from); from->at++) {
        if (into->digits < UINT64_C(1000000000000000000)) {
            into->digits = into->digits * 10 + (uint64_t)(*from->at - '0');
            into->exponent -= fraction;
        } else {
            into->full = 1;
            into->exponent += !fraction;
        }
    }
}

static double scale(const decimal *value)
{
    int64_t exponent = value->exponent;
    if (value->digits == 0 || exponent < -5000) return 0;
    if (exponent > 5000) return INFINITY;
    long double power = 1, base = 10;
    for (uint64_t bits = (uint64_t)(exponent < 0 ? -exponent : exponent); bits; bits >>= 1) {
        if (bits & 1) power *= base;
        base *= base;
    }
    long double digits = (long double)value->digits;
    return (double)(exponent < 0 ? digits / power : digits * power);
}

static int take_number(parser *from, pllm_json_node *node)
{
    decimal value = {0};
    int negative = *from->at == '-', whole = 1;
    from->at += negative;
    if (!is_digit(from)) return fail(from, "a number without digits");
    int zero = *from->at == '0';
    const char *first = from->at;
    take_digits(from, &value, 0);
    if (zero && from->at - first > 1) return fail(from, "a number with a leading zero");
    if (from->at < from->end && *from->at == '.') {
        whole = 0;
        from->at++;
        if (!is_digit(from)) return fail(from, "a number that ends in a point");
        take_digits(from, &value, 1);
    }
    if (from->at < from->end && (*from->at | 32) == 'e') {
        whole = 0;
        from->at++;
        int down = from->at < from->end && *from->at == '-';
        from->at += down || (from->at < from->end && *from->at == '+');
        if (!is_digit(from)) return fail(from, "a number without an exponent");
        int64_t exponent = 0;
        for (; is_digit(from); from->at++)
            if (exponent < 100000) exponent = exponent * 10 + (*from->at - '0');
        value.exponent += down ? -exponent : exponent;
    }
    node->number = negative ? -scale(&value) : scale(&value);
    whole = whole && !value.full && value.digits <= INT64_MAX;
    node->kind = whole ? PLLM_JSON_INTEGER : PLLM_JSON_REAL;
    if (whole) node->integer = negative ? -(int64_t)value.digits : (int64_t)value.digits;
    return PLLM_OK;
}

/* ---- values --------------------------------------------------------------------------------- */

static int take_value(parser *from, const char *key, uint32_t depth);

static int take_children(parser *from, uint32_t number, int object, uint32_t depth)
{
    const char close = object ? '}' : ']';
    if (depth == DEPTH_MAX) return fail(from, "nested too deep");
    uint32_t count = 0;
    if (!take(from, close)) {
        do {
            const char *key = NULL;
            uint32_t key_bytes;
            if (object) {
                if (!take(from, '"')) return fail(from, "a key in quotes is needed here");
                int status = take_string(from, &key, &key_bytes);
                if (status < 0) return status;
                if (!take(from, ':')) return fail(from, "a colon is needed here");
            }
            int status = take_value(from, key, depth + 1);
            if (status < 0) return status;
            count++;
        } while (take(from, ','));
        if (!take(from, close)) return fail(from, "a comma or a closing bracket is needed here");
    }
    pllm_json_node *node = &from->json->nodes[number];
    node->kind = object ? PLLM_JSON_OBJECT : PLLM_JSON_ARRAY;
    node->count = count;
    node->span = from->json->node_count - number;
    return PLLM_OK;
}

static int take_word(parser *from, pllm_json_node *node)
{
    static const struct {
        const char *word;
        pllm_json_kind kind;
    } words[] = {{"null", PLLM_JSON_NULL}, {"false", PLLM_JSON_FALSE}, {"true", PLLM_JSON_TRUE}};
    uint64_t left = (uint64_t)(from->end - from->at);
    for (uint32_t i = 0; i < 3; i++) {
        uint64_t length = strlen(words[i].word);
        if (left < length || memcmp(from->at, words[i].word, length) != 0) continue;
        from->at += length;
        node->kind = words[i].kind;
        return PLLM_OK;
    }
    return fail(from, "a value is needed here");
}

static int take_value(parser *from, const char *key, uint32_t depth)
{
    uint32_t number = 0;
    int status = add_node(from, &number);
    if (status < 0) return status;
    from->json->nodes[number].key = key;
    if (take(from, '{')) return take_children(from, number, 1, depth);
    if (take(from, '[')) return take_children(from, number, 0, depth);
    pllm_json_node *node = &from->json->nodes[number];
    if (take(from, '"')) {
        node->kind = PLLM_JSON_STRING;
        return take_string(from, &node->text, &node->bytes);
    }
    if (from->at == from->end) return fail(from, "it ends where a value is needed");
    if (*from->at == '-' || is_digit(from)) return take_number(from, node);
    return take_word(from, node);
}

/* ---- duplicate keys ------------------------------------------------------------------------- */

/* All keys of the document in one table, hashed with their object's number as the seed. */
static int check_keys(const parser *from)
{
    const pllm_json *json = from->json;
    uint64_t slot_count = 8;
    while (slot_count < (uint64_t)json->node_count * 2) slot_count *= 2;
    struct slot {
        uint32_t object, node; /* node 0, the root, has no key: empty */
    } *slots = pllm_alloc_array(json->context, slot_count, sizeof *slots);
    if (!slots) return pllm_fail_memory("a JSON document's keys", slot_count * sizeof *slots);
    int status = PLLM_OK;
    for (uint32_t i = 0; status == PLLM_OK && i < json->node_count; i++) {
        if (json->nodes[i].kind != PLLM_JSON_OBJECT) continue;
        uint32_t child = i + 1;
        for (uint32_t j = 0; j < json->nodes[i].count; j++, child += json->nodes[child].span) {
            const char *key = json->nodes[child].key;
            uint64_t at = XXH3_64bits_withSeed(key, strlen(key), i) & (slot_count - 1);
            while (slots[at].node != 0 &&
                   (slots[at].object != i || strcmp(json->nodes[slots[at].node].key, key) != 0))
                at = (at + 1) & (slot_count - 1);
            if (slots[at].node != 0) {
                status = fail(from, "an object has the same key twice");
                break;
            }
            slots[at].object = i;
            slots[at].node = child;
        }
    }
    pllm_free(json->context, slots);
    return status;
}

int pllm_json_parse(const pllm_context *context, const char *file, const void *text, uint64_t bytes,
                    pllm_json *json)
{
    *json = (pllm_json){.context = context};
    if (bytes >= UINT32_MAX)
        return pllm_fail(PLLM_ELIMIT, 0, "%s: has 4 GiB of JSON or more", file);
    parser from = {.json = json, .file = file, .text = text, .at = text};
    from.end = from.text + bytes;
    json->arena = from.arena = pllm_alloc(context, bytes + 1);
    if (!json->arena) return pllm_fail_memory("a JSON document", bytes + 1);
    int status = PLLM_OK;
    uint64_t valid = pllm_utf8_valid_prefix(text, bytes);
    if (valid < bytes) {
        from.at = from.text + valid;
        status = fail(&from, "bytes that are no UTF-8");
    }
    if (status == PLLM_OK) status = take_value(&from, NULL, 0);
    skip_space(&from);
    if (status == PLLM_OK && from.at < from.end) status = fail(&from, "more follows its end");
    if (status == PLLM_OK && json->nodes[0].kind != PLLM_JSON_OBJECT)
        status = fail(&from, "it is not an object");
    if (status == PLLM_OK) status = check_keys(&from);
    if (status < 0) pllm_json_deinit(json);
    return status;
}

void pllm_json_deinit(pllm_json *json)
{
    pllm_free(json->context, json->nodes);
    pllm_free(json->context, json->arena);
    *json = (pllm_json){0};
}

const pllm_json_node *pllm_json_member(const pllm_json_node *object, const char *key)
{
    if (!object || object->kind != PLLM_JSON_OBJECT) return NULL;
    const pllm_json_node *child = object + 1;
    for (uint32_t i = 0; i < object->count; i++, child += child->span)
        if (strcmp(child->key, key) == 0) return child;
    return NULL;
}

const pllm_json_node *pllm_json_at(const pllm_json_node *container, uint32_t i)
{
    if (!container || container->kind < PLLM_JSON_ARRAY || i >= container->count) return NULL;
    const pllm_json_node *child = container + 1;
    while (i-- > 0) child += child->span;
    return child;
}

const char *pllm_json_text(const pllm_json_node *node)
{
    return node && node->kind == PLLM_JSON_STRING ? node->text : NULL;
}
