/* store_serve.c - pagedllm store serve: the daemon of named tensors, put together from its parts.
 *
 *     devices -> budgets (-> members of a ledger) -> server <- mirror in Redis <- a redis-server
 *
 * opened in that order and closed in the opposite one. The private redis-server is tended by the
 * server's loop: one that ended by itself is started again, and the mirror registers everything
 * anew. The ledger asks from a thread of its own, and may do so before the server is there. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/context.h"
#include "base/log.h"
#include "cli/store.h"
#include "device/open.h"
#include "redis/mirror.h"
#include "redis/private.h"
#include "store/server.h"

enum { REDIS_START_MS = 5000, REDIS_TEND_MS = 500, PATH_BYTES = 128 };

typedef struct served_device {
    pllm_device *device;
    pllm_budget *budget;
    pllm_ledger_member *member; /* NULL: no ledger */
    struct serving *serving;
} served_device;

typedef struct serving {
    const cli_program *cli;
    uint32_t device_count;
    served_device devices[PLLM_LIST_MAX];
    pllm_ledger *ledger;
    pthread_mutex_t lock;      /* of server, towards the ledger's thread */
    pllm_store_server *server; /* NULL: not there yet, or no more */
    pllm_redis_private *redis;
    char folder[PATH_BYTES]; /* of the private Redis; "": not made */
    int tend_failed;         /* said once */
} serving;

/* ---- devices, and who limits them ---- */

/* On a thread of the ledger. */
static uint64_t reclaim(void *user, uint64_t bytes, uint64_t deadline_ns)
{
    (void)deadline_ns;
    served_device *device = user;
    serving *s = device->serving;
    pthread_mutex_lock(&s->lock);
    pllm_store_server *server = s->server;
    if (server) pllm_store_server_reclaim(server, (uint32_t)(device - s->devices), bytes);
    pthread_mutex_unlock(&s->lock);
    return server ? bytes : 0;
}

static int ledger_join(serving *s, served_device *device, const char *name)
{
    const pllm_settings *settings = s->cli->settings;
    char member[PLLM_LEDGER_NAME_MAX + 1];
    if (settings->ledger_name)
        snprintf(member, sizeof member, s->device_count > 1 ? "%.20s-%.16s" : "%s",
                 settings->ledger_name, name);
    else
        snprintf(member, sizeof member, "store-%.24s", name);
    pllm_ledger_member_options options = {.struct_bytes = sizeof options,
                                          .priority = (int32_t)settings->ledger_priority,
                                          .name = member,
                                          .minimum_bytes = settings->ledger_minimum,
                                          .adopt = 1, /* what clients map since before */
                                          .reclaim = reclaim,
                                          .user = device};
    if (settings->vram_limit != PLLM_SIZE_UNLIMITED) options.limit_bytes = settings->vram_limit;
    int status = pllm_ledger_join(s->ledger, &options, &device->member);
    if (status == PLLM_OK) pllm_budget_attach(device->budget, device->member);
    return status;
}

static int device_add(serving *s, const char *name)
{
    const pllm_settings *settings = s->cli->settings;
    served_device *device = &s->devices[s->device_count];
    device->serving = s;
    int status = pllm_device_open(s->cli->context, name, &device->device);
    if (status < 0) return status;
    s->device_count++; /* from here on, close undoes it */
    uint64_t limit =
        settings->vram_limit == PLLM_SIZE_UNLIMITED ? UINT64_MAX / 2 : settings->vram_limit;
    status = pllm_budget_open(s->cli->context, limit, &device->budget);
    if (status == PLLM_OK && s->ledger) status = ledger_join(s, device, name);
    return status;
}

static int devices_open(serving *s)
{
    const pllm_settings *settings = s->cli->settings;
    int status = PLLM_OK;
    if (settings->ledger)
        status =
            pllm_ledger_open(s->cli->context, settings->ledger, settings->ledger_limit, &s->ledger);
    for (uint32_t i = 0; i < settings->device.count && status == PLLM_OK; i++)
        status = device_add(s, settings->device.items[i]);
    return status;
}

