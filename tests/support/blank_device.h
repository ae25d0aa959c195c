/* blank_device.h - a device without memory: addresses and chunks are numbers, work is over as soon
 * as it is submitted. For allocators at sizes that no test machine should have to hold. It checks
 * what a driver would: ranges mapped twice, unmapped or destroyed while mapped. Threads: one. */
#ifndef PLLM_TESTS_BLANK_DEVICE_H
#define PLLM_TESTS_BLANK_DEVICE_H

#include "device/device.h"

/* granularity: 2 MiB, as on a GPU. Fails the running test itself where it can't. Closing fails it
 * if anything is alive. */
pllm_device *blank_device_open(uint64_t capacity_bytes);
uint64_t blank_device_live_bytes(const pllm_device *device);

#endif
