/* cli.h - what the commands share. A command returns a pllm status; main prints the error's
 * sentence and turns it into the exit status. */
#ifndef PLLM_CLI_CLI_H
#define PLLM_CLI_CLI_H

#include <stdio.h>
#include <pagedllm/engine.h>
#include "base/options.h"

/* Set by SIGINT and SIGTERM. A command that sees it ends with cli_canceled(). */
int cli_interrupted(void);
int cli_canceled(void); /* ECANCELED with its sentence */

/* The engine that the settings ask for; context_max 0: the model's. A progress bar is shown on
 * stderr if that is a terminal. Borrows settings. */
int cli_engine_open(const pllm_settings *settings, uint32_t sequence_max, uint32_t context_max,
                    pllm_engine **engine_out);
/* --stats and --stats-json, where asked for. result may be NULL. */
int cli_stats(const pllm_settings *settings, const pllm_engine *engine,
              const pllm_generate_result *result);

/* A file's content, or standard input's for "-", a zero byte after it; free(). */
int cli_read_file(const char *path, char **text_out, uint64_t *bytes_out);
/* Token ids: a JSON array, or a .npy file of integers of one dimension; free(). */
int cli_read_ids(const char *path, uint32_t **ids_out, uint32_t *id_count_out);

/* A .npy file of f32 [row_count][columns], written row by row to a file beside it that takes its
 * name only when complete. */
typedef struct npy_writer {
    FILE *file;
    char *path, *partial;
    uint64_t rows_left, columns;
} npy_writer;
int npy_open(npy_writer *writer, const char *path, uint64_t row_count, uint64_t columns);
int npy_write_row(npy_writer *writer, const float *row);
int npy_finish(npy_writer *writer); /* EINVAL if rows are missing; nothing is left behind then */

int command_run(const pllm_settings *settings);
int command_chat(const pllm_settings *settings);
int command_bench(const pllm_settings *settings);
int command_logits(const pllm_settings *settings);
int command_perplexity(const pllm_settings *settings);
int command_tokenize(const pllm_settings *settings);
int command_detokenize(const pllm_settings *settings);
int command_doctor(const pllm_settings *settings);

#endif
