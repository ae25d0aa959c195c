/* config.h - hyperparameters out of config.json or GGUF metadata, in one struct and checked. */
#ifndef PLLM_MODEL_CONFIG_H
#define PLLM_MODEL_CONFIG_H

#include "model/gguf.h"
#include "model/model.h"

/* The text of a config.json, old style (rope_theta, rope_scaling) or new (rope_parameters).
 * Errors: ECORRUPT (no JSON), EINVAL (missing or nonsense value), EUNSUPPORTED, ENOMEM. */
int pllm_config_parse(const pllm_context *context, const char *file, const void *text,
                      uint64_t bytes, pllm_model_shape *shape);
/* The same from GGUF metadata. vocab_size may stay 0: the embedding's rows then decide. */
int pllm_config_from_gguf(const pllm_gguf *gguf, pllm_model_shape *shape);

/* The divisors of the rotary frequencies that a GGUF file carries instead of naming a rope kind:
 * dims/2 numbers. Llama 3's (of which only the result is stored) are recognised and become
 * PLLM_ROPE_LLAMA3; all ones change nothing. Errors: EUNSUPPORTED (others), ECORRUPT. */
int pllm_config_rope_factors(const char *file, const pllm_tensor_view *factors,
                             pllm_model_shape *shape);

#endif
