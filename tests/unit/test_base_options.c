/* The option table and the settings: every place an option can come from, their ranks, bounds, the
 * sentences of errors, help, and no leak when memory runs out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/options.h"
#include "failing_context.h"

/* A command line of words separated by single spaces; ~ stands for a space within a word. */
typedef struct line {
    char text[512];
    const char *argv[64];
    int argc;
} line;

static void line_split(line *l, const char *text)
{
    snprintf(l->text, sizeof l->text, "pagedllm %s", text);
    l->argc = 0;
    for (char *rest = l->text, *word; (word = strsep(&rest, " "));) {
        if (!*word) continue;
        for (char *at = word; *at; at++)
            if (*at == '~') *at = ' ';
        l->argv[l->argc++] = word;
    }
}

static pllm_settings *load(const char *arguments, const char *const *environment)
{
    line l;
    pllm_settings *settings;
    line_split(&l, arguments);
    int status = pllm_settings_load(NULL, l.argc, l.argv, environment, &settings);
    if (status < 0) fail_msg("%s: %s", arguments, pllm_last_error()->text);
    return settings;
}

/* Loading must fail, with a sentence that has these words. */
static void refused(const char *arguments, const char *const *environment, const char *words)
{
    line l;
    pllm_settings *settings = (pllm_settings *)&l; /* must become NULL */
    line_split(&l, arguments);
    int status = pllm_settings_load(NULL, l.argc, l.argv, environment, &settings);
    if (status != PLLM_EINVAL) fail_msg("%s: status %d", arguments, status);
    assert_null(settings);
    if (!strstr(pllm_last_error()->text, words))
        fail_msg("%s: \"%s\" lacks \"%s\"", arguments, pllm_last_error()->text, words);
}

static void defaults(void **state)
{
    (void)state;
    pllm_settings *s = load("run m.gguf", NULL);
    assert_string_equal(s->command, "run");
    assert_int_equal(s->positional_count, 1);
    assert_string_equal(s->positionals[0], "m.gguf");
    assert_string_equal(s->device.last, "host");
    assert_int_equal(s->threads, 0);
    assert_true(s->vram_limit == PLLM_SIZE_UNLIMITED && s->kv_limit == PLLM_SIZE_UNLIMITED);
    assert_int_equal(s->page_size, 2 << 20);
    assert_int_equal(s->policy, PLLM_OPTION_POLICY_STATIC);
    assert_int_equal(s->log_level, PLLM_LOG_WARN);
    assert_true(s->temperature == 0 && s->top_p == 1);
    assert_int_equal(s->depth.count, 1);
    assert_null(s->prompt);
    assert_false(s->stats || s->json || s->help);
    assert_false(pllm_settings_given(s, "threads"));
    pllm_settings_close(s);
}

