/* engine.h - a language model that answers under a memory budget.
 *
 * An engine holds one model's weights and the KV blocks of its sequences; blocks beyond the budget
 * live in host memory and on disk and come back when they are read. Placement never changes a
 * result: the bits of a row of logits depend on its own tokens, on which of them were prompt and
 * which were generated, and on the formats chosen, not on budget, tier, policy, prefetcher,
 * threads, batch neighbours or how a prompt was cut into pieces.
 *
 * With a ledger the device memory is shared with other processes, and another may ask for part of
 * it. What is given back then: device memory of KV blocks, down to the engine's minimum; the blocks
 * move to host memory and disk as always. An engine that nobody is calling gives back at once, on a
 * thread of the library; one that is in a call does between two passes over the model (a token, or
 * a few hundred to thousand of a prompt) and at the call's end. What is not given back: weights and
 * workspaces, which are held while the engine is open. Where it needs more and others of lower
 * priority have it, a call waits for them, half a second at most for each piece; where nobody
 * gives, it evicts blocks of its own.
 *
 * Units: *_bytes are bytes, *_count tokens or items. Token ids are uint32_t.
 * Threads: one caller at a time per engine and everything opened from it; engines are independent.
 * Handles are invalid after fork(). */
#ifndef PAGEDLLM_ENGINE_H
#define PAGEDLLM_ENGINE_H

#include "context.h"
#include "sampling.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PLLM_UNLIMITED UINT64_MAX

typedef struct pllm_engine pllm_engine;
typedef struct pllm_sequence pllm_sequence;

/* Every field may be zero (or NULL), which means what is said beside it. */
typedef struct pllm_engine_options {
    uint32_t struct_bytes;         /* sizeof(pllm_engine_options) */
    uint32_t threads;              /* 0: one for each CPU that this process may use */
    const char *device;            /* "host" (NULL), "cuda", "cuda:1", "cuda:GPU-<uuid>" */
    uint64_t vram_limit_bytes;     /* all device bytes, weights too, and on a GPU what the
                                      context, code and libraries take; 0: no limit */
    uint64_t kv_limit_bytes;       /* KV block frames among them; 0: no limit */
    uint64_t host_memory_bytes;    /* for blocks that left the device; on a GPU pinned, when
                                      opening if it is a limit; 0: none; PLLM_UNLIMITED */
    const char *nvme_path;         /* folder of the spill file; NULL: the user's cache folder */
    uint64_t nvme_size_bytes;      /* 0: no spill file; PLLM_UNLIMITED: what the context needs */
    const char *policy;            /* "static" (NULL), "lru", "2q" */
    const char *prefetch_strategy; /* "sequential" (NULL), "none" */
    const char *kv_format;         /* NULL or "auto": f32 for F32 checkpoints and, on the host, for
                                      BF16 ones, else f16; or "f32", "f16", "bf16", "int8", "int4" */
    const char *compute;           /* "auto" (NULL): f32, but quantised weights meet 15-bit
                                      activations; on a GPU bf16, f16 for F16 weights, f32 for F32
                                      checkpoints, sums in f32 always; "f32"; "bf16" */
    const char *disk_io;           /* "auto" (NULL), "uring", "pread" */
    uint32_t sequence_max;         /* sequences open at once; 0: 1 */
    uint32_t context_max;          /* tokens a sequence; 0: what the model was trained for */
    double link_bytes_per_second;  /* host device: a simulated link; 0: none */
    uint64_t link_latency_ns;
    uint64_t granularity_bytes; /* host device: 0: 64 KiB */
    uint32_t record_max;        /* page accesses kept for replay; 0: none */
    uint32_t key_summaries;     /* 1: of every sealed block the mean and deviation of its keys are
                                   kept on the device, wherever the block is, for choosing blocks;
                                   a sixteenth of the bytes of all blocks in f16, within vram_limit */
    /* Called while weights are loaded and long prompts are read; may be NULL. A non-zero return
     * cancels (ECANCELED). */
    int (*progress)(void *user, const char *what, uint64_t done, uint64_t total);
    void *progress_user;
    /* Instead of a file (path is NULL then): a published model's shape with random weights, for
     * measuring: "llama-2-7b", "llama-3.1-8b", "llama-2-70b", "tinyllama-1.1b", "smollm2-135m".
     * context_max may then be any, and there is no tokenizer. */
    const char *shape;
    const char *weights; /* their format: "bf16" (NULL), "f32", "f16", "q8_0", "q4_0", "q4_1" */
    /* A limit of device memory shared with other processes: see ledger.h. ledger NULL: none. All
     * that this engine takes of the device is charged there too. */
    const char *ledger;            /* its name; made with the next if there is none */
    uint64_t ledger_limit_bytes;   /* of the ledger, by who makes it; 0: it must exist */
    uint64_t ledger_minimum_bytes; /* of this engine, and at least what it cannot do without */
    int32_t ledger_priority;       /* higher makes lower give back */
    uint32_t ledger_reserved;      /* zero */
    const char *ledger_name;       /* of this engine among the members; NULL: by its pid */
} pllm_engine_options;

