/* tokenizer.c - the vocabulary, and encoding and decoding with it.
 *
 * Memory: one arena holds the bytes of all pieces, decoded from GPT-2's printable alphabet (where
 * each byte has a character of its own: "Ġ" is a space); piece i is arena[starts[i], starts[i+1]).
 * Two indexes over the pieces: plain ones, which merging makes, and special ones, which are found
 * in text as they stand. Merges are kept as pairs of ids.
 *
 * Encoding: special tokens are cut out first (leftmost, then longest), what lies between goes
 * through the pre-tokenizer, and each word through merging. */
#include <assert.h>
#include <string.h>
#include "model/bpe.h"
#include "model/file_map.h"
#include "model/model_internal.h"
#include "model/pretokenize.h"
#include "model/tokenizer.h"

#define SPECIAL_BYTES_MAX 255u
#define ARENA_BYTES_MAX (1u << 31)

enum { /* tokenizer.ggml.token_type */
       TYPE_NORMAL = 1,
       TYPE_UNKNOWN = 2,
       TYPE_CONTROL = 3,
       TYPE_USER_DEFINED = 4,
       TYPE_UNUSED = 5,
       TYPE_BYTE = 6,
};

struct pllm_tokenizer {
    const pllm_context *context;
    char *arena;
    uint32_t *starts; /* vocab_size + 1 */
    uint8_t *types;
    uint32_t vocab_size;
    pllm_text_index plain, special;
    uint64_t special_lengths[256][4]; /* by first byte: bit n of 256 says one has n bytes */
    uint32_t byte_ids[256];           /* PLLM_NO_TOKEN: no such token */
    pllm_bpe merges;
    pllm_pretokenizer *words;
    uint32_t bos_id, eos_ids[8], eos_count;
    int add_bos, whole_words;
};

static const char *piece_at(const void *owner, uint32_t number, uint64_t *bytes_out)
{
    const pllm_tokenizer *self = owner;
    *bytes_out = self->starts[number + 1] - self->starts[number];
    return self->arena + self->starts[number];
}

/* ---- opening -------------------------------------------------------------------------------- */

/* GPT-2's alphabet: 188 bytes are their own Latin-1 character, the other 68 follow from U+0100 in
 * order. -1: a character outside it. */
static int byte_of_code_point(uint32_t point)
{
    if ((point >= 0x21 && point <= 0x7e) || (point >= 0xa1 && point <= 0xff && point != 0xad))
        return (int)point;
    if (point < 0x100 || point >= 0x100 + 68) return -1;
    uint32_t n = point - 0x100;
    if (n < 33) return (int)n;               /* 0x00 to 0x20 */
    if (n < 67) return (int)(0x7f + n - 33); /* 0x7f to 0xa0 */
    return 0xad;
}

/* Writes the bytes that text stands for; at most as many as it has. 0 if it is not all alphabet. */
static int decode_alphabet(const char *text, uint64_t bytes, char *into, uint64_t *written)
{
    *written = 0;
    for (uint64_t at = 0; at < bytes;) {
        uint32_t used;
        if (pllm_utf8_classify(text + at, bytes - at, &used) != PLLM_UTF8_VALID) return 0;
        int byte = byte_of_code_point(pllm_utf8_code_point(text + at, used));
        if (byte < 0) return 0;
        into[(*written)++] = (char)byte;
        at += used;
    }
    return 1;
}

static int is_special_type(uint8_t type)
{
    return type == TYPE_CONTROL || type == TYPE_USER_DEFINED || type == TYPE_UNKNOWN;
}

static int add_special(pllm_tokenizer *self, const char *file, uint32_t id)
{
    uint64_t bytes;
    char shown[80];
    const char *text = piece_at(self, id, &bytes);
    if (bytes == 0) return PLLM_OK;
    if (bytes > SPECIAL_BYTES_MAX)
        return pllm_fail(
            PLLM_ELIMIT, 0, "%s: special token %u (\"%s\") has %llu bytes; up to %u are read", file,
            id, pllm_printable(shown, text, bytes), (unsigned long long)bytes, SPECIAL_BYTES_MAX);
    pllm_text_index_add(&self->special, id); /* the first of equal texts wins */
    self->special_lengths[(uint8_t)text[0]][bytes / 64] |= (uint64_t)1 << bytes % 64;
    return PLLM_OK;
}

