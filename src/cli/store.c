/* store.c - pagedllm store COMMAND: tensors by name, for people. The daemon is in store_serve.c,
 * files are in store_files.c.
 *
 * Every command is one connection: what it holds goes with it, and what should stay is made kept.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "base/context.h"
#include "base/size.h"
#include "cli/store.h"
#include "redis/mirror.h"
#include "store/names.h"

/* ---- connecting ---- */

int cli_store_open_on(const cli_program *cli, const char *device, cli_store *store)
{
    *store = (cli_store){.context = cli->context};
    int status = pllm_device_open(cli->context, device, &store->device);
    if (status < 0) return status;
    pllm_store_options options = {
        .struct_bytes = sizeof options, .socket = cli->settings->socket, .device = store->device};
    status = pllm_store_open(cli->context, &options, &store->store);
    if (status < 0) cli_store_close(store);
    return status;
}

int cli_store_open(const cli_program *cli, cli_store *store)
{
    int status = cli_store_open_on(cli, cli->settings->device.last, store);
    if (status != PLLM_ENOTFOUND || pllm_settings_given(cli->settings, "device")) return status;
    pllm_error kept = *pllm_last_error();
    return cli_store_open_on(cli, "cuda", store) == PLLM_OK ? PLLM_OK : cli_fail_again(&kept);
}

void cli_store_close(cli_store *store)
{
    pllm_store_close(store->store);
    pllm_device_close(store->device);
    *store = (cli_store){0};
}

int cli_store_mode(const char *text, const char *option, uint32_t *mode_out)
{
    uint32_t mode = 0;
    const char *at = text;
    for (; *at >= '0' && *at <= '7' && mode <= 0777; at++) mode = mode * 8 + (uint32_t)(*at - '0');
    if (*at || at == text || mode == 0 || mode & ~(uint32_t)PLLM_STORE_MODE_MASK)
        return pllm_fail(PLLM_EINVAL, 0,
                         "--%s %.20s is no mode: give read and write for owner, group and others "
                         "in octal, such as 0640",
                         option, text);
    *mode_out = mode;
    return PLLM_OK;
}

int cli_store_spec(const pllm_settings *settings, pllm_store_spec *spec)
{
    *spec = (pllm_store_spec){.struct_bytes = sizeof *spec};
    spec->flags = PLLM_STORE_KEPT | (settings->pinned ? PLLM_STORE_PINNED : 0u) |
                  (settings->legacy ? PLLM_STORE_LEGACY : 0u);
    return cli_store_mode(settings->mode, "mode", &spec->mode);
}

static int parse_shape(const char *text, pllm_store_spec *spec)
{
    char brackets[256];
    size_t bytes = strlen(text);
    if (bytes > 240)
        return pllm_fail(PLLM_EINVAL, 0, "--shape has at most %d numbers, such as 2,3",
                         PLLM_STORE_RANK_MAX);
    if (text[0] != '[') {
        bytes = (size_t)snprintf(brackets, sizeof brackets, "[%s]", text);
        text = brackets;
    }
    return pllm_store_shape_parse(text, bytes, &spec->rank, spec->shape);
}

int cli_store_check(const pllm_settings *settings)
{
    const char *command = settings->command + strlen("store ");
    int serve = strcmp(command, "serve") == 0, create = strcmp(command, "create") == 0;
    pllm_store_spec spec = {.struct_bytes = sizeof spec};
    pllm_mirror_address address;
    int status = PLLM_OK;
    if (serve) status = cli_store_mode(settings->socket_mode, "socket-mode", &spec.mode);
    if (serve && status == PLLM_OK && settings->redis && strcmp(settings->redis, "none") != 0)
        status = pllm_mirror_address_parse(settings->redis, &address);
    if (create || strcmp(command, "put") == 0)
        status = cli_store_mode(settings->mode, "mode", &spec.mode);
    if (create && status == PLLM_OK) status = parse_shape(settings->shape, &spec);
    if (create && status == PLLM_OK)
        status = pllm_store_dtype_parse(settings->dtype, strlen(settings->dtype), &spec.dtype);
    return status;
}

/* ---- showing ---- */

enum { FLAGS = 6 };
typedef struct flag {
    const char *name;
    uint32_t on;
} flag;

static void flags_of(const pllm_store_info *info, flag flags[FLAGS])
{
    const flag all[FLAGS] = {
        {"sealed", info->flags & PLLM_STORE_SEALED},
        {"pinned", info->flags & PLLM_STORE_PINNED},
        {"kept", info->flags & PLLM_STORE_KEPT},
        {"legacy", info->flags & PLLM_STORE_LEGACY},
        {"spilled", info->spilled},
        {"poisoned", info->poisoned},
    };
    memcpy(flags, all, sizeof all);
}

