/* The engine on a CUDA driver in host memory (tests/fake) that fails one call: opening then fails
 * with a sentence and leaves nothing; a step fails and leaves the sequence as it was, and the same
 * step afterwards goes through. Calls are failed one by one while an engine opens and, since a step
 * makes thousands, every some of them after that. Blocks and layers are streamed meanwhile. And a
 * kernel that faults: the error names the call that met it, every later call says so too, and
 * closing works. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "../fake/fake_cuda.h"
#include "device/cuda.h"
#include "engine/parts.h"
#include "engine_support.h"

#define LIBRARY PLLM_BINARY_DIR "/tests/libfake_cuda.so"

enum { PROMPT = 300, GENERATED = 21, NEVER = 1 << 30 };

static fake_cuda *fake;
static pllm_engine_options options;

static void arm(const char *call, uint64_t at, int code)
{
    fake->fail_call = call;
    fake->fail_at = at;
    fake->fail_count = 1;
    fake->fail_code = code;
    fake->calls = 0;
}

static int nothing(void *user, uint32_t item, uint32_t position, const float *logits)
{
    (void)user, (void)item, (void)position, (void)logits;
    return 0;
}

static int advance(pllm_engine *engine, pllm_sequence *sequence)
{
    static uint32_t ids[PROMPT];
    uint32_t length = pllm_sequence_length(sequence);
    pllm_step_item item = {.sequence = sequence,
                           .ids = ids,
                           .token_count = length == 0 ? PROMPT : 1,
                           .generated = length > 0,
                           .logits = 1};
    return pllm_engine_step(engine, &item, 1, nothing, NULL);
}

/* The script, with a failed step tried once more. Returns how many steps failed, or negative: it
 * could not be opened. */
static int run(pllm_device *device)
{
    pllm_engine *engine;
    pllm_sequence *sequence;
    int status = pllm_engine_open_on(NULL, NULL, &options, device, NULL, &engine);
    if (status < 0) {
        assert_null(engine);
        assert_int_equal(pllm_last_error()->status, status);
        return status;
    }
    int failed = 0;
    assert_int_equal(pllm_sequence_open(engine, &sequence), PLLM_OK);
    for (uint32_t i = 0; i <= GENERATED; i++) {
        uint32_t before = pllm_sequence_length(sequence);
        if (advance(engine, sequence) == PLLM_OK) continue;
        failed++;
        assert_int_equal(pllm_sequence_length(sequence), before);
        pllm_engine_check(engine);
        arm(NULL, NEVER, 1);
        if (advance(engine, sequence) < 0)
            fail_msg("after a failed step the next failed too: %s", pllm_last_error()->text);
    }
    pllm_engine_check(engine);
    pllm_engine_close(engine);
    return failed;
}

static pllm_device *open_fake(void)
{
    pllm_cuda_device_options o = {.struct_bytes = sizeof o, .library = LIBRARY, .nvml = LIBRARY};
    pllm_device *device;
    arm(NULL, NEVER, 1);
    fake->dead = 0;
    assert_int_equal(pllm_device_open_cuda(NULL, &o, &device), PLLM_OK);
    return device;
}

static void set_options(void)
{
    options = (pllm_engine_options){.struct_bytes = sizeof options,
                                    .device = "cuda",
                                    .shape = "smollm2-135m",
                                    .weights = "q4_0",
                                    .kv_format = "f16",
                                    .host_memory_bytes = 32 << 20,
                                    .context_max = 2048};
    pllm_device *device = open_fake();
    pllm_engine *engine;
    if (pllm_engine_open_on(NULL, NULL, &options, device, NULL, &engine) < 0)
        fail_msg("%s", pllm_last_error()->text);
    pllm_engine_info info = {.struct_bytes = sizeof info};
    assert_int_equal(pllm_engine_info_get(engine, &info), PLLM_OK);
    pllm_engine_close(engine);
    pllm_device_close(device);
    options.kv_limit_bytes = info.least_kv_bytes;
    options.vram_limit_bytes = info.least_vram_bytes + info.weight_bytes / 3;
}

static void calls_fail_in_turn(const char *call, int code, uint64_t opening_stride,
                               uint64_t step_stride)
{
    pllm_device *device = open_fake();
    arm(call, NEVER, code);
    int status = run(device);
    if (status != 0) fail_msg("%d: %s", status, pllm_last_error()->text);
    uint64_t all = fake->calls;
    pllm_device_close(device);
    uint64_t at = 0, runs = 0, refused = 0, failed = 0;
    while (at < all) {
        device = open_fake();
        arm(call, at, code);
        int result = run(device);
        runs++;
        refused += result < 0;
        failed += result > 0;
        arm(NULL, NEVER, code);
        pllm_device_close(device);
        assert_int_equal(fake->live, 0);
        at += result < 0 ? opening_stride : step_stride;
    }
    printf("    %s: %llu calls, %llu runs, %llu refused, %llu with a failed step\n",
           call ? call : "any call", (unsigned long long)all, (unsigned long long)runs,
           (unsigned long long)refused, (unsigned long long)failed);
    assert_true(refused + failed > 0);
}

static void every_call(void **state)
{
    (void)state;
    calls_fail_in_turn(NULL, 1, 23, 2999); /* invalid value: no reason is given */
}

static void launches(void **state)
{
    (void)state;
    calls_fail_in_turn("cuLaunchKernelEx", 98, 23, 997); /* invalid device function */
}

static void memory(void **state)
{
    (void)state;
    calls_fail_in_turn("cuMemCreate", 2, 1, 1); /* somebody else took it */
}

static void a_kernel_faults(void **state)
{
    (void)state;
    pllm_device *device = open_fake();
    pllm_engine *engine;
    pllm_sequence *sequence;
    assert_int_equal(pllm_engine_open_on(NULL, NULL, &options, device, NULL, &engine), PLLM_OK);
    assert_int_equal(pllm_sequence_open(engine, &sequence), PLLM_OK);
    assert_int_equal(advance(engine, sequence), PLLM_OK);
    arm("cuStreamSynchronize", 0, 700); /* illegal address */
    assert_int_equal(advance(engine, sequence), PLLM_EDEVICE);
    assert_non_null(strstr(pllm_last_error()->text, "700"));
    assert_int_equal(advance(engine, sequence), PLLM_EDEVICE);
    assert_non_null(strstr(pllm_last_error()->text, "cuStreamSynchronize"));
    pllm_engine_close(engine);
    pllm_device_close(device);
}

int main(void)
{
    fake = fake_cuda_load(LIBRARY);
    if (!fake) return 1;
    fake_cuda_keep_blas();
    set_options();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_call),
        cmocka_unit_test(launches),
        cmocka_unit_test(memory),
        cmocka_unit_test(a_kernel_faults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
