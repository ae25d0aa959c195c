/* tensor.h - who fills and sums a tensor for bench tensor: the processor, or a GPU.
 *
 * A worker is given pieces, stretches of the tensor that are resident at some address of the
 * device, and works on them in its own time; a piece must stay where it is until wait says that the
 * call it came with is done. A sum does not depend on how the tensor is cut: elements are added
 * within tiles of 16,384, tiles in their order. */
#ifndef PLLM_CLI_TENSOR_H
#define PLLM_CLI_TENSOR_H

#include "device/device.h"

enum { TENSOR_TILE = 16384 };

typedef struct tensor_piece {
    pllm_va address;
    uint64_t first, elements; /* f32; first: of the tensor, whole tiles */
} tensor_piece;

typedef struct tensor_worker tensor_worker;
typedef struct tensor_worker_ops {
    void (*close)(tensor_worker *worker);
    /* Normal numbers; element i depends on i and the worker's seed. Calls are numbered from 0,
     * fills and sums together. */
    int (*fill)(tensor_worker *worker, const tensor_piece *pieces, uint32_t count);
    int (*sum)(tensor_worker *worker, const tensor_piece *pieces, uint32_t count);
    int (*add)(tensor_worker *worker);                 /* the sums of all tiles, a call too */
    int (*wait)(tensor_worker *worker, uint64_t call); /* until that call is done */
    double (*total)(tensor_worker *worker);            /* what add made, when that is done */
} tensor_worker_ops;

struct tensor_worker { /* first member of each kind */
    const tensor_worker_ops *ops;
    const pllm_context *context;
    pllm_device *device;
    uint64_t tiles, seed;
};

int tensor_worker_open_host(const pllm_context *context, pllm_device *device, uint64_t tiles,
                            uint64_t seed, tensor_worker **worker_out);
/* EUNSUPPORTED: built without CUDA kernels. */
int tensor_worker_open_cuda(const pllm_context *context, pllm_device *device, uint64_t tiles,
                            uint64_t seed, tensor_worker **worker_out);

#endif
