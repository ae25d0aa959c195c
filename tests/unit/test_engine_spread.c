/* Parts that stay are spread evenly: never more than there is room for, and of every run of parts
 * about its share. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "engine/spread.h"

/* Of equal parts exactly as many stay as fit, and of the first n of them n's share, rounded down.
 */
static void equal_parts(void **state)
{
    (void)state;
    for (uint64_t count = 1; count < 90; count++)
        for (uint64_t room = 0; room <= count; room++) {
            pllm_spread spread = {.total = count * 7, .room = room * 7};
            uint64_t stay = 0;
            for (uint64_t i = 0; i < count; i++) {
                stay += (uint64_t)pllm_spread_next(&spread, 7);
                assert_int_equal(stay, (i + 1) * room / count);
            }
            assert_int_equal(stay, room);
        }
}

/* Of any others no more than fit; what is due and does not stay is less than the largest part. */
static void other_parts(void **state)
{
    (void)state;
    uint64_t bytes[200], total = 0, largest = 0, random = 1;
    for (uint32_t i = 0; i < 200; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        bytes[i] = ((random >> 40) + 1) << 20; /* terabytes in all: no product may overflow */
        total += bytes[i];
        if (bytes[i] > largest) largest = bytes[i];
    }
    for (uint64_t percent = 0; percent <= 100; percent++) {
        pllm_spread spread = {.total = total, .room = total / 100 * percent};
        uint64_t stay = 0, passed = 0;
        for (uint32_t i = 0; i < 200; i++) {
            passed += bytes[i];
            if (pllm_spread_next(&spread, bytes[i])) stay += bytes[i];
            assert_true(stay <= spread.room && stay == spread.stays);
            uint64_t due = (uint64_t)((unsigned __int128)spread.room * passed / total);
            assert_true(stay <= due && due - stay < largest);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(equal_parts),
                                       cmocka_unit_test(other_parts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