/* Opens the model at path (a GGUF file, or a folder with config.json and safetensors; NULL where
 * options.shape names one) and gives it memory. Ownership: borrows context; caller owns
 * *engine_out. Errors: EINVAL, ENOMEM, ENODEVMEM (a limit is below the least that works: the text
 * says the least), EIO, ECORRUPT, EUNSUPPORTED, ENOTFOUND, ELIMIT, ECANCELED; then *engine_out is
 * NULL.
 * The file is mapped and read in place. One that is cut short meanwhile raises SIGBUS in the thread
 * that reads, which may be one of ours (they do not block it); the program may catch that, not
 * return from it. Renaming a new file over one that is in use is safe. */
PLLM_API int pllm_engine_open(const pllm_context *context, const char *path,
                              const pllm_engine_options *options, pllm_engine **engine_out);
PLLM_API void pllm_engine_close(pllm_engine *engine); /* and its sequences; NULL is fine */

typedef struct pllm_engine_info {
    uint32_t struct_bytes; /* filled by the caller, as everywhere */
    uint32_t vocab_size, context_max, layer_count, width, head_count, kv_head_count, head_dim;
    uint32_t has_tokenizer, has_chat_template, threads;
    uint64_t weight_bytes;       /* as packed in memory */
    uint64_t kv_bytes_per_block; /* one layer's 32 tokens */
    uint64_t kv_bytes_per_token; /* all layers */
    uint64_t workspace_bytes;    /* device bytes besides KV blocks */
    uint64_t least_vram_bytes,
        least_kv_bytes; /* the smallest limits that work with these options */
    const char *device, *kv_format, *compute, *kernels, *family; /* static storage */
} pllm_engine_info;
PLLM_API int pllm_engine_info_get(const pllm_engine *engine, pllm_engine_info *info_out);

typedef struct pllm_engine_stats {
    uint32_t struct_bytes;
    uint32_t frames_used, frames_peak, frames_limit, host_slots_used, disk_slots_used;
    uint64_t frame_bytes; /* one block frame */
    uint64_t device_bytes, device_bytes_peak, device_limit_bytes;
    uint64_t kv_bytes, kv_bytes_peak; /* of all blocks in every tier, and the most so far */
    uint64_t pins, hits, misses, evictions;
    uint64_t prefetched, prefetch_used, prefetch_wasted, written_behind;
    uint64_t host_to_device_bytes, device_to_host_bytes, disk_to_device_bytes, device_to_disk_bytes;
    uint64_t wait_ns; /* compute stood still for a block, or on the host device for weights */
    uint64_t prompt_tokens, generated_tokens, prefill_ns, decode_ns, steps;
    uint64_t lost_pages;
    const char *disk_io, *disk_note; /* "" without a disk */
    /* Bytes that came to the device for one use, besides pages that moved; and how many bytes of
     * weights stay where they are read: on the device, or on the host device without a vram_limit
     * in memory; there an embedding that is not the output matrix too is always one of them. */
    uint64_t weight_stream_bytes, kv_stream_bytes, weight_resident_bytes;
    /* On a GPU: what cached graphs take beside device_bytes, as measured; within vram_limit. */
    uint64_t graph_bytes, graph_count;
} pllm_engine_stats;
PLLM_API int pllm_engine_stats_get(const pllm_engine *engine, pllm_engine_stats *stats_out);

/* A new limit for KV block frames, live. EBUSY: held by pins for now. ENODEVMEM: below the least.
 */
PLLM_API int pllm_engine_set_kv_limit(pllm_engine *engine, uint64_t bytes);
/* Evicts every block of every sequence from the device (they come back when read). */
PLLM_API int pllm_engine_evict_all(pllm_engine *engine);

