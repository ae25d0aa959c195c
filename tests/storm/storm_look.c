/* storm_look.c - what must be true when everybody is quiet, seen from outside the daemon: its list,
 * what the clients say they hold, Redis, the ledger's charge, and its descriptors in /proc.
 *
 * What follows an event only after a moment (a lease of 200 ms, the sweep for processes, Redis
 * being written behind) is waited for; what is not true after SETTLE_S is wrong. */
#include <dirent.h>
#include <hiredis/hiredis.h>
#include <pagedllm/ledger.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/clock.h"
#include "storm.h"

enum { SETTLE_S = 12, LIST_MAX = 256, WRONG_BYTES = 400 };

typedef struct listing {
    uint32_t count;
    pllm_store_info infos[LIST_MAX];
} listing;

static int take_one(void *user, const pllm_store_info *info)
{
    listing *list = user;
    if (list->count < LIST_MAX) list->infos[list->count++] = *info;
    return 0;
}

static void list_take(storm_shared *shared, pllm_store *store, listing *list)
{
    list->count = 0;
    int status = pllm_store_list(store, NULL, take_one, list, NULL);
    if (status < 0) storm_fail(shared, "the list failed: %s", pllm_last_error()->text);
    if (list->count == LIST_MAX) storm_fail(shared, "there are more tensors than names");
}

/* ---- references ---- */

static const pllm_store_info *info_of(const listing *list, uint64_t generation)
{
    for (uint32_t i = 0; i < list->count; i++)
        if (list->infos[i].generation == generation) return &list->infos[i];
    return NULL;
}

/* As they are at one moment. */
static uint32_t holds_take(storm_place *place, storm_hold *holds)
{
    for (;;) {
        uint32_t before = atomic_load(&place->holding), count = place->hold_count;
        memcpy(holds, place->holds, sizeof place->holds);
        storm_barrier();
        if (before % 2 == 0 && atomic_load(&place->holding) == before) return count;
        usleep(1000);
    }
}

/* 1: all as it should be. */
static int references_right(storm_shared *shared, const listing *list, char *wrong)
{
    uint32_t references[LIST_MAX] = {0}, writers[LIST_MAX] = {0};
    for (uint32_t c = 0; c < shared->client_count; c++) {
        storm_hold holds[STORM_HOLDS_MAX];
        uint32_t count = holds_take(&shared->places[c], holds);
        for (uint32_t i = 0; i < count; i++) {
            const storm_hold *hold = &holds[i];
            const pllm_store_info *info = info_of(list, hold->generation);
            if (info) {
                references[info - list->infos]++;
                writers[info - list->infos] += hold->writable;
            } else if (hold->sure) {
                snprintf(wrong, WRONG_BYTES, "client %u holds generation %llx, which is not there",
                         c, (unsigned long long)hold->generation);
                return 0;
            }
        }
    }
    for (uint32_t i = 0; i < list->count; i++) {
        const pllm_store_info *info = &list->infos[i];
        if (info->references == references[i] && info->writers == writers[i]) {
            if (info->references || info->flags & (PLLM_STORE_KEPT | PLLM_STORE_PINNED)) continue;
        }
        snprintf(wrong, WRONG_BYTES,
                 "%s (generation %llx, flags %#x) has %u references, %u of them writers, and the "
                 "clients say %u and %u",
                 info->name, (unsigned long long)info->generation, info->flags, info->references,
                 info->writers, references[i], writers[i]);
        return 0;
    }
    return 1;
}

/* ---- Redis ---- */

static const char *field_of(const redisReply *hash, const char *field)
{
    for (size_t i = 0; i + 1 < hash->elements; i += 2)
        if (!strcmp(hash->element[i]->str, field)) return hash->element[i + 1]->str;
    return "(none)";
}

static int same_text(const redisReply *hash, const char *field, const char *value,
                     const pllm_store_info *info, char *wrong)
{
    if (!strcmp(field_of(hash, field), value)) return 1;
    snprintf(wrong, WRONG_BYTES, "tensor:%s has %s %s in Redis, and the daemon says %s", info->name,
             field, field_of(hash, field), value);
    return 0;
}

