/* fuzz.h - what a fuzz target gives, and what helps it. See ../README.md. */
#ifndef PLLM_TESTS_FUZZ_H
#define PLLM_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>

/* The target's one function: feeds bytes to a parser, checks what must hold of the result, frees
 * everything. Returns 1 if the parser took them, 0 if it refused. data has exactly size bytes and
 * may be NULL when size is 0. Anything wrong: FUZZ_CHECK. Nothing may outlive the call. */
int fuzz_parses(const uint8_t *data, size_t size);

/* Holds in every build, unlike assert. */
#define FUZZ_CHECK(condition) \
    ((condition) ? (void)0 : fuzz_check_failed(#condition, __FILE__, __LINE__))
void fuzz_check_failed(const char *condition, const char *file, int line) __attribute__((noreturn));

/* For parsers that open a path: the bytes as a file in memory. The name is valid until the next
 * call; only one such file is open at a time. */
const char *fuzz_file(const uint8_t *data, size_t size);

/* A refusal must have a status below 0 and a sentence that is not empty; returns status == 0. */
int fuzz_refusal_is_clear(int status);

#endif
