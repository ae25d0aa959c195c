/* transfer.c - the launch of gather.cu. */
#include "kernels/cuda/transfer.h"
#include "base/context.h"
#include "kernels/cuda/fatbin.h"

/* Measured on an H200 (bench_cuda_rows): slices of 4 KiB and up by 1, 2, 4, 8 blocks at 30, 49.5,
 * 50.8, 51.1 GB/s, a kernel beside that reads memory slowed by 12, 14, 16, 20%. */
enum { CTAS = 4, CTAS_MAX = 1024 };

struct pllm_cuda_transfer {
    const pllm_context *context;
    pllm_device *device;
    pllm_cuda_module *module;
    pllm_cuda_function *gather;
};

int pllm_cuda_transfer_open(const pllm_context *context, pllm_device *device,
                            pllm_cuda_transfer **transfer_out)
{
    *transfer_out = NULL;
    pllm_cuda_transfer *t = pllm_alloc_array(context, 1, sizeof *t);
    if (!t) return pllm_fail_memory("transfer kernels", sizeof *t);
    *t = (pllm_cuda_transfer){.context = context, .device = device};
    int status = pllm_fatbin_load(device, "gather", &t->module);
    if (status == PLLM_OK) status = pllm_cuda_function_get(t->module, "pllm_gather", 0, &t->gather);
    if (status < 0) {
        pllm_cuda_transfer_close(t);
        return status;
    }
    *transfer_out = t;
    return PLLM_OK;
}

void pllm_cuda_transfer_close(pllm_cuda_transfer *t)
{
    if (!t) return;
    if (t->module) pllm_cuda_module_close(t->module);
    pllm_free(t->context, t);
}

int pllm_cuda_gather(pllm_cuda_transfer *t, pllm_stream *stream, pllm_va slices, uint32_t count,
                     uint32_t ctas)
{
    if (count == 0) return PLLM_OK;
    if (slices % 8 != 0) return pllm_fail(PLLM_EINVAL, 0, "slice descriptors lie at 8 bytes");
    if (ctas == 0) ctas = CTAS;
    if (ctas > CTAS_MAX)
        return pllm_fail(PLLM_EINVAL, 0, "%u blocks to gather with: at most 1,024", ctas);
    /* A few large slices are cut up, so that no block waits for another. */
    uint32_t split = count >= 16 * ctas ? 1 : (16 * ctas + count - 1) / count;
    void *arguments[] = {&slices, &count, &split};
    pllm_cuda_grid grid = {.x = ctas, .y = 1, .z = 1, .threads = 1024};
    return pllm_cuda_launch(t->device, stream, t->gather, &grid, arguments);
}
