/* store.h - what the commands of `pagedllm store` share. */
#ifndef PLLM_CLI_STORE_H
#define PLLM_CLI_STORE_H

#include <pagedllm/tensor_store.h>
#include "cli/cli.h"

/* A connection, and the device that tensors are mapped on. Zeroed: not open. */
typedef struct cli_store {
    pllm_store *store;
    pllm_device *device;
    const pllm_context *context;
} cli_store;
/* To --socket, with --device; where no device is named and the daemon serves GPUs alone, with the
 * first of those. */
int cli_store_open(const cli_program *cli, cli_store *store);
int cli_store_open_on(const cli_program *cli, const char *device, cli_store *store);
void cli_store_close(cli_store *store); /* not open is fine */

/* "0640" as bits. EINVAL with a sentence that names option. */
int cli_store_mode(const char *text, const char *option, uint32_t *mode_out);
/* Of the options --mode, --pinned, --legacy; kept, as all that the command line makes. */
int cli_store_spec(const pllm_settings *settings, pllm_store_spec *spec);

/* All whose names begin with prefix (NULL: all), by name; free(). */
int cli_store_list(pllm_store *store, const char *prefix, pllm_store_info **rows_out,
                   uint64_t *count_out);

int store_serve(cli_program *cli); /* store_serve.c */
int store_put(cli_program *cli);   /* store_files.c */
int store_get(cli_program *cli);

#endif
