/* The mirror, with a real redis-server: what stands in Redis is what the daemon holds, whatever
 * happens to Redis; and commands of tensor:cmd are carried out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <hiredis/hiredis.h>
#include <jansson.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <pagedllm/tensor_store.h>
#include "base/clock.h"
#include "redis/mirror.h"
#include "redis/private.h"

typedef struct rig {
    char folder[64], path[96];
    pllm_redis_private *redis;
    pllm_device *device;
    pllm_store_server *server;
    pllm_mirror *mirror;
    pthread_t thread;
    pllm_store *store;
    redisContext *cli;
} rig;
static rig r;
static const char *mirror_address; /* NULL: the private Redis's */

static void *serve(void *argument)
{
    return pllm_store_server_run(argument, -1) == PLLM_OK ? NULL : argument;
}

static void daemon_start(void)
{
    pllm_host_device_options host = {.struct_bytes = sizeof host, .capacity_bytes = 256 << 20};
    assert_int_equal(pllm_device_open_host(NULL, &host, &r.device), PLLM_OK);
    const pllm_store_served device = {.device = r.device};
    const pllm_store_server_options options = {.struct_bytes = sizeof options,
                                               .device_count = 1,
                                               .devices = &device,
                                               .socket = r.path,
                                               .tensor_max = 64,
                                               .adopt_ms = 60000,
                                               .sweep_ms = 50};
    assert_int_equal(pllm_store_server_open(NULL, &options, &r.server), PLLM_OK);
    const pllm_mirror_options mirror = {
        .struct_bytes = sizeof mirror,
        .address = mirror_address ? mirror_address : pllm_redis_private_address(r.redis)};
    assert_int_equal(pllm_mirror_open(NULL, r.server, &mirror, &r.mirror), PLLM_OK);
    assert_int_equal(pthread_create(&r.thread, NULL, serve, r.server), 0);
}

static void daemon_stop(void)
{
    void *failed;
    pllm_store_server_stop(r.server);
    pthread_join(r.thread, &failed);
    assert_null(failed);
    pllm_store_server_close(r.server); /* the mirror with it */
    pllm_device_close(r.device);
}

static void cli_open(void)
{
    for (uint32_t i = 0; i < 500; i++) {
        r.cli = redisConnectUnix(pllm_redis_private_address(r.redis) + 7);
        if (r.cli && !r.cli->err) return;
        redisFree(r.cli);
        poll(NULL, 0, 10);
    }
    fail_msg("no Redis");
}

static int setup(void **state)
{
    (void)state;
    memset(&r, 0, sizeof r);
    snprintf(r.folder, sizeof r.folder, "/tmp/pllm-mirror-XXXXXX");
    assert_non_null(mkdtemp(r.folder));
    snprintf(r.path, sizeof r.path, "%s/store.sock", r.folder);
    assert_int_equal(pllm_redis_private_open(NULL, r.folder, NULL, 10000, &r.redis), PLLM_OK);
    daemon_start();
    const pllm_store_options options = {
        .struct_bytes = sizeof options, .socket = r.path, .timeout_ms = 10000};
    assert_int_equal(pllm_store_open(NULL, &options, &r.store), PLLM_OK);
    cli_open();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    pllm_store_close(r.store);
    daemon_stop();
    redisFree(r.cli);
    pllm_redis_private_close(r.redis);
    char path[160];
    snprintf(path, sizeof path, "rm -rf '%s'", r.folder);
    return system(path);
}

/* The text of a command's reply, or "(nil)", or "<error>". */
static const char *ask(const char *format, ...)
{
    static char text[4096];
    va_list arguments;
    va_start(arguments, format);
    redisReply *reply = redisvCommand(r.cli, format, arguments);
    va_end(arguments);
    if (!reply) return "<error>";
    if (reply->type == REDIS_REPLY_INTEGER)
        snprintf(text, sizeof text, "%lld", reply->integer);
    else if (reply->type == REDIS_REPLY_ARRAY)
        snprintf(text, sizeof text, "%s", reply->elements > 1 ? reply->element[1]->str : "");
    else
        snprintf(text, sizeof text, "%s", reply->type == REDIS_REPLY_NIL ? "(nil)" : reply->str);
    freeReplyObject(reply);
    return text;
}

