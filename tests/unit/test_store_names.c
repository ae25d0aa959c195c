/* What is accepted as a name, a type, a shape, a mode, a device or a token, and what is not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>
#include "base/context.h"
#include "store/names.h"

static int name(const char *text)
{
    return pllm_store_name_check(text, strlen(text));
}

static void names_have_an_alphabet_and_a_length(void **state)
{
    (void)state;
    char text[PLLM_STORE_NAME_MAX + 2];
    memset(text, 'a', sizeof text);
    assert_int_equal(pllm_store_name_check(text, PLLM_STORE_NAME_MAX), PLLM_OK);
    assert_int_equal(pllm_store_name_check(text, PLLM_STORE_NAME_MAX + 1), PLLM_EINVAL);
    assert_int_equal(name("model/layer.0:k_cache-A9"), PLLM_OK);
    assert_int_equal(name(""), PLLM_EINVAL);
    assert_int_equal(name("cmd"), PLLM_EINVAL); /* tensor:cmd is the command list's key */
    assert_int_equal(name("cmd2"), PLLM_OK);
    assert_int_equal(name("CMD"), PLLM_OK);
    assert_int_equal(pllm_store_name_check("a\0b", 3), PLLM_EINVAL);
    const char *allowed = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-/:";
    for (int c = 1; c < 256; c++) {
        char one[1] = {(char)c};
        assert_int_equal(pllm_store_name_check(one, 1), strchr(allowed, c) ? PLLM_OK : PLLM_EINVAL);
        assert_int_equal(pllm_store_prefix_check(one, 1),
                         strchr(allowed, c) ? PLLM_OK : PLLM_EINVAL);
    }
    assert_int_equal(pllm_store_prefix_check("", 0), PLLM_OK);
    assert_int_equal(pllm_store_prefix_check("cmd", 3), PLLM_OK);
    assert_int_equal(pllm_store_prefix_check(text, PLLM_STORE_NAME_MAX + 1), PLLM_EINVAL);
}

static void dtypes_go_to_text_and_back(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint32_t bytes;
    } known[] = {{"f64", 8}, {"f32", 4}, {"f16", 2}, {"bf16", 2}, {"f8e4m3", 1}, {"f8e5m2", 1},
                 {"i64", 8}, {"i32", 4}, {"i16", 2}, {"i8", 1},   {"u8", 1},     {"bool", 1}};
    for (uint32_t i = 0; i < PLLM_STORE_DTYPES; i++) {
        uint32_t dtype = 99;
        assert_int_equal(pllm_store_dtype_parse(known[i].name, strlen(known[i].name), &dtype), 0);
        assert_int_equal(dtype, i);
        assert_string_equal(pllm_store_dtype_name(dtype), known[i].name);
        assert_int_equal(pllm_store_dtype_bytes(dtype), known[i].bytes);
    }
    uint32_t dtype = 99;
    assert_int_equal(pllm_store_dtype_parse("f3", 2, &dtype), PLLM_EINVAL);
    assert_int_equal(pllm_store_dtype_parse("f322", 4, &dtype), PLLM_EINVAL);
    assert_int_equal(pllm_store_dtype_parse("F32", 3, &dtype), PLLM_EINVAL);
    assert_int_equal(pllm_store_dtype_parse("", 0, &dtype), PLLM_EINVAL);
    assert_int_equal(dtype, 99);
    assert_int_equal(pllm_store_dtype_bytes(PLLM_STORE_DTYPES), 0);
    assert_string_equal(pllm_store_dtype_name(PLLM_STORE_DTYPES), "unknown");
}

static void bytes_of_a_shape_do_not_wrap(void **state)
{
    (void)state;
    uint64_t bytes = 7;
    uint64_t plain[] = {2, 3, 4};
    assert_int_equal(pllm_store_shape_bytes(PLLM_STORE_F32, 3, plain, &bytes), PLLM_OK);
    assert_int_equal(bytes, 96);
    assert_int_equal(pllm_store_shape_bytes(PLLM_STORE_F64, 0, NULL, &bytes), PLLM_OK);
    assert_int_equal(bytes, 8);
    uint64_t wraps[] = {(uint64_t)1 << 32, (uint64_t)1 << 32}; /* times 4: 0 in 64 bits */
    assert_int_equal(pllm_store_shape_bytes(PLLM_STORE_F32, 2, wraps, &bytes), PLLM_ELIMIT);
    uint64_t wraps_small[] = {((uint64_t)1 << 62) + 1}; /* times 4: 4 in 64 bits */
    assert_int_equal(pllm_store_shape_bytes(PLLM_STORE_F32, 1, wraps_small, &bytes), PLLM_ELIMIT);
    uint64_t most[] = {PLLM_STORE_BYTES_MAX};
    assert_int_equal(pllm_store_shape_bytes(PLLM_STORE_U8, 1, most, &bytes), PLLM_OK);
    assert_int_equal(bytes, PLLM_STORE_BYTES_MAX);
    assert_int_equal(pllm_store_shape_bytes(PLLM_STORE_F16, 1, most, &bytes), PLLM_ELIMIT);
    uint64_t zero[] = {2, 0};
    assert_int_equal(pllm_store_shape_bytes(PLLM_STORE_F32, 2, zero, &bytes), PLLM_EINVAL);
    uint64_t nine[9] = {1, 1, 1, 1, 1, 1, 1, 1, 1};
    assert_int_equal(pllm_store_shape_bytes(PLLM_STORE_F32, 8, nine, &bytes), PLLM_OK);
    assert_int_equal(pllm_store_shape_bytes(PLLM_STORE_F32, 9, nine, &bytes), PLLM_EINVAL);
    assert_int_equal(pllm_store_shape_bytes(PLLM_STORE_DTYPES, 1, plain, &bytes), PLLM_EINVAL);
}

