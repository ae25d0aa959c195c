/* common.c - from settings to an engine, and from an engine to what --stats shows. */
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include "base/context.h"
#include "cli/cli.h"

/* One line that is drawn over: "reading [=====     ] 53%". */
static int show_progress(void *user, const char *what, uint64_t done, uint64_t total)
{
    (void)user;
    if (cli_interrupted()) return 1;
    if (!isatty(STDERR_FILENO) || total == 0) return 0;
    enum { WIDTH = 32 };
    char bar[WIDTH + 1];
    uint64_t filled = done * WIDTH / total;
    for (uint64_t i = 0; i < WIDTH; i++) bar[i] = i < filled ? '=' : ' ';
    bar[WIDTH] = '\0';
    fprintf(stderr, "\r%s [%s] %3llu%%", what, bar, (unsigned long long)(done * 100 / total));
    if (done >= total) fprintf(stderr, "\r\033[K");
    return 0;
}

static const char *value_name(const char *option, uint32_t value)
{
    static _Thread_local char names[8][16];
    static _Thread_local unsigned next;
    const char *at = pllm_option_find(option)->argument;
    for (uint32_t i = 0; i < value && at; i++) at = strchr(at, '|') ? strchr(at, '|') + 1 : NULL;
    char *name = names[next++ & 7];
    size_t length = at ? strcspn(at, "|") : 0;
    if (length > 15) length = 15;
    if (length) memcpy(name, at, length);
    name[length] = '\0';
    return name;
}

int cli_engine_open(const pllm_settings *settings, uint32_t sequence_max, uint32_t context_max,
                    pllm_engine **engine_out)
{
    *engine_out = NULL;
    pllm_engine_options options = {
        .struct_bytes = sizeof options,
        .threads = (uint32_t)settings->threads,
        .device = settings->device,
        .vram_limit_bytes = settings->vram_limit,
        .kv_limit_bytes = settings->kv_limit,
        .host_memory_bytes = settings->host_memory,
        .nvme_path = settings->nvme_path,
        .nvme_size_bytes = settings->nvme_size,
        .policy = value_name("policy", settings->policy),
        .prefetch_strategy = value_name("prefetch_strategy", settings->prefetch_strategy),
        .kv_format = value_name("kv_format", settings->kv_format),
        .compute = value_name("compute", settings->compute),
        .disk_io = value_name("disk_io", settings->disk_io),
        .sequence_max = sequence_max,
        .context_max = context_max,
        .link_bytes_per_second =
            settings->link_bandwidth == PLLM_SIZE_UNLIMITED ? 0 : (double)settings->link_bandwidth,
        .link_latency_ns = (uint64_t)(settings->link_latency_us * 1000),
        .progress = show_progress,
    };
    if (settings->vram_limit == 0 || settings->kv_limit == 0)
        return pllm_fail(PLLM_EINVAL, 0,
                         "a limit of 0 leaves nothing to work in: give a size such as "
                         "24GB, or unlimited");
    /* A folder without a size: as much as every block of the context would take. */
    if (settings->nvme_path && settings->nvme_size == 0) options.nvme_size_bytes = PLLM_UNLIMITED;
    return pllm_engine_open(NULL, settings->positionals[0], &options, engine_out);
}

/* Most of resident memory, of this process so far. */
static uint64_t peak_resident_bytes(void)
{
    struct rusage usage;
    return getrusage(RUSAGE_SELF, &usage) == 0 ? (uint64_t)usage.ru_maxrss * 1024 : 0;
}

static double per_second(uint64_t count, uint64_t ns)
{
    return ns ? (double)count * 1e9 / (double)ns : 0;
}