static int read_types(pllm_tokenizer *self, const pllm_gguf *gguf)
{
    const pllm_gguf_value *types;
    memset(self->types, TYPE_NORMAL, self->vocab_size);
    int found = pllm_gguf_array(gguf, "tokenizer.ggml.token_type", PLLM_GGUF_I32, &types);
    if (found <= 0) return found;
    if (types->count != self->vocab_size)
        return pllm_fail(PLLM_ECORRUPT, 0,
                         "%s: tokenizer.ggml.token_type has %llu entries for %u tokens", gguf->file,
                         (unsigned long long)types->count, self->vocab_size);
    for (uint32_t i = 0; i < self->vocab_size; i++) {
        int64_t type = pllm_gguf_integer_at(types, i);
        if (type < 0 || type > TYPE_BYTE)
            return pllm_fail(PLLM_ECORRUPT, 0,
                             "%s: token %u has type %lld; the format knows 0 to 6", gguf->file, i,
                             (long long)type);
        self->types[i] = (uint8_t)type;
    }
    return PLLM_OK;
}

static int read_pieces(pllm_tokenizer *self, const pllm_gguf *gguf, const pllm_gguf_value *tokens)
{
    const uint8_t *at = tokens->data;
    uint32_t used = 0;
    for (uint32_t i = 0; i < self->vocab_size; i++) {
        uint64_t bytes, written;
        const char *text = pllm_gguf_next_string(&at, &bytes);
        char *into = self->arena + used;
        self->starts[i] = used;
        int plain = !is_special_type(self->types[i]) && self->types[i] != TYPE_UNUSED &&
                    decode_alphabet(text, bytes, into, &written);
        if (!plain) {
            memcpy(into, text, bytes);
            written = bytes;
        }
        used += (uint32_t)written; /* the arena is below 2^31 bytes */
        self->starts[i + 1] = used;
        if (plain) {
            pllm_text_index_add(&self->plain, i);
            if (written == 1 && self->byte_ids[(uint8_t)into[0]] == PLLM_NO_TOKEN)
                self->byte_ids[(uint8_t)into[0]] = i;
        } else if (is_special_type(self->types[i])) {
            int status = add_special(self, gguf->file, i);
            if (status < 0) return status;
        }
    }
    return PLLM_OK;
}

static int read_vocabulary(pllm_tokenizer *self, const pllm_gguf *gguf, uint32_t model_vocab)
{
    const pllm_gguf_value *tokens;
    int found = pllm_gguf_array(gguf, "tokenizer.ggml.tokens", PLLM_GGUF_STRING, &tokens);
    if (found < 0) return found;
    if (!found || tokens->count == 0)
        return pllm_fail(PLLM_ECORRUPT, 0, "%s: tokenizer.ggml.tokens is missing or empty",
                         gguf->file);
    if (tokens->count > model_vocab || tokens->bytes > ARENA_BYTES_MAX)
        return pllm_fail(PLLM_ECORRUPT, 0,
                         "%s: %llu tokens in %llu bytes for an embedding of %u rows", gguf->file,
                         (unsigned long long)tokens->count, (unsigned long long)tokens->bytes,
                         model_vocab);
    self->vocab_size = (uint32_t)tokens->count;
    self->arena = pllm_alloc(self->context, tokens->bytes + 1);
    self->starts = pllm_alloc_array(self->context, tokens->count + 1, sizeof *self->starts);
    self->types = pllm_alloc(self->context, tokens->count);
    if (!self->arena || !self->starts || !self->types)
        return pllm_fail_memory("a vocabulary", tokens->bytes + 5 * tokens->count);
    int status = pllm_text_index_init(self->context, &self->plain, tokens->count, piece_at, self);
    if (status < 0) return status;
    status = read_types(self, gguf);
    if (status < 0) return status;
    uint32_t special_count = 0;
    for (uint32_t i = 0; i < self->vocab_size; i++)
        special_count += is_special_type(self->types[i]);
    status = pllm_text_index_init(self->context, &self->special, special_count, piece_at, self);
    if (status < 0) return status;
    return read_pieces(self, gguf, tokens);
}

