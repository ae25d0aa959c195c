/* elastic.c - two models with KV caches of their own share one limit of device memory.
 *
 *     cc elastic.c $(pkg-config --cflags --libs pagedllm) -o elastic && ./elastic [DEVICE]
 *
 * DEVICE is "host" (the default), "cuda" or "cuda:1". Each model reserves far more addresses than
 * there is memory; what one gives back the other can have. Exits 0 if every byte was where it
 * should be and every limit held.
 *
 * run: host
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <pagedllm/vmm.h>

#define MIB ((uint64_t)1 << 20)
enum { CHECK_BYTES = 4096 };

static int failed(const char *what)
{
    fprintf(stderr, "elastic: %s: %s\n", what, pllm_last_error()->text);
    return 1;
}

static void show(pllm_vmm *vmm, const char *when)
{
    pllm_vmm_stats all = {.struct_bytes = sizeof all};
    pllm_vmm_pool_stats models[2] = {{.struct_bytes = sizeof models[0]}};
    uint32_t count = 0;
    pllm_vmm_stats_get(vmm, &all);
    pllm_vmm_list(vmm, models, 2, &count);
    printf("%s: %llu of %llu MiB\n", when, (unsigned long long)(all.physical_bytes / MIB),
           (unsigned long long)(all.limit_bytes / MIB));
    for (uint32_t i = 0; i < count && i < 2; i++)
        printf("  %-6s %6llu MiB of addresses, %3llu allocated, %3llu mapped, %3llu kept\n",
               models[i].name, (unsigned long long)(models[i].capacity_bytes / MIB),
               (unsigned long long)(models[i].allocated_bytes / MIB),
               (unsigned long long)(models[i].mapped_bytes / MIB),
               (unsigned long long)(models[i].kept_bytes / MIB));
}

typedef struct cache { /* one model's KV cache: a block that grows where it is */
    pllm_vmm_pool *pool;
    uint64_t address, bytes;
    unsigned char mark;
} cache;

static int cache_grow(pllm_device *device, pllm_stream *stream, cache *c, uint64_t bytes)
{
    unsigned char line[CHECK_BYTES];
    int status;
    if (c->address) {
        status = pllm_vmm_block_grow(c->pool, c->address, bytes);
    } else {
        pllm_vmm_block_options options = {.struct_bytes = sizeof options,
                                          .bytes = bytes,
                                          .room_bytes = 1024 * MIB - bytes}; /* of addresses */
        status = pllm_vmm_block_allocate(c->pool, &options, &c->address);
    }
    if (status < 0) return status;
    memset(line, c->mark, sizeof line);
    for (uint64_t at = c->bytes; at < bytes && status == PLLM_OK; at += MIB)
        status = pllm_device_write(device, stream, c->address + at, sizeof line, line);
    c->bytes = bytes;
    return status;
}

static int cache_is_right(pllm_device *device, pllm_stream *stream, const cache *c)
{
    unsigned char line[CHECK_BYTES], wanted[CHECK_BYTES];
    memset(wanted, c->mark, sizeof wanted);
    for (uint64_t at = 0; at < c->bytes; at += MIB)
        if (pllm_device_read(device, stream, c->address + at, sizeof line, line) < 0 ||
            memcmp(line, wanted, sizeof line) != 0)
            return 0;
    return 1;
}

static int serve(pllm_device *device, pllm_stream *stream, pllm_vmm *vmm)
{
    cache large = {.mark = 1}, small = {.mark = 2};
    pllm_vmm_pool_options options = {.struct_bytes = sizeof options,
                                     .capacity_bytes = 4096 * MIB,
                                     .kept_bytes = PLLM_UNLIMITED,
                                     .ahead_bytes = 32 * MIB};
    if (pllm_vmm_register(vmm, "large", &options, &large.pool) < 0) return failed("register");
    options.minimum_bytes = 32 * MIB; /* the small one always gets so much */
    if (pllm_vmm_register(vmm, "small", &options, &small.pool) < 0) return failed("register");

    uint64_t bytes = 0;
    while (cache_grow(device, stream, &large, bytes + 16 * MIB) == PLLM_OK) bytes += 16 * MIB;
    printf("large stops at %llu MiB: %s\n", (unsigned long long)(bytes / MIB),
           pllm_last_error()->text);
    if (cache_grow(device, stream, &small, 32 * MIB) < 0) return failed("the small one's minimum");
    show(vmm, "both are full");

    /* The large one's newest sequences have ended, and nothing reads them any more. */
    if (pllm_vmm_block_grow(large.pool, large.address, bytes / 2) < 0) return failed("shrink");
    large.bytes = bytes / 2;
    if (cache_grow(device, stream, &small, bytes / 2 + 16 * MIB) < 0)
        return failed("growing into what was given back");
    show(vmm, "half of the large one's went to the small one");
    if (!cache_is_right(device, stream, &large) || !cache_is_right(device, stream, &small)) {
        fprintf(stderr, "elastic: a cache does not hold what was written\n");
        return 1;
    }
    if (pllm_vmm_block_free_after(large.pool, large.address, stream) < 0) return failed("free");
    pllm_vmm_unregister(small.pool); /* at once */
    while (pllm_vmm_poll(vmm) > 0) continue;
    uint64_t freed;
    pllm_vmm_compact(vmm, &freed);
    show(vmm, "at the end");
    pllm_vmm_stats all = {.struct_bytes = sizeof all};
    if (pllm_vmm_stats_get(vmm, &all) < 0) return failed("stats");
    return all.physical_bytes != 0 || all.physical_peak_bytes > all.limit_bytes;
}

int main(int argc, char **argv)
{
    pllm_device *device;
    pllm_stream *stream;
    pllm_vmm *vmm;
    pllm_vmm_options options = {.struct_bytes = sizeof options, .limit_bytes = 192 * MIB};
    if (pllm_device_open(NULL, argc > 1 ? argv[1] : "host", &device) < 0) return failed("device");
    if (pllm_stream_open(device, NULL, &stream) < 0) return failed("stream");
    if (pllm_vmm_open(NULL, device, &options, &vmm) < 0) return failed("vmm");
    int result = serve(device, stream, vmm);
    pllm_vmm_close(vmm);
    pllm_stream_close(device, stream);
    pllm_device_close(device);
    if (result == 0) printf("every byte was where it should be, and every limit held\n");
    return result;
}