static void every_type_from_flags(void **state)
{
    (void)state;
    pllm_settings *s = load(
        "run --vram-limit 24GB --kv_limit=1.5GiB m.gguf --threads 3 --temperature 0.7 "
        "--policy 2q --kv-format int4 --compute=bf16 --prompt Hello~there --stop END --stop=\n "
        "--stats --prefetch-strategy none --log-level debug --disk-io pread --top-k 40 "
        "--seed 18446744073709551615 --link-bandwidth 10GB --link-latency-us 2.5",
        NULL);
    assert_true(s->vram_limit == 24000000000u && s->kv_limit == 1610612736);
    assert_int_equal(s->threads, 3);
    assert_true(s->temperature == 0.7);
    assert_int_equal(s->policy, PLLM_OPTION_POLICY_2Q);
    assert_int_equal(s->kv_format, PLLM_OPTION_KV_INT4);
    assert_int_equal(s->compute, PLLM_OPTION_COMPUTE_BF16);
    assert_int_equal(s->prefetch_strategy, PLLM_OPTION_PREFETCH_NONE);
    assert_int_equal(s->log_level, PLLM_LOG_DEBUG);
    assert_int_equal(s->disk_io, PLLM_OPTION_DISK_PREAD);
    assert_string_equal(s->prompt, "Hello there");
    assert_int_equal(s->stop.count, 2);
    assert_string_equal(s->stop.items[0], "END");
    assert_string_equal(s->stop.items[1], "\n");
    assert_true(s->stats && s->seed == UINT64_MAX && s->top_k == 40);
    assert_true(s->link_bandwidth == 10000000000u && s->link_latency_us == 2.5);
    assert_int_equal(pllm_settings_source(s, "vram_limit"), PLLM_FROM_FLAG);
    pllm_settings_close(s);
    s = load("bench --depth 0,2048,7680 --json=false --vram-size 7 -- --m", NULL);
    assert_int_equal(s->depth.count, 3);
    assert_int_equal(s->depth.items[2], 7680);
    assert_false(s->json);
    assert_int_equal(s->vram_limit, 7); /* by its alias */
    assert_string_equal(s->positionals[0], "--m");
    pllm_settings_close(s);
    s = load("perplexity m text.txt --max-tokens 100", NULL);
    assert_int_equal(s->positional_count, 2);
    assert_true(pllm_settings_given(s, "max_tokens"));
    pllm_settings_close(s);
    s = load("run - --prompt=--help", NULL);
    assert_string_equal(s->positionals[0], "-");
    assert_string_equal(s->prompt, "--help");
    pllm_settings_close(s);
    s = load("run m --prompt=", NULL); /* an empty prompt is a prompt */
    assert_string_equal(s->prompt, "");
    pllm_settings_close(s);
}

static void flag_beats_environment_beats_config_beats_default(void **state)
{
    (void)state;
    char path[] = "/tmp/pagedllm-options-XXXXXX";
    int file = mkstemp(path);
    assert_true(file >= 0);
    static const char text[] = "\xef\xbb\xbf# a comment\r\n"
                               "\n"
                               "threads = 2\r\n"
                               "  policy=lru   # the latest\n"
                               "kv-limit = 1 GiB\n"
                               "stop = \"a # b\\n\"\n"
                               "stop = c\n"
                               "nvme_path = /x#y\n"
                               "stats = on\n"
                               "depth = 1,2";
    assert_int_equal(write(file, text, sizeof text - 1), sizeof text - 1);
    close(file);
    char variable[128];
    snprintf(variable, sizeof variable, "PAGEDLLM_CONFIG=%s", path);
    const char *environment[] = {"PATH=/bin",
                                 "PAGEDLLM_POLICY=2q",
                                 "PAGEDLLM_THREADS=3",
                                 "PAGEDLLM_COMPUTE=",
                                 "PAGEDLLM_OTHER=x",
                                 "PAGEDLLM_VERSION=1",
                                 variable,
                                 "PAGEDLLM_VRAM_SIZE=5GB",
                                 NULL};
    pllm_settings *s = load("run m --threads 4", environment);
    assert_int_equal(s->threads, 4);
    assert_int_equal(s->policy, PLLM_OPTION_POLICY_2Q);
    assert_int_equal(s->kv_limit, 1 << 30);
    assert_int_equal(s->page_size, 2 << 20);
    assert_true(s->vram_limit == 5000000000u && s->stats && !s->version);
    assert_int_equal(s->stop.count, 2);
    assert_string_equal(s->stop.items[0], "a # b\n");
    assert_string_equal(s->stop.items[1], "c");
    assert_string_equal(s->nvme_path, "/x#y");
    assert_int_equal(pllm_settings_source(s, "threads"), PLLM_FROM_FLAG);
    assert_int_equal(pllm_settings_source(s, "policy"), PLLM_FROM_ENVIRONMENT);
    assert_int_equal(pllm_settings_source(s, "kv_limit"), PLLM_FROM_CONFIG);
    assert_int_equal(pllm_settings_source(s, "compute"), PLLM_FROM_DEFAULT);
    pllm_settings_close(s);
    s = load("run m --stop z", environment); /* a list is replaced, not added to */
    assert_int_equal(s->stop.count, 1);
    assert_string_equal(s->stop.items[0], "z");
    assert_int_equal(pllm_settings_set(s, "policy", "static"), PLLM_OK);
    assert_int_equal(s->policy, PLLM_OPTION_POLICY_STATIC);
    assert_int_equal(pllm_settings_read_environment(s, environment), PLLM_OK);
    assert_int_equal(s->policy, PLLM_OPTION_POLICY_STATIC); /* outranked, though read later */
    assert_int_equal(pllm_settings_set(s, "polizy", "static"), PLLM_ENOTFOUND);
    assert_non_null(strstr(pllm_last_error()->text, "policy"));
    pllm_settings_close(s);
    unlink(path);
    line l;
    line_split(&l, "run m");
    assert_int_equal(pllm_settings_load(NULL, l.argc, l.argv, environment, &s), PLLM_EIO);
    assert_non_null(strstr(pllm_last_error()->text, path));
}

