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
    __device__ __forceinline__ float2 pair(uint32_t row, uint32_t channel) const /* even */
    {
        return __half22float2(*reinterpret_cast<__half2 *>(data + row * stride + channel));
    }
};

__device__ void seal_keys(const slice_rows &x, uint8_t *to, uint32_t d, uint32_t bits)
{
    float levels = bits == 8 ? 255.0f : 15.0f;
    uint16_t *scales = reinterpret_cast<uint16_t *>(to + BLOCK * d * bits / 4);
    for (uint32_t c = threadIdx.x; c < d; c += THREADS) {
        float v[BLOCK];
#pragma unroll
        for (uint32_t row = 0; row < BLOCK; row++) v[row] = x(row, c);
        float low = v[0], high = v[0];
#pragma unroll
        for (uint32_t row = 1; row < BLOCK; row++) {
            low = v[row] < low ? v[row] : low;
            high = v[row] > high ? v[row] : high;
        }
        range r = range_of(low, high, levels);
        scales[c] = r.scale;
        scales[d + c] = r.minimum;
        uint32_t words[BLOCK / 4] = {};
#pragma unroll
        for (uint32_t row = 0; row < BLOCK; row++) {
            uint32_t q = quantise(v[row], r, levels);
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
    for (uint32_t c = first; c < end; c += 2) {
        float2 v = x.pair(row, c);
        low = v.x < low ? v.x : low;
        high = v.x > high ? v.x : high;
        low = v.y < low ? v.y : low;
        high = v.y > high ? v.y : high;
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
        for (uint32_t i = 0; i < 4; i += 2) {
            uint32_t c = 4 * word + i;
            float2 v = x.pair(row, c);
            uint32_t q = quantise(v.x, r, levels) | quantise(v.y, r, levels) << 8;
            if (bits == 4) {
                v = x.pair(row, c + d / 2);
                q |= quantise(v.x, r, levels) << 4 | quantise(v.y, r, levels) << 12;
            }
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
#pragma unroll 4
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

/* ---- expand ---- */

/* Byte `index` of x as a float. */
__device__ __forceinline__ float byte_of(uint32_t x, int index)
{
    return __uint_as_float(__byte_perm(x, 0x4b000000, 0x7650 | index)) - 8388608.0f;
}

__device__ __forceinline__ float dequantise(float q, float scale, float minimum)
{
    return __fadd_rn(__fmul_rn(scale, q), minimum);
}

__device__ __forceinline__ void eight_halves(uint4 words, float (&x)[8])
{
    const uint32_t w[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 pair = __half22float2(as_half2(w[i]));
        x[2 * i] = pair.x, x[2 * i + 1] = pair.y;
    }
}

__device__ __forceinline__ void store_eight(uint8_t *to, const float (&x)[8])
{
    uint32_t w[4];
#pragma unroll
    for (int i = 0; i < 4; i++) w[i] = as_bits(__floats2half2_rn(x[2 * i], x[2 * i + 1]));
    *reinterpret_cast<uint4 *>(to) = make_uint4(w[0], w[1], w[2], w[3]);
}

/* Where a piece of 16 bytes of keys goes: as in attention_products.cuh, so that an ldmatrix of
 * channels 8i and 8i + 1, i = 0..3, meets no bank twice. */
template <int BITS> __device__ __forceinline__ uint32_t key_place(uint32_t piece)
{
    return BITS == 8 ? piece ^ (piece >> 4 & 1) ^ (piece >> 5 & 1) << 2
                     : piece ^ (piece >> 3 & 3) << 1;
}

/* head_dim a multiple of 32. A warp takes 32 channels: a transposing ldmatrix gives a lane its 8
 * channels of tokens that lie side by side, and a token's 4 lanes write 64 bytes in a row. */
template <int BITS>
__device__ __forceinline__ void expand_keys(const uint8_t *keys, const uint8_t *scales, uint8_t *to,
                                            uint32_t d)
{
    uint32_t lane = threadIdx.x % 32, r = lane % 8, m = lane / 8, g = lane / 4, t = lane % 4;
    for (uint32_t first = threadIdx.x / 32 * 32; first < d; first += THREADS) {
        float scale[8], minimum[8];
        eight_halves(*reinterpret_cast<const uint4 *>(scales + 2 * (first + 8 * t)), scale);
        eight_halves(*reinterpret_cast<const uint4 *>(scales + 2 * (d + first + 8 * t)), minimum);
        uint32_t channel = first + r / 2 * 8 + 2 * m + r % 2;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t x[4];
            if (BITS == 8 || half == 0) {
                uint32_t piece = BITS == 8 ? 2 * channel + half : channel;
                load_matrices_transposed(x, shared_address(keys) + 16 * key_place<BITS>(piece));
            } else {
#pragma unroll
                for (int j = 0; j < 4; j++) x[j] >>= 4;
            }
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float out[8];
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    uint32_t word = BITS == 8 ? x[j / 2] : x[j / 2] & 0x0f0f0f0f;
                    out[j] = dequantise(byte_of(word, j % 2 * 2 + i), scale[j], minimum[j]);
                }
                uint32_t token = 16 * half + 2 * g + i;
                store_eight(to + 2 * (token * d + first + 8 * t), out);
            }
        }
    }
}

template <int BITS>
__device__ __forceinline__ void expand_values(const uint8_t *values, const __half *scales,
                                              uint8_t *to, uint32_t d)
{
    uint32_t line = d * BITS / 8;
    for (uint32_t i = threadIdx.x; i < BLOCK * line / 8; i += THREADS) {
        uint2 bytes = *reinterpret_cast<const uint2 *>(values + 8 * i);
        uint32_t token = 8 * i / line, c = 8 * i % line;
        float scale = __half2float(scales[token]), minimum = __half2float(scales[BLOCK + token]);
#pragma unroll
        for (int high = 0; high < (BITS == 8 ? 1 : 2); high++) {
            float out[8];
#pragma unroll
            for (int j = 0; j < 8; j++) {
                uint32_t word = j < 4 ? bytes.x : bytes.y;
                if (BITS == 4) word = word >> 4 * high & 0x0f0f0f0f;
                out[j] = dequantise(byte_of(word, j % 4), scale, minimum);
            }
            store_eight(to + 2 * (token * d + c + high * (d / 2)), out);
        }
    }
}

template <int BITS>
__device__ __forceinline__ void expand_fast(const uint4 *from, uint8_t *memory, uint8_t *to,
                                            uint32_t d)
{
    uint32_t part = BLOCK * d * BITS / 8, pieces = (2 * part + 4 * d + 4 * BLOCK) / 16;
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i < pieces; i += THREADS)
        copy_async(shared_address(memory) + 16 * (i < part / 16 ? key_place<BITS>(i) : i), from + i,
                   16);
    copy_commit();
    copy_wait<0>();
    __syncthreads();
    expand_keys<BITS>(memory, memory + 2 * part, to, d);
    expand_values<BITS>(memory + part, reinterpret_cast<const __half *>(memory + 2 * part) + 2 * d,
                        to + 2 * BLOCK * d, d);
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
    if (d % 32 == 0) {
        if (bits == 8)
            expand_fast<8>(from, memory, to, d);
        else
            expand_fast<4>(from, memory, to, d);
        return;
    }
    for (uint32_t i = threadIdx.x; i < a.sealed_slice / 16; i += THREADS)
        reinterpret_cast<uint4 *>(memory)[i] = from[i];
    __syncthreads();
    const __half *scales = reinterpret_cast<const __half *>(memory + 2 * part);
    for (uint32_t i = threadIdx.x; i < 2 * BLOCK * d / 8; i += THREADS) {
        /* Eight channels of one token. */
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
