/* What is said about tensors in text: the first byte chooses among name, shape, dtype, device,
 * token and base64; the rest is the text. What is taken goes to text and comes back the same. */
#include <string.h>
#include "base/context.h"
#include "fuzz.h"
#include "store/names.h"

static int shape(const char *text, size_t bytes)
{
    uint32_t rank, rank_again;
    uint64_t dimensions[PLLM_STORE_RANK_MAX], again[PLLM_STORE_RANK_MAX], size;
    char written[PLLM_STORE_SHAPE_TEXT_BYTES];
    if (!fuzz_refusal_is_clear(pllm_store_shape_parse(text, bytes, &rank, dimensions))) return 0;
    FUZZ_CHECK(rank <= PLLM_STORE_RANK_MAX);
    pllm_store_shape_text(rank, dimensions, written);
    FUZZ_CHECK(pllm_store_shape_parse(written, strlen(written), &rank_again, again) == 0);
    FUZZ_CHECK(rank == rank_again && memcmp(dimensions, again, sizeof again) == 0);
    for (uint32_t dtype = 0; dtype < PLLM_STORE_DTYPES; dtype++)
        if (pllm_store_shape_bytes(dtype, rank, dimensions, &size) == 0)
            FUZZ_CHECK(size > 0 && size <= PLLM_STORE_BYTES_MAX);
    return 1;
}

static int token(const char *text, size_t bytes)
{
    uint32_t slot;
    uint64_t generation;
    char written[PLLM_STORE_TOKEN_BYTES];
    if (!fuzz_refusal_is_clear(pllm_store_token_parse(text, bytes, &slot, &generation))) return 0;
    pllm_store_token_text(slot, generation, written);
    FUZZ_CHECK(strlen(written) == bytes && memcmp(written, text, bytes) == 0);
    return 1;
}

static int base64(const char *text, size_t bytes)
{
    char data[64], written[96];
    size_t length;
    if (!fuzz_refusal_is_clear(pllm_store_base64_decode(text, bytes, data, sizeof data, &length)))
        return 0;
    FUZZ_CHECK(pllm_store_base64_encode(data, length, written, sizeof written) == bytes);
    FUZZ_CHECK(bytes == 0 || memcmp(written, text, bytes) == 0);
    return 1;
}

int fuzz_parses(const uint8_t *data, size_t size)
{
    static const char *const uuids[] = {"GPU-0a1b2c3d", "GPU-0a1bffff"};
    if (size == 0) {
        pllm_fail(PLLM_EINVAL, 0, "nothing");
        return fuzz_refusal_is_clear(PLLM_EINVAL);
    }
    const char *text = (const char *)data + 1;
    uint32_t number;
    switch (data[0]) {
    case 'n':
        return fuzz_refusal_is_clear(pllm_store_name_check(text, size - 1));
    case 'p':
        return fuzz_refusal_is_clear(pllm_store_prefix_check(text, size - 1));
    case 's':
        return shape(text, size - 1);
    case 'd':
        return fuzz_refusal_is_clear(pllm_store_dtype_parse(text, size - 1, &number));
    case 'u':
        return fuzz_refusal_is_clear(pllm_store_device_find(text, size - 1, uuids, 2, &number));
    case 't':
        return token(text, size - 1);
    default:
        return base64(text, size - 1);
    }
}