/* What is written behind comes: waits for it, at most 20 s. */
static void until(const char *wanted, const char *key, const char *field)
{
    const char *got = "";
    for (uint64_t end = pllm_clock_ns() + UINT64_C(20000000000); pllm_clock_ns() < end;) {
        got = ask("HGET %s %s", key, field);
        if (!strcmp(got, wanted)) return;
        poll(NULL, 0, 2);
    }
    fail_msg("%s %s is %s, not %s", key, field, got, wanted);
}

static pllm_store_tensor *make(const char *name, uint32_t flags)
{
    pllm_store_spec spec = {.struct_bytes = sizeof spec,
                            .dtype = PLLM_STORE_F16,
                            .rank = 2,
                            .mode = 0640,
                            .shape = {2, 3},
                            .flags = flags};
    pllm_store_tensor *tensor;
    if (pllm_store_create(r.store, name, &spec, &tensor) != PLLM_OK)
        fail_msg("%s", pllm_last_error()->text);
    return tensor;
}

static void test_hashes(void **state)
{
    (void)state;
    char text[64];
    pllm_store_tensor *tensor = make("a/b", 0), *again;
    until("a/b", "tensor:a/b", "name");
    assert_string_equal(ask("HGET tensor:a/b dtype"), "f16");
    assert_string_equal(ask("HGET tensor:a/b shape"), "[2,3]");
    assert_string_equal(ask("HGET tensor:a/b device"), "0");
    assert_string_equal(ask("HGET tensor:a/b bytes"), "12");
    assert_string_equal(ask("HGET tensor:a/b refcount"), "1");
    assert_string_equal(ask("HGET tensor:a/b state"), "ready");
    assert_string_equal(ask("HGET tensor:a/b mode"), "0640");
    assert_string_equal(ask("HGET tensor:a/b version"), "1");
    snprintf(text, sizeof text, "%d", getpid());
    assert_string_equal(ask("HGET tensor:a/b owner_pid"), text);
    assert_true(strlen(ask("HGET tensor:a/b ctime")) == 10);
    /* The handle in Redis is redeemed over the socket. */
    snprintf(text, sizeof text, "%s", ask("HGET tensor:a/b ipc_handle"));
    assert_int_equal(pllm_store_redeem(r.store, text, 0, &again), PLLM_OK);
    ((uint16_t *)pllm_store_tensor_data(tensor))[5] = 77;
    assert_int_equal(((uint16_t *)pllm_store_tensor_data(again))[5], 77);
    until("2", "tensor:a/b", "refcount");
    assert_int_equal(pllm_store_rename(r.store, "a/b", "c"), PLLM_OK);
    until("c", "tensor:c", "name");
    assert_string_equal(ask("EXISTS tensor:a/b"), "0");
    assert_int_equal(pllm_store_close_tensor(again), PLLM_OK);
    until("1", "tensor:c", "refcount");
    assert_int_equal(pllm_store_close_tensor(tensor), PLLM_OK);
    until("(nil)", "tensor:c", "name");
    /* A name's next life: a greater generation stands there. */
    make("c", 0);
    until("c", "tensor:c", "name");
}

static json_t *command(const char *text)
{
    (void)ask("DEL answers");
    (void)ask("RPUSH tensor:cmd %s", text);
    const char *line = ask("BLPOP answers 20");
    json_t *answer = json_loads(line, 0, NULL);
    if (!answer) fail_msg("%s was answered %s", text, line);
    return answer;
}

static const char *error_of(const char *text)
{
    static char error[64];
    json_t *answer = command(text);
    const char *name = json_string_value(json_object_get(answer, "error"));
    snprintf(error, sizeof error, "%s", name ? name : "ok");
    json_decref(answer);
    return error;
}

