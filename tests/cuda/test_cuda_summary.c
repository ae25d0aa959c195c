/* Key summaries made on the GPU have the CPU's bits, go where they should and nowhere else.
 *
 * Brief form, at most 12 launches, reaches: pllm_summarise. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "brief.h"
#include "kernels/attention.h"
#include "kernels/cuda/summary.h"
#include "vmm/region.h"

enum { BLOCKS = 5, PLACES = 9 };

static void check_shape(pllm_device *device, pllm_cuda_summary *kernels, pllm_dtype format,
                        uint32_t heads, uint32_t head_dim)
{
    const pllm_device_ops *ops = device->ops;
    pllm_kv_shape shape;
    assert_int_equal(pllm_kv_shape_init(&shape, format, heads, head_dim), PLLM_OK);
    uint64_t block = pllm_kv_block_bytes(&shape, shape.open), one = pllm_kv_summary_bytes(&shape);
    uint64_t blocks_bytes = BLOCKS * block, all = PLACES * one;
    void *host;
    assert_int_equal(ops->host_alloc(device, blocks_bytes + all + 4096, &host), PLLM_OK);
    char *blocks = host, *summaries = blocks + blocks_bytes, *expected = malloc(one);
    uint32_t *pairs = (uint32_t *)(void *)(summaries + (all + 15) / 16 * 16);
    float *row = malloc(2ull * heads * head_dim * sizeof *row);
    for (uint32_t b = 0; b < BLOCKS; b++)
        for (uint32_t token = 0; token < PLLM_BLOCK_TOKENS; token++) {
            for (uint32_t i = 0; i < heads * head_dim; i++)
                row[i] = (float)((b * 31 + token * 17 + i * 7919) % 1000) / 100 - 4;
            pllm_attention_reference.append(&shape, blocks + b * block, token, row, row);
        }
    memset(summaries, 0x5a, all);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        pairs[2 * i] = BLOCKS - 1 - i;
        pairs[2 * i + 1] = 2 * i % PLACES;
    }
    pllm_budget *budget;
    pllm_workspace *space;
    pllm_stream *stream;
    assert_int_equal(pllm_budget_open(NULL, UINT64_MAX, &budget), PLLM_OK);
    uint64_t bytes = (blocks_bytes + 255) / 256 * 256 + (all + 255) / 256 * 256 + 4096;
    assert_int_equal(pllm_workspace_open(NULL, device, budget, "test", bytes, &space), PLLM_OK);
    assert_int_equal(ops->stream_open(device, &stream), PLLM_OK);
    pllm_va at = pllm_workspace_va(space), to = at + (blocks_bytes + 255) / 256 * 256;
    pllm_va pairs_va = to + (all + 255) / 256 * 256;
    const pllm_copy in[] = {{at, (uintptr_t)blocks, blocks_bytes},
                            {to, (uintptr_t)summaries, all},
                            {pairs_va, (uintptr_t)pairs, BLOCKS * 8}};
    assert_int_equal(ops->copy_batch(device, stream, PLLM_COPY_IN, in, 3), PLLM_OK);
    assert_int_equal(pllm_cuda_summarise(kernels, stream, &shape, at, block, pairs_va, BLOCKS, to),
                     PLLM_OK);
    const pllm_copy out = {(uintptr_t)summaries, to, all};
    assert_int_equal(ops->copy(device, stream, PLLM_COPY_OUT, &out), PLLM_OK);
    assert_int_equal(ops->stream_sync(device, stream), PLLM_OK);
    for (uint32_t place = 0; place < PLACES; place++) {
        memset(expected, 0x5a, one);
        for (uint32_t i = 0; i < BLOCKS; i++)
            if (pairs[2 * i + 1] == place)
                pllm_kv_summarise(&shape, blocks + pairs[2 * i] * block, expected);
        if (!launches_only()) assert_memory_equal(summaries + place * one, expected, one);
    }
    ops->stream_close(device, stream);
    pllm_workspace_close(space);
    pllm_budget_close(budget);
    ops->host_free(device, host, blocks_bytes + all + 4096);
    free(row);
    free(expected);
}

static void the_cpus_bits(void **state)
{
    (void)state;
    static const pllm_dtype formats[] = {PLLM_F32, PLLM_F16, PLLM_BF16, PLLM_INT8, PLLM_INT4};
    static const struct {
        uint32_t heads, head_dim;
    } shapes[] = {{32, 128}, {3, 64}, {1, 8}, {2, 80}, {2, 256}};
    pllm_device *device;
    pllm_cuda_summary *kernels;
    if (pllm_device_open_cuda(NULL, NULL, &device) < 0) fail_msg("%s", pllm_last_error()->text);
    if (pllm_cuda_summary_open(NULL, device, &kernels) < 0) fail_msg("%s", pllm_last_error()->text);
    for (uint32_t f = 0; f < 5; f++)
        for (uint32_t s = 0; s < 5; s++) {
            if (brief() && s != 1 && s != 3) continue;
            check_shape(device, kernels, formats[f], shapes[s].heads, shapes[s].head_dim);
        }
    pllm_cuda_summary_close(kernels);
    pllm_device_close(device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_cpus_bits)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
