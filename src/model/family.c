/* family.c - the rows. */
#include <string.h>
#include "model/family.h"

static const pllm_family families[] = {
    {
        .name = "llama",
        .norm = PLLM_NORM_RMS,
        .norm_place = PLLM_NORM_BEFORE,
        .activation = PLLM_ACTIVATION_SILU,
        .gated = 1,
        .gguf = {.embedding = "token_embd.weight",
                 .output_norm = "output_norm.weight",
                 .output = "output.weight",
                 .attention_norm = "blk.%u.attn_norm.weight",
                 .q = "blk.%u.attn_q.weight",
                 .k = "blk.%u.attn_k.weight",
                 .v = "blk.%u.attn_v.weight",
                 .o = "blk.%u.attn_output.weight",
                 .ffn_norm = "blk.%u.ffn_norm.weight",
                 .gate = "blk.%u.ffn_gate.weight",
                 .up = "blk.%u.ffn_up.weight",
                 .down = "blk.%u.ffn_down.weight",
                 .rope_factors = "rope_freqs.weight",
                 .rope_interleaved = 1},
        .safetensors = {.embedding = "model.embed_tokens.weight",
                        .output_norm = "model.norm.weight",
                        .output = "lm_head.weight",
                        .attention_norm = "model.layers.%u.input_layernorm.weight",
                        .q = "model.layers.%u.self_attn.q_proj.weight",
                        .k = "model.layers.%u.self_attn.k_proj.weight",
                        .v = "model.layers.%u.self_attn.v_proj.weight",
                        .o = "model.layers.%u.self_attn.o_proj.weight",
                        .ffn_norm = "model.layers.%u.post_attention_layernorm.weight",
                        .gate = "model.layers.%u.mlp.gate_proj.weight",
                        .up = "model.layers.%u.mlp.up_proj.weight",
                        .down = "model.layers.%u.mlp.down_proj.weight",
                        .rope_interleaved = 0},
    },
};

const pllm_family *pllm_family_find(const char *name, uint64_t name_bytes)
{
    for (uint32_t i = 0; i < sizeof families / sizeof families[0]; i++)
        if (strlen(families[i].name) == name_bytes &&
            memcmp(families[i].name, name, name_bytes) == 0)
            return &families[i];
    return NULL;
}

const char *pllm_family_list(void)
{
    return "llama";
}