static void shapes_go_to_text_and_back(void **state)
{
    (void)state;
    static const struct {
        const char *text, *again; /* NULL: refused */
        int status;
    } cases[] = {{"[2,3,4]", "[2,3,4]", 0},
                 {" [ 2 , 3,4 ] ", "[2,3,4]", 0},
                 {"[]", "[]", 0},
                 {"[1]", "[1]", 0},
                 {"[1,2,3,4,5,6,7,8]", "[1,2,3,4,5,6,7,8]", 0},
                 {"[1,2,3,4,5,6,7,8,9]", NULL, PLLM_ELIMIT},
                 {"[281474976710656]", "[281474976710656]", 0},
                 {"[281474976710657]", NULL, PLLM_ELIMIT},
                 {"[18446744073709551617]", NULL, PLLM_ELIMIT}, /* 2^64 + 1 */
                 {"[0]", NULL, PLLM_EINVAL},
                 {"[02]", NULL, PLLM_EINVAL},
                 {"[-2]", NULL, PLLM_EINVAL},
                 {"[+2]", NULL, PLLM_EINVAL},
                 {"[2.0]", NULL, PLLM_EINVAL},
                 {"[2,]", NULL, PLLM_EINVAL},
                 {"[,2]", NULL, PLLM_EINVAL},
                 {"[2 3]", NULL, PLLM_EINVAL},
                 {"[2", NULL, PLLM_EINVAL},
                 {"2]", NULL, PLLM_EINVAL},
                 {"[2]]", NULL, PLLM_EINVAL},
                 {"[2]x", NULL, PLLM_EINVAL},
                 {"", NULL, PLLM_EINVAL},
                 {"[", NULL, PLLM_EINVAL}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint32_t rank = 77;
        uint64_t shape[PLLM_STORE_RANK_MAX] = {9, 9, 9, 9, 9, 9, 9, 9};
        char text[PLLM_STORE_SHAPE_TEXT_BYTES];
        assert_int_equal(pllm_store_shape_parse(cases[i].text, strlen(cases[i].text), &rank, shape),
                         cases[i].status);
        if (cases[i].again)
            assert_string_equal(pllm_store_shape_text(rank, shape, text), cases[i].again);
        else
            assert_int_equal(rank, 77); /* unchanged */
        if (cases[i].again && rank < PLLM_STORE_RANK_MAX) assert_int_equal(shape[rank], 0);
    }
    /* The length counts, not a zero. */
    uint32_t rank;
    uint64_t shape[PLLM_STORE_RANK_MAX];
    assert_int_equal(pllm_store_shape_parse("[12]", 2, &rank, shape), PLLM_EINVAL);
    uint64_t wide[8];
    for (int i = 0; i < 8; i++) wide[i] = UINT64_MAX;
    char text[PLLM_STORE_SHAPE_TEXT_BYTES];
    assert_true(strlen(pllm_store_shape_text(8, wide, text)) < sizeof text);
}

static void modes_are_read_and_write_bits(void **state)
{
    (void)state;
    uint32_t mode = 0;
    assert_int_equal(pllm_store_mode_check(0, &mode), PLLM_OK);
    assert_int_equal(mode, 0600);
    assert_int_equal(pllm_store_mode_check(0644, &mode), PLLM_OK);
    assert_int_equal(mode, 0644);
    assert_int_equal(pllm_store_mode_check(0755, &mode), PLLM_EINVAL);
    assert_int_equal(pllm_store_mode_check(0200, &mode), PLLM_EINVAL);
    assert_int_equal(pllm_store_mode_check(04600, &mode), PLLM_EINVAL);
}

