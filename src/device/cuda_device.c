/* cuda_device.c - the CUDA device's table, its opening and closing, and its errors.
 *
 * Nothing here is global: each device holds its own table of driver calls (the library itself
 * counts its users) and retains the primary context of its GPU, so that libraries of the same
 * process, and a second device of ours on the same card, share it. */
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include "base/clock.h"
#include "device/cuda_internal.h"

#define CHUNK_BYTES ((uint64_t)16 << 20) /* mapping costs per call: 16 MiB map at 500 GB/s */

/* ---- errors ---- */

static int fail_dead(const cuda_device *cuda, uint32_t dead)
{
    int code = (int)(dead & 0xffff);
    char text[256];
    cuda_error_text(&cuda->driver, code, text, sizeof text);
    return pllm_fail(PLLM_EDEVICE, code,
                     "the GPU failed earlier, when %s met %s; this process can't use it any more",
                     cuda_call_name(dead >> 16), text);
}

int cuda_enter(cuda_device *cuda)
{
    uint32_t dead = atomic_load(&cuda->dead);
    if (dead) return fail_dead(cuda, dead);
    return CUDA_DO(cuda, context_set_current, cuda->context);
}

/* The first sticky error is logged, with the call that met it, and remembered. */
static void remember(cuda_device *cuda, uint32_t call, int code, const char *text)
{
    uint32_t none = 0;
    if (!cuda_error_sticks(code)) return;
    if (!atomic_compare_exchange_strong(&cuda->dead, &none, call << 16 | (uint32_t)code)) return;
    pllm_log(cuda->base.context, PLLM_LOG_ERROR,
             "%s: %s met %s, from work submitted before it or from itself; the device is lost to "
             "this process",
             cuda->name, cuda_call_name(call), text);
}

int cuda_check(cuda_device *cuda, uint32_t call, int code)
{
    if (code == CUDA_OK) return PLLM_OK;
    if (code == CUDA_OUT_OF_MEMORY) return PLLM_ENODEVMEM;
    char text[256];
    cuda_error_text(&cuda->driver, code, text, sizeof text);
    remember(cuda, call, code, text);
    return pllm_fail(PLLM_EDEVICE, code, "%s failed: %s", cuda_call_name(call), text);
}

void cuda_note(cuda_device *cuda, uint32_t call, int code)
{
    if (code == CUDA_OK || atomic_load(&cuda->dead)) return;
    char text[256];
    cuda_error_text(&cuda->driver, code, text, sizeof text);
    remember(cuda, call, code, text);
    if (!atomic_load(&cuda->dead))
        pllm_log(cuda->base.context, PLLM_LOG_ERROR, "%s: %s failed: %s", cuda->name,
                 cuda_call_name(call), text);
}

/* ---- the table ---- */

static void cuda_close(pllm_device *device)
{
    cuda_device *cuda = cuda_of(device);
    cuda->driver.context_set_current(cuda->context);
    CUDA_NOTE(cuda, stream_destroy, cuda->zeroing);
    cuda->driver.context_set_current(NULL);
    cuda->driver.context_release(cuda->ordinal);
    cuda_nvml_close(&cuda->nvml);
    pthread_mutex_destroy(&cuda->ipc_lock);
    pthread_mutex_destroy(&cuda->lock);
    pllm_ranges_deinit(&cuda->ranges);
    pllm_free(device->context, cuda->parts);
    cuda_driver_close(&cuda->driver);
    pllm_free(device->context, cuda);
}

static int cuda_info(pllm_device *device, pllm_device_info *info_out)
{
    cuda_device *cuda = cuda_of(device);
    size_t free_bytes = 0, total_bytes = 0;
    memset(info_out, 0, sizeof *info_out);
    info_out->struct_bytes = sizeof *info_out;
    int status = cuda_enter(cuda);
    if (status == PLLM_OK) status = CUDA_DO(cuda, memory_info, &free_bytes, &total_bytes);
    if (status < 0) return status;
    pthread_mutex_lock(&cuda->lock);
    uint64_t left = cuda->capacity_bytes - cuda->used_bytes;
    pthread_mutex_unlock(&cuda->lock);
    memcpy(info_out->name, cuda->name, sizeof info_out->name);
    memcpy(info_out->uuid, cuda->uuid, sizeof info_out->uuid);
    info_out->total_bytes = cuda->capacity_bytes;
    info_out->free_bytes = left < free_bytes ? left : free_bytes;
    info_out->granularity_bytes = cuda->granularity_bytes;
    info_out->chunk_bytes = cuda->chunk_bytes;
    return PLLM_OK;
}

