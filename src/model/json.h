/* json.h - JSON documents from model files, read into one flat array.
 *
 * Nodes lie in document order: a container is followed by its children, and span counts a node with
 * all that lies under it, so that the next sibling is node + node->span. Strings are unescaped into
 * one arena. Two allocations hold everything, and both come from the context, which is why this is
 * not done by a library: jansson 2.14, tried first, writes past its buffer when an allocation
 * fails.
 *
 * Strict (RFC 8259): no comments, trailing commas or bytes that are no UTF-8; on top of that,
 * duplicate keys, U+0000 and nesting past 64 are refused. */
#ifndef PLLM_MODEL_JSON_H
#define PLLM_MODEL_JSON_H

#include "base/context.h"

typedef enum pllm_json_kind {
    PLLM_JSON_NULL,
    PLLM_JSON_FALSE,
    PLLM_JSON_TRUE,
    PLLM_JSON_INTEGER, /* a number without fraction or exponent that fits int64 */
    PLLM_JSON_REAL,    /* any other number; may be infinite */
    PLLM_JSON_STRING,
    PLLM_JSON_ARRAY,
    PLLM_JSON_OBJECT,
} pllm_json_kind;

typedef struct pllm_json_node {
    pllm_json_kind kind;
    uint32_t count; /* elements or members */
    uint32_t span;
    uint32_t bytes;   /* of text */
    const char *key;  /* in an object; zero-terminated, as text is */
    const char *text; /* of a string */
    int64_t integer;
    double number; /* of INTEGER and REAL */
} pllm_json_node;

typedef struct pllm_json {
    const pllm_context *context;
    char *arena;
    pllm_json_node *nodes; /* nodes[0] is the root, an object */
    uint32_t node_count;
} pllm_json;

/* Errors: ECORRUPT, with file and line; ELIMIT (4 GiB or more); ENOMEM. Then nothing is held. */
int pllm_json_parse(const pllm_context *context, const char *file, const void *text, uint64_t bytes,
                    pllm_json *json);
void pllm_json_deinit(pllm_json *json);

/* The member of that name, or NULL; also NULL when object is NULL or no object. */
const pllm_json_node *pllm_json_member(const pllm_json_node *object, const char *key);
/* Child i of a container, or NULL. Walking all children: first = node + 1, next = it + it->span. */
const pllm_json_node *pllm_json_at(const pllm_json_node *container, uint32_t i);
/* A string's text, or NULL for anything else. */
const char *pllm_json_text(const pllm_json_node *node);

#endif
