/* fatbin.c - see the header. The table is short: it is walked. */
#include "kernels/cuda/fatbin.h"
#include <string.h>

const pllm_fatbin *pllm_fatbin_find(const char *name)
{
    for (const pllm_fatbin *const *entry = pllm_fatbins; *entry; entry++)
        if (strcmp((*entry)->name, name) == 0) return *entry;
    return NULL;
}

int pllm_fatbin_load(pllm_device *device, const char *name, pllm_cuda_module **module_out)
{
    *module_out = NULL;
    const pllm_fatbin *fatbin = pllm_fatbin_find(name);
    if (!fatbin)
        return pllm_fail(PLLM_EUNSUPPORTED, 0,
                         "this build has no CUDA kernels (%s is missing): build it with nvcc and "
                         "-DPLLM_CUDA=ON",
                         name);
    return pllm_cuda_module_open(device, fatbin->data, fatbin->bytes, module_out);
}
