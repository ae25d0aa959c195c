/* machine.c - what this machine is: memory the process may still take, the processor's name, an id.
 *
 * Memory available: MemAvailable of /proc/meminfo, and no more than what the process's control
 * groups leave (version 2: memory.max of the group and each parent; version 1:
 * memory.limit_in_bytes). Page cache counts as free in both, since the kernel gives it up. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "device/arena.h"
#include "device/open.h"

/* The number on the line of path that starts with key ("" for a bare number); fallback if none. */
static uint64_t read_number(const char *path, const char *key, uint64_t fallback)
{
    FILE *file = fopen(path, "re");
    if (!file) return fallback;
    char line[256];
    uint64_t value = fallback;
    size_t key_bytes = strlen(key);
    while (fgets(line, sizeof line, file)) {
        if (strncmp(line, key, key_bytes) != 0) continue;
        char *end;
        unsigned long long number = strtoull(line + key_bytes, &end, 10);
        if (end != line + key_bytes) value = number;
        break;
    }
    fclose(file);
    return value;
}

/* Where a control group says what: versions 1 and 2. */
static const struct group_names {
    const char *limit, *used, *cache;
} group_names[] = {
    {"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "},
    {"memory.max", "memory.current", "inactive_file "},
};

static uint64_t group_limit(const char *folder, const struct group_names *names)
{
    char path[640];
    snprintf(path, sizeof path, "%s/%s", folder, names->limit);
    uint64_t limit = read_number(path, "", UINT64_MAX); /* "max" is no number */
    return limit > UINT64_MAX / 4 ? UINT64_MAX : limit;
}

/* Bytes one control group leaves; UINT64_MAX where it sets no limit. */
static uint64_t group_left(const char *folder, const struct group_names *names)
{
    char path[640];
    uint64_t limit = group_limit(folder, names);
    if (limit == UINT64_MAX) return limit;
    snprintf(path, sizeof path, "%s/%s", folder, names->used);
    uint64_t used = read_number(path, "", 0);
    snprintf(path, sizeof path, "%s/memory.stat", folder);
    uint64_t cache = read_number(path, names->cache, 0);
    used -= cache < used ? cache : used;
    return used < limit ? limit - used : 0;
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* The least of what each says, from the group that the process is in up to the root of the mount.
 */
static uint64_t groups_least(uint64_t (*ask)(const char *folder, const struct group_names *names))
{
    FILE *file = fopen("/proc/self/cgroup", "re");
    if (!file) return UINT64_MAX;
    uint64_t left = UINT64_MAX;
    char line[320];
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = '\0';
        char *names = strchr(line, ':');
        char *group = names ? strchr(names + 1, ':') : NULL;
        if (!group) continue;
        *group++ = '\0';
        int version_2 = names[1] == '\0';
        if (!version_2 && strcmp(names + 1, "memory") != 0) continue;
        const char *root = version_2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
        char folder[400];
        for (;;) {
            snprintf(folder, sizeof folder, "%s%s", root, strcmp(group, "/") ? group : "");
            left = least(left, ask(folder, &group_names[version_2]));
            char *slash = strrchr(group, '/');
            if (!slash || group[0] == '\0' || strcmp(group, "/") == 0) break;
            *slash = '\0';
        }
    }
    fclose(file);
    return left;
}

uint64_t pllm_machine_available_bytes(void)
{
    uint64_t kibibytes = read_number("/proc/meminfo", "MemAvailable:", UINT64_MAX);
    uint64_t machine = kibibytes == UINT64_MAX
                           ? (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE)
                           : kibibytes * 1024;
    return least(machine, groups_least(group_left));
}

uint64_t pllm_machine_total_bytes(void)
{
    uint64_t machine = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    return least(machine, groups_least(group_limit));
}

void pllm_machine_name(char *text, uint64_t text_bytes)
{
    snprintf(text, text_bytes, "host processor");
    FILE *file = fopen("/proc/cpuinfo", "re");
    if (!file) return;
    char line[256];
    while (fgets(line, sizeof line, file)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || !colon) continue;
        char *name = colon + 1 + strspn(colon + 1, " \t");
        name[strcspn(name, "\n")] = '\0';
        snprintf(text, text_bytes, "%s", name);
        break;
    }
    fclose(file);
}

void pllm_machine_uuid(char *text, uint64_t text_bytes)
{
    /* FNV-1a of the machine id: stable, and does not hand the id itself out. */
    uint64_t hash = 0xcbf29ce484222325u;
    FILE *file = fopen("/etc/machine-id", "re");
    for (int c; file && (c = fgetc(file)) != EOF && c != '\n';)
        hash = (hash ^ (uint64_t)c) * 0x100000001b3u;
    if (file) fclose(file);
    snprintf(text, text_bytes, "HOST-%016llx", (unsigned long long)hash);
}
