/* size.c - sizes in and out. No floating point: what is parsed is exact to the byte. */
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include "base/context.h"
#include "base/size.h"
#include "base/text.h"

enum { FRACTION_DIGITS_MAX = 18 }; /* 10^18 * 2^40 fits in 128 bits with room to spare */

static const struct unit {
    char name[4];
    uint64_t bytes;
} units[] = {
    {"B", 1},
    {"KiB", 1ull << 10},
    {"MiB", 1ull << 20},
    {"GiB", 1ull << 30},
    {"TiB", 1ull << 40},
    {"KB", 1000},
    {"MB", 1000000},
    {"GB", 1000000000},
    {"TB", 1000000000000},
};

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_space(char c)
{
    return c == ' ' || c == '\t';
}

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

/* As listed, all in lower case, or with only the k small as in kB and kiB. */
static bool unit_matches(const char *name, const char *text, size_t length)
{
    if (strlen(name) != length) return false;
    bool as_listed = true, all_lower = true;
    for (size_t i = 0; i < length; i++) {
        as_listed &= text[i] == name[i] || (i == 0 && text[i] == 'k' && name[i] == 'K');
        all_lower &= text[i] == lower(name[i]);
    }
    return as_listed || all_lower;
}

static int unit_find(const char *text, size_t length, uint64_t *unit_out)
{
    *unit_out = 1;
    if (length == 0) return PLLM_OK;
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
        if (!unit_matches(units[i].name, text, length)) continue;
        *unit_out = units[i].bytes;
        return PLLM_OK;
    }
    return PLLM_EINVAL;
}

static int size_fail(const char *text, const char *why)
{
    char quoted[PLLM_QUOTE_BYTES];
    return pllm_fail(PLLM_EINVAL, 0,
                     "%s is not a size: %s; write for example 24GB, 1.5GiB, "
                     "a plain number of bytes, or unlimited",
                     pllm_text_quote(text, quoted, sizeof quoted), why);
}

int pllm_size_parse(const char *text, uint64_t *bytes_out)
{
    if (!text || !bytes_out) return pllm_fail(PLLM_EINVAL, 0, "a size or its place is NULL");
    const char *at = text;
    while (is_space(*at)) at++;
    const char *end = at + strlen(at);
    while (end > at && is_space(end[-1])) end--;
    if (end == at) return size_fail(text, "it is empty");
    if (end - at == 9 && memcmp(at, "unlimited", 9) == 0) {
        *bytes_out = PLLM_SIZE_UNLIMITED;
        return PLLM_OK;
    }
    if (*at == '-') return size_fail(text, "it is negative");
    if (!is_digit(*at)) return size_fail(text, "it does not begin with a digit");

    uint64_t whole = 0, fraction = 0, fraction_unit = 1;
    for (; is_digit(*at); at++)
        if (__builtin_mul_overflow(whole, 10, &whole) ||
            __builtin_add_overflow(whole, (uint64_t)(*at - '0'), &whole))
            return size_fail(text, "it does not fit in 64 bits");
    bool has_point = *at == '.';
    if (has_point) {
        if (!is_digit(*++at)) return size_fail(text, "no digit follows the point");
        for (int digit = 0; is_digit(*at); at++, digit++) {
            if (digit == FRACTION_DIGITS_MAX)
                return size_fail(text, "it has more than 18 digits after the point");
            fraction = fraction * 10 + (uint64_t)(*at - '0');
            fraction_unit *= 10;
        }
    }
    while (at < end && is_space(*at)) at++;

    uint64_t unit;
    if (unit_find(at, (size_t)(end - at), &unit) < 0)
        return size_fail(text, "its unit is not one of B, KB, MB, GB, TB, KiB, MiB, GiB, TiB");
    if (has_point && unit == 1) return size_fail(text, "a fraction of a byte");
    unsigned __int128 bytes = (unsigned __int128)whole * unit;
    bytes += ((unsigned __int128)fraction * unit * 2 + fraction_unit) / fraction_unit / 2;
    if (bytes >= PLLM_SIZE_UNLIMITED) return size_fail(text, "it does not fit in 64 bits");
    *bytes_out = (uint64_t)bytes;
    return PLLM_OK;
}

/* number.decimals without trailing zeros; hundredths are exact. */
static void print_hundredths(char *buffer, size_t buffer_bytes, uint64_t hundredths,
                             const char *unit)
{
    unsigned long long whole = hundredths / 100;
    unsigned cents = (unsigned)(hundredths % 100);
    if (cents == 0)
        snprintf(buffer, buffer_bytes, "%llu %s", whole, unit);
    else if (cents % 10 == 0)
        snprintf(buffer, buffer_bytes, "%llu.%u %s", whole, cents / 10, unit);
    else
        snprintf(buffer, buffer_bytes, "%llu.%02u %s", whole, cents, unit);
}

/* The largest decimal unit in which bytes is a number of whole hundredths, or NULL. */
static const struct unit *decimal_unit(uint64_t bytes)
{
    for (const struct unit *unit = &units[8]; unit >= &units[6]; unit--)
        if (bytes >= unit->bytes && bytes % (unit->bytes / 100) == 0) return unit;
    return NULL;
}

static const char *size_text(uint64_t bytes, bool up, char *buffer, size_t buffer_bytes)
{
    if (bytes == PLLM_SIZE_UNLIMITED) {
        snprintf(buffer, buffer_bytes, "unlimited");
        return buffer;
    }
    int scale = bytes < 1024 ? 0 : (63 - __builtin_clzll(bytes)) / 10;
    if (scale > 4) scale = 4;
    const struct unit *unit = &units[scale];
    unsigned __int128 hundredths = (unsigned __int128)bytes * 100;
    if (hundredths % unit->bytes != 0) {
        const struct unit *decimal = decimal_unit(bytes);
        if (decimal) unit = decimal;
    }
    uint64_t more = up ? unit->bytes - 1 : unit->bytes / 2;
    uint64_t rounded = (uint64_t)((hundredths + more) / unit->bytes);
    if (rounded == 102400 && scale < 4 && unit == &units[scale]) { /* 1023.999 KiB is 1 MiB */
        rounded = 100;
        unit++;
    }
    print_hundredths(buffer, buffer_bytes, rounded, unit->name);
    return buffer;
}

const char *pllm_size_text(uint64_t bytes, char *buffer, size_t buffer_bytes)
{
    return size_text(bytes, false, buffer, buffer_bytes);
}

const char *pllm_size_text_up(uint64_t bytes, char *buffer, size_t buffer_bytes)
{
    return size_text(bytes, true, buffer, buffer_bytes);
}
