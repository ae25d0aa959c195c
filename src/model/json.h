/* json.h - JSON documents from files: one place for the decoder's flags and its failures. */
#ifndef PLLM_MODEL_JSON_H
#define PLLM_MODEL_JSON_H

#include <jansson.h>
#include <stdint.h>

/* An object, or a sentence that names file and line. Duplicate keys are refused. The caller calls
 * json_decref. Errors: ECORRUPT, ENOMEM. (jansson has one allocator a process, so its memory does
 * not come from a context; a fault test hooks that allocator instead.) */
int pllm_json_parse(const char *file, const void *text, uint64_t bytes, json_t **root_out);

#endif
