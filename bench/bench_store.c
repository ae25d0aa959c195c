/* Question: what does a process pay to share a tensor by name?
 *
 *   bench_store [--smoke]
 *
 * A daemon of its own (a process, host device) and client processes, through the public API.
 * 1. Open for the first time in a process, of 64 KiB, 4 MiB and 64 MiB. Predicted: one packet there
 *    and one back with a descriptor (two wake-ups, some 20 us), reserve and mmap (5 us).
 * 2. Open while it is open already: a look at the board, no message. Predicted: well under 1 us.
 * 3. Create 64 MiB from pieces kept ready (exported and zeroed beforehand). Predicted: as open.
 * Then the same after the daemon has slept for 0.1 s: waking an idle virtual processor adds 100 us,
 *    which are the hypervisor's.
 * 4. Open and close, 8 processes at once on one tensor: once where the process has it open
 *    otherwise ("repeated": no message), once where every close is the last ("whole": two messages
 *    and two system calls each).
 * 5. Fences: two processes take turns, each waits for the other's signal. Half a turn is a signal
 *    to a waiter: a packet to the daemon, a wake-up there, a futex.
 * 6. Open, from another client, while a create makes the daemon spill 256 MiB. Predicted: as open,
 *    and now and then what one piece takes to be given back to the system (some 10 ms).
 *
 * Each is measured ROUNDS times with a pause between; the best round's median counts, for the
 * machine is shared; all rounds are in bench/results/store.json. The last line is the result. */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <pagedllm/tensor_store.h>
#include "store/server.h"

enum { ROUNDS = 5, PROCESSES = 8, SAMPLES_MAX = 4096, HELD_MORE = 200, LIMIT_MIB = 1024 };
#define MIB ((uint64_t)1 << 20)

static void must(int status)
{
    if (status >= 0) return;
    fprintf(stderr, "bench_store: %s: %s\n", pllm_status_name(status), pllm_last_error()->text);
    exit(1);
}

static double now_us(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return 1e6 * (double)time.tv_sec + 1e-3 * (double)time.tv_nsec;
}

