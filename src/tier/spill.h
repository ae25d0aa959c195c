/* spill.h - the file behind a disk tier: made, sized, and without a name before it is used. */
#ifndef PLLM_TIER_SPILL_H
#define PLLM_TIER_SPILL_H

#include "tier/disk.h"

typedef struct pllm_spill {
    int fd;
    uint32_t direct;  /* O_DIRECT is in force */
    char note[160];   /* why something fell back */
    char folder[256]; /* for messages; cut if longer */
} pllm_spill;

/* folder NULL or "": the user's cache folder, made if missing, readable by the user alone; a folder
 * that was given must exist. Room is checked first and then taken.
 * Errors: EINVAL, ENOMEM, EIO, ELIMIT; then nothing is left behind. */
int pllm_spill_open(const pllm_context *context, const char *folder, uint64_t bytes,
                    pllm_spill *spill_out);

/* The two backends; on failure the spill stays the caller's. */
int pllm_disk_open_uring(const pllm_context *context, const pllm_disk_options *options,
                         const pllm_spill *spill, pllm_disk **disk_out);
int pllm_disk_open_pread(const pllm_context *context, const pllm_disk_options *options,
                         const pllm_spill *spill, pllm_disk **disk_out);
/* EINVAL unless the request is a whole number of 4 KiB units inside the file. */
int pllm_disk_check(const pllm_disk_request *request, uint64_t file_bytes);
/* Adds a sentence to a disk's note. */
void pllm_disk_note(char note[160], const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