static void test_commands(void **state)
{
    (void)state;
    json_t *made = command("{\"op\":\"create\",\"name\":\"X\",\"dtype\":\"f32\",\"shape\":[2,3],"
                           "\"device\":0,\"reply\":\"answers\"}");
    assert_true(json_is_true(json_object_get(made, "ok")));
    assert_int_equal(json_integer_value(json_object_get(made, "bytes")), 24);
    /* Its hash is there before its answer. */
    assert_string_equal(ask("HGET tensor:X bytes"), "24");
    assert_string_equal(ask("HGET tensor:X refcount"), "0"); /* and it is kept */
    pllm_store_tensor *tensor;
    assert_int_equal(pllm_store_redeem(r.store,
                                       json_string_value(json_object_get(made, "ipc_handle")), 1,
                                       &tensor),
                     PLLM_OK);
    ((float *)pllm_store_tensor_data(tensor))[0] = 1;
    json_decref(made);
    assert_string_equal(
        error_of("{\"op\":\"create\",\"name\":\"X\",\"dtype\":\"f32\",\"shape\":[1],\"reply\":"
                 "\"answers\"}"),
        "EEXIST");
    assert_string_equal(error_of("{\"op\":\"get\",\"name\":\"Y\",\"reply\":\"answers\"}"),
                        "ENOTFOUND");
    assert_string_equal(error_of("{\"op\":\"nonsense\",\"reply\":\"answers\"}"), "EINVAL");

    /* Without pid and lease: the metadata alone. */
    assert_string_equal(error_of("{\"op\":\"get\",\"name\":\"X\",\"reply\":\"answers\"}"), "ok");
    until("1", "tensor:X", "refcount");
    /* A lease: it holds, and is over by itself. */
    assert_string_equal(
        error_of("{\"op\":\"get\",\"name\":\"X\",\"lease_s\":0.3,\"reply\":\"answers\"}"), "ok");
    until("2", "tensor:X", "refcount");
    until("1", "tensor:X", "refcount");
    /* A process: until it has gone. */
    pid_t pid = fork();
    if (pid == 0) {
        for (;;) pause();
    }
    char text[160];
    snprintf(text, sizeof text, "{\"op\":\"get\",\"name\":\"X\",\"pid\":%d,\"reply\":\"answers\"}",
             pid);
    assert_string_equal(error_of(text), "ok");
    until("2", "tensor:X", "refcount");
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    until("1", "tensor:X", "refcount");
    assert_string_equal(error_of(text), "ENOTFOUND"); /* no such process now */
    /* A lease given back before its time. */
    json_t *answer =
        command("{\"op\":\"get\",\"name\":\"X\",\"lease_s\":600,\"reply\":\"answers\"}");
    snprintf(text, sizeof text,
             "{\"op\":\"delete\",\"name\":\"X\",\"lease\":\"%s\",\"reply\":\"answers\"}",
             json_string_value(json_object_get(answer, "lease")));
    json_decref(answer);
    until("2", "tensor:X", "refcount");
    assert_string_equal(error_of(text), "ok");
    until("1", "tensor:X", "refcount");
    assert_string_equal(error_of("{\"op\":\"delete\",\"name\":\"X\",\"reply\":\"answers\"}"), "ok");
    assert_string_equal(ask("EXISTS tensor:X"), "0");
    assert_int_equal(pllm_store_tensor_valid(tensor), PLLM_ESTALE);
    assert_true(((float *)pllm_store_tensor_data(tensor))[0] == 1); /* who holds it keeps it */
    pllm_mirror_stats stats;
    pllm_mirror_stats_get(r.mirror, &stats);
    assert_int_equal(stats.bad_commands, 1);
}

