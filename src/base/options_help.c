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
    char usage[128], help[320], also[64] = "";
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

/* Options with a command list of their own, or those that every command takes. */
static void print_options(FILE *file, const pllm_command *command, bool everywhere)
{
    int column = help_column(command);
    for (uint32_t i = 0; i < pllm_option_count; i++) {
        const pllm_option *option = &pllm_options[i];
        if ((option->commands == UINT32_MAX) != everywhere) continue;
        if (pllm_command_takes(command, option)) print_option(file, option, column);
    }
}

static void print_commands(FILE *file)
{
    char usage[64];
    fprintf(file, "pagedllm - language models with more context than memory\n\n"
                  "Usage: pagedllm COMMAND [arguments] [options]\n\n");
    for (uint32_t i = 0; i < pllm_command_count; i++) {
        const pllm_command *command = &pllm_commands[i];
        snprintf(usage, sizeof usage, "%s %s", command->name, command->arguments);
        fprintf(file, "  %-24s %s\n", usage, command->help);
    }
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

int pllm_options_help(FILE *file, const char *command_name)
{
    const pllm_command *command = pllm_command_find(command_name);
    if (!command) {
        print_commands(file);
    } else {
        fprintf(file, "Usage: pagedllm %s %s [options]\n\n%c%s.\n", command->name,
                command->arguments, command->help[0] - 'a' + 'A', command->help + 1);
        uint32_t own = 0;
        for (uint32_t i = 0; i < pllm_option_count; i++)
            own += pllm_options[i].commands != UINT32_MAX &&
                   pllm_command_takes(command, &pllm_options[i]);
        if (own > 0) {
            fprintf(file, "\nOptions of %s:\n", command->name);
            print_options(file, command, false);
        }
        fprintf(file, "\nOptions everywhere:\n");
        print_options(file, command, true);
        fprintf(file, "\nSizes: 24GB is 24x10^9 bytes, 24GiB is 24x2^30, a bare number is bytes. "
                      "--kv-limit is also\nPAGEDLLM_KV_LIMIT in the environment and kv_limit = ... "
                      "in a config file, and so are all others;\na flag wins over the environment, "
                      "the environment over the file.\n");
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