/* Sequences. ELIMIT: sequence_max are open. */
PLLM_API int pllm_sequence_open(pllm_engine *engine, pllm_sequence **sequence_out);
PLLM_API void pllm_sequence_close(pllm_sequence *sequence); /* NULL is fine */
/* A sequence with the same tokens; sealed blocks are shared, never copied. */
PLLM_API int pllm_sequence_fork(pllm_sequence *sequence, pllm_sequence **sequence_out);
/* Forgets every token from token_count on. Tokens of a block that was sealed already are computed
 * again, by the path that first made them, when the sequence next takes a step. */
PLLM_API int pllm_sequence_truncate(pllm_sequence *sequence, uint32_t token_count);
PLLM_API uint32_t pllm_sequence_length(const pllm_sequence *sequence);

/* One sequence's share of a step: token_count tokens that follow what it holds. Prompt tokens
 * (generated 0) may be any number; a generated token comes alone. */
typedef struct pllm_step_item {
    pllm_sequence *sequence;
    const uint32_t *ids;
    uint32_t token_count;
    uint32_t generated; /* 1: this token was sampled from this sequence's logits */
    uint32_t logits;    /* 0: none; 1: after the last token; 2: after every token; 3: no row, but
                           next_id */
    int32_t status;     /* out: OK, or why this item failed */
    uint32_t next_id;   /* out, logits 3: the token after the last one, as `sampling` says. Where
                           logits lie on a GPU, they stay there */
    const pllm_sampling *sampling; /* NULL: the most likely; of equals the lowest id, never a NaN */
} pllm_step_item;

/* A row of logits [vocab_size] after token `position` of item `item`; valid during the call. A
 * non-zero return stops the step with ECANCELED. */
typedef int (*pllm_logits_sink)(void *user, uint32_t item, uint32_t position, const float *logits);

/* Runs the items together. On failure the sequences hold what they held before; an item whose own
 * blocks could not be read back has that status, and the rest may be tried again without it. */
PLLM_API int pllm_engine_step(pllm_engine *engine, pllm_step_item *items, uint32_t item_count,
                              pllm_logits_sink sink, void *user);

/* Text. Ids belong to the caller and are freed by pllm_engine_free. */
PLLM_API int pllm_engine_encode(pllm_engine *engine, const char *text, uint64_t text_bytes,
                                int parse_special, uint32_t **ids_out, uint32_t *id_count_out);
PLLM_API int pllm_engine_decode(pllm_engine *engine, const uint32_t *ids, uint32_t id_count,
                                char **text_out, uint64_t *text_bytes_out);
PLLM_API void pllm_engine_free(pllm_engine *engine, void *pointer);

typedef enum pllm_stop_reason {
    PLLM_STOP_LENGTH = 0,   /* max_tokens reached */
    PLLM_STOP_END = 1,      /* the model said so */
    PLLM_STOP_STRING = 2,   /* a stop string came up */
    PLLM_STOP_CONTEXT = 3,  /* the context is full */
    PLLM_STOP_CANCELED = 4, /* the callback said so */
} pllm_stop_reason;

typedef struct pllm_generate_options {
    uint32_t struct_bytes;
    uint32_t max_tokens;
    float temperature; /* 0: greedy */
    uint32_t top_k;    /* 0: all */
    float top_p;       /* 0 or 1: all */
    uint64_t seed;
    const char *const *stop; /* generation ends before the first of these; may be NULL */
    uint32_t stop_count;
    uint32_t ignore_end; /* 1: goes on after an end token (benchmarks) */
    /* Finished text, whole UTF-8 characters, as it comes; non-zero return cancels. May be NULL. */
    int (*text)(void *user, const char *text, uint64_t bytes);
    int (*token)(void *user, uint32_t id); /* each generated id; may be NULL */
    void *user;
} pllm_generate_options;

typedef struct pllm_generate_result {
    uint32_t prompt_tokens, generated_tokens;
    uint32_t stop; /* a pllm_stop_reason */
    uint64_t prefill_ns, decode_ns;
} pllm_generate_result;

/* Feeds ids to the sequence and generates after them. ELIMIT: the prompt is longer than the
 * context allows (the text says both). The sequence then holds the prompt and all generated tokens
 * but the last, which has not been fed. */
PLLM_API int pllm_generate(pllm_engine *engine, pllm_sequence *sequence, const uint32_t *ids,
                           uint32_t id_count, const pllm_generate_options *options,
                           pllm_generate_result *result_out);

#ifdef __cplusplus
}
#endif
#endif
