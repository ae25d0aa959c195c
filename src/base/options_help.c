/* options_help.c - help and value texts made from the table, so that they cannot fall behind it. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include "base/options_internal.h"

enum { LINE_COLUMNS = 100, HELP_COLUMN_MAX = 32 };

/* "--vram-limit SIZE" */
static int option_usage(const pllm_option *option, char *text, size_t text_bytes)
{
    char flag[64];
    pllm_option_flag(option->name, flag, sizeof flag);
    return snprintf(text, text_bytes, "%s%s%s", flag, option->argument ? " " : "",
                    option->argument ? option->argument : "");
}

/* Where the help column begins: after the widest usage that is not too wide. */
static int help_column(const pllm_command *command)
{
    char usage[128];
    int column = 0;
    for (uint32_t i = 0; i < pllm_option_count; i++) {
        if (!pllm_command_takes(command, &pllm_options[i])) continue;
        int end = option_usage(&pllm_options[i], usage, sizeof usage) + 4;
        if (end > column && end <= HELP_COLUMN_MAX) column = end;
    }
    return column;
}

/* Words from text, broken so that lines stay within LINE_COLUMNS; returns the column reached. */
static int print_words(FILE *file, const char *text, int column, int indent)
{
    bool first = true;
    while (*text) {
        int length = (int)strcspn(text, " ");
        if (!first && column + 1 + length > LINE_COLUMNS) {
            fprintf(file, "\n%*s", indent, "");
            column = indent;
            first = true;
        }
        fprintf(file, "%s%.*s", first ? "" : " ", length, text);
        column += length + !first;
        first = false;
        text += length;
        while (*text == ' ') text++;
    }
    return column;
}

static void print_option(FILE *file, const pllm_option *option, int column)
{
    char usage[128], help[480], also[64] = "";
    int end = option_usage(option, usage, sizeof usage) + 2;
    fprintf(file, "  %s", usage);
    if (end + 2 > column)
        fprintf(file, "\n%*s", column, "");
    else
        fprintf(file, "%*s", column - end, "");
    if (option->alias) {
        memcpy(also, "; also ", 8);
        pllm_option_flag(option->alias, also + 7, sizeof also - 7);
    }
    if (option->default_text)
        snprintf(help, sizeof help, "%s%s [%s]", option->help, also, option->default_text);
    else
        snprintf(help, sizeof help, "%s%s", option->help, also);
    print_words(file, help, column, column);
    fputc('\n', file);
}

/* Does every command take it, or every one of those about models? */
static bool is_everywhere(const pllm_command *command, const pllm_option *option)
{
    if (pllm_model_commands >> (command - pllm_commands) & 1)
        return (option->commands & pllm_model_commands) == pllm_model_commands;
    return option->commands == UINT32_MAX;
}

static void print_options(FILE *file, const pllm_command *command, bool everywhere)
{
    int column = help_column(command);
    for (uint32_t i = 0; i < pllm_option_count; i++) {
        const pllm_option *option = &pllm_options[i];
        if (is_everywhere(command, option) != everywhere) continue;
        if (pllm_command_takes(command, option)) print_option(file, option, column);
    }
}

/* Paragraphs, filled. */
static void print_paragraphs(FILE *file, const char *text)
{
    while (*text) {
        const char *end = strstr(text, "\n\n");
        size_t bytes = end ? (size_t)(end - text) : strlen(text);
        char paragraph[1200];
        snprintf(paragraph, sizeof paragraph, "%.*s", (int)bytes, text);
        fputs("\n", file);
        print_words(file, paragraph, 0, 0);
        fputs("\n", file);
        text += bytes;
        while (*text == '\n') text++;
    }
}

/* Lines as they are, indented. */
static void print_lines(FILE *file, const char *title, const char *text)
{
    if (!text) return;
    fprintf(file, "\n%s:\n", title);
    while (*text) {
        int length = (int)strcspn(text, "\n");
        fprintf(file, "  %.*s\n", length, text);
        text += length;
        if (*text) text++;
    }
}

