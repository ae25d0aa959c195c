/* options.h - the one table of options, and the settings a program runs with.
 *
 * A name is written once, in options_table.c. "vram_limit" there is --vram-limit on the command
 * line, PAGEDLLM_VRAM_LIMIT in the environment, vram_limit = ... in a config file, and vram_limit
 * in Python. What each place says is ranked: flag > environment > config file > default, whatever
 * the order in which they are read. A list (--stop) is replaced as a whole by a higher rank.
 *
 *     pllm_settings *settings;
 *     if (pllm_settings_load(NULL, argc, argv, environ, &settings) < 0) ...pllm_last_error()->text
 *     if (settings->help) pllm_options_help(stdout, settings->command);
 *     open(settings->positionals[0], settings->vram_limit)
 *
 * Nothing here prints or exits. Settings own every string in them. Threads: one at a time. */
#ifndef PLLM_BASE_OPTIONS_H
#define PLLM_BASE_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include "base/context.h"
#include "base/size.h"

/* Values of enum options: the position in the table's list. */
enum { PLLM_OPTION_POLICY_STATIC, PLLM_OPTION_POLICY_LRU, PLLM_OPTION_POLICY_2Q };
enum { PLLM_OPTION_PREFETCH_SEQUENTIAL, PLLM_OPTION_PREFETCH_NONE };
enum {
    PLLM_OPTION_KV_AUTO,
    PLLM_OPTION_KV_F32,
    PLLM_OPTION_KV_F16,
    PLLM_OPTION_KV_BF16,
    PLLM_OPTION_KV_INT8,
    PLLM_OPTION_KV_INT4,
};
enum { PLLM_OPTION_COMPUTE_AUTO, PLLM_OPTION_COMPUTE_F32, PLLM_OPTION_COMPUTE_BF16 };
enum { PLLM_OPTION_LOG_TEXT, PLLM_OPTION_LOG_JSON };
enum { PLLM_OPTION_DISK_AUTO, PLLM_OPTION_DISK_URING, PLLM_OPTION_DISK_PREAD };

enum { PLLM_LIST_MAX = 32, PLLM_POSITIONAL_MAX = 16, PLLM_OPTION_MAX = 96 };

typedef struct pllm_string_list {
    uint32_t count;
    const char *items[PLLM_LIST_MAX];
    const char *last; /* of items, for who wants one; NULL: none */
} pllm_string_list;

typedef struct pllm_uint_list {
    uint32_t count;
    uint64_t items[PLLM_LIST_MAX];
} pllm_uint_list;

typedef enum pllm_option_source {
    PLLM_FROM_DEFAULT,
    PLLM_FROM_CONFIG,
    PLLM_FROM_ENVIRONMENT,
    PLLM_FROM_FLAG,
    PLLM_FROM_CALL, /* pllm_settings_set by a program */
} pllm_option_source;

/* Sizes are bytes; PLLM_SIZE_UNLIMITED where that was said. Strings are NULL where nothing was. */
typedef struct pllm_settings {
    /* the machine and its memory */
    pllm_string_list device; /* store serve: all; elsewhere: the last */
    uint64_t threads;        /* 0: what is available */
    uint64_t vram_limit, kv_limit, host_memory;
    const char *nvme_path; /* a folder; NULL: under the user's cache folder */
    uint64_t nvme_size;    /* 0: none, or with nvme_path what the context needs */
    uint64_t page_size;
    uint32_t policy, prefetch_strategy, kv_format, compute;
    uint64_t link_bandwidth; /* bytes a second; unlimited: no simulated link */
    double link_latency_us;
    uint32_t disk_io;
    /* what is told */
    bool stats;
    const char *stats_json;
    uint32_t log_level; /* a pllm_log_level */
    uint32_t log_format;
    const char *config;
    bool help, version;
    /* the command's own */
    const char *prompt, *prompt_file, *system, *text, *ids, *output;
    uint64_t max_tokens;
    double temperature, top_p;
    double seconds, point_seconds; /* of a suite; 0: no bound */
    uint64_t top_k;
    pllm_string_list stop;
    uint64_t seed;
    uint64_t window, prefill, decode, bytes;
    pllm_uint_list depth, batch, frames;
    const char *record, *log;
    const char *shape, *models;
    uint32_t weights;
    bool random_weights, resume, suite, keep;
    bool json, special;
    /* named tensors */
    const char *socket, *redis, *mode, *socket_mode, *dtype, *prefix;
    const char *ledger, *ledger_name;
    uint64_t ready, legacy_memory, quota, quota_tensors, clients, events;
    uint64_t ledger_minimum, ledger_limit, ledger_priority;
    bool pinned, legacy, seal, replace, off, once;

    /* from the command line */
    const char *command; /* NULL: none was given */
    uint32_t positional_count;
    const char *positionals[PLLM_POSITIONAL_MAX];

    /* how they came to be */
    const pllm_context *context;
    struct owned_text *owned;         /* every string above */
    uint8_t sources[PLLM_OPTION_MAX]; /* a pllm_option_source by option index */
} pllm_settings;

/* ---- the table ------------------------------------------------------------------------------ */