/* Ids of the two sides and of both together; scratch holds the decoded line. */
static int read_merge(pllm_tokenizer *self, const char *file, const char *line, uint64_t bytes,
                      uint32_t rank, char *scratch)
{
    const char *space = bytes > 1 ? memchr(line + 1, ' ', bytes - 1) : NULL;
    uint64_t left_bytes = space ? (uint64_t)(space - line) : 0, right_bytes = 0, written = 0;
    char shown[80];
    uint32_t left = PLLM_TEXT_NONE, right = PLLM_TEXT_NONE, merged = PLLM_TEXT_NONE;
    if (space && decode_alphabet(line, left_bytes, scratch, &written) &&
        decode_alphabet(space + 1, bytes - left_bytes - 1, scratch + written, &right_bytes)) {
        left = pllm_text_index_find(&self->plain, scratch, written);
        right = pllm_text_index_find(&self->plain, scratch + written, right_bytes);
        merged = pllm_text_index_find(&self->plain, scratch, written + right_bytes);
    }
    if (left == PLLM_TEXT_NONE || right == PLLM_TEXT_NONE || merged == PLLM_TEXT_NONE)
        return pllm_fail(PLLM_ECORRUPT, 0,
                         "%s: merge %u (\"%s\") is not two tokens that make a third; convert the "
                         "model again",
                         file, rank, pllm_printable(shown, line, bytes));
    pllm_bpe_add(&self->merges, left, right, rank, merged);
    return PLLM_OK;
}

static int read_merges(pllm_tokenizer *self, const pllm_gguf *gguf)
{
    const pllm_gguf_value *lines;
    int found = pllm_gguf_array(gguf, "tokenizer.ggml.merges", PLLM_GGUF_STRING, &lines);
    if (found < 0) return found;
    if (!found)
        return pllm_fail(PLLM_ECORRUPT, 0, "%s: tokenizer.ggml.merges is missing", gguf->file);
    if (lines->count > (1u << 26))
        return pllm_fail(PLLM_ELIMIT, 0, "%s: %llu merges; up to %u are read", gguf->file,
                         (unsigned long long)lines->count, 1u << 26);
    int status = pllm_bpe_init(self->context, &self->merges, lines->count);
    if (status < 0) return status;
    uint64_t longest = 1, bytes;
    const uint8_t *at = lines->data;
    for (uint64_t i = 0; i < lines->count; i++) {
        pllm_gguf_next_string(&at, &bytes);
        if (bytes > longest) longest = bytes;
    }
    char *scratch = pllm_alloc(self->context, longest);
    if (!scratch) return pllm_fail_memory("merges", longest);
    at = lines->data;
    for (uint32_t i = 0; status == PLLM_OK && i < lines->count; i++) {
        const char *line = pllm_gguf_next_string(&at, &bytes);
        status = read_merge(self, gguf->file, line, bytes, i, scratch);
    }
    pllm_free(self->context, scratch);
    return status;
}