static void wrong_arguments(void **state)
{
    (void)state;
    refused("", NULL, "no command is given");
    refused("ruin m", NULL, "did you mean run?");
    refused("zzzz m", NULL, "pagedllm --help");
    refused("run", NULL, "run needs MODEL");
    refused("run m Hello there", NULL, "\"Hello\" is one argument too many");
    refused("perplexity m", NULL, "needs MODEL FILE");
    refused("run m --vram-limt 1GB", NULL, "did you mean --vram-limit?");
    refused("run m --vram 1GB", NULL, "did you mean --vram-limit?");
    refused("run m --vrma-size 1GB", NULL, "did you mean --vram-size?");
    refused("run m --tmeperature=1", NULL,
            "\"--tmeperature=1\" is not an option; did you mean --temp");
    refused("run m --frobnicate", NULL, "pagedllm run --help");
    refused("store", NULL, "store needs a command; see pagedllm store --help");
    refused("store zzzz", NULL, "is not a command of store; see pagedllm store --help");
    refused("store putt", NULL, "did you mean put?");
    refused("store~put f", NULL, "is not a command");
    refused("store ls --redis x", NULL, "store ls does not take --redis");
    refused("store rename a", NULL, "store rename needs NAME NEW");
    refused("run m -t 4", NULL, "\"-t\" is not an option");
    refused("run m --=x", NULL, "is not an option");
    refused("run m --threads", NULL, "--threads needs a value: --threads N");
    refused("run m --prompt --threads 4", NULL, "write --prompt=--threads");
    refused("run m --threads four", NULL, "--threads: \"four\" is not a whole number");
    refused("run m --threads -1", NULL, "--threads");
    refused("run m --threads 1025", NULL, "--threads is from 0 to 1024");
    refused("run m --threads 99999999999999999999", NULL, "whole number");
    refused("run m --top-p 1.5", NULL, "--top-p is from 0 to 1");
    refused("run m --temperature -0.5", NULL, "--temperature is from 0 to 100");
    refused("run m --temperature nan", NULL, "a number such as 0.7");
    refused("run m --temperature .", NULL, "a number such as 0.7");
    refused("run m --temperature 1.2.3", NULL, "a number such as 0.7");
    refused("run m --kv-limit 24G", NULL, "--kv-limit: \"24G\" is not a size");
    refused("run m --page-size 1KB", NULL, "--page-size is from 64 KiB to 1 GiB");
    refused("run m --policy s3fifo", NULL, "one of static|lru|2q"); /* reserved */
    refused("run m --policy lr", NULL, "one of static|lru|2q");
    refused("run m --policy static|lru", NULL, "one of static|lru|2q");
    refused("run m --policy=", NULL, "one of static|lru|2q");
    refused("run m --stats=maybe", NULL, "true or false");
    refused("run m --stop=", NULL, "not empty");
    refused("bench m --prompt x", NULL, "bench does not take --prompt");
    refused("--prompt x bench m", NULL, "bench does not take --prompt");
    refused("bench m --depth 1,,2", NULL, "a list of whole numbers");
    refused("bench m --depth 1,", NULL, "a list of whole numbers");
    refused("run m --threads \x1b[31m\xff", NULL, "\"?[31m?\"");
    const char *environment[] = {"PAGEDLLM_VRAM_LIMIT=lots", NULL};
    refused("run m", environment, "PAGEDLLM_VRAM_LIMIT: \"lots\"");
    refused("run m --vram-limit 1GB", environment, "PAGEDLLM_VRAM_LIMIT"); /* though outranked */
    const char *argv[64] = {"p", "run", "m"};
    for (int i = 3; i < 3 + PLLM_LIST_MAX + 1; i++) argv[i] = "--stop=x";
    pllm_settings *s;
    assert_int_equal(pllm_settings_load(NULL, 3 + PLLM_LIST_MAX + 1, argv, NULL, &s), PLLM_EINVAL);
    assert_non_null(strstr(pllm_last_error()->text, "at most 32 times"));
    assert_int_equal(pllm_settings_load(NULL, 3 + PLLM_LIST_MAX, argv, NULL, &s), PLLM_OK);
    pllm_settings_close(s);
}