typedef enum pllm_option_type {
    PLLM_OPTION_SIZE,    /* uint64_t, base/size.h */
    PLLM_OPTION_UINT,    /* uint64_t */
    PLLM_OPTION_FLOAT,   /* double */
    PLLM_OPTION_STRING,  /* const char * */
    PLLM_OPTION_ENUM,    /* uint32_t */
    PLLM_OPTION_BOOL,    /* bool: true, yes, on, 1; false, no, off, 0; the bare flag is true */
    PLLM_OPTION_STRINGS, /* pllm_string_list: repeatable */
    PLLM_OPTION_UINTS,   /* pllm_uint_list: 0,2048,7680 */
} pllm_option_type;

typedef struct pllm_option {
    const char *name, *alias; /* alias: NULL, or an older or friendlier name, equal everywhere */
    pllm_option_type type;
    uint32_t commands;        /* bit i: command i takes it */
    uint32_t offset;          /* of the field in pllm_settings */
    const char *argument;     /* SIZE, FILE; for an enum its values "auto|f32|bf16"; NULL: bool */
    const char *default_text; /* as a user would write it; NULL: empty, false, no default */
    double min, max;          /* of numbers; max 0: no bound above */
    const char *help;         /* a line */
} pllm_option;

typedef struct pllm_manual { /* what a manual page says beside the options; NULL: nothing */
    const char *description; /* paragraphs apart by an empty line, filled when printed */
    const char *files, *environment, *exits, *examples; /* printed as they are, indented */
} pllm_manual;

typedef struct pllm_command {
    const char *name;      /* "run"; "store put" is a command of the group "store" */
    const char *arguments; /* "MODEL FILE"; a group's is COMMAND */
    uint32_t argument_min, argument_max;
    const char *help;          /* a line */
    const pllm_manual *manual; /* NULL: none */
} pllm_command;

extern const pllm_option pllm_options[];
extern const uint32_t pllm_option_count;
extern const pllm_command pllm_commands[];
extern const uint32_t pllm_command_count;
extern const uint32_t pllm_model_commands; /* bit i: command i is about models */
extern const pllm_manual pllm_manual_top, pllm_manual_limit;
extern const pllm_manual pllm_manual_store, pllm_manual_store_serve, pllm_manual_store_create,
    pllm_manual_store_put, pllm_manual_store_get, pllm_manual_store_ls, pllm_manual_store_stat,
    pllm_manual_store_rm, pllm_manual_store_watch, pllm_manual_store_seal, pllm_manual_store_pin,
    pllm_manual_store_rename;

/* By name or alias, '-' and '_' being the same; NULL if unknown. */
const pllm_option *pllm_option_find(const char *name);
const pllm_command *pllm_command_find(const char *name);
/* The command of a group ("store") that is called name in it; NULL if there is none. */
const pllm_command *pllm_command_within(const pllm_command *group, const char *name);
bool pllm_command_is_group(const pllm_command *command); /* names others, does nothing itself */

/* The whole help of a command, or the list of commands for NULL or an unknown name.
 * Errors: EIO where the file cannot be written. */
int pllm_options_help(FILE *file, const char *command);

/* ---- settings ------------------------------------------------------------------------------- */

/* Arguments (argv[0] is skipped), environment ("NAME=value" strings up to NULL; may be NULL) and
 * the config file that one of them names. All errors are EINVAL with one sentence that names the
 * place and the way out, or ENOMEM, or EIO for an unreadable config file. */
int pllm_settings_load(const pllm_context *context, int argc, const char *const *argv,
                       const char *const *environment, pllm_settings **settings_out);

/* The steps of load, for programs that need only some. open: every default, nothing read. The
 * readers may run in any order; after an error the settings may be half read: close them. */
int pllm_settings_open(const pllm_context *context, pllm_settings **settings_out);
void pllm_settings_close(pllm_settings *settings); /* NULL is fine */
int pllm_settings_read_arguments(pllm_settings *settings, int argc, const char *const *argv);
int pllm_settings_read_environment(pllm_settings *settings, const char *const *environment);
/* Lines "name = value"; # begins a comment at the start of a line or after a space. A value in
 * double quotes keeps its spaces and #, and knows \n \t \" \\. place names it in errors. */
int pllm_settings_read_config(pllm_settings *settings, const char *text, size_t bytes,
                              const char *place);
/* One option by name or alias, text as a user would write it, at the highest rank.
 * Errors: EINVAL, ENOTFOUND (with the nearest name suggested), ENOMEM. */
int pllm_settings_set(pllm_settings *settings, const char *name, const char *text);

/* Where an option's value came from; PLLM_FROM_DEFAULT for an unknown name too. */
pllm_option_source pllm_settings_source(const pllm_settings *settings, const char *name);
/* Was it given anywhere? (temperature's default differs from saying 0, for instance) */
bool pllm_settings_given(const pllm_settings *settings, const char *name);
/* An option's value as text that would read back. Cut if buffer is too small. Returns buffer. */
const char *pllm_settings_text(const pllm_settings *settings, const pllm_option *option,
                               char *buffer, size_t buffer_bytes);

#endif
