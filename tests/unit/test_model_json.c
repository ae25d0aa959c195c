/* Goal: JSON from model files is read as RFC 8259 says, and nothing else is.
 * Catches: escapes and surrogates put together wrongly, numbers off by a bit, spans that lose a
 * sibling, leniency (what one reader lets pass another may read differently). */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "model/json.h"

static int parse(const char *text, pllm_json *json)
{
    return pllm_json_parse(NULL, "f.json", text, strlen(text), json);
}

static void test_tree(void **state)
{
    (void)state;
    pllm_json json;
    assert_int_equal(parse(" {\"a\":[1,[2,{\"x\":3}],{}],\n\"b\":{\"a\":null,\"c\":[]},\"\":true,"
                           "\"d\":false}\t\r\n",
                           &json),
                     PLLM_OK);
    const pllm_json_node *root = json.nodes, *a = pllm_json_member(root, "a");
    assert_int_equal(root->count, 4);
    assert_int_equal(root->span, json.node_count);
    assert_int_equal(a->count, 3);
    assert_int_equal(pllm_json_at(a, 0)->integer, 1);
    assert_int_equal(pllm_json_member(pllm_json_at(pllm_json_at(a, 1), 1), "x")->integer, 3);
    assert_int_equal(pllm_json_at(a, 2)->kind, PLLM_JSON_OBJECT);
    assert_null(pllm_json_at(a, 3));
    const pllm_json_node *b = pllm_json_member(root, "b");
    assert_int_equal(pllm_json_member(b, "a")->kind, PLLM_JSON_NULL);
    assert_int_equal(pllm_json_member(b, "c")->count, 0);
    assert_int_equal(pllm_json_member(root, "")->kind, PLLM_JSON_TRUE);
    assert_int_equal(pllm_json_member(root, "d")->kind, PLLM_JSON_FALSE);
    assert_null(pllm_json_member(root, "c"));
    assert_null(pllm_json_member(a, "x"));
    assert_null(pllm_json_member(NULL, "x"));
    assert_null(pllm_json_text(a));
    pllm_json_deinit(&json);
}

static void test_strings(void **state)
{
    (void)state;
    pllm_json json;
    assert_int_equal(
        parse("{\"k\\u00e9\\n\":\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0041\\u20AC\\ud83d\\ude00"
              "\xe2\x82\xac\"}",
              &json),
        PLLM_OK);
    const pllm_json_node *value = pllm_json_member(json.nodes, "k\xc3\xa9\n");
    assert_string_equal(pllm_json_text(value),
                        "\"\\/\b\f\n\r\tA\xe2\x82\xac\xf0\x9f\x98\x80\xe2\x82\xac");
    assert_int_equal(value->bytes, strlen(value->text));
    pllm_json_deinit(&json);
}

static void check_number(const char *text)
{
    char document[200];
    pllm_json json;
    snprintf(document, sizeof document, "{\"n\":%s}", text);
    assert_int_equal(parse(document, &json), PLLM_OK);
    const pllm_json_node *node = pllm_json_member(json.nodes, "n");
    double wanted = strtod(text, NULL);
    if ((float)node->number != (float)wanted || fabs(node->number - wanted) > fabs(wanted) * 3e-16)
        fail_msg("%s: %.17g, not %.17g", text, node->number, wanted);
    assert_int_equal(node->kind == PLLM_JSON_INTEGER, !strpbrk(text, ".eE") && strlen(text) < 19);
    if (node->kind == PLLM_JSON_INTEGER) assert_int_equal(node->integer, strtoll(text, NULL, 10));
    pllm_json_deinit(&json);
}

static void test_numbers(void **state)
{
    (void)state;
    static const char *const numbers[] = {"0",
                                          "-0",
                                          "7",
                                          "-12",
                                          "123456789012345678",
                                          "1e-06",
                                          "1e-5",
                                          "9.999999747378752e-06",
                                          "500000.0",
                                          "10000.0",
                                          "0.02",
                                          "3.14159265358979323846264338327950288",
                                          "1E+5",
                                          "1e5",
                                          "-2.5e-3",
                                          "123456789012345678901234567890",
                                          "0.000000000000000000000000000001",
                                          "1.7976931348623157e308",
                                          "2.2250738585072014e-308",
                                          "4.9e-20",
                                          "1e30",
                                          "0e0",
                                          "0.0"};
    for (uint32_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) check_number(numbers[i]);
    uint64_t seed = 5;
    for (uint32_t i = 0; i < 2000; i++) { /* floats as programs print them */
        char text[40];
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        uint32_t bits = (uint32_t)(seed >> 32) & 0x7fffffff;
        float value;
        memcpy(&value, &bits, 4);
        if (!isfinite(value) || value == 0) continue;
        snprintf(text, sizeof text, i % 2 ? "%.9e" : "%.17e", (double)value);
        check_number(text);
    }
}

static void test_refusals(void **state)
{
    (void)state;
    static const char *const wrong[] = {"",
                                        " ",
                                        "{",
                                        "}",
                                        "[]",
                                        "1",
                                        "\"a\"",
                                        "{\"a\"}",
                                        "{\"a\":}",
                                        "{\"a\":1,}",
                                        "{a:1}",
                                        "{'a':1}",
                                        "{\"a\":1}}",
                                        "{\"a\":1} x",
                                        "{\"a\":[1,]}",
                                        "{\"a\":[1 2]}",
                                        "{\"a\":[1}",
                                        "{\"a\":01}",
                                        "{\"a\":+1}",
                                        "{\"a\":.5}",
                                        "{\"a\":1.}",
                                        "{\"a\":1e}",
                                        "{\"a\":-}",
                                        "{\"a\":NaN}",
                                        "{\"a\":Infinity}",
                                        "{\"a\":nul}",
                                        "{\"a\":True}",
                                        "{\"a\":\"\n\"}",
                                        "{\"a\":\"\\x\"}",
                                        "{\"a\":\"\\u12\"}",
                                        "{\"a\":\"\\u12g4\"}",
                                        "{\"a\":\"\\u0000\"}",
                                        "{\"a\":\"\\ud800\"}",
                                        "{\"a\":\"\\udc00\\ud800\"}",
                                        "{\"a\":\"\\ud800\\u0041\"}",
                                        "{\"a\":\"\\",
                                        "{\"a\":\"x",
                                        "{\"a\":\"\xff\"}",
                                        "{\"a\":\"\xed\xa0\x80\"}",
                                        "// \n{}",
                                        "{\"a\":1,\"b\":2,\"a\":3}",
                                        "{\"x\":{\"a\":1,\"\\u0061\":2}}"};
    pllm_json json;
    for (uint32_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        if (parse(wrong[i], &json) != PLLM_ECORRUPT) fail_msg("accepted: %s", wrong[i]);
        assert_non_null(strstr(pllm_last_error()->text, "f.json"));
        assert_null(json.nodes);
    }
    char deep[300] = "{\"a\":";
    memset(deep + 5, '[', 64);
    assert_int_equal(parse(deep, &json), PLLM_ECORRUPT);
    assert_non_null(strstr(pllm_last_error()->text, "deep"));
    /* the same key in two objects is no duplicate */
    assert_int_equal(parse("{\"x\":{\"a\":1},\"y\":{\"a\":1},\"a\":[{\"a\":1}]}", &json), PLLM_OK);
    pllm_json_deinit(&json);
    assert_int_equal(parse("{\n\n\"a\" 1}", &json), PLLM_ECORRUPT);
    assert_non_null(strstr(pllm_last_error()->text, "line 3"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tree),
        cmocka_unit_test(test_strings),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
