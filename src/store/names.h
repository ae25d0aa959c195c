/* names.h - what may be said about a tensor: names, element types, shapes, modes, devices, tokens.
 *
 * Everything that comes from outside (a socket message, a line of JSON, a command line) passes
 * through here before anything is allocated or looked up. All functions are pure. Those that return
 * int fill the error record with a sentence that says what is wrong and shows a right one. Text is
 * given with its length and need not end in a zero.
 *
 * A token is what stands in `ipc_handle` where memory passes as descriptors: base64 of slot and
 * generation. It is an address, not a secret: who redeems it over the socket must be allowed to. */
#ifndef PLLM_STORE_NAMES_H
#define PLLM_STORE_NAMES_H

#include <stddef.h>
#include <stdint.h>
#include <pagedllm/tensor_store.h>

#define PLLM_STORE_BYTES_MAX ((uint64_t)1 << 48) /* of one tensor */

enum {
    PLLM_STORE_SHAPE_TEXT_BYTES = 2 + PLLM_STORE_RANK_MAX * 17, /* "[2,3,4]", its zero included */
    PLLM_STORE_UUID_BYTES = 48,                                 /* as in pllm_device_info */
    PLLM_STORE_MODE_DEFAULT = 0600,
    PLLM_STORE_MODE_MASK = 0666,
    PLLM_STORE_TOKEN_BYTES = 33, /* base64 text of a token, its zero included */
};

/* 1 to 128 of A-Z a-z 0-9 . _ - / : and not "cmd", which is the key of the command list.
 * Errors: EINVAL. */
int pllm_store_name_check(const char *name, size_t bytes);
/* The same alphabet; may be empty (every name begins with it) and may be "cmd". Errors: EINVAL. */
int pllm_store_prefix_check(const char *prefix, size_t bytes);

int pllm_store_dtype_parse(const char *text, size_t bytes, uint32_t *dtype_out); /* EINVAL */

/* Bytes of a tensor: rank 0 is one element. Errors: EINVAL (no such dtype, rank over 8, a dimension
 * of 0), ELIMIT (more than PLLM_STORE_BYTES_MAX, or an overflow). */
int pllm_store_shape_bytes(uint32_t dtype, uint32_t rank, const uint64_t *shape,
                           uint64_t *bytes_out);
/* "[2,3,4]"; spaces are allowed around numbers, "[]" is rank 0. Numbers are decimal, without sign
 * or leading zeros, and at least 1. shape_out has PLLM_STORE_RANK_MAX places; those past rank
 * become 0. Errors: EINVAL, ELIMIT. */
int pllm_store_shape_parse(const char *text, size_t bytes, uint32_t *rank_out, uint64_t *shape_out);
/* Without spaces. Dimensions are at most PLLM_STORE_BYTES_MAX. Returns buffer, always ended. */
const char *pllm_store_shape_text(uint32_t rank, const uint64_t *shape,
                                  char buffer[PLLM_STORE_SHAPE_TEXT_BYTES]);

/* Read (4) and write (2) for owner, group and others, as chmod counts; 0 stands for 0600. Bits
 * beyond 0666, and a mode that lets its owner do nothing, are EINVAL. */
int pllm_store_mode_check(uint32_t mode, uint32_t *mode_out);

/* Which device text means, among count of them: "" the first; its number in decimal; or its UUID,
 * whole or a beginning that fits one alone. Errors: EINVAL, ENOTFOUND. */
int pllm_store_device_find(const char *text, size_t bytes, const char *const *uuids, uint32_t count,
                           uint32_t *index_out);

/* Base64 (RFC 4648, with padding). encode returns the length without its zero, or 0 if text_bytes
 * is too small. decode: EINVAL if it is no base64 or does not fit. */
size_t pllm_store_base64_encode(const void *data, size_t bytes, char *text, size_t text_bytes);
int pllm_store_base64_decode(const char *text, size_t text_bytes, void *data, size_t data_bytes,
                             size_t *bytes_out);

const char *pllm_store_token_text(uint32_t slot, uint64_t generation,
                                  char text[PLLM_STORE_TOKEN_BYTES]);
int pllm_store_token_parse(const char *text, size_t bytes, uint32_t *slot_out,
                           uint64_t *generation_out); /* EINVAL */

#endif