static void devices_are_found_by_uuid(void **state)
{
    (void)state;
    const char *const uuids[] = {"GPU-0a1b2c3d", "GPU-0a1bffff", "GPU-0a"};
    uint32_t index = 9;
    assert_int_equal(pllm_store_device_find("", 0, uuids, 3, &index), PLLM_OK);
    assert_int_equal(index, 0);
    assert_int_equal(pllm_store_device_find("1", 1, uuids, 3, &index), PLLM_OK);
    assert_int_equal(index, 1);
    assert_int_equal(pllm_store_device_find("3", 1, uuids, 3, &index), PLLM_ENOTFOUND);
    assert_int_equal(pllm_store_device_find("gpu-0A1BFFFF", 12, uuids, 3, &index), PLLM_OK);
    assert_int_equal(index, 1);
    assert_int_equal(pllm_store_device_find("GPU-0a1b2", 9, uuids, 3, &index), PLLM_OK);
    assert_int_equal(index, 0);
    /* The beginning of two is neither; but a whole one that begins others is itself. */
    assert_int_equal(pllm_store_device_find("GPU-0a1b", 8, uuids, 3, &index), PLLM_ENOTFOUND);
    assert_int_equal(pllm_store_device_find("GPU-0a", 6, uuids, 3, &index), PLLM_OK);
    assert_int_equal(index, 2);
    assert_int_equal(pllm_store_device_find("GPU-0a1b2c3d4", 13, uuids, 3, &index), PLLM_ENOTFOUND);
    assert_int_equal(pllm_store_device_find("", 0, uuids, 0, &index), PLLM_ENOTFOUND);
}

static void base64_is_exact(void **state)
{
    (void)state;
    static const char *const texts[] = {"", "f", "fo", "foo", "foob", "fooba", "foobar"};
    static const char *const coded[] = {"",         "Zg==",     "Zm8=",    "Zm9v",
                                        "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"}; /* RFC 4648, 10 */
    char text[16], data[8];
    size_t bytes;
    for (int i = 0; i < 7; i++) {
        size_t length = strlen(coded[i]);
        assert_int_equal(pllm_store_base64_encode(texts[i], strlen(texts[i]), text, length + 1),
                         length);
        assert_string_equal(text, coded[i]);
        if (length)
            assert_int_equal(pllm_store_base64_encode(texts[i], strlen(texts[i]), text, length), 0);
        assert_int_equal(pllm_store_base64_decode(coded[i], length, data, sizeof data, &bytes), 0);
        assert_int_equal(bytes, strlen(texts[i]));
        assert_memory_equal(data, texts[i], bytes);
    }
    static const char *const wrong[] = {
        "Zg=", "Zg", "Z===", "====", "Zh==", "Zm9=", "Zg==Zg==", "Zm=v", "Z m8", "Zm8-"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_int_equal(
            pllm_store_base64_decode(wrong[i], strlen(wrong[i]), data, sizeof data, &bytes),
            PLLM_EINVAL);
    assert_int_equal(pllm_store_base64_decode("Zm9vYmFy", 8, data, 5, &bytes), PLLM_EINVAL);
}

static void a_token_is_slot_and_generation(void **state)
{
    (void)state;
    char text[PLLM_STORE_TOKEN_BYTES];
    uint32_t slot;
    uint64_t generation;
    pllm_store_token_text(0x01020304, 0x1122334455667788, text);
    assert_int_equal(strlen(text), PLLM_STORE_TOKEN_BYTES - 1);
    assert_int_equal(pllm_store_token_parse(text, strlen(text), &slot, &generation), PLLM_OK);
    assert_int_equal(slot, 0x01020304);
    assert_int_equal(generation, 0x1122334455667788);
    for (size_t i = 0; i < strlen(text); i++) { /* no single changed character passes */
        char changed[PLLM_STORE_TOKEN_BYTES];
        memcpy(changed, text, sizeof changed);
        changed[i] = changed[i] == 'A' ? 'B' : 'A';
        assert_int_equal(pllm_store_token_parse(changed, strlen(changed), &slot, &generation),
                         PLLM_EINVAL);
    }
    assert_int_equal(pllm_store_token_parse(text, strlen(text) - 4, &slot, &generation),
                     PLLM_EINVAL);
    assert_int_equal(pllm_store_token_parse("", 0, &slot, &generation), PLLM_EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_have_an_alphabet_and_a_length),
        cmocka_unit_test(dtypes_go_to_text_and_back),
        cmocka_unit_test(bytes_of_a_shape_do_not_wrap),
        cmocka_unit_test(shapes_go_to_text_and_back),
        cmocka_unit_test(modes_are_read_and_write_bits),
        cmocka_unit_test(devices_are_found_by_uuid),
        cmocka_unit_test(base64_is_exact),
        cmocka_unit_test(a_token_is_slot_and_generation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
