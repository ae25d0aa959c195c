/* Goal: the parts of the tokenizer hold on any input: merging, word splitting, characters, special
 * tokens. Method: a vocabulary made here; the two merging ways against each other and against a
 * plain restatement of the rule; random bytes there and back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "gguf_builder.h"
#include "model/bpe.h"
#include "model/chat_template.h"
#include "model/model_internal.h"
#include "model/pretokenize.h"
#include "model/tokenizer.h"

typedef struct tiny {
    uint8_t *file;
    pllm_model *model;
    pllm_tokenizer *tokenizer;
    pllm_chat_template *chat;
} tiny;

static void tiny_open(tiny *it)
{
    gguf_builder builder = {0};
    uint64_t bytes;
    gguf_builder_tiny(&builder);
    it->file = gguf_builder_finish(&builder, &bytes);
    assert_int_equal(pllm_model_open_gguf_memory(NULL, "t", it->file, bytes, &it->model), PLLM_OK);
    assert_int_equal(pllm_tokenizer_open(NULL, it->model, &it->tokenizer), PLLM_OK);
    assert_int_equal(pllm_chat_template_open(NULL, it->model, &it->chat), PLLM_OK);
}

static void tiny_close(tiny *it)
{
    pllm_chat_template_close(it->chat);
    pllm_tokenizer_close(it->tokenizer);
    pllm_model_close(it->model);
    free(it->file);
}

static void check_ids(const tiny *it, const char *text, int special, uint32_t count,
                      const uint32_t *wanted)
{
    uint32_t *ids, got;
    assert_int_equal(pllm_tokenizer_encode(it->tokenizer, text, strlen(text), special, &ids, &got),
                     PLLM_OK);
    assert_int_equal(got, count);
    for (uint32_t i = 0; i < count; i++) assert_int_equal(ids[i], wanted[i]);
    pllm_tokenizer_free(it->tokenizer, ids);
}

enum { TH = 256, THE, SP_T, SP_THE, AA, AAAA, START, END, THINK };

static void test_tiny_vocabulary(void **state)
{
    (void)state;
    tiny it;
    tiny_open(&it);
    /* " the": t-h (rank 0) and th-e go before space-t (2), then space-the has no pair: the merge
     * list says "Ġ the", which is made of the space and "the" */
    check_ids(&it, " the", 0, 1, (uint32_t[]){SP_THE});
    check_ids(&it, "the th", 0, 3, (uint32_t[]){THE, ' ', TH});
    check_ids(&it, " ta", 0, 2, (uint32_t[]){SP_T, 'a'});
    check_ids(&it, "aaaaaaa", 0, 3, (uint32_t[]){AAAA, AA, 'a'});
    check_ids(&it, "a<|im_end|>a", 1, 3, (uint32_t[]){'a', END, 'a'});
    check_ids(&it, "<|im_start|><|im_end|>", 1, 2, (uint32_t[]){START, END});
    check_ids(&it, "<think>x", 0, 2, (uint32_t[]){THINK, 'x'}); /* user-defined: always */
    check_ids(&it, "<|im_en", 1, 7, (uint32_t[]){'<', '|', 'i', 'm', '_', 'e', 'n'});
    check_ids(&it, "", 1, 0, NULL);
    assert_true(pllm_tokenizer_add_bos(it.tokenizer));
    assert_int_equal(pllm_tokenizer_bos(it.tokenizer), START);
    assert_true(pllm_tokenizer_is_end(it.tokenizer, END));
    assert_true(pllm_tokenizer_is_special(it.tokenizer, START));
    assert_false(pllm_tokenizer_is_special(it.tokenizer, THINK));
    assert_int_equal(pllm_tokenizer_find(it.tokenizer, "<think>", 7), THINK);
    assert_int_equal(pllm_tokenizer_find(it.tokenizer, " the", 4), SP_THE);
    assert_int_equal(pllm_tokenizer_find(it.tokenizer, "nothing", 7), PLLM_NO_TOKEN);
    assert_string_equal(pllm_chat_template_system(it.chat), "Be brief.");
    uint32_t past = GGUF_TINY_VOCAB;
    char *text;
    uint64_t bytes;
    assert_int_equal(pllm_tokenizer_decode(it.tokenizer, &past, 1, &text, &bytes), PLLM_EINVAL);
    tiny_close(&it);
}

static uint64_t next_random(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return *seed >> 33;
}

/* The rule word for word: lowest rank, leftmost. */
static uint32_t merge_plainly(const uint32_t (*table)[3], uint32_t merges, uint32_t *ids,
                              uint32_t count)
{
    for (;;) {
        uint32_t best = merges, where = 0;
        for (uint32_t i = 0; i + 1 < count; i++)
            for (uint32_t rank = 0; rank < best; rank++)
                if (table[rank][0] == ids[i] && table[rank][1] == ids[i + 1]) {
                    best = rank;
                    where = i;
                }
        if (best == merges) return count;
        ids[where] = table[best][2];
        memmove(ids + where + 1, ids + where + 2, (count - where - 2) * sizeof *ids);
        count--;
    }
}

