/* disk_faulty.c - a disk that passes requests to another and spoils the chosen ones.
 *
 * A request that is to fail, or a write that is to be lost, never reaches the inner disk: it waits
 * here and completes at the next poll. A torn write is passed on half as long. A corrupted read has
 * one bit changed when it completes. So the spoiled bytes are really on the disk, or really not. */
#include <errno.h>
#include <string.h>
#include "tier/disk_sim.h"

enum { DEPTH_MAX = 64 };

typedef struct faulty_request {
    pllm_disk_request request;
    uint32_t in_use, corrupt;
    uint32_t held; /* never passed on: completes at the next poll with status */
    int32_t status;
} faulty_request;

typedef struct disk_faulty {
    pllm_disk base;
    pllm_disk_ops ops; /* ours, under the inner disk's name */
    pllm_disk *inner;
    pllm_faulty_disk_options options;
    pllm_faulty_disk_stats stats;
    uint64_t random;
    faulty_request requests[DEPTH_MAX];
} disk_faulty;

static int chance(disk_faulty *disk, uint32_t permille)
{
    uint64_t x = disk->random += 0x9e3779b97f4a7c15u; /* SplitMix64 (Steele, Lea, Flood 2014) */
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    x ^= x >> 31;
    return x % 1000 < permille;
}

static int native_of(const disk_faulty *disk)
{
    return disk->options.native ? disk->options.native : EIO;
}

/* What becomes of this request; number: among all, kind_number: among reads or writes. */
static void choose(disk_faulty *disk, faulty_request *entry, uint64_t number, uint64_t kind_number)
{
    const pllm_faulty_disk_options *options = &disk->options;
    int write = entry->request.write != 0;
    if (number == options->fail_at || (options->persistent && number > options->fail_at) ||
        chance(disk, options->fail_permille)) {
        entry->held = 1;
        entry->status = PLLM_EIO;
        disk->stats.failed++;
    } else if (write &&
               (kind_number == options->lose_write_at || chance(disk, options->lose_permille))) {
        entry->held = 1;
        disk->stats.lost++;
    } else if (!write && (kind_number == options->corrupt_read_at ||
                          chance(disk, options->corrupt_permille))) {
        entry->corrupt = 1;
        disk->stats.corrupted++;
    } else if (write && kind_number == options->tear_write_at) {
        entry->request.bytes = entry->request.bytes / 2 / 4096 * 4096;
        entry->held = entry->request.bytes == 0;
        disk->stats.lost++;
    }
}

static int faulty_submit(pllm_disk *base, const pllm_disk_request *request)
{
    disk_faulty *disk = (disk_faulty *)base;
    if (disk->stats.submits++ == disk->options.fail_submit_at)
        return pllm_fail(PLLM_EIO, native_of(disk), "injected failure: disk submit");
    uint32_t slot = 0;
    while (slot < DEPTH_MAX && disk->requests[slot].in_use) slot++;
    if (slot == DEPTH_MAX) return PLLM_EBUSY;
    faulty_request *entry = &disk->requests[slot];
    *entry = (faulty_request){.request = *request, .in_use = 1};
    choose(disk, entry, disk->stats.requests,
           request->write ? disk->stats.writes : disk->stats.reads);
    pllm_disk_request passed = entry->request;
    passed.cookie = slot;
    int status = entry->held ? PLLM_OK : disk->inner->ops->submit(disk->inner, &passed);
    if (status < 0) {
        entry->in_use = 0;
        return status;
    }
    disk->stats.requests++;
    disk->stats.reads += !request->write;
    disk->stats.writes += request->write != 0;
    *(request->write ? &disk->stats.write_bytes : &disk->stats.read_bytes) += request->bytes;
    return PLLM_OK;
}

static int faulty_poll(pllm_disk *base, pllm_disk_completion *completions, uint32_t completion_max,
                       uint64_t timeout_ns)
{
    disk_faulty *disk = (disk_faulty *)base;
    uint32_t count = 0;
    if (disk->stats.polls++ == disk->options.fail_poll_at)
        return pllm_fail(PLLM_EIO, native_of(disk), "injected failure: disk poll");
    for (uint32_t i = 0; i < DEPTH_MAX && count < completion_max; i++) {
        faulty_request *entry = &disk->requests[i];
        if (!entry->in_use || !entry->held) continue;
        entry->in_use = 0;
        completions[count++] = (pllm_disk_completion){entry->request.cookie, entry->status,
                                                      entry->status ? native_of(disk) : 0};
    }
    if (count == completion_max) return (int)count;
    int inner = disk->inner->ops->poll(disk->inner, completions + count, completion_max - count,
                                       count ? 0 : timeout_ns);
    if (inner < 0) return count ? (int)count : inner;
    for (int i = 0; i < inner; i++) {
        pllm_disk_completion *completion = &completions[count + (uint32_t)i];
        faulty_request *entry = &disk->requests[completion->cookie];
        if (entry->corrupt)
            ((char *)entry->request.buffer)[disk->random % entry->request.bytes] ^= 16;
        completion->cookie = entry->request.cookie;
        entry->in_use = 0;
    }
    return (int)count + inner;
}

static void faulty_close(pllm_disk *base)
{
    disk_faulty *disk = (disk_faulty *)base;
    pllm_disk_close(disk->inner);
    pllm_free(base->context, disk);
}

static uint32_t faulty_depth(const pllm_disk *base)
{
    const disk_faulty *disk = (const disk_faulty *)base;
    uint32_t depth = disk->inner->ops->depth(disk->inner);
    return depth < DEPTH_MAX ? depth : DEPTH_MAX;
}

pllm_faulty_disk_options pllm_faulty_disk_none(void)
{
    return (pllm_faulty_disk_options){.struct_bytes = sizeof(pllm_faulty_disk_options),
                                      .fail_at = UINT64_MAX,
                                      .fail_submit_at = UINT64_MAX,
                                      .fail_poll_at = UINT64_MAX,
                                      .corrupt_read_at = UINT64_MAX,
                                      .tear_write_at = UINT64_MAX,
                                      .lose_write_at = UINT64_MAX};
}

int pllm_disk_open_faulty(const pllm_context *context, pllm_disk *inner,
                          const pllm_faulty_disk_options *options, pllm_disk **disk_out)
{
    *disk_out = NULL;
    if (!inner || !options || options->struct_bytes != sizeof *options)
        return pllm_fail(PLLM_EINVAL, 0, "a faulty disk needs another and options of %zu bytes",
                         sizeof *options);
    disk_faulty *disk = pllm_alloc(context, sizeof *disk);
    if (!disk) return pllm_fail_memory("a faulty disk", sizeof *disk);
    disk->base = *inner;
    disk->ops = (pllm_disk_ops){.name = inner->ops->name,
                                .close = faulty_close,
                                .submit = faulty_submit,
                                .poll = faulty_poll,
                                .depth = faulty_depth};
    disk->base.ops = &disk->ops;
    disk->base.context = context;
    disk->inner = inner;
    disk->options = *options;
    disk->random = options->seed;
    *disk_out = &disk->base;
    return PLLM_OK;
}

pllm_faulty_disk_options *pllm_faulty_disk_options_of(pllm_disk *disk)
{
    return &((disk_faulty *)disk)->options;
}

void pllm_faulty_disk_stats_get(const pllm_disk *disk, pllm_faulty_disk_stats *stats_out)
{
    *stats_out = ((const disk_faulty *)disk)->stats;
}
