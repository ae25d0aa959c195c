/* Tokens drawn on the GPU are those that the CPU draws from the same logits: random rows and
 * hostile ones, every kind of rule, rows of other rules beside them, and up to 2^18 logits.
 *
 * Brief form, at most 6 launches, reaches: pllm_sample. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "base/clock.h"
#include "brief.h"
#include "kernels/cuda/rows.h"
#include "kernels/sample.h"
#include "sample_support.h"
#include "vmm/region.h"

enum { ROWS = 16, IDS = 64, POISON = 0x5a };

static struct {
    pllm_device *device;
    const pllm_device_ops *ops;
    pllm_cuda_rows *rows;
    pllm_stream *stream;
    pllm_budget *budget;
    pllm_workspace *space;
    uint64_t logits_bytes, host_bytes;
    char *host; /* logits | samplings | ids */
    pllm_va at, samplings, ids;
    pllm_candidate *scratch;
} rig;

static int open_rig(void **state)
{
    (void)state;
    if (pllm_device_open_cuda(NULL, NULL, &rig.device) < 0 ||
        pllm_cuda_rows_open(NULL, rig.device, &rig.rows) < 0) {
        fprintf(stderr, "%s\n", pllm_last_error()->text);
        return -1;
    }
    rig.ops = rig.device->ops;
    rig.logits_bytes = (uint64_t)ROWS * (PLLM_SAMPLE_MAX + 4) * sizeof(float);
    rig.host_bytes = rig.logits_bytes + ROWS * sizeof(pllm_sampling) + IDS * sizeof(uint32_t);
    void *host;
    if (rig.ops->host_alloc(rig.device, rig.host_bytes, &host) < 0 ||
        pllm_budget_open(NULL, UINT64_MAX, &rig.budget) < 0 ||
        pllm_workspace_open(NULL, rig.device, rig.budget, "test", rig.host_bytes, &rig.space) < 0 ||
        rig.ops->stream_open(rig.device, &rig.stream) < 0)
        return -1;
    rig.host = host;
    rig.at = pllm_workspace_va(rig.space);
    rig.samplings = rig.at + rig.logits_bytes;
    rig.ids = rig.samplings + ROWS * sizeof(pllm_sampling);
    rig.scratch = malloc(PLLM_SAMPLE_MAX * sizeof *rig.scratch);
    return rig.scratch ? 0 : -1;
}

static int close_rig(void **state)
{
    (void)state;
    free(rig.scratch);
    rig.ops->stream_close(rig.device, rig.stream);
    pllm_workspace_close(rig.space);
    pllm_budget_close(rig.budget);
    rig.ops->host_free(rig.device, rig.host, rig.host_bytes);
    pllm_cuda_rows_close(rig.rows);
    pllm_device_close(rig.device);
    return 0;
}

static void copy(pllm_copy_kind kind, void *host, pllm_va device, uint64_t bytes)
{
    pllm_copy c = {device, (uintptr_t)host, bytes};
    if (kind == PLLM_COPY_OUT) c = (pllm_copy){(uintptr_t)host, device, bytes};
    assert_int_equal(rig.ops->copy(rig.device, rig.stream, kind, &c), PLLM_OK);
}

/* ROWS rows in one launch, whose logits and rules are in host memory; returns how many tokens were
 * not the likeliest. */
static uint32_t check_rows(uint32_t count, uint64_t stride, uint64_t seed)
{
    float *logits = (float *)(void *)rig.host;
    pllm_sampling *samplings = (pllm_sampling *)(void *)(rig.host + rig.logits_bytes);
    uint32_t *ids = (uint32_t *)(samplings + ROWS), others = 0;
    memset(ids, POISON, IDS * sizeof *ids);
    copy(PLLM_COPY_IN, logits, rig.at, ROWS * stride * sizeof *logits);
    copy(PLLM_COPY_IN, samplings, rig.samplings, ROWS * sizeof *samplings);
    copy(PLLM_COPY_IN, ids, rig.ids, IDS * sizeof *ids);
    if (pllm_cuda_sample(rig.rows, rig.stream, rig.at, stride, ROWS, count, rig.samplings, rig.ids,
                         0) < 0)
        fail_msg("%s", pllm_last_error()->text);
    copy(PLLM_COPY_OUT, ids, rig.ids, IDS * sizeof *ids);
    assert_int_equal(rig.ops->stream_sync(rig.device, rig.stream), PLLM_OK);
    for (uint32_t i = 0; i < ROWS; i++) {
        const float *row = logits + i * stride;
        uint32_t want = pllm_sample(row, count, &samplings[i], rig.scratch);
        if (ids[i] != want && !launches_only())
            fail_msg("seed %llu, row %u of %u logits: %u, not %u (temperature %g, top-k %u, top-p "
                     "%g, random %llx)",
                     (unsigned long long)seed, i, count, ids[i], want,
                     (double)samplings[i].temperature, samplings[i].top_k,
                     (double)samplings[i].top_p, (unsigned long long)samplings[i].random);
        others += want != pllm_argmax(row, count);
    }
    for (uint32_t i = ROWS; i < IDS; i++) assert_int_equal(ids[i], 0x5a5a5a5a);
    return others;
}

