/* virtual_disk.c - requests wait in an array until a seeded number of polls has passed. */
#include <errno.h>
#include <string.h>
#include "virtual_disk.h"

enum { DEPTH_MAX = 32 };

typedef struct virtual_request {
    pllm_disk_request request;
    uint32_t delay;
} virtual_request;

typedef struct virtual_disk {
    pllm_disk base;
    virtual_disk_options options;
    uint64_t random, calls, *calls_out;
    uint32_t count, depth;
    virtual_request requests[DEPTH_MAX];
    unsigned char *bytes;
} virtual_disk;

static uint32_t random_below(virtual_disk *disk, uint32_t below)
{
    disk->random = disk->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((disk->random >> 33) % below);
}

static int call_fails(virtual_disk *disk)
{
    if (disk->calls_out) ++*disk->calls_out;
    return disk->calls++ == disk->options.fail_at && disk->options.counted;
}

static void disk_close(pllm_disk *base)
{
    virtual_disk *disk = (virtual_disk *)base;
    pllm_free(base->context, disk->bytes);
    pllm_free(base->context, disk);
}

static int disk_submit(pllm_disk *base, const pllm_disk_request *request)
{
    virtual_disk *disk = (virtual_disk *)base;
    if (disk->count == disk->depth) return PLLM_EBUSY;
    if (request->offset + request->bytes > disk->options.bytes || request->bytes % 4096)
        return pllm_fail(PLLM_EINVAL, 0, "a request beyond the virtual disk");
    if (call_fails(disk)) return pllm_fail(PLLM_EIO, EIO, "injected failure: submit");
    disk->requests[disk->count].request = *request;
    disk->requests[disk->count++].delay = random_below(disk, disk->options.delay_max + 1);
    return PLLM_OK;
}

static int request_run(virtual_disk *disk, const pllm_disk_request *request)
{
    unsigned char *at = disk->bytes + request->offset;
    uint32_t chance = random_below(disk, 1000);
    if (call_fails(disk)) return PLLM_EIO;
    if (request->write) {
        int fails = chance < disk->options.write_failures;
        memcpy(at, request->buffer, fails ? request->bytes / 2 : request->bytes);
        return fails ? PLLM_EIO : PLLM_OK;
    }
    if (chance < disk->options.read_failures) return PLLM_EIO;
    if (chance >= 1000 - disk->options.corruptions)
        at[random_below(disk, (uint32_t)request->bytes)] ^= 0x10;
    memcpy(request->buffer, at, request->bytes);
    return PLLM_OK;
}

static int disk_poll(pllm_disk *base, pllm_disk_completion *completions, uint32_t completion_max,
                     uint64_t timeout_ns)
{
    virtual_disk *disk = (virtual_disk *)base;
    uint32_t done = 0;
    do { /* waiting is what makes time pass */
        uint32_t start = disk->count ? random_below(disk, disk->count) : 0;
        for (uint32_t i = 0, count = disk->count; i < count && done < completion_max; i++) {
            virtual_request *entry = &disk->requests[(start + i) % count];
            if (entry->request.bytes == 0) continue;
            if (entry->delay) {
                entry->delay--;
                continue;
            }
            int status = request_run(disk, &entry->request);
            completions[done++] = (pllm_disk_completion){
                .cookie = entry->request.cookie, .status = status, .native = status ? EIO : 0};
            entry->request.bytes = 0;
        }
        uint32_t kept = 0;
        for (uint32_t i = 0; i < disk->count; i++)
            if (disk->requests[i].request.bytes) disk->requests[kept++] = disk->requests[i];
        disk->count = kept;
    } while (!done && disk->count && timeout_ns && completion_max);
    return (int)done;
}

static uint32_t disk_depth(const pllm_disk *base)
{
    return ((const virtual_disk *)base)->depth;
}

static const pllm_disk_ops virtual_ops = {
    .name = "sim",
    .close = disk_close,
    .submit = disk_submit,
    .poll = disk_poll,
    .depth = disk_depth,
};

int virtual_disk_open(const pllm_context *context, const virtual_disk_options *options,
                      pllm_disk **disk_out)
{
    *disk_out = NULL;
    virtual_disk *disk = pllm_alloc(context, sizeof *disk);
    if (!disk) return pllm_fail_memory("a virtual disk", sizeof *disk);
    disk->base.ops = &virtual_ops;
    disk->base.context = context;
    disk->options = *options;
    disk->random = options->seed;
    disk->depth = options->depth && options->depth < DEPTH_MAX ? options->depth : 8;
    disk->bytes = pllm_alloc(context, options->bytes);
    if (!disk->bytes) {
        pllm_free(context, disk);
        return pllm_fail_memory("a virtual disk", options->bytes);
    }
    *disk_out = &disk->base;
    return PLLM_OK;
}

void virtual_disk_heal(pllm_disk *base)
{
    virtual_disk *disk = (virtual_disk *)base;
    disk->options.read_failures = disk->options.write_failures = disk->options.corruptions = 0;
    disk->options.counted = 0;
}

void virtual_disk_count_into(pllm_disk *base, uint64_t *calls)
{
    ((virtual_disk *)base)->calls_out = calls;
}
