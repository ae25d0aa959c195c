/* doctor.c - pagedllm doctor: what this machine has, measured, and what is missing and how to get
 * it. */
#include <dlfcn.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include "base/clock.h"
#include "base/context.h"
#include "base/size.h"
#include "base/threads.h"
#include "cli/cli.h"
#include "device/device.h"
#include "kernels/kernels.h"
#include "tier/disk.h"

typedef struct findings {
    uint32_t threads;
    const char *kernels;
    pllm_device_info host;
    double memory_bytes_per_second, copy_bytes_per_second;
    double disk_write_bytes_per_second, disk_read_bytes_per_second;
    char disk_name[16], disk_note[160], disk_problem[1024], cuda[160];
    uint64_t memlock_bytes;
} findings;

enum { PROBE_BYTES = 64 << 20, DISK_PROBE_BYTES = 32 << 20, DISK_UNIT = 1 << 20 };

typedef struct reading {
    pllm_threads *threads;
    const uint64_t *data;
    uint64_t sums[64];
} reading;

static void read_body(void *argument, uint32_t index)
{
    reading *r = argument;
    uint64_t first, end, sum = 0;
    pllm_threads_share(r->threads, index, PROBE_BYTES / 8, 8, &first, &end);
    for (uint64_t i = first; i < end; i++) sum += r->data[i];
    r->sums[index & 63] = sum;
}

static int measure_memory(findings *f)
{
    pllm_threads *threads;
    int status = pllm_threads_open(NULL, 0, &threads);
    if (status < 0) return status;
    f->threads = pllm_threads_count(threads);
    pllm_device *device;
    pllm_host_device_options options = {.struct_bytes = sizeof options};
    status = pllm_device_open_host(NULL, &options, &device);
    void *from = NULL, *to = NULL;
    if (status == PLLM_OK) status = device->ops->info(device, &f->host);
    if (status == PLLM_OK) status = device->ops->host_alloc(device, PROBE_BYTES, &from);
    if (status == PLLM_OK) status = device->ops->host_alloc(device, PROBE_BYTES, &to);
    if (status == PLLM_OK) {
        memset(from, 1, PROBE_BYTES);
        memset(to, 2, PROBE_BYTES);
        reading r = {.threads = threads, .data = from};
        uint64_t best_read = UINT64_MAX, best_copy = UINT64_MAX;
        for (int run = 0; run < 5; run++) {
            uint64_t started = pllm_clock_ns();
            pllm_threads_run(threads, read_body, &r);
            uint64_t middle = pllm_clock_ns();
            memcpy(to, from, PROBE_BYTES);
            uint64_t ended = pllm_clock_ns();
            if (middle - started < best_read) best_read = middle - started;
            if (ended - middle < best_copy) best_copy = ended - middle;
        }
        f->memory_bytes_per_second = PROBE_BYTES * 1e9 / (double)best_read;
        f->copy_bytes_per_second = PROBE_BYTES * 1e9 / (double)best_copy;
    }
    if (device && from) device->ops->host_free(device, from, PROBE_BYTES);
    if (device && to) device->ops->host_free(device, to, PROBE_BYTES);
    if (status == PLLM_OK || device) pllm_device_close(device);
    pllm_threads_close(threads);
    return status;
}

/* Every unit once, as many at a time as the disk takes. Bytes a second, or 0 where it failed. */
static double disk_pass(pllm_disk *disk, char *staging, uint32_t write)
{
    uint32_t units = DISK_PROBE_BYTES / DISK_UNIT, sent = 0, done = 0;
    uint64_t started = pllm_clock_ns();
    while (done < units) {
        while (sent < units) {
            pllm_disk_request request = {.buffer = staging + (uint64_t)(sent % 8) * DISK_UNIT,
                                         .offset = (uint64_t)sent * DISK_UNIT,
                                         .bytes = DISK_UNIT,
                                         .write = write,
                                         .cookie = sent};
            if (sent - done >= 8 || disk->ops->submit(disk, &request) < 0) break;
            sent++;
        }
        pllm_disk_completion completions[8];
        int count = disk->ops->poll(disk, completions, 8, 1000000000);
        if (count < 0) return 0;
        for (int i = 0; i < count; i++)
            if (completions[i].status < 0) return 0;
        done += (uint32_t)count;
    }
    return DISK_PROBE_BYTES * 1e9 / (double)(pllm_clock_ns() - started);
}