static void *cuda_host_view(pllm_device *device, pllm_va va)
{
    (void)device;
    (void)va;
    return NULL;
}

static uint64_t cuda_now_ns(pllm_device *device)
{
    (void)device;
    return pllm_clock_ns();
}

static const pllm_device_ops cuda_ops = {
    .name = "cuda",
    .close = cuda_close,
    .info = cuda_info,
    .reserve = cuda_reserve,
    .release = cuda_release,
    .chunk_create = cuda_chunk_create,
    .chunk_destroy = cuda_chunk_destroy,
    .map = cuda_map,
    .unmap = cuda_unmap,
    .chunk_export = cuda_chunk_export,
    .chunk_import = cuda_chunk_import,
    .host_alloc = cuda_host_alloc,
    .host_free = cuda_host_free,
    .host_view = cuda_host_view,
    .stream_open = cuda_stream_open,
    .stream_close = cuda_stream_close,
    .event_open = cuda_event_open,
    .event_close = cuda_event_close,
    .event_record = cuda_event_record,
    .event_query = cuda_event_query,
    .event_wait = cuda_event_wait,
    .stream_wait = cuda_stream_wait,
    .stream_sync = cuda_stream_sync,
    .stream_call = cuda_stream_call,
    .copy = cuda_copy,
    .copy_batch = cuda_copy_batch,
    .fill = cuda_fill,
    .now_ns = cuda_now_ns,
};

int cuda_unwrap(pllm_device *device, pllm_stream **stream, const char *what, cuda_device **cuda_out)
{
    *cuda_out = NULL;
    for (pllm_device *inner; device && (inner = pllm_faulty_device_inner(device)); device = inner) {
        int status = what ? pllm_faulty_device_pass(device, what) : PLLM_OK;
        if (status < 0) return status;
        if (stream && *stream) *stream = pllm_faulty_stream_inner(*stream);
    }
    if (!device || device->ops != &cuda_ops)
        return pllm_fail(PLLM_EINVAL, 0, "%s needs a CUDA device", what ? what : "this call");
    *cuda_out = cuda_of(device);
    return PLLM_OK;
}

int pllm_cuda_is(pllm_device *device)
{
    for (pllm_device *inner; device && (inner = pllm_faulty_device_inner(device));) device = inner;
    return device && device->ops == &cuda_ops;
}

/* ---- finding a GPU ---- */

static void uuid_format(const uint8_t bytes[16], char text[48])
{
    static const char digits[] = "0123456789abcdef";
    char *at = text;
    memcpy(at, "GPU-", 4);
    at += 4;
    for (int i = 0; i < 16; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10) *at++ = '-';
        *at++ = digits[bytes[i] >> 4];
        *at++ = digits[bytes[i] & 15];
    }
    *at = 0;
}

static int attribute_of(const cuda_driver *driver, int device, int attribute)
{
    int value = 0;
    return driver->device_attribute(&value, attribute, device) == CUDA_OK ? value : 0;
}

/* What can be said of GPU number index without a context. */
static int describe(const cuda_driver *driver, int index, int *device, pllm_cuda_listing *listing)
{
    uint8_t uuid[16] = {0};
    size_t total = 0;
    memset(listing, 0, sizeof *listing);
    int code = driver->device_get(device, index);
    if (code == CUDA_OK)
        code = driver->device_name(listing->name, (int)sizeof listing->name - 1, *device);
    if (code == CUDA_OK) code = driver->device_uuid(uuid, *device);
    if (code == CUDA_OK) code = driver->device_total(&total, *device);
    if (code != CUDA_OK) {
        char text[256];
        cuda_error_text(driver, code, text, sizeof text);
        return pllm_fail(PLLM_EDEVICE, code, "GPU %d does not say what it is: %s", index, text);
    }
    uuid_format(uuid, listing->uuid);
    listing->cuda_major = (uint32_t)driver->version / 1000;
    listing->cuda_minor = (uint32_t)driver->version % 1000 / 10;
    listing->major = (uint32_t)attribute_of(driver, *device, CUDA_ATTRIBUTE_MAJOR);
    listing->minor = (uint32_t)attribute_of(driver, *device, CUDA_ATTRIBUTE_MINOR);
    listing->sm_count = (uint32_t)attribute_of(driver, *device, CUDA_ATTRIBUTE_SM_COUNT);
    listing->total_bytes = total;
    return PLLM_OK;
}

