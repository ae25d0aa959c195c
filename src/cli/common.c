/* common.c - from settings to an engine, and from an engine to what --stats shows. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include "base/clock.h"
#include "base/context.h"
#include "cli/cli.h"
#include "engine/parts.h"

/* One line that is drawn over: "reading [=====     ] 53%". */
static int show_progress(void *user, const char *what, uint64_t done, uint64_t total)
{
    cli_program *cli = user;
    if (cli_interrupted()) return 1;
    if (cli->open_deadline_ns && pllm_clock_ns() > cli->open_deadline_ns) return 1;
    if (!isatty(STDERR_FILENO) || total == 0) return 0;
    uint64_t percent = done * 100 / total;
    if (percent == cli->percent_shown && done < total) return 0;
    cli->percent_shown = percent;
    enum { WIDTH = 32 };
    char bar[WIDTH + 1];
    uint64_t filled = done * WIDTH / total;
    for (uint64_t i = 0; i < WIDTH; i++) bar[i] = i < filled ? '=' : ' ';
    bar[WIDTH] = '\0';
    fprintf(stderr, "\r%s [%s] %3llu%%", what, bar, (unsigned long long)percent);
    if (done >= total) fprintf(stderr, "\r\033[K");
    return 0;
}

enum { RECORD_MAX = 1 << 22 }; /* accesses that --record keeps: the last ones, 32 MiB of them */

const char *cli_member_name(const pllm_settings *settings, char *buffer, size_t bytes)
{
    if (settings->ledger_name) return settings->ledger_name;
    snprintf(buffer, bytes, "%s-%ld", settings->command, (long)getpid());
    return buffer;
}

void cli_engine_choose(cli_program *cli, const cli_engine_need *need, cli_engine_choice *choice)
{
    const pllm_settings *settings = cli->settings;
    static const char *const names[] = {"policy", "prefetch_strategy", "kv_format", "compute",
                                        "disk_io"};
    enum { POLICY, PREFETCH, KV_FORMAT, COMPUTE, DISK_IO, NAMES };
    for (int i = 0; i < NAMES; i++)
        pllm_settings_text(settings, pllm_option_find(names[i]), choice->values[i],
                           sizeof choice->values[i]);
    choice->options = (pllm_engine_options){
        .struct_bytes = sizeof choice->options,
        .threads = (uint32_t)settings->threads,
        .device = settings->device.last,
        .vram_limit_bytes = settings->vram_limit,
        .kv_limit_bytes = settings->kv_limit,
        .host_memory_bytes = settings->host_memory,
        .nvme_path = settings->nvme_path,
        .nvme_size_bytes = settings->nvme_size,
        .policy = choice->values[POLICY],
        .prefetch_strategy = choice->values[PREFETCH],
        .kv_format = choice->values[KV_FORMAT],
        .compute = choice->values[COMPUTE],
        .disk_io = choice->values[DISK_IO],
        .sequence_max = need ? need->sequence_max : 1,
        .context_max = need ? need->context_max : 0,
        .link_bytes_per_second =
            settings->link_bandwidth == PLLM_SIZE_UNLIMITED ? 0 : (double)settings->link_bandwidth,
        .link_latency_ns = (uint64_t)(settings->link_latency_us * 1000),
        .record_max = settings->record ? RECORD_MAX : 0,
        .progress = show_progress,
        .progress_user = cli,
        .shape = need ? need->shape : NULL,
        .weights = need ? need->weights : NULL,
        .ledger = settings->ledger,
        .ledger_limit_bytes = settings->ledger_limit,
        .ledger_minimum_bytes = settings->ledger_minimum,
        .ledger_priority = (int32_t)settings->ledger_priority,
        .ledger_name = cli_member_name(settings, choice->member, sizeof choice->member),
    };
    /* A folder without a size: as much as every block of the context would take. */
    if (settings->nvme_path && settings->nvme_size == 0)
        choice->options.nvme_size_bytes = PLLM_UNLIMITED;
}

int cli_engine_open(cli_program *cli, const cli_engine_need *need, pllm_engine **engine_out)
{
    *engine_out = NULL;
    const pllm_settings *settings = cli->settings;
    if (settings->stats_json && !cli->stats.file) {
        /* a place that cannot be written is found out now, not at the end */
        int status = cli_output_open(&cli->stats, settings->stats_json);
        if (status < 0) return status;
    }
    cli_engine_choice choice;
    cli_engine_choose(cli, need, &choice);
    const char *path = choice.options.shape ? NULL : settings->positionals[0];
    int status = pllm_engine_open(cli->context, path, &choice.options, engine_out);
    return cli_interrupted() ? status < 0 ? cli_canceled() : PLLM_OK : status;
}

int cli_fail_again(const pllm_error *kept)
{
    return pllm_fail(kept->status, kept->native, "%s", kept->text);
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
        {"weight_stream_bytes", s.weight_stream_bytes},
        {"weight_resident_bytes", s.weight_resident_bytes},
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
    static const char *const reasons[] = {"length", "end", "string", "context", "canceled"};
    if (result && result->stop <= PLLM_STOP_CANCELED)
        json_object_set_new(root, "stop_reason", json_string(reasons[result->stop]));
    return root;
}

void cli_stats_text(const pllm_engine *engine)
{
    pllm_engine_info info = {.struct_bytes = sizeof info};
    pllm_engine_stats s = {.struct_bytes = sizeof s};
    if (pllm_engine_info_get(engine, &info) < 0 || pllm_engine_stats_get(engine, &s) < 0) return;
    const double mb = 1e-6;
    fprintf(stderr, "prompt     %llu tokens, %.1f a second\n", (unsigned long long)s.prompt_tokens,
            per_second(s.prompt_tokens, s.prefill_ns));
    fprintf(stderr, "decoded    %llu tokens, %.1f a second\n",
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
    if (s.weight_stream_bytes)
        fprintf(stderr, "weights    %.1f MB resident; %.1f MB streamed\n",
                (double)s.weight_resident_bytes * mb, (double)s.weight_stream_bytes * mb);
    if (s.disk_note && *s.disk_note) fprintf(stderr, "disk       %s: %s\n", s.disk_io, s.disk_note);
}

int cli_stats(cli_program *cli, const pllm_engine *engine, const pllm_generate_result *result)
{
    if (cli->settings->stats) cli_stats_text(engine);
    if (cli->settings->record) {
        int written = pllm_engine_write_trace(engine, cli->settings->record);
        if (written == PLLM_ENOTFOUND)
            pllm_log(cli->context, PLLM_LOG_WARN, "%s", pllm_last_error()->text);
        else if (written < 0)
            return written;
    }
    if (!cli->stats.file) return PLLM_OK;
    json_t *root = stats_json(engine, result);
    if (!root) return pllm_fail_memory("statistics", 4096);
    int failed = json_dumpf(root, cli->stats.file, JSON_INDENT(2) | JSON_REAL_PRECISION(6)) != 0 ||
                 fputc('\n', cli->stats.file) == EOF;
    json_decref(root);
    int code = errno;
    int status = cli_output_finish(&cli->stats);
    if (status == PLLM_OK && failed)
        status = pllm_fail(PLLM_EIO, code, "%s could not be written: %s", cli->settings->stats_json,
                           strerror(code));
    return status;
}
