/* storm.c - a storm over the tensor store: real processes, killed at random, and afterwards nothing
 * may be missing, left over or wrong.
 *
 *     driver   starts `pagedllm store serve`, forks the clients, kills and replaces them, kills the
 *              daemon and Redis, tells all to be quiet now and then, and looks (storm_look.c)
 *     clients  a seeded mix of operations, each timed (storm_client.c); what they write says whose
 *              it is (storm_content.c)
 *
 * storm_store [--program PATH] [--seed N] [--clients N] [--operations N] [--rounds N]
 *             [--redis private|own] [--json PATH] [--keep]
 *
 * The seed decides what is done and in which order each process does it; how processes interleave
 * is the machine's. A failure prints the seed, the sentence, and the last calls of everybody. */
#include <dirent.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <pagedllm/ledger.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/clock.h"
#include "storm.h"

#define MIB ((uint64_t)1 << 20)

typedef struct storm_options {
    const char *program, *redis, *json;
    uint64_t seed, operations;
    uint32_t clients, rounds, keep;
} storm_options;

typedef struct storm {
    storm_options options;
    storm_shared *shared;
    storm_daemon daemon;
    pllm_store *store; /* the driver's own */
    pid_t redis;       /* 0: the daemon's own one */
    pid_t ending;      /* a daemon that was told to; then how */
    int ending_how;
    uint64_t random, client_seed;
    char folder[64], ledger[32];
    uint32_t client_kills, daemon_kills, daemon_ends, redis_kills, flushes, cuts, stalls, looks;
} storm;

static storm the_storm; /* for the one signal handler and the exit path */

const char *storm_kind_name(uint32_t kind)
{
    static const char *const names[STORM_KINDS] = {
        "connect", "create", "open",    "write",  "signal", "verify", "close",
        "delete",  "rename", "seal",    "pin",    "stat",   "list",   "watch",
        "event",   "wait",   "command", "redeem", "leave"};
    return kind < STORM_KINDS ? names[kind] : "unknown";
}

void storm_fail(storm_shared *shared, const char *format, ...)
{
    int none = 0;
    if (atomic_compare_exchange_strong(&shared->failed, &none, getpid())) {
        va_list list;
        va_start(list, format);
        vsnprintf(shared->failure, sizeof shared->failure, format, list);
        va_end(list);
        atomic_store(&shared->failed, -getpid());
    }
    _exit(3);
}

/* ---- what a failure shows ---- */

static void stack_show(int number)
{
    void *frames[48];
    (void)number;
    dprintf(2, "-- stack of process %d\n", getpid());
    backtrace_symbols_fd(frames, backtrace(frames, 48), 2);
}

static void file_show(const char *path, off_t last_bytes)
{
    char text[4096];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    off_t bytes = lseek(fd, 0, SEEK_END);
    if (bytes > last_bytes)
        lseek(fd, bytes - last_bytes, SEEK_SET);
    else
        lseek(fd, 0, SEEK_SET);
    fprintf(stderr, "-- %s\n", path);
    for (ssize_t got; (got = read(fd, text, sizeof text)) > 0;)
        fwrite(text, 1, (size_t)got, stderr);
    close(fd);
}

static void ring_show(const storm_shared *shared, uint32_t index)
{
    const storm_place *place = &shared->places[index];
    uint32_t from = place->ring_at > STORM_RING - 1 ? place->ring_at - (STORM_RING - 1) : 0;
    fprintf(stderr, "-- client %u, process %d\n", index, place->pid);
    for (uint32_t i = from; i <= place->ring_at; i++) {
        const storm_op *op = &place->ring[i % STORM_RING];
        if (!op->at_ns) continue;
        fprintf(stderr, "%11.3f ms %-8s %-6s %llx %s, %.3f ms\n", (double)op->at_ns / 1e6,
                storm_kind_name(op->kind), op->name, (unsigned long long)op->detail,
                op->status == 1 ? "going on" : pllm_status_name(op->status),
                (double)op->took_ns / 1e6);
    }
}

static void folder_remove(const char *path)
{
    char below[400];
    struct dirent *entry;
    DIR *files = opendir(path);
    while (files && (entry = readdir(files))) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        snprintf(below, sizeof below, "%s/%s", path, entry->d_name);
        if (unlink(below) < 0) folder_remove(below);
    }
    if (files) closedir(files);
    rmdir(path);
}

