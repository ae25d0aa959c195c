/* memory_copy.h - the caller's bytes to and from pages of a device that the CPU can't read: over a
 * stream of its own and a staging buffer in two halves, so that copying into one half and the
 * link's work on the other go on at once. Private to src/pager.
 *
 * Where the device has views nothing of this is made or used. Every call waits for its own work, so
 * a page is done when it is unpinned. Threads: one caller at a time, as the memory. */
#ifndef PLLM_PAGER_MEMORY_COPY_H
#define PLLM_PAGER_MEMORY_COPY_H

#include "device/device.h"

typedef struct memory_copier {
    pllm_device *device;
    pllm_stream *stream;
    pllm_event *events[2]; /* of each half: its last copy */
    char *staging;
} memory_copier;

/* Makes the parts on first use. Errors: ENOMEM, EDEVICE. */
int pllm_memory_copier_open(memory_copier *copier, pllm_device *device);
void pllm_memory_copier_close(memory_copier *copier); /* of zeros: fine */

/* Errors: EDEVICE; then any part may have been moved, and none is still moving. */
int pllm_memory_copy_in(memory_copier *copier, pllm_va to, const void *from, uint64_t bytes);
int pllm_memory_copy_out(memory_copier *copier, void *to, pllm_va from, uint64_t bytes);
int pllm_memory_copy_zero(memory_copier *copier, pllm_va to, uint64_t bytes);

#endif