static void pause_ms(long ms)
{
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double at_share(double *values, uint32_t count, double share) /* sorts them */
{
    qsort(values, count, sizeof *values, ascending);
    uint32_t index = (uint32_t)(share * count);
    return values[index < count ? index : count - 1];
}

/* What was measured: a median and a 99th percentile (or a rate) a round. */
typedef struct figure {
    const char *name, *unit;
    double goal; /* 0: none */
    int more;    /* 1: more is better */
    uint32_t count;
    double p50[ROUNDS], p99[ROUNDS];
} figure;

static double best(const figure *f)
{
    double value = f->p50[0];
    for (uint32_t i = 1; i < f->count; i++)
        if (f->more ? f->p50[i] > value : f->p50[i] < value) value = f->p50[i];
    return value;
}

static void figure_add(figure *f, double *samples, uint32_t count)
{
    f->p50[f->count] = at_share(samples, count, 0.5);
    f->p99[f->count++] = at_share(samples, count, 0.99);
}

/* ---- the daemon ---- */

typedef struct bench {
    int smoke;
    uint32_t rounds, opens, creates, pairs, turns;
    char folder[64], socket[96];
    pid_t daemon;
    uint32_t named; /* a store that closes is not waited for: no name is used twice */
    double samples[SAMPLES_MAX];
    struct shared { /* with the processes of 4 and 5 */
        _Atomic uint32_t ready, go;
        double start_us[PROCESSES], end_us[PROCESSES]; /* of one clock */
    } * shared;
} bench;

static pllm_store_server *serving; /* of the daemon's process, for its signal handler */

static void on_term(int number)
{
    (void)number;
    pllm_store_server_stop(serving);
}

static void daemon_run(const bench *b, int tell)
{
    pllm_device *device;
    must(pllm_device_open(NULL, "host", &device));
    pllm_store_served served = {.device = device, .limit_bytes = LIMIT_MIB * MIB};
    pllm_store_server_options options = {.struct_bytes = sizeof options,
                                         .device_count = 1,
                                         .devices = &served,
                                         .socket = b->socket,
                                         .ready_bytes = 256 * MIB,
                                         .spilled_bytes_max = LIMIT_MIB * MIB};
    must(pllm_store_server_open(NULL, &options, &serving));
    signal(SIGTERM, on_term);
    if (write(tell, "", 1) != 1) exit(1);
    must(pllm_store_server_run(serving, -1));
    pllm_store_server_close(serving);
    pllm_device_close(device);
}

static void daemon_start(bench *b)
{
    int tell[2];
    char byte;
    if (pipe(tell) != 0 || (b->daemon = fork()) < 0) exit(1);
    if (b->daemon == 0) {
        daemon_run(b, tell[1]);
        exit(0);
    }
    close(tell[1]);
    if (read(tell[0], &byte, 1) != 1) exit(1); /* it has said why */
    close(tell[0]);
}

static void daemon_end(bench *b)
{
    int status = 1;
    kill(b->daemon, SIGTERM);
    waitpid(b->daemon, &status, 0);
    if (status != 0) {
        fprintf(stderr, "bench_store: the daemon did not end well\n");
        exit(1);
    }
    char lock[128];
    snprintf(lock, sizeof lock, "%s.lock", b->socket);
    unlink(lock);
    rmdir(b->folder);
}

static pllm_store *connect_to(const bench *b)
{
    pllm_store *store;
    pllm_store_options options = {.struct_bytes = sizeof options, .socket = b->socket};
    must(pllm_store_open(NULL, &options, &store));
    return store;
}

/* Where the last holder's good-bye may still be on its way: again. */
static pllm_store_tensor *make(pllm_store *store, const char *name, uint64_t bytes, uint32_t flags)
{
    pllm_store_tensor *tensor;
    pllm_store_spec spec = {.struct_bytes = sizeof spec,
                            .dtype = PLLM_STORE_U8,
                            .rank = 1,
                            .flags = flags,
                            .shape = {bytes}};
    int status = pllm_store_create(store, name, &spec, &tensor);
    for (int i = 0; status == PLLM_EEXIST && i < 1000; i++) {
        pause_ms(1);
        status = pllm_store_create(store, name, &spec, &tensor);
    }
    must(status);
    return tensor;
}

/* ---- 1 to 3: one client ---- */

/* Tensors that another client holds, each opened once by a client that never saw it. */
static void open_first(bench *b, uint64_t bytes, figure *f)
{
    pllm_store *owner = connect_to(b), *other = connect_to(b);
    char name[32];
    uint32_t count = bytes > 4 * MIB ? 8 : b->opens;
    for (uint32_t i = 0; i < count; i++) {
        snprintf(name, sizeof name, "first/%u", b->named + i);
        (void)make(owner, name, bytes, 0); /* closed with its store */
    }
    for (uint32_t i = 0; i < count; i++) {
        pllm_store_tensor *tensor;
        snprintf(name, sizeof name, "first/%u", b->named + i);
        double start = now_us();
        must(pllm_store_open_tensor(other, name, 0, &tensor));
        b->samples[i] = now_us() - start;
        if (pllm_store_tensor_bytes(tensor) != bytes) exit(1);
    }
    b->named += count;
    figure_add(f, b->samples, count);
    pllm_store_close(other);
    pllm_store_close(owner);
}

static void open_again(bench *b, figure *f)
{
    pllm_store *store = connect_to(b);
    pllm_store_tensor *held = make(store, "again", 4 * MIB, 0), *tensor;
    must(pllm_store_open_tensor(store, "again", 0, &held));
    for (uint32_t i = 0; i < b->opens; i++) {
        double start = now_us();
        must(pllm_store_open_tensor(store, "again", 0, &tensor));
        b->samples[i] = now_us() - start;
        must(pllm_store_close_tensor(tensor));
    }
    figure_add(f, b->samples, b->opens);
    pllm_store_close(store);
}

static int nobody(void *user, const pllm_store_info *info)
{
    (void)user, (void)info;
    return 0;
}

/* idle 0: the daemon was asked something just before, so that neither it nor its processor sleeps.
 */
static void create_ready(bench *b, int idle, figure *f)
{
    pllm_store *store = connect_to(b);
    for (uint32_t i = 0; i < b->creates; i++) {
        pause_ms(b->smoke ? 20 : 120); /* until what was closed is zeroed again */
        for (int j = 0; j < 20 && !idle; j++) must(pllm_store_list(store, "-", nobody, NULL, NULL));
        double start = now_us();
        pllm_store_tensor *tensor = make(store, "warm", 64 * MIB, 0);
        b->samples[i] = now_us() - start;
        unsigned char *data = pllm_store_tensor_data(tensor);
        for (uint64_t at = 0; at < 64 * MIB; at += MIB)
            if (data[at] != 0) exit(1);
        memset(data, 1, 64 * MIB);
        must(pllm_store_close_tensor(tensor));
    }
    figure_add(f, b->samples, b->creates);
    pllm_store_close(store);
}

/* ---- 4 and 5: several processes ---- */

static void wait_for_all(bench *b, uint32_t count)
{
    b->shared->ready++;
    while (b->shared->ready < count) usleep(100);
}

static void children_end(uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        int status = 1;
        wait(&status);
        if (status != 0) exit(1);
    }
}