static void the_cpus_tokens(void **state)
{
    (void)state;
    static const uint32_t sizes[] = {1, 2, 31, 33, 1000, 4096, 5000, 32000, 49152, 128256, 1 << 18};
    float *logits = (float *)(void *)rig.host;
    pllm_sampling *samplings = (pllm_sampling *)(void *)(rig.host + rig.logits_bytes);
    uint32_t others = 0, cases = 0;
    const int small = brief();
    for (uint32_t size = 0; size < sizeof sizes / sizeof sizes[0]; size++) {
        uint32_t count = sizes[size];
        uint64_t stride = count + size % 4, rounds = count < 30000 ? 12 : 3;
        if (small && count != 2 && count != 33 && count != 4096 && count != 5000) continue;
        if (small) rounds = 1;
        for (uint64_t round = 0; round < rounds; round++) {
            uint64_t seed = size * 100 + round;
            for (uint32_t i = 0; i < ROWS; i++) {
                sample_logits((uint32_t)(seed + i) % SAMPLE_KINDS, seed * ROWS + i,
                              logits + i * stride, count);
                samplings[i] = sample_rule(seed * ROWS + i, count);
            }
            others += check_rows(count, stride, seed);
            cases += ROWS;
        }
    }
    printf("    %u tokens, %u not the likeliest\n", cases, others);
    assert_true(others > cases / 6);
}

/* A model's row: one hump of likely tokens, drawn with the usual rules. */
static void how_long_it_takes(void **state)
{
    (void)state;
    if (brief()) return; /* a sanitizer's time says nothing */
    static const pllm_sampling rules[] = {{.temperature = 0.8f, .top_k = 40, .top_p = 0.95f},
                                          {.temperature = 0.8f, .top_p = 0.95f},
                                          {.temperature = 1},
                                          {.temperature = 100}};
    static const uint32_t sizes[] = {32000, 128256};
    float *logits = (float *)(void *)rig.host;
    pllm_sampling *samplings = (pllm_sampling *)(void *)(rig.host + rig.logits_bytes);
    for (uint32_t size = 0; size < 2; size++)
        for (uint32_t rule = 0; rule < 4; rule++) {
            uint32_t count = sizes[size];
            for (uint32_t i = 0; i < ROWS; i++) {
                sample_logits(0, 5, logits + i * (uint64_t)count, count);
                samplings[i] = rules[rule];
                samplings[i].random = 0x5a5a5a5a5a5a5a5au * (i + 1);
            }
            (void)check_rows(count, count, rule);
            for (uint32_t rows = 1; rows <= ROWS; rows += ROWS - 1) {
                enum { LAUNCHES = 50 };
                uint64_t start = pllm_clock_ns();
                for (uint32_t i = 0; i < LAUNCHES; i++)
                    assert_int_equal(pllm_cuda_sample(rig.rows, rig.stream, rig.at, count, rows,
                                                      count, rig.samplings, rig.ids, 0),
                                     PLLM_OK);
                assert_int_equal(rig.ops->stream_sync(rig.device, rig.stream), PLLM_OK);
                printf("    %6u logits, temperature %g, top-k %u, top-p %g, %2u rows: %.1f us\n",
                       count, (double)rules[rule].temperature, rules[rule].top_k,
                       (double)rules[rule].top_p, rows,
                       (double)(pllm_clock_ns() - start) / LAUNCHES / 1e3);
            }
        }
}

static void what_is_refused(void **state)
{
    (void)state;
    static const struct {
        uint32_t count;
        uint64_t stride;
        pllm_va samplings;
    } wrong[] = {{0, 1, 0}, {PLLM_SAMPLE_MAX + 1, PLLM_SAMPLE_MAX + 1, 0}, {9, 8, 0}, {8, 8, 4}};
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(pllm_cuda_sample(rig.rows, rig.stream, rig.at, wrong[i].stride, 1,
                                          wrong[i].count, rig.samplings + wrong[i].samplings,
                                          rig.ids, 0),
                         PLLM_EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_cpus_tokens),
        cmocka_unit_test(how_long_it_takes),
        cmocka_unit_test(what_is_refused),
    };
    return cmocka_run_group_tests(tests, open_rig, close_rig);
}