static json_t *stats_json(const pllm_engine *engine, const pllm_generate_result *result)
{
    pllm_engine_info info = {.struct_bytes = sizeof info};
    pllm_engine_stats s = {.struct_bytes = sizeof s};
    if (pllm_engine_info_get(engine, &info) < 0 || pllm_engine_stats_get(engine, &s) < 0)
        return NULL;
    json_t *root = json_object();
    const struct {
        const char *name;
        uint64_t value;
    } counts[] = {
        {"threads", info.threads},
        {"weight_bytes", info.weight_bytes},
        {"workspace_bytes", info.workspace_bytes},
        {"least_vram_bytes", info.least_vram_bytes},
        {"least_kv_bytes", info.least_kv_bytes},
        {"frame_bytes", s.frame_bytes},
        {"frames_used", s.frames_used},
        {"frames_peak", s.frames_peak},
        {"host_slots_used", s.host_slots_used},
        {"disk_slots_used", s.disk_slots_used},
        {"device_bytes", s.device_bytes},
        {"device_bytes_peak", s.device_bytes_peak},
        {"kv_bytes", s.kv_bytes},
        {"kv_bytes_peak", s.kv_bytes_peak},
        {"pins", s.pins},
        {"hits", s.hits},
        {"misses", s.misses},
        {"evictions", s.evictions},
        {"prefetched", s.prefetched},
        {"prefetch_used", s.prefetch_used},
        {"prefetch_wasted", s.prefetch_wasted},
        {"written_behind", s.written_behind},
        {"host_to_device_bytes", s.host_to_device_bytes},
        {"device_to_host_bytes", s.device_to_host_bytes},
        {"disk_to_device_bytes", s.disk_to_device_bytes},
        {"device_to_disk_bytes", s.device_to_disk_bytes},
        {"wait_ns", s.wait_ns},
        {"prompt_tokens", s.prompt_tokens},
        {"generated_tokens", s.generated_tokens},
        {"prefill_ns", s.prefill_ns},
        {"decode_ns", s.decode_ns},
        {"steps", s.steps},
        {"lost_pages", s.lost_pages},
        {"peak_resident_bytes", peak_resident_bytes()},
    };
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++)
        json_object_set_new(root, counts[i].name, json_integer((json_int_t)counts[i].value));
    json_object_set_new(root, "device", json_string(info.device));
    json_object_set_new(root, "kernels", json_string(info.kernels));
    json_object_set_new(root, "kv_format", json_string(info.kv_format));
    json_object_set_new(root, "compute", json_string(info.compute));
    json_object_set_new(root, "disk_io", json_string(s.disk_io ? s.disk_io : ""));
    json_object_set_new(root, "disk_note", json_string(s.disk_note ? s.disk_note : ""));
    json_object_set_new(root, "prefill_tokens_per_second",
                        json_real(per_second(s.prompt_tokens, s.prefill_ns)));
    json_object_set_new(root, "decode_tokens_per_second",
                        json_real(per_second(s.generated_tokens, s.decode_ns)));
    if (result) json_object_set_new(root, "stop_reason", json_integer(result->stop));
    return root;
}

static void stats_text(const pllm_engine *engine)
{
    pllm_engine_info info = {.struct_bytes = sizeof info};
    pllm_engine_stats s = {.struct_bytes = sizeof s};
    if (pllm_engine_info_get(engine, &info) < 0 || pllm_engine_stats_get(engine, &s) < 0) return;
    const double mb = 1e-6;
    fprintf(stderr, "prompt     %llu tokens, %.1f a second\n", (unsigned long long)s.prompt_tokens,
            per_second(s.prompt_tokens, s.prefill_ns));
    fprintf(stderr, "generated  %llu tokens, %.1f a second\n",
            (unsigned long long)s.generated_tokens, per_second(s.generated_tokens, s.decode_ns));
    fprintf(stderr,
            "memory     %.1f MB of weights; device %.1f MB at most; %.1f MB resident at most\n",
            (double)info.weight_bytes * mb, (double)s.device_bytes_peak * mb,
            (double)peak_resident_bytes() * mb);
    fprintf(stderr, "KV blocks  %.1f MB in all; %u frames of %.0f KB at most on the device\n",
            (double)s.kv_bytes_peak * mb, s.frames_peak, (double)s.frame_bytes * 1e-3);
    fprintf(stderr,
            "pager      %llu reads, %llu found resident; %llu evictions; %llu of %llu prefetched "
            "used\n",
            (unsigned long long)s.pins, (unsigned long long)s.hits, (unsigned long long)s.evictions,
            (unsigned long long)s.prefetch_used, (unsigned long long)s.prefetched);
    fprintf(
        stderr,
        "moved      host to device %.1f MB, back %.1f MB; disk to device %.1f MB, back %.1f MB; "
        "waited %.1f ms\n",
        (double)s.host_to_device_bytes * mb, (double)s.device_to_host_bytes * mb,
        (double)s.disk_to_device_bytes * mb, (double)s.device_to_disk_bytes * mb,
        (double)s.wait_ns * mb);
    if (s.disk_note && *s.disk_note) fprintf(stderr, "disk       %s: %s\n", s.disk_io, s.disk_note);
}

int cli_stats(const pllm_settings *settings, const pllm_engine *engine,
              const pllm_generate_result *result)
{
    if (settings->stats) stats_text(engine);
    if (!settings->stats_json) return PLLM_OK;
    json_t *root = stats_json(engine, result);
    if (!root) return pllm_fail_memory("statistics", 4096);
    int failed =
        json_dump_file(root, settings->stats_json, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
    json_decref(root);
    if (failed)
        return pllm_fail(PLLM_EIO, errno, "%s could not be written: %s", settings->stats_json,
                         strerror(errno));
    return PLLM_OK;
}
