/* gguf_builder.c - writes the container field by field, after the format's description. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "gguf_builder.h"

void gguf_put(gguf_bytes *into, const void *data, uint64_t bytes)
{
    if (into->bytes + bytes > into->room) {
        into->room = (into->bytes + bytes) * 2 + 256;
        into->data = realloc(into->data, into->room);
        if (!into->data) abort();
    }
    if (bytes > 0) memcpy(into->data + into->bytes, data, bytes);
    into->bytes += bytes;
}

void gguf_put_string(gguf_bytes *into, const char *text)
{
    uint64_t bytes = strlen(text);
    gguf_put(into, &bytes, 8);
    gguf_put(into, text, bytes);
}

static int skipped(const gguf_builder *builder, const char *name)
{
    return builder->skip && strcmp(builder->skip, name) == 0;
}

void gguf_builder_raw(gguf_builder *builder, const char *key, uint32_t type, const void *data,
                      uint64_t bytes)
{
    if (skipped(builder, key)) return;
    gguf_put_string(&builder->values, key);
    gguf_put(&builder->values, &type, 4);
    gguf_put(&builder->values, data, bytes);
    builder->value_count++;
}

void gguf_builder_u32(gguf_builder *builder, const char *key, uint32_t value)
{
    gguf_builder_raw(builder, key, 4, &value, 4);
}

void gguf_builder_f32(gguf_builder *builder, const char *key, float value)
{
    gguf_builder_raw(builder, key, 6, &value, 4);
}

void gguf_builder_bool(gguf_builder *builder, const char *key, int value)
{
    uint8_t byte = value != 0;
    gguf_builder_raw(builder, key, 7, &byte, 1);
}

void gguf_builder_string(gguf_builder *builder, const char *key, const char *text)
{
    gguf_bytes payload = {0};
    gguf_put_string(&payload, text);
    gguf_builder_raw(builder, key, 8, payload.data, payload.bytes);
    free(payload.data);
}

void gguf_builder_strings(gguf_builder *builder, const char *key, const char *const *texts,
                          uint64_t count)
{
    gguf_bytes payload = {0};
    uint32_t type = 8;
    gguf_put(&payload, &type, 4);
    gguf_put(&payload, &count, 8);
    for (uint64_t i = 0; i < count; i++) gguf_put_string(&payload, texts[i]);
    gguf_builder_raw(builder, key, 9, payload.data, payload.bytes);
    free(payload.data);
}

void gguf_builder_i32s(gguf_builder *builder, const char *key, const int32_t *items, uint64_t count)
{
    gguf_bytes payload = {0};
    uint32_t type = 5;
    gguf_put(&payload, &type, 4);
    gguf_put(&payload, &count, 8);
    gguf_put(&payload, items, count * 4);
    gguf_builder_raw(builder, key, 9, payload.data, payload.bytes);
    free(payload.data);
}

void gguf_builder_tensor(gguf_builder *builder, const char *name, uint32_t rank, uint64_t columns,
                         uint64_t rows, uint32_t type)
{
    if (skipped(builder, name)) return;
    uint64_t bytes = (type == 8 ? columns / 32 * 34 : columns * 4) * rows;
    uint64_t dims[4] = {columns, rows, 1, 1}, offset = builder->data_bytes;
    if (builder->odd_tensor && strcmp(builder->odd_tensor, name) == 0) {
        if (builder->odd_rank) rank = builder->odd_rank;
        if (builder->odd_type) type = builder->odd_type;
        for (uint32_t i = 0; i < 4; i++)
            if (builder->odd_dims[i]) dims[i] = builder->odd_dims[i];
        offset += (uint64_t)builder->odd_shift;
    }
    gguf_put_string(&builder->infos, name);
    gguf_put(&builder->infos, &rank, 4);
    gguf_put(&builder->infos, dims, 8 * (uint64_t)(rank < 4 ? rank : 4));
    gguf_put(&builder->infos, &type, 4);
    gguf_put(&builder->infos, &offset, 8);
    builder->tensor_count++;
    builder->data_bytes += (bytes + 31) / 32 * 32;
}

/* UTF-8 of the character that stands for a byte in GPT-2's alphabet. */
static void byte_name(uint32_t byte, char name[4])
{
    uint32_t point = byte, others = 0;
    for (uint32_t b = 0; b <= byte; b++) {
        int own = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        if (b == byte && !own) point = 256 + others;
        others += !own;
    }
    memset(name, 0, 4);
    if (point < 0x80) {
        name[0] = (char)point;
    } else {
        name[0] = (char)(0xc0 | point >> 6);
        name[1] = (char)(0x80 | (point & 63));
    }
}

