/* tensor:cmd: what is taken keeps every limit; what is refused says why; answers are whole JSON. */
#include <jansson.h>
#include <string.h>
#include "fuzz.h"
#include "redis/command.h"

int fuzz_parses(const uint8_t *data, size_t size)
{
    pllm_command command;
    int status = pllm_command_parse((const char *)data, size, &command);
    int taken = fuzz_refusal_is_clear(status);
    char text[PLLM_COMMAND_ANSWER_BYTES];
    size_t bytes = pllm_command_answer_text(&command, taken ? PLLM_OK : status, NULL, text);
    json_t *answer = json_loadb(text, bytes, 0, NULL);
    FUZZ_CHECK(json_is_object(answer));
    json_decref(answer);
    if (!taken) return 0;
    FUZZ_CHECK(pllm_store_name_check(command.name, strlen(command.name)) == PLLM_OK);
    FUZZ_CHECK(command.rank <= PLLM_STORE_RANK_MAX && command.dtype < PLLM_STORE_DTYPES);
    FUZZ_CHECK(!(command.pid && command.lease_ns));
    uint64_t element_bytes;
    FUZZ_CHECK(command.op != PLLM_COMMAND_CREATE ||
               pllm_store_shape_bytes(command.dtype, command.rank, command.shape, &element_bytes) ==
                   PLLM_OK);
    return 1;
}