static void measure_disk(const pllm_settings *settings, findings *f)
{
    char *staging = NULL;
    pllm_disk *disk = NULL;
    if (posix_memalign((void **)&staging, 4096, 8 * DISK_UNIT) != 0) return;
    memset(staging, 3, 8 * DISK_UNIT);
    pllm_disk_options options = {.struct_bytes = sizeof options,
                                 .kind = (pllm_disk_kind)settings->disk_io,
                                 .folder = settings->nvme_path,
                                 .bytes = DISK_PROBE_BYTES,
                                 .staging = staging,
                                 .staging_bytes = 8 * DISK_UNIT};
    if (pllm_disk_open(NULL, &options, &disk) < 0) {
        snprintf(f->disk_problem, sizeof f->disk_problem, "%s", pllm_last_error()->text);
    } else {
        f->disk_write_bytes_per_second = disk_pass(disk, staging, 1);
        f->disk_read_bytes_per_second = disk_pass(disk, staging, 0);
        snprintf(f->disk_name, sizeof f->disk_name, "%s", disk->ops->name);
        snprintf(f->disk_note, sizeof f->disk_note, "%s", disk->note);
        pllm_disk_close(disk);
    }
    free(staging);
}

static void look_for_cuda(findings *f)
{
    void *driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    snprintf(f->cuda, sizeof f->cuda, "%s",
             driver ? "an NVIDIA driver is here, but this build is host-only: the CUDA device "
                      "comes in a later release"
                    : "no NVIDIA driver (libcuda.so.1): host only");
    if (driver) dlclose(driver);
}

static int report_json(const findings *f)
{
    json_t *root = json_pack(
        "{s:s,s:i,s:s,s:I,s:I,s:f,s:f,s:s,s:s,s:s,s:f,s:f,s:I,s:s}", "version", pllm_version(),
        "threads", (int)f->threads, "kernels", f->kernels, "host_total_bytes",
        (json_int_t)f->host.total_bytes, "host_free_bytes", (json_int_t)f->host.free_bytes,
        "memory_read_bytes_per_second", f->memory_bytes_per_second, "memory_copy_bytes_per_second",
        f->copy_bytes_per_second, "disk", f->disk_name, "disk_note", f->disk_note, "disk_problem",
        f->disk_problem, "disk_write_bytes_per_second", f->disk_write_bytes_per_second,
        "disk_read_bytes_per_second", f->disk_read_bytes_per_second, "memlock_bytes",
        (json_int_t)(f->memlock_bytes > INT64_MAX ? -1 : (json_int_t)f->memlock_bytes), "cuda",
        f->cuda);
    char *text = root ? json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(4)) : NULL;
    json_decref(root);
    if (!text) return pllm_fail_memory("the report", 4096);
    puts(text);
    free(text);
    return PLLM_OK;
}

static int report_text(const findings *f)
{
    char total[32], unused[32], memlock[32];
    printf("pagedllm   %s\n", pllm_version());
    printf("processor  %u threads, %s kernels\n", f->threads, f->kernels);
    printf("device     host: %s of memory, %s free\n",
           pllm_size_text(f->host.total_bytes, total, sizeof total),
           pllm_size_text(f->host.free_bytes, unused, sizeof unused));
    printf("device     cuda: %s\n", f->cuda);
    printf("memory     read %.1f GB/s with %u threads, copied %.1f GB/s with one\n",
           f->memory_bytes_per_second * 1e-9, f->threads, f->copy_bytes_per_second * 1e-9);
    if (f->disk_problem[0])
        printf("disk       not usable: %s\n", f->disk_problem);
    else
        printf("disk       %s, written at %.2f GB/s, read at %.2f GB/s%s%s\n", f->disk_name,
               f->disk_write_bytes_per_second * 1e-9, f->disk_read_bytes_per_second * 1e-9,
               f->disk_note[0] ? "; " : "", f->disk_note);
    printf("limits     %s of memory may be locked (ulimit -l); io_uring registers its buffers "
           "within it\n",
           f->memlock_bytes == RLIM_INFINITY
               ? "all"
               : pllm_size_text(f->memlock_bytes, memlock, sizeof memlock));
    return PLLM_OK;
}

int command_doctor(const pllm_settings *settings)
{
    findings f = {.kernels = pllm_kernels_best()->name};
    struct rlimit limit;
    if (getrlimit(RLIMIT_MEMLOCK, &limit) == 0) f.memlock_bytes = limit.rlim_cur;
    int status = measure_memory(&f);
    if (status < 0) return status;
    measure_disk(settings, &f);
    look_for_cuda(&f);
    status = settings->json ? report_json(&f) : report_text(&f);
    if (status < 0 || settings->positional_count == 0) return status;
    pllm_engine *engine;
    status = cli_engine_open(settings, 1, 0, &engine);
    if (status < 0) return status;
    pllm_engine_info info = {.struct_bytes = sizeof info};
    pllm_engine_info_get(engine, &info);
    if (!settings->json)
        printf("model      %s, %u layers; %.1f MB of weights; %.0f bytes of KV a token in %s; "
               "least --vram-limit %llu, "
               "least --kv-limit %llu\n",
               info.family, info.layer_count, (double)info.weight_bytes * 1e-6,
               (double)info.kv_bytes_per_token, info.kv_format,
               (unsigned long long)info.least_vram_bytes, (unsigned long long)info.least_kv_bytes);
    pllm_engine_close(engine);
    return PLLM_OK;
}
