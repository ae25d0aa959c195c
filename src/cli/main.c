/* main.c - the program: settings, signals, a command, and its end.
 *
 * Exit status: 0 done; 1 failed, with one sentence on stderr; 2 the command line was wrong;
 * 128 + signal when interrupted. Whatever ends a command, the engine is closed in order. */
#include <locale.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include "base/context.h"
#include "cli/cli.h"

static volatile sig_atomic_t caught_signal;

static void on_signal(int number)
{
    if (caught_signal) _Exit(128 + number); /* the second one is meant */
    caught_signal = number;
}

int cli_interrupted(void)
{
    return caught_signal;
}

int cli_canceled(void)
{
    return pllm_fail(PLLM_ECANCELED, 0, "interrupted by %s", strsignal(caught_signal));
}

static int (*find_command(const char *name))(const pllm_settings *)
{
    static const struct {
        const char *name;
        int (*run)(const pllm_settings *settings);
    } commands[] = {
        {"run", command_run},
        {"chat", command_chat},
        {"bench", command_bench},
        {"logits", command_logits},
        {"perplexity", command_perplexity},
        {"tokenize", command_tokenize},
        {"detokenize", command_detokenize},
        {"doctor", command_doctor},
    };
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        if (strcmp(commands[i].name, name) == 0) return commands[i].run;
    return NULL;
}

static int complain(int exit_status)
{
    fflush(stdout);
    fprintf(stderr, "pagedllm: %s\n", pllm_last_error()->text);
    return exit_status;
}

static int run(const pllm_settings *settings)
{
    if (settings->version) return printf("pagedllm %s\n", pllm_version()) < 0;
    if (settings->help || !settings->command) {
        int status = pllm_options_help(settings->help ? stdout : stderr, settings->command);
        return status < 0 ? complain(1) : settings->help ? 0 : 2;
    }
    int (*command)(const pllm_settings *) = find_command(settings->command);
    if (!command) {
        pllm_fail(PLLM_EINVAL, 0, "'%s' is no command: see pagedllm --help", settings->command);
        return complain(2);
    }
    int status = command(settings);
    if (status < 0) {
        int failed = complain(1);
        return caught_signal ? 128 + caught_signal : failed;
    }
    /* A full disk or a closed pipe behind stdout is a failure too. */
    if (fflush(stdout) != 0 || ferror(stdout)) {
        pllm_fail(PLLM_EIO, 0, "standard output could not be written to the end");
        return complain(1);
    }
    return 0;
}

int main(int argc, char **argv)
{
    extern char **environ;
    setlocale(LC_CTYPE, "C.UTF-8");
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    pllm_settings *settings;
    if (pllm_settings_load(NULL, argc, (const char *const *)argv, (const char *const *)environ,
                           &settings) < 0)
        return complain(2);
    int status = run(settings);
    pllm_settings_close(settings);
    return status;
}
