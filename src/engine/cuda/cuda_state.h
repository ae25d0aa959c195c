/* cuda_state.h - what the files of the CUDA executor share.
 *
 *   cuda_executor.c  its life: what it needs, opening, closing
 *   cuda_weights.c   layer images: resident, or in host memory and streamed through a ring
 *   cuda_blocks.c    which KV blocks are held on the device, and the waves that bring the others
 *   cuda_paged.c     the same where blocks lie on disk: the pager brings them, and the CPU waits
 *   cuda_space.c     where buffers lie; the space of prompts, which comes and goes
 *   cuda_forward.c   a pass: generated rows by the decode path, prompts by the prefill path
 *   cuda_graphs.c    passes of generated rows as cached graphs
 *
 * Everything runs on one compute stream; streamed bytes come on a second one. The CPU submits a
 * pass and waits once, at its end: copies and kernels are ordered by events.
 *
 *   compute: | layer 0 | wait slot 0 | layer 1 | free slot 0 | wait slot 1 | layer 2 | ...
 *   copies:  | layer 1 -> slot 0 | layer 2 -> slot 1 | wait slot 0 free | layer 3 -> slot 0 ...
 */
#ifndef PLLM_ENGINE_CUDA_STATE_H
#define PLLM_ENGINE_CUDA_STATE_H

#include "device/cuda.h"
#include "engine/engine_internal.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/prefill.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/summary.h"

enum {
    PREFILL_TILE = 2048,   /* prompt rows that pass a layer together */
    IMAGE_ALIGN = 256,     /* of a matrix in a layer's image */
    RING_LAYERS = 3,       /* slots for streamed layers */
    WAVE_GROUPS = 4,       /* waves in flight, at most */
    WAVE_BYTES = 16 << 20, /* what a wave of streamed KV brings, about */
    WAVE_BLOCKS_MAX = 512,
    GRAPHS_MAX = 64,
    GRAPH_BYTES = 32 << 20, /* of the limit, for all graphs */
};

/* Matrices of one layer; data is an offset from the start of the layer's image. */
typedef struct cuda_layer {
    pllm_cuda_matrix q, k, v, o, gate, up, down;
    int qkv_joined, gate_up_joined; /* one dtype: neighbours are one matrix */
    uint64_t attention_norm, ffn_norm;
    uint64_t bytes;
} cuda_layer;

typedef struct cuda_weights {
    cuda_layer *layers;
    uint64_t image_bytes; /* of the largest layer */
    uint32_t resident_count, streamed_count, ring_count;
    uint64_t *place;       /* [layer]: where its image, or its slot of the ring, is in space */
    uint32_t *slot;        /* [layer]: streamed: which slot */
    uint8_t *streamed;     /* [layer] */
    uint32_t *following;   /* [layer]: the layer its slot takes next; PLLM_NONE: not streamed */
    void **host_images;    /* [layer]: NULL if resident */
    pllm_workspace *space; /* images of resident layers | ring, each slot for the largest */
    pllm_workspace *fixed; /* embedding | output | output norm */
    pllm_cuda_matrix embedding, output;
    pllm_va output_norm;
    pllm_event *loaded[RING_LAYERS], *released[RING_LAYERS];
    uint64_t total_bytes, least_bytes, streamed_bytes;
    int primed; /* the ring holds the first streamed layers, or they are under way */
} cuda_weights;

/* Prompt rows of one sequence that pass a layer together, and the tile they are in. */
typedef struct cuda_segment {
    uint32_t item, start, rows, row_first; /* row_first: of the pass */
    uint32_t stage_first;                  /* of the tile's staging blocks */
} cuda_segment;
typedef struct cuda_tile {
    uint32_t segment_first, segment_count, row_first, rows, rows_max;
} cuda_tile;

/* A wave: chunks whose streamed blocks are on the device together. */
typedef struct cuda_wave {
    uint32_t copy_first, copy_count, group;
    uint32_t *ranges; /* [2][rows]: first chunk and end, of each generated row */
    pllm_va ranges_va;
} cuda_wave;

