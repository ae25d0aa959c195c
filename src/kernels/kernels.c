/* kernels.c - which version of the kernels this CPU runs.
 *
 * Asked of the CPU each time (a few loads): nothing is kept, so there is no mutable global. */
#include <stddef.h>
#include <string.h>
#include "kernels/cpu/cpu.h"
#include "kernels/elementwise.h"

#define VERSION(version)                        \
    static const pllm_kernels version = {       \
        .name = #version,                       \
        .pack = pllm_pack,                      \
        .unpack_row = pllm_unpack_row,          \
        .prepare = pllm_prepare_##version,      \
        .product = pllm_product_##version,      \
        .rms_norm = pllm_rms_norm_##version,    \
        .rotary = pllm_rotary_##version,        \
        .swiglu = pllm_swiglu_##version,        \
        .add = pllm_add_##version,              \
        .softmax = pllm_softmax_##version,      \
        .dot = pllm_dot_##version,              \
        .attention = &pllm_attention_##version, \
    }

VERSION(reference);
#if defined(__x86_64__)
VERSION(avx2);
VERSION(avx512);

/* Every CPU with AVX2 and FMA has F16C too; clang 14 cannot ask for it. */
static int cpu_has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("bmi2");
}

/* Zen 4 and later, Sapphire Rapids and later: the files are compiled for all of these. */
static int cpu_has_avx512(void)
{
    return cpu_has_avx2() && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni") &&
           __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi");
}
#endif

enum { VERSION_COUNT = 3 };

/* Fastest first; NULL where this CPU, or this build, lacks it. */
static const pllm_kernels *version_at(int index)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (index == 0) return cpu_has_avx512() ? &avx512 : NULL;
    if (index == 1) return cpu_has_avx2() ? &avx2 : NULL;
#endif
    return index == VERSION_COUNT - 1 ? &reference : NULL;
}

const pllm_kernels *pllm_kernels_best(void)
{
    for (int i = 0;; i++)
        if (version_at(i)) return version_at(i);
}

const pllm_kernels *pllm_kernels_by_name(const char *name)
{
    for (int i = 0; i < VERSION_COUNT; i++) {
        const pllm_kernels *kernels = version_at(i);
        if (kernels && strcmp(kernels->name, name) == 0) return kernels;
    }
    return NULL;
}