static const char *flags_text(const pllm_store_info *info, char *text, size_t bytes)
{
    flag flags[FLAGS];
    flags_of(info, flags);
    size_t used = 0;
    text[0] = '\0';
    for (size_t i = 0; i < FLAGS; i++)
        if (flags[i].on)
            used +=
                (size_t)snprintf(text + used, bytes - used, "%s%s", used ? "," : "", flags[i].name);
    return text;
}

static void add(json_t *o, const char *name, uint64_t value)
{
    json_object_set_new(o, name, json_integer((json_int_t)value));
}

static json_t *info_json(const pllm_store_info *info)
{
    json_t *o = json_object(), *shape = json_array();
    for (uint32_t i = 0; i < info->rank; i++)
        json_array_append_new(shape, json_integer((json_int_t)info->shape[i]));
    json_object_set_new(o, "name", json_string(info->name));
    json_object_set_new(o, "dtype", json_string(pllm_store_dtype_name(info->dtype)));
    json_object_set_new(o, "shape", shape);
    add(o, "bytes", info->bytes);
    add(o, "device", info->device);
    add(o, "references", info->references);
    add(o, "writers", info->writers);
    add(o, "importers", info->importers);
    add(o, "fence", info->fence);
    add(o, "generation", info->generation);
    add(o, "uid", info->uid);
    add(o, "gid", info->gid);
    char mode[8];
    snprintf(mode, sizeof mode, "%04o", info->mode & 07777);
    json_object_set_new(o, "mode", json_string(mode));
    add(o, "owner_pid", info->owner_pid);
    add(o, "ctime_ns", (uint64_t)info->ctime_ns);
    add(o, "mtime_ns", (uint64_t)info->mtime_ns);
    flag flags[FLAGS];
    flags_of(info, flags);
    for (size_t i = 0; i < FLAGS; i++)
        json_object_set_new(o, flags[i].name, json_boolean(flags[i].on));
    return o;
}

static const char *time_text(int64_t ns, char text[40])
{
    time_t seconds = (time_t)(ns / 1000000000);
    struct tm local;
    if (!localtime_r(&seconds, &local) || !strftime(text, 40, "%Y-%m-%d %H:%M:%S", &local))
        snprintf(text, 40, "%lld", (long long)seconds);
    return text;
}

static void info_text(const pllm_store_info *info)
{
    char shape[PLLM_STORE_SHAPE_TEXT_BYTES], flags[80], text[40], size[PLLM_SIZE_TEXT_BYTES];
    printf("name        %s\n", info->name);
    printf("type        %s %s, %llu bytes (%s)\n", pllm_store_dtype_name(info->dtype),
           pllm_store_shape_text(info->rank, info->shape, shape), (unsigned long long)info->bytes,
           pllm_size_text(info->bytes, size, sizeof size));
    printf("device      %u\n", info->device);
    printf("open        by %u process%s, %u of them for writing; mapped by %u\n", info->references,
           info->references == 1 ? "" : "es", info->writers, info->importers);
    printf("fence       %llu%s\n", (unsigned long long)info->fence,
           info->poisoned ? ", poisoned: its producer died" : "");
    printf("owner       user %u, group %u, mode %04o; made by process %u\n", info->uid, info->gid,
           info->mode, info->owner_pid);
    printf("flags       %s\n", flags_text(info, flags, sizeof flags));
    printf("generation  %llu\n", (unsigned long long)info->generation);
    printf("created     %s\n", time_text(info->ctime_ns, text));
    printf("changed     %s\n", time_text(info->mtime_ns, text));
}

/* ---- ls, stat ---- */

typedef struct listing {
    pllm_store_info *rows;
    uint64_t count, room;
    int failed; /* no memory */
} listing;

static int listing_add(void *user, const pllm_store_info *info)
{
    listing *list = user;
    if (list->count == list->room) {
        uint64_t room = list->room ? list->room * 2 : 64;
        pllm_store_info *rows = realloc(list->rows, room * sizeof *rows);
        if (!rows) return list->failed = 1;
        list->rows = rows;
        list->room = room;
    }
    list->rows[list->count++] = *info;
    return cli_interrupted();
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const pllm_store_info *)a)->name, ((const pllm_store_info *)b)->name);
}