static void tiny_tokenizer(gguf_builder *builder)
{
    static const char *const merges[] = {"t h", "th e", "Ġ t", "Ġ the", "a a", "aa aa"};
    static const char *const added[] = {"th",   "the",          "Ġt",         "Ġthe",   "aa",
                                        "aaaa", "<|im_start|>", "<|im_end|>", "<think>"};
    static const char chat[] =
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + "
        "message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}";
    char names[256][4];
    const char *tokens[GGUF_TINY_VOCAB];
    int32_t types[GGUF_TINY_VOCAB];
    for (uint32_t i = 0; i < GGUF_TINY_VOCAB; i++) {
        if (i < 256) byte_name(i, names[i]);
        tokens[i] = i < 256 ? names[i] : added[i - 256];
        types[i] = i < 262 ? 1 : i < 264 ? 3 : 4;
    }
    gguf_builder_string(builder, "tokenizer.ggml.model", "gpt2");
    gguf_builder_string(builder, "tokenizer.ggml.pre", "smollm");
    gguf_builder_strings(builder, "tokenizer.ggml.tokens", tokens, GGUF_TINY_VOCAB);
    gguf_builder_i32s(builder, "tokenizer.ggml.token_type", types, GGUF_TINY_VOCAB);
    gguf_builder_strings(builder, "tokenizer.ggml.merges", merges, 6);
    gguf_builder_u32(builder, "tokenizer.ggml.bos_token_id", 262);
    gguf_builder_u32(builder, "tokenizer.ggml.eos_token_id", 263);
    gguf_builder_bool(builder, "tokenizer.ggml.add_bos_token", 1);
    gguf_builder_string(builder, "tokenizer.chat_template", chat);
}

void gguf_builder_tiny(gguf_builder *builder)
{
    gguf_builder_string(builder, "general.architecture", "llama");
    gguf_builder_string(builder, "general.name", "tiny");
    gguf_builder_u32(builder, "llama.block_count", 1);
    gguf_builder_u32(builder, "llama.context_length", 64);
    gguf_builder_u32(builder, "llama.embedding_length", 32);
    gguf_builder_u32(builder, "llama.feed_forward_length", 64);
    gguf_builder_u32(builder, "llama.attention.head_count", 2);
    gguf_builder_u32(builder, "llama.attention.head_count_kv", 1);
    gguf_builder_f32(builder, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    gguf_builder_f32(builder, "llama.rope.freq_base", 10000.0f);
    tiny_tokenizer(builder);
    gguf_builder_tensor(builder, "token_embd.weight", 2, 32, GGUF_TINY_VOCAB, 8);
    gguf_builder_tensor(builder, "blk.0.attn_norm.weight", 1, 32, 1, 0);
    gguf_builder_tensor(builder, "blk.0.attn_q.weight", 2, 32, 32, 8);
    gguf_builder_tensor(builder, "blk.0.attn_k.weight", 2, 32, 16, 8);
    gguf_builder_tensor(builder, "blk.0.attn_v.weight", 2, 32, 16, 8);
    gguf_builder_tensor(builder, "blk.0.attn_output.weight", 2, 32, 32, 8);
    gguf_builder_tensor(builder, "blk.0.ffn_norm.weight", 1, 32, 1, 0);
    gguf_builder_tensor(builder, "blk.0.ffn_gate.weight", 2, 32, 64, 8);
    gguf_builder_tensor(builder, "blk.0.ffn_up.weight", 2, 32, 64, 8);
    gguf_builder_tensor(builder, "blk.0.ffn_down.weight", 2, 64, 32, 8);
    gguf_builder_tensor(builder, "output_norm.weight", 1, 32, 1, 0);
}

uint8_t *gguf_builder_finish(gguf_builder *builder, uint64_t *bytes_out)
{
    gguf_bytes file = {0};
    uint32_t version = builder->version ? builder->version : 3;
    gguf_put(&file, "GGUF", 4);
    gguf_put(&file, &version, 4);
    gguf_put(&file, &builder->tensor_count, 8);
    gguf_put(&file, &builder->value_count, 8);
    gguf_put(&file, builder->values.data, builder->values.bytes);
    gguf_put(&file, builder->infos.data, builder->infos.bytes);
    while (file.bytes % 32) gguf_put(&file, "", 1);
    for (uint64_t i = 0; i < builder->data_bytes; i++) {
        uint8_t byte = (uint8_t)(i * 7 & 0x3f); /* no NaN in any format */
        gguf_put(&file, &byte, 1);
    }
    free(builder->values.data);
    free(builder->infos.data);
    *bytes_out = file.bytes;
    return file.data;
}
