/* Sizes: what is taken must read back from its own text within a hundredth, or be unlimited. */
#include <stdlib.h>
#include <string.h>
#include "base/size.h"
#include "fuzz.h"

int fuzz_parses(const uint8_t *data, size_t size)
{
    char *text = malloc(size + 1), buffer[PLLM_SIZE_TEXT_BYTES];
    if (size) memcpy(text, data, size);
    text[size] = '\0';
    uint64_t bytes, back;
    int taken = fuzz_refusal_is_clear(pllm_size_parse(text, &bytes));
    free(text);
    if (!taken || bytes >> 63) return taken; /* rounding up may leave 64 bits */
    FUZZ_CHECK(pllm_size_parse(pllm_size_text(bytes, buffer, sizeof buffer), &back) == 0);
    FUZZ_CHECK((back > bytes ? back - bytes : bytes - back) <= bytes / 199);
    return 1;
}
