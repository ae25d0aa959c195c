/* json.c - see json.h. */
#include <string.h>
#include "model/file_map.h"
#include "model/json.h"

int pllm_json_parse(const char *file, const void *text, uint64_t bytes, json_t **root_out)
{
    json_error_t error;
    *root_out = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
    if (!*root_out) {
        char shown[80];
        if (json_error_code(&error) == json_error_out_of_memory)
            return pllm_fail_memory("a JSON document", bytes);
        return pllm_fail(PLLM_ECORRUPT, 0, "%s: is not valid JSON at line %d: %s", file, error.line,
                         pllm_printable(shown, error.text, strlen(error.text)));
    }
    if (json_is_object(*root_out)) return PLLM_OK;
    json_decref(*root_out);
    *root_out = NULL;
    return pllm_fail(PLLM_ECORRUPT, 0, "%s: its JSON is not an object", file);
}
