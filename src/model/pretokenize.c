/* pretokenize.c - PCRE2 with Unicode properties, compiled to machine code where it can be.
 *
 * White space is written out as a class (the Unicode property White_Space), since PCRE2's \s with
 * UCP also takes U+180E, which the tokenizers that models were trained with do not.
 * Text is validated once, here, and matched without further checks, so that a call's cost does not
 * grow with what lies behind it. Sources of the expressions: GPT-2's encoder and the tokenizer.json
 * of Llama 3. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <assert.h>
#include <pcre2.h>
#include <string.h>
#include "model/file_map.h"
#include "model/pretokenize.h"
#include "model/utf8.h"

#define MATCH_LIMIT 10000000u
#define HEAP_LIMIT_KIB 65536u

#define SPACES                                                                            \
    "\\x{9}-\\x{d} \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}" \
    "\\x{205f}\\x{3000}"
#define GPT2                                                                   \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" SPACES "\\p{L}\\p{N}]+" \
    "|[" SPACES "]+(?![^" SPACES "])|[" SPACES "]+"
#define LLAMA3                                                               \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}" \
    "| ?[^" SPACES "\\p{L}\\p{N}]+[\\r\\n]*|[" SPACES "]*[\\r\\n]+"          \
    "|[" SPACES "]+(?![^" SPACES "])|[" SPACES "]+"

typedef struct scheme {
    const char *name, *expression;
    int whole_words;
} scheme;

/* SmolLM's own tokenizer also cuts before and after every digit, as llama.cpp does; transformers,
 * which reads the same file by GPT-2's expression alone, is what this is held to. Digits have no
 * merges in that vocabulary, so the two differ only where several spaces or line feeds come before
 * a digit, and in numerals such as U+00BD. */
static const scheme schemes[] = {
    {"smollm", GPT2, 0},      {"gpt-2", GPT2, 0},    {"default", GPT2, 0},
    {"llama-bpe", LLAMA3, 1}, {"llama3", LLAMA3, 1}, {"llama-v3", LLAMA3, 1},
};

struct pllm_pretokenizer {
    const pllm_context *context;
    const scheme *scheme;
    pcre2_general_context *general;
    pcre2_match_context *match;
    pcre2_code *code;
};

static void *regex_allocate(PCRE2_SIZE bytes, void *context)
{
    return pllm_alloc(context, bytes);
}
static void regex_release(void *pointer, void *context)
{
    pllm_free(context, pointer);
}

static int compile(pllm_pretokenizer *self, pcre2_compile_context *options)
{
    const char *pattern = self->scheme->expression;
    int error;
    PCRE2_SIZE where;
    self->code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP,
                               &error, &where, options);
    if (!self->code && error == PCRE2_ERROR_HEAP_FAILED)
        return pllm_fail_memory("a regular expression", strlen(pattern));
    if (!self->code)
        return pllm_fail(PLLM_EUNSUPPORTED, error,
                         "this PCRE2 library refuses the expression of pre-tokenizer %s at byte "
                         "%zu (its error %d); it was built without Unicode",
                         self->scheme->name, where, error);
    (void)pcre2_jit_compile(self->code, PCRE2_JIT_COMPLETE); /* without it: slower, same result */
    return PLLM_OK;
}

static const scheme *scheme_find(const char *name, uint64_t bytes)
{
    for (uint32_t i = 0; i < sizeof schemes / sizeof schemes[0]; i++)
        if (strlen(schemes[i].name) == bytes && memcmp(schemes[i].name, name, bytes) == 0)
            return &schemes[i];
    return NULL;
}

static int compile_scheme(pllm_pretokenizer *self)
{
    self->general = pcre2_general_context_create(regex_allocate, regex_release,
                                                 (void *)(uintptr_t)self->context);
    if (!self->general) return pllm_fail_memory("a regular expression", 0);
    self->match = pcre2_match_context_create(self->general);
    pcre2_compile_context *options =
        self->match ? pcre2_compile_context_create(self->general) : NULL;
    if (!options) return pllm_fail_memory("a regular expression", 0);
    pcre2_set_match_limit(self->match, MATCH_LIMIT);
    pcre2_set_heap_limit(self->match, HEAP_LIMIT_KIB);
    int status = compile(self, options);
    pcre2_compile_context_free(options);
    return status;
}

