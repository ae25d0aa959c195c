/* disk.c - picks a backend. */
#include "tier/disk.h"

int pllm_disk_open(const pllm_context *context, const pllm_disk_options *options,
                   pllm_disk **disk_out)
{
    (void)context, (void)options;
    *disk_out = NULL;
    return pllm_fail(PLLM_EUNSUPPORTED, 0, "spilling to disk is not there yet");
}
