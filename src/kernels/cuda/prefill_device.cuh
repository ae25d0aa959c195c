/* prefill_device.cuh - what the prefill kernels share: which tile of which item and head a CTA
 * does, and conversions.
 *
 * The grid is one-dimensional. Items come one after the other; within one, bands of heads; within a
 * band, query tiles from the last (which sees most) to the first, and the band's heads innermost:
 * long CTAs start first, and heads that run together share what they read through L2. */
#ifndef PLLM_KERNELS_CUDA_PREFILL_DEVICE_CUH
#define PLLM_KERNELS_CUDA_PREFILL_DEVICE_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>
#include "prefill_args.h"

struct prefill_item { /* pllm_cuda_prefill_item */
    uint32_t row_first, rows, position, stage_first, table_row, reserved[3];
};

struct prefill_work {
    uint32_t row_first, rows, position, stage_first; /* the item's */
    const uint32_t *table;                           /* of the item's sequence */
    uint32_t head, tile;                             /* tile: absolute position / tile rows */
};

/* 0: nothing to do here. */
template <uint32_t TILE_ROWS>
__device__ __forceinline__ bool prefill_find(const prefill_args &a, uint32_t index, prefill_work *w)
{
    const uint32_t per_item = a.heads * a.tiles, per_band = a.band * a.tiles;
    const uint32_t item_index = index / per_item, in_item = index - item_index * per_item;
    const uint32_t band = in_item / per_band, in_band = in_item - band * per_band;
    const uint32_t back = in_band / a.band; /* tiles from the last one */
    const prefill_item *item = (const prefill_item *)a.items + item_index;
    const uint4 head = *(const uint4 *)item;
    w->row_first = head.x, w->rows = head.y, w->position = head.z, w->stage_first = head.w;
    if (w->rows == 0) return false;
    const uint32_t first = w->position / TILE_ROWS;
    const uint32_t last = (w->position + w->rows - 1) / TILE_ROWS;
    if (back > last - first) return false;
    w->tile = last - back;
    w->head = band * a.band + (in_band - back * a.band);
    w->table = (const uint32_t *)a.table + (uint64_t)item->table_row * a.table_stride;
    return true;
}

template <typename T> __device__ __forceinline__ float prefill_to_float(T x);
template <> __device__ __forceinline__ float prefill_to_float<float>(float x)
{
    return x;
}
template <> __device__ __forceinline__ float prefill_to_float<__half>(__half x)
{
    return __half2float(x);
}
template <> __device__ __forceinline__ float prefill_to_float<__nv_bfloat16>(__nv_bfloat16 x)
{
    return __bfloat162float(x);
}

enum { PREFILL_F32 = 0, PREFILL_F16 = 1, PREFILL_BF16 = 2 }; /* pllm_dtype */

/* Elements i and i + 1 of an output row; i is even. */
__device__ __forceinline__ void prefill_store2(uint64_t out, uint32_t dtype, uint64_t i, float x,
                                               float y)
{
    if (dtype == PREFILL_F32)
        *(float2 *)((float *)out + i) = make_float2(x, y);
    else if (dtype == PREFILL_F16)
        *(__half2 *)((__half *)out + i) = __floats2half2_rn(x, y);
    else
        *(__nv_bfloat162 *)((__nv_bfloat16 *)out + i) = __floats2bfloat162_rn(x, y);
}

#endif
