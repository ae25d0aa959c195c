/* private.c - starting and ending a redis-server (private.h).
 *
 * The child asks the kernel to be killed with its parent before it becomes redis-server, and then
 * looks whether the parent is still there, since it may have died in between.
 *
 * A server that ends removes its socket, and one whose parent was killed may still do so when the
 * next one listens there already. So each holds a lock on folder/redis.lock for its life, by a
 * descriptor that it inherits, and the next one starts when the lock is free. Whoever removes the
 * files holds it, too. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "base/clock.h"
#include "redis/private.h"

struct pllm_redis_private {
    const pllm_context *context;
    pid_t pid; /* 0: none runs */
    char program[256], socket[108], log[256], lock[256], address[128];
};

enum { EXEC_FAILED = 127, EARLIER_MS = 1000 };

/* In the child: nothing here may allocate. */
static void child(const pllm_redis_private *redis, pid_t parent, int log, int lock)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(1);
    setsid();                /* a terminal's ^C is for us: we end it in order */
    fcntl(lock, F_SETFD, 0); /* the lock goes with it */
    int null = open("/dev/null", O_RDWR);
    dup2(null, 0);
    dup2(log, 1);
    dup2(log, 2);
    execlp(redis->program, redis->program, "--port", "0", "--unixsocket", redis->socket,
           "--unixsocketperm", "600", "--save", "", "--appendonly", "no", "--daemonize", "no",
           "--databases", "1", (char *)NULL);
    _exit(EXEC_FAILED);
}

/* 1: the file is locked, and is the one that has the name. */
static int lock_try(const pllm_redis_private *redis, int fd)
{
    struct stat ours, named;
    return flock(fd, LOCK_EX | LOCK_NB) == 0 && fstat(fd, &ours) == 0 &&
           stat(redis->lock, &named) == 0 && ours.st_ino == named.st_ino &&
           ours.st_dev == named.st_dev;
}

/* Waits for a server whose parent is gone, or that removes its files; one that takes too long is
 * killed. The descriptor holds the lock. */
