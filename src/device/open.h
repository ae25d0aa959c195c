/* open.h - a device by the name a person gives it: "host", "cuda", "cuda:1", "cuda:GPU-0a1b...". */
#ifndef PLLM_DEVICE_OPEN_H
#define PLLM_DEVICE_OPEN_H

#include "device/device.h"

/* name NULL: "host". host: what a host device is opened with. Errors: EINVAL (no such name, with a
 * sentence), and those of pllm_device_open_host and pllm_device_open_cuda. */
int pllm_device_open_name(const pllm_context *context, const char *name,
                          const pllm_host_device_options *host, pllm_device **device_out);
int pllm_device_name_is_cuda(const char *name);
/* Is it such a name at all, whether or not the device is there? EINVAL with a sentence if not. */
int pllm_device_name_check(const char *name);

/* Memory of the machine, or the smallest limit of this process's control groups, if that is less.
 */
uint64_t pllm_machine_total_bytes(void);

#endif
