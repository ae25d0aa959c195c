/* doctor.c - pagedllm doctor: what this machine has, measured, and what is missing and how to get
 * it. */
#include <numa.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include "base/clock.h"
#include "base/context.h"
#include "base/size.h"
#include "cli/cli.h"
#include "device/cuda.h"
#include "device/open.h"
#include "engine/parts.h"
#include "kernels/cuda/fatbin.h"
#include "kernels/kernels.h"
#include "tier/disk.h"

enum { GPUS_MAX = 16 };

typedef struct findings {
    uint32_t memory_nodes;
    const char *kernels;
    cli_memory memory;
    uint64_t machine_bytes;
    double disk_write_bytes_per_second, disk_read_bytes_per_second;
    char device_problem[1024]; /* of --device */
    char disk_name[16], disk_note[160], disk_problem[1024], cuda[1024];
    char disk_folder[256];
    uint64_t disk_free_bytes, memlock_bytes;
    const char *missing[8]; /* what is missing, what for, and how to get it */
    uint32_t missing_count;
    pllm_cuda_listing gpus[GPUS_MAX];
    uint32_t gpu_count; /* 0: cuda says why */
    /* of MODEL, where one is given */
    int has_model;
    pllm_engine_info model;
    char model_problem[1024];
} findings;

enum { DISK_PROBE_BYTES = 256 << 20, DISK_UNIT = 1 << 20 };

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

static void measure_disk(const cli_program *cli, findings *f)
{
    const pllm_settings *settings = cli->settings;
    char *staging = NULL;
    pllm_disk *disk = NULL;
    /* On huge pages, as the spill file's own staging is: a request of few segments is twice as
     * fast. */
    if (posix_memalign((void **)&staging, 2 << 20, 8 * DISK_UNIT) != 0) return;
    madvise(staging, 8 * DISK_UNIT, MADV_HUGEPAGE);
    memset(staging, 3, 8 * DISK_UNIT);
    pllm_disk_options options = {.struct_bytes = sizeof options,
                                 .kind = (pllm_disk_kind)settings->disk_io,
                                 .folder = settings->nvme_path,
                                 .bytes = DISK_PROBE_BYTES,
                                 .staging = staging,
                                 .staging_bytes = 8 * DISK_UNIT};
    if (pllm_disk_open(cli->context, &options, &disk) < 0) {
        snprintf(f->disk_problem, sizeof f->disk_problem, "%s", pllm_last_error()->text);
    } else {
        f->disk_write_bytes_per_second = disk_pass(disk, staging, 1);
        /* The first pass may still meet the writing of what was written; the best of three does
         * not. */
        for (int pass = 0; pass < 3 && !cli_interrupted(); pass++) {
            double rate = disk_pass(disk, staging, 0);
            if (rate > f->disk_read_bytes_per_second) f->disk_read_bytes_per_second = rate;
        }
        snprintf(f->disk_name, sizeof f->disk_name, "%s", disk->ops->name);
        snprintf(f->disk_note, sizeof f->disk_note, "%s", disk->note);
        snprintf(f->disk_folder, sizeof f->disk_folder, "%s", disk->folder);
        pllm_disk_close(disk);
        struct statvfs room;
        if (statvfs(f->disk_folder, &room) == 0)
            f->disk_free_bytes = (uint64_t)room.f_bavail * room.f_frsize;
    }
    free(staging);
}

static void look_for_cuda(findings *f)
{
    uint32_t count;
    int status = pllm_cuda_list(NULL, f->gpus, GPUS_MAX, &count);
    f->gpu_count = count < GPUS_MAX ? count : GPUS_MAX;
    if (status < 0)
        snprintf(f->cuda, sizeof f->cuda, "%s", pllm_last_error()->text);
    else
        snprintf(f->cuda, sizeof f->cuda, "%u GPU%s, driver %s for CUDA %u.%u", count,
                 count == 1 ? "" : "s", f->gpus[0].driver[0] ? f->gpus[0].driver : "unknown",
                 f->gpus[0].cuda_major, f->gpus[0].cuda_minor);
}

static void miss(findings *f, const char *what)
{
    if (f->missing_count < sizeof f->missing / sizeof f->missing[0])
        f->missing[f->missing_count++] = what;
}

/* Is the device that was asked for there? */
static void look_for_device(cli_program *cli, findings *f)
{
    cli_engine_choice choice;
    cli_engine_choose(cli, NULL, &choice);
    pllm_device *device;
    if (pllm_engine_open_device(cli->context, &choice.options, &device) < 0)
        snprintf(f->device_problem, sizeof f->device_problem, "%s", pllm_last_error()->text);
    pllm_device_close(device);
}