int pllm_cuda_list(const pllm_cuda_device_options *options, pllm_cuda_listing *listings,
                   uint32_t listing_max, uint32_t *count_out)
{
    cuda_driver driver;
    char version[sizeof listings->driver];
    int count = 0, device;
    *count_out = 0;
    int status = cuda_driver_open(&driver, options ? options->library : NULL);
    if (status < 0) return status;
    cuda_nvml_driver_version(options ? options->nvml : NULL, version, sizeof version);
    driver.device_count(&count);
    for (int i = 0; i < count && (uint32_t)i < listing_max && status == PLLM_OK; i++) {
        status = describe(&driver, i, &device, &listings[i]);
        memcpy(listings[i].driver, version, sizeof version);
    }
    if (status == PLLM_OK) *count_out = (uint32_t)count;
    cuda_driver_close(&driver);
    return status;
}

/* "GPU-" may be left out, and so may the end, as long as something is there. */
static int uuid_matches(const char *uuid, const char *wanted)
{
    if (strncasecmp(wanted, "GPU-", 4) == 0) wanted += 4;
    return *wanted && strncasecmp(uuid + 4, wanted, strlen(wanted)) == 0;
}

static int choose(cuda_device *cuda, const pllm_cuda_device_options *options)
{
    pllm_cuda_listing listing;
    int count = 0, device, found = -1;
    cuda->driver.device_count(&count);
    for (int i = 0; i < count; i++) {
        if (!options->uuid && (uint32_t)i != options->index) continue;
        int status = describe(&cuda->driver, i, &device, &listing);
        if (status < 0) return status;
        if (options->uuid && !uuid_matches(listing.uuid, options->uuid)) continue;
        if (found >= 0)
            return pllm_fail(PLLM_EUNSUPPORTED, 0,
                             "more than one GPU has a UUID that begins with %s", options->uuid);
        found = device;
        memcpy(cuda->name, listing.name, sizeof cuda->name);
        memcpy(cuda->uuid, listing.uuid, sizeof cuda->uuid);
        cuda->attributes = (pllm_cuda_attributes){
            sizeof cuda->attributes,
            listing.major,
            listing.minor,
            listing.sm_count,
            (uint32_t)attribute_of(&cuda->driver, device, CUDA_ATTRIBUTE_SHARED_PER_BLOCK_MAX),
            (uint32_t)attribute_of(&cuda->driver, device, CUDA_ATTRIBUTE_L2_BYTES),
            listing.total_bytes,
        };
    }
    if (found < 0 && options->uuid)
        return pllm_fail(PLLM_EUNSUPPORTED, 0, "none of the %d GPUs here has the UUID %s", count,
                         options->uuid);
    if (found < 0)
        return pllm_fail(PLLM_EUNSUPPORTED, 0, "there is no GPU number %u: %d here, counted from 0",
                         options->index, count);
    if (!attribute_of(&cuda->driver, found, CUDA_ATTRIBUTE_VIRTUAL_MEMORY))
        return pllm_fail(PLLM_EUNSUPPORTED, 0,
                         "%s does not support CUDA's virtual memory management, which pages are "
                         "made of",
                         cuda->name);
    atomic_store(&cuda->exportable,
                 (uint32_t)attribute_of(&cuda->driver, found, CUDA_ATTRIBUTE_FILE_HANDLES));
    cuda->ordinal = found;
    return PLLM_OK;
}

/* Memory figures and the stream for new chunks; the context is current. */
static int settle(cuda_device *cuda, uint64_t capacity_bytes)
{
    size_t granularity = 0;
    cuda_allocation allocation = cuda_allocation_of(cuda);
    int status = CUDA_DO(cuda, granularity, &granularity, &allocation, CUDA_GRANULARITY_MINIMUM);
    if (status < 0) return status;
    if (granularity == 0 || granularity & (granularity - 1))
        return pllm_fail(PLLM_EDEVICE, 0, "%s has a granularity of %zu bytes, no power of two",
                         cuda->name, granularity);
    cuda->granularity_bytes = granularity;
    cuda->chunk_bytes = granularity > CHUNK_BYTES ? granularity : CHUNK_BYTES;
    cuda->ranges = (pllm_ranges){.context = cuda->base.context, .granularity_bytes = granularity};
    uint64_t total = cuda->attributes.total_bytes;
    cuda->capacity_bytes = capacity_bytes && capacity_bytes < total ? capacity_bytes : total;
    return CUDA_DO(cuda, stream_create, &cuda->zeroing, CUDA_STREAM_NON_BLOCKING);
}