static void end_all(storm *s)
{
    for (uint32_t i = 0; i < s->shared->client_count; i++)
        if (s->shared->places[i].pid > 0) kill(s->shared->places[i].pid, SIGKILL);
    if (s->daemon.pid > 0) kill(s->daemon.pid, SIGKILL);
    if (s->redis > 0) kill(s->redis, SIGKILL);
    while (wait(NULL) > 0) continue;
    (void)pllm_ledger_remove(NULL, s->ledger);
    if (!s->options.keep) folder_remove(s->folder);
}

/* The driver itself found it, or was told. */
static void give_up(storm *s)
{
    char log[96];
    storm_shared *shared = s->shared;
    for (int i = 0; atomic_load(&shared->failed) > 0 && i < 100; i++) usleep(10000);
    for (uint32_t i = 0; i < shared->client_count; i++) {
        uint64_t began = atomic_load(&shared->places[i].began_ns);
        if (began && pllm_clock_ns() - began > UINT64_C(1000000000))
            kill(shared->places[i].pid, SIGUSR1); /* it hangs: where? */
    }
    usleep(200000);
    fprintf(stderr, "\nstorm: %s\n(process %d; --seed %llu --clients %u --operations %llu)\n",
            shared->failure, -atomic_load(&shared->failed), (unsigned long long)s->options.seed,
            s->options.clients, (unsigned long long)s->options.operations);
    for (uint32_t i = 0; i < shared->client_count; i++) ring_show(shared, i);
    snprintf(log, sizeof log, "%s/daemon.log", s->folder);
    file_show(log, 6000);
    end_all(s);
    exit(1);
}

static void fail(storm *s, const char *what)
{
    int none = 0;
    if (atomic_compare_exchange_strong(&s->shared->failed, &none, -getpid()))
        snprintf(s->shared->failure, sizeof s->shared->failure, "%s", what);
    give_up(s);
}

/* ---- processes ---- */

static pid_t start(storm *s, const char *const arguments[], const char *log, int *out)
{
    char path[128];
    int ends[2] = {-1, -1};
    snprintf(path, sizeof path, "%s/%s", s->folder, log);
    if (out && pipe2(ends, O_CLOEXEC) < 0) fail(s, "no pipe");
    pid_t pid = fork();
    if (pid == 0) {
        int fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(fd, 2);
        dup2(out ? ends[1] : fd, 1);
        execvp(arguments[0], (char *const *)(uintptr_t)arguments);
        _exit(127);
    }
    if (out) {
        close(ends[1]);
        *out = ends[0];
    }
    return pid;
}

/* Says 1 once it says that it serves. */
static int line_awaited(int fd)
{
    char text[512];
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    int there = poll(&wait, 1, 20000) == 1 ? (int)read(fd, text, sizeof text) : 0;
    close(fd);
    return there > 7 && memcmp(text, "serving", 7) == 0;
}

/* 0: there is one still. */
static int daemon_try(storm *s)
{
    char ready[24], quota[24], address[200];
    snprintf(ready, sizeof ready, "%llu", (unsigned long long)s->daemon.ready_bytes);
    snprintf(quota, sizeof quota, "%llu", (unsigned long long)s->daemon.quota_bytes);
    snprintf(address, sizeof address, "unix://%s", s->shared->redis);
    const char *const arguments[] = {s->options.program,
                                     "store",
                                     "serve",
                                     "--socket",
                                     s->shared->socket,
                                     "--ready",
                                     ready,
                                     "--quota",
                                     quota,
                                     "--ledger",
                                     s->ledger,
                                     "--ledger-limit",
                                     "1GiB",
                                     "--vram-limit",
                                     "44MiB",
                                     "--host-memory",
                                     "256MiB",
                                     s->redis ? "--redis" : NULL,
                                     address,
                                     NULL};
    int out;
    s->daemon.pid = start(s, arguments, "daemon.log", &out);
    if (line_awaited(out)) return 1;
    waitpid(s->daemon.pid, NULL, 0);
    s->daemon.pid = 0;
    return 0;
}

static void daemon_start(storm *s)
{
    if (!daemon_try(s)) fail(s, "the daemon does not start");
}

static void redis_start(storm *s)
{
    const char *const arguments[] = {
        "redis-server", "--port", "0", "--unixsocket", s->shared->redis, "--save", "",
        "--appendonly", "no",     NULL};
    unlink(s->shared->redis);
    s->redis = start(s, arguments, "redis.log", NULL);
    for (int i = 0; storm_redis_pid(s->shared) != s->redis; i++) {
        if (i == 500) fail(s, "redis-server does not start");
        usleep(20000);
    }
}

