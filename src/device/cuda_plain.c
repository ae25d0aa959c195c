/* cuda_plain.c - plain allocations (cuMemAlloc) and their legacy handles for other processes.
 *
 *   this process     plain allocation   [ base ........ va ........ )    handle(va) is handle(base)
 *   another one      opened             [ base' ....... base' + offset )
 *
 * Each allocation, and each opened one, is a range that is mapped whole, so that copies and fills
 * are checked as everywhere. Opened ones are counted here, by handle: some drivers count a second
 * open of a handle, others refuse it (CUDA_ERROR_ALREADY_MAPPED). Opening and closing in the driver
 * may take long, so they have a lock of their own, and copies don't wait for them. */
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

/* Opens a handle that is not open yet; under ipc_lock. */
static int handle_open(cuda_device *cuda, cuda_opened *opened)
{
    uint64_t base;
    size_t bytes;
    int code = cuda->driver.ipc_open(&opened->va, opened->handle, CUDA_IPC_LAZY_PEER);
    if (code != CUDA_OK && code != CUDA_OUT_OF_MEMORY && !cuda_error_sticks(code))
        return pllm_fail(PLLM_EINVAL, code,
                         "the driver opens no memory by this IPC handle (CUDA error %d): it is "
                         "gone, of another GPU, or this process's own",
                         code);
    int status = cuda_check(cuda, CUDA_CALL_ipc_open, code);
    if (status == PLLM_ENODEVMEM)
        return pllm_fail(PLLM_EDEVICE, CUDA_OUT_OF_MEMORY,
                         "%s has no memory left to map another process's", cuda->name);
    if (status < 0) return status;
    status = CUDA_DO(cuda, plain_range, &base, &bytes, opened->va);
    if (status < 0) goto fail_open;
    opened->bytes = bytes;
    pthread_mutex_lock(&cuda->lock);
    status = pllm_ranges_add_mapped(&cuda->ranges, opened->va, bytes);
    pthread_mutex_unlock(&cuda->lock);
    if (status == PLLM_OK) return PLLM_OK;
fail_open:
    CUDA_NOTE(cuda, ipc_close, opened->va);
    return status;
}

int pllm_cuda_ipc_open(pllm_device *device, const uint8_t handle[PLLM_CUDA_IPC_BYTES],
                       pllm_va *va_out, uint64_t *bytes_out)
{
    cuda_device *cuda;
    *va_out = 0;
    if (bytes_out) *bytes_out = 0;
    int status = cuda_unwrap(device, NULL, "ipc_open", &cuda);
    if (status == PLLM_OK) status = cuda_enter(cuda);
    if (status < 0) return status;
    pthread_mutex_lock(&cuda->ipc_lock);
    cuda_opened *opened = cuda->opened;
    while (opened && memcmp(&opened->handle, handle, PLLM_CUDA_IPC_BYTES) != 0)
        opened = opened->next;
    if (!opened) {
        opened = pllm_alloc(cuda->base.context, sizeof *opened);
        if (!opened) {
            status = pllm_fail_memory("an opened IPC handle", sizeof *opened);
            goto out;
        }
        memcpy(&opened->handle, handle, PLLM_CUDA_IPC_BYTES);
        status = handle_open(cuda, opened);
        if (status < 0) {
            pllm_free(cuda->base.context, opened);
            goto out;
        }
        opened->next = cuda->opened;
        cuda->opened = opened;
    }
    opened->count++;
    *va_out = opened->va;
    if (bytes_out) *bytes_out = opened->bytes;
out:
    pthread_mutex_unlock(&cuda->ipc_lock);
    return status;
}

void pllm_cuda_ipc_close(pllm_device *device, pllm_va va)
{
    cuda_device *cuda;
    if (!va || cuda_unwrap(device, NULL, NULL, &cuda) < 0) return;
    pthread_mutex_lock(&cuda->ipc_lock);
    cuda_opened **link = &cuda->opened;
    while (*link && (*link)->va != va) link = &(*link)->next;
    cuda_opened *opened = *link;
    if (opened && --opened->count == 0) {
        *link = opened->next;
        pthread_mutex_lock(&cuda->lock);
        pllm_ranges_remove_mapped(&cuda->ranges, va, opened->bytes);
        pthread_mutex_unlock(&cuda->lock);
        CUDA_NOTE(cuda, context_set_current, cuda->context);
        CUDA_NOTE(cuda, ipc_close, va);
        pllm_free(cuda->base.context, opened);
    }
    pthread_mutex_unlock(&cuda->ipc_lock);
}
