/* One suite for every disk backend: uring and pread on a file system with O_DIRECT and on tmpfs,
 * sim, and faulty around sim; then the making of the spill file. */
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>
#include "tier/disk_sim.h"
#include "tier_rig.h"

#define OK(call)                                                             \
    do {                                                                     \
        int status_ = (call);                                                \
        if (status_ < 0) fail_msg("%s: %s", #call, pllm_last_error()->text); \
    } while (0)

enum { FILE_BYTES = 8 << 20, STAGING_BYTES = 2 << 20, UNIT = 4096 };

typedef struct disk_case {
    const char *name, *folder; /* folder NULL: sim */
    pllm_disk_kind kind;
    int registered;
} disk_case;

static const disk_case cases[] = {
    {"uring, registered", PLLM_BINARY_DIR, PLLM_DISK_URING, 1},
    {"uring, not registered", PLLM_BINARY_DIR, PLLM_DISK_URING, 0},
    {"uring, tmpfs", "/dev/shm", PLLM_DISK_URING, 1},
    {"pread", PLLM_BINARY_DIR, PLLM_DISK_PREAD, 0},
    {"pread, tmpfs", "/dev/shm", PLLM_DISK_PREAD, 0},
    {"sim", NULL, PLLM_DISK_AUTO, 0},
};
enum { CASES = sizeof cases / sizeof cases[0] };

static pllm_disk *open_case(const disk_case *c, void *staging)
{
    pllm_disk *disk;
    if (!c->folder) {
        disk = tier_rig_disk(NULL, NULL, FILE_BYTES, 3, NULL);
        assert_non_null(disk);
        return disk;
    }
    pllm_disk_options options = {.struct_bytes = sizeof options,
                                 .kind = c->kind,
                                 .folder = c->folder,
                                 .bytes = FILE_BYTES,
                                 .staging = c->registered ? staging : NULL,
                                 .staging_bytes = c->registered ? STAGING_BYTES : 0};
    OK(pllm_disk_open(NULL, &options, &disk));
    assert_string_equal(disk->folder, c->folder);
    return disk;
}

static void submit(pllm_disk *disk, int write, void *buffer, uint64_t offset, uint64_t bytes,
                   uint32_t cookie)
{
    pllm_disk_request request = {buffer, offset, bytes, (uint32_t)write, cookie};
    OK(disk->ops->submit(disk, &request));
}

/* The one request in flight; its status. */
static int finish(pllm_disk *disk, uint32_t cookie)
{
    pllm_disk_completion completion;
    int count = 0;
    for (uint32_t i = 0; i < 1000 && count == 0; i++)
        count = disk->ops->poll(disk, &completion, 1, 1000000000u);
    assert_int_equal(count, 1);
    assert_int_equal(completion.cookie, cookie);
    return completion.status;
}

/* Lengths from one unit to a megabyte, up to the last byte of the file. */
static void suite_round_trip(pllm_disk *disk, char *staging)
{
    uint64_t offset = 0;
    for (uint64_t bytes = UNIT; bytes <= 1 << 20; bytes *= 2) {
        if (bytes == 1 << 20) offset = FILE_BYTES - bytes;
        tier_rig_fill(staging, bytes, bytes);
        submit(disk, 1, staging, offset, bytes, 7);
        assert_int_equal(finish(disk, 7), PLLM_OK);
        memset(staging, 0, bytes);
        submit(disk, 0, staging + (1 << 20), offset, bytes, UINT32_MAX);
        assert_int_equal(finish(disk, UINT32_MAX), PLLM_OK);
        assert_true(tier_rig_matches(staging + (1 << 20), bytes, bytes));
        offset += bytes;
    }
}

/* As many as depth says are taken at once; one more is EBUSY; each completes once. */
static void suite_depth(pllm_disk *disk, char *staging)
{
    uint32_t depth = disk->ops->depth(disk), seen[256] = {0}, taken = 0;
    assert_true(depth >= 4 && depth < 256);
    for (uint32_t round = 0; round < 2; round++) {
        for (uint32_t i = 0; i < depth; i++) {
            char *unit = staging + i * UNIT;
            if (round == 0) tier_rig_fill(unit, UNIT, i);
            if (round == 1) memset(unit, 0, UNIT);
            submit(disk, round == 0, unit, (depth - i) * 2 * UNIT, UNIT, i);
        }
        pllm_disk_request more = {staging, 0, UNIT, 0, depth};
        int status = disk->ops->submit(disk, &more);
        if (status == PLLM_OK)
            taken++; /* some completed already: not refused */
        else
            assert_int_equal(status, PLLM_EBUSY);
        pllm_disk_completion completions[16];
        uint32_t left = depth + (status == PLLM_OK);
        while (left) {
            int count = disk->ops->poll(disk, completions, 16, 1000000000u);
            assert_true(count >= 0 && count <= 16);
            for (int i = 0; i < count; i++) {
                assert_int_equal(completions[i].status, PLLM_OK);
                seen[completions[i].cookie]++;
            }
            left -= (uint32_t)count;
        }
    }
    for (uint32_t i = 0; i < depth; i++) {
        assert_int_equal(seen[i], 2);
        if (i || !taken) assert_true(tier_rig_matches(staging + i * UNIT, UNIT, i));
    }
    pllm_disk_completion none;
    assert_int_equal(disk->ops->poll(disk, &none, 1, UINT64_MAX), 0); /* idle: at once */
}

static void suite_bad_requests(pllm_disk *disk, char *staging)
{
    pllm_disk_request bad[] = {
        {staging + 512, 0, UNIT, 0, 0},
        {staging, 512, UNIT, 0, 0},
        {staging, 0, 512, 0, 0},
        {staging, 0, 0, 0, 0},
        {NULL, 0, UNIT, 0, 0},
        {staging, FILE_BYTES, UNIT, 0, 0},
        {staging, FILE_BYTES - UNIT, 2 * UNIT, 1, 0},
        {staging, UINT64_MAX - UNIT + 1, UNIT, 1, 0},
    };
    for (uint32_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(disk->ops->submit(disk, &bad[i]), PLLM_EINVAL);
}

static void test_every_backend(void **state)
{
    (void)state;
    char *staging = aligned_alloc(UNIT, STAGING_BYTES);
    for (uint32_t i = 0; i < CASES; i++) {
        if (cases[i].kind == PLLM_DISK_URING && !tier_rig_has_uring()) continue;
        pllm_disk *disk = open_case(&cases[i], staging);
        print_message("%s: direct %u, registered %u, \"%s\"\n", cases[i].name, disk->direct,
                      disk->registered, disk->note);
        suite_bad_requests(disk, staging);
        suite_round_trip(disk, staging);
        suite_depth(disk, staging);
        submit(disk, 1, staging, 0, 1 << 20, 1); /* closing waits for it */
        pllm_disk_close(disk);
    }
    free(staging);
}

/* A file that ends early (a file system that lost blocks): EIO, not short data. */
static void test_short_reads_fail(void **state)
{
    (void)state;
    char *staging = aligned_alloc(UNIT, STAGING_BYTES);
    for (uint32_t i = 0; i < CASES; i++) {
        if (!cases[i].folder) continue;
        if (cases[i].kind == PLLM_DISK_URING && !tier_rig_has_uring()) continue;
        pllm_disk *disk = open_case(&cases[i], staging);
        uint32_t cut = 0;
        for (int fd = 3; fd < 256; fd++) { /* the spill file is the one that has its size */
            struct stat file;
            if (fstat(fd, &file) || !S_ISREG(file.st_mode) || file.st_size != FILE_BYTES) continue;
            assert_int_equal(file.st_nlink, 0); /* it has no name */
            assert_int_equal(file.st_mode & 0777, 0600);
            assert_true(file.st_blocks * 512 >= FILE_BYTES); /* its room is taken */
            assert_int_equal(ftruncate(fd, 1 << 20), 0);
            cut++;
        }
        assert_int_equal(cut, 1);
        submit(disk, 0, staging, (1 << 20) - UNIT, 2 * UNIT, 1);
        assert_int_equal(finish(disk, 1), PLLM_EIO);
        submit(disk, 0, staging, 2 << 20, UNIT, 2);
        assert_int_equal(finish(disk, 2), PLLM_EIO);
        submit(disk, 0, staging, 0, UNIT, 3);
        assert_int_equal(finish(disk, 3), PLLM_OK);
        pllm_disk_close(disk);
    }
    free(staging);
}

/* ---- the spill file ---- */

static int open_in(const char *folder, uint64_t bytes, pllm_disk_kind kind, pllm_disk **disk)
{
    pllm_disk_options options = {
        .struct_bytes = sizeof options, .kind = kind, .folder = folder, .bytes = bytes};
    return pllm_disk_open(NULL, &options, disk);
}

static void expect(int status, int expected, const char *part)
{
    assert_int_equal(status, expected);
    if (!strstr(pllm_last_error()->text, part))
        fail_msg("\"%s\" does not say \"%s\"", pllm_last_error()->text, part);
}

static uint32_t entries_in(const char *folder)
{
    uint32_t count = 0;
    DIR *listing = opendir(folder);
    assert_non_null(listing);
    for (struct dirent *entry; (entry = readdir(listing));) count += entry->d_name[0] != '.';
    closedir(listing);
    return count;
}

static void test_refusals_say_why(void **state)
{
    (void)state;
    pllm_disk *disk;
    expect(open_in("/nonexistent/folder", UNIT, PLLM_DISK_AUTO, &disk), PLLM_EIO,
           "/nonexistent/folder");
    assert_null(disk);
    expect(open_in("/proc", UNIT, PLLM_DISK_AUTO, &disk), PLLM_ELIMIT, "--nvme-path");
    expect(open_in(PLLM_BINARY_DIR, (uint64_t)1 << 50, PLLM_DISK_AUTO, &disk), PLLM_ELIMIT,
           "1024 TiB");
    expect(open_in(PLLM_BINARY_DIR, (uint64_t)1 << 50, PLLM_DISK_AUTO, &disk), PLLM_ELIMIT,
           "--nvme-size");
    expect(open_in(PLLM_BINARY_DIR, UINT64_MAX - UNIT + 1, PLLM_DISK_AUTO, &disk), PLLM_ELIMIT,
           PLLM_BINARY_DIR);
    expect(open_in(PLLM_BINARY_DIR, 100, PLLM_DISK_AUTO, &disk), PLLM_EINVAL, "4096");
    expect(open_in(PLLM_BINARY_DIR, 0, PLLM_DISK_AUTO, &disk), PLLM_EINVAL, "4096");
}

/* The default folder is made, for the user alone, and nothing can be seen in it. */
static void test_default_folder(void **state)
{
    (void)state;
    char cache[PATH_MAX + 64], folder[PATH_MAX + 80];
    char *binaries = realpath(PLLM_BINARY_DIR, NULL); /* a relative folder would be ignored */
    assert_non_null(binaries);
    snprintf(cache, sizeof cache, "%s/spill-test-%d/cache", binaries, (int)getpid());
    free(binaries);
    snprintf(folder, sizeof folder, "%s/pagedllm", cache);
    char *old = getenv("XDG_CACHE_HOME");
    setenv("XDG_CACHE_HOME", cache, 1);
    pllm_disk *disk;
    OK(open_in(NULL, 1 << 20, PLLM_DISK_AUTO, &disk));
    assert_string_equal(disk->folder, folder);
    struct stat info;
    assert_int_equal(stat(folder, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0700);
    assert_int_equal(entries_in(folder), 0);
    pllm_disk_close(disk);
    OK(open_in("", 1 << 20, PLLM_DISK_PREAD, &disk)); /* it may be there already */
    pllm_disk_close(disk);
    rmdir(folder), rmdir(cache);
    *strrchr(cache, '/') = 0;
    rmdir(cache);
    if (old)
        setenv("XDG_CACHE_HOME", old, 1);
    else
        unsetenv("XDG_CACHE_HOME");
}

static void test_fallbacks_are_noted(void **state)
{
    (void)state;
    pllm_disk *disk;
    OK(open_in("/dev/shm", 1 << 20, PLLM_DISK_AUTO, &disk));
    assert_int_equal(disk->direct, 0);
    assert_non_null(strstr(disk->note, "tmpfs"));
    pllm_disk_close(disk);
    OK(open_in(PLLM_BINARY_DIR, 1 << 20, PLLM_DISK_AUTO, &disk));
    assert_string_equal(disk->ops->name, tier_rig_has_uring() ? "uring" : "pread");
    pllm_disk_close(disk);
    /* no more descriptors: io_uring cannot be had, the pool of threads can */
    int last = dup(0);
    struct rlimit before, tight;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    tight = before;
    tight.rlim_cur = (rlim_t)last + 1; /* room for the spill file only */
    close(last);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &tight), 0);
    int status = open_in(PLLM_BINARY_DIR, 1 << 20, PLLM_DISK_AUTO, &disk);
    setrlimit(RLIMIT_NOFILE, &before);
    OK(status);
    assert_string_equal(disk->ops->name, "pread");
    assert_non_null(strstr(disk->note, "io_uring"));
    pllm_disk_close(disk);
}

/* The descriptor of the only ring that is open. */
static int ring_descriptor(void)
{
    for (int fd = 3; fd < 1024; fd++) {
        char path[32], target[64];
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(path, target, sizeof target - 1);
        if (length < 0) continue;
        target[length] = '\0';
        if (!strcmp(target, "anon_inode:[io_uring]")) return fd;
    }
    return -1;
}

/* Goal: close waits for what the kernel holds even where every poll fails, for the buffers go next.
 * Method: the ring's descriptor is replaced behind the backend's back while much is being read. */
static void test_close_waits_without_its_ring(void **state)
{
    (void)state;
    enum { REQUESTS = 64, EACH = 256 << 10, BYTES = REQUESTS * EACH };
    if (!tier_rig_has_uring()) return;
    pllm_disk_options options = {.struct_bytes = sizeof options,
                                 .kind = PLLM_DISK_URING,
                                 .folder = PLLM_BINARY_DIR,
                                 .bytes = BYTES};
    pllm_disk *disk;
    char *buffer = aligned_alloc(UNIT, BYTES);
    assert_non_null(buffer);
    OK(pllm_disk_open(NULL, &options, &disk));
    memset(buffer, 0x11, BYTES);
    for (uint32_t i = 0; i < REQUESTS; i++) {
        submit(disk, 1, buffer, (uint64_t)i * EACH, EACH, i);
        assert_int_equal(finish(disk, i), PLLM_OK);
    }
    memset(buffer, 0xee, BYTES);
    for (uint32_t i = 0; i < REQUESTS; i++)
        submit(disk, 0, buffer + (uint64_t)i * EACH, (uint64_t)i * EACH, EACH, i);
    int ring = ring_descriptor(), null = open("/dev/null", O_RDWR | O_CLOEXEC);
    assert_true(ring >= 0 && null >= 0);
    assert_int_equal(dup2(null, ring), ring);
    close(null);
    pllm_disk_close(disk);
    for (uint64_t i = 0; i < BYTES; i += UNIT) assert_int_equal(buffer[i], 0x11);
    free(buffer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_backend),
        cmocka_unit_test(test_short_reads_fail),
        cmocka_unit_test(test_refusals_say_why),
        cmocka_unit_test(test_default_folder),
        cmocka_unit_test(test_fallbacks_are_noted),
        cmocka_unit_test(test_close_waits_without_its_ring),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
