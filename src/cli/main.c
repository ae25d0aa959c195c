/* main.c - the program: settings, signals, a command, and its end.
 *
 * Exit status: 0 done; 1 failed, with one sentence on stderr; 2 the command line was wrong;
 * 128 + signal when interrupted. Whatever ends a command, the engine is closed in order.
 *
 * A signal only leaves a note, and a byte in a pipe that every wait for input watches: whichever
 * thread it comes to, and whenever, it is not missed. */
#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/context.h"
#include "base/log.h"
#include "cli/cli.h"
#include "device/open.h"

static volatile sig_atomic_t caught_signal;
static int signal_pipe[2] = {-1, -1};

static void on_signal(int number)
{
    if (caught_signal) _Exit(128 + number); /* the second one is meant */
    int kept = errno;
    caught_signal = number;
    if (write(signal_pipe[1], "", 1) < 0) errno = kept;
    errno = kept;
}

int cli_interrupted(void)
{
    return caught_signal;
}

int cli_signal_fd(void)
{
    return signal_pipe[0];
}

int cli_canceled(void)
{
    return pllm_fail(PLLM_ECANCELED, 0, "interrupted by %s",
                     caught_signal == SIGINT   ? "SIGINT"
                     : caught_signal == SIGHUP ? "SIGHUP"
                                               : "SIGTERM");
}

int cli_interrupt_taken(void)
{
    char byte;
    if (caught_signal != SIGINT) return 0;
    if (read(signal_pipe[0], &byte, 1) < 0) return 0;
    caught_signal = 0;
    return 1;
}

int cli_pause(uint32_t ms, int watch_input)
{
    struct pollfd waits[2] = {{.fd = signal_pipe[0], .events = POLLIN},
                              {.fd = watch_input ? STDIN_FILENO : -1, .events = POLLIN}};
    int ready = poll(waits, 2, (int)ms);
    if (cli_interrupted()) return 1;
    return ready > 0 && waits[1].revents ? 2 : 0;
}

int cli_read(int fd, void *buffer, size_t bytes, size_t *read_out)
{
    *read_out = 0;
    struct pollfd waits[2] = {{.fd = fd, .events = POLLIN},
                              {.fd = signal_pipe[0], .events = POLLIN}};
    for (;;) {
        int ready = poll(waits, 2, -1);
        if (cli_interrupted()) return cli_canceled();
        if (ready < 0 && errno == EINTR) continue;
        ssize_t got = read(fd, buffer, bytes);
        if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
        if (got < 0) return PLLM_EIO;
        *read_out = (size_t)got;
        return PLLM_OK;
    }
}

static int (*find_command(const char *name))(cli_program *)
{
    static const struct {
        const char *name;
        int (*run)(cli_program *cli);
    } commands[] = {
        {"run", command_run},
        {"chat", command_chat},
        {"bench", command_bench},
        {"logits", command_logits},
        {"perplexity", command_perplexity},
        {"tokenize", command_tokenize},
        {"detokenize", command_detokenize},
        {"trace", command_trace},
        {"doctor", command_doctor},
        {"top", command_top},
        {"limit", command_limit},
    };
    if (strncmp(name, "store ", 6) == 0) return command_store;
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        if (strcmp(commands[i].name, name) == 0) return commands[i].run;
    return NULL;
}

static int complain(const pllm_settings *settings, int exit_status)
{
    fflush(stdout);
    pllm_log_sink sink;
    pllm_log_sink_init(&sink, STDERR_FILENO, settings ? settings->log_format : PLLM_LOG_TEXT);
    pllm_log_sink_write(&sink, PLLM_LOG_ERROR, pllm_last_error()->text);
    return exit_status;
}

