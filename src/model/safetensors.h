/* safetensors.h - one safetensors file: named tensors behind a JSON header.
 *
 * Layout: u64 little-endian header bytes, the header (JSON: name -> dtype, shape, data_offsets),
 * then the data, which the tensors cover without hole or overlap. Source: the format section of
 * the safetensors project's README.
 *
 * Used for weights, and by tests for reference values (I64, F32). */
#ifndef PLLM_MODEL_SAFETENSORS_H
#define PLLM_MODEL_SAFETENSORS_H

#include "model/model.h"

typedef struct pllm_safetensors pllm_safetensors; /* opaque */

enum { PLLM_SAFETENSORS_RANK_MAX = 8 };

typedef struct pllm_safetensors_view {
    pllm_tensor_view tensor; /* tensor.dtype is PLLM_DTYPE_COUNT for an integer or bool tensor */
    const char *dtype_name;  /* "F32", "I64", ...: static storage */
    uint32_t element_bytes;
    uint64_t shape[PLLM_SAFETENSORS_RANK_MAX]; /* tensor.shape has the first four; 1 past rank */
} pllm_safetensors_view;

/* Ownership: caller owns *out; views point into it. Errors: as pllm_model_open. */
int pllm_safetensors_open(const pllm_context *context, const char *path, pllm_safetensors **out);
/* The same over memory that outlives *out; file is for error sentences and is copied. */
int pllm_safetensors_parse(const pllm_context *context, const char *file, const uint8_t *data,
                           uint64_t bytes, pllm_safetensors **out);
void pllm_safetensors_close(pllm_safetensors *file); /* NULL is fine */

/* ENOTFOUND, with a sentence, when there is no such tensor. */
int pllm_safetensors_find(const pllm_safetensors *file, const char *name,
                          pllm_safetensors_view *view_out);
/* The same without a sentence: NULL. */
const pllm_safetensors_view *pllm_safetensors_peek(const pllm_safetensors *file, const char *name);
uint32_t pllm_safetensors_count(const pllm_safetensors *file);
/* index < count, in the order of the data. */
const pllm_safetensors_view *pllm_safetensors_at(const pllm_safetensors *file, uint32_t index);
const char *pllm_safetensors_path(const pllm_safetensors *file);
/* The mapped file; NULL if it was parsed from memory. */
const uint8_t *pllm_safetensors_map(const pllm_safetensors *file, uint64_t *bytes_out);
/* Header and length word, for fingerprints. */
const uint8_t *pllm_safetensors_header(const pllm_safetensors *file, uint64_t *bytes_out);

#endif
