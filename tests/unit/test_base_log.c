/* Log lines: exact text and JSON, hostile messages, cutting; the sink writes one line at a time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include <jansson.h>
#include "base/context.h"
#include "base/log.h"
#include "base/text.h"

static void lines(void **state)
{
    (void)state;
    char line[256];
    uint64_t when = 1738324805ull * 1000000000 + 7000000; /* 2025-01-31T12:00:05.007Z */
    size_t bytes = pllm_log_format(PLLM_LOG_TEXT, when, PLLM_LOG_WARN, "two\nlines \x1b[31m", line,
                                   sizeof line);
    assert_string_equal(line, "pagedllm: warn: two lines  [31m\n");
    assert_int_equal(bytes, strlen(line));
    pllm_log_format(PLLM_LOG_JSON, when, PLLM_LOG_ERROR, "say \"\\\"\n\x01\xff\xc3\xa9", line,
                    sizeof line);
    assert_string_equal(line, "{\"time\":\"2025-01-31T12:00:05.007Z\",\"level\":\"error\","
                              "\"message\":\"say \\\"\\\\\\\"\\n\\u0001?\xc3\xa9\"}\n");
    assert_string_equal(pllm_log_level_name(99), "debug");
}

/* Whatever the message and wherever it is cut, a JSON line parses. */
static void json_stays_whole(void **state)
{
    (void)state;
    char message[600], line[512];
    uint64_t random = 9;
    for (int round = 0; round < 2000; round++) {
        size_t length = (size_t)round % (sizeof message - 1);
        for (size_t i = 0; i < length; i++) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            message[i] = (char)((random >> 40) % 255 + 1);
        }
        message[length] = '\0';
        size_t room = 128 + (size_t)round % (sizeof line - 128);
        memset(line, 0x55, sizeof line);
        size_t bytes = pllm_log_format(PLLM_LOG_JSON, 0, PLLM_LOG_INFO, message, line, room);
        assert_true(bytes < room && line[bytes] == '\0');
        if (room < sizeof line) assert_int_equal(line[room], 0x55);
        json_t *json = json_loads(line, 0, NULL);
        assert_non_null(json);
        json_decref(json);
        pllm_log_format(PLLM_LOG_TEXT, 0, PLLM_LOG_INFO, message, line, room);
        assert_int_equal(strcspn(line, "\n"), strlen(line) - 1);
    }
}

static void sink_as_a_context_callback(void **state)
{
    (void)state;
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pllm_log_sink sink;
    pllm_log_sink_init(&sink, ends[1], PLLM_LOG_TEXT);
    pllm_context_options options = {.struct_bytes = sizeof options,
                                    .log_level = PLLM_LOG_INFO,
                                    .user = &sink,
                                    .log = pllm_log_sink_write};
    pllm_context *context;
    assert_int_equal(pllm_context_open(&options, &context), PLLM_OK);
    pllm_log(context, PLLM_LOG_INFO, "block %d", 7);
    pllm_log(context, PLLM_LOG_DEBUG, "not shown");
    close(ends[1]);
    char text[256] = "";
    assert_true(read(ends[0], text, sizeof text - 1) > 0);
    assert_string_equal(text, "pagedllm: info: block 7\n");
    close(ends[0]);
    pllm_log(context, PLLM_LOG_INFO, "nobody listens");
    assert_int_equal(sink.lost_count, 1);
    pllm_context_close(context);
}

static void quotes(void **state)
{
    (void)state;
    char buffer[16];
    assert_string_equal(pllm_text_quote("abc", buffer, sizeof buffer), "\"abc\"");
    assert_string_equal(pllm_text_quote(NULL, buffer, sizeof buffer), "\"\"");
    assert_string_equal(pllm_text_quote("a\x07\xff\x80z", buffer, sizeof buffer), "\"a???z\"");
    assert_string_equal(pllm_text_quote("0123456789abcdef", buffer, sizeof buffer),
                        "\"012345678...\"");
    assert_string_equal(pllm_text_quote("01234567\xc3\xa9z", buffer, sizeof buffer),
                        "\"01234567...\""); /* cut between characters */
    static const char *const broken[] = {"\xc0\x80",         "\xc1\xbf",         "\xe0\x80\x80",
                                         "\xed\xa0\x80",     "\xf0\x80\x80\x80", "\xf4\x90\x80\x80",
                                         "\xf5\x80\x80\x80", "\xc2\x85",         "\xe2\x82"};
    for (size_t i = 0; i < sizeof broken / sizeof broken[0]; i++)
        assert_int_equal(pllm_text_character(broken[i]), 0);
    assert_int_equal(pllm_text_character("\xf4\x8f\xbf\xbf"), 4);
    assert_int_equal(pllm_text_character("\xed\x9f\xbf"), 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines),
        cmocka_unit_test(json_stays_whole),
        cmocka_unit_test(sink_as_a_context_callback),
        cmocka_unit_test(quotes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