int pllm_device_open_cuda(const pllm_context *context, const pllm_cuda_device_options *options,
                          pllm_device **device_out)
{
    if (!device_out) return pllm_fail(PLLM_EINVAL, 0, "device_out is NULL");
    *device_out = NULL;
    pllm_cuda_device_options chosen = {.struct_bytes = sizeof chosen};
    if (options) chosen = *options;
    if (chosen.struct_bytes != sizeof chosen)
        return pllm_fail(PLLM_EINVAL, 0, "pllm_cuda_device_options.struct_bytes is %u, not %zu",
                         chosen.struct_bytes, sizeof chosen);
    cuda_device *cuda = pllm_alloc(context, sizeof *cuda);
    if (!cuda) return pllm_fail_memory("a CUDA device", sizeof *cuda);
    cuda->base = (pllm_device){&cuda_ops, context};
    int status = cuda_driver_open(&cuda->driver, chosen.library);
    if (status < 0) goto fail_cuda;
    status = choose(cuda, &chosen);
    if (status < 0) goto fail_driver;
    cuda_nvml_open(&cuda->nvml, chosen.nvml, cuda->uuid);
    if (cuda->nvml.library) cuda_nvml_used(&cuda->nvml, &cuda->used_before_bytes);
    status = CUDA_DO(cuda, context_retain, &cuda->context, cuda->ordinal);
    if (status < 0) goto fail_nvml;
    status = cuda_enter(cuda);
    if (status == PLLM_OK) status = settle(cuda, chosen.capacity_bytes);
    if (status < 0) goto fail_context;
    int code = pthread_mutex_init(&cuda->lock, NULL);
    if (code) {
        status = pllm_fail(PLLM_ENOMEM, code, "could not make a lock for the device");
        goto fail_stream;
    }
    code = pthread_mutex_init(&cuda->ipc_lock, NULL);
    if (code) {
        status = pllm_fail(PLLM_ENOMEM, code, "could not make a lock for the device");
        goto fail_lock;
    }
    *device_out = &cuda->base;
    return PLLM_OK;
fail_lock:
    pthread_mutex_destroy(&cuda->lock);
fail_stream:
    CUDA_NOTE(cuda, stream_destroy, cuda->zeroing);
fail_context:
    cuda->driver.context_release(cuda->ordinal);
fail_nvml:
    if (status == PLLM_ENODEVMEM)
        status = pllm_fail(PLLM_EDEVICE, CUDA_OUT_OF_MEMORY,
                           "%s has too little memory left for a context: others are using it",
                           cuda->name);
    cuda_nvml_close(&cuda->nvml);
fail_driver:
    cuda_driver_close(&cuda->driver);
fail_cuda:
    pllm_free(context, cuda);
    return status;
}

/* ---- what the card says ---- */

int pllm_cuda_attributes_get(pllm_device *device, pllm_cuda_attributes *out)
{
    cuda_device *cuda;
    if (!out || out->struct_bytes != sizeof *out)
        return pllm_fail(PLLM_EINVAL, 0, "pllm_cuda_attributes.struct_bytes is not %zu",
                         sizeof *out);
    int status = cuda_unwrap(device, NULL, NULL, &cuda);
    if (status == PLLM_OK) *out = cuda->attributes;
    return status;
}

int pllm_cuda_memory_used(pllm_device *device, uint64_t *before_bytes, uint64_t *now_bytes)
{
    cuda_device *cuda;
    *before_bytes = *now_bytes = 0;
    int status = cuda_unwrap(device, NULL, NULL, &cuda);
    if (status == PLLM_OK) status = cuda_nvml_used(&cuda->nvml, now_bytes);
    if (status == PLLM_OK) *before_bytes = cuda->used_before_bytes;
    return status;
}

int pllm_cuda_make_current(pllm_device *device)
{
    cuda_device *cuda;
    int status = cuda_unwrap(device, NULL, NULL, &cuda);
    return status < 0 ? status : cuda_enter(cuda);
}
