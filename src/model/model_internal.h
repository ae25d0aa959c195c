/* model_internal.h - inside a pllm_model, for the rest of this module and for tests. */
#ifndef PLLM_MODEL_INTERNAL_H
#define PLLM_MODEL_INTERNAL_H

#include "model/file_map.h"
#include "model/gguf.h"
#include "model/model.h"
#include "model/safetensors.h"

struct pllm_model {
    const pllm_context *context;
    char *path, *config_path;
    pllm_model_shape shape;
    pllm_file_map map; /* the GGUF file, or config.json */
    pllm_gguf gguf;
    int is_gguf;
    pllm_safetensors **shards;
    uint32_t shard_count;
    pllm_layer_tensors *layers;
    pllm_tensor_view embedding, output_norm, output;
    char *names; /* of a named shape's tensors */
    int synthetic;
    uint64_t bytes, fingerprint;
};

/* The metadata of a GGUF model; NULL for a folder. */
const pllm_gguf *pllm_model_gguf(const pllm_model *model);
const pllm_context *pllm_model_context(const pllm_model *model);

/* An empty model with its path copied. */
int pllm_model_create(const pllm_context *context, const char *path, pllm_model **out);
/* A model over a GGUF file already in memory, which must outlive it (tests, fuzzing). */
int pllm_model_open_gguf_memory(const pllm_context *context, const char *file, const uint8_t *data,
                                uint64_t bytes, pllm_model **out);

#endif
