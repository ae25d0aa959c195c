/* engine_support.h - what tests of the engine share: the real model's path, reference values. */
#ifndef PLLM_TESTS_ENGINE_SUPPORT_H
#define PLLM_TESTS_ENGINE_SUPPORT_H

#include <stdint.h>
#include <pagedllm/engine.h>
#include "model/safetensors.h"

/* PLLM_TEST_MODEL, or models/SmolLM2-135M-Instruct.Q4_1.gguf in the tree. Fails the test, saying
 * what to type, where there is none. */
const char *test_model_path(const char *source_dir);
/* An engine, or a failed test with the reason. */
pllm_engine *test_engine_open(const char *path, const pllm_engine_options *options);
/* A file's whole content, zero-terminated; fails the test if it cannot be read. free() it. */
char *test_read_file(const char *path, uint64_t *bytes_out);
/* A reference tensor of I64 as ids. free() it. */
uint32_t *test_read_ids(const pllm_safetensors *file, const char *name, uint32_t *count_out);
const float *test_read_floats(const pllm_safetensors *file, const char *name, uint32_t *count_out);

/* The ids that a generation made, the first 64: give test_collect and this as token and user. */
typedef struct test_collector {
    uint32_t ids[64], count;
} test_collector;
int test_collect(void *user, uint32_t id);

#endif
