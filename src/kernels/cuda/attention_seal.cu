/* attention_seal.cu - open blocks become sealed ones, and quantised blocks plain ones again.
 *
 * seal gives the bits of the CPU's seal (kernels/cpu/kv_write.h): the same roundings, one by one
 * (no contraction, IEEE division), the same choice between equal values (+0 and -0): the first. A
 * CTA does one KV head's slice of one block. */
#include "kernels/cuda/attention_device.cuh"

enum { THREADS = 128 };

/* The smallest half not below value, and the largest not above it. */
__device__ __forceinline__ uint16_t half_above(float value)
{
    __half rounded = __float2half_rn(value);
    uint16_t bits = __half_as_ushort(rounded);
    if (__half2float(rounded) < value) bits = bits & 0x8000 ? bits - 1 : bits + 1;
    return bits;
}

struct range {
    uint16_t scale, minimum;
    float base, inverse;
};

__device__ __forceinline__ range range_of(float low, float high, float levels)
{
    range r;
    r.minimum = half_above(-low) ^ 0x8000;
    r.base = __half2float(__ushort_as_half(r.minimum));
    r.scale = half_above(__fdiv_rn(__fsub_rn(high, r.base), levels));
    float step = __half2float(__ushort_as_half(r.scale));
    r.inverse = step > 0 ? __fdiv_rn(1.0f, step) : 0.0f;
    return r;
}

__device__ __forceinline__ uint32_t quantise(float x, const range &r, float levels)
{
    float q = __fadd_rn(__fmul_rn(__fsub_rn(x, r.base), r.inverse), 0.5f);
    q = q > 0.0f ? q : 0.0f;
    q = q < levels ? q : levels;
    return (uint32_t)(int32_t)q;
}

/* The slice's two halves as they lie, [token][channel], rows one word longer so that walking down a
 * channel does not stay in one bank. */
struct slice_rows {
    __half *data;
    uint32_t stride;
    __device__ __forceinline__ float operator()(uint32_t row, uint32_t channel) const
    {
        return __half2float(data[row * stride + channel]);
    }
};

__device__ void seal_keys(const slice_rows &x, uint8_t *to, uint32_t d, uint32_t bits)
{
    float levels = bits == 8 ? 255.0f : 15.0f;
    uint16_t *scales = reinterpret_cast<uint16_t *>(to + BLOCK * d * bits / 4);
    for (uint32_t c = threadIdx.x; c < d; c += THREADS) {
        float low = x(0, c), high = low;
        for (uint32_t row = 1; row < BLOCK; row++) {
            float v = x(row, c);
            low = v < low ? v : low;
            high = v > high ? v : high;
        }
        range r = range_of(low, high, levels);
        scales[c] = r.scale;
        scales[d + c] = r.minimum;
        uint32_t words[BLOCK / 4] = {};
#pragma unroll
        for (uint32_t row = 0; row < BLOCK; row++) {
            uint32_t q = quantise(x(row, c), r, levels);
            if (bits == 8)
                words[row / 4] |= q << row % 4 * 8;
            else
                words[row % 16 / 4] |= q << (row % 4 * 8 + row / 16 * 4);
        }
        uint4 *out = reinterpret_cast<uint4 *>(to + (uint64_t)c * BLOCK * bits / 8);
        out[0] = make_uint4(words[0], words[1], words[2], words[3]);
        if (bits == 8) out[1] = make_uint4(words[4], words[5], words[6], words[7]);
    }
}

/* Four threads a token: each looks at a contiguous run of channels, then packs one. */
__device__ void seal_values(const slice_rows &x, uint8_t *to, uint32_t d, uint32_t bits)
{
    float levels = bits == 8 ? 255.0f : 15.0f;
    uint32_t row = threadIdx.x / 4, part = threadIdx.x % 4, eights = d / 8;
    uint32_t first = eights * part / 4 * 8, end = eights * (part + 1) / 4 * 8;
    /* A later run starts from infinities, which only a smaller or larger value replaces: that
     * gives what one walk from channel 0 gives. An empty first run must not start from a value. */
    bool from_value = first == 0 && end > 0;
    float low = from_value ? x(row, 0) : -MINUS_INFINITY, high = from_value ? low : MINUS_INFINITY;
    for (uint32_t c = first; c < end; c++) {
        float v = x(row, c);
        low = v < low ? v : low;
        high = v > high ? v : high;
    }
    for (int step = 1; step < 4; step *= 2) {
        float low_other = __shfl_xor_sync(~0u, low, step),
              high_other = __shfl_xor_sync(~0u, high, step);
        bool other_later = !(part & step);
        float low_first = other_later ? low : low_other, low_then = other_later ? low_other : low;
        float high_first = other_later ? high : high_other,
              high_then = other_later ? high_other : high;
        low = low_then < low_first ? low_then : low_first;
        high = high_then > high_first ? high_then : high_first;
    }
    range r = range_of(low, high, levels);
    uint16_t *scales = reinterpret_cast<uint16_t *>(to + BLOCK * d * bits / 4) + 2 * d;
    if (part == 0) {
        scales[row] = r.scale;
        scales[BLOCK + row] = r.minimum;
    }
    uint8_t *line = to + (uint64_t)BLOCK * d * bits / 8 + (uint64_t)row * d * bits / 8;
    /* 4 bytes at a time: d * bits / 8 is a multiple of 4. */
    for (uint32_t word = part; word < d * bits / 32; word += 4) {
        uint32_t packed = 0;
        for (uint32_t i = 0; i < 4; i++) {
            uint32_t c = 4 * word + i;
            uint32_t q = quantise(x(row, c), r, levels);
            if (bits == 4) q |= quantise(x(row, c + d / 2), r, levels) << 4;
            packed |= q << 8 * i;
        }
        reinterpret_cast<uint32_t *>(line)[word] = packed;
    }
}

