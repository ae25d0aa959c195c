/* attention_generic.cu - decode attention for every KV format and head size, in f32 arithmetic.
 *
 * The path of f32 caches and of head sizes that have no tensor-core kernel. One CTA does one chunk
 * of one KV head of one row, for its whole group. A score is one chain over channels in the thread
 * of its token. An output channel is the sum of `parts` chains over every parts-th token, added in
 * order; parts depends on head_dim only. */
#include "kernels/cuda/attention_device.cuh"

enum { THREADS = 256, TILE = 4 /* heads at a time in the second product */ };

/* Channels c..c+7 of one token's key or value. slice: the KV head's. */
__device__ __forceinline__ void load_eight(uint64_t slice, uint32_t dtype, uint32_t d, bool value,
                                           uint32_t token, uint32_t c, float (&x)[8])
{
    if (dtype == F32) {
        const float4 *from = at<float4>(slice + 4 * (((value ? BLOCK : 0) + token) * d + c));
        float4 a = from[0], b = from[1];
        x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
        x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
    } else if (dtype == F16 || dtype == BF16) {
        uint4 words = *at<uint4>(slice + 2 * (((value ? BLOCK : 0) + token) * d + c));
        const uint32_t w[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (dtype == F16) {
                float2 pair = __half22float2(as_half2(w[i]));
                x[2 * i] = pair.x, x[2 * i + 1] = pair.y;
            } else {
                x[2 * i] = __uint_as_float(w[i] << 16);
                x[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000);
            }
        }
    } else {
        uint32_t bits = dtype == INT8 ? 8 : 4, part = BLOCK * d * bits / 8;
        const uint8_t *data = at<uint8_t>(slice);
        const __half *scales = at<__half>(slice + 2 * part);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            uint32_t channel = c + i, line = value ? token : channel,
                     element = value ? channel : token;
            uint32_t length = value ? d : (uint32_t)BLOCK, half = length / 2, q;
            const uint8_t *at_line = data + (value ? part : 0) + line * length * bits / 8;
            if (dtype == INT8)
                q = at_line[element];
            else
                q = element < half ? at_line[element] & 15 : at_line[element - half] >> 4;
            const __half *s = value ? scales + 2 * d + token : scales + channel;
            const __half *m = value ? scales + 2 * d + BLOCK + token : scales + d + channel;
            x[i] = __half2float(*s) * (float)q + __half2float(*m);
        }
    }
}

struct chunk_shared {
    float q[GROUP_MAX * HEAD_DIM_MAX]; /* [group][head_dim], scaled */
    float p[GROUP_MAX][CHUNK];
    float parts[THREADS * 8];
    float max[GROUP_MAX], sum[GROUP_MAX];
    uint64_t slice[CHUNK_BLOCKS];
};

/* Scores of the chunk's tokens, one thread each. */
__device__ void scores(const pllm_attend_arguments &a, const row_work &w, uint32_t group,
                       uint32_t chunk, chunk_shared *shared)
{
    uint32_t index = threadIdx.x, token = chunk * CHUNK + index, d = a.head_dim;
    float s[GROUP_MAX] = {};
    bool seen = token >= w.first_token && token < w.length;
    if (seen) {
        bool open = token / BLOCK == (w.length - 1) / BLOCK;
        for (uint32_t c = 0; c < d; c += 8) {
            float k[8];
            load_eight(shared->slice[index / BLOCK], open ? a.open_dtype : a.sealed, d, false,
                       token % BLOCK, c, k);
#pragma unroll
            for (int head = 0; head < GROUP_MAX; head++) {
                if (head >= group) break;
#pragma unroll
                for (int i = 0; i < 8; i++) s[head] += shared->q[head * d + c + i] * k[i];
            }
        }
    }
#pragma unroll
    for (int head = 0; head < GROUP_MAX; head++)
        if (head < group) shared->p[head][index] = seen ? s[head] : MINUS_INFINITY;
}