static void client_start(storm *s, uint32_t index)
{
    storm_place *place = &s->shared->places[index];
    uint64_t seed = storm_random(&s->client_seed);
    atomic_store(&place->began_ns, 0);
    place->hold_count = 0;
    atomic_store(&place->holding, 0);
    atomic_store(&place->other_quiet, 0);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        signal(SIGUSR1, stack_show);
        storm_client(s->shared, index, seed);
    }
    if (pid < 0) fail(s, "no process");
    place->pid = pid;
}

static uint32_t place_of(const storm *s, pid_t pid)
{
    uint32_t i = 0;
    while (i < s->shared->client_count && s->shared->places[i].pid != pid) i++;
    return i;
}

/* Those that ended: clients are replaced, if they were killed. */
static void reap(storm *s, int replace)
{
    int how;
    for (pid_t pid; (pid = waitpid(-1, &how, WNOHANG)) > 0;) {
        if (atomic_load(&s->shared->failed)) give_up(s);
        uint32_t index = place_of(s, pid);
        if (index == s->shared->client_count) {
            if (pid == s->daemon.pid) fail(s, "the daemon ended by itself");
            if (pid == s->ending) {
                s->ending = 0;
                s->ending_how = how;
            }
            continue; /* a Redis whose daemon was killed, or ours */
        }
        if (!WIFSIGNALED(how) || WTERMSIG(how) != SIGKILL) {
            if (!replace && WIFEXITED(how) && WEXITSTATUS(how) == 0) {
                s->shared->places[index].pid = 0;
                continue;
            }
            char text[96];
            snprintf(text, sizeof text, "client %u ended with status %#x", index, (unsigned)how);
            fail(s, text);
        }
        client_start(s, index);
    }
}

/* ---- what happens to them ---- */

static void watchdog(storm *s)
{
    uint64_t now = pllm_clock_ns();
    for (uint32_t i = 0; i < s->shared->client_count; i++) {
        const storm_place *place = &s->shared->places[i];
        uint64_t began = atomic_load(&place->began_ns);
        if (!began || now < began || now - began < STORM_HUNG_MS * UINT64_C(1000000)) continue;
        char text[96];
        const storm_op *op = &place->ring[place->ring_at % STORM_RING];
        snprintf(text, sizeof text, "client %u hangs in %s of %s", i, storm_kind_name(op->kind),
                 op->name);
        fail(s, text);
    }
}

static void tend(storm *s, int replace)
{
    if (atomic_load(&s->shared->failed)) give_up(s);
    reap(s, replace);
    watchdog(s);
    usleep(1000);
}

static void wait_ms(storm *s, uint32_t ms)
{
    uint64_t end = pllm_clock_ns() + ms * UINT64_C(1000000);
    while (pllm_clock_ns() < end) tend(s, 1);
}

static void trouble_end(storm *s)
{
    atomic_store(&s->shared->trouble_end_ns, pllm_clock_ns());
    atomic_store(&s->shared->trouble, 0);
}

static void client_kill(storm *s)
{
    uint32_t index = storm_below(&s->random, s->shared->client_count);
    pid_t pid = s->shared->places[index].pid;
    kill(pid, SIGKILL);
    s->client_kills++;
}

static void daemon_kill(storm *s)
{
    atomic_store(&s->shared->trouble, 1);
    kill(s->daemon.pid, SIGKILL);
    waitpid(s->daemon.pid, NULL, 0);
    s->daemon_kills++;
    wait_ms(s, storm_below(&s->random, 2) ? storm_below(&s->random, 400) : 0);
    daemon_start(s);
    trouble_end(s);
}

/* In order; the next one is started while it ends. */
static void daemon_replace(storm *s)
{
    atomic_store(&s->shared->trouble, 1);
    s->ending = s->daemon.pid;
    s->daemon.pid = 0;
    kill(s->ending, SIGTERM);
    for (int i = 0; !daemon_try(s); i++) {
        if (i == 500) fail(s, "no daemon can follow one that was told to end");
        wait_ms(s, 10);
    }
    trouble_end(s);
    for (int i = 0; s->ending; i++) {
        if (i == 1000) fail(s, "the daemon that was told to end goes on");
        wait_ms(s, 10);
    }
    if (s->ending_how != 0) fail(s, "the daemon that was told to end failed");
    s->daemon_ends++;
}

static void stall(storm *s, pid_t pid, uint32_t ms)
{
    kill(pid, SIGSTOP);
    wait_ms(s, ms);
    kill(pid, SIGCONT);
    s->stalls++;
}

