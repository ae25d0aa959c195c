/* memory.c - a tensor four times the device's limit: written, evicted to disk, read back, verified.
 *
 *     cc memory.c $(pkg-config --cflags --libs pagedllm) -o memory && ./memory [FOLDER]
 *
 * FOLDER is where the spill file lies while the program runs (default: the user's cache folder).
 * Exits 0 if every byte came back. */
#include <stdio.h>
#include <stdlib.h>
#include <pagedllm/memory.h>

enum { MIB = 1 << 20, TENSOR_MIB = 64, LIMIT_MIB = 16 };

static int failed(const char *what)
{
    fprintf(stderr, "memory: %s: %s\n", what, pllm_last_error()->text);
    return 1;
}

static uint32_t word_at(uint64_t index) /* what the tensor should hold */
{
    return (uint32_t)(index * 2654435761u) ^ (uint32_t)(index >> 7);
}

static int write_all(pllm_memory *memory, pllm_tensor tensor, uint32_t *buffer)
{
    for (uint64_t mib = 0; mib < TENSOR_MIB; mib++) {
        for (uint64_t i = 0; i < MIB / 4; i++) buffer[i] = word_at(mib * (MIB / 4) + i);
        if (pllm_memory_write(memory, tensor, mib * MIB, MIB, buffer) < 0) return failed("write");
    }
    return 0;
}

/* Reads through pinned views, 4 MiB at a time: no copy. */
static int verify_all(pllm_memory *memory, pllm_tensor tensor)
{
    uint64_t wrong = 0, index = 0;
    for (uint64_t offset = 0; offset < TENSOR_MIB * (uint64_t)MIB; offset += 4 * MIB) {
        pllm_memory_view views[8];
        uint32_t view_count;
        if (pllm_memory_pin(memory, tensor, offset, 4 * MIB, PLLM_MEMORY_READ, views, 8,
                            &view_count) < 0)
            return failed("pin");
        for (uint32_t v = 0; v < view_count; v++) {
            const uint32_t *words = views[v].data;
            for (uint64_t i = 0; i < views[v].bytes / 4; i++) wrong += words[i] != word_at(index++);
        }
        if (pllm_memory_unpin(memory, tensor, offset, 4 * MIB) < 0) return failed("unpin");
    }
    if (wrong) fprintf(stderr, "memory: %llu words came back wrong\n", (unsigned long long)wrong);
    return wrong != 0;
}

static int run(pllm_memory *memory, uint32_t *buffer)
{
    pllm_tensor tensor;
    if (pllm_memory_allocate(memory, TENSOR_MIB * (uint64_t)MIB, PLLM_MEMORY_SEQUENTIAL, &tensor) <
        0)
        return failed("allocate");
    if (write_all(memory, tensor, buffer)) return 1;
    pllm_memory_seal(memory, tensor); /* read only from now on */
    uint64_t evicted;
    if (pllm_memory_evict_range(memory, tensor, 0, TENSOR_MIB * (uint64_t)MIB, &evicted) < 0)
        return failed("evict");
    printf("evicted the last %llu MiB from the device; nothing is resident\n",
           (unsigned long long)(evicted / MIB));
    if (verify_all(memory, tensor)) return 1;
    pllm_memory_stats stats = {.struct_bytes = sizeof stats};
    if (pllm_memory_stats_get(memory, &stats) < 0) return failed("stats");
    printf("read back %d MiB right, with never more than %llu MiB on the device\n", TENSOR_MIB,
           (unsigned long long)(stats.resident_peak_bytes / MIB));
    printf("disk: %llu MiB written, %llu MiB read; pages: %llu evicted, %llu read ahead, of which "
           "%llu used\n",
           (unsigned long long)(stats.disk_write_bytes / MIB),
           (unsigned long long)(stats.disk_read_bytes / MIB), (unsigned long long)stats.evictions,
           (unsigned long long)stats.prefetched, (unsigned long long)stats.prefetch_used);
    if (pllm_memory_deallocate(memory, tensor) < 0) return failed("deallocate");
    return 0;
}

int main(int argc, char **argv)
{
    pllm_memory_options options = {
        .struct_bytes = sizeof options,
        .vram_limit_bytes = LIMIT_MIB * (uint64_t)MIB,
        .nvme_path = argc > 1 ? argv[1] : NULL,
        .nvme_size_bytes = 2 * TENSOR_MIB * (uint64_t)MIB,
    };
    pllm_memory *memory;
    if (pllm_memory_open(NULL, &options, &memory) < 0) return failed("open");
    uint32_t *buffer = malloc(MIB);
    int result = buffer ? run(memory, buffer) : 1;
    free(buffer);
    pllm_memory_close(memory);
    return result;
}
