/* public.c - include/pagedllm/device.h over the table: names, streams, and copies that wait. */
#include "device/cuda.h"
#include "device/open.h"

int pllm_device_open(const pllm_context *context, const char *name, pllm_device **device_out)
{
    if (!device_out) return pllm_fail(PLLM_EINVAL, 0, "device_out is NULL");
    return pllm_device_open_name(context, name, NULL, device_out);
}

void pllm_device_close(pllm_device *device)
{
    if (device) device->ops->close(device);
}

int pllm_device_info_get(pllm_device *device, pllm_device_info *info)
{
    pllm_device_info all;
    if (!device || !info || info->struct_bytes != sizeof *info)
        return pllm_fail(PLLM_EINVAL, 0, "no device, or pllm_device_info.struct_bytes is not %zu",
                         sizeof *info);
    int status = device->ops->info(device, &all);
    if (status == PLLM_OK) *info = all;
    return status;
}

int pllm_stream_open(pllm_device *device, void *native, pllm_stream **stream_out)
{
    if (!device || !stream_out)
        return pllm_fail(PLLM_EINVAL, 0, "a stream needs a device and a result");
    *stream_out = NULL;
    if (!native) return device->ops->stream_open(device, stream_out);
    if (!pllm_cuda_is(device))
        return pllm_fail(PLLM_EINVAL, 0, "device %s has no native streams", device->ops->name);
    return pllm_cuda_stream_wrap(device, native, stream_out);
}

void pllm_stream_close(pllm_device *device, pllm_stream *stream)
{
    if (device) device->ops->stream_close(device, stream);
}

int pllm_stream_sync(pllm_device *device, pllm_stream *stream)
{
    if (!device || !stream) return pllm_fail(PLLM_EINVAL, 0, "no device or no stream");
    return device->ops->stream_sync(device, stream);
}

/* After a failed submission the stream is not waited for: nothing of ours is in it. */
static int copy_and_wait(pllm_device *device, pllm_stream *stream, pllm_copy_kind kind,
                         pllm_copy copy)
{
    if (!device || !stream) return pllm_fail(PLLM_EINVAL, 0, "no device or no stream");
    if (copy.bytes == 0) return PLLM_OK;
    int status = device->ops->copy(device, stream, kind, &copy);
    return status < 0 ? status : device->ops->stream_sync(device, stream);
}

int pllm_device_read(pllm_device *device, pllm_stream *stream, uint64_t address, uint64_t bytes,
                     void *pointer)
{
    return copy_and_wait(device, stream, PLLM_COPY_OUT,
                         (pllm_copy){(pllm_va)(uintptr_t)pointer, address, bytes});
}

int pllm_device_write(pllm_device *device, pllm_stream *stream, uint64_t address, uint64_t bytes,
                      const void *pointer)
{
    return copy_and_wait(device, stream, PLLM_COPY_IN,
                         (pllm_copy){address, (pllm_va)(uintptr_t)pointer, bytes});
}
