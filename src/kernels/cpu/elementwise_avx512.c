/* elementwise_avx512.c - the small operations with AVX512. */
#if defined(__x86_64__)
#define VERSION(name) name##_avx512
#include "kernels/cpu/elementwise_lanes.h"
#else
typedef int pllm_no_avx512; /* a file needs a declaration */
#endif
