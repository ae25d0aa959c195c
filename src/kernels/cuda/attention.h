/* attention.h - decode attention over paged KV blocks on a CUDA device, and the making of blocks.
 *
 * The block of a row's own token is the open block of (row_slot, layer); every earlier one is a
 * sealed block, found through the table. Blocks lie as kv_format.h says. Attention goes by chunks
 * of 256 tokens at absolute positions: attend_decode makes partial results of the chunks it is
 * asked for, attend_merge adds up all chunks of each row.
 *
 * Rule 1: a row's bits depend on its q, keys and values only: not on other rows, on the grid, or on
 * how its chunks were spread over launches. Rows of an open block that are not written yet may hold
 * NaN. Whatever changes from step to step (lengths, slots, tables, waves) is read from device
 * memory when the kernel runs, so a launch can live in a graph; so do grids, by their bounds only.
 *
 * Launches only enqueue. Threads: the object is read-only once open. Errors: EINVAL with a
 * sentence, EDEVICE from a launch. */
#ifndef PLLM_KERNELS_CUDA_ATTENTION_H
#define PLLM_KERNELS_CUDA_ATTENTION_H

#include "device/device.h"
#include "kernels/kv_format.h"

typedef struct pllm_cuda_attention pllm_cuda_attention;

typedef struct pllm_cuda_kv {
    pllm_kv_shape shape;
    uint32_t heads; /* a multiple of shape.kv_heads, at most 16 times as many */
    float scale;    /* of scores: 1 / sqrt(head_dim) */
    pllm_va frames; /* sealed blocks: frame f at frames + f * frame_bytes */
    uint64_t frame_bytes;
    pllm_va
        open; /* open block of (slot, layer) at open + (slot * layer_count + layer) * open_bytes */
    uint64_t open_bytes;
    uint32_t layer_count, chunk_max;
    uint32_t window; /* a row sees its own token and window - 1 before it; 0: all */
} pllm_cuda_kv;

typedef struct pllm_cuda_decode {
    const pllm_cuda_kv *kv;
    uint32_t layer, rows;
    pllm_va q;         /* F32 [rows][heads * head_dim], rotated, unscaled; 16-byte aligned */
    uint64_t q_stride; /* elements, a multiple of 4 */
    pllm_va row_slot;
    pllm_va
        row_length; /* u32 [rows]; counts the row's own token. 0: the row is idle, out is zeros */
    pllm_va table;  /* u32: frame of block b of row i: table[row_slot[i] * table_stride + b] */
    uint64_t table_stride;                  /* elements */
    pllm_va row_chunk_first, row_chunk_end; /* u32 [rows]: chunks to do in this launch, clipped to
                                               what the row sees; 0: from the first, to the last */
    uint32_t chunk_bound; /* no row has more chunks to do than this; it only sizes the grid */
    pllm_va partials;     /* pllm_cuda_attention_partial_bytes, private layout, 16-byte aligned */
    pllm_dtype out_dtype; /* of merge: F32 (0), F16 or BF16 */
    /* 1: launch with programmatic dependence on the kernel before. It, and those that it depends on
     * in the same way, write nothing of what is read here but q and open blocks (for merge:
     * partials): lengths, tables and sealed blocks are read ahead. */
    uint32_t dependent;
} pllm_cuda_decode;

/* EUNSUPPORTED (built without kernels, or none for this GPU), ENOMEM, EDEVICE. */
int pllm_cuda_attention_open(const pllm_context *context, pllm_device *device,
                             pllm_cuda_attention **attention_out);
void pllm_cuda_attention_close(pllm_cuda_attention *attention); /* its work is done; NULL is fine */

uint64_t pllm_cuda_attention_partial_bytes(const pllm_cuda_kv *kv, uint32_t rows);

/* Partials of the rows' chunks. Blocks that the rows' chunks lie in are resident; others need not
 * be. */
int pllm_cuda_attend_decode(pllm_cuda_attention *attention, pllm_stream *stream,
                            const pllm_cuda_decode *decode);

/* out [rows][heads * head_dim], out_stride elements apart (even): all chunks of each row. */
int pllm_cuda_attend_merge(pllm_cuda_attention *attention, pllm_stream *stream,
                           const pllm_cuda_decode *decode, pllm_va out, uint64_t out_stride);

/* Seals blocks, each 32 full rows, with the bits of the CPU's seal. pairs: u32 [count][2]: number
 * of the open block (from_blocks + number * from_bytes), frame. */
int pllm_cuda_seal(pllm_cuda_attention *attention, pllm_stream *stream, const pllm_cuda_kv *kv,
                   pllm_va from_blocks, uint64_t from_bytes, pllm_va pairs, uint32_t count);

/* int8 and int4 frames as blocks in the open format: frame table[i] to `to` + i * to_bytes. Values
 * are pllm_kv_read_row's, rounded. */
int pllm_cuda_expand(pllm_cuda_attention *attention, pllm_stream *stream, const pllm_cuda_kv *kv,
                     pllm_va table, uint32_t count, pllm_va to, uint64_t to_bytes);

#endif