/* Those of a group, or (NULL) those that are of none. */
static void print_command_list(FILE *file, const pllm_command *group)
{
    char usage[64];
    size_t skipped = group ? strlen(group->name) + 1 : 0;
    for (uint32_t i = 0; i < pllm_command_count; i++) {
        const pllm_command *command = &pllm_commands[i];
        const char *space = strchr(command->name, ' ');
        if (group ? !space || strncmp(command->name, group->name, skipped - 1) != 0 : !!space)
            continue;
        snprintf(usage, sizeof usage, "%s %s", command->name + skipped, command->arguments);
        fprintf(file, "  %-24s %s\n", usage, command->help);
    }
}

static void print_commands(FILE *file)
{
    fprintf(file, "pagedllm - language models with more context than memory\n\n"
                  "Usage: pagedllm COMMAND [arguments] [options]\n\n");
    print_command_list(file, NULL);
    fprintf(
        file,
        "\nMODEL is a GGUF file, or a folder with config.json and safetensors.\n"
        "pagedllm COMMAND --help shows a command's options.\n"
        "\nThe device is this machine's memory and processor (--device host, the default) or an\n"
        "NVIDIA GPU (--device cuda). pagedllm doctor shows what there is.\n"
        "\nMemory: --vram-limit bounds all device bytes, weights too (layers beyond are streamed\n"
        "from host memory for each token), --kv-limit the KV cache's blocks among them. Blocks\n"
        "beyond move to host memory (--host-memory), then to a spill file\n"
        "(--nvme-path, --nvme-size), and come back when they are read. No limit changes a\n"
        "result. pagedllm doctor MODEL says the least that works.\n"
        "\nExamples:\n"
        "  pagedllm run model.gguf --prompt \"Once upon a time\" --max-tokens 64\n"
        "  pagedllm run model.gguf --prompt-file book.txt --kv-limit 64MB --host-memory 256MB \\\n"
        "      --nvme-path /var/tmp --stats\n"
        "  pagedllm run model.gguf --prompt-file book.txt --device cuda --vram-limit 24GB \\\n"
        "      --host-memory 40GB\n"
        "  pagedllm tokenize model.gguf --text \"some text\" --json |\n"
        "      pagedllm logits model.gguf --ids - --output logits.npy\n"
        "  pagedllm chat model.gguf\n"
        "\nEvery option may also stand in the environment (PAGEDLLM_KV_LIMIT=64MB) or in a file\n"
        "that --config names (kv_limit = 64MB); a flag wins over the environment, the\n"
        "environment over the file.\n"
        "\nExit status: 0 done; 1 failed, with one sentence on standard error; 2 the command\n"
        "line was wrong; 128 and the signal's number if interrupted.\n");
}

static void print_command(FILE *file, const pllm_command *command)
{
    const pllm_manual *manual = command->manual;
    bool group = pllm_command_is_group(command);
    fprintf(file, "Usage: pagedllm %s %s%s[options]\n\n%c%s.\n", command->name, command->arguments,
            *command->arguments ? " " : "", command->help[0] - 'a' + 'A', command->help + 1);
    if (manual && manual->description) print_paragraphs(file, manual->description);
    uint32_t own = 0;
    for (uint32_t i = 0; i < pllm_option_count; i++)
        own += !is_everywhere(command, &pllm_options[i]) &&
               pllm_command_takes(command, &pllm_options[i]);
    if (group) {
        fprintf(file, "\nCommands:\n");
        print_command_list(file, command);
    } else if (own > 0) {
        fprintf(file, "\nOptions of %s:\n", command->name);
        print_options(file, command, false);
    }
    fprintf(file, "\nOptions everywhere:\n");
    print_options(file, command, true);
    bool models = pllm_model_commands >> (command - pllm_commands) & 1;
    fprintf(file,
            "\nSizes: 24GB is 24x10^9 bytes, 24GiB is 24x2^30, a bare number is bytes. --%s is "
            "also\nPAGEDLLM_%s in the environment and %s = ... in a config file, and so are all "
            "others;\na flag wins over the environment, the environment over the file.\n",
            models ? "kv-limit" : "socket", models ? "KV_LIMIT" : "SOCKET",
            models ? "kv_limit" : "socket");
    if (!manual) return;
    print_lines(file, "Files", manual->files);
    print_lines(file, "Environment", manual->environment);
    print_lines(file, "Exit status", manual->exits);
    print_lines(file, "Examples", manual->examples);
}

