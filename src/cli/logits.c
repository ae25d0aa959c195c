/* logits.c - pagedllm logits: the logits of every position, written as they are computed. */
#include <stdlib.h>
#include "base/context.h"
#include "cli/cli.h"

typedef struct sink {
    npy_writer writer;
    pllm_error error; /* why a row was not written; the engine only says that it was stopped */
} sink;

static int write_row(void *user, uint32_t item, uint32_t position, const float *logits)
{
    sink *out = user;
    (void)item;
    (void)position;
    if (cli_interrupted()) return 1;
    if (npy_write_row(&out->writer, logits) == PLLM_OK) return 0;
    out->error = *pllm_last_error();
    return 1;
}

static int write_all(cli_program *cli, pllm_engine *engine, const uint32_t *ids, uint32_t count)
{
    pllm_engine_info info = {.struct_bytes = sizeof info};
    int status = pllm_engine_info_get(engine, &info);
    if (status < 0) return status;
    if (count > info.context_max)
        return pllm_fail(PLLM_ELIMIT, 0, "%s holds %u ids; the model's context is %u",
                         cli->settings->ids, count, info.context_max);
    pllm_sequence *sequence;
    status = pllm_sequence_open(engine, &sequence);
    if (status < 0) return status;
    sink out = {.error = {.status = PLLM_OK}};
    status = npy_open(&out.writer, cli->settings->output, count, info.vocab_size);
    if (status == PLLM_OK) {
        pllm_step_item item = {.sequence = sequence, .ids = ids, .token_count = count, .logits = 2};
        status = pllm_engine_step(engine, &item, 1, write_row, &out);
        pllm_error kept = out.error.status < 0 ? out.error : *pllm_last_error();
        if (status == PLLM_OK) {
            status = npy_finish(&out.writer);
        } else {
            cli_output_discard(&out.writer.output);
            status = cli_interrupted() ? cli_canceled() : cli_fail_again(&kept);
        }
    }
    pllm_sequence_close(sequence);
    return status < 0 ? status : cli_stats(cli, engine, NULL);
}

int command_logits(cli_program *cli)
{
    const pllm_settings *settings = cli->settings;
    uint32_t *ids, count;
    int status = cli_read_ids(settings->ids, &ids, &count);
    if (status < 0) return status;
    pllm_engine *engine = NULL;
    if (count == 0)
        status = pllm_fail(PLLM_EINVAL, 0, "%s holds no token id: logits needs one at least",
                           settings->ids);
    if (status == PLLM_OK) status = cli_engine_open(cli, NULL, &engine);
    if (status == PLLM_OK) status = write_all(cli, engine, ids, count);
    pllm_engine_close(engine);
    free(ids);
    return status;
}
