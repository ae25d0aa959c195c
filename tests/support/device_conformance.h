/* device_conformance.h - one suite that every device must pass unchanged: the words of
 * src/device/device.h as tests. A device's own program says how to open one and calls run. */
#ifndef PLLM_TESTS_DEVICE_CONFORMANCE_H
#define PLLM_TESTS_DEVICE_CONFORMANCE_H

#include "device/device.h"

typedef struct device_conformance {
    const char *name;                               /* of the group, in the report */
    pllm_device *(*open)(void *user);               /* fails the running test itself if it can't */
    void (*close)(pllm_device *device, void *user); /* and checks that nothing leaked */
    void *user;
    uint64_t capacity_bytes; /* what the opened device gives in all; at least 64 granules */
    int one_thread;          /* streams and events take one thread at a time for all (sim) */
} device_conformance;

/* The number of failed tests. */
int device_conformance_run(const device_conformance *how);

#endif
