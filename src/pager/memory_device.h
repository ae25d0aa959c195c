/* memory_device.h - a memory on a device that is open already: for programs that also work on it.
 */
#ifndef PLLM_PAGER_MEMORY_DEVICE_H
#define PLLM_PAGER_MEMORY_DEVICE_H

#include <pagedllm/memory.h>
#include "device/device.h"

/* As pllm_memory_open, but device (borrowed) is used and options->device is not looked at. */
int pllm_memory_open_on(const pllm_context *context, pllm_device *device,
                        const pllm_memory_options *options, pllm_memory **memory_out);

#endif