/* Garbage on the list, without a place for an answer: what follows is served. */
static void test_garbage(void **state)
{
    (void)state;
    (void)ask("RPUSH tensor:cmd %b", "\0\xff{", (size_t)3);
    (void)ask("RPUSH tensor:cmd %s", "[]");
    (void)ask("RPUSH tensor:cmd %s", "{\"op\":\"get\",\"name\":\"q\"}");
    assert_string_equal(error_of("{\"op\":\"get\",\"name\":\"Y\",\"reply\":\"answers\"}"),
                        "ENOTFOUND");
    /* tensor:cmd and a tensor's key of another type. */
    (void)ask("SET tensor:taken %s", "a text");
    make("taken", 0);
    make("free", 0);
    until("free", "tensor:free", "name");
    assert_string_equal(ask("GET tensor:taken"), "a text");
    pllm_mirror_stats stats;
    pllm_mirror_stats_get(r.mirror, &stats);
    assert_true(stats.refused >= 1);
}

/* All that Redis had is gone while it runs. */
static void test_flushed(void **state)
{
    (void)state;
    make("one", 0);
    make("two", 0);
    until("two", "tensor:two", "name");
    assert_string_equal(ask("FLUSHALL"), "OK");
    until("one", "tensor:one", "name");
    until("two", "tensor:two", "name");
    make("three", 0); /* and goes on: scripts that were flushed too are there again */
    until("three", "tensor:three", "name");
    assert_string_equal(ask("SCRIPT FLUSH"), "OK");
    make("four", 0);
    until("four", "tensor:four", "name");
}

/* Redis is killed and started again, empty; meanwhile the daemon serves. */
/* Redis was away, and meanwhile a tensor went whose name an older one then got: what is there of
 * the newer one must not keep the older one out. */
static void test_older_takes_name(void **state)
{
    (void)state;
    char generation[32];
    pllm_store_tensor *tensor = make("taken", 0);
    until("taken", "tensor:taken", "name");
    snprintf(generation, sizeof generation, "%s", ask("HGET tensor:taken generation"));
    ask("HSET tensor:taken generation 9%s sync 1 name newer", generation);
    ask("CLIENT KILL TYPE normal SKIPME yes");
    /* It is never gone on the way, to be told again in passing. */
    const char *name = "newer";
    for (uint32_t i = 0; i < 10000 && !strcmp(name, "newer"); i++) {
        poll(NULL, 0, 2);
        name = ask("HGET tensor:taken name");
    }
    assert_string_equal(name, "taken");
    assert_string_equal(ask("HGET tensor:taken generation"), generation);
    assert_int_equal(pllm_store_close_tensor(tensor), PLLM_OK);
}

static void test_redis_dies(void **state)
{
    (void)state;
    pllm_store_tensor *gone = make("gone", 0);
    make("stays", 0);
    until("stays", "tensor:stays", "name");
    redisFree(r.cli);
    kill(pllm_redis_private_pid(r.redis), SIGKILL);
    siginfo_t info;
    waitid(P_PID, (id_t)pllm_redis_private_pid(r.redis), &info, WEXITED | WNOWAIT);
    assert_int_equal(pllm_store_close_tensor(gone), PLLM_OK);
    make("born", 0); /* nobody waits for Redis */
    assert_int_equal(pllm_redis_private_tend(r.redis), PLLM_OK);
    cli_open();
    until("born", "tensor:born", "name");
    until("stays", "tensor:stays", "name");
    assert_string_equal(ask("EXISTS tensor:gone"), "0");
    assert_string_equal(error_of("{\"op\":\"get\",\"name\":\"born\",\"reply\":\"answers\"}"), "ok");
}

/* The daemon ends: its hashes go with it. It is back: those of its clients' tensors too. And hashes
 * that a killed one left behind are cleared away, but not another daemon's. */
