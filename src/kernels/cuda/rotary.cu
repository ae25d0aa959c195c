/* rotary.cu - a row of q, k, v: q rotated into q_out, k rotated and v as it is into the open block.
 *
 * The angle is position * inverse_frequency. At position 131,071 an f32 product is off by 0.008, so
 * the product and its reduction to a quarter turn are done in double, about 5 operations an angle
 * (cheap even where double runs at 1/64 of the rate, because a row's angles are made once for all
 * heads); the sine and cosine of the rest, at most an eighth of a turn, are f32. Against the
 * cosine in double this is off by less than 1e-7.
 *
 * Work of a row, in pieces that do not depend on each other (jobs): first the heads of q and k,
 * each as `eights` of rotated elements (wide, pairs half apart: eight pairs; interleaved: four
 * pairs) and eights of elements that are not rotated; then the heads of v as eights. A block of
 * threads makes the angles of its row in shared memory, then takes pieces. The version for odd
 * sizes takes single pairs and elements. Each product and sum is rounded by itself, as the CPU does.
 *
 *   block of row i: blocks + (row_block[i] * block_multiple + block_add) * block_bytes
 *   slice of head h: + h * 64 * head_dim elements;  K row: position % 32;  V row: + 32 */
#include "kernels/cuda/rotary_arguments.h"
#include "kernels/cuda/rows.cuh"

enum { NO_BLOCK = 0xffffffff }; /* row_block: k and v of this row are not wanted */

static __device__ __forceinline__ float2 angle_of(uint32_t position, float inverse_frequency)
{
    double quarters = (double)position * (double)inverse_frequency * 0.63661977236758134308;
    double whole = rint(quarters);
    float sine, cosine;
    sincospif((float)(quarters - whole) * 0.5f, &sine, &cosine);
    uint32_t quadrant = (uint32_t)(long long)whole & 3;
    float c = quadrant & 1 ? sine : cosine, s = quadrant & 1 ? cosine : sine;
    if (quadrant == 1 || quadrant == 2) c = -c;
    if (quadrant & 2) s = -s;
    return make_float2(c, s);
}

static __device__ __forceinline__ void rotate(float &a, float &b, float2 angle)
{
    float x = __fsub_rn(__fmul_rn(a, angle.x), __fmul_rn(b, angle.y));
    b = __fadd_rn(__fmul_rn(a, angle.y), __fmul_rn(b, angle.x));
    a = x;
}

/* Where a head of the row goes: base, first element, format. */
typedef struct place {
    void *base;
    uint64_t first;
    int dtype;
} place;

static __device__ __forceinline__ void row_angles(const rotary_arguments &r, float2 *angles,
                                                  uint32_t position)
{
    for (uint32_t i = threadIdx.x; i < r.rotary_dims / 2; i += blockDim.x)
        angles[i] = angle_of(position, ((const float *)r.inverse_frequency)[i]);
    __syncthreads();
}

/* head: of q, then k, then v, in the order of the row. base NULL: nowhere. */
static __device__ __forceinline__ place head_place(const rotary_arguments &r, uint32_t row,
                                                   uint32_t position, uint32_t head)
{
    place to;
    if (head < r.heads) {
        to.base = (void *)r.q_out;
        to.first = row * r.q_stride + (uint64_t)head * r.head_dim;
        to.dtype = r.q_dtype;
        return to;
    }
    uint32_t block = ((const uint32_t *)r.row_block)[row], kv = head - r.heads;
    uint32_t value = kv >= r.kv_heads;
    if (value) kv -= r.kv_heads;
    uint64_t index = (uint64_t)block * r.block_multiple + r.block_add;
    to.base = block == NO_BLOCK ? NULL : (void *)(r.blocks + index * r.block_bytes);
    to.first = ((uint64_t)kv * 64 + value * 32 + position % 32) * r.head_dim;
    to.dtype = r.block_dtype;
    return to;
}

/* A piece of a row: eight elements, and their partners half the rotated part away. */
typedef struct piece {
    uint32_t head, element; /* the first of the eight, in its head */
    int turned;
} piece;

static __device__ __forceinline__ piece piece_of(const rotary_arguments &r, uint32_t job)
{
    uint32_t half = r.rotary_dims / 2, eights = r.interleaved ? half / 4 : half / 8;
    uint32_t per_rotated = eights + (r.head_dim - r.rotary_dims) / 8, per_value = r.head_dim / 8;
    piece p;
    uint32_t at;
    if (job < r.jobs_rotated) {
        p.head = job / per_rotated;
        at = job % per_rotated;
        p.turned = at < eights;
        if (!p.turned) at += r.rotary_dims / 8 - eights;
    } else {
        p.head = r.heads + r.kv_heads + (job - r.jobs_rotated) / per_value;
        at = (job - r.jobs_rotated) % per_value;
        p.turned = 0;
    }
    p.element = 8 * at;
    return p;
}

