/* log.h - logs of what a pool was asked for: written while it works, read, made up, replayed.
 *
 *     pagedllm-pool-log 1
 *     a 0 4096 1          id, bytes, stream; 0 is the CPU
 *     r 0 2               the block is used on stream 2 too
 *     f 0 1               freed on stream 1
 *
 * An id stands for one block until it is freed; then it may be given again. Lines that begin with #
 * and empty ones say nothing. Threads: one caller at a time per log. */
#ifndef PLLM_POOL_LOG_H
#define PLLM_POOL_LOG_H

#include <pagedllm/pool.h>
#include "base/context.h"

#define PLLM_POOL_LOG_HEAD "pagedllm-pool-log 1"
enum { PLLM_POOL_LOG_STREAMS = 64, PLLM_POOL_LOG_STEPS_MAX = 16 << 20 };

typedef struct pllm_pool_step {
    uint64_t bytes; /* of an allocation */
    uint32_t place; /* of the block in an array of place_count: places are used again */
    uint8_t kind;   /* 'a', 'f', 'r' */
    uint8_t stream;
    uint16_t unused;
} pllm_pool_step;

typedef struct pllm_pool_log {
    const pllm_context *context;
    pllm_pool_step *steps;
    uint32_t step_count, step_max, place_count, stream_count; /* streams 0 to stream_count - 1 */
    uint64_t live_bytes, peak_bytes; /* asked for, at the end and at most */
    uint32_t live_count, peak_count;
    uint32_t *unused; /* places, while a log is made */
    uint32_t unused_count, unused_max;
    uint64_t *sizes; /* of places in use; 0: not */
    uint32_t size_max;
} pllm_pool_log;

/* Errors: EINVAL with the line's number, ENOMEM, ELIMIT; then *log_out is NULL. */
int pllm_pool_log_parse(const pllm_context *context, const char *text, uint64_t bytes,
                        pllm_pool_log **log_out);
void pllm_pool_log_close(pllm_pool_log *log); /* NULL is fine */
int pllm_pool_log_write(const pllm_pool_log *log, pllm_pool_write write, void *user);

/* Logs step by step. Errors: ENOMEM, ELIMIT, EINVAL (no bytes, or no block there). */
int pllm_pool_log_open(const pllm_context *context, pllm_pool_log **log_out);
int pllm_pool_log_allocate(pllm_pool_log *log, uint64_t bytes, uint32_t stream,
                           uint32_t *place_out);
int pllm_pool_log_free(pllm_pool_log *log, uint32_t place, uint32_t stream);
int pllm_pool_log_record(pllm_pool_log *log, uint32_t place, uint32_t stream);

/* The bundled ones (workloads.c), the same whenever they are made. */
typedef struct pllm_pool_workload {
    const char *name, *what;
    int (*make)(pllm_pool_log *log);
} pllm_pool_workload;
extern const pllm_pool_workload pllm_pool_workloads[];
extern const uint32_t pllm_pool_workload_count;

/* Text on its way out: lines gather in a buffer. The first failure of write ends it. */
typedef struct pool_writer {
    pllm_pool_write write; /* NULL: nobody listens */
    void *user;
    int status;
    uint32_t used;
    char text[4096];
} pool_writer;
void pool_writer_begin(pool_writer *writer, pllm_pool_write write, void *user);
int pool_writer_end(pool_writer *writer);
void pool_writer_text(pool_writer *writer, const char *text);
void pool_writer_format(pool_writer *writer, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void pool_writer_allocated(pool_writer *writer, uint64_t id, uint64_t bytes, uint32_t stream);
void pool_writer_did(pool_writer *writer, char kind, uint64_t id, uint32_t stream); /* 'f', 'r' */

#endif