static void test_daemon_returns(void **state)
{
    (void)state;
    make("held", 0);
    until("held", "tensor:held", "name");
    char node[256];
    snprintf(node, sizeof node, "%s", ask("HGET tensor:held node"));
    daemon_stop();
    assert_string_equal(ask("EXISTS tensor:held"), "0");
    (void)ask("HSET tensor:left node %s generation 5 sync 5", node);
    (void)ask("HSET tensor:others node elsewhere:/x generation 5 sync 5");
    (void)ask("SET tensor-store:elsewhere:/x 5"); /* it lives */
    (void)ask("HSET tensor:theirs node elsewhere:/gone generation 5 sync 5");
    (void)ask("HSET tensor:foreign node somebody");
    daemon_start();
    pllm_store_info info = {.struct_bytes = sizeof info};
    assert_int_equal(pllm_store_stat(r.store, "held", &info), PLLM_OK);
    until("held", "tensor:held", "name");
    until("(nil)", "tensor:left", "node");
    assert_string_equal(ask("HGET tensor:others node"), "elsewhere:/x");
    make("others", 0); /* the name is another daemon's there: ours is served, and not written */
    make("mine", 0);
    until("mine", "tensor:mine", "name");
    assert_string_equal(ask("HGET tensor:others node"), "elsewhere:/x");
    /* What a daemon left that ended without a word goes; what no daemon wrote does not. */
    until("(nil)", "tensor:theirs", "node");
    assert_string_equal(ask("HGET tensor:foreign node"), "somebody");
    assert_in_range(atoi(ask("TTL tensor-store:%s", node)), 1, 60);
    /* The other daemon is gone: the name is ours. */
    (void)ask("DEL tensor-store:elsewhere:/x");
    until(node, "tensor:others", "node");
    until("others", "tensor:others", "name");
}

/* One hash is gone (evicted, or somebody removed it), and Redis is still there: it comes back. */
static void test_lost_in_part(void **state)
{
    (void)state;
    make("one", 0);
    until("one", "tensor:one", "name");
    assert_string_equal(ask("DEL tensor:one"), "1");
    until("one", "tensor:one", "name");
    until("1", "tensor:one", "refcount");
}

/* Redis forgot the scripts, and the daemon ends before it has noticed: its hashes still go. */
static void test_scripts_gone_at_end(void **state)
{
    (void)state;
    make("one", 0);
    until("one", "tensor:one", "name");
    kill(pllm_redis_private_pid(r.redis), SIGSTOP); /* nothing is sent between the two */
    redisAppendCommand(r.cli, "SCRIPT FLUSH");
    int done = 0;
    while (!done) assert_int_equal(redisBufferWrite(r.cli, &done), REDIS_OK);
    pllm_store_server_stop(r.server);
    kill(pllm_redis_private_pid(r.redis), SIGCONT);
    redisReply *reply;
    assert_int_equal(redisGetReply(r.cli, (void **)&reply), REDIS_OK);
    freeReplyObject(reply);
    daemon_stop();
    assert_string_equal(ask("EXISTS tensor:one"), "0");
    daemon_start();
}

/* Two daemons may be told the same relative path: they are not one because of that. */
static void test_relative_path(void **state)
{
    (void)state;
    char here[512], node[256], path[sizeof r.path];
    assert_non_null(getcwd(here, sizeof here));
    memcpy(path, r.path, sizeof path);
    daemon_stop();
    assert_int_equal(chdir(r.folder), 0);
    strcpy(r.path, "store.sock");
    daemon_start();
    memcpy(r.path, path, sizeof path);
    assert_int_equal(chdir(here), 0);
    make("one", 0);
    until("one", "tensor:one", "name");
    snprintf(node, sizeof node, "%s", ask("HGET tensor:one node"));
    assert_string_equal(strchr(node, ':') + 1, r.path);
    /* It removes its socket where it is. */
    assert_int_equal(chdir(r.folder), 0);
    daemon_stop();
    assert_int_equal(chdir(here), 0);
    daemon_start();
}

/* Redis takes no writes for a while (too few replicas; it might be full, or a replica itself). What
 * it refused is written when it takes them again, and it is not asked in a frenzy. */
