/* model.h - a model's hyperparameters and weights, read from files that stay mapped.
 *
 * Two layouts are read: a GGUF file (version 2 or 3), and a folder with config.json and
 * safetensors (model.safetensors, or the shards that model.safetensors.index.json names). Weights
 * are not copied: a tensor view points into a private read-only mapping. Every offset, length,
 * count and shape has been checked before a view is handed out, so that whoever walks a view's
 * shape stays inside the file.
 *
 * A file that somebody else shortens while it is mapped raises SIGBUS on the next touch, as with
 * every mapping; replace model files by renaming, not by writing into them.
 *
 * Threads: a model is immutable after open; all calls but close may run concurrently. */
#ifndef PLLM_MODEL_MODEL_H
#define PLLM_MODEL_MODEL_H

#include <stdint.h>
#include "base/context.h"
#include "kernels/dtype.h"
#include "model/family.h"

#define PLLM_NO_TOKEN UINT32_MAX

typedef enum pllm_rope_kind {
    PLLM_ROPE_DEFAULT,
    PLLM_ROPE_LINEAR, /* positions divided by factor */
    PLLM_ROPE_LLAMA3, /* low frequencies divided by factor, smooth in between */
} pllm_rope_kind;

typedef struct pllm_model_shape {
    const pllm_family *family;
    uint32_t layer_count, width, head_count, kv_head_count, head_dim, ffn_width;
    uint32_t vocab_size, context_max;
    float norm_epsilon;
    struct {
        pllm_rope_kind kind;
        float base, factor, low_freq_factor, high_freq_factor; /* factor 1 when unused */
        uint32_t original_context;                             /* llama3 only */
        uint32_t dims;   /* rotated dimensions of a head, even */
        int interleaved; /* 1: pairs (2i, 2i+1), GGUF's llama; 0: pairs (i, i + dims/2) */
    } rope;
    int tied_output;                        /* the output matrix is the embedding */
    uint32_t bos_id, eos_ids[8], eos_count; /* PLLM_NO_TOKEN: none */
} pllm_model_shape;

typedef struct pllm_tensor_view {
    const char *name; /* as in the file; owned by the model */
    pllm_dtype dtype;
    uint32_t rank;
    uint64_t shape[4]; /* row-major: [n, k] for a matrix of n rows; 1 past rank */
    const void *data;  /* aligned to the element, or 8 bytes for block formats; NULL: random
                          weights, whose rows pllm_tensor_random makes */
    uint64_t bytes;
    uint64_t file_offset;
} pllm_tensor_view;

typedef struct pllm_layer_tensors {
    pllm_tensor_view attention_norm, q, k, v, o, ffn_norm, gate, up, down;
} pllm_layer_tensors;

typedef struct pllm_model pllm_model; /* opaque */

typedef struct pllm_model_options {
    uint32_t struct_bytes; /* sizeof(pllm_model_options) */
    uint32_t rank, world;  /* tensor parallelism: only 0 of 1 today */
    uint32_t axis;         /* what is cut: 0 output rows, 1 inputs; of no effect with one part */
} pllm_model_options;

/* Maps and checks the model at path. options may be NULL (rank 0 of 1).
 * Ownership: caller owns *out; borrows context.
 * Errors: ENOTFOUND, EPERM, EIO; ECORRUPT (truncated, or at odds with itself); EINVAL (not a
 * model, nonsense values); EUNSUPPORTED (a version, architecture, rope, quantisation or feature
 * that is not read here, by name); ENOMEM; ELIMIT. Then *out is NULL. */
int pllm_model_open(const pllm_context *context, const char *path,
                    const pllm_model_options *options, pllm_model **out);
void pllm_model_close(pllm_model *model); /* NULL is fine */

/* A published model's shape without its weights, for measuring speed and memory: every matrix has
 * dtype, norms are f32, and the data of every view is NULL. No file is read and no memory taken
 * for weights, so a model of any size opens at once. It has no tokenizer. */
typedef struct pllm_shape_options {
    uint32_t struct_bytes; /* sizeof(pllm_shape_options) */
    const char *name;      /* "llama-2-7b"; see pllm_shape_name */
    pllm_dtype dtype;      /* F32, F16, BF16, Q8_0, Q4_0 or Q4_1 */
    uint32_t context_max;  /* 0: what the model was trained for; random weights know no limit */
} pllm_shape_options;

/* Ownership: caller owns *out; borrows context.
 * Errors: EINVAL; ENOTFOUND (no such shape: the text lists them); EUNSUPPORTED (a shape of a family
 * that does not run yet); ELIMIT (context_max); ENOMEM. Then *out is NULL. */
int pllm_model_open_shape(const pllm_context *context, const pllm_shape_options *options,
                          pllm_model **out);
/* The names of shapes, one after another; NULL past the last. Static storage. */
const char *pllm_shape_name(uint32_t index);
/* 1: the weights are random and no view has data. */
int pllm_model_synthetic(const pllm_model *model);
/* Makes rows of a view whose data is NULL, in its dtype's own layout, as a file would have held
 * them: the same bytes whenever and in whatever pieces. Weights have mean 0 and a deviation of
 * 0.02, which keeps activations of any depth finite; vectors (norms) are 1. */
void pllm_tensor_random(const pllm_tensor_view *view, uint64_t row_first, uint64_t row_count,
                        void *out);

const pllm_model_shape *pllm_model_shape_of(const pllm_model *model);
const pllm_layer_tensors *pllm_model_layer(const pllm_model *model, uint32_t layer);
const pllm_tensor_view *pllm_model_embedding(const pllm_model *model);   /* [vocab, width] */
const pllm_tensor_view *pllm_model_output_norm(const pllm_model *model); /* [width] */
const pllm_tensor_view *pllm_model_output(const pllm_model *model);      /* [vocab, width] */
const char *pllm_model_path(const pllm_model *model);

/* Bytes of all weights, a tied matrix counted once. */
uint64_t pllm_model_bytes(const pllm_model *model);
/* Tells models apart: XXH3 over hyperparameters, metadata, tensor tables and the first 64 bytes of
 * every tensor. Touches at most one page a tensor. The same files give the same number anywhere. */
uint64_t pllm_model_fingerprint(const pllm_model *model);
/* Lets the kernel take back what is mapped of the file in which data, a view's, lies; it is read
 * again when touched. For after a repack. The whole file, since a touch may map its neighbours too,
 * megabytes of them where the file's pages are cached in large folios. */
void pllm_model_drop(const pllm_model *model, const void *data);

#endif
