/* cli.h - what the commands share. A command returns a pllm status; main prints the error's
 * sentence and turns it into the exit status. */
#ifndef PLLM_CLI_CLI_H
#define PLLM_CLI_CLI_H

#include <jansson.h>
#include <stdio.h>
#include <pagedllm/engine.h>
#include "base/options.h"
#include "device/device.h"

/* A file that takes its name only when it is complete: until then it has none where the file
 * system can do that, so that nothing half-written is left however the program ends. What is there
 * and is no regular file (/dev/stdout, a pipe) is written directly. Zeroed: not open. */
typedef struct cli_output {
    FILE *file;
    char *path;    /* links followed */
    char *partial; /* its name until then; NULL: written directly */
    int nameless;
} cli_output;
int cli_output_open(cli_output *output, const char *path);
int cli_output_finish(cli_output *output);   /* EIO: nothing is left behind then */
void cli_output_discard(cli_output *output); /* not open is fine */

/* What main gives to a command. */
typedef struct cli_program {
    const pllm_settings *settings;
    const pllm_context *context; /* logs as --log-level and --log-format say */
    cli_output stats;            /* --stats-json, from when the engine opens; main discards it */
    uint64_t percent_shown;      /* by the progress bar */
    uint64_t open_deadline_ns;   /* an engine that is not open by then is given up; 0: none */
} cli_program;

/* Set by SIGINT, SIGTERM and SIGHUP (not under nohup). Who sees it ends with cli_canceled(). */
int cli_interrupted(void);
int cli_signal_fd(void); /* can be read from once a signal has come */
int cli_canceled(void);  /* ECANCELED with its sentence */
/* From now on a model file (positionals[0]) that is cut short ends the program with a sentence. */
void cli_watch_model(const pllm_settings *settings);
/* 1, and all is as before, if it was SIGINT: for who has stopped what that was meant for. */
int cli_interrupt_taken(void);
/* read(), but a signal ends the wait: ECANCELED. EIO: errno is set. 0: the end. */
int cli_read(int fd, void *buffer, size_t bytes, size_t *read_out);

/* Waits, or until a signal comes (1), or standard input has something (2; watched where asked). */
int cli_pause(uint32_t ms, int watch_input);
/* A process's name in its ledger: --ledger-name, or command and pid. Returns buffer. */
const char *cli_member_name(const pllm_settings *settings, char *buffer, size_t bytes);

/* What a command needs that no setting says. */
typedef struct cli_engine_need {
    const char *shape, *weights; /* NULL: the model file, positionals[0] */
    uint32_t sequence_max, context_max;
} cli_engine_need;

/* The options of an engine as the settings say; values holds what they point to. */
typedef struct cli_engine_choice {
    pllm_engine_options options;
    char values[5][16], member[40];
} cli_engine_choice;
void cli_engine_choose(cli_program *cli, const cli_engine_need *need, cli_engine_choice *choice);

/* The engine that the settings ask for, with the model's context. A progress bar is shown on
 * stderr if that is a terminal. need may be NULL. */
int cli_engine_open(cli_program *cli, const cli_engine_need *need, pllm_engine **engine_out);
/* --stats and --stats-json, where asked for. result may be NULL. */
int cli_stats(cli_program *cli, const pllm_engine *engine, const pllm_generate_result *result);
void cli_stats_text(const pllm_engine *engine); /* on stderr */
/* The error kept becomes the last one again; returns its status. */
int cli_fail_again(const pllm_error *kept);

/* Host memory: best of a few runs over 64 MiB. threads 0: all. */
typedef struct cli_memory {
    pllm_device_info host;
    uint32_t threads;
    double read_bytes_per_second, copy_bytes_per_second, copy_all_bytes_per_second;
} cli_memory;
int cli_measure_memory(const pllm_context *context, uint32_t threads, cli_memory *memory_out);

/* The two speeds that bound a token, and the room there is. 0: could not be measured. */
typedef struct cli_bandwidth {
    cli_memory memory;
    pllm_device_info device;
    double read_bytes_per_second; /* device memory, by who computes there */
    double link_bytes_per_second; /* host memory to device */
} cli_bandwidth;
int cli_measure_bandwidth(cli_program *cli, cli_bandwidth *bandwidth_out);

/* A JSON string; bytes that are no UTF-8 become '?'. */
json_t *cli_json_text(const char *text);
/* Prints and gives back root; NULL: ENOMEM. */
int cli_print_json(json_t *root);

/* A file's content, or standard input's for "-", a zero byte after it; free(). */
int cli_read_file(const char *path, char **text_out, uint64_t *bytes_out);
/* Token ids: a JSON array, or a .npy file of integers of one dimension; free(). May be none. */
int cli_read_ids(const char *path, uint32_t **ids_out, uint32_t *id_count_out);

/* A .npy file of f32 [row_count][columns], written row by row. */
typedef struct npy_writer {
    cli_output output;
    uint64_t rows_left, columns;
} npy_writer;
int npy_open(npy_writer *writer, const char *path, uint64_t row_count, uint64_t columns);
int npy_write_row(npy_writer *writer, const float *row);
int npy_finish(npy_writer *writer); /* EINVAL if rows are missing; nothing is left behind then */

/* bench tensor and bench pool: no model is opened. */
int cli_is_tensor(const pllm_settings *settings);
int cli_is_pool(const pllm_settings *settings);

int command_run(cli_program *cli);
int command_chat(cli_program *cli);
int command_bench(cli_program *cli);
int command_logits(cli_program *cli);
int command_perplexity(cli_program *cli);
int command_tokenize(cli_program *cli);
int command_detokenize(cli_program *cli);
int command_doctor(cli_program *cli);
int command_trace(cli_program *cli);
int command_top(cli_program *cli);
int command_limit(cli_program *cli);
int command_store(cli_program *cli); /* every "store ..." */
/* Whether the values of its options mean anything, before a daemon is asked. EINVAL, ELIMIT. */
int cli_store_check(const pllm_settings *settings);

#endif