static void test_refusing(void **state)
{
    (void)state;
    pllm_mirror_stats before, after;
    make("first", 0);
    until("first", "tensor:first", "name");
    pllm_mirror_stats_get(r.mirror, &before);
    assert_string_equal(ask("CONFIG SET min-replicas-to-write 1"), "OK");
    make("refused", 0);
    poll(NULL, 0, 1500);
    pllm_mirror_stats_get(r.mirror, &after);
    assert_true(after.registrations + after.connects - before.registrations - before.connects < 12);
    assert_string_equal(ask("EXISTS tensor:refused"), "0");
    assert_string_equal(ask("CONFIG SET min-replicas-to-write 0"), "OK");
    until("refused", "tensor:refused", "name");
    until("first", "tensor:first", "name");
}

/* More changes than are kept for a Redis that does not answer: all is registered anew. */
static void test_overrun(void **state)
{
    (void)state;
    make("kept", 0);
    until("kept", "tensor:kept", "name");
    kill(pllm_redis_private_pid(r.redis), SIGSTOP);
    for (uint32_t i = 0; i < 2400; i++) assert_int_equal(pllm_store_close_tensor(make("x", 0)), 0);
    kill(pllm_redis_private_pid(r.redis), SIGCONT);
    make("after", 0);
    until("after", "tensor:after", "name");
    until("kept", "tensor:kept", "name");
    until("(nil)", "tensor:x", "name"); /* a registration ends with clearing away */
}

/* An answer's list is whatever a command says: what is no list stays as it is, and stays. */
static void test_reply_elsewhere(void **state)
{
    (void)state;
    make("held", 0);
    until("held", "tensor:held", "name");
    (void)ask("SET precious 1");
    (void)ask("RPUSH tensor:cmd %s", "{\"op\":\"get\",\"name\":\"held\",\"reply\":\"precious\"}");
    (void)ask("RPUSH tensor:cmd %s",
              "{\"op\":\"get\",\"name\":\"held\",\"reply\":\"tensor:held\"}");
    (void)ask("RPUSH tensor:cmd %s", "{\"op\":\"get\",\"name\":\"held\",\"reply\":\"tensor:cmd\"}");
    assert_string_equal(error_of("{\"op\":\"get\",\"name\":\"held\",\"reply\":\"answers\"}"), "ok");
    assert_string_equal(ask("TTL precious"), "-1");
    assert_string_equal(ask("TTL tensor:held"), "-1");
    assert_true(atoi(ask("TTL tensor:cmd")) < 0);
}

/* A Redis that hangs does not keep the daemon from ending. */
static void test_hanging(void **state)
{
    (void)state;
    make("left", 0);
    until("left", "tensor:left", "name");
    kill(pllm_redis_private_pid(r.redis), SIGSTOP);
    uint64_t before = pllm_clock_ns();
    daemon_stop();
    assert_true(pllm_clock_ns() - before < UINT64_C(8000000000));
    kill(pllm_redis_private_pid(r.redis), SIGCONT);
    daemon_start();
    until("(nil)", "tensor:left", "name"); /* cleared away by the next one; not offered yet */
    /* One that takes connections and never says a word. */
    char path[128], address[144];
    snprintf(path, sizeof path, "%s/mute.sock", r.folder);
    snprintf(address, sizeof address, "unix://%s", path);
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    memcpy(to.sun_path, path, strlen(path) + 1);
    int mute = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(mute, (struct sockaddr *)&to, sizeof to), 0);
    assert_int_equal(listen(mute, 8), 0);
    daemon_stop();
    mirror_address = address;
    daemon_start();
    mirror_address = NULL;
    before = pllm_clock_ns();
    daemon_stop();
    assert_true(pllm_clock_ns() - before < UINT64_C(8000000000));
    close(mute);
    daemon_start();
}

/* A password is set, and connections are cut: nothing is known of it here, so that Redis is away
 * until it is gone again. */
