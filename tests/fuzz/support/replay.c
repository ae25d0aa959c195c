/* replay.c - runs a fuzz target over its corpus without libFuzzer: an ordinary test, for every
 * compiler and sanitizer.
 *
 * Files named valid_* must parse, files named invalid_* must not; others (found by fuzzing) only
 * have to do no harm. Each file is also cut short and mutated a bounded number of times, from a
 * fixed seed, since most parsers break at a length that is not there. Every input is an allocation
 * of exactly its size, so that the address sanitizer sees one byte too many. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "fuzz.h"

enum { CUT_MAX = 200, MUTATION_MAX = 300, WORK_BYTES_MAX = 32 << 20 };

static uint64_t random_state = 0x9e3779b97f4a7c15u;

static uint32_t random_below(uint32_t limit)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((random_state >> 32) % limit);
}

static int run(const uint8_t *data, size_t size)
{
    uint8_t *exact = size ? malloc(size) : NULL;
    if (size) memcpy(exact, data, size);
    int parsed = fuzz_parses(exact, size);
    free(exact);
    return parsed;
}

static uint8_t *file_read(const char *path, size_t *size_out)
{
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) return NULL;
    long size = ftell(file);
    rewind(file);
    uint8_t *data = malloc(size > 0 ? (size_t)size : 1);
    *size_out = fread(data, 1, (size_t)size, file);
    fclose(file);
    return data;
}

/* A large file gets fewer, so that the test stays fast. */
static uint32_t bounded(uint32_t wanted, size_t size)
{
    size_t most = WORK_BYTES_MAX / (size + 1);
    return most < wanted ? (uint32_t)most : wanted;
}

static void cut_and_mutate(const uint8_t *data, size_t size)
{
    static const uint8_t edges[] = {0x00, 0x01, 0x7f, 0x80, 0xff, '"', '\\', '{', '0', '\n'};
    uint32_t cuts = bounded(CUT_MAX, size), mutations = bounded(MUTATION_MAX, size);
    if (size == 0) return;
    if (size <= cuts)
        for (size_t length = 0; length < size; length++) run(data, length);
    else
        for (uint32_t i = 0; i < cuts; i++) run(data, random_below((uint32_t)size));
    uint8_t *copy = malloc(size);
    for (uint32_t i = 0; i < mutations; i++) {
        memcpy(copy, data, size);
        /* Headers come first: every other mutation lands in the first 256 bytes. */
        uint32_t reach = i % 2 && size > 256 ? 256 : (uint32_t)size;
        uint32_t at = random_below(reach), kind = random_below(3);
        if (kind == 0)
            copy[at] ^= (uint8_t)(1u << random_below(8));
        else if (kind == 1)
            copy[at] = edges[random_below(sizeof edges)];
        else /* a length or offset becomes huge */
            memset(copy + at, 0xff, size - at < 8 ? size - at : 8);
        run(copy, size);
    }
    free(copy);
}

int main(int argc, char **argv)
{
    DIR *folder = argc == 2 ? opendir(argv[1]) : NULL;
    if (!folder) {
        fprintf(stderr, "usage: %s CORPUS_FOLDER (it must exist)\n", argv[0]);
        return 2;
    }
    int wrong = 0, files = 0, valid = 0;
    run(NULL, 0);
    for (struct dirent *entry; (entry = readdir(folder));) {
        if (entry->d_name[0] == '.') continue;
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", argv[1], entry->d_name);
        size_t size;
        uint8_t *data = file_read(path, &size);
        if (!data) {
            fprintf(stderr, "%s cannot be read\n", path);
            wrong++;
            continue;
        }
        int parsed = run(data, size);
        int must = strncmp(entry->d_name, "valid_", 6) == 0;
        int must_not = strncmp(entry->d_name, "invalid_", 8) == 0;
        if ((must && !parsed) || (must_not && parsed)) {
            fprintf(stderr, "%s: %s\n", path, parsed ? "was taken" : "was refused");
            wrong++;
        }
        cut_and_mutate(data, size);
        free(data);
        files++;
        valid += must;
    }
    closedir(folder);
    printf("%d files, %d of them valid, %d wrong\n", files, valid, wrong);
    if (valid == 0)
        fprintf(stderr, "%s has no valid_* file: a parser that refuses all passes\n", argv[1]);
    return wrong || valid == 0;
}
