/* vmm_rig.h - a vmm to test, on the host device or on a CUDA device whose driver is in host memory
 * (tests/fake), with every device call counted and, if asked for, one of them failing.
 *
 * The memory of both can be touched through pointers. Closing asserts that nothing is left: no
 * device object, no allocation, nothing of the driver. */
#ifndef PLLM_TESTS_VMM_RIG_H
#define PLLM_TESTS_VMM_RIG_H

#include <pagedllm/vmm.h>
#include "device/cuda.h"
#include "vmm/elastic.h"
#include "failing_context.h"
#include "../fake/fake_cuda.h"

#define RIG_PAGE ((uint64_t)64 << 10)

typedef enum vmm_rig_kind {
    RIG_HOST,
    RIG_CUDA,
    RIG_CUDA_LATE /* work is done when asked for */
} vmm_rig_kind;

typedef struct vmm_rig {
    failing_context memory;
    fake_cuda *fake;
    pllm_device *inner, *device; /* device: the counting one */
    pllm_vmm *vmm;
    pllm_stream *stream;
    vmm_rig_kind kind;
} vmm_rig;

/* The driver of RIG_CUDA: whoever uses it depends on fake_cuda (tests/fake/CMakeLists.txt). */
#define RIG_LIBRARY PLLM_BINARY_DIR "/tests/libfake_cuda.so"
#define vmm_rig_open(rig, kind, limit_pages, capacity_pages) \
    vmm_rig_open_with(rig, RIG_LIBRARY, kind, limit_pages, capacity_pages)

/* In place. limit_pages and capacity_pages (of the device) count RIG_PAGEs. No background. */
void vmm_rig_open_with(vmm_rig *rig, const char *library, vmm_rig_kind kind, uint64_t limit_pages,
                       uint64_t capacity_pages);
void vmm_rig_close(vmm_rig *rig);
/* A model with pages of RIG_PAGE; options may be NULL, else its page_bytes and struct_bytes are
 * filled in. */
pllm_vmm_pool *vmm_rig_model(vmm_rig *rig, const char *name, uint64_t capacity_pages,
                             const pllm_vmm_pool_options *options);
pllm_vmm_pool_stats vmm_rig_stats(pllm_vmm_pool *pool); /* after its invariants were checked */
uint64_t vmm_rig_physical(const vmm_rig *rig);          /* of all models, in RIG_PAGEs */
unsigned char *vmm_rig_bytes(pllm_vmm_pool *pool, uint64_t offset);
void vmm_rig_fill(pllm_vmm_pool *pool, uint64_t offset, uint64_t bytes, unsigned char value);
/* Asserts that every byte is the value. */
void vmm_rig_all(pllm_vmm_pool *pool, uint64_t offset, uint64_t bytes, unsigned char value);
/* Asserts that a call failed so, with a sentence that has these words. */
void vmm_rig_refused(int status, int expected, const char *words);

/* Two tests of one function, on both kinds of device. */
extern vmm_rig_kind vmm_rig_host, vmm_rig_cuda, vmm_rig_cuda_late;
#define ON_HOST(test)                                    \
    {                                                    \
#test " (host)", test, NULL, NULL, &vmm_rig_host \
    }
#define ON_CUDA(test)                                    \
    {                                                    \
#test " (cuda)", test, NULL, NULL, &vmm_rig_cuda \
    }
#define ON_CUDA_LATE(test)                                               \
    {                                                                    \
#test " (cuda, late work)", test, NULL, NULL, &vmm_rig_cuda_late \
    }
#define ON_BOTH(test) ON_HOST(test), ON_CUDA(test)

#endif
