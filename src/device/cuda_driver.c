/* cuda_driver.c - finding the driver and NVML at run time; see the header. */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include "device/cuda_driver.h"

#define DRIVER_LIBRARY "libcuda.so.1"
#define NVML_LIBRARY "libnvidia-ml.so.1"

static const char *const call_names[] = {
#define X(field, name, form, needed, arguments) name,
    CUDA_DRIVER_CALLS(X)
#undef X
};

const char *cuda_call_name(uint32_t call)
{
    return call < CUDA_CALL_COUNT ? call_names[call] : "the driver";
}

/* ISO C has no conversion from object to function pointers; POSIX has this one. */
typedef void (*any_function)(void);
static any_function function_of(void *symbol)
{
    any_function function;
    _Static_assert(sizeof function == sizeof symbol, "POSIX");
    memcpy(&function, &symbol, sizeof function);
    return function;
}

typedef int (*get_address)(const char *name, void **function, int version, uint64_t flags,
                           int *status);

static int driver_fill(cuda_driver *driver)
{
    get_address get = (get_address)function_of(dlsym(driver->library, "cuGetProcAddress_v2"));
    int (*get_version)(int *) =
        (int (*)(int *))function_of(dlsym(driver->library, "cuDriverGetVersion"));
    if (!get_version || get_version(&driver->version) != CUDA_OK) driver->version = 0;
    if (!get || driver->version < CUDA_VERSION_MIN)
        return pllm_fail(PLLM_EUNSUPPORTED, driver->version,
                         "the NVIDIA driver is for CUDA %d.%d, but " CUDA_VERSION_MIN_WORDS
                         " or later is needed: update the driver",
                         driver->version / 1000, driver->version % 1000 / 10);
#define X(field, name, form, needed, arguments)                                                   \
    {                                                                                             \
        void *symbol = NULL;                                                                      \
        if (get(name, &symbol, form, 0, NULL) != CUDA_OK) symbol = NULL;                          \
        if (!symbol && needed)                                                                    \
            return pllm_fail(PLLM_EUNSUPPORTED, driver->version,                                  \
                             "the NVIDIA driver (CUDA %d.%d) has no %s: update it, or reinstall " \
                             "it if it is newer than " CUDA_VERSION_MIN_WORDS,                    \
                             driver->version / 1000, driver->version % 1000 / 10, name);          \
        any_function function = function_of(symbol);                                              \
        memcpy(&driver->field, &function, sizeof function);                                       \
    }
    CUDA_DRIVER_CALLS(X)
#undef X
    return PLLM_OK;
}

static int driver_start(cuda_driver *driver)
{
    int count = 0, code = driver->init(0);
    if (code == CUDA_OK) code = driver->device_count(&count);
    if (code == CUDA_NO_DEVICE || (code == CUDA_OK && count == 0))
        return pllm_fail(PLLM_EUNSUPPORTED, code,
                         "the NVIDIA driver finds no GPU (does CUDA_VISIBLE_DEVICES hide it, or is "
                         "it not passed into this container?)");
    if (code == CUDA_SYSTEM_DRIVER_MISMATCH)
        return pllm_fail(PLLM_EUNSUPPORTED, code,
                         "libcuda and the NVIDIA kernel module are of different versions: reboot, "
                         "or reinstall the driver");
    if (code != CUDA_OK) {
        char text[256];
        cuda_error_text(driver, code, text, sizeof text);
        return pllm_fail(PLLM_EUNSUPPORTED, code, "the NVIDIA driver does not start: %s", text);
    }
    return PLLM_OK;
}

int cuda_driver_open(cuda_driver *driver, const char *library)
{
    memset(driver, 0, sizeof *driver);
    driver->library =
        dlopen(library ? library : DRIVER_LIBRARY, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!driver->library) {
        const char *why = dlerror();
        return pllm_fail(PLLM_EUNSUPPORTED, 0, "there is no NVIDIA driver here: %s",
                         why ? why : DRIVER_LIBRARY);
    }
    int status = driver_fill(driver);
    if (status == PLLM_OK) status = driver_start(driver);
    if (status < 0) cuda_driver_close(driver);
    return status;
}

