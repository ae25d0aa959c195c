/* weights.h - a model's matrices packed for the kernels, its norms as f32, and where they lie.
 *
 * A model is a row of parts, read in this order by a pass:
 *
 *   layer 0 | layer 1 | ... | output tile 0 | output tile 1 | ...      (tiles: each LOGIT_ROWS
 * rows)
 *
 *   a layer: attention norm | ffn norm | q | k | v | o | gate | up | down
 *   a tile:  some panels of the output matrix; all of them where nothing is streamed
 *
 * Three ways to hold them:
 *   no limit          every part in ordinary memory, packed once
 *   a limit, all fit  every part in the device's memory, charged to the budget
 *   a limit           some parts in the device's memory, spread evenly; the others have their
 * packed copy in host memory and pass through a ring of slots (weight_ring.c):
 *
 *     device: | output norm | resident parts ... | slot 0 | slot 1 | slot 2 |
 *     host:   | streamed parts ... |
 *
 * The team copies parts itself where that is the processor's work, with two slots; else a stream of
 * the device does, with up to three. So a part is in memory once, but for what is in the ring. The
 * embedding is read row by row. One of its own is never on the device under a limit; of a streamed
 * tile that is also the embedding, rows are read where its host copy lies. That moves a row for
 * each token, where streaming the matrix for its sake would move all of it.
 *
 * Packing reads each tensor once from the file mapping and lets those pages go.
 * Threads: thread 0 of the team changes where a streamed part is read, before a barrier. */
#ifndef PLLM_ENGINE_WEIGHTS_H
#define PLLM_ENGINE_WEIGHTS_H

#include "base/threads.h"
#include "kernels/kernels.h"
#include "model/model.h"
#include "vmm/region.h"

enum {
    WEIGHT_RING = 3,       /* slots, where a stream fills them and there is room for that many */
    WEIGHT_RING_LEAST = 2, /* one is read while the other is filled */
};

/* One linear operation. adapter is the seam for low-rank adapters: NULL until they exist. The
 * device that runs it is the engine's. */
typedef struct pllm_operation {
    pllm_linear linear;
    const void *adapter;
} pllm_operation;

typedef struct pllm_layer_weights {
    float *attention_norm, *ffn_norm; /* [width] */
    pllm_operation q, k, v, o, gate, up, down;
} pllm_layer_weights;

typedef struct pllm_output_tile {
    pllm_operation operation; /* rows [row_first, row_first + operation.linear.n) of the output */
    uint32_t row_first;
} pllm_output_tile;

typedef struct pllm_weight_part {
    uint64_t bytes, matrix_bytes; /* as placed; of its matrices alone */
    char *home;                   /* where it was packed; a streamed one is read in a slot */
    int streamed;
} pllm_weight_part;

typedef struct pllm_weights {
    const pllm_context *context;
    const pllm_model *model;
    pllm_device *device;
    uint32_t width, layer_count, tile_count, part_count; /* parts: layers, then tiles */
    pllm_layer_weights *layers;
    pllm_output_tile *tiles;
    uint32_t tile_rows;            /* of every tile but the last */
    pllm_linear output, embedding; /* whole: sizes; embedding's panels are set unless tied */
    float *output_norm;
    int tied;
    pllm_weight_part *parts;
    uint64_t packed_bytes; /* of all matrices */
    uint64_t total_bytes;  /* of device memory, all parts resident */
    uint64_t slot_bytes;   /* of the ring */
    uint64_t least_bytes;  /* of device memory */

    pllm_workspace *space; /* NULL: no limit */
    char *host_memory;     /* of streamed parts */
    uint64_t host_bytes;

    /* weight_ring.c */
    uint32_t *order; /* streamed parts: layers, then tiles */
    uint32_t streamed_layers, streamed_tiles, ring_count;
    pllm_va ring_va;
    pllm_stream *copies;
    pllm_event *loaded[WEIGHT_RING];
    uint64_t sent, entered, left; /* parts so far; a part's slot is its number % ring_count */
    uint64_t sent_at, pass_end;   /* positions in this pass; what is sent beyond is of the next */
    int primed;
    uint64_t stream_bytes, wait_ns;
    uint32_t team; /* threads that copy parts themselves; 0: the stream does */
    char *task_to;
    const char *task_from;
    uint64_t task_bytes, task_piece; /* of the part on offer */
    _Atomic uint64_t task;           /* pieces << 32 | pieces taken */
} pllm_weights;

/* Sizes of everything. Errors: EUNSUPPORTED (a format the kernels do not multiply), EINVAL, ENOMEM.
 * After an error of plan or open, close is still called. */
int pllm_weights_plan(pllm_weights *weights, const pllm_context *context, const pllm_model *model,
                      pllm_compute compute);

typedef struct pllm_weights_options {
    pllm_device *device;
    pllm_budget *budget;
    uint64_t device_bytes; /* for weights: at least least_bytes; UINT64_MAX: no limit */
    const pllm_kernels *kernels;
    pllm_threads *threads;
    /* May be NULL; its non-zero return stops with ECANCELED. */
    int (*progress)(void *user, const char *what, uint64_t done, uint64_t total);
    void *user;
} pllm_weights_options;
/* Packs every tensor of the model on the team's threads. Errors: ENOMEM, ENODEVMEM, EDEVICE,
 * EUNSUPPORTED, ECANCELED. */
int pllm_weights_open(pllm_weights *weights, const pllm_weights_options *options);
void pllm_weights_close(pllm_weights *weights); /* zeroes it; zeroed is fine */

/* out [width]: the embedding of a token. */
void pllm_weights_embed(const pllm_weights *weights, const pllm_kernels *kernels, uint32_t id,
                        float *out);
uint64_t pllm_weights_resident_bytes(const pllm_weights *weights);

/* --- weight_ring.c: for thread 0, but for help; nothing to do where nothing is streamed --- */

int pllm_weight_ring_open(pllm_weights *weights, pllm_va ring);
void pllm_weight_ring_close(pllm_weights *weights);
/* A pass begins that reads all layers, then all tiles output_count times. */
void pllm_weights_begin(pllm_weights *weights, uint32_t output_count);
/* Before the barrier after which the part is read: waits until it is there. Where the team copies,
 * until no piece of it is left to take. */
int pllm_weights_enter(pllm_weights *weights, uint32_t part);
/* The same place, every other thread: copies pieces of the part. */
void pllm_weights_help(pllm_weights *weights, uint32_t part);
/* After a barrier that no reader of the part has yet to reach: its slot takes the next part. */
void pllm_weights_leave(pllm_weights *weights, uint32_t part);
/* After the barrier of an enter that no leave follows. */
void pllm_weights_ahead(pllm_weights *weights);
/* The pass failed somewhere: the next one starts the ring anew. */
void pllm_weights_abandon(pllm_weights *weights);
/* Where the part is read from now on. */
void pllm_weights_place(pllm_weights *weights, uint32_t part, char *at);

#endif
