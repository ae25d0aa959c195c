/* weights.h - a model's matrices packed for the kernels, its norms as f32.
 *
 * Packing reads each tensor once from the file mapping and lets those pages go, so that weights
 * are in memory once. A tied output matrix is packed once and serves both ends. */
#ifndef PLLM_ENGINE_WEIGHTS_H
#define PLLM_ENGINE_WEIGHTS_H

#include "base/threads.h"
#include "kernels/kernels.h"
#include "model/model.h"

/* One linear operation. adapter is the seam for low-rank adapters: NULL until they exist. The
 * device that runs it is the engine's. */
typedef struct pllm_operation {
    pllm_linear linear;
    const void *adapter;
} pllm_operation;

typedef struct pllm_layer_weights {
    float *attention_norm, *ffn_norm; /* [width] */
    pllm_operation q, k, v, o, gate, up, down;
} pllm_layer_weights;

typedef struct pllm_weights {
    const pllm_context *context;
    uint32_t layer_count;
    pllm_layer_weights *layers;
    pllm_operation embedding, output; /* output.linear.panels == embedding's when tied */
    float *output_norm;
    uint64_t packed_bytes;
    int tied;
} pllm_weights;

/* Packs every tensor of the model on the team's threads. progress may be NULL; its non-zero return
 * stops with ECANCELED. Errors: EUNSUPPORTED (a format the kernels do not multiply), ENOMEM. After
 * an error weights is deinitialised. */
int pllm_weights_init(pllm_weights *weights, const pllm_context *context, const pllm_model *model,
                      const pllm_kernels *kernels, pllm_compute compute, pllm_threads *threads,
                      int (*progress)(void *user, const char *what, uint64_t done, uint64_t total),
                      void *user);
void pllm_weights_deinit(pllm_weights *weights);

#endif