/* Scores become weights; a warp a head at a time. */
__device__ void weights(uint32_t group, chunk_shared *shared)
{
    uint32_t lane = threadIdx.x % 32;
    for (uint32_t head = threadIdx.x / 32; head < group; head += THREADS / 32) {
        float *p = shared->p[head], top = MINUS_INFINITY, sum = 0;
        for (uint32_t i = lane; i < CHUNK; i += 32) top = fmaxf(top, p[i]);
        for (int step = 16; step; step /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, step));
        float base = top == MINUS_INFINITY ? 0.0f : top;
        for (uint32_t i = lane; i < CHUNK; i += 32) sum += p[i] = exp2_fast(p[i] - base);
        for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
        if (lane == 0) {
            shared->max[head] = top;
            shared->sum[head] = sum;
        }
    }
}

/* Adds up values for heads first..first+TILE-1 and writes their partials. */
__device__ void values(const pllm_attend_arguments &a, const row_work &w, uint32_t row,
                       uint32_t head_first, uint32_t first, uint32_t group, uint32_t chunk,
                       chunk_shared *shared)
{
    uint32_t d = a.head_dim, eights = d / 8, parts = THREADS / eights;
    uint32_t part = threadIdx.x / eights, c = threadIdx.x % eights * 8;
    uint32_t begin = chunk * CHUNK, end = min(w.length - begin, (uint32_t)CHUNK);
    float o[TILE][8] = {};
    for (uint32_t i = part; part < parts && i < end; i += parts) {
        uint32_t token = begin + i;
        if (token < w.first_token) continue;
        bool open = token / BLOCK == (w.length - 1) / BLOCK;
        float v[8];
        load_eight(shared->slice[i / BLOCK], open ? a.open_dtype : a.sealed, d, true, token % BLOCK,
                   c, v);
#pragma unroll
        for (int head = 0; head < TILE; head++) {
            if (first + head >= group) break;
            float p = shared->p[first + head][i];
#pragma unroll
            for (int j = 0; j < 8; j++) o[head][j] += p * v[j];
        }
    }
#pragma unroll
    for (int head = 0; head < TILE; head++) {
        if (first + head >= group) break;
        __syncthreads();
        if (part < parts)
#pragma unroll
            for (int j = 0; j < 8; j++) shared->parts[part * d + c + j] = o[head][j];
        __syncthreads();
        partial_place p = partials_of(a, row, head_first + first + head);
        for (uint32_t channel = threadIdx.x; channel < d; channel += THREADS) {
            float sum = 0;
            for (uint32_t i = 0; i < parts; i++) sum += shared->parts[i * d + channel];
            p.out[(uint64_t)chunk * d + channel] = sum;
        }
        if (threadIdx.x == 0) {
            p.max[chunk] = shared->max[first + head];
            p.sum[chunk] = shared->sum[first + head];
        }
    }
}

/* Grid: x: KV head, y: chunks, in strides of the grid, z: rows. */
extern "C" __global__ void __launch_bounds__(THREADS)
    pllm_attend_generic(const __grid_constant__ pllm_attend_arguments a)
{
    extern __shared__ __align__(16) uint8_t memory[];
    chunk_shared *shared = reinterpret_cast<chunk_shared *>(memory);
    uint32_t kv_head = blockIdx.x, row = blockIdx.z, group = a.group, d = a.head_dim;
    wait_for_kernel_before();
    row_work w = row_work_of(a, row);
    for (uint32_t chunk = w.chunk_first + blockIdx.y; chunk < w.chunk_end; chunk += gridDim.y) {
        const float *q = at<float>(a.q) + row * a.q_stride + (uint64_t)kv_head * group * d;
        for (uint32_t i = threadIdx.x; i < group * d; i += THREADS) shared->q[i] = q[i] * a.scale;
        if (threadIdx.x < CHUNK_BLOCKS) {
            uint32_t block = chunk * CHUNK_BLOCKS + threadIdx.x, token = block * BLOCK;
            if (token < w.length && token + BLOCK > w.first_token)
                shared->slice[threadIdx.x] =
                    block_address(a, w, block) +
                    (uint64_t)kv_head *
                        (block == (w.length - 1) / BLOCK ? a.open_slice : a.sealed_slice);
        }
        __syncthreads();
        scores(a, w, group, chunk, shared);
        __syncthreads();
        weights(group, shared);
        __syncthreads();
        for (uint32_t first = 0; first < group; first += TILE)
            values(a, w, row, kv_head * group, first, group, chunk, shared);
        __syncthreads();
    }
}