typedef struct cuda_blocks {
    uint32_t *held;         /* [sequence_max][layers]: leading blocks pinned on the device */
    uint32_t *target;       /* [sequence_max]: leading blocks that this pass wants held */
    uint32_t *tables;       /* pinned host memory: [layers][sequence_max][block_max] frames */
    pllm_page *scratch;     /* [block_max] */
    uint32_t entered, left; /* layers of this pass; those between are pinned whole */
    int tables_changed;
    uint32_t frame_end; /* no frame at or past this was ever in a table */

    int has_ring, streaming; /* streaming: this pass does */
    int by_pager;            /* ... and some of its blocks are on disk: see cuda_paged.c */
    uint32_t wave_blocks, group_count; /* blocks a wave brings at most; waves in flight */
    pllm_page *ring_pages;             /* [group_count * wave_blocks] */
    uint32_t *ring_frames;
    pllm_event *loaded[WAVE_GROUPS], *released[WAVE_GROUPS];
    uint64_t groups_used; /* of all time */

    /* The plan of this pass. */
    cuda_wave *waves;
    pllm_copy *copies;
    uint32_t *waves_of_layer; /* [layers + 1] */
    uint32_t wave_count, wave_room, copy_count, copy_room;
    uint32_t *held_ranges; /* as a wave's */
    pllm_va held_ranges_va;
    uint64_t frame_limit, working,
        borrowable;      /* frames: there are; for new blocks; left to borrow */
    pllm_page *borrowed; /* pinned for this pass alone */
    uint32_t borrowed_count, borrowed_room;
    uint64_t streamed_bytes; /* of all time */
} cuda_blocks;

/* A cached graph, of so many generated rows with up to 1 << bucket chunks. */
typedef struct cuda_graph {
    pllm_cuda_graph *graph;
    uint32_t rows, bucket;
    uint64_t bytes, used; /* as measured; when */
} cuda_graph;
typedef struct cuda_graphs {
    cuda_graph entries[GRAPHS_MAX];
    uint32_t count, strikes; /* strikes: graphs in a row that took too much */
    uint64_t bytes, clock, free_before;
} cuda_graphs;

struct pllm_cuda_state {
    pllm_cuda_linear *linear;
    pllm_cuda_rows *rows;
    pllm_cuda_attention *attention;
    pllm_cuda_prefill_kernels *prefill;
    pllm_cuda_summary *summary; /* NULL: no summaries are kept */
    pllm_stream *compute, *copies;
    pllm_event *layer_done[2];
    cuda_weights weights;
    cuda_blocks blocks;
    pllm_cuda_kv kv;
    pllm_dtype act;       /* of prompt activations */
    uint32_t compute_f32; /* no tensor cores */
    uint32_t tile_rows, stage_blocks;
    int quantised; /* KV: sealed blocks are expanded before prompts attend them */

    /* Device addresses in the workspace. */
    pllm_va x, y, logits;                                        /* f32; x: of generated rows */
    pllm_va d_qkv, d_q, d_attended, d_gate_up, d_gate, partials; /* generated rows, f32 */
    /* In the prompt space, which is there while prompts are read, and goes when its memory can hold
     * blocks that would be streamed otherwise. */
    pllm_workspace *prompt_space;
    uint64_t prompt_bytes;
    pllm_va p_x; /* f32, tile_rows of the engine; what follows: of one tile */
    pllm_va p_normed, p_qkv, p_q, p_attended, p_gate_up, p_gate;
    pllm_va stage, expanded, identity;
    pllm_va linear_space, frequency, tables;
    uint64_t linear_bytes;
    uint32_t qkv_width; /* (heads + 2 kv_heads) * head_dim */

    /* Arguments of a pass, as u32: written by the CPU in pinned memory, copied as one. */
    uint32_t *args, args_max, args_used;
    pllm_va args_va;
    float *logits_out; /* pinned: [LOGIT_ROWS][vocab] */

    cuda_segment *segments;
    cuda_tile *tiles;
    uint32_t segment_count, tile_count, segment_max; /* of both lists */
    cuda_graphs graphs;                              /* of decode passes with everything resident */
};

/* cuda_weights.c */
int pllm_cuda_weights_plan(pllm_engine *engine);
/* available_bytes: what weights may take of the device. */
int pllm_cuda_weights_open(pllm_engine *engine, uint64_t available_bytes);
uint64_t pllm_cuda_weights_fixed_bytes(const pllm_engine *engine); /* besides the layers */
void pllm_cuda_weights_close(pllm_engine *engine);
/* Before a layer's first kernel: where its image is, once the compute stream gets there. */
int pllm_cuda_layer_enter(pllm_engine *engine, uint32_t layer, pllm_va *image_out);
/* After its last kernel: its slot may take the next streamed layer. */
int pllm_cuda_layer_leave(pllm_engine *engine, uint32_t layer);