static int read_words(pllm_tokenizer *self, const pllm_gguf *gguf)
{
    const char *kind = "", *name = "default";
    uint64_t kind_bytes = 0, name_bytes = 7;
    char shown[80];
    int found = pllm_gguf_string(gguf, "tokenizer.ggml.model", &kind, &kind_bytes);
    if (found < 0) return found;
    if (!found)
        return pllm_fail(PLLM_ENOTFOUND, 0,
                         "%s: carries no tokenizer; give token ids, or a GGUF file that has one",
                         gguf->file);
    if (kind_bytes != 4 || memcmp(kind, "gpt2", 4) != 0)
        return pllm_fail(PLLM_EUNSUPPORTED, 0,
                         "%s: its tokenizer is of kind \"%s\"; gpt2 (byte-level BPE) is supported",
                         gguf->file, pllm_printable(shown, kind, kind_bytes));
    found = pllm_gguf_string(gguf, "tokenizer.ggml.pre", &name, &name_bytes);
    if (found < 0) return found;
    if (name_bytes == 7 && memcmp(name, "default", 7) == 0)
        pllm_log(self->context, PLLM_LOG_WARN,
                 "%s: does not say how its text is split into words; GPT-2's way is assumed",
                 gguf->file);
    int status = pllm_pretokenizer_open(self->context, gguf->file, name, name_bytes, &self->words);
    if (status < 0) return status;
    self->whole_words = pllm_pretokenizer_prefers_whole_words(self->words);
    return PLLM_OK;
}

static int read_all(pllm_tokenizer *self, const pllm_gguf *gguf, const pllm_model_shape *shape)
{
    int status = read_words(self, gguf);
    if (status < 0) return status;
    memset(self->byte_ids, 0xff, sizeof self->byte_ids);
    if ((status = read_vocabulary(self, gguf, shape->vocab_size)) < 0) return status;
    if ((status = read_merges(self, gguf)) < 0) return status;
    int found = pllm_gguf_bool(gguf, "tokenizer.ggml.add_bos_token", &self->add_bos);
    if (found < 0) return found;
    self->bos_id = shape->bos_id;
    self->eos_count = shape->eos_count;
    memcpy(self->eos_ids, shape->eos_ids, sizeof self->eos_ids);
    return PLLM_OK;
}

int pllm_tokenizer_open(const pllm_context *context, const pllm_model *model, pllm_tokenizer **out)
{
    *out = NULL;
    const pllm_gguf *gguf = pllm_model_gguf(model);
    if (!gguf)
        return pllm_fail(PLLM_ENOTFOUND, 0,
                         "%s: a folder's tokenizer is not read; give token ids, or a GGUF file",
                         pllm_model_path(model));
    pllm_tokenizer *self = pllm_alloc(context, sizeof *self);
    if (!self) return pllm_fail_memory("a tokenizer", sizeof *self);
    self->context = context;
    int status = read_all(self, gguf, pllm_model_shape_of(model));
    if (status < 0)
        pllm_tokenizer_close(self);
    else
        *out = self;
    return status;
}

void pllm_tokenizer_close(pllm_tokenizer *self)
{
    if (!self) return;
    pllm_pretokenizer_close(self->words);
    pllm_bpe_deinit(self->context, &self->merges);
    pllm_text_index_deinit(self->context, &self->special);
    pllm_text_index_deinit(self->context, &self->plain);
    pllm_free(self->context, self->types);
    pllm_free(self->context, self->starts);
    pllm_free(self->context, self->arena);
    pllm_free(self->context, self);
}

/* ---- encoding ------------------------------------------------------------------------------- */

typedef struct encoding {
    const pllm_tokenizer *self;
    uint32_t *ids;
    uint64_t count, room;
    uint64_t dropped; /* bytes with no token */
    pllm_bpe_scratch scratch;
    /* where special tokens are not looked for */
    const char *text;
    const pllm_text_range *ranges;
    uint32_t range_count, range_next;
    int parse_special;
} encoding;

static int reserve(encoding *run, uint64_t more)
{
    uint64_t wanted = run->count + more;
    if (wanted <= run->room) return PLLM_OK;
    if (wanted >= UINT32_MAX)
        return pllm_fail(PLLM_ELIMIT, 0, "the text has more than 2^32 tokens; give it in parts");
    uint64_t room = run->room * 2 > wanted ? run->room * 2 : wanted + 64;
    uint32_t *grown = pllm_grow(run->self->context, run->ids, run->count * sizeof *run->ids,
                                room * sizeof *run->ids);
    if (!grown) return pllm_fail_memory("token ids", room * sizeof *run->ids);
    run->ids = grown;
    run->room = room;
    return PLLM_OK;
}

