/* Options: the bytes up to the first form feed are a config file, the lines after it are arguments
 * or, where they begin with PAGEDLLM_, variables. */
#include <stdlib.h>
#include <string.h>
#include "base/options.h"
#include "fuzz.h"

enum { WORD_MAX = 64 };

int fuzz_parses(const uint8_t *data, size_t size)
{
    char *copy = malloc(size + 1);
    if (size) memcpy(copy, data, size);
    copy[size] = '\0';
    char *feed = memchr(copy, '\f', size);
    size_t config_bytes = feed ? (size_t)(feed - copy) : size;
    const char *argv[WORD_MAX] = {"pagedllm"}, *environment[WORD_MAX] = {NULL};
    int argc = 1, variable_count = 0;
    for (char *rest = feed ? feed + 1 : NULL, *word; (word = strsep(&rest, "\n"));) {
        if (strncmp(word, "PAGEDLLM_", 9) == 0 && variable_count < WORD_MAX - 1)
            environment[variable_count++] = word;
        else if (argc < WORD_MAX)
            argv[argc++] = word;
    }
    pllm_settings *settings;
    FUZZ_CHECK(pllm_settings_open(NULL, &settings) == 0);
    int status = pllm_settings_read_config(settings, copy, config_bytes, "config");
    if (status == 0) status = pllm_settings_read_environment(settings, environment);
    if (status == 0 && argc > 1) status = pllm_settings_read_arguments(settings, argc, argv);
    int taken = fuzz_refusal_is_clear(status);
    for (uint32_t i = 0; taken && i < pllm_option_count; i++) {
        const pllm_option *option = &pllm_options[i];
        char text[512];
        pllm_settings_text(settings, option, text, sizeof text);
        if (option->type == PLLM_OPTION_STRING || option->type == PLLM_OPTION_STRINGS) continue;
        FUZZ_CHECK(pllm_settings_set(settings, option->name, text) == 0);
    }
    pllm_settings_close(settings);
    free(copy);
    return taken;
}
