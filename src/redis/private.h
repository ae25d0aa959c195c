/* private.h - a redis-server of one's own, on a unix socket in a folder that only its owner
 * can enter. It listens on no port, writes nothing to disk, and ends with the process that started
 * it, however that ends.
 *
 * Threads: one at a time; the thread that opens one must outlive it (the kernel ends the server
 * with its parent thread). */
#ifndef PLLM_REDIS_PRIVATE_H
#define PLLM_REDIS_PRIVATE_H

#include "base/context.h"

typedef struct pllm_redis_private pllm_redis_private;

/* Starts program (NULL: redis-server, looked up in PATH) in folder, which is there already, and
 * returns once it answers or after timeout_ms. The socket is folder/redis.sock; its log
 * folder/redis.log. Errors: ENOTFOUND (not installed: says how to get it), ETIMEDOUT, EIO (it ended
 * at once: with the last line of its log), ELIMIT (a path too long for a socket), ENOMEM. */
int pllm_redis_private_open(const pllm_context *context, const char *folder, const char *program,
                            uint32_t timeout_ms, pllm_redis_private **redis_out);
/* "unix:///..."; for pllm_mirror_open. */
const char *pllm_redis_private_address(const pllm_redis_private *redis);
/* Starts it again if it has ended by itself; OK also where it still runs. Never waits for it to
 * answer: who uses it connects again and again. Errors: as open but ETIMEDOUT. */
int pllm_redis_private_tend(pllm_redis_private *redis);
int pllm_redis_private_pid(const pllm_redis_private *redis); /* for tests */
void pllm_redis_private_close(pllm_redis_private *redis);    /* ends it; NULL is fine */

#endif