static __device__ __forceinline__ void piece_load(const rotary_arguments &r, uint32_t row,
                                                  const piece &p, float (&a)[8], float (&b)[8])
{
    const void *from = (const void *)r.qkv;
    uint64_t first = row * r.qkv_stride + (uint64_t)p.head * r.head_dim + p.element;
    rows_load8(a, from, first, r.qkv_dtype);
    if (p.turned && !r.interleaved) rows_load8(b, from, first + r.rotary_dims / 2, r.qkv_dtype);
}

static __device__ __forceinline__ void piece_store(const rotary_arguments &r, const float2 *angles,
                                                   uint32_t row, uint32_t position,
                                                   const piece &p, float (&a)[8], float (&b)[8])
{
    place to = head_place(r, row, position, p.head);
    if (!to.base) return;
    to.first += p.element;
    if (p.turned && !r.interleaved) {
#pragma unroll
        for (int i = 0; i < 8; i++) rotate(a[i], b[i], angles[p.element + i]);
        rows_store8(to.base, to.first + r.rotary_dims / 2, to.dtype, b);
    } else if (p.turned) {
#pragma unroll
        for (int i = 0; i < 4; i++) rotate(a[2 * i], a[2 * i + 1], angles[p.element / 2 + i]);
    }
    rows_store8(to.base, to.first, to.dtype, a);
}

/* Grid: rows x parts; a part takes every parts-th run of jobs. The first loads are under way while
 * the angles are made. */
extern "C" __global__ void __launch_bounds__(128) pllm_rotary_wide(const rotary_arguments r)
{
    __shared__ float2 angles[128];
    float a[8], b[8];
    uint32_t row = blockIdx.x, job = blockIdx.y * blockDim.x + threadIdx.x;
    piece p = piece_of(r, job < r.jobs ? job : 0);
    rows_begin();
    piece_load(r, row, p, a, b);
    uint32_t position = ((const uint32_t *)r.positions)[row];
    row_angles(r, angles, position);
    while (job < r.jobs) {
        piece_store(r, angles, row, position, p, a, b);
        job += gridDim.y * blockDim.x;
        if (job >= r.jobs) break;
        p = piece_of(r, job);
        piece_load(r, row, p, a, b);
    }
}

static __device__ __forceinline__ void job_any(const rotary_arguments &r, const float2 *angles,
                                               uint32_t row, uint32_t position, uint32_t job)
{
    const void *from = (const void *)r.qkv;
    uint32_t half = r.rotary_dims / 2, per_rotated = r.head_dim - half, head, piece;
    uint32_t apart = 0; /* from an element to its partner; 0: not rotated */
    if (job < r.jobs_rotated) {
        head = job / per_rotated;
        piece = job % per_rotated;
        if (piece < half) apart = r.interleaved ? 1 : half;
    } else {
        head = r.heads + r.kv_heads + (job - r.jobs_rotated) / r.head_dim;
        piece = (job - r.jobs_rotated) % r.head_dim;
    }
    uint32_t element = piece;
    if (apart)
        element = r.interleaved ? 2 * piece : piece;
    else if (job < r.jobs_rotated)
        element = piece + half;
    place to = head_place(r, row, position, head);
    uint64_t first = row * r.qkv_stride + (uint64_t)head * r.head_dim + element;
    if (!to.base) return;
    float a = rows_load(from, first, r.qkv_dtype);
    if (apart) {
        float b = rows_load(from, first + apart, r.qkv_dtype);
        rotate(a, b, angles[piece]);
        rows_store(to.base, to.first + element + apart, to.dtype, b);
    }
    rows_store(to.base, to.first + element, to.dtype, a);
}

extern "C" __global__ void __launch_bounds__(128) pllm_rotary_any(const rotary_arguments r)
{
    __shared__ float2 angles[128];
    rows_begin();
    uint32_t row = blockIdx.x, position = ((const uint32_t *)r.positions)[row];
    row_angles(r, angles, position);
    for (uint32_t job = blockIdx.y * blockDim.x + threadIdx.x; job < r.jobs;
         job += gridDim.y * blockDim.x)
        job_any(r, angles, row, position, job);
}
