/* tensor_cuda.c - filling and summing by a GPU: a kernel a call on one stream, an event behind it.
 *
 * Memory of its own on the device: the sums of tiles, and the total in a page of host memory that
 * the last kernel writes. Call n is over when event n % EVENTS is, as last recorded; EVENTS is more
 * than the calls that are ever waited for at once. */
#include "cli/tensor.h"
#include "kernels/cuda/rows.h"

enum { EVENTS = 64, PIECES = 128, HOST_BYTES = 4096 };

_Static_assert((int)PLLM_CUDA_TILE == (int)TENSOR_TILE, "one order of sums");

typedef struct cuda_worker {
    tensor_worker base;
    pllm_cuda_rows *rows;
    pllm_stream *stream;
    pllm_event *events[EVENTS];
    uint64_t calls;
    pllm_va sums;
    pllm_chunk *chunk;
    uint64_t sum_bytes;
    int mapped;
    void *host;
} cuda_worker;

/* The call just made has an event behind it. */
static int call_end(cuda_worker *w)
{
    const pllm_device_ops *ops = w->base.device->ops;
    return ops->event_record(w->base.device, w->events[w->calls++ % EVENTS], w->stream);
}

static int call(cuda_worker *w, const tensor_piece *pieces, uint32_t count, int sum)
{
    int status = PLLM_OK;
    while (status == PLLM_OK && count > 0) {
        pllm_cuda_piece some[PIECES];
        uint32_t n = count < PIECES ? count : PIECES;
        for (uint32_t i = 0; i < n; i++)
            some[i] = (pllm_cuda_piece){pieces[i].address, pieces[i].first, pieces[i].elements};
        status = sum ? pllm_cuda_tensor_sum(w->rows, w->stream, some, n, w->sums)
                     : pllm_cuda_tensor_fill(w->rows, w->stream, some, n, 1.0f, w->base.seed);
        pieces += n;
        count -= n;
    }
    return status == PLLM_OK ? call_end(w) : status;
}

static int cuda_fill(tensor_worker *worker, const tensor_piece *pieces, uint32_t count)
{
    return call((cuda_worker *)worker, pieces, count, 0);
}

static int cuda_sum(tensor_worker *worker, const tensor_piece *pieces, uint32_t count)
{
    return call((cuda_worker *)worker, pieces, count, 1);
}

static int cuda_wait(tensor_worker *worker, uint64_t number)
{
    cuda_worker *w = (cuda_worker *)worker;
    return worker->device->ops->event_wait(worker->device, w->events[number % EVENTS], UINT64_MAX);
}

static int cuda_add(tensor_worker *worker)
{
    cuda_worker *w = (cuda_worker *)worker;
    pllm_va to = pllm_cuda_host_va(worker->device, w->host);
    if (!to) return pllm_fail(PLLM_EDEVICE, 0, "the kernel that adds up cannot reach host memory");
    int status = pllm_cuda_tensor_total(w->rows, w->stream, w->sums, worker->tiles, to);
    return status == PLLM_OK ? call_end(w) : status;
}

static double cuda_total(tensor_worker *worker)
{
    return *(volatile double *)((cuda_worker *)worker)->host;
}

static void cuda_close(tensor_worker *worker)
{
    cuda_worker *w = (cuda_worker *)worker;
    pllm_device *device = worker->device;
    if (w->stream) (void)device->ops->stream_sync(device, w->stream);
    for (int i = 0; i < EVENTS; i++) device->ops->event_close(device, w->events[i]);
    device->ops->stream_close(device, w->stream);
    if (w->mapped) device->ops->unmap(device, w->sums, w->chunk);
    device->ops->chunk_destroy(device, w->chunk);
    if (w->sums) device->ops->release(device, w->sums, w->sum_bytes);
    if (w->host) device->ops->host_free(device, w->host, HOST_BYTES);
    pllm_cuda_rows_close(w->rows);
    pllm_free(worker->context, w);
}

static const tensor_worker_ops cuda_ops = {
    .close = cuda_close,
    .fill = cuda_fill,
    .sum = cuda_sum,
    .add = cuda_add,
    .wait = cuda_wait,
    .total = cuda_total,
};

static int parts_open(cuda_worker *w)
{
    pllm_device *device = w->base.device;
    const pllm_device_ops *ops = device->ops;
    pllm_device_info info;
    int status = pllm_cuda_rows_open(w->base.context, device, &w->rows);
    if (status == PLLM_OK) status = ops->info(device, &info);
    if (status < 0) return status;
    uint64_t granule = info.granularity_bytes;
    w->sum_bytes = (w->base.tiles * sizeof(double) + granule - 1) / granule * granule;
    status = ops->host_alloc(device, HOST_BYTES, &w->host);
    if (status == PLLM_OK) status = ops->reserve(device, w->sum_bytes, &w->sums);
    if (status == PLLM_OK) status = ops->chunk_create(device, w->sum_bytes, &w->chunk);
    if (status == PLLM_OK) status = ops->map(device, w->sums, &w->chunk, 1);
    w->mapped = status == PLLM_OK;
    if (status == PLLM_OK) status = ops->stream_open(device, &w->stream);
    for (int i = 0; status == PLLM_OK && i < EVENTS; i++)
        status = ops->event_open(device, &w->events[i]);
    return status;
}

int tensor_worker_open_cuda(const pllm_context *context, pllm_device *device, uint64_t tiles,
                            uint64_t seed, tensor_worker **worker_out)
{
    *worker_out = NULL;
    cuda_worker *w = pllm_alloc(context, sizeof *w);
    if (!w) return pllm_fail_memory("a worker", sizeof *w);
    w->base = (tensor_worker){&cuda_ops, context, device, tiles, seed};
    int status = parts_open(w);
    if (status < 0) {
        cuda_close(&w->base);
        return status;
    }
    *worker_out = &w->base;
    return PLLM_OK;
}