static void redis_kill(storm *s)
{
    pid_t pid = storm_redis_pid(s->shared);
    if (pid) kill(pid, SIGKILL);
    s->redis_kills++;
    if (!s->redis) return; /* the daemon sees to it */
    waitpid(s->redis, NULL, 0);
    wait_ms(s, storm_below(&s->random, 700));
    redis_start(s);
}

static void incident(storm *s, uint32_t what)
{
    pid_t redis;
    switch (what) {
    case 0:
        daemon_kill(s);
        break;
    case 1:
        redis_kill(s);
        break;
    case 2:
        if (storm_redis_do(s->shared, "FLUSHALL")) s->flushes++;
        break;
    case 3: /* connections break, data stay */
        if (storm_redis_do(s->shared, "CLIENT KILL TYPE normal")) s->cuts++;
        break;
    case 4: /* Redis does not answer for longer than the daemon waits for it */
        redis = storm_redis_pid(s->shared);
        if (redis) stall(s, redis, 2600);
        break;
    case 5: /* nor the daemon its clients */
        atomic_store(&s->shared->trouble, 1);
        stall(s, s->daemon.pid, STORM_TIMEOUT_MS + 500);
        trouble_end(s);
        break;
    case 8:
        daemon_replace(s);
        break;
    case 6:
        daemon_kill(s);
        redis_kill(s);
        daemon_kill(s);
        break;
    default:
        break;
    }
}

/* ---- rounds ---- */

static void quiet(storm *s)
{
    uint32_t phase = atomic_fetch_add(&s->shared->phase, 1) + 1, waiting;
    do {
        tend(s, 1);
        waiting = 0;
        for (uint32_t i = 0; i < s->shared->client_count; i++)
            waiting += atomic_load(&s->shared->places[i].quiet) != phase ||
                       atomic_load(&s->shared->places[i].other_quiet) != phase;
    } while (waiting);
}

/* The looks end the process where something is wrong; this one has to tidy up first. */
static void look(storm *s, int end)
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        pllm_store_options options = {.struct_bytes = sizeof options,
                                      .timeout_ms = STORM_TIMEOUT_MS,
                                      .socket = s->shared->socket};
        if (pllm_store_open(NULL, &options, &s->store) < 0)
            storm_fail(s->shared, "the driver gets no connection: %s", pllm_last_error()->text);
        if (end)
            storm_look_end(s->shared, s->store, &s->daemon, s->ledger);
        else
            storm_look(s->shared, s->store, &s->daemon, s->ledger);
        pllm_store_close(s->store);
        exit(0);
    }
    int how;
    while (waitpid(pid, &how, WNOHANG) == 0) usleep(2000);
    if (atomic_load(&s->shared->failed)) give_up(s);
    if (how != 0) fail(s, "the look failed without a word");
    s->looks++;
}

static void storm_round(storm *s, uint32_t round, uint64_t span)
{
    static const uint32_t order[] = {7, 0, 1, 2, 8, 3, 4, 6, 5, 0};
    uint64_t began = atomic_load(&s->shared->operations), until = began + span;
    uint64_t hit = began + span / 4 + storm_below(&s->random, (uint32_t)(span / 2));
    uint64_t next_kill = began + storm_below(&s->random, 300);
    int done = 0;
    for (uint64_t at; (at = atomic_load(&s->shared->operations)) < until;) {
        if (at >= next_kill) {
            client_kill(s);
            next_kill = at + 1 + storm_below(&s->random, 600);
        }
        if (at >= hit && !done++) incident(s, order[round % (sizeof order / sizeof *order)]);
        tend(s, 1);
    }
    quiet(s);
    look(s, 0);
    atomic_fetch_add(&s->shared->phase, 1);
}

/* ---- begin and end ---- */