static void pairs_child(bench *b, uint32_t index, int hold)
{
    pllm_store *store = connect_to(b);
    pllm_store_tensor *held = NULL, *tensor;
    if (hold) must(pllm_store_open_tensor(store, "pairs", 0, &held));
    uint32_t pairs = hold ? b->pairs * HELD_MORE : b->pairs;
    wait_for_all(b, PROCESSES);
    b->shared->start_us[index] = now_us();
    for (uint32_t i = 0; i < pairs; i++) {
        must(pllm_store_open_tensor(store, "pairs", 0, &tensor));
        must(pllm_store_close_tensor(tensor));
    }
    b->shared->end_us[index] = now_us();
    pllm_store_close(store);
}

/* Pairs a second of all processes, from the first one's start to the last one's end. */
static void open_close(bench *b, int hold, figure *f)
{
    pllm_store *store = connect_to(b);
    (void)make(store, "pairs", 4 * MIB, 0);
    b->shared->ready = 0;
    for (uint32_t i = 0; i < PROCESSES; i++)
        if (fork() == 0) { /* the store that was open here is not used by it */
            pairs_child(b, i, hold);
            _exit(0);
        }
    children_end(PROCESSES);
    double start = b->shared->start_us[0], end = b->shared->end_us[0];
    for (uint32_t i = 1; i < PROCESSES; i++) {
        if (b->shared->start_us[i] < start) start = b->shared->start_us[i];
        if (b->shared->end_us[i] > end) end = b->shared->end_us[i];
    }
    f->p50[f->count++] =
        (hold ? HELD_MORE : 1) * (double)b->pairs * PROCESSES * 1e6 / (end - start);
    pllm_store_close(store);
}

static void turns_child(bench *b)
{
    pllm_store *store = connect_to(b);
    pllm_store_tensor *there, *back;
    must(pllm_store_open_tensor(store, "there", 0, &there));
    must(pllm_store_open_tensor(store, "back", 1, &back));
    wait_for_all(b, 2);
    for (uint32_t i = 1; i <= b->turns; i++) {
        must(pllm_store_wait(there, i, 10000));
        must(pllm_store_signal(back, NULL, i));
    }
    pllm_store_close(store);
}

static void fences(bench *b, figure *f)
{
    pllm_store *store = connect_to(b);
    pllm_store_tensor *there = make(store, "there", 4096, 0), *back;
    (void)make(store, "back", 4096, PLLM_STORE_KEPT);
    must(pllm_store_open_tensor(store, "back", 0, &back));
    b->shared->ready = 0;
    if (fork() == 0) {
        turns_child(b);
        _exit(0);
    }
    wait_for_all(b, 2);
    for (uint32_t i = 1; i <= b->turns; i++) {
        double start = now_us();
        must(pllm_store_signal(there, NULL, i));
        must(pllm_store_wait(back, i, 10000));
        b->samples[i - 1] = (now_us() - start) / 2;
    }
    figure_add(f, b->samples, b->turns);
    children_end(1);
    must(pllm_store_delete(store, "back"));
    pllm_store_close(store);
}