static void look_for_what_is_missing(findings *f)
{
    if (f->device_problem[0]) miss(f, f->device_problem);
    if (f->disk_problem[0])
        miss(f, "a place to spill to: give a folder on a local disk with --nvme-path");
    else if (strstr(f->disk_note, "tmpfs"))
        miss(f, "a spill folder on a disk (this one is in memory): give one with --nvme-path");
    else if (strstr(f->disk_note, "O_DIRECT"))
        miss(f, "O_DIRECT: a folder on ext4, xfs or btrfs, given with --nvme-path, has it");
    if (!f->disk_problem[0] && strcmp(f->disk_name, "uring") != 0)
        miss(f, "io_uring: Linux 5.6 or later, kernel.io_uring_disabled = 0, and a sandbox that "
                "allows it; until then threads read and write");
    if (f->memlock_bytes < 8 << 20)
        miss(f, "8 MiB of lockable memory for io_uring's registered buffers: ulimit -l 8192, or "
                "memlock in /etc/security/limits.conf");
    if (strcmp(f->kernels, "avx512") != 0 && strcmp(f->kernels, "avx2") != 0)
        miss(f, "vector kernels for this processor (AVX2 or AVX-512): plain C runs, slower");
    if (f->gpu_count > 0 && !pllm_fatbins[0])
        miss(f,
             "kernels for the GPU: this build was made without nvcc; build it where there is one");
}

static void look_at_model(cli_program *cli, findings *f)
{
    pllm_engine *engine;
    f->has_model = 1;
    int status = cli_engine_open(cli, NULL, &engine);
    f->model.struct_bytes = sizeof f->model;
    if (status == PLLM_OK) status = pllm_engine_info_get(engine, &f->model);
    if (status == PLLM_OK) status = cli_stats(cli, engine, NULL);
    pllm_engine_close(engine);
    if (status < 0)
        snprintf(f->model_problem, sizeof f->model_problem, "%s", pllm_last_error()->text);
}

static json_t *model_json(const findings *f)
{
    const pllm_engine_info *m = &f->model;
    if (f->model_problem[0]) return json_pack("{s:o}", "problem", cli_json_text(f->model_problem));
    return json_pack("{s:s,s:I,s:I,s:I,s:I,s:s,s:s,s:I,s:I,s:b}", "family", m->family, "layers",
                     (json_int_t)m->layer_count, "context", (json_int_t)m->context_max,
                     "weight_bytes", (json_int_t)m->weight_bytes, "kv_bytes_per_token",
                     (json_int_t)m->kv_bytes_per_token, "kv_format", m->kv_format, "compute",
                     m->compute, "least_vram_bytes", (json_int_t)m->least_vram_bytes,
                     "least_kv_bytes", (json_int_t)m->least_kv_bytes, "tokenizer",
                     (int)m->has_tokenizer);
}

static json_t *gpus_json(const findings *f)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < f->gpu_count; i++) {
        const pllm_cuda_listing *g = &f->gpus[i];
        json_array_append_new(
            list, json_pack("{s:o,s:s,s:i,s:i,s:i,s:I,s:s,s:i,s:i}", "name", cli_json_text(g->name),
                            "uuid", g->uuid, "sm", (int)(g->major * 10 + g->minor), "index", (int)i,
                            "sm_count", (int)g->sm_count, "total_bytes", (json_int_t)g->total_bytes,
                            "driver", g->driver, "cuda_major", (int)g->cuda_major, "cuda_minor",
                            (int)g->cuda_minor));
    }
    return list;
}

static int report_json(const findings *f)
{
    json_t *missing = json_array();
    for (uint32_t i = 0; i < f->missing_count; i++)
        json_array_append_new(missing, json_string(f->missing[i]));
    json_t *root = json_pack(
        "{s:s,s:i,s:i,s:s,s:I,s:I,s:f,s:f,s:f,s:s,s:o,s:o,s:I,s:o,s:f,s:f,s:I,s:o,s:o,s:o}",
        "version", pllm_version(), "threads", (int)f->memory.threads, "memory_nodes",
        (int)f->memory_nodes, "kernels", f->kernels, "host_total_bytes",
        (json_int_t)f->machine_bytes, "host_free_bytes", (json_int_t)f->memory.host.free_bytes,
        "memory_read_bytes_per_second", f->memory.read_bytes_per_second,
        "memory_copy_bytes_per_second", f->memory.copy_bytes_per_second,
        "memory_copy_all_threads_bytes_per_second", f->memory.copy_all_bytes_per_second, "disk",
        f->disk_name, "disk_folder", cli_json_text(f->disk_folder), "disk_note",
        cli_json_text(f->disk_note), "disk_free_bytes", (json_int_t)f->disk_free_bytes,
        "disk_problem", cli_json_text(f->disk_problem), "disk_write_bytes_per_second",
        f->disk_write_bytes_per_second, "disk_read_bytes_per_second", f->disk_read_bytes_per_second,
        "memlock_bytes",
        f->memlock_bytes > INT64_MAX ? (json_int_t)-1 : (json_int_t)f->memlock_bytes, "cuda",
        cli_json_text(f->cuda), "gpus", gpus_json(f), "missing", missing);
    if (root && f->has_model) json_object_set_new(root, "model", model_json(f));
    return cli_print_json(root);
}