static int serving_processes(const char *folder)
{
    struct dirent *entry;
    int count = 0;
    DIR *processes = opendir("/proc");
    while (processes && (entry = readdir(processes))) {
        char path[300], text[512] = {0};
        if (entry->d_name[0] < '1' || entry->d_name[0] > '9') continue;
        snprintf(path, sizeof path, "/proc/%s/cmdline", entry->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t bytes = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
        if (fd >= 0) close(fd);
        count += bytes > 0 && memmem(text, (size_t)bytes, folder, strlen(folder)) != NULL;
    }
    if (processes) closedir(processes);
    return count;
}

static void begin(storm *s)
{
    strcpy(s->folder, "/tmp/pllm-storm-XXXXXX");
    if (!mkdtemp(s->folder)) fail(s, "no folder");
    storm_shared *shared = s->shared;
    snprintf(s->ledger, sizeof s->ledger, "storm-%d", getpid());
    snprintf(shared->socket, sizeof shared->socket, "%s/s.sock", s->folder);
    s->daemon.ready_bytes = 16 * MIB;
    s->daemon.quota_bytes = 40 * MIB;
    if (!strcmp(s->options.redis, "own")) {
        snprintf(shared->redis, sizeof shared->redis, "%s/own.sock", s->folder);
        redis_start(s);
    } else {
        snprintf(shared->redis, sizeof shared->redis, "%s/s.sock.redis/redis.sock", s->folder);
    }
    daemon_start(s);
    /* With a client and both connections to Redis, as when it is looked at. */
    uint64_t memory, fds, same = 0;
    pllm_store *store;
    pllm_store_options options = {.struct_bytes = sizeof options, .socket = shared->socket};
    if (pllm_store_open(NULL, &options, &store) < 0) fail(s, pllm_last_error()->text);
    while (same < 20) {
        usleep(20000);
        storm_descriptors(s->daemon.pid, &memory, &fds);
        same = fds == s->daemon.base_fds ? same + 1 : 0;
        s->daemon.base_fds = fds;
    }
    pllm_store_close(store);
    for (uint32_t i = 0; i < shared->client_count; i++) client_start(s, i);
}

static void end(storm *s)
{
    int how = 0;
    atomic_store(&s->shared->phase, UINT32_MAX);
    for (uint32_t left = 1; left;) {
        tend(s, 0);
        left = 0;
        for (uint32_t i = 0; i < s->shared->client_count; i++) left += s->shared->places[i].pid > 0;
    }
    look(s, 1);
    kill(s->daemon.pid, SIGTERM);
    for (int i = 0; waitpid(s->daemon.pid, &how, WNOHANG) == 0; i++) {
        if (i == 1000) fail(s, "the daemon does not end");
        usleep(10000);
    }
    s->daemon.pid = 0;
    if (how != 0) fail(s, "the daemon ended with a failure");
    if (s->redis) {
        kill(s->redis, SIGTERM);
        waitpid(s->redis, NULL, 0);
        s->redis = 0;
    }
    if (serving_processes(s->folder)) fail(s, "a process of the daemon's is left");
    if (access(s->shared->socket, F_OK) == 0) fail(s, "the socket is left");
    if (pllm_ledger_remove(NULL, s->ledger) < 0) fail(s, pllm_last_error()->text);
    if (!s->options.keep) folder_remove(s->folder);
}

static void report(const storm *s, FILE *to)
{
    const storm_shared *shared = s->shared;
    double seconds = (double)(pllm_clock_ns() - shared->start_ns) / 1e9;
    uint64_t longest = 0, calm = 0, calls = 0;
    for (uint32_t i = 0; i < STORM_KINDS; i++) {
        const storm_figures *f = &shared->figures[i];
        uint64_t a = atomic_load(&f->longest_ns), b = atomic_load(&f->longest_calm_ns);
        calls += atomic_load(&f->calls);
        if (a > longest) longest = a;
        if (b > calm && i != STORM_COMMAND) calm = b;
    }
    fprintf(
        to,
        "{\n  \"command\": \"storm_store --seed %llu --clients %u --operations %llu --rounds %u "
        "--redis %s\",\n",
        (unsigned long long)s->options.seed, s->options.clients,
        (unsigned long long)s->options.operations, s->options.rounds, s->options.redis);
    fprintf(to, "  \"seed\": %llu, \"clients\": %u, \"operations\": %llu, \"calls\": %llu,\n",
            (unsigned long long)s->options.seed, s->options.clients,
            (unsigned long long)atomic_load(&shared->operations), (unsigned long long)calls);
    fprintf(to,
            "  \"seconds\": %.1f, \"client_kills\": %u, \"daemon_kills\": %u, \"daemon_ends\": %u, "
            "\"redis_kills\": %u, "
            "\"redis_flushes\": %u, \"redis_cuts\": %u, \"stalls\": %u, \"looks\": %u,\n",
            seconds, s->client_kills, s->daemon_kills, s->daemon_ends, s->redis_kills, s->flushes,
            s->cuts, s->stalls, s->looks);
    fprintf(to,
            "  \"longest_call_ms\": %.1f, \"longest_call_while_nothing_was_away_ms\": %.1f, "
            "\"store_timeout_ms\": %d,\n",
            (double)longest / 1e6, (double)calm / 1e6, STORM_TIMEOUT_MS);
    fprintf(to,
            "  \"contents_checked\": %llu, \"being_written\": %llu, \"not_written_yet\": %llu, "
            "\"waits_fulfilled\": %llu, \"left_for_doubt\": %llu, \"signals_from_streams\": %llu, "
            "\"opened_by_second_threads\": %llu, \"spilled_seen\": %llu,\n  \"calls_by_kind\": {",
            (unsigned long long)atomic_load(&shared->checked),
            (unsigned long long)atomic_load(&shared->torn),
            (unsigned long long)atomic_load(&shared->unwritten),
            (unsigned long long)atomic_load(&shared->wait_ok),
            (unsigned long long)atomic_load(&shared->doubts),
            (unsigned long long)atomic_load(&shared->from_streams),
            (unsigned long long)atomic_load(&shared->by_other_threads),
            (unsigned long long)atomic_load(&shared->spilled_seen));
    for (uint32_t i = 0; i < STORM_KINDS; i++)
        fprintf(to, "%s\"%s\": [%llu, %llu, %.1f]", i ? ", " : "", storm_kind_name(i),
                (unsigned long long)atomic_load(&shared->figures[i].calls),
                (unsigned long long)atomic_load(&shared->figures[i].refused),
                (double)atomic_load(&shared->figures[i].longest_ns) / 1e6);
    fprintf(to,
            "},\n  \"calls_by_kind_is\": \"calls, refused, longest ms beyond its own wait\",\n"
            "  \"longest_is\": \"two threads take turns at a store, and the daemon was stopped for "
            "longer than its timeout\",\n"
            "  \"checked\": \"references of every tensor, contents, Redis, charge, descriptors, "
            "mappings, quota, processes left\",\n  \"result\": \"held\"\n}\n");
}

static int options_read(int count, char **words, storm_options *o)
{
    *o = (storm_options){.program = PLLM_BINARY_DIR "/pagedllm",
                         .redis = "private",
                         .seed = 1,
                         .operations = 3000,
                         .clients = 4,
                         .rounds = 4};
    for (int i = 1; i < count; i++) {
        const char *value = i + 1 < count ? words[i + 1] : "";
        if (!strcmp(words[i], "--keep")) {
            o->keep = 1;
            continue;
        }
        if (!strcmp(words[i], "--program"))
            o->program = value;
        else if (!strcmp(words[i], "--redis"))
            o->redis = value;
        else if (!strcmp(words[i], "--json"))
            o->json = value;
        else if (!strcmp(words[i], "--seed"))
            o->seed = strtoull(value, NULL, 10);
        else if (!strcmp(words[i], "--operations"))
            o->operations = strtoull(value, NULL, 10);
        else if (!strcmp(words[i], "--clients"))
            o->clients = (uint32_t)atoi(value);
        else if (!strcmp(words[i], "--rounds"))
            o->rounds = (uint32_t)atoi(value);
        else
            return 0;
        i++;
    }
    return o->clients >= 1 && o->clients <= STORM_CLIENTS_MAX && o->rounds >= 1 &&
           o->operations / o->rounds >= 8;
}

int main(int count, char **words)
{
    storm *s = &the_storm;
    if (!options_read(count, words, &s->options)) {
        fprintf(stderr, "storm_store [--program PATH] [--seed N] [--clients N] [--operations N] "
                        "[--rounds N] [--redis private|own] [--json PATH] [--keep]\n");
        return 2;
    }
    s->shared =
        mmap(NULL, sizeof *s->shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (s->shared == MAP_FAILED) return 2;
    setvbuf(stdout, NULL, _IOLBF, 0);
    s->random = s->options.seed;
    s->client_seed = s->options.seed * 7919 + 1;
    s->shared->seed = s->options.seed;
    s->shared->client_count = s->options.clients;
    s->shared->start_ns = pllm_clock_ns();
    begin(s);
    for (uint32_t round = 0; round < s->options.rounds; round++) {
        storm_round(s, round, s->options.operations / s->options.rounds);
        printf("round %u: %llu operations, %u clients killed, all right\n", round + 1,
               (unsigned long long)atomic_load(&s->shared->operations), s->client_kills);
    }
    end(s);
    report(s, stdout);
    FILE *json = s->options.json ? fopen(s->options.json, "we") : NULL;
    if (json) {
        report(s, json);
        fclose(json);
    }
    return 0;
}
