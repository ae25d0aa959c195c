/* prefill.h - causal attention of prompt rows over paged KV blocks, on a CUDA device.
 *
 * A row at position p sees, of its own block of 32 tokens, the open form up to p, and of every
 * earlier block the sealed form. For plain KV formats both hold the same bits. For int8 and int4
 * the caller has expanded the sealed blocks into plain ones first, so that kernels always read
 * plain blocks, laid out as kv_format.h says, of q's dtype.
 *
 * Rule: a row's bits depend on its own q and on what it sees: not on the other rows and items of
 * the call, nor on how a prompt was cut into calls. Blocks that no row of an item sees are not
 * read, nor rows of the stage past an item's end used, except that those must be finite: zero them.
 *
 * Three kernels: sm90 (head_dim 64 and 128, f16 and bf16, on Hopper), mma (the same sizes, on every
 * other GPU from sm_80 on), generic (any size, f32 too; f32 arithmetic). Which one runs depends on
 * the device and the model, never on the rows. */
#ifndef PLLM_KERNELS_CUDA_PREFILL_H
#define PLLM_KERNELS_CUDA_PREFILL_H

#include "device/device.h"
#include "kernels/kv_format.h"

/* Of the device array. Rows row_first.. of q and out are positions position.. of one sequence; the
 * stage has the blocks of those rows, from block position / 32 on, as stage_first.. */
typedef struct pllm_cuda_prefill_item {
    uint32_t row_first, rows, position, stage_first;
    uint32_t table_row, reserved[3];
} pllm_cuda_prefill_item;

typedef enum pllm_cuda_prefill_kernel {
    PLLM_CUDA_PREFILL_AUTO = 0,
    PLLM_CUDA_PREFILL_GENERIC,
    PLLM_CUDA_PREFILL_MMA,
    PLLM_CUDA_PREFILL_SM90,
} pllm_cuda_prefill_kernel;

typedef struct pllm_cuda_prefill {
    uint32_t heads, kv_heads, head_dim;
    pllm_dtype dtype; /* of blocks and q */
    float scale;      /* 1 / sqrt(head_dim), above 0 */

    pllm_va sealed; /* pool of sealed blocks: index i at sealed + i * sealed_bytes */
    uint64_t sealed_bytes, sealed_count;
    pllm_va table; /* u32 [table_row][block]: the pool index of every full block of the item before
                    * position + rows, those sealed in this pass too */
    uint64_t table_stride;
    pllm_va stage; /* blocks of this pass in the open form; rows past the item's end are zero */
    uint64_t stage_bytes, stage_count;
    uint32_t distinct; /* 1: the two forms differ */

    pllm_va items;                /* pllm_cuda_prefill_item [item_count], 16-byte aligned */
    uint32_t item_count, row_max; /* row_max: no item has more rows */
    pllm_va q;                    /* dtype [rows][heads * head_dim], rotated, not scaled */
    uint64_t q_stride;
    pllm_va out;
    pllm_dtype out_dtype; /* F32, F16, BF16 */
    uint64_t out_stride;

    uint32_t band;                   /* for tuning: heads that run together; 0: chosen here */
    pllm_cuda_prefill_kernel kernel; /* for tests: AUTO, or one that must run */
} pllm_cuda_prefill;

typedef struct pllm_cuda_prefill_kernels pllm_cuda_prefill_kernels;

/* Errors: EUNSUPPORTED (built without kernels, or a device older than sm_80), ENOMEM, EDEVICE. */
int pllm_cuda_prefill_open(const pllm_context *context, pllm_device *device,
                           pllm_cuda_prefill_kernels **prefill_out);
void pllm_cuda_prefill_close(pllm_cuda_prefill_kernels *prefill); /* NULL is fine */

/* Enqueues. One stream at a time for an object. Errors: EINVAL, EUNSUPPORTED (the kernel asked for
 * does not run here), EDEVICE. */
int pllm_cuda_attend_prefill(pllm_cuda_prefill_kernels *prefill, pllm_stream *stream,
                             const pllm_cuda_prefill *f);

/* What AUTO would run for f. */
pllm_cuda_prefill_kernel pllm_cuda_prefill_choice(const pllm_cuda_prefill_kernels *prefill,
                                                  const pllm_cuda_prefill *f);

#endif
