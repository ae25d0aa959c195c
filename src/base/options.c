/* options.c - from text to settings: arguments, environment, config file, one after another.
 *
 * Everything goes through assign(): it parses a value by the option's type, holds it to its bounds,
 * and stores it if its source ranks at least as high as what is there. A value that is outranked
 * is still checked, so that whether a mistake is reported does not depend on reading order.
 * Strings are copied into a list that the settings own. */
#include <errno.h>
#include <string.h>
#include "base/options.h"
#include "base/options_internal.h"
#include "base/text.h"

enum { CONFIG_BYTES_MAX = 1 << 20 };

typedef struct owned_text {
    struct owned_text *next;
    char text[];
} owned_text;

/* ---- names ---------------------------------------------------------------------------------- */

static char plain(char c)
{
    return c == '-' ? '_' : c;
}

/* Is name, of length bytes, this option's? */
static bool name_is(const char *known, const char *name, size_t length)
{
    if (!known || strlen(known) != length) return false;
    for (size_t i = 0; i < length; i++)
        if (plain(name[i]) != known[i]) return false;
    return true;
}

static const pllm_option *option_find(const char *name, size_t length)
{
    for (uint32_t i = 0; i < pllm_option_count; i++)
        if (name_is(pllm_options[i].name, name, length) ||
            name_is(pllm_options[i].alias, name, length))
            return &pllm_options[i];
    return NULL;
}

const pllm_option *pllm_option_find(const char *name)
{
    return option_find(name, strlen(name));
}

const pllm_command *pllm_command_find(const char *name)
{
    for (uint32_t i = 0; name && i < pllm_command_count; i++)
        if (strcmp(pllm_commands[i].name, name) == 0) return &pllm_commands[i];
    return NULL;
}

/* The rest of a command's name within group; NULL if it is none of it. */
static const char *name_within(const pllm_command *group, const pllm_command *command)
{
    size_t length = strlen(group->name);
    if (strncmp(command->name, group->name, length) != 0 || command->name[length] != ' ')
        return NULL;
    return command->name + length + 1;
}

const pllm_command *pllm_command_within(const pllm_command *group, const char *name)
{
    for (uint32_t i = 0; i < pllm_command_count; i++) {
        const char *own = name_within(group, &pllm_commands[i]);
        if (own && strcmp(own, name) == 0) return &pllm_commands[i];
    }
    return NULL;
}

bool pllm_command_is_group(const pllm_command *command)
{
    for (uint32_t i = 0; i < pllm_command_count; i++)
        if (name_within(command, &pllm_commands[i])) return true;
    return false;
}

bool pllm_command_takes(const pllm_command *command, const pllm_option *option)
{
    return !command || option->commands >> (command - pllm_commands) & 1;
}

void pllm_option_flag(const char *name, char *flag, size_t flag_bytes)
{
    snprintf(flag, flag_bytes, "--%s", name);
    for (char *at = flag + 2; *at; at++)
        if (*at == '_') *at = '-';
}

/* Single-character edits, a swap of neighbours counting as one, between two short names
 * (Damerau and Levenshtein's distance, in its restricted form). */
