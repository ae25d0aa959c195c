/* disk_sim.c - a disk in memory with a virtual clock; completions come in the order of seeded
 * times, so neighbours overtake each other as on a real queue. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "tier/disk_sim.h"
#include "tier/spill.h"

enum { DEPTH = 16, DEPTH_MAX = 64 };

typedef struct disk_sim {
    pllm_disk base;
    pllm_device *device;
    char *bytes;
    uint64_t file_bytes, latency_ns_max, random, clock_ns;
    uint32_t depth, count;
    struct {
        pllm_disk_request request;
        uint64_t due_ns;
    } queue[DEPTH_MAX];
} disk_sim;

/* SplitMix64 (Steele, Lea, Flood 2014). */
static uint64_t sim_random(disk_sim *disk)
{
    uint64_t x = disk->random += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static void clock_follow(disk_sim *disk)
{
    uint64_t now = disk->device ? disk->device->ops->now_ns(disk->device) : 0;
    if (now > disk->clock_ns) disk->clock_ns = now;
}

static int sim_submit(pllm_disk *base, const pllm_disk_request *request)
{
    disk_sim *disk = (disk_sim *)base;
    int status = pllm_disk_check(request, disk->file_bytes);
    if (status < 0) return status;
    if (disk->count == disk->depth) return PLLM_EBUSY;
    clock_follow(disk);
    if (!request->write) memset(request->buffer, 0xff, request->bytes);
    disk->queue[disk->count].request = *request;
    disk->queue[disk->count++].due_ns =
        disk->clock_ns + 1 + sim_random(disk) % (disk->latency_ns_max + 1);
    return PLLM_OK;
}

static uint32_t earliest(const disk_sim *disk)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < disk->count; i++)
        if (disk->queue[i].due_ns < disk->queue[best].due_ns) best = i;
    return best;
}

static void complete(disk_sim *disk, uint32_t i, pllm_disk_completion *completion)
{
    const pllm_disk_request *request = &disk->queue[i].request;
    if (request->write)
        memcpy(disk->bytes + request->offset, request->buffer, request->bytes);
    else
        memcpy(request->buffer, disk->bytes + request->offset, request->bytes);
    *completion = (pllm_disk_completion){.cookie = request->cookie};
    disk->queue[i] = disk->queue[--disk->count];
}

static int sim_poll(pllm_disk *base, pllm_disk_completion *completions, uint32_t completion_max,
                    uint64_t timeout_ns)
{
    disk_sim *disk = (disk_sim *)base;
    uint32_t done = 0;
    clock_follow(disk);
    disk->clock_ns += sim_random(disk) % (disk->latency_ns_max / 16 + 1);
    while (disk->count && done < completion_max) {
        uint32_t next = earliest(disk);
        uint64_t due_ns = disk->queue[next].due_ns;
        if (due_ns > disk->clock_ns) {
            if (done) break;
            if (due_ns - disk->clock_ns > timeout_ns) {
                disk->clock_ns += timeout_ns;
                break;
            }
            disk->clock_ns = due_ns;
        }
        complete(disk, next, &completions[done++]);
    }
    return (int)done;
}

static void sim_close(pllm_disk *base)
{
    disk_sim *disk = (disk_sim *)base;
    pllm_disk_completion completion;
    while (disk->count) complete(disk, earliest(disk), &completion);
    pllm_free(base->context, disk->bytes);
    pllm_free(base->context, disk);
}

static uint32_t sim_depth(const pllm_disk *base)
{
    return ((const disk_sim *)base)->depth;
}

static const pllm_disk_ops sim_ops = {
    .name = "sim",
    .close = sim_close,
    .submit = sim_submit,
    .poll = sim_poll,
    .depth = sim_depth,
};

int pllm_disk_open_sim(const pllm_context *context, const pllm_sim_disk_options *options,
                       pllm_disk **disk_out)
{
    *disk_out = NULL;
    if (!options || options->struct_bytes != sizeof *options || options->depth > DEPTH_MAX)
        return pllm_fail(PLLM_EINVAL, 0, "a simulated disk needs options of %zu bytes, depth to %d",
                         sizeof *options, DEPTH_MAX);
    disk_sim *disk = pllm_alloc(context, sizeof *disk);
    if (!disk) return pllm_fail_memory("a simulated disk", sizeof *disk);
    disk->base = (pllm_disk){.ops = &sim_ops, .context = context};
    snprintf(disk->base.folder, sizeof disk->base.folder, "a simulated folder");
    disk->bytes = pllm_alloc(context, options->bytes);
    if (!disk->bytes) {
        pllm_free(context, disk);
        return pllm_fail_memory("a simulated disk", options->bytes);
    }
    disk->file_bytes = options->bytes;
    disk->latency_ns_max = options->latency_ns_max;
    disk->random = options->seed;
    disk->device = options->device;
    disk->depth = options->depth ? options->depth : DEPTH;
    *disk_out = &disk->base;
    return PLLM_OK;
}
