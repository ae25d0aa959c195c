/* engine_support.c - see engine_support.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "engine_support.h"

const char *test_model_path(const char *source_dir)
{
    static _Thread_local char path[1024];
    const char *given = getenv("PLLM_TEST_MODEL");
    if (given && *given)
        snprintf(path, sizeof path, "%s", given);
    else
        snprintf(path, sizeof path, "%s/models/SmolLM2-135M-Instruct.Q4_1.gguf", source_dir);
    if (access(path, R_OK) != 0) fail_msg("no model at %s: run `make model`", path);
    return path;
}

pllm_engine *test_engine_open(const char *path, const pllm_engine_options *options)
{
    pllm_engine *engine;
    if (pllm_engine_open(NULL, path, options, &engine) < 0)
        fail_msg("%s: %s", path, pllm_last_error()->text);
    return engine;
}

char *test_read_file(const char *path, uint64_t *bytes_out)
{
    FILE *file = fopen(path, "rb");
    if (!file) fail_msg("cannot open %s", path);
    fseek(file, 0, SEEK_END);
    long bytes = ftell(file);
    rewind(file);
    char *text = calloc(1, (size_t)bytes + 1);
    assert_non_null(text);
    assert_int_equal(fread(text, 1, (size_t)bytes, file), bytes);
    fclose(file);
    if (bytes_out) *bytes_out = (uint64_t)bytes;
    return text;
}

uint32_t *test_read_ids(const pllm_safetensors *file, const char *name, uint32_t *count_out)
{
    pllm_safetensors_view view;
    if (pllm_safetensors_find(file, name, &view) < 0) fail_msg("%s", pllm_last_error()->text);
    *count_out = (uint32_t)view.tensor.shape[0];
    uint32_t *ids = calloc(*count_out ? *count_out : 1, sizeof *ids);
    assert_non_null(ids);
    for (uint32_t i = 0; i < *count_out; i++) {
        int64_t id;
        memcpy(&id, (const char *)view.tensor.data + i * sizeof id, sizeof id);
        ids[i] = (uint32_t)id;
    }
    return ids;
}

const float *test_read_floats(const pllm_safetensors *file, const char *name, uint32_t *count_out)
{
    pllm_safetensors_view view;
    if (pllm_safetensors_find(file, name, &view) < 0) fail_msg("%s", pllm_last_error()->text);
    *count_out = (uint32_t)(view.tensor.bytes / sizeof(float));
    return view.tensor.data;
}

int test_collect(void *user, uint32_t id)
{
    test_collector *c = user;
    if (c->count < 64) c->ids[c->count++] = id;
    return 0;
}