/* cuda_blocks.c */
uint32_t pllm_cuda_blocks_plan(pllm_engine *engine); /* returns the frames of the ring */
/* Frames that a pass needs besides one layer of its prompts. */
uint32_t pllm_cuda_blocks_least(const pllm_engine *engine);
/* As pllm_executor.prompt_blocks. */
uint32_t pllm_cuda_blocks_of_prompts(const pllm_engine *engine);
int pllm_cuda_blocks_open(pllm_engine *engine);
void pllm_cuda_blocks_close(pllm_engine *engine);
/* Decides what this pass holds and makes it so; then every table entry of a held block is right. */
int pllm_cuda_blocks_balance(pllm_engine *engine);
/* Pins room for the blocks that a prompt, or a generated row, seals in this layer (and those a
 * prompt reads), and enters them in the tables. */
int pllm_cuda_blocks_enter(pllm_engine *engine, uint32_t layer);
/* Once the layer's kernels are over: what is not held any longer may go. sealed: the new blocks
 * have their content. */
void pllm_cuda_blocks_leave(pllm_engine *engine, uint32_t layer, int sealed);
void pllm_cuda_blocks_let_go(pllm_engine *engine, pllm_sequence *sequence); /* NULL: the ring too */
void pllm_cuda_blocks_return(pllm_engine *engine); /* borrowed pages; once the pass is over */
void pllm_cuda_blocks_undo(pllm_engine *engine);   /* after a pass that failed */
/* Attention of generated rows in a layer, wave by wave; decode has all but the chunk ranges. */
int pllm_cuda_blocks_attend(pllm_engine *engine, uint32_t layer, pllm_cuda_decode *decode);

/* For cuda_paged.c: blocks [first, end) of an item in a layer, pinned and in the tables; and back.
 */
int pllm_cuda_blocks_pin(pllm_engine *engine, const pass_item *item, uint32_t layer, uint32_t first,
                         uint32_t end, pllm_pin_mode mode);
void pllm_cuda_blocks_unpin(pllm_engine *engine, const pass_item *item, uint32_t layer,
                            uint32_t first, uint32_t end);

/* cuda_paged.c: attention of generated rows whose blocks come from disk. */
int pllm_cuda_paged_attend(pllm_engine *engine, uint32_t layer, pllm_cuda_decode *decode);

/* cuda_space.c */
uint64_t pllm_cuda_layout(pllm_engine *engine, pllm_va base);        /* of the workspace */
uint64_t pllm_cuda_prompt_layout(pllm_engine *engine, pllm_va base); /* of the prompt space */
int pllm_cuda_prompt_space_open(pllm_engine *engine);                /* if it is not open */
void pllm_cuda_prompt_space_close(pllm_engine *engine);              /* nothing runs */
/* From pinned memory, on the compute stream; 0 bytes are nothing. */
int pllm_cuda_upload(pllm_engine *engine, pllm_va to, const void *from, uint64_t bytes);

/* cuda_graphs.c: the graph of such a pass, or NULL. Then, if graphs are made, the caller makes one,
 * launches it and has it kept; or says that there was no memory for it. No graph may be running but
 * the one that is kept. */
pllm_cuda_graph *pllm_cuda_graphs_find(pllm_engine *engine, uint32_t rows, uint32_t bucket);
int pllm_cuda_graphs_are_made(const pllm_engine *engine);
void pllm_cuda_graphs_keep(pllm_engine *engine, uint32_t rows, uint32_t bucket,
                           pllm_cuda_graph *graph);
void pllm_cuda_graphs_refused(pllm_engine *engine);
void pllm_cuda_graphs_close(pllm_engine *engine);

/* cuda_forward.c */
int pllm_cuda_forward(pllm_engine *engine);
/* count u32 of this pass's arguments; their device address in *va_out. NULL: never, args_max is
 * sized for the largest pass. */
uint32_t *pllm_cuda_args(pllm_cuda_state *state, uint32_t count, pllm_va *va_out);

#endif
