/* suite.h - a suite: its points, and what its parts share. suite.c measures, suite_files.c writes
 * what was measured and reads it back, suite_time.c foretells what a point takes. */
#ifndef PLLM_CLI_SUITE_H
#define PLLM_CLI_SUITE_H

#include "cli/bench.h"

enum { SUITE_MODEL_MAX = 16, SUITE_CELL_MAX = 1024 };

typedef enum cell_state { CELL_WAITING, CELL_MEASURED, CELL_SKIPPED, CELL_FAILED } cell_state;
extern const char *const suite_state_names[];

typedef struct suite_cell {
    uint32_t model;
    cell_state state;
    int timed_out; /* skipped after it was begun */
    char reason[400];
    bench_memory memory;
    bench_result result;
    double open_seconds;
    json_t *engine;
    json_t *kept; /* the point as an earlier run wrote it; NULL: measured now */
} suite_cell;

typedef struct suite {
    cli_program *cli;
    cli_bandwidth machine;
    uint64_t begun_ns, decode;
    char *list;                           /* settings->models, cut at its commas */
    const char *names[SUITE_MODEL_MAX];   /* shapes */
    const char *formats[SUITE_MODEL_MAX]; /* of their weights */
    char weights[16];
    uint32_t model_count, cell_count;
    uint64_t contexts[PLLM_LIST_MAX], batches[PLLM_LIST_MAX];
    uint32_t context_count, batch_count;
    suite_cell *cells; /* by model, then batch, then context */
} suite;

/* --- suite_files.c --- */

json_t *suite_json(const suite *s);
/* All files of the folder, as things stand. */
int suite_write(const suite *s);
/* Cells that the folder's suite.json has measured become measured. No such file is fine. Errors:
 * EINVAL (it is none, or is of another device or other options), ENOMEM. */
int suite_keep(suite *s);

/* --- suite_time.c --- */

/* What the point will take, in seconds; 0: nothing is known. */
double suite_foretell(const suite *s, const suite_cell *cell);
/* May the point begin? ETIMEDOUT with a sentence if it would take longer than it may. deadline_out:
 * when it has to end; 0: never. */
int suite_may_begin(const suite *s, const suite_cell *cell, uint64_t *deadline_ns_out);
/* Indices of the cells that wait, the cheapest first; returns how many. */
uint32_t suite_order(const suite *s, uint32_t *order);

#endif
