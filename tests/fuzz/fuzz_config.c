/* config.json: a shape that is taken is one that the engine may compute with. */
#include "fuzz.h"
#include "model/config.h"

int fuzz_parses(const uint8_t *data, size_t size)
{
    pllm_model_shape shape;
    int status =
        pllm_config_parse(NULL, "config.json", size ? data : (const void *)"", size, &shape);
    if (!fuzz_refusal_is_clear(status)) return 0;
    FUZZ_CHECK(shape.family && shape.layer_count && shape.width && shape.ffn_width);
    FUZZ_CHECK(shape.vocab_size && shape.context_max);
    FUZZ_CHECK(shape.kv_head_count && shape.head_count % shape.kv_head_count == 0);
    FUZZ_CHECK(shape.head_dim >= 2 && shape.head_dim % 2 == 0 && shape.head_dim <= 1024);
    FUZZ_CHECK(shape.rope.dims == shape.head_dim);
    FUZZ_CHECK(shape.rope.base > 0 && shape.rope.factor > 0);
    FUZZ_CHECK(shape.norm_epsilon > 0 && shape.norm_epsilon < 1);
    FUZZ_CHECK(shape.eos_count <= 8);
    for (uint32_t i = 0; i < shape.eos_count; i++) FUZZ_CHECK(shape.eos_ids[i] < shape.vocab_size);
    return 1;
}