/* A bench measures a file, a shape or a suite of shapes, and each has options of its own. */
static int check_bench(const pllm_settings *settings)
{
    int file = settings->positional_count > 0, shape = settings->shape != NULL;
    if (file + shape + settings->suite != 1)
        return pllm_fail(PLLM_EINVAL, 0,
                         "give bench one of MODEL, tensor, pool, --shape NAME with "
                         "--random-weights, and --suite");
    if (!cli_is_tensor(settings) && pllm_settings_source(settings, "bytes") == PLLM_FROM_FLAG)
        return pllm_fail(PLLM_EINVAL, 0, "--bytes is for bench tensor");
    if (!cli_is_pool(settings) && pllm_settings_source(settings, "log") == PLLM_FROM_FLAG)
        return pllm_fail(PLLM_EINVAL, 0, "--log is for bench pool");
    if (shape && !settings->random_weights)
        return pllm_fail(PLLM_EINVAL, 0,
                         "--shape %s has no weights of its own: add --random-weights, or give a "
                         "model file in its place",
                         settings->shape);
    if (file &&
        (settings->random_weights || pllm_settings_source(settings, "weights") == PLLM_FROM_FLAG))
        return pllm_fail(
            PLLM_EINVAL, 0, "--%s is for --shape and --suite: %s has weights of its own",
            settings->random_weights ? "random-weights" : "weights", settings->positionals[0]);
    if (settings->suite && !settings->output)
        return pllm_fail(PLLM_EINVAL, 0, "--suite needs --output, the folder for what it writes");
    static const char *const suites[][2] = {{"output", "output"},
                                            {"models", "models"},
                                            {"seconds", "seconds"},
                                            {"point_seconds", "point-seconds"},
                                            {"keep", "keep"}};
    for (size_t i = 0; !settings->suite && i < sizeof suites / sizeof suites[0]; i++)
        if (pllm_settings_source(settings, suites[i][0]) == PLLM_FROM_FLAG &&
            (i > 0 || !cli_is_pool(settings)))
            return pllm_fail(PLLM_EINVAL, 0, "--%s is for bench --suite", suites[i][1]);
    return PLLM_OK;
}

static int check_store(const pllm_settings *settings)
{
    if (strcmp(settings->command, "store create") == 0 &&
        (!settings->shape || !settings->shape[0])) /* a shell's unset variable is no scalar */
        return pllm_fail(PLLM_EINVAL, 0,
                         "store create needs --shape, such as 2,3, or [] for a single number");
    int status = cli_store_check(settings);
    if (status < 0) return status;
    if (settings->vram_limit == 0)
        return pllm_fail(PLLM_EINVAL, 0,
                         "--vram-limit 0 leaves no room for tensors: give a size such as 24GB");
    int get = strcmp(settings->command, "store get") == 0;
    if (get && !settings->prefix && settings->positional_count < 2)
        return pllm_fail(PLLM_EINVAL, 0, "store get needs NAME and FILE, or --prefix and FILE");
    if (get && settings->prefix && settings->positional_count > 1)
        return pllm_fail(PLLM_EINVAL, 0, "store get takes names or --prefix, not both");
    return PLLM_OK;
}

/* What a command cannot do without. */
static int check_given(const pllm_settings *settings)
{
    const char *command = settings->command;
    if (strcmp(command, "run") == 0 && !settings->prompt == !settings->prompt_file)
        return pllm_fail(PLLM_EINVAL, 0,
                         "give the prompt with either --prompt TEXT or --prompt-file FILE");
    if (strcmp(command, "logits") == 0 && (!settings->ids || !settings->output))
        return pllm_fail(PLLM_EINVAL, 0, "logits needs --ids FILE and --output FILE.npy");
    if (strcmp(command, "bench") == 0) return check_bench(settings);
    uint64_t bytes;
    if (strcmp(command, "limit") == 0) return pllm_size_parse(settings->positionals[1], &bytes);
    if (strcmp(command, "detokenize") == 0 && !settings->ids)
        return pllm_fail(PLLM_EINVAL, 0, "detokenize needs --ids FILE, a JSON array or .npy");
    return PLLM_OK;
}

static int check_ledger(const pllm_settings *settings)
{
    static const char *const parts[][2] = {{"ledger_limit", "limit"},
                                           {"ledger_minimum", "minimum"},
                                           {"ledger_priority", "priority"},
                                           {"ledger_name", "name"}};
    if (settings->ledger || strcmp(settings->command, "limit") == 0) return PLLM_OK;
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        if (pllm_settings_source(settings, parts[i][0]) == PLLM_FROM_FLAG)
            return pllm_fail(PLLM_EINVAL, 0, "--ledger-%s needs --ledger NAME", parts[i][1]);
    return PLLM_OK;
}

