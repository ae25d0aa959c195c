/* model_internal.h - inside a pllm_model, for the tokenizer, the chat template and tests. */
#ifndef PLLM_MODEL_INTERNAL_H
#define PLLM_MODEL_INTERNAL_H

#include "model/gguf.h"
#include "model/model.h"

/* The metadata of a GGUF model; NULL for a folder. */
const pllm_gguf *pllm_model_gguf(const pllm_model *model);
const pllm_context *pllm_model_context(const pllm_model *model);

/* A model over a GGUF file already in memory, which must outlive it (tests, fuzzing). */
int pllm_model_open_gguf_memory(const pllm_context *context, const char *file, const uint8_t *data,
                                uint64_t bytes, pllm_model **out);

#endif
