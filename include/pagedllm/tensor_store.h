/* tensor_store.h - device tensors that processes share by name: element types and limits. */
#ifndef PAGEDLLM_TENSOR_STORE_H
#define PAGEDLLM_TENSOR_STORE_H

#include "status.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PLLM_STORE_RANK_MAX 8
#define PLLM_STORE_NAME_MAX 128 /* A-Z a-z 0-9 . _ - / : */

/* Element types. Append-only: the numbers pass between processes. */
typedef enum pllm_store_dtype {
    PLLM_STORE_F64 = 0,
    PLLM_STORE_F32 = 1,
    PLLM_STORE_F16 = 2,
    PLLM_STORE_BF16 = 3,
    PLLM_STORE_F8E4M3 = 4,
    PLLM_STORE_F8E5M2 = 5,
    PLLM_STORE_I64 = 6,
    PLLM_STORE_I32 = 7,
    PLLM_STORE_I16 = 8,
    PLLM_STORE_I8 = 9,
    PLLM_STORE_U8 = 10,
    PLLM_STORE_BOOL = 11,
    PLLM_STORE_DTYPES
} pllm_store_dtype;

#ifdef __cplusplus
}
#endif
#endif
