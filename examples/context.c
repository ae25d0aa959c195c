/* context.c - the library's memory through one's own allocator, and how a failure is told.
 *
 * A context fixes the allocator and the log when it opens; everything opened with it uses them.
 * Here the allocator counts, so that the program can show that nothing stays behind.
 *
 * run:
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <pagedllm/context.h>

typedef struct counter {
    int64_t live; /* blocks handed out and not yet returned */
} counter;

static void *counting_allocate(void *user, uint64_t bytes, uint64_t alignment)
{
    counter *counter = user;
    void *pointer = aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
    if (pointer) counter->live++;
    return pointer;
}

static void counting_release(void *user, void *pointer)
{
    counter *counter = user;
    counter->live--;
    free(pointer);
}

int main(void)
{
    counter counter = {0};
    pllm_context_options options = {
        .struct_bytes = sizeof options,
        .log_level = PLLM_LOG_WARN,
        .user = &counter,
        .allocate = counting_allocate,
        .release = counting_release,
    };
    pllm_context *context;
    if (pllm_context_open(&options, &context) < 0) {
        fprintf(stderr, "context: %s\n", pllm_last_error()->text);
        return 1;
    }
    printf("PagedLLM %s, %" PRId64 " block in use\n", pllm_version(), counter.live);
    pllm_context_close(context);

    options.release = NULL; /* a mistake, to see what it says */
    int status = pllm_context_open(&options, &context);
    printf("%s: %s\n", pllm_status_name(status), pllm_last_error()->text);
    return status == PLLM_EINVAL && counter.live == 0 ? 0 : 1;
}
