/* open.c - from names to devices; see the header. */
#include "device/open.h"
#include <stdlib.h>
#include <string.h>
#include "device/cuda.h"

int pllm_device_name_is_cuda(const char *name)
{
    return name && strncmp(name, "cuda", 4) == 0 && (name[4] == '\0' || name[4] == ':');
}

/* After "cuda:": a number, or a UUID or its beginning. */
static int read_name(const char *name, pllm_cuda_device_options *cuda)
{
    if (!name || strcmp(name, "host") == 0) return PLLM_OK;
    if (!pllm_device_name_is_cuda(name))
        return pllm_fail(PLLM_EINVAL, 0,
                         "device '%s' is unknown: use host, cuda, cuda:NUMBER or cuda:UUID", name);
    const char *which = name[4] == ':' ? name + 5 : "0";
    char *end;
    unsigned long index = strtoul(which, &end, 10);
    if (*which >= '0' && *which <= '9' && *end == '\0' && index <= UINT32_MAX)
        cuda->index = (uint32_t)index;
    else if (strncmp(which, "GPU-", 4) == 0)
        cuda->uuid = which;
    else
        return pllm_fail(PLLM_EINVAL, 0,
                         "device '%s': after cuda: comes a number, or a UUID that begins GPU-",
                         name);
    return PLLM_OK;
}

int pllm_device_name_check(const char *name)
{
    pllm_cuda_device_options unused;
    return read_name(name, &unused);
}

int pllm_device_open_name(const pllm_context *context, const char *name,
                          const pllm_host_device_options *host, pllm_device **device_out)
{
    *device_out = NULL;
    pllm_cuda_device_options cuda = {.struct_bytes = sizeof cuda};
    int status = read_name(name, &cuda);
    if (status < 0) return status;
    return pllm_device_name_is_cuda(name) ? pllm_device_open_cuda(context, &cuda, device_out)
                                          : pllm_device_open_host(context, host, device_out);
}