static int encode_word(void *user, const char *word, uint64_t bytes)
{
    encoding *run = user;
    const pllm_tokenizer *self = run->self;
    int status = reserve(run, bytes);
    if (status < 0) return status;
    if (self->whole_words) {
        uint32_t whole = pllm_text_index_find(&self->plain, word, bytes);
        if (whole != PLLM_TEXT_NONE) {
            run->ids[run->count++] = whole;
            return PLLM_OK;
        }
    }
    uint32_t *ids = run->ids + run->count, count = 0;
    for (uint64_t i = 0; i < bytes; i++) {
        uint32_t id = self->byte_ids[(uint8_t)word[i]];
        if (id != PLLM_NO_TOKEN) ids[count++] = id;
    }
    run->dropped += bytes - count;
    status = pllm_bpe_word(self->context, &self->merges, &run->scratch, ids, &count);
    run->count += count;
    return status;
}

/* Does [first, first + bytes) touch a guarded range? first never decreases between calls. */
static int is_guarded(encoding *run, uint64_t first, uint64_t bytes)
{
    while (run->range_next < run->range_count &&
           run->ranges[run->range_next].first + run->ranges[run->range_next].bytes <= first)
        run->range_next++;
    return run->range_next < run->range_count && run->ranges[run->range_next].first < first + bytes;
}

/* The special token that starts at text, the longest, or PLLM_NO_TOKEN. */
static uint32_t special_at(encoding *run, const char *text, uint64_t left, uint64_t *bytes_out)
{
    const uint64_t *lengths = run->self->special_lengths[(uint8_t)text[0]];
    for (int word = 3; word >= 0; word--)
        for (uint64_t bits = lengths[word]; bits;) {
            uint64_t bit = 63 - (uint64_t)__builtin_clzll(bits), bytes = (uint64_t)word * 64 + bit;
            bits &= ~((uint64_t)1 << bit);
            if (bytes > left) continue;
            uint32_t id = pllm_text_index_find(&run->self->special, text, bytes);
            if (id == PLLM_TEXT_NONE) continue;
            if (run->self->types[id] != TYPE_USER_DEFINED &&
                (!run->parse_special || is_guarded(run, (uint64_t)(text - run->text), bytes)))
                continue;
            *bytes_out = bytes;
            return id;
        }
    return PLLM_NO_TOKEN;
}

static int encode_text(encoding *run, const char *text, uint64_t bytes)
{
    uint64_t plain = 0; /* start of what no special token has claimed */
    int status = PLLM_OK;
    for (uint64_t at = 0; status == PLLM_OK && at < bytes;) {
        uint64_t special_bytes = 0;
        uint32_t id = special_at(run, text + at, bytes - at, &special_bytes);
        if (id == PLLM_NO_TOKEN) {
            at++;
            continue;
        }
        status =
            pllm_pretokenizer_split(run->self->words, text + plain, at - plain, encode_word, run);
        if (status == PLLM_OK) status = reserve(run, 1);
        if (status == PLLM_OK) run->ids[run->count++] = id;
        at += special_bytes;
        plain = at;
    }
    if (status < 0) return status;
    return pllm_pretokenizer_split(run->self->words, text + plain, bytes - plain, encode_word, run);
}

static int encode(encoding *run, const char *text, uint64_t bytes, uint32_t **ids_out,
                  uint32_t *count_out)
{
    *ids_out = NULL;
    *count_out = 0;
    if (bytes == 0) return PLLM_OK;
    run->text = text;
    int status = encode_text(run, text, bytes);
    pllm_bpe_scratch_deinit(run->self->context, &run->scratch);
    if (status < 0 || run->count == 0) {
        pllm_free(run->self->context, run->ids);
        run->ids = NULL;
    }
    if (status < 0) return status;
    if (run->dropped > 0)
        pllm_log(run->self->context, PLLM_LOG_WARN,
                 "%llu bytes of the text have no token in this vocabulary and were left out",
                 (unsigned long long)run->dropped);
    *ids_out = run->ids;
    *count_out = (uint32_t)run->count;
    return PLLM_OK;
}

