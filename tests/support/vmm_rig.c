/* vmm_rig.c - see the header. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>
#include "vmm_rig.h"

vmm_rig_kind vmm_rig_host = RIG_HOST, vmm_rig_cuda = RIG_CUDA, vmm_rig_cuda_late = RIG_CUDA_LATE;

static void open_inner(vmm_rig *rig, const char *library, uint64_t capacity)
{
    const pllm_context *context = &rig->memory.context;
    if (rig->kind == RIG_HOST) {
        pllm_host_device_options host = {.struct_bytes = sizeof host, .capacity_bytes = capacity};
        assert_int_equal(pllm_device_open_host(context, &host, &rig->inner), PLLM_OK);
        return;
    }
    rig->fake = fake_cuda_load(library);
    assert_non_null(rig->fake);
    memset(rig->fake, 0, sizeof *rig->fake);
    rig->fake->version = 13000;
    rig->fake->device_count = 1;
    rig->fake->fail_count = 1;
    rig->fake->deferred = rig->kind == RIG_CUDA_LATE;
    pllm_cuda_device_options cuda = {.struct_bytes = sizeof cuda,
                                     .capacity_bytes = capacity,
                                     .library = library,
                                     .nvml = library};
    assert_int_equal(pllm_device_open_cuda(context, &cuda, &rig->inner), PLLM_OK);
}

void vmm_rig_open_with(vmm_rig *rig, const char *library, vmm_rig_kind kind, uint64_t limit_pages,
                       uint64_t capacity_pages)
{
    pllm_vmm_options options = {
        .struct_bytes = sizeof options, .no_background = 1, .limit_bytes = limit_pages * RIG_PAGE};
    *rig = (vmm_rig){.kind = kind};
    failing_context_init(&rig->memory, FAILING_NEVER);
    const pllm_context *context = &rig->memory.context;
    open_inner(rig, library, capacity_pages * RIG_PAGE);
    assert_int_equal(pllm_device_open_faulty(context, rig->inner, NULL, &rig->device), PLLM_OK);
    assert_int_equal(rig->device->ops->stream_open(rig->device, &rig->stream), PLLM_OK);
    assert_int_equal(pllm_vmm_open(context, rig->device, &options, &rig->vmm), PLLM_OK);
}

void vmm_rig_close(vmm_rig *rig)
{
    pllm_vmm_close(rig->vmm);
    rig->device->ops->stream_close(rig->device, rig->stream);
    assert_int_equal(pllm_faulty_device_live(rig->device), 0);
    pllm_device_close(rig->device);
    pllm_device_close(rig->inner);
    failing_context_check(&rig->memory);
    if (rig->fake) assert_int_equal(rig->fake->live, 0);
}

pllm_vmm_pool *vmm_rig_model(vmm_rig *rig, const char *name, uint64_t capacity_pages,
                             const pllm_vmm_pool_options *options)
{
    pllm_vmm_pool_options chosen = {0};
    pllm_vmm_pool *pool;
    if (options) chosen = *options;
    chosen.struct_bytes = sizeof chosen;
    chosen.capacity_bytes = capacity_pages * RIG_PAGE;
    chosen.page_bytes = RIG_PAGE;
    assert_int_equal(pllm_vmm_register(rig->vmm, name, &chosen, &pool), PLLM_OK);
    return pool;
}

pllm_vmm_pool_stats vmm_rig_stats(pllm_vmm_pool *pool)
{
    pllm_vmm_pool_stats stats = {.struct_bytes = sizeof stats};
    pthread_mutex_lock(&pool->lock);
    pllm_vmm_pool_check(pool);
    pthread_mutex_unlock(&pool->lock);
    assert_int_equal(pllm_vmm_pool_stats_get(pool, &stats), PLLM_OK);
    return stats;
}

uint64_t vmm_rig_physical(const vmm_rig *rig)
{
    pllm_vmm_stats stats = {.struct_bytes = sizeof stats};
    assert_int_equal(pllm_vmm_stats_get(rig->vmm, &stats), PLLM_OK);
    assert_int_equal(stats.physical_bytes % RIG_PAGE, 0);
    return stats.physical_bytes / RIG_PAGE;
}

unsigned char *vmm_rig_bytes(pllm_vmm_pool *pool, uint64_t offset)
{
    return (unsigned char *)(uintptr_t)(pllm_vmm_base(pool) + offset);
}

void vmm_rig_fill(pllm_vmm_pool *pool, uint64_t offset, uint64_t bytes, unsigned char value)
{
    memset(vmm_rig_bytes(pool, offset), value, bytes);
}

void vmm_rig_all(pllm_vmm_pool *pool, uint64_t offset, uint64_t bytes, unsigned char value)
{
    const unsigned char *at = vmm_rig_bytes(pool, offset);
    for (uint64_t i = 0; i < bytes; i++)
        if (at[i] != value)
            fail_msg("byte %llu of the pool is %d, not %d", (unsigned long long)(offset + i), at[i],
                     value);
}

void vmm_rig_refused(int status, int expected, const char *words)
{
    assert_int_equal(status, expected);
    const char *text = pllm_last_error()->text;
    if (!strstr(text, words)) fail_msg("'%s' does not say '%s'", text, words);
}