int pllm_pretokenizer_open(const pllm_context *context, const char *file, const char *name,
                           uint64_t name_bytes, pllm_pretokenizer **out)
{
    char shown[80];
    *out = NULL;
    const scheme *chosen = scheme_find(name, name_bytes);
    if (!chosen)
        return pllm_fail(
            PLLM_EUNSUPPORTED, 0,
            "%s: pre-tokenizer \"%s\" is not supported; smollm, gpt-2 and llama-bpe are", file,
            pllm_printable(shown, name, name_bytes));
    pllm_pretokenizer *self = pllm_alloc(context, sizeof *self);
    if (!self) return pllm_fail_memory("a pre-tokenizer", sizeof *self);
    self->context = context;
    self->scheme = chosen;
    int status = compile_scheme(self);
    if (status < 0)
        pllm_pretokenizer_close(self);
    else
        *out = self;
    return status;
}

void pllm_pretokenizer_close(pllm_pretokenizer *self)
{
    if (!self) return;
    pcre2_code_free(self->code);
    pcre2_match_context_free(self->match);
    pcre2_general_context_free(self->general);
    pllm_free(self->context, self);
}

int pllm_pretokenizer_prefers_whole_words(const pllm_pretokenizer *self)
{
    return self->scheme->whole_words;
}

typedef struct splitting {
    const pllm_pretokenizer *self;
    pcre2_match_data *found;
    pllm_word_fn take;
    void *user;
} splitting;

static int fail_match(const splitting *run, int error)
{
    if (error == PCRE2_ERROR_NOMEMORY) return pllm_fail_memory("matching text", 0);
    char reason[120] = "";
    pcre2_get_error_message(error, (PCRE2_UCHAR *)reason, sizeof reason);
    return pllm_fail(PLLM_ELIMIT, error,
                     "the text is more than pre-tokenizer %s can split: %s; give it in parts",
                     run->self->scheme->name, reason);
}

/* Matches, and the gaps between them, which no expression of ours leaves; text is valid UTF-8. */
static int split_valid(const splitting *run, const char *text, uint64_t bytes)
{
    for (uint64_t at = 0; at < bytes;) {
        int count = pcre2_match(run->self->code, (PCRE2_SPTR)text, bytes, at, PCRE2_NO_UTF_CHECK,
                                run->found, run->self->match);
        if (count < 0 && count != PCRE2_ERROR_NOMATCH) return fail_match(run, count);
        const PCRE2_SIZE *range = pcre2_get_ovector_pointer(run->found);
        uint64_t first = count < 0 ? bytes : range[0], end = count < 0 ? bytes : range[1];
        assert(count < 0 || end > first); /* no expression of ours matches nothing */
        int status = first > at ? run->take(run->user, text + at, first - at) : PLLM_OK;
        if (status == PLLM_OK && end > first)
            status = run->take(run->user, text + first, end - first);
        if (status < 0) return status;
        at = end;
    }
    return PLLM_OK;
}

static uint64_t invalid_prefix(const char *text, uint64_t bytes)
{
    uint64_t at = 0;
    uint32_t used;
    while (at < bytes && pllm_utf8_classify(text + at, bytes - at, &used) != PLLM_UTF8_VALID)
        at += used;
    return at;
}

int pllm_pretokenizer_split(const pllm_pretokenizer *self, const char *text, uint64_t bytes,
                            pllm_word_fn take, void *user)
{
    splitting run = {.self = self, .take = take, .user = user};
    run.found = pcre2_match_data_create(1, self->general);
    if (!run.found) return pllm_fail_memory("matching text", 0);
    int status = PLLM_OK;
    for (uint64_t at = 0; status == PLLM_OK && at < bytes;) {
        uint64_t valid = pllm_utf8_valid_prefix(text + at, bytes - at);
        status = split_valid(&run, text + at, valid);
        at += valid;
        uint64_t invalid = invalid_prefix(text + at, bytes - at);
        if (status == PLLM_OK && invalid > 0) status = take(user, text + at, invalid);
        at += invalid;
    }
    pcre2_match_data_free(run.found);
    return status;
}
