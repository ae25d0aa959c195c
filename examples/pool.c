/* pool.c - blocks of a device from a caching allocator, ordered by two streams.
 *
 *     cc pool.c $(pkg-config --cflags --libs pagedllm) -o pool && ./pool [DEVICE]
 *
 * DEVICE is "host" (the default) or "cuda". One stream writes, the other reads; the block is freed
 * while both may still be at work, and nothing is overwritten. Exits 0 if every byte was right. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <pagedllm/pool.h>

enum { MIB = 1 << 20, ROUNDS = 8 };

static int failed(const char *what)
{
    fprintf(stderr, "pool: %s: %s\n", what, pllm_last_error()->text);
    return 1;
}

/* What the pool calls when neither it nor the device has anything left. */
static int out_of_memory(void *user, pllm_pool *pool, uint64_t bytes, uint32_t attempt)
{
    uint64_t *spare = user;
    if (attempt > 0 || *spare == 0) return 0;
    printf("out of memory for %llu bytes: gives up its spare block\n", (unsigned long long)bytes);
    if (pllm_pool_free(pool, *spare, 0, NULL) < 0) return 0;
    *spare = 0;
    return 1;
}

/* A block of one stream, which the other uses too. */
static int one_round(pllm_device *device, pllm_pool *pool, pllm_stream *writer, pllm_stream *reader,
                     unsigned char *bytes, int round)
{
    uint64_t address, size = (uint64_t)(1 + round % 3) * MIB;
    if (pllm_pool_allocate(pool, size, writer, &address) < 0) return failed("allocate");
    memset(bytes, round + 1, size);
    if (pllm_device_write(device, writer, address, size, bytes) < 0) return failed("write");
    if (pllm_pool_record_stream(pool, address, reader) < 0) return failed("record");
    memset(bytes, 0, size);
    if (pllm_device_read(device, reader, address, size, bytes) < 0) return failed("read");
    if (pllm_pool_free(pool, address, size, writer) < 0) return failed("free");
    for (uint64_t i = 0; i < size; i++)
        if (bytes[i] != round + 1) {
            fprintf(stderr, "pool: byte %llu is wrong\n", (unsigned long long)i);
            return 1;
        }
    return 0;
}

static int run(pllm_device *device, pllm_pool *pool, uint64_t *spare, unsigned char *bytes)
{
    pllm_stream *writer, *reader;
    if (pllm_stream_open(device, NULL, &writer) < 0) return failed("stream");
    if (pllm_stream_open(device, NULL, &reader) < 0) return failed("stream");
    if (pllm_pool_allocate(pool, 8 * MIB, NULL, spare) < 0) return failed("allocate");
    int result = 0;
    for (int round = 0; round < ROUNDS && result == 0; round++)
        result = one_round(device, pool, writer, reader, bytes, round);
    uint64_t large;
    if (result == 0 && pllm_pool_allocate(pool, 14 * MIB, writer, &large) < 0)
        result = failed("allocate");
    pllm_pool_stats stats = {.struct_bytes = sizeof stats};
    if (result == 0 && pllm_pool_stats_get(pool, &stats) < 0) result = failed("stats");
    printf("%llu allocations, %llu of them without a call of the device; at most %llu MiB held\n",
           (unsigned long long)stats.allocate_calls, (unsigned long long)stats.hits,
           (unsigned long long)(stats.reserved_peak_bytes / MIB));
    /* Before a stream goes, the pool is told. */
    if (pllm_pool_forget_stream(pool, writer) < 0 || pllm_pool_forget_stream(pool, reader) < 0)
        result = failed("forget");
    pllm_stream_close(device, writer);
    pllm_stream_close(device, reader);
    return result;
}

int main(int argc, char **argv)
{
    pllm_device *device;
    pllm_pool *pool;
    uint64_t spare = 0;
    pllm_pool_options options = {.struct_bytes = sizeof options,
                                 .limit_bytes = 16 * MIB,
                                 .out_of_memory = out_of_memory,
                                 .user = &spare};
    if (pllm_device_open(NULL, argc > 1 ? argv[1] : "host", &device) < 0) return failed("open");
    if (pllm_pool_open(NULL, device, &options, &pool) < 0) return failed("pool");
    unsigned char *bytes = malloc(3 * MIB);
    int result = bytes ? run(device, pool, &spare, bytes) : 1;
    free(bytes);
    pllm_pool_close(pool);
    pllm_device_close(device);
    return result;
}
