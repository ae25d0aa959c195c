/* Messages of the store's socket. What is taken encodes to the very same bytes. */
#include <string.h>
#include "fuzz.h"
#include "store/wire.h"

int fuzz_parses(const uint8_t *data, size_t size)
{
    static pllm_wire_message message;
    static uint8_t again[PLLM_WIRE_PACKET_BYTES];
    memset(&message, 0xee, sizeof message); /* nothing of what was there may matter */
    if (!fuzz_refusal_is_clear(pllm_wire_decode(data, size, &message))) return 0;
    FUZZ_CHECK(size <= sizeof again);
    FUZZ_CHECK(pllm_wire_encode(&message, again, sizeof again) == (int)size);
    FUZZ_CHECK(memcmp(again, data, size) == 0);
    return 1;
}