int cli_store_list(pllm_store *store, const char *prefix, pllm_store_info **rows_out,
                   uint64_t *count_out)
{
    listing list = {0};
    int status = pllm_store_list(store, prefix, listing_add, &list, NULL);
    if (status == PLLM_OK && list.failed)
        status = pllm_fail_memory("the list of tensors", list.room * 2 * sizeof *list.rows);
    if (status == PLLM_OK && cli_interrupted()) status = cli_canceled();
    if (status == PLLM_OK && list.count) qsort(list.rows, list.count, sizeof *list.rows, by_name);
    if (status < 0) {
        free(list.rows);
        list = (listing){0};
    }
    *rows_out = list.rows;
    *count_out = list.count;
    return status;
}

static int print_rows(const pllm_settings *settings, const pllm_store_info *rows, uint64_t count)
{
    if (settings->json) {
        json_t *root = json_array();
        for (uint64_t i = 0; i < count; i++) json_array_append_new(root, info_json(&rows[i]));
        return cli_print_json(root);
    }
    int widest = 4;
    for (uint64_t i = 0; i < count; i++)
        if ((int)strlen(rows[i].name) > widest) widest = (int)strlen(rows[i].name);
    if (count)
        printf("%-*s  %-6s %14s %5s %10s  %-24s %s\n", widest, "name", "type", "bytes", "open",
               "fence", "shape", "flags");
    for (uint64_t i = 0; i < count; i++) {
        char shape[PLLM_STORE_SHAPE_TEXT_BYTES], flags[80], open[32];
        snprintf(open, sizeof open, "%u%s", rows[i].references, rows[i].writers ? "w" : "");
        printf("%-*s  %-6s %14llu %5s %10llu  %-24s %s\n", widest, rows[i].name,
               pllm_store_dtype_name(rows[i].dtype), (unsigned long long)rows[i].bytes, open,
               (unsigned long long)rows[i].fence,
               pllm_store_shape_text(rows[i].rank, rows[i].shape, shape),
               flags_text(&rows[i], flags, sizeof flags));
    }
    return PLLM_OK;
}

static int store_ls(cli_program *cli, pllm_store *store)
{
    const pllm_settings *settings = cli->settings;
    pllm_store_info *rows;
    uint64_t count;
    const char *prefix = settings->positional_count ? settings->positionals[0] : NULL;
    int status = cli_store_list(store, prefix, &rows, &count);
    if (status == PLLM_OK) status = print_rows(settings, rows, count);
    free(rows);
    return status;
}

static int store_stat(cli_program *cli, pllm_store *store)
{
    pllm_store_info info = {.struct_bytes = sizeof info};
    int status = pllm_store_stat(store, cli->settings->positionals[0], &info);
    if (status < 0) return status;
    if (cli->settings->json) return cli_print_json(info_json(&info));
    info_text(&info);
    return PLLM_OK;
}

/* ---- changes ---- */

static int store_create(cli_program *cli, pllm_store *store)
{
    const pllm_settings *settings = cli->settings;
    pllm_store_spec spec;
    pllm_store_tensor *tensor;
    int status = cli_store_spec(settings, &spec);
    if (status == PLLM_OK) status = parse_shape(settings->shape, &spec);
    if (status == PLLM_OK)
        status = pllm_store_dtype_parse(settings->dtype, strlen(settings->dtype), &spec.dtype);
    if (status == PLLM_OK)
        status = pllm_store_create(store, settings->positionals[0], &spec, &tensor);
    return status < 0 ? status : pllm_store_close_tensor(tensor);
}

/* Several names: all that can be, then the first failure. */
static int each_name(cli_program *cli, pllm_store *store,
                     int (*change)(pllm_store *store, const char *name, const pllm_settings *))
{
    const pllm_settings *settings = cli->settings;
    pllm_error kept = {0};
    uint32_t failures = 0;
    for (uint32_t i = 0; i < settings->positional_count; i++)
        if (change(store, settings->positionals[i], settings) < 0 && failures++ == 0)
            kept = *pllm_last_error();
    if (failures > 1)
        return pllm_fail(kept.status, kept.native, "%.800s; and %u more of the %u failed",
                         kept.text, failures - 1, settings->positional_count);
    return failures ? cli_fail_again(&kept) : PLLM_OK;
}

static int change_rm(pllm_store *store, const char *name, const pllm_settings *settings)
{
    (void)settings;
    return pllm_store_delete(store, name);
}

static int change_seal(pllm_store *store, const char *name, const pllm_settings *settings)
{
    (void)settings;
    return pllm_store_seal(store, name);
}

static int change_pin(pllm_store *store, const char *name, const pllm_settings *settings)
{
    return pllm_store_pin(store, name, !settings->off);
}