static void test_merging_ways_agree(void **state)
{
    (void)state;
    enum { MERGES = 40, LONGEST = 200 };
    uint64_t seed = 7;
    for (uint32_t run = 0; run < 400; run++) {
        pllm_bpe bpe;
        pllm_bpe_scratch scratch = {0};
        uint32_t table[MERGES][3], symbols = 3;
        assert_int_equal(pllm_bpe_init(NULL, &bpe, MERGES), PLLM_OK);
        for (uint32_t i = 0; i < MERGES; i++) { /* any two known symbols make the next */
            table[i][0] = (uint32_t)(next_random(&seed) % symbols);
            table[i][1] = (uint32_t)(next_random(&seed) % symbols);
            table[i][2] = symbols++;
            pllm_bpe_add(&bpe, table[i][0], table[i][1], i, table[i][2]);
        }
        uint32_t plain[LONGEST], ours[LONGEST], brief[LONGEST];
        uint32_t count = 1 + (uint32_t)(next_random(&seed) % (run % 2 ? 32 : LONGEST));
        for (uint32_t i = 0; i < count; i++) plain[i] = (uint32_t)(next_random(&seed) % 3);
        memcpy(ours, plain, sizeof plain);
        memcpy(brief, plain, sizeof plain);
        uint32_t wanted = merge_plainly(table, MERGES, plain, count), got = count;
        assert_int_equal(pllm_bpe_word_long(NULL, &bpe, &scratch, ours, &got), PLLM_OK);
        assert_int_equal(got, wanted);
        assert_memory_equal(ours, plain, wanted * sizeof *plain);
        if (count <= 32) {
            got = count;
            pllm_bpe_word_short(&bpe, brief, &got);
            assert_int_equal(got, wanted);
            assert_memory_equal(brief, plain, wanted * sizeof *plain);
        }
        pllm_bpe_scratch_deinit(NULL, &scratch);
        pllm_bpe_deinit(NULL, &bpe);
    }
}

/* A word of a million letters takes the long way; quadratic code would take minutes. */
static void test_long_word(void **state)
{
    (void)state;
    enum { LETTERS = 1000000 };
    tiny it;
    tiny_open(&it);
    char *text = malloc(LETTERS);
    memset(text, 'a', LETTERS);
    uint32_t *ids, count;
    assert_int_equal(pllm_tokenizer_encode(it.tokenizer, text, LETTERS, 1, &ids, &count), PLLM_OK);
    assert_int_equal(count, LETTERS / 4);
    assert_int_equal(ids[count - 1], AAAA);
    pllm_tokenizer_free(it.tokenizer, ids);
    memset(text, ' ', LETTERS); /* the expression must not climb its own stack */
    assert_int_equal(pllm_tokenizer_encode(it.tokenizer, text, LETTERS, 1, &ids, &count), PLLM_OK);
    assert_int_equal(count, LETTERS);
    pllm_tokenizer_free(it.tokenizer, ids);
    free(text);
    tiny_close(&it);
}

/* Any bytes come back from their ids; also through a stream, where they come out as UTF-8. */
static void test_random_bytes_return(void **state)
{
    (void)state;
    tiny it;
    tiny_open(&it);
    uint64_t seed = 99;
    for (uint32_t run = 0; run < 2000; run++) {
        char text[64], shown[PLLM_UTF8_ROOM(64)], *back;
        uint64_t bytes = next_random(&seed) % 64, back_bytes;
        for (uint64_t i = 0; i < bytes; i++) {
            uint64_t r = next_random(&seed);
            text[i] = r % 4 == 0 ? (char)(r >> 8) : "ath \n\xe2\x82\xac\xc3"[r / 4 % 9];
        }
        uint32_t *ids, count;
        assert_int_equal(pllm_tokenizer_encode(it.tokenizer, text, bytes, 1, &ids, &count),
                         PLLM_OK);
        assert_int_equal(pllm_tokenizer_decode(it.tokenizer, ids, count, &back, &back_bytes),
                         PLLM_OK);
        assert_int_equal(back_bytes, bytes);
        assert_memory_equal(back, text, bytes);
        pllm_utf8_stream stream = {0};
        uint64_t written = 0;
        for (uint32_t i = 0; i < count; i++) {
            uint32_t piece_bytes;
            const char *piece = pllm_tokenizer_piece(it.tokenizer, ids[i], &piece_bytes);
            written += pllm_utf8_stream_push(&stream, piece, piece_bytes, shown + written);
            assert_int_equal(pllm_utf8_valid_prefix(shown, written), written);
        }
        written += pllm_utf8_stream_finish(&stream, shown + written);
        assert_int_equal(pllm_utf8_valid_prefix(shown, written), written);
        if (pllm_utf8_valid_prefix(text, bytes) == bytes) {
            assert_int_equal(written, bytes);
            assert_memory_equal(shown, text, bytes);
        }
        pllm_tokenizer_free(it.tokenizer, back);
        pllm_tokenizer_free(it.tokenizer, ids);
    }
    tiny_close(&it);
}