/* What is given and could have no effect is refused, not ignored. */
static int check(const pllm_settings *settings)
{
    for (uint32_t i = 0; i < settings->device.count; i++)
        if (pllm_device_name_check(settings->device.items[i]) < 0) return PLLM_EINVAL;
    if (check_ledger(settings) < 0) return PLLM_EINVAL;
    if (strncmp(settings->command, "store ", 6) == 0) return check_store(settings);
    bool tensor = cli_is_tensor(settings);
    if (!tensor && pllm_settings_given(settings, "page_size"))
        return pllm_fail(PLLM_EUNSUPPORTED, 0,
                         "--page-size is the size of bench tensor's pages: leave it out (a model's "
                         "KV pages are blocks of 32 tokens, its weights move by layers)");
    static const char *const link[] = {"link_bandwidth", "link_latency_us"};
    for (int i = 0; i < 2 && pllm_device_name_is_cuda(settings->device.last); i++)
        if (pllm_settings_given(settings, link[i]))
            return pllm_fail(PLLM_EINVAL, 0,
                             "--link-%s simulates a link for --device host, but %s has its own: "
                             "leave it out",
                             i ? "latency-us" : "bandwidth", settings->device.last);
    if (settings->vram_limit == 0 || settings->kv_limit == 0)
        return pllm_fail(PLLM_EINVAL, 0,
                         "--%s 0 leaves nothing to work in: give a size such as 24GB, or unlimited",
                         settings->vram_limit == 0 ? "vram-limit" : "kv-limit");
    for (uint32_t i = 0; i < settings->stop.count; i++)
        if (settings->stop.items[i][0] == '\0')
            return pllm_fail(PLLM_EINVAL, 0, "--stop is empty: give the text to stop before");
    bool engine = (settings->positional_count > 0 || settings->shape) && !tensor &&
                  !cli_is_pool(settings) && strstr(settings->command, "tokenize") == NULL;
    if (!engine && pllm_settings_source(settings, "stats_json") == PLLM_FROM_FLAG)
        return pllm_fail(PLLM_EINVAL, 0, "--stats-json: %s runs no model here, so there are none",
                         settings->command);
    return check_given(settings);
}

static int run(const pllm_settings *settings, const pllm_context *context)
{
    cli_program cli = {.settings = settings, .context = context};
    if (settings->version) {
        printf("pagedllm %s\n", pllm_version());
    } else if (settings->help || !settings->command) {
        int status = pllm_options_help(settings->help ? stdout : stderr, settings->command);
        return status < 0 ? complain(settings, 1) : settings->help ? 0 : 2;
    } else {
        int (*command)(cli_program *) = find_command(settings->command);
        if (!command)
            pllm_fail(PLLM_EINVAL, 0, "'%s' is no command: see pagedllm --help", settings->command);
        if (!command || check(settings) < 0) return complain(settings, 2);
        if ((strncmp(settings->command, "store ", 6) != 0 &&
             strcmp(settings->command, "limit") != 0) ||
            strcmp(settings->command, "store put") == 0)
            cli_watch_model(settings);
        int status = command(&cli);
        cli_output_discard(&cli.stats);
        if (status < 0) {
            int failed = complain(settings, 1);
            return caught_signal ? 128 + caught_signal : failed;
        }
    }
    /* A full disk or a closed pipe behind stdout is a failure too. */
    if (fflush(stdout) != 0 || ferror(stdout)) {
        pllm_fail(PLLM_EIO, 0, "standard output could not be written to the end");
        return complain(settings, 1);
    }
    return 0;
}

/* A descriptor that is closed must not become the model's or the spill file's: it is filled with
 * one that refuses what it is for. */
static void fill_standard(void)
{
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) < 0) (void)!open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY);
}

static int catch_signals(void)
{
    if (pipe2(signal_pipe, O_CLOEXEC | O_NONBLOCK) != 0)
        return pllm_fail(PLLM_EIO, errno, "no pipe for signals: %s", strerror(errno));
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    struct sigaction before; /* the terminal has gone, unless nohup said that this is no matter */
    if (sigaction(SIGHUP, NULL, &before) == 0 && before.sa_handler != SIG_IGN)
        sigaction(SIGHUP, &action, NULL);
    signal(SIGPIPE, SIG_IGN); /* both come back as errors of the write */
    signal(SIGXFSZ, SIG_IGN);
    return PLLM_OK;
}

int main(int argc, char **argv)
{
    extern char **environ;
    fill_standard();
    setlocale(LC_CTYPE, "C.UTF-8");
    pllm_settings *settings = NULL;
    if (pllm_settings_load(NULL, argc, (const char *const *)argv, (const char *const *)environ,
                           &settings) < 0)
        return complain(settings, 2);
    pllm_log_sink sink;
    pllm_log_sink_init(&sink, STDERR_FILENO, settings->log_format);
    pllm_context_options options = {.struct_bytes = sizeof options,
                                    .log_level = settings->log_level,
                                    .user = &sink,
                                    .log = pllm_log_sink_write};
    pllm_context *context = NULL;
    int status = catch_signals();
    if (status == PLLM_OK) status = pllm_context_open(&options, &context);
    int exit_status = status < 0 ? complain(settings, 1) : run(settings, context);
    pllm_context_close(context);
    pllm_settings_close(settings);
    return exit_status;
}