static void report_disk(const findings *f)
{
    char unused[PLLM_SIZE_TEXT_BYTES];
    if (f->disk_problem[0]) {
        printf("disk       not usable: %s\n", f->disk_problem);
        return;
    }
    printf("disk       %s (%s free): %s, written at %.2f GB/s, read at %.2f GB/s\n", f->disk_folder,
           pllm_size_text(f->disk_free_bytes, unused, sizeof unused), f->disk_name,
           f->disk_write_bytes_per_second * 1e-9, f->disk_read_bytes_per_second * 1e-9);
    if (f->disk_note[0]) printf("           %s\n", f->disk_note);
}

static void report_model(const findings *f)
{
    const pllm_engine_info *m = &f->model;
    char weights[PLLM_SIZE_TEXT_BYTES];
    if (f->model_problem[0]) return; /* main says it */
    printf("model      %s, %u layers, context %u; %s of weights; %llu bytes of KV a token in %s\n",
           m->family, m->layer_count, m->context_max,
           pllm_size_text(m->weight_bytes, weights, sizeof weights),
           (unsigned long long)m->kv_bytes_per_token, m->kv_format);
    char vram[PLLM_SIZE_TEXT_BYTES], kv[PLLM_SIZE_TEXT_BYTES];
    printf("           least --vram-limit %llu (%s), least --kv-limit %llu (%s)\n",
           (unsigned long long)m->least_vram_bytes,
           pllm_size_text_up(m->least_vram_bytes, vram, sizeof vram),
           (unsigned long long)m->least_kv_bytes,
           pllm_size_text_up(m->least_kv_bytes, kv, sizeof kv));
}

static int report_text(const findings *f)
{
    char total[PLLM_SIZE_TEXT_BYTES], unused[PLLM_SIZE_TEXT_BYTES], memlock[PLLM_SIZE_TEXT_BYTES];
    printf("pagedllm   %s\n", pllm_version());
    printf("processor  %u threads, %s kernels\n", f->memory.threads, f->kernels);
    printf("device     host: %s of memory, %s available\n",
           pllm_size_text(f->machine_bytes, total, sizeof total),
           pllm_size_text(f->memory.host.free_bytes, unused, sizeof unused));
    printf("device     cuda: %s\n", f->cuda);
    for (uint32_t i = 0; i < f->gpu_count; i++) {
        const pllm_cuda_listing *g = &f->gpus[i];
        printf("           cuda:%u: %s, sm_%u%u, %u multiprocessors, %s, %s\n", i, g->name,
               g->major, g->minor, g->sm_count, pllm_size_text(g->total_bytes, total, sizeof total),
               g->uuid);
    }
    printf("memory     read %.1f GB/s with %u threads, copied %.1f GB/s with one, %.1f with all\n",
           f->memory.read_bytes_per_second * 1e-9, f->memory.threads,
           f->memory.copy_bytes_per_second * 1e-9, f->memory.copy_all_bytes_per_second * 1e-9);
    if (f->memory_nodes > 1)
        printf(
            "           %u NUMA nodes: `numactl -N 0 -m 0 pagedllm ...` keeps threads and memory "
            "together\n",
            f->memory_nodes);
    report_disk(f);
    printf("limits     %s of memory may be locked (ulimit -l), by io_uring's buffers too\n",
           f->memlock_bytes == RLIM_INFINITY
               ? "all"
               : pllm_size_text(f->memlock_bytes, memlock, sizeof memlock));
    if (f->has_model) report_model(f);
    if (f->missing_count == 0) puts("missing    nothing");
    for (uint32_t i = 0; i < f->missing_count; i++) printf("missing    %s\n", f->missing[i]);
    return PLLM_OK;
}

int command_doctor(cli_program *cli)
{
    findings f = {.kernels = pllm_kernels_best()->name,
                  .memory_nodes = 1,
                  .machine_bytes = pllm_machine_total_bytes()};
    if (numa_available() >= 0) f.memory_nodes = (uint32_t)numa_num_configured_nodes();
    struct rlimit limit;
    if (getrlimit(RLIMIT_MEMLOCK, &limit) == 0) f.memlock_bytes = limit.rlim_cur;
    int status = cli_measure_memory(cli->context, 0, &f.memory);
    if (status < 0) return status;
    measure_disk(cli, &f);
    if (cli_interrupted()) return cli_canceled();
    look_for_cuda(&f);
    look_for_device(cli, &f);
    look_for_what_is_missing(&f);
    if (cli->settings->positional_count > 0) look_at_model(cli, &f);
    if (cli_interrupted()) return cli_canceled();
    pllm_error kept = *pllm_last_error();
    status = cli->settings->json ? report_json(&f) : report_text(&f);
    if (status < 0) return status;
    if (f.model_problem[0]) return cli_fail_again(&kept);
    if (!f.device_problem[0]) return PLLM_OK;
    return pllm_fail(PLLM_EUNSUPPORTED, 0, "--device %s cannot be used: %s",
                     cli->settings->device.last, f.device_problem);
}
