/* Commands of tensor:cmd: what is taken, what is refused and with which words, what is answered. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>
#include <jansson.h>
#include "redis/command.h"

static int parse(const char *text, pllm_command *command)
{
    return pllm_command_parse(text, strlen(text), command);
}

static void test_create(void **state)
{
    (void)state;
    pllm_command c;
    assert_int_equal(parse("{\"op\":\"create\",\"name\":\"X\",\"dtype\":\"f32\",\"shape\":[2,3],"
                           "\"device\":1,\"mode\":416,\"pinned\":true,\"reply\":\"r\"}",
                           &c),
                     PLLM_OK);
    assert_int_equal(c.op, PLLM_COMMAND_CREATE);
    assert_string_equal(c.name, "X");
    assert_string_equal(c.device, "1");
    assert_string_equal(c.reply, "r");
    assert_int_equal(c.dtype, PLLM_STORE_F32);
    assert_int_equal(c.rank, 2);
    assert_int_equal(c.shape[0], 2);
    assert_int_equal(c.shape[1], 3);
    assert_int_equal(c.mode, 0640);
    assert_int_equal(c.pinned, 1);
    assert_int_equal(c.pid, 0);
    /* A shape as seed 001 writes it in the hash, and a device by UUID. */
    assert_int_equal(parse("{\"op\":\"create\",\"name\":\"a/b:c\",\"dtype\":\"bool\","
                           "\"shape\":\"[4, 5]\",\"device\":\"GPU-12\",\"pid\":7}",
                           &c),
                     PLLM_OK);
    assert_int_equal(c.shape[1], 5);
    assert_string_equal(c.device, "GPU-12");
    assert_int_equal(c.pid, 7);
}

