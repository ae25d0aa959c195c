/* cuda_async.c - the driver's own pool of stream-ordered allocations, which ours is measured
 * against. Nothing else uses it: its memory is in no budget. A stream of NULL is the driver's
 * default one. */
#include "device/cuda_internal.h"

static int enter(pllm_device *device, pllm_stream **stream, const char *what,
                 cuda_device **cuda_out)
{
    int status = cuda_unwrap(device, stream, what, cuda_out);
    if (status == PLLM_OK) status = cuda_enter(*cuda_out);
    if (status < 0) return status;
    const cuda_driver *driver = &(*cuda_out)->driver;
    if (driver->async_alloc && driver->async_free && driver->async_pool && driver->async_get &&
        driver->async_set && driver->async_trim)
        return PLLM_OK;
    return pllm_fail(PLLM_EUNSUPPORTED, 0, "this driver has no cuMemAllocAsync");
}

static void *handle_of(pllm_stream *stream)
{
    return stream ? ((cuda_stream *)stream)->handle : NULL;
}

int pllm_cuda_async_alloc(pllm_device *device, pllm_stream *stream, uint64_t bytes, pllm_va *va_out)
{
    cuda_device *cuda;
    *va_out = 0;
    int status = enter(device, &stream, "async_alloc", &cuda);
    return status < 0 ? status : CUDA_DO(cuda, async_alloc, va_out, bytes, handle_of(stream));
}

int pllm_cuda_async_free(pllm_device *device, pllm_stream *stream, pllm_va va)
{
    cuda_device *cuda;
    int status = enter(device, &stream, "async_free", &cuda);
    return status < 0 ? status : CUDA_DO(cuda, async_free, va, handle_of(stream));
}

int pllm_cuda_async_hold(pllm_device *device)
{
    cuda_device *cuda;
    void *pool = NULL;
    uint64_t all = UINT64_MAX, from_now = 0;
    int status = enter(device, NULL, "async_hold", &cuda);
    if (status == PLLM_OK) status = CUDA_DO(cuda, async_pool, &pool, cuda->ordinal);
    if (status == PLLM_OK)
        status = CUDA_DO(cuda, async_set, pool, CUDA_POOL_RELEASE_THRESHOLD, &all);
    if (status == PLLM_OK) status = CUDA_DO(cuda, async_trim, pool, 0);
    if (status == PLLM_OK)
        status = CUDA_DO(cuda, async_set, pool, CUDA_POOL_RESERVED_PEAK, &from_now);
    return status;
}

int pllm_cuda_async_reserved(pllm_device *device, uint64_t *now_out, uint64_t *peak_out)
{
    cuda_device *cuda;
    void *pool = NULL;
    *now_out = *peak_out = 0;
    int status = enter(device, NULL, "async_reserved", &cuda);
    if (status == PLLM_OK) status = CUDA_DO(cuda, async_pool, &pool, cuda->ordinal);
    if (status == PLLM_OK) status = CUDA_DO(cuda, async_get, pool, CUDA_POOL_RESERVED, now_out);
    if (status == PLLM_OK)
        status = CUDA_DO(cuda, async_get, pool, CUDA_POOL_RESERVED_PEAK, peak_out);
    return status;
}
