/* cuda_plain.c - plain allocations (cuMemAlloc) and their legacy handles for other processes.
 *
 *   this process     plain allocation   [ base ........ va ........ )    handle(va) is handle(base)
 *   another one      opened             [ base' ....... base' + offset )
 *
 * Each allocation, and each opened one, is a range that is mapped whole, so that copies and fills
 * are checked as everywhere. The driver returns the same address when a handle is opened again and
 * counts; so do we (opened_count). No lock is held over its calls, which may take long: a range is
 * entered after the driver has counted and goes before the driver is told, so that at every moment
 * our count is at most the driver's, and no address that it has given anew is still ours. */
#include <string.h>
#include "device/cuda_internal.h"

int pllm_cuda_plain_alloc(pllm_device *device, uint64_t bytes, pllm_va *va_out)
{
    cuda_device *cuda;
    *va_out = 0;
    int status = cuda_unwrap(device, NULL, "plain_alloc", &cuda);
    if (status == PLLM_OK) status = cuda_enter(cuda);
    if (status < 0) return status;
    uint64_t rounded, va;
    if (bytes == 0 || __builtin_add_overflow(bytes, cuda->granularity_bytes - 1, &rounded))
        return pllm_fail(PLLM_EINVAL, 0, "a plain allocation of %llu bytes",
                         (unsigned long long)bytes);
    rounded -= rounded % cuda->granularity_bytes;
    pthread_mutex_lock(&cuda->lock);
    if (rounded > cuda->capacity_bytes - cuda->used_bytes)
        status = PLLM_ENODEVMEM;
    else
        cuda->used_bytes += rounded;
    pthread_mutex_unlock(&cuda->lock);
    if (status < 0) return status;
    status = CUDA_DO(cuda, plain_alloc, &va, rounded);
    if (status < 0) goto fail_used;
    pthread_mutex_lock(&cuda->lock);
    status = pllm_ranges_add_mapped(&cuda->ranges, va, rounded);
    pthread_mutex_unlock(&cuda->lock);
    if (status < 0) goto fail_va;
    *va_out = va;
    return PLLM_OK;
fail_va:
    CUDA_NOTE(cuda, plain_free, va);
fail_used:
    pthread_mutex_lock(&cuda->lock);
    cuda->used_bytes -= rounded;
    pthread_mutex_unlock(&cuda->lock);
    return status;
}

void pllm_cuda_plain_free(pllm_device *device, pllm_va va)
{
    cuda_device *cuda;
    if (!va || cuda_unwrap(device, NULL, NULL, &cuda) < 0) return;
    pthread_mutex_lock(&cuda->lock);
    pllm_range *range = pllm_ranges_find(&cuda->ranges, va, 1);
    if (range && range->va == va) {
        uint64_t bytes = range->bytes;
        pllm_ranges_remove_mapped(&cuda->ranges, va, bytes);
        cuda->used_bytes -= bytes;
    } else {
        va = 0; /* none of ours */
    }
    pthread_mutex_unlock(&cuda->lock);
    if (!va) return;
    CUDA_NOTE(cuda, context_set_current, cuda->context);
    CUDA_NOTE(cuda, plain_free, va);
}

int pllm_cuda_ipc_export(pllm_device *device, pllm_va va, uint8_t handle[PLLM_CUDA_IPC_BYTES],
                         uint64_t *offset_out)
{
    cuda_device *cuda;
    cuda_ipc_handle made;
    uint64_t base;
    size_t bytes;
    memset(handle, 0, PLLM_CUDA_IPC_BYTES);
    if (offset_out) *offset_out = 0;
    int status = cuda_unwrap(device, NULL, "ipc_export", &cuda);
    if (status == PLLM_OK) status = cuda_enter(cuda);
    if (status < 0) return status;
    int code = cuda->driver.plain_range(&base, &bytes, va);
    if (code == CUDA_INVALID_VALUE || code == CUDA_NOT_FOUND)
        return pllm_fail(PLLM_EINVAL, code, "address %llx lies in no allocation of this GPU",
                         (unsigned long long)va);
    status = cuda_check(cuda, CUDA_CALL_plain_range, code);
    if (status < 0) return status;
    code = cuda->driver.ipc_get(&made, base);
    if (code == CUDA_INVALID_VALUE)
        return pllm_fail(PLLM_EINVAL, code,
                         "address %llx lies in no plain allocation: only those have IPC handles",
                         (unsigned long long)va);
    if (code == CUDA_NOT_SUPPORTED || code == CUDA_NOT_PERMITTED)
        return pllm_fail(PLLM_EUNSUPPORTED, code,
                         "%s: memory has no IPC handles here (containers may forbid them)",
                         cuda->name);
    status = cuda_check(cuda, CUDA_CALL_ipc_get, code);
    if (status < 0) return status;
    memcpy(handle, made.bytes, PLLM_CUDA_IPC_BYTES);
    if (offset_out) *offset_out = va - base;
    return PLLM_OK;
}