static int same_number(const redisReply *hash, const char *field, uint64_t value,
                       const pllm_store_info *info, char *wrong)
{
    char text[24];
    snprintf(text, sizeof text, "%llu", (unsigned long long)value);
    return same_text(hash, field, text, info, wrong);
}

static int hash_right(const redisReply *hash, const pllm_store_info *info, char *wrong)
{
    char mode[8], flags[32], shape[32];
    snprintf(mode, sizeof mode, "%04o", info->mode & 0777);
    snprintf(flags, sizeof flags, "%s%s%s", info->flags & PLLM_STORE_SEALED ? "sealed " : "",
             info->flags & PLLM_STORE_PINNED ? "pinned " : "",
             info->flags & PLLM_STORE_KEPT ? "kept " : "");
    if (*flags) flags[strlen(flags) - 1] = 0;
    snprintf(shape, sizeof shape, "[%llu]", (unsigned long long)info->shape[0]);
    return same_text(hash, "name", info->name, info, wrong) &&
           same_number(hash, "generation", info->generation, info, wrong) &&
           same_number(hash, "refcount", info->references, info, wrong) &&
           same_text(hash, "dtype", pllm_store_dtype_name(info->dtype), info, wrong) &&
           same_text(hash, "shape", shape, info, wrong) &&
           same_number(hash, "bytes", info->bytes, info, wrong) &&
           same_number(hash, "owner_pid", info->owner_pid, info, wrong) &&
           same_number(hash, "uid", info->uid, info, wrong) &&
           same_text(hash, "mode", mode, info, wrong) &&
           same_text(hash, "flags", flags, info, wrong) &&
           same_text(hash, "state", info->spilled ? "spilled" : "ready", info, wrong);
}

static redisContext *redis_open(const storm_shared *shared)
{
    const struct timeval limit = {.tv_sec = 5};
    redisContext *redis = redisConnectUnixWithTimeout(shared->redis, limit);
    if (redis && !redis->err && redisSetTimeout(redis, limit) == REDIS_OK) return redis;
    if (redis) redisFree(redis);
    return NULL;
}

static int hashes_right(redisContext *redis, const listing *list, char *wrong)
{
    redisReply *keys = redisCommand(redis, "KEYS tensor:*");
    int right = keys && keys->type == REDIS_REPLY_ARRAY;
    snprintf(wrong, WRONG_BYTES, "Redis does not answer");
    for (size_t i = 0; right && i < keys->elements; i++) {
        const char *name = keys->element[i]->str + 7;
        uint32_t at = 0;
        while (at < list->count && strcmp(list->infos[at].name, name) != 0) at++;
        if (at == list->count && strcmp(name, "cmd") != 0) {
            snprintf(wrong, WRONG_BYTES, "Redis has tensor:%s, and the daemon has not", name);
            right = 0;
        }
    }
    for (uint32_t i = 0; right && i < list->count; i++) {
        redisReply *hash = redisCommand(redis, "HGETALL tensor:%s", list->infos[i].name);
        right = hash && hash->type == REDIS_REPLY_ARRAY && hash_right(hash, &list->infos[i], wrong);
        if (hash) freeReplyObject(hash);
    }
    if (keys) freeReplyObject(keys);
    return right;
}

static int redis_right(const storm_shared *shared, const listing *list, char *wrong)
{
    redisContext *redis = redis_open(shared);
    snprintf(wrong, WRONG_BYTES, "Redis at %s is not there", shared->redis);
    int right = redis && hashes_right(redis, list, wrong);
    if (redis) redisFree(redis);
    return right;
}

pid_t storm_redis_pid(const storm_shared *shared)
{
    redisContext *redis = redis_open(shared);
    redisReply *info = redis ? redisCommand(redis, "INFO server") : NULL;
    const char *at =
        info && info->type == REDIS_REPLY_STRING ? strstr(info->str, "process_id:") : NULL;
    pid_t pid = at ? atoi(at + 11) : 0;
    if (info) freeReplyObject(info);
    if (redis) redisFree(redis);
    return pid;
}