static void test_get_and_delete(void **state)
{
    (void)state;
    pllm_command c;
    assert_int_equal(parse("{\"op\":\"get\",\"name\":\"X\",\"lease_s\":0.5,\"writable\":true}", &c),
                     PLLM_OK);
    assert_int_equal(c.op, PLLM_COMMAND_GET);
    assert_int_equal(c.lease_ns, 500000000);
    assert_int_equal(c.writable, 1);
    /* Seed 001 shows one form for all three: what get does not need is checked and not used. */
    assert_int_equal(parse("{\"op\":\"delete\",\"name\":\"X\",\"dtype\":\"f32\",\"shape\":[2,3],"
                           "\"device\":0,\"lease\":\"18446744073709551615\"}",
                           &c),
                     PLLM_OK);
    assert_int_equal(c.op, PLLM_COMMAND_DELETE);
    assert_true(c.lease == UINT64_MAX);
}

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"", "JSON object"},
        {"[]", "JSON object"},
        {"{\"op\":\"get\",\"name\":\"X\"", "JSON object"},
        {"{\"op\":\"get\",\"name\":\"X\",\"name\":\"Y\"}", "JSON object"},
        {"{\"name\":\"X\"}", "\"op\""},
        {"{\"op\":\"drop\",\"name\":\"X\"}", "\"drop\""},
        {"{\"op\":\"get\"}", "\"name\""},
        {"{\"op\":\"get\",\"name\":\"cmd\"}", "cmd"},
        {"{\"op\":\"get\",\"name\":\"a b\"}", "name"},
        {"{\"op\":\"get\",\"name\":7}", "\"name\""},
        {"{\"op\":\"get\",\"name\":\"X\",\"leese_s\":3}", "\"leese_s\""},
        {"{\"op\":\"get\",\"name\":\"X\",\"lease_s\":0}", "\"lease_s\""},
        {"{\"op\":\"get\",\"name\":\"X\",\"lease_s\":-1}", "\"lease_s\""},
        {"{\"op\":\"get\",\"name\":\"X\",\"lease_s\":1e99}", "\"lease_s\""},
        {"{\"op\":\"get\",\"name\":\"X\",\"pid\":0}", "\"pid\""},
        {"{\"op\":\"get\",\"name\":\"X\",\"pid\":99999999999}", "\"pid\""},
        {"{\"op\":\"get\",\"name\":\"X\",\"pid\":1,\"lease_s\":1}", "not both"},
        {"{\"op\":\"delete\",\"name\":\"X\",\"lease\":\"18446744073709551616\"}", "\"lease\""},
        {"{\"op\":\"delete\",\"name\":\"X\",\"lease\":5}", "\"lease\""},
        {"{\"op\":\"delete\",\"name\":\"X\",\"lease_s\":5}", "\"lease\""},
        {"{\"op\":\"create\",\"name\":\"X\",\"dtype\":\"f32\",\"shape\":[-1]}", "\"shape\""},
        {"{\"op\":\"create\",\"name\":\"X\",\"dtype\":\"f32\",\"shape\":[9223372036854775807]}",
         "\"shape\""},
        {"{\"op\":\"create\",\"name\":\"X\",\"dtype\":\"f32\",\"shape\":[9223372036854775808]}",
         "JSON"},
        {"{\"op\":\"create\",\"name\":\"X\",\"dtype\":\"f32\",\"shape\":[[1]]}", "\"shape\""},
        {"{\"op\":\"get\",\"name\":\"a\\u0000b\"}", "JSON"},
        {"{\"op\":\"get\",\"name\":\"\\u00e9\"}", "name"},
        {"{\"op\":\"\\u001b[2J\",\"name\":\"X\"}", "?[2J"},
        {"{\"op\":\"get\",\"name\":\"X\",\"a\\nb\":1}", "a?b"},
        {"\x1b[2J", "near '?'"},
        {"{\"op\":\"create\",\"name\":\"X\",\"dtype\":\"f32\"}", "\"shape\""},
        {"{\"op\":\"create\",\"name\":\"X\",\"shape\":[1]}", "\"dtype\""},
        {"{\"op\":\"create\",\"name\":\"X\",\"dtype\":\"f33\",\"shape\":[1]}", "f33"},
        {"{\"op\":\"create\",\"name\":\"X\",\"dtype\":\"f32\",\"shape\":[0]}", "\"shape\""},
        {"{\"op\":\"create\",\"name\":\"X\",\"dtype\":\"f32\",\"shape\":[1.5]}", "\"shape\""},
        {"{\"op\":\"create\",\"name\":\"X\",\"dtype\":\"f32\",\"shape\":[1,1,1,1,1,1,1,1,1]}", "8"},
        {"{\"op\":\"create\",\"name\":\"X\",\"dtype\":\"f64\",\"shape\":[281474976710656,2]}", ""},
        {"{\"op\":\"create\",\"name\":\"X\",\"dtype\":\"f32\",\"shape\":[1],\"device\":-1}",
         "\"device\""},
        {"{\"op\":\"create\",\"name\":\"X\",\"dtype\":\"f32\",\"shape\":[1],\"mode\":1000}",
         "\"mode\""},
    };
    for (uint32_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        pllm_command c;
        int status = parse(cases[i].text, &c);
        if (status != PLLM_EINVAL && status != PLLM_ELIMIT)
            fail_msg("%s was taken (%d)", cases[i].text, status);
        if (!strstr(pllm_last_error()->text, cases[i].says))
            fail_msg("%s: \"%s\" does not say %s", cases[i].text, pllm_last_error()->text,
                     cases[i].says);
    }
    /* Who sent nonsense is told, if it could be read where. */
    pllm_command c;
    assert_int_equal(parse("{\"reply\":\"here\",\"op\":\"x\"}", &c), PLLM_EINVAL);
    assert_string_equal(c.reply, "here");
    char big[PLLM_COMMAND_BYTES_MAX + 2];
    memset(big, ' ', sizeof big);
    assert_int_equal(pllm_command_parse(big, sizeof big, &c), PLLM_ELIMIT);
}