static uint32_t edit_distance(const char *a, size_t a_length, const char *b)
{
    enum { LENGTH_MAX = 40 };
    size_t b_length = strlen(b);
    if (a_length >= LENGTH_MAX || b_length >= LENGTH_MAX) return UINT32_MAX;
    uint32_t rows[3][LENGTH_MAX + 1]; /* i % 3: this row, the one above, and that above it */
    for (size_t j = 0; j <= b_length; j++) rows[0][j] = (uint32_t)j;
    for (size_t i = 1; i <= a_length; i++) {
        uint32_t *row = rows[i % 3], *above = rows[(i + 2) % 3], *second = rows[(i + 1) % 3];
        row[0] = (uint32_t)i;
        for (size_t j = 1; j <= b_length; j++) {
            char x = plain(a[i - 1]), y = b[j - 1];
            uint32_t best = above[j - 1] + (x != y);
            if (above[j] + 1 < best) best = above[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            if (i > 1 && j > 1 && x == b[j - 2] && plain(a[i - 2]) == y && second[j - 2] + 1 < best)
                best = second[j - 2] + 1;
            row[j] = best;
        }
    }
    return rows[a_length % 3][b_length];
}

typedef struct nearest {
    const char *name;
    uint32_t distance;
} nearest;

static void nearest_try(nearest *best, const char *name, size_t length, const char *candidate)
{
    if (!candidate) return;
    uint32_t distance = edit_distance(name, length, candidate);
    bool begins = length >= 3 && strlen(candidate) > length;
    for (size_t i = 0; begins && i < length; i++) begins = plain(name[i]) == candidate[i];
    if (begins) distance = 1; /* --vram for --vram-limit */
    uint32_t tolerated = length < 6 ? 1 : (uint32_t)length / 3;
    if (distance > tolerated || distance >= best->distance) return;
    best->name = candidate;
    best->distance = distance;
}

/* The nearest option that the command takes, or NULL. */
static const char *nearest_option(const pllm_command *command, const char *name, size_t length)
{
    nearest best = {NULL, UINT32_MAX};
    for (uint32_t i = 0; i < pllm_option_count; i++) {
        if (!pllm_command_takes(command, &pllm_options[i])) continue;
        nearest_try(&best, name, length, pllm_options[i].name);
        nearest_try(&best, name, length, pllm_options[i].alias);
    }
    return best.name;
}

/* ---- values --------------------------------------------------------------------------------- */

static int owned_copy(pllm_settings *settings, const char *text, const char **copy_out)
{
    size_t bytes = strlen(text) + 1;
    owned_text *owned = pllm_alloc(settings->context, sizeof *owned + bytes);
    if (!owned) return pllm_fail_memory("an option's text", bytes);
    memcpy(owned->text, text, bytes);
    owned->next = settings->owned;
    settings->owned = owned;
    *copy_out = owned->text;
    return PLLM_OK;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool parse_uint(const char *text, size_t length, uint64_t *value_out)
{
    uint64_t value = 0;
    for (size_t i = 0; i < length; i++)
        if (!is_digit(text[i]) || __builtin_mul_overflow(value, 10, &value) ||
            __builtin_add_overflow(value, (uint64_t)(text[i] - '0'), &value))
            return false;
    *value_out = value;
    return length > 0;
}

/* Digits with an optional sign, point and nothing else, at most 15 of them: then one division of
 * two exact doubles gives the nearest double, in any locale. */
static bool parse_float(const char *text, double *value_out)
{
    bool negative = *text == '-';
    if (negative) text++;
    double number = 0, scale = 1;
    int digits = 0, point = 0;
    for (; *text; text++) {
        if (*text == '.' && !point++) continue;
        if (!is_digit(*text) || ++digits > 15) return false;
        number = number * 10 + (*text - '0');
        if (point) scale *= 10;
    }
    *value_out = negative ? -number / scale : number / scale;
    return digits > 0;
}

static bool parse_bool(const char *text, bool *value_out)
{
    static const char *const words[] = {"false", "true", "no", "yes", "off", "on", "0", "1"};
    for (int i = 0; i < 8; i++)
        if (strcmp(text, words[i]) == 0) {
            *value_out = i & 1;
            return true;
        }
    return false;
}

/* The position of text in "auto|f32|bf16". */
static bool parse_enum(const char *values, const char *text, uint32_t *value_out)
{
    size_t length = strlen(text);
    for (uint32_t i = 0;; i++) {
        const char *bar = strchr(values, '|');
        size_t bytes = bar ? (size_t)(bar - values) : strlen(values);
        if (bytes == length && memcmp(values, text, bytes) == 0) {
            *value_out = i;
            return true;
        }
        if (!bar) return false;
        values = bar + 1;
    }
}

/* place is where the text stands: a flag, a variable, a line of a file. */
static int value_fail(const char *place, const char *text, const char *wanted)
{
    char quoted[PLLM_QUOTE_BYTES];
    return pllm_fail(PLLM_EINVAL, 0, "%s: %s is not %s", place,
                     pllm_text_quote(text, quoted, sizeof quoted), wanted);
}

static int bounds_check(const pllm_option *option, const char *place, double value)
{
    if (value >= option->min && (option->max == 0 || value <= option->max)) return PLLM_OK;
    if (option->type == PLLM_OPTION_SIZE) {
        char low[PLLM_SIZE_TEXT_BYTES], high[PLLM_SIZE_TEXT_BYTES];
        pllm_size_text((uint64_t)option->min, low, sizeof low);
        if (option->max == 0) return pllm_fail(PLLM_EINVAL, 0, "%s is at least %s", place, low);
        return pllm_fail(PLLM_EINVAL, 0, "%s is from %s to %s", place, low,
                         pllm_size_text((uint64_t)option->max, high, sizeof high));
    }
    if (option->max == 0)
        return pllm_fail(PLLM_EINVAL, 0, "%s is at least %.10g", place, option->min);
    return pllm_fail(PLLM_EINVAL, 0, "%s is from %.10g to %.10g", place, option->min, option->max);
}

static int parse_uint_item(const pllm_option *option, const char *place, const char *text,
                           size_t length, uint64_t *value_out)
{
    if (!parse_uint(text, length, value_out))
        return value_fail(place, text,
                          option->type == PLLM_OPTION_UINTS
                              ? "a list of whole numbers such as 0,2048"
                              : "a whole number of at most 64 bits");
    return bounds_check(option, place, (double)*value_out);
}

static int parse_uints(const pllm_option *option, const char *place, const char *text,
                       pllm_uint_list *list)
{
    *list = (pllm_uint_list){0};
    for (const char *at = text;; at++) {
        size_t length = strcspn(at, ",");
        if (list->count == PLLM_LIST_MAX)
            return pllm_fail(PLLM_EINVAL, 0, "%s takes at most %d numbers", place, PLLM_LIST_MAX);
        int status = parse_uint_item(option, place, at, length, &list->items[list->count]);
        if (status < 0) return status;
        list->count++;
        at += length;
        if (!*at) return PLLM_OK;
    }
}

typedef union value {
    uint64_t number;
    double real;
    bool truth;
    uint32_t choice;
    pllm_uint_list numbers;
} value;

static int value_parse(const pllm_option *option, const char *place, const char *text, value *v)
{
    char wanted[96];
    int status;
    switch (option->type) {
    case PLLM_OPTION_SIZE:
        status = pllm_size_parse(text, &v->number);
        if (status < 0) return pllm_fail(status, 0, "%s: %s", place, pllm_last_error()->text);
        return bounds_check(option, place, (double)v->number);
    case PLLM_OPTION_UINT:
        return parse_uint_item(option, place, text, strlen(text), &v->number);
    case PLLM_OPTION_FLOAT:
        if (!parse_float(text, &v->real)) return value_fail(place, text, "a number such as 0.7");
        return bounds_check(option, place, v->real);
    case PLLM_OPTION_ENUM:
        if (parse_enum(option->argument, text, &v->choice)) return PLLM_OK;
        snprintf(wanted, sizeof wanted, "one of %s", option->argument);
        return value_fail(place, text, wanted);
    case PLLM_OPTION_BOOL:
        if (parse_bool(text, &v->truth)) return PLLM_OK;
        return value_fail(place, text, "true or false");
    case PLLM_OPTION_UINTS:
        return parse_uints(option, place, text, &v->numbers);
    case PLLM_OPTION_STRING:
    case PLLM_OPTION_STRINGS:
        if (*text || option->type == PLLM_OPTION_STRING) return PLLM_OK;
        return pllm_fail(PLLM_EINVAL, 0, "%s needs a text that is not empty", place);
    }
    return pllm_fail(PLLM_EINVAL, 0, "%s has a type this build does not know", place);
}

static int string_append(pllm_settings *settings, pllm_string_list *list, const char *place,
                         const char *text)
{
    if (list->count == PLLM_LIST_MAX)
        return pllm_fail(PLLM_EINVAL, 0, "%s may be given at most %d times", place, PLLM_LIST_MAX);
    int status = owned_copy(settings, text, &list->items[list->count]);
    if (status == PLLM_OK) list->last = list->items[list->count++];
    return status;
}

static int assign(pllm_settings *settings, const pllm_option *option, const char *place,
                  const char *text, pllm_option_source source)
{
    value v;
    int status = value_parse(option, place, text, &v);
    if (status < 0) return status;
    uint8_t *from = &settings->sources[option - pllm_options];
    if (source < *from) return PLLM_OK;
    void *field = (char *)settings + option->offset;
    switch (option->type) {
    case PLLM_OPTION_SIZE:
    case PLLM_OPTION_UINT:
        *(uint64_t *)field = v.number;
        break;
    case PLLM_OPTION_FLOAT:
        *(double *)field = v.real;
        break;
    case PLLM_OPTION_ENUM:
        *(uint32_t *)field = v.choice;
        break;
    case PLLM_OPTION_BOOL:
        *(bool *)field = v.truth;
        break;
    case PLLM_OPTION_UINTS:
        *(pllm_uint_list *)field = v.numbers;
        break;
    case PLLM_OPTION_STRING:
        status = owned_copy(settings, text, (const char **)field);
        break;
    case PLLM_OPTION_STRINGS:
        if (source > *from) ((pllm_string_list *)field)->count = 0;
        status = string_append(settings, field, place, text);
        break;
    }
    if (status == PLLM_OK) *from = (uint8_t)source;
    return status;
}

/* ---- arguments ------------------------------------------------------------------------------ */

static int unknown_flag(const pllm_settings *settings, const char *argument, size_t length)
{
    char quoted[PLLM_QUOTE_BYTES], flag[64];
    const pllm_command *command = pllm_command_find(settings->command);
    const char *near = length > 2 ? nearest_option(command, argument + 2, length - 2) : NULL;
    pllm_text_quote(argument, quoted, sizeof quoted);
    if (argument[1] >= '0' && argument[1] <= '9')
        return pllm_fail(PLLM_EINVAL, 0, "%s is negative: sizes and counts are 0 or more", quoted);
    if (!near)
        return pllm_fail(PLLM_EINVAL, 0, "%s is not an option; see pagedllm %s%s--help", quoted,
                         command ? command->name : "", command ? " " : "");
    pllm_option_flag(near, flag, sizeof flag);
    return pllm_fail(PLLM_EINVAL, 0, "%s is not an option; did you mean %s?", quoted, flag);
}

/* One --flag; moves *index past a value of its own. */
static int read_flag(pllm_settings *settings, int argc, const char *const *argv, int *index)
{
    const char *argument = argv[*index], *equals = strchr(argument, '=');
    size_t length = equals ? (size_t)(equals - argument) : strlen(argument);
    const pllm_option *option = option_find(argument + 2, length - 2);
    if (!option) return unknown_flag(settings, argument, length);
    char flag[64];
    pllm_option_flag(option->name, flag, sizeof flag);
    const char *text = equals ? equals + 1 : NULL;
    if (!text && option->type == PLLM_OPTION_BOOL) text = "true";
    if (!text) {
        const char *next = *index + 1 < argc ? argv[*index + 1] : NULL;
        if (!next)
            return pllm_fail(PLLM_EINVAL, 0, "%s needs a value: %s %s", flag, flag,
                             option->argument);
        if (strncmp(next, "--", 2) == 0 && option_find(next + 2, strcspn(next + 2, "=")))
            return pllm_fail(PLLM_EINVAL, 0,
                             "%s needs a value, but %s follows; if that is the value, "
                             "write %s=%s",
                             flag, next, flag, next);
        text = next;
        ++*index;
    }
    return assign(settings, option, flag, text, PLLM_FROM_FLAG);
}

static int unknown_command(const pllm_command *group, const char *word)
{
    char quoted[PLLM_QUOTE_BYTES];
    nearest best = {NULL, UINT32_MAX};
    for (uint32_t i = 0; i < pllm_command_count; i++) {
        const pllm_command *command = &pllm_commands[i];
        nearest_try(&best, word, strlen(word), group ? name_within(group, command) : command->name);
    }
    pllm_text_quote(word, quoted, sizeof quoted);
    const char *of = group ? " of " : "", *name = group ? group->name : "";
    if (best.name)
        return pllm_fail(PLLM_EINVAL, 0, "%s is not a command%s%s; did you mean %s?", quoted, of,
                         name, best.name);
    return pllm_fail(PLLM_EINVAL, 0, "%s is not a command%s%s; see pagedllm%s%s --help", quoted, of,
                     name, group ? " " : "", name);
}

static int read_word(pllm_settings *settings, const char *word)
{
    char quoted[PLLM_QUOTE_BYTES];
    const pllm_command *group = pllm_command_find(settings->command);
    if (group && !pllm_command_is_group(group)) group = NULL;
    if (!settings->command || group) {
        if (strcmp(word, "help") == 0) { /* pagedllm help run is pagedllm run --help */
            settings->help = true;
            return PLLM_OK;
        }
        const pllm_command *command =
            group ? pllm_command_within(group, word) : pllm_command_find(word);
        if (!command || (!group && strchr(word, ' '))) return unknown_command(group, word);
        settings->command = command->name;
        return PLLM_OK;
    }
    const pllm_command *command = pllm_command_find(settings->command);
    if (settings->positional_count == command->argument_max)
        return pllm_fail(PLLM_EINVAL, 0,
                         "%s is one argument too many for %s%s%s; text with spaces needs quotes",
                         pllm_text_quote(word, quoted, sizeof quoted), command->name,
                         command->arguments[0] ? " " : "", command->arguments);
    int status = owned_copy(settings, word, &settings->positionals[settings->positional_count]);
    if (status == PLLM_OK) settings->positional_count++;
    return status;
}

/* What can only be said once everything has been read. */
static int check_arguments(const pllm_settings *settings)
{
    const pllm_command *command = pllm_command_find(settings->command);
    if (settings->help || settings->version) return PLLM_OK;
    if (!command) return pllm_fail(PLLM_EINVAL, 0, "no command is given; see pagedllm --help");
    if (pllm_command_is_group(command))
        return pllm_fail(PLLM_EINVAL, 0, "%s needs a command; see pagedllm %s --help",
                         command->name, command->name);
    for (uint32_t i = 0; i < pllm_option_count; i++) {
        char flag[64];
        if (settings->sources[i] != PLLM_FROM_FLAG || pllm_command_takes(command, &pllm_options[i]))
            continue;
        pllm_option_flag(pllm_options[i].name, flag, sizeof flag);
        return pllm_fail(PLLM_EINVAL, 0, "%s does not take %s; see pagedllm %s --help",
                         command->name, flag, command->name);
    }
    if (settings->positional_count < command->argument_min)
        return pllm_fail(PLLM_EINVAL, 0, "%s needs %s: pagedllm %s %s [options]", command->name,
                         command->arguments, command->name, command->arguments);
    return PLLM_OK;
}

int pllm_settings_read_arguments(pllm_settings *settings, int argc, const char *const *argv)
{
    bool words_only = false;
    for (int i = 1; i < argc; i++) {
        const char *argument = argv[i];
        int status;
        if (!words_only && strcmp(argument, "--") == 0) {
            words_only = true;
            continue;
        }
        if (!words_only && strcmp(argument, "-h") == 0) argument = "--help";
        if (!words_only && strncmp(argument, "--", 2) == 0)
            status = argument == argv[i] ? read_flag(settings, argc, argv, &i)
                                         : pllm_settings_set(settings, "help", "true");
        else if (!words_only && argument[0] == '-' && argument[1])
            status = unknown_flag(settings, argument, strlen(argument));
        else
            status = read_word(settings, argument);
        if (status < 0) return status;
    }
    return check_arguments(settings);
}

/* ---- environment and config file ------------------------------------------------------------ */

/* help and version are for a person at the keyboard: PAGEDLLM_VERSION may well mean other things.
 */
static bool is_flag_only(const pllm_option *option)
{
    return option->offset == offsetof(pllm_settings, help) ||
           option->offset == offsetof(pllm_settings, version);
}

int pllm_settings_read_environment(pllm_settings *settings, const char *const *environment)
{
    static const char prefix[] = "PAGEDLLM_";
    enum { PREFIX_BYTES = sizeof prefix - 1 };
    for (; environment && *environment; environment++) {
        if (strncmp(*environment, prefix, PREFIX_BYTES) != 0) continue;
        const char *equals = strchr(*environment, '=');
        char name[64], place[80];
        if (!equals || !equals[1]) continue; /* NAME= is the usual way to unset */
        size_t length = (size_t)(equals - *environment) - PREFIX_BYTES;
        if (length >= sizeof name) continue;
        for (size_t i = 0; i < length; i++) {
            char c = (*environment)[PREFIX_BYTES + i];
            name[i] = c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c == '_' ? c : '!';
        }
        const pllm_option *option = option_find(name, length);
        if (!option || is_flag_only(option)) continue; /* others may use the prefix */
        snprintf(place, sizeof place, "%.*s", (int)(equals - *environment), *environment);
        int status = assign(settings, option, place, equals + 1, PLLM_FROM_ENVIRONMENT);
        if (status < 0) return status;
    }
    return PLLM_OK;
}

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\r';
}

/* The value of a line, cut or unquoted in place. NULL if a quote is not closed or an escape is
 * unknown or text follows the quotes. */
static char *line_value(char *at)
{
    while (is_space(*at)) at++;
    char *end;
    if (*at != '"') {
        for (end = at; *end; end++)
            if (*end == '#' && (end == at || is_space(end[-1]))) break;
        while (end > at && is_space(end[-1])) end--;
        *end = '\0';
        return at;
    }
    char *out = end = at;
    for (at++; *at != '"'; at++) {
        if (!*at) return NULL;
        if (*at == '\\') {
            static const char letters[] = "nt\"\\", meanings[] = "\n\t\"\\";
            const char *letter = *++at ? strchr(letters, *at) : NULL;
            if (!letter) return NULL;
            *out++ = meanings[letter - letters];
        } else {
            *out++ = *at;
        }
    }
    for (at++; is_space(*at);) at++;
    if (*at && *at != '#') return NULL;
    *out = '\0';
    return end;
}

static int read_line(pllm_settings *settings, char *line, const char *file, uint32_t number)
{
    char quoted[PLLM_QUOTE_BYTES], place[192];
    while (is_space(*line)) line++;
    if (!*line || *line == '#') return PLLM_OK;
    size_t length = strcspn(line, "= \t\r#");
    char *equals = line + length;
    while (is_space(*equals)) equals++;
    if (*equals != '=')
        return pllm_fail(PLLM_EINVAL, 0, "%s, line %u: %s is not of the form name = value", file,
                         (unsigned)number, pllm_text_quote(line, quoted, sizeof quoted));
    const pllm_option *option = option_find(line, length);
    if (!option || is_flag_only(option) || option->offset == offsetof(pllm_settings, config)) {
        const char *near = option ? NULL : nearest_option(NULL, line, length);
        line[length] = '\0';
        return pllm_fail(PLLM_EINVAL, 0, "%s, line %u: %s is not an option of a config file%s%s%s",
                         file, (unsigned)number, pllm_text_quote(line, quoted, sizeof quoted),
                         near ? "; did you mean " : "", near ? near : "", near ? "?" : "");
    }
    const char *text = line_value(equals + 1);
    if (!text)
        return pllm_fail(PLLM_EINVAL, 0,
                         "%s, line %u: the quoted value of %s does not end, has text after it, or "
                         "has an escape other than \\n \\t \\\" \\\\",
                         file, (unsigned)number, option->name);
    snprintf(place, sizeof place, "%s, line %u, %s", file, (unsigned)number, option->name);
    return assign(settings, option, place, text, PLLM_FROM_CONFIG);
}

int pllm_settings_read_config(pllm_settings *settings, const char *text, size_t bytes,
                              const char *place)
{
    char file[PLLM_QUOTE_BYTES * 2];
    pllm_text_quote(place, file, sizeof file);
    if (bytes > 0 && memchr(text, '\0', bytes))
        return pllm_fail(PLLM_EINVAL, 0, "%s is not a text file: it has a zero byte", file);
    char *copy = pllm_alloc(settings->context, bytes + 1);
    if (!copy) return pllm_fail_memory("a config file", bytes + 1);
    if (bytes > 0) memcpy(copy, text, bytes);
    char *rest = copy, *line;
    if (strncmp(rest, "\xef\xbb\xbf", 3) == 0) rest += 3;
    int status = PLLM_OK;
    for (uint32_t number = 1; status == PLLM_OK && (line = strsep(&rest, "\n")); number++)
        status = read_line(settings, line, file, number);
    pllm_free(settings->context, copy);
    return status;
}

static int read_config_file(pllm_settings *settings, const char *path)
{
    char quoted[PLLM_QUOTE_BYTES * 2];
    pllm_text_quote(path, quoted, sizeof quoted);
    FILE *file = fopen(path, "re");
    if (!file)
        return pllm_fail(PLLM_EIO, errno, "cannot read the config file %s: %s", quoted,
                         strerror(errno));
    char *text = pllm_alloc(settings->context, CONFIG_BYTES_MAX + 1);
    int status = text ? PLLM_OK : pllm_fail_memory("a config file", CONFIG_BYTES_MAX + 1);
    if (status == PLLM_OK) {
        size_t bytes = fread(text, 1, CONFIG_BYTES_MAX + 1, file);
        if (ferror(file))
            status = pllm_fail(PLLM_EIO, errno, "cannot read the config file %s: %s", quoted,
                               strerror(errno));
        else if (bytes > CONFIG_BYTES_MAX)
            status = pllm_fail(PLLM_EINVAL, 0, "the config file %s is larger than 1 MiB", quoted);
        else
            status = pllm_settings_read_config(settings, text, bytes, path);
    }
    pllm_free(settings->context, text);
    fclose(file);
    return status;
}

/* ---- settings ------------------------------------------------------------------------------- */

int pllm_settings_open(const pllm_context *context, pllm_settings **settings_out)
{
    *settings_out = NULL;
    pllm_settings *settings = pllm_alloc(context, sizeof *settings);
    if (!settings) return pllm_fail_memory("the settings", sizeof *settings);
    settings->context = context;
    for (uint32_t i = 0; i < pllm_option_count; i++) {
        const pllm_option *option = &pllm_options[i];
        if (!option->default_text) continue;
        int status =
            assign(settings, option, option->name, option->default_text, PLLM_FROM_DEFAULT);
        if (status < 0) {
            pllm_settings_close(settings);
            return status;
        }
    }
    *settings_out = settings;
    return PLLM_OK;
}

void pllm_settings_close(pllm_settings *settings)
{
    if (!settings) return;
    const pllm_context *context = settings->context;
    for (owned_text *owned = settings->owned, *next; owned; owned = next) {
        next = owned->next;
        pllm_free(context, owned);
    }
    pllm_free(context, settings);
}

int pllm_settings_load(const pllm_context *context, int argc, const char *const *argv,
                       const char *const *environment, pllm_settings **settings_out)
{
    *settings_out = NULL;
    pllm_settings *settings;
    int status = pllm_settings_open(context, &settings);
    if (status < 0) return status;
    status = pllm_settings_read_arguments(settings, argc, argv);
    if (status == PLLM_OK) status = pllm_settings_read_environment(settings, environment);
    if (status == PLLM_OK && settings->config)
        status = read_config_file(settings, settings->config);
    if (status < 0) {
        pllm_settings_close(settings);
        return status;
    }
    *settings_out = settings;
    return PLLM_OK;
}

int pllm_settings_set(pllm_settings *settings, const char *name, const char *text)
{
    const pllm_option *option = pllm_option_find(name);
    if (option) return assign(settings, option, option->name, text, PLLM_FROM_CALL);
    char quoted[PLLM_QUOTE_BYTES];
    const char *near = nearest_option(NULL, name, strlen(name));
    return pllm_fail(PLLM_ENOTFOUND, 0, "there is no option %s%s%s%s",
                     pllm_text_quote(name, quoted, sizeof quoted), near ? "; did you mean " : "",
                     near ? near : "", near ? "?" : "");
}

pllm_option_source pllm_settings_source(const pllm_settings *settings, const char *name)
{
    const pllm_option *option = pllm_option_find(name);
    return option ? settings->sources[option - pllm_options] : PLLM_FROM_DEFAULT;
}

bool pllm_settings_given(const pllm_settings *settings, const char *name)
{
    return pllm_settings_source(settings, name) != PLLM_FROM_DEFAULT;
}