int storm_redis_do(const storm_shared *shared, const char *command)
{
    redisContext *redis = redis_open(shared);
    redisReply *reply = redis ? redisCommand(redis, command) : NULL;
    int good = reply && reply->type != REDIS_REPLY_ERROR;
    if (reply) freeReplyObject(reply);
    if (redis) redisFree(redis);
    return good;
}

/* ---- memory ---- */

void storm_descriptors(pid_t pid, uint64_t *memory_bytes_out, uint64_t *others_out)
{
    char folder[32], path[300], target[64];
    ino_t seen[1024];
    uint32_t seen_count = 0;
    struct dirent *entry;
    *memory_bytes_out = *others_out = 0;
    snprintf(folder, sizeof folder, "/proc/%d/fd", pid);
    DIR *files = opendir(folder);
    while (files && (entry = readdir(files))) {
        struct stat about;
        if (entry->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        ssize_t bytes = readlink(path, target, sizeof target - 1);
        if (bytes < 0 || stat(path, &about) < 0) continue;
        target[bytes] = 0;
        if (strcmp(target, "/memfd:pagedllm (deleted)") != 0) {
            ++*others_out;
            continue;
        }
        uint32_t at = 0;
        while (at < seen_count && seen[at] != about.st_ino) at++;
        if (at < seen_count || seen_count == 1024) continue;
        seen[seen_count++] = about.st_ino;
        *memory_bytes_out += (uint64_t)about.st_size;
    }
    if (files) closedir(files);
}

uint64_t storm_mapped(pid_t pid, const char *what)
{
    char path[32], line[512];
    uint64_t sum = 0;
    snprintf(path, sizeof path, "/proc/%d/maps", pid);
    FILE *maps = fopen(path, "re");
    while (maps && fgets(line, sizeof line, maps)) {
        unsigned long long from, to;
        if (strstr(line, what) && sscanf(line, "%llx-%llx", &from, &to) == 2) sum += to - from;
    }
    if (maps) fclose(maps);
    return sum;
}

/* What the daemon is charged for in the ledger; UINT64_MAX: it is not there. */
static uint64_t charged(const char *name, pid_t pid, uint64_t *all_out)
{
    pllm_ledger *ledger;
    pllm_ledger_member_info rows[PLLM_LEDGER_MEMBERS_MAX];
    pllm_ledger_totals totals = {.struct_bytes = sizeof totals};
    uint64_t bytes = UINT64_MAX;
    if (pllm_ledger_open(NULL, name, 0, &ledger) < 0) return bytes;
    int count = pllm_ledger_list(ledger, rows, PLLM_LEDGER_MEMBERS_MAX, &totals);
    for (int i = 0; i < count; i++)
        if (rows[i].pid == pid) bytes = rows[i].charged_bytes;
    *all_out = totals.charged_bytes;
    pllm_ledger_close(ledger);
    return bytes;
}

static uint64_t rounded(uint64_t bytes)
{
    return (bytes + STORM_UNIT - 1) / STORM_UNIT * STORM_UNIT;
}

/* What is charged is what is there; alone: and it is what the tensors that are left need. */
static int memory_right(const listing *list, const storm_daemon *daemon, const char *ledger,
                        int alone, char *wrong)
{
    uint64_t files, others, all = 0, least = 0, small = 0, small_count = 0;
    uint64_t charge = charged(ledger, daemon->pid, &all);
    storm_descriptors(daemon->pid, &files, &others);
    uint64_t mapped = storm_mapped(daemon->pid, "/memfd:pagedllm (deleted)");
    for (uint32_t i = 0; i < list->count; i++) {
        if (list->infos[i].spilled) continue;
        if (list->infos[i].bytes > 1 << 20) {
            least += rounded(list->infos[i].bytes);
        } else {
            small += list->infos[i].bytes;
            small_count++;
        }
    }
    uint64_t most = least + small_count * STORM_UNIT + daemon->ready_bytes;
    least += rounded(small);
    snprintf(wrong, WRONG_BYTES,
             "the daemon is charged %llu, has files of %llu and has mapped %llu; %u tensors need "
             "%llu to %llu; the ledger has %llu; %llu other descriptors, %llu at first",
             (unsigned long long)charge, (unsigned long long)files, (unsigned long long)mapped,
             list->count, (unsigned long long)least, (unsigned long long)most,
             (unsigned long long)all, (unsigned long long)others,
             (unsigned long long)daemon->base_fds);
    /* Taken over from an earlier daemon, a file may be charged twice: for readers and for writers
     * of what is in it. What was not taken over stays charged until the processes end that mapped
     * it. */
    if (mapped < files || charge < mapped || charge < least) return 0;
    if (alone && (charge != mapped || (list->count == 0 && charge != files))) return 0;
    return !alone || (charge <= most && all == charge && others == daemon->base_fds);
}

/* ---- all of it ---- */

static void settle(storm_shared *shared, pllm_store *store, const storm_daemon *daemon,
                   const char *ledger, int alone)
{
    listing *list = malloc(sizeof *list);
    char wrong[WRONG_BYTES];
    uint64_t end = pllm_clock_ns() + SETTLE_S * UINT64_C(1000000000);
    for (;;) {
        list_take(shared, store, list);
        if (references_right(shared, list, wrong) &&
            memory_right(list, daemon, ledger, alone, wrong) && redis_right(shared, list, wrong))
            break;
        if (pllm_clock_ns() > end) storm_fail(shared, "when all was quiet: %s", wrong);
        usleep(50000);
    }
    free(list);
}

static void contents_look(storm_shared *shared, pllm_store *store)
{
    listing *list = malloc(sizeof *list);
    list_take(shared, store, list);
    for (uint32_t i = 0; i < list->count; i++) {
        pllm_store_tensor *tensor;
        const pllm_store_info *info = &list->infos[i];
        atomic_fetch_add(&shared->spilled_seen, info->spilled);
        int status = pllm_store_open_tensor(store, info->name, 0, &tensor);
        if (status == PLLM_ENODEVMEM && info->spilled) continue;
        if (status < 0)
            storm_fail(shared, "%s, which is in the list, cannot be opened: %s", info->name,
                       pllm_last_error()->text);
        storm_content_check(shared, tensor, info->poisoned ? UINT64_MAX : info->fence);
        pllm_store_close_tensor(tensor);
    }
    free(list);
}

void storm_look(storm_shared *shared, pllm_store *store, const storm_daemon *daemon,
                const char *ledger)
{
    settle(shared, store, daemon, ledger, 0);
    contents_look(shared, store);
    settle(shared, store, daemon, ledger, 0);
}

static void quota_look(storm_shared *shared, pllm_store *store, const storm_daemon *daemon)
{
    pllm_store_tensor *all, *more;
    pllm_store_spec spec = {.struct_bytes = sizeof spec,
                            .dtype = PLLM_STORE_U8,
                            .rank = 1,
                            .shape = {daemon->quota_bytes}};
    /* What was deleted while a lease of Redis had it is freed with that lease. */
    uint64_t until = pllm_clock_ns() + UINT64_C(5000000000);
    int status = pllm_store_create(store, "quota", &spec, &all);
    while (status < 0 && pllm_clock_ns() < until) {
        usleep(50000);
        status = pllm_store_create(store, "quota", &spec, &all);
    }
    if (status < 0)
        storm_fail(shared, "nobody owns anything, and the quota is not free: %s",
                   pllm_last_error()->text);
    spec.shape[0] = 1;
    if (pllm_store_create(store, "more", &spec, &more) != PLLM_ELIMIT)
        storm_fail(shared, "there is more than the quota");
    pllm_store_close_tensor(all);
}

void storm_look_end(storm_shared *shared, pllm_store *store, const storm_daemon *daemon,
                    const char *ledger)
{
    listing *list = malloc(sizeof *list);
    for (uint32_t i = 0; i < shared->client_count; i++) shared->places[i].hold_count = 0;
    settle(shared, store, daemon, ledger, 1);
    contents_look(shared, store);
    list_take(shared, store, list);
    for (uint32_t i = 0; i < list->count; i++)
        if (pllm_store_delete(store, list->infos[i].name) < 0)
            storm_fail(shared, "%s cannot be deleted: %s", list->infos[i].name,
                       pllm_last_error()->text);
    free(list);
    settle(shared, store, daemon, ledger, 1);
    quota_look(shared, store, daemon);
    settle(shared, store, daemon, ledger, 1);
}