static int store_rm(cli_program *cli, pllm_store *store)
{
    return each_name(cli, store, change_rm);
}

static int store_seal(cli_program *cli, pllm_store *store)
{
    return each_name(cli, store, change_seal);
}

static int store_pin(cli_program *cli, pllm_store *store)
{
    return each_name(cli, store, change_pin);
}

static int store_rename(cli_program *cli, pllm_store *store)
{
    return pllm_store_rename(store, cli->settings->positionals[0], cli->settings->positionals[1]);
}

/* ---- watch ---- */

static const struct {
    uint32_t kind;
    const char *name;
} event_names[] = {
    {PLLM_STORE_EVENT_LOST, "lost"},         {PLLM_STORE_EVENT_CREATED, "created"},
    {PLLM_STORE_EVENT_RENAMED, "renamed"},   {PLLM_STORE_EVENT_SEALED, "sealed"},
    {PLLM_STORE_EVENT_PINNED, "pinned"},     {PLLM_STORE_EVENT_SPILLED, "spilled"},
    {PLLM_STORE_EVENT_RESTORED, "restored"}, {PLLM_STORE_EVENT_POISONED, "poisoned"},
    {PLLM_STORE_EVENT_DELETED, "deleted"},
};

static int print_event(const pllm_settings *settings, const pllm_store_event *event)
{
    char kinds[128];
    size_t used = 0;
    kinds[0] = '\0';
    for (size_t i = 0; i < sizeof event_names / sizeof event_names[0]; i++)
        if (event->kinds & event_names[i].kind)
            used += (size_t)snprintf(kinds + used, sizeof kinds - used, "%s%s", used ? "," : "",
                                     event_names[i].name);
    if (!settings->json) {
        printf("%-10s %s%s%s\n", kinds, event->name, *event->name_before ? " before: " : "",
               event->name_before);
    } else {
        json_t *o = json_object();
        json_object_set_new(o, "event", json_string(kinds));
        json_object_set_new(o, "name", json_string(event->name));
        if (*event->name_before)
            json_object_set_new(o, "name_before", json_string(event->name_before));
        add(o, "generation", event->generation);
        int failed = json_dumpf(o, stdout, JSON_COMPACT) != 0;
        json_decref(o);
        if (failed) return pllm_fail(PLLM_EIO, 0, "standard output cannot be written");
        putchar('\n');
    }
    if (fflush(stdout) == 0) return PLLM_OK;
    return pllm_fail(PLLM_EIO, 0, "standard output cannot be written");
}

static int store_watch(cli_program *cli, pllm_store *store)
{
    enum { LOOK_MS = 100 }; /* between looks for a signal */
    const pllm_settings *settings = cli->settings;
    int status =
        pllm_store_watch(store, settings->positional_count ? settings->positionals[0] : "");
    if (status == PLLM_OK && isatty(STDERR_FILENO)) fprintf(stderr, "watching; Ctrl-C ends\n");
    uint64_t seen = 0;
    while (status == PLLM_OK && (settings->events == 0 || seen < settings->events)) {
        pllm_store_event event = {.struct_bytes = sizeof event};
        status = pllm_store_event_next(store, LOOK_MS, &event);
        if (cli_interrupted()) return cli_canceled();
        if (status == PLLM_OK) {
            seen++;
            status = print_event(settings, &event);
        } else if (status == PLLM_ETIMEDOUT) {
            status = PLLM_OK;
        }
    }
    return status;
}

/* ---- the command ---- */

int command_store(cli_program *cli)
{
    static const struct {
        const char *name;
        int (*run)(cli_program *cli, pllm_store *store);
    } asks[] = {
        {"create", store_create}, {"ls", store_ls},         {"stat", store_stat},
        {"rm", store_rm},         {"watch", store_watch},   {"seal", store_seal},
        {"pin", store_pin},       {"rename", store_rename},
    };
    const char *name = cli->settings->command + strlen("store ");
    if (strcmp(name, "serve") == 0) return store_serve(cli);
    if (strcmp(name, "put") == 0) return store_put(cli);
    if (strcmp(name, "get") == 0) return store_get(cli);
    for (size_t i = 0; i < sizeof asks / sizeof asks[0]; i++) {
        if (strcmp(asks[i].name, name) != 0) continue;
        cli_store store;
        int status = cli_store_open(cli, &store);
        if (status == PLLM_OK) status = asks[i].run(cli, store.store);
        cli_store_close(&store);
        return status;
    }
    return pllm_fail(PLLM_EINVAL, 0, "'%s' is no command of store", name);
}
