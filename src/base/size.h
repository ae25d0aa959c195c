/* size.h - byte sizes as people write and read them.
 *
 * 24GB is 24x10^9 bytes, 24GiB is 24x2^30; a bare number is bytes. */
#ifndef PLLM_BASE_SIZE_H
#define PLLM_BASE_SIZE_H

#include <stddef.h>
#include <stdint.h>

#define PLLM_SIZE_UNLIMITED UINT64_MAX
enum { PLLM_SIZE_TEXT_BYTES = 32 }; /* room enough for any pllm_size_text */

/* Number [space] [unit]; the unit is B, KB, MB, GB, TB, KiB, MiB, GiB or TiB, also in lower case
 * ("24gb", "24gib", "24kB"), but not "Gb", which means bits elsewhere, nor "G", which means either.
 * A fraction is exact and rounded to the nearest byte, half up: 1.5GiB, 0.1KiB is 102. "unlimited"
 * is PLLM_SIZE_UNLIMITED. Spaces around are skipped.
 * Errors: EINVAL, with a sentence that shows a right one; *bytes_out is then unchanged. */
int pllm_size_parse(const char *text, uint64_t *bytes_out);

/* "24 GB", "1.5 GiB", "123 B", "unlimited": decimal where that is exact and binary is not, else
 * binary with at most two decimals. Returns buffer, always ended; cut if too small. */
const char *pllm_size_text(uint64_t bytes, char *buffer, size_t buffer_bytes);
/* The same, but never less than bytes: for the least of something, which people type back. */
const char *pllm_size_text_up(uint64_t bytes, char *buffer, size_t buffer_bytes);

#endif