static void devices_close(serving *s)
{
    for (uint32_t i = s->device_count; i-- > 0;) {
        pllm_budget_close(s->devices[i].budget);
        pllm_ledger_leave(s->devices[i].member);
        pllm_device_close(s->devices[i].device);
    }
    pllm_ledger_close(s->ledger);
}

/* ---- the server ---- */

static uint64_t or_none(uint64_t size)
{
    return size == PLLM_SIZE_UNLIMITED ? 0 : size;
}

static void server_set(serving *s, pllm_store_server *server)
{
    pthread_mutex_lock(&s->lock);
    s->server = server;
    pthread_mutex_unlock(&s->lock);
}

static int server_open(serving *s)
{
    const pllm_settings *settings = s->cli->settings;
    pllm_store_served served[PLLM_LIST_MAX] = {{0}};
    if (settings->nvme_path && settings->nvme_size == 0)
        return pllm_fail(PLLM_EINVAL, 0,
                         "--nvme-path needs --nvme-size here: how much of that "
                         "folder's disk spilled tensors may take");
    for (uint32_t i = 0; i < s->device_count; i++)
        served[i] =
            (pllm_store_served){.device = s->devices[i].device, .budget = s->devices[i].budget};
    pllm_store_server_options options = {
        .struct_bytes = sizeof options,
        .device_count = s->device_count,
        .devices = served,
        .socket = settings->socket,
        .client_max = (uint32_t)settings->clients,
        .count_per_user_max = (uint32_t)settings->quota_tensors,
        .bytes_per_user_max = or_none(settings->quota),
        .ready_bytes = settings->ready,
        .spilled_bytes_max = settings->host_memory == PLLM_SIZE_UNLIMITED
                                 ? pllm_machine_total_bytes() / 2
                                 : settings->host_memory,
        .disk_bytes = or_none(settings->nvme_size),
        .disk_folder = settings->nvme_path,
        .legacy_bytes_max = settings->legacy_memory,
        .legacy = settings->legacy_memory > 0,
    };
    int status = cli_store_mode(settings->socket_mode, "socket-mode", &options.socket_mode);
    pllm_store_server *server = NULL;
    if (status == PLLM_OK) status = pllm_store_server_open(s->cli->context, &options, &server);
    server_set(s, server);
    return status;
}

/* ---- Redis ---- */

static uint64_t tend_prepare(void *user, uint64_t now_ns, int *fd_out, uint32_t *events_out)
{
    (void)user;
    *fd_out = -1;
    *events_out = 0;
    return now_ns + REDIS_TEND_MS * UINT64_C(1000000);
}

static void tend_run(void *user, uint32_t events, uint64_t now_ns)
{
    serving *s = user;
    (void)events, (void)now_ns;
    int failed = pllm_redis_private_tend(s->redis) < 0;
    if (failed && !s->tend_failed)
        pllm_log(s->cli->context, PLLM_LOG_WARN, "%s", pllm_last_error()->text);
    s->tend_failed = failed;
}

/* What the server tells its parts, and this one does not care. */
static void ignore_changed(void *user, const pllm_store_entry *entry)
{
    (void)user, (void)entry;
}

static int private_folder(serving *s)
{
    struct stat about;
    if (mkdir(s->folder, 0700) != 0 && errno != EEXIST) {
        int code = errno;
        int status = pllm_fail(PLLM_EIO, code, "the folder %s of the private Redis: %s", s->folder,
                               strerror(code));
        s->folder[0] = '\0';
        return status;
    }
    if (lstat(s->folder, &about) != 0 || !S_ISDIR(about.st_mode) || about.st_uid != geteuid() ||
        about.st_mode & 077)
        return pllm_fail(PLLM_EPERM, 0,
                         "%s must be a folder that only this user can enter: remove it, or give "
                         "--redis",
                         s->folder);
    return PLLM_OK;
}

