/* gguf.h - the GGUF container: metadata values and a table of tensors, in memory already mapped.
 *
 * Layout (little-endian): "GGUF", u32 version, u64 tensor count, u64 value count; values (string
 * key, u32 type, payload); tensor infos (string name, u32 rank, u64 dims, u32 type, u64 offset);
 * padding to general.alignment; data. A string is u64 bytes, then bytes. Source: the format's
 * description in ggml's documentation.
 *
 * Nothing is copied but tensor names: values point into the caller's memory, which must outlive
 * the struct. After a successful parse every value and tensor lies inside the memory given. */
#ifndef PLLM_MODEL_GGUF_H
#define PLLM_MODEL_GGUF_H

#include "model/model.h"
#include "model/text_index.h"

typedef enum pllm_gguf_type { /* numbers of the format */
                              PLLM_GGUF_U8 = 0,
                              PLLM_GGUF_I8 = 1,
                              PLLM_GGUF_U16 = 2,
                              PLLM_GGUF_I16 = 3,
                              PLLM_GGUF_U32 = 4,
                              PLLM_GGUF_I32 = 5,
                              PLLM_GGUF_F32 = 6,
                              PLLM_GGUF_BOOL = 7,
                              PLLM_GGUF_STRING = 8,
                              PLLM_GGUF_ARRAY = 9,
                              PLLM_GGUF_U64 = 10,
                              PLLM_GGUF_I64 = 11,
                              PLLM_GGUF_F64 = 12,
                              PLLM_GGUF_TYPE_COUNT
} pllm_gguf_type;

typedef struct pllm_gguf_value {
    const char *key; /* not NUL-terminated */
    uint64_t key_bytes, key_hash;
    uint32_t type; /* of the elements when is_array */
    int is_array;
    uint64_t count; /* 1 for a scalar */
    const uint8_t *data;
    uint64_t bytes;
} pllm_gguf_value;

typedef struct pllm_gguf {
    const pllm_context *context;
    const char *file; /* for sentences; borrowed */
    const uint8_t *base;
    uint32_t version, alignment;
    uint32_t value_count, tensor_count;
    pllm_gguf_value *values;
    pllm_tensor_view *tensors; /* shapes row-major: the format's dims reversed */
    char *names;
    pllm_text_index index; /* of tensors by name */
    uint64_t data_start;   /* header bytes: everything before it is metadata */
} pllm_gguf;

/* Errors: EINVAL (not GGUF), ECORRUPT, EUNSUPPORTED, ELIMIT, ENOMEM; then nothing is held. */
int pllm_gguf_parse(const pllm_context *context, const char *file, const uint8_t *data,
                    uint64_t bytes, pllm_gguf *gguf);
void pllm_gguf_deinit(pllm_gguf *gguf);

const pllm_tensor_view *pllm_gguf_tensor(const pllm_gguf *gguf, const char *name);
const pllm_gguf_value *pllm_gguf_find(const pllm_gguf *gguf, const char *key);

/* Typed access: 1 when found, 0 when there is no such key (value_out untouched), EINVAL when it is
 * of another type or outside [least, most]. Any integer type passes for u32. */
int pllm_gguf_u32(const pllm_gguf *gguf, const char *key, uint32_t least, uint32_t most,
                  uint32_t *value_out);
int pllm_gguf_f32(const pllm_gguf *gguf, const char *key, float *value_out); /* finite, > 0 */
int pllm_gguf_bool(const pllm_gguf *gguf, const char *key, int *value_out);
int pllm_gguf_string(const pllm_gguf *gguf, const char *key, const char **text_out,
                     uint64_t *bytes_out);
/* An array of strings or i32/u32; 0 when absent. */
int pllm_gguf_array(const pllm_gguf *gguf, const char *key, pllm_gguf_type type,
                    const pllm_gguf_value **value_out);
/* Walks a string array: *at starts as value->data; call at most value->count times. */
const char *pllm_gguf_next_string(const uint8_t **at, uint64_t *bytes_out);
/* Element i of an integer array, of any integer type. */
int64_t pllm_gguf_integer_at(const pllm_gguf_value *value, uint64_t i);

#endif