static void check_stream(const char *in, uint64_t bytes, const char *wanted)
{
    pllm_utf8_stream stream = {0};
    char out[128];
    uint64_t written = 0;
    for (uint64_t i = 0; i < bytes; i++) /* byte by byte: the hardest way to cut it */
        written += pllm_utf8_stream_push(&stream, in + i, 1, out + written);
    written += pllm_utf8_stream_finish(&stream, out + written);
    out[written] = 0;
    assert_string_equal(out, wanted);
}

#define BAD "\xef\xbf\xbd"

/* One U+FFFD for each maximal subpart, as the Unicode Standard recommends (section 3.9). */
static void test_characters(void **state)
{
    (void)state;
    check_stream("a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", 10,
                 "a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
    check_stream("\xf1\x80\x80\xe1\x80\xc2"
                 "b\x80"
                 "c\x80\xbf"
                 "d",
                 12, BAD BAD BAD "b" BAD "c" BAD BAD "d"); /* the standard's own example */
    check_stream("\xc0\xaf\xed\xa0\x80\xf4\x90\x80\x80\xff", 10,
                 BAD BAD BAD BAD BAD BAD BAD BAD BAD BAD);
    check_stream("x\xe2\x82", 3, "x" BAD);
    pllm_utf8_stream stream = {0};
    char out[16];
    assert_int_equal(pllm_utf8_stream_push(&stream, "\xf0\x9f\x98", 3, out), 0);
    assert_int_equal(pllm_utf8_stream_push(&stream, "\x80!", 2, out), 5);
    assert_memory_equal(out, "\xf0\x9f\x98\x80!", 5);
}

/* ---- words ---- */

typedef struct words {
    char joined[256];
} words;

static int take_word(void *user, const char *word, uint64_t bytes)
{
    words *into = user;
    strncat(into->joined, word, bytes);
    strcat(into->joined, "|");
    return PLLM_OK;
}

static void check_words(const char *scheme, const char *text, const char *wanted)
{
    pllm_pretokenizer *self;
    words got = {""};
    assert_int_equal(pllm_pretokenizer_open(NULL, "f", scheme, strlen(scheme), &self), PLLM_OK);
    assert_int_equal(pllm_pretokenizer_split(self, text, strlen(text), take_word, &got), PLLM_OK);
    assert_string_equal(got.joined, wanted);
    pllm_pretokenizer_close(self);
}

static void test_words(void **state)
{
    (void)state;
    check_words("smollm", "Don't stop, it's 25!  x", "Don|'t| stop|,| it|'s| 25|!| | x|");
    check_words("smollm", "a\n\n b \xc3\xa9t\xc3\xa9\t\n", "a|\n\n| b| \xc3\xa9t\xc3\xa9|\t\n|");
    check_words("smollm", "x\xe1\xa0\x8ey", "x|\xe1\xa0\x8e|y|"); /* U+180E is no white space */
    check_words("smollm",
                "a\xff\xfe"
                "b",
                "a|\xff\xfe|b|");
    check_words("llama-bpe", "He'LL  say 12345...\n\nok", "He|'LL| | say| |123|45|...\n\n|ok|");
}

static void test_chat_open_reply(void **state)
{
    (void)state;
    tiny it;
    tiny_open(&it);
    pllm_chat_message messages[] = {{"user", "a"}, {"assistant", "b"}, {"user", "c"}};
    pllm_chat_request request = {messages, 3, 2, PLLM_CHAT_REPLY_OPEN, 1};
    char *text;
    uint64_t bytes;
    assert_int_equal(pllm_chat_format(it.chat, &request, &text, &bytes), PLLM_OK);
    assert_string_equal(text, "<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n");
    pllm_chat_free(it.chat, text);
    /* a marker that the user wrote stays text: the four are the template's own */
    messages[2].content = "<|im_end|><|im_start|>";
    uint32_t *ids, count, markers = 0;
    assert_int_equal(pllm_chat_encode(it.chat, it.tokenizer, &request, &ids, &count), PLLM_OK);
    for (uint32_t i = 0; i < count; i++) markers += ids[i] == START || ids[i] == END;
    assert_int_equal(markers, 4);
    pllm_tokenizer_free(it.tokenizer, ids);
    request.done = 4;
    assert_int_equal(pllm_chat_format(it.chat, &request, &text, &bytes), PLLM_EINVAL);
    tiny_close(&it);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tiny_vocabulary), cmocka_unit_test(test_merging_ways_agree),
        cmocka_unit_test(test_long_word),       cmocka_unit_test(test_random_bytes_return),
        cmocka_unit_test(test_characters),      cmocka_unit_test(test_words),
        cmocka_unit_test(test_chat_open_reply),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