/* What the driver opened at va becomes a range, or is counted once more. */
static int opened_note(cuda_device *cuda, uint64_t va, uint64_t *bytes_out)
{
    size_t bytes = 0;
    uint64_t base;
    int status = CUDA_DO(cuda, plain_range, &base, &bytes, va);
    if (status < 0) return status;
    pthread_mutex_lock(&cuda->lock);
    pllm_range *range = pllm_ranges_find(&cuda->ranges, va, 1);
    if (!range) {
        status = pllm_ranges_add_mapped(&cuda->ranges, va, bytes);
        if (status == PLLM_OK) range = pllm_ranges_find(&cuda->ranges, va, 1);
    }
    if (range) range->opened_count++;
    pthread_mutex_unlock(&cuda->lock);
    *bytes_out = bytes;
    return status;
}

int pllm_cuda_ipc_open(pllm_device *device, const uint8_t handle[PLLM_CUDA_IPC_BYTES],
                       pllm_va *va_out, uint64_t *bytes_out)
{
    cuda_device *cuda;
    cuda_ipc_handle given;
    uint64_t va, bytes = 0;
    *va_out = 0;
    if (bytes_out) *bytes_out = 0;
    int status = cuda_unwrap(device, NULL, "ipc_open", &cuda);
    if (status == PLLM_OK) status = cuda_enter(cuda);
    if (status < 0) return status;
    memcpy(given.bytes, handle, sizeof given.bytes);
    int code = cuda->driver.ipc_open(&va, given, CUDA_IPC_LAZY_PEER);
    if (code != CUDA_OK && code != CUDA_OUT_OF_MEMORY && !cuda_error_sticks(code))
        return pllm_fail(PLLM_EINVAL, code,
                         "the driver opens no memory by this IPC handle (CUDA error %d): it is "
                         "gone, of another GPU, or this process's own",
                         code);
    status = cuda_check(cuda, CUDA_CALL_ipc_open, code);
    if (status == PLLM_ENODEVMEM)
        return pllm_fail(PLLM_EDEVICE, CUDA_OUT_OF_MEMORY,
                         "%s has no memory left to map another process's", cuda->name);
    if (status < 0) return status;
    status = opened_note(cuda, va, &bytes);
    if (status < 0) {
        CUDA_NOTE(cuda, ipc_close, va);
        return status;
    }
    *va_out = va;
    if (bytes_out) *bytes_out = bytes;
    return PLLM_OK;
}

void pllm_cuda_ipc_close(pllm_device *device, pllm_va va)
{
    cuda_device *cuda;
    if (!va || cuda_unwrap(device, NULL, NULL, &cuda) < 0) return;
    pthread_mutex_lock(&cuda->lock);
    pllm_range *range = pllm_ranges_find(&cuda->ranges, va, 1);
    int ours = range && range->va == va && range->opened_count > 0;
    if (ours && --range->opened_count == 0)
        pllm_ranges_remove_mapped(&cuda->ranges, va, range->bytes);
    pthread_mutex_unlock(&cuda->lock);
    if (!ours) return;
    CUDA_NOTE(cuda, context_set_current, cuda->context);
    CUDA_NOTE(cuda, ipc_close, va);
}
