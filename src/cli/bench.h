/* bench.h - what bench, its suite and its plots share. */
#ifndef PLLM_CLI_BENCH_H
#define PLLM_CLI_BENCH_H

#include "cli/cli.h"

/* One point: batch sequences, each with depth tokens before timing begins. */
typedef struct bench_result {
    uint64_t depth, batch;
    /* Filling the context: the first sequence's time, and tokens a second over all of them. */
    double fill_ms, fill_tps;
    uint64_t fill_in, fill_out;           /* bytes that crossed the link for one of them */
    uint64_t prefill_count, prefill_runs; /* prompt tokens timed at depth, on one sequence */
    double prefill_ms, prefill_tps;       /* median of the runs: the time to the first token */
    uint64_t decode_count;                /* steps timed; a step is a token of every sequence */
    double decode_tps, decode_ms_median, decode_ms_best;
    uint64_t read_per_token, missing_per_token, host_per_token, disk_per_token;
    double wait_ms_per_token;
    double resume_ms; /* a step after every block was evicted; 0: not asked for */
    /* The least time a step could take, what sets it, and that over the median. 0: not known. */
    double bound_ms, of_bound;
    const char *bound_by;
} bench_result;

/* What an engine needs for a point, and why it cannot be had here. */
typedef struct bench_plan {
    cli_engine_need need;
    uint64_t prefill, decode, seed; /* tokens timed */
    uint64_t depth_max;
    int resume; /* time a step after every block was evicted */
    /* Of the monotonic clock: measuring stops there, but for a step that is under way; prompts go
     * in pieces, for that. 0: none. */
    uint64_t deadline_ns;
} bench_plan;

/* Tokens a context must hold beside depth. */
uint64_t bench_tokens_after(const bench_plan *plan);
/* Sets need.context_max. Errors: EINVAL (nothing to measure), ELIMIT. */
int bench_plan_context(bench_plan *plan);

typedef struct bench_memory {
    uint64_t weight_bytes, kv_bytes, other_bytes; /* KV of every sequence; other: an estimate */
} bench_memory;
/* Of a shape, computed: nothing is opened. Errors: as pllm_model_open_shape. */
int bench_memory_of(cli_program *cli, const bench_plan *plan, bench_memory *memory_out);
/* OK, or ENOMEM with a sentence. below_device: what does not fit on a GPU may lie in host memory,
 * and on disk. */
int bench_fits(const cli_program *cli, const bench_memory *memory, const cli_bandwidth *machine,
               int below_device);

/* Opens nothing but sequences. result: depth and batch are set. ETIMEDOUT: the plan's deadline. */
int bench_measure(pllm_engine *engine, const bench_plan *plan, const cli_bandwidth *machine,
                  bench_result *result);
json_t *bench_result_json(const bench_result *result);
/* The engine and the machine, as they stand at the end. */
json_t *bench_engine_json(const pllm_engine *engine, const cli_bandwidth *machine);

int bench_suite(cli_program *cli);
int bench_tensor(cli_program *cli); /* tensor.c */
int bench_pool(cli_program *cli);   /* pool.c */

/* A line plot: both axes logarithmic, points with y <= 0 left out. Text is printed as it is. */
enum { PLOT_POINT_MAX = 32, PLOT_LINE_MAX = 32 };
typedef struct plot_line {
    char name[64];
    uint32_t count;
    double x[PLOT_POINT_MAX], y[PLOT_POINT_MAX];
} plot_line;
int plot_write(FILE *file, const char *title, const char *x_title, const char *y_title,
               const plot_line *lines, uint32_t line_count);

#endif