int pllm_tokenizer_encode(const pllm_tokenizer *self, const char *text, uint64_t bytes,
                          int parse_special, uint32_t **ids_out, uint32_t *count_out)
{
    encoding run = {.self = self, .parse_special = parse_special};
    return encode(&run, text, bytes, ids_out, count_out);
}

int pllm_tokenizer_encode_guarded(const pllm_tokenizer *self, const char *text, uint64_t bytes,
                                  const pllm_text_range *ranges, uint32_t range_count,
                                  uint32_t **ids_out, uint32_t *count_out)
{
    encoding run = {.self = self, .parse_special = 1, .ranges = ranges, .range_count = range_count};
    return encode(&run, text, bytes, ids_out, count_out);
}

/* ---- decoding ------------------------------------------------------------------------------- */

const char *pllm_tokenizer_piece(const pllm_tokenizer *self, uint32_t id, uint32_t *bytes_out)
{
    *bytes_out = 0;
    if (id >= self->vocab_size) return "";
    *bytes_out = self->starts[id + 1] - self->starts[id];
    return self->arena + self->starts[id];
}

int pllm_tokenizer_decode(const pllm_tokenizer *self, const uint32_t *ids, uint32_t count,
                          char **text_out, uint64_t *bytes_out)
{
    uint64_t total = 0;
    uint32_t bytes;
    *text_out = NULL;
    *bytes_out = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (ids[i] >= self->vocab_size)
            return pllm_fail(PLLM_EINVAL, 0, "token %u at place %u is past the vocabulary of %u",
                             ids[i], i, self->vocab_size);
        pllm_tokenizer_piece(self, ids[i], &bytes);
        total += bytes;
    }
    char *text = pllm_alloc(self->context, total + 1);
    if (!text) return pllm_fail_memory("decoded text", total + 1);
    for (uint32_t i = 0; i < count; i++) {
        const char *piece = pllm_tokenizer_piece(self, ids[i], &bytes);
        memcpy(text + *bytes_out, piece, bytes);
        *bytes_out += bytes;
    }
    assert(*bytes_out == total);
    *text_out = text;
    return PLLM_OK;
}

void pllm_tokenizer_free(const pllm_tokenizer *self, void *pointer)
{
    pllm_free(self->context, pointer);
}

uint32_t pllm_tokenizer_vocab_size(const pllm_tokenizer *self)
{
    return self->vocab_size;
}
uint32_t pllm_tokenizer_bos(const pllm_tokenizer *self)
{
    return self->bos_id;
}
uint32_t pllm_tokenizer_eos(const pllm_tokenizer *self)
{
    return self->eos_ids[0];
}
int pllm_tokenizer_add_bos(const pllm_tokenizer *self)
{
    return self->add_bos;
}

int pllm_tokenizer_is_special(const pllm_tokenizer *self, uint32_t id)
{
    return id < self->vocab_size &&
           (self->types[id] == TYPE_CONTROL || self->types[id] == TYPE_UNKNOWN);
}

int pllm_tokenizer_is_end(const pllm_tokenizer *self, uint32_t id)
{
    for (uint32_t i = 0; i < self->eos_count; i++)
        if (self->eos_ids[i] == id) return 1;
    return 0;
}

uint32_t pllm_tokenizer_find(const pllm_tokenizer *self, const char *text, uint64_t bytes)
{
    uint32_t id = pllm_text_index_find(&self->special, text, bytes);
    if (id == PLLM_TEXT_NONE) id = pllm_text_index_find(&self->plain, text, bytes);
    return id; /* PLLM_TEXT_NONE and PLLM_NO_TOKEN are the same number */
}
