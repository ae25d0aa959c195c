/* tensor.cu - one long f32 tensor, in pieces (pages) that may lie anywhere: filled with normal
 * numbers, and summed in an order that does not depend on where or how large the pieces are.
 *
 * The tensor is cut into tiles of 16,384 elements by index; a block takes a tile at a time. A
 * thread of a tile adds its 32 elements in f32, a block adds its threads in double, and the sums of
 * tiles are added in double by one block at the end. Bound: each element written, or read, once. */
#include "kernels/cuda/philox.cuh"
#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/tensor_arguments.h"

enum { QUADS = TENSOR_TILE / 4 / TENSOR_THREADS };

/* The next tile of this block: in *at its place, what it is of the tensor, how many elements. */
typedef struct tile {
    float *data;
    uint64_t first;
    uint32_t elements;
} tile;

typedef struct cursor {
    uint32_t piece, before; /* tiles of the pieces before it */
} cursor;

static __device__ __forceinline__ tile tile_at(const tensor_pieces &p, cursor &at, uint32_t number)
{
    uint64_t tiles;
    while (number - at.before >=
           (tiles = (p.piece[at.piece].elements + TENSOR_TILE - 1) / TENSOR_TILE)) {
        at.before += (uint32_t)tiles;
        at.piece++;
    }
    uint64_t offset = (uint64_t)(number - at.before) * TENSOR_TILE;
    uint64_t left = p.piece[at.piece].elements - offset;
    tile t;
    t.data = (float *)p.piece[at.piece].data + offset;
    t.first = p.piece[at.piece].first + offset;
    t.elements = left < TENSOR_TILE ? (uint32_t)left : TENSOR_TILE;
    return t;
}

extern "C" __global__ void __launch_bounds__(TENSOR_THREADS)
    pllm_tensor_fill(const __grid_constant__ tensor_pieces p, float deviation, uint64_t seed)
{
    cursor at = {0, 0};
    for (uint32_t number = blockIdx.x; number < p.tiles; number += gridDim.x) {
        tile t = tile_at(p, at, number);
#pragma unroll
        for (int i = 0; i < QUADS; i++) {
            uint32_t element = 4 * (threadIdx.x + i * TENSOR_THREADS);
            if (element >= t.elements) break;
            float4 v = normals((t.first + element) / 4, seed);
            v = make_float4(v.x * deviation, v.y * deviation, v.z * deviation, v.w * deviation);
            if (element + 4 <= t.elements) {
                *(float4 *)(t.data + element) = v;
                continue;
            }
            float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int j = 0; j < 3; j++)
                if (element + j < t.elements) t.data[element + j] = values[j];
        }
    }
}

/* sums[tile of the tensor] */
extern "C" __global__ void __launch_bounds__(TENSOR_THREADS)
    pllm_tensor_sum(const __grid_constant__ tensor_pieces p, double *sums)
{
    __shared__ double scratch[2][32];
    cursor at = {0, 0};
    int turn = 0; /* two scratches: one barrier a tile is enough */
    for (uint32_t number = blockIdx.x; number < p.tiles; number += gridDim.x, turn ^= 1) {
        tile t = tile_at(p, at, number);
        float4 v[QUADS];
#pragma unroll
        for (int i = 0; i < QUADS; i++) {
            uint32_t element = 4 * (threadIdx.x + i * TENSOR_THREADS);
            v[i] = make_float4(0, 0, 0, 0);
            if (element + 4 <= t.elements) {
                v[i] = __ldcs((const float4 *)(t.data + element));
            } else if (element < t.elements) {
                v[i].x = t.data[element];
                if (element + 1 < t.elements) v[i].y = t.data[element + 1];
                if (element + 2 < t.elements) v[i].z = t.data[element + 2];
            }
        }
        float sum = 0;
#pragma unroll
        for (int i = 0; i < QUADS; i++) sum += (v[i].x + v[i].y) + (v[i].z + v[i].w);
        double all = rows_block_sum((double)sum, scratch[turn]);
        if (threadIdx.x == 0) sums[t.first / TENSOR_TILE] = all;
    }
}

/* One block: thread t adds sums t, t + 1024, ...; then the order of rows_block_sum. */
extern "C" __global__ void __launch_bounds__(1024)
    pllm_tensor_total(const double *sums, uint64_t count, double *total_out)
{
    __shared__ double scratch[32];
    double sum = 0;
#pragma unroll 8
    for (uint64_t i = threadIdx.x; i < count; i += 1024) sum += sums[i];
    sum = rows_block_sum(sum, scratch);
    if (threadIdx.x == 0) *total_out = sum;
}
