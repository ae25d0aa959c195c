/* family.h - what differs between architectures, as data: one row a family.
 *
 * A forward pass reads these fields instead of asking for a name. Fields exist for differences
 * known from published architectures; a value that no row uses yet is refused by the engine. */
#ifndef PLLM_MODEL_FAMILY_H
#define PLLM_MODEL_FAMILY_H

#include <stdint.h>

typedef enum pllm_norm_kind {
    PLLM_NORM_RMS,          /* x / rms(x) * w */
    PLLM_NORM_RMS_PLUS_ONE, /* x / rms(x) * (1 + w) */
    PLLM_NORM_LAYER,        /* mean removed, with bias */
} pllm_norm_kind;

typedef enum pllm_norm_place {
    PLLM_NORM_BEFORE, /* x + f(norm(x)) */
    PLLM_NORM_AFTER,  /* x + norm(f(x)) */
    PLLM_NORM_AROUND, /* x + norm(f(norm(x))) */
} pllm_norm_place;

typedef enum pllm_activation {
    PLLM_ACTIVATION_SILU,
    PLLM_ACTIVATION_GELU,
    PLLM_ACTIVATION_GELU_TANH,
} pllm_activation;

enum { /* pllm_family.biases */
       PLLM_BIAS_QKV = 1,
       PLLM_BIAS_O = 2,
       PLLM_BIAS_FFN = 4,
};

/* How the tensors of one layer are called in a file; %u is the layer. */
typedef struct pllm_tensor_names {
    const char *embedding, *output_norm, *output;
    const char *attention_norm, *q, *k, *v, *o, *ffn_norm, *gate, *up, *down;
    const char *rope_factors; /* an optional tensor that divides the frequencies; NULL: none */
    int rope_interleaved;     /* q and k rows lie in adjacent pairs */
} pllm_tensor_names;

typedef struct pllm_family {
    const char *name; /* GGUF's general.architecture and config.json's model_type */
    pllm_norm_kind norm;
    pllm_norm_place norm_place;
    pllm_activation activation;
    int gated;                               /* down(act(gate(x)) * up(x)); 0: down(act(up(x))) */
    uint32_t biases;                         /* PLLM_BIAS_* */
    int qk_norm;                             /* q and k are normalised per head */
    int parallel_residual;                   /* x + attention(norm(x)) + ffn(norm(x)) */
    int partial_rotary;                      /* rope.dims may be less than head_dim */
    float softcap_attention, softcap_output; /* 0: none */
    pllm_tensor_names gguf, safetensors;
} pllm_family;

/* NULL when there is no such row. */
const pllm_family *pllm_family_find(const char *name, uint64_t name_bytes);
/* "llama, ...": the names of all rows, for error sentences. Static storage. */
const char *pllm_family_list(void);

#endif