/* ---- 6: beside a spill ---- */

typedef struct beside {
    bench *b;
    pllm_store *store;
    pthread_t thread;
    _Atomic int going;
    uint32_t count;
} beside;

static void *beside_run(void *user)
{
    beside *s = user;
    while (s->going && s->count < SAMPLES_MAX) {
        pllm_store_tensor *tensor;
        double start = now_us();
        must(pllm_store_open_tensor(s->store, "beside", 0, &tensor));
        s->b->samples[s->count++] = now_us() - start;
        must(pllm_store_close_tensor(tensor));
        usleep(200);
    }
    return NULL;
}

/* Sealed tensors fill the store but for one more of their size: creating that makes one go. */
static void spill_beside(bench *b, figure *opens, figure *create)
{
    const uint64_t bytes = (b->smoke ? 16 : 256) * MIB, filling = (LIMIT_MIB - 64) * MIB;
    pllm_store *store = connect_to(b);
    beside s = {.b = b, .store = connect_to(b), .going = 1};
    pllm_store_tensor *held = make(store, "beside", 4 * MIB, PLLM_STORE_KEPT);
    char name[32];
    uint32_t count = (uint32_t)(b->smoke ? 1 : filling / bytes);
    for (uint32_t i = 0; i < count; i++) {
        snprintf(name, sizeof name, "fill/%u", i);
        pllm_store_tensor *tensor = make(store, name, bytes, PLLM_STORE_KEPT);
        memset(pllm_store_tensor_data(tensor), 1, bytes);
        must(pllm_store_seal(store, name));
        must(pllm_store_close_tensor(tensor));
    }
    must(pllm_store_close_tensor(held));
    pllm_store_close(store); /* nothing is mapped any more: all may be spilled */
    store = connect_to(b);
    pause_ms(50);
    if (pthread_create(&s.thread, NULL, beside_run, &s) != 0) exit(1);
    pause_ms(5);
    double start = now_us();
    (void)make(store, "more", bytes, 0);
    double took = now_us() - start;
    s.going = 0;
    pthread_join(s.thread, NULL);
    figure_add(opens, b->samples, s.count);
    figure_add(create, &took, 1);
    pllm_store_close(s.store);
    for (uint32_t i = 0; i < count; i++) {
        snprintf(name, sizeof name, "fill/%u", i);
        must(pllm_store_delete(store, name));
    }
    must(pllm_store_delete(store, "beside"));
    pllm_store_close(store);
}

/* ---- the whole ---- */

enum {
    FIRST_SMALL,
    FIRST,
    FIRST_LARGE,
    AGAIN,
    CREATE,
    CREATE_IDLE,
    REPEATED,
    WHOLE,
    FENCE,
    BESIDE,
    MAKE_ROOM,
    FIGURES
};

static void save(const figure *figures, const char *device)
{
    FILE *json = fopen("bench/results/store.json", "w");
    if (!json) {
        perror("bench/results/store.json");
        exit(1);
    }
    fprintf(json, "{\"device\": \"%s\", \"processors\": %ld, \"processes\": %d, \"rounds\": %d",
            device, sysconf(_SC_NPROCESSORS_ONLN), PROCESSES, ROUNDS);
    for (int i = 0; i < FIGURES; i++) {
        const figure *f = &figures[i];
        fprintf(json, ",\n \"%s\": {\"unit\": \"%s\", \"best\": %.2f", f->name, f->unit, best(f));
        if (f->goal > 0) fprintf(json, ", \"goal\": %.0f", f->goal);
        fprintf(json, ", \"rounds\": [");
        for (uint32_t j = 0; j < f->count; j++) fprintf(json, "%s%.2f", j ? ", " : "", f->p50[j]);
        fprintf(json, "]");
        for (uint32_t j = 0; j < f->count && f->p99[0] > 0; j++)
            fprintf(json, "%s%.2f", j ? ", " : ", \"p99\": [", f->p99[j]);
        fprintf(json, "%s}", f->p99[0] > 0 ? "]" : "");
    }
    fprintf(json, "}\n");
    if (fclose(json) != 0) exit(1);
}

