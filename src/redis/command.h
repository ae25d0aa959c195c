/* command.h - the words of the list `tensor:cmd`: a line of JSON in, a line of JSON out.
 *
 *     {"op":"create","name":"X","dtype":"f32","shape":[2,3],"device":0,"reply":"answers"}
 *     {"op":"get","name":"X","pid":4711}         takes a reference that lives with process 4711
 *     {"op":"get","name":"X","lease_s":30}       takes one for 30 seconds
 *     {"op":"get","name":"X"}                    takes none: the metadata alone
 *     {"op":"delete","name":"X"}                 with pid or lease: gives that reference back
 *
 * An answer goes to the list that "reply" names, if it does; tensor:* is not for answers. Unknown
 * keys are refused, since a misspelt "lease_s" would otherwise be a reference that nobody took.
 * Parsing has no side effects; what a device or a lease means is for the daemon to say.
 *
 * Threads: pure functions. */
#ifndef PLLM_REDIS_COMMAND_H
#define PLLM_REDIS_COMMAND_H

#include "store/registry.h"

enum {
    PLLM_COMMAND_BYTES_MAX = 4096, /* of a line that is looked at */
    PLLM_COMMAND_REPLY_BYTES = 256,
    PLLM_COMMAND_LEASE_S_MAX = 366 * 24 * 3600,
    PLLM_COMMAND_ANSWER_BYTES = 2048,
};

typedef enum pllm_command_op {
    PLLM_COMMAND_CREATE = 1,
    PLLM_COMMAND_GET = 2,
    PLLM_COMMAND_DELETE = 3,
} pllm_command_op;

typedef struct pllm_command {
    uint32_t op; /* pllm_command_op; 0: it could not be read */
    uint32_t dtype, rank, mode, pinned, writable;
    uint32_t pid;
    uint64_t shape[PLLM_STORE_RANK_MAX];
    uint64_t lease_ns; /* the time a reference is taken for; or 0 */
    uint64_t lease;    /* of delete: the lease that get or create told of; or 0 */
    char name[PLLM_STORE_NAME_MAX + 1];
    char device[PLLM_STORE_UUID_BYTES];   /* a number or a UUID; "": the first */
    char reply[PLLM_COMMAND_REPLY_BYTES]; /* the list for the answer; "": nobody waits for it */
} pllm_command;

/* reply is filled as soon as it can be read, also where the rest is refused. Errors: EINVAL, ELIMIT
 * (a shape, the line's length). */
int pllm_command_parse(const char *text, size_t bytes, pllm_command *command_out);

typedef struct pllm_command_answer { /* of what went well */
    const pllm_store_record *record; /* NULL for delete */
    const char *uuid, *ipc_handle;
    uint64_t offset, lease;
} pllm_command_answer;
/* One line of JSON, ended; returns its length. status < 0: answer is not looked at, and the error
 * record's text is in the line. */
size_t pllm_command_answer_text(const pllm_command *command, int status,
                                const pllm_command_answer *answer,
                                char text[PLLM_COMMAND_ANSWER_BYTES]);

#endif