/* Beside the socket, so that each daemon has its own. An earlier one may just be removing its. */
static int private_open(serving *s, pllm_store_server *server)
{
    snprintf(s->folder, sizeof s->folder, "%s.redis", pllm_store_server_path(server));
    int status;
    for (int try = 0; try < 3; try++) {
        status = private_folder(s);
        if (status < 0) return status;
        status =
            pllm_redis_private_open(s->cli->context, s->folder, NULL, REDIS_START_MS, &s->redis);
        if (status != PLLM_EIO || pllm_last_error()->native != ENOENT) break;
    }
    if (status == PLLM_ENOTFOUND) {
        pllm_error kept = *pllm_last_error();
        return pllm_fail(status, 0, "%.800s; or leave Redis out with --redis none", kept.text);
    }
    const pllm_store_part tend = {
        .user = s, .changed = ignore_changed, .prepare = tend_prepare, .run = tend_run};
    return status < 0 ? status : pllm_store_server_add(server, &tend);
}

static int redis_open(serving *s, const char **address_out)
{
    const char *address = s->cli->settings->redis;
    pllm_store_server *server = s->server;
    *address_out = "none";
    if (address && strcmp(address, "none") == 0) return PLLM_OK;
    if (!address) {
        int status = private_open(s, server);
        if (status < 0) return status;
        address = pllm_redis_private_address(s->redis);
    }
    pllm_mirror *mirror; /* the server closes it */
    pllm_mirror_options options = {.struct_bytes = sizeof options, .address = address};
    *address_out = address;
    return pllm_mirror_open(s->cli->context, server, &options, &mirror);
}

/* "redis://user:secret@host" without what is secret. */
static const char *address_shown(const char *address, char *text, size_t bytes)
{
    const char *at = strrchr(address, '@'), *from = strstr(address, "://");
    if (at && from)
        snprintf(text, bytes, "%.*s...%s", (int)(from + 3 - address), address, at);
    else
        snprintf(text, bytes, "%s", address);
    return text;
}

/* ---- the command ---- */

static void close_all(serving *s)
{
    pllm_store_server *server = s->server;
    server_set(s, NULL);
    pllm_store_server_close(server); /* and the mirror, while its Redis is there */
    pllm_redis_private_close(s->redis);
    if (s->folder[0]) rmdir(s->folder);
    devices_close(s);
    pthread_mutex_destroy(&s->lock);
}

static int announce(const serving *s, const char *redis)
{
    char shown[256];
    const pllm_settings *settings = s->cli->settings;
    printf("serving");
    for (uint32_t i = 0; i < settings->device.count; i++)
        printf("%s %s", i ? "," : "", settings->device.items[i]);
    printf(" at %s; Redis: %s\n", pllm_store_server_path(s->server),
           address_shown(redis, shown, sizeof shown));
    if (fflush(stdout) == 0) return PLLM_OK;
    return pllm_fail(PLLM_EIO, errno, "standard output cannot be written: %s", strerror(errno));
}

int store_serve(cli_program *cli)
{
    serving *s = calloc(1, sizeof *s);
    const char *redis = NULL;
    if (!s) return pllm_fail_memory("the daemon", sizeof *s);
    s->cli = cli;
    pthread_mutex_init(&s->lock, NULL);
    int status = devices_open(s);
    if (status == PLLM_OK) status = server_open(s);
    if (status == PLLM_OK) status = redis_open(s, &redis);
    if (status == PLLM_OK) status = announce(s, redis);
    if (status == PLLM_OK) status = pllm_store_server_run(s->server, cli_signal_fd());
    pllm_error kept = *pllm_last_error();
    close_all(s);
    free(s);
    return status < 0 ? cli_fail_again(&kept) : PLLM_OK;
}