static void print(const figure *f)
{
    printf("%-26s %12.2f %-8s", f->name, best(f), f->unit);
    if (f->p99[0] > 0) printf(" p99 of the first round %10.2f", f->p99[0]);
    if (f->goal > 0)
        printf("  goal %s %.0f: %s", f->more ? "at least" : "under", f->goal,
               (f->more ? best(f) >= f->goal : best(f) < f->goal) ? "met" : "missed");
    printf("\n");
}

int main(int argc, char **argv)
{
    static bench b = {.rounds = ROUNDS, .opens = 200, .creates = 9, .pairs = 1000, .turns = 2000};
    static figure figures[FIGURES] = {
        [FIRST_SMALL] = {.name = "open_first_64kib", .unit = "us", .goal = 150},
        [FIRST] = {.name = "open_first_4mib", .unit = "us", .goal = 150},
        [FIRST_LARGE] = {.name = "open_first_64mib", .unit = "us", .goal = 150},
        [AGAIN] = {.name = "open_again", .unit = "us", .goal = 2},
        [CREATE] = {.name = "create_64mib_ready", .unit = "us", .goal = 200},
        [CREATE_IDLE] = {.name = "create_64mib_ready_idle", .unit = "us"},
        [REPEATED] = {.name = "open_close_repeated", .unit = "a second", .goal = 20000, .more = 1},
        [WHOLE] = {.name = "open_close_whole", .unit = "a second", .goal = 20000, .more = 1},
        [FENCE] = {.name = "signal_to_waiter", .unit = "us"},
        [BESIDE] = {.name = "open_beside_spill", .unit = "us"},
        [MAKE_ROOM] = {.name = "create_that_spills_256mib", .unit = "us"},
    };
    if (argc > 2 || (argc == 2 && strcmp(argv[1], "--smoke") != 0)) {
        fprintf(stderr, "usage: bench_store [--smoke]\n");
        return 2;
    }
    b.smoke = argc == 2;
    if (b.smoke) b.rounds = 1, b.opens = 10, b.creates = 2, b.pairs = 20, b.turns = 20;
    snprintf(b.folder, sizeof b.folder, "/tmp/bench_store.XXXXXX");
    if (!mkdtemp(b.folder)) return 1;
    snprintf(b.socket, sizeof b.socket, "%s/sock", b.folder);
    b.shared =
        mmap(NULL, sizeof *b.shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (b.shared == MAP_FAILED) return 1;
    daemon_start(&b);
    for (uint32_t round = 0; round < b.rounds; round++) {
        open_first(&b, 64 << 10, &figures[FIRST_SMALL]);
        open_first(&b, 4 * MIB, &figures[FIRST]);
        open_first(&b, 64 * MIB, &figures[FIRST_LARGE]);
        open_again(&b, &figures[AGAIN]);
        create_ready(&b, 0, &figures[CREATE]);
        create_ready(&b, 1, &figures[CREATE_IDLE]);
        open_close(&b, 1, &figures[REPEATED]);
        open_close(&b, 0, &figures[WHOLE]);
        fences(&b, &figures[FENCE]);
        spill_beside(&b, &figures[BESIDE], &figures[MAKE_ROOM]);
    }
    for (int i = 0; i < FIGURES; i++) print(&figures[i]);
    daemon_end(&b);
    pllm_device *device;
    pllm_device_info info = {.struct_bytes = sizeof info};
    must(pllm_device_open(NULL, "host", &device));
    must(pllm_device_info_get(device, &info));
    if (!b.smoke) save(figures, info.name);
    pllm_device_close(device);
    printf("open %.1f us first, %.2f us again; create of 64 MiB %.1f us; %.0f open/close pairs a "
           "second, %.0f where each is the last\n",
           best(&figures[FIRST]), best(&figures[AGAIN]), best(&figures[CREATE]),
           best(&figures[REPEATED]), best(&figures[WHOLE]));
    return 0;
}
