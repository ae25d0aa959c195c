/* mirror.h - Redis as the registry that others read: what the daemon holds, written behind it, and
 * the list `tensor:cmd`, whose commands it carries out.
 *
 * The daemon is the authority. Redis may be away, restart, or lose all it has: nothing in the
 * daemon waits for it, and what it lost is registered again as soon as it answers.
 *
 *     tensor:NAME   a hash:
 *       name dtype shape device bytes ipc_handle owner_pid refcount ctime mtime    as seed 001 says
 *       uuid          of the device; its number (device) may mean another one to somebody else
 *       generation    decimal; greater for each tensor that ever had a name here
 *       state         creating ready spilled
 *       offset        of the tensor behind its legacy handle, or in a chunk that it shares
 *       node          which daemon registered it: HOST:SOCKET
 *       owner_start   owner_pid's start time (/proc/PID/stat, field 22), against reused numbers
 *       kind          vmm legacy;  uid gid mode flags
 *       version       1: of this layout
 *       sync          which full registration wrote it last
 *     tensor:cmd    the list of commands (command.h); answers go to the list that "reply" names and
 *                   are dropped after a minute if nobody takes them
 *     tensor-store:NODE   which full registration is in force. Gone: Redis lost its data. Renewed
 *                   every second; gone after a minute without: that daemon ended without a word
 *
 * ctime and mtime are seconds since 1970. Every hash is written whole by one Lua script, which
 * refuses to go back to an older generation, or over another living daemon's tensor; removal is by
 * generation too. A full registration begins with every connection: all hashes are written, then
 * hashes of this node that were not among them are removed, and those of daemons that are gone.
 * Between registrations 512 slots a second are told once more, against losses in part.
 *
 * How: changes go to a list, at most one entry a tensor; a thread sends it, pipelined. Another
 * thread waits on tensor:cmd with a connection of its own and hands commands to the daemon's loop.
 * While Redis is away changes are forgotten at once, since its return means a full registration.
 *
 * Whoever may write to that Redis may do what the daemon may: it should be on a unix socket, or
 * behind a password. Threads: all calls are the daemon's loop's. */
#ifndef PLLM_REDIS_MIRROR_H
#define PLLM_REDIS_MIRROR_H

#include "store/server.h"

typedef struct pllm_mirror pllm_mirror;

typedef struct pllm_mirror_options {
    uint32_t struct_bytes;
    const char *address; /* unix://PATH[?db=N] or redis://[[USER]:PASSWORD@]HOST[:PORT][/DB] */
    uint32_t timeout_ms; /* of connecting and of every answer; 0: 2,000 */
} pllm_mirror_options;

typedef struct pllm_mirror_address { /* an address in its parts */
    char path[108];                  /* "": tcp */
    char host[256], user[64], password[128];
    uint32_t port, database;
} pllm_mirror_address;
/* Errors: EINVAL with a right one shown. */
int pllm_mirror_address_parse(const char *text, pllm_mirror_address *address_out);

/* Takes part in the server (pllm_store_server_add), which closes it with itself: then this daemon's
 * hashes are removed, as far as Redis answers in timeout_ms. Redis need not be there yet.
 * Errors: EINVAL (address), ENOMEM, ELIMIT (threads), EIO. */
int pllm_mirror_open(const pllm_context *context, pllm_store_server *server,
                     const pllm_mirror_options *options, pllm_mirror **mirror_out);

typedef struct pllm_mirror_stats {
    uint32_t connected;
    uint64_t written, removed, refused; /* hashes; refused: another daemon's, or another type */
    uint64_t commands, bad_commands, registrations, connects;
} pllm_mirror_stats;
void pllm_mirror_stats_get(pllm_mirror *mirror, pllm_mirror_stats *stats_out);

#endif