static void wrong_config(void **state)
{
    (void)state;
    static const struct {
        const char *text, *words;
    } cases[] = {
        {"threads 4", "\"f\", line 1: \"threads 4\" is not of the form name = value"},
        {"\n\npolcy = lru",
         "line 3: \"polcy\" is not an option of a config file; did you mean policy?"},
        {"help = true", "not an option of a config file"},
        {"config = other", "not an option of a config file"},
        {"threads = 4 5", "line 1, threads: \"4 5\""},
        {"threads =", "line 1, threads: \"\""},
        {"stop = \"abc", "does not end"},
        {"stop = \"abc\\", "does not end"},
        {"stop = \"a\" b", "text after it"},
        {"stop = \"\\q\"", "escape"},
        {"= 4", "not an option"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        pllm_settings *s;
        assert_int_equal(pllm_settings_open(NULL, &s), PLLM_OK);
        assert_int_equal(pllm_settings_read_config(s, cases[i].text, strlen(cases[i].text), "f"),
                         PLLM_EINVAL);
        if (!strstr(pllm_last_error()->text, cases[i].words))
            fail_msg("%s: %s", cases[i].text, pllm_last_error()->text);
        pllm_settings_close(s);
    }
    pllm_settings *s;
    assert_int_equal(pllm_settings_open(NULL, &s), PLLM_OK);
    assert_int_equal(pllm_settings_read_config(s, "a\0b", 3, "f"), PLLM_EINVAL);
    assert_int_equal(pllm_settings_read_config(s, "", 0, "f"), PLLM_OK);
    assert_int_equal(pllm_settings_read_config(s, NULL, 0, "f"), PLLM_OK);
    pllm_settings_close(s);
}

/* A device counts once for all commands but the daemon, which takes several. */
static void devices_add_up(void **state)
{
    (void)state;
    const char *environment[] = {"PAGEDLLM_DEVICE=cuda:3", NULL};
    pllm_settings *s = load("store serve --device host --device cuda:1", environment);
    assert_int_equal(s->device.count, 2);
    assert_string_equal(s->device.items[0], "host");
    assert_string_equal(s->device.last, "cuda:1");
    pllm_settings_close(s);
    s = load("store serve", environment);
    assert_int_equal(s->device.count, 1);
    assert_string_equal(s->device.last, "cuda:3");
    pllm_settings_close(s);
}

static void help_shows_the_whole_table(void **state)
{
    (void)state;
    for (uint32_t c = 0; c < pllm_command_count; c++) {
        char *text;
        size_t bytes;
        FILE *file = open_memstream(&text, &bytes);
        assert_int_equal(pllm_options_help(file, pllm_commands[c].name), PLLM_OK);
        fclose(file);
        for (uint32_t i = 0; i < pllm_option_count; i++) {
            char flag[80] = "\n  --";
            strcat(flag, pllm_options[i].name);
            for (char *at = flag; *at; at++)
                if (*at == '_') *at = '-';
            strcat(flag, " "); /* --legacy is not --legacy-memory */
            const char *at = strstr(text, flag);
            if ((at != NULL) != (pllm_options[i].commands >> c & 1)) fail_msg("%s", flag);
        }
        for (char *rest = text, *row; (row = strsep(&rest, "\n"));)
            if (strlen(row) > 100) fail_msg("a long line: %s", row);
        free(text);
    }
    pllm_settings *s = load("--help", NULL);
    assert_true(s->help && !s->command);
    pllm_settings_close(s);
    s = load("help bench", NULL);
    assert_true(s->help);
    assert_string_equal(s->command, "bench");
    pllm_settings_close(s);
    s = load("help store put", NULL);
    assert_true(s->help);
    assert_string_equal(s->command, "store put");
    pllm_settings_close(s);
    s = load("store --help", NULL);
    assert_true(s->help);
    assert_string_equal(s->command, "store");
    pllm_settings_close(s);
    s = load("run -h", NULL); /* needs no MODEL */
    assert_true(s->help);
    pllm_settings_close(s);
    s = load("--version", NULL);
    assert_true(s->version);
    pllm_settings_close(s);
}

/* Every value as text reads back to the same value; names are unique and well formed. */
static void texts_read_back(void **state)
{
    (void)state;
    pllm_settings *s = load("run m --kv-limit 123456789 --top-p 0.95 --policy lru --prompt x "
                            "--stop y --vram-limit 24GB --stats",
                            NULL);
    for (uint32_t i = 0; i < pllm_option_count; i++) {
        const pllm_option *option = &pllm_options[i];
        char text[256], again[256];
        pllm_settings_text(s, option, text, sizeof text);
        if (option->type != PLLM_OPTION_STRINGS || *text) {
            pllm_settings *t;
            assert_int_equal(pllm_settings_open(NULL, &t), PLLM_OK);
            if (pllm_settings_set(t, option->name, text) < 0)
                fail_msg("%s", pllm_last_error()->text);
            assert_string_equal(pllm_settings_text(t, option, again, sizeof again), text);
            pllm_settings_close(t);
        }
        assert_ptr_equal(pllm_option_find(option->name), option);
        assert_int_equal(strspn(option->name, "abcdefghijklmnopqrstuvwxyz_"), strlen(option->name));
        if (option->alias) assert_ptr_equal(pllm_option_find(option->alias), option);
        for (uint32_t j = 0; j < i; j++)
            assert_int_not_equal(pllm_options[j].offset, option->offset);
    }
    pllm_settings_close(s);
}

static void memory_may_run_out(void **state)
{
    (void)state;
    char path[] = "/tmp/pagedllm-options-XXXXXX";
    int file = mkstemp(path);
    assert_int_equal(write(file, "stop = a\nstop = b\n", 18), 18);
    close(file);
    char text[256];
    snprintf(text, sizeof text, "run m --prompt x --config %s", path);
    line l;
    line_split(&l, text);
    uint64_t n;
    for (n = 0;; n++) {
        failing_context failing;
        failing_context_init(&failing, n);
        pllm_settings *s;
        int status = pllm_settings_load(&failing.context, l.argc, l.argv, NULL, &s);
        assert_int_equal(status, failing_context_hit(&failing) ? PLLM_ENOMEM : PLLM_OK);
        assert_true((s == NULL) == (status < 0));
        pllm_settings_close(s);
        failing_context_check(&failing);
        if (!failing_context_hit(&failing)) break;
    }
    assert_true(n >= 8); /* settings, default device, prompt, config, model, file, copy, stops */
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults),
        cmocka_unit_test(every_type_from_flags),
        cmocka_unit_test(flag_beats_environment_beats_config_beats_default),
        cmocka_unit_test(wrong_arguments),
        cmocka_unit_test(wrong_config),
        cmocka_unit_test(devices_add_up),
        cmocka_unit_test(help_shows_the_whole_table),
        cmocka_unit_test(texts_read_back),
        cmocka_unit_test(memory_may_run_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
