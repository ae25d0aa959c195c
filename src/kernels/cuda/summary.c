#include "kernels/cuda/summary.h"
#include "kernels/cuda/fatbin.h"

struct pllm_cuda_summary {
    const pllm_context *context;
    pllm_device *device;
    pllm_cuda_module *module;
    pllm_cuda_function *summarise;
};

int pllm_cuda_summary_open(const pllm_context *context, pllm_device *device,
                           pllm_cuda_summary **summary_out)
{
    *summary_out = NULL;
    pllm_cuda_summary *s = pllm_alloc(context, sizeof *s);
    if (!s) return pllm_fail_memory("the summary kernel", sizeof *s);
    *s = (pllm_cuda_summary){.context = context, .device = device};
    int status = pllm_fatbin_load(device, "summary", &s->module);
    if (status == PLLM_OK)
        status = pllm_cuda_function_get(s->module, "pllm_summarise", 0, &s->summarise);
    if (status < 0) {
        pllm_cuda_summary_close(s);
        return status;
    }
    *summary_out = s;
    return PLLM_OK;
}

void pllm_cuda_summary_close(pllm_cuda_summary *summary)
{
    if (!summary) return;
    if (summary->module) pllm_cuda_module_close(summary->module);
    pllm_free(summary->context, summary);
}

int pllm_cuda_summarise(pllm_cuda_summary *summary, pllm_stream *stream, const pllm_kv_shape *shape,
                        pllm_va blocks, uint64_t block_bytes, pllm_va pairs, uint32_t count,
                        pllm_va summaries)
{
    enum { HEADS_MAX = 65535 };
    if (count == 0) return PLLM_OK;
    if (shape->kv_heads > HEADS_MAX || block_bytes < pllm_kv_block_bytes(shape, shape->open) ||
        pairs % 4 || summaries % 2)
        return pllm_fail(PLLM_EINVAL, 0,
                         "summaries of %u heads from blocks of %llu bytes: too many heads, blocks "
                         "too small, or not aligned",
                         shape->kv_heads, (unsigned long long)block_bytes);
    uint64_t summary_bytes = pllm_kv_summary_bytes(shape);
    uint32_t head_dim = shape->head_dim;
    int dtype = (int)shape->open;
    void *arguments[] = {&blocks,        &block_bytes, &pairs, &summaries,
                         &summary_bytes, &head_dim,    &dtype};
    pllm_cuda_grid grid = {.x = count,
                           .y = shape->kv_heads,
                           .z = PLLM_SUMMARY_RUNS,
                           .threads = head_dim < 128 ? (head_dim + 31) / 32 * 32 : 128};
    return pllm_cuda_launch(summary->device, stream, summary->summarise, &grid, arguments);
}
