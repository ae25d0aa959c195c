/* file_map.h - a whole file, mapped privately and read-only. */
#ifndef PLLM_MODEL_FILE_MAP_H
#define PLLM_MODEL_FILE_MAP_H

#include "base/context.h"

typedef struct pllm_file_map {
    const uint8_t *data; /* NULL when closed */
    uint64_t bytes;
} pllm_file_map;

/* Errors: ENOTFOUND, EPERM, EIO, EINVAL (not a regular file), ECORRUPT (empty). */
int pllm_file_map_open(const char *path, pllm_file_map *map);
void pllm_file_map_close(pllm_file_map *map);

/* Text from a file made fit for an error sentence: at most 79 bytes, printable ASCII, the rest
 * '?'. Returns shown. */
const char *pllm_printable(char shown[80], const void *text, uint64_t bytes);

#endif
