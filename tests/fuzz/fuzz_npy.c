/* .npy: what is taken has a shape that its bytes fill, and a header written for it reads the same.
 */
#include <stdlib.h>
#include <string.h>
#include "fuzz.h"
#include "model/npy.h"

int fuzz_parses(const uint8_t *data, size_t size)
{
    pllm_npy npy, again;
    if (size == 0) data = (const uint8_t *)"";
    int status = pllm_npy_parse("fuzz.npy", data, size, &npy);
    if (!fuzz_refusal_is_clear(status)) return 0;
    uint64_t bytes = npy.element_bytes;
    FUZZ_CHECK(npy.rank <= PLLM_NPY_RANK_MAX);
    for (uint32_t i = 0; i < npy.rank; i++) bytes *= npy.shape[i];
    FUZZ_CHECK(bytes == npy.data_bytes && npy.data_offset + bytes == size);
    uint8_t *copy = calloc(1, PLLM_NPY_HEADER_BYTES_MAX + bytes);
    if (!copy) return 1;
    uint32_t header = pllm_npy_header(&npy, copy);
    FUZZ_CHECK(header % 64 == 0 && header <= PLLM_NPY_HEADER_BYTES_MAX);
    FUZZ_CHECK(pllm_npy_parse("again", copy, header + bytes, &again) == PLLM_OK);
    FUZZ_CHECK(again.kind == npy.kind && again.rank == npy.rank &&
               again.element_bytes == npy.element_bytes && again.data_offset == header &&
               memcmp(again.shape, npy.shape, sizeof npy.shape) == 0);
    free(copy);
    return 1;
}
