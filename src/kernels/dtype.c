/* dtype.c - sizes of element formats and the reference conversions of half-width floats. */
#include <string.h>
#include "base/context.h"
#include "kernels/dtype.h"

static const struct {
    const char *name;
    uint16_t block_elements, block_bytes; /* 0: has no rows of its own */
} formats[PLLM_DTYPE_COUNT] = {
    [PLLM_F32] = {"f32", 1, 4},           [PLLM_F16] = {"f16", 1, 2},
    [PLLM_BF16] = {"bf16", 1, 2},         [PLLM_Q8_0] = {"q8_0", 32, 34},
    [PLLM_Q4_0] = {"q4_0", 32, 18},       [PLLM_Q4_1] = {"q4_1", 32, 20},
    [PLLM_INT8] = {"int8", 0, 0},         [PLLM_INT4] = {"int4", 0, 0},
    [PLLM_FP8_E4M3] = {"fp8_e4m3", 1, 1}, [PLLM_FP8_E5M2] = {"fp8_e5m2", 1, 1},
};

const char *pllm_dtype_name(pllm_dtype dtype)
{
    return (unsigned)dtype < PLLM_DTYPE_COUNT ? formats[dtype].name : "unknown";
}

uint32_t pllm_dtype_block_elements(pllm_dtype dtype)
{
    return (unsigned)dtype < PLLM_DTYPE_COUNT ? formats[dtype].block_elements : 0;
}

uint32_t pllm_dtype_block_bytes(pllm_dtype dtype)
{
    return (unsigned)dtype < PLLM_DTYPE_COUNT ? formats[dtype].block_bytes : 0;
}

int pllm_dtype_row_bytes(pllm_dtype dtype, uint64_t k, uint64_t *bytes_out)
{
    uint32_t elements = pllm_dtype_block_elements(dtype);
    if (elements == 0)
        return pllm_fail(PLLM_EINVAL, 0, "format %s has no rows", pllm_dtype_name(dtype));
    if (k % elements != 0)
        return pllm_fail(PLLM_EINVAL, 0, "a row of %llu elements is not whole blocks of %u in %s",
                         (unsigned long long)k, elements, pllm_dtype_name(dtype));
    if (__builtin_mul_overflow(k / elements, (uint64_t)formats[dtype].block_bytes, bytes_out))
        return pllm_fail(PLLM_ELIMIT, 0, "a row of %llu elements is too long",
                         (unsigned long long)k);
    return PLLM_OK;
}

static float from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t to_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

float pllm_f16_to_f32(uint16_t value)
{
    uint32_t sign = (uint32_t)(value & 0x8000) << 16;
    uint32_t exponent = (value >> 10) & 31, fraction = value & 0x3ff;
    if (exponent == 31) return from_bits(sign | 0x7f800000 | fraction << 13);
    if (exponent) return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
    /* Zero and subnormals: fraction * 2^-24 is exact in f32. */
    float magnitude = (float)fraction * 0x1p-24f;
    return sign ? -magnitude : magnitude;
}

uint16_t pllm_f32_to_f16(float value)
{
    uint32_t bits = to_bits(value), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
    if (magnitude >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* rounds past 65504 */
    if (magnitude < 0x38800000) {
        /* Subnormal: adding 0.5 makes the FPU round at the bit worth 2^-24. */
        float rounded = from_bits(magnitude) + 0.5f;
        return (uint16_t)(sign | (to_bits(rounded) - 0x3f000000));
    }
    uint32_t odd = magnitude >> 13 & 1;
    return (uint16_t)(sign | (magnitude - 0x38000000 + 0xfff + odd) >> 13);
}

float pllm_bf16_to_f32(uint16_t value)
{
    return from_bits((uint32_t)value << 16);
}

uint16_t pllm_f32_to_bf16(float value)
{
    uint32_t bits = to_bits(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