static void test_refuses_to_talk(void **state)
{
    (void)state;
    make("one", 0);
    until("one", "tensor:one", "name");
    assert_string_equal(ask("CONFIG SET requirepass secret"), "OK");
    (void)ask("CLIENT KILL TYPE normal SKIPME yes");
    pllm_mirror_stats stats;
    do {
        poll(NULL, 0, 2);
        pllm_mirror_stats_get(r.mirror, &stats);
    } while (stats.connected);
    make("two", 0);
    assert_string_equal(ask("EXISTS tensor:two"), "0");
    assert_int_equal(redisReconnect(r.cli), REDIS_OK);
    assert_string_equal(ask("AUTH secret"), "OK");
    assert_string_equal(ask("CONFIG SET requirepass %s", ""), "OK");
    until("two", "tensor:two", "name");
}

/* ---- a Redis that is none ---- */

typedef struct liar {
    int listen_fd;
    int what; /* what it is like; atomic, as heard is: its connections have threads */
    pthread_t thread;
    uint32_t heard; /* commands */
} liar;

/* What it says to a command; NULL: it hangs up. */
static const char *lie(int what, const char *name)
{
    static const char sha[] = "$40\r\n0123456789012345678901234567890123456789\r\n";
    if (what == 0) return "-MOVED 3999 127.0.0.1:6381\r\n";
    if (what == 1) return "@@ no protocol at all\r\n";
    if (!strcmp(name, "PING")) return "+PONG\r\n";
    if (!strcmp(name, "SCRIPT")) return sha;
    if (!strcmp(name, "BLPOP")) return what == 2 ? NULL : "*2\r\n:1\r\n:2\r\n";
    if (!strcmp(name, "SET")) return "+OK\r\n";
    if (what == 2) return NULL; /* in the middle of what was sent together */
    if (!strcmp(name, "SCAN"))
        return what == 3 ? "*2\r\n$-1\r\n*1\r\n$-1\r\n" : "*2\r\n$1\r\n0\r\n*1\r\n*0\r\n";
    if (!strcmp(name, "GET")) return "*0\r\n";
    return what == 3 ? "$-1\r\n" : "-LOADING Redis is loading the dataset in memory\r\n";
}

/* The next command of a connection, its name; NULL: it hung up. */
static const char *liar_read(FILE *from, char name[32])
{
    char line[64];
    if (!fgets(line, sizeof line, from) || line[0] != '*') return NULL;
    for (int parts = atoi(line + 1), i = 0; i < parts; i++) {
        if (!fgets(line, sizeof line, from)) return NULL;
        int bytes = atoi(line + 1);
        for (int k = 0; k < bytes + 2; k++) {
            int c = getc(from);
            if (c == EOF) return NULL;
            if (i == 0 && k < 31) name[k] = (char)(k < bytes ? c : 0);
        }
    }
    return name;
}

typedef struct lied {
    liar *l;
    int fd;
} lied;

static void *liar_talk(void *argument)
{
    lied *to = argument;
    char name[32] = "";
    FILE *from = fdopen(to->fd, "r");
    while (from && liar_read(from, name)) {
        const char *says = lie(__atomic_load_n(&to->l->what, __ATOMIC_RELAXED), name);
        __atomic_fetch_add(&to->l->heard, 1, __ATOMIC_RELAXED);
        if (!strcmp(name, "BLPOP")) poll(NULL, 0, 20);
        if (!says || send(to->fd, says, strlen(says), MSG_NOSIGNAL) < 0) break;
    }
    if (from) fclose(from);
    free(to);
    return NULL;
}

static void *liar_listen(void *argument)
{
    liar *l = argument;
    for (int fd; (fd = accept(l->listen_fd, NULL, NULL)) >= 0;) {
        pthread_t thread;
        lied *to = malloc(sizeof *to);
        *to = (lied){l, fd};
        pthread_create(&thread, NULL, liar_talk, to);
        pthread_detach(thread);
    }
    return NULL;
}

/* Another server's words, no words at all, answers of other kinds than were asked for, a connection
 * that ends in the middle: the daemon serves, and ends in time. */
