/* fatbin.c - see the header. The table is short: it is walked. */
#include "kernels/cuda/fatbin.h"
#include <string.h>

const pllm_fatbin *pllm_fatbin_find(const char *name)
{
    for (const pllm_fatbin *const *entry = pllm_fatbins; *entry; entry++)
        if (strcmp((*entry)->name, name) == 0) return *entry;
    return NULL;
}
