/* elementwise_avx2.c - the small operations with AVX2. */
#if defined(__x86_64__)
#define VERSION(name) name##_avx2
#include "kernels/cpu/elementwise_lanes.h"
#else
typedef int pllm_no_avx2; /* a file needs a declaration */
#endif