void cuda_driver_close(cuda_driver *driver)
{
    if (driver->library) dlclose(driver->library); /* one reference; see the header */
    driver->library = NULL;
}

void cuda_error_text(const cuda_driver *driver, int code, char *text, size_t text_bytes)
{
    const char *name = NULL, *words = NULL;
    if (driver->error_name(code, &name) != CUDA_OK || !name) name = "of no name";
    if (driver->error_string(code, &words) != CUDA_OK || !words) words = "no explanation";
    snprintf(text, text_bytes, "CUDA error %d (%s: %s)", code, name, words);
}

int cuda_error_sticks(int code)
{
    switch (code) {
    case CUDA_ECC_UNCORRECTABLE:
    case CUDA_NVLINK_UNCORRECTABLE:
    case CUDA_CONTAINED:
    case CUDA_ILLEGAL_ADDRESS:
    case CUDA_LAUNCH_TIMEOUT:
    case CUDA_CONTEXT_IS_DESTROYED:
    case CUDA_ASSERT:
    case CUDA_HARDWARE_STACK_ERROR:
    case CUDA_ILLEGAL_INSTRUCTION:
    case CUDA_MISALIGNED_ADDRESS:
    case CUDA_INVALID_ADDRESS_SPACE:
    case CUDA_INVALID_PC:
    case CUDA_LAUNCH_FAILED:
    case CUDA_TENSOR_MEMORY_LEAK:
        return 1;
    default:
        return 0;
    }
}

/* ---- NVML ---- */

static int nvml_load(cuda_nvml *nvml, const char *library)
{
    memset(nvml, 0, sizeof *nvml);
    nvml->library = dlopen(library ? library : NVML_LIBRARY, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!nvml->library) return 0;
    int (*init)(void) = (int (*)(void))function_of(dlsym(nvml->library, "nvmlInit_v2"));
    nvml->shutdown = (int (*)(void))function_of(dlsym(nvml->library, "nvmlShutdown"));
    nvml->memory =
        (int (*)(void *, void *))function_of(dlsym(nvml->library, "nvmlDeviceGetMemoryInfo"));
    if (init && nvml->shutdown && nvml->memory && init() == 0) return 1;
    dlclose(nvml->library);
    nvml->library = NULL;
    return 0;
}

void cuda_nvml_open(cuda_nvml *nvml, const char *library, const char *uuid)
{
    if (!nvml_load(nvml, library)) return;
    int (*by_uuid)(const char *, void **) = (int (*)(const char *, void **))function_of(
        dlsym(nvml->library, "nvmlDeviceGetHandleByUUID"));
    if (!by_uuid || by_uuid(uuid, &nvml->device) != 0) cuda_nvml_close(nvml);
}

void cuda_nvml_close(cuda_nvml *nvml)
{
    if (!nvml->library) return;
    nvml->shutdown();
    dlclose(nvml->library);
    memset(nvml, 0, sizeof *nvml);
}

int cuda_nvml_used(const cuda_nvml *nvml, uint64_t *bytes_out)
{
    unsigned long long total_free_used[3] = {0};
    *bytes_out = 0;
    if (!nvml->library || nvml->memory(nvml->device, total_free_used) != 0)
        return pllm_fail(PLLM_EUNSUPPORTED, 0,
                         "NVML (" NVML_LIBRARY ") does not tell how much memory the GPU uses");
    *bytes_out = total_free_used[2];
    return PLLM_OK;
}

void cuda_nvml_driver_version(const char *library, char *text, size_t text_bytes)
{
    cuda_nvml nvml;
    text[0] = 0;
    if (!nvml_load(&nvml, library)) return;
    int (*version)(char *, uint32_t) =
        (int (*)(char *, uint32_t))function_of(dlsym(nvml.library, "nvmlSystemGetDriverVersion"));
    if (!version || version(text, (uint32_t)text_bytes) != 0) text[0] = 0;
    cuda_nvml_close(&nvml);
}