int pllm_options_help(FILE *file, const char *command_name)
{
    const pllm_command *command = pllm_command_find(command_name);
    if (!command) {
        print_commands(file);
    } else {
        print_command(file, command);
    }
    if (fflush(file) || ferror(file))
        return pllm_fail(PLLM_EIO, errno, "cannot write the help: %s", strerror(errno));
    return PLLM_OK;
}

/* The index-th of "auto|f32|bf16". */
static void print_choice(const char *values, uint32_t index, char *buffer, size_t buffer_bytes)
{
    while (index-- > 0) values += strcspn(values, "|") + 1;
    snprintf(buffer, buffer_bytes, "%.*s", (int)strcspn(values, "|"), values);
}

static void print_uints(const pllm_uint_list *list, char *buffer, size_t buffer_bytes)
{
    size_t used = 0;
    buffer[0] = '\0';
    for (uint32_t i = 0; i < list->count && used < buffer_bytes; i++)
        used += (size_t)snprintf(buffer + used, buffer_bytes - used, "%s%" PRIu64, i ? "," : "",
                                 list->items[i]);
}

/* Exact bytes where the friendly form is rounded. */
static void print_size(uint64_t bytes, char *buffer, size_t buffer_bytes)
{
    char text[PLLM_SIZE_TEXT_BYTES];
    uint64_t back;
    pllm_size_text(bytes, text, sizeof text);
    if (pllm_size_parse(text, &back) == PLLM_OK && back == bytes)
        snprintf(buffer, buffer_bytes, "%s", text);
    else
        snprintf(buffer, buffer_bytes, "%" PRIu64, bytes);
}

const char *pllm_settings_text(const pllm_settings *settings, const pllm_option *option,
                               char *buffer, size_t buffer_bytes)
{
    const void *field = (const char *)settings + option->offset;
    const pllm_string_list *strings = field;
    const char *text = NULL;
    switch (option->type) {
    case PLLM_OPTION_SIZE:
        print_size(*(const uint64_t *)field, buffer, buffer_bytes);
        break;
    case PLLM_OPTION_UINT:
        snprintf(buffer, buffer_bytes, "%" PRIu64, *(const uint64_t *)field);
        break;
    case PLLM_OPTION_FLOAT:
        snprintf(buffer, buffer_bytes, "%.15g", *(const double *)field);
        break;
    case PLLM_OPTION_ENUM:
        print_choice(option->argument, *(const uint32_t *)field, buffer, buffer_bytes);
        break;
    case PLLM_OPTION_BOOL:
        snprintf(buffer, buffer_bytes, "%s", *(const bool *)field ? "true" : "false");
        break;
    case PLLM_OPTION_UINTS:
        print_uints(field, buffer, buffer_bytes);
        break;
    case PLLM_OPTION_STRING:
        text = *(const char *const *)field;
        snprintf(buffer, buffer_bytes, "%s", text ? text : "");
        break;
    case PLLM_OPTION_STRINGS: /* the last; lists of texts have no one-line form */
        snprintf(buffer, buffer_bytes, "%s",
                 strings->count ? strings->items[strings->count - 1] : "");
        break;
    }
    return buffer;
}