/* Nested as deep as a command's length allows: refused, without the parser's stack running out. */
static void test_nested(void **state)
{
    (void)state;
    pllm_command c;
    char deep[PLLM_COMMAND_BYTES_MAX];
    memset(deep, '[', sizeof deep);
    assert_int_equal(pllm_command_parse(deep, sizeof deep, &c), PLLM_EINVAL);
    memset(deep + sizeof deep / 2, ']', sizeof deep / 2);
    assert_int_equal(pllm_command_parse(deep, sizeof deep, &c), PLLM_EINVAL);
}

/* Foreign words are cut for a sentence, but never within a character: the answer is still JSON. */
static void test_answer_of_foreign_words(void **state)
{
    (void)state;
    static const char *const forms[] = {"{\"op\":\"x%s\",\"name\":\"X\",\"reply\":\"r\"}",
                                        "{\"op\":\"get\",\"x%s\":1,\"name\":\"X\",\"reply\":\"r\"}",
                                        "{\"op\":\"get\",\"name\":\"x%s\",\"reply\":\"r\"}"};
    char words[128] = "", text[256], answer[PLLM_COMMAND_ANSWER_BYTES];
    for (uint32_t i = 0; i < 60; i++) strcat(words, "\xc3\xa9");
    for (uint32_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        pllm_command c;
        snprintf(text, sizeof text, forms[i], words);
        int status = parse(text, &c);
        assert_int_equal(status, PLLM_EINVAL);
        assert_string_equal(c.reply, "r");
        pllm_command_answer_text(&c, status, NULL, answer);
        json_t *object = json_loads(answer, 0, NULL);
        assert_non_null(object);
        assert_string_equal(json_string_value(json_object_get(object, "error")), "EINVAL");
        json_decref(object);
    }
}

static void test_answers(void **state)
{
    (void)state;
    pllm_command c = {.op = PLLM_COMMAND_GET, .name = "X"};
    pllm_store_record record = {.dtype = PLLM_STORE_F16,
                                .rank = 2,
                                .shape = {2, 3},
                                .state = PLLM_STORE_STATE_READY,
                                .bytes = 12,
                                .reference_count = 4,
                                .generation = UINT64_MAX - 1};
    const pllm_command_answer good = {
        .record = &record, .uuid = "GPU-1", .ipc_handle = "AAAA", .offset = 512, .lease = 9};
    char text[PLLM_COMMAND_ANSWER_BYTES];
    size_t bytes = pllm_command_answer_text(&c, PLLM_OK, &good, text);
    assert_int_equal(bytes, strlen(text));
    json_t *object = json_loads(text, 0, NULL);
    assert_non_null(object);
    assert_true(json_is_true(json_object_get(object, "ok")));
    assert_string_equal(json_string_value(json_object_get(object, "dtype")), "f16");
    assert_int_equal(json_integer_value(json_array_get(json_object_get(object, "shape"), 1)), 3);
    assert_int_equal(json_integer_value(json_object_get(object, "offset")), 512);
    assert_int_equal(json_integer_value(json_object_get(object, "refcount")), 4);
    assert_string_equal(json_string_value(json_object_get(object, "generation")),
                        "18446744073709551614");
    assert_string_equal(json_string_value(json_object_get(object, "lease")), "9");
    json_decref(object);

    pllm_store_name_check("cmd", 3); /* leaves a sentence */
    pllm_command_answer_text(&c, PLLM_EINVAL, NULL, text);
    object = json_loads(text, 0, NULL);
    assert_true(json_is_false(json_object_get(object, "ok")));
    assert_string_equal(json_string_value(json_object_get(object, "error")), "EINVAL");
    assert_non_null(strstr(json_string_value(json_object_get(object, "text")), "cmd"));
    json_decref(object);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_create),
        cmocka_unit_test(test_get_and_delete),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_nested),
        cmocka_unit_test(test_answer_of_foreign_words),
        cmocka_unit_test(test_answers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
