/* The bundled logs, replayed on a device without memory: what the pool reserves beside what was
 * asked for. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "blank_device.h"
#include "pool/log.h"
#include "pool/pool.h"

#define GIB ((uint64_t)1 << 30)

typedef struct text {
    char *text;
    uint64_t bytes, room;
} text;

static int gather(void *user, const char *piece, uint64_t bytes)
{
    text *t = user;
    if (t->bytes + bytes > t->room) t->text = realloc(t->text, t->room = 2 * (t->bytes + bytes));
    memcpy(t->text + t->bytes, piece, bytes);
    t->bytes += bytes;
    return PLLM_OK;
}

static pllm_pool_log *make(const char *name)
{
    pllm_pool_log *log;
    assert_int_equal(pllm_pool_log_open(NULL, &log), PLLM_OK);
    for (uint32_t i = 0; i < pllm_pool_workload_count; i++)
        if (strcmp(pllm_pool_workloads[i].name, name) == 0) {
            assert_int_equal(pllm_pool_workloads[i].make(log), PLLM_OK);
            return log;
        }
    fail();
    return NULL;
}

static void logs_are_the_same_after_writing_and_reading(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < pllm_pool_workload_count; i++) {
        pllm_pool_log *log = make(pllm_pool_workloads[i].name), *read;
        text t = {0};
        assert_int_equal(pllm_pool_log_write(log, gather, &t), PLLM_OK);
        assert_int_equal(pllm_pool_log_parse(NULL, t.text, t.bytes, &read), PLLM_OK);
        assert_int_equal(log->step_count, read->step_count);
        assert_memory_equal(log->steps, read->steps, log->step_count * sizeof *log->steps);
        assert_int_equal(log->peak_bytes, read->peak_bytes);
        assert_int_equal(log->live_count, 0);
        pllm_pool_log_close(log);
        pllm_pool_log_close(read);
        free(t.text);
    }
}

static void replay(pllm_pool *pool, const pllm_pool_log *log, pllm_stream **streams)
{
    uint64_t *address = calloc(log->place_count, sizeof *address);
    assert_non_null(address);
    for (uint32_t i = 0; i < log->step_count; i++) {
        const pllm_pool_step *step = &log->steps[i];
        uint64_t *at = &address[step->place];
        pllm_stream *stream = step->stream ? streams[step->stream] : NULL;
        int status = step->kind == 'a'   ? pllm_pool_allocate(pool, step->bytes, stream, at)
                     : step->kind == 'f' ? pllm_pool_free(pool, *at, 0, stream)
                                         : pllm_pool_record_stream(pool, *at, stream);
        assert_int_equal(status, PLLM_OK);
    }
    free(address);
}

static double reserved_over_requested(const char *name, uint64_t *peak_out)
{
    pllm_pool_log *log = make(name);
    pllm_device *device = blank_device_open(16 * GIB);
    pllm_pool *pool;
    pllm_stream *streams[8];
    pllm_pool_stats stats = {.struct_bytes = sizeof stats};
    assert_int_equal(pllm_pool_open(NULL, device, NULL, &pool), PLLM_OK);
    for (int i = 0; i < 8; i++)
        assert_int_equal(pllm_stream_open(device, NULL, &streams[i]), PLLM_OK);
    replay(pool, log, streams);
    pllm_pool_check(pool);
    assert_int_equal(pllm_pool_stats_get(pool, &stats), PLLM_OK);
    assert_int_equal(stats.requested_peak_bytes, log->peak_bytes);
    assert_int_equal(stats.requested_bytes, 0);
    assert_int_equal(stats.allocated_bytes, 0);
    assert_int_equal(stats.allocate_calls, stats.free_calls);
    double ratio = (double)stats.reserved_peak_bytes / (double)log->peak_bytes;
    print_message("%s: %u steps, peak %.1f MB, reserved %.1f MB (%.3f), hits %.2f%%, %llu chunks "
                  "made, %llu moved\n",
                  name, log->step_count, (double)log->peak_bytes * 1e-6,
                  (double)stats.reserved_peak_bytes * 1e-6, ratio,
                  100.0 * (double)stats.hits / (double)stats.allocate_calls,
                  (unsigned long long)stats.created_chunks,
                  (unsigned long long)stats.remapped_chunks);
    *peak_out = log->peak_bytes;
    assert_int_equal(pllm_pool_trim(pool, 0, NULL), PLLM_OK);
    assert_int_equal(blank_device_live_bytes(device), 0);
    pllm_pool_check(pool);
    pllm_pool_close(pool);
    for (int i = 0; i < 8; i++) pllm_stream_close(device, streams[i]);
    pllm_device_close(device);
    pllm_pool_log_close(log);
    return ratio;
}

static void a_transformer_reserves_a_tenth_more_at_most(void **state)
{
    (void)state;
    uint64_t peak;
    assert_true(reserved_over_requested("prefill", &peak) <= 9.10);
    assert_true(peak > GIB);
    assert_true(reserved_over_requested("decode", &peak) <= 9.10);
    assert_true(peak > GIB);
}

static void others_stay_in_bounds(void **state)
{
    (void)state;
    uint64_t peak;
    assert_true(reserved_over_requested("fixed", &peak) <= 1.25);
    assert_true(reserved_over_requested("growing", &peak) <= 1.15);
    assert_true(reserved_over_requested("fragment", &peak) <= 1.5);
    assert_true(reserved_over_requested("streams", &peak) <= 1.5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logs_are_the_same_after_writing_and_reading),
        cmocka_unit_test(a_transformer_reserves_a_tenth_more_at_most),
        cmocka_unit_test(others_stay_in_bounds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