static int lock_take(const pllm_redis_private *redis, int *fd_out)
{
    for (uint32_t ms = 0; ms < 2 * EARLIER_MS; ms += 2) {
        char text[16] = "";
        int fd = open(redis->lock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (fd < 0)
            return pllm_fail(PLLM_EIO, errno, "cannot open %s: %s", redis->lock, strerror(errno));
        *fd_out = fd;
        if (lock_try(redis, fd)) return PLLM_OK;
        int pid = pread(fd, text, sizeof text - 1, 0) > 0 ? atoi(text) : 0;
        if (ms == EARLIER_MS && pid > 1) kill(pid, SIGKILL);
        close(fd);
        nanosleep(&(struct timespec){.tv_nsec = 2 * 1000 * 1000}, NULL);
    }
    return pllm_fail(PLLM_EIO, 0, "an earlier redis-server still holds %s", redis->lock);
}

static int start(pllm_redis_private *redis)
{
    int lock = -1, status = lock_take(redis, &lock);
    if (status < 0) return status;
    int log = open(redis->log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (log < 0) {
        status = pllm_fail(PLLM_EIO, errno, "cannot write %s: %s", redis->log, strerror(errno));
        close(lock);
        return status;
    }
    unlink(redis->socket); /* of a server that was killed */
    pid_t parent = getpid(), pid = fork();
    if (pid == 0) child(redis, parent, log, lock);
    int error = errno;
    char text[16];
    int bytes = snprintf(text, sizeof text, "%d\n", (int)pid);
    if (pid > 0) (void)!pwrite(lock, text, (size_t)bytes, 0);
    close(log);
    close(lock); /* the child has it still */
    if (pid < 0)
        return pllm_fail(PLLM_EIO, error, "cannot start redis-server: %s", strerror(error));
    redis->pid = pid;
    return PLLM_OK;
}

static int answers(const pllm_redis_private *redis)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    memcpy(to.sun_path, redis->socket, strlen(redis->socket) + 1);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return 0;
    char reply[7] = {0};
    struct timeval wait = {.tv_usec = 200 * 1000};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
    int is = connect(fd, (struct sockaddr *)&to, sizeof to) == 0 &&
             send(fd, "PING\r\n", 6, MSG_NOSIGNAL) == 6 && recv(fd, reply, 5, MSG_WAITALL) == 5 &&
             !memcmp(reply, "+PONG", 5);
    close(fd);
    return is;
}

/* Its log's last line, for a sentence. */
static void log_tail(const pllm_redis_private *redis, char *line, size_t bytes)
{
    char text[2048];
    line[0] = 0;
    FILE *file = fopen(redis->log, "re");
    if (!file) return;
    while (fgets(text, sizeof text, file))
        if (text[0] != '\n') snprintf(line, bytes, "%.*s", (int)strcspn(text, "\n"), text);
    fclose(file);
}

/* It has ended, with this status. */
static int ended(pllm_redis_private *redis, int status)
{
    redis->pid = 0;
    if (WIFEXITED(status) && WEXITSTATUS(status) == EXEC_FAILED)
        return pllm_fail(PLLM_ENOTFOUND, 0,
                         "there is no %s here: install it (Debian: apt-get install redis-server), "
                         "or name a Redis that runs with --redis unix://PATH",
                         redis->program);
    char line[200];
    log_tail(redis, line, sizeof line);
    return pllm_fail(PLLM_EIO, 0, "%s ended at once (%s; its log is %s)", redis->program,
                     line[0] ? line : "without a word", redis->log);
}

static int wait_for_it(pllm_redis_private *redis, uint32_t timeout_ms)
{
    uint64_t deadline = pllm_clock_ns() + timeout_ms * UINT64_C(1000000);
    for (;;) {
        int status;
        if (waitpid(redis->pid, &status, WNOHANG) == redis->pid) return ended(redis, status);
        if (answers(redis)) return PLLM_OK;
        if (pllm_clock_ns() > deadline)
            return pllm_fail(PLLM_ETIMEDOUT, 0, "%s does not answer on %s after %u ms",
                             redis->program, redis->socket, timeout_ms);
        nanosleep(&(struct timespec){.tv_nsec = 2 * 1000 * 1000}, NULL);
    }
}

int pllm_redis_private_open(const pllm_context *context, const char *folder, const char *program,
                            uint32_t timeout_ms, pllm_redis_private **redis_out)
{
    *redis_out = NULL;
    pllm_redis_private *redis = pllm_alloc(context, sizeof *redis);
    if (!redis) return pllm_fail_memory("a private Redis", sizeof *redis);
    redis->context = context;
    int status = PLLM_OK;
    if (!program) program = "redis-server";
    if (snprintf(redis->program, sizeof redis->program, "%s", program) >=
            (int)sizeof redis->program ||
        snprintf(redis->socket, sizeof redis->socket, "%s/redis.sock", folder) >=
            (int)sizeof redis->socket ||
        snprintf(redis->log, sizeof redis->log, "%s/redis.log", folder) >= (int)sizeof redis->log ||
        snprintf(redis->lock, sizeof redis->lock, "%s/redis.lock", folder) >=
            (int)sizeof redis->lock)
        status =
            pllm_fail(PLLM_ELIMIT, 0,
                      "the folder %s is too long a path for a socket: at most 96 bytes", folder);
    snprintf(redis->address, sizeof redis->address, "unix://%s", redis->socket);
    if (status == PLLM_OK) status = start(redis);
    if (status == PLLM_OK) status = wait_for_it(redis, timeout_ms);
    if (status < 0) {
        pllm_redis_private_close(redis);
        return status;
    }
    *redis_out = redis;
    return PLLM_OK;
}

const char *pllm_redis_private_address(const pllm_redis_private *redis)
{
    return redis->address;
}

int pllm_redis_private_pid(const pllm_redis_private *redis)
{
    return redis->pid;
}

int pllm_redis_private_tend(pllm_redis_private *redis)
{
    int status;
    if (redis->pid && waitpid(redis->pid, &status, WNOHANG) == 0) return PLLM_OK;
    if (redis->pid)
        pllm_log(redis->context, PLLM_LOG_WARN, "the private redis-server ended; starting another");
    redis->pid = 0;
    return start(redis);
}

/* Unless the next one uses them already. */
static void files_remove(const pllm_redis_private *redis)
{
    int lock = open(redis->lock, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (lock < 0 || lock_try(redis, lock)) {
        unlink(redis->socket);
        unlink(redis->log);
        unlink(redis->lock);
    }
    if (lock >= 0) close(lock);
}

void pllm_redis_private_close(pllm_redis_private *redis)
{
    if (!redis) return;
    if (redis->pid) {
        /* It has nothing to save: a second is more than it needs. */
        kill(redis->pid, SIGTERM);
        for (uint32_t i = 0; i < 500 && waitpid(redis->pid, NULL, WNOHANG) == 0; i++) {
            nanosleep(&(struct timespec){.tv_nsec = 2 * 1000 * 1000}, NULL);
            if (i == 499) {
                kill(redis->pid, SIGKILL);
                waitpid(redis->pid, NULL, 0);
            }
        }
    }
    files_remove(redis);
    pllm_free(redis->context, redis);
}
