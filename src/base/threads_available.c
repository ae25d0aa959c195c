/* threads_available.c - how many processors this process may really use: the affinity mask, and
 * the processor quota of its control group and of every group above it, versions 1 and 2. A
 * container with a quota of 2 processors on a 128-processor machine must not start 128 threads. */
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "base/threads.h"

enum { PATH_BYTES = 1024 };

static uint32_t affinity_count(void)
{
    enum { CPU_MAX = 16384 };
    static const size_t bytes = CPU_ALLOC_SIZE(CPU_MAX);
    cpu_set_t bits[CPU_MAX / CPU_SETSIZE];
    memset(bits, 0, sizeof bits);
    if (sched_getaffinity(0, bytes, bits) == 0) {
        int count = CPU_COUNT_S(bytes, bits);
        if (count > 0) return (uint32_t)count;
    }
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (uint32_t)online : 1;
}

static bool read_line(const char *path, char *line, int line_bytes)
{
    FILE *file = fopen(path, "re");
    if (!file) return false;
    bool ok = fgets(line, line_bytes, file) != NULL;
    fclose(file);
    return ok;
}

/* quota and period in microseconds; UINT32_MAX where there is no quota. */
static uint32_t quota_count(long long quota, long long period)
{
    if (quota <= 0 || period <= 0) return UINT32_MAX;
    long long count = (quota + period - 1) / period;
    return count < 1 ? 1 : count > UINT32_MAX ? UINT32_MAX : (uint32_t)count;
}

static uint32_t group_limit_v2(const char *folder)
{
    char path[PATH_BYTES + 16], line[128];
    long long quota, period;
    snprintf(path, sizeof path, "%s/cpu.max", folder);
    if (!read_line(path, line, sizeof line)) return UINT32_MAX;
    if (sscanf(line, "%lld %lld", &quota, &period) != 2) return UINT32_MAX; /* "max 100000" */
    return quota_count(quota, period);
}

static uint32_t group_limit_v1(const char *folder)
{
    char path[PATH_BYTES + 32], line[128];
    long long quota, period;
    snprintf(path, sizeof path, "%s/cpu.cfs_quota_us", folder);
    if (!read_line(path, line, sizeof line) || sscanf(line, "%lld", &quota) != 1) return UINT32_MAX;
    snprintf(path, sizeof path, "%s/cpu.cfs_period_us", folder);
    if (!read_line(path, line, sizeof line) || sscanf(line, "%lld", &period) != 1)
        return UINT32_MAX;
    return quota_count(quota, period);
}

/* The least limit from mount/group up to mount itself. */
static uint32_t least_limit(const char *mount, const char *group,
                            uint32_t (*limit)(const char *folder))
{
    char folder[PATH_BYTES];
    int length = snprintf(folder, sizeof folder, "%s%s", mount, group);
    if (length < 0 || length >= (int)sizeof folder) return UINT32_MAX;
    uint32_t least = UINT32_MAX;
    for (;;) {
        uint32_t here = limit(folder);
        if (here < least) least = here;
        char *slash = strrchr(folder, '/');
        if (!slash || strlen(folder) <= strlen(mount)) return least;
        *slash = '\0';
    }
}

/* Is cpu one of "cpu,cpuacct"? Cuts the list. */
static bool has_cpu(char *controllers)
{
    for (char *rest = controllers, *name; (name = strsep(&rest, ","));)
        if (strcmp(name, "cpu") == 0) return true;
    return false;
}

/* Lines are "hierarchy:controllers:/group"; version 2 has the hierarchy 0 and no controllers. */
static uint32_t cgroup_count(void)
{
    FILE *file = fopen("/proc/self/cgroup", "re");
    if (!file) return UINT32_MAX;
    char line[PATH_BYTES];
    uint32_t least = UINT32_MAX;
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':');
        char *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group) continue;
        *group++ = '\0';
        controllers++;
        uint32_t here = UINT32_MAX;
        if (*controllers == '\0')
            here = least_limit("/sys/fs/cgroup", group, group_limit_v2);
        else if (has_cpu(controllers))
            here = least_limit("/sys/fs/cgroup/cpu", group, group_limit_v1);
        if (here < least) least = here;
    }
    fclose(file);
    return least;
}

uint32_t pllm_threads_available(void)
{
    uint32_t affinity = affinity_count(), quota = cgroup_count();
    return affinity < quota ? affinity : quota;
}
