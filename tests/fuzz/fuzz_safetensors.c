/* safetensors: tensors of a file that is taken tile its data and are found by name. */
#include <string.h>
#include "fuzz.h"
#include "model/safetensors.h"

int fuzz_parses(const uint8_t *data, size_t size)
{
    pllm_safetensors *file;
    if (size == 0) data = (const uint8_t *)"";
    int status = pllm_safetensors_parse(NULL, "fuzz.safetensors", data, size, &file);
    if (!fuzz_refusal_is_clear(status)) return 0;
    uint64_t header_bytes, total = 0;
    FUZZ_CHECK(pllm_safetensors_header(file, &header_bytes) == data);
    for (uint32_t i = 0; i < pllm_safetensors_count(file); i++) {
        const pllm_safetensors_view *view = pllm_safetensors_at(file, i);
        const pllm_tensor_view *tensor = &view->tensor;
        uint64_t elements = 1;
        for (uint32_t j = 0; j < PLLM_SAFETENSORS_RANK_MAX; j++) elements *= view->shape[j];
        FUZZ_CHECK(elements * view->element_bytes == tensor->bytes);
        FUZZ_CHECK(tensor->file_offset == header_bytes + total);
        FUZZ_CHECK((const uint8_t *)tensor->data == data + tensor->file_offset);
        FUZZ_CHECK(pllm_safetensors_peek(file, tensor->name) == view);
        total += tensor->bytes;
    }
    FUZZ_CHECK(header_bytes + total == size);
    pllm_safetensors_close(file);
    return 1;
}