static void test_no_redis(void **state)
{
    (void)state;
    static liar l;
    char path[128], address[144];
    snprintf(path, sizeof path, "%s/liar.sock", r.folder);
    snprintf(address, sizeof address, "unix://%s", path);
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    memcpy(to.sun_path, path, strlen(path) + 1);
    l.listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(l.listen_fd, (struct sockaddr *)&to, sizeof to), 0);
    assert_int_equal(listen(l.listen_fd, 8), 0);
    assert_int_equal(pthread_create(&l.thread, NULL, liar_listen, &l), 0);
    for (int what = 0; what < 5; what++) {
        daemon_stop();
        __atomic_store_n(&l.what, what, __ATOMIC_RELAXED);
        __atomic_store_n(&l.heard, 0, __ATOMIC_RELAXED);
        mirror_address = address;
        daemon_start();
        mirror_address = NULL;
        pllm_store_tensor *tensor = make("x", 0);
        while (__atomic_load_n(&l.heard, __ATOMIC_RELAXED) < (what < 2 ? 2 : 8)) poll(NULL, 0, 2);
        assert_int_equal(pllm_store_close_tensor(tensor), PLLM_OK);
        uint64_t before = pllm_clock_ns();
        daemon_stop();
        assert_true(pllm_clock_ns() - before < UINT64_C(8000000000));
        daemon_start();
    }
    shutdown(l.listen_fd, SHUT_RDWR);
    pthread_join(l.thread, NULL);
    close(l.listen_fd);
    make("after", 0);
    until("after", "tensor:after", "name");
}

static void test_addresses(void **state)
{
    (void)state;
    pllm_mirror_address a;
    assert_int_equal(pllm_mirror_address_parse("unix:///run/redis.sock", &a), PLLM_OK);
    assert_string_equal(a.path, "/run/redis.sock");
    assert_int_equal(pllm_mirror_address_parse("unix:///run/redis.sock?db=3", &a), PLLM_OK);
    assert_int_equal(a.database, 3);
    assert_int_equal(pllm_mirror_address_parse("redis://localhost", &a), PLLM_OK);
    assert_string_equal(a.host, "localhost");
    assert_int_equal(a.port, 6379);
    assert_int_equal(pllm_mirror_address_parse("redis://me:p@ss@h:7000/2", &a), PLLM_OK);
    assert_string_equal(a.user, "me");
    assert_string_equal(a.password, "p@ss");
    assert_string_equal(a.host, "h");
    assert_int_equal(a.port, 7000);
    assert_int_equal(a.database, 2);
    assert_int_equal(pllm_mirror_address_parse("redis://:x@[::1]:1", &a), PLLM_OK);
    assert_string_equal(a.host, "::1");
    assert_string_equal(a.password, "x");
    static const char *const bad[] = {"",
                                      "localhost",
                                      "unix://",
                                      "unix:///x?y",
                                      "redis://",
                                      "redis://:7",
                                      "redis://h:0",
                                      "redis://h:65536",
                                      "redis://h:7x",
                                      "redis://h/x",
                                      "redis://x@h",
                                      "redis://[::1",
                                      "redis://[::1]7",
                                      "http://h"};
    /* A sentence that may stand in a log has no password in it. */
    assert_int_equal(pllm_mirror_address_parse("redis://me:se/cret@h:0", &a), PLLM_EINVAL);
    assert_null(strstr(pllm_last_error()->text, "cret"));
    assert_non_null(strstr(pllm_last_error()->text, "h:0"));
    for (uint32_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (pllm_mirror_address_parse(bad[i], &a) != PLLM_EINVAL) fail_msg("%s was taken", bad[i]);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_addresses),
        TEST(test_hashes),
        TEST(test_commands),
        TEST(test_garbage),
        TEST(test_flushed),
        TEST(test_older_takes_name),
        TEST(test_redis_dies),
        TEST(test_daemon_returns),
        TEST(test_lost_in_part),
        TEST(test_scripts_gone_at_end),
        TEST(test_relative_path),
        TEST(test_refusing),
        TEST(test_overrun),
        TEST(test_reply_elsewhere),
        TEST(test_hanging),
        TEST(test_refuses_to_talk),
        TEST(test_no_redis),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