/* Grid: x: KV head, y: pair. Shared: 32 rows of head_dim + 2 halves. */
extern "C" __global__ void __launch_bounds__(THREADS)
    pllm_kv_seal(const __grid_constant__ pllm_seal_arguments a)
{
    extern __shared__ __align__(16) uint8_t memory[];
    wait_for_kernel_before();
    uint32_t head = blockIdx.x, d = a.head_dim;
    const uint32_t *pair = at<uint32_t>(a.pairs) + 2 * blockIdx.y;
    const uint8_t *from =
        at<uint8_t>(a.from + pair[0] * a.from_bytes + (uint64_t)head * a.open_slice);
    uint8_t *to =
        reinterpret_cast<uint8_t *>(a.to + pair[1] * a.to_bytes + (uint64_t)head * a.sealed_slice);
    if (a.sealed == a.open_dtype) {
        for (uint32_t i = threadIdx.x; i < a.open_slice / 16; i += THREADS)
            reinterpret_cast<uint4 *>(to)[i] = reinterpret_cast<const uint4 *>(from)[i];
        return;
    }
    slice_rows x = {reinterpret_cast<__half *>(memory), d + 2};
    for (int half = 0; half < 2; half++) {
        if (half) __syncthreads();
        for (uint32_t i = threadIdx.x; i < BLOCK * d / 8; i += THREADS) {
            uint4 words = reinterpret_cast<const uint4 *>(from)[half * BLOCK * d / 8 + i];
            uint32_t *row =
                reinterpret_cast<uint32_t *>(x.data + i / (d / 8) * x.stride) + i % (d / 8) * 4;
            row[0] = words.x, row[1] = words.y, row[2] = words.z, row[3] = words.w;
        }
        __syncthreads();
        uint32_t bits = a.sealed == INT8 ? 8 : 4;
        if (half == 0)
            seal_keys(x, to, d, bits);
        else
            seal_values(x, to, d, bits);
    }
}

/* Grid: x: KV head, y: block. Shared: the quantised slice. to: open-format (f16) blocks. */
extern "C" __global__ void __launch_bounds__(THREADS)
    pllm_kv_expand(const __grid_constant__ pllm_seal_arguments a)
{
    extern __shared__ __align__(16) uint8_t memory[];
    wait_for_kernel_before();
    uint32_t head = blockIdx.x, d = a.head_dim, bits = a.sealed == INT8 ? 8 : 4;
    uint32_t frame = at<uint32_t>(a.table)[blockIdx.y], part = BLOCK * d * bits / 8;
    const uint4 *from = at<uint4>(a.from + frame * a.from_bytes + (uint64_t)head * a.sealed_slice);
    uint8_t *to =
        reinterpret_cast<uint8_t *>(a.to + blockIdx.y * a.to_bytes + (uint64_t)head * a.open_slice);
    for (uint32_t i = threadIdx.x; i < a.sealed_slice / 16; i += THREADS)
        reinterpret_cast<uint4 *>(memory)[i] = from[i];
    __syncthreads();
    const __half *scales = reinterpret_cast<const __half *>(memory + 2 * part);
    for (uint32_t i = threadIdx.x; i < 2 * BLOCK * d / 8; i += THREADS) {
        /* Eight channels of one token; keys: token in the lane, so that a channel's row of bytes is
         * read side by side. */
        bool value = i >= BLOCK * d / 8;
        uint32_t piece = value ? i - BLOCK * d / 8 : i;
        uint32_t token = value ? piece / (d / 8) : piece % BLOCK;
        uint32_t c = (value ? piece % (d / 8) : piece / BLOCK) * 8;
        uint16_t out[8];
#pragma unroll
        for (int j = 0; j < 8; j++) {
            uint32_t channel = c + j, line = value ? token : channel,
                     element = value ? channel : token;
            uint32_t length = value ? d : (uint32_t)BLOCK, half = length / 2, q;
            const uint8_t *at_line = memory + (value ? part : 0) + line * length * bits / 8;
            if (bits == 8)
                q = at_line[element];
            else
                q = element < half ? at_line[element] & 15 : at_line[element - half] >> 4;
            float scale = __half2float(value ? scales[2 * d + token] : scales[channel]);
            float minimum =
                __half2float(value ? scales[2 * d + BLOCK + token] : scales[d + channel]);
            out[j] =
                __half_as_ushort(__float2half_rn(__fadd_rn(__fmul_rn(scale, (float)q), minimum)));
        }
        uint32_t row = (value ? BLOCK : 0) + token;
        *reinterpret_cast<uint4 *>(to + 2 * ((uint64_t)row * d + c)) =
            make_uint4(out[0] | out[1] << 16, out[2] | out[3] << 16, out[4] | out[5] << 16,
                       out[6] | out[7] << 16);
    }
}
