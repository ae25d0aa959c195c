/* A redis-server of one's own: it answers, it is started again, it goes with us, and where there is
 * none a person is told how to get one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <errno.h>
#include <hiredis/hiredis.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "redis/private.h"

static char folder[64];

static int setup(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/pllm-redis-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    return rmdir(folder); /* close left nothing in it */
}

static int pings(const pllm_redis_private *redis)
{
    redisContext *context = redisConnectUnix(pllm_redis_private_address(redis) + 7);
    redisReply *reply = context && !context->err ? redisCommand(context, "PING") : NULL;
    int is = reply && !strcmp(reply->str, "PONG");
    if (reply) freeReplyObject(reply);
    if (context) redisFree(context);
    return is;
}

static void test_answers_and_goes(void **state)
{
    (void)state;
    pllm_redis_private *redis;
    assert_int_equal(pllm_redis_private_open(NULL, folder, NULL, 10000, &redis), PLLM_OK);
    assert_true(pings(redis));
    struct stat socket;
    char path[128];
    snprintf(path, sizeof path, "%s/redis.sock", folder);
    assert_int_equal(stat(path, &socket), 0);
    assert_int_equal(socket.st_mode & 0777, 0600);
    int pid = pllm_redis_private_pid(redis);
    pllm_redis_private_close(redis);
    assert_int_equal(kill(pid, 0), -1);
    assert_int_equal(errno, ESRCH);
}

static void test_tended(void **state)
{
    (void)state;
    pllm_redis_private *redis;
    assert_int_equal(pllm_redis_private_open(NULL, folder, NULL, 10000, &redis), PLLM_OK);
    int pid = pllm_redis_private_pid(redis);
    assert_int_equal(pllm_redis_private_tend(redis), PLLM_OK); /* it runs: nothing happens */
    assert_int_equal(pllm_redis_private_pid(redis), pid);
    assert_int_equal(kill(pid, SIGKILL), 0);
    siginfo_t info;
    assert_int_equal(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
    assert_int_equal(pllm_redis_private_tend(redis), PLLM_OK);
    assert_int_not_equal(pllm_redis_private_pid(redis), pid);
    for (uint32_t i = 0; i < 1000 && !pings(redis); i++) poll(NULL, 0, 10);
    assert_true(pings(redis));
    pllm_redis_private_close(redis);
}

static void test_not_there(void **state)
{
    (void)state;
    pllm_redis_private *redis;
    assert_int_equal(pllm_redis_private_open(NULL, folder, "redis-server-of-nowhere", 5000, &redis),
                     PLLM_ENOTFOUND);
    assert_null(redis);
    assert_non_null(strstr(pllm_last_error()->text, "apt-get install redis-server"));
    /* One that starts and ends is told with its reason; false says none. */
    assert_int_equal(pllm_redis_private_open(NULL, folder, "false", 5000, &redis), PLLM_EIO);
    char deep[200];
    snprintf(deep, sizeof deep, "%s/%0120d", folder, 0);
    assert_int_equal(pllm_redis_private_open(NULL, deep, NULL, 5000, &redis), PLLM_ELIMIT);
    assert_int_equal(pllm_redis_private_open(NULL, "/nowhere", NULL, 5000, &redis), PLLM_EIO);
}

/* Killed without a chance to do anything, we take it with us: late, where it has no time. Who comes
 * next has one that stays. */
static void test_goes_with_its_parent(void **state)
{
    (void)state;
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t us = fork();
    if (us == 0) {
        pllm_redis_private *redis;
        int pid = 0;
        if (pllm_redis_private_open(NULL, folder, NULL, 10000, &redis) == PLLM_OK)
            pid = pllm_redis_private_pid(redis);
        (void)!write(ends[1], &pid, sizeof pid);
        for (;;) pause();
    }
    int pid = 0;
    assert_int_equal(read(ends[0], &pid, sizeof pid), sizeof pid);
    assert_true(pid > 0);
    int handle = (int)syscall(SYS_pidfd_open, pid, 0);
    assert_true(handle >= 0);
    kill(pid, SIGSTOP);
    kill(us, SIGKILL);
    waitpid(us, NULL, 0);
    pid_t later = fork();
    if (later == 0) {
        poll(NULL, 0, 200);
        kill(pid, SIGCONT);
        _exit(0);
    }
    pllm_redis_private *next;
    assert_int_equal(pllm_redis_private_open(NULL, folder, NULL, 10000, &next), PLLM_OK);
    waitpid(later, NULL, 0);
    struct pollfd gone = {.fd = handle, .events = POLLIN};
    assert_int_equal(poll(&gone, 1, 10000), 1);
    assert_true(pings(next));
    pllm_redis_private_close(next);
    close(handle);
    close(ends[0]);
    close(ends[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_answers_and_goes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_tended, setup, teardown),
        cmocka_unit_test_setup_teardown(test_not_there, setup, teardown),
        cmocka_unit_test_setup_teardown(test_goes_with_its_parent, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
