/* gguf_builder.h - GGUF files made in a test, right ones and wrong ones.
 *
 * gguf_builder_tiny adds the metadata and tensors of a one-layer llama whose tokenizer has all 256
 * bytes, some merges and three added tokens. Overrides, set before, make it wrong in one place. */
#ifndef PLLM_TESTS_GGUF_BUILDER_H
#define PLLM_TESTS_GGUF_BUILDER_H

#include <stdint.h>

typedef struct gguf_bytes {
    uint8_t *data;
    uint64_t bytes, room;
} gguf_bytes;

typedef struct gguf_builder {
    gguf_bytes values, infos;
    uint64_t value_count, tensor_count, data_bytes;
    uint32_t version; /* 0: 3 */
    /* overrides */
    const char *skip;            /* a key or tensor left out */
    const char *odd_tensor;      /* the tensor that odd_* are about */
    uint32_t odd_type, odd_rank; /* with odd_tensor; rank 0: as it was */
    uint64_t odd_dims[4];        /* 0: as it was */
    int64_t odd_shift;           /* added to its offset */
} gguf_builder;

void gguf_put(gguf_bytes *into, const void *data, uint64_t bytes);
void gguf_put_string(gguf_bytes *into, const char *text);

void gguf_builder_raw(gguf_builder *builder, const char *key, uint32_t type, const void *data,
                      uint64_t bytes);
void gguf_builder_u32(gguf_builder *builder, const char *key, uint32_t value);
void gguf_builder_f32(gguf_builder *builder, const char *key, float value);
void gguf_builder_bool(gguf_builder *builder, const char *key, int value);
void gguf_builder_string(gguf_builder *builder, const char *key, const char *text);
void gguf_builder_strings(gguf_builder *builder, const char *key, const char *const *texts,
                          uint64_t count);
void gguf_builder_i32s(gguf_builder *builder, const char *key, const int32_t *items,
                       uint64_t count);
/* dims innermost first; type 0 (f32) or 8 (q8_0). */
void gguf_builder_tensor(gguf_builder *builder, const char *name, uint32_t rank, uint64_t columns,
                         uint64_t rows, uint32_t type);

enum { GGUF_TINY_VOCAB = 256 + 6 + 3 }; /* bytes, merged, "<|im_start|>" "<|im_end|>" "<think>" */
void gguf_builder_tiny(gguf_builder *builder);

/* The file; free() it. Also frees what the builder holds. */
uint8_t *gguf_builder_finish(gguf_builder *builder, uint64_t *bytes_out);

#endif
